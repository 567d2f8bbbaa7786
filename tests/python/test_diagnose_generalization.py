"""`generalization-valley` and `generalization-difficulty`: planted accuracies, intrinsic dimensions and a formula by hand; greedy decoding; bad input."""

import math

import numpy as np
import pytest
import torch

import diagnose_models as made
import diagnose_tables
from isentrope.diagnose.completions import own_tokens, pair, scores
from isentrope.diagnose.data import Data
from isentrope.diagnose.intervals import wilson
from isentrope.diagnose.measure import DiagnoseError
from isentrope.diagnose.measures import generalization_difficulty as difficulty
from isentrope.diagnose.measures import generalization_valley as valleys

# ---- the valley --------------------------------------------------------------------------------------------------------

INSIDE, OUTSIDE = [0.98, 0.95, 0.80, 0.45, 0.20], [0.97, 0.88, 0.55, 0.30, 0.15]


def answers(share, n):
    return [i < round(share * n) for i in range(n)]


def test_golden_gaps():
    found = valleys.valley([answers(a, 100) for a in INSIDE], [answers(a, 100) for a in OUTSIDE])
    assert found.gap == pytest.approx([0.01, 0.07, 0.25, 0.15, 0.05]) and found.critical == 2
    assert (found.low <= found.gap).all() and (found.gap <= found.high).all() and not found.sure
    # The standard error of a gap at n = 100 is √(.8·.2 + .55·.45)/10 = .064.
    assert found.high[2] - found.low[2] == pytest.approx(2 * 1.96 * 0.064, rel=0.15)
    assert valleys.valley([answers(a, 2000) for a in INSIDE], [answers(a, 2000) for a in OUTSIDE]).sure


def rows(n=100, **more):
    return [{"level": level, "distribution": side, "correct": correct, **more}
            for level, (a, b) in enumerate(zip(INSIDE, OUTSIDE), 1) for side, share in (("id", a), ("ood", b)) for correct in answers(share, n)]  # fmt: skip


def test_the_measure_of_answers_that_are_judged():
    model = diagnose_tables.model(["a"], {})
    result = valleys.measure(model, Data(rows()))
    assert result.numbers["critical level"] == 3 and result.table.column("gap") == pytest.approx([0.01, 0.07, 0.25, 0.15, 0.05])
    assert result.table.rows[2][:5] == [3, 100, 0.8, *wilson(80, 100)]
    assert any("relative gap is highest at another level, 4" in note for note in result.notes) and any("not sure" in note for note in result.notes)
    none = [{**row, "correct": True} for row in rows(30)]
    assert valleys.measure(model, Data(none)).numbers["critical level"] is None


@pytest.mark.parametrize("change, said", [
    (lambda r: r.pop("level"), "'level' of text 1 is missing"), (lambda r: r.update(distribution="test"), "distribution 'test'; wanted id or ood"),
    (lambda r: r.update(correct=2), "'correct' of text 1 is 2"), (lambda r: r.update(level=9), "level 9 has no line with distribution ood")])  # fmt: skip
def test_bad_lines_of_a_valley(change, said):
    data = rows(30)
    change(data[0])
    with pytest.raises(DiagnoseError, match=said):
        valleys.measure(diagnose_tables.model(["a"], {}), Data(data))


def test_right_is_what_greedy_decoding_writes(tmp_path):
    from isentrope import diagnose

    model = diagnose.opened(made.folder(tmp_path / "tiny", layers=2))
    pairs, wanted = [], []
    for i in range(12):
        prompt = [1 + (5 * i + j) % 60 for j in range(1 + i % 4)]
        own = model.module.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False, max_new_tokens=3 + i % 3,
                                    eos_token_id=None, pad_token_id=0)[0, len(prompt) :].tolist()  # fmt: skip
        pairs += [(prompt, own), (prompt, [*own[:-1], (own[-1] + 1) % 64])]
        wanted += [True, False]
    found = scores(model, pairs, size=5)
    assert found.greedy.tolist() == wanted
    for (before, own), logprob in zip(pairs, found.logprob.tolist()):
        with torch.inference_mode():
            of = torch.log_softmax(model.module(torch.tensor([before + own])).logits[0].double(), 1)
        assert logprob == pytest.approx(sum(of[len(before) - 1 + j, token].item() for j, token in enumerate(own)), rel=1e-5)
    assert pair(model, "w1 w2", " w3") == ([2, 3], [4]) and own_tokens(model, "w5") == [6]
    assert pair(model, "w1 w2 w4", " w3", 3) == ([3, 5], [4])
    with pytest.raises(DiagnoseError, match="has no token"):
        pair(model, "w1", " ")
    with pytest.raises(DiagnoseError, match="an empty prompt"):
        scores(model, [([], [3])])


