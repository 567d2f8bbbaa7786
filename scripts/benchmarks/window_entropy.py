"""window_entropy, forward, against the loops of the released ARES code (Python and numpy, a window at a time) and against torch's
unfold, mean and quantile (or sort, where the share is taken); 256 rows of 4096 tokens, all of them valid so that the rivals need no
mask. The loop is timed on 8 rows and multiplied."""

import math

import numpy
import torch

import isentrope

from timing import compare, interleaved

TARGETS = {"Python loop": 20, "torch unfold": 3}
ROWS, LENGTH, LOOPED = 256, 4096, 8
SETTINGS = [
    {"window": 4, "quantile": 0.95, "scope": "row"},
    {"window": 8, "quantile": 0.95, "scope": "batch"},
    {"window": 64, "quantile": 0.95, "scope": "row"},
    {"window": 4, "quantile": 0.95, "scope": "global"},
    {"window": 4, "top_fraction": 0.05, "scope": "row"},
    {"window": 4, "value": 2.0, "scope": "row"},
]


def unfold(entropy, window, scope, value=None, quantile=None, top_fraction=None):
    mean = entropy.unfold(1, window, 1).mean(-1)
    if value is not None:
        return mean, mean >= value
    if top_fraction is not None:
        k = math.ceil(mean.shape[1] * top_fraction)
        return mean, torch.zeros_like(mean, dtype=torch.bool).scatter_(1, mean.topk(k, dim=1).indices, True)
    if scope == "global":  # torch.quantile takes at most 2^24 values, and these are fewer
        return mean, mean >= torch.quantile(mean.flatten(), quantile)
    threshold = torch.quantile(mean, quantile, dim=1)
    return mean, mean >= (threshold[:, None] if scope == "row" else threshold.mean())


def loop(rows, window, scope, value=None, quantile=None, top_fraction=None):
    """A window at a time, as the released reward code goes over the tokens of a response."""
    means = [[float(numpy.mean(row[t : t + window])) for t in range(len(row) - window + 1)] for row in rows]
    if value is not None:
        thresholds = [value] * len(means)
    elif top_fraction is not None:
        thresholds = [sorted(m)[-max(1, round(top_fraction * len(m)))] for m in means]
    elif scope == "global":
        thresholds = [float(numpy.percentile(sum(means, []), 100 * quantile))] * len(means)
    else:
        thresholds = [float(numpy.percentile(m, 100 * quantile)) for m in means]
        if scope == "batch":
            thresholds = [sum(thresholds) / len(thresholds)] * len(means)
    return [[x >= h for x in m] for m, h in zip(means, thresholds)]


def check_values(entropy, mask, options):
    ours, (mean, high) = isentrope.window_entropy(entropy, mask, **options), unfold(entropy, **options)
    n = mean.shape[1]
    torch.testing.assert_close(ours.mean[:, :n], mean)
    assert (ours.high[:, :n] != high).float().mean() < 1e-3  # ties with the threshold, within rounding


def rows(rounds=7, threads=1, device="cpu"):
    """One dictionary a setting and rival."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    entropy, mask = (torch.rand(ROWS, LENGTH) * 4).to(device), torch.ones(ROWS, LENGTH, dtype=torch.bool, device=device)
    few = entropy[:LOOPED].cpu().numpy()
    table = []
    for options in SETTINGS:
        check_values(entropy, mask, options)
        seconds = interleaved(
            {
                "ours": lambda: isentrope.window_entropy(entropy, mask, **options),
                "torch unfold": lambda: unfold(entropy, **options),
                "Python loop": lambda: loop(few, **options),
            },
            rounds,
        )
        seconds["Python loop"] = [s * ROWS / LOOPED for s in seconds["Python loop"]]
        for rival in TARGETS:
            name = ", ".join(str(v) if k in ("window", "scope") else f"{k} {v}" for k, v in options.items())
            table.append({"op": "window_entropy forward", "shape": f"[{ROWS}, {LENGTH}], window {name}", "dtype": "float32",
                          "threads": threads, **compare(seconds, "ours", rival), "target": TARGETS[rival]})  # fmt: skip
    return table
