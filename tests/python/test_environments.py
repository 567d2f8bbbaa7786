"""Conversations in the rollouts: runs of configs/environments, killed and resumed; environments in Python; what the configuration refuses."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from isentrope.environment_classes import FAILED, load
from isentrope.reward_functions import RewardError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "environments"
TIMES = {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu"}
SHORT = ["phases.sft.steps=12", "phases.sft.schedule.warmup_steps=0", "phases.grpo.steps=5", "phases.grpo.schedule.warmup_steps=0",
         "phases.grpo.rollout.prompts=4", "phases.grpo.rollout.num_generations=4", "phases.grpo.rollout.save_every=1", "run.threads=1",
         "phases.sft.evaluation.every=0", "phases.grpo.evaluation={every: 3, prompts: 4, sampled_prompts: 4, num_generations: 2}",
         "test={prompts: 4, sampled_prompts: 3, num_generations: 2}", "run.checkpoint_every=1"]  # fmt: skip
BUILT_IN = ["twenty_questions", "calculator", "search", "diagnosis", "interpreter"]


def binary():
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert path, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    return os.path.abspath(path)


def command(folder, config, *overrides, resume=False):
    return [binary(), "train", str(config), f"run.dir={folder}", *overrides, "--quiet"] + ["--resume"] * resume


def train(folder, config, *overrides, resume=False, code=0):
    told = subprocess.run(command(folder, config, *overrides, resume=resume), capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert told.returncode == code, told.stdout + told.stderr
    return told


def lines(folder, name="metrics.jsonl"):
    found = [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found if "phase" in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folders = {}

    def of(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind) / "run"
            train(folders[kind], CONFIGS / f"{kind}.yaml", *SHORT)
        return folders[kind]

    return of


@pytest.mark.parametrize("kind", BUILT_IN)
def test_a_run_has_conversations(whole, kind):
    folder = whole(kind)
    steps = [line for line in lines(folder) if line["phase"] == "grpo" and "eval/split" not in line]
    assert len(steps) == 5
    for key in ["turns/mean", "turns/tokens", "turns/given", "turns/limit", "turns/calls", "reward/answer"]:
        assert key in steps[-1], key
    evaluation = [line for line in lines(folder) if line["phase"] == "grpo" and "eval/split" in line][-1]
    for key in ["turns/mean", "turns/tokens", "turns/limit", "score/answer"]:
        assert "eval/" + key in evaluation, key
    assert evaluation["eval/score/answer"] == pytest.approx(evaluation["eval/sampled"])
    rollouts = lines(folder, "rollouts/grpo.jsonl")
    assert len(rollouts) == 5 * 16
    for rollout in rollouts:
        ends = [turn["end"] for turn in rollout.get("turns", [])]
        assert ends == sorted(ends) and all(0 < end <= rollout["length"] for end in ends)
        assert len(rollout["logprob"]) == len(rollout["ids"]) == rollout["length"], "of what was drawn, and of nothing else"
    answered = [turn for rollout in rollouts for turn in rollout.get("turns", [])]
    assert any(turn["given"] for turn in answered)
    last = [rollout for rollout in rollouts if rollout["step"] == steps[-1]["step"]]
    mean = sum(rollout["length"] for rollout in last) / len(last)
    assert mean == pytest.approx(steps[-1]["length/mean"], rel=1e-6), "given tokens do not count"


def learnt(folder):
    """Of the saved conversations whose tokens differ in their advantages: these, and where turns end."""
    return [(line["advantages"], [turn["end"] for turn in line["turns"]]) for line in lines(folder, "rollouts/grpo.jsonl") if "advantages" in line]


def test_turns_have_credits_of_their_own(tmp_path, whole):
    """Within a turn all tokens have one advantage, turns differ; without weight the run is the plain one, bit for bit."""
    advantage = "phases.grpo.advantage=[{{kind: grpo}}, {{kind: turn_credit, score: information_gain, coef: {}}}]"
    train(tmp_path / "credit", CONFIGS / "twenty_questions.yaml", *SHORT, advantage.format(1))
    found = learnt(tmp_path / "credit")
    assert len(found) > 3
    for advantages, ends in found:
        turns = [advantages[begin:end] for begin, end in zip([0, *ends], ends)]
        assert all(len({*turn}) == 1 for turn in turns)
    train(tmp_path / "none", CONFIGS / "twenty_questions.yaml", *SHORT, advantage.format(0))
    assert lines(tmp_path / "none") == lines(whole("twenty_questions")) != lines(tmp_path / "credit")


def test_steps_of_empg_are_turns(tmp_path):
    train(tmp_path / "run", CONFIGS / "twenty_questions.yaml", *SHORT, "phases.grpo.advantage=[{kind: grpo}, {kind: empg, steps: turns}]")
    told = [line for line in lines(tmp_path / "run") if "empg/steps" in line]
    assert told
    for line in told:  # the same conversations
        assert line["empg/steps"] == pytest.approx(line["turns/mean"])


@pytest.mark.parametrize("kind", BUILT_IN)
def test_a_killed_run_repeats_itself(whole, tmp_path, kind):
    folder = tmp_path / "run"
    for part in [0.4, 0.7]:  # of the lines of the whole run
        process = subprocess.Popen(command(folder, CONFIGS / f"{kind}.yaml", *SHORT, resume=folder.exists()), cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        wanted = part * len((whole(kind) / "metrics.jsonl").read_text().splitlines())
        metrics = folder / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= wanted):
            time.sleep(0.005)
        process.kill()
        process.wait()
    train(folder, CONFIGS / f"{kind}.yaml", *SHORT, resume=True)
    assert lines(folder) == lines(whole(kind))
    assert lines(folder, "rollouts/grpo.jsonl") == lines(whole(kind), "rollouts/grpo.jsonl")


@pytest.mark.parametrize(
    "overrides,message",
    [
        (["phases.grpo.environment=null"], "takes the score answer of an environment, and the phase has none"),
        (["phases.grpo.environment.at_limit=penalise"], "penalise lowers the score `limit`, which no reward takes"),
        (["phases.grpo.reward.0.name=answers"], "has no score answers; it has limit, answer, information_gain, turns"),
        (["phases.grpo.reward.0={kind: environment}"], "says which score of the environment"),
        (["phases.grpo.environment=null", "phases.grpo.reward=[{kind: answer}]", "phases.grpo.advantage=[{kind: grpo}, {kind: turn_credit, score: answer}]"], "turn_credit looks at the turns of conversations, and the phase has no environment"),
        (["phases.grpo.environment=null", "phases.grpo.reward=[{kind: answer}]", "phases.grpo.advantage=[{kind: grpo}, {kind: empg, steps: turns}]"], "empg looks at the turns of conversations, and the phase has no environment"),
        (["phases.grpo.advantage=[{kind: grpo}, {kind: turn_credit, score: gain}]"], "has no score gain of turns; it has answer, information_gain, turns"),
        (["phases.grpo.advantage=[{kind: grpo}, {kind: turn_credit}]"], "score: is missing; it says which score of the environment"),
        (["phases.grpo.rollout.stop=[x]"], "environment.stop says what ends a turn"),
        (["phases.grpo.rollout.branch={}"], "conversations do not branch"),
        (["phases.grpo.environment.stop=[ü]"], "no tokens of the tokenizer can write"),
        (["phases.grpo.data.episodes.objects=26", "phases.grpo.data.episodes.attributes=4"], "tell at most 16 objects apart"),
        (["phases.grpo.environment.kind=questions"], "twenty_questions"),
        (["phases.grpo.data={episodes: {kind: diagnosis, given: [{name: a, findings: [0.5]}]}}"], "has one disease; wanted two at least"),
        (["phases.grpo.data={episodes: {kind: diagnosis}}"], "it wants those of data.episodes"),
        (["phases.grpo.data={episodes: {kind: calculator}}", "tokenizer.kind=bytes"], "it wants those of data.episodes"),
    ],
)
def test_the_configuration_is_looked_at(tmp_path, overrides, message):
    told = train(tmp_path / "run", CONFIGS / "twenty_questions.yaml", *SHORT, *overrides, code=1)
    assert message in told.stderr, told.stderr


# ---- in Python -------------------------------------------------------------------------------------------------------

CLASSES = """\
import random
import time


