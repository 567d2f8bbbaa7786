"""examples/textworld_game.py: games of TextWorld, where that package is."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("textworld", reason="textworld is not installed (pip install textworld)")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import textworld_game  # noqa: E402


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(textworld_game, "GAMES", 2)
    monkeypatch.setattr(textworld_game, "FOLDER", Path(tmp_path_factory.getbasetemp()) / "games")


def played(seed, commands=None):
    """What was said, and the sums of the scores."""
    game = textworld_game.Game()
    said, sums, done = [game.reset({}, seed)], {}, False
    while not done and (commands is None or commands):
        text, scores, done = game.step(commands.pop(0) if commands is not None else game.way[0] + "\n")
        said.append(text)
        sums = {name: sums.get(name, 0) + value for name, value in scores.items()}
    return said, sums, done


def test_a_game_is_won_by_its_way_and_repeats_itself():
    said, sums, done = played(0)
    assert done and sums["answer"] == 1 and sums["commands"] == len(said) - 1 > 0 and said[-1] == ""
    assert all(text.endswith(">") for text in said[:-1]) and "TextWorld" in said[0]
    assert played(0) == (said, sums, done) and played(2)[0] == said != played(1)[0], "a game a seed, of two"


def test_what_is_no_command_changes_nothing():
    said, sums, done = played(1, ["sing a song\n", "\n", "look\n"])
    assert not done and sums == {"answer": 0, "commands": 3} and said[2] == said[3], "an empty line looks around"


def test_the_teacher_knows_the_way(tmp_path):
    file = tmp_path / "teacher.jsonl"
    textworld_game.main(str(file))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for seed in (0, 1):
        begin = textworld_game.Game().reset({}, seed)
        own = [line["completion"] for line in lines if line["prompt"].startswith(begin)]
        assert played(seed, own)[1]["answer"] == 1
