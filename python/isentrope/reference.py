"""The mathematics of every op in plain torch: slow, obvious, differentiable by torch, any dtype. Tests judge by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isentrope.reference_activation import crrelu  # noqa: F401
from isentrope.reference_hierarchical import hierarchical_attention as hierarchical_attention
from isentrope.reference_hierarchical import hierarchical_weights as hierarchical_weights
from isentrope.reference_recurrence import dynamical_system as dynamical_system  # what has a state, in a file of its own
from isentrope.reference_recurrence import gated_delta_rule as gated_delta_rule
from isentrope.reference_recurrence import linear_attention as linear_attention

# ---- entropy_attention -----------------------------------------------------------------------------------------------


def entropy_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None = None, softcap: float | None = None, scale: float | None = None,
    temperature: Tensor | None = None, key_lengths: Tensor | None = None, query_start: Tensor | None = None,
    cu_seqlens: Tensor | None = None, max_seqlen: int | None = None, block_mask: Tensor | None = None, block_size: int | None = None,
    gates: Tensor | None = None, sinks: Tensor | None = None, slopes: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """q [B, H, T, D], k, v [B, G, S, D] → out [B, H, T, D], lse, entropy, max_logit [B, H, T]; packed as the op says."""
    if cu_seqlens is not None:
        ends, parts = cu_seqlens.tolist(), []
        for i, (a, b) in enumerate(zip(ends, ends[1:])):
            one = [x[a:b].transpose(0, 1)[None] for x in (q, k, v)]
            t = temperature[:, a:b] if temperature is not None and temperature.dim() == 2 else temperature
            n = 0 if block_size is None else -(-(b - a) // block_size)
            mask, gate = (x if x is None else x[i : i + 1, :, :n] for x in (block_mask, gates))
            mask, gate = (x if x is None or x.dtype in (torch.int32, torch.int64) else x[..., :n] for x in (mask, gate))
            parts.append(entropy_attention(*one, causal=causal, window=window, softcap=softcap, scale=scale, temperature=t, block_mask=mask,
                                           block_size=block_size, gates=gate, sinks=sinks, slopes=slopes))  # fmt: skip
        return tuple(torch.cat([x[0].transpose(0, 1) for x in xs]) for xs in zip(*parts))
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
    s = q @ k.transpose(-1, -2) * (D**-0.5 if scale is None else scale)
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    rows, keys = torch.arange(T, device=q.device), torch.arange(S, device=q.device)
    start = torch.full((B,), S - T, device=q.device) if query_start is None else query_start
    place = (start if start.dim() == 2 else start[:, None] + rows)[:, None, :, None]
    if slopes is not None:
        s = s - slopes[:, None, None] * (place - keys).abs()
    if temperature is not None:  # [H], [H, T] or [B, H, T]
        s = s / (temperature[:, None, None] if temperature.dim() == 1 else temperature[..., None])
    seen = keys < (S if key_lengths is None else key_lengths.view(B, 1, 1, 1)) + torch.zeros_like(place)
    if causal:
        seen = seen & (keys <= place) & (keys > place - (window or S + T + 1))
    if block_mask is not None and block_size is not None:
        if block_mask.dtype != torch.bool:  # columns, -1 for none
            block_mask = (block_mask[..., None] == torch.arange(-(-S // block_size), device=q.device)).any(-2)
        seen = seen & block_mask[:, :, rows // block_size][..., keys // block_size]
        if gates is not None:
            g = gates.expand(B, H, block_mask.shape[2], -1)[:, :, rows // block_size][..., keys // block_size]
            seen, s = seen & (g > 0), s + g.where(g > 0, 1).log()
    if sinks is not None:  # a column more, without a value
        s = torch.cat([s, sinks.to(s.dtype).view(1, H, 1, 1).expand(B, H, T, 1)], -1)
        seen = torch.cat([seen.expand(B, H, T, S), torch.ones_like(s[..., -1:], dtype=torch.bool)], -1)
    s = s.masked_fill(~seen, -torch.inf)
    none = ~seen.any(-1, keepdim=True).expand(B, H, T, 1)  # softmax over no key: 0 instead of NaN
    logp = torch.log_softmax(s.masked_fill(none, 0), -1)
    p = logp.exp().masked_fill(~seen, 0)
    entropy = -(p * logp.masked_fill(~seen, 0)).sum(-1)
    lse = s.masked_fill(none, 0).logsumexp(-1).masked_fill(none[..., 0], -torch.inf)
    largest = s.max(-1).values if s.shape[-1] else torch.full_like(lse, -torch.inf)
    return p[..., :S] @ v, lse, entropy, largest


# ---- merge_attention_states ------------------------------------------------------------------------------------------


def merge_attention_states(out: Tensor, lse: Tensor, entropy: Tensor, max_logit: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out [N, ..., D], the others [N, ...], over disjoint keys → the same without N, over all keys."""
    total = lse.logsumexp(0)
    weight = (lse - total.masked_fill(total == -torch.inf, 0)).exp()
    minus_log = (total - lse).masked_fill(weight == 0, 0)
    return (weight[..., None] * out).sum(0), total, (weight * (entropy + minus_log)).sum(0), max_logit.max(0).values


