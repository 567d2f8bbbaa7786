"""isentrope.integrations.trl in TRL 1.16.0: losses, gradients and metrics against TRL's own, and real training steps on the CPU.

Skipped where there is no TRL; scripts/integrations.sh trl installs one into an environment of its own and runs this.
"""

import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

trl = pytest.importorskip("trl", reason="there is no trl; scripts/integrations.sh trl runs this with one")

import trl_runs  # noqa: E402
from trl.trainer.utils import add_fused_lm_head  # noqa: E402

from isentrope import reference  # noqa: E402
from isentrope.integrations import trl as integration  # noqa: E402
from isentrope.integrations.trl.head import add_head  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*deprecated")
B, P, T = 4, 5, 9


def inputs(trainer, old=True, tool_mask=False, sampler=True):
    """What TRL hands to its loss: a micro-batch of four completions, one of them without a token."""
    draw = torch.Generator().manual_seed(2)
    prompts = torch.arange(P) >= P - torch.tensor([5, 3, 1, 4])[:, None]
    completions = torch.arange(T) < torch.tensor([9, 4, 1, 6])[:, None]
    tokens = torch.randint(2, len(trl_runs.LETTERS) + 2, (B, P + T), generator=draw)
    made = {
        "prompt_ids": tokens[:, :P] * prompts, "prompt_mask": prompts.long(), "completion_ids": tokens[:, P:] * completions,
        "completion_mask": completions.long(), "advantages": torch.randn(B, generator=draw), "num_items_in_batch": torch.tensor(37),
    }  # fmt: skip
    if tool_mask:
        made["tool_mask"] = (torch.rand(B, T, generator=draw) < 0.7).long()
    with torch.no_grad():
        now = trainer._get_per_token_logps_and_entropies(
            trainer.model, torch.cat([made["prompt_ids"], made["completion_ids"]], 1), torch.cat([made["prompt_mask"], made["completion_mask"]], 1), T
        )[0]
    if old:
        made["old_per_token_logps"] = now + 0.3 * torch.randn(B, T, generator=draw)
    made["ref_per_token_logps"] = now + 0.2 * torch.randn(B, T, generator=draw)
    if sampler:
        made["importance_sampling_ratio"] = 2 * torch.rand(B, T, generator=draw)
    return made


def step(house, folder, batch=None, **options):
    """loss, gradients by name and metrics of one micro-batch of an accumulation of two"""
    vllm = options.pop("vllm", False)
    trainer = trl_runs.trainer(house, folder, **options)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer.use_vllm = vllm
    batch = batch or {}
    loss = trainer._compute_loss(trainer.model, inputs(trainer, **batch))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters()}, dict(trainer._metrics["train"]), trainer


