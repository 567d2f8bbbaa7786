"""What searches came to: budget.json, the table budget.md, and best.yaml, a pipeline without choices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from isentrope.budget.space import Space
from isentrope.diagnose.intervals import wilson
from isentrope.pipeline.cache import replace
from isentrope.pipeline.config import Pipeline, as_object
from isentrope.pipeline.document import Document
from isentrope.pipeline.flops import shown
from isentrope.pipeline.stages import Setting
from isentrope.pipeline.trials import Measured, Trials, as_text, dumped


@dataclass(frozen=True)
class Found:
    """Of a search: the setting with the most right answers, and every one that it measured.

    Attributes:
        best: its place in the space; seen: on the questions of the search; fresh: on those that no search has seen.
        measured: place and outcome of each setting, as they were first measured.
        asked: questions that it spent.
    """

    name: str
    best: int
    seen: Measured
    fresh: Measured | None
    measured: Sequence[tuple[int, Measured]]
    asked: int

    @property
    def flops(self) -> float:
        """What its questions cost, as if nothing had been measured before."""
        return sum(one.flops * one.questions for _, one in self.measured)

    @property
    def seconds(self) -> float:
        return sum(one.seconds for _, one in self.measured)


def described(pipeline: Pipeline, space: Space) -> str:
    assert pipeline.budget is not None
    budget = pipeline.budget
    return (f"{len(space.all)} settings, {len(space)} within {shown(budget.flops)} a question, from {shown(min(space.costs))} to {shown(max(space.costs))}; "
            f"{', '.join(budget.search)}: {budget.trials} × {budget.questions} questions each, {budget.confirm} fresh ones, seed {pipeline.seed}")  # fmt: skip


def share(one: Measured | None) -> str:
    if one is None or not one.questions:
        return ""
    low, high = wilson(one.right, one.questions)
    return f"{100 * one.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def markdown(space: Space, found: Sequence[Found]) -> list[str]:
    """The table: shares in percent with Wilson's 95 % interval, costs a question at most and as they were."""
    rows = [["search", "setting", "at most", "as it was", "right, %", "fresh, %", "settings", "questions", "FLOPs spent", "draws"]]
    for one in found:
        rows.append([one.name, as_text(space.settings[one.best]), shown(space.costs[one.best]), shown(one.seen.flops), share(one.seen), share(one.fresh),
                     str(len(one.measured)), str(one.asked), shown(one.flops), f"{one.seconds:.1f} s"])  # fmt: skip
    rows.insert(1, ["---" if i < 2 else "---:" for i in range(len(rows[0]))])
    return ["| " + " | ".join(row) + " |" for row in rows]


def as_json(one: Measured) -> dict[str, Any]:
    low, high = wilson(one.right, one.questions)
    return {"questions": one.questions, "right": one.right, "accuracy": one.accuracy, "interval": {"low": low, "high": high},
            "flops": one.flops, "prompt_tokens": one.prompt_tokens, "tokens": one.tokens, "seconds": one.seconds}  # fmt: skip


def write(pipeline: Pipeline, space: Space, found: Sequence[Found], trials: Trials, seconds: float) -> str:
    """The files in the folder. Returns what is printed."""
    assert pipeline.budget is not None
    searches = [{"search": one.name, "setting": as_object(space.settings[one.best]), "planned_flops": space.costs[one.best], "seen": as_json(one.seen),
                 "fresh": as_json(one.fresh) if one.fresh else None, "spent": {"questions": one.asked, "flops": one.flops, "seconds": one.seconds},
                 "measured": [{"setting": as_object(space.settings[place]), "planned_flops": space.costs[place], **as_json(of)} for place, of in one.measured]}
                for one in found]  # fmt: skip
    data = {"config": str(pipeline.file), "seed": pipeline.seed, "scorer": pipeline.scorer.name, "budget": pipeline.budget.__dict__ | {"search": list(pipeline.budget.search)},
            "settings": len(space.all), "allowed": len(space), "searches": searches}  # fmt: skip
    lines = markdown(space, found)
    replace(pipeline.folder / "budget.json", dumped(data))
    replace(pipeline.folder / "budget.md", "\n".join([described(pipeline, space), "", *lines]) + "\n")
    # Of several searches the one that the fresh questions speak for, else those that were searched on; of equals the first.
    winner = max(found, key=lambda one: (one.fresh or one.seen).accuracy)
    replace(pipeline.folder / "best.yaml", best_yaml(pipeline, space.settings[winner.best]))
    return "\n".join([*lines, "", f"time     {seconds:.1f} s; {trials.fresh} blocks were measured now, the others before",
                      f"written  {pipeline.folder}/budget.json, budget.md, trials.jsonl",
                      f"best     isentrope pipeline {pipeline.folder}/best.yaml   ({winner.name})"])  # fmt: skip


def best_yaml(pipeline: Pipeline, setting: Setting) -> str:
    """The file with one value in the place of each choice, and without its budget. Files of functions are named as seen from the folder."""
    value: dict[str, Any] = Document(pipeline.file).value
    value = {key: value[key] for key in value if key not in ("budget", "dir", "pipeline", "seed", "data", "block", "scorer")}
    value = {**pipeline.about, **value, "dir": str(pipeline.folder / "best")}
    value["pipeline"] = [chosen(stage, str(stage["name"]), setting) for stage in value["pipeline"]]
    text: str = yaml.safe_dump(moved(value, pipeline.file.parent, pipeline.folder), sort_keys=False, allow_unicode=True)
    return text


def chosen(stage: dict[str, Any], path: str, setting: Setting) -> dict[str, Any]:
    found = dict(stage)
    if path in setting:
        found |= {key: value for key, value in setting[path]._asdict().items() if key in stage}
    if "flops" in stage:  # of one model alone
        found["flops"] = {key: one.get(setting[path].model) if isinstance(one, dict) else one for key, one in stage["flops"].items()}
    if "stages" in stage:
        found["stages"] = [chosen(one, f"{path}.{one['name']}", setting) for one in stage["stages"]]
    if "handlers" in stage:
        found["handlers"] = {name: chosen(one, f"{path}.{name}", setting) for name, one in stage["handlers"].items()}
    return found


def moved(value: Any, here: Path, there: Path) -> Any:
    """FILE.py:FUNCTION under function and scorer, seen from the folder `there`."""
    if isinstance(value, list):
        return [moved(one, here, there) for one in value]
    if not isinstance(value, dict):
        return value
    found = {key: moved(one, here, there) for key, one in value.items()}
    for key in ("function", "scorer"):
        place, colon, name = str(value.get(key, "")).rpartition(":")
        if colon and place.endswith(".py"):
            found[key] = f"{os.path.relpath(here / place, there)}:{name}"
    return found