# ---- gathered_attention, scatter_mean --------------------------------------------------------------------------------


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, *, key_index: Tensor | None = None, causal: bool, softcap: float | None = None,
    scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """q [B, H, T, D], k, v [B, G, S, D], index [B, H, C, w], key_index [B, H, C, m] → out [B, H, C, w, D], statistics [B, H, C, w]."""
    (B, H, _, D), G, keys = q.shape, k.shape[1], index if key_index is None else key_index
    k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
    b, h = torch.arange(B)[:, None, None, None], torch.arange(H)[:, None, None]
    q, k, v = (x[b, h, at.clamp(min=0)] for x, at in ((q, index), (k, keys), (v, keys)))
    s = q @ k.transpose(-1, -2) * (D**-0.5 if scale is None else scale)
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    seen = (index >= 0)[..., None] & (keys >= 0)[..., None, :]
    if causal:
        seen = seen & (keys[..., None, :] <= index[..., None])
    s, none = s.masked_fill(~seen, -torch.inf), ~seen.any(-1, keepdim=True)
    logp = torch.log_softmax(s.masked_fill(none, 0), -1)
    p = logp.exp().masked_fill(~seen, 0)
    lse = s.masked_fill(none, 0).logsumexp(-1).masked_fill(none[..., 0], -torch.inf)
    return p @ v, lse, -(p * logp.masked_fill(~seen, 0)).sum(-1), s.max(-1).values


def scatter_mean(x: Tensor, index: Tensor, length: int) -> Tensor:
    """x [B, H, C, w, D] or [B, H, C, w], index [B, H, C, w] → [B, H, length, D] or [B, H, length]; -1: nowhere."""
    hit = (index[..., None] == torch.arange(length)).to(x.dtype)  # [B, H, C, w, T]
    mean = hit / hit.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.einsum("bhcwt,bhcwd->bhtd", mean, x) if x.dim() == 5 else torch.einsum("bhcwt,bhcw->bht", mean, x)


# ---- sigma_linear ----------------------------------------------------------------------------------------------------


def sigma_linear(
    x: Tensor, weight: Tensor, gamma: Tensor, u: Tensor, bias: Tensor | None = None, *, sigma_grad: str = "through"
) -> tuple[Tensor, Tensor]:
    """x [..., in], weight [out, in], gamma [], u [in], bias [out] → y [..., out], σ []; through u and v nothing flows."""
    p = weight @ u
    v = p.detach() / p.detach().norm().where(p.any(), 1)
    sigma = v @ p if sigma_grad == "through" else (v @ p).detach()
    scaled = gamma / sigma * weight if p.any() else 0 * weight
    y = x @ scaled.T
    return y if bias is None else y + bias, sigma


# ---- power_step ------------------------------------------------------------------------------------------------------


def power_step(
    weights: Sequence[Tensor], us: Sequence[Tensor], *, steps_max: int = 20, tolerance: float = 1e-4
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[int, ...]]:
    """weights [out_i, in_i], us [in_i] → new us, σ of each, steps of each. us stay as they are."""
    results = []
    for weight, u in zip(weights, us):
        for steps in range(1, steps_max + 1):
            p = weight @ u
            q = weight.T @ p
            before, norm = p.norm(), q.norm()
            sigma = norm / before
            if not 0 < norm < torch.inf:  # W u = 0, or not finite
                zero = before == 0 or norm == 0
                sigma, steps = torch.zeros_like(sigma) if zero else sigma * torch.nan, steps - 1
                break
            u = q / norm
            if tolerance > 0 and sigma - before <= tolerance * sigma:
                break
        results.append((u, sigma, steps))
    found: Any = tuple(zip(*results)) or ((), (), ())
    return found


# ---- token_entropy ---------------------------------------------------------------------------------------------------


