"""``python -m isentrope.doctor.rates``: how often each rule speaks of runs that ended well, and of runs that did not.

Trains the runs of GROUPS, one after the other and each on one thread, judges each by its test data against the best of its group,
and asks the rules. Runs that are finished are not run again. With --write it fills the tables of docs/doctor.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from isentrope import json_lines
from isentrope.doctor.examination import Examination, examine
from isentrope.doctor.table import RULES
from isentrope.jobs import CommandError, Job, Runs, Stopped, sole
from isentrope.report import ReportError
from isentrope.report.runs import read_run


@dataclass(frozen=True)
class Group:
    """Runs on the same data that are judged by one figure. A run ended well where it is within `within` of the group's best."""

    name: str
    config: str
    figure: str  # of the test data after the last step
    within: float
    higher: bool  # is better
    runs: dict[str, tuple[str, ...]]  # by name: overrides
    common: tuple[str, ...] = ()
    start: bool = False  # from the sft phase of the run "start", which is no part of the group
    again: bool = False  # made after conditions had been changed in the light of the groups before: a test of these


def rates(phase: str, *values: float) -> dict[str, tuple[str, ...]]:
    return {f"lr {rate:g}": (f"phases.{phase}.optimizer.lr={rate:g}",) for rate in values}


SIGMA = ("model.sigma_reparam.layers=all", "model.sigma_reparam.svd=true")
SHORT = ("phases.grpo.steps=60", "run.threads=1")


def stability(norm: str, *learning_rates: float, seed: int = 0, again: bool = False) -> Group:
    start = ("model.initializer_range=0.1",) if norm == "none" else ()  # as isentrope.stability has it
    runs = {f"plain, {name}": words for name, words in rates("pretrain", *learning_rates).items()}
    runs |= {f"sigmaReparam, {name}": (*words, *SIGMA, *start) for name, words in rates("pretrain", *learning_rates).items()}
    name = f"{norm}, seed {seed}" if seed else norm
    return Group(name, f"configs/stability/{norm}.yaml", "eval/loss", 0.15, False, runs, (f"run.seed={seed}",) if seed else (), again=again)


POLICY = {
    f"{loss}, lr {rate:g}": (f"phases.grpo.objective.loss={loss}", f"phases.grpo.optimizer.lr={rate:g}")
    for loss in ("kl_cov", "clip", "clip_cov")
    for rate in (4e-6, 4e-4, 4e-3)
} | {
    "kl_cov, 2 generations": ("phases.grpo.rollout.num_generations=2",),
    "kl_cov, 20 tokens": ("phases.grpo.rollout.max_new_tokens=20",),
    "clip, entropy bonus 0.3": ("phases.grpo.objective.loss=clip", "phases.grpo.objective.entropy={kind: constant, coef: 0.3}"),
    "clip, 16 updates": ("phases.grpo.objective.loss=clip", "phases.grpo.rollout.mini_batches=16"),
    "kl_cov, seed 2": ("run.seed=2",),
}
AGAIN = ("kl_cov, lr 0.0004", "kl_cov, lr 0.004", "clip, lr 0.0004", "clip, lr 0.004", "clip, entropy bonus 0.3", "clip, 16 updates")
GROUPS = (
    stability("pre", 1e-4, 1e-3, 1e-2, 3e-2),
    stability("post", 1e-3, 1e-2),
    stability("none", 1e-3, 1e-2),
    Group("sft", "configs/tiny/sft.yaml", "eval/loss", 0.1, False, rates("sft", 4e-6, 4e-4, 4e-3, 4e-2, 4e-1),
          ("phases.sft.steps=600", "phases.sft.evaluation.every=100")),
    Group("grpo", "configs/quickstart.yaml", "eval/sampled", 0.05, True, POLICY, SHORT, start=True),
    stability("none", 1e-3, 1e-2, seed=1, again=True),
    Group("grpo, seed 3", "configs/quickstart.yaml", "eval/sampled", 0.05, True, {name: POLICY[name] for name in AGAIN}, (*SHORT, "run.seed=3"), start=True, again=True),
)  # fmt: skip
START = ("configs/quickstart.yaml", "run.seed=1", "run.threads=1", "phases.grpo.steps=1", "phases.grpo.schedule.warmup_steps=0")


def end(folder: Path, figure: str, code: int, said: str) -> str:
    """Writes result.json of a run that has ended, also at something not finite. Returns "", or what else went wrong."""
    if code and "not finite" not in said and "overflows" not in said:
        return f"ended with exit code {code}"
    tested = [line for line in json_lines.read(folder / "metrics.jsonl") if line.get("eval/split") == "test" and figure in line]
    result = {"failure": said if code else "", "figure": tested[-1][figure] if tested and not code else None}
    (folder / "result.part").write_text(json.dumps(result))
    (folder / "result.part").replace(folder / "result.json")
    return ""


def job_of(group: Group, name: str, out: Path) -> Job:
    folder = out.joinpath(*(re.sub(r"[^\w.-]+", "_", word) for word in (group.name, name)))
    words = (group.config, *group.common, *group.runs[name], "run.checkpoint_every=0", "--quiet")
    return Job(folder, words, {}, "result.json", partial(end, folder, group.figure))


