"""Logistic regressions of many sets of features on the same labels, solved together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MEMORY = 10  # pairs of steps and gradients that L-BFGS keeps
SKETCH = 48  # directions of the preconditioner
CACHE = 12 << 20  # bytes of features that are solved at a time: as a rule of thumb, what stays in the last level of cache


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
    no component of its gradient is above `tolerance`, and takes no further step. All take the steps of L-BFGS together, each with a length
    of its own, in blocks of problems that fit into the cache, preconditioned by a low-rank sketch of the Hessian's bound XᵀX / 4n + I / Cn (Böhning 1992; Nyström as in Frangella et al.,
    arXiv:2110.02820): hidden states have a few directions of large variance, which cost plain L-BFGS most of its steps.
    """
    block = max(1, CACHE // (X[0].numel() * X.element_size()))
    parts = [_together(X[start : start + block], y, classes, C, tolerance, iterations) for start in range(0, len(X), block)]
    weight, bias, mean, scale, converged = (torch.cat([part[i] for part in parts]) for i in range(5))  # type: ignore[misc]
    return Probes(weight, bias, mean, scale, converged, max(part.iterations for part in parts))


def _together(X: Tensor, y: Tensor, classes: int, C: float, tolerance: float, iterations: int) -> Probes:
    """fit() of one block."""
    P, n, d = X.shape
    X, mean, scale = standardised(X)
    K = 1 if classes == 2 else classes
    target = y.to(X)[:, None] if K == 1 else torch.nn.functional.one_hot(y, K).to(X)  # [n, K]
    curvature = 0.25 if K == 1 else 0.5
    ridge = 1 / (C * n)
    basis, values = sketch(X, min(SKETCH, n, d))
    values = values * (curvature / n)
    damp = (ridge + values[:, -1:]) / (ridge + values) - 1  # [P, k]: the inverse, over that of the rest

    def loss_and_slope(W: Tensor, which: list[int]) -> tuple[Tensor, Tensor]:
        """W [p, K, d + 1] of the problems → mean loss + ridge [p], gradient like W. A problem at a time: its features are read twice, the
        second time from the cache."""
        losses, slopes = [], torch.empty_like(W)
        for own, w, slope in zip(which, W, slopes):
            s = torch.addmm(w[:, d], X[own], w[:, :d].T)  # [n, K]
            if K == 1:
                losses.append((torch.nn.functional.softplus(s) - target * s).sum())
                rest = s.sigmoid_().sub_(target)
            else:
                losses.append((s.logsumexp(-1) - (target * s).sum(-1)).sum())
                rest = s.softmax(-1).sub_(target)
            torch.mm(rest.T, X[own], out=slope[:, :d])
            slope[:, d] = rest.sum(0)
        slopes /= n
        slopes[..., :d] += ridge * W[..., :d]
        return torch.stack(losses) / n + 0.5 * ridge * W[..., :d].square().sum((1, 2)), slopes

    def preconditioned(G: Tensor, U: Tensor, own: Tensor) -> Tensor:
        inner = torch.bmm(G[..., :d], U) * own[:, None]
        return torch.cat([G[..., :d] + torch.bmm(inner, U.transpose(1, 2)), G[..., d:]], -1)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2))

    solution = X.new_zeros(P, K, d + 1)
    converged = torch.zeros(P, dtype=torch.bool)
    active = list(range(P))
    W = solution.clone()
    loss, G = loss_and_slope(W, active)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    gamma = torch.ones_like(loss)
    step = 0
    while True:
        left = G.abs().amax((1, 2)) > tolerance
        if not bool(left.all()):  # what has converged leaves
            place = torch.tensor(active)
            solution[place] = W
            converged[place[~left]] = True
            active = place[left].tolist()
            W, G, loss, basis, damp, gamma = (x[left] for x in (W, G, loss, basis, damp, gamma))
            pairs = [(s[left], u[left], rho[left]) for s, u, rho in pairs]
        if not active or step == iterations:
            break
        step += 1
        q, used = G, []
        for s, u, rho in reversed(pairs):
            a = rho * dot(s, q)
            used.append(a)
            q = q - a[:, None, None] * u
        q = preconditioned(q, basis, damp) * gamma[:, None, None]
        for (s, u, rho), a in zip(pairs, reversed(used)):
            q = q + (a - rho * dot(u, q))[:, None, None] * s
        falling = dot(q, G)
        if bool((falling <= 0).any()):  # by rounding; the preconditioned gradient always falls
            q = torch.where((falling <= 0)[:, None, None], preconditioned(G, basis, damp), q)
            falling = dot(q, G)
        length = torch.ones_like(loss) if pairs else (0.5 / G.abs().sum((1, 2))).clamp(max=1.0)
        new = W - length[:, None, None] * q
        new_loss, new_G = loss_and_slope(new, active)
        for _ in range(30):
            room = 8 * torch.finfo(loss.dtype).eps * loss.abs()  # a loss near its minimum is known to its rounding alone
            long = ~(new_loss <= loss - 1e-4 * length * falling + room)
            if not bool(long.any()):
                break
            length[long] *= 0.3
            new[long] = W[long] - length[long][:, None, None] * q[long]
            new_loss[long], new_G[long] = loss_and_slope(new[long], [own for own, one in zip(active, long.tolist()) if one])
        s, u = new - W, new_G - G
        curved = dot(s, u).clamp(min=1e-30)
        gamma = (curved / dot(u, preconditioned(u, basis, damp)).clamp(min=1e-30)).clamp(1e-6, 1e8)
        pairs = [*pairs[-MEMORY + 1 :], (s, u, 1 / curved)]
        W, loss, G = new, new_loss, new_G
    if active:
        solution[torch.tensor(active)] = W
    return Probes(solution[..., :d], solution[..., d], mean, scale, converged, step)


def sketch(X: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """X [P, n, d] → orthonormal [P, d, k] and falling eigenvalues [P, k] of XᵀX's largest part, by one subspace iteration from k of its
    own rows, drawn with a fixed seed."""
    rows = torch.randperm(X.shape[1], generator=torch.Generator().manual_seed(0))[:k]
    Q = torch.linalg.qr(X[:, rows].transpose(1, 2))[0]  # [P, d, k]
    Y = torch.bmm(X, Q)
    values, turn = torch.linalg.eigh(torch.bmm(Y.transpose(1, 2), Y))
    return torch.bmm(Q, turn.flip(-1)), values.flip(-1).clamp(min=0)
