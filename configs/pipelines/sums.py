"""Functions of the pipelines beside it."""

from collections.abc import Mapping, Sequence
from typing import Any


def no_plus(questions: Sequence[str], examples: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> list[str]:
    """A number without a sign of plus; 0 for what is none."""
    return [question.removeprefix("+") or "0" for question in questions]


def add(questions: Sequence[str], examples: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> list[str]:
    """The sum of numbers with + between; ? for what is none."""
    found = []
    for question in questions:
        try:
            found.append(str(sum(int(part) for part in question.split("+"))))
        except ValueError:
            found.append("?")
    return found
