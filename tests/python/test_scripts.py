"""What the scripts take they say at once: on a machine that has nothing yet, with nothing installed, built or written."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [path for path in sorted((ROOT / "scripts").glob("*.sh")) if os.access(path, os.X_OK)]  # others are sourced
TRAPS = ["pip", "pip3", "python", "python3", "apt-get", "dnf", "pacman", "brew", "sudo", "cmake", "ninja", "ctest", "g++", "cc", "nvcc", "git", "curl"]


@pytest.fixture
def bare(tmp_path):
    """run(script, word, …) in a copy of scripts/ with an empty home, where each command that installs or builds notes that it was
    called and fails; "called" holds what was."""
    shutil.copytree(ROOT / "scripts", tmp_path / "tree" / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "csrc", tmp_path / "tree" / "csrc", ignore=lambda folder, names: [n for n in names if n != "CMakeLists.txt"])
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    for name in TRAPS:
        trap = tmp_path / "bin" / name
        trap.write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/called\nexit 1\n')
        trap.chmod(0o755)

    def run(script, *words):
        return subprocess.run([tmp_path / "tree" / "scripts" / script.name, *words], capture_output=True, text=True, timeout=60, cwd=tmp_path,
                              env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path / "home")})  # fmt: skip

    return run


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["words.yaml", "--help"]], ids=" ".join)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_comes_before_anything_is_done(bare, tmp_path, script, words):
    if script.name == "gpu_check.sh" and len(words) > 1:
        pytest.skip("it takes no word but options")
    before = files(tmp_path)
    told = bare(script, *words)
    assert told.returncode == 0 and told.stderr == "", told.stderr
    assert f"./scripts/{script.name}" in told.stdout
    assert files(tmp_path) == before, "something was written, or a command called that installs or builds"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_an_option_that_is_none_is_told_before_anything_is_done(bare, tmp_path, script):
    before = files(tmp_path)
    told = bare(script, "--hepl")
    assert told.returncode in (1, 2) and f'{script.name} knows no "--hepl"' in told.stderr
    assert files(tmp_path) == before


def test_the_traps_can_catch(bare, tmp_path):
    told = bare(ROOT / "scripts" / "train.sh", "words.yaml")
    assert told.returncode != 0 and "python3" in (tmp_path / "called").read_text()
