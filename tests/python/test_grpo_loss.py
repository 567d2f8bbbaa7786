"""grpo_select and grpo_loss on the CPU, and on a GPU where there is one, against isentrope.reference in double."""

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import isentrope
from compiled import compiled as in_one_graph
from isentrope import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
MODES = ["clip", "clip_higher", "clip_cov", "kl_cov", "gspo", "cispo", "gpg"]
MODES += ["luspo", "geo_mean", "reinforce", "dppo_tv", "dppo_kl", "sapo", "vespo", "ce_gppo", "dro"]
# Their gradient is not that of their value: something is held constant in it.
SURROGATES = ["gspo", "cispo", "luspo", "geo_mean", "reinforce", "dppo_tv", "dppo_kl", "vespo", "ce_gppo"]
AGGREGATES = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "token-sum-norm", "token-sum"]
PAIRS = [(mode, aggregate) for mode in MODES for aggregate in AGGREGATES if mode != "luspo" or not aggregate.endswith("token-mean")]
CHOICES = ["clip_cov", "kl_cov", "random_clip_cov", "random_kl_cov"]
# Everything that may be beside the mode, all at once; the modes that it does not fit drop it.
FULL = {"clip_low": 0.15, "clip_high": 0.25, "kl_cov_coef": 0.7, "ref_kl_coef": 0.3, "entropy_coef": 0.05}
NAN = float("nan")
WITHOUT_STATISTICS = functools.partial(isentrope.grpo_loss, statistics=False)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def draw(batch, length, dtype=torch.float32, device="cpu", spread=0.3):
    """Log-probabilities, old ones, advantages, mask, and what else a loss may take. Sequences end where the mask does;
    some tokens within are left out, one sequence is empty, and NaN stands where nothing counts."""
    logprob = -torch.rand(batch, length) * 3
    values = {
        "logprob": logprob,
        "old_logprob": logprob + torch.randn(batch, length) * spread,
        "advantage": torch.randn(batch, 1).expand(batch, length).clone(),
        "ref_logprob": logprob + torch.randn(batch, length) * spread,
        "entropy": torch.rand(batch, length) * 2,
    }
    ends = torch.randint(1, length + 1, (batch, 1))
    mask = (torch.arange(length) < ends) & (torch.rand(batch, length) > 0.1)
    if batch > 2:
        mask[1] = False
        values["advantage"][2] = 0
    mask[0, 0] = True
    values = {name: x.to(dtype).where(mask, NAN).to(device) for name, x in values.items()}
    selected = ((torch.rand(batch, length) < 0.2) & mask).to(device)
    weight = torch.linspace(0, 3, batch * length).view(batch, length).to(dtype).where(mask, NAN).to(device)
    return {**values, "mask": mask.to(device), "selected": selected, "ref_kl_weight": weight}


def inputs(x, mode, weighted=False, **options):
    """Arguments and options of a call for that mode."""
    selects = mode in ("clip_cov", "kl_cov")
    arguments = [x["logprob"], x["old_logprob"], x["advantage"], x["mask"]]
    options = {"mode": mode, "ref_logprob": x["ref_logprob"], "entropy": x["entropy"], **options}
    if weighted:
        options["ref_kl_weight"] = x["ref_kl_weight"]
    if mode == "luspo":
        options.setdefault("aggregate", "seq-mean-token-sum")
    return arguments, {**options, "selected": x["selected"]} if selects else options


def cast(x, dtype):
    return {name: v.to(dtype) if v.is_floating_point() else v for name, v in x.items()}


def compute(op, x, mode, **options):
    """loss, token loss, and the gradients of loss + Σ w token_loss by logprob and entropy."""
    x = {**x, "logprob": x["logprob"].clone().requires_grad_(), "entropy": x["entropy"].clone().requires_grad_()}
    arguments, options = inputs(x, mode, **options)
    loss, token_loss, *_ = op(*arguments, **options)
    weight = torch.linspace(-1, 1, token_loss.numel(), device=loss.device).view_as(token_loss) / token_loss.numel()
    (loss + (weight.to(loss) * token_loss).sum()).backward()
    zero = torch.zeros_like(x["logprob"])
    return loss, token_loss, x["logprob"].grad, zero if x["entropy"].grad is None else x["entropy"].grad


