"""Stages whose quality is known, to see what a search over budgets finds (planted.yaml).

An answer is right with probability p, of the share `cap` of questions that its model can answer at all: of n samples, of which the right
one is found, cap · (1 - (1 - p)^n). Instead of drawing, question i is given the i-th of evenly spread numbers, so that the share of right ones
is that to one question.
"""

from collections.abc import Mapping, Sequence
from typing import Any

QUALITY = {"7b": (0.22, 0.80), "32b": (0.45, 0.90), "72b": (0.60, 0.94), "3b": (0.30, 0.86), "8b": (0.40, 0.88), "70b": (0.50, 0.90)}
SPREAD = {"find": 0.7548776662466927, "solve": 0.5698402909980532}  # 1/g and 1/g^2 with g^3 = g + 1: even in the plane


def quality(model: str, samples: int) -> float:
    p, cap = QUALITY[model]
    return cap * (1 - (1 - p) ** samples)


def answer(questions: Sequence[str], examples: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> list[str]:
    """The question's answer where the stage is right and was given the right one of the stage before, else nothing."""
    least = quality(told["model"], told["samples"])
    spread = SPREAD[told["stage"]]
    return [question if (example["number"] + 1) * spread % 1 < least else "" for question, example in zip(questions, examples, strict=True)]
