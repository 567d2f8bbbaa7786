"""Peak memory of a process that fine-tunes SmolLM2-135M-Instruct, against transformers' Trainer: 8 sequences of 256 tokens a step, loss of their
completions alone, AdamW, activations kept. Ours is `isentrope.Trainer`, and `isentrope train`; both take logits a block of the vocabulary at a time. bfloat16 is
`model.compute: bfloat16` beside the Trainer's `bf16`; weights, gradients and moments are float32 everywhere.

Each trains two steps in a fresh process; the peak is VmHWM, from its start, libraries and all, of which torch of a CUDA build takes 0.4 GB in a program
and 0.54 GB in Python. Of float32 weights, gradients and two moments there are 2.15 GB on both sides. Values first: equal losses of the first step.
Rows that the order of data gives are the same in length."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from finetune_worker import our_config
from smollm2 import ROOT, Worker, folder

PEERS = ["transformers", "datasets"]
MEMORY_TARGET, TOLERANCE = 1 / 0.6, 0.02
# (whose, whether in bfloat16)
RUNS = [(whose, narrow) for narrow in (False, True) for whose in ("isentrope.Trainer", "isentrope train", "transformers Trainer")]
OURS = {"isentrope.Trainer": "", "isentrope train": ", of the program"}
PAIRS = [(False, False), (True, True), (False, True)]  # ours, theirs
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"


def of_program(threads, where, compute):
    """(loss of the first of two steps, peak in bytes)"""
    (where / "config.yaml").write_text(our_config("sft", threads, where, "model", folder(), compute))
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
    for run in RUNS:
        whose, narrow = run
        compute = "bfloat16" if narrow else "float32"
        with tempfile.TemporaryDirectory() as where:  # one after the other: all at once may not fit into the machine
            if whose == "isentrope train":
                loss[run], peak[run] = of_program(threads, Path(where), compute)
                continue
            side, options = ("ours", {"compute": compute}) if whose in OURS else ("rival", {"autocast": narrow})
            worker = Worker(side, "sft", threads, where, **options)
            loss[run] = float(worker()["loss"])
            worker()
            peak[run] = worker.end()
    for narrow, theirs_narrow in PAIRS:
        for whose, what in OURS.items():
            ours, theirs = (whose, narrow), ("transformers Trainer", theirs_narrow)
            assert abs(loss[ours] - loss[theirs]) <= TOLERANCE * loss[theirs], f"loss of the first step: {ours} {loss[ours]}, {theirs} {loss[theirs]}"
            table.append({"op": f"SFT step, SmolLM2-135M, peak memory{what}", "shape": "8 × 256 tokens", "dtype": "bfloat16" if narrow else "float32",
                          "threads": threads, "peer": "transformers Trainer" + (", bf16" if theirs_narrow else ""), "ratio": peak[theirs] / peak[ours],
                          "ours_bytes": peak[ours], "peer_bytes": peak[theirs]} | ({"target": MEMORY_TARGET} if narrow == theirs_narrow else {}))  # fmt: skip
    return table
