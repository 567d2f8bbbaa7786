"""What adds to rewards and what follows the entropy, by independent loops over floats: overlong, the reward ceeh, random_tokens, and the
controllers adaptive_entropy, aent and entropic. Their coefficients move the gradient of the loss, and those of no effect change no bit of it
(schedules, tables and bands, which are no ops: tests/csrc/weighted_objective_test.cpp)."""

import math

import pytest
import torch

import isentrope
from isentrope import methods, reference

ROWS, LENGTH = 8, 12


def draw(seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (ROWS, 1), generator=g)
    logprob = -3 * torch.rand(ROWS, LENGTH, generator=g, dtype=torch.float64)
    reward = (torch.rand(ROWS, generator=g) < 0.5).double()
    return mask, logprob, logprob + 0.1 * torch.randn(ROWS, LENGTH, generator=g, dtype=torch.float64), reward


def gradient(reward=None, *, positive=1.0, negative=1.0, factor=None, entropy_coef=0.0):
    """Of the loss clip by log-probabilities and entropies, two groups of four."""
    mask, logprob, old, given = draw(3)
    group = torch.arange(ROWS) // 4
    advantage = methods.by_token(methods.grpo(given if reward is None else reward, group), mask)
    advantage = advantage * torch.where(advantage > 0, positive, negative)
    leaf, entropy = logprob.requires_grad_(), (-logprob.detach()).requires_grad_()
    isentrope.grpo_loss(leaf, old, advantage if factor is None else advantage * factor, mask, entropy=entropy, entropy_coef=entropy_coef).loss.backward()
    return torch.stack([leaf.grad, torch.zeros_like(leaf) if entropy.grad is None else entropy.grad])


def lengths():
    return draw(3)[0].sum(1)


# ---- rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest, buffer, factor", [(12, 5, 0.7), (12, 12, 1.0), (40, 1, 2.0)])
def test_overlong_is_that_of_a_loop(longest, buffer, factor):
    got = methods.overlong(torch.arange(longest + 1), longest=longest, len=buffer, penalty_factor=factor)
    wanted = [min(0.0, -factor * (n - (longest - buffer)) / buffer) for n in range(longest + 1)]
    assert got.tolist() == pytest.approx(wanted, rel=1e-14, abs=1e-14)


def ceeh_reward(scale):
    _, _, _, reward = draw(3)
    group = torch.arange(ROWS) // 4
    record = torch.tensor([0.2, 0.3], dtype=torch.float64), torch.tensor([9.0, 4.0], dtype=torch.float64)
    return methods.ceeh(reward, lengths(), group, *record, 0.1, scale=scale).reward


def overlong_reward(factor):
    return methods.overlong(lengths(), longest=LENGTH, len=8, penalty_factor=factor)


@pytest.mark.parametrize("added", [overlong_reward, ceeh_reward])
def test_a_reward_s_coefficient_moves_the_gradient_and_0_is_the_identity(added):
    given = draw(3)[3]
    plain, one, other = gradient(), gradient(given + added(0.5)), gradient(given + added(1.5))
    assert not torch.equal(one, plain) and not torch.equal(one, other)
    assert torch.equal(gradient(given + added(0.0)), plain)


