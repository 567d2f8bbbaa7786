"""A toy model of superposition: FEATURES inputs that are seldom on are squeezed through HIDDEN units, and the sparser they are the more of them the units
hold (Elhage et al. 2022). ψ, the features in use for each hidden unit, is measured of the hidden activations (isentrope.diagnose.sparse_autoencoder)
beside what the weights show: features whose columns are longer than HELD. Dropout of hidden units makes the model hold fewer.

    python examples/toy_superposition.py [--seed 0] [--csv toy.csv]

A minute on one core. The model: x̂ = relu(Wᵀ W x + b), feature i weighed by IMPORTANCE^i in the loss, Adam.
"""

import argparse
import csv
import math

import torch
from isentrope.diagnose.sparse_autoencoder import Superposition, superposition, train
from torch import Tensor

FEATURES, HIDDEN, HELD = 20, 5, 0.5
IMPORTANCE, STEPS, BATCH, RATE, ROWS = 0.9, 400, 512, 1e-2, 20000
WIDTH, L1, EPOCHS = 8, 0.2, 12  # features of the autoencoder for each hidden unit, the weight of their codes, passes over the activations


def toy(on: float, dropout: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A trained model: hidden activations of ROWS inputs, those without a feature left out [rows, HIDDEN], and W [HIDDEN, FEATURES].

    on: how often a feature is, uniform in 0 … 1 where it is. dropout: of hidden units in training.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(HIDDEN, FEATURES, generator=generator) / math.sqrt(HIDDEN)).requires_grad_()
    bias = torch.zeros(FEATURES, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=RATE)
    importance = IMPORTANCE ** torch.arange(FEATURES)

    def draw(rows: int) -> Tensor:
        return torch.rand(rows, FEATURES, generator=generator) * (torch.rand(rows, FEATURES, generator=generator) > 1 - on)

    for _ in range(STEPS):
        x = draw(BATCH)
        hidden = x @ weight.T
        if dropout:
            hidden = hidden * (torch.rand(hidden.shape, generator=generator) >= dropout) / (1 - dropout)
        loss = (importance * (torch.relu(hidden @ weight + bias) - x).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = draw(ROWS)
    return (x[(x > 0).any(1)] @ weight.T).detach(), weight.detach()


def measured(on: float, dropout: float = 0.0, seed: int = 0) -> tuple[int, Superposition]:
    """Features that the weights hold, and what an autoencoder counts."""
    hidden, weight = toy(on, dropout, seed)
    found = train(hidden, width=WIDTH * HIDDEN, l1=L1, epochs=EPOCHS, batch=256, lr=1e-2, seed=seed)
    return int((weight.norm(dim=0) > HELD).sum()), superposition(found, hidden)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--csv", help="file for the table")
    chosen = arguments.parse_args()
    rows = []
    print(f"  on  dropout  held by the weights  features in use     ψ  ({FEATURES} features, {HIDDEN} hidden units)")
    for on in (0.3, 0.1, 0.03):
        for dropout in (0.0, 0.5):
            held, found = measured(on, dropout, chosen.seed)
            rows.append([on, dropout, held, found.features, found.psi])
            print(f"{on:4.2f}  {dropout:7.1f}  {held:19}  {found.features:15.1f}  {found.psi:4.2f}", flush=True)
    if chosen.csv:
        with open(chosen.csv, "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["on", "dropout", "held", "features_in_use", "psi"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
