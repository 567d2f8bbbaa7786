"""scripts/compare.py: what it reads, the table it makes, and which runs it starts, with a stand-in for the trainer."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("compare", ROOT / "scripts" / "compare.py")
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def record(phase, step, split, sampled, entropy):
    return json.dumps({"phase": phase, "step": step, "eval/split": split, "eval/greedy": sampled + 0.05,
                       "eval/sampled": sampled, "eval/pass@k": sampled + 0.1, "eval/k": 8, "eval/entropy": entropy})


def point(step, split, sampled, entropy=0.5):
    return {"step": step, "split": split, "greedy": sampled, "sampled": sampled, "pass_k": sampled, "k": 8, "entropy": entropy,
            "tokens": 1000 * step, "sizes": {}}


def test_evaluations_are_read_by_phase_and_a_torn_line_is_skipped(tmp_path):
    lines = ['{"phase": "grpo", "step": 1, "loss": 0.1, "generated": 30}', '{"phase": "grpo", "step": 2, "generated": 40}', record("sft", 9, "test", 0.3, 0.7),
             record("grpo", 2, "validation", 0.4, 0.6), record("grpo", 2, "test", 0.45, 0.55), '{"phase": "grpo", "st']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    points = compare.evaluations(tmp_path, "grpo")
    assert [(p["step"], p["split"], p["sampled"]) for p in points] == [(2, "validation", 0.4), (2, "test", 0.45)]
    assert compare.last_test(points)["entropy"] == 0.55
    assert [p["tokens"] for p in points] == [70, 70]
    assert compare.evaluations(tmp_path / "nowhere", "grpo") == [] and compare.last_test([]) is None


def test_the_level_is_the_highest_percentage_that_every_run_reached():
    high = [point(1, "validation", 0.3), point(2, "validation", 0.62), point(3, "validation", 0.5)]
    low = [point(1, "validation", 0.29), point(3, "test", 0.9)]
    assert compare.common_level([high, low]) == 0.29
    assert compare.common_level([high]) == 0.62
    assert compare.common_level([high, [point(3, "test", 0.9)]]) is None
    assert compare.first_reaching(high, 0.5)["step"] == 2
    assert compare.first_reaching(high, 0.7) is None


@pytest.mark.parametrize("values, text", [([0.5], "50.0"), ([0.4, 0.6], "50.0 ± 14.1"), ([0.4, None, 0.6], "50.0 ± 14.1 (2 of 3)"),
                                          ([None], "–"), ([], "–")])
def test_a_cell_tells_mean_spread_and_what_is_missing(values, text):
    assert compare.cell(values, compare.PERCENT) == text


def test_the_table_row_by_row():
    rows = {"clip": [[point(5, "validation", 0.5, 0.4), point(10, "validation", 0.6, 0.2), point(10, "test", 0.61, 0.2)],
                     [point(5, "validation", 0.4, 0.5), point(10, "validation", 0.6, 0.3), point(10, "test", 0.63, 0.3)]],
            "kl_cov": [[point(5, "validation", 0.5, 0.6), point(10, "validation", 0.7, 0.5), point(10, "test", 0.7, 0.5)]] * 2}
    lines = compare.table([point(3, "test", 0.3), point(4, "test", 0.3)], rows, None)
    assert [cell.strip() for cell in lines[0].split("|")[2:9]] == ["step", "sampled, %", "greedy, %", "pass@8, %", "entropy, nats",
                                                                  "tokens, k", "at 60 % sampled: step"]
    columns = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert columns[0][:3] == ["start of the last phase", "4 ± 1", "30.0 ± 0.0"] and columns[0][-1] == "–"
    assert columns[1][:3] == ["clip", "10 ± 0", "62.0 ± 1.4"]
    assert columns[1][5:] == ["0.250 ± 0.071", "10 ± 0", "10 ± 0", "10 ± 0", "60.0 ± 0.0", "0.250 ± 0.071"]
    assert columns[2][-1] == "0.500 ± 0.000"


def test_prompts_of_several_sizes_have_a_table_of_their_own(tmp_path):
    line = json.loads(record("grpo", 2, "test", 0.5, 0.5)) | {"eval/sampled/3": 0.75, "eval/length/3": 20.0,
                                                              "eval/sampled/10": 0.25, "eval/length/10": 61.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    points = compare.evaluations(tmp_path, "grpo")
    assert points[0]["sizes"] == {3: (0.75, 20.0), 10: (0.25, 61.5)}
    lines = compare.table_of_sizes(points, {"clip": [points, points], "ares": [points, []]})
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == ["sampled of 3, %", "sampled of 10, %", "length of 3", "length of 10"]
    assert lines[3] == "| clip | 75.0 ± 0.0 | 25.0 ± 0.0 | 20.0 ± 0.0 | 61.5 ± 0.0 |"
    assert lines[4] == "| ares | 75.0 (1 of 2) | 25.0 (1 of 2) | 20.0 (1 of 2) | 61.5 (1 of 2) |"
    assert compare.table_of_sizes([point(3, "test", 0.3)], {"clip": [[point(5, "test", 0.5)]]}) == []


def test_a_start_is_shared_by_what_decides_it():
    def config(**last):
        return {"run": {"seed": last.pop("seed", 1)}, "model": {"hidden_size": last.pop("hidden_size", 8)},
                "phases": [{"name": "sft", "steps": 5}, {"name": "grpo", "data": "a", "objective": "clip", "steps": 7} | last]}

    key = compare.start_key(config())
    assert key == compare.start_key(config(objective="kl_cov", steps=9, seed=2))
    assert key == compare.start_key(config(rollout={"num_generations": 4}))  # its answers are as long
    others = [config(data="b"), config(hidden_size=16), config(rollout={"max_new_tokens": 9}), config(reward="exact")]
    assert len({key, *map(compare.start_key, others)}) == 5


# A program with the commands that compare.py uses. A run whose name holds "broken" fails; every call is noted.
STAND_IN = '''#!{python}
import json, os, sys
from pathlib import Path
import yaml
if sys.argv[1] == "config":
    print(Path(sys.argv[2]).read_text())
    sys.exit()
file, keys = sys.argv[2], dict(a.split("=", 1) for a in sys.argv[3:] if "=" in a)
folder = Path(keys["run.dir"])
with open({calls!r}, "a") as calls:
    calls.write(" ".join(sys.argv[2:]) + "\\n")
if "broken" in file and "start" in str(folder):
    sys.exit("no such thing")
config = yaml.safe_load(Path(file).read_text())
with open(folder / "metrics.jsonl", "a") as out:
    for phase in config["phases"]:
        if "run.start" in keys and phase["name"] == "sft":
            continue
        for split in ("validation", "test"):
            print(json.dumps({{"phase": phase["name"], "step": phase["steps"], "eval/split": split, "eval/greedy": .5,
                              "eval/sampled": .25 if phase["name"] == "sft" else .5, "eval/pass@k": .75, "eval/k": 8,
                              "eval/entropy": .1}}), file=out)
        done = folder / "checkpoints" / f"{{phase['name']}}-{{phase['steps']:06}}"
        done.mkdir(parents=True)
        (done / "DONE").touch()
'''


@pytest.fixture
def compared(tmp_path):
    program = tmp_path / "isentrope"
    program.write_text(STAND_IN.format(python=sys.executable, calls=str(tmp_path / "calls")))
    program.chmod(0o755)

    def call(*names):
        for name in names:
            (tmp_path / f"{name}.yaml").write_text(
                "phases: [{name: sft, steps: 5, note: %s}, {name: grpo, steps: 7, objective: %s}]" % (name[:5], name))
        (tmp_path / "calls").write_text("")
        told = subprocess.run([sys.executable, ROOT / "scripts" / "compare.py", "--program", program, "--seeds", "2", "--out",
                               tmp_path / "out", *[tmp_path / f"{name}.yaml" for name in names]], capture_output=True, text=True)
        return told, (tmp_path / "calls").read_text().splitlines()

    return call


def test_runs_share_their_start_and_are_made_once(compared, tmp_path):
    told, calls = compared("tint_clip", "tint_kl_cov")
    assert told.returncode == 0, told.stderr
    assert len(calls) == 6  # two starts, one a seed, then two configurations with two seeds
    assert sum("phases.grpo.steps=1" in call for call in calls) == 2
    assert all("run.threads=1" in call for call in calls)
    for seed in (1, 2):
        begun = [call for call in calls if f"run.seed={seed} " in call and "run.start=" in call]
        assert len(begun) == 2 and all(f"/seed{seed}/checkpoints/sft-000005" in call for call in begun)
    assert "| tint_kl_cov | 7 ± 0 | 50.0 ± 0.0 |" in told.stdout
    assert told.stdout == (tmp_path / "out" / "table.md").read_text()

    (tmp_path / "out" / "tint_clip" / "seed2" / "metrics.jsonl").write_text("")  # stopped before its end
    again, calls = compared("tint_clip", "tint_kl_cov")
    assert len(calls) == 1 and calls[0].endswith("--resume") and "seed2" in calls[0]
    assert again.stdout == told.stdout


def test_a_failed_run_is_told_and_the_others_stand(compared):
    told, calls = compared("broken_clip", "tint_clip")
    assert told.returncode == 1
    assert "no such thing" in told.stderr and "exit code 1" in told.stderr
    assert "| tint_clip | 7 ± 0 |" in told.stdout and "| broken_clip | – |" in told.stdout
