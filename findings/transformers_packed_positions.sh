#!/usr/bin/env bash
# One would expect that position_ids that start again separate packed sequences, as the documentation of padding-free training has it.
# transformers 5.24.0 does so only where no cache is made, and use_cache is True by default, in training mode too: the second sequence sees the
# first. use_cache=False separates them, and so does switching gradient checkpointing on, which sets it.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0 transformers==5.24.0
expect <<'END'
transformers 5.24.0
does the second of two packed sequences change with the first?
eval, default: yes
eval, use_cache=False: no
train, default: yes
train, use_cache=False: no
END
run <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=200, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     num_key_value_heads=2, bos_token_id=None, eos_token_id=None, pad_token_id=0))
first = torch.randint(1, 200, (1, 8))
second = first.clone()
second[0, :4] = torch.randint(1, 200, (4,))
positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
print("transformers", transformers.__version__)
print("does the second of two packed sequences change with the first?")
for mode in ("eval", "train"):
    getattr(model, mode)()
    for name, how in (("default", {}), ("use_cache=False", {"use_cache": False})):
        with torch.no_grad():
            one, other = (model(tokens, position_ids=positions, **how).logits[0, 4:] for tokens in (first, second))
        print(f"{mode}, {name}:", "no" if torch.equal(one, other) else "yes")
PY
