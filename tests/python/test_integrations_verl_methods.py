"""Methods in verl 0.9.1: estimators of advantages through its driver's compute_advantage, weights in updates of its actor on the CPU.

Skipped where there is no verl; scripts/integrations.sh verl installs one into an environment of its own and runs this.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

pytest.importorskip("verl", reason="there is no verl; scripts/integrations.sh verl runs this with one")

import transformers  # noqa: E402
import verl_batch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from test_integrations_verl import B, T, batch, config, model, run, same, update  # noqa: E402, F401
from verl import DataProto  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.ray_trainer import compute_advantage  # noqa: E402

from isentrope import methods  # noqa: E402
from isentrope.integrations import methods as shared  # noqa: E402
from isentrope.integrations import verl as integration  # noqa: E402
from isentrope.integrations.verl import losses  # noqa: E402
from isentrope.integrations.verl.advantages import OF_ITS_NAME  # noqa: E402

UIDS = ["b", "a", "b", "a", "b", "c"]
ORDER, GROUP = torch.tensor([0, 2, 4, 1, 3, 5]), torch.tensor([0, 0, 0, 1, 1, 2])


def step(**tensors):
    """What verl's driver holds when it asks for advantages: the reward stands on a completion's last token."""
    draw = torch.Generator().manual_seed(5)
    mask = torch.arange(T) < torch.tensor([31, 4, 17, 1, 9, 11])[:, None]
    rewards = torch.zeros(B, T)
    rewards[torch.arange(B), mask.sum(1) - 1] = torch.rand(B, generator=draw)
    held = {"token_level_rewards": rewards, "response_mask": mask.long(), "old_log_probs": -torch.rand(B, T, generator=draw), **tensors}
    extra = {"uid": numpy.array(UIDS, dtype=object), "right": rewards.sum(1).numpy().astype(object), "brief": torch.rand(B, generator=draw).numpy().astype(object)}
    return DataProto.from_dict(tensors=held, non_tensors=extra)


def algorithm(**options):
    """verl's own configuration of its algorithm, as its trainer hands it over, with ours in it."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        whole = compose("ppo_trainer", overrides=[f"+algorithm.isentrope.{key}={value}" for key, value in options.items()])
    return whole.algorithm


def advantages(name, data, **options):
    told = compute_advantage(data, name, config=algorithm(**options)).batch
    return told["advantages"], told["returns"]


OF_REWARDS = {"grpo": {}, "dr_grpo": {}, "rloo": {}, "opo": {}, "reinforce_plus_plus_baseline": {}, "reinforce_plus_plus": {}, "pass_at_k": {"k": 1},
              "maxrl": {}, "quantile": {"quantile": 0.7}}  # fmt: skip


@pytest.mark.parametrize("name", OF_REWARDS)
def test_estimators_are_our_functions(name):
    data = step()
    made, returns = advantages(f"isentrope.{name}", data, **OF_REWARDS[name])
    mask = data.batch["response_mask"]
    given = {"reward": data.batch["token_level_rewards"].double().sum(1)[ORDER], "group": GROUP, "length": mask.sum(1)[ORDER]}
    wanted = getattr(methods, name)(**{key: given[key] for key in shared.subject(name)}, **OF_REWARDS[name])
    torch.testing.assert_close(made[ORDER], (wanted[:, None] * mask[ORDER]).float(), rtol=1e-6, atol=1e-7)
    assert made.dtype == torch.float32 and torch.equal(made, returns) and made.abs().max() > 0


@pytest.mark.parametrize("name, twin", [("grpo", "grpo"), ("rloo", "rloo"), ("opo", "opo"), ("reinforce_plus_plus_baseline",) * 2,
                                        ("reinforce_plus_plus",) * 2, ("pass_at_k", "grpo_passk")])  # fmt: skip
