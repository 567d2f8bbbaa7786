"""grpo_loss, forward and backward, against the straightforward torch code of each mode: [256, 2048], float32, with
grpo_select where the mode needs it.

Two rivals: "loss" computes the loss, its gradient and the statistics that are usual beside that loss (none to four), and
ours runs without statistics; "loss and statistics" computes all the statistics that ours returns, and ours runs with them.
Values first: equal loss and gradient, with and without. The limit is the time of plain copies of as many bytes as must be
moved once (inputs, token losses, slopes, gradient), in the same rounds.
"""

import statistics

import torch

import isentrope

from timing import compare, interleaved

BATCH, LENGTH = 256, 2048
LOW, HIGH, HIGHER, DUAL = 0.2, 0.2, 0.28, 3.0
FRACTION, BAND = 2e-4, (1.0, 5.0)


# ---- the straightforward code, one function a mode -------------------------------------------------------------------


def mean(x, mask):
    return (x * mask).sum() / mask.sum()


def plain_clip(l, old, A, mask, high=HIGH):
    d = torch.clamp(l - old, -20, 20)
    ratio = torch.exp(d)
    free, bound = -A * ratio, -A * torch.clamp(ratio, 1 - LOW, 1 + high)
    larger = torch.maximum(free, bound)
    most = -A * DUAL
    loss = torch.where(A < 0, torch.minimum(most, larger), larger)
    with torch.no_grad():
        stats = (mean(-d, mask), mean((bound > free).float(), mask), mean(((larger > most) & (A < 0)).float(), mask))
    return mean(loss, mask), stats


def plain_clip_higher(l, old, A, mask):
    return plain_clip(l, old, A, mask, HIGHER)


def plain_clip_cov(l, old, A, mask, picked=None):
    d = l - old
    ratio = torch.exp(d)
    free, bound = -A * ratio, -A * torch.clamp(ratio, 1 - LOW, 1 + HIGH)
    keep = torch.ones_like(A)
    with torch.no_grad():
        held = (bound > free) & (mask > 0)
        cov = (A - mean(A, mask)) * (l - mean(l, mask))
        cov[mask == 0] = -torch.inf
        cov[held] = -torch.inf
        count = max(int(FRACTION * mask.sum().item()), 1)
        if picked is None:
            found = torch.nonzero((cov > BAND[0]) & (cov < BAND[1]))
            picked = tuple(found[torch.randperm(len(found))[:count]].unbind(1))
        keep[picked] = 0
        stats = (mean(-d, mask), mean((keep == 0).float(), mask), mean(held.float(), mask))
    return mean(torch.maximum(free, bound) * keep, mask), stats


def plain_kl_cov(l, old, A, mask, picked=None):  # picked: for clip_cov alone; the largest are no choice
    d = l - old
    ratio = torch.exp(d)
    free = -A * ratio
    loss = free + d.abs()
    with torch.no_grad():
        flat = torch.nonzero(mask.reshape(-1) > 0).squeeze(1)
        a, b = A.reshape(-1)[flat], l.reshape(-1)[flat]
        cov = (a - a.mean()) * (b - b.mean())
        top = flat[torch.topk(cov, max(int(FRACTION * len(flat)), 1)).indices]
        stats = (mean(d.abs(), mask),)
    penalised = free.clone()
    penalised.view(-1)[top] = loss.reshape(-1)[top]
    return mean(penalised, mask), stats


def plain_gspo(l, old, A, mask):
    d = l - old
    tokens = mask.sum(1).clamp(min=1)
    sequence = (d * mask).sum(1) / tokens
    ratio = torch.exp(torch.clamp(l - l.detach() + sequence.detach()[:, None], max=10.0))
    free, bound = -A * ratio, -A * torch.clamp(ratio, 1 - LOW, 1 + HIGH)
    loss = torch.maximum(free, bound)
    with torch.no_grad():
        stats = (mean(-d, mask), mean((bound > free).float(), mask))
    return ((loss * mask).sum(1) / tokens).mean(), stats


