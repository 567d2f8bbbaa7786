"""Losses on pairs of completions, and what two models say of one another's answers."""

from __future__ import annotations

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call


def preference(chosen: Tensor, rejected: Tensor, *, loss: str = "sigmoid", beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """A loss of h = chosen - rejected, differentiable in both. sigmoid (DPO): -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),
    e the label smoothing; sigmoid_norm: the same; robust: (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e);
    hinge: max(0, 1 - beta h); ipo: (h - 1 / (2 beta))^2.

    Args:
        chosen: [P] float32 or float64: log of policy over reference of the better completion, its tokens added up, nats; of sigmoid_norm
            and ipo divided by their number.
        rejected: [P], the same of the worse one.
        loss: sigmoid, sigmoid_norm, robust, hinge or ipo.
        beta: above 0.
        label_smoothing: 0 to 0.5 (robust: below); of sigmoid, sigmoid_norm and robust.

    Returns:
        [P] losses.

    Source: arXiv 2305.18290 (DPO), 2403.00409 (robust), 2305.10425 (hinge), 2310.12036 (ipo), as TRL 1.16.0 has them;
    csrc/methods/preference.h.
    """
    each: Tensor = call(torch.ops.isentrope.method_preference, chosen, rejected, loss=loss, beta=beta, label_smoothing=label_smoothing)
    return each


def differential_information(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """Entropy of softmax(logprob - ref_logprob) over answers: low where the policy moved to few of them, log K where it moved to none.

    Args:
        logprob: [..., K] float32 or float64: log-probability of each of K answers to a prompt under the policy, nats.
        ref_logprob: [..., K], under the reference.

    Returns:
        [...] float64, nats, 0 to log K. It is relative to these answers: compare checkpoints on the same ones.

    Source: differential information distribution, arXiv 2505.23761; the estimator over K answers is ours; csrc/methods/preference.h.
    """
    entropy: Tensor = call(torch.ops.isentrope.method_differential_information, logprob, ref_logprob)
    return entropy
