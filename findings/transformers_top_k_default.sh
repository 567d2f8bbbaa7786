#!/usr/bin/env bash
# One would expect do_sample=True of a model whose generation_config.top_k is None to draw from all tokens.
# transformers 5.24.0 keeps the 50 likeliest: log-probabilities of such samples are not those of the model, and importance ratios of policy learning
# are off. top_k=0 draws from all.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0 transformers==5.24.0
expect <<'END'
transformers 5.24.0
generation_config.top_k None
tokens that can be drawn, of 200: 50
with top_k=0: 200
END
run <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=200, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     num_key_value_heads=2, bos_token_id=None, eos_token_id=None, pad_token_id=0)).eval()


def drawn_from(**how):
    told = model.generate(torch.tensor([[5, 6]]), do_sample=True, max_new_tokens=1, output_scores=True, return_dict_in_generate=True, **how)
    return int(told.scores[0].isfinite().sum())


print("transformers", transformers.__version__)
print("generation_config.top_k", model.generation_config.top_k)
print("tokens that can be drawn, of 200:", drawn_from())
print("with top_k=0:", drawn_from(top_k=0))
PY
