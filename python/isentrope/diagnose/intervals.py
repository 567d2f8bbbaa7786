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
    """coefficients, errors [P + 1], the intercept first; ridge as it was taken, where none was asked for because of `why`: "separated" (a plane
    parts right from wrong, for all samples or for those on one side of it) or "collinear" (a predictor is a sum of others); "" where it is as asked for."""

    coefficients: np.ndarray
    errors: np.ndarray
    ridge: float
    why: str


def logistic(x: np.ndarray, y: np.ndarray, ridge: float = 0.0, without: float = 1.0) -> Regression:
    """Logistic regression of y [N] in {0, 1} on x [N, P] by Newton's steps; maximises log-likelihood - ridge/2 · ‖slopes‖².

    Standard errors are roots of the diagonal of the inverse of the (penalised) information matrix. Where ridge is 0 and the likelihood has no
    single maximum the ridge `without` is taken in its place, and the result says why.
    """
    design = np.column_stack([np.ones(len(x)), x])
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 0
    beta = np.zeros(design.shape[1])
    information = np.eye(len(beta))
    collinear = bool(np.linalg.cond(design) > 1e7)
    settled = False
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -500, 500)))
        information = (design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        if ridge == 0 and (collinear or np.linalg.cond(information) > 1e10):
            break  # a coefficient that runs away leaves no information of itself
        step = np.linalg.solve(information, design.T @ (y - p) - penalty * beta)
        largest = float(np.abs(step).max())
        beta = beta + step * min(1.0, 5 / largest if largest > 0 else 1.0)
        settled = largest < 1e-10 * max(1.0, float(np.abs(beta).max()))
        if settled:
            break
    if not settled and ridge == 0:
        found = logistic(x, y, without)
        return Regression(found.coefficients, found.errors, without, "collinear" if collinear else "separated")
    return Regression(beta, np.sqrt(np.diag(np.linalg.inv(information))), ridge, "")
