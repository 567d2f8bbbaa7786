"""methods=[…] of isentrope.integrations.trl.GRPOTrainer in TRL 1.16.0: real training steps on the CPU against the functions of isentrope.methods.

Skipped where there is no TRL; scripts/integrations.sh trl installs one into an environment of its own and runs this.
"""

import math
import re
from pathlib import Path

import pytest
import torch

trl = pytest.importorskip("trl", reason="there is no trl; scripts/integrations.sh trl runs this with one")

import trl_runs  # noqa: E402
from test_integrations_trl import inputs, no_reference, processes, step, trained  # noqa: E402, F401

from isentrope import grpo_loss, methods  # noqa: E402
from isentrope.integrations.methods import CONTROLLERS, Entry, subject  # noqa: E402
from isentrope.integrations.methods import advantage as estimate  # noqa: E402
from isentrope.integrations.trl.methods import _REFUSED, Methods  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*deprecated")
ESTIMATORS = {"grpo": {"std": "batch"}, "dr_grpo": {}, "rloo": {}, "opo": {}, "reinforce_plus_plus_baseline": {}, "reinforce_plus_plus": {}, "gdpo": {},
              "pass_at_k": {"k": 2}, "maxrl": {}, "quantile": {"quantile": 0.7}}  # fmt: skip
WEIGHTS = {"top_entropy": {"fraction": 0.3}, "surprisal_band": {"low": 0.3, "high": 2.0}, "entropy_ratio_band": {"low": 0.999, "high": 1.01},
           "steer": {}, "stare": {"target": 9.0, "fraction": 0.34, "up": 1.5, "down": 0.5}, "soft_window": {"window": 5}}  # fmt: skip


def watched(folder, given, function=None, **options):
    """A trainer after one optimiser step; told: what its generation gave, and the arguments of its losses."""
    made = trl_runs.trainer("isentrope", folder, methods=given, **{"max_steps": 1, **options})
    told = {"rewards": [], "output": [], "seen": []}
    if function is not None:
        made.reward_funcs = [function]
    calculate, generate, look = made._calculate_rewards, made._generate_and_score_completions, made._look

    def rewards(*args, **kwargs):
        told["rewards"].append(calculate(*args, **kwargs))
        return told["rewards"][-1]

    def generated(*args):
        told["output"].append(generate(*args))
        return told["output"][-1]

    def looked(model, batch, *args, **kwargs):
        out = look(model, batch, *args, **kwargs)
        told["seen"].append((batch, out[0].detach(), out[1].detach()))
        return out

    made._calculate_rewards, made._generate_and_score_completions, made._look = rewards, generated, looked
    made.train()
    return made, told


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_advantages_of_a_step_are_our_functions(kind, tmp_path):
    made, told = watched(tmp_path, [{"kind": kind, **ESTIMATORS[kind]}], scale_rewards="group")
    rewards, output = told["rewards"][0], told["output"][0]
    length = output["completion_mask"].sum(1)
    wanted = estimate(Entry(kind, ESTIMATORS[kind]), [0] * 4 + [1] * 4, reward=rewards[:, 0].double(), scores=rewards.double().t(), length=length)
    torch.testing.assert_close(output["advantages"], wanted.float(), rtol=1e-6, atol=1e-7)
    assert wanted.abs().max() > 0
    logged = [line for line in made.state.log_history if "grad_norm" in line]
    assert len(logged) == 1 and logged[0]["grad_norm"] > 0
    # The losses saw them and nothing else, in the order of the micro-batches.
    used = torch.cat([batch["advantages"] for batch, *_ in told["seen"]])
    assert torch.equal(used.sort().values, output["advantages"].sort().values)


def test_the_grpo_of_trl_is_ours_with_its_eps(tmp_path):
    """Its scale_rewards is not applied besides: with the same eps the whole run is the same."""
    theirs = trained("trl", tmp_path, max_steps=1)
    made, _ = watched(tmp_path, [{"kind": "grpo", "eps": 1e-4}], fused_head=False)
    for key, x in theirs.model.state_dict().items():
        difference = (made.model.state_dict()[key] - x).abs()
        assert difference.mean() < 1e-5 and difference.max() < 2e-3, key
    assert list(made._logs["advantages"]) == pytest.approx(list(theirs._logs["advantages"]), rel=1e-4, abs=1e-5)


def test_completions_without_a_reward_have_no_advantage(tmp_path):
    def some(completion_ids, **_):
        return [None if i % 4 == 1 else float(tokens[0]) for i, tokens in enumerate(completion_ids)]

    _, told = watched(tmp_path, ["rloo"], some)
    made, reward = told["output"][0]["advantages"], told["rewards"][0][:, 0].double()
    assert reward[1].isnan() and made[1] == made[5] == 0
    for begin in (0, 4):
        rows = [begin, begin + 2, begin + 3]
        wanted = methods.rloo(reward[rows], torch.zeros(3, dtype=torch.int64))
        torch.testing.assert_close(made[rows], wanted.float(), rtol=1e-6, atol=1e-6)


