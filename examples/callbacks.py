"""Callbacks: each step and each evaluation goes to a logger, here one with the interface of wandb.run.

    python examples/callbacks.py [key.path=value …]       for example run.dir=/tmp/logged phases.grpo.steps=5
"""

import sys
from pathlib import Path
from typing import Any

import isentrope


class Logger:
    """log(values, step=n), as loggers of experiments have it; n may not fall, and a phase begins anew at 1."""

    def __init__(self) -> None:
        self.best = 0.0

    def log(self, values: dict[str, Any], step: int) -> None:
        if step % 50 == 0 or "eval/split" in values:
            print(step, {name: value for name, value in values.items() if name in ("loss", "reward/mean", "eval/greedy")})


logger = Logger()


def on_step(metrics: dict[str, Any], step: int) -> None:
    logger.log(metrics, step=step)


def on_evaluation(metrics: dict[str, Any], step: int) -> None:
    logger.log(metrics, step=step)
    logger.best = max(logger.best, metrics.get("eval/greedy", 0.0))


config = Path(__file__).parent.parent / "configs" / "tiny" / "grpo.yaml"
trainer = isentrope.Trainer(config, overrides=sys.argv[1:])
trainer.train(on_step, on_evaluation, quiet=True)
print(f"best {logger.best:.2f}; on 16 validation prompts {trainer.evaluate('validation', prompts=16)['greedy']:.2f}")
