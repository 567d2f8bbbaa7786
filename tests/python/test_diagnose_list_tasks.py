"""Problems of `isentrope.diagnose.list_tasks`: answers by hand, distributions that share nothing, lengths that are the same."""

import json
import random

import pytest

from isentrope.diagnose.list_tasks import TASKS, lines, longest_increasing, main, problem, subset_sum, sum_of, tour
from isentrope.diagnose.measure import DiagnoseError


def test_answers_by_hand():
    assert longest_increasing([5, 1, 4, 2, 3]) == (1, 2, 3) and longest_increasing([3, 4, 1, 2]) == (1, 2)
    assert sum_of(2)([9, 1, 8, 2], 10) == (1, 9) and sum_of(3)([1, 2, 3], 7) == ()
    assert subset_sum([5, 3, 2, 9], 5) == (5,) and subset_sum([4, 3, 2, 9], 7) == (3, 4)
    assert tour([0, 0, 0, 2, 3, 2, 3, 0]) == 10  # round a rectangle of 3 by 2
    assert problem("sort", [3, 1, 2, 4], random.Random(0))[1] == "1 2 3 4"


def test_distributions_share_nothing_and_lists_have_the_same_lengths():
    found = lines(range(0, 50), range(50, 100), 30, shots=2)
    assert len(found) == 300 and {row["level"] for row in found} == {1, 2, 3, 4, 5}
    sizes = {"id": set(), "ood": set()}
    for row in found:
        question = row["prompt"].split("\n")[-1].removesuffix(" =")
        task, _, rest = question.partition(" ")
        numbers = [int(word) for word in rest.split(" total")[0].split()]
        assert row["task"] == task and TASKS[task][0] == row["level"] and len(set(numbers)) == len(numbers)
        assert all((number < 50) == (row["distribution"] == "id") for number in numbers), row
        assert row["completion"].strip() and row["completion"].endswith("\n") and row["prompt"].count("\n") <= 2
        assert question not in row["prompt"].split("\n")[0]
        sizes[row["distribution"]].add((task, len(numbers)))
    assert sizes["id"] == sizes["ood"]
    assert lines(range(0, 50), range(50, 100), 30, shots=2) == found and lines(range(0, 50), range(50, 100), 30, shots=2, seed=1) != found


def test_the_command(tmp_path, capsys):
    file = tmp_path / "lists.jsonl"
    assert main(["--halves", "100:1000", "--number", "4", "-o", str(file)]) == 0
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 40
    train = tmp_path / "train.jsonl"
    assert main(["--halves", "100:1000", "--number", "50", "--distribution", "id", "--but", str(file), "-o", str(train)]) == 0
    learnt = [json.loads(line) for line in train.read_text().splitlines()]
    tested = {json.loads(line)["prompt"] for line in file.read_text().splitlines()}
    assert len(learnt) > 200 and {line["distribution"] for line in learnt} == {"id"} and not tested & {line["prompt"] for line in learnt}
    assert main(["--inside", "0:50", "--outside", "49:90", "-o", str(file)]) == 1 and "[49] stand inside and outside" in capsys.readouterr().err
    with pytest.raises(DiagnoseError, match="3 elements outside"):
        lines(range(20), range(30, 33), 1)
    with pytest.raises(SystemExit):
        main(["--inside", "x", "-o", str(file)])