# ---- difficulty --------------------------------------------------------------------------------------------------------


def manifold(n, m, width=20, seed=0):
    """n points of a cube of m dimensions, turned into a space of `width`."""
    generator = np.random.default_rng(seed)
    return generator.random((n, m)) @ np.linalg.qr(generator.standard_normal((width, width)))[0][:m]


@pytest.mark.parametrize("m", [1, 2, 4])
def test_a_planted_intrinsic_dimension_is_found(m):
    assert difficulty.intrinsic_dimension(difficulty.distances(manifold(1500, m))) == pytest.approx(m, rel=0.12)


def test_harmonics_are_counted():
    """On the circle: 1 and 2 for each frequency up to M. On the sphere: (K + 1)², with K(K + 1) = M²."""
    degree, log_e = difficulty.log_harmonics(1, 5.0)
    assert degree == pytest.approx(5) and math.exp(log_e) == pytest.approx(11)
    degree, log_e = difficulty.log_harmonics(2, math.sqrt(3 * 4))
    assert degree == pytest.approx(3) and math.exp(log_e) == pytest.approx(16)


def test_the_formula_by_hand():
    """m = 1, two classes, R = δ = 1: M = 2π, K = 2π, E = 1 + 4π, L_f = 2π, W = √(1/6) · 4π / n (Γ(1) = 1)."""
    found = difficulty.complexity(n=10, classes=2, m=1, radius=1, resolution=1, error=0.1)
    factor = 0.5 * math.log2(2) - math.log2(0.1) + math.log2(2 * math.pi) + math.log2(math.sqrt(1 / 6) * 4 * math.pi / 10)
    assert found.factor == pytest.approx(factor) and found.bits == pytest.approx((4 * (1 + 4 * math.pi) - 10) * factor)
    assert found.log10_bits == pytest.approx(math.log10(found.bits))
    assert difficulty.complexity(n=100, classes=2, m=1, radius=1, resolution=1, error=0.1).log10_bits == -math.inf  # more samples than dimensions
    high = difficulty.complexity(n=10**6, classes=10, m=400, radius=30, resolution=0.1, error=0.01)
    assert math.isinf(high.bits) and 400 < high.log10_bits < 2000


def labelled(x):
    return Data([{"features": row.tolist(), "label": int(row.sum() > x.sum(1).mean())} for row in x])


def test_more_dimensions_are_more_difficult():
    model = diagnose_tables.model(["a"], {})
    found = {m: difficulty.measure(model, labelled(manifold(600, m))) for m in (2, 4)}
    assert {m: result.numbers["intrinsic dimension m"] for m, result in found.items()} == {2: 2, 4: 4}
    assert found[4].numbers["complexity, log10 of bits"] > found[2].numbers["complexity, log10 of bits"]
    by_dimension = found[4].table.column("complexity")
    assert all(a + 0.5 < b for a, b in zip(by_dimension, by_dimension[1:]))  # of one set, each dimension more costs a factor
    assert difficulty.ONLY_RATIOS in found[2].notes and "authors' program" in found[2].variant
    assert [row[0] for row in found[4].table.rows] == [2, 3, 4, 5, 6]


def test_texts_are_their_mean_embeddings():
    words = [f"w{i}" for i in range(40)]
    model = diagnose_tables.model(words, {})
    model.module.table.data.normal_(generator=torch.Generator().manual_seed(0))
    data = Data([{"text": f"w{i} w{(7 * i) % 40}", "label": "ab"[i % 2]} for i in range(40)])
    result = difficulty.measure(model, data)
    assert result.numbers["samples n"] == 40 and result.numbers["features"] == 41 and "mean input embedding" in result.variant


def test_bad_data_of_difficulty():
    model = diagnose_tables.model(["a"], {})
    for records, said in (
        ([{"features": [1.0, 2.0], "label": i % 2} for i in range(20)], "all 2 features are constant"),
        ([{"features": [float(i)], "label": i % 2} for i in range(5)], "5 different samples; wanted 7"),
        ([{"features": [float(i)], "label": 1} for i in range(20)], "all 20 labels are 1"),
        ([{"features": [float(i)]} for i in range(20)], "'label' of text 1 is missing"),
        ([{"features": [1.0] * (i + 1), "label": i % 2} for i in range(20)], "no table of finite numbers"),
    ):
        with pytest.raises(DiagnoseError, match=said):
            difficulty.measure(model, Data(records))
    twice = labelled(np.repeat(manifold(40, 2), 2, 0))
    assert any("40 of 80 samples stand where another does" in note for note in difficulty.measure(model, twice).notes)
