#!/usr/bin/env python3
"""Trains small models at learning rates up to failure and tells which of them lose their attention, stall or diverge.

Without --full the decisive part: pre-norm at rate 1e-2, the other norms at 1e-2, and which layers need a learned spectral
norm. With --full all of docs/stability.md. Runs that are done are not run again, so the same command resumes.

Verdicts:

    diverged   a loss, gradient or norm was not finite, or the loss on test text is above 5 nats
    stalled    the loss on test text is not 0.1 nats below what bytes cost that are guessed by their frequency alone
    collapsed  at some look the mean entropy / log n of all heads of a layer was below 0.05
    ok         none of these

The last training loss is the mean of the last 20 updates, with the penalty where there is one. Looks at attention are made
every second update.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import math
import os
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

# The package's reader of metrics.jsonl, by its path: to import the package is to load torch.
READER = runpy.run_path(str(Path(__file__).resolve().parents[1] / "python" / "isentrope" / "json_lines.py"))

DIVERGED, STALLED, COLLAPSED = 5.0, 0.1, 0.05
LOWS = (0.2, 0.15, 0.1, 0.075)  # thresholds of an alarm that are compared
LAST = 20  # updates whose mean loss is the last training loss
LOCKS = defaultdict(threading.Lock)

ATTENTION = "phases.pretrain.objective.attention_entropy"
METHODS = {
    "plain": [],
    "sigmaReparam": ["model.sigma_reparam.layers=all"],
    "QK-norm": ["model.attention.qk_norm=true"],
    "soft cap 15": ["model.attention.softcap=15"],
    "QK-clip 15": ["model.attention.qk_clip=15"],
    "regulariser": [f"{ATTENTION}.coef=1"],
}
LONG = ["phases.pretrain.batch.sequences=8", "phases.pretrain.steps=400"]  # four times the bytes


@dataclass(frozen=True)
class Cell:
    """One entry of a table; a run a seed."""

    table: str
    norm: str
    method: str
    rate: float
    overrides: tuple = ()

    def folder(self, out, seed):
        name = f"{self.norm}-{self.method}".replace(" ", "_").replace(",", "+")
        return out / self.table / f"{name}-{self.rate:g}-seed{seed}"

    def command(self, program, out, seed):
        # Learned norms need no care of the start, so without norm layers they start as with them.
        start = ["model.initializer_range=0.1"] if self.norm == "none" and "sigmaReparam" in self.method else []
        return [program, "train", f"configs/stability/{self.norm}.yaml", "--quiet", f"run.dir={self.folder(out, seed)}",
                f"run.seed={seed}", f"phases.pretrain.optimizer.lr={self.rate:g}", *start, *self.overrides]


def cells(table, norms, methods, rates, more=()):
    """Groups [[Cell, …], …] of rising rates: what lies above a rate at which every seed stalls or diverges, and no better than at
    the rate before, is left out."""
    return [[Cell(table, norm, name, rate, (*options, *more)) for rate in rates]
            for norm in norms for name, options in methods.items()]


def some(*names):
    return {name: METHODS[name] for name in names}


def sigma(layers, *more):
    return [f"model.sigma_reparam.layers={layers}", *more]


RATES = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
PLAIN_AND_SIGMA = some("plain", "sigmaReparam")
NARROW = ["model.hidden_size=64", "model.num_attention_heads=2", "model.num_key_value_heads=2", "model.intermediate_size=176"]
ABLATION = {
    "plain": [],
    "sigmaReparam: all": sigma("all"),
    "sigmaReparam: q, k": sigma("[q, k]"),
    "sigmaReparam: all but q, k": sigma("[v, o, gate, up, down, head]"),
    "sigmaReparam: attention": sigma("attention"),
    "sigmaReparam: MLP": sigma("mlp"),
    "QK-norm": METHODS["QK-norm"],
}
DECISIVE = [
    *cells("matrix", ["pre"], some("plain", "sigmaReparam", "QK-norm"), [1e-2]),
    *cells("matrix", ["pre"], some("plain"), [1e-3]),
    *cells("matrix", ["post", "none"], PLAIN_AND_SIGMA, [1e-2]),
    *cells("ablation", ["pre"], ABLATION, [1e-2], LONG),
]
FULL = [
    *DECISIVE,
    *cells("ablation", ["pre"], some("plain"), [1e-3], LONG),
    *cells("matrix", ["pre", "post", "none"], METHODS, RATES),
    *cells("gamma", ["pre"], {"sigmaReparam, gamma from sigma": sigma("all", "model.sigma_reparam.gamma_init=sigma")}, [1e-3, 1e-2]),
    *cells("beta2", ["pre"], PLAIN_AND_SIGMA, [1e-3, 3e-3, 1e-2], ["phases.pretrain.optimizer.betas=[0.9, 0.999]"]),
    *cells("depth24", ["pre", "post"], PLAIN_AND_SIGMA, [1e-3, 1e-2], [*NARROW, "model.num_hidden_layers=24"]),
    *cells("sgd", ["pre"], PLAIN_AND_SIGMA, [3e-2, 1e-1, 3e-1, 1],
           ["phases.pretrain.optimizer.kind=sgd", "phases.pretrain.optimizer.betas=[0.9]"]),
    *cells("depth48", ["pre"], PLAIN_AND_SIGMA, [1e-3, 1e-2], [*NARROW, "model.num_hidden_layers=48"]),
]


# ---- a run ----------------------------------------------------------------------------------------------------------


def smoothed(losses):
    """Mean of the last LAST losses at every update; of those there are in the beginning."""
    return [statistics.fmean(losses[max(0, i + 1 - LAST) : i + 1]) for i in range(len(losses))]


def first_fall(looks, low):
    """The first step at which a quarter of a layer's heads have lost half of their entropy within 100 steps and are below `low`
    of log n: the rule of the trainer's alarm (csrc/train/attention_watch.h), where low is 0.1."""
    seen = []
    for step, look in looks:
        now = [[0.0 if x is None else x for x in layer] for layer in look["normalized"]]
        seen = [*(x for x in seen if x[0] >= step - 100), (step, now)]
        for index, layer in enumerate(now):
            most = [max(x[1][index][head] for x in seen) for head in range(len(layer))]
            if sum(x < min(m / 2, low) for x, m in zip(layer, most)) >= len(layer) / 4:
                return step
    return None


