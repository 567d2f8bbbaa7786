"""Superposition while a network groks: a + b mod P learnt from a part of the pairs. First it is right on these alone, and much later, at once, on
all of them. ψ, the features in use of the hidden units for each of them, is measured all the while (isentrope.diagnose.sparse_autoencoder).

    python examples/grokking.py [--seed 0] [--csv grokking.csv]

Half a minute on one core. The network: one-hot a and b → HIDDEN units, squared → P logits, as in Gromov 2023 (arXiv:2301.02679), which has
the weights that it comes to in closed form; all pairs of the part at each step, AdamW.
"""

import argparse
import csv
from collections.abc import Iterator

import torch
from isentrope.diagnose.sparse_autoencoder import superposition, train
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

P, HIDDEN, SHARE = 41, 96, 0.45  # share of the pairs that are learnt from
STEPS, LOOK_AT = 2000, (0, 100, 200, 400, 600, 1000, 2000)
RATE, DECAY = 5e-3, 1.0
WIDTH, L1, EPOCHS = 4, 0.1, 60  # features of the autoencoder for each hidden unit, the weight of their codes, passes over the pairs


def network(seed: int) -> Iterator[tuple[int, float, float, Tensor]]:
    """Steps and what was seen: (step, accuracy on the pairs learnt from, on the others, activations of all pairs [P², HIDDEN])."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij")
    inputs = torch.cat([one_hot(a.flatten(), P), one_hot(b.flatten(), P)], 1).float()
    sums = (a + b).flatten() % P
    order = torch.randperm(P * P, generator=generator)
    learnt, others = order[: int(SHARE * P * P)], order[int(SHARE * P * P) :]
    first = (torch.randn(2 * P, HIDDEN, generator=generator) * (1 / (2 * P)) ** 0.5).requires_grad_()
    second = (torch.randn(HIDDEN, P, generator=generator) * (1 / HIDDEN) ** 0.5).requires_grad_()
    optimizer = torch.optim.AdamW([first, second], lr=RATE, weight_decay=DECAY, betas=(0.9, 0.98))
    for step in range(STEPS + 1):
        if step in LOOK_AT:
            with torch.no_grad():
                hidden = (inputs @ first).square()
                right = (hidden @ second).argmax(1) == sums
            yield step, right[learnt].float().mean().item(), right[others].float().mean().item(), hidden
        optimizer.zero_grad()
        cross_entropy((inputs[learnt] @ first).square() @ second, sums[learnt]).backward()
        optimizer.step()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--csv", help="file for the table")
    chosen = arguments.parse_args()
    rows = []
    print("step  learnt  others  features in use     ψ  codes a pair  not explained")
    for step, learnt, others, hidden in network(chosen.seed):
        made = train(hidden, width=WIDTH * HIDDEN, l1=L1, epochs=EPOCHS, batch=128, lr=3e-3, seed=chosen.seed)
        found = superposition(made, hidden)
        rows.append([step, learnt, others, found.features, found.psi, found.l0, found.unexplained])
        print(f"{step:4}  {learnt:6.2f}  {others:6.2f}  {found.features:15.0f}  {found.psi:4.2f}  {found.l0:12.1f}  {found.unexplained:13.2f}", flush=True)
    if chosen.csv:
        with open(chosen.csv, "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["step", "accuracy_learnt", "accuracy_others", "features_in_use", "psi", "l0", "unexplained"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
