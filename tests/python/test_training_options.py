"""Options of training in whole runs: Muon beside torch's, the memory of recomputation, packed examples."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_train import ROOT, binary, metrics, train, weights

TINY = ROOT / "configs" / "tiny" / "pretrain.yaml"
MUON = ["phases.pretrain.optimizer.kind=muon", "phases.pretrain.steps=12", "run.checkpoint_every=1", "run.keep=12",
        "phases.pretrain.optimizer.weight_decay=0.1"]  # fmt: skip
SHAPES = {"qkv": (32, 16, 16), "o": (32,), "gate_up": (64, 64), "down": (32,)}  # rows of the joined matrices


def parts(name, matrix):
    return [(i, part) for i, part in enumerate(matrix.split(SHAPES[name]))]


def joined(folder, layer):
    """The matrices of a block as the trainer joins them, and their moments."""
    model, state = load_file(folder / "model.safetensors"), load_file(folder / "trainer.safetensors")
    at = f"model.layers.{layer}."
    rows = {"qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "o": ["self_attn.o_proj"],
            "gate_up": ["mlp.gate_proj", "mlp.up_proj"], "down": ["mlp.down_proj"]}  # fmt: skip
    moments = {name: next(v for k, v in state.items() if k.endswith(f"first.layers.{layer}.{name}")) for name in rows}
    return {name: (torch.cat([model[f"{at}{row}.weight"] for row in of]), moments[name]) for name, of in rows.items()}


@pytest.mark.parametrize("options", ["{}", "{nesterov: false, adjust_lr_fn: original, momentum: 0.9, lr: 0.02}",
                                     "{ns_steps: 3, ns_coefficients: [2, -1.5, 0.5]}"])  # fmt: skip
def test_muon_takes_the_steps_of_torch(tmp_path, options):
    import yaml

    train(TINY, tmp_path, *MUON, f"phases.pretrain.optimizer.muon={options}")
    given = yaml.safe_load(options)
    momentum = given.get("momentum", 0.95)
    rate = {line["step"]: line["lr"] for line in metrics(tmp_path) if "lr" in line}
    for step in (3, 7, 11):
        before, after = (tmp_path / "checkpoints" / f"pretrain-{s:06d}" for s in (step, step + 1))
        lr = rate[step + 1] * given.get("lr", 8e-3) / 8e-3
        for layer in range(2):
            old, new = joined(before, layer), joined(after, layer)
            for name in SHAPES:
                for (i, w), (_, m), (_, to), (_, then) in zip(*(parts(name, x) for x in (*old[name], *new[name])), strict=True):
                    gradient = ((then.double() - momentum * m.double()) / (1 - momentum)).float()
                    parameter = torch.nn.Parameter(w.clone().contiguous())
                    oracle = torch.optim.Muon(
                        [parameter], lr=lr, weight_decay=0.1, momentum=momentum, nesterov=given.get("nesterov", True),
                        ns_coefficients=tuple(given.get("ns_coefficients", (3.4445, -4.7750, 2.0315))),
                        ns_steps=given.get("ns_steps", 5), adjust_lr_fn=given.get("adjust_lr_fn", "match_rms_adamw"))  # fmt: skip
                    oracle.state[parameter]["momentum_buffer"] = m.clone().contiguous()
                    parameter.grad = gradient.contiguous()
                    oracle.step()
                    moved, error = (to - w).abs().max(), (parameter.detach() - to).abs().max()
                    # The gradient is told by two moments, and bfloat16 rounds it to 2⁻⁹ of itself.
                    assert error <= 0.02 * moved, f"step {step}, layer {layer}, {name} {i}: {error:.3g} of {moved:.3g}"


def test_muon_resumes_bit_for_bit(tmp_path):
    train(TINY, tmp_path, *MUON)
    lines, final = metrics(tmp_path), weights(tmp_path)
    for number in range(6, 13):  # as if the run had been killed after step 5
        (tmp_path / "checkpoints" / f"pretrain-{number:06d}" / "DONE").unlink()
    train(TINY, tmp_path, *MUON, resume=True)
    assert metrics(tmp_path) == lines and weights(tmp_path) == final


WIDE = """
run: {{dir: run, threads: 1, checkpoint_every: 0}}
model: {{num_hidden_layers: 12, hidden_size: 128, num_attention_heads: 4, num_key_value_heads: 4, intermediate_size: 344, max_position_embeddings: 256}}
tokenizer: {{kind: bytes}}
phases:
  - name: pretrain
    objective: {{kind: pretrain}}
    data: {{corpus: {{paths: [{text}], validation_fraction: 0, test_fraction: 0}}}}
    batch: {{sequences: 32}}
    steps: 2
    evaluation: {{every: 0}}
