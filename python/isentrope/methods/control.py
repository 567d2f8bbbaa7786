"""What is added to the rewards of completions, and coefficients of later updates."""

from __future__ import annotations

from typing import NamedTuple, overload

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


def pear(
    entropy: Tensor,
    mask: Tensor,
    tag: Tensor,
    right: Tensor,
    *,
    alpha: float = 1.0,
    coef: float = 1.0,
    least: float | None = None,
) -> Tensor:
    """-coef · max(0, mean entropy before the closing tag - alpha · mean entropy behind it) of right completions, 0 of others.

    Args:
        entropy: [B, T] nats, of the policy that drew the tokens; float32 or float64.
        mask: [B, T] bool or number, the tokens of each completion.
        tag: [B, 2] integer: the first token of the closing tag, and one behind its last; -1: there is none, and all is thinking.
        right: [B] bool or number.
        alpha: weight of the answer's entropy.
        coef: at least 0, which has no effect.
        least: of a right completion's reward of 1 with what is added; at most 1. None: there is no least.

    Returns:
        [B] float64, to be added to rewards of which a right completion has 1.

    Source: PEAR, arXiv 2510.08026; csrc/methods/pear.h.
    """
    penalty: Tensor = call(torch.ops.isentrope.method_pear, entropy, mask, tag, right, alpha=alpha, coef=coef, least=least)
    return penalty


class CeehOutput(NamedTuple):
    """What ceeh returns."""

    hard: Tensor  # [B] bool: completions of hard prompts
    reward: Tensor  # [B] float64, to be added to rewards
    accuracy: Tensor  # [G] float64, the records for the next step
    shortest: Tensor  # [G] float64, likewise


def ceeh(
    right: Tensor, length: Tensor, group: Tensor, accuracy: Tensor, shortest: Tensor, mean: float, *, scale: float = 0.5
) -> CeehOutput:
    """Which prompts are hard, and a reward for short right answers: max(-0.9, scale · (L* - L) / L*) of L tokens where the group's share
    of right answers is at least its record, L* being its shortest record. The records then follow the group.

    Args:
        right: [B] bool or number.
        length: [B] integer, tokens.
        group: [B] integer, rising: the prompt of each completion; G groups.
        accuracy: [G] float64, the record of each group's prompt, -1 where there is none.
        shortest: [G] float64, NaN where there is none.
        mean: of the accuracies on record, over prompts; a group at most that is hard. NaN: none is.
        scale: at least 0, which is a reward of 0.

    Returns:
        hard [B], reward [B], accuracy [G], shortest [G].

    Source: CEEH, arXiv 2602.22642; QinwenLuo/CEEH; csrc/methods/ceeh.h.
    """
    return CeehOutput(*call(torch.ops.isentrope.method_ceeh, right, length, group, accuracy, shortest, mean, scale=scale))


def ceeh_entropy(hard: Tensor, mask: Tensor, *, factor: float = 5.0) -> Tensor:
    """What each token weighs in an entropy bonus: w = factor on the rows of hard prompts and 1 on the others, over the mean of w over all
    tokens that count, so that (weight · entropy).sum() / tokens is Σ w H / Σ w. Hand over a whole update.

    Args:
        hard: [B] bool or number, as ceeh returns it.
        mask: [B, T] bool or number.
        factor: at least 0; 1 is a plain bonus.

    Returns:
        [B, T] float32; 0 where mask is.

    Source: mode ME of CEEH, arXiv 2602.22642; QinwenLuo/CEEH (entropy_factor 5, a bonus of 0.001); csrc/methods/ceeh.h.
    """
    weight: Tensor = call(torch.ops.isentrope.method_ceeh_entropy, hard, mask, factor=factor)
    return weight


def tea(logprob: Tensor, advantage: Tensor, mask: Tensor, *, alpha: float = 10.0, most: float = 5.0) -> Tensor:
    """What each token weighs in an entropy bonus: min(most, alpha · softmax(c)), c = (A - mean A) (ℓ - mean ℓ) with means over all tokens
    that count, the softmax over those of a row. Hand over a whole update.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        advantage: [B, T].
        mask: [B, T] bool or number.
        alpha: at least 0, the sum of a row's weights but for what most cuts.
        most: at least 0.

    Returns:
        [B, T] of logprob's dtype, a constant; 0 where mask is. The loss is that of the policy - (weight · entropy).sum() / tokens.

    Source: TEA-RL of Light-IF, arXiv 2508.03178; Qihoo360/Light-IF, where that branch cannot run; csrc/methods/tea.h.
    """
    weight: Tensor = call(torch.ops.isentrope.method_tea, logprob, advantage, mask, alpha=alpha, most=most)
    return weight


