"""linear_attention with a decay a step against what a user would write instead, forward, and forward with backward.

"step by step" is the recurrence, a step at a time in torch; "by chunks in torch" the same chunks of 64 as products of whole tensors, with
a loop over the states; "compiled" that under torch.compile; "fla" the chunked form in torch that flash-linear-attention has
beside its Triton kernels (naive_chunk_simple_gla). The limit is the rate of a float32 product of 1024³ in the same rounds, for
the multiply-adds that the chunks need: a chunk of C has C(C + 1)(D + E)/2 within it and 2 C D E with the state, 2.5 times that backward (and
the states once more).

Rows against entropy_attention say where the two cross, at T steps. A row of decoding is one token at position 16384: a state against a cache of
keys and values."""

import statistics

import torch

import isentrope
from fla.ops.simple_gla.naive import naive_chunk_simple_gla
from isentrope import reference

from timing import compare, interleaved

PEERS = ["fla-core:fla"]
# B, H, T, D
SHAPES = [(1, 8, 4096, 64)]
LENGTHS = [256, 1024, 4096, 16384]
CHUNK = 64
TARGETS = {"step by step": 20, "by chunks in torch": 3, "compiled": 3, "fla": 3}


def step_by_step(q, k, v, log_decay):
    decay, state, out = log_decay.exp()[..., None, None], torch.zeros(*q.shape[:2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[2]):
        state = decay[:, :, t] * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        out.append((q[:, :, t, None, :] @ state)[:, :, 0])
    return torch.stack(out, 2), state


def by_chunks(q, k, v, log_decay):
    """T a multiple of CHUNK."""
    T = q.shape[2]
    q, k, v = (x.unflatten(2, (T // CHUNK, CHUNK)) for x in (q, k, v))
    b = log_decay.unflatten(2, (T // CHUNK, CHUNK)).cumsum(-1)
    seen = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    gamma = (b[..., :, None] - b[..., None, :]).masked_fill(~seen, -torch.inf).exp()
    added = (k * (b[..., -1:] - b).exp()[..., None]).mT @ v
    total, state, before = b[..., -1].exp()[..., None, None], torch.zeros_like(added[:, :, 0]), []
    for chunk in range(T // CHUNK):
        before.append(state)
        state = total[:, :, chunk] * state + added[:, :, chunk]
    out = (q @ k.mT * gamma) @ v + (q * b.exp()[..., None]) @ torch.stack(before, 2)
    return out.flatten(2, 3), state


def by_fla(function, *inputs):
    """A chunked form of flash-linear-attention: [B, T, H, …] to it, [B, H, T, D] back."""
    out, state = function(*(x.transpose(1, 2) for x in inputs), chunk_size=CHUNK, scale=1.0, output_final_state=True)
    return out.transpose(1, 2), state


def ours(q, k, v, log_decay):
    return isentrope.linear_attention(q, k, v, log_decay=log_decay)


def draw(B, H, T, D):
    return [*(torch.randn(B, H, T, D) for _ in range(3)), -0.2 * torch.rand(B, H, T)]


def check_values(function, rivals, exact_of, inputs):
    """Outputs against double on two heads and the first steps, at most twice as wrong as the step-by-step form."""
    inputs = [x[:, :2, :256] for x in inputs]
    exact = exact_of(*(x.double() for x in inputs))
    plain = rivals["step by step"](*inputs)
    for name, f in {"ours": function, **rivals}.items():
        for output, a, p, e in zip(("out", "state"), f(*inputs), plain, exact):
            error, allowed = (a - e).norm().item(), 2 * (p - e).norm().item()
            assert error <= (allowed if name == "ours" else 10 * allowed), f"{output} of {name}: error {error}, allowed {allowed}"


def with_backward(function, inputs, dout):
    def step():
        leaves = [x.detach().requires_grad_() for x in inputs]
        function(*leaves)[0].backward(dout)

    return step


def gemm():
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return lambda: a @ b


def measure(op, function, rivals, inputs, shape, flop, rounds):
    """Rows of an op against its rivals; the slowest of them in its own, fewer rounds. flop: of the forward and of both passes."""
    dout, table = torch.randn_like(inputs[2]), []
    for passes, work in zip(("forward", "forward + backward"), flop):
        make = (lambda f: lambda: f(*inputs)) if passes == "forward" else (lambda f: with_backward(f, inputs, dout))
        fast = {"ours": make(function), **{name: make(f) for name, f in rivals.items() if name != "step by step"}, "gemm": gemm()}
        with torch.set_grad_enabled(passes != "forward"):
            seconds = interleaved(fast, rounds)
            slow = interleaved({"ours": make(function), "step by step": make(rivals["step by step"])}, min(rounds, 3))
        share = statistics.median(work / mine / (2 * 1024**3 / rate) for mine, rate in zip(seconds["ours"], seconds["gemm"]))
        for rival in rivals:
            table.append({"op": f"{op} {passes}", "shape": shape, "dtype": "float32", "threads": torch.get_num_threads(),
                          **compare(slow if rival == "step by step" else seconds, "ours", rival), "target": TARGETS[rival],
                          "share_of_limit": share})  # fmt: skip
    return table


def crossing(op, function, inputs_of, rounds):
    table = []
    for T in LENGTHS:
        inputs = inputs_of(1, 8, T, 64)
        dout = torch.randn_like(inputs[2])
        softmax = lambda q, k, v, *_: isentrope.entropy_attention(q, k, v, causal=True)  # noqa: E731
        few = min(rounds, 3) if T > 4096 else rounds
        for passes in ("forward", "forward + backward"):
            make = (lambda f: lambda: f(*inputs)) if passes == "forward" else (lambda f: with_backward(f, inputs, dout))  # noqa: B023
            with torch.set_grad_enabled(passes != "forward"):
                seconds = interleaved({"ours": make(function), "entropy_attention": make(softmax)}, few)
            table.append({"op": f"{op} {passes}", "shape": f"B 1, H 8, T {T}, D 64", "dtype": "float32", "threads": torch.get_num_threads(),
                          **compare(seconds, "ours", "entropy_attention"), "target": 8 if T == 16384 else None})  # fmt: skip
    return table


def decoding(op, function, inputs_of, rounds):
    """One token at position 16384."""
    inputs, T, state = inputs_of(1, 8, 1, 64), 16384, torch.randn(1, 8, 64, 64)
    k, v = torch.randn(1, 8, T, 64), torch.randn(1, 8, T, 64)
    with torch.no_grad():
        seconds = interleaved({"ours": lambda: function(*inputs, state=state),
                               "entropy_attention": lambda: isentrope.entropy_attention(inputs[0], k, v, causal=True)}, 10 * rounds)  # fmt: skip
    return [{"op": f"{op} decoding", "shape": "B 1, H 8, one token at 16384, D 64", "dtype": "float32", "threads": torch.get_num_threads(),
             **compare(seconds, "ours", "entropy_attention"), "target": 10}]  # fmt: skip


def rows(rounds=9, threads=1, device="cpu"):
    torch.set_default_device(device)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rivals = {"step by step": step_by_step, "by chunks in torch": by_chunks, "compiled": torch.compile(by_chunks, dynamic=False),
              "fla": lambda q, k, v, log_decay: by_fla(naive_chunk_simple_gla, q, k, v, log_decay)}  # fmt: skip
    table = []
    for B, H, T, D in SHAPES:
        inputs = draw(B, H, T, D)
        check_values(ours, rivals, reference.linear_attention, inputs)
        once = 2 * B * H * T * ((CHUNK + 1) * D + 2 * D * D)
        table += measure("linear_attention", ours, rivals, inputs, f"B {B}, H {H}, T {T}, D {D}", (once, once + 2.5 * once), rounds)
    function = lambda q, k, v, log_decay, state=None: isentrope.linear_attention(q, k, v, log_decay=log_decay, state=state)  # noqa: E731
    return table + crossing("linear_attention", ours, draw, rounds) + decoding("linear_attention", function, draw, rounds)
