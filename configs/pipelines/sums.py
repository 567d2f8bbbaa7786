"""Functions of the pipelines beside it."""

from collections.abc import Mapping, Sequence
from typing import Any


def no_plus(questions: Sequence[str], examples: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> list[str]:
    """A number without a sign of plus; 0 for what is none."""
    return [question.removeprefix("+") or "0" for question in questions]
