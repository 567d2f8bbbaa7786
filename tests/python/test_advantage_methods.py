"""Estimators of advantages as ops: golden numbers of other packages, independent loops, edges, the gradient of a loss, what is refused.

Golden numbers: functions of verl 0.9.1 (verl/trainer/ppo/core_algos.py) and TRL 1.16.0 (trl/trainer/grpo_trainer.py) in float64."""

import math

import pytest
import torch

import isentrope
from isentrope import methods

REWARD = [1.0, 0.0, 0.25, 0.5, 0.0, 2.0, 2.0, -1.5]
GROUP = [0, 0, 0, 0, 1, 1, 1, 2]
LENGTH = [3, 5, 1, 4, 2, 6, 2, 3]
EIGHT = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]  # one group


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


def batch(seed=0):
    """reward, group, length of ragged groups: of one, of equal rewards, of ties, of rewards 0 and 1, of many."""
    g = torch.Generator().manual_seed(seed)
    sizes = [1, 5, 9, 16, 33, 2]
    reward = torch.randn(sum(sizes), generator=g, dtype=torch.float64)
    reward[1:6] = 0.3  # equal
    reward[6:15] = (reward[6:15] * 2).round() / 2  # ties
    reward[15:31] = (reward[15:31] > 0.5).double()
    group = torch.repeat_interleave(torch.arange(len(sizes)) * 3, torch.tensor(sizes))  # numbers with gaps
    return reward, group, torch.randint(1, 40, reward.shape, generator=g)


def groups_of(group):
    rows = {}
    for i, g in enumerate(group.tolist()):
        rows.setdefault(g, []).append(i)
    return list(rows.values())


def mean(x):
    return math.fsum(x) / len(x)


def std(x):
    """Unbiased; 1 of equal numbers and of one."""
    m = mean(x)
    return 1.0 if len(x) < 2 or max(x) == min(x) else math.sqrt(math.fsum((v - m) ** 2 for v in x) / (len(x) - 1))


def whitened(value, length):
    n, m = sum(length), math.fsum(a * k for a, k in zip(value, length)) / sum(length)
    v = math.fsum(k * (a - m) ** 2 for a, k in zip(value, length)) / (n - 1)
    return [(a - m) / math.sqrt(v + 1e-8) for a in value]


def by_group(reward, group, one):
    """one(rewards of a group of two or more that differ, rows) → advantages; s of a group of one, 0 of equal rewards."""
    out = [0.0] * len(reward)
    for rows in groups_of(group):
        s = [reward[i].item() for i in rows]
        values = s if len(s) == 1 else [0.0] * len(s) if max(s) == min(s) else one(s, rows)
        for i, value in zip(rows, values):
            out[i] = value
    return out


def close(got, wanted, tolerance=1e-12):
    torch.testing.assert_close(got, f64(wanted) if isinstance(wanted, list) else wanted, rtol=tolerance, atol=tolerance)


# Every estimator of one advantage a completion, called on (reward, group, length) alone.
ESTIMATORS = {
    "grpo": lambda s, g, n: methods.grpo(s, g),
    "grpo, batch": lambda s, g, n: methods.grpo(s, g, std="batch"),
    "dr_grpo": lambda s, g, n: methods.dr_grpo(s, g),
    "rloo": lambda s, g, n: methods.rloo(s, g),
    "opo": methods.opo,
    "reinforce_plus_plus_baseline": methods.reinforce_plus_plus_baseline,
    "reinforce_plus_plus": lambda s, g, n: methods.reinforce_plus_plus(s, n),
    "maxrl": lambda s, g, n: methods.maxrl(s, g),
    "quantile": lambda s, g, n: methods.quantile(s, g),
    "quantile, interpolated, batch": lambda s, g, n: methods.quantile(s, g, interpolate=True, std="batch"),
    "pass_at_k": lambda s, g, n: methods.pass_at_k(s, g, k=1),
    "pass_at_k, best": lambda s, g, n: methods.pass_at_k(s, g, form="best"),
    "gdpo": lambda s, g, n: methods.gdpo(s[None], g, n),
    "gdpo, tokens": lambda s, g, n: methods.gdpo(s[None], g, n, over="tokens"),
}


# ---- those of csrc/methods/group_advantage.h -------------------------------------------------------------------------


