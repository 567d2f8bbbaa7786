"""metrics.trackers: each tracker gets what metrics.jsonl holds, once, under one run, and none of them is a danger to training.

The packages here are small ones that record the calls. They imitate what isentrope calls of wandb 0.31 (init, Run.define_metric, log, finish),
mlflow 3.17 (set_experiment, start_run, log_params, log_metrics, end_run) and trackio 0.43 (init, Run.log, finish).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import isentrope
from isentrope import json_lines, trackers
from isentrope.tensorboard import scalars

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release"))
PROGRAM = BUILD / "bin" / "isentrope"
needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")

COMMON = """
import json, os, sys, time
def note(called, **said):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps({"package": PACKAGE, "call": called, **said}) + "\\n")
    what = os.environ.get("FAULT_" + PACKAGE, "").split(":")
    if what[0] == called:
        if what[1] == "raise": raise RuntimeError("the server\\nsays no")
        if what[1] == "exit": sys.exit(3)
        if what[1] == "hang": time.sleep(1000)
print("a package that prints")
"""
PACKAGES = {
    "wandb": """
PACKAGE = "wandb"
class Run:
    def define_metric(self, name, step_metric=None): note("define_metric", name=name, step_metric=step_metric)
    def log(self, data): note("log", data=data)
    def finish(self): note("finish")
def init(project=None, name=None, id=None, resume=None, dir=None, config=None):
    note("init", project=project, name=name, id=id, resume=resume, dir=dir, config=config)
    return Run()
""",
    "mlflow": """
PACKAGE = "mlflow"
class Run: pass
def set_experiment(name): note("set_experiment", name=name)
def start_run(run_id=None, run_name=None):
    note("start_run", run_id=run_id, run_name=run_name)
    run = Run(); run.info = Run(); run.info.run_id = run_id or "made by mlflow"
    return run
def log_params(params): note("log_params", params=params)
def log_metrics(metrics, step=None): note("log_metrics", metrics=metrics, step=step)
def end_run(): note("end_run")
""",
    "trackio": """
PACKAGE = "trackio"
class Run:
    def log(self, metrics, step=None): note("log", data=metrics, step=step)
    def finish(self): note("finish")
def init(project, name=None, config=None, resume="never"):
    note("init", project=project, name=name, resume=resume, config=config)
    return Run()
