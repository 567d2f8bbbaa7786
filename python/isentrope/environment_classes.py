"""Environments that are classes in Python: found by name, called within a time limit, and what they return looked at.

A class has ``reset(example, seed) -> str | None`` and ``step(text) -> (text, score, done)``; an object is made for each conversation.
``example`` has the columns of the data, ``prompt``, ``answer`` and ``split``. ``reset`` returns the text that the conversation begins
with, or None for the prompt of the data; it is called again for every conversation about a prompt, and returns the same for the same
seed. ``score`` is a number, called ``reward``, or a dict of numbers by name, added up over the turns. A class that also has
``step_many(environments, texts) -> list`` (a static or class method) answers all turns that ended together.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from isentrope.reward_functions import RewardError, named, shown, within

Step = tuple[str, "float | Mapping[str, float]", bool]
Answer = tuple[bytes, dict[str, float], bool, bool]  # text, scores to add, over, error


class Environment(Protocol):
    def reset(self, example: dict[str, Any], seed: int) -> str | None: ...
    def step(self, text: str) -> Step: ...


FAILED: Answer = (b"", {}, True, True)


def load(place: bytes, name: bytes, said: bytes, seconds: float) -> Host:
    """The class NAME of the file or module PLACE. said: what named it, in the words of an error."""
    of, wanted, what = os.fsdecode(place), os.fsdecode(name), os.fsdecode(said)
    try:
        found = named(of, wanted, what)
        missing = [method for method in ("reset", "step") if not callable(getattr(found, method, None))]
        if not callable(found) or missing:
            raise RewardError(f"{wanted} in {of} is {shown(found)}; wanted a class with reset and step"
                              + (f", and {' and '.join(missing)} is missing" if missing else ""))  # fmt: skip
    except RewardError as error:
        raise RewardError(f"{what}: {error}") from None
    return Host(found, what, seconds)


class Host:
    """What the trainer calls. An exception, an answer of another form and a call that takes too long end the conversations that they
    are about, as errors; the first of each is told."""

    def __init__(self, kind: Callable[[], Environment], said: str, seconds: float) -> None:
        self.kind, self.said, self.seconds = kind, said, seconds
        self.told: set[str] = set()

    def reset(self, columns: str, prompt: str, answer: str, split: str, seed: int) -> tuple[Environment | None, str | None]:
        example: dict[str, Any] = json.loads(columns) if columns else {}
        example.setdefault("answer", answer)
        example |= {"prompt": prompt, "split": split}

        def begin() -> tuple[Environment, str | None]:
            environment = self.kind()
            text = environment.reset(example, seed)
            if text is not None and not isinstance(text, str):
                raise TypeError(f"reset returned {shown(text)}; wanted a text, or None for the prompt of the data")
            return environment, text

        begun: tuple[Environment, str | None] | None = self.contained("reset", begin)
        return begun or (None, None)

    def step(self, environments: list[Environment | None], texts: list[str]) -> list[Answer]:
        alive = [(i, environment) for i, environment in enumerate(environments) if environment is not None]
        answers: list[Answer] = [FAILED] * len(environments)
        many = getattr(self.kind, "step_many", None)
        if many is not None and alive:
            sides, said = [environment for _, environment in alive], [texts[i] for i, _ in alive]
            found: list[Answer] | None = self.contained("step_many", lambda: looked_at_all(many(sides, said), len(sides)))
            for (i, _), one in zip(alive, found or []):
                answers[i] = one
            return answers
        for i, environment in alive:
            answers[i] = self.contained("step", partial(self.one, environment, texts[i])) or FAILED
        return answers

    @staticmethod
    def one(environment: Environment, text: str) -> Answer:
        return looked_at(environment.step(text))

    def contained(self, method: str, call: Callable[[], Any]) -> Any:
        try:
            value, whole = within(self.seconds, call)
        except Exception as error:
            self.tell(method, "".join(traceback.format_exception(type(error), error, error.__traceback__)))
            return None
        if not whole:
            self.tell(f"{method}, time", f"{method} took longer than timeout_s ({self.seconds:g} s)")
        return value

    def tell(self, what: str, text: str) -> None:
        if what in self.told:
            return
        self.told.add(what)
        print(f"isentrope: warning: {self.said}: a conversation was ended, and others of this kind will be: {text.rstrip()}",
              file=sys.stderr, flush=True)  # fmt: skip


def looked_at_all(answers: Any, count: int) -> list[Answer]:
    if not isinstance(answers, Sequence) or len(answers) != count:
        raise TypeError(f"step_many returned {shown(answers)}; wanted a list of {count} answers (text, score, done)")
    return [looked_at(answer) for answer in answers]


def looked_at(answer: Any) -> Answer:
    if not isinstance(answer, Sequence) or isinstance(answer, str) or len(answer) != 3:
        raise TypeError(f"step returned {shown(answer)}; wanted (text, score, done)")
    text, score, done = answer
    if not isinstance(text, str):
        raise TypeError(f"step returned the text {shown(text)}; wanted a string")
    scores = {name: float(value) for name, value in score.items()} if isinstance(score, Mapping) else {"reward": float(score)}
    for name, value in scores.items():
        if not isinstance(name, str) or not math.isfinite(value):
            raise ValueError(f"step returned the score {name!r}: {value!r}; wanted finite numbers, by names")
    return text.encode("utf-8", "surrogateescape"), scores, bool(done), False
