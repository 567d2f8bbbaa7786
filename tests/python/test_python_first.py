"""The trainer in Python beside the program: callbacks, evaluate(), summary.json; and `isentrope evaluate`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release")).resolve()
PROGRAM = BUILD / "bin" / "isentrope"
GRPO = ROOT / "configs" / "tiny" / "grpo.yaml"
SHORT = {"phases.grpo.reward": "[{kind: mine}]", "phases.sft.steps": 2, "phases.sft.schedule.warmup_steps": 0, "phases.grpo.steps": 3,
         "phases.grpo.evaluation": "{every: 2, prompts: 4, sampled_prompts: 4, num_generations: 2}",
         "test": "{prompts: 5, sampled_prompts: 4, num_generations: 2}"}  # fmt: skip

pytest.importorskip("isentrope._C", reason="the package was built without the trainer")
needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")


def scores(prompts, completions, meta):
    return [len(set(c)) / 8 for c in completions]


def trainer(folder, reward=scores, resume=False, **overrides):
    import isentrope

    return isentrope.Trainer(GRPO, rewards={"mine": reward}, overrides={**SHORT, "run.dir": folder, **overrides}, resume=resume)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if '"step"' in line]


def program(*words):
    told = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert told.returncode == 0, told.stderr
    return told.stdout


# ---- callbacks --------------------------------------------------------------------------------------------------------


def test_callbacks_get_each_line_once_and_a_step_that_grows_over_phases(tmp_path):
    steps, evaluations = [], []
    trainer(tmp_path).train(lambda metrics, step: steps.append((metrics, step)), lambda metrics, step: evaluations.append((metrics, step)))
    assert [step for _, step in steps] == [1, 2, 3, 4, 5]
    assert [(m["phase"], m["step"]) for m, _ in steps] == [("sft", 1), ("sft", 2), ("grpo", 1), ("grpo", 2), ("grpo", 3)]
    assert [(m["eval/split"], step) for m, step in evaluations] == [("test", 2), ("validation", 4), ("test", 5)]
    written = lines_of(tmp_path)
    place = lambda line: (line["global_step"], line.get("eval/split", ""))  # noqa: E731
    assert sorted((m for m, _ in steps + evaluations), key=place) == sorted(written, key=place)


def test_the_step_goes_on_where_a_run_is_resumed(tmp_path):
    first = trainer(tmp_path)
    for metrics in first:
        if metrics["global_step"] == 3:
            break
    first.save()
    del first
    steps = []
    trainer(tmp_path, resume=True).train(lambda metrics, step: steps.append(step))
    assert steps == [4, 5]
    assert [line["global_step"] for line in lines_of(tmp_path) if "eval/split" not in line] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_callback_that_raises_leaves_the_last_whole_step_saved(tmp_path, error):
    def stopping(metrics, step):
        if step == 3:
            raise error("in the callback")

    broken = trainer(tmp_path)
    with pytest.raises(error, match="in the callback"):
        broken.train(stopping)
    assert (tmp_path / "checkpoints" / "grpo-000001" / "DONE").exists()
    steps = []
    broken.train(lambda metrics, step: steps.append(step))
    assert steps == [4, 5] and broken.finished


def test_a_callback_may_evaluate_and_changes_nothing(tmp_path):
    trainer(tmp_path / "plain").train()
    asking = trainer(tmp_path / "asking")
    asking.train(lambda metrics, step: asking.evaluate("validation", prompts=3))
    times = {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu"}
    plain, asked = ([{k: v for k, v in line.items() if k not in times} for line in lines_of(tmp_path / name)] for name in ("plain", "asking"))
    assert plain == asked


@pytest.mark.parametrize("name", ["on_step", "on_evaluation"])
def test_what_is_no_callback_is_refused_before_a_step(tmp_path, name):
    made = trainer(tmp_path)
    with pytest.raises(TypeError, match=f"{name} is a int, 3; wanted a function"):
        made.train(**{name: 3})
    assert lines_of(tmp_path) == []


# ---- evaluate() and summary.json --------------------------------------------------------------------------------------


def test_evaluate_is_the_evaluation_of_the_run(tmp_path):
    made = trainer(tmp_path)
    results = made.train()
    assert made.evaluate() == results["grpo"]
    validation = made.evaluate("validation", prompts=4, num_generations=2)
    assert "pass@2" in validation and "pass@4" not in validation and validation != results["grpo"]


def test_evaluate_asks_the_reward_in_python(tmp_path):
    made = trainer(tmp_path, reward=lambda p, c, m: [1.0] * len(c))
    assert made.evaluate()["greedy"] == 1


@pytest.mark.parametrize("arguments, error, wanted", [
    ({"split": "train"}, ValueError, 'wanted "test" or "validation"'), ({"promts": 4}, RuntimeError, "did you mean 'prompts'"),
    ({"prompts": 0}, RuntimeError, "test.prompts: 0 is out of range")], ids=str)
def test_evaluate_refuses_what_it_does_not_know(tmp_path, arguments, error, wanted):
    with pytest.raises(error, match=wanted):
        trainer(tmp_path).evaluate(**arguments)


def test_a_reward_may_not_evaluate(tmp_path):
    def asking(prompts, completions, meta):
        made.evaluate()
        return scores(prompts, completions, meta)

    made = trainer(tmp_path, reward=asking)
    with pytest.raises(RuntimeError, match="may not call its own trainer"):
        made.train()


@pytest.mark.parametrize("way", ["train", "iterate"])
def test_the_summary_is_written_at_the_end(tmp_path, way):
    made = trainer(tmp_path)
    if way == "train":
        made.train()
    else:
        for metrics in made:
            assert metrics["global_step"] == 5 or not (tmp_path / "summary.json").exists()
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert {row.pop("phase"): row for row in rows if row.pop("split") == "test"} == made.results
    (tmp_path / "summary.json").unlink()  # as if the process had been killed before it
    del made
    assert trainer(tmp_path, resume=True).finished
    assert len(json.loads((tmp_path / "summary.json").read_text())) == 2


# ---- the program --------------------------------------------------------------------------------------------------------


@needs_program
def test_the_program_evaluates_with_the_configuration_of_the_checkpoint(tmp_path):
    words = [f"{key}={value}" for key, value in SHORT.items() if "reward" not in key]
    program("train", GRPO, f"run.dir={tmp_path}", "--quiet", *words)
    own = json.loads(program("evaluate", tmp_path, "--json"))
    assert own == json.loads(program("evaluate", tmp_path, GRPO, "--json", *words))
    assert {key: own[key] for key in ("greedy", "sampled")} == {
        key: json.loads((tmp_path / "summary.json").read_text())[-1][key] for key in ("greedy", "sampled")}  # fmt: skip
    table = program("evaluate", tmp_path, "test.prompts=7")
    assert "7 prompts" in table and "4 prompts x 2" in table and "Wilson's" in table and "pass@2" in table
    assert not re.search(r"[1-9]\d{4}", table), "more than four digits"


def test_the_example_runs(tmp_path):
    pace = ["phases.sft.steps=3", "phases.sft.schedule.warmup_steps=0", "phases.grpo.steps=2"]
    told = subprocess.run([sys.executable, ROOT / "examples" / "callbacks.py", f"run.dir={tmp_path}/run", *pace],
                          capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert told.returncode == 0 and "best" in told.stdout, told.stderr