def measure(folder, failure):
    """What result.json says of a run. failure: the trainer's message where it stopped at something not finite, or ''."""
    lines = list(READER["read"](folder / "metrics.jsonl"))
    updates = [line for line in lines if "eval/split" not in line]
    losses = [math.inf if line["loss"] is None else line["loss"] for line in updates]
    looks = [(line["step"], line["attention_entropy"]) for line in updates if "attention_entropy" in line]
    number = lambda x, otherwise: otherwise if x is None else x  # noqa: E731  (null: not finite)
    means = [[statistics.fmean(number(x, 0.0) for x in layer) for layer in look["normalized"]] for _, look in looks]
    flat = lambda table: [number(x, math.inf) for layer in table for x in layer]  # noqa: E731
    evaluation = next((line["eval/loss"] for line in lines if "eval/loss" in line), None)
    return {
        "failure": failure,
        "steps": len(losses),
        "losses": losses,
        "loss": math.inf if failure else statistics.fmean(losses[-LAST:]),
        "test": evaluation,
        "lowest": [min(column) for column in zip(*means)],  # of each layer
        "lowest_step": min(zip(map(min, means), (step for step, _ in looks)), default=(0, 0))[1],
        "end": means[-1] if means else [],
        "falls": {str(low): first_fall(looks, low) for low in LOWS},
        "collapse": next((step for step, look in looks if min(flat(look["normalized"])) < COLLAPSED), None),
        "max_logit": max((max(flat(look["max_logit"])) for _, look in looks), default=0.0),
        "certified": statistics.fmean(number(x, 0.0) for _, look in looks for layer in look["certified"] for x in layer) if looks else 0.0,
        "violations": sum(number(b, 0.0) > number(n, math.inf) + 1e-5 for _, look in looks
                          for bs, ns in zip(look["bound"], look["normalized"]) for b, n in zip(bs, ns)),
    }


