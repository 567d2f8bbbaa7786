"""Whole runs of the trainer: configs/tiny with stored losses, kill and resume, micro-batches, mistakes, Python."""

import array
import collections
import fractions
import gc
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TINY = sorted((ROOT / "configs" / "tiny").glob("*.yaml"))
TIMES = {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu", "sigma/time_share", "ranks/bytes"}  # all that may differ between two equal runs


def binary() -> str:
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert path, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    return os.path.abspath(path)


def train(config, folder, *overrides, resume=False, check=True):
    command = [binary(), "train", str(config), f"run.dir={folder}", *overrides] + (["--resume"] if resume else [])
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)  # paths of corpora
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def metrics(folder) -> list[dict]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines if not line.startswith('{"run": ')]


def final_checkpoint(folder) -> Path:
    return max(
        (p for p in (Path(folder) / "checkpoints").iterdir() if (p / "DONE").exists()),
        key=lambda p: json.loads((p / "trainer.json").read_text())["phase"] * 10**6 + int(p.name.rsplit("-", 1)[1]),
    )


def weights(folder) -> bytes:
    return (final_checkpoint(folder) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs a tiny configuration once, and hands out its folder."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name)
            train(ROOT / "configs" / "tiny" / f"{name}.yaml", done[name])
        return done[name]

    return run


@pytest.mark.parametrize("name", [path.stem for path in TINY])
def test_stored_losses(finished, name):
    # Stored by `scripts/make_golden.py`. Another instruction set rounds otherwise, and steps amplify that: by step 10 of
    # these runs AVX2 and AVX-512 differ by less than 1e-4 of the loss. Rollouts then diverge token by token, so only
    # the first phase is compared.
    golden = json.loads((ROOT / "tests" / "golden" / "tiny_losses.json").read_text())[name]
    losses = [line["loss"] for line in metrics(finished(name)) if line["phase"] == golden["phase"] and "loss" in line]
    assert len(losses) == golden["steps"]
    assert losses[: len(golden["loss"])] == pytest.approx(golden["loss"], rel=1e-3)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["pretrain", "sft", "grpo", "sigma"])
def test_fused_head_is_a_matter_of_rounding(finished, tmp_path, name):
    train(ROOT / "configs" / "tiny" / f"{name}.yaml", tmp_path / "run", "model.fused_head=false")
    fused, plain = metrics(finished(name)), metrics(tmp_path / "run")
    first = plain[0]["phase"]
    losses = [[line["loss"] for line in lines if line["phase"] == first and "loss" in line] for lines in (fused, plain)]
    # Measured: 3e-5 of the loss in grpo, whose large steps amplify rounding as they do between instruction sets; 1.3e-7 at most
    # in the others, some units in the last place of a float.
    rel = 1e-3 if name == "grpo" else 1e-6
    assert len(losses[0]) == len(losses[1]) and losses[0] == pytest.approx(losses[1], rel=rel)
    evaluated = [[line["eval/loss"] for line in lines if "eval/loss" in line] for lines in (fused, plain)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=rel)


@pytest.mark.parametrize("name,kills", [("pretrain", 2), ("mlm", 2), ("sft", 2), ("grpo", 4), ("grpo_clip_cov", 2), ("adaptive", 3),
                                        ("ares", 3), ("methods", 3), ("sigma", 3)])
def test_killed_run_repeats_itself(finished, tmp_path, name, kills):
    config = ROOT / "configs" / "tiny" / f"{name}.yaml"
    whole = metrics(finished(name))
    generator = random.Random(name)
    folder = tmp_path / "run"
    resume = False
    for _ in range(kills):
        process = subprocess.Popen(
            [binary(), "train", str(config), f"run.dir={folder}", "--quiet"] + (["--resume"] if resume else []),
            stdout=subprocess.DEVNULL, cwd=ROOT,
        )
        # Killed when a random number of further lines stands in metrics.jsonl, at a random moment of the next step.
        seen = len((folder / "metrics.jsonl").read_text().splitlines()) if resume else 0
        stop = seen + generator.randint(1, max(1, len(whole) // kills))
        while process.poll() is None:
            path = folder / "metrics.jsonl"
            if path.exists() and path.read_text().count("\n") >= stop:
                time.sleep(generator.random() * 0.05)
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
        resume = True
    train(config, folder, resume=True)
    assert metrics(folder) == whole
    assert (folder / "samples.jsonl").read_bytes() == (finished(name) / "samples.jsonl").read_bytes()
    assert weights(folder) == weights(finished(name))


def test_interrupt_writes_a_checkpoint(finished, tmp_path):
    config = ROOT / "configs" / "tiny" / "grpo.yaml"
    folder = tmp_path / "run"
    process = subprocess.Popen([binary(), "train", str(config), f"run.dir={folder}"], stdout=subprocess.PIPE, text=True)
    while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 7:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in out
    assert (final_checkpoint(folder) / "DONE").exists()
    train(config, folder, resume=True)
    assert metrics(folder) == metrics(finished("grpo"))
    assert weights(folder) == weights(finished("grpo"))


def test_micro_batches_give_the_same_update(finished, tmp_path):
    # Sums that are cut otherwise round otherwise, and steps amplify that; so the first steps of each phase are compared,
    # from one start: 1e-4 is some hundred roundings of a float32 loss.
    config = ROOT / "configs" / "tiny" / "grpo.yaml"
    start = finished("grpo") / "checkpoints" / "sft-000060"
    train(config, tmp_path / "sft", "phases.sft.batch.micro_tokens=64", "phases.sft.steps=5", "phases.grpo.steps=1")
    train(config, tmp_path / "whole", f"run.start={start}", "phases.grpo.steps=1")
    train(config, tmp_path / "cut", f"run.start={start}", "phases.grpo.steps=1", "phases.grpo.batch.micro_tokens=80")
    pairs = list(zip(metrics(finished("grpo"))[:4], metrics(tmp_path / "sft")[:4]))
    pairs.append((metrics(tmp_path / "whole")[0], metrics(tmp_path / "cut")[0]))
    for whole, cut in pairs:
        assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-4, abs=1e-6)
        assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)
        # As many tokens are selected; the share is a float32 division, of other sums.
        assert cut.get("select/frac") == (whole.get("select/frac") and pytest.approx(whole["select/frac"], rel=1e-6))


