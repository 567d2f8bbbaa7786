"""isentrope.integrations.verl in verl 0.9.1: the losses against verl's own, and updates of verl's own actor (FSDP2, on the CPU).

Skipped where there is no verl; scripts/integrations.sh verl installs one into an environment of its own and runs this.
Not run here, for want of a GPU: rollouts by vLLM or SGLang, Megatron, and FSDP of the first version, which takes no CPU.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl", reason="there is no verl; scripts/integrations.sh verl runs this with one")

import transformers  # noqa: E402
import verl.utils.torch_functional as torch_functional  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.utils.experimental import torch_functional as fused  # noqa: E402
from verl.workers.config import FSDPActorConfig, PolicyLossConfig  # noqa: E402

import isentrope  # noqa: E402
from isentrope.integrations import verl as integration  # noqa: E402
from isentrope.integrations.verl import losses  # noqa: E402

ACTOR = Path(__file__).with_name("verl_actor.py")
AGGREGATES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
TWINS = {name: loss.twin for name, loss in integration.LOSSES.items() if loss.twin}
# With all tokens of the band chosen verl's choice is not random, and has to be ours.
ALL_OF_THE_BAND = {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1, "clip_cov_ub": 5.0, "kl_cov_ratio": 0.2, "dro_beta": 0.3}
B, T = 6, 31


def config(loss="isentrope_clip", info=None, policy_loss=None, **fields):
    made = FSDPActorConfig(rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=PolicyLossConfig(loss_mode=loss, **(policy_loss or {})), **fields)
    made.global_batch_info.update(info or {})
    return made


def batch(dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    old = -3 * torch.rand(B, T, generator=draw, dtype=torch.float64)
    new = old + 0.3 * torch.randn(B, T, generator=draw, dtype=torch.float64)
    advantage = torch.randn(B, T, generator=draw, dtype=torch.float64)
    mask = torch.arange(T) < torch.tensor([31, 4, 17, 1, 0, 11])[:, None]
    return {"old_log_prob": old.to(dtype), "log_prob": new.to(dtype), "advantages": advantage.to(dtype), "response_mask": mask}


def run(name, inputs, aggregate="token-mean", weights=None, **fields):
    """loss, gradient, metrics of a name of verl's registry"""
    leaf = inputs["log_prob"].clone().requires_grad_()
    function = core_algos.get_policy_loss_fn(name)
    loss, metrics = function(**{**inputs, "log_prob": leaf}, loss_agg_mode=aggregate, config=config(name, **fields), rollout_is_weights=weights)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0], metrics


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("name", TWINS)
def test_each_loss_is_that_of_verl(name, aggregate):
    draw = torch.Generator().manual_seed(2)
    for info, weights in (
        ({}, None),
        ({"dp_size": 2, "batch_num_tokens": 91, "global_batch_size": 12, "loss_scale_factor": 40}, torch.rand(B, T, generator=draw, dtype=torch.float64)),
        ({}, torch.rand(B, 1, generator=draw, dtype=torch.float64)),
    ):
        given = dict(aggregate=aggregate, info=info, weights=weights, policy_loss=ALL_OF_THE_BAND, clip_ratio_low=0.1, clip_ratio_high=0.28)
        ours, theirs = run(name, batch(), **given), run(TWINS[name], batch(), **given)
        # Sums of at most 186 terms of size 1 in double.
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-13, atol=1e-13)
        assert ours[1].abs().max() > 0


