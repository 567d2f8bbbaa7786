"""isentrope pipeline: what the file may say, who answers, votes, handlers, costs, and what is resumed."""

import json
import os
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("yaml")
from isentrope import pipeline
from isentrope.pipeline import config, flops, run, scorers, stages
from isentrope.pipeline.document import Document, PipelineError
from isentrope.pipeline.plan import Planner
from isentrope.pipeline.trials import Trials

ROOT = Path(__file__).resolve().parents[2]
BUILD = os.environ.get("ISENTROPE_BUILD")
PROGRAM = os.path.abspath(os.path.join(BUILD, "bin", "isentrope")) if BUILD else shutil.which("isentrope")

FUNCTIONS = '''
CALLS = []
def letters(questions, examples, told):
    CALLS.append((list(questions), dict(told)))
    return [" ".join(question) for question in questions]
def votes(questions, examples, told):
    return [["b", "a", "", "a", "b", ""] for _ in questions]
def longest(prompts, answers, meta):
    return [None if not answer else len(answer) for answer in answers]
def several(questions, examples, told):
    return [["xx", "yyyy", "zzzz", ""] for _ in questions]
def last(questions, examples, told):
    return [question[-1:] for question in questions]
def add(questions, examples, told):
    return [str(sum(map(int, question.split("+")))) for question in questions]
def raises(questions, examples, told):
    raise KeyError("gone")
def few(questions, examples, told):
    return ["x"]
def numbers(questions, examples, told):
    return [3 for _ in questions]
'''


def written(folder, text, questions=3):
    (folder / "calls.py").write_text(FUNCTIONS)
    lines = [{"prompt": f"ab{i}", "answer": f"{i}", "note": [i]} for i in range(questions)]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = folder / "p.yaml"
    file.write_text(text + f"\ndata: {{path: {folder}/q.jsonl}}\nscorer: exact\ndir: {folder}/out\n")
    return file


@pytest.fixture(autouse=True)
def _own_calls():
    """calls.py is another file in each test."""
    yield
    import sys

    for name in [name for name in sys.modules if name in ("calls", "reward_calls")]:
        del sys.modules[name]


def outcomes(file, *overrides):
    made = config.read(file, overrides)
    runner = run.Runner(made)
    return made, runner.block(made.setting(), made.questions)


# ---- functions, votes, lists -------------------------------------------------------------------------------------------


def test_stages_are_given_the_answers_of_those_before(tmp_path):
    """A list in a list: its {question} is what its own prompt says, its answer is its last stage's."""
    file = written(tmp_path, """
pipeline:
  - {name: spread, function: "calls.py:letters", prompt: "{{{question}}}", flops: {once: 5, each: 2}}
  - name: inner
    prompt: "{spread}/{question}"
    stages:
      - {name: end, function: "calls.py:last"}
      - {name: both, function: "calls.py:letters", prompt: "{question}{end}"}
  - {name: pick, function: "calls.py:last", prompt: "{spread}{question}"}
""")  # fmt: skip
    made, found = outcomes(file)
    assert [stage.path for stage in made.all] == ["spread", "inner.end", "inner.both", "pick"]
    assert [one.answer for one in found] == ["0", "1", "2"] and [one.score for one in found] == [1.0, 1.0, 1.0]
    said = {entry["stage"]: entry["answer"] for entry in found[1].trace}
    assert said == {"spread": "{ a b 1 }", "inner.end": "1", "inner.both": "{   a   b   1   } / a b 1 1", "pick": "1"}
    assert found[0].meter.flops == 7.0


def test_the_commonest_answer_is_taken_and_of_equals_the_first():
    assert scorers.vote(["b", "a", "", "a", "b", ""]) == "b"
    assert scorers.vote(["", "", "c"]) == "c", "no answer is none, however common"
    assert scorers.vote(["", ""]) == "" and scorers.vote(["a", "b", "b"]) == "b"


def test_the_best_by_a_scorer_is_taken(tmp_path):
    file = written(tmp_path, 'pipeline: [{name: a, function: "calls.py:several", samples: 4, select: best, scorer: "calls.py:longest"}]')
    _, found = outcomes(file)
    assert found[0].answer == "yyyy"
    assert scorers.best([None, 0.0, None], ["a", "b", "c"]) == "b" and scorers.best([None, None], ["a", "b"]) == "a"


