"""metrics.representation in whole runs: the figures are those of `isentrope diagnose`, it changes nothing, phases, resumption, refusals."""

import json

import pytest
import torch

from test_train import ROOT, final_checkpoint, metrics, train

TINY = ROOT / "configs" / "tiny"
FIGURES = {"tokens", "rankme_singular", "rankme_centred", "rankme_eigenvalues", "alpha", "r2", "matrix_entropy"}
KEYS = {f"representation/{name}" for name in FIGURES}
WEIGHTS = {"spectral_norm", "stable_rank", "effective_rank"}


def steps(folder, config, *overrides, resume=False):
    train(TINY / f"{config}.yaml", folder, "test.skip=true", *overrides, resume=resume)
    return [line for line in metrics(folder) if "eval/split" not in line]


def taken(line):
    """The figures of a line, taken out of it; what is left is that of a run that measures nothing."""
    found = {key: line.pop(key) for key in list(line) if key.startswith(("representation/", "spectrum/"))}
    found.pop("representation/time_share", None)
    warnings = [text for text in line.pop("warnings", []) if "metrics.representation" not in text]
    if warnings:
        line["warnings"] = warnings
    return found


@pytest.mark.parametrize("config, phase, first", [("pretrain", "pretrain", []), ("sft", "sft", []), ("dpo", "dpo", ["phases.sft.steps=4"]),
                                                  ("grpo", "grpo", ["phases.sft.steps=4"])])  # fmt: skip
def test_it_is_told_every_so_many_steps_and_changes_nothing(tmp_path, config, phase, first):
    words = [*first, f"phases.{phase}.steps=7", f"phases.{phase}.evaluation.every=0"]
    plain = steps(tmp_path / "plain", config, *words)
    told = steps(tmp_path / "told", config, *words, "metrics.representation={every: 3, first: 2, last: 8}")
    seen = 0
    for line, same in zip(told, plain, strict=True):
        found = taken(line)
        assert line == same and bool(found) == (line["step"] % 3 == 0)
        if found:
            seen += 1
            names = {key.split("/")[1] for key in found if key.startswith("spectrum/")}
            assert set(found) == KEYS | {f"spectrum/{name}/{figure}" for name in names for figure in WEIGHTS}
            assert {name.split(".", 3)[3] for name in names} == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
            assert found["representation/rankme_eigenvalues"] <= found["representation/rankme_centred"] <= found["representation/tokens"]
    assert seen >= 2
    assert all(torch.equal(torch.tensor(list(a)), torch.tensor(list(b))) for a, b in [[(final_checkpoint(tmp_path / name) / "model.safetensors").read_bytes() for name in ("plain", "told")]])


