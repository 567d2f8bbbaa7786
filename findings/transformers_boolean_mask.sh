#!/usr/bin/env bash
# One would expect that a 4-D boolean mask of one's own (True: sees) means the same to both attentions, or is refused by one. transformers
# 5.24.0 hands it to the layers as it is: sdpa masks with it, eager adds it to the scores as 0 and 1, without a word, and so looks into the
# future.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0 transformers==5.24.0
expect <<'END'
transformers 5.24.0
do logits before the last token change with it, under a lower triangle of True?
sdpa: no
eager: yes
END
run <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=2, initializer_range=0.5, bos_token_id=None, eos_token_id=None, pad_token_id=0)
model = LlamaForCausalLM(config).eval()
tokens = torch.tensor([[5, 6, 7, 8]])
other = torch.tensor([[5, 6, 7, 9]])
mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
print("transformers", transformers.__version__)
print("do logits before the last token change with it, under a lower triangle of True?")
for attention in ("sdpa", "eager"):
    model.set_attn_implementation(attention)
    with torch.no_grad():
        a, b = (model(x, attention_mask=mask).logits[0, :3] for x in (tokens, other))
    print(f"{attention}:", "no" if torch.allclose(a, b, atol=1e-5) else "yes")
PY
