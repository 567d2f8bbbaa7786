#!/usr/bin/env python3
"""Trains several configurations with several seeds and prints one Markdown table of what came out.

Each configuration runs with the seeds 1 … N, one thread a run. Configurations that agree in all that comes before their
last phase (model, data, earlier phases) share it: those phases are trained once a seed, and every one of them starts its
last phase from that checkpoint. Such configurations stand in one table:

    at the last step   on the test prompts, after the last phase
    tokens             drawn by the rollouts of the last phase until then
    at equal accuracy  on the validation prompts, at the first evaluation whose sampled accuracy reaches a level that
                       every run of the table reached at some time: the highest whole percentage, or --level

A cell is the mean over the seeds ± their standard deviation (n − 1). Runs that are finished are not run again and runs
that were stopped go on where they were, so the same command resumes a comparison.
"""

import argparse
import concurrent.futures
import hashlib
import json
import math
import os
import runpy
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

# The package's reader of metrics.jsonl, by its path: to import the package is to load torch.
READER = runpy.run_path(str(Path(__file__).resolve().parents[1] / "python" / "isentrope" / "json_lines.py"))


# ---- what a run wrote ---------------------------------------------------------------------------------------------


def evaluations(run_dir, phase):
    """The evaluations of one phase in metrics.jsonl, in order: [{step, split, greedy, sampled, pass_k, k, entropy, tokens, sizes}, …].

    tokens: drawn by the rollouts of the phase until then. A value that is not finite is None. sizes: {size: (sampled, length)}, where prompts are of several."""
    found, tokens = [], 0
    path = Path(run_dir) / "metrics.jsonl"
    for record in READER["read"](path):
        if record.get("phase") != phase:
            continue
        tokens += record.get("generated") or 0
        if "eval/split" in record:
            sizes = {int(key.rsplit("/")[-1]): (value, record[key.replace("sampled", "length")])
                     for key, value in record.items() if key.startswith("eval/sampled/")}
            found.append({"step": record["step"], "split": record["eval/split"], "greedy": record.get("eval/greedy"),
                          "sampled": record.get("eval/sampled"), "pass_k": record.get("eval/pass@k"),
                          "k": int(record.get("eval/k") or 0), "entropy": record.get("eval/entropy"), "tokens": tokens,
                          "sizes": sizes})
    return found


def last_test(points):
    """The last evaluation on the test prompts; None for a run that is not finished."""
    return next((p for p in reversed(points) if p["split"] == "test"), None)


def common_level(runs):
    """The highest whole percentage that every run reached on the validation prompts; runs are lists of evaluations."""
    best = [max((p["sampled"] for p in points if p["split"] == "validation" and p["sampled"] is not None), default=None)
            for points in runs]
    if not best or None in best:
        return None
    return math.floor(min(best) * 100 + 1e-9) / 100  # 0.29 * 100 is 28.999…


def first_reaching(points, level):
    """The first evaluation on the validation prompts whose sampled accuracy is at least level; None if there is none."""
    return next((p for p in points if p["split"] == "validation" and (p["sampled"] or 0) >= level), None)


# ---- the table ----------------------------------------------------------------------------------------------------


def cell(values, form):
    """Mean ± standard deviation of the values that are there, and of how many where some are missing."""
    there = [form[1] * v for v in values if v is not None]
    if not there:
        return "–"
    text = format(statistics.mean(there), form[0])
    if len(there) > 1:
        text += f" ± {format(statistics.stdev(there), form[0])}"
    return text if len(there) == len(values) else f"{text} ({len(there)} of {len(values)})"


PERCENT, NATS, COUNT, THOUSANDS, TOKENS = (".1f", 100), (".3f", 1), (".0f", 1), (".0f", 1e-3), (".1f", 1)


