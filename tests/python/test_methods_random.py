"""The weight random: as many tokens as a selection has, at random among those that count."""

import pytest
import torch

import isentrope
from isentrope import methods


def batch(B=16, T=60):
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(T) < torch.randint(1, T + 1, (B, 1), generator=g)
    logprob = -3 * torch.rand(B, T, generator=g)
    return logprob, logprob + 0.3 * torch.randn(B, T, generator=g), torch.randn(B, 1, generator=g).expand(B, T), mask


@pytest.mark.parametrize("mode, keys", [("kl_cov", {"cov_ratio": 0.05}), ("clip_cov", {"cov_ratio": 0.05, "cov_lower": 0.2}), ("clip_cov", {"cov_ratio": 1.0}),
                                        ("clip_cov", {"cov_lower": 90.0, "cov_upper": 91.0})])  # fmt: skip
def test_the_control_of_a_selection_is_that_of_grpo_select(mode, keys):
    """The same bits as the op's own controls, random_clip_cov and random_kl_cov, for the same seed: runs of before stay as they were."""
    given = batch()
    selected = isentrope.grpo_select(*given, mode=mode, seed=5, **keys)
    assert (selected.sum() == 0) == (keys.get("cov_lower") == 90.0)
    for seed in (0, 5, 2**63 - 1, -1):
        drawn = methods.random(selected, given[-1], seed=seed)
        assert drawn.sum() == selected.sum() and not (drawn & ~given[-1]).any()
        assert torch.equal(drawn, isentrope.grpo_select(*given, mode=f"random_{mode}", seed=seed, **keys))


def test_every_token_is_equally_likely():
    mask = torch.tensor([[True, True, False, True], [True, False, True, True]])
    selected = torch.tensor([[True, True, True, False], [False, False, False, False]])  # two of them count
    draws = 3000
    counts = sum(methods.random(selected, mask, seed=seed).double() for seed in range(draws))
    assert (counts[~mask] == 0).all()
    expected = draws * 2 / 6
    # A token is among the two of six with p = 1/3: standard deviation √(n p (1 − p)) = 26; five of it.
    assert (counts[mask] - expected).abs().max() < 5 * (draws * (1 / 3) * (2 / 3)) ** 0.5


def test_masks_of_numbers_and_of_nothing():
    selected, mask = torch.ones(2, 3), torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(methods.random(selected, mask, seed=1), mask != 0)
    assert not methods.random(selected, torch.zeros(2, 3), seed=1).any()
    assert methods.random(torch.zeros(0, 3), torch.zeros(0, 3), seed=1).shape == (0, 3)


def test_compiles_and_refuses():
    given = batch()
    selected = isentrope.grpo_select(*given, mode="kl_cov", seed=0, cov_ratio=0.1)
    torch.library.opcheck(torch.ops.isentrope.method_random.default, (selected, given[-1]), {"seed": 3}, test_utils=("test_schema", "test_faketensor"))
    with pytest.raises(ValueError, match=r"isentrope::method_random: mask has shape \[2, 4\]; wanted \[2, 3\], as selected"):
        methods.random(torch.ones(2, 3), torch.ones(2, 4), seed=0)
    with pytest.raises(ValueError, match=r"isentrope::method_random: selected has 1 dimensions; wanted \[B, T\]"):
        methods.random(torch.ones(3), torch.ones(3), seed=0)
