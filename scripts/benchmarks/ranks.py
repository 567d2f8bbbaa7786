"""Two ranks on two cores, one thread each (`torchrun --no-python --nproc-per-node 2 isentrope train …`), all on one machine's loopback.

Against one rank with two threads: SFT and GRPO of configs/quickstart.yaml, and of SmolLM2-135M on chain_sum (8 sequences; 4 prompts × 8 completions of at
most 48 tokens). Against two processes of torch's DistributedDataParallel over Gloo: transformers' Llama of the same sizes in float32, AdamW (fused), the gradient
clipped, the same number of full rows a step; "quickstart" 32 rows of 64 tokens, "SmolLM2-135M's size" 38 of its blocks with a vocabulary of bytes, 4 rows of
256 tokens. A step is the median time between two lines of metrics.jsonl, behind the second step of a phase; each round starts every contender anew.

"bytes sent" is what all ranks send in a step (ranks/bytes) against the least possible: each gradient once around the ring, each weight once, 2 · 4 (n-1) bytes a
weight. "optimiser states" is what AdamW's moments add to the peak of a process, by the peak with them less that without (sgd), of two ranks and of one.
Values first: the losses of the first step of one rank and two are equal to 1e-5."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from smollm2 import folder
from timing import compare

ROOT = Path(__file__).resolve().parents[2]
PEERS = ["transformers"]
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nnodes", "1"]
ONE_TARGET, DDP_TARGET, BYTES_TARGET, STATES_TARGET = 0.95, 1.2, 1 / 1.1, 1 / 0.55
SHAPES = [(163392,), (134700000,)]  # about as many weights; `--shape 163392` is the quickstart alone
QUICKSTART = {"layers": 3, "width": 64, "heads": 4, "kv": 4, "mlp": 192, "context": 64, "rows": 32, "steps": 40}
SMOLLM2 = {"layers": 38, "width": 576, "heads": 9, "kv": 3, "mlp": 1536, "context": 256, "rows": 4, "steps": 5}
TASKS = {
    SHAPES[0]: ("quickstart", QUICKSTART, "configs/quickstart.yaml", {"sft": 60, "grpo": 6}, []),
    SHAPES[1]: ("SmolLM2-135M", SMOLLM2, "configs/smollm2_chain_sum.yaml", {"sft": 5, "grpo": 4}, ["phases.grpo.rollout.prompts=4"]),
}
PRETRAIN = """
run: {{dir: {folder}/run, seed: 1, device: cpu, checkpoint_every: 0}}
model: {{num_hidden_layers: {layers}, hidden_size: {width}, num_attention_heads: {heads}, num_key_value_heads: {kv}, intermediate_size: {mlp}, max_position_embeddings: {context}}}
tokenizer: {{kind: bytes}}
phases:
  - name: pretrain
    objective: {{kind: pretrain}}
    data: {{corpus: {{paths: [{folder}/text.txt], validation_fraction: 0, test_fraction: 0}}}}
    batch: {{sequences: {rows}}}
    optimizer: {{kind: adamw, lr: 1.0e-4, betas: [0.9, 0.99], weight_decay: 0.01, max_grad_norm: 1.0}}
    schedule: {{kind: constant, warmup_steps: 0}}
    evaluation: {{every: 0}}
    steps: {steps}
test: {{skip: true}}
"""
DDP = """
import json, sys, time, torch, torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM
shape = json.loads(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(hidden_size=shape["width"], num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
    num_key_value_heads=shape["kv"], intermediate_size=shape["mlp"], vocab_size=257, max_position_embeddings=shape["context"], tie_word_embeddings=False))