def test_group_advantages_golden():
    s, g, n = f64(REWARD), torch.tensor(GROUP), torch.tensor(LENGTH)
    golden = {
        methods.grpo: [1.317462013, -1.024692677, -0.439154004, 0.146384668, -1.154699538, 0.577349769, 0.577349769, -1.499998569],
        methods.dr_grpo: [0.5625, -0.4375, -0.1875, 0.0625, -1.333333333, 0.666666667, 0.666666667, -1.5],
        methods.rloo: [0.75, -0.583333333, -0.25, 0.083333333, -2.0, 1.0, 1.0, -1.5],
    }
    for function, wanted in golden.items():  # verl 0.9.1: grpo, grpo without std, rloo; the group of one in float32
        close(function(s, g), wanted, 1e-7)
    opo = [0.596153846, -0.403846154, -0.153846154, 0.096153846, -1.6, 0.4, 0.4, -1.5]
    close(methods.opo(s, g, n), opo, 1e-8)  # verl 0.9.1: opo
    plus = [0.822126068, -0.442995181, -0.126714869, 0.189565444, -1.576332967, 0.953909532, 0.953909532, -1.787186509]
    close(methods.reinforce_plus_plus_baseline(s, g, n), plus, 2e-8)  # verl 0.9.1, whose means divide by the tokens + 1e-8
    # TRL 1.16.0, scale_rewards="batch"; n / (n − 1) in float32
    s, g = f64([1, 0, 0.25, 0.5, 0, 2, 2, 1]), torch.tensor([0] * 4 + [1] * 4)
    batch = [0.692515201, -0.538622934, -0.2308384, 0.076946133, -1.538922668, 0.923353601, 0.923353601, -0.307784534]
    close(methods.grpo(s, g, eps=1e-4, std="batch"), batch, 5e-8)


def test_group_advantages_are_those_of_a_loop():
    s, g, n = batch()
    S, N = s.tolist(), n.tolist()
    grpo = by_group(s, g, lambda s, rows: [(x - mean(s)) / (std(s) + 1e-6) for x in s])
    grpo[0] = S[0] / (1 + 1e-6)
    close(methods.grpo(s, g), grpo)
    scale = 1 / (std(S) + 0.25)
    close(methods.grpo(s, g, std="batch", eps=0.25), [scale * a for a in by_group(s, g, lambda s, rows: [x - mean(s) for x in s])])
    centred = by_group(s, g, lambda s, rows: [x - mean(s) for x in s])
    close(methods.dr_grpo(s, g), centred)
    close(methods.rloo(s, g), by_group(s, g, lambda s, rows: [x - (math.fsum(s) - x) / (len(s) - 1) for x in s]))
    weighted = lambda s, rows: math.fsum(x * N[i] for x, i in zip(s, rows)) / sum(N[i] for i in rows)  # noqa: E731
    close(methods.opo(s, g, n), by_group(s, g, lambda s, rows: [x - weighted(s, rows) for x in s]))
    close(methods.reinforce_plus_plus_baseline(s, g, n), whitened(centred, N))


# ---- reinforce_plus_plus, remax, maxrl -------------------------------------------------------------------------------


def test_reinforce_plus_plus():
    golden = [0.314352298, -0.569232538, -0.348336329, -0.12744012, -0.569232538, 1.197937133, 1.197937133, -1.894609792]
    close(methods.reinforce_plus_plus(f64(REWARD), torch.tensor(LENGTH)), golden, 2e-8)  # verl 0.9.1, gamma 1
    s, _, n = batch()
    close(methods.reinforce_plus_plus(s, n), whitened(s.tolist(), n.tolist()))
    # A batch of one token is centred, one of none left alone.
    assert methods.reinforce_plus_plus(f64([2.0]), torch.tensor([1])).tolist() == [0.0]
    assert methods.reinforce_plus_plus(f64([2.0, 3.0]), torch.tensor([0, 0])).tolist() == [2.0, 3.0]


