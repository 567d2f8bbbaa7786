"""isentrope evaluate --policy: conversations of policies without a model, their figures and what they say."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "environments" / "diagnosis.yaml"


def evaluate(*words, config=CONFIG, code=0):
    build = os.environ.get("ISENTROPE_BUILD")
    program = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert program, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    told = subprocess.run([os.path.abspath(program), "evaluate", str(config), *words], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert told.returncode == code, told.stdout + told.stderr
    return told


@pytest.mark.parametrize("config", ["diagnosis", "twenty_questions"])
def test_figures_belong_together(config):
    words = ["test.prompts=64", "--policy", "random", "--policy", "information,labels=belief,simulations=0", "--policy", "conformal,alpha=0.2", "--json"]
    told = evaluate(*words, config=CONFIG.parent / f"{config}.yaml").stdout
    assert told == evaluate(*words, config=CONFIG.parent / f"{config}.yaml").stdout, "the same draws"
    found = json.loads(told)
    assert found["conversations"] == 64 and found["environment"] == config
    random, information, conformal = found["policies"]
    for one in (random, information, conformal):
        lengths = len(one["right"])
        assert all(len(one[key]) == lengths for key in ("covered", "set_size", "entropy", "threshold"))
        assert one["entropy"][0] == pytest.approx(random["entropy"][0]) and one["entropy"][-1] < one["entropy"][0]
        assert 0 <= one["stopped"]["questions"] <= lengths - 1
        assert one["stopped"]["information_gain"] > 0
    assert information["entropy"][2] < random["entropy"][2]
    if config == "twenty_questions":  # without noise all questions tell all objects apart, and the object is never ruled out
        assert information["right"][-1] == 1 and information["entropy"][-1] == pytest.approx(0, abs=1e-9)
        assert information["covered"][-1] == 1 and information["right"][3] > random["right"][3]


def test_turns_are_written_for_sft(tmp_path):
    evaluate("test.prompts=8", "--policy", "information", "--completions", str(tmp_path / "turns.jsonl"), "--json")
    turns = [json.loads(line) for line in (tmp_path / "turns.jsonl").read_text().splitlines()]
    conversations, before = 0, None
    for turn in turns:
        assert turn["completion"][0] in "?!"
        if before is not None:
            assert turn["prompt"] in (before + "y\n", before + "n\n")
        before = None if turn["completion"][0] == "!" else turn["prompt"] + turn["completion"]
        conversations += turn["completion"][0] == "!"
    assert conversations == 8 and before is None


@pytest.mark.parametrize(
    "words,message",
    [
        (["--policy", "greedy"], "policy.kind is"),
        (["--policy", "conformal,alpha=2"], "policy.alpha is 2, wanted 0.001 to 0.5"),
        (["--policy", "conformal,beta=2"], "policy has no key"),
        (["--policy", "conformal,scale=1"], "policy.scale is"),
        (["--policy", "random,questions=20"], "questions is 20; the table and environment.turns leave 8"),
        (["--policy", "random", "phases.grpo.environment={kind: calculator}", "phases.grpo.reward=[{kind: environment, name: answer}]"], "wanted environment twenty_questions or diagnosis"),
    ],
)  # fmt: skip
def test_words_are_looked_at(words, message):
    assert message in evaluate(*words, code=1).stderr
