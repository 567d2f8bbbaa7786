"""A figure as SVG text that stands inside a page: lines, bands, points and images on axes, in tenths of a pixel.

Colours of ink are classes of the page's style, which differ by day and by night.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

DASHES = {"-": "", "--": "46 30", ":": "14 26", "-.": "60 24 14 24"}  # stroke-dasharray
MARKERS = {  # outlines around a point
    "o": "m-28 0a28 28 0 1 0 56 0a28 28 0 1 0 -56 0",
    "s": "m-26 -26h52v52h-52z",
    "^": "m0 -34l34 58h-68z",
    "v": "m0 34l34 -58h-68z",
    "D": "m0 -38l38 38l-38 38l-38 -38z",
    ".": "m-12 0a12 12 0 1 0 24 0a12 12 0 1 0 -24 0",
    "x": "m-24 -24l48 48m0 -48l-48 48",
}

OPACITY = ' opacity=".5"'


def short(value: float) -> str:
    """1234 → "1234", 20000 → "20k", 0.00025 → "0.00025", 3e-7 → "3e-07"."""
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.5g}"


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """At most count + 1 round numbers in [low, high]."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(step * m for m in (1, 2, 2.5, 5, 10, 20) if (high - low) / (step * m) <= count)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        found = [d * 10.0**p for p in powers for d in digits if low * 0.999 <= d * 10.0**p <= high * 1.001]
        if len(found) >= 3:
            break
    return found[:: -(-len(found) // 6) or 1]


@dataclass
class Scale:
    """Data to a place on the page, from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: np.ndarray | float) -> np.ndarray:
        low, high, value = self.low, self.high, np.asarray(value, float)
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), np.log10(np.maximum(value, 1e-300))
        return self.start + (self.end - self.start) * (value - low) / ((high - low) or 1.0)

    def ticks(self, count: int, whole: bool = False) -> list[float]:
        return log_ticks(self.low, self.high) if self.logarithmic else ticks(self.low, self.high, count, whole)


def rounded(x: np.ndarray, y: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(np.rint(x).astype(int).tolist(), np.rint(y).astype(int).tolist()))


def path(points: Sequence[tuple[int, int]], begin: str = "M") -> str:
    """A line through points, each told from the one before."""
    x, y = points[0]
    told = [f"{begin}{x} {y}l" if len(points) > 1 else f"{begin}{x} {y}"]
    for next_x, next_y in points[1:]:
        told.append(f"{next_x - x} {next_y - y} ")
        x, y = next_x, next_y
    return "".join(told).rstrip()


class Figure:
    def __init__(self, width: float, height: float) -> None:
        """In pixels, as a page shows it where there is room."""
        self.width, self.height = 10 * width, 10 * height
        self.parts: list[str] = []

    def add(self, element: str) -> None:
        self.parts.append(element)

    def line(self, x: np.ndarray, y: np.ndarray, colour: str, dash: str = "-", thin: bool = False) -> None:
        """Through places on the page; NaN leaves a gap, and a value between two gaps is a point."""
        there = np.isfinite(y)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], there.view(np.int8), [0]))))
        d, alone = [], []
        for first, end in edges.reshape(-1, 2):
            points = rounded(x[first:end], y[first:end])
            (d if len(points) > 1 else alone).append(points)
        style = f' stroke-dasharray="{DASHES[dash]}"' if DASHES[dash] else ""
        if d:
            self.add(f'<path class="l{" thin" if thin else ""}" stroke="{colour}"{style} d="{"".join(map(path, d))}"/>')
        if alone:
            self.points(np.array([p[0][0] for p in alone]), np.array([p[0][1] for p in alone]), colour, ".")

    def band(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
        there = np.isfinite(low) & np.isfinite(high)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], there.view(np.int8), [0]))))
        d = ""
        for first, end in edges.reshape(-1, 2):
            part = slice(first, end)
            if (np.abs(high[part] - low[part]) > 5).any():  # half a pixel
                d += path(rounded(x[part], low[part])) + path(rounded(x[part], high[part])[::-1], "L") + "z"
        if d:
            self.add(f'<path class="band" fill="{colour}" d="{d}"/>')

    def points(self, x: np.ndarray, y: np.ndarray, colour: str, marker: str, pale: bool = False) -> None:
        there = np.isfinite(y)
        d = "".join(f"M{a} {b}{MARKERS[marker]}" for a, b in rounded(x[there], y[there]))
        if d:
            ink = f'class="lost" stroke="{colour}"' if marker == "x" else f'fill="{colour}"'
            self.add(f'<path {ink}{OPACITY if pale else ""} d="{d}"/>')

    def rule(self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> None:
        self.add(f'<path class="{kind}" d="M{x1:.0f} {y1:.0f}L{x2:.0f} {y2:.0f}"/>')

    def text(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        place = "" if anchor == "middle" else f' text-anchor="{anchor}"'
        self.add(f'<text x="{x:.0f}" y="{y:.0f}"{place}>{escape(text)}</text>')

    def image(self, box: tuple[float, float, float, float], cells: np.ndarray, palette: Sequence[str]) -> None:
        """cells [rows, columns] of numbers of the palette; box: left, top, width, height. The last colour is half clear."""
        x, y, w, h = box
        self.add(
            f'<image x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}" preserveAspectRatio="none" '
            f'href="data:image/png;base64,{base64.b64encode(png(cells, palette)).decode()}"/>'
        )

    def svg(self, title: str) -> Markup:
        return Markup(
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" aria-label="{escape(title)}">'
            + "".join(self.parts)
            + "</svg>"
        )


def png(cells: np.ndarray, palette: Sequence[str]) -> bytes:
    rows, columns = cells.shape
    data = np.concatenate((np.zeros((rows, 1), np.uint8), cells.astype(np.uint8)), 1).tobytes()  # a filter byte a row

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", b"".join(bytes.fromhex(colour[1:]) for colour in palette))
        + chunk(b"tRNS", bytes([255] * (len(palette) - 1) + [127]))
        + chunk(b"IDAT", zlib.compress(data, 9))
        + chunk(b"IEND", b"")
    )


def ramp(anchors: Sequence[str], count: int, first: float = 0.0, last: float = 1.0) -> list[str]:
    """count colours between `first` and `last` of a scale given by evenly spaced colours."""
    table = np.array([list(bytes.fromhex(colour)) for colour in anchors], float)  # [n, 3]
    places = np.linspace(first, last, max(count, 1)) * (len(anchors) - 1)
    mixed = [np.interp(places, np.arange(len(anchors)), table[:, i]) for i in range(3)]
    return ["#" + bytes(int(round(c)) for c in colour).hex() for colour in zip(*mixed)]