def plain_cispo(l, old, A, mask):
    d = torch.clamp(l - old, -20, 20)
    ratio = torch.exp(d)
    clipped = torch.clamp(ratio, 1 - LOW, 1 + HIGH)
    loss = -clipped.detach() * A * l
    with torch.no_grad():
        stats = (mean(-d, mask), mean((ratio != clipped).float(), mask))
    return mean(loss, mask), stats


def plain_gpg(l, old, A, mask):
    return mean(-A * l, mask), ()


def plain_dppo(l, old, A, mask, kl=False):
    d = torch.clamp(l - old, -20, 20)
    ratio = torch.exp(d)
    p, q = torch.exp(l), torch.exp(old)
    if kl:
        binary = q * (old - l) + (1 - q) * torch.log((1 - q + 1e-8) / (1 - p + 1e-8))
        valid = torch.where(A > 0, (binary <= HIGH) | (p <= q), (binary <= LOW) | (p >= q))
    else:
        valid = torch.where(A > 0, p - q <= HIGH, p - q >= -LOW)
    valid = valid.detach().float()
    loss = -A * torch.clamp(ratio, max=20.0).detach() * l * valid
    with torch.no_grad():
        stats = (mean(-d, mask), mean(1 - valid, mask), mean((ratio > 20).float() * valid, mask))
    return mean(loss, mask), stats


def plain_dppo_kl(l, old, A, mask):
    return plain_dppo(l, old, A, mask, kl=True)


def plain_sapo(l, old, A, mask):
    d = torch.clamp(l - old, -20, 20)
    tau = torch.where(A > 0, torch.ones_like(A), torch.full_like(A, 1.05))
    loss = -torch.sigmoid(tau * (torch.exp(d) - 1)) * (4 / tau) * A
    with torch.no_grad():
        stats = (mean(-d, mask),)
    return mean(loss, mask), stats


def plain_geo_mean(l, old, A, mask):
    d = l - old
    sign, near = torch.sign(A), torch.clamp(d, -LOW, HIGH)
    least = sign * torch.min(sign * d, sign * near)
    tokens = mask.sum(1).clamp(min=1)
    ratio = torch.exp((least * mask).sum(1) / tokens)
    with torch.no_grad():
        held = d != near
        stats = (mean(-d, mask), mean((held & (A > 0)).float(), mask), mean((held & (A < 0)).float(), mask))
    return (-(A * mask).sum(1) / tokens * ratio).mean(), stats


