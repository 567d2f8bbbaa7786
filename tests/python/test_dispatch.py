"""What torch.autocast, forward-mode and inference tensors meet in every op. torch.func: test_transforms.py."""

import functools

import pytest
import torch
from torch.autograd import forward_ad

import isentrope

# Every op and what autocast does with its floating point arguments (csrc/ops/library.cpp, autocast_rules).
LOWER, FLOAT, AS_IT_IS = "in autocast's dtype", "in float", "as it is"
RULES = {
    "entropy_attention": LOWER,  # q, k, v; not temperature
    "entropy_attention_backward": AS_IT_IS,
    "merge_attention_states": AS_IT_IS,
    "gathered_attention": LOWER,  # test_gathered_attention.py
    "scatter_mean": AS_IT_IS,
    "hierarchical_attention": LOWER,  # q, k, v; not position. test_hierarchical_attention.py
    "sigma_linear": LOWER,  # x, weight, bias; not gamma and u
    "sigma_linear_backward": AS_IT_IS,
    "power_step": AS_IT_IS,
    "token_entropy": AS_IT_IS,
    "token_entropy_kept": AS_IT_IS,
    "token_entropy_backward": AS_IT_IS,
    "token_entropy_backward_": AS_IT_IS,
    "linear_token_entropy": LOWER,
    "linear_token_entropy_kept": LOWER,
    "linear_token_entropy_backward": AS_IT_IS,
    "window_entropy": FLOAT,
    "window_entropy_backward": AS_IT_IS,
    "window_select": AS_IT_IS,
    "grpo_select": AS_IT_IS,
    "grpo_loss": AS_IT_IS,
    "grpo_loss_backward": AS_IT_IS,
    "grpo_stat_names": AS_IT_IS,
    "grpo_combine_stats": AS_IT_IS,
    "linear_attention": LOWER,  # q, k, v; not log_decay and state
    "linear_attention_backward": AS_IT_IS,
    "gated_delta_rule": LOWER,  # q, k, v; not beta, log_decay, write and state
    "gated_delta_rule_backward": AS_IT_IS,
    "crrelu": AS_IT_IS,
    "crrelu_backward": AS_IT_IS,
}


