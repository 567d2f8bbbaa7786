"""The examples that need no run of their own."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "attention_entropy.py"


def load():
    spec = importlib.util.spec_from_file_location("attention_entropy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, steps, layers=3, heads=4, phase="pretrain", first=0.9, last=0.2):
    with (folder / "metrics.jsonl").open("a") as lines:
        for step in steps:
            lines.write(json.dumps({"phase": phase, "step": step, "loss": 1.0}) + "\n")
            value = first + (last - first) * step / max(steps)
            table = [[value] * heads for _ in range(layers)]
            entropy = {"entropy": table, "normalized": table, "max_logit": table, "collapsed": 0.25, "overloaded": 0.0}
            lines.write(json.dumps({"phase": phase, "step": step, "attention_entropy": entropy}) + "\n")


def test_read(tmp_path):
    write(tmp_path, [10, 20, 30])
    write(tmp_path, [30], first=0.5, last=0.5)  # resumed
    write(tmp_path, [10], phase="grpo")
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"phase": "grpo", "st')  # killed in the middle of a line
    phases, steps, values, last = load().read(tmp_path)
    assert phases == ("pretrain",) * 3 + ("grpo",) and steps == (10, 20, 30, 10)
    assert values[2] == [[0.5] * 4] * 3 and last["collapsed"] == 0.25


@pytest.mark.parametrize("layers, heads, steps", [(3, 4, 12), (48, 32, 5), (1, 1, 1)])
def test_attention_entropy(tmp_path, layers, heads, steps):
    pytest.importorskip("matplotlib")
    write(tmp_path, [10 * (i + 1) for i in range(steps)], layers, heads)
    write(tmp_path, [10], layers, heads, phase="grpo")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "attention_entropy.png"
    assert (tmp_path / "attention_entropy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "lines, message",
    [(None, "no such file; wanted the folder of a run"), ('{"step": 1, "loss": 2.0}\n', 'no line has "attention_entropy"')],
)
def test_a_folder_without_such_lines(tmp_path, lines, message):
    if lines is not None:
        (tmp_path / "metrics.jsonl").write_text(lines)
    with pytest.raises(SystemExit, match=message):
        load().read(tmp_path)


def test_without_matplotlib(tmp_path):
    write(tmp_path, [1])
    code = f"import sys, runpy; sys.modules['matplotlib'] = None; sys.argv = ['x', {str(tmp_path)!r}]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "needs matplotlib: pip install matplotlib" in done.stderr


# ---- examples/chain_sum_traces.py -----------------------------------------------------------------------------------


def test_traces_are_running_sums(tmp_path):
    script = SCRIPT.with_name("chain_sum_traces.py")
    lines = [{"prompt": "State the final answer: 7 + 5 - 13 =\n", "answer": "-1", "completion": "-1", "id": 3},
             {"prompt": "State the final answer: 40 - 2 =\n", "answer": "38", "completion": "38"}]  # fmt: skip
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    subprocess.run([sys.executable, script, "sums.jsonl"], cwd=tmp_path, check=True)
    made = [json.loads(line) for line in (tmp_path / "sums.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in made] == ["7 + 5 = 12; 12 - 13 = -1. Answer: -1", "40 - 2 = 38. Answer: 38"]
    assert made[0]["id"] == 3 and made[0]["prompt"] == lines[0]["prompt"]
    (tmp_path / "sums.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "answer": "3"}) + "\n")
    assert subprocess.run([sys.executable, script, "sums.jsonl"], cwd=tmp_path, capture_output=True).returncode == 1


# ---- examples/diagnose_data.py --------------------------------------------------------------------------------------


def test_the_data_of_measures(tmp_path):
    from isentrope.diagnose.constraints import checked

    subprocess.run([sys.executable, SCRIPT.with_name("diagnose_data.py"), tmp_path / "data"], check=True, capture_output=True)
    found = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in (tmp_path / "data").glob("*.jsonl")}
    assert set(found) == {"prose", "copies", "sums", "class", "instructions", "recall", "kinds", "coins", "sentiment", "cities", "partial_sums", "partial_sums_train"} and all(len(lines) > 10 for lines in found.values())
    assert all(checked(one) for line in found["instructions"] for one in line["constraints"])
    assert len(found["class"]) == 42 and sum(line["target"] for line in found["class"]) == 1
    for line in found["recall"]:
        pairs, asked = line["text"].split("=")[0].split(":")
        value = dict(zip(pairs[::2], pairs[1::2]))
        assert len(value) == 8 and line["text"].split("=")[1] == "".join(key + value[key] for key in asked) + "A" + "".join(value[key] for key in asked) + "."
    for line in found["sums"]:
        terms = [int(word) for word in line["prompt"].split(". ")[-1].split(" + ")]
        assert line["answer"] == f" = {sum(terms)}" and line["chain"] == f" = {terms[0] + terms[1]} + {terms[2]}"
    for line in found["partial_sums"] + found["partial_sums_train"]:
        first, second, answer = (sum(map(int, line["prompt"][:count])) % 10 for count in (2, 3, 4))
        assert line["completion"] == f"{first}{second}A{answer}."
    assert not {line["prompt"] for line in found["partial_sums"]} & {line["prompt"] for line in found["partial_sums_train"]}
    assert all(sorted(a["input"].split()) == sorted(b["input"].split()) for a, b in zip(found["copies"][::2], found["copies"][1::2]))
    assert {line["label"] for line in found["kinds"]} == {"prose", "code"} and [line["text"] for line in found["kinds"]] == [line["text"] for line in found["coins"]]


# ---- examples/head_tuning.py ----------------------------------------------------------------------------------------


def test_the_filter_of_head_tuning():
    """The belief is Bayes' rule: of an alphabet of which each state shows a part of its own, the state itself."""
    np = pytest.importorskip("numpy")
    module = runpy.run_path(str(SCRIPT.with_name("head_tuning.py")))
    transition, _, law = module["chain"](seed=1)
    assert np.allclose(law @ transition, law) and np.allclose(transition.sum(1), 1)
    emission = np.repeat(np.eye(6), 2, 1) / 2
    symbols, belief = module["windows"](50, (transition, emission, law), np.random.default_rng(0))
    assert symbols.shape == (50, 32) and np.allclose(belief, np.eye(6)[symbols[:, -1] // 2])
    blind, belief = module["windows"](3, (transition, np.full((6, 12), 1 / 12), law), np.random.default_rng(0))
    assert np.allclose(belief, law) and set(blind.flatten()) <= set(range(12))
    # As many features as windows fit them without an error that is left, whatever they are.
    draw = np.random.default_rng(1)
    x, y = draw.standard_normal((400, 64)), draw.standard_normal((400, 6))
    risks = dict(zip(module["WIDTHS"], module["risks"](x, y, draw)))
    assert risks[0] < 1.2 and risks[24] > 3 * risks[64] and risks[24] > 3 * risks[4]
