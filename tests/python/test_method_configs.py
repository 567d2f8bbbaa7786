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
    "aepo": (GRPO + "rollout.tempered.coef=0", ["tempered/temperature", "tempered/reward"]),
    "ares_alpha": (GRPO + "reward.2.alpha=0", ["ares/alpha/easy", "ares/alpha/medium", "ares/alpha/hard"]),
    "bupo": (None, ["inner/entropy"]),
    "ceeh": (None, ["ceeh/hard", "ceeh/length"]),
    "ceeh_entropy": (GRPO + "objective.entropy.coef=0", ["entropy_coef", "ceeh/hard"]),
    "clip_b": (GRPO + "weight.0.mu_low=1e6", ["clip_b/removed", "clip_b/mean", "clip_b/std", "weight/removed"]),
    "clip_v": (GRPO + "weight.0.mu_low=1e6", ["clip_v/removed", "clip_v/mean", "clip_v/std", "weight/removed"]),
    "divergence_mask": (GRPO + "weight.0.delta=1", ["weight/zero"]),
    "empg": (None, ["empg/steps"]),
    "entropy_sft": ("phases.sft.weight.0.fraction=1", []),
    "entropy_advantage": (GRPO + "advantage.1.alpha=0", []),
    "gepo": (None, ["gepo/low", "gepo/high", "gepo/shaped"]),
    "gtpo": (None, []),
    "hicra": (GRPO + "advantage.1.alpha=0", ["hicra/planning", "hicra/semantic_entropy"]),
    "pear": (GRPO + "reward.2.coef=0", ["pear/tagged", "pear/penalty"]),
    "perplexity": (GRPO + "advantage.1.alpha=0", []),
    "position": (GRPO + "advantage.1.gamma=0", []),
    "quantile": (None, []),
    "repo": (GRPO + "advantage.1.beta=0", []),
    "repo_adaptive": (GRPO + "advantage.1={kind: repo, beta: 0}", ["repo/beta"]),
    "siren": (GRPO + "objective.entropy.coef=0", ["entropy_coef"]),
    "tea": (GRPO + "objective.entropy.coef=0", ["entropy_coef", "tea/weight", "tea/cut"]),
}
# With other prompts or rewards than the plain run: that its coefficient takes its effect away tests/csrc says of them.
OWN = ["ares_alpha", "ceeh_entropy"]


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
    assert sorted(path.stem for path in CONFIGS) == sorted(METHODS)


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
    if name not in ("aent", "ceeh", "gtpo", "pear", "position", "siren", *OWN):
        assert losses(lines) != plain(name), "the method changed nothing"
    if off:
        without = run(config, tmp_path / "off", off)
        if name in OWN:
            assert losses(without) != losses(lines), "its coefficient changed nothing"
            return
        assert losses(without) == plain(name), "without its coefficient it still changes something"
        if name == "position":
            assert losses(lines)[:4] == losses(without) and losses(lines)[4:] != losses(run(config, tmp_path / "longer", off, steps=6))[4:]
        elif name in ("pear", "siren"):
            assert losses(lines) != losses(without)


def test_a_second_set_follows_the_entropy(tmp_path):
    """Above its target it is drawn cold, below it hot; and what is drawn counts."""
    config = ROOT / "configs/methods/aepo.yaml"
    cold = run(config, tmp_path / "cold", GRPO + "rollout.tempered.target=0", steps=2)
    hot = run(config, tmp_path / "hot", GRPO + "rollout.tempered.target=99", steps=2)
    without = run(config, tmp_path / "without", GRPO + "rollout.tempered.coef=0", steps=2)
    assert [line["tempered/temperature"] for line in cold + hot] == [0.8, 0.8, 1.2, 1.2]
    assert cold[0]["reward/mean"] == hot[0]["reward/mean"] == without[0]["reward/mean"]  # the first set is the same
    assert cold[0]["entropy/mean"] == pytest.approx(without[0]["entropy/mean"], rel=0.2)
    assert hot[0]["generated"] > without[0]["generated"] and "tempered/reward" not in without[0]
    double = run(config, tmp_path / "double", GRPO + "rollout.tempered.target=0", GRPO + "rollout.tempered.coef=0.4", steps=2)
    assert double[0]["loss"] != cold[0]["loss"] and double[0]["tempered/reward"] == cold[0]["tempered/reward"]


