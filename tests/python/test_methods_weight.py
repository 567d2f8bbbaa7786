"""The weight methods as ops: golden numbers, an independent loop in double, gradients through a loss, what changes nothing, what is refused."""

import math

import pytest
import torch

import isentrope
from isentrope import methods

nan, inf = math.nan, math.inf


def batch(B=5, T=37, seed=0, dtype=torch.float64, none=False):
    """What a weight method may be given, of ragged completions, one of them with no token and one with holes; NaN where nothing counts."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(T) < torch.randint(1, max(T, 1) + 1, (B, 1), generator=g)
    if B > 2:
        mask[1] = False
        mask[2] = torch.rand(T, generator=g) < 0.6
    if none:
        mask[:] = False
    fill = lambda x: torch.where(mask, x, nan).to(dtype)  # noqa: E731
    logprob = -3 * torch.rand(B, T, generator=g)
    entropy = 2 * torch.rand(B, T, generator=g)
    sign = torch.tensor([1.0, -1.0]).repeat(B)[:B, None]
    return {
        "mask": mask,
        "logprob": fill(logprob),
        "rescored": fill(logprob + 0.1 * torch.randn(B, T, generator=g)),
        "old_logprob": fill(logprob + 0.4 * torch.randn(B, T, generator=g)),
        "entropy": fill(entropy),
        "old_entropy": fill(entropy * (1 + 0.1 * torch.randn(B, T, generator=g))),
        "attention": fill(torch.rand(B, T, generator=g)),
        "advantage": fill(((0.5 + torch.rand(B, 1, generator=g)) * sign).expand(B, T)),
    }


# What each takes of a batch, in its order, and keys with which it has no effect.
TAKES = {
    "top_entropy": ["entropy", "mask"],
    "surprisal_band": ["logprob", "entropy", "mask"],
    "entropy_ratio_band": ["entropy", "old_entropy", "mask"],
    "steer": ["logprob", "old_logprob", "entropy", "advantage", "mask"],
    "stare": ["logprob", "entropy", "advantage", "mask"],
    "soft_window": ["entropy", "advantage", "mask"],
    "attention_entropy": ["attention", "mask"],
    "correction": ["rescored", "old_logprob", "mask"],
}
NEUTRAL = {
    "top_entropy": [{"fraction": 1.0}],
    "surprisal_band": [{"low": 0.0, "high": inf}],
    "entropy_ratio_band": [{"low": 0.0, "high": inf}],
    "steer": [{"low": 1.0, "high": 1.0}, {"low": 1.0, "form": "exponential"}],
    "stare": [{"up": 1.0, "down": 1.0}, {"target": 0.0, "up": 2.0, "down": 0.0}],
    "soft_window": [{"window": 1}],
    "attention_entropy": [{"coef": 0.0}],
    "correction": [{"low": 1.0, "high": 1.0}, {"mode": "reject", "high": inf}],
}
# Keys that have an effect, and others with which it is another one.
EFFECT = {
    "top_entropy": ({"fraction": 0.2}, {"fraction": 0.5}),
    "surprisal_band": ({"low": 0.1, "high": 3.0}, {"low": 0.8, "high": 1.5}),
    "entropy_ratio_band": ({}, {"low": 0.8, "high": 1.2}),
    "steer": ({}, {"form": "exponential"}),
    "stare": ({"target": 9.0}, {"target": 9.0, "fraction": 0.3, "down": 0.9}),
    "soft_window": ({}, {"window": 5}),
    "attention_entropy": ({}, {"coef": 0.7}),
    "correction": ({}, {"level": "geometric", "mode": "mask", "low": 0.9, "high": 1.1}),
}


def factor_of(name, x, **keys):
    got = getattr(methods, name)(*(x[argument] for argument in TAKES[name]), **keys)
    return got.factor if name == "correction" else got


# ---- each against a loop ---------------------------------------------------------------------------------------------


def loop(x, function):
    """[B, T]: function(b, t) where mask marks, else 0."""
    B, T = x["mask"].shape
    return torch.tensor([[float(function(b, t)) if x["mask"][b, t] else 0.0 for t in range(T)] for b in range(B)], dtype=torch.float64)


def marked(x):
    return [(b, t) for b, t in x["mask"].nonzero().tolist()]


def listed(x):
    return {name: value.tolist() for name, value in x.items()}


def surprisal_band(x, low=0.1, high=3.0):
    v = listed(x)
    return loop(x, lambda b, t: low <= -v["logprob"][b][t] / v["entropy"][b][t] <= high)


def entropy_ratio_band(x, low=0.95, high=1.05):
    v = listed(x)
    return loop(x, lambda b, t: low < (v["entropy"][b][t] + 1e-8) / (v["old_entropy"][b][t] + 1e-8) < high)


def steer(x, form="linear", low=0.8, high=1.2, power=2):
    v = listed(x)
    hold = lambda l: min(max(l, math.log(1e-8)), 0.0)  # noqa: E731

    def change(b, t):
        l, old = hold(v["logprob"][b][t]), hold(v["old_logprob"][b][t])
        p = math.exp(l)
        omega = abs(v["advantage"][b][t] / math.exp(old) * p * (1 - p) ** power * (l + v["entropy"][b][t]))
        return omega if math.isfinite(omega) else 0.0

    changes = {place: change(*place) for place in marked(x)}
    if not changes:
        return torch.zeros(x["mask"].shape, dtype=torch.float64)
    least, most = min(changes.values()), max(changes.values())
    if form == "exponential":
        k = -math.log(low) / max(most, 0.02)
        return loop(x, lambda b, t: max(low, math.exp(-k * changes[b, t])))
    if least == most:
        return loop(x, lambda b, t: (low + high) / 2)
    return loop(x, lambda b, t: high - (high - low) * (changes[b, t] - least) / (most - least))


def stare(x, target=0.3, fraction=0.1, up=1.1, down=1.0):
    v = listed(x)
    places = marked(x)
    if not places or not sum(v["entropy"][b][t] for b, t in places) / len(places) < target:
        return loop(x, lambda b, t: 1)
    weight = dict.fromkeys(places, 1.0)
    for sign, factor in ((1, up), (-1, down)):
        own = sorted((place for place in places if v["advantage"][place[0]][place[1]] * sign > 0), key=lambda place: v["logprob"][place[0]][place[1]])
        for place in own[: math.ceil(fraction * len(own) - 1e-6)]:
            weight[place] = factor
    return loop(x, lambda b, t: weight[b, t])


def soft_window(x, window=101):
    v, half = listed(x), window // 2
    B, T = x["mask"].shape
    share = {}
    for b, t in marked(x):
        near = [k for k in range(max(0, t - half), min(T, t + half + 1)) if v["mask"][b][k]]
        share[b, t] = 1 / math.fsum(math.exp(v["entropy"][b][k] - v["entropy"][b][t]) for k in near)
    rows = [[share[b, t] for t in range(T) if (b, t) in share] for b in range(B)]
    return loop(x, lambda b, t: len(rows[b]) * share[b, t] / math.fsum(rows[b]) if v["advantage"][b][t] > 0 else 1)


def attention_entropy(x, coef=-0.5):
    v = listed(x)
    mean = math.fsum(v["attention"][b][t] for b, t in marked(x)) / max(len(marked(x)), 1)
    return loop(x, lambda b, t: max(0.0, 1 + coef * (v["attention"][b][t] - mean)))


def weights(x, level):
    v = listed(x)
    d = {place: v["rescored"][place[0]][place[1]] - v["old_logprob"][place[0]][place[1]] for place in marked(x)}
    hold = lambda value: math.exp(min(max(value, -20), 20))  # noqa: E731
    if level == "token":
        return {place: hold(value) for place, value in d.items()}
    rows = {b: [value for place, value in d.items() if place[0] == b] for b, _ in d}
    return {(b, t): hold(math.fsum(rows[b]) / (1 if level == "sequence" else len(rows[b]))) for b, t in d}


def correction(x, level="token", mode="truncate", low=0.0, high=2.0):
    w = weights(x, level)
    if mode == "truncate":
        return loop(x, lambda b, t: min(max(w[b, t], low), high))
    return loop(x, lambda b, t: (1 if mode == "reject" else w[b, t]) if low <= w[b, t] <= high else 0)


CASES = [
    ("surprisal_band", {}),
    ("surprisal_band", {"low": 0.5, "high": 1.2}),
    ("entropy_ratio_band", {}),
    ("entropy_ratio_band", {"low": 0.8, "high": 1.2}),
    ("steer", {}),
    ("steer", {"power": 1, "low": 0.0, "high": 3.0}),
    ("steer", {"form": "exponential"}),
    ("steer", {"form": "exponential", "low": 1e-3, "power": 1}),
    ("stare", {"target": 9.0}),
    ("stare", {"target": 9.0, "fraction": 0.35, "up": 1.5, "down": 0.9}),
    ("stare", {"target": 0.5, "down": 0.9}),
    ("soft_window", {}),
    ("soft_window", {"window": 2}),
    ("soft_window", {"window": 7}),
    ("soft_window", {"window": 31}),
    ("attention_entropy", {}),
    ("attention_entropy", {"coef": 9.0}),
    *(("correction", {"level": level, "mode": mode, "low": 0.8, "high": 1.25}) for level in ("token", "sequence", "geometric") for mode in ("truncate", "mask", "reject")),
    ("correction", {}),
]


@pytest.mark.parametrize("name, keys", CASES)
@pytest.mark.parametrize("B, T", [(5, 37), (1, 1), (3, 600), (2, 2500), (0, 7), (4, 0)])
def test_is_that_of_a_loop(name, keys, B, T):
    x = batch(B, T, seed=B * 1000 + T)
    expected = globals()[name](x, **keys)
    torch.testing.assert_close(factor_of(name, x, **keys), expected.reshape(B, T))
    narrow = {key: value if key == "mask" else value.float() for key, value in x.items()}
    got = factor_of(name, narrow, **keys)
    assert got.dtype == torch.float32
    if name in ("steer", "soft_window", "attention_entropy", "correction"):
        torch.testing.assert_close(got, globals()[name](narrow, **keys).float().reshape(B, T))
    else:
        assert torch.equal(got, globals()[name](narrow, **keys).float().reshape(B, T))


@pytest.mark.parametrize("name", TAKES)
def test_masks_of_numbers_other_layouts_and_dtypes_are_the_same(name):
    x = batch()
    keys = EFFECT[name][0]
    expected = factor_of(name, x, **keys)
    assert torch.equal(factor_of(name, {**x, "mask": x["mask"].int()}, **keys), expected)
    assert torch.equal(factor_of(name, {**x, "mask": x["mask"].float() * 0.5}, **keys), expected)
    assert torch.equal(factor_of(name, {key: value.t().contiguous().t() for key, value in x.items()}, **keys), expected)
    first = TAKES[name][0]  # the others are taken in its dtype
    others = {key: value if key in ("mask", first) else value.float() for key, value in x.items()}
    torch.testing.assert_close(factor_of(name, others, **keys), factor_of(name, {**others, **{k: v.double() for k, v in others.items() if k != "mask"}}, **keys))


# ---- golden numbers --------------------------------------------------------------------------------------------------


def golden(dtype=torch.float64):
    of = lambda rows: torch.tensor(rows, dtype=dtype)  # noqa: E731
    return {
        "mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "logprob": of([[-0.5, -2.0, -0.1], [-1.0, -3.0, nan]]),
        "rescored": of([[-0.5, -2.0, -0.1], [-1.0, -3.0, nan]]),
        "old_logprob": of([[-0.6, -1.8, -0.1], [-1.1, -2.5, nan]]),
        "entropy": of([[0.8, 1.5, 0.3], [1.1, 2.0, nan]]),
        "old_entropy": of([[0.8, 1.6, 0.2], [1.15, 2.2, nan]]),
        "attention": of([[0.5, 0.25, 0.75], [0.5, 1.0, nan]]),
        "advantage": of([[1, 1, 1], [-0.5, -0.5, nan]]),
    }


GOLDEN = [
    # By hand: -ℓ/H = 0.625, 1.333, 0.333; 0.909, 1.5.
    ("surprisal_band", {"low": 0.5, "high": 1.4}, [[1, 1, 0], [1, 0, 0]]),
    # The expression of Kwai-Klear/ERC's loss, H/H_old = 1, 0.9375, 1.5; 0.957, 0.909.
    ("entropy_ratio_band", {}, [[1, 0, 0], [1, 0, 0]]),
    ("entropy_ratio_band", {"low": 0.8, "high": 1.2}, [[1, 1, 0], [1, 1, 0]]),
    # zz-haooo/STEER compute_token_weights in float32: as it is, and with the (1 - π)² of its history.
    ("steer", {"power": 1}, [[1.0669306517, 0.8, 1.2], [1.1810139418, 0.8785799742, 0]]),
    ("steer", {}, [[1.1348967552, 0.8, 1.2], [1.1733523607, 0.8423868418, 0]]),
    ("steer", {"power": 1, "form": "exponential"}, [[0.9210501909, 0.8, 0.9880733490], [0.9782202840, 0.8338813782, 0]]),
    ("steer", {"form": "exponential"}, [[0.9632676244, 0.8, 0.9986803532], [0.9840306640, 0.8190274835, 0]]),
    # hp-luo/STARE compute_stare_token_weights, variants O1 and C2, its gate open.
    ("stare", {"target": 9.0}, [[1, 1.1, 1], [1, 1, 0]]),
    ("stare", {"target": 9.0, "fraction": 0.5, "down": 0.9}, [[1.1, 1.1, 1], [1, 0.9, 0]]),
    ("stare", {}, [[1, 1, 1], [1, 1, 0]]),  # the mean, 1.14, is no longer below 0.3
    # By hand, window 3: shares e^0.8/(e^0.8+e^1.5) = 0.331812, e^1.5/(e^0.8+e^1.5+e^0.3) = 0.556242, e^0.3/(e^1.5+e^0.3) = 0.231475.
    ("soft_window", {"window": 3}, [[0.889156531, 1.490559816, 0.620283653], [1, 1, 0]]),
    # By hand: the mean is 0.6.
    ("attention_entropy", {"coef": 2.0}, [[0.8, 0.3, 1.3], [0.8, 1.8, 0]]),
    ("attention_entropy", {"coef": -3.0}, [[1.3, 2.05, 0.55], [1.3, 0, 0]]),
    # verl 0.9.1 compute_rollout_correction_weights with rollout_is token and sequence, threshold 1.05 and "0.7_1.2".
    ("correction", {"high": 1.05}, [[1.05, 0.8187307531, 1], [1.05, 0.6065306597, 0]]),
    ("correction", {"mode": "mask", "low": 0.7, "high": 1.2}, [[1.1051709181, 0.8187307531, 1], [1.1051709181, 0, 0]]),
    ("correction", {"level": "sequence", "high": 1.05}, [[0.9048374180] * 3, [0.6703200460, 0.6703200460, 0]]),
    ("correction", {"level": "sequence", "mode": "mask", "low": 0.7, "high": 1.2}, [[0.9048374180] * 3, [0, 0, 0]]),
    # verl 0.9.1 compute_rollout_rejection_mask, token_k1, seq_sum_k1 and seq_mean_k1 with "0.85_1.3", bounds of 1/w.
    ("correction", {"mode": "reject", "low": 1 / 1.3, "high": 1 / 0.85}, [[1, 1, 1], [1, 0, 0]]),
    ("correction", {"level": "sequence", "mode": "reject", "low": 1 / 1.3, "high": 1 / 0.85}, [[1, 1, 1], [0, 0, 0]]),
    ("correction", {"level": "geometric", "mode": "reject", "low": 1 / 1.3, "high": 1 / 0.85}, [[1, 1, 1], [1, 1, 0]]),
]


@pytest.mark.parametrize("name, keys, expected", GOLDEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden(name, keys, expected, dtype):
    torch.testing.assert_close(factor_of(name, golden(dtype), **keys), torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=1e-6)


# ---- what is special -------------------------------------------------------------------------------------------------


def test_surprisal_band_at_its_ends():
    """A token that is certain has quotient 0, rounding below 0 is none, a bound is inside, and NaN does not learn."""
    logprob, entropy = torch.tensor([[-1e-9, 0.0, 1e-7, -1.0, -1.0, -3.0, nan, -1.0]]), torch.tensor([[0.0, 0.0, 0.0, 10.0, 0.0, 1.0, 1.0, nan]])
    mask = torch.ones(1, 8)
    assert methods.surprisal_band(logprob, entropy, mask).tolist() == [[0, 0, 0, 1, 0, 1, 0, 0]]
    assert methods.surprisal_band(logprob, entropy, mask, low=0).tolist() == [[0, 1, 1, 1, 0, 1, 0, 0]]


def test_entropy_ratio_band_of_one_policy_and_of_none():
    H = torch.rand(3, 9)
    H[0, 0] = 0
    assert methods.entropy_ratio_band(H, H, torch.ones(3, 9)).all()
    assert not methods.entropy_ratio_band(H, torch.full_like(H, nan), torch.ones(3, 9)).any()


def test_steer_without_range_and_with_what_is_not_finite():
    x = golden()
    even = {**x, "advantage": torch.zeros(2, 3, dtype=torch.float64)}
    assert factor_of("steer", even, low=0.5, high=1.0).tolist() == [[0.75] * 3, [0.75, 0.75, 0]]
    assert factor_of("steer", even, low=0.5, form="exponential").tolist() == [[1] * 3, [1, 1, 0]]
    x["advantage"][0, 1] = inf  # counts as no change
    x["entropy"][1, 1] = nan
    assert factor_of("steer", x)[0, 1] == factor_of("steer", x)[1, 1] == 1.2


def test_stare_takes_the_earlier_of_equal_tokens_and_looks_at_its_gate():
    logprob = torch.full((2, 4), -1.0)
    logprob[0, 0] = -0.5
    entropy, advantage, mask = torch.full((2, 4), 0.25), torch.tensor([[1.0], [-1.0]]).expand(2, 4), torch.ones(2, 4)
    assert methods.stare(logprob, entropy, advantage, mask, fraction=0.5, down=0.9).tolist() == [pytest.approx([1, 1.1, 1.1, 1]), pytest.approx([0.9, 0.9, 1, 1])]
    assert (methods.stare(logprob, entropy, advantage, mask, target=0.25) == 1).all()  # not below
    assert (methods.stare(logprob, entropy * nan, advantage, mask) == 1).all()
    logprob[0, 3] = nan  # the most surprising
    assert methods.stare(logprob, entropy, advantage, mask)[0].tolist() == pytest.approx([1, 1, 1, 1.1])


def test_stare_counts_like_the_released_code():
    """⌈fraction · n⌉ where 0.1 · 30 is above 3 in doubles."""
    advantage, mask = torch.ones(1, 30), torch.ones(1, 30)
    for n in range(1, 31):
        taken = (methods.stare(-torch.rand(1, n), torch.zeros(1, n), advantage[:, :n], mask[:, :n]) > 1).sum().item()
        assert taken == max(1, int(n * 0.1 + 0.999999))


def test_soft_window_keeps_small_entropies_beside_large_ones():
    """A running sum of differences would lose them: exp(-60) after exp(0) left the window."""
    H = torch.zeros(1, 400, dtype=torch.float64)
    H[0, :100] = 60
    x = {"entropy": H, "advantage": torch.ones_like(H), "mask": torch.ones(1, 400, dtype=torch.bool)}
    torch.testing.assert_close(methods.soft_window(H, x["advantage"], x["mask"], window=7), soft_window(x, window=7))
    torch.testing.assert_close(methods.soft_window(H + 1000, x["advantage"], x["mask"], window=7), soft_window(x, window=7))
    narrow = methods.soft_window(H.float(), x["advantage"].float(), x["mask"], window=7)
    torch.testing.assert_close(narrow, soft_window(x, window=7).float())


@pytest.mark.parametrize("window", [1, 2, 101, 4000, 2**40])
def test_soft_window_has_mean_one_over_a_right_answer(window):
    x = batch(4, 1500)
    got = methods.soft_window(x["entropy"], torch.ones_like(x["entropy"]), x["mask"], window=window)
    rows = x["mask"].sum(1)
    torch.testing.assert_close(got.sum(1), rows.double())


def test_soft_window_is_constant_on_wrong_answers_and_where_entropy_is():
    x = batch()
    assert torch.equal(methods.soft_window(x["entropy"], -torch.ones_like(x["entropy"]), x["mask"]), x["mask"].double())
    assert torch.equal(methods.soft_window(x["entropy"], torch.zeros_like(x["entropy"]), x["mask"]), x["mask"].double())
    same = methods.soft_window(torch.ones(1, 64), torch.ones(1, 64), torch.ones(1, 64), window=200)
    torch.testing.assert_close(same, torch.ones(1, 64))


def test_correction_of_tokens_without_a_log_prob_and_beyond_exp():
    """As TRL: a token whose log-prob one side lacks has weight 1. Beyond ±20 the weight is that of 20."""
    d = torch.tensor([[nan, inf, -inf, 30.0, -30.0, 0.0]])
    zero, mask = torch.zeros(1, 6), torch.ones(1, 6)
    torch.testing.assert_close(methods.correction(d, zero, mask, high=inf).factor.log(), torch.tensor([[0.0, 20, -20, 20, -20, 0]]))
    for level in ("sequence", "geometric"):
        got = methods.correction(torch.tensor([[nan, 0.5, 0.25]]), zero[:, :3], mask[:, :3], level=level, high=inf).factor
        torch.testing.assert_close(got, torch.full((1, 3), math.exp(0.75 / (1 if level == "sequence" else 3))))


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_correction_of_one_policy_changes_nothing(level):
    x = batch()
    for mode in ("truncate", "mask", "reject"):
        got = methods.correction(x["rescored"], x["rescored"], x["mask"], level=level, mode=mode, low=1.0, high=1.0, advantage=x["advantage"], delta=0.0)
        assert torch.equal(got.factor, x["mask"].double())
        assert got.removed is None or (mode == "reject" and not got.removed.any())


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_correction_removes_by_rejection_alone(level):
    x = batch()
    keys = {"level": level, "low": 0.9, "high": 1.1}
    masked, rejected = (methods.correction(x["rescored"], x["old_logprob"], x["mask"], mode=mode, **keys) for mode in ("mask", "reject"))
    assert masked.removed is None
    assert torch.equal(rejected.removed, (masked.factor == 0) & x["mask"]) and rejected.removed.any()
    assert torch.equal(rejected.factor, (masked.factor > 0).double())


def test_correction_drops_sequences_that_fell():
    """TRL 1.16.0 get_off_policy_mask: of two rows of negative advantage the one whose log-prob fell by 0.25 on average; a fall of delta
    itself stays, and so does a row of positive advantage."""
    old, logprob = torch.zeros(4, 3), torch.tensor([[-0.5, -0.25, 0.0], [0.0, 0.0, -0.5], [-9.0, -9.0, -9.0], [-0.75, 0.0, 0.0]])
    logprob[1, 2] = nan  # no evidence
    advantage, mask = torch.tensor([[-1.0], [-1.0], [1.0], [-1.0]]).expand(4, 3), torch.ones(4, 3)
    for delta, kept in ((0.2, [0, 1, 1, 0]), (0.25, [1, 1, 1, 1])):
        got = methods.correction(old, old, mask, advantage=advantage, logprob=logprob, delta=delta)
        assert got.factor.tolist() == [[float(row)] * 3 for row in kept] and got.removed is None
    got = methods.correction(logprob, old, mask, advantage=advantage, delta=0.2, low=1.0, high=1.0)  # of rescored where there is no other
    assert got.factor[:, 0].tolist() == [0, 1, 1, 0]


# ---- mismatch --------------------------------------------------------------------------------------------------------


def test_mismatch_golden():
    """verl 0.9.1 compute_offpolicy_metrics and compute_is_metrics of the same numbers."""
    x = golden()
    got = methods.mismatch(x["logprob"], x["old_logprob"], x["mask"])
    wanted = [0.5, 0.18, 0.1, 0.027120649734140814, -0.10379900108691764, -0.36597014140239814, 0.9271206479341407, 0.9591070701892819]
    torch.testing.assert_close(torch.stack(list(got)), torch.tensor(wanted, dtype=torch.float64), rtol=1e-7, atol=1e-8)  # verl adds 1e-8 to counts
    got = methods.mismatch(x["logprob"], x["old_logprob"], x["mask"], high=1.05)
    torch.testing.assert_close(torch.stack([got.weight, got.effective]), torch.tensor([0.9050522807480186, 0.9652146370870115], dtype=torch.float64), rtol=1e-7, atol=0)


def mismatch(x, high=inf):
    v = listed(x)
    rows = {}
    for b, t in marked(x):
        rows.setdefault(b, []).append(v["logprob"][b][t] - v["old_logprob"][b][t])
    d = [value for row in rows.values() for value in row]
    if not d:
        return [0.0] * 7 + [1.0]
    mean = lambda values: math.fsum(values) / len(values)  # noqa: E731
    w = [math.exp(value) for value in d]
    clipped = [min(value, high) for value in w]
    k3 = mean([math.expm1(value) - value for value in d])
    chi2 = mean([value * value for value in w]) - 1
    sequence = mean([math.exp(2 * math.fsum(row)) for row in rows.values()]) - 1
    return [max(map(abs, d)), mean([abs(z) for z in d]), -mean(d), k3, chi2, sequence, mean(clipped), mean(clipped) ** 2 / mean([z * z for z in clipped])]


@pytest.mark.parametrize("B, T", [(5, 37), (1, 1), (2, 2500), (0, 7), (4, 0)])
@pytest.mark.parametrize("high", [None, 1.2])
def test_mismatch_is_that_of_a_loop(B, T, high):
    x = batch(B, T, seed=3)
    exact = torch.tensor(mismatch(x, inf if high is None else high), dtype=torch.float64)
    torch.testing.assert_close(torch.stack(list(methods.mismatch(x["logprob"], x["old_logprob"], x["mask"], high=high))), exact)
    narrow = {key: value if key == "mask" else value.float() for key, value in x.items()}
    exact = torch.tensor(mismatch(narrow, inf if high is None else high), dtype=torch.float64)
    got = torch.stack(list(methods.mismatch(narrow["logprob"], narrow["old_logprob"], narrow["mask"], high=high)))
    torch.testing.assert_close(got.float(), exact.float())


def test_mismatch_keeps_the_digits_of_a_small_k3():
    """exp d - 1 - d in float32 would be right to no digit at d = 1e-4."""
    d = torch.full((2, 50), 1e-4)
    got = methods.mismatch(d, torch.zeros_like(d), torch.ones_like(d))
    small = float(d[0, 0])
    torch.testing.assert_close(got.k3.float(), torch.tensor(small**2 / 2 + small**3 / 6))


# ---- of all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAKES)
def test_no_effect_is_the_identity_bit_for_bit(name):
    x = batch()
    for dtype in (torch.float32, torch.float64):
        given = {key: value if key == "mask" else value.to(dtype) for key, value in x.items()}
        if name == "correction":
            given["old_logprob"] = given["rescored"]
        for keys in NEUTRAL[name]:
            factor = factor_of(name, given, **keys)
            assert torch.equal(factor, given["mask"].to(dtype)), keys
            assert torch.equal((given["advantage"] * factor)[given["mask"]], given["advantage"][given["mask"]])


@pytest.mark.parametrize("name", TAKES)
def test_its_keys_move_the_gradient(name):
    x = batch()

    def gradient(factor):
        leaf = x["logprob"].clone().requires_grad_()
        isentrope.grpo_loss(leaf, x["old_logprob"], x["advantage"] * factor, x["mask"], clip_low=10.0, clip_high=10.0).loss.backward()
        return leaf.grad[x["mask"]]

    plain = gradient(x["mask"].double())
    first, second = (gradient(factor_of(name, x, **keys)) for keys in EFFECT[name])
    assert not torch.equal(plain, first) and not torch.equal(plain, second) and not torch.equal(first, second)
    assert torch.isfinite(first).all() and torch.isfinite(second).all()


@pytest.mark.parametrize("name", [*TAKES, "mismatch"])
def test_nothing_beside_the_mask_matters(name):
    x, keys = batch(), EFFECT.get(name, [{}])[0]
    results = []
    for value in (nan, inf, -inf, 0.0, 1e30):
        given = {key: t if key == "mask" else torch.where(x["mask"], t, value) for key, t in x.items()}
        if name == "mismatch":
            results.append(torch.stack(list(methods.mismatch(given["logprob"], given["old_logprob"], given["mask"]))))
        else:
            results.append(factor_of(name, given, **keys))
    assert all(torch.equal(results[0], result) for result in results) and torch.isfinite(results[0]).all()


@pytest.mark.parametrize("name", TAKES)
def test_no_token_at_all(name):
    x = batch(none=True)
    for keys in EFFECT[name]:
        assert torch.equal(factor_of(name, x, **keys), torch.zeros(5, 37, dtype=torch.float64))


@pytest.mark.parametrize("name", [*TAKES, "mismatch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_threads_gives_the_same_bits(name, dtype):
    x = batch(9, 3001, dtype=dtype)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        if name == "mismatch":
            results.append(torch.stack(list(methods.mismatch(x["logprob"], x["old_logprob"], x["mask"]))))
        else:
            results.append(torch.cat([factor_of(name, x, **keys) for keys in EFFECT[name]]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", [*TAKES, "mismatch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(name, dtype):
    x = batch(dtype=dtype)
    arguments = [x[argument] for argument in TAKES.get(name, ["logprob", "old_logprob", "mask"])]
    torch.library.opcheck(getattr(torch.ops.isentrope, f"method_{name}").default, arguments)


def test_they_compile_whole():
    x = batch(dtype=torch.float32)

    def loss(logprob, given):
        factor = torch.ones_like(logprob)
        for name in TAKES:
            factor = factor * factor_of(name, {**given, "logprob": logprob}, **EFFECT[name][0])
        gap = methods.mismatch(logprob, given["old_logprob"], given["mask"])
        return isentrope.grpo_loss(logprob, given["old_logprob"], given["advantage"] * factor, given["mask"]).loss + gap.mean.float()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for T in (37, 21):
        given = {key: value[:, :T] for key, value in x.items()}
        assert torch.equal(compiled(given["logprob"], given), loss(given["logprob"], given))


@pytest.mark.parametrize("name", TAKES)
def test_results_are_constants(name):
    x = {key: value if key == "mask" else value.clone().requires_grad_() for key, value in batch().items()}
    assert not factor_of(name, x, **EFFECT[name][0]).requires_grad


REFUSED = [
    ("surprisal_band", {"low": -0.1}, r"low is -0\.1; wanted at least 0"),
    ("surprisal_band", {"low": 2.0, "high": 1.0}, "high is 1; wanted at least low"),
    ("surprisal_band", {"high": nan}, "high is nan; wanted at least low"),
    ("entropy_ratio_band", {"low": -1.0}, "low is -1; wanted at least 0"),
    ("entropy_ratio_band", {"low": 1.0, "high": 1.0}, "high is 1; wanted above low"),
    ("steer", {"form": "square"}, 'form is "square"; wanted "linear" or "exponential"'),
    ("steer", {"low": 1.5}, r"high is 1\.2; wanted at least low, and finite"),
    ("steer", {"low": -1.0}, "low is -1; wanted at least 0"),
    ("steer", {"form": "exponential", "low": 0.0}, "low is 0; wanted 1e-6 to 1 with form exponential"),
    ("steer", {"power": 3}, "power is 3; wanted 1 or 2"),
    ("stare", {"fraction": 0.0}, "fraction is 0; wanted above 0 to 1"),
    ("stare", {"up": -1.0}, "up is -1; wanted at least 0, and finite"),
    ("stare", {"down": nan}, "down is nan; wanted at least 0, and finite"),
    ("soft_window", {"window": 0}, "window is 0; wanted at least 1"),
    ("attention_entropy", {"coef": inf}, "coef is inf; wanted a finite number"),
    ("correction", {"level": "word"}, 'level is "word"; wanted "token", "sequence" or "geometric"'),
    ("correction", {"mode": "clip"}, 'mode is "clip"; wanted "truncate", "mask" or "reject"'),
    ("correction", {"low": 3.0}, "high is 2; wanted at least low, and above 0"),
    ("correction", {"low": -1.0}, "low is -1; wanted at least 0"),
    ("correction", {"delta": 0.5}, "delta is 0.5 without advantage; wanted the advantage"),
    ("correction", {"delta": -1.0}, "delta is -1; wanted at least 0"),
    ("mismatch", {"high": 0.0}, "high is 0; wanted above 0"),
]


@pytest.mark.parametrize("name, keys, message", REFUSED)
def test_refuses_keys(name, keys, message):
    x = batch()
    with pytest.raises(ValueError, match=f"isentrope::method_{name}: {message}"):
        getattr(methods, name)(*(x[argument] for argument in TAKES.get(name, ["logprob", "old_logprob", "mask"])), **keys)


@pytest.mark.parametrize("name", [*TAKES, "mismatch"])
def test_refuses_tensors_by_name(name):
    x, takes = batch(), TAKES.get(name, ["logprob", "old_logprob", "mask"])
    function = getattr(methods, name)
    for place, argument in enumerate(takes):
        for wrong, error, message in (
            (torch.zeros(2, 2), ValueError, rf"method_{name}: {argument} has shape \[2, 2\]; wanted \[5, 37\], as {takes[0]}"),
            (torch.zeros(5, 37, dtype=torch.int64), TypeError, f"method_{name}: {argument} has dtype Long; wanted Float, Double"),
            ("text", TypeError, f"method_{name}: {argument} is 'text', of type str; wanted a tensor"),
        ):
            given = [x[a] for a in takes]
            given[place] = wrong
            if place == 0 and isinstance(wrong, torch.Tensor) and wrong.shape == (2, 2):
                message = rf"method_{name}: mask has shape \[5, 37\]; wanted \[2, 2\], as {argument}"
            if argument == "mask" and isinstance(wrong, torch.Tensor) and wrong.dtype == torch.int64:
                continue  # a mask of numbers
            with pytest.raises(error, match=message):
                function(*given)
    with pytest.raises(ValueError, match=f"method_{name}: {takes[0]} has 1 dimensions; wanted"):
        function(*(x[a][0] for a in takes))


# ---- the exact quantile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", ["random", "few", "one", "sorted", "waves", "special"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (8, 5000), (37, 3001)])
def test_top_entropy_finds_the_share_of_a_stable_sort(dtype, values, shape):
    """Numbers for which a sample misleads, too: few values, sorted, with the period of a sample."""
    n = shape[0] * shape[1]
    place = torch.arange(n, dtype=torch.float64)
    x = {
        "random": torch.randn(n, dtype=torch.float64),
        "few": (torch.rand(n) * 3).floor().double(),
        "one": torch.zeros(n, dtype=torch.float64),
        "sorted": place,
        "waves": (place % 128 == 5).double() + torch.sin(place) * 1e-3,
        "special": torch.tensor([inf, -inf, nan, -0.0, 0.0, 1e-310, -1e-40, 1.0], dtype=torch.float64).repeat(n // 8 + 1)[:n],
    }[values].reshape(shape).to(dtype)  # fmt: skip
    for mask in (torch.ones(shape, dtype=torch.bool), torch.rand(shape) < 0.3):
        if not mask.any():
            continue
        flat = x[mask]
        order = torch.where(flat.isnan(), inf, flat)  # NaN highest, above infinity
        order = sorted(range(flat.numel()), key=lambda i: (not flat[i].isnan().item(), -order[i].item(), i)) if n <= 300 else None
        for fraction in (1e-4, 0.2, 0.5, 0.93, 1.0):
            k = max(1, math.floor(fraction * flat.numel() + 0.5))
            got = methods.top_entropy(x, mask, fraction=fraction)[mask]
            assert got.sum() == k
            if order is None:
                descending = torch.where(flat.isnan(), torch.finfo(dtype).max, flat.clamp(max=torch.finfo(dtype).max / 2))
                order_of_all = descending.sort(descending=True, stable=True).indices
            else:
                order_of_all = torch.tensor(order)
            wanted = torch.zeros(flat.numel(), dtype=dtype)
            wanted[order_of_all[:k]] = 1
            assert torch.equal(got, wanted), (values, fraction)
