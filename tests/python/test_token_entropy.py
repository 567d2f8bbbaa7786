"""token_entropy on the CPU, and on a GPU where there is one, against isentrope.reference in double."""

import pytest
import torch

import isentrope
from isentrope import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = ["logprob", "entropy", "lse", "sum_p2", "sum_p2_logp"]
INF = float("inf")


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def draw(*shape, dtype=torch.float32, device="cpu", deviation=3.0):
    """Logits and targets, drawn on the CPU so that every device gets the same."""
    logits = (torch.randn(*shape) * deviation).to(dtype)
    return logits.to(device), torch.randint(0, shape[-1], shape[:-1]).to(device)


def gradients(outputs, weights):
    """The gradient of Σ weight·output, over logprob, entropy and lse."""
    return sum((output * weight.to(output)).sum() for output, weight in zip(outputs, weights))


def check(within_twice, logits, target, only=(0, 1, 2), **options):
    """Outputs and gradient of the op against the reference; options as of the op."""
    plain_dtype = torch.float32 if logits.dtype == torch.float64 else logits.dtype
    logits = logits.to(plain_dtype).to(logits.dtype)  # the same values in both
    weights = [torch.randn(target.shape, device=target.device) * (i in only) for i in range(3)]

    def compute(op, dtype, **more):
        leaf = logits.detach().to(dtype).clone().requires_grad_()
        outputs = op(leaf, target, **options, **more)
        gradients(outputs, weights).backward()
        return outputs, leaf.grad

    actual, dlogits = compute(isentrope.token_entropy, logits.dtype, moments=True)
    exact, exact_dlogits = compute(reference.token_entropy, torch.float64)
    plain, plain_dlogits = compute(reference.token_entropy, plain_dtype)
    for name, a, p, e in zip(NAMES, actual, plain, exact):
        assert a.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32), name
        within_twice(name, a, p, e)
    assert dlogits.dtype == logits.dtype
    within_twice("dlogits", dlogits, plain_dlogits, exact_dlogits)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 3, 31, 33, 97, 1000, 4097, 40001])
def test_values_and_gradients(within_twice, device, dtype, vocab):
    logits, target = draw(64 if vocab < 5000 else 3, vocab, dtype=dtype, device=device)
    target[1] = -100
    check(within_twice, logits, target, temperature=0.7)


@pytest.mark.parametrize("only", [(0,), (1,), (2,)])
def test_one_gradient_at_a_time(within_twice, device, only):
    check(within_twice, *draw(33, 97, device=device), only=only)


