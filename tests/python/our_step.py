"""One step of our trainer with its completions, for tests that take the same step in another host: the policy phase of a tiny run, whose
step learns twice from one batch, so that the second update has ratios that are not 1."""

import json
from pathlib import Path
from typing import NamedTuple

import isentrope

LETTERS = "abcdefgh+= 0123456789."  # the last one ends a sequence
PROMPTS = ["abc", "1+2=", "cab", "h 5 9 a", "deed", "4=2", "b", "face"]
K, LR = 4, 1e-3  # of a rate of 1e-2 tokens have a k3 above 10, which TRL does not bound
CONFIG = """
run: {{dir: {folder}/run, seed: 3, threads: 1, device: cpu, checkpoint_every: 0}}
model: {{num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 48, max_position_embeddings: 64}}
tokenizer: {{characters: "{letters}"}}
phases:
  - name: sft
    objective: {{kind: sft}}
    data: {{jsonl: {{path: {folder}/data.jsonl, validation_fraction: 0}}}}
    batch: {{sequences: 8}}
    optimizer: {{lr: 1.0e-2}}
    steps: 12
    evaluation: {{every: 0, skip: true}}
  - name: grpo
    objective: {objective}
    data: {{jsonl: {{path: {folder}/data.jsonl, validation_fraction: 0}}}}
    rollout: {{prompts: 4, num_generations: {k}, max_new_tokens: 8, mini_batches: 1, epochs: 2, save_every: 1{sampling}}}
    reward: [{{kind: sums}}]
    advantage: {advantage}
    weight: {weight}
    optimizer: {{kind: adamw, lr: {lr}, betas: [0.9, 0.999], eps: 1.0e-8, weight_decay: 0.0, max_grad_norm: 1.0}}
    schedule: {{kind: constant, warmup_steps: 0}}
    steps: 1
    evaluation: {{every: 0, skip: true}}
test: {{prompts: 1, sampled_prompts: 1, num_generations: 1}}
"""


class Completion(NamedTuple):
    prompt: list[int]
    own: list[int]
    logprob: list[float]
    entropy: list[float]
    drawn_by: list[float]  # log-probabilities under what it was drawn from
    reward: float
    group: int


class Step(NamedTuple):
    start: Path  # the model before it, and behind it, as transformers opens them
    end: Path
    metrics: dict  # of its two updates: means
    completions: list[Completion]


def sums(prompts, completions, meta):
    """Between 0 and 1, from the sum of the characters: other completions, other rewards."""
    return [(37 * sum(text.encode()) % 101) / 101 for text in completions]


def step(folder, objective="{kind: grpo}", advantage="[{kind: grpo, eps: 1.0e-4}]", weight="[]", sampling=""):
    lines = [json.dumps({"prompt": prompt, "completion": prompt[::-1] + "."}) for prompt in PROMPTS]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    text = CONFIG.format(folder=folder, letters=LETTERS, k=K, lr=LR, objective=objective, advantage=advantage, weight=weight, sampling=sampling)
    (folder / "config.yaml").write_text(text)
    trainer = isentrope.Trainer(folder / "config.yaml", rewards={"sums": sums})
    (metrics,) = [line for line in trainer if line["phase"] == "grpo" and "loss" in line]
    number = {letter: i + 1 for i, letter in enumerate(LETTERS)}  # 0 pads
    drawn = [json.loads(line) for line in (folder / "run" / "rollouts" / "grpo.jsonl").read_text().splitlines()]
    completions = [
        Completion([number[c] for c in x["prompt"]], x["ids"], x["logprob"], x["entropy"], x.get("sampling_logprob", x["logprob"]), x["reward"], x["group"])
        for x in drawn
    ]  # fmt: skip
    assert len(completions) == 4 * K and len({x.reward for x in completions}) > K
    ((start,), (end,)) = ([*(folder / "run" / "checkpoints").glob(f"{phase}-*")] for phase in ("sft", "grpo"))
    return Step(start, end, metrics, completions)
