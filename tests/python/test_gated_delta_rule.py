"""gated_delta_rule on the CPU, and on a GPU where there is one, against isentrope.reference in double."""

import random

import pytest
import torch
from test_entropy_attention import DTYPES, Pool, dtypes_of
from test_linear_attention import bits, results

import isentrope
from isentrope import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
EXTRA = ["beta", "log_decay", "write", "state"]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def pool():
    pool = Pool()
    yield pool
    pool.check()


def draw(B, H, T, D, E=None, G=None, dtype=torch.float32, device="cpu"):
    """q, k of length 1, v; drawn on the CPU so that every device gets the same, and rounded to dtype."""
    G, E = G or H, D if E is None else E
    narrow = torch.float32 if dtype == torch.float64 else dtype
    drawn = [torch.randn(B, H, T, D), torch.nn.functional.normalize(torch.randn(B, G, T, D), dim=-1), torch.randn(B, G, T, E)]
    return [x.to(narrow).to(device, dtype) for x in drawn]


def draw_extra(B, G, T, D, E, chunk=64, decays=True, write=False, state=True, low=-0.3, high=0.05):
    gates = torch.randint(0, 3, (B, G, -(-T // chunk))) / 2
    return {
        "beta": torch.rand(B, G, T),
        "log_decay": low + (high - low) * torch.rand(B, G, T) if decays else None,
        "write": gates if write else None,
        "state": torch.randn(B, G, D, E) if state else None,
    }


def check(pool, inputs, extra, *, only=(0, 1), **options):
    """Adds outputs and gradients of the op against the reference; weights of the loss on the outputs in `only`."""
    dtype, device = inputs[0].dtype, inputs[0].device
    plain_dtype = torch.float32 if dtype == torch.float64 else dtype
    sums = torch.float64 if dtype == torch.float64 else torch.float32

    def run(op, dtype, sums):
        given = {name: x if x is None else x.to(device, sums) for name, x in extra.items()}
        return results(lambda q, k, v, beta, log_decay, **more: op(q, k, v, beta, log_decay, **more), [x.to(dtype) for x in inputs], given, weights, options)

    with torch.no_grad():
        beta = extra["beta"].to(device)
        shapes = [x.shape for x in isentrope.gated_delta_rule(*inputs, beta, None, **options)]
    weights = [torch.randn(shape).to(device, plain_dtype) if i in only else None for i, shape in enumerate(shapes)]
    actual, gradients = run(isentrope.gated_delta_rule, dtype, sums)
    exact, exact_gradients = run(reference.gated_delta_rule, torch.float64, torch.float64)
    plain, plain_gradients = run(reference.gated_delta_rule, plain_dtype, plain_dtype)
    assert actual[0].dtype == dtype and actual[1].dtype == sums
    names = ["out", "state", "dq", "dk", "dv", *(f"d{name}" for name in EXTRA if extra.get(name) is not None)]
    for name, a, p, e in zip(names, actual + gradients, plain + plain_gradients, exact + exact_gradients, strict=True):
        pool.add(f"q {list(inputs[0].shape)}, v {list(inputs[2].shape)}, {options}", name, a, p, e)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("decays", [False, True])
def test_shapes(pool, device, write, decays):
    for D, E in [(8, 1), (16, 40), (33, 17), (64, 64), (72, 130)]:
        for T in [1, 31, 64, 65, 97, 200]:
            extra = draw_extra(2, 2, T, D, E, decays=decays, write=write, state=T % 2)
            check(pool, draw(2, 4, T, D, E, G=2, device=device), extra)


def test_one_feature():
    # Keys that are all ±1 forget each other at every step, and a chunk's sums cancel: the recurrence keeps a digit that chunks lose.
    inputs, extra = draw(2, 4, 200, 1, 3, G=2, dtype=torch.float64), {n: x.double() for n, x in draw_extra(2, 2, 200, 1, 3, write=True).items()}
    weights = [torch.ones(2, 4, 200, 3), torch.ones(2, 2, 1, 3)]
    run = lambda op: results(lambda q, k, v, beta, log_decay, **m: op(q, k, v, beta, log_decay, **m), inputs, extra, weights, {})  # noqa: E731
    for actual, exact in zip(run(isentrope.gated_delta_rule), run(reference.gated_delta_rule)):
        for a, e in zip(actual, exact):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("index", range(len(DTYPES)))
def test_dtypes(pool, device, index):
    if DTYPES[index] not in dtypes_of(device):
        pytest.skip("double is the CPU's")
    for T in (97, 130):
        check(pool, draw(1, 3, T, 48, dtype=DTYPES[index], device=device), draw_extra(1, 3, T, 48, 48, write=T == 130))


@pytest.mark.parametrize("only", [(0,), (1,)])
def test_one_gradient_at_a_time(pool, device, only):
    check(pool, draw(1, 2, 130, 64, device=device), draw_extra(1, 2, 130, 64, 64, write=True), only=only)


def random_case(seed):
    r = random.Random(seed)
    B, G, group, T = r.choice([1, 2, 3]), r.choice([1, 2]), r.choice([1, 2, 3]), r.choice([1, 2, 31, 33, 64, 65, 97, 130, 257])
    D, E, chunk = r.choice([1, 8, 16, 40, 64, 96]), r.choice([1, 8, 33, 64, 80]), r.choice([16, 32, 48, 64, 128, 256])
    torch.manual_seed(seed)
    extra = draw_extra(B, G, T, D, E, chunk, r.random() < 0.6, r.random() < 0.5, r.random() < 0.5, r.choice([-5.0, -0.2]), r.choice([0.0, 0.1]))
    options = {"chunk": chunk}
    if r.random() < 0.4:
        options["key_lengths"] = torch.tensor([r.choice([0, 1, T // 2, T]) for _ in range(B)])
    return dict(B=B, H=G * group, T=T, D=D, E=E, G=G, dtype=r.choice(DTYPES[:3])), extra, options


@pytest.mark.parametrize("first", range(0, 90, 30))
def test_options_together(pool, device, first):
    for seed in range(first, first + 30):
        arguments, extra, options = random_case(seed)
        options = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
        check(pool, draw(**arguments, device=device), extra, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_sequences(pool, device, dtype):
    ends = torch.tensor([0, 5, 5, 70, 71, 205], device=device)  # one of none, one of one
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in draw(1, 4, 205, 32, 24, G=2, dtype=dtype, device=device))
    extra = draw_extra(1, 2, 205, 32, 24)
    extra = {"beta": extra["beta"][0].T, "log_decay": extra["log_decay"][0].T, "state": torch.randn(5, 2, 32, 24)}
    check(pool, [q, k, v], {**extra, "write": None}, cu_seqlens=ends)
    check(pool, [q, k, v], {**extra, "write": torch.randint(0, 3, (5, 2, 4)) / 2}, cu_seqlens=ends.int())


def test_packed_equals_separate(device):
    ends = torch.tensor([0, 33, 34, 98, 105], device=device)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in draw(1, 2, 105, 64, device=device))
    beta, decay = torch.rand(105, 2, device=device), -torch.rand(105, 2, device=device)
    packed = isentrope.gated_delta_rule(q, k, v, beta, decay, cu_seqlens=ends)
    for n, (a, b) in enumerate(zip(ends.tolist(), ends.tolist()[1:])):
        one = isentrope.gated_delta_rule(*(x[a:b].transpose(0, 1)[None] for x in (q, k, v)), beta[a:b].T[None], decay[a:b].T[None])
        assert torch.equal(packed.out[a:b], one.out[0].transpose(0, 1)) and torch.equal(packed.state[n], one.state[0])


def test_cut_sequences_and_single_steps_are_the_whole(device):
    q, k, v = (x.double() if device == "cpu" else x for x in draw(2, 4, 150, 24, 40, G=2, device=device))
    beta, decay = torch.rand(2, 2, 150).to(q), -torch.rand(2, 2, 150).to(q)
    whole = isentrope.gated_delta_rule(q, k, v, beta, decay)
    tolerance = dict(rtol=1e-10, atol=1e-10) if q.dtype == torch.float64 else dict(rtol=1e-4, atol=1e-4)
    for cuts in ([0, 70, 150], [0, 1, 64, 65, 150], list(range(151))):
        state, outs = None, []
        for a, b in zip(cuts, cuts[1:]):
            out, state = isentrope.gated_delta_rule(*(x[:, :, a:b] for x in (q, k, v, beta, decay)), state=state)
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 2), whole.out, **tolerance)
        torch.testing.assert_close(state, whole.state, **tolerance)


@pytest.mark.parametrize("D", [24, 64])  # rows that are copied, and rows that are read and written where they lie
def test_strides(device, D):
    q, v, dout = (torch.randn(2, 2, 70, D, device=device) for _ in range(3))
    k = torch.nn.functional.normalize(torch.randn(2, 2, 70, D, device=device), dim=-1)
    beta, decay = torch.rand(2, 2, 70, device=device), -0.2 * torch.rand(2, 2, 70, device=device)

    def of(q, k, v, dout, beta, decay):
        leaves = [x.requires_grad_() for x in (q, k, v, beta, decay)]
        out, state = isentrope.gated_delta_rule(*leaves)
        return [out.detach(), state.detach(), *torch.autograd.grad(out, leaves, dout)]

    inputs = [q, k, v, dout, beta, decay]
    rows_first = lambda x: x.detach().transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    found = of(*map(rows_first, inputs))
    assert all(x.stride() == rows_first(x).stride() for x in (found[0], *found[2:5]))
    assert all(torch.equal(a, e) for a, e in zip(found, of(*inputs)))
    one = [x[:, :, :1].detach() for x in inputs]
    repeated = [x.repeat_interleave(70, 2) for x in one]
    assert all(torch.equal(a, e) for a, e in zip(of(*(x.expand_as(y) for x, y in zip(one, repeated))), of(*repeated)))


def test_a_shut_gate_leaves_a_state_that_only_decayed(device):
    q, k, v = draw(1, 2, 128, 16, device=device)
    beta, decay, state = torch.rand(1, 2, 128, device=device), -torch.rand(1, 2, 128, device=device), torch.randn(1, 2, 16, 16, device=device)
    write = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]], device=device)
    assert torch.equal(*(isentrope.gated_delta_rule(q, k, v, beta, decay, write=w).out for w in (write, write.bool())))
    gated, open_ = (isentrope.gated_delta_rule(q, k, v, beta, decay, write=w, state=state) for w in (write, None))
    torch.testing.assert_close(gated.out[:, :, :64], open_.out[:, :, :64])  # a chunk's own queries see all of it
    past = state[0, 0] * decay[0, 0, :64].sum().exp()
    second = isentrope.gated_delta_rule(*(x[:, :1, 64:] for x in (q, k, v, beta, decay)), state=past[None, None])
    torch.testing.assert_close(gated.out[:, :1, 64:], second.out)
    before = isentrope.gated_delta_rule(*(x[:, 1:, :64] for x in (q, k, v, beta, decay)), state=state[:, 1:]).state
    torch.testing.assert_close(gated.state[0, 1], before[0, 0] * decay[0, 1, 64:].sum().exp())


def test_beta_of_one_writes_the_value():
    # Once a key of length 1 is written with β = 1, it reads as its value whatever was there.
    q, k, v = draw(1, 1, 50, 16)
    out, state = isentrope.gated_delta_rule(k, k, v, torch.ones(1, 1, 50), torch.randn(1, 1, 50))
    torch.testing.assert_close(out, v, rtol=1e-4, atol=1e-4)


def test_without_overlap_it_is_linear_attention():
    # Keys at right angles: the state says nothing of a new key.
    k = torch.eye(16, dtype=torch.float64)[None, None]
    q, v, beta, decay = torch.randn_like(k), torch.randn_like(k), torch.rand(1, 1, 16).double(), -torch.rand(1, 1, 16).double()
    for a, b in zip(isentrope.gated_delta_rule(q, k, v, beta, decay), isentrope.linear_attention(q, k * beta[..., None], v, log_decay=decay)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_no_steps_and_no_sequences(device):
    for B, T in ((2, 0), (0, 5)):
        leaves = [x.requires_grad_() for x in draw(B, 4, T, 8, G=2, device=device)]
        beta, state = torch.rand(B, 2, T, device=device).requires_grad_(), torch.randn(B, 2, 8, 8, device=device).requires_grad_()
        out, last = isentrope.gated_delta_rule(*leaves, beta, None, state=state)
        assert out.shape == (B, 4, T, 8) and torch.equal(last, state)
        (out.sum() + 2 * last.sum()).backward()
        assert (state.grad == 2).all() and all(x.grad.shape == x.shape for x in [*leaves, beta])


def test_steps_after_the_length_are_not_read(device):
    q, k, v = draw(2, 2, 97, 16, device=device)
    beta, decay, lengths = torch.rand(2, 2, 97, device=device), -torch.rand(2, 2, 97, device=device), torch.tensor([40, 97], device=device)
    for x in (q, k, v, beta, decay):
        x[0, :, 40:] = float("nan")
    leaves = [x.requires_grad_() for x in (q, k, v, beta, decay)]
    out, state = isentrope.gated_delta_rule(*leaves, key_lengths=lengths)
    assert out.isfinite().all() and (out[0, :, 40:] == 0).all() and state.isfinite().all()
    (out.square().sum() + state.sum()).backward()
    assert all(x.grad.isfinite().all() and (x.grad[0, :, 40:] == 0).all() for x in leaves)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_of_a_query_stays_in_its_row(device, value):
    q, k, v = draw(1, 2, 100, 32, device=device)
    beta = torch.rand(1, 2, 100, device=device)
    clean = isentrope.gated_delta_rule(q, k, v, beta, None)
    q[0, 1, 33, 5] = value
    spoilt = isentrope.gated_delta_rule(q, k, v, beta, None)
    assert not spoilt.out[0, 1, 33].isfinite().any() and torch.equal(clean.state, spoilt.state)
    others = torch.arange(100, device=device) != 33
    assert torch.equal(spoilt.out[0, 1, others], clean.out[0, 1, others]) and torch.equal(spoilt.out[0, 0], clean.out[0, 0])


@pytest.mark.parametrize("name", ["k", "v", "beta", "log_decay"])
def test_nan_of_a_step_reaches_only_what_follows(name):
    q, k, v = draw(1, 2, 150, 32)
    given = {"k": k, "v": v, "beta": torch.rand(1, 2, 150), "log_decay": -torch.rand(1, 2, 150)}
    clean = isentrope.gated_delta_rule(q, **given)
    given[name][(0, 1, 75) if given[name].dim() == 3 else (0, 1, 75, 3)] = float("nan")
    out, state = isentrope.gated_delta_rule(q, **given)
    assert torch.equal(out[0, 0], clean.out[0, 0]) and torch.equal(state[0, 0], clean.state[0, 0])
    assert torch.equal(out[0, 1, :75], clean.out[0, 1, :75]) and out[0, 1, 75:].isnan().any(-1).all()
    assert state[0, 1].isnan().any()


def test_same_bits_for_any_number_of_threads():
    inputs, found = [*draw(2, 4, 500, 32, G=2), torch.rand(2, 2, 500), -torch.rand(2, 2, 500)], set()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.add(bits(isentrope.gated_delta_rule, inputs))
    assert len(found) == 1


CAPABILITY = """
import sys, torch, isentrope
inputs, wanted = torch.load(sys.argv[1])
leaves = [x.requires_grad_() for x in inputs]
out, state = isentrope.gated_delta_rule(*leaves)
(out.sin().sum() + state.sum()).backward()
for a, e in zip([out, state] + [x.grad for x in leaves], wanted):
    torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-3)
print("same" if torch.backends.cpu.get_cpu_capability().upper().startswith(sys.argv[2][:4]) else "another set")
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(same_on, capability):
    inputs = [*draw(1, 4, 100, 24, 40, G=2), torch.rand(1, 2, 100), -torch.rand(1, 2, 100)]
    leaves = [x.double().requires_grad_() for x in inputs]
    out, state = reference.gated_delta_rule(*leaves)
    (out.sin().sum() + state.sum()).backward()
    same_on(capability, CAPABILITY, (inputs, [out.detach(), state.detach()] + [x.grad for x in leaves]))


# ---- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(packed):
    q, k, v = draw(1, 4, 21, 3, 2, G=2, dtype=torch.float64)
    N, options = 2 if packed else 1, {"chunk": 16}
    beta, decay, write = torch.rand(1, 2, 21).double(), -torch.rand(1, 2, 21).double(), torch.rand(N, 2, 2).double()
    state = torch.randn(N, 2, 3, 2, dtype=torch.float64)
    if packed:
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
        beta, decay, options = beta[0].T.contiguous(), decay[0].T.contiguous(), {"chunk": 16, "cu_seqlens": torch.tensor([0, 18, 21])}
    inputs = [x.requires_grad_() for x in (q, k, v, beta, decay, write, state)]
    f = lambda q, k, v, b, g, w, s: isentrope.gated_delta_rule(q, k, v, b, g, write=w, state=s, **options)  # noqa: E731
    assert torch.autograd.gradcheck(f, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    q, k, v = (x.requires_grad_() for x in draw(2, 4, 21, 8, 5, G=2, dtype=dtype))
    extra = {name: x.requires_grad_() for name, x in draw_extra(2, 2, 21, 8, 5, chunk=16, write=True).items()}
    beta, decay = extra.pop("beta"), extra.pop("log_decay")
    op = torch.ops.isentrope.gated_delta_rule
    torch.library.opcheck(op, (q, k, v, beta, None), {"chunk": 32})
    torch.library.opcheck(op, (q, k, v, beta, decay), {**extra, "chunk": 16, "key_lengths": torch.tensor([21, 3])})
    packed = [x.detach()[0].transpose(0, 1).requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(op, (*packed, beta.detach()[0].T, None), {"cu_seqlens": torch.tensor([0, 7, 21])})


def test_compile_without_graph_breaks():
    q, k, v = (x.requires_grad_() for x in draw(2, 4, 70, 16, G=2))
    extra = {name: x.requires_grad_() for name, x in draw_extra(2, 2, 70, 16, 16, write=True).items()}

    def f(q, k, v, extra):
        out, last = isentrope.gated_delta_rule(q.sin(), k, v, **extra)
        return out.square().sum() + last.sum()

    leaves = (q, k, v, *extra.values())
    wanted = torch.autograd.grad(f(q, k, v, extra), leaves)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, e in zip(torch.autograd.grad(compiled(q, k, v, extra), leaves), wanted):
        torch.testing.assert_close(a, e)


# ---- bad input -------------------------------------------------------------------------------------------------------

Q, K, V, BETA = torch.zeros(2, 4, 9, 8), torch.zeros(2, 2, 9, 8), torch.zeros(2, 2, 9, 5), torch.zeros(2, 2, 9)
BAD = [
    ((Q, K, V, BETA[:, :, :8], None), {}, ValueError, r"beta has shape \[2, 2, 8\]; wanted \[2, 2, 9\] \(one number a step of every key head"),
    ((Q, K, V, BETA.int(), None), {}, ValueError, "beta has dtype Int; wanted a floating point type"),
    ((Q, K, V, BETA, torch.zeros(2, 4, 9)), {}, ValueError, r"log_decay has shape \[2, 4, 9\]; wanted \[2, 2, 9\]"),
    ((Q, K, V, BETA, None), {"chunk": 20}, ValueError, "chunk is 20; wanted a multiple of 16 from 16 to 256"),
    ((Q, K, V, BETA, None), {"write": torch.zeros(2, 2, 2)}, ValueError, r"write has shape \[2, 2, 2\]; wanted \[2, 2, 1\] \(one number a chunk"),
    ((Q, K, V, BETA, None), {"write": torch.zeros(2, 2, 1).int()}, ValueError, "write has dtype Int; wanted a floating point type, or bool"),
    ((Q, K, V, BETA, None), {"state": torch.zeros(2, 2, 8, 6)}, ValueError, r"state has shape \[2, 2, 8, 6\]; wanted \[2, 2, 8, 5\]"),
    ((Q, K, V, BETA, None), {"state": torch.zeros(2, 2, 8, 5).half()}, TypeError, "state has dtype Half; wanted Float"),
    ((Q, K, V, BETA.to("meta"), None), {}, ValueError, "beta is on meta; wanted cpu, where q is"),
    ((Q, K, V, BETA, None), {"key_lengths": torch.tensor([1, 10])}, ValueError, r"key_lengths\[1\] is 10; wanted 0 to 9"),
]  # fmt: skip


@pytest.mark.parametrize("inputs, options, error, message", BAD)
def test_bad_input_is_refused_by_name(inputs, options, error, message):
    with pytest.raises(error, match=f"isentrope::gated_delta_rule: {message}"):
        isentrope.gated_delta_rule(*inputs, **options)
