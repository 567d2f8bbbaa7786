"""isentrope cold-start: right answers whose length grows with difficulty."""

import json
import subprocess
import sys

import pytest

from isentrope.cold_start import main, select, target_length
from isentrope.pairs import Candidate


def candidate(tokens, right, text=None):
    return Candidate(text if text is not None else "x" * tokens, tokens, 0.5, float(right), right)


ASKED = [
    ("never", [candidate(30, False), candidate(40, False), candidate(50, False)]),
    ("always", [candidate(8, True), candidate(10, True), candidate(12, True)]),
    ("half", [candidate(9, True), candidate(24, True), candidate(31, False), candidate(60, False)]),
    ("seldom", [candidate(20, True), candidate(33, True, "y"), candidate(5, False), candidate(5, False), candidate(5, False), candidate(5, False)]),
]


def test_lengths_are_those_of_the_rule():
    # L(0) = 40, L(1) = 10: at a half 25, at a third 30, at 1 10.
    assert [target_length(rate, 40, 10) for rate in (0, 0.5, 1)] == [40, 25, 10]
    found = select(ASKED)
    assert [(one.prompt, one.tokens) for one in found] == [("always", 10), ("half", 24), ("seldom", 33)]
    assert [one.target for one in found] == pytest.approx([10, 25, 30])
    assert [one.tokens for one in select(ASKED, hard=100, easy=1)] == [8, 24, 33]
    assert [one.tokens for one in select(ASKED, per_prompt=2)] == [10, 8, 24, 9, 33, 20]


def test_says_which_length_is_not_known():
    with pytest.raises(ValueError, match="give --hard TOKENS"):
        select(ASKED[1:])
    with pytest.raises(ValueError, match="give --easy TOKENS"):
        select([ASKED[0], *ASKED[2:]])
    assert [one.tokens for one in select(ASKED[2:], hard=40, easy=10)] == [24, 33]


def lines(asked):
    for group, (prompt, own) in enumerate(asked):
        for one in own:
            yield {"phase": "grpo", "step": 1, "group": group, "prompt": prompt, "completion": one.text, "length": one.tokens, "entropy": [0.5],
                   "rewards": {"answer": one.score}}  # fmt: skip


def test_writes_a_data_set(tmp_path, capsys):
    source, out = tmp_path / "grpo.jsonl", tmp_path / "start.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines(ASKED)))
    assert main([str(source), "-o", str(out)]) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"prompt": "always", "completion": "x" * 10}, {"prompt": "half", "completion": "x" * 24}, {"prompt": "seldom", "completion": "y"}]  # fmt: skip
    told = capsys.readouterr().out
    assert "3 answers to 3 of 4 prompts" in told and "medium     2 answers of 28.5 tokens" in told and "easy       1 answers of 10.0 tokens" in told


@pytest.mark.parametrize("words, message", [
    (["--per-prompt", "0"], "--per-prompt 0; wanted 1 or more"),
    (["--reward", "none"], "there is no reward 'none'"),
    (["--right", "2"], "no prompt is answered right by all"),
])  # fmt: skip
def test_refuses(words, message, tmp_path):
    source = tmp_path / "grpo.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines(ASKED)))
    made = subprocess.run([sys.executable, "-m", "isentrope.cold_start", str(source), "-o", str(tmp_path / "out.jsonl"), *words], capture_output=True, text=True)
    assert made.returncode == 1 and message in made.stderr
    assert not (tmp_path / "out.jsonl").exists()
    made = subprocess.run([sys.executable, "-m", "isentrope.cold_start", str(source), "-o", str(source)], capture_output=True, text=True)
    assert made.returncode == 1 and "is a file that is read" in made.stderr
