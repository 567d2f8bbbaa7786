"""`condition-number`: κ of every tensor, and the tensors of the lowest κ, which KappaTune trains alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Relative error of κ up to which the Gram matrix is believed; beyond it the singular values are taken themselves.
GRAM_ERROR = 1e-3
ROWS = 8192  # of a tall matrix in float64 at a time


@dataclass
class Condition:
    """largest, smallest: singular values of W [rows, columns]; of those of a Gram matrix the smallest has the relative error `error`."""

    largest: float
    smallest: float
    method: str  # "gram" or "svd"
    error: float

    @property
    def kappa(self) -> float:
        """largest / smallest; inf where the smallest is 0, or where what is left of it is rounding."""
        return self.largest / self.smallest if self.smallest > 0 else math.inf


def gram(matrix: np.ndarray) -> np.ndarray:
    """W Wᵀ or WᵀW of W [m, n], whichever is smaller, in float64; a tall matrix is widened a block of rows at a time."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    made = np.zeros((tall.shape[1], tall.shape[1]))
    for start in range(0, len(tall), ROWS):
        block = tall[start : start + ROWS].astype(np.float64)
        made += block.T @ block
    return made


def condition(matrix: np.ndarray, error: float = GRAM_ERROR) -> Condition:
    """κ = σ_max / σ_min of W [m, n].

    By the eigenvalues λ of the smaller Gram matrix in float64, σ = √λ. Each λ has an error of n · 2⁻⁵² · λ_max at most, which is n · 2⁻⁵² · κ² / 2
    of κ; where that may be above `error` (n = 576: above κ = 1.2e5 with 1e-3), by the singular values in float64, whose error is that of κ itself.
    σ_min at or below max(m, n) · 2⁻⁵² · σ_max is taken for 0.
    """
    eigenvalues = np.linalg.eigvalsh(gram(matrix))
    largest, smallest = float(eigenvalues[-1]), float(eigenvalues[0])
    bound = len(eigenvalues) * np.finfo(np.float64).eps * largest
    if smallest > 0 and bound / smallest / 2 <= error:
        return Condition(math.sqrt(largest), math.sqrt(smallest), "gram", bound / smallest / 2)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    floor = max(matrix.shape) * np.finfo(np.float64).eps * float(values[0])
    smallest = float(values[-1])
    return Condition(float(values[0]), smallest if smallest > floor else 0.0, "svd", floor / smallest if smallest > floor else math.inf)