def table(start, rows, level):
    """Markdown lines. start: test evaluations of the shared start, one a seed; rows: {name: [evaluations of a run, …]}."""
    ks = {p["k"] for points in rows.values() for run in points for p in run} | {p["k"] for p in start}
    passed = f"pass@{'/'.join(map(str, sorted(ks))) or 'k'}, %"
    level = common_level([run for points in rows.values() for run in points]) if level is None else level
    at = "" if level is None else f"at {100 * level:.0f} % sampled: "
    head = ["", "step", "sampled, %", "greedy, %", passed, "entropy, nats", "tokens, k", f"{at}step", "tokens, k", passed,
            "entropy, nats"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]

    def row(name, ends, reached):
        columns = [(ends, "step", COUNT), (ends, "sampled", PERCENT), (ends, "greedy", PERCENT), (ends, "pass_k", PERCENT),
                   (ends, "entropy", NATS), (ends, "tokens", THOUSANDS), (reached, "step", COUNT), (reached, "tokens", THOUSANDS),
                   (reached, "pass_k", PERCENT), (reached, "entropy", NATS)]
        cells = [cell([p and p[key] for p in points], form) for points, key, form in columns]
        lines.append("| " + " | ".join([name, *cells]) + " |")

    if start:
        row("start of the last phase", start, [])
    for name, runs in rows.items():
        row(name, [last_test(run) for run in runs],
            [None if level is None else first_reaching(run, level) for run in runs])
    return lines


def table_of_sizes(start, rows):
    """Markdown lines of the share of right samples and their length for each size of prompts; none where there is one size."""
    ends = {"start of the last phase": start, **{name: [last_test(run) for run in runs] for name, runs in rows.items()}}
    sizes = sorted({size for points in ends.values() for p in points if p for size in p["sizes"]})
    if not sizes:
        return []
    head = ["", *(f"sampled of {size}, %" for size in sizes), *(f"length of {size}" for size in sizes)]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, points in ends.items():
        cells = [cell([p and p["sizes"][size][i] for p in points], form)
                 for i, form in ((0, PERCENT), (1, TOKENS)) for size in sizes]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


# ---- running ------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """One configuration. group is shared with those that start their last phase alike."""

    file: str
    name: str
    phases: list
    group: str


def start_key(config):
    """Names all that decides how the last phase starts. Earlier phases are measured, and may be stopped, by the data and
    rewards of the last one and the length of its answers, so those count too; how the last phase draws them, what it
    minimises, and for how long, does not."""
    last = config["phases"][-1]
    later = {key: last.get(key) for key in ("name", "data", "reward")}
    later["max_new_tokens"] = (last.get("rollout") or {}).get("max_new_tokens")
    fixed = {key: value for key, value in config.items() if key != "run"}
    fixed["phases"] = config["phases"][:-1] + [later]
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]


def read_plan(program, file):
    told = subprocess.run([program, "config", file], capture_output=True, text=True)
    if told.returncode:
        sys.exit(f"compare: {file} is not a configuration:\n{told.stderr or told.stdout}")
    config = yaml.safe_load(told.stdout)
    name = Path(file).stem
    return Plan(file, name, [p["name"] for p in config["phases"]], start_key(config) if len(config["phases"]) > 1 else name)


def finished(folder, phase):
    """The checkpoint at the end of a phase is written after its last evaluation, and DONE after all else of it."""
    ends = [point["step"] for point in evaluations(folder, phase) if point["split"] == "test"]
    return bool(ends) and checkpoint(folder, phase, ends[-1]).joinpath("DONE").exists()


def checkpoint(folder, phase, step):
    return folder / "checkpoints" / f"{phase}-{step:06}"


