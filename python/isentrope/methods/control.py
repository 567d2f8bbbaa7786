"""What is added to the rewards of completions, and coefficients of later updates."""

from __future__ import annotations

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call


def overlong(length: Tensor, *, longest: int, len: int, penalty_factor: float = 1.0) -> Tensor:
    """min(0, -penalty_factor (n - (longest - len)) / len) of each length n: a soft penalty near the length limit.

    Args:
        length: [B] int64, tokens of each completion.
        longest: the length limit, tokens.
        len: the penalty grows from 0 over this many tokens before the limit; 1 to longest.
        penalty_factor: penalty of a completion as long as the limit.

    Returns:
        [B] float64, to be added to rewards.

    Source: DAPO, arXiv 2503.14476 (soft overlong punishment); csrc/methods/overlong.h.
    """
    penalty: Tensor = call(torch.ops.isentrope.method_overlong, length, longest, len, penalty_factor)
    return penalty


def kl(logprob: Tensor, ref_logprob: Tensor, mask: Tensor, *, coef: float = 0.001, estimator: str = "k1") -> Tensor:
    """-coef Σ_t k_t of each completion: what it strays from a reference is taken from its reward.

    With Δ = logprob - ref_logprob, k is by estimator: "k1" Δ; "k2" Δ²/2; "k3" exp(-Δ) + Δ - 1 (Δ clamped to ±20, the value to 10);
    "abs" the absolute Δ.

    Args:
        logprob: [B, T] nats, of the policy that drew the tokens; float32 or float64.
        ref_logprob: [B, T], of the reference.
        mask: [B, T] bool or number.
        coef: at least 0.
        estimator: k1, k2, k3 or abs; verl's kl_penalty calls them kl, mse, low_var_kl and abs.

    Returns:
        [B] float64, to be added to rewards.

    Source: Ziegler et al., arXiv 1909.08593; verl 0.9.1, algorithm.use_kl_in_reward; csrc/methods/kl.h.
    """
    penalty: Tensor = call(torch.ops.isentrope.method_kl, logprob, ref_logprob, mask, coef=coef, estimator=estimator)
    return penalty


def adaptive_entropy(state: Tensor, entropy: float, *, target: float = 0.2, delta: float = 0.005, least: float = 0.0, most: float = 1.0) -> Tensor:
    """The coefficient of an entropy bonus after an update: + delta where its entropy was at most the target, - delta elsewhere.

    Args:
        state: [2] float64, the coefficient and the last entropy; torch.tensor([coef, nan]) before the first update.
        entropy: mean of the update's tokens, nats.
        target: nats. The bonus is in force only where the last entropy was at most that.
        delta, least, most: what the coefficient changes by, and its range.

    Returns:
        [2] float64, the new state.

    Source: Skywork-OR1, arXiv 2505.22312, as TRL 1.16's use_adaptive_entropy; csrc/methods/entropy_control.h.
    """
    new: Tensor = call(torch.ops.isentrope.method_adaptive_entropy, state, entropy, target, delta, least, most)
    return new


def adaptive_kl(coef: float, kl: float, *, target: float, horizon: float) -> float:
    """The weight of the divergence from a reference after an update: coef · (1 + clip(kl / target - 1, ±0.2) / horizon).

    Args:
        coef: the weight so far.
        kl: the update's divergence, nats a token.
        target: above 0, nats a token.
        horizon: 1 or more, in updates.

    Returns:
        The new weight.

    Source: Ziegler et al., arXiv 1909.08593; csrc/methods/kl_control.h.
    """
    new: float = call(torch.ops.isentrope.method_adaptive_kl, coef, kl, target, horizon)
    return new


def entropic(state: Tensor, entropy: float, *, target: float = 0.3, proportional: float = 1.0, integral: float = 0.01) -> Tensor:
    """A PI controller of the entropy: I += integral (H - target), a = I + proportional (H - target), both within ±1.

    Args:
        state: [2] float64, I and a; zeros before the first update.
        entropy: H, mean of the update's tokens, nats.
        target, proportional, integral: nats, and the gains.

    Returns:
        [2] float64, the new state. Advantages above 0 are multiplied with 1 + a, those below with 1 - a.

    Source: EntroPIC, arXiv 2511.15248; csrc/methods/entropy_control.h.
    """
    new: Tensor = call(torch.ops.isentrope.method_entropic, state, entropy, target, proportional, integral)
    return new
