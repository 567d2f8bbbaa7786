"""hierarchical_attention in families of 8 against scaled_dot_product_attention of all tokens to all, which is what it stands for in an encoder:
forward, and forward with backward; entropies of its rows with it, which the rival does not have. A row of a whole layer adds the four
projections, of 8 heads, around both. Values first: against isentrope.reference in double on 64 tokens, and against the rival as one family."""

import torch
import torch.nn.functional as F

import isentrope
from isentrope import reference

from timing import compare, interleaved

# B, H, T, D
SHAPES = [(1, 8, 1024, 64), (1, 8, 4096, 64)]
DTYPES = [torch.float32, torch.bfloat16]
BRANCHING, TARGETS = 8, {4096: 10}


def ours(q, k, v):
    return isentrope.hierarchical_attention(q, k, v, branching=BRANCHING).out


def dense(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def check_values(dtype, D):
    q, k, v = torch.randn(3, 1, 2, 64, D).to(dtype)
    exact = reference.hierarchical_attention(q.double(), k.double(), v.double(), branching=BRANCHING)
    for a, e in zip(isentrope.hierarchical_attention(q, k, v, branching=BRANCHING), exact):
        assert (a - e).abs().max() < 100 * torch.finfo(dtype).eps * e.abs().max()
    flat = isentrope.hierarchical_attention(q.double(), k.double(), v.double(), branching=64).out
    torch.testing.assert_close(flat, dense(q.double(), k.double(), v.double()))


def layer(attend, H, D, dtype):
    projections = [torch.nn.Linear(H * D, H * D, bias=False, dtype=dtype) for _ in range(4)]

    def run(x):
        q, k, v = (p(x).unflatten(-1, (H, D)).transpose(1, 2) for p in projections[:3])
        return projections[3](attend(q, k, v).transpose(1, 2).flatten(2))

    return run


def with_backward(function, inputs, dout):
    def step():
        leaves = [x.detach().requires_grad_() for x in inputs]
        function(*leaves).backward(dout)

    return step


def rows(rounds=9, threads=1):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = []
    for dtype in DTYPES:
        for B, H, T, D in SHAPES:
            check_values(dtype, D)
            inputs, x = [torch.randn(B, H, T, D).to(dtype) for _ in range(3)], torch.randn(B, T, H * D).to(dtype)
            cases = {"": ({"ours": ours, "torch SDPA": dense}, inputs), ", layer": ({"ours": layer(ours, H, D, dtype), "torch SDPA": layer(dense, H, D, dtype)}, [x])}
            for what, (contenders, given) in cases.items():
                for name in ("forward", "forward + backward"):
                    with torch.set_grad_enabled(name != "forward"):
                        dout = torch.randn_like(given[0])
                        seconds = interleaved({rival: (lambda f=f, given=given: f(*given)) if name == "forward" else with_backward(f, given, dout)
                                               for rival, f in contenders.items()}, rounds)  # fmt: skip
                    table.append({"op": f"hierarchical_attention{what}, {name}", "shape": f"B {B}, H {H}, T {T}, D {D}, families of {BRANCHING}",
                                  "dtype": str(dtype).removeprefix("torch."), "threads": threads, **compare(seconds, "ours", "torch SDPA"),
                                  "target": TARGETS.get(T) if not what else None})  # fmt: skip
    return table
