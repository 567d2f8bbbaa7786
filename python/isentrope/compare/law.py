"""The law that ties a policy's reward to its entropy, R = b - a exp(H) (arXiv 2505.22617), fitted to the runs of a comparison: whether
a method moves the curve, or only the point on it at which a run stands."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isentrope import json_lines
from isentrope.compare.plan import Configuration
from isentrope.compare.table import NATS, PERCENT, cell

Point = tuple[float, float]  # exp(H), R: mean entropy of the tokens drawn in a step, and mean score by the first reward


@dataclass(frozen=True)
class Law:
    a: float
    b: float
    r2: float  # share of the variance of R that it explains

    def at(self, x: float) -> float:
        return self.b - self.a * x


def fit(points: Sequence[Point]) -> Law | None:
    """By least squares; None of fewer than three points, or where all entropies are one."""
    x, R = [p[0] for p in points], [p[1] for p in points]
    if len(points) < 3 or statistics.pvariance(x) < 1e-8:
        return None
    slope, intercept = statistics.linear_regression(x, R)
    rest = math.fsum((r - intercept - slope * u) ** 2 for u, r in points)
    whole = statistics.pvariance(R) * len(R)
    return Law(-slope, intercept, 1 - rest / whole if whole else 1.0)


def steps(run_dir: Path, phase: str, reward: str) -> list[Point]:
    """Of each step of the phase."""
    found = ((record.get("entropy/mean"), record.get(reward)) for record in json_lines.read(run_dir / "metrics.jsonl") if record.get("phase") == phase)
    return [(math.exp(H), R) for H, R in found if H is not None and R is not None]


def first_reward(config: dict[str, Any]) -> str:
    """The metric of the reward that judges: of the score alone, whatever a method adds to it."""
    entry = config["phases"][-1]["reward"][0]
    called = entry.get("name") or (entry["kind"] if entry["kind"] != "python" else entry["function"].replace(":", ".").rsplit(".")[-1])
    return f"reward/{called}"


def above(points: Sequence[Point], curve: Law | None, of: Sequence[Point]) -> float | None:
    """Mean of R - curve over the points whose entropy the runs have that the curve was fitted to, `of`; None where there are none."""
    if not curve or not of:
        return None
    least, most = min(x for x, _ in of), max(x for x, _ in of)
    there = [R - curve.at(x) for x, R in points if least <= x <= most]
    return statistics.fmean(there) if there else None


class Laws:
    """Of configurations that start alike; the first is the one whose curve the others are held against, seed by seed."""

    def __init__(self, rows: dict[str, list[list[Point]]]):
        """rows: of each configuration the steps of its runs, one list a seed."""
        self.rows = rows
        self.laws = {name: [fit(run) for run in runs] for name, runs in rows.items()}
        reference = next(iter(rows))
        self.above = {name: [above(run, curve, of) for run, curve, of in zip(runs, self.laws[reference], rows[reference])]
                      for name, runs in rows.items()}  # fmt: skip
        self.common = [fit([p for runs in rows.values() for p in runs[i]]) for i in range(len(rows[reference]))]

    def markdown(self) -> list[str]:
        lines = ["| R = b − a·exp(H) | a | b | at H = 0, % | R², % | above the first one's curve, points |", "| --- |" + " ---: |" * 5]

        def row(name: str, laws: Sequence[Law | None], distance: Sequence[float | None]) -> None:
            told = [(law.a, law.b, law.at(1), law.r2) if law else (None,) * 4 for law in laws]
            values: list[Sequence[float | None]] = [*zip(*told), distance]
            cells = [cell(value, form) for value, form in zip(values, (NATS, NATS, PERCENT, PERCENT, PERCENT))]
            lines.append("| " + " | ".join([name, *cells]) + " |")

        for name, laws in self.laws.items():
            row(name, laws, self.above[name])
        row("all of them, one curve a seed", self.common, [])
        return [*lines, ""]

    def json(self) -> list[dict[str, Any]]:
        return [{"name": name, "above": self.above[name], "runs": [vars(law) if law else None for law in laws]} for name, laws in self.laws.items()]


def laws_of(rows: Iterable[Configuration], seeds: Sequence[int], out: Path) -> Laws:
    """Of the policy phases of a table's rows, in their order."""
    return Laws({c.label: [steps(out / c.folder_name(seed), list(c.phases)[-1], first_reward(c.resolved)) for seed in seeds] for c in rows})
