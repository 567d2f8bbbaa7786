"""isentrope budget: which settings a budget allows, what searches find where the best is known, what is resumed and refused."""

import itertools
import json
import random

import pytest

yaml = pytest.importorskip("yaml")
from test_pipelines import ROOT, written

from isentrope import budget, pipeline
from isentrope.budget import search
from isentrope.budget.space import Space
from isentrope.pipeline import config
from isentrope.pipeline.document import PipelineError
from isentrope.pipeline.flops import Costs
from isentrope.pipeline.stages import Choice, Stage

SAMPLES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96)
QUALITY = {"7b": (0.22, 0.80), "32b": (0.45, 0.90), "72b": (0.60, 0.94), "3b": (0.30, 0.86), "8b": (0.40, 0.88), "70b": (0.50, 0.90)}


def planted_stage(name, models, prompt, drawn):
    """Costs of AgentTTS: in samples of 64 tokens of a model of 3b, M (N_p + S N_d) / (M_s 64), less 2."""
    numbers = {model: int(model[:-1]) for model in models}
    return Stage(name, "", "function", "", models, SAMPLES, costs=Costs(
        {model: size * prompt / 192 - 2 for model, size in numbers.items()}, {model: size * drawn / 192 for model, size in numbers.items()}, {"": 0.0}))  # fmt: skip


STAGES = [planted_stage("one", ("7b", "32b", "72b"), 2048, 128), planted_stage("two", ("3b", "8b", "70b"), 256, 64)]
ALL = [dict(zip(("one", "two"), choices)) for choices in itertools.product(*(stage.choices for stage in STAGES))]


def cost(setting):
    return sum(stage.costs.flops(*setting[stage.path]) for stage in STAGES)


def quality(setting):
    """Product over the stages of cap (1 - (1 - p)^S)."""
    found = 1.0
    for choice in setting.values():
        p, cap = QUALITY[choice.model]
        found *= cap * (1 - (1 - p) ** choice.samples)
    return found


def test_costs_are_those_of_the_paper():
    assert STAGES[0].costs.flops("72b", 1, 0) == 814 and STAGES[1].costs.flops("70b", 1, 0) == pytest.approx(114.6667, abs=1e-4)
    assert STAGES[0].costs.flops("7b", 20, 0) == 166 and STAGES[1].costs.flops("3b", 50, 0) == 52


@pytest.mark.parametrize("flops, allowed, one, two, accuracy", [  # by exhaustion, elsewhere
    (300, 178, ("7b", 32), ("8b", 24), 0.703749), (600, 377, ("32b", 8), ("8b", 24), 0.785365),
    (900, 518, ("32b", 12), ("70b", 8), 0.806218), (1200, 640, ("72b", 8), ("8b", 12), 0.824858),
])  # fmt: skip
def test_what_a_budget_allows(flops, allowed, one, two, accuracy):
    space = Space(STAGES, ALL, cost, flops)
    best = max(space.settings, key=quality)
    assert len(ALL) == 1089 and len(space) == allowed
    assert (best["one"][:2], best["two"][:2]) == (one, two) and quality(best) == pytest.approx(accuracy, abs=1e-6)
    assert max(space.costs) <= flops and space.find({"one": Choice("72b", 96, 0), "two": Choice("70b", 96, 0)}) is None


def spent(space, name, trials, seed, accuracy, questions=50):
    """The setting that a search finds, and the purse that it leaves."""
    purse = search.Purse(accuracy, trials * questions)
    search.SEARCHES[name](space, purse, search.Plan(trials, questions, 17, 9), random.Random(f"{name}{seed}"))
    assert purse.left >= 0 and sum(purse.asked.values()) == trials * questions - purse.left
    return purse.ranked(questions, space)[0], purse


def test_guided_halving_finds_the_best_that_there_is():
    """377 settings, of which each search may measure 20: guided halving finds the very best whatever the seed, the others seldom do."""
    space = Space(STAGES, ALL, cost, 600)
    values = [quality(setting) for setting in space.settings]
    best = max(range(len(space)), key=values.__getitem__)
    found = {name: [spent(space, name, 20, seed, lambda place, count: values[place])[0] for seed in range(10)] for name in search.SEARCHES}
    regret = {name: max(values) - sum(values[place] for place in own) / 10 for name, own in found.items()}
    assert found["guided"] == [best] * 10
    assert regret["guided"] == 0 < regret["grid"] and regret["random"] > 0.02


