#!/usr/bin/env bash
# One would expect kl_cov, which penalises the tokens of the largest covariance of advantage and log-probability, to penalise none where no
# covariance is above 0. verl 0.9.1 takes the covariances of a micro-batch, and with ppo_micro_batch_size_per_gpu=1 and one advantage a sequence, as GRPO
# has, all of them are 0 but for rounding, by which, or by their order, the tokens are then chosen; clip_cov finds none in its band. Micro-batches of
# several sequences have covariances.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0 verl==0.9.1
expect <<'END'
verl 0.9.1
kl_cov, one sequence of advantage 0.1: tokens penalised of 1000: 100, their covariances at most 0.00000
clip_cov, the same: tokens dropped: 0
kl_cov, two sequences of advantages 0.1 and -0.7: 100, 100 of them with a covariance above 0.1
END
run <<'PY'
import torch
import verl
from verl.trainer.ppo import core_algos
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

config = FSDPActorConfig(rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=PolicyLossConfig(kl_cov_ratio=0.1, clip_cov_ratio=0.1, ppo_kl_coef=1.0))


def chosen(name, advantage):
    """The tokens whose gradient is not that of the plain loss, and their covariances in double."""
    torch.manual_seed(0)
    T = 1000 // len(advantage)
    old = -3 * torch.rand(len(advantage), T)
    new = (old + 0.1 * torch.rand(len(advantage), T)).requires_grad_()
    advantage = torch.tensor(advantage)[:, None].expand(len(advantage), T).clone()
    mask = torch.ones_like(old)
    loss, _ = core_algos.get_policy_loss_fn(name)(old, new, advantage, mask, "token-sum", config)
    plain = -(advantage * (new - old).exp())
    gradient, expected = (torch.autograd.grad(x, new)[0] for x in (loss, plain.sum()))
    apart = (gradient - expected).abs() > 1e-3
    covariance = (advantage.double() - advantage.double().mean()) * (new.detach().double() - new.detach().double().mean())
    return apart, covariance[apart]


print("verl", verl.__version__)
apart, covariance = chosen("kl_cov", [0.1])
print(f"kl_cov, one sequence of advantage 0.1: tokens penalised of 1000: {apart.sum()}, their covariances at most {covariance.abs().max():.5f}")
print(f"clip_cov, the same: tokens dropped: {chosen('clip_cov', [0.1])[0].sum()}")
apart, covariance = chosen("kl_cov", [0.1, -0.7])
print(f"kl_cov, two sequences of advantages 0.1 and -0.7: {apart.sum()}, {(covariance > 0.1).sum()} of them with a covariance above 0.1")
PY
