"""token_entropy against what a user would write in torch: log_softmax, gather, entropy; eager and compiled. With keep, the truncated
entropy of the top-p 0.8 beside it, against the sort, running sum, mask and renormalisation of the published code.

The limit of a forward pass is one read of the logits, that of forward and backward two reads and one write, at the rates
that a sum and a copy reach in the same rounds.
"""

import statistics

import torch

import isentrope
from isentrope import reference

from timing import compare, interleaved, peak_bytes, read_and_copy

# Targets of the ratio, by pass and rival.
TARGETS = {("forward", "eager"): 10, ("forward", "torch.compile"): 3,
           ("forward + backward", "eager"): 8, ("forward + backward", "torch.compile"): 2.5,
           ("kept forward + backward", "sort"): 8}
KEPT_SHAPE = (2048, 32000)
KEEP = isentrope.TopP(0.8)
SHAPES = [(256, 151936), (2048, 32000)]
DTYPES = [torch.float32, torch.bfloat16]


def plain(logits, target, dtype=None):
    """What a user would take instead. dtype: of the statistics; None for that of the logits."""
    logp = torch.log_softmax(logits, dim=-1, dtype=dtype)
    logprob = logp.gather(-1, target[:, None])[:, 0]
    return logprob, -(logp.exp() * logp).sum(-1)


def ours(logits, target):
    return isentrope.token_entropy(logits, target)[:2]


def check_values(logits, target):
    """Errors against double on some rows: ours at most twice those of plain in the logits' dtype."""
    logits, target = logits[:8], target[:8]
    exact = reference.token_entropy(logits.double(), target)[:2]
    for name, a, p, e in zip(("logprob", "entropy"), ours(logits, target), plain(logits, target), exact):
        error, allowed = (a - e).abs().max().item(), 2 * (p - e).abs().max().item()
        assert error <= allowed, f"{name} of {logits.dtype}: error {error}, allowed {allowed}"


def sorted_plain(logits, target):
    """Log-probability and the entropy of the top-p, by a sort; what a user would take instead of keep."""
    logp = torch.log_softmax(logits, dim=-1)
    ordered, order = torch.sort(logp.detach(), dim=-1, descending=True)
    p = ordered.exp()
    kept = torch.empty_like(p, dtype=torch.bool).scatter_(-1, order, p.cumsum(-1) - p < KEEP.share)
    logq = torch.log_softmax(logp.masked_fill(~kept, -torch.inf), dim=-1)
    q = logq.exp()
    return logp.gather(-1, target[:, None])[:, 0], -(q * logq.masked_fill(~kept, 0)).sum(-1)


def ours_kept(logits, target):
    out = isentrope.token_entropy(logits, target, keep=KEEP)
    return out.logprob, out.kept_entropy


def check_kept_values(logits, target, weights):
    """Values and gradients of some rows against double, the gradient by the rival's own formula."""
    logits, target, weights = logits[:8], target[:8], weights[:, :8]
    exact = reference.token_entropy(logits.double(), target, keep=KEEP)
    for name, a, e in zip(("logprob", "kept_entropy"), ours_kept(logits, target), (exact[0], exact[-1])):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-5, msg=name)
    a, e = with_backward(ours_kept, logits, target, weights)(), with_backward(sorted_plain, logits.double(), target, weights)()
    torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-7, msg="dlogits")


