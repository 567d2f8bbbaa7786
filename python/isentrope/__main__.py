"""``python -m isentrope WORDS``: the command line of the program, with functions in Python for ``--reward``.

The program goes on here where ``--reward`` stands among its words. They are read by the same code (csrc/command_line.cpp), which asks
for the functions when the configuration is found to want them.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

OURS = (os.path.dirname(os.path.abspath(__file__)) + os.sep, importlib.__file__, "<frozen ")


class RewardError(Exception):
    """What is wrong with the words behind --reward."""


def file_module(place: str) -> ModuleType:
    """Runs a file as a module, once, with its folder on the path as that of a script is."""
    path = os.path.realpath(place)
    if not os.path.isfile(path):
        raise RewardError(f"there is no file {place}" + (f" (seen from {os.getcwd()})" if not os.path.isabs(place) else ""))
    name = os.path.basename(path).removesuffix(".py")
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == path:
        return loaded
    name = name if loaded is None else f"reward_{name}"  # json.py takes no one's place
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"{place} is no file of Python; its name ends in .py")
    sys.path.insert(0, os.path.dirname(path))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def module_of(place: str) -> ModuleType:
    if place.endswith(".py") or os.sep in place:
        return file_module(place)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # another one, that the module imports
        file = f"{place.replace('.', os.sep)}.py"
        raise RewardError(f"there is no module {place}, neither in {os.getcwd()} nor in the environment of {sys.executable}; "
                          f"a file is named with its suffix, as {file}") from None  # fmt: skip


def load(name: bytes, place: bytes, function: bytes) -> Callable[..., list[float]]:
    """The reward that ``--reward NAME=PLACE:FUNCTION`` names, with what it returns looked at."""
    from isentrope.trainer import _checked_reward, _shown

    of, wanted = os.fsdecode(place), os.fsdecode(function)
    try:
        found: Any = module_of(of)
        for part in wanted.split("."):
            if not hasattr(found, part):
                near = difflib.get_close_matches(part, [key for key in vars(found) if callable(getattr(found, key))], 1)
                raise RewardError(f"there is no {part} in {of}" + (f"; did you mean {near[0]}?" if near else ""))
            found = getattr(found, part)
        if not callable(found):
            raise RewardError(f"{wanted} in {of} is {_shown(found)}; wanted a function of (prompts, completions, meta)")
    except RewardError as error:
        raise RewardError(f"--reward {of}:{wanted}: {error}") from None
    try:
        return _checked_reward(os.fsdecode(name), found)
    except TypeError as error:
        raise RewardError(f"--reward {of}:{wanted}: {error}") from None


def of_user(place: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is neither this package's nor the import system's."""
    while place and place.tb_frame.f_code.co_filename.startswith(OURS):
        place = place.tb_next
    return place


def complain(error: BaseException) -> None:
    place = of_user(error.__traceback__)
    if place is None and not isinstance(error, SyntaxError):
        print(f"isentrope: {error}", file=sys.stderr)
    else:
        traceback.print_exception(type(error), error, place)


def main() -> int:
    """The command. Returns its exit code, that of the program."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the program has its own way to stop
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(line_buffering=True)  # in order with what the program writes
    import torch  # noqa: F401  (loads the libraries that the trainer links)

    if os.environ.get("PYTHONSAFEPATH") == "isentrope":  # the program's; not for processes that a function starts
        del os.environ["PYTHONSAFEPATH"]
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        from isentrope import _C
    except ImportError as error:
        print(f"isentrope: the package was built without the trainer: {error}", file=sys.stderr)
        return 1
    if sys.executable:
        os.environ.setdefault("ISENTROPE_PYTHON", sys.executable)
    program = sys._xoptions.get("isentrope_program", "isentrope")
    try:
        code = _C.run([os.fsencode(word) for word in [str(program), *sys.argv[1:]]], load)
        if sys.stdout:
            sys.stdout.flush()
        _C.end_output()
    except BaseException as error:  # of the user's code: SystemExit is an error of it too
        complain(error)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