def check(within_twice, x, mode, op=isentrope.grpo_loss, **options):
    """All that compute gives, in the dtype of x, against the reference. Those of 16 bits are computed in float32."""
    dtype = x["logprob"].dtype
    plain_dtype = torch.float32
    given = plain_dtype if dtype == torch.float64 else dtype
    x = cast(cast(x, given), dtype)  # the same values in both
    results = []
    for factor in (1.0, 0.83, 1.21):  # roundings of other advantages: a chain of ten may be right by luck, in plain torch too
        scaled = (x["advantage"].to(given) * factor).to(given)
        y = cast({**x, "advantage": scaled}, dtype)
        actual = compute(op, y, mode, **options)
        exact = compute(reference.grpo_loss, cast(y, torch.float64), mode, **options)
        plain = compute(reference.grpo_loss, cast(y, plain_dtype), mode, **options)
        results.append((actual, plain, exact, magnitude(cast(y, torch.float64), mode, **options)))
        assert actual[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert actual[2].dtype == dtype and actual[3].dtype == dtype
    for k, name in enumerate(["loss", "token_loss", "dlogprob", "dentropy"]):
        if k > 0:
            # sapo: σ' is e / (1 + e)² of the exponential that the loss has too, two roundings more than torch's sigmoid_backward.
            times = 3.0 if mode == "sapo" and name == "dlogprob" else 2.0
            within_twice(f"{mode} {name}", *(torch.stack([result[of][k].detach() for result in results]) for of in range(3)), times=times)
    check_sum(mode, results)


def magnitude(x, mode, **options):
    """What the loss would be if no terms of its sum cancelled."""
    arguments, options = inputs({**x, "logprob": x["logprob"].clone().requires_grad_()}, mode, **options)
    loss, token_loss = reference.grpo_loss(*arguments, **options)
    return (torch.autograd.grad(loss, token_loss)[0] * token_loss).abs().sum().item()


def check_sum(mode, results):
    """The loss is a sum in which terms cancel, and one draw may find the plain sum right by luck: the worst of them counts, and two
    roundings of the sum of magnitudes, those of a token's term and of a lane's sum of float32, count as exact."""
    dtype = results[0][0][0].dtype
    scale = 2 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps if dtype == torch.float64 else 1.0
    errors = [max((result[of][0].double() - result[2][0]).abs().item() for result in results) for of in (0, 1)]
    rounding = torch.finfo(dtype).eps * max(result[3] for result in results)
    allowed = 2 * max(scale * errors[1], rounding)
    assert errors[0] <= allowed, f"{mode} loss: error {errors[0]:.3g}, allowed {allowed:.3g}"


# ---- golden numbers --------------------------------------------------------------------------------------------------


def golden():
    d = torch.float64
    return {
        "logprob": torch.tensor([[-0.3, -1.4, -2.0, -0.1], [-0.2, -2.0, -0.9, 0]], dtype=d),
        "old_logprob": torch.tensor([[-0.5, -1.0, -2.0, -0.1], [-0.2, -3.0, -0.7, 0]], dtype=d),
        "advantage": torch.tensor([[1.0] * 4, [-1.0] * 4], dtype=d),
        "mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }


def rounded(x):
    return pytest.approx(x, abs=0.51e-6)  # the golden numbers have six decimals


@pytest.mark.parametrize("aggregate, loss", list(zip(AGGREGATES, [0.095242, 0.333346, 0.272379, 0.083337, 0.166673, 0.666693])))
def test_golden_clip(aggregate, loss):
    out = isentrope.grpo_loss(*golden().values(), aggregate=aggregate)
    assert out.loss.item() == rounded(loss)
    assert out.token_loss.flatten().tolist() == rounded([-1.2, -0.670320, -1, -1, 1, 2.718282, 0.818731, 0])
    stats = dict(zip(isentrope.GRPO_STATS, out.stats.tolist()))
    assert stats["clip/frac"] == pytest.approx(1 / 7) and stats["clip/high"] == stats["clip/frac"]
    assert stats["advantage/mean"] == rounded(0.142857) and stats["logprob/mean"] == rounded(-0.985714)


def test_golden_clip_cov():
    x = golden()
    chosen = isentrope.grpo_select(*x.values(), mode="clip_cov", seed=1, cov_ratio=1.0, cov_lower=0.1)
    assert chosen.nonzero().tolist() == [[0, 3], [1, 1]]
    out = isentrope.grpo_loss(*x.values(), mode="clip_cov", selected=chosen)
    assert out.loss.item() == rounded(-0.150227)
    assert out.stats[isentrope.GRPO_STATS.index("select/frac")].item() == pytest.approx(2 / 7)


def test_golden_kl_cov():
    x = golden()
    chosen = isentrope.grpo_select(*x.values(), mode="kl_cov", seed=1, cov_ratio=2.1 / 7)
    assert chosen.nonzero().tolist() == [[0, 3], [1, 1]]
    out = isentrope.grpo_loss(*x.values(), mode="kl_cov", selected=chosen)
    assert out.loss.item() == rounded(0.235041)
    plain = isentrope.grpo_loss(*x.values(), mode="kl_cov", selected=chosen, kl_cov_coef=0.0)
    assert plain.loss.item() == rounded(0.092184)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.3, 1.0, 40.0])
def test_kl_cov_does_not_penalise_rounding(device, dtype, size):
    """Two roundings of one log-probability differ by some units in the last place of float32, whatever its size; beyond that
    the penalty has its full slope."""
    unit = 2.0**-23 * max(1.0, size)
    steps = torch.tensor([[0.0, 1, -1, 2, -2, 7, -7, 20, -20, 1e4, -1e4]], dtype=dtype, device=device)
    old = torch.full_like(steps, -size)
    leaf = (old + steps * unit).requires_grad_()
    ones = torch.ones_like(steps)
    out = isentrope.grpo_loss(leaf, old, 0 * ones, ones, mode="kl_cov", selected=ones > 0, kl_cov_coef=0.7, aggregate="token-sum-norm")
    out.token_loss.sum().backward()
    sign = torch.tensor([[0.0] * 7 + [1, -1, 1, -1]], dtype=dtype, device=device)
    assert torch.equal(leaf.grad, 0.7 * sign)
    assert torch.equal(out.token_loss.detach(), 0.7 * (leaf.detach() - old) * sign)


