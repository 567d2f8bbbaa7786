"""`cot-information`: a finite class computed by hand, automata, bounds of samples; traces of a table whose probabilities are known."""

import itertools
import math

import numpy as np
import pytest

import diagnose_tables
from isentrope.diagnose.chain_information import cot_information, cot_information_proxy, worst_expected_error
from isentrope.diagnose.data import Data
from isentrope.diagnose.intervals import clopper_pearson_upper
from isentrope.diagnose.measure import DiagnoseError
from isentrope.diagnose.measures.cot_information import CotInformation, measure

# x → a x + b mod 7, three steps: the answer is whether the third value is 4 or more, the chain the first two.
CLASS = [(a, b) for a in range(1, 7) for b in range(7)]
TARGET = CLASS.index((3, 1))


def steps(a, b, x):
    values = []
    for _ in range(3):
        x = (a * x + b) % 7
        values.append(x)
    return values


ANSWERS = np.array([[steps(a, b, x)[2] >= 4 for x in range(7)] for a, b in CLASS])
CHAINS = np.array([[steps(a, b, x)[:2] for x in range(7)] for a, b in CLASS])


def test_a_class_computed_by_hand():
    for found, bad, answer, examples in zip(cot_information(ANSWERS, CHAINS, TARGET, [0.1, 0.2, 0.3, 0.5]), [38, 38, 30, 30], [5 / 7, 5 / 7, 3 / 7, 3 / 7], [21, 21, 8, 8]):
        assert found.bad == bad and found.examples_chain == 4 and found.examples_answer == examples
        assert found.chain == pytest.approx(math.log(7), abs=1e-12) and found.answer == pytest.approx(-math.log(answer), abs=1e-12)
        assert found.chain_low == found.chain  # all inputs


def test_errors_of_those_that_fit():
    chain = [worst_expected_error(ANSWERS, CHAINS, TARGET, m) for m in (1, 2, 6)]
    answer = [worst_expected_error(ANSWERS, None, TARGET, m) for m in (1, 2, 6)]
    # 20,000 draws gave .123 .017 0 and .612 .356 .077; 2000 have a standard error of .006 at most.
    assert np.allclose(chain, [0.123, 0.017, 0], atol=0.03) and np.allclose(answer, [0.612, 0.356, 0.077], atol=0.03)


def test_automata_of_three_states():
    inputs = list(itertools.product(range(2), repeat=4))
    machines = list(itertools.product(range(3), repeat=6))  # of state · 2 + letter

    def walk(machine, word):
        states = [0]
        for letter in word:
            states.append(machine[2 * states[-1] + letter])
        return states[1:]

    walks = np.array([[walk(machine, word) for word in inputs] for machine in machines])
    found = cot_information(walks[:, :, -1] == 2, walks[:, :, :-1], machines.index((1, 2, 0, 2, 2, 1)), [0.05, 0.25])
    assert [(one.bad, round(one.chain, 6), round(one.answer, 6)) for one in found] == [(699, 0.693147, 0.207639), (683, 0.693147, 0.374693)]


def test_the_definition_is_strict_and_chains_of_no_use_add_nothing():
    answers = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]])
    same = np.zeros_like(answers)
    quarter, half = cot_information(answers, same, 0, [0.25, 0.5])
    assert quarter.bad == 1 and quarter.chain == quarter.answer == pytest.approx(math.log(2))
    assert half.bad == 0 and math.isinf(half.chain) and half.examples_chain == 0
    told = np.arange(3)[:, None].repeat(4, 1)  # the chain names the hypothesis
    assert math.isinf(cot_information(answers, told, 0, [0.1])[0].chain)


def test_inputs_that_are_a_sample_are_bounded():
    assert clopper_pearson_upper(0, 10, 0.05) == pytest.approx(1 - 0.05**0.1, abs=1e-12)
    answers = np.array([[0] * 20, [1] * 20])
    found = cot_information(answers, answers, 0, [0.1], sampled=True)[0]
    assert math.isinf(found.chain) and found.chain_low == pytest.approx(-math.log(1 - (0.05 / 2) ** (1 / 20)), abs=1e-9)
    # The bound of what is seen lies below the true information of ln 2 in 95 of 100 samples.
    generator, low = np.random.default_rng(0), 0
    for _ in range(200):
        drawn = generator.integers(2, size=40)
        rows = np.stack([np.zeros(40, int), drawn])
        low += cot_information(rows, rows, 0, [0.1], sampled=True)[0].answer_low <= math.log(2)
    assert low >= 190


