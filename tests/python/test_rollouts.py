"""rollout.save_every: what stands in rollouts/<phase>.jsonl, and that breaking off, killing and resuming leave it as it would have been."""

import json
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GRPO = ROOT / "configs" / "tiny" / "grpo.yaml"
KEYS = ["phase", "step", "group", "sample", "prompt", "completion", "tokens", "ids", "logprob", "entropy", "length", "finished", "reward",
        "rewards", "advantage"]  # fmt: skip
ROLLOUT = "phases.grpo.rollout."
REWARD = 'phases.grpo.reward=[{kind: answer, weight: 0.5}, {kind: format, weight: 0.5, pattern: ".*A[0-9][0-9]"}'  # those of the configuration, and what is done to them


def binary():
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert path, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    return os.path.abspath(path)


def train(folder, *overrides, config=GRPO, resume=False, code=0, **arguments):
    command = [binary(), "train", str(config), f"run.dir={folder}", *overrides] + ["--resume"] * resume
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, **arguments)
    assert told.returncode == code, told.stdout + told.stderr
    return told


def rollouts(folder):
    return [json.loads(line) for line in (Path(folder) / "rollouts" / "grpo.jsonl").read_text().splitlines()]


def metrics(folder):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line.get("phase") == "grpo" and "eval/split" not in line}


def groups(lines):
    found = defaultdict(list)
    for line in lines:
        found[line["step"], line["group"]].append(line)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, ROLLOUT + "save_every=1")
    return folder