def test_geo_mean_is_that_of_verl_where_a_sequence_has_one_advantage():
    """verl takes the mean of the advantages, and counts sequences without a token; ours has each token's own."""
    inputs = batch()
    inputs["advantages"] = inputs["advantages"][:, :1].expand(B, T)
    inputs = {name: x[[0, 1, 2, 3, 5]] for name, x in inputs.items()}
    ours, theirs = (run(name, inputs, clip_ratio_low=0.2, clip_ratio_high=0.4) for name in ("isentrope_geo_mean", "geo_mean"))
    for a, b in zip(ours[:2], theirs[:2], strict=True):  # verl adds 1e-8 to every length
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_the_losses_that_verl_lacks():
    inputs = batch()
    arguments = [inputs[name] for name in ("log_prob", "old_log_prob", "advantages", "response_mask")]
    for name, aggregate, options in (
        ("luspo", "seq-mean-token-sum", {"clip_low": 0.1, "clip_high": 0.28}), ("vespo", "token-mean", {}), ("reinforce", "token-mean", {}),
        ("ce_gppo", "token-mean", {"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 1.6}),
    ):  # fmt: skip
        ours = run(f"isentrope_{name}", inputs, clip_ratio_low=0.1, clip_ratio_high=0.28, clip_ratio_c=1.6)
        leaf = arguments[0].clone().requires_grad_()
        loss = isentrope.grpo_loss(leaf, *arguments[1:], mode=name, aggregate=aggregate, **options).loss
        torch.testing.assert_close(ours[0], loss.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(ours[1], torch.autograd.grad(loss, leaf)[0], rtol=1e-12, atol=1e-13)


def test_dro_needs_a_beta():
    with pytest.raises(ValueError, match="isentrope_dro: actor.policy_loss.dro_beta is nan; wanted above 0"):
        run("isentrope_dro", batch())


@pytest.mark.parametrize("name", TWINS)
def test_float32_is_as_near_to_double_as_verl(name, within_twice):
    exact, plain, ours = (run(*what, policy_loss=ALL_OF_THE_BAND) for what in (
        (TWINS[name], batch()), (TWINS[name], batch(torch.float32)), (name, batch(torch.float32))))  # fmt: skip
    within_twice("loss", ours[0], plain[0], exact[0])
    within_twice("gradient", ours[1], plain[1], exact[1])


def test_metrics_mean_what_they_say():
    inputs = batch()
    _, _, ours = run("isentrope_clip", inputs, clip_ratio_c=1.4)
    _, _, theirs = run("vanilla", inputs, clip_ratio_c=1.4)
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-6), key
    assert theirs["actor/pg_clipfrac_lower"] > 0
    _, _, told = run("isentrope_clip_cov", inputs, policy_loss=ALL_OF_THE_BAND)
    _, _, theirs = run("clip_cov", inputs, policy_loss=ALL_OF_THE_BAND)
    assert told["isentrope/select/frac"] == pytest.approx(theirs["actor/pg_clipfrac"], abs=1e-6) and theirs["actor/pg_clipfrac"] > 0
    assert "isentrope/select/frac" not in ours


def test_choices_follow_torchs_seed_and_controls_choose_as_many():
    inputs, given = batch(), {"policy_loss": {"clip_cov_ratio": 0.05, "clip_cov_lb": 0.0, "clip_cov_ub": 9.0, "kl_cov_ratio": 0.1}}
    for name in ("isentrope_clip_cov", "isentrope_random_clip_cov", "isentrope_random_kl_cov"):
        drawn = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            drawn.append(run(name, inputs, **given)[1])
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2]), name
    state = torch.get_rng_state()
    run("isentrope_kl_cov", inputs, **given)
    assert torch.equal(state, torch.get_rng_state())  # which is not random
    for name in ("clip_cov", "kl_cov"):
        shares = [run(f"isentrope_{kind}{name}", inputs, **given)[2]["isentrope/select/frac"] for kind in ("", "random_")]
        assert shares[0] == shares[1] > 0


def test_what_does_not_count_is_not_used():
    inputs = batch()
    weights = torch.rand(B, T, dtype=torch.float64)
    clean = run("isentrope_kl_cov", inputs, weights=weights)
    weights = weights.where(inputs["response_mask"], torch.nan)
    for name in ("old_log_prob", "log_prob", "advantages"):
        inputs[name] = torch.where(inputs["response_mask"], inputs[name], torch.nan)
    for x, y in zip(clean[:2], run("isentrope_kl_cov", inputs, weights=weights)[:2], strict=True):
        assert torch.equal(x, y)


def test_bfloat16_is_met_by_float32():
    """Log-probabilities of bfloat16 logits are bfloat16 in verl, and those of the sampler float32: the ratio is taken in float32."""
    inputs = batch(torch.float32)
    inputs["log_prob"] = inputs["log_prob"].bfloat16()
    ours, theirs = run("isentrope_clip", inputs), run("vanilla", inputs)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
    assert ours[1].dtype == torch.bfloat16


def test_bounds_that_are_none_are_clip_ratio():
    given = {"clip_ratio": 0.05, "clip_ratio_low": None, "clip_ratio_high": None}
    assert torch.equal(run("isentrope_clip", batch(), **given)[1], run("isentrope_clip", batch(), clip_ratio_low=0.05, clip_ratio_high=0.05)[1])
    assert not torch.equal(run("isentrope_clip", batch(), **given)[1], run("isentrope_clip", batch())[1])


@pytest.mark.parametrize("name, fields, message", [
    ("isentrope_clip_cov", {"policy_loss": {"clip_cov_ratio": 0.0}}, "isentrope_clip_cov: actor.policy_loss.clip_cov_ratio is 0; wanted above 0 and at most 1"),
    ("isentrope_kl_cov", {"policy_loss": {"kl_cov_ratio": 1.5}}, "isentrope_kl_cov: actor.policy_loss.kl_cov_ratio is 1.5; wanted above 0 and at most 1"),
    ("isentrope_clip_cov", {"policy_loss": {"clip_cov_lb": 7.0}}, "clip_cov_lb is 7; wanted less than clip_cov_ub, which is 5"),
    ("isentrope_clip", {"clip_ratio_c": 1.0}, "actor.clip_ratio_c is 1; wanted above 1"),
    ("isentrope_gspo", {"clip_ratio_low": -0.1}, "isentrope_gspo: actor.clip_ratio_low is -0.1; wanted 0 or more"),
])  # fmt: skip
def test_wrong_fields_are_named(name, fields, message):
    with pytest.raises(ValueError, match=message):
        run(name, batch(), **fields)


