"""One GRPO cycle against TRL's GRPOTrainer and against the same cycle by hand in PyTorch: the quickstart model, 32 prompts
of 16 tokens, 8 completions of 34 tokens each, a reward in Python, 4 updates of 64 completions each, float32.

Ours is `isentrope.Trainer`, with the metrics that it computes and writes at every step; stop tokens are held back on all
sides, so that all completions have 34 tokens. TRL's training loop sets the rounds: ours and the one by hand run between
two of its cycles."""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import isentrope

from plain_model import QUICKSTART, PlainDecoder, StaticCacheLoop
from timing import compare

PEERS = ["trl"]
TARGETS = {"TRL GRPOTrainer": 2.5, "the cycle by hand in PyTorch": 1.6}
CHARACTERS = "0123456789abcdefgh+-=:A."
PROMPTS, SAMPLES, PROMPT, NEW, UPDATES = 32, 8, 16, 34, 4
WARM_UP = 2

CONFIG = """
run: {{dir: {folder}/run, seed: 1, threads: {threads}, checkpoint_every: 0}}
model: {{num_hidden_layers: 3, hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 4, intermediate_size: 192, max_position_embeddings: 64}}
tokenizer: {{characters: "{characters}"}}
phases:
  - name: sft
    objective: {{kind: sft}}
    data: {{jsonl: {{path: {folder}/prompts.jsonl}}}}
    steps: 1
  - name: grpo
    objective: {{kind: grpo, loss: clip}}
    data: {{jsonl: {{path: {folder}/prompts.jsonl}}}}
    rollout: {{prompts: 32, num_generations: 8, max_new_tokens: 34, min_new_tokens: 34, mini_batches: 4}}
    reward: [{{kind: letters}}]
    optimizer: {{kind: adamw, lr: 4.0e-4, betas: [0.9, 0.99], weight_decay: 0.0, max_grad_norm: 1.0}}
    schedule: {{kind: constant, warmup_steps: 0}}
    steps: 100000
test: {{prompts: 1, sampled_prompts: 1, num_generations: 1}}
"""


def letters(completions):
    return [float(text.count("A")) for text in completions]


def random_prompts(count):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(1, len(CHARACTERS), (count, PROMPT), generator=generator)  # without ".", the last
    return ["".join(CHARACTERS[i - 1] for i in row) for row in rows.tolist()]


def our_cycle(folder, threads):
    """A function that runs one cycle and checks that it was one."""
    with open(folder / "prompts.jsonl", "w") as file:
        for prompt in random_prompts(1024):
            file.write(json.dumps({"prompt": prompt, "completion": "A."}) + "\n")
    (folder / "cycle.yaml").write_text(CONFIG.format(folder=folder, threads=threads, characters=CHARACTERS))
    trainer = isentrope.Trainer(folder / "cycle.yaml", rewards={"letters": lambda prompts, texts, meta: letters(texts)})
    steps = iter(trainer)

    def cycle():
        metrics = next(step for step in steps if step["phase"] == "grpo")
        assert metrics["length/mean"] == NEW and metrics["generated"] == PROMPTS * SAMPLES * NEW
        return metrics["reward/mean"]

    return cycle


