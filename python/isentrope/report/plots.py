"""The kinds of figures: curves over the steps of phases, over a number, histograms, heat maps, reward over entropy.

A drawing function returns the figure and what is to be said below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isentrope.report.runs import Series
from isentrope.report.svg import Figure, Scale, ramp, short

COLOURS = ["#3b7dd8", "#e0782f", "#2a9d74", "#c2528b", "#8a6fd1", "#b0941c", "#3fa3b8", "#a0573b"]
BAD = "#e01f2d"  # the colour of alarms
POINTS, LEAST = 2400, 40  # drawn in a figure, all curves together; of a curve at least
CELLS = 300_000  # of all heat maps of a page
HEIGHT, WIDE, NARROW = 185, 430, 320  # of figures, pixels
TOP, BOTTOM, LEFT, RIGHT, GAP = 200, 240, 430, 60, 130  # around axes, tenths of a pixel
COLLAPSED = 0.05  # csrc/train/attention_watch.h
VIRIDIS = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"]
PLASMA = ["0d0887", "4c02a1", "7e03a8", "aa2395", "cc4778", "e66c5c", "f89540", "fdc527", "f0f921"]
SPECTRUM = ["4662d7", "36aaf9", "1ae4b6", "72fe5e", "c8ef34", "faba39", "f66b19", "ca2a04"]
LEVELS = 48  # colours of a heat map


def depth_colours(count: int) -> list[str]:
    """From the first to the last, of layers or of a sweep; seen by day and by night."""
    return ramp(PLASMA, count, 0.22, 0.84)


def run_colours(count: int) -> list[str]:
    return COLOURS[:count] if count <= len(COLOURS) else ramp(SPECTRUM, count)


# ---- curves over steps ---------------------------------------------------------------------------------------------


@dataclass
class Curve:
    seeds: list[Series]  # their mean is the line, from the lowest to the highest is the band; of one: its values
    colour: str
    dash: str = "-"  # "": points alone
    marker: str = ""  # of points, where there are few
    band: bool = True


@dataclass
class Bins:
    steps: np.ndarray  # [n]
    mean: np.ndarray  # [n] over the seeds of their means in a bin; NaN where nothing is finite
    low: np.ndarray  # [n] of the seeds' means; of one seed: of its values
    high: np.ndarray
    lost: np.ndarray  # [m] steps of bins with values that are not finite
    count: int  # values that are not finite
    size: int  # steps a bin


def binned(seeds: Sequence[tuple[np.ndarray, np.ndarray]], points: int) -> Bins | None:
    """Steps [n] and values [n] of each seed, in bins of as many consecutive steps, about `points` at most."""
    seeds = [(steps, values) for steps, values in seeds if len(steps)]
    if not seeds:
        return None
    every = np.unique(np.concatenate([steps for steps, _ in seeds]))
    size = max(1, -(-len(every) // max(points, 2)))
    count = -(-len(every) // size)
    means, lows, highs, lost = [], [], [], np.zeros(count, bool)
    for steps, values in seeds:
        place = np.searchsorted(every, steps) // size
        finite = np.isfinite(values)
        lost[place[~finite]] = True
        there, known = place[finite], values[finite]
        number = np.bincount(there, minlength=count)
        with np.errstate(invalid="ignore"):
            means.append(np.bincount(there, known, count) / np.where(number, number, np.nan))
        low, high = np.full(count, np.inf), np.full(count, -np.inf)
        np.minimum.at(low, there, known)
        np.maximum.at(high, there, known)
        lows.append(low)
        highs.append(high)
    if len(seeds) > 1:
        lows = highs = means
    middle = np.add.reduceat(every, np.arange(0, len(every), size)) / np.diff([*range(0, len(every), size), len(every)])
    known = np.isfinite(means)
    empty = ~known.any(0)
    total = np.where(known, means, 0).sum(0) / np.maximum(known.sum(0), 1)
    low, high = np.where(known, lows, np.inf).min(0), np.where(known, highs, -np.inf).max(0)
    total[empty] = low[empty] = high[empty] = np.nan
    count = sum(int((~np.isfinite(values)).sum()) for _, values in seeds)
    return Bins(middle, total, low, high, middle[lost], count, size)


def vertical(ranges: Sequence[tuple[float, float]], start: float, end: float, wide: bool) -> Scale:
    """A scale on which all ranges have room. wide: values span so much that their logarithms are drawn."""
    known = [r for r in ranges if r[0] <= r[1]]
    low, high = (min(r[0] for r in known), max(r[1] for r in known)) if known else (0.0, 1.0)
    if wide:
        return Scale(low / 1.1, high * 1.1, start, end, True)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    room = 0.04 * (high - low)
    return Scale(0 if low == 0 else low - room, high + room, start, end)


def draw_curves(
    lengths: dict[str, int], curves: Sequence[Curve], width: float = WIDE, compared: Sequence[str] = (),
    named: bool = False, apart: bool = False,
) -> tuple[Figure, list[str]]:  # fmt: skip
    """Curves over steps, each phase on axes of its own, as wide as the others; twice as wide where the phase is compared.

    Phases share a scale where each of them uses a quarter of it or more, unless apart."""
    figure = Figure(width, HEIGHT)
    limit = max(LEAST, min(900, POINTS // max(len(curves), 1)))
    weight = {phase: 2.0 if phase in compared and len(compared) < len(lengths) else 1.0 for phase in lengths}
    found: dict[str, list[tuple[Curve, Bins]]] = {}
    for phase in lengths:
        room = max(LEAST, round(limit * weight[phase] / sum(weight.values())))
        bins = [(curve, binned([series.of(phase) for series in curve.seeds], room)) for curve in curves]
        found[phase] = [(curve, b) for curve, b in bins if b is not None]
    ranges, wide = {}, {}
    for phase, drawn in found.items():
        known = [b for _, b in drawn if np.isfinite(b.mean).any()]
        low = min((np.nanmin(b.low) for b in known), default=np.inf)
        high = max((np.nanmax(b.high) for b in known), default=-np.inf)
        middle = np.median(np.concatenate([b.mean[np.isfinite(b.mean)] for b in known])) if known else 0
        ranges[phase], wide[phase] = (low, high), bool(0 < low and high > 50 * middle)
    known = [r for r in ranges.values() if r[0] <= r[1]]
    all_of_it = max((r[1] for r in known), default=0) - min((r[0] for r in known), default=0)
    own = len(known) > 1 and (apart or any(r[1] - r[0] < all_of_it / 4 for r in known))
    gaps = LEFT + RIGHT + (len(lengths) - 1) * (LEFT if own else GAP)
    start, room, said = LEFT, figure.width - gaps, []
    for i, (phase, drawn) in enumerate(found.items()):
        end = start + room * weight[phase] / sum(weight.values())
        x = Scale(0, max(lengths[phase], 1), start, end)
        scaled = {phase: wide[phase]} if own else wide
        y = vertical([ranges[p] for p in scaled], figure.height - BOTTOM, TOP, all(scaled.values()))
        axes(figure, x, y, labelled=own or i == 0, known=bool(known))
        if named:
            letters = int((end - start) / 62)
            figure.text(start, TOP - 70, phase if len(phase) <= letters else phase[: max(letters - 1, 1)] + "…", "start")
        for curve, bins in drawn:
            draw_bins(figure, x, y, curve, bins)
        lost = np.unique(np.concatenate([b.lost for _, b in drawn])) if drawn else np.zeros(0)
        figure.points(x.at(lost), np.full(len(lost), TOP + 40.0), "var(--bad)", "x")
        start = end + (LEFT if own else GAP)
    every = [(curve, b) for drawn in found.values() for curve, b in drawn]
    if any(wide[p] if own else all(wide.values()) for p in wide):
        said.append("logarithmic scale")
    if own:
        said.append("each phase on its own scale")
    if lost := sum(b.count for _, b in every):
        said.append(f"{lost} value{'s' if lost > 1 else ''} not finite (×)")
    size = max((b.size for _, b in every), default=1)
    if size > 1:
        alone = any(len(curve.seeds) == 1 and curve.band for curve, _ in every)
        said.append(f"line: mean of up to {size} steps" + ("; band: their range" if alone else ""))
    return figure, said


def axes(figure: Figure, x: Scale, y: Scale, labelled: bool = True, known: bool = True, whole: bool = True) -> None:
    """The grid, and numbers below and, where labelled, to the left."""
    for tick in y.ticks(4) if known else ():
        at = float(y.at(tick))
        figure.rule(x.start, at, x.end, at)
        if labelled:
            figure.text(x.start - 60, at + 36, short(tick), "end")
    figure.rule(x.start, y.start, x.end, y.start, "axis")
    for tick in x.ticks(max(1, int((x.end - x.start) / 700)), whole):
        at = float(x.at(tick))
        figure.rule(at, y.start, at, y.start + 30, "axis")
        figure.text(at, y.start + 150, short(tick))


def draw_bins(figure: Figure, x: Scale, y: Scale, curve: Curve, bins: Bins) -> None:
    at = x.at(bins.steps)
    places = [y.at(v) for v in (bins.mean, bins.low, bins.high)]
    if curve.dash:
        if curve.band:
            figure.band(at, places[1], places[2], curve.colour)
        figure.line(at, places[0], curve.colour, curve.dash)
    else:
        for place, low, high in zip(at, places[1], places[2]):
            if low - high > 5:
                figure.add(f'<path class="l" stroke="{curve.colour}" d="M{place:.0f} {low:.0f}V{high:.0f}"/>')
    if len(at) == 1:  # no line to be seen
        figure.points(at, places[0], curve.colour, "o")
    elif curve.marker and (len(at) <= 60 or not curve.dash):
        figure.points(at, places[0], curve.colour, curve.marker)


# ---- curves over a number ------------------------------------------------------------------------------------------


@dataclass
class Line:
    """Values over a number: of each number those of all seeds."""

    x: list[float]
    values: list[list[float]]
    colour: str
    colours: Sequence[str] = ()  # of the points, where each is a configuration of its own


def draw_lines(lines: Sequence[Line], logarithmic: bool, width: float = NARROW, marks: Sequence[float] = ()):
    """The mean over the seeds as a line, each seed as a point; one that is not finite as × at the top."""
    figure = Figure(width, HEIGHT)
    every = np.array([v for line in lines for values in line.values for v in values], float)
    known = every[np.isfinite(every)]
    wide = bool(len(known) and known.min() > 0 and known.max() > 50 * np.median(known))
    numbers = [x for line in lines for x in line.x]
    edge = 1.12 if logarithmic else 0.04 * (max(numbers) - min(numbers))
    ends = (min(numbers) / edge, max(numbers) * edge) if logarithmic else (min(numbers) - edge, max(numbers) + edge)
    x = Scale(*ends, LEFT, figure.width - RIGHT, logarithmic)
    y = vertical([(known.min(), known.max())] if len(known) else [], figure.height - BOTTOM, TOP - 100, wide)
    if marks:
        x.ticks = lambda count, whole=False: list(marks)  # type: ignore[method-assign]
    axes(figure, x, y, known=bool(len(known)), whole=False)
    for line in lines:
        at, mean = x.at(line.x), []
        for place, values, colour in zip(at, line.values, line.colours or [line.colour] * len(at)):
            there = np.array([v for v in values if np.isfinite(v)], float)
            mean.append(there.mean() if len(there) else np.nan)
            figure.points(np.full(len(there), place), y.at(there), colour, "o", pale=len(values) > 1)
            if len(there) < len(values):
                figure.points(np.array([place]), np.array([TOP - 60.0]), "var(--bad)", "x")
        figure.line(at, y.at(np.array(mean)), line.colour)
    said = ["points: seeds"] * any(len(v) > 1 for line in lines for v in line.values)
    if len(known) < len(every):
        said.append(f"{len(every) - len(known)} not finite (×)")
    return figure, said + ["logarithmic scale"] * wide


def draw_histogram(groups: Sequence[tuple[np.ndarray, str]], whole: bool) -> tuple[Figure, list[str]]:
    """Shares of values [n] of each group and colour, in bins common to all. whole: the values are integers."""
    figure = Figure(WIDE, HEIGHT)
    every = np.concatenate([values for values, _ in groups])
    low, high = float(every.min()), float(every.max())
    few = np.unique(every)
    if len(few) <= 2 and not whole:  # rewards that are right or wrong
        edges = np.linspace(low, high, 8) if low < high else np.array([low - 0.5, low + 0.5])
    elif whole:
        step = max(1, round((high - low + 1) / 30))
        edges = np.arange(low - 0.5, high + step + 0.5, step)
    else:
        edges = np.linspace(low, high, 25)
    shares = [np.histogram(values, edges)[0] / len(values) for values, _ in groups]
    x = Scale(edges[0], edges[-1], LEFT, figure.width - RIGHT)
    y = vertical([(0, max(float(s.max()) for s in shares))], figure.height - BOTTOM, TOP - 100, False)
    axes(figure, x, y, whole=whole)
    for share, (_, colour) in zip(shares, groups):
        steps = x.at(np.repeat(edges, 2))
        heights = y.at(np.concatenate(([0], np.repeat(share, 2), [0])))
        if len(groups) == 1:
            figure.band(steps, np.full(len(steps), y.start), heights, colour)
        figure.line(steps, heights, colour)
    return figure, []


def draw_law(clouds: Sequence[tuple[np.ndarray, np.ndarray, tuple[float, float] | None, str]]):
    """Clouds of (entropies [n] nats, rewards [n], (a, b) or None, colour), and R = b - a exp(H) through those fitted."""
    figure = Figure(WIDE, HEIGHT)
    laws = []
    for H, R, fit, colour in clouds:
        ends = np.linspace(0, H.max(initial=0.0), 40)
        laws.append((ends, fit[1] - fit[0] * np.exp(ends) if fit else np.zeros(0)))
    x = Scale(0, max(float(H.max(initial=0)) for H, *_ in clouds) or 1, LEFT, figure.width - RIGHT)
    shown = np.concatenate([*(R for _, R, *_ in clouds), *(law for _, law in laws)])
    y = vertical([(float(shown.min()), float(shown.max()))], figure.height - BOTTOM, TOP - 100, False)
    axes(figure, x, y, whole=False)
    for (H, R, _, colour), (ends, law) in zip(clouds, laws):
        figure.points(x.at(H), y.at(R), colour, ".", pale=True)
        if len(law):
            figure.line(x.at(ends), y.at(law), colour)
    return figure, []


# ---- heat maps -----------------------------------------------------------------------------------------------------


def draw_heat(
    lengths: dict[str, int], series: Series, alarms: Sequence[tuple[str, int]], width: float, cells: int
) -> tuple[Figure, list[str]]:
    """Normalized attention entropy, heads in rows, measurements in columns, alarms as triangles above."""
    layers, heads = series.all().shape[1:]
    rows = layers * heads
    figure = Figure(width, 45 + min(max(11 * rows, 120), 0.55 * width))
    columns = max(20, min(1000, cells // rows) // len(lengths))
    palette = [BAD, *ramp(VIRIDIS, LEVELS), "#888888"]
    room, start, said = (figure.width - LEFT - RIGHT - GAP * (len(lengths) - 1)) / len(lengths), LEFT, []
    base = figure.height - BOTTOM
    for i, (phase, last) in enumerate(lengths.items()):
        steps, values = series.of(phase)
        x = Scale(0, max(last, 1), start, start + room)
        y = Scale(0, rows, TOP, base)
        if len(steps):
            values = values.reshape(len(steps), rows)
            size = -(-len(steps) // columns)
            if size > 1:  # the lowest of each bin: a collapse in one measurement stays visible
                values = np.pad(values, ((0, -len(steps) % size), (0, 0)), "edge").reshape(-1, size, rows)
                all_lost = np.isnan(values).all(1)
                values = np.where(all_lost, np.nan, np.where(np.isnan(values), np.inf, values).min(1))
                said = [f"each column: the lowest of up to {size} measurements"]
            level = np.clip((np.nan_to_num(values) - COLLAPSED) / (1 - COLLAPSED) * LEVELS, 0, LEVELS - 1).astype(int) + 1
            level = np.where(np.isnan(values), LEVELS + 1, np.where(values < COLLAPSED, 0, level))
            every = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
            left, right = (float(x.at(min(max(s, 0), last))) for s in (steps[0] - every / 2, steps[-1] + every / 2))
            figure.image((left, TOP, max(right - left, 20), base - TOP), level.T, palette)
        axes(figure, x, Scale(0, 0, base, base), known=False)
        if len(lengths) > 1:
            figure.text(start, TOP - 70, phase, "start")
        for layer in range(1, layers):
            at = float(y.at(layer * heads))
            figure.rule(x.start, at, x.end, at)
        fitting = max(1, int((base - TOP) // 130))
        if i == 0 and rows <= fitting:
            for row in range(rows):
                figure.text(start - 60, float(y.at(row + 0.5)) + 36, f"{row // heads} · {row % heads}", "end")
        elif i == 0:
            for layer in range(0, layers, -(-layers // fitting)):
                figure.text(start - 60, float(y.at((layer + 0.5) * heads)) + 36, f"layer {layer}", "end")
        places = np.unique(np.round([float(x.at(step)) for at, step in alarms if at == phase], -1))
        figure.points(places, np.full(len(places), TOP - 40.0), "var(--bad)", "v")
        start += room + GAP
    if lost := int(np.isnan(series.all()).sum()):
        said.append(f"{lost} value{'s' if lost > 1 else ''} not finite (grey)")
    return figure, said
