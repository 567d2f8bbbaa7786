"""`representation`: how many directions the hidden states of a layer use, and how fast their variance falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table
from isentrope.diagnose.spectrum import entropy, power_law, rankme, squared_singular_values
from isentrope.diagnose.token_matrix import TokenMatrix, largest_drop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isentrope.diagnose.data import Data
    from isentrope.diagnose.model import Batch, Model

# The names under which the three variants stand in every output; they differ by a factor of five on one spectrum.
VARIANTS = {
    "rankme_singular": "exp H of the normalised singular values of Z as it is (RankMe, arXiv:2210.02885)",
    "rankme_centred": "exp H of the normalised singular values of the centred Z",
    "rankme_eigenvalues": "exp H of the normalised eigenvalues of the centred covariance (arXiv:2509.23024, eq. 1)",
}
VARIANT = (
    "Z [M, d]: the hidden state of the last token of each sequence, or with `tokens` those of all tokens of the first sequences; layer 0 the embedding, the last layer behind the final norm. "
    + "; ".join(f"{name}: {what}" for name, what in VARIANTS.items())
    + "; 1e-7 is added to the normalised values. α and R²: weighted least squares of log λ_i on -log i, weights 1/i, on the centred "
    "covariance's eigenvalues. Matrix entropy: of the eigenvalues of ZZᵀ, trace normalised, over ln min(M, d). Entropy within a "
    "sequence: -ln Σλ² (Rényi, order 2) of the Gram matrix of its tokens, trace normalised, over ln T, mean over sequences."
)
TOKEN_MATRIX = (
    " token_matrix: of each token's vector as Z [heads, d], less its mean over heads, -Σλ ln λ / ln H of ZZᵀ / H, mean over tokens (EntropyPrune); normalised: the trace divided by; "
    "raw: as the released code has it, not divided, which is no entropy. Of {}."
)


def within(states: Tensor, lengths: Tensor) -> Tensor:
    """states [B, T, C] with rows of padding 0 → [B]: -ln ‖K‖² of K = ZZᵀ / tr ZZᵀ, over ln T; NaN for one token. No eigenvalues are
    needed: Σλ² is the squared length of K."""
    gram = states @ states.transpose(1, 2)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)
    order2 = -torch.log(gram.flatten(1).square().sum(1) / trace.square())
    return (order2 / lengths.to(order2).log()).where(lengths.to(order2.device) > 1, torch.nan)


class Representation(Measure):
    NAME = "representation"
    WHAT = "effective rank (RankMe, three variants), power law of the spectrum (α-ReQ) and matrix entropy, by layer; phases over checkpoints"
    SOURCE = "arXiv:2509.23024, arXiv:2210.02885, NeurIPS 2022 (α-ReQ)"
    NEEDS = frozenset({"hidden"})
    OPTIONS = {
        "first": Option(10, "first index of the power law's fit", least=1),
        "last": Option(100, "last index of it", least=3),
        "within": Option(True, "the entropy within sequences too"),
        "matrix": Option("", "the matrix entropy of single tokens too (EntropyPrune): of hidden states cut into heads, or of the queries of each block", choices=("", "hidden", "query")),
        "tokens": Option(0, "rows are all tokens of the first sequences, so many at most, as the trainer's metrics.representation has them; 0: the last of each sequence", least=0),
    }

    def __init__(self, model: Model, data: Data | None, options: Mapping[str, Any] | None = None, say: Callable[..., None] | None = None) -> None:
        super().__init__(model, data, options, say)
        if self.options["last"] < self.options["first"] + 2:
            raise DiagnoseError(f"representation: first={self.options['first']} and last={self.options['last']}; wanted three indices or more")
        self.rows: list[list[Tensor]] = []
        self.places: list[Tensor] = []  # of the rows' sequences in the data; with `tokens` alone
        self.entropies: list[Tensor] = []
        self.matrix = TokenMatrix(model, self.options["matrix"]) if self.options["matrix"] else None

    def update(self, batch: Batch) -> None:
        assert batch.hidden is not None
        if most := self.options["tokens"]:
            mask = batch.mask.to(batch.hidden[0].device)
            self.places.append(batch.index.repeat_interleave(batch.lengths))
            self.rows.append([x[mask].float().cpu() for x in batch.hidden])
            self.keep_first(most)
        else:
            self.rows.append([batch.last(layer).float().cpu() for layer in range(len(batch.hidden))])
        if self.matrix:
            self.matrix.update(batch)
        if self.options["within"]:
            lengths = batch.lengths.to(batch.hidden[0].device)
            mask = batch.mask.to(lengths.device)[..., None]
            whole = bool(mask.all())
            self.entropies.append(torch.stack([within((x if whole else x * mask).float(), lengths) for x in batch.hidden], 1).cpu())

    def keep_first(self, most: int) -> None:
        """Of all rows so far those of the first tokens of the data, `most` at most: batches come by length."""
        places = torch.cat(self.places)
        order = places.sort(stable=True).indices[:most]
        self.places = [places[order]]
        self.rows = [[torch.cat(rows)[order] for rows in zip(*self.rows)]]

    def finish(self) -> Result:
        first, last = self.options["first"], self.options["last"]
        layers = len(self.rows[0])
        M, d = sum(len(rows[0]) for rows in self.rows), self.rows[0][0].shape[1]
        inner = torch.cat(self.entropies).double().nanmean(0).tolist() if self.entropies else [math.nan] * layers
        table = Table({"layer": "", **dict.fromkeys(VARIANTS, ""), "alpha": "", "r2": "", "r2_to_100": "", "r2_to_500": "",
                       "matrix_entropy": "of ln min(M, d)", "entropy_within": "of ln T", "constant": "features"})  # fmt: skip
        notes, halves, spectra = [], [], {}
        rows = "tokens" if self.options["tokens"] else "sequences"
        for layer in range(layers):
            self.progress("spectra", layer, layers)
            Z = torch.cat([rows[layer] for rows in self.rows]).double().numpy()
            centred = Z - Z.mean(0)
            raw, own = squared_singular_values(Z), squared_singular_values(centred)
            eigenvalues = own / max(M - 1, 1)
            # what rounding leaves of a direction without variance is none
            eigenvalues[eigenvalues < eigenvalues[0] * 1e-13] = 0
            alpha, r2 = power_law(eigenvalues, first, last)
            # constant: as far as the rounding of the float32 states can tell
            constant = int((centred.std(0) <= 1e-6 * np.abs(Z).max(0)).sum())
            table.add(layer, rankme(np.sqrt(raw)), rankme(np.sqrt(own)), rankme(eigenvalues), alpha, r2, power_law(eigenvalues, 1, 100)[1],
                      power_law(eigenvalues, 1, 500)[1], entropy(raw) / math.log(max(min(M, d), 2)), inner[layer], constant)  # fmt: skip
            if layer == layers - 1:
                half = Z[::2] - Z[::2].mean(0) if M > 3 else centred  # batches go by length: every other row
                halves = [rankme(squared_singular_values(half)), table.rows[-1][3]]
            spectra[layer] = eigenvalues
        self.progress("spectra", layers, layers)
        if M <= d:
            grown = halves[1] / halves[0] - 1
            notes.append(
                f"{M} {rows} for {d} features: a rank is {M - 1} at most, {(d - M + 1) / d:.0%} below what {d} features can have. The last layer's "
                f"rankme_eigenvalues is {halves[0]:.4g} of half the {rows} and {halves[1]:.4g} of all ({grown:+.0%}): more of them would "
                f"{'raise it further' if grown > 0.05 else 'hardly change it'}. Wanted more than {d}; compare layers and models at the same number alone"
            )
        flat = [(row[0], row[-1]) for row in table.rows if row[-1] == d]
        if flat:
            notes.append(f"all features are constant at layer {', '.join(str(layer) for layer, _ in flat)}: every sequence ends in the same token there, and no spectrum is left")
        elif any(table.column("constant")):
            most = max(table.rows, key=lambda row: row[-1])
            notes.append(f"constant features, up to {most[-1]} of {d} at layer {most[0]}: they have no variance and take no part in a rank")
        if any(value is None for value in table.column("alpha")):
            notes.append(f"no power law at some layers: fewer than three eigenvalues above 0 between {first} and {last}")
        end = table.rows[-1]
        numbers = {f"{rows} M": M, "features d": d, "last layer rankme_eigenvalues": end[3], "last layer alpha": end[4], "last layer R²": end[5]}
        variant, tables = VARIANT, {}
        if self.matrix:
            tables["token_matrix"] = self.matrix.table()
            variant += TOKEN_MATRIX.format("the hidden states" if self.options["matrix"] == "hidden" else "the queries that each block makes, before their positions, which leave it as it is")
            numbers |= {f"largest drop of the tokens' matrix entropy, {form}, at layer": largest_drop(tables["token_matrix"], form) for form in ("normalised", "raw")}
        return Result(table, variant, numbers, tables, notes, draw=lambda figure: draw(figure, table, spectra, first, last), size=(9.0, 3.4))

    @classmethod
    def over(cls, results: Sequence[tuple[str, Result]]) -> Result:
        """The last layer over checkpoints, with the phase that each step from one to the next belongs to."""
        whole = super().over(results)
        table = Table({"model": "", "rankme_eigenvalues": "", "alpha": "", "r2": "", "phase": "since the one before"})
        ends = [(name, result.table.rows[-1]) for name, result in results]
        told = phases([row[3] for _, row in ends], [row[4] for _, row in ends])
        for (name, row), phase in zip(ends, told):
            table.add(name, row[3], row[4], row[5], phase)
        whole.tables["layers"] = whole.table
        whole.table = table
        whole.variant = (
            "Phases by the last layer's rankme_eigenvalues and α between two checkpoints: entropy-seeking where the rank rises and α falls, "
            "compression-seeking where the rank falls and α rises, warmup where the rank falls before it has risen once; mixed otherwise. " + VARIANT
        )
        whole.numbers = {}
        whole.draw = lambda figure: draw_phases(figure, table)
        whole.size = (7.0, 3.4)
        return whole


def phases(ranks: Sequence[float], alphas: Sequence[float]) -> list[str]:
    """The phase of each step between neighbours; "" of the first."""
    found, risen = [""], False
    for (rank, alpha), (next_rank, next_alpha) in zip(zip(ranks, alphas), zip(ranks[1:], alphas[1:])):
        if next_rank < rank and not risen:
            found.append("warmup")
        elif next_rank > rank and (alpha is None or next_alpha is None or next_alpha <= alpha):
            found.append("entropy-seeking")
        elif next_rank < rank and (alpha is None or next_alpha is None or next_alpha >= alpha):
            found.append("compression-seeking")
        else:
            found.append("mixed")
        risen = risen or next_rank > rank
    return found


def draw(figure: Figure, table: Table, spectra: Mapping[int, np.ndarray], first: int, last: int) -> None:
    ranks, spectrum, entropies = figure.subplots(1, 3)
    layers = table.column("layer")
    for name in VARIANTS:
        ranks.plot(layers, table.column(name), label=name)
    ranks.set(xlabel="layer", title="effective rank", yscale="log")
    ranks.legend(fontsize=7)
    for layer in sorted({0, len(spectra) // 2, len(spectra) - 1}):
        values = spectra[layer][spectra[layer] > 0]
        spectrum.loglog(range(1, len(values) + 1), values / values.sum() if len(values) else values, label=f"layer {layer}")
    spectrum.axvspan(first, last, alpha=0.12, color="grey")
    spectrum.set(xlabel="index", title="share of the variance")
    spectrum.legend(fontsize=7)
    entropies.plot(layers, table.column("matrix_entropy"), label="over the data")
    if any(x is not None for x in table.column("entropy_within")):
        entropies.plot(layers, [x if x is not None else np.nan for x in table.column("entropy_within")], label="within a sequence, order 2")
    entropies.set(xlabel="layer", title="matrix entropy, of its most", ylim=(0, 1))
    entropies.legend(fontsize=7)


def draw_phases(figure: Figure, table: Table) -> None:
    axes = figure.subplots()
    places = range(len(table.rows))
    axes.plot(places, table.column("rankme_eigenvalues"), "o-", label="rankme_eigenvalues")
    axes.set_xticks(list(places), table.column("model"), rotation=30, ha="right", fontsize=7)
    axes.set(ylabel="rankme_eigenvalues")
    other = axes.twinx()
    other.plot(places, [x if x is not None else np.nan for x in table.column("alpha")], "s--", color="C1", label="α")
    other.set(ylabel="α")
    colours = {"warmup": "C7", "entropy-seeking": "C2", "compression-seeking": "C3", "mixed": "none"}
    for place, phase in enumerate(table.column("phase")):
        if phase:
            axes.axvspan(place - 1, place, alpha=0.1, color=colours[phase])
    axes.legend(loc="upper left", fontsize=7)
    other.legend(loc="upper right", fontsize=7)


MEASURE = Representation
measure = Representation.measure
