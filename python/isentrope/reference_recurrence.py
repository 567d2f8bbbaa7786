"""The mathematics of the recurrent ops in plain torch, as one dynamical system; isentrope.reference has it beside that of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def dynamical_system(transition: Tensor, inputs: Tensor, readout: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """h_i = Λ_i h_{i-1} + B_i u_i, y_i = C_i h_i: Λ_i [..., T, N, N], or [..., T, 1, 1] for λ_i I, B_i u_i [..., T, N, E], C_i [..., T, M, N],
    h [..., N, E] → y [..., T, M, E], the last h. Linear attention and its kin are this, and softmax attention with N = T is."""
    y = [torch.zeros(0)]
    for step, write, read in zip(*(x.unbind(-3) for x in (transition, inputs, readout))):
        h = (step * h if step.shape[-1] == 1 else step @ h) + write
        y.append(read @ h)
    return (torch.stack(y[1:], -3) if len(y) > 1 else readout @ inputs), h


def _packed(op: Any, cu_seqlens: Tensor, steps: Sequence[Tensor | None], each: dict[str, Tensor | None], **options: Any) -> tuple[Tensor, Tensor]:
    """op of each sequence: steps [total, ...] and each [N, ...], which may be None."""
    outs, states = [], []
    for n, (a, b) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:])):
        of_n = {name: x if x is None else x[n : n + 1] for name, x in each.items()}
        out, h = op(*(x if x is None else x[a:b].transpose(0, 1)[None] for x in steps), **of_n, **options)
        outs.append(out[0].transpose(0, 1))
        states.append(h)
    return torch.cat(outs), torch.cat(states)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, state: Tensor | None = None, normalizer: bool = False,
    key_lengths: Tensor | None = None, cu_seqlens: Tensor | None = None, chunk: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q [B, H, T, D], k [B, G, T, D], v [B, G, T, E], log_decay [B, G, T] → out [B, H, T, E], state [B, G, D, E (+ 1)]."""
    if cu_seqlens is not None:
        return _packed(linear_attention, cu_seqlens, (q, k, v, log_decay), {"state": state}, normalizer=normalizer)
    decay = torch.ones_like(k[..., 0]) if log_decay is None else log_decay.exp()
    u = torch.cat([v, torch.ones_like(v[..., :1])], -1) if normalizer else v
    h = k.new_zeros(*k.shape[:2], k.shape[3], u.shape[3]) if state is None else state
    here = torch.arange(k.shape[2], device=k.device) < (k.shape[2] if key_lengths is None else key_lengths.view(-1, 1))
    here = here.expand(k.shape[0], -1)[:, None, :, None, None]  # [B, 1, T, 1, 1]
    write, read = k[..., :, None] * u[..., None, :], q.unflatten(1, (k.shape[1], -1)).transpose(2, 3)
    y, h = dynamical_system(torch.where(here, decay[..., None, None], 1), torch.where(here, write, 0), torch.where(here, read, 0), h)
    y = y.transpose(2, 3).flatten(1, 2)
    if normalizer:
        weight = y[..., -1:]
        y = torch.where(weight == 0, 0, y[..., :-1] / torch.where(weight == 0, 1, weight))
    return y, h


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None, *, write: Tensor | None = None, state: Tensor | None = None,
    key_lengths: Tensor | None = None, cu_seqlens: Tensor | None = None, chunk: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As linear_attention with beta [B, G, T]; write [B, G, ⌈T / chunk⌉] is a gate of what a chunk leaves."""
    if cu_seqlens is not None:
        return _packed(gated_delta_rule, cu_seqlens, (q, k, v, beta, log_decay), {"write": write, "state": state}, chunk=chunk)
    (B, G, T, D), E = k.shape, v.shape[3]
    decay = torch.ones_like(k[..., 0]) if log_decay is None else log_decay.exp()
    here = torch.arange(T, device=k.device) < (T if key_lengths is None else key_lengths.view(-1, 1))
    here = here.expand(B, -1)[:, None, :, None, None]  # [B, 1, T, 1, 1]
    decay, read = torch.where(here, decay[..., None, None], 1), torch.where(here, q.unflatten(1, (G, -1)).transpose(2, 3), 0)
    bk = torch.where(here, (beta[..., None] * k)[..., None], 0)  # [B, G, T, D, 1]
    step, added = decay * (torch.eye(D, dtype=k.dtype, device=k.device) - bk * k[..., None, :]), bk * v[..., None, :]
    h, ys = k.new_zeros(B, G, D, E) if state is None else state, [read @ added]
    for c, t in enumerate(range(0, T, chunk)):
        y, last = dynamical_system(step[:, :, t : t + chunk], added[:, :, t : t + chunk], read[:, :, t : t + chunk], h)
        gate = 1 if write is None else write[:, :, c, None, None].to(h.dtype)
        h = gate * last + (1 - gate) * decay[:, :, t : t + chunk].prod(2) * h if write is not None else last
        ys.append(y)
    return (torch.cat(ys[1:], 2) if T else ys[0]).transpose(2, 3).flatten(1, 2), h