def test_several_rewards_have_trls_weights():
    rewards = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
    weights, length = torch.tensor([0.3, 2.0]), torch.arange(1, 9)
    index = [0] * 4 + [1] * 4
    made = Methods(["dr_grpo"]).advantages(rewards, weights, 4, length)
    torch.testing.assert_close(made, estimate(Entry("dr_grpo"), index, reward=rewards.double() @ weights.double()))
    made = Methods(["gdpo"]).advantages(rewards, weights, 4, length)
    wanted = methods.gdpo(rewards.double().t(), torch.tensor(index), length, weights.double())
    torch.testing.assert_close(made, wanted)


# ---- weights ---------------------------------------------------------------------------------------------------------


def by_hand(kind, seen):
    """The factor [B, T] of all micro-batches of an optimiser step, and the tensors that it is of."""
    batches = [one[0] for one in seen]
    x = {name: torch.cat([one[place] for one in seen]) for place, name in ((1, "logprob"), (2, "entropy"))}
    x |= {"mask": torch.cat([one["completion_mask"] for one in batches]), "advantage": torch.cat([one["advantages"] for one in batches])[:, None].expand_as(x["logprob"])}
    x["old_logprob"] = torch.cat([one.get("old_per_token_logps", seen[i][1]) for i, one in enumerate(batches)])
    if "old_entropy" in batches[0]:
        x["old_entropy"] = torch.cat([one["old_entropy"] for one in batches])
    return getattr(methods, kind)(**{name: x[name] for name in subject(kind)}, **WEIGHTS[kind]), x


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weight_is_of_the_whole_optimiser_step(kind, tmp_path, monkeypatch):
    """Two micro-batches: what multiplies advantages is the function's factor of both together, in the first update of a generation or its second."""
    from isentrope.integrations.trl import trainer as module

    given = []

    def loss(logprob, old, advantage, *args, **options):
        given.append(advantage.detach())
        return grpo_loss(logprob, old, advantage, *args, **options)

    monkeypatch.setattr(module, "grpo_loss", loss)
    second = {"num_iterations": 2, "max_steps": 2, "learning_rate": 1e-2} if kind == "entropy_ratio_band" else {}
    made, told = watched(tmp_path, [{"kind": kind, **WEIGHTS[kind]}], **second)
    ours = torch.cat(given[-2:])
    # The first pass of an update learns from the first micro-batch, the last from the second; between them may stand those that decide.
    passes = [one for one in told["seen"] if len(one[0]["advantages"]) == 4]
    seen = [passes[-2 if second else 0], passes[-1]]
    factor, x = by_hand(kind, seen)
    torch.testing.assert_close(ours, x["advantage"] * factor, rtol=1e-5, atol=1e-6)
    counted = factor[x["mask"] > 0]
    assert counted.unique().numel() > 1
    assert (x["old_logprob"] != x["logprob"]).any() == bool(second)
    line = made.state.log_history[0]
    if kind in ("top_entropy", "steer", "stare"):
        assert line["isentrope/weight/mean"] == pytest.approx(counted.mean().item(), rel=1e-4)


def test_without_a_cut_a_weight_takes_no_pass_more(tmp_path):
    made, told = watched(tmp_path, ["top_entropy"], gradient_accumulation_steps=1)
    assert len(told["seen"]) == 1
    made, told = watched(tmp_path, ["top_entropy"])
    assert len(told["seen"]) == 4


def test_a_weight_moves_the_gradient_and_the_identity_does_not(tmp_path):
    identity = [{"kind": "surprisal_band", "low": 0, "high": math.inf}]
    plain, same, other = (step("isentrope", tmp_path, methods=given) for given in ((), identity, [{"kind": "surprisal_band", "low": 0.5, "high": 1.5}]))
    for key, gradient in plain[1].items():
        assert torch.equal(gradient, same[1][key]), key
    assert any((gradient - other[1][key]).abs().max() > 1e-3 for key, gradient in plain[1].items())


# ---- controllers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [{"kind": "adaptive", "target": 9.0, "coef": 0.05, "delta": 0.02}, {"kind": "entropic", "target": 1.0, "integral": 0.1}],
                         ids=lambda entry: entry["kind"])  # fmt: skip
