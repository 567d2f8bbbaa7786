"""Isentrope: torch ops and a trainer that keep the entropy of transformers.

isentrope.entropy_attention, isentrope.sigma_linear, isentrope.token_entropy, isentrope.grpo_select and isentrope.grpo_loss are
differentiable ops for CPU and CUDA; isentrope.nn has modules over them, isentrope.integrations their place in other libraries, isentrope.reference
their mathematics in plain torch; isentrope.Trainer runs a YAML configuration, isentrope.Tokenizer is its
tokenizer.
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING

from isentrope import methods, nn, ops, reference
from isentrope.ops import *  # noqa: F403

__all__ = ["Tokenizer", "Trainer", "cmake_prefix_path", "methods", "nn", "reference"]
__all__ += ops.__all__

cmake_prefix_path: str = str(_Path(__file__).parent)
"""Where CMake finds this package: ``-DCMAKE_PREFIX_PATH=``, then ``find_package(Isentrope)`` and ``isentrope::ops``."""

if TYPE_CHECKING:
    __version__: str
    from isentrope.tokenizer import Tokenizer
    from isentrope.trainer import Trainer
else:

    def __dir__():
        return sorted({*globals(), *__all__, "__version__"})

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("isentrope")
        if name == "Trainer":  # the trainer's libraries are loaded by those who train
            from isentrope.trainer import Trainer

            return Trainer
        if name == "Tokenizer":
            from isentrope.tokenizer import Tokenizer

            return Tokenizer
        if f"{name}Output" in ops.__all__:
            return getattr(ops, name)  # an error that says the new name
        raise AttributeError(f"module 'isentrope' has no attribute {name!r}")
