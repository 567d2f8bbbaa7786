"""Policy losses of the GRPO family, and the tokens that some of them treat apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import NUMBER, call, wrong_type
from isentrope.ops.numbers import as_tensor, numbers_of


# ---- grpo_select -----------------------------------------------------------------------------------------------------


def grpo_select(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    mode: str,
    seed: int,
    cov_ratio: float = 2e-4,
    cov_lower: float = 1.0,
    cov_upper: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float | None = None,
    minimum: int = 1,
) -> Tensor:
    """The tokens that clip_cov and kl_cov treat apart from the rest, chosen by their covariance

    ``c = (advantage - mean(advantage)) * (logprob - mean(logprob))``, means over all tokens that count. Hand over a whole
    update for the global choice, a micro-batch for the local one.

    Args:
        logprob, old_logprob, advantage: [B, T]; float32, bfloat16, float16 (computed in float32) or float64. logprob is of
            the policy that learns, old_logprob of the one that sampled.
        mask: [B, T], bool or number; nonzero where the token counts. What stands elsewhere is never used.
        mode: with n = max(int(cov_ratio * tokens), minimum):
            "clip_cov": n at random among cov_lower < c < cov_upper, without those that the clip holds already;
            "kl_cov": the n largest c, compared in float32, ties to the first;
            "random_clip_cov", "random_kl_cov": as many as that mode would choose, at random among all: its control.
        seed: fixes the random choices; with it, the order of the sequences and T, the choice is reproducible on any device
            and any number of threads. A new seed each update gives independent choices.
        cov_ratio: in (0, 1].
        cov_lower, cov_upper: the band of clip_cov, both excluded.
        clip_low, clip_high: the clip that clip_cov asks; clip_high defaults to clip_low.
        minimum: tokens chosen even where the fraction makes fewer; 0 lets a small batch choose none.

    Returns:
        [B, T] bool, a constant. As many as there are where fewer than n may be chosen.

    Source: Cui et al., arXiv 2505.22617; kernels/grpo_loss.h.
    """
    selected: Tensor = call(
        torch.ops.isentrope.grpo_select,
        logprob,
        old_logprob,
        advantage,
        mask,
        mode=mode,
        seed=seed,
        minimum=minimum,
        **numbers_of(
            cov_ratio=cov_ratio, cov_lower=cov_lower, cov_upper=cov_upper, clip_low=clip_low, clip_high=clip_high
        ),
    )
    return selected


# ---- grpo_loss -------------------------------------------------------------------------------------------------------


GRPO_STATS: tuple[str, ...] = tuple(torch.ops.isentrope.grpo_stat_names())


class GrpoLossOutput(NamedTuple):
    """What grpo_loss returns; float32, or float64 for a float64 logprob, but for stats."""

    loss: Tensor  # []
    token_loss: Tensor  # [B, T], before aggregation; 0 outside the mask
    stats: Tensor  # [len(GRPO_STATS)] float32, in the order of GRPO_STATS; no gradient; [0] without statistics


def grpo_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    selected: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    ref_kl_weight: Tensor | None = None,
    entropy: Tensor | None = None,
    mode: str = "clip",
    aggregate: str = "token-mean",
    clip_low: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    kl_cov_coef: float = 1.0,
    ref_kl: str = "k3",
    ref_kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    delta: float | None = None,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
    gppo_beta1: float = 0.75,
    gppo_beta2: float = 1.0,
    dro_beta: float = 0.05,
    normalizer: Tensor | float | None = None,
    statistics: bool = True,
) -> GrpoLossOutput:
    """A policy loss of the GRPO family, to be minimised, with its statistics; nothing waits for the device.

    With d = logprob - old_logprob (clamped to ±20, no gradient beyond), r = exp(d), A = advantage, p = exp(logprob), the policy term is

    ============ ===========================================================================================
    mode         policy term of a token (clip to [1 - clip_low, 1 + clip_high]; sg: no gradient through it)
    ============ ===========================================================================================
    clip         max(-A r, -A clip(r)); with dual_clip c, or delta, at most -A c where A < 0
    clip_higher  the same; clip_high is 0.28 unless given
    clip_cov     max(-A r, -A clip(r)), and 0 on selected tokens
    kl_cov       -A r, plus kl_cov_coef abs(d) on selected tokens where abs(d) is more than rounding; no clip
    gspo         as clip with r = sg[s] exp(logprob - sg[logprob]), s = exp(mean of d over the sequence)
    luspo        as gspo; its aggregate sums over the tokens of a sequence, whose length so weighs its loss
    geo_mean     -A g exp(e - sg[e]), e = min(d, clip_high) where A has no minus sign, else max(d, -clip_low), and
                 g = exp(mean of e over the sequence): GMPO. A token whose A was multiplied by 0 has no term, and
                 its zero keeps the sign that says how its d is clipped in g
    cispo        -sg[clip(r)] A logprob
    reinforce    -sg[min(r, delta)] A logprob; delta is 2 unless given
    dppo_tv      -sg[min(r, delta)] A logprob, delta 20 unless given; and 0 where A > 0 and D > clip_high, or A ≤ 0 and
                 D < -clip_low, with D = p - p_old
    dppo_kl      the same with D = sign(p - p_old) times the divergence of the token from all others together,
                 p_old log(p_old / p) + (1 - p_old) log((1 - p_old + 1e-8) / (1 - p + 1e-8))
    sapo         -A 4/τ sigmoid(τ (r - 1)), τ = tau_pos where A > 0, else tau_neg
    vespo        -sg[φ(w)] A logprob, φ(w) = exp(λ (1 - w)) w^k, w = exp(sum of d over the sequence, within [log 1e-8, 20]);
                 (k, λ) = (vespo_k_pos, vespo_lambda_pos) where A ≥ 0, else (vespo_k_neg, vespo_lambda_neg)
    ce_gppo      as clip, but where clip has no gradient -β A clip(r) exp(logprob - sg[logprob]), β = gppo_beta1 below the
                 clip, gppo_beta2 above it
    dro          -A logprob + dro_beta/2 d²
    gpg          -A logprob
    ============ ===========================================================================================

    and ``token_loss = policy term + ref_kl_coef * ref_kl_weight * kl - entropy_coef * entropy``.

    Args:
        logprob, old_logprob, advantage: [B, T] as in grpo_select.
        mask: [B, T], bool or number; nonzero where the token counts. What stands elsewhere, NaN too, is never used.
        selected: [B, T] bool, of grpo_select; for clip_cov and kl_cov, which need it. A random selection makes them their
            own control.
        ref_logprob: [B, T] of the reference policy. With a ref_kl_coef of 0, for the statistics alone; so is entropy.
        ref_kl_weight: [B, T], a factor of ref_kl_coef at each token, 1 by default; statistics do not know of it.
        entropy: [B, T] nats.
        aggregate: "token-mean" Σ/tokens; "seq-mean-token-sum" mean over sequences of their sums; "seq-mean-token-mean" mean
            over sequences of their means (what the authors of gspo, geo_mean and sapo use); "seq-mean-token-sum-norm" mean over
            sequences of their sums over T, Σ/(sequences · T) (Dr. GRPO, as verl from 0.7.1 on and TRL's dr_grpo);
            "token-sum-norm" Σ/T (verl up to 0.7.0); "token-sum" Σ. Sequences without a token do not count. luspo is its authors' with
            "seq-mean-token-sum", and refuses the two means over tokens, under which it is gspo.
        clip_low, clip_high: ≥ 0; clip_high defaults to clip_low. Of r, but for geo_mean, whose bounds are of d (its paper: 0.4), and
            dppo, whose bounds are of D (verl's scripts: 0.15 for dppo_tv, 0.05 for dppo_kl).
        dual_clip: above 1; None for none. For clip, clip_higher and ce_gppo.
        delta: most of the ratio itself. For clip, clip_higher, gspo, luspo and ce_gppo above 1 + clip_high, None for none: TRL's
            two-sided clip, which is the dual clip for the ratio of a sequence too. For dppo and reinforce above 0.
        tau_pos, tau_neg: above 0; slopes of sapo's gate (verl: tau_pos, tau_neg; TRL: sapo_temperature_pos, sapo_temperature_neg).
        vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg: ≥ 0, as in TRL.
        gppo_beta1, gppo_beta2: ≥ 0; 0 gives the gradient of clip. The authors take (0.75, 1) and (0.5, 1).
        dro_beta: ≥ 0; 0 makes dro gpg.
        kl_cov_coef: weight of the penalty of kl_cov. It is nothing, and has no gradient, where abs(d) is at most 2⁻²⁰ (1e-6), or so
            much of the log-probability where that is beyond ±1: the difference of two roundings of one number. So the first update
            of a batch, whose policy is the one that sampled it, has no penalty; with one update a batch kl_cov is plain -A r.
        ref_kl: estimator of the divergence, with Δ = logprob - ref_logprob: "k1" Δ; "k2" Δ²/2; "k3" exp(-Δ) + Δ - 1 (Δ clamped
            to ±20, the value to 10); "k1+", "k3+" those values with the gradient of k2; "k3_is" r times k3, differentiated through r
            too, which makes the gradient r Δ: unbiased where the policy has moved from the one that sampled (DeepSeek-V3.2; TRL's
            use_bias_correction_kl).
        normalizer: one number (a tensor on the device of logprob avoids a copy) instead of the counts of this call: tokens,
            sequences (both seq-mean-token-sum and seq-mean-token-mean), sequences · T (seq-mean-token-sum-norm), T
            (token-sum-norm) or 1 (token-sum). With those of a whole optimiser step, and a constant L for T, the losses and gradients of its
            micro-batches add up to those of the whole.
        statistics: False: stats is empty, and nothing of it is computed; on the CPU a third to a half of the time.

    Returns:
        GrpoLossOutput(loss, token_loss, stats). loss and token_loss have gradients by logprob and entropy; everything else is a
        constant, second derivatives are refused. No token at all: loss, gradients and stats are 0.

    Raises:
        ValueError, TypeError: a shape, device, dtype, name or range that is not as above; the message names the argument.

    Source: kernels/grpo_loss.h, and kernels/grpo_policy.h with the paper of each mode. The gradient of gspo, luspo, geo_mean, cispo,
    reinforce, dppo, vespo and ce_gppo is not that of their value: what sg holds is a constant.
    """
    if normalizer is not None and not isinstance(normalizer, Tensor):
        if not isinstance(normalizer, NUMBER):
            raise wrong_type("grpo_loss", "normalizer", normalizer, "a number, a tensor of one, or None")
        normalizer = as_tensor(normalizer, getattr(logprob, "device", None))
    loss, token_loss, stats, _, _ = call(
        torch.ops.isentrope.grpo_loss,
        logprob,
        old_logprob,
        advantage,
        mask,
        selected=selected,
        ref_logprob=ref_logprob,
        ref_kl_weight=ref_kl_weight,
        entropy=entropy,
        normalizer=normalizer,
        mode=mode,
        aggregate=aggregate,
        ref_kl=ref_kl,
        statistics=statistics,
        **numbers_of(
            clip_low=clip_low,
            clip_high=clip_high,
            dual_clip=dual_clip,
            kl_cov_coef=kl_cov_coef,
            ref_kl_coef=ref_kl_coef,
            entropy_coef=entropy_coef,
            delta=delta,
            tau_pos=tau_pos,
            tau_neg=tau_neg,
            vespo_k_pos=vespo_k_pos,
            vespo_lambda_pos=vespo_lambda_pos,
            vespo_k_neg=vespo_k_neg,
            vespo_lambda_neg=vespo_lambda_neg,
            gppo_beta1=gppo_beta1,
            gppo_beta2=gppo_beta2,
            dro_beta=dro_beta,
        ),
    )
    return GrpoLossOutput(loss, token_loss, stats)


def grpo_combine_stats(stats: Tensor) -> Tensor:
    """stats [calls, len(GRPO_STATS)] of the micro-batches of a step → [len(GRPO_STATS)], as of one call over all of them.

    cov/max, and what depends on a selection, stay about each micro-batch's own means and choice.
    """
    combined: Tensor = call(torch.ops.isentrope.grpo_combine_stats, stats)
    return combined
