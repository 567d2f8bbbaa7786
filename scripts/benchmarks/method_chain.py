"""What a chain of five methods takes of the GRPO step that it belongs to: the cycle of scripts/benchmarks/cycle.py, quickstart's model, 256
completions of 34 tokens in 4 updates. Twice: the five methods by themselves, on tensors of the step's shapes, beside the step without
them; and whole steps with them beside steps without, in turn, whose noise is larger than the chain."""

import tempfile
from pathlib import Path

import torch

import isentrope
from isentrope import methods

from cycle import CHARACTERS, CONFIG, NEW, PROMPTS, SAMPLES, UPDATES, letters, our_cycle
from timing import compare, interleaved

CHAIN = """
    reward: [{kind: letters}, {kind: overlong, len: 8}]
    advantage: [{kind: grpo, std: batch}]
    weight: [{kind: top_entropy, fraction: 0.5}, {kind: soft_window, window: 11}]"""
OF_OBJECTIVE = "loss: clip, entropy: {kind: adaptive, target: 0.3}"


def trainer_of(folder, threads, config):
    our_cycle(folder, threads)  # writes the prompts
    (folder / "chain.yaml").write_text(config.format(folder=folder, threads=threads, characters=CHARACTERS))
    trainer = isentrope.Trainer(folder / "chain.yaml", rewards={"letters": lambda prompts, texts, meta: letters(texts)})
    steps = iter(trainer)
    return lambda: next(step for step in steps if step["phase"] == "grpo")


def chain(threads):
    """The five methods on one step: rewards and advantages of all completions, weights and the controller of each update."""
    generator = torch.Generator().manual_seed(5)
    B, T = PROMPTS * SAMPLES, NEW
    length = torch.full((B,), T)
    reward = torch.rand(B, generator=generator, dtype=torch.float64)
    group = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    mask = torch.ones(B // UPDATES, T, dtype=torch.bool)
    entropy = 2 * torch.rand(B // UPDATES, T, generator=generator)
    state = torch.tensor([0.01, 0.5], dtype=torch.float64)

    def step():
        advantage = methods.grpo(reward + methods.overlong(length, longest=T, len=8), group, std="batch")
        by_token = advantage.float()[: B // UPDATES, None].expand(-1, T).contiguous()
        for _ in range(UPDATES):
            methods.top_entropy(entropy, mask, fraction=0.5)
            methods.soft_window(entropy, by_token, mask, window=11)
            methods.adaptive_entropy(state, 0.5, target=0.3)

    return step


def rows(rounds=15, threads=1):
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        plain = trainer_of(Path(one), threads, CONFIG)
        with_methods = trainer_of(Path(other), threads, CONFIG.replace("reward: [{{kind: letters}}]", CHAIN.strip().replace("{", "{{").replace("}", "}}"))
                                  .replace("loss: clip", OF_OBJECTIVE.replace("{", "{{").replace("}", "}}")))  # fmt: skip
        by_itself = interleaved({"the chain": chain(threads), "the step": plain}, rounds)
        steps = interleaved({"with": with_methods, "without": plain}, rounds)
    shape = f"{PROMPTS} prompts x {SAMPLES} x {NEW} tokens"
    common = {"shape": shape, "dtype": "float32", "threads": threads}
    table = [{"op": "five methods by themselves", **common, **compare(by_itself, "the chain", "the step"), "target": 50}]
    return [*table, {"op": "a step with five methods", **common, **compare(steps, "with", "without")}]
