"""Importing this module makes verl take entropies from Isentrope's ops: what actor_rollout_ref.model.external_lib is for.

verl (0.9.1) has no registry for them: its engines look three names up in two of its modules, and install() puts others in their place.

    verl.utils.torch_functional
        entropy_from_logits, entropy_from_logits_with_chunking   → token_entropy, one read of the logits, no copy of their size
    verl.utils.experimental.torch_functional
        FusedLinearForPPO (use_fused_kernels=True, impl_backend torch)   → linear_token_entropy: log-probability and entropy, no logits

An engine takes entropy_from_logits when it is made, so external_lib, which verl imports before that, is early enough. Not reached:
impl_backend "triton", which has a kernel of its own; Megatron, whose logits are split over ranks; and log-probabilities without
use_fused_kernels, which stay verl's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from isentrope.integrations.verl import losses  # noqa: F401  says what is missing where verl is
from isentrope.ops import linear_token_entropy, token_entropy

import verl.utils.experimental.torch_functional as fused  # isort: skip
import verl.utils.torch_functional as plain  # isort: skip

__all__ = ["FusedLinearForPPO", "entropy_from_logits", "entropy_from_logits_with_chunking", "install", "uninstall"]


def entropy_from_logits(logits: Tensor) -> Tensor:
    """logits [..., V] → entropy [...] in nats, with a gradient; float32 where the logits are bfloat16 or float16 (verl's keeps their dtype)."""
    rows = logits.flatten(0, -2) if logits.dim() > 1 else logits[None]
    target = torch.zeros(rows.shape[:-1], dtype=torch.long, device=rows.device)
    return token_entropy(rows, target).entropy.view(logits.shape[:-1])


def entropy_from_logits_with_chunking(logits: Tensor, chunk_size: int = 2048) -> Tensor:
    """As entropy_from_logits: without a copy of the logits there is nothing to save by chunks."""
    return entropy_from_logits(logits)


class FusedLinearForPPO(nn.Module):
    """verl's fused head with linear_token_entropy in it; chunk_size and impl_backend are taken and make no difference."""

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        """hidden_states [..., C], vocab_weights [V, C], input_ids [...] → (log_probs, entropy), each [...], float32."""
        shape = input_ids.shape
        if shape != hidden_states.shape[:-1]:
            raise ValueError(
                f"FusedLinearForPPO of isentrope: input_ids has shape {list(shape)} and hidden_states {list(hidden_states.shape)}; "
                "wanted hidden_states to be input_ids' shape and a width"
            )
        if isinstance(vocab_weights, DTensor):  # FSDP2 shards the head as a module of its own, whose forward is not called here
            vocab_weights = vocab_weights.full_tensor()
        if vocab_weights.dtype != hidden_states.dtype:  # FSDP's mixed precision casts a module's own weights alone
            vocab_weights = vocab_weights.to(hidden_states.dtype)
        output = linear_token_entropy(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            vocab_weights,
            input_ids.reshape(-1).long(),
            temperature=float(temperature),
        )
        return output.logprob.view(shape), output.entropy.view(shape)


_OURS = {
    (plain, "entropy_from_logits"): entropy_from_logits,
    (plain, "entropy_from_logits_with_chunking"): entropy_from_logits_with_chunking,
    (fused, "FusedLinearForPPO"): FusedLinearForPPO,
}
_theirs: dict = {}


def install() -> None:
    """Puts the three in verl's places. A second call changes nothing.

    Raises:
        ImportError: verl has no such name (an untested version of it).
    """
    for module, name in _OURS:
        if not hasattr(module, name):
            raise ImportError(
                f"isentrope.integrations.verl.entropy: verl is {losses.verl.__version__} and has no {module.__name__}.{name}; "
                f"wanted {losses.TESTED}"
            )
    for (module, name), ours in _OURS.items():
        _theirs.setdefault((module, name), getattr(module, name))
        setattr(module, name, ours)


def uninstall() -> None:
    """Gives verl its own back, for engines that are made afterwards."""
    for (module, name), own in _theirs.items():
        setattr(module, name, own)
    _theirs.clear()


install()
