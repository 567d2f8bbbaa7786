"""`isentrope compare`: trains several configurations with several seeds and prints one table of what came out.

plan.py says which runs that are, isentrope.jobs runs them, table.py makes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isentrope.jobs import PROGRAM, CommandError, Job, Runs, Stopped, positive, sole
from isentrope.json_lines import LineError

if TYPE_CHECKING:
    from isentrope.compare.plan import Configuration
    from isentrope.compare.table import Table

DESCRIPTION = """\
Train configurations with several seeds, and print one table of what came out.

Configurations that agree in all that comes before their last phase (model, data, earlier phases) share it: those
phases are trained once a seed, and every one of them starts its last phase from that checkpoint. Columns:

    n                  runs that are finished
    first columns      on the test data, after the last phase; at forks: mean entropy of the fifth of the tokens that have
                       most, in the samples of samples.jsonl; tokens: drawn by the rollouts of the last phase; a step: its
                       median time, evaluations left out
    at … % sampled     on the validation prompts, at the first evaluation whose sampled accuracy reaches a level that
                       every run of the table reached at some time: the highest whole percentage, or --level
    at … k tokens      on the validation prompts, after as many tokens as every run had drawn at its last evaluation, on the
                       straight line between two evaluations

A cell is the mean over the seeds ± their standard deviation (n − 1). Runs that are finished are not run again and runs
that were stopped go on where they were, so the same command resumes a comparison; more seeds or values can be added.
"""


def seeds_of(text: str) -> list[int]:
    """[1, …, N] of "N", [4, 7] of "4,7", [4] of "4,"."""
    if not re.fullmatch(r"\d+(,\d+)*,?", text):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a number N for the seeds 1 … N, or seeds such as 4,7")
    numbers = [int(word) for word in text.split(",") if word]
    seeds = numbers if "," in text else list(range(1, numbers[0] + 1))
    if not seeds or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted at least one seed, and each once")
    return seeds


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a share from 0 to 1")
    return value


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="isentrope compare", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="isentrope compare CONFIG … [KEY=VALUE …] [--seeds 3] [--rows FILE] [--over KEY=a,b,c] [options]",
    )  # fmt: skip
    made.add_argument("words", nargs="+", metavar="CONFIG, KEY=VALUE", help="YAML files, and overrides for all of them")
    made.add_argument("--seeds", type=seeds_of, default=[1, 2, 3], metavar="N",
                      help="runs of each configuration, with the seeds 1 … N (3), or a list of seeds such as 4,7")  # fmt: skip
    made.add_argument("--rows", action="append", default=[], metavar="FILE", help="YAML, NAME: {KEY.PATH: VALUE, …}: each configuration once with each of these "
                      "sets of overrides, a row of that name (docs/commands.md)")  # fmt: skip
    made.add_argument("--only", action="append", default=[], metavar="NAME", help="of --rows this row; may be given several times")
    made.add_argument("--over", action="append", default=[], metavar="KEY=a,b,c",
                      help="each configuration with each of these values, which are YAML; several --over make a grid")  # fmt: skip
    made.add_argument("--dir", type=Path, default=Path("runs/compare"), help="folder of the runs (runs/compare)")
    made.add_argument("--jobs", type=positive, default=1,
                      help="runs at a time, which share the cores unless run.threads is given (1)")  # fmt: skip
    made.add_argument("--level", type=share, help="sampled accuracy, 0 to 1, at which runs are compared")
    made.add_argument("--law", action="store_true", help="fit R = b − a·exp(H) to the steps of each row, and say how far the others lie "
                      "above the first one's curve")  # fmt: skip
    made.add_argument("--reward", action="append", default=[], metavar="[NAME=]PLACE:FUNCTION",
                      help="function in Python, handed to `isentrope train` as it is; may be given several times")  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="check everything, say which runs there are, and run none")
    return made


def jobs_of(found: Sequence[Configuration], seeds: Sequence[int], out: Path) -> tuple[list[Job], list[Job]]:
    """The shared starts, and the runs as they are once their starts are finished."""
    starts = {one.start: one for one in reversed(found) if one.start}
    return ([one.start_job(out, seed) for seed in seeds for one in reversed(starts.values())],
            [one.job(out, seed) for seed in seeds for one in found])  # fmt: skip


def run_all(found: Sequence[Configuration], seeds: Sequence[int], out: Path, jobs: int) -> list[str]:
    """Trains everything that is missing. Returns the failures."""
    starts, last = jobs_of(found, seeds, out)
    runs = Runs([*starts, *last], jobs)
    runs.run([start] for start in starts)
    chains = []
    for seed in seeds:
        for one in found:
            start = one.start_job(out, seed) if one.start else None
            if start and not start.finished:
                runs.failures.append(f"{out / one.folder_name(seed)} was not begun, since its start failed: {start.folder}")
            else:
                chains.append([one.job(out, seed)])  # now that its start is there
    runs.run(chains)
    return runs.failures


def tables(found: Sequence[Configuration], seeds: Sequence[int], level: float | None, out: Path) -> list[Table]:
    from isentrope.compare.plan import together
    from isentrope.compare.table import Table, evaluations, last_test

    made = []
    for members in together(found):
        rows = {c: [evaluations(out / c.folder_name(seed), list(c.phases)[-1]) for seed in seeds] for c in members}
        starts = {}
        for key in dict.fromkeys(c.start for c in members if c.start):
            sharing = [c for c in members if c.start == key]
            name = "start of the last phase" if len(sharing) == len(members) else "start of " + "; ".join(c.label for c in sharing)
            of_seeds = [last_test(evaluations(sharing[0].start_job(out, seed).folder, list(sharing[0].phases)[-2])) for seed in seeds]
            if points := [point for point in of_seeds if point]:
                starts[name] = points
        made.append(Table(starts, rows, level))
    return made


def write(made: Sequence[Table], seeds: Sequence[int], out: Path, law: bool) -> str:
    """table.md, table.json and table.csv in the folder. Returns the Markdown. law: whether it has the laws of policies too."""
    from isentrope.compare.law import laws_of
    from isentrope.compare.table import as_csv

    laws = [laws_of([c for c in table.rows if c.resolved["phases"][-1].get("reward")], seeds, out) if law else None for table in made]
    text = "\n".join(line for table, of in zip(made, laws) for line in [*table.markdown(), *(of.markdown() if of else [])])
    text += f"\nSeeds {', '.join(map(str, seeds))}: mean ± standard deviation."
    if any(table.level is not None for table in made):
        text += " At equal accuracy: validation prompts, at the first evaluation that reaches it."
    data = {"seeds": seeds, "tables": [table.json(seeds) | ({"law": of.json()} if of else {}) for table, of in zip(made, laws)]}
    for name, content in (("table.md", text), ("table.json", json.dumps(data, ensure_ascii=False, indent=1)),
                          ("table.csv", as_csv(made, seeds).removesuffix("\n"))):  # fmt: skip
        beside = out / f".{name}.{os.getpid()}.tmp"
        beside.write_text(content + "\n")
        os.replace(beside, out / name)
    return text


def compare(options: argparse.Namespace, argv: Sequence[str]) -> int:
    from isentrope.compare.plan import check_folder, configurations, rows_of

    files = [word for word in options.words if "=" not in word or Path(word).is_file()]
    overrides = [word for word in options.words if word not in files]
    if not files:
        raise CommandError("no configuration is given, overrides alone; name a YAML file, such as configs/quickstart.yaml")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = rows_of(options.rows)
    if unknown := [name for name in options.only if name not in rows]:
        raise CommandError(f"--only {unknown[0]}: no such row; there are {', '.join(rows) or 'none without --rows'}")
    rows = {name: words for name, words in rows.items() if name in options.only or not options.only}
    found = configurations(files, overrides, options.over, max(1, cores // options.jobs) if options.jobs > 1 else 0, rows)
    rewards = tuple(word for reward in options.reward for word in ("--reward", reward))
    for one in found:
        one.rewards = rewards
        for seed in options.seeds:
            check_folder(options.dir / one.folder_name(seed), one.resolved, seed, bool(one.start))
    if options.dry_run:
        for job in (job for of_kind in jobs_of(found, options.seeds, options.dir) for job in of_kind):
            print(f"{job.folder}  {job.state}")
        return 0
    with sole(options.dir):
        try:
            failures = run_all(found, options.seeds, options.dir, options.jobs)
        except Stopped as stopped:
            print(f"Stopped. Go on:  {shlex.join([PROGRAM, 'compare', *argv])}", file=sys.stderr)
            return stopped.code
        text = write(tables(found, options.seeds, options.level, options.dir), options.seeds, options.dir, options.law)
    page = shlex.join([PROGRAM, "report", str(options.dir)])
    print(f"{text}\n\nTable  {options.dir}/table.md, table.json, table.csv\nPage   {page}", flush=True)
    for failure in failures:
        print(f"isentrope compare: {failure}", file=sys.stderr)
    return 1 if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 after an error or a failed run, 128 + the number of a signal that stopped it."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_intermixed_args(argv)
    try:
        return compare(options, argv)
    except (CommandError, LineError) as error:
        print(f"isentrope compare: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        if error.name not in ("yaml", "numpy"):
            raise
        print(f"isentrope compare: the Python package {error.name} is missing: pip install 'isentrope[report]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first run
        return 130