def test_dr_grpo_is_as_verl_and_trl_have_it(device):
    """verl 0.9.1's agg_loss (seq-mean-token-sum-norm), and TRL 1.16's dr_grpo where no row is empty: Σ / (sequences · length)."""
    x = draw(6, 20, torch.float64, device)
    arguments, options = inputs(x, "clip")
    out = isentrope.grpo_loss(*arguments, **options, aggregate="seq-mean-token-sum-norm")
    sums = (out.token_loss * x["mask"]).sum(-1)
    there = x["mask"].sum(-1) > 0
    assert not there.all()
    torch.testing.assert_close(out.loss, sums[there].sum() / there.sum() / 20)
    older = isentrope.grpo_loss(*arguments, **options, aggregate="token-sum-norm")  # verl 0.7.0
    torch.testing.assert_close(older.loss, sums.sum() / 20)


def test_golden_gspo():
    d = torch.tensor([[0.2, -0.4, 0.0, 0.0]])
    out = isentrope.grpo_loss(d, d * 0, torch.ones(1, 4), torch.ones(1, 4), mode="gspo")
    assert out.token_loss.tolist() == [rounded([-0.951229] * 4)]


@pytest.mark.parametrize("delta, k1, k2, k3", [(0.3, 0.3, 0.045, 0.040818), (-0.3, -0.3, 0.045, 0.049859)])
def test_golden_divergences(delta, k1, k2, k3):
    values = {"k1": (k1, 1), "k2": (k2, delta), "k3": (k3, 1 - math.exp(-delta)), "k1+": (k1, delta), "k3+": (k3, delta)}
    values["k3_is"] = (k3, delta)  # at ratio 1
    for kind, (value, slope) in values.items():
        logprob = torch.full((1, 1), -1.0, dtype=torch.float64, requires_grad=True)
        arguments = logprob, logprob.detach(), torch.zeros(1, 1), torch.ones(1, 1)
        out = isentrope.grpo_loss(*arguments, ref_logprob=logprob.detach() - delta, ref_kl=kind, ref_kl_coef=1.0)
        out.loss.backward()
        assert out.loss.item() == rounded(value), kind
        assert logprob.grad.item() == pytest.approx(slope, abs=1e-12), kind


def test_golden_importance_weighted_k3():
    """TRL 1.16.0, GRPOTrainer._compute_loss with loss_type bnpo, beta 0.4 and use_bias_correction_kl."""

    def rows(*values):
        return torch.tensor(values, dtype=torch.float64)

    logprob = rows([-0.3, -1.4, -2.0, -0.1], [-0.2, -2.0, -0.9, -1.1], [-0.7, -0.05, -3.0, -0.4]).requires_grad_()
    old = rows([-0.8, -1.0, -2.0, -0.15], [-0.2, -3.0, -0.6, -1.5], [-0.7, -0.5, -2.2, -0.4])
    ref = rows([-0.5, -1.5, -1.2, -0.3], [-0.6, -2.4, -0.9, -0.2], [-1.0, -0.35, -1.9, -0.4])
    advantage, mask = rows([1.0] * 4, [-1.0] * 4, [0.5] * 4), torch.tensor([[1] * 4, [1] * 4, [1, 1, 1, 0]])
    out = isentrope.grpo_loss(logprob, old, advantage, mask, ref_logprob=ref, ref_kl="k3_is", ref_kl_coef=0.4)
    out.loss.backward()
    slopes = [0.011991, -0.058501, -0.12, -0.087924, 0.105455, 0.286655, 0.0, 0.086797, -0.034545, 0.017109, -0.038397, 0.0]
    assert out.loss.item() == pytest.approx(0.145323, abs=0.51e-6)
    assert logprob.grad.flatten().tolist() == pytest.approx(slopes, abs=0.51e-6)


def test_importance_weighted_k3_of_losses_without_a_ratio():
    """The ratio is of the token whatever the mode looks at: gpg and gspo have the divergence that clip has."""
    x = draw(5, 97)
    for op in (isentrope.grpo_loss, WITHOUT_STATISTICS):
        added = []
        for mode in ("clip", "gpg", "gspo", "cispo"):
            arguments, _ = inputs(x, mode)
            options = {"ref_logprob": x["ref_logprob"], "mode": mode}
            plain = op(*arguments, **options).token_loss
            added.append(op(*arguments, **options, ref_kl="k3_is", ref_kl_coef=0.5).token_loss - plain)
        assert added[0].abs().max() > 1e-3
        for one in added[1:]:
            torch.testing.assert_close(one, added[0], rtol=0, atol=1e-5)


# ---- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, aggregate", PAIRS)
def test_every_mode_and_aggregation(within_twice, device, mode, aggregate):
    for dtype in (torch.float32, torch.float64):
        check(within_twice, draw(5, 33, dtype, device), mode, aggregate=aggregate, **FULL)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (7, 97), (2, 2049), (33, 16), (1, 5003)])
def test_odd_shapes(within_twice, device, mode, shape):
    check(within_twice, draw(*shape, device=device), mode, **FULL)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 97), (2, 2049)])
