"""The file of a pipeline: stages, questions, scorer, seed, folder, and what `isentrope budget` searches under."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from isentrope.pipeline.document import Document, PipelineError, Section, nearest
from isentrope.pipeline.scorers import Scorer
from isentrope.pipeline.stages import Choice, Setting, Stage, read_stages

SEARCHES = ("guided", "random", "grid")
MOST_SETTINGS = 200_000


class Question(NamedTuple):
    """A question of the data: its number there, its text, and its line, with `answer` under this name."""

    number: int
    text: str
    example: dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """flops: of a question; trials: settings whose cost each search may spend, in questions: trials · questions; confirm: fresh questions
    on which the setting that a search found is measured again."""

    flops: float
    trials: int
    questions: int
    confirm: int
    batch: int
    search: tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    file: Path
    stages: tuple[Stage, ...]
    questions: list[Question]
    scorer: Scorer
    seed: int
    block: int
    folder: Path
    budget: Budget | None
    about: dict[str, Any]  # the file as it was read, without what says how much is searched

    @property
    def searched(self) -> list[Stage]:
        """Stages that have something to choose, those within others among them."""
        return [stage for stage in self.all if len(stage.choices) > 1]

    @property
    def all(self) -> list[Stage]:
        return [inner for stage in self.stages for inner in stage.inner() if inner.kind != "stages"]

    def setting(self) -> Setting:
        """The one that there is. Raises PipelineError where a stage leaves a choice."""
        for stage in self.searched:
            name = next(key for key, values in (("model", stage.models), ("samples", stage.samples), ("max_new_tokens", stage.lengths)) if len(values) > 1)
            raise PipelineError(f"{stage.place}.{name} is a list to choose from; wanted one value, or: isentrope budget {self.file}, which writes best.yaml")
        return {stage.path: stage.choices[0] for stage in self.all}

    def settings(self) -> list[Setting]:
        """All, the last stage's samples and lengths changing fastest."""
        stages = self.all
        count = 1
        for stage in stages:
            count *= len(stage.choices)
        if count > MOST_SETTINGS:
            raise PipelineError(f"{self.file}: pipeline has {count} settings; wanted at most {MOST_SETTINGS}: fewer samples, models or max_new_tokens to choose from")
        return [dict(zip([stage.path for stage in stages], choices, strict=True)) for choices in itertools.product(*(stage.choices for stage in stages))]


def read(file: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Raises PipelineError."""
    document = Document(file, overrides)
    root = document.root()
    about = {key: value for key, value in document.value.items() if key in ("pipeline", "data", "scorer", "seed", "block")}
    stages = read_stages(root.sections("pipeline"))
    scorer = Scorer.of(root, "scorer")
    seed, block = root.number("seed", 1, 0), root.number("block", 32, 1)
    folder = Path(root.text("dir", f"runs/{file.stem}"))
    questions = read_data(root.section("data"))
    budget = read_budget(root.section("budget"), len(questions)) if "budget" in root else None
    root.known.append("budget")
    root.done()
    return Pipeline(file, stages, questions, scorer, seed, block, folder, budget, about)


def read_budget(section: Section, there: int) -> Budget:
    flops = section.number("flops", None, 0)
    if flops is None:
        raise section.wrong("", "has no flops; wanted flops: the most that a question may cost, such as 1.0e+9")
    trials = section.number("trials", 20, 1)
    questions = section.number("questions", max(1, there // 2), 1)
    confirm = section.number("confirm", max(0, there - questions), 0)
    batch = section.number("batch", 9, 1)
    search = section.several("search", SEARCHES, str)
    for one in search:
        if one not in SEARCHES:
            raise section.wrong("search", f"holds '{one}'; {nearest(one, SEARCHES, 'there are')}")
    if questions + confirm > there:
        raise section.wrong("questions" if questions > there else "confirm", f"is {questions if questions > there else confirm}: with questions {questions + confirm} in all, and the data have {there}")
    section.done()
    return Budget(flops, trials, questions, confirm, batch, search)


def read_data(section: Section) -> list[Question]:
    if "reasoning_gym" in section:
        section.known.append("reasoning_gym")
        lines = of_reasoning_gym(section.section("reasoning_gym"))
        where, question_key, answer_key = section.document.place("data.reasoning_gym"), "prompt", "answer"
    else:
        path = Path(section.text("path"))
        where, question_key, answer_key = str(path), section.text("question_key", "prompt"), section.text("answer_key", "answer")
        lines = lines_of(path, section)
    first, count = section.number("first", 0, 0), section.number("count", 0, 0)
    section.done()
    last = first + count if count else len(lines)
    if first >= len(lines) or last > len(lines):
        raise PipelineError(f"{where}: has {len(lines)} questions; data.first {first} and data.count {count} ask for more")
    found = []
    for number in range(first, last):
        example = dict(lines[number])
        text = example.get(question_key)
        if not isinstance(text, str) or not text:
            raise PipelineError(f"{where}, question {number}: {question_key} is {text!r}; wanted a text (data.question_key says its key)")
        if answer_key in example:
            example["answer"] = example[answer_key]
        found.append(Question(number, text, example))
    return found


def lines_of(path: Path, section: Section) -> list[dict[str, Any]]:
    try:
        rows = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise section.wrong("path", f"is {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found = []
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            line = json.loads(row)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise PipelineError(f"{path}:{number}: is no JSON object: {row[:60]!r}; wanted {{\"prompt\": …, \"answer\": …}}")
        found.append(line)
    return found


def of_reasoning_gym(section: Section) -> list[dict[str, Any]]:
    from isentrope import tasks

    task, size, seed = section.text("task"), section.number("size", 100, 1), section.number("seed", 1, 0)
    words = [f"{key}={json.dumps(value)}" for key, value in section.value.items() if key not in ("task", "size", "seed")]
    try:
        return list(tasks.problems(task, size, seed, tasks.configuration(task, words)))
    except tasks.TaskError as error:
        raise section.wrong("", f": {error}") from None
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "reasoning_gym":
            raise
        raise PipelineError("data.reasoning_gym: the Python package reasoning-gym is missing: pip install 'isentrope[tasks]'") from None


def as_object(setting: Setting) -> dict[str, dict[str, Any]]:
    """As JSON holds it, without what a stage does not have."""
    return {path: {key: value for key, value in choice._asdict().items() if value or key == "samples"} for path, choice in setting.items()}


def digest(*parts: Any) -> str:
    """Of what JSON can hold: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def named_seed(seed: int, *names: object) -> int:
    """What fixes the draws that these names are for, 0 to 2^63 - 1."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


__all__ = ["Budget", "Choice", "Pipeline", "Question", "as_object", "digest", "named_seed", "read"]
