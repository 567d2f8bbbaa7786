"""Pairs of prompts that differ in one thing, for patching: indirect objects, coloured objects, or a file's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isentrope.diagnose.measure import DiagnoseError

NAMES = "John Mary Tom James Dan Michael Martin Kevin Anna Sarah Emma Laura Peter Paul Mark David Robert Alice Susan Linda Kate Jack George Frank".split()
PLACES = "store garden restaurant school hospital office house station".split()
THINGS = "ring kiss bone basketball computer necklace drink snack book letter".split()
IOI = [
    "Then, {a} and {b} went to the {place}. {s} gave a {thing} to",
    "When {a} and {b} got a {thing} at the {place}, {s} decided to give it to",
    "Then, {a} and {b} had a long argument, and afterwards {s} said to",
    "After {a} and {b} went to the {place}, {s} gave a {thing} to",
]
COLOURS = "red blue green black white brown yellow orange purple pink".split()
OBJECTS = "pen cup book ball hat bag plate box key ring".split()


@dataclass
class Pair:
    """Two prompts of the same number of tokens, and the tokens that the clean and the corrupted one are answered with."""

    clean: list[int]
    corrupt: list[int]
    answer: int
    other: int


def ioi(draw: random.Random) -> tuple[str, str, str, str]:
    """Indirect object: the second mention of the subject is exchanged with the other name. (clean, corrupt, answer, other)."""
    a, b = draw.sample(NAMES, 2)
    frame, more = draw.choice(IOI), {"place": draw.choice(PLACES), "thing": draw.choice(THINGS)}
    subject, other = draw.choice([(a, b), (b, a)])
    return frame.format(a=a, b=b, s=subject, **more), frame.format(a=a, b=b, s=other, **more), f" {other}", f" {subject}"


def colored_objects(draw: random.Random) -> tuple[str, str, str, str]:
    """Coloured objects: one shot, then another of the same objects is asked for."""

    def scene() -> tuple[str, list[tuple[str, str]]]:
        found: list[tuple[str, str]] = list(zip(draw.sample(OBJECTS, 3), draw.sample(COLOURS, 3)))
        (x, i), (y, j), (z, k) = found
        return f"Q: On the table, I see a {i} {x}, a {j} {y}, and a {k} {z}. What color is the", found

    shot, objects = scene()
    thing, colour = draw.choice(objects)
    query, objects = scene()
    (right, answer), (wrong, other) = draw.sample(objects, 2)
    before = f"{shot} {thing}?\nA: {colour}\n\n{query} "
    return f"{before}{right}?\nA:", f"{before}{wrong}?\nA:", f" {answer}", f" {other}"


TASKS: dict[str, Callable[[random.Random], tuple[str, str, str, str]]] = {"ioi": ioi, "colored-objects": colored_objects}


def generated(task: str, count: int, seed: int, encode: Callable[[str], list[int]]) -> tuple[list[Pair], int]:
    """`count` pairs of a task, and how many were passed over since a word of theirs is several tokens. Raises DiagnoseError."""
    draw, found, passed = random.Random(f"{task}{seed}"), [], 0
    for _ in range(20 * count):
        pair = pair_of(*TASKS[task](draw), encode)
        if pair is None:
            passed += 1
        else:
            found.append(pair)
            if len(found) == count:
                return found, passed
    raise DiagnoseError(
        f"circuit: of {20 * count} {task} prompts {len(found)} have answers of one token each and are as long as their pair; wanted {count}. "
        "The tokenizer splits the words into several tokens: give pairs of your own, --data with clean, corrupt, answer, other"
    )


def pair_of(clean: str, corrupt: str, answer: str, other: str, encode: Callable[[str], list[int]]) -> Pair | None:
    """None where the prompts differ in length, or an answer is no single token behind the prompt."""
    ids = encode(clean), encode(corrupt)
    ends = []
    for text in (answer, other):
        whole = encode(clean + text)
        if len(whole) != len(ids[0]) + 1 or whole[:-1] != ids[0]:
            return None
        ends.append(whole[-1])
    if len(ids[0]) != len(ids[1]) or ids[0] == ids[1] or ends[0] == ends[1]:
        return None
    return Pair(*ids, *ends)


def given(records: Sequence[dict[str, Any]], name: str, encode: Callable[[str], list[int]]) -> tuple[list[Pair], int]:
    """Those of a file: {"clean", "corrupt", "answer", "other"}, texts, or tokens (lists of ids, and an id). Raises DiagnoseError."""
    found, passed = [], 0
    for number, record in enumerate(records, 1):
        missing = [key for key in ("clean", "corrupt", "answer", "other") if key not in record]
        if missing:
            raise DiagnoseError(f"{name}: {missing[0]!r} of pair {number} is missing; each line needs clean, corrupt, answer and other")
        clean, corrupt, answer, other = (record[key] for key in ("clean", "corrupt", "answer", "other"))
        if isinstance(clean, list):
            pair = Pair(clean, corrupt, answer, other) if len(clean) == len(corrupt) else None
        else:
            pair = pair_of(clean, corrupt, answer, other, encode)
        if pair is None:
            passed += 1
        else:
            found.append(pair)
    if not found:
        raise DiagnoseError(f"{name}: none of {passed} pairs has prompts of equal length and two answers of one token each; words that split into several tokens cannot be compared")
    return found, passed