def test_a_controller_follows_the_entropy_of_optimiser_steps(entry, tmp_path):
    made = trl_runs.trainer("isentrope", tmp_path, methods=[entry], max_steps=3, num_iterations=1)
    seen, observe = [], made._methods.controller.observe
    made._methods.controller.observe = lambda entropy: (seen.append(entropy), observe(entropy))[1]
    made.train()
    lines = [line for line in made.state.log_history if "grad_norm" in line]
    assert len(seen) == 3
    for told, line in zip(seen, lines, strict=True):  # TRL's is a mean of means of two micro-batches
        assert told == pytest.approx(line["entropy"], rel=0.1)
    state = torch.tensor([entry.get("coef", 0.0), float("nan") if entry["kind"] == "adaptive" else 0.0], dtype=torch.float64)
    options = {key: value for key, value in entry.items() if key not in ("kind", "coef")}
    for told, line in zip(seen, lines, strict=True):
        if entry["kind"] == "adaptive":
            assert line["entropy_coef"] == pytest.approx(state[0].item())
        else:
            assert line["isentrope/advantage/positive"] == pytest.approx(1 + state[1].item())
        state = CONTROLLERS[entry["kind"]](state, told, **options)
    assert torch.equal(state, made._methods.controller.state)


def test_a_bonus_is_part_of_the_token_losses(tmp_path):
    """coef is grpo_loss's entropy_coef, as in the trainer; entropic weighs right and wrong answers."""
    fields = {"loss_type": "bnpo", "fused_head": False}
    plain = step("isentrope", tmp_path, **fields)
    bonus = step("isentrope", tmp_path, methods=[{"kind": "adaptive", "coef": 0.1, "target": 9.0}], **fields)
    batch = inputs(plain[3])
    mask = batch["completion_mask"]
    _, entropy, _ = plain[3]._look(plain[3].model, batch)
    mean = ((entropy * mask).sum() / mask.sum()).item()
    assert bonus[0] == pytest.approx(plain[0] - 0.1 * mean / 2, rel=1e-5)
    made = trl_runs.trainer("isentrope", tmp_path, methods=["entropic"], **fields)
    made._methods.controller.state = torch.tensor([0.0, 0.3], dtype=torch.float64)
    advantage = torch.tensor([[2.0, -1.0, 0.0]])
    torch.testing.assert_close(made._methods.controlled(advantage), torch.tensor([[2.6, -0.7, 0.0]]))


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    options = dict(methods=["rloo", "top_entropy", {"kind": "adaptive", "target": 9.0, "delta": 0.02}], max_steps=4, save_strategy="steps", save_steps=2,
                   lr_scheduler_type="constant")  # fmt: skip
    whole = trained("isentrope", tmp_path, **options)
    resumed = trl_runs.trainer("isentrope", tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for key, x in whole.model.state_dict().items():
        assert torch.equal(x, resumed.model.state_dict()[key]), key
    assert torch.equal(whole._methods.controller.state, resumed._methods.controller.state)
    other = trl_runs.trainer("isentrope", tmp_path, methods=["entropic"], max_steps=4)
    with pytest.raises(ValueError, match="the checkpoint has the state of adaptive, and methods has entropic"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_two_processes(tmp_path):
    """Statistics are over both: the share of tokens kept is that of the whole step."""
    told = processes(tmp_path, "isentrope", {"methods": ["rloo", {"kind": "top_entropy", "fraction": 0.25}, {"kind": "adaptive", "target": 9.0}]})
    for line in told["log"][:-1]:
        assert line["isentrope/weight/mean"] == pytest.approx(0.25, abs=0.02) and line["isentrope/weight/zero"] == pytest.approx(0.75, abs=0.02)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given, fields, message", [
    (["remax"], {}, "remax cannot be had here: TRL draws no greedy completion"),
    (["correction"], {}, "correction cannot be had here: TRL has it as vllm_importance_sampling_mode"),
    (["rloo", "grpo"], {}, "GRPOTrainer: methods has rloo and grpo; wanted one estimator of advantages"),
    (["adaptive", "entropic"], {}, "methods has adaptive and entropic; wanted one controller of the entropy"),
    (["top_entropy"], {"loss_type": "sapo"}, "methods has top_entropy, and TRL computes the loss of these arguments itself"),
    (["adaptive"], {"entropy_coef": 0.1}, "methods has adaptive, and entropy_coef or use_adaptive_entropy is given too"),
    (["steer"], {"steps_per_generation": 3}, "steps_per_generation is 3 and gradient_accumulation_steps 2; wanted a multiple"),
    ([{"kind": "pass_at_k", "k": 4}], {}, "k is 4.*|group.*of 4"),
    ([{"kind": "gdpo", "weights": [1, 2]}], {}, "weights"),
    ("rloo", {}, "GRPOTrainer: methods is 'rloo'; wanted a list"),
])  # fmt: skip
def test_wrong_methods_are_named(given, fields, message, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        trl_runs.trainer("isentrope", tmp_path, methods=given, **fields)


def test_the_page_says_what_can_be_had():
    page = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text()
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (?:advantage|weight|controller) \| (.*?) \| (.*?) \|", page, re.MULTILINE)}
    for kind in (*ESTIMATORS, *WEIGHTS, *CONTROLLERS):
        assert rows[kind][0].startswith("yes"), kind
    assert not rows["remax"][0].startswith("yes") and set(rows) >= {"remax", "optimal_token_baseline"} <= set(_REFUSED)
