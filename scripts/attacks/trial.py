"""One trial: a function or the program run apart from everything else, and what became of it.

A function runs in a forked process, which costs milliseconds where starting a program costs a second, with limits on
memory and time. An outcome is

    done      it returned          refused   an error with a message that a user can act on
    crash     death by a signal    hang      no end within the time
    raw       an error in the words of C++, torch or Python's binding, or longer than a screen
"""

import contextlib
import faulthandler
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 2000  # characters: a message has to fit on a screen of 25 lines of 80
MEMORY = 6 << 30  # bytes a trial may take: what is out of proportion ends there and not with the machine
RAW = re.compile(
    r"std::|bad_alloc|map::at|c10::|Exception raised from|filesystem error|basic_string|vector::|terminate called|frame #\d"
    r"|json\.exception|yaml-cpp|YAML::|bad conversion|IntArrayRef|SymInt|Storage size calculation|DefaultCPUAllocator"
    r"|incompatible (function|constructor) arguments|codec can't decode|regex_error|stack_overflow|\bsto(i|l|ll|ul|ull|d|f)\b|what\(\)"
)


@dataclass
class Outcome:
    kind: str
    message: str = ""
    value: object = None


# What a configuration, a file or a step can be refused by. std::bad_alloc comes as MemoryError, map::at as IndexError.
REFUSALS = {"RuntimeError", "ValueError", "OSError", "FileNotFoundError", "PermissionError", "FloatingPointError"}


def of_error(message, name="RuntimeError"):
    if name not in REFUSALS:
        return Outcome("raw", f"{name}: {message}")
    if RAW.search(message) or len(message) > LONGEST:
        return Outcome("raw", message)
    return Outcome("refused", message) if message.strip() else Outcome("raw", "an error without a message")


def of_signal(number, output):
    return Outcome("crash", f"{signal.Signals(number).name}; {output[-500:]}".strip("; "))


def limit():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def child(function, folder, pipe):
    """The forked process: its result, or its error, as JSON through the pipe. Never returns."""
    try:
        os.setpgid(0, 0)
        nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, number)
        os.chdir(folder)
        faulthandler.disable()  # pytest's: a crash is the outcome, told by its signal
        limit()
        try:
            told = {"value": function()}
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is the outcome)
            told = {"error": type(error).__name__, "message": str(error)}
        data = json.dumps(told).encode()
        while data:
            data = data[os.write(pipe, data) :]
    finally:
        os._exit(0)


def start(function, folder):
    """(process id, the pipe's reading end) of a forked process."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(function, folder, writing)
    os.close(writing)
    return pid, reading


def kill(pid):
    for target in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            target(pid, signal.SIGKILL)


def run(function, folder, seconds):
    """The outcome of function() in a process of its own, whose working folder is `folder`."""
    pid, reading = start(function, folder)
    told, end = b"", time.monotonic() + seconds
    hung = False
    try:
        while True:
            ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
            hung = not ready
            part = b"" if hung else os.read(reading, 1 << 16)
            if not part:
                break
            told += part
    finally:
        os.close(reading)
        if hung:
            kill(pid)
        _, status = os.waitpid(pid, 0)
    if hung:
        return Outcome("hang", f"no end in {seconds:g} s")
    if os.WIFSIGNALED(status) or not told:
        output = (folder / "output").read_text(errors="replace") if (folder / "output").exists() else ""
        return of_signal(os.WTERMSIG(status), output) if os.WIFSIGNALED(status) else Outcome("crash", "ended without a result")
    told = json.loads(told)
    if "error" not in told:
        return Outcome("done", value=told["value"])
    return of_error(told["message"], told["error"])


def program():
    """The command line tool: of the build folder that ISENTROPE_BUILD names, or the first on the PATH."""
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    if not path or not os.path.exists(path):
        sys.exit("no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release")
    return os.path.abspath(path)


def run_program(arguments, folder, seconds):
    """The outcome of the command line tool; value: what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run([program(), *map(str, arguments)], cwd=folder, capture_output=True, timeout=seconds,
                              stdin=subprocess.DEVNULL, preexec_fn=limit, env=environment)  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome("hang", f"no end in {seconds:g} s")
    output, message = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if done.returncode < 0:
        return of_signal(-done.returncode, message)
    return Outcome("done", value=output) if done.returncode == 0 else of_error(message)


# ---- runs ----------------------------------------------------------------------------------------------------------

TIMES = {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu", "sigma/time_share", "ranks/bytes"}  # csrc/train/metrics.h: what may differ


def workplace(folder):
    """A folder in which the paths of configs/ mean what they mean in the tree, and all that is written stays."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def train(config, overrides, resume=False, steps=None):
    """A function for run(): trains in the working folder, to the end or for some calls of advance(); gives the results."""

    def function():
        import isentrope

        trainer = isentrope.Trainer(config, overrides=["run.threads=1", "run.device=cpu", *overrides], resume=resume)
        if steps is None:
            return trainer.train()
        for _ in range(steps):
            if trainer.finished:
                break
            trainer._trainer.advance()
        return trainer.results

    return function


def lines_of(path):
    """The metrics without headers and times, a dict a line; the text itself where it is no JSON."""
    told = []
    for line in path.read_bytes().split(b"\n"):
        if line.startswith(b'{"run": '):
            continue
        try:
            told.append({key: value for key, value in json.loads(line).items() if key not in TIMES})
        except (ValueError, AttributeError):
            told.append(line)
    return told


def contents(run):
    """Everything that a run left and that has to repeat itself, by path: times, the lock and event files are left out."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_file() and name != "lock" and not name.startswith("tensorboard/"):
            found[name] = lines_of(path) if name == "metrics.jsonl" else path.read_bytes()
    return found


def difference(one, other, leave_out=()):
    """Names of contents that differ or are on one side alone; leave_out: beginnings of names."""
    names = sorted(name for name in one.keys() | other.keys() if not name.startswith(tuple(leave_out)))
    return [name for name in names if one.get(name) != other.get(name)]
