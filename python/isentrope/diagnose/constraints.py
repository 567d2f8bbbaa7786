"""Whether texts keep constraints that a program can check: counts, keywords, case, layout, structure, order.

A constraint is {"kind": NAME, …} with the keys of its kind (isentrope.diagnose.constraint_kinds), kinds that count with at_least, at_most, exactly:

    {"kind": "words", "at_most": 40}      {"kind": "forbidden", "texts": ["very"]}      {"kind": "json", "keys": ["name"]}

Two kinds hold others: {"kind": "if", "if": C, "then": C, "else": C}, where "if" looks at the text, or at the prompt with "of": "prompt", and what
is not given holds; and {"kind": "exactly_one", "constraints": [C, …]}. An empty text keeps none, though it is of no more than 40 words.

As a reward: reward: [{kind: python, function: "isentrope.diagnose.constraints:reward"}], of examples that have "constraints".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from isentrope.diagnose.constraint_kinds import BOUNDS, KINDS, ConstraintError, Kind, choices

FLOW = ("if", "exactly_one")


def checked(constraint: Any) -> Mapping[str, Any]:
    """The constraint, if it is one. Raises ConstraintError: an unknown kind or key, a value of another type, limits that nothing keeps."""
    if not isinstance(constraint, Mapping) or not isinstance(constraint.get("kind"), str):
        raise ConstraintError(f'{constraint!r} is no constraint; wanted {{"kind": NAME, …}}')
    name = constraint["kind"]
    if name in FLOW:
        return _checked_flow(constraint)
    if name not in KINDS:
        near = difflib.get_close_matches(name, [*KINDS, *FLOW], 1)
        raise ConstraintError(f"there is no constraint {name!r}; " + (f"did you mean {near[0]}? There" if near else "there") + f" are {', '.join([*KINDS, *FLOW])}")
    kind = KINDS[name]
    allowed = [*kind.keys, *(BOUNDS if kind.count else ())]
    for key, value in constraint.items():
        if key == "kind":
            continue
        if key not in allowed:
            raise ConstraintError(f"{name} has no key {key!r}; it has {', '.join(allowed) or 'none'}")
        types = kind.keys[key][0] if key in kind.keys else (int, float)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ConstraintError(f"{name}: {key} is {value!r}; wanted {' or '.join(of.__name__ for of in types)}")
        _checked_value(kind, key, value)
    missing = [key for key, (_, needed) in kind.keys.items() if needed and key not in constraint]
    if missing:
        raise ConstraintError(f"{name} lacks {', '.join(missing)}")
    if kind.count:
        _checked_limits(name, constraint)
    return constraint


def _checked_value(kind: Kind, key: str, value: Any) -> None:
    if isinstance(value, (str, list)) and not value:
        raise ConstraintError(f"{kind.name}: {key} is empty")
    if isinstance(value, list) and not all(isinstance(one, str) and one for one in value):
        raise ConstraintError(f"{kind.name}: {key} is {value!r}; wanted texts that are not empty")
    if isinstance(value, int) and not isinstance(value, bool) and key not in BOUNDS and (value == 0 or (value < 0 and kind.name not in ("nth_word", "in_sentence"))):
        raise ConstraintError(f"{kind.name}: {key} is {value}; wanted 1 or more")
    if key == "letter" and len(str(value)) != 1:
        raise ConstraintError(f"letter: letter is {value!r}; wanted one character")
    if key == "pattern":
        try:
            re.compile(str(value))
        except re.error as error:
            raise ConstraintError(f"pattern: {value!r} is no regular expression of Python: {error}") from None
    few = choices(kind.name, key)
    for one in value.values() if isinstance(value, dict) else [value]:
        if few and one not in few:
            raise ConstraintError(f"{kind.name}: {key} has {one!r}; wanted one of {', '.join(few)}")


def _checked_limits(name: str, constraint: Mapping[str, Any]) -> None:
    limits = [constraint[key] for key in BOUNDS if key in constraint]
    if not limits:
        raise ConstraintError(f"{name} has no limit; wanted at_least, at_most or exactly")
    if any(limit < 0 for limit in limits):
        raise ConstraintError(f"{name}: the limit {min(limits)} is below 0")
    if "exactly" in constraint and len(limits) > 1 or constraint.get("at_least", 0) > constraint.get("at_most", float("inf")):
        told = ", ".join(f"{key} {constraint[key]}" for key in BOUNDS if key in constraint)
        raise ConstraintError(f"{name}: {told} cannot hold together; wanted exactly alone, or at_least not above at_most")


def _checked_flow(constraint: Mapping[str, Any]) -> Mapping[str, Any]:
    name = constraint["kind"]
    allowed = ("kind", "if", "then", "else", "of") if name == "if" else ("kind", "constraints")
    unknown = [key for key in constraint if key not in allowed]
    if unknown:
        raise ConstraintError(f"{name} has no key {unknown[0]!r}; it has {', '.join(allowed[1:])}")
    if name == "exactly_one":
        inner = constraint.get("constraints")
        if not isinstance(inner, list) or len(inner) < 2:
            raise ConstraintError(f"exactly_one: constraints is {inner!r}; wanted two or more")
        for one in inner:
            checked(one)
        return constraint
    if "if" not in constraint or not {"then", "else"} & set(constraint):
        raise ConstraintError("if lacks what it asks, or what then holds: wanted if, and then or else")
    if constraint.get("of", "text") not in ("text", "prompt"):
        raise ConstraintError(f"if: of is {constraint['of']!r}; wanted text or prompt")
    for key in ("if", "then", "else"):
        if key in constraint:
            checked(constraint[key])
    return constraint


def holds(constraint: Mapping[str, Any], text: str, prompt: str = "") -> bool:
    """Whether a text keeps a constraint that `checked` has seen. An empty text keeps none."""
    if not text.strip():
        return False
    name = constraint["kind"]
    if name == "exactly_one":
        return sum(holds(one, text, prompt) for one in constraint["constraints"]) == 1
    if name == "if":
        asked = prompt if constraint.get("of") == "prompt" else text
        branch = constraint.get("then" if holds(constraint["if"], asked, prompt) else "else")
        return branch is None or holds(branch, text, prompt)
    return KINDS[name].check(text, constraint, prompt)


def variants(text: str) -> list[str]:
    """The eight texts of the loose measure: as it is and without *, each whole, without its first line, its last line, and both.

    Source: google-research instruction_following_eval: what stands around an answer ("Sure, here it is:") is forgiven.
    """
    found = []
    for one in (text, text.replace("*", "")):
        parts = one.split("\n")
        found += [one, *("\n".join(part).strip() for part in (parts[1:], parts[:-1], parts[1:-1]))]
    return found


def holds_loosely(constraint: Mapping[str, Any], text: str, prompt: str = "") -> bool:
    """Whether any of the eight variants of the text keeps it."""
    return any(holds(constraint, one, prompt) for one in variants(text))


def rates(results: Sequence[Sequence[bool]]) -> dict[str, float]:
    """hsr: share of prompts of which all constraints hold; ssr: mean over prompts of the share that holds; instruction: share of all constraints.

    Names of CCR-Bench (hard and soft satisfaction rate), whose definitions are taken to be these; IFEval calls hsr prompt-level accuracy.
    """
    if not results or not all(len(row) for row in results):
        raise ConstraintError("there is no prompt, or one without constraints; wanted one constraint a prompt at least")
    flat = [kept for row in results for kept in row]
    return {"hsr": sum(all(row) for row in results) / len(results), "ssr": sum(sum(row) / len(row) for row in results) / len(results),
            "instruction": sum(flat) / len(flat)}  # fmt: skip


# ---- as rewards ------------------------------------------------------------------------------------------------------------


def _kept(prompts: Sequence[str], completions: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> list[list[bool] | None]:
    found: list[list[bool] | None] = []
    for number, (prompt, completion, about) in enumerate(zip(prompts, completions, meta, strict=True)):
        constraints = about.get("constraints")
        if constraints is None:
            found.append(None)
            continue
        if not isinstance(constraints, Sequence) or isinstance(constraints, str) or not constraints:
            raise ConstraintError(f"constraints of completion {number} are {constraints!r}; wanted a list of one or more")
        found.append([holds(checked(one), completion, prompt) for one in constraints])
    return found


def reward(prompts: Sequence[str], completions: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The share of its example's constraints that each completion keeps (soft); None for examples without constraints."""
    return [None if kept is None else sum(kept) / len(kept) for kept in _kept(prompts, completions, meta)]


def hard_reward(prompts: Sequence[str], completions: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """1 where a completion keeps all constraints of its example, else 0; None for examples without constraints."""
    return [None if kept is None else float(all(kept)) for kept in _kept(prompts, completions, meta)]


def mixed_reward(prompts: Sequence[str], completions: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """(hard + soft) / 2: what is easy alone does not earn the whole."""
    return [None if kept is None else (float(all(kept)) + sum(kept) / len(kept)) / 2 for kept in _kept(prompts, completions, meta)]
