"""Advantages of the rewards of a step's completions."""

from __future__ import annotations

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call

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


def by_token(value: Tensor, mask: Tensor) -> Tensor:
    """A number of each completion, as its advantage, on all of its tokens.

    Args:
        value: [B] float32 or float64.
        mask: [B, T] bool or number.

    Returns:
        [B, T] of value's dtype: value where mask is not 0, else 0.

    Source: csrc/methods/by_token.h.
    """
    spread: Tensor = call(torch.ops.isentrope.method_by_token, value, mask)
    return spread


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


def gtpo(
    entropy: Tensor,
    right: Tensor,
    mask: Tensor,
    group: Tensor,
    *,
    outcome: float = 1.0,
    share: float = 0.1,
    over: str = "group",
    eps: float = 1e-6,
) -> Tensor:
    """Of right completions every token has outcome + share · n H / Σ H, of wrong ones the negative of outcome + share · n (1/H) / Σ 1/H,
    sums over the n completions of the group that are right (wrong) and whose token at that position counts; then
    (r - mean r) / (std r + eps), population std, over the tokens of the group.

    Args:
        entropy: [B, T] nats, of the policy that drew the tokens; float32 or float64.
        right: [B] bool or number.
        mask: [B, T] bool or number.
        group: [B] integer, rising: the prompt of each completion.
        outcome, share: the paper's α1 and α2, at least 0 and not both 0.
        over: "group", or "outcome": right and wrong tokens of a group are normalised each by themselves.
        eps: 0 to 1.

    Returns:
        [B, T] of entropy's dtype: 0 where mask is, and where all r are equal up to rounding.

    Source: GTPO, arXiv 2508.04349; csrc/methods/gtpo.h.
    """
    advantage: Tensor = call(
        torch.ops.isentrope.method_gtpo, entropy, right, mask, group, outcome=outcome, share=share, over=over, eps=eps
    )
    return advantage
