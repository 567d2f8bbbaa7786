"""Methods of policy learning as pure functions of tensors [B, T] with a mask: what a published method does to rewards, advantages or
the weights of tokens. The trainer applies the same functions (keys reward, advantage, weight and objective.entropy of a phase); so do
isentrope.integrations. Results are constants to autograd. Natural logarithms, entropies in nats; mask is true, or not 0, where a token
counts, and what stands elsewhere is never used."""

from __future__ import annotations

from typing import NamedTuple

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call

__all__ = [
    "adaptive_kl",
    "adaptive_entropy",
    "attention_entropy",
    "correction",
    "dr_grpo",
    "entropic",
    "entropy_ratio_band",
    "gdpo",
    "grpo",
    "maxrl",
    "mismatch",
    "opo",
    "optimal_token_baseline",
    "overlong",
    "pass_at_k",
    "quantile",
    "register",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "rloo",
    "soft_window",
    "stare",
    "steer",
    "surprisal_band",
    "top_entropy",
]


# ---- advantage: of the rewards of a step's completions ---------------------------------------------------------------
#
# reward is [B] float32 or float64, of at most 1e18 in size; group [B] an integer of the prompt of each completion, the completions of
# a prompt together and rising; length [B] an integer, in tokens. A group of one has no baseline. Rewards that are equal up to rounding
# (all within 2^-21 of the largest) count as equal. A statistic of the batch is one of what is handed over: hand over a whole step.


def grpo(reward: Tensor, group: Tensor, *, eps: float = 1e-6, std: str = "group") -> Tensor:
    """(reward − mean of the group) / (std + eps).

    Args:
        reward: [B] float32 or float64.
        group: [B] integer, rising: the prompt of each completion.
        eps: 0 to 1.
        std: whose unbiased standard deviation: "group", or "batch", that of all B rewards (TRL's scale_rewards="batch").

    Returns:
        [B] of reward's dtype: 0 in a group of equal rewards, reward / (1 + eps) (with "batch": / (std + eps)) in a group of one.

    Source: arXiv 2402.03300; verl's grpo (eps 1e-6), TRL's GRPOTrainer (eps 1e-4); csrc/methods/group_advantage.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_grpo, reward, group, eps=eps, std=std)
    return advantage


def dr_grpo(reward: Tensor, group: Tensor) -> Tensor:
    """reward − mean of the group.

    Args:
        reward: [B] float32 or float64.
        group: [B] integer, rising: the prompt of each completion.

    Returns:
        [B] of reward's dtype and unit; the reward itself in a group of one.

    Source: arXiv 2503.20783; TRL's scale_rewards="none"; csrc/methods/group_advantage.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_dr_grpo, reward, group)
    return advantage


def rloo(reward: Tensor, group: Tensor) -> Tensor:
    """reward − mean of the others of the group.

    Args:
        reward: [B] float32 or float64.
        group: [B] integer, rising: the prompt of each completion.

    Returns:
        [B] of reward's dtype and unit; the reward itself in a group of one.

    Source: arXiv 2402.14740; verl's rloo; csrc/methods/group_advantage.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_rloo, reward, group)
    return advantage


def opo(reward: Tensor, group: Tensor, length: Tensor) -> Tensor:
    """reward − Σ length · reward / Σ length, the sums over the group.

    Args:
        reward: [B] float32 or float64.
        group: [B] integer, rising: the prompt of each completion.
        length: [B] integer, tokens.

    Returns:
        [B] of reward's dtype and unit; the reward itself in a group of one and in one without tokens.

    Source: arXiv 2505.23585; verl's opo; csrc/methods/group_advantage.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_opo, reward, group, length)
    return advantage


