"""Methods of policy learning as pure functions of tensors [B, T] with a mask: what a published method does to rewards, advantages or
the weights of tokens. The trainer applies the same functions (keys reward, advantage, weight and objective.entropy of a phase); so do
isentrope.integrations. Results are constants to autograd. Natural logarithms, entropies in nats; mask is true, or not 0, where a token
counts, and what stands elsewhere is never used."""

from __future__ import annotations

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call

__all__ = ["adaptive_entropy", "entropic", "overlong", "top_entropy"]


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
