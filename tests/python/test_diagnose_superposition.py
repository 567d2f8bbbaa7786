"""`superposition`: gradients of the autoencoder, planted features with and without superposition, a toy model of it, dropout, bad input."""

import math
import runpy
from pathlib import Path

import pytest
import torch

import diagnose_models as made
from isentrope import diagnose
from isentrope.diagnose.measure import DiagnoseError
from isentrope.diagnose.measures.superposition import measure
from isentrope.diagnose.sparse_autoencoder import Autoencoder, Training, effective_features, superposition, train


def planted(rows, dimension, features, active=1.0, orthogonal=False, seed=0):
    """Rows that are sums of `active` of so many directions each, of sizes from 0.5 to 1.5."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, dimension, generator=generator)
    if orthogonal:
        directions = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator))[0][:features]
    directions = directions / directions.norm(dim=1, keepdim=True)
    there = torch.rand(rows, features, generator=generator) < active / features
    return there * (0.5 + torch.rand(rows, features, generator=generator)) @ directions


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_are_those_of_autograd(sparse):
    generator = torch.Generator().manual_seed(0)
    training = Training(41, 17, 33, l1=0.1, lr=1e-3, seed=0, dtype=torch.float64)
    x = torch.randn(31, 17, generator=generator, dtype=torch.float64) / 4
    for parameter in training.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    training.density = 0.0 if sparse else 1.0
    loss = training.backward(x)
    assert 0 < training.density < 1
    encoder, encoder_bias, decoder, decoder_bias = leaves = [p.detach().clone().requires_grad_() for p in training.parameters()]
    codes = torch.relu(x @ encoder.T + encoder_bias)
    wanted = (codes @ decoder + decoder_bias - x).square().sum(1).mean() + 0.1 * codes.sum(1).mean()
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-12)
    for ours, leaf in zip(training.gradients, leaves):
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-12, atol=1e-14)


def test_both_ways_train_the_same(monkeypatch):
    x = planted(3000, 12, 20).double()
    found = []
    for below in (0.0, 1.1):
        monkeypatch.setattr("isentrope.diagnose.sparse_autoencoder.SPARSE_BELOW", below)
        found.append(train(x, width=24, epochs=2, batch=100, lr=1e-3))
    for a, b in zip(vars(found[0]).values(), vars(found[1]).values()):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0].decoder.norm(dim=1), torch.ones(24, dtype=torch.float64))


def test_features_of_known_shares():
    assert effective_features(torch.ones(7)) == pytest.approx(7)
    p = torch.tensor([0.5, 0.25, 0.25, 0.0])
    assert effective_features(3 * p) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    with pytest.raises(DiagnoseError, match="lower l1"):
        effective_features(torch.zeros(3))
    # An autoencoder whose codes are the coordinates: each of six directions, ± of three axes, is in use alike.
    rows = torch.cat([torch.eye(3), -torch.eye(3)])
    own = Autoencoder(rows, torch.zeros(6), rows, torch.zeros(3), torch.zeros(3), 1.0)
    found = superposition(own, rows.repeat(500, 1))
    assert found.features == pytest.approx(6) and found.psi == pytest.approx(2) and found.l0 == 1 and found.dead == 0 and found.unexplained == pytest.approx(0)


def test_planted_features_are_counted():
    """Of 16 dimensions: 8 orthogonal features are no superposition, 32 and 48 are twice and three times as many."""
    psi = []
    for features, orthogonal in ((8, True), (32, False), (48, False)):
        x = planted(10000, 16, features, orthogonal=orthogonal)
        found = superposition(train(x, width=64, l1=0.2, epochs=60, batch=512, lr=1e-2), x)
        psi.append(found.psi)
        assert found.unexplained < 0.2 and 0.75 < found.features / features < 1.7, (features, found.features)
    assert psi[0] < 1 < psi[1] < psi[2]


def test_toy_models_hold_more_features_where_they_are_sparse():
    """examples/toy_superposition.py: ψ is near the number of features that the weights hold over the 5 hidden units; dropout of these lowers it, as the
    paper has it."""
    measured = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "toy_superposition.py"))["measured"]
    psi = {}
    for name, of in (("denser", {"on": 0.3}), ("sparse", {"on": 0.03}), ("dropout", {"on": 0.03, "dropout": 0.5})):
        held, found = measured(**of)
        psi[name] = found.psi
        assert psi[name] == pytest.approx(held / 5, rel=0.25), name
    assert psi["denser"] < psi["dropout"] < psi["sparse"] and psi["sparse"] > 1.4 * psi["denser"]


def test_the_measure_of_layers():
    model = made.model(layers=3, width=32)
    data = diagnose.Data.of_ids(made.sequences(60, 16))
    result = measure(model, data, {"layers": "1,3", "width": 2.0, "batch": 64, "epochs": 2})
    assert [row[0] for row in result.table.rows] == [1, 3] and result.table.column("width") == [64, 64] and result.table.column("activations") == [900, 900]
    assert all(0 < psi <= 2 for psi in result.table.column("psi")) and "exp(H(p)) / D" in result.variant and result.numbers["highest ψ"] == max(result.table.column("psi"))
    assert any("ψ depends on the width" in note for note in result.notes) and any("steps of training" in note for note in result.notes)
    with torch.no_grad():
        model.module.model.embed_tokens.weight[5] = 1000 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    ids = [[5, *(6 if i == 5 else i for i in one)] for one in made.sequences(60, 16)]  # token 5 stands at the beginning alone
    options = {"layers": "0", "width": 2.0, "batch": 64, "epochs": 1}
    for skip, told in ((0, True), (1, False)):
        notes = measure(model, diagnose.Data.of_ids(ids), options | {"skip": skip}).notes
        assert any("of the variance, so that the autoencoder is theirs" in note for note in notes) == told
    for options, said in (({"layers": "4"}, "numbers from 0 to 3"), ({"layers": "x"}, "numbers from 0 to 3"), ({}, "wanted twice batch=1024")):
        with pytest.raises(DiagnoseError, match=said):
            measure(model, data, options)


def test_activations_that_hold_nothing_are_told():
    with pytest.raises(DiagnoseError, match="all 100 activations are the same"):
        train(torch.ones(100, 5), width=4)
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    x[7, 2] = torch.inf
    with pytest.raises(DiagnoseError, match="activation 7 of 100 is not finite"):
        train(x, width=4)
    with pytest.raises(DiagnoseError, match="width 0"):
        train(x, width=0)