@pytest.mark.parametrize("key", ["AutocastCPU", "AutocastCUDA"])
def test_every_op_has_an_autocast_rule(key):
    names = {name.removeprefix("isentrope::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("isentrope::") and "::method_" not in name}
    assert names == set(RULES)
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"isentrope::{name}", key), name


def cases():
    """{op: (function, its floating point arguments that autocast may cast, the others)}; functions return differentiable tensors."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, heads, 9, 16) for heads in (4, 2, 2))
    temperature = 0.5 + torch.rand(4)
    x, weight, gamma, bias = torch.randn(5, 16), torch.randn(8, 16), torch.tensor(1.5), torch.randn(8)
    u, target = torch.nn.functional.normalize(torch.randn(16), dim=0), torch.arange(5)
    entropy, mask = torch.rand(2, 12), torch.ones(2, 12)
    advantage = torch.randn(2, 12)
    attention = functools.partial(isentrope.entropy_attention, causal=True)
    log_decay, beta, state = -torch.rand(1, 2, 9), torch.rand(1, 2, 9), torch.randn(1, 2, 16, 16)
    delta = functools.partial(isentrope.gated_delta_rule, beta=beta, log_decay=log_decay, write=torch.tensor([[[0.5], [1.0]]]))
    return {
        "entropy_attention": (lambda q, k, v: attention(q, k, v, temperature=temperature)[:3], (q, k, v)),
        "merge_attention_states": (lambda out, lse: isentrope.merge_attention_states(out, lse)[:2], (torch.randn(3, 4, 8), torch.randn(3, 4))),
        "sigma_linear": (lambda x, weight, bias: isentrope.sigma_linear(x, weight, gamma, u, bias), (x, weight, bias)),
        "token_entropy": (lambda logits: isentrope.token_entropy(logits, target), (torch.randn(5, 11),)),
        "linear_token_entropy": (lambda x, weight, bias: isentrope.linear_token_entropy(x, weight, target, bias=bias), (x, weight, bias)),
        "window_entropy": (lambda entropy: isentrope.window_entropy(entropy, mask)[:1], (entropy,)),
        "grpo_loss": (
            lambda logprob, old, entropy: isentrope.grpo_loss(logprob, old, advantage, mask, entropy=entropy, entropy_coef=0.1)[:2],
            (-torch.rand(2, 12), -torch.rand(2, 12), entropy),
        ),
        "linear_attention": (lambda q, k, v: isentrope.linear_attention(q, k, v, log_decay=log_decay, state=state), (q, k, v)),
        "gated_delta_rule": (lambda q, k, v: delta(q, k, v, state=state), (q, 0.2 * k, v)),
        "crrelu": (lambda x, epsilon: [isentrope.crrelu(x, epsilon)], (x, torch.tensor([0.3]))),
    }


def run(function, inputs, prepare=lambda x: x):
    """Outputs, and gradients of the sum of their squares; the backward pass runs where this is called."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*map(prepare, leaves))
    gradients = torch.autograd.grad(sum(x.square().sum() for x in outputs), leaves, allow_unused=True)
    return [*outputs, *gradients]


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert (a is None) == (e is None)
        if a is not None:
            assert a.dtype == e.dtype and torch.equal(a, e)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", cases())
def test_autocast_is_the_cast_of_its_rule(op, dtype):
    function, inputs = cases()[op]
    cast = {LOWER: lambda x: x.to(dtype), FLOAT: lambda x: x.float(), AS_IT_IS: lambda x: x}[RULES[op]]
    # All float; all lower; one of each in turn: what a rotation, a norm and a projection leave.
    for i in range(len(inputs) + 2):
        mixed = [x.to(dtype) if j == i or i == len(inputs) + 1 else x for j, x in enumerate(inputs)]
        if op == "merge_attention_states" and i == 0:
            continue
        with torch.autocast("cpu", dtype):
            actual = run(function, mixed)
        assert_same(actual, run(function, mixed, cast))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_torch(dtype):
    """attention and linear give what torch's own give in dtype, and double is left alone."""
    (_, (q, k, v)), (_, (x, weight, bias)) = (cases()[op] for op in ("entropy_attention", "sigma_linear"))
    for given in ((q, k, v), (q, k, v.to(dtype)), (q.double(), k.double(), v.double())):
        with torch.autocast("cpu", dtype):
            wanted = torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True)
            ours = isentrope.entropy_attention(*given, causal=True)
        assert ours.out.dtype == wanted.dtype and ours.lse.dtype == (torch.float64 if wanted.dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", dtype):
        assert isentrope.sigma_linear(x, weight, torch.tensor(1.0), x[0]).y.dtype == torch.nn.functional.linear(x, weight, bias).dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_a_layer_that_was_cast_to_either_lower_dtype(dtype):
    # gamma and u of another dtype than autocast's, as a model has after .half() or .bfloat16().
    _, (x, weight, bias) = cases()["sigma_linear"]
    gamma, u = torch.tensor(1.5), torch.nn.functional.normalize(weight[0], dim=0)
    for lower in (torch.bfloat16, torch.float16):
        given = [x.to(lower).clone().requires_grad_() for x in (x, weight, gamma, u, bias)]
        with torch.autocast("cpu", dtype):
            y = isentrope.sigma_linear(*given).y
        y.float().sum().backward()
        assert y.dtype == dtype and given[2].grad.dtype == lower
        cast = [x.detach().to(dtype) for x in given]
        wide = isentrope.sigma_linear(cast[0], cast[1], given[2].detach().float(), given[3].detach().float(), cast[4]).y
        assert torch.equal(y, wide)


def test_power_step_writes_into_what_it_was_given_under_autocast():
    weights, us = [torch.randn(8, 16)], [torch.nn.functional.normalize(torch.randn(16), dim=0)]
    copies = [u.clone() for u in us]
    with torch.autocast("cpu", torch.bfloat16):
        inside = isentrope.power_step(weights, us)
    outside = isentrope.power_step(weights, copies)
    assert torch.equal(us[0], copies[0]) and torch.equal(inside.sigmas, outside.sigmas)


# ---- derivatives that no op has ----------------------------------------------------------------------------------------

DIFFERENTIABLE = [op for op in cases() if op != "merge_attention_states"]


def of_one(op, index=0):
    """(the op as a function of one of its arguments that gives one number, that argument)"""
    function, inputs = cases()[op]
    return lambda x: sum(y.sum() for y in function(*inputs[:index], x, *inputs[index + 1 :])), inputs[index]


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_forward_mode_is_refused_by_name(op, tracked):
    for index in range(len(cases()[op][1])):
        f, x = of_one(op, index)
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"isentrope::{op}: [a-z_]+ has a forward-mode tangent"):
            f(forward_ad.make_dual(x.clone().requires_grad_(tracked), torch.ones_like(x)))