def run(program, cell, seed, out):
    """Trains unless result.json says that it has been. Returns the result, or raises with what went wrong."""
    folder = cell.folder(out, seed)
    done = folder / "result.json"
    with LOCKS[folder]:  # two groups may share a cell
        if not done.exists():
            train(program, cell, seed, out, folder, done)
    return json.loads(done.read_text())


def train(program, cell, seed, out, folder, done):
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    command = cell.command(program, out, seed)
    told = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    failure = ""
    if told.returncode:
        failure = told.stderr.strip().splitlines()[-1] if told.stderr.strip() else f"exit code {told.returncode}"
        if "not finite" not in failure and "overflows" not in failure:
            raise RuntimeError(f"{shlex.join(command)}\n{told.stderr}")
    result = measure(folder, failure)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    done.with_suffix(".part").write_text(json.dumps(result))
    done.with_suffix(".part").replace(done)
    print(f"{folder}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


def verdict(result, one_byte):
    if result["failure"] or result["test"] is None or result["test"] > DIVERGED:
        return "diverged"
    words = ["stalled"] if result["test"] >= one_byte - STALLED else []
    words += ["collapsed"] if min(result["lowest"], default=1) < COLLAPSED else []
    return "+".join(words) or "ok"


def byte_levels(package="torch"):
    """(nats of a byte by its frequency, nats of a byte by its frequency after the byte before it) of a package's sources, the
    text that configs/stability trains on."""
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    one, two = Counter(), Counter()
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if not skipped & set(parts[:-1]) and not any(part.startswith(".") for part in parts):
            text = file.read_bytes()
            one.update(text)
            two.update(zip(text, text[1:]))

    def entropy(counts):
        total = sum(counts.values())
        return -sum(n / total * math.log(n / total) for n in counts.values())

    return entropy(one), entropy(two) - entropy(one)


# ---- tables ---------------------------------------------------------------------------------------------------------


def seeds_of(values, form):
    return " / ".join("–" if v is None else "∞" if v == math.inf else format(v, form) for v in values)


def markdown(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]


def outcome(words):
    """"ok" where all seeds agree, else each."""
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def detail(results, one_byte):
    """One row a cell. results: {Cell: [result a seed]}"""
    rows = []
    for cell, runs in results.items():
        layer = [min(r["lowest"], default=None) for r in runs]
        each = [min(depth) for depth in zip(*(r["lowest"] for r in runs if r["lowest"]))]  # over the seeds
        rows.append([cell.norm, cell.method, f"{cell.rate:g}", seeds_of([r["loss"] for r in runs], ".3f"),
                     seeds_of([r["test"] for r in runs], ".3f"), seeds_of(layer, ".3f"),
                     " ".join(f"{x:.2f}" for x in each) if len(each) <= 8 else "–",
                     seeds_of([r["falls"]["0.1"] for r in runs], "d"), seeds_of([r["max_logit"] for r in runs], ".3g"),
                     f"{statistics.fmean(r['certified'] for r in runs):.2f}",
                     outcome([verdict(r, one_byte) for r in runs])])
    return markdown(["norm", "method", "rate", "last training loss", "test loss", "lowest entropy / log n of a layer",
                     "of each layer, all seeds", "first alarm", "largest logit", "rows certified", "verdict"], rows)


def summary(results, one_byte):
    """One row a norm and method: the rates that are ok for every seed, the first that fails above them, and the best loss."""
    groups = {}
    for cell, runs in results.items():
        groups.setdefault((cell.norm, cell.method), []).append((cell.rate, runs))
    rows = []
    for (norm, method), by_rate in groups.items():
        by_rate.sort(key=lambda x: x[0])
        words = {rate: outcome([verdict(r, one_byte) for r in runs]) for rate, runs in by_rate}
        fine = [rate for rate in words if words[rate] == "ok"]
        above = [rate for rate in words if rate > max(fine, default=0)]
        tested = [(statistics.fmean(r["test"] for r in runs), rate) for rate, runs in by_rate
                  if all(r["test"] is not None for r in runs)]
        best = min(tested, default=None)
        at = dict((rate, loss) for loss, rate in tested)
        rows.append([norm, method, ", ".join(f"{rate:g}" for rate in fine) or "none",
                     f"{above[0]:g}: {words[above[0]]}" if above else "",
                     "" if best is None else f"{best[0]:.3f} at {best[1]:g}",
                     *(f"{at[rate]:.3f}" if rate in at else "–" for rate in (1e-3, 1e-2, 3e-2))])
    return markdown(["norm", "method", "rates ok in all seeds", "the first above that is not", "best test loss",
                     "at 1e-3", "at 1e-2", "at 3e-2"], rows)


def alarms(results, one_byte):
    """When attention raised an alarm in runs of the plain model, when their loss told, and how often alarms came in all runs.

    rises: the mean of 20 losses is first more than 0.1 above its least so far. lags: from there to the end it is more than 0.1
    above that of the same seed, which sees the same batches, at the plain model's best rate.
    """
    rows, heard = [], {}
    for runs in results.values():
        for r in runs:
            heard.setdefault("collapsed" if "collapsed" in verdict(r, one_byte) else verdict(r, one_byte), []).append(r)
    for cell, runs in results.items():
        if cell.method != "plain":
            continue
        others = {c.rate: r for c, r in results.items()
                  if (c.table, c.norm, c.method) == (cell.table, cell.norm, cell.method) and all(x["test"] for x in r)}
        best = min(others, key=lambda rate: statistics.fmean(r["test"] for r in others[rate]), default=None)
        if best is None or cell.rate <= best:
            continue
        rises, lags = [], []
        for seed, r in enumerate(runs):
            mean, least = smoothed(r["losses"]), math.inf
            rises.append(None)
            for step, loss in enumerate(mean, 1):
                if step >= LAST and loss > least + 0.1:
                    rises[-1] = step
                    break
                least = min(least, loss) if step >= LAST else least
            behind = [a > b + 0.1 for a, b in zip(mean, smoothed(others[best][seed]["losses"]))]
            last_level = max((i for i, late in enumerate(behind) if not late), default=-1)
            lags.append(last_level + 2 if last_level + 1 < len(behind) else None)
        rows.append([cell.table, cell.norm, f"{cell.rate:g}", seeds_of([r["falls"]["0.1"] for r in runs], "d"),
                     seeds_of([r["collapse"] for r in runs], "d"), seeds_of(rises, "d"),
                     f"{seeds_of(lags, 'd')} (against {best:g})", outcome([verdict(r, one_byte) for r in runs])])
    often = []
    for name, runs in sorted(heard.items()):
        for label, steps in [*((f"fallen, below {low}", [r["falls"][str(low)] for r in runs]) for low in LOWS),
                             ("collapsed", [r["collapse"] for r in runs])]:
            steps = [step for step in steps if step is not None]
            often.append([name, label, f"{len(steps)} of {len(runs)}", f"{statistics.median(steps):g}" if steps else "–"])
    return [*markdown(["table", "norm", "rate", "heads have fallen", "a head has collapsed", "loss rises", "loss lags",
                       "verdict"], rows),
            "", *markdown(["verdict", "alarm", "runs that raise it", "median step"], often)]


TITLES = {
    "matrix": "The matrix", "ablation": "Which layers, at 1e-2 over four times the bytes", "beta2": "β₂ = 0.999",
    "gamma": "γ from σ(W₀)", "sgd": "SGD with momentum 0.9", "depth24": "24 layers of width 64",
    "depth48": "48 layers of width 64",
}


def page(results, one_byte, two_bytes):
    """{name of a place in docs/stability.md: Markdown lines}"""
    places = {"levels": [f"One byte by its frequency costs {one_byte:.3f} nats, after the byte before it {two_bytes:.3f}."]}
    for table in TITLES:
        part = {cell: runs for cell, runs in results.items() if cell.table == table}
        if part:
            places[f"{table}-summary"] = summary(part, one_byte)
            places[table] = detail(part, one_byte)
    places["alarms"] = alarms(results, one_byte)
    everything = [r for runs in results.values() for r in runs]
    places["certificate"] = [f"{len(everything)} runs, {sum(r['violations'] for r in everything)} looks at which the mean bound "
                             "of a head was above its mean entropy."]
    return places


def write_page(file, places):
    """Fills <!-- name --> … <!-- end --> in a Markdown file."""
    text = Path(file).read_text()
    for name, lines in places.items():
        head, found, rest = text.partition(f"<!-- {name} -->\n")
        if found:
            text = head + found + "\n".join(lines) + "\n" + rest[rest.index("<!-- end -->"):]
    Path(file).write_text(text)


# ---- time -----------------------------------------------------------------------------------------------------------


def times(program, out, rounds=7, steps=30):
    """Milliseconds of an update of a pre-norm model with every method, looks at attention left out: medians of rounds in which
    each has its turn."""
    tried = [Cell("time", "pre", name, 1e-3, tuple(options)) for name, options in METHODS.items()]
    taken = {cell: [] for cell in tried}
    for _ in range(rounds):
        for cell in tried:
            folder = cell.folder(out, 0)
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([*cell.command(program, out, 0), f"phases.pretrain.steps={steps}", f"{ATTENTION}.every=0"],
                           check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            ends = [line["time_s"] for line in READER["read"](folder / "metrics.jsonl")][:steps]
            taken[cell].append(1000 * statistics.median(b - a for a, b in zip(ends[4:], ends[5:])))  # past the warm-up
            shutil.rmtree(folder)
    rows = []
    for cell in tried:
        ratios = [a / b for a, b in zip(taken[cell], taken[tried[0]])]
        rows.append([cell.method, f"{statistics.median(taken[cell]):.1f}", f"{statistics.median(ratios):.3f}",
                     f"{min(ratios):.3f} to {max(ratios):.3f}"])
    return markdown(["method", "ms an update", "of plain", "spread"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all of docs/stability.md; hours on two cores")
    parser.add_argument("--time", action="store_true", help="instead: time of an update of every method; wants quiet cores")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell (3)")
    parser.add_argument("--parallel", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time (one a core)")
    parser.add_argument("--out", type=Path, default=Path("runs/stability"), help="folder of the runs (runs/stability)")
    parser.add_argument("--program", default="isentrope", help="the isentrope program")
    parser.add_argument("--write", metavar="FILE", help="fill the tables of this page, such as docs/stability.md")
    args = parser.parse_args()
    if args.seeds < 1 or args.parallel < 1:
        parser.error("--seeds and --parallel must be at least 1")
    if args.time:
        lines = times(args.program, args.out)
        print("\n".join(lines))
        if args.write:
            write_page(args.write, {"time": lines})
        return

    one_byte, two_bytes = byte_levels()
    results, failures = {}, []

    def climb(group):
        before = None
        for cell in group:
            runs = [run(args.program, cell, seed, args.out) for seed in range(args.seeds)]
            results[cell] = runs
            loss = statistics.fmean(r["test"] or math.inf for r in runs)
            failed = all(verdict(r, one_byte).split("+")[0] in ("stalled", "diverged") for r in runs)
            if failed and before is not None and loss >= before:  # a first rate may be too low to learn anything
                return
            before = loss

    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        for future in [pool.submit(climb, group) for group in (FULL if args.full else DECISIVE)]:
            try:
                future.result()
            except Exception as error:
                failures.append(str(error))
    methods = [*METHODS, *ABLATION, *(cell.method for cell in results)]
    order = lambda cell: (list(TITLES).index(cell.table), ("pre", "post", "none").index(cell.norm), methods.index(cell.method), cell.rate)  # noqa: E731
    results = {cell: results[cell] for cell in sorted(results, key=order)}
    places = page(results, one_byte, two_bytes)
    for name, lines in places.items():
        if name.endswith("-summary") and args.full or not name.endswith("-summary"):
            title = TITLES.get(name.removesuffix("-summary"), name)
            print(f"\n{title}\n\n" + "\n".join(lines))
    if args.write:
        write_page(args.write, places)
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
