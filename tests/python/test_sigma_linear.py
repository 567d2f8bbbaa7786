"""sigma_linear, power_step and the modules over them, on the CPU, and on a GPU where there is one, against isentrope.reference
in double."""

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune

import isentrope
from compiled import compiled as in_one_graph
from isentrope import reference, sigma
from isentrope.nn import SigmaConv2d, SigmaLinear, convert_to_sigma, fold, power_step

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MODES = ["through", "detached"]
# rows of x, in, out
SHAPES = [(1, 33, 31), (5, 33, 1), (31, 1, 33), (64, 97, 31), (200, 33, 97), (33, 300, 257)]
INF = float("inf")


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def draw(rows, columns, out, dtype=torch.float32, device="cpu"):
    """x, weight, gamma, u, bias, drawn on the CPU so that every device gets the same. Those of float64 are numbers that float32
    holds, for the plain computation in float32."""
    weight = torch.randn(out, columns)
    (u,), _, _ = reference.power_step([weight], [torch.randn(columns)], steps_max=1)
    drawn = (torch.randn(rows, columns), weight, torch.rand(()) + 0.5, u, torch.randn(out))
    return [t.to(dtype).to(device) for t in drawn]


def compute(op, given, dy, dsigma, sigma_grad):
    """(y, sigma) and gradients of x, weight, gamma and bias for given (x, weight, gamma, u, bias); None where there is none."""
    leaves = [t.detach().clone().requires_grad_(i != 3) for i, t in enumerate(given)]
    y, sigma = op(*leaves, sigma_grad=sigma_grad)
    loss = (y * dy.to(y)).sum()
    if sigma.requires_grad:
        loss = loss + sigma * dsigma
    loss.backward()
    return y, sigma, *(t.grad for t in leaves)


