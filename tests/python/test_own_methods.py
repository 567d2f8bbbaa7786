"""Methods of one's own: operators in Python and C++ in the lists of a phase, and what is said where they do not fit."""

import json
import math
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


def test_the_example_of_a_controller_with_a_state(tmp_path):
    """A second call goes on where the first one ended, bit for bit as one that was not stopped."""
    call = [sys.executable, EXAMPLE / "own_controller.py"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, counts in ((whole, ["6"]), (parts, ["3", "6"])):
        folder.mkdir()
        for count in counts:
            told = subprocess.run([*call, count], cwd=folder, capture_output=True, text=True)
            assert told.returncode == 0, told.stderr
    one, other = (steps(folder / "runs" / "own_controller") for folder in (whole, parts))
    assert [line["step"] for line in one] == [line["step"] for line in other] == list(range(1, 7))
    keys = ("loss", "grad_norm", "entropy_coef", "entropy/mean")
    assert [[line[key] for key in keys] for line in one] == [[line[key] for key in keys] for line in other]
    # The state after each step, by hand: a step has one update.
    s = -4.0
    for line in one:
        assert line["entropy_coef"] == pytest.approx(math.exp(s), rel=1e-6)
        s += 0.2 * (0.5 - line["entropy/mean"])
    assert one[-1]["entropy_coef"] != one[0]["entropy_coef"]


def test_a_state_passes_from_step_to_step_in_every_place(tmp_path):
    """Each counts its calls, and the state of step n is what it returned in step n - 1; a resumed run goes on with it."""
    seen = {}

    @isentrope.methods.register("counted_reward")
    def counted_reward(length: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.setdefault("reward", []).append(state.tolist())
        return 0 * length.double(), state + torch.tensor([1.0, 0.5])

    @isentrope.methods.register("counted_advantage")
    def counted_advantage(advantage: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.setdefault("advantage", []).append(state.tolist())
        return advantage * (1 + state[0]).float(), state + 1

    @isentrope.methods.register("counted_weight")
    def counted_weight(entropy: torch.Tensor, state: torch.Tensor, bad: str = "") -> tuple[torch.Tensor, torch.Tensor]:
        seen.setdefault("weight", []).append(state.tolist())
        after = {"": state + 1, "size": torch.zeros(3).double(), "dtype": (state + 1).float(), "inf": state / 0}[bad]
        return torch.ones_like(entropy), after

    lists = {
        "phases.grpo.reward": "[{kind: answer}, {kind: op, op: counted_reward, state: [0.0, 2.0]}]",
        "phases.grpo.advantage": "[{kind: grpo}, {kind: op, op: counted_advantage, state: [0.25]}]",
        "phases.grpo.weight": "[{kind: op, op: counted_weight, state: [7.0]}]",
    }

    def run(name, count, resume=False, **overrides):
        given = {"run.dir": tmp_path / name, "phases.sft.steps": 5, "phases.grpo.steps": 3, "phases.grpo.rollout.mini_batches": 2, **lists, **overrides}
        for line in isentrope.Trainer(CONFIG, overrides=given, resume=resume):
            if line.get("phase") == "grpo" and "loss" in line and line["step"] == count:
                break

    run("whole", 3)
    whole = {place: list(states) for place, states in seen.items()}
    assert whole["reward"] == [[0.0, 2.0], [1.0, 2.5], [2.0, 3.0]] and whole["advantage"] == [[0.25], [1.25], [2.25]]
    assert whole["weight"] == [[float(7 + i)] for i in range(6)]  # two updates a step
    seen.clear()
    run("parts", 2)
    run("parts", 3, resume=True)
    assert {place: states[-len(whole[place]) // 3 :] for place, states in seen.items()} == {place: states[-len(whole[place]) // 3 :] for place, states in whole.items()}
    keys = ("loss", "grad_norm")
    one, other = ([[line[key] for key in keys] for line in steps(tmp_path / name)] for name in ("whole", "parts"))
    assert one == other and len(one) == 3

    for bad, said in (("size", r"a state of shape \[3\] and dtype Double; wanted \[1\] of Double"), ("dtype", r"a state of shape \[1\] and dtype Float; wanted"), ("inf", "a state that is not finite")):
        with pytest.raises((ValueError, RuntimeError), match=f"isentrope::method_counted_weight returned {said}"):
            run(bad, 1, **{"phases.grpo.weight": f"[{{kind: op, op: counted_weight, state: [7.0], bad: {bad}}}]"})
    with pytest.raises(RuntimeError, match=r"counted_weight keeps a state; say what it begins with, as state: \[0.0\]"):
        run("none", 1, **{"phases.grpo.weight": "[{kind: op, op: counted_weight}]"})
    with pytest.raises(RuntimeError, match="own_stateless has no argument state; take the key out"):

        @isentrope.methods.register("own_stateless")
        def own_stateless(entropy: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(entropy)

        run("stateless", 1, **{"phases.grpo.weight": "[{kind: op, op: own_stateless, state: [1.0]}]"})
    with pytest.raises(RuntimeError, match="own_single returns something else than two tensors, its result and the new state"):

        @isentrope.methods.register("own_single")
        def own_single(entropy: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(entropy)

        run("single", 1, **{"phases.grpo.weight": "[{kind: op, op: own_single, state: [1.0]}]"})


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