@pytest.mark.parametrize("text, value", [
    ("so 1,250 and then 12", Fraction(12)), ("= 1,250.", Fraction(1250)), ("-2.50", Fraction(-5, 2)), ("7/2;", Fraction(7, 2)), ("5/0", Fraction(5)), ("none", None),
])  # fmt: skip
def test_number_in(text, value):
    assert scorers.number_in(text) == value


def test_scorers():
    examples = [{"answer": "7"}, {"answer": "7.0"}, {"answer": "x"}, {}]
    assert scorers.exact([""] * 4, [" 7\n", "7", "x", "7"], examples) == [1.0, 0.0, 1.0, None]
    assert scorers.number([""] * 4, ["it is 7", "7", "3", "7"], examples) == [1.0, 1.0, None, None]


@pytest.mark.parametrize("extract, text, answer", [
    ("", "  a b\n", "a b"), ("A(-?[0-9]+)", "A1 then A-22.", "-22"), ("[0-9]+", "1 22", "22"), ("A(.)", "none", ""), ("A(x)?", "A", ""),
])  # fmt: skip
def test_what_of_a_text_is_the_answer(extract, text, answer):
    stage = stages.Stage("a", "", "prompt", "", extract=re.compile(extract) if extract else None)
    assert stage.extracted(text) == answer


def test_functions_are_told_the_setting(tmp_path):
    file = written(tmp_path, 'pipeline: [{name: a, function: "calls.py:letters", model: big, samples: 3, max_new_tokens: 9}]')
    outcomes(file)
    import sys

    (questions, told), = sys.modules["calls"].CALLS
    assert questions == ["ab0", "ab1", "ab2"]
    assert told == {"stage": "a", "model": "big", "samples": 3, "max_new_tokens": 9, "seed": config.named_seed(1, "draw", 0, "a")}
    assert config.named_seed(1, "draw", 0, "a") != config.named_seed(2, "draw", 0, "a") != config.named_seed(2, "draw", 3, "a")


# ---- models ------------------------------------------------------------------------------------------------------------


def scripted(monkeypatch, answers):
    """Models that say what answers(prompt, sample) says, a token a letter."""
    asked = []

    def sample(self, stage, choice, rows, prompts, samples, seed):
        asked.append((stage.path, choice, list(prompts), samples, seed))
        return [[run.Drawn(text, len(text), len(prompt)) for text in (answers(prompt, i) for i in range(samples))] for prompt in prompts]

    monkeypatch.setattr(run.Runner, "_sample", sample)
    monkeypatch.setattr(run.Model, "size", flops.Size(100, 8, (0, 0)))
    monkeypatch.setattr(run.Model, "tokens", lambda self, text, whole=False: len(text))
    return asked


