"""The measures of a model's pass, `representation`, `attention-entropy` and `token-entropy`: planted ranks, heads and entropies."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
import diagnose_models as made
from isentrope import diagnose
from isentrope.diagnose.bound import bound
from isentrope.diagnose.data import Data
from isentrope.diagnose.measures import attention_entropy, representation, token_entropy
from isentrope.diagnose.spectrum import entropy, power_law, rankme, squared_singular_values
from isentrope.diagnose.token_matrix import largest_drop, token_entropies

# ---- representation ----------------------------------------------------------------------------------------------------


def test_ranks_of_a_matrix_of_planted_rank():
    random = np.random.default_rng(0)
    left, _ = np.linalg.qr(random.normal(size=(90, 7)))
    right, _ = np.linalg.qr(random.normal(size=(33, 7)))
    values = squared_singular_values(left @ right.T)  # seven equal singular values
    assert rankme(values) == pytest.approx(7, rel=1e-4) and rankme(np.sqrt(values)) == pytest.approx(7, rel=1e-4)
    assert entropy(values) == pytest.approx(math.log(7)) and entropy(5 * values) == pytest.approx(math.log(7))
    assert squared_singular_values((left @ right.T)[:5]).shape == (5,)


def test_the_variants_differ_as_their_formulas_do():
    random = np.random.default_rng(1)
    Z = random.normal(size=(400, 50)) * np.arange(1, 51) ** -1.0 + 3
    sigma = np.linalg.svd(Z, compute_uv=False)
    centred = np.linalg.svd(Z - Z.mean(0), compute_uv=False)

    def exp_entropy(p):
        p = p / p.sum()
        return math.exp(-(p * np.log(p)).sum())

    found = [rankme(np.sqrt(squared_singular_values(Z))), rankme(np.sqrt(squared_singular_values(Z - Z.mean(0)))), rankme(squared_singular_values(Z - Z.mean(0)))]
    assert found == pytest.approx([exp_entropy(sigma), exp_entropy(centred), exp_entropy(centred**2)], rel=1e-4)
    assert found[1] > 1.5 * found[2]


@pytest.mark.parametrize("alpha", [0.8, 1.61])
def test_a_planted_power_law(alpha):
    values = 3 * np.arange(1, 301) ** -alpha
    assert power_law(values, 10, 100) == pytest.approx((alpha, 1))
    bent = np.where(np.arange(1, 301) < 50, values, values * 0.1)
    assert power_law(bent, 10, 100)[1] < 0.99
    assert math.isnan(power_law(values, 299, 400)[0])


def planted(rank, width=32):
    """A model whose layers add nothing, and whose embeddings span `rank` directions alike."""
    module = made.llama(layers=3, width=width)
    random = np.random.default_rng(0)
    right, _ = np.linalg.qr(random.normal(size=(width, rank)))
    left = np.kron(np.eye(rank), np.array([[1.0], [-1.0]]))  # 2 · rank tokens, centred
    table = np.zeros((64, width))
    table[: 2 * rank] = left @ right.T
    with torch.no_grad():
        module.model.embed_tokens.weight.copy_(torch.tensor(table))
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return diagnose.Model(module)


def test_the_planted_rank_of_a_model_at_every_layer():
    rank = 5
    ids = [[3, 1, i % (2 * rank)] for i in range(100)]
    result = representation.measure(planted(rank), Data.of_ids(ids), {"first": 1, "last": 3})
    for name in representation.VARIANTS:
        assert result.table.column(name) == pytest.approx([rank] * 4, rel=1e-3), name
    assert result.table.column("constant") == [0] * 4 and result.notes == []


def test_too_few_sequences_are_told_with_what_they_cut():
    result = representation.measure(made.model(), Data.of_ids(made.sequences(20)), {"first": 1, "last": 9})
    assert "20 sequences for 32 features: a rank is 19 at most, 41% below" in result.notes[0]


def test_constant_features_are_told():
    ids = [[i, 7, 7] for i in range(1, 50)]  # the last token is the same, and no layer adds to it
    result = representation.measure(planted(5), Data.of_ids(ids))
    assert any("all features are constant at layer 0, 1, 2, 3" in note for note in result.notes)


def test_entropy_within_sequences_is_that_of_the_gram_matrix():
    states = torch.randn(2, 6, 8, dtype=torch.double)
    states[1, 4:] = 0
    found = representation.within(states, torch.tensor([6, 4]))
    for i, n in enumerate((6, 4)):
        values = torch.linalg.eigvalsh(states[i] @ states[i].T)
        p = values / values.sum()
        assert found[i].item() == pytest.approx(-math.log((p**2).sum()) / math.log(n))
    assert representation.within(states[:, :1], torch.tensor([1, 1])).isnan().all()


def test_phases_of_ranks_and_exponents():
    told = representation.phases([50, 20, 40, 60, 45, 47], [1.0, 1.4, 1.2, 0.9, 1.3, 1.5])
    assert told == ["", "warmup", "entropy-seeking", "entropy-seeking", "compression-seeking", "mixed"]


def test_the_matrix_entropy_of_tokens_that_are_known():
    Z = torch.zeros(3, 4, 8)
    Z[0, 0, 0], Z[0, 1, 0], Z[0, 2, 1], Z[0, 3, 1] = 1, -1, 1, -1  # two directions alike: eigenvalues ½, ½
    Z[1] = 3 * Z[0] + 7  # 4.5 twice; what all heads share is taken out
    Z[2] = 5  # nothing but that
    normalised, raw = token_entropies(Z)
    assert normalised.tolist() == pytest.approx([0.5, 0.5, 0], abs=1e-8)
    assert raw.tolist() == pytest.approx([0.5, -9 * math.log(4.5) / math.log(4), 0], abs=1e-7)
    wide = torch.zeros(2, 4, 384)
    wide[0, :, :9] = Z[0].repeat_interleave(3, 1)[:, :9]  # groups of three, the same in each
    torch.testing.assert_close(token_entropies(wide)[1][0], raw[0])
    random = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0)).double()
    centred = random - random.mean(1, keepdim=True)
    values = torch.linalg.svdvals(centred) ** 2 / 4  # by the other side of the matrix
    p = (values / values.sum(1, keepdim=True)).clamp(min=1e-30)
    torch.testing.assert_close(token_entropies(random)[0], -(p * p.log()).sum(1) / math.log(4), rtol=0, atol=1e-7)
    with pytest.raises(diagnose.DiagnoseError, match="1 head: the matrix of a token has one row"):
        token_entropies(torch.randn(2, 1, 8))


def test_the_layer_of_the_largest_drop():
    """Tokens whose heads have directions of their own up to layer 2, and one direction from layer 3 on; padding counts for nothing."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(6, 5, 32, generator=generator)
    one = (torch.randn(6, 5, 4, 1, generator=generator) * torch.randn(6, 5, 1, 8, generator=generator)).flatten(2)
    mask = torch.arange(5) < torch.tensor([5, 5, 4, 3, 2, 1])[:, None]
    hidden = [x.where(mask[..., None], 1000.0) for x in (own, own * 20, own * 20, 3 * one, 3 * one)]
    measure = representation.Representation(made.model(layers=4), Data.of_ids(made.sequences(6, 5)), {"matrix": "hidden", "first": 1, "last": 3, "within": False})
    measure.update(diagnose.Batch(torch.arange(6), torch.zeros(6, 5), mask.sum(1), mask, hidden))
    result = measure.finish()
    table = result.tables["token_matrix"]
    expected = [token_entropies(x[mask].view(-1, 4, 8))[0].mean().item() for x in hidden]
    assert table.column("normalised") == pytest.approx(expected) and table.column("normalised")[3] < 1e-7 < 0.5 < table.column("normalised")[2]
    assert table.column("change_normalised")[3] == pytest.approx(expected[3] - expected[2]) and table.column("raw")[0] > table.column("raw")[1]
    assert result.numbers["largest drop of the tokens' matrix entropy, normalised, at layer"] == 3 and "EntropyPrune" in result.variant
    assert largest_drop(table, "raw") == 1  # twenty times the length


