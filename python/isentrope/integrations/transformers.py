"""entropy_attention as an attention of Hugging Face transformers (5.5.4 and later), and the entropies of a model that runs it.

    from isentrope.integrations import transformers as isentrope_transformers

    isentrope_transformers.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="isentrope")
    with isentrope_transformers.collect_entropy(model) as record:
        model(**batch)
    record["model.layers.0.self_attn"][0].normalized  # [B, H, T]
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from isentrope.nn import normalized_entropy, visible_keys
from isentrope.ops import entropy_attention

__all__ = ["LayerEntropy", "collect_entropy", "register"]

NAME = "isentrope"
LOWEST = "5.5.4"


def register() -> None:
    """Makes ``attn_implementation="isentrope"`` known to transformers. A second call does nothing.

    Right with it: causal and bidirectional attention, sliding windows, softcap, grouped heads, padding on the left or on the
    right, packed sequences (position_ids that start again, with use_cache=False; or cu_seq_lens_q), dynamic and static caches.
    Gradients are exact. Tested with transformers 5.5.4, the lowest, and 5.24; docs/transformers.md says what each model does.

    Only models that run their attention through transformers' attention interface can use it. Others stop, mostly with a message
    that says so: a KeyError 'isentrope' while the model is made (Falcon, GPT-Neo, GIT) means the same. Some compute their
    attention themselves and take no notice of the name (DeBERTa, XLM, Mamba): then collect_entropy is an error.

    Cost of padding: on the right none. On the left each layer of such a batch copies its keys and values once, shifted to start
    at 0 (the op knows where keys end, not where they start), and where queries are padding too, as in training and at a prompt,
    its queries and its output. Whether there is padding is asked once a forward pass, which waits for the device as sdpa does;
    so does the look at position_ids where there is neither an attention_mask nor a packed one. Under torch.compile making the
    mask is a graph break.

    Raises:
        ImportError: an older transformers, whose masks are made another way.

    Raises, when the model runs:
        ValueError: dropout in training, attention sinks, position biases, chosen keys, and every other keyword that the op does not
            know; masks that are 4-D tensors of your own, padding between two tokens, masks of any other kind (chunked, blocks of
            images, bidirectional windows), and models that work on the mask themselves; packed position_ids that the model's mask
            does not separate. The message names it.
    """
    if "q_length" not in inspect.signature(masking_utils.sdpa_mask).parameters:
        raise ImportError(f"isentrope.integrations.transformers: transformers is {transformers.__version__}; wanted {LOWEST} or later")
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


# ---- the mask: made once a forward pass, read by every layer -----------------------------------------------------------
#
# transformers hands a mask from the model to its layers, and to a compiled forward, as a 4-D tensor. Ours holds n numbers a
# sequence and has the shape of the scores it is for, [B, n, T, S]; T and S are expanded, so they cost nothing:
#
#   int64, n = 0   causal, with entropy_attention's defaults
#          n = 1   query_start
#          n = 2   and key_lengths; an attention_mask was given
#          n = 3   the same of keys shifted left by the third, the first key that is no padding
#          n = 4   and of queries shifted left by the fourth, the number of them before that key
#   int32          cu_seqlens
#
# It is never None, so that no layer has to know by itself what it sees: some do not say whether they are causal.


class _Mask(Tensor):
    """Refuses arithmetic, so that a model whose own code adds masks to scores stops instead of adding these numbers."""

    _READS = frozenset({"__get__", "__set__", "__repr__", "as_subclass", "dim", "is_floating_point"})
    _TRACED = frozenset({"size", "stride", "storage_offset", "untyped_storage", "is_conj", "is_neg", "_is_view"})  # what torch.compile asks
    _MOVES = frozenset({"to", "cpu", "cuda", "clone", "contiguous", "detach"})

    @classmethod
    def __torch_function__(cls, function: Callable, types, arguments=(), options=None):
        name, options = function.__name__, options or {}
        with torch._C.DisableTorchFunctionSubclass():
            if name in cls._READS or (name in cls._TRACED and torch.compiler.is_compiling()):
                return function(*arguments, **options)
            if name in cls._MOVES:
                mask, *rest = arguments
                moved = function(mask.as_subclass(Tensor)[:, :, :1, :1], *rest, **options)
                if moved.dtype == mask.dtype:
                    return moved.expand(mask.shape).as_subclass(cls)
            if name == "__getitem__" and all(isinstance(part, slice) for part in arguments[1]):
                mask = arguments[0]
                if function(*arguments).shape == mask.shape:  # [:, :, :, :keys] of all keys, as some do before the attention
                    return mask
        raise _refusal(f"the model's own code works on the mask (by {name}); wanted it handed to the attention as it is")


class _SlidingMask(_Mask):
    """Of layers whose sliding window is shorter than the keys."""


@torch.compiler.disable
def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **_,
) -> Tensor:
    """The mask interface of transformers: attention_mask [B, seen] bool, True where there is a token."""
    causal, window, packed = _understand(mask_function)

    def made(numbers: Tensor) -> Tensor:
        """numbers: [B, n] or [1, n]"""
        kind = _Mask if window is None or window >= kv_length else _SlidingMask
        return numbers[:, :, None, None].expand(batch_size, -1, q_length, kv_length).as_subclass(kind)

    if packed is not None:  # [B, T], a number a sequence
        new = torch.ones_like(packed, dtype=torch.bool)
        new[:, 1:] = packed[:, 1:] != packed[:, :-1]
        ends = torch.cat([new.flatten().nonzero().flatten(), new.new_full((1,), new.numel(), dtype=torch.long)])
        return made(ends.int()[None])

    start = q_offset - kv_offset if causal else kv_length  # after every key
    if attention_mask is None:
        if causal and isinstance(start, int) and start == kv_length - q_length:
            return made(torch.empty(1, 0, device=device, dtype=torch.long))
        return made(torch.as_tensor(start, device=device).view(1, 1))

    if attention_mask.dim() != 2:
        raise _refusal(f"attention_mask has shape {list(attention_mask.shape)}; wanted [B, S] ones and zeros (padding)")
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    real, place = padding[:, kv_offset : kv_offset + kv_length], torch.arange(kv_length, device=device)
    count = real.sum(-1)
    first = torch.where(real, place, kv_length).amin(-1).where(count > 0, 0)
    lead = (first - start).clamp(0, q_length)
    torn = torch.where(real, place + 1, 0).amax(-1) - first != count
    left, led, broken = torch.stack([(x > 0).any() for x in (first, lead, torn)]).tolist()
    if broken:
        row = torn.nonzero()[0].item()
        raise _refusal(f"attention_mask[{row}] has padding between two tokens; wanted all of it on one side")
    if causal and left:
        start = (start - first).clamp(min=0)
    columns = [torch.as_tensor(start, device=device).expand(batch_size), count]
    if left:
        columns += [first, lead] if led else [first]
    return made(torch.stack(columns, -1))


def _understand(mask_function: Callable) -> tuple[bool, int | None, Tensor | None]:
    """transformers' mask function → (causal, sliding window, number of the sequence [B, T]), from the names of its parts."""
    causal, window, packed = False, None, None
    parts = [mask_function]
    while parts:
        part = parts.pop()
        name, inside = part.__qualname__.split(".")[0], inspect.getclosurevars(part).nonlocals
        if name == "and_masks":
            parts += inside["mask_functions"]
        elif name == "remap_positions_for_packed_sequence":  # positions of a sequence follow each other: no other mask
            parts.append(inside["mask_function"])
        elif name == "causal_mask_function":
            causal = True
        elif name == "sliding_window_overlay":
            window = inside["sliding_window"]
        elif name == "packed_sequence_mask_function":
            packed = inside["packed_sequence_mask"]
        elif name != "bidirectional_mask_function":
            raise _refusal(f"the model masks with {name}; wanted causal, sliding window, padding or packed sequences")
    if not causal and (window is not None or packed is not None):
        raise _refusal("the model masks with a sliding window or packed sequences that look ahead; wanted causal ones")
    return causal, window, packed