def kept_tokens(logits: Tensor, temperature: float, keep: Any) -> Tensor:
    """logits [..., V] → which tokens isentrope.TopP(share) or isentrope.WithoutLowest(share) keep; of equal logits the lower ids first.
    keep may be that mask."""
    if isinstance(keep, Tensor):
        return keep
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices
    place = order.argsort(-1)  # of each token in that order
    if type(keep).__name__ == "WithoutLowest":
        return place < logits.shape[-1] - math.floor(keep.share * logits.shape[-1])
    sums = torch.softmax(logits / temperature, -1).gather(-1, order).cumsum(-1)
    before = torch.nn.functional.pad(sums[..., :-1], (1, 0))
    return (before < keep.share if keep.share < 1 else torch.ones_like(before, dtype=torch.bool)).gather(-1, place)


def token_entropy(
    logits: Tensor, target: Tensor, *, temperature: float = 1.0, ignore_index: int = -100, keep: Any = None
) -> tuple[Tensor, ...]:
    """logits [..., V], target [...] → logprob, entropy, lse, Σp², Σp² log p, with keep kept_entropy, each [...]; ignored rows are 0."""
    s = logits / temperature
    logp = torch.log_softmax(s, dim=-1)
    p = logp.exp()
    plogp = p * logp.masked_fill(p == 0, 0)  # 0 log 0 = 0
    valid = target != ignore_index
    logprob = logp.gather(-1, target.where(valid, 0)[..., None])[..., 0]
    rows = [logprob, -plogp.sum(-1), s.logsumexp(-1), (p * p).sum(-1), (p * plogp).sum(-1)]
    if keep is not None:
        logq = torch.log_softmax(s.masked_fill(~kept_tokens(logits.detach(), temperature, keep), -torch.inf), dim=-1)
        q = logq.exp()
        rows.append(-(q * logq.masked_fill(q == 0, 0)).sum(-1))
    return tuple(row.where(valid, 0) for row in rows)


# ---- linear_token_entropy --------------------------------------------------------------------------------------------


