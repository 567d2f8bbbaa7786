"""isentrope merge: sums of what models learnt, by hand and by a plain loop; folders that are not of the base; model.compose, which learns the factors."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import ROOT, final_checkpoint, metrics, train

from isentrope import merge as merging

CONFIG = ROOT / "configs" / "tiny" / "sft.yaml"
SHORT = ["phases.sft.evaluation.every=0", "test.skip=true", "run.checkpoint_every=0"]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base, two models that were trained from it on other data, and one of another base."""
    folder = tmp_path_factory.mktemp("family")
    base, other = folder / "base", folder / "other"
    train(CONFIG, base, *SHORT, "phases.sft.steps=10")
    train(CONFIG, other, *SHORT, "phases.sft.steps=10", "run.seed=9")
    for name, start, terms in (("a", base, [2]), ("b", base, [3]), ("foreign", other, [2])):
        train(CONFIG, folder / name, *SHORT, f"model.pretrained={start}", "phases.sft.steps=12", f"phases.sft.data.tint.terms={terms}", "run.seed=5")
    return folder


def weights(folder):
    return load_file((folder if (folder / "config.json").exists() else final_checkpoint(folder)) / "model.safetensors")


def test_linear_is_the_sum(family, tmp_path):
    assert merging.main([str(family / "base"), str(family / "a"), str(family / "b"), "-o", str(tmp_path / "out"), "--weight", "0.5", "--weight", "-2"]) == 0
    base, a, b, found = (weights(family / x) if isinstance(x, str) else weights(x) for x in ("base", "a", "b", tmp_path / "out"))
    assert found.keys() == base.keys()
    for name, w in base.items():
        torch.testing.assert_close(found[name].double(), w.double() + 0.5 * (a[name].double() - w) - 2 * (b[name].double() - w), rtol=1e-6, atol=1e-7)
    assert not (tmp_path / "out" / "DONE").exists() and json.loads((tmp_path / "out" / "config.json").read_text())
    import transformers

    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # an ordinary folder
    # A factor of 1 gives the model itself, but for a rounding.
    merging.merge(str(family / "base"), [str(family / "a")], tmp_path / "same")
    for name, w in weights(tmp_path / "same").items():
        torch.testing.assert_close(w, a[name], rtol=0, atol=1e-6)


def test_ties_is_its_definition(family, tmp_path):
    density, factors = 0.3, [1.0, 2.0]
    merging.merge(str(family / "base"), [str(family / "a"), str(family / "b")], tmp_path / "out", method="ties", weights=factors, density=density, scale=0.7)
    base, others, found = weights(family / "base"), [weights(family / "a"), weights(family / "b")], weights(tmp_path / "out")
    for name, w in base.items():
        tasks = [(o[name] - w).flatten().tolist() for o in others]
        kept = []
        for task in tasks:
            least = sorted(map(abs, task), reverse=True)[max(1, round(density * len(task))) - 1]
            kept.append([x if abs(x) >= least else 0.0 for x in task])
        for i, (w_i, f_i) in enumerate(zip(w.flatten().tolist(), found[name].flatten().tolist())):
            total = sum(f * k[i] for f, k in zip(factors, kept))
            agree = [(f, k[i]) for f, k in zip(factors, kept) if k[i] * total > 0]
            change = sum(f * x for f, x in agree) / sum(f for f, _ in agree) if agree else 0.0
            assert abs(f_i - (w_i + 0.7 * change)) < 1e-6, (name, i)


