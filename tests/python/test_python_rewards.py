"""Rewards that the configuration names (reward: [{kind: python, function: …}]), that do not apply, and that take too long."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

import isentrope
from isentrope.reward_functions import RewardError, checked_reward, within

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release")).resolve() / "bin" / "isentrope"
GRPO = (ROOT / "configs" / "tiny" / "grpo.yaml").read_text()
TIMES = {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu"}
SHORT = {"phases.sft.steps": 2, "phases.sft.schedule.warmup_steps": 0, "phases.grpo.steps": 3, "phases.grpo.rollout.save_every": 1,
         "test": "{prompts: 4, sampled_prompts: 3, num_generations: 2}"}  # fmt: skip
WORDS = [f"{key}={value}" for key, value in SHORT.items()]
REWARDS = """\
import time

calls = 0
constant = 3


def scores(prompts, completions, meta):
    return [len(set(c)) / 8 for c in completions]


def partial(prompts, completions, meta):
    return [len(set(c)) / 8 if "0" in c else None for c in completions]


def later(prompts, completions, meta):
    global calls
    calls += 1
    return scores(prompts, completions, meta) if calls > 1 else [None] * len(completions)


def hanging(prompts, completions, meta):
    global calls
    calls += 1
    while calls == 2:
        pass
    return scores(prompts, completions, meta)


def sleeping(prompts, completions, meta):
    if meta[0]["split"] != "train":
        time.sleep(1e6)
    return scores(prompts, completions, meta)


def raising(prompts, completions, meta):
    return [1 / 0]


def few(prompts, completions, meta):
    return [0.5]


def texts(prompts, completions, meta):
    return ["much"] * len(completions)


def narrow(prompts, completions):
    return completions
