"""Log-probability and entropy of tokens, from logits or from the head that makes them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Union, overload

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call, wrong_type
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


class TokenEntropyKeptOutput(NamedTuple):
    """What token_entropy returns with keep."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    kept_entropy: Tensor


class TokenEntropyKeptMomentsOutput(NamedTuple):
    """What token_entropy returns with keep and moments=True."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    sum_p2: Tensor
    sum_p2_logp: Tensor
    kept_entropy: Tensor


class TopP(NamedTuple):
    """keep: the fewest likeliest tokens whose probabilities reach share, the one that crosses it included; 0 < share ≤ 1.
    Of equal logits those of lower ids are the likelier. SIREN (arXiv:2509.25133) takes 0.8."""

    share: float = 0.8


class WithoutLowest(NamedTuple):
    """keep: all tokens but the floor(share · V) least likely of the vocabulary; 0 ≤ share < 1. Of equal logits those of higher
    ids are the less likely. AEnt (arXiv:2509.03493) bounds the entropy of what is left."""

    share: float


Keep = Union[TopP, WithoutLowest]
_TokenOutput = Union[TokenEntropyOutput, TokenEntropyMomentsOutput, TokenEntropyKeptOutput, TokenEntropyKeptMomentsOutput]


def _keep_arguments(op: str, keep: Keep | None, temperature: float, **floats: float | None) -> dict[str, Any]:
    """The floats of op's schema, and what it keeps."""
    if keep is None:
        return numbers_of(**floats, temperature=temperature)
    if not isinstance(keep, (TopP, WithoutLowest)):
        raise wrong_type(op, "keep", keep, "isentrope.TopP(share), isentrope.WithoutLowest(share), or None")
    kind = "top_p" if isinstance(keep, TopP) else "without_lowest"
    return {"keep": kind, **numbers_of(**floats, temperature=temperature, share=keep.share)}


def _output(outputs: tuple[Tensor, ...], moments: bool, keep: Keep | None) -> _TokenOutput:
    logprob, entropy, lse, _, _, sum_p2, sum_p2_logp = outputs[:7]
    if keep is not None:
        kept_entropy = outputs[7]
        if moments:
            return TokenEntropyKeptMomentsOutput(logprob, entropy, lse, sum_p2, sum_p2_logp, kept_entropy)
        return TokenEntropyKeptOutput(logprob, entropy, lse, kept_entropy)
    if moments:
        return TokenEntropyMomentsOutput(logprob, entropy, lse, sum_p2, sum_p2_logp)
    return TokenEntropyOutput(logprob, entropy, lse)


@overload
def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = ..., ignore_index: int = ..., moments: Literal[False] = ...,
    inplace_backward: bool = ..., keep: None = ...,
) -> TokenEntropyOutput: ...  # fmt: skip
@overload
def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = ..., ignore_index: int = ..., moments: Literal[True],
    inplace_backward: bool = ..., keep: None = ...,
) -> TokenEntropyMomentsOutput: ...  # fmt: skip
@overload
def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = ..., ignore_index: int = ..., moments: bool,
    inplace_backward: bool = ..., keep: None = ...,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput: ...  # fmt: skip
@overload
def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = ..., ignore_index: int = ..., moments: Literal[False] = ...,
    inplace_backward: bool = ..., keep: Keep,
) -> TokenEntropyKeptOutput: ...  # fmt: skip
@overload
def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = ..., ignore_index: int = ..., moments: Literal[True],
    inplace_backward: bool = ..., keep: Keep,
) -> TokenEntropyKeptMomentsOutput: ...  # fmt: skip
@overload
def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = ..., ignore_index: int = ..., moments: bool = ...,
    inplace_backward: bool = ..., keep: Keep | None,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput | TokenEntropyKeptOutput | TokenEntropyKeptMomentsOutput: ...  # fmt: skip
