"""What goes by the number of the step, and what is done with whole groups, against independent loops over floats: constant, schedule, table and
band, ares with its controller, filter_groups, adaptive_kl. Their coefficients move the gradient of the loss, and those of no effect change no
bit of it. Every method's op is there for meta tensors."""

import math
import statistics

import pytest
import torch

import isentrope
from isentrope import methods

ROWS, LENGTH = 8, 12


def gradient(reward=None, *, positive=1.0, negative=1.0, entropy_coef=0.0, ref_kl_weight=None, ref_kl_coef=0.1):
    """Of the loss clip by log-probabilities and entropies, two groups of four."""
    g = torch.Generator().manual_seed(3)
    mask = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (ROWS, 1), generator=g)
    logprob = (-3 * torch.rand(ROWS, LENGTH, generator=g)).requires_grad_()
    old, ref = (logprob.detach() + 0.1 * torch.randn(ROWS, LENGTH, generator=g) for _ in range(2))
    given = torch.tensor([1.0, 0, 0, 1, 0, 0, 1, 0], dtype=torch.float64)
    advantage = methods.by_token(methods.grpo(given if reward is None else given + reward, torch.arange(ROWS) // 4), mask)
    advantage = advantage.float() * torch.where(advantage > 0, positive, negative)
    entropy = (-logprob.detach()).requires_grad_()
    options = {} if ref_kl_weight is None else {"ref_logprob": ref, "ref_kl_weight": ref_kl_weight, "ref_kl_coef": ref_kl_coef}
    isentrope.grpo_loss(logprob, old, advantage, mask, entropy=entropy, entropy_coef=entropy_coef, **options).loss.backward()
    return torch.stack([logprob.grad, torch.zeros_like(logprob) if entropy.grad is None else entropy.grad])


def doubles(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


# ---- by the step -----------------------------------------------------------------------------------------------------


def test_golden():
    assert methods.constant(7, coef=0.3).item() == 0.3
    assert methods.schedule(torch.tensor([0, 25, 100, 999]), start=0.4, end=0.0).tolist() == pytest.approx([0.4, 0.3, 0.0, 0.0], abs=1e-16)
    # (1 - cos(π/4)) / 2 = 0.146447
    assert methods.schedule(25, shape="cosine", start=1.0, end=0.0).item() == pytest.approx(1 - 0.146447, abs=1e-6)
    assert methods.table(torch.tensor([[0, 9], [10, 50]]), steps=[0, 10, 30], coefs=[0.1, 0.0, 0.5]).tolist() == [[0.1, 0.1], [0.0, 0.5]]
    held = [methods.band(doubles(entropy), 50).tolist() for entropy in (0.49, 0.5, 0.6, 0.61, math.nan)]
    assert held == [[0, 1], [1, 1], [1, 1], [1, 0], [1, 1]]


STEPS = [0, 1, 2, 3, 7, 10, 11, 12, 40]


def way(step, shape, start, end, steps):
    share = min(step / steps, 1.0)
    return start + (end - start) * (0.5 - 0.5 * math.cos(math.pi * share) if shape == "cosine" else share)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("start, end, steps", [(0.3, 0.01, 11), (0.0, 2.0, 1), (0.2, 0.2, 7)])
def test_schedule_and_band_are_those_of_a_loop(shape, start, end, steps):
    got = methods.schedule(torch.tensor(STEPS), shape=shape, start=start, end=end, steps=steps)
    assert got.tolist() == pytest.approx([way(s, shape, start, end, steps) for s in STEPS], rel=1e-14, abs=1e-16)
    for step in STEPS:
        low, high = (way(step, shape, start + more, end + more, steps) for more in (0.0, 0.5))
        for entropy in (low - 1e-9, low + 1e-9, high - 1e-9, high + 1e-9, math.nan):
            wanted = [0.0, 1.0] if entropy < low else [1.0, 0.0] if entropy > high else [1.0, 1.0]
            got = methods.band(doubles(entropy), step, shape=shape, start=[start, start + 0.5], end=[end, end + 0.5], steps=steps)
            assert got.tolist() == wanted, (step, entropy)


def test_table_is_that_of_a_loop():
    steps, coefs = [0, 2, 3, 11], [0.4, 0.0, 1.5, 0.2]
    wanted = []
    for step in STEPS:
        for begin, coef in zip(steps, coefs):
            if step >= begin:
                now = coef
        wanted.append(now)
    assert methods.table(torch.tensor(STEPS), steps=steps, coefs=coefs).tolist() == wanted


@pytest.mark.parametrize(
    "of",
    [
        lambda coef: methods.constant(3, coef=coef),
        lambda coef: methods.schedule(50, start=2 * coef, end=0.0),
        lambda coef: methods.schedule(50, shape="cosine", start=0.0, end=coef),
        lambda coef: methods.table(3, steps=[0, 2], coefs=[9.0, coef]),
    ],
)
def test_a_coefficient_moves_the_gradient_and_0_is_the_identity(of):
    plain, one, other = gradient(), gradient(entropy_coef=of(0.2).item()), gradient(entropy_coef=of(0.4).item())
    assert not torch.equal(one, plain) and not torch.equal(one, other)
    assert torch.equal(gradient(entropy_coef=of(0.0).item()), plain)


def test_the_band_moves_the_gradient_and_within_it_nothing_changes():
    def of(entropy):
        positive, negative = methods.band(doubles(entropy), 0).tolist()
        return gradient(positive=positive, negative=negative)

    assert not torch.equal(of(0.1), gradient()) and not torch.equal(of(0.9), gradient()) and not torch.equal(of(0.1), of(0.9))
    assert torch.equal(of(0.65), gradient()) and torch.equal(of(math.nan), gradient())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: methods.constant(3, coef=-1.0), "method_constant: coef is -1; wanted at least 0, and finite"),
        (lambda: methods.constant(-3), "method_constant: step is -3; wanted 0 or more"),
        (lambda: methods.constant(torch.zeros(2)), "method_constant: step has dtype Float; wanted Long"),
        (lambda: methods.schedule(3, shape="square"), 'method_schedule: shape is "square"; wanted linear or cosine'),
        (lambda: methods.schedule(3, steps=0), "method_schedule: steps is 0; wanted 1 or more"),
        (lambda: methods.table(3, steps=[0, 5], coefs=[1.0]), "method_table: steps: 2 of them and 1 coefs; wanted one coefficient for each stretch"),
        (lambda: methods.table(3, steps=[1], coefs=[1.0]), "method_table: steps: wanted numbers that rise from 0"),
        (lambda: methods.band(doubles(0.1, 0.2), 3), r"method_band: state has shape \[2\]; wanted \[1\]"),
        (lambda: methods.band(doubles(0.1), 3, start=[0.5, 0.4]), "method_band: start: wanted two numbers, the lower end of the band and the upper one"),
        (lambda: methods.band(doubles(0.1), 3, end=0.5), "method_band: end is 0.5, of type float; wanted a list of numbers"),
        (lambda: methods.filter_groups(doubles(1, 2), torch.tensor([1, 0])), "wanted the completions of a prompt together"),
        (lambda: methods.filter_groups(doubles(1, math.nan), torch.tensor([0, 0])), "method_filter_groups: reward 1 is not finite"),
        (lambda: shaped(alpha=3.0), "method_ares: alpha is 3; wanted 0 to 2"),
        (lambda: shaped(form="other"), 'method_ares: form is "other"; wanted released, strict or paper'),
        (lambda: shaped(easy=0.1), "method_ares: medium: 0.333333 is above easy"),
        (lambda: shaped(state=doubles(1.0)), r"method_ares: state has shape \[1\]; wanted \[16\]"),
        (lambda: methods.ares_kl(shaped().state, doubles(1.0)), r"method_ares_kl: kl has shape \[1\]; wanted \[3\]: easy, medium, hard"),
        (lambda: methods.adaptive_kl(doubles(1.0), doubles(1.0, 2.0), target=1.0, horizon=1.0), r"method_adaptive_kl: kl has shape \[2\]; wanted \[1\]"),
    ],
)
def test_refuses(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


# ---- groups ----------------------------------------------------------------------------------------------------------


def test_filter_groups_are_those_of_a_loop():
    assert methods.filter_groups(doubles(1, 1, 0, 1, 5), torch.tensor([0, 0, 1, 1, 2])).tolist() == [False, False, True, True, True]
    g = torch.Generator().manual_seed(1)
    reward = torch.randint(0, 2, (60,), generator=g).double() * 3 - 1
    group = torch.randint(0, 25, (60,), generator=g).sort().values
    reward[group == 7] = 0.1 * 3 + torch.tensor([0.0, 1e-17, -1e-17, 5e-17])[torch.arange(int((group == 7).sum())) % 4].double()  # equal by right
    members = {k: [r for r, of in zip(reward.tolist(), group.tolist()) if of == k] for k in group.tolist()}
    wanted = [len(members[k]) == 1 or max(members[k]) - min(members[k]) > 1e-9 for k in group.tolist()]
    assert True in wanted and False in wanted
    for dtype in (torch.float32, torch.float64):
        assert methods.filter_groups(reward.to(dtype), group).tolist() == wanted


def drawn(seed):
    g = torch.Generator().manual_seed(seed)
    entropy = 2 * torch.rand(ROWS, LENGTH, generator=g, dtype=torch.float64)
    length = torch.randint(0, LENGTH + 1, (ROWS,), generator=g)
    length[0] = 1  # without a window
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    right = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]).bool()[torch.randperm(ROWS, generator=g)] if seed > 5 else torch.tensor([1, 1, 1, 0, 1, 0, 0, 0]).bool()
    trigger = torch.rand(ROWS, LENGTH, generator=g) < 0.5
    return entropy, length, right, group, trigger


