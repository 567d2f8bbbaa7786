"""linear_attention on the CPU, and on a GPU where there is one, against isentrope.reference in double."""

import random

import pytest
import torch
from test_entropy_attention import DTYPES, Pool, dtypes_of

import isentrope
from isentrope import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NAMES = ["out", "state", "dq", "dk", "dv", "dlog_decay", "dstate"]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def pool():
    pool = Pool()
    yield pool
    pool.check()


def draw(B, H, T, D, E=None, G=None, dtype=torch.float32, device="cpu", positive=False):
    """q, k, v; drawn on the CPU so that every device gets the same, and rounded to dtype."""
    G, E = G or H, D if E is None else E
    narrow = torch.float32 if dtype == torch.float64 else dtype
    shapes = [(B, H, T, D), (B, G, T, D), (B, G, T, E)]
    drawn = [torch.rand(s) + 0.05 if positive and i < 2 else torch.randn(s) for i, s in enumerate(shapes)]
    return [x.to(narrow).to(device, dtype) for x in drawn]


def draw_decay(B, G, T, device="cpu", low=-0.3, high=0.05):
    return (low + (high - low) * torch.rand(B, G, T)).to(device)


def results(op, inputs, extra, weights, options):
    """Outputs of op, and the gradients of Σ weight·output by q, k, v and those of extra {name: tensor or None}."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    more = {name: x if x is None else x.detach().clone().requires_grad_() for name, x in extra.items()}
    outputs = op(*leaves, **more, **options)
    sum((x * w.to(x.dtype)).sum() for x, w in zip(outputs, weights) if w is not None).backward()
    given = leaves + [x for x in more.values() if x is not None]
    return [x.detach() for x in outputs], [torch.zeros_like(x) if x.grad is None else x.grad for x in given]


def check(pool, inputs, *, log_decay=None, state=None, only=(0, 1), **options):
    """Adds outputs and gradients of the op against the reference; weights of the loss on the outputs in `only`."""
    dtype = inputs[0].dtype
    plain_dtype = torch.float32 if dtype == torch.float64 else dtype
    sums = torch.float64 if dtype == torch.float64 else torch.float32

    def run(op, dtype, sums):
        extra = {"log_decay": log_decay, "state": state}
        extra = {name: x if x is None else x.to(inputs[0].device, sums) for name, x in extra.items()}
        return results(op, [x.to(dtype) for x in inputs], extra, weights, options)

    weights = [None, None]
    with torch.no_grad():
        shapes = [x.shape for x in isentrope.linear_attention(*inputs, **options)]
    for i in only:
        weights[i] = torch.randn(shapes[i]).to(inputs[0].device, plain_dtype)
    actual, gradients = run(isentrope.linear_attention, dtype, sums)
    exact, exact_gradients = run(reference.linear_attention, torch.float64, torch.float64)
    plain, plain_gradients = run(reference.linear_attention, plain_dtype, plain_dtype)
    assert actual[0].dtype == dtype and actual[1].dtype == sums
    names = [n for n, x in zip(NAMES, [1, 1, 1, 1, 1, log_decay, state]) if x is not None]
    for name, a, p, e in zip(names, actual + gradients, plain + plain_gradients, exact + exact_gradients):
        pool.add(f"q {list(inputs[0].shape)}, v {list(inputs[2].shape)}, {options}", name, a, p, e)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalizer", [False, True])
@pytest.mark.parametrize("decays", [False, True])
def test_shapes(pool, device, normalizer, decays):
    for D, E in [(1, 1), (8, 40), (33, 17), (64, 64), (72, 130)]:
        for T in [1, 31, 64, 65, 97, 200]:
            inputs = draw(2, 4, T, D, E, G=2, device=device, positive=normalizer)
            state = torch.rand(2, 2, D, E + normalizer)
            check(pool, inputs, log_decay=draw_decay(2, 2, T) if decays else None, state=state if T % 2 else None, normalizer=normalizer)


@pytest.mark.parametrize("index", range(len(DTYPES)))
@pytest.mark.parametrize("normalizer", [False, True])
def test_dtypes(pool, device, index, normalizer):
    if DTYPES[index] not in dtypes_of(device):
        pytest.skip("double is the CPU's")
    for T in (97, 130):
        inputs = draw(1, 3, T, 48, dtype=DTYPES[index], device=device, positive=normalizer)
        check(pool, inputs, log_decay=draw_decay(1, 3, T), state=torch.rand(1, 3, 48, 48 + normalizer), normalizer=normalizer)


@pytest.mark.parametrize("only", [(0,), (1,)])
@pytest.mark.parametrize("normalizer", [False, True])
def test_one_gradient_at_a_time(pool, device, only, normalizer):
    inputs = draw(1, 2, 130, 64, device=device, positive=normalizer)
    check(pool, inputs, log_decay=draw_decay(1, 2, 130), only=only, normalizer=normalizer)


def random_case(seed):
    """A case with any of the options together: (draw's arguments, extra tensors, options)."""
    r = random.Random(seed)
    B, G, group, T = r.choice([1, 2, 3]), r.choice([1, 2]), r.choice([1, 2, 3]), r.choice([1, 2, 31, 33, 64, 65, 97, 130, 257])
    D, E = r.choice([1, 8, 16, 40, 64, 96]), r.choice([1, 8, 33, 64, 80])
    torch.manual_seed(seed)
    normalizer = r.random() < 0.4
    options = {"normalizer": normalizer, "chunk": r.choice([16, 32, 48, 64, 128, 256])}
    extra = {}
    if r.random() < 0.6:
        extra["log_decay"] = draw_decay(B, G, T, low=r.choice([-5.0, -0.2]), high=r.choice([0.0, 0.1]))
    if r.random() < 0.5:
        extra["state"] = torch.rand(B, G, D, E + normalizer)
    if r.random() < 0.4:
        options["key_lengths"] = torch.tensor([r.choice([0, 1, T // 2, T]) for _ in range(B)])
    return dict(B=B, H=G * group, T=T, D=D, E=E, G=G, dtype=r.choice(DTYPES[:3]), positive=normalizer), extra, options


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_options_together(pool, device, first):
    for seed in range(first, first + 40):
        arguments, extra, options = random_case(seed)
        options = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
        check(pool, draw(**arguments, device=device), **extra, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalizer", [False, True])
def test_packed_sequences(pool, device, dtype, normalizer):
    ends = torch.tensor([0, 5, 5, 70, 71, 205], device=device)  # one of none, one of one
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in draw(1, 4, 205, 32, 24, G=2, dtype=dtype, device=device, positive=normalizer))
    decay, state = draw_decay(1, 2, 205)[0].T, torch.rand(5, 2, 32, 24 + normalizer)
    check(pool, [q, k, v], log_decay=decay, state=state, normalizer=normalizer, cu_seqlens=ends)
    check(pool, [q, k, v], normalizer=normalizer, cu_seqlens=ends.int())


def test_packed_equals_separate(device):
    ends = torch.tensor([0, 33, 34, 98, 105], device=device)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in draw(1, 2, 105, 64, device=device))
    decay = draw_decay(1, 2, 105, device)[0].T
    packed = isentrope.linear_attention(q, k, v, log_decay=decay, cu_seqlens=ends)
    for n, (a, b) in enumerate(zip(ends.tolist(), ends.tolist()[1:])):
        one = isentrope.linear_attention(*(x[a:b].transpose(0, 1)[None] for x in (q, k, v)), log_decay=decay[a:b].T[None])
        assert torch.equal(packed.out[a:b], one.out[0].transpose(0, 1)) and torch.equal(packed.state[n], one.state[0])


@pytest.mark.parametrize("normalizer", [False, True])
def test_cut_sequences_and_single_steps_are_the_whole(device, normalizer):
    q, k, v = (x.double() if device == "cpu" else x for x in draw(2, 4, 150, 24, 40, G=2, device=device, positive=normalizer))
    decay = draw_decay(2, 2, 150, device).to(q.dtype)
    options = {"normalizer": normalizer}
    whole = isentrope.linear_attention(q, k, v, log_decay=decay, **options)
    tolerance = dict(rtol=1e-10, atol=1e-10) if q.dtype == torch.float64 else dict(rtol=1e-4, atol=1e-4)
    for cuts in ([0, 70, 150], [0, 1, 64, 65, 150], list(range(151))):
        state, outs = None, []
        for a, b in zip(cuts, cuts[1:]):
            out, state = isentrope.linear_attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], log_decay=decay[:, :, a:b], state=state, **options)
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 2), whole.out, **tolerance)
        torch.testing.assert_close(state, whole.state, **tolerance)


