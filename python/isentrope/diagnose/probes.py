"""Logistic regressions of many sets of features on the same labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MEMORY = 10  # pairs of steps and gradients that L-BFGS keeps
SKETCH = 16  # directions of the preconditioner
SCALE = 0.3  # of the variables, that the first step is of about the right length


class Probes(NamedTuple):
    """Of P problems with K classes (one row of weights where there are two)."""

    weight: Tensor  # [P, K, d] of the standardised features
    bias: Tensor  # [P, K]
    mean: Tensor  # [P, d]
    scale: Tensor  # [P, d]
    converged: Tensor  # [P] bool
    iterations: int

    def scores(self, X: Tensor) -> Tensor:
        """[P, n, d] → [P, n, K] logits; of two classes the second one's, K = 1."""
        folded = self.weight / self.scale[:, None]
        return torch.baddbmm((self.bias - (folded * self.mean[:, None]).sum(-1))[:, None], X, folded.transpose(1, 2))

    def predict(self, X: Tensor) -> Tensor:
        """[P, n, d] → [P, n] classes."""
        found = self.scores(X)
        return (found[..., 0] > 0).long() if found.shape[-1] == 1 else found.argmax(-1)


def standardised(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X [P, n, d], which is overwritten → itself with mean 0 and deviation 1, mean [P, d], scale [P, d]; infinite, which makes a feature 0,
    where one is constant as far as rounding can tell."""
    mean, scale = X.new_empty(X.shape[0], X.shape[2]), X.new_empty(X.shape[0], X.shape[2])
    share = X.new_full((X.shape[1],), 1 / X.shape[1])
    for x, own_mean, own_scale in zip(X, mean, scale):  # a problem at a time: all passes but the first read it from the cache
        torch.mv(x.T, share, out=own_mean)
        x -= own_mean
        deviation = torch.mv(x.square().T, share).sqrt()
        torch.where(deviation > 1e-6 * own_mean.abs().clamp(min=1e-30), deviation, torch.full_like(deviation, torch.inf), out=own_scale)
        x *= 1 / own_scale
    return X, mean, scale


def fit(X: Tensor, y: Tensor, classes: int, C: float = 1.0, tolerance: float = 1e-4, iterations: int = 500) -> Probes:
    """The L2 logistic regression of each problem: minimum over w, b of the mean loss + ‖w‖² / (2 C n), scikit-learn's objective.

    X [P, n, d] float32 or float64, which is overwritten by its standardised features; y [n] classes from 0. A problem has converged when
    no component of its gradient is above `tolerance`, where it ends. Each is solved alone, while its features are in the cache, by scipy's L-BFGS in
    variables in which a low-rank sketch of the Hessian's bound XᵀX / 4n + I / Cn is a multiple of I (Böhning 1992; Nyström as in Frangella et al.,
    arXiv:2110.02820): hidden states have a few directions of large variance, which cost plain L-BFGS most of its steps where it takes many.
    """
    P, n, d = X.shape
    K = 1 if classes == 2 else classes
    target = y.to(X) if K == 1 else torch.nn.functional.one_hot(y, K).to(X)  # [n] or [n, K]
    mean, scale, found = X.new_empty(P, d), X.new_empty(P, d), []
    for x, own_mean, own_scale in zip(X, mean, scale):
        _, own_mean[:], own_scale[:] = (part[0] for part in standardised(x[None]))
        found.append(Problem(x, target, K, 1 / (C * n), tolerance).solve(iterations))
    W = torch.from_numpy(np.stack([one.W for one in found]))
    converged = torch.tensor([one.gradient <= tolerance for one in found])
    return Probes(W[..., :d], W[..., d], mean, scale, converged, max(one.steps for one in found))


class Converged(Exception):
    """Ends a solve at the first point whose gradient is small enough."""


class Problem:
    """One regression, x [n, d] standardised. In numpy: of vectors so short its calls take half the time of torch's.

    Attributes:
        W: [K, d + 1] weights and bias where the gradient was smallest of all points that were looked at.
        gradient: its largest component there.
        steps: of L-BFGS.
    """

    def __init__(self, x: Tensor, target: Tensor, K: int, ridge: float, tolerance: float) -> None:
        n, d = x.shape
        basis, values = sketch(x[None], min(SKETCH, n, d))
        bound = ridge + values[0] * ((0.25 if K == 1 else 0.5) / n)
        self.x, self.target, self.K, self.ridge, self.tolerance = x.numpy(), target.numpy(), K, ridge, tolerance
        self.U = np.ascontiguousarray(basis[0].numpy())  # [d, k]
        size = float(SCALE / bound[-1].sqrt())
        self.size, self.more = self.x.dtype.type(size), (size * ((bound[-1] / bound).sqrt() - 1)).numpy()  # [k], of the directions in U
        self.W, self.gradient, self.steps = np.zeros((K, d + 1), self.x.dtype), math.inf, 0

    def weights(self, V: np.ndarray) -> np.ndarray:
        """size · I + U more Uᵀ, which is its own transpose, of V [d] or [d, K]: weights of variables, and their gradients of those of weights."""
        inner = self.U.T @ V
        found: np.ndarray = self.size * V + self.U @ (self.more * inner if V.ndim == 1 else self.more[:, None] * inner)
        return found

    def __call__(self, variables: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean loss + ridge, and its gradient, float64, of variables [(d + 1) · K]."""
        x, (n, d) = self.x, self.x.shape
        Z = variables.astype(x.dtype)
        Z = Z if self.K == 1 else Z.reshape(d + 1, self.K)
        V = self.weights(Z[:d])
        s = x @ V  # [n] or [n, K]
        s += Z[d]
        if self.K == 1:
            e = np.exp(-np.abs(s))
            loss = float(np.maximum(s, 0).sum() + np.log1p(e).sum() - self.target @ s)
            rest = np.where(s >= 0, 1, e) / (1 + e)
        else:
            most = s.max(1, keepdims=True)
            e = np.exp(s - most)
            total = e.sum(1, keepdims=True)
            loss = float((np.log(total) + most).sum() - (self.target * s).sum())
            rest = e / total
        rest -= self.target
        rest /= n
        slope = x.T @ rest
        slope += self.x.dtype.type(self.ridge) * V
        bias = rest.sum(0)
        gradient = max(float(np.abs(slope).max()), float(np.abs(bias).max()))
        if gradient < self.gradient:
            self.gradient, self.W = gradient, np.vstack([V, Z[d:]] if self.K > 1 else [V[:, None], Z[d:][:, None]]).T
            if gradient <= self.tolerance:
                raise Converged
        out = np.empty(Z.shape)
        out[:d], out[d] = self.weights(slope), bias
        return loss / n + 0.5 * self.ridge * float((V * V).sum()), out.ravel()

    def solve(self, iterations: int) -> Problem:
        from scipy.optimize import minimize  # type: ignore[import-untyped]

        def count(_: np.ndarray) -> None:
            self.steps += 1

        start = np.zeros(self.W.size)
        options = {"maxfun": 20 * iterations, "maxls": 50, "maxcor": MEMORY, "gtol": 0.0, "ftol": 0.0}
        try:
            while self.steps < iterations:
                before = self.steps
                ended = minimize(self, start, jac=True, method="L-BFGS-B", callback=count, options={**options, "maxiter": iterations - self.steps})
                start = ended.x  # where rounding has ended the line search, it may go on without its memory
                if self.steps <= before + 1:
                    break
        except Converged:
            pass
        return self


def sketch(X: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """X [P, n, d] → orthonormal [P, d, k] and falling eigenvalues [P, k] of XᵀX's largest part, by one subspace iteration from k of its
    own rows, drawn with a fixed seed."""
    rows = torch.randperm(X.shape[1], generator=torch.Generator().manual_seed(0))[:k]
    Q = torch.linalg.qr(X[:, rows].transpose(1, 2))[0]  # [P, d, k]
    Y = torch.bmm(X, Q)
    values, turn = torch.linalg.eigh(torch.bmm(Y.transpose(1, 2), Y))
    return torch.bmm(Q, turn.flip(-1)), values.flip(-1).clamp(min=0)
