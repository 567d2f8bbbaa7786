"""`isentrope stability`: trains small models at rising learning rates and tells which of them lose their attention.

cells.py says which runs there are, isentrope.jobs runs them, runs.py says what they came to, page.py makes tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isentrope.jobs import PROGRAM, CommandError, Job, Runs, Stopped, positive, sole
from isentrope.json_lines import LineError

if TYPE_CHECKING:
    from isentrope.stability.cells import Cell
    from isentrope.stability.runs import Result

DESCRIPTION = """\
Train small models at learning rates up to failure, and tell which of them lose their attention, stall or diverge.

Without --full the decisive part: pre-norm at rate 1e-2, the other norms at 1e-2, and which layers need a learned spectral
norm. With --full all of docs/stability.md. Runs that are finished are not run again, so the same command resumes. Verdicts:

    diverged   a loss, gradient or norm was not finite, or the loss on test text is above 5 nats
    stalled    the loss on test text is not 0.1 nats below what bytes cost that are guessed by their frequency alone
    collapsed  at some measurement the mean entropy / log n of all heads of a layer was below 0.05
    ok         none of these

The last training loss is the mean of the last 20 updates, with the penalty where there is one. Attention is measured every
second update.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="isentrope stability", description=DESCRIPTION, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("--full", action="store_true", help="all of docs/stability.md; hours on two cores")
    made.add_argument("--time", action="store_true", help="instead: time of an update of every method; wants quiet cores")
    made.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs of each cell, with the seeds 0 … N - 1 (3)")
    made.add_argument("--jobs", type=positive, default=1, help="runs at a time, of one thread each (1)")
    made.add_argument("--dir", type=Path, default=Path("runs/stability"), help="folder of the runs (runs/stability)")
    made.add_argument("--configs", type=Path, default=Path("configs/stability"), metavar="FOLDER",
                      help="of pre.yaml, post.yaml and none.yaml (configs/stability, in the source tree)")  # fmt: skip
    made.add_argument("--write", type=Path, metavar="FILE", help="fill the tables of this page, such as docs/stability.md")
    made.add_argument("--dry-run", action="store_true", help="check everything, say which runs there are, and run none")
    return made


def checked(groups: Sequence[Sequence[Cell]], options: argparse.Namespace) -> list[Job]:
    """All runs of the groups, each once. Raises CommandError where the program refuses a configuration, or a folder holds a run
    of another one."""
    from isentrope.compare.plan import check_folder, resolved_all

    wanted: dict[Cell, tuple[str, ...]] = {}
    for cell in (cell for group in groups for cell in group):
        file, _, _, *overrides = cell.words(options.configs, 0)
        if not Path(file).is_file():
            raise CommandError(f"there is no {file}; go to the source tree, or name its configs/stability with --configs")
        wanted[cell] = (file, *overrides)
    read = resolved_all(wanted.values())
    jobs: dict[Path, Job] = {}
    for cell, words in wanted.items():
        config = read[words]
        (phase,) = config["phases"]
        phase["optimizer"]["lr"] = float(f"{cell.rate:g}")
        for seed in range(options.seeds):
            job = cell.job(options.configs, options.dir, seed, phase["steps"])
            check_folder(job.folder, config, seed, False)
            jobs.setdefault(job.folder, job)
    return list(jobs.values())


def climb(group: Sequence[Cell], jobs: Mapping[Path, Job], options: argparse.Namespace, one_byte: float,
          results: dict[Cell, list[Result]]) -> Iterator[Job]:  # fmt: skip
    """The runs of a group of rising rates, as far as they are needed (cells.py); fills results."""
    from isentrope.stability.runs import verdict

    before: float | None = None
    for cell in group:
        runs = [jobs[cell.folder(options.dir, seed)] for seed in range(options.seeds)]
        yield from runs
        if not all(job.finished for job in runs):
            return  # one has failed, and is told
        results[cell] = [json.loads((job.folder / job.done).read_text()) for job in runs]
        loss = statistics.fmean(r["test"] or math.inf for r in results[cell])
        failed = all(verdict(r, one_byte).split("+")[0] in ("stalled", "diverged") for r in results[cell])
        if failed and before is not None and loss >= before:  # a first rate may be too low to learn anything
            return
        before = loss


def in_order(results: Mapping[Cell, list[Result]]) -> dict[Cell, list[Result]]:
    from isentrope.stability.cells import ABLATION, METHODS
    from isentrope.stability.page import TITLES

    tables, methods = list(TITLES), [*METHODS, *ABLATION, *(cell.method for cell in results)]

    def place(cell: Cell) -> tuple[int, int, int, float]:
        return tables.index(cell.table), ("pre", "post", "none").index(cell.norm), methods.index(cell.method), cell.rate

    return {cell: results[cell] for cell in sorted(results, key=place)}


def stability(options: argparse.Namespace, argv: Sequence[str]) -> int:
    from isentrope.stability.cells import DECISIVE, FULL
    from isentrope.stability.page import TITLES, data, page, write_page
    from isentrope.stability.runs import byte_levels

    if options.write and not options.write.is_file():
        raise CommandError(f"--write {options.write}: there is no such page")
    groups = FULL if options.full else DECISIVE
    jobs = checked(groups, options)
    if options.dry_run:
        print("\n".join(f"{job.folder}  {job.state}" for job in jobs))
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    one_byte, two_bytes = byte_levels()
    results: dict[Cell, list[Result]] = {}
    by_folder = {job.folder: job for job in jobs}
    runs = Runs(jobs, options.jobs, at_most=True)
    with sole(options.dir):
        try:
            runs.run(climb(group, by_folder, options, one_byte, results) for group in groups)
        except Stopped as stopped:
            print(f"Stopped. Go on:  {shlex.join([PROGRAM, 'stability', *argv])}", file=sys.stderr)
            return stopped.code
        places = page(in_order(results), one_byte, two_bytes)
        lines: list[str] = []
        for name, table in places.items():
            if name.endswith("-summary") and options.full or not name.endswith("-summary"):
                lines += [TITLES.get(name.removesuffix("-summary"), name), "", *table, ""]
        (options.dir / "table.md").write_text("\n".join(lines))
        for name, text in data(in_order(results), one_byte, options.dir).items():
            (options.dir / name).write_text(text)
    if options.write:
        write_page(options.write, places)
    first = next((cell.table for cell in results), "matrix")
    print("\n".join(lines))
    print(f"Table  {options.dir}/table.md, table.json, table.csv\nPage   {shlex.join([PROGRAM, 'report', f'{options.dir}/{first}'])}")
    for failure in runs.failures:
        print(f"isentrope stability: {failure}", file=sys.stderr)
    return 1 if runs.failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 after an error or a failed run, 128 + the number of a signal that stopped it."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(argv)
    try:
        if options.time:
            from isentrope.stability.page import write_page
            from isentrope.stability.times import times

            lines = times(options.configs, options.dir)
            print("\n".join(lines))
            if options.write:
                write_page(options.write, {"time": lines})
            return 0
        return stability(options, argv)
    except (CommandError, LineError) as error:
        print(f"isentrope stability: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"isentrope stability: {shlex.join(error.cmd)}\n{error.stderr}", file=sys.stderr)
        return 1
    except ImportError as error:
        if error.name not in ("yaml", "numpy"):
            raise
        print(f"isentrope stability: the Python package {error.name} is missing: pip install 'isentrope[report]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first run
        return 130
