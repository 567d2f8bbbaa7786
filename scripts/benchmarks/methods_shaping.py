"""The methods of scripts/benchmarks/methods.py that change advantages token by token, those that look at the discriminator of the entropy, and what
tokens weigh in a bonus or in SFT: each against the released Python code of its paper in its form, or the obvious torch code where none is released."""

import math

import torch

from isentrope import methods

SHAPES = [(256, 2048), (32, 32768)]  # [B, T]


def groups(x):
    """Rows of each group, found as the released code finds them: by a dictionary over all completions."""
    rows = {}
    for i, g in enumerate(x["group"].tolist()):
        rows.setdefault(g, []).append(i)
    return [torch.tensor(of) for of in rows.values()]


def masked_mean(x, mask):
    return (x * mask).sum() / mask.sum().clamp(min=1)


# ---- advantages ------------------------------------------------------------------------------------------------------


def entropy_advantage(x, alpha=0.4, kappa=2.0):
    """As the authors' core_algos."""
    return (x["advantage"] + torch.min(alpha * x["entropy"].detach(), x["advantage"].abs() / kappa)) * x["mask"]


def perplexity(x, alpha=0.01, low=0.8, high=1.2):
    """The weight of RUCAIBox's core_algos, which loops over prompts, multiplied in."""
    u = -(x["logprob"] * x["mask"]).sum(1) / x["mask"].sum(1).clamp(min=1)
    w = torch.zeros_like(u)
    for rows in groups(x):
        own = u[rows]
        q1, q3 = torch.quantile(own, 0.25), torch.quantile(own, 0.75)
        inside = own[(own >= q1 - 1.5 * (q3 - q1)) & (own <= q3 + 1.5 * (q3 - q1))]
        inside = own if inside.numel() == 0 else inside
        std = inside.std(unbiased=False)
        w[rows] = (own - inside.mean()) / (std if std > 1e-6 else 1.0)
    return x["advantage"] * (1 - alpha * w).clamp(low, high)[:, None] * x["mask"]


def position(x, gamma=0.1):
    """As RUCAIBox's core_algos."""
    mask = x["mask"]
    length = mask.sum(1, keepdim=True).clamp(min=1)
    place = torch.arange(mask.shape[1])[None] / length
    bonus = torch.min(gamma * torch.sigmoid(15 * (place - 0.5)), 0.5 * x["advantage"].abs())
    return (x["advantage"] + x["advantage"].sign() * bonus) * mask


def repo(x, beta=0.01):
    return (x["advantage"] - beta * (x["logprob"] + x["entropy"])) * x["mask"]


def repo_of_batch(x, beta=0.01):
    return (x["advantage"] - beta * (x["logprob"] - masked_mean(x["logprob"], x["mask"]))) * x["mask"]


def repo_rescale(x, beta=0.01):
    A, l = x["advantage"], x["logprob"]
    made = torch.where(A > 0, (A * (1 - beta * l)).clamp(min=0), (A * (1 + beta * l)).clamp(max=0))
    return torch.where(A == 0, A, made) * x["mask"]


def gepo(x, low=0.5, high=0.2, spread_low=0.2, spread_high=0.3):
    own = []
    for rows in groups(x):
        own.append(masked_mean(-x["logprob"][rows], x["mask"][rows]))
    h = torch.stack(own)
    mu, sigma = h.mean(), h.std(unbiased=False)
    h = h[x["group"]][:, None]
    A = x["advantage"]
    A = torch.where((A > 0) & (h < mu - spread_low * sigma), low * A, torch.where((A < 0) & (h > mu + spread_high * sigma), high * A, A))
    return A * x["mask"]


def empg(x, k=1.0, future_k=1.0, zeta=0.1):
    """The pseudo-code of the authors' page: loops over the steps of each trajectory."""
    steps = []
    for b, (row, mask) in enumerate(zip(x["step"], x["mask"], strict=True)):
        own = row[mask]
        if own.numel() == 0:
            continue
        counts = torch.unique_consecutive(own, return_counts=True)[1].tolist()
        at = 0
        for j, n in enumerate(counts):
            steps.append((b, at, at + n, j + 1 == len(counts), x["entropy"][b, at : at + n].mean()))
            at += n
    H = torch.stack([one[4] for one in steps])
    h = (H - H.min()) / (H.max() - H.min() + 1e-8)
    g, f = torch.exp(-k * h), torch.exp(-future_k * h)
    g = g / g.mean()
    made, means = torch.zeros_like(x["advantage"]), []
    for s, (b, begin, end, last, _) in enumerate(steps):
        made[b, begin:end] = x["advantage"][b, begin:end] * g[s] + (0 if last else zeta * f[s + 1])
        means.append(made[b, begin:end].mean())
    return (made - torch.stack(means).mean()) * x["mask"]


