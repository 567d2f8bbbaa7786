"""Modules over the ops: EntropyAttention, and what turns its entropy into a share of the largest one possible; those of
isentrope.sigma, of isentrope.linear, with their feature_maps, and of isentrope.hierarchical."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from isentrope import feature_maps
from isentrope.hierarchical import HierarchicalAttention, HierarchicalSelfAttention, convert_to_hierarchical, revert_hierarchical, set_tree, tree_of_parents
from isentrope.linear import DeltaState, GatedDeltaNet, LinearAttention, effective_rank, weight_entropy
from isentrope.ops import entropy_attention
from isentrope.rotary import rotate
from isentrope.sigma import LayerStep, SigmaConv2d, SigmaLinear, convert_to_sigma, fold, power_step

__all__ = [
    "DeltaState",
    "EntropyAttention",
    "GatedDeltaNet",
    "HierarchicalAttention",
    "HierarchicalSelfAttention",
    "LayerStep",
    "LinearAttention",
    "SigmaConv2d",
    "SigmaLinear",
    "convert_to_hierarchical",
    "convert_to_sigma",
    "effective_rank",
    "feature_maps",
    "fold",
    "normalized_entropy",
    "power_step",
    "revert_hierarchical",
    "set_tree",
    "tree_of_parents",
    "visible_keys",
    "weight_entropy",
]


class EntropyAttention(nn.Module):
    """Multi-head self-attention that can return the entropy of its rows and be trained on it.

    With W_q, W_k, W_v, W_o the four projections, head h reading key head h // (H // G), natural logarithms::

        s_tj = softcap · tanh(q_t·k_j / (√D · softcap)) / temperature        p_t = softmax(s_t) over the keys that t sees
        out_t = W_o concat_h Σ_j p_tj v_j                                    entropy_t = -Σ_j p_tj log p_tj   (nats)

    The parameters have the names of Hugging Face's Llama and Qwen3 (q_proj, k_proj, v_proj, o_proj, q_norm, k_norm), so that
    their attention weights load as they are.

    Args:
        hidden_size: C, of the input and the output.
        num_attention_heads: H query heads.
        num_key_value_heads: G key/value heads, a divisor of num_attention_heads; num_attention_heads by default.
        head_dim: D, a multiple of 8 up to 256; hidden_size / num_attention_heads by default.
        bias: of all four projections.
        causal: position t sees positions up to t.
        window: causal only; position t sees itself and the window - 1 positions before it.
        softcap: above 0.
        qk_norm: RMSNorm over D of each query and key, with a learned weight, before the rotation (Qwen3).
        rope_theta: rotates pairs (i, i + D/2) of queries and keys by position · rope_theta^(-2i/D), as Llama does; None: not at all.
        temperature: "head": a learned temperature a head; "row": one a head and position (Entropy-guided attention,
            arXiv 2501.03489), which needs `max_position_embeddings`, the most positions there will be. What is learned is its logarithm,
            log_temperature [H] or [H, max_position_embeddings], from 0. None: 1.
        watch: after each forward last_entropy and last_max_logit hold those of the op, without gradient.

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
        bias: bool = False,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        qk_norm: bool = False,
        rope_theta: float | None = None,
        temperature: str | None = None,
        max_position_embeddings: int | None = None,
        watch: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        whole = {"hidden_size": hidden_size, "num_attention_heads": num_attention_heads, "num_key_value_heads": num_key_value_heads, "head_dim": head_dim, "window": window, "max_position_embeddings": max_position_embeddings}
        for name, number in whole.items():
            if not isinstance(number, int) and (number is not None or name in ("hidden_size", "num_attention_heads")):
                raise TypeError(f"{name} is {number!r}; wanted an integer")
        if num_attention_heads < 1 or num_key_value_heads < 1 or num_attention_heads % num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {num_attention_heads} and num_key_value_heads is {num_key_value_heads}; wanted the first a "
                "multiple of the second"
            )
        if head_dim is None:
            if hidden_size % num_attention_heads:
                raise ValueError(f"hidden_size is {hidden_size} and num_attention_heads is {num_attention_heads}; wanted a multiple of num_attention_heads, or head_dim given")
            head_dim = hidden_size // num_attention_heads
        if head_dim % 8 or not 8 <= head_dim <= 256:
            raise ValueError(f"head_dim is {head_dim}; wanted a multiple of 8 up to 256")
        if window is not None and (window < 1 or not causal):
            raise ValueError(f"window is {window} and causal is {causal}; wanted a window of at least 1 on causal attention, or None")
        for name, number in {"softcap": softcap, "rope_theta": rope_theta}.items():
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{name} is {number}; wanted above 0, or None")
        if temperature not in (None, "head", "row"):
            raise ValueError(f"temperature is {temperature!r}; wanted None, 'head' or 'row'")
        if (temperature == "row") != (max_position_embeddings is not None):
            raise ValueError(f"temperature is {temperature!r} and max_position_embeddings is {max_position_embeddings}; 'row', and 'row' alone, needs it")
        if max_position_embeddings is not None and max_position_embeddings < 1:
            raise ValueError(f"max_position_embeddings is {max_position_embeddings}; wanted at least 1")
        self.num_attention_heads: int = num_attention_heads
        self.num_key_value_heads: int = num_key_value_heads
        self.head_dim: int = head_dim
        self.causal: bool = causal
        self.window: int | None = window
        self.softcap: float | None = softcap
        self.rope_theta: float | None = rope_theta
        self.watch: bool = watch
        made: Any = {"device": device, "dtype": dtype}
        self.q_proj: nn.Linear = nn.Linear(hidden_size, num_attention_heads * head_dim, bias, **made)
        self.k_proj: nn.Linear = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias, **made)
        self.v_proj: nn.Linear = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias, **made)
        self.o_proj: nn.Linear = nn.Linear(num_attention_heads * head_dim, hidden_size, bias, **made)
        self.q_norm: nn.Module = nn.RMSNorm(head_dim, eps=1e-6, **made) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.RMSNorm(head_dim, eps=1e-6, **made) if qk_norm else nn.Identity()
        shape: Any = {None: None, "head": (num_attention_heads,), "row": (num_attention_heads, max_position_embeddings)}[temperature]
        self.log_temperature: nn.Parameter | None = None if shape is None else nn.Parameter(torch.zeros(shape, **made))
        self.last_entropy: Tensor | None = None
        self.last_max_logit: Tensor | None = None

    @overload
    def forward(
        self, x: Tensor, *, key_lengths: Tensor | None = ..., cu_seqlens: Tensor | None = ..., return_entropy: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, *, key_lengths: Tensor | None = ..., cu_seqlens: Tensor | None = ..., return_entropy: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self, x: Tensor, *, key_lengths: Tensor | None = ..., cu_seqlens: Tensor | None = ..., return_entropy: bool
    ) -> Tensor | tuple[Tensor, Tensor]: ...
    def forward(
        self,
        x: Tensor,
        *,
        key_lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_entropy: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of x over itself.

        Args:
            x: [B, T, C]; [total, C] with cu_seqlens.
            key_lengths: [B] integers from 0 to T; positions at and after it are padding that no position sees. (What comes out
                at the padding itself is of no meaning.)
            cu_seqlens: [sequences + 1] integers, 0 first, then where each sequence ends; each attends to itself alone, and its
                positions count from 0.
            return_entropy: also return the entropy, with gradient.

        Returns:
            out like x, or (out, entropy [B, H, T] in nats, float32 or float64; [total, H] with cu_seqlens).

        Raises:
            ValueError: x has more positions than max_position_embeddings, another width, or not 3 dimensions (2 with cu_seqlens).
        """
        dims = 3 if cu_seqlens is None else 2
        C = self.q_proj.in_features
        if x.dim() != dims or x.shape[-1] != C:
            raise ValueError(f"x has shape {list(x.shape)}; wanted [B, T, {C}], or [total, {C}] with cu_seqlens")
        # One token a row of [.., H, D]; the op takes it as it lies.
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_norm(q), self.k_norm(k)
        position = _positions(x.shape[-2], x.device, cu_seqlens)  # [T]
        if self.rope_theta is not None:
            q, k = rotate(q, position, self.rope_theta), rotate(k, position, self.rope_theta)
        if cu_seqlens is None:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        wants = return_entropy or self.watch
        out, _, entropy, max_logit = entropy_attention(
            q,
            k,
            v,
            causal=self.causal,
            window=self.window,
            softcap=self.softcap,
            temperature=self._temperature(position, q.dtype, packed=cu_seqlens is not None),
            key_lengths=key_lengths,
            cu_seqlens=cu_seqlens,
            return_entropy=wants,
        )
        if self.watch:
            self.last_entropy, self.last_max_logit = entropy.detach(), max_logit.detach()
        if cu_seqlens is None:
            out = out.transpose(1, 2)
        out = self.o_proj(out.flatten(-2))
        return (out, entropy) if return_entropy else out

    def _temperature(self, position: Tensor, dtype: torch.dtype, packed: bool) -> Tensor | None:
        if self.log_temperature is None:
            return None
        log_t: Tensor = self.log_temperature
        if log_t.dim() == 2:
            most = log_t.shape[1]
            if packed:
                log_t = log_t[:, position]  # a sequence beyond max_position_embeddings is an index error
            elif position.shape[0] > most:
                raise ValueError(f"x has {position.shape[0]} positions; wanted at most max_position_embeddings, which is {most}")
            else:
                log_t = log_t[:, : position.shape[0]]
        return log_t.to(torch.promote_types(dtype, torch.float32)).exp()

    def extra_repr(self) -> str:
        shown = ("num_attention_heads", "num_key_value_heads", "head_dim", "causal", "window", "softcap", "rope_theta")
        return ", ".join(f"{name}={value}" for name in shown if (value := getattr(self, name)) is not None)


def visible_keys(
    queries: int,
    keys: int,
    *,
    causal: bool,
    window: int | None = None,
    key_lengths: Tensor | None = None,
    query_start: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """n, the number of keys that each row of entropy_attention sees, by the meaning its options have there.

    Args:
        queries, keys: T and S; both the total with cu_seqlens.
        device: of the result where no tensor is given.

    Returns:
        int64 [B, T]; [1, T] where neither key_lengths nor query_start is given; [total] with cu_seqlens.
    """
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window is {window} and causal is {causal}; wanted a window of at least 1 on causal attention, or None")
    given = [x for x in (key_lengths, query_start, cu_seqlens) if x is not None]
    device = given[0].device if given else device
    if cu_seqlens is not None:
        place = _positions(queries, device, cu_seqlens)
        end = place + 1 if causal else (cu_seqlens[1:] - cu_seqlens[:-1]).long()[_sequences(queries, cu_seqlens)]
    else:
        start = torch.full((1,), keys - queries, device=device) if query_start is None else query_start.long()
        place = start if start.dim() == 2 else start[:, None] + torch.arange(queries, device=device)  # [B, T]
        end = torch.full_like(place, keys) if key_lengths is None else key_lengths.long()[:, None].expand(-1, queries)
        end = torch.minimum(end, place + 1) if causal else end + 0 * place
    first = torch.zeros_like(place) if window is None else (place - window + 1).clamp(min=0)
    return (end - first).clamp(min=0)


def normalized_entropy(entropy: Tensor, keys: Tensor) -> Tensor:
    """H / log n: 0 where a row looks at one key alone, 1 where at all n alike.

    Args:
        entropy: [B, H, T] nats, or [total, H].
        keys: [B, T] or [1, T], or [total]: n of visible_keys. Rows with fewer than two keys give 0; leave them out of a mean.

    Returns:
        Like entropy, with its gradient.
    """
    n = keys.unsqueeze(1 if entropy.dim() == 3 else -1)
    most = n.clamp(min=2).to(entropy.dtype).log()
    return torch.where(n > 1, entropy / most, 0)


def _sequences(total: int, cu_seqlens: Tensor) -> Tensor:
    """[total]: the sequence that each row belongs to."""
    return torch.searchsorted(cu_seqlens, torch.arange(total, device=cu_seqlens.device, dtype=cu_seqlens.dtype), right=True) - 1


def _positions(rows: int, device: torch.device | str | None, cu_seqlens: Tensor | None) -> Tensor:
    """[rows]: where each row stands in its sequence, from 0."""
    index = torch.arange(rows, device=device)
    return index if cu_seqlens is None else index - cu_seqlens[_sequences(rows, cu_seqlens)]