@pytest.mark.parametrize("name", ["ref_logprob", "ref_kl_weight", "normalizer"])
def test_forward_mode_is_refused_of_what_grpo_loss_takes_for_constant(name):
    x = torch.full((3, 5), -1.0)
    given = {"ref_logprob": x, "ref_kl_weight": -x, "normalizer": torch.tensor(2.0)}
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"isentrope::grpo_loss: {name} has a forward-mode tangent"):
        given[name] = forward_ad.make_dual(given[name], torch.ones_like(given[name]))
        isentrope.grpo_loss(x, x, x, -x, ref_kl_coef=1.0, **given)


def test_forward_mode_of_constants_is_refused_by_name():
    # No gradient at all would be a tangent of 0.
    weight, u = torch.randn(8, 16), torch.ones(16)
    mean, count = torch.rand(2, 5), torch.ones(2, 5, dtype=torch.int32)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight, torch.ones_like(weight))
        with pytest.raises(NotImplementedError, match="isentrope::power_step: weights has a forward-mode tangent"):
            isentrope.power_step([dual], [u])
        dual = forward_ad.make_dual(mean, torch.ones_like(mean))
        with pytest.raises(NotImplementedError, match="isentrope::window_select: mean has a forward-mode tangent"):
            torch.ops.isentrope.window_select(dual, count, threshold="quantile", level=0.5)


def test_forward_mode_of_merged_states_is_torchs_own():
    function, inputs = cases()["merge_attention_states"]
    inputs = tuple(x.double() for x in inputs)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    actual = torch.func.jvp(function, inputs, tangents)[1]
    _, expected = torch.autograd.functional.jvp(function, inputs, tangents)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_inference_tensors_are_refused_by_name_where_they_would_be_kept(op):
    function, inputs = cases()[op]
    with torch.inference_mode():
        kept = [x.clone() for x in inputs]
        function(*kept)
    expected = function(*inputs)
    assert_same(list(function(*kept)), list(expected))  # nothing is recorded
    leaves = [x.clone().requires_grad_() for x in inputs]
    for index in range(1, len(inputs)):
        with pytest.raises(RuntimeError, match=f"isentrope::{op}: [a-z_]+ was made under torch.inference_mode .*clone"):
            function(*(kept[j] if j == index else x for j, x in enumerate(leaves)))


# ---- arguments of another type -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, message", [
    (lambda x: isentrope.merge_attention_states([x], x[..., 0]), r"merge_attention_states: out is \[tensor\(.*\.\.\., of type list; wanted a tensor"),
    (lambda x: isentrope.sigma_linear(x, x, 1.0, x[0]), r"sigma_linear: gamma is 1.0, of type float; wanted a tensor, as torch.tensor\(1.0\)$"),
    (lambda x: isentrope.sigma_linear(x, x, x[0, 0], x[0], sigma_grad=None), "sigma_linear: sigma_grad is None, of type NoneType; wanted a string$"),
    (lambda x: isentrope.power_step(x, x, steps_max=2.5), "power_step: steps_max is 2.5, of type float; wanted an integer$"),
    (lambda x: isentrope.token_entropy(x, [0, 1]), r"token_entropy: target is \[0, 1\], of type list; wanted a tensor"),
    (lambda x: isentrope.token_entropy(x, x[:, 0].long(), temperature="1"), "token_entropy: temperature is '1', of type str; wanted a number$"),
    (lambda x: isentrope.linear_token_entropy(x, x, x[:, 0].long(), moments="no"), "linear_token_entropy: moments is 'no', of type str; wanted True or False$"),
    (lambda x: isentrope.window_entropy(x, x.tolist()), "window_entropy: mask is .*, of type list; wanted a tensor"),
    (lambda x: isentrope.grpo_select(x, x, x, 1, mode="kl_cov", seed=1), r"grpo_select: mask is 1, of type int; wanted a tensor"),
    (lambda x: isentrope.grpo_loss(x, x, x, x, clip_low="a"), "grpo_loss: clip_low is 'a', of type str; wanted a number$"),
    (lambda x: isentrope.grpo_combine_stats(3.0), "grpo_combine_stats: stats is 3.0, of type float"),
    (lambda x: isentrope.linear_attention(x[None, None], x[None, None], x[None, None], log_decay=-0.1), "linear_attention: log_decay is -0.1, of type float; wanted a tensor"),
    (lambda x: isentrope.linear_attention(x, x, x, normalizer=None), "linear_attention: normalizer is None, of type NoneType; wanted True or False$"),
    (lambda x: isentrope.gated_delta_rule(x, x, x, 0.5, None), "gated_delta_rule: beta is 0.5, of type float; wanted a tensor"),
    # Before the op itself is called, and inside lists.
    (lambda x: isentrope.merge_attention_states(x, [0.0]), r"merge_attention_states: lse is \[0.0\], of type list; wanted a tensor, as torch.tensor\(\[0.0\]\)$"),
    (lambda x: isentrope.power_step(None, [x[0]]), "power_step: weights is None, of type NoneType; wanted a list of tensors$"),
    (lambda x: isentrope.power_step([x], "u"), "power_step: us is 'u', of type str; wanted a list of tensors$"),
    (lambda x: isentrope.power_step([x, None], [x[0], x[0]]), r"power_step: weights\[1\] is None, of type NoneType; wanted a tensor$"),
    (lambda x: isentrope.power_step([x], [[x[0]]]), r"power_step: us\[0\] is \[tensor.*, of type list; wanted a tensor"),
    (lambda x: isentrope.window_entropy(x, x, window="2"), "window_entropy: window is '2', of type str; wanted an integer$"),
    (lambda x: isentrope.window_entropy(x, x, side=[1]), r"window_entropy: side is \[1\], of type list; wanted a string$"),
    (lambda x: isentrope.window_entropy(x, x, quantile="0.5"), "window_entropy: quantile is '0.5', of type str; wanted a number, or None$"),
    (lambda x: isentrope.grpo_loss(x, x, x, x, normalizer="5"), "grpo_loss: normalizer is '5', of type str; wanted a number, a tensor of one, or None$"),
    # What torch would take: None for False, and a tensor for a string's error.
    (lambda x: isentrope.entropy_attention(x, x, x, causal=None), "entropy_attention: causal is None, of type NoneType; wanted True or False$"),
    (lambda x: isentrope.grpo_loss(x, x, x, x, mode=x), "grpo_loss: mode is tensor.*, of type Tensor; wanted a string$"),
    (lambda x: isentrope.token_entropy(x.to_sparse(), x[:, 0].long()), "token_entropy: logits has the layout torch.sparse_coo; wanted a dense tensor, as logits.to_dense"),
    (lambda x: isentrope.power_step([x.to_sparse()], [x[0]]), r"power_step: weights\[0\] has the layout torch.sparse_coo; wanted a dense tensor"),
    (lambda x: isentrope.merge_attention_states(x, x[:, 0].long()), "merge_attention_states: lse has dtype Long; wanted Float"),
    (lambda x: isentrope.merge_attention_states(x.bool(), x[:, 0]), "merge_attention_states: out has dtype Bool; wanted Float"),
])  # fmt: skip
def test_an_argument_of_another_type_is_named(call, message):
    with pytest.raises(TypeError, match=message) as caught:
        call(torch.zeros(8, 8))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "torch's own text is not shown beside it"
    assert len(str(caught.value)) < 200


