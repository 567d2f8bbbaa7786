"""gathered_attention and scatter_mean against isentrope.reference in double, and as routed attention."""

import itertools

import pytest
import torch
from test_entropy_attention import DTYPES, INF, NAMES, Pool

import isentrope
from compiled import compiled as in_one_graph
from isentrope import reference


@pytest.fixture
def pool():
    pool = Pool()
    yield pool
    pool.check()


def draw_index(B, H, C, w, length, missing=0.2):
    """Positions of each cluster, none twice, in no order, -1 here and there."""
    index = torch.rand(B, H, C, length).argsort(-1)[..., :w]
    index = torch.nn.functional.pad(index, (0, w - index.shape[-1]), value=-1)
    return index.masked_fill(torch.rand(B, H, C, w) < missing, -1)


def gradients(outputs, weights, leaves):
    finite = [torch.where(x.isinf(), 0, x) for x in outputs[:3]]
    return [*outputs, *torch.autograd.grad(sum((x * w.to(x.dtype)).sum() for x, w in zip(finite, weights)), leaves)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("other_keys", [False, True])
def test_values(pool, dtype, causal, other_keys):
    for B, H, G, T, S, C, w, m in [(1, 1, 1, 1, 1, 1, 1, 1), (2, 4, 2, 33, 50, 3, 17, 30), (1, 2, 2, 70, 70, 2, 97, 5), (2, 2, 1, 5, 9, 0, 4, 4)]:
        S, m = (S, m) if other_keys else (T, w)
        narrow = torch.float32 if dtype == torch.float64 else dtype
        q, k, v = (torch.randn(B, heads, n, 16).to(narrow).to(dtype) for heads, n in ((H, T), (G, S), (G, S)))
        index, options = draw_index(B, H, C, w, T), {"causal": causal, "softcap": 3.0 if causal else None}
        if other_keys:
            options["key_index"] = draw_index(B, H, C, m, S)
        weights = [torch.randn(B, H, C, w, *rest).to(narrow) for rest in ((16,), (), ())]
        found = []
        for op, type_ in ((isentrope.gathered_attention, dtype), (reference.gathered_attention, narrow), (reference.gathered_attention, torch.float64)):
            leaves = [x.to(type_).requires_grad_() for x in (q, k, v)]
            found.append(gradients(op(*leaves, index, **options), weights, leaves))
        for name, *x in zip([*NAMES, "dq", "dk", "dv"], *found):
            pool.add(f"B {B}, H {H}, T {T}, C {C}, w {w}, {options}", name, *(y.detach() for y in x))


def test_causal_is_by_position_and_not_by_rank():
    q, k, v = torch.randn(3, 1, 1, 10, 8, dtype=torch.float64)
    index, keys = torch.tensor([[[[5, 7, -1]]]]), torch.tensor([[[[6, 1, 9, 5]]]])
    out, lse, entropy, _ = isentrope.gathered_attention(q, k, v, index, key_index=keys, causal=True)
    for i, seen in ((0, [1, 5]), (1, [1, 5, 6])):
        query = index[0, 0, 0, i]
        one = isentrope.entropy_attention(q[:, :, query : query + 1], k[:, :, seen], v[:, :, seen], causal=False)
        torch.testing.assert_close(out[0, 0, 0, i], one.out[0, 0, 0])
        torch.testing.assert_close(entropy[0, 0, 0, i], one.entropy[0, 0, 0])
    assert (out[0, 0, 0, 2] == 0).all() and lse[0, 0, 0, 2] == -INF and entropy[0, 0, 0, 2] == 0


def test_one_cluster_of_all_positions_is_attention():
    q, k, v = torch.randn(2, 4, 40, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)
    order = torch.rand(2, 4, 1, 40).argsort(-1)
    for causal in (False, True):
        whole = isentrope.entropy_attention(q, k, v, causal=causal)
        out, lse, entropy, max_logit = isentrope.gathered_attention(q, k, v, order, causal=causal)
        for name, a, e in zip(NAMES, (out, lse, entropy, max_logit), whole):
            torch.testing.assert_close(isentrope.scatter_mean(a, order, 40), e, msg=lambda m: f"{name}: {m}")


def test_heads_and_clusters_are_apart():
    q = torch.randn(1, 2, 12, 8)
    index = torch.stack([torch.arange(12).view(3, 4), torch.arange(12).view(4, 3).T])[None]
    out = isentrope.gathered_attention(q, q, q, index, causal=True).out
    for h, c in itertools.product(range(2), range(3)):
        x = q[:, h : h + 1, index[0, h, c]]
        torch.testing.assert_close(out[0, h, c], isentrope.entropy_attention(x, x, x, causal=True).out[0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [True, False])
def test_scatter_mean(dtype, rows):
    x = torch.randn(2, 3, 4, 9, *((5,) if rows else ())).to(dtype).requires_grad_()
    index = draw_index(2, 3, 4, 9, 20, 0.3)
    mean = isentrope.scatter_mean(x, index, 20)
    exact = reference.scatter_mean(x.double(), index, 20)
    weight = torch.randn_like(exact)
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2 * torch.finfo(dtype).eps}
    torch.testing.assert_close(mean.double(), exact, **tolerance)
    for a, e in zip(*(torch.autograd.grad((y * weight.to(y.dtype)).sum(), x) for y in (mean, exact))):
        torch.testing.assert_close(a, e, **tolerance)
    named = (index[..., None] == torch.arange(20)).any(2).any(2)
    assert mean.dtype == dtype and (mean[~named] == 0).all() and not named.all()


def routed(q, k, v, index):
    return isentrope.scatter_mean(isentrope.gathered_attention(q, k, v, index, causal=True).out, index, q.shape[2])


def test_gradcheck():
    q, k, v = (torch.randn(1, heads, 7, 8, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    index, keys = draw_index(1, 2, 2, 5, 7), draw_index(1, 2, 2, 4, 7)

    def op(q, k, v):
        out, lse, entropy, _ = isentrope.gathered_attention(q, k, v, index, key_index=keys, causal=True)
        return isentrope.scatter_mean(out, index, 7), lse.masked_fill(lse == -INF, 0), isentrope.scatter_mean(entropy, index, 7)

    assert torch.autograd.gradcheck(op, (q, k, v))


def test_opcheck():
    q, k, v = (torch.randn(2, 2, 20, 16, requires_grad=True) for _ in range(3))
    index = draw_index(2, 2, 3, 9, 20)
    torch.library.opcheck(torch.ops.isentrope.gathered_attention.default, (q, k, v, index), {"causal": True})
    torch.library.opcheck(torch.ops.isentrope.gathered_attention.default, (q, k, v, index), {"causal": False, "key_index": index[..., :4], "return_entropy": False})
    torch.library.opcheck(torch.ops.isentrope.scatter_mean.default, (torch.randn(2, 2, 3, 9, 4, requires_grad=True), index, 20))


def test_compile_fullgraph():
    compiled = in_one_graph(lambda *x: routed(*x).square().sum(), dynamic=True)
    for T in (20, 33):
        inputs, index = [torch.randn(1, 2, T, 16) for _ in range(3)], draw_index(1, 2, 3, 9, T)
        grads = []
        for f in (lambda *x: routed(*x).square().sum(), compiled):
            leaves = [x.clone().requires_grad_() for x in inputs]
            f(*leaves, index).backward()
            grads.append([x.grad for x in leaves])
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b)


def test_vmap_and_gradients_of_each():
    q = torch.randn(3, 1, 2, 12, 8, dtype=torch.float64)
    index = torch.stack([draw_index(1, 2, 2, 5, 12) for _ in range(3)])
    f = lambda q, index: routed(q, q, q, index).square().sum()  # noqa: E731
    actual = torch.func.vmap(torch.func.grad(f))(q, index)
    for m in range(3):
        torch.testing.assert_close(actual[m], torch.func.grad(f)(q[m], index[m]))


def test_autocast():
    q, k, v = (torch.randn(1, 2, 20, 16) for _ in range(3))
    index = draw_index(1, 2, 3, 9, 20)
    with torch.autocast("cpu", torch.bfloat16):
        inside = isentrope.gathered_attention(q, k, v, index, causal=True)
        mean = isentrope.scatter_mean(inside.entropy, index, 20)
    outside = isentrope.gathered_attention(*(x.bfloat16() for x in (q, k, v)), index, causal=True)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(inside, outside)) and mean.dtype == torch.float32


def test_second_derivatives_are_refused():
    q = torch.randn(1, 1, 6, 8, requires_grad=True)
    (first,) = torch.autograd.grad(routed(q, q, q, torch.arange(6)[None, None, None]).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="isentrope::entropy_attention_backward.*not implemented"):
        first.sum().backward()


def test_bits_do_not_depend_on_threads():
    inputs, index = [torch.randn(2, 4, 200, 32) for _ in range(3)], draw_index(2, 4, 9, 60, 200)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = routed(*leaves, index)
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found))


