"""Where the trainer shows its progress in a Python process."""

from __future__ import annotations

import os
import sys
import warnings


class Screen:
    """``sys.stdout``, which is looked up anew each time: notebooks, tests and ``redirect_stdout`` put others in its place."""

    def terminal(self) -> bool:
        """Whether it has a cursor that goes back to the beginning of a line."""
        try:
            return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        except (AttributeError, ValueError):  # None, or closed
            return False

    def columns(self) -> int:
        """Of a terminal; 0 where that is not known."""
        try:
            return os.get_terminal_size(sys.stdout.fileno()).columns
        except (AttributeError, ValueError, OSError):
            return 0

    def write(self, text: str) -> bool:
        """Whether it was written; a run does not end because no one can read of it."""
        try:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
            sys.stdout.flush()
        except (AttributeError, ValueError, OSError):
            return False
        return True

    def warn(self, text: str) -> None:
        warnings.warn(text, stacklevel=4)  # 2: the iteration, 3: train(), 4: its caller
