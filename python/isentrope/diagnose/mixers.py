"""What the mixers of a checkpoint of type isentrope hold and weigh, whatever their kind: rows of weights of softmax and linear attention,
states of recurrences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError
from isentrope.nn import effective_rank

if TYPE_CHECKING:
    from isentrope.diagnose.model import Batch, Model


@dataclass
class MixerRows:
    """A layer's, of a batch.

    Attributes:
        kind: of model.mixers.
        entropy: [B, H, T] nats, of a row's weights made to sum to one; NaN where a weight is negative, and it is not defined.
        keys: [B, T]: how many keys a row has weights of.
        rank: [B, H] effective rank (isentrope.nn.effective_rank) of the states behind each sequence's last token; None of softmax kinds, which
            hold keys and values in place of a state.
        most: of what rank can be.
    """

    kind: str
    entropy: Tensor
    keys: Tensor
    rank: Tensor | None = None
    most: int = 0


def entropy_of_rows(weights: Tensor) -> Tensor:
    """weights [..., T, T] → [..., T] nats of p = w / Σ w; NaN where one is negative, 0 of a row without weight."""
    total = weights.sum(-1, keepdim=True)
    p = weights / torch.where(total == 0, torch.ones_like(total), total)
    entropy: Tensor = -torch.special.xlogy(p, p).sum(-1)
    return entropy.masked_fill((weights < 0).any(-1), torch.nan)


@contextlib.contextmanager
def watched(model: Model, batch: Batch) -> Iterator[list[MixerRows]]:
    """Within it a forward pass fills the list, a layer after the other."""
    if model.config.model_type != "isentrope":
        raise DiagnoseError(
            f"{model.name}: is of type {model.config.model_type}, and mixers are measured of checkpoints of type isentrope; attention-entropy measures the attention of others"
        )
    found: list[MixerRows] = []
    kinds = model.config.mixers
    last = (batch.lengths - 1).to(model.device)

    def look(module: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        kind = kinds[len(found) % len(kinds)]
        if kind in ("softmax", "softmax_rnn", "routed", "natsl", "estimated"):
            weights = module.rows(*inputs)[0].double().softmax(-1).nan_to_num(0)
            found.append(MixerRows(kind, entropy_of_rows(weights), (weights > 0).any(1).sum(-1)))
            return
        q, k, u, decay, _ = (part.double() for part in module.rows(*inputs))
        B, H, T = q.shape[:3]
        # What the state behind the last token holds of each token's write.
        left = decay.expand(B, H, *decay.shape[2:])[torch.arange(B, device=q.device), :, last]  # [B, H, T]
        state = (k * left[..., None]).mT @ u  # [B, H, F, E]
        keys = torch.arange(1, T + 1, device=q.device).expand(B, T)
        # The delta rule takes away from what stands in the state: what is left of a token is no weight of its own.
        weights = q @ k.mT * decay if kind != "gated_delta" else torch.full((B, H, T, T), -1.0, dtype=q.dtype, device=q.device)
        found.append(MixerRows(kind, entropy_of_rows(weights), keys, effective_rank(state), min(state.shape[-2:])))

    hooks = [block.self_attn.register_forward_hook(look) for block in model.blocks()]  # type: ignore[union-attr]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
