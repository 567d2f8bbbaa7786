"""optimizer.consolidation and test.tasks in whole runs: what phases pass on, resumption at every place, ranks, forgetting."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_ranks import has_ranks
from test_ranks import train as train_ranks
from test_train import binary, final_checkpoint, metrics, weights

CONFIG = """
run: {dir: run, seed: 1, threads: 1, checkpoint_every: 4, keep: 9}
model: {num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 64, max_position_embeddings: 64}
tokenizer: {characters: "0123456789abcdefgh+-=:A.,s\\n LmtxR"}
phases:
"""
PHASE = """
  - name: {name}
    objective: {{kind: sft}}
    data: {{tint: {{{data}}}}}
    batch: {{sequences: 8}}
    optimizer: {{kind: adamw, lr: 4.0e-3, betas: [0.9, 0.98], weight_decay: 0.01{consolidation}}}
    schedule: {{kind: constant, warmup_steps: 0, min_lr_ratio: 0}}
    steps: 6
    evaluation: {{every: 0}}
"""
TASKS = {"sum": "task: signed_sum, terms: [2]", "add": "task: add, cot: false, digits: {max: 1}", "more": "task: signed_sum, terms: [3]"}
PULL = ", consolidation: {strength: 100}"


@pytest.fixture
def config(tmp_path):
    def write(name, consolidation=PULL, end="test: {tasks: true, prompts: 8, sampled_prompts: 4, num_generations: 2}\n"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(CONFIG + "".join(PHASE.format(name=one, data=data, consolidation=consolidation) for one, data in TASKS.items()) + end)
        return file

    return write


def run(config, folder, *words, resume=False, check=True):
    import subprocess

    command = [binary(), "train", str(config), f"run.dir={folder}", *words] + (["--resume"] if resume else [])
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def state(folder: Path, part: str) -> dict[str, torch.Tensor]:
    prefix = f"optimizer/{part}."
    return {k[len(prefix):]: v for k, v in load_file(folder / "trainer.safetensors").items() if k.startswith(prefix)}  # fmt: skip


def test_phases_pass_on_what_the_next_one_holds(config, tmp_path):
    run(config("held"), tmp_path / "held")
    checkpoints = tmp_path / "held" / "checkpoints"
    ends = [checkpoints / f"{name}-000006" for name in TASKS]
    model = load_file(ends[0] / "model.safetensors")["model.norm.weight"]
    assert torch.equal(state(ends[1], "anchor")["final_norm"], model), state(ends[1], "anchor").keys()
    assert torch.equal(state(ends[1], "anchor")["final_norm"], state(checkpoints / "add-000004", "anchor")["final_norm"])
    squares, importance = state(ends[0], "squares"), state(ends[1], "importance")
    most = max(x.max() for x in squares.values())
    assert most > 0 and not any(x.any() for x in state(ends[0], "importance").values())
    for name in squares:
        torch.testing.assert_close(importance[name], squares[name] / most)
    assert max(x.max() for x in state(ends[2], "importance").values()) > 1  # of two tasks
    lines = [line for line in metrics(tmp_path / "held") if "loss" in line]
    held = [line.get("consolidation/penalty") for line in lines]
    assert held[:6] == [None] * 6 and held[6] == held[12] == 0 and all(x > 0 for x in held[7:12])


def test_off_and_without_strength_bits_are_the_same(config, tmp_path):
    run(config("none", ""), tmp_path / "none")
    run(config("zero", ", consolidation: {strength: 0}"), tmp_path / "zero")
    assert weights(tmp_path / "none") == weights(tmp_path / "zero") and metrics(tmp_path / "none") == metrics(tmp_path / "zero")
    run(config("held"), tmp_path / "held")
    first = [Path("checkpoints") / "sum-000006" / "model.safetensors"]
    assert all((tmp_path / "none" / f).read_bytes() == (tmp_path / "held" / f).read_bytes() for f in first)
    assert weights(tmp_path / "none") != weights(tmp_path / "held")


@pytest.mark.parametrize("restart", ["fast", "slow"])
def test_a_resumed_run_is_the_same(config, tmp_path, restart):
    words = [f"phases.{name}.optimizer.consolidation.restart={restart}" for name in ("add", "more")]
    file = config("held")
    run(file, tmp_path / "whole", *words)
    lines, final = metrics(tmp_path / "whole"), weights(tmp_path / "whole")
    slow = state(final_checkpoint(tmp_path / "whole"), "slow")
    for last in ("add-000004", "sum-000006"):  # as if the run had been killed within a phase, and between two
        for folder in (tmp_path / "whole" / "checkpoints").iterdir():
            if (list(TASKS).index(folder.name[:-7]), folder.name[-6:]) > (list(TASKS).index(last[:-7]), last[-6:]):
                (folder / "DONE").unlink(missing_ok=True)
        run(file, tmp_path / "whole", *words, resume=True)
        assert metrics(tmp_path / "whole") == lines and weights(tmp_path / "whole") == final
        for name, tensor in state(final_checkpoint(tmp_path / "whole"), "slow").items():
            assert torch.equal(tensor, slow[name])


def test_a_phase_begins_at_the_slow_weights(config, tmp_path):
    words = ["phases.add.optimizer.consolidation.restart=slow", "phases.add.optimizer.lr=1.0e-9", "phases.add.steps=1"]
    run(config("slow", ", consolidation: {strength: 0, slow_rate: 0.25}"), tmp_path / "slow", *words)
    ends = [tmp_path / "slow" / "checkpoints" / f"{name}-{step:06d}" for name, step in (("sum", 6), ("add", 1))]
    begun, after = state(ends[0], "slow"), state(ends[1], "slow")
    left = load_file(ends[0] / "model.safetensors")["model.norm.weight"]
    torch.testing.assert_close(after["final_norm"], begun["final_norm"] + 0.25 * (left - begun["final_norm"]))
    torch.testing.assert_close(load_file(ends[1] / "model.safetensors")["model.norm.weight"], after["final_norm"])


def test_a_run_from_a_checkpoint_between_two_phases_takes_it_over(config, tmp_path):
    file = config("held")
    run(file, tmp_path / "whole")
    run(file, tmp_path / "part", f"run.start={tmp_path / 'whole' / 'checkpoints' / 'add-000006'}")
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "part")[-1]["forgetting/loss"] == metrics(tmp_path / "whole")[-1]["forgetting/loss"]


def test_forgetting_is_told_of_every_earlier_phase(config, tmp_path):
    run(config("plain", ""), tmp_path / "plain")
    ends = [line for line in metrics(tmp_path / "plain") if line.get("split", line.get("eval/split")) == "test"]
    assert len(ends) == 3
    for i, line in enumerate(ends):
        told = {key.split("/")[1] for key in line if key.startswith("task/")}
        assert told == set(list(TASKS)[: i + 1])
        assert ("forgetting/loss" in line) == (i > 0)
    best = {name: [line[f"task/{name}/loss"] for line in ends if f"task/{name}/loss" in line] for name in TASKS}
    wanted = sum(best[name][-1] - min(best[name][:-1]) for name in ("sum", "add")) / 2
    assert ends[2]["forgetting/loss"] == pytest.approx(wanted, rel=1e-12)
    assert ends[2]["task/more/loss"] == ends[2]["eval/loss"]
    summary = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert summary[2]["forgetting/loss"] == ends[2]["forgetting/loss"] and summary[2]["greedy"] == ends[2]["eval/greedy"]


@pytest.mark.skipif(not has_ranks(), reason="this build has one rank")
def test_ranks_hold_the_same(config, tmp_path):
    """The state of each weight stands on one rank, and the checkpoint has the whole; a resumed run of ranks goes on bit for bit."""
    file = config("held", ", max_grad_norm: 0.1, consolidation: {strength: 100}")
    words = ["phases.more.optimizer.consolidation.restart=slow"]
    one, two = (train_ranks(n, tmp_path / str(n), file, *words) for n in (1, 2))
    for part, atol in (("importance", 1e-3), ("slow", 1e-3), ("anchor", 2e-3)):
        ours, theirs = (state(final_checkpoint(folder), part) for folder in (one, two))
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], rtol=0.05, atol=atol)
    final = weights(two)
    for folder in (two / "checkpoints").iterdir():
        if folder.name.startswith("more"):
            (folder / "DONE").unlink()
    train_ranks(2, two, file, *words, resume=True)
    assert weights(two) == final


REFUSED = [
    (["phases.add.optimizer.consolidation=null"], "phases.add.optimizer.consolidation: the phase before it has"),
    (["phases.sum.optimizer.consolidation.restart=slow"], "phases.sum.optimizer.consolidation.restart: slow, and no phase before"),
    (["phases.sum.optimizer.kind=muon"], "consolidation: holds weights by a term of the gradient"),
    (["phases.sum.optimizer.consolidation.strength=-1"], "strength"),
    (["phases.sum.evaluation.tasks=true"], "evaluation.tasks: belongs to test"),
    (["phases.sum.optimizer.consolidation.restart=slw"], "restart"),
]


@pytest.mark.parametrize("words, said", REFUSED, ids=[said for _, said in REFUSED])
def test_what_makes_no_sense_is_refused(config, tmp_path, words, said):
    done = run(config("held"), tmp_path / "run", *words, check=False)
    assert done.returncode != 0 and said in done.stderr, done.stderr
