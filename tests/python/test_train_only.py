"""model.freeze and model.train_only: what moves and what stays, to the bit; what is refused by name; the file of condition numbers."""

import json

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import ROOT, final_checkpoint, metrics, train

CONFIG = ROOT / "configs" / "tiny" / "sft.yaml"
SHORT = ["phases.sft.evaluation.every=0", "test.skip=true", "run.checkpoint_every=3", "run.keep=9", "phases.sft.steps=6", "phases.sft.optimizer.weight_decay=0.1"]


def run(folder, *words, **options):
    return train(CONFIG, folder, *SHORT, *words, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    run(folder)
    return final_checkpoint(folder)


def moved(base, folder):
    before, after = load_file(base / "model.safetensors"), load_file(final_checkpoint(folder) / "model.safetensors")
    return {name for name in before if not torch.equal(before[name], after[name])}


ALL = {"model.embed_tokens.weight", "model.norm.weight", *(f"model.layers.{i}.{n}.weight" for i in range(2) for n in (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))}  # fmt: skip
CASES = {
    "qk": (["model.freeze=[qk]"], lambda n: "q_proj" not in n and "k_proj" not in n),
    "patterns": (["model.train_only={names: ['*.mlp.*', model.norm.weight]}"], lambda n: ".mlp." in n or n == "model.norm.weight"),
    "blocks": (["model.train_only={blocks: [1, 1]}"], lambda n: n.startswith("model.layers.1.")),
    "both": (["model.train_only={blocks: [0, 0], names: ['*_proj.weight']}", "model.freeze=['*.gate_proj.*', qk]"],
             lambda n: n.startswith("model.layers.0.") and n.endswith(("v_proj.weight", "o_proj.weight", "up_proj.weight", "down_proj.weight"))),
}  # fmt: skip


@pytest.mark.parametrize("name, kind", [*((name, "adamw") for name in CASES), ("both", "muon"), ("both", "sgd")])
def test_what_is_named_moves_and_nothing_else(base, tmp_path, name, kind):
    words, chosen = CASES[name]
    optimizer = [] if kind == "adamw" else [f"phases.sft.optimizer={{kind: {kind}, lr: 0.01, betas: {[0.9] if kind == 'sgd' else [0.9, 0.98]}, weight_decay: 0.1}}"]
    run(tmp_path, f"model.pretrained={base}", *words, *optimizer)
    assert moved(base, tmp_path) == {n for n in ALL if chosen(n)}


def test_the_gradient_of_what_is_trained_is_what_it_would_be(base, tmp_path):
    """One plain descent step: rows of joined matrices move as they move in the whole, also over micro-batches."""
    plain = [f"model.pretrained={base}", "phases.sft.steps=1", "phases.sft.optimizer={kind: sgd, betas: [0], lr: 0.1, weight_decay: 0, max_grad_norm: 0}"]
    for i, micro in enumerate(([], ["phases.sft.batch.micro_tokens=60"])):
        run(tmp_path / f"whole{i}", *plain, *micro)
        run(tmp_path / f"part{i}", *plain, *micro, "model.train_only={names: ['*.v_proj.*', '*.up_proj.*']}")
        whole, part = (load_file(final_checkpoint(tmp_path / f"{one}{i}") / "model.safetensors") for one in ("whole", "part"))
        for name in ALL:
            if "v_proj" in name or "up_proj" in name:
                assert torch.equal(whole[name], part[name]), name


def test_condition_numbers_choose(base, tmp_path):
    weights = load_file(base / "model.safetensors")
    truth = {n: float(numpy.linalg.cond(w.double().numpy())) for n, w in weights.items() if w.ndim == 2}
    told = run(tmp_path / "run", f"model.pretrained={base}", "model.train_only={condition_number: 3}")
    best = sorted(truth, key=truth.get)[:3]
    assert moved(base, tmp_path / "run") == set(best)
    kept = json.loads((tmp_path / "run" / "condition_numbers.json").read_text())["condition_numbers"]
    assert kept.keys() == truth.keys()
    for name, value in truth.items():
        assert kept[name] == pytest.approx(value, rel=1e-3)
    share = 100 * sum(weights[n].numel() for n in best) / sum(w.numel() for w in weights.values())
    assert f"3 of {len(weights)} tensors are trained, {share:.3g} % of the weights" in told.stdout + told.stderr
    # The file is taken where it is of the same weights, and computed anew where it is not.
    cache = tmp_path / "cache.json"
    words = [f"model.pretrained={base}", f"model.train_only={{condition_number: 2, cache: {cache}, names: ['*.mlp.*']}}"]
    run(tmp_path / "first", *words)
    record = json.loads(cache.read_text())
    worst = max((n for n in truth if ".mlp." in n), key=truth.get)
    record["condition_numbers"][worst] = 0.5
    cache.write_text(json.dumps(record))
    run(tmp_path / "second", *words)
    assert worst in moved(base, tmp_path / "second") and worst not in moved(base, tmp_path / "first")
    record["digest"] += 1
    cache.write_text(json.dumps(record))
    run(tmp_path / "third", *words)
    assert moved(base, tmp_path / "third") == moved(base, tmp_path / "first")


def test_a_resumed_run_goes_on_with_the_same(base, tmp_path):
    words = [f"model.pretrained={base}", "model.train_only={condition_number: 3}", "phases.sft.schedule={kind: constant}"]
    run(tmp_path / "whole", *words)
    run(tmp_path / "cut", *words, "phases.sft.steps=4")
    run(tmp_path / "cut", *words, resume=True)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole") and moved(base, tmp_path / "cut") == moved(base, tmp_path / "whole")
    (tmp_path / "cut" / "condition_numbers.json").unlink()
    told = run(tmp_path / "cut", *words, "phases.sft.steps=8", resume=True, check=False)
    assert told.returncode != 0 and "condition_numbers.json: is not there" in told.stderr


def test_adapters_of_the_chosen(base, tmp_path):
    run(tmp_path, f"model.pretrained={base}", "model.lora={rank: 4}", "model.train_only={names: ['*.v_proj.*', '*.down_proj.*'], blocks: [1, 1]}")
    adapter = load_file(final_checkpoint(tmp_path) / "adapter_model.safetensors")
    learnt = {name for name, w in adapter.items() if "lora_B" in name and w.abs().max() > 0}
    assert {name.split(".layers.")[1].rsplit(".lora_B", 1)[0] for name in learnt} == {"1.self_attn.v_proj", "1.mlp.down_proj"}


def test_what_is_refused_is_named(base, tmp_path):
    def told(*words, of=base):
        done = run(tmp_path / "run", f"model.pretrained={of}", *words, check=False)
        assert done.returncode != 0
        return done.stderr

    assert "model.train_only.names: '*.mpl.*' fits no weight of the model" in told("model.train_only={names: ['*.mlp.*', '*.mpl.*']}")
    assert "model.freeze: 'lm_head.*' fits no weight" in told("model.freeze=[lm_head.*]")
    assert "no weight is left to be trained" in told("model.freeze=['*']")
    assert "train_only.blocks: 5; the model has blocks 0 to 1" in told("model.train_only={blocks: [0, 5]}")
    assert "nothing is chosen" in told("model.train_only={}")
    assert "99, and there are 15 matrices to choose from" in told("model.train_only={condition_number: 99}")
    assert "none of the weights that are left has an adapter" in told("model.lora={targets: [q]}", "model.train_only={names: ['*.mlp.*']}")


def test_a_singular_value_of_zero_is_named(base, tmp_path):
    import shutil

    singular = tmp_path / "singular"
    shutil.copytree(base, singular, ignore=shutil.ignore_patterns("DONE", "trainer.*"))
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.self_attn.o_proj.weight"][0] = 0
    save_file(weights, singular / "model.safetensors", metadata={"format": "pt"})
    done = run(tmp_path / "run", f"model.pretrained={singular}", "model.train_only={condition_number: 14}")
    assert "model.layers.0.self_attn.o_proj.weight has a singular value of 0 and is not trained" in done.stdout + done.stderr
    done = run(tmp_path / "more", f"model.pretrained={singular}", "model.train_only={condition_number: 15}", check=False)
    assert done.returncode != 0 and "singular value of 0 (model.layers.0.self_attn.o_proj.weight)" in done.stderr
