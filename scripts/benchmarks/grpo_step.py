"""One GRPO step of SmolLM2-135M-Instruct against TRL's GRPOTrainer: 8 prompts × 8 completions of 64 tokens each, a reward in Python, then one
update over all 64 in passes of some 8 sequences (TRL's default), AdamW, weights in float32. Ours is `isentrope.Trainer`, drawing rollouts in bfloat16.

"bf16" is TRL with autocast to bfloat16 in the update, beside ours with `model.compute: bfloat16`. Activation checkpointing, TRL's default, is
off: the faster setting. All run in fresh processes, two at a time, that step in turn; the memory is the peak of a process (VmHWM), from its start. Values
first: completions of 64 tokens on all sides, and, as the weights are the same at the first step, entropies of them that are as near as some 4096 drawn
tokens of 64 sequences let them be."""

import tempfile

from finetune_worker import NEW, PROMPTS, SAMPLES
from smollm2 import Worker, folder, in_turn
from timing import compare

PEERS = ["transformers", "trl", "datasets"]
TARGET, MEMORY_TARGET, TOLERANCE = 4, 1 / 0.6, 0.15
RIVALS = {"float32": "TRL GRPOTrainer", "bfloat16": "TRL GRPOTrainer, bf16"}


def rows(rounds=3, threads=1):
    folder()
    table = []
    for compute, rival in RIVALS.items():
        with tempfile.TemporaryDirectory() as where:
            workers = {"ours": Worker("ours", "grpo", threads, where, dtype="bfloat16", compute=compute),
                       rival: Worker("rival", "grpo", threads, where, autocast=compute == "bfloat16")}  # fmt: skip
            found, peak = in_turn(workers, rounds)
        mine, theirs = found["ours"][0], found[rival][0]
        assert mine["length/mean"] == theirs["completions/mean_length"] == NEW, (mine, theirs)
        difference = abs(mine["entropy/mean"] - theirs["entropy"])
        assert difference <= TOLERANCE * theirs["entropy"], f"entropy of the first completions: ours {mine['entropy/mean']}, {rival} {theirs['entropy']}"
        row = {"op": "GRPO step, SmolLM2-135M", "shape": f"{PROMPTS} × {SAMPLES}, {NEW} new tokens", "dtype": compute, "threads": threads}
        table.append(row | compare({name: [step["seconds"] for step in steps[1:]] for name, steps in found.items()}, "ours", rival) | {"target": TARGET})
        table.append(row | {"op": row["op"] + ", peak memory", "peer": rival, "ratio": peak[rival] / peak["ours"], "target": MEMORY_TARGET,
                            "ours_bytes": peak["ours"], "peer_bytes": peak[rival]})  # fmt: skip
    return table