def reinforce_plus_plus_baseline(reward: Tensor, group: Tensor, length: Tensor) -> Tensor:
    """a = reward − mean of the group, then (a − m) / √(v + 1e-8): m and v are the mean and the unbiased variance of a over all tokens of
    the batch, so that a completion counts as often as it has tokens.

    Args:
        reward: [B] float32 or float64.
        group: [B] integer, rising: the prompt of each completion.
        length: [B] integer, tokens.

    Returns:
        [B] of reward's dtype; centred alone where the batch has fewer than two tokens.

    Source: arXiv 2501.03262; verl's reinforce_plus_plus_baseline; csrc/methods/group_advantage.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_reinforce_plus_plus_baseline, reward, group, length)
    return advantage

def reinforce_plus_plus(reward: Tensor, length: Tensor) -> Tensor:
    """(reward − m) / √(v + 1e-8): m and v are the mean and the unbiased variance of the reward over all tokens of the batch, so that a
    completion counts as often as it has tokens. Prompts have no baseline. verl's reinforce_plus_plus whitens returns of token rewards
    with a discount and, where it is asked for, a divergence in them; without these two it is the same.

    Args:
        reward: [B] float32 or float64.
        length: [B] integer, tokens.

    Returns:
        [B] of reward's dtype; 0 where all rewards are equal, centred alone where the batch has fewer than two tokens.

    Source: arXiv 2501.03262; verl's reinforce_plus_plus; csrc/methods/reinforce_plus_plus.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_reinforce_plus_plus, reward, length)
    return advantage


def remax(reward: Tensor, group: Tensor, greedy: Tensor) -> Tensor:
    """reward − reward of the greedy completion of the prompt.

    Args:
        reward: [B] float32 or float64.
        group: [B] integer, rising: the prompt of each completion.
        greedy: [G] number: the reward of each prompt's greedy completion, in the order of the groups.

    Returns:
        [B] of reward's dtype and unit.

    Source: arXiv 2310.10505; verl's remax; csrc/methods/remax.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_remax, reward, group, greedy)
    return advantage


def maxrl(reward: Tensor, group: Tensor) -> Tensor:
    """(reward − mean of the group) / mean of the group, for rewards of 0 and 1.

    Args:
        reward: [B] float32 or float64, not negative.
        group: [B] integer, rising: the prompt of each completion.

    Returns:
        [B] of reward's dtype, in units of the mean: 0 in a group whose rewards are equal or whose mean is not above 0, the reward itself
        in a group of one.

    Source: arXiv 2602.02710; prime-rl's max_rl, SkyRL's maxrl (which adds 1e-6 to the mean); csrc/methods/maxrl.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_maxrl, reward, group)
    return advantage


def quantile(
    reward: Tensor, group: Tensor, *, quantile: float = 0.4, interpolate: bool = False, eps: float = 1e-6, std: str = "group"
) -> Tensor:
    """(reward − Q) / (std + eps): Q is the least reward of the group that at least a share `quantile` of its rewards do not exceed. Of
    rewards 0 and 1 it is 0 where at most 1 − quantile of the answers are right, and these alone have an advantage, and 1 elsewhere.

    Args:
        reward: [B] float32 or float64.
        group: [B] integer, rising: the prompt of each completion.
        quantile: above 0 to 1.
        interpolate: Q as torch.quantile has it, linear between neighbouring rewards, which is what the authors' code does.
        eps: 0 to 1.
        std: whose unbiased standard deviation: "group", "batch", or "none" for no division.

    Returns:
        [B] of reward's dtype: 0 in a group of equal rewards; a group of one has Q = 0 and std 1.

    Source: arXiv 2509.22611 (QAE); csrc/methods/quantile.h.
    """
    advantage: Tensor = call(
        torch.ops.isentrope.method_quantile, reward, group, quantile=quantile, interpolate=interpolate, eps=eps, std=std
    )
    return advantage


