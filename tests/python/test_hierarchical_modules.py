"""isentrope.nn's HierarchicalAttention, against EntropyAttention and the op, and encoders of transformers converted to it and back."""

import copy

import pytest
import torch
from compiled import compiled as in_one_graph

from isentrope import nn

transformers = pytest.importorskip("transformers", minversion="5.5")

SIZES = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=4, intermediate_size=48, vocab_size=97, max_position_embeddings=80)
MODELS = {"bert": (transformers.BertConfig, transformers.BertForMaskedLM), "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM),
          "electra": (transformers.ElectraConfig, transformers.ElectraModel)}  # fmt: skip
T = 37


def make(kind="roberta", attention="sdpa", **options):
    torch.manual_seed(0)
    config, model = MODELS[kind]
    return model._from_config(config(**{**SIZES, **options}), attn_implementation=attention).double().eval()


def tokens():
    return torch.randint(3, 97, (2, T), generator=torch.Generator().manual_seed(1))


def mask():
    return (torch.arange(T) < torch.tensor([[T], [20]])).long()


def output(model, **options):
    return model(tokens(), **options)[0]


# ---- the module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 2, "qk_norm": True, "bias": True, "rope_theta": 1e4}, {"head_dim": 16}])
def test_one_family_is_entropy_attention(options):
    dense = nn.EntropyAttention(32, 4, causal=False, dtype=torch.float64, **options)
    layer = nn.HierarchicalAttention(32, 4, branching=64, dtype=torch.float64, watch=True, **options)
    layer.load_state_dict(dense.state_dict())
    x, lengths = torch.randn(2, T, 32, dtype=torch.float64), torch.tensor([T, 20])
    (out, entropy), (wanted, of_rows) = (module(x, key_lengths=lengths, return_entropy=True) for module in (layer, dense))
    for b, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(out[b, :n], wanted[b, :n], rtol=0, atol=1e-12)
        torch.testing.assert_close(entropy[b, :, :n], of_rows[b, :, :n], rtol=0, atol=1e-12)
    assert torch.equal(layer.last_entropy, entropy) and not layer.last_entropy.requires_grad


