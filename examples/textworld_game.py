"""A text adventure as an environment: games of the package TextWorld (pip install textworld), in the process of the trainer.

    environment: {kind: python, class: "examples/textworld_game.py:Game", turns: 12, timeout_s: 60}

Each seed has its game out of ``GAMES``, made by TextWorld's generator when it is first asked for (some seconds: its text is compiled by Inform 7,
which the package brings) and kept in a folder. A turn is a command, which a line feed ends; its answer is what the game says, and the
score is what the command added to the game's, so that a game that is won has 1 in all. The game is over where it is won or lost.

    python examples/textworld_game.py teacher.jsonl

writes what a player who knows the way says: for each step of each game a prompt, all that was said so far, and a completion, the command.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

GAMES = 16
FOLDER = Path(tempfile.gettempdir()) / "isentrope_textworld"


def said(feedback: str) -> str:
    """What the game says, without the status line and empty lines."""
    text = re.sub(r"-= .*", "", feedback).replace(">", " ")
    return " ".join(text.split()) + "\n"


def game_of(number: int) -> Path:
    """The file of game ``number``, with its text and beside it its way (.json). Made beside and renamed, so that several processes may ask."""
    generator = importlib.import_module("textworld.generator")  # by name: checkers of types do not need the package
    file = FOLDER / f"{number}.z8"
    if not file.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as beside:
            options = importlib.import_module("textworld").GameOptions()
            options.seeds, options.nb_rooms, options.nb_objects, options.quest_length = number, 2, 3, 2
            options.path = str(Path(beside) / file.name)
            made = Path(generator.compile_game(generator.make_game(options), options))
            os.replace(made.with_suffix(".json"), file.with_suffix(".json"))
            os.replace(made, file)
    return file


class Game:
    def reset(self, example: dict[str, Any], seed: int) -> str | None:
        """The task and the first room. Of a seed always the same game."""
        textworld = importlib.import_module("textworld")

        self.game = textworld.start(str(game_of(seed % GAMES)), textworld.EnvInfos(objective=True, score=True, won=True, max_score=True, policy_commands=True))
        state = self.game.reset()
        self.score, self.way = 0, list(state.policy_commands)
        self.most = max(1, state.max_score)
        return f"{said(state.objective)}{said(state.feedback.split(state.objective)[-1])}>"

    def step(self, text: str) -> tuple[str, dict[str, float], bool]:
        """Answers a command: a text, scores that are added to those before, and whether that was all."""
        state, score, done = self.game.step(text.strip() or "look")
        gained, self.score, self.way = score - self.score, score, list(state.policy_commands or [])
        return "" if done else f"{said(state.feedback)}>", {"answer": gained / self.most, "commands": 1.0}, done


def main(file: str) -> None:
    with open(file, "w", encoding="utf-8") as out:
        for seed in range(GAMES):
            game, done = Game(), False
            text = game.reset({}, seed)
            while not done:
                command = game.way[0] + "\n"
                out.write(json.dumps({"prompt": text, "completion": command}) + "\n")
                answer, _, done = game.step(command)
                text = f"{text}{command}{answer}"


if __name__ == "__main__":
    main(sys.argv[1])
