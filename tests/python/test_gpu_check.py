"""scripts/gpu_check.sh checks every op that there is, and does on a machine without a GPU what can be done there."""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"


def ops():
    """The ops that have kernels, by their contracts."""
    kernels = ROOT / "kernels"  # grpo_policy.h is a part of a contract
    return sorted(path.stem for path in kernels.glob("*.h") if any(kernels.glob(f"{path.stem}*.cu")))


def test_its_ops_are_all_ops():
    line = next(line for line in SCRIPT.read_text().splitlines() if line.startswith("OPS="))
    told = subprocess.run(["bash", "-c", f'ROOT={ROOT}\n{line}\necho "$OPS"'], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(told) == ops()
    for op in told:
        assert (ROOT / f"tests/python/test_{op}.py").exists(), f"{op} has no tests in Python, which gpu_check.sh runs on the device"


@pytest.mark.parametrize("op", ops())
def test_what_it_runs_of_an_op_can_run_on_a_device(op):
    assert "cuda" in (ROOT / f"tests/python/test_{op}.py").read_text(), f"tests/python/test_{op}.py has none that -k cuda takes"
    benchmark = ROOT / f"scripts/benchmarks/{op}.py"
    if benchmark.exists():
        rows = next(node for node in ast.parse(benchmark.read_text()).body if getattr(node, "name", "") == "rows")
        assert "device" in [argument.arg for argument in rows.args.args], f"{benchmark.name} has no rows(device=…)"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None or os.path.exists("/dev/nvidiactl"), reason="there is a GPU: run it")
def test_without_a_gpu_it_says_so_and_claims_nothing(tmp_path):
    done = subprocess.run([SCRIPT, "--output", tmp_path / "report.json"], capture_output=True, text=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 3, done.stderr
    assert report["gpu"] is None and report["passed"] is None
    assert [step["status"] for step in report["steps"]] == ["skipped"]


def nvcc():
    site = Path(sysconfig.get_path("purelib"))
    return os.environ.get("CUDACXX") or next(map(str, site.glob("nvidia/*/bin/nvcc")), None)


@pytest.mark.skipif(nvcc() is None, reason="there is no nvcc: pip install 'cuda-toolkit[nvcc]', or set CUDACXX")
def test_what_it_would_build_can_be_configured(tmp_path):
    """Compiling it takes many minutes, which scripts/check.sh --full has; the build of the tests compiles the same sources."""
    command = [SCRIPT, "--configure-only", "--output", tmp_path / "report.json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "ISENTROPE_PYTHON": sys.executable})
    report = json.loads((tmp_path / "report.json").read_text())
    steps = {step["name"]: step["status"] for step in report["steps"]}
    assert done.returncode == 0 and steps.get("configure the kernels") == "passed" and "failed" not in steps.values(), done.stderr