def test_large_vocabulary(within_twice, device):
    check(within_twice, *draw(2, 300_000, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [-3e4, 3e4])
def test_logits_far_from_zero(within_twice, device, dtype, offset):
    logits, target = draw(33, 5003, device=device)
    check(within_twice, (logits + offset).to(dtype), target)


def test_far_apart_logits_keep_an_entropy_of_zero(device):
    logits = torch.full((3, 9000), -3e4, device=device)
    logits[:, 8191] = 3e4
    out = isentrope.token_entropy(logits, torch.tensor([8191, 0, 8191], device=device))
    assert out.entropy.tolist() == [0, 0, 0]
    assert out.logprob.tolist() == [0, -6e4, 0]
    assert out.lse.tolist() == [3e4] * 3


@pytest.mark.parametrize("count", [1, 7, 4096, 40001])
def test_uniform_rows(device, count):
    logits = torch.full((2, 40001), -INF, device=device)
    logits[:, -count:] = 2.5
    out = isentrope.token_entropy(logits, torch.tensor([40000, 40000], device=device))
    expected = torch.tensor(count, dtype=torch.float64).log().item()
    assert out.entropy.tolist() == pytest.approx([expected] * 2, rel=1e-6, abs=0)
    assert (out.logprob == -out.entropy).all() or out.logprob.tolist() == pytest.approx([-expected] * 2, rel=1e-6, abs=0)


# ---- special rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [40, 9001])
def test_minus_infinity(within_twice, device, vocab):
    # Enough rows for plain torch to meet its usual error.
    logits, target = draw(256 if vocab < 1000 else 16, vocab, device=device)
    logits[0, torch.arange(vocab, device=device) % 3 > 0] = -INF  # two thirds, everywhere
    logits[1, :-1] = -INF  # all but one
    logits[2, : vocab // 2] = -INF
    target[:3] = torch.tensor([0, vocab - 1, vocab - 1])
    check(within_twice, logits, target, only=(1, 2))
    leaf = logits.clone().requires_grad_()
    isentrope.token_entropy(leaf, target).logprob.sum().backward()
    assert (leaf.grad[logits == -INF] == 0).all()
    target[0] = 1  # a target with p = 0
    out = isentrope.token_entropy(logits, target)
    assert out.logprob[0] == -INF and out.entropy[0].isfinite()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [5, 9001])
def test_rows_without_a_distribution(device, dtype, vocab):
    logits, target = draw(5, vocab, dtype=dtype, device=device)
    logits[0] = -INF
    logits[1, 2] = INF
    logits[2, vocab - 1] = float("nan")
    logits[3] = float("nan")
    leaf = logits.requires_grad_()
    out = isentrope.token_entropy(leaf, target, moments=True)
    assert [x[0].item() for x in out] == [-INF, 0, -INF, 0, 0]
    for name, x in zip(NAMES, out):
        assert x[1:4].isnan().all() and x[4].isfinite(), f"{name}: {x}"
    gradients(out, [torch.ones(5)] * 3).backward()
    assert (leaf.grad[0] == 0).all()
    assert leaf.grad[1:4].isnan().all()
    assert leaf.grad[4].isfinite().all()


def test_ignored_rows_are_not_read(device):
    logits, target = draw(4, 50, device=device)
    logits[1] = float("nan")
    target[1] = 7
    leaf = logits.requires_grad_()
    out = isentrope.token_entropy(leaf, target, moments=True, ignore_index=7)
    ignored = target == 7
    gradients(out, [torch.ones(4)] * 3).backward()
    assert all((x[ignored] == 0).all() and x[~ignored].isfinite().all() for x in out)
    assert (leaf.grad[ignored] == 0).all()
    everything = isentrope.token_entropy(leaf, torch.full_like(target, -100))
    everything.entropy.sum().backward()
    assert all((x == 0).all() for x in everything)


def test_a_row_that_nothing_flows_into_gets_no_gradient(device):
    logits, target = draw(2, 50, device=device)
    logits[0, 3] = float("nan")
    leaf = logits.requires_grad_()
    isentrope.token_entropy(leaf, target).logprob[1].backward()
    assert (leaf.grad[0] == 0).all() and leaf.grad[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (2, 0, 5)])
def test_empty_batch(device, shape):
    logits, target = draw(*shape, device=device)
    leaf = logits.requires_grad_()
    out = isentrope.token_entropy(leaf, target, moments=True)
    assert all(x.shape == target.shape for x in out)
    out[0].sum().backward()
    assert leaf.grad.shape == shape


# ---- strides, memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["shifted", "transposed", "padded", "expanded", "strided vocabulary", "every other row"])
def test_strides(within_twice, device, view):
    base, _ = draw(5, 6, 131, device=device)
    logits = {
        "shifted": base[:, :-1],
        "transposed": base.transpose(0, 1),
        "padded": base[..., 1:98],
        "expanded": base[:1].expand(5, -1, -1),
        "strided vocabulary": base[..., ::2],
        "every other row": base[::2, ::3],
    }[view]
    target = torch.randint(0, logits.shape[-1], logits.shape[:-1]).to(device)
    out = isentrope.token_entropy(logits, target)
    copied = isentrope.token_entropy(logits.contiguous(), target)
    for name, a, b in zip(NAMES, out, copied):
        # Alignment may change the order of a GPU's sums.
        torch.testing.assert_close(a, b, rtol=0 if device == "cpu" else 1e-6, atol=0 if device == "cpu" else 1e-6, msg=name)
    check(within_twice, logits, target)


