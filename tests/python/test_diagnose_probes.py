"""`concept-depth` and `feature-complexity`: a concept that layer 3 brings, features that are there early or late, probes beside
scikit-learn's."""

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
sklearn = pytest.importorskip("sklearn")
import diagnose_models as made
from sklearn.linear_model import LogisticRegression
from isentrope import diagnose
from isentrope.diagnose.data import Data
from isentrope.diagnose.measures import concept_depth, feature_complexity
from isentrope.diagnose.model import Batch
from isentrope.diagnose.probes import fit


def correlated(problems, n, d, seed=0):
    """Features with a steep spectrum and large means, as hidden states have, and a constant one."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(problems, n, d, generator=generator) * torch.arange(1, d + 1) ** -1.2
    X = X @ torch.randn(d, d, generator=generator) + 5
    X[..., 3] = 2
    return X


@pytest.mark.parametrize("classes", [2, 3])
def test_probes_are_those_of_scikit_learn(classes):
    X = correlated(4, 300, 33)
    generator = torch.Generator().manual_seed(1)
    y = (X[0, :, :classes] + 0.5 * torch.randn(300, classes, generator=generator)).argmax(-1)
    probes = fit(X[:, :200].double(), y[:200], classes, tolerance=1e-7, iterations=2000)
    assert probes.converged.all()
    for p in range(4):
        Z = X[p, :200].double()
        mean, deviation = Z.mean(0), Z.std(0, correction=0)
        deviation[3] = torch.inf
        theirs = LogisticRegression(tol=1e-8, max_iter=10000).fit(((Z - mean) / deviation).numpy(), y[:200].numpy())
        weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)
        ours = probes.weight[p] - (0 if classes == 2 else probes.weight[p].mean(0))  # softmax leaves a common part free
        torch.testing.assert_close(ours, weight - (0 if classes == 2 else weight.mean(0)), rtol=0, atol=2e-3)
        held = ((X[p, 200:].double() - mean) / deviation).numpy()
        assert (probes.predict(X[:, 200:].double())[p].numpy() == theirs.predict(held)).all() and bias.shape == probes.bias[p].shape


@pytest.mark.parametrize("classes, memory", [(2, 64), (3, 64), (2, 5)])
def test_probes_end_where_the_gradient_is_small(monkeypatch, classes, memory):
    """Of features in float32 with large means; the gradient of what is returned, in double, by the formula. They are not written to."""
    monkeypatch.setattr("isentrope.diagnose.probes.MEMORY", memory)
    X = correlated(3, 150, 97)
    X[1] += 1000
    before, y = X.clone(), torch.randint(0, classes, (150,), generator=torch.Generator().manual_seed(2))
    probes = fit(X, y, classes)
    assert probes.converged.all() and torch.equal(X, before) and (probes.iterations > memory or memory == 64)
    for p in range(3):
        Z = (X[p].double() - probes.mean[p].double()) / probes.scale[p].double()
        W, s = probes.weight[p].double(), Z @ probes.weight[p].double().T + probes.bias[p].double()
        residual = s.sigmoid() - y[:, None] if classes == 2 else s.softmax(1) - torch.nn.functional.one_hot(y, classes)
        gradient = torch.cat([residual.T @ Z / 150 + W / 150, residual.mean(0)[:, None]], 1)
        assert gradient.abs().max() < 1.02e-4, p


def test_probes_that_do_not_converge_say_so():
    X, y = correlated(3, 100, 20), torch.arange(100) % 2
    assert not fit(X, y, 2, tolerance=1e-6, iterations=1).converged.any()
    assert fit(X, y, 2, iterations=1000).converged.all()


def concept_at(layer, count=120):
    """A model whose layers add nothing, but one that lets the last token see the first: id 1 or 2, the label. And its data."""
    module = made.llama(layers=5)
    with torch.no_grad():
        for i, one in enumerate(module.model.layers):
            one.mlp.down_proj.weight.zero_()
            if i != layer - 1:
                one.self_attn.o_proj.weight.zero_()
            else:
                one.self_attn.q_proj.weight.zero_()  # looks at all tokens alike
                for projection in (one.self_attn.v_proj, one.self_attn.o_proj):
                    projection.weight.copy_(torch.eye(*projection.weight.shape) * 3)
    generator = torch.Generator().manual_seed(0)
    labels = [i % 2 for i in range(count)]
    ids = [[1 + label, *torch.randint(10, 60, (4,), generator=generator).tolist()] for label in labels]
    return diagnose.Model(module), Data.of_ids(ids, labels)


def test_a_concept_that_layer_three_brings_is_found_there():
    model, data = concept_at(3)
    result = concept_depth.measure(model, data, {"noise": 1, "bits": 8})
    rows = {(row[0], row[1]): row for row in result.table.rows}
    assert set(result.table.column("condition")) == {"plain", "noise", "8 bits"}
    for condition in ("plain", "8 bits"):
        accuracy = [rows[condition, layer][2] for layer in range(6)]
        assert max(accuracy[:3]) < 0.7 and min(accuracy[3:]) > 0.95, (condition, accuracy)
        assert rows[condition, 4][4] > 0.99 and rows[condition, 4][3] > 0.95
    for layer, accuracy, control, selectivity, learnt in result.tables["control"].rows:
        assert accuracy == rows["plain", layer][2] and selectivity == accuracy - control and control < 0.75 and learnt > control
    assert min(result.tables["control"].column("selectivity")[3:]) > 0.25
    assert "control" not in concept_depth.measure(model, data, {"noise": 0, "bits": 0, "control": False}).tables
    jump, clear, converging = result.tables["points"].rows[0][1:4]
    assert jump <= clear == 3 / 5 and converging == 4 / 5
    assert result.notes == []


def test_weights_are_rounded_and_come_back():
    model = made.model()
    layer = model.module.model.layers[1].mlp.up_proj
    before = layer.weight.detach().clone()
    with concept_depth.rounded(model, 4):
        steps = layer.weight / (before.abs().amax(1, keepdim=True) / 7)
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, before)


def test_turning_points():
    assert concept_depth.turning_points([None, 1.0, 1.3, 1.01, 0.99], 1.1, 0.03) == (0.5, 0.75, 1.0)
    assert concept_depth.turning_points([None, 1.0, 1.0], 1.1, 0.03) == (None, 0.5, 1.0)
    assert concept_depth.turning_points([None, 1.0, 1.2], 1.1, 0.03) == (1.0, None, 0.5)


def test_scores_are_scikit_learns():
    from sklearn.metrics import f1_score, roc_auc_score

    generator = torch.Generator().manual_seed(0)
    y, scores = torch.randint(0, 2, (50,), generator=generator), torch.randn(50, generator=generator).round(decimals=1)
    assert concept_depth.auc_of(scores, y) == pytest.approx(roc_auc_score(y, scores))
    assert concept_depth.f1_of((scores > 0).long(), y, 2) == pytest.approx(f1_score(y, scores > 0, average="macro"))


def test_labels_that_cannot_be_judged_are_named():
    model = made.model()
    ids = made.sequences(9)
    with pytest.raises(diagnose.DiagnoseError, match="'label' of text 1 is missing"):
        concept_depth.measure(model, Data.of_ids(ids))
    with pytest.raises(diagnose.DiagnoseError, match="all 9 labels are 'a'"):
        concept_depth.measure(model, Data.of_ids(ids, ["a"] * 9))
    with pytest.raises(diagnose.DiagnoseError, match="label 'b' has 1 text;"):
        concept_depth.measure(model, Data.of_ids(ids, ["a"] * 8 + ["b"]))
    result = concept_depth.measure(model, Data.of_ids(ids, ["a", "b", "a"] * 3), {"iterations": 1, "noise": 0, "bits": 0})
    assert any("have not converged in 1 steps" in note for note in result.notes) and any("6 texts to learn from for 32 features" in note for note in result.notes)


# ---- feature-complexity ------------------------------------------------------------------------------------------------


def test_features_that_come_late_are_complex():
    """Two features make the last layer: one is in all layers, the other in the last alone."""
    model = made.model(layers=4)
    generator = torch.Generator().manual_seed(0)
    M, d = 300, 32
    codes = torch.rand(M, 2, generator=generator) * (torch.rand(M, 2, generator=generator) < 0.6)
    directions = torch.zeros(2, d)
    directions[0, :10], directions[1, 15:25] = 1, -2
    hidden = [codes[:, :1] @ directions[:1] + 0.01 * torch.randn(M, d, generator=generator) for _ in range(4)]
    hidden.append(codes @ directions)
    measure = feature_complexity.FeatureComplexity(model, Data.of_ids(made.sequences(M, 1)), {"features": 2})
    measure.update(Batch(torch.arange(M), torch.zeros(M, 1), torch.ones(M, dtype=torch.long), torch.ones(M, 1, dtype=torch.bool), [x[:, None] for x in hidden]))
    result = measure.finish()
    (_, early, _, first, r2, _, _), (_, late, _, came, _, last, _) = result.table.rows
    assert early < 0.05 and first == 0 and r2 > 0.95
    assert late == pytest.approx(1 - last / 5, abs=0.05) and came == 4
    assert result.numbers["variance that the factors explain"] > 0.99


def test_importance_is_the_change_of_the_logit():
    model = made.model()
    measure = feature_complexity.FeatureComplexity(model, Data.of_ids(made.sequences(4)), {})
    generator = torch.Generator().manual_seed(0)
    last, codes, directions = torch.randn(4, 32, generator=generator).double(), torch.rand(4, 3, generator=generator).double(), torch.randn(3, 32, generator=generator).double()
    found = measure.importance(last, codes, directions)
    W = model.head.weight.detach().double()
    best = (last @ W.T).argmax(-1)
    for k in range(3):
        change = [abs(float(W[best[i]] @ directions[k] * codes[i, k])) for i in range(4)]
        assert found[k].item() == pytest.approx(np.mean(change))


def test_too_few_or_equal_texts_are_named():
    model = made.model()
    with pytest.raises(diagnose.DiagnoseError, match="5 texts for 16 features"):
        feature_complexity.measure(model, Data.of_ids(made.sequences(5)))
    with pytest.raises(diagnose.DiagnoseError, match="all features of the last layer are constant"):
        feature_complexity.measure(model, Data.of_ids([[1, 2, 3]] * 40))
