"""HierarchicalAttention, a module over isentrope.hierarchical_attention; what puts it into encoders of transformers and takes it out
again; and trees. All of it is public as isentrope.nn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from isentrope.linear import head_sizes
from isentrope.ops import hierarchical_attention
from isentrope.rotary import rotate

__all__ = ["HierarchicalAttention", "HierarchicalSelfAttention", "convert_to_hierarchical", "revert_hierarchical", "set_tree", "tree_of_parents"]


def tree_of_parents(*parents: Tensor) -> list[Tensor]:
    """The tree of hierarchical_attention from the parent of each node, level by level: tokens → sentences → documents → the root.

    Args:
        parents: of each level from the tokens up, [nodes] or [B, nodes] integers: the node of the next level that each is of, from 0; -1 for none. A
            level has as many nodes as the next tensor tells of, the last as many as its largest number says.

    Returns:
        [families, m] or [B, families, m] int64 of each level: the nodes that each family has, in their order, then -1; m is the largest
        family's size, which the tensors' values are read for.

    Raises:
        ValueError, TypeError: a tensor that is not as above; the message names it.
    """
    tree = []
    for level, (parent, above) in enumerate(itertools.zip_longest(parents, parents[1:])):
        name = f"parents[{level}]"
        if not isinstance(parent, Tensor) or parent.is_floating_point() or parent.dtype in (torch.bool, torch.complex64, torch.complex128):
            raise TypeError(f"{name} {f'has dtype {parent.dtype}' if isinstance(parent, Tensor) else f'is {parent!r}'}; wanted integers")
        if parent.dim() not in (1, 2):
            raise ValueError(f"{name} has shape {list(parent.shape)}; wanted [nodes] or [B, nodes]")
        row = parent.long().view(-1, parent.shape[-1])
        least, most = (int(row.min()), int(row.max())) if row.numel() else (-1, -1)
        if least < -1:
            raise ValueError(f"{name} holds {least}; wanted -1 for none, or the number of a parent from 0")
        families = most + 1 if above is None else above.shape[-1]
        if most >= families:
            raise ValueError(f"parents[{level + 1}] is of {families} nodes; wanted at least {most + 1}, as {name} has parents up to {most}")
        order = row.masked_fill(row < 0, families).argsort(dim=-1, stable=True)
        of = row.gather(-1, order)
        count = torch.zeros(row.shape[0], families + 1, dtype=torch.long, device=row.device).scatter_add(1, row + 1, torch.ones_like(row))[:, 1:]
        size = int(count.max()) if count.numel() else 0
        rank = torch.arange(row.shape[1], device=row.device) - (count.cumsum(-1) - count).gather(-1, of.clamp(min=0))
        children = torch.full((row.shape[0], families * size + 1), -1, device=row.device)  # what is of no family goes to the last
        children.scatter_(1, (of * size + rank).masked_fill(of < 0, families * size), order)
        children = children[:, :-1].unflatten(1, (families, size))
        tree.append(children if parent.dim() == 2 else children[0])
    return tree


class HierarchicalAttention(nn.Module):
    """Multi-head self-attention tied in blocks by a tree over the tokens, with the entropy of its rows: bidirectional, for encoders.

    The projections of EntropyAttention around isentrope.hierarchical_attention, under the same names (q_proj, k_proj, v_proj, o_proj, q_norm, k_norm).

    Args:
        hidden_size: C, of the input and the output.
        num_attention_heads: H query heads.
        num_key_value_heads: G key/value heads, a divisor of num_attention_heads; num_attention_heads by default.
        head_dim: D; hidden_size / num_attention_heads by default.
        branching: at least 2, of the balanced tree that is taken where forward is given none.
        bias: of all four projections.
        qk_norm: RMSNorm over D of each query and key, with a learned weight, before the rotation.
        rope_theta: rotary positions of queries and keys, before they are pooled; None: none.
        sibling_features: E, the size of a learned ε [H, branching, E] of each place in a family, drawn of std 0.02; needs branching, which no
            family of a tree may exceed then. None: none.
        watch: after each forward last_entropy holds that of the op, without gradient.

    Raises:
        ValueError, TypeError: an option that is not as above; the message names it.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        *,
        branching: int | None = None,
        bias: bool = False,
        qk_norm: bool = False,
        rope_theta: float | None = None,
        sibling_features: int | None = None,
        watch: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        for name, number in {"hidden_size": hidden_size, "num_attention_heads": num_attention_heads, "num_key_value_heads": num_key_value_heads, "head_dim": head_dim, "branching": branching, "sibling_features": sibling_features}.items():
            if not isinstance(number, int) and (number is not None or name in ("hidden_size", "num_attention_heads")):
                raise TypeError(f"{name} is {number!r}; wanted an integer")
        num_key_value_heads, head_dim = head_sizes(hidden_size, num_attention_heads, num_key_value_heads, head_dim)
        if rope_theta is not None and head_dim % 2:
            raise ValueError(f"head_dim is {head_dim} and rope_theta is {rope_theta}; wanted head_dim even where rope_theta rotates")
        if rope_theta is not None and not rope_theta > 0:
            raise ValueError(f"rope_theta is {rope_theta}; wanted above 0, or None")
        if branching is not None and branching < 2:
            raise ValueError(f"branching is {branching}; wanted at least 2, or None")
        if sibling_features is not None and (sibling_features < 1 or branching is None):
            raise ValueError(f"sibling_features is {sibling_features} and branching is {branching}; wanted at least 1 feature, and branching with it")
        self.num_attention_heads: int = num_attention_heads
        self.num_key_value_heads: int = num_key_value_heads
        self.head_dim: int = head_dim
        self.branching: int | None = branching
        self.rope_theta: float | None = rope_theta
        self.watch: bool = watch
        made: Any = {"device": device, "dtype": dtype}
        self.q_proj: nn.Linear = nn.Linear(hidden_size, num_attention_heads * head_dim, bias, **made)
        self.k_proj: nn.Linear = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias, **made)
        self.v_proj: nn.Linear = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias, **made)
        self.o_proj: nn.Linear = nn.Linear(num_attention_heads * head_dim, hidden_size, bias, **made)
        self.q_norm: nn.Module = nn.RMSNorm(head_dim, eps=1e-6, **made) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.RMSNorm(head_dim, eps=1e-6, **made) if qk_norm else nn.Identity()
        # From 0 the gradient of ε·ε would stay 0.
        shape = None if sibling_features is None or branching is None else (num_attention_heads, branching, sibling_features)
        self.position: nn.Parameter | None = None if shape is None else nn.Parameter(torch.empty(shape, **made).normal_(std=0.02))
        self.last_entropy: Tensor | None = None

    @overload
    def forward(self, x: Tensor, *, tree: Sequence[Tensor] | None = ..., key_lengths: Tensor | None = ..., mask: Tensor | None = ..., return_entropy: Literal[False] = ...) -> Tensor: ...  # fmt: skip
    @overload
    def forward(self, x: Tensor, *, tree: Sequence[Tensor] | None = ..., key_lengths: Tensor | None = ..., mask: Tensor | None = ..., return_entropy: Literal[True]) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    @overload
    def forward(self, x: Tensor, *, tree: Sequence[Tensor] | None = ..., key_lengths: Tensor | None = ..., mask: Tensor | None = ..., return_entropy: bool) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
    def forward(
        self,
        x: Tensor,
        *,
        tree: Sequence[Tensor] | None = None,
        key_lengths: Tensor | None = None,
        mask: Tensor | None = None,
        return_entropy: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of x over itself.

        Args:
            x: [B, T, C].
            tree: of the op, in the place of branching.
            key_lengths, mask: of the op: what is padding.
            return_entropy: also return the entropy, with gradient.

        Returns:
            out [B, T, C], or (out, entropy [B, H, T] in nats, float32 or float64).

        Raises:
            ValueError: x has another width or not 3 dimensions; there is neither branching nor tree; or as the op's.
        """
        C = self.q_proj.in_features
        if x.dim() != 3 or x.shape[-1] != C:
            raise ValueError(f"x has shape {list(x.shape)}; wanted [B, T, {C}]")
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope_theta is not None:
            place = torch.arange(x.shape[1], device=x.device)
            q, k = rotate(q, place, self.rope_theta), rotate(k, place, self.rope_theta)
        out, entropy, _ = hierarchical_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            branching=self.branching if tree is None else None,
            tree=tree,
            key_lengths=key_lengths,
            mask=mask,
            position=self.position,
            return_entropy=return_entropy or self.watch,
        )
        if self.watch:
            self.last_entropy = entropy.detach()
        out = self.o_proj(out.transpose(1, 2).flatten(-2))
        return (out, entropy) if return_entropy else out

    def extra_repr(self) -> str:
        shown = ("num_attention_heads", "num_key_value_heads", "head_dim", "branching", "rope_theta")
        return ", ".join(f"{name}={value}" for name in shown if (value := getattr(self, name)) is not None)


# ---- encoders of transformers ----------------------------------------------------------------------------------------


class HierarchicalSelfAttention(nn.Module):
    """What convert_to_hierarchical puts in the place of a BERT-like self-attention: its projections, around hierarchical_attention.

    last_entropy [B, H, T] (nats) is that of the last forward, without gradient, where watch is set. There is no matrix of weights: none is returned,
    and the dropout of attention's weights, which training has there, is left out.
    """

    def __init__(self, original: nn.Module, branching: int | None, tree: Sequence[Tensor] | None) -> None:
        super().__init__()
        self.query: Any = original.query
        self.key: Any = original.key
        self.value: Any = original.value
        self.num_attention_heads: int = int(original.num_attention_heads)  # type: ignore[arg-type]
        self.attention_head_size: int = int(original.attention_head_size)  # type: ignore[arg-type]
        self.all_head_size: int = self.num_attention_heads * self.attention_head_size
        self.is_decoder: bool = False
        self.branching: int | None = branching
        self.tree: Sequence[Tensor] | None = tree
        self.watch: bool = False
        self.last_entropy: Tensor | None = None
        self._original: tuple[nn.Module] = (original,)  # in a tuple, so that its parameters are named once

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **options: Any) -> tuple[Tensor, None]:
        given = [name for name in ("encoder_hidden_states", "cache", "past_key_values", "past_key_value", "head_mask") if options.get(name) is not None]
        if given or any(isinstance(x, Tensor) for x in others):
            raise ValueError(f"hierarchical attention is given {given[0] if given else 'a tensor beside attention_mask'}; wanted an encoder's self-attention")
        q, k, v = (p(hidden_states).unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2) for p in (self.query, self.key, self.value))
        out, entropy, _ = hierarchical_attention(
            q, k, v, branching=self.branching if self.tree is None else None, tree=self.tree, mask=_real_of(attention_mask), return_entropy=self.watch
        )
        self.last_entropy = entropy.detach() if entropy is not None else None
        return out.transpose(1, 2).flatten(-2), None

    def extra_repr(self) -> str:
        return f"num_attention_heads={self.num_attention_heads}, branching={self.branching}" + ("" if self.tree is None else f", tree of {len(self.tree)} levels")


def _real_of(mask: Tensor | None) -> Tensor | None:
    """[B, T] bool of a mask as encoders of transformers make it: [B, T], or [B, 1, 1 or T, T] of booleans, or of numbers that are added."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask is a {type(mask).__name__}; wanted a tensor, which attn_implementation 'sdpa' and 'eager' make")
    if mask.dim() == 2:
        return mask.bool()
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise ValueError(f"attention_mask has shape {list(mask.shape)}; wanted [B, T], or [B, 1, 1 or T, T]")
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > torch.finfo(mask.dtype).min / 2
    if seen.shape[1] > 1 and not seen.is_cuda and not torch.compiler.is_compiling() and not bool((seen == seen[:, :1]).all()):
        raise ValueError("attention_mask lets rows see different keys; wanted one that leaves out padding alone")
    return seen[:, 0]


