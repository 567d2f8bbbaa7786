"""isentrope probe: what it is trained on, what it changes in sample and evaluate, what is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
RUN = ["train", str(ROOT / "configs/methods/repo.yaml"), "phases.sft.evaluation.every=0", "phases.grpo.evaluation.every=0", "phases.grpo.steps=2",
       "phases.sft.data.tint.terms=[2, 4]", "phases.grpo.data.tint={task: signed_sum, terms: [2, 4], mix: example}", "phases.sft.steps=120",
       "test={prompts: 4, sampled_prompts: 12, num_generations: 4}", "--quiet"]  # fmt: skip


def run(*words, code=0):
    build = os.environ.get("ISENTROPE_BUILD")
    program = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert program, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    told = subprocess.run([os.path.abspath(program), *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert told.returncode == code, told.stderr
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    run(*RUN, f"run.dir={folder}/run")
    # Two terms are right now and then, four never: the lines between the classes are drawn there.
    told = run("probe", folder / "run", "-o", folder / "probe.safetensors", "--prompts", 60, "--samples", 4, "--width", 32, "--accuracy", 0.25, "--hard", 0.25)
    (folder / "told").write_text(told.stdout)
    return folder


def test_it_tells_what_it_found_and_beats_the_commonest_class(folder):
    lines = (folder / "told").read_text().splitlines()
    assert lines[0].startswith("60 prompts x 4 samples: ") and "easy" in lines[0] and "hard" in lines[0]
    right, commonest = (float(part.split()[0]) for part in (lines[1].split(": ")[1].split(" %")[0], lines[1].split("right, ")[1]))
    assert right >= commonest - 10  # of twelve prompts
    assert lines[2] == str(folder / "probe.safetensors")
    tensors = load_file(folder / "probe.safetensors")
    assert {name: tuple(x.shape) for name, x in tensors.items()} == {
        "w1": (32, 32), "b1": (32,), "w2": (3, 32), "b2": (3,), "temperature": (3,), "length": (3,), "least": (1,)}  # fmt: skip
    assert tensors["temperature"].tolist() == [0.5, 0.8, 0.4] and tensors["length"].tolist() == [0.4, 1.0, 0.5]


def test_the_same_words_make_the_same_probe(folder, tmp_path):
    again = run("probe", folder / "run", "-o", tmp_path / "again.safetensors", "--prompts", 60, "--samples", 4, "--width", 32, "--accuracy", 0.25, "--hard", 0.25)
    assert again.stdout.splitlines()[:2] == (folder / "told").read_text().splitlines()[:2]
    assert (tmp_path / "again.safetensors").read_bytes() == (folder / "probe.safetensors").read_bytes()


def of_class(source, out, number, least=0.0):
    """A probe that calls every prompt that class."""
    tensors = load_file(source)
    tensors["w2"].zero_()
    tensors["b2"] = torch.full((3,), -9.0)
    tensors["b2"][number] = 9.0
    tensors["least"] = torch.tensor([least], dtype=torch.float64)
    save_file(tensors, out)
    return out


def sampled(folder, *words):
    told = run("sample", folder / "run", "--prompt", "a+5b+6=", "--prompt", "a-5b+6c+7d-1=", "--samples", 3, "--max-new-tokens", 20, "--json", *words)
    return [json.loads(line) for line in told.stdout.splitlines()]


def test_sample_draws_each_class_by_its_preset(folder, tmp_path):
    easy = of_class(folder / "probe.safetensors", tmp_path / "easy.safetensors", 0)
    lines = sampled(folder, "--probe", easy)
    assert [(line["group"], line["sample"]) for line in lines] == [(g, s) for g in range(2) for s in range(3)]
    assert all(line["length"] <= 8 for line in lines)  # 0.4 · 20
    hard = sampled(folder, "--probe", of_class(folder / "probe.safetensors", tmp_path / "hard.safetensors", 2))
    assert max(line["length"] for line in hard) <= 10
    normal = sampled(folder, "--probe", of_class(folder / "probe.safetensors", tmp_path / "normal.safetensors", 1))
    assert max(line["length"] for line in normal) > 10
    # Where it is not sure, a prompt is normal.
    unsure = of_class(folder / "probe.safetensors", tmp_path / "unsure.safetensors", 0, least=1.0)
    tensors = load_file(unsure)
    tensors["b2"].zero_()
    save_file(tensors, unsure)
    assert sampled(folder, "--probe", unsure) == normal
    # The log-probabilities are those at the preset's temperature: at 0.8 they differ from those at 1 of the same tokens.
    assert normal != sampled(folder)


def test_evaluate_tells_the_classes(folder, tmp_path):
    plain = json.loads(run("evaluate", folder / "run", "--json").stdout)
    probed = json.loads(run("evaluate", folder / "run", f"test.probe={folder}/probe.safetensors", "--json").stdout)
    shares = [probed[f"probe/{name}"] for name in ("easy", "normal", "hard")]
    assert sum(shares) == pytest.approx(1) and not any(name.startswith("probe/") for name in plain)
    assert probed["greedy"] == plain["greedy"] and probed["length"] != plain["length"]
    all_easy = json.loads(run("evaluate", folder / "run", f"test.probe={of_class(folder / 'probe.safetensors', tmp_path / 'e.safetensors', 0)}", "--json").stdout)
    assert all_easy["probe/easy"] == 1 and all_easy["length"] < plain["length"]


def test_a_probe_of_another_width_is_refused_by_name(folder, tmp_path):
    tensors = load_file(folder / "probe.safetensors")
    tensors["w1"] = torch.zeros(32, 48)
    save_file(tensors, tmp_path / "wide.safetensors")
    wanted = "wide.safetensors: the probe reads hidden states of width 48, and those of the model are 32 wide: it was trained for another model; make one with isentrope probe"
    assert wanted in run("sample", folder / "run", "--prompt", "a+5b+6=", "--probe", tmp_path / "wide.safetensors", code=1).stderr
    told = run("evaluate", folder / "run", f"test.probe={tmp_path}/wide.safetensors", code=1).stderr
    assert "test.probe: " in told and wanted in told


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("w2"), "is no probe, it holds no w2"),
    (lambda t: t.update(b1=torch.zeros(5)), "is no probe, its b1 has another shape or type"),
    (lambda t: t.update(temperature=torch.tensor([0.5, -1.0, 0.4], dtype=torch.float64)), "a temperature or length out of its range"),
    (lambda t: t.update(length=torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)), "a temperature or length out of its range"),
])  # fmt: skip
def test_a_file_that_is_no_probe_is_refused(change, message, folder, tmp_path):
    tensors = load_file(folder / "probe.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "odd.safetensors")
    assert message in run("sample", folder / "run", "--prompt", "a+5b+6=", "--probe", tmp_path / "odd.safetensors", code=1).stderr
    assert run("sample", folder / "run", "--prompt", "a=", "--probe", tmp_path / "none.safetensors", code=1).stderr


def test_what_cannot_be_told_apart_is_refused(folder, tmp_path):
    told = run("probe", folder / "run", "-o", tmp_path / "p.safetensors", "--prompts", 10, "--samples", 2, "--accuracy", 0, "--entropy", 1000, code=1)
    assert "nothing is to be told apart" in told.stderr and not (tmp_path / "p.safetensors").exists()
    assert "--output" in run("probe", folder / "run", "-o", tmp_path / "none" / "p.safetensors", code=1).stderr
    assert run("sample", folder / "run", "--prompt", "a=", "--probe", folder / "probe.safetensors", "--temperature", "0.5", code=2).stderr
