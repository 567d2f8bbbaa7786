"""crrelu, forward and backward pass with the gradient of its ε, against torch's gelu, which has one formula less, and against its own
formula in eager torch. Rows of a batch of 4096 tokens of SmolLM2-135M's inner width, and of the quickstart model's.

All run once a round; ratios are medians over rounds. Values first: those of isentrope.reference in double.
"""

import torch
import torch.nn.functional as F

import isentrope
from isentrope import reference
from timing import compare, interleaved

SHAPES = [(4096, 1536), (3200, 192)]
TARGETS = {"torch gelu": 1 / 1.1, "the formula in eager torch": 4.0}


def rows(rounds=15, threads=1, device="cpu", dtype="float32"):
    """One dictionary a shape and rival."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = []
    for shape in SHAPES:
        x, dy = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for _ in range(2))
        epsilon = torch.tensor([0.01], device=device, requires_grad=True)
        leaf = x.clone().requires_grad_()
        few, exact = x[:7], x[:7].double()
        torch.testing.assert_close(isentrope.crrelu(few, epsilon).double(), reference.crrelu(exact, epsilon.double()), rtol=1e-2 if dtype != "float32" else 1e-5, atol=1e-6)

        def both(function):
            def step():
                leaf.grad = epsilon.grad = None
                function(leaf).backward(dy)

            return step

        seconds = interleaved({"ours": both(lambda x: isentrope.crrelu(x, epsilon)), "torch gelu": both(F.gelu),  # noqa: B023
                               "the formula in eager torch": both(lambda x: reference.crrelu(x, epsilon))}, rounds)  # fmt: skip  # noqa: B023
        for rival, target in TARGETS.items():
            table.append({"op": "crrelu forward + backward", "shape": f"{list(shape)}", "dtype": dtype, "threads": threads,
                          **compare(seconds, "ours", rival), "target": target})  # fmt: skip
    return table