"""

pytest.importorskip("isentrope._C", reason="the package was built without the trainer")
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose subfolder `configs` holds mine.yaml and rewards.py beside it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(str(tmp_path))]:
        del sys.modules[name]


def configuration(place, reward):
    rewards = reward if reward.startswith("[") else f"[{{kind: python, function: {json.dumps(reward)}}}]"
    text, count = re.subn(r"(?m)^    reward: \[.*$", lambda _: f"    reward: {rewards}", GRPO)
    assert count == 1
    (place / "configs" / "mine.yaml").write_text(text)
    return "configs/mine.yaml"


def trainer(place, reward, run="run", **more):
    return isentrope.Trainer(configuration(place, reward), overrides={**SHORT, "run.dir": place / run, **more.pop("overrides", {})}, **more)


def run(place, *words, code=0):
    told = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, cwd=place, timeout=300,
                          env={**os.environ, "ISENTROPE_PYTHON": sys.executable})  # fmt: skip
    assert told.returncode == code, told.stdout + told.stderr
    return told


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines if "step" in line]


def rollouts_of(folder):
    return [json.loads(line) for line in (folder / "rollouts" / "grpo.jsonl").read_text().splitlines()]


# ---- named in the configuration ---------------------------------------------------------------------------------------


def test_the_program_and_the_trainer_call_what_the_configuration_names(place):
    """The file is looked for beside the configuration, and a checkpoint is evaluated from anywhere."""
    told = run(place, "train", configuration(place, "rewards.py:scores"), "run.dir=run", *WORDS)
    trainer(place, "rewards.py:scores", "python").train(quiet=True)
    assert lines_of(place / "run") == lines_of(place / "python")
    assert all(line["reward/scores"] > 0 for line in lines_of(place / "run") if line["phase"] == "grpo" and "loss" in line)
    file = place / "configs" / "rewards.py"
    assert f"{file}:scores" in (place / "run" / "config.yaml").read_text()
    again = run(place, *shlex.split(re.findall(r"(?m)^Resume +(.*)$", told.stdout)[0])[1:])
    assert "reward" in again.stdout
    (place / "elsewhere").mkdir()
    result = json.loads((place / "python" / "summary.json").read_text())[-1]
    own = json.loads(run(place / "elsewhere", "evaluate", "../python", "--json").stdout)
    own.pop("intervals")
    assert own == result
    plan = run(place, "plan", "configs/mine.yaml", *WORDS)
    assert "grpo" in plan.stdout


def test_compare_trains_by_it(place):
    pytest.importorskip("yaml")
    told = run(place, "compare", configuration(place, "rewards.py:scores"), *WORDS, "phases.grpo.steps=1", "--seeds", "1", "--dir", "runs")
    assert "| grpo |" in told.stdout or "mine" in told.stdout, told.stdout


def test_modules_names_and_words_of_the_command_line(place):
    (place / "module_of_mine.py").write_text("class Judge:\n    @staticmethod\n    def good(p, c, m): return [1.0] * len(c)\n")
    lines = list(trainer(place, '[{kind: python, function: "module_of_mine:Judge.good"}, '
                                '{kind: python, function: "rewards.py:scores", name: letters, weight: 0.5}]'))  # fmt: skip
    last = [line for line in lines if "loss" in line][-1]
    assert last["reward/good"] == 1 and abs(last["reward/mean"] - 1 - last["reward/letters"] / 2) < 1e-12
    (place / "given.py").write_text("def scores(p, c, m): return [0.25] * len(c)\n")  # seen from the working folder
    lines = list(trainer(place, "rewards.py:scores", "b", overrides={"phases.grpo.reward.0.function": "given.py:scores"}))
    assert [line for line in lines if "loss" in line][-1]["reward/scores"] == 0.25


@pytest.mark.parametrize("function, wanted", [
    ("nowhere:scores", "there is no module nowhere, neither in"),
    ("nowhere.py:scores", "there is no file "),
    ("rewards.py:scoers", "there is no scoers in .*rewards.py; did you mean scores?"),
    ("rewards.py:constant", "constant in .*rewards.py is a int, 3; wanted a function"),
    ("rewards.py:narrow", "is called with .prompts, completions, meta., which its function does not take"),
])  # fmt: skip
def test_a_function_that_is_not_there(place, function, wanted):
    with pytest.raises(RewardError, match=rf"phases.grpo.reward.0.function: \S*{function}: .*{wanted}"):
        trainer(place, function)
    assert not (place / "run").exists()


@pytest.mark.parametrize("reward, wanted", [
    ("[{kind: python}]", "mine.yaml:.*function: is missing; a reward of kind python wants FILE.py:NAME"),
    ("[{kind: python, function: maths}]", '"maths"; a reward of kind python wants .*reasoning_gym or math'),
    ("[{kind: exact, function: math}]", "function: belongs to rewards of kind python, and this one's kind is exact"),
    ("[{kind: exact, timeout_s: 3}]", "timeout_s: belongs to functions in Python, and exact is none"),
    ("[{kind: python, function: math, timeout_s: -1}]", "timeout_s: -1 is out of range"),
    ('[{kind: python, function: "a.py:f"}, {kind: python, function: "b.py:f"}]', "there is no file"),
])  # fmt: skip
def test_keys_that_are_wrong(place, reward, wanted):
    with pytest.raises((RuntimeError, RewardError), match=wanted):
        trainer(place, reward)


def test_a_module_that_fails_says_why(place):
    (place / "configs" / "broken.py").write_text("import not_there_either\n")
    told = run(place, "train", configuration(place, "broken.py:scores"), *WORDS, code=1)
    assert told.stderr.rstrip().splitlines()[-2] == "ModuleNotFoundError: No module named 'not_there_either'"
    assert "broken.py was imported for phases.grpo.reward.0.function" in told.stderr and "isentrope/" not in told.stderr


@pytest.mark.parametrize("function, error, wanted", [
    ("raising", ZeroDivisionError, "division"), ("few", RuntimeError, "reward/few: returned 1 scores for 32 completions"),
    ("texts", RuntimeError, "the reward \"texts\" returned a str, 'much' as score 0 of 32")])  # fmt: skip
def test_what_comes_back_is_looked_at(place, function, error, wanted):
    with pytest.raises(error, match=wanted) as caught:
        list(trainer(place, f"rewards.py:{function}", overrides={"phases.grpo.evaluation.every": 0, "test.skip": True}))
    if function == "raising" and hasattr(caught.value, "add_note"):
        note = caught.value.__notes__[0]
        assert 'the reward "raising", asked about 32 completions, of which the first is to the prompt' in note


def test_an_unused_name_is_an_error(place):
    with pytest.raises(RuntimeError, match=r'rewards\["other"\]: no reward of the configuration has the kind other; its kinds are python'):
        trainer(place, "rewards.py:scores", rewards={"other": lambda p, c, m: [0.0] * len(c)})


# ---- that do not apply -------------------------------------------------------------------------------------------------


def test_none_is_left_out_of_sum_and_mean(place):
    with pytest.warns(UserWarning, match="phases.grpo.reward: none has a score for the completion \".*\" to the prompt") as caught:
        made = trainer(place, '[{kind: python, function: "rewards.py:partial"}, {kind: python, function: "rewards.py:later", weight: 2}]')
        lines = [line for line in made if "loss" in line and line["phase"] == "grpo"]
    assert sum("none has a score" in str(one.message) for one in caught) == 1, "once"
    assert "reward/later" not in lines[0] and "reward/later" in lines[1]
    for line in lines:
        drawn = [one for one in rollouts_of(place / "run") if one["step"] == line["step"]]
        scores = [one["rewards"]["partial"] for one in drawn]
        assert scores == [len(set(one["completion"])) / 8 if "0" in one["completion"] else None for one in drawn]
        applies = [score for score in scores if score is not None]
        assert 0 < len(applies) < len(scores)
        assert abs(line["reward/partial"] - sum(applies) / len(applies)) < 1e-12
        for one in drawn:
            assert one["reward"] == (one["rewards"]["partial"] or 0) + 2 * (one["rewards"]["later"] or 0)


def test_an_evaluation_tells_what_has_no_score(place):
    made = trainer(place, "rewards.py:partial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = made.train(quiet=True)
    del made
    told = run(place, "evaluate", "run", "--completions", "answers.jsonl", "--json").stdout
    answers = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    unscored = [one for one in answers if "0" not in one["completion"]]
    assert unscored and all(one["score"] is None and one["right"] is False for one in unscored)
    assert abs(json.loads(told)["unscored"] - len(unscored) / len(answers)) < 1e-12 and results["grpo"]["unscored"] == json.loads(told)["unscored"]
    words = ["sample", "run", "--prompt", "1", "--samples", 8, "--max-new-tokens", 3, "--reward", "configs/rewards.py:partial"]
    drawn = [json.loads(line) for line in run(place, *words, "--json").stdout.splitlines()]
    assert {one["rewards"]["partial"] is None for one in drawn if "0" not in one["completion"]} == {True}
    assert "[partial none]" in run(place, *words).stdout


# ---- that take too long --------------------------------------------------------------------------------------------------


def spin():
    while True:
        pass


def stubborn():
    try:
        spin()
    except BaseException:
        time.sleep(1e6)


def backtrack():
    re.match("(a+)+$", "a" * 40 + "b")


@pytest.mark.parametrize("call", [spin, lambda: time.sleep(1e6), stubborn, backtrack, lambda: subprocess.run(["sleep", "1000"])])
def test_a_call_is_ended_at_its_limit(call):
    before, alarm = signal.getsignal(signal.SIGRTMIN), signal.getsignal(signal.SIGALRM)
    start = time.monotonic()
    assert within(0.2, call) == (None, False)
    assert 0.2 <= time.monotonic() - start < 60
    assert (signal.getsignal(signal.SIGRTMIN), signal.getsignal(signal.SIGALRM)) == (before, alarm)
    assert within(60, lambda: 3) == (3, True) and within(0, lambda: 4) == (4, True)
    assert not [one for one in threading.enumerate() if one.name == "isentrope reward limit"]


def test_another_thread_is_ended_in_python_code():
    found = []
    thread = threading.Thread(target=lambda: found.append(within(0.2, spin)))
    thread.start()
    thread.join(60)
    assert found == [(None, False)]


def test_what_a_call_raises_comes_through():
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 / 0)
    with pytest.raises(KeyboardInterrupt):
        within(60, lambda: signal.raise_signal(signal.SIGINT))
    slow = checked_reward("slow", lambda p, c, m: time.sleep(1e6))
    assert slow(["p"], ["c"], [{}], 0.1) is None


def test_a_run_goes_on_after_a_function_that_hangs(place):
    rewards = '[{kind: format, pattern: ".*[0-4]"}, {kind: python, function: "rewards.py:hanging", timeout_s: 1}]'
    with pytest.warns(UserWarning, match="the function of hanging took longer than timeout_s over 32 completions"):
        lines = [line for line in trainer(place, rewards) if "loss" in line and line["phase"] == "grpo"]
    assert [line["timeouts/hanging"] for line in lines] == [0, 32, 0]
    assert ["reward/hanging" in line for line in lines] == [True, False, True]
    ended = [one for one in rollouts_of(place / "run") if one["step"] == 2]
    assert all(one["rewards"]["hanging"] is None and one["reward"] == one["rewards"]["format"] for one in ended)


def test_the_program_ends_a_wait_in_an_evaluation(place):
    reward = '[{kind: python, function: "rewards.py:sleeping", timeout_s: 0.5}]'
    run(place, "train", configuration(place, reward), "run.dir=run", *WORDS, "phases.grpo.steps=1")
    tested = [line for line in lines_of(place / "run") if line.get("eval/split") == "test"]
    assert tested and all(line["eval/unscored"] == 1 and line["eval/greedy"] == 0 for line in tested)
