"""Activations in plain torch; of isentrope.reference."""

import torch
from torch import Tensor


def crrelu(x: Tensor, epsilon: Tensor) -> Tensor:
    """x [...], epsilon [1] → max(0, x) + ε x e^(−x²/2) [...]."""
    return torch.relu(x) + epsilon * x * torch.exp(-x.square() / 2)
