"""Contrastive phases in whole runs: rankings against transformers and scikit-learn, cuts, ranks, resumption, what is refused by name."""

import json
import math

import pytest
import torch
from test_encoders import ROOT, isentrope
from test_ranks import has_ranks
from test_ranks import train as train_ranks
from test_train import metrics, weights

transformers = pytest.importorskip("transformers")
sklearn_metrics = pytest.importorskip("sklearn.metrics")
pytestmark = pytest.mark.usefixtures("modules_of_transformers")
CONFIG = "configs/options/contrastive.yaml"
P = "phases.contrastive"
SHORT = [f"{P}.steps=6", f"{P}.schedule.warmup_steps=2", f"{P}.evaluation.every=0", "run.threads=1", "model.hidden_size=32", "model.intermediate_size=48", f"{P}.batch.sequences=6"]


def examples():
    return [json.loads(line) for line in (ROOT / "configs/options/contrastive.jsonl").read_text().splitlines()]


@pytest.fixture
def parts(tmp_path):
    """Files of 40 training and 12 test examples."""
    for name, some in (("train", examples()[:40]), ("test", examples()[300:312])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    return f"{P}.data={{jsonl: {{path: {tmp_path}/train.jsonl, validation_fraction: 0, test_path: {tmp_path}/test.jsonl}}}}"


def score_of(kind, a, b, attention):
    """csrc/train/match_scores.h of the vectors of two texts, [n, D] and [m, D]."""
    unit_a, unit_b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
    if kind == "mean":
        return torch.nn.functional.cosine_similarity(a.mean(0), b.mean(0), dim=0)
    cosine = unit_a @ unit_b.T
    return cosine.amax(1).sum() if kind == "max" else ((a @ b.T / attention).softmax(-1) * cosine).sum()


@pytest.mark.parametrize("kind, causal", [("soft", False), ("max", False), ("mean", False), ("soft", True)])
def test_rankings_are_those_of_transformers_and_scikit_learn(parts, tmp_path, kind, causal):
    run = tmp_path / "run"
    isentrope("train", CONFIG, f"run.dir={run}", "--quiet", *SHORT, parts, f"{P}.objective.contrastive.score={kind}", *(["model.causal=true", "model.num_labels=0"] if causal else []))
    (told,) = [line for line in metrics(run) if line.get("eval/split") == "test"]
    folder = run / "checkpoints" / "contrastive-000006"
    if causal:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).double()
    else:
        model = transformers.AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True).double()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)

    def vectors(text):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            return model(ids, output_hidden_states=True).hidden_states[-1][0] if causal else model(ids).logits[0]

    queries = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    texts = sorted({text for one in examples()[:40] + queries for text in one["positives"]})
    of_text = [vectors(text) for text in texts]
    found = {key: [] for key in ("map", "rp@10", "ndcg@10", "recall@100", "mrr")}
    for one in queries:
        s = torch.stack([score_of(kind, vectors(one["prompt"]), text, 0.1) for text in of_text])
        right = torch.tensor([text in one["positives"] for text in texts])
        best = right[s.argsort(descending=True)]
        found["map"].append(sklearn_metrics.average_precision_score(right, s))
        found["ndcg@10"].append(sklearn_metrics.ndcg_score([right.int().tolist()], [s.tolist()], k=10))
        found["rp@10"].append(best[:10].sum().item() / min(10, right.sum().item()))
        found["recall@100"].append(best[:100].sum().item() / right.sum().item())
        found["mrr"].append(1 / (1 + best.int().argmax().item()))
    for key, values in found.items():
        assert told[f"eval/{key}"] == pytest.approx(math.fsum(values) / len(values), rel=1e-6), key