def hicra(x, alpha=0.2):
    return (x["advantage"] + alpha * x["advantage"].abs() * x["planning"]) * x["mask"]


def gtpo(x, outcome=1.0, share=0.1, eps=1e-6):
    H, mask, right = x["entropy"].clamp(min=1e-8), x["mask"], x["right"]
    made = torch.zeros_like(H)
    for rows in groups(x):
        reward = torch.zeros(len(rows), H.shape[1])
        for of_right in (True, False):
            own = rows[right[rows] == of_right]
            if len(own) == 0:
                continue
            part = (H[own] if of_right else 1 / H[own]) * mask[own]
            size = outcome + share * mask[own].sum(0) * part / part.sum(0).clamp(min=1e-30)
            reward[right[rows] == of_right] = size if of_right else -size
        counted = reward[mask[rows]]
        std = counted.std(unbiased=False)
        made[rows] = (reward - counted.mean()) / (std + eps) if std > 0 else 0 * reward
    return made * mask


# ---- weights ---------------------------------------------------------------------------------------------------------


def discriminator(x):
    p = x["logprob"].exp()
    return p * (x["entropy"] + x["logprob"])


def clip_b(x, mu=2.5):
    """clipb_advantage.py of Trinity-RFT: what is taken out."""
    S, mask = discriminator(x), x["mask"]
    counted = S[mask]
    mean, std = counted.mean(), counted.std(unbiased=False)
    return ~((S - mean >= -mu * std) | (x["advantage"] >= 0)) & mask


def clip_v(x, mu=8.5, most=1e-4):
    """clipv_advantage.py of Trinity-RFT."""
    D, mask = x["entropy"] * x["sum_p2"] + x["sum_p2_logp"] - discriminator(x), x["mask"]
    std = D[mask].std(unbiased=False)
    out = (D > mu * std) & (x["advantage"] < 0) & mask
    number = int(most * int(mask.sum()))
    if int(out.sum()) > most * int(mask.sum()):
        places = out.flatten().nonzero().squeeze(-1)
        top = torch.topk(D.flatten()[places], max(number, 1)).indices
        out = torch.zeros_like(out).flatten().index_fill_(0, places[top], True).view_as(out)
    return out


def divergence_mask(x, delta=0.15):
    pi, mu = x["logprob"].exp(), x["old_logprob"].exp()
    further = x["advantage"] * (pi - mu - (x["sum_p2"] - x["old_sum_p2"]) / 2) > 0
    return ((~(((pi - mu).abs() > delta) & further)) & x["mask"]).float()


def entropy_sft(x, fraction=0.8, lambda_entropy=0.8):
    """custom_entropy_trainer.py of Light-IF: the largest of the flat scores."""
    score = (-x["logprob"] - lambda_entropy * x["entropy"])[x["mask"]]
    kept = torch.zeros(len(score), dtype=torch.bool)
    kept[torch.topk(score, max(int(fraction * len(score)), 1)).indices] = True
    out = torch.zeros_like(x["mask"])
    out[x["mask"]] = ~kept
    return out


def tea(x, alpha=10.0, most=5.0):
    """As Light-IF's core_algos, about the means of the batch."""
    l, A, mask = x["logprob"], x["advantage"], x["mask"]
    c = (A - masked_mean(A, mask)) * (l - masked_mean(l, mask))
    return (alpha * c.masked_fill(~mask, -math.inf).softmax(1)).clamp(0, most).nan_to_num()


def siren(x, anchor=0.5, share=0.2):
    """As siren's dp_actor: the weight of each token's entropy in the term."""
    H, mask = x["entropy"], x["mask"]
    threshold = torch.quantile(H[mask], 1 - share)
    chosen = ((H >= threshold) & mask).float()
    mean = (x["old_entropy"] * chosen).sum() / chosen.sum()
    (mean - anchor).square()
    return chosen * (mask.sum() / chosen.sum())


def ceeh_entropy(x, factor=5.0):
    w = (1 + x["right"].float() * (factor - 1))[:, None] * x["mask"]
    return w * (x["mask"].sum() / w.sum())


def random_tokens(x, share=0.2):
    """As many tokens at random."""
    score = torch.rand(x["mask"].shape)[x["mask"]]
    factor = torch.zeros_like(x["logprob"])
    kept = torch.zeros(len(score))
    kept[torch.topk(score, max(int(share * len(score)), 1)).indices] = 1.0
    factor[x["mask"]] = kept
    return factor


def random(x):
    """As many tokens as are selected."""
    number = int((x["planning"] & x["mask"]).sum())
    places = x["mask"].flatten().nonzero().squeeze(-1)
    return torch.zeros(x["mask"].numel(), dtype=torch.bool).index_fill_(0, places[torch.randperm(len(places))[:number]], True).view_as(x["mask"])


