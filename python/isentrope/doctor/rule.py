"""What a rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isentrope.doctor.columns import Column, Phase

POLICY, EVERY = ("grpo",), ("pretrain", "sft", "mlm", "tag", "grpo", "")


@dataclass(frozen=True)
class Evidence:
    """What a rule found in a phase."""

    first: int  # the steps that it speaks of
    last: int
    figure: str  # the figures, in words
    cause: str  # the likely one
    key: str  # whole path of the key to change
    value: str  # suggested for it
    shown: str  # what the picture shows: a key of metrics.jsonl
    picture: Column
    limit: float | None = None  # the value beyond which the rule speaks, where it is one of the picture's


@dataclass(frozen=True)
class Rule:
    name: str
    phases: tuple[str, ...]  # kinds of objective that it is about
    needs: tuple[str, ...]  # keys of metrics.jsonl without which it says nothing
    condition: str
    advice: str
    source: str  # of the threshold
    look: Callable[[Phase], Evidence | None]  # of the phase alone; raises NotJudged


def told(value: float) -> str:
    """Two digits: 0.034, 1.2, 340."""
    if value != value or abs(value) == float("inf"):
        return "not finite"
    return f"{value:.0f}" if abs(value) >= 100 else f"{float(f'{value:.2g}'):g}"


def percent(share: float) -> str:
    return f"{told(100 * share)} %"


def times(value: str, factor: float, otherwise: str) -> str:
    """A number of the configuration times a factor; what to say where it is no number."""
    try:
        return told(float(value) * factor)
    except ValueError:
        return otherwise
