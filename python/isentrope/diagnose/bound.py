"""The entropies of a model's attention, and what they are at least: a certificate from the spread of the logits alone.

Of a row of n > 1 keys with logits s, as the softmax sees them (csrc/model/entropy_bound.h has the same for the trainer)::

    r = ‖s - mean(s)‖₂      β = exp(-r √(n / (n - 1)))
    entropy ≥ log(1 + (n - 1) β) + r √(n (n - 1)) β / (1 + (n - 1) β)

Theorem 3.1 of arXiv:2303.06296 has for r the product of norms ‖W_K W_Qᵀ‖ ‖X Xᵀ‖, which is never smaller.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError

if TYPE_CHECKING:
    from isentrope.diagnose.model import Model
    from isentrope.integrations.transformers import LayerEntropy


def bound_of(spread: Tensor, keys: Tensor) -> Tensor:
    """spread r, keys n, of like shapes → the least entropy in nats; 0 where n < 2."""
    n = keys.to(spread.dtype)
    some = n > 1
    n = n.where(some, torch.full_like(n, 2.0))
    beta = torch.exp(-spread * (n / (n - 1)).sqrt())
    least = torch.log1p((n - 1) * beta) + spread * (n * (n - 1)).sqrt() * beta / (1 + (n - 1) * beta)
    return least.where(some, torch.zeros_like(least))


def bound(q: Tensor, k: Tensor, scale: float | None = None, softcap: float | None = None, window: int | None = None) -> Tensor:
    """q [B, H, T, D], k [B, G, T, D] of a causal attention, padded on the right → [B, H, T] nats. Rows of padding have no meaning."""
    B, H, T, D = q.shape
    G = k.shape[1]
    place = torch.arange(T, device=q.device)
    seen = place[None, :] <= place[:, None]
    if window is not None:
        seen &= place[None, :] > place[:, None] - window
    n = seen.sum(-1)
    found = []
    for one_q, one_k in zip(q, k):  # a sequence at a time: [G, H // G, T, T] logits
        s = one_q.view(G, H // G, T, D) @ one_k[:, None].transpose(-1, -2) * (scale or 1 / math.sqrt(D))
        if softcap is not None:
            s = softcap * torch.tanh(s / softcap)
        s = s.float().masked_fill(~seen, 0)
        mean = s.sum(-1, keepdim=True) / n[:, None]
        spread = (s - mean).masked_fill(~seen, 0).norm(dim=-1)
        found.append(bound_of(spread, n.expand_as(spread)).view(H, T))
    return torch.stack(found)


@contextlib.contextmanager
def recorded(model: Model, with_bound: bool) -> Iterator[tuple[dict[str, list[LayerEntropy]], dict[str, Tensor]]]:
    """Within it the model's attention is entropy_attention: gives what each layer's rows have, and their bounds [B, H, T]."""
    from transformers import AttentionInterface

    from isentrope.integrations import transformers as integration

    integration.register()
    before = model.config._attn_implementation
    if before != integration.NAME:
        try:
            model.module.set_attn_implementation(integration.NAME)
        except (ValueError, KeyError, ImportError) as error:
            raise DiagnoseError(f"{model.name}: its attention cannot run as entropy_attention: {error}") from None
    bounds: dict[str, Tensor] = {}
    names = {module: name for name, module in model.module.named_modules()} if with_bound else {}
    plain = AttentionInterface()[integration.NAME]

    def watched(module: Any, query: Tensor, key: Tensor, *more: Any, **options: Any) -> Any:
        if module in names:
            bounds[names[module]] = bound(query, key, options.get("scaling"), options.get("softcap"), options.get("sliding_window"))
        return plain(module, query, key, *more, **options)

    if with_bound:
        AttentionInterface.register(integration.NAME, watched)
    try:
        with integration.collect_entropy(model.module) as record:
            yield record, bounds
    except (ValueError, KeyError) as error:
        raise DiagnoseError(f"{model.name}: no entropy of its attention: {error}") from None
    finally:
        AttentionInterface.register(integration.NAME, plain)
        if before != integration.NAME:
            model.module.set_attn_implementation(before)
