"""`isentrope diagnose`: the measures' names and options, one pass for all, files, the page, and what is said of bad input."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
import diagnose_models as made
from isentrope import diagnose
from isentrope.diagnose import main, options_of, registry
from isentrope.diagnose.data import Data, batches
from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.folder(tmp_path_factory.mktemp("model") / "tiny")


# ---- names and options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names())
def test_each_measure_tells_itself(name):
    kind = registry.named(name)
    assert kind.NAME == name and kind.WHAT and "\n" not in kind.WHAT
    assert kind.NEEDS <= {"hidden", "attention", "bound", "tokens", "mixers"}
    assert all(isinstance(option, Option) and option.meaning for option in kind.OPTIONS.values())


def test_the_list_has_a_line_for_each(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == registry.names()
    assert main(["--list", "--measure", "representation"]) == 0
    assert "first=10" in capsys.readouterr().out


def test_options_are_read_by_their_kind():
    assert options_of(["first=3", "token-entropy.fork=0.5"], ["representation", "token-entropy"]) == {"representation": {"first": 3}, "token-entropy": {"fork": 0.5}}
    for word, said in (("frst=3", "did you mean first"), ("first=x", "wanted a whole number"), ("first=0", "at least 1"), ("other.first=3", "no measure that is taken")):
        with pytest.raises(DiagnoseError, match=said):
            options_of([word], ["representation"])


@pytest.mark.parametrize("value, text, wanted", [(False, "true", True), (1, "7", 7), (0.5, "0.25", 0.25), ("a", "b", "b")])
def test_an_option_is_parsed_by_its_default(value, text, wanted):
    assert Option(value, "x").parse("x", text) == wanted


def test_an_unknown_measure_names_the_nearest():
    with pytest.raises(DiagnoseError, match="did you mean representation"):
        registry.named("representations")


# ---- the pass ----------------------------------------------------------------------------------------------------------


class Watch(Measure):
    """Keeps what it is given."""

    NAME, WHAT, NEEDS = "watch", "x", frozenset({"hidden", "tokens"})

    def update(self, batch):
        self.seen = [*getattr(self, "seen", []), batch]

    def finish(self):
        return diagnose.Result(Table({"x": ""}), "x")


def test_a_pass_gives_what_the_model_gives_one_sequence_at_a_time():
    model = made.model()
    ids = made.sequences(7, (2, 9))
    watch = Watch(model, Data.of_ids(ids))
    from isentrope.diagnose.model import over

    for batch in over(model, ids, Watch.NEEDS, 3):
        watch.update(batch)
    found = set()
    for batch in watch.seen:
        for row, (index, length) in enumerate(zip(batch.index.tolist(), batch.lengths.tolist())):
            found.add(index)
            with torch.no_grad():
                alone = model.module(torch.tensor([ids[index]]), output_hidden_states=True)
            logp = alone.logits[0, :-1].double().log_softmax(-1)
            drawn = logp.gather(1, torch.tensor(ids[index][1:])[:, None])[:, 0]
            for layer, states in enumerate(alone.hidden_states):
                torch.testing.assert_close(batch.hidden[layer][row, :length], states[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(batch.last(layer)[row], states[0, -1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(batch.logprob[row, : length - 1].double(), drawn, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(batch.entropy[row, : length - 1].double(), -(logp.exp() * logp).sum(1), rtol=1e-4, atol=1e-5)
            assert batch.logprob[row, length - 1 :].isnan().all()
    assert found == set(range(7))


def test_a_head_that_is_more_than_a_product_is_taken_in_full():
    class Scaled(type(made.llama())):
        def forward(self, *inputs, **options):
            out = super().forward(*inputs, **options)
            out.logits = out.logits * 3
            return out

    module = Scaled(made.llama().config)
    batch = diagnose.Model(module).run(torch.tensor([[1, 2, 3]]), torch.tensor([3]), frozenset({"tokens"}))
    with torch.no_grad():
        logp = module(torch.tensor([[1, 2, 3]])).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(batch.logprob[0], logp.gather(1, torch.tensor([[2], [3]]))[:, 0], rtol=1e-4, atol=1e-5)


def test_measures_share_one_pass(monkeypatch):
    model, calls = made.model(), []
    plain = diagnose.Model.run
    monkeypatch.setattr(diagnose.Model, "run", lambda self, *inputs: (calls.append(inputs[-1]), plain(self, *inputs))[1])
    data = Data.of_ids(made.sequences(8))
    together = diagnose.measured(model, ["representation", "token-entropy", "attention-entropy"], data, batch_size=4)
    assert len(calls) == 2 and calls[0] == {"hidden", "tokens", "attention", "bound"}
    for name, result in together.items():
        alone = registry.named(name).measure(model, data, batch_size=4)
        for row, other in zip(result.table.rows, alone.table.rows):
            for a, b in zip(row, other):
                assert a == b or abs(a - b) <= 1e-3 * abs(b), name


def test_batches_have_each_sequence_once():
    ids = made.sequences(11, (1, 5))
    seen = {}
    for index, padded, lengths in batches(ids, 4):
        for i, row, length in zip(index.tolist(), padded.tolist(), lengths.tolist()):
            seen[i] = row[:length]
    assert seen == dict(enumerate(ids))


# ---- the command -------------------------------------------------------------------------------------------------------


def test_files_and_the_page(folder, tmp_path, capsys):
    data = made.jsonl(tmp_path / "data.jsonl")
    assert main([str(folder), "--measure", "representation,token-entropy", "--data", str(data), "--output", str(tmp_path / "out"), "--format", "both",
                 "representation.first=2"]) == 0  # fmt: skip
    told = capsys.readouterr().out
    assert "representation: " in told and "note: 40 sequences" not in told  # 40 sequences, 32 features
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"representation.json", "representation.csv", "representation.png", "representation.svg", "token-entropy.positions.csv", "diagnose.html"} <= names
    found = json.loads((tmp_path / "out" / "representation.json").read_text())
    assert found["options"]["first"] == 2 and found["sequences"] == 40 and "RankMe" in found["variant"]
    with open(tmp_path / "out" / "representation.csv") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == [f"{c['name']} ({c['unit']})" if c["unit"] else c["name"] for c in found["columns"]] and len(rows) == 1 + 5
    assert float(rows[1][1]) == found["rows"][0][1]
    page = (tmp_path / "out" / "diagnose.html").read_text()
    assert "diagnose-representation" in page and page.count("data:image/png;base64,") == 2 and 'class="s' in page


def test_checkpoints_of_a_run_stand_beside_each_other_and_on_the_runs_page(folder, tmp_path, capsys):
    run = tmp_path / "run"
    for step in (9, 10):  # by the steps of the run, not by name
        shutil.copytree(folder, run / "checkpoints" / f"sft-{step}")
        (run / "checkpoints" / f"sft-{step}" / "trainer.json").write_text(json.dumps({"steps_of_run": step}))
        (run / "checkpoints" / f"sft-{step}" / "DONE").touch()
    shutil.copytree(folder, run / "checkpoints" / "torn")
    (run / "metrics.jsonl").write_text('{"phase": "sft", "step": 1, "loss": 2.0}\n')
    (run / "config.yaml").write_text("run: {seed: 1}\n")
    data = made.jsonl(tmp_path / "data.jsonl")
    assert main([str(run), "--measure", "representation", "--data", str(data), "--checkpoints"]) == 0
    found = json.loads((run / "diagnose" / "representation.json").read_text())
    assert [row[0] for row in found["rows"]] == ["sft-9", "sft-10"]
    assert len(found["tables"]["layers"]["rows"]) == 10
    assert main([str(run), "--measure", "token-entropy", "--data", str(data)]) == 0
    assert json.loads((run / "diagnose" / "token-entropy.json").read_text())["models"] == [str(run)]
    from isentrope.report import write_page

    write_page([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '<section id="inside">' in page and "diagnose-token-entropy" in page


@pytest.mark.parametrize(
    "words, text, said",
    [
        (["--measure", "token-entropy"], None, "token-entropy needs data: --data FILE"),
        (["--measure", "token-entropy"], "", "holds no line"),
        (["--measure", "token-entropy"], '{"text": "w1"}\nnope\n', r"data.jsonl:2: 'nope' is no JSON object"),
        (["--measure", "token-entropy"], '{"txt": "w1"}\n', "'text' of text 1 is missing"),
        (["--measure", "token-entropy"], '{"text": ""}\n', "text 1 has no token"),
        (["--measure", "nothing"], '{"text": "w1"}\n', "there is no measure 'nothing'"),
        (["--measure", "token-entropy", "forks=1"], '{"text": "w1"}\n', "did you mean fork?"),
    ],
)
def test_bad_input_is_named(folder, tmp_path, capsys, words, text, said):
    data = tmp_path / "data.jsonl"
    if text is not None:
        data.write_text(text)
        words = [*words, "--data", str(data)]
    import re

    assert main([str(folder), *words]) == 1
    assert re.search(said, capsys.readouterr().err)


def test_folders_without_a_model_are_named(tmp_path, capsys, folder):
    data = made.jsonl(tmp_path / "data.jsonl")
    assert main([str(tmp_path / "none"), "--measure", "token-entropy", "--data", str(data)]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    assert main([str(tmp_path), "--measure", "token-entropy", "--data", str(data)]) == 1
    assert "has no config.json and no whole checkpoint" in capsys.readouterr().err
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    assert main([str(bare), "--measure", "token-entropy", "--data", str(data)]) == 1
    assert "has no tokenizer" in capsys.readouterr().err


def test_a_missing_package_is_told(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert main([str(folder), "--measure", "token-entropy", "--data", str(made.jsonl(tmp_path / "data.jsonl"))]) == 1
    assert "the Python package transformers is missing: pip install 'isentrope[diagnose]'" in capsys.readouterr().err


def test_plain_text_is_cut_into_sequences(folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(made.WORDS) * 3)
    data = Data.read(file)
    ids = data.tokens(diagnose.opened(str(folder)), 16)
    assert {len(one) for one in ids} == {16} and len(ids) == len(data) == 11
    with pytest.raises(DiagnoseError, match="plain text"):
        data.labels


def test_numbers_that_json_cannot_hold_are_none():
    table = Table({"x": ""})
    table.add(np.float64("nan"))
    table.add(torch.tensor(2.0))
    assert table.rows == [[None], [2.0]] and table.csv() == "x\n\n2.0\n" or table.csv() == 'x\n""\n2.0\n'
