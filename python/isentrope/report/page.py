"""What stands on a page: figures, tables and samples, each only where the runs have something for it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from isentrope.report import plots, samples, summary
from isentrope.report.configurations import Configuration, configurations, heading, short_names, sweep
from isentrope.report.diagnosis import diagnoses
from isentrope.report.findings import Findings, findings
from isentrope.report.plots import COLOURS, Curve, Line
from isentrope.report.runs import Run, Series
from isentrope.report.terms import SECTIONS, TERMS, UNSEEN, anchor, term

DASHES, MARKERS = ["-", "--", ":", "-."], ["o", "s", "^", "v"]
DETAILED = 6  # runs with figures of single layers
LEGEND = 6  # configurations named in the head of the page; else the table tells the colours


@dataclass
class Panel:
    title: str
    unit: str = ""
    svg: Markup = Markup("")
    legend: list[tuple[str, str, str, str]] = field(default_factory=list)  # name, colour, dash, marker
    notes: list[str] = field(default_factory=list)

    def drawn(self, figure: plots.Figure, notes: list[str]) -> Panel:
        self.svg = figure.svg(self.title)
        self.notes += notes
        return self


class Pages:
    """Makes the parts of one page."""

    def __init__(self, runs: list[Run]) -> None:
        self.configurations = configurations(runs)
        self.runs = [run for c in self.configurations for run in c.runs]
        self.swept = sweep(self.configurations)
        several = len(self.configurations) > 1
        colours = (plots.depth_colours if self.swept else plots.run_colours)(len(self.configurations))
        for configuration, colour in zip(self.configurations, colours):
            configuration.colour = colour
        self.several = several
        self.lengths: dict[str, int] = {}
        for run in runs:
            for phase, steps in run.lengths.items():
                self.lengths[phase] = max(self.lengths.get(phase, 0), steps)
        changed = {m[1] for key in self.configurations[0].values if (m := re.match(r"phases\.([^.]+)\.", key))}
        everywhere = any(not key.startswith("phases.") for key in self.configurations[0].values)
        self.compared = [] if everywhere else [phase for phase in self.lengths if phase in changed]
        self.policy = any("reward/mean" in run.series for run in runs)
        self.zero: list[str] = []  # titles of figures that would show 0 alone

    def phases(self, *series: Series) -> dict[str, int]:
        """Those in which any of the series has a value."""
        return {p: n for p, n in self.lengths.items() if any(p in s.phases for s in series)}

    def name(self, run: Run) -> str:
        """Of one run beside others: its configuration, and which of its seeds."""
        configuration = next(c for c in self.configurations if run in c.runs)
        seed = run.config.get("run.seed", "?")
        if len(configuration.runs) == 1:
            return configuration.label
        alike = [other for other in configuration.runs if other.config.get("run.seed", "?") == seed]
        return f"{configuration.label}, " + (f"seed {seed}" if len(alike) == 1 else run.label)

    def curves(self, title: str, unit: str, keys: dict[str, str], width: float = plots.WIDE) -> Panel | None:
        """A figure of some keys. One configuration has a colour a key; several a colour each and a dash a key."""
        largest = max((k for run in self.runs for k in summary.pass_ks(run)), default=1)
        keys = {name: f"eval/pass@{largest}" if key == "eval/pass@k" else key for name, key in keys.items()}
        panel, found = Panel(title, unit), []
        there = {
            name: key
            for name, key in keys.items()
            if any(k in run.series for run in self.runs for k in (key, f"validation {key}", f"test {key}"))
        }
        for i, (name, key) in enumerate(there.items()):
            marker = MARKERS[i % len(MARKERS)] if key.startswith("eval/") else ""
            dash = DASHES[i % len(DASHES)] if self.several else "-"
            own = COLOURS[i % len(COLOURS)]
            for configuration in self.configurations:
                colour = configuration.colour if self.several else own
                for split, line, points in (("", dash, ""), ("validation", dash, marker), ("test", "", "D")):
                    if series := configuration.series(f"{split} {key}".strip()):
                        band = dash == "-" or not self.several
                        found.append((Curve(series, colour, line, points, band), split == "test"))
            if name and (len(there) > 1 or name != next(iter(keys))):
                panel.legend.append((name.replace("@k", f"@{largest}"), "" if self.several else own, dash, marker))
        if not found:
            return None
        if all(not np.any(s.all()) for curve, _ in found for s in curve.seeds):  # a value that is not finite is no 0
            self.zero.append(title)
            return None
        if any(tested for _, tested in found):
            panel.notes.append("◆ test data")
        drawn = [curve for curve, _ in found]
        lengths = self.phases(*(series for curve in drawn for series in curve.seeds))
        if title == "Policy entropy" and not self.policy:
            panel.title = "Token entropy"
        named = len(self.lengths) > 1
        return panel.drawn(*plots.draw_curves(lengths, drawn, width, self.compared, named, apart=title == "Loss"))

    def sections(self) -> list[tuple[str, list[Panel]]]:
        known = {key for _, figures in SECTIONS for _, _, keys in figures for key in keys.values()}
        names = {name.removeprefix("validation ").removeprefix("test ") for run in self.runs for name in run.series}
        others = [
            (name, "", {"": name}, plots.NARROW) for name in sorted(names - known) if not re.fullmatch(UNSEEN, name)
        ]
        found = [(f"Over {self.swept.name}", self.over())] if self.swept else []
        for section, figures in [*SECTIONS, ("Other figures", others)]:
            panels = [panel for figure in figures if (panel := self.curves(*figure))]
            if section == "Learning":
                panels += [panel for panel in (self.pass_at(), *self.histograms()) if panel]
            if section == "Policy update" and (law := self.law()):
                panels.append(law)
            if panels:
                found.append((section, panels))
        return found

    def over(self) -> list[Panel]:
        """What runs came to, over the key that was swept: a line for each value of the other keys."""
        panels = []
        rows = {run.label: summary.results(run, len(self.alarms(run))) for run in self.runs}
        names = dict.fromkeys(name for row in rows.values() for name in row)
        for name in [name for name in names if name not in ("time", "tokens/s", "alarms")]:
            panel, lines = Panel(name, f"over {self.swept.name}"), []
            for i, (label, points) in enumerate(self.swept.lines):
                numbers = [(x, [rows[run.label][name][0] for run in c.runs if name in rows[run.label]], c.colour)
                           for x, c in points]  # fmt: skip
                numbers = [(x, values, colour) for x, values, colour in numbers if values]
                colour = COLOURS[i % len(COLOURS)] if len(self.swept.lines) > 1 else "var(--muted)"
                if numbers:
                    own = [c for *_, c in numbers] if len(self.swept.lines) == 1 else []
                    lines.append(Line([x for x, *_ in numbers], [v for _, v, _ in numbers], colour, own))
                if len(self.swept.lines) > 1:
                    panel.legend.append((label, colour, "-", "o"))
            if any(np.any(values) for line in lines for values in line.values):
                panels.append(panel.drawn(*plots.draw_lines(lines, self.swept.logarithmic)))
        return panels

    def pass_at(self) -> Panel | None:
        """pass@k over k by the last evaluation, where there are three k or more."""
        panel, lines, splits = Panel("pass@k", "over k, by the last evaluation", Markup("")), [], set()
        for configuration in self.configurations:
            values: dict[int, list[float]] = {}
            for run in configuration.runs:
                for k in summary.pass_ks(run):
                    split, value = summary.judged(run, f"eval/pass@{k}")
                    splits.add(split)
                    values.setdefault(k, []).append(value)
            if len(values) >= 3:
                lines.append(Line(sorted(values), [values[k] for k in sorted(values)], configuration.colour))
        if not lines:
            return None
        marks = [x for x in sorted({x for line in lines for x in line.x}) if x & (x - 1) == 0]
        panel.notes.append(" and ".join(sorted(splits)) + " data")
        return panel.drawn(*plots.draw_lines(lines, True, plots.WIDE, marks))

    def histograms(self) -> list[Panel]:
        panels = []
        for i, (title, unit) in enumerate((("Lengths", "of completions, tokens"), ("Rewards", "of completions"))):
            groups, sources, counts = [], {}, 0
            for configuration in self.configurations:
                found = [samples.completions(run) for run in configuration.runs if run.rollouts or run.samples]
                values = np.concatenate([f[1 + i] for f in found]) if found else np.zeros(0)
                if len(values) >= 20 and np.ptp(values) > 0:
                    groups.append((values, configuration.colour))
                    sources |= dict.fromkeys(f[0] for f in found)
                    counts += len(values)
            if groups:
                panel = Panel(title, f"{unit}; share of completions")
                panel.notes.append(f"{counts} completions: {'; '.join(sources)}")
                panels.append(panel.drawn(*plots.draw_histogram(groups, whole=i == 0)))
        return panels

    def law(self) -> Panel | None:
        """Reward over entropy of all steps, and the law that the last of them fitted (csrc/rl/entropy_law.h)."""
        panel, clouds = Panel("Reward over entropy", "nats; each point is a step"), []
        runs = [run for run in self.runs if {"entropy/mean", "reward/mean"} <= run.series.keys()]
        for configuration in self.configurations:
            told, fitted = [], 0
            for run in (run for run in configuration.runs if run in runs):
                for phase in run.series["reward/mean"].phases:
                    of_step = [dict(zip(*run.series[name].of(phase))) for name in ("entropy/mean", "reward/mean")]
                    steps = sorted(of_step[0].keys() & of_step[1].keys())
                    steps = steps[:: -(-len(steps) * len(runs) // plots.POINTS) or 1]
                    H, R = (np.array([values[step] for step in steps]) for values in of_step)
                    there, fit = np.isfinite(H) & np.isfinite(R), None
                    if "law/a" in run.series and phase in run.series["law/a"].phases:
                        a, b, r2 = (run.series[f"law/{name}"].of(phase)[1][-1] for name in ("a", "b", "r2"))
                        fit, fitted = (a, b), fitted + 1
                        told.append(f"R = {b:.3g} - {a:.3g} exp(H), ceiling {b - a:.3g}, R² {r2:.2f}")
                    if there.any():
                        clouds.append((H[there], R[there], fit, configuration.colour))
            own = f"{configuration.label}: " if self.several else ""
            if len(told) > 1:
                ceilings = [float(t.split("ceiling ")[1].split(",")[0]) for t in told]
                told = [f"{len(told)} laws fitted, ceilings {min(ceilings):.3g} to {max(ceilings):.3g}"]
            if len(self.configurations) <= LEGEND and any(run in runs for run in configuration.runs):
                none = "no law fitted: the method holds the entropy up, or too few steps"
                panel.notes.append(own + (told[0] if told else none))
        return panel.drawn(*plots.draw_law(clouds)) if clouds else None

    def heat(self, run: Run) -> Panel | None:
        series = run.attention.get("normalized")
        if series is None or not series.all().size:
            return None
        shown = [(phase, step) for phase, step, _ in run.alarms]
        panel = Panel("Attention entropy of each head", "entropy / log n; layer · head")
        if len(self.runs) > 1:
            panel.title, panel.unit = self.name(run), ""
        width = 1300 if len(self.runs) == 1 else 520 if len(self.runs) <= 4 else plots.WIDE
        cells = plots.CELLS // len(self.runs)
        return panel.drawn(*plots.draw_heat(self.phases(series), series, shown, width, cells))

    def alarms(self, run: Run) -> list[dict[str, Any]]:
        """Each text once, with its first and last step and how many measurements gave it. Texts that differ in the number of
        heads alone are one, with the largest number."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for phase, step, texts in run.alarms:
            for text in texts:
                counted = re.fullmatch(r"(.*: )(\d+)( of \d+ heads .*)", text)
                kind = counted[1] + counted[3] if counted else text
                row = found.setdefault((phase, kind), {"phase": phase, "first": step, "times": 0, "counts": set()})
                row["last"] = step
                row["times"] += 1
                row["counts"].add(int(counted[2]) if counted else 0)
                many = "up to " if len(row["counts"]) > 1 else ""
                row["text"] = f"{counted[1]}{many}{max(row['counts'])}{counted[3]}" if counted else text
        return list(found.values())

    def findings(self, run: Run, figures: bool) -> tuple[Findings, list[Panel]]:
        """What ails the run, and where asked for a figure of each finding."""
        made = findings(run, figures)
        panels = []
        for found in made.found:
            panel = Panel(found.rule, f"{found.phase}, step{'s' if ' to ' in found.steps else ''} {found.steps}")
            if found.drawn:
                figure, notes = found.drawn
                panel = panel.drawn(figure, [found.shown, *notes])
            panels.append(panel)
        return made, panels

    def bounds(self, run: Run) -> list[Panel]:
        """Means over the heads of a layer of what is proved about the entropy, where it was asked for."""
        panels = []
        for table, title, unit in (
            ("bound", "Lower bound of the entropy", "over log n, mean of a layer's heads"),
            ("certified", "Rows certified", "share whose bound is above 0.1 log n"),
        ):
            if table in run.attention:
                tables = run.attention[table]
                layers = tables.all().shape[1]
                lines = [
                    Curve([Series({p: (s, x[:, i].mean(1)) for p, (s, x) in tables.phases.items()})], colour)
                    for i, colour in enumerate(plots.depth_colours(layers))
                ]
                drawn = plots.draw_curves(self.phases(tables), lines, plots.NARROW, named=len(self.lengths) > 1)
                panels.append(Panel(title, unit).drawn(*drawn))
        return panels

    def sigma(self, run: Run) -> list[Panel]:
        """A figure for each kind of layer: q, k, …; lines by depth."""
        kinds: dict[str, list[str]] = {}
        for layer in run.sigma:
            kinds.setdefault(layer.rsplit(".", 1)[-1], []).append(layer)
        panels = []
        for kind, layers in kinds.items():
            layers.sort(key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")])
            lines = []
            for layer, colour in zip(layers, plots.depth_colours(len(layers))):
                for i, (dash, marker) in enumerate((("-", ""), ("--", ""), ("", "o"))):
                    phases = {p: (steps, x[:, i]) for p, (steps, x) in run.sigma[layer].phases.items()}
                    if i == 2:  # the svd: some of the values
                        phases = {p: (s[:: -(-len(s) // 24)], x[:: -(-len(s) // 24)]) for p, (s, x) in phases.items()}
                        phases = {p: (s[np.isfinite(x)], x[np.isfinite(x)]) for p, (s, x) in phases.items()}
                    if any(len(s) for s, _ in phases.values()):
                        lines.append(Curve([Series(phases)], colour, dash, marker))
            lengths = self.phases(*run.sigma.values())
            drawn = plots.draw_curves(lengths, lines, plots.NARROW, named=len(self.lengths) > 1)
            panels.append(Panel(kind, f"{len(layers)} layers" if kind not in layers else "").drawn(*drawn))
        return panels


def text_of(name: str) -> str:
    return (Path(__file__).parent / name).read_text()


def page(runs: list[Run], refresh: float = 0) -> str:
    """The page as HTML. refresh: seconds after which a browser loads it again; 0 for never."""
    parts = Pages(runs)
    sections = parts.sections()
    shown = {c.runs[0].label for c in parts.configurations[:DETAILED]} if parts.several else {parts.runs[0].label}
    texts = {c.runs[0].label for c in parts.configurations}  # samples and rollouts of one seed of each
    details = []
    for configuration in parts.configurations:
        for run in configuration.runs:
            ails, panels = parts.findings(run, run.label in shown)
            rows, tokens = samples.ROWS // len(texts), samples.TOKENS // len(texts)
            details.append(
                {
                    "run": run,
                    "name": parts.name(run),
                    "colour": configuration.colour,
                    "heat": parts.heat(run),
                    "alarms": parts.alarms(run),
                    "ails": ails,
                    "found": list(zip(ails.found, panels)),
                    "bounds": parts.bounds(run) if run.label in shown else [],
                    "sigma": parts.sigma(run) if run.label in shown else [],
                    "diagnosed": diagnoses(run.folder / "diagnose") if run.label in shown else [],
                    "samples": samples.sample_tables(run, tokens) if run.label in texts else [],
                    "rollouts": samples.rollout_table(run, rows, samples.SPANS // len(texts)) if run.label in texts else None,
                }
            )
    counts = {detail["run"].label: len(detail["alarms"]) for detail in details}
    names, rows = summary.table(parts.configurations, counts)
    each = summary.table([Configuration([run]) for run in parts.runs], counts)
    script = text_of("search.js").strip() if any(detail["rollouts"] for detail in details) else ""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isentrope.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    used: dict[str, str] = {}  # terms that the page has

    @jinja2.pass_context  # so that it runs where the page has the word, and not for each constant of the template
    def explained(_context, name: str) -> Markup:
        """The word, with a link to what it means."""
        key = term(name)
        if key is None:
            return Markup("{}").format(name)
        used[key] = TERMS[key]
        return Markup('<a class="term" href="#{}" title="{}">{}</a>').format(anchor(key), TERMS[key], name)

    environment.filters["term"] = explained
    said = [*names, *(text for _, panels in sections for panel in panels for text in (panel.unit, *panel.notes))]
    said += [value for row in rows for value in row.values()]
    for word in ("nats", "band", "±", "test", "validation", "final"):
        if any(word in text for text in said):
            explained(None, word)
    return environment.get_template("page.html.j2").render(
        runs=parts.runs,
        several=parts.several,
        configurations=parts.configurations,
        heading=heading(parts.configurations),
        legend=parts.several and len(parts.configurations) <= LEGEND,
        refresh=refresh,
        sections=sections,
        zero=parts.zero,
        details=details,
        more_layers=len(parts.runs) > len(shown),
        names=names,
        rows=rows,
        each=each if any(len(c.runs) > 1 for c in parts.configurations) else None,
        keys={name: key for key, name in short_names(parts.configurations[0].values).items()},
        heat_colours=plots.ramp(plots.VIRIDIS, 9),
        depth_colours=plots.depth_colours(6),
        shades=samples.SHADES,
        style=Markup(text_of("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        used=used,
        anchor=anchor,
    )
