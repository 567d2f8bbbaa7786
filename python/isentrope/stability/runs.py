"""What a run of `isentrope stability` came to, and its verdict."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isentrope import json_lines

DIVERGED, STALLED, COLLAPSED = 5.0, 0.1, 0.05
LOWS = (0.2, 0.15, 0.1, 0.075)  # thresholds of an alarm that are compared
LAST = 20  # updates whose mean loss is the last training loss

Result = dict[str, Any]  # what result.json says


def smoothed(losses: Sequence[float]) -> list[float]:
    """Mean of the last LAST losses at every update; of those there are in the beginning."""
    return [statistics.fmean(losses[max(0, i + 1 - LAST) : i + 1]) for i in range(len(losses))]


def first_fall(measurements: Sequence[tuple[int, Mapping[str, Any]]], low: float) -> int | None:
    """The first step at which a quarter of a layer's heads have lost half of their entropy within 100 steps and are below `low`
    of log n: the rule of the trainer's alarm (csrc/train/attention_watch.h), where low is 0.1."""
    seen: list[tuple[int, list[list[float]]]] = []
    for step, measured in measurements:
        now = [[0.0 if x is None else x for x in layer] for layer in measured["normalized"]]
        seen = [*(x for x in seen if x[0] >= step - 100), (step, now)]
        for index, layer in enumerate(now):
            most = [max(x[1][index][head] for x in seen) for head in range(len(layer))]
            if sum(x < min(m / 2, low) for x, m in zip(layer, most)) >= len(layer) / 4:
                return step
    return None


def number(x: float | None, otherwise: float) -> float:
    """A value of metrics.jsonl, where null is what was not finite."""
    return otherwise if x is None else x


def flat(table: Sequence[Sequence[float | None]]) -> list[float]:
    return [number(x, math.inf) for layer in table for x in layer]


def measure(folder: Path, failure: str) -> Result:
    """What result.json says of a run. failure: the trainer's message where it stopped at something not finite, or ''."""
    lines = list(json_lines.read(folder / "metrics.jsonl"))
    updates = [line for line in lines if "eval/split" not in line]
    losses = [math.inf if line["loss"] is None else line["loss"] for line in updates]
    measurements = [(line["step"], line["attention_entropy"]) for line in updates if "attention_entropy" in line]
    means = [[statistics.fmean(number(x, 0.0) for x in layer) for layer in measured["normalized"]]
             for _, measured in measurements]  # fmt: skip
    certified = [number(x, 0.0) for _, measured in measurements for layer in measured["certified"] for x in layer]
    evaluation = next((line["eval/loss"] for line in lines if "eval/loss" in line), None)
    return {
        "failure": failure,
        "steps": len(losses),
        "losses": losses,
        "loss": math.inf if failure else statistics.fmean(losses[-LAST:]),
        "test": evaluation,
        "lowest": [min(column) for column in zip(*means)],  # of each layer
        "lowest_step": min(zip(map(min, means), (step for step, _ in measurements)), default=(0, 0))[1],
        "end": means[-1] if means else [],
        "falls": {str(low): first_fall(measurements, low) for low in LOWS},
        "collapse": next((step for step, measured in measurements if min(flat(measured["normalized"])) < COLLAPSED), None),
        "max_logit": max((max(flat(measured["max_logit"])) for _, measured in measurements), default=0.0),
        "certified": statistics.fmean(certified) if certified else 0.0,
        "violations": sum(number(b, 0.0) > number(n, math.inf) + 1e-5 for _, measured in measurements
                          for bs, ns in zip(measured["bound"], measured["normalized"]) for b, n in zip(bs, ns)),
    }


def end(folder: Path, code: int, said: str) -> str:
    """Writes result.json of a run that has ended, also at something not finite, and removes its checkpoints. Returns "", or what
    went wrong where it ended in another way. said: the last line that the run said."""
    failure = said if code else ""
    if code and "not finite" not in said and "overflows" not in said:
        return f"ended with exit code {code}"
    try:
        result = measure(folder, failure)
    except json_lines.LineError as error:
        return str(error)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "result.part").write_text(json.dumps(result))
    (folder / "result.part").replace(folder / "result.json")
    return ""


def verdict(result: Result, one_byte: float) -> str:
    """diverged, stalled, collapsed, stalled+collapsed or ok, as `isentrope stability --help` says; one_byte: nats of a byte by its
    frequency."""
    if result["failure"] or result["test"] is None or result["test"] > DIVERGED:
        return "diverged"
    words = ["stalled"] if result["test"] >= one_byte - STALLED else []
    words += ["collapsed"] if min(result["lowest"], default=1) < COLLAPSED else []
    return "+".join(words) or "ok"


def byte_levels(package: str = "torch") -> tuple[float, float]:
    """(nats of a byte by its frequency, nats of a byte by its frequency after the byte before it) of a package's sources, the
    text that configs/stability trains on."""
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, package
    root = Path(spec.submodule_search_locations[0])
    one: Counter[int] = Counter()
    two: Counter[tuple[int, int]] = Counter()
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if not skipped & set(parts[:-1]) and not any(part.startswith(".") for part in parts):
            text = file.read_bytes()
            one.update(text)
            two.update(zip(text, text[1:]))

    def entropy(counts: Counter[Any]) -> float:
        total = sum(counts.values())
        return -sum(n / total * math.log(n / total) for n in counts.values())

    return entropy(one), entropy(two) - entropy(one)
