"""The weights and the correction of scripts/benchmarks/methods.py: each against the released Python code of its paper in its form, or the
obvious torch code where none is released."""

import math

import torch

from isentrope import methods

from timing import compare, interleaved

# ---- the rivals ------------------------------------------------------------------------------------------------------


def torch_top_entropy(entropy, mask, fraction=0.2):
    """As TRL 1.16.0: a quantile, then a comparison. torch.quantile takes at most 2^24 values."""
    threshold = torch.quantile(entropy[mask], 1 - fraction)
    return ((entropy * mask >= threshold) & mask).float()


def torch_surprisal_band(logprob, entropy, mask, low=0.1, high=3.0):
    ratio = -logprob / entropy
    return ((ratio >= low) & (ratio <= high) & mask).float()


def torch_entropy_ratio_band(entropy, old_entropy, mask, low=0.95, high=1.05):
    ratio = (entropy + 1e-8) / (old_entropy + 1e-8)
    return ((ratio > low) & (ratio < high) & mask).float()


def torch_steer(logprob, old_logprob, entropy, advantage, mask, low=0.8, high=1.2):
    p = logprob.exp().clamp(1e-8, 1 - 1e-8)
    old = old_logprob.exp().clamp(1e-8, 1.0)
    change = advantage / old * (p * (1 - p) ** 2 * (p.log() + entropy))
    if not torch.isfinite(change).all():
        change = torch.where(torch.isfinite(change), change, torch.zeros_like(change))
    change = change.abs()
    own = change[mask]
    least, most = own.min(), own.max()
    factor = torch.zeros_like(change)
    factor[mask] = (high - (own - least) * ((high - low) / (most - least))).clamp(low, high)
    return factor * mask.float()


def torch_stare(logprob, entropy, advantage, mask, target=0.3, fraction=0.1, up=1.1, down=1.0):
    factor = torch.ones_like(logprob)
    if not (entropy * mask).sum() / mask.sum() < target:
        return factor * mask
    for weight, chosen in ((up, mask & (advantage > 0)), (down, mask & (advantage < 0))):
        n = int(chosen.sum())
        if weight == 1 or n == 0:
            continue
        places = chosen.reshape(-1).nonzero().squeeze(-1)
        top = torch.topk(-logprob[chosen], max(1, int(n * fraction + 0.999999))).indices
        factor.reshape(-1)[places[top]] = weight
    return factor * mask


def torch_soft_window(entropy, advantage, mask, window=101):
    """Sums over windows by running sums, in double for what their differences lose."""
    half = window // 2
    e = entropy.exp() * mask
    sums = torch.nn.functional.pad(e.double().cumsum(1), (half + 1, half), mode="constant")
    sums[:, -half:] = sums[:, -half - 1 : -half]
    share = torch.where(mask, e / (sums[:, window:] - sums[:, :-window]), 0.0)
    scaled = share * mask.sum(1, keepdim=True) / share.sum(1, keepdim=True)
    return torch.where(advantage > 0, scaled, 1.0).float() * mask


