"""Block masks, gates, sinks, slopes and places of entropy_attention on the CPU, and on a GPU where there is one, against
isentrope.reference in double. Tolerances: test_entropy_attention.py."""

import random

import pytest
import torch
from test_entropy_attention import ANOTHER_INSTRUCTION_SET, DEVICES, DTYPES, INF, NAMES, Pool, draw, dtypes_of

import isentrope
from compiled import compiled as in_one_graph
from isentrope import reference

LEAVES = ("temperature", "gates", "sinks")  # of the options, those with a gradient


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def pool():
    pool = Pool()
    yield pool
    pool.check()


def results(op, inputs, weights, options, dtype, statistic):
    """Outputs of op, and the gradients of Σ weight·output (out, lse, entropy) by q, k, v and the options of LEAVES."""
    options = {name: x.to(statistic) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in options.items()}
    leaves = [x.detach().to(dtype).clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    named = {name: options[name].detach().clone().requires_grad_() for name in LEAVES if name in options}
    outputs = op(*leaves, **{**options, **named})
    finite = [torch.where(x.isinf(), 0, x) for x in outputs[:3]]
    sum((x * w.to(x.dtype)).sum() for x, w in zip(finite, weights)).backward()
    names = [*NAMES, "dq", "dk", "dv", *("d" + name for name in named)]
    return dict(zip(names, [*(x.detach() for x in outputs), *(leaf.grad for leaf in [*leaves, *named.values()])]))


def check(pool, inputs, spoilt=None, **options):
    """Ours on spoilt, if given, against the reference on inputs."""
    dtype = inputs[0].dtype
    plain = torch.float32 if dtype == torch.float64 else dtype
    rows = inputs[0].shape[:-1]
    weights = [torch.randn(shape, device=inputs[0].device).to(plain) for shape in (inputs[0].shape, rows, rows)]
    statistic = torch.float64 if dtype == torch.float64 else torch.float32
    ours = results(isentrope.entropy_attention, spoilt or inputs, weights, options, dtype, statistic)
    exact = results(reference.entropy_attention, inputs, weights, options, torch.float64, torch.float64)
    theirs = results(reference.entropy_attention, inputs, weights, options, plain, plain)
    for name, x in ours.items():
        pool.add(f"q {list(inputs[0].shape)}, k {list(inputs[1].shape)}, {options}", name, x, theirs[name], exact[name])


def blocks_of(rows, size):
    return -(-rows // size)


def random_mask(B, H, T, S, size, share=0.4):
    return torch.rand(B, H, blocks_of(T, size), blocks_of(S, size)) < share


def columns_of(mask):
    """The lists of columns that say the same as a mask."""
    numbers = torch.arange(mask.shape[-1]).expand(mask.shape).masked_fill(~mask, mask.shape[-1])
    most = int(mask.sum(-1).max()) if mask.numel() else 0
    numbers = numbers.sort(-1).values[..., : most + 1]
    return numbers.masked_fill(numbers == mask.shape[-1], -1)


# ---- values ----------------------------------------------------------------------------------------------------------


def random_case(seed):
    """A case with any of the options together: (inputs, options)."""
    r, torch_seed = random.Random(seed), torch.manual_seed(seed)  # noqa: F841
    B, G, group = r.choice([1, 2]), r.choice([1, 2]), r.choice([1, 1, 3])
    T, S = r.choice([1, 2, 31, 65, 97, 130, 200]), r.choice([1, 31, 65, 130, 300, 700])
    H, D, size = G * group, r.choice([8, 40, 64, 128]), r.choice([16, 32, 48, 64, 128])
    options = {"causal": r.random() < 0.7}
    if options["causal"] and r.random() < 0.4:
        options["window"] = r.choice([1, 40, 1000])
    if r.random() < 0.3:
        options["softcap"] = r.choice([1.0, 5.0])
    if r.random() < 0.4:
        options["temperature"] = 0.5 + torch.rand(*r.choice([(H,), (H, T), (B, H, T)]))
    if r.random() < 0.3:
        options["key_lengths"] = torch.tensor([r.choice([0, 1, S // 2, S]) for _ in range(B)])
    start = r.random()
    if start < 0.2:
        options["query_start"] = torch.tensor([r.randint(0, S) for _ in range(B)])
    elif start < 0.5:
        options["query_start"] = torch.randint(-1, S + 1, (B, T)).sort(-1).values
    if r.random() < 0.8:
        mask = random_mask(B, r.choice([1, H]), T, S, size, r.choice([0.2, 0.5, 0.9]))
        options.update(block_mask=mask if r.random() < 0.7 else columns_of(mask), block_size=size)
        if r.random() < 0.5:
            gates = 0.2 + torch.rand(B, r.choice([1, H]), r.choice([1, mask.shape[2]]), mask.shape[3])
            options["gates"] = gates.masked_fill(torch.rand_like(gates) < 0.2, 0)
    if r.random() < 0.4:
        options["sinks"] = torch.randn(H)
    if r.random() < 0.4:
        options["slopes"] = 0.1 * torch.rand(H)
    return dict(B=B, H=H, T=T, D=D, G=G, S=S, dtype=r.choice(DTYPES)), options


@pytest.mark.parametrize("first", range(0, 240, 60))
def test_options_together(pool, device, first):
    for seed in range(first, first + 60):
        arguments, options = random_case(seed)
        if arguments["dtype"] not in dtypes_of(device):
            continue
        options = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
        check(pool, draw(**arguments, device=device), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 64])
def test_packed_sequences(pool, device, dtype, size):
    ends = torch.tensor([0, 5, 5, 170, 171, 335], device=device)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in draw(1, 4, 335, 32, G=2, dtype=dtype, device=device))
    mask = random_mask(5, 4, 165, 165, size, 0.6).to(device)
    gates = (0.5 + torch.rand(5, 4, 1, mask.shape[3])).to(device)
    options = {"block_mask": mask, "block_size": size, "max_seqlen": 165, "sinks": torch.randn(4, device=device)}
    check(pool, [q, k, v], causal=True, cu_seqlens=ends, gates=gates, slopes=torch.rand(4, device=device) / 8, **options)
    check(pool, [q, k, v], causal=False, cu_seqlens=ends.int(), temperature=torch.full((4,), 0.7), **options)


@pytest.mark.parametrize("index", range(len(DTYPES)))
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_long_rows_of_blocks(pool, device, index, share):
    if DTYPES[index] not in dtypes_of(device):
        pytest.skip("double is the CPU's")
    inputs = draw(1, 2, 200, 64, S=3000, dtype=DTYPES[index], device=device)
    check(pool, inputs, causal=True, block_mask=random_mask(1, 2, 200, 3000, 64, share).to(device), block_size=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lists_of_columns_are_the_mask(device, dtype):
    q, k, v = draw(2, 4, 130, 64, G=2, S=300, dtype=dtype, device=device)
    mask = random_mask(2, 1, 130, 300, 32).to(device)
    lists = columns_of(mask.cpu()).to(device)
    for columns in (lists, lists.flip(-1).int(), torch.cat([lists, lists], -1)):  # any order, any number of times
        for a, b in zip(*(isentrope.entropy_attention(q, k, v, causal=True, block_mask=m, block_size=32) for m in (mask, columns))):
            assert torch.equal(a, b)


def test_all_blocks_are_no_mask(device):
    q, k, v = draw(2, 4, 130, 64, G=2, S=300, device=device)
    plain = isentrope.entropy_attention(q, k, v, causal=True)
    whole = torch.ones(2, 1, 3, 5, dtype=torch.bool, device=device)
    for options in ({}, {"gates": torch.ones(2, 1, 1, 5, device=device)}):
        for name, a, b in zip(NAMES, isentrope.entropy_attention(q, k, v, causal=True, block_mask=whole, block_size=64, **options), plain):
            torch.testing.assert_close(a, b, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", [3, 200])
def test_rows_without_a_column(device, dtype, T):
    q, k, v = (x.requires_grad_() for x in draw(1, 2, T, 64, S=300, dtype=dtype, device=device))
    mask = torch.ones(1, 2, blocks_of(T, 64), 5, dtype=torch.bool, device=device)
    mask[0, 1, -1] = False
    out, lse, entropy, max_logit = isentrope.entropy_attention(q, k, v, causal=False, block_mask=mask, block_size=64)
    empty = torch.zeros(1, 2, T, dtype=torch.bool, device=device)
    empty[0, 1, (T - 1) // 64 * 64 :] = True
    assert (out[empty] == 0).all() and (lse[empty] == -INF).all() and (entropy[empty] == 0).all() and (max_logit[empty] == -INF).all()
    assert lse[~empty].isfinite().all()
    (out.sum() + lse.masked_fill(empty, 0).sum() + entropy.sum()).backward()
    assert (q.grad[empty] == 0).all() and all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("index", range(len(DTYPES)))
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("T", [2, 130])
@pytest.mark.parametrize("value", [float("nan"), INF])
def test_what_is_not_kept_is_not_seen(pool, index, size, T, value):
    inputs = draw(1, 2, T, 64, S=200, dtype=DTYPES[index])
    mask = random_mask(1, 1, T, 200, size)
    mask[..., 1] = False
    spoilt = [x.clone() for x in inputs]
    for x in spoilt[1:]:
        x[:, :, size : 2 * size] = value
    check(pool, inputs, spoilt, causal=False, block_mask=mask, block_size=size, gates=torch.ones(1, 1, 1, mask.shape[3]))


def test_a_step_of_decoding(pool, device):
    for group, dtype in ((1, torch.float32), (3, torch.float32), (3, torch.bfloat16), (8, torch.float32)):
        q, k, v = draw(2, 2 * group, 1, 64, G=2, S=1100, dtype=dtype, device=device)
        mask = random_mask(2, 2 * group, 1, 1100, 16, 0.25).to(device)
        check(pool, [q, k, v], causal=True, block_mask=mask, block_size=16, key_lengths=torch.tensor([1100, 700], device=device),
              sinks=torch.randn(2 * group, device=device), slopes=torch.rand(2 * group, device=device) / 100)  # fmt: skip


# ---- gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 48, 64])
def test_gates_are_factors_of_weights(size):
    q, k, v = draw(1, 2, 100, 16, S=150, dtype=torch.float64)
    mask, gates = random_mask(1, 2, 100, 150, size, 0.8), 2 * torch.rand(1, 2, blocks_of(100, size), blocks_of(150, size), dtype=torch.float64)
    gates[0, 0, 0, 0] = 0
    out = isentrope.entropy_attention(q, k, v, causal=False, block_mask=mask, block_size=size, gates=gates).out
    weight = (q @ k.transpose(-1, -2) / 4).exp()
    for i, j in ((i, j) for i in range(100) for j in range(150)):
        weight[..., i, j] *= (gates * mask)[..., i // size, j // size]
    torch.testing.assert_close(out, weight @ v / weight.sum(-1, keepdim=True).clamp(min=1e-300))


def test_the_gradient_of_a_routed_column():
    """NAtS-L: with m_c a factor of the keys of chunk c for the rows of later chunks, dL/dm_c = Σ_i Σ_j exp(s_ij - lse_i)(dP_ij - D_i)."""
    C, T = 16, 96
    q, k, v = draw(1, 1, T, 16, dtype=torch.float64)
    route = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64).requires_grad_()  # straight-through: values 0 and 1
    own = torch.eye(6, dtype=torch.bool)
    gates = torch.where(own, 1.0, route.expand(6, 6))[None, None]
    out, lse, _, _ = isentrope.entropy_attention(q, k, v, causal=True, block_mask=torch.ones(1, 1, 6, 6, dtype=torch.bool), block_size=C, gates=gates)
    dout = torch.randn_like(out)
    (out * dout).sum().backward()
    ratio = (q @ k.transpose(-1, -2) / 4 - lse[..., None]).exp().detach()
    terms = ratio * (dout @ v.transpose(-1, -2) - (dout * out).sum(-1, keepdim=True)).detach()
    for c in range(6):
        later = terms[..., (c + 1) * C :, c * C : (c + 1) * C].sum()
        torch.testing.assert_close(route.grad[c], later if route[c] > 0 else torch.zeros_like(later))


# ---- sinks, slopes, places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", [2, 65])
def test_a_sink_is_a_state_without_value(device, dtype, T):
    if dtype not in dtypes_of(device):
        pytest.skip("double is the CPU's")
    q, k, v = draw(2, 4, T, 64, G=2, S=60, dtype=dtype, device=device)
    sinks = torch.tensor([-3.0, 0.0, 2.0, -INF], device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    plain = isentrope.entropy_attention(q, k, v, causal=True)
    column = sinks[:, None].expand(2, 4, T)
    one = isentrope.EntropyAttentionOutput(torch.zeros_like(plain.out), column, torch.zeros_like(column), column)
    merged = isentrope.merge_attention_states(*(torch.stack(x) for x in zip(plain, one)))
    for name, a, b in zip(NAMES, isentrope.entropy_attention(q, k, v, causal=True, sinks=sinks), merged):
        torch.testing.assert_close(a, b, msg=lambda m: f"{name}: {m}")


def test_rows_that_see_the_sink_alone(device):
    q, k, v = (x.requires_grad_() for x in draw(1, 2, 70, 64, S=33, device=device))
    sinks = torch.tensor([0.5, -2.0], device=device, requires_grad=True)
    out, lse, entropy, max_logit = isentrope.entropy_attention(q, k, v, causal=True, sinks=sinks)
    assert (out[:, :, :37] == 0).all() and (entropy[:, :, :37] == 0).all()
    torch.testing.assert_close(lse[0, :, :37], sinks[:, None].expand(2, 37))
    torch.testing.assert_close(max_logit[0, :, :37], sinks[:, None].expand(2, 37))
    (lse[:, :, :37].sum() + out[:, :, :37].sum()).backward()
    torch.testing.assert_close(sinks.grad, torch.full_like(sinks, 37.0))
    assert all((x.grad == 0).all() for x in (q, k, v))
    for S in (0, 5):  # no keys at all, no queries
        none = [torch.zeros(1, 2, n, 8, device=device) for n in (5 - S, S, S)]
        leaf = sinks.detach().clone().requires_grad_()
        lse = isentrope.entropy_attention(*none, causal=False, sinks=leaf).lse
        lse.sum().backward()
        torch.testing.assert_close(leaf.grad, torch.full_like(leaf, 5.0 - S))


def test_slopes_are_those_of_alibi(device):
    q, k, v = draw(1, 8, 40, 64, device=device)
    slopes = torch.tensor([2.0 ** -(h + 1) for h in range(8)], device=device)  # the published ones of eight heads
    place = torch.arange(40, device=device)
    bias = -slopes[:, None, None] * (place[:, None] - place).abs()
    wanted = (q @ k.transpose(-1, -2) / 8 + bias).masked_fill(place > place[:, None], -INF).softmax(-1) @ v
    torch.testing.assert_close(isentrope.entropy_attention(q, k, v, causal=True, slopes=slopes).out, wanted)
    with pytest.raises(ValueError, match=r"slopes require a gradient, and have none; wanted slopes.detach\(\)"):
        isentrope.entropy_attention(q, k, v, causal=True, slopes=slopes.requires_grad_())


def test_places_of_neighbours_are_a_start(device):
    q, k, v = draw(2, 4, 65, 64, G=2, S=97, device=device)
    start = torch.tensor([3, 32], device=device)
    places = start[:, None] + torch.arange(65, device=device)
    both = [isentrope.entropy_attention(q, k, v, causal=True, window=20, query_start=x) for x in (start, places.clamp(max=97))]
    for name, a, b in zip(NAMES, *both):
        assert torch.equal(a, b), name


# ---- what torch asks of an op ----------------------------------------------------------------------------------------


def small(dtype, device="cpu"):
    q, k, v = (x.requires_grad_() for x in draw(2, 2, 20, 16, G=1, S=35, dtype=dtype, device=device))
    statistic = torch.float64 if dtype == torch.float64 else torch.float32
    torch.manual_seed(5)
    options = {"block_mask": random_mask(2, 2, 20, 35, 16, 0.7).to(device), "block_size": 16,
               "gates": (0.5 + torch.rand(2, 1, 2, 3)).to(device, statistic).requires_grad_(),
               "sinks": torch.randn(2).to(device, statistic).requires_grad_(), "slopes": torch.rand(2).to(device, statistic)}  # fmt: skip
    return (q, k, v), options


def test_gradcheck():
    (q, k, v), options = small(torch.float64)
    temperature = (0.5 + torch.rand(2, 20, dtype=torch.float64)).requires_grad_()

    def op(q, k, v, gates, sinks, temperature):
        given = {**options, "gates": gates, "sinks": sinks, "temperature": temperature}
        return isentrope.entropy_attention(q, k, v, causal=True, softcap=2.0, window=30, **given)[:3]

    assert torch.autograd.gradcheck(op, (q, k, v, options["gates"], options["sinks"], temperature))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device, dtype):
    inputs, options = small(dtype, device)
    op, backward = torch.ops.isentrope.entropy_attention.default, torch.ops.isentrope.entropy_attention_backward.default
    torch.library.opcheck(op, inputs, {"causal": True, **options})
    torch.library.opcheck(op, inputs, {"causal": True, **options, "block_mask": columns_of(options["block_mask"].cpu()).to(device)})
    places = torch.arange(20, device=device).expand(2, 20).contiguous()
    torch.library.opcheck(op, inputs, {"causal": True, "query_start": places, "sinks": options["sinks"]})
    with torch.no_grad():
        out, lse, entropy, _, anchor, log_sum = op(*inputs, causal=True, **options)
    given = [x.detach() for x in (*inputs, out, entropy, anchor, log_sum)]
    given += [torch.randn_like(out), None, torch.randn_like(lse)]
    constants = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    torch.library.opcheck(backward, given, {"causal": True, **constants, "of_gates": True, "of_sinks": True})


def test_compile_fullgraph(device):
    def loss(q, k, v, gates, sinks, mask, slopes):
        out, lse, entropy, _ = isentrope.entropy_attention(q, k, v, causal=True, block_mask=mask, block_size=16, gates=gates, sinks=sinks, slopes=slopes)
        return (out * out).sum() + lse.sum() - 0.1 * entropy.sum()

    compiled = in_one_graph(loss, device, dynamic=True)
    for T in (33, 70):
        tensors = [*draw(2, 4, T, 32, G=2, device=device), torch.rand(2, 1, 1, blocks_of(T, 16), device=device), torch.randn(4, device=device)]
        constants = random_mask(2, 4, T, T, 16, 0.6).to(device), torch.rand(4, device=device)
        grads = []
        for f in (loss, compiled):
            leaves = [x.clone().requires_grad_() for x in tensors]
            f(*leaves, *constants).backward()
            grads.append([leaf.grad for leaf in leaves])
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b)


def test_second_derivatives_are_refused():
    (q, k, v), options = small(torch.float32)
    out = isentrope.entropy_attention(q, k, v, causal=True, **options).out
    (first,) = torch.autograd.grad(out.square().sum(), options["gates"], create_graph=True)
    with pytest.raises(RuntimeError, match="isentrope::entropy_attention_backward.*not implemented"):
        first.sum().backward()


def test_autocast_leaves_what_is_not_multiplied():
    (q, k, v), options = small(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = isentrope.entropy_attention(q, k, v, causal=True, **options)
    outside = isentrope.entropy_attention(*(x.bfloat16() for x in (q, k, v)), causal=True, **options)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(inside, outside))


@pytest.mark.parametrize("mapped", [(True, True, True, False), (True, False, False, False), (False, False, True, False), (True, True, True, True)])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap(mapped):
    torch.manual_seed(3)
    shapes = [(2, 4, 20, 16), None, (2, 1, 1, 3), (4,)]  # q, mask, gates, sinks
    k = torch.randn(2, 2, 35, 16, dtype=torch.float64)
    given = [torch.rand(*([3] * m), *(s or (2, 4, 2, 3)), dtype=torch.float64) for s, m in zip(shapes, mapped)]
    given[1] = given[1] < 0.7

    def f(q, gates, sinks, mask):
        out, lse, entropy, _ = isentrope.entropy_attention(q, k, k, causal=True, block_mask=mask, block_size=16, gates=gates, sinks=sinks)
        return out.square().sum() + lse.sin().sum() + entropy.square().sum()

    order = [given[0], given[2], given[3], given[1]]
    dims = tuple(0 if mapped[i] else None for i in (0, 2, 3, 1))
    actual = torch.func.vmap(torch.func.grad(f, argnums=(0, 1, 2)), in_dims=dims)(*order)
    for m in range(3):
        one = [x[m] if d == 0 else x for x, d in zip(order, dims)]
        for a, e in zip(actual, torch.func.grad(f, argnums=(0, 1, 2))(*one)):
            torch.testing.assert_close(a[m], e)


# ---- determinism, instruction sets -----------------------------------------------------------------------------------


def everything(inputs, **options):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    named = {name: options[name].detach().clone().requires_grad_() for name in LEAVES if name in options}
    out, lse, entropy, max_logit = isentrope.entropy_attention(*leaves, **{**options, **named})
    (out.float().square().sum() + lse.nan_to_num(neginf=0).sum() + entropy.sum()).backward()
    return [x.detach() for x in (out, lse, entropy, max_logit)] + [leaf.grad for leaf in [*leaves, *named.values()]]


@pytest.mark.parametrize("shape, size", [((1, 1, 1500, 64), 48), ((2, 4, 130, 40), 16), ((4, 2, 65, 128), 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads(shape, size, dtype):
    inputs, (B, H, T, _) = draw(*shape, dtype=dtype), shape
    options = {"causal": True, "block_mask": random_mask(B, H, T, T, size), "block_size": size, "sinks": torch.randn(H),
               "gates": 0.5 + torch.rand(B, H, 1, blocks_of(T, size)), "slopes": torch.rand(H)}  # fmt: skip
    torch.set_num_threads(1)
    first = everything(inputs, **options)
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(first, everything(inputs, **options)))


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(same_on, capability):
    if capability == "avx2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has less")
    cases = []
    for dtype in (torch.float32, torch.float16, torch.float64):
        for T, S, size in ((65, 130, 16), (1, 300, 32)):
            inputs = draw(2, 2, T, 40, S=S, dtype=dtype)
            options = {"causal": False, "block_mask": torch.cat([random_mask(2, 1, T, S, size), torch.ones(2, 1, blocks_of(T, size), 1).bool()], -1)[..., 1:],
                       "block_size": size, "slopes": torch.rand(2)}  # fmt: skip
            cases.append((inputs, options, everything(inputs, **options)))
    same_on(capability, ANOTHER_INSTRUCTION_SET, cases)


# ---- bad input -------------------------------------------------------------------------------------------------------

Q, K, P = torch.zeros(2, 4, 40, 16), torch.zeros(2, 2, 70, 16), torch.zeros(40, 4, 16)
MASK = torch.ones(2, 1, 3, 5, dtype=torch.bool)
LISTS = torch.zeros(2, 4, 3, 2, dtype=torch.long)


@pytest.mark.parametrize(
    "error, message, arguments, options",
    [
        (ValueError, "block_mask is given without block_size", (Q, K, K), {"block_mask": MASK}),
        (ValueError, "block_size is given without block_mask", (Q, K, K), {"block_size": 16}),
        (ValueError, "block_size is 24; wanted a multiple of 16", (Q, K, K), {"block_mask": MASK, "block_size": 24}),
        (ValueError, "block_size is 0; wanted a multiple of 16", (Q, K, K), {"block_mask": MASK, "block_size": 0}),
        (ValueError, r"block_mask has shape \[2, 1, 3, 5\]; wanted \[2, 4, 2, 3\] \(B, H or 1, blocks of block_size rows", (Q, K, K), {"block_mask": MASK, "block_size": 32}),
        (ValueError, r"block_mask has shape \[2, 2, 3, 5\]; wanted \[2, 4, 3, 5\]", (Q, K, K), {"block_mask": MASK.expand(2, 2, 3, 5), "block_size": 16}),
        (ValueError, r"block_mask has shape \[1, 1, 3, 5\]; wanted \[2, 4, 3, 5\]", (Q, K, K), {"block_mask": MASK[:1], "block_size": 16}),
        (ValueError, r"block_mask has shape \[3, 5\]; wanted \[2, 4, 3, 5\]", (Q, K, K), {"block_mask": MASK[0, 0], "block_size": 16}),
        (TypeError, "block_mask has dtype Float; wanted Bool, Int, Long", (Q, K, K), {"block_mask": MASK.float(), "block_size": 16}),
        (ValueError, "block_mask names column 5; wanted 0 to 4, the blocks of keys, or -1 for none", (Q, K, K), {"block_mask": LISTS + 5, "block_size": 16}),
        (ValueError, "block_mask names column -2; wanted 0 to 4", (Q, K, K), {"block_mask": LISTS - 2, "block_size": 16}),
        (ValueError, r"block_mask has shape \[2, 4, 3, 2\]; wanted \[2, 4, 2, 2\] .*columns that they keep", (Q, K, K), {"block_mask": LISTS, "block_size": 32}),
        (ValueError, r"block_mask has shape \[2, 1, 3, 5\]; wanted \[1, 4, 3, 3\]", (P, P, P), {"block_mask": MASK, "block_size": 16, "cu_seqlens": torch.tensor([0, 40])}),
        (ValueError, "gates are given without block_mask", (Q, K, K), {"gates": torch.ones(2, 1, 3, 5)}),
        (ValueError, r"gates has shape \[2, 1, 3, 4\]; wanted \[2, 4, 3, 5\] \(B, H or 1, blocks of block_size rows or 1", (Q, K, K), {"gates": torch.ones(2, 1, 3, 4), "block_mask": MASK, "block_size": 16}),
        (ValueError, "gates have dtype Bool; wanted a floating point type", (Q, K, K), {"gates": MASK, "block_mask": MASK, "block_size": 16}),
        (ValueError, "gates hold a value below 0; the least is -1", (Q, K, K), {"gates": -torch.ones(2, 1, 3, 5), "block_mask": MASK, "block_size": 16}),
        (ValueError, r"sinks has shape \[2\]; wanted \[4\] \(one a query head\)", (Q, K, K), {"sinks": torch.ones(2)}),
        (ValueError, r"slopes has shape \[4, 1\]; wanted \[4\] \(one a query head\)", (Q, K, K), {"slopes": torch.ones(4, 1)}),
        (ValueError, "sinks have dtype Long; wanted a floating point type", (Q, K, K), {"sinks": torch.ones(4).long()}),
        (ValueError, "slopes is on meta; wanted cpu", (Q, K, K), {"slopes": torch.ones(4, device="meta")}),
        (ValueError, r"query_start has shape \[2, 39\]; wanted \[2, 40\]", (Q, K, K), {"query_start": torch.zeros(2, 39).long()}),
        (ValueError, r"query_start\[1, 3\] is 71; wanted -1 to 70", (Q, K, K), {"query_start": torch.arange(40).repeat(2, 1).index_put((torch.tensor(1), torch.tensor(3)), torch.tensor(71))}),
        (ValueError, r"query_start\[0, 1\] is 38, below the one before it \(39\)", (Q, K, K), {"query_start": torch.arange(40).flip(0).repeat(2, 1)}),
    ],
)  # fmt: skip
def test_bad_input(error, message, arguments, options):
    with pytest.raises(error, match=message):
        isentrope.entropy_attention(*arguments, **{"causal": True, **options})