def test_guided_halving_loses_less_where_answers_are_noise():
    """Right with that probability, 50 questions a whole trial: mean regret of 40 runs, 20 trials each."""
    regret = {}
    for flops in (600, 900):
        space = Space(STAGES, ALL, cost, flops)
        values = [quality(setting) for setting in space.settings]
        for name in ("guided", "random"):
            lost = 0.0
            for seed in range(40):
                noise, outcomes = random.Random(seed), {}

                def accuracy(place, count, noise=noise, outcomes=outcomes):
                    own = outcomes.setdefault(place, [noise.random() < values[place] for _ in range(50)])
                    return sum(own[:count]) / count

                lost += max(values) - values[spent(space, name, 20, seed, accuracy)[0]]
            regret[flops, name] = lost / 40
    assert regret[600, "guided"] < 0.85 * regret[600, "random"] and regret[900, "guided"] < 0.7 * regret[900, "random"], regret


def test_searches_measure_what_they_say():
    space = Space(STAGES, ALL, cost, 600)
    values = [quality(setting) for setting in space.settings]
    _, purse = spent(space, "random", 20, 0, lambda place, count: values[place])
    assert len(set(purse.order)) == 20 and set(purse.asked.values()) == {50} and purse.order != sorted(purse.order)
    assert spent(space, "random", 20, 0, lambda place, count: values[place])[1].order == purse.order != spent(space, "random", 20, 1, lambda place, count: 0)[1].order
    _, purse = spent(space, "grid", 3, 0, lambda place, count: values[place])
    assert purse.order == [377 // 6, 3 * 377 // 6, 5 * 377 // 6]
    _, purse = spent(space, "guided", 20, 0, lambda place, count: values[place])
    assert purse.order[: len(space.seeds())] == space.seeds() and set(purse.asked.values()) == {17, 50}
    few = Space(STAGES, ALL, cost, 100)
    for name in search.SEARCHES:
        assert sorted(spent(few, name, 500, 0, lambda place, count: quality(few.settings[place]))[1].order) == list(range(len(few))), "all where there are no more"


def test_seeds_and_steps():
    """Each model of a stage beside one sample of the other's dearest; a step changes one stage, or moves samples from one to another."""
    space = Space(STAGES, ALL, cost, 600)
    seeds = [space.settings[place] for place in space.seeds()]
    assert {setting["one"].model for setting in seeds} == {"7b", "32b"} and {setting["two"].model for setting in seeds} == {"3b", "8b", "70b"}, "72b costs 814"
    place = space.find({"one": Choice("32b", 8, 0), "two": Choice("8b", 24, 0)})
    beside = [space.settings[one] for one in space.beside(place)]
    assert {"one": Choice("32b", 4, 0), "two": Choice("8b", 24, 0)} in beside and {"one": Choice("32b", 8, 0), "two": Choice("8b", 16, 0)} in beside
    assert {"one": Choice("7b", 96, 0), "two": Choice("8b", 24, 0)} in beside, "another model with all the samples that are paid"
    assert {"one": Choice("32b", 12, 0), "two": Choice("8b", 1, 0)} not in beside and place not in space.beside(place)
    assert all(cost(setting) <= 600 for setting in beside)
    exchanged = [setting for setting in beside if setting["one"] == Choice("32b", 12, 0)]
    assert exchanged == [] or all(setting["two"].samples < 24 for setting in exchanged)


# ---- the command: three keys of one stage, of which the best is known ------------------------------------------------------

PLANTED = '''
def answer(questions, examples, told):
    """Right for so many of 40 questions: small by samples alone, large by length too; 4 samples are all that help."""
    right = {"small": 10, "large": 20}[told["model"]] + {1: 0, 2: 4, 4: 8, 8: 8}[told["samples"]] + (6 if told["max_new_tokens"] == 32 else 0)
    return [[example["answer"] if 7 * example["number"] % 40 < right else ""] * told["samples"] for example in examples]
'''
TEXT = """
pipeline:
  - name: solve
    function: planted_here.py:answer
    model: [small, large]
    samples: [1, 2, 4, 8]
    max_new_tokens: [16, 32]
    flops: {token: {small: 1, large: 3}}
block: 8
budget: {flops: 400, trials: 8, questions: 40, confirm: 40, batch: 6}
"""


@pytest.fixture
def planted(tmp_path):
    import sys

    sys.modules.pop("planted_here", None)
    (tmp_path / "planted_here.py").write_text(PLANTED)
    return written(tmp_path, TEXT, questions=80)


def test_the_command_finds_the_best_allocation(planted, tmp_path, capsys):
    """Of 16 settings 15 cost at most 400; the best of them is large with 4 samples of 32 tokens, 34 of 40 right, for 384."""
    assert budget.main([str(planted)]) == 0
    said = capsys.readouterr().out
    told = json.loads((tmp_path / "out/budget.json").read_text())
    assert told["settings"] == 16 and told["allowed"] == 15 and "16 settings, 15 within 400 FLOP a question" in said
    assert [one["search"] for one in told["searches"]] == ["guided", "random", "grid"]
    guided = told["searches"][0]
    assert guided["setting"] == {"solve": {"model": "large", "samples": 4, "max_new_tokens": 32}} and guided["planned_flops"] == 384
    assert guided["seen"]["right"] == 34 and guided["fresh"]["right"] == 34 and guided["fresh"]["questions"] == 40
    assert guided["seen"]["flops"] == 384 and guided["spent"]["questions"] <= 320
    assert guided["spent"]["flops"] == sum(one["flops"] * one["questions"] for one in guided["measured"])
    assert all(one["spent"]["questions"] == 320 for one in told["searches"][1:])
    assert "| guided | solve: large × 4, 32 tokens | 384 FLOP | 384 FLOP | 85.0 [" in (tmp_path / "out/budget.md").read_text()
    # What was found is a pipeline of its own, run from anywhere.
    best = yaml.safe_load((tmp_path / "out/best.yaml").read_text())
    assert best["pipeline"][0] | {"model": "large", "samples": 4, "max_new_tokens": 32, "flops": {"token": 3}} == best["pipeline"][0] and "budget" not in best
    assert pipeline.main([str(tmp_path / "out/best.yaml")]) == 0
    assert "68 of 80 by exact" in capsys.readouterr().out


def test_a_killed_search_goes_on_and_finds_the_same(planted, tmp_path, capsys):
    assert budget.main([str(planted)]) == 0
    whole = (tmp_path / "out/budget.json").read_text()
    lines = (tmp_path / "out/trials.jsonl").read_bytes().splitlines(keepends=True)
    assert budget.main([str(planted)]) == 0 and "0 blocks were measured now" in capsys.readouterr().out
    (tmp_path / "out/trials.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])  # a line half written
    (tmp_path / "out/budget.json").unlink()
    assert budget.main([str(planted)]) == 0
    assert f"{len(lines) - 5} blocks were measured now" in capsys.readouterr().out

    def without_time(text):
        value = json.loads(text)
        for one in value["searches"]:
            for part in (one["seen"], one["fresh"], one["spent"], *one["measured"]):
                part.pop("seconds")
        return value

    assert without_time((tmp_path / "out/budget.json").read_text()) == without_time(whole)
    # A smaller budget takes what is there: nothing is measured that was.
    before = {json.loads(line)["key"] for line in (tmp_path / "out/trials.jsonl").read_bytes().splitlines()}
    assert budget.main([str(planted), "budget.flops=200", "budget.search=guided"]) == 0
    after = [json.loads(line)["key"] for line in (tmp_path / "out/trials.jsonl").read_bytes().splitlines()]
    assert len(after) == len(set(after)) and before < set(after) | before
    assert json.loads((tmp_path / "out/budget.json").read_text())["searches"][0]["planned_flops"] <= 200


@pytest.mark.parametrize("words, message", [
    (["budget.flops=10"], "budget.flops is 10; the cheapest of 16 settings costs 16 a question at most"),
    (["pipeline.solve.model=small", "pipeline.solve.samples=1", "pipeline.solve.max_new_tokens=16"], "no stage has anything to choose"),
    (["budget.questions=90"], "budget.questions is 90: with questions 130 in all, and the data have 80"),
    (["budget="], "has no budget; wanted budget: {flops:"),
])  # fmt: skip
def test_the_command_refuses(planted, capsys, words, message):
    assert budget.main([str(planted), *words]) == 1
    assert message in capsys.readouterr().err


def test_too_many_settings_are_refused(planted):
    many = [f"pipeline.solve.samples={list(range(1, 500))}", f"pipeline.solve.max_new_tokens={list(range(1, 500))}"]
    with pytest.raises(PipelineError, match="498002 settings; wanted at most 200000"):
        config.read(planted, many).settings()


def test_dry_run_measures_nothing(planted, tmp_path, capsys):
    assert budget.main([str(planted), "--dry-run"]) == 0
    assert "from 16 FLOP to 384 FLOP" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_what_is_shipped_finds_a_setting_beside_the_best(tmp_path, monkeypatch, capsys):
    """configs/pipelines/planted.yaml: the best of 377 is right for 78.54 % of the questions."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert budget.main(["configs/pipelines/planted.yaml", "budget.search=guided"]) == 0
    told = json.loads((tmp_path / "runs/budget_planted/budget.json").read_text())
    found = {path: Choice(one["model"], one["samples"], 0) for path, one in told["searches"][0]["setting"].items()}
    assert told["allowed"] == 377 and quality(found) > 0.78
    assert "377 within 604 FLOP" in capsys.readouterr().out
