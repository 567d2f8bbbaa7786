"""isentrope.nn's LinearAttention, GatedDeltaNet, feature maps, weight_entropy and effective_rank, against plain torch in double."""

import math

import pytest
import torch

import isentrope
from isentrope import nn, reference

MAPS = {name: getattr(nn.feature_maps, name) for name in nn.feature_maps.__all__}


def test_feature_maps():
    x, y = torch.randn(7, 16, dtype=torch.float64), torch.randn(7, 16, dtype=torch.float64)
    torch.testing.assert_close(nn.feature_maps.elu_plus_one(x), torch.where(x > 0, x + 1, x.exp()))
    assert torch.equal(nn.feature_maps.relu(x), x.clamp_min(0))
    torch.testing.assert_close(nn.feature_maps.exp_normalized(x).sum(-1), torch.ones(7, dtype=torch.float64))
    s = (x * y).sum(-1) / 4
    taylor = nn.feature_maps.taylor2(x)
    assert taylor.shape == (7, 1 + 16 + 136)
    torch.testing.assert_close((taylor * nn.feature_maps.taylor2(y)).sum(-1), 1 + s + s * s / 2)
    for name, phi in MAPS.items():
        assert (phi(x.float()) >= 0).all() or name == "taylor2"
        assert phi(x.bfloat16()).dtype == torch.bfloat16
        assert torch.autograd.gradcheck(phi, (x[:2, :4].clone().requires_grad_(),))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("decay", [None, "head", "token"])