def test_adaptive_rollouts_branch_share_out_and_are_filtered(finished):
    steps = [line for line in metrics(finished("adaptive")) if line["phase"] == "grpo" and "eval/split" not in line]
    assert "branch/threshold" not in steps[0]  # nothing is known of the policy's entropy yet
    assert sum(line["branch/kept"] for line in steps) > 5 and sum(line["branch/dropped"] for line in steps) > 5
    assert sum(line["cache/preempted"] for line in steps) > 0
    assert steps[0]["samples/std"] == 0 and steps[-1]["samples/std"] > 0
    assert all(line["groups/kept"] <= 8 for line in steps)
    tests = [line for line in metrics(finished("adaptive")) if line.get("eval/split") == "test"]
    for line in tests:
        assert line["eval/sampled"] == pytest.approx((line["eval/sampled/2"] + line["eval/sampled/3"]) / 2)
        assert line["eval/length"] == pytest.approx((line["eval/length/2"] + line["eval/length/3"]) / 2)


def test_a_step_whose_groups_are_all_alike_is_skipped_and_counted(finished, tmp_path):
    config = ROOT / "configs" / "tiny" / "adaptive.yaml"
    start = max((finished("adaptive") / "checkpoints").glob("sft-*"))
    reward = 'phases.grpo.reward=[{kind: format, pattern: "x"}, {kind: filter_groups, max_draws: 2, max_empty_steps: %d}]'  # no answer has it
    never = [f"run.start={start}", reward % 100]
    train(config, tmp_path / "skips", *never, "phases.grpo.steps=3")
    steps = [line for line in metrics(tmp_path / "skips") if line["phase"] == "grpo" and "eval/split" not in line]
    assert [line["groups/empty_steps"] for line in steps] == [1, 2, 3]
    assert all("loss" not in line and line["groups/kept"] == 0 for line in steps)
    weights = [sorted((folder / "checkpoints").glob(name))[-1] / "model.safetensors"
               for folder, name in [(finished("adaptive"), "sft-*"), (tmp_path / "skips", "grpo-*")]]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    stopped = train(config, tmp_path / "stops", *never, reward % 2, check=False)
    assert stopped.returncode == 1
    assert "2 steps in a row of 2 batches of 8 prompts each found too few groups whose rewards differ" in stopped.stderr
def test_ares_steers_the_reference(finished, tmp_path):
    lines = [line for line in metrics(finished("ares")) if line["phase"] == "grpo" and "loss" in line]
    names = ("easy", "medium", "hard")
    for line in lines:
        assert sum(line[f"ares/groups/{name}"] for name in names) == 8
        assert 0 < line["ares/threshold"] < math.log(25)
        for name in names:
            assert (line[f"ares/groups/{name}"] > 0) == (f"ares/high/{name}" in line) == (f"ares/target/{name}" in line)
            assert line.get(f"ref_kl/{name}", 0) >= 0
    assert any(line["ares/shaping"] != 0 for line in lines)
    assert any(line[f"ares/beta/{name}"] != 1 for line in lines for name in names)
    # The weights reach the loss: from the second update on, there is a divergence that they can weigh.
    start = finished("ares") / "checkpoints" / "sft-000060"
    config = ROOT / "configs" / "tiny" / "ares.yaml"
    for folder, inside in (("held", 1), ("free", 0)):
        train(config, tmp_path / folder, f"run.start={start}", "phases.grpo.steps=1",
              f"phases.grpo.reward.2.kl.inside={inside}")
    held, free = (metrics(tmp_path / folder)[0] for folder in ("held", "free"))
    assert held["ref_kl/k3"] > 0 and held["loss"] > free["loss"]
    # However an update is cut, it is the same, and so is what it says of difficulties. 1e-3: differences of log-probabilities
    # that are nearly equal lose digits.
    train(config, tmp_path / "whole", f"run.start={start}", "phases.grpo.steps=1", "phases.grpo.batch.micro_tokens=0")
    whole, cut = metrics(tmp_path / "whole")[0], lines[0]
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-4, abs=1e-6)
    seen = {name for name in whole if name.startswith("ref_kl/")}
    assert seen == {name for name in cut if name.startswith("ref_kl/")} and seen & {f"ref_kl/{name}" for name in names}
    for name in seen:
        assert cut[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-7), name


@pytest.mark.parametrize("name", ["pretrain", "sft", "sigma"])
def test_threads_do_not_change_a_run(finished, tmp_path, name):
    train(ROOT / "configs" / "tiny" / f"{name}.yaml", tmp_path, "run.threads=2")
    assert metrics(tmp_path) == metrics(finished(name))


def evaluations(folder, split) -> list[dict]:
    return [line for line in metrics(folder) if line.get("eval/split") == split]


def test_pretraining_is_judged_in_bits_per_byte(finished):
    folder = finished("pretrain")
    validation, test = evaluations(folder, "validation"), evaluations(folder, "test")
    assert [line["step"] for line in validation] == [20, 40] and [line["step"] for line in test] == [40]
    for line in validation + test:
        # A byte a token, and an end for each file of some hundreds: bits per byte are a little above bits per token.
        bits = line["eval/loss"] / math.log(2)
        assert bits * (1 - 1e-12) <= line["eval/bits_per_byte"] < 1.02 * bits
    assert validation[1]["eval/loss"] < validation[0]["eval/loss"] < math.log(258)
    summary = json.loads((folder / "summary.json").read_text())
    assert [(row["phase"], row["bits_per_byte"]) for row in summary] == [("pretrain", test[0]["eval/bits_per_byte"])]


def test_evaluate_measures_what_training_did(finished):
    for name in ("pretrain", "sft"):
        told = subprocess.run([binary(), "evaluate", "--json", str(finished(name)), f"configs/tiny/{name}.yaml"],
                              capture_output=True, text=True, check=True, cwd=ROOT)
        found, line = json.loads(told.stdout), evaluations(finished(name), "test")[0]
        assert found.pop("phase") == line["phase"] and found.pop("split") == "test"
        for name, interval in found.pop("intervals").items():
            assert interval["low"] <= found[name] <= interval["high"] and interval["of"]
        assert found == {key.removeprefix("eval/"): value for key, value in line.items()
                         if key.startswith("eval/") and key != "eval/split"}


