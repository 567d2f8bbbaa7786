"""The trainer's tokenizers in Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch  # noqa: F401  (loads the libraries that the trainer links)

from isentrope.chat_template import ChatTemplate


class Tokenizer:
    """The tokenizer of a folder: of a checkpoint, or one that transformers saved with a byte-pair ``tokenizer.json``.

    ``encode`` gives the tokens of a text alone, as transformers does with ``add_special_tokens=False``; names of special tokens
    within the text become those tokens. ``encode_prompt`` puts before them what begins a sequence (such as ``<s>``), where the
    tokenizer has that and the text does not begin with it. Text is ``str``, or bytes of any kind.

    Example::

        tokenizer = isentrope.Tokenizer("runs/mine/checkpoints/sft-000100")
        tokenizer.decode(tokenizer.encode("12+34"))
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from isentrope import _C  # in packages that were built with the trainer

        self._tokenizer = _C.Tokenizer(os.fsencode(folder))
        self._folder = os.fspath(folder)
        self._templates: dict[tuple[str | None, bool], ChatTemplate] = {}

    @overload
    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
                            add_generation_prompt: bool = False, tokenize: Literal[True] = True, chat_template: str | None = None,
                            **more: Any) -> list[int]: ...  # fmt: skip

    @overload
    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
                            add_generation_prompt: bool = False, tokenize: Literal[False], chat_template: str | None = None,
                            **more: Any) -> str: ...  # fmt: skip

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
                            add_generation_prompt: bool = False, tokenize: bool = True, chat_template: str | None = None,
                            **more: Any) -> list[int] | str:  # fmt: skip
        """Messages in the form that the model was trained on, as transformers gives it with ``return_dict=False``.

        Args:
            messages: ``{"role": …, "content": …}`` each, with whatever else the template reads.
            tools: JSON schemas of functions.
            add_generation_prompt: whether the text ends in what an assistant's message begins with.
            tokenize: False for the text.
            chat_template: a file that holds one, or the name of one of the folder's; None for the folder's own.
            more: what else the template reads, as ``enable_thinking=False``.

        Raises:
            isentrope.chat_template.ChatTemplateError: a ValueError; the folder has no template, or it refuses the messages.
        """
        key = chat_template, tools is not None
        if key not in self._templates:
            self._templates[key] = ChatTemplate.of(self._folder, *key)
        text = self._templates[key].render(messages, tools, add_generation_prompt, **more)
        return self.encode(text) if tokenize else text

    def encode(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text)

    def encode_prompt(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode_prompt(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens, special ones by their names; U+FFFD where their bytes are no UTF-8."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._tokenizer.decode(list(ids))

    def bytes_of(self, token: int) -> int:
        """Bytes of text that a token stands for; 0 for special ones."""
        return self._tokenizer.bytes_of(token)

    def stream(self) -> TextStream:
        """Text of tokens that come one by one."""
        return TextStream(self)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files of the tokenizer into a folder that exists; ``transformers.AutoTokenizer`` opens it."""
        self._tokenizer.save(os.fsencode(folder))

    def __len__(self) -> int:
        return self._tokenizer.size

    @property
    def eos_id(self) -> int:
        return self._tokenizer.eos_id

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end a sequence: ``eos_id``, then what else the folder's generation_config.json names."""
        return self._tokenizer.end_ids

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_id

    @property
    def kind(self) -> str:
        return self._tokenizer.kind


class TextStream:
    """Text of tokens that come one by one, never a part of a character: ``push`` gives what a token completes, ``flush`` the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from isentrope import _C

        self._stream = _C.TextStream(tokenizer._tokenizer)

    def push(self, token: int) -> str:
        return self._stream.push(token).decode(errors="replace")

    def flush(self) -> str:
        return self._stream.flush().decode(errors="replace")
