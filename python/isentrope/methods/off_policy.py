"""How far the policy that drew is from the one that is trained, and the factor [B, T] that corrects it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call


class CorrectionOutput(NamedTuple):
    """What correction returns."""

    factor: Tensor  # [B, T] of rescored's dtype, to multiply the policy term with
    removed: Tensor | None  # [B, T] bool, tokens that leave the mask and so the denominators; None but with mode="reject"


def correction(
    rescored: Tensor,
    old_logprob: Tensor,
    mask: Tensor,
    *,
    advantage: Tensor | None = None,
    logprob: Tensor | None = None,
    level: str = "token",
    mode: str = "truncate",
    low: float = 0.0,
    high: float = 2.0,
    delta: float | None = None,
) -> CorrectionOutput:
    """Importance weights for rollouts whose policy is not the one that is trained. With d = rescored - old_logprob (0 where that is NaN),
    w = exp d of a token, exp Σ d of a sequence or exp mean d of it (geometric), the exponent held within ±20:

        truncate:  min(max(w, low), high)
        mask:      w where low ≤ w ≤ high, else 0 (IcePop)
        reject:    1 where low ≤ w ≤ high, else 0 and removed

    With delta, rows whose mean advantage is below 0 and whose mean of old_logprob - logprob is above delta have factor 0. What is masked
    keeps its place in denominators, as in TRL and verl; what is rejected does not, as in verl.

    Args:
        rescored: [B, T] log-probs of the policy that is trained, before the update; float32 or float64.
        old_logprob: [B, T] of the policy that drew.
        mask: [B, T] bool or number.
        advantage: [B, T], for delta.
        logprob: [B, T] of the policy that learns, for delta; rescored where there is none.
        level: "token", "sequence" or "geometric".
        mode: "truncate", "mask" or "reject".
        low: at least 0, which is no bound.
        high: at least low, and above 0; may be infinite.
        delta: at least 0, nats; None: rows are not looked at.

    Returns:
        factor [B, T], and removed [B, T], or None where nothing is.

    Source: verl 0.9.1 rollout_correction (rollout_is, rollout_rs with k1), TRL 1.16.0 vllm_importance_sampling_mode and
    off_policy_mask_threshold, IcePop (arXiv 2510.18855), DeepSeek-V3.2 (arXiv 2512.02556); csrc/methods/correction.h.
    """
    options = {"advantage": advantage, "logprob": logprob, "level": level, "mode": mode, "low": low, "high": high, "delta": delta}
    factor, removed = call(torch.ops.isentrope.method_correction, rescored, old_logprob, mask, **options)
    return CorrectionOutput(factor, removed if mode == "reject" else None)


class MismatchOutput(NamedTuple):
    """What mismatch returns: numbers, each [] of float64."""

    max: Tensor  # of abs d
    mean: Tensor  # of abs d
    kl: Tensor  # mean of -d
    k3: Tensor  # mean of exp d - 1 - d
    chi2: Tensor  # mean of w² - 1, w = exp d
    chi2_sequence: Tensor  # mean over rows of (Π w)² - 1
    weight: Tensor  # mean of v = min(w, high)
    effective: Tensor  # (Σ v)² / (n Σ v²), the effective share of the sample


def mismatch(logprob: Tensor, old_logprob: Tensor, mask: Tensor, *, high: float | None = None) -> MismatchOutput:
    """How far the policy that is trained is from the one that drew, over the tokens that count, d = logprob - old_logprob (0 where that is
    NaN), exponents held within ±20. All 0 where no token counts, but effective, which is 1 then.

    Args:
        logprob: [B, T] of the policy that is trained; float32 or float64.
        old_logprob: [B, T] of the policy that drew.
        mask: [B, T] bool or number.
        high: the most a weight counts in weight and effective; None: no bound.

    Returns:
        max, mean, kl, k3, chi2, chi2_sequence, weight, effective.

    Source: verl 0.9.1 verl/trainer/ppo/rollout_corr_helper.py (kl, k3_kl, chi2_token, chi2_seq, rollout_is_mean,
    rollout_is_eff_sample_size), TRL 1.16.0 sampling/sampling_logp_difference; csrc/methods/correction.h.
    """
    return MismatchOutput(*call(torch.ops.isentrope.method_mismatch, logprob, old_logprob, mask, high=high).unbind())