""",
}
TRACKERS = "metrics.trackers=[wandb, mlflow, trackio]"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The packages on the path; what they were called with is in a file."""
    for name, text in PACKAGES.items():
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text(COMMON + text)
    paths = [tmp_path / "packages", Path(isentrope.__file__).resolve().parents[1], os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("ISENTROPE_PYTHON", sys.executable)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def train(folder, *overrides, resume=False, config="sft", code=0):
    words = [PROGRAM, "train", f"configs/tiny/{config}.yaml", f"run.dir={folder}", *overrides, "--quiet"]
    told = subprocess.run([*words] + ["--resume"] * resume, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert told.returncode == code, told.stderr
    assert "Traceback" not in told.stderr
    return told


def calls(world, package):
    lines = [json.loads(line) for line in (world / "calls").read_text().splitlines()]
    return [line for line in lines if line["package"] == package]


def written(folder):
    """(step of the run, {tag: value}) of each line of metrics.jsonl."""
    return [(line["global_step"], scalars(line)) for line in json_lines.read(Path(folder) / "metrics.jsonl")]


def logged(world, package):
    said = calls(world, package)
    if package == "wandb":
        return [(call["data"].pop("global_step"), call["data"]) for call in said if call["call"] == "log"]
    if package == "mlflow":
        return [(call["step"], call["metrics"]) for call in said if call["call"] == "log_metrics"]
    return [(call["step"], call["data"]) for call in said if call["call"] == "log"]


def expected(folder, package):
    if package != "mlflow":
        return written(folder)
    return [(step, {tag.replace("@", "_at_"): value for tag, value in tags.items()}) for step, tags in written(folder)]


@needs_program
def test_each_gets_the_metrics_under_one_run_also_after_resumptions(world):
    folder = world / "a run"
    train(folder, TRACKERS, "phases.sft.steps=60", "run.checkpoint_every=20", "phases.sft.evaluation.every=20")
    ids = json.loads((folder / "trackers.json").read_text())
    for package in PACKAGES:
        assert logged(world, package) == expected(folder, package), package
        assert calls(world, package)[-1]["call"] == ("end_run" if package == "mlflow" else "finish")
    (wandb,) = (call for call in calls(world, "wandb") if call["call"] == "init")
    assert wandb["project"] == "isentrope" and wandb["name"] == "a run" and wandb["dir"] == str(folder)
    assert wandb["id"] == ids["wandb"]["id"] and wandb["resume"] == "allow" and wandb["config"]["run"]["seed"] == 1
    assert {"name": "*", "step_metric": "global_step"}.items() <= calls(world, "wandb")[2].items()
    (trackio,) = (call for call in calls(world, "trackio") if call["call"] == "init")
    assert trackio["name"] == f"a run-{ids['trackio']['id']}" and trackio["config"]["phases.sft.steps"] == 60
    params = {key: value for call in calls(world, "mlflow") if call["call"] == "log_params" for key, value in call["params"].items()}
    assert params["phases.sft.steps"] == "60" and all(len(call["params"]) <= 100 for call in calls(world, "mlflow") if call["call"] == "log_params")

    shutil.rmtree(folder / "checkpoints" / "sft-000060")  # as a kill between two checkpoints leaves it
    (folder / "summary.json").unlink()
    train(folder, TRACKERS, "phases.sft.steps=80", "run.checkpoint_every=20", "phases.sft.evaluation.every=20", resume=True)
    assert {name: kept["id"] for name, kept in json.loads((folder / "trackers.json").read_text()).items()} == {name: kept["id"] for name, kept in ids.items()}
    for package in PACKAGES:  # what was sent before is not sent again
        steps = [step for step, _ in logged(world, package)]
        assert steps == sorted(steps) and steps[-1] == 80, package
        assert len(steps) == len(written(folder)) + 1, "the test at the end of the shorter run is one more"
        assert logged(world, package)[-5:] == expected(folder, package)[-5:]
    assert [call["id"] for call in calls(world, "wandb") if call["call"] == "init"] == [ids["wandb"]["id"]] * 2
    assert [call["run_id"] for call in calls(world, "mlflow") if call["call"] == "start_run"] == [None, "made by mlflow"]
    assert len({call["name"] for call in calls(world, "trackio") if call["call"] == "init"}) == 1


@needs_program
def test_another_run_in_the_folder_is_another_run(world):
    folder = world / "run"
    (folder).mkdir()
    (folder / "trackers.json").write_text('{"wandb": {"id": "of one before", "sent": [1000, 0]}}')
    train(folder, "metrics.trackers=wandb", "metrics.project=mine", "phases.sft.steps=3")
    (init,) = (call for call in calls(world, "wandb") if call["call"] == "init")
    assert init["id"] != "of one before" and init["project"] == "mine"
    assert logged(world, "wandb") == written(folder)


@needs_program
@pytest.mark.parametrize("fault", ["init:raise", "log:raise", "log:exit", "finish:raise", "log:hang", "finish:hang", "init:hang"])
def test_a_tracker_that_fails_ends_in_one_warning(world, monkeypatch, fault):
    monkeypatch.setenv("FAULT_wandb", fault)
    monkeypatch.setenv("FAULT_trackio", "init:raise")
    folder = world / "run"
    told = train(folder, TRACKERS, "phases.sft.steps=20", "metrics.timeout_s=2")
    assert logged(world, "mlflow") == expected(folder, "mlflow")
    warnings = [line for line in told.stderr.splitlines() if line.startswith("warning")]
    why = "has not ended after 2 s" if "hang" in fault else "SystemExit: 3" if "exit" in fault else "RuntimeError: the server says no"
    assert sorted(warnings) == ["warning: metrics.trackers: trackio: RuntimeError: the server says no; the run goes on without it",
                                next(line for line in warnings if "wandb" in line)]  # fmt: skip
    assert f"wandb: {why}" in sorted(warnings)[1]
    assert (folder / "summary.json").exists()


@needs_program
def test_a_writer_that_dies_and_one_that_is_missing(world):
    folder = world / "run"
    words = [PROGRAM, "train", "configs/tiny/sft.yaml", f"run.dir={folder}", TRACKERS, "phases.sft.steps=400", "--quiet"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    (writer,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(writer), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.count("warning") == 1 and "the writer of wandb, mlflow, trackio has ended (signal 9)" in errors

    (world / "packages" / "mlflow" / "__init__.py").write_text("raise ImportError('not here')")
    told = train(world / "other", TRACKERS, code=1)
    assert "metrics.trackers: the Python package mlflow is missing (not here): pip install mlflow" in told.stderr
    assert not (world / "other").exists()


@needs_program
def test_what_is_no_tracker_is_refused(world):
    for wrong, said in (("[wandb, wandb]", "metrics: trackers: wandb stands there twice"), ("[comet]", "one of wandb, mlflow, trackio")):
        assert said in train(world / "run", f"metrics.trackers={wrong}", code=1).stderr


def test_projects_of_the_environment(world, monkeypatch):
    folder = world / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"phase": "sft", "step": 1, "global_step": 1, "loss": null, "eval/split": "test", "eval/pass@2": 0.5}\n')
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "of " + name)
    for words in ([], ["--project", "given"]):
        (world / "calls").unlink(missing_ok=True)
        told = subprocess.run([sys.executable, "-m", "isentrope.trackers", folder, "wandb", "mlflow", "trackio", "--new", *words],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)  # fmt: skip
        assert told.returncode == 0 and told.stdout == "ready\n" and "a package that prints" in told.stderr, told.stderr
        experiments = [call["name"] for call in calls(world, "mlflow") if call["call"] == "set_experiment"]
        assert calls(world, "wandb")[0]["project"] == (words[1] if words else "of WANDB_PROJECT")
        assert calls(world, "trackio")[0]["project"] == (words[1] if words else "of TRACKIO_PROJECT")
        assert experiments == words[1:]
        assert logged(world, "mlflow")[0][1]["sft/test/pass_at_2"] == 0.5


def test_a_warning_goes_out_whole(monkeypatch):
    """Each sink warns from its own thread: a line whose end is written apart is torn where two fail at once."""
    written = []

    class Stream:
        def write(self, text):
            written.append(text)

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stderr", Stream())
    trackers.warn("wandb: no")
    assert written == ["warning: metrics.trackers: wandb: no\n"]
