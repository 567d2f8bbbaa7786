#!/usr/bin/env python3
"""What several ranks send each other, as a formula, counted, and for machines that are not here. 
    scripts/scaling.py                      the formula for 1B and 8B weights on 8, 64 and 1024 GPUs
    scripts/scaling.py --count 2 3 4 8      runs a small model on so many ranks and compares what it counts (metric ranks/bytes)
    scripts/scaling.py --count 2 3 4 5 6 7 8 --markdown docs/scaling.md
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUCKET = 8 << 20  # kBucketBytes of csrc/train/gradients.cpp
# Speeds by their makers: NVLink of an H100 SXM in one direction, a 400 Gbit/s adapter a GPU beyond the eight of a machine; the rate is 40 % of its
# 989 TFLOP/s of bfloat16. Seconds that a message takes of any size: NCCL over such adapters, 5 to 10 µs by its users.
NVLINK, NETWORK, RATE, MESSAGE = 450e9, 50e9, 0.4 * 989e12, 8e-6
TOKENS = 16384  # of a rank in an update
MEMORY = 80e9


def least_bytes(weights, ranks):
    """Of an update, all ranks together: each gradient once around the ring, each weight once, in float32."""
    return 2 * 4 * weights * (ranks - 1)


def update_bytes(weights, ranks, tokens=0, verbs=0):
    """What this design sends: that, 4 bytes of log-probability a token to every rank (grpo alone), and 64 bytes a verb of Ranks, twice around the ring."""
    return least_bytes(weights, ranks) + 4 * tokens * (ranks - 1) + 128 * verbs * (ranks - 1)


def estimate(weights, ranks):
    """Of one rank and update: seconds of links and of messages, seconds of products, bytes of memory, without activations."""
    link = NVLINK if ranks <= 8 else NETWORK
    links = (least_bytes(weights, ranks) / ranks + 4 * TOKENS * (ranks - 1)) / link
    messages = (math.ceil(4 * weights / BUCKET) * (ranks - 1) + ranks * math.ceil(math.log2(ranks))) * MESSAGE
    products = 6 * weights * TOKENS / RATE
    # Weights, their two copies in bfloat16, gradients, copies before the update; moments and their copies are shared out.
    memory = weights * (4 + 4 + 4 + 4 + 16 / ranks)
    return links, messages, products, memory


def table():
    lines = ["| weights | GPUs | links, s | messages, s | products, s | links and messages / products | memory of a rank without activations, GB |",
             "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for weights in (1e9, 8e9):
        for ranks in (8, 64, 1024):
            links, messages, products, memory = estimate(weights, ranks)
            over = " (over 80)" if memory > MEMORY else ""
            lines.append(f"| {weights / 1e9:.0f}B | {ranks} | {links:.3f} | {messages:.3f} | {products:.2f} | "
                         f"{(links + messages) / products:.2f} | {memory / 1e9:.0f}{over} |")  # fmt: skip
    return lines


CONFIG = """
run: {{dir: {folder}/run, threads: 1, device: cpu, checkpoint_every: 0}}
model: {{num_hidden_layers: 4, hidden_size: 128, num_attention_heads: 4, num_key_value_heads: 4, intermediate_size: 384, max_position_embeddings: 64}}
tokenizer: {{characters: "0123456789abcdefgh+-=:A."}}
phases:
  - name: sft
    objective: {{kind: sft}}
    data: {{tint: {{task: signed_sum, terms: [3, 4, 5]}}}}
    batch: {{sequences: 32}}
    steps: 4
    evaluation: {{every: 0}}
  - name: grpo
    objective: {{kind: grpo, loss: kl_cov}}
    data: {{tint: {{task: signed_sum, terms: [3]}}}}
    rollout: {{prompts: 8, num_generations: 4, max_new_tokens: 16}}
    reward: [{{kind: answer}}]
    steps: 4
    evaluation: {{every: 0}}
test: {{skip: true}}
"""


def count(ranks, program=ROOT / "build" / "release" / "bin" / "isentrope"):
    """{phase: bytes of a step, all ranks together}, and how many weights the model has."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(CONFIG.format(folder=folder))
        command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nnodes", "1",
                   "--nproc-per-node", str(ranks), "--no-python", str(program), "train", f"{folder}/config.yaml", "--quiet"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if result.returncode != 0:
            raise RuntimeError(result.stdout[-2000:] + result.stderr[-2000:])
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    sent = {}
    for line in lines:
        if "ranks/bytes" in line:
            sent.setdefault(line["phase"], []).append(line["ranks/bytes"])
    return {phase: statistics.median(steps) for phase, steps in sent.items()}, next(line["run"]["parameters"] for line in lines if "run" in line)


def counted(many):
    lines = ["| ranks | least possible, MB | sft step, MB | / least | grpo step, MB | / least |", "| ---: | ---: | ---: | ---: | ---: | ---: |"]
    for ranks in many:
        sent, weights = count(ranks)
        least = least_bytes(weights, ranks)
        lines.append(f"| {ranks} | {least / 1e6:.3f} | " + " | ".join(f"{sent[p] / 1e6:.3f} | {sent[p] / least:.3f}" for p in ("sft", "grpo")) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, nargs="+", metavar="RANKS", help="runs of so many ranks")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write both tables into the page; needs --count")
    arguments = parser.parse_args()
    found = counted(arguments.count) if arguments.count else []
    if arguments.markdown:
        if not found:
            parser.error("--markdown needs --count: the page holds what was counted")
        page = arguments.markdown.read_text()
        for name, lines in {"counted": found, "estimated": table()}.items():
            page = re.sub(rf"(?s)(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, lines=lines: m[1] + "\n".join(["", *lines, "", m[2]]), page)
        arguments.markdown.write_text(page)
        return
    print("\n".join([*found, *([""] if found else []), *table()]))


if __name__ == "__main__":
    main()
