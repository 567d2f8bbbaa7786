"""The files of a run (csrc/train/{metrics,samples,run_folder}.h), as arrays."""

from __future__ import annotations

import json
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


class Series:
    """Values over the steps of each phase, in order; what is not finite is NaN."""

    def __init__(self, phases: dict[str, tuple[Any, Any]] | None = None) -> None:
        self.phases: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # steps [n], values [n, …]
        for phase, (steps, values) in (phases or {}).items():
            values = np.array(values, float)  # None is NaN
            values[~np.isfinite(values)] = np.nan
            self.phases[phase] = np.array(steps, float), values

    def of(self, phase: str) -> tuple[np.ndarray, np.ndarray]:
        return self.phases.get(phase, (np.zeros(0), np.zeros(0)))

    def all(self) -> np.ndarray:
        return np.concatenate([values for _, values in self.phases.values()])


@dataclass
class Run:
    folder: Path
    label: str = ""  # unique on the page
    lengths: dict[str, int] = field(default_factory=dict)  # last step of each phase, in the order in which they ran
    series: dict[str, Series] = field(default_factory=dict)  # by name; an evaluation's by "<split> <name>"
    attention: dict[str, Series] = field(default_factory=dict)  # by table; values [n, L, H]
    alarms: list[tuple[str, int, list[str]]] = field(default_factory=list)  # phase, step, texts
    sigma: dict[str, Series] = field(default_factory=dict)  # by layer; values [n, 3]: σ, γ and the svd or NaN
    samples: list[dict[str, Any]] = field(default_factory=list)  # lines of samples.jsonl
    rollouts: list[dict[str, Any]] = field(default_factory=list)  # completions, of all that were saved or evenly chosen
    rollouts_whole: bool = True  # all that were saved
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


def parsed(file: Path, place: str, line: bytes, keys: dict[str, type]) -> dict[str, Any]:
    """As isentrope.json_lines.parse_line(); raises ReportError."""
    try:
        return json_lines.parse_line(line, f"{file}:{place}", keys)
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


def read_attention(attention: dict[str, Any], shape: tuple[int, ...] | None) -> dict[str, np.ndarray]:
    """The tables [L, H]. Raises ValueError where one is not as those before, whose shape is given."""
    tables = {}
    for table in TABLES:
        if table in attention:
            values = np.array(attention[table], float)  # null is NaN
            if values.ndim != 2 or values.shape != (shape := shape or values.shape):
                raise ValueError(f"attention_entropy.{table} is not as the tables before")
            tables[table] = values
    return tables


def read_metrics(run: Run) -> None:
    """metrics.jsonl into the run's series, tables and alarms."""
    file = run.folder / "metrics.jsonl"
    found: dict[str, dict[str, dict[str, tuple[list[int], list[Any]]]]] = {
        kind: defaultdict(lambda: defaultdict(lambda: ([], []))) for kind in ("series", "attention", "sigma")
    }
    clock, shape = 0.0, None
    for number, line in lines_of(file, {"phase": str, "step": int}):
        phase, step, split = line.pop("phase"), line.pop("step"), line.pop("eval/split", "")
        line.pop("global_step", None)
        run.lengths[phase] = max(run.lengths.get(phase, 0), step)

        def add(kind: str, name: str, value: Any) -> None:
            steps, values = found[kind][name][phase]  # noqa: B023  called within this turn alone
            steps.append(step)  # noqa: B023
            values.append(value)

        try:
            if "attention_entropy" in line:
                attention = line.pop("attention_entropy")
                tables = read_attention(attention, shape)
                for table, values in tables.items():
                    shape = values.shape
                    add("attention", table, values)
                if (values := tables.get("normalized")) is not None and values.size:
                    line["attention/mean"], line["attention/lowest"] = float(values.mean()), float(values.min())
                for key in ("collapsed", "overloaded"):
                    if key in attention:
                        line[f"attention/{key}"] = attention[key]
                if attention.get("alarms"):
                    run.alarms.append((phase, step, [str(alarm) for alarm in attention["alarms"]]))
            if "mixer_state" in line:
                state = line.pop("mixer_state")
                for name in ("rank", "normalized"):
                    heads = [value for layer in state[name] if layer is not None for value in layer if value is not None]
                    if heads:
                        line[f"mixer_state/{name}"] = float(np.mean(heads))
            if warnings := line.pop("warnings", None):
                run.alarms.append((phase, step, [str(warning) for warning in warnings]))
            if "sigma" in line:
                for layer, figures in line.pop("sigma").items():
                    add("sigma", layer, np.array([*figures, np.nan][:3], float))
        except (AttributeError, TypeError, ValueError) as error:
            raise ReportError(f"{file}:{number}: not as docs/metrics.md says: {error}; mend the line") from None
        for name, value in line.items():
            if value is None or type(value) in (float, int):
                add("series", f"{split} {name}" if split else name, value)
        time_s = line.get("time_s") or clock
        run.seconds += time_s - clock if time_s >= clock else time_s  # it begins anew where the run was resumed
        clock = time_s
    for kind, names in found.items():
        setattr(run, kind, {name: Series(phases) for name, phases in names.items()})


