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
    cu_seqlens: Tensor | None = ..., max_seqlen: int | None = ..., block_mask: Tensor | None = ..., block_size: int | None = ...,
    gates: Tensor | None = ..., sinks: Tensor | None = ..., slopes: Tensor | None = ..., return_entropy: Literal[True] = ...,
) -> EntropyAttentionOutput: ...  # fmt: skip
@overload
def entropy_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = ..., softcap: float | None = ..., scale: float | None = ...,
    temperature: Tensor | None = ..., key_lengths: Tensor | None = ..., query_start: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., max_seqlen: int | None = ..., block_mask: Tensor | None = ..., block_size: int | None = ...,
    gates: Tensor | None = ..., sinks: Tensor | None = ..., slopes: Tensor | None = ..., return_entropy: Literal[False],
) -> EntropyAttentionOutput[None]: ...  # fmt: skip
@overload
def entropy_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = ..., softcap: float | None = ..., scale: float | None = ...,
    temperature: Tensor | None = ..., key_lengths: Tensor | None = ..., query_start: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., max_seqlen: int | None = ..., block_mask: Tensor | None = ..., block_size: int | None = ...,
    gates: Tensor | None = ..., sinks: Tensor | None = ..., slopes: Tensor | None = ..., return_entropy: bool,
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
    block_mask: Tensor | None = None,
    block_size: int | None = None,
    gates: Tensor | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    return_entropy: bool = True,
) -> EntropyAttentionOutput[Any, Any]:
    """Exact softmax attention and the entropy of each of its rows, from one pass over the keys; no T × S matrix exists.

    For every query, over the keys j that it sees, natural logarithms::

        s_j = softcap · tanh(scale · q·k_j / softcap) / temperature          p = softmax(s)
        out = Σ p_j v_j    lse = log Σ exp(s_j)    entropy = -Σ p_j log p_j  (nats)    max_logit = max s_j

    With ``slopes`` a logit is less by slope · |distance| before it is divided by the temperature; with ``gates`` log g is added to
    it after that; with ``sinks`` the softmax has a column more. What is not given costs nothing.

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
            ``query_start = key_lengths - T``. Or [B, T] integers from -1 to S that do not fall along T, the key that each query
            sees last: for queries that are not neighbours.
        cu_seqlens: [sequences + 1] integers, 0 first, then where each sequence ends: q is [total, H, D], k and v are [total, G, D],
            statistics are [total, H], and a row sees keys of its own sequence alone.
        max_seqlen: with cu_seqlens, at least the longest sequence; spares a GPU blocks that have nothing to do.
        block_mask: [B, H, ⌈T/b⌉, ⌈S/b⌉] bool with b = block_size: the rows of a block see the keys of those blocks alone that are
            True, of which causal, window and lengths leave what they leave anyway. Or [B, H, ⌈T/b⌉, n] integers: the columns of
            those blocks, -1 where there are fewer than n. H may be 1, one for all heads. Time is that of what is kept, in both
            directions; so is the entropy. Packed: one for each sequence, of max_seqlen rows and keys. It has no gradient.
        block_size: with block_mask, a multiple of 16; of 64 in bfloat16 on a CPU with products of its own.
        gates: with block_mask, [B, H or 1, ⌈T/b⌉ or 1, ⌈S/b⌉], at least 0: factors of the weights in each block, before they are
            normalised. A block whose gate is 0 is not kept, and its gate has the gradient 0: nothing of it is computed.
        sinks: [H] logits of a column without a value, as gpt-oss has them: the weights of a row sum to 1 - p_sink. It is one of the
            row's columns in lse, entropy and max_logit, and not divided by the temperature.
        slopes: [H] ALiBi: slope · |query's place - key| is taken off the logit, before the temperature. No gradient.
        return_entropy: without it entropy is None.

    Returns:
        (out like q, lse, entropy, max_logit), statistics [B, H, T]. out, lse and entropy have gradients (to q, k, v,
        temperature, gates and sinks); max_logit has none. An entropy that enters no loss costs the backward pass nothing; detach() one that is
        only watched and kept. A row that sees no key gives 0, -inf, 0, -inf and no gradient; with a sink 0, sink, 0, sink. NaN in q stays
        in its row, NaN in k or v in the rows that see the key; on a GPU it may reach others of the same tile.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument. Values of
            key_lengths, query_start, cu_seqlens, temperature, gates and columns of blocks are looked at on the CPU alone; on a GPU
            lengths are bounded, columns that are not there are left out, and a temperature of 0 or below or a gate below 0 gives NaN.
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
        block_mask=block_mask,
        block_size=block_size,
        gates=gates,
        sinks=sinks,
        slopes=slopes,
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


# ---- gathered_attention ----------------------------------------------------------------------------------------------


@overload
def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, key_index: Tensor | None = ..., causal: bool, softcap: float | None = ...,
    scale: float | None = ..., return_entropy: Literal[True] = ...,
) -> EntropyAttentionOutput: ...  # fmt: skip
@overload
def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, key_index: Tensor | None = ..., causal: bool, softcap: float | None = ...,
    scale: float | None = ..., return_entropy: Literal[False],
) -> EntropyAttentionOutput[None]: ...  # fmt: skip
@overload
def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, key_index: Tensor | None = ..., causal: bool, softcap: float | None = ...,
    scale: float | None = ..., return_entropy: bool,
) -> EntropyAttentionOutput[Tensor | None]: ...  # fmt: skip
def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    *,
    key_index: Tensor | None = None,
    causal: bool,
    softcap: float | None = None,
    scale: float | None = None,
    return_entropy: bool = True,
) -> EntropyAttentionOutput[Any, Any]:
    """Softmax attention inside clusters of positions, with the entropy of each gathered query: routed attention.

    For the i-th query of cluster c, which stands at position ``index[b, h, c, i]``, over the keys of the same cluster::

        s_j = scale · q·k_j    p = softmax(s)    out = Σ p_j v_j    lse = log Σ exp(s_j)    entropy = -Σ p_j log p_j  (nats)

    A position may be in several clusters, or in none; scatter_mean brings what they say of it together.

    Args:
        q: [B, H, T, D], as entropy_attention takes it.
        k, v: [B, G, S, D]; H a multiple of G.
        index: [B, H, C, w] integers, the positions of q (and of k, v without key_index) that each of C clusters gathers, in any
            order; -1 for none. None may be twice in a cluster, where it would be two keys.
        key_index: [B, H, C, m] integers, the positions of k and v that each cluster gathers, where they are others.
        causal: a query sees the keys whose position is not after its own; by position, not by rank in the cluster.
        softcap, scale: as of entropy_attention.
        return_entropy: without it entropy is None.

    Returns:
        (out [B, H, C, w, D] like q, lse, entropy, max_logit [B, H, C, w]). out, lse and entropy have gradients, to q, k and v. A
        query of -1, or one that sees no key, gives 0, -inf, 0, -inf.

    Raises:
        ValueError, TypeError: as entropy_attention's. Values of index and key_index are looked at on the CPU alone, and not while
            torch.compile or a transform traces.

    Under autocast q, k and v are cast as scaled_dot_product_attention's are.

    Source: Routing Transformer (arXiv:2003.05997), whose published code masks by rank in the cluster: right only where queries and
    keys are the same positions.
    """
    out, lse, entropy, max_logit = call(
        torch.ops.isentrope.gathered_attention,
        q,
        k,
        v,
        index,
        key_index=key_index,
        causal=causal,
        softcap=softcap,
        scale=scale,
        return_entropy=return_entropy,
    )
    return EntropyAttentionOutput(out, lse, entropy if return_entropy else None, max_logit)


# ---- scatter_mean ----------------------------------------------------------------------------------------------------


def scatter_mean(x: Tensor, index: Tensor, length: int) -> Tensor:
    """At each position the mean of what clusters say of it, 0 where nothing does: gathered_attention's way back.

    Args:
        x: [B, H, C, w, D] or [B, H, C, w]; float32, bfloat16, float16 or float64. Sums are float32, or float64 for float64 x.
        index: [B, H, C, w] integers, the position that each is of; -1: of none.
        length: T, the number of positions.

    Returns:
        [B, H, length, D] or [B, H, length], like x, with its gradient.

    Raises:
        ValueError, TypeError: a shape or dtype that is not as above, or a position that is not below length; the message names the
            argument. Values of index are looked at on the CPU alone, and not while torch.compile or a transform traces.

    Source: Routing Transformer (arXiv:2003.05997); an exact mean, not a sum over the count and 1e-5.
    """
    mean: Tensor = call(torch.ops.isentrope.scatter_mean, x, index, length)
    return mean