def test_estimators_are_those_of_verl(name, twin):
    uids = numpy.array(["b", "a", "b", "a", "b", "a"], dtype=object)  # verl's of a group of one differ from each other
    data, again = step(), step()
    data.non_tensor_batch["uid"] = again.non_tensor_batch["uid"] = uids
    options = {"form": "best"} if name == "pass_at_k" else {}
    made, _ = advantages(f"isentrope.{name}", data, **options)
    theirs, _ = advantages(twin, again)
    torch.testing.assert_close(made, theirs, rtol=1e-5, atol=1e-6)


def test_options_are_read_and_checked():
    one, other = (advantages("isentrope.grpo", step(), **options)[0] for options in ({}, {"std": "batch"}))
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match=r"algorithm.isentrope\[0\]: grpo has no key 'stdd'; wanted one of eps, std \(std\?\)"):
        advantages("isentrope.grpo", step(), stdd="batch")
    whole = algorithm()
    whole.norm_adv_by_std_in_grpo = False
    with pytest.raises(ValueError, match="isentrope.grpo: algorithm.norm_adv_by_std_in_grpo is False, .* wanted True, or isentrope.dr_grpo"):
        compute_advantage(step(), "isentrope.grpo", config=whole)
    whole = algorithm()
    whole.gamma = 0.9
    with pytest.raises(ValueError, match="isentrope.reinforce_plus_plus: algorithm.gamma is 0.9; wanted 1"):
        compute_advantage(step(), "isentrope.reinforce_plus_plus", config=whole)


def test_what_verl_hands_to_its_own_names_alone_is_refused_by_name():
    for name, what in (("gdpo", "rewards by name"), ("remax", "reward_baselines"), ("optimal_token_baseline", "old_log_probs")):
        with pytest.raises(ValueError, match=rf"isentrope.{name}: verl hands over no {what}.*, which it does to its own name '{name}' alone; wanted algorithm.adv_estimator={name}"):
            advantages(f"isentrope.{name}", step())


@pytest.fixture
def own_names():
    from isentrope.integrations.verl import own_names

    own_names.install()
    yield own_names
    own_names.uninstall()


