"""gated_delta_rule against what a user would write instead, forward, and forward with backward.

"step by step" is the recurrence, a step at a time in torch; "by chunks in torch" the chunked form, chunks of 64, with a triangular solve of
all chunks at once and a loop over the states; "compiled" that under torch.compile; "fla" the chunked form in torch that
flash-linear-attention has beside its Triton kernels (naive_chunk_gated_delta_rule), which solves row by row. The limit is the
rate of a float32 product of 1024³ in the same rounds, for the multiply-adds that the chunks need: a chunk of C has
C² (2 D + 2 E)/2 within it and 3 C D E with the state, 2.5 times that backward (and U and the states once more).

Rows against entropy_attention say where the two cross, at T steps. A row of decoding is one token at position 16384: a state against a cache of
keys and values."""

import torch

import isentrope
from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule
from isentrope import reference

from linear_attention import CHUNK, by_fla, check_values, crossing, decoding, measure

PEERS = ["fla-core:fla"]
# B, H, T, D
SHAPES = [(1, 8, 4096, 64)]


def step_by_step(q, k, v, beta, log_decay):
    decay, state, out = log_decay.exp()[..., None, None], torch.zeros(*q.shape[:2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[2]):
        state = decay[:, :, t] * state
        u = beta[:, :, t, None] * (v[:, :, t] - (k[:, :, t, None, :] @ state)[:, :, 0])
        state = state + k[:, :, t, :, None] * u[:, :, None, :]
        out.append((q[:, :, t, None, :] @ state)[:, :, 0])
    return torch.stack(out, 2), state


def by_chunks(q, k, v, beta, log_decay):
    """T a multiple of CHUNK."""
    N = q.shape[2] // CHUNK
    q, k, v = (x.unflatten(2, (N, CHUNK)) for x in (q, k, v))
    beta, b = (x.unflatten(2, (N, CHUNK)) for x in (beta, log_decay))
    b = b.cumsum(-1)
    seen = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    gamma = (b[..., :, None] - b[..., None, :]).masked_fill(~seen, -torch.inf).exp()
    lower = torch.eye(CHUNK) + (beta[..., None] * (k @ k.mT) * gamma).tril(-1)
    # U = R V - R diag(exp b) K S with (I + L) R = diag(β), both products at once.
    solved = torch.linalg.solve_triangular(lower, beta[..., None] * torch.cat([v, k * b.exp()[..., None]], -1), upper=False)
    of_v, of_k = solved.split([v.shape[-1], k.shape[-1]], -1)
    scores, risen, fallen = q @ k.mT * gamma, q * b.exp()[..., None], k * (b[..., -1:] - b).exp()[..., None]
    total, state, out = b[..., -1].exp()[..., None, None], torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), []
    for n in range(N):
        u = of_v[:, :, n] - of_k[:, :, n] @ state
        out.append(risen[:, :, n] @ state + scores[:, :, n] @ u)
        state = total[:, :, n] * state + fallen[:, :, n].mT @ u
    return torch.cat(out, 2), state


def draw(B, H, T, D):
    q, k, v = (torch.randn(B, H, T, D) for _ in range(3))
    return [q, torch.nn.functional.normalize(k, dim=-1), v, torch.rand(B, H, T), -0.2 * torch.rand(B, H, T)]


def rows(rounds=9, threads=1, device="cpu"):
    torch.set_default_device(device)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rivals = {"step by step": step_by_step, "by chunks in torch": by_chunks, "compiled": torch.compile(by_chunks, dynamic=False),
              "fla": lambda q, k, v, beta, log_decay: by_fla(naive_chunk_gated_delta_rule, q, k, v, log_decay, beta)}  # fmt: skip
    table = []
    for B, H, T, D in SHAPES:
        inputs = draw(B, H, T, D)
        check_values(isentrope.gated_delta_rule, rivals, reference.gated_delta_rule, inputs)
        once = 2 * B * H * T * (2 * CHUNK * D + 3 * D * D)
        table += measure("gated_delta_rule", isentrope.gated_delta_rule, rivals, inputs, f"B {B}, H {H}, T {T}, D {D}", (once, once + 2.5 * once), rounds)
    return (table + crossing("gated_delta_rule", isentrope.gated_delta_rule, draw, rounds)
            + decoding("gated_delta_rule", isentrope.gated_delta_rule, draw, rounds))  # fmt: skip
