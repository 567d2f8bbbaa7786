"""entropy_attention on the CPU, and on a GPU where there is one, against isentrope.reference in double."""

import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing

import isentrope
from isentrope import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = ["out", "lse", "entropy", "max_logit"]
INF = float("inf")


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def dtypes_of(device):
    return [dtype for dtype in DTYPES if device == "cpu" or dtype != torch.float64]  # double is the CPU's


def draw(B, H, T, D, G=None, S=None, dtype=torch.float32, device="cpu"):
    """q, k, v; drawn on the CPU so that every device gets the same, and rounded to dtype."""
    G, S = G or H, T if S is None else S
    narrow = torch.float32 if dtype == torch.float64 else dtype
    return [torch.randn(B, heads, rows, D).to(narrow).to(device, dtype) for heads, rows in ((H, T), (G, S), (G, S))]


def results(op, inputs, weights, temperature, options):
    """Outputs of op, and the gradients of Σ weight·output (out, lse, entropy) by q, k, v and temperature."""
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    if temperature is not None:
        leaves.append(temperature.detach().clone().requires_grad_())
        options = {**options, "temperature": leaves[3]}
    outputs = op(*leaves[:3], **options)
    finite = [torch.where(x.isinf(), 0, x) for x in outputs[:3]]  # lse of empty rows
    sum((x * w.to(x.dtype)).sum() for x, w in zip(finite, weights)).backward()
    return [x.detach() for x in outputs], [leaf.grad for leaf in leaves]


class Pool:
    """The errors of many cases taken together: each case's in the norm, relative to the norm of the exact value. A row has few
    elements, and of one alone chance says more than the order of sums; a wrong value stands out from any number of roundings."""

    def __init__(self):
        self.errors = {}  # (name, dtype): [(ours, plain, case)]

    def add(self, case, name, actual, plain, exact):
        ours, theirs = (self.relative(x, exact) for x in (actual, plain.to(torch.float32 if actual.dtype == torch.float64 else actual.dtype)))
        self.errors.setdefault((name, actual.dtype), []).append((ours, theirs, case))

    @staticmethod
    def relative(x, exact):
        assert x.shape == exact.shape and x.isnan().equal(exact.isnan()) and x.isinf().equal(exact.isinf())
        finite = exact.isfinite()
        error, size = (x.double() - exact)[finite].norm().item(), exact[finite].norm().item()
        return error / size if size > 1e-12 else float(error > 1e-12)  # exact is 0 but for a rounding of double

    def check(self):
        """All errors together at most twice those of plain torch in the same dtype, or one rounding. float64 is held against
        float32, whose error is scaled to its rounding."""
        for (name, dtype), cases in self.errors.items():
            scale = 2 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps if dtype == torch.float64 else 1.0
            ours, theirs = (sum(case[i] ** 2 for case in cases) ** 0.5 for i in (0, 1))
            allowed = 2 * max(scale * theirs, torch.finfo(dtype).eps / 2 * len(cases) ** 0.5)
            worst = max(cases, key=lambda case: case[0])
            assert ours <= allowed, (f"{name} of {dtype}: error {ours:.3g} over {len(cases)} cases, allowed {allowed:.3g}; "
                                     f"the worst is {worst[0]:.3g} (plain torch {worst[1]:.3g}) in {worst[2]}")  # fmt: skip


@pytest.fixture
def pool():
    pool = Pool()
    yield pool
    pool.check()


def check(pool, inputs, *, temperature=None, only=(0, 1, 2), **options):
    """Adds outputs and gradients of the op against the reference; weights of the loss on the outputs in `only`."""
    dtype = inputs[0].dtype
    plain_dtype = torch.float32 if dtype == torch.float64 else dtype
    statistic = torch.float64 if dtype == torch.float64 else torch.float32
    rows = inputs[0].shape[:-1]
    shapes = (inputs[0].shape, rows, rows)
    weights = [torch.randn(shape, device=inputs[0].device).to(plain_dtype) * (i in only) for i, shape in enumerate(shapes)]
    # Temperature in float32, which both see; half types of the plain form would round it.
    t = None if temperature is None else temperature.to(inputs[0].device, torch.float32)

    def run(op, dtype, t_dtype):
        return results(op, [x.to(dtype) for x in inputs], weights, None if t is None else t.to(t_dtype), options)

    actual, gradients = run(isentrope.entropy_attention, dtype, statistic)
    exact, exact_gradients = run(reference.entropy_attention, torch.float64, torch.float64)
    plain, plain_gradients = run(reference.entropy_attention, plain_dtype, plain_dtype)
    assert actual[0].dtype == dtype and all(x.dtype == statistic for x in actual[1:])
    case = f"q {list(inputs[0].shape)}, k {list(inputs[1].shape)}, {options}"
    for name, a, p, e in zip([*NAMES, "dq", "dk", "dv", "dtemperature"], actual + gradients, plain + plain_gradients,
                             exact + exact_gradients):  # fmt: skip
        pool.add(case, name, a, p, e)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_shapes(pool, device, causal):
    for D in [8, 40, 64, 72]:
        for T, S in [(1, 1), (1, 97), (31, 31), (33, 65), (64, 64), (65, 33), (97, 130), (300, 300)]:
            check(pool, draw(5 if T == 1 else 2, 4, T, D, S=S, device=device), causal=causal)


