"""Every C++ and CUDA source is as clang-format 14 writes it: another version formats otherwise, so that one is pinned."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = "14.0.6"


def clang_format():
    """The environment's, which `scripts/setup.sh test` and the extra [test] install, else one on the PATH."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    program = shutil.which("clang-format", path=path)
    assert program, f"there is no clang-format; pip install clang-format=={VERSION}"
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    assert f"version {VERSION}" in told, f"{program} is {told.strip()}; wanted {VERSION}: pip install clang-format=={VERSION}"
    return program


def unformatted(files):
    """What clang-format says of files that it would write otherwise; empty where there are none."""
    return subprocess.run([clang_format(), "--dry-run", "--Werror", "--style=file", *map(str, files)], capture_output=True, text=True).stderr


def test_every_source_is_formatted():
    files = [path for room in ("csrc", "kernels", "tests", "scripts") for path in sorted((ROOT / room).rglob("*"))
             if path.suffix in (".h", ".cpp", ".cu", ".cuh")]  # fmt: skip
    assert len(files) > 100
    found = [line for line in unformatted(files).splitlines() if "clang-format-violations" in line]
    assert found == [], "mend them: clang-format -i FILE …"


@pytest.mark.parametrize("text, right", [("int x = 1;\n", True), ("int  x=1;\n", False)])
def test_it_can_fail(tmp_path, text, right):
    (tmp_path / ".clang-format").write_bytes((ROOT / ".clang-format").read_bytes())
    (tmp_path / "x.cpp").write_text(text)
    assert (unformatted([tmp_path / "x.cpp"]) == "") == right
