"""Logistic regressions of many sets of features on the same labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MEMORY = 64  # pairs of steps and changes of the gradient that are kept, more than most probes take; of many classes fewer
SKETCH = 4  # directions of the preconditioner
FLAT = 0.1  # share of the slope at 0 below which a line search ends


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


def fit(X: Tensor, y: Tensor, classes: int, C: float = 1.0, tolerance: float = 1e-4, iterations: int = 500, say: Callable[[int, int], None] | None = None) -> Probes:
    """The L2 logistic regression of each problem: minimum over w, b of the mean loss + ‖w‖² / (2 C n), scikit-learn's objective.

    X [P, n, d] float32 or float64, which is standardised for it; y [n] classes from 0. A problem has converged when no component of its gradient,
    computed anew from its weights, is above `tolerance`, where it ends. Each is solved alone, while its features are in the cache, by L-BFGS.
    say: called with (done, of) behind each.
    """
    P, n, d = X.shape
    K = 1 if classes == 2 else classes
    target = (y.to(X)[:, None] if K == 1 else torch.nn.functional.one_hot(y, K).to(X)).numpy()  # [n, K]
    room = np.empty((n, d), target.dtype)  # of one problem's features after the other's, so that it stays in the cache
    found = []
    for x in X:
        found.append(Problem(x.numpy(), target, 1 / (C * n), tolerance, room).solve(iterations))
        if say:
            say(len(found), P)
    W = torch.from_numpy(np.stack([one.W for one in found])).to(X)
    mean, scale = (torch.from_numpy(np.stack(part)) for part in zip(*((one.mean, one.scale) for one in found)))
    return Probes(W[:, :d].mT.contiguous(), W[:, d], mean, scale, torch.tensor([one.converged for one in found]), max(one.steps for one in found))


class Problem:
    """One regression. In numpy: of vectors so short its calls take half the time of torch's.

    L-BFGS in the compact form of Byrd, Nocedal and Schnabel (1994), from the inverse of a low-rank sketch of the Hessian's bound XᵀX / 4n + I / Cn
    (Böhning 1992; Nyström as in Frangella et al., arXiv:2110.02820): hidden states have a few directions of large variance, which cost plain L-BFGS most
    of its steps where it takes many. A step reads the features twice, for the logits of its direction and for the gradient where it ends; in
    between the line search has vectors of n alone, and since the loss is convex it needs its slope and no value.

    Attributes:
        W: [d + 1, K] weights of the standardised features, and bias.
        mean, scale: [d] of the features; the scale is infinite, which makes a feature 0, where one is constant as far as rounding can tell.
        converged: whether no component of the gradient is above the tolerance.
        steps: of L-BFGS.
    """

    def __init__(self, x: np.ndarray, target: np.ndarray, ridge: float, tolerance: float, room: np.ndarray) -> None:
        n, d = x.shape
        K = target.shape[1]
        self.mean = np.full(n, 1 / n, x.dtype) @ x
        self.x = np.subtract(x, self.mean, out=room)  # not divided by the scale: that is done to weights and gradients
        deviation = np.sqrt(np.einsum("ij,ij->j", self.x, self.x) / n)
        self.scale = np.where(deviation > 1e-6 * np.maximum(np.abs(self.mean), 1e-30), deviation, np.inf).astype(x.dtype)
        self.inverse = (1 / self.scale)[:, None]
        self.target, self.ridge, self.tolerance = target, x.dtype.type(ridge), tolerance
        self.U, values = sketch(self.x, self.inverse, min(SKETCH, n, d))
        bound = ridge + values * ((0.25 if K == 1 else 0.5) / n)
        self.rest = x.dtype.type(1 / bound[-1])
        self.more = (1 / bound - 1 / bound[-1]).astype(x.dtype)[:, None]
        self.bias = x.dtype.type(4 if K == 1 else 2)
        self.W = np.zeros((d + 1, K), x.dtype)
        self.converged, self.steps = False, 0

    def logits(self, W: np.ndarray) -> np.ndarray:
        """[d + 1, K] → [n, K]."""
        found: np.ndarray = self.x @ (W[:-1] * self.inverse)
        found += W[-1]
        return found

    def residual(self, s: np.ndarray) -> np.ndarray:
        """Probabilities at logits s [n, K], less the targets."""
        if s.shape[1] == 1:
            found: np.ndarray = np.tanh(0.5 * s)
            found += 1
            found *= 0.5
        else:
            found = np.exp(s - s.max(1, keepdims=True))
            found /= found.sum(1, keepdims=True)
        found -= self.target
        return found

    def gradient(self, residual: np.ndarray) -> np.ndarray:
        """[d + 1, K] at the weights W whose residual is given."""
        residual = residual * residual.dtype.type(1 / len(residual))
        out = np.empty_like(self.W)
        np.multiply(self.x.T @ residual, self.inverse, out=out[:-1])
        out[:-1] += self.ridge * self.W[:-1]
        out[-1] = residual.sum(0)
        return out

    def preconditioned(self, V: np.ndarray) -> np.ndarray:
        """[d + 1, K] times the inverse of the sketched bound."""
        out: np.ndarray = self.rest * V
        out[:-1] += self.U @ (self.more * (self.U.T @ V[:-1]))
        out[-1] = self.bias * V[-1]
        return out

    def search(self, s: np.ndarray, q: np.ndarray, residual: np.ndarray, direction: np.ndarray) -> tuple[float, np.ndarray]:
        """The length a > 0 of a step from logits s along q at which the slope of the objective is at most FLAT of that at 0, and the residual there;
        0 where rounding leaves no descent. By Newton's method between the longest step that still falls and the shortest that rises."""
        share = 1 / len(s)
        pull = float(self.ridge) * float(np.vdot(self.W[:-1], direction[:-1]))
        bend = float(self.ridge) * float(np.vdot(direction[:-1], direction[:-1]))
        first = share * float(np.vdot(q, residual)) + pull
        if not first < 0:
            return 0.0, residual
        low, high, a = 0.0, math.inf, 1.0
        for _ in range(40):
            residual = self.residual(s + s.dtype.type(a) * q)
            slope = share * float(np.vdot(q, residual)) + pull + a * bend
            if abs(slope) <= -FLAT * first:
                break
            low, high = (a, high) if slope < 0 else (low, a)
            p = residual + self.target
            pq = p * q
            curve = share * (float(np.vdot(pq, q)) - (float(np.vdot(pq, pq)) if q.shape[1] == 1 else float(np.square(pq.sum(1)).sum()))) + bend
            a = a - slope / curve if curve > 0 else math.inf
            if not low < a < high:
                a = 0.5 * (low + high) if high < math.inf else 2 * low
            a = min(a, 10 * low) if low and high == math.inf else a
        return a, residual

    def downhill(self, g: np.ndarray, s: np.ndarray, residual: np.ndarray, memory: Memory) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """The length of the next step, its direction [d + 1, K], the logits [n, K] of that direction, and the residual at its end."""
        direction = memory.direction(g.ravel(), self.preconditioned(g).ravel()).reshape(g.shape)
        q = self.logits(direction)
        a, residual = self.search(s, q, residual, direction)
        return a, direction, q, residual

    def solve(self, iterations: int) -> Problem:
        """Goes on from W until the gradient is small enough, rounding leaves no descent, or there have been so many steps."""
        kind = self.W.dtype.type
        while True:  # once more from the weights where a solve has ended, since the sum of all steps has their rounding in it
            s = self.logits(self.W)
            residual = self.residual(s)
            g = self.gradient(residual)
            start, memory = self.steps, Memory(self.W.size, self.W.dtype)
            while not (small := float(np.abs(g).max()) <= self.tolerance) and self.steps < iterations:
                a, direction, q, residual = self.downhill(g, s, residual, memory)
                if a == 0.0:
                    break
                step = kind(a) * direction
                self.W += step
                s += kind(a) * q
                before, g = g, self.gradient(residual)
                change = g - before
                memory.add(step.ravel(), change.ravel(), self.preconditioned(change).ravel())
                self.steps += 1
            if self.steps == start:
                self.converged = small
                return self


