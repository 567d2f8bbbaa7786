"""Metrics of a run as TensorBoard event files: the sink that ``metrics.tensorboard: true`` adds to isentrope.trackers.

``python -m isentrope.tensorboard RUN < /dev/null`` writes those of a run that was trained without it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isentrope.trackers import Run


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
                rows = value.get(table, [])
                for layer, heads in zip(value.get("layers") or range(len(rows)), rows):
                    finite = [x for x in heads if x is not None]
                    mean = sum(finite) / len(finite) if finite else None
                    add(
                        f"attention/layers.{layer}/{table}", max(finite, default=None) if table == "max_logit" else mean
                    )
                    if table == "normalized":
                        add(f"attention/layers.{layer}/min", min(finite, default=None))
            for share in ("collapsed", "overloaded"):
                add("attention/" + share, value.get(share))
        elif name == "mixer_state":
            for table in ("normalized", "rank"):
                for layer, heads in zip(value["layers"], value[table]):
                    finite = [x for x in heads or [] if x is not None]
                    if finite:
                        add(f"mixer_state/layers.{layer}/{table}", sum(finite) / len(finite))
        elif name == "sigma":
            for layer, figures in value.items():
                for what, figure in zip(("sigma", "gamma", "svd"), figures):
                    add(f"sigma/{layer}/{what}", figure)
        elif name not in ("phase", "step", "global_step", "eval/split"):
            add(name.removeprefix("eval/") if "eval/split" in line else name, value)
    return found


class TensorBoard:
    """RUN/tensorboard, anew from the first line of metrics.jsonl on (isentrope.trackers)."""

    module = "torch.utils.tensorboard"

    def __init__(self, run: Run) -> None:
        self.folder = run.folder / "tensorboard"
        self.config = run.config_text
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()

    def start(self) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self.summary: Any = Summary
        self.writer: Any = SummaryWriter(str(self.folder), max_queue=1000, flush_secs=5)
        if self.config:
            self.writer.add_text("config", "    " + self.config.replace("\n", "\n    "))  # a block of code in Markdown

    def write(self, line: dict[str, Any]) -> None:
        values = [self.summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
        self.writer.file_writer.add_summary(self.summary(value=values), line["step"])  # add_scalar is slow

    def finish(self) -> None:
        self.writer.close()


def main(argv: list[str] | None = None) -> int:
    """Writes RUN/tensorboard from config.yaml and metrics.jsonl as they are, then from standard input until its end.

    Says "ready" on standard output once the run's files are read, or what is missing."""
    from isentrope import trackers

    (run,) = sys.argv[1:] if argv is None else argv
    return trackers.main([run, "tensorboard"])


if __name__ == "__main__":
    sys.exit(main())
