"""entropy_attention with its entropy against what a user would take instead: causal attention, forward, and forward with
backward (through out, and through out and entropy where the rival has an entropy).

"torch SDPA" is scaled_dot_product_attention, which gives no entropy. "V=K trick" runs it a second time with the keys as values and
takes H = lse - scale · q·(that); "materialised" is softmax of the T × S matrix. "ours without entropy" has return_entropy=False: a
ratio of 0.95 is the 5 % that entropy may cost. The limit is the rate of a float32 product of 1024³ in the same rounds (bfloat16 where the processor has such products), for
4 D multiply-adds · 2 a visible pair forward and 2.5 times that backward.

"blocks": a quarter of the blocks of 64 × 64 is kept (block_mask), against our own dense attention, and against
scaled_dot_product_attention with that mask; 3.33 is 0.3 of the time. "routed": 64 clusters of 128 positions of each head
(gathered_attention and scatter_mean) against our dense attention.

Rows of memory: what a fresh process takes above its inputs for one forward and backward pass, B 1, H 8, D 64; the ratio is of the
rival's memory to ours."""

import functools
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import isentrope
from isentrope import reference

from timing import compare, interleaved

# B, H, G, T, D
SHAPES = [(1, 8, 8, 512, 64), (1, 8, 8, 2048, 64), (1, 8, 8, 2048, 128), (4, 4, 4, 256, 64), (1, 8, 2, 2048, 64)]
DECODE = (64, 8, 8, 1024, 64)
BLOCKS, ROUTED = (1, 8, 8, 4096, 64), (1, 8, 8, 8192, 64)
DTYPES = [torch.float32, torch.bfloat16]


def has_bfloat16_products():
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def target(dtype, rival, passes, shape):
    wide = dtype == torch.bfloat16 and has_bfloat16_products()
    if rival == "torch SDPA":
        return 2.2 if wide else 1.5 if dtype == torch.bfloat16 else 1.4
    if rival == "V=K trick":
        return 2.8 if dtype == torch.float32 else 4.5
    if rival == "ours without entropy":
        return 0.95
    return 8 if rival == "materialised" and passes == "forward + backward" else None


def ours(q, k, v):
    out = isentrope.entropy_attention(q, k, v, causal=True)
    return out.out, out.entropy


def ours_without(q, k, v):
    return isentrope.entropy_attention(q, k, v, causal=True, return_entropy=False).out, None


def sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]), None


def trick(q, k, v):
    """H's gradient is that of scale · q·out2 with q, the values and lse held: the other paths cancel."""
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    means = F.scaled_dot_product_attention(q, k, k.detach(), is_causal=True)
    return out, lse.detach() - (q.detach() * means).sum(-1) * q.shape[-1] ** -0.5


@functools.cache
def later_keys(T, device):
    return torch.ones(T, T, dtype=torch.bool, device=device).triu(1)


def materialised(q, k, v):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    p = s.masked_fill(later_keys(q.shape[2], q.device), -torch.inf).softmax(-1)
    return p @ v, -(p * p.clamp_min(1e-30).log()).sum(-1)