test: {{skip: true}}
"""


PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
print(usage.ru_maxrss * 1024)
"""


def peak(folder, *overrides):
    """Bytes that a run had in memory at most. A small process starts it: Linux counts to a process what the one that forked it held."""
    told = subprocess.run([sys.executable, "-c", PEAK, binary(), "train", "config.yaml", *overrides], cwd=folder, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return int(told.stdout)


@pytest.fixture
def wide(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(p.read_text() for p in sorted((ROOT / "docs").glob("*.md"))))
    (tmp_path / "config.yaml").write_text(WIDE.format(text=text))
    return tmp_path


def test_recomputed_blocks_take_less_memory_and_give_the_same_bits(wide):
    small = peak(wide, "run.dir=small", "phases.pretrain.batch.sequences=1")
    none, blocks = peak(wide, "run.dir=none"), peak(wide, "run.dir=blocks", "model.recompute=blocks")
    assert blocks - small < 0.45 * (none - small), f"{blocks - small} of {none - small} bytes above a small batch"
    assert metrics(wide / "none") == metrics(wide / "blocks")
    assert weights(wide / "none") == weights(wide / "blocks")


# ---- packed examples -------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path):
    with open(tmp_path / "words.jsonl", "w") as file:
        for i in range(300):
            word = format(i * 7919, "b") * (1 + i % 5)
            print(json.dumps({"prompt": f"{word}:", "completion": word[::-1]}), file=file)
    (tmp_path / "config.yaml").write_text("""
run: {dir: run, threads: 1}
model: {num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 64, max_position_embeddings: 256}
tokenizer: {kind: bytes}
phases:
  - name: sft
    objective: {kind: sft}
    data: {jsonl: {path: words.jsonl, validation_fraction: 0, test_fraction: 0}}
    batch: {sequences: 16}
    optimizer: {lr: 1.0e-3}
    steps: 10
    evaluation: {every: 0}
test: {skip: true}
""")
    return tmp_path


def run(folder, name, *overrides):
    command = [binary(), "train", "config.yaml", f"run.dir={name}", *overrides]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return metrics(folder / name)


def test_packed_examples_learn_what_separate_rows_learn(words):
    plain, packed = run(words, "plain"), run(words, "packed", "phases.sft.data.packing=true")
    assert len(plain) == len(packed) == 10
    for a, b in zip(plain, packed, strict=True):
        for key in ("loss", "grad_norm", "entropy/mean"):
            assert b[key] == pytest.approx(a[key], rel=2e-4), f"{key}, step {a['step']}"
    assert packed[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-6)
    again = run(words, "again", "phases.sft.data.packing=true", "run.threads=2", "phases.sft.batch.micro_tokens=256")
    assert again[0]["loss"] == pytest.approx(packed[0]["loss"], rel=1e-6)
    run(words, "threads", "phases.sft.data.packing=true", "run.threads=2")
    assert weights(words / "packed") == weights(words / "threads")


def test_packing_is_for_supervised_learning(words):
    said = subprocess.run([binary(), "config", str(TINY), "phases.pretrain.data.packing=true"], capture_output=True, text=True, cwd=ROOT)
    assert said.returncode == 1 and re.search("packing belongs to sft and distill phases.*no padding", said.stderr)


# ---- what a run will take --------------------------------------------------------------------------------------------


def estimate(folder, name):
    return json.loads((folder / name / "metrics.jsonl").read_text().split("\n", 1)[0])["run"]["memory_needed"]


@pytest.mark.parametrize(
    "overrides",
    [["model.hidden_size=768", "model.intermediate_size=2048", "model.num_hidden_layers=3", "phases.pretrain.batch.sequences=1"],
     ["phases.pretrain.batch.sequences=48"], ["phases.pretrain.batch={sequences: 48, micro_tokens: 2048}"],
     ["phases.pretrain.batch.sequences=96", "model.recompute=blocks"],
     ["model.hidden_size=768", "model.intermediate_size=2048", "model.num_hidden_layers=3", "phases.pretrain.batch.sequences=1", "model.compute=bfloat16"],
     ["phases.pretrain.batch.sequences=48", "model.compute=bfloat16"],
     ["phases.pretrain.batch.sequences=96", "model.recompute=blocks", "model.compute=bfloat16"]],
    ids=["weights", "activations", "micro-batches", "recompute", "weights-bfloat16", "activations-bfloat16", "recompute-bfloat16"],
)  # fmt: skip
def test_the_memory_that_is_told_is_the_memory_that_is_taken(wide, overrides):
    """Against the peak of the process, less that of a run whose model is next to nothing."""
    nothing = peak(wide, "run.dir=nothing", "model={num_hidden_layers: 1, hidden_size: 8, num_attention_heads: 1, num_key_value_heads: 1,"
                   " intermediate_size: 8, max_position_embeddings: 256}", "phases.pretrain.batch.sequences=1")  # fmt: skip
    taken = peak(wide, "run.dir=run", *overrides) - nothing
    assert estimate(wide, "run") == pytest.approx(taken, rel=0.15), f"told {estimate(wide, 'run'):.4g}, taken {taken:.4g}"


TRAINER = '''
import re, sys
import isentrope

def memory(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

import torch
torch.ones(64, 64).requires_grad_().matmul(torch.ones(64, 64)).sum().backward()
small = isentrope.Trainer("small.yaml")
list(small)
before = memory("VmRSS")
trainer = isentrope.Trainer("config.yaml")
list(trainer)
peak = memory("VmHWM")
del trainer
print(peak - before, memory("VmRSS") - before)
'''


def test_a_trainer_in_python_takes_what_the_program_takes(wide):
    """And gives it back. Beside the heap's memory of what is small."""
    model = "model: {num_hidden_layers: 1, hidden_size: 8, num_attention_heads: 1, num_key_value_heads: 1, intermediate_size: 8, max_position_embeddings: 256}"
    text = (wide / "config.yaml").read_text()
    (wide / "small.yaml").write_text(re.sub("model: .*", model, text).replace("dir: run", "dir: small").replace("sequences: 32", "sequences: 1"))
    told = subprocess.run([sys.executable, "-c", TRAINER], cwd=wide, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    taken, left = map(int, told.stdout.split()[-2:])
    assert taken <= 1.15 * estimate(wide, "run"), f"told {estimate(wide, 'run'):.4g}, taken {taken:.4g}"
    assert left <= 0.15 * taken, f"of {taken:.4g} bytes {left:.4g} are there behind the trainer's end"


def test_plan_tells_and_refuses(wide):
    said = subprocess.run([binary(), "plan", "config.yaml"], cwd=wide, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert re.search(r"pretrain\n  memory  about [0-9.]+ MiB: weights .*, optimiser .*\n  time    at least .* of 2 steps", said.stdout)
    assert not (wide / "run").exists()
    large = ["phases.pretrain.batch.sequences=1000000", "run.device=cpu"]
    for command in ("plan", "train"):
        said = subprocess.run([binary(), command, "config.yaml", *large], cwd=wide, capture_output=True, text=True)
        assert said.returncode == 1 and "does not fit" in said.stderr and not (wide / "run" / "metrics.jsonl").exists()
    setting = re.search(r"It fits with (phases\S+batch.micro_tokens=\d+)", said.stderr)
    said = subprocess.run([binary(), "plan", "config.yaml", *large, setting[1]], cwd=wide, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr


LOSSES = [["dppo_tv"], ["dppo_kl"], ["sapo"], ["geo_mean"], ["dro"], ["vespo"], ["ce_gppo"], ["reinforce"], ["clip", "delta=1.5"],
          ["clip", "aggregate=token-sum"], ["luspo", "aggregate=seq-mean-token-sum"]]  # fmt: skip


@pytest.mark.parametrize("loss, options", [(name, options) for name, *options in LOSSES])
def test_a_step_of_every_further_loss(tmp_path, loss, options):
    phases = ["phases.sft.steps=3", "phases.grpo.steps=1", "phases.grpo.reward=[{kind: length, target: 1, limit: 20}]", "phases.grpo.rollout.mini_batches=4", "phases.grpo.evaluation.every=0"]
    train(ROOT / "configs" / "tiny" / "grpo.yaml", tmp_path, *phases, *[f"phases.grpo.objective.{key}" for key in (f"loss={loss}", *options)])
    (line,) = (line for line in metrics(tmp_path) if line.get("phase") == "grpo" and "grad_norm" in line)
    assert abs(line["loss"]) < 1e3 and 0 < line["grad_norm"] < 1e3 and 0 <= line["clip/frac"] <= 1
