"""A model to be measured: opened from a folder, and run over data once for all measures that want to see it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isentrope.diagnose.data import Data, batches
from isentrope.diagnose.measure import DiagnoseError

if TYPE_CHECKING:
    from isentrope.diagnose.mixers import MixerRows
    from isentrope.integrations.transformers import LayerEntropy


@dataclass
class Batch:
    """What a pass gives of a batch of B sequences of at most T tokens; what no measure needs is None.

    Attributes:
        index: [B] the places of the sequences in the data.
        ids, mask: [B, T] int64, bool: True where there is a token. Padding is on the right.
        lengths: [B].
        hidden: L + 1 tensors [B, T, C]: the embeddings, then the output of each layer, the last one behind the final norm.
        logprob, entropy: [B, T - 1] nats, of token t + 1 and of the distribution that it was drawn from; NaN where there is none.
        attention: of each layer entropy [B, H, T], max_logit [B, H, T], keys [B, T] (isentrope.integrations.transformers).
        bound: of each layer [B, H, T] nats: what the entropy is at least (isentrope.diagnose.bound).
        mixers: of each layer of a model of type isentrope (isentrope.diagnose.mixers).
    """

    index: Tensor
    ids: Tensor
    lengths: Tensor
    mask: Tensor
    hidden: list[Tensor] | None = None
    logprob: Tensor | None = None
    entropy: Tensor | None = None
    attention: list[LayerEntropy] | None = None
    bound: list[Tensor] | None = None
    mixers: list[MixerRows] | None = None

    def last(self, layer: int) -> Tensor:
        """[B, C]: the hidden state of each sequence's last token."""
        assert self.hidden is not None
        rows = torch.arange(len(self.lengths), device=self.hidden[layer].device)
        return self.hidden[layer][rows, self.lengths.to(rows.device) - 1]


