"""`circuit`: golden effects and overlaps, a circuit planted in a two-layer model, patching beside one forward pass a head."""

import random
import re

import pytest
import torch

pytest.importorskip("matplotlib")
import diagnose_models as made
from isentrope import diagnose
from isentrope.diagnose import pairs, patching, paths
from isentrope.diagnose.data import Data
from isentrope.diagnose.measures import circuit


def test_golden_effects_overlaps_and_entropies():
    clean, corrupt = torch.tensor([2, 0.5, -0.3, 0]), torch.tensor([-2, 0.4, -0.1, 0])
    patched = clean.sum() - clean + corrupt
    found = patching.effects(patched[:, None], clean.sum()[None], corrupt.sum()[None])
    assert found.tolist() == pytest.approx([1.025641, 0.025641, -0.051282, 0], abs=1e-6) and found.sum().item() == pytest.approx(1)
    entropies = -torch.tensor([0.2, 0.5, 0.9, 0.4, 1.1, 1.3, 1.2])
    assert patching.auroc(entropies, torch.arange(7) < 3) == pytest.approx(0.833333, abs=1e-6)
    a, b = torch.zeros(1, 20, dtype=torch.bool), torch.zeros(1, 20, dtype=torch.bool)
    a[0, :5], b[0, 2:6] = True, True
    assert circuit.overlap(a, b) == (3, pytest.approx(0.6), pytest.approx(0.75), pytest.approx(0.5), pytest.approx(1.0))


def made_pairs(count=6, length=7):
    """The corrupted prompt has another first token; the answers are two fixed tokens."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        clean = torch.randint(10, 60, (length,), generator=generator).tolist()
        found.append({"clean": [1, *clean], "corrupt": [2, *clean], "answer": 3, "other": 4})
    return found


def planted(layer=1, head=2):
    """Two layers that add nothing, but for one head, which looks at all tokens alike and writes the first one's part to the answers."""
    module = made.llama(layers=2, width=32, heads=4)
    with torch.no_grad():
        for one in module.model.layers:
            one.mlp.down_proj.weight.zero_()
            one.self_attn.o_proj.weight.zero_()
        attention = module.model.layers[layer].self_attn
        attention.q_proj.weight.zero_()
        attention.o_proj.weight[:, 8 * head : 8 * head + 8] = torch.randn(32, 8)
    return diagnose.Model(module)


def test_a_planted_head_is_the_whole_circuit():
    result = circuit.measure(planted(), Data(made_pairs()))
    for _, layer, head, total, direct, _, inside in result.table.rows:
        assert total == pytest.approx(float((layer, head) == (1, 2)), abs=1e-4)
        assert direct == pytest.approx(total, abs=1e-4) and inside == ((layer, head) == (1, 2))
    assert result.tables["faithfulness"].rows[0][1:] == [1, pytest.approx(1, abs=1e-4)]
    assert result.numbers["data: heads in the circuit"] == 1


def logits_with(model, ids, put):
    """[B, V] of the last tokens, in a pass where what o_proj of layer i is given becomes put(given, i)."""
    handles = [block.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs, own=own: put(inputs, own)) for own, block in enumerate(model.module.model.layers)]
    with torch.no_grad():
        logits = model.module(ids).logits[:, -1]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("frozen", [False, True])
