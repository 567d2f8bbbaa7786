"""Draws how sharply the heads of a run attended while it was trained: a row a head, grouped by layer, a column a logged step.

    python examples/attention_entropy.py RUN_FOLDER [--out FILE.png]

Reads RUN_FOLDER/metrics.jsonl, the lines with "attention_entropy". Colour and lines are normalized entropy, the mean of
H / log n over the rows of attention, n the keys a row sees: 0 where a head looks at one key, 1 where at all alike. Needs
matplotlib.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ALARM = 0.05  # below it a head counts as collapsed


def read(folder: str | Path) -> tuple[tuple[str, ...], tuple[int, ...], list[Any], dict[str, Any]]:
    """RUN_FOLDER → (phases [N], steps [N], normalized [N, L, H], the last line's "attention_entropy")."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        sys.exit(f"{path}: no such file; wanted the folder of a run (run.dir), which has a metrics.jsonl")
    found: dict[tuple[str, int], dict[str, Any]] = {}  # a resumed run may have logged a step twice: the later line holds
    with path.open("rb") as lines:  # as bytes: a line ends with \n alone
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except ValueError:
                print(f"{path}:{number}: not a whole line of JSON, left out", file=sys.stderr)
                continue
            if "attention_entropy" in entry:
                found[entry.get("phase", ""), entry["step"]] = entry["attention_entropy"]
    if not found:
        sys.exit(f'{path}: no line has "attention_entropy"; the run has to log the entropy of attention every few steps')
    phases, steps = zip(*found)
    return phases, steps, [entry["normalized"] for entry in found.values()], list(found.values())[-1]


def draw(folder: str | Path, out: str | Path) -> None:
    try:
        import matplotlib
    except ImportError:
        sys.exit("examples/attention_entropy.py needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.colors
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    phases, steps, tables, last = read(folder)
    values = np.array(tables, dtype=float)  # null becomes nan
    N, L, H = values.shape
    grey = "0.35"
    plt.rcParams.update({"font.size": 9, "axes.edgecolor": grey, "axes.linewidth": 0.6, "axes.titlesize": 10})
    height = min(max(0.085 * L * H, 3.0), 10.0)  # inches of the map
    figure, (heat, mean) = plt.subplots(
        2, 1, figsize=(9, height + 2.9), sharex=True, layout="constrained", height_ratios=[height, 1.9]
    )

    colours = plt.get_cmap("viridis").with_extremes(bad="0.8")
    rows = values.reshape(N, L * H).T
    image = heat.imshow(rows, aspect="auto", cmap=colours, vmin=0, vmax=1, extent=(-0.5, N - 0.5, L * H - 0.5, -0.5))
    heat.hlines(np.arange(1, L) * H - 0.5, -0.5, N - 0.5, color="white", linewidth=min(1.2, 2.5 * height / L))
    every = max(1, round(0.16 * L / height + 0.49))  # as many layers' names as fit
    heat.set_yticks(np.arange(0, L, every) * H + (H - 1) / 2, [f"layer {i}" for i in range(0, L, every)])
    heat.tick_params(axis="y", length=0)
    heat.tick_params(axis="x", bottom=False)
    heat.set_title(f"Attention entropy of {L} layers × {H} heads (head 0 on top of each layer)", loc="left")
    bar = figure.colorbar(image, ax=heat, aspect=15, pad=0.015, fraction=0.05, shrink=min(1.0, 3 / height), anchor=(0, 1))
    bar.set_label("mean H / log n\n(0: one key   1: all alike)")
    bar.outline.set_visible(False)

    depth = plt.get_cmap("plasma")
    for layer in range(L):
        colour = depth(0.9 * layer / max(1, L - 1))
        line = values[:, layer].mean(-1)
        mean.plot(line, color=colour, linewidth=1.2 if L <= 16 else 0.8, marker="." if N == 1 else None)
    mean.axhline(ALARM, color=grey, linewidth=0.7, linestyle=(0, (4, 3)))
    mean.text(0, ALARM + 0.02, f"collapse: below {ALARM:g}", color=grey, fontsize=8, va="bottom", ha="left")
    mean.set_ylim(0, 1)
    mean.set_xlim(-0.5, N - 0.5)
    mean.set_ylabel("mean of heads\n(H / log n)")
    mean.spines[["top", "right"]].set_visible(False)
    scale = plt.cm.ScalarMappable(matplotlib.colors.Normalize(0, max(1, L - 1)), matplotlib.colors.ListedColormap(depth(np.linspace(0, 0.9, max(2, L)))))
    bar = figure.colorbar(scale, ax=mean, aspect=10, pad=0.015, fraction=0.05, ticks=sorted({0, L - 1}))
    bar.set_label("layer")
    bar.outline.set_visible(False)

    starts = [i for i in range(N) if i == 0 or phases[i] != phases[i - 1]]
    ticks = set()
    for begin, end in zip(starts, [*starts[1:], N]):  # round steps of each phase
        within = np.array(steps[begin:end])
        wanted = MaxNLocator(max(2, 8 // len(starts)), integer=True).tick_values(within[0], within[-1])
        ticks |= {begin + int(abs(within - step).argmin()) for step in wanted if within[0] <= step <= within[-1]}
        if len(starts) > 1:
            mean.text(begin - 0.5, 1.02, phases[begin], fontsize=8, color=grey, va="bottom", ha="left")
    mean.set_xticks(sorted(ticks), [steps[i] for i in sorted(ticks)])
    for begin in starts[1:]:
        heat.axvline(begin - 0.5, color="white", linewidth=1.2)
        mean.axvline(begin - 0.5, color=grey, linewidth=0.8)
    shares = [f"{100 * last[name]:.3g} % of heads {name}" for name in ("collapsed", "overloaded") if last.get(name) is not None]
    mean.set_xlabel("step" + (f"      (at the last: {', '.join(shares)})" if shares else ""))
    figure.savefig(out, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="RUN_FOLDER")
    parser.add_argument("--out", metavar="FILE.png", help="RUN_FOLDER/attention_entropy.png by default")
    arguments = parser.parse_args()
    out = arguments.out or Path(arguments.folder) / "attention_entropy.png"
    draw(arguments.folder, out)
    print(out)
