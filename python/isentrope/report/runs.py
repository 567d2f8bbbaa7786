"""The files of a run (csrc/train/{metrics,samples,run_folder}.h), as arrays."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from isentrope import json_lines
from isentrope.report import ReportError

TABLES = (
    "normalized",
    "bound",
    "certified",
)  # of attention_entropy, [L][H] each; the last two where they were asked for


@dataclass
class Series:
    """Values over the steps of each phase, in order; what is not finite is NaN."""

    phases: dict[str, tuple[list[int], list[Any]]] = field(default_factory=lambda: defaultdict(lambda: ([], [])))

    def add(self, phase: str, step: int, value: Any) -> None:
        steps, values = self.phases[phase]
        steps.append(step)
        values.append(value)

    def of(self, phase: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [n] and values [n, …], as float64."""
        steps, values = self.phases.get(phase, ((), ()))
        return np.array(steps, float), np.array(values, float)

    def all(self) -> np.ndarray:
        return np.concatenate([np.array(values, float) for _, values in self.phases.values()])


@dataclass
class Run:
    folder: Path
    label: str = ""  # unique on the page
    lengths: dict[str, int] = field(default_factory=dict)  # last step of each phase, in the order in which they ran
    series: dict[str, Series] = field(
        default_factory=lambda: defaultdict(Series)
    )  # by name; an evaluation's by "<split> <name>"
    attention: dict[str, Series] = field(default_factory=lambda: defaultdict(Series))  # by table; values [L, H]
    alarms: list[tuple[str, int, list[str]]] = field(default_factory=list)  # phase, step, texts
    sigma: dict[str, Series] = field(
        default_factory=lambda: defaultdict(Series)
    )  # by layer; values [3]: σ, γ and the svd or NaN
    samples: list[dict[str, Any]] = field(default_factory=list)  # lines of samples.jsonl
    seconds: float = 0  # of training, over all resumptions
    config_text: str = ""
    config: dict[str, str] = field(default_factory=dict)  # by dotted path


def lines_of(file: Path, keys: dict[str, type]) -> Iterator[tuple[int, dict[str, Any]]]:
    """As isentrope.json_lines.parse(); raises ReportError."""
    with open(file, "rb") as stream:
        try:
            yield from json_lines.parse(stream, str(file), keys)
        except json_lines.LineError as error:
            raise ReportError(str(error)) from None


def flat(value: Any, path: str = "") -> dict[str, str]:
    """A configuration by dotted path, as overrides name it; list elements by their name where they have one."""
    if isinstance(value, dict):
        return {
            k: v for key, child in value.items() for k, v in flat(child, f"{path}.{key}" if path else str(key)).items()
        }
    if isinstance(value, list) and any(isinstance(child, dict) for child in value):
        names = [child.get("name", i) if isinstance(child, dict) else i for i, child in enumerate(value)]
        return {k: v for name, child in zip(names, value) for k, v in flat(child, f"{path}.{name}").items()}
    return {path: json.dumps(value, ensure_ascii=False, default=str).strip('"')}


def read_run(folder: Path) -> Run:
    """Raises ReportError with the folder, or the file and line, and what is wrong with it."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        what = "it has no metrics.jsonl" if folder.is_dir() else "there is no such folder"
        raise ReportError(f"{folder}: not the folder of a run: {what}; name what run.dir says in its configuration")
    run = Run(folder)
    clock, shape = 0.0, None
    for number, line in lines_of(metrics, {"phase": str, "step": int}):
        phase, step, split = line.pop("phase"), line.pop("step"), line.pop("eval/split", "")
        run.lengths[phase] = max(run.lengths.get(phase, 0), step)
        try:
            attention = line.pop("attention_entropy", {})
            for table in TABLES:
                if table in attention:
                    values = np.array(attention[table], np.float32)  # null is NaN
                    if values.ndim != 2 or values.shape != (shape := shape or values.shape):
                        raise ValueError(f"attention_entropy.{table} is not as the tables before")
                    run.attention[table].add(phase, step, values)
                    if table == "normalized" and values.size:
                        line["attention/mean"], line["attention/lowest"] = float(values.mean()), float(values.min())
            line.update({f"attention/{key}": attention[key] for key in ("collapsed", "overloaded") if key in attention})
            if attention.get("alarms"):
                run.alarms.append((phase, step, [str(alarm) for alarm in attention["alarms"]]))
            for layer, figures in line.pop("sigma", {}).items():
                run.sigma[layer].add(phase, step, np.array([*figures, np.nan][:3], float))
        except (AttributeError, TypeError, ValueError) as error:
            raise ReportError(f"{metrics}:{number}: not as csrc/train/metrics.h says: {error}; mend the line") from None
        for name, value in line.items():
            if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
                finite = value is not None and math.isfinite(value)
                run.series[f"{split} {name}" if split else name].add(phase, step, value if finite else math.nan)
        time_s = line.get("time_s") or clock
        run.seconds += time_s - clock if time_s >= clock else time_s  # it begins anew where the run was resumed
        clock = time_s
    samples = folder / "samples.jsonl"
    if samples.is_file():
        run.samples = [line for _, line in lines_of(samples, {"phase": str, "step": int, "samples": list})]
    config = folder / "config.yaml"
    if config.is_file():
        run.config_text = config.read_text(errors="replace")
        try:
            run.config = flat(yaml.safe_load(run.config_text) or {})
        except yaml.YAMLError as error:
            raise ReportError(f"{config}: not valid YAML: {error}; mend it or move it away") from None
    return run


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs, each with a label of its own: the folder's name, or its path where names are alike."""
    runs = [read_run(folder) for folder in folders]
    names = [run.folder.resolve().name for run in runs]
    for i, run in enumerate(runs):
        run.label = names[i] if names.count(names[i]) == 1 else str(run.folder)
        if any(run.label == other.label for other in runs[:i]):
            raise ReportError(f"{run.folder}: named twice; name each run once")
    return runs
