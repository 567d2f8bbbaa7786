"""The measures that there are: each module of measures/ has one, MEASURE, whose name is the module's with dashes."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from isentrope.diagnose import measures
from isentrope.diagnose.measure import DiagnoseError, Measure


def names() -> list[str]:
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(measures.__path__) if not module.name.startswith("_"))


def named(name: str) -> type[Measure]:
    """Raises DiagnoseError for a name that there is not."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1, 0.4)
        raise DiagnoseError(f"there is no measure {name!r}; " + (f"did you mean {near[0]}? There" if near else "there") + f" are {', '.join(names())}")
    found: type[Measure] = importlib.import_module(f"{measures.__name__}.{name.replace('-', '_')}").MEASURE
    return found