def read_run(folder: Path) -> Run:
    """Raises ReportError with the folder, or the file and line, and what is wrong with it."""
    if not (folder / "metrics.jsonl").is_file():
        what = "it has no metrics.jsonl" if folder.is_dir() else "there is no such folder"
        raise ReportError(f"{folder}: not the folder of a run: {what}; name what run.dir says in its configuration")
    run = Run(folder)
    read_metrics(run)
    samples = folder / "samples.jsonl"
    if samples.is_file():
        run.samples = [line for _, line in lines_of(samples, {"phase": str, "step": int, "samples": list})]
    config = folder / "config.yaml"
    if config.is_file():
        run.config_text = config.read_text(errors="replace")
        try:
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            run.config = flat(yaml.load(run.config_text, loader) or {})
        except yaml.YAMLError as error:
            raise ReportError(f"{config}: not valid YAML: {error}; mend it or move it away") from None
    return run


def read_rollouts(run: Run, most: int) -> None:
    """The completions in rollouts/*.jsonl: all where they are at most `most` bytes, else parts of it, evenly over them."""
    files = sorted((run.folder / "rollouts").glob("*.jsonl"))
    sizes = [file.stat().st_size for file in files]
    parts = max(1, min(16, most // 65536))
    run.rollouts_whole = sum(sizes) <= most
    starts = [0] if run.rollouts_whole else np.linspace(0, sum(sizes) - most // parts, parts).astype(int)
    wanted = sum(sizes) if run.rollouts_whole else most // parts
    begin = 0
    for file, size in zip(files, sizes):
        with open(file, "rb") as stream:
            for start in starts:
                first, last = max(start - begin, 0), min(start + wanted - begin, size)
                if first >= last:
                    continue
                stream.seek(max(first - 1, 0))
                if first:
                    stream.readline()  # the rest of a line that begins before
                while (place := stream.tell()) < last and (line := stream.readline()).endswith(b"\n"):
                    run.rollouts.append(
                        parsed(file, f"byte {place}", line, {"step": int, "prompt": str, "completion": str})
                    )
        begin += size


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs, each with a label of its own: the folder's name, or its path where names are alike."""
    runs = [read_run(folder) for folder in folders]
    names = [run.folder.resolve().name for run in runs]
    for i, run in enumerate(runs):
        run.label = names[i] if names.count(names[i]) == 1 else str(run.folder)
        if any(run.label == other.label for other in runs[:i]):
            raise ReportError(f"{run.folder}: named twice; name each run once")
        read_rollouts(run, min(8_000_000, 32_000_000 // len(runs)))
    return runs
