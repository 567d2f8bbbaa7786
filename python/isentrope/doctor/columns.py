"""The metrics of one phase as columns, and what rules ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from isentrope.report.runs import Run, Series

Array = npt.NDArray[np.float64]

LEAST = 10  # values that a column has where it is judged: of fewer, a beginning and an end are single steps
FEWEST = 3  # values of a beginning or an end, where a tenth of the column is fewer


class NotJudged(Exception):
    """Why a rule says nothing of a phase; for a person."""


@dataclass(frozen=True)
class Column:
    """Values of one key over the steps that have it."""

    steps: Array  # [n], rising
    values: Array  # [n, …]; NaN where a value is not finite

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> Column:
        """Of values [n]: those that are finite."""
        there = np.isfinite(self.values)
        return Column(self.steps[there], self.values[there])

    def part(self, begin: float, end: float) -> Column:
        """From one share of the column to another, FEWEST values at least."""
        n = len(self)
        first, last = round(begin * n), round(end * n)
        if last - first < FEWEST:
            first, last = (max(last - FEWEST, 0), last) if end == 1 else (first, min(first + FEWEST, n))
        return Column(self.steps[first:last], self.values[first:last])

    def head(self) -> Column:
        """The first tenth."""
        return self.part(0.0, 0.1)

    def tail(self) -> Column:
        """The last tenth."""
        return self.part(0.9, 1.0)

    def quarter(self) -> Column:
        """The last quarter."""
        return self.part(0.75, 1.0)

    def mean(self) -> float:
        return float(self.values.mean())

    def median(self) -> float:
        return float(np.median(self.values))

    def error(self) -> float:
        """Standard error of the mean, of values that know nothing of each other."""
        return float(self.values.std(ddof=1) / np.sqrt(len(self))) if len(self) > 1 else 0.0

    def width(self) -> int:
        """Values of a tenth."""
        return max(FEWEST, round(0.1 * len(self)))

    def jitter(self) -> float:
        """Standard error of the difference between the means of two tenths, by how much a value differs from the one before it."""
        return float(np.sqrt((np.diff(self.values) ** 2).mean() / self.width())) if len(self) > 1 else 0.0

    def trailing(self) -> Column:
        """The mean of a tenth of the column's length up to every step that has so many before it."""
        width = self.width()
        sums = np.cumsum(np.concatenate((np.zeros(1), self.values)))
        return Column(self.steps[width - 1 :], (sums[width:] - sums[:-width]) / width)


def told_last(steps: Array, values: Array) -> Column:
    """A column without what a resumed run told again: where the steps go back, those from there on stand as they were told last."""
    after = np.minimum.accumulate(steps[::-1])[::-1]  # the least step from here on
    kept = np.append(steps[:-1] < after[1:], True) if len(steps) else np.zeros(0, bool)
    return Column(steps[kept], values[kept])


@dataclass(frozen=True)
class Phase:
    """What the rules look at: they are functions of it alone."""

    name: str
    kind: str  # pretrain, sft, grpo; "": not known
    steps: int  # the last one
    columns: Mapping[str, Column]  # by key of metrics.jsonl; of evaluations by "validation KEY" and "test KEY"
    attention: Column | None = None  # attention_entropy.normalized [n, L, H]
    sigma: Mapping[str, Column] = field(default_factory=dict)  # by layer [n, 3]: σ, γ, the true norm or NaN
    settings: Mapping[str, str] = field(default_factory=dict)  # the run's configuration by dotted path

    def column(self, key: str, least: int = LEAST) -> Column:
        """The finite values of a key. Raises NotJudged where there are fewer than `least`."""
        found = self.columns.get(key)
        if found is None:
            raise NotJudged(f"needs {key}")
        known = found.finite()
        if len(known) < least:
            raise NotJudged(f"needs {key} of {least} steps, {len(known)} {'has' if len(known) == 1 else 'have'} it")
        return known

    def some(self, key: str, least: int = 1) -> Column | None:
        """The finite values of a key, where there are `least`."""
        found = self.columns.get(key)
        known = found.finite() if found is not None else None
        return known if known is not None and len(known) >= least else None

    def path(self, key: str) -> str:
        """A key of the phase as an override names it."""
        return f"phases.{self.name}.{key}"

    def setting(self, path: str) -> str:
        """What the configuration says under a whole path; "" where it says nothing."""
        return self.settings.get(path, "")

    def key_of(self, section: str, name: str) -> str:
        """The key `name` of a section of the phase or, where the section is a list, of its first element that has it."""
        among = [f"{section}.{name}", *(f"{section}.{i}.{name}" for i in range(len(self.settings)))]
        return next((key for key in among if self.path(key) in self.settings), among[0])

    def number(self, key: str, otherwise: float) -> float:
        """A number of the phase's configuration."""
        try:
            return float(self.setting(self.path(key)))
        except ValueError:
            return otherwise

    def right(self) -> float | None:
        """How much of its task the policy does by now, 0 … 1: the last sampled accuracy on validation data, or the mean reward
        of the last tenth where all rewards lie in [0, 1]."""
        judged = self.some("validation eval/sampled")
        if judged is not None:
            return float(judged.values[-1])
        reward = self.some("reward/mean", LEAST)
        if reward is None or reward.values.min() < 0 or reward.values.max() > 1:
            return None
        return reward.tail().mean()


def phases_of(run: Run) -> list[Phase]:
    """The phases of a run that metrics tell of, in their order."""

    def of(series: Mapping[str, Series], phase: str) -> dict[str, Column]:
        found = {name: told_last(*one.of(phase)) for name, one in series.items()}
        return {name: column for name, column in found.items() if len(column)}

    phases = []
    for name in run.lengths:
        columns = of(run.series, name)
        kind = run.config.get(f"phases.{name}.objective.kind", "grpo" if "reward/mean" in columns else "")
        attention = of(run.attention, name).get("normalized")
        last = max((int(column.steps[-1]) for column in columns.values()), default=run.lengths[name])
        phases.append(Phase(name, kind, last, columns, attention, of(run.sigma, name), run.config))
    return phases
