"""One step of supervised learning of all weights of a model of SmolLM2-135M's shape, drawn at random: 2 sequences of 512 tokens, the loss of
every next token, AdamW, gradients cut to norm 1. Ours with `model.compute` bfloat16 and float32, as the trainer takes the step; the rival is `LlamaForCausalLM` of transformers with torch's fused AdamW, under autocast to bfloat16
and in float32, with its attention by `scaled_dot_product_attention` and written out ("eager").

All start from the same weights, and the first losses are compared: in float32 to rounding, in bfloat16 to the rounding of operands. Ratios are of times within a round. The limit is the
rate of a product of bfloat16 (float32) of 1024³ in the same rounds, for 6 FLOP a weight and token.
"""

import statistics
import time

import torch

from plain_model import Program, fixed_tokens
from timing import compare

PEERS = ["transformers"]
SMOLLM2 = dict(layers=30, width=576, heads=9, kv_heads=3, mlp=1536, vocabulary=49152, context=1024, tied=1)
BATCH, LENGTH = 2, 512


class Rival:
    """transformers' model and torch's AdamW; its attention can be switched between two steps."""

    def __init__(self, weights, shape, tokens):
        from transformers import LlamaConfig, LlamaForCausalLM

        self.model = LlamaForCausalLM(LlamaConfig(
            vocab_size=shape["vocabulary"], hidden_size=shape["width"], intermediate_size=shape["mlp"],
            num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
            max_position_embeddings=shape["context"], rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
            use_cache=False))  # fmt: skip
        missing, unknown = self.model.load_state_dict(weights, strict=False)
        assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
        self.model.tie_weights()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.tokens = tokens

    def loss(self, narrow, attention):
        self.model.set_attn_implementation(attention)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            return self.model(input_ids=self.tokens, labels=self.tokens).loss

    def step(self, narrow, attention):
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(narrow, attention).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def product_rate(dtype):
    a = torch.ones(1024, 1024, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def rows(program_path, rounds=5, threads=1, layers=SMOLLM2["layers"]):
    torch.set_num_threads(threads)
    shape = {**SMOLLM2, "layers": layers}
    programs = {name: Program(program_path, threads, batch=BATCH, length=LENGTH, bfloat16=int(name == "bfloat16"), **shape)
                for name in ("bfloat16", "float32")}  # fmt: skip
    weights = programs["float32"].weights()
    rival = Rival(weights, shape, fixed_tokens(BATCH, LENGTH, shape["vocabulary"]))
    flop = 6 * sum(w.numel() for w in weights.values()) * BATCH * LENGTH
    del weights

    contenders = {name: lambda name=name: programs[name]("sft") for name in programs}
    for attention in ("sdpa", "eager"):
        contenders[f"transformers, autocast, {attention} attention"] = lambda a=attention: rival.step(True, a)
    contenders["transformers, float32, sdpa attention"] = lambda: rival.step(False, "sdpa")

    with torch.no_grad():
        exact, narrow = rival.loss(False, "sdpa").item(), rival.loss(True, "sdpa").item()
    found = {name: contenders[name]()["loss"] for name in programs}
    assert abs(found["float32"] - exact) <= 1e-5 * exact, (found, exact)
    # Operands are within 2^-9 of themselves; autocast, which rounds results too, is as far off.
    assert abs(found["bfloat16"] - exact) <= 2**-8 * exact, (found, exact, narrow)

    seconds, limits = {name: [] for name in contenders}, {name: [] for name in programs}
    for round_ in range(rounds + 1):  # the first warms up
        names = list(contenders)
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
        for name in programs:
            limits[name].append(flop / product_rate(getattr(torch, name)))
    table = []
    for ours, theirs in (("bfloat16", "autocast, sdpa"), ("bfloat16", "autocast, eager"), ("float32", "float32, sdpa")):
        timed = {name: taken[1:] for name, taken in seconds.items()}
        table.append({
            "op": "sft step", "shape": f"SmolLM2-135M, {layers} layers, {BATCH} x {LENGTH} tokens", "dtype": ours, "threads": threads,
            **compare(timed, ours, f"transformers, {theirs} attention"),
            **({"target": 1.5} if ours == "bfloat16" else {}),
            "share_of_limit": statistics.median(a / b for a, b in zip(limits[ours][1:], timed[ours])),
        })
    for program in programs.values():
        program.close()
    return table
