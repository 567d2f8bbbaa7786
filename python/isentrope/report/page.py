"""What stands on a page: figures, tables and samples, each only where the runs have something for it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex

from isentrope.report import plots
from isentrope.report.plots import COLOURS, DASHES, MARKERS, Curve, StepAxis
from isentrope.report.runs import Run, Series

# Section → figures: title, what is measured, {name in the legend: key of metrics.jsonl}. Keys of evaluations are drawn
# as points, of the validation and of the test data. All keys that no figure has come under "Other figures".
# fmt: off
SECTIONS: list[tuple[str, list[tuple[str, str, dict[str, str]]]]] = [
    ("Learning", [
        ("Loss", "as minimised", {"training": "loss", "held-out": "eval/loss"}),
        ("Bits per byte", "of held-out text", {"": "eval/bits_per_byte"}),
        ("Reward", "over the completions of a step", {"mean": "reward/mean", "standard deviation": "reward/std"}),
        ("Accuracy", "share of right answers to held-out prompts",
         {"greedy": "eval/greedy", "sampled": "eval/sampled", "pass@k": "eval/pass@k"}),
        ("Policy entropy", "of the next token, nats",
         {"mean": "entropy/mean", "standard deviation": "entropy/std", "of held-out samples": "eval/entropy"}),
        ("Length of completions", "tokens", {"training": "length/mean", "held-out": "eval/length"}),
    ]),
    ("Attention", [
        ("Attention entropy", "share of log n, of all heads", {"mean": "attention/mean", "lowest": "attention/lowest"}),
        ("Heads", "share of all", {"collapsed": "attention/collapsed", "overloaded": "attention/overloaded"}),
    ]),
    ("Policy update", [
        ("Divergence from the policy that drew", "nats a token", {"k1": "kl/k1", "k2": "kl/k2", "k3": "kl/k3"}),
        ("Divergence from the reference", "nats a token", {"k1": "ref_kl/k1", "k2": "ref_kl/k2", "k3": "ref_kl/k3"}),
        ("Tokens treated apart", "share", {"clipped": "clip/frac", "picked": "select/frac"}),
        ("Covariance", "of log-probability and advantage, over tokens", {"mean": "cov/mean", "largest": "cov/max"}),
        ("Largest ratio", "policy / policy that drew", {"": "ratio/max"}),
    ]),
    ("Optimisation and speed", [
        ("Gradient norm", "before clipping", {"": "grad_norm"}),
        ("Learning rate", "", {"": "lr"}),
        ("Throughput", "tokens a second", {"learnt and drawn": "tokens_per_s", "drawn": "rollout_tokens_per_s"}),
        ("Time in power steps", "share of a step", {"": "sigma/time_share"}),
    ]),
]
# fmt: on
UNSEEN = {"eval/k", "time_s", "law/a", "law/b", "law/ceiling", "law/r2", "law/rmse"}  # told in words, or as a curve
SHADES = 8  # of the colour of a token


@dataclass
class Panel:
    title: str
    unit: str = ""
    svg: Markup = Markup("")
    legend: list[tuple[str, str, str, str]] = field(default_factory=list)  # name, colour, dash, marker
    notes: list[str] = field(default_factory=list)


class Pages:
    """Makes the parts of one page; counts its figures, whose ids must differ."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.colours = [COLOURS[i % len(COLOURS)] for i in range(len(runs))]
        self.lengths: dict[str, int] = {}
        for run in runs:
            for phase, steps in run.lengths.items():
                self.lengths[phase] = max(self.lengths.get(phase, 0), steps)
        self.figures = 0
        judged = [run.series[key] for run in runs for key in ("validation eval/k", "test eval/k") if key in run.series]
        self.k = "/".join(f"{k:g}" for k in sorted({k for series in judged for k in series.all()})) or "k"

    def axis(self, *series) -> StepAxis:
        """Over the phases in which any of the series has a value."""
        return StepAxis(
            {p: n for p, n in self.lengths.items() if any(p in s.phases for s in series)}, named=len(self.lengths) > 1
        )

    def drawn(self, panel: Panel, figure, notes: list[str]) -> Panel:
        self.figures += 1
        panel.svg = Markup(plots.svg(figure, self.figures, panel.title))
        panel.notes += notes
        return panel

    def curves(self, title: str, unit: str, keys: dict[str, str], width: float = plots.WIDE) -> Panel | None:
        """A figure of some keys of all runs. One run has a colour a key; several a colour a run and a dash a key."""
        several = len(self.runs) > 1
        panel, curves, tested = Panel(title, unit), [], False
        there = {
            name: key
            for name, key in keys.items()
            if any(k in run.series for run in self.runs for k in (key, f"validation {key}", f"test {key}"))
        }
        for i, (name, key) in enumerate(there.items()):
            marker = MARKERS[i % len(MARKERS)] if key.startswith("eval/") else ""
            dash = DASHES[i % len(DASHES)] if several else "-"
            own = COLOURS[i % len(COLOURS)]
            for run, colour in zip(self.runs, self.colours if several else [own]):
                for split, line, points in (("", dash, ""), ("validation", dash, marker), ("test", "", "D")):
                    if (series := run.series.get(f"{split} {key}".strip())) is not None:
                        tested |= split == "test"
                        curves.append(Curve(series, colour, line, points))
            if name and (len(there) > 1 or name != next(iter(keys))):
                panel.legend.append((name.replace("@k", "@" + self.k), "" if several else own, dash, marker))
        if not curves:
            return None
        if tested:
            panel.notes.append("◆ test data")
        axis = self.axis(*(curve.series for curve in curves))
        return self.drawn(panel, *plots.draw_curves(axis, curves, width))

    def sections(self) -> list[tuple[str, list[Panel]]]:
        known = {key for _, figures in SECTIONS for _, _, keys in figures for key in keys.values()}
        names = {name.removeprefix("validation ").removeprefix("test ") for run in self.runs for name in run.series}
        others = [(name, "", {"": name}, plots.NARROW) for name in sorted(names - known - UNSEEN)]
        found = []
        for section, figures in [*SECTIONS, ("Other figures", others)]:
            panels = [panel for figure in figures if (panel := self.curves(*figure))]
            if section == "Policy update" and (law := self.law()):
                panels.append(law)
            if panels:
                found.append((section, panels))
        return found

    def law(self) -> Panel | None:
        """Reward over entropy of all steps, and the law that the last of them fitted (csrc/rl/entropy_law.h)."""
        panel, clouds = Panel("Reward over entropy", "R = b - a exp(H); each point a step"), []
        for run, colour in zip(self.runs, self.colours):
            for phase in run.series["law/a"].phases if "law/a" in run.series else ():
                a, b, r2 = (run.series[f"law/{name}"].of(phase)[1][-1] for name in ("a", "b", "r2"))
                points = {}
                for name in ("entropy/mean", "reward/mean"):
                    points[name] = dict(zip(*run.series[name].of(phase)))
                steps = sorted(points["entropy/mean"].keys() & points["reward/mean"].keys())
                steps = steps[:: -(-len(steps) // plots.POINTS) or 1]
                clouds.append((*(np.array([points[name][step] for step in steps]) for name in points), a, b, colour))
                panel.notes.append(f"{run.label + ': ' if len(self.runs) > 1 else ''}R = {b:.3g} - {a:.3g} exp(H), ceiling "
                                   f"{b - a:.3g}, R² {r2:.2f}")  # fmt: skip
        return self.drawn(panel, *plots.draw_law(clouds)) if clouds else None

    def heat(self, run: Run) -> Panel | None:
        series = run.attention.get("normalized")
        if series is None or not series.all().size:
            return None
        looks = [(phase, step) for phase, step, _ in run.alarms]
        panel = Panel("Attention entropy of each head", "entropy / log n; layer · head")
        return self.drawn(panel, *plots.draw_heat(self.axis(series), series, looks))

    def alarms(self, run: Run) -> list[dict[str, Any]]:
        """Each text once, with its first and last step and how many looks gave it. Texts that differ in the number of heads
        alone are one, with the largest number."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for phase, step, texts in run.alarms:
            for text in texts:
                counted = re.fullmatch(r"(.*: )(\d+)( of \d+ heads .*)", text)
                kind = counted[1] + counted[3] if counted else text
                row = found.setdefault((phase, kind), {"phase": phase, "first": step, "looks": 0, "counts": set()})
                row["last"] = step
                row["looks"] += 1
                row["counts"].add(int(counted[2]) if counted else 0)
                many = "up to " if len(row["counts"]) > 1 else ""
                row["text"] = f"{counted[1]}{many}{max(row['counts'])}{counted[3]}" if counted else text
        return list(found.values())

    def bounds(self, run: Run) -> list[Panel]:
        """Means over the heads of a layer of what is proved about the entropy, where it was asked for."""
        panels = []
        for table, title, unit in (
            ("bound", "Lower bound of the entropy", "share of log n, mean of a layer's heads"),
            ("certified", "Rows certified", "share whose bound is above 0.1 log n"),
        ):
            if table in run.attention:
                tables = run.attention[table]
                lines = []
                for i, colour in enumerate(plots.depth_colours(tables.all().shape[1])):
                    means = {
                        p: (steps, [[x[i].mean()] for x in values]) for p, (steps, values) in tables.phases.items()
                    }
                    lines.append((Series(means), colour))
                panels.append(self.drawn(Panel(title, unit), *plots.draw_depths(self.axis(tables), lines, ["-"])))
        return panels

    def sigma(self, run: Run) -> list[Panel]:
        """A figure for each kind of layer: q, k, …; lines by depth."""
        kinds: dict[str, list[str]] = {}
        for layer in run.sigma:
            kinds.setdefault(layer.rsplit(".", 1)[-1], []).append(layer)
        panels = []
        for kind, layers in kinds.items():
            layers.sort(key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")])
            lines = [(run.sigma[layer], colour) for layer, colour in zip(layers, plots.depth_colours(len(layers)))]
            drawn = plots.draw_depths(self.axis(*(s for s, _ in lines)), lines, ["-", "--", "."], plots.NARROW)
            panels.append(self.drawn(Panel(kind, f"{len(layers)} layers" if kind not in layers else ""), *drawn))
        return panels

    # ---- words -----------------------------------------------------------------------------------------------------

    def summary(self, run: Run) -> dict[str, str]:
        """What a run came to. Names are columns of a table; a run leaves out what it has nothing for."""

        def last(*names: str) -> float | None:
            for name in names:
                if name in run.series:
                    for phase in reversed(run.lengths):
                        values = run.series[name].of(phase)[1]
                        if np.isfinite(values).any():
                            return float(values[np.isfinite(values)][-1])
            return None

        def judged(key: str) -> float | None:
            return last(f"test eval/{key}", f"validation eval/{key}")

        row: dict[str, str] = {"steps": " + ".join(f"{steps} {phase}" for phase, steps in run.lengths.items()) or "0"}
        if run.seconds:
            row["time"] = duration(run.seconds)
        for name, value, form in (
            ("last loss", last("loss"), "{:.3g}"),
            ("held-out loss", judged("loss"), "{:.3g}"),
            ("bits per byte", judged("bits_per_byte"), "{:.3f}"),
            ("last reward", last("reward/mean"), "{:.3f}"),
            ("greedy", judged("greedy"), "{:.1%}"),
            ("sampled", judged("sampled"), "{:.1%}"),
            ("pass@{:g}".format(judged("k") or 0), judged("pass@k"), "{:.1%}"),
            ("policy entropy", last("entropy/mean"), "{:.3f}"),
        ):
            if value is not None:
                row[name] = form.format(value)
        if "attention/lowest" in run.series:
            lowest = run.series["attention/lowest"].all()
            if np.isfinite(lowest).any():
                row["lowest attention"] = f"{np.nanmin(lowest):.3f}"
            row["alarms"] = str(len(self.alarms(run)))
        if "tokens_per_s" in run.series:
            speeds = run.series["tokens_per_s"].all()
            if np.isfinite(speeds).any():
                row["tokens/s"] = plots.short(float(f"{np.nanmedian(speeds):.3g}"))
        return row

    def samples(self, run: Run) -> list[dict[str, Any]]:
        """The newest samples, then the last ones of each earlier phase; tokens with a shade of 0 … SHADES − 1."""
        last: dict[str, dict[str, Any]] = {}
        for line in run.samples:
            last.pop(line["phase"], None)
            last[line["phase"]] = line
        shown = []
        for line in reversed(last.values()):
            samples = [s for s in line["samples"] if isinstance(s, dict)]
            all_entropies = [h for s in samples for h in s.get("entropy", []) if isinstance(h, (int, float))]
            top = max(
                float(np.percentile(all_entropies, 98)) if all_entropies else 0, 0.5
            )  # nats of the strongest shade
            texts = []
            for s in samples:
                tokens = []
                for text, h in zip(s.get("tokens", []), s.get("entropy", [])):
                    known = isinstance(h, (int, float)) and math.isfinite(h)
                    tokens.append(
                        {
                            "text": str(text).replace("\n", "↵\n").replace("\t", "→\t"),
                            "shade": min(SHADES - 1, int(SHADES * max(h, 0) / top)) if known else 0,
                            "title": f"{h:.3f} nats" if known else "not finite",
                        }
                    )
                texts.append({"prompt": str(s.get("prompt", "")), "tokens": tokens, "right": s.get("right")})
            shown.append(
                {
                    "phase": line["phase"],
                    "step": line["step"],
                    "split": line.get("eval/split", ""),
                    "texts": texts,
                    "top": top,
                }
            )
        return shown

    def differences(self) -> list[tuple[str, list[str]]]:
        """Keys of the configurations that are not the same in all runs, with the value in each."""
        keys = dict.fromkeys(key for run in self.runs for key in run.config)
        rows = [(key, [run.config.get(key, "–") for run in self.runs]) for key in keys]
        return [(key, values) for key, values in rows if len(set(values)) > 1]


def duration(seconds: float) -> str:
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole:02d} s" if minutes else f"{seconds:.3g} s"
    )


def page(runs: list[Run], refresh: float = 0) -> str:
    """The page as HTML. refresh: seconds after which a browser loads it again; 0 for never."""
    parts = Pages(runs)
    with matplotlib.rc_context(plots.SETTINGS):
        sections = parts.sections()
        details = [
            {
                "run": run,
                "colour": colour,
                "heat": parts.heat(run),
                "alarms": parts.alarms(run),
                "bounds": parts.bounds(run),
                "sigma": parts.sigma(run),
                "samples": parts.samples(run),
            }
            for run, colour in zip(runs, parts.colours)
        ]
    rows = [parts.summary(run) for run in runs]
    colours = plots.heat_colours()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isentrope.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2").render(
        runs=runs,
        several=len(runs) > 1,
        colours=parts.colours,
        refresh=refresh,
        sections=sections,
        details=details,
        names=list(dict.fromkeys(name for row in rows for name in row)),
        rows=rows,
        differences=parts.differences(),
        heat_colours=[to_hex(colours(i / 8)) for i in range(9)],
        depth_colours=plots.depth_colours(6),
        shades=SHADES,
    )