def linear_token_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, bias: Tensor | None = None, softcap: float | None = None,
    temperature: float = 1.0, ignore_index: int = -100, keep: Any = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """hidden [..., C], weight [V, C], target [...] → as token_entropy."""
    z = torch.nn.functional.linear(hidden, weight, bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return token_entropy(z, target, temperature=temperature, ignore_index=ignore_index, keep=keep)


# ---- window_entropy --------------------------------------------------------------------------------------------------


def window_entropy(
    entropy: Tensor, mask: Tensor, *, before: int, after: int, shrink: bool = False, at: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """entropy, mask [B, T] → mean, n [B, T] of the windows t - before … t + after; n is 0 where there is none."""
    T = entropy.shape[1]
    t = torch.arange(T, device=entropy.device)
    inside = (t[None, :] >= t[:, None] - before) & (t[None, :] <= t[:, None] + after)  # [T, T]: s in window(t)
    holds = inside & (mask != 0)[:, None, :]  # [B, T, T]
    n = holds.sum(-1)
    n = n * (mask != 0) * (1 if at is None else (at != 0)) * (1 if shrink else n == before + after + 1)
    sums = torch.where(holds, entropy[:, None, :], 0).sum(-1)
    return torch.where(n > 0, sums / n.clamp_min(1), 0), n


def window_select(mean: Tensor, n: Tensor, *, threshold: str, level: float, scope: str = "row") -> tuple[Tensor, Tensor]:
    """→ high [B, T], threshold [B] or []; one window after the other."""
    rows = [[(m.item(), (b, t)) for t, m in enumerate(mean[b]) if n[b, t] > 0] for b in range(len(mean))]
    high, levels = torch.zeros_like(n, dtype=torch.bool), []
    for group in [sum(rows, [])] if scope == "global" else rows:
        values = torch.tensor([m for m, _ in group], dtype=mean.dtype)
        if threshold == "value":
            levels.append(level)
        elif not group:
            levels.append(math.inf)
        elif threshold == "quantile":
            levels.append(torch.quantile(values, level).item())
        else:
            ranked = sorted(group, key=lambda x: -x[0])[: max(1, math.ceil(level * len(group)))]  # sorted is stable
            levels.append(ranked[-1][0])
            for _, (b, t) in ranked:
                high[b, t] = True
    if scope == "batch":
        there = [x for x, row in zip(levels, rows) if row]
        levels = [level if threshold == "value" else sum(there) / len(there) if there else math.inf]
    found = torch.tensor(levels, dtype=mean.dtype)
    if scope != "row":
        found = found[0]
    if threshold != "top_fraction":
        high = (mean >= (found[:, None] if scope == "row" else found)) & (n > 0)
    return high, found


# ---- grpo_select -----------------------------------------------------------------------------------------------------


def grpo_covariance(logprob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """c [B, T]; 0 where mask is False."""
    a, l = (x.where(mask, 0) for x in (advantage, logprob))
    tokens = mask.sum().clamp(min=1)
    return ((a - a.sum() / tokens) * (l - l.sum() / tokens)).where(mask, 0)


def grpo_candidates(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, mask: Tensor, *, cov_lower: float = 1.0, cov_upper: float = 5.0,
    clip_low: float = 0.2, clip_high: float = 0.2,
) -> Tensor:  # fmt: skip
    """[B, T] bool: what clip_cov chooses among."""
    c, r = grpo_covariance(logprob, advantage, mask), (logprob - old_logprob).clamp(-20, 20).exp()
    held = torch.where(advantage > 0, r > 1 + clip_high, r < 1 - clip_low) & (advantage != 0)
    return mask & ~held & (c > cov_lower) & (c < cov_upper)


def philox(seed: int, low: int) -> list[int]:
    """The four 32-bit words of Philox4x32-10 for a 64-bit key and the counter (low, 0)."""
    word, k = 0xFFFFFFFF, [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    c = [low & word, low >> 32, 0, 0]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & word, p0 >> 32 ^ c[3] ^ k[1], p0 & word]
        k = [k[0] + 0x9E3779B9 & word, k[1] + 0xBB67AE85 & word]
    return c


def grpo_select(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, mask: Tensor, *, mode: str, seed: int, cov_ratio: float,
    minimum: int = 1, **band: float,
) -> Tensor:  # fmt: skip
    """All [B, T] → [B, T] bool."""
    among = grpo_candidates(logprob, old_logprob, advantage, mask, **band) if mode.endswith("clip_cov") else mask
    count = min(max(int(cov_ratio * mask.sum().item()), minimum), among.sum().item())
    among = mask if mode.startswith("random") else among
    if mode == "kl_cov":
        rank = (-grpo_covariance(logprob, advantage, mask).float()).flatten().tolist()
    else:
        rank = [philox(seed, j // 4)[j % 4] for j in range(mask.numel())]
    order = sorted(among.flatten().nonzero().flatten().tolist(), key=lambda j: (rank[j], j))
    selected = torch.zeros(mask.numel(), dtype=torch.bool)
    selected[order[:count]] = True
    return selected.view(mask.shape).to(mask.device)


# ---- grpo_loss -------------------------------------------------------------------------------------------------------


def grpo_policy_term(
    mode: str, l: Tensor, old: Tensor, A: Tensor, mask: Tensor, selected: Tensor | None = None, *, clip_low: float = 0.2,
    clip_high: float | None = None, dual_clip: float | None = None, delta: float | None = None, kl_cov_coef: float = 1.0,
    tau_pos: float = 1.0, tau_neg: float = 1.05, vespo_k_pos: float = 2.0, vespo_lambda_pos: float = 3.0, vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0, gppo_beta1: float = 0.75, gppo_beta2: float = 1.0, dro_beta: float = 0.05,
) -> Tensor:  # fmt: skip
    """All [B, T] → [B, T]; the tensors are 0 where mask is False."""
    d = (l - old).clamp(-20, 20)
    high = clip_high if clip_high is not None else 0.28 if mode == "clip_higher" else clip_low
    r, one = d.exp(), (l - l.detach()).exp()

    def either(where: Tensor, yes: float, no: float) -> Tensor:
        return torch.full_like(l, yes).where(where, no).detach()

    if mode in ("gspo", "luspo"):
        r = (l - l.detach() + grpo_sequence_log_ratio(mode, l, old, A, mask).detach()).clamp(-20, 10).exp()
    if mode == "gpg":
        return -A * l
    if mode == "dro":
        return -A * l + dro_beta / 2 * d**2
    if mode == "cispo":
        return -r.clamp(1 - clip_low, 1 + high).detach() * A * l
    if mode == "reinforce":
        return -r.clamp(max=2.0 if delta is None else delta).detach() * A * l
    if mode.startswith("dppo"):
        p, q = l.clamp(max=0).exp(), old.clamp(max=0).exp()
        D = p - q
        if mode == "dppo_kl":
            D = D.sign() * (q * (old - l) + (1 - q) * ((1 - q + 1e-8) / (1 - p + 1e-8)).log())
        outside = torch.where(A > 0, D > high, D < -clip_low)
        return torch.where(outside, 0, -r.clamp(max=20.0 if delta is None else delta).detach() * A * l)
    if mode == "sapo":
        tau = either(A > 0, tau_pos, tau_neg)
        return -A * 4 / tau * torch.sigmoid(tau * (r - 1))
    if mode == "vespo":
        log_w = grpo_sequence_log_ratio(mode, l, old, A, mask).detach().clamp(math.log(1e-8), 20)
        k, lam = either(A < 0, vespo_k_neg, vespo_k_pos), either(A < 0, vespo_lambda_neg, vespo_lambda_pos)
        return -(k * log_w + lam * (1 - log_w.exp())).exp() * A * l
    if mode == "geo_mean":
        free = ~torch.where(A > 0, l - old > high, (l - old < -clip_low) & (A < 0))
        log_g = grpo_sequence_log_ratio(mode, l, old, A, mask, clip_low, high).detach()
        return -A * torch.where(free, l - l.detach() + log_g, log_g).clamp(-20, 10).exp()
    clipped = r.clamp(1 - clip_low, 1 + high)
    loss = torch.maximum(-A * r, -A * clipped)
    if mode == "ce_gppo":
        beta = either(A < 0, gppo_beta1, gppo_beta2)
        loss = torch.where(-A * clipped > -A * r, -beta * A * clipped.detach() * one, loss)
    bound = dual_clip if delta is None else delta
    if bound is not None:
        loss = torch.where(A < 0, torch.minimum(loss, -A * bound), loss)
    if mode == "clip_cov":
        loss = loss.where(~selected, 0)
    elif mode == "kl_cov":
        rounding = 2.0**-20 * torch.minimum(-l, -old).clamp(min=1)
        loss = -A * r + kl_cov_coef * d.abs().where(selected & mask & (d.abs() > rounding), 0)
    return loss


def grpo_sequence_log_ratio(mode: str, l: Tensor, old: Tensor, A: Tensor, mask: Tensor, low: float = 0.2, high: float = 0.2) -> Tensor:
    """[B, 1]: log s of gspo and luspo, log g of geo_mean, log w of vespo, before their clamps."""
    d = l - old
    if mode == "geo_mean":
        d = torch.where(A.signbit(), d.clamp(min=-low), d.clamp(max=high))  # A may be -0.0: a factor of 0 keeps the side
    total = (d.clamp(-20, 20) if mode == "vespo" else d).where(mask, 0).sum(1, keepdim=True)
    return total if mode == "vespo" else total / mask.sum(1, keepdim=True).clamp(min=1)


def grpo_token_loss(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, mask: Tensor, *, selected: Tensor | None = None,
    ref_logprob: Tensor | None = None, ref_kl_weight: Tensor | None = None, entropy: Tensor | None = None, mode: str = "clip",
    ref_kl: str = "k3", ref_kl_coef: float = 0.0, entropy_coef: float = 0.0, **options: Any,
) -> Tensor:  # fmt: skip
    """All [B, T] → [B, T]; 0 where mask is False. options of grpo_policy_term."""
    l, old, A = (x.where(mask, 0) for x in (logprob, old_logprob, advantage))
    loss = grpo_policy_term(mode, l, old, A, mask, selected, **options)
    if ref_kl_coef:
        delta = l - ref_logprob.where(mask, 0)
        near = delta.clamp(-20, 20)
        value = {"k1": delta, "k2": delta**2 / 2, "k3": ((-near).exp() + near - 1).clamp(max=10)}
        kl = value[ref_kl[:2]]
        if ref_kl != ref_kl[:2]:  # the gradient of k2
            kl = kl.detach() + value["k2"] - value["k2"].detach()
        if ref_kl == "k3_is":
            kl = (l - old).clamp(-20, 20).exp().detach() * kl
        weight = 1 if ref_kl_weight is None else ref_kl_weight.where(mask, 0)
        loss = loss + ref_kl_coef * weight * kl
    if entropy_coef:
        loss = loss - entropy_coef * entropy.where(mask, 0)
    return loss.where(mask, 0)


def grpo_loss(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, mask: Tensor, *, aggregate: str = "token-mean",
    normalizer: Tensor | float | None = None, **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """loss [] and token loss [B, T]; options of grpo_token_loss."""
    token_loss = grpo_token_loss(logprob, old_logprob, advantage, mask, **options)
    tokens, sums = mask.sum(1), token_loss.sum(1)
    if aggregate == "seq-mean-token-mean":
        sums = sums / tokens.clamp(min=1)
    sequences, length = (tokens > 0).sum(), torch.tensor(mask.shape[1])
    counts = {"token-mean": tokens.sum(), "seq-mean-token-sum-norm": sequences * length, "token-sum-norm": length, "token-sum": 1}
    divisor = counts.get(aggregate, sequences) if normalizer is None else normalizer
    return (sums.sum() / divisor if tokens.any() else sums.sum()), token_loss


def grpo_stats(
    logprob: Tensor, old_logprob: Tensor, advantage: Tensor, mask: Tensor, *, selected: Tensor | None = None,
    ref_logprob: Tensor | None = None, entropy: Tensor | None = None, mode: str = "clip", clip_low: float = 0.2,
    clip_high: float | None = None, dual_clip: float | None = None, delta: float | None = None, **_: Any,
) -> dict[str, float]:  # fmt: skip
    """The statistics by name, of at least one token that counts."""
    none = torch.zeros_like(mask, dtype=torch.bool)
    l, A, old = logprob[mask], advantage[mask], old_logprob[mask]
    H = (l * 0 if entropy is None else entropy[mask]).double()
    d = (l - old).clamp(-20, 20)
    r, upper = d.exp(), clip_high if clip_high is not None else 0.28 if mode == "clip_higher" else clip_low
    if mode in ("gspo", "luspo", "geo_mean", "vespo"):
        zeroed = (x.where(mask, 0) for x in (logprob, old_logprob, advantage))
        log_r = grpo_sequence_log_ratio(mode, *zeroed, mask, clip_low, upper).expand_as(logprob)[mask]
        r = log_r.clamp(*((math.log(1e-8), 20) if mode == "vespo" else (-20, 10))).exp()
    gap = l * 0 if ref_logprob is None else l - ref_logprob[mask]
    c = grpo_covariance(logprob, advantage, mask)[mask]
    x, low_bound, high_bound, bound = r, 1 - clip_low, 1 + upper, delta or dual_clip
    if mode == "geo_mean":
        x, low_bound, high_bound = l - old, -clip_low, upper
    elif mode.startswith("dppo"):
        p, q = l.clamp(max=0).exp(), old.clamp(max=0).exp()
        kl = q * (old - l) + (1 - q) * ((1 - q + 1e-8) / (1 - p + 1e-8)).log()
        x, low_bound, high_bound, bound = p - q if mode == "dppo_tv" else (p - q).sign() * kl, -clip_low, upper, delta or 20.0
    elif mode == "reinforce":
        low_bound, high_bound, bound = 0.0, delta or 2.0, None
    everywhere, nowhere = (True, True), (False, False)
    by_mode = {"cispo": everywhere, "reinforce": everywhere, "gpg": nowhere, "kl_cov": nowhere, "sapo": nowhere, "vespo": nowhere, "dro": nowhere}
    may_low, may_high = by_mode.get(mode, (A <= 0 if mode.startswith("dppo") else A < 0, A > 0))
    low, high = (x < low_bound) & may_low, (x > high_bound) & may_high
    dual = ~low & ~high & (r > (bound or math.inf)) & (mode.startswith("dppo") | (A < 0))
    near = gap.clamp(-20, 20)
    values = {
        "tokens": mask.sum(), "sequences": mask.any(1).sum(), "advantage/mean": A.mean(), "logprob/mean": l.mean(),
        "entropy/mean": H.mean(), "entropy/std": H.std(correction=0), "ratio/mean": r.mean(), "ratio/max": r.max(),
        "kl/k1": -d.mean(), "kl/k2": (d**2 / 2).mean(), "kl/k3": (d.exp() - 1 - d).mean(), "ref_kl/k1": gap.mean(),
        "ref_kl/k2": (gap**2 / 2).mean(), "ref_kl/k3": ((-near).exp() + near - 1).clamp(max=10).mean(),
        "clip/frac": (low | high).double().mean(), "clip/low": low.double().mean(), "clip/high": high.double().mean(),
        "clip/dual": dual.double().mean(), "cov/mean": c.mean(), "cov/max": c.max(),
        "select/frac": (none if selected is None else selected)[mask].double().mean(),
    }  # fmt: skip
    return {name: value.item() for name, value in values.items()}
