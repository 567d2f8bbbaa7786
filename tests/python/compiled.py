"""torch.compile as the tests of ops call it."""

import torch


def compiled(function, device="cpu", **options):
    """function in one graph. On the CPU with inductor's decompositions and its cut into a forward and a backward graph, which run op by op: the C++ that
    inductor would write around an op takes g++ 10 to 20 s a test. To inductor all ops are calls of the same kind; that it makes them is seen in test_token_entropy.py
    (gradients written over the logits among them), test_entropy_attention.py (shapes that change) and of power_step, which writes to its arguments."""
    backend = "inductor" if torch.device(device).type == "cuda" else "aot_eager_decomp_partition"
    return torch.compile(function, fullgraph=True, backend=backend, **options)
