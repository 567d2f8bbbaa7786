"""Pairs of completions: the losses as ops, pairs made of rollouts, dpo phases from a file of pairs."""

import json
import math
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import isentrope
from compiled import compiled as in_one_graph
from isentrope import methods, pairs

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).with_name("isentrope")
BETA, SMOOTH = 0.3, 0.2


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


LOOPS = {
    "sigmoid": lambda h: -(1 - SMOOTH) * math.log(sigmoid(BETA * h)) - SMOOTH * math.log(sigmoid(-BETA * h)),
    "sigmoid_norm": lambda h: -(1 - SMOOTH) * math.log(sigmoid(BETA * h)) - SMOOTH * math.log(sigmoid(-BETA * h)),
    "robust": lambda h: (-(1 - SMOOTH) * math.log(sigmoid(BETA * h)) + SMOOTH * math.log(sigmoid(-BETA * h))) / (1 - 2 * SMOOTH),
    "hinge": lambda h: max(0.0, 1 - BETA * h),
    "ipo": lambda h: (h - 1 / (2 * BETA)) ** 2,
}


@pytest.mark.parametrize("loss", LOOPS)
def test_losses_are_those_of_a_loop(loss):
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = 4 * torch.randn(2, 9, generator=generator, dtype=torch.float64)
    got = methods.preference(chosen, rejected, loss=loss, beta=BETA, label_smoothing=SMOOTH)
    wanted = [LOOPS[loss](w - l) for w, l in zip(chosen.tolist(), rejected.tolist())]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    leaves = [x.requires_grad_() for x in (chosen, rejected)]
    assert torch.autograd.gradcheck(lambda w, l: methods.preference(w, l, loss=loss, beta=BETA, label_smoothing=SMOOTH), leaves)


def test_losses_golden():
    # By the formulas of TRL 1.16.0's DPOTrainer, by hand: beta 0.1, h = 1 and -3.
    chosen, rejected = torch.tensor([1.5, -2.0]), torch.tensor([0.5, 1.0])
    close = lambda got, wanted: torch.testing.assert_close(got, torch.tensor(wanted), rtol=1e-6, atol=1e-6)  # noqa: E731
    close(methods.preference(chosen, rejected), [0.6443967, 0.8543552])
    close(methods.preference(chosen, rejected, loss="hinge"), [0.9, 1.3])
    close(methods.preference(chosen, rejected, loss="ipo"), [16.0, 64.0])


def test_beta_and_smoothing_move_the_gradient():
    gradients = []
    for options in ({}, {"beta": 0.5}, {"label_smoothing": 0.3}):
        chosen = torch.tensor([0.4], requires_grad=True)
        methods.preference(chosen, torch.tensor([0.1]), **options).sum().backward()
        gradients.append(chosen.grad.item())
    assert len(set(gradients)) == 3


def test_compiles_and_has_shapes_of_its_own():
    chosen, rejected = torch.randn(2, 5)
    compiled = in_one_graph(lambda w, l: methods.preference(w, l).mean())
    torch.testing.assert_close(compiled(chosen, rejected), methods.preference(chosen, rejected).mean())
    assert methods.preference(chosen.to("meta"), rejected.to("meta")).shape == (5,)


def test_differential_information_golden():
    logprob, reference = torch.tensor([-1.0, -2, -3]), torch.tensor([-1.5, -2, -2.5])
    assert methods.differential_information(logprob, reference).item() == pytest.approx(1.020191, abs=1e-6)
    assert methods.differential_information(logprob, logprob).item() == pytest.approx(math.log(3), abs=1e-12)
    assert methods.differential_information(torch.tensor([0.0, -torch.inf]), torch.tensor([-1.0, -1])).item() == 0


