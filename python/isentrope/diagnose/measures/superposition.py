"""`superposition`: how many features a layer holds for each of its dimensions, by a sparse autoencoder that is trained on its activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table
from isentrope.diagnose.sparse_autoencoder import Superposition as Found
from isentrope.diagnose.sparse_autoencoder import superposition, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isentrope.diagnose.data import Data
    from isentrope.diagnose.model import Batch, Model

ROWS_A_FEATURE = 10  # activations below which there are too few for so wide an autoencoder
STEPS = 500  # below which a training of any width has hardly begun
UNEXPLAINED = 0.3
MASSIVE = 100.0  # times the median of the squared length


class Superposition(Measure):
    NAME = "superposition"
    WHAT = "features in use and superposition ψ of layers, by a sparse autoencoder trained here"
    SOURCE = "superposition as lossy compression, arXiv:2512.13568"
    NEEDS = frozenset({"hidden"})
    OPTIONS = {
        "layers": Option("middle", "numbers with commas between, all, or middle; 0 is the embedding"),
        "skip": Option(1, "tokens at the beginning of a sequence that are left out: the first one's states are often a hundred times the others'", least=0),
        "width": Option(8.0, "features of the autoencoder for each dimension", least=0.01),
        "l1": Option(0.1, "weight of the codes' sum, of activations with mean square length 1", least=0.0),
        "epochs": Option(4, "passes over the activations", least=1),
        "batch": Option(1024, "activations of a step", least=2),
        "lr": Option(3e-3, "rate of Adam; falls to 0 in the last fifth", least=1e-9),
        "seed": Option(0, "of the start and of the order", least=0),
    }

    def __init__(self, model: Model, data: Data | None, options: Mapping[str, Any] | None = None, say: Callable[..., None] | None = None) -> None:
        super().__init__(model, data, options, say)
        word, last = self.options["layers"], model.layers
        try:
            self.layers = {"all": list(range(last + 1)), "middle": [(last + 1) // 2]}.get(word) or sorted({int(one) for one in word.split(",")})
        except ValueError:
            self.layers = [-1]
        if not all(0 <= layer <= last for layer in self.layers):
            raise DiagnoseError(f"layers={word}; wanted all, middle, or numbers from 0 to {last} with commas between")
        self.rows: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}

    def update(self, batch: Batch) -> None:
        assert batch.hidden is not None
        mask = batch.mask.clone()
        mask[:, : self.options["skip"]] = False
        for layer, rows in self.rows.items():
            rows.append(batch.hidden[layer][mask.to(batch.hidden[layer].device)].float().cpu())

    def finish(self) -> Result:
        table = Table({"layer": "", "features_in_use": "", "psi": "", "width": "features", "l0": "codes a row", "dead": "share", "unexplained": "share of variance", "activations": ""})
        notes, found = [], {}
        given = self.options
        for layer in self.layers:
            x = torch.cat(self.rows.pop(layer))
            n, dimension = x.shape
            width = max(1, round(given["width"] * dimension))
            if n < 2 * given["batch"]:
                raise DiagnoseError(f"superposition: {n} activations at layer {layer}; wanted twice batch={given['batch']} at least: more or longer texts, or a smaller batch")
            flat = int((x.std(0) <= 1e-6 * x.abs().max(0).values).sum())
            if flat:
                notes.append(f"layer {layer}: {flat} of {dimension} dimensions are constant, and hold no feature, though ψ counts them")
            size = (x - x.mean(0)).square().sum(1)
            massive = size > MASSIVE * size.median()
            held = (size[massive].sum() / size.sum().clamp_min(1e-30)).item()
            if held > 0.5:
                notes.append(f"layer {layer}: {int(massive.sum())} of {n} activations have {held:.0%} of the variance, so that the autoencoder is theirs; leave them out (skip)")
            if layer == self.layers[0]:
                if n < ROWS_A_FEATURE * width:
                    notes.append(f"{n} activations for {width} features: fewer than {ROWS_A_FEATURE} each; features are missed or fitted to single tokens")
                steps = given["epochs"] * (n // given["batch"])
                if steps < STEPS:
                    notes.append(f"{steps} steps of training: features that have not grown yet count among those in use; wanted {STEPS} or more (epochs, or a smaller batch)")
            made = train(x, width=width, l1=given["l1"], epochs=given["epochs"], batch=given["batch"], lr=given["lr"], seed=given["seed"],
                         progress=partial(self.progress, f"autoencoder of layer {layer}, steps"))  # fmt: skip
            found[layer] = own = superposition(made, x)
            table.add(layer, own.features, own.psi, width, own.l0, own.dead, own.unexplained, n)
            if own.unexplained > UNEXPLAINED:
                notes.append(f"layer {layer}: {own.unexplained:.0%} of the variance is not explained by the codes: ψ is that of the rest; lower l1, or train longer")
        notes.append(f"ψ depends on the width ({given['width']:g} a dimension) and on the sparsity (l1 {given['l1']:g}): compare at the same ones alone")
        highest = max(self.layers, key=lambda layer: found[layer].psi)
        numbers = {"highest ψ": found[highest].psi, "layer of the highest ψ": highest, "mean ψ": sum(own.psi for own in found.values()) / len(found)}
        variant = (f"ψ = exp(H(p)) / D, p the share of each feature in the sum of all codes; autoencoder of {given['width']:g} D features, ReLU, decoder rows of norm 1, "
                   f"loss ‖x̂ - x‖² + {given['l1']:g} ‖a‖₁ on activations of mean square length 1, Adam {given['lr']:g}, {given['epochs']} epochs; codes of the same activations; "
                   f"hidden states of all tokens but the first {given['skip']} of a sequence, layer 0 the embedding, the last layer behind the final norm")  # fmt: skip
        return Result(table, variant, numbers, notes=notes, draw=lambda figure: draw(figure, table, found), size=(8.0, 3.4))


def draw(figure: Figure, table: Table, found: dict[int, Found]) -> None:
    by_layer, shares = figure.subplots(1, 2)
    by_layer.plot(table.column("layer"), table.column("psi"), "o-")
    by_layer.axhline(1, color="grey", linewidth=0.8)
    by_layer.set(xlabel="layer", ylabel="ψ, features in use a dimension", ylim=(0, None))
    for layer in sorted({min(found), max(found), *[sorted(found)[len(found) // 2]]}):
        share = found[layer].share.sort(descending=True).values
        share = share[share > 1e-7]
        shares.loglog(range(1, len(share) + 1), share, label=f"layer {layer}")
    shares.set(xlabel="feature, by share", ylabel="share of all codes")
    shares.legend(fontsize=7)


MEASURE = Superposition
measure = Superposition.measure
