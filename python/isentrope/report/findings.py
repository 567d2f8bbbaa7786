"""What the rules of `isentrope doctor` find in a run, for the page."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from isentrope.doctor.examination import change, examine, listed
from isentrope.doctor.rule import Evidence
from isentrope.report import plots
from isentrope.report.plots import Curve
from isentrope.report.runs import Run, Series
from isentrope.report.svg import Figure


@dataclass
class Found:
    """One finding, in words; the figure where the page has room for it."""

    rule: str
    phase: str
    steps: str
    evidence: str
    cause: str
    change: str
    shown: str  # what the figure shows
    drawn: tuple[Figure, list[str]] | None = None


@dataclass
class Findings:
    found: list[Found] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)  # what is clear, and what is not judged
    judged: bool = False  # there is a phase


def picture(phase: str, evidence: Evidence) -> tuple[Figure, list[str]]:
    """The column of the evidence over its steps, and the limit beyond which the rule speaks, dashed."""
    column = evidence.picture
    curves = [Curve([Series({phase: (column.steps, column.values)})], plots.COLOURS[0])]
    if evidence.limit is not None and np.isfinite(evidence.limit):
        ends = column.steps[[0, -1]]
        curves.append(Curve([Series({phase: (ends, [evidence.limit] * 2)})], "var(--bad)", "--"))
    return plots.draw_curves({phase: int(column.steps[-1])}, curves, plots.NARROW)


def findings(run: Run, figures: bool) -> Findings:
    """figures: whether each finding has one."""
    examined = examine(run)
    made = Findings(rest=listed(examined), judged=bool(examined.phases))
    for finding in examined.findings:
        seen = finding.evidence
        steps = " to ".join(dict.fromkeys((str(seen.first), str(seen.last))))
        drawn = picture(finding.phase, seen) if figures else None
        made.found.append(Found(finding.rule.name, finding.phase, steps, seen.figure, seen.cause, change(finding), seen.shown, drawn))
    return made
