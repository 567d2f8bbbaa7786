"""What a checkpoint within a phase costs a run, of weights drawn at random: a model of the quickstart's shape (64 sequences of 64 tokens a step), and one of
SmolLM2-135M's size (38 of its blocks with a vocabulary of bytes, 135 million weights, 1.6 GB of checkpoint; 2 sequences of 512 tokens), sft, AdamW, float32.

`isentrope train` saves every few steps; the time of a step is that between two lines of its metrics. A step beside a write is the one behind the save: it
has the copy, and the writer's thread beside it. Its rivals are an ordinary step of the same turn (the median of the turn's later half, in which nothing is written)
with the copy alone, measured as `clone` of tensors of the same shapes by a process with the allocator's settings of the program; and that step with a write that
training waits for (`Trainer.save()`). The second row is of the whole write: what all steps that it lasted for took longer, laid on one. The shape says what
is beyond the copy, in steps; the target is at most 0.05. Values first: each checkpoint was there, with its digests, by the middle of its turn."""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"
TARGET = 1 / 1.05
QUICKSTART = {"layers": 3, "width": 64, "heads": 4, "kv": 4, "mlp": 192, "context": 64, "sequences": 64, "every": 8}
SMOLLM2 = {"layers": 38, "width": 576, "heads": 9, "kv": 3, "mlp": 1536, "context": 512, "sequences": 2, "every": 6}
SHAPES = [(163392,), (134700000,)]  # about as many weights; `--shape 163392` is the quickstart alone
MODELS = {SHAPES[0]: ("quickstart", QUICKSTART), SHAPES[1]: ("SmolLM2-135M's size", SMOLLM2)}

CONFIG = """
run: {{dir: {folder}/run, seed: 1, threads: {threads}, device: cpu, checkpoint_every: {every}, keep: 1}}
model: {{num_hidden_layers: {layers}, hidden_size: {width}, num_attention_heads: {heads}, num_key_value_heads: {kv}, intermediate_size: {mlp}, max_position_embeddings: {context}}}
tokenizer: {{kind: bytes}}
phases:
  - name: sft
    objective: {{kind: sft}}
    data: {{jsonl: {{path: {folder}/examples.jsonl, validation_fraction: 0, test_fraction: 0}}}}
    batch: {{sequences: {sequences}}}
    optimizer: {{kind: adamw, lr: 1.0e-5}}
    schedule: {{kind: constant, warmup_steps: 0}}
    evaluation: {{every: 0}}
    steps: 1000000
test: {{skip: true}}
"""
COPY = """
import json, sys, time, torch
torch.set_num_threads(int(sys.argv[2]))
tensors = [torch.ones(shape) for shape in json.loads(sys.argv[1])]
for _ in range(9):
    start = time.perf_counter()
    copies = [tensor.clone() for tensor in tensors]
    print(time.perf_counter() - start)
    del copies
"""
SAVE = """
import sys, time, isentrope
trainer = isentrope.Trainer(sys.argv[1], overrides={"run.checkpoint_every": 0, "run.dir": sys.argv[2]})
next(iter(trainer))
start = time.perf_counter()
trainer.save()
print(time.perf_counter() - start)
"""


def prepare(folder, threads, shape):
    rng = random.Random(3)
    with open(folder / "examples.jsonl", "w") as file:
        for _ in range(256):  # one token each, and the end
            text = "".join(rng.choice("abcdefghij ") for _ in range(shape["context"] - 2))
            file.write(json.dumps({"prompt": "x", "completion": text}) + "\n")
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, threads=threads, **shape))


def turns(folder, every, count, environment):
    """[[seconds of each step of a turn, the first beside the write]], of `count` turns behind the first save."""
    metrics, checkpoints = folder / "run" / "metrics.jsonl", folder / "run" / "checkpoints"
    times, read = [], 0
    with subprocess.Popen([PROGRAM, "train", folder / "config.yaml", "--quiet"], env=environment) as run:
        try:
            while len(times) < every * (count + 1):
                if run.poll() is not None:
                    raise RuntimeError(f"{PROGRAM} ended with exit code {run.returncode}")
                time.sleep(0.02)
                if not metrics.exists() or metrics.stat().st_size == read:
                    continue
                with open(metrics, "rb") as file:
                    file.seek(read)
                    lines = file.read().rpartition(b"\n")[0]
                read += len(lines) + bool(lines)
                times += [line["time_s"] for line in map(json.loads, lines.splitlines()) if "time_s" in line]
                saved = len(times) - every // 2
                if saved > 0 and saved % every == 0:
                    assert (checkpoints / f"sft-{saved:06}" / "DONE").exists(), f"the write of step {saved} takes longer than {every // 2} steps"
        finally:
            run.kill()
    steps = [after - before for before, after in zip(times, times[1:])]  # steps[i]: that behind step i + 1
    return [steps[every * turn - 1 : every * (turn + 1) - 1] for turn in range(1, count + 1)]


def shapes_in(checkpoint):
    found = []
    for name in ("model.safetensors", "trainer.safetensors"):
        with open(checkpoint / name, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found += [entry["shape"] for key, entry in header.items() if key != "__metadata__"]
    return found


def output(command, environment):
    return [float(word) for word in subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()]


def measure(name, shape, threads, rounds):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    kept = environment | {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}  # csrc/train/process.cpp
    every, half = shape["every"], shape["every"] // 2
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        prepare(folder, threads, shape)
        cycles = turns(folder, every, rounds, environment)
        (newest,) = (path for path in (folder / "run" / "checkpoints").glob("sft-??????"))
        copies = output([sys.executable, "-c", COPY, json.dumps(shapes_in(newest)), str(threads)], kept)
        (waited,) = output([sys.executable, "-c", SAVE, folder / "config.yaml", folder / "waits"], environment)
    copy = statistics.median(copies[2:])
    plain = [statistics.median(cycle[half:]) for cycle in cycles]
    beside = [cycle[0] for cycle in cycles]
    whole = [sum(cycle[:half]) - (half - 1) * step for cycle, step in zip(cycles, plain)]

    def row(what, ours, rival, extra, target=None):
        beyond = statistics.median((mine - copy) / step - 1 for mine, step in zip(ours, plain))
        ratios = [(step + extra) / mine for mine, step in zip(ours, plain)]
        found = {"op": "checkpoint", "shape": f"{name}, {what}: {beyond:+.3f} steps beyond the copy", "dtype": "float32", "threads": threads,
                 "ours_s": statistics.median(ours), "peer": rival, "peer_s": statistics.median(plain) + extra,
                 "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}  # fmt: skip
        return found if target is None else found | {"target": target}

    alone = f"a step and the copy ({copy * 1e3:.3g} ms)"
    return [row("a step beside the write", beside, alone, copy, TARGET), row("the whole write", whole, alone, copy, TARGET),
            row("the whole write", whole, f"training waits for it ({waited * 1e3:.3g} ms)", waited)]  # fmt: skip


def rows(threads=1, rounds=None):
    return [one for shape in SHAPES for one in measure(*MODELS[tuple(shape)], threads, rounds or (25 if tuple(shape) == (163392,) else 3))]
