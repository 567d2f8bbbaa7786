"""clip_b, clip_v and divergence_mask as ops: golden numbers, an independent loop in double, what the whole distribution does, gradients
through a loss, what changes nothing, what is refused."""

import math

import pytest
import torch

import isentrope
from isentrope import methods

nan, inf = math.nan, math.inf
TAKES = {
    "clip_b": ["logprob", "entropy", "advantage", "mask"],
    "clip_v": ["logprob", "entropy", "sum_p2", "sum_p2_logp", "advantage", "mask"],
    "divergence_mask": ["logprob", "old_logprob", "sum_p2", "old_sum_p2", "advantage", "mask"],
}
NEUTRAL = {
    "clip_b": [{"mu_low": inf}, {"mu_low": 1e4, "mu_high": 1e4, "signs": "both"}],
    "clip_v": [{"mu_low": inf}, {"mu_low": inf, "mu_high": inf, "signs": "both", "max_frac": 1.0}],
    "divergence_mask": [{"delta": 1.0}, {"delta": inf, "divergence": "kl"}],
}
EFFECT = {
    "clip_b": ({"mu_low": 0.5}, {"mu_low": 0.5, "mu_high": 0.5, "signs": "both"}),
    "clip_v": ({"mu_low": 0.2, "max_frac": 1.0}, {"mu_low": 0.2, "max_frac": 0.02}),
    "divergence_mask": ({"delta": 0.02}, {"delta": 0.1}),
}


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


def moments(logits, token):
    l = logits.log_softmax(-1)
    p = l.exp()
    return l.gather(-1, token[..., None])[..., 0], -(p * l).sum(-1), (p * p).sum(-1), (p * p * l).sum(-1)


