"""linear_token_entropy on the CPU, and on a GPU where there is one, against isentrope.reference in double."""

import sys
from pathlib import Path

import pytest
import torch

import isentrope
from compiled import compiled as in_one_graph
from isentrope import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = ["logprob", "entropy", "lse", "sum_p2", "sum_p2_logp"]
INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def draw(rows, width, vocab, dtype=torch.float32, device="cpu", deviation=2.0):
    """hidden [*rows, C], weight [V, C] whose logits have that deviation, bias [V], target; drawn on the CPU."""
    hidden = torch.randn(*rows, width).to(dtype)
    weight = (torch.randn(vocab, width) * deviation / width**0.5).to(dtype)
    bias = torch.randn(vocab).to(dtype)
    target = torch.randint(0, vocab, rows)
    return [x.to(device) for x in (hidden, weight, bias, target)]


def combined(outputs, weights):
    return sum((output * weight.to(output)).sum() for output, weight in zip(outputs, weights))


def check(within_twice, hidden, weight, bias, target, only=(0, 1, 2), **options):
    """Outputs and gradients of the op against the reference; bias may be None."""
    dtype = hidden.dtype
    plain_dtype = torch.float32 if dtype == torch.float64 else dtype
    given = [None if x is None else x.to(plain_dtype).to(dtype) for x in (hidden, weight, bias)]  # the same values in both
    weights = [torch.randn(target.shape, device=target.device) * (i in only) for i in range(3)]

    def compute(op, dtype, **more):
        leaves = [None if x is None else x.detach().to(dtype).clone().requires_grad_() for x in given]
        outputs = op(leaves[0], leaves[1], target, bias=leaves[2], **options, **more)
        combined(outputs, weights).backward()
        return outputs, [x.grad for x in leaves if x is not None]

    actual, gradients = compute(isentrope.linear_token_entropy, dtype, moments=True)
    exact, exact_gradients = compute(reference.linear_token_entropy, torch.float64)
    plain, plain_gradients = compute(reference.linear_token_entropy, plain_dtype)
    for name, a, p, e in zip(NAMES, actual, plain, exact):
        assert a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), name
        within_twice(name, a, p, e)
    for name, a, p, e in zip(("dhidden", "dweight", "dbias"), gradients, plain_gradients, exact_gradients):
        assert a.dtype == dtype, name
        within_twice(name, a, p, e)


# ---- values ----------------------------------------------------------------------------------------------------------


# Vocabularies of one block, of a ragged last one, and of more blocks than there are shares of them.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, width, vocab", [((33,), 33, 97), ((31,), 1, 1031), ((2, 33), 65, 1031), ((33,), 31, 1), ((97,), 300, 5003)])
def test_values_and_gradients(within_twice, device, dtype, rows, width, vocab):
    hidden, weight, bias, target = draw(rows, width, vocab, dtype, device)
    target.view(-1)[1] = -100
    check(within_twice, hidden, weight, None, target, temperature=0.7)
    check(within_twice, hidden, weight, bias, target, softcap=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1, 97, 1031])
@pytest.mark.parametrize("width", [1, 33])
def test_one_row(device, dtype, vocab, width):
    """A row alone is what it is among others: on the CPU to the bit."""
    hidden, weight, bias, target = draw((31,), width, vocab, dtype, device)

    def compute(rows):
        leaf = hidden[rows].detach().requires_grad_()
        out = isentrope.linear_token_entropy(leaf, weight, target[rows], bias=bias, moments=True)
        combined(out, [torch.ones(len(leaf))] * 3).backward()
        return [*out, leaf.grad]

    together = compute(slice(None))
    for n in (0, 5, 30):
        for a, b in zip(compute(slice(n, n + 1)), together):
            torch.testing.assert_close(a[0], b[n], rtol=0 if device == "cpu" else 1e-5, atol=0 if device == "cpu" else 1e-5)


@pytest.mark.parametrize("only", [(0,), (1,), (2,)])
def test_one_gradient_at_a_time(within_twice, device, only):
    check(within_twice, *draw((65,), 33, 297, device=device), only=only)


@pytest.mark.parametrize("offset", [-3e4, 3e4])
def test_logits_far_from_zero(within_twice, device, offset):
    hidden, weight, bias, target = draw((64,), 33, 1031, device=device)
    check(within_twice, hidden, weight, bias + offset, target)


