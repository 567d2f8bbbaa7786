"""`attention-entropy`: the entropy of every head over the data, heads that collapse or are overloaded, and the bound's certificate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from isentrope.diagnose.measure import Measure, Option, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isentrope.diagnose.data import Data
    from isentrope.diagnose.model import Batch, Model

VARIANT = (
    "Entropy of each row of attention in nats, by the op entropy_attention; means over the rows of two keys or more, over all data. normalised: "
    "mean of H / ln n of a row of n keys. Kinds after arXiv:2501.03489, quartiles of [0, Max] with Max the largest head's entropy (normalised, "
    "so that rows of different lengths count alike; the paper has one length): collapsed below Max/4, overloaded above 3 Max/4. bound: theorem "
    "3.1 of arXiv:2303.06296 with the length of a row's centred logits in place of the product of norms, over ln n; certified: share of rows "
    "whose bound is above `certify` · ln n."
)


class AttentionEntropy(Measure):
    NAME = "attention-entropy"
    WHAT = "entropy of every attention head over the data, collapsed and overloaded heads, what the spread of the logits certifies"
    SOURCE = "arXiv:2303.06296 (σReparam), arXiv:2501.03489 (entropy-guided attention)"
    NEEDS = frozenset({"attention", "bound"})
    OPTIONS = {
        "alarm": Option(0.05, "normalised entropy below which a head is told as lost, whatever the others have", least=0, most=1),
        "certify": Option(0.1, "share of ln n that the bound has to promise for a row to be certified", least=0, most=1),
    }

    def __init__(self, model: Model, data: Data | None, options: Mapping[str, Any] | None = None, say: Callable[..., None] | None = None) -> None:
        super().__init__(model, data, options, say)
        self.sums: torch.Tensor | None = None  # [L, H, 5] entropy, normalised, bound / ln n, certified, violations
        self.largest: torch.Tensor | None = None  # [L, H]
        self.rows = 0

    def update(self, batch: Batch) -> None:
        assert batch.attention is not None and batch.bound is not None
        sums, largest = [], []
        for layer, (one, bound) in enumerate(zip(batch.attention, batch.bound)):
            keys = one.keys.expand(one.entropy.shape[0], -1)
            counted = ((keys > 1) & batch.mask.to(keys.device))[:, None]  # [B, 1, T]
            room = keys.clamp(min=2).double().log()[:, None]
            entropy, least = one.entropy.double(), bound.double()
            # what float32 makes of an entropy and a bound that are equal
            violated = least > entropy + 1e-4 * room
            certified = (least / room > self.options["certify"]).double().masked_fill(least.isnan(), math.nan)
            values = [entropy, entropy / room, least / room, certified, violated.double()]
            sums.append(torch.stack([(value * counted).sum((0, 2)) for value in values], -1).cpu())
            largest.append(one.max_logit.masked_fill(~counted, -math.inf).amax((0, 2)).double().cpu())
            if layer == 0:
                self.rows += int(counted.sum())
        found, most = torch.stack(sums), torch.stack(largest)
        self.sums = found if self.sums is None else self.sums + found
        self.largest = most if self.largest is None else torch.maximum(self.largest, most)

    def finish(self) -> Result:
        assert self.sums is not None and self.largest is not None
        means = (self.sums / max(self.rows, 1)).numpy()  # [L, H, 5]
        layers, heads = means.shape[:2]
        normalised = means[..., 1]
        most = float(normalised.max())
        table = Table({"layer": "", "head": "", "entropy": "nats", "normalised": "of ln n", "max_logit": "", "bound": "of ln n",
                       "certified": "share of rows", "kind": ""})  # fmt: skip
        kinds: dict[str, int] = {"collapsed": 0, "well-behaved": 0, "overloaded": 0}
        for layer in range(layers):
            for head in range(heads):
                entropy, own, bound, certified, _ = means[layer, head]
                kind = "collapsed" if own < most / 4 else "overloaded" if own > 3 * most / 4 else "well-behaved"
                kinds[kind] += 1
                table.add(layer, head, entropy, own, self.largest[layer, head], bound, certified, kind)
        by_layer = Table({"layer": "", "entropy": "nats", "normalised": "of ln n", "lowest": "of ln n", "highest": "of ln n", "certified": "share of rows"})
        for layer in range(layers):
            by_layer.add(layer, means[layer, :, 0].mean(), normalised[layer].mean(), normalised[layer].min(), normalised[layer].max(), means[layer, :, 3].mean())
        notes = []
        lost = [(int(layer), int(head)) for layer, head in np.argwhere(normalised < self.options["alarm"])]
        if lost:
            shown = ", ".join(f"{layer}.{head}" for layer, head in lost[:20]) + (" …" if len(lost) > 20 else "")
            notes.append(f"{len(lost)} heads have less than {self.options['alarm']:g} ln n on average: {shown} (layer.head). A head that rests on the first token looks the same")
        violations = int(self.sums[..., 4].sum())
        if violations:
            notes.append(f"{violations} rows have less entropy than their bound: the model's attention is not the softmax of the logits that were seen; the certificate does not hold for it")
        if not self.model.causal:
            notes.append("attention looks at both sides of a token: bound and certified are worked out for causal rows, and are left empty")
        if self.rows == 0:
            notes.append("no row has two keys: every sequence is one token long, and there is no entropy to tell")
        numbers = {"heads": layers * heads, "mean normalised entropy": float(normalised.mean()), **{f"{kind} heads": count for kind, count in kinds.items()},
                   "rows certified": float(means[..., 3].mean()), "rows per head": self.rows}  # fmt: skip
        return Result(table, VARIANT, numbers, {"layers": by_layer}, notes, lambda figure: draw(figure, normalised, means[..., 3]), size=(8.0, 3.6))


def draw(figure: Figure, normalised: np.ndarray, certified: np.ndarray) -> None:
    axes = figure.subplots(1, 2)
    for ax, values, title in zip(axes, (normalised, certified), ("entropy / ln n", "share of rows certified")):
        image = ax.imshow(values.T, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        ax.set(xlabel="layer", ylabel="head", title=title)
        figure.colorbar(image, ax=ax)


MEASURE = AttentionEntropy
measure = AttentionEntropy.measure
