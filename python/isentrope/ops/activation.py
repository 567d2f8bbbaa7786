"""Activations with learned parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call


def crrelu(x: Tensor, epsilon: Tensor) -> Tensor:
    """ReLU with a learned correction (CRReLU)::

        y = max(0, x) + ε x e^(−x²/2)

    One pass over x, and one over x and its gradient in the backward pass, which sums ε's gradient beside it: in parts of fixed
    size, so that no bit of it depends on the number of threads. Beyond |x| = 40 the correction is 0, at infinity too.

    Args:
        x: any shape; float32, bfloat16, float16 or float64. Computed in float32, in float64 for float64.
        epsilon: [1], any of these types; the paper begins at 0.01 with one for each layer, without weight decay.

    Returns:
        y as x. Gradients of x and epsilon, of first order.

    Raises:
        ValueError, TypeError: a shape, dtype or device that is not as above; the message names the argument.

    Source: arXiv 2405.12442 (entropy-based activation function optimization).
    """
    y: Tensor = call(torch.ops.isentrope.crrelu, x, epsilon)
    return y
