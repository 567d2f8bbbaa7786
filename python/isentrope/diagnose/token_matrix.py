"""The matrix entropy of single tokens, by which EntropyPrune keeps or drops them: a token's vector as a matrix of heads.

    Z [H, d], less its mean over the heads     A = Z Zᵀ / H     h = -Σ λ ln λ / ln H, of A's eigenvalues λ, none below 1e-10

In the released code A is not divided by its trace (`raw`): h is no entropy then, can be below 0 and ranks tokens by their energy as well.
`normalised` divides it, and lies in [0, 1]. A rotation of all heads alike, as that of rotary positions, leaves A as it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError, Table

if TYPE_CHECKING:
    from isentrope.diagnose.model import Batch, Model

MOST = 128  # entries of a head; of more, means of equal groups are taken
LEAST = 1e-10  # of an eigenvalue


def token_entropies(Z: Tensor) -> tuple[Tensor, Tensor]:
    """Z [N, H, d] of N tokens, H ≥ 2 → normalised [N] and raw [N], float64, of ln H. The eigenvalues are those of the H × H Gram matrix, which are the d × d
    covariance's. A token whose heads are all the same has no trace to divide by: normalised 0."""
    heads, d = Z.shape[1:]
    if heads < 2:
        raise DiagnoseError(f"{heads} head: the matrix of a token has one row, and no entropy; wanted two heads or more")
    Z = Z.double()
    if d > MOST:
        groups = -(-d // MOST)
        while d % groups:
            groups += 1
        Z = Z.unflatten(2, (d // groups, groups)).mean(3)
    Z = Z - Z.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh(Z @ Z.mT / heads)  # [N, H]
    trace = values.clamp(min=0).sum(1, keepdim=True)

    def entropy(of: Tensor) -> Tensor:
        of = of.clamp(min=LEAST)
        return -(of * of.log()).sum(1) / math.log(heads)

    normalised = entropy(values / trace.clamp(min=1e-300)).clamp(min=0)
    return normalised.where(trace[:, 0] > 0, 0.0), entropy(values)


class TokenMatrix:
    """Means over all tokens, by layer. of: "hidden", the layers' hidden states cut into as many parts as there are heads, or "query", the queries of each block."""

    def __init__(self, model: Model, of: str) -> None:
        self.model, self.of = model, of
        if of == "hidden" and model.width % model.heads:
            raise DiagnoseError(f"{model.name}: a width of {model.width} is no multiple of its {model.heads} heads; wanted matrix=query")
        if of == "query":
            self.parts: list[tuple[Any, Any]] = [(getattr(block, "input_layernorm", None), getattr(getattr(block, "self_attn", None), "q_proj", None)) for block in model.blocks()]
            if any(norm is None or projection is None for norm, projection in self.parts):
                raise DiagnoseError(f"{model.name}: its blocks have no input_layernorm and self_attn.q_proj, as Llama's have; wanted matrix=hidden")
        self.sums: list[Tensor] = []  # a batch each: [layers, 2]
        self.count = 0

    def update(self, batch: Batch) -> None:
        assert batch.hidden is not None
        mask = batch.mask.to(batch.hidden[0].device)
        found = []
        with torch.inference_mode():
            for layer, x in enumerate(batch.hidden if self.of == "hidden" else batch.hidden[:-1]):
                rows = x[mask]
                if self.of == "query":
                    norm, projection = self.parts[layer]
                    rows = projection(norm(rows))
                normalised, raw = token_entropies(rows.unflatten(1, (self.model.heads, -1)))
                found.append(torch.stack([normalised.sum(), raw.sum()]))
        self.sums.append(torch.stack(found).cpu())
        self.count += int(mask.sum())

    def table(self) -> Table:
        """Means by layer, and their change since the layer before."""
        means = torch.stack(self.sums).sum(0) / self.count
        table = Table({"layer": "", "normalised": "of ln H", "raw": "of ln H, no entropy", "change_normalised": "", "change_raw": ""})
        for layer, (normalised, raw) in enumerate(means.tolist()):
            change = [None, None] if layer == 0 else (means[layer] - means[layer - 1]).tolist()
            table.add(layer, normalised, raw, *change)
        return table


def largest_drop(table: Table, form: str) -> int | None:
    """The layer at which the mean has fallen most since the one before; None where it never falls. EntropyPrune prunes there (its own is given by hand)."""
    falls = [(change, layer) for layer, change in zip(table.column("layer"), table.column(f"change_{form}")) if change is not None]
    change, layer = min(falls, default=(0.0, 0))
    return layer if change < 0 else None