@pytest.mark.parametrize("normalizer", [True, False])
def test_linear_attention_module(name, decay, normalizer):
    layer = nn.LinearAttention(24, 4, 2, 8, feature_map=MAPS[name], decay=decay, normalizer=normalizer, dtype=torch.float64)
    x, phi = torch.randn(2, 33, 24, dtype=torch.float64), MAPS[name]
    q, k, v = (p(x).unflatten(-1, (-1, 8)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    g = torch.zeros(2, 2, 33, dtype=torch.float64)
    if decay == "head":
        g = g - torch.nn.functional.softplus(layer.head_decay.double())[:, None]
    if decay == "token":
        g = (-layer.decay.A_log.exp() * torch.nn.functional.softplus(layer.decay.proj(x) + layer.decay.dt_bias)).transpose(1, 2)
    out, state = reference.linear_attention(phi(q), phi(k), v, g, normalizer=normalizer)
    y, last = layer(x, return_state=True)
    tolerance = dict(rtol=1e-5, atol=1e-6) if decay == "head" else {}  # its rates are float
    torch.testing.assert_close(y, layer.o_proj(out.transpose(1, 2).flatten(2)), **tolerance)
    torch.testing.assert_close(last, state, **tolerance)
    # A token at a time, and padding that is not read.
    state, rows = None, []
    for t in range(33):
        row, state = layer(x[:, t : t + 1], state=state, return_state=True)
        rows.append(row)
    torch.testing.assert_close(torch.cat(rows, 1), y)
    spoilt = x.clone()
    spoilt[0, 20:] = math.nan
    torch.testing.assert_close(layer(spoilt, key_lengths=torch.tensor([20, 33]))[0, :20], y[0, :20])


def test_linear_attention_module_of_packed_sequences():
    layer = nn.LinearAttention(24, 4, 2, decay="token")
    x, ends = torch.randn(50, 24), torch.tensor([0, 20, 20, 50])
    y, states = layer(x, cu_seqlens=ends, return_state=True)
    for n, (a, b) in enumerate([(0, 20), (20, 20), (20, 50)]):
        one, state = layer(x[None, a:b], return_state=True)
        torch.testing.assert_close(y[a:b], one[0])
        torch.testing.assert_close(states[n], state[0])


def test_rates_of_heads_begin_between_a_half_and_a_512th():
    layer = nn.LinearAttention(64, 8, decay="head")
    rates = torch.nn.functional.softplus(layer.head_decay)
    torch.testing.assert_close(rates, torch.logspace(-1, -9, 8, base=2))
    decay = nn.GatedDeltaNet(512, 64).decay
    assert (decay.A_log >= 0).all() and (decay.A_log <= math.log(16)).all()
    dt = torch.nn.functional.softplus(decay.dt_bias)
    assert (dt > 0.99e-3).all() and (dt < 0.101).all()


def plain_delta(layer, x):
    """GatedDeltaNet written out."""
    G, D = layer.num_heads, layer.head_dim
    inputs = torch.cat([layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)], -1)
    mixed = torch.zeros_like(inputs)
    for t in range(x.shape[1]):
        for j in range(layer.conv_size):
            at = t - (layer.conv_size - 1) + j
            if at >= 0:
                mixed[:, t] += layer.conv.weight[:, 0, j] * inputs[:, at]
    mixed = mixed * mixed.sigmoid()
    q, k, v = (y.unflatten(-1, (G, -1)).transpose(1, 2) for y in mixed.split([G * D, G * D, G * layer.value_dim], -1))
    q, k = q / q.norm(dim=-1, keepdim=True) / math.sqrt(D), k / k.norm(dim=-1, keepdim=True)
    beta = layer.most_beta * layer.b_proj(x).sigmoid().transpose(1, 2)
    g = (-layer.decay.A_log.exp() * torch.nn.functional.softplus(layer.decay.proj(x) + layer.decay.dt_bias)).transpose(1, 2)
    out = reference.gated_delta_rule(q, k, v, beta, g)[0].transpose(1, 2)
    out = out * (out.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * layer.o_norm.weight
    gate = layer.g_proj(x).unflatten(-1, (G, -1))
    return layer.o_proj((out * gate * gate.sigmoid()).flatten(2))


@pytest.mark.parametrize("arguments", [{}, {"allow_negative": True, "conv_size": 1, "expand_v": 1.5}, {"head_dim": 6, "conv_size": 3}])
def test_gated_delta_net(arguments):
    layer = nn.GatedDeltaNet(16, 2, dtype=torch.float64, **arguments)
    x = torch.randn(2, 70, 16, dtype=torch.float64)
    y, whole = layer(x, return_state=True)
    # The gates of β are float.
    torch.testing.assert_close(y, plain_delta(layer, x), rtol=1e-5, atol=1e-6)
    state, rows = None, []
    for a, b in ((0, 1), (1, 3), (3, 40), (40, 70)):
        row, state = layer(x[:, a:b], state=state, return_state=True)
        rows.append(row)
    torch.testing.assert_close(torch.cat(rows, 1), y)
    torch.testing.assert_close(state, whole)
    gated = layer(x, write=torch.zeros(2, 2, 2, dtype=torch.float64))
    torch.testing.assert_close(gated[:, :64], y[:, :64])
    assert not torch.allclose(gated[:, 64:], y[:, 64:])


def test_modules_learn():
    for layer in (nn.LinearAttention(16, 2, decay="token"), nn.GatedDeltaNet(16, 2)):
        x = torch.randn(4, 70, 16)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        losses = []
        for _ in range(15):
            loss = (layer(x)[:, 1:] - x[:, :-1]).square().mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
            optimizer.step()
        assert losses[-1] < losses[0]


def dense_weights(q, k, decay):
    k, sums = k.repeat_interleave(q.shape[1] // k.shape[1], 1), decay.cumsum(-1).repeat_interleave(q.shape[1] // k.shape[1], 1)
    return (q @ k.mT * (sums[..., :, None] - sums[..., None, :]).exp()).tril()


@pytest.mark.parametrize("D", [1, 5])
@pytest.mark.parametrize("T", [1, 40, 300])
def test_weight_entropy(D, T):
    q, k = torch.rand(2, 4, T, D, dtype=torch.float64) + 0.01, torch.rand(2, 2, T, D, dtype=torch.float64)
    decay = 0.05 - 0.3 * torch.rand(2, 2, T, dtype=torch.float64)
    for x in (q, k, decay):
        x.requires_grad_()
    p = dense_weights(q, k, decay)
    p = p / p.sum(-1, keepdim=True)
    exact = -torch.special.xlogy(p, p.masked_fill(p == 0, 1)).sum(-1)
    entropy = nn.weight_entropy(q, k, decay)
    torch.testing.assert_close(entropy, exact, rtol=1e-9, atol=1e-9)
    assert (entropy[..., 0].abs() < 1e-12).all()
    for a, e in zip(torch.autograd.grad(entropy.sum(), (k, decay)), torch.autograd.grad(exact.sum(), (k, decay))):
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(nn.weight_entropy(torch.ones_like(q), torch.ones_like(k))[0, 0], torch.arange(1, T + 1, dtype=torch.float64).log())


@pytest.mark.parametrize("D", [1, 3])
def test_weight_entropy_where_it_is_not_defined(D):
    q, k = torch.ones(1, 1, 9, D), torch.ones(1, 1, 9, D)
    k[0, 0, 4] = -1.0
    entropy = nn.weight_entropy(q, k)[0, 0]
    assert entropy[:4].isfinite().all() and entropy[4:].isnan().all()
    k[0, 0, 4], k[0, 0, 0] = 1.0, 0.0
    entropy = nn.weight_entropy(q, k)[0, 0]
    assert entropy.isfinite().all() and entropy[0] == 0 and entropy[1].abs() < 1e-6


def test_effective_rank():
    u, v = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0], torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    of = lambda *s: nn.effective_rank(u[:, : len(s)] * torch.tensor(s, dtype=torch.float64) @ v[: len(s)])  # noqa: E731
    for actual, expected in ((of(3.0, 3.0, 3.0), 3.0), (of(2.0), 1.0), (of(3.0, 1.0), math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))):
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))
    assert nn.effective_rank(torch.zeros(2, 3, 4)).tolist() == [0, 0]
    _, state = isentrope.linear_attention(*(torch.randn(2, 3, 50, 8) for _ in range(3)))
    assert nn.effective_rank(state).shape == (2, 3)


@pytest.mark.parametrize("make, message", [
    (lambda: nn.LinearAttention(24, 3, 2), "num_attention_heads is 3 and num_key_value_heads is 2"),
    (lambda: nn.LinearAttention(25, 4), "hidden_size is 25 and num_attention_heads is 4"),
    (lambda: nn.LinearAttention(24, 4, decay="all"), "decay is 'all'; wanted None, 'head' or 'token'"),
    (lambda: nn.GatedDeltaNet(24, 4, expand_v=0.3), "expand_v is 0.3; wanted a value that makes whole elements of head_dim, which is 6"),
    (lambda: nn.GatedDeltaNet(24, 4, conv_size=0), "conv_size is 0; wanted at least 1"),
    (lambda: nn.GatedDeltaNet(24, 4, head_dim=0), "head_dim is 0; wanted at least 1"),
])  # fmt: skip
def test_bad_options_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