def pass_at_k(reward: Tensor, group: Tensor, *, k: int = 4, form: str = "subsets", eps: float = 1e-6) -> Tensor:
    """What a completion does for the best of k of its prompt.

    form "subsets": R is the largest reward of k completions of the group, over all choices of k; the advantage is
    (E[R | the completion is one of the k] − E[R]) / (std R + eps), exact, which for rewards of 0 and 1 is the closed form of the paper.
    form "best": the best completion of the group has (its reward − the second largest) / (unbiased std of the group + eps), the others 0.

    Args:
        reward: [B] float32 or float64.
        group: [B] integer, rising: the prompt of each completion.
        k: at least 1; "subsets" wants groups of more than k, or of one. Without use for "best".
        form: "subsets" or "best".
        eps: 0 to 1.

    Returns:
        [B] of reward's dtype: 0 in a group of equal rewards, reward / (1 + eps) in a group of one.

    Source: arXiv 2508.10751 (subsets); arXiv 2503.19595, verl's grpo_passk (best); csrc/methods/pass_at_k.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_pass_at_k, reward, group, k=k, form=form, eps=eps)
    return advantage


def gdpo(
    scores: Tensor, group: Tensor, length: Tensor, weights: Tensor | None = None, *, eps: float = 1e-6, over: str = "completions"
) -> Tensor:
    """a = Σ_k w_k (s_k − mean s_k) / (std s_k + eps), each reward's mean and unbiased std over the group; then of mean 0 and variance 1 in
    the batch: (a − mean a) / (std a + eps) over completions, or (a − m) / √(v + 1e-8) over tokens.

    Args:
        scores: [R, B] float32 or float64: R rewards of each completion; NaN where one does not apply to a completion.
        group: [B] integer, rising: the prompt of each completion.
        length: [B] integer, tokens, for over="tokens".
        weights: [R] number, of the normalised rewards; None: 1 each.
        eps: 0 to 1.
        over: "completions" (TRL) or "tokens" (verl).

    Returns:
        [B] of scores' dtype; 0 for a completion to which no reward applies, and where all a are equal.

    Source: arXiv 2601.05242; TRL's multi_objective_aggregation="normalize_then_sum", verl's gdpo; csrc/methods/gdpo.h.
    """
    advantage: Tensor = call(torch.ops.isentrope.method_gdpo, scores, group, length, weights, eps=eps, over=over)
    return advantage


def optimal_token_baseline(
    reward: Tensor, logprob: Tensor, sum_p2: Tensor, mask: Tensor, group: Tensor, *, alone_zero: bool = True
) -> Tensor:
    """reward − B_t, B_t = Σ reward · W_t / (Σ W_t + 1e-8) over the completions of the group whose token t counts, with
    W_t = Σ_{j ≤ t} max(0, 1 − 2 π + Σ p²): the baseline of each position that gives the gradient the least variance.

    Args:
        reward: [B] float32 or float64.
        logprob: [B, T] nats, of the policy that drew the tokens; float32 or float64.
        sum_p2: [B, T] of logprob's dtype: Σ p² over the vocabulary of that policy (token_entropy with moments=True).
        mask: [B, T] bool or number.
        group: [B] integer, rising: the prompt of each completion.
        alone_zero: where one completion of the group counts alone its baseline is 0; False: its own reward.

    Returns:
        [B, T] of logprob's dtype: 0 where mask is false and in a group of equal rewards; the reward itself in a group of one.

    Source: verl 0.9.1, optimal_token_baseline; csrc/methods/optimal_token_baseline.h.
    """
    advantage: Tensor = call(
        torch.ops.isentrope.method_optimal_token_baseline, reward, logprob, sum_p2, mask, group, alone_zero=alone_zero
    )
    return advantage


# ---- weight: a factor [B, T] of each token's policy term -------------------------------------------------------------


def top_entropy(entropy: Tensor, mask: Tensor, *, fraction: float = 0.2) -> Tensor:
    """1 on the max(1, round(fraction · tokens)) tokens of highest entropy, 0 elsewhere; exact, equal entropies in order of rows and
    positions, NaN highest. Hand over a whole update.

    Args:
        entropy: [B, T] nats, of the policy that learns; float32 or float64.
        mask: [B, T] bool or number.
        fraction: in (0, 1].

    Returns:
        [B, T] of entropy's dtype, to multiply the advantage with; the tokens at 0 keep their place in denominators.

    Source: arXiv 2506.01939 (the 20 % of tokens of highest entropy); csrc/methods/top_entropy.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_top_entropy, entropy, mask, fraction=fraction)
    return factor


