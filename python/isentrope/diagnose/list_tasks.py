"""Problems over lists of numbers at five levels of complexity, in and out of distribution, for `generalization-valley`.

    python -m isentrope.diagnose.list_tasks --inside 0:100 --outside 100:1000 -o lists.jsonl
    python -m isentrope.diagnose.list_tasks --halves 10:100 --shots 0 -o lists.jsonl        elements of one half, and of the other: as many digits
    python -m isentrope.diagnose.list_tasks --halves 10:100 --shots 0 --number 4000 --distribution id --but lists.jsonl -o train.jsonl

Levels as Scylla has them (arXiv:2410.01769), two tasks each: O(N) min, max; O(N) to O(N²) sort, two_sum; to O(N³) three_sum, longest increasing
subsequence; to O(N⁴) four_sum, four_sum_least; 2^N subset_sum, tour. Lists of a level have the same lengths in and out of distribution, and shots
(solved examples in the prompt) are always of the inside. Each line has prompt, completion (with the line feed that ends it), level, task,
distribution.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from isentrope.diagnose.measure import DiagnoseError

Numbers = tuple[int, ...]


def longest_increasing(numbers: Sequence[int]) -> Numbers:
    """Of the longest strictly increasing subsequences that which is least, number by number."""
    for size in range(len(numbers), 0, -1):
        found = [part for part in itertools.combinations(numbers, size) if all(a < b for a, b in zip(part, part[1:]))]
        if found:
            return min(found)
    return ()


def sum_of(count: int) -> Callable[[Sequence[int], int], Numbers]:
    """The least `count` numbers of a list, sorted, that add up to a total; () without."""
    return lambda numbers, total: min((p for p in itertools.combinations(sorted(numbers), count) if sum(p) == total), default=())


def subset_sum(numbers: Sequence[int], total: int) -> Numbers:
    """The least of the smallest subsets, sorted, that add up to a total."""
    for size in range(1, len(numbers) + 1):
        if found := sum_of(size)(numbers, total):
            return found
    return ()


def tour(numbers: Sequence[int]) -> int:
    """Least Σ|a - b| of a closed way through places of which the numbers are the coordinates, in pairs (x, y)."""
    places = list(zip(numbers[::2], numbers[1::2]))
    ways = ((places[0], *rest, places[0]) for rest in itertools.permutations(places[1:]))
    return min(sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in zip(way, way[1:])) for way in ways)


def _joined(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _of_sum(name: str, count: int, solve: Callable[[Sequence[int], int], Numbers]) -> Callable[[Numbers, random.Random], tuple[str, str]]:
    def make(numbers: Numbers, draw: random.Random) -> tuple[str, str]:
        total = sum(draw.sample(numbers, count))
        return f"{name} {_joined(numbers)} total {total}", _joined(solve(numbers, total))

    return make


# task: (level, length of the list, (question, answer) of it)
TASKS: dict[str, tuple[int, int, Callable[[Numbers, random.Random], tuple[str, str]]]] = {
    "min": (1, 4, lambda numbers, _: (f"min {_joined(numbers)}", str(min(numbers)))),
    "max": (1, 4, lambda numbers, _: (f"max {_joined(numbers)}", str(max(numbers)))),
    "sort": (2, 4, lambda numbers, _: (f"sort {_joined(numbers)}", _joined(sorted(numbers)))),
    "two_sum": (2, 4, _of_sum("two_sum", 2, sum_of(2))),
    "three_sum": (3, 5, _of_sum("three_sum", 3, sum_of(3))),
    "increasing": (3, 5, lambda numbers, _: (f"increasing {_joined(numbers)}", _joined(longest_increasing(numbers)))),
    "four_sum": (4, 6, _of_sum("four_sum", 4, sum_of(4))),
    "four_sum_least": (4, 6, lambda numbers, _: (f"four_sum_least {_joined(numbers)}", str(sum(sorted(numbers)[:4])))),
    "subset_sum": (5, 6, _of_sum("subset_sum", 3, subset_sum)),
    "tour": (5, 8, lambda numbers, _: (f"tour {_joined(numbers)}", str(tour(numbers)))),
}


def problem(task: str, elements: Sequence[int], draw: random.Random) -> tuple[str, str]:
    """Question and answer over a list of different elements."""
    _, length, make = TASKS[task]
    return make(tuple(draw.sample(elements, length)), draw)


def lines(inside: Sequence[int], outside: Sequence[int], number: int, *, levels: Sequence[int] = (1, 2, 3, 4, 5), shots: int = 4, seed: int = 0) -> list[dict[str, object]]:
    """`number` problems of each level and distribution. No question of a line stands among its shots.

    Raises DiagnoseError where the two sets of elements share one, or have fewer than the longest list.
    """
    both = sorted(set(inside) & set(outside))
    if both:
        raise DiagnoseError(f"the elements {both[:3]} stand inside and outside the distribution; wanted none that does")
    for name, elements in (("inside", inside), ("outside", outside)):
        if len(elements) < 8:
            raise DiagnoseError(f"{len(elements)} elements {name} the distribution; wanted 8 or more, the longest list")
    found: list[dict[str, object]] = []
    for level, distribution in itertools.product(levels, ("id", "ood")):
        tasks = [task for task, (of, _, _) in TASKS.items() if of == level]
        draw = random.Random(f"{seed} {level} {distribution}")
        for i in range(number):
            task = tasks[i % len(tasks)]
            question, answer = problem(task, inside if distribution == "id" else outside, draw)
            solved = [one for one in (problem(task, inside, draw) for _ in range(shots)) if one[0] != question]
            prompt = "".join(f"{q} = {a}\n" for q, a in solved) + f"{question} ="
            found.append({"prompt": prompt, "completion": f" {answer}\n", "level": level, "task": task, "distribution": distribution})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    made = argparse.ArgumentParser(prog="python -m isentrope.diagnose.list_tasks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--inside", default="0:100", metavar="FROM:TO", help="elements in distribution, TO apart (0:100)")
    made.add_argument("--outside", default="100:1000", metavar="FROM:TO", help="elements out of it (100:1000)")
    made.add_argument("--halves", metavar="FROM:TO", help="instead: a random half of these inside, the other outside")
    made.add_argument("--number", type=int, default=100, help="problems of each level and distribution (100)")
    made.add_argument("--shots", type=int, default=4, help="solved examples in a prompt (4)")
    made.add_argument("--distribution", choices=["id", "ood"], help="problems of this one alone, as id to train on")
    made.add_argument("--but", type=Path, metavar="FILE", help="leave out problems that stand in this file, to be tested on")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--output", "-o", type=Path, required=True, metavar="FILE")
    options = made.parse_args(argv)

    def elements(text: str) -> list[int]:
        try:
            first, last = map(int, text.split(":"))
        except ValueError:
            made.error(f"{text!r} are no elements; wanted FROM:TO, as 0:100")
        return list(range(first, last))

    inside, outside = elements(options.inside), elements(options.outside)
    if options.halves:
        every = elements(options.halves)
        random.Random(options.seed).shuffle(every)
        inside, outside = sorted(every[: len(every) // 2]), sorted(every[len(every) // 2 :])
    try:
        found = lines(inside, outside, options.number, shots=options.shots, seed=options.seed)
    except DiagnoseError as error:
        print(f"list_tasks: {error}", file=sys.stderr)
        return 1
    if options.distribution:
        found = [line for line in found if line["distribution"] == options.distribution]
    if options.but:
        tested = {json.loads(line)["prompt"] for line in options.but.read_text().splitlines()}
        found = [line for line in found if line["prompt"] not in tested]
    options.output.write_text("".join(json.dumps(line) + "\n" for line in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