def test_without_statistics(within_twice, device, mode, shape):
    check(within_twice, draw(*shape, device=device), mode, WITHOUT_STATISTICS, **FULL)
    for dtype in (torch.float32, torch.float64):
        x = draw(*shape, dtype, device)
        for options in ({}, FULL):
            results = [compute(op, x, mode, **options) for op in (WITHOUT_STATISTICS, isentrope.grpo_loss)]
            for a, b in zip(*results):
                torch.testing.assert_close(a, b)
    arguments, options = inputs(x, mode)
    assert WITHOUT_STATISTICS(*arguments, **options).stats.shape == (0,)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs(within_twice, device, mode, dtype):
    check(within_twice, draw(5, 33, dtype, device), mode, **FULL)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k1+", "k3+", "k3_is"])
def test_divergences_from_the_reference(within_twice, device, kind):
    x = draw(5, 97, device=device, spread=3.0)
    x["old_logprob"] = x["logprob"].clone()  # ratio 1: the divergence alone is judged
    x["ref_logprob"][0, :2] = torch.tensor([-40.0, 38.0])  # beyond the clamps of k3
    x["mask"][0, :2] = True
    for name in ("logprob", "old_logprob", "advantage", "entropy"):
        x[name][0, :2] = 0.0
    check(within_twice, x, "clip", ref_kl=kind, ref_kl_coef=0.5)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k1+", "k3+", "k3_is"])
def test_weight_of_the_divergence(within_twice, device, kind):
    options = {"ref_kl": kind, "ref_kl_coef": 0.5, "weighted": True}

    def drawn(*shape):
        x = draw(*shape, device=device)
        return {**x, "old_logprob": x["logprob"].clone()}  # ratio 1: the divergence alone is judged

    for op in (isentrope.grpo_loss, WITHOUT_STATISTICS):
        for shape in ((1, 1), (5, 97), (7, 301)):
            check(within_twice, drawn(*shape), "clip", op, **options)
        for dtype in (torch.float64, torch.bfloat16):
            check(within_twice, cast(drawn(5, 33), dtype), "clip", op, **options)
    x = drawn(5, 97)
    arguments, options = inputs(x, "clip", **options)
    weighted = isentrope.grpo_loss(*arguments, **options)
    plain = isentrope.grpo_loss(*arguments, **{**options, "ref_kl_weight": None})
    ones = isentrope.grpo_loss(*arguments, **{**options, "ref_kl_weight": torch.ones_like(x["ref_kl_weight"])})
    assert torch.equal(weighted.stats, plain.stats) and not torch.equal(weighted.token_loss, plain.token_loss)
    assert torch.equal(ones.token_loss, plain.token_loss) and torch.equal(ones.loss, plain.loss)


def test_dual_clip(within_twice, device):
    x = draw(9, 65, device=device, spread=1.5)
    for op in (isentrope.grpo_loss, WITHOUT_STATISTICS):
        check(within_twice, x, "clip", op, dual_clip=3.0)
    check(within_twice, x, "clip_higher", dual_clip=1.5)
    arguments, options = inputs(x, "clip", dual_clip=3.0)
    stats = dict(zip(isentrope.GRPO_STATS, isentrope.grpo_loss(*arguments, **options).stats.tolist()))
    assert stats["clip/dual"] > 0


@pytest.mark.parametrize("mode", MODES)
def test_log_ratios_beyond_the_clamp(within_twice, device, mode):
    x = draw(4, 40, device=device)
    x["old_logprob"][0] = x["logprob"][0] - 25  # far more likely now
    x["old_logprob"][2] = x["logprob"][2] + 25
    x["old_logprob"][3] = x["logprob"][3] - 15  # beyond the clamp of gspo alone
    x["advantage"][2] = torch.where(x["mask"][2], 1.0, NAN)
    for op in (isentrope.grpo_loss, WITHOUT_STATISTICS):
        check(within_twice, x, mode, op)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(device, mode):
    x = draw(3, 7, torch.float64, device)
    x = {name: v.where(x["mask"], 0.5) if v.is_floating_point() else v for name, v in x.items()}
    fixed, options = inputs(x, mode, **{**FULL, "ref_kl": "k3", "weighted": True})

    def op(logprob, entropy):
        out = isentrope.grpo_loss(logprob, *fixed[1:], **{**options, "entropy": entropy})
        return out.loss, out.token_loss

    if mode in ("gspo", "cispo"):
        return check_surrogate(mode, x)
    if mode in SURROGATES:
        pytest.skip("test_grpo_losses.py differentiates what it does not hold constant")
    leaves = [x[name].clone().requires_grad_() for name in ("logprob", "entropy")]
    assert torch.autograd.gradcheck(op, leaves)


