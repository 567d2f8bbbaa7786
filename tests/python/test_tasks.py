"""`isentrope tasks` and the rewards of other packages: what is written trains, and is scored as the task itself does."""

import json
import subprocess

import pytest
from test_train import binary

import isentrope

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
    assert lines[3]["reasoning_gym"] == {"task": "chain_sum", "seed": 7, "size": 5, "config": {"max_terms": 3}, "index": 3}
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
     (["chain_sum", "-o", "nowhere/x.jsonl"], "nowhere")],
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
