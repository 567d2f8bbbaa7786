"""The kinds of constraints of isentrope.diagnose.constraints: each a function of a text and of the constraint's keys.

A word is a run of letters, digits, _ and ' (`\\w` of Unicode). A sentence ends at one of . ! ? … with white space or the end behind it, or at one
of 。！？ . A paragraph is what empty lines divide, a line what line feeds do; empty ones are none. Case is that of ASCII letters alone, as in
"same letters". No kind knows a language.

Kinds and what they are called elsewhere: google-research instruction_following_eval, allenai/IFBench.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WORD = re.compile(r"\w+(?:'\w+)*")
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|(?<=[。！？])")
BULLET = re.compile(r"^[ \t]*[-*•+][ \t]+\S", re.MULTILINE)
NUMBERED = re.compile(r"^[ \t]*\d+[.)][ \t]+\S", re.MULTILINE)
TITLE = re.compile(r"<<[^<>\n]*\S[^<>\n]*>>")
PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*")
LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
BRACKETS = {")": "(", "]": "[", "}": "{"}

Given = Mapping[str, Any]
Check = Callable[[str, Given, str], bool]


class ConstraintError(ValueError):
    """What is wrong with a constraint: the kind, the key, what came, what was wanted."""


@dataclass(frozen=True)
class Kind:
    """One kind: check(text, keys, prompt) says whether it holds; keys are {name: (types, whether it has to be given)}."""

    name: str
    group: str
    what: str
    check: Check
    keys: dict[str, tuple[tuple[type, ...], bool]] = field(default_factory=dict)
    count: bool = False  # takes at_least, at_most, exactly


KINDS: dict[str, Kind] = {}
BOUNDS = ("at_least", "at_most", "exactly")
TEXT, TEXTS, WHOLE, NUMERIC, FLAG, OBJECT = (str,), (list,), (int,), (int, float), (bool,), (dict,)


def _kind(name: str, group: str, what: str, **keys: tuple[tuple[type, ...], bool]) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        KINDS[name] = Kind(name, group, what, check, keys)
        return check

    return register


def _counted(name: str, group: str, what: str, **keys: tuple[tuple[type, ...], bool]) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """A kind that counts something: the function gives the number, at_least, at_most and exactly are the limits."""

    def register(number: Callable[..., float]) -> Callable[..., float]:
        def check(text: str, given: Given, prompt: str) -> bool:
            return within(number(text, given, prompt), given)

        KINDS[name] = Kind(name, group, what, check, keys, count=True)
        return number

    return register


# ---- texts and their parts -----------------------------------------------------------------------------------------------


def lower(text: str) -> str:
    """ASCII letters in lower case; others as they are."""
    return text.translate(LOWER)


def words(text: str) -> list[str]:
    return WORD.findall(text)


def sentences(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in SENTENCE_END.split(text)) if part]


def paragraphs(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in re.split(r"\n[ \t]*\n", text)) if part]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


PARTS: dict[str, Callable[[str], list[str]]] = {"words": words, "sentences": sentences, "paragraphs": paragraphs, "lines": lines}


def within(number: float, given: Given) -> bool:
    """Whether a number keeps the limits at_least, at_most and exactly that are given."""
    if "exactly" in given and number != given["exactly"]:
        return False
    return bool(given.get("at_least", -float("inf")) <= number <= given.get("at_most", float("inf")))


def occurrences(text: str, wanted: str) -> int:
    """How often wanted stands in text, in whole words ("cat" is not in "concatenate") and in either case."""
    left = r"(?<!\w)" if wanted[:1].isalnum() else ""
    right = r"(?!\w)" if wanted[-1:].isalnum() else ""
    return len(re.findall(left + re.escape(lower(wanted)) + right, lower(text)))


def _letters(text: str) -> list[str]:
    return [letter for letter in text if letter.isalpha()]


# ---- length ----------------------------------------------------------------------------------------------------------------


@_counted("words", "length", "number of words")
def _words(text: str, given: Given, prompt: str) -> float:
    return len(words(text))


@_counted("characters", "length", "number of characters, white space among them")
def _characters(text: str, given: Given, prompt: str) -> float:
    return len(text)


@_counted("sentences", "length", "number of sentences")
def _sentences(text: str, given: Given, prompt: str) -> float:
    return len(sentences(text))


@_counted("paragraphs", "length", "number of paragraphs")
def _paragraphs(text: str, given: Given, prompt: str) -> float:
    return len(paragraphs(text))


@_counted("lines", "length", "number of lines that are not empty")
def _lines(text: str, given: Given, prompt: str) -> float:
    return len(lines(text))


# ---- keywords --------------------------------------------------------------------------------------------------------------


@_kind("contains", "keyword", "each of the texts stands in it, as whole words", texts=(TEXTS, True))
def _contains(text: str, given: Given, prompt: str) -> bool:
    return all(occurrences(text, wanted) for wanted in given["texts"])


@_kind("forbidden", "keyword", "none of the texts stands in it, as whole words", texts=(TEXTS, True))
def _forbidden(text: str, given: Given, prompt: str) -> bool:
    return not any(occurrences(text, wanted) for wanted in given["texts"])


@_counted("keyword", "keyword", "how often a text stands in it, as whole words", text=(TEXT, True))
def _keyword(text: str, given: Given, prompt: str) -> float:
    return occurrences(text, given["text"])


@_counted("letter", "keyword", "how often a letter stands in it, in either case", letter=(TEXT, True))
def _letter(text: str, given: Given, prompt: str) -> float:
    return lower(text).count(lower(given["letter"]))


@_kind("nth_word", "keyword", "the n-th word, from 1, or from the end with n below 0", n=(WHOLE, True), text=(TEXT, True))
def _nth_word(text: str, given: Given, prompt: str) -> bool:
    found, n = words(text), given["n"]
    return abs(n) <= len(found) and lower(found[n - 1 if n > 0 else n]) == lower(given["text"])


@_kind("in_sentence", "keyword", "a text stands in the n-th sentence", n=(WHOLE, True), text=(TEXT, True))
def _in_sentence(text: str, given: Given, prompt: str) -> bool:
    found, n = sentences(text), given["n"]
    return abs(n) <= len(found) and bool(occurrences(found[n - 1 if n > 0 else n], given["text"]))


@_kind("starts_with", "keyword", "it begins with a text, in either case, white space apart", text=(TEXT, True))
def _starts_with(text: str, given: Given, prompt: str) -> bool:
    return lower(text.strip()).startswith(lower(given["text"].strip()))


@_kind("ends_with", "keyword", "it ends with a text, in either case, white space apart", text=(TEXT, True))
def _ends_with(text: str, given: Given, prompt: str) -> bool:
    return lower(text.strip()).endswith(lower(given["text"].strip()))


# ---- case and marks --------------------------------------------------------------------------------------------------------


@_kind("upper", "case", "no letter of lower case, and one letter at least")
def _upper(text: str, given: Given, prompt: str) -> bool:
    return bool(_letters(text)) and not re.search("[a-z]", text)


@_kind("lower", "case", "no letter of upper case, and one letter at least")
def _lower(text: str, given: Given, prompt: str) -> bool:
    return bool(_letters(text)) and not re.search("[A-Z]", text)


@_kind("title_case", "case", "every word begins with a capital or a digit")
def _title_case(text: str, given: Given, prompt: str) -> bool:
    found = words(text)
    return bool(found) and not any("a" <= word[0] <= "z" for word in found)


@_counted("capital_words", "case", "number of words of capitals alone, of two letters at least")
def _capital_words(text: str, given: Given, prompt: str) -> float:
    return sum(len(_letters(word)) >= 2 and not re.search("[a-z]", word) for word in words(text))


@_kind("without", "case", "none of these characters", characters=(TEXT, True))
def _without(text: str, given: Given, prompt: str) -> bool:
    return not set(text) & set(given["characters"])


@_kind("quoted", "case", 'the whole stands in "double quotes"')
def _quoted(text: str, given: Given, prompt: str) -> bool:
    whole = text.strip()
    return len(whole) > 2 and whole[0] == whole[-1] == '"'


@_kind("balanced", "case", "every bracket ( [ { is closed in order, to a depth if one is given", depth=(WHOLE, False))
def _balanced(text: str, given: Given, prompt: str) -> bool:
    stack: list[str] = []
    deepest = 0
    for letter in text:
        if letter in BRACKETS.values():
            stack.append(letter)
            deepest = max(deepest, len(stack))
        elif letter in BRACKETS and (not stack or stack.pop() != BRACKETS[letter]):
            return False
    return not stack and deepest >= given.get("depth", 1)


# ---- layout ----------------------------------------------------------------------------------------------------------------


@_counted("bullets", "layout", "number of lines that begin with - * • or +")
def _bullets(text: str, given: Given, prompt: str) -> float:
    return len(BULLET.findall(text))


@_counted("numbered", "layout", "number of lines that begin with 1. or 1)")
def _numbered(text: str, given: Given, prompt: str) -> float:
    return len(NUMBERED.findall(text))


@_counted("sections", "layout", "number of lines that begin with the marker and a number, as Section 1", marker=(TEXT, True))
def _sections(text: str, given: Given, prompt: str) -> float:
    return len(re.findall(rf"^[ \t#*]*{re.escape(given['marker'])}[ \t]*\d+", text, re.MULTILINE))


@_kind("title", "layout", "a title in <<double angle brackets>>")
def _title(text: str, given: Given, prompt: str) -> bool:
    return bool(TITLE.search(text))


@_kind("postscript", "layout", "a line at the end begins with the marker (P.S.)", marker=(TEXT, False))
def _postscript(text: str, given: Given, prompt: str) -> bool:
    found = paragraphs(text)
    return len(lines(text)) > 1 and any(lower(line.strip()).startswith(lower(given.get("marker", "P.S."))) for line in lines(found[-1]))


@_counted("placeholders", "layout", "number of [placeholders]")
def _placeholders(text: str, given: Given, prompt: str) -> float:
    return len(PLACEHOLDER.findall(text))


@_counted("parts", "layout", "number of parts that are not empty between separators", separator=(TEXT, True))
def _parts(text: str, given: Given, prompt: str) -> float:
    return sum(bool(part.strip()) for part in text.split(given["separator"]))


@_kind("stairs", "layout", "each line is indented further than the one before it")
def _stairs(text: str, given: Given, prompt: str) -> bool:
    depths = [len(line) - len(line.lstrip(" \t")) for line in lines(text)]
    return len(depths) > 1 and all(a < b for a, b in zip(depths, depths[1:]))


@_kind("no_white_space", "layout", "no white space within it")
def _no_white_space(text: str, given: Given, prompt: str) -> bool:
    return not re.search(r"\s", text.strip())


# ---- structure -------------------------------------------------------------------------------------------------------------

_JSON_TYPES: dict[str, tuple[type, ...]] = {"text": (str,), "number": (int, float), "true or false": (bool,), "list": (list,), "object": (dict,)}


@_kind("json", "structure", "the whole is JSON, in a fence or not; with keys, an object that has them, with types as {key: text, number, …}",
       keys=(TEXTS, False), types=(OBJECT, False))  # fmt: skip
def _json(text: str, given: Given, prompt: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?[ \t]*\n(.*?)\n?```", text.strip(), re.DOTALL)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return False
    types = given.get("types", {})
    if not (given.get("keys") or types):
        return True
    if not isinstance(value, dict) or any(key not in value for key in [*given.get("keys", []), *types]):
        return False
    return all(isinstance(value[key], _JSON_TYPES[of]) and (of == "true or false" or not isinstance(value[key], bool)) for key, of in types.items())


@_kind("csv", "structure", "lines of comma-separated values, as many rows and columns as are given", rows=(WHOLE, False), columns=(WHOLE, False))
def _csv(text: str, given: Given, prompt: str) -> bool:
    try:
        rows = [row for row in csv.reader(io.StringIO(text.strip()), strict=True) if row]
    except csv.Error:
        return False
    widths = {len(row) for row in rows}
    return len(widths) == 1 and given.get("rows", len(rows)) == len(rows) and widths == {given.get("columns", *widths)}


@_kind("one_of", "structure", "the whole is one of the options, in either case", options=(TEXTS, True))
def _one_of(text: str, given: Given, prompt: str) -> bool:
    return lower(text.strip()) in {lower(option.strip()) for option in given["options"]}


@_kind("pattern", "structure", "a regular expression of Python matches the whole", pattern=(TEXT, True))
def _pattern(text: str, given: Given, prompt: str) -> bool:
    return bool(re.fullmatch(given["pattern"], text.strip(), re.DOTALL))


# ---- order -----------------------------------------------------------------------------------------------------------------


@_kind("in_order", "order", "each of the texts stands in it, behind the one before", texts=(TEXTS, True))
def _in_order(text: str, given: Given, prompt: str) -> bool:
    place, where = 0, lower(text)
    for wanted in given["texts"]:
        found = where.find(lower(wanted), place)
        if found < 0:
            return False
        place = found + len(wanted)
    return True


@_kind("sorted", "order", "its words or lines are in the order of the alphabet", of=(TEXT, False), reverse=(FLAG, False))
def _sorted(text: str, given: Given, prompt: str) -> bool:
    found = [lower(part.strip()) for part in PARTS[given.get("of", "words")](text)]
    return len(found) > 1 and found == sorted(found, reverse=given.get("reverse", False))


@_kind("growing", "order", "each word, sentence, line or paragraph is longer than the one before", of=(TEXT, False))
def _growing(text: str, given: Given, prompt: str) -> bool:
    of = given.get("of", "sentences")
    sizes = [len(part) if of == "words" else len(words(part)) for part in PARTS[of](text)]
    return len(sizes) > 1 and all(a < b for a, b in zip(sizes, sizes[1:]))


@_kind("initials_alphabetical", "order", "each word begins with the letter after that of the word before, z before a")
def _initials_alphabetical(text: str, given: Given, prompt: str) -> bool:
    initials = [lower(word[0]) for word in words(text)]
    return len(initials) > 1 and all("a" <= a <= "z" and ord(b) - 97 == (ord(a) - 96) % 26 for a, b in zip(initials, initials[1:]))


@_kind("initials_differ", "order", "no two words behind one another begin with the same letter")
def _initials_differ(text: str, given: Given, prompt: str) -> bool:
    initials = [lower(word[0]) for word in words(text)]
    return bool(initials) and all(a != b for a, b in zip(initials, initials[1:]))


@_counted("palindromes", "order", "number of words of three letters or more that read the same backwards")
def _palindromes(text: str, given: Given, prompt: str) -> float:
    return sum(len(word) >= 3 and lower(word) == lower(word)[::-1] for word in words(text))


# ---- numbers ---------------------------------------------------------------------------------------------------------------


@_counted("numbers", "numeric", "how many numbers stand in it")
def _numbers(text: str, given: Given, prompt: str) -> float:
    return len(NUMBER.findall(text))


@_kind("multiples", "numeric", "its numbers are the multiples of a number up to a limit, in order", of=(WHOLE, True), up_to=(WHOLE, True))
def _multiples(text: str, given: Given, prompt: str) -> bool:
    return NUMBER.findall(text) == [str(value) for value in range(given["of"], given["up_to"] + 1, given["of"])]


@_kind("prime_lengths", "numeric", "the number of letters of every word is a prime")
def _prime_lengths(text: str, given: Given, prompt: str) -> bool:
    sizes = {len(word) for word in words(text)}
    return bool(sizes) and all(size > 1 and all(size % k for k in range(2, int(size**0.5) + 1)) for size in sizes)


@_counted("unique_words", "numeric", "number of different words, in either case")
def _unique_words(text: str, given: Given, prompt: str) -> float:
    return len(set(map(lower, words(text))))


@_counted("type_token_ratio", "numeric", "different words per word, 0 without a word")
def _type_token_ratio(text: str, given: Given, prompt: str) -> float:
    found = [lower(word) for word in words(text)]
    return len(set(found)) / len(found) if found else 0.0


@_counted("overlap", "numeric", "share of its runs of n words (3) that stand in the prompt", n=(WHOLE, False))
def _overlap(text: str, given: Given, prompt: str) -> float:
    n = given.get("n", 3)
    runs = [[tuple(found[i : i + n]) for i in range(len(found) - n + 1)] for found in (words(lower(text)), words(lower(prompt)))]
    return sum(run in set(runs[1]) for run in runs[0]) / len(runs[0]) if runs[0] else 0.0


# ---- flow ------------------------------------------------------------------------------------------------------------------


@_kind("repeats_prompt", "flow", "it begins with the prompt, or with a text that is given", text=(TEXT, False))
def _repeats_prompt(text: str, given: Given, prompt: str) -> bool:
    return text.strip().startswith(given.get("text", prompt).strip())


@_kind("steps", "flow", "Step 1, Step 2, … up to the number, in order and each once", number=(WHOLE, True), marker=(TEXT, False))
def _steps(text: str, given: Given, prompt: str) -> bool:
    found = re.findall(rf"(?<!\w){re.escape(lower(given.get('marker', 'Step')))}[ \t]*(\d+)", lower(text))
    return found == [str(i) for i in range(1, given["number"] + 1)]


def groups() -> dict[str, list[str]]:
    """{group: names} of all kinds."""
    found: dict[str, list[str]] = {}
    for kind in KINDS.values():
        found.setdefault(kind.group, []).append(kind.name)
    return found


def choices(kind: str, key: str) -> Sequence[str]:
    """The values that a key may have, where they are few."""
    if key == "of" and kind in ("sorted", "growing"):
        return list(PARTS)
    return list(_JSON_TYPES) if (kind, key) == ("json", "types") else ()
