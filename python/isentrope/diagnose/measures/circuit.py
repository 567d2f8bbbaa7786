"""`circuit`: which attention heads make the answer, by patching, in two tasks; what the tasks share, and how those heads' entropy is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table
from isentrope.diagnose.measures.feature_complexity import spearman
from isentrope.diagnose.pairs import TASKS, Pair, generated, given
from isentrope.diagnose.patching import Patching, auroc, effects
from isentrope.diagnose.paths import Receiver, Sequences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIANT = (
    "LD: logit of the right answer less that of the pair's. Effect of a head: (LD patched - LD clean) / (LD corrupted - LD clean), each a mean over the "
    "prompts, with the head's output at the last token taken from the corrupted run. total: all that follows is computed again (activation patching). direct: "
    "every other head keeps its output of the clean run, MLPs are computed again (path patching with the logits as receiver, last token). Circuit: heads by "
    "|total effect|, as few as give F ≥ `faithful`; F(C) = (LD(C) - LD(none)) / (LD(all) - LD(none)), heads outside C at their mean over the corrupted prompts, "
    "at the last token. Entropy of a head: of its row at the last token of the clean prompts, over ln n. positions=all: total and direct with the head's output at all "
    "positions. Paths to `receivers`, the query, key or value of a head (for a key or value that heads share: of all of them): the sender at all positions from the "
    "corrupted run, other heads from the clean one, MLPs computed again; what the receiver gets there is put into a run on the clean prompts (path patching)."
)


class Circuit(Measure):
    NAME = "circuit"
    WHAT = "attention heads that matter for indirect objects and coloured objects, by patching; their overlap and their entropy"
    SOURCE = "arXiv:2310.08744 (circuit component reuse), arXiv:2211.00593 (IOI)"
    DATA = False
    OPTIONS = {
        "tasks": Option("ioi,colored-objects", f"of {', '.join(TASKS)}, and `data`: the pairs of --data; with --data that alone, unless it is given"),
        "prompts": Option(32, "pairs of a task", least=1),
        "seed": Option(0, "of the prompts", least=0),
        "positions": Option("last", "where total and direct patch a head: last, or all, which takes a whole pass for each head", choices=("last", "all")),
        "receivers": Option("", "LAYER.HEAD.q, .k or .v with commas between: the effect of every head below through these alone"),
        "faithful": Option(0.9, "F that a circuit has to reach", least=0, most=1),
    }

    def finish(self) -> Result:
        o = self.options
        names = [name for name in o["tasks"].split(",") if name]
        if self._data is not None and o["tasks"] == self.OPTIONS["tasks"].default:
            names = ["data"]
        wrong = [name for name in names if name not in TASKS and not (name == "data" and self._data is not None)]
        if wrong or not names:
            raise DiagnoseError(f"circuit: tasks={o['tasks']}: {'--data is not given' if wrong == ['data'] else 'wanted some'} of {', '.join(TASKS)}, data")
        receivers = [Receiver.read(word, self.model) for word in o["receivers"].split(",") if word.strip()]
        paths = Table({"task": "", "receiver": "", "layer": "", "head": "", "path": "effect"})
        table = Table({"task": "", "layer": "", "head": "", "total": "effect", "direct": "effect", "entropy": "of ln n", "in_circuit": ""})
        curve = Table({"task": "", "heads": "", "faithfulness": "F"})
        notes: list[str] = []
        numbers: dict[str, Any] = {}
        maps, sets = {}, {}
        for task in names:
            pairs, passed = given(self.data.records, self.data.name, self._encode) if task == "data" else generated(task, o["prompts"], o["seed"], self._encode)
            if passed:
                notes.append(f"{task}: {passed} pairs were passed over: a word of theirs is several tokens, or the prompts differ in length")
            try:
                one = Task(self, task, pairs, receivers)
            except DiagnoseError as error:
                if len(names) == 1:
                    raise
                notes.append(f"{error}; it is left out")
                continue
            for receiver, effect in one.paths.items():
                for (layer, head), value in zip(np.ndindex(*effect.shape), effect.flatten().tolist()):
                    paths.add(task, receiver, layer, head, value)
            for layer in range(self.model.layers):
                for head in range(self.model.heads):
                    table.add(task, layer, head, one.total[layer, head], one.direct[layer, head], one.entropy[layer, head], bool(one.circuit[layer, head]))
            for size, F in sorted(one.faithfulness.items()):
                curve.add(task, size, F)
            low = -one.entropy.flatten()
            numbers |= {f"{task}: prompts": len(pairs), f"{task}: right": one.right, f"{task}: LD clean": one.clean, f"{task}: LD corrupted": one.corrupt,
                        f"{task}: heads in the circuit": int(one.circuit.sum()), f"{task}: AUROC of low entropy for the circuit": auroc(low, one.circuit.flatten()),
                        f"{task}: rank correlation of entropy and |effect|": spearman(-low.numpy(), one.total.abs().flatten().numpy())}  # fmt: skip
            notes += one.notes
            maps[task], sets[task] = one.total, one.circuit
        names = list(maps)
        if not names:
            raise DiagnoseError("; ".join(notes))
        overlaps = Table({"tasks": "", "shared": "heads", "of_first": "", "of_smaller": "", "jaccard": "", "by_chance": "heads"})
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                overlaps.add(f"{a}, {b}", *overlap(sets[a], sets[b]))
        tables = {"faithfulness": curve, **({"overlap": overlaps} if overlaps.rows else {}), **({"paths": paths} if paths.rows else {})}
        if overlaps.rows:
            numbers |= {"overlap of the circuits, of the smaller": overlaps.rows[0][3], "by chance, of the smaller": overlaps.rows[0][5] / max(min(int(s.sum()) for s in list(sets.values())[:2]), 1)}
        return Result(table, VARIANT, numbers, tables, notes, lambda figure: draw(figure, maps), size=(4.2 * len(maps), 3.6))

    def _encode(self, text: str) -> list[int]:
        return self.model.encode(text)


def overlap(a: Tensor, b: Tensor) -> tuple[int, float, float, float, float]:
    """Two sets of heads, [L, H] bool: heads in both, over those of a, over the smaller set, over the union; and how many two sets of these
    sizes share by chance (the mean of the hypergeometric law)."""
    shared, one, two = int((a & b).sum()), int(a.sum()), int(b.sum())
    return shared, shared / max(one, 1), shared / max(min(one, two), 1), shared / max(int((a | b).sum()), 1), one * two / a.numel()


class Task:
    """All that is measured of one task; pairs of equal length run together."""

    def __init__(self, measure: Circuit, name: str, pairs: list[Pair], receivers: list[Receiver]) -> None:
        model = measure.model
        by_length: dict[int, list[Pair]] = {}
        for pair in pairs:
            by_length.setdefault(len(pair.clean), []).append(pair)
        runs = [Patching(model, some) for some in by_length.values()]
        clean, corrupt = torch.cat([run.gap for run in runs]), torch.cat([run.gap_corrupt for run in runs])
        self.clean, self.corrupt, self.right = float(clean.double().mean()), float(corrupt.double().mean()), float((clean > 0).double().mean())
        self.notes: list[str] = []
        if abs(self.corrupt - self.clean) < 1e-3:
            raise DiagnoseError(f"circuit: {name}: the corrupted prompts give the same answer as the clean ones (LD {self.clean:.3g} and {self.corrupt:.3g}); no effect can be told. The model does not do the task")
        if self.right < 0.7:
            self.notes.append(f"{name}: the model prefers the right answer in {self.right:.0%} of the prompts; heads of a task that it does not do say little")

        everywhere = measure.options["positions"] == "all"
        sequences = [Sequences(run) for run in runs] if everywhere or receivers else []

        def effect(what: str, patched: Callable[[int, Callable[[int, int], None]], Tensor]) -> Tensor:
            """Of what each run gives, [..., N]."""
            found = []
            for number in range(len(runs)):
                told = f"{name}, {what}, length {number + 1} of {len(runs)}"
                found.append(patched(number, lambda done, of, told=told: measure.progress(told, done, of)))  # type: ignore[misc]
            return effects(torch.cat(found, -1), clean, corrupt).cpu()

        by = sequences if everywhere else runs
        self.total = effect("total", lambda i, say: by[i].heads(False, say))  # [L, H]
        self.direct = effect("direct", lambda i, say: by[i].heads(True, say))
        self.paths = {str(receiver): effect(f"paths to {receiver}", lambda i, say, to=receiver: sequences[i].paths(to, say)) for receiver in receivers}  # type: ignore[misc]

        mean = torch.cat([run.corrupt for run in runs], 1).mean(1)  # [L, H, D]
        order = self.total.abs().flatten().argsort(descending=True)
        self.faithfulness: dict[int, float] = {}
        gap: dict[int, float] = {}

        def at(size: int) -> float:
            if size not in gap:
                keep = torch.zeros(order.numel(), dtype=torch.bool)
                keep[order[:size]] = True
                gap[size] = float(torch.cat([run.without(keep.view_as(self.total), mean) for run in runs]).double().mean())
            return gap[size]

        none, whole = at(0), at(order.numel())
        if abs(whole - none) < 1e-3:
            self.notes.append(f"{name}: heads at the last token make no difference to LD ({whole:.3g} with all, {none:.3g} with none); F has no meaning")

        def F(size: int) -> float:
            self.faithfulness[size] = (at(size) - none) / (whole - none) if whole != none else float("nan")
            return self.faithfulness[size]

        size = 1
        while size < order.numel() and not F(size) >= measure.options["faithful"]:
            size *= 2
        low, high = size // 2, min(size, order.numel())
        while high - low > 1:  # F need not grow with every head: a size at which it is reached and one below at which it is not
            middle = (low + high) // 2
            low, high = (low, middle) if F(middle) >= measure.options["faithful"] else (middle, high)
        F(high)
        self.circuit = torch.zeros(order.numel(), dtype=torch.bool)
        self.circuit[order[:high]] = True
        self.circuit = self.circuit.view_as(self.total)
        self.entropy = self.entropies(model, by_length)

    @staticmethod
    def entropies(model: Any, by_length: dict[int, list[Pair]]) -> Tensor:
        """[L, H]: mean over the clean prompts of the last row's entropy, over ln n."""
        total, count = torch.zeros(model.layers, model.heads, dtype=torch.double), 0
        for length, pairs in by_length.items():
            batch = model.run(torch.tensor([pair.clean for pair in pairs]), torch.full((len(pairs),), length), frozenset({"attention"}))
            assert batch.attention is not None
            total += torch.stack([one.normalized[:, :, -1].double().sum(0).cpu() for one in batch.attention])
            count += len(pairs)
        return total / count


def draw(figure: Figure, maps: dict[str, Tensor]) -> None:
    most = max(float(one.abs().max()) for one in maps.values())
    for axes, (task, effect) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items()):
        image = axes.imshow(effect.T.numpy(), aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        axes.set(xlabel="layer", ylabel="head", title=f"{task}: total effect")
        figure.colorbar(image, ax=axes)


MEASURE = Circuit
measure = Circuit.measure
