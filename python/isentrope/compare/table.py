"""What the runs of a comparison came to: read from their metrics.jsonl, and written as Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from isentrope import json_lines
from isentrope.compare.plan import Configuration

Point = dict[str, Any]  # an evaluation

PERCENT, NATS, COUNT, THOUSANDS, TOKENS, SECONDS = (".1f", 100), (".3f", 1), (".0f", 1), (".0f", 1e-3), (".1f", 1), (".2f", 1)
LAST = {"step": COUNT, "loss": NATS, "bits_per_byte": NATS, "sampled": PERCENT, "greedy": PERCENT, "pass_8": PERCENT, "pass_k": PERCENT,
        "entropy": NATS, "forks": NATS, "length": TOKENS, "tokens": THOUSANDS, "seconds": SECONDS}  # fmt: skip
REACHED = {"step": COUNT, "tokens": THOUSANDS, "pass_k": PERCENT, "entropy": NATS}
EQUAL: dict[str, tuple[str, float]] = {"sampled": PERCENT, "pass_k": PERCENT, "entropy": NATS}
FORKS = 0.2  # share of the tokens of highest entropy at which, as arXiv 2506.01939 has it, ways part


def evaluations(run_dir: Path, phase: str) -> list[Point]:
    """The evaluations of one phase in metrics.jsonl, in order, each with step, split, loss, bits_per_byte, greedy, sampled,
    pass_8, pass_k, k, entropy, forks, length, tokens, seconds and sizes; None for what it has not, and for a value that is not finite.

    pass_k: of the largest k, pass_8 where that is above 8; forks: mean entropy of the fifth of the samples' tokens that have most, of
    samples.jsonl; tokens: drawn by the rollouts of the phase until then; seconds: of a step, the median until then; sizes: {size:
    (sampled, length)}, where prompts are of several."""
    found, tokens = [], 0
    forks = entropies_at_forks(run_dir, phase)
    begun, seconds = None, list[float]()
    for record in json_lines.read(run_dir / "metrics.jsonl"):
        if record.get("phase") != phase:
            continue
        tokens += record.get("generated") or 0
        if "eval/split" not in record:
            ended = record.get("time_s")
            if begun is not None and ended is not None and ended > begun:  # not behind a resumption, which counts from 0
                seconds.append(ended - begun)
            begun = ended
            continue
        begun = record.get("time_s") or begun  # the evaluation is no part of the next step
        point: Point = {key: record.get(f"eval/{key}") for key in
                        ("split", "loss", "bits_per_byte", "greedy", "sampled", "entropy", "length")}  # fmt: skip
        ks = [int(key[10:]) for key in record if key.startswith("eval/pass@") and key[10:].isdecimal()]
        k = max(ks, default=0)
        pass_k = record.get(f"eval/pass@{k}")
        sizes = {int(key.rsplit("/")[-1]): (value, record[key.replace("sampled", "length")])
                 for key, value in record.items() if key.startswith("eval/sampled/")}  # fmt: skip
        found.append(point | {"step": record["step"], "pass_8": record.get("eval/pass@8") if k > 8 else None, "pass_k": pass_k, "k": k,
                              "forks": forks.get((record["step"], point["split"])), "tokens": tokens or None,
                              "seconds": statistics.median(seconds) if seconds else None, "sizes": sizes})  # fmt: skip
    return found


def entropies_at_forks(run_dir: Path, phase: str) -> dict[tuple[int, str], float]:
    """By (step, split), of the evaluations of a phase in samples.jsonl."""
    found = {}
    for record in json_lines.read(run_dir / "samples.jsonl"):
        if record["phase"] == phase and "eval/split" in record:
            entropies = sorted((H for sample in record["samples"] for H in sample["entropy"]), reverse=True)
            if highest := entropies[: round(FORKS * len(entropies))]:
                found[record["step"], record["eval/split"]] = statistics.fmean(highest)
    return found


def last_test(points: Sequence[Point]) -> Optional[Point]:
    """The last evaluation on the test data; None for a run that is not finished."""
    return next((p for p in reversed(points) if p["split"] == "test"), None)


def common_level(runs: Sequence[Sequence[Point]]) -> float | None:
    """The highest whole percentage above 0 that every run reached on the validation prompts; runs are lists of evaluations."""
    best = [max((p["sampled"] for p in points if p["split"] == "validation" and p["sampled"] is not None), default=None)
            for points in runs]  # fmt: skip
    known = [value for value in best if value is not None]
    if not known or len(known) < len(best):
        return None
    return math.floor(min(known) * 100 + 1e-9) / 100 or None  # 0.29 * 100 is 28.999…; 0 is reached by all at once


def first_reaching(points: Sequence[Point], level: float | None) -> Optional[Point]:
    """The first evaluation on the validation prompts whose sampled accuracy is at least level; None if there is none."""
    if level is None:
        return None
    return next((p for p in points if p["split"] == "validation" and (p["sampled"] or 0) >= level), None)


def common_tokens(runs: Sequence[Sequence[Point]]) -> int | None:
    """The most tokens that every run had drawn at an evaluation on the validation prompts; runs are lists of evaluations."""
    most = [max((p["tokens"] for p in points if p["split"] == "validation" and p["tokens"]), default=None) for points in runs]
    known = [value for value in most if value is not None]
    return min(known) if known and len(known) == len(most) else None


def at_tokens(points: Sequence[Point], tokens: int | None) -> Optional[Point]:
    """What the evaluations on the validation prompts say at a number of tokens drawn, on the straight line between two of them; None
    before the first and behind the last."""
    there = [p for p in points if p["split"] == "validation" and p["tokens"]]
    for before, after in zip([None, *there], there):
        if tokens is not None and tokens <= after["tokens"]:
            if tokens == after["tokens"]:
                return after
            if before is None:
                return None
            share = (tokens - before["tokens"]) / (after["tokens"] - before["tokens"])
            both = {key: (before[key], after[key]) for key in EQUAL}
            return {"k": after["k"]} | {key: None if None in ends else ends[0] + share * (ends[1] - ends[0]) for key, ends in both.items()}
    return None


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """{mean, deviation, n} of the values that are there; deviation (n − 1) is None of fewer than two."""
    there = [value for value in values if value is not None]
    return {"mean": statistics.mean(there) if there else None,
            "deviation": statistics.stdev(there) if len(there) > 1 else None, "n": len(there)}  # fmt: skip


def cell(values: Sequence[float | None], form: tuple[str, float]) -> str:
    """Mean ± standard deviation of the values that are there, and of how many where some are missing."""
    found = summary(values)
    if not found["n"]:
        return "–"
    text = " ± ".join(format(form[1] * found[key], form[0]) for key in ("mean", "deviation") if found[key] is not None)
    return text if found["n"] == len(values) else f"{text} ({found['n']} of {len(values)})"


def at(points: Sequence[Optional[Point]], key: str) -> list[float | None]:
    return [point.get(key) if point else None for point in points]


class Table:
    """Configurations that stand together, with the evaluations of their runs."""

    def __init__(self, starts: dict[str, list[Point]], rows: dict[Configuration, list[list[Point]]], level: float | None):
        """starts: by its name, the test evaluations of a shared start, one a seed; rows: of each configuration the evaluations
        of its runs, one list a seed; level: of sampled accuracy, or None for the highest that is common to the runs."""
        self.starts, self.rows = starts, rows
        begun = [run for runs in rows.values() for run in runs if run]  # a run that failed at once hides no level
        self.level = common_level(begun) if level is None else level
        self.last = {c: [last_test(run) for run in runs] for c, runs in rows.items()}
        self.reached = {c: [first_reaching(run, self.level) for run in runs] for c, runs in rows.items()}
        self.tokens = common_tokens(begun)
        self.equal = {c: [at_tokens(run, self.tokens) for run in runs] for c, runs in rows.items()}

    def markdown(self) -> list[str]:
        """One row a start and a configuration; columns in which no row has a value are left out."""
        everywhere = [p for ends in self.starts.values() for p in ends] + [p for ends in self.last.values() for p in ends if p]
        groups: list[tuple[list[Point], dict[str, tuple[str, float]], str]] = [
            (everywhere, LAST, ""),
            ([p for points in self.reached.values() for p in points if p], REACHED, f"at {100 * (self.level or 0):.0f} % sampled: "),
            ([p for points in self.equal.values() for p in points if p], EQUAL, f"at {(self.tokens or 0) / 1000:.0f} k tokens: "),
        ]
        columns = list[tuple[int, str]]()
        texts = list[str]()
        for which, (points, forms, condition) in enumerate(groups):
            ks = "/".join(map(str, sorted({p["k"] for p in points if p["k"]}))) or "k"
            heads = {"step": "step", "loss": "loss, nats", "bits_per_byte": "bits per byte", "sampled": "sampled, %", "greedy": "greedy, %",
                     "pass_8": "pass@8, %", "pass_k": f"pass@{ks}, %", "entropy": "entropy, nats", "forks": "at forks, nats", "length": "length",
                     "tokens": "tokens, k", "seconds": "a step, s"}  # fmt: skip
            there = [key for key in forms if (which, key) == (0, "step") or any(p.get(key) is not None for p in points)]
            columns += [(which, key) for key in there]
            texts += [(condition if key == there[0] else "") + heads[key] for key in there]
        lines = ["| | n | " + " | ".join(texts) + " |", "| --- | ---: |" + " ---: |" * len(texts)]

        def row(name: str, *points: Sequence[Optional[Point]]) -> None:
            cells = [cell(at(points[which], key), groups[which][1][key]) for which, key in columns]
            lines.append("| " + " | ".join([name, str(sum(p is not None for p in points[0])), *cells]) + " |")

        for name, ends in self.starts.items():
            row(name, ends, [], [])
        for configuration in self.rows:
            row(configuration.label, self.last[configuration], self.reached[configuration], self.equal[configuration])
        return [*lines, "", *self.sizes()]

    def sizes(self) -> list[str]:
        """The share of right samples and their length for each size of prompts; none where there is one size."""
        ends: dict[str, Sequence[Optional[Point]]] = {**self.starts, **{c.label: self.last[c] for c in self.rows}}
        sizes = sorted({size for points in ends.values() for p in points if p for size in p["sizes"]})
        if not sizes:
            return []
        head = ["", *(f"sampled of {size}, %" for size in sizes), *(f"length of {size}" for size in sizes)]
        lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
        for name, points in ends.items():
            cells = [cell([p["sizes"][size][i] if p and size in p["sizes"] else None for p in points], form)
                     for i, form in ((0, PERCENT), (1, TOKENS)) for size in sizes]  # fmt: skip
            lines.append("| " + " | ".join([name, *cells]) + " |")
        return [*lines, ""]

    def json(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Shares from 0 to 1, tokens, nats. last: on the test data; reached, equal: on the validation data, at level and at tokens."""
        rows = []
        for c in self.rows:
            runs = [{"seed": seed, "folder": c.folder_name(seed), "last": self.last[c][i], "reached": self.reached[c][i]}
                    for i, seed in enumerate(seeds)]  # fmt: skip
            rows.append({
                "name": c.label, "config": c.file, "overrides": list(c.overrides), "over": c.over,
                "last": {key: summary(at(self.last[c], key)) for key in LAST},
                "reached": {key: summary(at(self.reached[c], key)) for key in REACHED},
                "equal": {key: summary(at(self.equal[c], key)) for key in EQUAL}, "runs": runs,
            })  # fmt: skip
        return {"level": self.level, "tokens": self.tokens, "starts": self.starts, "rows": rows}


def as_csv(tables: Sequence[Table], seeds: Sequence[int]) -> str:
    """One line a run: its configuration, the keys of the sweep, its seed, the last test, and where the level was reached."""
    keys = list(dict.fromkeys(key for table in tables for c in table.rows for key in c.over))
    stream = io.StringIO()
    out = csv.writer(stream, lineterminator="\n")
    out.writerow(["config", *keys, "seed", "folder", *LAST, "level", *(f"reached_{key}" for key in REACHED)])
    for table in tables:
        for c in table.rows:
            for i, seed in enumerate(seeds):
                last, reached = table.last[c][i] or {}, table.reached[c][i] or {}
                out.writerow([c.file, *(c.over.get(key) for key in keys), seed, c.folder_name(seed),
                              *(last.get(key) for key in LAST), table.level, *(reached.get(key) for key in REACHED)])  # fmt: skip
    return stream.getvalue()
