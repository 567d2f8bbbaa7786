"""Which runs are seeds of one configuration, in which keys the configurations differ, and what was swept."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from isentrope.report.runs import Run, Series

TAKEN = {"steps", "seeds", "time", "alarms"}  # names of other columns beside the keys
SEED, OWN = "run.seed", {"run.seed", "run.dir", "run.start"}  # of a run, not of its configuration


@dataclass
class Configuration:
    runs: list[Run]  # its seeds; one where it was run once
    label: str = ""  # unique on the page
    colour: str = ""
    values: dict[str, str] = field(default_factory=dict)  # of the keys in which the configurations differ

    def series(self, name: str) -> list[Series]:
        return [run.series[name] for run in self.runs if name in run.series]


@dataclass
class Sweep:
    """A key with numbers in three configurations or more that are alike in all other keys."""

    key: str
    name: str  # the key's short one
    lines: list[tuple[str, list[tuple[float, Configuration]]]]  # of one value of the other keys: its name, by number
    logarithmic: bool


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Of each key its last words, as many as tell it apart: "phases.sft.optimizer.lr" → "lr", or "sft.optimizer.lr"."""
    parts = {key: key.split(".") for key in keys}
    found = {}
    for key, words in parts.items():
        for count in range(1, len(words) + 1):
            found[key] = ".".join(words[-count:])
            if found[key] not in TAKEN and sum(other[-count:] == words[-count:] for other in parts.values()) == 1:
                break
    return found


def number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def grouped(runs: list[Run]) -> list[list[Run]]:
    """Runs whose configurations differ in run.seed and run.dir alone. run.start may differ too, where each seed has one:
    each seed then has a start of its own. A run without a configuration is like no other."""
    alike: dict[object, list[Run]] = {}
    for i, run in enumerate(runs):
        rest = frozenset((k, v) for k, v in run.config.items() if k not in OWN)
        alike.setdefault(rest if run.config else i, []).append(run)
    found: list[list[Run]] = []
    for group in alike.values():
        starts = defaultdict(set)
        for run in group:
            starts[run.config.get(SEED)].add(run.config.get("run.start"))
        if all(len(of_a_seed) == 1 for of_a_seed in starts.values()):
            found.append(group)
        else:
            by_start: dict[str | None, list[Run]] = {}
            for run in group:
                by_start.setdefault(run.config.get("run.start"), []).append(run)
            found += by_start.values()
    return found


def stem(group: list[Run]) -> str:
    """What the folders of a configuration's seeds have in common: "runs/clip-1", "runs/clip-2" → "clip"."""
    paths = [str(run.folder.resolve()) for run in group]
    common = os.path.commonprefix(paths) if len(paths) > 1 else paths[0]
    return os.path.basename(re.sub(r"[\W_]*(seed|s)?[\W_]*$", "", common)) if len(paths) > 1 else group[0].label


def configurations(runs: list[Run]) -> list[Configuration]:
    """In the order of the runs, but for a sweep, which stands in the order of its numbers."""
    found = [Configuration(group) for group in grouped(runs)]
    keys = dict.fromkeys(key for run in runs for key in run.config)
    for key in keys:
        values = [next(iter({run.config.get(key, "–") for run in c.runs})) for c in found]
        if key not in OWN - {"run.start"} and len(set(values)) > 1 and all(
            len({run.config.get(key) for run in c.runs}) == 1 for c in found
        ):
            for configuration, value in zip(found, values):
                configuration.values[key] = value
    swept = sweep(found)
    if swept:
        found.sort(key=lambda c: number(c.values[swept.key]) if number(c.values[swept.key]) is not None else float("inf"))
    names_of = short_names(found[0].values)
    by_values = [", ".join(f"{names_of[k]} {v}" for k, v in c.values.items()) for c in found]
    by_folders = [stem(c.runs) for c in found]
    few = bool(found[0].values) and len(found[0].values) <= 2
    for names in (by_values if swept and few else [], by_folders, by_values if few else []):
        if len(names) and all(names) and len(set(names)) == len(names):
            break
    else:
        names = [c.runs[0].label for c in found]
    for configuration, name in zip(found, names):
        configuration.label = name
    return found


def sweep(found: list[Configuration]) -> Sweep | None:
    """Of the key with the most numbers, if more than one has three. Keys whose numbers go with it, one to one, do not count
    as others."""
    best: Sweep | None = None
    names = short_names(found[0].values)
    for key in names:
        numbers = [(number(c.values[key]), c) for c in found]
        numbers = [(value, c) for value, c in numbers if value is not None]
        others = []
        for other in names:
            pairs = {(value, number(c.values[other])) for value, c in numbers}
            ways = [len({pair[i] for pair in pairs}) for i in (0, 1)]
            if other != key and not (ways == [len(pairs)] * 2 and all(pair[1] is not None for pair in pairs)):
                others.append(other)
        lines: dict[str, list[tuple[float, Configuration]]] = {}
        for value, c in numbers:
            lines.setdefault(", ".join(f"{names[k]} {c.values[k]}" for k in others), []).append((value, c))
        long = {name: sorted(points, key=lambda p: p[0]) for name, points in lines.items() if len(points) >= 3}
        if long and (best is None or sum(map(len, long.values())) > sum(len(points) for _, points in best.lines)):
            every = sorted({value for points in long.values() for value, _ in points})
            wide = every[0] > 0 and (every[-1] >= 20 * every[0] or names[key].split(".")[-1] in ("lr", "learning_rate"))
            best = Sweep(key, names[key], list(long.items()), wide)
    return best


def heading(found: list[Configuration]) -> str:
    """What the page compares: one run, or the key that differs and its values, or how many configurations."""
    runs = sum(len(c.runs) for c in found)
    if len(found) == 1:
        return found[0].label + (f", {runs} seeds" if runs > 1 else "")
    names = short_names(found[0].values)
    keys = list(names)
    if (swept := sweep(found)) is not None and len(keys) <= 2:
        numbers = sorted({value for _, points in swept.lines for value, _ in points})
        told = f"{swept.name} from {numbers[0]:g} to {numbers[-1]:g}"
        told += "".join(f", {name}" for key, name in names.items() if key != swept.key)
    elif len(keys) == 1 and len(found) <= 6:
        told = f"{names[keys[0]]}: " + ", ".join(c.values[keys[0]] for c in found)
    elif len(found) <= 4:
        told = ", ".join(c.label for c in found)
    else:
        told = f"{len(found)} configurations" + (f" of {', '.join(names.values())}" if len(names) <= 4 else "")
    counts = {len(c.runs) for c in found}
    seeds = f"{counts.pop()} seeds each" if len(counts) == 1 else f"{runs} runs"
    return told + (f" · {seeds}" if runs > len(found) else "")
