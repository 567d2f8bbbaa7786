"""The package as it lies in an environment: its libraries find torch beside them or where the environment has it, and an
environment with another torch is told so before anything is loaded."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release"))
SITE = Path(torch.__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (BUILD / "bin" / "isentrope").exists(), reason=f"no trainer in this build: {BUILD}")


def run(*command, timeout=300, **variables):
    kept = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "ISENTROPE_LIBRARY")}
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout,
                          env={**kept, **variables}, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    made = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT,
               ISENTROPE_BUILD=str(BUILD))
    assert made.returncode == 0, made.stderr
    (file,) = folder.glob("isentrope-*.whl")
    return file


def unpacked(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "isentrope" / "bin" / "isentrope").chmod(0o755)
    return folder / "isentrope"


def test_no_library_remembers_where_it_was_built(wheel, tmp_path):
    package = unpacked(wheel, tmp_path)
    files = [package / "bin" / "isentrope", *package.rglob("*.so")]
    assert len(files) == 3
    for file in files:
        told = run("readelf", "-d", file)
        assert told.returncode == 0, told.stderr
        (path,) = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", told.stdout)
        assert all(part.startswith("$ORIGIN") for part in path.split(":")), f"{file.name} looks in {path}"


def test_a_wheel_holds_one_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {name.split("-")[0] for name in top} == {"isentrope"}, top


def test_a_wheel_asks_for_the_torch_it_was_built_for(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    minor = ".".join(torch.__version__.split(".")[:2])
    assert f"Requires-Dist: torch=={minor}.*" in metadata.splitlines()


def test_the_program_finds_torch_beside_the_package(wheel, tmp_path):
    package = unpacked(wheel, tmp_path)
    for entry in SITE.iterdir():  # an environment in another place: the same neighbours
        if not entry.name.startswith("isentrope"):
            (tmp_path / entry.name).symlink_to(entry)
    told = run(package / "bin" / "isentrope", "version")
    assert told.returncode == 0, told.stderr
    assert f"torch {torch.__version__.split('+')[0]}" in told.stdout


def test_the_command_finds_torch_of_another_folder(wheel, tmp_path):
    unpacked(wheel, tmp_path)
    told = run(sys.executable, ROOT / "python" / "bin" / "isentrope", "version", PYTHONPATH=str(tmp_path))
    assert told.returncode == 0, told.stderr
    assert "torch " in told.stdout


@pytest.mark.parametrize("version, cuda, wanted", [("2.1.0", "", "2.1.0"), (torch.__version__, "1.0", "with CUDA 1.0")])
def test_another_torch_is_named_before_anything_is_loaded(wheel, tmp_path, version, cuda, wanted):
    package = unpacked(wheel, tmp_path)
    (package / "_build.py").write_text(f"TORCH_VERSION = {version!r}\nTORCH_CUDA = {cuda!r}\n")
    hidden = "import torch; torch.version.cuda = None; " if cuda else ""
    told = run(sys.executable, "-c", hidden + "import isentrope", PYTHONPATH=str(tmp_path))
    assert "ImportError: isentrope was built for torch" in told.stderr and wanted in told.stderr
    assert "--no-build-isolation" in told.stderr
    if not cuda:
        told = run(sys.executable, ROOT / "python" / "bin" / "isentrope", "version", PYTHONPATH=str(tmp_path))
        assert told.returncode == 1 and f"built for torch {version}" in told.stderr


def test_a_file_that_is_not_the_library_is_named(tmp_path):
    text, other = tmp_path / "a.so", Path(torch.__file__).parent / "lib" / "libc10.so"
    text.write_text("no library")
    for path, wanted in ((text, "cannot be loaded"), (other, "has no ops of isentrope")):
        told = run(sys.executable, "-c", "import isentrope", ISENTROPE_LIBRARY=str(path))
        assert told.stderr.splitlines()[-1].startswith(f"ImportError: isentrope: {path} {wanted}"), told.stderr


def test_an_installation_without_the_trainer_says_so(wheel, tmp_path):
    package = unpacked(wheel, tmp_path)
    shutil.rmtree(package / "bin")
    told = run(sys.executable, ROOT / "python" / "bin" / "isentrope", "version", PYTHONPATH=str(tmp_path))
    assert told.returncode == 1 and "holds the ops alone" in told.stderr


@pytest.mark.skipif(not os.environ.get("ISENTROPE_ISOLATED_INSTALL"), reason="scripts/check.sh --full builds all again, with a torch of its own")
def test_a_build_in_isolation_leaves_a_program_that_runs(tmp_path):
    """As `pip install .` is typed by most: pip makes an environment for the build, with a torch of its own, and deletes it after."""
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("build", ".git", ".venv", "runs", "*.egg-info", "__pycache__"))
    made = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", wheels, source, timeout=2400, PIP_NO_CACHE_DIR="1",
               CMAKE_ARGS="-DISENTROPE_CUDA=off")
    if "No matching distribution found" in made.stderr:
        pytest.skip("the package index cannot be reached, and a build in isolation takes its torch from there")
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    (file,) = wheels.glob("isentrope-*.whl")
    with zipfile.ZipFile(file) as archive:
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    if f"Requires-Dist: torch=={'.'.join(torch.__version__.split('.')[:2])}.*" not in metadata.splitlines():
        pytest.skip(f"the index has another torch than the {torch.__version__} here")
    package = unpacked(file, site)
    told = run(sys.executable, ROOT / "python" / "bin" / "isentrope", "version", PYTHONPATH=str(site))
    assert told.returncode == 0, told.stderr
    assert "trainer" in told.stdout
    told = run(sys.executable, "-c", "import isentrope, torch; print(isentrope.__file__, isentrope.token_entropy(torch.zeros(1, 4), "
               "torch.tensor([0])).entropy.item())", PYTHONPATH=str(site))
    assert told.returncode == 0 and told.stdout.startswith(str(package)), told.stdout + told.stderr
    assert abs(float(told.stdout.split()[1]) - 1.3862944) < 1e-6


def test_a_cpp_project_finds_the_package(wheel, tmp_path):
    package = unpacked(wheel, tmp_path / "site")
    made = run("cmake", "-S", ROOT / "examples" / "cpp", "-B", tmp_path / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={package}",
               f"-DPython_EXECUTABLE={sys.executable}")
    assert made.returncode == 0, made.stdout + made.stderr
    made = run("cmake", "--build", tmp_path / "build")
    assert made.returncode == 0, made.stdout + made.stderr
    told = run(tmp_path / "build" / "entropy_of_attention")
    assert told.returncode == 0, told.stderr
    entropy, bound = map(float, re.match(r"entropy of the last row: ([\d.]+) of ([\d.]+) nats", told.stdout).groups())
    assert 0 < entropy < bound


def test_the_cmake_prefix_is_the_package():
    import isentrope

    assert (Path(isentrope.cmake_prefix_path) / "lib" / "cmake" / "Isentrope" / "IsentropeConfig.cmake").is_file()