# ---- reward: what is added to the rewards of completions -------------------------------------------------------------


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


# ---- controller: a coefficient of later updates ----------------------------------------------------------------------


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


def surprisal_band(logprob: Tensor, entropy: Tensor, mask: Tensor, *, low: float = 0.1, high: float = 3.0) -> Tensor:
    """1 where low ≤ -logprob / entropy ≤ high, else 0. Where the entropy is 0 the quotient is 0 for a surprisal of 0 and infinite for any
    other; a token whose log-prob or entropy is NaN has 0.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        entropy: [B, T] nats, of the same policy.
        mask: [B, T] bool or number.
        low: at least 0, which is no bound.
        high: at least low; may be infinite.

    Returns:
        [B, T] of logprob's dtype, to multiply the advantage with; the tokens at 0 keep their place in denominators.

    Source: arXiv 2606.31575 (Relative Surprisal Index); csrc/methods/surprisal_band.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_surprisal_band, logprob, entropy, mask, low=low, high=high)
    return factor


def entropy_ratio_band(entropy: Tensor, old_entropy: Tensor, mask: Tensor, *, low: float = 0.95, high: float = 1.05) -> Tensor:
    """1 where low < (entropy + 1e-8) / (old_entropy + 1e-8) < high, else 0, where either is NaN too.

    Args:
        entropy: [B, T] nats, of the policy that learns; float32 or float64.
        old_entropy: [B, T] nats, of the policy that drew the tokens.
        mask: [B, T] bool or number.
        low: at least 0, itself outside.
        high: above low, itself outside; may be infinite.

    Returns:
        [B, T] of entropy's dtype, to multiply the advantage with; the tokens at 0 keep their place in denominators.

    Source: arXiv 2512.05591 (entropy ratio clipping), Kwai-Klear/ERC, whose configuration has 0.8 and 1.2 and whose runs have 0.95 and
    1.05; csrc/methods/entropy_ratio_band.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_entropy_ratio_band, entropy, old_entropy, mask, low=low, high=high)
    return factor


def steer(
    logprob: Tensor,
    old_logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    form: str = "linear",
    low: float = 0.8,
    high: float = 1.2,
    power: int = 2,
) -> Tensor:
    """By the change of entropy that a token's update predicts, Ω = A / π_old · π (1 - π)^power (log π + H): with m the least and M the
    greatest abs Ω among the tokens that count,

        linear:       high - (high - low) (abs Ω - m) / (M - m), and (low + high) / 2 where M = m
        exponential:  max(low, exp(-k abs Ω)), k = -log(low) / max(M, 0.02)

    Log-probs are held between log 1e-8 and 0, and a change that is not finite counts as 0. Hand over a whole update.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        old_logprob: [B, T] of the policy that drew them.
        entropy: [B, T] nats, of the policy that learns.
        advantage: [B, T].
        mask: [B, T] bool or number.
        form: "linear" or "exponential".
        low: at least 0; exponential: 1e-6 to 1.
        high: at least low; exponential: not used.
        power: 2, or 1 as the newest released code has it.

    Returns:
        [B, T] of logprob's dtype, to multiply the advantage with; 0 where mask is.

    Source: arXiv 2510.10150 (STEER), zz-haooo/STEER, where m and M are those of a micro-batch; csrc/methods/steer.h.
    """
    factor: Tensor = call(
        torch.ops.isentrope.method_steer, logprob, old_logprob, entropy, advantage, mask, form=form, low=low, high=high, power=power
    )
    return factor