# ---- rewards ---------------------------------------------------------------------------------------------------------


def pear(x, alpha=1.0):
    T = x["mask"].shape[1]
    place, mask = torch.arange(T)[None], x["mask"]
    begin, end = x["tag"][:, :1], x["tag"][:, 1:]
    think = mask & torch.where(begin >= 0, place < begin, True)
    answer = mask & (begin >= 0) & (place >= end)
    mean = lambda of: (x["entropy"] * of).sum(1) / of.sum(1).clamp(min=1)  # noqa: E731
    return -(mean(think) - alpha * mean(answer)).clamp(min=0).double() * x["right"]


def kl(x, coef=0.001):
    return -coef * ((x["logprob"] - x["old_logprob"]) * x["mask"]).sum(1).double()


def overlong(x, longest=2048, buffer=256, penalty_factor=1.0):
    over = x["length"] - (longest - buffer)
    return torch.clamp(-over / buffer * penalty_factor, max=0).double()


# ---- name → (ours, rival, shapes) ------------------------------------------------------------------------------------

NONE = torch.full((2,), math.nan, dtype=torch.float64)
TOKENS = ("advantage", "logprob", "entropy", "mask")


def call(name, *takes, **keys):
    return lambda x: getattr(methods, name)(*(x[one] for one in takes), **keys)


SHAPING = {
    "entropy_advantage": (call("entropy_advantage", "advantage", "entropy", "mask"), entropy_advantage, SHAPES),
    "perplexity": (call("perplexity", "advantage", "logprob", "mask", "group"), perplexity, SHAPES),
    "position": (call("position", "advantage", "mask"), position, SHAPES),
    "repo": (call("repo", *TOKENS), repo, SHAPES),
    "repo, centre batch": (call("repo", *TOKENS, centre="batch"), repo_of_batch, SHAPES),
    "repo, form rescale": (call("repo", *TOKENS, form="rescale"), repo_rescale, SHAPES),
    "gepo": (lambda x: methods.gepo(x["advantage"], x["h"], x["mask"], x["group"], NONE).advantage, gepo, SHAPES),
    "empg": (call("empg", "advantage", "entropy", "mask", "step"), empg, SHAPES),
    "hicra": (call("hicra", "advantage", "planning", "mask"), hicra, SHAPES),
    "gtpo": (call("gtpo", "entropy", "right", "mask", "group"), gtpo, SHAPES),
    "clip_b": (call("clip_b", "logprob", "entropy", "advantage", "mask"), clip_b, SHAPES),
    "clip_v": (call("clip_v", "logprob", "entropy", "sum_p2", "sum_p2_logp", "advantage", "mask"), clip_v, SHAPES),
    "divergence_mask": (call("divergence_mask", "logprob", "old_logprob", "sum_p2", "old_sum_p2", "advantage", "mask"), divergence_mask, SHAPES),
    "entropy_sft": (call("entropy_sft", "logprob", "entropy", "mask"), entropy_sft, SHAPES),
    "tea": (call("tea", "logprob", "advantage", "mask"), tea, SHAPES),
    "siren": (lambda x: methods.siren(x["entropy"], x["old_entropy"], x["mask"], 0.5).weight, siren, SHAPES),
    "ceeh_entropy": (call("ceeh_entropy", "right", "mask"), ceeh_entropy, SHAPES),
    "random_tokens": (call("random_tokens", "entropy", "mask"), random_tokens, SHAPES),
    "random": (call("random", "planning", "mask", seed=7), random, SHAPES),
}
# They change rewards, which the target does not name.
REWARDS = {
    "pear": (call("pear", "entropy", "mask", "tag", "right"), pear, SHAPES),
    "kl": (call("kl", "logprob", "old_logprob", "mask"), kl, SHAPES),
    "overlong": (lambda x: methods.overlong(x["length"], longest=2048, len=256), overlong, SHAPES[:1]),
}
DRAWN = {"random_tokens", "random"}  # whose values are another draw


def more_inputs(x, generator):
    """What these take beside scripts/benchmarks/methods.py's."""
    B, T = x["mask"].shape
    return {
        "h": -x["logprob"],
        "right": torch.rand(B, generator=generator) < 0.4,
        "planning": torch.rand(B, T, generator=generator) < 0.1,
        "step": (torch.rand(B, T, generator=generator) < 0.01).cumsum(1),
        "tag": torch.stack([x["length"] // 2, x["length"] // 2 + 3], 1),
        "sum_p2_logp": -x["sum_p2"] * x["entropy"] * torch.rand(B, T, generator=generator),
        "old_sum_p2": (x["sum_p2"] + 0.1 * torch.randn(B, T, generator=generator)).clamp(0, 1),
    }
