"""Two ranks of one thread each beside one rank with two threads: steps of the quickstart's model, and of one of 85 million weights.

Runs begin in turn, in the same rounds; a step's time is the median of the differences of time_s, the first two steps left out. ours is two ranks,
and a ratio above 1 says that they are faster. The shape says how many bytes a rank sends a step, as a multiple of the least: (n-1)/n of the gradients and as much of the
weights; rollouts are in it.
"""

import json
import os
import socket
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"

SHORT = ["test.skip=true", "run.checkpoint_every=0", "run.device=cpu"]
LARGE = ["model.num_hidden_layers=12", "model.hidden_size=768", "model.num_attention_heads=12", "model.num_key_value_heads=12",
         "model.intermediate_size=2048"]  # fmt: skip
CASES = {
    "quickstart, sft": (["phases.sft.steps=14", "phases.grpo.steps=1"], "sft"),
    "quickstart, grpo": (["phases.sft.steps=3", "phases.grpo.steps=5"], "grpo"),
    "85 million weights, sft": ([*LARGE, "phases.sft.steps=6", "phases.sft.batch.sequences=16", "phases.grpo.steps=1",
                                 "phases.grpo.rollout.prompts=4", "phases.grpo.rollout.num_generations=2"], "sft"),
}  # fmt: skip


def steps_of(ranks, threads, overrides, phase):
    """(seconds a step, bytes over the least) of a run of its own."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [PROGRAM, "train", "configs/quickstart.yaml", f"run.dir={folder}/run", f"run.threads={threads}", *SHORT, *overrides, "--quiet"]
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
        runs = [subprocess.Popen(command, cwd=ROOT, env=os.environ | place | {"RANK": str(rank)}, stdout=subprocess.DEVNULL) for rank in range(ranks)]
        if any([run.wait() for run in runs]):
            raise RuntimeError(f"{command} ended with an error")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = lines[0]["run"]["trained"]
    mine = [line for line in lines if line.get("phase") == phase and "loss" in line]
    seconds = [after["time_s"] - before["time_s"] for before, after in zip(mine, mine[1:])][1:]
    least = 2 * (ranks - 1) * 4 * trained * (4 if phase == "grpo" else 1)  # the quickstart's rollout.mini_batches
    return statistics.median(seconds), statistics.median([line.get("ranks/bytes", 0) for line in mine]) / max(least, 1)


def rows(threads=2, rounds=5):
    threads = max(threads, 2)
    found = []
    for name, (overrides, phase) in CASES.items():
        ours, theirs, sent = [], [], 0.0
        for _ in range(rounds):
            theirs.append(steps_of(1, threads, overrides, phase)[0])
            seconds, sent = steps_of(threads, 1, overrides, phase)
            ours.append(seconds)
        ratios = [b / a for a, b in zip(ours, theirs)]
        found.append(
            {"op": "ranks", "shape": f"{name}, {sent:.2f} x the least bytes", "dtype": "float32", "threads": threads,
             "ours_s": statistics.median(ours), "peer": f"one rank, {threads} threads", "peer_s": statistics.median(theirs),
             "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)], "target": 0.95}
        )
    return found