Q, K, I = torch.zeros(2, 4, 6, 16), torch.zeros(2, 2, 7, 16), torch.zeros(2, 4, 3, 2, dtype=torch.long)


@pytest.mark.parametrize(
    "error, message, arguments, options",
    [
        (ValueError, r"q has 3 dimensions; wanted \[B, H, T, D\]", (Q[0], K, K, I), {}),
        (ValueError, "q has 4 heads and k has 3", (Q, torch.zeros(2, 3, 7, 16), torch.zeros(2, 3, 7, 16), I), {}),
        (ValueError, r"v has shape .* \(as k\)", (Q, K, K[:, :, :5], I), {}),
        (TypeError, "index has dtype Float; wanted Int, Long", (Q, K, K, I.float()), {}),
        (ValueError, r"index has shape \[2, 1, 3, 2\]; wanted \[2, 4, clusters, positions of each\]", (Q, K, K, I[:, :1]), {}),
        (ValueError, "index holds 6; wanted 0 to 5, or -1 for none", (Q, K, K, I + 6), {}),
        (ValueError, "index holds -2; wanted 0 to 5, or -1 for none", (Q, K, K, I - 2), {}),
        (ValueError, "key_index holds 7; wanted 0 to 6", (Q, K, K, I), {"key_index": I + 7}),
        (ValueError, "key_index has 2 clusters; wanted 3", (Q, K, K, I), {"key_index": I[:, :, :2]}),
        (ValueError, "softcap is -1", (Q, K, K, I), {"softcap": -1.0}),
        (TypeError, "index is None; wanted a tensor", (Q, K, K, None), {}),
    ],
)  # fmt: skip
def test_bad_input(error, message, arguments, options):
    with pytest.raises(error, match=message):
        isentrope.gathered_attention(*arguments, **{"causal": True, **options})


@pytest.mark.parametrize("message, x, length", [
    (r"x has shape \[2, 4, 3\]; wanted that of index", torch.zeros(2, 4, 3), 5),
    (r"x has shape \[2, 4, 3, 1\]; wanted that of index", torch.zeros(2, 4, 3, 1), 5),
    ("length is -1", torch.zeros(2, 4, 3, 2), -1),
    ("index holds 0; wanted 0 to -1", torch.zeros(2, 4, 3, 2), 0),
])  # fmt: skip
def test_bad_scatter(message, x, length):
    with pytest.raises(ValueError, match=message):
        isentrope.scatter_mean(x, I, length)
