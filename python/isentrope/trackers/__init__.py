"""The metrics of a run in other programs: TensorBoard, Weights & Biases, MLflow, Trackio. The trainer starts this with
``metrics.tensorboard`` and ``metrics.trackers``, one process for all of them.

``python -m isentrope.trackers RUN NAME … < /dev/null`` gives them a run that was trained without.

Each sink works in a thread of its own: what one of them does, or takes, is nothing to the others or to training. One that fails is told
of in a warning on standard error and left alone from there on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from isentrope import json_lines
from isentrope.tensorboard import TensorBoard
from isentrope.trackers import sinks

# Lines that may wait for a sink. One that is further behind hangs, and would take the memory of the machine.
MOST_WAITING = 100_000
# Seconds between notes of what was sent, of which a kill loses those of the last: they are sent twice then.
NOTED_EVERY = 5.0


class Sink(Protocol):
    """Where metrics go. Built before training; the other three are called from one thread."""

    module: str  # of the package

    def __init__(self, run: Run) -> None: ...
    def start(self) -> None: ...
    def write(self, line: dict[str, Any]) -> None: ...
    def finish(self) -> None: ...


# name → its class, and the package that it needs as pip knows it
SINKS: dict[str, tuple[type[Sink], str]] = {
    "tensorboard": (TensorBoard, "'isentrope[tensorboard]'"),
    "wandb": (sinks.Wandb, "wandb"),
    "mlflow": (sinks.Mlflow, "mlflow"),
    "trackio": (sinks.Trackio, "trackio"),
}


@dataclass
class Run:
    """A run as the sinks see it."""

    folder: Path
    project: str = ""  # "" for what the package's environment says, or isentrope
    # trackers.json: {"wandb": {"id": "…", "sent": [global_step, kind]}}. Whatever is new in it is written by note().
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def config_text(self) -> str:
        file = self.folder / "config.yaml"
        return file.read_text("utf-8", errors="replace") if file.exists() else ""

    def config(self) -> dict[str, Any]:
        """config.yaml as an object; its text where there is no PyYAML, which wandb, mlflow and trackio bring."""
        try:
            import yaml
        except ImportError:
            return {"config.yaml": self.config_text}
        return yaml.safe_load(self.config_text) or {}

    def id_of(self, sink: str) -> str:
        """Under which the sink knows this run, the same after a resumption."""
        return str(self.kept.setdefault(sink, {}).setdefault("id", secrets.token_hex(8)))

    def note(self) -> None:
        """Writes trackers.json. Raises OSError."""
        with self._lock:
            file = self.folder / "trackers.json"
            beside = file.with_name("trackers.json.part")
            beside.write_text(json.dumps(self.kept, indent=1) + "\n", "utf-8")
            os.replace(beside, file)

    def read(self) -> None:
        try:
            kept = json.loads((self.folder / "trackers.json").read_text("utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(kept, dict):
            self.kept = {name: value for name, value in kept.items() if isinstance(value, dict) and isinstance(value.get("id"), str)}


def place(line: dict[str, Any]) -> list[int]:
    """[steps of the run so far, 0 of a step, 1 and 2 of its evaluations]: grows with the lines of metrics.jsonl."""
    kinds = {"validation": 1, "test": 2}
    return [line.get("global_step", line["step"]), kinds.get(line.get("eval/split", ""), 0)]


class Feed:
    """A sink with its thread and what waits for it."""

    def __init__(self, name: str, sink: Sink, run: Run) -> None:
        self.name, self.sink, self.run = name, sink, run
        self.lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.failed = False
        # TensorBoard's files are written anew; the others know the lines up to here.
        self.sent = [] if name == "tensorboard" else run.kept.get(name, {}).get("sent", [])
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)

    def put(self, line: dict[str, Any] | None) -> None:
        if self.failed:
            return
        if self.lines.qsize() > MOST_WAITING:
            return self.fail(f"it is {MOST_WAITING} lines behind")
        self.lines.put(line)

    def fail(self, what: object) -> None:
        if not self.failed:
            self.failed = True
            warn(f"{self.name}: {what}; the run goes on without it")

    def _work(self) -> None:
        noted = time.monotonic()
        try:
            self.sink.start()
            while not self.failed and (line := self.lines.get()) is not None:
                here = place(line)
                if self.name != "tensorboard":
                    if self.sent and here <= self.sent:
                        continue  # before a resumption, or the step that is made again: its numbers are the same
                    self.sent = here
                self.sink.write(line)
                if self.name != "tensorboard" and time.monotonic() - noted > NOTED_EVERY:
                    self._note()
                    noted = time.monotonic()
            self.sink.finish()
            self._note()
        except BaseException as error:  # whatever the package does, SystemExit too
            self.fail(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")

    def _note(self) -> None:
        if self.name in self.run.kept:
            self.run.kept[self.name]["sent"] = self.sent
            self.run.note()


def warn(text: str) -> None:
    # In one write: print() gives the end of the line apart, and another sink's thread may come between.
    sys.stderr.write(f"warning: metrics.trackers: {text}\n")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m isentrope.trackers", description="Gives the metrics of a run to trackers.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("names", nargs="+", choices=sorted(SINKS), metavar="NAME", help=", ".join(sorted(SINKS)))
    parser.add_argument("--project", default="", help="of wandb and trackio, the experiment of mlflow")
    parser.add_argument("--timeout", type=float, default=60, help="seconds that trackers may take at the end")
    parser.add_argument("--new", action="store_true", help="the run begins: older runs of this folder are others")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Gives metrics.jsonl as it is to the sinks, then the lines of standard input until its end.

    Says "ready" on standard output once the packages and the run's files are there, or what is missing. All else that is printed
    goes to standard error.
    """
    words = arguments().parse_args(argv)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # nobody reads standard output behind "ready"
    os.dup2(2, 1)

    def answer(text: object) -> None:
        print(text, file=answers, flush=True)

    run = Run(words.run, words.project)
    if not words.new:
        run.read()
    feeds = []
    try:
        for name in words.names:
            sink, package = SINKS[name]
            try:
                importlib.import_module(sink.module)
            except Exception as error:
                reason = " ".join(str(error).split())
                answer(f"the Python package {name} is missing ({reason}): pip install {package}")
                return 1
            feeds.append(Feed(name, sink(run), run))
        before = list(json_lines.read(run.folder / "metrics.jsonl"))
        if words.names != ["tensorboard"]:
            run.note()
    except (json_lines.LineError, OSError) as error:
        answer(error)
        return 1
    for feed in feeds:
        for line in before:
            feed.put(line)
        feed.thread.start()
    answer("ready")

    try:
        for _, line in json_lines.parse(sys.stdin.buffer, "standard input", {"phase": str, "step": int}):
            for feed in feeds:
                feed.put(line)
    finally:
        for feed in feeds:
            feed.lines.put(None)
        end = time.monotonic() + words.timeout
        for feed in feeds:  # files of this machine are waited for as long as they take
            feed.thread.join(None if feed.name == "tensorboard" else max(end - time.monotonic(), 0))
            if feed.thread.is_alive() and not feed.failed:
                feed.fail(f"has not ended after {words.timeout:g} s (metrics.timeout_s); what it has not sent by now is lost")
    code = int(any(feed.failed for feed in feeds))
    if any(feed.thread.is_alive() for feed in feeds):
        sys.stderr.flush()
        os._exit(code)  # threads and exit handlers of a package that hangs are not waited for
    return code