def test_remax():
    s, g, greedy = f64(REWARD), torch.tensor(GROUP), f64([0.5, 1.0, -1.0])
    assert methods.remax(s, g, greedy).tolist() == [0.5, -0.5, -0.25, 0.0, -1.0, 1.0, 1.0, -0.5]  # verl 0.9.1: remax
    s, g, _ = batch()
    greedy = torch.randn(6, dtype=torch.float64)
    assert torch.equal(methods.remax(s, g, greedy), s - greedy[g // 3])
    assert torch.equal(methods.remax(s, g, torch.zeros(6)), s)  # a greedy reward of 0 is the identity
    assert torch.equal(methods.remax(s.float(), g, greedy.float()), (s.float().double() - greedy.float()[g // 3]).float())
    with pytest.raises(ValueError, match=r"method_remax: greedy has shape \[5\]; wanted \[6\], a reward a group"):
        methods.remax(s, g, greedy[:5])
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="method_remax: greedy reward 2 is not finite"):
            methods.remax(s, g, torch.where(torch.arange(6) == 2, bad, greedy))
    with pytest.raises(ValueError, match="method_remax: greedy reward 0 is 1e\\+19"):
        methods.remax(s, g, greedy.fill_(1e19))
    with pytest.raises(ValueError, match="method_remax: reward 0 is not finite"):
        methods.remax(torch.full_like(s, math.nan), g, torch.zeros(6))


def test_remax_moves_the_gradient():
    s, g, greedy = f64([1.0, 0.0, 1.0]), torch.tensor([0, 1, 1]), f64([0.0, 0.5])
    mask = torch.ones(3, 4)

    def gradient(greedy):
        logprob = torch.full((3, 4), -0.5, dtype=torch.float64, requires_grad=True)
        isentrope.grpo_loss(logprob, logprob.detach(), methods.remax(s, g, greedy)[:, None].expand(3, 4), mask).loss.backward()
        return logprob.grad

    assert torch.equal(gradient(greedy)[0], gradient(f64([0.0, 0.25]))[0])
    assert not torch.equal(gradient(greedy)[1:], gradient(f64([0.0, 0.25]))[1:])


def test_maxrl():
    g = torch.zeros(8, dtype=torch.int64)
    up, down = 5 / 3, -1.0
    close(methods.maxrl(f64(EIGHT), g), [up, down, down, up, up, down, down, down])
    # SkyRL's maxrl and the authors' (which add 1e-6 to the mean): 1.666662222, −0.999997333
    close(methods.maxrl(f64(EIGHT), g), [1.666662222, -0.999997333, -0.999997333, 1.666662222, 1.666662222] + [-0.999997333] * 3, 3e-6)
    assert methods.maxrl(f64([1, 0, 0, 0]), g[:4]).tolist() == [3, -1, -1, -1]
    # One right answer of 4096, and none; a mean below 0; one that is 0 but for rounding; a group of one.
    s, g = f64([1.0] + [0.0] * 4095), torch.zeros(4096, dtype=torch.int64)
    assert methods.maxrl(s, g).tolist() == [4095.0] + [-1.0] * 4095
    assert not methods.maxrl(0 * s, g).any()
    assert not methods.maxrl(f64([-1.0, 0.5, 0.1]), g[:3]).any()
    assert not methods.maxrl(f64([1.0, -1.0 + 1e-9]), g[:2]).any()
    assert methods.maxrl(f64([0.25, -3.0]), torch.tensor([0, 1])).tolist() == [0.25, -3.0]
    s, g, _ = batch()
    s = s.abs()
    close(methods.maxrl(s, g), by_group(s, g, lambda s, rows: [(x - mean(s)) / mean(s) for x in s]))


# ---- quantile --------------------------------------------------------------------------------------------------------


def test_quantile_golden():
    """The code of the authors (torch.quantile in the place of the mean in verl's grpo), float64."""
    s, g = f64(EIGHT), torch.zeros(8, dtype=torch.int64)
    u = 1.932179833
    close(methods.quantile(s, g, quantile=0.4, interpolate=True), [u, 0, 0, u, u, 0, 0, 0], 1e-8)
    high, low = 0.193217983, -1.73896185
    close(methods.quantile(s, g, quantile=0.7, interpolate=True), [high, low, low, high, high, low, low, low], 1e-8)
    # Without interpolation the 6th of 8 rewards, 1, is the first that 0.7 of them do not exceed: right answers have nothing.
    close(methods.quantile(s, g, quantile=0.7), [0, -u, -u, 0, 0, -u, -u, -u], 1e-8)


@pytest.mark.parametrize("K", [0.05, 0.07, 0.4, 0.5, 0.6, 0.75, 1.0])
def test_quantile_lets_one_side_learn(K):
    """Of n rewards 0 and 1, c of them 1: wrong answers alone where c > (1 − K) n, right ones alone elsewhere."""
    for n in (2, 5, 16, 100):
        for c in range(1, n):
            got = methods.quantile(f64([1.0] * c + [0.0] * (n - c)), torch.zeros(n, dtype=torch.int64), quantile=K, std="none")
            right = c <= n - round(K * n, 9)
            assert got.tolist() == ([1.0] * c + [0.0] * (n - c) if right else [0.0] * c + [-1.0] * (n - c)), (n, c)


def test_quantile_is_that_of_a_loop():
    s, g, _ = batch()
    for K in (0.2, 0.4, 0.9):
        def least(s):
            return min(x for x in s if sum(y <= x for y in s) >= K * len(s) - 1e-9)

        wanted = by_group(s, g, lambda s, rows: [(x - least(s)) / (std(s) + 0.5) for x in s])
        wanted[0] = s[0].item() / 1.5
        close(methods.quantile(s, g, quantile=K, eps=0.5), wanted)
        between = by_group(s, g, lambda s, rows: [x - torch.quantile(f64(s), K).item() for x in s])
        close(methods.quantile(s, g, quantile=K, std="none", interpolate=True), between)
        wanted = f64(between) / (std(s.tolist()) + 1e-6)
        close(methods.quantile(s, g, quantile=K, std="batch", interpolate=True), wanted)


# ---- pass_at_k -------------------------------------------------------------------------------------------------------


def test_pass_at_k_golden():
    """The closed form of the authors of arXiv 2508.10751 in float64; verl 0.9.1: grpo_passk."""
    g = torch.zeros(8, dtype=torch.int64)
    up, down = 0.745354437, -0.447212662
    close(methods.pass_at_k(f64(EIGHT), g, k=2), [up, down, down, up, up, down, down, down], 1e-8)
    close(methods.pass_at_k(f64([1.0] + [0.0] * 7), g, k=4), [0.999998] + [-0.142856857] * 7, 1e-8)
    s, g = f64(REWARD[:7]), torch.tensor(GROUP[:7])
    close(methods.pass_at_k(s, g, form="best"), [1.171077345, 0, 0, 0, 0, 0, 0], 1e-8)


def test_pass_at_k_is_that_of_all_choices():
    from itertools import combinations

    generator = torch.Generator().manual_seed(0)
    for n, k in ((2, 1), (5, 1), (5, 2), (6, 3), (7, 4), (8, 7)):
        for make in (torch.randn, lambda *a, **o: (torch.randn(*a, **o) > 0).double(), lambda *a, **o: (torch.randn(*a, **o) * 2).round() - 3):
            s = make(n, generator=generator, dtype=torch.float64)
            R = [(max(s[i].item() for i in choice), choice) for choice in combinations(range(n), k)]
            m = mean([r for r, _ in R])
            sigma = math.sqrt(mean([(r - m) ** 2 for r, _ in R]))
            wanted = [(mean([r for r, choice in R if i in choice]) - m) / (sigma + 0.1) for i in range(n)]
            close(methods.pass_at_k(s, torch.zeros(n, dtype=torch.int64), k=k, eps=0.1), wanted, 1e-11)


def test_pass_at_1_is_grpo_with_the_std_of_all():
    s, g, _ = batch()
    wanted = by_group(s, g, lambda s, rows: [(x - mean(s)) / (std(s) * math.sqrt((len(s) - 1) / len(s)) + 1e-6) for x in s])
    wanted[0] = s[0].item() / (1 + 1e-6)
    close(methods.pass_at_k(s, g, k=1), wanted)


def test_pass_at_k_of_large_groups_and_ties():
    """Numbers of choices overflow, their quotients do not; equal rewards have equal advantages, bit for bit."""
    n = 20000
    s = (torch.arange(n) % 997 == 5).double()
    got = methods.pass_at_k(s, torch.zeros(n, dtype=torch.int64), k=64)
    wrong = n - int(s.sum())
    rho = 1 - math.exp(math.fsum(math.log((wrong - j) / (n - j)) for j in range(64)))
    sigma = math.sqrt(rho * (1 - rho)) + 1e-6
    of_wrong = 1 - rho - math.exp(math.fsum(math.log((wrong - 1 - j) / (n - 1 - j)) for j in range(63)))
    close(got, [(1 - rho) / sigma if right else of_wrong / sigma for right in s.tolist()], 1e-9)
    assert len(set(got.tolist())) == 2
    # The best of any 4 of 5 is right: nobody has anything to add, also without eps.
    assert methods.pass_at_k(f64([1, 0, 1, 0, 1]), torch.zeros(5, dtype=torch.int64), k=4, eps=0.0).abs().max() < 1e-12


def test_pass_at_k_moves_with_k_and_best_names_one():
    s, g = f64(EIGHT), torch.zeros(8, dtype=torch.int64)
    seen = {tuple(methods.pass_at_k(s, g, k=k).tolist()) for k in (1, 2, 3, 4, 5)}
    assert len(seen) == 5
    assert methods.pass_at_k(f64([2.0, 5.0, 5.0, 1.0]), g[:4], form="best").tolist() == [0.0] * 4  # no better than the second
    got = methods.pass_at_k(f64([2.0, 5.0, 4.0, 1.0]), g[:4], form="best", eps=0.0)
    close(got, [0, 1 / std([2, 5, 4, 1]), 0, 0])


# ---- gdpo ------------------------------------------------------------------------------------------------------------


def test_gdpo_golden():
    s, g, n = f64(REWARD), torch.tensor(GROUP), torch.tensor(LENGTH)
    scores = torch.stack([s, f64([0, 1, 1, 0, 1, 0, 1, 1])])
    tokens = [1.698514057, -0.67598042, 0.265913378, -0.185273443, -1.117289001, 0.27579416, 1.668874732, -1.332798701]
    close(methods.gdpo(scores, g, n, f64([1.0, 0.5]), over="tokens"), tokens, 5e-7)  # verl 0.9.1: gdpo, in float32
    # TRL 1.16.0, normalize_then_sum, n / (n − 1) in float32; one reward does not apply to the fourth.
    s, g = f64([1, 0, 0.25, 0.5, 0, 2, 2, 1]), torch.tensor([0] * 4 + [1] * 4)
    scores = torch.stack([s, f64([0, 1, 1, math.nan, 1, 0, 1, 1])])
    completions = [1.074900149, -1.06897827, -0.218533157, 0.212611278, -1.533373708, 0.048547493, 1.501008712, -0.016182498]
    close(methods.gdpo(scores, g, n, f64([1.0, 0.5]), eps=1e-4), completions, 5e-8)


def test_gdpo_is_that_of_a_loop():
    s, g, n = batch()
    generator = torch.Generator().manual_seed(5)
    scores = torch.stack([s, torch.randn(s.shape, generator=generator, dtype=torch.float64), (s > 0).double()])
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = math.nan
    scores[:, 17] = math.nan  # no reward applies
    scores[1, 6:14] = math.nan  # one applies to one completion of its group
    scores[0, 14], scores[1, 14] = 1.0, 3.0
    scores[:, 0] = f64([1.0, math.nan, 2.0])  # a group of one
    weights = [1.0, -0.5, 2.0]
    a = [0.0] * len(s)
    for w, row in zip(weights, scores.tolist()):
        for rows in groups_of(g):
            there = [row[i] for i in rows if not math.isnan(row[i])]
            for i in rows:
                if len(rows) == 1:
                    a[i] += 0 if math.isnan(row[i]) else w * row[i] / 1.25
                elif len(there) > 1 and max(there) > min(there) and not math.isnan(row[i]):
                    a[i] += w * (row[i] - mean(there)) / (std(there) + 0.25)
    counts = [any(not math.isnan(x) for x in column) for column in scores.T.tolist()]
    of = [x for x, there in zip(a, counts) if there]
    wanted = [(x - mean(of)) / (std(of) + 0.25) if there else 0.0 for x, there in zip(a, counts)]
    close(methods.gdpo(scores, g, n, f64(weights), eps=0.25), wanted)
    lengths = [k if there else 0 for k, there in zip(n.tolist(), counts)]
    wanted = [x if there else 0.0 for x, there in zip(whitened(a, lengths), counts)]
    close(methods.gdpo(scores, g, n, f64(weights), eps=0.25, over="tokens"), wanted)
    assert not counts[17] and methods.gdpo(scores, g, n)[17] == 0
    # A weight moves the result, and the size of a reward does not.
    got = methods.gdpo(scores, g, n, eps=0.0)
    assert not torch.equal(got, methods.gdpo(scores, g, n, f64([1.0, 1.0, 1.5]), eps=0.0))
    scaled = scores.clone()
    scaled[1:, 1:] *= f64([[4.0], [0.5]])
    close(methods.gdpo(scaled, g, n, eps=0.0), got, 1e-9)


def test_gdpo_refuses():
    s, g, n = f64(EIGHT), torch.zeros(8, dtype=torch.int64), torch.ones(8, dtype=torch.int64)
    with pytest.raises(ValueError, match="method_gdpo: 3 weights for 2 rewards; wanted one each, or none"):
        methods.gdpo(torch.stack([s, s]), g, n, torch.ones(3))
    with pytest.raises(ValueError, match=r"method_gdpo: scores has 1 dimensions; wanted \[R, B\]"):
        methods.gdpo(s, g, n)
    with pytest.raises(ValueError, match="method_gdpo: score of reward 1 of completion 0 is 1e\\+30"):
        methods.gdpo(torch.stack([s, s + 1e30]), g, n)
    with pytest.raises(ValueError, match='method_gdpo: over is "groups"; wanted completions or tokens'):
        methods.gdpo(s[None], g, n, over="groups")


# ---- optimal_token_baseline ------------------------------------------------------------------------------------------


def policy(B, T, seed=0):
    """log-probability of a drawn token and Σ p², of policies over 7 tokens."""
    p = torch.softmax(3 * torch.randn(B, T, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), -1)
    return p[..., 0].log(), p.square().sum(-1)


def test_optimal_token_baseline_golden():
    """verl 0.9.1: optimal_token_baseline; but of the sixth completion's last tokens, where verl has 2 in its place."""
    s, g, n = f64(REWARD), torch.tensor(GROUP), torch.tensor(LENGTH)
    mask = torch.arange(6) < n[:, None]
    at = torch.arange(48).view(8, 6)
    logprob = -(at % 7).double() / 4 - 0.1
    sum_p2 = torch.maximum((at % 5).double() / 10 + 0.05, logprob.exp() ** 2)
    golden = [
        [0.754005153, 0.633546072, 0.579698802, 0, 0, 0],
        [-0.245994847, -0.366453928, -0.420301198, -0.327627376, 0, 0],
        [0.004005153, 0, 0, 0, 0, 0],
        [0.254005153, 0.133546072, 0.079698802, 0.172372624, 0, 0],
        [-0.656425295, -0.882934771, 0, 0, 0, 0],
        [1.343574705, 1.117065229, 2, 2, 2, 2],
        [1.343574705, 1.117065229, 0, 0, 0, 0],
        [-1.5, -1.5, -1.5, 0, 0, 0],
    ]
    close(methods.optimal_token_baseline(s, logprob, sum_p2, mask, g), golden, 1e-8)
    golden[5][2:] = [0, 0, 0, 0]
    close(methods.optimal_token_baseline(s, logprob, sum_p2, mask, g, alone_zero=False), golden, 2e-7)


@pytest.mark.parametrize("alone_zero", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_optimal_token_baseline_is_that_of_a_loop(alone_zero, dtype):
    s, g, n = batch()
    B, T = len(s), 40
    logprob, sum_p2 = policy(B, T)
    mask = (torch.arange(T) < n[:, None]) & (torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.9)  # with gaps
    logprob, sum_p2 = logprob.to(dtype), sum_p2.to(dtype)
    W = [[0.0] * T for _ in range(B)]
    for b in range(B):
        total = 0.0
        for t in range(T):
            if mask[b, t]:
                total += max(0.0, 1 - 2 * math.exp(logprob[b, t].item()) + sum_p2[b, t].item())
            W[b][t] = total
    wanted = torch.zeros(B, T, dtype=torch.float64)
    for rows in groups_of(g):
        values = [s[b].item() for b in rows]
        if len(rows) > 1 and max(values) == min(values):
            continue
        for t in range(T):
            there = [b for b in rows if mask[b, t]]
            baseline = math.fsum(s[b].item() * W[b][t] for b in there) / (math.fsum(W[b][t] for b in there) + 1e-8)
            if len(rows) == 1 or (alone_zero and len(there) == 1):
                baseline = 0.0
            for b in there:
                wanted[b, t] = s[b] - baseline
    fill = lambda x: torch.where(mask, x, math.nan)  # noqa: E731
    got = methods.optimal_token_baseline(s, fill(logprob), fill(sum_p2), mask, g, alone_zero=alone_zero)
    assert got.dtype == dtype
    if dtype == torch.float64:
        close(got, wanted)
    else:
        torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=2e-6)
    assert torch.equal(got, methods.optimal_token_baseline(s, logprob, sum_p2, mask.int(), g, alone_zero=alone_zero))


@pytest.mark.parametrize("T", [511, 513, 1100, 8193])
def test_optimal_token_baseline_of_long_rows(T):
    """Across the tiles of positions that the op takes together, and with rows that end in any of them."""
    logprob, sum_p2 = policy(5, T)
    n = torch.tensor([T, 7, 512, T - 1, 0])
    mask = torch.arange(T) < n[:, None]
    mask[0, 3] = mask[3, 500] = False
    s, m = f64([1.0, 0.0, 0.25, 0.5, 3.0]), mask.double()
    W = ((1 - 2 * logprob.exp() + sum_p2).clamp(min=0) * m).cumsum(1) * m
    B = (s[:, None] * W).sum(0) / (W.sum(0) + 1e-8) * (m.sum(0) > 1)
    got = methods.optimal_token_baseline(s, logprob, sum_p2, mask, torch.zeros(5, dtype=torch.int64))
    close(got, (s[:, None] - B) * m)


def test_optimal_token_baseline_between_the_rewards():
    """Certain tokens: w is 0 but for rounding, of either sign; the baseline stays between the rewards of the group and 0."""
    g = torch.zeros(4, dtype=torch.int64)
    p = 1 - torch.rand(4, 64, generator=torch.Generator().manual_seed(0)) * 1e-6
    got = methods.optimal_token_baseline(torch.tensor([1.0, 0.0, 0.5, 0.0]), p.log(), p.square(), torch.ones(4, 64), g)
    assert got.isfinite().all() and (got[0] >= 0).all() and (got[1] <= 0).all() and got.abs().max() <= 1
    # Where all weights are equal it is the mean.
    half = torch.full((4, 8), 0.5, dtype=torch.float64)
    got = methods.optimal_token_baseline(f64([1, 0, 1, 0]), half.log(), half, torch.ones(4, 8), g)
    close(got, f64([0.5, -0.5, 0.5, -0.5])[:, None].expand(4, 8), 1e-7)


def test_optimal_token_baseline_moves_the_gradient_and_has_the_least_variance():
    """E (G − B)² W, which is the variance of the gradient but for what no baseline changes, is least at B."""
    s, g = f64([1.0, 0.0, 0.25, 0.5]), torch.zeros(4, dtype=torch.int64)
    mask = torch.ones(4, 9, dtype=torch.bool)
    logprob, sum_p2 = policy(4, 9)
    A = methods.optimal_token_baseline(s, logprob, sum_p2, mask, g)
    W = (1 - 2 * logprob.exp() + sum_p2).cumsum(1)
    for shift in (-0.01, 0.01):
        assert ((A**2 * W).sum(0) < ((A + shift) ** 2 * W).sum(0)).all()

    def gradient(sum_p2):
        x = logprob.clone().requires_grad_()
        advantage = methods.optimal_token_baseline(s, logprob, sum_p2, mask, g)
        isentrope.grpo_loss(x, logprob, advantage, mask).loss.backward()
        return x.grad

    other = sum_p2.clone()
    other[2, 4] += 0.1
    first, second = gradient(sum_p2), gradient(other)
    assert torch.equal(first[:, :4], second[:, :4]) and (first[:, 4:] != second[:, 4:]).all()


def test_optimal_token_baseline_edges():
    logprob, sum_p2 = policy(3, 5)
    s, g, mask = f64([1.0, 0.0, 2.0]), torch.tensor([0, 0, 1]), torch.ones(3, 5)
    estimate = methods.optimal_token_baseline
    assert not estimate(s, logprob, sum_p2, 0 * mask, g).any()
    assert estimate(s, logprob, sum_p2, mask, g)[2].tolist() == [2.0] * 5  # a group of one
    assert not estimate(f64([0.1 + 0.2, 0.3, 0.0]), logprob, sum_p2, mask, g).any()  # equal rewards
    assert estimate(s[:0], logprob[:0], sum_p2[:0], mask[:0], g[:0]).shape == (0, 5)
    assert estimate(s, logprob[:, :0], sum_p2[:, :0], mask[:, :0], g).shape == (3, 0)
    for bad, said in ((math.nan, "is not finite"), (math.inf, "is not finite"), (1e19, r"is 1e\+19")):
        with pytest.raises(ValueError, match=f"method_optimal_token_baseline: reward 1 {said}"):
            estimate(f64([0, bad, 0]), logprob, sum_p2, mask, g)
    with pytest.raises(ValueError, match=r"sum_p2 has shape \[3, 4\]; wanted \[3, 5\], as logprob"):
        estimate(s, logprob, sum_p2[:, :4], mask, g)
    with pytest.raises(ValueError, match="reward has 2 elements; wanted 3, one a row of logprob"):
        estimate(s[:2], logprob, sum_p2, mask, g[:2])
    with pytest.raises(TypeError, match="sum_p2 has dtype Float; wanted Double"):
        estimate(s, logprob, sum_p2.float(), mask, g)
    with pytest.raises(TypeError, match="logprob has dtype BFloat16; wanted Float, Double"):
        estimate(s, logprob.bfloat16(), sum_p2, mask, g)


# ---- of all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
def test_float32_is_float64_rounded_and_numbers_of_groups_say_nothing(name):
    s, g, n = batch(1)
    estimate = ESTIMATORS[name]
    s = s.float().double()
    wanted = estimate(s, g, n)
    got = estimate(s.float(), g, n)
    assert got.dtype == torch.float32 and torch.equal(got, wanted.float())
    renamed = torch.unique(g, return_inverse=True)[1].int()
    assert torch.equal(estimate(s, renamed, n.int()), wanted)
    assert estimate(s[:0], g[:0], n[:0]).shape == (0,)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_equal_rewards_give_nothing(name):
    for s in ([0.95] * 7, [0.1 + 0.2, 0.3, 0.3], [1e17] * 3, [0.0] * 5):
        n = torch.arange(1, len(s) + 1)
        got = ESTIMATORS[name](f64(s), torch.zeros(len(s), dtype=torch.int64), n)
        assert got.tolist() == [0.0] * len(s), s


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_reward_moves_the_gradient(name):
    """Through a loss: the gradient of the log-probabilities follows the rewards, and a completion of advantage 0 has none."""
    s, g, n = batch(2)
    mask = torch.arange(40) < n[:, None]

    def gradient(s):
        logprob = torch.full(mask.shape, -0.5, dtype=torch.float64, requires_grad=True)
        advantage = ESTIMATORS[name](s, g, n)[:, None].expand(mask.shape)
        isentrope.grpo_loss(logprob, logprob.detach(), advantage, mask).loss.backward()
        return logprob.grad

    first, changed = gradient(s), s.clone()
    assert first.abs().sum() > 0 and not first[~mask].any()
    changed[15 + int(s[15:31].argmax())] += 0.5  # in the group of 16
    assert not torch.equal(gradient(changed)[15:31], first[15:31])


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e19])
def test_bad_rewards_are_refused_by_name(name, value):
    if name.startswith("gdpo") and math.isnan(value):
        pytest.skip("a reward that does not apply")
    s = f64([0.0, 1.0, value, 0.5])
    said = "is 1e\\+19, and its square would overflow; wanted at most 1e18" if value == 1e19 else "is not finite"
    with pytest.raises(ValueError, match=f"isentrope::method_{name.split(',')[0]}: .*2 {said}"):
        ESTIMATORS[name](s, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 1, 1]))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_bad_shapes_are_refused(name):
    op, estimate, n = "method_" + name.split(",")[0], ESTIMATORS[name], torch.ones(4, dtype=torch.int64)
    s, g = f64([0.0, 1.0, 2.0, 3.0]), torch.tensor([0, 0, 1, 1])
    if "group" in torch.ops.isentrope.__getattr__(op).default._schema.__str__():
        with pytest.raises(ValueError, match="group: completion 2 is of group 0 behind one of group 1; wanted .* rising"):
            estimate(s, torch.tensor([0, 1, 0, 0]), n)
        with pytest.raises(ValueError, match=rf"{op}: group has shape \[3\]; wanted \[4\], as reward"):
            estimate(s, g[:3], n)
        with pytest.raises(TypeError, match=f"{op}: group has dtype Double; wanted Long, Int"):
            estimate(s, g.double(), n)
    with pytest.raises((ValueError, TypeError), match=f"{op}: (reward|scores) has dtype Long"):
        estimate(s.long(), g, n)
    with pytest.raises(ValueError, match=f"{op}: (reward|scores) has [34] dimensions"):
        estimate(s[None, None], g, n)
    if "length" in torch.ops.isentrope.__getattr__(op).default._schema.__str__():
        with pytest.raises(ValueError, match=f"{op}: length 1 is -1, wanted 0 or more"):
            estimate(s, g, torch.tensor([1, -1, 1, 1]))
        with pytest.raises(ValueError, match=rf"{op}: length has shape \[2\]; wanted \[4\]"):
            estimate(s, g, n[:2])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_compiles_whole_and_passes_opcheck(name):
    s, g, n = batch(3)
    compiled = torch.compile(ESTIMATORS[name], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(s, g, n), ESTIMATORS[name](s, g, n))


