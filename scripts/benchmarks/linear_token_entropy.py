"""linear_token_entropy against the products it is made of and what a user would take instead: torch's linear, then log_softmax, gather
and entropy (eager), or then our token_entropy.

"the products" are torch's bare matmul of the same operands, into memory that is there: one forward; one more and three (logits again,
dhidden, dweight) for forward and backward. A ratio of 1 / 1.15 there means 15 % for all that is not a product. Rows of memory
compare what a call takes beside its gradients with [N, V] in float32; in bfloat16 the sums of dhidden are part of it, [N, C] in float32,
or the lower half of that on a processor with products of bfloat16.

In bfloat16 "eager" is log_softmax of bfloat16 logits into bfloat16; with "float32 statistics" it is float32 from there on, as ours is;
"chunks of 256 rows, made again" is that a chunk at a time under torch's checkpoint, as trainers bound the memory of logits.
"linear_cross_entropy" gives log-probs alone.
"""

import threading

import torch
from torch.utils.checkpoint import checkpoint

import isentrope
from isentrope import reference

from timing import compare, interleaved, peak_bytes

CHUNK = 256  # rows of the chunked form

# Targets of the ratio, by pass and rival.
# In bfloat16 a target of its own comes first.
BFLOAT16_TARGETS = {("forward", "the products"): 0.87, ("forward", "eager"): 1.6, ("forward + backward", "the products"): 0.8,
                    ("forward + backward", "eager"): 1.2}
TARGETS = {("forward", "the products"): 1 / 1.15, ("forward", "linear, our token_entropy"): 1, ("forward", "eager"): 2,
           ("forward + backward", "the products"): 1 / 1.15, ("forward + backward", "eager"): 2}
SHAPES = [(512, 576, 49152), (1024, 1024, 32000)]
DTYPES = [torch.float32, torch.bfloat16]
MEMORY_TARGET = 0.02  # of [N, V] beside gradients


def eager(hidden, weight, target):
    logp = torch.log_softmax(torch.nn.functional.linear(hidden, weight), dim=-1)
    logprob = logp.gather(-1, target[:, None])[:, 0]
    return logprob, -(logp.exp() * logp).sum(-1)


def eager_float(hidden, weight, target):
    """Statistics in float32, as ours are, whatever the product's type."""
    logp = torch.log_softmax(torch.nn.functional.linear(hidden, weight), dim=-1, dtype=torch.float32)
    logprob = logp.gather(-1, target[:, None])[:, 0]
    return logprob, -(logp.exp() * logp).sum(-1)


def chunked(hidden, weight, target):
    """CHUNK rows at a time, whose logits the backward pass makes again."""
    parts = [checkpoint(eager_float, h, weight, t, use_reentrant=False) for h, t in zip(hidden.split(CHUNK), target.split(CHUNK))]
    return tuple(torch.cat(part) for part in zip(*parts))


def cross_entropy(hidden, weight, target):
    """torch's own op of this kind has no entropy: half of what is asked."""
    logprob = -torch.nn.functional.linear_cross_entropy(hidden, weight, target, reduction="none")
    return logprob, logprob.detach()


def unfused(hidden, weight, target):
    return isentrope.token_entropy(torch.nn.functional.linear(hidden, weight), target)[:2]


def ours(hidden, weight, target):
    return isentrope.linear_token_entropy(hidden, weight, target)[:2]


def with_backward(function, hidden, weight, target, weights):
    def step():
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
        logprob, entropy = function(*leaves, target)
        (logprob * weights[0] + entropy * weights[1]).sum().backward()
        return logprob.detach(), entropy.detach(), leaves[0].grad, leaves[1].grad

    return step


def check_values(hidden, weight, target, weights):
    """Errors against double on some rows: ours at most twice those of eager in the operands' dtype."""
    rows = (hidden[:8], weight, target[:8], weights[:, :8])
    wide = (hidden[:8].double(), weight.double(), target[:8], weights[:, :8])
    exact = with_backward(lambda *x: reference.linear_token_entropy(*x)[:2], *wide)()
    names = ("logprob", "entropy", "dhidden", "dweight")
    for name, a, p, e in zip(names, with_backward(ours, *rows)(), with_backward(eager, *rows)(), exact):
        error, allowed = (a - e).abs().max().item(), 2 * (p - e).abs().max().item()
        assert error <= allowed, f"{name} of {hidden.dtype}: error {error}, allowed {allowed}"


