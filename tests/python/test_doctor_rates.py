"""`python -m isentrope.doctor.rates`: which runs it makes, what ended well, and its tables, with a program that writes made-up runs."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("yaml")

from isentrope import jobs  # noqa: E402
from isentrope.doctor import rates  # noqa: E402
from isentrope.doctor.table import RULES  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = '''#!{python}
"""A trainer whose loss ends at ten times the rate, and that stops at something not finite above a rate of 1."""
import json, sys
from pathlib import Path
given = dict(word.split("=", 1) for word in sys.argv[3:] if "=" in word)
folder, rate = Path(given["run.dir"]), float(given.get("phases.sft.optimizer.lr", 0.1))
with open("calls", "a") as calls:
    print(folder.name, given.get("run.start", ""), file=calls)
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "metrics.jsonl", "w") as file:
    for step in range(1, 61):
        print(json.dumps({{"phase": "sft", "step": step, "loss": 3 - step / 60, "grad_norm": 50 if step == 40 and rate > 0.15 else 1}}), file=file)
    if rate <= 1:
        print(json.dumps({{"phase": "sft", "step": 60, "eval/split": "test", "eval/loss": 10 * rate}}), file=file)
if rate > 1:
    sys.exit("isentrope: phase sft, step 61: the gradient of head is not finite.")
if "start" in folder.name:
    (folder / "checkpoints" / "sft-000060").mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text("[]")
'''


@pytest.fixture
def group(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "isentrope"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setattr(jobs, "PROGRAM", str(path))
    made = rates.Group("some, group", "some.yaml", "eval/loss", 0.5, False, rates.rates("sft", 0.1, 0.14, 0.2, 2), start=True)
    monkeypatch.setattr(rates, "GROUPS", (made,))
    return made


def test_runs_are_made_judged_and_counted(group, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name} -->\nformer text\n<!-- end -->\n" for name in ("rules", "rates", "rates again", "runs")))
    assert rates.main(["--dir", "out", "--write", str(page)]) == 0, capsys.readouterr().err
    calls = Path("calls").read_text().splitlines()
    assert [call.split(" ")[0] for call in calls] == ["start", "lr_0.1", "lr_0.14", "lr_0.2", "lr_2"]
    assert all(call.endswith("out/start/checkpoints/sft-000060") for call in calls[1:])
    assert rates.main(["--dir", "out"]) == 0 and Path("calls").read_text().splitlines() == calls  # once
    text = page.read_text()
    assert "former text" not in text and "| some, group | lr 0.14 | 1.400 | yes | none |" in text
    assert "| some, group | lr 0.2 | 2.000 | no | gradient spikes |" in text and "| some, group | lr 2 | not finite | no | gradient spikes |" in text
    assert "| gradient spikes | 0 of 2 | 2 of 2 | 0 |" in text and "| truncation | – | – | 4 |" in text
    assert "| any but evaluation too noisy | 0 of 2 | 2 of 2 | |" in text
    assert len(rates.rules_table()) == 2 + len(RULES)


def test_what_fails_is_named(group, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    assert rates.main(["--rules", "--write", str(page)]) == 1 and "it has no <!-- rules -->" in capsys.readouterr().err
    (tmp_path / "isentrope").write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no space left')\n")
    assert rates.main(["--dir", "out"]) == 1
    assert "out/start: it left no checkpoint of its sft phase; see out/start.log" in capsys.readouterr().err


@pytest.mark.skipif(not (ROOT / "configs").is_dir(), reason="no sources beside the tests")
def test_the_runs_of_the_page_have_their_files():
    for group in rates.GROUPS:
        assert (ROOT / group.config).is_file() and group.runs
    names = [rates.job_of(group, name, Path("out")).folder for group in rates.GROUPS for name in group.runs]
    assert len(names) == len(set(names)) == 45
    page = (ROOT / "docs" / "doctor.md").read_text()
    assert all(f"| {group.name} | {name} | " in page for group in rates.GROUPS for name in group.runs), "run it with --write docs/doctor.md"
    assert json.dumps([group.name for group in rates.GROUPS if group.again]) == '["none, seed 1", "grpo, seed 3"]'