def test_cuts_and_resumption_change_nothing(parts, tmp_path):
    words = ["train", CONFIG, "--quiet", *SHORT, parts, "run.checkpoint_every=3", f"{P}.schedule.kind=constant", f"{P}.schedule.min_lr_ratio=0"]
    isentrope(*words, f"run.dir={tmp_path / 'whole'}")
    isentrope(*words, f"run.dir={tmp_path / 'cut'}", f"{P}.batch.micro_tokens=70")
    for key, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3)):
        whole, cut = ([line[key] for line in metrics(tmp_path / name) if key in line] for name in ("whole", "cut"))
        assert len(whole) == 6 and cut == pytest.approx(whole, rel=tolerance), key
    isentrope(*words, f"run.dir={tmp_path / 'resumed'}", f"{P}.steps=3", "test.skip=true")
    isentrope(*words, f"run.dir={tmp_path / 'resumed'}", "--resume")
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")


@pytest.mark.skipif(not has_ranks(), reason="this build has one rank")
def test_ranks_see_the_whole_update(parts, tmp_path):
    words = [*SHORT, parts, f"{P}.optimizer.kind=sgd", f"{P}.optimizer.betas=[0.9]"]
    one, two, many = (metrics(train_ranks(n, tmp_path / str(n), ROOT / CONFIG, *words, *more)) for n, more in ((1, []), (2, [f"{P}.batch.micro_tokens=70"]), (3, [])))
    for key in ("loss", "match/first", "match/texts", "grad_norm", "eval/map"):
        for other in (two, many):
            assert [line[key] for line in other if key in line] == pytest.approx([line[key] for line in one if key in line], rel=1e-3), key


@pytest.mark.parametrize("positives, said", [
    (None, '"positives" is missing'), ([], '"positives" is empty'), ("use wool", "a JSON string; it must be a list"), ([3], "positives[0] is a JSON number"),
    (["use wool", ""], "positives[1] is empty"), (["use wool", "use wool"], "positives[1] stands in the list twice"), (["a" * 40], "has 40 tokens; wanted 1 to 32"),
    (["UPPER"], "U"),
])  # fmt: skip
def test_bad_lines_are_named(tmp_path, positives, said):
    lines = examples()[:20]
    lines[7] = {"prompt": "lapa", **({} if positives is None else {"positives": positives})}
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    words = [CONFIG, *SHORT, f"{P}.data={{jsonl: {{path: {tmp_path}/bad.jsonl, validation_fraction: 0, test_fraction: 0}}}}", f"run.dir={tmp_path}/run"]
    text = isentrope("train", *words, code=1)
    assert "bad.jsonl:8" in text and said in text, text


REFUSED = [
    ([f"{P}.data={{tint: {{}}}}"], "a contrastive phase learns from prompts and the texts that match them"),
    ([f"{P}.stop={{greedy: 0.5}}"], "stop: it knows no value of a phase of kind contrastive"),
    ([f"{P}.objective.contrastive.temperature=0"], "temperature"),
    ([f"{P}.objective.contrastive.score=sof"], "score"),
    (["metrics.gradient_noise_scale=2"], "metrics.gradient_noise_scale"),
]  # fmt: skip


@pytest.mark.parametrize("words, said", REFUSED, ids=[said for _, said in REFUSED])
def test_what_makes_no_sense_is_refused(words, said):
    assert said in isentrope("config", CONFIG, *words, code=1)


def test_labels_that_begin_at_zero_are_refused(tmp_path):
    """Those of a causal model: their vectors have no direction."""
    base = ["model.causal=true", "model.num_labels=0", "test.skip=true"]
    isentrope("train", CONFIG, "--quiet", *SHORT, *base, f"run.dir={tmp_path}/base")
    text = isentrope("train", CONFIG, "--quiet", *SHORT, f"model.pretrained={tmp_path}/base", f"run.dir={tmp_path}/run", code=1)
    assert "contrastive: the vectors of all tokens are 0" in text and "model.num_labels: 0" in text


def test_it_learns(tmp_path):
    isentrope("train", CONFIG, "--quiet", "run.threads=1", f"{P}.evaluation.every=0", f"{P}.steps=100", f"run.dir={tmp_path}/run")
    (told,) = [line for line in metrics(tmp_path / "run") if line.get("eval/split") == "test"]
    by_chance = 7 / 69  # of texts that match
    assert told["eval/map"] > 4 * by_chance and told["eval/ndcg@10"] > 4 * by_chance, told
