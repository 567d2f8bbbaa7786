"""Many runs of `isentrope train`, some at a time, with progress, for `isentrope compare` and `isentrope stability`.

A run that is finished is not run again, one that was stopped is resumed, and one that fails is named while the others go on.
Ctrl-C and SIGTERM are handed to the runs under way, which finish their step and write a checkpoint.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isentrope import json_lines

PROGRAM = os.environ.get("ISENTROPE_PROGRAM", "isentrope")  # set by the program that hands its command over to Python
LIBC = ctypes.CDLL(None)  # loaded before there are children
POLL, SHOW = 0.05, 0.5  # seconds between two questions whether a run has ended, and between two drawings of the progress


class CommandError(Exception):
    """What keeps the command from doing what was asked, and how to mend it."""


class Stopped(Exception):
    """A signal asked to stop; the runs have ended in order."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number  # as shells tell of a process that a signal ended


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number of at least 1")
    return int(text)


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Keeps others like it out of the folder, which it makes. Raises CommandError where there is another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a+")
    except OSError as error:
        raise CommandError(f"{folder}: cannot be written to: {error.strerror}; name another folder with --dir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CommandError(f"{folder}: another command (process {lock.read().strip() or 'unknown'}) is running in this "
                               "folder; wait for it, or name another folder with --dir") from None  # fmt: skip
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        yield


def succeeded(code: int, said: str) -> str:
    return "" if code == 0 else f"ended with exit code {code}"


@dataclass(frozen=True)
class Job:
    """One run: `isentrope train WORDS run.dir=FOLDER`, and --resume where the folder has one already."""

    folder: Path
    words: tuple[str, ...]
    steps: dict[str, int]  # of the phases that it trains
    done: str = "summary.json"  # the file of the folder that says that the run is finished
    # Asked at its end with the exit code and the last line that was said: "", or what went wrong.
    judge: Callable[[int, str], str] = succeeded

    @property
    def finished(self) -> bool:
        return (self.folder / self.done).exists()

    @property
    def state(self) -> str:
        begun = (self.folder / "metrics.jsonl").exists()
        return "finished" if self.finished else "to be resumed" if begun else "to be run"

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")


@dataclass
class Running:
    job: Job
    chain: Iterator[Job]
    process: subprocess.Popen[bytes]
    number: int
    begun: float
    log_begins: int
    last: dict[str, Any] = field(default_factory=dict)  # the newest line of metrics.jsonl
    seen: float = 0  # when it was read


def last_line(file: Path) -> dict[str, Any]:
    """The last whole line of a metrics.jsonl; {} where there is none."""
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, os.path.getsize(file) - 262144))  # a line with attention tables has some 10 kB
            lines = stream.read().split(b"\n")[:-1]
        return json_lines.parse_line(lines[-1], str(file), {"phase": str, "step": int}) if lines else {}
    except (OSError, json_lines.LineError):
        return {}