def test_patching_the_last_token_alone_is_a_whole_pass_for_each_head(frozen, monkeypatch):
    model = made.model(layers=3)
    some, _ = pairs.given(made_pairs(4), "pairs", None)
    monkeypatch.setattr(patching, "ROWS", 4 * 5)  # heads of two layers in one pass
    run = patching.Patching(model, some)
    found = run.heads(frozen)
    ids = torch.tensor([pair.clean for pair in some])
    for layer in range(3):
        for head in range(4):

            def put(inputs, own):
                z = inputs[0].clone()
                if frozen and own > layer:
                    z[:, -1] = run.clean[own].flatten(1)
                if own == layer:
                    z.view(*z.shape[:2], 4, 8)[:, -1, head] = run.corrupt[own, :, head]
                return (z,)

            logits = logits_with(model, ids, put)
            torch.testing.assert_close(found[layer, head], logits[:, 3] - logits[:, 4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_patching_all_positions_is_a_whole_pass_for_each_head(frozen, monkeypatch):
    model = made.model(layers=3)
    some, _ = pairs.given(made_pairs(4), "pairs", None)
    monkeypatch.setattr(paths, "TOKENS", 4 * 8 * 5)  # heads of two layers in one pass
    run = paths.Sequences(patching.Patching(model, some))
    found = run.heads(frozen)
    ids = torch.tensor([pair.clean for pair in some])
    for layer in range(3):
        for head in range(4):

            def put(inputs, own):
                z = run.clean[own].flatten(2).clone() if frozen and own > layer else inputs[0].clone()
                if own == layer:
                    z.view(*z.shape[:2], 4, 8)[:, :, head] = run.corrupt[own, :, :, head]
                return (z,)

            logits = logits_with(model, ids, put)
            torch.testing.assert_close(found[layer, head], logits[:, 3] - logits[:, 4], rtol=1e-4, atol=1e-5)


def two_heads(looks):
    """Head 1 of layer 0 writes, head 2 of layer 1 reads; both look at all tokens alike, unless the second looks by what it is given."""
    module = made.llama(layers=2, width=32, heads=4)
    with torch.no_grad():
        for layer, head in ((0, 1), (1, 2)):
            block = module.model.layers[layer]
            block.mlp.down_proj.weight.zero_()
            keep = torch.zeros(32, dtype=torch.bool)
            keep[8 * head : 8 * head + 8] = True
            block.self_attn.o_proj.weight[:, ~keep] = 0
            block.self_attn.o_proj.weight *= 20
            if layer == 0 or not looks:
                block.self_attn.q_proj.weight.zero_()
            else:
                block.self_attn.q_proj.weight *= 20
    return diagnose.Model(module)


def test_paths_are_those_that_are_planted():
    data = Data(made_pairs())
    found = {}
    for looks in (False, True):
        result = circuit.measure(two_heads(looks), data, {"positions": "all", "receivers": "1.2.q,1.2.k,1.2.v,1.0.v,1.3.v", "faithful": 0})
        found[looks] = {tuple(row[1:4]): row[4] for row in result.tables["paths"].rows}
        assert len(found[looks]) == 5 * 4
        for (receiver, _, head), effect in found[looks].items():
            # From the one head that writes, to the one that reads; its value is also that of head 3, which shares it.
            if head != 1 or receiver == "1.0.v":
                assert effect == pytest.approx(0, abs=1e-4), (receiver, head)
        assert found[looks]["1.2.v", 0, 1] == found[looks]["1.3.v", 0, 1] != 0
        table = {(row[1], row[2]): row[3:5] for row in result.table.rows}
        total, direct = table[0, 1]
        through = total - direct
        if not looks:  # it goes through the value alone; a norm bends what is more than small
            assert found[looks]["1.2.q", 0, 1] == pytest.approx(0, abs=1e-5) and found[looks]["1.2.k", 0, 1] == pytest.approx(0, abs=1e-5)
            assert found[looks]["1.2.v", 0, 1] == pytest.approx(through, rel=0.3) and abs(through) > 1e-3
    assert abs(found[True]["1.2.q", 0, 1]) > 1e-4 and abs(found[True]["1.2.k", 0, 1]) > 1e-4


def test_receivers_of_the_joined_projection_of_gpt2():
    torch.manual_seed(0)
    import transformers

    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    model = diagnose.Model(transformers.GPT2LMHeadModel(config))
    module, place = paths.projection_of(model, paths.Receiver(1, 2, "k"))
    assert place == slice(48, 56) and module is model.module.transformer.h[1].attn.c_attn
    some, _ = pairs.given(made_pairs(3), "pairs", None)
    effects = paths.Sequences(patching.Patching(model, some)).paths(paths.Receiver(1, 2, "v"))
    assert effects.shape == (1, 4, 3) and effects.isfinite().all()


@pytest.mark.parametrize("word", ["0.1.q", "1.4.q", "1.1.z", "1.1", "q"])
def test_receivers_that_are_none_are_named(word):
    with pytest.raises(diagnose.DiagnoseError, match=f"receivers={word}; wanted LAYER.HEAD.PART with a layer from 1 to 1, a head from 0 to 3"):
        circuit.measure(made.model(layers=2), Data(made_pairs()), {"receivers": word})


def test_direct_effects_of_heads_that_only_write_to_the_logits_add_up():
    """With MLPs that add nothing and a final norm whose scale hardly moves, direct effects are shares of the whole."""
    model = made.model(layers=2)
    with torch.no_grad():
        model.module.model.embed_tokens.weight *= 1000  # what heads add is small beside it
        for block in model.module.model.layers:
            block.mlp.down_proj.weight.zero_()
            block.self_attn.o_proj.weight *= 5
    some, _ = pairs.given(made_pairs(8), "pairs", None)
    run = patching.Patching(model, some)
    assert patching.effects(run.heads(True), run.gap, run.gap_corrupt).sum().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("task", pairs.TASKS)
def test_generated_pairs_differ_in_one_thing(task):
    clean, corrupt, answer, other = pairs.TASKS[task](random.Random(0))
    assert clean != corrupt and answer != other and answer.strip() in clean and other.strip() in clean
    assert sum(a != b for a, b in zip(clean.split(), corrupt.split())) == 1 and len(clean.split()) == len(corrupt.split())


def test_two_tasks_are_measured_and_overlap():
    known = {}
    model = diagnose.Model(made.llama(layers=2, vocab=256, initializer_range=0.5))
    model.encode = lambda text: [known.setdefault(piece, len(known)) for piece in re.findall(r"\s?\w+|\s?[^\w\s]|\s", text)]
    result = circuit.measure(model, None, {"prompts": 4})
    assert set(result.table.column("task")) == set(pairs.TASKS) and len(result.table.rows) == 2 * 2 * 4
    assert result.tables["overlap"].rows[0][0] == "ioi, colored-objects"
    told = [task for task in pairs.TASKS if any(note.startswith(f"{task}: the model prefers") for note in result.notes)]
    assert told == [task for task in pairs.TASKS if result.numbers[f"{task}: right"] < 0.7]


def test_what_cannot_be_patched_is_named():
    split = diagnose.Model(made.llama(layers=2), None)
    split.encode = lambda text: [ord(c) % 64 for c in text]  # every word is several tokens
    with pytest.raises(diagnose.DiagnoseError, match="splits the words into several tokens"):
        circuit.measure(split, None, {"prompts": 2})
    with pytest.raises(diagnose.DiagnoseError, match="'other' of pair 1 is missing"):
        circuit.measure(split, Data([{"clean": "a", "corrupt": "b", "answer": "c"}]))
    with pytest.raises(diagnose.DiagnoseError, match="tasks=nothing"):
        circuit.measure(split, None, {"tasks": "nothing"})
    same = [{**pair, "corrupt": pair["clean"]} for pair in made_pairs()]
    with pytest.raises(diagnose.DiagnoseError, match="the same answer as the clean ones"):
        circuit.measure(made.model(), Data(same))