def test_what_is_refused_is_named(family, tmp_path, capsys):
    def told(*words):
        assert merging.main([*map(str, words), "-o", str(tmp_path / "out")]) == 1
        assert not any(tmp_path.glob("out*"))
        return capsys.readouterr().err

    assert "began from other weights" in told(family / "base", family / "foreign") and "--any-base" in told(family / "base", family / "foreign")
    (tmp_path / "taken.tmp").mkdir()
    (tmp_path / "taken.tmp" / "notes").write_text("mine")
    assert merging.main([str(family / "base"), str(family / "foreign"), "-o", str(tmp_path / "taken"), "--any-base"]) == 0
    assert (tmp_path / "taken.tmp" / "notes").read_text() == "mine" and (tmp_path / "taken" / "config.json").exists()
    assert "1 weights for 2 folders" in told(family / "base", family / "a", family / "b", "--weight", "1")
    assert "density is 0" in told(family / "base", family / "a", "--density", "0")
    assert "weight is nan" in told(family / "base", family / "a", "--weight", "nan") and "weight is inf" in told(family / "base", family / "a", "--weight", "inf")
    assert "scale is nan" in told(family / "base", family / "a", "--scale", "nan", "--method", "ties")
    assert "is too large for torch.float32 once merged" in told(family / "base", family / "a", "--weight", "1e39")
    assert "no such folder" in told(family / "base", tmp_path / "nothing")
    lacking = tmp_path / "lacking"
    shutil.copytree(final_checkpoint(family / "a"), lacking)
    (lacking / "trainer.safetensors").unlink()
    tensors = load_file(lacking / "model.safetensors")
    tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 4)
    save_file(tensors, lacking / "model.safetensors")
    error = told(family / "base", lacking)
    assert "lacks model.norm.weight" in error
    tensors["model.norm.weight"] = torch.ones(32)
    save_file(tensors, lacking / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.weight [3, 4], wanted [64, 32]" in told(family / "base", lacking)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(64, 32)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, lacking / "model.safetensors")
    assert "lacking: model.layers.0.mlp.up_proj.weight is not finite everywhere" in told(family / "base", lacking)


# ---- model.compose ---------------------------------------------------------------------------------------------------

COMPOSE = ["phases.sft.optimizer={kind: sgd, betas: [0], lr: 0.5, weight_decay: 0, max_grad_norm: 0}", "phases.sft.schedule={kind: constant}",
           "phases.sft.batch.sequences=4", "run.threads=1"]  # fmt: skip


def compose(family, folder, *words, vectors=("a", "b"), check=True, resume=False):
    names = ", ".join(str(family / one) for one in vectors)
    return train(CONFIG, folder, *SHORT, f"model.pretrained={family / 'base'}", f"model.compose={{vectors: [{names}]}}", *COMPOSE, *words, check=check, resume=resume)


def coefficients(folder):
    return load_file(final_checkpoint(folder) / "trainer.safetensors")["extra/coefficients"]


def test_checkpoints_hold_the_sum_and_its_coefficients_descend(family, tmp_path):
    compose(family, tmp_path / "run", "phases.sft.steps=30")
    c, found = coefficients(tmp_path / "run"), weights(tmp_path / "run")
    base, a, b = (weights(family / name) for name in ("base", "a", "b"))
    # named_weights() of the decoder, in whose order the columns are.
    blocks = [[f"model.layers.{i}.{n}" for n in ("input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight",
               "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")] for i in range(2)]  # fmt: skip
    order = ["model.embed_tokens.weight", *blocks[0], *blocks[1], "model.norm.weight"]
    assert c.shape == (2, len(order)) and c.abs().min() > 0
    for column, name in enumerate(order):
        truth = base[name].double() + c[0, column] * (a[name].double() - base[name]) + c[1, column] * (b[name].double() - base[name])
        torch.testing.assert_close(found[name].double(), truth, rtol=1e-6, atol=1e-6)
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_gradient_of_a_coefficient_is_the_product_with_its_vector(family, tmp_path):
    """One step of plain descent with rate 1 moves c by −⟨dL/dθ, τ⟩, and the weights of a plain run by −dL/dθ."""
    one = ["phases.sft.steps=1", "phases.sft.optimizer={kind: sgd, betas: [0], lr: 1.0, weight_decay: 0, max_grad_norm: 0}"]
    compose(family, tmp_path / "run", *one)
    compose(family, tmp_path / "parts", *one, "phases.sft.batch.micro_tokens=40")
    compose(family, tmp_path / "vectors", *one, "model.compose.per=vector")
    train(CONFIG, tmp_path / "plain", *SHORT, f"model.pretrained={family / 'base'}", *COMPOSE, *one)
    base, moved, a, b = (weights(x) for x in (family / "base", tmp_path / "plain", family / "a", family / "b"))
    c = coefficients(tmp_path / "run")
    torch.testing.assert_close(coefficients(tmp_path / "parts"), c, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(coefficients(tmp_path / "vectors"), c.sum(1, keepdim=True), rtol=1e-3, atol=1e-6)
    for row, vector in enumerate((a, b)):
        truth = {name: -((base[name].double() - moved[name]) * (vector[name].double() - base[name])).sum().item() for name in base}
        assert c[row].sum().item() == pytest.approx(sum(truth.values()), rel=1e-2, abs=1e-6)
        assert c[row, 0].item() == pytest.approx(truth["model.embed_tokens.weight"], rel=1e-2, abs=1e-6)
        assert c[row, -1].item() == pytest.approx(truth["model.norm.weight"], rel=1e-2, abs=1e-6)


def test_it_resumes_bit_for_bit(family, tmp_path):
    words = ["run.checkpoint_every=3"]
    compose(family, tmp_path / "whole", *words, "phases.sft.steps=8")
    compose(family, tmp_path / "cut", *words, "phases.sft.steps=5")
    compose(family, tmp_path / "cut", *words, "phases.sft.steps=8", resume=True)
    assert torch.equal(coefficients(tmp_path / "cut"), coefficients(tmp_path / "whole"))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_compose_refuses_by_name(family, tmp_path):
    told = compose(family, tmp_path / "run", vectors=["foreign"], check=False)
    assert told.returncode != 0 and "began from other weights" in told.stderr and "any_base: true" in told.stderr
    told = compose(family, tmp_path / "run", "model.freeze=[qk]", check=False)
    assert told.returncode != 0 and "compose: trains coefficients in the place of weights; leave freeze out" in told.stderr
