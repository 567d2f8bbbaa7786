"""Methods that change advantages token by token, gtpo and pear as ops: golden numbers, an independent loop in double, gradients through a
loss, what changes nothing, what is refused."""

import math

import pytest
import torch

import isentrope
from isentrope import methods

import shaping_loops
from shaping_loops import TAKES, batch, f64, listed, mean, std

nan, inf = math.nan, math.inf

# Keys with which each has no effect; and two with which it has one, each another.
NEUTRAL = {
    "entropy_advantage": [{"alpha": 0.0}],
    "perplexity": [{"alpha": 0.0}, {"alpha": 3.0, "low": 1.0, "high": 1.0}],
    "position": [{"gamma": 0.0}, {"cap": 0.0}],
    "repo": [{"beta": 0.0}, {"beta": 0.0, "centre": "batch"}, {"beta": 0.0, "form": "rescale"}],
    "gepo": [{"low": 1.0, "high": 1.0}],
    "empg": [{"k": 0.0, "zeta": 0.0, "centre": "none"}],
    "hicra": [{"alpha": 0.0}],
    "turn_credit": [{"coef": 0.0}, {"coef": 0.0, "normalize": "none"}],
}
EFFECT = {
    "entropy_advantage": ({}, {"alpha": 0.1, "kappa": 3.0}),
    "perplexity": ({}, {"alpha": -0.05}),
    "position": ({}, {"gamma": 0.3, "centre": 0.0}),
    "repo": ({}, {"beta": 0.2, "form": "rescale"}),
    "gepo": ({}, {"low": 0.25, "high": 0.75}),
    "empg": ({}, {"k": 2.0, "zeta": 0.3, "centre": "tokens"}),
    "hicra": ({}, {"alpha": 0.7}),
    "gtpo": ({}, {"share": 0.5, "over": "outcome"}),
    "turn_credit": ({}, {"discount": 0.0, "normalize": "group"}),
}


def made(name, x, **keys):
    got = getattr(methods, name)(*(x[argument] for argument in TAKES[name]), **keys)
    return got.advantage if name == "gepo" else got


# ---- each against a loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, keys", [
    *((name, keys) for name in TAKES for keys in EFFECT[name]),
    ("perplexity", {"alpha": 0.5}), ("perplexity", {"alpha": -0.5, "low": 0.3, "high": 4.0}),
    ("position", {"gamma": 5.0}), ("position", {"slope": 4.0, "centre": 0.0, "cap": 0.1}),
    ("repo", {"beta": 0.5, "centre": "batch"}), ("repo", {"beta": -2.0, "form": "rescale"}),
    ("gepo", {"low": 0.0, "high": 0.0, "spread_low": -1.0}),
    ("empg", {"k": 0.5, "future_k": 3.0, "zeta": 1.0, "centre": "none"}),
    ("turn_credit", {"coef": 0.5, "discount": 0.9, "normalize": "none"}), ("turn_credit", {"discount": 0.5, "eps": 0.1}),
    ("gtpo", {"outcome": 0.0, "share": 2.0, "eps": 0.1}), ("gtpo", {"outcome": 0.9}),
])  # fmt: skip
@pytest.mark.parametrize("B, T", [(6, 37), (1, 1), (9, 61), (0, 7), (4, 0)])
def test_is_that_of_a_loop(name, keys, B, T):
    x = batch(B, T, seed=B * 1000 + T)
    torch.testing.assert_close(made(name, x, **keys), getattr(shaping_loops, name)(x, **keys), rtol=1e-9, atol=1e-9)
    narrow = {key: value.float() if value.dtype == torch.float64 and key != "state" else value for key, value in x.items()}
    got = made(name, narrow, **keys)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, getattr(shaping_loops, name)(narrow, **keys).float(), rtol=1e-5, atol=1e-5)


# ---- golden numbers --------------------------------------------------------------------------------------------------


def test_entropy_advantage_golden():
    # Published: (A, H) = (1, 1) → 1.4, (0.5, 2) → 0.75, (−1, 0.1) → −0.96.
    got = methods.entropy_advantage(f64([[1, 0.5, -1, 0]]), f64([[1, 2, 0.1, 3]]), torch.ones(1, 4))
    torch.testing.assert_close(got, f64([[1.4, 0.75, -0.96, 0]]))


