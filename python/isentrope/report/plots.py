"""Figures of a page, as SVG text that stands inside it: colours come from the page's style, fonts too."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from isentrope.report.runs import Series

COLOURS = ["#3b7dd8", "#e0782f", "#2a9d74", "#c2528b", "#8a6fd1", "#b0941c", "#3fa3b8", "#a0573b"]
DASHES = ["-", "--", ":", "-."]
MARKERS = ["o", "s", "^", "v"]
# Stand for colours of the page's style, which differ by day and by night.
INK, MUTED, LINE, BAD = "#101112", "#606162", "#d0d1d2", "#e01f2d"
STYLE = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", BAD: "var(--bad)"}
POINTS = 1000  # at most so many are drawn of a curve
HEIGHT, WIDE, NARROW = 2.0, 4.7, 3.5  # of figures, inches
COLLAPSED = 0.05  # csrc/train/attention_watch.h
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isentrope",
    "image.composite_image": False,
    "font.size": 9,
    "text.color": MUTED,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.linewidth": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "lines.linewidth": 1.4,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "round",
    "axes.axisbelow": True,
}


def heat_colours() -> matplotlib.colors.Colormap:
    """0.05 … 1 from dark to light; below, where a head has collapsed, the colour of alarms; NaN grey."""
    return matplotlib.colormaps["viridis"].with_extremes(under=BAD, bad="#8888887f")


def short(value: float, _position: int = 0) -> str:
    """1234 → "1234", 20000 → "20k", 0.00025 → "0.00025"."""
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.5g}"


class StepAxis:
    """Phases side by side on one axis from 0 to 1. A phase has room for half its share of the steps and half an equal
    share: 100 steps after 2000 stay visible. Ticks count the steps of each phase."""

    GAP = 0.012

    def __init__(self, lengths: dict[str, int], named: bool) -> None:
        self.named = named
        self.lengths = {phase: max(steps, 1) for phase, steps in lengths.items()}
        total, room = sum(self.lengths.values()), 1 - self.GAP * (len(lengths) - 1)
        self.start, self.width, start = {}, {}, 0.0
        for phase, steps in self.lengths.items():
            self.start[phase] = start
            self.width[phase] = room * (0.5 * steps / total + 0.5 / len(lengths))
            start += self.width[phase] + self.GAP

    def at(self, phase: str, step: np.ndarray | float) -> np.ndarray:
        return self.start[phase] + self.width[phase] * np.asarray(step, float) / self.lengths[phase]

    def mark(self, axes) -> None:
        axes.set_xlim(-0.005, 1.005)
        ticks, labels = [], []
        for i, (phase, steps) in enumerate(self.lengths.items()):
            if i:
                axes.axvline(self.start[phase] - self.GAP / 2, color=MUTED, lw=0.8, dashes=(3, 3))
            count = max(1, int((5 if axes.figure.get_figwidth() < 6 else 12) * self.width[phase]))
            for tick in MaxNLocator(count, integer=True, steps=[1, 2, 5, 10]).tick_values(0, steps):
                if (tick > 0 or i == 0) and tick <= steps:
                    ticks.append(self.at(phase, tick))
                    labels.append(short(tick))
            if self.named:
                room = int(self.width[phase] * axes.figure.get_figwidth() * 13)  # letters that fit
                name = phase if len(phase) <= room else phase[: max(room - 1, 1)] + "…"
                place = {"xycoords": axes.get_xaxis_transform(), "xytext": (0, 5), "textcoords": "offset points"}
                axes.annotate(name, (self.start[phase], 1), **place, va="bottom", color=MUTED, parse_math=False)
        axes.set_xticks(ticks, labels)


@dataclass
class Thin:
    x: np.ndarray  # [n] place on the axis
    mean: np.ndarray  # [n] of the finite values of a bin; NaN where there is none
    low: np.ndarray
    high: np.ndarray
    bad: np.ndarray  # [m] places of values that were not finite
    whole: bool  # every value has a point of its own


def thin(x: np.ndarray, y: np.ndarray, points: int) -> Thin:
    """x, y [n] in bins of as many consecutive values, at most `points`."""
    size = max(1, -(-len(y) // max(points, 1)))
    padding = -len(y) % size
    x = np.pad(x, (0, padding), "edge").reshape(-1, size)
    y = np.pad(y, (0, padding), constant_values=np.nan).reshape(-1, size)
    finite = np.isfinite(y)
    count = finite.sum(1)
    empty = count == 0
    mean = np.where(empty, np.nan, np.where(finite, y, 0).sum(1) / np.maximum(count, 1))
    low = np.where(empty, np.nan, np.where(finite, y, np.inf).min(1))
    high = np.where(empty, np.nan, np.where(finite, y, -np.inf).max(1))
    lost = ~finite
    if padding:
        lost[-1, size - padding :] = False
    return Thin(x.mean(1), mean, low, high, x.mean(1)[lost.any(1)], size == 1)


def svg(figure: Figure, number: int, title: str) -> str:
    """The figure as an element of a page: ids with its number, so that no two are alike; no date, no declaration."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="f{number}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#f{number}-", text)
    text = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"\d+\.\d{2,}", lambda x: f"{float(x[0]):.1f}", path[0]), text)
    for stand_in, colour in STYLE.items():
        text = text.replace(stand_in, colour)
    size = re.search(r'viewBox="[^"]*"', text)[0]
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(
        r"<svg[^>]*>",
        lambda _: f'<svg {size} xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{label}">',
        text,
        count=1,
    )


