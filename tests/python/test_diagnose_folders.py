"""`isentrope diagnose` on folders that are no causal language model, that lack weights, and on several at a time."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
import diagnose_models as made  # noqa: E402
from isentrope import diagnose  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release")).absolute() / "bin" / "isentrope"
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
DATA = diagnose.Data.of_ids(made.sequences(12, 8, vocab=40))


def saved(path, kind, config):
    torch.manual_seed(0)
    kind(config).save_pretrained(path)
    return path


def bert(path):
    return saved(path, transformers.BertForMaskedLM, transformers.BertConfig(**SMALL, **HEADS))


def test_a_head_that_the_folder_lacks_is_not_drawn_at_random(tmp_path):
    folder = saved(tmp_path / "classifier", transformers.LlamaForSequenceClassification, transformers.LlamaConfig(**SMALL, **HEADS, pad_token_id=0))
    model = diagnose.opened(folder)
    assert len(diagnose.measured(model, ["representation"], DATA)["representation"].table.rows) == 3
    with pytest.raises(diagnose.DiagnoseError, match="its folder has no weights of a head over the vocabulary, which the entropy of tokens needs"):
        diagnose.measured(model, ["token-entropy"], DATA)


def test_a_body_that_lacks_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = made.folder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(diagnose.DiagnoseError, match="1 tensors of LlamaForCausalLM are missing, which would be drawn at random: model.layers.1.mlp.up_proj.weight"):
        diagnose.opened(folder)


def ours(path):
    """A checkpoint of a run of masked language modelling."""
    if not PROGRAM.exists():
        pytest.skip(f"no trainer in this build: {PROGRAM}")
    words = ["phases.0.steps=2", "phases.0.schedule.warmup_steps=0", "phases.0.evaluation.every=0", "test={skip: true}", "run.threads=1", "--quiet"]
    subprocess.run([PROGRAM, "train", ROOT / "configs/tiny/mlm.yaml", f"run.dir={path}", *words], cwd=ROOT, check=True)
    return path


@pytest.mark.parametrize("make", [bert, ours])
def test_encoders_are_looked_into_and_foretell_nothing(tmp_path, make):
    model = diagnose.opened(make(tmp_path / "encoder"))
    assert not model.causal and diagnose.opened(made.folder(tmp_path / "llama")).causal
    found = diagnose.measured(model, ["representation", "condition-number"], DATA)
    assert len(found["representation"].table.rows) == model.layers + 1
    with pytest.raises(diagnose.DiagnoseError, match="looks at both sides of a token, and its logits say nothing of the next one"):
        diagnose.measured(model, ["token-entropy"], DATA)


def test_attention_of_an_encoder_has_no_causal_bound(tmp_path):
    result = diagnose.measured(diagnose.opened(bert(tmp_path / "bert")), ["attention-entropy"], DATA)["attention-entropy"]
    assert all(0 < row[3] <= 1 for row in result.table.rows)  # normalised
    assert result.table.column("bound") == result.table.column("certified") == [None] * 8
    assert any("worked out for causal rows" in note for note in result.notes) and not any("less entropy than their bound" in note for note in result.notes)


def test_models_that_decode_another_text_are_named(tmp_path):
    config = transformers.T5Config(vocab_size=64, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4)
    with pytest.raises(diagnose.DiagnoseError, match="t5 encodes one text and decodes another; wanted a language model that reads one text"):
        diagnose.opened(saved(tmp_path / "t5", transformers.T5ForConditionalGeneration, config))


def test_a_model_without_attention(tmp_path):
    config = transformers.MambaConfig(**SMALL, state_size=4, expand=2)
    model = diagnose.opened(saved(tmp_path / "mamba", transformers.MambaForCausalLM, config))
    assert model.heads == 0 and model.causal
    found = diagnose.measured(model, ["representation", "token-entropy"], DATA)
    assert found["token-entropy"].numbers["tokens"] == 12 * 7
    with pytest.raises(diagnose.DiagnoseError):
        diagnose.measured(model, ["attention-entropy"], DATA)


def test_linear_layers_that_are_transposed_are_rounded_by_their_outputs(tmp_path):
    from isentrope.diagnose.measures.concept_depth import rounded

    torch.manual_seed(0)
    model = diagnose.Model(transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)))
    layer = model.blocks()[0].mlp.c_fc
    before = layer.weight.data.clone()
    with rounded(model, 4):
        steps = layer.weight.data / (before.abs().amax(0) / 7)  # [in, out]: a scale for each output
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert not torch.equal(layer.weight.data, before)
    assert torch.equal(layer.weight.data, before)


# ---- several -----------------------------------------------------------------------------------------------------------


def test_an_error_of_one_measure_leaves_the_others(tmp_path, capsys):
    folder, data = made.folder(tmp_path / "model"), made.jsonl(tmp_path / "texts.jsonl", 10)
    assert diagnose.main([str(folder), "--measure", "representation,feature-complexity", "--data", str(data), "features=40"]) == 1
    told = capsys.readouterr()
    assert "10 texts for 40 features" in told.err and (folder / "diagnose" / "representation.json").exists()
    assert not (folder / "diagnose" / "feature-complexity.json").exists()


def test_several_models_have_a_figure_and_their_texts(tmp_path):
    folders = [made.folder(tmp_path / name, seed=seed) for seed, name in enumerate(["a", "b", "c"])]
    data, out = made.jsonl(tmp_path / "texts.jsonl", 10), tmp_path / "out"
    assert diagnose.main([*map(str, folders), "--measure", "token-entropy", "--data", str(data), "-o", str(out), "shown=1", "tokens=true"]) == 0
    told = json.loads((out / "token-entropy.json").read_text())
    assert told["figures"] == ["token-entropy.png"] and (out / "token-entropy.png").stat().st_size > 10_000
    assert [text["title"] for text in told["texts"]] == ["a: text 1", "c: text 1"]
    text = told["texts"][0]
    assert text["entropy"][0] is None and text["surprise"][0] is None and text["surprise"][1] > 0
    assert f"{text['entropy'][1]:.3f} nats, surprise {text['surprise'][1]:.3f}" in (out / "diagnose.html").read_text()
    every = told["tables"]["tokens"]
    assert len(every["rows"]) == 3 * 10 * 5 and every["rows"][0][:3] == ["a", 0, 1]


def test_the_time_to_decode_follows_the_features_of_one_model(tmp_path, capsys):
    """Of three models the last two are the same: what the last one knows the second one tells as well, the first, of other weights, not all."""
    folders = [made.folder(tmp_path / name, seed=seed) for name, seed in (("first", 5), ("same", 1), ("last", 1))]
    data = made.jsonl(tmp_path / "texts.jsonl", 120, length=12)
    keep, options = tmp_path / "features.npz", ["--data", str(data), "features=4"]
    assert diagnose.main([str(folders[-1]), "--measure", "feature-complexity", *options, f"keep={keep}"]) == 0
    out = tmp_path / "out"
    assert diagnose.main([*map(str, folders), "--measure", "feature-complexity", *options, f"targets={keep}", "-o", str(out)]) == 0
    times = json.loads((out / "feature-complexity.json").read_text())["tables"]["time_to_decode"]["rows"]
    assert len(times) == 4 and all(row[2] is not None and row[2] <= 1 for row in times)
    for row in times:
        assert (row[2] == 0) == (row[3] >= 0.8 * row[4])
    capsys.readouterr()
    assert diagnose.main([*map(str, folders), "--measure", "feature-complexity", *options, "-o", str(out)]) == 0
    assert "for the time to decode follow those of one" in capsys.readouterr().out
    other = made.jsonl(tmp_path / "other.jsonl", 119, length=12)
    assert diagnose.main([str(folders[0]), "--measure", "feature-complexity", "--data", str(other), f"targets={keep}"]) == 1
    assert "its features are of other texts" in capsys.readouterr().err
