"""`generalization-difficulty`: inductive bias complexity of a data set: how much a learner must know beforehand to generalise from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONLY_RATIOS = "only ratios and orders of data sets that were measured in the same way mean something: the hypothesis space is astronomical, and m stands in the exponent"


@dataclass
class Complexity:
    """bits: Ĩ. harmonics: E, log10 of it where it overflows is in log10_harmonics. factor: bits a dimension of the hypothesis space."""

    bits: float
    log10_bits: float
    frequency: float
    degree: float
    log10_harmonics: float
    factor: float


def log_harmonics(m: float, frequency: float) -> tuple[float, float]:
    """K and ln E: the highest degree of spherical harmonics on an m-sphere below a frequency M, and how many there are.

    K = (√((m-1)² + 4M²) - (m-1)) / 2,  E = C(m+K, m) + C(m+K-1, m), with Γ for degrees that are no whole number.
    """
    degree = (math.sqrt((m - 1) ** 2 + 4 * frequency**2) - (m - 1)) / 2

    def log_choose(a: float) -> float:  # C(a, m); degree > 0 keeps the arguments of Γ above 0
        return math.lgamma(a + 1) - math.lgamma(m + 1) - math.lgamma(a - m + 1)

    return degree, float(np.logaddexp(log_choose(m + degree), log_choose(m + degree - 1)))


def complexity(*, n: int, classes: int, m: float, radius: float, resolution: float, error: float, bound: float = 1.0) -> Complexity:
    """Ĩ = (2 D d E - n D)(log2 b + ½ log2 D + ½ log2 d - log2 ε + log2 L_f + log2 W), in bits.

    With d classes, D = d - 1 outputs, L_f = K √D / R, W = √(m/6) (2 π^{(m+1)/2} d / Γ((m+1)/2))^{1/m} R n^{-1/m}, M = 2 π R / δ; E and K of
    log_harmonics. This is what the authors' program computes (FieteLab/inductive-bias-complexity, task_difficulty.py); their page has
    (2 d² E - n d) and 1.5 log d, with d for D.

    Args:
        n, classes, m: samples, classes d, intrinsic dimension.
        radius, resolution: R the greatest norm of a sample, δ the least distance of two of different classes.
        error: ε, the wanted error over the Lipschitz constant of the loss.
        bound: b, of the outputs.
    """
    outputs = classes - 1
    frequency = 2 * math.pi * radius / resolution
    degree, log_e = log_harmonics(m, frequency)
    log_w = 0.5 * math.log(m / 6) + (math.log(2) + (m + 1) / 2 * math.log(math.pi) + math.log(classes) - math.lgamma((m + 1) / 2)) / m \
        + math.log(radius) - math.log(n) / m  # fmt: skip
    factor = (math.log(bound) + 0.5 * math.log(outputs) + 0.5 * math.log(classes) - math.log(error) + math.log(degree * math.sqrt(outputs) / radius)
              + log_w) / math.log(2)  # fmt: skip
    log_space = math.log(2 * outputs * classes) + log_e
    # The n D dimensions that the samples fix, where they are to be seen beside the others at all.
    left = 1 - n * outputs * math.exp(-log_space) if log_space < 700 else 1.0
    log10_bits = (log_space + math.log(left)) / math.log(10) + math.log10(factor) if left > 0 and factor > 0 else -math.inf
    bits = math.exp(log_space) * left * factor if log_space < 700 else math.inf
    return Complexity(bits, log10_bits, frequency, degree, log_e / math.log(10), factor)


def distances(x: np.ndarray) -> np.ndarray:
    """[N, N] Euclidean distances of rows [N, C], in float64."""
    square = (x * x).sum(1)
    between: np.ndarray = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * x @ x.T, 0))
    return between


def intrinsic_dimension(between: np.ndarray, k: int = 5) -> float:
    """Levina and Bickel's maximum likelihood estimate, inverted after the mean (MacKay and Ghahramani), of distances [N, N]:
    1 / mean over samples i and j < k of ln(T_k(i) / T_j(i)), with T_j the distance to the j-th neighbour.

    Raises DiagnoseError for fewer than k + 2 samples. Samples that stand at one place must have been taken out.
    """
    if len(between) < k + 2:
        raise DiagnoseError(f"{len(between)} different samples; wanted {k + 2} at least for an intrinsic dimension by {k} neighbours")
    nearest = np.sort(np.partition(between, k, axis=1)[:, : k + 1], axis=1)[:, 1:]  # itself apart
    return float(1 / np.mean(np.log(nearest[:, -1:]) - np.log(nearest[:, :-1])))


def class_gap(between: np.ndarray, labels: np.ndarray) -> float:
    """δ: the least distance of two samples of different classes that do not stand at one place."""
    other = between[(labels[:, None] != labels[None]) & (between > 0)]
    return float(other.min())


class GeneralizationDifficulty(Measure):
    NAME = "generalization-difficulty"
    WHAT = "inductive bias complexity of a labelled data set, with its intrinsic dimension; only ratios count"
    SOURCE = "Boopathy et al., ICML 2023: FieteLab/inductive-bias-complexity"
    LABELS = True
    OPTIONS = {
        "error": Option(0.1, "the wanted error, over the Lipschitz constant of the loss", least=1e-12, most=1.0),
        "dimension": Option(0.0, "intrinsic dimension; 0: estimated", least=0.0),
        "neighbours": Option(5, "neighbours of the estimate", least=2),
        "samples": Option(2000, "samples that distances are taken of, evenly over the data; n stays the number of all", least=8),
        "max_length": Option(128, "tokens of a text that are taken", least=1),
    }

    def points(self) -> np.ndarray:
        """[N, C]: `features` of the lines where they have them, else the mean of the model's input embeddings of a text's tokens."""
        records = self.data.records
        if records and all("features" in record for record in records):
            try:
                found = np.array([record["features"] for record in records], dtype=np.float64)
            except (TypeError, ValueError):
                found = np.zeros(())
            if found.ndim != 2 or not np.isfinite(found).all():
                raise DiagnoseError(f"{self.data.name}: features are no table of finite numbers; wanted a list of as many numbers in each line")
            return found
        ids = self.data.tokens(self.model, self.options["max_length"])
        with torch.inference_mode():
            embedding = self.model.module.get_input_embeddings()
            rows = [embedding(torch.tensor(one, device=self.model.device)).float().mean(0).cpu() for one in ids]
        return torch.stack(rows).double().numpy()

    def finish(self) -> Result:
        x = self.points()
        given = np.array([str(label) for label in self.data.labels])
        n, classes = len(x), len(set(given))
        own = bool(self.data.records and "features" in self.data.records[0])
        x = x - x.mean(0)
        constant = int((np.ptp(x, axis=0) == 0).sum())
        if constant == x.shape[1]:
            raise DiagnoseError(f"{self.data.name}: all {x.shape[1]} features are constant over the {n} samples, so that no distance is left")
        most = self.options["samples"]
        taken = np.arange(n) if n <= most else np.arange(most) * n // most
        _, first = np.unique(x[taken], axis=0, return_index=True)
        kept = taken[np.sort(first)]
        if len(set(given[kept])) < 2:
            raise DiagnoseError(f"{self.data.name}: the {len(kept)} samples that distances are taken of are of one class; raise samples, or shuffle the file")
        between = distances(x[kept])
        np.fill_diagonal(between, 0)
        estimated = intrinsic_dimension(between, self.options["neighbours"])
        m = self.options["dimension"] or max(1.0, float(round(estimated)))
        resolution = class_gap(between, given[kept])
        radius = float(np.linalg.norm(x, axis=1).max())
        table = Table({"intrinsic dimension": "", "complexity": "log10 of bits", "samples for the whole": "log10", "factor": "bits a dimension"})
        shown = {}
        for dimension in sorted({max(1.0, m - 2), max(1.0, m - 1), m, m + 1, m + 2}):
            found = complexity(n=n, classes=classes, m=dimension, radius=radius, resolution=resolution, error=self.options["error"])
            shown[dimension] = found
            table.add(dimension, found.log10_bits, math.log10(2 * classes) + found.log10_harmonics, found.factor)
        middle = shown[m]
        notes = [ONLY_RATIOS]
        if len(kept) < len(taken):
            notes.append(f"{len(taken) - len(kept)} of {len(taken)} samples stand where another does, and were left out of the distances")
        if constant:
            notes.append(f"{constant} of {x.shape[1]} features are constant")
        if len(kept) < 10 * m:
            notes.append(f"{len(kept)} samples for an intrinsic dimension of {m:g}: the estimate is too low for so few, at least {10 * m:.0f} are wanted")
        if not math.isfinite(middle.log10_bits):
            notes.append("the samples fix more dimensions than the hypothesis space has, or the wanted error is met by any of it: nothing is left to know beforehand")
        numbers: dict[str, Any] = {
            "complexity, log10 of bits": middle.log10_bits, "complexity, bits": middle.bits, "samples n": n, "classes d": classes, "features": x.shape[1],
            "intrinsic dimension, estimated": estimated, "intrinsic dimension m": m, "radius R": radius, "resolution δ": resolution,
            "frequency M = 2πR/δ": middle.frequency, "degree K": middle.degree, "harmonics E, log10": middle.log10_harmonics}  # fmt: skip
        variant = ("as the authors' program has it: D = d - 1 outputs, M = 2πR/δ, Levina-Bickel m rounded (inverted after the mean, k neighbours), δ the least "
                   "distance of two classes over the samples taken (their 'sample'; not their extreme value estimate). Points: "
                   + ("features of the lines, centred" if own else "mean input embedding of a text's tokens, centred"))  # fmt: skip
        return Result(table, variant, numbers, notes=notes, draw=lambda figure: draw(figure, table, m))


def draw(figure: Figure, table: Table, m: float) -> None:
    axes = figure.subplots()
    axes.plot(table.column("intrinsic dimension"), [np.nan if x is None else x for x in table.column("complexity")], "o-")
    axes.axvline(m, color="grey", linestyle=":", label="taken")
    axes.set(xlabel="intrinsic dimension m", ylabel="log10 of bits")
    axes.legend(fontsize=7)


MEASURE = GeneralizationDifficulty
measure = GeneralizationDifficulty.measure