def test_it_is_what_diagnose_finds(tmp_path):
    """An update of all examples, whose weights a rate of 0 keeps: the checkpoint's states over the same texts."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    pytest.importorskip("transformers")
    from isentrope import diagnose

    rows = [{"prompt": f"{i % 10}+{i % 7}=", "completion": f"{(i * i) % 97}{'+1' * (i % 3)}"} for i in range(40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["model.tie_word_embeddings=false", f"phases.sft.data={{jsonl: {{path: {data}, validation_fraction: 0, test_fraction: 0}}}}", "phases.sft.batch={sequences: 40, micro_tokens: 100}", "phases.sft.steps=2", "phases.sft.evaluation.every=0",
             "phases.sft.optimizer={kind: sgd, lr: 1e-30, weight_decay: 0, betas: [0]}"]  # fmt: skip
    found = taken(steps(tmp_path / "run", "sft", *words, 'metrics.representation={every: 2, first: 3, last: 12, weights: ["*.-1.*", lm_head.weight]}')[-1])
    model = diagnose.opened(tmp_path / "run")
    texts = diagnose.Data.of([row["prompt"] + row["completion"] for row in rows])
    result = diagnose.measured(model, ["representation"], texts, {"representation": {"first": 3, "last": 12, "tokens": 4096}})["representation"]
    last = dict(zip(result.table.columns, result.table.rows[-1], strict=True))
    assert found["representation/tokens"] == result.numbers["tokens M"]
    for name in FIGURES - {"tokens"}:
        # States in float32, by other products: 1e-6 of the largest, and eigenvalues down to the 12th are above 1e-4 of the first.
        assert found[f"representation/{name}"] == pytest.approx(last[name], rel=1e-4), name
    matrices = {name: weight for name, weight in model.module.state_dict().items() if f"spectrum/{name}/stable_rank" in found}
    assert len(matrices) == 8 and len(matrices) * 3 + len(FIGURES) == len(found)
    for name, weight in matrices.items():
        s = torch.linalg.svdvals(weight.double())
        p = s / s.sum()
        at = f"spectrum/{name}/"
        assert found[at + "spectral_norm"] == pytest.approx(s[0].item(), rel=1e-6)
        assert found[at + "stable_rank"] == pytest.approx((s.square().sum() / s[0].square()).item(), rel=1e-6)
        assert found[at + "effective_rank"] == pytest.approx((-(p * p.log()).sum()).exp().item(), rel=1e-3)


def test_the_cut_into_micro_batches_is_a_matter_of_rounding(tmp_path):
    words = ["phases.sft.steps=1", "phases.sft.evaluation.every=0", "metrics.representation={every: 1, tokens: 60, first: 2, last: 8}"]
    whole = taken(steps(tmp_path / "whole", "sft", *words)[0])
    cut = taken(steps(tmp_path / "cut", "sft", *words, "phases.sft.batch.micro_tokens=50")[0])
    assert whole["representation/tokens"] == 60 and cut == pytest.approx(whole, rel=1e-4)


def test_it_goes_on(tmp_path):
    words = ["metrics.representation={every: 2, first: 2, last: 8}", "run.checkpoint_every=5", "phases.sft.schedule.kind=constant", "phases.sft.schedule.min_lr_ratio=0",
             "phases.sft.evaluation.every=0"]  # fmt: skip

    def run(folder, *more, resume=False):
        return [{key: value for key, value in line.items() if key != "representation/time_share"} for line in steps(folder, "sft", *words, *more, resume=resume)]

    whole = run(tmp_path / "whole", "phases.sft.steps=12")
    run(tmp_path / "cut", "phases.sft.steps=6")
    assert run(tmp_path / "cut", "phases.sft.steps=12", resume=True) == whole


def test_what_it_costs_is_told_and_too_few_tokens_are(tmp_path):
    train(TINY / "sft.yaml", tmp_path, "test.skip=true", "phases.sft.steps=4", "phases.sft.evaluation.every=0", "metrics.representation={every: 2, tokens: 9}")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if not line.startswith('{"run": ')]
    told = [line for line in lines if "representation/tokens" in line]
    assert [line["step"] for line in told] == [2, 4] and all(0 < line["representation/time_share"] < 1 for line in told)
    assert [any("a rank is 8 at most" in text for text in line.get("warnings", [])) for line in told] == [True, False]
    assert "representation/alpha" not in told[0]  # no eigenvalue above 0 from the tenth on


@pytest.mark.parametrize("value, said", [("{every: 1, weights: [lm_head, '*.q_proj.weight']}", "metrics.representation.weights: 'lm_head' fits no matrix of the model"),
                                         ("{every: 1, weights: [model.layers.9.mlp.down_proj.weight]}", "model.layers.0.mlp.down_proj.weight"),
                                         ("{every: 1, first: 10, last: 11}", "metrics.representation: last: 11; a fit from first (10) takes three indices"),
                                         ("{every: -1}", "metrics.representation.every"), ("{every: 1, tokens: 1}", "metrics.representation.tokens"),
                                         ("{evry: 1}", "metrics.representation.evry: unknown key; did you mean 'every'?")])  # fmt: skip
def test_refused_values_are_named(tmp_path, value, said):
    result = train(TINY / "sft.yaml", tmp_path / "run", f"metrics.representation={value}", check=False)
    assert result.returncode != 0 and said in result.stderr, result.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
