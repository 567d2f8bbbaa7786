"""How answers are scored, and which of several is taken."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from isentrope.pipeline.document import PipelineError, Section, shown
from isentrope.reward_functions import Reward, RewardError, named, numbers

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
BUILT_IN = ("exact", "number", "reasoning_gym", "math")


def number_in(text: str) -> Fraction | None:
    """The last number of a text, exactly: 1,250 and 2.5 and 7/2 are numbers; None without one."""
    found = NUMBER.findall(text)
    if not found:
        return None
    whole, _, below = found[-1].replace(",", "").partition("/")
    return Fraction(whole) / int(below) if below and int(below) else Fraction(whole)


def exact(_: Sequence[str], answers: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """1 where the answer is the example's, white space at its ends aside; None where the example has none."""
    return [None if about.get("answer") is None else float(answer.strip() == str(about["answer"]).strip()) for answer, about in zip(answers, examples, strict=True)]


def number(_: Sequence[str], answers: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """1 where the last number of the answer equals the last one of the example's answer; None where that has none."""
    wanted = [number_in(str(about.get("answer", ""))) for about in examples]
    return [None if right is None else float(number_in(answer) == right) for answer, right in zip(answers, wanted, strict=True)]


class Scorer:
    """A reward's function by its name: of questions, answers and examples a score each, None where it does not apply."""

    def __init__(self, name: str, function: Reward) -> None:
        self.name, self.function = name, function

    @classmethod
    def of(cls, section: Section, key: str) -> Scorer:
        """Raises PipelineError where the key names no scorer."""
        name = section.text(key)
        if ":" in name:
            return cls(name, function_of(section, key, name))
        if name not in BUILT_IN:
            raise section.wrong(key, f"is '{name}'; wanted {', '.join(BUILT_IN)}, or MODULE:FUNCTION")
        if name == "exact":
            return cls(name, exact)
        if name == "number":
            return cls(name, number)
        from isentrope import rewards

        return cls(name, getattr(rewards, name))

    def scores(self, questions: Sequence[str], answers: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[float | None]:
        if not answers:
            return []
        meta = [dict(about, split="test", finished=True) for about in examples]
        try:
            found = numbers(self.name, self.function(list(questions), list(answers), meta), len(answers))
        except ImportError as error:
            missing = {"reasoning_gym": "reasoning-gym", "math_verify": "math-verify"}.get((error.name or "").partition(".")[0])
            if missing is None:
                raise
            raise PipelineError(f"scorer {self.name}: the Python package {missing} is missing: pip install 'isentrope[tasks]'") from None
        except (RuntimeError, ValueError) as error:
            raise PipelineError(f"scorer {self.name}: {error}") from None
        if bad := [one for one in found if one is not None and not math.isfinite(one)]:
            raise PipelineError(f"scorer {self.name}: gave {bad[0]}; wanted finite numbers, or None where it does not apply")
        return found


def function_of(section: Section, key: str, name: str) -> Callable[..., Any]:
    """MODULE:FUNCTION or FILE.py:FUNCTION, a file seen from the configuration's folder."""
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        raise section.wrong(key, f"is '{name}'; wanted MODULE:FUNCTION or FILE.py:FUNCTION")
    if place.endswith(".py"):
        place = str(section.document.file.parent / place)
    try:
        found: Callable[..., Any] = named(place, function, f"{key} {name}")
    except RewardError as error:
        raise section.wrong(key, f"is '{name}': {error}") from None
    if not callable(found):
        raise section.wrong(key, f"is '{name}', which is {shown(found)}; wanted a function")
    return found


def vote(answers: Sequence[str]) -> str:
    """The commonest answer, of equally common ones the first; empty ones count where all are."""
    said = [answer for answer in answers if answer]
    return max(dict.fromkeys(said), key=said.count, default="")


def best(scores: Sequence[float | None], answers: Sequence[str]) -> str:
    """The answer of the highest score, of equals the first; one that has no score is below all."""
    return max(zip(scores, answers, strict=True), key=lambda one: -math.inf if one[0] is None else one[0])[1]
