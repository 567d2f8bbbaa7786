"""`generalization-valley`: accuracy in and out of distribution over levels of complexity, and the level at which they part most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isentrope.diagnose.completions import right
from isentrope.diagnose.intervals import wilson
from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSIDE, OUTSIDE = "id", "ood"
FEW = 20  # samples of a cell below which its accuracy is hardly one


@dataclass
class Valley:
    """Of levels 0 … L - 1: gap [L] = max(0, accuracy in - accuracy out), its 95 % interval low, high [L], critical the level of the highest gap.

    share: of the resamples, in which that level has the highest gap; sure: whether the interval of its lead on the second excludes 0.
    """

    gap: np.ndarray
    low: np.ndarray
    high: np.ndarray
    critical: int
    share: float
    lead: tuple[float, float]
    sure: bool


def valley(inside: Sequence[Sequence[bool]], outside: Sequence[Sequence[bool]], resamples: int = 2000, seed: int = 0) -> Valley:
    """inside, outside: for each level whether each prompt in and out of distribution was answered right.

    Intervals by resampling prompts, which of shares is drawing binomial counts.
    """
    n = np.array([[len(one) for one in side] for side in (inside, outside)])
    accuracy = np.array([[np.mean(one) for one in side] for side in (inside, outside)])
    gap = np.maximum(accuracy[0] - accuracy[1], 0)
    drawn = np.random.default_rng(seed).binomial(n, accuracy, size=(resamples, *n.shape)) / n
    gaps = np.maximum(drawn[:, 0] - drawn[:, 1], 0)
    critical = int(gap.argmax())
    others = [level for level in range(len(gap)) if level != critical]
    leads = gaps[:, critical] - gaps[:, max(others, key=lambda level: gap[level])] if others else gaps[:, critical]
    low, high = np.quantile(gaps, [0.025, 0.975], axis=0)
    lead = (float(np.quantile(leads, 0.025)), float(np.quantile(leads, 0.975)))
    best = gaps.max(1)
    share = float((((gaps[:, critical] == best) & (best > 0)) / np.maximum((gaps == best[:, None]).sum(1), 1)).mean())
    return Valley(gap, low, high, critical, share, lead, lead[0] > 0)


class GeneralizationValley(Measure):
    NAME = "generalization-valley"
    WHAT = "accuracy in and out of distribution by level of complexity, their gap, and the critical level"
    SOURCE = "Scylla, arXiv:2410.01769"
    OPTIONS = {
        "max_length": Option(512, "tokens of prompt and completion at most", least=2),
        "resamples": Option(2000, "resamples of the intervals", least=100),
    }

    def finish(self) -> Result:
        levels = self.data.column("level", (int, float))
        sides = self.data.column("distribution")
        wrong = [side for side in sides if side not in (INSIDE, OUTSIDE)]
        if wrong:
            raise DiagnoseError(f"{self.data.name}: a line has distribution {wrong[0]!r}; wanted {INSIDE} or {OUTSIDE}")
        known = sorted(set(levels))
        for level in known:
            for side in (INSIDE, OUTSIDE):
                if (level, side) not in set(zip(levels, sides)):
                    raise DiagnoseError(f"{self.data.name}: level {level} has no line with distribution {side}; each level needs both")
        if len(known) < 2:
            raise DiagnoseError(f"{self.data.name}: has the level {known[0]} alone; wanted two or more")
        correct, how = right(self.model, self.data, self.options["max_length"], lambda done, of: self.progress("completions", done, of))
        cells = {(level, side): [c for c, a, b in zip(correct, levels, sides) if (a, b) == (level, side)] for level in known for side in (INSIDE, OUTSIDE)}
        found = valley([cells[level, INSIDE] for level in known], [cells[level, OUTSIDE] for level in known], self.options["resamples"])
        table = Table({"level": "", "n_id": "", "accuracy_id": "", "id_low": "95 %", "id_high": "95 %", "n_ood": "", "accuracy_ood": "", "ood_low": "95 %",
                       "ood_high": "95 %", "gap": "", "gap_low": "95 %", "gap_high": "95 %", "relative_gap": "of accuracy_id"})  # fmt: skip
        for i, level in enumerate(known):
            row: list[float | None] = [level]
            for side in (INSIDE, OUTSIDE):
                own = cells[level, side]
                row += [len(own), float(np.mean(own)), *wilson(sum(own), len(own))]
            inside = float(np.mean(cells[level, INSIDE]))
            table.add(*row, found.gap[i], found.low[i], found.high[i], found.gap[i] / inside if inside else None)
        notes = []
        if found.gap[found.critical] == 0:
            notes.append("no level has a gap: out of distribution the model is as good as in it, or right nowhere")
        elif not found.sure:
            notes.append(f"the critical level {known[found.critical]} is not sure: its lead on the next is between {found.lead[0]:.3f} and {found.lead[1]:.3f}, "
                         f"and in {1 - found.share:.0%} of the resamples another level has the highest gap")  # fmt: skip
        few = [f"{level} ({side}: {len(own)})" for (level, side), own in cells.items() if len(own) < FEW]
        if few:
            notes.append(f"fewer than {FEW} prompts at level {', '.join(few)}")
        ratios = [value or 0.0 for value in table.column("relative_gap")]
        if int(np.argmax(ratios)) != found.critical and max(ratios) > 0:
            notes.append(f"the relative gap is highest at another level, {known[int(np.argmax(ratios))]}: the two measures are not to be mixed")
        notes.append("a peak is forced where accuracy is 1 at the lowest level and 0 at the highest: compare with a weaker model's accuracies in distribution alone")
        numbers = {"critical level": known[found.critical] if found.gap[found.critical] > 0 else None, "gap there": found.gap[found.critical],
                   "critical level is sure": found.sure, "share of resamples with this level": found.share}  # fmt: skip
        variant = f"gap = max(0, accuracy in - accuracy out of distribution), answers that cannot be read counted as wrong; critical: the level of the highest gap; {how}"
        return Result(table, variant, numbers, notes=notes, draw=lambda figure: draw(figure, table))


def draw(figure: Figure, table: Table) -> None:
    axes = figure.subplots()
    levels = table.column("level")
    for side, name, colour in (("id", "in distribution", "C0"), ("ood", "out of distribution", "C3")):
        axes.plot(levels, table.column(f"accuracy_{side}"), "o-", color=colour, label=name)
        axes.fill_between(levels, table.column(f"{side}_low"), table.column(f"{side}_high"), color=colour, alpha=0.15)
    axes.bar(levels, table.column("gap"), width=0.25 * min(b - a for a, b in zip(levels, levels[1:])), color="grey", alpha=0.4, label="gap")
    axes.set(xlabel="level of complexity", ylabel="accuracy", ylim=(0, 1.02))
    axes.legend(fontsize=7)


MEASURE = GeneralizationValley
measure = GeneralizationValley.measure
