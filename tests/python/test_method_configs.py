"""configs/methods: each method in a run of seconds, told by its metrics, and off again by its coefficient."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs/methods").glob("*.yaml"))
SHORT = ["phases.sft.evaluation.every=0", "phases.grpo.evaluation.every=0", "test.prompts=2", "test.sampled_prompts=1"]
# A word that takes the method's effect away, where there is one, and metrics that tell of it (None: whether it is there is all).
GRPO = "phases.grpo."
METHODS = {
    "aent": (None, ["entropy_coef", "entropy/kept"]),
    "bupo": (None, ["inner/entropy"]),
    "ceeh": (None, ["ceeh/hard", "ceeh/length"]),
    "clip_b": (GRPO + "weight.0.mu_low=1e6", ["clip_b/removed", "clip_b/mean", "clip_b/std", "weight/removed"]),
    "clip_v": (GRPO + "weight.0.mu_low=1e6", ["clip_v/removed", "clip_v/mean", "clip_v/std", "weight/removed"]),
    "divergence_mask": (GRPO + "weight.0.delta=1", ["weight/zero"]),
    "empg": (None, ["empg/steps"]),
    "entropy_advantage": (GRPO + "advantage.1.alpha=0", []),
    "gepo": (None, ["gepo/low", "gepo/high", "gepo/shaped"]),
    "gtpo": (None, []),
    "hicra": (GRPO + "advantage.1.alpha=0", ["hicra/planning", "hicra/semantic_entropy"]),
    "pear": (GRPO + "reward.2.coef=0", ["pear/tagged", "pear/penalty"]),
    "perplexity": (GRPO + "advantage.1.alpha=0", []),
    "position": (GRPO + "advantage.1.gamma=0", []),
    "repo": (GRPO + "advantage.1.beta=0", []),
    "siren": (GRPO + "objective.entropy.coef=0", ["entropy_coef"]),
}


def program() -> str:
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert path, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    return os.path.abspath(path)


def run(config, folder, *words, steps=4):
    made = subprocess.run([program(), "train", str(config), f"run.dir={folder}", *SHORT, f"phases.grpo.steps={steps}", *words, "--quiet"],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert made.returncode == 0, made.stderr
    lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("phase") == "grpo" and "reward/mean" in line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The losses of the same run without any method, by what else its configuration has."""
    done = {}

    def of(name):
        key = {"divergence_mask": "epochs", "hicra": "dr_grpo"}.get(name, "")
        if key not in done:
            words = [GRPO + "weight=[]"] if key == "epochs" else [GRPO + "advantage=[{kind: dr_grpo}]"] if key else [GRPO + "advantage=[{kind: grpo}]"]
            done[key] = losses(run(ROOT / f"configs/methods/{name if key else 'entropy_advantage'}.yaml", tmp_path_factory.mktemp("plain"), *words))
        return done[key]

    return of


def losses(lines):
    return [(line["loss"], line["grad_norm"]) for line in lines]


def test_every_method_of_the_table_is_here():
    assert [path.stem for path in CONFIGS] == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_trains_and_tells(name, tmp_path, plain):
    off, told = METHODS[name]
    config = ROOT / f"configs/methods/{name}.yaml"
    lines = run(config, tmp_path / "on", steps=6 if name == "position" else 4)
    assert len(lines) >= 4
    for key in told:
        assert all(key in line for line in lines), key
    if name == "empg":
        assert all(line["empg/steps"] > 1 for line in lines), "no step ended"
    if name not in ("aent", "ceeh", "gtpo", "pear", "position", "siren"):
        assert losses(lines) != plain(name), "the method changed nothing"
    if off:
        without = run(config, tmp_path / "off", off)
        assert losses(without) == plain(name), "without its coefficient it still changes something"
        if name == "position":
            assert losses(lines)[:4] == losses(without) and losses(lines)[4:] != losses(run(config, tmp_path / "longer", off, steps=6))[4:]
        elif name in ("pear", "siren"):
            assert losses(lines) != losses(without)


@pytest.mark.parametrize("name, key", [("clip_b", "weight/removed"), ("clip_v", "weight/removed"), ("gepo", "gepo/shaped"), ("hicra", "hicra/planning"),
                                       ("divergence_mask", "weight/zero"), ("pear", "pear/tagged")])  # fmt: skip
def test_its_metric_is_a_share_that_is_not_nothing(name, key, tmp_path):
    shares = [line[key] for line in run(ROOT / f"configs/methods/{name}.yaml", tmp_path)]
    assert all(0 <= share <= 1 for share in shares) and max(shares) > 0


@pytest.mark.parametrize("words, message", [
    (["advantage=[{kind: position}]"], "advantage: the first of the list makes advantages of rewards, and position changes some"),
    (["advantage=[{kind: grpo}, {kind: gtpo}]"], "gtpo makes advantages of rewards and stands behind grpo"),
    (["advantage=[{kind: gtpo}]", "rollout.branch={}"], "gtpo has no advantage for a token with a return of its own"),
    (["advantage=[{kind: grpo}, {kind: empg}]"], r"advantage.1.marker: the tokenizer cannot write"),
    (["advantage=[{kind: grpo}, {kind: empg, marker: ''}]"], "marker: is empty"),
    (["advantage=[{kind: grpo}, {kind: hicra}]"], "grams: names no file; make one of right answers with isentrope grams"),
    (["advantage=[{kind: grpo}, {kind: hicra, grams: none.json}]"], "advantage.1.grams: none.json: cannot be read"),
    (["advantage=[{kind: grpo}, {kind: hicra, grams: README.md}]"], "advantage.1.grams: README.md: "),
    (["advantage=[{kind: grpo}, {kind: position, start_step: 5, end_step: 5}]"], "end_step: 5 is not above start_step (5)"),
    (["advantage=[{kind: grpo}, {kind: entropy_advantage, kappa: 1}]"], "kappa: 1 is out of range; wanted above 1"),
    (["advantage=[{kind: gtpo, outcome: 0, share: 0}]"], "outcome: is 0, and so is share"),
    (["reward=[{kind: answer}, {kind: pear}]"], "reward.1.tag: the tokenizer cannot write"),
    (["weight=[{kind: clip_b, signs: minus}]"], "signs"),
    (["weight=[{kind: clip_v, max_frac: 0}]"], "max_frac: 0 is out of range; wanted above 0 to 1"),
    (["objective={kind: grpo, entropy: {kind: aent, low: 0.5, high: 0.1}}"], "low: is above high"),
    (["objective={kind: grpo, entropy: {kind: aent, coef: 1}}"], "coef: does not lie between least and most"),
])  # fmt: skip
def test_refuses(words, message, tmp_path):
    made = subprocess.run([program(), "train", "configs/methods/repo.yaml", f"run.dir={tmp_path}/run", *(GRPO + word for word in words)],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert made.returncode == 1 and message in made.stderr, made.stderr
    assert not (tmp_path / "run").exists()
