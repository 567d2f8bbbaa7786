"""The transforms of torch.func: which each op has, and that they give what torch.autograd and a loop give."""

import functools
import warnings

import pytest
import torch
from test_dispatch import RULES, cases, of_one
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import isentrope

# What vmap makes of each op.
ONCE, EACH, TORCH, REFUSED, NONE = "one call", "a call for each", "torch's own operators", "refused", "no tensor"
VMAP = {
    "entropy_attention": ONCE,
    "entropy_attention_backward": ONCE,
    "merge_attention_states": TORCH,
    "gathered_attention": TORCH,  # and entropy_attention; test_gathered_attention.py
    "scatter_mean": TORCH,
    "hierarchical_attention": TORCH,  # test_hierarchical_attention.py
    "sigma_linear": ONCE,  # of x; a weight or bias for each: EACH
    "sigma_linear_backward": ONCE,  # of x alone
    "power_step": REFUSED,
    "token_entropy": ONCE,
    "token_entropy_kept": ONCE,
    "token_entropy_backward": ONCE,
    "token_entropy_backward_": REFUSED,
    "linear_token_entropy": ONCE,  # of hidden; a weight or bias for each: EACH
    "linear_token_entropy_kept": ONCE,
    "linear_token_entropy_backward": ONCE,  # of hidden alone
    "window_entropy": ONCE,
    "window_entropy_backward": ONCE,
    "window_select": ONCE,  # of scope row
    "grpo_select": EACH,
    "grpo_loss": EACH,
    "grpo_loss_backward": EACH,
    "grpo_stat_names": NONE,
    "grpo_combine_stats": EACH,
    "linear_attention": ONCE,  # packed: EACH
    "linear_attention_backward": ONCE,
    "gated_delta_rule": ONCE,
    "gated_delta_rule_backward": ONCE,
    "crrelu": EACH,  # elementwise: M calls take what one would, but for their number
    "crrelu_backward": EACH,
}
# Ops with a backward op; merge_attention_states is torch's own operators, which have every derivative. The others have none.
DERIVED = [op for op in cases() if op != "merge_attention_states"]


