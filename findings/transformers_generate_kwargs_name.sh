#!/usr/bin/env bash
# One would expect that how a model names its ** parameter is its own affair. generate() of transformers 5.24.0 looks at the name: where
# prepare_inputs_for_generation(self, input_ids, **rest) does not call it kwargs or model_kwargs, attention_mask is refused as an argument that
# the model does not use, though it is handed over and read.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0 transformers==5.24.0
expect <<'END'
transformers 5.24.0
**kwargs: generates
**model_kwargs: generates
**rest: The following `model_kwargs` are not used by the model: ['attention_mask']
END
run <<'PY'
import torch
import transformers
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class Config(PretrainedConfig):
    model_type = "bigram"
    vocab_size = 8


def given_to_model(input_ids, given):
    return {"input_ids": input_ids, "attention_mask": given.get("attention_mask")}


class Bigram(PreTrainedModel, GenerationMixin):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(8, 8)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return CausalLMOutput(logits=self.table(input_ids))


class Kwargs(Bigram):
    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return given_to_model(input_ids, kwargs)


class ModelKwargs(Bigram):
    def prepare_inputs_for_generation(self, input_ids, **model_kwargs):
        return given_to_model(input_ids, model_kwargs)


class Rest(Bigram):
    def prepare_inputs_for_generation(self, input_ids, **rest):
        return given_to_model(input_ids, rest)


print("transformers", transformers.__version__)
for name, kind in (("kwargs", Kwargs), ("model_kwargs", ModelKwargs), ("rest", Rest)):
    try:
        kind(Config()).generate(torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 2), max_new_tokens=1, do_sample=False, use_cache=False, pad_token_id=0)
        print(f"**{name}: generates")
    except ValueError as error:
        print(f"**{name}:", str(error).split(" (note")[0])
PY
