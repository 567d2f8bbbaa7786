"""What the rules say of a run, as text and as objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isentrope.doctor.columns import Column, NotJudged, Phase, phases_of
from isentrope.doctor.rule import Evidence, Rule, told
from isentrope.doctor.table import RULES
from isentrope.report.runs import Run

BARS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
COLUMNS = 40  # of a small picture


@dataclass(frozen=True)
class Finding:
    rule: Rule
    phase: str
    evidence: Evidence
    now: str  # value of the key in the run; "": not known, or not there


@dataclass
class Examination:
    run: Run
    phases: list[tuple[str, int, int | None]] = field(default_factory=list)  # name, steps, steps asked for
    findings: list[Finding] = field(default_factory=list)
    clear: list[tuple[str, str]] = field(default_factory=list)  # phase, rule
    not_judged: list[tuple[str, str, str]] = field(default_factory=list)  # phase, rule, why


def look(rule: Rule, phase: Phase) -> Evidence | None:
    """The rule's evidence. Raises NotJudged."""
    if phase.kind not in rule.phases:
        raise NotJudged(f"of {' and '.join(rule.phases)} phases alone")
    with np.errstate(all="ignore"):
        return rule.look(phase)


def examine(run: Run, rules: Sequence[Rule] = RULES) -> Examination:
    found = Examination(run)
    for phase in phases_of(run):
        asked = phase.number("steps", 0)
        found.phases.append((phase.name, phase.steps, int(asked) if asked else None))
        for rule in rules:
            try:
                evidence = look(rule, phase)
            except NotJudged as why:
                found.not_judged.append((phase.name, rule.name, str(why)))
                continue
            if evidence is None:
                found.clear.append((phase.name, rule.name))
            else:
                found.findings.append(Finding(rule, phase.name, evidence, phase.setting(evidence.key)))
    return found


def sparkline(column: Column, bars: str = BARS) -> str:
    """The values in COLUMNS letters at most, each the mean of as many consecutive steps; × where nothing is finite."""
    n = len(column)
    edges = np.linspace(0, n, min(n, COLUMNS) + 1).astype(int)
    means = []
    for begin, end in zip(edges[:-1], edges[1:]):
        values = column.values[begin:end]
        known = values[np.isfinite(values)]
        means.append(float(known.mean()) if len(known) else float("nan"))
    finite = [mean for mean in means if mean == mean]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    room = (high - low) or 1.0
    return "".join("x" if mean != mean else bars[min(int((mean - low) / room * len(bars)), len(bars) - 1)] for mean in means)


def extent(column: Column) -> str:
    known = column.values[np.isfinite(column.values)]
    return " to ".join(dict.fromkeys((told(float(known.min())), told(float(known.max()))))) if len(known) else "not finite"


def listed(examination: Examination) -> list[str]:
    """What was found clear, and what was not judged, a line a phase and kind of reason."""
    lines = []
    for name, *_ in examination.phases:
        clear = [rule for phase, rule in examination.clear if phase == name]
        if clear:
            lines.append(f"clear in {name}: {', '.join(clear)}")
        why: dict[str, list[str]] = {}
        for phase, rule, reason in examination.not_judged:
            if phase == name:
                why.setdefault(reason, []).append(rule)
        lines += [f"not judged in {name}: {', '.join(rules)}: {reason}" for reason, rules in why.items()]
    return lines


def change(finding: Finding) -> str:
    return f"{finding.evidence.key}: {finding.evidence.value}" + (f" (now {finding.now})" if finding.now else "")


def text(examination: Examination, bars: str = BARS) -> str:
    """For a terminal."""
    steps = ", ".join(f"{name} {done}" + (f" of {asked}" if asked else "") for name, done, asked in examination.phases)
    count = len(examination.findings)
    lines = [f"{examination.run.folder}: {steps or 'no step yet'}: {count or 'no'} finding{'' if count == 1 else 's'}"]
    for finding in examination.findings:
        seen = finding.evidence
        lines += [
            "",
            f"  {finding.rule.name}: {finding.phase}, step{'' if seen.first == seen.last else 's'} "
            + " to ".join(dict.fromkeys((str(seen.first), str(seen.last)))),
            f"    {seen.figure}",
            f"    {sparkline(seen.picture, bars)}  {seen.shown}, {extent(seen.picture)}, steps {seen.picture.steps[0]:.0f} to {seen.picture.steps[-1]:.0f}",
            f"    likely: {seen.cause}",
            f"    change: {change(finding)}",
        ]
    rest = listed(examination)
    return "\n".join([*lines, "", *(f"  {line}" for line in rest)] if rest else lines)


def as_object(examination: Examination) -> dict[str, Any]:
    """As `--json` prints it."""
    return {
        "run": str(examination.run.folder),
        "phases": [{"phase": name, "steps": done, "of": asked} for name, done, asked in examination.phases],
        "findings": [
            {
                "rule": finding.rule.name,
                "phase": finding.phase,
                "steps": [finding.evidence.first, finding.evidence.last],
                "evidence": finding.evidence.figure,
                "cause": finding.evidence.cause,
                "key": finding.evidence.key,
                "value": finding.evidence.value,
                "now": finding.now or None,
                "source": finding.rule.source,
                "shown": finding.evidence.shown,
                "picture": points(finding.evidence.picture),
            }
            for finding in examination.findings
        ],
        "clear": [{"phase": phase, "rule": rule} for phase, rule in examination.clear],
        "not_judged": [{"phase": phase, "rule": rule, "why": why} for phase, rule, why in examination.not_judged],
    }


def points(column: Column) -> list[list[float | None]]:
    """[step, value], every so many that there are 200 at most; null where a value is not finite."""
    every = max(1, -(-len(column) // 200))
    return [[float(step), float(value) if np.isfinite(value) else None] for step, value in zip(column.steps[::every], column.values[::every])]