def shaped(seed=1, state=None, **options):
    entropy, length, right, group, _ = drawn(seed)
    return methods.ares(entropy, length, right, group, state, **{"window": 2, **options})


SHAPES = [(0.15, 2, 2, 1, 0.6), (0.25, 3, 2.5, 1, 0.8), (0.35, 4, 3, 1.2, 1)]


def quantile(values, q):
    ordered, rank = sorted(values), q * (len(values) - 1)
    low = math.floor(rank)
    return ordered[low] + (rank - low) * (ordered[math.ceil(rank)] - ordered[low])


class Ares:
    """csrc/methods/ares.h, read anew."""

    def __init__(self, form, alpha, window, q, threshold_decay, target_decay, rate, inside):
        self.form, self.window, self.q, self.decays, self.rate, self.inside = form, window, q, (threshold_decay, target_decay), rate, inside
        self.threshold, self.targets, self.alphas = None, [None] * 3, [alpha] * 3

    def shaping(self, d, right, delta, target, lam):
        f, kappa, tau, scale, share = SHAPES[d]
        if self.form == "paper":
            return 0.0 if right else -lam * [max(0.0, delta), abs(delta), max(0.0, -delta)][d]
        cap, m = self.alphas[d] * scale, max(1.0, f * max(target, 1.0))

        def sigma(x):
            return 1 / (1 + math.exp(-x))

        def huber(x):
            return 0.0 if x < 0 else x * x / (2 * kappa) if x <= kappa else x - kappa / 2

        if not right:
            high = sigma(max(delta - m, 0.0) / tau)
            return cap * share * high if self.form == "released" else min(cap, (1 - cap) / 2) * share * (2 * high - 1)
        if d < 2:
            return -min(cap, cap * huber((delta if d == 0 else abs(delta)) - m) / (m + kappa))
        return cap * sigma((delta + m) / tau) if delta >= -m else -min(cap, cap * huber(-delta - m) / (2 * (m + kappa)))

    def step(self, entropy, length, right, group, trigger):
        rows = [row[:n] for row, n in zip(entropy, length)]
        windows = [[sum(row[t : t + self.window]) / self.window for t in range(len(row) - self.window + 1)] for row in rows]
        of_rows = [quantile(w, self.q) for w in windows if w]
        own = quantile(of_rows, 0.5)
        threshold = own if self.threshold is None else self.threshold
        self.threshold = own if self.threshold is None else self.decays[0] * self.threshold + (1 - self.decays[0]) * own
        counted = [
            [t for t, value in enumerate(w) if value >= threshold and (trigger is None or (t > 0 and trigger[i][t - 1]))] for i, w in enumerate(windows)
        ]
        shares = [[r for r, of in zip(right, group) if of == g] for g in group]
        level = [0 if 3 * sum(s) >= 2 * len(s) else 1 if 3 * sum(s) >= len(s) else 2 for s in shares]
        target, lam = [0.0] * 3, [0.0] * 3
        high = [[len(c) for c, of in zip(counted, level) if of == d] for d in range(3)]
        for d in range(3):
            if high[d]:
                mean = statistics.fmean(high[d])
                target[d] = mean if self.targets[d] is None else self.targets[d]
                lam[d] = max(0.0, (mean - target[d]) / (statistics.pvariance(high[d]) + 1))
                self.targets[d] = mean if self.targets[d] is None else self.decays[1] * self.targets[d] + (1 - self.decays[1]) * mean
        made = [self.shaping(d, r, len(c) - target[d], target[d], lam[d]) for d, r, c in zip(level, right, counted)]
        weight = [[1.0] * len(row) for row in entropy]
        for i, c in enumerate(counted):
            for t in c:
                weight[i][t : t + self.window] = [self.inside] * self.window
        for d in range(3):
            if high[d] and self.rate > 0:
                more = statistics.fmean(high[d]) - target[d]
                self.alphas[d] = max(0.0, min(self.alphas[d] + self.rate * (-more if d == 2 else more), 2.0))
        return made, level, weight


