"""What a model makes of completions: their log-probabilities, and whether it would have written them itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError

if TYPE_CHECKING:
    from isentrope.diagnose.data import Data
    from isentrope.diagnose.model import Model


@dataclass
class Scores:
    """Of N completions: logprob [N] nats, the sum over a completion's tokens; tokens [N]; greedy [N] bool, whether each of its tokens is the one
    of the highest logit, which is whether greedy decoding writes exactly this."""

    logprob: Tensor
    tokens: Tensor
    greedy: Tensor


Pair = tuple[list[int], list[int]]


def own_tokens(model: Model, text: str) -> list[int]:
    """The ids of a text without the tokens that a tokenizer puts around it."""
    if model.tokenizer is None:
        raise DiagnoseError(f"{model.name}: has no tokenizer (tokenizer.json), which texts need")
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def pair(model: Model, prompt: str, completion: str, limit: int = 0) -> Pair:
    """Ids of prompt and completion: as the whole is split where the prompt's are a beginning of it, else each by itself. An empty prompt is the
    token of beginning where there is one. limit: tokens of both, of which the completion and the prompt's end are kept; 0 for none."""
    before = model.encode(prompt)
    whole = model.encode(prompt + completion)
    ids = whole[len(before) :] if before and len(whole) > len(before) and whole[: len(before)] == before else own_tokens(model, completion)
    if not before and getattr(model.tokenizer, "bos_token_id", None) is not None:
        before = [model.tokenizer.bos_token_id]
    if not ids:
        raise DiagnoseError(f"the completion {completion!r} to {prompt[:40]!r} has no token; leave out empty ones")
    if limit and len(before) + len(ids) > limit:
        if len(ids) >= limit:
            raise DiagnoseError(f"the completion {completion[:40]!r}… has {len(ids)} tokens; wanted fewer than max_length, {limit}")
        before = before[len(before) + len(ids) - limit :]
    return before, ids


def whole_text(model: Model, text: str) -> Pair:
    """Ids of a text by itself: behind the token of beginning where the tokenizer has one, else behind its own first token, which is not scored."""
    ids = own_tokens(model, text)
    begin = getattr(model.tokenizer, "bos_token_id", None)
    if begin is not None and ids[:1] != [begin]:
        ids = [begin, *ids]
    return ids[:1], ids[1:]


def scores(model: Model, pairs: Sequence[Pair], size: int = 16, say: Callable[[int, int], None] | None = None) -> Scores:
    """Of pairs (ids before, ids of the completion). A completion without tokens has log-probability 0 and is greedy.

    Raises DiagnoseError for a pair with nothing before the completion: its first token has no probability.
    """
    model.foretells("the probability of completions")
    n = len(pairs)
    found = Scores(torch.zeros(n, dtype=torch.float64), torch.tensor([len(own) for _, own in pairs]), torch.ones(n, dtype=torch.bool))
    for before, own in pairs:
        if not before and own:
            raise DiagnoseError("an empty prompt, and the tokenizer has no token of beginning: the first token has no probability; give each line a prompt")
    order = sorted((i for i in range(n) if pairs[i][1]), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    for start in range(0, len(order), size):
        index = order[start : start + size]
        rows = [pairs[i][0] + pairs[i][1] for i in index]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(rows):
            ids[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        with torch.inference_mode():
            logits = model.module(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
            for row, i in enumerate(index):
                before, own = pairs[i]
                of = logits[row, len(before) - 1 : len(before) + len(own) - 1].float()
                target = torch.tensor(own, device=of.device)
                found.logprob[i] = torch.log_softmax(of.double(), 1).gather(1, target[:, None]).sum().cpu()
                found.greedy[i] = bool((of.argmax(1) == target).all())
        if say:
            say(min(start + size, len(order)), len(order))
    return found


def written(model: Model, prompts: Sequence[list[int]], most: int, say: Callable[[int, int], None] | None = None) -> list[str]:
    """What greedy decoding writes behind the ids of each prompt, in `most` tokens at most."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise DiagnoseError(f"{model.name}: has no tokenizer (tokenizer.json), which texts need")
    end = getattr(model.module.generation_config, "eos_token_id", None) or tokenizer.eos_token_id
    found = []
    for number, ids in enumerate(prompts):
        if say:
            say(number, len(prompts))
        given = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            out = model.module.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=most, pad_token_id=end[0] if isinstance(end, list) else end)
        found.append(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
    if say:
        say(len(prompts), len(prompts))
    return found


def right(model: Model, data: Data, limit: int, say: Callable[[int, int], None] | None = None) -> tuple[list[bool], str]:
    """Whether each line is right, and how that was found: by its `correct`, else whether greedy decoding of `prompt` writes exactly `completion`."""
    if data.records and all("correct" in record for record in data.records):
        for number, value in enumerate(data.column("correct", (bool, int, float)), 1):
            if value not in (0, 1):
                raise DiagnoseError(f"{data.name}: 'correct' of text {number} is {value!r}; wanted true or false")
        return [bool(record["correct"]) for record in data.records], "by the key correct of the lines"
    prompts, completions = data.column("prompt"), data.column("completion")
    found = scores(model, [pair(model, *one, limit) for one in zip(prompts, completions)], say=say)
    return found.greedy.tolist(), "right: greedy decoding of the prompt writes exactly the completion (whether it then ends is not asked)"