class Memory:
    """Pairs of steps s and changes y of the gradient, [m, N] each, and with Py those changes behind the preconditioner P."""

    def __init__(self, size: int, dtype: np.dtype) -> None:
        most = min(MEMORY, max(10, 2**24 // size))
        self.count = 0
        self.S, self.Y, self.PY = (np.empty((most, size), dtype) for _ in range(3))
        self.inverse = np.zeros((most, most))  # of R, the upper triangle of SYᵀ
        self.inner = np.zeros((most, most))  # Y P Yᵀ
        self.diagonal = np.zeros(most)  # s · y
        self.gamma = 1.0

    def add(self, s: np.ndarray, y: np.ndarray, Py: np.ndarray) -> None:
        """Leaves out a pair without curvature, which rounding makes; forgets the oldest one where it is full."""
        curve = float(s @ y)
        if not curve > 1e-7 * math.sqrt(float(s @ s) * float(y @ y)):
            return
        if self.count == len(self.S):
            self.count -= 1
            for part in (self.S, self.Y, self.PY, self.diagonal):
                part[:-1] = part[1:]
            for square in (self.inverse, self.inner):  # of a triangle the rest of the inverse is the inverse of the rest
                square[:-1, :-1] = square[1:, 1:]
        m = self.count
        self.S[m], self.Y[m], self.PY[m] = s, y, Py
        self.inner[m, : m + 1] = self.inner[: m + 1, m] = self.Y[: m + 1] @ Py
        self.inverse[:m, m] = self.inverse[:m, :m] @ (self.S[:m] @ y) / -curve
        self.inverse[m, :m], self.inverse[m, m] = 0, 1 / curve
        self.diagonal[m] = curve
        self.gamma = curve / self.inner[m, m]
        self.count += 1

    def direction(self, g: np.ndarray, Pg: np.ndarray) -> np.ndarray:
        """-H g of gradient g: H is γP behind the BFGS updates of all pairs."""
        m, gamma = self.count, self.gamma
        if m == 0:
            return -Pg
        R = self.inverse[:m, :m]
        c = R @ (self.S[:m] @ g)
        b = (self.diagonal[:m] * c + gamma * (self.inner[:m, :m] @ c) - gamma * (self.PY[:m] @ g)) @ R
        kind = g.dtype
        found: np.ndarray = (gamma * c).astype(kind) @ self.PY[:m] - b.astype(kind) @ self.S[:m]
        found -= kind.type(gamma) * Pg
        return found


def sketch(x: np.ndarray, inverse: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the features Z = x diag(inverse), x [n, d]: orthonormal [d, k] and falling eigenvalues [k] of ZᵀZ's largest part, by one subspace
    iteration from k of its own rows, drawn with a fixed seed."""
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:k].numpy()
    Q = np.linalg.qr(x[rows].T * inverse)[0]
    Y = x @ (Q * inverse)
    values, turn = np.linalg.eigh(Y.T @ Y)
    return np.ascontiguousarray(Q @ turn[:, ::-1]), np.maximum(values[::-1], 0)
