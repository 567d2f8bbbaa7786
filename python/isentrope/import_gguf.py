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
from typing import Any

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

    def rows(self, name: str) -> int:
        if name not in self.tensors:
            raise ImportFailed(f"{self.file}: the tensor {name} is missing")
        return int(self.tensors[name].shape[-1])


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

    theta = short(model.own("rope.freq_base", 10000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind = model.own("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise ImportFailed(f"{model.file}: {model.architecture}.rope.scaling.type is {kind!r}; wanted none, linear or yarn")
    if kind != "none":
        rope |= {"rope_type": kind, "factor": short(model.own("rope.scaling.factor"))}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = model.own("rope.scaling.original_context_length")
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
    heads, width = model.own("attention.head_count"), model.own("embedding_length")
    head_dim = model.own("attention.key_length", width // heads)
    rope = rope_of(model, head_dim)
    config = {
        "architectures": [ARCHITECTURES[model.architecture]],
        "model_type": model.architecture,
        "vocab_size": model.rows("token_embd.weight"),
        "hidden_size": width,
        "intermediate_size": model.own("feed_forward_length"),
        "num_hidden_layers": model.own("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.own("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": model.own("context_length"),
        "rms_norm_eps": short(model.own("attention.layer_norm_rms_epsilon")),
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

    tokenizer = AutoTokenizer.from_pretrained(str(model.file.parent), gguf_file=model.file.name)
    tokenizer.save_pretrained(str(folder))
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
    unknown = [name for name in model.tensors if name_of(name) is None and name != "rope_freqs.weight"]
    if unknown:
        raise ImportFailed(f"{file}: tensors that no {model.architecture} has: {', '.join(unknown[:5])}")
    folder.mkdir(parents=True, exist_ok=True)
    told = write_tokenizer(model, folder)
    write_weights(model, config, folder, dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")  # last: without it the folder is no model
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
