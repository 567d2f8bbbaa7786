"""Numbers of ops that change from call to call of a compiled graph: none compiles anew (csrc/ops/numbers.h)."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

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
        given = {"mode": "clip_cov", "seed": 1, "cov_ratio": 0.3, "cov_lower": 0.01, **options}
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
    "grpo_loss kl_cov_coef": (policy(mode="kl_cov", kl_cov_coef=same), FLOATS),
    "grpo_loss normalizer": (policy(normalizer=same), FLOATS),
    "grpo_loss normalizer, whole": (policy(normalizer=lambda x: x + 2), INTEGERS),
    "grpo_loss two of them": (policy(clip_low=same, clip_high=lambda x: 2 * x, ref_kl_coef=0.3), FLOATS),
    "grpo_select seed": (selection(seed=same), INTEGERS),
    "grpo_select seed, control": (selection(seed=same, mode="random_kl_cov"), INTEGERS),
    "grpo_select minimum": (selection(minimum=same, mode="kl_cov"), INTEGERS),
    "grpo_select cov_ratio": (selection(cov_ratio=same), FLOATS),
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
