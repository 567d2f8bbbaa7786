"""Rewards that are functions in Python: found by name, called within a time limit, and what they return looked at."""

from __future__ import annotations

import ctypes
import difflib
import importlib
import importlib.util
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any

Reward = Callable[[list[str], list[str], list[dict[str, Any]]], Sequence[float | None]]
# With the seconds that it may take, 0 for any; None where it took longer.
CheckedReward = Callable[[list[str], list[str], list[dict[str, Any]], float], "list[float | None] | None"]


class RewardError(RuntimeError):
    """What is wrong with the name of a function."""


# ---- found by name -------------------------------------------------------------------------------------------------


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
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # what failed half way is no module
        raise
    return module


def module_of(place: str) -> ModuleType:
    if place.endswith(".py") or os.sep in place:
        return file_module(place)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # another one, that the module imports
        file = f"{place.replace('.', os.sep)}.py"
        raise RewardError(f"there is no module {place}, neither in {os.getcwd()} nor in the environment of {sys.executable}; "
                          f"a file is named with its suffix, as {file}") from None  # fmt: skip


def named(of: str, wanted: str, what: str) -> Any:
    """What the file or module OF calls WANTED, a name or several with dots between."""
    try:
        found: Any = module_of(of)
    except Exception as error:
        if not isinstance(error, RewardError):
            add_note(error, f"It was raised when {of} was imported for {what}.")
        raise
    for part in wanted.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [key for key in vars(found) if callable(getattr(found, key))], 1)
            raise RewardError(f"there is no {part} in {of}" + (f"; did you mean {near[0]}?" if near else ""))
        found = getattr(found, part)
    return found


def load(name: bytes, place: bytes, function: bytes, said: bytes) -> CheckedReward:
    """The reward FUNCTION of the file or module PLACE. name: what errors call it; said: what named it, in the words of an error."""
    of, wanted, what = os.fsdecode(place), os.fsdecode(function), os.fsdecode(said)
    try:
        found = named(of, wanted, what)
        if not callable(found):
            raise RewardError(f"{wanted} in {of} is {shown(found)}; wanted a function of (prompts, completions, meta)")
    except RewardError as error:
        raise RewardError(f"{what}: {error}") from None
    try:
        return checked_reward(os.fsdecode(name), found)
    except TypeError as error:
        raise RewardError(f"{what}: {error}") from None


# ---- called --------------------------------------------------------------------------------------------------------


class _TimeIsUp(BaseException):
    """Raised in a function that takes too long; no Exception, so that `except Exception` does not keep it."""


# Nobody's by default, so that functions may use SIGALRM themselves, as math-verify does.
_SIGNAL: int = getattr(signal, "SIGRTMIN", signal.SIGUSR2)
_AGAIN = 1.0  # seconds until a function that caught it is told once more


def within(seconds: float, call: Callable[[], Any]) -> tuple[Any, bool]:
    """(what call() returns, True), or (None, False) where it took longer than so many seconds, 0 for any.

    In the main thread a signal ends it, in Python code, in regular expressions, and in a wait of the system (time.sleep, a socket, a
    subprocess). In another thread it is ended between two instructions of Python. Other code in C is ended in neither.
    """
    if seconds <= 0:
        return call(), True
    start, stop = (_signals if threading.current_thread() is threading.main_thread() else _exceptions)(seconds)

    def end() -> None:
        while True:
            try:
                stop()
                return
            except _TimeIsUp:  # between the end of the call and here
                continue

    try:
        try:
            start()
            return call(), True
        finally:
            end()
    except _TimeIsUp:
        end()
        return None, False


Switches = tuple[Callable[[], None], Callable[[], None]]


