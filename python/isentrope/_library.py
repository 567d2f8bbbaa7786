"""Loads the compiled ops once: lib/libisentrope_ops.so of the package, or that of a build folder named by
ISENTROPE_LIBRARY (the file itself, or a folder that has it at its top or under lib/)."""

import os
from pathlib import Path

import torch

_NAME = "libisentrope_ops.so"


def _find() -> Path:
    named = os.environ.get("ISENTROPE_LIBRARY")
    root = Path(named) if named else Path(__file__).resolve().parent
    places = [root / _NAME, root / "lib" / _NAME] + ([root] if root.is_file() else [])
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ImportError(
        f"isentrope: the compiled ops are not built: no {looked}. "
        + (
            "ISENTROPE_LIBRARY must name the library or a build folder."
            if named
            else "Run `pip install --no-build-isolation .` in the source tree, "
            "or set ISENTROPE_LIBRARY to a CMake build folder."
        )
    )


path = _find()
torch.ops.load_library(str(path))
