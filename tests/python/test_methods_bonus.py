"""Weights of an entropy bonus (tea, ceeh_entropy), the choice of Entropy-SFT, and REPO's beta: golden numbers, an independent loop in double,
gradients through a loss, what changes nothing, what is refused."""

import math

import pytest
import torch

import isentrope
from isentrope import methods

nan, inf = math.nan, math.inf
SHAPES = [(5, 37), (1, 1), (3, 97), (2, 600), (0, 7), (4, 0)]


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


def batch(B=5, T=37, seed=0, dtype=torch.float64):
    """Ragged rows, one without a token that counts, one with holes; NaN where nothing counts."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(T) < torch.randint(1, max(T, 1) + 1, (B, 1), generator=g)
    if B > 2:
        mask[1] = False
        mask[2] = torch.rand(T, generator=g) < 0.6
    fill = lambda x: torch.where(mask, x, nan).to(dtype)  # noqa: E731
    return {
        "mask": mask,
        "logprob": fill(-3 * torch.rand(B, T, generator=g)),
        "entropy": fill(2 * torch.rand(B, T, generator=g)),
        "advantage": fill((torch.randn(B, 1, generator=g)).expand(B, T)),
        "hard": torch.rand(B, generator=g) < 0.5,
    }


def marked(x):
    return [(b, t) for b, t in x["mask"].nonzero().tolist()]


def table(x, values, dtype=torch.float64):
    out = torch.zeros(x["mask"].shape, dtype=dtype)
    for (b, t), value in values.items():
        out[b, t] = value
    return out


# ---- each against a loop ---------------------------------------------------------------------------------------------


def tea_loop(x, alpha=10.0, most=5.0):
    l, A, places = x["logprob"].tolist(), x["advantage"].tolist(), marked(x)
    n = max(len(places), 1)
    mean_l, mean_A = math.fsum(l[b][t] for b, t in places) / n, math.fsum(A[b][t] for b, t in places) / n
    c = {(b, t): (A[b][t] - mean_A) * (l[b][t] - mean_l) for b, t in places}
    return table(x, {(b, t): min(most, alpha / math.fsum(math.exp(c[k] - c[b, t]) for k in places if k[0] == b)) for b, t in places})


def ceeh_loop(x, factor=5.0):
    places, hard = marked(x), x["hard"].tolist()
    w = {(b, t): factor if hard[b] else 1.0 for b, t in places}
    total = math.fsum(w.values())
    return table(x, {place: value * len(places) / total if total else 0.0 for place, value in w.items()}, torch.float32)


def entropy_sft_loop(x, fraction=0.8, lambda_entropy=0.8):
    l, H, places = x["logprob"].tolist(), x["entropy"].tolist(), marked(x)
    ranked = sorted(places, key=lambda place: l[place[0]][place[1]] + lambda_entropy * H[place[0]][place[1]])  # stable: the earlier first
    kept = set(ranked[: max(int(fraction * len(places)), 1)])
    return table(x, {place: place not in kept for place in places}, torch.bool)


@pytest.mark.parametrize("B, T", SHAPES)
@pytest.mark.parametrize("keys", [{}, {"alpha": 0.7}, {"alpha": 40.0, "most": 1.5}, {"alpha": 0.0}, {"most": inf}])
def test_tea_is_that_of_a_loop(B, T, keys):
    x = batch(B, T, seed=B * 1000 + T)
    torch.testing.assert_close(methods.tea(x["logprob"], x["advantage"], x["mask"], **keys), tea_loop(x, **keys))
    narrow = {key: value.float() if value.is_floating_point() else value for key, value in x.items()}
    got = methods.tea(narrow["logprob"], narrow["advantage"], narrow["mask"], **keys)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, tea_loop(narrow, **keys).float())


@pytest.mark.parametrize("B, T", SHAPES)
@pytest.mark.parametrize("factor", [5.0, 1.0, 0.25, 0.0])
def test_ceeh_entropy_is_that_of_a_loop(B, T, factor):
    x = batch(B, T, seed=B * 1000 + T)
    torch.testing.assert_close(methods.ceeh_entropy(x["hard"], x["mask"], factor=factor), ceeh_loop(x, factor))


@pytest.mark.parametrize("B, T", SHAPES)
@pytest.mark.parametrize("keys", [{}, {"fraction": 0.2, "lambda_entropy": 1.0}, {"fraction": 1e-9}, {"lambda_entropy": 0.0}, {"fraction": 0.29, "lambda_entropy": -2.0}])
def test_entropy_sft_is_that_of_a_loop(B, T, keys):
    x = batch(B, T, seed=B * 1000 + T)
    assert torch.equal(methods.entropy_sft(x["logprob"], x["entropy"], x["mask"], **keys), entropy_sft_loop(x, **keys))
    assert torch.equal(methods.entropy_sft(x["logprob"], x["entropy"], x["mask"].float() * 0.5, **keys), entropy_sft_loop(x, **keys))


# ---- golden numbers --------------------------------------------------------------------------------------------------


def test_tea_golden():
    """Published rule: c = (1, 2, −1, 0), alpha 10, most 5 → (2.368828, 5, .320586, .871443). A and ℓ that have these covariances: A is +1
    in the row and −1 in another, whose ℓ make up for it, so that mean A = 0 and mean ℓ = 0.5."""
    logprob = f64([[1.5, 2.5, -0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    advantage = f64([[1, 1, 1, 1], [-1, -1, -1, -1]])
    got = methods.tea(logprob, advantage, torch.ones(2, 4))
    torch.testing.assert_close(got[0], f64([2.368828, 5, 0.320586, 0.871443]), rtol=0, atol=1e-6)
    torch.testing.assert_close(got[1], f64([2.5] * 4))  # of equal covariances all weigh alike
    free = methods.tea(logprob, advantage, torch.ones(2, 4), most=inf)
    torch.testing.assert_close(free.sum(1), f64([10, 10]))


def test_ceeh_entropy_golden():
    """By hand: w = 5, 5, 1, 1 of mean 3."""
    got = methods.ceeh_entropy(torch.tensor([1, 0]), torch.ones(2, 2))
    torch.testing.assert_close(got, torch.tensor([[5 / 3] * 2, [1 / 3] * 2]))
    for hard in ([0, 0], [1, 1]):  # where all weigh alike, exactly 1
        assert torch.equal(methods.ceeh_entropy(torch.tensor(hard), torch.ones(2, 2)), torch.ones(2, 2))
    assert torch.equal(methods.ceeh_entropy(torch.tensor([1, 0]), torch.ones(2, 2), factor=1.0), torch.ones(2, 2))


def test_entropy_sft_golden():
    """By hand: −ℓ − 0.8 H = −.14, .8, −.14; .12, 1.4 → of five tokens the two of 1.4 and .8, the first at fraction .2."""
    logprob, entropy = f64([[-0.5, -2.0, -0.1], [-1.0, -3.0, nan]]), f64([[0.8, 1.5, 0.3], [1.1, 2.0, nan]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert methods.entropy_sft(logprob, entropy, mask, fraction=0.4).tolist() == [[True, False, True], [True, False, False]]
    assert methods.entropy_sft(logprob, entropy, mask, fraction=0.2).tolist() == [[True, True, True], [True, False, False]]
    assert methods.entropy_sft(logprob, entropy, mask, fraction=0.39).tolist() == methods.entropy_sft(logprob, entropy, mask, fraction=0.2).tolist()
    # Of equal scores the earlier are kept; NaN is the highest.
    same = methods.entropy_sft(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2), fraction=0.5)
    assert same.tolist() == [[False, False], [True, True]]
    odd = methods.entropy_sft(torch.tensor([[-9.0, nan, -1.0]]), torch.zeros(1, 3), torch.ones(1, 3), fraction=0.34)
    assert odd.tolist() == [[True, False, True]]


def test_repo_beta_golden():
    state = methods.repo_beta(f64([0.01, nan]), 0.6, rate=0.1)
    assert state.tolist() == pytest.approx([0.01, 0.6])  # the first step is the target
    state = methods.repo_beta(state, 0.4, rate=0.1)
    assert state.tolist() == pytest.approx([0.03, 0.6])
    assert methods.repo_beta(state, 9.0, rate=0.1).tolist() == pytest.approx([0.0, 0.6])
    assert methods.repo_beta(state, 0.0, rate=10.0, most=0.5).tolist() == pytest.approx([0.5, 0.6])
    assert methods.repo_beta(state, 0.4, rate=0.0).tolist() == state.tolist()


# ---- the coefficient moves the gradient ------------------------------------------------------------------------------


def bonus(weight, logits, mask):
    """−mean of weight · entropy, as the objective has it."""
    H = isentrope.token_entropy(logits.flatten(0, 1), torch.zeros(mask.numel(), dtype=torch.int64)).entropy.view(mask.shape)
    return -(weight * H).sum() / mask.sum()


def gradient(weight):
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(*weight.shape, 11, generator=g).requires_grad_()
    bonus(weight, logits, torch.ones(weight.shape)).backward()
    return logits.grad


def test_keys_move_the_gradient():
    x = batch(4, 9, seed=2)
    full = {key: torch.nan_to_num(value) if value.is_floating_point() else value for key, value in x.items()}
    ones = torch.ones(4, 9)
    tea = [gradient(methods.tea(full["logprob"], full["advantage"], ones, **keys).float()) for keys in ({}, {"alpha": 3.0}, {"most": 0.1}, {"alpha": 0.0})]
    assert not any(torch.equal(a, b) for i, a in enumerate(tea) for b in tea[:i]) and not tea[3].any()
    hard = torch.tensor([1, 0, 0, 1])
    ceeh = [gradient(methods.ceeh_entropy(hard, ones, factor=factor)) for factor in (1.0, 5.0, 0.5)]
    assert not any(torch.equal(a, b) for i, a in enumerate(ceeh) for b in ceeh[:i])
    assert torch.equal(ceeh[0], gradient(ones))  # factor 1: a plain bonus


def test_entropy_sft_takes_the_gradient_of_what_it_removes_and_gives_the_rest_its_share():
    g = torch.Generator().manual_seed(4)
    logits, target = torch.randn(3, 8, 11, generator=g).requires_grad_(), torch.randint(0, 11, (3, 8), generator=g)
    out = isentrope.token_entropy(logits.flatten(0, 1), target.flatten())
    logprob, entropy = out.logprob.view(3, 8), out.entropy.view(3, 8)
    removed = methods.entropy_sft(logprob, entropy, torch.ones(3, 8), fraction=0.5)
    kept = removed.logical_not()
    assert kept.sum() == 12
    (-(logprob * kept).sum() / kept.sum()).backward()
    moved = logits.grad.abs().sum(2) > 0
    assert torch.equal(moved, kept)
    all_of_them = methods.entropy_sft(logprob, entropy, torch.ones(3, 8), fraction=1.0)
    assert not all_of_them.any()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, message", [
    (lambda o: methods.tea(o, o, o, alpha=-1.0), "method_tea: alpha is -1; wanted at least 0"),
    (lambda o: methods.tea(o, o, o, most=-1.0), "method_tea: most is -1; wanted at least 0"),
    (lambda o: methods.tea(o, o[:1], o), "method_tea: advantage has shape"),
    (lambda o: methods.tea(o.long(), o, o), "method_tea: logprob has dtype Long"),
    (lambda o: methods.ceeh_entropy(o[:1, 0], o), r"method_ceeh_entropy: hard has shape \[1\]; wanted \[2\]"),
    (lambda o: methods.ceeh_entropy(o[:, 0], o, factor=-1.0), "method_ceeh_entropy: factor is -1; wanted at least 0"),
    (lambda o: methods.entropy_sft(o, o, o, fraction=0.0), "method_entropy_sft: fraction is 0; wanted above 0 to 1"),
    (lambda o: methods.entropy_sft(o, o, o, lambda_entropy=inf), "method_entropy_sft: lambda_entropy is inf; wanted a finite number"),
    (lambda o: methods.entropy_sft(o, o[:, :1], o), "method_entropy_sft: entropy has shape"),
    (lambda o: methods.repo_beta(f64([0.1]), 0.1, rate=0.1), r"method_repo_beta: state has shape \[1\]; wanted \[2\]"),
    (lambda o: methods.repo_beta(f64([0.1, nan]), nan, rate=0.1), "method_repo_beta: entropy is nan; wanted a finite number"),
    (lambda o: methods.repo_beta(f64([0.1, nan]), 0.1, rate=-1.0), "method_repo_beta: rate is -1; wanted at least 0"),
])  # fmt: skip
def test_refuses(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(torch.ones(2, 3))


def test_results_are_constants_and_have_a_shape_without_data():
    x = torch.rand(2, 3, requires_grad=True)
    assert not methods.tea(x, x, torch.ones(2, 3)).requires_grad
    meta = torch.ones(2, 3, device="meta")
    assert methods.tea(meta, meta, meta).shape == (2, 3)
    assert methods.ceeh_entropy(meta[:, 0], meta).dtype == torch.float32
    assert methods.entropy_sft(meta, meta, meta).dtype == torch.bool
