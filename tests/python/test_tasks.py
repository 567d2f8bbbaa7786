"""`isentrope tasks` and the rewards of other packages: what is written trains, and is scored as the task itself does."""

import json
import os
import subprocess
import sys

import pytest
from test_train import binary

import isentrope
import isentrope._C

gym = pytest.importorskip("reasoning_gym")
pytest.importorskip("math_verify")
from isentrope import rewards, tasks  # noqa: E402


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_problems_are_those_of_the_package(tmp_path, capsys):
    out = tmp_path / "sums.jsonl"
    assert tasks.main(["chain_sum", "max_terms=3", "--size", "5", "--seed", "7", "-o", str(out)]) == 0
    assert "5 problems of chain_sum" in capsys.readouterr().out
    lines, dataset = lines_of(out), gym.create_dataset("chain_sum", size=5, seed=7, max_terms=3)
    assert [(line["prompt"], line["answer"]) for line in lines] == [(e["question"] + "\n", e["answer"]) for e in dataset]
    assert lines[3]["reasoning_gym"] == {"task": "chain_sum", "seed": 7, "size": 5, "config": {"max_terms": 3}, "index": 3, "version": tasks.version()}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("task", ["chain_sum", "countdown", "leg_counting", "time_intervals", "word_sorting"])
def test_scores_are_those_of_the_task(tmp_path, task):
    out = tmp_path / "task.jsonl"
    assert tasks.main([task, "--size", "4", "-o", str(out)]) == 0
    lines, dataset = lines_of(out), gym.create_dataset(task, size=4, seed=1)
    right = [line["answer"] for line in lines]
    for given in (right, [f"so: <answer>{a}</answer>." for a in right], [f"perhaps {a}" for a in right], ["none"] * 4):
        plain = [text.partition("<answer>")[2].partition("</answer>")[0] or text for text in given]
        expected = [dataset.score_answer(text, entry) for text, entry in zip(plain, dataset, strict=True)]
        assert rewards.reasoning_gym([line["prompt"] for line in lines], given, lines) == expected
    assert rewards.reasoning_gym([line["prompt"] for line in lines], right, lines) == [1.0] * 4
    assert rewards.reasoning_gym(["p"], ["c"], [{"answer": "c"}]) == [None]
    with pytest.raises(ValueError, match="another one"):
        rewards.reasoning_gym(["p"], ["c"], lines[:1])


