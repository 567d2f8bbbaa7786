"""Methods of policy learning as ops: values, independent loops, gradients through a loss, what is refused."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import isentrope
from isentrope import methods

NAMES = sorted(name.removeprefix("isentrope::method_") for name in torch._C._dispatch_get_all_op_names() if name.startswith("isentrope::method_"))


def batch(B=4, T=9, seed=0, dtype=torch.float64):
    """entropy, mask, advantage, logprob, old_logprob of ragged completions; NaN where nothing counts."""
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(1, T + 1, (B, 1), generator=g)
    mask = torch.arange(T) < length
    fill = lambda x: torch.where(mask, x, torch.nan).to(dtype)  # noqa: E731
    logprob = -torch.rand(B, T, generator=g) * 3
    return {
        "mask": mask,
        "entropy": fill(torch.rand(B, T, generator=g) * 2),
        "old_entropy": fill(torch.rand(B, T, generator=g) * 2),
        "advantage": fill(torch.randn(B, 1, generator=g).expand(B, T)),
        "logprob": fill(logprob),
        "old_logprob": fill(logprob + 0.2 * torch.randn(B, T, generator=g)),
    }


def test_every_op_has_a_function_with_a_docstring():
    assert set(NAMES) == {name for name in methods.__all__ if not name.endswith("Output")} - {"register"}
    for name in NAMES:
        text = getattr(methods, name).__doc__
        assert "Source:" in text and "Args:" in text and "Returns:" in text, name


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 4), (3, 7), (5, 300), (600, 601)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_token(shape, dtype):
    g = torch.Generator().manual_seed(0)
    value, mask = torch.randn(shape[0], generator=g, dtype=dtype), torch.rand(shape, generator=g) < 0.5
    assert torch.equal(methods.by_token(value, mask), value[:, None] * mask)
    assert torch.equal(methods.by_token(value, mask.double() * 3), value[:, None] * mask)
    torch.library.opcheck(torch.ops.isentrope.method_by_token.default, (value, mask), test_utils=("test_schema", "test_faketensor"))


def test_by_token_refuses():
    with pytest.raises(ValueError, match=r"isentrope::method_by_token: value has shape \[3\]; wanted \[2\], a number a row of mask"):
        methods.by_token(torch.ones(3), torch.ones(2, 4))


def test_the_memory_of_a_result_is_its_own():
    """Large results take the memory of others that are gone, and never of one that is there, whoever makes and drops them."""
    mask = torch.ones(512, 1024, dtype=torch.bool)  # 2 MB of float32
    kept = [methods.by_token(torch.full((512,), float(i)), mask) for i in range(4)]
    places = {x.data_ptr() for x in kept}
    assert len(places) == 4 and all((x == i).all() for i, x in enumerate(kept))
    again = kept.pop().data_ptr()
    assert methods.by_token(torch.zeros(512), mask).data_ptr() == again
    del kept

    def work(i):
        for _ in range(50):
            x, wide = methods.by_token(torch.full((512,), float(i)), mask), methods.by_token(torch.full((512,), float(-i), dtype=torch.float64), mask)
            assert (x == i).all() and (wide == -i).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


# ---- top_entropy -----------------------------------------------------------------------------------------------------


def test_top_entropy_is_that_of_a_stable_sort():
    x = batch(B=7, T=40)
    entropy = (x["entropy"] * 8).round() / 8  # with ties
    for fraction in (0.001, 0.2, 0.5, 1.0):
        got = methods.top_entropy(entropy, x["mask"], fraction=fraction)
        flat = entropy[x["mask"]]
        k = max(1, round(fraction * flat.numel()))
        wanted = torch.zeros_like(flat)
        wanted[flat.sort(descending=True, stable=True).indices[:k]] = 1
        assert torch.equal(got[x["mask"]], wanted)
        assert not got[~x["mask"]].any()
        assert torch.equal(methods.top_entropy(entropy.float(), x["mask"].int(), fraction=fraction).double(), got)


def test_top_entropy_golden():
    entropy = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.2, 0.3]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert methods.top_entropy(entropy, mask, fraction=0.2).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert methods.top_entropy(entropy, mask, fraction=0.6).tolist() == [[0, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fraction": 0.0}, "method_top_entropy: fraction is 0; wanted above 0 to 1"),
        ({"mask": torch.ones(2, 2)}, r"method_top_entropy: mask has shape \[2, 2\]; wanted \[4, 9\], as entropy"),
        ({"entropy": torch.zeros(4, 9, dtype=torch.int64)}, "method_top_entropy: entropy has dtype Long; wanted Float, Double"),
    ],
)
def test_top_entropy_refuses(change, message):
    x = batch()
    given = {"entropy": x["entropy"], "mask": x["mask"], **change}
    with pytest.raises((ValueError, TypeError), match=message):
        methods.top_entropy(**given)


# ---- random_tokens ---------------------------------------------------------------------------------------------------


def test_random_tokens_are_as_many_and_others_in_each_update():
    x = {"entropy": torch.rand(33, 31, generator=torch.Generator().manual_seed(1)), "mask": torch.ones(33, 31, dtype=torch.bool)}
    x["mask"][3:7, 5:] = False
    tokens, drawn = int(x["mask"].sum()), torch.zeros(33, 31)
    for update in range(400):
        got = methods.random_tokens(**x, fraction=0.2, update=update)
        assert got.dtype == torch.float32 and int(got.sum()) == round(0.2 * tokens) and not got[~x["mask"]].any()
        drawn += got
    # Binomial: 400 draws at 0.2; of some 900 tokens none is five deviations off.
    share = drawn[x["mask"]]
    assert float((share - 80).abs().max()) < 5 * (400 * 0.2 * 0.8) ** 0.5
    assert float(share.std()) == pytest.approx((400 * 0.2 * 0.8) ** 0.5, rel=0.1)


def test_random_tokens_hang_on_seed_and_update_and_not_on_entropy():
    mask = torch.ones(5, 7)
    one = methods.random_tokens(torch.zeros(5, 7, dtype=torch.float64), mask, fraction=0.5, seed=3, update=2)
    assert one.dtype == torch.float64 and torch.equal(one.float(), methods.random_tokens(torch.rand(5, 7), mask, fraction=0.5, seed=3, update=2))
    for other in ({"seed": 4, "update": 2}, {"seed": 3, "update": 3}):
        assert not torch.equal(one.float(), methods.random_tokens(torch.zeros(5, 7), mask, fraction=0.5, **other))
    assert torch.equal(methods.random_tokens(torch.zeros(5, 7), mask, fraction=1.0), mask)
    assert not methods.random_tokens(torch.zeros(5, 7), torch.zeros(5, 7)).any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fraction": 0.0}, "method_random_tokens: fraction is 0; wanted above 0 to 1"),
        ({"mask": torch.ones(2, 2)}, r"method_random_tokens: mask has shape \[2, 2\]; wanted \[4, 9\], as entropy"),
        ({"entropy": torch.zeros(4, 9, dtype=torch.int64)}, "method_random_tokens: entropy has dtype Long; wanted Float, Double"),
    ],
)
def test_random_tokens_refuse(change, message):
    with pytest.raises(Exception, match=message):
        methods.random_tokens(**({"entropy": torch.zeros(4, 9), "mask": torch.ones(4, 9)} | change))


# ---- of all ----------------------------------------------------------------------------------------------------------


def test_compiles_whole():
    x = batch()

    def loss(logprob):
        factor = methods.top_entropy(x["entropy"], x["mask"])
        return isentrope.grpo_loss(logprob, x["old_logprob"], x["advantage"] * factor, x["mask"]).loss

    assert torch.equal(torch.compile(loss, fullgraph=True, backend="aot_eager")(x["logprob"]), loss(x["logprob"]))


# ---- overlong, and controllers of the entropy ------------------------------------------------------------------------


def test_overlong_golden():
    # DAPO: from 16384 tokens on, down to -1 at 20480.
    length = torch.tensor([100, 16384, 18432, 20480])
    assert methods.overlong(length, longest=20480, len=4096).tolist() == [0, 0, -0.5, -1]
    assert methods.overlong(length, longest=20480, len=4096, penalty_factor=0.0).abs().sum() == 0
    with pytest.raises(ValueError, match="method_overlong: len is 0; wanted 1 to longest, 9"):
        methods.overlong(length, longest=9, len=0)


GOLDEN_KL = {
    # verl 0.9.1, apply_kl_penalty with coefficient 0.1: what it takes from the rewards of three completions, and its AdaptiveKLController's
    # current_kl, the mean of the completions' means.
    "k1": ([0.03, -0.08, 0.05], 0.052778), "abs": ([-0.13, -0.08, -0.17], 0.430556),
    "k2": ([-0.0365, -0.016, -0.0695], 0.134306), "k3": ([-0.046784, -0.014064, -0.09858], 0.171960),
}  # fmt: skip


@pytest.mark.parametrize("estimator", GOLDEN_KL)
def test_kl_golden(estimator):
    logprob = torch.tensor([[-0.3, -1.4, -2.0, -0.1], [-0.2, -2.0, -0.9, -1.1], [-0.7, -0.05, -3.0, -0.4]])
    ref = torch.tensor([[-0.5, -1.5, -1.2, -0.3], [-0.6, -2.4, -0.9, -0.2], [-1.0, -0.35, -1.9, -0.4]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    wanted, mean = GOLDEN_KL[estimator]
    got = methods.kl(logprob, ref.where(mask > 0, torch.nan), mask, coef=0.1, estimator=estimator)
    assert got.dtype == torch.float64 and got.tolist() == pytest.approx(wanted, abs=1e-6)
    assert (-got / 0.1 / mask.sum(1)).mean().item() == pytest.approx(mean, abs=1e-6)


def test_kl_is_that_of_a_loop():
    x = batch(B=5, T=31, seed=3)
    near = {"k1": lambda d: d, "abs": abs, "k2": lambda d: d * d / 2, "k3": lambda d: min(math.exp(-max(-20.0, min(d, 20.0))) + max(-20.0, min(d, 20.0)) - 1, 10.0)}
    logprob, ref, mask = x["logprob"].clone(), x["old_logprob"].clone(), x["mask"]
    ref[0, 0], logprob[1, 0] = 30.0, -5.0  # beyond the clamps of k3
    for estimator, of in near.items():
        wanted = [-0.7 * sum(of(a - b) for a, b, m in zip(*rows) if m) for rows in zip(logprob.tolist(), ref.tolist(), mask.tolist())]
        assert methods.kl(logprob, ref, mask, coef=0.7, estimator=estimator).tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-12), estimator
        assert not methods.kl(logprob, ref, mask, coef=0.0, estimator=estimator).any()
        half = methods.kl(logprob.float(), ref.float(), mask.int(), coef=0.7, estimator=estimator)
        assert half.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert methods.kl(logprob[:0], ref[:0], mask[:0]).shape == (0,) and methods.kl(logprob[:, :0], ref[:, :0], mask[:, :0]).tolist() == [0] * 5


def test_kl_refuses():
    x = batch()
    for change, message in (
        ({"estimator": "full"}, 'method_kl: estimator is "full"; wanted k1, k2, k3 or abs'),
        ({"coef": -1.0}, "method_kl: coef is -1; wanted at least 0, and finite"),
        ({"ref_logprob": torch.zeros(2, 2)}, r"method_kl: ref_logprob has shape \[2, 2\]; wanted \[4, 9\], as logprob"),
        ({"logprob": torch.zeros(4, 9, dtype=torch.int64)}, "method_kl: logprob has dtype Long; wanted Float, Double"),
    ):
        given = {"logprob": x["logprob"], "ref_logprob": x["old_logprob"], "mask": x["mask"], **change}
        with pytest.raises((ValueError, TypeError), match=message):
            methods.kl(**given)


def test_adaptive_entropy_is_that_of_trl():
    """TRL 1.16.0, use_adaptive_entropy: coefficient ± 0.005 at an entropy at most, or above, the target, within its range."""
    state = torch.tensor([0.0, torch.nan], dtype=torch.float64)
    wanted, coef = [0.3, 0.2, 0.1, 0.1, 0.4], 0.0
    for entropy in wanted:
        coef = min(coef + 0.005, 0.012) if entropy <= 0.2 else max(coef - 0.005, 0.0)
        state = methods.adaptive_entropy(state, entropy, most=0.012)
        assert state.tolist() == pytest.approx([coef, entropy], abs=1e-15)
    assert coef == pytest.approx(0.007)


def test_entropic_golden():
    # α = I + 1.0 (H - H*), I += 0.01 (H - H*), by hand: H* = 0.3.
    state = methods.entropic(torch.zeros(2, dtype=torch.float64), 0.5)
    assert state.tolist() == pytest.approx([0.002, 0.202])
    state = methods.entropic(state, 0.1)
    assert state.tolist() == pytest.approx([0.0, -0.2])
    assert methods.entropic(state, 9.0).tolist() == pytest.approx([0.087, 1.0])
    with pytest.raises(ValueError, match="method_entropic: entropy is inf; wanted a finite number"):
        methods.entropic(state, float("inf"))
    with pytest.raises(ValueError, match=r"method_entropic: state has shape \[3\]; wanted \[2\]"):
        methods.entropic(torch.zeros(3, dtype=torch.float64), 0.5)


def test_adaptive_kl_golden():
    # Ziegler et al.: errors beyond 20 % count as 20 %.
    assert methods.adaptive_kl(0.1, 0.02, target=0.01, horizon=2) == pytest.approx(0.11)
    assert methods.adaptive_kl(0.1, 0.0, target=0.01, horizon=2) == pytest.approx(0.09)
    assert methods.adaptive_kl(0.1, 0.011, target=0.01, horizon=1) == pytest.approx(0.11)
    with pytest.raises(ValueError, match="method_adaptive_kl: target is 0; wanted above 0"):
        methods.adaptive_kl(0.1, 0.0, target=0.0, horizon=2)