def check_values(q, k, v):
    """out and entropy against double on the first batch and two heads, at most twice as wrong as the materialised form."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q[:1, : 2 * group], k[:1, :2], v[:1, :2]
    exact = reference.entropy_attention(q.double(), k.double(), v.double(), causal=True)
    for name, a, p, e in zip(("out", "entropy"), ours(q, k, v), materialised(q, k, v), (exact[0], exact[2])):
        error, allowed = (a - e).abs().max().item(), 2 * (p - e).abs().max().item()
        assert error <= allowed, f"{name} of {q.dtype}: error {error}, allowed {allowed}"


def with_backward(function, q, k, v, dout, dentropy):
    def step():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out, entropy = function(*leaves)
        outputs, incoming = ([out], [dout]) if entropy is None else ([out, entropy], [dout, dentropy.to(entropy.dtype)])
        torch.autograd.backward(outputs, incoming)

    return step


def gemm(dtype, device):
    a, b = torch.randn(1024, 1024).to(device, dtype), torch.randn(1024, 1024).to(device, dtype)
    return lambda: a @ b


def draw(shape, dtype, device, queries=None):
    B, H, G, T, D = shape
    return [torch.randn(B, heads, rows, D).to(device, dtype) for heads, rows in ((H, queries or T), (G, T), (G, T))]


def measure(shape, dtype, rounds, device):
    B, H, G, T, D = shape
    q, k, v = draw(shape, dtype, device)
    dout, dentropy = torch.randn_like(q), torch.randn(B, H, T).to(device)
    check_values(q, k, v)
    contenders = {"ours": ours, "ours without entropy": ours_without, "torch SDPA": sdpa}
    if device == "cpu":  # the op that gives lse is the CPU's
        contenders["V=K trick"] = trick
    if T == 2048 and dtype == torch.float32 and D == 64:
        contenders["materialised"] = materialised
    limit, flop = gemm(dtype if device != "cpu" or has_bfloat16_products() else torch.float32, device), 4 * D * B * H * T * (T + 1) / 2
    passes = {
        "forward": ({name: (lambda f=f: f(q, k, v)) for name, f in contenders.items()}, 1.0),
        "forward + backward": ({name: with_backward(f, q, k, v, dout, dentropy) for name, f in contenders.items()}, 3.5),
    }
    table = []
    for name, (functions, factor) in passes.items():
        with torch.set_grad_enabled(name != "forward"):
            seconds = interleaved({**functions, "gemm": limit}, rounds)
        share = statistics.median(flop * factor / mine / (2 * 1024**3 / rate) for mine, rate in zip(seconds["ours"], seconds["gemm"]))
        for rival in functions:
            if rival != "ours":
                table.append({
                    "op": f"attention {name}", "shape": f"B {B}, H {H}:{G}, T {T}, D {D}", "dtype": str(dtype).removeprefix("torch."),
                    "threads": torch.get_num_threads(), **compare(seconds, "ours", rival), "target": target(dtype, rival, name, shape),
                    "share_of_limit": share,
                })  # fmt: skip
    return table


MEMORY = """
import sys, torch, isentrope
from timing import peak_bytes
from torch.nn.functional import scaled_dot_product_attention as sdpa
torch.set_num_threads(int(sys.argv[3]))
inputs = [torch.randn(1, 8, int(sys.argv[2]), 64, requires_grad=True) for _ in range(3)]
def run(q, k, v):
    if sys.argv[1] == "torch SDPA":
        return sdpa(q, k, v, is_causal=True).sum().backward()
    out = isentrope.entropy_attention(q, k, v, causal=True)
    (out.out.sum() + out.entropy.sum()).backward()