def digest_of(matrix: np.ndarray) -> str:
    """Of shape and values."""
    found = hashlib.blake2b(str(matrix.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(matrix).data)
    return found.hexdigest()


def matrices(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor as matrices: itself; stacked experts [E, m, n] one by one; of a convolution [out, in, k…] with small kernels [out, in · k…]."""
    if tensor.ndim == 2:
        yield name, tensor
    elif tensor.ndim == 3 and min(tensor.shape[1:]) > 8:
        for expert in range(tensor.shape[0]):
            yield f"{name}[{expert}]", tensor[expert]
    else:
        yield name, tensor.reshape(tensor.shape[0], -1)


class ConditionNumber(Measure):
    NAME = "condition-number"
    WHAT = "condition number of every weight matrix, and the best conditioned ones to tune alone (KappaTune)"
    SOURCE = "KappaTune: oswaldoludwig/kappaTune"
    DATA = False
    OPTIONS = {
        "best": Option(100, "how many tensors of the lowest κ are named for tuning", least=1),
        "max_dimension": Option(0, "tensors with a dimension above it are left out, as embeddings; 0: none", least=0),
        "cache": Option(None, "file of what was found, by the values of a tensor: read where it is there, and written with what is new"),
    }

    def finish(self) -> Result:
        limit = self.options["max_dimension"]
        named = [(name, parameter) for name, parameter in self.model.module.named_parameters() if parameter.ndim >= 2]
        taken = [(name, parameter) for name, parameter in named if not limit or max(parameter.shape) <= limit]
        if not taken:
            of = f", of {len(named)} with none above {limit}" if limit else ""
            raise DiagnoseError(f"condition-number: {self.model.name} has no tensor of two dimensions or more{of}; raise max_dimension")
        known = self._cached()
        found = []
        for number, (name, parameter) in enumerate(taken):
            self.progress("tensors", number, len(taken))
            for place, matrix in matrices(name, parameter.detach()):
                if not bool(torch.isfinite(matrix).all()):
                    raise DiagnoseError(f"condition-number: {place} of {self.model.name} has values that are not finite; its κ is none")
                values = matrix.float().cpu().numpy()
                digest = digest_of(values) if self.options["cache"] else place
                own = known.get(digest)
                if own is None:
                    own = condition(values)
                known[digest] = own
                found.append((place, name, matrix, own))
        self.progress("tensors", len(taken), len(taken))
        found.sort(key=lambda one: (one[3].kappa, one[0]))
        best = found[: self.options["best"]]
        table = Table({"tensor": "", "rows": "", "columns": "", "kappa": "", "largest": "singular value", "smallest": "singular value",
                       "method": "", "tuned": ""})  # fmt: skip
        for i, (place, _, matrix, own) in enumerate(found):
            # inf is no number of JSON: such a κ is empty, and a smallest value of 0 says why
            table.add(place, *matrix.shape, own.kappa, own.largest, own.smallest, own.method, "yes" if i < len(best) else "")
        whole = sum(parameter.numel() for parameter in self.model.module.parameters())
        tuned = sum(one[2].numel() for one in best)
        notes = ["κ says nothing of a tensor's size, and of its form it says: of random matrices the square ones have the highest κ, the longest the lowest"]
        singular = [place for place, _, _, own in found if not own.smallest > 0]
        if singular:
            told = ", ".join(singular[:3]) + (", …" if len(singular) > 3 else "")
            notes.append(f"{len(singular)} tensors have a singular value of 0 (κ infinite, left empty): {told}; they come last")
        low = {str(parameter.dtype) for _, parameter in taken} & {"torch.bfloat16", "torch.float16"}
        if low:
            notes.append(f"weights of {', '.join(sorted(low))}: their rounding sets the smallest singular values")
        kappas = [one[3].kappa for one in found]
        numbers = {"tensors": len(found), "lowest κ": kappas[0], "median κ": float(np.median(kappas)), "highest κ": kappas[-1],
                   "tuned share of parameters": tuned / whole, "by singular values": sum(one[3].method == "svd" for one in found)}  # fmt: skip
        self._keep(known)
        variant = (f"κ = largest / smallest singular value, of float32 weights; tensors of more than two dimensions as matrices, stacked experts one by one. "
                   f"By the float64 Gram matrix where κ is surely within {GRAM_ERROR:g} of it, else by singular values in float64")  # fmt: skip
        return Result(table, variant, numbers, notes=notes, draw=lambda figure: draw(figure, found, len(best)))

    def _cached(self) -> dict[str, Condition]:
        file = Path(self.options["cache"]) if self.options["cache"] else None
        if file is None or not file.exists():
            return {}
        try:
            return {digest: Condition(*entry) for digest, entry in json.loads(file.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DiagnoseError(f"condition-number: cache={file} cannot be read: {error}; wanted what this measure wrote, or another name") from None

    def _keep(self, found: dict[str, Condition]) -> None:
        if self.options["cache"]:
            told = {digest: [own.largest, own.smallest, own.method, own.error if math.isfinite(own.error) else 0.0] for digest, own in found.items()}
            try:
                Path(self.options["cache"]).write_text(json.dumps(told, indent=1) + "\n")
            except OSError as error:
                raise DiagnoseError(f"condition-number: cache={self.options['cache']} cannot be written: {error.strerror}") from None


def draw(figure: Figure, found: list[tuple[str, str, Any, Condition]], best: int) -> None:
    axes = figure.subplots()
    kappas = [own.kappa if math.isfinite(own.kappa) else np.nan for _, _, _, own in found]
    axes.semilogy(range(1, len(kappas) + 1), kappas, ".", markersize=4)
    axes.axvspan(0.5, best + 0.5, alpha=0.12, color="C2", label=f"the {best} to tune")
    axes.set(xlabel="tensors, by κ", ylabel="κ")
    axes.legend(fontsize=7)


MEASURE = ConditionNumber
measure = ConditionNumber.measure