def _refusal(what: str) -> ValueError:
    return ValueError(f"attn_implementation 'isentrope': {what}. Run this model or batch with 'sdpa' or 'eager'.")


# ---- the attention -----------------------------------------------------------------------------------------------------

# Keywords that reach an attention and do not change what it computes. Any other that is not read below may.
_WITHOUT_EFFECT = frozenset(
    "cache_position logits_to_keep num_items_in_batch output_hidden_states output_router_logits position_embeddings return_dict seq_idx use_cache".split()
)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention interface of transformers: query [B, H, T, D], key, value [B, G, S, D] → [B, T, H, D]."""
    _refuse(attention_mask, dropout, kwargs)
    B, T, S = query.shape[0], query.shape[2], key.shape[2]
    numbers = None
    if attention_mask is None:
        where = _unmasked(module, is_causal, sliding_window, T, S)
    else:
        where, numbers = _masked(attention_mask, sliding_window, B, T, S)
        if is_causal is False and getattr(module, "is_causal", False):
            raise _refusal("is_causal=False is given to a causal layer, whose mask is not made by it; wanted config.is_causal to be False")
        if position_ids is not None:
            _check_positions(attention_mask, position_ids, T)
    ends = cu_seq_lens_q
    if numbers is not None and numbers.dtype == torch.int32:
        ends = numbers[0]
    elif numbers is not None and numbers.shape[1] > 1 and ends is not None:
        raise _refusal("attention_mask and cu_seq_lens_q are given; wanted one of them")

    records = [record for record in _records if module in record.names]
    how = {"scale": scaling, "softcap": softcap, "return_entropy": bool(records)}
    if ends is not None:
        where["cu_seqlens"] = ends
        flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
        out, _, entropy, max_logit = entropy_attention(*flat, **where, **how, max_seqlen=max_length_q)
        out = out.unflatten(0, (B, T))
        if records:
            entropy, max_logit = (x.unflatten(0, (B, T)).transpose(1, 2) for x in (entropy, max_logit))
            keys = visible_keys(B * T, B * T, **where).view(B, T)
    else:
        columns = () if numbers is None else numbers.unbind(-1)
        where["query_start"], where["key_lengths"], first, lead = (*columns, None, None, None, None)[:4]
        key, value, query = _shift(key, first), _shift(value, first), _shift(query, lead)
        out, _, entropy, max_logit = entropy_attention(query, key, value, **where, **how)
        back = None if lead is None else -lead
        out = _shift(out, back).transpose(1, 2).contiguous()  # some models view it
        if records:
            entropy, max_logit = _shift(entropy, back), _shift(max_logit, back)
            keys = visible_keys(T, S, **where, device=query.device).expand(B, T)
            if len(columns) > 1:  # rows of padding: those that stand among the keys, but not among the ones that count
                row = torch.arange(T, device=query.device)
                place = where["query_start"][:, None] + row
                keys = keys.masked_fill((place >= where["key_lengths"][:, None]) & (place < S), 0)
            if lead is not None:  # and those that went around
                keys = _shift(keys[:, None], back)[:, 0].masked_fill(row < lead[:, None], 0)
    for record in records:
        record.add(module, entropy, max_logit, keys)
    return out, None


def _refuse(mask: Tensor | None, dropout: float, kwargs: dict) -> None:
    if dropout:
        raise _refusal(f"attention dropout is {dropout}; wanted 0 (attention_dropout in the configuration), or model.eval()")
    if kwargs.get("output_attentions"):
        raise _refusal("output_attentions is set, and there are no weights to give; see collect_entropy")
    for name, value in kwargs.items():
        if value is not None and value is not False and name not in _WITHOUT_EFFECT:
            raise _refusal(f"the model or its caller gives {name}, which the op does not know")
    if mask is not None and not isinstance(mask, _Mask):
        raise _refusal(
            f"attention_mask is a {mask.dtype} tensor of shape {list(mask.shape)}; wanted the model to make the mask, from [B, S] "
            "ones and zeros (padding) or position_ids that start again (packed sequences)"
        )


def _unmasked(module: nn.Module, is_causal: bool | None, window: int | None, T: int, S: int) -> dict:
    """Which keys the rows of a layer see that the model gives no mask: eager lets them see all of them, sdpa asks is_causal."""
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if is_causal and T > 1:
        raise _refusal(f"{type(module).__name__} is causal and the model makes it no mask; wanted one, or is_causal to be False")
    if window is not None and window < S:
        raise _refusal(f"{type(module).__name__} has a sliding window and the model makes it no mask; wanted one")
    return {"causal": False}


def _masked(mask: Tensor, window: int | None, B: int, T: int, S: int) -> tuple[dict, Tensor]:
    """The same of a layer with a mask, and the mask's numbers [B, n]."""
    batch, _, queries, keys = mask.shape
    if (batch, queries, keys) != (B, T, S):
        raise _refusal(
            f"the mask is of {batch} sequences with {queries} queries and {keys} keys, and the layer has {B} with {T} and {S}; "
            "wanted the same"
        )
    sliding = isinstance(mask, _SlidingMask)
    if sliding and window is None:
        raise _refusal("the mask has a sliding window and the layer does not give its sliding_window")
    return {"causal": True, "window": window if sliding else None}, mask.as_subclass(Tensor)[:, :, 0, 0]


