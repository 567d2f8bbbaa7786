"""Packs what CMake builds into the Python package: the ops, and the trainer where its packages are installed.

    pip install --no-build-isolation .

Which files go where is said by cmake/Package.cmake. Settings, from the environment:

    ISENTROPE_BUILD   a build folder to take the files from (the scripts' build/release); otherwise one is made
    CMAKE_ARGS        more options for that one, for example -DISENTROPE_TRAINER=OFF for the ops alone
"""

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Distribution, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
if int(setuptools.__version__.split(".")[0]) < 77:  # older ones cannot read the licence in pyproject.toml
    sys.exit(f"isentrope: setuptools {setuptools.__version__} is too old. Install the build tools first: "
             "pip install cmake ninja 'setuptools>=77'")


def cmake(*arguments):
    # The environment's cmake need not be on the PATH, as its python can be called by its full name.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    program = shutil.which("cmake", path=path)
    if program is None:
        sys.exit("isentrope: no cmake. Install the build tools first: pip install cmake ninja 'setuptools>=77'")
    subprocess.run([program, *map(str, arguments)], check=True, env={**os.environ, "PATH": path})


def torch_requirement():
    """The torch that the package can be loaded with: C++ symbols change with every minor version of it."""
    try:
        major, minor = importlib.metadata.version("torch").split("+")[0].split(".")[:2]
    except importlib.metadata.PackageNotFoundError:  # a source archive is made without one
        return "torch>=2.11"
    return f"torch=={major}.{minor}.*"


class BuildEmptied(build):
    """Starts from an empty folder: a file that has left the sources must not stay in the package."""

    def initialize_options(self):
        super().initialize_options()
        self.build_base = "build/python"

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildWithCMake(build_py):
    def run(self):
        super().run()
        folder = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "python" / sys.implementation.cache_tag))
        if "ISENTROPE_BUILD" not in os.environ:
            cmake("-S", ROOT, "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release",
                  "-DISENTROPE_TESTS=OFF", "-DISENTROPE_TRAINER=auto", *shlex.split(os.environ.get("CMAKE_ARGS", "")))
            cmake("--build", folder, "--parallel", os.environ.get("JOBS", os.cpu_count()), "--target", "python_package")
        target = ROOT / "python" if self.editable_mode else Path(self.build_lib)
        cmake("--install", folder, "--component", "python", "--prefix", target.resolve() / "isentrope")


class BinaryDistribution(Distribution):
    """Tells setuptools that the wheel fits one platform and one Python only."""

    def has_ext_modules(self):
        return True


setup(
    package_dir={"": "python"},
    install_requires=[torch_requirement()],
    scripts=["python/bin/isentrope"],
    cmdclass={"build": BuildEmptied, "build_py": BuildWithCMake},
    distclass=BinaryDistribution,
)
