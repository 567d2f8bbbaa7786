"""isentrope.integrations.verl.shaping in verl 0.9.1's driver: advantages changed token by token behind any estimator, entropies of the policy that drew,
and the weights that look at what drew.

Skipped where there is no verl; scripts/integrations.sh verl installs one into an environment of its own and runs this.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl", reason="there is no verl; scripts/integrations.sh verl runs this with one")

from omegaconf import OmegaConf  # noqa: E402
from test_integrations_verl import B, T, batch  # noqa: E402
from test_integrations_verl_methods import GROUP, ORDER, algorithm, laid, policy, step, weighted  # noqa: E402, F401
from verl.trainer.ppo import ray_trainer  # noqa: E402

from isentrope import methods  # noqa: E402
from isentrope.integrations.verl import losses, shaping  # noqa: E402

ENTROPY = 2 * torch.rand(B, T, generator=torch.Generator().manual_seed(9))


@pytest.fixture(autouse=True)
def installed():
    shaping.install()
    yield
    shaping.uninstall()


def shaped(entries, estimator="grpo", **tensors):
    """The advantages of the driver with the list, and without it."""
    made = []
    for one in (entries, None):
        config = algorithm()
        if one is not None:
            OmegaConf.update(config, shaping.KEY, one, force_add=True)
        made.append(ray_trainer.compute_advantage(step(**tensors), estimator, config=config).batch["advantages"])
    return made


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "isentrope.dr_grpo"])
def test_a_list_changes_the_advantages_of_any_estimator(estimator):
    data = step().batch
    made, plain = shaped([{"kind": "perplexity", "alpha": 0.3}, {"kind": "position", "gamma": 0.5}], estimator)
    x = [x[ORDER] for x in (plain, data["old_log_probs"], data["response_mask"])]
    wanted = methods.position(methods.perplexity(*x, GROUP, alpha=0.3), x[2], gamma=0.5)
    assert torch.equal(made[ORDER], wanted) and not torch.equal(made, plain)


def test_entropies_are_those_of_the_policy_that_drew():
    made, plain = shaped(["entropy_advantage"], old_entropys=ENTROPY)
    assert torch.equal(made, methods.entropy_advantage(plain, ENTROPY, step().batch["response_mask"])) and not torch.equal(made, plain)
    made, _ = shaped(None, "isentrope.gtpo", old_entropys=ENTROPY)
    data = step().batch
    right, mask = data["token_level_rewards"].sum(1) >= 0.5, data["response_mask"]
    assert right.any() and not right.all()
    torch.testing.assert_close(made[ORDER], methods.gtpo(ENTROPY.double()[ORDER], right[ORDER], mask[ORDER], GROUP).float())


def test_the_driver_keeps_them():
    """verl's trainer takes "entropys" out of what _compute_old_log_prob returns, and joins the rest to its batch."""
    made = SimpleNamespace(batch={"entropys": ENTROPY, "old_log_probs": -ENTROPY})
    shaping.uninstall()
    own = ray_trainer.RayPPOTrainer._compute_old_log_prob
    ray_trainer.RayPPOTrainer._compute_old_log_prob = lambda self, batch: (made, 0.5)
    try:
        shaping.install()
        told, mfu = ray_trainer.RayPPOTrainer._compute_old_log_prob(None, "batch")
        told.batch.pop("entropys")
        assert torch.equal(told.batch[shaping.OLD_ENTROPY], ENTROPY) and mfu == 0.5
    finally:
        shaping.uninstall()
        ray_trainer.RayPPOTrainer._compute_old_log_prob = own


def test_without_a_list_nothing_changes():
    made, plain = shaped([])
    assert torch.equal(made, plain)
    shaping.install()  # a second one wraps nothing twice
    shaping.uninstall()
    assert torch.equal(ray_trainer.compute_advantage(step(), "grpo", config=algorithm()).batch["advantages"], plain)
    assert ray_trainer.compute_advantage.__module__ == "verl.trainer.ppo.ray_trainer"


