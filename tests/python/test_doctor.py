"""`isentrope doctor`: each rule has a run that has the illness and one that has not, made up; what it says, and what it refuses. Runs that were
trained: test_doctor_runs.py."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("jinja2")
yaml = pytest.importorskip("yaml")

from isentrope.doctor import main  # noqa: E402
from isentrope.doctor.columns import Column, told_last  # noqa: E402
from isentrope.doctor.examination import PLAIN, examine, sparkline, text  # noqa: E402
from isentrope.doctor.rule import told  # noqa: E402
from isentrope.doctor.table import RULES  # noqa: E402
from isentrope.report import write_page  # noqa: E402
from isentrope.report.runs import read_run  # noqa: E402

STEPS = 100


def line(start, end):
    """Over the steps, from one value to another."""
    return lambda x: start + (end - start) * x


def constant(value):
    return lambda x: value


def policy():
    """Columns of a policy phase that ails nothing: functions of the share of the steps."""
    return {
        "loss": line(0.02, -0.01), "entropy/mean": line(0.5, 0.3), "grad_norm": constant(1.0), "reward/mean": line(0.3, 0.8),
        "reward/std": constant(0.4), "groups/flat": line(0.2, 0.4), "kl/k3": constant(0.005), "ratio/max": constant(1.5), "clip/frac": constant(0.02),
        "length/mean": line(20, 22), "length/truncated": constant(0.01), "length/ended": constant(20), "mismatch/k3": constant(1e-6),
        "mismatch/ess": constant(0.999), "law/r2": constant(0.9), "law/ceiling": constant(0.95),
    }  # fmt: skip


def learner():
    """Columns of an sft or pretrain phase that ails nothing."""
    return {"loss": lambda x: 1 + 3 * 2.718 ** (-4 * x), "grad_norm": line(1.5, 0.8), "entropy/mean": line(3.0, 1.0)}


CONFIG = {
    "run": {"dir": "runs/made", "seed": 1},
    "model": {"norm": "pre", "sigma_reparam": {"layers": ["all"], "steps_max": 20, "tolerance": 1e-4, "svd": True}},
}
PHASE = {
    "optimizer": {"lr": 1e-3, "max_grad_norm": 0.0}, "steps": STEPS,
    "rollout": {"num_generations": 8, "max_new_tokens": 32, "mini_batches": 4, "epochs": 1, "dtype": "model"},
    "evaluation": {"every": 20, "prompts": 256, "sampled_prompts": 128},
}  # fmt: skip


def made(folder, kind="grpo", columns=None, steps=STEPS, judged=line(0.3, 0.8), heads=constant(0.6), layers=4, wide=4, sigma=constant(0.001), loss="clip",
         settings=None, noise=0.02, config=True, layers_of="all"):  # fmt: skip
    """A run of one phase. judged: validation accuracy every 20 steps; heads: entropy / log n, of which a function of the share of the steps, or of it
    and of the head; sigma: error of σ. Values have noise, by a share, from a seed."""
    generator = random.Random(7)
    folder.mkdir()
    columns = {**(policy() if kind == "grpo" else learner()), **(columns or {})}
    if config:
        phase = {"name": kind, "objective": {"kind": kind, "loss": loss}, **{k: dict(v) if isinstance(v, dict) else v for k, v in PHASE.items()}}
        for path, value in (settings or {}).items():
            *place, name = path.split(".")
            part = phase
            for word in place:
                part = part.setdefault(word, {})
            part[name] = value
        (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "model": {"norm": "pre", "sigma_reparam": {**CONFIG["model"]["sigma_reparam"], "layers": [layers_of]}}, "phases": [phase]}))
    lines = []
    for step in range(1, steps + 1):
        x = (step - 1) / max(steps - 1, 1)
        record = {"phase": kind, "step": step}
        for key, column in columns.items():
            if column is not None and (value := column(x)) is not None:
                exact = key.startswith(("groups", "kl", "mismatch", "clip", "length/truncated"))
                record[key] = value if exact or value != value else value * (1 + noise * generator.uniform(-1, 1))
        if heads and step % 10 == 0:
            table = [[heads(x, head) if heads.__code__.co_argcount == 2 else heads(x) for head in range(wide)] for _ in range(layers)]
            record["attention_entropy"] = {"normalized": table}
        if sigma and step % 10 == 0:
            record["sigma"] = {"layers.0.q": [2.0, 1.0, 2.0 * (1 + sigma(x))], "head": [3.0, 1.0, 3.0]}
        lines.append(json.dumps(record).replace("NaN", "null"))
        if judged and step % 20 == 0:
            lines.append(json.dumps({"phase": kind, "step": step, "eval/split": "validation", "eval/sampled": judged(x), "eval/greedy": judged(x)}))
    (folder / "metrics.jsonl").write_text("".join(one + "\n" for one in lines))
    return folder


def found(folder):
    """{rule: evidence} of a run with one phase."""
    return {finding.rule.name: finding.evidence for finding in examine(read_run(folder)).findings}


def at(step, value, otherwise, steps=STEPS):
    """One step has another value."""
    return lambda x: value if round(x * (steps - 1)) == step - 1 else otherwise


# Of each rule: what a run has that is ill, the key that is to be changed, and a run that is nearly ill.
CASES = {
    "not finite": [
        ("grpo", {"columns": {"loss": at(60, float("nan"), 0.1)}}, "optimizer.lr", {"columns": {"loss": at(60, 1.0, 0.1)}}),
        ("sft", {"columns": {"strange/key": at(7, float("nan"), 0.1)}}, "optimizer.lr", {"columns": {"strange/key": constant(0.1)}}),
    ],
    "learning rate too high": [
        ("sft", {"columns": {"loss": lambda x: 4 - 4 * x if x < 0.5 else 2 * x + 1}}, "optimizer.lr", {"columns": {"loss": lambda x: 4 - 4 * x if x < 0.5 else 2 + 0.3 * (x - 0.5)}, "noise": 0.0}),
        ("pretrain", {"columns": {"loss": at(3, 45.0, 4.0, 5)}, "steps": 5}, "optimizer.lr", {"columns": {"loss": at(3, 35.0, 4.0, 5)}, "steps": 5}),
        ("pretrain", {"columns": {"grad_norm": lambda x: 1 + 20 * max(0, x - 0.3)}, "noise": 0.0}, "optimizer.lr", {"columns": {"grad_norm": lambda x: 1 + 7 * max(0, x - 0.3)}, "noise": 0.0}),
        ("grpo", {"columns": {"reward/mean": lambda x: 0.3 + x if x < 0.5 else 1.3 - x}, "judged": None}, "optimizer.lr",
         {"columns": {"reward/mean": lambda x: 0.3 + x if x < 0.5 else 0.87 - x / 5}, "judged": None, "noise": 0.0}),
    ],
    "idle": [
        ("sft", {"columns": {"loss": line(4.0, 3.95)}, "noise": 0.0}, "optimizer.lr", {"columns": {"loss": line(4.0, 3.9)}, "noise": 0.0}),
        ("pretrain", {"columns": {"loss": lambda x: 3.2 + 2 * 2.718 ** (-30 * x)}}, "optimizer.lr", {"columns": {"loss": lambda x: 0.05 + 4 * 2.718 ** (-60 * x)}}),
        ("grpo", {"columns": {"reward/mean": constant(0.3), "entropy/mean": line(0.5, 0.49), "kl/k3": constant(5e-6)}, "judged": None}, "optimizer.lr",
         {"columns": {"reward/mean": constant(0.3), "entropy/mean": constant(0.5), "kl/k3": constant(2e-5)}, "judged": None}),
        ("grpo", {"columns": {"reward/mean": constant(0.3), "entropy/mean": constant(0.5), "kl/k3": None}, "judged": None}, "optimizer.lr",
         {"columns": {"reward/mean": constant(0.3), "entropy/mean": line(0.5, 0.46), "kl/k3": None}, "judged": None, "noise": 0.0}),
    ],
    "gradient spikes": [
        ("sft", {"columns": {"grad_norm": at(70, 12.0, 1.0)}}, "optimizer.max_grad_norm", {"columns": {"grad_norm": at(70, 8.0, 1.0)}}),
        ("grpo", {"columns": {"grad_norm": at(70, 12.0, 1.0)}, "settings": {"optimizer.max_grad_norm": 1.0}}, "optimizer.lr", {"columns": {"grad_norm": at(19, 12.0, 1.0)}}),
        ("sft", {"columns": {"grad_norm": at(22, 12.0, 1.0)}}, "optimizer.max_grad_norm", {"columns": {"grad_norm": lambda x: 12.0 if 0.6 < x < 0.8 else at(55, 9, 1)(x)}, "steps": 29}),
    ],
    "attention collapse": [
        ("pretrain", {"heads": lambda x: max(0.6 - x, 0.01)}, "optimizer.lr", {"heads": line(0.6, 0.1)}),
        ("grpo", {"heads": lambda x, head: 0.04 if head == 0 else 0.6, "sigma": None, "layers_of": "none"}, "model.sigma_reparam.layers", {"heads": lambda x, head: 0.06 if head == 0 else 0.6}),
        ("sft", {"heads": lambda x, head: 0.04 if head < 2 else 0.6, "wide": 7}, "optimizer.lr", {"heads": lambda x, head: 0.01 if head == 0 else 0.6, "wide": 7}),
    ],
    "σ out of tolerance": [
        ("pretrain", {"sigma": line(0.1, 0.0)}, "model.sigma_reparam.tolerance", {"sigma": line(0.04, 0.0)}),
    ],
    "entropy collapse": [
        ("grpo", {"columns": {"entropy/mean": lambda x: 2.718 ** (-3 * x)}}, "objective.loss", {"columns": {"entropy/mean": lambda x: 0.5 * 2.718 ** (-2 * x)}}),
        ("grpo", {"columns": {"entropy/mean": line(0.05, 0.005)}, "loss": "kl_cov"}, "objective.entropy", {"columns": {"entropy/mean": line(0.05, 0.02)}, "loss": "kl_cov"}),
    ],
    "entropy explosion": [
        ("grpo", {"columns": {"entropy/mean": line(0.5, 1.5)}}, "optimizer.lr", {"columns": {"entropy/mean": line(0.1, 0.55)}}),
        ("grpo", {"columns": {"entropy/mean": line(1.5, 4.0)}}, "optimizer.lr", {"columns": {"entropy/mean": line(1.5, 2.9)}}),
        ("grpo", {"columns": {"entropy/mean": line(0.5, 1.5)}, "settings": {"objective.entropy": {"kind": "constant", "coef": 0.1}}}, "objective.entropy.coef",
         {"columns": {"entropy/mean": line(0.5, 1.5)}, "settings": {"objective.entropy": {"kind": "adaptive", "coef": 0.1, "target": 1.2}}}),
        ("grpo", {"columns": {"entropy/mean": line(0.5, 1.5)}, "settings": {"objective.entropy": [{"kind": "entropic"}, {"kind": "constant", "coef": 0.1}]}}, "objective.entropy.1.coef",
         {"columns": {"entropy/mean": line(0.5, 1.5)}, "settings": {"objective.entropy": [{"kind": "entropic"}, {"kind": "adaptive", "coef": 0.1, "target": 1.2}]}}),
    ],
    "dead groups": [
        ("grpo", {"columns": {"groups/flat": lambda x: 1.0 if 0.3 < x < 0.45 else 0.3}}, "rollout.num_generations", {"columns": {"groups/flat": lambda x: 1.0 if 0.3 < x < 0.37 else 0.3}}),
        ("grpo", {"columns": {"groups/flat": line(0.2, 0.95)}}, "rollout.num_generations", {"columns": {"groups/flat": line(0.2, 0.7)}}),
        ("grpo", {"columns": {"groups/flat": line(0.2, 0.99), "reward/mean": line(0.3, 0.99)}, "judged": line(0.3, 0.97)}, "steps", {}),
        ("grpo", {"columns": {"groups/flat": constant(0.95), "reward/mean": line(0.01, 0.03)}, "judged": None}, "data", {}),
        ("grpo", {"columns": {"groups/flat": constant(0.95), "reward/mean": line(0.01, 0.03), "length/truncated": constant(0.9)}, "judged": None}, "rollout.max_new_tokens", {}),
        ("grpo", {"columns": {"groups/flat": line(0.2, 1.0), "reward/mean": line(0.5, 0.0)}, "judged": None}, "optimizer.lr", {}),
    ],
    "ratio or KL drift": [("grpo", {"columns": {"kl/k3": line(0.01, 0.12)}}, "optimizer.lr", {"columns": {"kl/k3": lambda x: 0.2 if 0.5 < x < 0.52 else 0.01}})],
    "clip saturation": [
        ("grpo", {"columns": {"clip/frac": line(0.02, 0.4)}}, "optimizer.lr", {"columns": {"clip/frac": line(0.02, 0.15)}}),
        ("grpo", {"columns": {"clip/frac": line(0.3, 0.9)}, "loss": "gspo"}, "optimizer.lr", {"columns": {"clip/frac": line(0.3, 0.4)}, "loss": "gspo"}),
    ],
    "length explosion": [
        ("grpo", {"columns": {"length/mean": line(20, 40), "reward/mean": constant(0.3)}, "judged": None}, "reward", {"columns": {"length/mean": line(20, 40)}}),
    ],
    "truncation": [("grpo", {"columns": {"length/truncated": line(0.02, 0.3)}}, "rollout.max_new_tokens", {"columns": {"length/truncated": line(0.4, 0.02)}})],
    "reward hacking": [
        ("grpo", {"judged": lambda x: 0.5 + x if x < 0.4 else 1.2 - x}, "reward", {"judged": lambda x: 0.5 + x if x < 0.4 else 0.9 - x / 20}),
    ],
    "rollout mismatch": [
        ("grpo", {"columns": {"mismatch/k3": constant(0.02)}}, "weight", {"columns": {"mismatch/k3": constant(0.005)}}),
        ("grpo", {"columns": {"mismatch/ess": constant(0.8)}, "settings": {"rollout.dtype": "bfloat16"}}, "rollout.dtype", {"columns": {"mismatch/ess": constant(0.95)}}),
    ],
    "evaluation too noisy": [
        ("grpo", {"judged": line(0.5, 0.52)}, "evaluation.sampled_prompts", {"judged": line(0.5, 0.7)}),
        ("sft", {"judged": line(0.0, 0.0)}, "evaluation.sampled_prompts", {"judged": line(0.0, 0.2)}),
    ],
}  # fmt: skip
ALSO = {"not finite": {"learning rate too high"}, "dead groups": {"learning rate too high", "truncation"}, "reward hacking": {"evaluation too noisy"}}  # may speak beside it


@pytest.mark.parametrize("rule, case", [(rule, i) for rule, cases in CASES.items() for i in range(len(cases))])
def test_a_rule_speaks_of_its_illness_alone(rule, case, tmp_path):
    kind, ill, key, nearly = CASES[rule][case]
    evidence = found(made(tmp_path / "ill", kind, **ill))
    assert {rule} <= evidence.keys() <= {rule} | ALSO.get(rule, set()), {name: e.figure for name, e in evidence.items()}
    seen = evidence[rule]
    assert 1 <= seen.first <= seen.last <= STEPS and len(seen.picture) and seen.figure and seen.cause and seen.value
    assert seen.key.startswith(("phases.", "model.")) and key in seen.key
    assert rule not in found(made(tmp_path / "nearly", kind, **nearly))


def test_every_rule_has_a_case():
    assert list(CASES) == [rule.name for rule in RULES]


@pytest.mark.parametrize("kind", ["grpo", "sft", "pretrain"])
def test_a_run_that_ails_nothing(kind, tmp_path):
    told_of = examine(read_run(made(tmp_path / "well", kind)))
    assert told_of.findings == []
    judged = {rule for _, rule in told_of.clear}
    assert judged == {rule.name for rule in RULES if kind in rule.phases}
    assert {why for _, _, why in told_of.not_judged} <= {"of grpo phases alone"}


def test_what_is_not_logged_is_not_judged(tmp_path):
    """No rule is clear whose keys are not there."""
    bare = examine(read_run(made(tmp_path / "bare", columns=dict.fromkeys(policy()) | {"reward/mean": line(0.3, 0.8)}, judged=None, heads=None, sigma=None)))
    reasons = {rule: why for _, rule, why in bare.not_judged}
    assert bare.findings == [] and [rule for _, rule in bare.clear] == ["learning rate too high"]
    for rule in RULES:
        if rule.name != "learning rate too high":
            assert "needs " in reasons[rule.name], reasons[rule.name]
            assert any(need in reasons[rule.name] for need in rule.needs), f"{rule.name} needs {rule.needs}, and says {reasons[rule.name]}"
    assert "objective.attention_entropy: {every: 10}" in reasons["attention collapse"]
    no_svd = made(tmp_path / "no_svd")
    file = no_svd / "metrics.jsonl"
    file.write_text(re.sub(r'"sigma": {.*}', '"sigma": {"head": [3.0, 1.0]}}', file.read_text()))
    assert "svd: true" in dict((rule, why) for _, rule, why in examine(read_run(no_svd)).not_judged)["σ out of tolerance"]
    first = made(tmp_path / "first", steps=4)
    assert all("needs" in why for _, rule, why in examine(read_run(first)).not_judged) and examine(read_run(first)).findings == []
    one_update = examine(read_run(made(tmp_path / "one", columns={"kl/k3": constant(0.0)})))
    assert "mini_batches" in dict((rule, why) for _, rule, why in one_update.not_judged)["ratio or KL drift"]
    young = examine(read_run(made(tmp_path / "young", "sft", steps=39, columns={"loss": constant(4.0)})))
    assert "needs loss of 40 steps, 39 have it" in dict((rule, why) for _, rule, why in young.not_judged)["idle"]
    free = examine(read_run(made(tmp_path / "free", loss="kl_cov")))
    assert "no clip" in dict((rule, why) for _, rule, why in free.not_judged)["clip saturation"]


def test_a_rule_is_a_function_of_the_columns(tmp_path):
    """Twice the same, and nothing is changed."""
    run = read_run(made(tmp_path / "run", columns={"kl/k3": line(0.01, 0.2)}))
    before = {name: series.all().copy() for name, series in run.series.items()}
    assert text(examine(run)) == text(examine(run))
    assert all(np.array_equal(values, run.series[name].all(), equal_nan=True) for name, values in before.items())


# ---- files ---------------------------------------------------------------------------------------------------------


def test_steps_that_are_told_twice(tmp_path):
    """A run that was resumed by hand from an older file: what is told last stands."""
    steps, values = np.array([1.0, 2, 3, 4, 3, 4, 5]), np.array([1.0, 2, 9, 9, 3, 4, 5])
    once = told_last(steps, values)
    assert once.steps.tolist() == once.values.tolist() == [1, 2, 3, 4, 5]
    assert len(told_last(np.zeros(0), np.zeros(0))) == 0
    folder = made(tmp_path / "run", columns={"kl/k3": line(0.01, 0.2)})
    whole = (folder / "metrics.jsonl").read_text()
    plain = text(examine(read_run(folder)))
    lines = whole.splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:70]).replace('"kl/k3": 0.', '"kl/k3": 3.') + whole)
    assert text(examine(read_run(folder))) == plain


def test_a_torn_last_line(tmp_path):
    folder = made(tmp_path / "run", columns={"kl/k3": line(0.01, 0.2)})
    plain = text(examine(read_run(folder)))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"phase": "grpo", "step": 101, "kl/')
    assert text(examine(read_run(folder))) == plain


def test_bad_input(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 1 and "there is no such folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1 and "it has no metrics.jsonl" in capsys.readouterr().err
    folder = made(tmp_path / "run")
    assert main([str(folder), str(folder)]) == 1 and "named twice" in capsys.readouterr().err
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("rubbish\n")
    assert main([str(folder)]) == 1 and "metrics.jsonl:106: not an object with phase, step" in capsys.readouterr().err
    (folder / "metrics.jsonl").write_text("")
    assert main([str(folder)]) == 0 and "no step yet: no findings" in capsys.readouterr().out
    made(tmp_path / "other", config=False)
    assert main([str(tmp_path / "other")]) == 0 and "evaluation.sampled_prompts in config.yaml" in capsys.readouterr().out
    for words in (["--interval", "0"], ["--watch", "--strict"], []):
        with pytest.raises(SystemExit) as exit:
            main([*words, str(folder)] if words else [])
        assert exit.value.code == 2


def test_a_run_of_nothing_but_null(tmp_path, capsys):
    folder = made(tmp_path / "run", columns={key: constant(float("nan")) for key in policy()}, judged=None, heads=constant(float("nan")), sigma=constant(float("nan")))
    assert main([str(folder)]) == 0
    told_of = capsys.readouterr().out
    assert "  not finite: grpo, steps 1 to 100\n" in told_of and "not finite in 100 steps" in told_of and "xxxx" in told_of
    assert main([str(folder), "--json"]) == 0 and "NaN" not in capsys.readouterr().out


# ---- what is said --------------------------------------------------------------------------------------------------


def test_text_and_exit_code(tmp_path, capsys):
    ill, well = made(tmp_path / "ill", columns={"length/truncated": line(0.02, 0.3)}), made(tmp_path / "well", "sft")
    assert main([str(ill), str(well)]) == 0
    told_of = capsys.readouterr().out
    assert f"{ill}: grpo 100 of 100: 1 finding\n" in told_of and f"{well}: sft 100 of 100: no findings\n" in told_of
    assert "  truncation: grpo, steps 76 to 100\n    27 % of the completions are cut at the length limit" in told_of
    assert re.search(r"^    ▁[▁▂▃▄▅▆▇█]{38}█  length/truncated, 0.02 to 0.3, steps 1 to 100$", told_of, re.MULTILINE)
    assert "    change: phases.grpo.rollout.max_new_tokens: 64, or rollout.mask_truncated: true (now 32)\n" in told_of
    assert "  clear in grpo: not finite, " in told_of and "not judged in sft: entropy collapse, " in told_of
    assert main([str(ill), "--strict"]) == 1 and main([str(well), "--strict"]) == 0
    capsys.readouterr()
    assert main([str(tmp_path), "--json"]) == 0  # a folder of runs
    first, second = json.loads(capsys.readouterr().out)["runs"]
    (finding,) = first["findings"]
    assert (finding["rule"], finding["phase"], finding["steps"], finding["key"]) == ("truncation", "grpo", [76, 100], "phases.grpo.rollout.max_new_tokens")
    assert finding["picture"][0] == [1.0, 0.02] and len(finding["picture"]) == 100 and second["findings"] == []
    judged = {(one["phase"], one["rule"]) for one in first["clear"] + first["not_judged"] + first["findings"]}
    assert judged == {("grpo", rule.name) for rule in RULES}


def test_pictures():
    flat = Column(np.arange(5.0), np.ones(5))
    assert sparkline(flat) == "▁▁▁▁▁"
    gap = Column(np.arange(3.0), np.array([0.0, np.nan, 1.0]))
    assert sparkline(gap) == "▁x█" and sparkline(gap, PLAIN) == "_x@"
    assert len(sparkline(Column(np.arange(1000.0), np.arange(1000.0)))) == 40
    assert [told(x) for x in (0.0341, 1.234, 341.2, 1e-7, float("nan"))] == ["0.034", "1.2", "341", "1e-07", "not finite"]


def environment(**more):
    import isentrope

    paths = [str(Path(isentrope.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def test_a_terminal_without_unicode(tmp_path):
    folder = made(tmp_path / "run", columns={"length/truncated": line(0.02, 0.3)})
    told_of = subprocess.run([sys.executable, "-m", "isentrope.doctor", folder], capture_output=True, env=environment(PYTHONIOENCODING="ascii"), timeout=120)
    assert told_of.returncode == 0 and told_of.stderr == b"" and re.search(rb"^    _[_.=+*#@-]{38}@  length/truncated", told_of.stdout, re.MULTILINE)


def test_watching(tmp_path):
    folder = made(tmp_path / "run", steps=60)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    process = subprocess.Popen([sys.executable, "-m", "isentrope.doctor", folder, "--watch", "--json", "--interval", "0.1"],
                               env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert json.loads(process.stdout.readline())["runs"][0]["findings"] == []
        with open(folder / "metrics.jsonl", "a") as file:
            for step in range(61, 100):
                record = json.loads(lines[-2]) | {"step": step, "length/truncated": 0.5}
                file.write(json.dumps(record) + "\n")
                file.flush()
                time.sleep(0.005)
        assert [one["rule"] for one in json.loads(process.stdout.readline())["runs"][0]["findings"]] == ["truncation"]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and errors == "" and rest == ""


# ---- pages ---------------------------------------------------------------------------------------------------------


def test_the_page_of_a_report_has_the_findings(tmp_path):
    ill, well = made(tmp_path / "ill", columns={"length/truncated": line(0.02, 0.3)}), made(tmp_path / "well", "sft")
    write_page([ill], tmp_path / "ill.html")
    page = (tmp_path / "ill.html").read_text()
    section = re.search(r'<section id="findings">.*?</section>', page, re.DOTALL)[0]
    assert section.count("<figure>") == 1 and "<svg viewBox" in section and ">truncation</a>" in section
    assert "phases.grpo.rollout.max_new_tokens" in section and "27 % of the completions are cut" in section and "clear in grpo" in section
    assert '<div id="term-truncation"><dt>truncation</dt>' in page and 'href="#findings"' in page
    write_page([well, ill], tmp_path / "both.html")
    both = re.search(r'<section id="findings">.*?</section>', (tmp_path / "both.html").read_text(), re.DOTALL)[0]
    assert "well" in both and "no findings" in both and both.count("<figure>") == 1


def test_docs_have_the_table_of_the_rules():
    page = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"
    if not page.exists():
        pytest.skip("no sources beside the tests")
    from isentrope.doctor.rates import rules_table

    shown = re.search(r"<!-- rules -->\n(.*?)\n<!-- end -->", page.read_text(), re.DOTALL)[1]
    assert shown.splitlines() == rules_table(), "python -m isentrope.doctor.rates --write docs/doctor.md"


def test_keys_that_rules_name_are_documented():
    metrics = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
    if not metrics.exists():
        pytest.skip("no sources beside the tests")
    for rule in RULES:
        assert all(f"`{need}`" in metrics.read_text() for need in rule.needs), rule.needs
