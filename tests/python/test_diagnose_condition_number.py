"""`condition-number`: planted singular values, by both ways; tensors of more dimensions; the order; what is said of bad ones."""

import json
import math

import numpy as np
import pytest
import torch

import diagnose_models as made
from isentrope import diagnose
from isentrope.diagnose.measure import DiagnoseError
from isentrope.diagnose.measures.condition_number import GRAM_ERROR, condition, gram, matrices, measure


def planted(values, rows, columns, seed=0):
    """A matrix with these singular values."""
    generator = np.random.default_rng(seed)
    u = np.linalg.qr(generator.standard_normal((rows, len(values))))[0]
    v = np.linalg.qr(generator.standard_normal((columns, len(values))))[0]
    return u * np.array(values) @ v.T


@pytest.mark.parametrize("rows, columns", [(33, 33), (97, 31), (31, 97)])
@pytest.mark.parametrize("kappa, method", [(1.0, "gram"), (7.5, "gram"), (1e4, "gram"), (1e7, "svd")])
def test_a_planted_condition_number_is_found(rows, columns, kappa, method):
    found = condition(planted(np.geomspace(3 * kappa, 3, 31 if rows != columns else 33), rows, columns))
    assert found.method == method
    # What the bound allows, and of singular values their own error.
    assert abs(found.kappa / kappa - 1) <= max(found.error, 4 * 97 * 2**-52 * kappa)
    assert found.method == "svd" or found.error <= GRAM_ERROR


def test_the_bound_holds_where_the_gram_matrix_is_believed():
    errors = []
    for seed in range(20):
        kappa = 10 ** (1 + seed / 4.5)
        found = condition(planted(np.geomspace(kappa, 1, 64), 80, 64, seed))
        if found.method == "gram":
            errors.append(abs(found.kappa / kappa - 1) / max(found.error, 1e-14))
    assert len(errors) > 10 and max(errors) <= 1


def test_a_tall_matrix_is_taken_in_blocks():
    matrix = np.random.default_rng(0).standard_normal((20000, 5)).astype(np.float32)
    wide = matrix.astype(np.float64)
    assert np.allclose(gram(matrix), wide.T @ wide, rtol=1e-13)
    assert np.allclose(gram(matrix.T), wide.T @ wide, rtol=1e-13)


def test_rank_that_lacks_is_infinite():
    found = condition(planted([3.0, 2.0, 1.0], 12, 9))
    assert found.smallest == 0 and math.isinf(found.kappa) and found.largest == pytest.approx(3)
    assert math.isinf(condition(np.zeros((4, 4))).kappa)


def test_experts_are_taken_one_by_one_and_convolutions_as_matrices():
    assert [(name, tuple(one.shape)) for name, one in matrices("w", torch.zeros(3, 16, 9))] == [(f"w[{i}]", (16, 9)) for i in range(3)]
    assert [tuple(one.shape) for _, one in matrices("w", torch.zeros(8, 4, 3, 3))] == [(8, 36)]
    assert [tuple(one.shape) for _, one in matrices("w", torch.zeros(8, 1, 4))] == [(8, 4)]


def test_the_best_conditioned_come_first(tmp_path):
    model = made.model(layers=2)
    weights = dict(model.module.named_parameters())
    best, singular = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    with torch.no_grad():
        weights[best].copy_(torch.from_numpy(planted(np.linspace(2, 1, 32), *weights[best].shape)))
        weights[singular][3] = 0
    cache = tmp_path / "kappa.json"
    result = measure(model, options={"best": 2, "cache": str(cache)})
    rows = result.table.rows
    assert rows[0][0] == best and rows[0][3] == pytest.approx(2, rel=1e-4) and [row[-1] for row in rows[:3]] == ["yes", "yes", ""]
    assert rows[-1][0] == singular and rows[-1][3] is None and any(singular in note for note in result.notes)
    assert not any(row[0].endswith("norm.weight") for row in rows)
    assert result.numbers["tuned share of parameters"] == pytest.approx(sum(row[1] * row[2] for row in rows[:2]) / sum(p.numel() for p in weights.values()))
    assert len(json.loads(cache.read_text())) == len(rows)


def test_a_cache_is_of_values_and_not_of_names(tmp_path, monkeypatch):
    """Checkpoints have the same names: each gets its own κ, and what was measured once is not measured again."""
    model = made.model(layers=1)
    name, cache = "model.layers.0.mlp.up_proj.weight", str(tmp_path / "kappa.json")
    first = measure(model, options={"cache": cache}).table.rows
    with torch.no_grad():
        dict(model.module.named_parameters())[name].copy_(torch.from_numpy(planted(np.linspace(2, 1, 32), 64, 32)))
    kappa = lambda result: {row[0]: row[3] for row in result.table.rows}  # noqa: E731
    second = kappa(measure(model, options={"cache": cache}))
    assert second[name] == pytest.approx(2, rel=1e-4) and second == kappa(measure(model))
    assert {row[0]: row[3] for row in first if row[0] != name} == {key: value for key, value in second.items() if key != name}
    monkeypatch.setattr("isentrope.diagnose.measures.condition_number.condition", None)
    assert kappa(measure(model, options={"cache": cache})) == second


def test_what_cannot_be_measured_is_said(tmp_path):
    model = made.model(layers=1)
    with pytest.raises(DiagnoseError, match="none above 8; raise max_dimension"):
        measure(model, options={"max_dimension": 8})
    (tmp_path / "kappa.json").write_text("[1]")
    with pytest.raises(DiagnoseError, match="cannot be read"):
        measure(model, options={"cache": str(tmp_path / "kappa.json")})
    with torch.no_grad():
        model.module.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(DiagnoseError, match="lm_head.weight of model has values that are not finite"):
        measure(model)


def test_the_command_needs_no_data(tmp_path):
    folder = made.folder(tmp_path / "tiny", layers=1)
    assert diagnose.main([str(folder), "--measure", "condition-number", "best=3"]) == 0
    told = json.loads((folder / "diagnose" / "condition-number.json").read_text())
    assert "singular value" in told["variant"] and told["figures"] == ["condition-number.png"]