def plain_vespo(l, old, A, mask):
    with torch.no_grad():
        log_w = (torch.clamp(l - old, -20, 20) * mask).sum(1, keepdim=True).clamp(-18.42068, 20)
        up = A >= 0
        k, rate = torch.where(up, 2.0, 3.0), torch.where(up, 3.0, 2.0)
        phi = torch.exp(rate + k * log_w - rate * torch.exp(log_w)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return mean(-phi * A * l, mask), (mean(phi, mask),)


def plain_ce_gppo(l, old, A, mask):
    ratio = torch.exp(l - old)
    fixed = ratio.detach()
    low, high = (ratio < 1 - LOW) & (A < 0), (ratio > 1 + HIGH) & (A > 0)
    loss = torch.where(low, -0.75 * (1 - LOW) / fixed * ratio * A, torch.where(high, -(1 + HIGH) / fixed * ratio * A, -ratio * A))
    with torch.no_grad():
        stats = (mean(old - l, mask), mean((low | high).float(), mask))
    return mean(loss, mask), stats


def plain_dro(l, old, A, mask):
    d = l - old
    with torch.no_grad():
        stats = (mean(-d, mask),)
    return mean(-(l * A - 0.5 * 0.05 * d.square()), mask), stats


def plain_with_reference(l, old, A, mask, ref, entropy):
    loss, stats = plain_clip(l, old, A, mask)
    near = torch.clamp(ref - l, -20, 20)
    k3 = mean(torch.clamp(near.exp() - near - 1, -10, 10), mask)
    bonus = mean(entropy, mask)
    return loss + 0.001 * k3 - 0.001 * bonus, (*stats, k3.detach(), bonus.detach())


@torch.no_grad()
def plain_statistics(l, old, A, mask, ratio=None, ref=None, entropy=None, selected=None):
    """All that grpo_loss returns as statistics, by the formulas of kernels/grpo_loss.h."""
    valid = mask > 0
    d = torch.clamp(l - old, -20, 20)
    ratio = torch.exp(d) if ratio is None else ratio
    cov = (A - mean(A, mask)) * (l - mean(l, mask))
    low, high = ((ratio < 1 - LOW) & (A < 0)).float(), ((ratio > 1 + HIGH) & (A > 0)).float()
    dual = ((ratio > DUAL) & (A < 0)).float()
    stats = [mask.sum(), (mask.sum(1) > 0).sum(), mean(A, mask), mean(l, mask), mean(ratio, mask)]
    stats += [ratio[valid].max(), mean(-d, mask), mean(d * d / 2, mask), mean(torch.exp(d) - 1 - d, mask)]
    stats += [mean(low + high, mask), mean(low, mask), mean(high, mask), mean(dual, mask), mean(cov, mask), cov[valid].max()]
    if ref is not None:
        near = torch.clamp(l - ref, -20, 20)
        k3 = torch.clamp(torch.exp(-near) + near - 1, max=10)
        stats += [mean(l - ref, mask), mean((l - ref) ** 2 / 2, mask), mean(k3, mask)]
    if entropy is not None:
        average = mean(entropy, mask)
        stats += [average, mean((entropy - average) ** 2, mask).sqrt()]
    if selected is not None:
        stats.append(mean(selected.float(), mask))
    return stats


# ---- the cases -------------------------------------------------------------------------------------------------------

# name: (mode, options of grpo_loss, the straightforward code)
CASES = {
    "clip": ("clip", {"dual_clip": DUAL}, plain_clip),
    "clip_higher": ("clip_higher", {"dual_clip": DUAL}, plain_clip_higher),
    "clip_cov": ("clip_cov", {}, plain_clip_cov),
    "kl_cov": ("kl_cov", {}, plain_kl_cov),
    "gspo": ("gspo", {"aggregate": "seq-mean-token-mean"}, plain_gspo),
    "cispo": ("cispo", {}, plain_cispo),
    "gpg": ("gpg", {}, plain_gpg),
    "dppo_tv": ("dppo_tv", {}, plain_dppo),
    "dppo_kl": ("dppo_kl", {}, plain_dppo_kl),
    "sapo": ("sapo", {}, plain_sapo),
    "geo_mean": ("geo_mean", {"aggregate": "seq-mean-token-mean"}, plain_geo_mean),
    "vespo": ("vespo", {}, plain_vespo),
    "ce_gppo": ("ce_gppo", {}, plain_ce_gppo),
    "dro": ("dro", {}, plain_dro),
    "clip, reference, entropy": ("clip", {"dual_clip": DUAL, "ref_kl_coef": 0.001, "entropy_coef": 0.001}, plain_with_reference),
}


def draw(device):
    """logprob, old_logprob, advantage, mask, ref_logprob, entropy, each [BATCH, LENGTH]; sequences of 1/2 to all of LENGTH."""
    generator = torch.Generator().manual_seed(1)
    logprob = -torch.empty(BATCH, LENGTH).exponential_(1.0, generator=generator)
    # No probability is above 1: dppo takes it, and ours bounds it there.
    old, ref = ((logprob + s * torch.randn(BATCH, LENGTH, generator=generator)).clamp_max(0) for s in (0.1, 0.3))
    advantage = torch.randn(BATCH, 1, generator=generator).expand(BATCH, LENGTH).contiguous()
    entropy = torch.rand(BATCH, LENGTH, generator=generator)
    tokens = torch.randint(LENGTH // 2, LENGTH + 1, (BATCH, 1), generator=generator)
    mask = torch.arange(LENGTH) < tokens
    return [x.to(device) for x in (logprob, old, advantage, mask, ref, entropy)]


def passes(name, inputs):
    """Functions, each one forward and one backward pass → (loss, gradient, what was selected or None)."""
    logprob, old, advantage, mask, ref, entropy = inputs
    mode, options, plain = CASES[name]
    leaf, entropy_leaf, float_mask = logprob.clone().requires_grad_(), entropy.clone().requires_grad_(), mask.float()
    extras = "ref_kl_coef" in options
    seed = iter(range(1 << 30))

    def ours(with_statistics):
        leaf.grad = entropy_leaf.grad = None
        more, selected = dict(options), None
        if mode.endswith("_cov"):
            selected = isentrope.grpo_select(
                leaf, old, advantage, mask, mode=mode, seed=next(seed), cov_ratio=FRACTION
            )
            more["selected"] = selected
        if extras:
            more.update(ref_logprob=ref, entropy=entropy_leaf)
        loss = isentrope.grpo_loss(leaf, old, advantage, mask, mode=mode, statistics=with_statistics, **more).loss
        loss.backward()
        return loss.detach(), leaf.grad, selected

    def loss(**given):
        leaf.grad = entropy_leaf.grad = None
        value, _ = plain(leaf, old, advantage, float_mask, *((ref, entropy_leaf) if extras else ()), **given)
        value.backward()
        return value.detach(), leaf.grad, None

    def loss_and_statistics():
        plain_statistics(logprob, old, advantage, float_mask, ref=ref if extras else None, entropy=entropy if extras else None,
                         selected=mask if mode.endswith("_cov") else None)  # fmt: skip
        return loss()

    return {
        "ours, loss": lambda: ours(False),
        "ours, loss and statistics": lambda: ours(True),
        "loss": loss,
        "loss and statistics": loss_and_statistics,
    }


def check_values(name, functions):
    """Loss and gradient of ours and of the straightforward code; of clip_cov with our choice of tokens."""
    for ours in ("ours, loss", "ours, loss and statistics"):
        value, gradient, selected = functions[ours]()
        expected, expected_gradient, _ = functions["loss"](
            **({} if selected is None else {"picked": tuple(selected.nonzero().unbind(1))})
        )
        where = f"{name}: {ours}"
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=lambda m: f"{where}: loss: {m}")
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-9, msg=lambda m: f"{where}: gradient: {m}")


def rows(rounds=15, threads=1, device="cpu"):
    torch.set_num_threads(threads)
    inputs = draw(device)
    source, target = inputs[0], torch.empty_like(inputs[0])

    table = []
    for name, (mode, options, _) in CASES.items():
        functions = passes(name, inputs)
        check_values(name, functions)
        contenders = {**functions, "copy": lambda: target.copy_(source)}
        seconds = interleaved(contenders, rounds)
        arrays = 3 + 2 + 1 + (4 if "ref_kl_coef" in options else 0)  # inputs, token losses and slopes, gradient; float32
        moved = arrays / 2  # in copies, each of which reads one array and writes one
        for rival in ("loss", "loss and statistics"):
            ours = f"ours, {rival}"
            share = statistics.median(moved * copy / mine for mine, copy in zip(seconds[ours], seconds["copy"]))
            table.append(
                {
                    "op": f"grpo_loss {name}",
                    "shape": [BATCH, LENGTH],
                    "dtype": "float32",
                    "threads": threads,
                    "device": device,
                    "selection": mode.endswith("_cov"),
                    **compare(seconds, ours, rival),
                    "target": 3,
                    "share_of_limit": share,
                }
            )
    return table