def test_perplexity_golden():
    # Log-perplexities .2, .3, .4, .5: w = ∓1.341641, ∓0.447214.
    logprob = -f64([[0.1, 0.3], [0.3, 0.3], [0.4, 0.4], [0.5, 0.5]])
    got = methods.perplexity(torch.ones(4, 2, dtype=torch.float64), logprob, torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(got[:, 0], f64([1.013416, 1.004472, 0.995528, 0.986584]), rtol=0, atol=1e-6)
    other = methods.perplexity(-torch.ones(4, 2, dtype=torch.float64), logprob, torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), alpha=-0.01)
    torch.testing.assert_close(other[:, 1], -f64([0.986584, 0.995528, 1.004472, 1.013416]), rtol=0, atol=1e-6)


def test_perplexity_leaves_outliers_out_of_its_statistics_but_not_out_of_its_effect():
    u = [1.0, 1.1, 1.2, 1.3, 9.0]
    logprob, group = -f64(u)[:, None], torch.zeros(5, dtype=torch.int64)
    got = methods.perplexity(torch.ones(5, 1, dtype=torch.float64), logprob, torch.ones(5, 1), group, alpha=0.01, low=0.0, high=5.0)[:, 0]
    s = std(u[:4])
    torch.testing.assert_close(got, f64([1 - 0.01 * (w - 1.15) / s for w in u]))
    assert methods.perplexity(torch.ones(5, 1), logprob, torch.ones(5, 1), group)[4] == pytest.approx(0.8)  # clipped
    # A group of one perplexity is not scaled, one that is not finite stays.
    same = methods.perplexity(torch.ones(2, 1), -torch.ones(2, 1), torch.ones(2, 1), group[:2])
    assert same.tolist() == [[1], [1]]
    odd = methods.perplexity(f64([[1], [1], [1]]), f64([[-inf], [-1], [-3]]), torch.ones(3, 1), group[:3], alpha=0.1)
    torch.testing.assert_close(odd[:, 0], f64([1, 1.1, 0.9]))


def test_position_golden():
    # ρ = 0, .25, .5, .75: 5.5e-5, .002298, .05, .097702.
    got = methods.position(f64([[1, 1, 1, 1], [-1, -1, -1, -1], [0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0]]), torch.ones(4, 4))
    gain = f64([5.5276e-5, 0.0022977, 0.05, 0.0977023])
    torch.testing.assert_close(got, torch.stack([1 + gain, -1 - gain, 0.1 + gain.clamp_max(0.05), 0 * gain]), rtol=0, atol=1e-7)


def test_repo_golden():
    # π = (.7, .2, .1), H = .801819: ℓ + H = .445144, −.807619, −1.500766, of mean 0 under π.
    logprob, H = f64([[0.7, 0.2, 0.1]]).log(), torch.full((1, 3), 0.8018185525433373, dtype=torch.float64)
    got = methods.repo(torch.zeros(1, 3, dtype=torch.float64), logprob, H, torch.ones(1, 3), beta=1.0)
    torch.testing.assert_close(got, -f64([[0.445144, -0.807619, -1.500766]]), rtol=0, atol=1e-6)
    assert (got * f64([0.7, 0.2, 0.1])).sum().abs() < 1e-12
    # REPO-R: of an advantage of 1 an unlikely token gains more, of −1 it loses less, and no sign turns.
    got = methods.repo(f64([[1, 1, -1, -1]]), f64([[-0.1, -2.0, -0.1, -2.0]]), torch.zeros(1, 4), torch.ones(1, 4), beta=0.25, form="rescale")
    torch.testing.assert_close(got, f64([[1.025, 1.5, -0.975, -0.5]]))
    got = methods.repo(f64([[1, -1]]), f64([[-2.0, -2.0]]), torch.zeros(1, 2), torch.ones(1, 2), beta=2.0, form="rescale")
    assert got.tolist() == [[5, 0]]