def test_a_tree_takes_the_place_of_branching():
    layer = nn.HierarchicalAttention(32, 4, branching=4)
    x = torch.randn(1, T, 32)
    tree = nn.tree_of_parents(torch.arange(T) // 4, torch.arange(10) // 4, torch.arange(3) // 4)
    torch.testing.assert_close(layer(x, tree=tree), layer(x))
    assert (layer(x, tree=nn.tree_of_parents(torch.arange(T) // 9, torch.zeros(5, dtype=torch.long))) - layer(x)).abs().max() > 1e-4


def test_sibling_features_learn():
    """What stands first in its family is to be told from what does not; without positions nothing tells it."""
    losses = {}
    for features in (None, 4):
        torch.manual_seed(0)
        layer = nn.HierarchicalAttention(16, 2, branching=4, sibling_features=features)
        assert (layer.position is None) == (features is None) and (features is None or layer.position.shape == (2, 4, 4))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
        for _ in range(150):
            x = torch.randn(16, 16, 16)
            target = x.unflatten(1, (4, 4))[:, :, :1].expand(-1, -1, 4, -1).flatten(1, 2)  # of each token the first of its family
            loss = (layer(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[features] = loss.item()
    assert losses[4] < 0.8 * losses[None]


def test_module_compiles():
    layer = nn.HierarchicalAttention(32, 4, branching=8, sibling_features=2)
    x = torch.randn(2, T, 32)
    with torch.no_grad():
        torch.testing.assert_close(in_one_graph(layer)(x), layer(x))


@pytest.mark.parametrize("error, message, options", [
    (ValueError, "num_attention_heads is 4 and num_key_value_heads is 3", {"num_key_value_heads": 3}),
    (ValueError, "hidden_size is 30 and num_attention_heads is 4", {"hidden_size": 30}),
    (ValueError, "head_dim is 7 and rope_theta is 10000.0", {"head_dim": 7, "rope_theta": 1e4}),
    (ValueError, "rope_theta is -1", {"rope_theta": -1.0}),
    (ValueError, "branching is 1; wanted at least 2", {"branching": 1}),
    (TypeError, "branching is 2.5; wanted an integer", {"branching": 2.5}),
    (ValueError, "sibling_features is 4 and branching is None", {"sibling_features": 4}),
])  # fmt: skip
def test_bad_module(error, message, options):
    with pytest.raises(error, match=message):
        nn.HierarchicalAttention(**{"hidden_size": 32, "num_attention_heads": 4, **options})


def test_bad_forward():
    layer = nn.HierarchicalAttention(32, 4)
    with pytest.raises(ValueError, match=r"x has shape \[2, 32\]; wanted \[B, T, 32\]"):
        layer(torch.zeros(2, 32))
    with pytest.raises(ValueError, match="branching is None and tree is None"):
        layer(torch.zeros(1, 2, 32))


# ---- encoders of transformers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_one_family_changes_nothing(kind, attention, padded):
    model = make(kind, attention)
    options = {"attention_mask": mask()} if padded else {}
    real = mask().bool() if padded else torch.ones(2, T, dtype=torch.bool)
    before, names = output(model, **options), list(model.state_dict())
    nn.convert_to_hierarchical(model, [0, 2, 3], branching=T)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(output(model, **options)[real], before[real], rtol=0, atol=1e-12)


def test_a_tree_changes_the_converted_layers_alone_and_is_undone():
    model = make()
    before = output(model, output_hidden_states=True)
    states = model(tokens(), output_hidden_states=True).hidden_states
    weights = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    original = [layer.attention.self for layer in model.roberta.encoder.layer]
    assert nn.convert_to_hierarchical(model, [1, 3], branching=4) is model
    changed = model(tokens(), output_hidden_states=True).hidden_states
    assert torch.equal(changed[1], states[1]) and (changed[2] - states[2]).abs().max() > 1e-6
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == weights
    assert nn.revert_hierarchical(model) is model
    assert [layer.attention.self for layer in model.roberta.encoder.layer] == original
    assert torch.equal(output(model), before)


def test_entropy_of_converted_layers():
    model = nn.convert_to_hierarchical(make(), [1], branching=4)
    layer = model.roberta.encoder.layer[1].attention.self
    output(model, attention_mask=mask())
    assert layer.last_entropy is None
    layer.watch = True
    output(model, attention_mask=mask())
    assert layer.last_entropy.shape == (2, 4, T) and (layer.last_entropy[1, :, 20:] == 0).all()
    assert (layer.last_entropy[0] > 0).all() and (layer.last_entropy <= torch.tensor(float(T)).log()).all()


def test_sentences_as_a_tree():
    model = make()
    tree = nn.tree_of_parents(torch.arange(T) // 10, torch.zeros(4, dtype=torch.long))
    nn.convert_to_hierarchical(model, [2], tree=tree)
    of_sentences = output(model)
    nn.revert_hierarchical(model)
    nn.convert_to_hierarchical(model, [2], branching=5)
    of_five = output(model)
    assert nn.set_tree(model, tree) is model
    assert torch.equal(output(model), of_sentences) and not torch.equal(of_sentences, of_five)
    nn.set_tree(model, None)
    assert torch.equal(output(model), of_five)


def test_converted_models_train_and_copy():
    model = nn.convert_to_hierarchical(make().train(), [0, 1, 2, 3], branching=4)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output(model).square().mean().backward()
    assert all(layer.attention.self.query.weight.grad.abs().max() > 0 for layer in model.roberta.encoder.layer)
    optimizer.step()
    assert not torch.equal(model.roberta.encoder.layer[0].attention.self.query.weight, twin.roberta.encoder.layer[0].attention.self.query.weight)
    nn.revert_hierarchical(twin)
    assert twin.roberta.encoder.layer[0].attention.self.training
    assert twin.roberta.encoder.layer[0].attention.self.query.weight.data_ptr() != model.roberta.encoder.layer[0].attention.self.query.weight.data_ptr()
    learned = model.roberta.encoder.layer[0].attention.self.query.weight
    assert nn.revert_hierarchical(model).roberta.encoder.layer[0].attention.self.query.weight is learned


@pytest.mark.parametrize("message, options", [
    ("branching is None and tree is None; wanted one of the two", {"layers": [0]}),
    ("branching is 4 and tree is given; wanted one of the two", {"layers": [0], "branching": 4, "tree": [torch.zeros(1, 1)]}),
    ("branching is 1; wanted an integer of at least 2", {"layers": [0], "branching": 1}),
    ("layers holds 4; wanted numbers from 0 to 3", {"layers": [0, 4], "branching": 4}),
    (r"layers is \[1, 1\]; wanted each number once", {"layers": [1, 1], "branching": 4}),
])  # fmt: skip
def test_bad_conversion(message, options):
    model = make()
    with pytest.raises(ValueError, match=message):
        nn.convert_to_hierarchical(model, **options)
    assert not any(isinstance(module, nn.HierarchicalSelfAttention) for module in model.modules())


def test_models_that_cannot_be_converted():
    with pytest.raises(ValueError, match="Linear has no self-attention with query, key and value"):
        nn.convert_to_hierarchical(torch.nn.Linear(2, 2), [0], branching=4)
    with pytest.raises(ValueError, match="layer 1 is a decoder's"):
        nn.convert_to_hierarchical(make(is_decoder=True), [1], branching=4)
    model = nn.convert_to_hierarchical(make(), [1], branching=4)
    with pytest.raises(ValueError, match="layer 1 is hierarchical already"):
        nn.convert_to_hierarchical(model, [0, 1], branching=4)
    with pytest.raises(ValueError, match="Linear has no hierarchical layer"):
        nn.set_tree(torch.nn.Linear(2, 2), None)
    tree = nn.tree_of_parents(torch.zeros(T, dtype=torch.long))
    with pytest.raises(ValueError, match="converted without branching; wanted a tree"):
        nn.set_tree(nn.convert_to_hierarchical(make(), [1], tree=tree), None)
    with pytest.raises(ValueError, match="attention_mask lets rows see different keys"):
        output(model, attention_mask=torch.ones(T, T, dtype=torch.bool).tril().expand(2, 1, T, T))
    with pytest.raises(TypeError, match="attention_mask is a list; wanted a tensor, which attn_implementation 'sdpa' and 'eager' make"):
        model.roberta.encoder.layer[1].attention.self(torch.zeros(1, 2, 32, dtype=torch.float64), [1, 1])
