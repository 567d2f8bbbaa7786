"""`concept-depth`: from which layer on a linear probe reads a label off the last token, with noise before the text and rounded weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table
from isentrope.diagnose.probes import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isentrope.diagnose.data import Data
    from isentrope.diagnose.model import Batch, Model

VARIANT = (
    "Hidden state of the last token of each layer (0 the embedding, the last one behind the final norm), standardised, L2 logistic regression (C = `C`) "
    "on `train` of the texts, drawn within each label by `seed`. a_i = accuracy_i / accuracy_(i-1); jump: the first i / L with a_i ≥ `jump`; clear_jump: the first of "
    "them whose accuracy is two standard errors above that of the most frequent label, since below it the ratio is noise; converging: "
    "the first i / L from which on every |a_i - 1| < `flat`; converging_last: the last i / L with |a_i - 1| < `flat`, which is how the formula reads and is "
    "nearly always 1. The two thresholds are options, since no source for them was found in the published code. noise: `noise` random tokens before every text; "
    "quantised: the weights of all linear layers of the blocks rounded to `bits` bits, symmetric, a scale for each row. control: the same probe of the plain states on "
    "labels shuffled by `seed`, of which the states know nothing; selectivity = accuracy - the control's (Hewitt and Liang, EMNLP 2019), and learnt = the share of its own "
    "training labels that the control gets right, which is what the probe can do by itself."
)


class ConceptDepth(Measure):
    NAME = "concept-depth"
    WHAT = "accuracy of a linear probe for the label at every layer, where it jumps and where it converges, under noise and rounded weights"
    SOURCE = "arXiv:2404.07066 (concept depth), arXiv:1909.03368 (selectivity)"
    NEEDS = frozenset({"hidden"})
    LABELS = True
    OPTIONS = {
        "C": Option(1.0, "inverse weight of the ridge, as in scikit-learn", least=1e-6),
        "train": Option(0.6, "share of the texts that probes learn from", least=0.1, most=0.9),
        "seed": Option(42, "of the split and the noise", least=0),
        "jump": Option(1.1, "ratio of accuracies that is a jump", least=1),
        "flat": Option(0.03, "change of the ratio below which accuracy has converged", least=0),
        "noise": Option(4, "random tokens before each text in the second condition; 0 leaves it out", least=0),
        "bits": Option(4, "of the weights in the third condition; 0 leaves it out", least=0, most=8),
        "control": Option(True, "a probe of shuffled labels beside that of the labels"),
        "tolerance": Option(1e-4, "largest component of the gradient at which a probe has converged", least=1e-9),
        "iterations": Option(500, "steps of a probe at most", least=1),
    }

    def __init__(self, model: Model, data: Data | None, options: Mapping[str, Any] | None = None, say: Callable[..., None] | None = None) -> None:
        super().__init__(model, data, options, say)
        labels = self.data.labels
        self.kinds = sorted(set(labels), key=str)
        self.y = torch.tensor([self.kinds.index(label) for label in labels])
        self.rows: dict[int, Tensor] = {}  # place in the data → [L + 1, C]
        self.ids: dict[int, list[int]] = {}
        self.train, self.held = self.split()

    def split(self) -> tuple[Tensor, Tensor]:
        """Places of the texts to learn from and of those held out, each label in both."""
        generator = torch.Generator().manual_seed(self.options["seed"])
        train, held = [], []
        for kind, name in enumerate(self.kinds):
            places = (self.y == kind).nonzero()[:, 0]
            count = round(len(places) * self.options["train"])
            if not 0 < count < len(places):
                raise DiagnoseError(f"{self.data.name}: the label {name!r} has {len(places)} text{'s' * (len(places) > 1)}; wanted some to learn from and some to judge by")
            places = places[torch.randperm(len(places), generator=generator)]
            train.append(places[:count])
            held.append(places[count:])
        return torch.cat(train), torch.cat(held)

    def update(self, batch: Batch) -> None:
        assert batch.hidden is not None
        states = torch.stack([batch.last(layer).float().cpu() for layer in range(len(batch.hidden))], 1)
        for row, index in enumerate(batch.index.tolist()):
            self.rows[index] = states[row]
            self.ids[index] = batch.ids[row, : batch.lengths[row]].tolist()

    def again(self, what: str, ids: list[list[int]]) -> Tensor:
        """Another pass, of other tokens or by other weights → [L + 1, M, C]."""
        from isentrope.diagnose.model import over

        found = torch.empty(self.model.layers + 1, len(ids), self.model.width)
        done = 0
        for batch in over(self.model, ids, self.NEEDS, 32):
            assert batch.hidden is not None
            for layer in range(len(batch.hidden)):
                found[layer, batch.index] = batch.last(layer).float().cpu()
            done += len(batch.index)
            self.progress(what, done, len(ids))
        return found

    def finish(self) -> Result:
        o = self.options
        ids = [self.ids[i] for i in range(len(self.rows))]
        conditions = {"plain": torch.stack([self.rows[i] for i in range(len(self.rows))], 1)}
        if o["noise"]:
            generator = torch.Generator().manual_seed(o["seed"])
            drawn = torch.randint(0, self.model.config.vocab_size, (len(ids), o["noise"]), generator=generator).tolist()
            conditions["noise"] = self.again("noise", [before + one for before, one in zip(drawn, ids)])
        if o["bits"]:
            with rounded(self.model, o["bits"]):
                conditions[f"{o['bits']} bits"] = self.again("rounded weights", ids)
        plain = conditions["plain"]
        states = torch.cat(list(conditions.values()))  # every layer of every condition is a probe of one solve
        y, held = self.y[self.train], self.y[self.held]
        probes = fit(states[:, self.train], y, len(self.kinds), o["C"], o["tolerance"], o["iterations"], lambda done, of: self.progress("probes", done, of))
        scores = probes.scores(states[:, self.held])
        guesses = (scores[..., 0] > 0).long() if len(self.kinds) == 2 else scores.argmax(-1)
        layers = self.model.layers
        table = Table({"condition": "", "layer": "", "accuracy": "", "f1": "macro", "auc": "", "ratio": "to the layer before"})
        points = Table({"condition": "", "jump": "of the depth", "clear_jump": "of the depth", "converging": "of the depth", "converging_last": "of the depth", "best": "accuracy", "best_layer": ""})
        numbers: dict[str, Any] = {"texts": len(ids), "labels": len(self.kinds), "most frequent label": float(held.bincount().max() / len(held))}
        share = numbers["most frequent label"]
        guess = share + 2 * (share * (1 - share) / len(held)) ** 0.5
        notes, tables = [], {"points": points}
        for c, name in enumerate(conditions):
            of = range(c * (layers + 1), (c + 1) * (layers + 1))
            accuracy = [float((guesses[i] == held).double().mean()) for i in of]
            ratios = [None, *(now / before if before else None for before, now in zip(accuracy, accuracy[1:]))]
            for layer, i in enumerate(of):
                auc = auc_of(scores[i, :, 0], held) if len(self.kinds) == 2 else None
                table.add(name, layer, accuracy[layer], f1_of(guesses[i], held, len(self.kinds)), auc, ratios[layer])
            jump, converging, last = turning_points(ratios, o["jump"], o["flat"])
            clear = next((i / layers for i, ratio in enumerate(ratios) if ratio is not None and ratio >= o["jump"] and accuracy[i] > guess), None)
            points.add(name, jump, clear, converging, last, max(accuracy), int(np.argmax(accuracy)))
            stuck = [layer for layer, i in enumerate(of) if not probes.converged[i]]
            if stuck:
                notes.append(f"{name}: the probes of layers {', '.join(map(str, stuck))} have not converged in {o['iterations']} steps; raise iterations, or lower C")
            if name == "plain":
                numbers |= {"best accuracy": max(accuracy), "jump, of the depth": jump, "clear jump, of the depth": clear, "converging, of the depth": converging}
                if o["control"]:
                    tables["control"] = self.control(plain, accuracy, notes)
                    column = tables["control"].column("selectivity")
                    numbers["selectivity at the best layer"] = column[int(np.argmax(accuracy))]
        if len(self.train) <= self.model.width:
            notes.append(f"{len(self.train)} texts to learn from for {self.model.width} features: any labels can be told apart there, and probes are the ridge's as much as the data's; wanted more than {self.model.width}")
        constant = probes.scale[: layers + 1].isinf().sum(1).tolist()
        flat = [layer for layer, count in enumerate(constant) if count == self.model.width]
        some = {layer: count for layer, count in enumerate(constant) if 0 < count < self.model.width}
        if some:
            notes.append(f"up to {max(some.values())} of {self.model.width} features are constant over the texts, at layer {', '.join(map(str, some))}; they tell a probe nothing")
        if flat:
            notes.append(f"all features are constant at layer {', '.join(map(str, flat))}: every text ends in the same token, and the probe there guesses")
        chance = tables["control"].column("control") if "control" in tables else []
        return Result(table, VARIANT, numbers, tables, notes, lambda figure: draw(figure, table, numbers["most frequent label"], chance))

    def control(self, states: Tensor, accuracy: list[float], notes: list[str]) -> Table:
        """Probes of the plain states [L + 1, M, C] on labels that are shuffled over all texts, beside the accuracies of the true ones."""
        o = self.options
        y = self.y[torch.randperm(len(self.y), generator=torch.Generator().manual_seed(o["seed"]))]
        probes = fit(states[:, self.train], y[self.train], len(self.kinds), o["C"], o["tolerance"], o["iterations"], lambda done, of: self.progress("probes of shuffled labels", done, of))
        if not bool(probes.converged.all()):
            notes.append(f"control: the probes of {int((~probes.converged).sum())} layers have not converged in {o['iterations']} steps")
        table = Table({"layer": "", "accuracy": "", "control": "accuracy", "selectivity": "", "learnt": "share of the shuffled training labels"})
        held, learnt = ((probes.predict(states[:, places]) == y[places]).double().mean(1).tolist() for places in (self.held, self.train))
        for layer, (own, chance, known) in enumerate(zip(accuracy, held, learnt)):
            table.add(layer, own, chance, own - chance, known)
        return table


def turning_points(ratios: list[float | None], jump: float, flat: float) -> tuple[float | None, float | None, float | None]:
    """Of ratios [L + 1], the first of them None: jump, converging and converging_last, as shares of the depth; None where there is none."""
    depth = len(ratios) - 1
    known = [(i, ratio) for i, ratio in enumerate(ratios) if ratio is not None]
    first = next((i / depth for i, ratio in known if ratio >= jump), None)
    still = [i for i, ratio in known if abs(ratio - 1) < flat]
    moving = [i for i, ratio in known if abs(ratio - 1) >= flat]
    settled = max(moving, default=0) + 1
    return first, settled / depth if settled <= depth else None, still[-1] / depth if still else None


def auc_of(scores: Tensor, y: Tensor) -> float:
    """Share of the pairs of a text of each class that the scores put in order, half of those that are equal."""
    right, wrong = scores[y == 1].double(), scores[y == 0].double()
    return float(((right[:, None] > wrong).double() + 0.5 * (right[:, None] == wrong)).mean())


def f1_of(guesses: Tensor, y: Tensor, classes: int) -> float:
    """Mean over the classes of 2 hits / (guesses + texts)."""
    found = []
    for kind in range(classes):
        hits = float(((guesses == kind) & (y == kind)).sum())
        found.append(2 * hits / max(float((guesses == kind).sum() + (y == kind).sum()), 1.0))
    return sum(found) / classes


@contextlib.contextmanager
def rounded(model: Model, bits: int) -> Iterator[None]:
    """Within it the weights of all linear layers of the blocks are whole multiples of their row's largest / (2^(bits - 1) - 1)."""
    most = max(2 ** (bits - 1) - 1, 1)
    layers: list[Any] = [part for part in model.blocks().modules() if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"]
    if not layers:
        raise DiagnoseError(f"{model.name}: its blocks have no linear layers to round; leave the condition out: bits=0")
    kept = [layer.weight.data for layer in layers]
    try:
        for layer in layers:
            W = layer.weight.data
            step = (W.abs().amax(1 if isinstance(layer, nn.Linear) else 0, keepdim=True) / most).clamp(min=1e-30)
            layer.weight.data = (W / step).round().clamp(-most, most) * step
        yield
    finally:
        for layer, W in zip(layers, kept):
            layer.weight.data = W


def draw(figure: Figure, table: Table, chance: float, control: list[float]) -> None:
    axes = figure.subplots()
    for name in dict.fromkeys(table.column("condition")):
        rows = [row for row in table.rows if row[0] == name]
        axes.plot([row[1] for row in rows], [row[2] for row in rows], "o-", markersize=3, label=name)
    if control:
        axes.plot(range(len(control)), control, "x--", color="grey", markersize=3, label="shuffled labels")
    axes.axhline(chance, color="grey", linestyle=":", label="most frequent label")
    axes.set(xlabel="layer", ylabel="accuracy of the probe", ylim=(None, 1.02))
    axes.legend(fontsize=8)


MEASURE = ConceptDepth
measure = ConceptDepth.measure
