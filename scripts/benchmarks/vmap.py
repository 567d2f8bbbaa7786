"""torch.func.vmap of an op, and of its gradient for each element, against a Python loop over the elements, and against vmap of what
torch has in its place: scaled_dot_product_attention; log_softmax with the log-probability and entropy from it; linear and
spectral norm written out. "of weight" is a gradient of the weight for each element, where vmap of the op is a call for each."""

import torch
from torch.func import grad, vmap

import isentrope

from timing import compare, interleaved


def statistics(logits, target):
    logp = torch.log_softmax(logits, -1)
    return logp.gather(-1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def settings():
    """[(name, shape, ours, torch's, mapped tensors, tensors for all)]; each function gives one number."""

    def attention(op):
        return lambda q, k, v: op(q, k, v).square().sum()

    sdpa = attention(lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    ours = attention(lambda q, k, v: isentrope.entropy_attention(q, k, v, causal=True).out)
    for M, T in ((64, 16), (16, 128), (8, 512)):
        yield "entropy_attention", f"M {M}, B 1, H 4, T {T}, D 64", ours, sdpa, tuple(torch.randn(M, 1, 4, T, 64) for _ in range(3)), ()
    for M, N, V in ((64, 16, 512), (16, 64, 8192)):
        logits, target = torch.randn(M, N, V), torch.randint(V, (M, N))
        yield ("token_entropy", f"M {M}, [{N}, {V}]",
               lambda z, t: sum(x.sum() for x in isentrope.token_entropy(z, t)[:2]),
               lambda z, t: sum(x.sum() for x in statistics(z, t)), (logits, target), ())  # fmt: skip
    weight, target = torch.randn(2048, 128), torch.randint(2048, (32, 16))
    yield ("linear_token_entropy", "M 32, [16, 128], V 2048",
           lambda x, t, w: sum(y.sum() for y in isentrope.linear_token_entropy(x, w, t)[:2]),
           lambda x, t, w: sum(y.sum() for y in statistics(x @ w.t(), t)), (torch.randn(32, 16, 128), target), (weight,))  # fmt: skip
    weight, gamma, u = torch.randn(128, 128), torch.tensor(1.5), torch.nn.functional.normalize(torch.randn(128), dim=0)

    def sigma(x, w):
        v = torch.nn.functional.normalize(w.detach() @ u, dim=0)
        return (torch.nn.functional.linear(x, w) * (gamma / (v @ (w @ u)))).square().sum()

    yield ("sigma_linear", "M 64, [16, 128], out 128",
           lambda x, w: isentrope.sigma_linear(x, w, gamma, u).y.square().sum(), sigma, (torch.randn(64, 16, 128),), (weight,))  # fmt: skip
    mask = torch.ones(4, 1024, dtype=torch.bool)
    yield ("window_entropy", "M 32, [4, 1024], window 8",
           lambda x: isentrope.window_entropy(x, mask, window=8).mean.square().sum(), None, (torch.rand(32, 4, 1024),), ())  # fmt: skip


def rows(rounds=7, threads=1):
    """One dictionary a setting and rival."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = []
    for name, shape, ours, theirs, mapped, shared in settings():
        of_weight = [("gradient of weight", len(mapped))] if shared else []
        for what, index in [("forward", None), ("gradient", 0), *of_weight]:
            derive = (lambda f: f) if index is None else (lambda f, i=index: grad(f, argnums=i))
            dims = (0,) * len(mapped) + (None,) * len(shared)
            contenders = {
                "ours": lambda: vmap(derive(ours), in_dims=dims)(*mapped, *shared),
                "loop": lambda: torch.stack([derive(ours)(*each, *shared) for each in zip(*mapped)]),
            }
            if theirs is not None:
                contenders["vmap of torch"] = lambda: vmap(derive(theirs), in_dims=dims)(*mapped, *shared)
            expected = contenders["ours"]()
            for rival in contenders:
                torch.testing.assert_close(contenders[rival](), expected, rtol=1e-3, atol=1e-3)
            seconds = interleaved(contenders, rounds)
            for rival in list(contenders)[1:]:
                table.append({"op": f"{name} {what}", "shape": shape, "dtype": "float32", "threads": threads,
                              **compare(seconds, "ours", rival)})  # fmt: skip
    return table
