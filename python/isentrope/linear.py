"""LinearAttention and GatedDeltaNet, modules over isentrope.linear_attention and gated_delta_rule, and what can be known of their weights
and states: the entropy of a row's weights, the effective rank of a state. All of it is public as isentrope.nn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from isentrope import feature_maps
from isentrope.ops import gated_delta_rule, linear_attention

__all__ = ["DeltaState", "GatedDeltaNet", "LinearAttention", "effective_rank", "weight_entropy"]


class _Decay(nn.Module):
    """log_decay = -exp(A_log) · softplus(W x + dt_bias) a token and head: A_log from log U(1, 16), softplus(dt_bias) log-uniform from 1e-3
    to 0.1, as Mamba-2 and gated delta networks have it. Neither is to have weight decay."""

    def __init__(self, hidden_size: int, heads: int, made: dict[str, Any]) -> None:
        super().__init__()
        self.proj: nn.Linear = nn.Linear(hidden_size, heads, bias=False, **made)
        self.A_log: nn.Parameter = nn.Parameter(torch.empty(heads, **made).uniform_(1, 16).log_())
        dt = torch.empty(heads, **made).uniform_(math.log(1e-3), math.log(0.1)).exp_()
        self.dt_bias: nn.Parameter = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor) -> Tensor:  # [..., T, C] → [..., T, heads] float
        wide = torch.promote_types(x.dtype, torch.float32)
        return -self.A_log.to(wide).exp() * nn.functional.softplus(self.proj(x).to(wide) + self.dt_bias.to(wide))


def head_sizes(hidden_size: int, num_attention_heads: int, num_key_value_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """G and D, checked."""
    G = num_attention_heads if num_key_value_heads is None else num_key_value_heads
    if num_attention_heads < 1 or G < 1 or num_attention_heads % G:
        raise ValueError(f"num_attention_heads is {num_attention_heads} and num_key_value_heads is {G}; wanted the first a multiple of the second")
    if head_dim is None:
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size is {hidden_size} and num_attention_heads is {num_attention_heads}; wanted a multiple of num_attention_heads, or head_dim given")
        head_dim = hidden_size // num_attention_heads
    if head_dim < 1:
        raise ValueError(f"head_dim is {head_dim}; wanted at least 1")
    return G, head_dim


class LinearAttention(nn.Module):
    """Multi-head causal linear self-attention, O(T), with a state in place of a cache.

    With φ the feature map, head h reading key head h // (H // G), a_t = exp(log_decay_t)::

        S_t = a_t S_{t-1} + φ(k_t) v_tᵀ     z_t = a_t z_{t-1} + φ(k_t)     out_t = W_o concat_h S_tᵀ φ(q_t) / (z_t·φ(q_t))

    The projections have the names of isentrope.nn.EntropyAttention's and Hugging Face's Llama.

    Args:
        hidden_size: C, of the input and the output.
        num_attention_heads: H query heads.
        num_key_value_heads: G key/value heads, a divisor of num_attention_heads; num_attention_heads by default.
        head_dim: hidden_size / num_attention_heads by default.
        feature_map: φ, a function of isentrope.nn.feature_maps or another [..., d] → [..., D].
        normalizer: divide by the row's weight.
        decay: None: 0; "head": a learned log_decay a head, -softplus(head_decay), from -1/2 to -1/512 at the start; "token": of the token, as
            GatedDeltaNet has it.
        bias: of all four projections.
        chunk: of the op.

    Raises:
        ValueError: an option that is not as above; the message names it.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        *,
        feature_map: Callable[[Tensor], Tensor] = feature_maps.elu_plus_one,
        normalizer: bool = True,
        decay: str | None = None,
        bias: bool = False,
        chunk: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        G, D = head_sizes(hidden_size, num_attention_heads, num_key_value_heads, head_dim)
        if decay not in (None, "head", "token"):
            raise ValueError(f"decay is {decay!r}; wanted None, 'head' or 'token'")
        self.num_attention_heads: int = num_attention_heads
        self.num_key_value_heads: int = G
        self.head_dim: int = D
        self.feature_map: Callable[[Tensor], Tensor] = feature_map
        self.normalizer: bool = normalizer
        self.chunk: int = chunk
        made: Any = {"device": device, "dtype": dtype}
        self.q_proj: nn.Linear = nn.Linear(hidden_size, num_attention_heads * D, bias, **made)
        self.k_proj: nn.Linear = nn.Linear(hidden_size, G * D, bias, **made)
        self.v_proj: nn.Linear = nn.Linear(hidden_size, G * D, bias, **made)
        self.o_proj: nn.Linear = nn.Linear(num_attention_heads * D, hidden_size, bias, **made)
        self.decay: _Decay | None = _Decay(hidden_size, G, made) if decay == "token" else None
        rates = torch.logspace(-1, -9, G, base=2, **made)  # softplus(log(exp(r) - 1)) = r
        self.head_decay: nn.Parameter | None = nn.Parameter(torch.log(torch.expm1(rates))) if decay == "head" else None

    @overload
    def forward(self, x: Tensor, *, state: Tensor | None = ..., key_lengths: Tensor | None = ..., cu_seqlens: Tensor | None = ..., return_state: Literal[False] = ...) -> Tensor: ...  # fmt: skip
    @overload
    def forward(self, x: Tensor, *, state: Tensor | None = ..., key_lengths: Tensor | None = ..., cu_seqlens: Tensor | None = ..., return_state: Literal[True]) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    @overload
    def forward(self, x: Tensor, *, state: Tensor | None = ..., key_lengths: Tensor | None = ..., cu_seqlens: Tensor | None = ..., return_state: bool = ...) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
    def forward(
        self,
        x: Tensor,
        *,
        state: Tensor | None = None,
        key_lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of x over itself and over what a state holds.

        Args:
            x: [B, T, C]; [total, C] with cu_seqlens.
            state: [N, G, D, E (+ 1)], of an earlier call with return_state; None: nothing before x.
            key_lengths: [B] integers from 0 to T; positions at and after it are padding.
            cu_seqlens: [sequences + 1] integers, 0 first, then where each sequence ends.
            return_state: also return the state after x.

        Returns:
            out like x, or (out, state). x may be cut anywhere, down to single tokens, and continued from the state.
        """
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.feature_map(q), self.feature_map(k)
        log_decay = self.decay(x) if self.decay is not None else None  # [..., T, G]
        if self.head_decay is not None:
            log_decay = -nn.functional.softplus(self.head_decay.float()).expand(*x.shape[:-1], -1)
        if cu_seqlens is None:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            log_decay = None if log_decay is None else log_decay.transpose(1, 2)
        out, last = linear_attention(
            q, k, v, log_decay=log_decay, state=state, normalizer=self.normalizer, key_lengths=key_lengths, cu_seqlens=cu_seqlens, chunk=self.chunk
        )
        out = self.o_proj((out.transpose(1, 2) if cu_seqlens is None else out).flatten(-2))
        return (out, last) if return_state else out


class DeltaState(NamedTuple):
    """What GatedDeltaNet keeps of a sequence."""

    matrix: Tensor  # [B, G, D, E]
    inputs: Tensor  # [B, channels, conv_size - 1]: the last inputs of the convolutions


class GatedDeltaNet(nn.Module):
    """The gated delta network's layer: short convolutions, keys and queries of length 1, the gated delta rule, a gated norm.

    With c = silu(conv(W x)) for q, k and v, a causal convolution of conv_size positions a channel::

        q = c_q / |c_q| / √D    k = c_k / |c_k|    β = sigmoid(W_b x) (twice that with allow_negative)
        log_decay = -exp(A_log) · softplus(W_a x + dt_bias)         o = gated_delta_rule(q, k, c_v, β, log_decay)
        out = W_o concat_h rms_norm(o) · silu(W_g x)

    Args:
        hidden_size: C, of the input and the output.
        num_heads: G, of queries, keys and values.
        head_dim: D of queries and keys; hidden_size / num_heads by default.
        expand_v: values have expand_v · D elements.
        conv_size: at least 1; 1 is no convolution but a factor a channel.
        allow_negative: β up to 2, so that a step may turn what the state says of its key.
        chunk: of the op.

    Raises:
        ValueError: an option that is not as above; the message names it.

    Source: Yang et al., arXiv 2412.06464; with chunks that only decay (`write`): NAtS-L.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int | None = None,
        *,
        expand_v: float = 2.0,
        conv_size: int = 4,
        allow_negative: bool = False,
        norm_eps: float = 1e-5,
        chunk: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        G, D = head_sizes(hidden_size, num_heads, None, head_dim)
        E = int(D * expand_v)
        if E < 1 or E != D * expand_v:
            raise ValueError(f"expand_v is {expand_v}; wanted a value that makes whole elements of head_dim, which is {D}")
        if conv_size < 1:
            raise ValueError(f"conv_size is {conv_size}; wanted at least 1")
        self.num_heads: int = G
        self.head_dim: int = D
        self.value_dim: int = E
        self.conv_size: int = conv_size
        self.chunk: int = chunk
        self.most_beta: float = 2.0 if allow_negative else 1.0
        made: Any = {"device": device, "dtype": dtype}
        self.q_proj: nn.Linear = nn.Linear(hidden_size, G * D, bias=False, **made)
        self.k_proj: nn.Linear = nn.Linear(hidden_size, G * D, bias=False, **made)
        self.v_proj: nn.Linear = nn.Linear(hidden_size, G * E, bias=False, **made)
        self.b_proj: nn.Linear = nn.Linear(hidden_size, G, bias=False, **made)
        self.g_proj: nn.Linear = nn.Linear(hidden_size, G * E, bias=False, **made)
        self.o_proj: nn.Linear = nn.Linear(G * E, hidden_size, bias=False, **made)
        self.decay: _Decay = _Decay(hidden_size, G, made)
        channels = G * (2 * D + E)
        self.conv: nn.Conv1d = nn.Conv1d(channels, channels, conv_size, groups=channels, bias=False, **made)
        self.o_norm: nn.RMSNorm = nn.RMSNorm(E, eps=norm_eps, **made)

    @overload
    def forward(self, x: Tensor, *, state: DeltaState | None = ..., write: Tensor | None = ..., return_state: Literal[False] = ...) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, *, state: DeltaState | None = ..., write: Tensor | None = ..., return_state: Literal[True]) -> tuple[Tensor, DeltaState]: ...  # fmt: skip
    @overload
    def forward(self, x: Tensor, *, state: DeltaState | None = ..., write: Tensor | None = ..., return_state: bool = ...) -> Tensor | tuple[Tensor, DeltaState]: ...  # fmt: skip
    def forward(
        self, x: Tensor, *, state: DeltaState | None = None, write: Tensor | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, DeltaState]:
        """x [B, T, C] → out like x, or (out, state after x).

        Args:
            x: [B, T, C].
            state: of an earlier call with return_state; None: nothing before x. x may be cut anywhere (with write: between chunks).
            write: [B, G, ⌈T / chunk⌉], the op's gate of what a chunk leaves in the state.
        """
        G, D, E = self.num_heads, self.head_dim, self.value_dim
        inputs = torch.cat([p(x) for p in (self.q_proj, self.k_proj, self.v_proj)], -1).transpose(1, 2)  # [B, channels, T]
        before = inputs.new_zeros(*inputs.shape[:2], self.conv_size - 1) if state is None else state.inputs
        inputs = torch.cat([before, inputs], -1)
        mixed = nn.functional.silu(self.conv(inputs)).transpose(1, 2)  # [B, T, channels]
        q, k, v = (c.unflatten(-1, (G, -1)).transpose(1, 2) for c in mixed.split([G * D, G * D, G * E], -1))
        q, k = nn.functional.normalize(q, dim=-1) * D**-0.5, nn.functional.normalize(k, dim=-1)
        beta = self.most_beta * self.b_proj(x).float().sigmoid().transpose(1, 2)
        out, last = gated_delta_rule(
            q, k, v, beta, self.decay(x).transpose(1, 2), write=write, state=None if state is None else state.matrix, chunk=self.chunk
        )
        gate = nn.functional.silu(self.g_proj(x).unflatten(-1, (G, E)))
        out = self.o_proj((self.o_norm(out.transpose(1, 2)) * gate).flatten(-2))
        return (out, DeltaState(last, inputs[..., inputs.shape[-1] - (self.conv_size - 1) :])) if return_state else out