def ours(x, weight, gamma, u, bias, sigma_grad):
    """gamma and u in the dtype of sums, as SigmaLinear keeps them."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return isentrope.sigma_linear(x, weight, gamma.to(wide), u.to(wide), bias, sigma_grad=sigma_grad)


def dot(a, b):
    return (a.double() * b.double()).sum()


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_grad", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(within_twice, device, dtype, shape, sigma_grad):
    plain_dtype = torch.float32 if dtype == torch.float64 else dtype
    actual, exact, plain = [], [], []
    for _ in range(32):  # enough draws for the plain computation to meet its usual error, in each scalar too
        given, dy = draw(*shape, dtype, device), torch.randn(shape[0], shape[2]).to(plain_dtype).to(device)
        actual.append(compute(ours, given, dy, 0.7, sigma_grad))
        exact.append(compute(reference.sigma_linear, [t.double() for t in given], dy, 0.7, sigma_grad))
        plain.append(compute(reference.sigma_linear, [t.to(plain_dtype) for t in given], dy, 0.7, sigma_grad))
    assert actual[0][0].dtype == dtype and actual[0][1].dtype == torch.promote_types(dtype, torch.float32)
    for name, a, p, e in zip(("y", "sigma", "dx", "dweight", "dgamma", "u", "dbias"), zip(*actual), zip(*plain), zip(*exact)):
        if name != "u":
            within_twice(name, torch.stack(a), torch.stack(p), torch.stack(e))


@pytest.mark.parametrize("sigma_grad", MODES)
@pytest.mark.parametrize("needed", range(1, 16))
def test_only_the_gradients_that_are_needed(device, needed, sigma_grad):
    given = draw(7, 33, 31, torch.float64, device)
    weights = torch.randn(7, 31, dtype=torch.float64, device=device)

    def gradients(op):
        leaves = [t.clone().requires_grad_(i != 3 and bool(needed >> min(i, 3) & 1)) for i, t in enumerate(given)]
        (op(*leaves, sigma_grad=sigma_grad)[0] * weights).sum().backward()
        return [t.grad for t in leaves]

    for a, b in zip(gradients(isentrope.sigma_linear), gradients(reference.sigma_linear)):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_sigma_alone_has_a_gradient(device):
    x, weight, gamma, u, _ = draw(7, 33, 31, torch.float64, device)
    leaf = weight.requires_grad_()
    (ours_gradient,) = torch.autograd.grad(isentrope.sigma_linear(x, leaf, gamma, u).sigma, leaf)
    (expected,) = torch.autograd.grad(reference.sigma_linear(x, leaf, gamma, u)[1], leaf)
    torch.testing.assert_close(ours_gradient, expected)
    assert not isentrope.sigma_linear(x, leaf, gamma, u, sigma_grad="detached").sigma.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_and_its_gradient_are_orthogonal(device, dtype):
    given = draw(64, 97, 31, dtype, device)
    dy = torch.randn(64, 31, device=device)

    def cosine(op, **options):
        _, _, _, dweight, *_ = compute(op, given, dy, 0.0, "through")
        return (dot(given[1], dweight) / (given[1].double().norm() * dweight.double().norm())).abs().item()

    assert cosine(isentrope.sigma_linear) <= max(2 * cosine(reference.sigma_linear), torch.finfo(dtype).eps)
    _, _, _, detached, *_ = compute(isentrope.sigma_linear, given, dy, 0.0, "detached")
    assert dot(given[1], detached).abs() > 1e6 * torch.finfo(dtype).eps


@pytest.mark.parametrize("layout", ["3-D", "sliced", "transposed x", "transposed weight", "padded weight", "expanded dy"])
def test_strides(device, layout):
    x, weight, gamma, u, bias = draw(6, 33, 31, torch.float64, device)
    if layout == "3-D":
        x = torch.randn(2, 3, 33, dtype=torch.float64, device=device)
    elif layout == "sliced":
        x = torch.randn(6, 40, dtype=torch.float64, device=device)[:, 3:36]
    elif layout == "transposed x":
        x = torch.randn(33, 6, dtype=torch.float64, device=device).T
    elif layout == "transposed weight":
        weight = torch.randn(33, 31, dtype=torch.float64, device=device).T
    elif layout == "padded weight":
        weight = torch.randn(31, 40, dtype=torch.float64, device=device)[:, :33]
    dy = torch.randn(*x.shape[:-1], 31, dtype=torch.float64, device=device)
    if layout == "expanded dy":
        dy = dy[:1, :1].expand(6, 31)
    results = []
    for op in (isentrope.sigma_linear, reference.sigma_linear):
        leaves = [t.detach().requires_grad_() for t in (x, weight, gamma)]
        y, _ = op(*leaves, u, bias)
        results.append([y, *torch.autograd.grad(y, leaves, dy)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


# ---- special values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_grad", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_zero_gives_the_bias(device, dtype, sigma_grad):
    x, weight, gamma, u, bias = draw(5, 33, 31, dtype, device)
    y, sigma, dx, dweight, dgamma, _, dbias = compute(ours, (x, 0 * weight, gamma, u, bias), torch.ones(5, 31), 0.7, sigma_grad)
    assert sigma == 0 and torch.equal(y, bias.expand(5, 31))
    assert not dx.any() and not dweight.any() and dgamma == 0
    assert torch.equal(dbias, torch.full_like(bias, 5))


@pytest.mark.parametrize("of_x", [True, False])
def test_gamma_of_zero_keeps_its_gradient(device, of_x):
    x, weight, gamma, u, bias = draw(5, 33, 31, torch.float64, device)
    results = []
    for op in (isentrope.sigma_linear, reference.sigma_linear):
        leaves = [x.clone().requires_grad_(of_x), weight.clone().requires_grad_(), torch.zeros_like(gamma).requires_grad_()]
        y, _ = op(*leaves, u, bias)
        (y * y.detach().cos()).sum().backward()
        results.append([t.grad for t in leaves if t.requires_grad])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_a_weight_that_is_not_finite_shows_in_sigma(device, bad):
    x, weight, gamma, u, bias = draw(5, 33, 31, device=device)
    weight[3, 4] = bad
    y, sigma = isentrope.sigma_linear(x, weight, gamma, u, bias)
    assert not sigma.isfinite() and not y.isfinite().all()


def test_empty_batch(device):
    x, weight, gamma, u, bias = draw(0, 33, 31, device=device)
    y, sigma, dx, dweight, dgamma, _, dbias = compute(ours, (x, weight, gamma, u, bias), torch.ones(0, 31), 0.0, "through")
    assert y.shape == (0, 31) and dx.shape == (0, 33)
    assert not dweight.any() and dgamma == 0 and not dbias.any()
    torch.testing.assert_close(sigma, (weight @ u).norm())


# ---- power_step ------------------------------------------------------------------------------------------------------


def layers(dtype, device):
    shapes = [(1, 1), (33, 1), (1, 33), (31, 97), (257, 300), (130, 64), (33, 1025)]
    weights = [torch.randn(shape).bfloat16().to(device, dtype) for shape in shapes]
    us = [torch.nn.functional.normalize(torch.randn(w.shape[1]), dim=0).to(device) for w in weights]
    return weights, [u.double() if dtype == torch.float64 else u for u in us]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"steps_max": 1}, {"steps_max": 7, "tolerance": 0.0}, {}])
def test_power_steps(within_twice, device, dtype, options):
    weights, us = layers(dtype, device)
    exact_us, exact_sigmas, exact_steps = reference.power_step([w.double() for w in weights], [u.double() for u in us], **options)
    plain_us, plain_sigmas, _ = reference.power_step([w.float() for w in weights], [u.float() for u in us], **options)
    sigmas, steps = isentrope.power_step(weights, us, **options)
    assert steps.tolist() == list(exact_steps)
    within_twice("sigmas", sigmas, torch.stack(plain_sigmas), torch.stack(exact_sigmas))
    within_twice("us", torch.cat(us), torch.cat(plain_us), torch.cat(exact_us))


def test_power_steps_stop_for_each_layer_alone(device):
    weights, us = layers(torch.float32, device)
    weights[3], weights[5][2, 2] = torch.zeros_like(weights[3]), float("nan")
    before = [u.clone() for u in us]
    sigmas, steps = isentrope.power_step(weights, us, steps_max=9)
    assert steps[0] == 1 and steps[4] == 9, steps
    assert steps[3] == 0 and sigmas[3] == 0 and torch.equal(us[3], before[3])
    assert steps[5] == 0 and sigmas[5].isnan() and torch.equal(us[5], before[5])
    assert sigmas[[0, 1, 2, 4, 6]].isfinite().all()


def test_power_steps_of_no_layer():
    sigmas, steps = isentrope.power_step([], [])
    assert sigmas.shape == steps.shape == (0,)


def test_power_steps_converge_from_below(device):
    weights, us = layers(torch.float64, device)
    true = torch.stack([torch.linalg.matrix_norm(w, 2) for w in weights])
    last = torch.zeros_like(true)
    for _ in range(40):
        sigmas, _ = isentrope.power_step(weights, us, steps_max=10, tolerance=0.0)
        assert (sigmas >= last * (1 - 1e-14)).all() and (sigmas <= true * (1 + 1e-14)).all()
        last = sigmas
    torch.testing.assert_close(sigmas, true, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_u_may_have_the_dtype_of_its_weight(device, dtype):
    weights, us = layers(dtype, device)
    narrow = [u.to(dtype) for u in us]
    sigmas, _ = isentrope.power_step(weights, narrow, steps_max=3)
    expected, _ = isentrope.power_step(weights, wide := [u.to(dtype).float() for u in us], steps_max=3)
    assert torch.equal(sigmas, expected)
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(narrow, wide))


# ---- what torch asks of an op ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(device, bias):
    x, weight, gamma, u, b = draw(4, 9, 7, torch.float64, device)
    leaves = [t.requires_grad_() for t in (x, weight, gamma, b)]

    def through(x, weight, gamma, b):
        return tuple(isentrope.sigma_linear(x, weight, gamma, u, b if bias else None))

    assert torch.autograd.gradcheck(through, leaves[: 4 if bias else 3] + ([] if bias else [None]))
    # Detached, σ is a constant for the weight: finite differences of a layer whose σ is that of another weight.
    sigma = isentrope.sigma_linear(x, weight, gamma, u).sigma.item()
    y = isentrope.sigma_linear(x, weight, gamma, u, b, sigma_grad="detached").y
    gradients = torch.autograd.grad(y, leaves, dy := torch.randn_like(y))

    def loss(x, weight, gamma, b):
        return ((x @ weight.T * (gamma / sigma) + b) * dy).sum()

    for leaf, gradient in zip(leaves, gradients):
        index = tuple(0 for _ in leaf.shape)
        moved = [leaf.detach().clone() for _ in range(2)]
        moved[0][index] += 1e-5
        moved[1][index] -= 1e-5
        both = [loss(*(m if t is leaf else t.detach() for t in leaves)) for m in moved]
        torch.testing.assert_close(gradient[index], (both[0] - both[1]) / 2e-5, rtol=1e-7, atol=1e-8)


def test_second_derivative_is_refused(device):
    x, weight, gamma, u, _ = draw(4, 9, 7, device=device)
    y, _ = isentrope.sigma_linear(x.requires_grad_(), weight, gamma, u)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="isentrope::sigma_linear_backward.*not implemented"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sigma_grad", MODES)
def test_opcheck(device, dtype, sigma_grad):
    x, weight, gamma, u, bias = draw(5, 33, 31, dtype, device)
    leaves = [t.clone().requires_grad_() for t in (x, weight, gamma, bias)]
    op = torch.ops.isentrope
    options = {"sigma_grad": sigma_grad}
    torch.library.opcheck(op.sigma_linear.default, (*leaves[:3], u, leaves[3]), options)
    torch.library.opcheck(op.sigma_linear.default, (x[None], weight, gamma, u), options)
    y, sigma, v, factors = op.sigma_linear(x, weight, gamma, u, bias)
    saved = (x, weight, u, sigma, v, factors)
    for wanted in ([True] * 4, [False, True, True, False], [True, False, False, True]):
        given = {**options, "wanted": wanted}
        torch.library.opcheck(op.sigma_linear_backward.default, (*saved, torch.randn_like(y), None), given)
    if sigma_grad == "through":
        given = {**options, "wanted": [False, True, False, False]}
        torch.library.opcheck(op.sigma_linear_backward.default, (*saved, None, torch.ones_like(sigma)), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_power_step(device, dtype):
    weights, us = layers(dtype, device)
    torch.library.opcheck(torch.ops.isentrope.power_step.default, (weights, us), {"steps_max": 2})


def test_compile_fullgraph(device):
    given = draw(5, 33, 31, device=device)

    def loss(x, weight, gamma, u, bias):
        y, sigma = isentrope.sigma_linear(x, weight, gamma, u, bias)
        return (y.cos()).sum() + sigma

    compiled = in_one_graph(loss, device, dynamic=True)
    for rows in (5, 4, 3):
        results = []
        for f in (loss, compiled):
            leaves = [t[:rows].clone().requires_grad_() if i == 0 else t.clone().requires_grad_(i != 3) for i, t in enumerate(given)]
            value = f(*leaves)
            value.backward()
            results.append([value, *(t.grad for i, t in enumerate(leaves) if i != 3)])
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)


def test_compile_power_step(device):
    results = []
    for step in (isentrope.power_step, torch.compile(isentrope.power_step, fullgraph=True)):
        torch.manual_seed(0)
        weights, us = layers(torch.float32, device)
        results.append([*step(weights, us, steps_max=3), *us])
    for a, b in zip(*results):
        assert torch.equal(a, b)


def test_meta_and_dtypes_agree(device):
    for dtype in DTYPES:
        given = draw(6, 33, 31, dtype, device)
        op = torch.ops.isentrope.sigma_linear
        given[0] = given[0].view(2, 3, 33)
        described = [[(t.shape, t.dtype, t.stride()) for t in op(*(t.to(where) for t in given))] for where in (device, "meta")]
        assert described[0] == described[1]


def test_autocast(device):
    layer = SigmaLinear(33, 31, device=device)
    x = torch.randn(5, 33, device=device)
    with torch.autocast(device, torch.bfloat16):
        y = layer(x)
        (y.float() ** 2).sum().backward()
    assert y.dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
    given = [t.detach() for t in (x.bfloat16(), layer.weight.bfloat16(), layer.gamma.view(()), layer.u, layer.bias.bfloat16())]
    assert torch.equal(y, isentrope.sigma_linear(*given).y)


# ---- determinism, instruction sets -----------------------------------------------------------------------------------


def test_bits_do_not_depend_on_threads():
    given = draw(300, 513, 260)
    weights, us = layers(torch.float32, "cpu")
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        own = [u.clone() for u in us]
        # y is torch's product, for which torch does not promise this.
        _, sigma, v, factors = torch.ops.isentrope.sigma_linear(*given)
        results.append([sigma, v, factors, *isentrope.power_step(weights, own), *own])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


ANOTHER_INSTRUCTION_SET = """
import sys, torch, isentrope
assert torch.backends.cpu.get_cpu_capability().startswith(sys.argv[2]), torch.backends.cpu.get_cpu_capability()
for given, expected, weights, us, sigmas in torch.load(sys.argv[1]):
    leaves = [t.requires_grad_(i != 3) for i, t in enumerate(given)]
    y, sigma = isentrope.sigma_linear(*leaves)
    y.sum().backward()
    largest = max(b.abs().max().item() for b in expected)  # terms of this size may cancel
    for a, b in zip([y, sigma, *(t.grad for i, t in enumerate(leaves) if i != 3)], expected):
        # Sums of up to 300 terms taken in another order: their square root in roundings, of the largest.
        torch.testing.assert_close(a, b, rtol=0, atol=300**0.5 * torch.finfo(b.dtype).eps * largest)
    torch.testing.assert_close(isentrope.power_step(weights, us, steps_max=5).sigmas, sigmas)
