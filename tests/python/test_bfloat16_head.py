"""linear_token_entropy in bfloat16 on the processor's own products (csrc/ops/linear_token_entropy_pairs.h): what a run that trains
through it sees, the products in plain loops, memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import isentrope

STEPS, ROWS, WIDTH, VOCAB, SLICE = 150, 256, 64, 2003, 64


def exact(hidden, weight, target):
    """log-prob and entropy in float32 from the whole row of logits, and these."""
    logits = hidden.float() @ weight.float().T
    logp = logits.log_softmax(-1)
    return logp.gather(-1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1), logits


def ours(hidden, weight, target):
    return isentrope.linear_token_entropy(hidden, weight, target)[:2]


class RoundsPartialProducts(torch.autograd.Function):
    """A head that is wrong on purpose: the product of each slice of the vocabulary is rounded to bfloat16 before it is added, forward
    to the sums of a row, backward to dhidden."""

    @staticmethod
    def forward(ctx, hidden, weight, target):
        logp = torch.cat([(hidden @ part.T).float() for part in weight.split(SLICE)], 1).log_softmax(-1)
        ctx.save_for_backward(hidden, weight, target, logp)
        return logp.gather(-1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    @staticmethod
    def backward(ctx, dlogprob, dentropy):
        hidden, weight, target, logp = ctx.saved_tensors
        p = logp.exp()
        dz = -p * dlogprob[:, None] - p * (logp - (p * logp).sum(-1, keepdim=True)) * dentropy[:, None]
        dz = dz.scatter_add(1, target[:, None], dlogprob[:, None]).bfloat16()
        dhidden = torch.zeros_like(hidden)
        for part, share in zip(weight.split(SLICE), dz.split(SLICE, 1)):
            dhidden += share @ part
        return dhidden, dz.T @ hidden, None


def loss_of(logprob, entropy):
    return -logprob.mean() - 0.01 * entropy.mean()


def train(head, optimizer):
    """[STEPS, 3]: by how much head's mean log-prob, its mean entropy and its dhidden differ from those in float32 of the same bfloat16
    operands, each as a share of what rounding allows in that step: see test_no_drift."""
    draw = torch.Generator().manual_seed(1)
    embedding = torch.randn(97, WIDTH, generator=draw)
    masters = [x.requires_grad_() for x in (embedding, torch.randn(WIDTH, WIDTH, generator=draw) / 8, torch.randn(VOCAB, WIDTH, generator=draw) / 8)]
    update = torch.optim.AdamW(masters, lr=3e-3) if optimizer == "adamw" else torch.optim.SGD(masters, lr=3.0)
    shares = []
    for _ in range(STEPS):
        token = torch.randint(0, 97, (ROWS,), generator=draw)
        target = (token * 31 + 7 * torch.randint(0, 4, (ROWS,), generator=draw)) % VOCAB
        hidden = (2 * torch.tanh(masters[0][token] @ masters[1])).bfloat16()
        weight = masters[2].bfloat16()
        found = head(hidden, weight, target)
        (dhidden,) = torch.autograd.grad(loss_of(*found), hidden, retain_graph=True)
        leaf = hidden.detach().float().requires_grad_()
        *wanted, logits = exact(leaf, weight.detach(), target)
        expected, dlogits = torch.autograd.grad(loss_of(*wanted), (leaf, logits))
        of_means = 2 * WIDTH * 2**-24 * (hidden.float().abs() @ weight.float().abs().T).max().item()
        assert of_means < 1e-3, f"a bound of {of_means} on means would see nothing"
        of_dhidden = 2**-9 * ((dlogits**2 @ weight.float() ** 2).sum() ** 0.5 + expected.norm()).item()
        means = [(a - b).mean().item() / of_means for a, b in zip(found, wanted)]
        shares.append([*means, (dhidden.float() - expected).norm().item() / of_dhidden])
        update.zero_grad()
        loss_of(*found).backward()
        update.step()
    return torch.tensor(shares, dtype=torch.float64)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_no_drift(optimizer):
    """150 updates through the op: each step's means stay as near to float32 as float32 is to the truth. A logit is a sum of C products
    in float, wrong by C · 2⁻²⁴ · Σ|h w| at most, and a log-prob or an entropy by twice that. dhidden has two roundings to bfloat16, of
    dz and at the end, each of 2⁻⁹ of an element at most; those of dz are independent, so their squares add: 2⁻⁹ · √Σ(dz w)². None of it
    grows with the steps: the line through the differences rises by less than half of what is allowed. A head that rounds partial products
    is outside by the same measure."""
    shares = train(ours, optimizer)
    worst = shares.abs().amax(0)
    assert (worst <= 1).all(), f"log-prob, entropy, dhidden are off by {worst.tolist()} of what rounding allows"
    steps = torch.linspace(-0.5, 0.5, STEPS, dtype=torch.float64)
    rise = (steps[:, None] * shares).sum(0) / (steps**2).sum()
    assert (rise.abs() <= 0.5).all(), f"over {STEPS} steps they rise by {rise.tolist()} of what rounding allows"
    wrong = train(RoundsPartialProducts.apply, optimizer).abs().amax(0)
    assert (wrong > 1.5).all(), f"a head that is wrong is off by {wrong.tolist()} of what rounding allows"


def environment(means):
    paths = [str(Path(isentrope.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "ISENTROPE_BFLOAT16_PRODUCTS": means, "PYTHONPATH": os.pathsep.join(paths)}


def test_products_in_plain_loops():
    """The tests of values of test_linear_token_entropy.py again, where the processor's products are plain loops."""
    file = Path(__file__).with_name("test_linear_token_entropy.py")
    names = "bfloat16 or special or strides or ignored or one_row or threads or opcheck"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file), "-k", f"not cuda and ({names})"],
                          env=environment("plain"), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


