"""Attention tied in blocks by a tree over the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call

if TYPE_CHECKING:
    from typing import Generic

    from typing_extensions import TypeVar

    # A generic NamedTuple can be made from Python 3.11 on, hence the second class.
    _Entropy = TypeVar("_Entropy", bound=Tensor | None, default=Tensor)

    class HierarchicalAttentionOutput(NamedTuple, Generic[_Entropy]):
        out: Tensor
        entropy: _Entropy
        log_partition: Tensor

else:

    class HierarchicalAttentionOutput(NamedTuple):
        """What hierarchical_attention returns. Statistics are float32, or float64 for float64 q."""

        out: Tensor
        entropy: Tensor | None
        log_partition: Tensor


@overload
def hierarchical_attention(
    q: Tensor, k: Tensor, v: Tensor, *, branching: int | None = ..., tree: Sequence[Tensor] | None = ..., key_lengths: Tensor | None = ...,
    mask: Tensor | None = ..., position: Tensor | None = ..., scale: float | None = ..., return_entropy: Literal[True] = ...,
) -> HierarchicalAttentionOutput: ...  # fmt: skip
@overload
def hierarchical_attention(
    q: Tensor, k: Tensor, v: Tensor, *, branching: int | None = ..., tree: Sequence[Tensor] | None = ..., key_lengths: Tensor | None = ...,
    mask: Tensor | None = ..., position: Tensor | None = ..., scale: float | None = ..., return_entropy: Literal[False],
) -> HierarchicalAttentionOutput[None]: ...  # fmt: skip
@overload
def hierarchical_attention(
    q: Tensor, k: Tensor, v: Tensor, *, branching: int | None = ..., tree: Sequence[Tensor] | None = ..., key_lengths: Tensor | None = ...,
    mask: Tensor | None = ..., position: Tensor | None = ..., scale: float | None = ..., return_entropy: bool,
) -> HierarchicalAttentionOutput[Tensor | None]: ...  # fmt: skip
def hierarchical_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    branching: int | None = None,
    tree: Sequence[Tensor] | None = None,
    key_lengths: Tensor | None = None,
    mask: Tensor | None = None,
    position: Tensor | None = None,
    scale: float | None = None,
    return_entropy: bool = True,
) -> HierarchicalAttentionOutput[Any]:
    """Attention of all tokens to all whose weights are tied in blocks by a tree, with the entropy of each row.

    The leaves of the tree are the tokens, the children of a node are siblings. Among all weights θ whose rows sum to 1 and that are constant
    on A × C for siblings A and C, those nearest to the softmax of s_ij = scale · q_i·k_j: they minimise Σ_i KL(θ_i ‖ softmax_i). With |A|
    tokens below A, s_AC the mean of s over A × C, plus ε(A)·ε(C), and f(i) = s_ii + ε(i)·ε(i) of a token::

        log Z_A = log(exp(f(A)) + Σ_C |C| exp(s_AC)) over the siblings C      f(parent) = Σ_A |A| / |parent| · log Z_A
        θ_ij = exp(s_AC) / Z_A · Π exp(f(A')) / Z_A'    i in A, j in C, A' the nodes above A
        out_i = Σ_j θ_ij v_j      entropy_i = -Σ_j θ_ij log θ_ij  (nats)

    s_AC is the product of the means of q and k: T tokens in families of b take O(T b D) where the softmax takes O(T² D). A tree of one family is the
    softmax itself. Not causal: what a token gets depends on the tokens after it.

    Args:
        q: [B, H, T, D], of float32, bfloat16, float16 or float64; computed in float32, or float64 for float64.
        k, v: [B, G, T, D] of q's dtype; H a multiple of G.
        branching: at least 2: families of so many neighbours, families of so many of these, up to one root; the last of a level may
            have fewer. From T on a single family.
        tree: instead, the families of each level from the tokens up: [families, m] or [B, families, m] integers, the nodes of the level below
            (of the first: the tokens) that each has, -1 for none. A node is of one family at most. Several families in the last level
            are trees apart. isentrope.nn.tree_of_parents makes it.
        key_lengths: [B] integers from 0 to T; tokens at and after it are padding, which nothing reads and whose rows are 0.
        mask: [B, T] bool; where it is false is padding, too.
        position: ε of each place in a family, [m, E], or [H, m, E] for each head, or [levels, H, m, E]; m at least the largest family. Has a
            gradient.
        scale: 1/√D by default.
        return_entropy: without it entropy is None.

    Returns:
        (out [B, H, T, D] like q, entropy [B, H, T], log_partition [B, H, roots]), all with gradients to q, k, v and position. log_partition is f of the
        root, the mean over its tokens of Σ_j θ_ij (s_ij - log θ_ij): the mean of the softmax's own lse less it is the mean of KL(θ_i ‖ softmax_i).
        A token that is in no family gives 0.

    Raises:
        ValueError, TypeError: an argument that is not as above; the message names it. Values of tree are looked at on the CPU alone, and not
            while torch.compile or a transform traces; those of key_lengths are not.

    Under autocast q, k and v are cast as scaled_dot_product_attention's are.

    Source: Hierarchical Self-Attention (Amizadeh et al., arXiv:2509.15448), whose energies are squared distances of normalised q and k: minus
    these logits, up to a constant.
    """
    out, entropy, log_partition = call(
        torch.ops.isentrope.hierarchical_attention,
        q,
        k,
        v,
        branching=branching,
        tree=tree,
        key_lengths=key_lengths,
        mask=mask,
        position=position,
        scale=scale,
        return_entropy=return_entropy,
    )
    return HierarchicalAttentionOutput(out, entropy if return_entropy else None, log_partition)