print("same")
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(same_on, capability):
    if capability == "avx2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    cases = []
    for dtype in DTYPES:
        for shape in SHAPES[1:]:
            given = draw(*shape, dtype)
            leaves = [t.clone().requires_grad_(i != 3) for i, t in enumerate(given)]
            y, sigma = isentrope.sigma_linear(*leaves)
            y.sum().backward()
            expected = [t.detach() for t in (y, sigma, *(t.grad for i, t in enumerate(leaves) if i != 3))]
            weights, us = layers(dtype, "cpu")
            cases.append((given, expected, weights, [u.clone() for u in us], isentrope.power_step(weights, us, steps_max=5).sigmas))
    same_on(capability, ANOTHER_INSTRUCTION_SET, cases)


# ---- bad input -------------------------------------------------------------------------------------------------------

X, W, GAMMA, U, B = torch.ones(4, 9), torch.ones(5, 9), torch.ones(()), torch.ones(9), torch.ones(5)


@pytest.mark.parametrize(
    "error, message, arguments, options",
    [
        (TypeError, "weight has dtype Long; wanted Float, BFloat16, Half, Double", (X, W.long(), GAMMA, U), {}),
        (TypeError, "x has dtype Double; wanted Float", (X.double(), W, GAMMA, U), {}),
        (TypeError, "u has dtype Half; wanted Float$", (X, W, GAMMA, U.half()), {}),
        (TypeError, "gamma has dtype Double; wanted BFloat16, Float", (X.bfloat16(), W.bfloat16(), GAMMA.double(), U), {}),
        (TypeError, "bias has dtype Half; wanted Float", (X, W, GAMMA, U, B.half()), {}),
        (ValueError, r"weight has 3 dimensions; wanted \[out, in\]", (X, W[None], GAMMA, U), {}),
        (ValueError, r"weight has shape \[0, 9\]; wanted at least one row and one column", (X, W[:0], GAMMA, U), {}),
        (ValueError, r"x has shape \[4, 8\]; wanted \[..., 9\]", (X[:, 1:], W, GAMMA, U), {}),
        (ValueError, r"x has shape \[\]", (X[0, 0], W, GAMMA, U), {}),
        (ValueError, r"gamma has shape \[1\]; wanted \[\]", (X, W, GAMMA[None], U), {}),
        (ValueError, r"u has shape \[5\]; wanted \[9\]", (X, W, GAMMA, B), {}),
        (ValueError, r"bias has shape \[9\]; wanted \[5\]", (X, W, GAMMA, U, U), {}),
        (ValueError, "x is on meta; wanted cpu, where weight is", (X.to("meta"), W, GAMMA, U), {}),
        (ValueError, "u is on meta; wanted cpu", (X, W, GAMMA, U.to("meta")), {}),
        (ValueError, "sigma_grad is none; wanted through or detached", (X, W, GAMMA, U), {"sigma_grad": "none"}),
    ],
)
def test_bad_input_is_named(error, message, arguments, options):
    with pytest.raises(error, match=message):
        isentrope.sigma_linear(*arguments, **options)