def test_the_queries_are_those_of_the_blocks_and_positions_leave_their_entropy():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    module, ids = made.llama(), made.sequences(3, 7)
    seen = []
    for layer in module.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda _, inputs, out: seen.append(out))
    with torch.no_grad():
        module(torch.tensor(ids))
        cos, sin = module.model.rotary_emb(seen[0], torch.arange(7)[None])
        turned = [apply_rotary_pos_emb(q.view(3, 7, 4, 8).transpose(1, 2), q.view(3, 7, 4, 8).transpose(1, 2), cos, sin)[0] for q in seen]
    result = representation.measure(made.model(), Data.of_ids(ids), {"matrix": "query", "first": 1, "last": 3})
    for form, name in enumerate(("normalised", "raw")):
        expected = [token_entropies(q.transpose(1, 2).reshape(21, 4, 8))[form].mean().item() for q in turned]
        assert result.tables["token_matrix"].column(name) == pytest.approx(expected, rel=1e-5), name
    other = diagnose.Model(made.transformers.GPT2LMHeadModel(made.transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=4)))
    with pytest.raises(diagnose.DiagnoseError, match="no input_layernorm and self_attn.q_proj, as Llama's have; wanted matrix=hidden"):
        representation.measure(other, Data.of_ids(ids), {"matrix": "query"})
    assert "token_matrix" not in representation.measure(other, Data.of_ids(ids), {"first": 1, "last": 3}).tables


