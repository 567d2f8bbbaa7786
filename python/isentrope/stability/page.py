"""The tables of `isentrope stability`, and how they get into a page."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from isentrope.stability.cells import Cell
from isentrope.stability.runs import LAST, LOWS, Result, smoothed, verdict

Results = Mapping[Cell, Sequence[Result]]  # one result a seed


def seeds_of(values: Sequence[float | None], form: str) -> str:
    return " / ".join("–" if v is None else "∞" if v == math.inf else format(v, form) for v in values)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def outcome(words: Sequence[str]) -> str:
    """"ok" where all seeds agree, else each."""
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def detail(results: Results, one_byte: float) -> list[str]:
    """One row a cell. results: {Cell: [result a seed]}"""
    rows = []
    for cell, runs in results.items():
        layer = [min(r["lowest"], default=None) for r in runs]
        each = [min(depth) for depth in zip(*(r["lowest"] for r in runs if r["lowest"]))]  # over the seeds
        rows.append([cell.norm, cell.method, f"{cell.rate:g}", seeds_of([r["loss"] for r in runs], ".3f"),
                     seeds_of([r["test"] for r in runs], ".3f"), seeds_of(layer, ".3f"),
                     " ".join(f"{x:.2f}" for x in each) if len(each) <= 8 else "–",
                     seeds_of([r["falls"]["0.1"] for r in runs], "d"), seeds_of([r["max_logit"] for r in runs], ".3g"),
                     f"{statistics.fmean(r['certified'] for r in runs):.2f}",
                     outcome([verdict(r, one_byte) for r in runs])])
    return markdown(["norm", "method", "rate", "last training loss", "test loss", "lowest entropy / log n of a layer",
                     "of each layer, all seeds", "first alarm", "largest logit", "rows certified", "verdict"], rows)


def summary(results: Results, one_byte: float) -> list[str]:
    """One row a norm and method: the rates that are ok for every seed, the first that fails above them, and the best loss."""
    groups: dict[tuple[str, str], list[tuple[float, Sequence[Result]]]] = {}
    for cell, runs in results.items():
        groups.setdefault((cell.norm, cell.method), []).append((cell.rate, runs))
    rows = []
    for (norm, method), by_rate in groups.items():
        by_rate.sort(key=lambda x: x[0])
        words = {rate: outcome([verdict(r, one_byte) for r in runs]) for rate, runs in by_rate}
        fine = [rate for rate in words if words[rate] == "ok"]
        above = [rate for rate in words if rate > max(fine, default=0)]
        tested = [(statistics.fmean(r["test"] for r in runs), rate) for rate, runs in by_rate
                  if all(r["test"] is not None for r in runs)]
        best = min(tested, default=None)
        at = dict((rate, loss) for loss, rate in tested)
        rows.append([norm, method, ", ".join(f"{rate:g}" for rate in fine) or "none",
                     f"{above[0]:g}: {words[above[0]]}" if above else "",
                     "" if best is None else f"{best[0]:.3f} at {best[1]:g}",
                     *(f"{at[rate]:.3f}" if rate in at else "–" for rate in (1e-3, 1e-2, 3e-2))])
    return markdown(["norm", "method", "rates ok in all seeds", "the first above that is not", "best test loss",
                     "at 1e-3", "at 1e-2", "at 3e-2"], rows)


def alarms(results: Results, one_byte: float) -> list[str]:
    """When attention raised an alarm in runs of the plain model, when their loss told, and how often alarms came in all runs.

    rises: the mean of 20 losses is first more than 0.1 above its least so far. lags: from there to the end it is more than 0.1
    above that of the same seed, which sees the same batches, at the plain model's best rate.
    """
    rows: list[list[str]] = []
    heard: dict[str, list[Result]] = {}
    for runs in results.values():
        for r in runs:
            heard.setdefault("collapsed" if "collapsed" in verdict(r, one_byte) else verdict(r, one_byte), []).append(r)
    for cell, runs in results.items():
        if cell.method != "plain":
            continue
        others = {c.rate: r for c, r in results.items()
                  if (c.table, c.norm, c.method) == (cell.table, cell.norm, cell.method) and all(x["test"] for x in r)}
        best = min(others, key=lambda rate: statistics.fmean(r["test"] for r in others[rate]), default=None)
        if best is None or cell.rate <= best:
            continue
        rises: list[int | None] = []
        lags: list[int | None] = []
        for seed, r in enumerate(runs):
            mean, least = smoothed(r["losses"]), math.inf
            rises.append(None)
            for step, loss in enumerate(mean, 1):
                if step >= LAST and loss > least + 0.1:
                    rises[-1] = step
                    break
                least = min(least, loss) if step >= LAST else least
            behind = [a > b + 0.1 for a, b in zip(mean, smoothed(others[best][seed]["losses"]))]
            last_level = max((i for i, late in enumerate(behind) if not late), default=-1)
            lags.append(last_level + 2 if last_level + 1 < len(behind) else None)
        rows.append([cell.table, cell.norm, f"{cell.rate:g}", seeds_of([r["falls"]["0.1"] for r in runs], "d"),
                     seeds_of([r["collapse"] for r in runs], "d"), seeds_of(rises, "d"),
                     f"{seeds_of(lags, 'd')} (against {best:g})", outcome([verdict(r, one_byte) for r in runs])])
    often = []
    for name, runs in sorted(heard.items()):
        for label, steps in [*((f"fallen, below {low}", [r["falls"][str(low)] for r in runs]) for low in LOWS),
                             ("collapsed", [r["collapse"] for r in runs])]:
            steps = [step for step in steps if step is not None]
            often.append([name, label, f"{len(steps)} of {len(runs)}", f"{statistics.median(steps):g}" if steps else "–"])
    return [*markdown(["table", "norm", "rate", "heads have fallen", "a head has collapsed", "loss rises", "loss lags",
                       "verdict"], rows),
            "", *markdown(["verdict", "alarm", "runs that raise it", "median step"], often)]


TITLES = {
    "matrix": "The matrix", "ablation": "Which layers, at 1e-2 over four times the bytes", "beta2": "β₂ = 0.999",
    "gamma": "γ from σ(W₀)", "sgd": "SGD with momentum 0.9", "depth24": "24 layers of width 64",
    "depth48": "48 layers of width 64",
}


def page(results: Results, one_byte: float, two_bytes: float) -> dict[str, list[str]]:
    """{name of a place in docs/stability.md: Markdown lines}"""
    places = {"levels": [f"One byte by its frequency costs {one_byte:.3f} nats, after the byte before it {two_bytes:.3f}."]}
    for table in TITLES:
        part = {cell: runs for cell, runs in results.items() if cell.table == table}
        if part:
            places[f"{table}-summary"] = summary(part, one_byte)
            places[table] = detail(part, one_byte)
    places["alarms"] = alarms(results, one_byte)
    everything = [r for runs in results.values() for r in runs]
    places["certificate"] = [f"{len(everything)} runs, {sum(r['violations'] for r in everything)} measurements in which the mean bound "
                             "of a head was above its mean entropy."]
    return places


def data(results: Results, one_byte: float, out: Path) -> dict[str, str]:
    """{"table.json", "table.csv": text}: an object, and a line, for each run. Entropies are shares of log n, losses nats."""
    rows = []
    for cell, runs in results.items():
        for seed, r in enumerate(runs):
            rows.append({
                "table": cell.table, "norm": cell.norm, "method": cell.method, "lr": cell.rate, "seed": seed,
                "folder": str(cell.folder(out, seed).relative_to(out)), "steps": r["steps"],
                "loss": r["loss"] if math.isfinite(r["loss"]) else None, "test_loss": r["test"],
                "lowest_entropy": min(r["lowest"], default=None), "first_alarm": r["falls"]["0.1"], "collapse": r["collapse"],
                "verdict": verdict(r, one_byte),
            })  # fmt: skip
    stream = io.StringIO()
    table = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return {"table.json": json.dumps(rows, ensure_ascii=False, indent=1) + "\n", "table.csv": stream.getvalue()}


def write_page(file: Path, places: Mapping[str, Sequence[str]]) -> None:
    """Fills <!-- name --> … <!-- end --> in a Markdown file."""
    text = Path(file).read_text()
    for name, lines in places.items():
        head, found, rest = text.partition(f"<!-- {name} -->\n")
        if found:
            text = head + found + "\n".join(lines) + "\n" + rest[rest.index("<!-- end -->"):]
    Path(file).write_text(text)