SUMS = """
import sys, torch, isentrope
torch.manual_seed(0)
hidden, weight = torch.randn(70, 65).bfloat16().requires_grad_(), (torch.randn(700, 65) / 4).bfloat16().requires_grad_()
out = isentrope.linear_token_entropy(hidden, weight, torch.arange(70))
(out.logprob - 0.1 * out.entropy).sum().backward()
torch.save([out.logprob.detach(), out.entropy.detach(), hidden.grad, weight.grad], sys.argv[1])
"""


def test_products_are_taken(tmp_path):
    """With the products and without them the values agree, and the gradients' bits do not: dz is rounded for the products alone."""
    results = []
    for means in ("plain", "off"):
        subprocess.run([sys.executable, "-c", SUMS, tmp_path / means], env=environment(means), check=True)
        results.append(torch.load(tmp_path / means))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=2e-2 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-3 if a.dtype == torch.bfloat16 else 1e-5)
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        assert not all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.skipif(not re.search(r"\b(avx512_bf16|amx_bf16)\b", Path("/proc/cpuinfo").read_text()) or "ISENTROPE_BFLOAT16_PRODUCTS" in os.environ
                    or "ATEN_CPU_CAPABILITY" in os.environ,
                    reason="no bfloat16 products of the processor here: without them operands are made float, which takes more")
def test_memory():
    """At most 2 % of the logits in float32 beside the gradients; half of the float sums of dhidden lie where it is to be."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "benchmarks"))
    from linear_token_entropy import peak_bytes_of_new_thread as peak_bytes

    N, C, V = 512, 256, 40_000
    hidden, weight = torch.randn(N, C).bfloat16(), (torch.randn(V, C) / 8).bfloat16()
    target, weights = torch.randint(0, V, (N,)), torch.randn(2, N)

    def both():
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
        logprob, entropy = isentrope.linear_token_entropy(*leaves, target)[:2]
        (logprob * weights[0] + entropy * weights[1]).sum().backward()
        return leaves[0].grad, leaves[1].grad

    both()
    torch.set_num_threads(1)
    used = peak_bytes(both)
    if used is None:
        pytest.skip("no high-water mark of memory here")
    used -= hidden.nbytes + weight.nbytes
    assert used <= 0.02 * 4 * N * V, f"{used} bytes beside [N, V] of {4 * N * V} and the gradients"