# ---- attention-entropy -------------------------------------------------------------------------------------------------


def test_entropies_are_those_of_the_eager_weights():
    model, ids = made.model(), made.sequences(6, (2, 9))
    result = attention_entropy.measure(model, Data.of_ids(ids), batch_size=4)
    eager = made.llama()
    eager.set_attn_implementation("eager")
    sums, rows = torch.zeros(4, 4, 2, dtype=torch.double), 0
    for one in ids:
        with torch.no_grad():
            weights = eager(torch.tensor([one]), output_attentions=True).attentions
        room = torch.arange(1, len(one) + 1).double().log()
        for layer, p in enumerate(weights):
            h = -(p.double() * p.double().clamp(min=1e-300).log()).sum(-1)[0]  # [H, T]
            sums[layer, :, 0] += h[:, 1:].sum(1)
            sums[layer, :, 1] += (h[:, 1:] / room[1:]).sum(1)
        rows += len(one) - 1
    expected = (sums / rows).flatten(0, 1)
    assert result.table.column("entropy") == pytest.approx(expected[:, 0].tolist(), rel=1e-4)
    assert result.table.column("normalised") == pytest.approx(expected[:, 1].tolist(), rel=1e-4)
    assert model.config._attn_implementation == "sdpa"  # as it was


def test_planted_heads_are_told_apart():
    module = made.llama()
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.q_proj.weight[:8] = 0  # head 0 looks everywhere alike
            layer.self_attn.q_proj.weight[8:16] *= 3000  # head 1 at one key
    result = attention_entropy.measure(diagnose.Model(module), Data.of_ids(made.sequences(30, 20)))
    for layer, head, _, normalised, _, least, certified, kind in result.table.rows:
        if head == 0:
            assert normalised == pytest.approx(1, abs=1e-4) and least == pytest.approx(1, abs=1e-4) and certified == 1 and kind == "overloaded"
        elif head == 1:
            assert kind == "collapsed" and normalised < 0.25
    assert not any("less entropy than their bound" in note for note in result.notes)


@pytest.mark.parametrize("window", [None, 3])
def test_the_bound_is_below_the_entropy_and_reached(window):
    q, k = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8)
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(8)
    place = torch.arange(9)
    hidden = (place[None] > place[:, None]) | ((place[None] <= place[:, None] - window) if window else False)
    logp = scores.masked_fill(hidden, -torch.inf).log_softmax(-1)
    h = -(logp.exp() * logp.masked_fill(hidden, 0)).sum(-1)
    least = bound(q, k, window=window)
    assert (least <= h + 1e-5).all() and (least[..., 1:] > 0).all() and (least[..., 0] == 0).all()
    # equality where one logit stands above all others alike
    q = torch.zeros(1, 1, 7, 8)
    q[..., 0] = math.sqrt(8)
    k = torch.zeros(1, 1, 7, 8)
    k[0, 0, 2, 0] = 2.5
    s = torch.tensor([0.0, 0, 2.5, 0, 0, 0, 0])
    p = s.softmax(0)
    assert bound(q, k)[0, 0, 6].item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)


def test_a_model_that_computes_its_own_attention_is_named():
    class Own(type(made.llama())):
        def set_attn_implementation(self, name):
            raise ValueError("does not support it")

    with pytest.raises(diagnose.DiagnoseError, match="cannot run as entropy_attention: does not support it"):
        attention_entropy.measure(diagnose.Model(Own(made.llama().config)), Data.of_ids(made.sequences(3)))


# ---- token-entropy -----------------------------------------------------------------------------------------------------


def test_a_head_of_zeros_has_all_the_entropy_there_is():
    module = made.llama()
    with torch.no_grad():
        module.lm_head.weight.zero_()
    result = token_entropy.measure(diagnose.Model(module), Data.of_ids(made.sequences(5, (2, 6))))
    assert result.numbers["mean entropy, nats"] == pytest.approx(math.log(64), rel=1e-5)
    assert result.numbers["mean surprise, nats"] == pytest.approx(math.log(64), rel=1e-5)
    assert "no tokenizer" in result.notes[0]


