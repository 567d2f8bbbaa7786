"""``isentrope diagnose FOLDER --measure NAME``: what a model is like inside.

measure.py says what a measure is, measures/ has one a file, registry.py finds them; model.py opens folders and runs the model, once for all
measures; data.py reads texts; writing.py writes what was found. In Python::

    from isentrope import diagnose

    results = diagnose.measured(diagnose.opened(folder), ["representation", "token-entropy"], diagnose.Data.of(texts))
    results["representation"].table.column("rankme")
"""

from __future__ import annotations

import argparse
import difflib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isentrope.diagnose.data import Data
    from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table
    from isentrope.diagnose.model import Batch, Model, opened

DESCRIPTION = """\
Measure a model: any folder that transformers opens, a checkpoint, or a run for its newest. Measures that are named together share one pass
over the data. Of each NAME the folder of --output gets NAME.json, NAME.csv and a figure, and all stand on one page, diagnose.html; of a
run they are on the page of `isentrope report` too. What each measure tells: --list, and docs/diagnose.md.
"""

EPILOG = """\
Behind the folders stand key=value, options of the measures; NAME.key=value where several that are named have the key. --list NAME prints them.
"""

PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "scipy": "scipy", "transformers": "transformers", "jinja2": "jinja2", "markupsafe": "jinja2", "numpy": "numpy", "peft": "peft"}

_PLACES = {"Batch": "model", "Data": "data", "DiagnoseError": "measure", "Measure": "measure", "Model": "model", "Option": "measure", "Result": "measure", "Table": "measure", "opened": "model"}  # fmt: skip


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:  # torch and transformers are loaded by those who measure
        if name in _PLACES:
            import importlib

            return getattr(importlib.import_module(f"isentrope.diagnose.{_PLACES[name]}"), name)
        raise AttributeError(f"module 'isentrope.diagnose' has no attribute {name!r}")


def measured(
    model: Model,
    names: Sequence[str],
    data: Data | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    max_length: int = 128,
    batch_size: int = 32,
    samples: int | None = None,
    say: Callable[..., None] | None = None,
    failed: dict[str, DiagnoseError] | None = None,
) -> dict[str, Result]:
    """Measures a model, with one pass over the data for all measures that need one.

    Args:
        names: of the measures.
        options: {measure: {key: value}}.
        max_length: tokens of a sequence, at most.
        batch_size: sequences of a forward pass.
        samples: sequences that are taken of plain text, evenly over it; None for all.
        say: called with (what, done, of) as work goes on.
        failed: gets the error of a measure that came to nothing behind the pass, while the others go on; None: the first is raised.

    Raises:
        DiagnoseError: a name that there is not, data without what a measure needs, a model without it.
    """
    from isentrope.diagnose.measure import DiagnoseError, finished
    from isentrope.diagnose.model import over
    from isentrope.diagnose.registry import named

    kinds = {name: named(name) for name in names}
    ids: list[list[int]] = []
    if data is not None and any(kind.NEEDS for kind in kinds.values()):
        ids = data.tokens(model, max_length, samples)
    running = {name: kind(model, data, (options or {}).get(name), say) for name, kind in kinds.items()}
    passing = [one for one in running.values() if one.NEEDS]
    if passing:
        needs = frozenset().union(*(one.NEEDS for one in passing))
        for batch in over(model, ids, needs, batch_size, say):
            for one in passing:
                one.update(batch)
    found = {}
    for name, one in running.items():
        try:
            found[name] = finished(one)
        except DiagnoseError as error:
            if failed is None:
                raise
            failed[name] = error
    return found