def lines(**columns):
    return Data([dict(zip(columns, row)) for row in zip(*columns.values())])


def test_a_class_by_the_command_and_what_is_said_of_bad_ones():
    model = diagnose_tables.model(["a"], {})
    rows = [{"answers": a.tolist(), "chains": c.tolist(), "target": i == TARGET} for i, (a, c) in enumerate(zip(ANSWERS, CHAINS))]
    result = measure(model, Data(rows), {"epsilons": "0.1,0.95"})
    assert result.table.rows[0][:4] == [0.1, 38, pytest.approx(math.log(7)), pytest.approx(-math.log(5 / 7))] and result.table.rows[1][2] is None
    assert any("no hypothesis errs on more than 0.95" in note for note in result.notes) and "strictly" in result.variant
    for changed, said in (([{**row, "target": False} for row in rows], "0 lines have target true"), ([rows[TARGET], {**rows[0], "answers": [True]}], "as many in each"),
                          ([rows[TARGET], {**rows[TARGET], "target": False}], "answer alike at the 7 inputs")):  # fmt: skip
        with pytest.raises(DiagnoseError, match=said):
            measure(model, Data(changed))
    with pytest.raises(DiagnoseError, match="wanted numbers with commas"):
        measure(model, Data(rows), {"epsilons": "x"})


# ---- traces ------------------------------------------------------------------------------------------------------------


def test_what_chains_tell_of_answers_whose_probabilities_are_known():
    # Behind the question either answer is as likely as not; behind its own chain it has 0.9.
    model = diagnose_tables.model(["?", "c1", "c2", "x", "y"], {("?", "x"): 0.4, ("?", "y"): 0.4, ("c1", "x"): 0.9, ("c1", "y"): 0.05, ("c2", "x"): 0.05, ("c2", "y"): 0.9})
    chains = ["c1", "c2"] * 30
    data = lines(prompt=["?"] * 60, chain=[f" {c}" for c in chains], answer=[" x" if c == "c1" else " y" for c in chains])
    result = measure(model, data)
    loss = {row[0]: row[1] for row in result.table.rows}
    assert loss["loss of answer"] == pytest.approx(-math.log(0.4), rel=1e-5) and loss["loss of answer after chain"] == pytest.approx(-math.log(0.9), rel=1e-5)
    assert loss["information of the chain"] == pytest.approx(math.log(0.9 / 0.4), rel=1e-5) and result.numbers["right behind the chain"] == 1
    assert loss["information of another's chain"] < 0 and not any("nearly as much" in note for note in result.notes)


def test_chains_that_say_nothing_of_the_answer_are_found_out():
    model = diagnose_tables.model(["?", "c1", "c2", "x", "y"], {("?", "x"): 0.2, ("?", "y"): 0.2, ("c1", "x"): 0.45, ("c1", "y"): 0.45, ("c2", "x"): 0.45, ("c2", "y"): 0.45})
    result = measure(model, lines(prompt=["?"] * 40, chain=[" c1", " c2"] * 20, answer=[" x", " x", " y", " y"] * 10))
    assert any("the form of a chain that helps" in note for note in result.notes)


def test_completions_are_cut_at_the_separator():
    model = diagnose_tables.model(["?", "c1", "A", "x", "y"], {("A", "x"): 0.5, ("c1", "A"): 0.5})
    result = measure(model, lines(prompt=["?", "?"], completion=[" c1 A x", " c1 A y"]), {"separator": "A"})
    assert {row[0]: row[1] for row in result.table.rows}["information of the chain"] == pytest.approx(0)  # the table sees A alone
    with pytest.raises(DiagnoseError, match="text 2 has no 'A' with an answer behind it"):
        measure(model, lines(prompt=["?", "?"], completion=[" c1 A x", " c1 x"]), {"separator": "A"})
    with pytest.raises(DiagnoseError, match="separator=TEXT"):
        measure(model, lines(prompt=["?", "?"], completion=[" c1 A x", " c1 A x"]))
    with pytest.raises(DiagnoseError, match="has 1 trace"):
        measure(model, lines(prompt=["?"], chain=[" c1"], answer=[" x"]))


# ---- over checkpoints --------------------------------------------------------------------------------------------------


