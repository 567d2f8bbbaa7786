"""data.tint's countdown and path in a run of seconds: what `solves` scores and what the generator asks, against readers in Python who know
the rules alone; and the tasks of configs/compare."""

import ast
import json
import operator
import os
import re
import shutil
import subprocess
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
run: {dir: run, seed: 1, threads: 1}
model: {num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 64, max_position_embeddings: 96}
tokenizer: {characters: "%(alphabet)s"}
phases:
  - name: sft
    objective: {kind: sft}
    data: {tint: {%(task)s, mix: example}}
    batch: {sequences: 32}
    optimizer: {kind: adamw, lr: 8.0e-3, betas: [0.9, 0.98], weight_decay: 0.01}
    schedule: {kind: cosine, warmup_steps: 10, min_lr_ratio: 0.1}
    steps: 250
  - name: grpo
    objective: {kind: grpo, loss: clip}
    data: {tint: {%(task)s, mix: example}}
    rollout: {prompts: 64, num_generations: 8, max_new_tokens: 40, mini_batches: 2, save_every: 1}
    reward: [{kind: solves}]
    optimizer: {kind: adamw, lr: 4.0e-4}
    steps: 2
test: {prompts: 4, sampled_prompts: 4, num_generations: 4}
"""
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def program() -> str:
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert path, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    return os.path.abspath(path)


def rollouts(folder, alphabet, task, *words):
    (folder / "config.yaml").write_text(CONFIG % {"alphabet": alphabet, "task": task})
    made = subprocess.run([program(), "train", "config.yaml", "--quiet", *words], cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return [json.loads(line) for line in (folder / "run" / "rollouts" / "grpo.jsonl").read_text().splitlines()]


def value(node):
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](value(node.left), value(node.right))
    if not (isinstance(node, ast.Constant) and isinstance(node.value, int)):
        raise SyntaxError("// and ** of Python are no operations here")
    return Fraction(node.value)


def solves_countdown(prompt, completion):
    numbers, target = re.fullmatch(r"(\d(?:,\d)*):(\d\d)=", prompt).groups()
    _, mark, answer = completion.rpartition("A")
    if not mark or not re.fullmatch(r"[\d+*/()-]+", answer) or re.search(r"(^|[(+*/-])[+-]|\d\(|\)[\d(]", answer):
        return False
    try:
        made = value(ast.parse(re.sub(r"\b0+(?=\d)", "", answer), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return False
    return sorted(map(int, re.findall(r"\d+", answer))) == sorted(map(int, numbers.split(","))) and made == int(target[::-1])


def solves_path(prompt, completion):
    edges, start, goal = re.fullmatch(r"(\w\w(?:,\w\w)*):(\w)>(\w)=", prompt).groups()
    _, mark, way = completion.rpartition("A")
    steps = {a + b for a, b in zip(way, way[1:])}
    return bool(mark) and len(way) > 1 and way[0] == start and way[-1] == goal and steps <= set(edges.split(","))


@pytest.mark.parametrize("alphabet, task, oracle", [
    ("0123456789+-*,:;=()A.", "task: countdown, terms: [2], insight: 0.5, tries: 2", solves_countdown),
    (";,:=>Aabcdefghijklmnopqrstuvwxyz.", "task: path, terms: [1], branches: 1, tries: 2", solves_path),
])  # fmt: skip
def test_scores_are_those_of_a_reader_who_knows_the_rules(tmp_path, alphabet, task, oracle):
    lines = rollouts(tmp_path, alphabet, task)
    assert len(lines) == 2 * 64 * 8
    for line in lines:
        assert line["rewards"]["solves"] == float(line["finished"] and oracle(line["prompt"], line["completion"])), line
    scores = [line["rewards"]["solves"] for line in lines]
    assert 20 < sum(scores) < len(scores) - 20, "there is too little of one kind to tell"


def test_every_prompt_of_countdown_can_be_solved(tmp_path):
    prompts = {line["prompt"] for line in rollouts(tmp_path, "0123456789+-*,:;=()A.", "task: countdown, terms: [3], tries: 3", "phases.sft.steps=1",
                                                   "phases.sft.schedule.warmup_steps=0")}  # fmt: skip
    assert len(prompts) > 100
    for prompt in prompts:
        numbers, target = prompt[:-1].split(":")
        reached = set()
        for a, b, c in permutations(map(int, numbers.split(","))):
            for one, two in product((operator.add, operator.sub, operator.mul), repeat=2):
                reached.add(two(one(a, b), c))
        assert int(target[::-1]) in reached, prompt


@pytest.mark.parametrize("task", ["countdown", "path", "think", "mixed"])
def test_a_task_of_the_comparison_takes_every_method(task, tmp_path):
    """Each row is a configuration that the program accepts; one of them is trained for a step."""
    rows = [word for name in ("chosen", "more") for word in ("--rows", f"configs/compare/{name}.yaml")]
    told = subprocess.run([program(), "compare", f"configs/compare/{task}.yaml", *rows, "--seeds", "1", "--dir", tmp_path / "none", "--dry-run"],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert told.returncode == 0 and told.stdout.count("to be run") > 30, told.stderr
    assert told.stdout.count("/start/") == 1, "methods do not start alike"
    words = ["phases.sft.steps=2", "phases.sft.schedule.warmup_steps=0", "phases.grpo.steps=1", "phases.grpo.schedule.warmup_steps=0",
             "test.sampled_prompts=2", "test.prompts=2", "phases.grpo.evaluation.every=0", "phases.grpo.rollout.prompts=4"]  # fmt: skip
    made = subprocess.run([program(), "train", f"configs/compare/{task}.yaml", *words, f"run.dir={tmp_path}/run", "--quiet"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert made.returncode == 0, made.stderr