def test_every_op_says_what_vmap_makes_of_it():
    names = {name.removeprefix("isentrope::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("isentrope::") and "::method_" not in name}
    assert names == set(VMAP) == set(RULES)
    for name in names:
        has = torch._C._dispatch_has_kernel_for_dispatch_key(f"isentrope::{name}", "FuncTorchBatched")
        assert has == (VMAP[name] != NONE), name
    assert {name for name in names if f"{name}_backward" in names} == set(DERIVED)


EVERY = [(op, index) for op in DERIVED for index in range(len(cases()[op][1])) if (op, index) != ("grpo_loss", 1)]
FOLDED = [(op, index) for op, index in EVERY if VMAP[op] == ONCE and (index == 0 or op in ("entropy_attention", "linear_attention", "gated_delta_rule"))]
every = pytest.mark.parametrize("op, index", EVERY)


def problem(op, index):
    f, x = of_one(op, index)
    batch = torch.stack([x, 0.5 * x, 2 * x])
    return (lambda y: f(y.sin())), x, batch


def gradient(f, x):
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def loop(f, batch):
    return torch.stack([f(x) for x in batch])


# A call for each is what is wanted in some tests; the warning has a test of its own.
quiet = pytest.mark.filterwarnings("ignore:There is a performance drop")


@quiet
@every
def test_first_derivatives(op, index):
    f, x, _ = problem(op, index)
    expected = gradient(f, x)
    assert torch.equal(grad(f)(x), expected)
    value, pull = vjp(f, x)
    assert torch.equal(value, f(x)) and torch.equal(pull(torch.ones(()))[0], expected)
    outputs = lambda y: cases()[op][0](*cases()[op][1][:index], y, *cases()[op][1][index + 1 :])[0]  # noqa: E731
    wanted = torch.autograd.functional.jacobian(outputs, x)
    for options in ({}, {"chunk_size": 3}):
        torch.testing.assert_close(jacrev(outputs, **options)(x), wanted)


@quiet
@every
def test_vmap(op, index):
    f, _, batch = problem(op, index)
    torch.testing.assert_close(vmap(f)(batch), loop(f, batch))
    torch.testing.assert_close(vmap(f, chunk_size=2)(batch), loop(f, batch))
    torch.testing.assert_close(vmap(f, in_dims=-1)(batch.movedim(0, -1)), loop(f, batch))
    pairs = torch.stack([batch, batch.flip(0)])
    torch.testing.assert_close(vmap(vmap(f, in_dims=1))(pairs.movedim(1, 2)), torch.stack([loop(f, x) for x in pairs]))


@quiet
@every
def test_gradients_of_each(op, index):
    f, _, batch = problem(op, index)
    expected = loop(functools.partial(gradient, f), batch)
    torch.testing.assert_close(vmap(grad(f))(batch), expected)
    torch.testing.assert_close(vmap(grad(f), chunk_size=2)(batch), expected)
    torch.testing.assert_close(vmap(grad(f), in_dims=-1, out_dims=1)(batch.movedim(0, -1)).movedim(1, 0), expected)
    torch.testing.assert_close(grad(lambda x: vmap(f)(x).sum())(batch), expected)
    leaf = batch.clone().requires_grad_()
    vmap(f)(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, expected)


@quiet
@pytest.mark.parametrize("op", DERIVED)
def test_all_arguments_of_each_together(op):
    function, inputs = cases()[op]
    f = lambda *x: sum(y.square().sum() for y in function(*x))  # noqa: E731
    differentiated = tuple(i for i in range(len(inputs)) if (op, i) in EVERY)
    batches = [torch.stack([x, 0.5 * x]) for x in inputs]
    actual = vmap(grad(f, argnums=differentiated))(*batches)
    for k, i in enumerate(differentiated):
        for m in range(2):
            given = [b[m] for b in batches]
            one = lambda x: f(*given[:i], x, *given[i + 1 :])  # noqa: B023, E731
            torch.testing.assert_close(actual[k][m], gradient(one, given[i]))


@pytest.mark.parametrize("op, index", FOLDED)
def test_one_call_is_one_call(op, index):
    f, _, batch = problem(op, index)
    calls = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, called, types, args=(), kwargs=None):
            calls.append(called.name().removeprefix("isentrope::")) if "isentrope" in called.name() else None
            return called(*args, **(kwargs or {}))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Count():
            outputs, pull = vjp(vmap(f), batch)
            pull(torch.ones_like(outputs))
    assert calls.count(op) == 1 and calls.count(f"{op}_backward") == 1


@pytest.mark.parametrize("op, index", [("sigma_linear", 1), ("linear_token_entropy", 1), ("grpo_loss", 0)])
def test_a_call_for_each_warns_by_name(op, index):
    f, _, batch = problem(op, index)
    with pytest.warns(UserWarning, match=f"performance drop: torch.func.vmap calls isentrope::{op} for each element; .*docs/python.md"):
        vmap(f)(batch)


@quiet
def test_gradients_of_a_layer_for_each_example():
    x, target = torch.randn(6, 5, 16, dtype=torch.float64), torch.arange(5).repeat(6, 1)
    weight, bias = torch.randn(8, 16, dtype=torch.float64), torch.randn(8, dtype=torch.float64)

    def loss(weight, bias, x, target):
        logprob, entropy, _ = isentrope.linear_token_entropy(x, weight, target, bias=bias)
        return (0.1 * entropy - logprob).mean()

    actual = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))(weight, bias, x, target)
    for m in range(6):
        leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        for a, e in zip(actual, torch.autograd.grad(loss(*leaves, x[m], target[m]), leaves)):
            torch.testing.assert_close(a[m], e)


# ---- attention: what is mapped and what is one for all ---------------------------------------------------------------


def attention(lengths=None, starts=None, **options):
    def f(q, k, v, temperature):
        out, lse, entropy, _ = isentrope.entropy_attention(
            q, k, v, causal=True, temperature=temperature, key_lengths=lengths, query_start=starts, **options
        )
        return out.square().sum() + (0.3 * entropy.square()).sum() + lse.sin().sum()

    return f


@pytest.mark.parametrize("shape", [(4,), (4, 5), (2, 4, 5)])
@pytest.mark.parametrize("mapped", [(True, True, True, True), (True, False, False, False), (False, True, True, False), (False, False, False, True), (True, True, True, False)])  # fmt: skip
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_attention_with_some_arguments_for_all(shape, mapped):
    torch.manual_seed(3)
    f = attention(lengths=torch.tensor([7, 5]), starts=torch.tensor([2, 0]), softcap=5.0)
    shapes = [(2, 4, 5, 16), (2, 2, 7, 16), (2, 2, 7, 16), shape]
    given = [torch.rand(3, *s, dtype=torch.float64) + 0.5 if is_mapped else torch.rand(s, dtype=torch.float64) + 0.5 for s, is_mapped in zip(shapes, mapped)]
    dims = tuple(0 if is_mapped else None for is_mapped in mapped)
    actual = vmap(grad(f, argnums=(0, 1, 2, 3)), in_dims=dims)(*given)
    summed = grad(lambda *x: vmap(f, in_dims=dims)(*x).sum(), argnums=(0, 1, 2, 3))(*given)
    each = []
    for m in range(3):
        leaves = [(x[m] if is_mapped else x).clone().requires_grad_() for x, is_mapped in zip(given, mapped)]
        each.append(torch.autograd.grad(f(*leaves), leaves))
    for i, is_mapped in enumerate(mapped):
        expected = torch.stack([e[i] for e in each])
        torch.testing.assert_close(actual[i], expected)
        torch.testing.assert_close(summed[i], expected if is_mapped else expected.sum(0))