class Model:
    """A language model of transformers that reads one text, and its tokenizer where it has one.

    Attributes:
        layers, width, heads: of the model; heads is 0 where it has no attention.
        head: its output over the vocabulary; None where it has none.
        headless: the folder has no weights of its head.
    """

    def __init__(self, module: Any, tokenizer: Any = None, name: str = "model", folder: Path | None = None, headless: bool = False) -> None:
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.folder = folder
        self.config = module.config.get_text_config() if hasattr(module.config, "get_text_config") else module.config
        self.layers: int = self.config.num_hidden_layers
        self.width: int = self.config.hidden_size
        self.heads: int = getattr(self.config, "num_attention_heads", None) or 0
        self.head: nn.Module | None = None if headless else module.get_output_embeddings()
        self.headless = headless
        self._plain_head: bool | None = None

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.module.parameters()).device
        return found

    @functools.cached_property
    def causal(self) -> bool:
        """Whether a token's state stays where what stands behind it changes: tried on four tokens."""
        ids = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0]], device=self.device)
        with torch.inference_mode():
            states = self.module(input_ids=ids).logits if getattr(self.module, "base_model", self.module) is self.module else self.body(input_ids=ids).last_hidden_state
        first, second = states[:, :3].float()
        return bool((first - second).abs().max() <= 1e-4 * first.abs().max())

    def foretells(self, what: str) -> None:
        """Raises DiagnoseError where the folder has no weights of a head, or the model sees the token that it would foretell. what: needs both."""
        if self.headless:
            raise DiagnoseError(f"{self.name}: its folder has no weights of a head over the vocabulary, which {what} needs")
        if not self.causal:
            raise DiagnoseError(f"{self.name}: {type(self.module).__name__} looks at both sides of a token, and its logits say nothing of the next one, which {what} needs; wanted a causal language model")

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        body: nn.Module = self.module.base_model
        if body is self.module:
            raise DiagnoseError(f"{self.name}: {type(self.module).__name__} has no body without its head; wanted a language model")
        return body

    def blocks(self) -> nn.ModuleList:
        """The layers; raises DiagnoseError where they are not to be found."""
        for part in self.body.modules():
            if isinstance(part, nn.ModuleList) and len(part) == self.layers:
                return part
        raise DiagnoseError(f"{self.name}: {type(self.module).__name__} has no list of {self.layers} layers")

    def encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise DiagnoseError(f"{self.name}: has no tokenizer (tokenizer.json), which texts need")
        with _silent():  # a stream of text may be longer than the model's sequences
            ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; bytes that are part of a letter show as U+FFFD."""
        if self.tokenizer is None:
            return [str(i) for i in ids]
        return [self.tokenizer.decode([i]) for i in ids]

    def run(self, ids: Tensor, lengths: Tensor, needs: frozenset[str]) -> Batch:
        """One forward pass of ids [B, T]. What is needed and cannot be given raises DiagnoseError."""
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        batch = Batch(torch.arange(len(ids)), ids, lengths, mask)
        call = {"input_ids": ids.to(self.device), "use_cache": False}
        if not bool(mask.all()):
            call["attention_mask"] = mask.to(self.device).long()
        hidden = "hidden" in needs
        record: dict[str, list[LayerEntropy]] = {}
        bounds: dict[str, Tensor] = {}
        with torch.inference_mode():
            with contextlib.ExitStack() as stack:
                if needs & {"attention", "bound"}:
                    from isentrope.diagnose.bound import recorded

                    record, bounds = stack.enter_context(recorded(self, "bound" in needs and self.causal))
                if "mixers" in needs:
                    from isentrope.diagnose.mixers import watched

                    batch.mixers = stack.enter_context(watched(self, batch))
                out = self.body(**call, output_hidden_states=hidden)
            if hidden:
                batch.hidden = list(out.hidden_states)
            if "tokens" in needs:
                batch.logprob, batch.entropy = self._tokens(batch, call, out.last_hidden_state)
        if record:
            batch.attention = [calls[0] for calls in record.values()]
        if bounds:
            batch.bound = list(bounds.values())
        elif "bound" in needs and batch.attention is not None:  # which is worked out for causal rows
            batch.bound = [torch.full_like(one.entropy, torch.nan) for one in batch.attention]
        return batch

    def _tokens(self, batch: Batch, call: dict[str, Any], last: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy [B, T - 1]. The head's logits are made in tiles by linear_token_entropy where the head is a
        product alone, which the first batch says; else in full."""
        from isentrope.ops import linear_token_entropy, token_entropy

        self.foretells("the entropy of tokens")
        if self.head is None:
            raise DiagnoseError(f"{self.name}: {type(self.module).__name__} has no head over the vocabulary, which entropies of tokens need")
        there = batch.mask[:, 1:].to(last.device)
        target = call["input_ids"][:, 1:][there]
        weight = getattr(self.head, "weight", None)
        if self._plain_head is None:
            few = {name: value[:1, :8] if isinstance(value, Tensor) else value for name, value in call.items()}
            logits = self.module(**few).logits
            ours = self.body(**few).last_hidden_state @ weight.T if weight is not None else None
            self._plain_head = (
                getattr(self.head, "bias", None) is None
                and ours is not None
                and ours.shape == logits.shape
                and bool(torch.allclose(ours.float(), logits.float(), rtol=1e-3, atol=1e-3))
            )
        values = torch.full((2, *there.shape), torch.nan, device=last.device)
        if self._plain_head and weight is not None:
            found = linear_token_entropy(last[:, :-1][there], weight, target)
        else:
            found = token_entropy(self.module(**call).logits[:, :-1][there], target)
        values[0][there], values[1][there] = found.logprob.float(), found.entropy.float()
        return values[0], values[1]


def over(model: Model, ids: Sequence[Sequence[int]], needs: frozenset[str], size: int, say: Callable[..., None] | None = None) -> Iterator[Batch]:
    """The batches of one pass."""
    done = 0
    for index, padded, lengths in batches(ids, size):
        batch = model.run(padded, lengths, needs)
        batch.index = index
        yield batch
        done += len(index)
        if say:
            say(f"{model.name}: pass over the data", done, len(ids))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# ---- folders -----------------------------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, in the order of its steps (csrc/train/run_checkpoints.h); [] where the folder is no run's."""
    found = []
    for done in folder.glob("checkpoints/*/DONE"):
        try:
            state = json.loads((done.parent / "trainer.json").read_text())
            found.append((state["steps_of_run"], done.parent))
        except (OSError, ValueError, KeyError):
            continue
    return [path for _, path in sorted(found)]


