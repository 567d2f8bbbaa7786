"""A token that the policy gives no probability, log-prob -∞: methods that look at log-probs leave it out of their statistics, or take the limit, and
what they say of all other tokens is that of a batch without it."""

import math

import pytest
import torch

from isentrope import methods

from shaping_loops import batch

inf, nan = math.inf, math.nan


def seen(B=6, T=19):
    """A batch with a token of log-prob -∞, and the same whose mask leaves that token out."""
    x = batch(B, T, seed=11)
    x["mask"][0, :4] = True
    for name, value in (("advantage", -1.5), ("logprob", -0.7), ("entropy", 0.9)):
        x[name][0, :4] = torch.where(x[name][0, :4].isnan(), value, x[name][0, :4])
    x["logprob"][0, 2] = -inf
    x["h"] = -x["logprob"]
    x |= {"old_logprob": x["logprob"].clamp(min=-3), "sum_p2": torch.full((B, T), 0.4).double(), "sum_p2_logp": torch.full((B, T), -0.3).double()}
    x |= {"old_sum_p2": x["sum_p2"] + 0.1}
    return x, {**x, "mask": x["mask"].clone().index_put_((torch.tensor([0]), torch.tensor([2])), torch.tensor(False))}


# name: (function of a batch, what it says of the token)
CALLS = {
    "tea": (lambda x: methods.tea(x["logprob"], x["advantage"], x["mask"]), 0.0),
    "repo": (lambda x: methods.repo(x["advantage"], x["logprob"], x["entropy"], x["mask"]), None),
    "repo, batch": (lambda x: methods.repo(x["advantage"], x["logprob"], x["entropy"], x["mask"], beta=0.3, centre="batch"), None),
    "repo, rescale": (lambda x: methods.repo(x["advantage"], x["logprob"], x["entropy"], x["mask"], beta=0.3, form="rescale"), None),
    "surprisal_band": (lambda x: methods.surprisal_band(x["logprob"], x["entropy"], x["mask"]), 0.0),
    "divergence_mask": (lambda x: methods.divergence_mask(x["logprob"], x["old_logprob"], x["sum_p2"], x["old_sum_p2"], x["advantage"], x["mask"]), 1.0),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_others_are_those_of_a_batch_without_it(name):
    function, own = CALLS[name]
    x, without = seen()
    made, rest = function(x), function(without)
    assert made.isfinite().all()
    assert made[0, 2] == (x["advantage"][0, 2] if own is None else own)
    made[0, 2] = rest[0, 2]
    torch.testing.assert_close(made, rest, rtol=0, atol=0)


def test_a_completion_of_infinite_perplexity_is_in_no_statistic():
    x, _ = seen()
    made = methods.perplexity(x["advantage"], x["logprob"], x["mask"], x["group"], alpha=0.4)
    assert made.isfinite().all() and torch.equal(made[0], torch.where(x["mask"][0], x["advantage"][0], 0))


def test_a_group_of_infinite_surprisal_is_in_no_bound():
    x, _ = seen()
    others = {**x, "mask": x["mask"] & (x["group"] > 0)[:, None]}
    for state in (torch.tensor([nan, nan]).double(), x["state"]):
        made, rest = (methods.gepo(one["advantage"], one["h"], one["mask"], one["group"], state) for one in (x, others))
        assert made.state.isfinite().all() and torch.equal(made.state, rest.state)
        in_group = x["mask"] & (x["group"] == 0)[:, None]
        assert torch.equal(made.advantage[in_group], x["advantage"][in_group]) and torch.equal(made.advantage[~in_group], rest.advantage[~in_group])


@pytest.mark.parametrize("name", ["clip_b", "clip_v"])
def test_its_discriminator_is_the_limit(name):
    """p (H + log p) → 0."""
    x, _ = seen()
    moments = (x["sum_p2"], x["sum_p2_logp"]) if name == "clip_v" else ()
    call = lambda logprob: getattr(methods, name)(logprob, x["entropy"], *moments, x["advantage"], x["mask"], mu_low=0.5, max_frac=1.0)  # noqa: E731
    tiny = x["logprob"].clone()
    tiny[0, 2] = -700.0
    made = call(x["logprob"])
    assert torch.equal(made, call(tiny)) and made.any() and not made.all()


def test_it_is_the_most_surprising():
    x, _ = seen()
    made = methods.stare(x["logprob"], x["entropy"], x["advantage"].abs(), x["mask"], target=9.0, fraction=1e-6, up=1.5)
    assert made[0, 2] == 1.5 and (made == 1.5).sum() == 1
    removed = methods.entropy_sft(x["logprob"], x["entropy"], x["mask"], fraction=1e-6)
    assert not removed[0, 2] and removed.sum() == x["mask"].sum() - 1
    factor = methods.steer(x["logprob"], x["old_logprob"], x["entropy"], x["advantage"], x["mask"])
    assert factor.isfinite().all()
    weight = methods.correction(x["logprob"], x["old_logprob"], x["mask"]).factor
    assert weight.isfinite().all() and weight[0, 2] == pytest.approx(math.exp(-20))
