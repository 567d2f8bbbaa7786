"""Figures of the spectrum of a matrix of representations Z [M, d], rows samples: effective ranks, power laws, entropies."""

from __future__ import annotations

import numpy as np

EPS = 1e-7  # RankMe's, added to the normalised values, which are not normalised again


def squared_singular_values(Z: np.ndarray) -> np.ndarray:
    """[min(M, d)] eigenvalues of ZᵀZ, falling, none below 0; of the smaller of the two Gram matrices, in float64."""
    Z = np.asarray(Z, np.float64)
    gram = Z @ Z.T if len(Z) < Z.shape[1] else Z.T @ Z
    return np.clip(np.linalg.eigvalsh(gram)[::-1], 0, None)


def rankme(values: np.ndarray) -> float:
    """exp(-Σ p ln p) with p = values / Σ values + 1e-7, the code's form: eps outside the normalisation. 1 where all are 0."""
    total = values.sum()
    if total <= 0:
        return 1.0
    p = values / total + EPS
    return float(np.exp(-(p * np.log(p)).sum()))


def entropy(values: np.ndarray) -> float:
    """-Σ p ln p with p = values / Σ values, nats: the matrix (von Neumann) entropy of eigenvalues, its trace normalised."""
    total = values.sum()
    p = values[values > 0] / total if total > 0 else np.zeros(0)
    return float(-(p * np.log(p)).sum())


def power_law(eigenvalues: np.ndarray, first: int, last: int) -> tuple[float, float]:
    """(α, R²) of λ_i ∝ i^-α, i from 1: least squares of log λ on log i with weights 1/i, over first ≤ i ≤ last. NaN where fewer than
    three eigenvalues above 0 stand there; R² is weighted alike."""
    i = np.arange(1, len(eigenvalues) + 1)
    there = (i >= first) & (i <= last) & (eigenvalues > 0)
    if there.sum() < 3:
        return float("nan"), float("nan")
    x, y, w = np.log(i[there]), np.log(eigenvalues[there]), 1 / i[there]
    mean_x, mean_y = (w * x).sum() / w.sum(), (w * y).sum() / w.sum()
    slope = (w * (x - mean_x) * (y - mean_y)).sum() / (w * (x - mean_x) ** 2).sum()
    rest, whole = (w * (y - mean_y - slope * (x - mean_x)) ** 2).sum(), (w * (y - mean_y) ** 2).sum()
    return float(-slope), float(1 - rest / whole) if whole > 0 else float("nan")