def repo_beta(state: Tensor, entropy: float, *, rate: float, most: float = 1.0) -> Tensor:
    """The beta of repo behind a step: beta + rate · (target - entropy), within 0 and most.

    Args:
        state: [2] float64, beta and the target, nats; NaN as the target takes this step's entropy.
        entropy: mean of the step's tokens, nats.
        rate: at least 0, what beta rises by for a nat below the target.
        most: at least 0.

    Returns:
        [2] float64, the new state.

    Source: REPO, arXiv 2603.11682, steers beta to the entropy at the start; this rule of it is ours. csrc/methods/repo.h.
    """
    new: Tensor = call(torch.ops.isentrope.method_repo_beta, state, entropy, rate=rate, most=most)
    return new


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


@overload
def adaptive_kl(coef: float, kl: float, *, target: float, horizon: float) -> float: ...
@overload
def adaptive_kl(coef: Tensor, kl: Tensor, *, target: float, horizon: float) -> Tensor: ...
def adaptive_kl(coef: float | Tensor, kl: float | Tensor, *, target: float, horizon: float) -> float | Tensor:
    """The weight of the divergence from a reference after an update: coef · (1 + clip(kl / target - 1, ±0.2) / horizon).

    Args:
        coef: the weight so far: a number, or a tensor of weights, float32 or float64.
        kl: the update's divergence, nats a token; of a tensor of weights one each.
        target: above 0, nats a token.
        horizon: 1 or more, in updates.

    Returns:
        The new weight, as coef came.

    Source: Ziegler et al., arXiv 1909.08593; csrc/methods/kl_control.h.
    """
    op = torch.ops.isentrope.method_adaptive_kl
    if isinstance(coef, Tensor):
        new: Tensor = call(op, coef, kl, target, horizon)
        return new
    given = (torch.tensor(float(x), dtype=torch.float64) for x in (coef, kl))
    return float(call(op, *given, target, horizon))


def aent(
    state: Tensor,
    entropy: float,
    *,
    low: float = 0.05,
    high: float = 0.23,
    rate: float = 1e-3,
    least: float = 1e-5,
    most: float = 3e-3,
    warmup: int = 0,
) -> Tensor:
    """The coefficient of an entropy bonus after an update: less rate · (min(0, H - low) + max(0, H - high)), within least and most.

    Args:
        state: [2] float64, the coefficient and how many updates there were; torch.tensor([coef, 0.0]) before the first.
        entropy: mean of the update's tokens, nats, over the part of the vocabulary that the bonus is about.
        low, high: the band, nats.
        rate: what the coefficient changes by for a nat outside of it.
        least, most: its range.
        warmup: updates after which it does not change yet.

    Returns:
        [2] float64, the new state.

    Source: AEnt, arXiv 2509.03493; AReaL's recipe, which steers once a step; csrc/methods/entropy_control.h.
    """
    options = {"low": low, "high": high, "rate": rate, "least": least, "most": most, "warmup": warmup}
    made: Tensor = call(torch.ops.isentrope.method_aent, state, entropy, **options)
    return made


class SirenOutput(NamedTuple):
    """What siren returns."""

    coef: Tensor  # [] float64, of an entropy bonus
    weight: Tensor  # [B, T] of entropy's dtype, of a token's kept entropy in it
    mean: Tensor  # [] float64, nats: that of the tokens that are held


def siren(entropy: Tensor, kept: Tensor, mask: Tensor, anchor: float, *, coef: float = 0.005, share: float = 0.2) -> SirenOutput:
    """The entropy bonus that has the gradient of coef · (m - anchor)², m the mean of kept over the share of tokens of highest entropy: the
    gradient of -result.coef · (result.weight · kept).sum() / tokens is that. Hand over a whole update.

    Args:
        entropy: [B, T] nats, of the policy that learns; float32 or float64.
        kept: [B, T] nats: the entropy over the part of the vocabulary that is held (token_entropy with keep), or the same.
        mask: [B, T] bool or number.
        anchor: nats, m before training; NaN: there is none yet, and the coefficient is 0.
        coef: at least 0, which has no effect.
        share: in (0, 1].

    Returns:
        coef [], weight [B, T] and mean [].

    Source: SIREN, arXiv 2509.25133 (coef 0.005, the 20 % highest, top-p 0.8); csrc/methods/siren.h.
    """
    return SirenOutput(*call(torch.ops.isentrope.method_siren, entropy, kept, mask, anchor, coef=coef, share=share))


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