@pytest.mark.parametrize(
    "error, message, weights, us, options",
    [
        (ValueError, "there are 1 weights and 2 us", [W], [U, U], {}),
        (TypeError, r"weights\[1\] has dtype Double; wanted Float", [W, W.double()], [U, U.clone()], {}),
        (ValueError, r"weights\[1\] has 1 dimensions", [W, U], [U, U.clone()], {}),
        (ValueError, r"us\[1\] has shape \[5\]; wanted \[9\]", [W, W], [U, B], {}),
        (ValueError, r"us\[1\] and us\[0\] are one tensor", [W, W], [U, U], {}),
        (ValueError, r"us\[0\] requires grad; wanted a buffer", [W], [U.clone().requires_grad_()], {}),
        (ValueError, "steps_max is 0; wanted at least 1", [W], [U], {"steps_max": 0}),
        (ValueError, "tolerance is -1; wanted 0 or above", [W], [U], {"tolerance": -1.0}),
        (ValueError, "tolerance is nan", [W], [U], {"tolerance": float("nan")}),
    ],
)
def test_bad_input_of_power_step_is_named(error, message, weights, us, options):
    with pytest.raises(error, match=message):
        isentrope.power_step(weights, us, **options)


# ---- modules ---------------------------------------------------------------------------------------------------------