@pytest.mark.parametrize(
    ("words", "told"),
    [(["chain_sums"], "did you mean 'chain_sum'"), (["chain_sum", "max_term=3"], "did you mean 'max_terms'"),
     (["chain_sum", "max_terms"], "KEY=VALUE"), (["chain_sum", "max_terms=0"], "chain_sum: "), (["chain_sum", "--size", "0"], "--size 0"),
     (["chain_sum", "-o", "nowhere/x.jsonl"], "nowhere"), (["chain_sum", "--test-size", "-1"], "--test-size -1"),
     (["chain_sum", "max_digits=1", "max_terms=2", "--size", "5", "--test-size", "500"], "too few different problems")],
)  # fmt: skip
def test_mistakes_are_told(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tasks.main(words) == 1
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_mathematics_is_compared_as_such():
    cases = [("1/2", "0.5", 1.0), ("1/2", r"so it is $\frac{1}{2}$", 1.0), ("3", "<answer>3</answer> not 4", 1.0), ("3", "4", 0.0),
             ("12", "", 0.0), ("", "3", None)]  # fmt: skip
    for answer, completion, score in cases:
        assert rewards.math(["p"], [completion], [{"answer": answer}]) == [score], (answer, completion)


def questions(path):
    return [line["prompt"] for line in lines_of(path)]


def test_the_parts_of_a_data_set_share_no_question(tmp_path, capsys):
    """Two digits and two terms: few enough problems that parts drawn for themselves would share some."""
    sizes = ["--size", "300", "--validation-size", "40", "--test-size", "30"]
    words = ["chain_sum", "max_terms=2", "max_digits=1", *sizes, "--seed", "3", "-o"]
    assert tasks.main([*words, str(tmp_path / "one")]) == 0
    train, validation, test = (questions(tmp_path / "one" / f"{part}.jsonl") for part in ("train", "validation", "test"))
    assert (len(train), len(set(validation)), len(set(test))) == (300, 40, 30)
    assert not (set(train) & set(validation) or set(train) & set(test) or set(validation) & set(test))
    one = lines_of(tmp_path / "one" / "train.jsonl")
    assert rewards.reasoning_gym(train[:5], [line["answer"] for line in one[:5]], one[:5]) == [1.0] * 5
    (tmp_path / "one" / "test.jsonl").unlink()
    (tmp_path / "one" / "train.jsonl").write_text("kept\n")
    assert tasks.main([*words, str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "train.jsonl").read_text() == "kept\n" and questions(tmp_path / "one" / "test.jsonl") == test
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


CONFIG = """
run: {dir: run, threads: 1}
model: {num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 64, max_position_embeddings: 160}
tokenizer: {kind: bytes}
phases:
  - {name: sft, objective: {kind: sft}, data: &data {reasoning_gym: {task: chain_sum, max_terms: 3, size: 60, validation_size: 8, test_size: 8}}, batch: {sequences: 4}, steps: 2}
  - name: grpo
    objective: {kind: grpo}
    data: *data
    rollout: {prompts: 2, num_generations: 2, max_new_tokens: 4}
    reward: [{kind: python, function: reasoning_gym}, {kind: python, function: math, weight: 0, timeout_s: 60}]
    steps: 2
    evaluation: {every: 2, prompts: 4, sampled_prompts: 2, num_generations: 2}
test: {prompts: 4, sampled_prompts: 2, num_generations: 2}
"""


def program(place, *words, code=0, **environment):
    done = subprocess.run([binary(), *words], cwd=place, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "ISENTROPE_PYTHON": sys.executable, **environment})  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_configuration_names_a_task(tmp_path):
    """The problems are made once, and a run goes on with those that it began with."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    told = program(tmp_path, "train", "config.yaml")
    folder, = (tmp_path / "runs" / "tasks").iterdir()
    assert told.stdout.count("problems of chain_sum were written to") == 1 and folder.name.startswith("chain_sum-")
    assert [len(lines_of(folder / f"{part}.jsonl")) for part in ("train", "validation", "test")] == [60, 8, 8]
    gym = lines_of(folder / "train.jsonl")[0]["reasoning_gym"]
    assert gym["config"] == {"max_terms": 3} and gym["version"] == tasks.version()
    last = [line for line in lines_of(tmp_path / "run" / "metrics.jsonl") if line.get("phase") == "grpo" and "loss" in line][-1]
    assert 0 <= last["reward/reasoning_gym"] <= 1 and last["timeouts/math"] == 0
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    broken = {"PYTHONPATH": str(without_gym(tmp_path / "none"))}  # what is there needs no package
    again = program(tmp_path, "train", "config.yaml", "phases.grpo.steps=3", "phases.grpo.reward=[{kind: python, function: math}]", "--resume", **broken)
    assert "were written" not in again.stdout and made == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    text = json.loads(program(tmp_path, "evaluate", "run", "--json", "phases.grpo.reward=[{kind: answer}]").stdout)
    assert 0 <= text["greedy"] <= 1


def without_gym(folder):
    folder.mkdir()
    (folder / "reasoning_gym.py").write_text("raise ModuleNotFoundError(\"No module named 'reasoning_gym'\", name='reasoning_gym')\n")
    return folder


@pytest.mark.parametrize("data, wanted", [
    ("{task: chain_sums}", "phase sft: data.reasoning_gym: reasoning-gym has no task 'chain_sums'; did you mean 'chain_sum'"),
    ("{task: chain_sum, max_term: 3}", "data.reasoning_gym: chain_sum has no key 'max_term'; did you mean 'max_terms'"),
    ("{task: chain_sum, max_terms: 0}", "data.reasoning_gym: chain_sum: "),
    ("{task: chain_sum}", "the Python package reasoning-gym is missing: pip install 'isentrope[tasks]'"),
    ("{size: 3}", "config.yaml:6: phases.sft.data.reasoning_gym: task is missing"),
    ("{task: ../chain_sum}", "is no name of a task"),
    ("{task: chain_sum, size: 0}", "size: 0 is out of range; wanted at least 1"),
])  # fmt: skip
def test_what_is_wrong_with_a_task_of_a_configuration(tmp_path, data, wanted):
    lines = CONFIG.splitlines()
    lines[5] = f"  - {{name: sft, objective: {{kind: sft}}, data: &data {{reasoning_gym: {data}}}, batch: {{sequences: 4}}, steps: 2}}"
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    environment = {"PYTHONPATH": str(without_gym(tmp_path / "none"))} if "missing: pip" in wanted else {}
    told = program(tmp_path, "plan", "config.yaml", code=1, **environment)
    assert wanted in told.stderr and len(told.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("runs/tasks/*"))


def test_settings_are_printed_as_they_are_read(tmp_path):
    """Every form of a value comes to the task, and back into the configuration that is saved."""
    settings = {"a": 3, "b": 2.5, "c": True, "d": "+", "e": ["+", "-", 1], "f": {"g": [1]}, "h": "12"}
    (tmp_path / "config.yaml").write_text(CONFIG.replace("max_terms: 3", json.dumps(settings)[1:-1]))
    once = isentrope._C.print_config(os.fsencode(tmp_path / "config.yaml"), [b"phases.sft.data.reasoning_gym.a=1e3"])
    (tmp_path / "again.yaml").write_text(once)
    assert isentrope._C.print_config(os.fsencode(tmp_path / "again.yaml"), []) == once
    import yaml

    gym = [phase["data"]["reasoning_gym"] for phase in yaml.safe_load(once)["phases"]]
    assert {key: gym[1][key] for key in settings} == settings and gym[0]["a"] == 1000


def test_a_run_learns_from_them(tmp_path, monkeypatch):
    command = [binary(), "tasks", "chain_sum", "max_terms=2", "max_digits=1", "--size", "60", "-o", "sums.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "config.yaml").write_text("""
run: {dir: run, threads: 1}
model: {num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 64, max_position_embeddings: 160}
tokenizer: {kind: bytes}
phases:
  - {name: sft, objective: {kind: sft}, data: {jsonl: {path: sums.jsonl}}, batch: {sequences: 4}, steps: 2, evaluation: {every: 0}}
  - name: grpo
    objective: {kind: grpo}
    data: {jsonl: {path: sums.jsonl}}
    rollout: {prompts: 2, num_generations: 2, max_new_tokens: 4}
    reward: [{kind: reasoning_gym}]
    steps: 1
    evaluation: {every: 0}
test: {skip: true}
""")
    monkeypatch.chdir(tmp_path)
    trainer = isentrope.Trainer("config.yaml", rewards={"reasoning_gym": rewards.reasoning_gym})
    last = list(trainer)[-1]
    assert 0 <= last["reward/reasoning_gym"] <= 1