def _self_attentions(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(holder, name, module) of each self-attention with query, key and value, in the order of the layers."""
    found = []
    for holder in model.modules():
        for name, module in holder.named_children():
            like = all(isinstance(getattr(module, part, None), nn.Module) for part in ("query", "key", "value"))
            if like and hasattr(module, "num_attention_heads") and hasattr(module, "attention_head_size") and "Cross" not in type(module).__name__:
                found.append((holder, name, module))
    return found


def convert_to_hierarchical(model: nn.Module, layers: Sequence[int], *, branching: int | None = None, tree: Sequence[Tensor] | None = None) -> nn.Module:
    """Puts hierarchical_attention in the place of the softmax attention of chosen layers of an encoder of transformers, without training.

    For models whose self-attentions have query, key and value (BERT, RoBERTa, XLM-RoBERTa, ELECTRA, …). Projections stay the same modules, so that names and
    values of the weights do not change. Each layer then gives what is nearest to its softmax attention among weights tied by the tree: a tree of
    one family changes nothing; with others accuracy falls, least in later layers that alternate with layers left alone (the paper: 7, 9 and 11 of RoBERTa-base).

    Args:
        model: any module that holds such layers.
        layers: their numbers, from 0.
        branching, tree: of isentrope.hierarchical_attention, one of the two; set_tree gives another tree for other inputs.

    Returns:
        model, changed in place; revert_hierarchical undoes it.

    Raises:
        ValueError, TypeError: model has no such layer, or none of that number; a layer that is a decoder's, or has positions in its attention; a layer converted
            already; both or neither of branching and tree. Nothing is changed then. From forward: a mask that does more than leave out padding.

    Source: Hierarchical Self-Attention (arXiv:2509.15448), section on zero-shot use.
    """
    if (branching is None) == (tree is None):
        raise ValueError(f"branching is {branching} and tree is {'None' if tree is None else 'given'}; wanted one of the two")
    if branching is not None and (not isinstance(branching, int) or branching < 2):
        raise ValueError(f"branching is {branching!r}; wanted an integer of at least 2")
    found = _self_attentions(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no self-attention with query, key and value, as those of BERT and RoBERTa; wanted an encoder that has")
    chosen = []
    for layer in layers:
        if not isinstance(layer, int) or not 0 <= layer < len(found):
            raise ValueError(f"layers holds {layer!r}; wanted numbers from 0 to {len(found) - 1}")
        holder, name, module = found[layer]
        if isinstance(module, HierarchicalSelfAttention):
            raise ValueError(f"layer {layer} is hierarchical already; wanted revert_hierarchical first")
        if getattr(module, "is_decoder", False) or getattr(module, "is_causal", False):
            raise ValueError(f"layer {layer} is a decoder's, which may not see the tokens after it; wanted an encoder's")
        if getattr(module, "position_embedding_type", None) not in (None, "absolute") or hasattr(module, "distance_embedding"):
            raise ValueError(f"layer {layer} has relative positions in its attention; wanted absolute ones")
        chosen.append((holder, name, module))
    if len({id(module) for *_, module in chosen}) < len(chosen):
        raise ValueError(f"layers is {list(layers)}; wanted each number once")
    for holder, name, module in chosen:
        setattr(holder, name, HierarchicalSelfAttention(module, branching, tree).train(module.training))
    return model


def set_tree(model: nn.Module, tree: Sequence[Tensor] | None) -> nn.Module:
    """Gives every converted layer of model another tree, for the inputs that follow; None: the balanced one of branching.

    Raises:
        ValueError: no layer is converted, or one has no branching to go back to.
    """
    converted = [module for module in model.modules() if isinstance(module, HierarchicalSelfAttention)]
    if not converted:
        raise ValueError(f"{type(model).__name__} has no hierarchical layer; wanted convert_to_hierarchical first")
    if tree is None and any(module.branching is None for module in converted):
        raise ValueError("tree is None and the layers were converted without branching; wanted a tree")
    for module in converted:
        module.tree = tree
    return model


def revert_hierarchical(model: nn.Module) -> nn.Module:
    """The reverse of convert_to_hierarchical: the layers that were there, with the weights as they are now. Returns model, changed in place."""
    for holder, name, module in _self_attentions(model):
        if isinstance(module, HierarchicalSelfAttention):
            setattr(holder, name, module._original[0].train(module.training))
    return model
