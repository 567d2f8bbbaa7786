#!/usr/bin/env python3
"""Whether another build of this program learns the same: its metrics and this one's, step by step, from one start.

    scripts/compare_builds.py OLD [--steps 10] [--folder build/compare_builds] [--cases NAME …]

OLD is a checkout of an earlier commit with its build (build/release/bin/isentrope), whose configurations have the keys of their time. It
makes the starts: the supervised phase of tint_clip, tint_hard_clip and mixed_clip, each to its end, one minute or two. From them both builds
make STEPS steps of the policy phase of every configuration behind the figures of docs/methods.md, and of a few of their keys alone (CASES),
on one thread. Of each step the keys of metrics.jsonl that both have are compared, but for times.

A table comes out: how many keys; the steps all of whose numbers are the same to the last bit; the largest relative difference of the first
step (|a − b| / max(|a|, |b|), over numbers above 1e-9 in size) and the first step whose rollouts are others, in the sum of their lengths or
their mean reward: behind that two runs are two draws. Programs and configurations are run as they are; nothing is patched.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path

NEW = Path(__file__).resolve().parents[1]
TIMES = {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu", "sigma/time_share"}
GRPO, ROLLOUT = "phases.grpo.", "phases.grpo.rollout."
STARTS = {"tint": "tint_clip", "tint_hard": "tint_hard_clip", "mixed": "mixed_clip"}

# name: (configuration, overrides of both, of the old build, of this one)
CASES = {name: (name, [], [], []) for name in (
    "tint_clip", "tint_clip_higher", "tint_clip_cov", "tint_kl_cov", "tint_random",
    "tint_hard_clip", "tint_hard_clip_higher", "tint_hard_clip_cov", "tint_hard_kl_cov", "tint_hard_random",
    "mixed_clip", "mixed_clip_cov", "mixed_kl_cov", "ares", "adaptive")}  # fmt: skip
CASES |= {
    **{kind: ("tint_clip", [], [f"{ROLLOUT}advantage={{kind: {kind}}}"], [f"{GRPO}advantage=[{{kind: {kind}}}]"])
       for kind in ("dr_grpo", "rloo", "opo", "reinforce_plus_plus_baseline")},
    "overlong": ("tint_clip", [], [f"{ROLLOUT}overlong_buffer={{len: 12}}"], [f"{GRPO}reward=[{{kind: answer, weight: 1.0}}, {{kind: overlong, len: 12}}]"]),
    "filter_groups": ("tint_clip", [], [f"{ROLLOUT}filter_groups=true", f"{ROLLOUT}max_draws=3"],
                      [f"{GRPO}reward=[{{kind: answer, weight: 1.0}}, {{kind: filter_groups, max_draws: 3}}]"]),
    "entropy bonus": ("tint_clip", [], [f"{GRPO}objective.entropy_coef=0.01"], [f"{GRPO}objective.entropy={{kind: constant, coef: 0.01}}"]),
    "random for clip_cov": ("tint_clip_cov", [], [f"{GRPO}objective.loss=random", f"{GRPO}objective.random_like=clip_cov"], [f"{GRPO}weight=[{{kind: random}}]"]),
    **{loss: ("tint_clip", [f"{GRPO}objective.loss={loss}"], [], []) for loss in ("gspo", "cispo", "gpg")},
    "reference": ("tint_clip", [f"{GRPO}objective.ref_kl_coef=0.01"], [], []),
    "micro-batches": ("tint_kl_cov", [f"{GRPO}batch={{micro_tokens: 1000}}"], [], []),
}  # fmt: skip


def run(tree, configuration, folder, overrides):
    """metrics.jsonl of a run of that tree's program with that tree's configuration, as lines; a run that is there is not made again."""
    metrics = folder / "metrics.jsonl"
    if not (folder / "summary.json").exists():
        subprocess.run(["rm", "-rf", folder], check=True)
        program = tree / "build" / "release" / "bin" / "isentrope"
        words = [program, "train", tree / "configs" / f"{configuration}.yaml", f"run.dir={folder}", "run.threads=1", "test={prompts: 1, sampled_prompts: 1, num_generations: 1}", *overrides]
        done = subprocess.run(words, cwd=tree, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def start(old, family, folder):
    """The end of the supervised phase, by the old build: the checkpoint's folder."""
    made = folder / "starts" / family
    run(old, STARTS[family], made, ["phases.grpo.steps=1", "phases.grpo.evaluation={every: 0, skip: true}", "run.checkpoint_every=0"])
    (found,) = (made / "checkpoints").glob("sft-*")
    return found


def relative(a, b):
    return 0.0 if a == b or max(abs(a), abs(b)) < 1e-9 else abs(a - b) / max(abs(a), abs(b))


def compared(theirs, ours):
    """How two runs differ, from the lines of their steps."""
    steps = [(a, b) for a, b in zip(theirs, ours, strict=True)]
    keys = [key for key, value in steps[0][0].items() if isinstance(value, (int, float)) and key in steps[0][1] and key not in TIMES]
    apart = [{key: relative(a[key], b[key]) for key in a if key in b and isinstance(a[key], (int, float)) and key not in TIMES} for a, b in steps]
    equal = sum(not any(one.values()) for one in apart)
    worst = max(apart[0], key=apart[0].get)
    parts = next((i + 1 for i, (a, b) in enumerate(steps) if any(relative(a[key], b[key]) > 0 for key in ("generated", "reward/mean"))), None)
    until = max((max(one.values()) for one in apart[: (parts or len(steps) + 1) - 1]), default=0.0)
    more = sorted({key for _, b in steps for key in b} - {key for a, _ in steps for key in a})
    return {"keys": len(keys), "equal": equal, "steps": len(steps), "first": apart[0][worst], "worst": worst, "parts": parts, "until": until, "more": more}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=NEW / "build" / "compare_builds")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    arguments = parser.parse_args()
    old, folder, steps = arguments.old.resolve(), arguments.folder.resolve(), arguments.steps
    print("| run | keys | steps equal to the bit | largest relative difference of step 1 | up to where rollouts part | rollouts part at step |")
    print("| --- | ---: | ---: | --- | --- | ---: |")
    more = set()
    for name in arguments.cases:
        configuration, both, theirs, ours = CASES[name]
        family = configuration.rsplit("_hard_", 1)[0] + "_hard" if "_hard_" in configuration else "tint" if configuration.startswith("tint") else "mixed"
        common = [f"run.start={start(old, family, folder)}", f"{GRPO}steps={steps}", f"{GRPO}evaluation={{every: 0, skip: true}}", "run.checkpoint_every=0", *both]
        lines = []
        for tree, label, own in ((old, "old", theirs), (NEW, "new", ours)):
            made = run(tree, configuration, folder / f"{name.replace(' ', '_')}-{steps}-{label}", [*common, *own])
            lines.append([line for line in made if line.get("phase") == "grpo" and "loss" in line])
        found = compared(*lines)
        more |= set(found["more"])
        first = "0" if found["first"] == 0 else f"{found['first']:.1e} (`{found['worst']}`)"
        print(f"| {name} | {found['keys']} | {found['equal']} of {found['steps']} | {first} | {found['until']:.1e} | {found['parts'] or '–'} |", flush=True)
    print(f"\nKeys that this build alone has: {', '.join(sorted(more))}")


if __name__ == "__main__":
    main()
