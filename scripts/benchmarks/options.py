"""What options of training take of a step: runs with and without one, in turn, in the same rounds; a row's time is the median step of its
run, of the figures that metrics.jsonl has.

Gradient noise: the quickstart's model and batch. Composing four task vectors: the same model, whose coefficients are learned, beside the training of its
weights; both steps with their updates.
"""

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"
STEPS = 40


def step_seconds(folder, threads, *words):
    """The median over the second half of a run's steps of the seconds for a token, times the tokens of a step."""
    command = [PROGRAM, "train", "configs/quickstart.yaml", f"run.dir={folder}", f"run.threads={threads}", "run.device=cpu", "run.checkpoint_every=0", "--quiet",
               f"phases.sft.steps={STEPS}", "phases.sft.evaluation.every=0", "test.skip=true", "phases.grpo.evaluation.every=0", *words]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_s"] for line in lines if line.get("phase") == "sft" and "tokens_per_s" in line]
    return 1 / statistics.median(rates[STEPS // 2 :])


def rows(threads=1, rounds=7):
    """One dictionary an option."""
    with tempfile.TemporaryDirectory() as place:
        models = []
        for seed in range(5):
            folder = f"{place}/model{seed}"
            start = [f"model.pretrained={place}/model0"] if seed else []
            step_seconds(folder, threads, "phases.grpo.steps=1", "phases.sft.steps=2", f"run.seed={seed + 1}", *start)
            models.append(folder)
        start = f"model.pretrained={models[0]}"
        contenders = {
            "gradient noise": (["phases.sft.optimizer.noise={eta: 1.0e-8}"], ["phases.sft.optimizer.noise="], 1 / 1.02, "the step without"),
            "composing 4 task vectors": ([start, f"model.compose={{vectors: [{', '.join(models[1:])}]}}"], [start], 1 / 1.3, "a step of plain training"),
        }
        table = []
        for name, (with_it, without, target, rival) in contenders.items():
            ours, theirs = [], []
            for round_ in range(rounds):
                for words, times in ((with_it, ours), (without, theirs))[:: 1 if round_ % 2 else -1]:
                    times.append(step_seconds(f"{place}/run{len(ours)}{len(theirs)}{name[0]}", threads, "phases.grpo.steps=1", *words))
            ratios = [b / a for a, b in zip(ours, theirs)]
            table.append({"op": name, "shape": "quickstart, a token", "dtype": "float32", "threads": threads, "ours_s": statistics.median(ours), "peer": rival,
                          "peer_s": statistics.median(theirs), "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)], "target": target})  # fmt: skip
    return table