def test_gepo_golden():
    """Three groups of mean surprisal 1, 2, 3: μ = 2, σ = √(2/3); the paper's numbers 0.5, 0.2, 0.2, 0.3, 0.01."""
    h = f64([[0.5, 1.5], [2, 2], [3, 3], [3, 3]])
    A = f64([[1, -1], [1, -1], [1, 1], [-1, -1]])
    group, state = torch.tensor([0, 1, 2, 2]), f64([nan, nan])
    got = methods.gepo(A, h, torch.ones(4, 2), group, state)
    torch.testing.assert_close(got.advantage, f64([[0.5, -1], [1, -1], [1, 1], [-0.2, -0.2]]))
    s = math.sqrt(2 / 3)
    torch.testing.assert_close(got.state, f64([2 - 0.2 * s, 2 + 0.3 * s]))
    assert state.isnan().all()  # given, not written into
    later = methods.gepo(A, h + 1, torch.ones(4, 2), group, got.state)  # the bounds of before rule, and move by a hundredth
    torch.testing.assert_close(later.advantage, f64([[1, -1], [1, -0.2], [1, 1], [-0.2, -0.2]]))
    torch.testing.assert_close(later.state, got.state + 0.01)
    nothing = methods.gepo(A, h, torch.zeros(4, 2), group, got.state)
    assert torch.equal(nothing.state, got.state) and not nothing.advantage.any()


