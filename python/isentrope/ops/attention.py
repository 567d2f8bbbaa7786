"""Attention with the entropy of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call


# ---- entropy_attention -----------------------------------------------------------------------------------------------


if TYPE_CHECKING:
    from typing import Generic

    from typing_extensions import TypeVar

    # What may be None where it was not asked for. A generic NamedTuple can be made from Python 3.11 on, hence the second class.
    _Entropy = TypeVar("_Entropy", bound=Tensor | None, default=Tensor)
    _MaxLogit = TypeVar("_MaxLogit", bound=Tensor | None, default=Tensor)

    class EntropyAttentionOutput(NamedTuple, Generic[_Entropy, _MaxLogit]):
        out: Tensor
        lse: Tensor
        entropy: _Entropy
        max_logit: _MaxLogit

else:

    class EntropyAttentionOutput(NamedTuple):
        """What entropy_attention returns. Statistics are float32, or float64 for float64 q."""

        out: Tensor
        lse: Tensor
        entropy: Tensor | None
        max_logit: Tensor | None


@overload
def entropy_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = ..., softcap: float | None = ..., scale: float | None = ...,
    temperature: Tensor | None = ..., key_lengths: Tensor | None = ..., query_start: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., max_seqlen: int | None = ..., return_entropy: Literal[True] = ...,
) -> EntropyAttentionOutput: ...  # fmt: skip
@overload
def entropy_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = ..., softcap: float | None = ..., scale: float | None = ...,
    temperature: Tensor | None = ..., key_lengths: Tensor | None = ..., query_start: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., max_seqlen: int | None = ..., return_entropy: Literal[False],
) -> EntropyAttentionOutput[None]: ...  # fmt: skip
@overload
def entropy_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = ..., softcap: float | None = ..., scale: float | None = ...,
    temperature: Tensor | None = ..., key_lengths: Tensor | None = ..., query_start: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., max_seqlen: int | None = ..., return_entropy: bool,
) -> EntropyAttentionOutput[Tensor | None]: ...  # fmt: skip
def entropy_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    temperature: Tensor | None = None,
    key_lengths: Tensor | None = None,
    query_start: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    return_entropy: bool = True,
) -> EntropyAttentionOutput[Any, Any]:
    """Exact softmax attention and the entropy of each of its rows, from one pass over the keys; no T × S matrix exists.

    For every query, over the keys j that it sees, natural logarithms::

        s_j = softcap · tanh(scale · q·k_j / softcap) / temperature          p = softmax(s)
        out = Σ p_j v_j    lse = log Σ exp(s_j)    entropy = -Σ p_j log p_j  (nats)    max_logit = max s_j

    Args:
        q: [B, H, T, D]; float32, bfloat16, float16, or float64 on the CPU; D a multiple of 8 up to 256.
        k, v: [B, G, S, D], like q; H a multiple of G: query head h reads key head h // (H // G), and nothing is copied. All three
            may have any strides ([B, T, H, D] memory is taken as it is; memory in which D is not innermost is copied).
        causal: query t sees keys up to ``query_start + t``, by default ``S - T + t``: the last query sees the last key.
        window: causal only; a query sees itself and the ``window - 1`` keys before it. At least 1.
        softcap: above 0.
        scale: above 0; 1/√D by default. torch.compile makes a constant of every float, and compiles a new one anew: for one that
            changes by step give ``q * number`` and scale=1, or a temperature. Integers may change.
        temperature: [H], [H, T] or [B, H, T] (packed: [H] or [H, total]), above 0.
        key_lengths: [B] integers from 0 to S. Keys at and after it are not read.
        query_start: [B] integers from 0 to S, the key that query 0 sees last: for caches of different lengths in one batch, as
            ``query_start = key_lengths - T``.
        cu_seqlens: [sequences + 1] integers, 0 first, then where each sequence ends: q is [total, H, D], k and v are [total, G, D],
            statistics are [total, H], and a row sees keys of its own sequence alone.
        max_seqlen: with cu_seqlens, at least the longest sequence; spares a GPU blocks that have nothing to do.
        return_entropy: without it entropy is None.

    Returns:
        (out like q, lse, entropy, max_logit), statistics [B, H, T]. out, lse and entropy have gradients (to q, k, v and
        temperature); max_logit has none. An entropy that enters no loss costs the backward pass nothing; detach() one that is
        only watched and kept. A row that sees no key gives 0, -inf, 0, -inf and no gradient. NaN in q stays
        in its row, NaN in k or v in the rows that see the key; on a GPU it may reach others of the same tile.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument. Values of
            key_lengths, query_start, cu_seqlens and temperature are looked at on the CPU alone; on a GPU lengths are bounded and a
            temperature of 0 or below gives NaN.
        NotImplementedError: forward-mode (torch.func.jvp and the like); so in every op here.

    Under autocast q, k and v are cast as scaled_dot_product_attention's are.

    Source: derivation in kernels/entropy_attention.h (centred online entropy and its gradient).
    """
    out, lse, entropy, max_logit, _, _ = call(
        torch.ops.isentrope.entropy_attention,
        q,
        k,
        v,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        temperature=temperature,
        key_lengths=key_lengths,
        query_start=query_start,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        return_entropy=return_entropy,
    )
    return EntropyAttentionOutput(out, lse, entropy if return_entropy else None, max_logit)


# ---- merge_attention_states ------------------------------------------------------------------------------------------


@overload
def merge_attention_states(out: Tensor, lse: Tensor, entropy: Tensor, max_logit: Tensor) -> EntropyAttentionOutput: ...
@overload
def merge_attention_states(
    out: Tensor, lse: Tensor, entropy: Tensor, max_logit: None = None
) -> EntropyAttentionOutput[Tensor, None]: ...
@overload
def merge_attention_states(
    out: Tensor, lse: Tensor, entropy: None = None, *, max_logit: Tensor
) -> EntropyAttentionOutput[None]: ...
@overload
def merge_attention_states(
    out: Tensor, lse: Tensor, entropy: None = None, max_logit: None = None
) -> EntropyAttentionOutput[None, None]: ...
@overload
def merge_attention_states(
    out: Tensor, lse: Tensor, entropy: Tensor | None = None, max_logit: Tensor | None = None
) -> EntropyAttentionOutput[Tensor | None, Tensor | None]: ...
def merge_attention_states(
    out: Tensor, lse: Tensor, entropy: Tensor | None = None, max_logit: Tensor | None = None
) -> EntropyAttentionOutput[Any, Any]:
    """The attention over the union of disjoint sets of keys, from those over each of them: ring attention, split keys, pages.

    With w_i = exp(lse_i - lse) over the N states::

        lse = log Σ exp(lse_i)    out = Σ w_i out_i    entropy = Σ w_i (entropy_i - log w_i)    max_logit = max max_logit_i

    Args:
        out: [N, ..., D]; states stacked in the first dimension.
        lse, entropy, max_logit: [N, ...]; a state without keys has lse = -inf. entropy and max_logit may be None. The weights are as
            exact as the differences of lse: where it lies at 1e8, float32 has steps of 8.

    Returns:
        The same without N. All but max_logit have gradients. A row that is empty in every state is an empty row.

    Raises:
        ValueError: shapes that do not fit; the message names the argument.
    """
    none = torch.empty(0, device=getattr(lse, "device", None))
    merged = call(
        torch.ops.isentrope.merge_attention_states,
        out, lse, none if entropy is None else entropy, none if max_logit is None else max_logit
    )
    return EntropyAttentionOutput(
        merged[0], merged[1], None if entropy is None else merged[2], None if max_logit is None else merged[3]
    )
