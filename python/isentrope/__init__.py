"""Isentrope: torch ops and a trainer that keep the entropy of transformers.

isentrope.entropy_attention, isentrope.sigma_linear, isentrope.token_entropy, isentrope.grpo_select and isentrope.grpo_loss are
differentiable ops for CPU and CUDA; isentrope.nn has modules over them, isentrope.integrations their place in other libraries, isentrope.reference
their mathematics in plain torch; isentrope.Trainer runs a YAML configuration.
"""

from pathlib import Path as _Path

from isentrope import nn, reference
from isentrope.ops import *  # noqa: F403
from isentrope.ops import __all__ as _ops

__all__ = [*_ops, "Trainer", "cmake_prefix_path", "nn", "reference"]

cmake_prefix_path = str(_Path(__file__).parent)
"""Where CMake finds this package: ``-DCMAKE_PREFIX_PATH=``, then ``find_package(Isentrope)`` and ``isentrope::ops``."""


def __getattr__(name: str):
    if name == "Trainer":  # the trainer's libraries are loaded by those who train
        from isentrope.trainer import Trainer

        return Trainer
    raise AttributeError(f"module 'isentrope' has no attribute {name!r}")
