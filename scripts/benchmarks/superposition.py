"""The sparse autoencoder of `isentrope diagnose --measure superposition` against the same one in eager torch (autograd, torch.optim.Adam),
float32: activations of 576 dimensions, sums of some 10 of 1152 directions and a little noise, 4608 features, steps of 1024 activations. "begin" is the training
of 16 steps from the start that both share, "later" a step after 60, when codes are sparser, "epoch" the 977 steps of an epoch of a million activations,
from the start that both share, once, in turn by stretches of some 60 steps: its range is that of the stretches. Gradients are compared before anything is
timed, and the loss after the 16 steps and over the last stretch of the epoch. Seconds are of the processor where there is one thread.
"""

import warnings

import torch

from isentrope.diagnose.sparse_autoencoder import Training

from timing import clock_of, compare, interleaved

DIMENSION, FEATURES, BATCH, STEPS, LATER = 576, 4608, 1024, 16, 60
EPOCH, STRETCHES = 1_000_000, 16
L1, LR = 0.1, 1e-3
TARGET = 1.5


class Eager:
    """The same model and steps as a user writes them."""

    def __init__(self, like):
        self.parameters = [p.detach().clone().requires_grad_() for p in like.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LR)

    def loss(self, x):
        encoder, encoder_bias, decoder, decoder_bias = self.parameters
        codes = torch.relu(torch.nn.functional.linear(x, encoder, encoder_bias))
        return (codes @ decoder + decoder_bias - x).square().sum(1).mean() + L1 * codes.sum(1).mean()

    def step(self, x):
        loss = self.loss(x)
        self.optimizer.zero_grad()
        loss.backward()
        decoder = self.parameters[2]
        with torch.no_grad():
            decoder.grad -= decoder * (decoder.grad * decoder).sum(1, keepdim=True)
        self.optimizer.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
        return loss.item()


def activations(rows, seed=0):
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2 * DIMENSION, DIMENSION, generator=generator))
    if seed:
        generator.manual_seed(seed)
    there = torch.rand(rows, 2 * DIMENSION, generator=generator) < 10 / (2 * DIMENSION)
    x = (there * torch.rand(rows, 2 * DIMENSION, generator=generator)) @ directions
    x += 0.1 * torch.randn(x.shape, generator=generator) / DIMENSION**0.5
    x -= x.mean(0)
    return x / x.square().sum(1).mean().sqrt()


def training():
    return Training(FEATURES, DIMENSION, BATCH, l1=L1, lr=LR, seed=0)


def check_values(x):
    """Gradients as those of autograd in float64, with at most twice the error of autograd in float32."""
    ours = training()
    ours.density = 0.0
    ours.backward(x)
    single = Eager(ours)
    single.loss(x).backward()
    double = Eager(ours)
    double.parameters = [p.detach().double().requires_grad_() for p in double.parameters]
    double.loss(x.double()).backward()
    for name, a, p, e in zip(("encoder", "encoder bias", "decoder", "decoder bias"), ours.gradients, single.parameters, double.parameters):
        error, allowed = (a - e.grad).abs().max().item(), 2 * (p.grad - e.grad).abs().max().item()
        assert error <= allowed, f"d {name}: error {error}, allowed {allowed}"


def epoch(clock):
    """{contender: seconds of each stretch} of one epoch; the steps of a stretch are of new activations, made outside the time."""
    contenders = {"ours": training(), "eager": Eager(training())}
    seconds, losses = {name: [] for name in contenders}, {}
    steps = -(-EPOCH // BATCH)
    for stretch in range(STRETCHES):
        own = steps // STRETCHES + (stretch < steps % STRETCHES)
        batches = activations(own * BATCH, seed=1 + stretch).split(BATCH)
        for name in list(contenders)[:: -1 if stretch % 2 else 1]:
            start = clock()
            losses[name] = sum(contenders[name].step(batch) for batch in batches) / own
            seconds[name].append(clock() - start)
    assert abs(losses["ours"] - losses["eager"]) < 0.01 * losses["eager"], losses  # two roundings of one training of 977 steps
    return seconds, contenders["ours"].density


def rows(threads, rounds=5):
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    x = activations(LATER * BATCH)
    batches = x.split(BATCH)
    check_values(batches[0][:256])
    losses, clock = {}, clock_of(threads)

    def begin(make, name):
        def run():
            made = make()
            losses[name] = [made.step(batch) for batch in batches[:STEPS]][-1]

        return run

    seconds = interleaved({"ours": begin(training, "ours"), "eager": begin(lambda: Eager(training()), "eager")}, rounds, clock=clock)
    assert abs(losses["ours"] - losses["eager"]) < 1e-3 * losses["eager"], losses
    shape = f"{STEPS * BATCH} × {DIMENSION} → {FEATURES}"
    found = [{"op": "autoencoder, begin", "shape": shape, "dtype": "float32", "threads": threads, "target": TARGET, **compare(seconds, "ours", "eager")}]
    ours = training()
    for batch in batches:
        ours.step(batch)
    later = Eager(ours)
    seconds = interleaved({"ours": lambda: ours.step(batches[0]), "eager": lambda: later.step(batches[0])}, 3 * rounds, clock=clock)
    shape = f"{BATCH} × {DIMENSION} → {FEATURES}, {ours.density:.1%} codes"
    found.append({"op": "autoencoder, later", "shape": shape, "dtype": "float32", "threads": threads, "target": TARGET, **compare(seconds, "ours", "eager")})
    seconds, density = epoch(clock)
    taken = {name: sum(of) for name, of in seconds.items()}
    whole = {"ours_s": taken["ours"], "peer_s": taken["eager"], "ratio": taken["eager"] / taken["ours"]}  # of the sums, not a median
    shape = f"{EPOCH:,} × {DIMENSION} → {FEATURES}, {density:.1%} codes"
    return [*found, {"op": "autoencoder, epoch", "shape": shape, "dtype": "float32", "threads": threads, "target": TARGET, **compare(seconds, "ours", "eager"), **whole}]
