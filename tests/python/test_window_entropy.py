"""window_entropy on the CPU, and on a GPU where there is one, against isentrope.reference in double and one window at a time."""

import math

import pytest
import torch

import isentrope
from compiled import compiled as in_one_graph
from isentrope import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
SIDES = {"following": lambda w: (0, w - 1), "after": lambda w: (-1, w), "centred": lambda w: ((w - 1) // 2, w // 2),
         "trailing": lambda w: (w - 1, 0)}  # fmt: skip
op = torch.ops.isentrope


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def draw(rows, length, device="cpu", dtype=torch.float32, holes=0.0):
    """Entropies, and a mask of ragged rows; with holes also tokens within them that do not count."""
    entropy = torch.rand(rows, length, dtype=dtype) * 4
    ends = torch.randint(0, length + 1, (rows,))
    ends[0] = length
    mask = (torch.arange(length) < ends[:, None]) & (torch.rand(rows, length) >= holes)
    return entropy.to(device), mask.to(device)


# ---- means -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("window", [1, 3, 4, 33, 300])
@pytest.mark.parametrize("length", [1, 2, 97, 257])
def test_means_and_gradients(within_twice, device, dtype, side, window, length):
    entropy, mask = draw(3, length, device, dtype, holes=0.1)
    before, after = SIDES[side](window)
    weight = torch.randn(3, length, device=device)
    at = (torch.rand(3, length, device=device) < 0.7) if window % 2 else None
    for partial in ("drop", "shrink"):

        def compute(function, leaf):
            leaf = leaf.detach().clone().requires_grad_()
            mean = function(leaf)
            (mean * weight.to(mean)).sum().backward()
            return mean, leaf.grad

        def ours(x):
            return isentrope.window_entropy(x, mask, window=window, side=side, partial=partial, at=at).mean

        def plain_torch(x):
            return reference.window_entropy(x, mask, before=before, after=after, shrink=partial == "shrink", at=at)[0]

        values = entropy.float()
        mean, gradient = compute(ours, values.to(dtype))
        exact, exact_gradient = compute(plain_torch, values.double())
        plain, plain_gradient = compute(plain_torch, values)
        within_twice("mean", mean, plain, exact)
        within_twice("gradient", gradient, plain_gradient, exact_gradient)
        _, count = op.window_entropy(values.to(dtype), mask, at, before=before, after=after, shrink=partial == "shrink")
        _, expected = reference.window_entropy(values, mask, before=before, after=after, shrink=partial == "shrink", at=at)
        assert torch.equal(count.long(), expected)


def test_a_value_that_is_not_finite_stays_in_its_windows(device):
    entropy, mask = torch.ones(1, 40, device=device), torch.ones(1, 40, device=device)
    entropy[0, 20] = math.nan
    mean = isentrope.window_entropy(entropy, mask, window=4).mean[0]
    assert mean.isnan().nonzero().flatten().tolist() == [17, 18, 19, 20]
    mask[0, 20] = 0  # and where it does not count it is not read
    assert not isentrope.window_entropy(entropy, mask, window=4, partial="shrink").mean.isnan().any()


def test_gradcheck_and_opcheck(device):
    entropy, mask = draw(2, 9, device, torch.float64, holes=0.2)
    at = torch.rand(2, 9, device=device) < 0.6
    for partial in ("drop", "shrink"):
        torch.autograd.gradcheck(
            lambda x: isentrope.window_entropy(x, mask, window=3, side="centred", partial=partial).mean, (entropy.requires_grad_(),)
        )
    arguments = (entropy.detach().requires_grad_(), mask, at)
    torch.library.opcheck(op.window_entropy.default, arguments, {"before": 1, "after": 2, "shrink": True})
    mean, count = op.window_entropy(entropy.detach(), mask, at, before=1, after=2, shrink=True)
    for threshold, level, scope in [("value", 1.0, "row"), ("quantile", 0.9, "batch"), ("top_fraction", 0.3, "global")]:
        torch.library.opcheck(op.window_select.default, (mean, count), {"threshold": threshold, "level": level, "scope": scope})


def test_compile_has_no_graph_break(device):
    entropy, mask = draw(3, 50, device)
    entropy.requires_grad_()

    def loss(x):
        found = isentrope.window_entropy(x * 1, mask, window=5, quantile=0.8, scope="batch")
        return (found.mean * found.high).sum() + found.threshold

    compiled = in_one_graph(loss, device)
    (expected,), (actual,) = (torch.autograd.grad(f(entropy), entropy) for f in (loss, compiled))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(compiled(entropy), loss(entropy))


def test_bits_do_not_depend_on_threads():
    entropy, mask = draw(37, 1000, holes=0.1)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(isentrope.window_entropy(entropy, mask, window=8, top_fraction=0.1, scope="global"))
    for a, b in zip(*found):
        assert torch.equal(a, b)


# ---- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["row", "batch", "global"])
@pytest.mark.parametrize("threshold,level", [("value", 2.0), ("quantile", 0.0), ("quantile", 0.37), ("quantile", 0.95),
                                             ("quantile", 1.0), ("top_fraction", 0.01), ("top_fraction", 0.2),
                                             ("top_fraction", 1.0)])  # fmt: skip
@pytest.mark.parametrize("ties", [False, True])
def test_thresholds(device, threshold, level, scope, ties):
    if threshold == "top_fraction" and scope == "batch":
        pytest.skip("refused")
    entropy, mask = draw(6, 83, device, holes=0.1)
    mask[2] = False  # a row without a window
    mask[3, 3:] = False
    if ties:
        entropy = entropy.round()
    mean, count = op.window_entropy(entropy, mask, None, before=0, after=3, shrink=False)
    expected_high, expected = reference.window_select(mean.cpu(), count.cpu(), threshold=threshold, level=level, scope=scope)
    composite = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)
    for name in ("own", "composite"):  # the CPU's selection, and the sorting that other devices use
        arguments = {"threshold": threshold, "level": level, "scope": scope}
        if name == "own":
            high, found = op.window_select(mean, count, **arguments)
        else:
            high, found = op.window_select.default.redispatch(composite, mean, count, **arguments)
        # Interpolation is rounded once, here and in torch.quantile; the mean over rows is a sum of six.
        torch.testing.assert_close(found.cpu(), expected, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
        if threshold == "quantile":  # by the threshold found, whose last bit may differ
            expected_high = (mean >= (found[:, None] if scope == "row" else found)).cpu() & (count > 0).cpu()
        assert torch.equal(high.cpu(), expected_high), name
        if threshold == "top_fraction":
            numbers = (count > 0).sum() if scope == "global" else (count > 0).sum(1)
            taken = high.sum() if scope == "global" else high.sum(1)
            assert torch.equal(taken.cpu(), (numbers.cpu() * level).double().ceil().long().clamp_min(1).minimum(numbers.cpu()))


SELECTIONS = [("quantile", 0.0), ("quantile", 0.5), ("quantile", 0.95), ("quantile", 1.0),
              ("top_fraction", 1e-9), ("top_fraction", 0.05), ("top_fraction", 1.0)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", ["equal", "ties", "sorted", "period", "infinities", "zeros", "denormal", "nan", "outliers"])
@pytest.mark.parametrize("number", [1, 2, 511, 512, 5000])
def test_selection_is_that_of_sorting(dtype, values, number):
    """Values that mislead a selection by samples, on both sides of where it begins to draw them (512)."""
    place = torch.arange(number, dtype=dtype)
    mean = {"equal": torch.full((number,), 1.5, dtype=dtype), "ties": (place * 7 % 11).floor(), "sorted": place,
            "period": torch.where(place % 32 == 0, 1e6, place % 3),  # the samples of 5000 see little else
            "infinities": torch.tensor([math.inf, -math.inf, 1.0], dtype=dtype)[place.long() % 3],
            "zeros": torch.tensor([-0.0, 0.0], dtype=dtype)[place.long() % 2],
            "denormal": (place - number // 2) * torch.finfo(dtype).smallest_normal / 2**15,
            "nan": torch.where(place % 10 == 0, math.nan, torch.rand(number, dtype=dtype)),
            "outliers": torch.where(place == number - 1, 1e30, torch.rand(number, dtype=dtype))}[values]  # fmt: skip
    count = (torch.rand(number) < 0.9).int()
    count[0] = 1
    held = mean[count > 0].sort().values  # NaN last
    n = len(held)
    for threshold, level in SELECTIONS:
        high, found = op.window_select(mean[None], count[None], threshold=threshold, level=level, scope="row")
        if threshold == "top_fraction":
            taken = max(1, math.ceil(level * n))
            expected = held[n - taken]
            order = torch.where(count > 0, mean, -math.inf).masked_fill(count == 0, -math.inf)
            windows = (count > 0).nonzero().flatten()
            first = windows[order[windows].sort(descending=True, stable=True).indices[:taken]]
            assert high[0].nonzero().flatten().tolist() == sorted(first.tolist()), (threshold, level)
        else:
            share, rank = level * (n - 1) % 1, int(level * (n - 1))
            low, above = held[rank].double(), held[min(rank + 1, n - 1)].double()
            expected = (low if share == 0 else low + share * (above - low)).to(dtype)
            assert torch.equal(high[0], (mean >= found[0]) & (count > 0)), (threshold, level)
        torch.testing.assert_close(found[0], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scope", ["row", "batch", "global"])
def test_a_given_value_is_the_threshold_of_no_window_too(device, scope):
    mean, count = torch.zeros(2, 3, device=device), torch.zeros(2, 3, dtype=torch.int32, device=device)
    for select in (torch.ops.isentrope.window_select, reference.window_select):
        high, threshold = select(mean, count, threshold="value", level=0.5, scope=scope)
        assert not high.any() and (threshold == 0.5).all()


def test_no_window_at_all(device):
    entropy = torch.rand(2, 3, device=device)
    for mask in (torch.ones(2, 3, device=device), torch.zeros(2, 3, device=device)):
        for options in ({"quantile": 0.5}, {"top_fraction": 0.5}, {"value": 0.0}):
            found = isentrope.window_entropy(entropy, mask, window=4, **options)
            assert not found.high.any() and not found.mean.any()
            assert found.threshold.isinf().all() or "value" in options
    empty = isentrope.window_entropy(torch.zeros(0, 5, device=device), torch.zeros(0, 5, device=device), scope="global")
    assert empty.mean.shape == empty.high.shape == (0, 5) and empty.threshold.isinf()


def test_ares_windows_and_threshold(device):
    """The released method one response at a time: means of the four tokens behind each trigger word, counted where they are at
    least the mean over responses of the 0.95 quantile of all windows."""
    entropy, mask = draw(5, 200, device)
    tokens, triggers = torch.randint(0, 50, (5, 200), device=device), torch.tensor([3, 17, 40], device=device)
    threshold = isentrope.window_entropy(entropy, mask, window=4, quantile=0.95, scope="batch").threshold
    found = isentrope.window_entropy(entropy, mask, window=4, side="after", at=torch.isin(tokens, triggers), value=threshold.item())
    quantiles, expected = [], torch.zeros_like(found.high)
    for b in range(5):
        n = int(mask[b].sum())
        means = [entropy[b, t : t + 4].mean().item() for t in range(n - 3)]
        if means:
            quantiles.append(torch.quantile(torch.tensor(means), 0.95).item())
    for b in range(5):
        n = int(mask[b].sum())
        for t in range(n - 4):
            if tokens[b, t].item() in (3, 17, 40):
                expected[b, t] = entropy[b, t + 1 : t + 5].mean() >= threshold
    assert threshold.item() == pytest.approx(sum(quantiles) / len(quantiles), rel=1e-6)
    assert torch.equal(found.high, expected)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error,message,count", [
    (ValueError, "count has shape \\[2, 4\\]; wanted \\[2, 5\\]", torch.ones(2, 4, dtype=torch.int32)),
    (TypeError, "count has dtype Long; wanted Int", torch.ones(2, 5, dtype=torch.int64)),
])  # fmt: skip
def test_a_selection_reads_nothing_beyond_its_counts(error, message, count):
    with pytest.raises(error, match=message):
        op.window_select(torch.zeros(2, 5), count, threshold="quantile", level=0.5)


H, M = torch.zeros(2, 5), torch.ones(2, 5)


@pytest.mark.parametrize("error,message,arguments,options", [
    (TypeError, "entropy has dtype Half; wanted Float, Double", (H.half(), M), {}),
    (ValueError, "entropy has 1 dimensions; wanted \\[B, T\\]", (H[0], M[0]), {}),
    (ValueError, "mask has shape \\[2, 4\\]; wanted \\[2, 5\\]", (H, M[:, :4]), {}),
    (ValueError, "at has shape \\[5\\]; wanted \\[2, 5\\]", (H, M), {"at": M[0]}),
    (ValueError, "window is 0; wanted at least 1", (H, M), {"window": 0}),
    (ValueError, "below 2\\^31", (H, M), {"window": 2**31}),
    (ValueError, "side is 'left'; wanted one of following, after, centred, trailing", (H, M), {"side": "left"}),
    (ValueError, "partial is 'keep'; wanted drop or shrink", (H, M), {"partial": "keep"}),
    (ValueError, "value and quantile are given; wanted one of them", (H, M), {"value": 1.0, "quantile": 0.5}),
    (ValueError, "the quantile is 1.5; wanted 0 to 1", (H, M), {"quantile": 1.5}),
    (ValueError, "top_fraction is 0; wanted above 0", (H, M), {"top_fraction": 0.0}),
    (ValueError, "the threshold is NaN", (H, M), {"value": math.nan}),
    (ValueError, "scope is \"all\"; wanted row, batch or global", (H, M), {"scope": "all"}),
    (ValueError, "wanted row or global", (H, M), {"top_fraction": 0.5, "scope": "batch"}),
])  # fmt: skip
def test_errors_name_what_is_wrong(error, message, arguments, options):
    with pytest.raises(error, match=message):
        isentrope.window_entropy(*arguments, **options)