def test_is_token_entropy_of_the_logits(device):
    """The same sums, blocks of the vocabulary apart."""
    hidden, weight, _, target = draw((40,), 64, 3000, device=device)
    fused = isentrope.linear_token_entropy(hidden, weight, target, moments=True)
    plain = isentrope.token_entropy(hidden @ weight.T, target, moments=True)
    for name, a, b in zip(NAMES, fused, plain):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)


# ---- special rows ----------------------------------------------------------------------------------------------------


def test_rows_without_a_distribution(device):
    hidden, weight, bias, target = draw((6,), 7, 600, device=device)
    bias[:] = -INF  # every logit
    leaf = hidden.requires_grad_()
    out = isentrope.linear_token_entropy(leaf, weight, target, bias=bias, moments=True)
    assert [x.unique().tolist() for x in out] == [[-INF], [0], [-INF], [0], [0]]
    combined(out, [torch.ones(6)] * 3).backward()
    assert (leaf.grad == 0).all()

    bias[:] = 0
    hidden = hidden.detach().clone()
    hidden[1, 3], hidden[2, 0] = NAN, INF
    leaf, matrix = hidden.requires_grad_(), weight.clone().requires_grad_()
    out = isentrope.linear_token_entropy(leaf, matrix, target, bias=bias, moments=True)
    for name, x in zip(NAMES, out):
        assert x[1:3].isnan().all() and x[[0, 3, 4, 5]].isfinite().all(), f"{name}: {x}"
    (out.logprob + out.entropy).sum().backward()
    assert leaf.grad[1:3].isnan().all() and leaf.grad[[0, 3, 4, 5]].isfinite().all()
    assert matrix.grad.isnan().all()


def test_minus_infinity(within_twice, device):
    hidden, weight, bias, target = draw((64,), 33, 600, device=device)
    masked = torch.arange(600, device=device) % 3 > 0
    bias[masked] = -INF
    target = target // 3 * 3
    check(within_twice, hidden, weight, bias, target, only=(1, 2))
    matrix = weight.clone().requires_grad_()
    isentrope.linear_token_entropy(hidden, matrix, target, bias=bias).logprob.sum().backward()
    assert (matrix.grad[masked] == 0).all() and (matrix.grad[~masked] != 0).any()
    assert (isentrope.linear_token_entropy(hidden, weight, target + 1, bias=bias).logprob == -INF).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_are_not_read(device, dtype):
    hidden, weight, _, target = draw((3, 70), 33, 300, dtype, device)
    target[0, 3:60], target[1], target[2, ::2] = 7, 7, 7
    ignored = target == 7
    hidden[ignored] = NAN
    leaf, matrix = hidden.requires_grad_(), weight.requires_grad_()
    out = isentrope.linear_token_entropy(leaf, matrix, target, ignore_index=7, moments=True)
    combined(out, [torch.ones(3, 70)] * 3).backward()
    assert all((x[ignored] == 0).all() and x[~ignored].isfinite().all() for x in out)
    assert (leaf.grad[ignored] == 0).all() and (leaf.grad[~ignored] != 0).any(-1).all()

    alone, same = hidden.detach()[~ignored].requires_grad_(), weight.detach().clone().requires_grad_()
    picked = isentrope.linear_token_entropy(alone, same, target[~ignored], moments=True)
    combined(picked, [torch.ones(len(alone))] * 3).backward()
    if device == "cpu":  # a row's bits do not depend on the rows beside it
        assert all(torch.equal(x[~ignored], y) for x, y in zip(out, picked))
        assert torch.equal(leaf.grad[~ignored], alone.grad) and torch.equal(matrix.grad, same.grad)


def test_nothing_counts(device):
    for rows in ((5,), (0,), (2, 0), (0, 3)):
        hidden, weight, bias, target = draw(rows, 7, 50, device=device)
        leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
        out = isentrope.linear_token_entropy(leaves[0], leaves[1], torch.full_like(target, -100), bias=leaves[2], moments=True)
        assert all(x.shape == target.shape and (x == 0).all() for x in out)
        out.entropy.sum().backward()
        assert all(x.grad.shape == x.shape and (x.grad == 0).all() for x in leaves)