def check_surrogate(mode, x):
    """The gradient is that of the same loss with the ratio, or its weight, held constant."""
    leaf = x["logprob"].clone().requires_grad_()
    isentrope.grpo_loss(leaf, x["old_logprob"], x["advantage"], x["mask"], mode=mode).loss.backward()
    count, d = x["mask"].sum(), x["logprob"] - x["old_logprob"]
    if mode == "gspo":
        mean = (d * x["mask"]).sum(1, keepdim=True) / x["mask"].sum(1, keepdim=True).clamp(min=1)
        r = mean.exp().expand_as(d)
        free = ~(((x["advantage"] > 0) & (r > 1.2)) | ((x["advantage"] < 0) & (r < 0.8)))
        expected = torch.where(x["mask"] & free, -x["advantage"] * r / count, 0)
    else:
        expected = torch.where(x["mask"], -x["advantage"] * d.exp().clamp(0.8, 1.2) / count, 0)
    torch.testing.assert_close(leaf.grad, expected)


def test_second_derivatives_are_refused(device):
    x = draw(3, 7, torch.float64, device)
    leaf = x["logprob"].requires_grad_()
    loss = isentrope.grpo_loss(leaf, x["old_logprob"], x["advantage"], x["mask"]).loss
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="isentrope::grpo_loss_backward: second derivatives are not implemented"):
        first.sum().backward()


@pytest.mark.parametrize("mode", MODES)
def test_statistics(device, mode):
    x = draw(9, 2100, device=device)
    arguments, options = inputs(x, mode, **FULL)
    stats = isentrope.grpo_loss(*arguments, **options).stats
    assert stats.dtype == torch.float32 and stats.shape == (len(isentrope.GRPO_STATS),)
    arguments, options = inputs(cast(x, torch.float64), mode, **FULL)
    expected = reference.grpo_stats(*arguments, **options)
    assert list(expected) == list(isentrope.GRPO_STATS)
    for name, value in zip(isentrope.GRPO_STATS, stats.tolist()):
        # float32 terms of size 1, summed in groups of 128 before they go into doubles: some 1e-6.
        assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


def test_statistics_are_of_the_first_call_alone_without_ref_and_entropy(device):
    x = draw(5, 33, device=device)
    out = isentrope.grpo_loss(x["logprob"], x["old_logprob"], x["advantage"], x["mask"])
    stats = dict(zip(isentrope.GRPO_STATS, out.stats.tolist()))
    assert stats["entropy/mean"] == stats["ref_kl/k3"] == stats["select/frac"] == 0
    assert all(math.isfinite(value) for value in stats.values())


# ---- micro-batches ---------------------------------------------------------------------------------------------------


def rows_of(x, rows):
    return {name: v[rows] for name, v in x.items()}


@pytest.mark.parametrize("mode, aggregate", PAIRS)
def test_micro_batches_add_up(device, mode, aggregate):
    x = draw(8, 41, torch.float64, device)
    sequences = x["mask"].any(1).sum()
    counts = {"token-mean": x["mask"].sum(), "seq-mean-token-sum-norm": sequences * 41, "token-sum-norm": 41, "token-sum": 1}
    normalizer = counts.get(aggregate, sequences)

    def run(x, **options):
        x = {**x, "logprob": x["logprob"].clone().requires_grad_()}
        arguments, options = inputs(x, mode, aggregate=aggregate, **FULL, **options)
        out = isentrope.grpo_loss(*arguments, **options)
        out.loss.backward()
        return out.loss.detach(), x["logprob"].grad, out.stats

    loss, gradient, stats = run(x)
    parts = [run(rows_of(x, rows), normalizer=normalizer) for rows in (slice(0, 3), slice(3, 4), slice(4, 8))]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient)
    combined = isentrope.grpo_combine_stats(torch.stack([part[2] for part in parts]))
    for name, a, b in zip(isentrope.GRPO_STATS, combined.tolist(), stats.tolist()):
        if name != "cov/max":  # about the means of each micro-batch
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6), name


def test_empty_micro_batches_change_no_statistic(device):
    x = draw(4, 9, device=device)
    none = {**x, "mask": x["mask"] & False}
    full, empty = (isentrope.grpo_loss(*inputs(y, "clip")[0], **inputs(y, "clip")[1]).stats for y in (x, none))
    torch.testing.assert_close(isentrope.grpo_combine_stats(torch.stack([full, empty])), full)
    assert isentrope.grpo_combine_stats(torch.stack([empty, empty])).tolist() == [0.0] * len(isentrope.GRPO_STATS)


# ---- what does not count ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, aggregate", PAIRS)
@pytest.mark.parametrize("shape", [(3, 17), (0, 5), (4, 0)])
def test_no_token_at_all(device, mode, aggregate, shape):
    x = {name: torch.full(shape, NAN, device=device) for name in ("logprob", "old_logprob", "advantage", "ref_logprob", "entropy")}
    x |= {"mask": torch.zeros(shape, device=device), "selected": torch.ones(shape, dtype=torch.bool, device=device)}
    for normalizer in (None, 0.0):
        loss, token_loss, dlogprob, dentropy = compute(
            isentrope.grpo_loss, x, mode, aggregate=aggregate, normalizer=normalizer, **FULL
        )
        assert loss.item() == 0
        for value in (token_loss, dlogprob, dentropy):
            assert value.shape == shape and (value == 0).all()
    arguments, options = inputs(x, mode)
    assert (isentrope.grpo_loss(*arguments, **options).stats == 0).all()
    for choice in CHOICES:
        assert not isentrope.grpo_select(*arguments, mode=choice, seed=1).any()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_leaks_from_outside_the_mask(device, mode):
    x = draw(5, 33, device=device)
    zeros = {name: v.where(x["mask"], 0) if v.is_floating_point() else v for name, v in x.items()}
    for fill in (float("inf"), -float("inf"), 1e30):
        other = {name: v.where(x["mask"], fill) if v.is_floating_point() else v for name, v in x.items()}
        for op in (isentrope.grpo_loss, WITHOUT_STATISTICS):
            for a, b in zip(compute(op, zeros, mode, **FULL), compute(op, other, mode, **FULL)):
                assert torch.equal(a, b)
        for choice in CHOICES:
            chosen = [isentrope.grpo_select(*inputs(y, mode)[0], mode=choice, seed=5, cov_lower=0.1) for y in (zeros, other)]
            assert torch.equal(*chosen) and not (chosen[0] & ~x["mask"]).any()


