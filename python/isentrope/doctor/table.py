"""The rules, in the order in which they are told. docs/doctor.md shows this table (`python -m isentrope.doctor.rates --rules`)."""

from __future__ import annotations

from isentrope.doctor import policy, training
from isentrope.doctor.rule import EVERY, POLICY, Rule

# "Beginning", "end": means of the first and last tenth of the steps that have the key; "late": of the last quarter.
RULES: tuple[Rule, ...] = (
    Rule(
        "not finite", EVERY, ("loss",),
        "a value of any key is null",
        "lower `optimizer.lr`",
        "a value that is not finite is written as null (docs/metrics.md)",
        training.not_finite,
    ),
    Rule(
        "learning rate too high", EVERY, ("loss", "reward/mean", "grad_norm"),
        "pretrain, sft: the mean loss of the end is 10 % and 3 standard errors above its least mean of a tenth, or at some step 10 times that of the first; grpo: reward/mean is 20 % and 3 standard "
        "errors below its best; or the median of grad_norm at the end is 10 times that of the steps from 10 to 25 %",
        "lower `optimizer.lr` to 0.3 of it",
        "choices; rates are half a decade apart in docs/stability.md",
        training.rate_too_high,
    ),
    Rule(
        "idle", EVERY, ("loss", "reward/mean", "entropy/mean"),
        "pretrain, sft: the loss of the last quarter is less than 1 % below that of the second; grpo: reward/mean of the last third within 1.96 standard errors "
        "of the first, entropy/mean within 5 %, median kl/k3 below 1e-5",
        "raise `optimizer.lr` tenfold where the loss never moved, else lower it, or `model.norm: pre`",
        "a choice. The ratio of update to weight, which would tell it sooner, is not logged",
        training.idle,
    ),
    Rule(
        "gradient spikes", EVERY, ("grad_norm",),
        "grad_norm above 10 times the median of the 20 steps before it",
        "`optimizer.max_grad_norm` at the median; where it clips already, lower `optimizer.lr`",
        "SPAM (arXiv 2501.06842) counts single elements that are 50 times their mean; norms of all are steadier, and 10 is a choice",
        training.gradient_spikes,
    ),
    Rule(
        "attention collapse", EVERY, ("attention_entropy",),
        "in a layer at least a quarter of the heads have entropy / log n below 0.05, late",
        "`model.sigma_reparam.layers: all`; where it is on, lower `optimizer.lr`",
        "the trainer's alarm (csrc/train/attention_watch.h); arXiv 2303.06296",
        training.attention_collapse,
    ),
    Rule(
        "σ out of tolerance", EVERY, ("sigma",),
        "σ of a layer is 5 % off the true norm in any measurement (model.sigma_reparam.svd)",
        "raise `model.sigma_reparam.steps_max`, then lower `model.sigma_reparam.tolerance`",
        "a choice: the layer's weights are then 5 % off what γ says",
        training.sigma_error,
    ),
    Rule(
        "entropy collapse", POLICY, ("entropy/mean",),
        "entropy/mean at the end below a tenth of the beginning, or below 0.01 nats, while less than 0.95 of the task is done",
        "`objective.loss: clip_cov`, or `objective.entropy` of kind adaptive",
        "of the runs of arXiv 2505.22617 a third of the steps spends 93 % of the entropy and brings 94 % of the gain: what is left buys little. An answer of 34 "
        "tokens has 0.34 nats in all at 0.01 a token, as if there were 1.4 answers (exp 0.34)",
        policy.entropy_collapse,
    ),
    Rule(
        "entropy explosion", POLICY, ("entropy/mean",),
        "entropy/mean at the end above twice the beginning and 0.5 nats above it, and above 1.5 times a target that is set",
        "lower `objective.entropy.coef`, else `optimizer.lr`",
        "a choice: no policy of docs/methods.md ends above its beginning",
        policy.entropy_explosion,
    ),
    Rule(
        "dead groups", POLICY, ("groups/flat",),
        "groups/flat is 1 in 10 steps in a row, or 0.8 late",
        "`rollout.num_generations`, easier or harder `data`; end the phase where all is learnt",
        "10 steps: the trainer's warning (csrc/train/policy_watch.h). At 0.8 four of five rollouts teach nothing, and DAPO (arXiv 2503.14476) would draw five times as many",
        policy.dead_groups,
    ),
    Rule(
        "ratio or KL drift", POLICY, ("kl/k3",),
        "the mean of kl/k3 over a tenth of the steps is above 0.05 nats a token",
        "lower `optimizer.lr`; `objective.max_kl: 0.05`",
        "PPO's usual target is 0.01 (torchrl's KLPENPPOLoss: dtarg); five times that is a choice. Policies of docs/doctor.md that end well stay below 0.004, those that fall apart pass 0.08",
        policy.ratio_drift,
    ),
    Rule(
        "clip saturation", POLICY, ("clip/frac",),
        "clip/frac above 0.2, late; 0.5 of losses by sequence (gspo, luspo, geo_mean)",
        "lower `optimizer.lr`, or `rollout.mini_batches`",
        "a choice: a fifth of the tokens learns nothing. GSPO (arXiv 2507.18071) clips two orders of magnitude more tokens than GRPO and learns faster",
        policy.clip_saturation,
    ),
    Rule(
        "length explosion", POLICY, ("length/mean", "reward/mean"),
        "length/mean at the end above 1.5 times the beginning, and reward/mean not above its beginning by 1.96 standard errors",
        "a reward of kind `overlong`, or another `objective.aggregate`",
        "Dr. GRPO (arXiv 2503.20783): dividing by each answer's length makes wrong answers longer; 1.5 is a choice",
        policy.length_explosion,
    ),
    Rule(
        "truncation", POLICY, ("length/truncated",),
        "length/truncated above 0.1, late",
        "double `rollout.max_new_tokens`, or `rollout.mask_truncated: true`",
        "DAPO (arXiv 2503.14476): rewards of cut answers are noise; one in ten is a choice",
        policy.truncation,
    ),
    Rule(
        "reward hacking", POLICY, ("reward/mean", "eval/sampled"),
        "reward/mean (mean of a tenth) higher, by 1.96 standard errors, than at the best validation eval/sampled, which has fallen since by as many of its own",
        "weights of the parts of `reward`",
        "noise of a tenth of the steps, and the binomial error of the evaluation's prompts (docs/evaluation.md)",
        policy.reward_hacking,
    ),
    Rule(
        "rollout mismatch", POLICY, ("mismatch/k3",),
        "median mismatch/k3 above 0.01 nats a token, or median mismatch/ess below 0.9, late",
        "`rollout.dtype: model`; where it is, `weight: [{kind: correction}]`",
        "0.01: the trainer's warning, a nat over a hundred tokens (csrc/train/policy_watch.h); 0.9 is a choice",
        policy.mismatch,
    ),
    Rule(
        "evaluation too noisy", EVERY, ("eval/sampled", "eval/greedy"),
        "the last validation accuracy differs from the phase's first by less than 1.96 standard errors of the difference",
        "`evaluation.sampled_prompts` or `evaluation.prompts`, the number that the difference takes",
        "binomial error of independent prompts; evaluations share prompts and draws, so the true error is as a rule smaller (docs/evaluation.md)",
        training.evaluation_noise,
    ),
)  # fmt: skip