def test_a_row_that_nothing_flows_into_gets_no_gradient(device):
    hidden, weight, _, target = draw((3,), 7, 50, device=device)
    hidden[0, 3] = NAN
    leaf, matrix = hidden.requires_grad_(), weight.requires_grad_()
    isentrope.linear_token_entropy(leaf, matrix, target).logprob[1].backward()
    assert (leaf.grad[[0, 2]] == 0).all() and leaf.grad[1].isfinite().all() and matrix.grad.isfinite().all()


@pytest.mark.parametrize("view", ["shifted", "transposed", "strided width", "padded"])
def test_strides(device, view):
    hidden, weight, _, _ = draw((5, 6), 64, 300, device=device)
    hidden = {"shifted": hidden[:, :-1], "transposed": hidden.transpose(0, 1), "strided width": hidden[..., ::2],
              "padded": hidden[..., 5:38]}[view]  # fmt: skip
    weight = weight[:, : hidden.shape[-1]]
    target = torch.randint(0, 300, hidden.shape[:-1]).to(device)

    def compute(hidden, weight):
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
        out = isentrope.linear_token_entropy(*leaves, target)
        combined(out, [torch.ones(target.shape)] * 3).backward()
        return [*out, leaves[0].grad, leaves[1].grad]

    for a, b in zip(compute(hidden, weight), compute(hidden.contiguous(), weight.contiguous())):
        torch.testing.assert_close(a, b, rtol=0 if device == "cpu" else 1e-5, atol=0 if device == "cpu" else 1e-5)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_logits_never_exist():
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "benchmarks"))
    from linear_token_entropy import peak_bytes_of_new_thread as peak_bytes

    N, C, V = 600, 64, 60_000
    hidden, weight, _, target = draw((N,), C, V)
    logits = 4 * N * V
    weights = torch.randn(3, N)

    def forward():
        return isentrope.linear_token_entropy(hidden, weight, target, moments=True)

    def both():
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
        combined(isentrope.linear_token_entropy(*leaves, target), weights).backward()
        return leaves[0].grad, leaves[1].grad

    both()  # what is loaded at the first call; what a thread then keeps, a new one has to take again
    if peak_bytes(forward) is None:
        pytest.skip("no high-water mark of memory here")
    constant = 1 << 20
    used = peak_bytes(forward)
    assert used <= 0.02 * logits + constant, f"{used} bytes beside [N, V] of {logits}"
    used = peak_bytes(both) - hidden.nbytes - weight.nbytes  # the gradients
    assert used <= 0.02 * logits + constant, f"{used} bytes beside [N, V] of {logits} and the gradients"


# ---- what torch asks of an op ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(device, softcap):
    hidden, weight, bias, target = draw((2, 3), 5, 37, torch.float64, device)
    target[0, 2] = -100

    def op(h, w, b):
        return isentrope.linear_token_entropy(h, w, target, bias=b, softcap=softcap, temperature=0.8)

    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradcheck(lambda w: op(hidden.detach(), w, None), [weight])


def test_gradients_only_where_they_are_wanted(device):
    hidden, weight, bias, target = draw((4,), 5, 37, device=device)
    for i in range(3):
        leaves = [x.detach().requires_grad_(i == j) for j, x in enumerate((hidden, weight, bias))]
        out = isentrope.linear_token_entropy(leaves[0], leaves[1], target, bias=leaves[2], moments=True)
        assert [x.requires_grad for x in out] == [True, True, True, False, False]
        (out.logprob + out.entropy).sum().backward()
        assert [x.grad is not None for x in leaves] == [i == j for j in range(3)]


def test_second_derivative_is_refused(device):
    hidden, weight, _, target = draw((4,), 5, 37, device=device)
    out = isentrope.linear_token_entropy(hidden.requires_grad_(), weight, target)
    (first,) = torch.autograd.grad(out.entropy.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="isentrope::linear_token_entropy_backward.*not implemented"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [(5,), (2, 3)])
