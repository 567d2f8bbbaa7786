"""Feature maps of linear attention: φ [..., d] → [..., D] such that φ(q)·φ(k) is the weight of a key. Public as isentrope.nn.feature_maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["elu_plus_one", "exp_normalized", "relu", "taylor2"]


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1: x + 1 above 0, exp(x) below; positive.

    Source: Katharopoulos et al., arXiv 2006.16236.
    """
    return torch.nn.functional.elu(x) + 1


def relu(x: Tensor) -> Tensor:
    """max(x, 0): a row may come to have no weight at all, and then gives 0 with normalizer."""
    return x.relu()


def exp_normalized(x: Tensor) -> Tensor:
    """exp(x) / Σ exp(x) over the features: positive, and never large.

    Source: Zhang et al., arXiv 2402.04347, the map of Hedgehog without its projection.
    """
    return x.softmax(-1)


def taylor2(x: Tensor) -> Tensor:
    """φ(q)·φ(k) = 1 + s + s²/2 with s = q·k / √d, the Taylor series of exp(s) to its second order, which is positive everywhere.

    Args:
        x: [..., d].

    Returns:
        [..., 1 + d + d(d + 1)/2]: 1, x_i / d^(1/4), x_i x_j / √d for i < j, x_i² / √(2d). (Published code has all d² products, of which
        each with i ≠ j stands twice: φ(q)·φ(k) is the same, at nearly twice the state.) A key that is to count nothing has to be
        left out by its length, since φ(0) is not 0.

    Source: Arora et al., arXiv 2402.18668 (Based).
    """
    d = x.shape[-1]
    i, j = torch.triu_indices(d, d, device=x.device)
    factor = torch.where(i == j, 1 / math.sqrt(2 * d), 1 / math.sqrt(d)).to(x.dtype)
    return torch.cat([torch.ones_like(x[..., :1]), x * d**-0.25, x[..., i] * x[..., j] * factor], -1)