def test_a_gradient_of_token_loss_outside_the_mask_is_not_used(device):
    x = draw(3, 9, device=device)
    leaf = x["logprob"].requires_grad_()
    out = isentrope.grpo_loss(leaf, x["old_logprob"], x["advantage"], x["mask"])
    out.token_loss.backward(torch.ones_like(leaf).where(x["mask"], NAN))
    assert leaf.grad.isfinite().all() and (leaf.grad[~x["mask"]] == 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["logprob", "advantage"])
def test_a_nan_that_counts_is_seen(device, mode, name):
    x = draw(3, 40, device=device)
    x[name][0, 0] = NAN
    arguments, options = inputs(x, mode)
    for op in (isentrope.grpo_loss, WITHOUT_STATISTICS):
        assert op(*arguments, **options).loss.isnan()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.uint8])
def test_mask_of_any_kind(device, dtype):
    x = draw(3, 9, device=device)
    arguments, options = inputs(x, "clip")
    expected = isentrope.grpo_loss(*arguments, **options)
    arguments[3] = x["mask"].to(dtype)
    assert torch.equal(isentrope.grpo_loss(*arguments, **options).loss, expected.loss)


def test_strided_inputs(device):
    x = draw(6, 33, device=device)
    strided = {name: v.t().contiguous().t() for name, v in x.items()}
    for a, b in zip(compute(isentrope.grpo_loss, x, "kl_cov", **FULL), compute(isentrope.grpo_loss, strided, "kl_cov", **FULL)):
        assert torch.equal(a, b)


# ---- selection -------------------------------------------------------------------------------------------------------


def selection_inputs(batch, length, dtype=torch.float32, device="cpu"):
    x = draw(batch, length, dtype, device)
    return [x["logprob"], x["old_logprob"], x["advantage"], x["mask"]]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (9, 97), (2, 2049)])
@pytest.mark.parametrize("fraction", [1e-3, 0.05, 0.3, 1.0])
def test_selection_is_that_of_the_reference(device, choice, shape, fraction):
    # In double, where no covariance lies close enough to a bound or to another for rounding to move it.
    arguments = selection_inputs(*shape, torch.float64, device)
    options = {"mode": choice, "seed": 11, "cov_ratio": fraction}
    band = {"cov_lower": 0.2, "cov_upper": 1.5} if choice.endswith("clip_cov") else {}
    chosen = isentrope.grpo_select(*arguments, **options, **band)
    assert chosen.dtype == torch.bool and chosen.shape == shape
    assert torch.equal(chosen, reference.grpo_select(*arguments, **options, **band))


@pytest.mark.parametrize("fraction", [0.01, 0.2])
def test_largest_covariances_in_float(device, fraction):
    arguments = selection_inputs(64, 301, device=device)
    chosen = isentrope.grpo_select(*arguments, mode="kl_cov", seed=0, cov_ratio=fraction)
    logprob, _, advantage, mask = arguments
    cov = reference.grpo_covariance(logprob.double(), advantage.double(), mask)
    count = int(fraction * mask.sum().item())
    assert chosen.sum().item() == count
    last = cov[mask].sort(descending=True).values[count - 1].item()
    # The tie band: two roundings of float32 relative to the largest product.
    band = 4 * torch.finfo(torch.float32).eps * cov.abs().max().item()
    assert chosen[mask & (cov > last + band)].all() and not chosen[cov < last - band].any()


def test_ties_fall_to_the_first(device):
    ones = torch.ones(3, 50, device=device)
    chosen = isentrope.grpo_select(-ones, -ones, ones, ones, mode="kl_cov", seed=0, cov_ratio=0.1)
    assert chosen.flatten().nonzero().flatten().tolist() == list(range(15))


@pytest.mark.parametrize("choice", ["clip_cov", "random_clip_cov", "random_kl_cov"])
def test_random_choice_is_uniform(device, choice):
    arguments = selection_inputs(4, 60, device=device)
    mask = arguments[3]
    band = {"cov_lower": 0.1, "cov_upper": 2.0}
    among = reference.grpo_candidates(*[a.double() for a in arguments[:3]], mask, **band) if choice == "clip_cov" else mask
    draws, hits = 3000, torch.zeros(mask.shape, device=device)
    for seed in range(draws):
        hits += isentrope.grpo_select(*arguments, mode=choice, seed=seed, cov_ratio=0.05, **band)
    tokens = among.sum().item()
    assert (hits[~among] == 0).all()
    expected = hits.sum().item() / tokens
    assert expected > 5  # else chi-square says nothing
    # Σ (hits - expected)²/expected, each draw being without replacement, has mean (tokens - 1)(1 - n/tokens): normal with
    # variance 2·mean near enough at this size. Five deviations: a fair choice fails once in 3 million.
    mean = (tokens - 1) * (1 - expected / draws)
    chi = ((hits[among] - expected) ** 2 / expected).sum().item()
    assert abs(chi - mean) < 5 * math.sqrt(2 * mean), f"chi-square {chi:.1f}, expected {mean:.1f}"


