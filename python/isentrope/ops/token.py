"""Log-probability and entropy of tokens, from logits or from the head that makes them."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call
from isentrope.ops.numbers import numbers_of


# ---- token_entropy ---------------------------------------------------------------------------------------------------


class TokenEntropyOutput(NamedTuple):
    """What token_entropy returns, each [N] or [B, T] like target; float32, or float64 for float64 logits."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor


class TokenEntropyMomentsOutput(NamedTuple):
    """What token_entropy returns with moments=True."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    sum_p2: Tensor
    sum_p2_logp: Tensor


@overload
def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = ..., ignore_index: int = ..., moments: Literal[False] = ...,
    inplace_backward: bool = ...,
) -> TokenEntropyOutput: ...  # fmt: skip
@overload
def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = ..., ignore_index: int = ..., moments: Literal[True],
    inplace_backward: bool = ...,
) -> TokenEntropyMomentsOutput: ...  # fmt: skip
@overload
def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = ..., ignore_index: int = ..., moments: bool,
    inplace_backward: bool = ...,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput: ...  # fmt: skip
def token_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    moments: bool = False,
    inplace_backward: bool = False,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput:
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
    logprob, entropy, lse, _, _, sum_p2, sum_p2_logp = call(
        torch.ops.isentrope.token_entropy,
        logits,
        target,
        **numbers_of(temperature=temperature),
        ignore_index=ignore_index,
        moments=moments,
        inplace_backward=inplace_backward,
    )
    if moments:
        return TokenEntropyMomentsOutput(logprob, entropy, lse, sum_p2, sum_p2_logp)
    return TokenEntropyOutput(logprob, entropy, lse)


# ---- linear_token_entropy --------------------------------------------------------------------------------------------


@overload
def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = ..., softcap: float | None = ...,
    temperature: float = ..., ignore_index: int = ..., moments: Literal[False] = ...,
) -> TokenEntropyOutput: ...  # fmt: skip
@overload
def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = ..., softcap: float | None = ...,
    temperature: float = ..., ignore_index: int = ..., moments: Literal[True],
) -> TokenEntropyMomentsOutput: ...  # fmt: skip
@overload
def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = ..., softcap: float | None = ...,
    temperature: float = ..., ignore_index: int = ..., moments: bool,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput: ...  # fmt: skip
def linear_token_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    moments: bool = False,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput:
    """token_entropy of the logits of a linear head, which never exist together: they are made block by block of the vocabulary,
    summed up, and made again for the gradient.

    With z = hidden · weightᵀ + bias, where a softcap is given z ← softcap · tanh(z / softcap), s = z / temperature and
    p = softmax(s) over the vocabulary, natural logarithms::

        logprob = s[target] - lse        lse = log Σ exp(s)        entropy = -Σ p log p   (nats)
        sum_p2 = Σ p²                    sum_p2_logp = Σ p² log p

    Args:
        hidden: [N, C] or [B, T, C]; float32, bfloat16, float16 or float64; C ≥ 1.
        weight: [V, C], like hidden; V ≥ 1.
        target: [N] or [B, T], int64, on the same device: 0 … V-1, or ignore_index.
        bias: [V], like hidden.
        softcap: finite, above 0.
        temperature: finite, above 0.
        ignore_index: rows with this target take no part in any product; all their outputs are 0 and so is their gradient.
        moments: also return sum_p2 and sum_p2_logp. They carry no gradient.

    Returns:
        As token_entropy, each of target's shape. logprob, entropy and lse have gradients, to hidden, weight and bias; second
        derivatives are refused. Logits and statistics are float32 for bfloat16 and float16 (float64 for float64).

    Memory beside inputs, outputs and gradients: a block of at most 256 columns of logits, and one of weight; for the gradient of
    hidden in bfloat16 or float16, or where rows are ignored, also its sums, [rows that count, C] in float32, half of that in bfloat16
    on a processor with products of it (AVX-512 bf16, AMX). There the gradient of logits is rounded to bfloat16 as the operand of the
    products that follow; no sum is. On the CPU the bits of results do not depend on the number of threads.

    Rows with logits of -inf, +inf and NaN are as in token_entropy. A row whose incoming gradients are all 0 takes no part in the
    backward pass, whatever it holds.

    Raises:
        ValueError, TypeError: a shape, device, number or dtype that is not as above; the message names the argument.
        IndexError: a target out of range, on the CPU. On a GPU its row becomes NaN.

    Source: derivation in kernels/linear_token_entropy.h.
    """
    logprob, entropy, lse, _, _, sum_p2, sum_p2_logp = call(
        torch.ops.isentrope.linear_token_entropy,
        hidden,
        weight,
        target,
        bias=bias,
        **numbers_of(softcap=softcap, temperature=temperature),
        ignore_index=ignore_index,
        moments=moments,
    )
    if moments:
        return TokenEntropyMomentsOutput(logprob, entropy, lse, sum_p2, sum_p2_logp)
    return TokenEntropyOutput(logprob, entropy, lse)
