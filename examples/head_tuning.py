"""Head tuning on a hidden Markov model: a frozen decoder, and a linear head that reads the hidden state of the chain off it, fitted on few
windows. Its risk on other windows over the width of the features, through as many features as windows.

    python examples/head_tuning.py [--steps 600] [--seeds 20] [--csv head_tuning.csv]

A minute on two cores. The decoder is pretrained on data.hmm; features are its last layer's states at the end of a window, in three orders: by
principal component, rotated at random, and of a decoder that was not trained. The head is the least-squares one of least norm; what it
is to say is the exact filter's belief in each state. Risk: squared error / variance of that, median over draws of the windows. After Luo,
Wang and Huang (arXiv:2410.00699), whose claim is that with pretrained features the risk over the width falls, rises to a peak, and falls again.
"""

import argparse
import csv
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

STATES, SYMBOLS, CONTEXT, WIDTH = 6, 12, 32, 64
LABELLED, HELD_OUT, NOISE = 24, 1000, 0.1  # windows to fit on and to judge by; standard deviation of the labels' noise
WIDTHS = (0, 1, 2, 4, 8, 16, 20, 24, 28, 32, 48, 64)
ALPHABET = "0123456789ab."

Array = NDArray[np.float64]


def chain(seed: int) -> tuple[Array, Array, Array]:
    """(transition [S, S], emission [S, V], stationary law [S])."""
    draw = np.random.default_rng(seed)
    transition, emission = draw.dirichlet(np.full(STATES, 0.2), STATES), draw.dirichlet(np.full(SYMBOLS, 0.1), STATES)
    transition = 0.95 * transition + 0.05 / STATES  # every state can follow every other
    law = np.linalg.matrix_power(transition, 1000)[0]  # every row of it
    return transition, emission, law


def windows(count: int, hmm: tuple[Array, Array, Array], draw: np.random.Generator) -> tuple[NDArray[np.int64], Array]:
    """(symbols [count, T], the filter's belief in the state of the last symbol [count, S])."""
    transition, emission, law = hmm

    def choose(p: Array) -> NDArray[np.int64]:
        chosen: NDArray[np.int64] = (p.cumsum(1) > draw.random((len(p), 1))).argmax(1)
        return chosen

    state = choose(np.tile(law, (count, 1)))
    belief = np.tile(law, (count, 1))
    symbols = []
    for t in range(CONTEXT):
        if t:
            state, belief = choose(transition[state]), belief @ transition
        symbols.append(choose(emission[state]))
        belief = belief * emission[:, symbols[-1]].T
        belief /= belief.sum(1, keepdims=True)
    return np.stack(symbols, 1), belief


def decoder(hmm: tuple[Array, Array, Array], steps: int, folder: str) -> transformers.PreTrainedModel:
    def rows(x: Array) -> str:
        return "[" + ", ".join(repr(float(p)) for p in x.flatten()) + "]"

    Path(folder, "hmm.yaml").write_text(f"""
run: {{dir: {folder}/run}}
model: {{num_hidden_layers: 2, hidden_size: {WIDTH}, num_attention_heads: 4, num_key_value_heads: 4, intermediate_size: 128, max_position_embeddings: {CONTEXT}}}
tokenizer: {{kind: characters, characters: "{ALPHABET}"}}
phases:
  - name: pretrain
    objective: {{kind: pretrain}}
    data: {{hmm: {{states: {STATES}, symbols: {SYMBOLS}, transition: {rows(hmm[0])}, emission: {rows(hmm[1])}, cache: {folder}/tokens}}}}
    batch: {{sequences: 32}}
    optimizer: {{lr: 4.0e-3, betas: [0.9, 0.98]}}
    schedule: {{kind: cosine, warmup_steps: 20}}
    steps: {steps}
""")
    subprocess.run(["isentrope", "train", f"{folder}/hmm.yaml", "--quiet"], check=True)
    last = sorted(Path(folder, "run", "checkpoints").iterdir())[-1]
    return transformers.AutoModelForCausalLM.from_pretrained(last)


def features(model: transformers.PreTrainedModel, symbols: NDArray[np.int64]) -> Array:
    """[n, d], centred: the last layer's state of each window's last symbol, whose token is its place in the alphabet."""
    with torch.no_grad():
        states: Array = model.model(torch.as_tensor(symbols)).last_hidden_state[:, -1].double().numpy()
    centred: Array = states - states.mean(0)
    return centred


def risks(x: Array, y: Array, draw: np.random.Generator) -> list[float]:
    """Of each width of WIDTHS: the head on LABELLED windows of x [n, d], y [n, S], judged by the others."""
    fit = draw.permutation(len(x))
    fit, rest = fit[:LABELLED], fit[LABELLED:]
    noisy = y[fit] + NOISE * draw.standard_normal(y[fit].shape)
    found = []
    for p in WIDTHS:
        head = np.linalg.pinv(x[fit, :p]) @ (noisy - noisy.mean(0)) if p else np.zeros((0, y.shape[1]))
        error = x[rest, :p] @ head + noisy.mean(0) - y[rest]
        found.append(float((error**2).sum(1).mean() / y[rest].var(0).sum()))
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=600, help="of pretraining")
    arguments.add_argument("--seeds", type=int, default=20, help="draws of the labelled windows")
    arguments.add_argument("--csv", help="file for the table")
    chosen = arguments.parse_args()
    hmm = chain(seed=1)
    symbols, belief = windows(LABELLED + HELD_OUT, hmm, np.random.default_rng(2))
    with tempfile.TemporaryDirectory() as folder:
        trained = decoder(hmm, chosen.steps, folder)
    torch.manual_seed(0)
    untrained = transformers.AutoModelForCausalLM.from_config(trained.config)
    states = features(trained, symbols)
    by_component = states @ np.linalg.svd(states, full_matrices=False)[2].T
    rotated = states @ np.linalg.qr(np.random.default_rng(3).standard_normal((WIDTH, WIDTH)))[0]
    orders = {"principal": by_component, "rotated": rotated, "untrained": features(untrained, symbols)}
    table = {name: np.median([risks(x, belief, np.random.default_rng(seed)) for seed in range(chosen.seeds)], 0) for name, x in orders.items()}
    print("features  " + "  ".join(f"{name:>9}" for name in table))
    for i, p in enumerate(WIDTHS):
        print(f"{p:8}  " + "  ".join(f"{risk[i]:9.3f}" for risk in table.values()))
    if chosen.csv:
        with open(chosen.csv, "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["features", *table])
            writer.writerows([p, *(risk[i] for risk in table.values())] for i, p in enumerate(WIDTHS))


if __name__ == "__main__":
    main()
