"""isentrope grams: phrases of right answers, their matcher, the command."""

import json
import subprocess

import pytest

from isentrope import grams


@pytest.mark.parametrize("known, text, places", [  # those of tests/csrc/token_text_test.cpp
    (["let me check"], "So  LET me\n check, let me checks.", [(4, 17, 0)]),
    (["let me", "let me check", "me check"], "let me check", [(0, 6, 0), (0, 12, 1), (4, 12, 2)]),
    (["=3"], "a=3, a = 3, a=30", [(1, 3, 0), (7, 10, 0)]),
    (["don't", "déjà vu"], "Don't DéJà", [(0, 5, 0)]),
    (["déjà vu"], "un déjà vu!", [(3, 12, 0)]),
    (["a b c d"], "a b c", []),
    (["a"], "", []),
])  # fmt: skip
def test_find(known, text, places):
    assert grams.find(text, known) == places


ANSWERS = ["Let me check this. 3 + 4 = 7.", "let me check that, let me check this: 8", "So let me think. 3 + 4 = 7.", "nothing"]


def test_mine_counts_answers_and_not_places():
    found = {gram.text: gram for gram in grams.mine(ANSWERS, top=1.0)}
    assert found["let me check"] == ("let me check", 2, 1.5)
    assert found["3 + 4"].documents == found["3 + 4 ="].documents == found["+ 4 = 7"].documents == 2
    assert "let me think" not in found and "let me" not in found and "3 + 4 = 7 ." not in found  # one answer, two words, six words
    assert {gram.text for gram in grams.mine(ANSWERS, top=1.0, least=1)} > set(found) | {"so let me"}


def test_mine_puts_the_frequent_first_and_what_an_answer_repeats_last():
    best = grams.mine(ANSWERS, top=1.0)
    assert [gram.documents for gram in best] == sorted((gram.documents for gram in best), reverse=True)
    assert best[-1].text == "let me check"  # of equal ones that with two places in an answer
    assert grams.mine(ANSWERS, top=0.01) == best[:1] and grams.mine(ANSWERS, top=0.5) == best[: len(best) // 2]
    assert grams.mine([]) == [] and grams.mine(["a b"]) == []
    assert [g.text for g in grams.mine(["x y", "y x y"], least_words=1, most_words=2, top=1.0)] == ["x", "x y", "y"]


@pytest.mark.parametrize("keys, message", [
    ({"least_words": 0}, "words are 0 to 5; wanted 1 or more, rising"), ({"least_words": 6}, "words are 6 to 5"),
    ({"top": 0.0}, "top is 0; wanted above 0 to 1"), ({"top": 1.5}, r"top is 1\.5"), ({"least": 0}, "least is 0; wanted 1 or more"),
])  # fmt: skip
def test_mine_refuses(keys, message):
    with pytest.raises(ValueError, match=message):
        grams.mine(ANSWERS, **keys)


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_command(tmp_path, capsys):
    """Of a run's rollouts the right ones by the first reward; the file is one that hicra takes."""
    (tmp_path / "run/rollouts").mkdir(parents=True)
    rows = [{"phase": "p", "step": 1, "completion": text, "rewards": {"answer": score, "format": 1 - (score or 0)}} for text, score in
            [(ANSWERS[0], 1.0), (ANSWERS[1], 0.5), (ANSWERS[2], 0.0), ("let me check it", None)]]  # fmt: skip
    lines(tmp_path / "run/rollouts/p.jsonl", rows)
    lines(tmp_path / "run/metrics.jsonl", [{"phase": "p", "step": 1}])
    out = tmp_path / "grams.json"
    assert grams.main([str(tmp_path / "run"), "-o", str(out), "--top", "1"]) == 0
    assert capsys.readouterr().out == f"{out}: 3 phrases of 2 right answers\n"
    made = json.loads(out.read_text())
    assert made["answers"] == 2 and made["words"] == [3, 5]
    assert [(one["text"], one["cluster"], one["documents"], one["mean"]) for one in made["grams"]] == [
        ("let me check this", 0, 2, 1.0), ("me check this", 1, 2, 1.0), ("let me check", 2, 2, 1.5)]
    plain = lines(tmp_path / "plain.jsonl", [{"completion": text} for text in ANSWERS])
    assert grams.main([str(plain), str(tmp_path / "run"), "-o", str(out), "--top", "1", "--words", "2", "2"]) == 0
    assert json.loads(out.read_text())["answers"] == 6


@pytest.mark.parametrize("words, message", [
    (["missing", "-o", "x.json"], "missing is not there; name the folder of a run, or a file of JSON lines"),
    (["plain.jsonl", "-o", "plain.jsonl"], "--output plain.jsonl: is a file that is read; name another"),
    (["plain.jsonl", "-o", "no/x.json"], "--output no/x.json: its folder is not there; name a file"),
    (["plain.jsonl", "-o", "x.json", "--least", "9"], "4 right answers, and no phrase of 3 to 5 words that 9 of them have"),
    (["plain.jsonl", "-o", "x.json", "--top", "0"], "top is 0; wanted above 0 to 1"),
    (["wrong.jsonl", "-o", "x.json"], "wrong.jsonl: a line's rewards are []; wanted an object with one or more"),
    (["torn.jsonl", "-o", "x.json"], "torn.jsonl:1: not an object with completion"),
])  # fmt: skip
def test_command_refuses(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "plain.jsonl", [{"completion": text} for text in ANSWERS])
    lines(tmp_path / "wrong.jsonl", [{"completion": "a", "rewards": []}])
    lines(tmp_path / "torn.jsonl", [{"text": "a"}])
    assert grams.main(words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists() and not (tmp_path / "x.json.part").exists()


def test_it_is_a_command_of_the_program():
    told = subprocess.run(["isentrope", "grams", "--help"], capture_output=True, text=True)
    assert told.returncode == 0 and "strategic" not in told.stderr and "--least" in told.stdout
