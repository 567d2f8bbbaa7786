"""A step of TRL's GRPOTrainer, as the package is, on the batch of a step of our trainer: rewards to advantages, two optimiser steps, and
the weights behind them. TRL's completions come from its own hook, rollout_func; all else is TRL's.

Skipped where there is no TRL; scripts/integrations.sh trl runs this.
"""

import json

import pytest
import torch

trl = pytest.importorskip("trl", reason="there is no trl; scripts/integrations.sh trl runs this with one")

import datasets  # noqa: E402
import our_step  # noqa: E402
import transformers  # noqa: E402

from isentrope.integrations import trl as integration  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*deprecated", "ignore:.*experimental")

TRL, OURS = (trl.GRPOTrainer, trl.GRPOConfig), (integration.GRPOTrainer, integration.GRPOConfig)
# name: (trainer, fields of its config, methods, keys of ours)
CASES = {
    "clip": (TRL, {"loss_type": "bnpo"}, None, {}),
    "sequence means": (TRL, {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.28}, None,
                       {"objective": "{kind: grpo, clip_low: 0.1, clip_high: 0.28, aggregate: seq-mean-token-mean}"}),
    "gspo": (TRL, {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02}, None,
             {"objective": "{kind: grpo, loss: gspo, clip_low: 0.02, aggregate: seq-mean-token-mean}"}),
    "dr_grpo": (TRL, {"loss_type": "dr_grpo", "scale_rewards": "none"}, None,
                {"objective": "{kind: grpo, aggregate: seq-mean-token-sum-norm, norm_length: 8}", "advantage": "[{kind: dr_grpo}]"}),
    "two-sided": (TRL, {"loss_type": "bnpo", "delta": 1.3}, None, {"objective": "{kind: grpo, delta: 1.3}"}),
    "sapo": (TRL, {"loss_type": "sapo"}, None, {"objective": "{kind: grpo, loss: sapo, aggregate: seq-mean-token-mean}"}),
    "reference": (TRL, {"loss_type": "bnpo", "beta": 0.1}, None, {"objective": "{kind: grpo, ref_kl: k3_is, ref_kl_coef: 0.1}"}),
    "std of the batch": (TRL, {"loss_type": "bnpo", "scale_rewards": "batch"}, None, {"advantage": "[{kind: grpo, std: batch, eps: 1.0e-4}]"}),
    "our loss": (OURS, {"loss_type": "bnpo", "loss": "kl_cov", "cov_ratio": 0.2}, None, {"objective": "{kind: grpo, loss: kl_cov, cov_ratio: 0.2}"}),
    "our methods": (OURS, {"loss_type": "bnpo"}, ["rloo", {"kind": "top_entropy", "fraction": 0.3}, {"kind": "steer", "low": 0.5}],
                    {"advantage": "[{kind: rloo}]", "weight": "[{kind: top_entropy, fraction: 0.3}, {kind: steer, low: 0.5}]"}),
    "our shaping": (OURS, {"loss_type": "bnpo"},
                    [{"kind": "grpo", "eps": 1e-4}, {"kind": "empg", "marker": "a", "zeta": 0.3}, {"kind": "entropy_advantage", "alpha": 0.2}, {"kind": "perplexity", "alpha": 0.3},
                     {"kind": "position", "gamma": 0.3}, {"kind": "hicra", "grams": "GRAMS", "alpha": 0.5}, {"kind": "repo", "beta": 0.1}, {"kind": "gepo", "spread_low": -0.5}],
                    {"advantage": "[{kind: grpo, eps: 1.0e-4}, {kind: empg, marker: a, zeta: 0.3}, {kind: entropy_advantage, alpha: 0.2}, {kind: perplexity, alpha: 0.3}, "
                                  "{kind: position, gamma: 0.3}, {kind: hicra, grams: GRAMS, alpha: 0.5}, {kind: repo, beta: 0.1}, {kind: gepo, spread_low: -0.5}]"}),
    "our gtpo": (OURS, {"loss_type": "bnpo"}, [{"kind": "gtpo", "share": 0.5}], {"advantage": "[{kind: gtpo, share: 0.5}]"}),
    "TRL's estimator, shaped": (OURS, {"loss_type": "bnpo"}, [{"kind": "repo", "beta": 0.3}],
                                {"advantage": "[{kind: grpo, eps: 1.0e-4}, {kind: repo, beta: 0.3}]"}),
}  # fmt: skip


