"""What runs came to, as numbers: final values, and the rows of the table that leads the page."""

from __future__ import annotations

import re

import numpy as np

from isentrope.report.configurations import Configuration, short_names
from isentrope.report.runs import Run
from isentrope.report.svg import short

SHARE, MOST = 0.1, 50  # of a phase's steps whose mean is its final value, and at most so many


def final(run: Run, *names: str) -> float | None:
    """The mean of what is finite over the last tenth of the last phase that has a value of the first name there is; NaN where
    nothing of it is finite."""
    for name in names:
        for phase in reversed(run.lengths) if name in run.series else ():
            values = run.series[name].of(phase)[1]
            if len(values):
                values = values[-max(1, min(MOST, round(SHARE * len(values)))) :]
                known = values[np.isfinite(values)]
                return float(known.mean()) if len(known) else float("nan")
    return None


def judged(run: Run, key: str) -> tuple[str, float] | None:
    """The last evaluation of the test data, else of the validation data: (split, value)."""
    for split in ("test", "validation"):
        series = run.series.get(f"{split} {key}")
        for phase in reversed(run.lengths) if series else ():
            values = series.of(phase)[1]
            if len(values):
                return split, float(values[-1])
    return None


def pass_ks(run: Run) -> list[int]:
    """The k of eval/pass@k that the run has, rising."""
    found = (re.fullmatch(r"(?:test|validation) eval/pass@(\d+)", name) for name in run.series)
    return sorted({int(match[1]) for match in found if match})


def results(run: Run, alarms: int = 0) -> dict[str, tuple[float, str]]:
    """By column: the value and how it is written. What a run has nothing for is left out."""
    row: dict[str, tuple[float, str]] = {}
    largest = f"pass@{max(pass_ks(run), default=1)}"
    for key, form in (("greedy", "%"), ("sampled", "%"), (largest, "%"), ("loss", ".3f"), ("bits_per_byte", ".3f")):
        if (found := judged(run, f"eval/{key}")) is not None:
            row[f"{found[0]} {'bits per byte' if key == 'bits_per_byte' else key}"] = found[1], form
    for name, key in (("reward", "reward/mean"), ("loss", "loss"), ("entropy", "entropy/mean")):
        policy = "reward/mean" in run.series and [*run.lengths][-1] in run.series["reward/mean"].phases
        if (value := final(run, key)) is not None and not (policy and name == "loss"):
            row[f"final {name}"] = value, ".3g" if name == "loss" else ".3f"
    if "attention/lowest" in run.series:
        lowest = run.series["attention/lowest"].all()
        if np.isfinite(lowest).any():
            row["lowest attention"] = float(np.nanmin(lowest)), ".3f"
        row["alarms"] = float(alarms), "count"
    if run.seconds:
        row["time"] = run.seconds, "s"
    if "tokens_per_s" in run.series and np.isfinite(run.series["tokens_per_s"].all()).any():
        row["tokens/s"] = float(np.nanmedian(run.series["tokens_per_s"].all())), "short"
    return row


def written(values: list[float], form: str, seeds: int) -> str:
    """The mean over the seeds ± their standard deviation; with their number where not all have the value."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "not finite"
    if form == "count":
        return " to ".join(dict.fromkeys((f"{min(known):g}", f"{max(known):g}")))
    mean, deviation = float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None

    def one(value: float) -> str:
        if form == "s":
            return duration(value)
        if form == "short":
            return short(float(f"{value:.3g}"))
        return f"{100 * value:.1f}" if form == "%" else f"{value:{form}}"

    text = one(mean)
    if deviation is not None and form not in ("s", "short"):
        text += f" ± {one(deviation)}"
    return text + ("%" if form == "%" else "") + (f" (n = {len(known)})" if len(known) != seeds else "")


def steps(run: Run) -> str:
    return " + ".join(f"{last} {phase}" for phase, last in run.lengths.items()) or "0"


def table(rows: list[Configuration], alarms: dict[str, int]) -> tuple[list[str], list[dict[str, str]]]:
    """Columns, and of each configuration a row: the keys that differ, the results, then the rest."""
    found = []
    keys = dict(list(short_names(rows[0].values).items())[:6])
    for configuration in rows:
        cells = {name: configuration.values[key] for key, name in keys.items()}
        runs = [results(run, alarms.get(run.label, 0)) for run in configuration.runs]
        for name in dict.fromkeys(name for row in runs for name in row):
            given = [row[name] for row in runs if name in row]
            cells[name] = written([value for value, _ in given], given[0][1], len(runs))
        cells["steps"] = " / ".join(dict.fromkeys(steps(run) for run in configuration.runs))
        if any(len(c.runs) > 1 for c in rows):
            cells["seeds"] = str(len(configuration.runs))
        found.append(cells)
    names = list(dict.fromkeys(name for cells in found for name in cells))
    rest = ["lowest attention", "alarms", "steps", "time", "tokens/s"]

    def rank(name: str) -> int:
        if name in rest:
            return 4 + rest.index(name)
        return 0 if name in keys.values() else 1 if name == "seeds" else 3 if name.startswith("final") else 2

    names.sort(key=rank)
    return names, found


def duration(seconds: float) -> str:
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole:02d} s" if minutes else f"{seconds:.3g} s"
    )