@pytest.mark.parametrize("choice", CHOICES)
def test_selection_is_reproducible(device, choice):
    arguments = selection_inputs(40, 2100, device=device)
    options = {"mode": choice, "cov_ratio": 0.02, "cov_lower": 0.1}
    chosen = isentrope.grpo_select(*arguments, seed=7, **options)
    torch.set_num_threads(1)
    assert torch.equal(chosen, isentrope.grpo_select(*arguments, seed=7, **options))
    torch.set_num_threads(3)
    assert torch.equal(chosen, isentrope.grpo_select(*arguments, seed=7, **options))
    assert torch.equal(chosen, isentrope.grpo_select(*arguments, seed=8, **options)) == (choice == "kl_cov")


def test_controls_choose_as_many(device):
    arguments = selection_inputs(9, 97, device=device)
    for choice in ("clip_cov", "kl_cov"):
        for fraction in (1e-5, 0.03, 0.9):
            options = {"seed": 3, "cov_ratio": fraction, "cov_lower": 0.3}
            counts = [isentrope.grpo_select(*arguments, mode=m, **options).sum() for m in (choice, "random_" + choice)]
            assert counts[0] == counts[1] and counts[0] >= 1


def test_minimum(device):
    arguments = selection_inputs(9, 97, device=device)
    for minimum in (0, 1, 4):
        chosen = isentrope.grpo_select(*arguments, mode="kl_cov", seed=3, cov_ratio=1e-6, minimum=minimum)
        assert chosen.sum().item() == minimum


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_any_seed(device, seed):
    arguments = selection_inputs(3, 31, torch.float64, device)
    options = {"mode": "random_kl_cov", "seed": seed, "cov_ratio": 0.3}
    assert torch.equal(isentrope.grpo_select(*arguments, **options), reference.grpo_select(*arguments, **options))


# ---- the dispatcher, threads, errors ---------------------------------------------------------------------------------


def test_opcheck(device):
    x = draw(3, 17, device=device)
    x = {name: v.where(x["mask"], 0.5) if v.is_floating_point() else v for name, v in x.items()}
    for leaves in ((), ("logprob",), ("logprob", "entropy")):
        y = {name: v.clone().requires_grad_() if name in leaves else v for name, v in x.items()}
        for mode in MODES:
            arguments, options = inputs(y, mode, **FULL)
            for statistics in (True, False):
                options["statistics"] = statistics
                torch.library.opcheck(torch.ops.isentrope.grpo_loss.default, tuple(arguments), options)
    for choice in CHOICES:
        torch.library.opcheck(torch.ops.isentrope.grpo_select.default, tuple(arguments[:4]), {"mode": choice, "seed": 5})
    slope, weight, mask = torch.randn(3, 17, device=device), torch.rand(3, device=device), x["mask"]
    for dloss, dtoken in ((torch.ones((), device=device), None), (None, slope * 2)):
        arguments = (dloss, dtoken, slope, weight, mask, 0.1, True)
        torch.library.opcheck(torch.ops.isentrope.grpo_loss_backward.default, arguments)


@pytest.mark.parametrize("mode, statistics", [("clip", True), ("kl_cov", True), ("gspo", False), ("sapo", True), ("vespo", False)])
def test_compile(device, mode, statistics):
    x = draw(4, 33, device=device)

    def step(logprob, entropy):
        y = {**x, "logprob": logprob * 1.0, "entropy": entropy * 1.0}
        arguments, options = inputs(y, mode, **FULL)
        if mode == "kl_cov":
            options["selected"] = isentrope.grpo_select(*arguments, mode="kl_cov", seed=1, cov_ratio=0.1)
        return isentrope.grpo_loss(*arguments, normalizer=50.0, statistics=statistics, **options)

    results = []
    for function in (step, in_one_graph(step, device)):
        leaves = [x[name].clone().requires_grad_() for name in ("logprob", "entropy")]
        out = function(*leaves)
        out.loss.backward()
        results.append([out.loss, out.token_loss, out.stats, *[leaf.grad for leaf in leaves]])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_bits_do_not_depend_on_threads(mode):
    x = draw(37, 4500)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        arguments, options = inputs(x, mode, **FULL)
        results.append([*compute(isentrope.grpo_loss, x, mode, **FULL), isentrope.grpo_loss(*arguments, **options).stats])
        results[-1] += compute(WITHOUT_STATISTICS, x, mode, **FULL)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_narrower_instruction_sets(capability):
    """The same tests of values in a process that is told to use them."""
    here = Path(__file__)
    names = "test_odd_shapes or statistics or test_selection_is_that_of_the_reference or test_log_ratios"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", names, str(here)]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