@quiet
def test_packed_attention_for_each():
    q, ends = torch.randn(3, 7, 2, 16, dtype=torch.float64), torch.tensor([0, 3, 7])
    f = lambda q: isentrope.entropy_attention(q, q, q, causal=True, cu_seqlens=ends).entropy.sum()  # noqa: E731
    torch.testing.assert_close(vmap(grad(f))(q), loop(functools.partial(gradient, f), q))


@pytest.mark.parametrize("lengths", [torch.tensor([[7, 5], [0, 7], [1, 1]])])
def test_attention_with_lengths_for_each(lengths):
    q, k = torch.randn(3, 2, 4, 5, 16), torch.randn(3, 2, 4, 7, 16)
    f = lambda q, k, n: isentrope.entropy_attention(q, k, k, causal=False, key_lengths=n, return_entropy=False).out  # noqa: E731
    torch.testing.assert_close(vmap(f)(q, k, lengths), torch.stack([f(*x) for x in zip(q, k, lengths)]))


@pytest.mark.parametrize("scope", ["row", "batch", "global"])
@quiet
def test_window_select(scope):
    mean, mask = torch.rand(3, 2, 9), torch.ones(2, 9)
    f = lambda x: tuple(isentrope.window_entropy(x, mask, quantile=0.5, scope=scope))  # noqa: E731
    for a, e in zip(vmap(f)(mean), zip(*map(f, mean)), strict=True):
        assert torch.equal(a, torch.stack(e))


@quiet
def test_ops_without_derivatives():
    logprob, old = -torch.rand(3, 4, 9), -torch.rand(3, 4, 9)
    f = lambda x, y: isentrope.grpo_select(x, y, x, torch.ones(4, 9), mode="kl_cov", seed=1, cov_ratio=0.2)  # noqa: E731
    assert torch.equal(vmap(f)(logprob, old), torch.stack([f(*x) for x in zip(logprob, old)]))
    stats = torch.rand(3, 2, len(isentrope.ops.GRPO_STATS))
    torch.testing.assert_close(vmap(isentrope.grpo_combine_stats)(stats), loop(isentrope.grpo_combine_stats, stats))
    with pytest.raises(NotImplementedError, match="isentrope::power_step: called inside torch.func.vmap"):
        vmap(lambda w, u: isentrope.power_step([w], [u]).sigmas)(torch.randn(3, 8, 16), torch.ones(3, 16))


@pytest.mark.filterwarnings("error:There is a performance drop")
def test_merged_states_are_torchs_own_operators():
    out, lse = torch.randn(3, 2, 4, 8, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    f = lambda out, lse: sum(x.square().sum() for x in isentrope.merge_attention_states(out, lse)[:2])  # noqa: E731
    torch.testing.assert_close(vmap(f)(out, lse), torch.stack([f(*x) for x in zip(out, lse)]))
    assert hessian(f)(out[0], lse[0]).shape == (2, 4, 8) * 2


# ---- what is refused -------------------------------------------------------------------------------------------------


@quiet
@every
def test_second_derivatives_are_refused_by_name(op, index):
    f, x, _ = problem(op, index)
    squared = lambda y: grad(lambda z: f(z).square())(y).square().sum()  # noqa: E731
    refused = pytest.raises(RuntimeError, match=f"isentrope::{op}_backward: second derivatives are not implemented")
    with refused:
        grad(squared)(x)
    with refused:
        jacrev(grad(lambda z: f(z).square()))(x)
    with refused:
        vmap(grad(squared))(x[None])
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(leaf).square(), leaf, create_graph=True)
    with refused:
        first.sum().backward()


