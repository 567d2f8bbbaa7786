"""The texts that a model is measured on: .jsonl with {"text": …, "label": …} a line, or a file of plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isentrope.diagnose.measure import DiagnoseError

if TYPE_CHECKING:
    from isentrope.diagnose.model import Model


class Data:
    """Texts, or sequences of tokens, with whatever else their lines hold.

    Of .jsonl each line is an object; `text` is what the model reads, `label` what a probe is to find, other keys are kept in `records`.
    Plain text is one stream of tokens, cut into sequences of `max_length`.
    """

    def __init__(self, records: Sequence[dict[str, Any]], name: str = "data", stream: str | None = None) -> None:
        self.records = list(records)
        self.name = name
        self.stream = stream  # plain text
        self._cut: list[list[int]] | None = None

    @classmethod
    def of(cls, texts: Sequence[str], labels: Sequence[Any] | None = None) -> Data:
        """Of texts at hand."""
        return cls([{"text": text} if labels is None else {"text": text, "label": labels[i]} for i, text in enumerate(texts)])

    @classmethod
    def of_ids(cls, ids: Sequence[Sequence[int]], labels: Sequence[Any] | None = None) -> Data:
        """Of sequences of tokens at hand, for models without a tokenizer."""
        return cls([{"ids": list(one)} if labels is None else {"ids": list(one), "label": labels[i]} for i, one in enumerate(ids)])

    @classmethod
    def read(cls, file: Path, samples: int | None = None) -> Data:
        """Raises DiagnoseError. samples: lines of a .jsonl that are taken, evenly over the file; None for all."""
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise DiagnoseError(f"--data {file}: cannot be read: {why}; wanted a .jsonl of objects with a text, or plain text, in UTF-8") from None
        if file.suffix not in (".jsonl", ".json"):
            if not text.strip():
                raise DiagnoseError(f"--data {file}: is empty; wanted text")
            return cls([], str(file), text)
        records: list[dict[str, Any]] = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise DiagnoseError(f"--data {file}:{number}: {line[:50]!r} is no JSON object; wanted one a line, as {{\"text\": …}}")
            records.append(record)
        if not records:
            raise DiagnoseError(f"--data {file}: holds no line; wanted objects with a text")
        if samples is not None and len(records) > samples:
            records = [records[i * len(records) // samples] for i in range(samples)]
        return cls(records, str(file))

    def __len__(self) -> int:
        return len(self._cut) if self._cut is not None else len(self.records)

    def column(self, key: str, kind: type | tuple[type, ...] = str) -> list[Any]:
        """The values of a key of every line; raises DiagnoseError for a line without it."""
        for number, record in enumerate(self.records, 1):
            if not isinstance(record.get(key), kind):
                came = f"is {record[key]!r}" if key in record else "is missing"
                raise DiagnoseError(f"{self.name}: {key!r} of text {number} {came}; each line needs one")
        if not self.records:
            raise DiagnoseError(f"{self.name}: is plain text, which has no {key!r}; wanted a .jsonl whose lines have one")
        return [record[key] for record in self.records]

    @property
    def texts(self) -> list[str]:
        return self.column("text")

    @property
    def labels(self) -> list[Any]:
        """Raises DiagnoseError where there are none, or all are the same."""
        found = self.column("label", (str, int, float, bool))
        if len(set(found)) < 2:
            raise DiagnoseError(f"{self.name}: all {len(found)} labels are {found[0]!r}; wanted two kinds or more")
        return found

    def tokens(self, model: Model, max_length: int, samples: int | None = None) -> list[list[int]]:
        """The ids of each sequence, at most max_length; raises DiagnoseError for one of none."""
        if self.stream is not None:
            ids = model.encode(self.stream)
            cut = [ids[i : i + max_length] for i in range(0, len(ids), max_length)]
            if len(cut) > 1 and len(cut[-1]) < max_length:
                cut.pop()  # all of one length
            if samples is not None and len(cut) > samples:
                cut = [cut[i * len(cut) // samples] for i in range(samples)]
            self._cut = cut
            return cut
        if self.records and all("ids" in record for record in self.records):
            found = [record["ids"][:max_length] for record in self.records]
        else:
            found = [model.encode(text)[:max_length] for text in self.texts]
        for number, ids in enumerate(found, 1):
            if not ids:
                raise DiagnoseError(f"{self.name}: text {number} has no token; leave out empty texts")
        return found


def batches(ids: Sequence[Sequence[int]], size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(index [B], ids [B, T] int64, lengths [B]) of sequences of like lengths, padded on the right with 0."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # the longest first: what does not fit in memory is seen at once
    for start in range(0, len(order), size):
        index = order[start : start + size]
        lengths = [len(ids[i]) for i in index]
        padded = torch.zeros(len(index), max(lengths), dtype=torch.long)
        for row, i in enumerate(index):
            padded[row, : lengths[row]] = torch.tensor(ids[i])
        yield torch.tensor(index), padded, torch.tensor(lengths)
