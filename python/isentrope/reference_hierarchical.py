"""hierarchical_attention in plain torch: the matrix of weights, block by block. Public as isentrope.reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def hierarchical_weights(s: Tensor, families: Sequence[Sequence[Sequence[int]]], real: Sequence[bool], position: Any = None) -> tuple[Tensor, list[Tensor]]:
    """s [T, T] logits, families[level][family]: its nodes, -1 for none; position(level): features [m, E] of places in a family.

    Returns θ [T, T], rows of 0 for padding, and log_partition of each root. Of siblings A, C: a row of A gives every token of C the weight
    e^s_AC / Z_A of what its family has, s_AC the mean of s over A × C, and keeps e^f(A) / Z_A for A's own families."""
    T = s.shape[0]
    features = [None if position is None else position(level) for level in range(len(families))]
    place = {node: i for family in families[0] for i, node in enumerate(family) if node >= 0}

    def subtree(level: int, node: int) -> tuple[list[int], Tensor, Tensor]:
        """The tokens below, f, and θ [T, T] of their rows among themselves."""
        if level == 0:
            epsilon = features[0]
            own = 0 if epsilon is None else epsilon[place[node]] @ epsilon[place[node]]
            return ([node] if real[node] else []), s[node, node] + own, torch.eye(T, dtype=s.dtype) * torch.eye(T, dtype=s.dtype)[node]
        parts = [(i, subtree(level - 1, child)) for i, child in enumerate(families[level - 1][node]) if child >= 0]
        parts = [(i, part) for i, part in parts if part[0]]
        tokens, f, theta = [t for _, part in parts for t in part[0]], s.new_zeros(()), s.new_zeros(T, T)
        for i, (rows, inner, below) in parts:
            others = [(j, part[0]) for j, part in parts if j != i]
            mean = [s[rows][:, columns].mean() for _, columns in others]
            epsilon = features[level - 1]
            if epsilon is not None:
                mean = [x + epsilon[i] @ epsilon[j] for x, (j, _) in zip(mean, others)]
            log_z = torch.stack([inner, *(x + torch.tensor(float(len(c)), dtype=s.dtype).log() for x, (_, c) in zip(mean, others))]).logsumexp(0)
            theta = theta + (inner - log_z).exp() * below
            for x, (_, columns) in zip(mean, others):
                block = torch.zeros(T, T, dtype=s.dtype)
                block[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1
                theta = theta + (x - log_z).exp() * block
            f = f + len(rows) / len(tokens) * log_z
        return tokens, f, theta

    roots = [subtree(len(families), root) for root in range(len(families[-1]))]
    return torch.stack([root[2] for root in roots]).sum(0), [root[1] for root in roots]


def hierarchical_attention(
    q: Tensor, k: Tensor, v: Tensor, *, branching: int | None = None, tree: Sequence[Tensor] | None = None, key_lengths: Tensor | None = None,
    mask: Tensor | None = None, position: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q [B, H, T, D], k, v [B, G, T, D] → out [B, H, T, D], entropy [B, H, T], log_partition [B, H, roots]."""
    (B, H, T, D), G = q.shape, k.shape[1]
    k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
    real = torch.ones(B, T, dtype=torch.bool) if mask is None else mask
    real = real if key_lengths is None else real & (torch.arange(T) < key_lengths[:, None])
    thetas, roots = [], []
    for b in range(B):
        families: list[Any] = [] if tree is None else [(x if x.dim() == 2 else x[b]).tolist() for x in tree]
        nodes = T
        while tree is None and branching is not None and (nodes > 1 or not families):
            families.append([list(range(i, min(i + branching, nodes))) for i in range(0, nodes, branching)])
            nodes = len(families[-1])
        for h in range(H):
            s = q[b, h] @ k[b, h].T * (D**-0.5 if scale is None else scale)
            features = None if position is None else lambda level, h=h: position if position.dim() == 2 else position[(level, h)[4 - position.dim() :]]
            theta, of_roots = hierarchical_weights(s, families, real[b].tolist(), features)
            thetas.append(theta)
            roots.append(torch.stack(of_roots))
    theta = torch.stack(thetas).view(B, H, T, T)
    entropy = -(theta * theta.where(theta > 0, 1).log()).sum(-1)
    return theta @ v, entropy, torch.stack(roots).view(B, H, -1)
