"""Settings measured on blocks of questions, each once: what was measured before is read from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isentrope.pipeline.cache import Cache
from isentrope.pipeline.config import Pipeline, Question, as_object, digest
from isentrope.pipeline.flops import folder_of
from isentrope.pipeline.run import Outcome, Runner
from isentrope.pipeline.stages import Choice, Setting, source_digest


@dataclass(frozen=True)
class Measured:
    """Of a setting on its first questions: of each whether it is right and its score (None where the scorer does not apply), means of
    its cost, and the seconds of its draws."""

    scores: list[float | None]
    flops: float
    prompt_tokens: float
    tokens: float
    seconds: float

    @property
    def questions(self) -> int:
        return len(self.scores)

    @property
    def right(self) -> int:
        return sum(score is not None and score >= 0.5 for score in self.scores)

    @property
    def accuracy(self) -> float:
        return self.right / max(self.questions, 1)


class Trials:
    """Measures settings, and counts what it measured anew. A line of the file is a block of questions under a setting; its key is made of
    all that its answers come of: stages, functions, weights, questions, seed. keep: whether lines hold every answer too."""

    def __init__(self, pipeline: Pipeline, runner: Runner, file: Path, keep: bool = False) -> None:
        self.pipeline, self.runner, self.keep = pipeline, runner, keep
        self.cache = Cache(file)
        self.fresh = 0  # blocks that were not in the file
        self.about = digest(without_choices({key: value for key, value in pipeline.about.items() if key != "data"}), source_digest(pipeline.stages, pipeline.scorer))
        self._models: dict[str, str] = {}
        self._blocks: dict[int, str] = {}

    def key(self, setting: Setting, questions: list[Question]) -> str:
        first = questions[0].number
        if first not in self._blocks:
            self._blocks[first] = digest([one.example for one in questions])
        return digest(self.about, as_object(setting), self._blocks[first], [self._weights(choice.model) for choice in setting.values()])

    def _weights(self, model: str) -> str:
        """Which weights a folder has now: files of weights by name, size and time. Models that are names of a function have none."""
        if model not in self._models:
            paths = sorted(folder_of(model).glob("*.safetensors")) if model and Path(model).is_dir() else []
            self._models[model] = digest([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths])
        return self._models[model]

    def blocks(self, first: int, count: int) -> list[list[Question]]:
        """The questions from `first` on, cut where a multiple of `block` is: blocks are the same whatever is asked for."""
        size = self.pipeline.block
        edges = sorted({first, first + count, *range((first // size + 1) * size, first + count, size)})
        return [self.pipeline.questions[a:b] for a, b in zip(edges, edges[1:], strict=False)]

    def measure(self, setting: Setting, first: int, count: int) -> Measured:
        lines = [self.line(setting, block) for block in self.blocks(first, count)]
        scores = [score for line in lines for score in line["scores"]]
        of = [len(line["scores"]) for line in lines]
        means = {name: sum(line[name] * n for line, n in zip(lines, of, strict=True)) / sum(of) for name in ("flops", "prompt_tokens", "tokens")}
        return Measured(scores, **means, seconds=sum(line["seconds"] for line in lines))

    def line(self, setting: Setting, block: list[Question]) -> dict[str, Any]:
        key = self.key(setting, block)
        found = self.cache.get(key)
        if found is not None:
            return found
        self.fresh += 1
        outcomes = self.runner.block(setting, block)
        n = len(outcomes)
        line: dict[str, Any] = {"setting": as_object(setting), "first": block[0].number, "questions": n, "scores": [one.score for one in outcomes],
                                "flops": sum(one.meter.flops for one in outcomes) / n, "prompt_tokens": sum(one.meter.prompt_tokens for one in outcomes) / n,
                                "tokens": sum(one.meter.tokens for one in outcomes) / n, "errors": sum(one.meter.errors for one in outcomes),
                                "seconds": round(self.runner.seconds, 4)}  # fmt: skip
        if self.keep:
            line["answers"] = [shown(one) for one in outcomes]
        return self.cache.put(key, line)


def without_choices(value: Any) -> Any:
    """What the file says of stages beside their choices, which a setting says: another choice leaves what was measured as it is."""
    if isinstance(value, dict):
        return {key: without_choices(one) for key, one in value.items() if key not in Choice._fields}
    return [without_choices(one) for one in value] if isinstance(value, list) else value


def shown(outcome: Outcome) -> dict[str, Any]:
    """Of a question all that was said."""
    return {"question": outcome.question.number, "text": outcome.question.text, "answer": outcome.answer, "score": outcome.score,
            "flops": outcome.meter.flops, "stages": outcome.trace}  # fmt: skip


def as_text(setting: Setting) -> str:
    """ "plan: small x 4, 32 tokens; solve: …" for a table."""
    parts = []
    for path, choice in setting.items():
        words = [f"{choice.model} × {choice.samples}" if choice.model else f"× {choice.samples}"]
        words += [f"{choice.max_new_tokens} tokens"] if choice.max_new_tokens else []
        parts.append(f"{path}: {', '.join(words)}")
    return "; ".join(parts)


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
