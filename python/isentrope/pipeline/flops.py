"""What answering costs: floating-point operations of forward passes, a multiply-add counted as two.

Of a prompt of P tokens, which its samples share, and S answers of D tokens each::

    2 · N · (P + S · D) + 4 · C · Σ_layers (pairs(P) + S · (pairs(P + D) - pairs(P)))

with N the numbers in the matrices of the layers and the head, C = heads · head size, and pairs(n) = n (n + 1) / 2 the pairs of query and
key of n tokens, of a layer with a window w those at most w apart (docs/pipelines.md). Embeddings, norms and layers without such pairs
between their projections (recurrences) count nothing beside their matrices.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isentrope.pipeline.document import PipelineError

WITH_PAIRS = {"softmax", "softmax_rnn", "routed", "natsl"}  # of model.mixers; of the last two all pairs count, an upper bound
WINDOWED = {"mistral"}  # model types whose sliding_window is every layer's where no layer_types say otherwise


def pairs(tokens: float, window: int = 0) -> float:
    """Pairs of query and key of a causal sequence; window: of the layer, 0 for none."""
    if window <= 0 or tokens <= window:
        return tokens * (tokens + 1) / 2
    return window * (window + 1) / 2 + (tokens - window) * window


@dataclass(frozen=True)
class Size:
    """Of a model: numbers in matrices (the head's among them), C, and of each layer with pairs its window, 0 for none."""

    parameters: int
    width: int
    windows: tuple[int, ...]

    def flops(self, prompt: float, samples: float, drawn: float) -> float:
        """Of a prompt of so many tokens and samples of `drawn` tokens each."""
        of_pairs = sum(pairs(prompt, w) + samples * (pairs(prompt + drawn, w) - pairs(prompt, w)) for w in self.windows)
        return 2.0 * self.parameters * (prompt + samples * drawn) + 4.0 * self.width * of_pairs


@dataclass(frozen=True)
class Costs:
    """What a function costs a question: once + samples · (each + token · max_new_tokens), each a number or one by model."""

    once: Mapping[str, float]
    each: Mapping[str, float]
    token: Mapping[str, float]

    def flops(self, model: str, samples: int, length: int) -> float:
        once, each, token = (of.get(model, of.get("", 0.0)) for of in (self.once, self.each, self.token))
        return once + samples * (each + token * length)


def shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a model's folder, of the heads of its files alone."""
    index = folder / "model.safetensors.index.json"
    whole = folder / "model.safetensors"
    files = [whole] if whole.exists() or not index.exists() else [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    found: dict[str, list[int]] = {}
    for file in files:
        try:
            with open(file, "rb") as stream:
                (size,) = struct.unpack("<Q", stream.read(8))
                head = json.loads(stream.read(size))
        except (OSError, ValueError, struct.error) as error:
            raise PipelineError(f"{file}: cannot be read as safetensors: {getattr(error, 'strerror', None) or error}") from None
        found |= {name: about["shape"] for name, about in head.items() if name != "__metadata__"}
    return found


def folder_of(given: str) -> Path:
    """The folder with config.json of a model, a checkpoint or a run; of an adapter that of its base."""
    from isentrope.diagnose.measure import DiagnoseError
    from isentrope.diagnose.model import resolved

    try:
        place = resolved(Path(given))
    except DiagnoseError as error:
        raise PipelineError(str(error)) from None
    adapter = place / "adapter_config.json"
    if adapter.exists() and not (place / "config.json").exists():
        return folder_of(json.loads(adapter.read_text()).get("base_model_name_or_path") or "")
    return place


def size_of(given: str) -> Size:
    """Raises PipelineError for a folder that is none of a model."""
    folder = folder_of(given)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        layers, hidden, heads = (int(config[key]) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{folder}/config.json: has no sizes of a decoder: {error!r}") from None
    matrices = {name: math.prod(shape) for name, shape in shapes(folder).items() if len(shape) > 1}
    embedding = sum(size for name, size in matrices.items() if name.endswith("embed_tokens.weight"))
    tied = not any(name.endswith("lm_head.weight") for name in matrices)  # then its numbers are the head's as well
    mixers = config.get("mixers") or ["softmax"]
    window = int(config.get("sliding_window") or 0)
    types = config.get("layer_types") or ["sliding_attention" if window and config.get("model_type") in WINDOWED else "full_attention"]
    windows = tuple(window if types[i % len(types)] == "sliding_attention" else 0 for i in range(layers) if mixers[i % len(mixers)] in WITH_PAIRS)
    return Size(sum(matrices.values()) - (0 if tied else embedding), heads * int(config.get("head_dim") or hidden // heads), windows)


def shown(flops: float) -> str:
    """ "1.23 GFLOP"."""
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
        if abs(flops) >= scale:
            return f"{flops / scale:.3g} {unit}"
    return f"{flops:.4g} FLOP"
