"""A model run with the output of single attention heads put in place, at the last token: what each does to the answer.

A head's output z is what its columns of the attention's output projection take. Only the last token is run again, for many heads in one
batch: what stands before it is the same whatever the heads at the last token do, since attention is causal, and its keys and values are
computed once.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from isentrope.diagnose.measure import DiagnoseError
from isentrope.diagnose.model import Model
from isentrope.diagnose.pairs import Pair

ROWS = 512  # prompts in one forward pass of the last token


def output_projections(model: Model) -> list[nn.Module]:
    """Of each layer what takes the heads' outputs [B, T, H · D]; raises DiagnoseError where it is not to be found."""
    size = model.heads * (getattr(model.config, "head_dim", None) or model.width // max(model.heads, 1))
    found = []
    for number, block in enumerate(model.blocks()):
        own = None
        for name, attention in block.named_children():
            if "attn" in name.lower() or "attention" in name.lower():
                for part in attention.modules():
                    weight = getattr(part, "weight", None)
                    if isinstance(weight, Tensor) and weight.dim() == 2:
                        takes = weight.shape[1] if isinstance(part, nn.Linear) else weight.shape[0]  # Conv1D of GPT-2 is transposed
                        own = part if takes == size > 0 else own  # the last of them
        if own is None:
            raise DiagnoseError(f"{model.name}: layer {number} of {type(model.module).__name__} has no attention with an output projection of {size} features; heads cannot be patched")
        found.append(own)
    return found


class Patching:
    """Pairs of one length, run once clean and once corrupted.

    Attributes:
        clean, corrupt: [L, N, H, D] the heads' outputs at the last token of each of N pairs.
        gap, gap_corrupt: [N] logit(answer) - logit(other) of the two runs.
    """

    def __init__(self, model: Model, pairs: Sequence[Pair]) -> None:
        model.foretells("patching")
        self.model, self.pairs = model, pairs
        self.projections = output_projections(model)
        device = model.device
        self.answers = torch.tensor([[pair.answer, pair.other] for pair in pairs], device=device)
        ids = torch.tensor([pair.clean for pair in pairs], device=device)
        self.last = ids[:, -1:]
        with torch.inference_mode():
            self.corrupt, self.gap_corrupt = self._whole(torch.tensor([pair.corrupt for pair in pairs], device=device))
            self.cache = transformers.DynamicCache(config=model.config)
            if ids.shape[1] > 1:
                model.module(ids[:, :-1], **self._caching(self.cache), logits_to_keep=1)
        self.clean, self.gap = self._run(None)

    def _caching(self, cache: Any) -> dict[str, Any]:
        """The arguments by which a model takes a cache: newer transformers call it otherwise."""
        known = inspect.signature(self.model.module.forward).parameters
        return {"cache" if "cache" in known else "past_key_values": cache, "use_cache": True}

    @contextlib.contextmanager
    def _hooked(self, change: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """change(layer, z [B, H · D] at the last token) → what stands in its place, or None."""

        def hook(layer: int) -> Callable[..., Any]:
            def put(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
                z = inputs[0]
                new = change(layer, z[:, -1])
                if new is None:
                    return None
                z = z.clone()
                z[:, -1] = new
                return (z, *inputs[1:])

            return put

        handles = [projection.register_forward_pre_hook(hook(layer)) for layer, projection in enumerate(self.projections)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gaps(self, logits: Tensor, repeats: int = 1) -> Tensor:
        """[B, V] → [B] logit(answer) - logit(other)."""
        found = logits.float().gather(1, self.answers.repeat_interleave(repeats, 0))
        return found[:, 0] - found[:, 1]

    def _whole(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []

        def keep(layer: int, z: Tensor) -> Tensor | None:
            kept.append(z.clone())
            return None

        with self._hooked(keep):
            logits = self.model.module(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return torch.stack(kept).unflatten(-1, (self.model.heads, -1)), self.gaps(logits)

    def _run(self, change: Callable[[int, Tensor], Tensor | None] | None, repeats: int = 1) -> tuple[Tensor, Tensor]:
        """The last token alone, each prompt `repeats` times in a row: outputs of the heads [L, N · repeats, H, D], gaps [N · repeats]."""
        kept: list[Tensor] = []

        def keep(layer: int, z: Tensor) -> Tensor | None:
            new = change(layer, z) if change else None
            kept.append(z.clone() if new is None else new)
            return new

        with torch.inference_mode(), self._hooked(keep):
            cache = copy.deepcopy(self.cache)
            if cache.get_seq_length() and repeats > 1:
                cache.batch_repeat_interleave(repeats)
            logits = self.model.module(self.last.repeat_interleave(repeats, 0), **self._caching(cache)).logits[:, -1]
        return torch.stack(kept).unflatten(-1, (self.model.heads, -1)), self.gaps(logits, repeats)

    def heads(self, frozen: bool, say: Callable[[int, int], None] | None = None) -> Tensor:
        """[L, H, N]: the gap with one head's output taken from the corrupted run. frozen: every other head has its output of the clean
        run, so that what is seen is the head's way to the logits through the residual stream and the MLPs (path patching to the logits)."""
        L, H, N = self.model.layers, self.model.heads, len(self.pairs)
        every = [(layer, head) for layer in range(L) for head in range(H)]
        size = max(1, ROWS // N)
        found = []
        for start in range(0, len(every), size):
            some = every[start : start + size]

            def change(layer: int, z: Tensor) -> Tensor | None:
                mine = [(i, head) for i, (own, head) in enumerate(some) if own == layer]
                if not mine and not (frozen and layer > some[0][0]):
                    return None  # as it is: before the first head that is changed every output is the clean one
                new = (self.clean[layer].flatten(1).repeat_interleave(len(some), 0) if frozen else z.clone()).view(N, len(some), H, -1)
                for i, head in mine:
                    new[:, i, head] = self.corrupt[layer, :, head]
                return new.flatten(2).flatten(0, 1)

            found.append(self._run(change, len(some))[1].view(N, len(some)).T)
            if say:
                say(min(start + size, len(every)), len(every))
        return torch.cat(found).view(L, H, N)

    def without(self, keep: Tensor, mean: Tensor) -> Tensor:
        """keep [L, H] bool, mean [L, H, D] → gap [N] with every head that is not kept at its mean."""

        def change(layer: int, z: Tensor) -> Tensor | None:
            if bool(keep[layer].all()):
                return None
            new: Tensor = z.unflatten(-1, (self.model.heads, -1)).clone()
            new[:, ~keep[layer]] = mean[layer, ~keep[layer]]
            return new.flatten(1)

        return self._run(change)[1]


def effects(patched: Tensor, clean: Tensor, corrupt: Tensor) -> Tensor:
    """(LD_patched - LD_clean) / (LD_corrupt - LD_clean) of gaps [..., N], each averaged over the prompts first: that of a single
    prompt may have no denominator."""
    return (patched.double().mean(-1) - clean.double().mean()) / (corrupt.double().mean() - clean.double().mean())


def auroc(scores: Tensor, inside: Tensor) -> float:
    """Share of the pairs of one inside and one outside in which the one inside has the higher score; NaN without both."""
    a, b = scores[inside].double(), scores[~inside].double()
    if not len(a) or not len(b):
        return float("nan")
    return float(((a[:, None] > b).double() + 0.5 * (a[:, None] == b)).mean())
