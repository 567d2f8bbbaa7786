"""Floats of ops under torch.compile: a float in a graph is a constant, and each new value would compile anew; a tensor is not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value


def as_tensor(x: float | int, device: torch.device | str) -> Tensor:
    """x as a tensor [] of double. In a graph as a product, which torch keeps where it would take a fill value for a constant."""
    if torch.compiler.is_compiling():
        return torch.ones((), dtype=torch.float64, device=device) * x
    return torch.full((), float(x), dtype=torch.float64, device=device)


def numbers_of(**floats: float | None) -> dict:
    """The floats of an op as its keyword arguments, in the order of the schema. Where one of them changes from call to call of a
    graph, they go as tensors (csrc/ops/numbers.h), and their own arguments only say which are given."""
    given = {name: x for name, x in floats.items() if x is not None}
    if not torch.compiler.is_compiling() or all(has_static_value(x) for x in given.values()):
        return floats
    tensors = [as_tensor(floats[name] if name in given else 0.0, "cpu") for name in floats]
    fixed = {name: x if x is None or has_static_value(x) else 1.0 for name, x in floats.items()}
    return {**fixed, "numbers": tensors}
