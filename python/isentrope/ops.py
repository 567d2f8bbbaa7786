"""Every op of isentrope as a typed function: names and documentation over the dispatcher ops, which differentiate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope

__all__ = ["TokenEntropy", "TokenEntropyMoments", "token_entropy"]


# ---- token_entropy ---------------------------------------------------------------------------------------------------


class TokenEntropy(NamedTuple):
    """What token_entropy returns, each [N] or [B, T] like target; float32, or float64 for float64 logits."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor


class TokenEntropyMoments(NamedTuple):
    """What token_entropy returns with moments=True."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    sum_p2: Tensor
    sum_p2_logp: Tensor


def token_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    moments: bool = False,
    inplace_backward: bool = False,
) -> TokenEntropy | TokenEntropyMoments:
    """Log-probability of each target, entropy and log-sum-exp of each row, from one read of the logits.

    With s = logits / temperature and p = softmax(s) over the vocabulary, natural logarithms::

        logprob = s[target] - lse        lse = log Σ exp(s)        entropy = -Σ p log p   (nats)
        sum_p2 = Σ p²                    sum_p2_logp = Σ p² log p

    Args:
        logits: [N, V] or [B, T, V]; float32, bfloat16, float16 or float64; V ≥ 1. Leading dimensions may have any
            strides (``logits[:, :-1]`` is not copied); a strided vocabulary is copied once.
        target: [N] or [B, T], int64, on the same device: 0 … V-1, or ignore_index.
        temperature: finite, above 0.
        ignore_index: rows with this target are not read; all their outputs are 0 and so is their gradient.
        moments: also return sum_p2 and sum_p2_logp. They carry no gradient.
        inplace_backward: the backward pass writes the gradient over the logits: no memory but O(N) beside them. Whoever
            else needs the logits' values for a gradient, and a second backward pass, get autograd's error about
            in-place modification. The logits must be the result of a computation (not a leaf) whose rows share no
            memory. Under torch.compile it has no effect.

    Returns:
        (logprob, entropy, lse), or (logprob, entropy, lse, sum_p2, sum_p2_logp) with moments, each of target's shape,
        float32 (float64 for float64 logits). logprob, entropy and lse have gradients; second derivatives are refused.

    Logits of -inf have p = 0 and add nothing. A row of nothing else gives logprob = lse = -inf, entropy 0, gradient 0.
    A row with NaN or +inf gives NaN. A row whose incoming gradients are all 0 gets a gradient of 0, whatever it holds.

    Raises:
        ValueError, TypeError: a shape, device, temperature or dtype that is not as above; the message names the argument.
        IndexError: a target out of range, on the CPU. On a GPU its row becomes NaN.

    Source: derivation in kernels/token_entropy.h (centred online entropy).
    """
    logprob, entropy, lse, _, _, sum_p2, sum_p2_logp = torch.ops.isentrope.token_entropy(
        logits,
        target,
        temperature=temperature,
        ignore_index=ignore_index,
        moments=moments,
        inplace_backward=inplace_backward,
    )
    if moments:
        return TokenEntropyMoments(logprob, entropy, lse, sum_p2, sum_p2_logp)
    return TokenEntropy(logprob, entropy, lse)


# ---- grpo_loss -------------------------------------------------------------------------------------------------------