run(*(x[:, :, :64] for x in inputs))
print(peak_bytes(lambda: run(*inputs)))
"""


def memory(threads):
    """Peak at T = 4096 and 8192: twice the rows, twice the memory, or four times with T × S matrices (2.1 GB each at 8192)."""
    def peak(name, T):
        paths = [str(Path(isentrope.__file__).resolve().parents[1]), str(Path(__file__).parent)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        return int(subprocess.run([sys.executable, "-c", MEMORY, name, str(T), str(threads)], env=environment, check=True,
                                  capture_output=True, text=True).stdout)  # fmt: skip

    table = []
    for T in (4096, 8192):
        mine, rival = peak("ours", T), peak("torch SDPA", T)
        table.append({"op": "attention memory", "shape": f"B 1, H 8:8, T {T}, D 64", "dtype": "float32", "threads": threads,
                      "peer": "torch SDPA", "ratio": rival / mine, "ours_bytes": mine, "peer_bytes": rival})  # fmt: skip
    return table


def decoding(dtype, rounds, device):
    B, H, G, S, D = DECODE
    q, k, v = draw(DECODE, dtype, device, queries=1)
    mine = isentrope.entropy_attention(q, k, v, causal=True)
    exact = reference.entropy_attention(q.double(), k.double(), v.double(), causal=True)
    assert math.isclose((mine.entropy - exact[2]).abs().max().item(), 0, abs_tol=1e-4)
    with torch.no_grad():
        seconds = interleaved({"ours": lambda: isentrope.entropy_attention(q, k, v, causal=True),
                               "torch SDPA": lambda: F.scaled_dot_product_attention(q, k, v)}, rounds)  # fmt: skip
    return [{"op": "attention decoding", "shape": f"B {B}, H {H}:{G}, one query, {S} keys, D {D}",
             "dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
             **compare(seconds, "ours", "torch SDPA"), "target": 1.0}]  # fmt: skip


def of_attention(op):
    """op(q, k, v) gives an EntropyAttentionOutput."""
    def run(q, k, v):
        result = op(q, k, v)
        return result.out, result.entropy

    return run


def sparse(shape, dtype, rounds, device):
    """A quarter of the blocks of each row of blocks, the rows' own among them."""
    B, H, _, T, D = shape
    q, k, v = draw(shape, dtype, device)
    score = torch.rand(B, H, T // 64, T // 64, device=device).tril() + 2 * torch.eye(T // 64, device=device)
    rank = score.argsort(-1, descending=True).argsort(-1)
    mask = (rank < (torch.arange(T // 64, device=device)[:, None] + 4) // 4).tril()
    wide = mask.repeat_interleave(64, 2).repeat_interleave(64, 3).tril()
    given = {"causal": True, "block_mask": mask, "block_size": 64}
    kept = of_attention(lambda q, k, v: isentrope.entropy_attention(q, k, v, **given))
    exact = reference.entropy_attention(*(x[:, :1, :512].double() for x in (q, k, v)), causal=True, block_mask=mask[:, :1, :8, :8], block_size=64)
    for a, e in zip(kept(q, k, v), (exact[0], exact[2])):
        assert (a[:, :1, :512] - e).abs().max() < 100 * torch.finfo(dtype).eps * e.abs().max()
    rivals = {"ours": kept, "ours dense": ours, "torch SDPA with the mask": lambda q, k, v: (F.scaled_dot_product_attention(q, k, v, attn_mask=wide), None)}
    return against("blocks", shape, dtype, rounds, rivals, {"ours dense": 1 / 0.3})


def routed(shape, dtype, rounds, device):
    B, H, _, T, D = shape
    q, k, v = draw(shape, dtype, device)
    index = (q.float() @ torch.randn(D, 64, device=device)).transpose(2, 3).topk(128).indices.sort(-1).values
    def clusters(q, k, v):
        result = isentrope.gathered_attention(q, k, v, index, causal=True)
        return isentrope.scatter_mean(result.out, index, T), isentrope.scatter_mean(result.entropy, index, T)

    exact = reference.gathered_attention(*(x[:, :1].double() for x in (q, k, v)), index[:, :1], causal=True)
    for a, e in zip(clusters(q, k, v), (exact[0], exact[2])):
        e = isentrope.scatter_mean(e, index[:, :1], T)
        assert (a[:, :1] - e).abs().max() < 100 * torch.finfo(dtype).eps * e.abs().max()
    return against("routed", shape, dtype, rounds, {"ours": clusters, "ours dense": ours}, {"ours dense": 5})


def against(what, shape, dtype, rounds, contenders, targets):
    B, H, G, T, D = shape
    q, k, v = draw(shape, dtype, "cpu")
    dout, dentropy = torch.randn_like(q), torch.randn(B, H, T)
    table = []
    for name in ("forward", "forward + backward"):
        with torch.set_grad_enabled(name != "forward"):
            seconds = interleaved({rival: (lambda f=f: f(q, k, v)) if name == "forward" else with_backward(f, q, k, v, dout, dentropy)
                                   for rival, f in contenders.items()}, rounds)  # fmt: skip
        table += [{"op": f"attention, {what}, {name}", "shape": f"B {B}, H {H}:{G}, T {T}, D {D}", "dtype": str(dtype).removeprefix("torch."),
                   "threads": torch.get_num_threads(), **compare(seconds, "ours", rival), "target": targets.get(rival)}
                  for rival in contenders if rival != "ours"]  # fmt: skip
    return table


def rows(rounds=9, threads=1, device="cpu"):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = []
    for dtype in DTYPES:
        for shape in SHAPES:
            table += measure(shape, dtype, rounds, device)
        table += decoding(dtype, rounds, device)
        if device == "cpu":
            table += sparse(BLOCKS, dtype, rounds, device) + routed(ROUTED, dtype, rounds, device)
    return table + (memory(threads) if device == "cpu" and torch.float32 in DTYPES else [])