def test_the_choice_of_an_sft_phase_is_told(tmp_path):
    made = subprocess.run([program(), "train", "configs/methods/entropy_sft.yaml", f"run.dir={tmp_path}/run", *SHORT, "phases.grpo.steps=1", "--quiet"],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert made.returncode == 0, made.stderr
    lines = [line for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if line.get("phase") == "sft" and "loss" in line]
    assert all(0.35 < line["weight/removed"] < 0.45 and line["weight/mean"] == pytest.approx(1 - line["weight/removed"]) for line in lines)
    assert all(line["loss"] > line["loss/all"] and line["weight/entropy"] >= 0 for line in lines)


def test_steered_numbers_move(tmp_path):
    beta = [line["repo/beta"] for line in run(ROOT / "configs/methods/repo_adaptive.yaml", tmp_path / "repo")]
    assert beta[:2] == [0.05, 0.05] and beta[2] != beta[1]  # the first step is the target
    lines = run(ROOT / "configs/methods/ares_alpha.yaml", tmp_path / "ares")
    alpha = [[line[f"ares/alpha/{d}"] for line in lines] for d in ("easy", "medium", "hard")]
    assert all(row[0] == 0.3 for row in alpha) and any(len(set(row)) > 1 for row in alpha)


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
    (["objective={kind: grpo, entropy: {kind: ceeh}}"], "objective.entropy: ceeh weighs tokens of hard prompts, and nothing says which these are"),
    (["objective={kind: grpo, entropy: {kind: tea, most: -1}}"], "most: -1 is out of range; wanted at least 0"),
    (["advantage=[{kind: grpo}, {kind: repo, target: 0.5}]"], "target: rate is 0, so that beta stays"),
    (["advantage=[{kind: grpo}, {kind: repo, beta: 2, rate: 0.1}]"], "beta: 2.000000 does not lie between 0 and most"),
    (["reward=[{kind: answer}, {kind: ares, form: paper, alpha_control: {}}]"], "alpha_control: form paper has no alpha"),
    (["reward=[{kind: answer}, {kind: ares, alpha_control: {least: 0.9, most: 0.8}}]"], "alpha_control: least: is above most"),
    (["rollout.tempered={low: 2.0}"], "tempered: low: is above high"),
    (["weight=[{kind: entropy_sft, fraction: 0}]"], "fraction: 0 is out of range; wanted above 0 to 1"),
])  # fmt: skip
def test_refuses(words, message, tmp_path):
    made = subprocess.run([program(), "train", "configs/methods/repo.yaml", f"run.dir={tmp_path}/run", *(GRPO + word for word in words)],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert made.returncode == 1 and message in made.stderr, made.stderr
    assert not (tmp_path / "run").exists()


def saved(folder):
    return [json.loads(line) for line in (folder / "rollouts" / "grpo.jsonl").read_text().splitlines()]


def test_saved_completions_tell_what_their_tokens_weighed(tmp_path):
    every = GRPO + "rollout.save_every=1"
    lines = run(ROOT / "configs/methods/tea.yaml", tmp_path / "tea", every, steps=2)
    completions = saved(tmp_path / "tea")
    assert all(len(one["weight"]) == one["length"] and "advantages" not in one for one in completions)
    for line in lines:
        weights = [one["weight"] for one in completions if one["step"] == line["step"]]
        assert sum(map(sum, weights)) / sum(map(len, weights)) == pytest.approx(line["tea/weight"], rel=1e-5)
        assert all(0 <= w <= 5 for row in weights for w in row) and max(map(sum, weights)) == pytest.approx(10, rel=1e-4)
    lines = run(ROOT / "configs/methods/clip_b.yaml", tmp_path / "clip_b", every, steps=2)
    zeros = [w == 0 for one in saved(tmp_path / "clip_b") if one["step"] == 1 for w in one["weight"]]
    assert sum(zeros) / len(zeros) == pytest.approx(lines[0]["weight/removed"], abs=1e-3)  # of two updates the mean by what is left
    run(ROOT / "configs/methods/hicra.yaml", tmp_path / "hicra", every, steps=2)
    planning = [one for one in saved(tmp_path / "hicra") if "advantages" in one]
    assert planning and all(sum(one["advantages"]) / one["length"] == pytest.approx(one["advantage"], rel=1e-5) for one in planning)
    assert not any("weight" in one for one in planning)

    pytest.importorskip("jinja2")
    for name, words in (("tea", ['title="weight ', ">weight</"]), ("hicra", ['title="advantage of a token ', ">advantage of a token</"])):
        made = subprocess.run([program(), "report", str(tmp_path / name), "-o", str(tmp_path / "page.html")], cwd=ROOT, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        page = (tmp_path / "page.html").read_text()
        assert all(word in page for word in words), name
