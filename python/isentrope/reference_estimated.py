"""The layer of kind estimated (SEA, arXiv 2310.01777) a token and a head at a time: what mixers_isentrope.py is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def estimated_cells(n: int, columns: int) -> list[list[int]]:
    """The tokens of each cell of a row with n tokens in sight: token s lies in cell ⌊s · columns / n⌋."""
    return [[s for s in range(n) if s * columns // n == cell] for cell in range(columns)]


def estimated_attention(parts: Mapping[str, Tensor], weights: Mapping[str, Tensor], angles: tuple[Tensor, Tensor], columns: int, keep: int,
                        feature_map: Callable[[Tensor], Tensor], eps: float) -> dict[str, Any]:  # fmt: skip
    """parts: q [H, T, D], k, v [G, T, D] without rotary positions, a [H, T, D], b [G, T, D]; angles: cosine, sine [T, D / 2]; weights by the names of
    csrc/model/mixers/estimated.h: in [2D, 4D], norm [2D], columns [M, 2D], bias [M], conv [H, H, 3], gate [2, 2D], gate_bias [2], o_norm [D].

    Returns out [T, H · D] before the output projection, entropy [H, T] in nats and, by row and head, log_estimate [T][H] of M numbers, −∞ where a cell is
    empty, and sight [T][H], the tokens that are seen."""
    q, k, v, a, b = (parts[name] for name in "qkvab")
    (cosine, sine), (H, T, D), M = angles, q.shape, columns
    group = H // k.shape[0]

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.square().mean() + eps).sqrt()

    def turned(x: Tensor, t: int) -> Tensor:
        first, second = x.chunk(2)
        return torch.cat([first * cosine[t] - second * sine[t], second * cosine[t] + first * sine[t]])

    out, entropy, estimates, sights = q.new_zeros(T, H * D), q.new_zeros(H, T), [], []
    for t in range(T):
        n, cells, z, raw = t + 1, estimated_cells(t + 1, M), [], []
        for h in range(H):
            w = torch.stack([feature_map(a[h, t]) @ feature_map(b[h // group, s]) for s in range(n)])
            w = w / w.sum()
            back = torch.arange(t, -1, -1)  # the angles of the distance t − s
            near = torch.cat([w @ cosine[back], w @ sine[back]])
            read = torch.cat([w @ v[h // group, :n], near, v[h // group, t], cosine[t], sine[t]])
            z.append(torch.nn.functional.gelu(rms(weights["in"] @ read, weights["norm"])))
            raw.append(weights["columns"] @ z[h] + weights["bias"])
        order, logs, sight = [], [], [{t} for _ in range(H)]
        for h in range(H):
            taps = [sum(weights["conv"][h, j, tap] * raw[j][m + tap - 1] for j in range(H) for tap in range(3) if 0 <= m + tap - 1 < M) for m in range(M)]
            logits = torch.stack([raw[h][m] + taps[m] if cells[m] else q.new_tensor(-math.inf) for m in range(M)])
            logs.append(logits.log_softmax(0))
            order += [(-float(logs[h][m]), h, m) for m in range(M) if cells[m]]
        for _, h, m in sorted(order)[: H * max(1, math.floor(keep * M / n + 0.5))]:
            sight[h] |= set(cells[m])
        for h in range(H):
            seen = sorted(sight[h])
            p = torch.stack([turned(q[h, t], t) @ turned(k[h // group, s], s) for s in seen]).div(math.sqrt(D)).softmax(0)
            f, g = (weights["gate"] @ z[h] + weights["gate_bias"]).sigmoid()
            x = g * f * (p @ v[h // group, seen]) + (1 - g) * v[h // group, :n].mean(0)
            out[t, h * D : (h + 1) * D] = x + rms(x, weights["o_norm"])
            entropy[h, t] = -torch.special.xlogy(p, p).sum()
        estimates.append(logs)
        sights.append(sight)
    return {"out": out, "entropy": entropy, "log_estimate": estimates, "sight": sights}