def test_gradient_of_a_view_reaches_its_base(device):
    base, target = draw(5, 6, 131, device=device)
    leaf, copy = base.clone().requires_grad_(), base.clone().requires_grad_()
    isentrope.token_entropy(leaf[:, :-1], target[:, 1:]).entropy.sum().backward()
    isentrope.token_entropy(copy[:, :-1].contiguous(), target[:, 1:]).entropy.sum().backward()
    assert torch.equal(leaf.grad, copy.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inplace_backward(device, dtype):
    source, target = draw(6, 7, 1003, dtype=dtype, device=device)

    def gradient(inplace):
        leaf = source.clone().requires_grad_()
        logits = leaf * 1
        view = logits[:, 1:]
        out = isentrope.token_entropy(view, target[:, 1:], temperature=1.3, inplace_backward=inplace)
        (out.logprob - 0.3 * out.entropy + 0.1 * out.lse).sum().backward()
        return leaf.grad, logits.detach()

    plain, _ = gradient(False)
    inplace, overwritten = gradient(True)
    assert torch.equal(inplace, plain)
    assert torch.equal(overwritten[:, 1:], inplace[:, 1:]), "the gradient lies where the logits were"
    assert torch.equal(overwritten[:, 0], source[:, 0]), "what the op did not see is untouched"


def test_inplace_backward_guards_against_a_second_use(device):
    leaf, target = draw(3, 50, device=device)
    logits = leaf.requires_grad_() * 1
    out = isentrope.token_entropy(logits, target, inplace_backward=True)
    out.logprob.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.entropy.sum().backward()
    other = leaf * 1
    needs_values = other.exp().sum() + (other * other).sum()
    isentrope.token_entropy(other, target, inplace_backward=True).logprob.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        needs_values.backward()


def test_inplace_backward_refuses_what_it_must_not_overwrite(device):
    leaf, target = draw(3, 50, device=device)
    with pytest.raises(ValueError, match="inplace_backward overwrites logits, which is a leaf"):
        isentrope.token_entropy(leaf.requires_grad_(), target, inplace_backward=True)
    with pytest.raises(ValueError, match="whose rows share memory"):
        isentrope.token_entropy((leaf[:1] * 1).expand(3, -1), target, inplace_backward=True)
    with torch.no_grad():  # nothing will be overwritten
        isentrope.token_entropy(leaf, target, inplace_backward=True)


# ---- what torch asks of an op ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradcheck(device, temperature):
    logits, target = draw(4, 37, dtype=torch.float64, device=device)
    target[2] = -100

    def op(z):
        return isentrope.token_entropy(z, target, temperature=temperature)

    assert torch.autograd.gradcheck(op, logits.requires_grad_())
    assert torch.autograd.gradcheck(lambda z: op(z.view(2, 2, 37).transpose(0, 1).reshape(4, 37)), logits)


def test_moments_have_no_gradient(device):
    logits, target = draw(4, 37, device=device)
    out = isentrope.token_entropy(logits.requires_grad_(), target, moments=True)
    assert [x.requires_grad for x in out] == [True, True, True, False, False]


def test_second_derivative_is_refused(device):
    logits, target = draw(4, 37, device=device)
    out = isentrope.token_entropy(logits.requires_grad_(), target)
    (first,) = torch.autograd.grad(out.entropy.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="isentrope::token_entropy_backward.*not implemented"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(5, 33), (2, 3, 33)])
def test_opcheck(device, dtype, shape):
    logits, target = draw(*shape, dtype=dtype, device=device)
    op = torch.ops.isentrope.token_entropy.default
    for options in ({}, {"temperature": 0.7, "moments": True}, {"inplace_backward": True}):
        torch.library.opcheck(op, (logits.clone().requires_grad_() if not options.get("inplace_backward") else logits, target), options)
    outputs = op(logits, target)
    rows = (outputs[1], outputs[3], outputs[4])
    given = torch.randn_like(outputs[0])
    for incoming in ((given, given, given), (None, given, None)):
        torch.library.opcheck(torch.ops.isentrope.token_entropy_backward.default, (logits, target, *rows, *incoming))
        torch.library.opcheck(torch.ops.isentrope.token_entropy_backward_.default, (logits.clone(), target, *rows, *incoming))


@pytest.mark.parametrize("inplace", [False, True])
def test_compile_fullgraph(device, inplace):
    source, target = draw(5, 97, device=device)

    def loss(leaf, target):
        logits = leaf * 1.5
        out = isentrope.token_entropy(logits, target, temperature=0.9, moments=True, inplace_backward=inplace)
        return (out.logprob - 0.1 * out.entropy + out.lse).sum() + out.sum_p2.sum() + out.sum_p2_logp.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for rows in (5, 4, 3):
        results = []
        for f in (loss, compiled):
            leaf = source[:rows].clone().requires_grad_()
            value = f(leaf, target[:rows])
            value.backward()
            results.append((value, leaf.grad))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)


def test_meta_and_dtypes_agree(device):
    for dtype in DTYPES:
        logits, target = draw(2, 3, 7, dtype=dtype, device=device)
        real = torch.ops.isentrope.token_entropy(logits, target, moments=True)
        meta = torch.ops.isentrope.token_entropy(logits.to("meta"), target.to("meta"), moments=True)
        assert [(x.shape, x.dtype, x.stride()) for x in real] == [(x.shape, x.dtype, x.stride()) for x in meta]


# ---- determinism, instruction sets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 100_003), (700, 301), (50, 9000)])
def test_bits_do_not_depend_on_threads(shape):
    logits, target = draw(*shape)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = logits.clone().requires_grad_()
        out = isentrope.token_entropy(leaf, target, moments=True)
        (out.logprob + out.entropy).sum().backward()
        results.append([*out, leaf.grad])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


