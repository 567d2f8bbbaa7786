"""keep of token_entropy and linear_token_entropy: the truncated entropy, against isentrope.reference in double."""

import math

import pytest
import torch
from torch.func import grad, vmap

import isentrope
from compiled import compiled as in_one_graph
from isentrope import TopP, WithoutLowest, reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
KEEPS = [TopP(0.8), TopP(0.3), TopP(0.999), WithoutLowest(0.2), WithoutLowest(0.9)]
INF, NAN = float("inf"), float("nan")
OUTPUTS = 4  # logprob, entropy, lse, kept_entropy


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def draw(*shape, dtype=torch.float32, device="cpu", deviation=3.0):
    logits = (torch.randn(*shape) * deviation).to(dtype)
    return logits.to(device), torch.randint(0, shape[-1], shape[:-1]).to(device)


def clear(logits, temperature, keep, margin=1e-6):
    """Rows in which the sum that decides is not within a rounding of the share: there K is that of exact arithmetic."""
    if isinstance(keep, WithoutLowest):
        return torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    sums = torch.softmax(logits.double() / temperature, -1).sort(-1, descending=True).values.cumsum(-1)
    return (sums - keep.share).abs().amin(-1) > margin


def combined(outputs, weights):
    return sum((output * weight.to(output)).sum() for output, weight in zip(outputs, weights))


def four(outputs):
    """logprob, entropy, lse, kept_entropy of the reference."""
    return [*outputs[:3], outputs[-1]]


def kept_by_the_op(logits, target, keep, temperature, margin=1e-6):
    """Which tokens the op has kept, [N, V]: in each row the likeliest, of equal logits by their ids, as many as keep says within a
    rounding of the sum that decides."""
    kind = "top_p" if isinstance(keep, TopP) else "without_lowest"
    kept = torch.ops.isentrope.token_entropy_kept(logits, target, temperature=temperature, keep=kind, share=keep.share)[8]
    z, ids = logits.double(), torch.arange(logits.shape[-1], device=logits.device)
    edge, last = kept[:, 2:3], kept[:, 3:4]
    mask = (z > edge) | ((z == edge) & (ids <= last))
    exact = reference.kept_tokens(z, temperature, keep)
    if isinstance(keep, WithoutLowest):
        assert torch.equal(mask, exact)
        return mask
    p = torch.softmax(z / temperature, -1)
    assert (torch.where(mask ^ exact, p, 0).sum(-1) <= margin).all()
    assert torch.equal(mask[clear(z, temperature, keep)], exact[clear(z, temperature, keep)])
    return mask


def check(within_twice, logits, target, keep, temperature=1.0, only=range(OUTPUTS)):
    plain_dtype = torch.float32 if logits.dtype == torch.float64 else logits.dtype
    logits = logits.to(plain_dtype).to(logits.dtype)
    mask = kept_by_the_op(logits, target, keep, temperature)
    weights = [torch.randn(target.shape, device=target.device) * (i in only) for i in range(OUTPUTS)]

    def compute(op, dtype, keep):
        leaf = logits.detach().to(dtype).clone().requires_grad_()
        outputs = op(leaf, target, temperature=temperature, keep=keep)
        outputs = outputs if len(outputs) == OUTPUTS else four(outputs)
        combined(outputs, weights).backward()
        return outputs, leaf.grad

    actual, dlogits = compute(isentrope.token_entropy, logits.dtype, keep)
    exact, exact_dlogits = compute(reference.token_entropy, torch.float64, mask)
    plain, plain_dlogits = compute(reference.token_entropy, plain_dtype, mask)
    for name, a, p, e in zip(actual._fields, actual, plain, exact):
        assert a.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32), name
        within_twice(name, a, p, e)
    assert dlogits.dtype == logits.dtype
    within_twice("dlogits", dlogits, plain_dlogits, exact_dlogits)
    return dlogits, mask


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 3, 31, 33, 97, 1000, 4097, 40001])
def test_values_and_gradients(within_twice, device, dtype, vocab):
    # Enough rows for plain torch to meet its usual error.
    logits, target = draw(256 if vocab < 1000 else 64 if vocab < 5000 else 16, vocab, dtype=dtype, device=device)
    for keep in KEEPS:
        check(within_twice, logits, target, keep, temperature=0.7)


