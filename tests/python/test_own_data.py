"""Data and rewards of one's own: splits and what is said of them, the loss of completions, what a reward in Python is told."""

import json
import re
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from test_train import ROOT, binary, evaluations, final_checkpoint

import isentrope

BINARY = binary()  # before a test changes the folder
MODEL = """
run: {dir: run, threads: 1}
model: {num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 64, max_position_embeddings: 48}
tokenizer: {kind: bytes}
"""
WORDS = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "yew"]


def train(folder, *overrides, check=True):
    result = subprocess.run([BINARY, "train", "config.yaml", *overrides], capture_output=True, text=True, timeout=300, cwd=folder)
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def write_words(path, words, **columns):
    with open(path, "w") as file:
        for word in words:
            print(json.dumps({"prompt": f"{word}:", "completion": word[::-1], "answer": word[::-1], **columns}), file=file)


@pytest.fixture
def words(tmp_path):
    """Supervised learning of words from files, each split with one of its own."""
    for name, part in (("train", WORDS), ("validation", WORDS[:7]), ("test", WORDS[7:])):
        write_words(tmp_path / f"{name}.jsonl", part)
    (tmp_path / "config.yaml").write_text(MODEL + """
phases:
  - name: sft
    objective: {kind: sft}
    data: {jsonl: {path: train.jsonl, validation_path: validation.jsonl, test_path: test.jsonl}}
    batch: {sequences: 4}
    optimizer: {lr: 1.0e-2}
    steps: 12
    evaluation: {every: 6, prompts: 7, sampled_prompts: 5, num_generations: 1, max_new_tokens: 8}
test: {prompts: 5, sampled_prompts: 5, num_generations: 1, max_new_tokens: 8}
""")
    return tmp_path


# ---- the loss of completions -----------------------------------------------------------------------------------------


