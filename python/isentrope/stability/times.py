"""What the methods of `isentrope stability` cost: the time of an update."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from pathlib import Path

from isentrope import json_lines
from isentrope.jobs import PROGRAM
from isentrope.stability.cells import ATTENTION, METHODS, Cell
from isentrope.stability.page import markdown


def times(configs: Path, out: Path, rounds: int = 7, steps: int = 30) -> list[str]:
    """Milliseconds of an update of a pre-norm model with every method, attention not measured: medians of rounds in which each
    has its turn."""
    tried = [Cell("time", "pre", name, 1e-3, tuple(options)) for name, options in METHODS.items()]
    taken: dict[Cell, list[float]] = {cell: [] for cell in tried}
    for _ in range(rounds):
        for cell in tried:
            folder = cell.folder(out, 0)
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([PROGRAM, "train", *cell.words(configs, 0), "--quiet", f"run.dir={folder}", f"phases.pretrain.steps={steps}",
                            f"{ATTENTION}.every=0"], check=True, capture_output=True, text=True,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
            ends = [line["time_s"] for line in json_lines.read(folder / "metrics.jsonl")][:steps]
            taken[cell].append(1000 * statistics.median(b - a for a, b in zip(ends[4:], ends[5:])))  # past the warm-up
            shutil.rmtree(folder)
    rows = []
    for cell in tried:
        ratios = [a / b for a, b in zip(taken[cell], taken[tried[0]])]
        rows.append([cell.method, f"{statistics.median(taken[cell]):.1f}", f"{statistics.median(ratios):.3f}",
                     f"{min(ratios):.3f} to {max(ratios):.3f}"])  # fmt: skip
    return markdown(["method", "ms an update", "of plain", "spread"], rows)