@pytest.mark.parametrize("keep", KEEPS)
def test_gradient_is_of_the_kept_tokens_alone(within_twice, device, keep):
    logits, target = draw(256, 301, device=device)
    dlogits, mask = check(within_twice, logits, target, keep, only=(3,))
    assert (dlogits[~mask] == 0).all()
    assert (dlogits != 0).any(-1)[mask.sum(-1) > 1].all()


def test_the_coefficient_moves_the_gradient(device):
    logits, target = draw(5, 97, device=device)

    def gradient(coefficient):
        leaf = logits.clone().requires_grad_()
        out = isentrope.token_entropy(leaf, target, keep=TopP(0.8))
        (out.logprob.sum() - coefficient * out.kept_entropy.sum()).backward()
        return leaf.grad

    assert not torch.allclose(gradient(0.5), gradient(1.0))
    plain = logits.clone().requires_grad_()
    isentrope.token_entropy(plain, target).logprob.sum().backward()
    assert torch.equal(gradient(0.0), plain.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [TopP(1), TopP(1.0), WithoutLowest(0), WithoutLowest(0.0005)])
def test_every_token_kept_is_the_entropy(device, dtype, keep):
    logits, target = draw(17, 1503, dtype=dtype, device=device)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    kept, plain = isentrope.token_entropy(leaves[0], target, keep=keep), isentrope.token_entropy(leaves[1], target)
    assert torch.equal(kept.kept_entropy, plain.entropy), "bit for bit"
    for a, b in zip(kept, plain):
        assert torch.equal(a, b), "what was there before does not change"
    kept.kept_entropy.sum().backward()
    plain.entropy.sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_other_outputs_are_those_without_keep(device):
    logits, target = draw(9, 40001, device=device)
    for keep in KEEPS:
        with_keep = isentrope.token_entropy(logits, target, keep=keep, moments=True)
        without = isentrope.token_entropy(logits, target, moments=True)
        assert with_keep._fields == (*without._fields, "kept_entropy")
        assert all(torch.equal(a, b) for a, b in zip(with_keep, without))