@pytest.mark.parametrize(
    "options, words",
    [({"loss": "dpo"}, ["loss", '"dpo"', "sigmoid"]), ({"beta": 0.0}, ["beta", "above 0"]), ({"label_smoothing": 0.6}, ["label_smoothing", "0 to 0.5"]),
     ({"loss": "robust", "label_smoothing": 0.5}, ["label_smoothing", "robust"])],
)  # fmt: skip
def test_refuses(options, words):
    with pytest.raises(ValueError) as error:
        methods.preference(torch.zeros(2), torch.zeros(2), **options)
    assert all(word in str(error.value) for word in ["method_preference", *words])
    with pytest.raises(ValueError, match="rejected"):
        methods.preference(torch.zeros(2), torch.zeros(3))


# ---- pairs -----------------------------------------------------------------------------------------------------------


def one(text, tokens, right, entropy=1.0, score=None):
    return pairs.Candidate(text, tokens, entropy, float(right) if score is None else score, right)


def texts(found):
    return [(better.text, worse.text) for better, worse in found]


def test_rules_choose_pairs():
    drawn = [one("a", 5, True, 0.5), one("b", 3, True, 0.9), one("c", 4, False), one("d", 9, False), one("e", 2, False)]
    assert texts(pairs.pairs_of(drawn)) == [("b", "d")]
    assert texts(pairs.pairs_of(drawn, most=5)) == [("b", "d"), ("b", "c")]
    assert texts(pairs.pairs_of(drawn, "calm")) == [("a", "d")]
    assert texts(pairs.pairs_of(drawn, "long")) == [("a", "e")]
    scored = [one("a", 1, False, score=0.2), one("b", 1, False, score=0.9), one("c", 1, False, score=0.3)]
    assert texts(pairs.pairs_of(scored, "score")) == [("b", "a")]
    assert texts(pairs.pairs_of(scored, "score", margin=0.8)) == []
    assert pairs.pairs_of([one("a", 1, True), one("b", 2, True)]) == []
    assert pairs.pairs_of([one("a", 1, True), one("a", 3, False)]) == [], "the same text is no pair"
    assert pairs.pairs_of([one("a", 3, True), one("b", 2, False)]) == [], "no wrong one is longer"


# ---- dpo phases ------------------------------------------------------------------------------------------------------

CONFIG = """
run: {{dir: {folder}/run, seed: 1, threads: 1, checkpoint_every: 3}}
model: {{num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 64, max_position_embeddings: 32, tie_word_embeddings: true}}
tokenizer: {{characters: "0123456789+=."}}
phases:
  - name: sft
    objective: {{kind: sft}}
    data: {{jsonl: {{path: {folder}/pairs.jsonl}}}}
    batch: {{sequences: 8}}
    optimizer: {{lr: 4.0e-3}}
    steps: 4
  - name: dpo
    objective: {{kind: dpo, dpo_beta: 0.2}}
    data: {{jsonl: {{path: {folder}/pairs.jsonl}}}}
    batch: {{sequences: 16}}
    optimizer: {{lr: 1.0e-3}}
    schedule: {{kind: constant, warmup_steps: 0}}
    steps: 40
test: {{prompts: 8, sampled_prompts: 4, num_generations: 2}}
"""


def write_pairs(folder, count=200):
    draw = random.Random(5)
    with open(folder / "pairs.jsonl", "w") as file:
        for _ in range(count):
            a, b = draw.randrange(50), draw.randrange(50)
            file.write(json.dumps({"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": f"0{draw.randrange(100)}"}) + "\n")
    (folder / "dpo.yaml").write_text(CONFIG.format(folder=folder))


def train(folder, *words, check=True):
    told = subprocess.run([PROGRAM, "train", folder / "dpo.yaml", "--quiet", *words], capture_output=True, text=True, cwd=folder)
    assert not check or told.returncode == 0, told.stderr
    return told


def lines(folder, name="run"):
    return [json.loads(line) for line in open(folder / name / "metrics.jsonl")]


