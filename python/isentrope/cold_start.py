"""`isentrope cold-start`: right answers whose length grows with the difficulty of their prompt, for a first sft phase (ARES)."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from isentrope import json_lines
from isentrope.pairs import Candidate, groups
from isentrope.rollouts import RolloutsError, files_to_read, replaced

DESCRIPTION = """\
Write a data set for an sft phase (data.jsonl: prompt, completion) in which answers to hard prompts are long and answers to easy ones short,
of completions that were saved: a run's rollouts/PHASE.jsonl (rollout.save_every), or a file of `isentrope evaluate --completions`.

A prompt of which a share p of the completions is right is to have an answer of (1 - p) · L(0) + p · L(1) tokens, with L(0) the median
length of completions to prompts that are never answered right, and L(1) to those that always are. Of its right completions those nearest
to it are taken, of equals the shorter. Prompts that are never answered right have none, and say what L(0) is alone. Rule: the adaptive
cold start of ARES, arXiv 2510.08457.
"""


class Trace(NamedTuple):
    """A line of the data set."""

    prompt: str
    completion: str
    tokens: int
    rate: float  # share of the prompt's completions that is right
    target: float  # tokens that it should have


def target_length(rate: float, hard: float, easy: float) -> float:
    """(1 - rate) · hard + rate · easy: the length, in tokens, of an answer to a prompt of that share of right ones."""
    return (1 - rate) * hard + rate * easy


def select(asked: Sequence[tuple[str, Sequence[Candidate]]], *, per_prompt: int = 1, hard: float | None = None, easy: float | None = None) -> list[Trace]:
    """Of each prompt, in order, the right completions nearest to its target length.

    Args:
        asked: prompts with their completions, one or more each.
        per_prompt: completions of a prompt, at most; 1 or more.
        hard, easy: lengths L(0) and L(1), tokens; None: found as the description says.

    Raises:
        ValueError: no prompt is never, or always, answered right, and the length is not given.
    """
    rates = [sum(one.right for one in own) / len(own) for _, own in asked]
    lengths = {bound: [one.tokens for (_, own), rate in zip(asked, rates, strict=True) if rate == bound for one in own] for bound in (0, 1)}
    if hard is None:
        if not lengths[0]:
            raise ValueError("no prompt is answered wrong by all of its completions, whose median length L(0) would be; give --hard TOKENS")
        hard = statistics.median(lengths[0])
    if easy is None:
        if not lengths[1]:
            raise ValueError("no prompt is answered right by all of its completions, whose median length L(1) would be; give --easy TOKENS")
        easy = statistics.median(lengths[1])
    traces = []
    for (prompt, own), rate in zip(asked, rates, strict=True):
        target = target_length(rate, hard, easy)
        right = {one.text: one for one in own if one.right and one.text}
        for one in sorted(right.values(), key=lambda one: (abs(one.tokens - target), one.tokens))[:per_prompt]:
            traces.append(Trace(prompt, one.text, one.tokens, rate, target))
    return traces


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="isentrope cold-start", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, one of its files rollouts/PHASE.jsonl, or a file of completions")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="file to write, .jsonl; one that is there is replaced")
    parser.add_argument("--reward", metavar="NAME", help="whose score says what is right (default: the first)")
    parser.add_argument("--right", type=float, default=0.5, metavar="SCORE", help="least score of a right one (default: 0.5)")
    parser.add_argument("--hard", type=float, metavar="TOKENS", help="length for prompts that are never answered right (default: L(0))")
    parser.add_argument("--easy", type=float, metavar="TOKENS", help="length for prompts that always are (default: L(1))")
    parser.add_argument("--per-prompt", type=int, default=1, metavar="N", help="answers of a prompt, at most (default: 1)")
    words = parser.parse_args(argv)
    out: Path = words.output
    try:
        if words.per_prompt < 1:
            raise RolloutsError(f"--per-prompt {words.per_prompt}; wanted 1 or more")
        files = files_to_read(words.run, out, "--output")
        asked = [group for file in files for group in groups(file, words.reward, words.right)]
        traces = select(asked, per_prompt=words.per_prompt, hard=words.hard, easy=words.easy)
        if not traces:
            raise RolloutsError(f"{words.run}: none of {len(asked)} prompts is answered right; draw more completions, or of a better model")
        lines = [json.dumps({"prompt": one.prompt, "completion": one.completion}, ensure_ascii=False) for one in traces]
        with replaced(out) as beside:
            beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except (RolloutsError, json_lines.LineError, OSError, ValueError) as error:
        print(f"isentrope cold-start: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {len(traces)} answers to {len({one.prompt for one in traces})} of {len({prompt for prompt, _ in asked})} prompts")
    for name, low, high in (("hard", 0.0, 1 / 3), ("medium", 1 / 3, 2 / 3), ("easy", 2 / 3, 1.01)):
        own = [one.tokens for one in traces if low <= one.rate < high]
        if own:
            print(f"  {name:6} {len(own):5} answers of {statistics.mean(own):.1f} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