@pytest.mark.parametrize("triggers", [False, True])
@pytest.mark.parametrize("form, alpha, rate", [("released", 0.5, 0.0), ("strict", 0.3, 0.0), ("paper", 0.5, 0.0), ("released", 0.4, 0.1)])
def test_ares_is_that_of_a_loop(form, alpha, rate, triggers):
    loop = Ares(form, alpha, 3, 0.8, 0.5, 0.25, rate, 0.5)
    keys = {"form": form, "alpha": alpha, "window": 3, "quantile": 0.8, "threshold_decay": 0.5, "target_decay": 0.25, "alpha_rate": rate, "inside": 0.5}
    state, values = None, set()
    for seed in (1, 2, 7, 9):
        entropy, length, right, group, trigger = drawn(seed)
        entropy = entropy.float().double()  # as the trainer has it
        given = trigger if triggers else None
        made = methods.ares(entropy, length, right, group, state, given, **keys)
        shaping, level, weight = loop.step(entropy.tolist(), length.tolist(), right.tolist(), group.tolist(), given.tolist() if triggers else None)
        assert made.difficulty.tolist() == level
        assert made.shaping.tolist() == pytest.approx(shaping, rel=1e-5, abs=1e-6), seed  # means of windows in float32
        inside = torch.arange(LENGTH) < length.unsqueeze(1)
        assert torch.equal(made.ref_kl_weight[inside], torch.tensor(weight)[inside])
        assert made.state.shape == ((19,) if rate else (16,))
        state, values = made.state, values | set(made.shaping.tolist())
    assert len(values) > 2


