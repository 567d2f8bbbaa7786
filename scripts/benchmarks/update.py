"""Forward and backward pass of the quickstart model against the same model in eager PyTorch: 64 sequences of 50 tokens,
float32, mean cross-entropy by torch on both sides, so that the decoder alone is compared.

Both run once a round; the ratio is the median over rounds of (PyTorch's time / our time). Values first: equal logits.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from plain_model import PlainDecoder, Program, fixed_tokens

BATCH, LENGTH = 64, 50


def rows(program_path, rounds=15, threads=1):
    torch.set_num_threads(threads)
    program = Program(program_path, threads, batch=BATCH, length=LENGTH)
    weights = program.weights()
    plain, tokens = PlainDecoder(weights), fixed_tokens(BATCH, LENGTH)
    with torch.no_grad():
        torch.testing.assert_close(program.logits((BATCH, LENGTH, 25)), plain(tokens), rtol=1e-4, atol=1e-5)

    def forward():
        with torch.no_grad():
            plain(tokens)

    def update():
        plain.zero_grad(set_to_none=True)
        logits = plain(tokens)[:, :-1]
        F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)).backward()

    # Three passes over the weights, 2 FLOP each, a token: the products alone.
    flop = 2 * sum(w.numel() for name, w in weights.items() if "embed" not in name) * BATCH * LENGTH
    table = []
    for name, rival, passes in (("forward", forward, 1), ("update", update, 3)):
        ours, theirs, limit = [], [], []
        for _ in range(3):
            program(name)
            rival()
        for _ in range(rounds):
            ours.append(program(name)["seconds"])
            start = time.perf_counter()
            rival()
            theirs.append(time.perf_counter() - start)
            limit.append(passes * flop / (max(program("gemm")["gflops"] for _ in range(3)) * 1e9))
        ratios = [b / a for a, b in zip(ours, theirs)]
        table.append({
            "op": f"decoder {name}", "shape": f"{BATCH} x {LENGTH} tokens", "dtype": "float32", "threads": threads,
            "ours_s": statistics.median(ours), "peer": "the model in eager PyTorch", "peer_s": statistics.median(theirs),
            "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)],
            **({"target": 1.3} if name == "update" else {}),
            "ours_tokens_per_s": BATCH * LENGTH / statistics.median(ours),
            "peer_tokens_per_s": BATCH * LENGTH / statistics.median(theirs),
            "share_of_limit": statistics.median(l / s for l, s in zip(limit, ours)),
        })
    program.close()
    return table
