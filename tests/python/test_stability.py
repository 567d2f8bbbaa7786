"""`isentrope stability`: what it says of runs, with a program that writes made-up ones."""

import json
import math
import sys
from pathlib import Path

import pytest

pytest.importorskip("yaml")
pytest.importorskip("numpy")
from isentrope import jobs, stability
from isentrope.compare import plan
from isentrope.stability import cells, page, runs, times

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "stability"

ONE_BYTE = 3.2
PROGRAM = '''#!{python}
"""A trainer that loses its attention above rate 1e-3, and diverges above 1e-2."""
import json, sys
from pathlib import Path
if sys.argv[1] == "config":
    print("phases: [{{name: pretrain, steps: 60, optimizer: {{lr: 0.1}}}}]")
    sys.exit()
given = dict(word.split("=", 1) for word in sys.argv[3:] if "=" in word)
folder, rate = Path(given["run.dir"]), float(given["phases.pretrain.optimizer.lr"])
with open("calls", "a") as calls:
    print(folder.name, file=calls)
folder.mkdir(parents=True, exist_ok=True)
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
    for module in (jobs, plan, stability, times):
        monkeypatch.setattr(module, "PROGRAM", str(path))
    return str(path)


def run(out, rate, seed=0, norm="pre", method="plain"):
    """The result of one run, or what went wrong."""
    job = cells.Cell("matrix", norm, method, rate).job(CONFIGS, out, seed, 60)
    made = jobs.Runs([job], 1)
    made.run([[job]])
    return json.loads((job.folder / "result.json").read_text()) if job.finished else made.failures[0]


def test_verdicts(program, tmp_path):
    healthy, stalled, diverged = (run(tmp_path / "out", rate) for rate in (1e-3, 1e-2, 1e-1))
    assert runs.verdict(healthy, ONE_BYTE) == "ok"
    assert runs.verdict(stalled, ONE_BYTE) == "stalled+collapsed"
    assert runs.verdict(diverged, ONE_BYTE) == "diverged" and diverged["loss"] == math.inf and diverged["test"] is None
    assert healthy["loss"] == pytest.approx(4 - (41 + 60) / 2 / 40)  # the mean of the last 20
    assert stalled["lowest"] == [0.02] and stalled["lowest_step"] == 36 and stalled["collapse"] == 34
    assert stalled["falls"] == {"0.2": 24, "0.15": 28, "0.1": 30, "0.075": 32} and stalled["certified"] == 0.25 and stalled["violations"] == 0


def test_runs_are_made_once_and_others_failures_are_told(program, tmp_path):
    assert run(tmp_path / "out", 1e-3) == run(tmp_path / "out", 1e-3)
    assert (tmp_path / "calls").read_text().splitlines() == ["pre-plain-0.001-seed0"]
    half = tmp_path / "out" / "matrix" / "pre-plain-0.001-seed1"  # killed in the middle: no result, made again
    half.mkdir()
    assert run(tmp_path / "out", 1e-3, seed=1)["steps"] == 60
    assert "broken/matrix/pre-plain-0.001-seed0 ended with exit code 1" in (said := run(tmp_path / "broken", 1e-3)) and "no space left on device" in said


def test_tables(program, tmp_path, monkeypatch, capsys):
    groups = cells.cells("matrix", ["pre"], cells.some("plain", "sigmaReparam"), [3e-4, 1e-3, 3e-3, 1e-2, 1e-1])
    monkeypatch.setattr(cells, "DECISIVE", groups)
    monkeypatch.setattr(runs, "byte_levels", lambda: (ONE_BYTE, 2.4))
    file = tmp_path / "page.md"
    file.write_text("# Title\n<!-- matrix -->\nold\n<!-- end -->\nbetween\n<!-- alarms -->\n<!-- end -->\nlast\n")
    command = ["--configs", str(CONFIGS), "--dir", str(tmp_path / "out"), "--write", str(file)]
    assert stability.main(command) == 0
    ran = {line.rsplit("-", 2)[1] for line in (tmp_path / "calls").read_text().replace("3e-", "3e_").splitlines()}
    assert ran == {"0.0003", "0.001", "0.003"}, "rates above one at which every seed stalls are left out"
    text = file.read_text()
    assert text.startswith("# Title\n<!-- matrix -->\n| norm |") and text.endswith("\nlast\n") and "old" not in text
    assert "| pre | plain | 0.003 | 3.300 / 3.300 / 3.300 | 3.303 / 3.303 / 3.303 | 0.020 / 0.020 / 0.020 |" in text
    assert "| matrix | pre | 0.003 | 30 / 30 / 30 | 34 / 34 / 34 |" in text
    assert "| collapsed | fallen, below 0.1 | 6 of 6 | 30 |" in text and "| ok | collapsed | 0 of 12 | – |" in text
    told = capsys.readouterr()
    assert told.out.endswith(f"isentrope report {tmp_path / 'out'}/matrix\n") and told.err.startswith("run 1 of at most 30  ")
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert len(rows) == 18 and rows[6] | {"folder": 0} == {
        "table": "matrix", "norm": "pre", "method": "plain", "lr": 3e-3, "seed": 0, "folder": 0, "steps": 60, "loss": 3.3,
        "test_loss": pytest.approx(3.303), "lowest_entropy": 0.02, "first_alarm": 30, "collapse": 34, "verdict": "stalled+collapsed"}  # fmt: skip
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 19

    (tmp_path / "calls").unlink()
    assert stability.main(command) == 0 and not (tmp_path / "calls").exists(), "what is finished is not run again"
    folder = tmp_path / "out" / rows[0]["folder"]
    (folder / "config.yaml").write_text("phases: [{name: pretrain, steps: 70, optimizer: {lr: 0.0003}}]\nrun: {seed: 0}\n")
    assert stability.main(command) == 1
    assert "phases.pretrain.steps: 70 → 60" in capsys.readouterr().err


def test_configurations_that_are_not_here_are_told(program, tmp_path, capsys):
    assert stability.main(["--dir", str(tmp_path / "out")]) == 1
    assert "there is no configs/stability/pre.yaml; go to the source tree" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "calls").exists()


def test_summary_names_the_rates_that_are_ok(program, tmp_path):
    results = {}
    for rate in (3e-4, 1e-3, 1e-2):
        results[cells.Cell("matrix", "pre", "plain", rate)] = [run(tmp_path / "out", rate, seed) for seed in range(2)]
    (row,) = page.summary(results, ONE_BYTE)[2:]
    assert row == "| pre | plain | 0.0003, 0.001 | 0.01: stalled+collapsed | 2.500 at 0.0003 | 2.501 | 3.310 | – |"


def test_configurations_of_all_cells_are_valid():
    """Every override names a key that is there: read by the trainer itself where it is built."""
    program = pytest.importorskip("isentrope._C")
    seen = set()
    for group in cells.FULL:
        cell = group[0]
        if (cell.norm, cell.method, cell.overrides) not in seen:
            seen.add((cell.norm, cell.method, cell.overrides))
            file, *words = cell.words(CONFIGS, 0)
            program.print_config(file, words)
    assert len(seen) > 20


def test_result_files_are_json(program, tmp_path):
    run(tmp_path / "out", 1e-1)
    (file,) = (tmp_path / "out").rglob("result.json")
    assert json.loads(file.read_text())["failure"].endswith("not finite. …")
