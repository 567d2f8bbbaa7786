"""A method of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope


def register(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Makes a function of tensors the torch operator isentrope::method_<name>, which an entry {kind: op, op: <name>} of a phase's
    lists reward, advantage or weight, or of objective.entropy, calls. The trainer finds its arguments by name (csrc/methods/own.h); those
    that are no tensors are the entry's other keys.

    Args:
        name: letters, digits and _; no method of the registry has it.

    Returns:
        A decorator of a function with annotated arguments that returns one new tensor, which has the shape of its first argument: of a
        weight the factor [B, T], of a reward what is added to it [B], of an advantage the new ones [B, T], under objective.entropy
        what each token's entropy weighs in the bonus [B, T], the coefficient included. A function with an argument state, [n] float64,
        keeps that from step to step: it returns (result, new state [n]), two new tensors, and the entry's key state has the n numbers that
        it begins with; checkpoints hold it. Its results are constants to autograd.

    Raises:
        ValueError: the name is taken, or is none.

    Source: torch.library.custom_op; csrc/methods/own.h.
    """
    if not name.isidentifier() or hasattr(torch.ops.isentrope, f"method_{name}"):
        raise ValueError(f"isentrope.methods.register: name is {name!r}; wanted letters, digits and _, and no name that is taken")

    def decorate(function: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(f"isentrope::method_{name}", function, mutates_args=())
        signature = inspect.signature(function)

        def shapes(*args: Any, **options: Any) -> Any:
            given = signature.bind(*args, **options).arguments
            made = torch.empty_like(next(iter(given.values())))
            return (made, torch.empty_like(given["state"])) if "state" in given else made

        op.register_fake(shapes)
        return op

    return decorate