def back_at(folder, step, whole):
    """A copy of a run as a kill leaves it that comes after the checkpoint of a step: with lines of steps that come again."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    for checkpoint in (folder / "checkpoints").glob("grpo-*"):
        if int(checkpoint.name.rsplit("-", 1)[1]) > step:
            shutil.rmtree(checkpoint)
    (folder / "summary.json").unlink()
    return folder


def test_a_line_says_what_was_drawn_and_what_became_of_it(whole):
    lines, told = rollouts(whole), metrics(whole)
    assert {line["step"] for line in lines} == set(range(1, 13))
    for line in lines:
        assert list(line) == KEYS and line["phase"] == "grpo"
        T = line["length"]
        assert T == len(line["tokens"]) == len(line["ids"]) == len(line["logprob"]) == len(line["entropy"]) > 0
        assert "".join(line["tokens"]) == line["completion"] + "." * line["finished"]
        assert all(p <= 0 for p in line["logprob"]) and all(0 <= h <= 3.3 for h in line["entropy"])  # ln 25 tokens
        assert line["reward"] == 0.5 * line["rewards"]["answer"] + 0.5 * line["rewards"]["format"]
    for step in range(1, 13):
        of_step = [line for line in lines if line["step"] == step]
        assert sum(line["length"] for line in of_step) == told[step]["generated"]
        assert statistics.mean(line["reward"] for line in of_step) == pytest.approx(told[step]["reward/mean"], abs=1e-12)
        assert statistics.mean(not line["finished"] for line in of_step) == pytest.approx(told[step]["length/truncated"])
    of_group = groups(lines)
    assert [group for _, group in of_group] == list(range(12 * 8))  # a stream of prompts, eight a step
    for one in of_group.values():
        assert [line["sample"] for line in one] == [0, 1, 2, 3] and len({line["prompt"] for line in one}) == 1
        rewards = [line["reward"] for line in one]
        mean, std = statistics.mean(rewards), statistics.stdev(rewards)
        for line in one:  # advantage: {kind: grpo}
            assert line["advantage"] == pytest.approx((line["reward"] - mean) / (std + 1e-6) if std > 0 else 0, abs=1e-6)
    assert any(line["advantage"] != 0 for line in lines), "no group differs: the test says nothing"


def test_steps_between_and_none(whole, tmp_path):
    train(tmp_path / "some", ROLLOUT + "save_every=5")
    assert rollouts(tmp_path / "some") == [line for line in rollouts(whole) if line["step"] in (5, 10)]
    train(tmp_path / "none")
    assert not (tmp_path / "none" / "rollouts").exists()
    for folder in ("some", "none"):  # saving changes nothing of the run
        assert metrics(tmp_path / folder)[12]["loss"] == metrics(whole)[12]["loss"]
    told = train(tmp_path / "few", ROLLOUT + "save_every=13")
    assert "save_every: 13, and the phase has 12 steps" in told.stderr and not (tmp_path / "few" / "rollouts").exists()


def test_a_resumed_run_has_each_line_once(whole, tmp_path):
    folder = back_at(tmp_path / "run", 5, whole)
    with open(folder / "rollouts" / "grpo.jsonl", "a") as file:
        file.write('{"phase":"grpo","step":12,"gro')  # torn
    train(folder, ROLLOUT + "save_every=1", resume=True)
    assert (folder / "rollouts" / "grpo.jsonl").read_bytes() == (whole / "rollouts" / "grpo.jsonl").read_bytes()


def test_any_number_of_threads_writes_the_same(whole, tmp_path):
    train(tmp_path, ROLLOUT + "save_every=1", "run.threads=3")
    assert (tmp_path / "rollouts" / "grpo.jsonl").read_bytes() == (whole / "rollouts" / "grpo.jsonl").read_bytes()


def test_a_killed_run_goes_on_without_a_double_line(whole, tmp_path):
    file = tmp_path / "rollouts" / "grpo.jsonl"
    running = subprocess.Popen([binary(), "train", str(GRPO), f"run.dir={tmp_path}", ROLLOUT + "save_every=1", "--quiet"], cwd=ROOT)
    while running.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= 7 * 32):
        time.sleep(0.01)
    running.kill()
    running.wait()
    train(tmp_path, ROLLOUT + "save_every=1", resume=True)
    assert file.read_bytes() == (whole / "rollouts" / "grpo.jsonl").read_bytes()


def test_a_phase_that_begins_again_begins_its_file_again(whole, tmp_path):
    folder = back_at(tmp_path / "run", 0, whole)  # the checkpoint at the end of sft is left
    train(folder, ROLLOUT + "save_every=5", resume=True)
    assert {line["step"] for line in rollouts(folder)} == {5, 10}


def test_saving_can_be_switched_off_and_on(whole, tmp_path):
    folder = back_at(tmp_path / "run", 5, whole)
    train(folder, "phases.grpo.steps=10", resume=True)
    train(folder, ROLLOUT + "save_every=1", resume=True)
    assert rollouts(folder) == [line for line in rollouts(whole) if line["step"] <= 5 or line["step"] > 10]


def test_a_full_disk_is_told_and_the_step_leaves_no_line(tmp_path):
    many, limit = ROLLOUT + "num_generations=24", 1_000_000  # above a checkpoint, below the rollouts of the run
    set_limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
    train(tmp_path / "whole", many, ROLLOUT + "save_every=1")
    assert (tmp_path / "whole" / "rollouts" / "grpo.jsonl").stat().st_size > limit
    told = train(tmp_path / "run", many, ROLLOUT + "save_every=1", code=1, preexec_fn=set_limit)
    for words in ("rollouts/grpo.jsonl: cannot be written: File too large", "bytes needed", "phase grpo, step", "last good checkpoint"):
        assert words in told.stderr
    counts = defaultdict(int)
    for line in rollouts(tmp_path / "run"):
        counts[line["step"]] += 1
    assert set(counts.values()) == {8 * 24} and 0 < max(counts) < 12
    assert max(counts) == max(metrics(tmp_path / "run"))
    train(tmp_path / "run", many, ROLLOUT + "save_every=1", resume=True)
    assert (tmp_path / "run" / "rollouts" / "grpo.jsonl").read_bytes() == (tmp_path / "whole" / "rollouts" / "grpo.jsonl").read_bytes()


def test_changed_lines_are_refused_and_a_lost_file_is_told(whole, tmp_path):
    folder = back_at(tmp_path / "run", 5, whole)
    file = folder / "rollouts" / "grpo.jsonl"
    text = file.read_text()
    for changed in (text.replace('"step":2', '"step":3', 1), text.split("\n", 1)[1], text[: len(text) // 10]):
        file.write_text(changed)
        told = train(folder, ROLLOUT + "save_every=1", resume=True, code=1)
        assert str(file) in told.stderr and "changed or are missing" in told.stderr and file.read_text() == changed
    file.unlink()
    told = train(folder, ROLLOUT + "save_every=1", resume=True)
    assert f"{file} is not there" in told.stdout and {line["step"] for line in rollouts(folder)} == set(range(6, 13))


def test_something_else_in_its_place_is_refused_before_the_run(tmp_path):
    (tmp_path / "rollouts").write_text("mine")
    told = train(tmp_path, ROLLOUT + "save_every=1", code=1)
    assert "rollouts: is no folder" in told.stderr and sorted(p.name for p in tmp_path.iterdir()) == ["rollouts"]


def test_groups_that_are_left_out_have_no_advantage(tmp_path):
    train(tmp_path, ROLLOUT + "save_every=1", REWARD + ", {kind: filter_groups, max_draws: 50}]", ROLLOUT + "num_generations=2",
          "phases.grpo.steps=4")  # fmt: skip
    told, left_out = metrics(tmp_path), 0
    for step in range(1, 5):
        found = [one for (at, _), one in groups(rollouts(tmp_path)).items() if at == step]
        learnt = [one for one in found if one[0]["advantage"] is not None]
        assert len(learnt) == told[step]["groups/kept"]
        left_out += len(found) - len(learnt)
        for one in found:
            flat = len({line["reward"] for line in one}) == 1
            assert all((line["advantage"] is None) == (one not in learnt) for line in one) and not (flat and one in learnt)
    assert left_out > 0, "every group differs: the test says nothing"


def test_parts_of_a_reward_and_branches(tmp_path):
    train(tmp_path, ROLLOUT + "save_every=1", ROLLOUT + "branch={window: 2, quantile: 0.5}", REWARD + ", {kind: overlong, len: 12}]",
          ROLLOUT + "mask_truncated=true", "phases.grpo.steps=4")  # fmt: skip
    lines = rollouts(tmp_path)
    for line in lines:
        assert [key for key in line if key != "advantages"] == KEYS[:-1] + ["overlong", "advantage", "parent", "begin"]
        assert line["overlong"] == pytest.approx(min(0, -(line["length"] - 8) / 12))
        assert line["reward"] == pytest.approx(0.5 * line["rewards"]["answer"] + 0.5 * line["rewards"]["format"] + line["overlong"])
        assert (line["advantage"] is None) == (not line["finished"])
    branches = 0
    for one in groups(lines).values():
        for place, line in enumerate(one):
            if line["parent"] is None:
                assert line["begin"] == 0
            else:
                assert line["parent"] < place and line["ids"][: line["begin"]] == one[line["parent"]]["ids"][: line["begin"]]
                branches += 1
    assert branches > 0, "no sequence branched: the test says nothing"