def test_supervised_learning_is_judged_by_its_loss_too(words):
    said = train(words)
    (first, second), (test,) = evaluations(words / "run", "validation"), evaluations(words / "run", "test")
    assert second["eval/loss"] < first["eval/loss"]
    heads, row = (line.split() for line in said.stdout.split("after phase")[1].splitlines()[:2])
    assert heads[0] == "loss" and row[0] == "sft" and float(row[1]) == pytest.approx(test["eval/loss"], rel=1e-3)

    transformers = pytest.importorskip("transformers")
    checkpoint = final_checkpoint(words / "run")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)

    def loss(part):
        """The mean over the tokens of completions and their ends, one example at a time."""
        nats = []
        for word in part:
            prompt, completion = tokenizer(f"{word}:")["input_ids"], [*tokenizer(word[::-1])["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            nats += torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="none").tolist()
        return sum(nats) / len(nats)

    assert test["eval/loss"] == pytest.approx(loss(WORDS[7:]), rel=1e-5)
    assert second["eval/loss"] == pytest.approx(loss(WORDS[:7]), rel=1e-5)

    told = subprocess.run([BINARY, "evaluate", "--json", "run", "config.yaml"], capture_output=True, text=True, check=True, cwd=words)
    assert json.loads(told.stdout)["loss"] == test["eval/loss"]
    # It is of the prompts that are answered greedily, and of those that have a completion.
    fewer = subprocess.run([BINARY, "evaluate", "--json", "run", "config.yaml", "test.prompts=2"], capture_output=True, text=True, check=True,
                           cwd=words)
    assert json.loads(fewer.stdout)["loss"] == pytest.approx(loss(WORDS[7:9]), rel=1e-5)
    lines = [json.loads(line) for line in (words / "test.jsonl").read_text().splitlines()]
    (words / "test.jsonl").write_text("".join(json.dumps({k: v for k, v in line.items() if k != "completion"}) + "\n" for line in lines))
    none = subprocess.run([BINARY, "evaluate", "--json", "run", "config.yaml"], capture_output=True, text=True, check=True, cwd=words)
    assert "loss" not in json.loads(none.stdout) and "greedy" in json.loads(none.stdout)


@pytest.mark.parametrize("overlong", ["drop", "truncate", "error"])
def test_completions_too_long_count_as_in_training(words, overlong):
    write_words(words / "test.jsonl", ["oak", "oak" * 20])  # 2 · 60 bytes, and the context holds 48
    with open(words / "test.jsonl", "a") as file:
        print(json.dumps({"prompt": "elm:", "completion": "m" * 60, "answer": "m"}), file=file)
    options = ["phases.sft.steps=1", "phases.sft.evaluation.every=0", f"phases.sft.data.truncation={overlong}", "test.prompts=3",
               "test.sampled_prompts=3"]
    if overlong == "drop":
        train(words, *options)
        (line,) = evaluations(words / "run", "test")
        assert line["eval/loss"] > 0
    elif overlong == "truncate":
        lines = (words / "test.jsonl").read_text().splitlines()
        (words / "test.jsonl").write_text("\n".join([lines[0], lines[2]]) + "\n")
        train(words, *options)
        (line,) = evaluations(words / "run", "test")
        assert line["eval/loss"] > 0
    else:
        said = train(words, *options, check=False)
        assert said.returncode != 0 and "test.jsonl:2: " in said.stderr and not (words / "run" / "metrics.jsonl").exists()


def test_a_policy_has_no_loss_of_completions(tmp_path):
    said = subprocess.run([BINARY, "train", "configs/tiny/grpo.yaml", f"run.dir={tmp_path}", "phases.sft.steps=1", "phases.grpo.steps=1",
                           "phases.sft.evaluation={every: 1, prompts: 4, sampled_prompts: 2, num_generations: 1}"],
                          capture_output=True, text=True, check=True, cwd=ROOT)
    assert "eval/loss" in evaluations(tmp_path, "validation")[0], said.stderr
    assert all("eval/loss" not in line for line in evaluations(tmp_path, "test"))


# ---- what a reward is told -------------------------------------------------------------------------------------------


@pytest.fixture
def policy(tmp_path):
    extra = {"level": 3, "tags": ["tree", {"evergreen": None}], "weight": 0.1, "big": 10**30, "π": "ß"}
    for name, part in (("train", WORDS), ("validation", WORDS[:3]), ("test", WORDS[3:5])):
        write_words(tmp_path / f"{name}.jsonl", part, **extra)
    (tmp_path / "config.yaml").write_text(MODEL + """
phases:
  - name: sft
    objective: {kind: sft}
    data: {jsonl: {path: train.jsonl, validation_path: validation.jsonl, test_path: test.jsonl}}
    batch: {sequences: 12}
    optimizer: {lr: 2.0e-2}
    steps: 30
  - name: grpo
    objective: {kind: grpo}
    data: {jsonl: {path: train.jsonl, validation_path: validation.jsonl, test_path: test.jsonl}}
    rollout: {prompts: 4, num_generations: 4, max_new_tokens: 5}
    reward: [{kind: mine}]
    steps: 1
    evaluation: {every: 1, prompts: 3, sampled_prompts: 2, num_generations: 2}
test: {prompts: 2, sampled_prompts: 2, num_generations: 2}
""")
    return tmp_path, extra


def run(folder, reward, monkeypatch, **overrides):
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return isentrope.Trainer("config.yaml", rewards={"mine": reward}, overrides=overrides)


def test_rewards_see_clean_text_all_columns_and_the_split(policy, monkeypatch):
    folder, extra = policy
    calls = []

    def mine(prompts, completions, meta):
        calls.append((prompts, completions, meta))
        return [float(c == m["completion"]) for c, m in zip(completions, meta)]

    trainer = run(folder, mine, monkeypatch)
    trainer.train()
    splits = [{m["split"] for m in meta} for _, _, meta in calls]
    # After the sft phase its test; then the rollouts, and validation and test, each greedy and sampled.
    assert splits == [{"test"}, {"test"}, {"train"}, {"validation"}, {"validation"}, {"test"}, {"test"}]
    finished = set()
    for prompts, completions, meta in calls:
        assert len(prompts) == len(completions) == len(meta)
        for prompt, completion, m in zip(prompts, completions, meta):
            word = prompt[:-1]
            wanted = {"prompt": prompt, "completion": word[::-1], "answer": word[::-1], **extra}
            assert {k: v for k, v in m.items() if k not in ("split", "finished")} == wanted
            assert "<|endoftext|>" not in completion and isinstance(m["finished"], bool)
            assert m["finished"] or len(completion.encode(errors="replace")) >= 5  # cut: all five bytes are text
            assert not m["finished"] or len(completion) <= 4
            finished.add(m["finished"])
    assert finished == {True, False}
    # The built-in exact goes by the same: the text, and that it has an end.
    shown = [json.loads(line) for line in (folder / "run" / "samples.jsonl").read_text().splitlines()][-1]
    for sample in shown["samples"]:
        assert sample["right"] == ("".join(sample["tokens"]).removesuffix("<|endoftext|>") == sample["prompt"][-2::-1])


def test_answer_and_completion_are_there_under_any_key(policy, monkeypatch):
    folder, _ = policy
    line = {"prompt": "oak:", "gold": 7, "answer": ["a list of its own"]}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "traces.jsonl").write_text((folder / "validation.jsonl").read_text())
    seen = []

    def mine(prompts, completions, meta):
        seen.extend(meta)
        return [0.0] * len(prompts)

    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace(
        "data: {jsonl: {path: train.jsonl, validation_path: validation.jsonl, test_path: test.jsonl}}\n    rollout",
        "data: {jsonl: {path: train.jsonl, answer_key: gold, validation_fraction: 0, test_fraction: 0}}\n    rollout").replace(
        "phases:\n  - name: sft\n    objective: {kind: sft}\n    data: {jsonl: {path: train.jsonl",
        "phases:\n  - name: sft\n    objective: {kind: sft}\n    data: {jsonl: {path: traces.jsonl"))
    trainer = run(folder, mine, monkeypatch, **{"phases.grpo.evaluation": "{every: 0}", "phases.sft.steps": 1})
    trainer.train()
    wanted = {**line, "completion": "", "split": "train"}
    assert seen and all({k: v for k, v in m.items() if k != "finished"} == wanted for m in seen)