@pytest.mark.parametrize("index", range(len(DTYPES)))
@pytest.mark.parametrize("D", [64, 128, 136, 256])
def test_dtypes_and_head_sizes(pool, device, index, D):
    if DTYPES[index] not in dtypes_of(device):
        pytest.skip("double is the CPU's")
    check(pool, draw(1, 3, 77, D, dtype=DTYPES[index], device=device), causal=True)


@pytest.mark.parametrize("only", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("index", range(3))
def test_one_gradient_at_a_time(pool, device, only, index):
    check(pool, draw(1, 2, 65, 64, dtype=DTYPES[index], device=device), only=only, causal=True)


def random_case(seed):
    """A case with any of the options together: (inputs' arguments, temperature or None, options)."""
    r = random.Random(seed)
    B, G, group = r.choice([1, 2, 3]), r.choice([1, 2]), r.choice([1, 2, 3])
    T, S = r.choice([1, 2, 31, 33, 64, 65, 97, 130]), r.choice([1, 2, 31, 33, 64, 65, 97, 130])
    H, D = G * group, r.choice([8, 16, 40, 64, 72, 96, 128])
    options = {"causal": r.random() < 0.7}
    if options["causal"] and r.random() < 0.5:
        options["window"] = r.choice([1, 7, 40, 1000])
    if r.random() < 0.3:
        options["softcap"] = r.choice([1.0, 5.0])
    if r.random() < 0.3:
        options["scale"] = r.choice([0.05, 0.5])
    temperature = None
    if r.random() < 0.5:
        torch.manual_seed(seed)
        temperature = 0.5 + torch.rand(*r.choice([(H,), (H, T), (B, H, T)]))
    if r.random() < 0.4:
        options["key_lengths"] = torch.tensor([r.choice([0, 1, S // 2, S]) for _ in range(B)])
    if r.random() < 0.3:
        options["query_start"] = torch.tensor([r.randint(0, S) for _ in range(B)])
    dtype = r.choice(DTYPES[:3])
    return dict(B=B, H=H, T=T, D=D, G=G, S=S, dtype=dtype), temperature, options


@pytest.mark.parametrize("first", range(0, 240, 60))
def test_options_together(pool, device, first):
    for seed in range(first, first + 60):
        arguments, temperature, options = random_case(seed)
        options = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
        check(pool, draw(**arguments, device=device), temperature=temperature, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_row", [False, True])
def test_packed_sequences(pool, device, dtype, per_row):
    ends = torch.tensor([0, 5, 5, 70, 71, 135], device=device)  # one of none, one of one
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in draw(1, 4, 135, 32, G=2, dtype=dtype, device=device))
    temperature = 0.5 + torch.rand(*((4, 135) if per_row else (4,)))
    check(pool, [q, k, v], temperature=temperature, causal=True, window=30, cu_seqlens=ends)
    check(pool, [q, k, v], causal=False, cu_seqlens=ends.int(), max_seqlen=65)


def test_packed_equals_separate(device):
    lengths = [33, 1, 64, 7]
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=device)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in draw(1, 2, 105, 64, device=device))
    packed = isentrope.entropy_attention(q, k, v, causal=True, cu_seqlens=ends)
    for a, b in zip(ends.tolist(), ends.tolist()[1:]):
        one = isentrope.entropy_attention(*(x[a:b].transpose(0, 1)[None] for x in (q, k, v)), causal=True)
        for name, whole, part in zip(NAMES, packed, one):
            torch.testing.assert_close(whole[a:b], part[0].transpose(0, 1), msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [-3e4, 3e4])
def test_logits_far_from_zero(pool, device, dtype, offset):
    q, k, v = draw(1, 2, 65, 64, dtype=dtype, device=device)
    # One channel adds the same to every logit of a row; powers of two, so that no dtype rounds them.
    q[..., 0], k[..., 0] = 256.0 if offset > 0 else -256.0, 1024.0
    check(pool, (q, k, v), causal=True, scale=0.125)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group, T", [(1, 1), (1, 130), (4, 33)])  # few rows, blocks, blocks of several heads
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("offset", [-1e10, -1e8, -1e4, 1e4, 1e8, 1e10])
def test_gradients_at_any_common_offset(device, dtype, group, T, softcap, offset):
    # All logits of a row are one number, exactly, so p = 1/32, entropy = log 32 and its gradient is 0: lse keeps nothing of that.
    q, k = (torch.zeros(1, heads, rows, 8, dtype=dtype, device=device) for heads, rows in ((group, T), (1, 64)))
    q[..., 0], k[..., 0] = 4096, 16 if offset > 0 else -16
    v = torch.randn(1, 1, 64, 8, device=device).to(dtype)
    lengths, leaves = torch.tensor([32], device=device), [x.requires_grad_() for x in (q, k, v)]
    options = {"causal": False, "scale": abs(offset) / 65536, "softcap": softcap, "key_lengths": lengths}
    out, lse, entropy, _ = isentrope.entropy_attention(*leaves, **options)
    torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(32)))
    (out.sum() + entropy.sum()).backward()
    exact = torch.zeros_like(v)
    exact[:, :, :32] = group * T / 32
    torch.testing.assert_close(v.grad, exact)


@pytest.mark.parametrize("offset", [-1e8, 1e8])
@pytest.mark.parametrize("T", [4, 97])
def test_logits_that_differ_at_a_large_offset(pool, device, offset, T):
    # Logits of 1e8 in float32 go in steps of 8, and these are exact: a third of the keys one step below the others.
    q, k, v = draw(1, 1, T, 8, S=48, device=device)
    q[:], k[:] = 0.0, 0.0
    q[..., 0], k[..., 0] = 8.0, offset / 8
    k[:, :, 32:, 0] -= 1.0
    check(pool, (q, k, v), causal=False, scale=1.0)


def test_one_key(device):
    q, k, v = draw(2, 3, 5, 64, S=1, device=device)
    out, lse, entropy, max_logit = isentrope.entropy_attention(q, k, v, causal=False)
    assert (entropy == 0).all() and (lse == max_logit).all()
    torch.testing.assert_close(out, v.expand_as(out), rtol=0, atol=0)
    first = isentrope.entropy_attention(*draw(1, 2, 9, 32, device=device), causal=True).entropy[..., 0]
    assert (first == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_keys(device, dtype):
    q, k, v = (x.requires_grad_() for x in draw(2, 2, 70, 64, S=33, dtype=dtype, device=device))
    lengths = torch.tensor([0, 20], device=device)
    out, lse, entropy, max_logit = isentrope.entropy_attention(q, k, v, causal=True, key_lengths=lengths)
    empty = torch.ones(2, 2, 70, dtype=torch.bool, device=device)
    empty[1, :, 70 - 33 :] = False  # query 37 sees key 0
    assert (out[empty] == 0).all() and (lse[empty] == -INF).all() and (entropy[empty] == 0).all()
    assert (max_logit[empty] == -INF).all() and lse[~empty].isfinite().all()
    (out.sum() + lse.masked_fill(empty, 0).sum() + entropy.sum()).backward()
    assert (q.grad[empty] == 0).all() and q.grad.isfinite().all()
    assert (k.grad[0] == 0).all() and (k.grad[1, :, 20:] == 0).all() and (v.grad[1, :, 20:] == 0).all()


def test_no_keys_and_no_queries(device):
    for T, S in ((5, 0), (0, 5), (0, 0)):
        leaves = [x.requires_grad_() for x in draw(2, 4, T, 32, G=2, S=S, device=device)]
        out, lse, entropy, max_logit = isentrope.entropy_attention(*leaves, causal=False)
        assert out.shape == (2, 4, T, 32) and (out == 0).all() and (lse == -INF).all() and (entropy == 0).all()
        (out.sum() + entropy.sum()).backward()
        assert all(leaf.grad.shape == leaf.shape and (leaf.grad == 0).all() for leaf in leaves)


def test_keys_after_the_length_are_not_read(device):
    q, k, v = draw(2, 2, 33, 64, S=97, device=device)
    lengths = torch.tensor([40, 97], device=device)
    k[0, :, 40:], v[0, :, 40:] = float("nan"), INF
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = isentrope.entropy_attention(*leaves, causal=False, key_lengths=lengths)
    (out.out.sum() + out.entropy.sum()).backward()
    assert all(x.isfinite().all() for x in out) and all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("value", [float("nan"), INF])
def test_nan_stays_in_its_row(device, index, value):
    if DTYPES[index] not in dtypes_of(device):
        pytest.skip("double is the CPU's")
    q, k, v = draw(1, 2, 70, 64, dtype=DTYPES[index], device=device)
    clean = isentrope.entropy_attention(q, k, v, causal=True)
    q[0, 1, 33, 5] = value
    spoilt = isentrope.entropy_attention(q, k, v, causal=True)
    for name, a, b in zip(NAMES[:3], clean, spoilt):
        assert b[0, 1, 33].isnan().all(), name
        a, b = a.clone(), b.clone()
        a[0, 1, 33], b[0, 1, 33] = 0, 0
        assert torch.equal(a, b), f"{name} of another row changed"


@pytest.mark.parametrize("name", ["k", "v"])
def test_nan_of_a_key_reaches_only_rows_that_see_it(name):
    q, k, v = draw(1, 2, 70, 64)
    clean = isentrope.entropy_attention(q, k, v, causal=True)
    (k if name == "k" else v)[0, 1, 40, 3] = float("nan")
    out = isentrope.entropy_attention(q, k, v, causal=True).out
    assert torch.equal(out[0, 1, :40], clean.out[0, 1, :40]) and torch.equal(out[0, 0], clean.out[0, 0])
    assert out[0, 1, 40:, 3].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_the_score_gradient_sum_to_dlse(dtype):
    # With k = one-hot columns, s = scale·q and dq = scale·ds: its row sum is Σ ds.
    T = S = D = 64
    q, v = torch.randn(1, 1, T, D, dtype=dtype), torch.randn(1, 1, S, D, dtype=dtype)
    k, dlse = torch.eye(S, D, dtype=dtype)[None, None], torch.randn(1, 1, T, dtype=dtype)
    leaf = q.clone().requires_grad_()
    out, lse, entropy, _ = isentrope.entropy_attention(leaf, k, v, causal=True, scale=1.0)
    (out * torch.randn_like(out)).sum().add((entropy * torch.randn_like(entropy)).sum()).add((lse * dlse).sum()).backward()
    torch.testing.assert_close(leaf.grad.sum(-1), dlse, rtol=0, atol=64 * torch.finfo(dtype).eps * 8)


def test_entropy_that_is_not_asked_for(device):
    leaves = [x.requires_grad_() for x in draw(1, 2, 65, 64, device=device)]
    out = isentrope.entropy_attention(*leaves, causal=True, return_entropy=False)
    full = isentrope.entropy_attention(*leaves, causal=True)
    assert out.entropy is None and not out.max_logit.requires_grad and full.entropy.requires_grad
    for a, b in ((out.out, full.out), (out.lse, full.lse), (out.max_logit, full.max_logit)):
        assert torch.equal(a, b)


# ---- decoding, merging, strides --------------------------------------------------------------------------------------


def test_decoding_step_by_step_equals_the_full_pass(device):
    q, k, v = draw(2, 4, 70, 64, G=2, device=device)
    full = isentrope.entropy_attention(q, k, v, causal=True, window=20)
    for t in (0, 1, 19, 20, 69):
        step = isentrope.entropy_attention(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], causal=True, window=20)
        start = torch.full((2,), t, device=device)  # the same out of a cache of fixed size
        cached = isentrope.entropy_attention(q[:, :, t : t + 1], k, v, causal=True, window=20, query_start=start)
        for name, whole, a, b in zip(NAMES, full, step, cached):
            torch.testing.assert_close(a, whole[:, :, t : t + 1], msg=lambda m: f"{name}, step {t}: {m}")
            torch.testing.assert_close(b, whole[:, :, t : t + 1], msg=lambda m: f"{name}, step {t}, cache: {m}")


def test_decoding_from_caches_of_different_lengths(device):
    q, k, v = draw(3, 4, 2, 64, G=2, S=1100, device=device)
    lengths = torch.tensor([2, 700, 1100], device=device)
    out = isentrope.entropy_attention(q, k, v, causal=True, key_lengths=lengths, query_start=lengths - 2)
    for b, n in enumerate(lengths.tolist()):
        one = isentrope.entropy_attention(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], causal=True)
        for name, whole, part in zip(NAMES, out, one):
            torch.testing.assert_close(whole[b], part[0], msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merged_parts_equal_the_whole(device, dtype):
    if dtype not in dtypes_of(device):
        pytest.skip("double is the CPU's")
    leaves = [x.requires_grad_() for x in draw(2, 2, 33, 64, S=130, dtype=dtype, device=device)]
    copies = [x.detach().clone().requires_grad_() for x in leaves]
    whole = isentrope.entropy_attention(*leaves, causal=False)
    q, k, v = copies
    parts = [isentrope.entropy_attention(q, k[:, :, a:b], v[:, :, a:b], causal=False) for a, b in ((0, 1), (1, 70), (70, 70), (70, 130))]
    merged = isentrope.merge_attention_states(*(torch.stack(x) for x in zip(*parts)))
    for name, a, b in zip(NAMES, merged, whole):
        torch.testing.assert_close(a, b, msg=lambda m: f"{name}: {m}")
    weights = [torch.randn_like(x) for x in whole[:3]]
    for outputs in (whole, merged):
        sum((x * w).sum() for x, w in zip(outputs, weights)).backward()
    for a, b in zip(copies, leaves):
        torch.testing.assert_close(a.grad, b.grad)


def test_merge_against_the_reference(device):
    out, lse, entropy = torch.randn(3, 5, 7, 8), torch.randn(3, 5, 7) * 3, torch.rand(3, 5, 7)
    lse[0, 0], lse[:, 1, 0] = -INF, -INF  # a state without keys; a row without keys in any
    out[0, 0], entropy[0, 0] = 0, 0
    leaves = [x.double().to(device).requires_grad_() for x in (out, lse, entropy)]
    merged = isentrope.merge_attention_states(*leaves, leaves[1])
    expected = reference.merge_attention_states(*(x.detach() for x in leaves), leaves[1].detach())
    for name, a, b in zip(NAMES, merged, expected):
        torch.testing.assert_close(a, b, msg=lambda m: f"{name}: {m}")
    assert merged.lse[1, 0] == -INF and merged.entropy[1, 0] == 0 and (merged.out[1, 0] == 0).all()
    (merged.out.sum() + merged.lse.masked_fill(merged.lse == -INF, 0).sum() + merged.entropy.sum()).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    two = isentrope.merge_attention_states(leaves[0], leaves[1])
    assert two.entropy is None and two.max_logit is None and torch.equal(two.out, merged.out)


@pytest.mark.parametrize("view", ["[B, T, H, D] memory", "joined projection", "every other head", "expanded keys", "strided head"])
def test_strides(device, view):
    q, k, v = draw(2, 4, 65, 32, device=device)
    if view == "[B, T, H, D] memory":
        views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    elif view == "joined projection":
        joined = torch.cat([x.transpose(1, 2) for x in (q, k, v)], 2)  # [B, T, 3 H, D]
        views = list(joined.transpose(1, 2).split(4, 1))
    elif view == "every other head":
        views = [x.repeat_interleave(2, 1)[:, ::2] for x in (q, k, v)]
    elif view == "expanded keys":
        k, v = k[:1].expand(2, -1, -1, -1), v[:, :1].expand(-1, 4, -1, -1)
        views = [q, k, v]
    else:
        views = [x.repeat_interleave(2, 3)[..., ::2] for x in (q, k, v)]
    weights = [torch.randn_like(q), torch.randn(2, 4, 65, device=device), torch.randn(2, 4, 65, device=device)]

    def run(inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = isentrope.entropy_attention(*leaves, causal=True)
        sum((x * w).sum() for x, w in zip(outputs[:3], weights)).backward()
        return [*outputs, *(leaf.grad for leaf in leaves)]

    for a, b in zip(run(views), run([x.contiguous() for x in (q, k, v)])):
        torch.testing.assert_close(a, b, rtol=0 if device == "cpu" else 1e-6, atol=0 if device == "cpu" else 1e-6)
    if view == "[B, T, H, D] memory":
        out = isentrope.entropy_attention(*views, causal=True).out
        assert out.transpose(1, 2).is_contiguous(), "joining the heads of out copies it"


# ---- what torch asks of an op ----------------------------------------------------------------------------------------


def test_gradcheck():
    q, k, v = draw(2, 2, 5, 8, G=1, S=7, dtype=torch.float64)
    temperature = (0.5 + torch.rand(2, 5, dtype=torch.float64)).requires_grad_()
    lengths = torch.tensor([7, 4])

    def op(q, k, v, temperature):
        out, lse, entropy, _ = isentrope.entropy_attention(
            q, k, v, causal=True, window=4, softcap=2.0, temperature=temperature, key_lengths=lengths
        )
        return out, lse.masked_fill(lse == -INF, 0), entropy

    assert torch.autograd.gradcheck(op, [x.requires_grad_() for x in (q, k, v)] + [temperature])
    plain = [x.detach().requires_grad_() for x in draw(1, 2, 6, 8, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: isentrope.entropy_attention(*x, causal=False)[:3], plain)


def test_second_derivatives_are_refused():
    q, k, v = (x.requires_grad_() for x in draw(1, 1, 4, 8))
    (first,) = torch.autograd.grad(isentrope.entropy_attention(q, k, v, causal=True).entropy.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="isentrope::entropy_attention_backward.*not implemented"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device, dtype):
    q, k, v = (x.requires_grad_() for x in draw(2, 2, 9, 16, G=1, S=11, dtype=dtype, device=device))
    op, backward = torch.ops.isentrope.entropy_attention.default, torch.ops.isentrope.entropy_attention_backward.default
    temperature = torch.full((2, 9), 0.7, device=device, requires_grad=True)
    cases = [{"causal": False}, {"causal": True, "window": 3, "softcap": 2.0, "temperature": temperature},
             {"causal": True, "return_entropy": False}]  # fmt: skip
    for options in cases:
        torch.library.opcheck(op, (q, k, v), options)
    with torch.no_grad():
        out, lse, entropy, _, anchor, log_sum = op(q, k, v, causal=True, temperature=temperature)
        given = (q.detach(), k.detach(), v.detach(), out, entropy, anchor, log_sum)
    torch.library.opcheck(backward, (*given, torch.randn_like(out), None, torch.randn_like(lse)), {"causal": True, "temperature": temperature.detach(), "of_temperature": True})
    torch.library.opcheck(backward, (*given, None, torch.randn_like(lse), None), {"causal": True, "temperature": temperature.detach()})
    stacked = [torch.randn(3, 4, 8, device=device), *(torch.randn(3, 4, device=device) for _ in range(3))]
    torch.library.opcheck(torch.ops.isentrope.merge_attention_states.default, stacked)


def test_compile_fullgraph(device):
    def loss(q, k, v, t):
        out, lse, entropy, max_logit = isentrope.entropy_attention(q, k, v, causal=True, softcap=5.0, temperature=t)
        return (out * out).sum() + lse.sum() - 0.1 * entropy.sum() + max_logit.detach().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for T in (33, 20):
        inputs = [*draw(2, 4, T, 32, G=2, device=device), torch.full((4,), 0.8, device=device)]
        grads = []
        for f in (loss, compiled):
            leaves = [x.clone().requires_grad_() for x in inputs]
            f(*leaves).backward()
            grads.append([leaf.grad for leaf in leaves])
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b)


# Numbers of the ops that change from step to step; ops.py says what to do with a float that does.
STEPPING = {
    "window": lambda x, n: isentrope.entropy_attention(*x, causal=True, window=n).out,
    "max_seqlen": lambda x, n: isentrope.entropy_attention(
        *(y[0].transpose(0, 1) for y in x), causal=True, cu_seqlens=torch.tensor([0, 5, 12]), max_seqlen=7 + n
    ).out,
    "a factor of q in place of scale": lambda x, n: isentrope.entropy_attention(x[0] * (0.1 * n), *x[1:], causal=True, scale=1.0).out,
    "temperature": lambda x, n: isentrope.entropy_attention(*x, causal=True, temperature=x[0].new_ones(2) * (0.1 * n)).out,
    "window of window_entropy": lambda x, n: isentrope.window_entropy(x[0][0, 0].square(), torch.ones(12, 16), window=n).mean,
    "a factor of hidden in place of temperature": lambda x, n: isentrope.linear_token_entropy(
        x[0][0] * (0.1 * n), x[1][0, 0], torch.arange(12).expand(2, 12)
    ).logprob,
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", STEPPING)
def test_a_number_that_changes_by_step_is_compiled_once(name, backend):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(STEPPING[name], fullgraph=True, backend=counter)
    inputs = [x.requires_grad_() for x in draw(1, 2, 12, 16)]
    for n in range(1, 21):
        gradients = []
        for f in (compiled, STEPPING[name]):
            out = f(inputs, float(n) if " in place " in name or name == "temperature" else n)
            gradients.append(torch.autograd.grad(out.square().sum(), inputs, allow_unused=True))
        for a, b in zip(*gradients):
            torch.testing.assert_close(a, b)
    assert counter.frame_count <= 2  # the first time a constant, the second a variable


def test_meta_and_real_agree(device):
    for dtype in dtypes_of(device):
        q, k, v = (x.transpose(1, 2) for x in draw(2, 9, 4, 16, dtype=dtype, device=device))
        real = torch.ops.isentrope.entropy_attention(q, k, v, causal=True)
        meta = torch.ops.isentrope.entropy_attention(*(x.to("meta") for x in (q, k, v)), causal=True)
        assert [(x.shape, x.dtype, x.stride()) for x in real] == [(x.shape, x.dtype, x.stride()) for x in meta]


# ---- determinism, instruction sets, memory ---------------------------------------------------------------------------


def everything(inputs, **options):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out, lse, entropy, max_logit = isentrope.entropy_attention(*leaves, **options)
    (out.float().square().sum() + lse.sum() + entropy.sum()).backward()
    return [x.detach() for x in (out, lse, entropy, max_logit)] + [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("shape", [(1, 1, 700, 64), (2, 3, 130, 40), (4, 2, 65, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_depend_on_neither_threads_nor_batch(shape, dtype):
    inputs = draw(*shape, dtype=dtype)
    torch.set_num_threads(1)
    first = everything(inputs, causal=True)
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(first, everything(inputs, causal=True)))
    beside = everything([torch.cat([x, torch.randn_like(x)]) for x in inputs], causal=True)
    for name, a, b in zip([*NAMES, "dq", "dk", "dv"], first, beside):
        assert torch.equal(a, b[: shape[0]]), f"{name} depends on what is beside it in the batch"


ANOTHER_INSTRUCTION_SET = """
import sys, torch, isentrope
assert torch.backends.cpu.get_cpu_capability().startswith(sys.argv[2]), torch.backends.cpu.get_cpu_capability()
for inputs, options, expected in torch.load(sys.argv[1]):
    leaves = [x.requires_grad_() for x in inputs]
    out, lse, entropy, max_logit = isentrope.entropy_attention(*leaves, **options)
    (out.float().square().sum() + lse.sum() + entropy.sum()).backward()
    for a, b in zip([out, lse, entropy, max_logit] + [leaf.grad for leaf in leaves], expected):
        torch.testing.assert_close(a, b)
print("same")
"""


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(same_on, capability):
    ours = torch.backends.cpu.get_cpu_capability()
    if capability == "avx2" and ours not in ("AVX2", "AVX512"):
        pytest.skip(f"this processor has {ours} only")
    cases = []
    # The narrowest build leaves the processor's bfloat16 products alone, and rounds elsewhere.
    products = re.search(r"\b(avx512_bf16|amx_bf16)\b", Path("/proc/cpuinfo").read_text()) and capability == "default"
    for dtype in DTYPES:
        if dtype == torch.bfloat16 and products:
            continue
        for shape, options in (((2, 2, 65, 64), {"causal": True}), ((1, 4, 33, 72), {"causal": True, "window": 9, "softcap": 3.0})):
            inputs = draw(*shape, dtype=dtype)
            cases.append((inputs, options, everything(inputs, **options)))
    same_on(capability, ANOTHER_INSTRUCTION_SET, cases)


def test_bfloat16_products_of_the_processor():
    """What is built on them, with plain loops in their place (csrc/ops/bfloat16_product.h): this file's tests of values again."""
    names = ("dtypes or one_gradient or together or packed or far_from_zero or without_keys or not_read or nan or sum_to_dlse or bits")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", f"not cuda and ({names})"],
                          env={**os.environ, "ISENTROPE_BFLOAT16_PRODUCTS": "plain"}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    outputs = []  # and they are taken
    for means in ("plain", "off"):
        script = ("import torch, isentrope; torch.manual_seed(0); x = torch.randn(3, 1, 2, 200, 64).bfloat16(); "
                  "print(isentrope.entropy_attention(*x, causal=True).out.float().sum().item())")  # fmt: skip
        paths = [str(Path(isentrope.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "ISENTROPE_BFLOAT16_PRODUCTS": means, "PYTHONPATH": os.pathsep.join(paths)}
        outputs.append(subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] != outputs[1]


PEAK = """
import pathlib, re, sys, torch, isentrope
status = lambda key: int(re.search(key + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
T = int(sys.argv[1])
torch.set_num_threads(1)
q, k, v = (torch.randn(1, 2, T, 64, requires_grad=True) for _ in range(3))
isentrope.entropy_attention(*(x[:, :, :64] for x in (q, k, v)), causal=True).out.sum().backward()
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
before = status("VmRSS")
out, lse, entropy, _ = isentrope.entropy_attention(q, k, v, causal=True)
(out.sum() + entropy.sum()).backward()
print(status("VmHWM") - before)
"""


def test_memory_grows_with_the_rows_alone():
    def peak(T):
        return 1024 * int(subprocess.run([sys.executable, "-c", PEAK, str(T)], capture_output=True, text=True, check=True,
                                         env={**os.environ, "PYTHONPATH": str(Path(isentrope.__file__).resolve().parents[1])}).stdout)  # fmt: skip

    short, long = peak(4096), peak(8192)
    assert short > 2 * 2 * 4096 * 64 * 4, "less than out and a gradient: nothing was measured"
    # Twice the rows, twice the memory; T × S matrices would be 512 MB more than that. 8 MB: what allocators round.
    assert long <= 2 * short + 8e6, f"{short / 1e6:.1f} MB at T = 4096, {long / 1e6:.1f} MB at T = 8192"


# ---- bad input -------------------------------------------------------------------------------------------------------

Q, K = torch.zeros(2, 4, 6, 16), torch.zeros(2, 2, 7, 16)
P = torch.zeros(6, 4, 16)


@pytest.mark.parametrize(
    "error, message, arguments, options",
    [
        (TypeError, "q has dtype Long; wanted Float, BFloat16, Half, Double", (Q.long(), K, K), {}),
        (TypeError, "k has dtype Double; wanted Float", (Q, K.double(), K), {}),
        (TypeError, "v has dtype Half; wanted Float", (Q, K, K.half()), {}),
        (ValueError, r"q has 3 dimensions; wanted \[B, H, T, D\], or \[total, H, D\] with cu_seqlens", (Q[0], K, K), {}),
        (ValueError, "k has 3 dimensions; wanted 4", (Q, K[0], K[0]), {}),
        (ValueError, "v has shape .* the shape of k", (Q, K, K[:, :, :5]), {}),
        (ValueError, "k has 1 batches; wanted 2", (Q, K[:1], K[:1]), {}),
        (ValueError, "k has a head size of 8; wanted 16", (Q, K[..., :8], K[..., :8]), {}),
        (ValueError, "q has 4 heads and k has 3", (Q, torch.zeros(2, 3, 7, 16), torch.zeros(2, 3, 7, 16)), {}),
        (ValueError, "the head size is 512; wanted at most 256; layers with larger heads need another", (torch.zeros(1, 1, 2, 512),) * 3, {}),
        (ValueError, "the head size is 4; wanted a multiple of 8", (Q[..., :4], K[..., :4], K[..., :4]), {}),
        (TypeError, r"entropy_attention: temperature is 0.5, of type float; wanted a tensor, as torch.full\(\[H\], 0.5\), or None$", (Q, K, K), {"temperature": 0.5}),
        (TypeError, r"key_lengths is \[3\], of type list; wanted a tensor, as torch.tensor\(\[3\]\), or None$", (Q, K, K), {"key_lengths": [3]}),
        (TypeError, "q is None, of type NoneType; wanted a tensor$", (None, K, K), {}),
        (TypeError, "window is '3', of type str; wanted an integer, or None$", (Q, K, K), {"window": "3"}),
        (TypeError, "window is 2.5, of type float; wanted an integer, or None$", (Q, K, K), {"window": 2.5}),
        (TypeError, "scale is '1', of type str; wanted a number, or None$", (Q, K, K), {"scale": "1"}),
        (ValueError, "the head size is 12; wanted a multiple of 8", (Q[..., :12], K[..., :12], K[..., :12]), {}),
        (ValueError, "v is on meta; wanted cpu", (Q, K, K.to("meta")), {}),
        (ValueError, "window is 0; wanted at least 1", (Q, K, K), {"window": 0}),
        (ValueError, "window is given and causal is false", (Q, K, K), {"window": 3, "causal": False}),
        (ValueError, "softcap is 0; wanted above 0", (Q, K, K), {"softcap": 0.0}),
        (ValueError, "softcap is -1", (Q, K, K), {"softcap": -1.0}),
        (ValueError, "scale is 0", (Q, K, K), {"scale": 0.0}),
        (ValueError, "scale is nan", (Q, K, K), {"scale": float("nan")}),
        (ValueError, r"temperature has shape \[3\]; wanted \[4\], one a head, \[4, 6\], one a row, or one a row of every", (Q, K, K), {"temperature": torch.ones(3)}),
        (ValueError, "temperature holds a value that is not above 0; the least is -2", (Q, K, K), {"temperature": torch.tensor([1.0, -2.0, 1.0, 1.0])}),
        (TypeError, "key_lengths has dtype Float; wanted Int, Long", (Q, K, K), {"key_lengths": torch.ones(2)}),
        (ValueError, r"key_lengths has shape \[3\]; wanted \[2\]", (Q, K, K), {"key_lengths": torch.ones(3).int()}),
        (ValueError, r"key_lengths\[1\] is 8; wanted 0 to 7", (Q, K, K), {"key_lengths": torch.tensor([0, 8])}),
        (ValueError, r"query_start\[0\] is 9; wanted 0 to 7", (Q, K, K), {"query_start": torch.tensor([9, 0])}),
        (ValueError, r"cu_seqlens\[0\] is 1; wanted 0", (P, P, P), {"cu_seqlens": torch.tensor([1, 6])}),
        (ValueError, r"cu_seqlens\[2\] is 3, below the one before it \(4\)", (P, P, P), {"cu_seqlens": torch.tensor([0, 4, 3, 6])}),
        (ValueError, "cu_seqlens ends at 5; wanted 6", (P, P, P), {"cu_seqlens": torch.tensor([0, 5])}),
        (ValueError, "q has 4 dimensions; wanted .*since cu_seqlens is given", (Q, K, K), {"cu_seqlens": torch.tensor([0, 6])}),
        (ValueError, "k has 5 rows; wanted 6", (P, P[:5], P[:5]), {"cu_seqlens": torch.tensor([0, 6])}),
        (ValueError, "key_lengths and cu_seqlens are both given", (P, P, P), {"cu_seqlens": torch.tensor([0, 6]), "key_lengths": torch.tensor([6])}),
        (ValueError, "sequence 0 has 6 rows; wanted at most max_seqlen", (P, P, P), {"cu_seqlens": torch.tensor([0, 6]), "max_seqlen": 5}),
        (ValueError, "max_seqlen is given without cu_seqlens", (Q, K, K), {"max_seqlen": 5}),
    ],
)  # fmt: skip
def test_bad_input(error, message, arguments, options):
    with pytest.raises(error, match=message):
        isentrope.entropy_attention(*arguments, **{"causal": True, **options})


def test_max_logit_has_no_gradient():
    out = isentrope.entropy_attention(*(x.requires_grad_() for x in draw(1, 1, 4, 8)), causal=True)
    assert [x.requires_grad for x in out] == [True, True, True, False]
    with pytest.raises(RuntimeError, match="does not require grad"):
        out.max_logit.sum().backward()


@pytest.mark.parametrize("change, message", [
    ({"out": torch.zeros(3, 4, 8)}, "lse has shape"),
    ({"entropy": torch.zeros(2, 4)}, "entropy has shape"),
    ({"lse": torch.zeros(())}, "lse has shape"),
])  # fmt: skip
def test_bad_merge(change, message):
    given = {"out": torch.zeros(2, 3, 8), "lse": torch.zeros(2, 3), "entropy": torch.zeros(2, 3), "max_logit": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=message):
        isentrope.merge_attention_states(**{**given, **change})


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_memory_in_which_d_is_not_the_innermost_dimension(which):
    # As keys that are kept transposed, [B, G, D, S]: outputs and gradients are not laid out as they are.
    torch.manual_seed(2)
    given = {name: torch.randn(2, heads, 9, 8, dtype=torch.float64) for name, heads in (("q", 4), ("k", 2), ("v", 2))}
    for dim in (0, 1, 2):
        laid = {**given, which: given[which].transpose(dim, -1).contiguous().transpose(dim, -1)}
        assert laid[which].stride(-1) > 1
        leaves = [x.requires_grad_() for x in (laid[name].detach() for name in "qkv")]
        actual = isentrope.entropy_attention(*leaves, causal=True)
        expected = reference.entropy_attention(*leaves, causal=True)
        found, wanted = ([*x[:3], *torch.autograd.grad(x[0].square().sum() + x[2].sum(), leaves)] for x in (actual, expected))
        for a, e in zip(found, wanted):
            torch.testing.assert_close(a, e)
        meta = torch.ops.isentrope.entropy_attention(*(x.detach().to("meta") for x in leaves), causal=True)
        assert meta[0].stride() == actual.out.stride()
