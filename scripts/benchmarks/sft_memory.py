"""Peak memory of a process that fine-tunes SmolLM2-135M-Instruct, against transformers' Trainer: 8 sequences of 256 tokens a step, loss of their
completions alone, AdamW, float32. Ours is `isentrope.Trainer`, which takes logits a block of the vocabulary at a time.

Each trains two steps in a fresh process; the peak is VmHWM, from its start, libraries and all. Of float32 weights, gradients and two moments
there are 2.15 GB on both sides. Values first: equal losses of the first step. Rows that the order of data gives are the same in length."""

import tempfile

from smollm2 import Worker, folder

PEERS = ["transformers", "datasets"]
MEMORY_TARGET, TOLERANCE = 1 / 0.6, 0.02
RIVALS = {"transformers Trainer": False, "transformers Trainer, bf16": True}


def rows(threads=1):
    folder()
    table, found, peak = [], {}, {}
    for name, side in {"ours": {}, **{name: {"autocast": autocast} for name, autocast in RIVALS.items()}}.items():
        with tempfile.TemporaryDirectory() as where:  # one after the other: all at once may not fit into the machine
            worker = Worker("rival" if side else "ours", "sft", threads, where, **side)
            found[name] = [worker(), worker()]
            peak[name] = worker.end()
    for name in RIVALS:
        mine, theirs = found["ours"][0]["loss"], float(found[name][0]["loss"])
        assert abs(mine - theirs) <= TOLERANCE * theirs, f"loss of the first step: ours {mine}, {name} {theirs}"
        table.append({"op": "SFT step, SmolLM2-135M, peak memory", "shape": "8 × 256 tokens", "dtype": "float32", "threads": threads, "peer": name,
                      "ratio": peak[name] / peak["ours"], "target": MEMORY_TARGET, "ours_bytes": peak["ours"], "peer_bytes": peak[name]})  # fmt: skip
    return table