ANOTHER_INSTRUCTION_SET = """
import sys, torch, isentrope
assert torch.backends.cpu.get_cpu_capability().startswith(sys.argv[2]), torch.backends.cpu.get_cpu_capability()
for logits, target, expected, expected_gradient in torch.load(sys.argv[1]):
    leaf = logits.requires_grad_()
    out = isentrope.token_entropy(leaf, target, moments=True)
    (out.logprob + out.entropy).sum().backward()
    # float32 sums taken in another order, bfloat16 and half gradients rounded once more
    for a, b in zip(out, expected):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(leaf.grad, expected_gradient)
print("same")
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(same_on, capability):
    ours = torch.backends.cpu.get_cpu_capability()
    if capability == "avx2" and ours not in ("AVX2", "AVX512"):
        pytest.skip(f"this processor has {ours} only")
    cases = []
    for dtype in DTYPES:
        for shape in ((64, 25), (7, 4097), (2, 70_001)):
            logits, target = draw(*shape, dtype=dtype)
            logits[0, ::3] = -INF
            target[0] = 1
            leaf = logits.clone().requires_grad_()
            out = isentrope.token_entropy(leaf, target, moments=True)
            (out.logprob + out.entropy).sum().backward()
            cases.append((logits, target, [x.detach() for x in out], leaf.grad))
    same_on(capability, ANOTHER_INSTRUCTION_SET, cases)


# ---- bad input -------------------------------------------------------------------------------------------------------

LOGITS, TARGET = torch.zeros(4, 9), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    "error, message, arguments, options",
    [
        (TypeError, "logits has dtype Long; wanted Float, BFloat16, Half, Double", (LOGITS.long(), TARGET), {}),
        (TypeError, "target has dtype Int; wanted Long", (LOGITS, TARGET.int()), {}),
        (ValueError, r"logits has 1 dimensions; wanted \[N, V\] or \[B, T, V\]", (LOGITS[0], TARGET[0]), {}),
        (ValueError, r"logits has 4 dimensions", (LOGITS[None, None], TARGET[None, None]), {}),
        (ValueError, r"target has shape \[3\]; wanted \[4\]", (LOGITS, TARGET[:3]), {}),
        (ValueError, r"target has shape \[4, 1\]; wanted \[4\]", (LOGITS, TARGET[:, None]), {}),
        (ValueError, "logits has a vocabulary of 0", (LOGITS[:, :0], TARGET), {}),
        (ValueError, "target is on meta; wanted cpu, where logits is", (LOGITS, TARGET.to("meta")), {}),
        (ValueError, "temperature is 0; wanted above 0", (LOGITS, TARGET), {"temperature": 0.0}),
        (ValueError, "temperature is nan", (LOGITS, TARGET), {"temperature": float("nan")}),
        (ValueError, "temperature is inf", (LOGITS, TARGET), {"temperature": INF}),
        (IndexError, r"target\[2\].* is 9; wanted 0 to 8 or ignore_index, which is -100", (LOGITS, torch.tensor([0, 8, 9, 1])), {}),
        (IndexError, r"target\[0\].* is -1", (LOGITS, torch.tensor([-1, 8, 9, 1])), {}),
        (IndexError, r"target\[3\].* is -100; wanted 0 to 8 or ignore_index, which is 0", (LOGITS, torch.tensor([0, 0, 1, -100])), {"ignore_index": 0}),
    ],
)
def test_bad_input(error, message, arguments, options):
    with pytest.raises(error, match=message):
        isentrope.token_entropy(*arguments, **options)


def test_bad_gradient_shape():
    rows = torch.zeros(4)
    with pytest.raises(ValueError, match=r"token_entropy_backward: dlogprob has shape \[3\]; wanted \[4\]"):
        torch.ops.isentrope.token_entropy_backward(LOGITS, TARGET, rows, rows, rows, rows[:3], None, None)
    with pytest.raises(TypeError, match="token_entropy_backward: entropy has dtype Double"):
        torch.ops.isentrope.token_entropy_backward(LOGITS, TARGET, rows.double(), rows, rows, rows, None, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_target_out_of_range_on_a_gpu():
    logits, target = draw(4, 33, device="cuda")
    target[1], target[2] = 33, -1
    leaf = logits.requires_grad_()
    out = isentrope.token_entropy(leaf, target, moments=True)
    out.logprob.sum().backward()
    assert all(x[1:3].isnan().all() and x[[0, 3]].isfinite().all() for x in out)
    assert leaf.grad[1:3].isnan().all() and leaf.grad[[0, 3]].isfinite().all()
