"""scripts/stability.py: what it says of runs, with a program that writes made-up ones."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("stability", ROOT / "scripts" / "stability.py")
stability = importlib.util.module_from_spec(spec)
sys.modules["stability"] = stability
spec.loader.exec_module(stability)

ONE_BYTE = 3.2
PROGRAM = '''#!{python}
"""A trainer that loses its attention above rate 1e-3, and diverges above 1e-2."""
import json, sys
from pathlib import Path
given = dict(word.split("=", 1) for word in sys.argv[3:] if "=" in word)
folder, rate = Path(given["run.dir"]), float(given["phases.pretrain.optimizer.lr"])
with open("calls", "a") as calls:
    print(folder.name, file=calls)
folder.mkdir(parents=True)
with open(folder / "metrics.jsonl", "w") as file:
    for step in range(1, 61):
        loss, level = (4 - step / 40, 0.5) if rate <= 1e-3 else (3.3, max(0.02, 0.6 - step / 60))
        line = {{"phase": "pretrain", "step": step, "loss": loss}}
        if step % 2 == 0:
            alarms = ["layer 0: 2 of 2 heads have collapsed (…)"] if level < 0.05 else []
            table = [[level, level]]
            line["attention_entropy"] = {{"normalized": table, "max_logit": [[9, 8]], "bound": [[0, 0]], "certified": [[0.5, 0]],
                                          "alarms": alarms}}
        print(json.dumps(line), file=file)
    if rate <= 1e-2:
        print(json.dumps({{"phase": "pretrain", "step": 60, "eval/split": "test", "eval/loss": (2.5 if rate <= 1e-3 else 3.3) + rate}}), file=file)
if rate > 1e-2:
    sys.exit("isentrope: phase pretrain, step 61: the gradient of head is not finite. …")
if "broken" in str(folder):
    sys.exit("isentrope: no space left on device")
'''


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "isentrope"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


def run(program, out, rate, seed=0, norm="pre", method="plain"):
    return stability.run(program, stability.Cell("matrix", norm, method, rate), seed, out)


def test_verdicts(program, tmp_path):
    healthy, stalled, diverged = (run(program, tmp_path / "out", rate) for rate in (1e-3, 1e-2, 1e-1))
    assert stability.verdict(healthy, ONE_BYTE) == "ok"
    assert stability.verdict(stalled, ONE_BYTE) == "stalled+collapsed"
    assert stability.verdict(diverged, ONE_BYTE) == "diverged" and diverged["loss"] == math.inf and diverged["test"] is None
    assert healthy["loss"] == pytest.approx(4 - (41 + 60) / 2 / 40)  # the mean of the last 20
    assert stalled["lowest"] == [0.02] and stalled["lowest_step"] == 36 and stalled["collapse"] == 34
    assert stalled["falls"] == {"0.2": 24, "0.15": 28, "0.1": 30, "0.075": 32} and stalled["certified"] == 0.25 and stalled["violations"] == 0


def test_runs_are_made_once_and_others_failures_are_told(program, tmp_path):
    assert run(program, tmp_path / "out", 1e-3) == run(program, tmp_path / "out", 1e-3)
    assert (tmp_path / "calls").read_text().splitlines() == ["pre-plain-0.001-seed0"]
    half = tmp_path / "out" / "matrix" / "pre-plain-0.001-seed1"  # killed in the middle: no result, made again
    half.mkdir()
    assert run(program, tmp_path / "out", 1e-3, seed=1)["steps"] == 60
    with pytest.raises(RuntimeError, match="no space left on device"):
        run(program, tmp_path / "broken", 1e-3)


def test_tables(program, tmp_path, monkeypatch, capsys):
    groups = stability.cells("matrix", ["pre"], stability.some("plain", "sigmaReparam"), [3e-4, 1e-3, 3e-3, 1e-2, 1e-1])
    monkeypatch.setattr(stability, "DECISIVE", groups)
    monkeypatch.setattr(stability, "byte_levels", lambda: (ONE_BYTE, 2.4))
    page = tmp_path / "page.md"
    page.write_text("# Title\n<!-- matrix -->\nold\n<!-- end -->\nbetween\n<!-- alarms -->\n<!-- end -->\nlast\n")
    monkeypatch.setattr(sys, "argv", ["stability.py", "--program", program, "--out", str(tmp_path / "out"), "--write", str(page)])
    with pytest.raises(SystemExit) as end:
        stability.main()
    assert end.value.code == 0
    ran = {line.rsplit("-", 2)[1] for line in (tmp_path / "calls").read_text().replace("3e-", "3e_").splitlines()}
    assert ran == {"0.0003", "0.001", "0.003"}, "rates above one at which every seed stalls are left out"
    text = page.read_text()
    assert text.startswith("# Title\n<!-- matrix -->\n| norm |") and text.endswith("\nlast\n") and "old" not in text
    assert "| pre | plain | 0.003 | 3.300 / 3.300 / 3.300 | 3.303 / 3.303 / 3.303 | 0.020 / 0.020 / 0.020 |" in text
    assert "| matrix | pre | 0.003 | 30 / 30 / 30 | 34 / 34 / 34 |" in text
    assert "| collapsed | fallen, below 0.1 | 6 of 6 | 30 |" in text and "| ok | collapsed | 0 of 12 | – |" in text
    capsys.readouterr()


def test_summary_names_the_rates_that_are_ok(program, tmp_path):
    results = {}
    for rate in (3e-4, 1e-3, 1e-2):
        results[stability.Cell("matrix", "pre", "plain", rate)] = [run(program, tmp_path / "out", rate, seed) for seed in range(2)]
    (row,) = stability.summary(results, ONE_BYTE)[2:]
    assert row == "| pre | plain | 0.0003, 0.001 | 0.01: stalled+collapsed | 2.500 at 0.0003 | 2.501 | 3.310 | – |"


def test_configurations_of_all_cells_are_valid():
    """Every override names a key that is there: read by the trainer itself where it is built."""
    program = pytest.importorskip("isentrope._C")
    seen = set()
    for group in stability.FULL:
        cell = group[0]
        if (cell.norm, cell.method, cell.overrides) not in seen:
            seen.add((cell.norm, cell.method, cell.overrides))
            words = cell.command("isentrope", Path("out"), 0)
            program.print_config(str(ROOT / words[2]), [word for word in words[4:]])
    assert len(seen) > 20


def test_result_files_are_json(program, tmp_path):
    run(program, tmp_path / "out", 1e-1)
    (file,) = (tmp_path / "out").rglob("result.json")
    assert json.loads(file.read_text())["failure"].endswith("not finite. …")
