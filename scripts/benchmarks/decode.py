"""Decoding with the weights of SmolLM2-135M's sizes, drawn at random: 30 layers, width 576, 9 query and 3 key heads of 64, MLP 1536,
vocabulary 49152, tied; matrices and cache in bfloat16. One, 16 and 64 sequences of 32 tokens go on by some tokens each; and a prompt of
512 tokens is read.

The rival is transformers' model of those sizes in bfloat16 with its own cache, the same tokens a step, torch.no_grad. "float32" is
this engine with float matrices and cache. Values first: logits after the prompt are at most twice as far from transformers' in float32, of
the same weights, as transformers' own in bfloat16 are. Times are those of a token; tokens a second stand in build/bench.json.
"""

import statistics
import time

import torch

from plain_model import Program

PEERS = ["transformers"]
SIZES = {"layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "mlp": 1536, "vocabulary": 49152, "context": 1024, "tied": 1,
         "batch": 1, "length": 2}  # fmt: skip
# Sequences, tokens of a prompt, steps; tokens a second wanted of one thread.
CASES = [(1, 32, 16, 62), (16, 32, 8, 350), (64, 32, 4, 470), (1, 512, 1, 680)]


def hugging_face(weights):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=SIZES["width"], num_hidden_layers=SIZES["layers"], num_attention_heads=SIZES["heads"],
                         num_key_value_heads=SIZES["kv_heads"], intermediate_size=SIZES["mlp"], vocab_size=SIZES["vocabulary"],
                         max_position_embeddings=SIZES["context"], rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=None,
                         eos_token_id=None)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)
    return model


def prompt_rows(sequences, prompt):
    """[sequences, prompt]: what model_bench feeds."""
    return (torch.arange(prompt)[None] * 17 + 31 * torch.arange(sequences)[:, None]) % SIZES["vocabulary"]


def check_values(program, prompt):
    """The model for the rival, in bfloat16."""
    found = {name: torch.tensor(program("decode", name)["logits"]) for name in ("bfloat16", "float32")}
    model, tokens = hugging_face(program.weights()), prompt_rows(1, prompt)
    with torch.no_grad():
        exact = model(tokens).logits[0, -1, :64]
        model = model.bfloat16()
        narrow = model(tokens).logits[0, -1, :64].float()
    torch.testing.assert_close(found["float32"], exact, rtol=1e-3, atol=1e-4)
    error, allowed = (found["bfloat16"] - exact).norm().item(), 2 * (narrow - exact).norm().item()
    assert error <= allowed, f"logits in bfloat16: error {error}, allowed {allowed}"
    return model


def rival_seconds(model, sequences, prompt, steps):
    """Seconds of the prompts, and of the steps after them."""
    tokens = prompt_rows(sequences, prompt)
    with torch.no_grad():
        start = time.perf_counter()
        out = model(tokens, use_cache=True, logits_to_keep=1)
        middle = time.perf_counter()
        for _ in range(steps):
            out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
    return middle - start, time.perf_counter() - middle


def rows(program_path, rounds=7, threads=1):
    torch.set_num_threads(threads)
    program = Program(program_path, threads, **SIZES, prompts=1, prompt=32, new_tokens=1)
    model = check_values(program, 32)
    program.close()
    table = []
    for sequences, prompt, steps, wanted in CASES:
        program = Program(program_path, threads, **SIZES, prompts=sequences, prompt=prompt, new_tokens=steps)
        prefill = prompt > 32
        key, tokens = ("prefill_seconds", prompt) if prefill else ("seconds", sequences * steps)
        times = {name: [] for name in ("bfloat16", "transformers", "float32")}
        for round_ in range(rounds + 1):
            found = {name: program("decode", name)[key] for name in ("bfloat16", "float32")}
            found["transformers"] = rival_seconds(model, sequences, prompt, steps)[0 if prefill else 1]
            if round_ > 0:
                for name, seconds in found.items():
                    times[name].append(seconds / tokens)
        program.close()
        ours = statistics.median(times["bfloat16"])
        for name in ("transformers", "float32"):
            ratios = [theirs / mine for theirs, mine in zip(times[name], times["bfloat16"])]
            table.append({
                "op": "prefill" if prefill else "decode", "shape": f"{sequences} × {prompt} tokens" + ("" if prefill else f", {steps} steps"),
                "dtype": "bfloat16", "threads": threads, "ours_s": ours, "peer": f"{name} bfloat16" if name == "transformers" else "ours in float32",
                "peer_s": statistics.median(times[name]), "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)],
                "ours_tokens_per_s": 1 / ours, "wanted_tokens_per_s": wanted,
            })  # fmt: skip
    return table