# Logits that are far from each other, from 0, or alike in all but their last digits.
@pytest.mark.parametrize("spread", ["far apart", "far from zero", "close", "the lowest in the dark"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_anywhere(within_twice, device, spread, dtype):
    logits, target = draw(48, 1777, device=device)
    logits = {
        "far apart": logits * 1e4,
        "far from zero": logits + 3e4,
        "close": 1 + logits * 1e-6,
        "the lowest in the dark": torch.where(torch.arange(1777, device=device) % 3 == 0, logits, logits * 50 - 500),
    }[spread].to(dtype)
    for keep in KEEPS:
        mask = kept_by_the_op(logits, target, keep, 1.0)
        leaf = logits.clone().requires_grad_()
        out = isentrope.token_entropy(leaf, target, keep=keep)
        out.kept_entropy.sum().backward()
        expected = reference.token_entropy(logits.double(), target, keep=mask)[-1]
        torch.testing.assert_close(out.kept_entropy.double(), expected, rtol=1e-5, atol=1e-6)
        assert (leaf.grad[~mask] == 0).all()


# ---- ties ------------------------------------------------------------------------------------------------------------


def kept_ids(logits, keep, **options):
    """The tokens kept in a row: those from which another gradient than 0 comes, of a row in which none is 0 in K by chance."""
    leaf = logits.clone().requires_grad_()
    isentrope.token_entropy(leaf[None], torch.zeros(1, dtype=torch.long, device=leaf.device), keep=keep, **options).kept_entropy.sum().backward()
    return leaf.grad.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_logits_are_kept_by_their_ids(device, dtype):
    logits = torch.full((400,), 0.5, dtype=dtype, device=device)
    logits[300] = 2.0
    # p(300) is e^1.5 / (399 + e^1.5) = 0.0111; each other 0.00248: 20 of them with it reach 0.06, in the order of their ids.
    p = torch.softmax(logits.double(), 0)
    count = math.ceil((0.06 - p[300].item()) / p[0].item())
    assert kept_ids(logits, TopP(0.06)) == [*range(count), 300]
    assert kept_ids(logits, WithoutLowest(0.75)) == [*range(99), 300]
    uniform = torch.zeros(1000, device=device, dtype=dtype)
    target = torch.zeros(1, dtype=torch.long, device=device)
    for share, count in ((0.25, 250), (0.2501, 251), (1e-9, 1)):
        out = isentrope.token_entropy(uniform[None], target, keep=TopP(share))
        assert out.kept_entropy.item() == pytest.approx(math.log(count), abs=1e-6)
    for share, count in ((0.25, 750), (0.2509, 750), (0.9999, 1)):
        out = isentrope.token_entropy(uniform[None], target, keep=WithoutLowest(share))
        assert out.kept_entropy.item() == pytest.approx(math.log(count), abs=1e-6)


def test_minus_zero_is_zero(device):
    logits = torch.zeros(64, device=device)
    logits[::2] = -0.0
    logits[51] = 1.0
    for factor in (1, -1):
        logits[::2] *= factor
        assert kept_ids(logits, WithoutLowest(0.5)) == [*range(31), 51]


# Each place that the edge's last id can have in the vectors of a row.
def test_the_last_id_at_every_place(device):
    logits = torch.zeros(101, device=device)
    logits[100] = 1.0
    for count in range(2, 101):
        share = (101 - count + 0.5) / 101
        assert kept_ids(logits, WithoutLowest(share)) == [*range(count - 1), 100]


# ---- special rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("vocab", [40, 9001])
def test_minus_infinity(within_twice, device, keep, vocab):
    # Enough rows for plain torch to meet its usual error.
    logits, target = draw(256 if vocab < 1000 else 16, vocab, device=device)
    logits[0, torch.arange(vocab, device=device) % 3 > 0] = -INF
    logits[1, :-1] = -INF
    logits[2, : vocab // 2] = -INF
    target[:3] = torch.tensor([0, vocab - 1, vocab - 1])
    dlogits, _ = check(within_twice, logits, target, keep, only=(1, 2, 3))
    assert (dlogits[logits == -INF] == 0).all()
    assert isentrope.token_entropy(logits, target, keep=keep).kept_entropy[1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [TopP(0.8), TopP(1.0), WithoutLowest(0.3)])
@pytest.mark.parametrize("vocab", [5, 9001])
def test_rows_without_a_distribution(device, dtype, keep, vocab):
    logits, target = draw(6, vocab, dtype=dtype, device=device)
    logits[0] = -INF
    logits[1, 2] = INF
    logits[2, vocab - 1] = NAN
    logits[3] = NAN
    logits[5], target[5] = NAN, -100
    leaf = logits.requires_grad_()
    out = isentrope.token_entropy(leaf, target, keep=keep)
    assert out.kept_entropy[0] == 0 and out.kept_entropy[1:4].isnan().all() and out.kept_entropy[4].isfinite() and out.kept_entropy[5] == 0
    out.kept_entropy.sum().backward()
    assert (leaf.grad[0] == 0).all() and leaf.grad[1:4].isnan().all() and leaf.grad[4].isfinite().all() and (leaf.grad[5] == 0).all()
    leaf.grad = None
    isentrope.token_entropy(leaf, target, keep=keep).kept_entropy[4].backward()
    assert (leaf.grad[:4] == 0).all() and (leaf.grad[4] != 0).any()


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (2, 0, 5)])
def test_empty_batch(device, shape):
    logits, target = draw(*shape, device=device)
    leaf = logits.requires_grad_()
    out = isentrope.token_entropy(leaf, target, keep=TopP(0.8))
    assert all(x.shape == target.shape for x in out)
    out.kept_entropy.sum().backward()
    assert leaf.grad.shape == shape


@pytest.mark.parametrize("keep", KEEPS)
def test_one_token(device, keep):
    leaf = torch.tensor([[3.0], [-1e4]], device=device, requires_grad=True)
    out = isentrope.token_entropy(leaf, torch.zeros(2, dtype=torch.long, device=device), keep=keep)
    assert out.kept_entropy.tolist() == [0, 0]
    out.kept_entropy.sum().backward()
    assert (leaf.grad == 0).all()
    hidden = torch.randn(2, 3, device=device, requires_grad=True)
    out = isentrope.linear_token_entropy(hidden, torch.ones(1, 3, device=device), torch.zeros(2, dtype=torch.long, device=device), keep=keep)
    out.kept_entropy.sum().backward()
    assert out.kept_entropy.tolist() == [0, 0] and (hidden.grad == 0).all()


# ---- the head ----------------------------------------------------------------------------------------------------------


def draw_head(rows, width, vocab, dtype=torch.float32, device="cpu", deviation=2.0):
    weight = (torch.randn(vocab, width) * deviation / width**0.5).to(dtype)
    return [x.to(device) for x in (torch.randn(*rows, width).to(dtype), weight, torch.randn(vocab).to(dtype), torch.randint(0, vocab, rows))]


@pytest.mark.parametrize("keep", [TopP(0.8), WithoutLowest(0.2)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, width, vocab", [((256,), 33, 97), ((2, 129), 65, 1031), ((97,), 300, 5003)])
def test_head(within_twice, device, keep, dtype, rows, width, vocab):
    hidden, weight, bias, target = draw_head(rows, width, vocab, dtype, device)
    plain_dtype = torch.float32 if dtype == torch.float64 else dtype
    given = [x.to(plain_dtype).to(dtype) for x in (hidden, weight, bias)]
    for softcap, temperature in ((None, 0.7), (3.0, 1.0)):
        exact_logits = torch.nn.functional.linear(*(x.double() for x in given[:2]), given[2].double() if softcap else None)
        exact_logits = exact_logits if softcap is None else softcap * torch.tanh(exact_logits / softcap)
        # A sum in float moves logits by as much as it moves sums of probabilities.
        target = torch.where(clear(exact_logits, temperature, keep, 3e-6), target, -100)
        target.view(-1)[1] = -100
        assert (target >= 0).sum() >= target.numel() / 2
        # The gradient of the whole entropy is test_linear_token_entropy's.
        weights = [torch.randn(target.shape, device=device) * (i != 1) for i in range(OUTPUTS)]

        def compute(op, dtype):
            leaves = [x.detach().to(dtype).clone().requires_grad_() for x in given]
            bias = None if softcap is None else leaves[2]
            outputs = op(leaves[0], leaves[1], target, bias=bias, softcap=softcap, temperature=temperature, keep=keep)
            outputs = outputs if len(outputs) == OUTPUTS else four(outputs)
            combined(outputs, weights).backward()
            return outputs, [x.grad for x in leaves if x.grad is not None]

        actual, gradients = compute(isentrope.linear_token_entropy, dtype)
        exact, exact_gradients = compute(reference.linear_token_entropy, torch.float64)
        plain, plain_gradients = compute(reference.linear_token_entropy, plain_dtype)
        for name, a, p, e in zip(actual._fields, actual, plain, exact):
            within_twice(name, a, p, e)
        for name, a, p, e in zip(("dhidden", "dweight", "dbias"), gradients, plain_gradients, exact_gradients):
            within_twice(name, a, p, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_the_head_alone_and_among_others(dtype):
    """To the bit: products of fewer rows at a time change none of a row's logits, forward or backward."""
    hidden, weight, bias, target = draw_head((31,), 33, 1031, dtype)

    def compute(rows):
        leaf = hidden[rows].detach().requires_grad_()
        out = isentrope.linear_token_entropy(leaf, weight, target[rows], bias=bias, keep=TopP(0.8))
        combined(out, [torch.ones(len(leaf))] * OUTPUTS).backward()
        return [*out, leaf.grad]

    together = compute(slice(None))
    for n in (0, 5, 30):
        assert all(torch.equal(a[0], b[n]) for a, b in zip(compute(slice(n, n + 1)), together))
    for a, b in zip(isentrope.linear_token_entropy(hidden, weight, target, bias=bias), together):
        assert torch.equal(a, b)


# More rows than have their logits at once (kept_rows): blocks of rows on the CPU.
def test_head_in_blocks_of_rows():
    hidden, weight, _, target = draw_head((500,), 8, 70_000)
    rows = [0, 383, 384, 499]
    whole = isentrope.linear_token_entropy(hidden, weight, target, keep=TopP(0.8))
    for a, b in zip(whole, isentrope.linear_token_entropy(hidden[rows], weight, target[rows], keep=TopP(0.8))):
        assert torch.equal(a[rows], b)


# ---- what torch asks of an op ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [TopP(0.8), WithoutLowest(0.4)])
def test_gradcheck(device, keep):
    logits, target = draw(4, 37, dtype=torch.float64, device=device)
    target[2] = -100
    assert torch.autograd.gradcheck(lambda z: isentrope.token_entropy(z, target, temperature=0.6, keep=keep), logits.requires_grad_())
    hidden, weight, bias, target = draw_head((2, 3), 5, 37, torch.float64, device)
    head = lambda h, w, b: isentrope.linear_token_entropy(h, w, target, bias=b, softcap=2.0, keep=keep)  # noqa: E731
    assert torch.autograd.gradcheck(head, [x.requires_grad_() for x in (hidden, weight, bias)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_inplace_backward(device, dtype):
    source, target = draw(6, 7, 1003, dtype=dtype, device=device)

    def gradient(inplace):
        leaf = source.clone().requires_grad_()
        out = isentrope.token_entropy((leaf * 1)[:, 1:], target[:, 1:], inplace_backward=inplace, keep=TopP(0.8))
        (out.logprob - 0.3 * out.kept_entropy).sum().backward()
        return leaf.grad

    assert torch.equal(gradient(True), gradient(False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(5, 33), (2, 3, 33)])
def test_opcheck(device, dtype, shape):
    ops = torch.ops.isentrope
    logits, target = draw(*shape, dtype=dtype, device=device)
    for options in ({"keep": "top_p", "share": 0.8}, {"keep": "without_lowest", "share": 0.3, "temperature": 0.7, "moments": True}):
        torch.library.opcheck(ops.token_entropy_kept.default, (logits.clone().requires_grad_(), target), options)
    out = ops.token_entropy_kept(logits, target, keep="top_p", share=0.8)
    rows, given = (out[1], out[3], out[4]), torch.randn_like(out[0])
    for incoming in ((given, None, None), (None, None, None)):
        options = {"dkept_entropy": given, "kept": out[8]}
        torch.library.opcheck(ops.token_entropy_backward.default, (logits, target, *rows, *incoming), options)
        torch.library.opcheck(ops.token_entropy_backward_.default, (logits.clone(), target, *rows, *incoming), options)

    hidden, weight, bias, target = draw_head(shape[:-1], 9, 33, dtype, device)
    leaves = (hidden.requires_grad_(), weight.requires_grad_(), target)
    options = {"bias": bias.requires_grad_(), "softcap": 4.0, "keep": "top_p", "share": 0.8}
    torch.library.opcheck(ops.linear_token_entropy_kept.default, leaves, options)
    out = ops.linear_token_entropy_kept(*leaves, keep="top_p", share=0.8)
    saved = [x.detach() for x in (*leaves, out[1], out[3], out[4])]
    torch.library.opcheck(ops.linear_token_entropy_backward.default, (*saved, given, None, None),
                          {"wanted": (True, True, False), "dkept_entropy": given, "kept": out[8].detach()})  # fmt: skip


@pytest.mark.parametrize("keep", [TopP, WithoutLowest])
def test_compile_fullgraph(device, keep):
    source, target = draw(5, 97, device=device)
    hidden, weight, _, _ = draw_head((5,), 33, 97, device=device)

    def loss(leaf, hidden, weight, target, share):
        out = isentrope.token_entropy(leaf * 1.5, target, temperature=0.9, keep=keep(share))
        head = isentrope.linear_token_entropy(hidden * 1.5, weight, target, softcap=5.0, keep=keep(share), moments=True)
        return (out.logprob - 0.1 * out.kept_entropy).sum() + head.kept_entropy.square().sum() + head.sum_p2.sum()

    compiled = in_one_graph(loss, device, dynamic=True)
    for rows, share in ((5, 0.8), (4, 0.8), (3, 0.7)):
        results = []
        for f in (loss, compiled):
            leaves = [source[:rows].clone().requires_grad_(), hidden[:rows].clone().requires_grad_(), weight.clone().requires_grad_()]
            value = f(*leaves, target[:rows], share)
            value.backward()
            results.append((value, *(x.grad for x in leaves)))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)


def test_meta_and_dtypes_agree(device):
    for dtype in DTYPES:
        logits, target = draw(2, 3, 7, dtype=dtype, device=device)
        op, options = torch.ops.isentrope.token_entropy_kept, {"keep": "top_p", "share": 0.5, "moments": True}
        pairs = [(op(logits, target, **options), op(logits.to("meta"), target.to("meta"), **options))]
        hidden, weight, _, target = draw_head((2, 3), 5, 37, dtype, device)
        op = torch.ops.isentrope.linear_token_entropy_kept
        pairs.append((op(hidden, weight, target, **options), op(*(x.to("meta") for x in (hidden, weight, target)), **options)))
        for real, meta in pairs:
            assert [(x.shape, x.dtype, x.stride()) for x in real] == [(x.shape, x.dtype, x.stride()) for x in meta]


def test_autocast(device):
    hidden, weight, bias, target = draw_head((4,), 5, 37, device=device)
    with torch.autocast(device, torch.bfloat16):
        cast = isentrope.linear_token_entropy(hidden.requires_grad_(), weight, target, bias=bias, keep=TopP(0.8))
        rows = isentrope.token_entropy(weight, torch.arange(5).repeat(8)[:37].to(device) % 5, keep=TopP(0.8))
    expected = isentrope.linear_token_entropy(hidden.bfloat16(), weight.bfloat16(), target, bias=bias.bfloat16(), keep=TopP(0.8))
    assert all(torch.equal(a, b) for a, b in zip(cast, expected))
    cast.kept_entropy.sum().backward()
    assert hidden.grad.dtype == torch.float32 and rows.kept_entropy.dtype == torch.float32


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_vmap(device):
    logits, target = draw(3, 5, 41, device=device)
    f = lambda z: isentrope.token_entropy(z.sin(), target[0], keep=TopP(0.7)).kept_entropy.square().sum()  # noqa: E731
    hidden, weight, _, _ = draw_head((3, 5), 9, 41, device=device)
    g = lambda h: isentrope.linear_token_entropy(h.sin(), weight, target[0], keep=WithoutLowest(0.3)).kept_entropy.square().sum()  # noqa: E731
    for function, batch in ((f, logits), (g, hidden)):
        torch.testing.assert_close(vmap(function)(batch), torch.stack([function(x) for x in batch]))
        torch.testing.assert_close(vmap(grad(function))(batch), torch.stack([grad(function)(x) for x in batch]))


def test_second_derivative_is_refused(device):
    logits, target = draw(4, 37, device=device)
    out = isentrope.token_entropy(logits.requires_grad_(), target, keep=TopP(0.8))
    (first,) = torch.autograd.grad(out.kept_entropy.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="isentrope::token_entropy_backward.*not implemented"):
        first.sum().backward()


# ---- determinism, instruction sets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 100_003), (700, 301), (50, 9000)])
def test_bits_do_not_depend_on_threads(shape):
    logits, target = draw(*shape)
    hidden, weight, _, _ = draw_head(shape[:1], 5, shape[1])
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [logits.clone().requires_grad_(), hidden.clone().requires_grad_()]
        out = isentrope.token_entropy(leaves[0], target, keep=TopP(0.8))
        head = isentrope.linear_token_entropy(leaves[1], weight, target, keep=WithoutLowest(0.4))
        (out.logprob + out.kept_entropy + head.kept_entropy).sum().backward()
        results.append([*out, *head, *(x.grad for x in leaves)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


ANOTHER_INSTRUCTION_SET = """
import sys, torch, isentrope
assert torch.backends.cpu.get_cpu_capability().startswith(sys.argv[2]), torch.backends.cpu.get_cpu_capability()
for logits, target, keep, share, expected, expected_gradient in torch.load(sys.argv[1]):
    leaf = logits.requires_grad_()
    out = isentrope.token_entropy(leaf, target, keep=getattr(isentrope, keep)(share))
    (out.logprob + out.kept_entropy).sum().backward()
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
            for keep in (TopP(0.8), WithoutLowest(0.2)):
                logits, target = draw(*shape, dtype=dtype)
                logits[0, ::3] = -INF
                target[0] = 1
                target = torch.where(clear(logits, 1.0, keep), target, -100)
                leaf = logits.clone().requires_grad_()
                out = isentrope.token_entropy(leaf, target, keep=keep)
                (out.logprob + out.kept_entropy).sum().backward()
                cases.append((logits, target, type(keep).__name__, keep.share, [x.detach() for x in out], leaf.grad))
    same_on(capability, ANOTHER_INSTRUCTION_SET, cases)


# ---- bad input -------------------------------------------------------------------------------------------------------

LOGITS, TARGET = torch.zeros(4, 9), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    "error, message, keep",
    [
        (ValueError, r'share is 0 with keep="top_p"; wanted above 0, at most 1', TopP(0.0)),
        (ValueError, r"share is 1.5 with", TopP(1.5)),
        (ValueError, r"share is nan with", TopP(NAN)),
        (ValueError, r'share is 1 with keep="without_lowest"; wanted at least 0, below 1', WithoutLowest(1)),
        (ValueError, r"share is -0.5 with", WithoutLowest(-0.5)),
        (TypeError, r"token_entropy: keep is 0.8, of type float; wanted isentrope.TopP\(share\), isentrope.WithoutLowest\(share\), or None", 0.8),
        (TypeError, r"keep is 'top_p', of type str", "top_p"),
        (TypeError, r"token_entropy_kept: share is 'all', of type str; wanted a number", TopP("all")),
    ],
)  # fmt: skip
def test_bad_keep(error, message, keep):
    with pytest.raises(error, match=message):
        isentrope.token_entropy(LOGITS, TARGET, keep=keep)
    with pytest.raises(error, match=message):
        isentrope.linear_token_entropy(torch.zeros(4, 3), torch.zeros(9, 3), TARGET, keep=keep)


def test_bad_arguments_of_the_ops():
    ops, rows = torch.ops.isentrope, torch.zeros(4)
    with pytest.raises(ValueError, match='token_entropy: keep is "top_k"; wanted "top_p" or "without_lowest"'):
        ops.token_entropy_kept(LOGITS, TARGET, keep="top_k", share=0.5)
    backward = lambda **options: ops.token_entropy_backward(LOGITS, TARGET, rows, rows, rows, None, None, None, **options)  # noqa: E731
    with pytest.raises(ValueError, match="token_entropy_backward: dkept_entropy is given and kept is not"):
        backward(dkept_entropy=rows)
    with pytest.raises(ValueError, match=r"token_entropy_backward: kept has shape \[4, 3\]; wanted \[4, 4\]"):
        backward(dkept_entropy=rows, kept=torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match="token_entropy_backward: kept has dtype Float; wanted Double"):
        backward(dkept_entropy=rows, kept=torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"token_entropy_backward: dkept_entropy has shape \[3\]; wanted \[4\]"):
        backward(dkept_entropy=rows[:3], kept=torch.zeros(4, 4, dtype=torch.float64))