def _signals(seconds: float) -> Switches:
    """start() and stop(); from the one to the other _TimeIsUp is raised in the main thread, which this is."""
    from isentrope import _C

    def received(_: int, __: FrameType | None) -> None:
        raise _TimeIsUp

    before = signal.signal(_SIGNAL, received)
    alarm: _C.Alarm | None = None

    def start() -> None:
        nonlocal alarm
        alarm = _C.Alarm(seconds, _AGAIN, _SIGNAL)

    def stop() -> None:
        if alarm:
            alarm.stop()  # a signal that was sent raises when this returns
        signal.signal(_SIGNAL, before)

    return start, stop


def _exceptions(seconds: float) -> Switches:
    """The same in another thread."""
    thread, done = threading.get_ident(), threading.Event()
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):
            raise_in(ctypes.c_ulong(thread), ctypes.py_object(_TimeIsUp))
            wait = _AGAIN

    watcher = threading.Thread(target=watch, name="isentrope reward limit", daemon=True)

    def stop() -> None:
        done.set()
        if watcher.ident:
            watcher.join()
        raise_in(ctypes.c_ulong(thread), None)  # one that is still to be raised

    return watcher.start, stop


def checked_rewards(rewards: Any) -> dict[bytes, CheckedReward]:
    if rewards is None:
        return {}
    if not isinstance(rewards, Mapping):
        raise TypeError(f'rewards is {shown(rewards)}; wanted {{"name": function}}')
    for name, function in rewards.items():
        if not isinstance(name, str) or not is_text(name):
            raise TypeError(f"rewards has the name {shown(name)}; wanted a string, the kind in reward: [{{kind: NAME}}]")
        if not callable(function):
            raise TypeError(f'rewards["{name}"] is {shown(function)}; wanted fn(prompts, completions, meta)')
    return {name.encode("utf-8", "surrogateescape"): checked_reward(name, function) for name, function in rewards.items()}


def checked_reward(name: str, function: Reward) -> CheckedReward:
    try:
        inspect.signature(function).bind([], [], [])
    except TypeError as error:
        raise TypeError(f'the reward "{name}" is called with (prompts, completions, meta), which its function does not take: '
                        f"{error}") from None  # fmt: skip
    except ValueError:
        pass  # a built-in that tells no signature

    def reward(
        prompts: list[str], completions: list[str], meta: list[dict[str, Any]], seconds: float = 0
    ) -> list[float | None] | None:
        count, first = len(completions), prompts[0] if prompts else ""  # before the function has the lists
        try:
            scores, whole = within(seconds, lambda: function(prompts, completions, meta))
        except Exception as error:
            text = first if len(first) <= 80 else first[:80] + "…"
            add_note(error, f'It was raised in the reward "{name}", asked about {count} completions, of which the first is to the '
                            f"prompt {text!r}.")  # fmt: skip
            raise
        return numbers(name, scores, count) if whole else None

    return reward


def add_note(error: BaseException, note: str) -> None:
    if hasattr(error, "add_note"):  # from Python 3.11 on
        error.add_note(note)


# ---- what comes back -----------------------------------------------------------------------------------------------


def numbers(name: str, scores: Any, count: int) -> list[float | None]:
    tolist = getattr(scores, "tolist", None)  # of arrays, tensors, series
    values = tolist() if callable(tolist) else scores
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray, memoryview)):
        raise RuntimeError(f'the reward "{name}" returned {shown(scores)}; wanted a list, tuple, array or tensor of {count} '
                           "numbers, one for each completion")
    found: list[float | None] = []
    for i, value in enumerate(values):
        try:
            if isinstance(value, (str, bytes, bytearray)):
                raise TypeError
            found.append(None if value is None else float(value))  # None: it does not apply
        except (TypeError, ValueError, OverflowError):
            raise RuntimeError(f'the reward "{name}" returned {shown(value)} as score {i} of {count}; wanted a number, or None '
                               "where it does not apply to a completion") from None
    return found


def shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "of which repr() fails"
    return f"a {type(value).__name__}, {text if len(text) <= 200 else text[:200] + '…'}"


def is_text(value: str) -> bool:
    """Whether it has a form in bytes; file names that are no UTF-8 have, as Python reads them."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
