"""sigma_linear, forward and backward, against torch's linear and against the two ways to the same layer in torch: the
spectral_norm parametrization, and a wrapper that scales a copy of the weight by γ/σ. These two take a power step in forward; so
"with a power step" ours takes one too, though in use it takes it once an update. power_step of all layers of a 12-layer, 768-wide
model (72 matrices, 85 million weights, float32) against a Python loop over the layers, and against the matrix products of a
training step of 8192 tokens alone (forward, dx and dW of every matrix; nothing else of the step is counted): a ratio of 100 there
is a share of 1 %. "update" is forward and backward pass of a whole decoder of the trainer, with learned norms in all linear layers
and the power steps after it, against the same decoder without.

A ratio of 0.95 against torch's linear is 1.05 times its time. Where a processor has no bfloat16 products torch takes minutes for
those here, and tokens are a 32nd, too few to tell of the shapes that targets are for; shape is tokens × in × out.
"""

import torch
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm

import isentrope
from isentrope import reference

from plain_model import Program
from timing import compare, interleaved

TARGETS = {"torch linear": 1 / 1.05, "spectral_norm": 1.15, "wrapper with γ": 1.15, "Python loop": 3, "bare products": 100,
           "without": 1 / 1.05}
SHAPES = [(2048, 1024, 1024), (4096, 512, 2048), (256, 2048, 512)]
DTYPES = [torch.float32, torch.bfloat16]
TOKENS = 8192
LAYERS, WIDTH = 12, 768
MODELS = {  # of model_bench; 512 and 256 tokens
    "6 layers of width 128": dict(layers=6, width=128, heads=4, kv_heads=4, mlp=344, vocabulary=258, context=128, batch=4, length=128),
    "12 layers of width 768": dict(layers=12, width=768, heads=12, kv_heads=12, mlp=2048, vocabulary=258, context=128, batch=2,
                                   length=128),
}  # fmt: skip
MATRICES = [(WIDTH, WIDTH)] * 4 + [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]  # [out, in] of one layer


def wrapper(x, weight, gamma, u):
    """What users have: a power step without gradient, σ with one, and a scaled copy of the weight."""
    with torch.no_grad():
        v = F.normalize(weight @ u, dim=0)
        u.copy_(F.normalize(weight.T @ v, dim=0))
    sigma = v @ (weight @ u)
    return F.linear(x, gamma / sigma * weight)


def check_values(x, weight, gamma, u):
    """Errors against double on some rows: ours at most twice those of the reference in the dtype."""
    x = x[:64]
    wide = torch.promote_types(weight.dtype, torch.float32)
    given = [t.double() for t in (x, weight, gamma, u)]
    results = []
    for op, arguments in (
        (isentrope.sigma_linear, (x, weight, gamma.to(wide), u.to(wide))),
        (reference.sigma_linear, (x, weight, gamma, u)),
        (reference.sigma_linear, given),
    ):
        leaves = [t.detach().clone().requires_grad_(i < 3) for i, t in enumerate(arguments)]
        y, _ = op(*leaves)
        y.sum().backward()
        results.append([y.detach(), leaves[0].grad, leaves[1].grad])
    for name, a, p, e in zip(("y", "dx", "dweight"), *results):
        error, allowed = (a - e).abs().max().item(), 2 * (p - e).abs().max().item()
        assert error <= allowed, f"{name} of {weight.dtype}: error {error}, allowed {allowed}"


