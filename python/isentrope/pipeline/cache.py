"""A file of JSON lines by key, to which results are added as they are made, so that a command that was stopped goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from isentrope import json_lines
from isentrope.pipeline.document import PipelineError


class Cache:
    """The lines of a file, each an object with a "key". A last line without its end, of a process that was killed, is taken away.

    Raises:
        PipelineError: the file cannot be written, or a line is no object with a key.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "ab+") as stream:
                stream.seek(0)
                text = stream.read()
                whole = text.rfind(b"\n") + 1
                if whole < len(text):
                    stream.truncate(whole)
            self.lines = {line["key"]: line for line in json_lines.read(file, {"key": str})}
        except OSError as error:
            raise PipelineError(f"{file}: cannot be written: {error.strerror}; name another folder with dir=FOLDER") from None
        except json_lines.LineError as error:
            raise PipelineError(str(error)) from None

    def get(self, key: str) -> dict[str, Any] | None:
        return self.lines.get(key)

    def put(self, key: str, line: dict[str, Any]) -> dict[str, Any]:
        """Returns the line as it is read back. It is on disk when this returns."""
        text = json.dumps({"key": key, **line}, ensure_ascii=False)
        with open(self.file, "ab") as stream:
            stream.write(text.encode("utf-8", "surrogateescape") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.lines[key] = json.loads(text)
        return self.lines[key]


def replace(file: Path, text: str) -> None:
    """The file is there whole or as it was."""
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8", errors="surrogateescape")
    os.replace(beside, file)
