"""Calls of torch.ops.isentrope whose errors name the argument that came with another type."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

# What torch takes for a number: those of numpy too, and a tensor of one.
INTEGER = (int, torch.SymInt, Tensor, numbers.Integral)
NUMBER = (int, float, torch.SymInt, torch.SymFloat, Tensor, numbers.Real)
_WANTED: dict[str, tuple[Any, str]] = {
    "Tensor": (Tensor, "a tensor"),
    "List[Tensor]": ((list, tuple), "a list of tensors"),
    "str": (str, "a string"),
    "bool": ((bool, Tensor), "True or False"),
    "int": (INTEGER, "an integer"),
    "float": (NUMBER, "a number"),
    "List[int]": ((list, tuple), "a list of integers"),
    "List[float]": ((list, tuple), "a list of numbers"),
}
# The arguments that are True or False, of which torch would take None for False.
_FLAGS = frozenset(["causal", "return_entropy", "moments", "statistics"])


def wrong_type(op: str, name: str, value: object, wanted: str) -> TypeError:
    came = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
    return TypeError(f"isentrope::{op}: {name} is {came}, of type {type(value).__name__}; wanted {wanted}")


def call(op: Any, *args: object, **options: object) -> Any:
    """op, and for an argument of a type that torch refuses an error that names it. (Each op's own checks see types that fit.)"""
    for name, value in options.items():
        if value is None and name in _FLAGS:
            raise wrong_type(op.__name__, name, value, "True or False")
    try:
        return op(*args, **options)
    except RuntimeError:
        schema = op.default._schema
        name = schema.name.removeprefix("isentrope::")
        given = {**dict(zip((x.name for x in schema.arguments), args)), **options}
        for argument in schema.arguments:
            kind = str(argument.type)
            optional = kind.startswith("Optional[")
            kind = kind[len("Optional[") : -1] if optional else kind
            value, (types, wanted) = given.get(argument.name), _WANTED[kind]
            if argument.name not in given or (optional and value is None):
                continue
            if kind == "List[Tensor]" and isinstance(value, types):
                for i, x in enumerate(value):
                    _check_tensor(name, f"{argument.name}[{i}]", x, "a tensor")
            elif not isinstance(value, types):
                if kind == "Tensor" and isinstance(value, (int, float, list, tuple)) and len(repr(value)) <= 40:
                    many = argument.name == "temperature" and isinstance(value, (int, float))  # one a head
                    wanted += f", as torch.full([H], {value!r})" if many else f", as torch.tensor({value!r})"
                raise wrong_type(name, argument.name, value, wanted + (", or None" if optional else "")) from None
            elif kind == "Tensor":
                _check_tensor(name, argument.name, value, wanted)
            elif kind == "int" and isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"isentrope::{name}: {argument.name} is {value}; wanted an integer of 64 bits") from None
        raise


def _check_tensor(op: str, name: str, x, wanted: str) -> None:
    if not isinstance(x, Tensor):
        raise wrong_type(op, name, x, wanted) from None
    if x.layout != torch.strided:
        raise TypeError(f"isentrope::{op}: {name} has the layout {x.layout}; wanted a dense tensor, as {name}.to_dense()") from None
