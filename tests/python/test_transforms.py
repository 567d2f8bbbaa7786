"""All ops under torch's transforms: numbers that change from call to call of a graph, and derivatives that are not there."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

import isentrope

B, T, V = 3, 9, 7


def policy(**options):
    """grpo_loss of log-probabilities, with what the options need."""

    def run(logprob, x):
        old = torch.linspace(-2, -1, B * T).view(B, T)
        mask = torch.ones(B, T)
        fixed = {"selected": torch.arange(B * T).view(B, T) % 3 == 0} if options.get("mode") == "kl_cov" else {}
        given = {name: value(x) if callable(value) else value for name, value in options.items()}
        if "ref_kl_coef" in options:
            fixed["ref_logprob"] = old + 0.1
        if "entropy_coef" in options:
            fixed["entropy"] = logprob * logprob
        return isentrope.grpo_loss(logprob, old, torch.linspace(-1, 1, B * T).view(B, T), mask, **fixed, **given).loss

    return run


def selection(**options):
    def run(logprob, x):
        old = torch.linspace(-2, -1, B * T).view(B, T)
        given = {"mode": "clip_cov", "seed": 1, "select_fraction": 0.3, "cov_lower": 0.01, **options}
        given = {name: value(x) if callable(value) else value for name, value in given.items()}
        advantage = torch.linspace(-1, 1, B * T).view(B, T)
        return isentrope.grpo_select(logprob.detach() * advantage, old, advantage, torch.ones(B, T), **given)

    return run


def same(x):
    return x


FLOATS, INTEGERS = [0.11 + 0.013 * i for i in range(20)], [*range(20)]
LOGITS, TARGET, WEIGHT = torch.randn(B * T, V), torch.arange(B * T) % V, torch.linspace(-1, 1, 5 * T).view(5, T)
CLASSES = torch.arange(B) % 5
# op and argument → a function of log-probabilities or logits [B, T], and of a number; and its values
CHANGING = {
    **{f"grpo_loss {name}": (policy(**{name: same}), FLOATS) for name in ("clip_low", "clip_high", "ref_kl_coef", "entropy_coef")},
    "grpo_loss dual_clip": (policy(dual_clip=lambda x: 1 + x), FLOATS),
    "grpo_loss kl_coef": (policy(mode="kl_cov", kl_coef=same), FLOATS),
    "grpo_loss normalizer": (policy(normalizer=same), FLOATS),
    "grpo_loss normalizer, whole": (policy(normalizer=lambda x: x + 2), INTEGERS),
    "grpo_loss two of them": (policy(clip_low=same, clip_high=lambda x: 2 * x, ref_kl_coef=0.3), FLOATS),
    "grpo_select seed": (selection(seed=same), INTEGERS),
    "grpo_select seed, control": (selection(seed=same, mode="random_kl_cov"), INTEGERS),
    "grpo_select minimum": (selection(minimum=same, mode="kl_cov"), INTEGERS),
    "grpo_select select_fraction": (selection(select_fraction=same), FLOATS),
    "grpo_select cov_lower": (selection(cov_lower=same), FLOATS),
    "grpo_select cov_upper": (selection(cov_upper=same), FLOATS),
    "grpo_select clip_low": (selection(clip_low=same), FLOATS),
    "grpo_select clip_high": (selection(clip_high=same), FLOATS),
    "token_entropy temperature": (lambda z, x: isentrope.token_entropy(z, CLASSES, temperature=x), FLOATS),
    "token_entropy ignore_index": (lambda z, x: isentrope.token_entropy(z, CLASSES, ignore_index=x), INTEGERS),
    "linear_token_entropy temperature": (lambda z, x: isentrope.linear_token_entropy(z, WEIGHT, CLASSES, temperature=x), FLOATS),
    "linear_token_entropy softcap": (lambda z, x: isentrope.linear_token_entropy(z, WEIGHT, CLASSES, softcap=x), FLOATS),
    "window_entropy window": (lambda z, x: isentrope.window_entropy(z, z > -9, window=x + 1), INTEGERS),
    "window_entropy value": (lambda z, x: isentrope.window_entropy(z, z > -9, value=x), FLOATS),
    "window_entropy quantile": (lambda z, x: isentrope.window_entropy(z, z > -9, quantile=x), FLOATS),
    "window_entropy top_fraction": (lambda z, x: isentrope.window_entropy(z, z > -9, top_fraction=x), FLOATS),
}


def results(function, values, number):
    """Outputs of function, and its gradient where it has one."""
    leaf = values.clone().requires_grad_()
    out = function(leaf, number)
    out = out if isinstance(out, tuple) else (out,)
    loss = sum(x.sum() for x in out if x.requires_grad)
    return [x.detach() for x in out] + ([torch.autograd.grad(loss, leaf)[0]] if isinstance(loss, torch.Tensor) else [])


@pytest.mark.parametrize("name", CHANGING)
def test_a_number_that_changes_does_not_compile_anew(name):
    function, numbers = CHANGING[name]
    torch._dynamo.reset()
    # All the way to a traced backward pass: what inductor compiles, without the time of its compiler.
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    values = torch.linspace(-3, -0.5, B * T).view(B, T).flip(1)
    for number in numbers:
        for a, b in zip(results(compiled, values, number), results(function, values, number), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert counter.frame_count <= 3  # the first value, the number as a symbol, and 0 or 1, which torch takes for special


def test_numbers_in_a_graph_are_checked_when_it_runs():
    compiled = torch.compile(lambda z, x: isentrope.token_entropy(z, CLASSES, temperature=x), backend="eager", fullgraph=True)
    values = torch.zeros(B, T)
    for temperature in (0.5, 0.6):
        compiled(values, temperature)
    with pytest.raises(ValueError, match="token_entropy: temperature is -1; wanted above 0"):
        compiled(values, -1.0)


# ---- derivatives that are not there --------------------------------------------------------------------------------------

ROWS = torch.rand(B, T) + 0.5
HEADS = torch.randn(1, 2, T, 8)
# Every differentiable op, as a function of a tensor and that tensor.
DIFFERENTIABLE = {
    "entropy_attention": (lambda q: isentrope.entropy_attention(q, HEADS, HEADS, causal=True).out, HEADS),
    "sigma_linear": (lambda w: isentrope.sigma_linear(torch.ones(2, T), w, torch.ones(()), torch.ones(T) / 3).y, torch.randn(5, T)),
    "token_entropy": (lambda z: isentrope.token_entropy(z, TARGET).entropy, LOGITS),
    "linear_token_entropy": (lambda h: isentrope.linear_token_entropy(h, WEIGHT, CLASSES).entropy, ROWS),
    "window_entropy": (lambda h: isentrope.window_entropy(h, ROWS, window=2).mean, ROWS),
    "grpo_loss": (lambda lp: isentrope.grpo_loss(lp, -ROWS, ROWS, ROWS).loss, -ROWS),
    "grpo_loss, of entropy": (lambda h: isentrope.grpo_loss(-ROWS, -ROWS, ROWS, ROWS, entropy=h, entropy_coef=1.0).loss, ROWS),
    "grpo_loss, of a reference": (lambda r: isentrope.grpo_loss(-ROWS, -ROWS, ROWS, ROWS, ref_logprob=r, ref_kl_coef=1.0).loss, -ROWS),
    "grpo_loss, of a weight": (
        lambda w: isentrope.grpo_loss(-ROWS, -ROWS, ROWS, ROWS, ref_logprob=ROWS, ref_kl_weight=w, ref_kl_coef=1.0).loss,
        ROWS,
    ),
}
# Of torch's own operators, and so right; and choices, whose derivative is 0.
COMPOSITE = {"merge_attention_states", "grpo_combine_stats", "grpo_stat_names"}
CHOICES = {"grpo_select", "window_select", "power_step"}


def test_every_op_is_in_one_of_the_lists():
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.removeprefix("isentrope::") for s in schemas if s.name.startswith("isentrope::")}
    forward = {name for name in names if not name.rstrip("_").endswith("_backward")}
    assert forward == {name.split(",")[0] for name in DIFFERENTIABLE} | COMPOSITE | CHOICES


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("leaf", [False, True])
def test_forward_mode_is_refused_by_name(name, leaf):
    function, x = DIFFERENTIABLE[name]
    message = f"isentrope::{name.split(',')[0]}: forward-mode derivatives"
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(function, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        function(forward_ad.make_dual(x.clone().requires_grad_(leaf), torch.ones_like(x)))


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if "of a" not in name])
def test_derivatives_by_torch_func_are_refused_by_name(name):
    function, x = DIFFERENTIABLE[name]
    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(NotImplementedError, match=f"isentrope::{name.split(',')[0]}: derivatives by torch.func"):
            transform(lambda y: function(y).sum())(x)


def test_forward_mode_of_torchs_own_operators_is_right():
    out, lse, entropy = torch.randn(2, T, 4).double(), torch.randn(2, T).double(), torch.rand(2, T).double()
    tangent = torch.randn(2, T).double()

    def merged(x):
        return isentrope.merge_attention_states(out, x, entropy).entropy

    step = 1e-6
    numeric = (merged(lse + step * tangent) - merged(lse - step * tangent)) / (2 * step)
    # Central differences: step² times the third derivative, and rounding over the step, some 1e-10 of numbers of size 1.
    torch.testing.assert_close(torch.func.jvp(merged, (lse,), (tangent,))[1], numeric, rtol=1e-7, atol=1e-8)