def test_generated_problems_tell_what_they_have(tmp_path):
    seen = []

    def mine(prompts, completions, meta):
        seen.extend(zip(completions, meta))
        return [float(len(c)) for c in completions]

    isentrope.Trainer(ROOT / "configs/tiny/grpo.yaml", rewards={"mine": mine},
                      overrides={"run.dir": tmp_path, "phases.grpo.reward": "[{kind: mine}]", "phases.sft.steps": 20,
                                 "phases.grpo.steps": 1}).train()
    assert {m["split"] for _, m in seen} == {"train", "test"}
    for completion, m in seen:
        assert set(m) == {"answer", "completion", "split", "finished"} and "." not in completion
        assert m["completion"].endswith(f"A{m['answer']}.")


@pytest.mark.parametrize("name", ["split", "finished"])
def test_a_column_with_a_name_of_ours_is_refused_where_a_reward_would_read_it(policy, monkeypatch, name):
    folder, _ = policy
    with open(folder / "validation.jsonl", "a") as file:
        print(json.dumps({"prompt": "ivy:", "completion": "yvi", name: "of mine"}), file=file)
    with pytest.raises(RuntimeError, match=rf'phase grpo: validation.jsonl:4: the key "{name}".*rename it'):
        run(folder, lambda p, c, m: [0.0] * len(p), monkeypatch)
    assert not (folder / "run" / "metrics.jsonl").exists()
    train(folder, "phases.grpo.reward=[{kind: exact}]", "phases.sft.steps=1", "phases.grpo.evaluation.max_new_tokens=2")