def test_ceeh_s_reward_is_that_of_a_loop():
    right, length = draw(3)[3].tolist(), lengths().tolist()
    accuracy, shortest = (0.2, 0.3), (9.0, 4.0)
    share = [sum(right[4 * g : 4 * g + 4]) / 4 for g in range(2)]
    wanted = [
        max(-0.9, 0.5 * (shortest[i // 4] - n) / shortest[i // 4]) if ok and share[i // 4] >= accuracy[i // 4] else 0.0
        for i, (ok, n) in enumerate(zip(right, length, strict=True))
    ]
    assert any(wanted) and ceeh_reward(0.5).tolist() == pytest.approx(wanted, rel=1e-14)


# ---- random_tokens ---------------------------------------------------------------------------------------------------


def test_random_tokens_golden():
    assert methods.random_tokens(torch.zeros(2, 8), torch.ones(2, 8), fraction=0.25, seed=1).nonzero().tolist() == [[0, 0], [0, 3], [1, 0], [1, 6]]


@pytest.mark.parametrize("seed, fraction", [(1, 0.2), (7, 0.5), (1 << 40, 0.9)])
def test_random_tokens_are_those_of_a_loop(seed, fraction):
    mask = draw(5)[0]
    counting = mask.flatten().nonzero().flatten().tolist()
    ranked = sorted(counting, key=lambda i: (-reference.philox(seed, i)[0], i))
    chosen = sorted(ranked[: max(1, round(fraction * len(counting)))])
    got = methods.random_tokens(torch.zeros(mask.shape), mask, fraction=fraction, seed=seed)
    assert got.flatten().nonzero().flatten().tolist() == chosen


def test_random_tokens_move_the_gradient_and_all_of_them_are_the_identity():
    mask = draw(3)[0]
    of = [gradient(factor=methods.random_tokens(torch.zeros(mask.shape), mask, fraction=fraction)) for fraction in (0.3, 0.6, 1.0)]
    assert not torch.equal(of[0], of[1]) and not torch.equal(of[1], of[2])
    assert torch.equal(of[2], gradient())


# ---- controllers -----------------------------------------------------------------------------------------------------


def series(steps=30):
    return (0.6 * torch.rand(steps, generator=torch.Generator().manual_seed(2))).double().tolist()


def follow(step, state):
    """The states behind each update."""
    states = []
    for entropy in series():
        states.append(state := step(state, entropy))
    return torch.stack(states)


def start(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_adaptive_entropy_is_that_of_a_loop():
    keys, coef, wanted = {"target": 0.3, "delta": 0.02, "least": 0.01, "most": 0.05}, 0.03, []
    for entropy in series():
        coef = coef + 0.02 if entropy <= 0.3 else coef - 0.02
        coef = max(0.01, min(coef, 0.05))
        wanted.append([coef, entropy])
    got = follow(lambda state, entropy: methods.adaptive_entropy(state, entropy, **keys), start(0.03, math.nan))
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def test_aent_is_that_of_a_loop():
    keys, coef, wanted = {"low": 0.2, "high": 0.4, "rate": 0.1, "least": 0.001, "most": 0.03, "warmup": 3}, 0.01, []
    for n, entropy in enumerate(series()):
        if n >= 3:
            coef -= 0.1 * (min(0.0, entropy - 0.2) + max(0.0, entropy - 0.4))
            coef = max(0.001, min(coef, 0.03))
        wanted.append([coef, n + 1])
    got = follow(lambda state, entropy: methods.aent(state, entropy, **keys), start(0.01, 0.0))
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))
    assert len({row[0] for row in wanted}) > 5


def test_entropic_is_that_of_a_loop():
    keys, total, wanted = {"target": 0.25, "proportional": 2.0, "integral": 0.3}, 0.0, []
    for entropy in series():
        total = max(-1.0, min(total + 0.3 * (entropy - 0.25), 1.0))
        wanted.append([total, max(-1.0, min(total + 2.0 * (entropy - 0.25), 1.0))])
    got = follow(lambda state, entropy: methods.entropic(state, entropy, **keys), start(0.0, 0.0))
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def adaptive_gradient(delta):
    return gradient(entropy_coef=methods.adaptive_entropy(start(0.0, math.nan), 0.1, delta=delta)[0].item() if delta else 0.0)


def entropic_gradient(gain):
    a = methods.entropic(start(0.0, 0.0), 0.5, proportional=gain, integral=0.0)[1].item()
    return gradient(positive=1 + a, negative=1 - a)


@pytest.mark.parametrize("of", [adaptive_gradient, entropic_gradient])
def test_a_controller_s_coefficient_moves_the_gradient_and_0_is_the_identity(of):
    assert not torch.equal(of(0.2), gradient()) and not torch.equal(of(0.2), of(0.4))
    assert torch.equal(of(0.0), gradient())


def test_aent_s_rate_moves_the_gradient_and_0_keeps_the_coefficient():
    one, other = (methods.aent(start(0.1, 0.0), 0.0, low=0.5, high=0.6, rate=rate, most=1.0)[0].item() for rate in (0.2, 0.4))
    assert not torch.equal(gradient(entropy_coef=one), gradient(entropy_coef=other))
    kept = methods.aent(start(0.1, 0.0), 0.0, low=0.5, high=0.6, rate=0.0, most=1.0)[0].item()
    assert torch.equal(gradient(entropy_coef=kept), gradient(entropy_coef=0.1)) and not torch.equal(gradient(entropy_coef=kept), gradient())