def in_turn(out: Path) -> Iterator[Job]:
    """All runs, in the order of GROUPS, behind the start that the last group goes on from."""
    start = Job(out / "start", (*START, "--quiet"), {})
    for group in GROUPS:
        if group.start:
            yield start
        for name in group.runs:
            job = job_of(group, name, out)
            if group.start and not job.finished:
                found = sorted((out / "start" / "checkpoints").glob("sft-*"))
                if not found:
                    raise CommandError(f"{out}/start: it left no checkpoint of its sft phase; see {start.log}")
                job = replace(job, words=(*job.words, f"run.start={found[-1]}"))
            yield job


@dataclass(frozen=True)
class Outcome:
    group: Group
    name: str
    figure: float | None  # None: it stopped at something that is not finite
    well: bool
    examined: Examination


def outcomes(out: Path) -> list[Outcome]:
    """Of the runs that are finished."""
    found = []
    for group in GROUPS:
        jobs = {name: job for name in group.runs if (job := job_of(group, name, out)).finished}
        figures = {name: json.loads((job.folder / job.done).read_text())["figure"] for name, job in jobs.items()}
        known = [figure for figure in figures.values() if figure is not None]
        best = (max if group.higher else min)(known, default=0.0)
        for name, job in jobs.items():
            figure = figures[name]
            well = figure is not None and (best - figure if group.higher else figure - best) <= group.within
            found.append(Outcome(group, name, figure, well, examine(read_run(job.folder))))
    return found


# ---- tables --------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def rules_table() -> list[str]:
    """The rules as docs/doctor.md has them."""
    lines = ["| rule | phases | needs | speaks where | advice | reason of the threshold |", "| --- | --- | --- | --- | --- | --- |"]
    for rule in RULES:
        phases = "grpo" if rule.phases == ("grpo",) else "all"
        needs = ", ".join(f"`{key}`" for key in rule.needs)
        lines.append(f"| {rule.name} | {phases} | {needs} | {cell(rule.condition)} | {cell(rule.advice)} | {cell(rule.source)} |")
    return lines


def rates_table(found: Sequence[Outcome]) -> list[str]:
    """Of each rule: findings over runs in which it was judged, of those that ended well and of the others."""
    lines = ["| rule | ended well | did not | not judged |", "| --- | ---: | ---: | ---: |"]
    for rule in RULES:
        cells = []
        for well in (True, False):
            some = [one.examined for one in found if one.well == well]
            spoke = sum(any(finding.rule is rule for finding in one.findings) for one in some)
            judged = spoke + sum(any(name == rule.name for _, name in one.clear) for one in some)
            cells.append(f"{spoke} of {judged}" if judged else "–")
        unseen = sum(any(name == rule.name for _, name, _ in one.examined.not_judged) for one in found)
        lines.append(f"| {rule.name} | {' | '.join(cells)} | {unseen} |")
    for name, left_out in (("any", ""), ("any but evaluation too noisy", "evaluation too noisy")):
        cells = []
        for well in (True, False):
            some = [one.examined for one in found if one.well == well]
            cells.append(f"{sum(any(finding.rule.name != left_out for finding in one.findings) for one in some)} of {len(some)}")
        lines.append(f"| {name} | {' | '.join(cells)} | |")
    return lines


def runs_table(found: Sequence[Outcome]) -> list[str]:
    lines = ["| group | run | figure | ended well | findings |", "| --- | --- | ---: | --- | --- |"]
    for one in found:
        figure = "not finite" if one.figure is None else f"{100 * one.figure:.1f} %" if one.group.higher else f"{one.figure:.3f}"
        findings = ", ".join(finding.rule.name for finding in one.examined.findings) or "none"
        lines.append(f"| {one.group.name} | {one.name} | {figure} | {'yes' if one.well else 'no'} | {findings} |")
    return lines


def write_page(page: Path, tables: dict[str, list[str]]) -> None:
    """Fills the places <!-- NAME --> … <!-- end --> of a page."""
    text = page.read_text()
    for name, lines in tables.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise CommandError(f"{page}: it has no <!-- {name} --> … <!-- end -->")
        text = place.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)  # noqa: B023  called within this turn alone
    page.write_text(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m isentrope.doctor.rates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs/doctor"), help="folder of the runs (runs/doctor)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="fill the tables of this page, such as docs/doctor.md")
    parser.add_argument("--rules", action="store_true", help="run nothing: the table of rules alone")
    options = parser.parse_args(argv)
    try:
        tables = {"rules": rules_table()}
        failures: list[str] = []
        if not options.rules:
            os.environ["OMP_NUM_THREADS"] = "1"
            plan = [Job(options.dir / "start", (), {}), *(job_of(group, name, options.dir) for group in GROUPS for name in group.runs)]
            runs = Runs(plan, 1)
            with sole(options.dir):
                runs.run([in_turn(options.dir)])
            failures = runs.failures
            for failure in failures:
                print(f"isentrope.doctor.rates: {failure}", file=sys.stderr)
            found = outcomes(options.dir)
            first, again = ([one for one in found if one.group.again == again] for again in (False, True))
            tables |= {"rates": rates_table(first), "rates again": rates_table(again), "runs": runs_table(found)}
        if options.write:
            write_page(options.write, tables)
        print("\n\n".join("\n".join(lines) for lines in tables.values()))
        return 1 if failures else 0
    except Stopped as stopped:
        print(f"Stopped. Go on:  {shlex.join([sys.executable, '-m', 'isentrope.doctor.rates', *(sys.argv[1:] if argv is None else argv)])}", file=sys.stderr)
        return stopped.code
    except (CommandError, ReportError, json_lines.LineError, OSError) as error:
        print(f"isentrope.doctor.rates: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
