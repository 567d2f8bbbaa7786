"""Peak memory of a process that fine-tunes SmolLM2-135M-Instruct, against transformers' Trainer: 8 sequences of 256 tokens a step, loss of their
completions alone, AdamW, float32. Ours is `isentrope.Trainer`, and `isentrope train`; both take logits a block of the vocabulary at a time.

Each trains two steps in a fresh process; the peak is VmHWM, from its start, libraries and all. Of float32 weights, gradients and two moments
there are 2.15 GB on both sides. Values first: equal losses of the first step. Rows that the order of data gives are the same in length."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from finetune_worker import our_config
from smollm2 import ROOT, Worker, folder

PEERS = ["transformers", "datasets"]
MEMORY_TARGET, TOLERANCE = 1 / 0.6, 0.02
OURS = {"isentrope.Trainer": "", "isentrope train": ", of the program"}
RIVALS = {"transformers Trainer": False, "transformers Trainer, bf16": True}
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"


def of_program(threads, where):
    """(loss of the first of two steps, peak in bytes)"""
    (where / "config.yaml").write_text(our_config("sft", threads, where, "model", folder()))
    words = ["phases.sft.steps=2", "phases.sft.evaluation.every=0", "test={skip: true}", "--quiet"]
    process = subprocess.Popen([PROGRAM, "train", where / "config.yaml", *words])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"isentrope train ended with exit code {process.returncode}"
    lines = [json.loads(line) for line in (where / "run" / "metrics.jsonl").read_text().splitlines()]
    return next(line["loss"] for line in lines if line.get("step") == 1), usage.ru_maxrss * 1024


def rows(threads=1):
    folder()
    table, loss, peak = [], {}, {}
    for name in [*OURS, *RIVALS]:
        with tempfile.TemporaryDirectory() as where:  # one after the other: all at once may not fit into the machine
            if name == "isentrope train":
                loss[name], peak[name] = of_program(threads, Path(where))
                continue
            worker = Worker("rival", "sft", threads, where, autocast=RIVALS[name]) if name in RIVALS else Worker("ours", "sft", threads, where)
            loss[name] = float(worker()["loss"])
            worker()
            peak[name] = worker.end()
    for ours, what in OURS.items():
        for name in RIVALS:
            mine, theirs = loss[ours], loss[name]
            assert abs(mine - theirs) <= TOLERANCE * theirs, f"loss of the first step: {ours} {mine}, {name} {theirs}"
            table.append({"op": f"SFT step, SmolLM2-135M, peak memory{what}", "shape": "8 × 256 tokens", "dtype": "float32", "threads": threads, "peer": name,
                          "ratio": peak[name] / peak[ours], "target": MEMORY_TARGET, "ours_bytes": peak[ours], "peer_bytes": peak[name]})  # fmt: skip
    return table
