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


def _fits(version: str, cuda: str) -> None:
    """Raises where this torch is not the one that the package was built against: its symbols would be missing."""

    def minor(text: str) -> str:
        return ".".join(text.split("+")[0].split(".")[:2])

    if minor(version) != minor(torch.__version__) or (cuda and not torch.version.cuda):
        built = f"torch {version}" + (f" with CUDA {cuda}" if cuda else "")
        raise ImportError(
            f"isentrope was built for {built}, and this environment has torch {torch.__version__}. Build it again for this "
            f"one, in the source tree: pip install --no-build-isolation --no-deps --force-reinstall . "
            f"Or install that torch: pip install 'torch=={minor(version)}.*'"
        )


path = _find()
if "ISENTROPE_LIBRARY" not in os.environ:
    from isentrope import _build  # written by CMake

    _fits(_build.TORCH_VERSION, _build.TORCH_CUDA)
try:
    torch.ops.load_library(str(path))
except OSError as error:
    raise ImportError(
        f"isentrope: {path} cannot be loaded: {error.__cause__ or error}. Wanted libisentrope_ops.so, built for torch {torch.__version__}"
    ) from None
if not hasattr(torch.ops.isentrope, "entropy_attention"):
    raise ImportError(f"isentrope: {path} has no ops of isentrope; wanted libisentrope_ops.so, or a CMake build folder with it")