def samples(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_evaluations_show_samples(finished, tmp_path):
    lines = samples(finished("sft"))
    told = [(line["phase"], line["step"], line["eval/split"]) for line in metrics(finished("sft")) if "eval/split" in line]
    assert [(line["phase"], line["step"], line["eval/split"]) for line in lines] == told
    for line in lines:
        assert len(line["samples"]) == 4
        for sample in line["samples"]:
            assert sample["prompt"].endswith("=") and isinstance(sample["right"], bool)
            assert len(sample["tokens"]) == len(sample["entropy"]) > 0
            assert all(0 <= H <= math.log(25) for H in sample["entropy"])
    # All samples of an evaluation: their mean entropy and length are those that it tells.
    options = ["test.show=16", "test.sampled_prompts=16", "test.num_generations=1", "phases.sft.evaluation.show=0"]
    train(ROOT / "configs" / "tiny" / "sft.yaml", tmp_path, *options)
    (line,), (test,) = samples(tmp_path), evaluations(tmp_path, "test")
    entropies = [H for sample in line["samples"] for H in sample["entropy"]]
    assert len(entropies) / 16 == test["eval/length"] and sum(s["right"] for s in line["samples"]) / 16 == test["eval/sampled"]
    assert sum(entropies) / len(entropies) == pytest.approx(test["eval/entropy"], abs=1e-4)


def test_evaluations_show_text(finished):
    text = [(path.read_bytes() + b"<|endoftext|>").decode() for path in (ROOT / "configs" / "tiny" / "corpus").iterdir()]
    for line in samples(finished("pretrain")):
        for sample in line["samples"]:
            assert sample["prompt"] == "" and "right" not in sample
            assert len(sample["tokens"]) == len(sample["entropy"]) <= 32
            assert any("".join(sample["tokens"]).split("<|endoftext|>")[0] in document for document in text)
            assert all(0 < H <= math.log(258) for H in sample["entropy"])


def test_the_loss_is_that_of_transformers(finished, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = final_checkpoint(finished("pretrain"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # A held-out text of 32 bytes and its end. In a context of 32 its ring of 33 tokens is cut into a window of 32 targets
    # and one of a single target, from an offset that the evaluation draws.
    text = "A line of just thirty-two bytes."
    (tmp_path / "text.txt").write_text(text)
    corpus = f"{{paths: [{tmp_path}/text.txt], validation_fraction: 0.999, test_fraction: 0, cache: {tmp_path}/cache}}"
    told = subprocess.run([binary(), "evaluate", "--json", str(folder), "configs/tiny/pretrain.yaml", "--split", "validation",
                           f"phases.pretrain.data.corpus={corpus}"], capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(told.stdout)
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    assert len(ids) == 33

    def loss_from(offset):
        ring = torch.tensor(ids[offset:] + ids[:offset])
        with torch.no_grad():
            logits = torch.cat([model(ring[None, :32]).logits[0], model(ring[None, 32:]).logits[0]])
        return torch.nn.functional.cross_entropy(logits, torch.roll(ring, -1)).item()

    assert min((loss_from(offset) for offset in range(32)), key=lambda loss: abs(loss - found["loss"])) == pytest.approx(
        found["loss"], rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * 33 / 32 / math.log(2), rel=1e-9)


def test_stop_at_bits_per_byte(tmp_path):
    config = ROOT / "configs" / "tiny" / "pretrain.yaml"
    train(config, tmp_path, "phases.pretrain.stop={bits_per_byte: 7}", "phases.pretrain.evaluation.every=5")
    validation = [line["eval/bits_per_byte"] for line in evaluations(tmp_path, "validation")]
    assert validation[-1] <= 7 and all(bits > 7 for bits in validation[:-1])
    assert metrics(tmp_path)[-1]["step"] < 40


def test_a_corpus_that_changed_cannot_be_resumed(tmp_path):
    config = ROOT / "configs" / "tiny" / "pretrain.yaml"
    shutil.copytree(ROOT / "configs" / "tiny" / "corpus", tmp_path / "corpus")
    overrides = [f"phases.pretrain.data.corpus.paths=[{tmp_path}/corpus]",
                 f"phases.pretrain.data.corpus.cache={tmp_path}/cache"]
    folder = tmp_path / "run"
    train(config, folder, *overrides)
    shutil.rmtree(folder / "checkpoints" / "pretrain-000040")
    with open(tmp_path / "corpus" / "heat.txt", "a") as file:
        file.write("One more line.\n")
    result = train(config, folder, *overrides, resume=True, check=False)
    assert result.returncode != 0 and "corpus" in result.stderr and "put the files back" in result.stderr, result.stderr


def test_pretraining_then_supervised_learning(tmp_path):
    """A phase goes on from the weights of the phase before, and all phases are judged by the last one's data."""
    text = (ROOT / "configs" / "tiny" / "pretrain.yaml").read_text()
    sft = """  - name: sft
    objective: {kind: sft}
    data: {tint: {task: signed_sum, terms: [2]}}
    batch: {sequences: 8}
    steps: 3
"""
    config = tmp_path / "two.yaml"
    config.write_text(text.replace("test: {windows: 16}", sft + "test: {prompts: 4, sampled_prompts: 4, num_generations: 2}"))
    train(config, tmp_path / "run", "phases.pretrain.steps=3")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["phase"] for row in summary] == ["pretrain", "sft"]
    assert all("greedy" in row for row in summary)


TEXTS = ["def f(x):\n\treturn x\n", "", " two  spaces ", "déjà vu", "中文字符", "emoji 😀👩‍👩‍👧", "a\x00\x7f\u0085b", "don't  stop"]


def test_byte_tokenizer_opens_in_transformers(finished):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(final_checkpoint(finished("pretrain")))
    assert len(tokenizer) == 258 and tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == 257
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == [byte + 1 for byte in text.encode()], text
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids + [257, 0]) == text + "<|endoftext|><pad>"
        assert tokenizer.decode(ids + [257, 0], skip_special_tokens=True) == text


def test_transformers_refuses_what_the_tokenizer_refuses(finished):
    transformers = pytest.importorskip("transformers")
    folder = final_checkpoint(finished("sft"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a+5b-6=").input_ids == [11, 19, 6, 12, 20, 7, 21]
    for text in ["xyz", "12 + 34", "1\n", "é"]:  # none was dropped in silence
        with pytest.raises(Exception, match="Missing .* token"):
            tokenizer(text)
        result = subprocess.run([binary(), "sample", str(folder), "--prompt", text], capture_output=True, text=True)
        assert result.returncode == 1 and "is not in the alphabet" in result.stderr


def test_transformers_draws_from_all_tokens(finished):
    transformers = pytest.importorskip("transformers")
    folder = final_checkpoint(finished("pretrain"))  # 258 tokens
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.manual_seed(1)
        drawn = model.generate(torch.full((2000, 1), 11), max_new_tokens=1, temperature=50.0)
    # Nearly uniform: 2000 draws of 258 tokens miss one with probability e^-7.8; the 50 likeliest tokens would be 50.
    assert len(set(drawn[:, 1].tolist())) > 200


def tokenizer_of(folder):
    """AutoTokenizer makes a Qwen2Tokenizer of whatever tokenizer lies in the folder of a Qwen2 model."""
    transformers = pytest.importorskip("transformers")
    qwen2 = json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"
    return (transformers.PreTrainedTokenizerFast if qwen2 else transformers.AutoTokenizer).from_pretrained(folder)


def greedy_texts(folder):
    """A greedy completion of one prompt by transformers and by the tool, both from the same checkpoint."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = tokenizer_of(folder)
    prompt = "a+5b+6="
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == prompt
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=20, do_sample=False)
    ours = subprocess.run(
        [binary(), "sample", str(folder), "--prompt", prompt, "--temperature", "0", "--max-new-tokens", "20"],
        capture_output=True, text=True, check=True,
    ).stdout.split()[0]
    return tokenizer.decode(out[0], skip_special_tokens=False).replace(" ", ""), ours


@pytest.mark.parametrize("name", ["sft", "grpo"])  # tied and untied head
def test_checkpoint_opens_in_transformers(finished, name):
    theirs, ours = greedy_texts(final_checkpoint(finished(name)))
    assert theirs == ours


OPENED = {"attention.qk_norm=true": "Qwen3", "attention.window=6": "Mistral", "head_dim=16": "Llama",
          "attention.qk_norm=true attention.window=6 head_dim=24": "Qwen3", "attention.bias=qkv": "Qwen2", "family=mistral": "Mistral",
          "attention.bias=all mlp_bias=true rope_scaling.rope_type=yarn rope_scaling.factor=2": "Llama",
          "attention.bias=qkv attention.window=6 attention.layer_types=[sliding_attention,full_attention]": "Qwen2"}  # fmt: skip


@pytest.mark.parametrize("options", OPENED)
def test_checkpoint_with_options_of_a_family_opens_in_transformers(tmp_path, options):
    train(ROOT / "configs" / "tiny" / "sft.yaml", tmp_path, *(f"model.{option}" for option in options.split()))
    theirs, ours = greedy_texts(final_checkpoint(tmp_path))
    assert theirs == ours
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(final_checkpoint(tmp_path))
    assert type(model).__name__ == f"{OPENED[options]}ForCausalLM"
    # And back: what transformers saves of it is the same model here.
    model.save_pretrained(tmp_path / "saved")
    tokenizer_of(final_checkpoint(tmp_path)).save_pretrained(tmp_path / "saved")
    told = [subprocess.run([binary(), "sample", str(folder), "--prompt", "a+5b+6=", "--temperature", "0"],
                           capture_output=True, text=True, check=True).stdout
            for folder in (final_checkpoint(tmp_path), tmp_path / "saved")]
    assert told[0] == told[1]


def test_checkpoint_that_transformers_cannot_compute_is_not_taken_for_another(tmp_path):
    transformers = pytest.importorskip("transformers")
    train(ROOT / "configs" / "tiny" / "sft.yaml", tmp_path, "model.attention.softcap=5")
    with pytest.raises(ValueError, match="trust_remote_code"):  # test_modeling_isentrope.py opens it with
        transformers.AutoModelForCausalLM.from_pretrained(final_checkpoint(tmp_path))


# ---- learned spectral norms, norms elsewhere --------------------------------------------------------------------------------


def test_sigma_and_gamma_of_every_layer_are_told(finished, tmp_path):
    train(ROOT / "configs" / "tiny" / "sigma.yaml", tmp_path, "model.sigma_reparam={layers: all, every: 1, svd: true}")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line["sigma"] for line in lines if "sigma" in line]
    assert [line["step"] for line in lines if "sigma" in line] == list(range(1, 41))
    assert list(told[0]) == [f"layers.{i}.{name}" for i in range(2) for name in "q k v o gate up down".split()] + ["head"]
    short = []  # by what share σ is below the true norm, with the power steps of the default settings
    for layers in told:
        for sigma, gamma, svd in layers.values():
            assert gamma > 0 and sigma <= svd * (1 + 1e-6)
            short.append(1 - sigma / svd)
    # Where one singular value overtakes another, σ waits a few updates on it. With one power step an update it is 0.6 % low here
    # in the mean, and once 53 %.
    assert sum(short) / len(short) < 1e-3 and max(short) < 0.1
    assert all(gamma != 1 for _, gamma, _ in told[0].values())  # it learns
    assert all(0 < line["sigma/time_share"] < 1 for line in lines if "loss" in line)
    told = [line["sigma"]["head"] for line in metrics(finished("sigma")) if "sigma" in line]
    assert told == [line["sigma"]["head"][:2] for line in lines if "sigma" in line and line["step"] % 10 == 0]


def test_sigma_checkpoint_is_plain_in_transformers(finished):
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file

    folder = final_checkpoint(finished("sigma"))
    raw, folded = load_file(folder / "trainer.safetensors"), load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    W, u, gamma = (raw[f"extra/sigma/layers.1.down{part}"].double() for part in ("", "_u", "_gamma"))
    torch.testing.assert_close(folded[name].double(), gamma / (W @ u[0]).norm() * W, rtol=1e-6, atol=1e-9)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(model).__name__ == "LlamaForCausalLM"
    theirs, ours = greedy_texts(folder)
    assert theirs == ours


def test_sigma_goes_on_from_plain_weights(finished, tmp_path):
    """A plain checkpoint is a start for learned spectral norms: γ = σ, so that nothing is lost."""
    text = (ROOT / "configs" / "tiny" / "sft.yaml").read_text()
    phase = text[text.index("  - name: sft") : text.index("test:")]
    two = tmp_path / "two.yaml"
    two.write_text(text.replace(phase, phase + phase.replace("name: sft", "name: more")))
    start = final_checkpoint(finished("sft"))
    common = [f"run.start={start}", "phases.more.steps=2"]
    train(two, tmp_path / "plain", *common)
    train(two, tmp_path / "sigma", *common, "model.sigma_reparam.layers=all", "model.sigma_reparam.every=1")
    plain, sigma = metrics(tmp_path / "plain")[0], metrics(tmp_path / "sigma")[0]
    assert plain["phase"] == "more" and sigma["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert sigma["grad_norm"] != plain["grad_norm"]


def test_sigma_in_rollouts_with_a_reference(tmp_path):
    """Phases one after the other, rollouts and a reference model; a resumed run repeats it."""
    config = ROOT / "configs" / "tiny" / "grpo.yaml"
    options = ["model.sigma_reparam.layers=all", "phases.sft.steps=8", "phases.grpo.steps=4", "run.checkpoint_every=3",
               "phases.grpo.objective.ref_kl_coef=0.1", "phases.grpo.rollout.mini_batches=1"]
    train(config, tmp_path / "whole", *options)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(final_checkpoint(tmp_path / "cut"))
    assert final_checkpoint(tmp_path / "cut").name == "grpo-000003"
    train(config, tmp_path / "cut", *options, resume=True)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    steps = [line for line in metrics(tmp_path / "whole") if line["phase"] == "grpo" and "loss" in line]
    # The reference is the model itself at the first step, but for the roundings of folded weights.
    assert abs(steps[0]["ref_kl/k1"]) < 1e-4 and steps[0]["ratio/max"] == pytest.approx(1, abs=1e-3)


def test_a_spectral_norm_that_is_not_finite_is_named(tmp_path):
    result = train(ROOT / "configs" / "tiny" / "sigma.yaml", tmp_path / "run", "phases.pretrain.optimizer.lr=1e30",
                   "phases.pretrain.optimizer.max_grad_norm=0", "phases.pretrain.schedule.warmup_steps=0", check=False)
    assert result.returncode != 0
    assert "the spectral norm of layers.0.q is not finite" in result.stderr and "step 1" in result.stderr, result.stderr
    assert "No weight was changed" not in result.stderr


@pytest.mark.parametrize("norm", ["post", "none"])
def test_norms_elsewhere_are_not_taken_for_llama(tmp_path, norm):
    transformers = pytest.importorskip("transformers")
    train(ROOT / "configs" / "tiny" / "sigma.yaml", tmp_path, f"model.norm={norm}")
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(ValueError, match="trust_remote_code"):  # test_modeling_isentrope.py opens it with
        transformers.AutoModelForCausalLM.from_pretrained(final_checkpoint(tmp_path))
    told = subprocess.run([binary(), "evaluate", "--json", str(tmp_path), "configs/tiny/sigma.yaml"],
                          capture_output=True, text=True, check=True, cwd=ROOT)
    # A head of learned norm takes γ/σ on the hidden states, its folded export on the weights: each is rounded once.
    assert json.loads(told.stdout)["bits_per_byte"] == pytest.approx(evaluations(tmp_path, "test")[0]["eval/bits_per_byte"], rel=1e-7)


MISTAKES = [
    (["model.sigma_reparam.layers=[q, key]"], "key"),
    (["model.sigma_reparam={layers: all}", "model.attention.qk_clip=5"], "qk_clip"),
    (["model.norm=pos"], "model.norm"),
    (["phases.sft.objective.los=clip"], "did you mean 'loss'"),
    (["model.hidden_size=sixty"], "model.hidden_size"),
    (["model.hidden_size=-1"], "model.hidden_size"),
    (["model.num_attention_heads=3"], "does not give 3 heads"),
    (["phases.grpo.rollout.mini_batches=3"], "mini_batches"),
    (["phases.grpo.objective.loss=clipcov"], "clip_cov"),
    (["model.max_position_embeddings=8"], "max_position_embeddings"),
    (["tokenizer.eos=x"], "eos"),
    (["phases.grpo.reward.0.kind=mine"], "mine"),
    (["run.start=nowhere"], "nowhere"),
]


@pytest.mark.parametrize("overrides,named", MISTAKES, ids=[m[0][0] for m in MISTAKES])
def test_mistakes_are_named(tmp_path, overrides, named):
    result = train(ROOT / "configs" / "tiny" / "grpo.yaml", tmp_path / "run", *overrides, check=False)
    assert result.returncode not in (0, -signal.SIGABRT, -signal.SIGSEGV)
    assert named in result.stderr, result.stderr


CORPUS_MISTAKES = [
    (["phases.pretrain.data.corpus.paths=[nowhere]"], ["nowhere", "data.corpus.paths"]),
    (["phases.pretrain.data.corpus.suffixes=[.rst]"], ["configs/tiny/corpus", ".rst"]),
    (["phases.pretrain.data.corpus.validation_fraction=0"], ["evaluation.every: 20 asks for validation"]),
    (["phases.pretrain.data.corpus.paths=[/dev/zero]"], ["/dev/zero cannot be read", "data.corpus.paths"]),
    (["model.max_position_embeddings=100000"], ["tokens", "takes 100001", "model.max_position_embeddings"]),
    (["tokenizer.kind=characters"], [".txt", "is not in the alphabet", "kind bytes"]),
    (["tokenizer.kind=byte"], ["one of characters, bytes"]),
    (["phases.pretrain.objective.kind=sft"], ["corpus belongs to pretrain, distill and mlm phases"]),
    (["phases.pretrain.stop={greedy: 0.5}"], ["bits_per_byte"]),
    (["phases.pretrain.data.corpus.cache=/proc/none"], ["/proc/none", "data.corpus.cache"]),
]


@pytest.mark.parametrize("overrides,named", CORPUS_MISTAKES, ids=[m[0][0] for m in CORPUS_MISTAKES])
def test_mistakes_about_a_corpus_are_named(tmp_path, overrides, named):
    result = train(ROOT / "configs" / "tiny" / "pretrain.yaml", tmp_path / "run", *overrides, check=False)
    assert result.returncode not in (0, -signal.SIGABRT, -signal.SIGSEGV)
    for word in named:
        assert word in result.stderr, result.stderr


def test_missing_file():
    result = subprocess.run([binary(), "train", "configs/nothing.yaml"], capture_output=True, text=True)
    assert result.returncode != 0 and "configs/nothing.yaml" in result.stderr


def test_a_finished_run_trains_longer_or_is_left_alone(finished, tmp_path):
    config = ROOT / "configs" / "tiny" / "sft.yaml"
    shutil.copytree(finished("sft"), tmp_path / "run")
    steps = json.loads((finished("sft") / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.is_file()}
    again = train(config, tmp_path / "run", resume=True)
    assert "nothing to do" in again.stdout and f"{steps}/{steps}" not in again.stdout
    assert {path: path.read_bytes() for path in before} == before
    longer = train(config, tmp_path / "run", f"phases.sft.steps={steps + 2}", resume=True)
    assert f"phases.sft.steps: {steps} → {steps + 2}" in longer.stdout
    assert final_checkpoint(tmp_path / "run").name == f"sft-{steps + 2:06}"
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == list(range(1, steps + 3))


def test_used_folder_is_refused(finished):
    result = train(ROOT / "configs" / "tiny" / "sft.yaml", finished("sft"), check=False)
    assert result.returncode != 0 and "--resume" in result.stderr


def test_second_trainer_is_refused(tmp_path):
    config = ROOT / "configs" / "tiny" / "grpo.yaml"
    first = subprocess.Popen([binary(), "train", str(config), f"run.dir={tmp_path}/run", "phases.sft.steps=100000", "--quiet"])
    try:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.01)
        second = train(config, tmp_path / "run", check=False, resume=True)
        assert second.returncode != 0 and str(first.pid) in second.stderr
    finally:
        first.kill()
        first.wait()


def test_checkpoint_of_another_model(finished, tmp_path):
    start = final_checkpoint(finished("sft"))
    result = train(ROOT / "configs" / "tiny" / "grpo.yaml", tmp_path / "run", f"run.start={start}", check=False)
    assert result.returncode != 0 and "model.tie_word_embeddings: true → false" in result.stderr, result.stderr
    assert not (tmp_path / "run").exists()


def test_non_finite_loss_stops_before_the_update(tmp_path):
    result = train(ROOT / "configs" / "tiny" / "sft.yaml", tmp_path / "run", "phases.sft.optimizer.lr=1e30",
                   "phases.sft.optimizer.max_grad_norm=0", "run.checkpoint_every=1", check=False)
    assert result.returncode != 0
    assert "not finite" in result.stderr and "step" in result.stderr and "checkpoint" in result.stderr, result.stderr
    assert final_checkpoint(tmp_path / "run").exists()


class TestPython:
    def trainer(self, folder, **arguments):
        isentrope = pytest.importorskip("isentrope")
        pytest.importorskip("isentrope._C", reason="the package was built without the trainer")
        overrides = {"run.dir": folder, **arguments.pop("overrides", {})}
        return isentrope.Trainer(ROOT / "configs" / "tiny" / "grpo.yaml", overrides=overrides, **arguments)

    def test_streams_the_metrics_of_the_tool(self, finished, tmp_path):
        lines = list(self.trainer(tmp_path / "run"))
        assert [{k: v for k, v in line.items() if k not in TIMES} for line in lines] == metrics(finished("grpo"))

    def test_reward_in_python(self, tmp_path):
        seen = []

        def mine(prompts, completions, meta):
            seen.append((prompts, completions, meta))
            return [float(c.count("A")) for c in completions]

        trainer = self.trainer(tmp_path / "run", rewards={"mine": mine},
                               overrides={"phases.grpo.reward": "[{kind: mine}]", "phases.sft.steps": 3})
        results = trainer.train()
        assert set(results) == {"sft", "grpo"} and trainer.finished
        prompts, completions, meta = seen[-1]
        assert len(prompts) == len(completions) == len(meta) and prompts[0].endswith("=") and len(meta[0]["answer"]) == 2

    def test_warns_of_what_is_allowed_and_not_meant(self, tmp_path):
        with pytest.warns(UserWarning, match="phases.sft.schedule.warmup_steps: 5 steps, and the phase has 1"):
            self.trainer(tmp_path / "run", overrides={"phases.sft.steps": 1})

    # Two steps of supervised learning, three of a policy with a reward in Python, to be compared with the same run unbroken.
    SHORT = {"phases.grpo.reward": "[{kind: mine}]", "phases.sft.steps": 2, "phases.grpo.steps": 3, "run.checkpoint_every": 0,
             "phases.grpo.evaluation": "{every: 2, prompts: 4, sampled_prompts: 4, num_generations: 2}",
             "test": "{prompts: 4, sampled_prompts: 4, num_generations: 2}"}

    def short(self, folder, reward, **arguments):
        return self.trainer(folder, rewards={"mine": reward}, overrides={**self.SHORT, **arguments.pop("overrides", {})}, **arguments)

    @staticmethod
    def good(prompts, completions, meta):
        return [len(set(c)) / 8 for c in completions]

    @pytest.fixture(scope="class")
    @classmethod
    def unbroken(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("unbroken")
        cls().short(folder, cls.good).train()
        return metrics(folder), weights(folder)

    def test_rewards_return_any_sequence_of_numbers(self, tmp_path, unbroken):
        ways = itertools.cycle([
            tuple, numpy.array, lambda x: numpy.array(x, numpy.float16), lambda x: array.array("d", x), collections.deque,
            lambda x: torch.tensor(x, requires_grad=True), lambda x: torch.tensor(x).bfloat16(),
            lambda x: [torch.tensor(y) for y in x], lambda x: [numpy.float32(y) for y in x], lambda x: [fractions.Fraction(y) for y in x]])
        trainer = self.short(tmp_path, lambda *a: next(ways)(self.good(*a)))  # eighths, which all these types hold
        trainer.train()
        assert (metrics(tmp_path), weights(tmp_path)) == unbroken
        nothing = self.short(tmp_path / "none", lambda p, c, m: [None if "0" in x else 1.0 for x in c])
        zero = self.short(tmp_path / "zero", lambda p, c, m: [0.0 if "0" in x else 1.0 for x in c])
        with pytest.warns(UserWarning, match="phases.grpo.reward: none has a score for the completion"):
            nothing.train()
        zero.train()
        assert weights(tmp_path / "none") == weights(tmp_path / "zero"), "None adds nothing"
        assert all(line.get("reward/mine", 1.0) == 1.0 for line in metrics(tmp_path / "none")), "nor to the mean"
        kinds = itertools.cycle([lambda x: [y > 0.5 for y in x], lambda x: torch.tensor(x) > 0.5, lambda x: numpy.array(x) > 0.5])
        self.short(tmp_path / "bools", lambda *a: next(kinds)(self.good(*a))).train()

    class Silent:
        def __repr__(self):
            raise AttributeError("no repr")

    REFUSED = {
        "a set": (lambda c: {0.5}, "a set, {0.5}"),
        "a dict": (lambda c: dict.fromkeys(range(len(c)), 1.0), "a dict"),
        "a string": (lambda c: "good", "a str, 'good'"),
        "bytes": (lambda c: b"1" * len(c), "a bytes"),
        "a generator": (lambda c: (1.0 for _ in c), "a generator"),
        "nothing": (lambda c: None, "a NoneType, None; wanted a list, tuple, array or tensor of"),
        "a number": (lambda c: torch.tensor(1.0), "a Tensor"),
        "an object": (lambda c: [1.0] * (len(c) - 1) + [{}], "a dict, {} as score .* or None where it does not apply"),
        "text": (lambda c: ["1.0"] * len(c), "a str, '1.0' as score 0"),
        "rows": (lambda c: torch.ones(len(c), 1), r"a list, \[1.0\] as score 0"),
        "complex": (lambda c: [1j] * len(c), "a complex"),
        "huge": (lambda c: [10**400] * len(c), "a int, 1000"),
        "long text": (lambda c: ["x" + "é" * 300], "éé…"),
        "half a character": (lambda c: "\ud83d", "ud83d"),
        "no repr": (lambda c: TestPython.Silent(), "Silent, of which repr"),
        "too few": (lambda c: [1.0], "reward/mine: returned 1 scores for"),
        "not finite": (lambda c: [float("nan")] * len(c), "reward/mine: score 0 is nan for the prompt"),
    }

    def test_what_is_no_list_of_numbers_is_refused_and_the_step_made_again(self, tmp_path, unbroken):
        now = {"way": None}
        trainer = self.short(tmp_path, lambda p, c, m: now["way"](c) if now["way"] else self.good(p, c, m))
        steps = iter(trainer)
        assert [next(steps)["step"] for _ in range(2)] == [1, 2]
        for name, (way, message) in self.REFUSED.items():
            now["way"] = way
            with pytest.raises(RuntimeError, match=message) as caught:
                for _ in trainer:
                    pass
            assert "mine" in str(caught.value) and len(str(caught.value)) < 600, name
        now["way"] = None
        trainer.train()
        assert (metrics(tmp_path), weights(tmp_path)) == unbroken

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
    @pytest.mark.parametrize("onwards", ["the same trainer", "save and resume"])
    def test_a_reward_that_raises_takes_nothing_of_the_run(self, tmp_path, unbroken, error, onwards):
        calls = []

        def raising(prompts, completions, meta):
            calls.append(len(completions))
            if len(calls) in (3, 5):
                raise error("in the reward")
            return self.good(prompts, completions, meta)

        trainer = self.short(tmp_path, raising)
        for attempt in range(2):
            with pytest.raises(error, match="in the reward") as caught:
                trainer.train()
            assert caught.traceback[-1].name == "raising"
            if hasattr(caught.value, "add_note") and error is not KeyboardInterrupt:
                assert 'the reward "mine"' in caught.value.__notes__[0]
            if onwards == "save and resume":
                assert trainer.save() == str(final_checkpoint(tmp_path))
                del trainer, caught  # whose frames hold the trainer, and it the folder
                trainer = self.short(tmp_path, raising, resume=True)
        trainer.train()
        assert (metrics(tmp_path), weights(tmp_path)) == unbroken

    def test_a_reward_may_not_call_its_trainer(self, tmp_path, unbroken):
        told = []

        def calling(prompts, completions, meta):
            for call in (lambda: next(iter(trainer)), trainer.save, trainer.train):
                with pytest.raises(RuntimeError, match="a reward may not call its own trainer") as caught:
                    call()
                told.append(str(caught.value))
            assert trainer.dir == str(tmp_path) and not trainer.finished and set(trainer.results) <= {"sft"}
            return self.good(prompts, completions, meta)

        trainer = self.short(tmp_path, calling)
        trainer.train()
        assert (metrics(tmp_path), weights(tmp_path)) == unbroken and told

    def test_one_thread_at_a_time(self, tmp_path, unbroken):
        inside, go_on = threading.Event(), threading.Event()

        def waiting(prompts, completions, meta):
            inside.set()
            assert go_on.wait(60)
            return self.good(prompts, completions, meta)

        trainer = self.short(tmp_path, waiting)
        thread = threading.Thread(target=trainer.train)
        thread.start()
        assert inside.wait(60)
        try:
            for call in (lambda: next(iter(trainer)), trainer.save):
                with pytest.raises(RuntimeError, match="another thread is in a step"):
                    call()
        finally:
            go_on.set()
            thread.join()
        assert (metrics(tmp_path), weights(tmp_path)) == unbroken

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork in a process that has threads
    def test_a_fork_leaves_the_trainer_alone(self, tmp_path, unbroken):
        trainer = self.short(tmp_path, self.good)
        next(iter(trainer))
        child = os.fork()
        if child == 0:
            try:
                trainer.save()
            except RuntimeError as error:
                os._exit(0 if "fork" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        trainer.train()
        assert (metrics(tmp_path), weights(tmp_path)) == unbroken

    def test_modes_of_caller_and_reward_do_not_change_a_run(self, tmp_path, unbroken):
        def switching(prompts, completions, meta):
            torch.set_grad_enabled(False)
            torch.set_default_dtype(torch.float64)
            torch.inference_mode().__enter__()
            torch.autocast("cpu", torch.bfloat16).__enter__()
            return self.good(prompts, completions, meta)

        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            torch.set_default_dtype(torch.float64)
            try:
                self.short(tmp_path, switching).train()
                assert torch.is_inference_mode_enabled() and torch.get_default_dtype() == torch.float64
            finally:
                torch.set_default_dtype(torch.float32)
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        assert (metrics(tmp_path), weights(tmp_path)) == unbroken

    def test_bytes_that_are_no_utf8(self, tmp_path):
        seen = []

        def reading(prompts, completions, meta):
            assert all(isinstance(x, str) for x in (*prompts, *completions, *(v for one in meta for k, v in one.items() if k != "finished")))
            seen.extend(completions)
            return self.good(prompts, completions, meta)

        folder = str(tmp_path / "café")
        config = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.yaml")
        shutil.copy(ROOT / "configs" / "tiny" / "grpo.yaml", config)
        data = tmp_path / "data.jsonl"
        data.write_bytes(b"".join(b'{"prompt": "%d+%d=", "answer": "%d", "completion": "%d"}\n' % (i, i, i + i, i + i)
                                  for i in range(300)))
        isentrope = pytest.importorskip("isentrope")
        trainer = isentrope.Trainer(config, rewards={"mine": reading}, overrides={
            **self.SHORT, "run.dir": folder, "phases.sft.steps": 1, "phases.grpo.steps": 1, "tokenizer": "{kind: bytes}",
            "phases.sft.data": f"{{jsonl: {{path: {data}}}}}", "phases.grpo.data": f"{{jsonl: {{path: {data}}}}}"})
        trainer.train()
        assert any("\uFFFD" in text for text in seen) and trainer.dir == folder

    @pytest.mark.parametrize("where", ["configuration", "data"])
    def test_errors_about_bytes_that_are_no_utf8(self, tmp_path, where):
        isentrope = pytest.importorskip("isentrope")
        config, data = tmp_path / "a.yaml", tmp_path / "data.jsonl"
        text = (ROOT / "configs" / "tiny" / "grpo.yaml").read_bytes()
        config.write_bytes(text.replace(b"num_hidden_layers: 2", b"num_hidden_l\xe9yers: 2") if where == "configuration" else text)
        data.write_bytes(b'{"prompt": "1+1=", "answer": "2"}\n{"prompt": "\xff+1=", "answer": "2"}\n')
        named = r"a\.yaml:3" if where == "configuration" else r"data\.jsonl:2"
        with pytest.raises(RuntimeError, match=named):
            isentrope.Trainer(config, overrides={"run.dir": tmp_path / "run", "phases.sft.data": f"{{jsonl: {{path: {data}}}}}"})

    @pytest.mark.parametrize("arguments,message", [
        ({"config": 3}, "config is a int, 3; wanted the path"),
        ({"rewards": [len]}, "rewards is a list"),
        ({"rewards": {3: len}}, "rewards has the name a int, 3"),
        ({"rewards": {"mine": 0.5}}, r'rewards\["mine"\] is a float, 0.5; wanted fn'),
        ({"overrides": "run.seed=2"}, "overrides is a str"),
        ({"overrides": 2}, "overrides is a int"),
        ({"overrides": ["run.seed=2", 3]}, "overrides holds a int, 3"),
        ({"resume": "yes"}, "resume is a str"),
    ])
    def test_arguments_of_another_type(self, arguments, message):
        isentrope = pytest.importorskip("isentrope")
        with pytest.raises(TypeError, match=message):
            isentrope.Trainer(**{"config": "nowhere.yaml", **arguments})

    def test_a_step_broken_off_in_a_reward_has_not_been(self, tmp_path):
        """Ctrl-C, and an error, within the reward of a step: what was saved is the step before, and nothing of the data is lost."""
        def trainer(run, reward, **more):
            overrides = {"phases.grpo.reward": "[{kind: mine}]", "phases.sft.steps": 3, "phases.grpo.steps": 4}
            return self.trainer(tmp_path / run, rewards={"mine": reward}, overrides=overrides, **more)

        def scores(prompts, completions, meta):
            return [float(len(c) % 3) for c in completions]

        trainer("whole", scores).train()
        for run, kind in (("ctrl_c", KeyboardInterrupt), ("error", ZeroDivisionError)):
            calls = []

            def reward(prompts, completions, meta):
                calls.append(1)
                if len(calls) == 4:
                    if kind is KeyboardInterrupt:
                        os.kill(os.getpid(), signal.SIGINT)
                    return 1 / 0 if kind is ZeroDivisionError else scores(prompts, completions, meta)
                return scores(prompts, completions, meta)

            broken = trainer(run, reward)
            with pytest.raises(kind) as raised:
                broken.train()
            checkpoint = broken.save()
            if kind is ZeroDivisionError and hasattr(raised.value, "add_note"):
                assert any(checkpoint in note for note in raised.value.__notes__)
            del broken, raised  # the traceback holds the trainer, and the trainer the folder
            gc.collect()
            trainer(run, scores, resume=True).train()
            assert metrics(tmp_path / run) == metrics(tmp_path / "whole")
            assert weights(tmp_path / run) == weights(tmp_path / "whole")

    def test_chdir_in_a_reward_does_not_move_the_run(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def reward(prompts, completions, meta):
            os.chdir("/")
            return [0.0] * len(completions)

        trainer = self.trainer("run", rewards={"mine": reward}, overrides={
            "phases.grpo.reward": "[{kind: mine}]", "phases.sft.steps": 3, "phases.grpo.steps": 2})
        trainer.train()
        assert final_checkpoint(tmp_path / "run").name == "grpo-000002"
        assert os.getcwd() == str(tmp_path)  # data of later phases are found from there

    def test_ctrl_c(self, finished, tmp_path):
        trainer = self.trainer(tmp_path / "run")
        with pytest.raises(KeyboardInterrupt):
            for count, _ in enumerate(trainer):
                if count == 7:
                    os.kill(os.getpid(), signal.SIGINT)
        del trainer
        resumed = self.trainer(tmp_path / "run", resume=True)
        resumed.train()
        assert metrics(tmp_path / "run") == metrics(finished("grpo"))