@dataclass
class Curve:
    series: Series
    colour: str
    dash: str = "-"
    marker: str = ""  # points without a line between them, or with one where dash says so


def new_figure(height: float, width: float):
    """A figure and its axes, in inches; a page shows an inch as some 90 pixels, whatever the width."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.5 / width, 0.26 / height, 1 - 0.65 / width, 1 - 0.48 / height))
    return figure, axes


def draw_curves(axis: StepAxis, curves: Sequence[Curve], width: float = WIDE) -> tuple[Figure, list[str]]:
    """Curves over steps. Long ones are thinned: the mean of some steps as a line, their range as a band.

    Returns the figure and what is to be said below it."""
    figure, axes = new_figure(HEIGHT, width)
    finite, lost, thinned, bad = [], 0, 0, []
    for curve in curves:
        for phase in axis.lengths:
            steps, values = curve.series.of(phase)
            if not len(steps):
                continue
            t = thin(axis.at(phase, steps), values, max(2, round(POINTS * axis.width[phase])))
            lost += int((~np.isfinite(values)).sum())
            bad.append(t.bad)
            finite.append(values[np.isfinite(values)])
            if not t.whole:
                thinned = max(thinned, -(-len(values) // len(t.x)))
                axes.fill_between(t.x, t.low, t.high, color=curve.colour, alpha=0.22, lw=0)
            alone = len(t.x) == 1 or not np.isfinite(t.mean).all()  # a value between two gaps has no line
            axes.plot(
                t.x,
                t.mean,
                color=curve.colour,
                ls=curve.dash,
                ms=3.4 if curve.marker else 2,
                mew=0,
                zorder=3,
                marker=curve.marker if len(t.x) <= 60 or curve.dash == "" else "." if alone else "",
            )
    said = []
    every = np.concatenate(finite) if finite else np.array([])
    if every.size and every.min() > 0 and every.max() > 50 * np.median(every):
        axes.set_yscale("log")
        axes.tick_params(axis="y", which="minor", length=0)
        said.append("logarithmic scale")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(short))
    if not every.size:
        axes.set_yticks([])
    if lost:
        places = np.unique(np.concatenate(bad))
        axes.plot(
            places,
            np.full(len(places), 0.97),
            "x",
            color=BAD,
            ms=5,
            mew=1.4,
            transform=axes.get_xaxis_transform(),
            zorder=4,
        )
        said.append(f"{lost} value{'s' if lost > 1 else ''} not finite (×)")
    if thinned:
        said.append(f"line: mean of up to {thinned} steps; band: their range")
    axes.grid(axis="y")
    axis.mark(axes)
    return figure, said


def draw_law(
    clouds: Sequence[tuple[np.ndarray, np.ndarray, float, float, str]], width: float = WIDE
) -> tuple[Figure, list[str]]:
    """Clouds of (entropies [n] nats, rewards [n], a, b, colour), and R = b - a exp(H) through each."""
    figure, axes = new_figure(HEIGHT, width)
    for entropies, rewards, a, b, colour in clouds:
        finite = np.isfinite(entropies) & np.isfinite(rewards)
        axes.plot(entropies[finite], rewards[finite], ls="", marker="o", ms=2.6, mew=0, alpha=0.5, color=colour)
        H = np.linspace(0, entropies[finite].max(initial=0.0), 60)
        axes.plot(H, b - a * np.exp(H), color=colour)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.grid(axis="y")
    return figure, []


def draw_heat(axis: StepAxis, series: Series, alarms: Sequence[tuple[str, int]]) -> tuple[Figure, list[str]]:
    """Normalized attention entropy, heads in rows, looks in columns, alarms as triangles above."""
    every_look = series.all()  # [looks, L, H]
    layers, heads = every_look.shape[1:]
    rows, columns = layers * heads, 1000
    figure, axes = new_figure(0.48 + min(max(0.16 * rows, 1.4), 6.5), width=14.4)
    said = []
    for phase in axis.lengths:
        steps, values = series.of(phase)
        if not len(steps):
            continue
        values = values.reshape(len(steps), rows)
        every = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
        size = -(-len(steps) // columns)
        if size > 1:  # the lowest of each bin: a collapse of one look stays visible
            values = np.pad(values, ((0, -len(steps) % size), (0, 0)), "edge").reshape(-1, size, rows)
            all_lost = np.isnan(values).all(1)
            values = np.where(all_lost, np.nan, np.where(np.isnan(values), np.inf, values).min(1))
            said = [f"each column: the lowest of up to {size} looks"]
        left = axis.at(phase, max(steps[0] - every / 2, 0))
        right = axis.at(phase, min(steps[-1] + every / 2, axis.lengths[phase]))
        axes.imshow(
            values.T,
            aspect="auto",
            interpolation="none",
            cmap=heat_colours(),
            vmin=COLLAPSED,
            vmax=1,
            extent=(left, max(right, left + 0.004), rows - 0.5, -0.5),
        )
    lost = int(np.isnan(every_look).sum())
    if lost:
        said.append(f"{lost} value{'s' if lost > 1 else ''} not finite (grey)")
    axes.set_ylim(rows - 0.5, -0.5)
    if rows <= 40:
        axes.set_yticks(range(rows), [f"{row // heads} · {row % heads}" for row in range(rows)], fontsize=7.5)
    else:
        step = -(-layers // 32)
        axes.set_yticks(
            [(layer + 0.5) * heads - 0.5 for layer in range(0, layers, step)], [str(i) for i in range(0, layers, step)]
        )
    for layer in range(1, layers):
        axes.axhline(layer * heads - 0.5, color=LINE, lw=0.8)
    axis.mark(axes)
    if alarms:
        places = np.unique(np.round([axis.at(phase, step) for phase, step in alarms], 3))
        above = axes.get_xaxis_transform() + ScaledTranslation(0, 2.5 / 72, axes.figure.dpi_scale_trans)
        axes.plot(places, np.ones(len(places)), "v", color=BAD, ms=4, mew=0, transform=above, clip_on=False)
    return figure, said


def depth_colours(count: int) -> list[str]:
    """From the first layer to the last; seen by day and by night."""
    return [to_hex(c) for c in matplotlib.colormaps["plasma"](np.linspace(0.22, 0.84, max(count, 1)))]


def draw_depths(
    axis: StepAxis, layers: Sequence[tuple[Series, str]], columns: Sequence[str], width: float = WIDE
) -> tuple[Figure, list[str]]:
    """Lines of layers, each a series and its colour. columns: how each number of a value is drawn, "-", "--" or "."."""
    figure, axes = new_figure(HEIGHT, width)
    lost = 0
    limit = max(40, min(POINTS, 8000 // (len(layers) * len(columns))))
    for series, colour in layers:
        for phase in axis.lengths:
            steps, values = series.of(phase)
            for i, look in enumerate(columns if len(steps) else ()):
                lost += int(np.isnan(values[:, i]).sum()) if look != "." else 0
                if np.isnan(values[:, i]).all():
                    continue
                t = thin(axis.at(phase, steps), values[:, i], max(2, round(limit * axis.width[phase])))
                if look == ".":  # some of the values
                    some = slice(None, None, -(-len(steps) // 24))
                    axes.plot(axis.at(phase, steps[some]), values[some, i], "o", ms=3, mew=0, color=colour)
                else:
                    axes.plot(t.x, t.mean, ls=look, lw=1.2, color=colour, marker="." if len(t.x) == 1 else "")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.grid(axis="y")
    axis.mark(axes)
    return figure, [f"{lost} value{'s' if lost > 1 else ''} not finite, left out"] if lost else []
