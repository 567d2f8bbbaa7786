"""`isentrope compare`: the runs it consists of, the table it makes, and what it does when runs end, fail or are stopped; with the
trainer itself on tiny configurations, and with a stand-in for it where a run has to fail or to last."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("yaml")
pytest.importorskip("numpy")
import isentrope
from isentrope.compare import law, main, plan, seeds_of, table
from isentrope.compare.plan import Configuration
from isentrope.jobs import CommandError, Job, Runs

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release")) / "bin" / "isentrope"
GRPO, CLIP_COV, PRETRAIN = (ROOT / "configs" / "tiny" / f"{name}.yaml" for name in ("grpo", "grpo_clip_cov", "pretrain"))


def record(phase, step, split, sampled, entropy):
    return json.dumps({"phase": phase, "step": step, "eval/split": split, "eval/greedy": sampled + 0.05,
                       "eval/sampled": sampled, "eval/pass@2": sampled + 0.05, "eval/pass@8": sampled + 0.1, "eval/entropy": entropy})


def point(step, split, sampled, entropy=0.5):
    return {"step": step, "split": split, "greedy": sampled, "sampled": sampled, "pass_k": sampled, "k": 8, "entropy": entropy,
            "tokens": 1000 * step, "sizes": {}}


def configuration(label, start="a", file="a.yaml"):
    return Configuration(file, label, label, (), {}, {"phases": [{"name": "sft", "steps": 1}, {"name": "grpo", "steps": 2}]}, start)


# ---- the table ------------------------------------------------------------------------------------------------------


def test_evaluations_are_read_by_phase_and_a_torn_line_is_skipped(tmp_path):
    lines = ['{"phase": "grpo", "step": 1, "loss": 0.1, "generated": 30}', '{"phase": "grpo", "step": 2, "generated": 40}', record("sft", 9, "test", 0.3, 0.7),
             record("grpo", 2, "validation", 0.4, 0.6), record("grpo", 2, "test", 0.45, 0.55), '{"phase": "grpo", "st']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    points = table.evaluations(tmp_path, "grpo")
    assert [(p["step"], p["split"], p["sampled"]) for p in points] == [(2, "validation", 0.4), (2, "test", 0.45)]
    assert table.last_test(points)["entropy"] == 0.55
    assert [p["tokens"] for p in points] == [70, 70]
    assert table.evaluations(tmp_path / "nowhere", "grpo") == [] and table.last_test([]) is None


def test_the_level_is_the_highest_percentage_that_every_run_reached():
    high = [point(1, "validation", 0.3), point(2, "validation", 0.62), point(3, "validation", 0.5)]
    low = [point(1, "validation", 0.29), point(3, "test", 0.9)]
    assert table.common_level([high, low]) == 0.29
    assert table.common_level([high]) == 0.62
    assert table.common_level([high, [point(3, "test", 0.9)]]) is None
    assert table.common_level([high, [point(1, "validation", 0.0)]]) is None, "a level that all have at once compares nothing"
    assert table.first_reaching(high, 0.5)["step"] == 2
    assert table.first_reaching(high, 0.7) is None


@pytest.mark.parametrize("values, text", [([0.5], "50.0"), ([0.4, 0.6], "50.0 ± 14.1"), ([0.4, None, 0.6], "50.0 ± 14.1 (2 of 3)"),
                                          ([None], "–"), ([], "–")])
def test_a_cell_tells_mean_spread_and_what_is_missing(values, text):
    assert table.cell(values, table.PERCENT) == text


def test_pass_at_several_k_is_that_of_the_largest(tmp_path):
    line = {"phase": "grpo", "step": 2, "eval/split": "test", "eval/pass@1": 0.25, "eval/pass@16": 0.75, "eval/pass@4": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (found,) = table.evaluations(tmp_path, "grpo")
    assert (found["pass_k"], found["k"], found["sampled"], found["tokens"]) == (0.75, 16, None, None)


def test_the_table_row_by_row():
    rows = {"clip": [[point(5, "validation", 0.5, 0.4), point(10, "validation", 0.6, 0.2), point(10, "test", 0.61, 0.2)],
                     [point(5, "validation", 0.4, 0.5), point(10, "validation", 0.6, 0.3), point(10, "test", 0.63, 0.3)]],
            "kl_cov": [[point(5, "validation", 0.5, 0.6), point(10, "validation", 0.7, 0.5), point(10, "test", 0.7, 0.5)]] * 2}
    starts = {"start of the last phase": [point(3, "test", 0.3), point(4, "test", 0.3)]}
    made = table.Table(starts, {configuration(name): runs for name, runs in rows.items()}, None)
    lines = made.markdown()
    assert [cell.strip() for cell in lines[0].split("|")[2:10]] == ["n", "step", "sampled, %", "greedy, %", "pass@8, %", "entropy, nats",
                                                                   "tokens, k", "at 60 % sampled: step"]
    columns = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:] if line]
    assert columns[0][:4] == ["start of the last phase", "2", "4 ± 1", "30.0 ± 0.0"] and columns[0][-1] == "–"
    assert columns[1][:4] == ["clip", "2", "10 ± 0", "62.0 ± 1.4"]
    assert columns[1][6:] == ["0.250 ± 0.071", "10 ± 0", "10 ± 0", "10 ± 0", "60.0 ± 0.0", "0.250 ± 0.071", "60.0 ± 0.0", "60.0 ± 0.0", "0.250 ± 0.071"]
    assert columns[2][-1] == "0.500 ± 0.000"


def test_runs_are_compared_at_equal_tokens():
    short = [point(5, "validation", 0.25, 0.5), point(10, "validation", 0.75, 0.25), point(10, "test", 0.9)]
    long = [point(8, "validation", 0.5, 0.5), point(18, "validation", 1.0, 0.25)]
    assert table.common_tokens([short, long]) == 10_000
    assert table.at_tokens(short, 10_000)["sampled"] == 0.75
    between = table.at_tokens(long, 10_000)
    assert (between["sampled"], between["entropy"], between["k"]) == (pytest.approx(0.6), pytest.approx(0.45), 8)
    assert table.at_tokens(long, 4_000) is None and table.at_tokens(long, 20_000) is None and table.at_tokens(long, None) is None
    assert table.common_tokens([short, []]) is None and table.at_tokens([], 5) is None
    made = table.Table({}, {configuration("short"): [short], configuration("long"): [long]}, None)
    assert "at 10 k tokens: sampled, %" in made.markdown()[0] and made.json([1])["rows"][1]["equal"]["sampled"]["mean"] == pytest.approx(0.6)


def test_prompts_of_several_sizes_have_a_table_of_their_own(tmp_path):
    line = json.loads(record("grpo", 2, "test", 0.5, 0.5)) | {"eval/sampled/3": 0.75, "eval/length/3": 20.0,
                                                              "eval/sampled/10": 0.25, "eval/length/10": 61.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    points = table.evaluations(tmp_path, "grpo")
    assert points[0]["sizes"] == {3: (0.75, 20.0), 10: (0.25, 61.5)}
    lines = table.Table({"start": points}, {configuration("clip"): [points, points], configuration("ares"): [points, []]}, None).sizes()
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == ["sampled of 3, %", "sampled of 10, %", "length of 3", "length of 10"]
    assert lines[3] == "| clip | 75.0 ± 0.0 | 25.0 ± 0.0 | 20.0 ± 0.0 | 61.5 ± 0.0 |"
    assert lines[4] == "| ares | 75.0 (1 of 2) | 25.0 (1 of 2) | 20.0 (1 of 2) | 61.5 (1 of 2) |"
    assert table.Table({}, {configuration("clip"): [[point(5, "test", 0.5)]]}, None).sizes() == []


# ---- which runs there are -------------------------------------------------------------------------------------------


def test_a_start_is_shared_by_what_decides_it():
    def config(**last):
        return {"run": {"seed": last.pop("seed", 1)}, "model": {"hidden_size": last.pop("hidden_size", 8)},
                "phases": [{"name": "sft", "steps": 5}, {"name": "grpo", "data": "a", "objective": "clip", "steps": 7} | last]}

    key = plan.start_key(config())
    assert key == plan.start_key(config(objective="kl_cov", steps=9, seed=2))
    assert key == plan.start_key(config(rollout={"num_generations": 4}))  # its answers are as long
    others = [config(data="b"), config(hidden_size=16), config(rollout={"max_new_tokens": 9}), config(reward="exact")]
    assert len({key, *map(plan.start_key, others)}) == 5
    assert plan.start_key({"phases": [{"name": "sft"}]}) == ""
    assert key != plan.start_key(config() | {"run": {"start": "runs/other"}})


def test_tables_hold_what_can_be_compared():
    same, file, other, alone = (configuration(*words) for words in (("a", "s"), ("b", "s", "b.yaml"), ("c", "t", "b.yaml"), ("d", "u", "d.yaml")))
    assert plan.together([same, file, alone, other]) == [[same, file, other], [alone]]
    single = [configuration("a", ""), configuration("b", "", "b.yaml")]
    assert plan.together(single) == [single]


@pytest.mark.parametrize("option, values", [
    ("a.lr=1e-3,3e-3", ["1e-3", "3e-3"]), ("a=on", ["on"]), ("a=[0.9, 0.98], [0.9, 0.99]", ["[0.9, 0.98]", "[0.9, 0.99]"]),
    ("a={kind: x, b: 1},none", ["{kind: x, b: 1}", "none"]), ("a='x, y',z", ["'x, y'", "z"])])  # fmt: skip
def test_values_of_a_sweep_are_yaml(option, values):
    assert plan.sweep(option) == (option.split("=")[0], values)


@pytest.mark.parametrize("option, wanted", [
    ("lr", "wanted KEY=VALUE"), ("=1,2", "wanted KEY=VALUE"), ("lr=", "no values"), ("lr=1,,2", "no YAML list"), ("lr=1,2,1", "1 is given twice"),
    ("lr=[1,2", "no YAML list"), ("lr=1],[2", "no YAML list")])  # fmt: skip
def test_values_that_are_none_are_refused(option, wanted):
    with pytest.raises(CommandError, match=f"--over .*{wanted}"):
        plan.sweep(option)


def test_seeds():
    assert [seeds_of(text) for text in ("3", "4,7", "4,")] == [[1, 2, 3], [4, 7], [4]]
    for text in ("0", "", "-1", "1,1", "1.5", "a"):
        with pytest.raises(Exception, match="wanted"):
            seeds_of(text)


def test_values_in_names_of_folders_stay_apart():
    names = [plan.in_a_name(value) for value in ("1e-3", "[q, k]", "[q k]", "a/../b")]
    assert names[0] == "1e-3" and len(set(names)) == 4 and not any(set(name) & set("/[ ]") for name in names)


# ---- runs -----------------------------------------------------------------------------------------------------------


def environment(**more):
    paths = [str(Path(isentrope.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ISENTROPE_PYTHON": sys.executable, **more}


# A program with the commands that compare uses. A run whose words hold "broken" fails in its start; one whose words hold "slow"
# lasts until it is stopped, the first time; every call is noted.
STAND_IN = '''#!{python}
import json, os, signal, sys, time
from pathlib import Path
import yaml
file, keys = sys.argv[2], dict(a.split("=", 1) for a in sys.argv[3:] if "=" in a)
config = yaml.safe_load(Path(file).read_text())
for key, value in keys.items():
    if key.startswith("phases.grpo."):
        config["phases"][1][key.rsplit(".")[-1]] = yaml.safe_load(value)
config["run"] = {{key[4:]: yaml.safe_load(value) for key, value in keys.items() if key.startswith("run.")}}
if sys.argv[1] == "config":
    print(yaml.safe_dump(config))
    sys.exit()
folder = Path(keys["run.dir"])
with open({calls!r}, "a") as calls:
    calls.write(" ".join(sys.argv[2:]) + "\\n")
if "broken" in file and "start" in str(folder):
    sys.exit("isentrope: no such thing")
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").write_text(yaml.safe_dump(config))
with open(folder / "metrics.jsonl", "a") as out:
    if "slow" in file and "seed2" in str(folder) and "run.start" in keys and "--resume" not in sys.argv:
        print(json.dumps({{"phase": "grpo", "step": 1, "loss": 0.5}}), file=out, flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        time.sleep(120)
    for phase in config["phases"]:
        if "run.start" in keys and phase["name"] == "sft":
            continue
        for split in ("validation", "test"):
            print(json.dumps({{"phase": phase["name"], "step": phase["steps"], "eval/split": split, "eval/greedy": .5,
                              "eval/sampled": .25 if phase["name"] == "sft" else .5, "eval/pass@8": .75,
                              "eval/entropy": .1}}), file=out)
        done = folder / "checkpoints" / f"{{phase['name']}}-{{phase['steps']:06}}"
        done.mkdir(parents=True, exist_ok=True)
        (done / "DONE").touch()
(folder / "summary.json").write_text("[]")
'''


@pytest.fixture
def stand_in(tmp_path):
    """call(name, …, more=[word, …]) compares configurations of these names; returns what was told and the calls of `train`."""
    program = tmp_path / "isentrope"
    program.write_text(STAND_IN.format(python=sys.executable, calls=str(tmp_path / "calls")))
    program.chmod(0o755)

    def command(*names, more=()):
        for name in names:
            (tmp_path / f"{name}.yaml").write_text(
                "phases: [{name: sft, steps: 5, note: %s}, {name: grpo, steps: 7, objective: %s}]" % (name[:4], name))
        (tmp_path / "calls").write_text("")
        return [sys.executable, "-m", "isentrope.compare", *[f"{name}.yaml" for name in names], "--seeds", "2", "--dir", "out", *more]

    def call(*names, more=()):
        told = subprocess.run(command(*names, more=more), cwd=tmp_path, capture_output=True, text=True, env=environment(ISENTROPE_PROGRAM=str(program)))
        return told, (tmp_path / "calls").read_text().splitlines()

    call.begin = lambda *names: subprocess.Popen(command(*names), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                                 env=environment(ISENTROPE_PROGRAM=str(program)))  # fmt: skip
    return call


def test_runs_share_their_start_and_are_made_once(stand_in, tmp_path):
    told, calls = stand_in("tint_clip", "tint_kl_cov")
    assert told.returncode == 0, told.stderr
    assert len(calls) == 6  # two starts, one a seed, then two configurations with two seeds
    assert sum("phases.grpo.steps=1" in call for call in calls) == 2
    for seed in (1, 2):
        begun = [call for call in calls if f"run.seed={seed} " in call and "run.start=" in call]
        assert len(begun) == 2 and all(f"/seed{seed}/checkpoints/sft-000005" in call for call in begun)
    assert "| tint_kl_cov | 2 | 7 ± 0 | 50.0 ± 0.0 |" in told.stdout
    assert told.stdout.startswith((tmp_path / "out" / "table.md").read_text())
    assert told.stderr.splitlines()[-1].startswith("run 6 of 6  out/tint_kl_cov/seed2  "), "one line a run, no more, where there is no terminal"
    assert len(told.stderr.splitlines()) == 6 and "\r" not in told.stderr

    (tmp_path / "out" / "tint_clip" / "seed2" / "summary.json").unlink()  # stopped before its end
    again, calls = stand_in("tint_clip", "tint_kl_cov")
    assert len(calls) == 1 and calls[0].endswith("--resume") and "seed2" in calls[0]
    more, calls = stand_in("tint_clip", "tint_kl_cov", more=["--seeds", "3", "--jobs", "2"])  # a seed is added
    assert len(calls) == 3 and all("run.seed=3 " in call and "run.threads=" in call for call in calls), more.stderr


def test_a_failed_run_is_named_and_the_others_go_on(stand_in, tmp_path):
    told, calls = stand_in("broken_clip", "tint_clip")
    assert told.returncode == 1
    assert "ended with exit code 1; the whole log is out/start/" in told.stderr and "  | isentrope: no such thing" in told.stderr
    assert "isentrope compare: out/broken_clip/seed2 was not begun, since its start failed: out/start/" in told.stderr
    assert "| tint_clip | 2 | 7 ± 0 |" in told.stdout and "| broken_clip | 0 | – |" in told.stdout
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["tables"]
    assert [row["last"]["sampled"]["n"] for part in rows for row in part["rows"]] == [0, 2]


def wait_for(what, process):
    for _ in range(600):
        if what():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("it did not come")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_was_stopped_goes_on(stand_in, tmp_path, number):
    process = stand_in.begin("slow")
    began = tmp_path / "out" / "slow" / "seed2" / "metrics.jsonl"
    try:
        wait_for(lambda: began.exists() and began.stat().st_size, process)
        second, _ = stand_in("slow")
        assert second.returncode == 1 and f"another command (process {process.pid}) is running in this folder" in second.stderr
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number and out == ""
        assert errors.splitlines()[-1].endswith("compare slow.yaml --seeds 2 --dir out") and "Stopped. Go on:" in errors
        assert "failed" not in errors
    again, calls = stand_in("slow")
    assert again.returncode == 0, again.stderr
    assert len(calls) == 1 and calls[0].endswith("--resume") and "seed2" in calls[0]
    assert "| slow | 2 | 7 ± 0 |" in again.stdout


def test_words_of_the_command_reach_the_runs(stand_in):
    told, calls = stand_in("tint", more=["phases.grpo.note=5", "--reward", "words:vowels", "--reward", "words:length", "--seeds", "4,"])
    assert told.returncode == 0, told.stderr
    assert len(calls) == 2 and all("phases.grpo.note=5 " in call and "run.seed=4 " in call for call in calls)
    assert all("--reward words:vowels --reward words:length" in call for call in calls)


def test_a_program_that_is_not_there_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("phases: []")
    told = subprocess.run([sys.executable, "-m", "isentrope.compare", "a.yaml"], cwd=tmp_path, capture_output=True, text=True,
                          env=environment(ISENTROPE_PROGRAM=str(tmp_path / "none")))  # fmt: skip
    assert told.returncode == 1 and "none cannot be started: No such file" in told.stderr and not (tmp_path / "runs").exists()


# ---- rows of overrides ----------------------------------------------------------------------------------------------


def test_rows_of_a_file_are_sets_of_overrides(stand_in, tmp_path):
    (tmp_path / "rows.yaml").write_text("plain: {}\nkl: {phases.grpo.objective: {kind: grpo, loss: kl_cov}, phases.grpo.note: 3}\n")
    told, calls = stand_in("tint", more=["--rows", "rows.yaml", "phases.grpo.other=4"])
    assert told.returncode == 0, told.stderr
    assert len(calls) == 6 and sum("phases.grpo.steps=1" in call for call in calls) == 2, "one start a seed"
    assert sum('phases.grpo.objective={"kind": "grpo", "loss": "kl_cov"} phases.grpo.note=3 phases.grpo.other=4' in call for call in calls) == 2
    assert "| plain | 2 | 7 ± 0 |" in told.stdout and "| kl | 2 | 7 ± 0 |" in told.stdout and (tmp_path / "out" / "tint,kl" / "seed2").is_dir()
    told, calls = stand_in("tint", more=["--rows", "rows.yaml", "phases.grpo.other=4", "--only", "kl"])
    assert told.returncode == 0 and not calls and "| plain |" not in told.stdout


@pytest.mark.parametrize("text, words, message", [
    ("[a]", [], "--rows rows.yaml: wanted NAME: {KEY.PATH: VALUE, …}"),
    ("a: {b: ", [], "--rows rows.yaml: cannot be read as YAML"),
    ("a: {run.seed: 3}", [], "run.seed is set for each run of a comparison; --seeds says how"),
    ("a: {}", ["--only", "b"], "--only b: no such row; there are a"),
    ("a: {}", ["--rows", "rows.yaml"], "--rows: the row a is there twice"),
])  # fmt: skip
def test_rows_that_are_none_are_refused(stand_in, tmp_path, text, words, message):
    (tmp_path / "rows.yaml").write_text(text)
    told, calls = stand_in("tint", more=["--rows", "rows.yaml", *words])
    assert told.returncode == 1 and message in told.stderr and not [call for call in calls if "train" in call], told.stderr


# ---- the law of reward and entropy ----------------------------------------------------------------------------------


def test_a_law_is_fitted_to_each_run_and_others_are_held_against_the_first(tmp_path):
    def run(name, shift, entropies):
        (tmp_path / name / "seed1").mkdir(parents=True)
        (tmp_path / name / "seed1" / "metrics.jsonl").write_text("".join(
            json.dumps({"phase": "grpo", "step": i, "entropy/mean": H, "reward/solves": 0.9 + shift - 0.25 * math.exp(H)}) + "\n"
            for i, H in enumerate(entropies)))  # fmt: skip

    run("clip", 0.0, [1.0, 0.8, 0.5])
    run("moved", 0.05, [1.0, 0.9, 0.7, 3.0])  # the last one lies where the first has no entropies
    run("apart", 0.0, [0.1, 0.2, 0.3])
    resolved = {"phases": [{"name": "grpo", "steps": 3, "reward": [{"kind": "solves"}]}]}
    rows = [Configuration("a.yaml", name, name, (), {}, resolved) for name in ("clip", "moved", "apart")]
    laws = law.laws_of(rows, [1], tmp_path)
    (clip,) = laws.laws["clip"]
    assert (clip.a, clip.b, clip.r2) == pytest.approx((0.25, 0.9, 1.0))
    assert laws.above == {"clip": [pytest.approx(0.0)], "moved": [pytest.approx(0.05)], "apart": [None]}
    lines = laws.markdown()
    assert lines[3] == "| moved | 0.250 | 0.950 | 70.0 | 100.0 | 5.0 |" and lines[4].endswith("| – |") and lines[5].startswith("| all of them")
    assert law.fit([(1.0, 0.5), (1.0, 0.6), (1.0, 0.7)]) is None and law.fit([(1.0, 0.5)]) is None


@pytest.mark.parametrize("entry, metric", [({"kind": "answer"}, "reward/answer"), ({"kind": "answer", "name": "a"}, "reward/a"),
                                           ({"kind": "python", "function": "f.py:A.b"}, "reward/b")])  # fmt: skip
def test_the_metric_of_the_reward_that_judges(entry, metric):
    assert law.first_reward({"phases": [{"reward": [entry]}]}) == metric


def test_forks_and_seconds_are_read_from_a_run(tmp_path):
    lines = [{"phase": "grpo", "step": 1, "time_s": 3.0}, {"phase": "grpo", "step": 2, "time_s": 5.0},
             {"phase": "grpo", "step": 2, "time_s": 9.0, "eval/split": "validation"}, {"phase": "grpo", "step": 3, "time_s": 12.0},
             {"phase": "grpo", "step": 4, "time_s": 1.0}, {"phase": "grpo", "step": 5, "time_s": 5.0},
             {"phase": "grpo", "step": 5, "time_s": 6.0, "eval/split": "test", "eval/length": 7.5, "eval/pass@8": 0.5, "eval/pass@64": 0.75}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = {"phase": "grpo", "step": 5, "eval/split": "test", "samples": [{"entropy": [0.1, 0.7, 0.0]}, {"entropy": [0.2] * 4 + [0.9] + [0.0] * 2}]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(samples) + "\n")
    first, test = table.evaluations(tmp_path, "grpo")
    assert first["forks"] is None and test["forks"] == pytest.approx(0.8), "the two highest of ten"
    assert test["seconds"] == 3.0, "the median of 2, 3 and 4: not the evaluation, nor the resumption"
    assert (test["length"], test["pass_8"], test["pass_k"], test["k"]) == (7.5, 0.5, 0.75, 64)


# ---- progress -------------------------------------------------------------------------------------------------------


def test_progress_tells_which_run_how_far_and_how_long(tmp_path, monkeypatch):
    """Of three runs of 10 steps one is finished, one at step 4, at two seconds a step: 12 + 20 seconds are left."""
    jobs = [Job(tmp_path / "clip" / f"seed{i}", (), {"grpo": 10}) for i in (1, 2, 3)]
    for job in jobs:
        job.folder.mkdir(parents=True)
    (jobs[0].folder / "summary.json").write_text("[]")
    runs = Runs(jobs, 1)
    assert runs.left() is None
    metrics = jobs[1].folder / "metrics.jsonl"
    run = type("Run", (), {"job": jobs[1], "number": 2, "last": {}, "seen": 0.0})()
    runs.running = [run]
    for now, step in ((100.0, 1), (106.0, 4)):
        metrics.write_text(json.dumps({"phase": "grpo", "step": step, "reward/mean": 0.25, "loss": 0.5, "entropy/mean": 0.75}) + '\n{"phase": "gr')
        runs.read(run, now)
    assert runs.status() == "run 2 of 3  clip/seed2: grpo 4/10  reward 0.250  entropy 0.750  32s left"


# ---- the trainer itself ---------------------------------------------------------------------------------------------

needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")


def compare(folder, *words):
    return subprocess.run([PROGRAM, "compare", *words, "--dir", folder], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=environment(), stdin=subprocess.DEVNULL)  # fmt: skip


FEW = ["phases.sft.steps=6", "phases.grpo.steps=2", "phases.grpo.evaluation.every=1"]


@needs_program
def test_a_comparison_of_two_configurations(tmp_path):
    told = compare(tmp_path / "out", GRPO, CLIP_COV, *FEW, "--seeds", "2", "--level", "0")
    assert told.returncode == 0, told.stderr
    data = json.loads((tmp_path / "out" / "table.json").read_text())
    (made,) = data["tables"]
    assert [row["name"] for row in made["rows"]] == ["grpo", "grpo_clip_cov"] and len(made["starts"]["start of the last phase"]) == 2
    for row in made["rows"]:
        sampled = [run["last"]["entropy"] for run in row["runs"]]
        assert row["last"]["entropy"]["n"] == 2 and row["last"]["entropy"]["mean"] == pytest.approx(sum(sampled) / 2)
        assert row["last"]["entropy"]["deviation"] == pytest.approx(abs(sampled[0] - sampled[1]) / 2**0.5) and sampled[0] != sampled[1]
        assert row["reached"]["step"]["mean"] == 1
    with open(tmp_path / "out" / "table.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["folder"], line["step"]) for line in lines] == [(f"{name}/seed{i}", "2") for name in ("grpo", "grpo_clip_cov") for i in (1, 2)]
    page = subprocess.run([PROGRAM, "report", tmp_path / "out"], capture_output=True, text=True, env=environment())
    assert page.returncode == 0 and "grpo_clip_cov" in (tmp_path / "out" / "report.html").read_text(), page.stderr
    assert told.stdout.splitlines()[-1] == f"Page   {PROGRAM} report {tmp_path / 'out'}"

    (alone,) = [run["last"] for run in made["rows"][0]["runs"] if run["seed"] == 2]
    start = next((tmp_path / "out" / "start").glob("*/seed2/checkpoints/sft-000006"))
    again = subprocess.run([PROGRAM, "train", GRPO, *FEW, "run.seed=2", f"run.start={start}", f"run.dir={tmp_path / 'alone'}"], cwd=ROOT,
                           capture_output=True, text=True)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert table.last_test(table.evaluations(tmp_path / "alone", "grpo"))["entropy"] == alone["entropy"], "the same run by hand"


@needs_program
def test_a_sweep_over_a_grid(tmp_path):
    words = [PRETRAIN, "phases.pretrain.steps=4", "--over", "phases.pretrain.optimizer.lr=1e-3,8e-3",
             "--over", "phases.pretrain.optimizer.betas=[0.9, 0.98],[0.9, 0.9]", "--seeds", "1", "--jobs", "2"]  # fmt: skip
    planned = compare(tmp_path / "out", *words, "--dry-run")
    assert planned.returncode == 0 and planned.stdout.count("  to be run\n") == 4 and not (tmp_path / "out").exists()
    told = compare(tmp_path / "out", *words)
    assert told.returncode == 0, told.stderr
    rows = [line.split(" | ")[0] for line in told.stdout.splitlines() if line.startswith("| lr=")]
    assert rows == [f"| lr={lr}, betas=[0.9, {beta}]" for lr in ("1e-3", "8e-3") for beta in ("0.98", "0.9")]
    (made,) = json.loads((tmp_path / "out" / "table.json").read_text())["tables"]
    assert len({row["last"]["loss"]["mean"] for row in made["rows"]}) == 4
    assert made["rows"][1]["over"] == {"phases.pretrain.optimizer.lr": "1e-3", "phases.pretrain.optimizer.betas": "[0.9, 0.9]"}
    configs = [(tmp_path / "out" / row["runs"][0]["folder"] / "config.yaml").read_text() for row in made["rows"]]
    assert "betas: [0.9, 0.98]" in configs[0] and "betas: [0.9, 0.9]" in configs[3]
    assert compare(tmp_path / "out", *words, "--dry-run").stdout.count("  finished\n") == 4


@needs_program
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    words = [PRETRAIN, "phases.pretrain.steps=400", "phases.pretrain.evaluation.every=0", "--seeds", "1"]
    process = subprocess.Popen([PROGRAM, "compare", *words, "--dir", tmp_path / "out"], cwd=ROOT, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    run = tmp_path / "out" / "pretrain" / "seed1"
    try:
        wait_for(lambda: list(run.glob("checkpoints/*/DONE")), process)
        process.kill()
    finally:
        process.kill()
        process.communicate()
    assert not (run / "summary.json").exists(), "it was killed too late to show anything"
    assert compare(tmp_path / "out", *words).returncode == 0
    assert "--resume" in (tmp_path / "out" / "pretrain" / "seed1.log").read_text()
    assert compare(tmp_path / "whole", *words).returncode == 0
    losses = [[json.loads(line).get("loss") for line in open(folder / "pretrain" / "seed1" / "metrics.jsonl")]
              for folder in (tmp_path / "out", tmp_path / "whole")]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) > 400


@needs_program
def test_another_configuration_in_the_same_folder_is_refused(tmp_path):
    words = [PRETRAIN, "phases.pretrain.steps=2", "--seeds", "1"]
    assert compare(tmp_path, *words).returncode == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    told = compare(tmp_path, *words, "phases.pretrain.optimizer.lr=1e-3", "--seeds", "2")
    assert told.returncode == 1 and "phases.pretrain.optimizer.lr: 0.008 → 0.001" in told.stderr and "pretrain/seed1" in told.stderr
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    assert compare(tmp_path, *words, "run.threads=2").returncode == 0, "threads change nothing"


@needs_program
@pytest.mark.parametrize("words, code, wanted", [
    ([], 2, "required"),
    (["none.yaml"], 1, "none.yaml"),
    (["phases.sft.steps=3"], 1, "no configuration is given"),
    ([GRPO, "--over", "phases.grpo.optimizer.learning_rat=1,2"], 1, "grpo.yaml phases.grpo.optimizer.learning_rat=1: .*unknown key"),
    ([GRPO, "--over", "phases.grpo.optimizer.lr=1e-3,-1"], 1, r"grpo.yaml phases.grpo.optimizer.lr=-1: "),
    ([GRPO, "phases.grpo.optimizer.lr=1", "--over", "phases.grpo.optimizer.lr=1e-3,2e-3"], 1, "given as an override and with --over"),
    ([GRPO, "--over", "phases.grpo.steps=1", "--over", "phases.grpo.steps=2"], 1, "given twice"),
    ([GRPO, "--over", "run.seed=1,2"], 1, "run.seed is set for each run of a comparison; --seeds says how"),
    ([GRPO, "run.dir=x"], 1, "--dir says how"),
    ([GRPO, GRPO], 1, "have one name"),
    ([GRPO, "--seeds", "0"], 2, "wanted at least one seed"),
    ([GRPO, "--jobs", "0"], 2, "wanted a whole number of at least 1"),
    ([GRPO, "--level", "60"], 2, "wanted a share from 0 to 1"),
    ([GRPO, "--seed", "3"], 2, "--seed"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(tmp_path, monkeypatch, capsys, words, code, wanted):
    monkeypatch.setattr(plan, "PROGRAM", str(PROGRAM))
    monkeypatch.chdir(ROOT)
    try:
        ended = main([*map(str, words), "--dir", str(tmp_path / "out")])
    except SystemExit as error:
        ended = error.code
    told = capsys.readouterr().err
    assert ended == code and re.search(wanted, told), told
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_named(stand_in, tmp_path):
    (tmp_path / "out").write_text("a file")
    told, calls = stand_in("tint")
    assert told.returncode == 1 and "out: cannot be written to: File exists" in told.stderr and calls == []
