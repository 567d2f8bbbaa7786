"""`feature-complexity`: how early the features of the last layer can be read off linearly, and how much each matters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isentrope.diagnose.data import Data
    from isentrope.diagnose.model import Batch, Model

VARIANT = (
    "Features: codes z of a non-negative matrix factorisation (scikit-learn's NMF, `features` directions) of [relu(h), relu(-h)], h the last layer's state of the "
    "last token behind the final norm; the paper's network has a ReLU there, a transformer has none, hence the two halves. V-information of a "
    "linear-Gaussian predictor with σ² = 1/2, which for z of variance 1 is R² of a ridge regression on the states of layer l, of texts held out, at least 0; "
    "K(z) = 1 - the mean over layers 0 to L. One ridge solve a layer for all features. Importance: E|∂y/∂z · z|, y the logit of the likeliest "
    "next token. first_layer: the first whose R² reaches `reached` of the last layer's. With targets=FILE the features are those of another model, which keep=FILE wrote: the final one's, "
    "followed over checkpoints. time_to_decode: the first model whose last layer has 0.8 of the R² that the last model's has; importance is the other model's."
)


REACHED = 0.8


class FeatureComplexity(Measure):
    NAME = "feature-complexity"
    WHAT = "V-information of the last layer's features over the layers: their complexity, against how much each matters for the answer"
    SOURCE = "arXiv:2407.06076 (visual feature complexity)"
    NEEDS = frozenset({"hidden"})
    OPTIONS = {
        "features": Option(16, "directions of the factorisation", least=2),
        "ridge": Option(1e-2, "weight of the ridge, over the mean variance of the layer's features", least=0),
        "train": Option(0.7, "share of the texts that the regressions learn from", least=0.1, most=0.9),
        "reached": Option(REACHED, "share of the last layer's R² at which a feature is there", least=0, most=1),
        "seed": Option(0, "of the split and of the factorisation", least=0),
        "iterations": Option(400, "steps of the factorisation at most", least=1),
        "keep": Option(None, "file .npz that the features are written to"),
        "targets": Option(None, "file of `keep` of the same texts: its features are followed, in place of a factorisation of this model's own states"),
    }

    def __init__(self, model: Model, data: Data | None, options: Mapping[str, Any] | None = None, say: Callable[..., None] | None = None) -> None:
        super().__init__(model, data, options, say)
        self.rows: dict[int, Tensor] = {}
        self.texts: dict[int, bytes] = {}

    def update(self, batch: Batch) -> None:
        assert batch.hidden is not None
        for row, (index, length) in enumerate(zip(batch.index.tolist(), batch.lengths.tolist())):
            self.texts[index] = batch.ids[row, :length].numpy().tobytes()
        states = torch.stack([batch.last(layer).float().cpu() for layer in range(len(batch.hidden))], 1)
        self.rows.update(zip(batch.index.tolist(), states))

    def digest(self) -> str:
        """Of the texts' tokens."""
        return hashlib.blake2b(b"|".join(self.texts[i] for i in sorted(self.texts)), digest_size=16).hexdigest()

    def factors(self, last: Tensor, notes: list[str]) -> tuple[Tensor, Tensor, float]:
        """Codes [M, K] of the last layer's states [M, C], the importance [K] of each feature, and the share of the variance that they explain."""
        import warnings

        from sklearn.decomposition import NMF  # type: ignore[import-untyped]
        from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]

        o, (M, d) = self.options, last.shape
        if M < 2 * o["features"]:
            raise DiagnoseError(f"{self.data.name}: {M} texts for {o['features']} features; wanted {2 * o['features']} or more, or fewer features: features={max(M // 2, 2)}")
        halves = torch.cat([last.clamp(min=0), (-last).clamp(min=0)], 1).numpy()
        self.progress("factorisation", 0, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            factors = NMF(o["features"], init="nndsvda", max_iter=o["iterations"], random_state=o["seed"])
            found = factors.fit_transform(halves)
        if factors.n_iter_ >= o["iterations"]:
            notes.append(f"the factorisation has not converged in {o['iterations']} steps; raise iterations")
        constant = int((last.std(0) <= 1e-6 * last.abs().amax(0)).sum())
        if constant:
            notes.append(f"{constant} of the {d} features of the last layer are constant over the texts")
        explained = 1 - float(((halves - found @ factors.components_) ** 2).sum() / max(((halves - halves.mean(0)) ** 2).sum(), 1e-30))
        directions = torch.from_numpy(factors.components_[:, :d] - factors.components_[:, d:]).double()  # [K, C]
        codes = torch.from_numpy(found).double()
        importance = self.importance(last, codes, directions)
        if o["keep"]:
            with open(o["keep"], "wb") as file:  # by name np.savez would add .npz
                np.savez(file, codes=codes.numpy(), importance=importance.numpy(), explained=explained, texts=self.digest())
        return codes, importance, explained

    def targets(self) -> tuple[Tensor, Tensor, float]:
        """As factors(), of the file `targets`. Raises DiagnoseError."""
        file = self.options["targets"]
        try:
            with np.load(file, allow_pickle=False) as kept:
                codes, importance, explained, texts = (kept[name] for name in ("codes", "importance", "explained", "texts"))
        except (OSError, ValueError, KeyError) as error:
            raise DiagnoseError(f"targets={file} cannot be read: {error}; wanted what keep=FILE wrote") from None
        if str(texts) != self.digest():
            raise DiagnoseError(f"targets={file}: its features are of other texts, or of other tokens of theirs; wanted those of --data, with the same --samples and --max-length")
        return torch.from_numpy(codes), torch.from_numpy(importance), float(explained)

    def finish(self) -> Result:
        o = self.options
        states = torch.stack([self.rows[i] for i in sorted(self.rows)], 1).double()  # [L + 1, M, C]
        layers, M, d = states.shape
        notes: list[str] = []
        codes, importance, explained = self.targets() if o["targets"] else self.factors(states[-1], notes)
        kept = [k for k in range(codes.shape[1]) if float(codes[:, k].std()) > 1e-9 * float(codes.abs().max())]
        if len(kept) < codes.shape[1]:
            notes.append(f"{codes.shape[1] - len(kept)} of {codes.shape[1]} features are constant over the texts, and are left out")
        if not kept:
            raise DiagnoseError(f"{self.data.name}: all features of the last layer are constant: every text gives the same state; wanted texts that differ")
        z = codes[:, kept]
        z = (z - z.mean(0)) / z.std(0, correction=0)
        order = torch.randperm(M, generator=torch.Generator().manual_seed(o["seed"]))
        train, held = order[: int(M * o["train"])], order[int(M * o["train"]) :]
        if len(train) <= d:
            notes.append(f"{len(train)} texts to learn from for {d} features of a layer: regressions rest on the ridge, R² is lower and complexity higher than with more texts; wanted more than {d}")
        found = []
        for layer in range(layers):
            self.progress("regressions", layer + 1, layers + 1)
            found.append(explained_by(states[layer], z, train, held, o["ridge"]))
        self.progress("regressions", layers + 1, layers + 1)
        R2 = torch.stack(found, 1)  # [K, L + 1]
        complexity = 1 - R2.mean(1)
        table = Table({"feature": "", "complexity": "0 to 1", "importance": "logit", "first_layer": "", "r2_embedding": "", "r2_last": "", "active": "share of texts"})
        for i in torch.argsort(complexity).tolist():
            reached = (R2[i] >= o["reached"] * R2[i, -1]).nonzero()
            table.add(kept[i], complexity[i], importance[kept[i]], int(reached[0]) if float(R2[i, -1]) > 0 else None, R2[i, 0], R2[i, -1], float((codes[:, kept[i]] > 1e-9).double().mean()))
        curves = Table({"feature": "", **{f"layer {layer}": "R²" for layer in range(layers)}})
        for i, k in enumerate(kept):
            curves.add(k, *R2[i].tolist())
        numbers: dict[str, Any] = {"texts": M, "features": len(kept), "variance that the factors explain": explained, "mean complexity": float(complexity.mean()),
                   "rank correlation of complexity and importance": spearman(complexity.numpy(), importance[kept].numpy())}  # fmt: skip
        if o["targets"]:
            numbers["targets"] = str(o["targets"])
        return Result(table, VARIANT, numbers, {"layers": curves}, notes, lambda figure: draw(figure, table, R2), size=(8.0, 3.6))

    @classmethod
    def over(cls, results: Sequence[tuple[str, Result]]) -> Result:
        """Where all follow the same features, also when each can be decoded."""
        found = super().over(results)
        if len({result.numbers.get("targets") for _, result in results}) != 1 or "targets" not in results[0][1].numbers:
            found.notes.append("each model has features of its own, and a number says nothing from one to the next; for the time to decode follow those of one: keep=FILE, then targets=FILE")
            return found
        last = [{row[0]: row[-1] for row in result.tables["layers"].rows} for _, result in results]  # feature → R² of the last layer
        complexity = dict(zip(results[-1][1].table.column("feature"), results[-1][1].table.column("complexity")))
        times = found.tables["time_to_decode"] = Table({"feature": "", "decoded": "model", "place": "of the models", "r2_first": "", "r2_last": "", "complexity": "of the last model"})
        for feature, final in last[-1].items():
            there = next((i for i, own in enumerate(last) if final > 0 and own[feature] >= REACHED * final), None)
            times.add(feature, None if there is None else results[there][0], there, last[0][feature], final, complexity[feature])
        known = [(row[2], row[5]) for row in times.rows if row[2] is not None]
        found.numbers["rank correlation of time to decode and complexity"] = spearman(np.array([t for t, _ in known]), np.array([k for _, k in known]))
        found.draw, found.size = (lambda figure: draw_times(figure, [name for name, _ in results], last)), (6.0, 3.6)
        return found

    def importance(self, last: Tensor, codes: Tensor, directions: Tensor) -> Tensor:
        """E|∂y/∂z · z| of each feature [K]: y is linear in the last state, whose part by feature k is z_k times its direction."""
        head: Any = self.model.head
        if head is None or not hasattr(head, "weight"):
            raise DiagnoseError(f"{self.model.name}: has no head over the vocabulary, which importance needs")
        with torch.inference_mode():
            best = head(last.float().to(self.model.device)).argmax(-1)
            rows = head.weight[best].cpu().double()
        found: Tensor = ((rows @ directions.T) * codes).abs().mean(0)
        return found


def explained_by(states: Tensor, z: Tensor, train: Tensor, held: Tensor, ridge: float) -> Tensor:
    """R² [K] on held-out rows of one ridge regression from states [M, C] to z [M, K], at least 0."""
    mean, scale = states[train].mean(0), states[train].std(0)
    scale = torch.where(scale > 1e-6 * states.abs().amax(0).clamp(min=1e-30), scale, torch.full_like(scale, torch.inf))
    X, middle = (states - mean) / scale, z[train].mean(0)
    gram = X[train].T @ X[train] / len(train)
    gram.diagonal().add_(max(ridge * float(gram.diagonal().mean()), 1e-9))
    W = torch.linalg.solve(gram, X[train].T @ (z[train] - middle) / len(train))
    rest = z[held] - middle - X[held] @ W
    found: Tensor = (1 - rest.square().mean(0) / (z[held] - z[held].mean(0)).square().mean(0).clamp(min=1e-30)).clamp(min=0)
    return found


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the ranks; NaN of fewer than three."""
    if len(a) < 3:
        return float("nan")
    first, second = (np.argsort(np.argsort(one)).astype(float) for one in (a, b))
    return float(np.corrcoef(first, second)[0, 1])


def draw(figure: Figure, table: Table, R2: Tensor) -> None:
    curves, scatter = figure.subplots(1, 2)
    curves.plot(R2.T.numpy(), linewidth=1)
    curves.set(xlabel="layer", ylabel="R², held out", title="features over the layers", ylim=(0, 1.02))
    scatter.scatter(table.column("complexity"), table.column("importance"), s=18)
    for feature, x, y in zip(table.column("feature"), table.column("complexity"), table.column("importance")):
        scatter.annotate(str(feature), (x, y), fontsize=6)
    scatter.set(xlabel="complexity", ylabel="importance, logit", title="importance against complexity")


def draw_times(figure: Figure, names: list[str], last: list[dict[int, float]]) -> None:
    axes = figure.subplots()
    for feature in last[-1]:
        axes.plot(range(len(names)), [own[feature] for own in last], "o-", markersize=3, linewidth=1)
    axes.set_xticks(range(len(names)), names, rotation=60, fontsize=7)
    axes.set(ylabel="R² of the last layer, held out", title="features of one model over all", ylim=(0, 1.02))


MEASURE = FeatureComplexity
measure = FeatureComplexity.measure
