"""Reads the files of a run that hold one JSON object a line (docs/metrics.md).

Needs the standard library alone, so that scripts can load the file by its path without importing the package and torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO


class LineError(ValueError):
    """A line that is no object with the keys that were asked for: file, number, and how to mend it."""


def parse(stream: BinaryIO, name: str, keys: Mapping[str, type] = {}) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each whole line but headers, {"run": {…}}, which headers() gives.

    A line ends with \\n and nothing else: U+2028, U+0085 and their like stand within texts. A last line without its end is
    being written, or was when its writer was killed: it is left out. A number that is not finite is None, written as null, NaN
    or Infinity.

    Raises:
        LineError: a line that is no object with these keys.
    """
    for number, line in enumerate(stream, 1):
        if not line.endswith(b"\n"):
            return
        if line.startswith(b'{"run": '):
            parse_line(line, f"{name}:{number}", {"run": dict})
            continue
        yield number, parse_line(line, f"{name}:{number}", keys)


def parse_line(line: bytes, place: str, keys: Mapping[str, type] = {}) -> dict[str, Any]:
    """The object of one whole line; place: what an error names, FILE:NUMBER. Raises LineError."""
    try:
        parsed = json.loads(line.decode(), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict) or not all(isinstance(parsed.get(key), kind) for key, kind in keys.items()):
        wanted = f"an object with {', '.join(keys)}" if keys else "an object"
        raise LineError(f"{place}: not {wanted}: {line[:60]!r}; mend the line or move the file away")
    return parsed


def read(file: str | os.PathLike[str], keys: Mapping[str, type] = {"phase": str, "step": int}) -> Iterator[dict[str, Any]]:
    """The objects of a file's whole lines, as parse() gives them; none where there is no file."""
    try:
        stream = open(file, "rb")
    except FileNotFoundError:
        return
    with stream:
        for _, parsed in parse(stream, os.fspath(file), keys):
            yield parsed


def headers(file: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What the run says it is made of: the objects behind "run" in metrics.jsonl, the first one and those of resumptions that
    changed it."""
    with open(file, "rb") as stream:
        return [
            parse_line(line, f"{os.fspath(file)}:{number}", {"run": dict})["run"]
            for number, line in enumerate(stream, 1)
            if line.startswith(b'{"run": ') and line.endswith(b"\n")
        ]
