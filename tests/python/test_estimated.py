"""Layers of kind estimated by their definition, and students that learn from a teacher's folder (objective distill)."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from test_mixers import ROOT, lines, train, weights

from isentrope.mixers_isentrope import FEATURE_MAPS, Estimated
from isentrope.reference_estimated import estimated_attention, estimated_cells

TEACHER, STUDENT = ROOT / "configs/mixers/softmax.yaml", ROOT / "configs/mixers/estimated.yaml"


def test_cells_of_known_rows():
    assert estimated_cells(1, 3) == [[0], [], []]
    assert estimated_cells(2, 3) == [[0], [1], []]
    assert estimated_cells(5, 2) == [[0, 1, 2], [3, 4]]
    assert sorted(sum(estimated_cells(31, 7), [])) == list(range(31))


@pytest.mark.parametrize("columns, keep, feature_map", [(7, 3, "elu_plus_one"), (40, 2, "exp_normalized"), (2, 1, "elu_plus_one")])
def test_module_is_its_definition(columns, keep, feature_map):
    torch.manual_seed(columns)
    H, G, D, T = 4, 2, 8, 23
    config = SimpleNamespace(hidden_size=20, num_attention_heads=H, num_key_value_heads=G, head_dim=D, rms_norm_eps=1e-5,
                             estimated={"columns": columns, "keep": keep, "feature_map": feature_map})  # fmt: skip
    module = Estimated(config).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, position = torch.randn(1, T, 20, dtype=torch.float64), torch.arange(T)[None]
    angle = position[:, None, :, None] * 100.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    cosine, sine = angle.cos(), angle.sin()
    project = {"q": module.q_proj, "k": module.k_proj, "v": module.v_proj, "a": module.estimate_q_proj, "b": module.estimate_k_proj}
    parts = {name: layer(x)[0].unflatten(-1, (-1, D)).transpose(0, 1) for name, layer in project.items()}
    small = module.estimator
    names = {"in": small["in_proj"].weight, "norm": small["norm"].weight, "columns": small["columns"].weight, "bias": small["columns"].bias, "conv": small["conv"].weight,
             "gate": small["gate"].weight, "gate_bias": small["gate"].bias, "o_norm": module.o_norm.weight}  # fmt: skip
    with torch.no_grad():
        truth = estimated_attention(parts, names, (cosine[0, 0], sine[0, 0]), columns, keep, FEATURE_MAPS[feature_map], 1e-5)
        place = (torch.ones(1, T, dtype=torch.bool), position, cosine, sine)
        torch.testing.assert_close(module(x, *place)[0], module.o_proj(truth["out"]), rtol=1e-11, atol=1e-12)
        logits = module.rows(x, *place)[0][0]
        for t in range(T):
            for h in range(H):
                assert set(logits[h, t].isfinite().nonzero().flatten().tolist()) == truth["sight"][t][h]
                assert math.isclose(float(truth["log_estimate"][t][h].exp().sum()), 1, rel_tol=1e-9)
        p = logits.softmax(-1)
        torch.testing.assert_close(-torch.special.xlogy(p, p).sum(-1), truth["entropy"], rtol=0, atol=1e-12)


def taught(teacher, **options):
    told = json.dumps({"teacher": str(teacher), **options}).replace('"', "")
    return [f"phases.sft.objective={{kind: distill, distill: {told}}}", "phases.sft.data.packing=true"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    made = train(TEACHER, folder)
    assert made.returncode == 0, made.stderr
    return folder


def test_a_student_learns_from_a_teacher_and_goes_on_bit_for_bit(teacher, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    made = train(STUDENT, whole, *taught(teacher, temperature=2, targets=0.1), "run.checkpoint_every=4", "phases.sft.objective.attention_entropy.every=2")
    assert made.returncode == 0, made.stderr
    said = [line for line in lines(whole) if line["phase"] == "sft" and "loss" in line]
    assert len(said) == 6 and said[-1]["loss"] < said[0]["loss"] and said[-1]["distill/kl"] < said[0]["distill/kl"]
    for line in said:
        assert all(line[f"distill/{one}"] > 0 for one in ("estimate/kl", "estimate/square", "attention/kl", "attention/square", "context/square", "cross_entropy"))
        assert 0 <= line["estimated/kept/least"] <= line["estimated/kept"] <= line["estimated/kept/most"] <= 1
        assert line["estimated/kl"] > 0
    shutil.copytree(whole, part)
    for checkpoint in (part / "checkpoints").iterdir():
        if checkpoint.name != "sft-000004":
            shutil.rmtree(checkpoint)
    again = train(STUDENT, part, *taught(teacher, temperature=2, targets=0.1), "run.checkpoint_every=4", "phases.sft.objective.attention_entropy.every=2", "--resume")
    assert again.returncode == 0, again.stderr
    assert lines(part) == lines(whole)
    a, b = weights(whole, "grpo-000002"), weights(part, "grpo-000002")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_has_nothing_to_learn_from_itself(teacher, tmp_path):
    end = next(place for place in (teacher / "checkpoints").iterdir() if place.name.startswith("sft-"))
    made = train(TEACHER, tmp_path / "run", *taught(end), f"model={{pretrained: {end}}}", "phases.sft.steps=1")
    assert made.returncode == 0, made.stderr
    (first,) = (line for line in lines(tmp_path / "run") if line["phase"] == "sft" and "loss" in line)
    assert abs(first["loss"]) < 1e-6 and first["distill/agreement"] == 1 and first["distill/context/square"] == 0


@pytest.mark.parametrize(
    "options, words, message",
    [
        ({}, ["tokenizer.characters=0123456789:=Aabcdefghijklmnop.;"], "objective.distill.teacher: .* has a vocabulary of .* tokens, and the model one of"),
        ({"layers": 1}, ["model.num_hidden_layers=1"], r"objective.distill.layers: the teacher has 2 layers \(num_hidden_layers\) and the model 1"),
        ({"layers": 1}, ["model.num_attention_heads=2", "model.num_key_value_heads=2"], r"objective.distill.layers: the teacher has 4 heads \(num_attention_heads\) and the model 2"),
        ({"logits": 0, "layers": 0}, [], "distill.logits: the weights logits, targets and layers are all 0"),
    ],
)
def test_refuses(teacher, tmp_path, options, words, message):
    made = train(STUDENT, tmp_path / "run", *taught(teacher, **options), *words)
    assert made.returncode != 0
    assert re.search(message, made.stderr.replace("\n", " ")), made.stderr