def network(device="cpu"):
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)).to(device)


def sigma_layers(module):
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, (SigmaLinear, SigmaConv2d))}


@pytest.mark.parametrize("rate", [1e-4, 3e-2])
def test_sigma_follows_the_svd(rate):
    """In one run, u of the adaptive steps and beside it one of a single step an update."""
    torch.set_num_threads(1)  # of layers this small threads cost more than they bring
    model = convert_to_sigma(network(), gamma_init="one")
    single = {name: layer.u.clone() for name, layer in sigma_layers(model).items()}
    teacher = torch.randn(16, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    errors = {"adaptive": [], "single": []}
    for _ in range(500):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), torch.tanh(x @ teacher)).backward()
        optimizer.step()
        taken = power_step(model)
        isentrope.power_step([layer.weight.detach() for layer in sigma_layers(model).values()], list(single.values()), steps_max=1)
        found = {"adaptive": [], "single": []}
        for name, layer in sigma_layers(model).items():
            weight = layer.weight.detach().double()
            true = torch.linalg.matrix_norm(weight, 2)
            assert taken[name].sigma <= true * (1 + 1e-6), name  # rounding alone takes it above
            for which, u in (("adaptive", layer.u), ("single", single[name])):
                found[which].append((1 - (weight @ u.double()).norm() / true).item())
        for which, values in found.items():
            errors[which].append(max(values))
    for which in errors:
        errors[which] = torch.tensor(errors[which])
    assert errors["adaptive"].max() <= errors["single"].max(), errors
    assert errors["adaptive"].mean() <= errors["single"].mean(), errors
    if rate > 1e-3:  # an update as large as the weight: one step is far behind, adaptive ones are not
        assert 20 * errors["adaptive"][0] < errors["single"][0], errors


PEAK = """
import pathlib, re, sys, torch, isentrope
status = lambda key: int(re.search(key + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
torch.set_num_threads(1)
weight, gamma, u = torch.randn(4096, 4096, requires_grad=True), torch.ones((), requires_grad=True), torch.randn(4096)
x = torch.randn(4, 4096, requires_grad=True)
isentrope.sigma_linear(x[:, :64], weight[:64, :64], gamma, u[:64]).y.sum().backward()  # what the first call sets up
isentrope.power_step([weight.detach()[:64, :64]], [u[:64].clone()])
weight.grad = None
def growth(run):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = status("VmRSS")
    result = run()
    return result, status("VmHWM") - before
y, forward = growth(lambda: isentrope.sigma_linear(x, weight, gamma, u).y)
_, backward = growth(lambda: y.sum().backward())
_, power = growth(lambda: isentrope.power_step([weight.detach()], [u]))
print(forward, backward, power)
"""


def test_no_weight_is_copied():
    weight = 4096 * 4096 * 4
    told = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(Path(isentrope.__file__).resolve().parents[1])}).stdout  # fmt: skip
    forward, backward, power = (1024 * int(x) for x in told.split())
    # A quarter: what a BLAS packs of it at a time, and pages that allocators keep.
    assert forward < weight / 4 and power < weight / 4, told
    assert weight <= backward < 1.25 * weight, told  # the gradient of W itself, and no more


def test_forward_backward_and_evaluation_leave_u_alone(device):
    model = convert_to_sigma(network(device))
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        x = torch.randn(5, 16, device=device)
        model(x).sum().backward()
        torch.utils.checkpoint.checkpoint(model, x.requires_grad_(), use_reentrant=False).sum().backward()
        with torch.no_grad():
            model.eval()(x)
        model.train()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    power_step(model)
    assert all(torch.equal(value, before[name]) == (not name.endswith("u")) for name, value in model.state_dict().items())


