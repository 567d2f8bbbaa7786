"""isentrope.nn against plain torch, in float32 beside double."""

import math

import pytest
import torch

import isentrope
from isentrope import reference
from isentrope.nn import EntropyAttention, normalized_entropy, visible_keys


def plain(module, x, key_lengths=None):
    """What module(x, return_entropy=True) has to be, from its weights, for x [B, T, C] in x's dtype."""
    w = {name: value.detach().to(x.dtype) for name, value in module.named_parameters()}

    def project(name, heads):
        y = torch.nn.functional.linear(x, w[f"{name}_proj.weight"], w.get(f"{name}_proj.bias"))
        return y.view(*x.shape[:2], heads, module.head_dim).transpose(1, 2)

    q, k, v = project("q", module.num_attention_heads), project("k", module.num_key_value_heads), project("v", module.num_key_value_heads)
    if "q_norm.weight" in w:
        q, k = ((y * (y * y).mean(-1, keepdim=True).add(1e-6).rsqrt()) * w[f"{n}_norm.weight"] for n, y in (("q", q), ("k", k)))
    if module.rope_theta is not None:  # pairs as complex numbers, each turned by its angle
        half, T = module.head_dim // 2, x.shape[1]
        frequency = module.rope_theta ** (-torch.arange(half, dtype=x.dtype) / half)
        turn = torch.polar(torch.ones(T, half, dtype=x.dtype), torch.arange(T, dtype=x.dtype)[:, None] * frequency)
        q, k = ((torch.complex(y[..., :half], y[..., half:]) * turn) for y in (q, k))
        q, k = (torch.cat([y.real, y.imag], -1) for y in (q, k))
    temperature = w.get("log_temperature")
    if temperature is not None:
        temperature = temperature.exp() if temperature.dim() == 1 else temperature[:, : x.shape[1]].exp()
    out, _, entropy, _ = reference.entropy_attention(
        q, k, v, causal=module.causal, window=module.window, softcap=module.softcap, temperature=temperature, key_lengths=key_lengths
    )
    out = torch.nn.functional.linear(out.transpose(1, 2).flatten(2), w["o_proj.weight"], w.get("o_proj.bias"))
    return out, entropy


CASES = {
    "defaults": (dict(hidden_size=32, num_attention_heads=2), 33),
    "grouped heads": (dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16), 31),
    "bias, both directions": (dict(hidden_size=32, num_attention_heads=4, bias=True, causal=False), 33),
    "window": (dict(hidden_size=32, num_attention_heads=2, window=5), 33),
    "softcap": (dict(hidden_size=32, num_attention_heads=2, softcap=2.0), 33),
    "qk_norm and rope": (dict(hidden_size=40, num_attention_heads=4, num_key_value_heads=1, head_dim=24, qk_norm=True, rope_theta=1e4), 97),
    "temperature of heads": (dict(hidden_size=32, num_attention_heads=2, temperature="head"), 33),
    "temperature of rows": (dict(hidden_size=32, num_attention_heads=2, temperature="row", max_position_embeddings=40), 33),
    "one position": (dict(hidden_size=32, num_attention_heads=2), 1),
}