def trained_in(folder: Path) -> str:
    """The process of another trainer that runs in this folder; "" for none."""
    try:
        with open(folder / "lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of when the file is closed
            except BlockingIOError:
                return lock.read().strip() or "unknown"
    except OSError:
        pass
    return ""


def duration(seconds: float) -> str:
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {whole:02d}s" if minutes else f"{whole}s"


def end_with_parent() -> None:
    """In a child: SIGTERM when its parent has gone, however it went. Linux alone has this."""
    if sys.platform == "linux":
        LIBC.prctl(1, signal.SIGTERM)


class Runs:
    """Runs jobs, and says on standard error which have ended; on a terminal also which are under way, and for how long."""

    def __init__(self, plan: Sequence[Job], jobs: int, at_most: bool = False) -> None:
        """plan: all that is to be run, also what is finished; jobs: runs at a time; at_most: some may turn out to be needless."""
        self.plan, self.jobs = plan, jobs
        self.of = f"{'at most ' if at_most else ''}{len(plan)}"
        self.failures: list[str] = []
        self.number = sum(job.finished for job in plan)  # of the run that was begun last
        self.running: list[Running] = []
        self.waits = ""  # for which trainer
        self.stop = 0
        self.spent: dict[str, tuple[float, int]] = {}  # seconds and steps of each phase, by its name
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.shown = 0.0

    def run(self, chains: Iterable[Iterable[Job]]) -> None:
        """Runs the jobs of each chain one after the other, the next after the one before has ended, well or not.

        Raises:
            Stopped: a signal came; the runs under way have ended, and no more were begun.
        """
        asked = [iter(chain) for chain in chains]
        ready: list[tuple[Iterator[Job], Job]] = []
        handlers = self.listen()
        try:
            while True:
                ready[:0] = [(chain, job) for chain in asked for job in [next(chain, None)] if job is not None]
                asked = [chain for chain, job in ready if job.finished]
                ready = [(chain, job) for chain, job in ready if not job.finished]
                self.waits = ""
                for chain, job in ready if not self.stop else []:
                    if len(self.running) < self.jobs and not self.taken(job):
                        ready.remove((chain, job))
                        self.begin(chain, job)
                        break
                else:
                    asked += [run.chain for run in self.running if self.has_ended(run)]
                    self.running = [run for run in self.running if run.process.returncode is None]
                    if self.stop and not self.running:
                        raise Stopped(self.stop)
                    if not (asked or ready or self.running):
                        return
                    if not asked:
                        self.draw()
                        time.sleep(POLL)
        finally:
            for run in self.running:  # there are some after an error alone
                run.process.terminate()
                run.process.wait()
            self.clear()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def listen(self) -> dict[int, Any]:
        def received(number: int, _: Any) -> None:
            self.stop = self.stop or number
            for run in self.running:
                run.process.terminate()  # a second one ends it at once

        return {number: signal.signal(number, received) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
                if signal.getsignal(number) is not signal.SIG_IGN}  # fmt: skip

    def taken(self, job: Job) -> bool:
        """Whether the folder is in use: by another chain of these runs, or by a trainer that is about to end."""
        if any(run.job.folder == job.folder for run in self.running):
            return True
        process = trained_in(job.folder)
        if process:
            self.waits = f"waiting for another trainer (process {process}) in {job.folder}"
        return bool(process)

    def begin(self, chain: Iterator[Job], job: Job) -> None:
        resume = ["--resume"] if (job.folder / "metrics.jsonl").exists() else []
        command = [PROGRAM, "train", *job.words, f"run.dir={job.folder}", *resume]
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "a") as log:
            log.write(shlex.join(command) + "\n")
            log.flush()
            # A session of its own: Ctrl-C at the terminal comes to this process, which hands it on once.
            try:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                           start_new_session=True, preexec_fn=end_with_parent)  # fmt: skip
            except OSError as error:
                raise CommandError(f"{PROGRAM} cannot be started: {error.strerror}") from None
            self.number += 1
            self.running.append(Running(job, chain, process, self.number, time.monotonic(), log.tell()))

    def has_ended(self, run: Running) -> bool:
        code = run.process.poll()
        if code is None:
            return False
        job = run.job
        said = [line for line in job.log.read_bytes()[run.log_begins :].decode(errors="replace").splitlines() if line]
        took = duration(time.monotonic() - run.begun)
        wrong = job.judge(code, said[-1] if said else "")
        if not wrong and not job.finished:
            wrong = f"ended without {job.done}"
        if not wrong:
            self.say(f"run {run.number} of {self.of}  {job.folder}  {took}")
        elif not self.stop:
            tail = "".join(f"\n  | {line}" for line in said[-15:])
            self.failures.append(f"{job.folder} {wrong}; the whole log is {job.log}{tail}")
            self.say(f"run {run.number} of {self.of}  {job.folder}  {took}  failed: {said[-1] if said else wrong}")
        return True

    # ---- progress -----------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.shown:
            print("\r\033[2K", end="", file=sys.stderr, flush=True)
            self.shown = 0.0

    def draw(self) -> None:
        now = time.monotonic()
        if not self.terminal or now - self.shown < SHOW:
            return
        for run in self.running:
            self.read(run, now)
        text = self.status()
        print("\r\033[2K" + text[: shutil.get_terminal_size().columns - 1], end="", file=sys.stderr, flush=True)
        self.shown = now

    def read(self, run: Running, now: float) -> None:
        line = last_line(run.job.folder / "metrics.jsonl")
        before = run.last.get("step", 0) if run.last.get("phase") == line.get("phase") else None
        if line and before is not None and line["step"] > before:
            seconds, steps = self.spent.get(line["phase"], (0.0, 0))
            self.spent[line["phase"]] = seconds + now - run.seen, steps + line["step"] - before
        if line and (line["phase"], line["step"]) != (run.last.get("phase"), run.last.get("step")):
            run.last, run.seen = line, now

    def status(self) -> str:
        """ "run 3 of 12  clip/seed2: grpo 12/100  reward 0.412  entropy 0.731  14m 20s left" of the run that began first."""
        if not self.running:
            return self.waits
        run = self.running[0]
        numbers = ", ".join(str(one.number) for one in self.running)
        text = f"run {numbers} of {self.of}  {run.job.folder.parent.name}/{run.job.folder.name}"
        if phase := run.last.get("phase"):
            text += f": {phase} {run.last['step']}/{run.job.steps.get(phase, '?')}"
        for name, key in (("reward", "reward/mean"), ("loss", "loss"), ("entropy", "entropy/mean")):
            if isinstance(value := run.last.get(key), float) and not (name == "loss" and "reward/mean" in run.last):
                text += f"  {name} {value:.3f}"
        left = self.left()
        text += "" if left is None else f"  {duration(left)} left"
        return text + ("  stopping" if self.stop else "")

    def left(self) -> float | None:
        """Seconds that all runs still take; None while there is a phase of which no step has been timed."""
        total = 0.0
        under_way = {run.job.folder: run.last for run in self.running}
        for job in self.plan:
            last = {} if job.finished else under_way.get(job.folder, {})
            phases = [] if job.finished else list(job.steps)
            if (now := last.get("phase")) in phases:
                phases = phases[phases.index(now) :]
            for phase in phases:
                seconds, steps = self.spent.get(phase, (0.0, 0))
                if not steps:
                    return None
                total += seconds / steps * (job.steps[phase] - (last["step"] if phase == now else 0))
        return total / self.jobs
