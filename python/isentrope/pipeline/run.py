"""Runs questions through the stages, a block of them at a time."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from isentrope.jobs import PROGRAM
from isentrope.pipeline.config import Pipeline, Question, named_seed
from isentrope.pipeline.document import PipelineError
from isentrope.pipeline.flops import Size, folder_of, size_of
from isentrope.pipeline.scorers import best, vote
from isentrope.pipeline.stages import Choice, Setting, Stage, filled

if TYPE_CHECKING:
    from isentrope.tokenizer import Tokenizer

CALL = re.compile(r"\[(\w+)\][ \t]*(.*)")
REFERENCE = re.compile(r"#(\d+)")
UNKNOWN = "?"  # what a call of no handler is answered


class Drawn(NamedTuple):
    """What a model wrote."""

    text: str
    tokens: int
    prompt_tokens: int


@dataclass
class Meter:
    """What a question cost."""

    flops: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    errors: int = 0  # calls of no handler


@dataclass
class Row:
    """A question on its way: example and meter are those of the question of the data, text what the stage is asked."""

    text: str
    question: Question
    meter: Meter
    trace: list[dict[str, Any]]


@dataclass
class Outcome:
    """Of a question: the last stage's answer, its score (None where the scorer does not apply), and what each stage said."""

    question: Question
    answer: str
    score: float | None
    meter: Meter
    trace: list[dict[str, Any]]


