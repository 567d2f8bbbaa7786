"""Advantages that another trainer's estimator has made, changed token by token by methods of isentrope.methods.SHAPING: the order of
completions, the texts that some look into, and what passes from step to step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isentrope import grams, methods
from isentrope.integrations.methods import Entry, options_of, subject

__all__ = ["ORDER", "Shaping", "TokenText", "steps_of"]

# As in csrc/methods/combinations.cpp: an entry stands behind those before it here.
ORDER = ("empg", "entropy_advantage", "perplexity", "position", "hicra")


class TokenText:
    """The texts that tokens stand for, of a tokenizer of transformers.

    A token's own text is what it adds behind another, so that a space at its front counts where the tokenizer decodes one; bytes that are no
    whole character are U+FFFD.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode: Callable[[list[int]], str] = lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        found = list(tokenizer.encode("a", add_special_tokens=False))
        self._anchor = [int(found[-1])] if found else []
        self._known: dict[tuple[int, bool], bytes] = {}

    def of(self, token: int, first: bool) -> bytes:
        """In UTF-8, as the first of a text or behind another."""
        key = (token, first)
        if key not in self._known:
            before = [] if first else self._anchor
            self._known[key] = self._decode([*before, token])[len(self._decode(before)) if before else 0 :].encode("utf-8", "surrogatepass")
        return self._known[key]

    def joined(self, tokens: Sequence[int]) -> tuple[bytes, list[int]]:
        """The text of them, and of each of its bytes the number of the token."""
        parts = [self.of(token, number == 0) for number, token in enumerate(tokens)]
        return b"".join(parts), [number for number, part in enumerate(parts) for _ in part]


def steps_of(text: bytes, owner: Sequence[int], tokens: int, marker: bytes) -> list[int]:
    """The step of each token, from 0: a marker ends one, and the token that holds its last byte belongs to it (csrc/methods/token_text.cpp)."""
    step, number, begun, at = [0] * tokens, 0, 0, text.find(marker)
    while at >= 0:
        behind = owner[at + len(marker) - 1] + 1
        if behind > begun:
            step[begun:behind] = [number] * (behind - begun)
            begun, number = behind, number + 1
        at = text.find(marker, at + len(marker))
    step[begun:] = [number] * (tokens - begun)
    return step


