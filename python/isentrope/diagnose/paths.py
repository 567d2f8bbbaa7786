"""Heads patched at all positions of the prompts, and the paths from heads to what a later head attends by or reads: its query, key or value.

Path patching (Wang et al., arXiv:2211.00593; Goldowsky-Dill et al., arXiv:2304.05969): in a first run the sender's output comes from the corrupted
prompts, every other head's from the clean ones, MLPs are computed again; what the receiver's projection gives there is put into a second run on the
clean prompts, in which all else is computed. Every run is one over whole sequences, so that this takes far longer than the last token alone (patching.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isentrope.diagnose.measure import DiagnoseError
from isentrope.diagnose.model import Model
from isentrope.diagnose.patching import Patching

TOKENS = 4096  # of one forward pass
PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class Receiver:
    """The query, key or value of a head; a key or value that several heads share is that of all of them."""

    layer: int
    head: int
    part: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}.{self.part}"

    @classmethod
    def read(cls, text: str, model: Model) -> Receiver:
        """Of "9.6.q". Raises DiagnoseError for what is none of the model's."""
        words = text.strip().split(".")
        known = len(words) == 3 and words[0].isdigit() and words[1].isdigit() and words[2] in PARTS
        if not known or not 0 < int(words[0]) < model.layers or int(words[1]) >= model.heads:
            raise DiagnoseError(f"receivers={text}; wanted LAYER.HEAD.PART with a layer from 1 to {model.layers - 1}, a head from 0 to {model.heads - 1} and a part of q, k, v, as 1.0.q")
        return cls(int(words[0]), int(words[1]), words[2])


def projection_of(model: Model, receiver: Receiver) -> tuple[nn.Module, slice]:
    """The module whose output holds what the receiver has, and where: q_proj, k_proj, v_proj, or the joined c_attn of GPT-2."""
    size = getattr(model.config, "head_dim", None) or model.width // model.heads
    groups = getattr(model.config, "num_key_value_heads", None) or model.heads
    head = receiver.head if receiver.part == "q" else receiver.head * groups // model.heads
    for name, attention in model.blocks()[receiver.layer].named_children():
        if "attn" not in name.lower() and "attention" not in name.lower():
            continue
        for own, part in attention.named_modules():
            if own == f"{receiver.part}_proj":
                return part, slice(head * size, (head + 1) * size)
            if own == "c_attn":
                first = PARTS.index(receiver.part) * model.heads * size + receiver.head * size
                return part, slice(first, first + size)
    raise DiagnoseError(f"{model.name}: layer {receiver.layer} of {type(model.module).__name__} has no {receiver.part}_proj and no c_attn; {receiver} cannot receive")


class Sequences:
    """The pairs of a Patching over all T positions.

    Attributes:
        clean, corrupt: [L, N, T, H, D] the heads' outputs of each of N pairs.
    """

    def __init__(self, run: Patching) -> None:
        self.run, self.model = run, run.model
        device = self.model.device
        self.ids = torch.tensor([pair.clean for pair in run.pairs], device=device)
        self.clean = self._outputs(self.ids)
        self.corrupt = self._outputs(torch.tensor([pair.corrupt for pair in run.pairs], device=device))
        self.size = max(1, TOKENS // self.ids.numel())  # heads of one pass

    @contextlib.contextmanager
    def _hooked(self, change: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
        """change(layer, z [B, T, H · D]) → what the output projection takes in its place, or None."""

        def hook(layer: int) -> Callable[..., Any]:
            def put(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
                new = change(layer, inputs[0])
                return None if new is None else (new, *inputs[1:])

            return put

        handles = [projection.register_forward_pre_hook(hook(layer)) for layer, projection in enumerate(self.run.projections)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _outputs(self, ids: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def keep(layer: int, z: Tensor) -> None:
            kept.append(z.unflatten(-1, (self.model.heads, -1)).clone())

        with torch.inference_mode(), self._hooked(keep):
            self.model.module(ids, use_cache=False, logits_to_keep=1)
        return torch.stack(kept)

    def _gaps(self, repeats: int) -> Tensor:
        """Of a pass with what hooks are there → [N, repeats]."""
        logits = self.model.module(self.ids.repeat_interleave(repeats, 0), use_cache=False, logits_to_keep=1).logits[:, -1]
        return self.run.gaps(logits, repeats).view(-1, repeats)

    def _with(self, some: list[tuple[int, int]], frozen: bool) -> Callable[[int, Tensor], Tensor | None]:
        """What puts one head of each repetition at its output of the corrupted run, and where frozen all others at that of the clean one."""

        def change(layer: int, z: Tensor) -> Tensor | None:
            mine = [(i, head) for i, (own, head) in enumerate(some) if own == layer]
            if not mine and not (frozen and layer > some[0][0]):
                return None
            shape = (len(self.ids), len(some), self.ids.shape[1], self.model.heads, -1)
            new = self.clean[layer][:, None].expand(shape).clone() if frozen else z.clone().view(shape)
            for i, head in mine:
                new[:, i, :, head] = self.corrupt[layer, :, :, head]
            return new.flatten(3).flatten(0, 1)

        return change

    def heads(self, frozen: bool, say: Callable[[int, int], None] | None = None) -> Tensor:
        """[L, H, N]: Patching.heads() with the head's output at all positions."""
        L, H = self.model.layers, self.model.heads
        every = [(layer, head) for layer in range(L) for head in range(H)]
        found = []
        for start in range(0, len(every), self.size):
            some = every[start : start + self.size]
            with torch.inference_mode(), self._hooked(self._with(some, frozen)):
                found.append(self._gaps(len(some)).T)
            if say:
                say(min(start + self.size, len(every)), len(every))
        return torch.cat(found).view(L, H, -1)

    def paths(self, receiver: Receiver, say: Callable[[int, int], None] | None = None) -> Tensor:
        """[receiver.layer, H, N]: the gap with the receiver as each head below it, patched alone, makes it."""
        module, place = projection_of(self.model, receiver)
        H = self.model.heads
        every = [(layer, head) for layer in range(receiver.layer) for head in range(H)]
        found = []
        for start in range(0, len(every), self.size):
            some = every[start : start + self.size]
            made: list[Tensor] = []

            def receive(module: nn.Module, inputs: Any, out: Tensor) -> None:
                made.append(out[..., place].clone())
                raise Received

            with torch.inference_mode():
                with self._hooked(self._with(some, frozen=True)), removed(module.register_forward_hook(receive)), contextlib.suppress(Received):
                    self._gaps(len(some))

                def put(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
                    out = out.clone()
                    out[..., place] = made[0]
                    return out

                with removed(module.register_forward_hook(put)):
                    found.append(self._gaps(len(some)).T)
            if say:
                say(min(start + self.size, len(every)), len(every))
        return torch.cat(found).view(receiver.layer, H, -1)


class Received(Exception):
    """Ends a pass at the receiver, behind which nothing is wanted of it."""


@contextlib.contextmanager
def removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