def batch(B=6, T=37, seed=0, dtype=torch.float64, none=False):
    """Statistics of real distributions over 11 tokens, of a policy and one that it came from; NaN where nothing counts."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(T) < torch.randint(1, max(T, 1) + 1, (B, 1), generator=g)
    if B > 2:
        mask[1] = False
    if none:
        mask[:] = False
    old = 1.5 * torch.randn(B, T, 11, generator=g, dtype=torch.float64)
    new = old + 0.4 * torch.randn(B, T, 11, generator=g, dtype=torch.float64)
    token = torch.randint(0, 11, (B, T), generator=g)
    fill = lambda x: torch.where(mask, x, nan).to(dtype)  # noqa: E731
    x = dict(zip(("logprob", "entropy", "sum_p2", "sum_p2_logp"), map(fill, moments(new, token))))
    x["old_logprob"], _, x["old_sum_p2"], _ = map(fill, moments(old, token))
    x["advantage"] = fill(torch.randn(B, 1, generator=g, dtype=torch.float64).expand(B, T))
    return {**x, "mask": mask, "logits": new, "old_logits": old, "token": token}


def called(name, x, **keys):
    return getattr(methods, name)(*(x[argument] for argument in TAKES[name]), **keys)


def factor_of(name, x, **keys):
    """[B, T]: 0 where the method takes a token away."""
    got = called(name, x, **keys)
    return got if name == "divergence_mask" else (x["mask"] & ~got).to(x["logprob"].dtype)


# ---- each against a loop ---------------------------------------------------------------------------------------------


def listed(x):
    return {name: value.tolist() for name, value in x.items()}


def taken(x, deviation, mu_low, mu_high, signs, max_frac):
    """The places that the rule takes out, of deviations by place and the standard deviation of those."""
    v, (z, s) = listed(x), deviation
    if not z or s < 1e-12:
        return set()
    beyond = {}
    for (b, t), value in z.items():
        a = v["advantage"][b][t]
        if (signs != "pos" and a < 0) or (signs != "neg" and a > 0):
            far = max(-value - mu_low * s, value - mu_high * s if mu_high is not None else -1)
            if far > 0:
                beyond[b, t] = far
    if len(beyond) > max_frac * len(z):
        most = max(1, int(max_frac * len(z)))
        return set(sorted(beyond, key=lambda place: (-beyond[place], place))[:most])
    return set(beyond)


def discriminators(x):
    v = listed(x)
    return {(b, t): math.exp(v["logprob"][b][t]) * (v["entropy"][b][t] + v["logprob"][b][t]) for b, t in x["mask"].nonzero().tolist()}


def spread(values):
    values = list(values)
    m = math.fsum(values) / max(len(values), 1)
    return m, math.sqrt(math.fsum((w - m) ** 2 for w in values) / max(len(values), 1))


def clip_b(x, mu_low=2.5, mu_high=None, signs="neg", max_frac=1.0):
    S = discriminators(x)
    m, s = spread(S.values())
    return taken(x, ({place: value - m for place, value in S.items()}, s), mu_low, mu_high, signs, max_frac)


def clip_v(x, mu_low=8.5, mu_high=None, signs="neg", max_frac=1e-4):
    p = x["logits"].softmax(-1)
    whole = (p * p * (-(p * p.log()).sum(-1, keepdim=True) + p.log())).sum(-1)  # E of S, by its definition
    z = {(b, t): value - whole[b, t].item() for (b, t), value in discriminators(x).items()}
    return taken(x, (z, spread(z.values())[1]), mu_low, mu_high, signs, max_frac)


CASES = [
    ("clip_b", {}), *(("clip_b", keys) for keys in EFFECT["clip_b"]),
    ("clip_b", {"mu_low": 0.0, "signs": "pos"}), ("clip_b", {"mu_low": inf, "mu_high": 0.7, "signs": "both"}),
    ("clip_b", {"mu_low": 0.3, "max_frac": 0.05}), ("clip_b", {"mu_low": 0.3, "mu_high": 0.3, "signs": "both", "max_frac": 1e-4}),
    ("clip_v", {}), ("clip_v", {"mu_low": 2.0}), *(("clip_v", keys) for keys in EFFECT["clip_v"]),
    ("clip_v", {"mu_low": 0.5, "mu_high": 0.5, "signs": "both", "max_frac": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize("name, keys", CASES)
@pytest.mark.parametrize("B, T", [(6, 37), (1, 1), (9, 200), (0, 7), (4, 0)])
def test_is_that_of_a_loop(name, keys, B, T):
    x = batch(B, T, seed=B * 1000 + T)
    got = called(name, x, **keys)
    assert got.dtype == torch.bool and got.shape == (B, T)
    assert set(map(tuple, got.nonzero().tolist())) == globals()[name](x, **keys)
    if B > 5 and keys in EFFECT[name]:
        assert 0 < got.sum() < x["mask"].sum()


@pytest.mark.parametrize("divergence, delta", [("tv", 0.0), ("tv", 0.02), ("tv", 0.1), ("kl", 0.0), ("kl", 0.002), ("kl", 0.02)])
def test_divergence_mask_is_that_of_a_loop(divergence, delta):
    x = batch(9, 61, seed=3)
    v, wanted = listed(x), torch.zeros(9, 61, dtype=torch.float64)
    for b, t in x["mask"].nonzero().tolist():
        pi, mu = math.exp(v["logprob"][b][t]), math.exp(v["old_logprob"][b][t])
        D = abs(pi - mu) if divergence == "tv" else mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi))
        further = v["advantage"][b][t] * (pi - mu - (v["sum_p2"][b][t] - v["old_sum_p2"][b][t]) / 2) > 0
        wanted[b, t] = not (D > delta and further)
    got = called("divergence_mask", x, delta=delta, divergence=divergence)
    assert torch.equal(got, wanted)
    assert 0 < (got[x["mask"]] == 0).sum() < x["mask"].sum()


# ---- golden numbers, and what they stand for -------------------------------------------------------------------------

P = f64([0.7, 0.2, 0.1])  # H = .801819, S = (.311601, −.161524, −.150077), of mean .170808 under P


def one_distribution(advantage):
    H, p2, p2_logp = 0.8018185525, 0.54, float((P * P * P.log()).sum())
    of = lambda value: torch.full((1, 3), value, dtype=torch.float64)  # noqa: E731
    return {"logprob": P.log()[None], "entropy": of(H), "sum_p2": of(p2), "sum_p2_logp": of(p2_logp), "advantage": f64([advantage]), "mask": torch.ones(1, 3)}


def test_golden_discriminators():
    """Of the three tokens: S about their mean 0 is .311601, −.161524, −.150077 with σ .219...; D = E − S: −.140793, .332332, .320885."""
    S = f64([0.311601, -0.161524, -0.150077])
    x = one_distribution([-1, -1, -1])
    m, s = S.mean(), S.std(correction=0)
    for place, mu in ((1, (m - S[1]) / s), (2, (m - S[2]) / s)):  # a token goes where the bound is passed, and not before
        assert not called("clip_b", x, mu_low=float(mu) + 1e-4)[0, place] and called("clip_b", x, mu_low=float(mu) - 1e-4)[0, place]
    assert not called("clip_b", x, mu_low=0.0)[0, 0] and called("clip_b", x, mu_low=inf, mu_high=1.0)[0].tolist() == [True, False, False]
    D = f64([-0.140793, 0.332332, 0.320885])
    s = D.std(correction=0)
    for place in (1, 2):
        mu = float(D[place] / s)
        assert not called("clip_v", x, mu_low=mu + 1e-4, max_frac=1.0)[0, place] and called("clip_v", x, mu_low=mu - 1e-4, max_frac=1.0)[0, place]
    assert called("clip_v", x, mu_low=0.0)[0].tolist() == [False, True, False]  # the cap leaves the farthest
    assert called("clip_v", x, mu_low=0.0, max_frac=1.0)[0].tolist() == [False, True, True]


def test_signs_choose_by_the_advantage():
    for signs, wanted in (("neg", [False, True, False]), ("pos", [False, False, True]), ("both", [False, True, True])):
        assert called("clip_b", one_distribution([-1, -1, 1]), mu_low=0.1, signs=signs)[0].tolist() == wanted
        assert not called("clip_b", one_distribution([0, 0, 0]), mu_low=0.1, signs=signs).any()


def test_tokens_alike_all_stay():
    x = {name: value[:, :1].expand(1, 3) for name, value in one_distribution([-1, -1, -1]).items()}
    assert not called("clip_b", x, mu_low=0.0).any() and not called("clip_v", x, mu_low=0.0, max_frac=1.0).any()


def test_divergence_mask_golden():
    """μ = (.5, .3, .2) → π = (.7, .2, .1): the sum is .54 − .43 = .11 (its exact form), (.54 − .38) / 2 = .08 of ours."""
    mu = f64([0.5, 0.3, 0.2])
    x = {"logprob": P.log()[None], "old_logprob": mu.log()[None], "sum_p2": torch.full((1, 3), 0.54, dtype=torch.float64),
         "old_sum_p2": torch.full((1, 3), 0.38, dtype=torch.float64), "mask": torch.ones(1, 3)}  # fmt: skip
    # u = .2, −.1, −.1: u − .08 > 0 for the first alone, so that it leaves with A > 0, the others with A < 0.
    for a, wanted in ((1.0, [0, 1, 1]), (-1.0, [1, 0, 0])):
        x["advantage"] = torch.full((1, 3), a, dtype=torch.float64)
        assert called("divergence_mask", x, delta=0.05)[0].tolist() == wanted
        assert called("divergence_mask", x, delta=0.15)[0].tolist() == [0 if a > 0 else 1, 1, 1]
        assert called("divergence_mask", x, delta=0.25)[0].tolist() == [1, 1, 1]
    # A token whose probability rose a little while the whole sharpened: the ratio says further, the whole comes nearer.
    x = {"logprob": f64([[math.log(0.35)]]), "old_logprob": f64([[math.log(0.3)]]), "sum_p2": f64([[0.6]]), "old_sum_p2": f64([[0.4]]),
         "advantage": f64([[1.0]]), "mask": torch.ones(1, 1)}  # fmt: skip
    assert called("divergence_mask", x, delta=0.0).item() == 1
    assert called("divergence_mask", {**x, "sum_p2": x["old_sum_p2"]}, delta=0.0).item() == 0


def test_divergence_mask_predicts_the_step():
    """Against the divergence of the whole distribution behind a small step of the policy gradient, where policies are near each other."""
    g = torch.Generator().manual_seed(7)
    old = 1.5 * torch.randn(4000, 11, generator=g, dtype=torch.float64)
    new = old + 0.05 * torch.randn(4000, 11, generator=g, dtype=torch.float64)
    token = torch.multinomial(old.softmax(-1), 1, generator=g)[:, 0]
    A = torch.where(torch.rand(4000, generator=g) < 0.5, 1.0, -1.0).double()
    step = 1e-6 * A[:, None] * (torch.nn.functional.one_hot(token, 11) - new.softmax(-1))
    kl = lambda z: (old.softmax(-1) * (old.log_softmax(-1) - z.log_softmax(-1))).sum(-1)  # noqa: E731
    rose = kl(new + step) > kl(new)
    (l, _, p2, _), (mu, _, q2, _) = moments(new, token), moments(old, token)
    dropped = methods.divergence_mask(l[None], mu[None], p2[None], q2[None], A[None], torch.ones(1, 4000), delta=0.0)[0] == 0
    by_ratio = A * (l - mu) > 0
    wrong, wrong_by_ratio = ((said != rose).double().mean().item() for said in (dropped, by_ratio))
    assert wrong < wrong_by_ratio / 5 and wrong_by_ratio > 0.05, (wrong, wrong_by_ratio)


# ---- of all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_effect_is_the_identity_bit_for_bit(name, dtype):
    x = batch(dtype=dtype)
    for keys in NEUTRAL[name]:
        factor = factor_of(name, x, **keys)
        assert factor.dtype == dtype and torch.equal(factor, x["mask"].to(dtype)), keys


@pytest.mark.parametrize("name", TAKES)
def test_its_keys_move_the_gradient(name):
    x = batch(9, 61)

    def gradient(factor):
        leaf, mask = x["logprob"].clone().requires_grad_(), x["mask"] if name == "divergence_mask" else factor > 0
        isentrope.grpo_loss(leaf, x["old_logprob"], x["advantage"] * factor, mask, clip_low=10.0, clip_high=10.0).loss.backward()
        return torch.where(mask, leaf.grad, 0)[x["mask"]]

    plain = gradient(x["mask"].double())
    first, second = (gradient(factor_of(name, x, **keys)) for keys in EFFECT[name])
    assert not torch.equal(plain, first) and not torch.equal(plain, second) and not torch.equal(first, second)
    assert torch.isfinite(first).all() and torch.isfinite(second).all()


@pytest.mark.parametrize("name", TAKES)
def test_nothing_beside_the_mask_matters(name):
    x, keys = batch(), EFFECT[name][0]
    for value in (nan, inf, -inf, 0.0, 1e30):
        given = {key: torch.where(x["mask"], x[key], value) if key != "mask" else x[key] for key in TAKES[name]}
        assert torch.equal(factor_of(name, given, **keys), factor_of(name, x, **keys))
    assert not factor_of(name, batch(none=True), **keys).any()
    turned = {key: x[key].t().contiguous().t() for key in TAKES[name]}
    assert torch.equal(factor_of(name, {**turned, "mask": x["mask"]}, **keys), factor_of(name, x, **keys))


@pytest.mark.parametrize("name", TAKES)
def test_opcheck_compile_and_constants(name):
    x = batch(dtype=torch.float32)
    torch.library.opcheck(getattr(torch.ops.isentrope, f"method_{name}").default, [x[argument] for argument in TAKES[name]])

    def loss(logprob):
        factor = factor_of(name, {**x, "logprob": logprob}, **EFFECT[name][0])
        return isentrope.grpo_loss(logprob, x["old_logprob"], x["advantage"] * factor, x["mask"]).loss

    assert torch.equal(torch.compile(loss, fullgraph=True, backend="aot_eager")(x["logprob"]), loss(x["logprob"]))
    learnt = {key: value.requires_grad_() if value.is_floating_point() else value for key, value in x.items()}
    assert not called(name, learnt).requires_grad


@pytest.mark.parametrize("name, keys, message", [
    ("clip_b", {"mu_low": -1.0}, "mu_low is -1; wanted at least 0"),
    ("clip_b", {"mu_low": nan}, "mu_low is nan; wanted at least 0"),
    ("clip_b", {"mu_high": -1.0}, "mu_high is -1; wanted at least 0"),
    ("clip_b", {"signs": "minus"}, 'signs is "minus"; wanted "neg", "pos" or "both"'),
    ("clip_b", {"max_frac": 0.0}, "max_frac is 0; wanted above 0 to 1"),
    ("clip_v", {"mu_low": -1.0}, "mu_low is -1; wanted at least 0"),
    ("clip_v", {"max_frac": 2.0}, "max_frac is 2; wanted above 0 to 1"),
    ("divergence_mask", {"delta": -1.0}, "delta is -1; wanted at least 0"),
    ("divergence_mask", {"divergence": "js"}, 'divergence is "js"; wanted "tv" or "kl"'),
])  # fmt: skip
def test_refuses_keys(name, keys, message):
    with pytest.raises(ValueError, match=f"isentrope::method_{name}: {message}"):
        called(name, batch(), **keys)


@pytest.mark.parametrize("name", TAKES)
def test_refuses_tensors_by_name(name):
    x = batch()
    for argument in TAKES[name]:
        given = {**x, argument: torch.zeros(2, 2)}
        message = rf"{argument} has shape \[2, 2\]; wanted \[6, 37\], as logprob" if argument != "logprob" else r"mask has shape \[6, 37\]; wanted \[2, 2\]"
        with pytest.raises(ValueError, match=f"method_{name}: {message}"):
            called(name, given)
        if argument != "mask":
            with pytest.raises(TypeError, match=f"method_{name}: {argument} has dtype Long; wanted Float, Double"):
                called(name, {**x, argument: torch.zeros(6, 37, dtype=torch.int64)})
