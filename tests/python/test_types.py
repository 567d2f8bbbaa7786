"""What mypy and pyright say of the package, as they find it: of examples/ and of typing_cases.py. And the compiled module's stub."""

import ast
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import isentrope

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).with_name("typing_cases.py")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PACKAGE = Path(isentrope.__file__).resolve().parent  # the installed one, or this checkout's
SEARCHED = [] if PACKAGE.parent.name.endswith("-packages") else [str(PACKAGE.parent)]


def ran_mypy(folder, *arguments):
    """With one cache for all tests, and options of which none keeps a run from another's: most of the time goes into torch and transformers,
    whose own functions, backward() among them, have no types everywhere."""
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--untyped-calls-exclude=torch", "--untyped-calls-exclude=transformers", "--follow-imports=silent",
         f"--cache-dir={folder.parent / 'mypy_cache'}", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "MYPYPATH": os.pathsep.join(SEARCHED)}, cwd=folder,
    )  # fmt: skip


def mypy(files, folder):
    """{(file, line)} of the errors, and what was printed."""
    done = ran_mypy(folder, "--output=json", *files)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(Path(folder, error["file"]).resolve(), error["line"]) for error in errors if error["severity"] == "error"}, done.stdout


def pyright(files, folder, searched=SEARCHED):
    config = {"include": [os.path.relpath(file, folder.resolve()) for file in files], "extraPaths": searched, "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    done = subprocess.run([sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)],
                          capture_output=True, text=True, env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] == len(files), done.stdout
    errors = [error for error in told["generalDiagnostics"] if error["severity"] == "error"]
    return {(Path(error["file"]).resolve(), error["range"]["start"]["line"] + 1) for error in errors}, done.stdout


@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_checkers_find_the_errors_and_no_others(checker, tmp_path):
    if importlib.util.find_spec(checker.__name__) is None:
        pytest.skip(f"{checker.__name__} is not installed: ./scripts/setup.sh test")
    wrong = {(CASES, number) for number, line in enumerate(CASES.read_text().splitlines(), 1) if line.endswith("# wrong")}
    assert len(wrong) > 25
    found, told = checker([CASES, *EXAMPLES], tmp_path)
    assert found - wrong == set(), told
    assert wrong - found == set(), "no error there"


PACKAGES = ["doctor", "diagnose"]


@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_packages_have_types(checker, tmp_path):
    """The sources, which mypy takes by the name of the package: the folder of an installed one has modules of others."""
    sources = [ROOT / "python" / "isentrope" / package for package in PACKAGES]
    if importlib.util.find_spec(checker.__name__) is None or not all(path.is_dir() for path in sources):
        pytest.skip(f"{checker.__name__} is not installed, or there are no sources")
    if checker is mypy:
        done = ran_mypy(tmp_path, *(word for package in PACKAGES for word in ("-p", f"isentrope.{package}")))
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        found, told = checker(sorted(file for path in sources for file in path.rglob("*.py")), tmp_path, [str(ROOT / "python")])  # not the installed package, which has the same names
        assert found == set(), told


# ---- the compiled module ---------------------------------------------------------------------------------------------


def public(names):
    return {name for name in names if not name.startswith("_")}


def test_the_stub_of_the_compiled_module():
    compiled = pytest.importorskip("isentrope._C", reason="a package without the trainer")
    stub = ast.parse((PACKAGE / "_C.pyi").read_text())
    parts = {part.name: part for part in stub.body if isinstance(part, (ast.ClassDef, ast.FunctionDef))}
    assert set(parts) == public(vars(compiled))
    members = {part.name: part for part in parts["Trainer"].body}
    assert public(members) == public(vars(compiled.Trainer))
    for name, member in members.items():
        real = inspect.getattr_static(compiled.Trainer, name)
        assert isinstance(real, property) == bool(member.decorator_list), name
        if not isinstance(real, property):
            signature = real.__doc__.splitlines()[0]
            for argument in member.args.args:
                assert f"{argument.arg}:" in signature, f"{name} takes {signature}"


def test_the_types_are_in_the_package():
    assert (PACKAGE / "py.typed").is_file() and (PACKAGE / "_C.pyi").is_file()


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [isentrope, isentrope.ops], ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    "old", ["EntropyAttention", "GrpoLoss", "PowerStep", "SigmaLinear", "TokenEntropy", "TokenEntropyMoments", "WindowEntropy"]
)
def test_an_old_name_says_the_new_one(module, old):
    assert hasattr(module, f"{old}Output")
    with pytest.raises(AttributeError, match=f"now isentrope.{old}Output"):
        getattr(module, old)


def test_no_two_things_share_a_name():
    shared = set(isentrope.__all__) & set(isentrope.nn.__all__)
    assert shared == {"power_step"}, "of tensors, and of a module"
    with pytest.raises(AttributeError, match="no attribute 'sigma_linaer'"):
        isentrope.sigma_linaer


def test_import_loads_little_beside_torch():
    script = (
        "import sys, torch; before = set(sys.modules); import isentrope; "
        "print(*sorted({name for name in set(sys.modules) - before if name.split('.')[0] != 'isentrope'}))"
    )
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    more = done.stdout.split()
    assert {name.split(".")[0] for name in more} <= set(sys.stdlib_module_names) | {"torch"}, "other packages are for those who use them"
    assert len(more) <= 20, more