class CycleByHand:
    """Sampling with a static cache that keeps log-probabilities, then clipped policy updates."""

    def __init__(self):
        torch.manual_seed(0)
        V, C, M = QUICKSTART["vocabulary"], QUICKSTART["width"], QUICKSTART["mlp"]
        weights = {"model.embed_tokens.weight": 0.02 * torch.randn(V, C), "lm_head.weight": 0.02 * torch.randn(V, C),
                   "model.norm.weight": torch.ones(C)}
        for i in range(QUICKSTART["layers"]):
            at = f"model.layers.{i}."
            for name, shape in (("self_attn.q_proj", (C, C)), ("self_attn.k_proj", (C, C)), ("self_attn.v_proj", (C, C)),
                                ("self_attn.o_proj", (C, C)), ("mlp.gate_proj", (M, C)), ("mlp.up_proj", (M, C)),
                                ("mlp.down_proj", (C, M))):
                weights[f"{at}{name}.weight"] = torch.randn(shape) * shape[1] ** -0.5
            weights[at + "input_layernorm.weight"] = weights[at + "post_attention_layernorm.weight"] = torch.ones(C)
        self.model = PlainDecoder(weights)
        self.loop = StaticCacheLoop(self.model, PROMPTS * SAMPLES, PROMPT + NEW)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=4e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        ids = {c: i + 1 for i, c in enumerate(CHARACTERS)}
        self.prompts = torch.tensor([[ids[c] for c in prompt] for prompt in random_prompts(1024)])
        self.taken = 0

    def __call__(self):
        rows = torch.arange(self.taken, self.taken + PROMPTS) % len(self.prompts)
        self.taken += PROMPTS
        prompts = self.prompts[rows].repeat_interleave(SAMPLES, 0)
        completions, old = self.loop.with_logprobs(prompts, NEW, forbidden=len(CHARACTERS))
        texts = ["".join(CHARACTERS[i - 1] if i else "" for i in row) for row in completions.tolist()]
        reward = torch.tensor(letters(texts))
        group = reward.view(PROMPTS, SAMPLES)
        advantage = ((group - group.mean(1, True)) / (group.std(1, keepdim=True) + 1e-6)).view(-1, 1)
        tokens = torch.cat([prompts, completions], 1)
        for part in torch.arange(len(tokens)).chunk(UPDATES):
            self.optimizer.zero_grad(set_to_none=True)
            logits = self.model(tokens[part])[:, PROMPT - 1 : -1]
            logprob = -F.cross_entropy(logits.reshape(-1, logits.shape[-1]), completions[part].reshape(-1), reduction="none")
            ratio = (logprob.view(len(part), NEW) - old[part]).exp()
            A = advantage[part]
            loss = -torch.minimum(A * ratio, A * ratio.clamp(0.8, 1.2)).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        assert completions.shape == (PROMPTS * SAMPLES, NEW)
        return reward.mean().item()


def trl_trainer(folder, rounds, between):
    """TRL's trainer on the same task; between() is called before each of its cycles and once after the last."""
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({"<pad>": 0} | {c: i + 1 for i, c in enumerate(CHARACTERS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token=".", padding_side="left")
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, intermediate_size=192,
        vocab_size=25, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, pad_token_id=0,
        bos_token_id=None, eos_token_id=24))

    class Rounds(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step % UPDATES == 0:
                between()

        def on_train_end(self, args, state, control, **kwargs):
            between()

    # Activation checkpointing is on by default and pays off on large models alone: off, the faster setting here.
    config = GRPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        num_generations=SAMPLES, per_device_train_batch_size=PROMPTS * SAMPLES // UPDATES, gradient_accumulation_steps=1,
        steps_per_generation=UPDATES, max_completion_length=NEW, generation_kwargs={"min_new_tokens": NEW},
        gradient_checkpointing=False, learning_rate=4e-4, logging_steps=UPDATES, max_steps=UPDATES * (rounds + WARM_UP),
        disable_tqdm=True)
    return GRPOTrainer(model=model, reward_funcs=lambda completions, **_: letters(completions), args=config,
                       train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in random_prompts(1024)]),
                       processing_class=tokenizer, callbacks=[Rounds()])


def rows(rounds=9, threads=1):
    torch.set_num_threads(threads)
    seconds = {"ours": [], "TRL GRPOTrainer": [], "the cycle by hand in PyTorch": []}
    rewards = {"ours": [], "the cycle by hand in PyTorch": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = {"ours": our_cycle(folder, threads), "the cycle by hand in PyTorch": CycleByHand()}
        trl_begun = []

        def between():
            if trl_begun:
                seconds["TRL GRPOTrainer"].append(time.perf_counter() - trl_begun.pop())
            for contender, cycle in contenders.items():
                start = time.perf_counter()
                rewards[contender].append(cycle())
                seconds[contender].append(time.perf_counter() - start)
            trl_begun.append(time.perf_counter())

        trainer = trl_trainer(folder, rounds, between)
        trainer.train()
        rewards["TRL GRPOTrainer"] = [log["reward"] for log in trainer.state.log_history if "reward" in log]
        lengths = {log["completions/mean_length"] for log in trainer.state.log_history if "reward" in log}
    assert lengths == {NEW}, lengths
    for contender, curve in rewards.items():  # values: each of them learns the task
        ends = max(1, min(3, len(curve) // 2))  # few rounds leave few points
        assert statistics.mean(curve[-ends:]) > statistics.mean(curve[:ends]), f"{contender} did not learn: {curve}"
    seconds = {contender: times[WARM_UP : WARM_UP + rounds] for contender, times in seconds.items()}
    return [{"op": "GRPO cycle", "shape": f"{PROMPTS} x {SAMPLES}, {PROMPT} + {NEW} tokens, {UPDATES} updates",
             "dtype": "float32", "threads": threads, **compare(seconds, "ours", peer), "target": target}
            for peer, target in TARGETS.items()]