def test_opcheck(device, dtype, rows):
    hidden, weight, bias, target = draw(rows, 9, 33, dtype, device)
    op = torch.ops.isentrope.linear_token_entropy.default
    leaves = (hidden.requires_grad_(), weight.requires_grad_(), target)
    for options in ({}, {"bias": bias.requires_grad_(), "softcap": 4.0, "temperature": 0.7, "moments": True}):
        torch.library.opcheck(op, leaves, options)
    outputs = op(hidden, weight, target)
    given = torch.randn_like(outputs[0])
    saved = [x.detach() for x in (hidden, weight, target, outputs[1], outputs[3], outputs[4])]
    for wanted in ((True, True, False), (False, True, True)):
        for incoming in ((given, given, given), (None, given, None)):
            torch.library.opcheck(torch.ops.isentrope.linear_token_entropy_backward.default, (*saved, *incoming),
                                  {"bias": bias.detach() if wanted[2] else None, "wanted": wanted})  # fmt: skip


def test_compile_fullgraph(device):
    source, weight, bias, target = draw((5,), 33, 97, device=device)

    def loss(hidden, weight, bias, target):
        out = isentrope.linear_token_entropy(hidden * 1.5, weight, target, bias=bias, softcap=5.0, moments=True)
        return (out.logprob - 0.1 * out.entropy + out.lse).sum() + out.sum_p2.sum()

    compiled = in_one_graph(loss, device, dynamic=True)
    for rows in (5, 4, 3):
        results = []
        for f in (loss, compiled):
            leaves = [source[:rows].clone().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
            value = f(*leaves, target[:rows])
            value.backward()
            results.append((value, *(x.grad for x in leaves)))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)


def test_meta_and_dtypes_agree(device):
    for dtype in DTYPES:
        hidden, weight, bias, target = draw((2, 3), 5, 37, dtype, device)
        real = torch.ops.isentrope.linear_token_entropy(hidden, weight, target, bias=bias, moments=True)
        meta = torch.ops.isentrope.linear_token_entropy(*(x.to("meta") for x in (hidden, weight, target)), bias=bias.to("meta"), moments=True)
        assert [(x.shape, x.dtype, x.stride()) for x in real] == [(x.shape, x.dtype, x.stride()) for x in meta]


def test_autocast(device):
    hidden, weight, bias, target = draw((4,), 5, 37, device=device)
    with torch.autocast(device, torch.bfloat16):
        cast = isentrope.linear_token_entropy(hidden.requires_grad_(), weight, target, bias=bias)
    expected = isentrope.linear_token_entropy(hidden.bfloat16(), weight.bfloat16(), target, bias=bias.bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(cast, expected))
    cast.entropy.sum().backward()
    assert hidden.grad.dtype == torch.float32


