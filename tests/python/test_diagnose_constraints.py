"""`constraints`: a text that keeps each kind and one that does not, golden rates, what is said of bad constraints, rewards, the measure."""

import pytest

import diagnose_tables
from isentrope.diagnose.constraint_kinds import KINDS, ConstraintError, sentences, words
from isentrope.diagnose.constraints import checked, hard_reward, holds, holds_loosely, mixed_reward, rates, reward, variants
from isentrope.diagnose.data import Data
from isentrope.diagnose.measure import DiagnoseError
from isentrope.diagnose.measures.constraints import measure
from isentrope.reward_functions import checked_reward, load

# kind: (its keys, a text that keeps it, texts that do not)
CASES = {
    "words": ({"at_least": 2, "at_most": 3}, "two words", ["one", "one two three four"]),
    "characters": ({"at_most": 5}, "12345", ["123456"]),
    "sentences": ({"exactly": 3}, "Hello, world. It costs 3.50 euros! Ok?", ["One. Two.", "3.5 is one sentence."]),
    "paragraphs": ({"exactly": 2}, "a\nb\n\n \n\nc", ["a\nb", "a\n\nb\n\nc"]),
    "lines": ({"exactly": 2}, "a\n\nb\n", ["a", "a\nb\nc"]),
    "contains": ({"texts": ["cat", "3.5"]}, "A Cat of 3.5 kg", ["concatenate 3.5", "cat of 13.5"]),
    "forbidden": ({"texts": ["cat"]}, "concatenate", ["the CAT."]),
    "keyword": ({"text": "new", "exactly": 2}, "new, New", ["new", "renew new", "new new new"]),
    "letter": ({"letter": "q", "at_least": 2}, "Quiet quay", ["quiet"]),
    "nth_word": ({"n": -1, "text": "end"}, "at the END.", ["the end is near"]),
    "in_sentence": ({"n": 2, "text": "two"}, "One. It is two.", ["Two. One.", "Two."]),
    "starts_with": ({"text": "Dear"}, " dear all", ["all dear"]),
    "ends_with": ({"text": "Is there more?"}, "No. Is there more?\n", ["Is there more? No."]),
    "upper": ({}, "ALL OF IT 1", ["All", "123"]),
    "lower": ({}, "all of it 1", ["All", "123"]),
    "title_case": ({}, "The Way 2 Go", ["The way"]),
    "capital_words": ({"exactly": 1}, "I am NATO", ["NATO and EU", "I am"]),
    "without": ({"characters": ",;"}, "a b", ["a, b", "a; b"]),
    "quoted": ({}, '"all of it"', ['"a" b', '"']),
    "balanced": ({"depth": 2}, "f(a[1])", ["f(a)", "f(a[1)]", "f((a)", "f)(("]),
    "bullets": ({"exactly": 2}, "- a\n* b\nc", ["- a", "-a\n-b", "- a\n- b\n- c"]),
    "numbered": ({"at_least": 2}, "1. a\n2) b", ["1. a", "1.5 a\n2.5 b"]),
    "sections": ({"marker": "Section", "exactly": 2}, "Section 1\na\n## Section 2", ["Section 1", "see Section 1 and Section 2"]),
    "title": ({}, "<<A title>>\ntext", ["<A title>", "<< >>"]),
    "postscript": ({}, "text\n\nP.S. more", ["P.S. first\n\ntext", "P.S. alone"]),
    "placeholders": ({"at_least": 2}, "[name] of [city]", ["[name]", "[]"]),
    "parts": ({"separator": "***", "exactly": 2}, "a *** b", ["a", "a *** b *** c", "a ***"]),
    "stairs": ({}, "a\n b\n  c", ["a\n b\n b", "a"]),
    "no_white_space": ({}, "abc\n", ["a b"]),
    "json": ({"keys": ["a"], "types": {"b": "number"}}, '```json\n{"a": 1, "b": 2.5}\n```', ['{"a": 1}', '{"a": 1, "b": true}', "[1]", "{'a': 1}"]),
    "csv": ({"rows": 2, "columns": 3}, 'a,b,c\n1,"2,5",3', ["a,b,c", "a,b,c\n1,2", "a,b,c\n1,2,3\n4,5,6"]),
    "one_of": ({"options": ["Yes", "No"]}, "yes", ["yes, sir"]),
    "pattern": ({"pattern": "[a-c]+"}, "abc", ["abcd", "xabc"]),
    "in_order": ({"texts": ["first", "then"]}, "First a, then b", ["then a, first b", "first"]),
    "sorted": ({"of": "lines"}, "apple\nBanana\ncherry", ["b\na", "a"]),
    "growing": ({"of": "sentences"}, "One. One two. One two three.", ["One two. One.", "One."]),
    "initials_alphabetical": ({}, "You zip all", ["You all", "one"]),
    "initials_differ": ({}, "one two one", ["one only"]),
    "palindromes": ({"at_least": 2}, "Level noon a", ["Level a I"]),
    "numbers": ({"exactly": 3}, "1, -2 and 3.50", ["1 2", "1 2 3 4"]),
    "multiples": ({"of": 7, "up_to": 21}, "7, 14, 21", ["7 14", "7 14 21 28"]),
    "prime_lengths": ({}, "to the seven", ["four"]),
    "unique_words": ({"at_least": 3}, "a b c a", ["a B b A"]),
    "type_token_ratio": ({"at_least": 0.75}, "a b c c", ["a a b b"]),
    "overlap": ({"n": 2, "at_most": 0.5}, "write a poem now about rain", ["write a poem about"]),
    "repeats_prompt": ({}, "write a poem about you\nRoses", ["Roses"]),
    "steps": ({"number": 2}, "Step 1: a. step 2: b.", ["Step 2, Step 1", "Step 1", "Step 1 Step 2 Step 3"]),
}  # fmt: skip
PROMPT = "write a poem about you"