def products(hidden, weight, backward):
    """The matmuls alone. In float32 they are the rate of the machine; in bfloat16 torch's may be much slower than ours."""
    N, V = hidden.shape[0], weight.shape[0]
    logits, dhidden, dweight = (torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
                                for shape in ((N, V), hidden.shape, weight.shape))  # fmt: skip

    def step():
        for _ in range(1 + backward):
            torch.mm(hidden, weight.T, out=logits)
        if backward:
            torch.mm(logits, weight, out=dhidden)
            torch.mm(logits.T, hidden, out=dweight)

    return step


def rows(rounds=7, threads=1, device="cpu"):
    """One dictionary a shape, dtype, pass and rival."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = []
    for N, C, V in SHAPES:
        for dtype in DTYPES:
            hidden = torch.randn(N, C).to(device, dtype)
            weight = (torch.randn(V, C) * 2 / C**0.5).to(device, dtype)
            target = torch.randint(0, V, (N,)).to(device)
            weights = torch.randn(2, N).to(device)
            check_values(hidden, weight, target, weights)
            # A product of bfloat16 takes torch ten times as long as one of float32 where the processor has no instruction for it.
            slow = dtype == torch.bfloat16 and device == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
            table += measure(hidden, weight, target, weights, 3 if slow else rounds)
    return table


def peak_bytes_of_new_thread(function):
    """peak_bytes, and the scratch memory that a thread keeps from call to call counts too."""

    def call():
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()

    return peak_bytes(call)


def measure(hidden, weight, target, weights, rounds):
    functions = {"ours": ours, "linear, our token_entropy": unfused, "eager": eager}
    if hidden.dtype == torch.bfloat16:
        functions |= {"eager, float32 statistics": eager_float, "chunks of 256 rows, made again": chunked}
        if hasattr(torch.nn.functional, "linear_cross_entropy"):
            functions["linear_cross_entropy, no entropy"] = cross_entropy
    logits_bytes = 4 * hidden.shape[0] * weight.shape[0]
    table = []
    for name, gradients in (("forward", 0), ("forward + backward", hidden.nbytes + weight.nbytes)):
        if gradients:
            calls = {n: with_backward(f, hidden, weight, target, weights) for n, f in functions.items()}
        else:
            calls = {n: torch.no_grad()(lambda f=f: f(hidden, weight, target)) for n, f in functions.items()}
        memory = {n: peak_bytes_of_new_thread(call) for n, call in calls.items()}
        seconds = interleaved({**calls, "the products": products(hidden, weight, gradients > 0)}, rounds)
        for rival in ("the products", *list(functions)[1:]):
            row = {
                "op": f"linear_token_entropy {name}",
                "shape": [*hidden.shape, weight.shape[0]],
                "dtype": str(hidden.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                **compare(seconds, "ours", rival),
                "target": (BFLOAT16_TARGETS if hidden.dtype == torch.bfloat16 else {}).get((name, rival), TARGETS.get((name, rival))),
            }
            if rival in memory and memory["ours"] is not None:
                row |= {"ours_bytes": memory["ours"], "peer_bytes": memory[rival]}
            table.append(row)
        # Pages that the process has and does not use are not counted where they serve a gradient: then nothing is known.
        if memory["ours"] is not None and memory["ours"] > gradients:
            beside = memory["ours"] - gradients
            table.append({
                "op": f"linear_token_entropy {name}, memory beside gradients",
                "shape": [*hidden.shape, weight.shape[0]],
                "dtype": str(hidden.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                "peer": "[N, V] in float32",
                "ratio": logits_bytes / beside,
                "target": 1 / MEMORY_TARGET,
                "ours_bytes": beside,
                "peer_bytes": logits_bytes,
            })  # fmt: skip
    return table
