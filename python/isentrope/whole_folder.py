"""A folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into, which takes its name at the end, and is removed after an error.

    Args:
        folder: is not there yet, or is empty. What else lies beside it, under whatever name, stays as it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        making = folder.with_name(f"{folder.name}.{number or ''}tmp")
        try:
            making.mkdir()
            break
        except FileExistsError:
            continue
    try:
        yield making
        if folder.exists():
            folder.rmdir()
        making.rename(folder)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
