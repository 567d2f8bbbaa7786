"""A model to be measured: opened from a folder, and run over data once for all measures that want to see it."""

from __future__ import annotations

import contextlib
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
    """A causal language model of transformers, and its tokenizer where it has one."""

    def __init__(self, module: Any, tokenizer: Any = None, name: str = "model", folder: Path | None = None) -> None:
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.folder = folder
        self.config = module.config.get_text_config() if hasattr(module.config, "get_text_config") else module.config
        self.layers: int = self.config.num_hidden_layers
        self.width: int = self.config.hidden_size
        self.heads: int = self.config.num_attention_heads
        self.head: nn.Module | None = module.get_output_embeddings()
        self._plain_head: bool | None = None

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.module.parameters()).device
        return found

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        body: nn.Module = self.module.base_model
        if body is self.module:
            raise DiagnoseError(f"{self.name}: {type(self.module).__name__} has no body without its head; wanted a causal language model")
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

                    record, bounds = stack.enter_context(recorded(self, "bound" in needs))
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
        return batch

    def _tokens(self, batch: Batch, call: dict[str, Any], last: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy [B, T - 1]. The head's logits are made in tiles by linear_token_entropy where the head is a
        product alone, which the first batch says; else in full."""
        from isentrope.ops import linear_token_entropy, token_entropy

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
            module: Any = transformers.AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, local_files_only=True)
            if adapter.exists():
                import peft

                module = peft.PeftModel.from_pretrained(module, str(place)).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DiagnoseError(f"{base}: transformers {transformers.__version__} cannot open it: {str(error).splitlines()[0]}") from None
    name = place.name if place != folder else folder.resolve().name
    return Model(module.to(device), tokenizer_of(place, base), name, folder)


def _know_our_type(folder: Path) -> None:
    """Lets transformers open checkpoints that no model of its own computes, by the package's code and not by that in the folder."""
    import transformers

    told = folder / "config.json"
    if told.exists() and json.loads(told.read_text()).get("model_type") == "isentrope":
        from isentrope import modeling_isentrope as ours

        transformers.AutoConfig.register("isentrope", ours.IsentropeConfig, exist_ok=True)
        transformers.AutoModelForCausalLM.register(ours.IsentropeConfig, ours.IsentropeForCausalLM, exist_ok=True)


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
