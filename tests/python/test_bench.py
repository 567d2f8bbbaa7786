"""scripts/bench installs the rivals of all chosen benchmarks before it imports one of them."""

import importlib.util
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BENCHMARK = """'''What is compared.'''
import importlib.util
PEERS = ["rival_of_{name}"]
assert all(importlib.util.find_spec(f"rival_of_{{name}}") for name in ("one", "two")), "imported before all rivals were installed"

def rows(threads):
    import rival_of_{name}
    return [{{"op": "{name}", "shape": [1], "dtype": "float32", "threads": threads, "peer": "rival", "ratio": 1.0}}]
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    loader = SourceFileLoader("bench", str(SCRIPTS / "bench"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench", loader))
    loader.exec_module(module)
    folder = tmp_path / "scripts" / "benchmarks"
    folder.mkdir(parents=True)
    for name in ("one", "two", "none"):
        (folder / f"{name}.py").write_text(BENCHMARK.format(name=name) if name != "none" else "def rows(threads):\n    return []\n")
    (tmp_path / "packages").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "NAMES", ["one", "two", "none"])
    monkeypatch.setattr(module, "machine", lambda: "here")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages"), *sys.path])
    for name in ("one", "two"):  # what the test imports is forgotten after it
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    return module


def test_rivals_are_installed_before_anything_is_imported(bench, tmp_path, monkeypatch):
    installed = []

    def pip(command, check):
        assert check and command[1:4] == ["-m", "pip", "install"]
        assert any(word.startswith("torch==") for word in command), "torch is not held where it is"
        for word in command:
            if word.startswith("rival_of_"):
                installed.append(word)
                (tmp_path / "packages" / f"{word}.py").write_text("")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(sys, "argv", ["bench", "one", "two", "none", "--json", str(tmp_path / "rows.json")])
    bench.main()
    assert installed == ["rival_of_one", "rival_of_two"]
    assert (tmp_path / "rows.json").exists()


@pytest.mark.parametrize("path", sorted((SCRIPTS / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_rivals_can_be_read_without_an_import(path):
    loader = SourceFileLoader("bench", str(SCRIPTS / "bench"))
    bench = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench", loader))
    loader.exec_module(bench)
    assert bool(bench.rivals(path.stem)) == ("\nPEERS" in path.read_text())


def test_a_section_that_is_not_measured_again_stays(bench, tmp_path, monkeypatch):
    page, text = tmp_path / "page.md", (SCRIPTS.parent / "docs" / "benchmarks.md").read_text()
    monkeypatch.setattr(bench, "NAMES", [line.split()[1] for line in text.split("\n") if line.startswith("## ")] + ["none"])
    assert bench.page({}, text) == text
    page.write_text("# Benchmarks\n\n## one\n\nold\n\n## none\n\nkept\n\n## CUDA kernels\n\nlast\n")
    monkeypatch.setattr(bench, "NAMES", ["none", "one"])
    monkeypatch.setattr(bench, "install", lambda rivals: None)
    (tmp_path / "packages" / "rival_of_one.py").write_text("")
    (tmp_path / "packages" / "rival_of_two.py").write_text("")
    monkeypatch.setattr(sys, "argv", ["bench", "one", "--json", str(tmp_path / "rows.json"), "--markdown", str(page)])
    bench.main()
    written = page.read_text()
    assert [written.index(part) for part in ("## none\n\nkept", "## one", "`scripts/bench one` on here", "## CUDA kernels\n\nlast")] == sorted(
        written.index(part) for part in ("## none\n\nkept", "## one", "`scripts/bench one` on here", "## CUDA kernels\n\nlast"))  # fmt: skip
    assert "old" not in written
