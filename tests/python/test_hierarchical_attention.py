"""hierarchical_attention against isentrope.reference in double, against softmax attention, and against an optimiser."""

import math

import pytest
import torch
from test_entropy_attention import DTYPES, Pool

import isentrope
from isentrope import nn, reference

NAMES = ["out", "entropy", "log_partition"]


@pytest.fixture
def pool():
    pool = Pool()
    yield pool
    pool.check()


def draw(B, H, G, T, D, dtype=torch.float64):
    narrow = torch.float32 if dtype == torch.float64 else dtype
    return [torch.randn(B, heads, T, D).to(narrow).to(dtype) for heads in (H, G, G)]


def draw_tree(B, T, roots=1):
    """Of each sequence tokens in three to five sentences, these in two documents, in no order; a token here and there in none."""
    sentences = torch.randint(-1, 3, (B, T))
    documents = torch.randint(0, 2, (B, 5))
    return nn.tree_of_parents(sentences, documents, *([] if roots == 2 else [torch.zeros(B, 2, dtype=torch.long)]))


CASES = [
    # B, H, G, T, D, dimensions of position, options
    (1, 1, 1, 1, 8, None, {"branching": 2}),
    (1, 4, 2, 33, 16, None, {"branching": 3}),
    (1, 2, 1, 31, 5, 4, {"branching": 2}),
    (1, 2, 2, 40, 8, None, {"branching": 8}),
    (1, 2, 2, 20, 8, 2, {"branching": 97}),
    (2, 2, 1, 17, 8, 3, {"branching": 4, "key_lengths": torch.tensor([17, 10]), "scale": 1.0}),
    (2, 2, 1, 17, 8, None, {"branching": 4, "mask": torch.rand(2, 17, generator=torch.Generator().manual_seed(0)) < 0.6}),
    (3, 2, 2, 15, 8, 4, {"tree": 1}),
    (2, 4, 2, 18, 8, None, {"tree": 2, "key_lengths": torch.tensor([18, 0])}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_values(pool, dtype):
    for B, H, G, T, D, features, options in CASES:
        narrow = torch.float32 if dtype == torch.float64 else dtype
        inputs = draw(B, H, G, T, D, dtype)
        if "tree" in options:
            options = {**options, "tree": draw_tree(B, T, options["tree"])}
        if features is not None:
            inputs.append(torch.randn(5, H, 97, 3)[(0, 0)[: 4 - features]].to(narrow).to(dtype))
        found = []
        for op, type_ in ((isentrope.hierarchical_attention, dtype), (reference.hierarchical_attention, narrow), (reference.hierarchical_attention, torch.float64)):
            leaves = [x.to(type_).requires_grad_() for x in inputs]
            outputs = op(*leaves[:3], **options, **({} if features is None else {"position": leaves[3]}))
            if not found:
                weights = [torch.randn(x.shape, dtype=torch.float64) for x in outputs]
            loss = sum((x * w.to(x.dtype)).sum() for x, w in zip(outputs, weights))
            found.append([*outputs, *torch.autograd.grad(loss, leaves)])
        for name, *x in zip([*NAMES, "dq", "dk", "dv", "dposition"], *found):
            pool.add(f"B {B}, H {H}, T {T}, {options}", name, *(y.detach() for y in x))


def weights_of(q, k, **options):
    """[B, H, T, T]: what comes out for values that are columns of the unit matrix."""
    (B, _, T, D), G = q.shape, k.shape[1]
    columns = torch.eye(T, -(-T // D) * D, dtype=q.dtype).split(D, -1)
    return torch.cat([isentrope.hierarchical_attention(q, k, x.expand(B, G, T, D), **options).out for x in columns], -1)[..., :T]


def test_one_family_is_softmax_attention():
    q, k, v = draw(2, 4, 2, 40, 16)
    lengths = torch.tensor([40, 23])
    flat = isentrope.entropy_attention(q, k, v, causal=False, key_lengths=lengths)
    for options in ({"branching": 40}, {"branching": 10**6}, {"tree": [torch.randperm(40)[None]]}):
        out, entropy, log_partition = isentrope.hierarchical_attention(q, k, v, **options, key_lengths=lengths)
        for b, n in enumerate(lengths.tolist()):
            torch.testing.assert_close(out[b, :, :n], flat.out[b, :, :n], rtol=0, atol=1e-12)
            torch.testing.assert_close(entropy[b, :, :n], flat.entropy[b, :, :n], rtol=0, atol=1e-12)
            torch.testing.assert_close(log_partition[b, :, 0], flat.lse[b, :, :n].mean(-1), rtol=0, atol=1e-12)


def test_rows_sum_to_one_and_are_tied():
    q, k, _ = draw(1, 2, 2, 21, 8)
    tree = [torch.tensor([[0, 1, 2, -1], [3, 4, 5, 6], [7, -1, -1, -1]] + [[i, i + 1, i + 2, -1] for i in range(8, 20, 3)] + [[20, -1, -1, -1]]),
            torch.tensor([[0, 1, 2], [3, 4, -1], [5, 6, 7]]), torch.tensor([[0, 1, 2]])]  # fmt: skip
    theta = weights_of(q, k, tree=tree)
    torch.testing.assert_close(theta.sum(-1), torch.ones(1, 2, 21, dtype=q.dtype))
    for rows, columns in ((range(0, 3), range(3, 7)), (range(0, 8), range(8, 14)), (range(14, 21), range(8))):
        block = theta[0][:, list(rows)][..., list(columns)]
        assert (block - block[:, :1, :1]).abs().max() < 1e-15
    assert (theta[0, :, 0, :3].std(-1) > 0).all()  # in a family of tokens each has its own
    entropy = isentrope.hierarchical_attention(q, k, k, tree=tree).entropy
    torch.testing.assert_close(entropy, -(theta * theta.log()).sum(-1))


def test_it_is_the_nearest_to_softmax():
    """Theorem 3.2 on a tree of two levels: no other tied weights found by descent have a smaller Σ KL."""
    q, k, v = draw(1, 1, 1, 6, 8)
    family = torch.tensor([0, 0, 1, 1, 1, 2])
    logits = (q @ k.mT)[0, 0] / math.sqrt(8)
    target = logits.log_softmax(-1)
    inside = family[:, None] == family
    within, between = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True), torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    sizes = torch.bincount(family).double()

    def weights():  # a token's own family has its own columns; a sibling has one share, which its tokens have alike
        share = between.log_softmax(-1)[family]  # [6, 3]
        own = within.masked_fill(~inside, -math.inf).log_softmax(-1)
        tied = share[:, family] - sizes.log()[family]
        return torch.where(inside, share.gather(1, family[:, None]) + own.masked_fill(~inside, 0), tied)

    optimizer = torch.optim.LBFGS([within, between], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe")

    def divergence():
        log_theta = weights()
        return (log_theta.exp() * (log_theta - target)).sum()

    def closure():
        optimizer.zero_grad()
        loss = divergence()
        loss.backward()
        return loss

    optimizer.step(closure)
    tree = nn.tree_of_parents(family, torch.zeros(3, dtype=torch.long))
    out, entropy, log_partition = isentrope.hierarchical_attention(q, k, v, tree=tree)
    least = 6 * (logits.logsumexp(-1).mean() - log_partition[0, 0, 0])
    torch.testing.assert_close(divergence().detach(), least, rtol=0, atol=1e-9)
    torch.testing.assert_close(weights().exp().detach() @ v[0, 0], out[0, 0], rtol=0, atol=1e-5)
    assert least > 0.01  # the tree costs something here


def test_a_balanced_tree_is_that_tree():
    q, k, v = draw(2, 2, 1, 37, 8)
    parents = [torch.arange(37) // 4, torch.arange(10) // 4, torch.arange(3) // 4]
    for a, e in zip(isentrope.hierarchical_attention(q, k, v, tree=nn.tree_of_parents(*parents), key_lengths=torch.tensor([30, 37])),
                    isentrope.hierarchical_attention(q, k, v, branching=4, key_lengths=torch.tensor([30, 37]))):  # fmt: skip
        torch.testing.assert_close(a, e)


def test_order_does_not_matter_but_for_the_tree():
    q, k, v = draw(1, 2, 2, 16, 8)
    order = torch.arange(16).view(4, 4).flip(0)[:, torch.tensor([2, 0, 3, 1])].flatten()  # families, and tokens in them
    out = isentrope.hierarchical_attention(q, k, v, branching=4).out
    torch.testing.assert_close(isentrope.hierarchical_attention(q[:, :, order], k[:, :, order], v[:, :, order], branching=4).out, out[:, :, order])


def test_padding_is_not_read():
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = draw(2, 2, 2, 30, 8, dtype)
        lengths = torch.tensor([30, 13])
        clean = isentrope.hierarchical_attention(q, k, v, branching=4, key_lengths=lengths)
        leaves = [x.clone().index_fill_(2, torch.tensor([29]), math.nan) for x in (q, k, v)]
        leaves = [torch.cat([x[:1], y[1:]]).requires_grad_() for x, y in zip((q, k, v), leaves)]
        spoilt = isentrope.hierarchical_attention(*leaves, branching=4, key_lengths=lengths)
        for name, a, e in zip(NAMES, spoilt, clean):
            assert torch.equal(a, e), name
        assert (spoilt.out[1, :, 13:] == 0).all() and (spoilt.entropy[1, :, 13:] == 0).all()
        sum(x.float().square().sum() for x in spoilt).backward()
        assert all(torch.isfinite(x.grad).all() and (x.grad[1, :, 13:] == 0).all() for x in leaves)
        alone = isentrope.hierarchical_attention(*(x[1:, :, :13] for x in (q, k, v)), branching=4)
        torch.testing.assert_close(clean.out[1, :, :13], alone.out[0])
        torch.testing.assert_close(clean.log_partition[1], alone.log_partition[0])
        mask = torch.arange(30) < lengths[:, None]
        assert torch.equal(isentrope.hierarchical_attention(q, k, v, branching=4, mask=mask).out, clean.out)


def test_several_roots_are_apart():
    q, k, v = draw(1, 2, 2, 20, 8)
    tree = nn.tree_of_parents(torch.arange(20) // 4, torch.tensor([0, 0, 0, 1, 1]))
    out, entropy, log_partition = isentrope.hierarchical_attention(q, k, v, tree=tree)
    for i, (a, b) in enumerate(((0, 12), (12, 20))):
        one = isentrope.hierarchical_attention(*(x[:, :, a:b] for x in (q, k, v)), branching=4)
        torch.testing.assert_close(out[:, :, a:b], one.out)
        torch.testing.assert_close(entropy[:, :, a:b], one.entropy)
        torch.testing.assert_close(log_partition[..., i], one.log_partition[..., 0])


def test_tree_of_parents():
    first, second = nn.tree_of_parents(torch.tensor([1, 0, 1, -1, 1]), torch.tensor([0, 0]))
    assert first.tolist() == [[1, -1, -1], [0, 2, 4]] and second.tolist() == [[0, 1]]
    first, second = nn.tree_of_parents(torch.tensor([[0, 1, 1], [0, 0, 0]]), torch.tensor([[0, 0], [0, -1]]))
    assert first.tolist() == [[[0, -1, -1], [1, 2, -1]], [[0, 1, 2], [-1, -1, -1]]] and second.tolist() == [[[0, 1]], [[0, -1]]]
    with pytest.raises(ValueError, match=r"parents\[1\] is of 3 nodes; wanted at least 4"):
        nn.tree_of_parents(torch.tensor([0, 3]), torch.tensor([0, 0, 0]))
    with pytest.raises(TypeError, match=r"parents\[0\] has dtype torch.float32; wanted integers"):
        nn.tree_of_parents(torch.zeros(3))
    with pytest.raises(ValueError, match=r"parents\[0\] holds -2; wanted -1 for none, or the number of a parent"):
        nn.tree_of_parents(torch.tensor([0, -2]))


@pytest.mark.parametrize("case", ["branching", "tree"])
def test_gradcheck(case):
    q, k, v = (x.requires_grad_() for x in draw(1, 2, 1, 7, 3))
    position = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    tree = {"branching": {"branching": 3}, "tree": {"tree": nn.tree_of_parents(torch.tensor([2, 0, 1, 1, 0, -1, 1]), torch.tensor([0, 0, 0]))}}[case]
    op = lambda q, k, v, p: tuple(isentrope.hierarchical_attention(q, k, v, **tree, position=p, mask=torch.tensor([[True] * 6 + [False]])))  # noqa: E731
    assert torch.autograd.gradcheck(op, (q, k, v, position))
    if case == "branching":
        assert torch.autograd.gradgradcheck(op, (q, k, v, position))


def test_opcheck():  # trees of several levels with sizes that are not known: test_compile_fullgraph
    q, k, v = (x.requires_grad_() for x in draw(2, 2, 2, 10, 8, torch.float32))
    op = torch.ops.isentrope.hierarchical_attention.default
    torch.library.opcheck(op, (q, k, v), {"branching": 16, "key_lengths": torch.tensor([10, 7])})
    options = {"tree": nn.tree_of_parents(torch.arange(10) // 4, torch.zeros(3, dtype=torch.long)), "position": torch.randn(10, 3, requires_grad=True), "return_entropy": False}
    torch.library.opcheck(op, (q, k, v), options, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("case", ["branching", "tree"])
def test_compile_fullgraph(case):
    def f(q, k, v, options):
        out, entropy, log_partition = isentrope.hierarchical_attention(q, k, v, **options)
        return out.square().sum() + entropy.sum() + log_partition.sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (21, 33):
        options = {"branching": 8} if case == "branching" else {"tree": nn.tree_of_parents(torch.arange(T) // 7, torch.zeros(-(-T // 7), dtype=torch.long))}
        inputs, grads = draw(1, 2, 2, T, 8), []
        for g in (f, compiled):
            leaves = [x.clone().requires_grad_() for x in inputs]
            g(*leaves, options).backward()
            grads.append([x.grad for x in leaves])
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b)


def test_vmap_and_gradients_of_each():
    q, k, v = (torch.randn(3, 1, 2, 13, 8, dtype=torch.float64) for _ in range(3))
    tree = draw_tree(1, 13)
    lengths = torch.tensor([[13], [5], [8]])
    for options, shared in (({"branching": 4}, True), ({"tree": tree}, True), ({"branching": 4}, False)):
        f = lambda q, k, v, n: isentrope.hierarchical_attention(q, k, v, **options, **({} if shared else {"key_lengths": n})).out.square().sum()  # noqa: B023, E731
        actual = torch.func.vmap(torch.func.grad(f))(q, k, v, lengths)
        for m in range(3):
            torch.testing.assert_close(actual[m], torch.func.grad(f)(q[m], k[m], v[m], lengths[m]))


def test_autocast():
    q, k, v = draw(1, 2, 2, 20, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = isentrope.hierarchical_attention(q, k, v, branching=4)
    outside = isentrope.hierarchical_attention(*(x.bfloat16() for x in (q, k, v)), branching=4)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(inside, outside)) and inside.entropy.dtype == torch.float32


def test_empty():
    for B, T in ((0, 5), (2, 0)):
        leaves = [x.requires_grad_() for x in draw(B, 2, 1, T, 8, torch.float32)]
        out, entropy, _ = isentrope.hierarchical_attention(*leaves, branching=4)
        assert out.shape == (B, 2, T, 8) and entropy.shape == (B, 2, T)
        out.sum().backward()


def test_bits_do_not_depend_on_threads():
    inputs, found = draw(2, 4, 2, 300, 32, torch.float32), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = isentrope.hierarchical_attention(*leaves, tree=nn.tree_of_parents(torch.arange(300) // 7, torch.zeros(43, dtype=torch.long))).out
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found))


Q, K = torch.zeros(2, 4, 6, 16), torch.zeros(2, 2, 6, 16)
TREE = [torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[0, 1]])]


@pytest.mark.parametrize(
    "error, message, arguments, options",
    [
        (ValueError, r"q has 3 dimensions; wanted \[B, H, T, D\]", (Q[0], K, K), {"branching": 2}),
        (ValueError, "q has 4 heads and k has 3", (Q, torch.zeros(2, 3, 6, 16), K), {"branching": 2}),
        (ValueError, r"k has shape \[2, 2, 5, 16\]; wanted \[2, 2, 6, 16\]", (Q, K[:, :, :5], K[:, :, :5]), {"branching": 2}),
        (ValueError, r"v has shape .* \(as k\)", (Q, K, K[:, :, :5]), {"branching": 2}),
        (TypeError, "k has dtype Double; wanted Float as q has", (Q, K.double(), K), {"branching": 2}),
        (TypeError, "q has dtype Long", (Q.long(), K.long(), K.long()), {"branching": 2}),
        (ValueError, "branching is None and tree is None; wanted one of the two", (Q, K, K), {}),
        (ValueError, "branching is given and tree is given; wanted one of the two", (Q, K, K), {"branching": 2, "tree": TREE}),
        (ValueError, "branching is 1; wanted at least 2", (Q, K, K), {"branching": 1}),
        (TypeError, "branching is '8', of type str; wanted an integer, or None", (Q, K, K), {"branching": "8"}),
        (TypeError, "of type Tensor; wanted a list of tensors, or None", (Q, K, K), {"tree": TREE[0]}),
        (ValueError, "tree is empty; wanted the families of each level", (Q, K, K), {"tree": []}),
        (ValueError, r"tree\[1\] has shape \[2\]; wanted \[families, nodes of each\], or \[2, families, nodes of each\]", (Q, K, K), {"tree": [TREE[0], TREE[1][0].repeat(1)]}),
        (TypeError, r"tree\[0\] has dtype Float; wanted Int, Long", (Q, K, K), {"tree": [TREE[0].float()]}),
        (ValueError, r"tree\[0\] holds 6; wanted 0 to 5, or -1 for none", (Q, K, K), {"tree": [TREE[0] + 1]}),
        (ValueError, r"tree\[1\] holds -2; wanted 0 to 1, or -1 for none", (Q, K, K), {"tree": [TREE[0], TREE[1] - 2]}),
        (ValueError, r"tree\[0\] holds 3 more than once; wanted each node in one family", (Q, K, K), {"tree": [TREE[0].clone().fill_(3)]}),
        (ValueError, r"key_lengths has shape \[3\]; wanted \[2\]", (Q, K, K), {"branching": 2, "key_lengths": torch.ones(3, dtype=torch.long)}),
        (TypeError, "key_lengths has dtype Float; wanted Int, Long", (Q, K, K), {"branching": 2, "key_lengths": torch.ones(2)}),
        (TypeError, "mask has dtype Float; wanted Bool", (Q, K, K), {"branching": 2, "mask": torch.ones(2, 6)}),
        (ValueError, r"mask has shape \[2, 5\]; wanted \[2, 6\]", (Q, K, K), {"branching": 2, "mask": torch.ones(2, 5) > 0}),
        (ValueError, r"position has shape \[3, 2, 2\]; wanted \[siblings, features\], \[4, siblings, features\]", (Q, K, K), {"branching": 2, "position": torch.ones(3, 2, 2)}),
        (ValueError, "position is of 2 siblings; wanted at least 3", (Q, K, K), {"branching": 3, "position": torch.ones(2, 2)}),
        (ValueError, "scale is inf; wanted a finite number", (Q, K, K), {"branching": 3, "scale": math.inf}),
        (TypeError, "q is None; wanted a tensor", (None, K, K), {"branching": 3}),
    ],
)  # fmt: skip
def test_bad_input(error, message, arguments, options):
    with pytest.raises(error, match=message):
        isentrope.hierarchical_attention(*arguments, **options)