def _xlogx(x: Tensor) -> Tensor:
    """x log x, 0 at 0 with a gradient that is finite there."""
    y: Tensor = torch.special.xlogy(x, torch.where(x == 0, 1, x))
    return y


def weight_entropy(q: Tensor, k: Tensor, log_decay: Tensor | None = None) -> Tensor:
    """The entropy of each row's weights of linear attention, made to sum to one: H_t = -Σ_s p_ts log p_ts, p_ts = w_ts / Σ_s w_ts, with
    w_ts = (q_t·k_s) exp(Σ_{s < l ≤ t} log_decay_l).

    For features of one element the weights of a row are q_t times those of a recurrence, q_t drops out, and Σ w and Σ w log w are
    recurrences too: O(T). For more the logarithm of q_t·k_s is no sum of functions of q_t and of k_s, so that no state holds what the
    entropy needs: then it is taken from the weights, blocks of rows at a time, O(T²) work and no T × T matrix.

    Args:
        q: [B, H, T, D] features; k: [B, G, T, D]; log_decay: [B, G, T], or None.

    Returns:
        [B, H, T] nats, float32 or float64, with gradient. NaN where it is not defined: a row with a negative weight. 0 of a row without
        weight.
    """
    (B, H, T, D), G = q.shape, k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)
    decay = torch.zeros(B, G, T, dtype=wide, device=k.device) if log_decay is None else log_decay.to(wide)
    if D == 1:
        ones, kl = torch.ones_like(k), _xlogx(k)
        total = linear_attention(ones, ones, k, log_decay=decay).out
        # Σ_s w_ts log(decay from s to t), whose step is log_decay_t · (what the weights before t have become)
        shift = decay[..., None] * (total - k)
        logs = linear_attention(ones, ones, kl + shift, log_decay=decay).out
        entropy = torch.where(total > 0, total.clamp_min(torch.finfo(wide).tiny).log() - logs / torch.where(total > 0, total, 1), 0)
        entropy = entropy.masked_fill((k < 0).cumsum(2) > 0, torch.nan)[..., 0].repeat_interleave(H // G, 1)
        return entropy.masked_fill(q[..., 0] < 0, torch.nan).masked_fill(q[..., 0] == 0, 0)
    k, sums = k.repeat_interleave(H // G, 1), decay.cumsum(-1).repeat_interleave(H // G, 1)
    rows: list[Tensor] = []
    for first in range(0, T, 256):
        end = min(first + 256, T)
        at = torch.arange(first, end, device=q.device)[:, None] >= torch.arange(end, device=q.device)
        between = (sums[..., first:end, None] - sums[..., None, :end]).masked_fill(~at, 0)
        w = (q[..., first:end, :] @ k[..., :end, :].mT * between.exp()).masked_fill(~at, 0)
        total = w.sum(-1, keepdim=True)
        p = w / torch.where(total == 0, 1, total)
        rows.append((-_xlogx(p).sum(-1)).masked_fill((w < 0).any(-1), torch.nan))
    return torch.cat(rows, -1) if rows else q.new_zeros(B, H, 0)


def effective_rank(state: Tensor) -> Tensor:
    """exp(-Σ p log p) of p = σ / Σ σ, σ the singular values of each matrix: how many directions a state uses; 1 to min(D, E), 0 of a
    state of zeros.

    Args:
        state: [..., D, E] of linear_attention (its weights' column left out by the caller) or gated_delta_rule.

    Returns:
        [...], float32 or float64.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(state.to(torch.promote_types(state.dtype, torch.float32)))
    total = values.sum(-1, keepdim=True)
    p = values / torch.where(total > 0, total, 1)
    return torch.where(total[..., 0] > 0, (-_xlogx(p).sum(-1)).exp(), 0)
