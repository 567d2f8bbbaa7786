#!/usr/bin/env bash
# One would expect a first step of AdamW with lr 1e-6 on float32 weights near 0.02 to leave their bfloat16 copies, which autocast multiplies with, all but
# unchanged: a unit in bfloat16's last place is 60 to 120 times as much. But weights that came from a float16 file lie on float16's grid, which has three
# more bits: one in eight lies exactly between two bfloat16 values, and half of these go to the other one at the slightest push, each in the direction
# of the step. What the products see moves about six times as far as the weights did, in the first step, and then hardly: the others are an eighth of a
# unit away from where they would go over. (SmolLM2-135M, dequantised: the loss of eight examples falls from 0.90 to 0.27 in one step, and stays; in float32 to 0.83.)
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0
expect <<'END'
torch 2.15.0
weights from random draws: step 1 moves the bfloat16 copies 1.0 times as far as the weights, along the step
weights from a float16 file: 13 % lie between two bfloat16 values
weights from a float16 file: step 1 moves the bfloat16 copies 5.7 times as far as the weights, along the step
weights from a float16 file: step 2 moves the bfloat16 copies 0.2 times as far as the weights, along the step
END
run <<'PY'
import torch

torch.manual_seed(0)
drawn = torch.randn(2000, 1000) * 0.02
gradient = torch.randn(2000, 1000)
print("torch", torch.__version__.split("+")[0])
for source, start in (("random draws", drawn), ("a float16 file", drawn.half().float())):
    weight = torch.nn.Parameter(start.clone())
    if source != "random draws":
        ties = (start.view(torch.int32) & 0xFFFF) == 0x8000
        print(f"weights from {source}: {100 * ties.double().mean():.0f} % lie between two bfloat16 values")
    optimizer = torch.optim.AdamW([weight], lr=1e-6, weight_decay=0.0)
    for step in (1,) if source == "random draws" else (1, 2):
        before, narrow = weight.detach().clone(), weight.detach().bfloat16().float()
        weight.grad = gradient.clone()
        optimizer.step()
        along = lambda moved: -(moved * gradient.sign()).double().mean().item()
        ratio = along(weight.detach().bfloat16().float() - narrow) / along(weight.detach() - before)
        print(f"weights from {source}: step {step} moves the bfloat16 copies {ratio:.1f} times as far as the weights, along the step")
PY
