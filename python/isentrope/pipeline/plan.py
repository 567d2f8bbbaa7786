"""What a setting costs at most, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

from isentrope.pipeline.config import Pipeline
from isentrope.pipeline.document import PipelineError
from isentrope.pipeline.run import Runner
from isentrope.pipeline.stages import Setting, Stage, fields_of, filled


@dataclass
class Planner:
    """FLOPs of a question, the mean over those of the data: prompts with the question in it, earlier stages' answers as long as they may
    be, every answer as long as it may be, and every turn of a stage with handlers taken."""

    pipeline: Pipeline
    runner: Runner
    _tokens: dict[tuple[str, str, bool], float] = field(default_factory=dict)

    def flops(self, setting: Setting) -> float:
        return sum(self.of_stages(setting).values())

    def of_stages(self, setting: Setting) -> dict[str, float]:
        """By the name of each stage of the list."""
        return self._list(self.pipeline.stages, setting, 0.0, True)

    def _list(self, stages: tuple[Stage, ...], setting: Setting, more: float, asked: bool) -> dict[str, float]:
        lengths: dict[str, float] = {}
        found: dict[str, float] = {}
        for stage in stages:
            inner = sum(lengths.get(name, 0.0) for name in fields_of(stage.prompt)) + more
            found[stage.name] = self._stage(stage, setting, inner, asked)
            lengths[stage.name] = self._length(stage, setting)
        return found

    def _length(self, stage: Stage, setting: Setting) -> float:
        """Tokens of a stage's answer at most; 0 of a function that has no max_new_tokens."""
        return self._length(stage.stages[-1], setting) if stage.kind == "stages" else setting[stage.path].max_new_tokens

    def _stage(self, stage: Stage, setting: Setting, more: float, asked: bool) -> float:
        """more: tokens of its prompt beside the template's; asked: whether {question} is that of the data, and not among them."""
        if stage.kind == "stages":
            plain = self._list(stage.stages, setting, more, asked)
            return sum(plain.values())
        choice = setting[stage.path]
        if stage.kind == "function":
            assert stage.costs is not None
            return stage.costs.flops(choice.model, choice.samples, choice.max_new_tokens)
        size = self.runner.model(choice.model).size
        prompt, length = self._prompt(stage, choice.model, asked) + more, float(choice.max_new_tokens)
        if not stage.handlers:
            return size.flops(prompt, choice.samples, length)
        called = max(self._stage(handler, setting, length, False) for handler in stage.handlers.values())
        turns = sum(size.flops(prompt + 2 * length * turn, 1, length) for turn in range(stage.turns))
        return choice.samples * (turns + stage.turns * called)

    def _prompt(self, stage: Stage, model: str, asked: bool) -> float:
        key = (model, stage.path, asked)
        if key not in self._tokens:
            texts = [filled(stage.prompt, {"question": one.text}) for one in self.pipeline.questions] if asked else [filled(stage.prompt, {})]
            counted = [self._count(stage, model, text) for text in texts]
            self._tokens[key] = sum(counted) / len(counted)
        return self._tokens[key]

    def _count(self, stage: Stage, model: str, text: str) -> int:
        own = self.runner.model(model)
        if not stage.options["chat"]:
            try:
                return own.tokens(text) if text else 0
            except PipelineError as error:
                raise PipelineError(f"{stage.place}: {error}") from None
        system = [{"role": "system", "content": stage.options["system"]}] if stage.options["system"] else []
        try:
            return len(own.tokenizer.apply_chat_template([*system, {"role": "user", "content": text}], add_generation_prompt=True))
        except ValueError as error:
            raise PipelineError(f"{stage.place}: {error}; leave chat out, and write the prompt as the model was trained on it") from None
