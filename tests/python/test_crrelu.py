"""crrelu on the CPU, and on a GPU where there is one, against isentrope.reference in double."""

import pytest
import torch

import isentrope
from isentrope import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
op = torch.ops.isentrope


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def outcome(function, x, epsilon, dy):
    """y, dx, dε of function."""
    leaves = [x.detach().clone().requires_grad_(), epsilon.detach().clone().requires_grad_()]
    y = function(*leaves)
    y.backward(dy.to(y))
    return y, leaves[0].grad, leaves[1].grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (31,), (3, 97), (40_001,), (7, 33, 5), (0, 4)])
def test_values_and_gradients(within_twice, device, dtype, shape):
    x, dy = (2 * torch.randn(shape, device=device)).to(dtype).float(), torch.randn(shape, device=device).to(dtype).float()
    for size in (0.01, -0.7, 3.0):
        epsilon = torch.tensor([size], device=device)
        ours = outcome(isentrope.crrelu, x.to(dtype), epsilon.double() if dtype == torch.float64 else epsilon, dy)
        exact = outcome(reference.crrelu, x.double(), epsilon.double(), dy.double())
        plain = outcome(reference.crrelu, x, epsilon, dy)
        for name, a, p, e in zip(("y", "dx", "depsilon"), ours, plain, exact):
            if name == "depsilon" and x.numel() > 1:
                # Sums whose terms' signs cancel: measured by what is summed.
                terms = (dy.double() * x.double() * torch.exp(-x.double().square() / 2)).abs().sum()
                assert (a.double() - e).abs() <= (1e-12 if dtype == torch.float64 else 1e-6) * terms
            else:
                within_twice(name, a, p, e)


def test_far_out_and_nan(device):
    x = torch.tensor([float("inf"), -float("inf"), 1e30, -1e30, 50.0, -50.0, 0.0, float("nan")], device=device)
    for dtype in (torch.float32, torch.float64):
        y, dx, depsilon = outcome(isentrope.crrelu, x.to(dtype)[:7], torch.tensor([0.5], dtype=dtype, device=device), torch.ones(7, device=device))
        assert y.tolist() == [float("inf"), 0, x[2].to(dtype).item(), 0, 50, 0, 0] and dx.tolist() == [1, 0, 1, 0, 1, 0, 0.5] and depsilon.item() == 0
        y, dx, depsilon = outcome(isentrope.crrelu, x.to(dtype), torch.tensor([0.5], dtype=dtype, device=device), torch.ones(8, device=device))
        assert y[7].isnan() and dx[7].isnan() and depsilon.isnan() and not y[:7].isnan().any()


def test_gradcheck_and_opcheck(device):
    x, epsilon = torch.randn(3, 5, dtype=torch.float64, device=device), torch.tensor([0.3], dtype=torch.float64, device=device)
    torch.autograd.gradcheck(isentrope.crrelu, (x.requires_grad_(), epsilon.requires_grad_()))
    torch.library.opcheck(op.crrelu.default, (x, epsilon))
    torch.library.opcheck(op.crrelu.default, (torch.randn(4, 6, device=device).mT.requires_grad_(), torch.tensor([0.1], device=device)))


def test_compile_has_no_graph_break(device):
    x, epsilon = torch.randn(9, 17, device=device, requires_grad=True), torch.tensor([0.2], device=device, requires_grad=True)
    f = lambda x, epsilon: isentrope.crrelu(2 * x, epsilon).square().sum()  # noqa: E731
    expected, actual = (torch.autograd.grad(g(x, epsilon), (x, epsilon)) for g in (f, torch.compile(f, fullgraph=True)))
    torch.testing.assert_close(actual, expected)


def test_bits_do_not_depend_on_threads():
    x, dy, found = torch.randn(200_003), torch.randn(200_003), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(outcome(isentrope.crrelu, x, torch.tensor([0.1]), dy))
    for a, b in zip(*found):
        assert torch.equal(a, b)


@pytest.mark.parametrize("x, epsilon, message", [
    (torch.ones(3), torch.ones(2), r"epsilon has shape \[2\]; wanted \[1\]"),
    (torch.ones(3, dtype=torch.int64), torch.ones(1), "x has dtype Long; wanted Float"),
])  # fmt: skip
def test_what_is_refused_is_named(x, epsilon, message):
    with pytest.raises((ValueError, TypeError), match=message):
        isentrope.crrelu(x, epsilon)
