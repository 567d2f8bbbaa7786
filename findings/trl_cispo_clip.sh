#!/usr/bin/env bash
# One would expect loss_type="cispo" with TRL's defaults to train as strongly as the other losses on the policy that sampled, where every ratio is 1.
# In trl 1.16.0 epsilon_high bounds the ratio itself there, not 1 + epsilon_high, and its default is epsilon, 0.2: every weight is 0.2, and the
# gradient a fifth. epsilon_high=5.0 is what its documentation's recipe sets.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0 trl==1.16.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0
expect <<'END'
trl 1.16.0
gradient of cispo / of dapo, by default: 0.20
gradient of cispo / of dapo, with epsilon_high=5.0: 1.00
END
run <<'PY'
import datasets
import torch
import trl
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({text: number for number, text in enumerate(["<pad>", "<eos>", *"abcdefgh"])}, unk_token="<pad>"))
words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def gradient(**how):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                         num_key_value_heads=2, bos_token_id=None, eos_token_id=1, pad_token_id=0))
    args = trl.GRPOConfig("run", use_cpu=True, bf16=False, report_to="none", save_strategy="no", max_steps=1, max_completion_length=8, logging_steps=1,
                          per_device_train_batch_size=8, disable_tqdm=True, **how)
    trainer = trl.GRPOTrainer(model, reward_funcs=lambda completion_ids, **_: [float(sum(x)) for x in completion_ids], args=args,
                              train_dataset=datasets.Dataset.from_dict({"prompt": ["abc", "deg"]}), processing_class=tokenizer)
    log, trainer.log = [], lambda told, *_: log.append(told)
    trainer.train()
    return log[0]["grad_norm"]


dapo = gradient(loss_type="dapo")
print("trl", trl.__version__)
print(f"gradient of cispo / of dapo, by default: {gradient(loss_type='cispo') / dapo:.2f}")
print(f"gradient of cispo / of dapo, with epsilon_high=5.0: {gradient(loss_type='cispo', epsilon_high=5.0) / dapo:.2f}")
PY