def test_positions_are_those_of_the_tokens():
    ids = made.sequences(40, 6)
    model = made.model()
    result = token_entropy.measure(model, Data.of_ids(ids))
    positions = result.tables["positions"]
    assert positions.column("position") == ["1", "2", "3", "4", "5"] and positions.column("tokens") == [40] * 5
    with torch.no_grad():
        logp = model.module(torch.tensor(ids)).logits[:, :-1].double().log_softmax(-1)
    assert positions.column("entropy") == pytest.approx((-(logp.exp() * logp).sum(-1)).mean(0).tolist(), rel=1e-4)


def test_kinds_of_tokens_by_rule():
    pieces = ["The", " quick", "ly", " run", "ning", " running", " happiness", " of", " 12", ".", "\n", " hopeful", " boldly", " cat", "<|im_end|>"]
    kinds = ["article", "word", "continuation", "word", "continuation", "verb", "noun", "preposition", "number", "punctuation", "line break",
             "adjective", "adverb", "word", "special"]  # fmt: skip
    assert token_entropy.kinds_of(pieces) == kinds


def test_parts_of_speech_by_a_tagger_that_sees_the_context():
    pytest.importorskip("textblob")
    from isentrope.diagnose.parts_of_speech import Tagger

    text = "They plan to change it. The change\nWe can't return the old bank's 3 doors, and `` he\"s '' left"
    found = [(text[begin:end], part) for begin, end, part in Tagger().words(text)]
    assert found[:5] == [("They", "pronoun"), ("plan", "verb"), ("to", "particle"), ("change", "verb"), ("it", "pronoun")]
    assert found[5:11] == [("The", "determiner"), ("change", "noun"), ("We", "pronoun"), ("ca", "auxiliary"), ("n't", "adverb"), ("return", "verb")]
    assert ("'s", "particle") in found and ("3", "number") in found and ("and", "conjunction") in found
    pieces = ["The", " rest", "less", " dog", " can", "'t", " re", "turn", " 12", ".", "\n", " qu", "<|im_end|>"]
    kinds = ["determiner", "adjective", "continuation", "noun", "auxiliary", "adverb", "verb", "continuation", "number", "punctuation", "line break", "adjective", "special"]
    assert Tagger().of_pieces(pieces, token_entropy.kinds_of(pieces)) == kinds


def test_entropies_by_the_parts_of_a_tagger(tmp_path):
    pytest.importorskip("textblob")

    class Words:
        def decode(self, ids):
            return (" dog", " the", " runs", ".")[ids[0] % 4]

    model, ids = diagnose.Model(made.llama(), Words()), made.sequences(20, 6)
    plain, parts = (token_entropy.measure(model, Data.of_ids(ids), options).table for options in ({}, {"parts": "textblob"}))
    assert {"article", "word", "punctuation"} == set(plain.column("kind")) and {"determiner", "noun", "punctuation"} <= set(parts.column("kind"))
    assert sum(plain.column("tokens")) == sum(parts.column("tokens")) == 100
    of = [{row[0]: row[1:3] for row in table.rows} for table in (plain, parts)]
    assert of[0]["punctuation"] == of[1]["punctuation"]
    assert of[1]["determiner"] == pytest.approx(of[0]["article"], rel=0.1)  # of words in no order: the context makes one or two of them something else


def test_a_tagger_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "textblob.en", None)
    with pytest.raises(diagnose.DiagnoseError, match="parts=textblob needs the package textblob.*pip install textblob, or take parts=rules"):
        token_entropy.measure(made.model(), Data.of_ids(made.sequences(3)), {"parts": "textblob"})


def test_words_that_are_split_are_told_and_texts_are_coloured(tmp_path):
    class Letters:
        def decode(self, ids):
            return "abcdefghij"[ids[0] % 10]

    model = diagnose.Model(made.llama(), Letters())
    result = token_entropy.measure(model, Data.of_ids(made.sequences(5, 6)), {"shown": 2})
    assert "go on with a word" in result.notes[0] and len(result.texts) == 2
    assert len(result.texts[0]["tokens"]) == len(result.texts[0]["entropy"]) == 6


def test_texts_of_one_token_have_no_entropy():
    result = token_entropy.measure(made.model(), Data.of_ids([[1], [2]]))
    assert result.table.rows == [] and "one token long" in result.notes[0]