def stare(
    logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    target: float = 0.3,
    fraction: float = 0.1,
    up: float = 1.1,
    down: float = 1.0,
) -> Tensor:
    """While the mean entropy is below target: up on the most surprising ⌈fraction · n⌉ of the n tokens with a positive advantage, down on
    those of the tokens with a negative one, 1 on the others; 1 on all while it is not. Exact, equal log-probs in order of rows and
    positions. Hand over a whole update.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        entropy: [B, T] nats, of the same policy.
        advantage: [B, T].
        mask: [B, T] bool or number.
        target: nats.
        fraction: in (0, 1].
        up: at least 0.
        down: at least 0; 1 is the published one-sided form (O1), 0.9 the two-sided one (C2).

    Returns:
        [B, T] of logprob's dtype, to multiply the advantage with; 0 where mask is.

    Source: arXiv 2606.19236 (STARE), hp-luo/STARE, where the tokens are chosen in a micro-batch; csrc/methods/stare.h.
    """
    factor: Tensor = call(
        torch.ops.isentrope.method_stare, logprob, entropy, advantage, mask, target=target, fraction=fraction, up=up, down=down
    )
    return factor


def soft_window(entropy: Tensor, advantage: Tensor, mask: Tensor, *, window: int = 101) -> Tensor:
    """n e_t / Σ e on tokens with a positive advantage, 1 on the others: e_t = exp H_t / Σ of exp H_k over the tokens at most window / 2
    positions away, n and Σ over the row's tokens that count. The mean factor of a row whose advantages are positive is 1.

    Args:
        entropy: [B, T] nats, of the policy that learns; float32 or float64.
        advantage: [B, T], positive for right answers.
        mask: [B, T] bool or number.
        window: at least 1, which has no effect.

    Returns:
        [B, T] of entropy's dtype, to multiply the advantage with; 0 where mask is.

    Source: arXiv 2609.39402 (PEPO); csrc/methods/soft_window.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_soft_window, entropy, advantage, mask, window=window)
    return factor


def attention_entropy(attention: Tensor, mask: Tensor, *, coef: float = -0.5) -> Tensor:
    """max(0, 1 + coef (e - mean e)) of the entropy e of a token's attention row, the mean over all tokens that count. Hand over a whole
    update.

    Args:
        attention: [B, T] entropy of the token's attention at one layer over the logarithm of its number of keys, mean over heads
            (isentrope.entropy_attention returns the entropy of each head); float32 or float64.
        mask: [B, T] bool or number.
        coef: below 0 it favours concentrated attention, above 0 wide attention; 0 has no effect.

    Returns:
        [B, T] of attention's dtype, to multiply the advantage with; 0 where mask is.

    Source: arXiv 2605.07660 weights softly by this entropy, by a schedule of its own; the linear form here is ours.
    csrc/methods/attention_entropy.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_attention_entropy, attention, mask, coef=coef)
    return factor


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


# ---- one's own -------------------------------------------------------------------------------------------------------


def register(name: str) -> Callable[[Callable[..., Tensor]], Any]:
    """Makes a function of tensors the torch operator isentrope::method_<name>, which an entry {kind: op, op: <name>} of a phase's
    lists reward, advantage or weight calls. The trainer finds its arguments by name (csrc/methods/own.h); those that are no tensors are
    the entry's other keys.

    Args:
        name: letters, digits and _; no method of the registry has it.

    Returns:
        A decorator of a function with annotated arguments that returns one new tensor, which has the shape of its first argument: of a
        weight the factor [B, T], of a reward what is added to it [B], of an advantage the new ones [B, T]. Its result is a constant to autograd.

    Source: torch.library.custom_op; csrc/methods/own.h.
    """
    if not name.isidentifier() or hasattr(torch.ops.isentrope, f"method_{name}"):
        raise ValueError(f"isentrope.methods.register: name is {name!r}; wanted letters, digits and _, and no name that is taken")

    def decorate(function: Callable[..., Tensor]) -> Any:
        op = torch.library.custom_op(f"isentrope::method_{name}", function, mutates_args=())
        op.register_fake(lambda first, *_args, **_options: torch.empty_like(first))
        return op

    return decorate