@quiet
@every
def test_forward_mode_is_refused_by_name(op, index):
    f, x, batch = problem(op, index)
    for call in (lambda: jvp(f, (x,), (x,)), lambda: jacfwd(f)(x), lambda: hessian(f)(x), lambda: jvp(vmap(f), (batch,), (batch,))):
        with pytest.raises(NotImplementedError, match=f"isentrope::{op}: [a-z_]+ has a forward-mode tangent"):
            call()


# ---- what stands beside it -------------------------------------------------------------------------------------------


@quiet
@every
def test_compile(op, index):
    f, x, batch = problem(op, index)
    for transformed, given in ((grad(f), x), (vmap(f), batch), (vmap(grad(f)), batch)):
        torch._dynamo.reset()
        compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(given), transformed(given))


@pytest.mark.parametrize("op", DERIVED)
def test_autograd_around_and_beside_the_op(op):
    f, x, _ = problem(op, 0)
    expected = gradient(f, x)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
        assert torch.equal(gradient(f, x), expected)
    assert packed
    with torch.autograd.graph.save_on_cpu():
        assert torch.equal(gradient(f, x), expected)
    with torch.autograd.detect_anomaly(check_nan=True):
        assert torch.equal(gradient(f, x), expected)
    assert torch.equal(gradient(lambda y: torch.utils.checkpoint.checkpoint(f, y, use_reentrant=False), x), expected)
    leaf = x.clone().requires_grad_()
    value = f(leaf)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(value, leaf, retain_graph=True)[0], expected)
    torch.autograd.grad(value, leaf)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(value, leaf)


@quiet
@pytest.mark.parametrize("op", [op for op in DERIVED if RULES[op] == "in autocast's dtype"])
def test_autocast_inside_vmap(op):
    f, _, batch = problem(op, 0)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = vmap(f)(batch), loop(f, batch)
    exact = loop(f, batch)
    assert (actual - exact).abs().max() <= 2 * (expected - exact).abs().max()


@quiet
def test_an_empty_mapped_dimension_is_named():
    with pytest.raises(ValueError, match="isentrope::token_entropy: torch.func.vmap maps a dimension of size 0"):
        vmap(lambda x: isentrope.token_entropy(x, torch.arange(3)).logprob)(torch.zeros(0, 3, 5))


@quiet
def test_a_mistake_inside_vmap_is_named():
    q = torch.zeros(3, 2, 4, 5, 16)
    with pytest.raises(ValueError, match="isentrope::entropy_attention: k has 3 dimensions; wanted 4 as q has"):
        vmap(lambda q, k: isentrope.entropy_attention(q, k, k, causal=True).out)(q, q[:, 0])
    with pytest.raises(ValueError, match="isentrope::token_entropy: "):
        vmap(lambda x, t: isentrope.token_entropy(x, t).logprob)(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="inplace_backward overwrites logits, which is a leaf"):
        grad(lambda x: isentrope.token_entropy(x, torch.arange(3), inplace_backward=True).logprob.sum())(torch.zeros(3, 5))


def test_inplace_backward_overwrites_nothing_inside_a_transform():
    x, target = torch.randn(3, 5), torch.arange(3)
    f = lambda x, **options: isentrope.token_entropy(2 * x, target, **options).entropy.sum()  # noqa: E731
    assert torch.equal(grad(functools.partial(f, inplace_backward=True))(x), gradient(f, x))


def test_a_number_that_changes_and_a_dimension_that_is_mapped():
    target = torch.arange(4)
    f = lambda x, s: isentrope.token_entropy(x, target, temperature=s).entropy  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, s: vmap(lambda y: f(y, s))(x), fullgraph=True, dynamic=True, backend="aot_eager")
    for s in (0.5, 0.7, 0.9):
        for size in (3, 5):
            x = torch.randn(size, 4, 7)
            torch.testing.assert_close(compiled(x, s), torch.stack([f(y, s) for y in x]))


@quiet
def test_gradients_of_a_module_for_each_example():
    torch.manual_seed(5)
    model = isentrope.nn.EntropyAttention(32, 2)
    values = {name: x.detach() for name, x in model.named_parameters()}
    loss = lambda values, x: torch.func.functional_call(model, values, (x,)).square().mean()  # noqa: E731
    x = torch.randn(3, 2, 9, 32)
    for transformed in (vmap(grad(loss), in_dims=(None, 0)), torch.compile(vmap(grad(loss), in_dims=(None, 0)), fullgraph=True, backend="aot_eager")):
        actual = transformed(values, x)
        for m in range(3):
            model.zero_grad()
            model(x[m]).square().mean().backward()
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(actual[name][m], parameter.grad)
