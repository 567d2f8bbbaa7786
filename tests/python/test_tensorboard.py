"""metrics.tensorboard: the event files hold what metrics.jsonl holds, once, and their writer is no danger to a run."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

import isentrope  # noqa: E402
from isentrope.tensorboard import scalars  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release"))
PROGRAM = BUILD / "bin" / "isentrope"
needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")


def environment(**more):
    paths = [str(Path(isentrope.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "ISENTROPE_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(paths), **more}


def train(config, folder, *overrides, resume=False, **env):
    words = [PROGRAM, "train", f"configs/tiny/{config}.yaml", f"run.dir={folder}", "metrics.tensorboard=true", *overrides]
    return subprocess.run([*words, "--quiet"] + ["--resume"] * resume, cwd=ROOT, env=environment(**env),
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def events(folder):
    """{tag: [(step, value)]}, the text of the configuration."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    found = {tag: [(e.step, e.value) for e in files.Scalars(tag)] for tag in files.Tags()["scalars"]}
    (config,) = files.Tensors("config/text_summary")
    return found, config.tensor_proto.string_val[0].decode()


def written(folder):
    """The same, from metrics.jsonl."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        if line.startswith('{"run": '):
            continue
        line = json.loads(line)
        for tag, value in scalars(line).items():
            found.setdefault(tag, []).append((line["step"], pytest.approx(value, rel=1e-6, nan_ok=True)))
    return found


def test_tags():
    line = {"phase": "grpo", "step": 3, "loss": None, "reward/mean": 0.5,
            "attention_entropy": {"normalized": [[0.2, 0.4], [None, 0.5]], "max_logit": [[1, 9], [2, 3]], "collapsed": 0.25,
                                  "overloaded": 0, "alarms": ["x"]},
            "sigma": {"layers.0.q": [1.5, 1.0], "head": [2, 1, 2.1]}}  # fmt: skip
    found = scalars(line)
    assert math.isnan(found.pop("grpo/loss"))
    assert found == {
        "grpo/reward/mean": 0.5, "grpo/attention/layers.0/normalized": pytest.approx(0.3), "grpo/attention/layers.0/min": 0.2,
        "grpo/attention/layers.1/normalized": 0.5, "grpo/attention/layers.1/min": 0.5, "grpo/attention/layers.0/max_logit": 9,
        "grpo/attention/layers.1/max_logit": 3, "grpo/attention/collapsed": 0.25, "grpo/attention/overloaded": 0,
        "grpo/sigma/layers.0.q/sigma": 1.5, "grpo/sigma/layers.0.q/gamma": 1, "grpo/sigma/head/sigma": 2,
        "grpo/sigma/head/gamma": 1, "grpo/sigma/head/svd": 2.1,
    }  # fmt: skip
    assert scalars({"phase": "sft", "step": 1, "eval/split": "test", "eval/greedy": 1}) == {"sft/test/greedy": 1}


@needs_program
def test_events_are_the_metrics_also_after_a_resumption(tmp_path):
    told = train("sigma", tmp_path, "phases.pretrain.objective.attention_entropy.every=10")
    assert told.returncode == 0, told.stderr
    found, config = events(tmp_path)
    assert found == written(tmp_path)
    assert {"pretrain/loss", "pretrain/test/bits_per_byte", "pretrain/sigma/head/gamma", "pretrain/attention/collapsed"} <= set(found)
    assert "seed: 1" in config
    shutil.rmtree(tmp_path / "checkpoints" / "pretrain-000040")
    told = train("sigma", tmp_path, "phases.pretrain.objective.attention_entropy.every=10", resume=True)
    assert told.returncode == 0, told.stderr
    again, _ = events(tmp_path)
    assert again == written(tmp_path) and [step for step, _ in again["pretrain/loss"]] == list(range(1, 41))


@needs_program
def test_a_writer_that_dies_does_not_stop_the_run(tmp_path):
    folder = tmp_path / "run"
    words = [PROGRAM, "train", "configs/tiny/sft.yaml", f"run.dir={folder}", "metrics.tensorboard=true", "phases.sft.steps=400"]
    process = subprocess.Popen([*words, "--quiet"], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    (writer,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(writer), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.count("warning") == 1 and f"{folder}/tensorboard has ended (signal 9)" in errors
    assert '"step": 400, "global_step": 400, "loss"' in (folder / "metrics.jsonl").read_text()


@needs_program
def test_what_is_missing_is_told_before_training(tmp_path):
    told = train("sft", tmp_path / "run", ISENTROPE_PYTHON="/nowhere/python")
    assert told.returncode == 1 and "/nowhere/python cannot be started" in told.stderr, told.stderr
    (tmp_path / "hidden" / "tensorboard").mkdir(parents=True)
    (tmp_path / "hidden" / "tensorboard" / "__init__.py").write_text("raise ImportError('hidden')")
    paths = os.pathsep.join([str(tmp_path / "hidden"), environment()["PYTHONPATH"]])
    told = train("sft", tmp_path / "run", PYTHONPATH=paths)
    assert told.returncode == 1 and "pip install 'isentrope[tensorboard]'" in told.stderr, told.stderr
    assert "Traceback" not in told.stderr
    assert train("sft", tmp_path / "run", "phases.sft.steps=2").returncode == 0  # the folder holds no run yet


@needs_program
def test_the_writer_alone(tmp_path):
    told = subprocess.run([PROGRAM, "train", "configs/tiny/sft.yaml", f"run.dir={tmp_path}", "--quiet"], cwd=ROOT)
    assert told.returncode == 0 and not (tmp_path / "tensorboard").exists()
    for _ in range(2):
        told = subprocess.run([sys.executable, "-m", "isentrope.tensorboard", tmp_path], env=environment(),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)  # fmt: skip
        assert told.returncode == 0 and told.stdout == "ready\n", told.stderr
        assert events(tmp_path)[0] == written(tmp_path)
