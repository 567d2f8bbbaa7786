"""κ of every tensor of a model of the shapes of SmolLM2-135M (10 of its 30 layers, and its embedding of 49152 × 576), random weights in float32:
`isentrope diagnose --measure condition-number` against a loop over numpy.linalg.svd(weight, compute_uv=False), which is float32 too. Values are checked
against singular values in float64: each κ within 1e-3, which the loop's own need not be.
"""

import numpy as np
import torch

from isentrope.diagnose.measures.condition_number import GRAM_ERROR, condition

from timing import compare, interleaved

LAYERS, WIDTH, KEYS, MLP, VOCABULARY = 10, 576, 192, 1536, 49152
LAYER = [(WIDTH, WIDTH)] * 2 + [(KEYS, WIDTH)] * 2 + [(MLP, WIDTH)] * 2 + [(WIDTH, MLP)]
TARGET = 2
PEERS = ["threadpoolctl"]  # holds the threads of numpy


def weights(layers):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape, dtype=np.float32) for _ in range(layers) for shape in LAYER]


def loop(matrices):
    found = []
    for matrix in matrices:
        values = np.linalg.svd(matrix, compute_uv=False)
        found.append(float(values[0] / values[-1]))
    return found


def rows(threads, rounds=5):
    from threadpoolctl import threadpool_limits  # numpy's own

    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        every = weights(LAYERS)
        for matrix in every[: len(LAYER)]:
            values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
            assert abs(condition(matrix).kappa / (values[0] / values[-1]) - 1) <= GRAM_ERROR
        embedding = np.random.default_rng(1).standard_normal((VOCABULARY, WIDTH), dtype=np.float32)
        found = []
        for name, matrices in ((f"{LAYERS} layers of SmolLM2-135M", every), (f"{VOCABULARY} × {WIDTH}", [embedding])):
            seconds = interleaved({"ours": lambda m=matrices: [condition(matrix) for matrix in m], "numpy svd": lambda m=matrices: loop(m)}, rounds)
            found.append({"op": "condition number", "shape": name, "dtype": "float32", "threads": threads, "target": TARGET, **compare(seconds, "ours", "numpy svd")})
        return found