def test_every_kind_has_its_case():
    assert set(CASES) == set(KINDS) and len(KINDS) > 40


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_holds_and_does_not(kind):
    keys, kept, broken = CASES[kind]
    constraint = checked({"kind": kind, **keys})
    assert holds(constraint, kept, PROMPT), kept
    for text in broken:
        assert not holds(constraint, text, PROMPT), text
    for text in ("", " \n"):
        assert not holds(constraint, text, PROMPT)


def test_words_and_sentences():
    text = "Hello, world. It costs 3.50 euros! Ok?"
    assert len(words(text)) == 8 and len(text.split()) == 7 and len(sentences(text)) == 3
    assert words("don't stop") == ["don't", "stop"] and sentences("你好。再见！") == ["你好。", "再见！"] and sentences('He said "No." Then left.') == ['He said "No.', "Then left."]


def test_conditions_and_branches():
    condition = checked({"kind": "if", "of": "prompt", "if": {"kind": "contains", "texts": ["poem"]}, "then": {"kind": "lines", "at_least": 2}, "else": {"kind": "words", "exactly": 1}})
    assert holds(condition, "a\nb", "a poem") and not holds(condition, "a", "a poem") and holds(condition, "a", "a word") and not holds(condition, "a b", "a word")
    of_text = checked({"kind": "if", "if": {"kind": "contains", "texts": ["no"]}, "then": {"kind": "words", "at_most": 1}})
    assert holds(of_text, "no") and not holds(of_text, "no way") and holds(of_text, "yes we can")
    one = checked({"kind": "exactly_one", "constraints": [{"kind": "contains", "texts": ["left"]}, {"kind": "contains", "texts": ["right"]}]})
    assert holds(one, "left") and not holds(one, "left and right") and not holds(one, "up")


@pytest.mark.parametrize("constraint, said", [
    ("words", "is no constraint"), ({"kind": "word", "at_most": 3}, "did you mean words"), ({"kind": "words"}, "no limit"),
    ({"kind": "words", "at_least": 5, "at_most": 3}, "at_least 5, at_most 3 cannot hold together"), ({"kind": "words", "exactly": 3, "at_most": 3}, "exactly alone"),
    ({"kind": "words", "at_most": "3"}, "at_most is '3'; wanted int"), ({"kind": "words", "at_most": True}, "wanted int"), ({"kind": "words", "at_most": -1}, "below 0"),
    ({"kind": "words", "most": 3}, "no key 'most'; it has at_least"), ({"kind": "keyword", "exactly": 2}, "keyword lacks text"), ({"kind": "contains", "texts": []}, "is empty"),
    ({"kind": "contains", "texts": [1]}, "wanted texts that are not empty"), ({"kind": "pattern", "pattern": "("}, "no regular expression"), ({"kind": "letter", "letter": "ab", "exactly": 1}, "one character"),
    ({"kind": "nth_word", "n": 0, "text": "a"}, "wanted 1 or more"), ({"kind": "sorted", "of": "pages"}, "wanted one of words, sentences"), ({"kind": "json", "types": {"a": "date"}}, "wanted one of text"),
    ({"kind": "if", "if": {"kind": "title"}}, "then or else"), ({"kind": "if", "if": {"kind": "title"}, "then": {"kind": "x"}}, "no constraint 'x'"), ({"kind": "exactly_one", "constraints": [{"kind": "title"}]}, "two or more"),
])  # fmt: skip
def test_bad_constraints_are_told(constraint, said):
    with pytest.raises(ConstraintError, match=said):
        checked(constraint)


