"""``isentrope report RUN [RUN …] -o report.html``: runs as one page that needs nothing beside itself.

runs.py reads the folders, configurations.py finds seeds and sweeps, summary.py makes numbers of them, samples.py tables of
completions, plots.py figures (svg.py); page.py and page.html.j2 lay out, with what each word means from terms.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def write_page(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], refresh: float = 0) -> int:
    """Writes the page of the runs in ``folders`` in place of ``output``, whole or not at all. Returns its bytes.

    refresh: seconds after which a browser loads the page again; 0 for never.

    Raises:
        ReportError: a folder that is no run, or a line of it that cannot be read; the message names it.
    """
    from isentrope.report.page import page
    from isentrope.report.runs import read_runs

    text = page(read_runs(runs_of(folders)), refresh).encode()
    output = Path(output)
    beside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(text)
        os.replace(beside, output)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ReportError(f"{output}: cannot be written: {error.strerror}; name another file with -o") from None
    return len(text)


def runs_of(folders: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The folders; in place of one that is no run but holds runs, or folders of seeds, as those of `isentrope compare`, its runs."""
    found = []
    for folder in map(Path, folders):
        runs = [] if (folder / "metrics.jsonl").exists() else [*folder.glob("*/metrics.jsonl"), *folder.glob("*/*/metrics.jsonl")]
        found += sorted(file.parent for file in runs) or [folder]
    return found


class ReportError(Exception):
    """What is wrong with the files of a run, with the file and how to mend it."""


def watch(folders: Sequence[str], output: Path, interval: float) -> None:
    """Writes the page whenever a run has written more, until Ctrl-C; then once more, without the refresh."""
    names = ("metrics.jsonl", "samples.jsonl", "config.yaml")
    seen: list[tuple[int, int]] | None = None
    try:
        while True:
            files = [folder / name for folder in runs_of(folders) for name in names]
            now = [(s.st_size, s.st_mtime_ns) for s in (file.stat() for file in files if file.exists())]
            if now != seen:
                write_page(folders, output, refresh=interval)
                seen = now
            time.sleep(interval)
    except KeyboardInterrupt:
        write_page(folders, output)


def say(text: str, done: str = "the page is written; ") -> None:
    """A line on standard output. A reader that has gone wants no more; any other failure is a ReportError. done: what has been done
    all the same, and is told then."""
    try:
        print(text, flush=True)
    except OSError as error:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())  # what is left over would fail once more when Python ends
        if not isinstance(error, BrokenPipeError):
            raise ReportError(f"{done}standard output cannot be written: {error.strerror}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="isentrope report", description="Write a page that shows one run or several.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, or of runs")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="the page (default: report.html in the first folder)"
    )
    parser.add_argument("--watch", action="store_true", help="write it again whenever a run goes on, until Ctrl-C")
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=float,
        default=5.0,
        help="with --watch: seconds between two measurements of the runs (default: 5)",
    )
    options = parser.parse_args(argv)
    if not 0 < options.interval < float("inf"):
        parser.error(f"--interval: {options.interval} s; wanted more than 0")
    output = options.output or Path(options.runs[0]) / "report.html"
    try:
        size = write_page(options.runs, output, refresh=options.interval if options.watch else 0)
        say(f"{output}  {size / 1e6:.2f} MB" + ("; watching, Ctrl-C ends" if options.watch else ""))
        if options.watch:
            watch(options.runs, output, options.interval)
            return 130
    except ReportError as error:
        print(f"isentrope report: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        if error.name not in ("jinja2", "markupsafe", "yaml", "numpy"):
            raise
        print(
            f"isentrope report: the Python package {error.name} is missing: pip install 'isentrope[report]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
