"""One trainer of SmolLM2-135M in a process of its own, for grpo_step.py, sft_memory.py and gpt2_step.py: a step for each line "step" on standard input, and a
JSON object about it on standard output; "end" prints the process's peak memory."""

import json
import os
import random
import sys
import time
from pathlib import Path

import torch

PROMPTS, SAMPLES, NEW = 8, 8, 64  # of a GRPO step
SEQUENCES, LENGTH = 8, 256  # of an SFT step; and SEQUENCES of one pass of the GRPO step
RATE, STEPS = 1e-6, 1000
GPT2_SEQUENCES = 4  # of a step of gpt2_step.py, of 64 tokens, each a word of its own: all windows of a text of them are the same
WINDOW = "".join(f" {word}" for word in """the of and to in is that for it as was with be by on not he his but at are this have from or had an
they which one you were all her she there would their we him been has when who will no more if out so up said what its about than into them can only
other time new some""".split())

OURS = """
run: {{dir: {folder}/run, seed: 1, threads: {threads}, checkpoint_every: 0}}
model: {{pretrained: {model}, max_position_embeddings: {context}, compute: {compute}}}
phases:
  - name: {task}
    objective: {objective}
    data: {data}
    optimizer: {{kind: adamw, lr: {rate}, betas: [0.9, 0.999], weight_decay: 0.0, max_grad_norm: 1.0}}
    schedule: {{kind: constant, warmup_steps: 0}}
    steps: {steps}
    {more}
test: {{prompts: 1, sampled_prompts: 1, num_generations: 1}}
"""
GRPO = """rollout: {{prompts: {prompts}, num_generations: {samples}, max_new_tokens: {new}, min_new_tokens: {new}, dtype: {dtype}}}
    batch: {{micro_tokens: {micro}}}
    reward: [{{kind: letters}}]"""


def letters(completions):
    return [text.count("e") / 10 for text in completions]


def prompts():
    """Sums of single digits, of equal length in tokens."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    random.Random(3).shuffle(pairs)
    return [f"State the final answer to the following arithmetic problem: {a} + {b} =" for a, b in pairs]


def examples(encode):
    """Prompt and completion, together LENGTH − 1 tokens, to which the end of sequence comes."""
    found = []
    for prompt in prompts():
        words, size = [], LENGTH - 1 - len(encode(prompt))
        while len(encode(" ".join(["", *words]))) < size:
            words.append("sum")
        found.append({"prompt": prompt, "completion": " ".join(["", *words])})
        assert len(encode(prompt + found[-1]["completion"])) == LENGTH - 1
    return found


def peak_bytes():
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))


def wait():
    """Until a step is asked for; does not return from the end."""
    line = sys.stdin.readline().strip()
    if line != "step":
        print(json.dumps({"peak_bytes": peak_bytes()}), flush=True)
        os._exit(0)  # without a last checkpoint
    return time.perf_counter()


def our_config(task, threads, path, dtype, model, compute="float32"):
    """The text of a configuration whose data it writes beside it."""
    about = {"folder": path, "threads": threads, "model": model, "task": task, "rate": RATE, "steps": STEPS, "context": 512, "compute": compute,
             "data": f"{{jsonl: {{path: {path}/data.jsonl}}}}"}  # fmt: skip
    if task == "pretrain":
        (path / "data.txt").write_text(WINDOW * 256)
        about |= {"context": len(WINDOW.split()), "data": f"{{corpus: {{paths: [{path}/data.txt], cache: {path}/tokens}}}}"}
        return OURS.format(**about, objective="{kind: pretrain}", more=f"batch: {{sequences: {GPT2_SEQUENCES}}}")
    if task == "grpo":
        data = [{"prompt": prompt, "completion": "."} for prompt in prompts()]
        more = GRPO.format(dtype=dtype, micro=1024, prompts=PROMPTS, samples=SAMPLES, new=NEW)
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        data, more = examples(lambda text: tokenizer.encode(text, add_special_tokens=False).ids), f"batch: {{sequences: {SEQUENCES}}}"
    (path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in data))
    return OURS.format(**about, objective="{kind: grpo, loss: clip}" if task == "grpo" else "{kind: sft}", more=more)


def ours(task, threads, path, dtype, model, compute):
    import isentrope

    (path / "config.yaml").write_text(our_config(task, threads, path, dtype, model, compute))
    trainer = isentrope.Trainer(path / "config.yaml", rewards={"letters": lambda prompts, texts, meta: letters(texts)} if task == "grpo" else {})
    start = wait()
    for metrics in trainer:
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds} | {k: v for k, v in metrics.items() if isinstance(v, float | int)}), flush=True)
        start = wait()


def rival(task, threads, path, autocast, where):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(where)
    common = dict(output_dir=str(path), use_cpu=True, bf16=autocast, report_to="none", save_strategy="no", learning_rate=RATE, weight_decay=0.0,
                  lr_scheduler_type="constant", logging_steps=1, max_steps=STEPS, disable_tqdm=True, gradient_checkpointing=False,
                  per_device_train_batch_size=SEQUENCES)  # fmt: skip

    class InTurn(TrainerCallback):
        start = 0.0

        def on_step_begin(self, args, state, control, **_):
            self.start = wait()

        def on_log(self, args, state, control, logs, **_):
            print(json.dumps({"seconds": self.seconds} | logs), flush=True)

        def on_step_end(self, args, state, control, **_):
            self.seconds = time.perf_counter() - self.start

    if task == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        config = GRPOConfig(**common, num_generations=SAMPLES, gradient_accumulation_steps=PROMPTS * SAMPLES // SEQUENCES,
                            max_completion_length=NEW, generation_kwargs={"min_new_tokens": NEW})  # fmt: skip
        trainer = GRPOTrainer(model=model, reward_funcs=lambda completions, **_: letters(completions), args=config, processing_class=tokenizer,
                              train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts()]), callbacks=[InTurn()])  # fmt: skip
    else:
        rows = []
        for example in examples(encode := lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]):
            ids, told = [*encode(example["prompt"] + example["completion"]), tokenizer.eos_token_id], len(encode(example["prompt"]))
            rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * told + ids[told:]})
        trainer = Trainer(model=model, args=TrainingArguments(**common), train_dataset=Dataset.from_list(rows), callbacks=[InTurn()])
    trainer.train()


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    where, model = Path(options["folder"]), Path(options["model"])
    if options["side"] == "ours":
        ours(options["task"], options["threads"], where, options.get("dtype", "model"), model, options.get("compute", "float32"))
    else:
        rival(options["task"], options["threads"], where, options.get("autocast", False), model)
