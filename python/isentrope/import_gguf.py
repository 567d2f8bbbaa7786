"""isentrope import-gguf MODEL.gguf FOLDER: a GGUF file of llama.cpp as a folder that transformers and `model.pretrained` open.

Weights are dequantised: the folder holds what the file's numbers stand for, not the weights that were quantised once. Query and
key rows of the architecture llama are put back from llama.cpp's order, which has the two halves of a rotary pair side by side.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from isentrope.whole_folder import whole_folder

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SHARD = 2 << 30  # bytes of a file of weights
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Keys of an architecture that config.json says in its own words, or that change no number; of the others, one that is set is refused.
READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
    "attention.causal", "attention.sliding_window", "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
ONE = {"rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor", "logit_scale", "residual_scale",
       "embedding_scale"}  # factors, which change nothing where they are 1  # fmt: skip
# How a byte-level vocabulary cuts text into words, which a GGUF file has a name for (tokenizer.ggml.pre). transformers 5.24 takes GPT-2's
# words where it does not know the name: tokens that the model has not learnt, of digits behind line feeds for one.
WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, WORDS]}
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                                                  {**WORDS, "use_regex": False}]}  # fmt: skip


# tokenizer.ggml.pre → what stands in tokenizer.json.
PRE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gpt-2", "phi-2"), {"pre_tokenizer": WORDS}),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), {"pre_tokenizer": DIGITS}),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), {"pre_tokenizer": _split(QWEN2), "normalizer": {"type": "NFC"}}),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), {"pre_tokenizer": _split(LLAMA3), "ignore_merges": True}),
}
PACKAGES = {"gguf": "gguf", "safetensors": "safetensors", "transformers": "transformers"}  # module → what pip calls it


class ImportFailed(Exception):
    """What is wrong with the file or the folder, for a person."""


def short(number: float) -> float:
    """The number of fewest digits that the file's float32 stands for: 1e-05, not 9.999999747378752e-06."""
    import numpy

    return float(str(numpy.float32(number)))


class Model:
    """A GGUF file and what it says of itself."""

    def __init__(self, file: Path) -> None:
        from gguf import GGUFReader

        try:
            self.reader = GGUFReader(str(file))
        except (ValueError, IndexError, OverflowError, OSError) as error:
            raise ImportFailed(f"{file}: not a GGUF file that can be read: {error}") from error
        self.file = file
        self.architecture = str(self.get("general.architecture", ""))
        if self.architecture not in ARCHITECTURES:
            raise ImportFailed(f"{file}: general.architecture is {self.architecture!r}; wanted one of {', '.join(ARCHITECTURES)}")
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        foreign = sorted({tensor.tensor_type.name for tensor in self.tensors.values()} - set(TYPES))
        if foreign:
            raise ImportFailed(f"{file}: holds tensors of {', '.join(foreign)}; wanted types among {', '.join(TYPES)}")

    def get(self, key: str, otherwise: Any = None) -> Any:
        field = self.reader.fields.get(key)
        return otherwise if field is None else field.contents()

    def own(self, key: str, otherwise: Any = None) -> Any:
        """A key of the architecture."""
        value = self.get(f"{self.architecture}.{key}", otherwise)
        if value is None:
            raise ImportFailed(f"{self.file}: {self.architecture}.{key} is missing")
        return value

    def number(self, key: str, otherwise: float | None = None) -> float:
        value = self.own(key, otherwise)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            self.refuse(key, "wanted a number above 0")
        return float(value)

    def count(self, key: str, otherwise: int | None = None) -> int:
        value = self.own(key, otherwise)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(key, "wanted an integer above 0, the same in all blocks")
        return int(value)

    def refuse(self, key: str, wanted: str) -> NoReturn:
        raise ImportFailed(f"{self.file}: {self.architecture}.{key} is {self.own(key)!r}; {wanted}")

    def rows(self, name: str) -> int:
        if name not in self.tensors:
            raise ImportFailed(f"{self.file}: the tensor {name} is missing")
        return int(self.tensors[name].shape[-1])


def check_keys(model: Model, head_dim: int) -> None:
    """Raises ImportFailed for a key that changes what the model computes and that the folder has no word for."""
    begin = model.architecture + "."
    for name in model.reader.fields:
        key = name.removeprefix(begin)
        if name == key or key in READ:
            continue
        value = model.own(key)
        if not (value in (0, "", False) or (key in ONE and value == 1) or (isinstance(value, list) and not any(value))):
            model.refuse(key, "models with it are not read")
    for key in ("attention.value_length", "rope.dimension_count"):
        if model.count(key, head_dim) != head_dim:
            model.refuse(key, f"wanted {head_dim}, the size of a head")
    if model.own("attention.causal", True) is not True:
        model.refuse("attention.causal", "wanted a model that sees no later token")
    if 0 < model.own("attention.sliding_window", 0) < model.count("context_length"):
        model.refuse("attention.sliding_window", "models with windows are not read")


