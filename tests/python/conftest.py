"""Finds the package and its library: the installed one, or this checkout's with a build folder in ISENTROPE_LIBRARY."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

if os.environ.get("ISENTROPE_LIBRARY"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import torch

# Programs begun from here inherit what the shell around the tests may ignore: Ctrl-C in the background, a hangup under nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _seed():
    """Every test draws from its own start and finds the number of threads as it was."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def modules_of_transformers(tmp_path_factory):
    """A folder of the file's own for the code of checkpoints that transformers runs, which a process has one of: what an earlier file left is
    forgotten, since a module finds its neighbours where the package was found first."""
    import transformers

    path = list(sys.path)
    patch = pytest.MonkeyPatch()
    patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
    yield
    patch.undo()
    sys.path[:] = path


def worst(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error; equal infinities and two NaNs are none, one of a pair alone is an infinite one."""
    a, e = actual.detach().double(), expected.detach().double()
    assert a.shape == e.shape, f"shape {tuple(a.shape)}, expected {tuple(e.shape)}"
    error = torch.where((a == e) | (a.isnan() & e.isnan()), 0.0, (a - e).abs())
    return error.nan_to_num(nan=float("inf")).max().item() if error.numel() else 0.0


def assert_within_twice(name: str, actual: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, times: float = 2.0) -> None:
    """actual is at most twice (times) as far from exact (float64) as plain is: the same mathematics by torch in actual's dtype.
    Below one rounding of the largest element both count as exact. For a float64 actual, plain is given in float32, of
    the same inputs, and its error is scaled to float64's rounding; exact has such an error too, hence twice as much."""
    scale = 2 * torch.finfo(actual.dtype).eps / torch.finfo(torch.float32).eps if actual.dtype == torch.float64 else 1.0
    rounded = plain.detach().to(torch.float32 if actual.dtype == torch.float64 else actual.dtype)
    finite = exact.detach()[exact.isfinite()].abs()
    rounding = torch.finfo(actual.dtype).eps / 2 * (finite.max().item() if finite.numel() else 0.0)
    error, allowed = worst(actual, exact), times * max(scale * worst(rounded, exact), rounding)
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} ({times:g} times that of plain torch)"


@pytest.fixture
def within_twice():
    return assert_within_twice


@pytest.fixture
def same_on(tmp_path):
    """same_on(capability, script, cases): runs script in a process of that instruction set, with the path of the saved cases and
    the set's name as arguments; it prints "same" where it finds what cases say."""

    def run(capability, script, cases):
        import isentrope

        torch.save(cases, tmp_path / "cases.pt")
        paths = [str(Path(isentrope.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run([sys.executable, "-c", script, tmp_path / "cases.pt", capability.upper()], env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0 and "same" in done.stdout, done.stderr

    return run