def test_a_model_with_handlers(tmp_path, monkeypatch):
    """Its lines call handlers until one calls none; #n is the n-th answer; a handler may be a list of stages."""
    lines = {0: "[add] 1+2", 1: "[add] #1+10", 2: "[tail] #2", 3: "[nobody] x", 4: "so #9 [EOQ]"}
    asked = scripted(monkeypatch, lambda prompt, i: lines[(prompt.count("\n") - 1) // 2] + "\n")
    file = written(tmp_path, """
pipeline:
  - name: solve
    model: m
    prompt: "Q: {question}\\n"
    max_new_tokens: 10
    samples: 2
    handlers:
      add: {function: "calls.py:add", flops: {each: 1000}}
      tail: {stages: [{name: wide, function: "calls.py:letters"}, {name: end, function: "calls.py:last", prompt: "{wide}"}]}
""", 2)  # fmt: skip
    made, found = outcomes(file)
    assert [stage.path for stage in made.all] == ["solve", "solve.add", "solve.tail.wide", "solve.tail.end"]
    assert found[0].answer == "so #9" and found[0].meter.errors == 2
    whole = "[add] 1+2\n3\n[add] #1+10\n13\n[tail] #2\n3\n[nobody] x\n?\nso #9 [EOQ]\n"
    assert next(entry for entry in found[0].trace if entry["stage"] == "solve.calls")["transcripts"] == [whole, whole]
    assert len(asked) == 5 and all(len(prompts) == 4 for _, _, prompts, _, _ in asked), "a turn of all questions and samples is one call"
    assert len({seed for *_, seed in asked}) == 5
    prompts = [len(asked[turn][2][0]) for turn in range(5)]
    of_model = sum(flops.Size(100, 8, (0, 0)).flops(prompt, 1, len(lines[turn]) + 1) for turn, prompt in enumerate(prompts))
    assert found[0].meter.flops == pytest.approx(2 * (of_model + 2 * 1000))
    assert outcomes(file, "pipeline.solve.turns=2")[1][0].answer == "13", "at the limit the last answer of a handler"


def test_calls_end_at_a_line_without_one():
    row = run.Row("", None, run.Meter(), [])
    stage = stages.Stage("s", "", "prompt", "", handlers={"f": stages.Stage("s.f", "", "function", "")})
    chain = run.Chain(row, "")
    assert chain.said("[f] a #1", stage) == ("f", "a #1"), "#1 before there is an answer stays"
    chain.answered("A")
    assert chain.said("[EOQ]", stage) is None and chain.over and chain.answer == "A"
    chain = run.Chain(row, "")
    assert chain.said("42", stage) is None and chain.over and chain.answer == "42"


def test_equal_draws_are_made_once(tmp_path, monkeypatch):
    asked = scripted(monkeypatch, lambda prompt, i: "abc"[i % 3])
    file = written(tmp_path, 'pipeline: [{name: a, model: m, prompt: "{question}", max_new_tokens: 5, samples: 3}, {name: b, model: m, prompt: "{a}", max_new_tokens: [2, 4]}]')
    made = config.read(file)
    runner = run.Runner(made)
    for setting in made.settings():
        runner.block(setting, made.questions)
    assert [one[0] for one in asked] == ["a", "b", "b"]


# ---- costs ----------------------------------------------------------------------------------------------------------------


def test_flops_by_hand():
    """One prompt of 3 tokens, then 2 answers of 2: 2 N (3 + 4); pairs 6 of the prompt, 4 + 5 of each answer, in both layers."""
    size = flops.Size(100, 8, (0, 0))
    assert size.flops(3, 2, 2) == 2 * 100 * 7 + 4 * 8 * 2 * (6 + 2 * 9)
    assert flops.Size(100, 8, (2,)).flops(3, 2, 2) == 2 * 100 * 7 + 4 * 8 * (5 + 2 * 4), "a window of 2"
    assert flops.pairs(4, 2) == 1 + 2 + 2 + 2 and flops.pairs(4) == 10
    costs = flops.Costs({"": 5.0}, {"a": 1.0, "b": 2.0}, {"": 0.5})
    assert costs.flops("b", 3, 4) == 5 + 3 * (2 + 0.5 * 4)


def test_what_a_setting_costs_at_most(tmp_path, monkeypatch):
    """Answers of earlier stages count as long as they may be, turns of handlers all."""
    scripted(monkeypatch, lambda prompt, i: "")
    file = written(tmp_path, """
pipeline:
  - {name: a, model: m, prompt: "x{question}", max_new_tokens: 5, samples: 3}
  - {name: b, model: m, prompt: "{a}{a}", max_new_tokens: 2, turns: 2, handlers: {f: {function: "calls.py:last", flops: {each: 7}}}}
  - {name: c, function: "calls.py:last", flops: {once: 1, token: 2}, max_new_tokens: 6, samples: 4}
""")  # fmt: skip
    made = config.read(file)
    size = flops.Size(100, 8, (0, 0))
    found = Planner(made, run.Runner(made)).of_stages(made.setting())
    assert found == {"a": size.flops(4, 3, 5), "b": size.flops(10, 1, 2) + size.flops(14, 1, 2) + 2 * 7, "c": 1 + 4 * 2 * 6}


# ---- a model of the trainer ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    if not PROGRAM or not os.path.exists(PROGRAM):
        pytest.skip("no trainer in this build")
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "configs").symlink_to(ROOT / "configs")
    told = subprocess.run([PROGRAM, "train", "configs/tiny/sft.yaml", "--quiet"], cwd=folder, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return folder


def command(folder, *words, code=0):
    told = subprocess.run([PROGRAM, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert told.returncode == code, told.stderr
    return told


def test_the_size_of_a_model(tiny):
    """2 layers of 32 with 4 heads and 2 of keys of 8, an MLP of 64, a tied head of 25 tokens; norms and embeddings count nothing."""
    size = flops.size_of(str(tiny / "runs/tiny_sft"))
    layer = 32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 64
    assert size == flops.Size(2 * layer + 25 * 32, 32, (0, 0))
    with pytest.raises(PipelineError, match="nothing: there is no such folder"):
        flops.size_of(str(tiny / "nothing"))


def test_the_command_runs_a_model_and_goes_on_where_it_was(tiny):
    words = ["pipeline", "configs/pipelines/sums.yaml", "block=16", "data.count=40"]
    first = command(tiny, *words)
    out = tiny / "runs/pipeline_sums"
    answers, blocks, result = ((out / name).read_bytes() for name in ("answers.jsonl", "blocks.jsonl", "result.json"))
    found = [json.loads(line) for line in answers.splitlines()]
    assert [one["question"] for one in found] == list(range(40)) and len(blocks.splitlines()) == 3
    told = json.loads(result)
    assert told["right"] == sum(one["score"] >= 0.5 for one in found) and told["questions"] == 40
    assert told["flops"] == pytest.approx(sum(one["flops"] for one in found) / 40) and told["flops"] <= told["planned_flops"]
    # A killed command: two blocks and a part of a line are left. The draws of a block do not depend on those before.
    lines = blocks.splitlines(keepends=True)
    (out / "blocks.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:50])
    (out / "answers.jsonl").unlink()
    again = command(tiny, *words)
    assert (out / "answers.jsonl").read_bytes() == answers
    assert first.stdout.splitlines()[:3] == again.stdout.splitlines()[:3]
    # The model's answers are those of isentrope sample under the seed of their name.
    seed = config.named_seed(1, "draw", 16, "draft")
    prompts = "\n".join(one["text"] for one in found[16:32])
    drawn = subprocess.run([PROGRAM, "sample", "runs/tiny_sft", "--prompts", "-", "--json", "--samples", "4", "--temperature", "0.7", "--max-new-tokens", "24", "--seed", str(seed)],
                           cwd=tiny, input=prompts, capture_output=True, text=True)  # fmt: skip
    texts = [json.loads(line)["completion"] for line in drawn.stdout.splitlines()]
    assert [text for one in found[16:32] for text in one["stages"][0]["samples"]] == texts


def test_dry_run_answers_nothing(tiny, monkeypatch, capsys):
    monkeypatch.chdir(tiny)
    assert pipeline.main(["configs/pipelines/sums.yaml", "dir=runs/dry", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "48 questions, scorer number" in said and "draft" in said and not (tiny / "runs/dry").exists()


@pytest.mark.parametrize("word, message", [
    ("pipeline.draft.model=runs/nobody", "runs/nobody: there is no such folder"),
    ("pipeline.draft.prompt=x{question}", "configs/pipelines/sums.yaml"),
    ("pipeline.draft.samples=[1, 2]", "is a list to choose from; wanted one value, or: isentrope budget"),
])  # fmt: skip
def test_what_the_model_cannot_do_is_told(tiny, monkeypatch, capsys, word, message):
    monkeypatch.chdir(tiny)
    assert pipeline.main(["configs/pipelines/sums.yaml", "dir=runs/wrong", word]) == 1
    said = capsys.readouterr().err
    assert message in said and ("'x'" in said or "prompt" not in word), said


# ---- what is refused ------------------------------------------------------------------------------------------------------

FUNCTION = '{name: a, function: "calls.py:last"}'


@pytest.mark.parametrize("text, message", [
    ("pipeline: 3", "p.yaml:1: pipeline is 3; wanted a list of stages"),
    ("pipeline: []", "is a list; wanted a list of stages"),
    ("pipeline:\n  - {name: a}", r"p.yaml:2: pipeline.a has no prompt"),
    ("pipeline:\n  - {name: question, prompt: x}", "name is 'question'; wanted letters"),
    (f"pipeline: [{FUNCTION}, {FUNCTION}]", "is 'a', which another stage of the list has"),
    ('pipeline: [{name: a, prompt: "{b}", function: "calls.py:last"}]', r"names \{b\}, which is no earlier stage"),
    ('pipeline: [{name: draft, function: "calls.py:last"}, {name: b, prompt: "{darft}", function: "calls.py:last"}]', "did you mean 'draft'"),
    ('pipeline: [{name: a, prompt: "{x!r}", function: "calls.py:last"}]', "is no template"),
    ('pipeline: [{name: a, prompt: "{", function: "calls.py:last"}]', "is no template"),
    ('pipeline: [{name: a, prompt: x, model: m}]', "has no max_new_tokens"),
    ('pipeline: [{name: a, prompt: x, max_new_tokens: 4}]', "has no model"),
    ('pipeline: [{name: a, model: m, prompt: x, max_new_tokens: 4, tempreature: 1}]', "tempreature is no key of this place; did you mean 'temperature'"),
    ('pipeline: [{name: a, model: m, prompt: x, max_new_tokens: 0}]', "max_new_tokens is 0; wanted a whole number from 1 on"),
    ('pipeline: [{name: a, model: m, prompt: x, max_new_tokens: 4, samples: [2, 2]}]', "samples holds 2 twice"),
    ('pipeline: [{name: a, model: m, prompt: x, max_new_tokens: 4, samples: true}]', "samples is True; wanted a whole number"),
    ('pipeline: [{name: a, model: m, prompt: x, max_new_tokens: 4, system: y}]', "system is for a stage with chat: true"),
    ('pipeline: [{name: a, model: m, prompt: x, max_new_tokens: 4, turns: 3}]', "turns is for a stage with handlers"),
    ('pipeline: [{name: a, model: m, prompt: x, max_new_tokens: 4, extract: "("}]', "no regular expression"),
    ('pipeline: [{name: a, function: "calls.py:last", samples: 2, select: first}]', "takes one sample of several"),
    ('pipeline: [{name: a, function: "calls.py:last", select: vot}]', "did you mean 'vote'"),
    ('pipeline: [{name: a, function: "calls.py:last", select: best}]', "has no scorer"),
    ('pipeline: [{name: a, function: "calls.py:lst"}]', "there is no lst in .*calls.py; did you mean last"),
    ('pipeline: [{name: a, function: "gone.py:last"}]', "there is no file .*gone.py"),
    ('pipeline: [{name: a, function: last}]', "wanted MODULE:FUNCTION or FILE.py:FUNCTION"),
    ('pipeline: [{name: a, function: "calls.py:last", stages: []}]', "has several of function, stages and handlers"),
    ('pipeline: [{name: a, function: "calls.py:last", model: [x, y], flops: {each: {x: 1}}}]', "each has no number for y"),
    (f"pipeline: [{FUNCTION}]\nbudget: {{trials: 3}}", "budget has no flops"),
    (f"pipeline: [{FUNCTION}]\nbudget: {{flops: 1, search: [guess]}}", "holds 'guess'"),
    (f"pipeline: [{FUNCTION}]\nbudget: {{flops: 1, questions: 2, confirm: 2}}", "confirm is 2: with questions 4 in all, and the data have 3"),
    (f"pipeline: [{FUNCTION}]\nseed: -1", "seed is -1; wanted a whole number from 0 on"),
    (f"pipeline: [{FUNCTION}]\nseeed: 1", "seeed is no key of this place; did you mean 'seed'"),
    (f"pipeline: [{FUNCTION}]\npipeline: 3", "pipeline is given twice"),
    ("pipeline: [", "is no YAML"),
])  # fmt: skip
def test_a_wrong_file_is_told_with_its_place(tmp_path, text, message):
    file = written(tmp_path, text)
    with pytest.raises(PipelineError, match=message):
        config.read(file)


@pytest.mark.parametrize("word, message", [
    ("seed", "wanted KEY.PATH=VALUE"), ("pipeline.b.samples=2", "pipeline has no 'b'"), ("seed.x=1", None), ("pipeline.a.samples=0", "'pipeline.a.samples=0' on the command line: pipeline.a.samples is 0"),
    ("scorer=exakt", "is 'exakt'; wanted exact, number"), ("data.path=none.jsonl", "cannot be read"), ("data.first=3", "has 3 questions; data.first 3"),
    ("data.question_key=note", r"note is \[0\]; wanted a text"), ("data={reasoning_gym: {task: chain_som}}", "did you mean 'chain_sum'"),
])  # fmt: skip
def test_a_wrong_override_is_told(tmp_path, word, message):
    if "reasoning_gym" in word:
        pytest.importorskip("reasoning_gym")
    file = written(tmp_path, f"pipeline: [{FUNCTION}]")
    with pytest.raises(PipelineError, match=message):
        config.read(file, [word])


@pytest.mark.parametrize("name, message", [
    ("raises", "pipeline.a: its function raised KeyError: 'gone'"), ("few", "wanted a list of 3 answers, one for each question"), ("numbers", "returned the answer 3; wanted a text"),
])  # fmt: skip
def test_a_function_that_does_not_answer_is_told(tmp_path, capsys, name, message):
    file = written(tmp_path, f'pipeline: [{{name: a, function: "calls.py:{name}"}}]')
    assert pipeline.main([str(file)]) == 1
    assert message in capsys.readouterr().err


def test_other_code_weights_or_questions_are_measured_anew(tmp_path):
    def fresh(file, *words):
        import sys

        sys.modules.pop("calls", None)
        made = config.read(file, words)
        trials = Trials(made, run.Runner(made), tmp_path / "trials.jsonl")
        trials.measure(made.settings()[0], 0, len(made.questions))
        return trials.fresh

    file = written(tmp_path, f"pipeline: [{FUNCTION}]")
    assert [fresh(file), fresh(file), fresh(file, "pipeline.a.samples=[1, 2]"), fresh(file, "pipeline.a.samples=[2, 1]"), fresh(file, "seed=2"), fresh(file, "block=2")] == [1, 0, 0, 1, 1, 2]
    (tmp_path / "calls.py").write_text(FUNCTIONS + "\n# another\n")
    assert fresh(file) == 1
    (tmp_path / "q.jsonl").write_text((tmp_path / "q.jsonl").read_text().replace("ab0", "xy0"))
    assert fresh(file) == 1


def test_questions_of_reasoning_gym(tmp_path):
    pytest.importorskip("reasoning_gym")
    file = written(tmp_path, f"pipeline: [{FUNCTION}]")
    made = config.read(file, ["data={reasoning_gym: {task: chain_sum, size: 5, min_terms: 2}}", "scorer=reasoning_gym"])
    assert len(made.questions) == 5
    right = [one.example["answer"] for one in made.questions]
    assert made.scorer.scores([one.text for one in made.questions], right, [one.example for one in made.questions]) == [1.0] * 5


def test_the_yaml_of_the_page_is_read(tmp_path):
    """docs/pipelines.md: whole files as `isentrope pipeline` reads them, but for folders of models."""
    found = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/pipelines.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    for name in ("planted.py", "sums.py"):
        shutil.copy(ROOT / "configs/pipelines" / name, tmp_path)
    for text in found:
        file = tmp_path / "shown.yaml"
        file.write_text(text if "data:" in text else text + f"\ndata: {{path: {ROOT}/configs/pipelines/sums.jsonl}}\nscorer: exact\n")
        if "reasoning_gym" in text:
            pytest.importorskip("reasoning_gym")
        here = os.getcwd()
        os.chdir(ROOT)
        try:
            assert config.read(file).all
        finally:
            os.chdir(here)


def test_a_document_names_lines(tmp_path):
    (tmp_path / "d.yaml").write_text("a:\n  - name: x\n    b: 1\n  - {c: 2}\n")
    document = Document(tmp_path / "d.yaml", ["a.x.b=3"])
    assert document.value == {"a": [{"name": "x", "b": 3}, {"c": 2}]}
    assert document.place("a.1.c") == f"{tmp_path}/d.yaml:4: a.1.c" and document.place("a.x.b") == "'a.x.b=3' on the command line: a.x.b"