def test_none_is_refused_for_every_argument_that_is_true_or_false():
    # causal=None is a mistake for causal=False.
    schemas = {op: getattr(torch.ops.isentrope, op).default._schema for op in RULES if not op.startswith("grpo_combine")}
    flags = {x.name for op, schema in schemas.items() if "backward" not in op for x in schema.arguments if str(x.type) == "bool"}
    # The others are not the caller's; linear_attention looks at its normalizer itself.
    assert flags - {"inplace_backward", "keep_slope", "shrink", "normalizer"} == isentrope.ops.call._FLAGS


@pytest.mark.parametrize("call, name", [
    (lambda x, n: isentrope.grpo_select(x, x, x, x, mode="kl_cov", seed=n), "seed"),
    (lambda x, n: isentrope.entropy_attention(x[None, None], x[None, None], x[None, None], causal=True, window=n), "window"),
    (lambda x, n: isentrope.token_entropy(x, x[:, 0].long(), ignore_index=n), "ignore_index"),
])  # fmt: skip
def test_an_integer_beyond_64_bits_is_named(call, name):
    with pytest.raises(ValueError, match=f"{name} is {2**70}; wanted an integer of 64 bits$"):
        call(torch.zeros(8, 8), 2**70)


def test_merged_states_of_no_rows_and_on_two_devices():
    merged = isentrope.merge_attention_states(torch.zeros(3, 0, 8), torch.zeros(3, 0))
    assert merged.out.shape == (0, 8) and merged.lse.shape == (0,) and merged.entropy is None and merged.max_logit is None
    with pytest.raises(ValueError, match="merge_attention_states: max_logit is on meta; wanted cpu, where lse is"):
        isentrope.merge_attention_states(torch.zeros(3, 2, 8), torch.zeros(3, 2), None, torch.zeros(3, 2, device="meta"))


def test_statistics_of_no_call_are_refused_by_name():
    with pytest.raises(ValueError, match=r"grpo_combine_stats: stats has shape \[0, .*at least one call"):
        isentrope.grpo_combine_stats(torch.zeros(0, len(isentrope.ops.GRPO_STATS)))
