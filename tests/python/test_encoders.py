"""Encoders of the trainer: masked language modelling and labels of tokens against transformers, compression, and what each command refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("modules_of_transformers")

ROOT = Path(__file__).resolve().parents[2]
TAG = "configs/options/tag.yaml"
SHORT = ["phases.tag.steps=12", "phases.tag.schedule.warmup_steps=2", "phases.tag.evaluation.every=0", "run.threads=1", "model.hidden_size=32", "model.intermediate_size=48"]


def program():
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert path, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    return os.path.abspath(path)


def isentrope(*words, code=0, **kwargs):
    done = subprocess.run([program(), *map(str, words)], capture_output=True, text=True, cwd=ROOT, **kwargs)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """By kind of mixer a run of a few steps of the tag phase."""
    done = {}

    def run(kind):
        if kind not in done:
            done[kind] = tmp_path_factory.mktemp(kind) / "run"
            isentrope("train", TAG, f"run.dir={done[kind]}", "--quiet", *SHORT, f"model.mixers=[{kind}]", "model.hierarchical.branching=5")
        return done[kind]

    return run


@pytest.mark.parametrize("mixers", ["[softmax]", "[hierarchical]", "[softmax, hierarchical]"])
def test_log_probabilities_of_masked_models_are_those_of_transformers(mixers, tmp_path):
    """Every token a target that stands as it is: the windows are then the text itself from an offset that is drawn, and one of them
    gives the evaluation's loss."""
    text, T = "The entropy of a row is at most log n. " * 3, 16
    (tmp_path / "train.txt").write_text(text[::-1])
    (tmp_path / "held.txt").write_text(text)
    run = tmp_path / "run"
    plain = "{mlm_probability: 1, mask_replace_prob: 0, random_replace_prob: 0}"
    words = [f"phases.mlm.objective.masking={plain}", f"phases.mlm.data={{corpus: {{paths: [{tmp_path}/train.txt], validation_path: {tmp_path}/held.txt, test_fraction: 0, cache: {tmp_path}/cache}}}}",
             f"model.mixers={mixers}", "model.num_hidden_layers=2", f"model.max_position_embeddings={T}", "phases.mlm.steps=8", "phases.mlm.evaluation.every=8", "phases.mlm.evaluation.windows=99",
             "phases.mlm.evaluation.show=0", "test.skip=true", "run.checkpoint_every=0", f"run.dir={run}"]  # fmt: skip
    isentrope("train", "configs/tiny/mlm.yaml", "--quiet", *words)
    (loss,) = [line["eval/loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "eval/loss" in line]
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(run / "checkpoints" / "mlm-000008", trust_remote_code=True, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ring = torch.tensor([1 + byte for byte in text.encode()] + [257])
    n, found = len(ring), []
    for offset in range(T):
        ids = ring[(offset + torch.arange(-(-n // T) * T)) % n].view(-1, T)
        with torch.no_grad():
            logprob = model(ids).logits.log_softmax(-1).gather(2, ids[..., None]).flatten()[:n]
        found.append(-logprob.double().mean().item())
    nearest = min(found, key=lambda one: abs(one - loss))
    assert nearest == pytest.approx(loss, rel=2e-6) and sorted(abs(one - loss) for one in found)[1] > 1e-5
    with pytest.raises(ValueError, match="causal is false"):
        sys.modules[type(model).__module__].IsentropeForCausalLM(model.config)


@pytest.mark.parametrize("kind", ["softmax", "hierarchical"])
def test_labels_are_those_of_transformers(tagger, kind, tmp_path):
    checkpoint = tagger(kind) / "checkpoints" / "tag-000012"
    model = transformers.AutoModelForTokenClassification.from_pretrained(checkpoint, trust_remote_code=True).double()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)
    texts = ["the cat saw 7 doors of a house", "a river", "it was on the market in winter, and 12 coats"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    lines = [json.loads(line) for line in isentrope("compress", checkpoint, "--data", tmp_path / "texts.txt", "--rate", 0.5, "--json").splitlines()]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            kept = model(batch.input_ids, attention_mask=batch.attention_mask).logits.softmax(-1)[..., 1]
        for text, line, row, mask in zip(texts, lines, kept, batch.attention_mask):
            row, at, mean = row[mask.bool()], 0, []
            for i, word in enumerate(text.split(" ")):
                size = len(word) + (i > 0)
                mean.append(row[at : at + size].mean())
                at += size
            assert line["probability"] == pytest.approx(torch.stack(mean).tolist(), rel=1e-4)


def test_learns_and_compresses(tmp_path):
    run = tmp_path / "run"
    isentrope("train", TAG, f"run.dir={run}", "run.threads=1", "--quiet", "phases.tag.evaluation.every=0", "phases.tag.steps=100", "run.checkpoint_every=40")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (test,) = [line for line in lines if line.get("eval/split") == "test"]
    majority = max(lines[-2]["tag/kept"], 1 - lines[-2]["tag/kept"])
    assert test["eval/accuracy"] > majority + 0.15 and test["eval/f1"] > 0.8
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "the cat saw a door of\n 7 stone bread and some river"}) + "\n\n")
    compress = ["compress", run, "--data", tmp_path / "one.jsonl"]
    assert isentrope(*compress, "--rate", 1) == "the cat saw a door of\n 7 stone bread and some river\n"
    (half,) = (json.loads(isentrope(*compress, "--rate", 0.5, "--json")),)
    assert (half["words"], half["kept"], len(half["prompt"].split())) == (12, 6, 6)
    above = [word for word, p in zip(half["original"].split(), half["probability"]) if p >= half["threshold"]]
    assert half["prompt"].split() == above
    (narrow,) = (json.loads(isentrope(*compress, "--rate", 0.5, "--compute", "bfloat16", "--json")),)
    assert narrow["probability"] != half["probability"] and narrow["probability"] == pytest.approx(half["probability"], abs=0.05)
    assert isentrope(*compress, "--rate", 1e-3, "--force-keep", "The", "--force-keep-digits").split() == ["the", "7"]
    for rate in ("0", "-1", "1.5"):
        assert f"--rate: {float(rate):g}" in isentrope(*compress, "--rate", rate, code=1).replace(".0 ", " ")
    for word in ("", "stone bread"):  # which every word would hold, and none
        assert f"--force-keep: '{word}' is not one word" in isentrope(*compress, "--force-keep", word, code=1)


def test_words_that_cannot_be_aligned_are_told(tmp_path):
    lines = [{"prompt": f"cats number {i} were chasing mice", "completion": f"{i} cat chased dogs"} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["train", TAG, f"phases.tag.data.jsonl.path={tmp_path / 'data.jsonl'}", "phases.tag.data.jsonl.validation_fraction=0",
             "phases.tag.data.jsonl.test_fraction=0", "phases.tag.evaluation.every=0", "test.skip=true", "phases.tag.steps=1", "phases.tag.schedule.warmup_steps=0"]  # fmt: skip
    for match, unaligned in (("words", "120 of 160 words of the compressions (75 %)"), ("lemmas", "40 of 160 words of the compressions (25 %)")):
        told = isentrope(*words, f"run.dir={tmp_path / match}", f"phases.tag.objective.tag.match={match}")
        assert f"phase tag: {unaligned} are not in their texts within objective.tag.window" in told


def test_resumed_phase_repeats_itself(tmp_path):
    run = tmp_path / "run"
    words = ["train", TAG, f"run.dir={run}", "--quiet", *SHORT, "run.checkpoint_every=4", "test.skip=true"]

    def losses():
        return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]

    isentrope(*words)
    whole, weights = losses(), (run / "checkpoints" / "tag-000012" / "model.safetensors").read_bytes()
    for step in (8, 12):
        shutil.rmtree(run / "checkpoints" / f"tag-{step:06}")
    isentrope(*words, "--resume")
    assert len(whole) == 12 and losses() == whole
    assert (run / "checkpoints" / "tag-000012" / "model.safetensors").read_bytes() == weights
    assert "causal" in isentrope(*words, "--resume", "model.causal=true", "model.num_labels=0", code=1)


def test_threads_change_no_mask(tmp_path):
    losses = []
    for threads in (1, 2):
        run = tmp_path / str(threads)
        isentrope("train", "configs/tiny/mlm.yaml", f"run.dir={run}", f"run.threads={threads}", "phases.mlm.steps=3", "run.checkpoint_every=0", "phases.mlm.evaluation.every=0", "test.skip=true", "--quiet")
        losses.append([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6) and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_causal_folder_opens_with_the_mask_off(tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    isentrope("train", "configs/tiny/pretrain.yaml", f"run.dir={base}", "phases.pretrain.steps=2", "phases.pretrain.evaluation.every=0", "test.skip=true", "--quiet", "run.threads=1")
    folder = base / "checkpoints" / "pretrain-000002"
    words = [f"run.dir={run}", "--quiet", "phases.tag.steps=3", "phases.tag.schedule.warmup_steps=0", "phases.tag.evaluation.every=0", "test.skip=true", "run.threads=1", "phases.tag.data.truncation=drop"]
    config = tmp_path / "tag.yaml"
    text = (ROOT / TAG).read_text()
    model = text[text.index("model:") : text.index("tokenizer:")]
    config.write_text(text.replace(model, f"model: {{pretrained: {folder}, causal: false, num_labels: 2, max_position_embeddings: 32}}\n"))
    isentrope("train", config, *words, "phases.tag.data.jsonl={path: " + str(short_texts(tmp_path)) + ", validation_fraction: 0, test_fraction: 0}")
    made = json.loads((run / "checkpoints" / "tag-000003" / "config.json").read_text())
    assert made["architectures"] == ["IsentropeForTokenClassification"] and made["model_type"] == "isentrope" and made["causal"] is False
    assert "an encoder" in isentrope("sample", run, "--prompt", "a", code=1)


def short_texts(folder):
    lines = [json.dumps({"prompt": f"a cat {i}", "completion": f"cat {i}"}) for i in range(20)]
    (folder / "short.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "short.jsonl"


MLM = "configs/tiny/mlm.yaml"
REFUSED = [
    (MLM, ["model.causal=true", "model.mixers=[softmax]"], "model.causal is true"),
    (MLM, ["model.causal=true"], "hierarchical pools tokens that stand behind"),
    (MLM, ["model.mixers=[linear]"], "a layer of kind linear cannot see"),
    (MLM, ["phases.mlm.objective.kind=pretrain"], "wanted mlm, tag or contrastive"),
    (MLM, ["phases.mlm.objective.masking.mask_token='<mask>'"], "objective.masking.mask_token"),
    (MLM, ["phases.mlm.objective.masking.random_replace_prob=0.5"], "add up to"),
    (MLM, ["phases.mlm.objective.attention_entropy.bound=true"], "attention_entropy.bound"),
    (MLM, ["phases.mlm.stop={bits_per_byte: 1}"], "it knows no value of a phase of kind mlm"),
    (TAG, ["model.num_labels=0"], "model.num_labels is 0"),
    (TAG, ["model.causal=true"], "num_labels: 2 classes"),
    (TAG, ["phases.tag.objective.kind=mlm"], "learns text"),
    ("configs/tiny/sft.yaml", ["model.causal=false"], "wanted mlm, tag or contrastive"),
    ("configs/tiny/grpo.yaml", ["model.causal=false"], "wanted mlm, tag or contrastive"),
]


@pytest.mark.parametrize("config,words,wanted", REFUSED)
def test_refused_by_name(config, words, wanted):
    assert wanted in isentrope("config", config, *words, code=1)


def test_a_model_without_labels_does_not_compress(tmp_path):
    run = tmp_path / "run"
    isentrope("train", MLM, f"run.dir={run}", "phases.mlm.steps=1", "phases.mlm.schedule.warmup_steps=0", "phases.mlm.evaluation.every=0", "test.skip=true", "--quiet", "run.threads=1")
    (tmp_path / "a.txt").write_text("a b\n")
    assert "has 0 labels of tokens" in isentrope("compress", run, "--data", tmp_path / "a.txt", code=1)
    assert "the model is an encoder" in isentrope("sample", run, "--prompt", "a", code=1)
