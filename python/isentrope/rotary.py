"""Rotary positions, as Llama has them."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, position: Tensor, base: float) -> Tensor:
    """x [..., T, heads, D], position [T] → x with its pairs (i, i + D/2) turned by position · base^(-2i/D)."""
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (torch.arange(half, device=x.device, dtype=wide) / -half)
    angle = (position.to(wide)[:, None] * frequency)[:, None]  # [T, 1, D/2]
    a, b = x.to(wide).split(half, dim=-1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), dim=-1).to(x.dtype)
