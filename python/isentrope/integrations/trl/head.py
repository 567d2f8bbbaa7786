"""linear_token_entropy in the place of the fused head that TRL gives a model."""

from __future__ import annotations

import contextlib
import functools
import types
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from trl.trainer.utils import FusedCausalLMOutput

from isentrope.nn import SigmaLinear
from isentrope.ops import linear_token_entropy

# Factors of the logits, by their names in the configurations of transformers.
_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def refusal(model: nn.Module) -> str | None:
    """Why the head of a model of transformers is left to TRL, or None. A SigmaLinear is taken with what it multiplies by."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    if type(head) not in (nn.Linear, SigmaLinear):
        return f"its head is a {type(head).__name__}; wanted torch.nn.Linear"
    if config is not model.config and int(transformers.__version__.split(".")[0]) < 5:
        return f"transformers is {transformers.__version__} and the model has a part for images; wanted 5 or later"
    if hasattr(head.weight, "ds_id"):
        return "its head is split by DeepSpeed ZeRO-3"
    for name in _FACTORS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            return f"its configuration has {name} {getattr(config, name)}; wanted no factor of the logits"
    return None


def add_head(model: nn.Module, temperature: float, in_float32: bool) -> str | None:
    """Makes model(…, labels=…, fused_lm_head=True), which TRL calls, run the decoder and linear_token_entropy. Every other call, and one that
    asks for router logits, goes on to the forward that the model had.

    Args:
        model: of transformers, with TRL's fused head.
        temperature: logits are divided by it.
        in_float32: TRL's cast_lm_head_to_fp32: the head is float32 and outside autocast.

    Returns:
        Why the model keeps TRL's head, or None where it has ours.
    """
    reason = refusal(model)
    if reason is not None:
        return reason
    theirs, config = model.forward, model.config.get_text_config()

    @functools.wraps(type(model).forward)  # generate() looks at its arguments
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        routed = kwargs.get("output_router_logits") or getattr(config, "output_router_logits", False)
        if not fused_lm_head or routed or refusal(self) is not None:  # PEFT and DeepSpeed may have changed the head since
            given = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
            kwargs |= {name: value for name, value in given.items() if value is not None}
            return theirs(*args, **kwargs, **({"fused_lm_head": True} if fused_lm_head else {}))

        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state  # [B, T, C]
        if shift_labels is None:
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        head = self.get_output_embeddings()
        weight = head.scaled_weight() if isinstance(head, SigmaLinear) else head.weight
        weight, bias = (x.full_tensor() if isinstance(x, DTensor) else x for x in (weight, head.bias))
        hidden, target = hidden.to(weight.device), shift_labels.to(weight.device)
        outside = contextlib.nullcontext()
        if in_float32:
            hidden, outside = hidden.float(), torch.autocast(hidden.device.type, enabled=False)
        with outside:
            logprob, entropy, _ = linear_token_entropy(
                hidden,
                weight,
                target,
                bias=bias,
                softcap=getattr(config, "final_logit_softcapping", None),
                temperature=temperature,
            )
        counted = target != -100
        count = counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(loss=-logprob.sum() / count, log_probs=logprob, entropy=entropy, label_mask=counted)

    model.forward = types.MethodType(forward, model)
    return None