def kept_rows(rounds, device):
    """Forward and backward of log-probability and truncated entropy."""
    logits = (torch.randn(KEPT_SHAPE) * 2).to(device)
    target = torch.randint(0, KEPT_SHAPE[1], KEPT_SHAPE[:1]).to(device)
    weights = torch.randn(2, KEPT_SHAPE[0]).to(device)
    check_kept_values(logits, target, weights)
    read, copy = read_and_copy(logits.nbytes, logits.device)
    both = {name: with_backward(f, logits, target, weights) for name, f in (("ours", ours_kept), ("sort", sorted_plain), ("without keep", ours))}
    memory = {name: peak_bytes(f) for name, f in both.items()}
    seconds = interleaved({**both, "read": read, "copy": copy}, rounds)
    shares = [(r + c) / mine for mine, r, c in zip(seconds["ours"], seconds["read"], seconds["copy"])]
    table = []
    for rival in ("sort", "without keep"):
        table.append({
            "op": "token_entropy kept forward + backward", "shape": list(KEPT_SHAPE), "dtype": "float32", "threads": torch.get_num_threads(),
            **compare(seconds, "ours", rival), "target": TARGETS.get(("kept forward + backward", rival)),
            "ours_bytes": memory["ours"], "peer_bytes": memory[rival], "share_of_limit": statistics.median(shares),
        })  # fmt: skip
    return table


def with_backward(function, logits, target, weights):
    def step():
        leaf = logits.detach().requires_grad_()
        logprob, entropy = function(leaf, target)
        (logprob * weights[0] + entropy * weights[1]).sum().backward()
        return leaf.grad

    return step


def in_place(scratch, target, weights):
    """Forward and backward where the gradient overwrites the logits, which scratch holds."""

    def step():
        op = torch.ops.isentrope
        logprob, entropy, lse, anchor, log_sum, _, _ = op.token_entropy(scratch, target)
        op.token_entropy_backward_(scratch, target, entropy, anchor, log_sum, weights[0], weights[1], None)

    return step


def rows(rounds=7, threads=1, device="cpu", compiled=True):
    """One dictionary a shape, dtype, pass and rival."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = []
    for shape in SHAPES:
        for dtype in DTYPES:
            logits = (torch.randn(shape) * 2).to(device, dtype)
            target = torch.randint(0, shape[1], shape[:1]).to(device)
            weights = torch.randn(2, shape[0]).to(device)
            check_values(logits, target)
            table += measure(logits, target, weights, rounds, compiled)
    return table + kept_rows(rounds, device)


def measure(logits, target, weights, rounds, compiled):
    rivals = {"eager": plain}
    if logits.dtype != torch.float32:
        rivals["eager, float32 statistics"] = lambda z, y: plain(z, y, torch.float32)
    if compiled:
        torch._dynamo.reset()
        rivals["torch.compile"] = torch.compile(plain)
    functions = {"ours": ours, **rivals}
    read, copy = read_and_copy(logits.nbytes, logits.device)

    with torch.no_grad():
        forward = {name: (lambda f=f: f(logits, target)) for name, f in functions.items()}
        forward_s = interleaved({**forward, "read": read}, rounds)
        forward_memory = {name: peak_bytes(f) for name, f in forward.items()}
    both = {name: with_backward(f, logits, target, weights) for name, f in functions.items()}
    both_memory = {name: peak_bytes(f) for name, f in both.items()}
    scratch = logits.clone()
    both_s = interleaved(
        {**both, "ours in place": in_place(scratch, target, weights), "read": read, "copy": copy},
        rounds,
        before=lambda name: scratch.copy_(logits) if name == "ours in place" else None,
    )

    table = []
    for name, seconds, memory, limits in (
        ("forward", forward_s, forward_memory, ["read"]),
        ("forward + backward", both_s, both_memory, ["read", "copy"]),
    ):
        shares = [sum(parts) / mine for mine, *parts in zip(seconds["ours"], *(seconds[limit] for limit in limits))]
        for rival in rivals:
            row = {
                "op": f"token_entropy {name}",
                "shape": list(logits.shape),
                "dtype": str(logits.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                **compare(seconds, "ours", rival),
                "target": TARGETS.get((name, rival)),
                "ours_bytes": memory["ours"],
                "peer_bytes": memory[rival],
                "share_of_limit": statistics.median(shares),
            }
            if "ours in place" in seconds:
                row["ours_in_place_s"] = statistics.median(seconds["ours in place"])
            table.append(row)
    return table
