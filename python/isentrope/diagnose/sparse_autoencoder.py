"""A sparse autoencoder trained here, and what its codes say of superposition.

With x [N, D] centred and scaled to mean ‖x‖² = 1, W_e, W_d [F, D], rows of W_d of norm 1:

    a = relu(x W_eᵀ + b_e)     x̂ = a W_d + b_d     loss = mean over rows of ‖x̂ - x‖² + l1 · Σ_j a_j

and for codes a of many rows, p_j = Σ|a_j| / Σ_k Σ|a_k|:  features in use = exp(-Σ p ln p),  ψ = features / D.  ψ <= 1: no superposition.

Source of the measure: superposition as lossy compression, arXiv 2512.13568, with an autoencoder of L1; ψ depends on width and sparsity, which
is why both are told. The gradient is exact and written out: where few codes are above 0 the products with them skip the others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError

# Share of codes above 0 below which products by rows of a sparse matrix take less time than whole ones, on one core.
SPARSE_BELOW = 0.12
THRESHOLD = 1.5  # standard deviations above which a code is at first; a start at 0 spends its first steps on making codes sparse
DECAY = 5.0  # the rate falls to 0 in the last fifth of the steps
EVALUATED = 1024  # rows at a time, so that the codes are never all in memory


@dataclass
class Autoencoder:
    """encoder, decoder [F, D]; encoder_bias [F]; decoder_bias [D]; mean [D] and scale are those of the data it was trained on."""

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    mean: Tensor
    scale: float

    @property
    def width(self) -> int:
        return self.encoder.shape[0]

    def normalised(self, x: Tensor) -> Tensor:
        return (x.to(self.encoder.dtype) - self.mean) * self.scale

    def codes(self, x: Tensor) -> Tensor:
        """[N, F] of rows [N, D]."""
        return torch.relu_(torch.addmm(self.encoder_bias, self.normalised(x), self.encoder.T))


@dataclass
class Superposition:
    """What codes say.

    Attributes:
        features: exp of the entropy of the shares of the features in the sum of all codes.
        psi: features / D.
        l0: mean number of codes above 0 in a row.
        dead: share of features that no row has.
        unexplained: Σ‖x̂ - x‖² / Σ‖x - mean‖².
        share: [F] p.
    """

    features: float
    psi: float
    l0: float
    dead: float
    unexplained: float
    share: Tensor


def effective_features(mass: Tensor) -> float:
    """exp(-Σ p ln p) of masses [F] >= 0, p = mass / Σ mass. Raises DiagnoseError where all are 0."""
    total = mass.double().sum()
    if not total > 0:
        raise DiagnoseError("no feature of the autoencoder is ever active, so that their shares are 0/0; lower l1, or train for more epochs")
    p = mass.double() / total
    return math.exp(torch.special.entr(p).sum().item())


class Training:
    """The state of a training: parameters, their moments, and buffers that are used again at every step.

    Adam as Kingma and Ba have it (betas 0.9, 0.999), then the rows of the decoder are brought back to norm 1; of its gradient what is along a row
    is left out before. All of it happens in place.
    """

    def __init__(self, width: int, dimension: int, batch: int, *, l1: float, lr: float, seed: int, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu") -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        decoder = torch.randn(width, dimension, generator=generator, dtype=torch.float64)
        decoder /= decoder.norm(dim=1, keepdim=True)
        self.decoder = decoder.to(device=device, dtype=dtype)
        # Of isotropic data a code is above 0 in 7 % of the rows, and what the decoder makes of them has the size of the data.
        tail = 0.5 * math.erfc(THRESHOLD / math.sqrt(2))
        scale = dimension / (width * tail)
        self.encoder = self.decoder * scale
        self.encoder_bias = torch.full((width,), -THRESHOLD * scale / math.sqrt(dimension), dtype=dtype, device=device)
        self.decoder_bias = torch.zeros(dimension, dtype=dtype, device=device)
        self.l1, self.lr, self.step_number = l1, lr, 0
        self.density = 1.0  # of the codes of the last step
        parameters = self.parameters()
        self.gradients = [torch.empty_like(parameter) for parameter in parameters]
        for parameter, gradient in zip(parameters, self.gradients):
            parameter.grad = gradient
        self.optimizer = torch.optim.Adam(parameters, lr=lr, fused=self.decoder.device.type in ("cpu", "cuda"))
        self.codes = torch.empty(batch, width, dtype=dtype, device=device)
        self.back = torch.empty_like(self.codes)

    def parameters(self) -> list[Tensor]:
        return [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]

    def step(self, x: Tensor) -> float:
        """One update on rows [N, D] that are centred and scaled. Returns the loss before it."""
        loss = self.backward(x)
        self.gradients[2].addcmul_(self.decoder, (self.gradients[2] * self.decoder).sum(1, keepdim=True), value=-1)
        self.optimizer.step()
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True).clamp_(min=1e-12))
        self.step_number += 1
        return loss

    def backward(self, x: Tensor) -> float:
        """The loss of rows [N, D]; its gradients are left in self.gradients, in the order of parameters()."""
        n = len(x)
        codes = torch.addmm(self.encoder_bias, x, self.encoder.T, out=self.codes[:n]).relu_()
        # What holds of one step holds of the next: to count first would take as long as to make the sparse matrix.
        if self.density <= SPARSE_BELOW and codes.device.type == "cpu":
            return self._sparse(x, codes)
        self.density = torch.count_nonzero(codes).item() / codes.numel()
        error = torch.addmm(self.decoder_bias, codes, self.decoder).sub_(x)
        loss = error.square().sum().item() / n + self.l1 * codes.sum().item() / n
        encoder, encoder_bias, decoder, decoder_bias = self.gradients
        torch.sum(error, 0, out=decoder_bias).mul_(2 / n)
        torch.mm(codes.T, error, out=decoder).mul_(2 / n)
        back = torch.mm(error, self.decoder.T, out=self.back[:n]).mul_(2 / n).add_(self.l1 / n)
        torch.ops.aten.threshold_backward.grad_input(back, codes, 0, grad_input=back)
        torch.mm(back.T, x, out=encoder)
        torch.sum(back, 0, out=encoder_bias)
        return loss

    def _sparse(self, x: Tensor, codes: Tensor) -> float:
        """The same where most codes are 0: every sum over codes is one over those above 0."""
        n = len(x)
        active = codes.to_sparse_csr()
        self.density = active.values().numel() / codes.numel()
        error = (active @ self.decoder).add_(self.decoder_bias).sub_(x)
        loss = error.square().sum().item() / n + self.l1 * active.values().sum().item() / n
        encoder, encoder_bias, decoder, decoder_bias = self.gradients
        torch.sum(error, 0, out=decoder_bias).mul_(2 / n)
        back = torch.sparse.sampled_addmm(active, error, self.decoder.T, beta=0.0, alpha=2 / n)
        back.values().add_(self.l1 / n)
        # By features: one sort of the places serves both products.
        of_features = active.t().to_sparse_csr()
        torch.mul(of_features @ error, 2 / n, out=decoder)
        of_features = back.t().to_sparse_csr()
        encoder.copy_(of_features @ x)
        encoder_bias.zero_().index_add_(0, back.col_indices(), back.values())
        return loss


def train(x: Tensor, *, width: int, l1: float = 0.1, epochs: int = 1, batch: int = 2048, lr: float = 1e-3, seed: int = 0,
          progress: Callable[[int, int], None] | None = None) -> Autoencoder:  # fmt: skip
    """An autoencoder of activations [N, D] in their type, float32 or float64; each epoch in an order of its own, drawn from the seed.

    Raises DiagnoseError for fewer rows than a batch has, for activations that are not finite and for activations that are all the same.
    """
    n, dimension = x.shape
    if n < 2 or width < 1:
        raise DiagnoseError(f"an autoencoder of width {width} of {n} activations; wanted two activations at least, and a width of one")
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x).all(1)).nonzero()[0])
        raise DiagnoseError(f"activation {row} of {n} is not finite, which no autoencoder can be trained on")
    mean = x.mean(0)
    spread = (x - mean).square().sum(1).mean().item()
    if spread <= 1e-12 * max(1.0, mean.square().sum().item()):
        raise DiagnoseError(f"all {n} activations are the same, so that there is no feature to find; wanted other texts, layers or positions")
    batch = min(batch, n)
    training = Training(width, dimension, batch, l1=l1, lr=lr, seed=seed, dtype=x.dtype, device=x.device)
    generator = torch.Generator().manual_seed(seed)
    scale = 1 / math.sqrt(spread)
    steps, done = n // batch, 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        for _ in range(epochs):
            order = torch.randperm(n, generator=generator).to(x.device)
            for i in range(steps):
                # What the noise of the steps keeps active falls away at the end.
                training.optimizer.param_groups[0]["lr"] = lr * min(1.0, DECAY * (1 - done / (steps * epochs)))
                # Rows are centred when they are drawn: a copy of all of them may not fit beside them.
                training.step(x[order[i * batch : (i + 1) * batch]].sub_(mean).mul_(scale))
                done += 1
                if progress:
                    progress(done, steps * epochs)
    return Autoencoder(training.encoder, training.encoder_bias, training.decoder, training.decoder_bias, mean, scale)


def superposition(autoencoder: Autoencoder, x: Tensor) -> Superposition:
    """Features in use and ψ by the codes of activations [N, D]."""
    mass = torch.zeros(autoencoder.width, dtype=torch.float64, device=x.device)
    count = torch.zeros_like(mass)
    error = total = 0.0
    for rows in x.split(EVALUATED):
        codes = autoencoder.codes(rows)
        mass += codes.sum(0)
        count += (codes > 0).sum(0)
        given = autoencoder.normalised(rows)
        error += (codes @ autoencoder.decoder + autoencoder.decoder_bias - given).square().sum().item()
        total += given.square().sum().item()
    features = effective_features(mass)
    return Superposition(features, features / x.shape[1], count.sum().item() / len(x), (count == 0).double().mean().item(), error / total,
                         (mass / mass.sum()).cpu())  # fmt: skip