def test_a_power_step_between_forward_and_backward_is_noticed(device):
    model = convert_to_sigma(network(device))
    loss = model(torch.randn(5, 16, device=device)).sum()
    power_step(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_power_step_of_a_module_is_that_of_its_layers(device):
    model = convert_to_sigma(torch.nn.ModuleList([network(device), network(device).double(), torch.nn.Conv2d(3, 8, 3, device=device)]))
    layers = sigma_layers(model)
    expected = {name: (layer.weight.detach().flatten(1), layer.u.clone()) for name, layer in layers.items()}
    found = power_step(model, steps_max=2, tolerance=0.0)
    assert set(found) == set(layers)
    for name, (weight, u) in expected.items():
        sigmas, steps = isentrope.power_step([weight], [u], steps_max=2, tolerance=0.0)
        assert torch.equal(u, layers[name].u) and found[name] == (sigmas[0], steps[0]), name


@pytest.mark.parametrize("size", [(31, 97), (700, 600)])
def test_u_starts_as_the_first_singular_vector(size):
    layer = SigmaLinear(size[1], size[0])
    true = torch.linalg.matrix_norm(layer.weight.detach(), 2)
    # 1e-4: above the 7e-5 that 200 steps leave here; by the SVD nothing but rounding.
    torch.testing.assert_close(layer.sigma(), true, rtol=1e-4 if min(size) > 512 else 1e-6, atol=0)
    assert layer.gamma == 1
    assert SigmaLinear(97, 31, gamma_init="sigma").gamma.item() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_conversion_leaves_the_output(device, dtype):
    model = network(device).to(dtype)
    x = torch.randn(5, 16, device=device, dtype=dtype)
    before, parameters = model(x), dict(model.named_parameters())
    assert convert_to_sigma(model) is model
    assert torch.equal(model(x), before)
    assert all(parameter is dict(model.named_parameters())[name] for name, parameter in parameters.items()), "the same parameters"
    assert len(sigma_layers(model)) == 3


def test_conversion_by_name():
    model = convert_to_sigma(network(), where=lambda name: name in ("0", "4"), sigma_grad="detached")
    assert list(sigma_layers(model)) == ["0", "4"]
    assert model[0].sigma_grad == "detached"
    assert isinstance(convert_to_sigma(torch.nn.Linear(3, 4)), SigmaLinear)


def test_conversion_refuses_by_name():
    with pytest.raises(ValueError, match="there is no nn.Linear or nn.Conv2d to convert"):
        convert_to_sigma(network(), where=lambda name: False)
    model = network()
    torch.nn.init.zeros_(model[2].weight)
    with pytest.raises(ValueError, match="2 has a weight of 0"):
        convert_to_sigma(model)
    torch.nn.init.constant_(model[2].weight, INF)
    with pytest.raises(ValueError, match="2: weight is not finite"):
        convert_to_sigma(model)
    with pytest.raises(ValueError, match="gamma_init is 'two'; wanted 'one' or 'sigma'"):
        SigmaLinear(3, 4, gamma_init="two")
    with pytest.raises(ValueError, match="sigma_grad is 'none'"):
        SigmaLinear(3, 4, sigma_grad="none")


def test_tied_and_shared_layers():
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(11, 8), "head": torch.nn.Linear(8, 11, bias=False), "other": torch.nn.Linear(8, 8)})
    model["head"].weight = model["embedding"].weight
    model["again"] = model["other"]
    with pytest.raises(ValueError, match="head shares its weight"):
        convert_to_sigma(copy.deepcopy(model), where=lambda name: name == "head")
    convert_to_sigma(model)
    assert list(sigma_layers(model)) == ["other"] and model["again"] is model["other"]
    assert fold(model)["again"] is model["other"] and type(model["other"]) is torch.nn.Linear


def trained(model, *input_shape, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(input_shape)).pow(2).mean().backward()
        optimizer.step()
        power_step(model)
    return model


def test_fold_gives_plain_layers_of_the_same_output(within_twice):
    model = trained(convert_to_sigma(network(), gamma_init="one"), 32, 16)
    x = torch.randn(64, 16)
    before, exact = model(x), copy.deepcopy(model).double()(x.double())
    assert fold(model) is model
    assert not sigma_layers(model) and set(model.state_dict()) == set(network().state_dict())
    within_twice("output", before, model(x), exact)
    within_twice("output", model(x), before, exact)


def test_state_dict_round_trip(tmp_path):
    model = trained(convert_to_sigma(network(), gamma_init="one"), 32, 16)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = convert_to_sigma(network())
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    x = torch.randn(5, 16)
    assert torch.equal(model(x), other(x))
    torch.manual_seed(1)
    trained(model, 32, 16)
    torch.manual_seed(1)
    trained(other, 32, 16)
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("options", [{}, {"padding": 1, "stride": 2, "padding_mode": "circular", "bias": False}, {"groups": 3}])
def test_conv(options):
    plain = torch.nn.Conv2d(6, 9, 3, **options).double()
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    before = plain(x)
    layer = convert_to_sigma(copy.deepcopy(plain))
    torch.testing.assert_close(layer(x), before)
    assert layer.u.shape == (6 // options.get("groups", 1) * 9,)
    gradients = []
    for scaled in (layer.scaled_weight, lambda: hat(layer)):
        y = torch.nn.Conv2d._conv_forward(layer, x, scaled(), layer.bias)
        gradients.append(torch.autograd.grad((y * y.detach().cos()).sum(), (layer.weight, layer.gamma)))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)
    assert dot(layer.weight.detach(), gradients[0][0]).abs() <= 1e-12 * layer.weight.norm() * gradients[0][0].norm()
    layer.gamma.data *= 2
    folded = fold(copy.deepcopy(layer))
    assert type(folded) is torch.nn.Conv2d
    torch.testing.assert_close(folded(x), layer(x))


