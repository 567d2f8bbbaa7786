"""Linear attention and the gated delta rule by hand: a sequence at once, then a token at a time from a state; what the state holds.

    python examples/linear_attention.py
"""

import torch

import isentrope
from isentrope import nn

torch.manual_seed(0)
B, H, T, D = 1, 2, 96, 16
q, k, v = (torch.randn(B, H, T, D) for _ in range(3))

# ---- weights that decay, made of positive features, divided by their sum ---------------------------------------------
phi = nn.feature_maps.elu_plus_one
log_decay = torch.tensor([-0.01, -0.3])[None, :, None].expand(B, H, T)  # one head looks far back, the other does not
out, state = isentrope.linear_attention(phi(q), phi(k), v, log_decay=log_decay, normalizer=True)

entropy = nn.weight_entropy(phi(q), phi(k), log_decay)  # of the rows' weights: what a softmax's entropy is
print("entropy of the last row, far and near:", [round(x, 2) for x in entropy[0, :, -1].tolist()], "nats")

# ---- the same, a token at a time: the state is all that is kept of the past -------------------------------------------
kept: torch.Tensor | None = None
row = torch.empty(0)
for t in range(T):
    row, kept = isentrope.linear_attention(
        phi(q[:, :, t : t + 1]), phi(k[:, :, t : t + 1]), v[:, :, t : t + 1], log_decay=log_decay[:, :, t : t + 1], state=kept, normalizer=True
    )
assert torch.allclose(row, out[:, :, -1:], atol=1e-5)
print("a token at a time: the last row differs by", f"{(row - out[:, :, -1:]).abs().max():.0e}", "at most")

# ---- a memory that replaces ------------------------------------------------------------------------------------------
# 16 keys, each written again and again: the delta rule's state keeps the last value of a key, linear attention's their sum.
keys = torch.nn.functional.normalize(torch.randn(16, D), dim=-1)
which = torch.arange(T) % 16
k = keys[which].expand(B, H, T, D)
ones, none = torch.ones(B, H, T), torch.zeros(B, H, T)
summed, of_sums = isentrope.linear_attention(k, k, v)
replaced, of_last = isentrope.gated_delta_rule(k, k, v, ones, none)
print("a key just written reads as its value but for", f"{(replaced - v).abs().max():.0e} (delta rule), {(summed - v).abs().max():.1f} (sums)")
print("effective rank of the states:", f"{nn.effective_rank(of_last).mean():.1f} of {D},", f"{nn.effective_rank(of_sums).mean():.1f} of sums")

# ---- a layer that learns: the loss falls ------------------------------------------------------------------------------
layer = nn.GatedDeltaNet(32, num_heads=2, expand_v=1.0)
optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
x = torch.randn(4, 64, 32)
for step in range(30):
    loss = (layer(x)[:, 1:] - x[:, :-1]).square().mean()  # recall the token before
    if step in (0, 29):
        print(f"step {step}: loss {loss.item():.2f}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
