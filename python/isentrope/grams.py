"""isentrope grams: strategic grams, phrases that many right answers plan with, for {kind: hicra} (csrc/methods/hicra.h)."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isentrope import json_lines
from isentrope.rollouts import RolloutsError, files_to_read, replaced

DESCRIPTION = """\
Write the phrases that many right answers have as a file for {kind: hicra, grams: FILE}. The answers are those of a run's
rollouts/PHASE.jsonl (rollout.save_every) to which the first reward gives at least 0.5, or the lines {"completion": TEXT} of
other files of JSON lines, all of which count as right.

A phrase is --words of them in a row: runs of letters, digits, _ and ', and every other character but white space; upper and
lower case are alike. It scores by the share of answers that have it, those with it seldom in one answer first among equals; of
the phrases that at least --least answers have, the best --top share is kept.

The paper (HICRA, arXiv 2509.03646) groups phrases of one meaning by a sentence encoder and scores the groups; here each phrase is a
group of its own. Another grouping can be written into the file: {"text": …, "cluster": NUMBER}.
"""

WORD = re.compile(rb"[A-Za-z0-9_'\x80-\xff]+|[^A-Za-z0-9_'\x80-\xff \t-\r]")


class GramsError(ValueError):
    """What is wrong with the command or the files, for a person."""


class Gram(NamedTuple):
    """A phrase."""

    text: str  # its words in lower case, one space between them
    documents: int  # answers that have it
    mean: float  # places in each of them


def words(text: str) -> list[tuple[int, int, bytes]]:
    """(first byte, one behind the last, word in lower case) of each word of the text's UTF-8, as csrc/methods/hicra.cpp."""
    return [(found.start(), found.end(), found.group().lower()) for found in WORD.finditer(text.encode("utf-8", "surrogateescape"))]


def find(text: str, grams: Iterable[str]) -> list[tuple[int, int, int]]:
    """Every place of a gram in a text: (first byte, one behind the last, number of the gram), by beginning, then by length. Bytes are
    those of its UTF-8."""
    known: dict[tuple[bytes, ...], int] = {}
    for number, gram in enumerate(grams):
        known.setdefault(tuple(word for _, _, word in words(gram)), number)
    sizes = sorted({len(one) for one in known} - {0})
    own = words(text)
    places = []
    for at in range(len(own)):
        for size in sizes:
            if at + size <= len(own) and (found := known.get(tuple(word for _, _, word in own[at : at + size]))) is not None:
                places.append((own[at][0], own[at + size - 1][1], found))
    return places


def mine(answers: Iterable[str], *, least_words: int = 3, most_words: int = 5, top: float = 0.2, least: int = 2) -> list[Gram]:
    """The phrases of least_words to most_words words that most answers have, best first.

    Args:
        answers: right ones.
        least_words, most_words: of a phrase; 1 or more, rising.
        top: share of the phrases that are kept, above 0 to 1; at least one.
        least: answers that must have a phrase.

    Raises:
        ValueError: a number out of its range.
    """
    if not 1 <= least_words <= most_words:
        raise ValueError(f"words are {least_words} to {most_words}; wanted 1 or more, rising")
    if not 0 < top <= 1:
        raise ValueError(f"top is {top:g}; wanted above 0 to 1")
    if least < 1:
        raise ValueError(f"least is {least}; wanted 1 or more")
    documents: dict[tuple[bytes, ...], int] = defaultdict(int)
    places: dict[tuple[bytes, ...], int] = defaultdict(int)
    for answer in answers:
        own = [word for _, _, word in words(answer)]
        here: dict[tuple[bytes, ...], int] = defaultdict(int)
        for size in range(least_words, most_words + 1):
            for at in range(len(own) - size + 1):
                here[tuple(own[at : at + size])] += 1
        for gram, count in here.items():
            documents[gram] += 1
            places[gram] += count
    found = [
        Gram(b" ".join(gram).decode("utf-8", "replace"), count, places[gram] / count) for gram, count in documents.items() if count >= least
    ]
    found.sort(key=lambda gram: (-gram.documents, gram.mean, gram.text))
    return found[: max(1, int(top * len(found)))] if found else []


def answers_of(files: Iterable[Path]) -> Iterator[str]:
    """The right answers in files of JSON lines.

    Raises:
        GramsError, RolloutsError, json_lines.LineError: what is wrong with the files.
    """
    for file in files:
        for line in json_lines.read(file, {"completion": str}):
            if _right(line, file):
                yield line["completion"]


def _right(line: Mapping[str, Any], file: Path) -> bool:
    if "rewards" not in line:
        return True
    rewards = line["rewards"]
    if not isinstance(rewards, dict) or not rewards:
        raise GramsError(f"{file}: a line's rewards are {rewards!r}; wanted an object with one or more")
    first = next(iter(rewards.values()))
    return first is not None and first >= 0.5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="isentrope grams", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="+", metavar="RUN", help="folder of a run, or a file of JSON lines")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="file to write; one that is there is replaced")
    parser.add_argument("--words", type=int, nargs=2, default=[3, 5], metavar=("LEAST", "MOST"), help="words of a phrase (3 5)")
    parser.add_argument("--top", type=float, default=0.2, metavar="SHARE", help="share of the phrases that are kept (0.2)")
    parser.add_argument("--least", type=int, default=2, metavar="ANSWERS", help="answers that must have a phrase (2)")
    options = parser.parse_args(argv)
    out: Path = options.output
    try:
        answers = [answer for source in options.source for answer in answers_of(files_to_read(source, out, "--output"))]
        least_words, most_words = options.words
        found = mine(answers, least_words=least_words, most_words=most_words, top=options.top, least=options.least)
        if not found:
            raise GramsError(
                f"{len(answers)} right answers, and no phrase of {least_words} to {most_words} words that {options.least} of them have; "
                "give more answers, or a smaller --least or --words"
            )
        made = {"answers": len(answers), "words": [least_words, most_words], "grams": [
            {"text": gram.text, "cluster": number, "documents": gram.documents, "mean": round(gram.mean, 4)} for number, gram in enumerate(found)
        ]}  # fmt: skip
        with replaced(out) as beside:
            beside.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except (GramsError, RolloutsError, json_lines.LineError, OSError, ValueError) as error:
        print(f"isentrope grams: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {len(found)} phrases of {len(answers)} right answers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