def test_ares_golden():
    # One easy group whose largest windows are 3, 1 and 2: the threshold is 2, and N = 1, 0, 2. Nothing is far from N* = 1.
    entropy = doubles(3, 3, 0, 0, 1, 1, 1, 0, 2, 2, 2, 0).view(3, 4)
    made = methods.ares(entropy, torch.tensor([4, 3, 3]), torch.ones(3), torch.zeros(3, dtype=torch.int64), window=2, quantile=1.0)
    assert made.difficulty.tolist() == [0, 0, 0] and made.shaping.tolist() == pytest.approx([0, 0, 0], abs=1e-16)
    assert made.state[:2].tolist() == pytest.approx([2.0, 1.0])
    wrong = methods.ares(entropy, torch.tensor([4, 3, 3]), torch.zeros(3), torch.zeros(3, dtype=torch.int64), window=2, quantile=1.0)
    assert wrong.difficulty.tolist() == [2, 2, 2] and wrong.shaping.tolist() == pytest.approx([0.3] * 3)  # cap s σ(0)


def test_ares_moves_the_gradient_and_alpha_0_is_the_identity():
    of = [gradient(shaped(alpha=alpha).shaping) for alpha in (0.2, 0.6, 0.0)]
    assert not torch.equal(of[0], of[1]) and not torch.equal(of[0], gradient()) and torch.equal(of[2], gradient())
    plain = torch.ones(ROWS, LENGTH)
    made = [shaped(inside=inside).ref_kl_weight for inside in (0.3, 1.0)]
    assert not torch.equal(gradient(ref_kl_weight=made[0]), gradient(ref_kl_weight=plain))
    assert torch.equal(gradient(ref_kl_weight=made[1]), gradient(ref_kl_weight=plain))