def torch_soft_window_by_pooling(entropy, advantage, mask, window=101):
    e = entropy.exp() * mask
    sums = torch.nn.functional.avg_pool1d(e, window, stride=1, padding=window // 2, count_include_pad=True) * window
    share = torch.where(mask, e / sums, 0.0)
    scaled = share * mask.sum(1, keepdim=True) / share.sum(1, keepdim=True)
    return torch.where(advantage > 0, scaled, 1.0) * mask


def torch_attention_entropy(attention, mask, coef=-0.5):
    mean = (attention * mask).sum() / mask.sum()
    return (1 + coef * (attention - mean)).clamp(min=0) * mask


def torch_correction(logprob, old_logprob, mask, level="token", mode="truncate", low=0.0, high=2.0):
    """As verl 0.9.1: the weights alone, without its statistics."""
    d = logprob - old_logprob
    if level == "sequence":
        d = (d * mask).sum(-1, keepdim=True)
    w = d.clamp(-20, 20).exp().expand_as(logprob) * mask
    return w.clamp(max=high) if mode == "truncate" else torch.where((w >= low) & (w <= high), w, torch.zeros_like(w))


def torch_mismatch(logprob, old_logprob, mask):
    """As verl 0.9.1 and TRL 1.16.0 have the same numbers."""
    mean = lambda x: (x * mask).sum() / (mask.sum() + 1e-8)  # noqa: E731
    d = logprob - old_logprob
    size = d.abs()[mask]
    w = d.clamp(-20, 20).exp()
    rows = (2 * (d * mask).sum(-1).clamp(-20, 20)).exp()
    average = mean(w)
    return torch.stack([size.max(), size.mean(), -mean(d), mean(d.exp() - d - 1), mean(w.square()) - 1, rows.mean() - 1, average,
                        1 / mean((w / (average + 1e-8)).square())])  # fmt: skip


# ---- name → (ours, rival, shapes): functions of inputs ---------------------------------------------------------------

SHAPES = [(256, 2048), (32, 32768)]  # [B, T]


def entry(ours, rival, takes, **keys):
    of = lambda function: lambda x: function(*(x[argument] for argument in takes), **keys)  # noqa: E731
    return of(ours), of(rival), SHAPES


def stacked(*given):
    return torch.stack(list(methods.mismatch(*given)))


def corrected(*given, **keys):
    return methods.correction(*given, **keys).factor


def with_statistics(function, statistics):
    """What verl's compute_rollout_correction_and_rejection_mask has in one call, and our trainer in each update: weights, and how far the policies are apart."""

    def both(*given, **keys):
        statistics(*given)  # whose values the row mismatch compares
        return function(*given, **keys)

    return both


LOGPROBS = ["logprob", "old_logprob", "mask"]
SIGNED = ["logprob", "entropy", "advantage", "mask"]
WINDOW = ["entropy", "advantage", "mask"]
WEIGHTS = {
    "top_entropy": entry(methods.top_entropy, torch_top_entropy, ["entropy", "mask"]),
    "surprisal_band": entry(methods.surprisal_band, torch_surprisal_band, ["logprob", "entropy", "mask"]),
    "entropy_ratio_band": entry(methods.entropy_ratio_band, torch_entropy_ratio_band, ["entropy", "old_entropy", "mask"]),
    "steer": entry(methods.steer, torch_steer, ["logprob", "old_logprob", "entropy", "advantage", "mask"]),
    "stare": entry(methods.stare, torch_stare, SIGNED, target=9.0),
    "stare, two-sided": entry(methods.stare, torch_stare, SIGNED, target=9.0, down=0.9),
    "soft_window, rival by running sums": entry(methods.soft_window, torch_soft_window, WINDOW),
    "soft_window, rival by pooling": entry(methods.soft_window, torch_soft_window_by_pooling, WINDOW),
    "attention_entropy": entry(methods.attention_entropy, torch_attention_entropy, ["entropy", "mask"]),  # any number a token will do
    "correction, token, truncate": entry(corrected, torch_correction, LOGPROBS),
    "correction, token, mask": entry(corrected, torch_correction, LOGPROBS, mode="mask", low=0.5, high=5.0),
    "correction, sequence, truncate": entry(corrected, torch_correction, LOGPROBS, level="sequence"),
    "correction, token, truncate, with mismatch": entry(with_statistics(corrected, stacked), with_statistics(torch_correction, torch_mismatch), LOGPROBS),
    "correction, sequence, truncate, with mismatch": entry(with_statistics(corrected, stacked), with_statistics(torch_correction, torch_mismatch), LOGPROBS, level="sequence"),
    "mismatch": entry(stacked, torch_mismatch, LOGPROBS),
}


def quantile_rows(rounds, threads):
    """top_entropy of 8.4 million entropies, all of it, against one exact quantile or one sort of them, a part of what a rival would need;
    torch.quantile refuses more than 16 million."""
    shape, fraction, target = (4096, 2048), 0.2, 6
    entropy = torch.empty(shape).exponential_(2.0, generator=torch.Generator().manual_seed(0))
    mask, flat = torch.ones(shape, dtype=torch.bool), entropy.flatten()
    k = math.floor(fraction * flat.numel() + 0.5)
    expected = torch.zeros(flat.numel()).index_fill_(0, flat.sort(descending=True, stable=True).indices[:k], 1.0)
    assert torch.equal(methods.top_entropy(entropy, mask, fraction=fraction).flatten(), expected)
    rivals = {"torch.quantile": lambda: flat.quantile(1 - fraction), "torch.sort": flat.sort, "torch.topk": lambda: flat.topk(k)}
    seconds = interleaved({"ours": lambda: methods.top_entropy(entropy, mask, fraction=fraction), **rivals}, rounds)
    row = {"op": "top_entropy of 8.4 million", "shape": shape, "dtype": "float32", "threads": threads, "target": target}
    return [{**row, **compare(seconds, "ours", rival)} for rival in rivals]
