"""A reward in Python: the C++ trainer calls it for every batch of completions.

    python examples/custom_reward.py [key.path=value …]       for example run.dir=/tmp/brief phases.grpo.steps=10
"""

import sys
from pathlib import Path
from typing import Any

import isentrope


def brief(prompts: list[str], completions: list[str], meta: list[dict[str, Any]]) -> list[float]:
    """Between 0 and 1: the shorter a completion, the better. meta[i]["answer"] would be the right answer of prompt i.

    Completions are without their end; meta[i]["finished"] is False where there is none, since it was cut at max_new_tokens.
    """
    return [max(0.0, 1.0 - len(completion) / 20) for completion in completions]


config = Path(__file__).with_suffix(".yaml")
trainer = isentrope.Trainer(config, rewards={"brief": brief}, overrides=sys.argv[1:])
for metrics in trainer:  # a dict for each step and each evaluation
    if "reward/brief" in metrics and metrics["step"] % 10 == 0:
        print(f"step {metrics['step']:3d}  answer {metrics['reward/answer']:.2f}  brief {metrics['reward/brief']:.2f}  "
              f"length {metrics['length/mean']:.1f}  entropy {metrics['entropy/mean']:.3f}")
print(trainer.results)
