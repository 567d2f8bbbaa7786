"""`mixer-state`: of every layer of a model with model.mixers, the entropy of its rows of weights and how many directions its states use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from isentrope.diagnose.measure import Measure, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isentrope.diagnose.data import Data
    from isentrope.diagnose.model import Batch, Model

VARIANT = (
    "Entropy of each row of weights made to sum to one, in nats, means over the rows of two keys or more where no weight is negative; defined: the share "
    "of these. Weights are those of the softmax, or (φ(q_t)·φ(k_s)) times what the decay leaves; of gated_delta a row has none, since the delta rule "
    "rewrites what earlier tokens wrote. rank: exp of the entropy of the singular values of a head's state behind a sequence's last token (effective rank, "
    "Roy and Vetterli 2007), means over sequences; most: the smaller side of the state."
)


class MixerState(Measure):
    NAME = "mixer-state"
    WHAT = "entropy of the weights of softmax and linear attention by layer, effective rank of the states of recurrences (checkpoints with model.mixers)"
    SOURCE = "arXiv:2405.15731 (one form for all of them); isentrope.nn.weight_entropy, effective_rank"
    NEEDS = frozenset({"mixers"})

    def __init__(self, model: Model, data: Data | None, options: Mapping[str, Any] | None = None, say: Callable[..., None] | None = None) -> None:
        super().__init__(model, data, options, say)
        self.kinds: list[str] = []
        self.most: list[int] = []
        self.sums: torch.Tensor | None = None  # [L, H, 4] entropy, normalised, rows where it is defined, rank
        self.rows = 0
        self.sequences = 0

    def update(self, batch: Batch) -> None:
        assert batch.mixers is not None
        self.kinds, self.most = [one.kind for one in batch.mixers], [one.most for one in batch.mixers]
        sums = []
        for layer, one in enumerate(batch.mixers):
            counted = ((one.keys > 1) & batch.mask.to(one.keys.device))[:, None]  # [B, 1, T]
            defined = counted & ~one.entropy.isnan()
            entropy = one.entropy.nan_to_num(0) * defined
            room = one.keys.clamp(min=2).double().log()[:, None]
            rank = torch.zeros_like(entropy[:, :, 0]) if one.rank is None else one.rank
            sums.append(torch.stack([entropy.sum((0, 2)), (entropy / room).sum((0, 2)), defined.double().sum((0, 2)), rank.sum(0)], -1).cpu())
            if layer == 0:
                self.rows += int(counted.sum())
        self.sequences += len(batch.lengths)
        found = torch.stack(sums)
        self.sums = found if self.sums is None else self.sums + found

    def finish(self) -> Result:
        assert self.sums is not None
        table = Table({"layer": "", "head": "", "kind": "", "entropy": "nats", "normalised": "of ln n", "defined": "share of rows", "rank": "", "most": ""})
        by_layer = Table({"layer": "", "kind": "", "entropy": "nats", "normalised": "of ln n", "defined": "share of rows", "rank": "", "most": ""})

        def row(sums: torch.Tensor, heads: int, most: int) -> list[Any]:
            entropy, normalised, defined, rank = sums.tolist()
            share = defined / max(self.rows * heads, 1)
            return [entropy / defined if defined else None, normalised / defined if defined else None, share, rank / (self.sequences * heads) if most else None, most or None]

        layers, heads = self.sums.shape[:2]
        for layer in range(layers):
            for head in range(heads):
                table.add(layer, head, self.kinds[layer], *row(self.sums[layer, head], 1, self.most[layer]))
            by_layer.add(layer, self.kinds[layer], *row(self.sums[layer].sum(0), heads, self.most[layer]))
        notes = []
        without = sorted({kind for kind, sums in zip(self.kinds, self.sums) if float(sums[:, 2].sum()) == 0})
        if without and self.rows:
            notes.append(f"{', '.join(without)}: no row has weights of one sign alone, and an entropy is not defined there")
        if self.rows == 0:
            notes.append("no row has two keys: every sequence is one token long, and there is no entropy to tell")
        numbers = {"layers": layers, "heads": heads, "sequences": self.sequences, "rows per head": self.rows}
        return Result(table, VARIANT, numbers, {"layers": by_layer}, notes, lambda figure: draw(figure, by_layer), size=(8.0, 3.2))


def draw(figure: Figure, layers: Table) -> None:
    names = [f"{layer}\n{kind}" for layer, kind in zip(layers.column("layer"), layers.column("kind"))]
    share = [None if rank is None else rank / most for rank, most in zip(layers.column("rank"), layers.column("most"))]
    for ax, values, title in zip(figure.subplots(1, 2), (layers.column("normalised"), share), ("entropy / ln n", "effective rank / most")):
        there = [(name, value) for name, value in zip(names, values) if value is not None]
        ax.bar([name for name, _ in there], [value for _, value in there])
        ax.set(title=title, ylim=(0, 1), xlabel="layer" if there else "not defined in any layer")


MEASURE = MixerState
measure = MixerState.measure
