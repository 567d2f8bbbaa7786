"""isentrope merge BASE FOLDER … -o OUT: a model whose weights are the base's and what others learnt from it (task arithmetic).

With θ₀ the base's weights and τ_i = θ_i − θ₀ what a model learnt that was trained from it (arXiv 2212.04089)::

    linear    θ = θ₀ + Σ_i w_i τ_i
    ties      θ = θ₀ + scale · Σ_{i in A} w_i τ_i / Σ_{i in A} w_i        (TIES, arXiv 2306.01708)

ties, element by element: of each τ_i the `density` largest of a tensor by magnitude are kept, the others are 0; the sign is that of
Σ_i w_i τ_i, and A are the models whose kept element has it. Weights are read and written a tensor at a time, computed in float32, and
stored in the base's type.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isentrope.whole_folder import whole_folder

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What a run leaves in a checkpoint beside its model.
OF_RUNS = {"trainer.safetensors", "trainer.json", "config.yaml", "DONE", WHOLE, INDEX}
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64", torch.int32: "I32",
         torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip


class MergeFailed(Exception):
    """What is wrong with a folder, for a person."""


class Weights:
    """The tensors of a folder, each read from its file when it is asked for. given: a model's folder, or a run for its newest checkpoint."""

    def __init__(self, given: str) -> None:
        from isentrope.diagnose.measure import DiagnoseError
        from isentrope.diagnose.model import resolved

        try:
            self.folder = resolved(Path(given))
        except DiagnoseError as error:
            raise MergeFailed(str(error)) from error
        if (self.folder / "adapter_config.json").exists():
            raise MergeFailed(f"{self.folder}: is an adapter; merge it into its model first: isentrope export {self.folder} FOLDER")
        if (self.folder / INDEX).exists() and not (self.folder / WHOLE).exists():
            shards: dict[str, str] = json.loads((self.folder / INDEX).read_text())["weight_map"]
            files = sorted(set(shards.values()))
        else:
            files = [WHOLE]
        self.file_of: dict[str, str] = {}
        self.open: dict[str, Any] = {}
        for file in files:
            for name in self._open(file).keys():
                self.file_of[name] = file

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self.open:
            try:
                self.open[file] = safe_open(self.folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise MergeFailed(f"{self.folder / file}: cannot be read: {error}") from error
        return self.open[file]

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._open(self.file_of[name]).get_tensor(name)
        return tensor

    def shape(self, name: str) -> list[int]:
        shape: list[int] = self._open(self.file_of[name]).get_slice(name).get_shape()
        return shape

    def origin(self) -> int | None:
        """The digest of the weights that the run of this checkpoint began from; None where nothing says it."""
        from safetensors import safe_open

        file = self.folder / "trainer.safetensors"
        if not file.exists():
            return None
        with safe_open(file, framework="pt") as state:
            if "extra/origin_digest" not in state.keys():
                return None
            return int(state.get_tensor("extra/origin_digest").item())


def digest(weights: Weights, names: Sequence[str]) -> int:
    """weights_digest of csrc/train/weights.h."""
    import numpy

    total = 0
    for name in names:
        hashed = 0xCBF29CE484222325
        for byte in name.encode():
            hashed = (hashed ^ byte) * 0x100000001B3 % 2**64
        bits = weights[name].float().contiguous().view(torch.int32).flatten().numpy().view(numpy.uint32).astype(numpy.uint64)
        places = 2 * numpy.arange(len(bits), dtype=numpy.uint64) + 1
        total += hashed * int(((bits + 1) * places).sum(dtype=numpy.uint64))
    total %= 2**64
    return total - 2**64 if total >= 2**63 else total


def check(base: Weights, others: Sequence[Weights], any_base: bool) -> list[str]:
    """Names of the tensors that are merged. Raises MergeFailed for folders that are not of the base."""
    names = [name for name in base.file_of if base[name].is_floating_point()]
    known: dict[tuple[str, ...], int] = {}
    for other in others:
        missing = [name for name in names if name not in other.file_of]
        shaped = [f"{name} {other.shape(name)}, wanted {base.shape(name)}" for name in names if name in other.file_of and other.shape(name) != base.shape(name)]
        extra = [name for name in other.file_of if name not in base.file_of]
        for what, found in (("lacks", missing), ("has", shaped), ("has what the base has not:", extra)):
            if found:
                more = f" and {len(found) - 5} more" if len(found) > 5 else ""
                raise MergeFailed(f"{other.folder}: was not trained from {base.folder}: it {what} {', '.join(found[:5])}{more}")
        told = other.origin()
        if told is None or any_base:
            continue
        of = tuple(sorted(other.file_of))
        if of not in known:
            known[of] = digest(base, of)
        if told != known[of]:
            raise MergeFailed(f"{other.folder}: its run began from other weights than those of {base.folder} (their digests differ); "
                              "name the model that it began from, or give --any-base")  # fmt: skip
    return names


def linear(base: Tensor, others: Sequence[Tensor], weights: Sequence[float], density: float = 1.0, scale: float = 1.0) -> Tensor:
    """θ₀ + Σ w_i (θ_i − θ₀), float32; density and scale are ties'."""
    merged = base.clone()
    for other, weight in zip(others, weights):
        merged += weight * (other - base)
    return merged


def ties(base: Tensor, others: Sequence[Tensor], weights: Sequence[float], density: float = 0.2, scale: float = 1.0) -> Tensor:
    """Of tensors [...], float32: trim, elect a sign, mean of those that have it. The formula: the module's."""
    total, kept = torch.zeros_like(base), []
    for other, weight in zip(others, weights):
        task = other - base
        if density < 1 and task.numel():
            count = max(1, round(density * task.numel()))
            least = task.abs().flatten().kthvalue(task.numel() - count + 1).values
            task = torch.where(task.abs() >= least, task, 0)
        kept.append(task)
        total += weight * task
    sign, sums, shares = total.sign(), torch.zeros_like(base), torch.zeros_like(base)
    for task, weight in zip(kept, weights):
        agrees = (task.sign() == sign) & (task != 0)
        sums += torch.where(agrees, weight * task, 0)
        shares += agrees * weight
    return base + scale * torch.where(shares > 0, sums / torch.where(shares > 0, shares, 1), 0)


METHODS = {"linear": linear, "ties": ties}


def write(file: Path, names: Sequence[str], base: Weights, merged: Iterator[tuple[str, Tensor]]) -> None:
    """A safetensors file of the base's types and shapes, its tensors one after the other as they are made."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        tensor = base[name]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in merged:
            out.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def merge(base: str, folders: Sequence[str], out: Path, *, method: str = "linear", weights: Sequence[float] | None = None,
          density: float = 0.2, scale: float = 1.0, any_base: bool = False) -> list[str]:  # fmt: skip
    """Writes the folder out, which is not there yet, and returns the names of the tensors that were merged.

    Args:
        weights: w, one a folder; by default 1 / number of folders with linear, 1 each with ties.
        density: ties: the share of each tensor's elements that is kept, above 0 up to 1.

    Raises:
        MergeFailed: a folder that was not trained from the base, tensors that are missing or of another shape, weights that are not finite, numbers out of range; nothing of out is left.
    """
    given = list(weights) if weights is not None else [1 / len(folders) if method == "linear" else 1.0] * len(folders)
    if len(given) != len(folders):
        raise MergeFailed(f"{len(given)} weights for {len(folders)} folders; wanted one each")
    for name, value in (*(("weight", weight) for weight in given), ("scale", scale)):
        if not math.isfinite(value):
            raise MergeFailed(f"{name} is {value:g}; wanted a finite number")
    if not 0 < density <= 1:
        raise MergeFailed(f"density is {density:g}; wanted above 0, up to 1")
    if method == "ties" and any(weight <= 0 for weight in given):
        raise MergeFailed("ties takes a mean over models: weights are to be above 0")
    if out.exists():
        raise MergeFailed(f"{out}: is there already; name a folder that is not")
    origin = Weights(base)
    others = [Weights(folder) for folder in folders]
    names = check(origin, others, any_base)
    with whole_folder(out) as making:
        for file in sorted(set(origin.file_of.values())):
            # Wide elements first: every tensor is then aligned to its own without gaps.
            within = sorted((name for name in origin.file_of if origin.file_of[name] == file), key=lambda name: (-origin[name].element_size(), name))

            def made(within: Sequence[str] = within) -> Iterator[tuple[str, Tensor]]:
                for name in within:
                    own = origin[name]
                    if name in names:
                        for held in (origin, *others):
                            if not held[name].isfinite().all():
                                raise MergeFailed(f"{held.folder}: {name} is not finite everywhere; take another folder")
                        own = METHODS[method](own.float(), [other[name].float() for other in others], given, density, scale).to(own.dtype)
                        if not own.isfinite().all():
                            raise MergeFailed(f"{name} is too large for {own.dtype} once merged; lower --weight or --scale")
                    yield name, own

            write(making / file, within, origin, made())
        for path in origin.folder.iterdir():
            if path.is_file() and path.name not in OF_RUNS and path.suffix not in (".safetensors", ".bin"):
                shutil.copyfile(path, making / path.name)
        if (origin.folder / INDEX).exists() and WHOLE not in origin.file_of.values():
            shutil.copyfile(origin.folder / INDEX, making / INDEX)
    return names


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="isentrope merge", description="Add what models learnt from a base to the base's weights.")
    parser.add_argument("base", help="folder of the model that the others were trained from, or a run")
    parser.add_argument("folders", nargs="+", help="folders of models that were trained from it, or runs")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder to write, which is not there yet")
    parser.add_argument("--method", choices=sorted(METHODS), default="linear", help="how they are added (docs/options.md); default linear")
    parser.add_argument("--weight", type=float, action="append", help="factor of a folder's task vector, once for each in their order; default 1 / number, with ties 1")
    parser.add_argument("--density", type=float, default=0.2, help="ties: share of each tensor's largest elements that is kept; default 0.2")
    parser.add_argument("--scale", type=float, default=1.0, help="ties: factor of the merged task vector; default 1")
    parser.add_argument("--any-base", action="store_true", help="take folders that say that they were trained from other weights")
    given = parser.parse_args(words)
    try:
        names = merge(given.base, given.folders, given.output, method=given.method, weights=given.weight, density=given.density, scale=given.scale, any_base=given.any_base)
    except MergeFailed as error:
        print(f"isentrope merge: {error}", file=sys.stderr)
        return 1
    print(f"{given.output}: {len(names)} tensors of {given.base} with those of {len(given.folders)} models, {given.method}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