def test_gradients_of_a_cut_sequence_are_those_of_the_whole():
    q, k, v = draw(1, 2, 100, 16, dtype=torch.float64)
    decay = draw_decay(1, 2, 100).double()
    given = [x.requires_grad_() for x in (q, k, v, decay)]

    def run(cuts):
        state, total = None, 0.0
        for a, b in zip(cuts, cuts[1:]):
            out, state = isentrope.linear_attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], log_decay=decay[:, :, a:b], state=state)
            total = total + out.sin().sum()
        return torch.autograd.grad(total + state.cos().sum(), given)

    for a, b in zip(run([0, 100]), run([0, 33, 100])):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_decays_that_forget_and_that_grow(pool, device):
    q, k, v = draw(1, 2, 130, 16, device=device)
    decay = draw_decay(1, 2, 130)
    decay[0, 0, 70], decay[0, 1, 3] = -1e4, -300.0
    check(pool, [q, k, v], log_decay=decay, state=torch.randn(1, 2, 16, 16))
    out = isentrope.linear_attention(q, k, v, log_decay=torch.where(decay == -1e4, -torch.inf, decay).to(device)).out
    torch.testing.assert_close(out, isentrope.linear_attention(q, k, v, log_decay=decay.to(device)).out, rtol=0, atol=0)
    check(pool, [q, k, v], log_decay=0.3 * torch.rand(1, 2, 130))  # grows e^20-fold
    far = torch.full((1, 2, 130), -2.0)
    far[..., ::2] = 2.0
    check(pool, [q, k, v], log_decay=far)


