"""What tests/python/test_methods_shaping.py gives to methods that change advantages token by token, and each of them as an independent loop in
double. A loop's arguments are a batch and the keys of the method of its name."""

import math

import torch

nan = math.nan


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


def turn_rewards(turn, mask, g):
    """[B, K] rewards of turns, NaN behind a row's last one; of a row without tokens one turn. Some are equal over rows."""
    last = torch.where(mask, turn, 0).amax(1) if turn.numel() else torch.zeros(len(turn), dtype=torch.int64)
    K = int(last.max()) + 1 if len(last) else 1
    drawn = torch.randint(-2, 3, (len(last), K), generator=g) / 2
    return torch.where(torch.arange(K) <= last[:, None], drawn, nan).double()


def batch(B=6, T=37, seed=0, dtype=torch.float64, none=False):
    """What such a method may be given, of ragged completions, one with no token and one with holes; NaN where nothing counts."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(T) < torch.randint(1, max(T, 1) + 1, (B, 1), generator=g)
    if B > 3:
        mask[1] = False
        mask[2] = torch.rand(T, generator=g) < 0.6
    if none:
        mask[:] = False
    fill = lambda x: torch.where(mask, x, nan).to(dtype)  # noqa: E731
    advantage = torch.randn(B, 1, generator=g).expand(B, T).clone()
    if B > 4:
        advantage[4] = 0
    logprob = -3 * torch.rand(B, T, generator=g)
    return {
        "mask": mask,
        "advantage": fill(advantage),
        "logprob": fill(logprob),
        "h": fill(-logprob),
        "entropy": fill(2 * torch.rand(B, T, generator=g)),
        "group": torch.arange(B) * 2 // 5,
        "step": (torch.rand(B, T, generator=g) < 0.2).cumsum(1),
        "turn": (step := (torch.rand(B, T, generator=g) < 0.15).cumsum(1)),
        "reward": turn_rewards(step, mask, g),
        "planning": torch.rand(B, T, generator=g) < 0.3,
        "right": torch.rand(B, generator=g) < 0.5,
        "state": torch.tensor([0.9, 1.4], dtype=torch.float64),
    }


# What each takes of a batch, in its order.
TAKES = {
    "entropy_advantage": ["advantage", "entropy", "mask"],
    "perplexity": ["advantage", "logprob", "mask", "group"],
    "position": ["advantage", "mask"],
    "repo": ["advantage", "logprob", "entropy", "mask"],
    "gepo": ["advantage", "h", "mask", "group", "state"],
    "empg": ["advantage", "entropy", "mask", "step"],
    "hicra": ["advantage", "planning", "mask"],
    "gtpo": ["entropy", "right", "mask", "group"],
    "turn_credit": ["advantage", "reward", "mask", "turn", "group"],
}


def loop(x, function):
    """[B, T]: function(b, t) where mask marks, else 0."""
    B, T = x["mask"].shape
    return f64([[float(function(b, t)) if x["mask"][b, t] else 0.0 for t in range(T)] for b in range(B)]).reshape(B, T)


def listed(x):
    return {name: value.tolist() for name, value in x.items()}


def marked(x):
    return [(b, t) for b, t in x["mask"].nonzero().tolist()]


def mean(values):
    return math.fsum(values) / len(values)


def std(values):
    m = mean(values)
    return math.sqrt(math.fsum((v - m) ** 2 for v in values) / len(values))


def sign(a):
    return (a > 0) - (a < 0)


def entropy_advantage(x, alpha=0.4, kappa=2.0):
    v = listed(x)
    return loop(x, lambda b, t: v["advantage"][b][t] + min(alpha * v["entropy"][b][t], abs(v["advantage"][b][t]) / kappa))


def quartile(values, q):
    s = sorted(values)
    at = q * (len(s) - 1)
    low = int(at)
    return s[low] if low + 1 == len(s) else s[low] + (at - low) * (s[low + 1] - s[low])


def perplexity(x, alpha=0.01, low=0.8, high=1.2):
    v = listed(x)
    rows = {}
    for b, t in marked(x):
        rows.setdefault(b, []).append(-v["logprob"][b][t])
    u = {b: mean(values) for b, values in rows.items()}
    factor = {}
    for g in set(v["group"]):
        own = [u[b] for b in u if v["group"][b] == g]
        if not own:
            continue
        q1, q3 = quartile(own, 0.25), quartile(own, 0.75)
        inside = [w for w in own if q1 - 1.5 * (q3 - q1) <= w <= q3 + 1.5 * (q3 - q1)] or own
        s = std(inside)
        for b in u:
            if v["group"][b] == g:
                factor[b] = min(max(1 - alpha * (u[b] - mean(inside)) / (s if s > 1e-6 else 1), low), high)
    return loop(x, lambda b, t: v["advantage"][b][t] * factor[b])


def position(x, gamma=0.1, slope=15.0, centre=0.5, cap=0.5):
    v = listed(x)
    end = {}
    for b, t in marked(x):
        end[b] = t + 1

    def one(b, t):
        a = v["advantage"][b][t]
        return a + sign(a) * min(gamma / (1 + math.exp(-slope * (t / end[b] - centre))), cap * abs(a))

    return loop(x, one)


def repo(x, beta=0.01, form="decorrelate", centre="state"):
    v = listed(x)
    places = marked(x)
    m = mean([v["logprob"][b][t] for b, t in places]) if places else 0

    def one(b, t):
        a, l, H = v["advantage"][b][t], v["logprob"][b][t], v["entropy"][b][t]
        if form == "rescale":
            return max(0, a * (1 - beta * l)) if a > 0 else min(0, a * (1 + beta * l)) if a < 0 else a
        return a - beta * (l + H if centre == "state" else l - m)

    return loop(x, one)


def gepo_bounds(x, spread_low=0.2, spread_high=0.3):
    v = listed(x)
    h = {g: [v["h"][b][t] for b, t in marked(x) if v["group"][b] == g] for g in set(v["group"])}
    h = {g: mean(values) for g, values in h.items() if values}
    values = list(h.values())
    return h, (mean(values) - spread_low * std(values), mean(values) + spread_high * std(values)) if values else (nan, nan)


def gepo(x, low=0.5, high=0.2, spread_low=0.2, spread_high=0.3, rate=0.01):
    v = listed(x)
    h, now = gepo_bounds(x, spread_low, spread_high)
    bounds = [n if math.isnan(old) else old for n, old in zip(now, v["state"])]

    def one(b, t):
        a, own = v["advantage"][b][t], h[v["group"][b]]
        return low * a if a > 0 and own < bounds[0] else high * a if a < 0 and own > bounds[1] else a

    return loop(x, one)


def empg(x, k=1.0, future_k=1.0, zeta=0.1, centre="steps"):
    v = listed(x)
    steps = {}
    for b, t in marked(x):
        steps.setdefault((b, v["step"][b][t]), []).append(t)
    if not steps:
        return loop(x, None)
    H = {s: mean([v["entropy"][s[0]][t] for t in tokens]) for s, tokens in steps.items()}
    least, most = min(H.values()), max(H.values())
    h = {s: (value - least) / (most - least + 1e-8) for s, value in H.items()}
    scale = mean([math.exp(-k * value) for value in h.values()])
    new = {}
    for s, tokens in steps.items():
        later = [other for other in steps if other[0] == s[0] and other[1] > s[1]]
        gain = zeta * math.exp(-future_k * h[min(later)]) if later else 0
        for t in tokens:
            new[s[0], t] = v["advantage"][s[0]][t] * math.exp(-k * h[s]) / scale + gain
    taken = 0
    if centre == "steps":
        taken = mean([mean([new[s[0], t] for t in tokens]) for s, tokens in steps.items()])
    elif centre == "tokens":
        taken = mean(list(new.values()))
    return loop(x, lambda b, t: new[b, t] - taken)


def turn_credit(x, coef=1.0, discount=1.0, normalize="turn", eps=1e-6):
    v = listed(x)
    returns = {}
    for b, rewards in enumerate(v["reward"]):
        there = [r for r in rewards if not math.isnan(r)]
        for k in range(len(there)):
            returns[b, k] = math.fsum(discount ** (j - k) * there[j] for j in range(k, len(there)))

    def credit(b, k):
        if normalize == "none":
            return returns[b, k]
        among = [G for (row, turn), G in returns.items() if v["group"][row] == v["group"][b] and (normalize == "group" or turn == k)]
        if len(among) < 2 or max(among) - min(among) < 1e-9:
            return 0.0
        m = mean(among)
        return (returns[b, k] - m) / (math.sqrt(math.fsum((G - m) ** 2 for G in among) / (len(among) - 1)) + eps)

    return loop(x, lambda b, t: v["advantage"][b][t] + coef * credit(b, v["turn"][b][t]))


def hicra(x, alpha=0.2):
    v = listed(x)
    return loop(x, lambda b, t: v["advantage"][b][t] + (alpha * abs(v["advantage"][b][t]) if v["planning"][b][t] else 0))


def gtpo(x, outcome=1.0, share=0.1, over="group", eps=1e-6):
    v = listed(x)
    reward = {}
    for b, t in marked(x):
        own = [v["entropy"][c][t] for c, s in marked(x) if s == t and v["group"][c] == v["group"][b] and v["right"][c] == v["right"][b]]
        H = v["entropy"][b][t]
        if v["right"][b]:
            reward[b, t] = outcome + share * len(own) * H / math.fsum(own)
        else:
            reward[b, t] = -outcome - share * len(own) * (1 / H) / math.fsum(1 / h for h in own)
    new = {}
    for (b, t), r in reward.items():
        same = [q for (c, _), q in reward.items() if v["group"][c] == v["group"][b] and (over == "group" or v["right"][c] == v["right"][b])]
        new[b, t] = 0 if max(same) - min(same) < 1e-9 else (r - mean(same)) / (std(same) + eps)
    return loop(x, lambda b, t: new[b, t])