def progress(stream: Any = None) -> Callable[..., None]:
    """say for measured(): one line that is written over on a terminal, else a line every half minute."""
    stream = stream or sys.stderr
    last = [time.monotonic(), 0.0]

    def say(what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if stream.isatty():
            if done < of and now - last[0] < 0.1:
                return
            stream.write(f"\r\033[K{what}: {done} of {of}" if done < of else "\r\033[K")
        elif now - last[0] < 30 or done >= of:
            return
        else:
            stream.write(f"{what}: {done} of {of}\n")
        last[0] = now
        stream.flush()

    return say


def options_of(words: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """key=value and NAME.key=value → {measure: {key: value}}; raises DiagnoseError."""
    from isentrope.diagnose.measure import DiagnoseError
    from isentrope.diagnose.registry import named

    known = {name: named(name).OPTIONS for name in names}
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for word in words:
        path, _, value = word.partition("=")
        measure, _, key = path.rpartition(".")
        if measure and measure not in known:
            raise DiagnoseError(f"{word}: {measure!r} is no measure that is taken here; --measure names {', '.join(names)}")
        owners = [name for name in ([measure] if measure else names) if key in known[name]]
        if not owners:
            every = sorted({key for name in names for key in known[name]})
            near = difflib.get_close_matches(key, every, 1, 0.4)
            raise DiagnoseError(f"{word}: {', '.join(names)} has no option {key!r}; " + (f"did you mean {near[0]}? It" if near else "it") + f" has {', '.join(every) or 'none'}")
        if len(owners) > 1:
            raise DiagnoseError(f"{word}: {' and '.join(owners)} have {key!r}; say which: {owners[0]}.{word}")
        found[owners[0]][key] = known[owners[0]][key].parse(path, value)
    return found


def listed(names: Sequence[str]) -> str:
    """A line each; of one that is named its options too."""
    from isentrope.diagnose.registry import named
    from isentrope.diagnose.registry import names as every

    kinds = [named(name) for name in names or every()]
    wide = max(len(kind.NAME) for kind in kinds)
    lines = [f"{kind.NAME:{wide}}  {kind.WHAT}" for kind in kinds]
    if names:
        for kind in kinds:
            lines += ["", f"{kind.NAME}: {kind.SOURCE}"]
            lines += [f"  {key}={'' if option.default is None else str(option.default).lower() if isinstance(option.default, bool) else option.default}  {option.meaning}"
                      for key, option in kind.OPTIONS.items()]  # fmt: skip
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="isentrope diagnose", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    made.add_argument("words", metavar="FOLDER | KEY=VALUE", nargs="*", help="folders of models, checkpoints or runs; then options of the measures")
    made.add_argument("--measure", metavar="NAME[,NAME…]", help="what to measure")
    made.add_argument("--data", metavar="FILE", type=Path, help='.jsonl of {"text": …, "label": …}, or plain text')
    made.add_argument("--output", "-o", metavar="DIR", type=Path, help="folder of the results (default: diagnose in the first FOLDER)")
    made.add_argument("--checkpoints", action="store_true", help="of a run all its checkpoints, in the order of steps, in place of the newest")
    made.add_argument("--samples", metavar="N", type=int, default=2000, help="texts that are taken, evenly over the file (default: 2000)")
    made.add_argument("--max-length", metavar="N", type=int, default=128, help="tokens of a sequence at most (default: 128)")
    made.add_argument("--batch-size", metavar="N", type=int, default=32, help="sequences of a forward pass (default: 32)")
    made.add_argument("--device", default="cpu", help="cpu, or a device of torch (default: cpu)")
    made.add_argument("--format", choices=["png", "svg", "both"], default="png", help="of figures (default: png)")
    made.add_argument("--list", action="store_true", help="print the measures, a line each; of those that are named their options too")
    return made


def folders_of(words: Sequence[str], every: bool) -> list[Path]:
    """With --checkpoints a run stands for all its checkpoints."""
    from isentrope.diagnose.measure import DiagnoseError
    from isentrope.diagnose.model import checkpoints

    found: list[Path] = []
    for folder in map(Path, words):
        own = checkpoints(folder) if every else []
        if every and not own and not (folder / "config.json").exists():
            raise DiagnoseError(f"{folder}: has no whole checkpoint; wanted a run's folder")
        found += own or [folder]
    return found


def labels_of(folders: Sequence[Path]) -> list[str]:
    """A short name of each folder, each once: as many of its last parts as it takes."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        found = ["/".join(own[-count:]) for own in parts]
        if len(set(found)) == len(found):
            return found
    return [f"{name} ({number})" for number, name in enumerate(("/".join(own[-1:]) for own in parts), 1)]


def ran(options: argparse.Namespace, refuse: Callable[[str], None]) -> int:
    """What the command does. refuse: ends it for a wrong command line."""
    words = [word for word in options.words if "=" not in word or Path(word).exists()]
    settings = [word for word in options.words if word not in words]
    names = list(dict.fromkeys((options.measure or "").split(","))) if options.measure else []
    if options.list:
        print(listed([*names, *words]))
        return 0
    for value, what in ((options.samples, "--samples"), (options.max_length, "--max-length"), (options.batch_size, "--batch-size")):
        if value < 1:
            refuse(f"{what} {value}; wanted 1 or more")
    if not words:
        refuse("no FOLDER was given")
    if not names:
        refuse("no measure was given: --measure NAME; --list prints them")

    from isentrope.diagnose import model as models
    from isentrope.diagnose.data import Data
    from isentrope.diagnose.registry import named
    from isentrope.diagnose.writing import write

    kinds = {name: named(name) for name in names}
    own = options_of(settings, names)
    data = Data.read(options.data, options.samples) if options.data else None
    folders = folders_of(words, options.checkpoints)
    say = progress()
    found: dict[str, list[tuple[str, Result]]] = {name: [] for name in names}
    errors: list[str] = []
    for label, folder in zip(labels_of(folders), folders):
        model = models.opened(folder, options.device)
        model.name = label
        failed: dict[str, DiagnoseError] = {}
        results = measured(model, names, data, own, max_length=options.max_length, batch_size=options.batch_size, samples=options.samples, say=say, failed=failed)
        errors += [str(error) if len(folders) == 1 else f"{label}: {error}" for error in failed.values()]
        for name, result in results.items():
            found[name].append((label, result))
    output = options.output or Path(words[0]) / "diagnose"
    about = {"models": [str(folder) for folder in folders], "data": str(options.data) if options.data else None,
             "sequences": len(data) if data is not None else None, "max_length": options.max_length}  # fmt: skip
    for name, of in found.items():
        if not of:
            continue
        result = of[0][1] if len(of) == 1 else kinds[name].over(of)
        settings_of = {key: own[name].get(key, option.default) for key, option in kinds[name].OPTIONS.items()}
        for line in write(output, kinds[name], result, settings_of, about, options.format):
            print(line)
    from isentrope.diagnose.writing import write_page

    if any(found.values()):
        print(f"page: {write_page(output)}")
    for error in errors:
        print(f"isentrope diagnose: {error}", file=sys.stderr)
    return 1 if errors else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 after an error, 2 after a wrong command line, 130 after Ctrl-C."""
    from isentrope.diagnose.measure import DiagnoseError

    made = parser()
    try:
        return ran(made.parse_intermixed_args(argv), made.error)
    except DiagnoseError as error:
        print(f"isentrope diagnose: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        missing = PACKAGES.get((error.name or "").split(".")[0])
        if missing is None:
            raise
        print(f"isentrope diagnose: the Python package {missing} is missing: pip install 'isentrope[diagnose]'", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"isentrope diagnose: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


__all__ = ["Batch", "Data", "DiagnoseError", "Measure", "Model", "Option", "Result", "Table", "main", "measured", "opened"]
