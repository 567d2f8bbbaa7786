"""Rollouts against PyTorch loops: the quickstart model, 256 sequences (32 prompts × 8), 16 + 34 tokens, float32.

Every contender runs once a round, so that drift of the machine's speed meets them all; ratios are medians over rounds
of (rival's time / our time). The limit is 2 FLOP a weight and token (embedding left out) at the rate of a float product of
1024³ in the same rounds. Values first: the program's logits equal those of the plain model, the loops draw the same greedy
tokens, and the program draws as many tokens as asked.

Mixed lengths: 192 prompts, answers of 8 to 256 tokens that end with probability 1/64 a token, continuous batching beside fixed
batches of as many rows, of the same engine and the same draws, in turn: one where the rows of answers that have ended are left
out, and one where they are computed until the batch's longest has ended. Their times are for a thousand tokens.
"""

import statistics
import time

import torch

from plain_model import QUICKSTART, PlainDecoder, Program, StaticCacheLoop, fixed_tokens

PEERS = ["transformers"]
TARGETS = {"PyTorch loop, static cache": 1.8, "the loop compiled": 1.2, "transformers generate": 2.0}
PROMPTS, SAMPLES, PROMPT, NEW = 32, 8, 16, 34
MIXED = {"width": 128, "heads": 4, "kv_heads": 4, "mlp": 384, "vocabulary": 64, "context": 280, "prompts": 192, "samples": 1,
         "prompt": 16, "new_tokens": 256, "min_tokens": 8, "stops": 1, "rows": 24}


def prompt_rows():
    """[PROMPTS · SAMPLES, PROMPT]: the prompts that model_bench makes, each SAMPLES times."""
    i, t = torch.arange(PROMPTS).unsqueeze(1), torch.arange(PROMPT)
    return ((i * 31 + t * 17) % QUICKSTART["vocabulary"]).repeat_interleave(SAMPLES, 0)


def hugging_face(weights):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
                         intermediate_size=192, vocab_size=25, max_position_embeddings=64, rms_norm_eps=1e-5,
                         tie_word_embeddings=False, pad_token_id=0, bos_token_id=None, eos_token_id=24)
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(weights)

    def generate(prompts):
        # min_new_tokens, or rows would stop early; top_k 50, the default, cuts nothing of 25 tokens.
        with torch.no_grad():
            return model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True, min_new_tokens=NEW,
                                  max_new_tokens=NEW, pad_token_id=0)[:, PROMPT:]

    return generate


def mixed_rows(program_path, rounds=7, threads=1):
    program = Program(program_path, threads, **MIXED)
    for command in ("rollout", "batches"):
        program(command)
    times = {command: [] for command in ("rollout", "batches", "padded")}
    for _ in range(rounds):
        answers = {command: program(command) for command in times}
        assert len({answer["tokens"] for answer in answers.values()}) == 1
        for command, answer in answers.items():
            times[command].append(answer["seconds"] / answer["tokens"])
    program.close()
    table = []
    for command, name in (("batches", "fixed batch"), ("padded", "fixed batch, all rows to its end")):
        ratios = [theirs / mine for theirs, mine in zip(times[command], times["rollout"])]
        ours, theirs = statistics.median(times["rollout"]), statistics.median(times[command])
        table.append({
            "op": "rollout", "shape": f"{MIXED['prompts']} prompts, 8 to 256 new tokens", "dtype": "float32", "threads": threads,
            "ours_s": ours * 1000, "peer": name, "peer_s": theirs * 1000, "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)], "target": 1.6, "ours_tokens_per_s": 1 / ours, "peer_tokens_per_s": 1 / theirs,
        })
    return table


def rows(program_path, rounds=7, threads=1):
    """One dictionary a rival: shape, seconds (medians), ratio with its range, tokens a second, share of the limit."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    program = Program(program_path, threads, prompts=PROMPTS, samples=SAMPLES, prompt=PROMPT, new_tokens=NEW)
    weights = program.weights()
    plain = PlainDecoder(weights)
    with torch.no_grad():
        torch.testing.assert_close(program.logits((64, 50, 25)), plain(fixed_tokens(64, 50)), rtol=1e-4, atol=1e-5)
    prompts, total = prompt_rows(), PROMPTS * SAMPLES * NEW
    eager = StaticCacheLoop(plain, len(prompts), PROMPT + NEW)
    compiled = StaticCacheLoop(plain, len(prompts), PROMPT + NEW, compiled=True)
    assert torch.equal(eager(prompts, NEW, greedy=True), compiled(prompts, NEW, greedy=True))
    rivals = {"PyTorch loop, static cache": lambda: eager(prompts, NEW), "the loop compiled": lambda: compiled(prompts, NEW)}
    generate = hugging_face(weights)
    rivals["transformers generate"] = lambda: generate(prompts)
    for rival in rivals.values():
        assert rival().shape == (PROMPTS * SAMPLES, NEW)
    ours, limit, times = [], [], {name: [] for name in rivals}
    flop = 2 * sum(w.numel() for name, w in weights.items() if "embed" not in name)
    for _ in range(2):
        program("rollout")
    for _ in range(rounds):
        answer = program("rollout")
        assert answer["tokens"] == total
        ours.append(answer["seconds"])
        limit.append(max(program("gemm")["gflops"] for _ in range(3)) * 1e9 / flop)
        for name, rival in rivals.items():
            start = time.perf_counter()
            rival()
            times[name].append(time.perf_counter() - start)
    program.close()
    table = []
    for name, seconds in times.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds, ours)]
        table.append({
            "op": "rollout", "shape": f"{PROMPTS} x {SAMPLES}, {PROMPT} + {NEW} tokens", "dtype": "float32", "threads": threads,
            "ours_s": statistics.median(ours), "peer": name, "peer_s": statistics.median(seconds),
            "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)],
            "target": TARGETS[name],
            "ours_tokens_per_s": total / statistics.median(ours), "peer_tokens_per_s": total / statistics.median(seconds),
            "share_of_limit": statistics.median(total / s / rate for s, rate in zip(ours, limit)) / threads,
        })
    return table + mixed_rows(program_path, rounds, threads)
