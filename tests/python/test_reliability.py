"""A small sample of every attack of scripts/reliability.py finds nothing wrong, and what judges an attack can find it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from attacks import damage, examples, trial  # noqa: E402

# By processor time, about five seconds each; kills: two runs, with one and with two kills.
SAMPLE = {"configurations": 50, "damage": 16, "examples": 60, "kills": 2}


@pytest.mark.parametrize("part", SAMPLE)
def test_a_sample_of_attacks(part, tmp_path):
    command = [sys.executable, SCRIPTS / "reliability.py", "--part", part, "--count", str(SAMPLE[part]), "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {SAMPLE[part]}" in done.stdout
    if part == "examples":
        verdicts = (tmp_path / part / "verdicts-1.jsonl").read_text()
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        assert (tmp_path / part / "verdicts-1.jsonl").read_text() == verdicts, "attacks that had been made were made again"


def fail(message, kind=RuntimeError):
    raise kind(message)


@pytest.mark.parametrize("function, kind, words", [
    (lambda: {"loss": 1.0}, "done", ""),
    (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash", "SIGSEGV"),
    (lambda: os.abort(), "crash", "SIGABRT"),
    (lambda: os._exit(0), "crash", "without a result"),
    (lambda: time.sleep(60), "hang", "no end"),
    (lambda: fail("config.yaml:3: model.num_hidden_layers is 0; wanted at least 1"), "refused", "config.yaml:3"),
    (lambda: fail("std::bad_alloc"), "raw", "bad_alloc"),
    (lambda: fail("map::at"), "raw", "map::at"),
    (lambda: fail("filesystem error: cannot open"), "raw", "filesystem"),
    (lambda: fail("x\nException raised from foo at bar.cpp:3"), "raw", "Exception raised"),
    (lambda: fail("a" * 2001), "raw", "aaa"),
    (lambda: fail(""), "raw", "without a message"),
    (lambda: b"\xff".decode(), "raw", "can't decode"),
])
def test_the_outcome_of_a_trial(function, kind, words, tmp_path):
    outcome = trial.run(function, tmp_path, 0.5 if kind == "hang" else 20)
    assert (outcome.kind, words in outcome.message) == (kind, True), outcome


def test_what_a_run_left_is_compared_bit_for_bit(tmp_path):
    for name, time_s, loss in (("a", 1.0, 2.5), ("b", 7.0, 2.5), ("c", 1.0, 2.5000000001)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "model").write_bytes(b"same" if name != "c" else b"sane")
        (tmp_path / name / "lock").write_text(name)
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {loss}, "time_s": {time_s}}}\n')
    a, b, c = (trial.contents(tmp_path / name) for name in "abc")
    assert trial.difference(a, b) == []
    assert trial.difference(a, c) == ["checkpoints/model", "metrics.jsonl"]
    assert trial.difference(a, c, ["checkpoints/"]) == ["metrics.jsonl"]
    assert trial.difference(a, {}) == ["checkpoints/model", "metrics.jsonl"]


def test_harmless_is_only_what_changed_nothing():
    done, refused = trial.Outcome("done"), trial.Outcome("refused", "why")
    assert damage.judged({}, done, [])["class"] == "harmless"
    assert damage.judged({}, done, ["metrics.jsonl"]) == {"class": "silent change", "message": "metrics.jsonl"}
    assert damage.judged({}, refused, ["metrics.jsonl"]) == {"class": "refused", "message": "why"}


def test_every_mutation_of_examples_changes_the_file():
    import random

    for tokenizer in examples.TOKENIZERS:
        lines = examples.clean("train.jsonl")
        for name, (data, wanted) in examples.mutations(random.Random(1), lines, tokenizer, False).items():
            assert data != examples.text(lines), name
            assert set(wanted.split()) <= {"refused", "same", "trained"}, name
