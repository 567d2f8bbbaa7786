"""Linear layers of learned spectral norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call, wrong_type


# ---- sigma_linear ----------------------------------------------------------------------------------------------------


class SigmaLinearOutput(NamedTuple):
    """What sigma_linear returns."""

    y: Tensor
    sigma: Tensor


def sigma_linear(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    u: Tensor,
    bias: Tensor | None = None,
    *,
    sigma_grad: str = "through",
) -> SigmaLinearOutput:
    """A linear layer whose spectral norm is the learned γ (sigmaReparam); the scale rides on the matrix product.

    ::

        σ = ‖W u‖ = vᵀW u    v = W u / σ         y = (γ / σ) · x Wᵀ + b

    With u and v constant and G = dyᵀx::

        dx = (γ/σ) · dy W    dγ = ⟨G, W⟩ / σ     dW = (γ/σ) · (G - (⟨G, W⟩ / σ) · v uᵀ)    hence ⟨W, dW⟩ = 0

    Args:
        x: [..., in], in weight's dtype.
        weight: [out, in]; float32, bfloat16, float16 or float64. No copy of it is made.
        gamma: [], in weight's dtype or float32.
        u: [in], a unit vector near the first right singular vector of weight, in weight's dtype or float32. It is not changed:
            power_step does that, once after each optimiser step.
        bias: [out] or None.
        sigma_grad: "through": σ is differentiated by weight. "detached": it is a constant, dW = (γ/σ) · G, and σ has no gradient.

    Returns:
        (y [..., out], sigma [] in float32, or float64 for a float64 weight). Where weight @ u is 0, y is the bias, and nothing
        but the bias gets a gradient: a zero weight stays zero. A weight that is not finite gives a sigma and a y that are not.
        Under autocast x, weight and bias are cast as those of torch's linear are.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument.

    Source: arXiv 2303.06296; derivation of the backward pass in kernels/sigma_linear.h.
    """
    y, sigma, _, _ = call(torch.ops.isentrope.sigma_linear, x, weight, gamma, u, bias, sigma_grad=sigma_grad)
    return SigmaLinearOutput(y, sigma)


# ---- power_step ------------------------------------------------------------------------------------------------------


class PowerStepOutput(NamedTuple):
    """What power_step returns."""

    sigmas: Tensor
    steps: Tensor


def power_step(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    *,
    steps_max: int = 20,
    tolerance: float = 1e-4,
) -> PowerStepOutput:
    """Moves the directions u of all layers towards the first right singular vectors of their weights, in place, in one call.

    One step of a layer, with one read of W::

        σ₋ = ‖W u‖    v = W u / σ₋    σ = ‖Wᵀv‖    u ← Wᵀv / σ         σ₋ ≤ σ ≤ ‖W‖₂

    A layer takes the next step while σ - σ₋ > tolerance · σ, at most steps_max in all. Each layer decides by itself, on the
    device, without host synchronisation.

    Args:
        weights: [out_i, in_i] each; float32, bfloat16, float16 or float64, all of one dtype and on one device.
        us: [in_i] each, in their weight's dtype or float32; overwritten, so that a backward pass that still needs the old ones
            is refused by autograd. Call it once after each optimiser step, not in forward.
        steps_max: at least 1. 20, at which even a first update as large as the weight itself is followed (one step left σ 60 %
            too low there).
        tolerance: 0 or above; with 0 every layer takes steps_max steps. 1e-4: where a second singular value overtakes the first,
            u starts from rest, and a coarser tolerance takes that for the end. In configs/stability/pre.yaml at rate 1e-2, over
            100 updates of 43 layers, 1e-3 left σ more than 3 % low 38 times, one layer for 13 updates on end; 1e-4 five times,
            two on end; 1e-5 four times. Once u has settled one or two steps do at any of them.

    Returns:
        (sigmas [layers] in float32, or float64 for float64 weights, steps [layers] int32 taken). A layer with W u = 0 keeps its
        u and has σ = 0; one that is not finite keeps its u and has σ = NaN. No gradients.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument.

    Source: arXiv 2303.06296, where it is one step; power iteration.
    """
    for name, given in {"weights": weights, "us": us}.items():
        if isinstance(given, str) or not hasattr(given, "__iter__") or (isinstance(given, Tensor) and given.dim() == 0):
            raise wrong_type("power_step", name, given, "a list of tensors")
    weights, us = list(weights), list(us)
    if not weights and not us:
        return PowerStepOutput(torch.empty(0), torch.empty(0, dtype=torch.int32))
    sigmas, steps = call(torch.ops.isentrope.power_step, weights, us, steps_max=steps_max, tolerance=tolerance)
    return PowerStepOutput(sigmas, steps)
