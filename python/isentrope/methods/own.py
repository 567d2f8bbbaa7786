"""A method of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope


def register(name: str) -> Callable[[Callable[..., Tensor]], Any]:
    """Makes a function of tensors the torch operator isentrope::method_<name>, which an entry {kind: op, op: <name>} of a phase's
    lists reward, advantage or weight, or of objective.entropy, calls. The trainer finds its arguments by name (csrc/methods/own.h); those that are no tensors are
    the entry's other keys.

    Args:
        name: letters, digits and _; no method of the registry has it.

    Returns:
        A decorator of a function with annotated arguments that returns one new tensor, which has the shape of its first argument: of a
        weight the factor [B, T], of a reward what is added to it [B], of an advantage the new ones [B, T], under objective.entropy
        what each token's entropy weighs in the bonus [B, T], the coefficient included. Its result is a constant to autograd.

    Source: torch.library.custom_op; csrc/methods/own.h.
    """
    if not name.isidentifier() or hasattr(torch.ops.isentrope, f"method_{name}"):
        raise ValueError(f"isentrope.methods.register: name is {name!r}; wanted letters, digits and _, and no name that is taken")

    def decorate(function: Callable[..., Tensor]) -> Any:
        op = torch.library.custom_op(f"isentrope::method_{name}", function, mutates_args=())
        op.register_fake(lambda first, *_args, **_options: torch.empty_like(first))
        return op

    return decorate
