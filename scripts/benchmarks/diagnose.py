"""Measures of `isentrope diagnose` on SmolLM2-135M. representation: the pass with the measure against the forward passes alone, where the target
is a ratio of at least 1 / 1.15. concept-depth: the probes of all layers against scikit-learn's StandardScaler and LogisticRegression
layer by layer, on hidden states of reviews (examples/diagnose_data.py), 31 layers of 2000 texts of which 1200 are learnt from; accuracies on the others
agree. circuit: the total effect of each of the 144 heads of a 12-layer model of width 192 on 64 prompts of 16 tokens, against one forward pass a
head; effects agree.

SEQUENCES of 64 tokens stand for 2000: both sides of the representation's row grow with their number alike, but for the spectra, which are timed for 2000. Seconds are of
the processor where there is one thread.
"""

import random
import sys
from pathlib import Path

import numpy as np
import torch

from isentrope import diagnose
from isentrope.diagnose.data import Data
from isentrope.diagnose.measures.representation import Representation
from isentrope.diagnose.model import over
from isentrope.diagnose.pairs import Pair
from isentrope.diagnose.patching import Patching
from isentrope.diagnose.probes import fit

from smollm2 import ROOT, folder
from timing import clock_of, compare, interleaved

SEQUENCES, LENGTH = 32, 64
TARGETS = {"representation": 1 / 1.15, "probes": 3, "circuit": 3}


def representation(model, rounds, clock):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (SEQUENCES, LENGTH), generator=generator).tolist()
    data = Data.of_ids(ids)
    kept = {}

    def passes():
        with torch.inference_mode():
            for start in range(0, SEQUENCES, 32):
                model.body(input_ids=torch.tensor(ids[start : start + 32]), use_cache=False)

    def ours():
        kept["measure"] = measure = Representation(model, data)
        for batch in over(model, ids, Representation.NEEDS, 32):
            measure.update(batch)

    def spectra():  # of 2000 sequences: the rows that there are, as often as it takes, with noise so that none is another's multiple
        measure = kept["measure"]
        whole = [torch.cat([rows[layer] for rows in measure.rows]).repeat(-(-2000 // SEQUENCES), 1)[:2000] for layer in range(len(measure.rows[0]))]
        measure.rows = [[x + 0.01 * torch.randn(x.shape, generator=generator) for x in whole]]
        measure.finish()

    ours()
    seconds = interleaved({"ours": ours, "forward passes": passes}, rounds, clock=clock)
    final = interleaved({"spectra": spectra}, 1, clock=clock)["spectra"][0] * SEQUENCES / 2000
    seconds["ours"] = [one + final for one in seconds["ours"]]
    return {"op": "representation", "shape": f"{SEQUENCES} of 2000 × {LENGTH}", "dtype": "float32", **compare(seconds, "ours", "forward passes")}


def probes(model, rounds, clock):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sys.path.insert(0, str(ROOT / "examples"))
    from diagnose_data import sentiment

    lines = list(sentiment(random.Random(0)))
    random.Random(0).shuffle(lines)
    lines = lines[:2000]
    data = Data(lines)
    ids = data.tokens(model, LENGTH)
    X = torch.empty(model.layers + 1, len(ids), model.width)
    for batch in over(model, ids, frozenset({"hidden"}), 64):
        for layer in range(model.layers + 1):
            X[layer, batch.index] = batch.last(layer)
    y = torch.tensor([label == "positive" for label in data.labels]).long()
    train, held = slice(0, 1200), slice(1200, 2000)
    found = {}

    def ours():
        fitted = fit(X[:, train], y[train], 2, iterations=1000)
        found["ours"] = (fitted.predict(X[:, held]) == y[held]).float().mean(1).numpy()
        assert fitted.converged.all()

    def theirs():
        accuracy = []
        for layer in X.numpy():
            made = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(layer[train], y[train].numpy())
            accuracy.append(made.score(layer[held], y[held].numpy()))
        found["theirs"] = np.array(accuracy)

    ours(), theirs()
    apart = np.abs(found["ours"] - found["theirs"])[1:].max() * 800  # layer 0 is a constant: both guess
    assert apart <= 4.5, f"accuracies differ by {apart} of 800 texts"
    return {"op": "concept-depth, probes", "shape": "31 × 2000 × 576", "dtype": "float32", **compare(interleaved({"ours": ours, "scikit-learn": theirs}, rounds, clock=clock), "ours", "scikit-learn")}


def circuit(rounds, clock):
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=1024, hidden_size=192, intermediate_size=512, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4)
    model = diagnose.Model(transformers.AutoModelForCausalLM.from_config(config))
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(64):
        clean = torch.randint(0, 1000, (16,), generator=generator).tolist()
        pairs.append(Pair(clean, [clean[0] + 1, *clean[1:]], 5, 6))
    ids = torch.tensor([pair.clean for pair in pairs])

    def ours():
        run = Patching(model, pairs)
        return run, run.heads(False)

    def theirs(run):
        effects = []
        for layer, projection in enumerate(run.projections):
            for head in range(model.heads):

                def put(module, inputs, layer=layer, head=head):
                    z = inputs[0].clone()
                    z.view(*z.shape[:2], model.heads, -1)[:, -1, head] = run.corrupt[layer, :, head]
                    return (z,)

                handle = projection.register_forward_pre_hook(put)
                with torch.inference_mode():
                    effects.append(run.gaps(model.module(ids, use_cache=False, logits_to_keep=1).logits[:, -1]))
                handle.remove()
        return torch.stack(effects).view(model.layers, model.heads, -1)

    run, found = ours()  # to warm up, and to check
    seconds = {"ours": [], "a pass a head": []}
    for _ in range(rounds):  # a minute each: not warmed up twice, as interleaved() does
        start = clock()
        ours()
        middle = clock()
        effects = theirs(run)
        seconds["ours"].append(middle - start)
        seconds["a pass a head"].append(clock() - middle)
    torch.testing.assert_close(found, effects, rtol=1e-3, atol=1e-5)
    return {"op": "circuit", "shape": "12 × 12 heads, 64 × 16", "dtype": "float32", **compare(seconds, "ours", "a pass a head")}


def rows(rounds=3, threads=1):
    from threadpoolctl import threadpool_limits  # numpy's own, which scikit-learn's probes use

    torch.set_num_threads(threads)
    clock = clock_of(threads)
    with threadpool_limits(threads):
        model = diagnose.opened(Path(folder()))
        found = {"representation": representation(model, rounds, clock), "probes": probes(model, rounds, clock), "circuit": circuit(rounds, clock)}
    return [{**row, "threads": threads, "target": round(TARGETS[name], 2)} for name, row in found.items()]
