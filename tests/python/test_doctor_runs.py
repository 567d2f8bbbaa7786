"""`isentrope doctor` of runs that were trained: configs/tiny with changed keys, ill and not."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("yaml")

from isentrope.doctor.examination import examine  # noqa: E402
from isentrope.report.runs import read_run  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release")) / "bin" / "isentrope"
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")

CONSTANT = "phases.pretrain.schedule={kind: constant}"
# A policy that is driven by a rate far too high, with nothing to hold it: name, configuration, overrides.
RUNS = {
    "tiny pretrain": ("pretrain",),
    "fast pretrain": ("pretrain", "phases.pretrain.optimizer.lr=0.5", "phases.pretrain.optimizer.max_grad_norm=0", CONSTANT),
    "slow pretrain": ("pretrain", "phases.pretrain.optimizer.lr=1e-6"),
    "falling sft": ("sft", "phases.sft.optimizer.lr=0.3", "phases.sft.optimizer.max_grad_norm=0", "phases.sft.schedule={kind: constant}",
                    "phases.sft.steps=60", "model.norm=none"),
    "tiny sigma": ("sigma", "model.sigma_reparam.svd=true"),
    "loose sigma": ("sigma", "model.sigma_reparam.svd=true", "model.sigma_reparam.steps_max=1", "phases.pretrain.optimizer.lr=0.1"),
    "tiny grpo": ("grpo", "phases.grpo.steps=30"),
    "fast grpo": ("grpo", "phases.grpo.objective.loss=clip", "phases.grpo.objective.ref_kl_coef=0", "phases.grpo.optimizer.lr=3e-2", "phases.grpo.steps=60"),
    "no reward": ("grpo", "phases.grpo.reward=[{kind: format, pattern: zzz}]"),
}  # fmt: skip
# Of each rule: runs of which it speaks, and runs that it finds clear.
SPEAKS = {
    "attention collapse": (["fast pretrain"], ["tiny pretrain", "tiny grpo"]),
    "idle": (["slow pretrain"], ["tiny pretrain", "tiny grpo"]),
    "learning rate too high": (["falling sft", "fast grpo"], ["tiny pretrain", "tiny grpo"]),
    "σ out of tolerance": (["loose sigma"], ["tiny sigma"]),
    "entropy collapse": (["fast grpo"], ["tiny grpo"]),
    "dead groups": (["fast grpo", "no reward"], ["tiny grpo"]),
    "truncation": (["fast grpo"], []),
}


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """Of a run by its name; each is trained once."""
    out = tmp_path_factory.mktemp("runs")

    @functools.cache
    def of(name):
        config, *overrides = RUNS[name]
        folder = out / name.replace(" ", "_")
        told = subprocess.run([PROGRAM, "train", f"configs/tiny/{config}.yaml", f"run.dir={folder}", "--quiet", *overrides], cwd=ROOT,
                              capture_output=True, text=True, timeout=300, env={**os.environ, "ISENTROPE_PYTHON": sys.executable})  # fmt: skip
        assert told.returncode == 0 or "not finite" in told.stderr or "exceed" in told.stderr, told.stderr
        return examine(read_run(folder))

    return of


@pytest.mark.parametrize("rule", SPEAKS)
def test_of_runs_that_were_trained(rule, examined):
    ill, well = SPEAKS[rule]
    for name in ill:
        assert rule in {finding.rule.name for finding in examined(name).findings}, f"{name}: not found"
    for name in well:
        assert rule not in {finding.rule.name for finding in examined(name).findings}, name
        assert rule in {one for _, one in examined(name).clear}, f"{name}: not judged"


def test_the_command_and_the_key_that_it_names(examined):
    """What it says to change is a key of the configuration, and the suggested value is one that the program takes."""
    folder = examined("fast grpo").run.folder
    told = subprocess.run([PROGRAM, "doctor", folder, "--json"], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "ISENTROPE_PYTHON": sys.executable})  # fmt: skip
    assert told.returncode == 0, told.stderr
    findings = json.loads(told.stdout)["runs"][0]["findings"]
    assert len(findings) >= 4
    taken = 0
    for finding in findings:
        if re.fullmatch(r"[\w.-]+", finding["value"]):
            config = subprocess.run([PROGRAM, "config", folder / "config.yaml", f"{finding['key']}={finding['value']}"], cwd=ROOT, capture_output=True, text=True)
            assert config.returncode == 0, config.stderr
            taken += 1
    assert taken >= 3
