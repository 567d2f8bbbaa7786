"""Mixers: a training step of a linear model beside the same in PyTorch, and rollouts of recurrences beside softmax attention's.

Step: 6 layers of width 256, linear attention (elu + 1, normalizer), one sequence of 2048 bytes, forward and backward of the mean
cross-entropy, as the program takes it; the rival is the model in torch with linear attention in chunks of 64, eager and compiled.
Values first: the logits are the same.

Routed: 2 layers of width 256 with 4 heads, 2 of them routed, and an MLP of 8 (a layer's mixer is what is timed), one sequence of 8192 bytes, 90 clusters,
windows of 91 tokens, a training step as above, beside the same of softmax attention: by argmax and by balanced clusters. Values first: the
logits of 512 tokens in 8 clusters are those of dense attention under masks in torch.

NAtS-L: the model of the routed rows with layers of kind natsl, chunks of 64, whose routers are biased such that a quarter of each head's tokens are
softmax attention's, a training step beside the same of softmax attention. The values are held to the
layer's definition by tests/csrc/natsl_test.cpp; what is looked at here is the share.

Encoder: 2 layers of width 64 whose tokens see all others, one sequence of 4096 bytes, forward and backward; layers of kind hierarchical in
families of 8 beside softmax layers of the same size, which is the program's own dense attention. Values first: with one family of all
tokens they are the same. The MLP, the projections and the head, which both have, are in both times.

Rollouts: the same model size, 24 sequences at a time of a prompt of 16 and 1024 new tokens, each kind beside `softmax`; the tokens are
as many, and times are for a thousand of them. A decoding state has one size; the cache of softmax grows to 1040 positions.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from plain_model import PlainDecoder, Program, fixed_tokens
from timing import interleaved

TARGETS = {"chunked torch, compiled": 2.5, "chunked torch": 2.5, "softmax": 3.0, "dense": 4.0, "dense, natsl": 2.0, "dense, bidirectional": 10.0}
KINDS = {"softmax": 0, "linear": 1, "normalized": 2, "gated_delta": 3, "ssd": 4}
ROUTED, HIERARCHICAL, NATSL = 5, 7, 8
STEP = {"layers": 6, "width": 256, "heads": 4, "kv_heads": 4, "mlp": 768, "vocabulary": 256, "context": 2048, "batch": 1, "length": 2048}
ROLLOUT = {**STEP, "context": 1056, "batch": 1, "length": 16, "prompts": 24, "samples": 1, "prompt": 16, "new_tokens": 1024, "min_tokens": 1024}


LONG = {"layers": 2, "width": 256, "heads": 4, "kv_heads": 4, "mlp": 8, "vocabulary": 256, "context": 8192, "batch": 1, "length": 8192, "clusters": 90, "window": 91}


class MaskedRouted(PlainDecoder):
    """PlainDecoder with the attention of routed heads, by argmax, as dense attention under masks."""

    def forward(self, tokens, centroids):
        B, T = tokens.shape
        H, D, w = self.shape["heads"], self.size, self.shape["window"]
        near = H - H // 2
        there = torch.ones(T, T).tril().bool()
        x = F.embedding(tokens, self.embedding)
        for block, centres in zip(self.layers, centroids):
            q, k, v = F.linear(self.norm(x, block.input_norm), block.qkv).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
            cluster = (q[:, near:] @ centres.mT).argmax(-1)
            alike = (cluster[..., :, None] == cluster[..., None, :]) & there
            alike &= alike.flip(-1).cumsum(-1).flip(-1) <= w
            sight = torch.cat([(there & ~there.tril(-w)).expand(B, near, T, T), alike], 1)
            q, k = (torch.cat([self.rotate(y[:, :near], self.cosine[:T], self.sine[:T]), y[:, near:]], 1) for y in (q, k))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=sight)
            x = self.mlp(x + F.linear(y.transpose(1, 2).reshape(B, T, H * D), block.o), block)
        return F.linear(self.norm(x, self.final_norm), self.head)


class ChunkedLinear(PlainDecoder):
    """PlainDecoder with linear attention: the past as a state of its chunk, the own chunk by its weights."""

    def forward(self, tokens):
        B, T = tokens.shape
        H, D, C = self.shape["heads"], self.size, 64
        seen = torch.ones(C, C).tril()
        x = F.embedding(tokens, self.embedding)
        for block in self.layers:
            qkv = F.linear(self.norm(x, block.input_norm), block.qkv).view(B, T // C, C, 3, H, D).permute(3, 0, 4, 1, 2, 5)
            q, k = F.elu(qkv[0]) + 1, F.elu(qkv[1]) + 1  # [B, H, T / C, C, D]
            v = torch.cat([qkv[2], torch.ones_like(qkv[2][..., :1])], -1)
            states = (k.mT @ v).cumsum(2).roll(1, 2)  # of the chunks before
            states = torch.cat([torch.zeros_like(states[:, :, :1]), states[:, :, 1:]], 2)
            y = q @ states + (q @ k.mT * seen) @ v
            y = (y[..., :-1] / y[..., -1:]).permute(0, 2, 3, 1, 4).reshape(B, T, H * D)
            x = self.mlp(x + F.linear(y, block.o), block)
        return F.linear(self.norm(x, self.final_norm), self.head)


def step_rows(program_path, rounds, threads):
    program = Program(program_path, threads, **STEP, mixer=KINDS["linear"])
    plain, tokens = ChunkedLinear(program.weights(), STEP), fixed_tokens(1, STEP["length"], STEP["vocabulary"])
    with torch.no_grad():
        torch.testing.assert_close(program.logits((1, STEP["length"], STEP["vocabulary"])), plain(tokens), rtol=1e-3, atol=1e-4)
    compiled = torch.compile(plain)

    def update(model):
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(tokens)[0], tokens[0]).backward()

    contenders = {"ours": lambda: program("update"), "chunked torch": lambda: update(plain), "chunked torch, compiled": lambda: update(compiled)}
    seconds = interleaved(contenders, rounds)
    program.close()
    for name in list(contenders)[1:]:
        ratios = [b / a for a, b in zip(seconds["ours"], seconds[name])]
        yield {"op": "mixers", "shape": "linear 6 x 256, T 2048, training step", "dtype": "float32", "threads": threads,
               "ours_s": statistics.median(seconds["ours"]), "peer": name, "peer_s": statistics.median(seconds[name]),
               "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)], "target": TARGETS[name]}  # fmt: skip


def routed_rows(program_path, rounds, threads):
    small = {**LONG, "context": 512, "length": 512, "clusters": 8, "window": 20}
    program = Program(program_path, threads, **small, mixer=ROUTED)
    weights = program.weights()
    with torch.no_grad():
        plain = MaskedRouted(weights, small)(fixed_tokens(1, 512, 256), [weights[f"model.layers.{i}.self_attn.centroids"] for i in range(2)])
        torch.testing.assert_close(program.logits(plain.shape), plain, rtol=1e-3, atol=1e-4)
    program.close()
    programs = {"argmax": Program(program_path, threads, **LONG, mixer=ROUTED), "balanced": Program(program_path, threads, **LONG, mixer=ROUTED, balanced=1),
                "dense": Program(program_path, threads, **LONG)}  # fmt: skip
    seconds = interleaved({name: lambda one=one: one("update") for name, one in programs.items()}, rounds)
    for program in programs.values():
        program.close()
    for name in ("argmax", "balanced"):
        ratios = [b / a for a, b in zip(seconds[name], seconds["dense"])]
        yield {"op": "mixers", "shape": f"routed ({name}) 2 x 256, T 8192, 90 clusters, training step", "dtype": "float32", "threads": threads,
               "ours_s": statistics.median(seconds[name]), "peer": "dense", "peer_s": statistics.median(seconds["dense"]),
               "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)], "target": TARGETS["dense"]}  # fmt: skip


def natsl_rows(program_path, rounds, threads):
    shape = {key: value for key, value in LONG.items() if key not in ("clusters", "window")}
    ours, dense = Program(program_path, threads, **shape, mixer=NATSL, softmax=25), Program(program_path, threads, **shape)
    share = ours("share")
    assert 0.2 <= share["least"] <= share["most"] <= 0.3, share
    seconds = interleaved({"ours": lambda: ours("update"), "dense": lambda: dense("update")}, rounds)
    ours.close(), dense.close()
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["dense"])]
    yield {"op": "mixers", "shape": "natsl 2 x 256, T 8192, chunks of 64, 25 % softmax tokens, training step", "dtype": "float32", "threads": threads,
           "ours_s": statistics.median(seconds["ours"]), "peer": "dense", "peer_s": statistics.median(seconds["dense"]),
           "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)], "target": TARGETS["dense, natsl"]}  # fmt: skip


def encoder_rows(program_path, rounds, threads):
    shape = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 4, "mlp": 192, "vocabulary": 256, "batch": 1, "causal": 0}
    tree, dense = (Program(program_path, threads, **shape, context=8, length=8, mixer=mixer) for mixer in (HIERARCHICAL, 0))
    torch.testing.assert_close(tree.logits((1, 8, 256)), dense.logits((1, 8, 256)), rtol=1e-3, atol=1e-4)
    programs = {"ours": tree, "dense": dense}
    for name, mixer in {"ours": HIERARCHICAL, "dense": 0}.items():
        programs[name].close()
        programs[name] = Program(program_path, threads, **shape, context=4096, length=4096, mixer=mixer)
    seconds = interleaved({name: lambda program=program: program("update") for name, program in programs.items()}, max(rounds, 7))
    for program in programs.values():
        program.close()
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["dense"])]
    peer = "dense, bidirectional"
    yield {"op": "mixers", "shape": "hierarchical encoder 2 x 64, T 4096, branching 8, training step", "dtype": "float32", "threads": threads,
           "ours_s": statistics.median(seconds["ours"]), "peer": peer, "peer_s": statistics.median(seconds["dense"]),
           "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)], "target": TARGETS[peer]}  # fmt: skip


def rollout_rows(program_path, rounds, threads):
    programs = {kind: Program(program_path, threads, **ROLLOUT, mixer=number) for kind, number in KINDS.items()}
    times = {kind: [] for kind in programs}
    for _ in range(rounds):
        for kind, program in programs.items():
            start = time.perf_counter()
            answer = program("rollout")
            assert answer["tokens"] == 24 * 1024, answer
            times[kind].append((time.perf_counter() - start) / answer["tokens"])
    for program in programs.values():
        program.close()
    for kind in list(KINDS)[1:]:
        ratios = [theirs / mine for theirs, mine in zip(times["softmax"], times[kind])]
        ours, theirs = statistics.median(times[kind]), statistics.median(times["softmax"])
        yield {"op": "mixers", "shape": f"{kind} 6 x 256, 16 + 1024 tokens, rollouts", "dtype": "float32", "threads": threads,
               "ours_s": ours * 1000, "peer": "softmax", "peer_s": theirs * 1000, "ratio": statistics.median(ratios),
               "ratio_range": [min(ratios), max(ratios)], "target": TARGETS["softmax"],
               "ours_tokens_per_s": 1 / ours, "peer_tokens_per_s": 1 / theirs}  # fmt: skip


def rows(program_path, rounds=5, threads=1):
    """One dictionary a row of the table: shape, seconds (medians), ratio with its range."""
    torch.set_num_threads(threads)
    step, routed, encoder = step_rows(program_path, rounds, threads), routed_rows(program_path, rounds, threads), encoder_rows(program_path, rounds, threads)
    return [*step, *routed, *natsl_rows(program_path, rounds, threads), *encoder, *rollout_rows(program_path, rounds, threads)]
