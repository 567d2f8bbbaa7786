"""Functions in Python in the program: `isentrope train|evaluate|sample|compare --reward [NAME=]PLACE:FUNCTION`."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release")).resolve() / "bin" / "isentrope"
GRPO = ROOT / "configs" / "tiny" / "grpo.yaml"
TIMES = {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu"}
SHORT = {"phases.grpo.reward": "[{kind: scores}]", "phases.sft.steps": 2, "phases.sft.schedule.warmup_steps": 0, "phases.grpo.steps": 3,
         "test": "{prompts: 4, sampled_prompts: 3, num_generations: 2}"}  # fmt: skip
WORDS = [f"{key}={value}" for key, value in SHORT.items()]
REWARDS = """\
import pathlib

constant = 3


def narrow(prompts, completions):
    return scores(prompts, completions, None)


def scores(prompts, completions, meta):
    return [len(set(c)) / 8 for c in completions]


def telling(prompts, completions, meta):
    print("asked for", len(completions), meta[0]["split"])
    return scores(prompts, completions, meta)


def breaking(prompts, completions, meta):
    if pathlib.Path("break").exists() and meta[0]["split"] == "train":
        return inner(completions)
    return scores(prompts, completions, meta)


def inner(completions):
    return [1 / 0]


def leaving(prompts, completions, meta):
    raise SystemExit(0)


def few(prompts, completions, meta):
    return [0.5]


def texts(prompts, completions, meta):
    return ["much"] * len(completions)


class Judge:
    @staticmethod
    def scores(prompts, completions, meta):
        return scores(prompts, completions, meta)