@pytest.mark.parametrize("error_decay", [0.0, 0.5])
def test_ares_kl_is_that_of_a_loop_and_moves_the_gradient(error_decay):
    state = shaped().state
    beta, mean, error, count = [1.0] * 3, [None] * 3, [0.0] * 3, [0] * 3
    g = torch.Generator().manual_seed(4)
    for _ in range(40):
        kl = (0.04 * torch.rand(3, generator=g)).double()
        kl[torch.rand(3, generator=g) < 0.3] = math.nan
        state = methods.ares_kl(state, kl, target=0.02, every=3, decay=0.6, error_decay=error_decay, dead_zone=0.05)
        for d, x in enumerate(kl.tolist()):
            if math.isnan(x):
                continue
            mean[d] = x if mean[d] is None else 0.6 * mean[d] + 0.4 * x
            count[d] += 1
            off = mean[d] / 0.02 - 1
            if count[d] % 3 == 0 and abs(off) >= 0.05:
                error[d] = error_decay * error[d] + (1 - error_decay) * off
                beta[d] = max(1e-4, min(beta[d] * math.exp(0.05 * max(-0.2, min(error[d], 0.2))), 1e2))
    assert state[[2, 6, 10]].tolist() == pytest.approx(beta, rel=1e-12) and len(set(beta)) == 3
    entropy, length, right, group, _ = drawn(1)
    weight = methods.ares(entropy, length, right, group, state, window=2).ref_kl_weight
    assert weight[0, 0].item() == pytest.approx(beta[0]) and not torch.equal(gradient(ref_kl_weight=weight), gradient(ref_kl_weight=torch.ones(ROWS, LENGTH)))


def test_adaptive_kl_takes_tensors_and_moves_the_gradient():
    coef, kl = doubles(0.1, 0.1, 0.1), doubles(0.02, 0.0, 0.011)
    wanted = [methods.adaptive_kl(0.1, x, target=0.01, horizon=2) for x in kl.tolist()]
    assert methods.adaptive_kl(coef, kl, target=0.01, horizon=2).tolist() == wanted == pytest.approx([0.11, 0.09, 0.105])
    assert methods.adaptive_kl(coef.float(), kl.float(), target=0.01, horizon=2).dtype == torch.float32
    weight = torch.ones(ROWS, LENGTH)
    moved = gradient(ref_kl_weight=weight, ref_kl_coef=wanted[0])
    assert not torch.equal(moved, gradient(ref_kl_weight=weight))
    assert methods.adaptive_kl(0.1, 0.01, target=0.01, horizon=2) == 0.1


# ---- meta ------------------------------------------------------------------------------------------------------------


def test_every_method_is_there_for_meta_tensors():
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("isentrope::method_")]
    assert len(names) > 50
    assert not [name for name in names if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "Meta")]


def test_meta_has_the_shapes_and_dtypes():
    entropy, length, right, group, trigger = drawn(1)
    step, pair = torch.tensor([1, 2]), torch.rand(5)
    for op, given, options in [
        ("constant", [step], {}),
        ("schedule", [step], {}),
        ("table", [step], {"steps": [0, 3], "coefs": [0.1, 0.2]}),
        ("band", [doubles(0.3), 5], {"start": [0.1, 0.2], "end": [0.3, 0.4]}),
        ("filter_groups", [right.float(), group], {}),
        ("ares", [entropy, length, right, group], {"alpha_rate": 0.1}),
        ("ares", [entropy, length, right, group, shaped().state, trigger], {}),
        ("ares_kl", [shaped().state, doubles(1, 2, 3)], {}),
        ("adaptive_kl", [doubles(1.0), doubles(2.0), 0.1, 10.0], {}),
        ("preference", [pair, pair], {}),
        ("differential_information", [pair, pair], {}),
    ]:
        call = getattr(torch.ops.isentrope, f"method_{op}")
        there = call(*given, **options)
        meta = call(*[x.to("meta") if isinstance(x, torch.Tensor) else x for x in given], **options)
        for a, b in zip(*[x if isinstance(x, tuple) else (x,) for x in (there, meta)], strict=True):
            assert (a.shape, a.dtype, b.device.type) == (b.shape, b.dtype, "meta"), op
