"""Rewards that other packages define, as functions (prompts, completions, meta): reward: [{kind: python, function: math}].

A score is None where the reward does not apply to a completion; the trainer adds nothing for it.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from isentrope import tasks

__all__ = ["math", "reasoning_gym"]

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def _answer_in(completion: str) -> str:
    """What stands in the last <answer>…</answer>; without such, the whole text."""
    found = _ANSWER.findall(completion)
    return (found[-1] if found else completion).strip()


@functools.lru_cache(maxsize=64)
def _dataset(task: str, size: int, seed: int, config: str) -> Any:
    import reasoning_gym as gym

    return gym.create_dataset(task, size=size, seed=seed, **json.loads(config))


def reasoning_gym(prompts: Sequence[str], completions: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The score that the task of reasoning-gym gives the answer, 1 where it is right and between 0 and 1 as the task shares it out.
    The examples are those of `isentrope tasks`; of others None. The answer is the completion, or what stands in its last
    <answer>…</answer>. Raises ValueError where the installed package makes another problem than the one in the file."""
    scores: list[float | None] = []
    for prompt, completion, about in zip(prompts, completions, meta, strict=True):
        made_of = about.get("reasoning_gym")
        if made_of is None:
            scores.append(None)
            continue
        dataset = _dataset(made_of["task"], made_of["size"], made_of["seed"], json.dumps(made_of["config"], sort_keys=True))
        entry = dataset[made_of["index"]]
        if entry["question"] not in prompt:
            raise ValueError(f"reasoning_gym: problem {made_of['index']} of {made_of['task']} is another one in the installed package, "
                             f"{tasks.version()}, than in the data, of {made_of.get('version', 'another version')}; install that one, "
                             "or write the data again: isentrope tasks, or without the files of data.reasoning_gym.cache")  # fmt: skip
        scores.append(float(dataset.score_answer(_answer_in(completion), entry)))
    return scores


def math(prompts: Sequence[str], completions: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """1 where the answer in the completion equals the example's `answer` as mathematics, by math-verify (pip install
    'isentrope[tasks]'): 1/2 is 0.5 and \\frac{1}{2}. Else 0; None where the example's answer is no mathematics."""
    from math_verify import parse, verify

    # What a model writes must not decide how long a step takes; the limit is a signal's, which the main thread alone may have.
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    scores: list[float | None] = []
    for completion, about in zip(completions, meta, strict=True):
        right = parse(str(about.get("answer", "")), parsing_timeout=seconds)
        if not right:
            scores.append(None)
            continue
        given = parse(_answer_in(completion), parsing_timeout=seconds)
        scores.append(float(bool(given) and verify(right, given, timeout_seconds=seconds)))
    return scores
