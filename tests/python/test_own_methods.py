"""Methods of one's own: operators in Python and C++ in the lists of a phase, and what is said where they do not fit."""

import json
import subprocess
import sys

import pytest
import torch

import isentrope
from test_train import ROOT, binary

EXAMPLE = ROOT / "examples" / "own_method"
CONFIG = EXAMPLE / "own_method.yaml"
STEPS = ["phases.sft.steps=5", "phases.grpo.steps=2"]


def steps(folder):
    return [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if line.get("phase") == "grpo"]


def test_the_example_in_python(tmp_path):
    told = subprocess.run([sys.executable, EXAMPLE / "own_method.py", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("mean weight 1.000") == 2, told.stdout


def test_the_example_in_cpp(tmp_path):
    flags = subprocess.run([sys.executable, EXAMPLE / "flags.py"], capture_output=True, text=True, check=True).stdout.split()
    library = tmp_path / "own_method.so"
    subprocess.run(["g++", "-std=c++20", "-O1", "-shared", "-fPIC", str(EXAMPLE / "own_method.cpp"), "-o", str(library), *flags], check=True)
    call = [binary(), "train", CONFIG, *STEPS, f"run.libraries=[{library}]"]
    told = subprocess.run([*call, f"run.dir={tmp_path}/run", "phases.grpo.weight=[{kind: op, op: 'mylib::surprise', power: 0.5}]"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert [line["weight/mean"] for line in steps(tmp_path / "run")] == pytest.approx([1, 1], abs=1e-5)
    for entry, said in [
        ("{kind: op, op: 'mylib::other'}", "phases.grpo.weight.0: there is no operator mylib::other; name its library in run.libraries"),
        ("{kind: op, op: 'mylib::surprise', size: 1}", "mylib::surprise has no argument size; take the key out"),
        ("{kind: op, op: 'mylib::surprise', power: high}", 'mylib::surprise: power is "high"; wanted float'),
        ("{kind: op}", "op: no operator is named"),
    ]:
        told = subprocess.run([*call, f"run.dir={tmp_path}/none", f"phases.grpo.weight=[{entry}]"], capture_output=True, text=True)
        assert told.returncode == 1 and said in told.stderr, told.stderr
        assert not (tmp_path / "none").exists()


def test_all_places_and_what_is_refused(tmp_path):
    seen = []

    @isentrope.methods.register("own_reward")
    def own_reward(length: torch.Tensor, right: torch.Tensor, per_token: float = 0.0) -> torch.Tensor:
        seen.append("reward")
        return per_token * length.double()

    @isentrope.methods.register("own_advantage")
    def own_advantage(advantage: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append("advantage")
        return advantage * 2

    @isentrope.methods.register("own_weight")
    def own_weight(old_entropy: torch.Tensor, what: str = "ones") -> torch.Tensor:
        seen.append("weight")
        return torch.full_like(old_entropy, -1.0 if what == "negative" else float("nan") if what == "nan" else 1.0)

    @isentrope.methods.register("own_bonus")
    def own_bonus(mask: torch.Tensor, entropy: torch.Tensor, step: torch.Tensor, coef: float = 0.1) -> torch.Tensor:
        seen.append(f"bonus of step {step.item()}")
        return coef * torch.ones_like(entropy)

    def run(name, **overrides):
        trainer = isentrope.Trainer(CONFIG, overrides={"run.dir": tmp_path / name, "phases.sft.steps": 5, "phases.grpo.steps": 1, **overrides})
        list(trainer)
        return steps(tmp_path / name)[-1]

    plain = run("plain")
    same = run("same", **{"phases.grpo.weight": "[{kind: op, op: own_weight}]"})
    assert same["loss"] == plain["loss"] and same["grad_norm"] == plain["grad_norm"]
    both = run("both", **{"phases.grpo.advantage": "[{kind: grpo}, {kind: op, op: own_advantage}]",
                          "phases.grpo.reward": "[{kind: answer}, {kind: op, op: own_reward, per_token: 0.125}]"})  # fmt: skip
    assert both["loss"] != plain["loss"] and {"reward", "advantage", "weight"} <= set(seen)
    # What tokens weigh in the bonus: alike, it is the bonus of one coefficient.
    bonus = run("bonus", **{"phases.grpo.objective.entropy": "{kind: op, op: own_bonus, coef: 0.25}"})
    known = run("known", **{"phases.grpo.objective.entropy": "{kind: constant, coef: 0.25}"})
    assert bonus["loss"] == pytest.approx(known["loss"], rel=1e-6) and bonus["grad_norm"] == pytest.approx(known["grad_norm"], rel=1e-5)
    assert bonus["loss"] != plain["loss"] and "bonus of step 0" in seen
    nothing = run("nothing", **{"phases.grpo.objective.entropy": "[{kind: constant, coef: 0}, {kind: op, op: own_bonus, coef: 0.0}]"})
    assert nothing["grad_norm"] == plain["grad_norm"]
    with pytest.raises(RuntimeError, match=r"objective\.entropy\.0: .*own_bonus has no argument size"):
        run("size", **{"phases.grpo.objective.entropy": "{kind: op, op: own_bonus, size: 1}"})
    with pytest.raises((ValueError, RuntimeError), match="isentrope::method_own_weight returned a factor below 0"):
        run("negative", **{"phases.grpo.weight": "[{kind: op, op: own_weight, what: negative}]"})
    with pytest.raises((ValueError, RuntimeError), match="isentrope::method_own_weight returned a number that is not finite"):
        run("nan", **{"phases.grpo.weight": "[{kind: op, op: own_weight, what: nan}]"})
    with pytest.raises(ValueError, match="name is 'own_weight'; wanted letters, digits and _, and no name that is taken"):
        isentrope.methods.register("own_weight")
    with pytest.raises(RuntimeError, match="advantage: the first of the list makes advantages of rewards, and op changes some"):
        run("first", **{"phases.grpo.advantage": "[{kind: op, op: own_advantage}]"})