def _check_positions(mask: Tensor, position_ids: Tensor, T: int) -> None:
    """Without attention_mask and without a cache transformers separates sequences where positions jump; with a cache it does not."""
    if T == 1 or mask.dtype == torch.int32 or mask.shape[1] > 1 or position_ids.dim() != 2 or position_ids.shape[1] != T:
        return
    if not torch.compiler.is_compiling():  # once a forward pass, since it waits for the device
        if getattr(mask, "checked", None) is position_ids:
            return
        mask.checked = position_ids
    follow = (position_ids.diff(dim=1) == 1).all()
    message = _refusal(
        "position_ids start again, and the model's mask lets the sequences see each other, as with every attention where there is a "
        "cache (use_cache is True by default); wanted use_cache=False, or an attention_mask of ones where they are one sequence"
    )
    if torch.compiler.is_compiling():
        torch._assert_async(follow, str(message))
    elif not follow:
        raise message


def _shift(x: Tensor, by: Tensor | None) -> Tensor:
    """x [B, H, T, ...], by [B] → x[b] from row by[b] on, then the rows before it; x itself without by."""
    if by is None:
        return x
    T = x.shape[2]
    source = (torch.arange(T, device=x.device) + by[:, None]) % T  # [B, T]
    return x.gather(2, source.view(-1, 1, T, *[1] * (x.dim() - 3)).expand_as(x))