def test_opcheck():
    s, g, n = batch(4)
    logprob, sum_p2 = policy(len(s), 4)
    ops = torch.ops.isentrope
    for op, args in [
        (ops.method_grpo, (s, g)),
        (ops.method_opo, (s, g, n)),
        (ops.method_reinforce_plus_plus_baseline, (s, g, n)),
        (ops.method_reinforce_plus_plus, (s, n)),
        (ops.method_remax, (s, g, f64([0.0] * 6))),
        (ops.method_maxrl, (s, g)),
        (ops.method_quantile, (s, g)),
        (ops.method_pass_at_k, (s, g, 1)),
        (ops.method_gdpo, (torch.stack([s, s]), g, n, f64([1.0, 2.0]))),
        (ops.method_optimal_token_baseline, (s, logprob, sum_p2, torch.ones_like(logprob), g)),
    ]:
        torch.library.opcheck(op.default, args)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s, g: methods.grpo(s, g, eps=-1.0), "method_grpo: eps is -1; wanted 0 to 1"),
        (lambda s, g: methods.grpo(s, g, std="none"), 'method_grpo: std is "none"; wanted group or batch'),
        (lambda s, g: methods.quantile(s, g, quantile=0.0), "method_quantile: quantile is 0; wanted above 0 to 1"),
        (lambda s, g: methods.quantile(s, g, std="all"), 'method_quantile: std is "all"; wanted group, batch or none'),
        (lambda s, g: methods.quantile(s, g, eps=2.0), "method_quantile: eps is 2; wanted 0 to 1"),
        (lambda s, g: methods.pass_at_k(s, g, k=0), "method_pass_at_k: k is 0; wanted at least 1"),
        (lambda s, g: methods.pass_at_k(s, g, form="all"), 'method_pass_at_k: form is "all"; wanted subsets or best'),
        (lambda s, g: methods.pass_at_k(s, g, k=8), "method_pass_at_k: group 0 has 8 completions and k is 8; wanted more than k"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(f64(EIGHT), torch.zeros(8, dtype=torch.int64))
