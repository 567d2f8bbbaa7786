"""The runs of `isentrope stability`: every table of docs/stability.md as cells, each a run a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from isentrope.jobs import Job
from isentrope.stability.runs import end

ATTENTION = "phases.pretrain.objective.attention_entropy"
METHODS: dict[str, list[str]] = {
    "plain": [],
    "sigmaReparam": ["model.sigma_reparam.layers=all"],
    "QK-norm": ["model.attention.qk_norm=true"],
    "soft cap 15": ["model.attention.softcap=15"],
    "QK-clip 15": ["model.attention.qk_clip=15"],
    "regulariser": [f"{ATTENTION}.coef=1"],
}
LONG = ["phases.pretrain.batch.sequences=8", "phases.pretrain.steps=400"]  # four times the bytes


@dataclass(frozen=True)
class Cell:
    """One entry of a table; a run a seed."""

    table: str
    norm: str
    method: str
    rate: float
    overrides: tuple[str, ...] = ()

    def folder(self, out: Path, seed: int) -> Path:
        name = f"{self.norm}-{self.method}".replace(" ", "_").replace(",", "+")
        return out / self.table / f"{name}-{self.rate:g}-seed{seed}"

    def words(self, configs: Path, seed: int) -> tuple[str, ...]:
        # Learned norms need no care of the start, so without norm layers they start as with them.
        start = ["model.initializer_range=0.1"] if self.norm == "none" and "sigmaReparam" in self.method else []
        return (str(configs / f"{self.norm}.yaml"), f"run.seed={seed}", f"phases.pretrain.optimizer.lr={self.rate:g}", *start,
                *self.overrides)  # fmt: skip

    def job(self, configs: Path, out: Path, seed: int, steps: int) -> Job:
        folder = self.folder(out, seed)
        words = (*self.words(configs, seed), "--quiet")
        return Job(folder, words, {"pretrain": steps}, "result.json", partial(end, folder))


def cells(
    table: str, norms: Sequence[str], methods: Mapping[str, Sequence[str]], rates: Sequence[float], more: Sequence[str] = ()
) -> list[list[Cell]]:
    """Groups [[Cell, …], …] of rising rates: what lies above a rate at which every seed stalls or diverges, and no better than at
    the rate before, is left out."""
    return [[Cell(table, norm, name, rate, (*options, *more)) for rate in rates]
            for norm in norms for name, options in methods.items()]


def some(*names: str) -> dict[str, list[str]]:
    return {name: METHODS[name] for name in names}


def sigma(layers: str, *more: str) -> list[str]:
    return [f"model.sigma_reparam.layers={layers}", *more]


RATES = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
PLAIN_AND_SIGMA = some("plain", "sigmaReparam")
NARROW = ["model.hidden_size=64", "model.num_attention_heads=2", "model.num_key_value_heads=2", "model.intermediate_size=176"]
ABLATION: dict[str, list[str]] = {
    "plain": [],
    "sigmaReparam: all": sigma("all"),
    "sigmaReparam: q, k": sigma("[q, k]"),
    "sigmaReparam: all but q, k": sigma("[v, o, gate, up, down, head]"),
    "sigmaReparam: attention": sigma("attention"),
    "sigmaReparam: MLP": sigma("mlp"),
    "QK-norm": METHODS["QK-norm"],
}
DECISIVE = [
    *cells("matrix", ["pre"], some("plain", "sigmaReparam", "QK-norm"), [1e-2]),
    *cells("matrix", ["pre"], some("plain"), [1e-3]),
    *cells("matrix", ["post", "none"], PLAIN_AND_SIGMA, [1e-2]),
    *cells("ablation", ["pre"], ABLATION, [1e-2], LONG),
]
FULL = [
    *DECISIVE,
    *cells("ablation", ["pre"], some("plain"), [1e-3], LONG),
    *cells("matrix", ["pre", "post", "none"], METHODS, RATES),
    *cells("gamma", ["pre"], {"sigmaReparam, gamma from sigma": sigma("all", "model.sigma_reparam.gamma_init=sigma")}, [1e-3, 1e-2]),
    *cells("beta2", ["pre"], PLAIN_AND_SIGMA, [1e-3, 3e-3, 1e-2], ["phases.pretrain.optimizer.betas=[0.9, 0.999]"]),
    *cells("depth24", ["pre", "post"], PLAIN_AND_SIGMA, [1e-3, 1e-2], [*NARROW, "model.num_hidden_layers=24"]),
    *cells("sgd", ["pre"], PLAIN_AND_SIGMA, [3e-2, 1e-1, 3e-1, 1],
           ["phases.pretrain.optimizer.kind=sgd", "phases.pretrain.optimizer.betas=[0.9]"]),
    *cells("depth48", ["pre"], PLAIN_AND_SIGMA, [1e-3, 1e-2], [*NARROW, "model.num_hidden_layers=48"]),
]