# ---- the entropies of a model ------------------------------------------------------------------------------------------


class LayerEntropy(NamedTuple):
    """What one call of an attention layer gave. Entropies and logits of rows of padding have no meaning."""

    entropy: Tensor  # [B, H, T] nats; float32, or float64 for a float64 model
    max_logit: Tensor  # [B, H, T] the largest logit of each row, scaled and capped
    keys: Tensor  # [B, T] int64, n: the keys that each row sees; 0 for rows of padding (bidirectional models count them)

    @property
    def normalized(self) -> Tensor:
        """[B, H, T]: H / log n, from 0 to 1; 0 where n < 2."""
        return normalized_entropy(self.entropy, self.keys)

    @property
    def mean_normalized(self) -> Tensor:
        """[H]: mean of H / log n over the rows with n of at least 2."""
        counted = (self.keys > 1)[:, None]
        return (self.normalized * counted).sum((0, 2)) / counted.sum().clamp(min=1)


class _Record:
    def __init__(self, model: nn.Module, detach: bool) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.detach = detach
        self.layers: dict[str, list[LayerEntropy]] = {}

    def add(self, module: nn.Module, entropy: Tensor, max_logit: Tensor, keys: Tensor) -> None:
        if torch._C._current_graph_task_id() != -1:  # gradient checkpointing runs the layer again in the backward pass
            return
        if self.detach:
            entropy = entropy.detach()
        self.layers.setdefault(self.names[module], []).append(LayerEntropy(entropy, max_logit, keys))


_records: list[_Record] = []


@contextlib.contextmanager
def collect_entropy(model: nn.Module, *, detach: bool = True) -> Iterator[dict[str, list[LayerEntropy]]]:
    """Collects the entropy of every attention layer of a model that runs with attn_implementation "isentrope".

    Args:
        model: of transformers, or any module with such models inside.
        detach: False keeps the gradient, for a loss with entropies in it. Then, with gradient checkpointing, call backward()
            inside the block.

    Yields:
        A dict: name of the attention module → one LayerEntropy a call. A forward pass is one call a layer, generate() one a
        step. It stays readable after the block.

    Raises:
        ValueError: no part of the model runs with attn_implementation "isentrope"; or, after the block, nothing was recorded.
    """
    used = {getattr(getattr(module, "config", None), "_attn_implementation", None) for module in model.modules()}
    if NAME not in used:
        raise ValueError(
            f"collect_entropy: the model has attn_implementation {sorted(map(str, used - {None}))}; wanted 'isentrope': "
            "call register(), then model.set_attn_implementation('isentrope')"
        )
    record = _Record(model, detach)
    _records.append(record)
    try:
        yield record.layers
    finally:
        _records.remove(record)
    if not record.layers:
        raise ValueError(
            f"collect_entropy: nothing was recorded: either the model was not run inside the block, or {type(model).__name__} takes "
            "attn_implementation 'isentrope' and computes its attention in code of its own, which has no entropy to give"
        )
