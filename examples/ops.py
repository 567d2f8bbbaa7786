"""One policy update by hand, with the ops alone: log-probability and entropy of the sampled tokens, the tokens that KL-Cov
picks, the loss. No trainer takes part; this is how the ops go into a training loop of your own.

    python examples/ops.py
"""

import torch

import isentrope

B, T, V = 8, 32, 1000  # completions, tokens of each, vocabulary
generator = torch.Generator().manual_seed(1)

head = torch.nn.Linear(64, V)  # stands for a model: hidden states → logits
hidden = torch.randn(B, T, 64, generator=generator)
with torch.no_grad():
    sampled = torch.distributions.Categorical(logits=head(hidden)).sample()  # [B, T]
    old_logprob, _, _ = isentrope.token_entropy(head(hidden), sampled)

reward = (sampled % 7 == 0).float().mean(dim=1)  # [B]: any score of a completion
advantage = ((reward - reward.mean()) / (reward.std() + 1e-6))[:, None].expand(B, T)
mask = torch.ones(B, T, dtype=torch.bool)

optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
for step in range(1, 9):
    logprob, entropy, _ = isentrope.token_entropy(head(hidden), sampled)
    selected = isentrope.grpo_select(logprob.detach(), old_logprob, advantage, mask, mode="kl_cov", seed=step)
    loss, token_loss, stats = isentrope.grpo_loss(logprob, old_logprob, advantage, mask, selected=selected, mode="kl_cov")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}  loss {loss.item():+.4f}  entropy {entropy.mean().item():.3f} nats  picked {selected.sum().item()}")
