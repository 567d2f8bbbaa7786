#!/usr/bin/env python3
"""Chooses one of the settings that were tried for each method, and prints them as rows of `isentrope compare --rows`.

    python scripts/compare_choose.py runs/grid configs/compare/grid.yaml > configs/compare/chosen.yaml

A row of the grid is "METHOD NUMBER". That one is chosen whose runs have the highest sampled accuracy on validation prompts, the mean of
their last two evaluations; of equal ones the first. Behind the methods stand their controls, with what was chosen for the method.
"""

import json
import statistics
import sys
from pathlib import Path

import yaml
from isentrope.compare.plan import in_a_name
from isentrope.compare.table import evaluations

OBJECTIVE, WEIGHT = "phases.grpo.objective", "phases.grpo.weight"


def accuracy(grid: Path, row: str) -> float | None:
    """None where a run is missing."""
    found = []
    for run in grid.glob(f"*,{in_a_name(row)}/seed*/"):
        sampled = [point["sampled"] for point in evaluations(run, "grpo") if point["split"] == "validation"]
        found.append(statistics.fmean(sampled[-2:]) if len(sampled) > 1 else None)
    there = [value for value in found if value is not None]
    return statistics.fmean(there) if there and len(there) == len(found) else None


def controls(method: str, keys: dict) -> dict[str, dict]:
    """Rows that choose as many tokens as the method, at random."""
    if method in ("kl_cov", "clip_cov"):
        return {f"random_{method}": keys | {WEIGHT: [{"kind": "random"}]}}
    if method == "top_entropy":
        return {"random_tokens": keys | {WEIGHT: [{"kind": "random_tokens", "fraction": keys[WEIGHT][0]["fraction"]}]}}
    return {}


def main(grid: str, file: str) -> None:
    rows = yaml.safe_load(Path(file).read_text())
    tried: dict[str, dict[str, float | None]] = {}
    for row in rows:
        tried.setdefault(row.rsplit(" ", 1)[0], {})[row] = accuracy(Path(grid), row)
    print("# Made by scripts/compare_choose.py: of each method the setting of grid.yaml that seed 0 liked best, and the controls of those that\n"
          "# choose tokens. Behind a row: sampled accuracy of each setting on validation prompts.\n")  # fmt: skip
    for method, of in tried.items():
        if None in of.values():
            sys.exit(f"{grid}: the runs of {next(row for row, value in of.items() if value is None)} are not finished")
        best = max(of, key=lambda row: of[row] or 0)
        told = ", ".join(f"{value:.3f}" for value in of.values() if value is not None)
        print(f"{method}: {json.dumps(rows[best])}  # {told}")
        for name, keys in controls(method, rows[best]).items():
            print(f"{name}: {json.dumps(keys)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
