"""A controller of one's own in Python, which keeps a state: the coefficient of the entropy bonus is exp of a number that rises while the policy's
entropy is below a target and falls while it is above, as soft actor-critic finds its temperature (arXiv 1812.05905).

python examples/own_method/own_controller.py [STEPS]      a second call with more steps goes on where the first one ended
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import isentrope


@isentrope.methods.register("temperature")
def temperature(entropy: Tensor, mask: Tensor, state: Tensor, target: float = 0.5, rate: float = 0.1) -> tuple[Tensor, Tensor]:
    """What each token's entropy weighs in the bonus [B, T], exp(s), and the next s = s + rate · (target - mean entropy).

    state [1] float64 is s. It begins as the entry's key state says, and stands in checkpoints. An update is whole, all ranks included,
    so that s moves once an update, by the same amount however the update is cut.
    """
    mean = entropy.masked_select(mask).double().mean()
    return state.exp().float() * torch.ones_like(entropy), state + rate * (target - mean)


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    trainer = isentrope.Trainer(
        Path(__file__).with_name("own_method.yaml"),
        overrides={
            "run.dir": "runs/own_controller",
            "phases.grpo.steps": steps,
            "phases.grpo.objective.entropy": "{kind: op, op: temperature, state: [-4.0], target: 0.5, rate: 0.2}",
        },
        resume=Path("runs/own_controller").exists(),
    )
    for line in trainer:
        if "entropy_coef" in line:
            print(f"step {line['step']}: coefficient {line['entropy_coef']:.6f}, entropy {line['entropy/mean']:.4f}")