model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
times = []
for _ in range(shape["steps"]):
    tokens = torch.randint(256, (shape["rows"] // dist.get_world_size(), shape["context"]))
    start = time.perf_counter()
    loss = model(input_ids=tokens, labels=tokens).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    loss.item()
    times.append(time.perf_counter() - start)
if dist.get_rank() == 0:
    print(json.dumps(times))
dist.destroy_process_group()
"""
# Its peak beside what it runs, which torchrun starts in its place.
PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
with open(f"{sys.argv[1]}/peak{os.environ.get('RANK', '0')}", "w") as file:
    file.write(str(usage.ru_maxrss * 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def launch(ranks, command, threads):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    prefix = [] if ranks == 1 else [*TORCHRUN, "--nproc-per-node", str(ranks), "--no-python"]
    result = subprocess.run([*prefix, *map(str, command)], capture_output=True, text=True, env=environment, cwd=ROOT)
    if result.returncode != 0:
        raise RuntimeError(f"{ranks} ranks: {' '.join(map(str, command))}\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.stdout


def train(ranks, config, where, *overrides):
    """The lines of metrics.jsonl of training steps, one thread a core: two of one rank, one of two."""
    with tempfile.TemporaryDirectory(dir=where) as run:
        threads = 2 if ranks == 1 else 1
        launch(ranks, [PROGRAM, "train", config, f"run.dir={run}/run", f"run.threads={threads}", *overrides, "--quiet"], threads)
        lines = [json.loads(line) for line in (Path(run) / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line and "split" not in line]


def seconds(lines, phase):
    times = [line["time_s"] for line in lines if line["phase"] == phase]
    return statistics.median(b - a for a, b in zip(times[1:], times[2:]))


def peak(ranks, config, where, optimizer):
    with tempfile.TemporaryDirectory(dir=where) as run:
        launch(ranks, [sys.executable, "-c", PEAK, run, PROGRAM, "train", config, f"run.dir={run}/run", "run.threads=1",
                       "phases.pretrain.steps=3", f"phases.pretrain.optimizer={optimizer}", "--quiet"], 1)  # fmt: skip
        return statistics.mean(int(path.read_text()) for path in Path(run).glob("peak*"))


def against_one(name, config, steps, overrides, rounds, where):
    overrides = [*overrides, "test={skip: true}", "run.checkpoint_every=0"]
    for phase, count in steps.items():
        overrides += [f"phases.{phase}.steps={count}", f"phases.{phase}.evaluation={{every: 0}}"]
    if name == "quickstart":
        overrides.append("phases.sft.stop=null")
    times = {(ranks, phase): [] for ranks in (1, 2) for phase in steps}
    for round_ in range(rounds):
        order = [1, 2] if round_ % 2 else [2, 1]
        lines = {ranks: train(ranks, config, where, *overrides) for ranks in order}
        first = {ranks: lines[ranks][0]["loss"] for ranks in order}
        assert abs(first[2] - first[1]) <= 1e-5 * abs(first[1]), f"loss of the first step: one rank {first[1]}, two {first[2]}"
        for ranks, phase in times:
            times[ranks, phase].append(seconds(lines[ranks], phase))
    for phase in steps:
        compared = compare({"two": times[2, phase], "one rank, two threads": times[1, phase]}, "two", "one rank, two threads")
        yield {"op": f"{phase} step, two ranks", "shape": name, "dtype": "float32", "threads": 1, **compared, "target": ONE_TARGET}
    sent = [line["ranks/bytes"] for line in lines[2] if line["phase"] == "sft"]
    weights = WEIGHTS[name]
    least = 2 * 4 * weights
    yield {"op": "bytes sent, sft step, two ranks", "shape": name, "dtype": "float32", "threads": 1, "peer": "the least possible",
           "ratio": least / statistics.median(sent), "target": BYTES_TARGET, "ours_bytes": statistics.median(sent), "peer_bytes": least}  # fmt: skip


WEIGHTS = {"quickstart": 163392, "SmolLM2-135M": 134515008}


def against_ddp(name, shape, rounds, where):
    (where / "text.txt").write_text("".join(chr(97 + (7 * i * i + i) % 26) for i in range(200000)))
    config = where / "pretrain.yaml"
    config.write_text(PRETRAIN.format(folder=where, **shape))
    script = where / "ddp.py"
    script.write_text(DDP)
    times = {"ours": [], "torch DDP (Gloo)": []}
    for round_ in range(rounds):
        for who in list(times) if round_ % 2 else list(times)[::-1]:
            if who == "ours":
                times[who].append(seconds(train(2, config, where), "pretrain"))
            else:
                found = launch(2, [sys.executable, script, json.dumps(shape)], 1)
                times[who].append(statistics.median(json.loads(found.strip().splitlines()[-1])[2:]))
    yield {"op": "pretrain step, two ranks", "shape": f"{name}, {shape['rows']} × {shape['context']}", "dtype": "float32", "threads": 1,
           **compare(times, "ours", "torch DDP (Gloo)"), "target": DDP_TARGET}  # fmt: skip
    if shape is SMOLLM2:
        moments = "{kind: adamw, lr: 1.0e-4}", "{kind: sgd, lr: 1.0e-4, betas: [0.0]}"
        held = {ranks: peak(ranks, config, where, moments[0]) - peak(ranks, config, where, moments[1]) for ranks in (1, 2)}
        yield {"op": "optimiser states of a rank, two ranks", "shape": f"{name}, adamw", "dtype": "float32", "threads": 1, "peer": "one rank",
               "ratio": held[1] / held[2], "target": STATES_TARGET, "ours_bytes": held[2], "peer_bytes": held[1]}  # fmt: skip


def rows(rounds=7, threads=1):
    table = []
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        for key in SHAPES:
            model, shape, config, steps, overrides = TASKS[key]
            few = rounds if model == "quickstart" else min(rounds, 3)
            if model != "quickstart":
                folder()
            table += against_one(model, config, steps, overrides, few, where)
            table += against_ddp(model if model == "quickstart" else model + "'s size", shape, few, where)
    return table