def test_no_config_is_an_error():
    with pytest.raises(ValueError, match="isentrope_clip: config is None; wanted verl's ActorConfig"):
        core_algos.get_policy_loss_fn("isentrope_clip")(**batch())


def test_another_version_is_told_once(monkeypatch):
    monkeypatch.setattr(losses.verl, "__version__", "0.8.0")
    losses._warn_of_untested_version.cache_clear()
    with pytest.warns(UserWarning, match=r"verl is 0.8.0, .* wanted 0.9.1") as told:
        run("isentrope_clip", batch())
        run("isentrope_gpg", batch())
    assert len(told) == 1


def test_verl_finds_the_losses_by_itself():
    """By the entry point, in a process that says nothing of isentrope; and not where plugins are off."""
    script = "from verl.trainer.ppo import core_algos; print(*core_algos.POLICY_LOSS_REGISTRY)"
    both = {spelling for name in integration.LOSSES for spelling in (name, name.replace("_", ".", 1))}
    for policy, wanted in (("auto", both), ("none", set())):
        done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "VERL_USE_EXTERNAL_PLUGINS": policy}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {name for name in done.stdout.split() if name.startswith("isentrope")} == wanted


def test_the_lines_of_the_page_are_a_configuration_of_verl():
    """As docs/integrations.md shows them, through verl's own hydra configuration, to the loss that its actor would take."""
    from hydra import compose, initialize_config_module
    from verl.utils.config import omega_conf_to_dataclass

    page = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text()
    lines = re.findall(r"^ +(actor_rollout_ref\.\S+)", page[: page.index("### Methods", page.index("## verl"))], re.MULTILINE)
    assert len(lines) == 2
    with initialize_config_module("verl.trainer.config", version_base=None):
        whole = compose("ppo_trainer", overrides=[*lines, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"])
    actor = omega_conf_to_dataclass(whole.actor_rollout_ref.actor)
    importlib.import_module(whole.actor_rollout_ref.model.external_lib).uninstall()
    loss, _ = core_algos.get_policy_loss_fn(actor.policy_loss.loss_mode)(**batch(), config=actor)
    assert torch.isfinite(loss)
    for name in integration.LOSSES:
        assert f"`{name}`" in page


# ---- entropies -------------------------------------------------------------------------------------------------------


@pytest.fixture
def entropy():
    from isentrope.integrations.verl import entropy

    yield entropy
    entropy.uninstall()


def test_install_and_uninstall(entropy):
    entropy.uninstall()
    own = torch_functional.entropy_from_logits, torch_functional.entropy_from_logits_with_chunking, fused.FusedLinearForPPO
    entropy.install()
    entropy.install()
    assert torch_functional.entropy_from_logits is entropy.entropy_from_logits and fused.FusedLinearForPPO is entropy.FusedLinearForPPO
    entropy.uninstall()
    assert own == (torch_functional.entropy_from_logits, torch_functional.entropy_from_logits_with_chunking, fused.FusedLinearForPPO)


def test_a_verl_without_the_name_is_an_error_and_nothing_is_changed(entropy, monkeypatch):
    entropy.uninstall()
    own = torch_functional.entropy_from_logits
    monkeypatch.delattr(fused, "FusedLinearForPPO")
    with pytest.raises(ImportError, match=r"verl is .* and has no verl.utils.experimental.torch_functional.FusedLinearForPPO; wanted 0.9.1"):
        entropy.install()
    assert torch_functional.entropy_from_logits is own


@pytest.mark.parametrize("shape", [(97,), (33, 97), (3, 5, 97), (2, 3, 5, 97), (0, 97)])
def test_entropy_from_logits(entropy, shape, within_twice):
    entropy.uninstall()
    logits = 4 * torch.randn(shape, dtype=torch.float64)
    told = []
    for function, dtype in ((torch_functional.entropy_from_logits, torch.float64), (torch_functional.entropy_from_logits, torch.float32),
                            (entropy.entropy_from_logits, torch.float32)):  # fmt: skip
        leaf = logits.to(dtype).requires_grad_()
        value = function(leaf)
        told.append((value, torch.autograd.grad(value.sum(), leaf)[0]))
    for part in (0, 1):
        within_twice("entropy", *(told[i][part] for i in (2, 1, 0)))
    leaf = logits.float()
    assert torch.equal(entropy.entropy_from_logits_with_chunking(leaf, 3), entropy.entropy_from_logits(leaf))
    compiled = torch.compile(entropy.entropy_from_logits, dynamic=True, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(leaf), entropy.entropy_from_logits(leaf))


def test_the_fused_head(entropy, within_twice):
    entropy.uninstall()
    hidden, weight = torch.randn(2, 9, 33, dtype=torch.float64), torch.randn(61, 33, dtype=torch.float64)
    tokens = torch.randint(61, (2, 9))
    told = []
    for head, dtype in ((fused.FusedLinearForPPO(), torch.float32), (entropy.FusedLinearForPPO(), torch.float32), (entropy.FusedLinearForPPO(), torch.float64)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight)]
        # verl's sets requires_grad of a view of its input
        logprob, value = head(leaves[0] * 1, leaves[1], tokens.int(), temperature=0.7)
        told.append((logprob, value, *torch.autograd.grad(logprob.sum() - 0.3 * value.sum(), leaves)))
    for part, name in enumerate(("log_probs", "entropy", "dhidden", "dweight")):
        within_twice(name, told[1][part], told[0][part], told[2][part])
    with pytest.raises(ValueError, match=r"input_ids has shape \[2, 8\] and hidden_states \[2, 9, 33\]"):
        entropy.FusedLinearForPPO()(hidden, weight, tokens[:, 1:])


# ---- the actor -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl")
    torch.manual_seed(1)
    sizes = transformers.LlamaConfig(
        vocab_size=37, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(sizes).save_pretrained(folder)
    return folder


def update(folder, cases, ranks=1):
    (folder / "cases.json").write_text(json.dumps(cases))
    launcher = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run([*launcher, ACTOR, folder, folder / "cases.json"], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: torch.load(folder / f"{name}.pt") for name in cases}


def same(one, other, steps=2):
    """Two float32 programs of the same update: gradients to 1e-5 of the largest one, as two orders of summation differ."""
    for step in range(steps):
        for key in ("loss", "actor/pg_loss", "actor/entropy_loss", "grad_norm"):
            assert one["metrics"][step][key] == pytest.approx(other["metrics"][step][key], rel=2e-5), (step, key)
        largest = max(x.abs().max() for x in other["gradients"][step].values())
        for key, gradient in other["gradients"][step].items():
            torch.testing.assert_close(one["gradients"][step][key], gradient, rtol=0, atol=(1e-5 if step == 0 else 1e-3) * largest, msg=lambda text: f"{step} {key}: {text}")
    return True


def test_the_actor_of_verl_learns_with_each_loss_as_with_its_own(model):
    cases = {name: {"loss": name, "policy_loss": ALL_OF_THE_BAND, "entropy_coeff": 0.01} for name in [*integration.LOSSES, *set(TWINS.values())]}
    told = update(model, cases)
    begun = transformers.LlamaForCausalLM.from_pretrained(model).state_dict()
    for name, result in told.items():
        assert all(torch.isfinite(x).all() for x in result["weights"].values()) and len(result["gradients"]) == 2
        assert any(not torch.equal(x, begun[key]) for key, x in result["weights"].items()), name
    for name, twin in TWINS.items():
        assert same(told[name], told[twin]), name
    assert told["isentrope_kl_cov"]["metrics"][0]["isentrope/select/frac"] > 0


def test_two_ranks_are_one(model):
    """verl's normalisers count over ranks, and so do the losses. Only those that choose nothing: a choice is one rank's micro-batch's."""
    cases = {f"{name}-{aggregate}": {"loss": name, "aggregate": aggregate} for name in ("isentrope_clip", "isentrope_gspo") for aggregate in AGGREGATES[::3]}
    one = update(model, cases)
    two = update(model, cases, ranks=2)
    for name in cases:
        largest = max(x.abs().max() for x in one[name]["gradients"][0].values())
        for key, gradient in one[name]["gradients"][0].items():
            torch.testing.assert_close(two[name]["gradients"][0][key], gradient, rtol=0, atol=1e-5 * largest)


def test_the_actor_with_our_entropies(model):
    """external_lib alone, and with use_fused_kernels (last: verl patches the model's class for good, and its own head fails under FSDP2)."""
    ours = {"external_lib": "isentrope.integrations.verl.entropy"}
    common = {"loss": "vanilla", "entropy_coeff": 0.1}
    told = update(model, {"own": common, "ours": {**common, **ours}, "fused": {**common, **ours, "fused": True}})
    assert same(told["ours"], told["own"]) and same(told["fused"], told["own"])
    assert isentrope.token_entropy(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long)).entropy.item() > 0