def test_what_stands_around_an_answer_is_forgiven_loosely():
    assert len(variants("a\nb\nc")) == 8
    constraint = checked({"kind": "starts_with", "text": "Dear"})
    assert not holds(constraint, "Sure:\nDear all") and holds_loosely(constraint, "Sure:\nDear all") and holds_loosely(constraint, "*Dear* all")
    assert not holds_loosely(constraint, "a\nb\nDear")


def test_golden_rates():
    found = rates([[True, True, True, False], [True] * 4, [False, True], [True, True, False]])
    assert found == {"hsr": 0.25, "ssr": pytest.approx(0.729167, abs=1e-6), "instruction": pytest.approx(0.769231, abs=1e-6)}
    with pytest.raises(ConstraintError, match="without constraints"):
        rates([[True], []])


META = [{"constraints": [{"kind": "words", "at_most": 2}, {"kind": "lower"}]}, {"constraints": [{"kind": "title"}]}, {"answer": "7"}]


def test_rewards():
    arguments = (["p", "p", "p"], ["two Words", "<<t>>", "x"], META)
    assert reward(*arguments) == [0.5, 1, None] and hard_reward(*arguments) == [0, 1, None] and mixed_reward(*arguments) == [0.25, 1, None]
    assert reward(["p"], [""], META[:1]) == [0]
    assert checked_reward("constraints", reward)(*arguments) == [0.5, 1, None]
    assert load(b"follows", b"isentrope.diagnose.constraints", b"reward", b"reward[0]")(*arguments, 0) == [0.5, 1, None]
    with pytest.raises(ConstraintError, match="completion 0 are 'x'"):
        reward(["p"], ["a"], [{"constraints": "x"}])


def test_the_measure_of_answers_that_are_given():
    rows = [{"prompt": "p", "response": text, "constraints": constraints} for text, constraints in (
        ("two words", [{"kind": "words", "exactly": 2}, {"kind": "lower"}]), ("Sure:\nlower", [{"kind": "lower"}]), ("", [{"kind": "words", "at_most": 9}]))]  # fmt: skip
    result = measure(diagnose_tables.model(["a"], {}), Data(rows))
    assert result.numbers["HSR"] == pytest.approx(1 / 3) and result.numbers["instructions followed"] == 0.5 and result.numbers["HSR, loosely"] == pytest.approx(2 / 3)
    assert [(row[0], row[1], row[2], row[5]) for row in result.table.rows] == [("lower", 2, 0.5, 1.0), ("words", 2, 0.5, 0.5)]
    assert result.tables["by_number"].rows == [[1, 2, 0.0, 0.0], [2, 1, 1.0, 1.0]] and any("1 of 3 answers are empty" in note for note in result.notes)


def test_the_measure_writes_answers_greedily():
    model = diagnose_tables.model(["go", "a", "b"], {("go", "a"): 0.9, ("a", "b"): 0.9, ("b", "<end>"): 0.9})
    result = measure(model, Data([{"prompt": "go", "constraints": [{"kind": "words", "exactly": 2}, {"kind": "contains", "texts": ["c"]}]}]))
    assert result.tables["answers"].rows == [["go", "a b", "1/2"]]
    with pytest.raises(DiagnoseError, match="constraints of text 1: there is no constraint 'word'"):
        measure(model, Data([{"prompt": "go", "constraints": [{"kind": "word"}]}]))
    with pytest.raises(DiagnoseError, match="'constraints' of text 1 is missing"):
        measure(model, Data([{"prompt": "go"}]))