class Echo:
    def reset(self, example, seed):
        self.example, self.seed = example, seed
        return None if example["prompt"] == "plain" else f"{seed}:{example['colour']}"

    def step(self, text):
        if text == "raise":
            raise KeyError(text)
        if text == "hang":
            time.sleep(60)
        if text == "form":
            return text
        if text == "nan":
            return "", float("nan"), False
        return text[::-1], 0.5, text == "end"


class Many(Echo):
    @staticmethod
    def step_many(environments, texts):
        return [(f"{len(texts)}", {"a": 1, "b": float(environment.seed)}, True) for environment in environments]


class Half:
    def reset(self, example, seed):
        return 3
"""


@pytest.fixture
def classes(tmp_path):
    pytest.importorskip("isentrope._C", reason="the package was built without the trainer, which has the signals of time limits")
    path = tmp_path / f"classes_{tmp_path.name}.py"
    path.write_text(CLASSES)
    return lambda name, seconds=5.0: load(os.fsencode(path), name.encode(), b"environment.class", seconds)


def test_a_class_is_called(classes):
    host = classes("Echo")
    first, text = host.reset('{"colour": "red"}', "p", "a", "train", 7)
    assert text == "7:red" and first.example == {"colour": "red", "prompt": "p", "answer": "a", "split": "train"}
    second, text = host.reset("", "plain", "a", "train", 8)
    assert text is None
    assert host.step([first, second], ["ab", "end"]) == [(b"ba", {"reward": 0.5}, False, False), (b"dne", {"reward": 0.5}, True, False)]
    many = classes("Many")
    sides = [many.reset('{"colour": "red"}', "p", "a", "train", seed)[0] for seed in (1, 2)]
    assert many.step(sides, ["x", "y"]) == [(b"2", {"a": 1.0, "b": 1.0}, True, False), (b"2", {"a": 1.0, "b": 2.0}, True, False)]


def test_failures_end_their_conversation_alone(classes, capfd):
    host = classes("Echo", 0.3)
    side = host.reset("", "plain", "", "train", 1)[0]
    begun = time.monotonic()
    for text in ["raise", "hang", "form", "nan", "raise"]:
        assert host.step([side, side], [text, "ab"]) == [FAILED, (b"ba", {"reward": 0.5}, False, False)], text
    assert time.monotonic() - begun < 5
    told = capfd.readouterr().err
    assert told.count("KeyError: 'raise'") == 1 and "timeout_s (0.3 s)" in told
    broken = host.reset("", "p", "", "train", 1)  # no colour
    assert broken == (None, None) and host.step([None], ["ab"]) == [FAILED]


def test_what_is_no_class_is_named(classes):
    with pytest.raises(RewardError, match="wanted a class with reset and step, and step is missing"):
        classes("Half")
    with pytest.raises(RewardError, match="there is no Other"):
        classes("Other")


def test_a_run_with_a_class(tmp_path):
    pytest.importorskip("isentrope._C", reason="the package was built without the trainer")
    import isentrope

    overrides = [word for word in SHORT if "evaluation" not in word]
    runs = []
    for name in ["first", "second"]:
        trainer = isentrope.Trainer(CONFIGS / "python.yaml", overrides=[*overrides, f"run.dir={tmp_path / name}"])
        trainer.train()
        runs.append(lines(tmp_path / name))
        rollouts = lines(tmp_path / name, "rollouts/grpo.jsonl")
        assert {rollout["prompt"] for rollout in rollouts} and any(
            turn["given"] in ("<\n", ">\n", "?\n") for rollout in rollouts for turn in rollout.get("turns", [])
        )
    assert runs[0] == runs[1]
    assert any("reward/answer" in line for line in runs[0])