def test_no_steps_and_no_sequences(device):
    for B, T in ((2, 0), (0, 5)):
        leaves = [x.requires_grad_() for x in draw(B, 4, T, 8, G=2, device=device)]
        state = torch.randn(B, 2, 8, 8, device=device).requires_grad_()
        out, last = isentrope.linear_attention(*leaves, state=state)
        assert out.shape == (B, 4, T, 8) and torch.equal(last, state)
        (out.sum() + 2 * last.sum()).backward()
        assert (state.grad == 2).all() and all(x.grad.shape == x.shape for x in leaves)


def test_steps_after_the_length_are_not_read(device):
    q, k, v = draw(2, 2, 97, 16, device=device)
    decay, lengths = draw_decay(2, 2, 97, device), torch.tensor([40, 97], device=device)
    for x in (q, k, v, decay):
        x[0, :, 40:] = float("nan")
    leaves = [x.requires_grad_() for x in (q, k, v, decay)]
    out, state = isentrope.linear_attention(*leaves[:3], log_decay=decay, key_lengths=lengths)
    assert out.isfinite().all() and (out[0, :, 40:] == 0).all() and state.isfinite().all()
    (out.square().sum() + state.sum()).backward()
    assert all(x.grad.isfinite().all() and (x.grad[0, :, 40:] == 0).all() for x in leaves)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_of_a_query_stays_in_its_row(device, index, value):
    if DTYPES[index] not in dtypes_of(device):
        pytest.skip("double is the CPU's")
    q, k, v = draw(1, 2, 100, 32, dtype=DTYPES[index], device=device)
    clean = isentrope.linear_attention(q, k, v)
    q[0, 1, 33, 5] = value
    spoilt = isentrope.linear_attention(q, k, v)
    assert not spoilt.out[0, 1, 33].isfinite().any() and torch.equal(clean.state, spoilt.state)
    others = torch.arange(100, device=device) != 33
    assert torch.equal(spoilt.out[0, 1, others], clean.out[0, 1, others]) and torch.equal(spoilt.out[0, 0], clean.out[0, 0])