def steps(folder, name="run"):
    return [line for line in lines(folder, name) if line.get("phase") == "dpo" and "eval/split" not in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo")
    write_pairs(folder)
    train(folder)
    return folder


def test_a_phase_learns_what_is_preferred(trained):
    told = steps(trained)
    assert len(told) == 40
    assert told[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "policy and reference are the same"
    assert told[0]["pair/margin"] == pytest.approx(0, abs=1e-5)
    assert told[0]["pair/information"] == pytest.approx(math.log(2), abs=1e-6)
    assert all(0 <= line["pair/information"] <= math.log(2) + 1e-9 for line in told) and told[-1]["pair/information"] < 0.5
    last = told[-8:]
    assert sum(line["pair/accuracy"] for line in last) / 8 > 0.9
    assert sum(line["loss"] for line in last) / 8 < 0.5
    for line in told:
        assert line["pair/margin"] == pytest.approx(line["pair/chosen"] - line["pair/rejected"], abs=1e-5)


def stable(line):
    return {key: value for key, value in line.items() if key not in ("time_s", "tokens_per_s", "mfu")}


def numbers(line):
    return {key: value for key, value in stable(line).items() if isinstance(value, (int, float)) and key != "ranks/bytes"}


def test_cuts_between_pairs_change_rounding_alone(trained):
    train(trained, f"run.dir={trained}/cut", "phases.dpo.batch.micro_tokens=60", "phases.dpo.steps=3")
    for whole, cut in zip(steps(trained), steps(trained, "cut"), strict=False):
        for key, value in numbers(whole).items():
            assert cut[key] == pytest.approx(value, rel=2e-4, abs=2e-5), key


def test_a_resumed_run_is_the_same(trained):
    train(trained, f"run.dir={trained}/parts", "phases.dpo.steps=5")
    short = steps(trained, "parts")
    assert [stable(line) for line in short] == [stable(line) for line in steps(trained)[:5]]
    checkpoint = trained / "parts" / "checkpoints"
    for folder in checkpoint.glob("dpo-*5"):
        (folder / "DONE").unlink()
    train(trained, f"run.dir={trained}/parts", "phases.dpo.steps=5", "--resume")
    assert [stable(line) for line in steps(trained, "parts")] == [stable(line) for line in short]


def test_two_ranks_learn_the_same(trained):
    if "\nranks: Gloo" not in subprocess.run([PROGRAM, "version"], capture_output=True, text=True).stdout:
        pytest.skip("this build has one rank")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [PROGRAM, "train", trained / "dpo.yaml", "--quiet", f"run.dir={trained}/ranks", "phases.dpo.steps=3", "run.timeout_s=60"]
    of_rank = lambda rank: os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # noqa: E731
    ranks = [subprocess.Popen(words, env=of_rank(rank), stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    assert [(rank.communicate(timeout=120)[1], rank.returncode)[1] for rank in ranks] == [0, 0]
    for one, two in zip(steps(trained), steps(trained, "ranks"), strict=False):
        for key, value in numbers(one).items():
            assert two[key] == pytest.approx(value, rel=2e-3, abs=1e-4), key


@pytest.mark.parametrize("words", [("dpo_loss=ipo",), ("dpo_loss=hinge",), ("dpo_loss=robust", "dpo_label_smoothing=0.1"), ("dpo_loss=sigmoid_norm", "dpo_beta=2"), ("dpo_sft_coef=1",)])  # fmt: skip
def test_other_losses_raise_the_margin(trained, words):
    name = "_".join(words).replace("=", "_")
    train(trained, f"run.dir={trained}/{name}", "phases.dpo.steps=15", *(f"phases.dpo.objective.{word}" for word in words))
    told = steps(trained, name)
    assert sum(line["pair/margin"] for line in told[-5:]) > 0
    if words == ("dpo_sft_coef=1",):
        assert told[0]["loss"] > math.log(2) + 0.5, "the cross-entropy stands beside the loss"


def margins_by(policy, reference, tokenizer, pairs_of_file):
    """beta times the difference of log-ratios of each pair, by transformers."""

    def logprob(model, prompt, completion):
        ids = tokenizer(prompt + completion + ".", return_tensors="pt").input_ids
        start = len(tokenizer(prompt).input_ids)
        with torch.no_grad():
            logits = model(ids).logits.double().log_softmax(-1)
        return logits[0, start - 1 : -1].gather(1, ids[0, start:, None]).sum().item()

    ratio = {key: [logprob(policy, one["prompt"], one[key]) - logprob(reference, one["prompt"], one[key]) for one in pairs_of_file]
             for key in ("chosen", "rejected")}  # fmt: skip
    return [0.2 * (w - l) for w, l in zip(ratio["chosen"], ratio["rejected"])]


def test_held_out_pairs_are_told(trained):
    transformers = pytest.importorskip("transformers")
    draw = random.Random(9)
    held = [{"prompt": f"{a}+{50 + a % 49}=", "chosen": str(a + 50 + a % 49), "rejected": f"0{draw.randrange(100)}"} for a in range(51, 82)]
    (trained / "held.jsonl").write_text("".join(json.dumps(one) + "\n" for one in held))
    words = ["run.checkpoint_every=1", "phases.dpo.steps=6", f"phases.dpo.data.jsonl.validation_path={trained}/held.jsonl",
             "phases.dpo.evaluation={every: 3, prompts: 31, sampled_prompts: 5, num_generations: 4}"]  # fmt: skip
    for name, cut in (("held", []), ("held_cut", ["phases.dpo.batch.sequences=7", "phases.dpo.steps=3"])):
        train(trained, f"run.dir={trained}/{name}", *words, *cut)
        checkpoints = trained / name / "checkpoints"
        step = 3 if cut else 6
        policy, reference = (transformers.AutoModelForCausalLM.from_pretrained(next(checkpoints.glob(one))) for one in (f"dpo-*{step}", "sft-*4"))
        margins = margins_by(policy, reference, transformers.AutoTokenizer.from_pretrained(next(checkpoints.glob(f"dpo-*{step}"))), held)
        told = [line for line in lines(trained, name) if line.get("eval/split") == "validation"][-1]
        assert told["step"] == step
        assert told["eval/margin"] == pytest.approx(sum(margins) / 31, abs=2e-5)
        assert told["eval/preference"] == pytest.approx(sum(margin > 0 for margin in margins) / 31, abs=0.033)  # but a tie
        assert 0 < told["eval/information"] <= math.log(4) + 1e-9


def test_the_loss_is_that_of_torch(trained):
    """Of the second step, whose update has every pair of the file: after one step policy and reference differ."""
    transformers = pytest.importorskip("transformers")
    pairs_of_file = [json.loads(line) for line in open(trained / "pairs.jsonl")]
    words = [f"phases.dpo.data.jsonl.{part}_fraction=0" for part in ("validation", "test")]
    train(trained, f"run.dir={trained}/one", "phases.dpo.steps=2", "run.checkpoint_every=1", f"phases.dpo.batch.sequences={len(pairs_of_file)}", *words)
    checkpoints = trained / "one" / "checkpoints"
    policy, reference = (transformers.AutoModelForCausalLM.from_pretrained(next(checkpoints.glob(name))) for name in ("dpo-*1", "sft-*4"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(next(checkpoints.glob("dpo-*1")))

    margins = margins_by(policy, reference, tokenizer, pairs_of_file)
    second = steps(trained, "one")[1]
    # float32 sums of some ten log-probabilities of some nats: 1e-6 each.
    assert second["loss"] == pytest.approx(sum(-math.log(sigmoid(margin)) for margin in margins) / len(margins), abs=2e-5)
    assert second["pair/margin"] == pytest.approx(sum(margins) / len(margins), abs=2e-5)
    assert second["pair/accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / len(margins), abs=0.011)  # but ties
    assert abs(second["loss"] - math.log(2)) > 1e-3, "the step moved nothing"


@pytest.mark.parametrize(
    "line, words",
    [({"prompt": "1+1=", "completion": "2"}, ["1: there is no pair", "chosen", "rejected"]),
     ({"prompt": "1+1=", "chosen": "2", "rejected": "2"}, ["are the same", "on_error"]),
     ({"prompt": "1+1=", "chosen": "2", "rejected": ["3"]}, ["JSON string", "JSON array"]),
     ({"prompt": "1+1=", "chosen": "2", "rejected": ""}, ["completion is empty"]),
     ({"prompt": "1+1=", "chosen": "2"}, ["there is no pair"])],
)  # fmt: skip
def test_mistakes_in_a_line_are_named(tmp_path, line, words):
    write_pairs(tmp_path, 50)
    text = (tmp_path / "pairs.jsonl").read_text()
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n" + text)
    told = train(tmp_path, check=False)
    assert told.returncode != 0
    assert all(word in told.stderr for word in ["pairs.jsonl:1", *words]), told.stderr


@pytest.mark.parametrize(
    "override, words",
    [("phases.dpo.objective.dpo_beta=0", ["dpo_beta", "above 0"]), ("phases.dpo.objective.dpo_loss=dpo", ["dpo_loss", "sigmoid"]),
     ("phases.dpo.data.packing=true", ["packing", "sft"]), ("phases.dpo.rollout={}", ["rollout", "grpo"]),
     ("phases.dpo.objective.ref_kl_control={target: 1}", ["ref_kl_control", "dpo"]),
     ("phases.dpo.data={tint: {task: signed_sum}}", ["pairs", "jsonl"])],
)  # fmt: skip
def test_mistakes_in_the_configuration_are_named(trained, override, words):
    told = train(trained, override, f"run.dir={trained}/refused", check=False)
    assert told.returncode != 0 and all(word in told.stderr for word in words), told.stderr
    assert not (trained / "refused").exists()


def test_pairs_come_of_the_rollouts_of_a_run(trained, tmp_path):
    config = (trained / "dpo.yaml").read_text().replace("kind: dpo, dpo_beta: 0.2", "kind: grpo").replace("batch: {sequences: 16}\n    optimizer: {lr: 1.0e-3}",
        "rollout: {prompts: 16, num_generations: 8, max_new_tokens: 6, save_every: 1}\n    reward: [{kind: exact}]\n    optimizer: {lr: 1.0e-3}")  # fmt: skip
    (tmp_path / "grpo.yaml").write_text(config)
    subprocess.run([PROGRAM, "train", tmp_path / "grpo.yaml", "--quiet", f"run.dir={tmp_path}/run", "phases.sft.steps=60", "phases.dpo.steps=4"], check=True)
    out = tmp_path / "mined.jsonl"
    told = subprocess.run([PROGRAM, "pairs", tmp_path / "run", "--output", out, "--rule", "long"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    mined = [json.loads(line) for line in open(out)]
    assert mined and f"{len(mined)} pairs of 64 prompts" in told.stdout
    for pair in mined:
        a, b = pair["prompt"].rstrip("=").split("+")
        assert pair["chosen"].rstrip(".") == str(int(a) + int(b)) != pair["rejected"].rstrip(".")
    missing = subprocess.run([PROGRAM, "pairs", tmp_path / "nothing", "--output", out], capture_output=True, text=True)
    assert missing.returncode == 1 and "is not there" in missing.stderr
    named = subprocess.run([PROGRAM, "pairs", tmp_path / "run", "--output", out, "--reward", "mine"], capture_output=True, text=True)
    assert named.returncode == 1 and "'mine'" in named.stderr and "exact" in named.stderr
    assert [json.loads(line) for line in open(out)] == mined, "a mistake leaves the file as it was"
