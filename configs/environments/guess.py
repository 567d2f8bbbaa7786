"""An environment in Python: a number from 0 to 99, found by guesses that are told to be too low or too high."""

from __future__ import annotations

import random
from typing import Any


class Guess:
    def reset(self, example: dict[str, Any], seed: int) -> str | None:
        """The text that the conversation begins with. Of a seed always the same number."""
        self.number = random.Random(seed).randrange(100)
        return ">"

    def step(self, text: str) -> tuple[str, dict[str, float], bool]:
        """Answers a turn: a text, scores that are added to those before, and whether that was all."""
        said = text.strip()
        if not said.isdecimal():
            return "?\n", {"answer": 0.0, "guesses": 1.0}, False
        guess = int(said)
        if guess == self.number:
            return "", {"answer": 1.0, "guesses": 1.0}, True
        return "<\n" if guess > self.number else ">\n", {"answer": 0.0, "guesses": 1.0}, False
