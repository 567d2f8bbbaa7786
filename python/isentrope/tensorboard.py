"""Metrics of a run as TensorBoard event files. The trainer starts it with ``metrics.tensorboard: true``.

``python -m isentrope.tensorboard RUN < /dev/null`` writes those of a run that was trained without it.
"""

from __future__ import annotations

import queue
import sys
import threading
from pathlib import Path
from typing import Any

from isentrope import json_lines


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """What TensorBoard shows of a line of metrics.jsonl (docs/metrics.md), by tag.

    ``<phase>/loss``, evaluations ``<phase>/<split>/greedy``, attention
    ``<phase>/attention/layers.0/{normalized,min,max_logit,bound,certified}`` (means over heads; min and max_logit over
    heads) and ``<phase>/attention/collapsed``, spectral norms ``<phase>/sigma/layers.0.q/{sigma,gamma,svd}``. A value
    that was not finite is NaN.
    """
    prefix = line["phase"] + "/"
    if "eval/split" in line:
        prefix += line["eval/split"] + "/"
    found = {}

    def add(tag: str, value: Any) -> None:
        if value is None or isinstance(value, (int, float)):
            found[prefix + tag] = float("nan") if value is None else float(value)

    for name, value in line.items():
        if name == "attention_entropy":
            for table in ("normalized", "max_logit", "bound", "certified"):
                for layer, heads in enumerate(value.get(table, [])):
                    finite = [x for x in heads if x is not None]
                    mean = sum(finite) / len(finite) if finite else None
                    add(
                        f"attention/layers.{layer}/{table}", max(finite, default=None) if table == "max_logit" else mean
                    )
                    if table == "normalized":
                        add(f"attention/layers.{layer}/min", min(finite, default=None))
            for share in ("collapsed", "overloaded"):
                add("attention/" + share, value.get(share))
        elif name == "sigma":
            for layer, figures in value.items():
                for what, figure in zip(("sigma", "gamma", "svd"), figures):
                    add(f"sigma/{layer}/{what}", figure)
        elif name not in ("phase", "step", "global_step", "eval/split"):
            add(name.removeprefix("eval/") if "eval/split" in line else name, value)
    return found


def main(argv: list[str] | None = None) -> int:
    """Writes RUN/tensorboard from config.yaml and metrics.jsonl as they are, then from standard input until its end.

    Says "ready" on standard output once the run's files are read, or what is missing."""
    (run,) = (Path(word) for word in (sys.argv[1:] if argv is None else argv))
    try:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        print(f"the Python package tensorboard is missing ({error}): pip install 'isentrope[tensorboard]'", flush=True)
        return 1

    folder = run / "tensorboard"
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    config, metrics = run / "config.yaml", run / "metrics.jsonl"
    lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    try:
        for line in json_lines.read(metrics):
            lines.put(line)
    except json_lines.LineError as error:
        print(error, flush=True)
        return 1
    print("ready", flush=True)

    def read() -> None:  # beside the writing, so that the trainer need not wait
        try:
            for _, line in json_lines.parse(sys.stdin.buffer, "standard input", {"phase": str, "step": int}):
                lines.put(line)
        finally:
            lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    with SummaryWriter(str(folder), max_queue=1000, flush_secs=5) as writer:
        if config.exists():
            text = config.read_text("utf-8", errors="replace")
            writer.add_text("config", "    " + text.replace("\n", "\n    "))  # a block of code in Markdown
        while (line := lines.get()) is not None:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
            writer.file_writer.add_summary(Summary(value=values), line["step"])  # add_scalar is slow
    return 0


if __name__ == "__main__":
    sys.exit(main())
