"""Tiny runs of GRPOTrainer, TRL's and ours, for test_integrations_trl.py; as a program, one of them on each rank of torchrun.

    torchrun --nproc-per-node 2 trl_runs.py FOLDER trl|isentrope OPTIONS.json
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from isentrope.integrations import trl as integration

LETTERS = "abcdefghijklmnop+= 0123456789"
PROMPTS = ["abc", "1+2=", "cab", "hello", "deed", "4=2", "b", "face"]


def tokenizer():
    vocabulary = {text: number for number, text in enumerate(["<pad>", "<eos>", *LETTERS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def model(kind="Llama", **options):
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=len(LETTERS) + 2, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **options})
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def reward(completion_ids, **_):
    """Between 0 and 1, from the sum of the tokens: other completions, other rewards."""
    return [(37 * sum(tokens) % 101) / 101 for tokens in completion_ids]


def trainer(house, folder, policy=None, callbacks=None, peft_config=None, methods=None, **options):
    """house: trl or isentrope"""
    trainer_type, config_type = {
        "trl": (trl.GRPOTrainer, trl.GRPOConfig),
        "isentrope": (integration.GRPOTrainer, integration.GRPOConfig),
        "isentrope with trl's config": (integration.GRPOTrainer, trl.GRPOConfig),
    }[house]
    given = dict(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", num_generations=4, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, max_completion_length=8, logging_steps=1, max_steps=3, learning_rate=1e-3, disable_tqdm=True,
        gradient_checkpointing=False, seed=11, temperature=0.8,
    )  # fmt: skip
    args = config_type(**{**given, **options})
    data = datasets.Dataset.from_dict({"prompt": PROMPTS})
    return trainer_type(policy if policy is not None else model(), reward_funcs=reward, args=args, train_dataset=data, eval_dataset=data,
                        processing_class=tokenizer(), callbacks=callbacks, peft_config=peft_config,
                        **({} if methods is None else {"methods": methods}))  # fmt: skip


def main():
    folder, house, options = Path(sys.argv[1]), sys.argv[2], json.loads(Path(sys.argv[3]).read_text())
    made = trainer(house, folder / "run", ddp_backend="gloo", **options)
    made.train()
    assert made.accelerator.num_processes == int(os.environ["WORLD_SIZE"])
    if made.accelerator.is_main_process:
        weights = made.accelerator.unwrap_model(made.model).state_dict()
        torch.save({"log": made.state.log_history, "weights": weights}, folder / f"{house}.pt")


if __name__ == "__main__":
    main()
