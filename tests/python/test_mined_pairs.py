"""Pairs that a dpo phase draws itself (configs/environments/tool_light.yaml): what is written of them, runs that are killed, ranks, and what the
configuration refuses."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from test_environments import CONFIGS, ROOT, binary, command, lines, train
from test_ranks import has_ranks
from test_ranks import train as train_ranks

CONFIG = CONFIGS / "tool_light.yaml"
SHORT = ["phases.sft.steps=150", "phases.sft.schedule.warmup_steps=0", "run.checkpoint_every=2", "run.keep=9", "run.threads=1",
         "test={prompts: 8, sampled_prompts: 8, num_generations: 2}"]  # fmt: skip
for _loop in ("loop1", "loop2"):
    SHORT += [f"phases.{_loop}.steps=5", f"phases.{_loop}.schedule.warmup_steps=0", f"phases.{_loop}.batch.sequences=4",
              f"phases.{_loop}.pairs.prompts=32", f"phases.{_loop}.pairs.samples=4"]  # fmt: skip


def pairs(folder, loop):
    return [json.loads(line) for line in (folder / "pairs" / f"{loop}.jsonl").read_text().splitlines()]


def bytes_of(folder):
    return {loop: (folder / "pairs" / f"{loop}.jsonl").read_bytes() for loop in ("loop1", "loop2")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, CONFIG, *SHORT)
    return folder


ALPHABET = "_0123456789+-*/=[];?A$"  # of the configuration, behind the padding


def drawn(pair, side):
    """What was drawn, and what was given, by the ranges of tokens."""
    given = {place for first, last in pair[side + "_given"] for place in range(first, last)}
    tokens = [(place in given, ALPHABET[token]) for place, token in enumerate(pair[side + "_ids"])]
    return ["".join(text for is_given, text in tokens if is_given == which) for which in (False, True)]


def test_pairs_are_what_the_rule_says(whole):
    for loop in ("loop1", "loop2"):
        found = pairs(whole, loop)
        first = next(line for line in lines(whole) if line["phase"] == loop and line["step"] == 1 and "loss" in line)
        assert len(found) == first["pairs/found"] > 0
        for pair in found:
            value = eval(pair["prompt"].rstrip("="))
            ends = {}
            for side in ("chosen", "rejected"):
                own, given = drawn(pair, side)
                text = "".join(ALPHABET[token] for token in pair[side + "_ids"] if token)  # a text has no padding, which can be drawn
                assert text.rstrip("$") == pair[side].rstrip("$"), "the text is that of the tokens"
                assert set(given) <= set("0123456789-/?;") and given.count(";") == len(pair[side + "_given"])
                ends[side] = own.split("]")[-1].rstrip("$").endswith(f"A{value}")
            assert ends == {"chosen": True, "rejected": False}, pair
            better, worse = len(pair["chosen_given"]), len(pair["rejected_given"])  # calls that were answered
            assert worse <= better if pair["hard"] else worse > better
        note = json.loads((whole / "pairs" / f"{loop}.json").read_text())
        assert note["stats"].items() <= first.items()
    assert not any(pair["hard"] for pair in pairs(whole, "loop1"))
    assert [pair["prompt"] for pair in pairs(whole, "loop1")] != [pair["prompt"] for pair in pairs(whole, "loop2")]


def test_the_steps_learn_from_them(whole):
    steps = [line for line in lines(whole) if line["phase"] == "loop1" and "loss" in line]
    assert len(steps) == 5 and steps[0]["pair/margin"] == 0 < steps[-1]["pair/margin"]
    assert not any("pairs/found" in line for line in steps[1:])
    ends = [line for line in lines(whole) if line.get("eval/split") == "test"]
    assert [line["phase"] for line in ends] == ["sft", "loop1", "loop2"]
    assert all({"eval/turns/calls", "eval/score/answer"} <= line.keys() for line in ends)


def test_threads_draw_the_same(whole, tmp_path):
    train(tmp_path / "run", CONFIG, *SHORT, "run.threads=2", f"run.start={whole / 'checkpoints' / 'sft-000150'}", "phases.loop1.steps=1")
    train(tmp_path / "one", CONFIG, *SHORT, f"run.start={whole / 'checkpoints' / 'sft-000150'}", "phases.loop1.steps=1")
    for run in ("run", "one"):
        assert (tmp_path / run / "pairs" / "loop1.jsonl").read_bytes() == bytes_of(whole)["loop1"]


@pytest.mark.skipif(not has_ranks(), reason="this build has one rank (libgloo-dev was not there)")
def test_ranks_draw_the_same(whole, tmp_path):
    start = [f"run.start={whole / 'checkpoints' / 'sft-000150'}", "phases.loop1.steps=1"]
    train_ranks(2, tmp_path / "two", CONFIG, *SHORT, *start)
    assert (tmp_path / "two" / "pairs" / "loop1.jsonl").read_bytes() == bytes_of(whole)["loop1"]


def at_the_end_of_sft(whole, folder):
    """The run as a kill between its pairs and their first checkpoint leaves it."""
    shutil.copytree(whole, folder)
    for checkpoint in (folder / "checkpoints").glob("loop*"):
        shutil.rmtree(checkpoint)
    (folder / "summary.json").unlink()


@pytest.mark.parametrize("left", ["pairs", "torn", "of others", "none"])
def test_a_kill_behind_the_pairs_loses_nothing(whole, tmp_path, left):
    folder = tmp_path / "run"
    at_the_end_of_sft(whole, folder)
    file, note = folder / "pairs" / "loop1.jsonl", folder / "pairs" / "loop1.json"
    if left == "none":
        shutil.rmtree(folder / "pairs")
    if left == "torn":
        file.write_bytes(file.read_bytes()[:-7])
    if left == "of others":  # of other weights
        note.write_text(note.read_text().replace('"made_of": "', '"made_of": "1'))
    before = file.stat().st_mtime_ns if file.exists() else None
    train(folder, CONFIG, *SHORT, resume=True)
    assert lines(folder) == lines(whole) and bytes_of(folder) == bytes_of(whole)
    assert (file.stat().st_mtime_ns == before) == (left == "pairs"), "pairs that stand there are read, others drawn anew"


def test_a_killed_run_repeats_itself(whole, tmp_path):
    folder = tmp_path / "run"
    total = len((whole / "metrics.jsonl").read_text().splitlines())
    for part in [0.955, 0.985]:  # within loop1 and loop2
        process = subprocess.Popen(command(folder, CONFIG, *SHORT, resume=folder.exists()), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = folder / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= part * total):
            time.sleep(0.005)
        process.kill()
        process.wait()
    train(folder, CONFIG, *SHORT, resume=True)
    assert lines(folder) == lines(whole) and bytes_of(folder) == bytes_of(whole)


def within_loop1(whole, folder):
    at_the_end_of_sft(whole, folder)
    shutil.copytree(whole / "checkpoints" / "loop1-000002", folder / "checkpoints" / "loop1-000002")


def test_a_phase_goes_on_with_its_own_pairs_alone(whole, tmp_path):
    folder = tmp_path / "run"
    within_loop1(whole, folder)
    file = folder / "pairs" / "loop1.jsonl"
    told = train(folder, CONFIG, *SHORT, "phases.loop1.pairs.samples=5", resume=True, code=1)
    assert "phases.loop1.pairs.samples" in told.stderr and "its pairs are drawn by the other" in told.stderr
    text = file.read_text()
    file.write_text("".join(text.splitlines(keepends=True)[1:]))
    told = train(folder, CONFIG, *SHORT, resume=True, code=1)
    assert "its training examples are not those that this run began with" in told.stderr
    file.write_text(text.replace('"chosen_ids":[', '"chosen_ids":[999,', 1))
    told = train(folder, CONFIG, *SHORT, resume=True, code=1)
    assert "loop1.jsonl:1: this is no pair that a phase drew: token 999, outside the vocabulary 0 … 21" in told.stderr
    file.unlink()
    told = train(folder, CONFIG, *SHORT, resume=True, code=1)
    assert "loop1.jsonl: is not there, and the phase goes on with the pairs that it held" in told.stderr
    file.write_text(text)
    train(folder, CONFIG, *SHORT, resume=True)
    assert lines(folder) == lines(whole)


def test_no_pair_at_all_is_told(whole, tmp_path):
    start = f"run.start={whole / 'checkpoints' / 'sft-000150'}"
    told = train(tmp_path / "run", CONFIG, *SHORT, start, "phases.loop1.environment.turns=1", code=1)  # a call is never answered
    assert "phase loop1, pairs: none of 32 prompts has a pair by the rule short" in told.stderr and "draw more" in told.stderr


def test_without_an_environment_tokens_count(tmp_path):
    words = ["phases.dpo.data={tint: {task: signed_sum, terms: [3]}}", "phases.dpo.pairs={prompts: 64, samples: 8}", "phases.dpo.reward=[{kind: answer}]",
             "phases.sft.data={tint: {task: signed_sum, terms: [3]}}", "phases.sft.steps=80", "phases.dpo.steps=2"]  # fmt: skip
    train(tmp_path / "run", ROOT / "configs" / "tiny" / "dpo.yaml", *words)
    found = pairs(tmp_path / "run", "dpo")
    assert found and all(len(pair["rejected_ids"]) > len(pair["chosen_ids"]) and pair["chosen_given"] == [] for pair in found)


@pytest.mark.parametrize(
    "overrides,message",
    [
        (["phases.loop1.pairs=null"], "or pairs: {} to draw them of the prompts of these data"),
        (["phases.loop1.environment=null"], "pairs: nothing says which completions are right"),
        (["phases.sft.pairs={}"], "pairs belongs to dpo phases, and objective.kind is sft"),
        (["phases.loop1.pairs.stop=[x]"], "pairs.stop: with an environment environment.stop says what ends a turn"),
        (["phases.loop1.pairs.temperature=0"], "phases.loop1.pairs: temperature: at less than 0.001"),
        (["phases.loop1.pairs.hard_share=0.5"], "hard_share: tells hard pairs from easy ones, and rule is short"),
        (["phases.loop1.pairs.samples=1", "phases.loop1.pairs.steps=0"], "a prompt of one completion has no pair"),
        (["phases.loop1.reward=[{kind: environment, name: answer}, {kind: overlong, len: 3}]"], "leave overlong out"),
        (["phases.loop1.reward=[{kind: environment, name: answers}]"], "has no score answers"),
        (["phases.loop1.data={corpus: {paths: [README.md]}}"], "pairs: they are drawn of prompts, and text has none"),
        (["phases.loop1.pairs.max_new_tokens=96"], "pairs.max_new_tokens: 96 leaves no room"),
        (["phases.loop1.pairs.cache_tokens=32"], "pairs.cache_tokens: 32 cannot hold"),
        (["phases.loop1.pairs.branch=3"], "branches"),
    ],
)
def test_the_configuration_is_looked_at(tmp_path, overrides, message):
    told = train(tmp_path / "run", CONFIG, *SHORT, *overrides, code=1)
    assert message in told.stderr, told.stderr
    assert not (tmp_path / "run" / "pairs").exists()


def test_the_header_says_what_is_drawn(whole):
    header = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])["run"]
    assert [(phase["unit"], phase.get("pairs_of")) for phase in header["phases"]] == [("examples", None), ("pairs", 32), ("pairs", 32)]
    told = subprocess.run([binary(), "plan", str(CONFIG)], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stderr