def test_under_verls_names_they_have_what_they_need(own_names):
    draw = torch.Generator().manual_seed(6)
    baselines = torch.tensor([{"a": 0.2, "b": 0.7, "c": 0.1}[uid] for uid in UIDS])
    sum_p2 = (2 * step().batch["old_log_probs"]).exp() + 0.2 * torch.rand(B, T, generator=draw)  # at least that of the token itself
    prompts = torch.zeros(B, 3, dtype=torch.long)
    held = {"reward_baselines": baselines, "sum_pi_squared": sum_p2, "prompts": prompts}
    held["attention_mask"] = torch.cat([torch.ones(B, 3, dtype=torch.long), step().batch["response_mask"]], 1)
    whole = algorithm()
    OmegaConf.update(whole, "gdpo_reward_keys", ["right", "brief"], force_add=True)
    OmegaConf.update(whole, "gdpo_reward_weights", [0.3, 1.0], force_add=True)
    told = {}
    for house in ("isentrope", "verl"):
        if house == "verl":
            own_names.uninstall()
        for name in ("gdpo", "remax", "optimal_token_baseline"):
            told[house, name] = compute_advantage(step(**held), name, config=whole).batch["advantages"]
    data = step(**held)
    reward, mask = data.batch["token_level_rewards"].double().sum(1), data.batch["response_mask"]
    wanted = methods.remax(reward[ORDER], GROUP, torch.tensor([0.7, 0.2, 0.1]))
    torch.testing.assert_close(told["isentrope", "remax"][ORDER], (wanted[:, None] * mask[ORDER]).float(), rtol=1e-6, atol=1e-7)
    for name in ("gdpo", "remax", "optimal_token_baseline"):
        torch.testing.assert_close(told["isentrope", name], told["verl", name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_verl_finds_the_estimators_by_itself():
    script = "from verl.trainer.ppo import core_algos; print(*core_algos.ADV_ESTIMATOR_REGISTRY)"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "VERL_USE_EXTERNAL_PLUGINS": "auto"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {name for name in done.stdout.split() if name.startswith("isentrope")} == set(integration.ESTIMATORS)
    own = subprocess.run([sys.executable, "-c", "from verl.trainer.ppo import core_algos; print(core_algos.get_adv_estimator_fn('remax'))"],
                         env={**os.environ, "VERL_USE_EXTERNAL_MODULES": "isentrope.integrations.verl.own_names"}, capture_output=True, text=True)  # fmt: skip
    assert "estimate" in own.stdout, own.stderr


# ---- weights ---------------------------------------------------------------------------------------------------------

WEIGHTS = [{"kind": "top_entropy", "fraction": 0.4}, {"kind": "surprisal_band", "low": 0.2, "high": 2.0}, {"kind": "steer"},
           {"kind": "stare", "target": 9.0, "up": 1.5}, {"kind": "soft_window", "window": 5}]  # fmt: skip


@pytest.fixture
def laid():
    """Entropies [B, T] where a policy loss finds them."""
    entropy = 3 * torch.rand(B, T, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    token = losses.ENTROPY.set(entropy)
    yield entropy
    losses.ENTROPY.reset(token)


def policy(weights, loss="isentrope_clip"):
    made = config(loss)
    object.__setattr__(made, "policy_loss", integration.PolicyLossConfig(loss_mode=loss, isentrope_weight=weights))
    return made


def weighted(weights, inputs, loss="isentrope_clip"):
    leaf = inputs["log_prob"].clone().requires_grad_()
    total, metrics = core_algos.get_policy_loss_fn(loss)(**{**inputs, "log_prob": leaf}, config=policy(weights, loss))
    return total.detach(), torch.autograd.grad(total, leaf)[0], metrics


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda one: one["kind"])
def test_a_weight_multiplies_the_policy_term(weight, laid):
    inputs = batch()
    x = {"mask": inputs["response_mask"], "logprob": inputs["log_prob"], "old_logprob": inputs["old_log_prob"], "entropy": laid, "advantage": inputs["advantages"]}
    options = {key: value for key, value in weight.items() if key != "kind"}
    factor = getattr(methods, weight["kind"])(**{name: x[name] for name in shared.subject(weight["kind"])}, **options)
    ours = weighted([weight], inputs)
    wanted = run("isentrope_clip", {**inputs, "advantages": inputs["advantages"] * factor})
    torch.testing.assert_close(ours[0], wanted[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(ours[1], wanted[1], rtol=1e-13, atol=1e-13)
    assert not torch.equal(ours[1], run("isentrope_clip", inputs)[1])
    assert ours[2]["isentrope/weight/mean"] == pytest.approx(factor[inputs["response_mask"]].mean().item())


def test_without_weights_nothing_changes(laid):
    for name in ("isentrope_clip", "isentrope.clip"):
        one, other = weighted([], batch(), name), run("isentrope_clip", batch())
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2] == other[2]


def test_weights_that_cannot_be_are_named():
    for weights, message in (
        (["attention_entropy"], "attention_entropy cannot be had here: verl hands over no attention"),
        (["top_entrpy"], r"policy_loss.isentrope_weight\[0\]: kind is 'top_entrpy'; wanted one of .* \(top_entropy\?\)"),
    ):
        with pytest.raises(ValueError, match=message):
            policy(weights)
    with pytest.raises(ValueError, match="policy_loss.loss_mode is 'vanilla', which takes no isentrope_weight"):
        policy(["top_entropy"], "vanilla")
    with pytest.raises(ValueError, match="isentrope_clip: policy_loss.isentrope_weight has top_entropy, and verl hands over no entropies; wanted actor_rollout_ref.model.external_lib"):
        weighted(["top_entropy"], batch())


def test_the_actor_of_verl_learns_with_weights_as_on_weighted_advantages(model):  # noqa: F811
    """The factor made by hand, of entropies that transformers computes, for each micro-batch of two."""
    inputs = verl_batch.tensors(37)
    with torch.no_grad():
        logits = transformers.LlamaForCausalLM.from_pretrained(model)(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], position_ids=inputs["position_ids"]
        ).logits / 0.9  # fmt: skip
    p = max(verl_batch.PROMPTS)
    log_p = logits[:, p - 1 : -1].log_softmax(-1)
    entropy, logprob = -(log_p.exp() * log_p).sum(-1), log_p.gather(2, inputs["responses"][..., None])[..., 0]
    mask, advantage = inputs["response_mask"], inputs["advantages"]
    factors = []
    for rows in (slice(0, 2), slice(2, 4)):
        one = methods.top_entropy(entropy[rows], mask[rows], fraction=0.5)
        two = methods.steer(logprob[rows], inputs["old_log_probs"][rows], entropy[rows], advantage[rows], mask[rows])
        factors.append(one * two)
    weight = [{"kind": "top_entropy", "fraction": 0.5}, {"kind": "steer"}]
    lib = "isentrope.integrations.verl.weight"
    told = update(model, {
        "weights": {"loss": "isentrope_clip", "policy_loss": {"isentrope_weight": weight}, "external_lib": lib},
        "by hand": {"loss": "isentrope_clip", "advantage_factor": torch.cat(factors).tolist()},
        "none": {"loss": "isentrope_clip"},
    })  # fmt: skip
    assert same(told["weights"], told["by hand"], steps=1)
    largest = max(x.abs().max() for x in told["none"]["gradients"][0].values())
    assert any((x - told["weights"]["gradients"][0][key]).abs().max() > 0.01 * largest for key, x in told["none"]["gradients"][0].items())
    assert told["weights"]["metrics"][0]["isentrope/weight/zero"] > 0.2


def test_the_lines_of_the_page_are_a_configuration_of_verl():
    """As docs/integrations.md shows them, through verl's own hydra configuration, to the loss and the estimator that they name."""
    from hydra import compose, initialize_config_module
    from verl.utils.config import omega_conf_to_dataclass

    page = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text()
    text = re.search(r"```sh\npython3 -m verl.trainer.main_ppo (.*?)```", page[page.index("### Methods", page.index("## verl")) :], re.DOTALL)[1]
    lines = [line for line in shlex.split(text.replace("\\\n", " ")) if line]
    assert len(lines) == 7
    with initialize_config_module("verl.trainer.config", version_base=None):
        whole = compose("ppo_trainer", overrides=[*lines, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"])
    actor = omega_conf_to_dataclass(whole.actor_rollout_ref.actor)
    assert actor.policy_loss.isentrope_weight == [{"kind": "top_entropy", "fraction": 0.2}] and actor.calculate_entropy
    importlib.import_module(whole.actor_rollout_ref.model.external_lib).uninstall()
    token = losses.ENTROPY.set(torch.rand(B, T, dtype=torch.float64))
    loss, told = core_algos.get_policy_loss_fn(actor.policy_loss.loss_mode)(**batch(), config=actor)
    losses.ENTROPY.reset(token)
    assert torch.isfinite(loss) and told["isentrope/weight/mean"] == pytest.approx(0.2, abs=0.02)
    data = step()
    data.non_tensor_batch["uid"] = numpy.array(["a"] * B, dtype=object)
    assert compute_advantage(data, whole.algorithm.adv_estimator, config=whole.algorithm).batch["advantages"].abs().max() > 0


def test_the_page_says_what_can_be_had():
    page = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:advantage|weight|controller) \| .*? \| (.*?) \|", page, re.MULTILINE))
    for kind in shared.ADVANTAGES:
        assert (f"`adv_estimator=isentrope.{kind}`" in rows[kind]) != (kind in OF_ITS_NAME), kind
    for kind in shared.WEIGHTS:
        assert (rows[kind] == "`isentrope_weight`") != (kind in losses._NO_WEIGHT), kind
