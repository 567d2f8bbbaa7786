"""Isentrope's decoder and encoder for transformers, in plain torch: what a checkpoint whose model_type is isentrope carries beside its weights, so that

    transformers.AutoModelForCausalLM.from_pretrained("runs/hybrid/checkpoints/sft-002400", trust_remote_code=True)

opens it without the package; an encoder by AutoModelForMaskedLM, or with labels by AutoModelForTokenClassification. The kinds of model.mixers are in mixers_isentrope.py.
A forward pass gives the logits that training has, up to rounding; generation computes the whole sequence again for each token. The two files
stand alone: they may be copied, and import nothing but torch and transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, MaskedLMOutput, TokenClassifierOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .mixers_isentrope import Estimated, Hierarchical, Natsl, Recurrence, Routed, Softmax

KINDS = ("softmax", "softmax_rnn", "routed", "linear", "prefix_linear", "normalized", "gated_delta", "ssd", "natsl", "estimated", "hierarchical")


class IsentropeConfig(PretrainedConfig):
    """The keys of config.json as the trainer writes them (csrc/train/model_config.cpp)."""

    model_type = "isentrope"

    def __init__(self, **keys: Any) -> None:
        self.mixers = keys.pop("mixers", ["softmax"])
        for kind in self.mixers:
            if kind not in KINDS:
                raise ValueError(f"config.json: mixers has {kind!r}; this file knows {', '.join(KINDS)}. Take the file of a newer version.")
        self.causal = keys.pop("causal", True)
        keys.pop("rope_scaling", None)  # transformers 4's spelling of what rope_parameters says
        self.rope_parameters, self.max_position_embeddings = keys.pop("rope_parameters"), keys.pop("max_position_embeddings")
        self.hidden_size, self.num_attention_heads, self.head_dim = (keys.pop(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
        super().__init__(**keys)


class Mlp(nn.Module):
    """down(silu(gate x) · up x); down(f(up x)) of another activation; without one a single matrix, W x / α, with the sum before it times β."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        C, M, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = getattr(config, "activation", "swiglu")
        if self.activation != "none":
            if self.activation == "swiglu":
                self.gate_proj = nn.Linear(C, M, bias)
            self.up_proj, self.down_proj = nn.Linear(C, M, bias), nn.Linear(M, C, bias)
            if self.activation == "crrelu":
                self.epsilon = nn.Parameter(torch.full((1,), 0.01))
        else:
            self.down_proj = nn.Linear(C, C, bias=False)
            self.alpha, self.beta = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream x [B, T, C] and what is read of it, y → the stream behind the block."""
        if self.activation == "none":
            out: Tensor = x * self.beta + self.down_proj(y) / self.alpha
            return out
        up = self.up_proj(y)
        if self.activation == "swiglu":
            inner = silu(self.gate_proj(y)) * up
        elif self.activation == "crrelu":
            inner = relu(up) + self.epsilon * up * torch.exp(-up.square() / 2)
        else:
            inner = {"gelu": gelu, "relu": relu}[self.activation](up)
        out = x + self.down_proj(inner)
        return out


class Block(nn.Module):
    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        kind = config.mixers[layer % len(config.mixers)]
        attends = {"softmax": Softmax, "softmax_rnn": Softmax, "hierarchical": Hierarchical}.get(kind)
        self.self_attn: nn.Module
        if attends:
            self.self_attn = attends(config, layer, getattr(config, kind, {}))
        else:
            routes = {"routed": Routed, "natsl": Natsl, "estimated": Estimated}.get(kind)
            self.self_attn = routes(config) if routes else Recurrence(config, kind)
        self.mlp = Mlp(config)
        if config.norm == "pre" or config.norm == "post" and layer > 0:  # behind every sum, and there is none before the first block
            self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.norm != "none":
            self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """[B, T] tokens → the stream behind the last norm [B, T, C]; hidden_states are the streams that the blocks read, and that."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        if config.norm != "none":
            self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def angles(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, 1, T, D / 2] of the rotary positions."""
        config = self.config
        rope = config.rope_parameters
        if rope["rope_type"] == "default":
            frequency, factor = rope["rope_theta"] ** (-torch.arange(0, config.head_dim, 2).double() / config.head_dim), 1.0
        else:
            frequency, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
        angle = position[:, None, :, None].double() * frequency.double().to(position.device)
        return angle.cos() * factor, angle.sin() * factor

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: bool = False, prefix_length: Tensor | int = 0, **_: Any
    ) -> BaseModelOutput:
        x, after, read = self.embed_tokens(input_ids), self.config.norm == "post", []
        seen = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        position = (seen.cumsum(-1) - 1).clamp_min(0)
        cosine, sine = (angle.to(x.dtype) for angle in self.angles(position))
        lengths = torch.as_tensor(prefix_length, device=x.device).reshape(-1, 1)
        if bool((lengths > seen.sum(-1, keepdim=True)).any()):
            raise ValueError(f"prefix_length is {int(lengths.max())}; wanted at most the tokens of each sequence, of which the shortest has {int(seen.sum(-1).min())}")
        prefix = seen & (position < lengths)

        def normed(x: Tensor, norm: nn.Module | None) -> tuple[Tensor, Tensor]:  # the stream, what the branch reads
            y = x if norm is None else norm(x)
            return (y, y) if after else (x, y)

        block: Any
        for block in self.layers:
            read.append(x)
            x, y = normed(x, getattr(block, "input_layernorm", None))
            x, y = normed(x + block.self_attn(y, seen, position, cosine, sine, prefix), getattr(block, "post_attention_layernorm", None))
            x = block.mlp(x, y)
        x = normed(x, getattr(self, "norm", None))[1]
        return BaseModelOutput(last_hidden_state=x, hidden_states=(*read, x) if output_hidden_states else None)


class IsentropeForCausalLM(PreTrainedModel, GenerationMixin):
    """[B, T] tokens → logits [B, T, V]. attention_mask [B, T] may have padding on either side. prefix_length, a number or [B]: how many tokens at
    the start of each sequence are its prefix, which layers of kind prefix_linear read as a whole; generate() takes the prompt."""

    config_class = IsentropeConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _no_split_modules = ["Block"]

    def __init__(self, config: IsentropeConfig) -> None:
        super().__init__(config)
        if not config.causal:
            raise ValueError("config.json: causal is false, and an encoder foretells no next token; open the folder by AutoModelForMaskedLM")
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> Any:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def generate(self, inputs: Any = None, **kwargs: Any) -> Any:
        prompt, mask = inputs if inputs is not None else kwargs.get("input_ids"), kwargs.get("attention_mask")
        if prompt is not None and "prefix_length" not in kwargs:
            kwargs["prefix_length"] = prompt.shape[1] if mask is None else mask.sum(-1)
        return super().generate(inputs, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: Any, *_: Any, **kwargs: Any) -> dict[str, Any]:  # transformers looks for that name
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask"), "prefix_length": kwargs.get("prefix_length", 0)}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, output_hidden_states: bool = False,
        prefix_length: Tensor | int = 0, **_: Any,
    ) -> CausalLMOutput:  # fmt: skip
        found = self.model(input_ids, attention_mask, output_hidden_states, prefix_length)
        logits, loss = self.lm_head(found.last_hidden_state), None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=found.hidden_states)


class _Encoder(PreTrainedModel):
    """What the classes of encoders share, whose tokens see all of their sequence."""

    config_class = IsentropeConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]
    head: str
    output: Any

    def __init__(self, config: IsentropeConfig) -> None:
        super().__init__(config)
        if config.causal:
            raise ValueError("config.json: causal is true; open the folder by AutoModelForCausalLM")
        labels = self.head == "score"
        self.model = Decoder(config)
        self.add_module(self.head, nn.Linear(config.hidden_size, config.num_labels if labels else config.vocab_size, bias=labels))
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> Any:
        return self.model.embed_tokens

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, output_hidden_states: bool = False, **_: Any
    ) -> Any:
        found = self.model(input_ids, attention_mask, output_hidden_states)
        logits = self.get_submodule(self.head)(found.last_hidden_state)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return self.output(loss=loss, logits=logits, hidden_states=found.hidden_states)


class IsentropeForMaskedLM(_Encoder):
    """[B, T] tokens → logits [B, T, V] of the token that stands in each place, masked or not. labels [B, T], -100 for none."""

    head, output = "lm_head", MaskedLMOutput
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _keys_to_ignore_on_load_unexpected = [r"score\..*"]

    def get_output_embeddings(self) -> Any:
        return self.lm_head


class IsentropeForTokenClassification(_Encoder):
    """[B, T] tokens → logits [B, T, num_labels] of the label of each. labels [B, T], -100 for none."""

    head, output = "score", TokenClassifierOutput
    _keys_to_ignore_on_load_unexpected = [r"lm_head\..*"]