def hat(layer):
    """(γ/σ) · W by the reference."""
    W = layer.weight.flatten(1)
    eye = torch.eye(W.shape[1], dtype=W.dtype)
    return reference.sigma_linear(eye, W, layer.gamma.view(()), layer.u)[0].T.reshape(layer.weight.shape)


@pytest.mark.parametrize("mask", [False, True])
def test_the_fast_path_of_torchs_encoder_is_left(mask):
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2)
    convert_to_sigma(model, gamma_init="one")
    x, options = torch.randn(3, 5, 16), {}
    if mask:
        options["src_key_padding_mask"] = torch.arange(5) >= torch.tensor([5, 4, 3])[:, None]
    expected = model(x, **options)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x, **options), expected)


def test_compiled_model_trains_as_it_does_eagerly():
    results = []
    for compiled in (False, True):
        torch.manual_seed(3)
        model = convert_to_sigma(network(), gamma_init="one")
        step = in_one_graph(model) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            step(torch.randn(32, 16)).pow(2).mean().backward()
            optimizer.step()
            power_step(model)
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], msg=name)


def test_llama_converts_trains_folds_and_opens(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True)  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    tokens = torch.randint(0, 97, (2, 9))
    before = model(tokens).logits
    convert_to_sigma(model)
    assert len(sigma_layers(model)) == 14, "7 of each block; the head is tied"
    assert torch.equal(model(tokens).logits, before)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        power_step(model)
    logits, exact = model(tokens).logits, copy.deepcopy(model).double()(tokens).logits
    fold(model).save_pretrained(tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_close_to_rounding(opened(tokens).logits, logits, exact)
    assert torch.equal(opened(tokens).logits, model(tokens).logits)


def little_llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(config)


def test_save_pretrained_writes_what_is_computed(tmp_path):
    model = convert_to_sigma(little_llama(), gamma_init="one")
    tokens = torch.randint(0, 97, (2, 9))
    with torch.no_grad():
        for layer in sigma_layers(model).values():
            layer.gamma.mul_(1.5)
    logits, exact = model(tokens).logits, copy.deepcopy(model).double()(tokens).logits
    before = copy.deepcopy(model.state_dict())
    for name, save in {
        "model": model.save_pretrained,
        "copy": copy.deepcopy(model).save_pretrained,
        "state": lambda folder: model.save_pretrained(folder, state_dict=model.state_dict()),
    }.items():
        save(tmp_path / name)
        opened, told = type(model).from_pretrained(tmp_path / name, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"]
        assert_close_to_rounding(opened(tokens).logits, logits, exact)
    model.model.save_pretrained(tmp_path / "inner")
    assert torch.equal(type(model.model).from_pretrained(tmp_path / "inner")(tokens)[0], opened.model(tokens)[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "saving changes nothing"
    # And back: a plain state_dict gives the layers its function.
    model.load_state_dict(opened.state_dict())
    assert_close_to_rounding(model(tokens).logits, logits, exact)
    assert "save_pretrained" not in fold(model).__dict__


def test_a_state_dict_of_plain_layers_loads_as_their_function():
    plain, x = network(), torch.randn(5, 16)
    model = convert_to_sigma(network(), gamma_init="one")
    parameters = list(model.parameters())
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model(x), plain(x))
    assert all(a is b for a, b in zip(model.parameters(), parameters)), "an optimiser still has them"
    with pytest.raises(RuntimeError, match='Missing key.*"0.u"'):
        model.load_state_dict({name: value for name, value in model.state_dict().items() if not name.endswith("u")})


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_state_dict_with_gain_loads(shape):
    """The name that gamma had in 0.1.0."""
    model, other = convert_to_sigma(network()), convert_to_sigma(network())
    state = model.state_dict()
    for name in [name for name in state if name.endswith("gamma")]:
        state[name.removesuffix("gamma") + "gain"] = state.pop(name).view(shape) * 1.5
    before = dict(state)
    other.load_state_dict(state)
    assert state == before, "it is the caller's"
    with torch.no_grad():
        for layer in sigma_layers(model).values():
            layer.gamma.mul_(1.5)
    x = torch.randn(5, 16)
    assert torch.equal(model(x), other(x)) and other[0].gamma.shape == (1,)


def test_a_model_made_on_the_meta_device_starts_as_any_other():
    plain = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Conv2d(4, 6, 3))
    with torch.device("meta"):
        assigned = convert_to_sigma(torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Conv2d(4, 6, 3)))
        emptied = torch.nn.Sequential(SigmaLinear(16, 8), SigmaConv2d(4, 6, 3, gamma_init="sigma"))
    assigned.load_state_dict(plain.state_dict(), assign=True)
    for x, i in ((torch.randn(5, 16), 0), (torch.randn(1, 4, 9, 9), 1)):
        torch.testing.assert_close(assigned[i](x), plain[i](x))
    emptied.to_empty(device="cpu")
    torch.manual_seed(0)
    emptied.apply(lambda layer: layer.reset_parameters() if hasattr(layer, "reset_parameters") else None)
    torch.manual_seed(0)
    for layer, made in zip(emptied, (SigmaLinear(16, 8), SigmaConv2d(4, 6, 3, gamma_init="sigma"))):
        for name, value in made.state_dict().items():
            assert torch.equal(layer.state_dict()[name], value), name


def test_hooks_stay_with_their_layer():
    model, x = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 4)), torch.randn(5, 16)
    model[0].register_forward_hook(lambda layer, given, out: 2 * out)
    model[1].register_forward_pre_hook(lambda layer, given, named: ((given[0] + 1,), named), with_kwargs=True)
    handle = model[1].register_forward_hook(lambda layer, given, out: out - 3)
    expected = model(x)
    torch.testing.assert_close(convert_to_sigma(model)(x), expected)
    torch.testing.assert_close(fold(model)(x), expected)
    handle.remove()
    torch.testing.assert_close(model(x), expected + 3)