@dataclass
class Model:
    """A folder that answers: its size and its tokenizer."""

    folder: str

    @cached_property
    def size(self) -> Size:
        return size_of(self.folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from isentrope.diagnose.model import resolved
        from isentrope.tokenizer import Tokenizer

        base = folder_of(self.folder)
        own = resolved(Path(self.folder))
        try:
            return Tokenizer(own if (own / "tokenizer.json").exists() else base)
        except (ImportError, RuntimeError) as error:
            raise PipelineError(f"{self.folder}: its tokenizer cannot be read: {error}") from None

    def tokens(self, text: str, whole: bool = False) -> int:
        """whole: what begins a sequence is in the text, as a chat template writes it."""
        try:
            return len(self.tokenizer.encode(text) if whole else self.tokenizer.encode_prompt(text))
        except (RuntimeError, ValueError) as error:
            raise PipelineError(f"{self.folder}: the prompt {text[:60]!r}: {error}") from None


@dataclass
class Runner:
    """Runs blocks of questions. Equal draws are made once: a stage that is asked the same in another setting answers the same.

    Attributes:
        seconds: what models and functions took for the last block, draws that were made before among them.
    """

    pipeline: Pipeline
    models: dict[str, Model] = field(default_factory=dict)
    seconds: float = 0.0
    _drawn: dict[Any, tuple[list[list[Drawn]], float]] = field(default_factory=dict)

    def model(self, folder: str) -> Model:
        return self.models.setdefault(folder, Model(folder))

    def block(self, setting: Setting, questions: Sequence[Question]) -> list[Outcome]:
        """Their outcomes under the setting. Draws are named by seed, stage, turn and the number of the block's first question.

        Raises:
            PipelineError: a stage that cannot answer, with its name.
        """
        self.seconds = 0.0
        rows = [Row(one.text, one, Meter(), []) for one in questions]
        answers = self._stages(self.pipeline.stages, rows, setting, (questions[0].number,))
        scores = self.pipeline.scorer.scores([one.text for one in questions], answers, [one.example for one in questions])
        return [Outcome(one, answer, score, row.meter, row.trace) for one, answer, score, row in zip(questions, answers, scores, rows, strict=True)]

    def _stages(self, stages: Sequence[Stage], rows: Sequence[Row], setting: Setting, names: tuple[object, ...]) -> list[str]:
        values: list[dict[str, str]] = [{"question": row.text} for row in rows]
        answers: list[str] = []
        for stage in stages:
            texts = [filled(stage.prompt, of) for of in values]
            answers = self._stage(stage, rows, texts, setting, names)
            for of, answer in zip(values, answers, strict=True):
                of[stage.name] = answer
        return answers

    def _stage(self, stage: Stage, rows: Sequence[Row], texts: Sequence[str], setting: Setting, names: tuple[object, ...]) -> list[str]:
        if not rows:
            return []
        if stage.kind == "stages":
            inner = [Row(text, row.question, row.meter, row.trace) for text, row in zip(texts, rows, strict=True)]
            return self._stages(stage.stages, inner, setting, (*names, stage.name))
        choice = setting[stage.path]
        seed = named_seed(self.pipeline.seed, "draw", *names, stage.path)
        if stage.kind == "function":
            said = self._function(stage, choice, rows, texts, seed)
        elif stage.handlers:
            said = self._chains(stage, choice, rows, texts, setting, names)
        else:
            said = [[one.text for one in own] for own in self._draw(stage, choice, rows, texts, choice.samples, seed)]
        found = [[stage.extracted(text) for text in own] for own in said]
        chosen = self._chosen(stage, rows, texts, found)
        for row, text, own, answer in zip(rows, texts, said, chosen, strict=True):
            row.trace.append({"stage": stage.path, "prompt": text, "samples": own, "answer": answer})
        return chosen

    def _chosen(self, stage: Stage, rows: Sequence[Row], texts: Sequence[str], found: Sequence[Sequence[str]]) -> list[str]:
        if stage.scorer is None:
            return [vote(own) for own in found]
        flat = [(text, answer, row.question.example) for row, text, own in zip(rows, texts, found, strict=True) for answer in own]
        scores = iter(stage.scorer.scores([one[0] for one in flat], [one[1] for one in flat], [one[2] for one in flat]))
        return [best([next(scores) for _ in own], own) for own in found]

    # ---- who answers --------------------------------------------------------------------------------------------------

    def _function(self, stage: Stage, choice: Choice, rows: Sequence[Row], texts: Sequence[str], seed: int) -> list[list[str]]:
        assert stage.function is not None and stage.costs is not None
        begun = time.monotonic()
        told = {"stage": stage.path, "model": choice.model, "samples": choice.samples, "max_new_tokens": choice.max_new_tokens, "seed": seed}
        try:
            answers = stage.function(list(texts), [{**row.question.example, "number": row.question.number} for row in rows], told)
        except Exception as error:
            raise PipelineError(f"{stage.place}: its function raised {type(error).__name__}: {error}") from error
        if not isinstance(answers, Sequence) or isinstance(answers, str) or len(answers) != len(texts):
            raise PipelineError(f"{stage.place}: its function returned {answers!r:.80}; wanted a list of {len(texts)} answers, one for each question")
        found: list[list[str]] = []
        for answer in answers:
            own = [answer] if isinstance(answer, str) else list(answer) if isinstance(answer, (list, tuple)) else []
            if not own or not all(isinstance(one, str) for one in own):
                raise PipelineError(f"{stage.place}: its function returned the answer {answer!r:.80}; wanted a text, or a list of texts")
            found.append(own)
        self.seconds += time.monotonic() - begun
        for row in rows:
            row.meter.flops += stage.costs.flops(choice.model, choice.samples, choice.max_new_tokens)
        return found

    def _draw(self, stage: Stage, choice: Choice, rows: Sequence[Row], prompts: Sequence[str], samples: int, seed: int) -> list[list[Drawn]]:
        key = (stage.path, choice.model, choice.max_new_tokens, samples, seed, tuple(prompts))
        if key not in self._drawn:
            begun = time.monotonic()
            drawn = self._sample(stage, choice, rows, prompts, samples, seed)
            self._drawn[key] = drawn, time.monotonic() - begun
        found, seconds = self._drawn[key]
        self.seconds += seconds
        size = self.model(choice.model).size
        for row, own in zip(rows, found, strict=True):
            prompt = own[0].prompt_tokens
            row.meter.prompt_tokens += prompt
            row.meter.flops += size.flops(prompt, 0, 0)
            for one in own:
                row.meter.tokens += one.tokens
                row.meter.flops += size.flops(prompt, 1, one.tokens) - size.flops(prompt, 0, 0)
        return found

    def _sample(self, stage: Stage, choice: Choice, rows: Sequence[Row], prompts: Sequence[str], samples: int, seed: int) -> list[list[Drawn]]:
        """By `isentrope sample`, whose engine draws many at a time."""
        chat = stage.options["chat"]
        words = [PROGRAM, "sample", choice.model, "--prompts", "-", "--json", "--samples", str(samples), "--seed", str(seed), "--max-new-tokens", str(choice.max_new_tokens)]
        words += [word for key in ("temperature", "top_k", "top_p", "min_p") for word in (f"--{key.replace('_', '-')}", repr(stage.options[key]))]
        words += [f"--stop={text}" for text in stage.options["stop"] or (["\n"] if stage.handlers else [])]
        words += ["--chat"] if chat else []
        words += [f"--system={stage.options['system']}"] if stage.options["system"] else []
        for row, prompt in zip(rows, prompts, strict=True):
            if not prompt:
                raise PipelineError(f"{stage.place}: the prompt of question {row.question.number} is empty; an answer follows at least one token")
        given = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        try:
            told = subprocess.run(words, input=given.encode(), capture_output=True)
        except OSError as error:
            raise PipelineError(f"{PROGRAM} cannot be started: {error.strerror}") from None
        if told.returncode:
            raise PipelineError(f"{stage.place}: {self._reason(told.stderr.decode(errors='replace'), rows)}")
        found: list[list[Drawn]] = [[] for _ in prompts]
        model, counts = self.model(choice.model), dict[str, int]()
        for line in told.stdout.split(b"\n"):
            if line:
                one = json.loads(line)
                if one["prompt"] not in counts:
                    counts[one["prompt"]] = model.tokens(one["prompt"], chat)
                found[one["group"]].append(Drawn(one["completion"], one["length"], counts[one["prompt"]]))
        return found

    @staticmethod
    def _reason(text: str, rows: Sequence[Row]) -> str:
        """What the program says against a prompt, by the number of its question."""
        lines = [line.removeprefix("isentrope: ") for line in text.splitlines() if line] or ["isentrope sample failed without a word"]
        return re.sub(r"standard input:(\d+)", lambda at: f"question {rows[min(int(at[1]), len(rows)) - 1].question.number}", lines[-1])

    def _chains(self, stage: Stage, choice: Choice, rows: Sequence[Row], texts: Sequence[str], setting: Setting, names: tuple[object, ...]) -> list[list[str]]:
        """Of each question `samples` conversations with the handlers, each until its end: lines that the model writes, and behind each
        that calls a handler, [NAME] ARGUMENT, the answer. #n in an argument is the n-th answer."""
        chains = [Chain(row, text) for row, text in zip(rows, texts, strict=True) for _ in range(choice.samples)]
        for turn in range(stage.turns):
            talking = [chain for chain in chains if not chain.over]
            if not talking:
                break
            seed = named_seed(self.pipeline.seed, "draw", *names, stage.path, "turn", turn)
            drawn = self._draw(stage, choice, [one.row for one in talking], [one.text + one.transcript for one in talking], 1, seed)
            calls: dict[str, list[tuple[Chain, str]]] = {}
            for chain, own in zip(talking, drawn, strict=True):
                if (call := chain.said(own[0].text.strip(), stage)) is not None:
                    calls.setdefault(call[0], []).append((chain, call[1]))
            for name, asked in calls.items():
                inner = [Row(argument, chain.row.question, chain.row.meter, chain.row.trace) for chain, argument in asked]
                handler = stage.handlers[name]
                prompts = [filled(handler.prompt, {"question": row.text}) for row in inner]
                for (chain, _), answer in zip(asked, self._stage(handler, inner, prompts, setting, (*names, stage.name, turn)), strict=True):
                    chain.answered(answer)
        found: list[list[str]] = []
        for i in range(len(rows)):
            of_row = chains[i * choice.samples : (i + 1) * choice.samples]
            rows[i].trace.append({"stage": f"{stage.path}.calls", "transcripts": [chain.transcript for chain in of_row]})
            found.append([chain.answer for chain in of_row])
        return found


@dataclass
class Chain:
    """One conversation of a model with its handlers."""

    row: Row
    text: str
    transcript: str = ""
    answers: list[str] = field(default_factory=list)
    answer: str = ""
    over: bool = False

    def said(self, line: str, stage: Stage) -> tuple[str, str] | None:
        """Takes a line of the model. Returns the call that it is, or None; a line that calls nothing is the answer."""
        self.transcript += line + "\n"
        if stage.end and stage.end in line:
            before = line.partition(stage.end)[0].strip()
            self.answer, self.over = before or self.answer, True
            return None
        call = CALL.search(line)
        if call is None:
            self.answer, self.over = line, True
            return None
        argument = REFERENCE.sub(lambda at: self.answers[int(at[1]) - 1] if 0 < int(at[1]) <= len(self.answers) else at[0], call[2].strip())
        if call[1] in stage.handlers:
            return call[1], argument
        self.row.meter.errors += 1
        self.answered(UNKNOWN)
        return None

    def answered(self, text: str) -> None:
        self.answers.append(text)
        self.answer = text
        self.transcript += text + "\n"

