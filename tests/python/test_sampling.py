"""What rollouts draw, against the logits processors of transformers, on random logits."""

import json
import math
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
from transformers.generation import logits_process as warpers  # noqa: E402

BENCH = Path(os.environ.get("ISENTROPE_BUILD", Path(__file__).resolve().parents[2] / "build" / "release")) / "bin" / "model_bench"
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason=f"not in this build: {BENCH}")

VOCABULARY = 258  # of kind bytes: byte b is token b + 1
DRAWS = 100_000


def ids(text):
    return [1 + byte for byte in text.encode()]


def drawn(tmp_path, **question):
    (tmp_path / "question.json").write_text(json.dumps({"draws": DRAWS, **question}))
    told = subprocess.run([BENCH, "layers=1", "width=16", "heads=1", "kv_heads=1"], input=f"draw {tmp_path}/question.json\n",
                          capture_output=True, text=True, check=True)  # fmt: skip
    return torch.tensor(json.loads(told.stdout), dtype=torch.float64) / DRAWS


def wanted(logits, before, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, bad_words=()):
    """Probabilities by the processors of generate(), in the order in which it applies them."""
    processors = []
    if repetition_penalty != 1:
        processors.append(warpers.RepetitionPenaltyLogitsProcessor(penalty=float(repetition_penalty)))
    if bad_words:
        sequences = [ids(text) for word in bad_words for text in (word, " " + word)]
        processors.append(warpers.NoBadWordsLogitsProcessor(bad_words_ids=sequences))
    if temperature != 1:
        processors.append(warpers.TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(warpers.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(warpers.TopPLogitsWarper(top_p))
    if min_p:
        processors.append(warpers.MinPLogitsWarper(min_p))
    scores = torch.tensor([logits])
    for processor in processors:
        scores = processor(torch.tensor([before]), scores)
    return scores[0].double().softmax(0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sampling", [
    {"min_p": 0.05},
    {"min_p": 0.3, "temperature": 0.7},
    {"min_p": 0.02, "top_k": 40, "temperature": 1.5},
    {"min_p": 0.1, "top_p": 0.8},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7, "temperature": 1.2, "top_p": 0.9},
    {"bad_words": ["x", "the end", "nd", "d of"]},
    {"repetition_penalty": 1.2, "bad_words": ["!", "end"], "temperature": 0.8, "top_k": 60, "top_p": 0.95, "min_p": 0.01},
], ids=str)  # fmt: skip
def test_draws_are_those_of_transformers(tmp_path, sampling, seed):
    logits = (3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))).tolist()
    before = ids("so begins the en" if seed % 2 else "the end")
    found, truth = drawn(tmp_path, logits=logits, before=before, **sampling), wanted(logits, before, **sampling)
    assert torch.equal(found > 0, (truth > 2 / DRAWS) | ((found > 0) & (truth > 0)))  # what is cut is never drawn
    # Even uniforms count a token n·p times, give or take one; probabilities are sums of float32.
    assert (found - truth).abs().max() <= 2 / DRAWS
    if "bad_words" in sampling:
        assert found[ids(sampling["bad_words"][0])[0]] == 0 and (found[ids("d")[0]] == 0 or seed % 2 == 0)


def test_the_order_of_min_p_and_top_p_is_told_apart(tmp_path):
    """top_p counts what min_p cuts afterwards; the other order, as vLLM's, keeps fewer tokens here."""
    p = [0.4, 0.3] + [0.3 / 256] * 256
    logits = torch.tensor(p).log().tolist()
    found = drawn(tmp_path, logits=logits, top_p=0.65, min_p=0.5)
    other = wanted(torch.tensor([x if q >= 0.2 else -torch.inf for x, q in zip(logits, p)]).tolist(), [1], top_p=0.65)
    assert (found - wanted(logits, [1], top_p=0.65, min_p=0.5)).abs().max() <= 2 / DRAWS
    assert found[1] == pytest.approx(3 / 7, abs=1e-4) and other[1] == pytest.approx(3 / 7, abs=1e-4)
    found = drawn(tmp_path, logits=logits, top_p=0.55, min_p=0.5)
    other = wanted(torch.tensor([x if q >= 0.2 else -torch.inf for x, q in zip(logits, p)]).tolist(), [1], top_p=0.55)
    assert found[1] == pytest.approx(3 / 7, abs=1e-4) and other[1] == 0


