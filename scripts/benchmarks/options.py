"""What options of training take of a step: runs with and without one, in turn, in the same rounds; a run's time is that of
one of its fast steps, of the figures that metrics.jsonl has.

Gradient noise: the quickstart's model and batch. Composing four task vectors: the same model, whose coefficients are learned, beside the training of its
weights; both steps with their updates. Consolidation: the last of the three phases of configs/options/continual.yaml, which pulls to the weights
before it and adds up squares; it has no target.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from timing import compare

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"
STEPS = 40
# The model and the batch of configs/quickstart.yaml.
CONFIG = """
model: {num_hidden_layers: 3, hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 4, intermediate_size: 192, max_position_embeddings: 64}
tokenizer: {characters: "0123456789abcdefgh+-=:A."}
phases:
  - name: sft
    objective: {kind: sft}
    data: {tint: {task: signed_sum, terms: [3, 4, 5], merge: 0.3}}
    batch: {sequences: 64}
    optimizer: {kind: adamw, lr: 1.0e-4}
    evaluation: {every: 0}
test: {skip: true}
"""


CONTINUAL = ROOT / "configs" / "options" / "continual.yaml"
TASKS = ("sort", "recall", "median")  # its phases


def step_seconds(folder, threads, *words, config=None, phases=("sft",)):
    """Of 1000 tokens, in the step of the last of the phases that nine of ten take as long as or longer: what else the machine does counts little in it."""
    if config is None:
        config = Path(folder).parent / "options.yaml"
        config.write_text(CONFIG)
    command = [PROGRAM, "train", config, f"run.dir={folder}", f"run.threads={threads}", "run.device=cpu", "run.checkpoint_every=0", "--quiet",
               *(f"phases.{phase}.steps={STEPS}" for phase in phases), *words]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_s"] for line in lines if line.get("phase") == phases[-1] and "tokens_per_s" in line]
    return 1000 / sorted(rates)[len(rates) * 9 // 10]


def rows(threads=1, rounds=7):
    """One dictionary an option."""
    with tempfile.TemporaryDirectory() as place:
        models = []
        for seed in range(5):
            folder = f"{place}/model{seed}"
            start = [f"model.pretrained={place}/model0"] if seed else []
            step_seconds(folder, threads, f"run.seed={seed + 1}", *start)
            models.append(folder)
        start = f"model.pretrained={models[0]}"
        quick, continual = {"shape": "quickstart, 1000 tokens"}, {"shape": "continual.yaml, 1000 tokens"}
        tasks = {"config": CONTINUAL, "phases": TASKS}
        null = [f"phases.{name}.optimizer.consolidation=null" for name in TASKS]
        contenders = {
            "gradient noise": (["phases.sft.optimizer.noise={eta: 1.0e-8}"], ["phases.sft.optimizer.noise=null"], "the step without", {}, quick | {"target": 1 / 1.02}),
            "composing 4 task vectors": ([start, f"model.compose={{vectors: [{', '.join(models[1:])}]}}"], [start], "a step of plain training", {}, quick | {"target": 1 / 1.3}),
            "consolidation": (["test={skip: true}"], ["test={skip: true}", *null], "the step without", tasks, continual),
        }
        table = []
        for name, (with_it, without, rival, more, about) in contenders.items():
            ours, theirs = [], []
            for round_ in range(rounds):
                for words, times in ((with_it, ours), (without, theirs))[:: 1 if round_ % 2 else -1]:
                    times.append(step_seconds(f"{place}/{name.replace(' ', '_')}_{len(ours)}_{len(theirs)}", threads, *words, **more))
            table.append({"op": name, "dtype": "float32", "threads": threads, **about, **compare({"ours": ours, rival: theirs}, "ours", rival)})
    return table