BAD_LOSS = [
    ({"logprob": torch.zeros(4)}, ValueError, r"logprob has shape \[4\]; wanted \[B, T\]"),
    ({"logprob": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "logprob has dtype Long"),
    ({"old_logprob": torch.zeros(3, 2)}, ValueError, r"old_logprob has shape \[3, 2\]; wanted \[2, 3\]"),
    ({"advantage": torch.zeros(2)}, ValueError, "advantage has shape"),
    ({"mask": torch.ones(2, 4)}, ValueError, "mask has shape"),
    ({"mask": torch.ones(2, 3, device="meta")}, ValueError, "mask is on meta; wanted cpu"),
    ({"mode": "klcov"}, ValueError, 'mode is "klcov"; wanted one of clip, clip_higher'),
    ({"mode": "clip_cov"}, ValueError, "selected is missing; wanted the tokens that grpo_select"),
    ({"selected": torch.ones(2, 3, dtype=torch.bool)}, ValueError, "only clip_cov and kl_cov use"),
    ({"mode": "kl_cov", "selected": torch.ones(2, 3)}, TypeError, "selected has dtype Float; wanted Bool"),
    ({"aggregate": "mean"}, ValueError, 'aggregate is "mean"; wanted one of token-mean'),
    ({"ref_kl": "k4"}, ValueError, 'ref_kl is "k4"; wanted one of k1, k2'),
    ({"clip_low": -0.1}, ValueError, "clip_low is -0.1"),
    ({"clip_high": NAN}, ValueError, "clip_high is nan"),
    ({"dual_clip": 1.0}, ValueError, "dual_clip is 1; wanted above 1"),
    ({"dual_clip": 3.0, "mode": "gpg"}, ValueError, "dual_clip is given with mode gpg"),
    ({"dual_clip": 3.0, "delta": 4.0}, ValueError, "dual_clip is 3 and delta 4; both bound the loss"),
    ({"delta": 1.2}, ValueError, r"delta is 1.2; wanted above 1 \+ clip_high, which is 1.2"),
    ({"delta": 1.28, "mode": "clip_higher"}, ValueError, r"wanted above 1 \+ clip_high, which is 1.28"),
    ({"delta": 4.0, "mode": "sapo"}, ValueError, "delta is given with mode sapo; it bounds the ratio of clip"),
    ({"delta": 0.0, "mode": "dppo_tv"}, ValueError, "delta is 0; wanted a number above 0"),
    ({"mode": "luspo"}, ValueError, 'mode is luspo and aggregate "token-mean", under which it is gspo'),
    ({"tau_pos": 0.0}, ValueError, "tau_pos is 0; wanted a number above 0"),
    ({"tau_neg": NAN}, ValueError, "tau_neg is nan"),
    ({"vespo_k_pos": -1.0}, ValueError, "vespo_k_pos is -1"),
    ({"vespo_lambda_neg": math.inf}, ValueError, "vespo_lambda_neg is inf"),
    ({"gppo_beta1": -0.5}, ValueError, "gppo_beta1 is -0.5"),
    ({"dro_beta": -0.1}, ValueError, "dro_beta is -0.1"),
    ({"ref_kl_coef": 0.1}, ValueError, "ref_logprob is missing"),
    ({"ref_kl_coef": -1.0}, ValueError, "ref_kl_coef is -1"),
    ({"ref_kl_weight": torch.ones(2, 3)}, ValueError, "ref_kl_weight is given, and ref_logprob is missing"),
    ({"ref_logprob": torch.zeros(2, 3), "ref_kl_weight": torch.ones(2)}, ValueError, "ref_kl_weight has shape"),
    ({"entropy_coef": 0.1}, ValueError, "entropy is missing"),
    ({"kl_cov_coef": -1.0}, ValueError, "kl_cov_coef is -1"),
    ({"normalizer": torch.ones(2)}, ValueError, r"normalizer has shape \[2\]; wanted one number"),
]


@pytest.mark.parametrize("change, error, message", BAD_LOSS)
def test_bad_loss_arguments(change, error, message):
    x = {name: torch.zeros(2, 3) for name in ("logprob", "old_logprob", "advantage")} | {"mask": torch.ones(2, 3)}
    x |= change
    arguments = [x.pop(name) for name in ("logprob", "old_logprob", "advantage", "mask")]
    with pytest.raises(error, match=message):
        isentrope.grpo_loss(*arguments, **x)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mode": "clip"}, 'mode is "clip"; wanted one of clip_cov, kl_cov, random_clip_cov, random_kl_cov'),
        ({"cov_ratio": 0.0}, "cov_ratio is 0; wanted above 0 and at most 1"),
        ({"cov_ratio": 1.5}, "cov_ratio is 1.5"),
        ({"cov_lower": 5.0}, "cov_lower is 5 and cov_upper 5"),
        ({"clip_low": -1.0}, "clip_low is -1"),
        ({"minimum": -1}, "minimum is -1"),
    ],
)
def test_bad_select_arguments(change, message):
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=message):
        isentrope.grpo_select(zeros, zeros, zeros, zeros, **{"mode": "kl_cov", "seed": 1, **change})
