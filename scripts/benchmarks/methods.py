"""Methods of policy learning (isentrope.methods) against plain torch in the form of the code that was released for each. Groups of 8
completions of ragged lengths; values first."""

import torch

from methods_weight import WEIGHTS, quantile_rows
from timing import compare, interleaved

TARGET = 5  # times faster
SHAPES = [(256, 2048), (32, 32768)]  # [B, T]


def inputs(B, T):
    """A step's completions as every method takes them; where mask is false the numbers are any."""
    g = torch.Generator().manual_seed(0)
    length = torch.randint(T // 4, T + 1, (B,), generator=g)
    logprob = -torch.rand(B, T, generator=g) * 3
    return {
        "mask": torch.arange(T) < length[:, None],
        "advantage": torch.randn(B, 1, generator=g).expand(B, T).contiguous(),
        "logprob": logprob,
        "old_logprob": logprob + 0.05 * torch.randn(B, T, generator=g),
        "entropy": 2 * torch.rand(B, T, generator=g),
        "old_entropy": 2 * torch.rand(B, T, generator=g),
    }


METHODS = {**WEIGHTS}  # name → (ours, rival, shapes): functions of inputs


def check_values(name, ours, rival, x):
    """Up to float32; of a weight that chooses tokens, one in 1000 may lie at the threshold."""
    a, b = ours(x), rival(x)
    assert a.shape == b.shape, f"{name}: {a.shape} and {b.shape}"
    apart = (a - b).abs() > 1e-4 * (1 + b.abs())
    assert apart.float().mean() < 1e-3, f"{name}: {apart.float().mean():.2%} of the values differ, by up to {(a - b).abs().max()}"


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
            table.append({"op": name, "shape": shape, "dtype": "float32", "threads": threads, **compare(seconds, "ours", "torch"),
                          "target": TARGET})  # fmt: skip
    return table + quantile_rows(rounds, threads)