"""

pytest.importorskip("isentrope._C", reason="the package was built without the trainer")
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path


def run(place, *words, code=0, **more):
    environment = {**os.environ, "ISENTROPE_PYTHON": sys.executable, "ISENTROPE_PROGRAM": "of another"}
    told = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, cwd=place, timeout=120, env=environment, **more)
    assert told.returncode == code, told.stdout + told.stderr
    return told


def train(place, reward, *words, code=0):
    return run(place, "train", GRPO, "run.dir=run", *WORDS, "--reward", reward, *words, code=code)


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines if "step" in line]


# ---- what it does -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["rewards.py:scores", "rewards:scores", "scores=rewards:telling", "rewards.py:Judge.scores"])
def test_a_run_is_that_of_the_trainer_in_python(place, reward):
    import isentrope

    told = train(place, reward)
    scope = {}
    exec(REWARDS, scope)
    isentrope.Trainer(GRPO, {"scores": scope["scores"]}, {**SHORT, "run.dir": place / "python"}).train(quiet=True)
    assert lines_of(place / "run") == lines_of(place / "python")
    assert (place / "run" / "summary.json").read_text() == (place / "python" / "summary.json").read_text()
    assert "after phase" in told.stdout and ("asked for" in told.stdout) == ("telling" in reward)
    assert f"--reward {shlex.quote(reward)}" in told.stdout.partition("Resume")[2] and str(PROGRAM) in told.stdout


def test_evaluate_and_sample_ask_it(place):
    train(place, "rewards.py:scores")
    result = json.loads((place / "run" / "summary.json").read_text())[-1]
    own = json.loads(run(place, "evaluate", "run", "--json", "--reward", "rewards:scores").stdout)
    intervals = own.pop("intervals")
    assert intervals["greedy"]["low"] <= own["greedy"] <= intervals["greedy"]["high"] and intervals["greedy"]["of"] == "4 prompts"
    assert own == result
    refused = run(place, "evaluate", "run", code=1).stderr
    assert "--reward scores=FILE.py:FUNCTION" in refused and 'rewards={"scores": f}' in refused
    words = ["sample", "run", "--prompt", "1", "--samples", 3, "--max-new-tokens", 4, "--reward", "rewards:scores"]
    objects = [json.loads(line) for line in run(place, *words, "--json", "--reward", "second=rewards:scores").stdout.splitlines()]
    assert len(objects) == 3
    for one in objects:
        assert one["rewards"] == {"scores": len(set(one["completion"])) / 8, "second": len(set(one["completion"])) / 8}
    text = run(place, *words).stdout.splitlines()
    assert [f"[scores {one['rewards']['scores']:.4g}]" in line for one, line in zip(objects, text)] == [True] * 3


def test_sample_hands_the_keys_of_a_prompt_on(place):
    train(place, "rewards.py:scores")
    (place / "prompts.jsonl").write_text('{"prompt": "1", "size": 2.5}\n')
    (place / "sized.py").write_text("def sized(p, c, meta): return [m['size'] + (m['split'] == 'test') for m in meta]\n")
    told = run(place, "sample", "run", "--prompts", "prompts.jsonl", "--json", "--max-new-tokens", 2, "--reward", "sized:sized").stdout
    assert json.loads(told)["rewards"] == {"sized": 3.5}


def test_compare_hands_it_on(place):
    pytest.importorskip("yaml")
    told = run(place, "compare", GRPO, *WORDS, "--seeds", "1", "--dir", "runs", "--reward", "rewards:scores")
    assert "| grpo |" in told.stdout, told.stdout
    again = run(place, "compare", GRPO, *WORDS, "--seeds", "1", "--dir", "runs", "--reward", "rewards:scores", "--dry-run")
    assert "finished" in again.stdout


def test_the_words_are_read_before_python_is(place):
    told = run(place, "train", GRPO, "--reward", "rewards:scores", "--quite", code=2)
    assert "there is no option '--quite'" in told.stderr and "--quiet" in told.stderr
    assert "--reward" in run(place, "evaluate", "--reward", "rewards:scores", "--help").stdout
    from_python = subprocess.run([sys.executable, "-m", "isentrope", "train"], capture_output=True, text=True, cwd=place)
    assert from_python.returncode == 2 and "config is required" in from_python.stderr


def test_python_itself_runs_the_commands(place):
    told = subprocess.run([sys.executable, "-m", "isentrope", "version"], capture_output=True, text=True, cwd=place)
    assert told.returncode == 0 and told.stdout == run(place, "version").stdout


# ---- what stops it ------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_step_and_saves(place):
    words = [PROGRAM, "train", GRPO, "run.dir=run", *WORDS, "phases.grpo.steps=100000", "--reward", "rewards:scores"]
    process = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place,
                               env={**os.environ, "ISENTROPE_PYTHON": sys.executable})  # fmt: skip
    end = time.monotonic() + 60
    while not ((place / "run" / "metrics.jsonl").exists() and '"grpo", "step": 2' in (place / "run" / "metrics.jsonl").read_text()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Stopped. Checkpoint: " in told and "Traceback" not in errors
    assert "--reward rewards:scores" in told.partition("Resume:")[2]


def test_what_a_function_raises_is_shown_as_it_is_and_the_run_goes_on(place):
    (place / "break").touch()
    told = train(place, "scores=rewards:breaking", code=1)
    assert "ZeroDivisionError" in told.stderr and "line 21, in breaking" in told.stderr and "in inner" in told.stderr
    assert 'the reward "scores"' in told.stderr
    assert told.stderr.count("File ") == 2 and "isentrope/" not in told.stderr.partition("ZeroDivisionError")[0]
    (place / "break").unlink()
    resume = shlex.split(told.stdout.partition("Resume:")[2].strip())
    assert subprocess.run(resume, cwd=place, capture_output=True, env={**os.environ, "ISENTROPE_PYTHON": sys.executable}).returncode == 0
    assert [line["global_step"] for line in lines_of(place / "run") if "eval/split" not in line] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("function, wanted", [
    ("leaving", "SystemExit"), ("few", "wanted 16|returned 1 scores"), ("texts", 'returned a str, \'much\' as score 0')])
def test_a_function_that_is_none_of_a_reward(place, function, wanted):
    told = train(place, f"scores=rewards:{function}", code=1)
    assert any(one in told.stderr for one in wanted.split("|")), told.stderr
    assert ("Traceback" in told.stderr) == (function == "leaving")


@pytest.mark.parametrize("reward, wanted", [
    ("nowhere:scores", "there is no module nowhere, neither in"),
    ("nowhere.deep:scores", "there is no module nowhere.deep"),
    ("nowhere.py:scores", "there is no file nowhere.py (seen from"),
    ("rewards.txt:scores", "there is no module rewards.txt"),
    ("rewards:scoers", "there is no scoers in rewards; did you mean scores?"),
    ("scores=rewards.py:Judge.many", "there is no many in rewards.py"),
    ("scores=rewards:narrow", 'the reward "scores" is called with (prompts, completions, meta), which its function does not take'),
    ("scores=rewards:constant", "constant in rewards is a int, 3; wanted a function of (prompts, completions, meta)"),
    ("rewards:telling", "no reward of the configuration has the kind telling; its kinds are scores"),
    ("exact=rewards:scores", "exact is a built-in kind"),
])  # fmt: skip
def test_what_is_wrong_with_it_is_said_before_anything_is_written(place, reward, wanted):
    if reward.startswith("rewards:scoers"):
        reward = f"scores={reward}"
    told = train(place, reward if "=" in reward or "telling" in reward else f"scores={reward}", code=1)
    assert told.stderr.startswith("isentrope: --reward ") and wanted in told.stderr and "Traceback" not in told.stderr
    assert not (place / "run").exists()


def test_two_of_one_name(place):
    told = train(place, "rewards:scores", "--reward", "rewards.py:scores", code=1)
    assert "two are called scores; give one another name" in told.stderr


@pytest.mark.parametrize("reward", ["scores", ":scores", "rewards:", "=rewards:scores", ""])
def test_another_form_is_a_word_that_is_wrong(place, reward):
    told = train(place, reward, code=2)
    assert "wanted [NAME=]MODULE:FUNCTION or [NAME=]FILE.py:FUNCTION" in told.stderr and "isentrope train --help" in told.stderr


@pytest.mark.parametrize("text, wanted", [("import not_there_either\n", "No module named 'not_there_either'"), ("def f(:\n", "SyntaxError"),
                                          ("raise ValueError('mine')\n", "ValueError: mine")])
def test_a_module_that_fails_is_shown_as_python_shows_it(place, text, wanted):
    (place / "broken.py").write_text(text)
    for reward in ("scores=broken:scores", "scores=broken.py:scores"):
        told = train(place, reward, code=1)
        assert wanted in told.stderr and "broken.py" in told.stderr and "__main__.py" not in told.stderr and "importlib" not in told.stderr


def test_a_file_takes_no_ones_place(place):
    (place / "json.py").write_text("from rewards import scores\n")
    assert train(place, "./json.py:scores").returncode == 0


# ---- progress in Python ---------------------------------------------------------------------------------------------------


def trainer(folder):
    import isentrope

    return isentrope.Trainer(GRPO, {"scores": lambda p, c, m: [len(set(x)) / 8 for x in c]}, {**SHORT, "run.dir": folder})


def first_words(text):
    return [line.split()[0] for line in text.partition("\nCheckpoint  ")[0].splitlines() if line.strip()]


def test_train_in_python_shows_what_the_program_shows(place, capsys):
    program = train(place, "rewards:scores").stdout
    trainer(place / "run2").train()
    mine = capsys.readouterr().out
    assert first_words(mine) == first_words(program) and first_words(mine).count("grpo") >= 2
    table = lambda text: text.partition("after phase")[2].partition("\nCheckpoint  ")[0].strip()  # noqa: E731
    assert table(mine) == table(program) and "greedy" in table(mine)


def test_quiet_and_iteration_are_silent(place, capsys):
    trainer(place / "quiet").train(quiet=True)
    list(trainer(place / "iterated"))
    assert capsys.readouterr().out == ""
    with pytest.raises(TypeError, match="quiet is a int, 1; wanted True or False"):
        trainer(place / "wrong").train(quiet=1)


def test_output_that_is_lost_does_not_end_a_run(place, monkeypatch):
    made = trainer(place / "lost")
    for out in (None, open(os.devnull)):
        monkeypatch.setattr(sys, "stdout", out)
        made.train(lambda metrics, step: None)
    monkeypatch.undo()
    assert made.finished


def test_after_an_error_nothing_is_shown_any_more(place, capsys):
    made = trainer(place / "run")
    with pytest.raises(ZeroDivisionError):
        made.train(lambda metrics, step: 1 / 0)
    capsys.readouterr()
    list(made)
    assert capsys.readouterr().out == "" and made.finished
