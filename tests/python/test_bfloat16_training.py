"""model.compute: bfloat16 in whole runs: it learns what float32 learns, repeats itself, and says what it is. The products themselves:
tests/csrc/bfloat16_training_test.cpp."""

import json
import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import ROOT, binary, metrics, weights

SFT = ROOT / "configs" / "tiny" / "sft.yaml"
NARROW = "model.compute=bfloat16"


def run(folder, name, *overrides, means="", resume=False):
    command = [binary(), "train", str(SFT), f"run.dir={folder / name}", "run.threads=1", *overrides, *(["--resume"] if resume else [])]
    environment = {**os.environ, "ISENTROPE_BFLOAT16_PRODUCTS": means}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def losses(folder):
    return torch.tensor([line["loss"] for line in metrics(folder) if "loss" in line], dtype=torch.float64)


def test_it_learns_what_float32_learns(tmp_path):
    """Operands are rounded by 2⁻⁹ of themselves at most, so the first loss is nearly that of float32; then both go the same way, apart by
    less than a twentieth of it."""
    run(tmp_path, "wide"), run(tmp_path, "narrow", NARROW)
    wide, narrow = losses(tmp_path / "wide"), losses(tmp_path / "narrow")
    assert not torch.equal(wide, narrow)
    assert abs(narrow[0] - wide[0]) <= 2**-8 * wide[0], f"{narrow[0]} for {wide[0]}"
    way, apart = wide[0] - wide[-3:].mean(), (narrow - wide).abs().max()
    assert apart <= way / 20, f"they are {apart:.3g} apart, on a way of {way:.3g}"


def test_no_bit_depends_on_threads_nor_on_a_break(tmp_path):
    run(tmp_path, "one", NARROW, "run.checkpoint_every=1", "run.keep=100")
    run(tmp_path, "two", NARROW, "run.threads=2")
    lines, final = metrics(tmp_path / "one"), weights(tmp_path / "one")
    assert losses(tmp_path / "two").equal(losses(tmp_path / "one")) and weights(tmp_path / "two") == final
    for done in sorted((tmp_path / "one" / "checkpoints").glob("*/DONE"))[3:]:  # as if the run had been killed behind step 3
        done.unlink()
    run(tmp_path, "one", NARROW, "run.checkpoint_every=1", "run.keep=100", resume=True)
    assert metrics(tmp_path / "one") == lines and weights(tmp_path / "one") == final


def test_what_is_kept_is_float32_and_the_header_says_both(tmp_path):
    said = run(tmp_path, "run", NARROW)
    assert "float32, products in bfloat16" in said
    header = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().split("\n", 1)[0])["run"]
    assert header["dtype"] == "float32" and header["compute"] == "bfloat16"
    folder = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert {x.dtype for x in load_file(folder / "model.safetensors").values()} == {torch.float32}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def test_a_processor_without_the_products_is_told(tmp_path):
    """It rounds operands all the same: its losses are those of the products but for the order of sums, and the rounding of attention's weights."""
    assert "model.compute: this processor has no products of bfloat16" in run(tmp_path, "off", NARROW, means="off")
    assert "no products of bfloat16" not in run(tmp_path, "plain", NARROW, means="plain")
    off, plain = losses(tmp_path / "off"), losses(tmp_path / "plain")
    assert abs(off[0] - plain[0]) <= 2**-9 * plain[0]
    assert off.tolist() == pytest.approx(plain.tolist(), rel=0.05)


def test_a_run_may_go_on_in_the_other_type(tmp_path):
    run(tmp_path, "run", "run.checkpoint_every=1", "run.keep=100")
    for done in sorted((tmp_path / "run" / "checkpoints").glob("*/DONE"))[3:]:
        done.unlink()
    said = run(tmp_path, "run", NARROW, resume=True)
    assert "model.compute" in said and "float32 → bfloat16" in said


def test_weights_between_two_bfloat16_values_are_told(tmp_path):
    """An eighth of those on float16's grid, whose copies move at the first update (findings/torch_float16_ties.sh); none of a folder in bfloat16, nor
    of one that was trained, nor where products are in float32."""
    run(tmp_path, "start")
    trained = sorted((tmp_path / "start" / "checkpoints").iterdir())[-1]
    told = {}
    for grid in (torch.float16, torch.bfloat16, torch.float32):
        folder = tmp_path / str(grid)
        folder.mkdir()
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(trained / name, folder)
        tensors = load_file(trained / "model.safetensors")
        save_file({name: tensor.to(grid).float() for name, tensor in tensors.items()}, folder / "model.safetensors")
        words = (NARROW, f"model={{pretrained: {folder}, compute: bfloat16}}")
        told[grid] = run(tmp_path, f"from_{grid}", *words)
    assert "12 % of the weights lie halfway between two values of bfloat16" in told[torch.float16], told[torch.float16]
    assert not any("halfway" in told[grid] for grid in (torch.bfloat16, torch.float32))
    wide = run(tmp_path, "wide", f"model={{pretrained: {tmp_path / 'torch.float16'}}}")
    assert "halfway" not in wide
