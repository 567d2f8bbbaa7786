"""Calls of torch.ops.isentrope whose errors name the argument that came with another type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_WANTED: dict[str, tuple[Any, str]] = {
    "Tensor": (Tensor, "a tensor"),
    "List[Tensor]": ((list, tuple), "a list of tensors"),
    "str": (str, "a string"),
    "bool": (bool, "True or False"),
    "int": ((int, torch.SymInt), "an integer"),
    "float": ((int, float, torch.SymInt, torch.SymFloat), "a number"),
}


def call(op: Any, *args: object, **options: object) -> Any:
    """op, and for an argument of a type that torch refuses an error that names it. (Each op's own checks see types that fit.)"""
    try:
        return op(*args, **options)
    except RuntimeError:
        schema = op.default._schema
        given = {**dict(zip((x.name for x in schema.arguments), args)), **options}
        for argument in schema.arguments:
            kind = str(argument.type)
            optional = kind.startswith("Optional[")
            kind = kind[len("Optional[") : -1] if optional else kind
            value, (types, wanted) = given.get(argument.name), _WANTED[kind]
            if argument.name not in given or isinstance(value, (types, Tensor)) or (optional and value is None):
                continue
            came = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
            if kind == "Tensor" and isinstance(value, (int, float, list, tuple)):
                wanted += f", as torch.tensor({came})"
            raise TypeError(
                f"isentrope::{schema.name.removeprefix('isentrope::')}: {argument.name} is {came}, of type {type(value).__name__}; "
                f"wanted {wanted}{', or None' if optional else ''}"
            ) from None
        raise
