"""`isentrope rollouts`: the completions that a run saved (rollout.save_every), as one Parquet file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isentrope import json_lines

DESCRIPTION = """\
Write the completions of a run's rollouts/PHASE.jsonl (rollout.save_every) as one Parquet file, a row each, phases in the
order in which the run has them. It takes the Python package pyarrow. Columns:

    phase, step, group, sample   string, int64: as in the JSON lines (docs/metrics.md)
    prompt, completion           string
    tokens, token_texts          list<int64>, list<string>: "ids" and "tokens" of the JSON lines
    logprob, entropy             list<float>: nats, of each token
    finished                     bool
    reward, scores, advantage    double, map<string, double>, double: "rewards" of the JSON lines is scores
    overlong, ares, pear, ceeh, kl double: null where these methods are not there
    advantages, weight           list<float>: of each token, null where no method makes them differ
    sampling_logprob             list<float>: nats, of each token as it was drawn, null where nothing cuts the policy
    parent, begin                int64: null without rollout.branch
"""

# Rows that are turned into columns together: some MB of text, and row groups that readers can skip.
TOGETHER = 4096


class RolloutsError(ValueError):
    """What is wrong with the command or the files, for a person."""


def files_of(run: Path) -> list[Path]:
    """rollouts/PHASE.jsonl of a run, in the order of its metrics; a file that no line of metrics names comes last."""
    if run.is_file():
        return [run]
    if not run.is_dir():
        raise RolloutsError(f"{run} is not there; name the folder of a run, or a file of JSON lines")
    files = sorted((run / "rollouts").glob("*.jsonl"))
    if not files:
        raise RolloutsError(f"{run}/rollouts holds no rollouts; a grpo phase with rollout: {{save_every: n}} saves those of each n-th step")
    phases: dict[str, int] = {}
    for line in json_lines.read(run / "metrics.jsonl"):
        phases.setdefault(line["phase"], len(phases))
    return sorted(files, key=lambda file: phases.get(file.stem, len(phases)))


def files_to_read(run: Path, out: Path, option: str) -> list[Path]:
    """files_of(run), where out is a file that can be written and none of them.

    Raises:
        RolloutsError: naming the option that gave out.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise RolloutsError(f"{option} {out}: {'is a folder' if out.is_dir() else 'its folder is not there'}; name a file")
    files = files_of(run)
    if any(out.resolve() == file.resolve() for file in files):
        raise RolloutsError(f"{option} {out}: is a file that is read; name another")
    return files


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A file to write beside out, which takes its place once the block has ended; after an error out is as it was."""
    beside = out.with_name(out.name + ".part")
    try:
        yield beside
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file as rows of the table."""
    for line in json_lines.read(file, {"phase": str, "step": int, "ids": list, "rewards": dict}):
        row = {name: line.get(name) for name in ("phase", "step", "group", "sample", "prompt", "completion")}
        row |= {"tokens": line["ids"], "token_texts": line.get("tokens")}
        row |= {name: line.get(name) for name in ("logprob", "entropy", "finished", "reward")}
        row |= {"scores": list(line["rewards"].items())}
        row |= {name: line.get(name) for name in ("advantage", "overlong", "ares", "pear", "ceeh", "kl", "advantages", "weight", "sampling_logprob", "parent", "begin")}
        yield row


def write(files: Sequence[Path], out: Path) -> int:
    """Writes the rows of all files to out, in place of what is there once all is written. Returns their number.

    Raises:
        ImportError: there is no pyarrow.
        RolloutsError, json_lines.LineError: what is wrong with the files.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole, text, number, real = pa.int64(), pa.string(), pa.float32(), pa.float64()
    schema = pa.schema(
        {"phase": text, "step": whole, "group": whole, "sample": whole, "prompt": text, "completion": text,
         "tokens": pa.list_(whole), "token_texts": pa.list_(text), "logprob": pa.list_(number), "entropy": pa.list_(number),
         "finished": pa.bool_(), "reward": real, "scores": pa.map_(text, real), "advantage": real, "overlong": real, "ares": real, "pear": real, "ceeh": real, "kl": real,
         "advantages": pa.list_(number), "weight": pa.list_(number), "sampling_logprob": pa.list_(number), "parent": whole, "begin": whole}.items()
    )  # fmt: skip
    count = 0
    with replaced(out) as beside:
        with pq.ParquetWriter(beside, schema, compression="zstd") as table:
            for file in files:
                part: list[dict[str, Any]] = []
                for row in rows(file):
                    part.append(row)
                    if len(part) == TOGETHER:
                        count += _put(table, part, schema, file)
                        part = []
                count += _put(table, part, schema, file)
        if count == 0:
            raise RolloutsError(f"{', '.join(map(str, files))}: no rollout is there yet")
    return count


def _put(table: Any, part: list[dict[str, Any]], schema: Any, file: Path) -> int:
    import pyarrow as pa

    if not part:
        return 0
    try:
        table.write_table(pa.Table.from_pylist(part, schema=schema))
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        place = f"step {part[0]['step']} to {part[-1]['step']}"
        raise RolloutsError(f"{file}: a line of {place} has a value of another type: {error}; mend the line or move the file away") from error
    return len(part)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="isentrope rollouts", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or one of its files rollouts/PHASE.jsonl")
    parser.add_argument("--parquet", type=Path, required=True, metavar="FILE", help="file to write; one that is there is replaced")
    words = parser.parse_args(argv)
    out: Path = words.parquet
    try:
        count = write(files_to_read(words.run, out, "--parquet"), out)
    except ImportError as error:
        if (error.name or "").split(".")[0] != "pyarrow":
            raise
        print("isentrope rollouts: the Python package pyarrow is missing: pip install 'isentrope[parquet]'", file=sys.stderr)
        return 1
    except (RolloutsError, json_lines.LineError, OSError) as error:
        print(f"isentrope rollouts: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {count} completions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