def linear_rows(shape, dtype, rounds):
    tokens, columns, out = shape
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        tokens //= 32
    x, weight = torch.randn(tokens, columns).to(dtype), (torch.randn(out, columns) / columns**0.5).to(dtype)
    dy, gamma = torch.randn(tokens, out).to(dtype), torch.ones((), dtype=dtype)
    (u,), _, _ = reference.power_step([weight.float()], [torch.randn(columns)], steps_max=30)
    check_values(x, weight, gamma, u.to(dtype))
    parametrized = spectral_norm(torch.nn.Linear(columns, out, bias=False).to(dtype))
    moved = u.to(dtype)

    def step(forward, *parameters):
        leaves = [x.detach().requires_grad_(), *(p.detach().requires_grad_() for p in parameters)]

        def run():
            for leaf in leaves:
                leaf.grad = None
            forward(*leaves).backward(dy)

        return run

    def parametrization():
        parametrized.zero_grad()
        parametrized(x.detach().requires_grad_()).backward(dy)

    def stepped(x, w, g):
        isentrope.power_step([w.detach()], [own], steps_max=1, tolerance=0.0)
        return isentrope.sigma_linear(x, w, g, own).y

    own = u.clone()
    contenders = {
        "ours": step(lambda x, w, g: isentrope.sigma_linear(x, w, g, u).y, weight, gamma),
        "ours, stepped": step(stepped, weight, gamma),
        "torch linear": step(F.linear, weight),
        "spectral_norm": parametrization,
        "wrapper with γ": step(lambda x, w, g: wrapper(x, w, g, moved), weight, gamma),
    }
    seconds = interleaved(contenders, rounds)
    name, shape = "sigma_linear forward + backward", (tokens, columns, out)
    table = [row(name, shape, dtype, compare(seconds, "ours", "torch linear"))]
    for rival in ("spectral_norm", "wrapper with γ"):
        table.append(row(name + ", with a power step", shape, dtype, compare(seconds, "ours, stepped", rival)))
    return table


def row(op, shape, dtype, compared):
    return {
        "op": op,
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **compared,
        "target": round(TARGETS[compared["peer"]], 2),
    }


def power_rows(rounds):
    weights = [torch.randn(shape) * 0.02 for _ in range(LAYERS) for shape in MATRICES]
    us = [F.normalize(torch.randn(w.shape[1]), dim=0) for w in weights]
    check = [u.clone() for u in us[: len(MATRICES)]]
    sigmas, _ = isentrope.power_step(weights[: len(MATRICES)], check, steps_max=1)
    new, expected, _ = reference.power_step(weights[: len(MATRICES)], us[: len(MATRICES)], steps_max=1)
    torch.testing.assert_close(sigmas, torch.stack(expected))
    torch.testing.assert_close(torch.cat(check), torch.cat(new))
    isentrope.power_step(weights, us, steps_max=30, tolerance=0.0)  # where training leaves them
    looped = [u.clone() for u in us]

    def loop():
        for weight, u in zip(weights, looped):
            v = F.normalize(weight @ u, dim=0)
            u.copy_(F.normalize(weight.T @ v, dim=0))
            torch.dot(v, weight @ u)

    x = {n: torch.randn(TOKENS, n) for n in (WIDTH, 4 * WIDTH)}

    def products():
        """Of one layer: the others are the same, and are counted below."""
        for out, columns in MATRICES:
            weight = weights[MATRICES.index((out, columns))]
            x[columns] @ weight.T, x[out] @ weight, x[out].T @ x[columns]

    contenders = {
        "ours": lambda: isentrope.power_step(weights, us, steps_max=1, tolerance=0.0),
        "Python loop": loop,
    }
    seconds = interleaved(contenders, rounds)
    bare = interleaved({"ours": contenders["ours"], "bare products": products}, 3)  # some seconds a call
    bare["bare products"] = [LAYERS * s for s in bare["bare products"]]
    shape = f"{LAYERS} layers of width {WIDTH}"
    named = lambda op, compared: {**row(op, [], torch.float32, compared), "shape": shape}  # noqa: E731
    return [
        named("power_step, one step", compare(seconds, "ours", "Python loop")),
        named("power_step, one step", compare(bare, "ours", "bare products")),
    ]


def model_rows(program_path, rounds, threads):
    table = []
    for name, shape in MODELS.items():
        programs = {who: Program(program_path, threads, sigma=sigma, **shape) for who, sigma in (("ours", 1), ("without", 0))}
        seconds = {who: [] for who in programs}
        for turn in range(rounds + 2):
            for who, program in programs.items():
                taken = program("update")["seconds"]
                if turn >= 2:
                    seconds[who].append(taken)
        for program in programs.values():
            program.close()
        table.append({**row("update", [], torch.float32, compare(seconds, "ours", "without")), "shape": name})
    return table


def rows(program_path, rounds=7, threads=1):
    """One dictionary a shape, dtype and rival."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = power_rows(rounds) + model_rows(program_path, rounds, threads)
    for shape in SHAPES:
        for dtype in DTYPES:
            table += linear_rows(shape, dtype, rounds)
    return table
