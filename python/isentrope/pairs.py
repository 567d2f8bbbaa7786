"""`isentrope pairs`: pairs of a better and a worse completion of a prompt, of completions that a run saved, for a dpo phase."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isentrope import json_lines
from isentrope.rollouts import RolloutsError, files_to_read, replaced

DESCRIPTION = """\
Make pairs for a dpo phase (data.jsonl: prompt, chosen, rejected) of completions that were saved: a run's rollouts/PHASE.jsonl
(rollout.save_every), or a file of `isentrope evaluate --completions`. Of the completions of one prompt, drawn in one step, a pair takes
one that is right and one that is wrong (--right says from which score on):

    short     the shortest right one beside a wrong one that is longer: few steps where few suffice
    calm      the right one of the lowest mean entropy of its tokens, beside a wrong one that is longer
    long      the longest right one beside the shortest wrong one: of prompts that are hard
    score     the best beside the worst, whatever is right, where they differ by more than --margin

A prompt whose completions are all right, or all wrong, makes no pair (but by score). Rules: Tool-Light, arXiv 2509.23285, without its
tool calls.
"""


@dataclass(frozen=True)
class Candidate:
    """A completion of a prompt."""

    text: str
    tokens: int
    entropy: float  # mean over its tokens, nats
    score: float
    right: bool


Pair = tuple[Candidate, Candidate]


def short(right: Sequence[Candidate], wrong: Sequence[Candidate]) -> Iterator[Pair]:
    """The shortest right one, and the wrong ones that are longer, the longest first."""
    best = min(right, key=lambda one: (one.tokens, one.entropy))
    for worse in sorted(wrong, key=lambda one: -one.tokens):
        if worse.tokens > best.tokens:
            yield best, worse


def calm(right: Sequence[Candidate], wrong: Sequence[Candidate]) -> Iterator[Pair]:
    """The right one of the lowest entropy, and the wrong ones that are longer, the longest first."""
    best = min(right, key=lambda one: (one.entropy, one.tokens))
    for worse in sorted(wrong, key=lambda one: -one.tokens):
        if worse.tokens > best.tokens:
            yield best, worse


def long(right: Sequence[Candidate], wrong: Sequence[Candidate]) -> Iterator[Pair]:
    """The longest right one, and the wrong ones, the shortest first."""
    best = max(right, key=lambda one: one.tokens)
    for worse in sorted(wrong, key=lambda one: one.tokens):
        yield best, worse


RULES: dict[str, Callable[[Sequence[Candidate], Sequence[Candidate]], Iterator[Pair]]] = {"short": short, "calm": calm, "long": long}


def pairs_of(candidates: Sequence[Candidate], rule: str = "short", margin: float = 0.0, most: int = 1) -> list[Pair]:
    """Pairs of the completions of one prompt, at most `most`, none twice.

    Args:
        candidates: in the order in which they were drawn, which breaks ties.
        rule: short, calm, long or score.
        margin: score: by how much the scores must differ, more than that.
        most: 1 or more.
    """
    if rule == "score":
        ranked = sorted(candidates, key=lambda one: -one.score)
        found: Iterable[Pair] = ((ranked[i], ranked[-1 - i]) for i in range(len(ranked) // 2))
        found = (pair for pair in found if pair[0].score - pair[1].score > margin)
    else:
        right = [one for one in candidates if one.right]
        wrong = [one for one in candidates if not one.right]
        found = RULES[rule](right, wrong) if right and wrong else ()
    kept: dict[tuple[str, str], Pair] = {}
    for better, worse in found:
        if better.text and worse.text and better.text != worse.text:
            kept.setdefault((better.text, worse.text), (better, worse))
        if len(kept) == most:
            break
    return list(kept.values())


def candidate_of(line: dict[str, Any], reward: str | None, least: float, place: str) -> Candidate | None:
    """None where the reward has no score for it."""
    if "rewards" in line:
        scores: dict[str, float | None] = line["rewards"]
        name = next(iter(scores), None) if reward is None else reward
        if name not in scores:
            raise RolloutsError(f"{place}: there is no reward {name!r}; it has {', '.join(scores) or 'none'}")
        score = scores[name]
    else:
        score = line.get("score")
    if score is None:
        return None
    entropy = [one for one in line["entropy"] if one is not None]
    mean = math.fsum(entropy) / len(entropy) if entropy else 0.0
    return Candidate(line["completion"], line["length"], mean, float(score), score >= least)


def groups(file: Path, reward: str | None, least: float) -> Iterator[tuple[str, list[Candidate]]]:
    """Prompt and candidates of each group of lines that stand together: of one phase, step and prompt."""
    now: tuple[Any, ...] | None = None
    prompt = ""
    candidates: list[Candidate] = []
    kinds = {"prompt": str, "completion": str, "group": int, "length": int, "entropy": list}
    for number, line in enumerate(json_lines.read(file, kinds), 1):
        key = (line.get("phase"), line.get("step"), line["group"], line.get("decoding") == "greedy")
        if key != now:
            if candidates:
                yield prompt, candidates
            now, prompt, candidates = key, line["prompt"], []
        if one := candidate_of(line, reward, least, f"{file}, completion {number}"):
            candidates.append(one)
    if candidates:
        yield prompt, candidates


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="isentrope pairs", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, one of its files rollouts/PHASE.jsonl, or a file of completions")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write, .jsonl; one that is there is replaced")
    parser.add_argument("--rule", choices=[*RULES, "score"], default="short", help="which two of a prompt's completions (default: short)")
    parser.add_argument("--reward", metavar="NAME", help="whose score says what is right (default: the first)")
    parser.add_argument("--right", type=float, default=0.5, metavar="SCORE", help="least score of a right one (default: 0.5)")
    parser.add_argument("--margin", type=float, default=0.0, metavar="SCORE", help="score: least difference (default: 0)")
    parser.add_argument("--per-prompt", type=int, default=1, metavar="N", help="pairs of a prompt, at most (default: 1)")
    words = parser.parse_args(argv)
    out: Path = words.output
    try:
        if words.per_prompt < 1:
            raise RolloutsError(f"--per-prompt {words.per_prompt}; wanted 1 or more")
        prompts = pairs = 0
        lines: list[str] = []
        files = files_to_read(words.run, out, "--output")
        for file in files:
            for prompt, candidates in groups(file, words.reward, words.right):
                prompts += 1
                for better, worse in pairs_of(candidates, words.rule, words.margin, words.per_prompt):
                    lines.append(json.dumps({"prompt": prompt, "chosen": better.text, "rejected": worse.text}, ensure_ascii=False))
                    pairs += 1
        if not pairs:
            raise RolloutsError(f"{words.run}: none of {prompts} prompts has a pair by the rule {words.rule}; draw more completions a prompt, or take another --rule")
        with replaced(out) as beside:
            beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except (RolloutsError, json_lines.LineError, OSError) as error:
        print(f"isentrope pairs: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {pairs} pairs of {prompts} prompts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