def with_grams(given, folder):
    """GRAMS is a file of a letter, which is a phrase of one word where it stands alone."""
    file = folder / "grams.json"
    file.write_text(json.dumps({"grams": [{"text": letter, "cluster": i} for i, letter in enumerate("abc.+=")]}))
    put = lambda x: x.replace("GRAMS", str(file)) if isinstance(x, str) else x  # noqa: E731
    if isinstance(given, dict):
        return {key: put(value) for key, value in given.items()}
    return given and [{key: put(value) for key, value in one.items()} if isinstance(one, dict) else one for one in given]


def taken(house, fields, methods, ours, folder):
    """Losses and norms of two optimiser steps of a GRPOTrainer on the completions of ours, and the weights behind them."""
    trainer_type, config_type = house
    batch = ours.completions

    def drawn(prompts, trainer):
        return {"prompt_ids": [x.prompt for x in batch], "completion_ids": [x.own for x in batch], "logprobs": [x.logprob for x in batch]}

    args = config_type(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
        num_generations=our_step.K, per_device_train_batch_size=len(batch), gradient_accumulation_steps=1, num_iterations=2, max_steps=2,
        max_completion_length=8, gradient_checkpointing=False, learning_rate=our_step.LR, lr_scheduler_type="constant", max_grad_norm=1.0,
        **fields,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(ours.start)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = 0
    data = datasets.Dataset.from_dict({"prompt": our_step.PROMPTS[:4]})
    trainer = trainer_type(str(ours.start), reward_funcs=lambda completion_ids, **_: [x.reward for x in batch], args=args, train_dataset=data,
                           processing_class=tokenizer, rollout_func=drawn, **({} if methods is None else {"methods": methods}))  # fmt: skip
    losses, whole = [], trainer.training_step
    trainer.training_step = lambda *given, **more: losses.append(whole(*given, **more)) or losses[-1]  # the log has four digits
    trainer.train()
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    assert len(losses) == len(norms) == 2
    return [x.item() for x in losses], norms, {name: p.detach() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_trl_is_that_of_our_trainer(name, tmp_path):
    house, fields, methods, keys = CASES[name]
    methods, keys = with_grams(methods, tmp_path), with_grams(keys, tmp_path)
    ours = our_step.step(tmp_path, **keys)
    losses, norms, weights = taken(house, fields, methods, ours, tmp_path / "trl")
    # Of two float32 programs, the second update behind weights that differ by the first one's rounding.
    assert sum(losses) / 2 == pytest.approx(ours.metrics["loss"], rel=1e-4, abs=2e-6)
    assert sum(norms) / 2 == pytest.approx(ours.metrics["grad_norm"], rel=1e-4)
    assert abs(losses[1] - losses[0]) > 1e-3, "the second update is not that of another policy"
    begun, ended = (transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (ours.start, ours.end))
    apart = sum((weights[key] - ended[key]).double().square().sum() for key in weights) ** 0.5
    moved = sum((ended[key] - begun[key]).double().square().sum() for key in weights) ** 0.5
    assert moved > 0.1 and apart < 1e-2 * moved  # Adam makes a whole step of a gradient that is rounding alone


def test_another_batch_is_seen(tmp_path):
    ours = our_step.step(tmp_path)
    other = ours._replace(completions=[*ours.completions[:-1], ours.completions[-1]._replace(reward=ours.completions[-1].reward + 0.2)])
    losses, norms, _ = taken(TRL, {"loss_type": "bnpo"}, None, other, tmp_path / "trl")
    assert abs(sum(norms) / 2 / ours.metrics["grad_norm"] - 1) > 1e-3
