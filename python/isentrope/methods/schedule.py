"""Coefficients and factors that go by the number of the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call


def _steps(step: Tensor | int) -> Tensor:
    return step if isinstance(step, Tensor) else torch.tensor(step, dtype=torch.int64)


def constant(step: Tensor | int, *, coef: float = 0.01) -> Tensor:
    """coef at each step: the entropy bonus of one coefficient.

    Args:
        step: [...] int64, or a number: from 0.
        coef: at least 0, the weight of the entropy (nats) that is subtracted from each token's loss; 0 has no effect.

    Returns:
        [...] float64.

    Source: A3C, arXiv 1602.01783; csrc/methods/entropy_control.h.
    """
    made: Tensor = call(torch.ops.isentrope.method_constant, _steps(step), coef=coef)
    return made


def schedule(step: Tensor | int, *, shape: str = "linear", start: float = 0.01, end: float = 0.0, steps: int = 100) -> Tensor:
    """A coefficient that goes from one value to another: start + (end - start) w, w = min(step / steps, 1), of a cosine (1 - cos(π w)) / 2.

    Args:
        step: [...] int64, or a number: from 0.
        shape: "linear" or "cosine".
        start, end: at least 0: at step 0, and from step `steps` on; `from` and `to` of the trainer.
        steps: 1 or more.

    Returns:
        [...] float64, the weight of the entropy (nats) that is subtracted from each token's loss.

    Source: A3C, arXiv 1602.01783; the cosine: arXiv 1608.03983; csrc/methods/entropy_control.h.
    """
    made: Tensor = call(torch.ops.isentrope.method_schedule, _steps(step), shape=shape, start=start, end=end, steps=steps)
    return made


def table(step: Tensor | int, *, steps: Sequence[int] = (0,), coefs: Sequence[float] = (0.01,)) -> Tensor:
    """A coefficient by stretches of steps: coefs[i] from steps[i] on, up to the next.

    Args:
        step: [...] int64, or a number: from 0.
        steps: first steps of the stretches, rising from 0.
        coefs: as many, at least 0.

    Returns:
        [...] float64, the weight of the entropy (nats) that is subtracted from each token's loss.

    Source: A3C, arXiv 1602.01783; csrc/methods/entropy_control.h.
    """
    made: Tensor = call(torch.ops.isentrope.method_table, _steps(step), steps=steps, coefs=coefs)
    return made


def band(
    state: Tensor,
    step: int,
    *,
    shape: str = "linear",
    start: Sequence[float] = (0.6, 0.7),
    end: Sequence[float] = (0.4, 0.5),
    steps: int = 100,
) -> Tensor:
    """Factors of advantages that hold the entropy H in a moving band: above it only advantages above 0 learn, below it only those below 0.

    Args:
        state: [1] float64, H of the update before, nats: the mean over its tokens; NaN before the first. An update's H is the next state.
        step: from 0.
        shape: how both ends of the band go, "linear" or "cosine" as those of schedule.
        start, end: lower and upper end at step 0, and from step `steps` on, nats; `from` and `to` of the trainer.
        steps: 1 or more.

    Returns:
        [2] float64: what advantages above 0 and below 0 are multiplied with: 0 and 1 below the band, 1 and 0 above it, else 1 and 1.

    Source: Entrocraft, arXiv 2604.26326; csrc/methods/entropy_control.h.
    """
    made: Tensor = call(torch.ops.isentrope.method_band, state, step, shape=shape, start=start, end=end, steps=steps)
    return made
