"""A method of one's own in Python: a token counts by how surprising it was.

python examples/own_method/own_method.py [STEPS]
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import isentrope


@isentrope.methods.register("surprise")
def surprise(logprob: Tensor, mask: Tensor, power: float = 1.0) -> Tensor:
    """(-logprob)^power over its mean. Arguments are found by name: tensors of csrc/methods/method.h, and the other keys of the entry."""
    weight = (-logprob).clamp_min(0).pow(power).masked_fill(~mask, 0)
    return weight * (mask.sum() / weight.sum().clamp_min(1e-6))


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    trainer = isentrope.Trainer(
        Path(__file__).with_name("own_method.yaml"),
        overrides={"phases.grpo.steps": steps, "phases.grpo.weight": "[{kind: op, op: surprise, power: 0.5}]"},
    )
    with torch.no_grad():
        for line in trainer:
            if "weight/mean" in line:
                print(f"step {line['step']}: mean weight {line['weight/mean']:.3f}, reward {line['reward/mean']:.3f}")
