"""``python -m isentrope WORDS``: the command line of the program, with rewards in Python.

The program goes on here where ``--reward`` stands among its words, or its configuration has a reward of ``kind: python``. The words are
read by the same code (csrc/command_line.cpp), which asks for the functions when the configuration is found to want them.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from types import TracebackType

OURS = (os.path.dirname(os.path.abspath(__file__)) + os.sep, importlib.__file__, "<frozen ")


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
        from isentrope.reward_functions import load
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
