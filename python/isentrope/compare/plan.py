"""Which runs a comparison consists of: configurations, the values of a sweep, and the starts that they share."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from isentrope.jobs import PROGRAM, CommandError, Job
from isentrope.report.configurations import short_names
from isentrope.report.runs import flat

OWN = {"run.dir": "--dir", "run.seed": "--seeds"}  # keys that a comparison sets itself, by the option that does
LISTED = 5  # keys in which a folder differs, in a message


@dataclass(eq=False)
class Configuration:
    """One row of the table."""

    file: str
    label: str
    folder: str  # below --dir
    overrides: tuple[str, ...]
    over: dict[str, str]  # of each key of the sweep the value, as it was given
    resolved: dict[str, Any] = field(repr=False)
    start: str = ""  # names the start that it shares; "" where it has one phase
    threads: tuple[str, ...] = ()  # the override of run.threads, where runs go side by side
    rewards: tuple[str, ...] = ()  # words of `isentrope train` for functions in Python

    @property
    def phases(self) -> dict[str, int]:
        return {phase["name"]: phase["steps"] for phase in self.resolved["phases"]}

    def folder_name(self, seed: int) -> str:
        return f"{self.folder}/seed{seed}"

    def words(self, seed: int, *more: str) -> tuple[str, ...]:
        return self.file, *self.threads, *self.overrides, f"run.seed={seed}", *more, *self.rewards

    def start_job(self, out: Path, seed: int) -> Job:
        """The phases before the last, for all configurations of that start. Those phases need the last one beside them, for
        the prompts that they are measured on, so it is cut to one step."""
        last = list(self.phases)[-1]
        cut = (f"phases.{last}.steps=1", f"phases.{last}.schedule.warmup_steps=0")
        return Job(out / "start" / self.start / f"seed{seed}", self.words(seed, *cut), self.phases | {last: 1})

    def job(self, out: Path, seed: int) -> Job:
        folder, phases = out / self.folder_name(seed), self.phases
        if not self.start:
            return Job(folder, self.words(seed), phases)
        *before, last = phases
        checkpoint = end_of(out / "start" / self.start / f"seed{seed}", before[-1])
        return Job(folder, self.words(seed, f"run.start={checkpoint}"), {last: phases[last]})


def end_of(run: Path, phase: str) -> Path:
    """The last whole checkpoint of a phase; the place of one where there is none."""
    numbers = [path.parent.name.removeprefix(f"{phase}-") for path in run.glob(f"checkpoints/{phase}-*/DONE")]
    last = max((number for number in numbers if number.isdecimal()), key=int, default="000000")
    return run / "checkpoints" / f"{phase}-{last}"


def start_key(config: dict[str, Any]) -> str:
    """Names all that decides how the last phase starts; "" where there is no phase before it. Earlier phases are measured, and
    may be stopped, by the data and rewards of the last one and the length of its answers, so those count too; how the last
    phase draws them, what it minimises, and for how long, does not. Of run, the weights to start from alone."""
    *before, last = config["phases"]
    if not before:
        return ""
    later = {key: last.get(key) for key in ("name", "data", "reward")}
    if isinstance(later["reward"], list):  # what is done to rewards behind the scores is how the last phase learns
        later["reward"] = [entry for entry in later["reward"] if entry.get("kind") not in ("overlong", "filter_groups", "ares", "pear", "ceeh", "kl", "op")]
    later["max_new_tokens"] = (last.get("rollout") or {}).get("max_new_tokens")
    fixed = {key: value for key, value in config.items() if key not in ("run", "metrics")}
    fixed["phases"] = [*before, later]
    fixed["start"] = (config.get("run") or {}).get("start") or ""
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]


def sweep(option: str) -> tuple[str, list[str]]:
    """("key", ["a", "[b, c]"]) of "key=a,[b, c]": the values are the elements of a YAML list, each as it was written."""
    key, equals, text = option.partition("=")
    if not re.fullmatch(r"\w+(\.\w+)*", key) or not equals:
        raise CommandError(f"--over {option}: wanted KEY=VALUE,VALUE,… such as phases.sft.optimizer.lr=1e-3,3e-3")
    try:
        node = yaml.compose(f"[{text}]", Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise CommandError(f"--over {option}: the values are no YAML list: {error}") from None
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(text) + 2:
        raise CommandError(f"--over {option}: the values are no YAML list; quote a value that holds a bracket")
    values = [f"[{text}]"[value.start_mark.index : value.end_mark.index].strip() for value in node.value]
    if not values:
        raise CommandError(f"--over {option}: there are no values; wanted KEY=VALUE,VALUE,…")
    for value in values:
        if values.count(value) > 1:
            raise CommandError(f"--over {option}: the value {value} is given twice")
    return key, values


def rows_of(files: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The rows of the files of --rows: {name: overrides} of "NAME: {KEY.PATH: VALUE, …}", in their order."""
    found = dict[str, tuple[str, ...]]()
    for file in files:
        try:
            rows = yaml.safe_load(Path(file).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise CommandError(f"--rows {file}: cannot be read as YAML: {error}") from None
        if not isinstance(rows, dict) or not rows or not all(isinstance(keys, dict) for keys in rows.values()):
            raise CommandError(f"--rows {file}: wanted NAME: {{KEY.PATH: VALUE, …}} for each row, {{}} for one that changes nothing")
        for name, keys in rows.items():
            if str(name) in found:
                raise CommandError(f"--rows: the row {name} is there twice")
            found[str(name)] = tuple(f"{key}={json.dumps(value)}" for key, value in keys.items())
    return found


def in_a_name(value: str) -> str:
    """A value as a part of a folder's name; one that has to be changed for it is told apart by a digest."""
    clean = re.sub(r"[^\w.+-]+", "_", value).strip("_")
    return clean if clean == value else f"{clean}-{hashlib.sha256(value.encode()).hexdigest()[:6]}"


def resolved(file: str, overrides: Iterable[str], what: str) -> dict[str, Any]:
    """The whole configuration, as the program reads it. Raises CommandError with what the program says against it."""
    try:
        told = subprocess.run([PROGRAM, "config", file, *overrides], capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise CommandError(f"{PROGRAM} cannot be started: {error.strerror}") from None
    if told.returncode:
        lines = [line.removeprefix("isentrope: ") for line in told.stderr.splitlines() if "isentrope: warning" not in line]
        raise CommandError(f"{what}: " + "\n".join(lines))
    config: dict[str, Any] = yaml.safe_load(told.stdout)
    return config


def resolved_all(given: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The configuration of each (file, override, …), read as many at a time as there are cores: the program takes half a second
    to start. Raises CommandError of the first that is refused."""
    different = list(dict.fromkeys(given))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        configs = pool.map(lambda words: resolved(words[0], words[1:], " ".join(words)), different)
        return dict(zip(different, configs, strict=True))


def configurations(files: Sequence[str], overrides: Sequence[str], over: Sequence[str], threads: int,
                   rows: dict[str, tuple[str, ...]] | None = None) -> list[Configuration]:  # fmt: skip
    """The rows of the table in the order in which they were given, values of the last key fastest. threads: of each run; 0 for
    what the configuration says. rows: overrides by name, of each of which a file has a row. Every one has been read by the program.

    Raises:
        CommandError: a file, key or value that is refused, or two configurations that would share a folder.
    """
    swept = dict[str, list[str]]()
    for option in over:
        key, values = sweep(option)
        if key in swept:
            raise CommandError(f"--over {key} is given twice; name all its values in one")
        swept[key] = values
    given = [word.partition("=")[0] for word in overrides]
    of_rows = [word.partition("=")[0] for words in (rows or {}).values() for word in words]
    for key in [*given, *swept, *of_rows]:
        if key in OWN:
            raise CommandError(f"{key} is set for each run of a comparison; {OWN[key]} says how")
        if key in given and key in swept:
            raise CommandError(f"{key} is given as an override and with --over; leave one out")
    own_threads = (f"run.threads={threads}",) if threads and "run.threads" not in [*given, *swept] else ()
    names = short_names(swept)
    planned: list[tuple[str, str, str, tuple[str, ...], dict[str, str]]] = []
    for file in files:
        for name, *chosen in itertools.product(rows or [""], *swept.values()):
            cell = dict(zip(swept, chosen))
            words = (*(rows[name] if rows else ()), *overrides, *(f"{key}={value}" for key, value in cell.items()))
            parts = [*([name] if rows else []), *(f"{names[key]}={value}" for key, value in cell.items())]
            label = ", ".join(parts if parts and len(files) == 1 else [Path(file).stem, *parts])
            folder = ",".join([Path(file).stem, *([in_a_name(name)] if rows else []),
                               *(f"{names[key]}={in_a_name(value)}" for key, value in cell.items())])  # fmt: skip
            planned.append((file, label, folder, words, cell))
    read = resolved_all((file, *words) for file, _, _, words, _ in planned)
    found = [Configuration(*row, read[row[0], *row[3]], start_key(read[row[0], *row[3]]), own_threads) for row in planned]
    for one, other in itertools.combinations(found, 2):
        if one.folder == other.folder:
            raise CommandError(f"{one.file} and {other.file} have one name, and would share the folder {one.folder}; rename one")
    return found


def check_folder(folder: Path, config: dict[str, Any], seed: int, start: bool) -> None:
    """Raises CommandError where the folder holds a run of another configuration. What a run computes does not depend on its
    number of threads; nor, with start, on where the start lies that it was given."""
    file = folder / "config.yaml"
    if not file.exists():
        return
    try:
        was = flat(yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {})
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CommandError(f"{file}: cannot be read as YAML: {error}; move the folder away") from None
    now = flat(config) | {"run.seed": str(seed)}
    own = {"run.dir", "run.threads", *(["run.start"] if start else [])}
    changed = [key for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key) and key not in own]
    if changed:
        lines = [f"\n  {key}: {was.get(key, 'not there')} → {now.get(key, 'not there')}" for key in changed[:LISTED]]
        more = f"\n  and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
        raise CommandError(f"{folder} holds a run of another configuration (there → now):{''.join(lines)}{more}\n"
                           "Name another folder with --dir, or move this one away")  # fmt: skip


def together(found: Sequence[Configuration]) -> list[list[Configuration]]:
    """Those of each table: configurations of one start, of one file, or of one phase each."""
    tables: list[list[Configuration]] = []
    for one in found:
        joined = [t for t in tables if any(one.start == other.start or one.file == other.file for other in t)]
        tables = [t for t in tables if t not in joined] + [[*itertools.chain(*joined), one]]
    order = {id(one): i for i, one in enumerate(found)}
    tables = [sorted(table, key=lambda one: order[id(one)]) for table in tables]
    return sorted(tables, key=lambda table: order[id(table[0])])