def test_no_setting_changes_what_is_not_cut(tmp_path):
    logits = torch.linspace(-1, 1, VOCABULARY).tolist()
    plain = drawn(tmp_path, logits=logits, before=ids("ab"))
    for nothing in ({"min_p": 0.0}, {"repetition_penalty": 1.0}, {"bad_words": ["zzz"]}):
        assert torch.equal(drawn(tmp_path, logits=logits, before=ids("ab"), **nothing), plain)
    assert (drawn(tmp_path, logits=logits, min_p=0.01) - plain).abs().max() <= 2 / DRAWS  # a sum in double


# ---- runs -----------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
GRPO = ROOT / "configs" / "tiny" / "grpo.yaml"
RULES = ("phases.grpo.rollout={prompts: 8, num_generations: 4, max_new_tokens: 20, mini_batches: 2, save_every: 1, min_p: 0.01, repetition_penalty: 1.2, "
         "min_new_tokens: 2, stop: [A, 'a+'], bad_words: ['bb', '7'], top_p: 0.99}")  # fmt: skip
STOPS, BAD = ("A", "a+"), ("bb", "7")


def program(*words, code=0, **variables):
    told = subprocess.run([BENCH.with_name("isentrope"), *map(str, words)], capture_output=True, text=True, timeout=300, cwd=ROOT,
                          env={**os.environ, **variables})  # fmt: skip
    assert told.returncode == code, told.stdout + told.stderr
    return told


