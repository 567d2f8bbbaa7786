"""What is done with whole groups, the completions of a prompt: ARES' shaping by difficulty, and which of them a step learns from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call


def filter_groups(reward: Tensor, group: Tensor) -> Tensor:
    """Whether a completion's group has something to say: its rewards differ by more than rounding (2⁻²¹ of the largest in size, or 1e-12),
    or it is of one completion. The others are left out, and other prompts drawn in their place.

    Args:
        reward: [B] float32 or float64; 1 and 0 of right and wrong answers, where groups that are all right or all wrong are to go.
        group: [B] integer, rising: the prompt of each completion.

    Returns:
        [B] bool.

    Source: dynamic sampling of DAPO, arXiv 2503.14476; csrc/methods/filter_groups.h.
    """
    kept: Tensor = call(torch.ops.isentrope.method_filter_groups, reward, group)
    return kept


class AresOutput(NamedTuple):
    """What ares returns."""

    shaping: Tensor  # [B] float64, to be added to rewards of which a right answer has 1
    difficulty: Tensor  # [B] int64 of the prompt: 0 easy, 1 medium, 2 hard
    ref_kl_weight: Tensor  # [B, T] float32, factor of each token's divergence from the reference; 1 behind a completion's tokens
    state: Tensor  # [16] float64, [19] with alpha_rate: for the next step


def ares(
    entropy: Tensor,
    length: Tensor,
    right: Tensor,
    group: Tensor,
    state: Tensor | None = None,
    trigger: Tensor | None = None,
    *,
    form: str = "released",
    alpha: float = 0.5,
    window: int = 4,
    quantile: float = 0.95,
    threshold_decay: float = 0.99,
    target_decay: float = 0.9,
    easy: float = 2 / 3,
    medium: float = 1 / 3,
    inside: float = 1.0,
    alpha_rate: float = 0.0,
    alpha_least: float = 0.0,
    alpha_most: float = 2.0,
) -> AresOutput:
    """Rewards shaped by how much a completion explores, N windows of high entropy against the running mean N* of its difficulty. With
    Δ = N - N*, m = max(1, f max(N*, 1)) and cap = alpha · scale, form "released" adds to a right answer of an easy or medium prompt
    -min(cap, cap h(x - m) / (m + κ)) with x = Δ or abs(Δ), to one of a hard prompt cap σ((Δ + m) / τ), and to wrong ones
    cap s σ(max(Δ - m, 0) / τ); the constants of each difficulty and the forms "strict" and "paper" stand in csrc/methods/ares.h.

    Args:
        entropy: [B, T] nats, of the policy that drew the tokens, which stand at the beginning of a row; float32 or float64.
        length: [B] int64, tokens of each row.
        right: [B] bool or number.
        group: [B] integer, rising: the prompt of each completion.
        state: of the step before; None: of none.
        trigger: [B, T] bool or number, tokens behind which high windows count; None: all of them count.
        form: released, strict or paper.
        alpha: most that is added or taken, 0 to 2; 0 adds nothing.
        window: tokens of a window, whose value is the mean of their entropies.
        quantile: of a completion's windows that makes its threshold; that of a step is their median.
        threshold_decay, target_decay: of the running means of the threshold and of N*.
        easy, medium: least shares of right completions of an easy and of a medium prompt.
        inside: factor of ref_kl_weight at the tokens of high windows.
        alpha_rate: what alpha changes by for a high window more than N* (fewer, of hard prompts), each difficulty by itself; 0: it stays.
        alpha_least, alpha_most: its range.

    Returns:
        shaping [B], difficulty [B], ref_kl_weight [B, T] and the new state.

    Source: ARES, arXiv 2510.08457; csrc/methods/ares.h.
    """
    options = {"form": form, "alpha": alpha, "window": window, "quantile": quantile, "threshold_decay": threshold_decay}
    options |= {"target_decay": target_decay, "easy": easy, "medium": medium, "inside": inside}
    options |= {"alpha_rate": alpha_rate, "alpha_least": alpha_least, "alpha_most": alpha_most}
    return AresOutput(*call(torch.ops.isentrope.method_ares, entropy, length, right, group, state, trigger, **options))


def ares_kl(
    state: Tensor,
    kl: Tensor,
    *,
    target: float = 0.01,
    every: int = 100,
    decay: float = 0.97,
    error_decay: float = 0.97,
    dead_zone: float = 0.02,
) -> Tensor:
    """The state of ares after an update: each difficulty's weight β of the divergence from the reference is steered towards a target. K is the
    running mean of the divergence; every `every` measurements, where abs(K / target - 1) is at least dead_zone, the error's running mean E
    takes it in and log β rises by 0.05 clip(E, ±0.2), β within 1e-4 and 1e2.

    Args:
        state: [16] or [19] float64, as ares returns it.
        kl: [3] float64, nats a token, of the tokens of easy, medium and hard prompts; NaN where the update has none.
        target: above 0, nats a token.
        every: 1 or more, measurements of a difficulty.
        decay, error_decay: of the running means, 0 to 1.
        dead_zone: at least 0.

    Returns:
        The new state.

    Source: ARES, arXiv 2510.08457, as its released code has it; csrc/methods/ares.h.
    """
    options = {"target": target, "every": every, "decay": decay, "error_decay": error_decay, "dead_zone": dead_zone}
    made: Tensor = call(torch.ops.isentrope.method_ares_kl, state, kl, **options)
    return made
