"""`probability-sensitivity`: regressions by hand, a planted slope, probabilities of a table, separation, collinear and constant predictors."""

import math

import numpy as np
import pytest

import diagnose_tables
from isentrope.diagnose.data import Data
from isentrope.diagnose.intervals import logistic, wilson
from isentrope.diagnose.measure import DiagnoseError
from isentrope.diagnose.measures.probability_sensitivity import measure

X = np.array([-3, -2, -1, -0.5, 0.5, 1, 2, 3])[:, None]
Y = np.array([0, 0, 1, 0, 1, 0, 1, 1.0])
MODEL = diagnose_tables.model(["a", "b", "c"], {("a", "b"): 0.5, ("a", "c"): 0.25, ("b", "c"): 0.9, ("b", "b"): 0.05, ("c", "c"): 0.7})


def test_golden_regressions():
    plain, ridge = logistic(X, Y), logistic(X, Y, 0.1)
    assert plain.coefficients == pytest.approx([0, 0.866926], abs=1e-6) and plain.errors == pytest.approx([0.884687, 0.606987], abs=1e-6)
    assert ridge.coefficients == pytest.approx([0, 0.836871], abs=1e-6) and plain.why == ""
    assert wilson(0, 0) == (0, 1) and wilson(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)


def test_classes_that_can_be_parted_take_a_ridge():
    for x in (X, np.column_stack([X[:, 0], X[:, 0] ** 2])):
        found = logistic(x, (X[:, 0] > 0).astype(float))
        assert found.why == "separated" and found.ridge == 1 and np.isfinite(found.coefficients).all() and found.coefficients[1] > 0
    partly = np.column_stack([np.tile([0.0, 1], 20), np.arange(40) < 10])  # of the first ten all are right
    assert logistic(partly, np.where(np.arange(40) < 10, 1.0, np.arange(40) // 2 % 2)).why == "separated"
    assert logistic(np.column_stack([X, 2 * X]), Y).why == "collinear"


def lines(n=2000, slopes=(1.2, 0.0), seed=0, **more):
    generator = np.random.default_rng(seed)
    output, given = generator.normal(-20, 4, n), generator.normal(-30, 6, n)
    p = 1 / (1 + np.exp(-(slopes[0] * (output + 20) / 4 + slopes[1] * (given + 30) / 6)))
    return [{"input_logprob": float(b), "output_logprob": float(a), "correct": bool(c), **more} for a, b, c in zip(output, given, generator.random(n) < p)]


def test_a_planted_slope_is_within_its_interval():
    result = measure(MODEL, Data(lines()))
    found = {row[0]: row for row in result.table.rows}
    assert found["output_logprob"][3] < 1.2 < found["output_logprob"][4] and found["output_logprob"][6] < 1e-6
    assert abs(found["input_logprob"][5]) < 3
    thirds = [row for row in result.tables["terciles"].rows if row[0] == "output_logprob"]
    assert [row[4] for row in thirds] == [667, 667, 666] and thirds[0][5] < 0.35 and thirds[2][5] > 0.65


def test_intervals_hold_what_was_planted_as_often_as_they_say():
    held = 0
    for seed in range(100):
        row = measure(MODEL, Data(lines(200, (0.8, 0.5), seed))).table.rows[2]
        assert row[0] == "output_logprob"
        held += row[3] < 0.8 < row[4]
    assert 88 <= held <= 100


def test_probabilities_are_those_of_the_texts_by_themselves():
    rows = [{"prompt": "a b", "completion": " c", "input": text, "output": out, "correct": correct} for text, out, correct in
            (("a b c", "b c", True), ("a c", "b b c", False), ("a b b", "c c c", True), ("b c", "a c", False), ("b b b b", "a b", True), ("c c", "b c", False))]  # fmt: skip
    result = measure(MODEL, Data(rows), {"lengths": False})
    thirds = [row for row in result.tables["terciles"].rows if row[0] == "input_logprob"]
    # The first token has no probability: 0.5 · 0.9, 0.25, 0.5 · 0.05, 0.9, 0.05³, 0.7
    assert thirds[0][2] == pytest.approx(3 * math.log(0.05), rel=1e-5) and thirds[2][3] == pytest.approx(math.log(0.9), rel=1e-5)
    assert "of the text by itself" in result.variant


def test_answers_are_judged_by_greedy_decoding():
    rows = [{"prompt": "a b", "completion": " c"}, {"prompt": "a", "completion": " c"}, {"prompt": "c a", "completion": " b c"}, {"prompt": "b c", "completion": " a"}]
    result = measure(MODEL, Data(rows), {"lengths": False})
    assert result.numbers["accuracy"] == 0.5 and "greedy decoding" in result.variant and any("fewer than 5 each" in note for note in result.notes)


def test_tasks_and_their_probability():
    rows = [{**row, "task": "rot-13"} for row in lines(300, (0.0, 0.0))] + [{**row, "task": "rot-12", "correct": i % 10 == 0} for i, row in enumerate(lines(300, seed=1))]
    found = {row[0]: row for row in measure(MODEL, Data(rows)).table.rows}
    assert found["task rot-13"][3] > 0  # the interval
    shares = [{**row, "task_probability": 0.9 if row["task"] == "rot-13" else 0.1} for row in rows]
    result = measure(MODEL, Data(shares))
    assert {row[0]: row for row in result.table.rows}["task_logprob"][3] > 0 and [row[0] for row in result.tables["tasks"].rows] == ["rot-12", "rot-13"]
    shares[3]["task_probability"] = 0.0
    with pytest.raises(DiagnoseError, match="task_probability is 0; wanted above 0"):
        measure(MODEL, Data(shares))


def test_what_a_regression_cannot_tell_is_said():
    same = [{**row, "input_logprob": row["output_logprob"] * 2 + 0.01 * i % 3} for i, row in enumerate(lines(200))]
    assert any("collinear" in note for note in measure(MODEL, Data(same)).notes)
    twins = measure(MODEL, Data([{**row, "input_logprob": row["output_logprob"]} for row in lines(200)]))
    assert [row[0] for row in twins.table.rows] == ["intercept", "output_logprob"] and any("input_logprob goes up and down with output_logprob" in note for note in twins.notes)
    flat = [{**row, "input_logprob": -3.0} for row in lines(200)]
    assert any("input_logprob: the same in all lines" in note for note in measure(MODEL, Data(flat)).notes)
    with pytest.raises(DiagnoseError, match="every predictor"):
        measure(MODEL, Data([{**row, "output_logprob": -3.0} for row in flat]))
    with pytest.raises(DiagnoseError, match="all 200 answers are right"):
        measure(MODEL, Data([{**row, "correct": True} for row in lines(200)]))
    with pytest.raises(DiagnoseError, match="'prompt' of text 1 is missing"):
        measure(MODEL, Data([{"text": "a"}]))
    parted = [{**row, "correct": row["output_logprob"] > -20} for row in lines(200)]
    assert any("can be parted" in note for note in measure(MODEL, Data(parted)).notes)
