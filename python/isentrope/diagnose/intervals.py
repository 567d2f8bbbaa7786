"""Intervals and regressions of accuracies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054


def wilson(right: int, of: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) of none."""
    if of == 0:
        return 0.0, 1.0
    share, square = right / of, z * z / of
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / of + square / (4 * of)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def clopper_pearson_upper(right: int, of: int, alpha: float) -> float:
    """The share u at which `right` or fewer of `of` have probability alpha: an upper bound of confidence 1 - alpha."""
    if right >= of:
        return 1.0
    log_choose = [math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) for k in range(right + 1)]

    def tail(u: float) -> float:
        return sum(math.exp(c + k * math.log(u) + (of - k) * math.log1p(-u)) for k, c in enumerate(log_choose))

    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if tail(middle) > alpha else (low, middle)
    return high


@dataclass
class Regression:
    """coefficients, errors [P + 1], the intercept first; ridge as it was taken; separated: some plane parts right from wrong."""

    coefficients: np.ndarray
    errors: np.ndarray
    ridge: float
    separated: bool


def logistic(x: np.ndarray, y: np.ndarray, ridge: float = 0.0, separated_ridge: float = 1.0) -> Regression:
    """Logistic regression of y [N] in {0, 1} on x [N, P] by Newton's steps; maximises log-likelihood - ridge/2 · ‖slopes‖².

    Standard errors are roots of the diagonal of the inverse of the (penalised) information matrix. Where the classes can be parted and ridge is 0
    there is no maximum: then `separated_ridge` is taken in its place, and the result says so.
    """
    design = np.column_stack([np.ones(len(x)), x])
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 0
    beta = np.zeros(design.shape[1])
    for _ in range(100):
        logits = design @ beta
        p = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
        information = (design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        gradient = design.T @ (y - p) - penalty * beta
        # Parted: every sample is on its side, and far from the border.
        if ridge == 0 and (np.abs(logits).min() > 8 or np.linalg.cond(information) > 1e12) and bool(((logits > 0) == (y > 0.5)).all()):
            return Regression(*_fitted(logistic(x, y, separated_ridge)), separated_ridge, True)
        step = np.linalg.lstsq(information, gradient, rcond=None)[0]
        largest = float(np.abs(step).max())
        beta = beta + step * min(1.0, 5 / largest if largest > 0 else 1.0)
        if largest < 1e-10 * max(1.0, float(np.abs(beta).max())):
            break
    else:
        if ridge == 0:  # parted in part: some coefficient has no end
            return Regression(*_fitted(logistic(x, y, separated_ridge)), separated_ridge, True)
    return Regression(beta, np.sqrt(np.diag(np.linalg.pinv(information))), ridge, False)


def _fitted(found: Regression) -> tuple[np.ndarray, np.ndarray]:
    return found.coefficients, found.errors
