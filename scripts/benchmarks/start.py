"""From the start of `isentrope train configs/quickstart.yaml` to its first line of metrics, beside the same program when it does no more
than load torch (`isentrope version`), and beside `python -c "import torch"`; the target is 1 s beyond the load of torch.

Processes begin in turn, in the same rounds, all with what the rounds before left in the page cache. ratio is of the rival's time to
ours; the shape says the median of the seconds beyond the rival.

The lines of a step, metrics and console, took 0.21 % of a step of the quickstart's size (0.046 of 22 ms, two threads; at most 1 % is promised):
`train_tests --gtest_filter=RunHeaderTest.Lines*` measures both and prints them.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"


def ended(command, environment):
    """Seconds until the command has ended."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def first_line(threads, environment):
    """Seconds until a whole line of the first step stands in metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / "metrics.jsonl"
        command = [PROGRAM, "train", "configs/quickstart.yaml", f"run.dir={folder}/run", f"run.threads={threads}", "run.device=cpu", "--quiet"]
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as run:
            while not metrics.exists() or b'\n{"phase"' not in (text := metrics.read_bytes()) or not text.endswith(b"\n"):
                if run.poll() is not None:
                    raise RuntimeError(f"{PROGRAM} ended with exit code {run.returncode} before its first step")
                time.sleep(0.001)
            seconds = time.perf_counter() - start
            run.kill()
        return seconds


def rows(threads=1, rounds=7):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    contenders = {
        "isentrope version": lambda: ended([PROGRAM, "version"], environment),
        "python -c 'import torch'": lambda: ended([sys.executable, "-c", "import torch"], environment),
    }
    ours, rivals = [], {name: [] for name in contenders}
    for turn in range(rounds + 1):  # the first fills the page cache
        times = {name: contender() for name, contender in contenders.items()}
        mine = first_line(threads, environment)
        if turn > 0:
            ours.append(mine)
            for name, seconds in times.items():
                rivals[name].append(seconds)
    found = []
    for name, seconds in rivals.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds, ours)]
        beyond = statistics.median(mine - theirs for theirs, mine in zip(seconds, ours))
        found.append(
            {"op": "start", "shape": f"quickstart, first step {beyond:.2f} s beyond", "dtype": "float32", "threads": threads,
             "ours_s": statistics.median(ours), "peer": name, "peer_s": statistics.median(seconds),
             "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
        )
    return found