@pytest.mark.parametrize("name", ["k", "v", "log_decay"])
@pytest.mark.parametrize("normalizer", [False, True])
def test_nan_of_a_step_reaches_only_what_follows(name, normalizer):
    q, k, v = draw(1, 2, 150, 32, positive=True)
    given = {"k": k, "v": v, "log_decay": draw_decay(1, 2, 150)}
    run = lambda: isentrope.linear_attention(q, **given, normalizer=normalizer)  # noqa: E731
    clean = run()
    given[name][(0, 1, 75) if name == "log_decay" else (0, 1, 75, 3)] = float("nan")
    out, state = run()
    assert torch.equal(out[0, 0], clean.out[0, 0]) and torch.equal(state[0, 0], clean.state[0, 0])
    assert torch.equal(out[0, 1, :75], clean.out[0, 1, :75]) and out[0, 1, 75:].isnan().any(-1).all()
    assert state[0, 1].isnan().any()


def test_nan_of_a_query_reaches_only_gradients_before_it():
    leaves = [x.requires_grad_() for x in draw(1, 1, 150, 32)]
    q, k, v = leaves
    with torch.no_grad():
        q[0, 0, 75, 3] = float("nan")
    isentrope.linear_attention(q, k, v).out.sum().backward()
    assert k.grad[0, 0, 76:].isfinite().all() and v.grad[0, 0, 76:].isfinite().all()
    assert v.grad[0, 0, :76].isnan().any(-1).all()


def test_a_row_without_weight_is_zero(device):
    q, k, v = draw(1, 1, 20, 8, device=device, positive=True)
    k[:, :, :5] = 0
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, _ = isentrope.linear_attention(*leaves, normalizer=True)
    assert (out[:, :, :5] == 0).all() and out.isfinite().all()
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves) and (q.grad[:, :, :5] == 0).all()


@pytest.mark.parametrize("D", [24, 64])  # rows that are copied, and rows that are read and written where they lie
def test_strides(device, D):
    q, k, v = draw(2, 4, 70, D, G=2, device=device)
    dout = torch.randn_like(q)

    def of(q, k, v, dout=dout):
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out, state = isentrope.linear_attention(*leaves)
        return [out.detach(), state.detach(), *torch.autograd.grad(out, leaves, dout)]

    wanted = of(q, k, v)
    rows_first = lambda x: x.detach().transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    found = of(rows_first(q), rows_first(k), rows_first(v), rows_first(dout))
    assert all(x.stride() == rows_first(x).stride() for x in (found[0], *found[2:]))
    turned = lambda x: x.detach().transpose(2, 3).contiguous().transpose(2, 3)  # noqa: E731
    for other in (found, of(turned(q), turned(k), turned(v), turned(dout))):
        assert all(torch.equal(a, e) for a, e in zip(other, wanted))
    one = [x[:, :, :1].detach() for x in (q, k, v, dout)]
    repeated = [x.repeat(1, 1, 70, 1) for x in one]
    assert all(torch.equal(a, e) for a, e in zip(of(*(x.expand_as(y) for x, y in zip(one, repeated))), of(*repeated)))


def test_weights_of_a_row_sum_to_one():
    q, k, _ = draw(1, 2, 300, 16, positive=True)
    out, _ = isentrope.linear_attention(q, k, torch.ones(1, 2, 300, 4), log_decay=draw_decay(1, 2, 300), normalizer=True)
    torch.testing.assert_close(out, torch.ones_like(out))


# ---- one bit pattern -------------------------------------------------------------------------------------------------

def bits(op, inputs):
    """The bytes of op's outputs and gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out, state = op(*leaves)
    (out.sin().sum() + state.sum()).backward()
    return b"".join(x.detach().numpy().tobytes() for x in (out, state, *(x.grad for x in leaves)))


def test_same_bits_for_any_number_of_threads():
    inputs, found = [*draw(2, 4, 500, 32, G=2), draw_decay(2, 2, 500)], set()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.add(bits(lambda q, k, v, g: isentrope.linear_attention(q, k, v, log_decay=g), inputs))
    assert len(found) == 1


CAPABILITY = """
import sys, torch, isentrope
inputs, wanted = torch.load(sys.argv[1])
leaves = [x.requires_grad_() for x in inputs]
out, state = isentrope.linear_attention(*leaves[:3], log_decay=leaves[3], normalizer=True)
(out.sin().sum() + state.sum()).backward()
for a, e in zip([out, state] + [x.grad for x in leaves], wanted):
    torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-3)