def test_a_column_that_a_reward_reads_is_part_of_the_data(policy, monkeypatch):
    folder, _ = policy
    overrides = {"phases.sft.steps": 1, "phases.grpo.steps": 2, "phases.grpo.evaluation": "{every: 0}"}
    trainer = run(folder, lambda p, c, m: [float(x["level"]) for x in m], monkeypatch, **overrides)
    for metrics in trainer:
        if metrics["phase"] == "grpo":
            break
    trainer.save()
    del trainer
    write_words(folder / "train.jsonl", WORDS, level=4)
    with pytest.raises(RuntimeError, match="data"):
        isentrope.Trainer("config.yaml", rewards={"mine": lambda p, c, m: [0.0] * len(p)}, overrides=overrides, resume=True)


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text" / "held").mkdir(parents=True)
    for i, word in enumerate(WORDS):
        (tmp_path / "text" / f"{word}.txt").write_text(f"{word} " * 40)
        (tmp_path / "text" / f"{word}.{'md' if i % 3 else 'rst'}").write_text("passed over")
    (tmp_path / "text" / "held" / "v.txt").write_text("willow " * 40)
    (tmp_path / "config.yaml").write_text(MODEL + """
phases:
  - name: pretrain
    objective: {kind: pretrain}
    data: {corpus: {paths: [text], validation_path: text/held, cache: tokens}}
    batch: {sequences: 4}
    steps: 2
    evaluation: {every: 2, windows: 6, show: 6}
test: {windows: 1}
""")
    return tmp_path


def test_text_of_its_own_for_validation(text):
    said = train(text)
    assert "24 files" not in said.stdout
    assert re.search(r"phase pretrain: 12 files in the folders of data.corpus are none of data.corpus.suffixes.*: 8 .md, 4 .rst\n",
                     said.stdout)
    shown = [json.loads(line) for line in (text / "run" / "samples.jsonl").read_text().splitlines()]
    for line in shown:
        for sample in line["samples"]:
            assert ("willow" in "".join(sample["tokens"])) == (line["eval/split"] == "validation")
    # What the run wrote of its configuration is read again.
    again = subprocess.run([BINARY, "config", "run/config.yaml"], capture_output=True, text=True, cwd=text)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_fraction_beside_a_path_is_refused(text, part):
    said = train(text, f"phases.pretrain.data.corpus={{paths: [text], {part}_path: text/held, {part}_fraction: 0.05}}", check=False)
    assert said.returncode != 0 and f"{part}_fraction" in said.stderr and "leave one of the two out" in said.stderr
    assert not (text / "run").exists()


# ---- more than there is ----------------------------------------------------------------------------------------------


def test_asking_for_more_than_there_is_is_said_once(words):
    said = train(words, "phases.sft.evaluation.prompts=64", "test.sampled_prompts=9")
    warned = [line for line in said.stderr.splitlines() if "asked for" in line]
    assert warned == [
        "isentrope: warning: phases.sft.evaluation.prompts: 64 are asked for, and the validation data have 7, which are all used",
        "isentrope: warning: test.sampled_prompts: 9 are asked for, and the test data have 5, which are all used"]
    both = train(words, "test.prompts=6", "test.sampled_prompts=9", "run.dir=both")
    assert [line for line in both.stderr.splitlines() if "asked for" in line] == [
        "isentrope: warning: test.prompts: 6 are asked for, and the test data have 5, which are all used; so are the 9 of sampled_prompts"]
    told = subprocess.run([BINARY, "evaluate", "--json", "run", "config.yaml", "test.prompts=6"], capture_output=True, text=True, cwd=words)
    assert "test.prompts: 6 are asked for, and the test data have 5" in told.stderr and json.loads(told.stdout)["loss"] > 0


def test_python_warns_of_it_too(words, monkeypatch):
    monkeypatch.chdir(words)
    with pytest.warns(UserWarning, match="phases.sft.evaluation.prompts: 64 are asked for"):
        isentrope.Trainer(Path("config.yaml"), overrides={"phases.sft.evaluation.prompts": 64})


def test_generated_problems_may_be_fewer_than_asked_for(tmp_path):
    said = subprocess.run([BINARY, "train", "configs/tiny/sft.yaml", f"run.dir={tmp_path}", "phases.sft.steps=1", "test.prompts=5000"],
                          capture_output=True, text=True, check=True, cwd=ROOT)
    assert re.search(r"test.prompts: 5000 are asked for, and the test data have \d+, which are all used; data.tint.held_out", said.stderr)


def test_windows_may_be_fewer_than_asked_for(text):
    said = train(text, "test.windows=500")
    assert re.search(r"warning: test.windows: 500 are asked for, and the test text has \d+, which are all used", said.stderr)
