"""The measure `mixer-state` on models of type isentrope made here: planted weights and states, and those of isentrope.nn."""

import math

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")
import diagnose_models as made
from isentrope import diagnose, nn
from isentrope.diagnose.data import Data
from isentrope.diagnose.measures import mixer_state
from isentrope.diagnose.model import Model
from isentrope.modeling_isentrope import IsentropeConfig, IsentropeForCausalLM

OPTIONS = {
    "linear": {"feature_map": "elu_plus_one", "normalizer": True, "decay": "head", "conv_size": 1},
    "normalized": {"denominator": "rms", "conv_size": 1},
    "gated_delta": {"expand_v": 1, "conv_size": 2, "allow_negative": False},
    "ssd": {"expand_v": 1, "conv_size": 2},
    "natsl": {"chunk": 16, "conv_size": 2, "allow_negative": False},
}


def model_of(*mixers, seed=0):
    torch.manual_seed(seed)
    config = IsentropeConfig(
        mixers=list(mixers), vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=len(mixers), num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        max_position_embeddings=64, rms_norm_eps=1e-5, norm="pre", qk_norm=False, qkv_bias=False, attention_bias=False, mlp_bias=False, attention_temperature="none",
        attn_logit_softcapping=0.0, tie_word_embeddings=False, initializer_range=0.5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **{kind: OPTIONS[kind] for kind in mixers if kind in OPTIONS},
    )  # fmt: skip
    return Model(IsentropeForCausalLM(config).double(), name="made")


def texts(*lengths):
    return Data.of_ids([made.sequences(1, n, vocab=30, seed=n)[0] for n in lengths])


def table_of(result):
    return [dict(zip(result.table.columns, row)) for row in result.table.rows]


def even(model, layer):
    """Weights of a layer that are the same for all tokens: queries and keys are 0, and nothing decays."""
    mixer = model.blocks()[layer].self_attn
    with torch.no_grad():
        mixer.q_proj.weight.zero_()
        mixer.k_proj.weight.zero_()
        if hasattr(mixer, "head_decay"):
            mixer.head_decay.fill_(-1e4)


@pytest.mark.parametrize("kind", ["softmax", "linear"])
def test_even_weights_have_the_entropy_of_their_number_and_a_state_of_one_direction(kind):
    model = model_of(kind)
    even(model, 0)
    found = table_of(mixer_state.measure(model, texts(7, 4)))
    rows = [n for length in (7, 4) for n in range(2, length + 1)]
    for one in found:
        assert one["entropy"] == pytest.approx(sum(map(math.log, rows)) / len(rows)) and one["normalised"] == pytest.approx(1) and one["defined"] == 1
        assert one["rank"] == (pytest.approx(1) if kind == "linear" else None)


def test_linear_layers_are_those_of_isentrope_nn():
    model, data = model_of("linear"), texts(9)
    module = nn.LinearAttention(16, 4, 2, decay="head").double()
    module.load_state_dict(model.blocks()[0].self_attn.state_dict())
    x = {}
    hook = model.blocks()[0].self_attn.register_forward_hook(lambda _, inputs, out: x.update(given=inputs[0], out=out))
    found = table_of(mixer_state.measure(model, data))
    hook.remove()
    with torch.no_grad():
        out, state = module(x["given"], return_state=True)
        torch.testing.assert_close(x["out"], out)
        q, k = (module.feature_map(p(x["given"]).unflatten(-1, (-1, 4)).transpose(1, 2)) for p in (module.q_proj, module.k_proj))
        decay = -torch.nn.functional.softplus(module.head_decay).view(1, 2, 1).expand(1, 2, 9)
        entropy = nn.weight_entropy(q, k, decay)[0, :, 1:].mean(-1)
        rank = nn.effective_rank(state[0, :, :, :4]).repeat_interleave(2)
    assert [one["entropy"] for one in found] == pytest.approx(entropy.tolist(), rel=1e-6)
    assert [one["rank"] for one in found] == pytest.approx(rank.tolist(), rel=1e-6)
    assert {one["most"] for one in found} == {4}


def test_gated_delta_states_are_those_of_the_recurrence():
    model, data = model_of("gated_delta"), texts(6)
    told = []
    mixer = model.blocks()[0].self_attn
    hook = mixer.register_forward_hook(lambda module, inputs, _: told.append((module, inputs)))
    (found, *_) = table_of(mixer_state.measure(model, data))
    hook.remove()
    module, (x, *_) = told[0]
    with torch.inference_mode():
        _, k, _, decay, v = module.rows(*told[0][1])
        beta = module.b_proj(x).sigmoid()[0, :, 0]
        state = torch.zeros(4, 4, dtype=torch.float64)
        for t in range(6):
            state = state * (decay[0, 0, t, t - 1] if t else 1)
            state = state + beta[t] * torch.outer(k[0, 0, t], v[0, 0, t] - state.mT @ k[0, 0, t])
    assert found["rank"] == pytest.approx(float(nn.effective_rank(state)), rel=1e-6)
    assert found["entropy"] is None and found["defined"] == 0


def test_kinds_beside_each_other_padding_and_batches():
    model = model_of("softmax", "linear", "normalized", "gated_delta", "ssd")
    data = texts(8, 3, 5)
    result = mixer_state.measure(model, data)
    assert [row[1] for row in result.tables["layers"].rows] == ["softmax", "linear", "normalized", "gated_delta", "ssd"]
    alone = [mixer_state.measure(model, Data.of_ids([one["ids"]])) for one in data.records]
    ranks = [row["rank"] for row in table_of(result) if row["kind"] != "softmax"]
    apart = [[row["rank"] for row in table_of(one) if row["kind"] != "softmax"] for one in alone]
    assert ranks == pytest.approx([sum(three) / 3 for three in zip(*apart)], rel=1e-6)
    assert any("gated_delta" in note and "not defined" in note for note in result.notes)


def test_of_natsl_the_rows_of_softmax_attention_are_measured():
    model = model_of("natsl")
    text = texts(40)
    layer = model.blocks()[0]
    seen = {}
    hook = layer.self_attn.register_forward_pre_hook(lambda _, inputs: seen.update(inputs=inputs))
    found = mixer_state.measure(model, text)
    hook.remove()
    with torch.no_grad():
        x, there, position = seen["inputs"][:3]
        sight, writes = layer.self_attn.sight(x, there, position)
        logits = layer.self_attn.rows(x, there, position)[0]
    assert bool((sight | writes).equal(torch.ones(1, 4, 40, 40).tril().bool()))
    chunk = torch.arange(40) // 16
    own = (chunk[:, None] == chunk) & torch.ones(40, 40).tril().bool()
    assert bool((sight & writes).equal(own.expand_as(sight))), "its own chunk a token sees by both, others by one"
    entropy = torch.special.entr(logits.double().softmax(-1)).sum(-1)[0, :, 1:].mean(-1)  # of more than one key
    assert [row["entropy"] for row in table_of(found)] == pytest.approx(entropy.tolist(), rel=1e-9)


def test_other_models_are_refused_by_name():
    with pytest.raises(diagnose.DiagnoseError, match="of type llama.*attention-entropy"):
        mixer_state.measure(Model(made.llama(layers=1, width=16)), texts(4))