def make(arguments):
    module = EntropyAttention(**arguments)
    with torch.no_grad():
        for name, value in module.named_parameters():  # logits of some size, and nothing at its start value
            value.copy_(torch.randn_like(value) * (0.3 if value.dim() == 1 or name == "log_temperature" else 2 / math.sqrt(value.shape[-1])))
            if "norm" in name:
                value.add_(1)
    return module


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("padded", [False, True])
def test_values(within_twice, case, padded):
    arguments, T = CASES[case]
    module, x = make(arguments), torch.randn(3, T, arguments["hidden_size"])
    lengths = torch.tensor([T, 1, T // 2]) if padded else None
    out, entropy = module(x, key_lengths=lengths, return_entropy=True)
    assert torch.equal(out, module(x, key_lengths=lengths))
    exact, single = plain(module, x.double(), lengths), plain(module, x, lengths)
    for name, a, p, e in zip(("out", "entropy"), (out, entropy), single, exact):
        within_twice(name, a, p, e)


@pytest.mark.parametrize("case", CASES)
def test_packed_equals_separate(case):
    arguments, T = CASES[case]
    module, lengths = make(arguments), [T, 1, (T + 1) // 2]
    xs = [torch.randn(n, arguments["hidden_size"]) for n in lengths]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    out, entropy = module(torch.cat(xs), cu_seqlens=ends, return_entropy=True)
    for x, a, h in zip(xs, out.split(lengths), entropy.split(lengths)):
        alone, its_entropy = module(x[None], return_entropy=True)
        torch.testing.assert_close(a, alone[0])
        torch.testing.assert_close(h.T, its_entropy[0])


@pytest.mark.parametrize("causal", [False, True])
def test_equals_torch_multihead_attention(causal):
    C, H, T = 48, 3, 33
    peer = torch.nn.MultiheadAttention(C, H, batch_first=True).double()
    module = EntropyAttention(C, H, bias=True, causal=causal).double()
    weight, bias = peer.in_proj_weight.chunk(3), peer.in_proj_bias.detach().copy_(torch.randn(3 * C)).chunk(3)
    with torch.no_grad():
        for part, w, b in zip((module.q_proj, module.k_proj, module.v_proj), weight, bias):
            part.weight.copy_(w), part.bias.copy_(b)
        module.o_proj.weight.copy_(peer.out_proj.weight), module.o_proj.bias.copy_(peer.out_proj.bias)
    x = torch.randn(2, T, C, dtype=torch.float64)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None
    expected, p = peer(x, x, x, attn_mask=hidden, average_attn_weights=False)
    out, entropy = module(x, return_entropy=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(entropy, torch.special.entr(p).sum(-1))


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_weights_of_hugging_face_load(kind):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_hidden_layers=1, vocab_size=7,
        intermediate_size=8, attn_implementation="eager", rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(config).double()
    module = EntropyAttention(32, 4, 2, 16, qk_norm=kind == "Qwen3", rope_theta=500.0).double()
    peer = model.layers[0].self_attn
    if kind == "Qwen3":
        peer.q_norm.weight.data.normal_(), peer.k_norm.weight.data.normal_()
    module.load_state_dict(peer.state_dict())
    x, T = torch.randn(2, 33, 32, dtype=torch.float64), 33
    mask = torch.zeros(T, T, dtype=torch.float64).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
    expected, p = peer(x, position_embeddings=model.rotary_emb(x, torch.arange(T)[None]), attention_mask=mask[None, None])
    out, entropy = module(x, return_entropy=True)
    # Its angles and its softmax are in float32 whatever the model is in.
    single = torch.finfo(torch.float32).eps * T
    torch.testing.assert_close(out, expected, rtol=single, atol=single)
    torch.testing.assert_close(entropy, torch.special.entr(p).sum(-1), rtol=single, atol=single)


# ---- gradients, compile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["qk_norm and rope", "temperature of heads", "temperature of rows"])
def test_gradcheck(case):
    arguments, _ = CASES[case]
    module = make(arguments).double()
    x = torch.randn(1, 3, arguments["hidden_size"], dtype=torch.float64, requires_grad=True)
    names, values = zip(*module.named_parameters())

    def f(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values)), x, {"return_entropy": True})

    assert torch.autograd.gradcheck(f, (x, *values), fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_learns_from_the_entropy(case):
    arguments, T = CASES[case]
    module = make(arguments)
    _, entropy = module(torch.randn(2, T, arguments["hidden_size"]), return_entropy=True)
    entropy.sum().backward()
    for name, value in module.named_parameters():
        reaches = not name.startswith(("v_proj", "o_proj"))  # entropy knows neither values nor output
        assert reaches or value.grad is None or (value.grad == 0).all(), name
        if reaches and T > 1 and name != "k_proj.bias":  # the same to every logit of a row: no change of p
            assert value.grad.abs().max() > 0, name


@pytest.mark.parametrize("case", ["defaults", "qk_norm and rope", "temperature of rows"])
@pytest.mark.parametrize("packed", [False, True])
def test_compile_fullgraph(case, packed):
    arguments, T = CASES[case]
    module = make({**arguments, "watch": True}).double()
    options = {"cu_seqlens": torch.tensor([0, 1, T])} if packed else {"key_lengths": torch.tensor([T, 2])}
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")  # traced and differentiated; what inductor adds is its own
    results = []
    for f in (module, compiled):
        torch.manual_seed(1)
        x = torch.randn(*([T] if packed else [2, T]), arguments["hidden_size"], dtype=torch.float64, requires_grad=True)
        out, entropy = f(x, **options, return_entropy=True)
        (out.square().sum() + entropy.sum()).backward()
        results.append((out, entropy, x.grad, module.last_entropy, module.last_max_logit))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


# ---- watching, dtypes ------------------------------------------------------------------------------------------------


def test_watch():
    module, x = make(CASES["window"][0]), torch.randn(2, 33, 32)
    module(x)
    assert module.last_entropy is None and module.last_max_logit is None
    module.watch = True
    _, entropy = module(x, return_entropy=True)
    assert torch.equal(module.last_entropy, entropy) and not module.last_entropy.requires_grad
    assert module.last_max_logit.shape == (2, 2, 33) and not module.last_max_logit.requires_grad
    assert set(module.state_dict()) == {f"{p}_proj.weight" for p in "qkvo"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(within_twice, dtype):
    module = make({**CASES["temperature of rows"][0], "qk_norm": True}).to(dtype)
    x = torch.randn(2, 33, 32).to(dtype)
    out, entropy = module(x, return_entropy=True)
    assert out.dtype == dtype and entropy.dtype == torch.float32
    single, exact = plain(module, x), plain(module, x.double())
    within_twice("out", out, single[0], exact[0])
    within_twice("entropy", entropy, single[1], exact[1])


def test_autocast():
    module, x = make(CASES["qk_norm and rope"][0]), torch.randn(2, 33, 40)
    with torch.autocast("cpu", torch.bfloat16):
        out, entropy = module(x, return_entropy=True)
    assert out.dtype == torch.bfloat16 and entropy.dtype == torch.float32
    out.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


# ---- visible_keys, normalized_entropy --------------------------------------------------------------------------------


@pytest.mark.parametrize("T, S", [(5, 5), (1, 7), (3, 7), (7, 3), (4, 0)])
@pytest.mark.parametrize("causal, window", [(False, None), (True, None), (True, 1), (True, 3)])
@pytest.mark.parametrize("given", ["", "lengths", "start", "lengths start"])
def test_visible_keys(T, S, causal, window, given):
    options = {"causal": causal, "window": window}
    if "lengths" in given:
        options["key_lengths"] = torch.tensor([S, 0, S // 2])
    if "start" in given:
        options["query_start"] = torch.tensor([S - T, -min(T, 2), S])
    # With the same logit everywhere a row of n keys has lse = log n.
    zero = torch.zeros(3, 1, T, 8)
    lse = reference.entropy_attention(zero, zero.new_zeros(3, 1, S, 8), zero.new_zeros(3, 1, S, 8), **options)[1]
    n = visible_keys(T, S, **options).expand(3, T)
    assert n.dtype == torch.int64 and torch.equal(n, lse[:, 0].exp().round().long())


@pytest.mark.parametrize("causal, window", [(False, None), (True, None), (True, 3)])
def test_visible_keys_of_packed_sequences(causal, window):
    ends = torch.tensor([0, 4, 4, 5, 10])
    n = visible_keys(10, 10, causal=causal, window=window, cu_seqlens=ends)
    zero = torch.zeros(10, 1, 8)
    lse = reference.entropy_attention(zero, zero, zero, causal=causal, window=window, cu_seqlens=ends)[1]
    assert torch.equal(n, lse[:, 0].exp().round().long())


def test_normalized_entropy():
    keys = torch.tensor([[1, 2, 7], [0, 1, 4]])
    entropy = keys.clamp(min=1).double().log()[:, None].expand(2, 3, 3).clone().requires_grad_()
    share = normalized_entropy(entropy, keys)
    torch.testing.assert_close(share, (keys > 1).double()[:, None].expand(2, 3, 3), rtol=0, atol=0)
    share.sum().backward()
    assert entropy.grad.isfinite().all() and ((entropy.grad > 0) == (keys > 1)[:, None]).all()
    assert torch.equal(normalized_entropy(torch.tensor([[0.0, math.log(2)]]), torch.tensor([2])), torch.tensor([[0.0, 1.0]]))


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("num_attention_heads is 4 and num_key_value_heads is 3; wanted the first a multiple of the second", dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=3)),
        ("num_attention_heads is 0", dict(hidden_size=32, num_attention_heads=0)),
        ("hidden_size is 32 and num_attention_heads is 3; wanted a multiple of num_attention_heads, or head_dim given", dict(hidden_size=32, num_attention_heads=3)),
        ("head_dim is 4; wanted a multiple of 8 up to 256", dict(hidden_size=32, num_attention_heads=8)),
        ("head_dim is 264; wanted a multiple of 8 up to 256", dict(hidden_size=32, num_attention_heads=8, head_dim=264)),
        ("window is 4 and causal is False; wanted", dict(hidden_size=32, num_attention_heads=2, window=4, causal=False)),
        ("window is 0 and causal is True; wanted", dict(hidden_size=32, num_attention_heads=2, window=0)),
        ("softcap is 0; wanted above 0", dict(hidden_size=32, num_attention_heads=2, softcap=0)),
        ("softcap is nan; wanted above 0", dict(hidden_size=32, num_attention_heads=2, softcap=float("nan"))),
        ("rope_theta is -1.0; wanted above 0", dict(hidden_size=32, num_attention_heads=2, rope_theta=-1.0)),  # its powers are NaN
        ("rope_theta is inf; wanted above 0", dict(hidden_size=32, num_attention_heads=2, rope_theta=float("inf"))),
        ("max_position_embeddings is 0; wanted at least 1", dict(hidden_size=32, num_attention_heads=2, temperature="row", max_position_embeddings=0)),
        ("num_attention_heads is 2.0; wanted an integer", dict(hidden_size=32, num_attention_heads=2.0)),
        ("num_attention_heads is None; wanted an integer", dict(hidden_size=32, num_attention_heads=None)),
        ("window is 2.5; wanted an integer", dict(hidden_size=32, num_attention_heads=2, window=2.5)),
        ("temperature is 'rows'; wanted None, 'head' or 'row'", dict(hidden_size=32, num_attention_heads=2, temperature="rows")),
        ("'row', and 'row' alone, needs it", dict(hidden_size=32, num_attention_heads=2, temperature="row")),
        ("temperature is 'head' and max_position_embeddings is 9", dict(hidden_size=32, num_attention_heads=2, temperature="head", max_position_embeddings=9)),
    ],
)
def test_bad_options(message, arguments):
    with pytest.raises((ValueError, TypeError), match=message):
        EntropyAttention(**arguments)


def test_bad_input():
    module = EntropyAttention(32, 2, temperature="row", max_position_embeddings=8)
    with pytest.raises(ValueError, match="x has 9 positions; wanted at most max_position_embeddings, which is 8"):
        module(torch.zeros(1, 9, 32))
    with pytest.raises(IndexError):
        module(torch.zeros(9, 32), cu_seqlens=torch.tensor([0, 9]))
    with pytest.raises(ValueError, match=r"x has shape \[9, 32\]; wanted \[B, T, 32\], or \[total, 32\] with cu_seqlens"):
        module(torch.zeros(9, 32))
    with pytest.raises(ValueError, match=r"x has shape \[1, 8, 31\]; wanted \[B, T, 32\]"):
        module(torch.zeros(1, 8, 31))
    with pytest.raises(ValueError, match="window is 2 and causal is False; wanted"):
        visible_keys(4, 9, causal=False, window=2)
    with pytest.raises(ValueError, match=r"x has shape \[1, 9, 32\]"):
        module(torch.zeros(1, 9, 32), cu_seqlens=torch.tensor([0, 9]))


def test_isentrope_exports_nn():
    assert isentrope.nn.EntropyAttention is EntropyAttention
