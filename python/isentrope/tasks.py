"""`isentrope tasks`: writes problems of the package reasoning-gym as a data set that `data.jsonl` reads.

Each line has prompt, answer and completion, and under "reasoning_gym" what makes the problem again, by which the reward
isentrope.rewards.reasoning_gym scores an answer as the task itself does.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMN = "reasoning_gym"
DESCRIPTION = """\
Write problems of reasoning-gym (pip install 'isentrope[tasks]') as JSONL, with prompt, answer and completion. Words KEY=VALUE set
what the task has, such as min_terms=2; a misspelt one is told with those that there are. Without a task, the names of all.
"""


class TaskError(ValueError):
    """What is wrong with the command, for a person."""


def _nearest(word: str, names: Sequence[str], what: str) -> str:
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"{what} are {', '.join(names)}"


def configuration(task: str, words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE as the task takes them, values as JSON or else texts."""
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        raise TaskError(f"reasoning-gym has no task '{task}'; {_nearest(task, sorted(DATASETS), 'its tasks')}")
    keys = sorted(set(DATASETS[task][1].__dataclass_fields__) - {"seed", "size"})
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise TaskError(f"'{word}': wanted KEY=VALUE, such as {keys[0]}=…")
        if key not in keys:
            raise TaskError(f"{task} has no key '{key}'; {_nearest(key, keys, 'its keys')}")
        try:
            given[key] = json.loads(value)
        except json.JSONDecodeError:
            given[key] = value
    return given


def problems(task: str, size: int, seed: int, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of the data set."""
    import reasoning_gym

    try:
        dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **given)
    except (AssertionError, TypeError, ValueError) as error:
        raise TaskError(f"{task}: {error}") from error
    for index in range(size):
        entry = dataset[index]
        answer = "" if entry["answer"] is None else str(entry["answer"])
        made_of = {"task": task, "seed": seed, "size": size, "config": dict(given), "index": index}
        yield {"prompt": entry["question"] + "\n", "answer": answer, "completion": answer, COLUMN: made_of}


def write(path: Path, lines: Iterator[dict[str, Any]]) -> int:
    """The file is there whole or not at all."""
    beside = path.with_name(path.name + ".part")
    count = 0
    try:
        with beside.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return count


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="isentrope tasks", description=DESCRIPTION, allow_abbrev=False)
    made.add_argument("task", nargs="?", help="name of a task, such as chain_sum")
    made.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the task")
    made.add_argument("--size", type=int, default=1000, metavar="N", help="problems (1000)")
    made.add_argument("--seed", type=int, default=1, metavar="N", help="fixes them (1)")
    made.add_argument("-o", dest="out", type=Path, metavar="FILE", help="the JSONL file (TASK.jsonl)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        from reasoning_gym.factory import DATASETS

        if options.task is None:
            print("\n".join(sorted(DATASETS)))
            return 0
        if options.size < 1:
            raise TaskError(f"--size {options.size}: wanted 1 or more")
        given = configuration(options.task, options.settings)
        out = options.out or Path(f"{options.task}.jsonl")
        print(f"{out}: {write(out, problems(options.task, options.size, options.seed, given))} problems of {options.task}")
        return 0
    except TaskError as error:
        print(f"isentrope tasks: {error}", file=sys.stderr)
    except OSError as error:
        print(f"isentrope tasks: {error.filename}: {error.strerror}", file=sys.stderr)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "reasoning_gym":
            raise
        print("isentrope tasks: the Python package reasoning-gym is missing: pip install 'isentrope[tasks]'", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
