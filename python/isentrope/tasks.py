"""`isentrope tasks`: writes problems of the package reasoning-gym as a data set that `data.jsonl` reads; what `data.reasoning_gym` reads
is written here too (csrc/train/task_files.h).

Each line has prompt, answer and completion, and under "reasoning_gym" what makes the problem again, by which the reward
isentrope.rewards.reasoning_gym scores an answer as the task itself does.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMN = "reasoning_gym"
DESCRIPTION = """\
Write problems of reasoning-gym (pip install 'isentrope[tasks]') as JSONL, with prompt, answer and completion. Words KEY=VALUE set
what the task has, such as min_terms=2; a misspelt one is told with those that there are. Without a task, the names of all.
With --validation-size or --test-size, a folder with train.jsonl, validation.jsonl and test.jsonl; no problem of one is in another.
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


def version() -> str:
    return importlib.metadata.version("reasoning-gym")


class Problems:
    """The problems of a task by their number: each is made of the seed plus its number, whatever the size."""

    def __init__(self, task: str, size: int, seed: int, given: Mapping[str, Any]) -> None:
        import reasoning_gym

        try:
            self.dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **given)
        except (AssertionError, TypeError, ValueError) as error:
            raise TaskError(f"{task}: {error}") from error
        self.made_of = {"task": task, "seed": seed, "size": size, "config": dict(given), "version": version()}

    def line(self, index: int) -> dict[str, Any]:
        """A line of the data set."""
        entry = self.dataset[index]
        answer = "" if entry["answer"] is None else str(entry["answer"])
        return {"prompt": entry["question"] + "\n", "answer": answer, "completion": answer, COLUMN: {**self.made_of, "index": index}}


def problems(task: str, size: int, seed: int, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of the data set."""
    made = Problems(task, size, seed, given)
    return (made.line(index) for index in range(size))


# Problems looked at for each that is wanted: half of a task's problems may be held out, and half of those drawn may be met before.
SPARE = 4


def parts(task: str, sizes: Mapping[str, int], seed: int, given: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The lines of "test", "validation" and "train", in this order of their numbers. A question of one part is in no other, and of
    the two held-out parts in neither twice."""
    pool = SPARE * sum(sizes.values())
    made = Problems(task, pool, seed, given)
    found: dict[str, list[dict[str, Any]]] = {}
    held_out: set[str] = set()
    index = 0
    for part in ("test", "validation", "train"):
        lines: list[dict[str, Any]] = []
        found[part] = lines
        while len(lines) < sizes[part]:
            if index == pool:
                raise TaskError(f"{task} has too few different problems: of {pool}, {len(lines)} are new and for {part}, and "
                                f"{sizes[part]} are wanted. Make the sizes smaller, or the task larger by its keys")  # fmt: skip
            line = made.line(index)
            index += 1
            if line["prompt"] in held_out:
                continue
            if part != "train":
                held_out.add(line["prompt"])
            lines.append(line)
    return found


def write_parts(folder: Path, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The folder is there whole or not at all. One that is there stays as it is where it holds as many files."""
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
        for part, lines in found.items():
            if lines:
                write(beside / f"{part}.jsonl", iter(lines))
        try:
            os.replace(beside, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            for file in sorted(beside.iterdir()):  # another process was first, or some files were lost
                if not (folder / file.name).exists():
                    os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write(path: Path, lines: Iterator[Mapping[str, Any]]) -> int:
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
    made.add_argument("--validation-size", type=int, metavar="N", help="further ones for validation")
    made.add_argument("--test-size", type=int, metavar="N", help="further ones for test")
    made.add_argument("--seed", type=int, default=1, metavar="N", help="fixes them (1)")
    made.add_argument("-o", dest="out", type=Path, metavar="FILE", help="the JSONL file (TASK.jsonl), or the folder (TASK)")
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
        held_out = {"validation": options.validation_size, "test": options.test_size}
        for part, size in held_out.items():
            if size is not None and size < 0:
                raise TaskError(f"--{part}-size {size}: wanted 0 or more")
        given = configuration(options.task, options.settings)
        if any(size is not None for size in held_out.values()):
            out = options.out or Path(options.task)
            sizes = {"train": options.size, **{part: size or 0 for part, size in held_out.items()}}
            write_parts(out, parts(options.task, sizes, options.seed, given))
            print(f"{out}: problems of {options.task}, {', '.join(f'{count} {part}' for part, count in sizes.items() if count)}")
            return 0
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