def train(program, plan, seed, folder, phase, overrides):
    """Runs `isentrope train` in folder unless phase is finished there. Returns "" or what went wrong."""
    if finished(folder, phase):
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    command = [program, "train", plan.file, f"run.seed={seed}", f"run.dir={folder}", "run.threads=1", *overrides]
    if (folder / "metrics.jsonl").exists():
        command.append("--resume")
    log = folder.with_suffix(".log")
    begun = time.monotonic()
    with open(log, "a") as output:
        output.write(shlex.join(command) + "\n")
        output.flush()
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    if code == 0 and finished(folder, phase):
        print(f"{folder}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        return ""
    tail = "\n".join("  | " + line for line in log.read_text().splitlines()[-15:])
    return f"{folder} ended with exit code {code}; the whole log is {log}\n{tail}"


def start_folder(plan, seed, out):
    return out / "start" / plan.group / f"seed{seed}"


def train_start(program, plan, seed, out):
    """The phases before the last, for all configurations of the group. Those phases need the last one beside them, for
    the prompts that they are measured on, so it is cut to one step."""
    last = plan.phases[-1]
    return train(program, plan, seed, start_folder(plan, seed, out), plan.phases[-2],
                 [f"phases.{last}.steps=1", f"phases.{last}.schedule.warmup_steps=0"])


def run_all(program, plans, seeds, parallel, out):
    """Trains everything that is missing. Returns the failures."""
    failures = []
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        groups = {plan.group: plan for plan in reversed(plans) if len(plan.phases) > 1}
        failures += filter(None, pool.map(lambda job: train_start(program, *job, out),
                                          [(plan, seed) for seed in seeds for plan in groups.values()]))

        def last_phase(plan, seed):
            overrides = []
            if len(plan.phases) > 1:
                folder, phase = start_folder(plan, seed, out), plan.phases[-2]
                if not finished(folder, phase):
                    return ""  # its start has failed, and was told
                end = last_test(evaluations(folder, phase))["step"]
                overrides = [f"run.start={checkpoint(folder, phase, end)}"]
            return train(program, plan, seed, out / plan.name / f"seed{seed}", plan.phases[-1], overrides)

        failures += filter(None, pool.map(lambda job: last_phase(*job), [(plan, seed) for seed in seeds for plan in plans]))
    return failures


def report(plans, seeds, level, out):
    """Markdown lines: one table a group of configurations that share their start."""
    lines = []
    for group in dict.fromkeys(plan.group for plan in plans):
        members = [plan for plan in plans if plan.group == group]
        rows = {p.name: [evaluations(out / p.name / f"seed{seed}", p.phases[-1]) for seed in seeds] for p in members}
        first = members[0]
        starts = [last_test(evaluations(start_folder(first, seed, out), first.phases[-2])) for seed in seeds] \
            if len(first.phases) > 1 else []
        starts = [point for point in starts if point]
        lines += [*table(starts, rows, level), ""]
        if sizes := table_of_sizes(starts, rows):
            lines += [*sizes, ""]
    seeds_named = ", ".join(map(str, seeds))
    lines.append(f"Seeds {seeds_named}: mean ± standard deviation. At the last step: test prompts. At equal accuracy: "
                 "validation prompts, at the first evaluation that reaches it.")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration, with the seeds 1 … N (3)")
    parser.add_argument("--parallel", type=int, default=os.cpu_count(), help="runs at a time (one a core)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the runs (runs/compare)")
    parser.add_argument("--level", type=float, help="sampled accuracy, 0 to 1, at which runs are compared")
    parser.add_argument("--program", default="isentrope", help="the isentrope program")
    args = parser.parse_args()
    if args.seeds < 1 or args.parallel < 1:
        parser.error("--seeds and --parallel must be at least 1")

    plans = [read_plan(args.program, file) for file in args.configs]
    names = [plan.name for plan in plans]
    if len(set(names)) < len(names):
        parser.error(f"two configurations have one file name, and would share their folders: {' '.join(args.configs)}")
    seeds = list(range(1, args.seeds + 1))
    try:
        failures = run_all(args.program, plans, seeds, args.parallel, args.out)
        lines = report(plans, seeds, args.level, args.out)
    except READER["LineError"] as error:
        sys.exit(f"compare: {error}")
    print("\n".join(lines))
    (args.out / "table.md").write_text("\n".join(lines) + "\n")
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
