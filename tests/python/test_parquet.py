"""isentrope rollouts: the Parquet file holds what rollouts/PHASE.jsonl holds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import isentrope

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    {"phase": "grpo", "step": step, "group": 3 * step + i // 2, "sample": i % 2, "prompt": "a+5b=", "completion": "b+\ufffd",
     "tokens": ["b", "+", "\ufffd"], "ids": [12, 19, 2**40 + i], "logprob": [-0.1, -1.5, -0.3], "entropy": [0.5, 1.25, 0.0], "length": 3,
     "finished": i % 2 == 0, "reward": 0.5 * i, "rewards": {"answer": None if i == 3 else i / 4, "format": 1.0},
     "advantage": None if i == 1 else -0.25, **({"overlong": -0.5} if step == 2 else {})}
    for step in (1, 2) for i in range(4)
]  # fmt: skip


def environment(**more):
    paths = [str(Path(isentrope.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "ISENTROPE_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(paths), **more}


def command(*words, code=0, **env):
    told = subprocess.run([sys.executable, "-m", "isentrope.rollouts", *map(str, words)], env=environment(**env), capture_output=True, text=True)
    assert told.returncode == code, told.stdout + told.stderr
    assert "Traceback" not in told.stderr
    return told


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    (folder / "rollouts" / "grpo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"phase": "torn')
    (folder / "rollouts" / "a_later_one.jsonl").write_text(json.dumps({**LINES[0], "phase": "a_later_one", "parent": 0, "begin": 2}) + "\n")
    phases = [{"phase": phase, "step": 1} for phase in ("sft", "grpo", "a_later_one")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in phases))
    return folder


def test_columns_have_types_and_rows_the_values_of_the_lines(run, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    out = tmp_path / "rollouts.parquet"
    assert command(run, "--parquet", out).stdout == f"{out}: 9 completions\n"
    table = pq.read_table(out)
    types = {field.name: field.type for field in table.schema}
    assert types["step"] == types["group"] == pa.int64() and types["prompt"] == types["completion"] == pa.string()
    assert types["tokens"] == pa.list_(types["tokens"].value_field) and types["tokens"].value_type == pa.int64()
    assert types["logprob"].value_type == types["entropy"].value_type == pa.float32()
    assert types["reward"] == types["advantage"] == pa.float64() and types["finished"] == pa.bool_()
    assert types["scores"].key_type == pa.string() and types["scores"].item_type == pa.float64()
    rows = table.to_pylist()
    for row, line in zip(rows, LINES):
        for name in ("phase", "step", "group", "sample", "prompt", "completion", "finished", "reward", "advantage"):
            assert row[name] == line[name]
        assert row["tokens"] == line["ids"] and row["token_texts"] == line["tokens"] and dict(row["scores"]) == line["rewards"]
        assert row["logprob"] == pytest.approx(line["logprob"]) and row["entropy"] == line["entropy"]
        assert row["overlong"] == line.get("overlong") and row["parent"] is None
    assert rows[8]["phase"] == "a_later_one" and (rows[8]["parent"], rows[8]["begin"]) == (0, 2)
    assert command(run / "rollouts" / "grpo.jsonl", "--parquet", out).stdout == f"{out}: 8 completions\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["rollouts.parquet"]


def test_many_rows_are_whole(run, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    file = run / "rollouts" / "grpo.jsonl"
    file.write_text("".join(json.dumps({**LINES[0], "step": step}) + "\n" for step in range(1, 9001)))
    command(file, "--parquet", tmp_path / "many.parquet")
    assert pq.read_table(tmp_path / "many.parquet", columns=["step"])["step"].to_pylist() == list(range(1, 9001))


def test_what_is_wrong_is_told_and_nothing_replaced(run, tmp_path):
    pytest.importorskip("pyarrow")
    out = tmp_path / "out.parquet"
    out.write_text("before")
    file = run / "rollouts" / "grpo.jsonl"
    assert "is not there" in command(tmp_path / "nowhere", "--parquet", out, code=1).stderr
    assert "save_every" in command(tmp_path, "--parquet", out, code=1).stderr
    assert "is a folder" in command(run, "--parquet", tmp_path, code=1).stderr
    assert "its folder is not there" in command(run, "--parquet", tmp_path / "no" / "x", code=1).stderr
    assert "is a file that is read" in command(file, "--parquet", file, code=1).stderr
    file.write_text(json.dumps(LINES[0]) + "\n" + json.dumps({**LINES[1], "ids": ["a"]}) + "\n")
    assert f"{file}: a line of step 1 to 1" in command(run, "--parquet", out, code=1).stderr
    file.write_text('{"phase": "grpo", "step": 1}\n')
    assert f"{file}:1: not an object with phase, step, ids, rewards" in command(run, "--parquet", out, code=1).stderr
    file.write_text("")
    assert "no rollout is there yet" in command(file, "--parquet", out, code=1).stderr
    assert out.read_text() == "before" and sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "run"]


def test_without_pyarrow_the_command_names_it(run, tmp_path):
    (tmp_path / "hidden" / "pyarrow").mkdir(parents=True)
    (tmp_path / "hidden" / "pyarrow" / "__init__.py").write_text("raise ImportError('hidden', name='pyarrow')")
    paths = os.pathsep.join([str(tmp_path / "hidden"), environment()["PYTHONPATH"]])
    told = command(run, "--parquet", tmp_path / "x.parquet", code=1, PYTHONPATH=paths)
    assert told.stderr == "isentrope rollouts: the Python package pyarrow is missing: pip install 'isentrope[parquet]'\n"


def test_the_program_hands_over_what_a_run_saved(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    build = os.environ.get("ISENTROPE_BUILD")
    program = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    if not program or not os.path.exists(program):
        pytest.skip("no trainer in this build")
    words = ["configs/tiny/grpo.yaml", f"run.dir={tmp_path}/run", "phases.grpo.rollout.save_every=2", "phases.grpo.steps=4", "--quiet"]
    assert subprocess.run([program, "train", *words], cwd=ROOT, env=environment()).returncode == 0
    told = subprocess.run([program, "rollouts", f"{tmp_path}/run", "--parquet", f"{tmp_path}/x.parquet"], env=environment(), capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts" / "grpo.jsonl").read_text().splitlines()]
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [(row["step"], row["tokens"], row["reward"]) for row in rows] == [(line["step"], line["ids"], line["reward"]) for line in lines]
    assert {row["step"] for row in rows} == {2, 4}