def test_what_cannot_be_is_named():
    for entries, message in (
        (["entropy_advantage"], "algorithm.isentrope_shaping: entropy_advantage looks at entropy, and the batch has no old_entropys; wanted rollout_correction.bypass_mode=False"),
        (["empg"], r"algorithm.isentrope_shaping\[0\]: empg cannot be had here: verl's driver has no tokenizer"),
        (["gepo"], "gepo cannot be had here: its bounds would not be in verl's checkpoints"),
        (["position", "perplexity"], "algorithm.isentrope_shaping: perplexity stands behind position; wanted the order"),
        ([{"kind": "position", "gama": 1}], r"position has no key 'gama'; wanted one of gamma"),
    ):
        with pytest.raises(ValueError, match=message):
            shaped(entries)
    with pytest.raises(ValueError, match="isentrope.gtpo: verl hands over no entropies of the policy that drew; wanted VERL_USE_EXTERNAL_MODULES=isentrope.integrations.verl.shaping"):
        shaped(None, "isentrope.gtpo")
    config = OmegaConf.create({shaping.KEY: ["repo"]})
    with pytest.raises(ValueError, match="has repo, and verl's trainer of version 1 makes one advantage a completion; wanted trainer.use_v1=False"):
        shaping.compute_advantage(None, True, step(), "grpo", config=config)


def test_it_is_imported_by_verl():
    script = "from verl.trainer.ppo import ray_trainer; print(ray_trainer.compute_advantage, ray_trainer.RayPPOTrainer._compute_old_log_prob.__module__)"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "VERL_USE_EXTERNAL_MODULES": "isentrope.integrations.verl.shaping"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "partial" in done.stdout and "isentrope.integrations.verl.shaping" in done.stdout


# ---- weights that look at what drew ----------------------------------------------------------------------------------


def test_weights_of_what_drew_multiply_the_policy_term(laid):  # noqa: F811
    inputs = batch()
    g = torch.Generator().manual_seed(2)
    drawn = {losses.OLD_ENTROPY: laid * (1 + 0.1 * torch.randn(B, T, generator=g)), losses.ROLLOUT: inputs["old_log_prob"] + 0.5 * torch.randn(B, T, generator=g)}
    token = losses.DRAWN.set(drawn)
    try:
        for weight, factor in (
            ({"kind": "entropy_ratio_band", "low": 0.95, "high": 1.1}, methods.entropy_ratio_band(laid, drawn[losses.OLD_ENTROPY], inputs["response_mask"], low=0.95, high=1.1)),
            ({"kind": "correction", "high": 1.2}, methods.correction(inputs["old_log_prob"], drawn[losses.ROLLOUT], inputs["response_mask"], high=1.2).factor),
            ({"kind": "correction", "level": "geometric", "mode": "mask", "low": 0.9, "high": 1.1, "delta": 0.01},
             methods.correction(inputs["old_log_prob"], drawn[losses.ROLLOUT], inputs["response_mask"], advantage=inputs["advantages"], logprob=inputs["log_prob"],
                                level="geometric", mode="mask", low=0.9, high=1.1, delta=0.01).factor),
        ):  # fmt: skip
            made, wanted = weighted([weight], inputs), weighted([], {**inputs, "advantages": inputs["advantages"] * factor})
            torch.testing.assert_close(made[0], wanted[0], rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(made[1], wanted[1], rtol=1e-13, atol=1e-13)
            assert not torch.equal(made[1], weighted([], inputs)[1])
    finally:
        losses.DRAWN.reset(token)


def test_without_what_drew_they_are_refused(laid):  # noqa: F811
    for kind, what, advice in (("entropy_ratio_band", "old_entropys", "VERL_USE_EXTERNAL_MODULES=isentrope.integrations.verl.shaping"), ("correction", "rollout_log_probs", "actor_rollout_ref.rollout.calculate_log_probs=True")):
        with pytest.raises(ValueError, match=f"isentrope_clip: policy_loss.isentrope_weight has {kind}, and the data have no {what}; wanted {advice}"):
            weighted([kind], batch())
    with pytest.raises(ValueError, match=r"policy_loss.isentrope_weight\[0\]: mode is 'reject', and verl counts its own tokens; wanted 'truncate' or 'mask'"):
        policy([{"kind": "correction", "mode": "reject"}])