# ---- determinism, instruction sets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, width, vocab", [(3, 40, 20_003), (700, 33, 26), (250, 65, 2000)])
def test_bits_do_not_depend_on_threads(dtype, rows, width, vocab):
    hidden, weight, bias, target = draw((rows,), width, vocab, dtype)
    target[1::5] = -100
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        out = isentrope.linear_token_entropy(leaves[0], leaves[1], target, bias=leaves[2], softcap=9.0, moments=True)
        (out.logprob + out.entropy).sum().backward()
        results.append([*out, *(x.grad for x in leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


ANOTHER_INSTRUCTION_SET = """
import sys, torch, isentrope
assert torch.backends.cpu.get_cpu_capability().startswith(sys.argv[2]), torch.backends.cpu.get_cpu_capability()
for hidden, weight, target, expected, gradients in torch.load(sys.argv[1]):
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    out = isentrope.linear_token_entropy(*leaves, target, softcap=6.0, moments=True)
    (out.logprob + out.entropy).sum().backward()
    # products and sums taken in another order, gradients of bfloat16 and half rounded once more
    for a, b in zip(out, expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(leaves, gradients):
        torch.testing.assert_close(a.grad, b, rtol=1e-4 if b.dtype == torch.float32 else 2e-2, atol=1e-5 if b.itemsize > 2 else 1e-2)
print("same")
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(same_on, capability):
    ours = torch.backends.cpu.get_cpu_capability()
    if capability == "avx2" and ours not in ("AVX2", "AVX512"):
        pytest.skip(f"this processor has {ours} only")
    cases = []
    for dtype in DTYPES:
        for rows, width, vocab in ((64, 25, 26), (7, 65, 4097)):
            hidden, weight, _, target = draw((rows,), width, vocab, dtype)
            leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
            out = isentrope.linear_token_entropy(*leaves, target, softcap=6.0, moments=True)
            (out.logprob + out.entropy).sum().backward()
            cases.append((hidden, weight, target, [x.detach() for x in out], [x.grad for x in leaves]))
    same_on(capability, ANOTHER_INSTRUCTION_SET, cases)


# ---- bad input -------------------------------------------------------------------------------------------------------

HIDDEN, WEIGHT, TARGET = torch.zeros(4, 5), torch.zeros(9, 5), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    "error, message, arguments, options",
    [
        (TypeError, "hidden has dtype Long; wanted Float, BFloat16, Half, Double", (HIDDEN.long(), WEIGHT, TARGET), {}),
        (TypeError, "weight has dtype Double; wanted Float", (HIDDEN, WEIGHT.double(), TARGET), {}),
        (TypeError, "target has dtype Int; wanted Long", (HIDDEN, WEIGHT, TARGET.int()), {}),
        (TypeError, "bias has dtype Double; wanted Float", (HIDDEN, WEIGHT, TARGET), {"bias": torch.zeros(9).double()}),
        (ValueError, r"hidden has 1 dimensions; wanted \[N, C\] or \[B, T, C\]", (HIDDEN[0], WEIGHT, TARGET[0]), {}),
        (ValueError, r"weight has 1 dimensions; wanted \[V, C\]", (HIDDEN, WEIGHT[0], TARGET), {}),
        (ValueError, r"weight has shape \[0, 5\]; wanted a vocabulary and a width of at least 1", (HIDDEN, WEIGHT[:0], TARGET), {}),
        (ValueError, r"hidden has shape \[4, 5\]; wanted \[..., 4\], the columns of weight", (HIDDEN, WEIGHT[:, :4], TARGET), {}),
        (ValueError, r"target has shape \[3\]; wanted \[4\]", (HIDDEN, WEIGHT, TARGET[:3]), {}),
        (ValueError, "weight is on meta; wanted cpu, where hidden is", (HIDDEN, WEIGHT.to("meta"), TARGET), {}),
        (ValueError, r"bias has shape \[5\]; wanted \[9\] \(the rows of weight\)", (HIDDEN, WEIGHT, TARGET), {"bias": torch.zeros(5)}),
        (ValueError, "softcap is 0; wanted above 0, or none", (HIDDEN, WEIGHT, TARGET), {"softcap": 0.0}),
        (ValueError, "softcap is inf", (HIDDEN, WEIGHT, TARGET), {"softcap": INF}),
        (ValueError, "temperature is 0; wanted above 0", (HIDDEN, WEIGHT, TARGET), {"temperature": 0.0}),
        (IndexError, r"linear_token_entropy: target\[2\].* is 9; wanted 0 to 8 or ignore_index, which is -100", (HIDDEN, WEIGHT, torch.tensor([0, 8, 9, 1])), {}),
        (IndexError, r"target\[3\].* is -100; wanted 0 to 8 or ignore_index, which is 0", (HIDDEN, WEIGHT, torch.tensor([0, 0, 1, -100])), {"ignore_index": 0}),
    ],
)  # fmt: skip
def test_bad_input(error, message, arguments, options):
    with pytest.raises(error, match=message):
        isentrope.linear_token_entropy(*arguments, **options)


def test_bad_backward_arguments():
    rows = torch.zeros(4)
    op = torch.ops.isentrope.linear_token_entropy_backward
    with pytest.raises(ValueError, match=r"linear_token_entropy_backward: dlogprob has shape \[3\]; wanted \[4\]"):
        op(HIDDEN, WEIGHT, TARGET, rows, rows, rows, rows[:3], None, None, wanted=(True, True, False))
    with pytest.raises(ValueError, match=r"wanted\[2\] asks for the gradient of a bias, and there is none"):
        op(HIDDEN, WEIGHT, TARGET, rows, rows, rows, rows, None, None, wanted=(True, True, True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_target_out_of_range_on_a_gpu():
    hidden, weight, _, target = draw((4,), 7, 33, device="cuda")
    target[1], target[2] = 33, -1
    leaf = hidden.requires_grad_()
    out = isentrope.linear_token_entropy(leaf, weight, target, moments=True)
    out.logprob.sum().backward()
    assert all(x[1:3].isnan().all() and x[[0, 3]].isfinite().all() for x in out)
    assert leaf.grad[1:3].isnan().all() and leaf.grad[[0, 3]].isfinite().all()
