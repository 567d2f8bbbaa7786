"""The policy terms of grpo_loss one by one: golden numbers of the packages that have them, plain loops over floats, coefficients."""

import itertools
import math

import pytest
import torch

import isentrope
from isentrope import reference

NAN = float("nan")
# What grpo_loss takes for a coefficient where nothing is given.
DEFAULTS = {
    "clip_low": 0.2, "clip_high": None, "dual_clip": None, "delta": None, "tau_pos": 1.0, "tau_neg": 1.05, "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0, "gppo_beta1": 0.75, "gppo_beta2": 1.0, "dro_beta": 0.05,
}  # fmt: skip


def batch(rows=12, length=13, seed=0, spread=0.3):
    """Log-probabilities, old ones, advantages (one a sequence, of either sign in turn), mask; in double, with a sequence of no token and one
    of advantage 0."""
    draw = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, length, generator=draw, dtype=torch.float64) - 0.01
    logprob = old + spread * torch.randn(rows, length, generator=draw, dtype=torch.float64)
    sign = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0).double()[:, None]
    advantage = (sign * torch.randn(rows, 1, generator=draw, dtype=torch.float64).abs()).expand(rows, length).clone()
    mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=draw)
    mask[1], advantage[2] = False, 0
    return [x.where(mask, NAN) for x in (logprob.clamp(max=-1e-4), old, advantage)] + [mask]


def run(mode, x, **options):
    """loss, token losses, gradient of the loss, statistics"""
    leaf = x[0].clone().requires_grad_()
    out = isentrope.grpo_loss(leaf, *x[1:], mode=mode, **options)
    out.loss.backward()
    return out.loss.detach(), out.token_loss.detach(), leaf.grad, dict(zip(isentrope.GRPO_STATS, out.stats.tolist(), strict=True))


# ---- golden numbers --------------------------------------------------------------------------------------------------


def golden():
    def rows(*values):
        return torch.tensor(values, dtype=torch.float64)

    return [
        rows([-0.3, -1.4, -2.0, -0.1], [-0.2, -2.0, -0.9, -1.1], [-0.7, -0.05, -3.0, -0.4]),
        rows([-0.8, -1.0, -2.0, -0.15], [-0.2, -3.0, -0.6, -1.5], [-0.7, -0.5, -2.2, -0.4]),
        rows([1.0] * 4, [-1.0] * 4, [0.5] * 4),
        torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]),
    ]