def test_empg_golden():
    # H = .2, .5, 1.2, A = 1, defaults: before and after the mean is taken away.
    x = f64([[1, 1, 1]]), f64([[0.2, 0.5, 1.2]]), torch.ones(1, 3), torch.tensor([[0, 1, 2]])
    torch.testing.assert_close(methods.empg(*x, centre="none"), f64([[1.496761, 1.090735, 0.523374]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(methods.empg(*x), f64([[0.459804, 0.053778, -0.513582]]), rtol=0, atol=1e-6)
    # A step is its tokens' mean, and has one value for all of them; steps count, not tokens.
    long = f64([[1, 1, 1, 1]]), f64([[0.1, 0.3, 0.5, 1.2]]), torch.ones(1, 4), torch.tensor([[3, 3, 5, 9]])
    torch.testing.assert_close(methods.empg(*long), f64([[0.459804, 0.459804, 0.053778, -0.513582]]), rtol=0, atol=1e-6)
    assert methods.empg(*long, centre="tokens").sum().abs() < 1e-12


def test_empg_of_one_step_and_of_equal_entropies():
    got = methods.empg(f64([[2, 2], [-1, -1]]), f64([[0.5, 0.5], [0.5, 0.5]]), torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64))
    assert got.tolist() == [[1.5, 1.5], [-1.5, -1.5]]  # g = 1, no next step; less the mean of the two
    got = methods.empg(f64([[1, 1]]), f64([[0.5, 0.5]]), torch.ones(1, 2), torch.tensor([[0, 1]]), centre="none")
    torch.testing.assert_close(got, f64([[1.1, 1.0]]))  # f = 1


def test_hicra_golden():
    got = methods.hicra(f64([[1, -1, 1, 0]]), torch.tensor([[1, 1, 0, 1]]), torch.ones(1, 4))
    torch.testing.assert_close(got, f64([[1.2, -0.8, 1, 0]]))


def test_turn_credit_golden():
    """By hand: two conversations of a group, of two turns and of one. Returns 3, 2 and 1; the first turns' 3 and 1 have mean 2 and std √2."""
    A, mask, group = f64([[1, 1, 1], [-1, -1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([0, 0])
    reward, turn = f64([[1, 2], [1, nan]]), torch.tensor([[0, 0, 1], [0, 0, 0]])
    half = 2**-0.5
    got = methods.turn_credit(A, reward, mask, turn, group, eps=0.0)
    torch.testing.assert_close(got, f64([[1 + half, 1 + half, 1], [-1 - half, -1 - half, 0]]))  # a second turn alone: nothing
    got = methods.turn_credit(A, reward, mask, turn, group, normalize="none", coef=2.0, discount=0.5)
    torch.testing.assert_close(got, f64([[5, 5, 5], [1, 1, 0]]))
    got = methods.turn_credit(A, reward, mask, turn, group, discount=0.0, eps=0.0)  # 1 and 1 are equal
    assert got.tolist() == [[1, 1, 1], [-1, -1, 0]]
    got = methods.turn_credit(A, reward, mask, turn, group, normalize="group", eps=0.0)  # 3, 2, 1: mean 2, std 1
    torch.testing.assert_close(got, f64([[2, 2, 1], [-2, -2, 0]]))


def test_gtpo_golden():
    """By hand: at position 0 the right answers' entropies are 3 and 1, shares .75 and .25 of 2; the wrong ones' inverses 1/4 and 1."""
    H = f64([[3, 1], [1, 3], [4, 1], [1, 4]])
    right, group, mask = torch.tensor([1, 1, 0, 0]), torch.zeros(4, dtype=torch.int64), torch.ones(4, 2)
    r = f64([[1.15, 1.05], [1.05, 1.15], [-1.04, -1.16], [-1.16, -1.04]])
    got = methods.gtpo(H, right, mask, group, eps=0.0)
    torch.testing.assert_close(got, (r - r.mean()) / r.std(correction=0))
    assert (got[:2] > 0).all() and (got[2:] < 0).all()
    apart = methods.gtpo(H, right, mask, group, eps=0.0, over="outcome")
    torch.testing.assert_close(apart, f64([[1, -1], [-1, 1], [1, -1], [-1, 1]]))
    alike = methods.gtpo(H, right, mask, group, share=0.0)  # as a normalised reward of ±1
    torch.testing.assert_close(alike, f64([[1, 1], [1, 1], [-1, -1], [-1, -1]]), rtol=0, atol=2e-6)


def test_gtpo_of_short_completions_and_of_entropies_of_zero():
    H = f64([[2, 2, 0], [0, 0, 0], [0, 1, 0]])
    mask, group = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]), torch.zeros(3, dtype=torch.int64)
    got = methods.gtpo(H, torch.tensor([1, 1, 0]), mask, group)
    assert torch.isfinite(got).all() and (got[0][:3] > 0).all() and (got[2][:2] < 0).all() and not got[mask == 0].any()
    all_right = methods.gtpo(torch.ones(2, 3), torch.ones(2), torch.ones(2, 3), group[:2])
    assert not all_right.any()  # alike: nothing to learn


def test_pear_golden():
    # Means .45 before the tag and .2 behind it: 1 − .25 = .75; .1 and .2: 1.
    H = f64([[0.4, 0.5, 9, 9, 0.2, 0.2], [0.1, 0.1, 9, 9, 0.2, 0.2], [0.4, 0.5, 9, 9, 0.2, 0.2], [1.5, 0.5, 1, 1, 1, 1]])
    tag, right, mask = torch.tensor([[2, 4], [2, 4], [2, 4], [-1, -1]]), torch.tensor([1, 1, 0, 1]), torch.ones(4, 6)
    torch.testing.assert_close(methods.pear(H, mask, tag, right), f64([-0.25, 0, 0, -1]))
    torch.testing.assert_close(methods.pear(H, mask, tag, right, alpha=2.0), f64([-0.05, 0, 0, -1]))
    torch.testing.assert_close(methods.pear(H, mask, tag, right, alpha=-1.0, coef=0.5), f64([-0.325, -0.15, 0, -0.5]))
    torch.testing.assert_close(methods.pear(H, mask, tag, right, coef=3.0, least=-0.5), f64([-0.75, 0, 0, -1.5]))
    zero = methods.pear(H, mask, tag, right, coef=0.0)
    assert torch.equal(zero, torch.zeros(4, dtype=torch.float64)) and not torch.signbit(zero).any()
    # A tag at the end: there is no answer, whose mean is 0; at the beginning: no thinking.
    torch.testing.assert_close(methods.pear(H[:2], mask[:2], torch.tensor([[4, 6], [0, 2]]), torch.ones(2)), f64([-4.725, 0]))
    assert methods.pear(H.float(), mask, tag, right).dtype == torch.float64


@pytest.mark.parametrize("B, T", [(6, 37), (1, 1), (0, 4), (3, 0)])
def test_pear_is_that_of_a_loop(B, T):
    x = batch(B, T, seed=T)
    g = torch.Generator().manual_seed(1)
    begin = torch.randint(-3, max(T, 1), (B,), generator=g)
    tag = torch.stack([begin, begin + 2], 1)
    tag[begin < 0] = -1
    v, wanted = listed(x), []
    for b in range(B):
        first, behind = tag[b].tolist() if begin[b] >= 0 else (T, T)
        think = [v["entropy"][b][t] for t in range(min(first, T)) if v["mask"][b][t]]
        answer = [v["entropy"][b][t] for t in range(behind, T) if v["mask"][b][t]]
        P = max(0.0, (mean(think) if think else 0) - 0.7 * (mean(answer) if answer else 0))
        wanted.append(-1.5 * P if v["right"][b] else 0.0)
    torch.testing.assert_close(methods.pear(x["entropy"], x["mask"], tag, x["right"], alpha=0.7, coef=1.5), f64(wanted))


def test_aent_golden():
    """AReaL's rule by hand: H = .01 below a band from .05 to .23, .5 above it, .1 in it."""
    state = methods.aent(f64([2e-4, 0]), 0.01)
    assert state.tolist() == pytest.approx([2e-4 + 1e-3 * 0.04, 1])
    state = methods.aent(state, 0.1)
    assert state.tolist() == pytest.approx([2.4e-4, 2])
    assert methods.aent(state, 0.5).tolist() == pytest.approx([1e-5, 3])  # held at least
    assert methods.aent(state, 0.0, rate=1.0).tolist() == pytest.approx([3e-3, 3])  # and most
    assert methods.aent(state, 0.0, warmup=3).tolist() == pytest.approx([2.4e-4, 3])
    assert methods.aent(methods.aent(state, 0.0, warmup=3), 0.0, warmup=3)[0] == pytest.approx(2.4e-4 + 5e-5)
    for keys, message in (
        ({"low": 0.3}, "low is 0.3 and high 0.23"), ({"least": 1.0}, "least is 1 and most 0.003"), ({"rate": -1.0}, "rate is -1; wanted at least 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"method_aent: {message}"):
            methods.aent(state, 0.1, **keys)
    with pytest.raises(ValueError, match="method_aent: entropy is nan; wanted a finite number"):
        methods.aent(state, nan)


def test_ceeh_golden():
    # Published: scale .5, L* 500: L 500 → 0, 700 → −.2, 1500 → −.9, 300 → +.2; wrong ones 0.
    right, length, group = torch.tensor([1, 1, 1, 1, 0]), torch.tensor([500, 700, 1500, 300, 300]), torch.zeros(5, dtype=torch.int64)
    got = methods.ceeh(right, length, group, f64([0.5]), f64([500]), 0.9)
    torch.testing.assert_close(got.reward, f64([0, -0.2, -0.9, 0.2, 0]))
    assert got.hard.all()  # .8 is at most .9
    torch.testing.assert_close(got.accuracy, f64([0.5 + 0.2 * 0.3]))  # better: quickly
    torch.testing.assert_close(got.shortest, f64([500 - 0.2 * 200]))
    worse = methods.ceeh(right, length, group, f64([0.9]), f64([200]), 0.7)
    assert not worse.reward.any() and not worse.hard.any()  # .8 is below its record, and above the mean
    torch.testing.assert_close(worse.accuracy, f64([0.9 - 0.05 * 0.1]))
    torch.testing.assert_close(worse.shortest, f64([200 + 0.05 * 100]))
    first = methods.ceeh(right, length, group, f64([-1]), f64([nan]), nan)
    assert not first.reward.any() and not first.hard.any() and first.accuracy.item() == 0.8 and first.shortest.item() == 300
    none = methods.ceeh(0 * right, length, group, f64([0]), f64([nan]), -1.0)
    assert none.accuracy.item() == 0 and none.shortest.isnan().item() and not none.hard.any()
    assert not methods.ceeh(right, length, group, f64([0.5]), f64([500]), 0.9, scale=0.0).reward.any()


def test_ceeh_is_that_of_a_loop():
    g = torch.Generator().manual_seed(5)
    group = torch.tensor([0, 0, 0, 2, 2, 5, 5, 5, 5, 6])
    right, length = torch.rand(10, generator=g) < 0.5, torch.randint(1, 40, (10,), generator=g)
    accuracy, shortest, hard, reward = [0.4, -1, 0.2, 0.0], [10.0, nan, 25.0, 7.0], [], []
    got = methods.ceeh(right, length, group, f64(accuracy), f64(shortest), 0.45, scale=0.3)
    for k, number in enumerate((0, 2, 5, 6)):
        rows = [i for i in range(10) if group[i] == number]
        acc = mean([float(right[i]) for i in rows])
        for i in rows:
            hard.append(acc <= 0.45)
            counts = right[i] and acc >= accuracy[k] and not math.isnan(shortest[k])
            reward.append(max(-0.9, 0.3 * (shortest[k] - length[i].item()) / shortest[k]) if counts else 0.0)
        least = [length[i].item() for i in rows if right[i]]
        if least:
            shortest[k] = min(least) if math.isnan(shortest[k]) else shortest[k] + (0.2 if min(least) < shortest[k] else 0.05) * (min(least) - shortest[k])
        accuracy[k] = acc if accuracy[k] <= 0 else accuracy[k] + (0.2 if acc > accuracy[k] else 0.05) * (acc - accuracy[k])
    assert got.hard.tolist() == hard
    torch.testing.assert_close(got.reward, f64(reward))
    torch.testing.assert_close(got.accuracy, f64(accuracy))
    torch.testing.assert_close(got.shortest, f64(shortest), equal_nan=True)
    torch.library.opcheck(torch.ops.isentrope.method_ceeh.default, [right, length, group, f64(accuracy), f64([9, 2, 8, 7]), 0.45])  # which takes NaN for another NaN
    for change, message in (({"accuracy": f64([1])}, r"accuracy has shape \[1\]; wanted \[4\], one a group"), ({"scale": -1.0}, "scale is -1; wanted at least 0"),
                            ({"mean": inf}, "mean is inf"), ({"length": length[:3]}, r"length has shape \[3\]; wanted \[10\], as right")):  # fmt: skip
        given = {"right": right, "length": length, "group": group, "accuracy": f64(accuracy), "shortest": f64(shortest), "mean": 0.4, **change}
        with pytest.raises(ValueError, match=f"method_ceeh: {message}"):
            methods.ceeh(**given)


def test_siren_has_the_gradient_of_the_squared_distance():
    """By autograd, of the term itself; with the weight of the paper, and another anchor."""
    x = batch()
    kept = torch.where(x["mask"], x["entropy"] * 0.7 - 0.01, 0).requires_grad_()
    H = torch.where(x["mask"], x["entropy"], -inf).flatten()
    N = int(x["mask"].sum())
    for anchor, coef, share in ((0.3, 0.005, 0.2), (2.0, 1.5, 0.5), (1.0, 1.0, 1e-9)):
        top = H.topk(max(1, round(share * N))).indices
        m = kept.flatten()[top].mean()
        (wanted,) = torch.autograd.grad(coef * (m - anchor) ** 2, kept)
        got = methods.siren(x["entropy"], kept, x["mask"], anchor, coef=coef, share=share)
        torch.testing.assert_close(got.mean, m.detach())
        (found,) = torch.autograd.grad(-got.coef * (got.weight * kept).sum() / N, kept)
        torch.testing.assert_close(found, wanted)
        assert (got.coef > 0) == (m < anchor)  # a bonus below the anchor
    for keys in ({"anchor": nan}, {"anchor": 0.3, "coef": 0.0}):
        assert methods.siren(x["entropy"], kept, x["mask"], **keys).coef.item() == 0
    none = methods.siren(x["entropy"], kept, torch.zeros(6, 37), 0.3)
    assert none.coef.item() == none.mean.item() == 0 and not none.weight.any()
    narrow = methods.siren(x["entropy"].float(), kept.float(), x["mask"], 0.3)
    assert narrow.weight.dtype == torch.float32 and narrow.coef.dtype == torch.float64
    torch.library.opcheck(torch.ops.isentrope.method_siren.default, [x["entropy"].float(), kept.detach().float(), x["mask"], 0.3])
    for keys, message in (({"anchor": inf}, "anchor is inf"), ({"anchor": 0.0, "coef": -1.0}, "coef is -1; wanted at least 0"), ({"anchor": 0.0, "share": 0.0}, "share is 0; wanted above 0 to 1")):
        with pytest.raises(ValueError, match=f"method_siren: {message}"):
            methods.siren(x["entropy"], kept, x["mask"], **keys)


# ---- of all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_effect_is_the_identity_bit_for_bit(name, dtype):
    x = batch(dtype=dtype)
    for keys in NEUTRAL[name]:
        got = made(name, x, **keys)
        assert got.dtype == dtype and torch.equal(got, torch.where(x["mask"], x["advantage"], 0)), keys


@pytest.mark.parametrize("name", [name for name in TAKES if name not in ("repo", "empg", "gtpo", "turn_credit")])
def test_no_sign_turns(name):
    x = batch()
    for keys in EFFECT[name]:
        assert torch.equal(made(name, x, **keys).sign()[x["mask"]], x["advantage"].sign()[x["mask"]])


@pytest.mark.parametrize("name", TAKES)
def test_its_keys_move_the_gradient(name):
    x = batch()

    def gradient(advantage):
        leaf = x["logprob"].clone().requires_grad_()
        isentrope.grpo_loss(leaf, x["logprob"], advantage, x["mask"]).loss.backward()
        return leaf.grad[x["mask"]]

    plain = gradient(x["advantage"])
    first, second = (gradient(made(name, x, **keys)) for keys in EFFECT[name])
    assert not torch.equal(plain, first) and not torch.equal(plain, second) and not torch.equal(first, second)
    assert torch.isfinite(first).all() and torch.isfinite(second).all()


@pytest.mark.parametrize("name", TAKES)
def test_nothing_beside_the_mask_matters(name):
    x, keys = batch(), EFFECT[name][0]
    results = []
    for value in (nan, inf, -inf, 0.0, 1e30):
        given = {key: torch.where(x["mask"], t, value) if t.shape == x["mask"].shape and t.dtype == torch.float64 else t for key, t in x.items()}
        results.append(made(name, given, **keys))
    assert all(torch.equal(results[0], result) for result in results) and torch.isfinite(results[0]).all()


@pytest.mark.parametrize("name", TAKES)
def test_masks_of_numbers_other_layouts_and_no_token(name):
    x, keys = batch(), EFFECT[name][0]
    expected = made(name, x, **keys)
    assert torch.equal(made(name, {**x, "mask": x["mask"].int()}, **keys), expected)
    turned = {key: value.t().contiguous().t() if value.dim() == 2 else value for key, value in x.items()}
    assert torch.equal(made(name, turned, **keys), expected)
    assert not made(name, batch(none=True), **keys).any()


@pytest.mark.parametrize("name", TAKES)
def test_opcheck_and_constants(name):
    x = batch(dtype=torch.float32)
    torch.library.opcheck(getattr(torch.ops.isentrope, f"method_{name}").default, [x[argument] for argument in TAKES[name]])
    learnt = {key: value.requires_grad_() if value.is_floating_point() and key != "state" else value for key, value in x.items()}
    assert not made(name, learnt, **EFFECT[name][0]).requires_grad


def test_opcheck_of_pear():
    x = batch(dtype=torch.float32)
    torch.library.opcheck(torch.ops.isentrope.method_pear.default, [x["entropy"], x["mask"], torch.full((6, 2), -1), x["right"]])


def test_they_compile_whole():
    x = batch(dtype=torch.float32)

    def loss(logprob):
        advantage = x["advantage"]
        for name in TAKES:
            advantage = advantage + made(name, {**x, "logprob": logprob}, **EFFECT[name][0])
        return isentrope.grpo_loss(logprob, x["logprob"], advantage, x["mask"]).loss

    assert torch.equal(torch.compile(loss, fullgraph=True, backend="aot_eager")(x["logprob"]), loss(x["logprob"]))


REFUSED = [
    ("entropy_advantage", {"alpha": -1.0}, "alpha is -1; wanted at least 0, and finite"),
    ("entropy_advantage", {"kappa": 1.0}, "kappa is 1; wanted above 1"),
    ("perplexity", {"alpha": nan}, "alpha is nan; wanted a finite number"),
    ("perplexity", {"low": 1.5}, r"low is 1\.5; wanted 0 to 1"),
    ("perplexity", {"high": 0.5}, r"high is 0\.5; wanted at least 1"),
    ("position", {"gamma": -0.1}, r"gamma is -0\.1; wanted at least 0, and finite"),
    ("position", {"cap": nan}, "cap is nan; wanted at least 0"),
    ("position", {"slope": inf}, "slope is inf; wanted a finite number"),
    ("repo", {"beta": inf}, "beta is inf; wanted a finite number"),
    ("repo", {"form": "scale"}, 'form is "scale"; wanted "decorrelate" or "rescale"'),
    ("repo", {"centre": "row"}, 'centre is "row"; wanted "state" or "batch"'),
    ("gepo", {"low": 1.5}, r"low is 1\.5; wanted 0 to 1"),
    ("gepo", {"high": -1.0}, "high is -1; wanted 0 to 1"),
    ("gepo", {"rate": 2.0}, "rate is 2; wanted 0 to 1"),
    ("gepo", {"spread_high": nan}, "spread_high is nan; wanted a finite number"),
    ("empg", {"k": -1.0}, "k is -1; wanted at least 0, and finite"),
    ("empg", {"zeta": inf}, "zeta is inf; wanted at least 0, and finite"),
    ("empg", {"centre": "rows"}, 'centre is "rows"; wanted "steps", "tokens" or "none"'),
    ("hicra", {"alpha": 1.5}, r"alpha is 1\.5; wanted 0 to 1"),
    ("turn_credit", {"coef": -1.0}, "coef is -1; wanted at least 0, and finite"),
    ("turn_credit", {"discount": 1.5}, r"discount is 1\.5; wanted 0 to 1"),
    ("turn_credit", {"normalize": "batch"}, 'normalize is "batch"; wanted "turn", "group" or "none"'),
    ("gtpo", {"share": -1.0}, "share is -1; wanted at least 0"),
    ("gtpo", {"outcome": 0.0, "share": 0.0}, "share is 0; wanted at least 0, and above it where outcome is 0"),
    ("gtpo", {"over": "all"}, 'over is "all"; wanted "group" or "outcome"'),
    ("gtpo", {"eps": 2.0}, "eps is 2; wanted 0 to 1"),
]


@pytest.mark.parametrize("name, keys, message", REFUSED)
def test_refuses_keys(name, keys, message):
    with pytest.raises(ValueError, match=f"isentrope::method_{name}: {message}"):
        made(name, batch(), **keys)


@pytest.mark.parametrize("name, change, error, message", [
    *((name, {"mask": torch.ones(2, 2)}, ValueError, rf"mask has shape \[2, 2\]; wanted \[6, 37\], as {TAKES[name][0]}") for name in TAKES),
    *((name, {TAKES[name][0]: torch.zeros(6, 37, dtype=torch.int64)}, TypeError, f"{TAKES[name][0]} has dtype Long; wanted Float, Double") for name in TAKES),
    ("perplexity", {"logprob": torch.zeros(6)}, ValueError, r"logprob has shape \[6\]; wanted \[6, 37\], as advantage"),
    ("perplexity", {"group": torch.zeros(5, dtype=torch.int64)}, ValueError, r"group has shape \[5\]; wanted \[6\], one a row of advantage"),
    ("perplexity", {"group": torch.tensor([1, 0, 1, 2, 3, 4])}, ValueError, "group: completion 1 is of group 0 behind one of group 1"),
    ("gepo", {"state": torch.zeros(3, dtype=torch.float64)}, ValueError, r"state has shape \[3\]; wanted \[2\]"),
    ("gepo", {"state": torch.zeros(2)}, TypeError, "state has dtype Float; wanted Double"),
    ("empg", {"step": torch.zeros(6, 37)}, TypeError, "step has dtype Float; wanted Long, Int"),
    ("hicra", {"planning": torch.zeros(6)}, ValueError, r"planning has shape \[6\]; wanted \[6, 37\], as advantage"),
    ("turn_credit", {"reward": torch.zeros(5, 3)}, ValueError, r"reward has shape \[5, 3\]; wanted \[6, K\], a row for each of advantage"),
    ("turn_credit", {"reward": torch.full((6, 3), nan)}, ValueError, r"turn is \d+ at token \d+ of row 0, and that turn has no reward; wanted 0 … 2"),
    ("turn_credit", {"reward": torch.tensor([[nan, 1.0]] * 6)}, ValueError, "reward of turn 0 in row 0 is nan; wanted a finite number, or NaN behind"),
    ("turn_credit", {"turn": torch.zeros(6, 37)}, TypeError, "turn has dtype Float; wanted Long, Int"),
    ("gtpo", {"right": torch.zeros(2)}, ValueError, r"right has shape \[2\]; wanted \[6\], one a row of entropy"),
])  # fmt: skip
def test_refuses_tensors_by_name(name, change, error, message):
    with pytest.raises(error, match=f"method_{name}: {message}"):
        made(name, {**batch(), **change})


def test_refuses_steps_that_fall_and_tags_of_another_shape():
    x = batch()
    x["mask"][0, :3] = True
    with pytest.raises(ValueError, match="method_empg: step falls from 7 to 2 in row 0"):
        made("empg", {**x, "step": torch.where(torch.arange(37) == 0, 7, 2).expand(6, 37)})
    with pytest.raises(ValueError, match=r"method_pear: tag has shape \[6, 3\]; wanted \[6, 2\]"):
        methods.pear(x["entropy"], x["mask"], torch.zeros(6, 3, dtype=torch.int64), x["right"])
    for keys, message in (({"coef": -1.0}, "coef is -1; wanted at least 0"), ({"least": 2.0}, "least is 2; wanted at most 1"), ({"alpha": nan}, "alpha is nan")):
        with pytest.raises(ValueError, match=f"method_pear: {message}"):
            methods.pear(x["entropy"], x["mask"], torch.zeros(6, 2, dtype=torch.int64), x["right"], **keys)
