"""Methods of policy learning as pure functions of tensors [B, T] with a mask: what a published method does to rewards, advantages or
the weights of tokens. The trainer applies the same functions (keys reward, advantage, weight and objective.entropy of a phase); so do
isentrope.integrations. Results are constants to autograd. Natural logarithms, entropies in nats; mask is true, or not 0, where a token
counts, and what stands elsewhere is never used."""

from __future__ import annotations

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call

__all__ = ["top_entropy"]


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