print("same" if torch.backends.cpu.get_cpu_capability().upper().startswith(sys.argv[2][:4]) else "another set")
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(same_on, capability):
    inputs = [*draw(1, 4, 100, 24, 40, G=2, positive=True), draw_decay(1, 2, 100)]
    leaves = [x.double().requires_grad_() for x in inputs]
    out, state = reference.linear_attention(*leaves[:3], leaves[3], normalizer=True)
    (out.sin().sum() + state.sum()).backward()
    same_on(capability, CAPABILITY, (inputs, [out.detach(), state.detach()] + [x.grad for x in leaves]))


# ---- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalizer", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(normalizer, packed):
    q, k, v = draw(1, 4, 21, 3, 2, G=2, dtype=torch.float64, positive=normalizer)
    decay, options = draw_decay(1, 2, 21).double(), {"normalizer": normalizer, "chunk": 16}
    state = torch.rand(2 if packed else 1, 2, 3, 2 + normalizer, dtype=torch.float64)
    if packed:
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
        decay, options = decay[0].T.contiguous(), {**options, "cu_seqlens": torch.tensor([0, 18, 21])}
    inputs = [x.requires_grad_() for x in (q, k, v, decay, state)]
    f = lambda q, k, v, g, s: isentrope.linear_attention(q, k, v, log_decay=g, state=s, **options)  # noqa: E731
    assert torch.autograd.gradcheck(f, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    q, k, v = (x.requires_grad_() for x in draw(2, 4, 21, 8, 5, G=2, dtype=dtype, positive=True))
    decay, state = draw_decay(2, 2, 21).requires_grad_(), torch.rand(2, 2, 8, 6).requires_grad_()
    op = torch.ops.isentrope.linear_attention
    torch.library.opcheck(op, (q, k, v), {"chunk": 32})
    torch.library.opcheck(op, (q, k, v), {"log_decay": decay, "state": state, "normalizer": True, "key_lengths": torch.tensor([21, 3])})
    packed = [x.detach()[0].transpose(0, 1).requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(op, tuple(packed), {"cu_seqlens": torch.tensor([0, 7, 21])})


def test_compile_without_graph_breaks():
    q, k, v = (x.requires_grad_() for x in draw(2, 4, 70, 16, G=2, positive=True))
    decay, state = draw_decay(2, 2, 70).requires_grad_(), torch.rand(2, 2, 16, 17).requires_grad_()

    def f(q, k, v, decay, state):
        out, last = isentrope.linear_attention(q.exp(), k.exp(), v, log_decay=decay, state=state, normalizer=True)
        return out.square().sum() + last.sum()

    wanted = torch.autograd.grad(f(q, k, v, decay, state), (q, k, v, decay, state))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, e in zip(torch.autograd.grad(compiled(q, k, v, decay, state), (q, k, v, decay, state)), wanted):
        torch.testing.assert_close(a, e)


# ---- bad input -------------------------------------------------------------------------------------------------------

Q, K, V = torch.zeros(2, 4, 9, 8), torch.zeros(2, 2, 9, 8), torch.zeros(2, 2, 9, 5)
BAD = [
    ((Q[0], K, V), {}, ValueError, r"q has 3 dimensions; wanted \[B, H, T, D\], or \[total, H, D\] with cu_seqlens"),
    ((Q, K[0], V), {}, ValueError, "k has 3 dimensions; wanted 4 as q has"),
    ((Q, K, V[0]), {}, ValueError, "v has 3 dimensions; wanted 4 as q has"),
    ((Q, K[:1], V[:1]), {}, ValueError, "k has 1 batches; wanted 2 as q has"),
    ((Q, K[:, :, :8], V[:, :, :8]), {}, ValueError, "k has 8 steps; wanted 9 as q has"),
    ((Q, K, V[:, :, :8]), {}, ValueError, r"v has shape \[2, 2, 8, 5\]; wanted \[2, 2, 9\] and a value size"),
    ((Q, K[..., :7], V), {}, ValueError, "k has a key size of 7; wanted 8 as q has"),
    ((Q[:, :3], K, V), {}, ValueError, "q has 3 heads and k has 2; wanted a multiple of k's"),
    ((Q, K.double(), V), {}, TypeError, "k has dtype Double; wanted Float"),
    ((Q.int(), K.int(), V.int()), {}, TypeError, "q has dtype Int; wanted Float, BFloat16, Half, Double"),
    ((Q, K, V), {"chunk": 0}, ValueError, "chunk is 0; wanted a multiple of 16 from 16 to 256"),
    ((Q, K, V), {"chunk": 24}, ValueError, "chunk is 24; wanted a multiple of 16 from 16 to 256"),
    ((Q, K, V), {"chunk": 512}, ValueError, "chunk is 512; wanted a multiple of 16 from 16 to 256"),
    ((Q, K, V), {"log_decay": torch.zeros(2, 4, 9)}, ValueError, r"log_decay has shape \[2, 4, 9\]; wanted \[2, 2, 9\] \(one number a step of every key head"),
    ((Q, K, V), {"log_decay": torch.zeros(2, 2, 9).int()}, ValueError, "log_decay has dtype Int; wanted a floating point type"),
    ((Q, K, V), {"state": torch.zeros(2, 4, 8, 5)}, ValueError, r"state has shape \[2, 4, 8, 5\]; wanted \[2, 2, 8, 5\]"),
    ((Q, K, V), {"state": torch.zeros(2, 2, 8, 5), "normalizer": True}, ValueError, r"state has shape .*; wanted \[2, 2, 8, 6\] .*the weight"),
    ((Q, K, V), {"state": torch.zeros(2, 2, 8, 5).bfloat16()}, TypeError, "state has dtype BFloat16; wanted Float"),
    ((Q.double(), K.double(), V.double()), {"state": torch.zeros(2, 2, 8, 5)}, TypeError, "state has dtype Float; wanted Double"),
    ((Q, K, V), {"key_lengths": torch.tensor([1.0, 2.0])}, TypeError, "key_lengths has dtype Float; wanted Int, Long"),
    ((Q, K, V), {"key_lengths": torch.tensor([1])}, ValueError, r"key_lengths has shape \[1\]; wanted \[2\]"),
    ((Q, K, V), {"key_lengths": torch.tensor([1, 10])}, ValueError, r"key_lengths\[1\] is 10; wanted 0 to 9"),
    ((Q, K, V), {"cu_seqlens": torch.tensor([0, 9])}, ValueError, r"q has 4 dimensions; wanted \[total, H, D\], since cu_seqlens is given"),
    ((Q[0, :, :2], K[0].repeat(2, 1, 1)[:, :2], torch.zeros(4, 2, 5)), {"cu_seqlens": torch.tensor([0, 4]), "key_lengths": torch.tensor([9])}, ValueError, "key_lengths and cu_seqlens are both given"),
    ((Q[0, :, :2], K[0].repeat(2, 1, 1)[:, :2], torch.zeros(4, 2, 5)), {"cu_seqlens": torch.tensor([[0, 4]])}, ValueError, r"cu_seqlens has shape \[1, 2\]; wanted \[sequences \+ 1\]"),
    ((Q[0, :, :2], K[0].repeat(2, 1, 1)[:, :2], torch.zeros(4, 2, 5)), {"cu_seqlens": torch.tensor([1, 4])}, ValueError, r"cu_seqlens\[0\] is 1; wanted 0"),
    ((Q[0, :, :2], K[0].repeat(2, 1, 1)[:, :2], torch.zeros(4, 2, 5)), {"cu_seqlens": torch.tensor([0, 3, 2, 4])}, ValueError, r"cu_seqlens\[2\] is 2, below the one before it \(3\)"),
    ((Q[0, :, :2], K[0].repeat(2, 1, 1)[:, :2], torch.zeros(4, 2, 5)), {"cu_seqlens": torch.tensor([0, 3])}, ValueError, "cu_seqlens ends at 3; wanted 4, the rows of q"),
    ((Q, K.to("meta"), V), {}, ValueError, "k is on meta; wanted cpu, where q is"),
]  # fmt: skip


@pytest.mark.parametrize("inputs, options, error, message", BAD)
def test_bad_input_is_refused_by_name(inputs, options, error, message):
    with pytest.raises(error, match=f"isentrope::linear_attention: {message}"):
        isentrope.linear_attention(*inputs, **options)


# ---- the one system --------------------------------------------------------------------------------------------------


def test_the_dynamical_system_is_each_of_them():
    """h_i = Λ_i h_{i-1} + B_i u_i, y_i = C_i h_i against each form written out as sums over the steps before, in double."""
    B, H, T, D, E = 2, 3, 40, 5, 4
    q, k, v = (torch.randn(B, H, T, n, dtype=torch.float64) for n in (D, D, E))
    g, beta, eta = -torch.rand(B, H, T, dtype=torch.float64), torch.rand(B, H, T, dtype=torch.float64), torch.randn(B, H, T, dtype=torch.float64)
    system = lambda step, write, read, n=D: reference.dynamical_system(step, write, read, torch.zeros(B, H, n, E, dtype=torch.float64))[0][..., 0, :]  # noqa: E731
    outer, one = k[..., None] * v[..., None, :], torch.ones(B, H, T, 1, 1, dtype=torch.float64)
    scores, seen = q @ k.mT, torch.ones(T, T, dtype=torch.bool).tril()
    close = lambda a, e: torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)  # noqa: E731
    linear = scores.masked_fill(~seen, 0) @ v
    close(system(one, outer, q[..., None, :]), linear)
    # A prefix of 7 tokens that is read in both directions: the state that the system begins with.
    e, w = torch.randn(B, H, 7, D, dtype=torch.float64), torch.randn(B, H, 7, E, dtype=torch.float64)
    early = reference.dynamical_system(one, outer, q[..., None, :], e.mT @ w)[0][..., 0, :]
    close(early, linear + q @ e.mT @ w)
    state = torch.cat([e.mT @ w, e.sum(2)[..., None]], -1)
    weight = scores.masked_fill(~seen, 0).sum(-1, keepdim=True) + (q @ e.mT).sum(-1, keepdim=True)
    close(isentrope.linear_attention(q, k, v, state=state, normalizer=True).out * weight, early)
    # Normalised by exp(eta) of the query's token: Λ = η_{i-1} / η_i may be above 1.
    ratio = torch.cat([eta[..., :1] * 0, eta[..., :-1] - eta[..., 1:]], -1).exp()[..., None, None]
    close(system(ratio, outer * (-eta).exp()[..., None, None], q[..., None, :]), linear * (-eta).exp()[..., None])
    # State-space duality: Λ = exp(-Δ A), B = Δ k.
    delta = torch.rand(B, H, T, dtype=torch.float64)
    sums = -1.7 * delta.cumsum(-1)
    weights = (scores * (sums[..., :, None] - sums[..., None, :]).exp() * delta[..., None, :]).masked_fill(~seen, 0)
    close(system((-1.7 * delta).exp()[..., None, None], outer * delta[..., None, None], q[..., None, :]), weights @ v)
    # The gated delta rule: Λ = a (I - β k kᵀ).
    k1 = torch.nn.functional.normalize(k, dim=-1)
    a, b = g.exp()[..., None, None], beta[..., None, None]
    y = system(a * (torch.eye(D, dtype=torch.float64) - b * k1[..., None] * k1[..., None, :]), b * k1[..., None] * v[..., None, :], q[..., None, :])
    S, steps = torch.zeros(B, H, D, E, dtype=torch.float64), []
    for t in range(T):
        S = a[:, :, t] * S
        S = S + beta[:, :, t, None, None] * k1[:, :, t, :, None] * (v[:, :, t] - (S * k1[:, :, t, :, None]).sum(2))[:, :, None, :]
        steps.append((q[:, :, t, :, None] * S).sum(2))
    close(y, torch.stack(steps, 2))
    close(isentrope.gated_delta_rule(q, k1, v, beta, g).out, y)
    # Softmax attention, whose state has a row for every step: B = e_i, C = softmax(scores)_i.
    rows = torch.eye(T, dtype=torch.float64)[:, :, None] * v[..., None, :]
    p = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    close(system(one, rows, p[..., None, :], T), exact)
