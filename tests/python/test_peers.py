"""The rows of docs/peers.md in which verl 0.9.1 and TRL 1.16 differ from a reading of their names, as formulas."""

import pytest
import torch

import isentrope

B, T = 6, 13


@pytest.fixture
def batch():
    torch.manual_seed(0)
    old = -3 * torch.rand(B, T, dtype=torch.float64)
    mask = torch.arange(T) < torch.tensor([13, 4, 9, 1, 6, 11])[:, None]
    drawn = {"logprob": old + 0.3 * torch.randn(B, T), "ref": old + 0.2 * torch.randn(B, T), "advantage": torch.randn(B, T)}
    return {"old": old, "mask": mask, **{name: x.double() for name, x in drawn.items()}}


def agrees(ours, theirs, logprob):
    """The same loss and gradient. Sums of some 50 terms in double, of size 1: 1e-14."""
    losses, gradients = [], []
    for function in (ours, theirs):
        leaf = logprob.clone().requires_grad_()
        losses.append(function(leaf))
        gradients.append(torch.autograd.grad(losses[-1], leaf)[0])
    torch.testing.assert_close(*losses, rtol=0, atol=1e-13)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "aggregate, theirs",
    [
        ("token-mean", lambda x, m: x.sum() / m.sum()),  # verl token-mean, TRL bnpo
        ("seq-mean-token-mean", lambda x, m: (x.sum(1) / m.sum(1)).mean()),  # TRL grpo
        ("seq-mean-token-sum-norm", lambda x, m: x.sum() / (B * T)),  # TRL dr_grpo, verl from 0.7.1 on
        ("token-sum-norm", lambda x, m: x.sum() / T),  # verl up to 0.7.0
    ],
)
def test_aggregates(batch, aggregate, theirs):
    old, mask, advantage = batch["old"], batch["mask"], batch["advantage"]

    def clip(logprob):
        ratio = (logprob - old).exp()
        loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        return theirs(loss * mask, mask)

    agrees(lambda x: isentrope.grpo_loss(x, old, advantage, mask, aggregate=aggregate).loss, clip, batch["logprob"])


def test_cispo_of_trl_names_the_bound_itself(batch):
    old, mask, advantage, bound = batch["old"], batch["mask"], batch["advantage"], 1.3

    def cispo(logprob):
        weight = (logprob - old).exp().clamp(max=bound).detach()
        return (-weight * advantage * logprob * mask).sum() / mask.sum()

    def ours(x):
        return isentrope.grpo_loss(x, old, advantage, mask, mode="cispo", clip_low=1.0, clip_high=bound - 1).loss

    agrees(ours, cispo, batch["logprob"])


@pytest.mark.parametrize("corrected, ref_kl", [(True, "k3_is"), (False, "k3")])
def test_beta_of_trl(batch, corrected, ref_kl):
    """use_bias_correction_kl, TRL's default, weighs k3 by the ratio, and differentiates through it."""
    old, mask, ref = batch["old"], batch["mask"], batch["ref"]

    def beta(logprob):
        k3 = (ref - logprob).exp() - (ref - logprob) - 1
        weight = (logprob - old).exp() if corrected else 1
        return 0.04 * (weight * k3 * mask).sum() / mask.sum()

    def ours(x):
        zero = torch.zeros_like(old)
        return isentrope.grpo_loss(x, old, zero, mask, ref_logprob=ref, ref_kl=ref_kl, ref_kl_coef=0.04).loss

    agrees(ours, beta, batch["logprob"])


def test_kl_cov_of_verl(batch):
    """ppo_kl_coef, 0.1 by default; the tokens are chosen by the same rule."""
    old, mask, advantage = batch["old"], batch["mask"], batch["advantage"]
    chosen = isentrope.grpo_select(batch["logprob"], old, advantage, mask, mode="kl_cov", seed=0, cov_ratio=0.2)

    def kl_cov(logprob):
        ratio = (logprob - old).exp()
        loss = -advantage * ratio + 0.1 * (logprob - old).abs() * chosen
        return (loss * mask).sum() / mask.sum()

    def ours(x):
        return isentrope.grpo_loss(x, old, advantage, mask, mode="kl_cov", selected=chosen, kl_cov_coef=0.1).loss

    agrees(ours, kl_cov, batch["logprob"])