def check_tensors(model: Model, config: dict[str, Any]) -> None:
    """Raises ImportFailed unless the file has all tensors of the model that config tells, in their shapes, and no other."""
    C, M, V, D = config["hidden_size"], config["intermediate_size"], config["vocab_size"], config["head_dim"]
    q, kv = D * config["num_attention_heads"], D * config["num_key_value_heads"]
    bias = model.architecture == "qwen2" or config.get("attention_bias", False)
    rows: dict[str, tuple[int, ...]] = {"attn_norm.weight": (C,), "ffn_norm.weight": (C,)}
    for part, shape, biased in (("attn_q", (q, C), bias), ("attn_k", (kv, C), bias), ("attn_v", (kv, C), bias),
                                ("attn_output", (C, q), bias and model.architecture != "qwen2"), ("ffn_gate", (M, C), config.get("mlp_bias", False)),
                                ("ffn_up", (M, C), config.get("mlp_bias", False)), ("ffn_down", (C, M), config.get("mlp_bias", False))):  # fmt: skip
        rows |= {f"{part}.weight": shape} | ({f"{part}.bias": shape[:1]} if biased else {})
    if model.architecture == "qwen3":
        rows |= {"attn_q_norm.weight": (D,), "attn_k_norm.weight": (D,)}
    wanted: dict[str, tuple[int, ...]] = {"token_embd.weight": (V, C), "output_norm.weight": (C,)}
    wanted |= {f"blk.{i}.{name}": shape for i in range(config["num_hidden_layers"]) for name, shape in rows.items()}
    if not config["tie_word_embeddings"]:
        wanted["output.weight"] = (V, C)
    found = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in model.tensors.items() if name != "rope_freqs.weight"}
    missing, more = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    for what, names in (("lacks", missing), (f"tensors that no {model.architecture} has:", more)):
        if names:
            raise ImportFailed(f"{model.file}: {what} {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else ""))
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ImportFailed(f"{model.file}: {name} is {list(found[name])}, wanted {list(shape)}")


def name_of(tensor: str) -> str | None:
    """The name that transformers has for a tensor of llama.cpp; None where it has none."""
    if tensor in TOP:
        return TOP[tensor]
    part = tensor.split(".")  # blk.3.attn_q.weight
    if len(part) != 4 or part[0] != "blk" or part[2] not in LAYER or part[3] not in ("weight", "bias"):
        return None
    return f"model.layers.{part[1]}.{LAYER[part[2]]}.{part[3]}"


def rope_of(model: Model, head_dim: int) -> dict[str, Any]:
    """What transformers calls rope_scaling, with rope_theta."""
    import numpy

    theta = short(model.number("rope.freq_base", 10000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind = model.own("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise ImportFailed(f"{model.file}: {model.architecture}.rope.scaling.type is {kind!r}; wanted none, linear or yarn")
    if kind != "none":
        rope |= {"rope_type": kind, "factor": short(model.number("rope.scaling.factor"))}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = model.count("rope.scaling.original_context_length")
        for name in ("beta_fast", "beta_slow"):
            if model.get(f"{model.architecture}.rope.scaling.yarn_{name}") is not None:
                rope[name] = short(model.number(f"rope.scaling.yarn_{name}"))
    if "rope_freqs.weight" not in model.tensors:
        return rope
    # Of Llama 3.1 and later the file has the factors that its scaling comes to, and not its four numbers: those are tried that
    # its models have.
    found = numpy.asarray(model.tensors["rope_freqs.weight"].data, dtype=numpy.float64)
    wave = 2 * numpy.pi * theta ** (2 * numpy.arange(head_dim // 2) / head_dim)
    for factor in (1.0, 8.0, 32.0):
        smooth = numpy.clip((8192 / wave - 1) / (4 - 1), 0, 1)
        if found.shape == wave.shape and numpy.allclose(found, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
            llama3 = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            return rope if factor == 1 else rope | llama3 | {"original_max_position_embeddings": 8192}
    raise ImportFailed(f"{model.file}: rope_freqs.weight holds frequencies that are not those of Llama 3.1, 3.2 or 3.3")


def config_of(model: Model, dtype: str) -> dict[str, Any]:
    """config.json, in the spelling of transformers 4 and of 5."""
    heads, width = model.count("attention.head_count"), model.count("embedding_length")
    head_dim = model.count("attention.key_length", width // heads)
    check_keys(model, head_dim)
    rope = rope_of(model, head_dim)
    config = {
        "architectures": [ARCHITECTURES[model.architecture]],
        "model_type": model.architecture,
        "vocab_size": model.rows("token_embd.weight"),
        "hidden_size": width,
        "intermediate_size": model.count("feed_forward_length"),
        "num_hidden_layers": model.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": model.count("context_length"),
        "rms_norm_eps": short(model.number("attention.layer_norm_rms_epsilon")),
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
        "rope_scaling": None if rope["rope_type"] == "default" else {key: rope[key] for key in rope if key != "rope_theta"},
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "dtype": dtype,
        "torch_dtype": dtype,
        "bos_token_id": model.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": model.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": model.get("tokenizer.ggml.padding_token_id"),
    }
    if model.architecture != "qwen2":  # its biases are no option
        config["attention_bias"] = "blk.0.attn_q.bias" in model.tensors
    if model.architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in model.tensors
    return config


def weights_of(model: Model, config: dict[str, Any], dtype: str) -> Iterator[tuple[str, Any]]:
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in model.tensors.items():
        if name == "rope_freqs.weight":
            continue
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        part = name.split(".")[2] if name.startswith("blk.") else ""
        if model.architecture == "llama" and part in heads:
            pairs = values.view(heads[part], -1, 2, *values.shape[1:])
            values = pairs.transpose(1, 2).reshape(values.shape)
        own = name_of(name)
        assert own is not None
        yield own, values.to(getattr(torch, dtype)).contiguous()


def write_weights(model: Model, config: dict[str, Any], folder: Path, dtype: str) -> None:
    """model.safetensors, or shards and their index where they are larger than one file is."""
    from safetensors.torch import save_file

    shards: list[tuple[Path, list[str]]] = []
    held: dict[str, Any] = {}
    total = 0

    def flush() -> None:
        if held:
            path = folder / f"model-{len(shards) + 1:05d}.safetensors"
            save_file(held, str(path), metadata={"format": "pt"})
            shards.append((path, list(held)))
            held.clear()

    for name, values in weights_of(model, config, dtype):
        if sum(one.nbytes for one in held.values()) + values.nbytes > SHARD:
            flush()
        held[name] = values
        total += values.nbytes
    flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / "model.safetensors")
        return
    places = {}
    for number, (path, names) in enumerate(shards, 1):
        named = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / named)
        places |= dict.fromkeys(names, named)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_tokenizer(model: Model, folder: Path) -> str:
    """tokenizer.json and what belongs to it, by transformers. Returns what a person is told."""
    if model.get("tokenizer.ggml.model") is None:
        return "no tokenizer in the file"
    from transformers import AutoTokenizer

    pre = model.get("tokenizer.ggml.pre") or {"qwen2": "qwen2", "qwen3": "qwen2"}.get(model.architecture)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model.file.parent), gguf_file=model.file.name)
    except Exception as error:  # whatever stands in the file's lists
        raise ImportFailed(f"{model.file}: transformers makes no tokenizer of it: {type(error).__name__}: {error}") from error
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer.json"
    parts = json.loads(file.read_text(encoding="utf-8"))
    if model.get("tokenizer.ggml.model") == "gpt2":
        if pre not in PRE and parts["pre_tokenizer"]["type"] == "ByteLevel":
            for path in folder.iterdir():
                path.unlink()
            return (f"and no tokenizer: how its vocabulary cuts text into words (tokenizer.ggml.pre {pre!r}) is not known here; "
                    "put the tokenizer.json and tokenizer_config.json of the model beside the weights")  # fmt: skip
        words = PRE.get(pre, {})
        parts |= {key: words[key] for key in ("pre_tokenizer", "normalizer") if key in words}
        parts["model"]["ignore_merges"] = words.get("ignore_merges", parts["model"].get("ignore_merges", False))
        file.write_text(json.dumps(parts, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that versions 4 and 5 know
    template = model.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return f"tokenizer of {len(tokenizer)} tokens" + (", with a chat template" if template is not None else "")


def import_gguf(file: Path, folder: Path, dtype: str) -> list[str]:
    """Writes the folder. Returns what a person is told."""
    if not file.is_file():
        raise ImportFailed(f"{file}: there is no such file")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ImportFailed(f"{folder}: is there, and not an empty folder; name another, or remove it")
    model = Model(file)
    config = config_of(model, dtype)
    check_tensors(model, config)
    with whole_folder(folder) as making:
        told = write_tokenizer(model, making)
        write_weights(model, config, making, dtype)
        (making / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    types = collections.Counter(tensor.tensor_type.name for tensor in model.tensors.values())
    kinds = ", ".join(f"{count} of {name}" for name, count in types.most_common())
    packed = [name for name in types if name not in ("F32", "F16", "BF16")]
    return [
        f"{folder}: {config['architectures'][0]}, {told}",
        f"{sum(types.values())} tensors ({kinds}) written as {dtype}"
        + (f"; those of {', '.join(packed)} are dequantised: what quantising lost is not back" if packed else ""),
    ]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="isentrope import-gguf",
        description="Turns a GGUF file of llama.cpp (architectures llama, qwen2, qwen3) into a folder that transformers opens "
        "and that a run starts from: model: {pretrained: FOLDER}. Quantised weights are dequantised.",
    )
    parser.add_argument("file", metavar="MODEL.gguf", type=Path)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a new or an empty folder")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights (default float32)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 after an error."""
    options = parser().parse_args(argv)
    try:
        print("\n".join(import_gguf(options.file, options.folder, options.dtype)))
    except ImportFailed as error:
        print(f"isentrope import-gguf: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        missing = PACKAGES.get(error.name or "")
        if missing is None:
            raise
        print(f"isentrope import-gguf: the Python package {missing} is missing: pip install {missing}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