class Shaping:
    """Entries in their order, each of which changes the advantages that the one before it has made.

    Args:
        where: what the list is called in errors.
        entries: of isentrope.integrations.methods.SHAPING, as read() returns them.

    Raises:
        ValueError: an order that makes no sense, a file of grams that is none.
    """

    def __init__(self, where: str, entries: Sequence[Entry]) -> None:
        self.entries = list(entries)
        places = [(ORDER.index(entry.kind), entry.kind) for entry in entries if entry.kind in ORDER]
        for (place, kind), (next_place, next_kind) in zip(places, places[1:], strict=False):
            if next_place <= place:
                raise ValueError(f"{where}: {next_kind} stands behind {kind}; wanted the order {', '.join(ORDER)}, each once")
        self.state = {number: torch.full((2,), math.nan, dtype=torch.float64) for number, entry in enumerate(entries) if entry.kind == "gepo"}
        self._grams = {number: _grams(where, options_of(entry)["grams"]) for number, entry in enumerate(entries) if entry.kind == "hicra"}
        for number, entry in enumerate(entries):
            if entry.kind == "empg" and not options_of(entry)["marker"]:
                raise ValueError(f"{where}[{number}]: marker is empty; wanted the text that ends a step")
            if entry.kind == "gepo" and options_of(entry)["of"] not in ("logprob", "entropy"):
                raise ValueError(f"{where}[{number}]: of is {options_of(entry)['of']!r}; wanted 'logprob' or 'entropy'")

    @property
    def needs(self) -> set[str]:
        """Of logprob, entropy and token what they look at."""
        found: set[str] = set()
        for entry in self.entries:
            of = {"h": str(options_of(entry)["of"])} if entry.kind == "gepo" else {"step": "token", "planning": "token"}
            found |= {of.get(name, name) for name in subject(entry.kind)}
        return found & {"logprob", "entropy", "token"}

    def apply(self, index: Sequence[Any], *, advantage: Tensor, mask: Tensor, text: TokenText | None = None, learns: bool = True, **seen: Tensor) -> Tensor:
        """The new advantages [B, T] of all completions of a step, which may stand in any order; 0 where mask is.

        Args:
            index: [B], for each completion what names its prompt: anything hashable.
            advantage: [B, T] float32 or float64.
            mask: [B, T], true or not 0 where a token counts; tokens behind a row's last one are none of it.
            text: the tokenizer's, where `needs` has token.
            learns: the step is one of training, whose state the next one goes on from.
            seen: logprob, entropy [B, T] of the policy that drew, nats; token [B, T] integer: those that `needs` names.
        """
        number: dict[Any, int] = {}
        group = torch.tensor([number.setdefault(one, len(number)) for one in index], dtype=torch.int64)
        order = group.argsort(stable=True)
        rows = order.to(advantage.device)
        given: dict[str, Any] = {name: x[rows].to(advantage.dtype) if x.is_floating_point() else x[rows] for name, x in seen.items()}
        given |= {"mask": mask[rows] != 0, "group": group[order], "advantage": advantage[rows]}
        for place, entry in enumerate(self.entries):
            options = options_of(entry)
            if entry.kind == "gepo":
                given |= {"h": given["entropy"] if options.pop("of") == "entropy" else -given["logprob"], "state": self.state[place]}
            if entry.kind in ("empg", "hicra"):
                assert text is not None
                given |= self._of_texts(place, text, given["token"], given["mask"], str(options.pop("marker", "")))
                options.pop("grams", None)
            made = getattr(methods, entry.kind)(**{name: given[name] for name in subject(entry.kind)}, **options)
            if entry.kind == "gepo":
                if learns:
                    self.state[place] = made.state
                made = made.advantage
            given["advantage"] = made
        whole = torch.empty_like(given["advantage"])
        whole[rows] = given["advantage"]
        return whole

    def _of_texts(self, place: int, text: TokenText, token: Tensor, mask: Tensor, marker: str) -> dict[str, Tensor]:
        """step [B, T] of empg, planning [B, T] of hicra."""
        step, planning = torch.zeros(mask.shape, dtype=torch.int64), torch.zeros(mask.shape, dtype=torch.bool)
        for b, own in enumerate(token.tolist()):
            counts = mask[b].nonzero()
            own = own[: int(counts[-1]) + 1 if len(counts) else 0]
            joined, owner = text.joined(own)
            if place in self._grams:
                for begin, end, _ in grams.find(joined.decode("utf-8", "surrogateescape"), self._grams[place]):
                    planning[b, owner[begin] : owner[end - 1] + 1] = True
            else:
                step[b, : len(own)] = torch.tensor(steps_of(joined, owner, len(own), marker.encode()), dtype=torch.int64)
        return {"step": step.to(mask.device), "planning": planning.to(mask.device)}

    def saved(self) -> list[Any]:
        """For a checkpoint: [kind, state] of those that have one."""
        return [[self.entries[number].kind, x.tolist()] for number, x in self.state.items()]

    def restore(self, saved: Sequence[Any]) -> None:
        """
        Raises:
            ValueError: the states are others'.
        """
        kinds = [self.entries[number].kind for number in self.state]
        if [kind for kind, _ in saved] != kinds:
            raise ValueError(f"the checkpoint has the states of {[kind for kind, _ in saved]}, and the list those of {kinds}; wanted the same list")
        for number, (_, x) in zip(self.state, saved, strict=True):
            self.state[number] = torch.tensor(x, dtype=torch.float64)


def _grams(where: str, path: Any) -> list[str]:
    """The phrases of a file that isentrope grams wrote."""
    if not path:
        raise ValueError(f"{where}: hicra's grams names no file; make one of right answers with isentrope grams")
    try:
        held = json.loads(Path(path).read_text("utf-8"))
        return [str(one["text"]) for one in held["grams"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: {path} holds no grams ({error}); wanted a file that isentrope grams wrote") from error
