"""What a run is made of, in Python: Trainer.header, the readers of metrics.jsonl, and the warnings of a policy that cannot learn."""

import json
import warnings

import pytest

import isentrope
from isentrope import json_lines



def trainer(folder, *overrides, **options):
    config = folder / "config.yaml"
    config.write_text(
        """
run: {device: cpu, threads: 1, checkpoint_every: 5}
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 24, max_position_embeddings: 12}
tokenizer: {characters: "0123456789+=A."}
test: {skip: true}
phases:
  - name: sft
    objective: {kind: sft}
    data: {tint: {task: add, cot: false, sampling: magnitude, low: 0, high: 9}}
    steps: 1
  - name: rl
    objective: {kind: grpo, loss: clip}
    data: {tint: {task: add, cot: false, sampling: magnitude, low: 0, high: 9}}
    rollout: {prompts: 2, num_generations: 2, max_new_tokens: 3}
    reward: [{kind: constant}]
    steps: 14
"""
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return isentrope.Trainer(config, overrides=[f"run.dir={folder}/run", *overrides], **options)


def constant(value):
    return {"constant": lambda prompts, completions, meta: [value] * len(completions)}


def test_header_is_the_first_line(tmp_path):
    run = trainer(tmp_path, rewards=constant(0))
    header = run.header
    assert header["device"] == "cpu" and header["threads"] == 1 and header["dtype"] == "float32"
    assert [phase["name"] for phase in header["phases"]] == ["sft", "rl"]
    assert header["phases"][1]["batch"] == header["phases"][1]["samples"] == 2 and header["phases"][1]["train"] is None
    assert header["memory"] > header["memory_needed"] > 0 and header["product_flops_per_s"] > 0
    with pytest.warns(UserWarning, match="never answers right"):
        lines = list(run)
    file = tmp_path / "run" / "metrics.jsonl"
    assert json.loads(file.read_text().splitlines()[0]) == {"run": header}
    assert json_lines.headers(file) == [header]
    assert [line["step"] for line in json_lines.read(file)] == [line["step"] for line in lines] == [1, *range(1, 15)]
    assert all(0 < line["mfu"] for line in lines)


def test_a_damaged_header_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"run": 3}\n{"phase": "a", "step": 1}\n')
    with pytest.raises(json_lines.LineError, match="metrics.jsonl:1: not an object with run"):
        list(json_lines.read(file))


@pytest.mark.parametrize("value, text", [(0, "the policy never answers right"), (1, "the policy always answers right"), (0.5, "every reward of the last 10 steps was 0.5")])
def test_a_policy_that_cannot_learn_is_told_once(tmp_path, value, text):
    run = trainer(tmp_path, rewards=constant(value))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lines = list(run)
    told = [str(one.message) for one in caught]
    assert len(told) == 1 and told[0].startswith(f"rl, step 10: {text}") and "phases.rl." in told[0]
    assert [line["step"] for line in lines if "warnings" in line] == [10]


def test_a_resumed_run_counts_on(tmp_path):
    run = trainer(tmp_path, rewards=constant(0))
    for line in run:
        if line["phase"] == "rl" and line["step"] == 7:
            break
    del run  # as killed: the checkpoint is of step 5
    with pytest.warns(UserWarning, match="rl, step 10: the policy never answers right"):
        list(trainer(tmp_path, rewards=constant(0), resume=True))
    file = tmp_path / "run" / "metrics.jsonl"
    assert [line["step"] for line in json_lines.read(file) if "warnings" in line] == [10]
    assert len(json_lines.headers(file)) == 1


def test_rewards_that_differ_are_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for line in trainer(tmp_path, rewards={"constant": lambda p, c, m: [float(i) for i in range(len(c))]}):
            assert "warnings" not in line