def token_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    moments: bool = False,
    inplace_backward: bool = False,
    keep: Keep | None = None,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput | TokenEntropyKeptOutput | TokenEntropyKeptMomentsOutput:
    """Log-probability of each target, entropy and log-sum-exp of each row, from one read of the logits.

    With s = logits / temperature and p = softmax(s) over the vocabulary, natural logarithms::

        logprob = s[target] - lse        lse = log Σ exp(s)        entropy = -Σ p log p   (nats)
        sum_p2 = Σ p²                    sum_p2_logp = Σ p² log p

    With keep, of the tokens K that are kept, p' = p / Σ_K p::

        kept_entropy = -Σ_K p' log p'    its gradient takes K for constant: -p' (log p' + kept_entropy) / temperature in K, 0 outside

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
        keep: also return kept_entropy, the truncated entropy: of isentrope.TopP(share) or isentrope.WithoutLowest(share). The
            edge of K is found without a sort, and exactly: equal logits by their ids, the same at any number of threads. Whether
            share is reached is decided by integers, 2^39 times the exponentials; where it lies within a rounding of the sum that
            decides, K may differ by a token from that of exact arithmetic. TopP(1) and WithoutLowest(0) give entropy, bit for bit.

    Returns:
        (logprob, entropy, lse), or (logprob, entropy, lse, sum_p2, sum_p2_logp) with moments, then kept_entropy with keep, each of
        target's shape, float32 (float64 for float64 logits). logprob, entropy, lse and kept_entropy have gradients; second
        derivatives are refused.

    Logits of -inf have p = 0 and add nothing. A row of nothing else gives logprob = lse = -inf, entropy 0, gradient 0.
    A row with NaN or +inf gives NaN. A row whose incoming gradients are all 0 gets a gradient of 0, whatever it holds.

    Raises:
        ValueError, TypeError: a shape, device, temperature or dtype that is not as above; the message names the argument.
        IndexError: a target out of range, on the CPU. On a GPU its row becomes NaN.

    Source: derivation in kernels/token_entropy.h (centred online entropy).
    """
    outputs = call(
        torch.ops.isentrope.token_entropy if keep is None else torch.ops.isentrope.token_entropy_kept,
        logits,
        target,
        **_keep_arguments("token_entropy", keep, temperature),
        ignore_index=ignore_index,
        moments=moments,
        inplace_backward=inplace_backward,
    )
    return _output(outputs, moments, keep)


# ---- linear_token_entropy --------------------------------------------------------------------------------------------


@overload
def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = ..., softcap: float | None = ...,
    temperature: float = ..., ignore_index: int = ..., moments: Literal[False] = ..., keep: None = ...,
) -> TokenEntropyOutput: ...  # fmt: skip
@overload
def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = ..., softcap: float | None = ...,
    temperature: float = ..., ignore_index: int = ..., moments: Literal[True], keep: None = ...,
) -> TokenEntropyMomentsOutput: ...  # fmt: skip
@overload
def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = ..., softcap: float | None = ...,
    temperature: float = ..., ignore_index: int = ..., moments: bool, keep: None = ...,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput: ...  # fmt: skip
@overload
def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = ..., softcap: float | None = ...,
    temperature: float = ..., ignore_index: int = ..., moments: Literal[False] = ..., keep: Keep,
) -> TokenEntropyKeptOutput: ...  # fmt: skip
@overload
def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = ..., softcap: float | None = ...,
    temperature: float = ..., ignore_index: int = ..., moments: Literal[True], keep: Keep,
) -> TokenEntropyKeptMomentsOutput: ...  # fmt: skip
@overload
def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = ..., softcap: float | None = ...,
    temperature: float = ..., ignore_index: int = ..., moments: bool = ..., keep: Keep | None,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput | TokenEntropyKeptOutput | TokenEntropyKeptMomentsOutput: ...  # fmt: skip
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
    keep: Keep | None = None,
) -> TokenEntropyOutput | TokenEntropyMomentsOutput | TokenEntropyKeptOutput | TokenEntropyKeptMomentsOutput:
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
        keep: also return kept_entropy, as token_entropy.

    Returns:
        As token_entropy, each of target's shape. logprob, entropy, lse and kept_entropy have gradients, to hidden, weight and bias; second
        derivatives are refused. Logits and statistics are float32 for bfloat16 and float16 (float64 for float64).

    Memory beside inputs, outputs and gradients: a block of at most 256 columns of logits, and one of weight; for the gradient of
    hidden in bfloat16 or float16, or where rows are ignored, also its sums, [rows that count, C] in float32, half of that in bfloat16
    on a processor with products of it (AVX-512 bf16, AMX). There the gradient of logits is rounded to bfloat16 as the operand of the
    products that follow; no sum is. With keep the logits of a block of rows exist together in the forward pass: at most 128 MiB of
    float32 on the CPU and 256 MiB on a GPU, or of one row and of 64 rows where those are more. On the CPU the bits of results do not depend on the number of threads.

    Rows with logits of -inf, +inf and NaN are as in token_entropy. A row whose incoming gradients are all 0 takes no part in the
    backward pass, whatever it holds.

    Raises:
        ValueError, TypeError: a shape, device, number or dtype that is not as above; the message names the argument.
        IndexError: a target out of range, on the CPU. On a GPU its row becomes NaN.

    Source: derivation in kernels/linear_token_entropy.h.
    """
    outputs = call(
        torch.ops.isentrope.linear_token_entropy if keep is None else torch.ops.isentrope.linear_token_entropy_kept,
        hidden,
        weight,
        target,
        bias=bias,
        **_keep_arguments("linear_token_entropy", keep, temperature, softcap=softcap),
        ignore_index=ignore_index,
        moments=moments,
    )
    return _output(outputs, moments, keep)