# Fields, and what inputs() makes.
CASES = {
    "grpo": ({"loss_type": "grpo"}, {}),
    "bnpo": ({"loss_type": "bnpo"}, {}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {}),
    "dapo": ({"loss_type": "dapo"}, {}),
    "dapo, generated for more than a step": ({"loss_type": "dapo", "steps_per_generation": 4}, {}),
    "higher": ({"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.28}, {}),
    "on the policy": ({"loss_type": "grpo"}, {"old": False}),
    "two-sided": ({"loss_type": "bnpo", "delta": 1.3}, {}),
    "tools": ({"loss_type": "grpo"}, {"tool_mask": True}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.1}, {}),
    "sequence": ({"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02}, {}),
    "sequence, dapo": ({"loss_type": "dapo", "importance_sampling_level": "sequence", "epsilon": 0.02}, {}),
    "sequence, two-sided": ({"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "delta": 1.05}, {}),
    "luspo": ({"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.02}, {}),
    "luspo, kl": ({"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.02, "beta": 0.1, "use_bias_correction_kl": False}, {}),
    "sequence, kl": ({"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1, "use_bias_correction_kl": False}, {}),
    "kl": ({"loss_type": "dapo", "beta": 0.1}, {}),
    "kl on the policy": ({"loss_type": "grpo", "beta": 0.1}, {"old": False}),
    "kl, not weighted": ({"loss_type": "bnpo", "beta": 0.1, "use_bias_correction_kl": False}, {}),
    "high entropies": ({"loss_type": "dapo", "top_entropy_quantile": 0.4, "beta": 0.1}, {}),
    "off the policy": ({"loss_type": "grpo", "off_policy_mask_threshold": 0.02, "beta": 0.1}, {}),
    "vllm": ({"loss_type": "dapo", "beta": 0.1, "vllm": True}, {}),
    "bonus": ({"loss_type": "dr_grpo", "entropy_coef": 0.1}, {}),
    "bonus on high entropies": ({"loss_type": "dapo", "entropy_coef": 0.1, "top_entropy_quantile": 0.4}, {}),
}
OF_TRL_ALONE = {
    "sapo": ({"loss_type": "sapo"}, {}),
    "vespo": ({"loss_type": "vespo"}, {}),
    "sequence, weighted kl": ({"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1}, {}),
    "a bound inside the clip": ({"loss_type": "bnpo", "delta": 1.1}, {}),
}


@pytest.fixture(autouse=True)
def no_reference(monkeypatch):
    """TRL makes the reference of beta by loading the model's name again; the losses take what inputs() says."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", lambda name, **_: trl_runs.model())
    monkeypatch.setattr("trl.trainer.grpo_trainer.get_config_model_id", lambda config: "tiny/tiny")


@pytest.mark.parametrize("house", ["isentrope", "isentrope with trl's config"])
@pytest.mark.parametrize("name", [*CASES, *OF_TRL_ALONE])
def test_loss_gradient_and_metrics_are_those_of_trl(name, house, tmp_path):
    fields, batch = {**CASES, **OF_TRL_ALONE}[name]
    theirs = step("trl", tmp_path, batch, **fields)
    given = fields if house != "isentrope" else {**fields, "fused_head": False}  # the same log-probabilities, to the last bit
    ours = step(house, tmp_path, batch, **given)
    assert (ours[3]._rule is None) == (name in OF_TRL_ALONE)
    # Through another head, which sums in another order, logits of size 10 differ by some of float32's roundings.
    relative = 1e-5 if house == "isentrope" else 3e-5
    largest = max(gradient.abs().max() for gradient in theirs[1].values())
    assert largest > 1e-4
    assert ours[0] == pytest.approx(theirs[0], rel=relative, abs=relative)
    for key, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][key], gradient, rtol=0, atol=relative * largest, msg=lambda text: f"{key}: {text}")
    assert {key for key in ours[2] if not key.startswith("isentrope/")} == set(theirs[2])
    for key, values in theirs[2].items():
        assert ours[2][key] == pytest.approx(values, rel=relative, abs=relative, nan_ok=True), key


def test_the_importance_weighted_divergence_is_not_k3(tmp_path):
    """TRL's default weighs k3 by the ratio, and its gradient goes through both: a reference that is far away shows that k3 alone differs."""
    weighted, plain = (step("isentrope", tmp_path, loss_type="grpo", beta=1.0, use_bias_correction_kl=corrected) for corrected in (True, False))
    assert abs(weighted[0] - plain[0]) > 1e-3
    assert max((weighted[1][key] - plain[1][key]).abs().max() for key in plain[1]) > 1e-3


# ---- the losses that are ours ----------------------------------------------------------------------------------------


def test_ours_by_hand(tmp_path):
    """clip_cov, kl_cov, gpg, cispo and gspo against their formulas in plain torch, on the tokens that the trainer chose."""
    for name, fields in (
        ("clip_cov", {"cov_ratio": 1.0, "cov_lower": 0.05}), ("kl_cov", {"cov_ratio": 0.3, "kl_cov_coef": 0.5}), ("gpg", {}), ("cispo", {}),
        ("clip_higher", {}), ("gspo", {"epsilon": 0.02}), ("random_clip_cov", {"cov_ratio": 0.3, "cov_lower": -9.0}), ("random_kl_cov", {"cov_ratio": 0.3}),
    ):  # fmt: skip
        loss, gradients, metrics, trainer = step("isentrope", tmp_path, loss=name, loss_type="bnpo", **fields)
        trainer.model.zero_grad()
        batch = inputs(trainer)
        mask, old = batch["completion_mask"], batch["old_per_token_logps"]
        now, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), torch.cat([batch["prompt_mask"], mask], 1), T
        )
        advantage = batch["advantages"][:, None].expand(B, T)
        selected = trainer._select(now.detach(), old, advantage, mask, None)
        ratio, low, high = (now - old).exp(), trainer.epsilon_low, 0.28 if name == "clip_higher" else trainer.epsilon_high
        if name == "gspo":
            ratio = ((now - old) * mask).sum(1, keepdim=True).div(mask.sum(1, keepdim=True)).exp().expand(B, T)
        clipped = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))
        plain = {
            "clip_cov": lambda: clipped * ~selected, "random_clip_cov": lambda: clipped * ~selected, "gpg": lambda: -advantage * now,
            "kl_cov": lambda: -advantage * ratio + trainer._options["kl_cov_coef"] * (now - old).abs() * selected,
            "random_kl_cov": lambda: -advantage * ratio + (now - old).abs() * selected, "cispo": lambda: -ratio.clamp(0.8, 1.2).detach() * advantage * now,
        }.get(name, lambda: clipped)()  # fmt: skip
        wanted = (plain * mask).sum() / mask.sum() / 2
        wanted.backward()
        assert loss == pytest.approx(wanted.item(), rel=1e-5), name
        largest = max(p.grad.abs().max() for p in trainer.model.parameters())
        for key, parameter in trainer.model.named_parameters():
            torch.testing.assert_close(gradients[key], parameter.grad, rtol=0, atol=1e-5 * largest, msg=lambda text: f"{name} {key}: {text}")
        if selected is not None:
            assert metrics["isentrope/select/frac"] == [pytest.approx(selected.sum().item() / mask.sum().item(), abs=1e-6)] and selected.any(), name


@pytest.mark.parametrize("loss, loss_type, options", [("sapo", "grpo", {"sapo_temperature_neg": 2.0}), ("vespo", "dapo", {"vespo_k_pos": 1.0})])
def test_losses_of_trl_by_name(loss, loss_type, options, tmp_path):
    # TRL's vespo takes vLLM's weights where they are handed over, which without vLLM they are not.
    theirs, ours = (step(house, tmp_path, {"sampler": False}, **made, **options) for house, made in
                    (("trl", {"loss_type": loss}), ("isentrope", {"loss": loss, "loss_type": loss_type, "fused_head": False})))  # fmt: skip
    largest = max(gradient.abs().max() for gradient in theirs[1].values())
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-5) and ours[3]._rule is not None
    for key, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][key], gradient, rtol=0, atol=1e-5 * largest, msg=lambda text: f"{key}: {text}")


@pytest.mark.parametrize(
    "loss, loss_type, fields, options",
    [
        ("geo_mean", "grpo", {"epsilon": 0.2, "epsilon_high": 0.4}, {"clip_low": 0.2, "clip_high": 0.4}), ("luspo", "luspo", {"epsilon": 0.02}, {"clip_low": 0.02}),
        ("reinforce", "bnpo", {"delta": 1.2}, {"delta": 1.2}), ("dppo_tv", "bnpo", {"epsilon": 0.05}, {"clip_low": 0.05}),
        ("dppo_kl", "bnpo", {"epsilon": 0.01, "delta": 1.2}, {"clip_low": 0.01, "delta": 1.2}), ("dro", "bnpo", {"dro_beta": 0.5}, {"dro_beta": 0.5}),
        ("ce_gppo", "bnpo", {"gppo_beta1": 0.3, "delta": 1.3}, {"gppo_beta1": 0.3, "delta": 1.3}),
    ],
)  # fmt: skip
def test_further_losses_have_their_coefficients(loss, loss_type, fields, options, tmp_path):
    value, _, metrics, trainer = step("isentrope", tmp_path, loss=loss, loss_type=loss_type, **fields)
    batch = inputs(trainer)
    mask = batch["completion_mask"] > 0
    with torch.no_grad():
        now = trainer._get_per_token_logps_and_entropies(
            trainer.model, torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1), T
        )[0]
        advantage = batch["advantages"][:, None].expand(B, T)
        tokens = reference.grpo_token_loss(now, batch["old_per_token_logps"], advantage, mask, mode=loss, **options)
    sums = {"grpo": (tokens.sum(1) / mask.sum(1).clamp(min=1)).mean(), "luspo": tokens.sum(1).mean()}.get(loss_type, tokens.sum() / mask.sum())
    assert value == pytest.approx(sums.item() / 2, rel=1e-5)
    assert ("clip_ratio/region_mean" in metrics) == (loss in ("geo_mean", "luspo", "ce_gppo"))


def test_choices_differ_by_step_and_accumulation_step_and_come_again(tmp_path):
    trainer = trl_runs.trainer("isentrope", tmp_path, loss="random_kl_cov", cov_ratio=0.3)
    now = torch.randn(32, 50, generator=torch.Generator().manual_seed(0))
    drawn = {}
    for step, micro, again in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 2, 1)):  # the third micro-batch of a resumed run is step 1's first
        trainer.state.global_step, trainer._step = step, micro
        drawn[step, micro, again] = trainer._select(now, now, now, torch.ones_like(now), None)
    assert torch.equal(drawn[0, 0, 0], drawn[0, 0, 1]) and torch.equal(drawn[0, 0, 0], drawn[0, 2, 1])
    for other in ((0, 1, 0), (1, 0, 0)):
        assert drawn[other].sum() == drawn[0, 0, 0].sum() and not torch.equal(drawn[other], drawn[0, 0, 0])


def test_tokens_that_trl_drops_are_not_chosen(tmp_path):
    *_, trainer = step("isentrope", tmp_path, loss="kl_cov", cov_ratio=1.0)
    ones, factor = torch.ones(2, 3), torch.tensor([[1.0, 0, 2], [0, 0, 0]])
    now = torch.arange(6.0).view(2, 3)
    assert torch.equal(trainer._select(now, now, now, ones, factor), factor != 0)


# ---- the head --------------------------------------------------------------------------------------------------------

HEADS = {
    "llama": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "softcap": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": None, "query_pre_attn_scalar": 8}),
    "bias": ("Phi", {}),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_as_near_to_double_as_that_of_trl(name, within_twice):
    kind, options = HEADS[name]
    tokens = torch.randint(2, 30, (3, 11), generator=torch.Generator().manual_seed(3))
    labels = tokens.where(torch.arange(11) >= torch.tensor([2, 5, 9])[:, None], -100)
    told = []
    for house, dtype in (("trl", torch.float32), ("isentrope", torch.float32), ("isentrope", torch.float64)):
        model = trl_runs.model(kind, **options).to(dtype)
        add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
        if house == "isentrope":
            assert add_head(model, 0.7, False) is None
        out = model(input_ids=tokens, labels=labels, fused_lm_head=True)
        (out.log_probs.sum() - 0.3 * out.entropy.square().sum()).backward()
        head = model.get_output_embeddings()
        told.append((out.log_probs, out.entropy, out.loss, head.weight.grad, *([head.bias.grad] if head.bias is not None else [])))
        assert torch.equal(out.label_mask, labels[:, 1:] != -100)
    for part, what in enumerate(("log_probs", "entropy", "loss", "dweight", "dbias")[: len(told[0])]):
        within_twice(what, told[1][part], told[0][part], told[2][part])


def test_a_sigma_linear_head_is_taken_with_its_scale():
    from isentrope.nn import SigmaLinear, convert_to_sigma

    model = convert_to_sigma(trl_runs.model())
    assert isinstance(model.get_output_embeddings(), SigmaLinear)
    with torch.no_grad():
        model.get_output_embeddings().gamma.mul_(0.5)
    add_fused_lm_head(model)
    assert add_head(model, 1.0, False) is None
    tokens = torch.randint(2, 30, (2, 7))
    logits = model(input_ids=tokens).logits[:, :-1].log_softmax(-1)
    out = model(input_ids=tokens, labels=tokens, fused_lm_head=True)
    torch.testing.assert_close(out.log_probs, logits.gather(2, tokens[:, 1:, None])[..., 0], rtol=1e-5, atol=1e-5)


def test_other_calls_go_to_the_models_own_forward():
    model, plain = trl_runs.model(), trl_runs.model()
    add_fused_lm_head(model)
    add_head(model, 1.0, False)
    tokens = torch.randint(2, 30, (2, 7))
    assert torch.equal(model(input_ids=tokens, labels=tokens).loss, plain(input_ids=tokens, labels=tokens).loss)
    assert torch.equal(model.generate(tokens, max_new_tokens=3, do_sample=False), plain.generate(tokens, max_new_tokens=3, do_sample=False))


def test_no_logits_exist(tmp_path):
    """Of the head's output size nothing is made in a loss, forward or backward."""
    trainer = trl_runs.trainer("isentrope", tmp_path, policy=trl_runs.model(vocab_size=4000))
    batch = inputs(trainer)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor) and x.dim() and x.shape[-1] == 4000:
                    largest = max(largest, x.numel())
            return out

    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    with Watch():
        trainer._compute_loss(trainer.model, batch).backward()
    assert largest == 0


@pytest.mark.parametrize("kind, options, reason", [
    ("Granite", {"logits_scaling": 4.0}, "its configuration has logits_scaling 4.0; wanted no factor of the logits"),
])  # fmt: skip
def test_a_head_that_is_not_plain_stays_trls(kind, options, reason, tmp_path):
    with pytest.warns(UserWarning, match=f"keeps TRL's fused head, since {reason}"):
        trainer = trl_runs.trainer("isentrope", tmp_path, policy=trl_runs.model(kind, **options))
    assert trainer.head_refusal == reason
    trainer.train()


# ---- training --------------------------------------------------------------------------------------------------------


def trained(house, folder, **options):
    made = trl_runs.trainer(house, folder, **options)
    before = {key: x.clone() for key, x in made.model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.train()
    assert all(torch.isfinite(x).all() for x in made.model.state_dict().values())
    assert any(not torch.equal(x, before[key]) for key, x in made.model.state_dict().items())
    return made


@pytest.mark.parametrize("options", [
    {}, {"loss_type": "grpo", "beta": 0.05, "num_iterations": 2}, {"loss_type": "bnpo", "steps_per_generation": 4},
    {"entropy_coef": 0.01, "use_adaptive_entropy": True, "entropy_target": 9.0, "logging_steps": 3}, {"loss_type": "dr_grpo", "gradient_checkpointing": True},
], ids=str)  # fmt: skip
def test_a_run_is_that_of_trl(options, tmp_path):
    """Three optimiser steps of two micro-batches: rollouts, losses, norms and what is logged."""
    theirs, ours = (trained(house, tmp_path, **options) for house in ("trl", "isentrope"))
    assert ours.head_refusal is None
    for told, wanted in zip(ours.state.log_history[:-1], theirs.state.log_history[:-1], strict=True):
        for key in set(wanted) - {"step_time"}:
            # Weights and with them all later numbers follow from gradients that differ by rounding, which Adam scales up where they are next to 0.
            assert told[key] == pytest.approx(wanted[key], rel=2e-3, abs=2e-3), (wanted["step"], key)
        assert "isentrope/ratio/mean" in told
    for key, x in theirs.model.state_dict().items():
        # Three steps of Adam with a rate of 1e-3 move a weight by 3e-3 at most.
        difference = (ours.model.state_dict()[key] - x).abs()
        assert difference.mean() < 3e-5 and difference.max() < 6e-3, key


@pytest.mark.parametrize("loss", integration.LOSSES)
def test_every_loss_trains(loss, tmp_path):
    made = trained("isentrope", tmp_path, loss=loss, loss_type="luspo" if loss == "luspo" else "dapo", cov_ratio=0.2, cov_lower=0.01, num_iterations=2, entropy_coef=0.01, beta=0.01, eval_strategy="steps",
                   eval_steps=2, per_device_eval_batch_size=4)  # fmt: skip
    told = [line for line in made.state.log_history if "grad_norm" in line]
    assert len(told) == 3 and all(line["isentrope/ratio/mean"] > 0 for line in told)
    if made._rule.loss.select:
        assert all(line["isentrope/select/frac"] > 0 for line in told)
    assert any("eval_loss" in line for line in made.state.log_history)


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    """Bit for bit, the random choices too."""
    options = dict(loss="random_kl_cov", cov_ratio=0.3, max_steps=4, save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
    whole = trained("isentrope", tmp_path, **options)
    resumed = trl_runs.trainer("isentrope", tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for key, x in whole.model.state_dict().items():
        assert torch.equal(x, resumed.model.state_dict()[key]), key


def test_bfloat16_and_a_float32_head_and_lora(tmp_path):
    from peft import LoraConfig

    for options in ({"bf16": True}, {"bf16": True, "cast_lm_head_to_fp32": True}, {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), "beta": 0.1}):
        made = trained("isentrope", tmp_path, loss="kl_cov", cov_ratio=0.2, **options)
        assert made.head_refusal is None


def test_a_learned_reward_rises(tmp_path):
    """The least a trainer has to do: the share of one letter in what it writes."""
    made = trl_runs.trainer("isentrope", tmp_path, loss="clip_cov", cov_ratio=0.02, cov_lower=0.01, max_steps=25, learning_rate=1e-2, num_iterations=1,
                            per_device_train_batch_size=16, num_generations=8)  # fmt: skip
    made.reward_funcs = [lambda completion_ids, **_: [tokens.count(5) / 8 for tokens in completion_ids]]
    made.train()
    rewards = [line["reward"] for line in made.state.log_history if "reward" in line]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5]) + 0.5, rewards


def test_two_processes(tmp_path):
    """DDP by torchrun: the run is TRL's own on two processes, and selection is logged over both."""
    told = {}
    for house, options in (("trl", {}), ("isentrope", {})):
        told[house] = processes(tmp_path, house, options)
    for ours, theirs in zip(told["isentrope"]["log"][:-1], told["trl"]["log"][:-1], strict=True):
        for key in set(theirs) - {"step_time"}:
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3, abs=2e-3), key
    chosen = processes(tmp_path, "isentrope", {"loss": "kl_cov", "cov_ratio": 0.2})
    assert all(0 < line["isentrope/select/frac"] < 0.5 for line in chosen["log"][:-1])


def processes(folder, house, options):
    (folder / "options.json").write_text(json.dumps({"num_generations": 4, **options}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", Path(trl_runs.__file__), folder, house, folder / "options.json"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(folder / f"{house}.pt")


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, message", [
    ({"loss": "clip-cov"}, "loss is 'clip-cov'; wanted one of clip, clip_higher, clip_cov, .*, or None"),
    ({"loss": "kl_cov", "loss_type": "sapo"}, "loss_type is 'sapo' and loss 'kl_cov'; wanted loss_type to be one of grpo, bnpo, dr_grpo, dapo"),
    ({"loss": "kl_cov", "importance_sampling_level": "sequence"}, "importance_sampling_level is 'sequence' and loss 'kl_cov'; wanted loss 'gspo'"),
    ({"cov_ratio": 0.0}, "cov_ratio is 0; wanted above 0 and at most 1"),
    ({"cov_lower": 6.0}, "cov_lower is 6; wanted less than cov_upper, which is 5"),
    ({"cov_minimum": -1}, "cov_minimum is -1; wanted 0 or more"),
    ({"kl_cov_coef": float("nan")}, "kl_cov_coef is nan; wanted 0 or more"),
    ({"loss": "clip", "epsilon": -0.1}, "epsilon is -0.1; wanted 0 or more"),
    ({"loss": "kl_cov", "delta": 4.0}, "delta is 4 and loss 'kl_cov'; wanted loss to be one of clip, clip_higher, .*, or delta to be None"),
    ({"loss": "clip", "delta": 1.1}, "delta is 1.1; wanted above 1 \\+ epsilon_high, which is 1.2"),
])  # fmt: skip
def test_wrong_fields_are_named(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trl_runs.trainer("isentrope", tmp_path, **fields)


def test_the_bound_of_trls_cispo_is_told(tmp_path):
    """Its default bounds every weight by 0.2; TRL computes what it would."""
    with pytest.warns(UserWarning, match="epsilon_high is 0.2; TRL's loss_type 'cispo' bounds the ratio itself"):
        made = trl_runs.trainer("isentrope", tmp_path, loss_type="cispo")
    assert made._rule is None


def test_another_version_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(trl, "__version__", "1.15.0")
    with pytest.warns(UserWarning, match="trl is 1.15.0, which it is not tested with; wanted 1.16.0"):
        trl_runs.trainer("isentrope", tmp_path)


def test_the_constructor_is_that_of_trl():
    ours = inspect.signature(integration.GRPOTrainer.__init__)
    theirs = [one for name, one in ours.parameters.items() if name != "methods"]
    assert ours.replace(parameters=theirs) == inspect.signature(trl.GRPOTrainer.__init__) and ours.parameters["methods"].default == ()


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    """As docs/integrations.md shows it, but for a tiny model on the CPU and two steps."""
    monkeypatch.undo()  # of no_reference: names of models are loaded as ever
    page = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text()
    text = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    for shown, here in (
        ("Qwen/Qwen3-0.6B", str(tmp_path / "model")),
        ("max_steps=100", "max_steps=2, use_cpu=True, bf16=False, report_to='none', max_completion_length=8"),
    ):
        assert shown in text
        text = text.replace(shown, here)
    trl_runs.model().save_pretrained(tmp_path / "model")
    trl_runs.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"prompt": text, "answer": text[0]}) for text in trl_runs.PROMPTS))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    exec(compile(text, "docs/integrations.md", "exec"), names)
    assert [line["step"] for line in names["trainer"].state.log_history if "train_runtime" in line] == [2]
    for row in re.findall(r"^\| (`.*?) \| (.*?) \|", page, re.MULTILINE):  # the table of fields has their defaults
        for name, default in zip(re.findall(r"`(\w+)`", row[0]), row[1].split(", "), strict=False):
            if name in integration.GRPOConfig.__dataclass_fields__:
                value = integration.GRPOConfig.__dataclass_fields__[name].default
                assert str(value) == default or value == float(default), name


def test_fields_are_arguments_of_a_command_line(tmp_path):
    parser = trl.TrlParser((integration.GRPOConfig,))
    (args,) = parser.parse_args_and_config(["--output_dir", str(tmp_path), "--use_cpu", "--loss", "clip_cov", "--cov_ratio", "0.01"])
    assert (args.loss, args.cov_ratio, args.cov_upper) == ("clip_cov", 0.01, 5.0)