def test_the_proxy_of_all_pairs_is_the_least_information_over_the_targets():
    chains = np.array([[str(value) for value in row] for row in CHAINS])
    epsilons = [0.1, 0.3, 0.5]
    of_each = [cot_information(ANSWERS[:20], CHAINS[:20], target, epsilons) for target in range(20)]
    for place, found in enumerate(cot_information_proxy(ANSWERS[:20], chains[:20], epsilons)):
        own = [one[place] for one in of_each]
        assert found.chain == pytest.approx(min(one.chain for one in own), abs=1e-12) and found.answer == pytest.approx(min(one.answer for one in own), abs=1e-12)
        assert 2 * found.pairs == sum(one.bad for one in own) and found.chain_low < found.chain
        i, j = found.of
        assert -math.log(((ANSWERS[i] == ANSWERS[j]) & (chains[i] == chains[j])).mean()) == pytest.approx(found.chain)
    for found, own in zip(cot_information_proxy(ANSWERS, CHAINS[..., 0] * 7 + CHAINS[..., 1], epsilons, target=TARGET), cot_information(ANSWERS, CHAINS, TARGET, epsilons)):
        assert (found.pairs, found.chain, found.answer) == (own.bad, pytest.approx(own.chain), pytest.approx(own.answer))
    with pytest.raises(DiagnoseError, match="1 writer of chains; wanted two"):
        cot_information_proxy(ANSWERS[:1], chains[:1], [0.1])


def test_checkpoints_whose_chains_are_known():
    """Three models that always write one answer, the chains c1 or c2 by the prompt or c1 alone; of the right ones the answer follows the prompt."""
    words = ["?", "!", "c1", "c2", "A", "x", "y"]

    def model(chain, answer):
        sure = {("?", "c1"): 0.9, ("!", chain): 0.8, ("c1", "A"): 0.9, ("c2", "A"): 0.9, ("A", answer): 0.7, ("x", "<end>"): 0.9, ("y", "<end>"): 0.9}
        return diagnose_tables.model(words, sure)

    data = lines(prompt=["?", "!"] * 4, completion=[" c1 A x", " c2 A y"] * 4)
    options = {"separator": "A", "write": 5, "epsilons": "0.3,0.5,1"}
    results = [(name, measure(model(*kind), data, options)) for name, kind in {"one": ("c2", "x"), "two": ("c1", "y"), "three": ("c1", "x")}.items()]
    assert results[0][1].tables["written"].rows[:2] == [["?", "c1", "x", "c1", "x"], ["!", "c2", "y", "c2", "x"]]
    assert [result.numbers["chain and answer right by itself"] for _, result in results] == [0.5, 0, 0.5]
    assert [result.numbers["right by itself"] for _, result in results] == [0.5, 0.5, 0.5]
    whole = CotInformation.over(results)
    assert whole.table.column("model") == ["one", "two", "three"] and whole.table.column("right_by_itself") == [0.5, 0.5, 0.5]
    assert whole.table.column("information") == [pytest.approx(0)] * 3  # the answer comes of A alone
    assert whole.table.rows[0][1] == pytest.approx(-(math.log(0.7) + math.log(0.3 / 7)) / 2, rel=1e-5)
    found = {(row[0], row[1]): row[2:] for row in whole.tables["cot_information_proxy"].rows}
    # one and two, two and three never answer alike: no agreement, which is a bound of eight prompts; one and three always do.
    assert found["of checkpoints", 0.3] == found["of checkpoints", 0.5] == [2, None, pytest.approx(-math.log(1 - (0.05 / 3) ** (1 / 8))), None, None]
    assert found["of checkpoints", 1][0] == 0 and any("answer differently on more than 1 of the prompts" in note for note in whole.notes)
    assert found["with the lines", 0.3][:2] == [3, pytest.approx(math.log(2))] and found["with the lines", 0.3][3:] == [pytest.approx(math.log(2)), "one and the lines"]
    assert found["with the lines", 0.5][0] == 0  # strictly more than half
    assert len(whole.tables["written"].rows) == 24 and "on which two of a pair write the same chain" in whole.variant


def test_what_checkpoints_write_without_an_answer():
    data = lines(prompt=["?", "?"], completion=[" c A x", " c A y"])
    model = diagnose_tables.model(["?", "c", "A", "x", "y"], {("?", "c"): 0.9, ("c", "c"): 0.9})
    result = measure(model, data, {"separator": "A", "write": 3})
    assert result.tables["written"].rows[0] == ["?", "c", "x", "c c c", None] and any("100% of what the model writes has no 'A'" in note for note in result.notes)
    with pytest.raises(DiagnoseError, match="write takes separator=TEXT"):
        measure(model, lines(prompt=["?", "?"], chain=[" c", " c"], answer=[" x", " y"]), {"write": 3})
    assert "cot_information_proxy" not in CotInformation.over([("a", measure(model, data, {"separator": "A"}))] * 2).tables