def resolved(folder: Path) -> Path:
    """The folder of a model: itself, or the newest checkpoint of a run. Raises DiagnoseError."""
    if not folder.is_dir():
        raise DiagnoseError(f"{folder}: there is no such folder; wanted that of a model, of a checkpoint or of a run")
    if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
        return folder
    found = checkpoints(folder)
    if not found:
        raise DiagnoseError(f"{folder}: has no config.json and no whole checkpoint; wanted the folder of a model, of a checkpoint or of a run")
    return found[-1]


def opened(folder: Path | str, device: str = "cpu") -> Model:
    """The model of a folder in float32. Raises DiagnoseError."""
    import transformers

    folder = Path(folder)
    place = resolved(folder)
    base, adapter = place, place / "adapter_config.json"
    if adapter.exists():
        base = Path(json.loads(adapter.read_text()).get("base_model_name_or_path") or "")
    try:
        with _silent():
            _know_our_type(base)
            kind = _class_of(base)
            module: Any
            module, info = kind.from_pretrained(str(base), dtype=torch.float32, local_files_only=True, output_loading_info=True)
            if adapter.exists():
                import peft

                module = peft.PeftModel.from_pretrained(module, str(place)).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DiagnoseError(f"{base}: transformers {transformers.__version__} cannot open it: {str(error).splitlines()[0]}") from None
    headless = _without_head(module, sorted(info["missing_keys"]), base)
    name = place.name if place != folder else folder.resolve().name
    return Model(module.to(device), tokenizer_of(place, base), name, folder, headless)


def _class_of(folder: Path) -> Any:
    """The class of transformers that opens the folder: a causal language model, or one of masked tokens where config.json says so."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    if getattr(config, "is_encoder_decoder", False):
        raise DiagnoseError(f"{folder}: {config.model_type} encodes one text and decodes another; wanted a language model that reads one text")
    masked = any(name.endswith("ForMaskedLM") for name in config.architectures or []) or not getattr(config, "causal", True)
    return transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM


def _without_head(module: Any, missing: Sequence[str], folder: Path) -> bool:
    """Whether the folder lacks weights of the head, so that transformers has drawn them at random. Raises DiagnoseError where it lacks others."""
    body = f"{module.base_model_prefix}."
    inner = [name for name in missing if name.startswith(body) or module.base_model is module]
    if inner:
        told = ", ".join(inner[:3]) + (", …" if len(inner) > 3 else "")
        raise DiagnoseError(f"{folder}: {len(inner)} tensors of {type(module).__name__} are missing, which would be drawn at random: {told}; wanted the folder of a whole model")
    return bool(missing)


def _know_our_type(folder: Path) -> None:
    """Lets transformers open checkpoints that no model of its own computes, by the package's code and not by that in the folder."""
    import transformers

    told = folder / "config.json"
    if told.exists() and json.loads(told.read_text()).get("model_type") == "isentrope":
        from isentrope import modeling_isentrope as ours

        transformers.AutoConfig.register("isentrope", ours.IsentropeConfig, exist_ok=True)
        transformers.AutoModelForCausalLM.register(ours.IsentropeConfig, ours.IsentropeForCausalLM, exist_ok=True)
        transformers.AutoModelForMaskedLM.register(ours.IsentropeConfig, ours.IsentropeForMaskedLM, exist_ok=True)


def tokenizer_of(*folders: Path) -> Any:
    """That of the first folder that has one; None where none has."""
    import transformers

    for folder in folders:
        if not (folder / "tokenizer.json").exists() and not (folder / "tokenizer_config.json").exists():
            continue
        # As the file says: AutoTokenizer makes a qwen2 tokenizer of whatever lies in the folder of a qwen2 model (docs/models.md).
        if (folder / "tokenizer.json").exists():
            return transformers.PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return None
