"""Methods of policy learning (isentrope.methods) against plain torch in the form of the code that was released for each: of estimators a
loop over the groups of a step, of weights whole tensors. Groups of 8 completions of ragged lengths. gtpo and siren
go token by token in double, and random and random_tokens rank a number of a counter-based generator for each token, so that the draw is the same for any number of threads:
these are below the target. Rewards (pear, kl, overlong) have none."""

import torch

from isentrope import methods

from methods_shaping import DRAWN, REWARDS, SHAPING, more_inputs
from methods_weight import WEIGHTS, quantile_rows
from timing import compare, interleaved

TARGET = 5  # times faster
K = 8  # completions a prompt
SHAPES = [(256, 2048), (32, 32768)]  # [B, T]


def inputs(B, T):
    """A step's completions as every method takes them; where mask is false the numbers are any."""
    g = torch.Generator().manual_seed(0)
    length = torch.randint(T // 4, T + 1, (B,), generator=g)
    logprob = -torch.rand(B, T, generator=g) * 3
    reward = (torch.rand(B, generator=g) < 0.4).float() + 0.1 * torch.rand(B, generator=g)
    given = {
        "mask": torch.arange(T) < length[:, None],
        "length": length,
        "group": torch.arange(B) // K,
        "reward": reward,
        "greedy": (torch.rand(B // K, generator=g) < 0.4).float(),
        "scores": torch.stack([reward, torch.rand(B, generator=g)]),
        "advantage": torch.randn(B, 1, generator=g).expand(B, T).contiguous(),
        "logprob": logprob,
        "old_logprob": logprob + 0.05 * torch.randn(B, T, generator=g),
        "entropy": 2 * torch.rand(B, T, generator=g),
        "old_entropy": 2 * torch.rand(B, T, generator=g),
        "sum_p2": torch.maximum(logprob.exp() ** 2, torch.rand(B, T, generator=g)),
    }
    return given | more_inputs(given, g)


# ---- rivals ----------------------------------------------------------------------------------------------------------


def groups(x):
    """Rows of each group, found as the released code finds them: by a dictionary over all completions."""
    rows = {}
    for i, g in enumerate(x["group"].tolist()):
        rows.setdefault(g, []).append(i)
    return [torch.tensor(of) for of in rows.values()]


def by_group(one):
    def estimate(x):
        out = torch.zeros_like(x["reward"])
        for rows in groups(x):
            out[rows] = one(x["reward"][rows], x["length"][rows])
        return out

    return estimate


def whiten(a, length):
    n = length.sum()
    mean = (a * length).sum() / n
    variance = ((a - mean) ** 2 * length).sum() / (n - 1)
    return (a - mean) * torch.rsqrt(variance + 1e-8)


def gdpo(x):
    out = torch.zeros_like(x["reward"])
    for score in x["scores"]:
        out += by_group(lambda s, n: (s - s.mean()) / (s.std() + 1e-6))({**x, "reward": score})
    return (out - out.mean()) / (out.std() + 1e-6)


def pass_at_k(s, n):
    """The closed form, for a reward above ½ that counts as right."""
    from math import comb

    right = s > 0.5
    wrong, all_, k = int((~right).sum()), len(s), 4
    rho = 1 - comb(wrong, k) / comb(all_, k)
    sigma = (rho * (1 - rho)) ** 0.5 + 1e-6
    of_wrong = 1 - rho - (comb(wrong - 1, k - 1) if wrong else 0) / comb(all_ - 1, k - 1)
    return torch.where(right, (1 - rho) / sigma, of_wrong / sigma)


def at_end(x):
    """The reward of each completion at its last token, which is how it comes there, and the mask as numbers: [B, T]."""
    mask = x["mask"].float()
    reward = torch.zeros_like(mask)
    reward[torch.arange(len(mask)), x["length"] - 1] = x["reward"]
    return reward, mask


def remax(x):
    reward, mask = at_end(x)
    return (reward * mask).flip(-1).cumsum(-1).flip(-1) - x["greedy"].repeat_interleave(K)[:, None] * mask


def reinforce_plus_plus(x):
    reward, mask = at_end(x)
    returns, running = torch.zeros_like(reward), torch.zeros(len(reward))
    for t in reversed(range(reward.shape[1])):
        new = reward[:, t] + running
        returns[:, t] = new * mask[:, t]
        running = new * mask[:, t] + running * (1 - mask[:, t])
    n = mask.sum()
    mean = (returns * mask).sum() / n
    variance = ((returns - mean) ** 2 * mask).sum() / (n - 1)
    return (returns - mean) * torch.rsqrt(variance + 1e-8) * mask


def optimal_token_baseline(x):
    reward, mask = at_end(x)
    returns = (reward * mask).flip(-1).cumsum(-1).flip(-1)
    W = ((1 - 2 * x["logprob"].exp() + x["sum_p2"]) * mask).cumsum(-1)
    baseline = torch.zeros_like(returns)
    for rows in groups(x):
        m, w = mask[rows], W[rows]
        b = (returns[rows] * w * m).sum(0) / ((w * m).sum(0) + 1e-8)
        baseline[rows] = b.expand(len(rows), -1)
        lengths = m.sum(-1).sort().values
        longest = rows[m.sum(-1).argmax()]
        if lengths[-1] > lengths[-2]:
            baseline[longest, int(lengths[-2]) :] = 0
    return (returns - baseline) * mask


def tokens(advantage, x):
    """[B, T] of an advantage a completion, where the released code makes it so."""
    return methods.by_token(advantage, x["mask"])


# ---- name → (ours, rival, shapes): functions of inputs ---------------------------------------------------------------

ONE = SHAPES[:1]  # the time of an advantage a completion does not depend on T
METHODS = {
    "grpo": (lambda x: methods.grpo(x["reward"], x["group"]), by_group(lambda s, n: (s - s.mean()) / (s.std() + 1e-6)), ONE),
    "dr_grpo": (lambda x: methods.dr_grpo(x["reward"], x["group"]), by_group(lambda s, n: s - s.mean()), ONE),
    "rloo": (lambda x: methods.rloo(x["reward"], x["group"]), by_group(lambda s, n: s - (s.sum() - s) / (len(s) - 1)), ONE),
    "opo": (lambda x: methods.opo(x["reward"], x["group"], x["length"]), by_group(lambda s, n: s - (s * n).sum() / n.sum()), ONE),
    "reinforce_plus_plus_baseline": (
        lambda x: methods.reinforce_plus_plus_baseline(x["reward"], x["group"], x["length"]),
        lambda x: whiten(by_group(lambda s, n: s - s.mean())(x), x["length"]),
        ONE,
    ),
    "reinforce_plus_plus": (lambda x: tokens(methods.reinforce_plus_plus(x["reward"], x["length"]), x), reinforce_plus_plus, ONE),
    "remax": (lambda x: tokens(methods.remax(x["reward"], x["group"], x["greedy"]), x), remax, SHAPES),
    "gdpo": (lambda x: methods.gdpo(x["scores"], x["group"], x["length"]), gdpo, ONE),
    "pass_at_k": (lambda x: methods.pass_at_k((x["reward"] > 0.5).float(), x["group"]), by_group(pass_at_k), ONE),
    "maxrl": (lambda x: methods.maxrl(x["reward"], x["group"]), by_group(lambda s, n: (s - s.mean()) / s.mean()), ONE),
    "quantile": (
        lambda x: methods.quantile(x["reward"], x["group"], interpolate=True),
        by_group(lambda s, n: (s - torch.quantile(s, 0.4)) / (s.std() + 1e-6)),
        ONE,
    ),
    "optimal_token_baseline": (
        lambda x: methods.optimal_token_baseline(x["reward"], x["logprob"], x["sum_p2"], x["mask"], x["group"]),
        optimal_token_baseline,
        SHAPES,
    ),
    **SHAPING,
    **WEIGHTS,
    **REWARDS,
}


def check_values(name, ours, rival, x):
    """Up to float32; of a weight that chooses tokens, one in 1000 may lie at the threshold."""
    a, b = ours(x), rival(x)
    assert a.shape == b.shape, f"{name}: {a.shape} and {b.shape}"
    if name in DRAWN:
        return
    apart = a != b if a.dtype == torch.bool else (a - b).abs() > 1e-4 * (1 + b.abs())
    assert apart.float().mean() < 1e-3, f"{name}: {apart.float().mean():.2%} of the values differ"


def rows(rounds=7, threads=1):
    """One dictionary a method and shape."""
    torch.set_num_threads(threads)
    table = []
    for name, (ours, rival, shapes) in METHODS.items():
        for shape in shapes:
            if shape not in SHAPES:
                continue
            x = inputs(*shape)
            check_values(name, ours, rival, x)
            seconds = interleaved({"ours": lambda: ours(x), "torch": lambda: rival(x)}, rounds)
            row = {"op": name, "shape": shape, "dtype": "float32", "threads": threads, **compare(seconds, "ours", "torch")}
            table.append(row if name in REWARDS else row | {"target": TARGET})
    return table + quantile_rows(rounds, threads)