def saved(folder):
    return [json.loads(line) for line in (folder / "rollouts" / "grpo.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    told = program("train", GRPO, f"run.dir={folder}", "--quiet", RULES, "phases.grpo.steps=8")
    assert "phases.grpo.rollout.top_p: with it, min_p, repetition_penalty, bad_words completions are not drawn from" in told.stderr
    return folder


def test_what_top_p_cuts_is_told_and_corrected(tmp_path):
    """Of a mass of half or more that is kept: every token was likelier than the policy has it, by at most a factor of 2."""
    told, cut, weighed = {}, "phases.grpo.rollout.top_p=0.5", "phases.grpo.weight=[{kind: correction}]"
    rollout = "phases.grpo.rollout={prompts: 8, num_generations: 4, max_new_tokens: 20, save_every: 1}"
    for name, more in (("whole", ()), ("cut", (cut,)), ("corrected", (cut, weighed))):
        stderr = program("train", GRPO, f"run.dir={tmp_path / name}", "--quiet", "phases.grpo.steps=1", rollout, *more).stderr
        assert ("before anything was learnt they were" in stderr) == (name != "whole")
        metrics = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        told[name] = next(line for line in metrics if "mismatch/k3" in line)
    assert told["whole"]["mismatch/k3"] < 1e-9 and told["whole"]["mismatch/ess"] > 1 - 1e-6
    assert not any("sampling_logprob" in line for line in saved(tmp_path / "whole"))
    lines = saved(tmp_path / "cut")
    pairs = [pair for line in lines for pair in zip(line["logprob"], line["sampling_logprob"], strict=True)]
    d = torch.tensor([own - drawn_by for own, drawn_by in pairs], dtype=torch.float64)
    assert -math.log(2) - 1e-5 < d.min() and d.max() < 1e-5
    w = d.exp()
    assert told["cut"]["mismatch/k3"] == pytest.approx((w - 1 - d).mean().item(), rel=1e-4) and told["cut"]["mismatch/k3"] > 0.01
    assert told["cut"]["mismatch/ess"] == pytest.approx((w.sum() ** 2 / (len(w) * (w**2).sum())).item(), rel=1e-5)
    assert told["cut"]["mismatch/ess"] < 0.99
    assert told["corrected"]["weight/mean"] == pytest.approx(w.mean().item(), rel=1e-5)
    for key in ("ratio/mean", "entropy/mean", "reward/mean"):
        assert told["corrected"][key] == told["cut"][key]


def test_a_run_draws_by_its_rules(whole):
    lines = saved(whole)
    assert len(lines) == 8 * 32
    by_text = 0
    for line in lines:
        completion, drawn = line["completion"], line["prompt"] + line["completion"]
        assert not any(word in drawn[len(line["prompt"]) - len(word) + 1 :] for word in BAD)
        ends = [end for end in range(3, len(completion) + 1) if completion[:end].endswith(STOPS)]
        assert len(line["ids"]) > 2 and line["finished"] == (bool(ends) or line["ids"][-1] == 24)
        if ends:  # it ends where the first text did that was completed behind min_new_tokens, and keeps it
            assert ends[0] == len(completion) or any(not text for text in line["tokens"])  # padding, which this model draws, has no text
            by_text += 1
    assert by_text > 20


def test_resumed_or_with_a_full_cache_a_run_draws_the_same(whole, tmp_path):
    resumed = shutil.copytree(whole, tmp_path / "resumed")
    for checkpoint in (resumed / "checkpoints").glob("grpo-*"):
        if checkpoint.name > "grpo-000005":
            shutil.rmtree(checkpoint)
    (resumed / "summary.json").unlink()
    program("train", GRPO, f"run.dir={resumed}", "--quiet", "--resume", RULES, "phases.grpo.steps=8")
    assert (resumed / "rollouts" / "grpo.jsonl").read_bytes() == (whole / "rollouts" / "grpo.jsonl").read_bytes()
    words = ["phases.grpo.steps=3", "phases.grpo.rollout.cache_tokens=96", "run.threads=2"]
    program("train", GRPO, f"run.dir={tmp_path}/full", "--quiet", RULES, *words)
    lines = [json.loads(line) for line in (tmp_path / "full" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("cache/preempted", 0) for line in lines) > 0
    kept = ("ids", "logprob", "entropy", "finished")
    first = saved(tmp_path / "full")[:32]  # before the first update, whose bits may depend on the threads of its sums
    assert [[line[key] for key in kept] for line in first] == [[line[key] for key in kept] for line in saved(whole)[:32]]


def test_ranks_draw_the_same(whole, tmp_path):
    if "\nranks: Gloo" not in program("version").stdout:
        pytest.skip("this build has one rank (libgloo-dev was not there)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [BENCH.with_name("isentrope"), "train", GRPO, f"run.dir={tmp_path}/two", "--quiet", RULES, "phases.grpo.steps=1", "phases.sft.steps=1"]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [subprocess.Popen(words, cwd=ROOT, env={**os.environ, **variables, "RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    program("train", GRPO, f"run.dir={tmp_path}/one", "--quiet", RULES, "phases.grpo.steps=1", "phases.sft.steps=1")
    assert [line["ids"] for line in saved(tmp_path / "two")] == [line["ids"] for line in saved(tmp_path / "one")]


def test_evaluations_take_the_stop_of_the_rollouts_and_the_rest_of_their_own(whole, tmp_path):
    def completions(*words):
        program("evaluate", whole, GRPO, RULES, *words, "--completions", tmp_path / "c.jsonl")
        return [json.loads(line)["completion"] for line in (tmp_path / "c.jsonl").read_text().splitlines()]

    plain, other = completions(), completions("test.stop=['h']", "test.bad_words=['+', '-']", "test.repetition_penalty=1.1", "test.min_p=0.05", "test.top_k=9")
    for text in plain:
        assert all(stop not in text[:-1] for stop in STOPS)
    assert any(text.endswith(STOPS) for text in plain) and any("7" in text for text in plain)
    assert all("h" not in text[:-1] and not set(text) & set("+-") for text in other)
    assert any("A" in text[:-1] for text in other)


def test_sample_takes_them_as_options(whole):
    def sample(*words, code=0):
        told = program("sample", whole, "--prompt", "a+5b=", "--samples", "40", "--max-new-tokens", "20", "--json", *words, code=code)
        return told.stderr if code else [json.loads(line) for line in told.stdout.splitlines()]

    free = sample()
    stopped = sample("--stop", "A", "--stop", "b+")
    for one, other in zip(free, stopped):
        assert one["ids"][: other["length"]] == other["ids"] and one["logprob"][: other["length"]] == other["logprob"]
        assert all(stop not in other["completion"][:-1] for stop in ("A", "b+"))
    assert any(line["completion"].endswith("A") and line["finished"] for line in stopped)
    assert all("b" not in line["completion"] for line in sample("--bad-word", "b"))
    assert all(line["length"] > 6 for line in sample("--min-new-tokens", "6", "--stop", "A"))
    likeliest = sample("--temperature", "0")[0]["ids"]
    assert all(line["ids"] == likeliest for line in sample("--min-p", "1"))
    repeated = sum(len(set(line["ids"])) / line["length"] for line in free)
    assert sum(len(set(line["ids"])) / line["length"] for line in sample("--repetition-penalty", "2")) > repeated
    assert "--stop.0: no tokens of the tokenizer can write" in sample("--stop", "\n", code=1)
    assert "--bad-word.0: tokenizer: character 'x'" in sample("--bad-word", "x", code=1)
    assert "--stop.0: the text is empty" in sample("--stop", "", code=1)
    assert "--min-p" in sample("--min-p", "1.5", code=2) and "--repetition-penalty" in sample("--repetition-penalty", "0", code=2)