# Name: mode, options of grpo_loss, and what the package's own function makes of golden(): loss, gradient by ℓ.
GOLDEN = {
    # verl 0.9.1, verl/trainer/ppo/core_algos.py, get_policy_loss_fn(name); reinforce: compute_policy_loss_reinforce, with the weights min(r, 2).
    "verl dppo_tv": (
        "dppo_tv", {"clip_low": 0.1, "clip_high": 0.15, "delta": 1.6, "aggregate": "token-mean"},
        -0.088494, [0.0, -0.060938, -0.090909, -0.09557, 0.090909, 0.145455, 0.0, 0.13562, -0.045455, 0.0, -0.020424, 0.0]),
    "verl dppo_kl": (
        "dppo_kl", {"clip_low": 0.02, "clip_high": 0.06, "delta": 1.6, "aggregate": "token-sum"},
        -0.973439, [0.0, -0.67032, -1.0, -1.051271, 1.0, 1.6, 0.0, 1.491825, -0.5, 0.0, -0.224664, 0.0]),
    "verl sapo": (
        "sapo", {"aggregate": "seq-mean-token-mean"},
        -0.262780, [-0.123895, -0.054369, -0.083333, -0.087548, 0.083333, 0.109967, 0.060606, 0.116385, -0.055556, -0.080455, -0.023162, 0.0]),
    "verl geo_mean": (
        "geo_mean", {"clip_low": 0.2, "clip_high": 0.4, "aggregate": "seq-mean-token-mean"},
        -0.033435, [0.0, -0.084382, -0.084382, -0.084382, 0.112488, 0.112488, 0.0, 0.112488, -0.048621, 0.0, -0.048621, 0.0]),
    "verl dro": (
        "dro", {"dro_beta": 0.3},
        0.168250, [-0.077273, -0.101818, -0.090909, -0.089545, 0.090909, 0.118182, 0.082727, 0.101818, -0.045455, -0.033182, -0.067273, 0.0]),
    "verl reinforce": (
        "reinforce", {"aggregate": "seq-mean-token-sum"},
        -0.635450, [-0.549574, -0.22344, -0.333333, -0.350424, 0.333333, 0.666667, 0.246939, 0.497275, -0.166667, -0.261385, -0.074888, 0.0]),
    # TRL 1.16.0, GRPOTrainer._compute_loss by loss_type, of the log-probabilities; geo_mean: trl.experimental.gmpo.GMPOTrainer.
    "trl sapo": (
        "sapo", {"aggregate": "seq-mean-token-mean"},
        -0.262780, [-0.123895, -0.054369, -0.083333, -0.087548, 0.083333, 0.109967, 0.060606, 0.116385, -0.055556, -0.080455, -0.023162, 0.0]),
    "trl luspo": (
        "luspo", {"clip_low": 0.1, "aggregate": "seq-mean-token-sum"},
        -0.073849, [-0.346071] * 4 + [0.438844] * 4 + [-0.148314] * 3 + [0.0]),
    "trl luspo, delta": (
        "luspo", {"clip_low": 0.1, "delta": 1.15, "aggregate": "seq-mean-token-sum"},
        -0.295890, [-0.346071] * 4 + [0.0] * 4 + [-0.148314] * 3 + [0.0]),
    "trl vespo": ("vespo", {}, 0.304218, [-0.075517] * 4 + [0.04477] * 4 + [-0.054743] * 3 + [0.0]),
    "trl bnpo, delta": (
        "clip", {"delta": 1.4},
        -0.058751, [0.0, -0.060938, -0.090909, -0.09557, 0.090909, 0.0, 0.0, 0.0, -0.045455, 0.0, -0.020424, 0.0]),
    "trl grpo by sequence, delta": (
        "gspo", {"clip_low": 0.1, "delta": 1.12, "aggregate": "seq-mean-token-mean"},
        -0.121051, [-0.086518] * 4 + [0.0] * 4 + [-0.049438] * 3 + [0.0]),
    "trl geo_mean": (
        "geo_mean", {"clip_low": 0.2, "clip_high": 0.4, "aggregate": "seq-mean-token-mean"},
        -0.033435, [0.0, -0.084382, -0.084382, -0.084382, 0.112488, 0.112488, 0.0, 0.112488, -0.048621, 0.0, -0.048621, 0.0]),
    # github.com/Kwai-Klear/CE-GPPO at 10558fe, compute_gppo_loss_general_beta.
    "ce_gppo": (
        "ce_gppo", {},
        0.051259, [-0.109091, -0.060938, -0.090909, -0.09557, 0.090909, 0.247117, 0.054545, 0.13562, -0.045455, -0.054545, -0.020424, 0.0]),
    "ce_gppo, clip_ratio_c": (
        "ce_gppo", {"gppo_beta1": 0.5, "gppo_beta2": 0.8, "dual_clip": 1.1},
        -0.116932, [-0.087273, -0.060938, -0.090909, -0.09557, 0.090909, 0.0, 0.036364, 0.0, -0.045455, -0.043636, -0.020424, 0.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    mode, options, loss, gradient = GOLDEN[name]
    actual = run(mode, golden(), **options)
    assert actual[0].item() == pytest.approx(loss, abs=0.51e-6)  # six decimals
    assert actual[2].flatten().tolist() == pytest.approx(gradient, abs=0.51e-6)


# ---- plain loops -----------------------------------------------------------------------------------------------------


def sign_of(x):
    return (x > 0) - (x < 0)


def term(mode, l, at, old, A, known, o):
    """The policy term of one token, in floats; at is ℓ where no gradient goes, known the number of its sequence."""
    high = o["clip_low"] if o["clip_high"] is None else o["clip_high"]
    high = 0.28 if mode == "clip_higher" and o["clip_high"] is None else high
    low = o["clip_low"]
    d = max(-20.0, min(l - old, 20.0))
    fixed = math.exp(max(-20.0, min(at - old, 20.0)))  # the ratio as a constant
    if mode == "gpg":
        return -A * l
    if mode == "dro":
        return -A * l + o["dro_beta"] * d * d / 2
    if mode == "sapo":
        tau = o["tau_pos"] if A > 0 else o["tau_neg"]
        return -A * 4 / tau / (1 + math.exp(-tau * (math.exp(d) - 1)))
    if mode == "reinforce":
        return -min(fixed, 2.0 if o["delta"] is None else o["delta"]) * A * l
    if mode in ("dppo_tv", "dppo_kl"):
        p, q = math.exp(at), math.exp(old)
        D = p - q
        if mode == "dppo_kl":
            D = sign_of(D) * (q * (old - at) + (1 - q) * math.log((1 - q + 1e-8) / (1 - p + 1e-8)))
        dropped = D > high if A > 0 else D < -low
        return 0.0 if dropped else -min(fixed, 20.0 if o["delta"] is None else o["delta"]) * A * l
    if mode == "vespo":
        k, rate = (o["vespo_k_neg"], o["vespo_lambda_neg"]) if A < 0 else (o["vespo_k_pos"], o["vespo_lambda_pos"])
        return -math.exp(rate - rate * known) * known**k * A * l
    if mode == "geo_mean":
        def e(x):
            return max(x - old, -low) if math.copysign(1, A) < 0 else min(x - old, high)

        return -A * known * math.exp(e(l) - e(at))
    ratio = known * math.exp(l - at) if mode in ("gspo", "luspo") else math.exp(d)
    clipped = max(1 - low, min(ratio, 1 + high))
    loss = max(-A * ratio, -A * clipped)
    if mode == "ce_gppo" and -A * max(1 - low, min(fixed, 1 + high)) > -A * fixed:
        loss = -(o["gppo_beta1"] if A < 0 else o["gppo_beta2"]) * A * max(1 - low, min(fixed, 1 + high)) * math.exp(l - at)
    bound = o["delta"] if o["dual_clip"] is None else o["dual_clip"]
    return loss if bound is None or A >= 0 else min(loss, -A * bound)


def number_of_sequence(mode, tokens, o):
    """s of gspo and luspo, g of geo_mean, w of vespo; tokens (ℓ, ℓ_old, A) of one sequence."""
    high = o["clip_low"] if o["clip_high"] is None else o["clip_high"]
    d = [l - old for l, old, _ in tokens]
    if mode == "vespo":
        return math.exp(max(math.log(1e-8), min(sum(d), 20.0)))
    if mode == "geo_mean":
        d = [max(x, -o["clip_low"]) if math.copysign(1, A) < 0 else min(x, high) for x, (_, _, A) in zip(d, tokens)]
    return math.exp(max(-20.0, min(sum(d) / len(d), 10.0)))


def loop(mode, x, **options):
    """Σ of token losses over the tokens, token losses, and their derivatives by ℓ as central differences."""
    o, step = {**DEFAULTS, **options}, 1e-6
    logprob, old, advantage, mask = x
    losses, slopes = torch.zeros_like(logprob), torch.zeros_like(logprob)
    for i in range(len(mask)):
        there = mask[i].nonzero().flatten().tolist()
        tokens = [(logprob[i, t].item(), old[i, t].item(), advantage[i, t].item()) for t in there]
        known = number_of_sequence(mode, tokens, o) if tokens else 0.0
        for t, (l, q, A) in zip(there, tokens):
            losses[i, t] = term(mode, l, l, q, A, known, o)
            slopes[i, t] = (term(mode, l + step, l, q, A, known, o) - term(mode, l - step, l, q, A, known, o)) / (2 * step)
    return losses, slopes


CASES = {
    "clip, two-sided": ("clip", {"delta": 1.3}), "clip_higher, two-sided": ("clip_higher", {"delta": 1.35}), "gspo": ("gspo", {"clip_low": 0.05}),
    "gspo, two-sided": ("gspo", {"clip_low": 0.02, "delta": 1.03}), "luspo": ("luspo", {"clip_low": 0.05}),
    "luspo, two-sided": ("luspo", {"clip_low": 0.02, "delta": 1.03}), "geo_mean": ("geo_mean", {"clip_low": 0.2, "clip_high": 0.4}),
    "reinforce": ("reinforce", {}), "reinforce, lower": ("reinforce", {"delta": 1.1}), "dppo_tv": ("dppo_tv", {"clip_low": 0.05, "clip_high": 0.08}),
    "dppo_tv, truncated": ("dppo_tv", {"clip_low": 0.05, "delta": 1.1}), "dppo_kl": ("dppo_kl", {"clip_low": 0.01, "clip_high": 0.02}),
    "dppo_kl, truncated": ("dppo_kl", {"clip_low": 0.01, "delta": 1.1}), "sapo": ("sapo", {}), "sapo, steep": ("sapo", {"tau_pos": 3.0, "tau_neg": 5.0}),
    "vespo": ("vespo", {}), "vespo, flat": ("vespo", {"vespo_k_pos": 0.5, "vespo_lambda_pos": 0.5, "vespo_k_neg": 1.0, "vespo_lambda_neg": 0.0}),
    "ce_gppo": ("ce_gppo", {}), "ce_gppo, bounded": ("ce_gppo", {"gppo_beta1": 0.5, "gppo_beta2": 0.3, "dual_clip": 1.2}),
    "ce_gppo, two-sided": ("ce_gppo", {"delta": 1.3}), "dro": ("dro", {}), "dro, strong": ("dro", {"dro_beta": 2.0}),
}  # fmt: skip


def fitting(mode):
    return {"aggregate": "token-sum"} if mode == "luspo" else {}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_those_of_a_plain_loop(name, seed):
    mode, options = CASES[name]
    x = batch(seed=seed)
    losses, slopes = loop(mode, x, **options)
    loss, token_loss, gradient, _ = run(mode, x, aggregate="token-sum", **options)
    # The loop is in double as the op is; some terms add up hundreds of roundings.
    torch.testing.assert_close(token_loss, losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, losses.sum(), rtol=1e-12, atol=1e-12)
    # Central differences of step 1e-6: rounding of 1e-16/1e-6, and the square of the step.
    torch.testing.assert_close(gradient, slopes, rtol=1e-7, atol=1e-8)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_the_statistics_count_what_is_held(name):
    """clip/low and clip/high say where the gradient of the loop differs from that without a bound; of a mode without a clip they are 0."""
    mode, options = CASES[name]
    x = batch(seed=1, spread=0.5)
    *_, stats = run(mode, x, **fitting(mode), **options)
    assert stats["clip/frac"] == pytest.approx(stats["clip/low"] + stats["clip/high"], abs=1e-6)
    if mode in ("sapo", "vespo", "dro"):
        assert stats["clip/frac"] == stats["clip/dual"] == 0
    else:
        assert stats["clip/frac"] > 0
    if mode != "reinforce":
        assert (stats["clip/dual"] > 0) == ("delta" in options or "dual_clip" in options)


# ---- coefficients ----------------------------------------------------------------------------------------------------

COEFFICIENTS = [
    ("clip", "delta", 1.3, 1.5), ("clip_higher", "delta", 1.3, 1.5), ("gspo", "delta", 1.06, 1.2), ("luspo", "delta", 1.06, 1.2),
    ("ce_gppo", "delta", 1.3, 1.5), ("ce_gppo", "dual_clip", 1.3, 1.5), ("reinforce", "delta", 1.0, 1.2), ("dppo_tv", "delta", 1.0, 1.2),
    ("dppo_kl", "delta", 1.0, 1.2), ("sapo", "tau_pos", 1.0, 2.0), ("sapo", "tau_neg", 1.0, 2.0), ("vespo", "vespo_k_pos", 1.0, 2.0),
    ("vespo", "vespo_lambda_pos", 1.0, 2.0), ("vespo", "vespo_k_neg", 1.0, 2.0), ("vespo", "vespo_lambda_neg", 1.0, 2.0),
    ("ce_gppo", "gppo_beta1", 0.5, 0.75), ("ce_gppo", "gppo_beta2", 0.5, 0.75), ("dro", "dro_beta", 0.05, 0.1),
    ("dppo_tv", "clip_low", 0.02, 0.1), ("dppo_tv", "clip_high", 0.02, 0.1), ("dppo_kl", "clip_low", 0.001, 0.01),
    ("dppo_kl", "clip_high", 0.001, 0.01), ("geo_mean", "clip_low", 0.1, 0.3), ("geo_mean", "clip_high", 0.1, 0.3),
]  # fmt: skip


@pytest.mark.parametrize("mode, name, one, other", COEFFICIENTS)
def test_each_coefficient_moves_the_gradient(mode, name, one, other):
    x = batch(seed=1, spread=0.5)
    fixed = {"clip_low": 0.05, **fitting(mode)} if mode in ("gspo", "luspo") else fitting(mode)
    first, second = (run(mode, x, **{**fixed, name: value})[2] for value in (one, other))
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("mode", ["gspo", "luspo", "vespo", "geo_mean", "sapo", "dppo_tv", "clip", "cispo"])
def test_a_factor_of_0_leaves_the_terms_of_the_other_tokens(mode):
    """A factor of a token's term is one of its advantage: what the others add does not know of it. GMPO's clip has a side by the sign of A."""
    d = torch.tensor([[1.0, 0.1], [-1.0, -0.3]], dtype=torch.float64)
    old = torch.full_like(d, -2.0)
    advantage = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    factor = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    options = {"clip_low": 0.2, "clip_high": 0.4, "aggregate": "token-sum"}
    _, whole, _, _ = run(mode, [old + d, old, advantage, torch.ones_like(d)], **options)
    loss, part, gradient, _ = run(mode, [old + d, old, advantage * factor, torch.ones_like(d)], **options)
    torch.testing.assert_close(part, whole * factor, rtol=0, atol=0)
    assert (gradient[:, 0] == 0).all()
    if mode == "geo_mean":
        torch.testing.assert_close(part[0, 1].item(), -math.exp((0.4 + 0.1) / 2))
    expected = reference.grpo_loss(old + d, old, advantage * factor, torch.ones_like(d).bool(), mode=mode, **options)
    torch.testing.assert_close(part, expected[1])


def test_neutral_coefficients_are_the_plain_loss_bit_for_bit():
    x = batch(seed=5)
    for dtype in (torch.float64, torch.float32):
        y = [v.to(dtype) if v.is_floating_point() else v for v in x]

        def same(one, other, of=slice(0, 3)):
            for a, b in zip(run(one[0], y, **one[1])[of], run(other[0], y, **other[1])[of], strict=True):
                assert torch.equal(a, b), (one, other)

        same(("dro", {"dro_beta": 0.0}), ("gpg", {}))
        same(("clip", {"delta": 1e30}), ("clip", {}))
        same(("clip", {"delta": 3.0}), ("clip", {"dual_clip": 3.0}))
        same(("gspo", {"delta": 1e30}), ("gspo", {}))
        same(("luspo", {"aggregate": "token-sum"}), ("gspo", {"aggregate": "token-sum"}))
        same(("reinforce", {"delta": 1.2}), ("cispo", {"clip_low": 1.0, "clip_high": 0.2}))
        same(("ce_gppo", {"gppo_beta1": 0.0, "gppo_beta2": 0.0}), ("clip", {}), slice(2, 3))  # of the gradient: what is held has another value
        on_policy = [y[0], y[0], *y[2:]]
        for mode, options in (("reinforce", {}), ("dppo_tv", {}), ("dppo_kl", {}), ("vespo", {}), ("dro", {})):  # at ratio 1 all are -A ℓ
            for a, b in itertools.zip_longest(run(mode, on_policy, **options)[:3], run("gpg", on_policy)[:3]):
                assert torch.equal(a, b), mode
        for mode in ("sapo", "geo_mean", "ce_gppo"):  # and these have its gradient, which is that of clip
            torch.testing.assert_close(run(mode, on_policy)[2], run("clip", on_policy)[2], msg=mode)


def test_a_bound_of_d_has_its_sides():
    """DPPO drops a token only where the update would carry it further out: π above π_old with A > 0, below it with A < 0."""
    logprob, old = torch.tensor([[-0.1, -2.0, -0.1, -2.0]]), torch.tensor([[-2.0, -0.1, -2.0, -0.1]])
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    for mode in ("dppo_tv", "dppo_kl"):
        _, token_loss, gradient, stats = run(mode, [logprob, old, advantage, torch.ones(1, 4)])
        assert (gradient != 0).tolist() == (token_loss != 0).tolist() == [[False, True, True, False]]
        assert stats["clip/high"] == stats["clip/low"] == 0.25


@pytest.mark.parametrize("mode", ["dppo_tv", "dppo_kl", "sapo", "vespo", "geo_mean", "ce_gppo", "dro", "reinforce"])
def test_log_probabilities_at_the_ends_are_finite(mode):
    """Of certain, impossible and, by rounding, more than certain tokens."""
    ends = torch.tensor([0.0, 1e-7, -1e-8, -1e-4, -1.0, -90.0, -1e4])
    logprob, old = (x.flatten()[None] for x in torch.meshgrid(ends, ends, indexing="ij"))
    for sign in (1.0, -1.0):
        x = [logprob, old, torch.full_like(logprob, sign), torch.ones_like(logprob)]
        for what in run(mode, x)[:3]:
            assert what.isfinite().all()