@pytest.mark.parametrize("computed", [
    lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    lambda layer: torch.nn.utils.spectral_norm(layer),
])  # fmt: skip
def test_a_weight_that_is_computed_from_others_is_refused_by_name(computed):
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 4))
    computed(model[1])
    before = model.state_dict()
    with pytest.raises(ValueError, match="^1 has a weight that is computed from others"):
        convert_to_sigma(model)
    assert list(model.state_dict()) == list(before), "nothing is changed before all is asked"
    assert isinstance(convert_to_sigma(model, where=lambda name: name == "0")[0], SigmaLinear)
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", torch.nn.Identity())
    with pytest.raises(ValueError, match="^0 has a weight that is computed from others"):
        fold(model)


def test_a_layer_without_columns_is_refused_by_name():
    with pytest.raises(ValueError, match=r"weight is of shape \[4, 0\]; wanted at least one row and one column"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the start of such a weight
        SigmaLinear(0, 4)


def test_sigma_layers_are_not_taken_for_plain_ones():
    """By what reads or changes the weights of every nn.Linear and nn.Conv2d."""
    layers = SigmaLinear(8, 8), SigmaConv2d(3, 4, 3)
    assert not any(isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) for layer in layers)
    assert repr(layers[0]) == "SigmaLinear(in_features=8, out_features=8, bias=True)"
    assert repr(layers[1]) == "SigmaConv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))"
    model = convert_to_sigma(little_llama(), gamma_init="one")
    with pytest.raises(TypeError, match="SigmaLinear"):  # a head for more tokens would be made of the raw weight
        model.resize_token_embeddings(101)
    before = copy.deepcopy(model.state_dict())
    model.apply(model._init_weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "proj" in name)
    # What masks a weight by name is right: sigma is that of the masked one.
    layer = layers[0]
    torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    x = torch.randn(5, 8)
    torch.testing.assert_close(layer(x), x @ (layer.gamma * layer.weight / (layer.weight @ layer.u).norm()).T + layer.bias)


def test_adapters_of_peft():
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=False)
    with pytest.raises(ValueError, match=r"Target module SigmaLinear.* is not supported"):
        peft.get_peft_model(convert_to_sigma(little_llama()), options)
    with pytest.raises(ValueError, match="q_proj is an adapter of peft, which merges into its layer's weight; wanted it merged or unloaded"):
        convert_to_sigma(peft.get_peft_model(little_llama(), options))
    # Adapters beside sigma layers, merged and saved, are right.
    model = convert_to_sigma(little_llama(), where=lambda name: "mlp" in name, gamma_init="one")
    adapted = peft.get_peft_model(model, options)
    tokens = torch.randint(0, 97, (2, 9))
    logits, exact = adapted(tokens).logits, copy.deepcopy(adapted).double()(tokens).logits
    assert_close_to_rounding(adapted.merge_and_unload()(tokens).logits, logits, exact)


def test_fully_shard_trains_as_unsharded():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        results = []
        for shard in (False, True):
            torch.manual_seed(3)
            model = convert_to_sigma(network(), gamma_init="one")
            if shard:
                torch.distributed.fsdp.fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
            model = trained(model, 32, 16)
            results.append([t.full_tensor() if shard and isinstance(t, torch.nn.Parameter) else t for t in (*model.parameters(), *model.buffers())])
            results[-1] += [model[0].sigma(), model[0].scaled_weight()]
        assert all(torch.equal(a, b) for a, b in zip(*results))
        with pytest.raises(ValueError, match="^0 is sharded; wanted its full state_dict"):
            fold(model)
        plain = network()
        torch.distributed.fsdp.fully_shard(plain, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="^0 is sharded; wanted fully_shard after the conversion"):
            convert_to_sigma(plain)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("steps", [True, False])
def test_a_missing_power_step_is_told_once(monkeypatch, steps):
    monkeypatch.setattr(sigma._Sigma, "_warned", False)
    model = convert_to_sigma(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(30):
            model(torch.randn(4, 16)).sum().backward()
            model(torch.randn(4, 16)).sum().backward()  # accumulation is no change
            optimizer.step()
            if steps:
                power_step(model)
    told = ["without isentrope.nn.power_step(model)" in str(w.message) for w in told]
    assert told == ([] if steps else [True])


def assert_close_to_rounding(folded, logits, exact):
    """folded is at most twice as far from exact as logits are."""
    error, allowed = ((x.double() - exact).abs().max().item() for x in (folded, logits))
    assert error <= 2 * allowed, f"logits: error {error:.3g}, allowed {2 * allowed:.3g}"
