"""What the integrations share: entries of methods, completions in any order, the product of weights, controllers with their state."""

import math

import pytest
import torch

from isentrope import methods
from isentrope.integrations import methods as integration
from isentrope.integrations.methods import Controller, Entry

B, T = 9, 7
UIDS = ["b", "a", "b", "c", "a", "b", "d", "a", "c"]  # groups of three, three, two and one, not together


def completions():
    g = torch.Generator().manual_seed(3)
    length = torch.randint(1, T + 1, (B,), generator=g)
    sum_p2 = torch.rand(B, T, generator=g, dtype=torch.float64)
    return {
        "reward": torch.rand(B, generator=g, dtype=torch.float64), "length": length, "scores": torch.rand(2, B, generator=g, dtype=torch.float64),
        "greedy": torch.tensor([{"a": 0.2, "b": 0.7, "c": 0.1, "d": 0.5}[uid] for uid in UIDS], dtype=torch.float64),
        "logprob": -torch.rand(B, T, generator=g, dtype=torch.float64), "sum_p2": sum_p2, "mask": torch.arange(T) < length[:, None],
        "entropy": torch.rand(B, T, generator=g, dtype=torch.float64), "right": torch.rand(B, generator=g) < 0.5,
    }  # fmt: skip


OPTIONS = {"pass_at_k": {"k": 1}, "quantile": {"quantile": 0.6}, "grpo": {"std": "batch"}, "gdpo": {"weights": [0.3, 1.0], "over": "tokens"}}


@pytest.mark.parametrize("kind", integration.ADVANTAGES)
def test_completions_may_stand_in_any_order(kind):
    """Against the function on completions that were sorted by hand."""
    x, options = completions(), OPTIONS.get(kind, {})
    made = integration.advantage(Entry(kind, options), UIDS, **x)
    order = torch.tensor([0, 2, 5, 1, 4, 7, 3, 8, 6])
    given = {name: x[name][:, order] if name == "scores" else x[name][order] for name in integration.subject(kind) if name != "group"}
    if kind == "remax":
        given["greedy"] = torch.tensor([0.7, 0.2, 0.1, 0.5], dtype=torch.float64)
    if "group" in integration.subject(kind):
        given["group"] = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3])
    options = {key: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value for key, value in options.items()}
    wanted = getattr(methods, kind)(**given, **options)
    if kind in ("gdpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):  # sums over the batch in the order of groups
        torch.testing.assert_close(made[order], wanted, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(made[order], wanted)
    assert made.abs().max() > 0


def test_a_completion_without_a_reward_has_no_part():
    x = completions()
    without = [i for i in range(B) if i != 2]
    x["reward"][2] = math.nan
    made = integration.advantage(Entry("grpo"), UIDS, **x)
    assert made[2] == 0
    rest = integration.advantage(Entry("grpo"), [UIDS[i] for i in without], reward=x["reward"][without])
    assert torch.equal(made[without], rest)


def test_what_is_not_handed_over_is_named():
    with pytest.raises(ValueError, match="remax: greedy is None; wanted a tensor"):
        integration.advantage(Entry("remax"), UIDS, reward=completions()["reward"])
    x = completions()
    x["greedy"][0] = 3
    with pytest.raises(ValueError, match="remax: the completions of a prompt have different greedy rewards; wanted one a prompt"):
        integration.advantage(Entry("remax"), UIDS, **x)


def test_weights_are_multiplied_and_each_sees_the_same():
    g = torch.Generator().manual_seed(4)
    x = {name: torch.rand(B, T, generator=g) for name in ("entropy", "old_entropy")}
    x |= {"mask": torch.rand(B, T, generator=g) < 0.8, "logprob": -x["entropy"], "old_logprob": -x["entropy"], "advantage": torch.randn(B, T, generator=g)}
    made = integration.factor([Entry("top_entropy", {"fraction": 0.5}), Entry("soft_window", {"window": 3}), Entry("entropy_ratio_band", {"low": 0.5, "high": 2.0})], **x)
    wanted = (
        methods.top_entropy(x["entropy"], x["mask"], fraction=0.5)
        * methods.soft_window(x["entropy"], x["advantage"], x["mask"], window=3)
        * methods.entropy_ratio_band(x["entropy"], x["old_entropy"], x["mask"], low=0.5, high=2.0)
    )
    assert torch.equal(made, wanted) and made.unique().numel() > 2


def test_controllers_follow_the_functions():
    adaptive = Controller(Entry("adaptive", {"target": 0.5, "coef": 0.1, "delta": 0.05}))
    assert adaptive.coefficient == 0.1  # before the first update
    told = []
    for entropy in (0.4, 0.6, 0.3):
        adaptive.observe(entropy)
        told.append(adaptive.coefficient)
    assert told == pytest.approx([0.15, 0, 0.15]) and (adaptive.positive, adaptive.negative) == (1, 1)

    entropic, state = Controller(Entry("entropic", {"target": 0.5})), torch.zeros(2, dtype=torch.float64)
    for entropy in (0.9, 0.2):
        entropic.observe(entropy)
        state = methods.entropic(state, entropy, target=0.5)
        assert torch.equal(entropic.state, state) and state[1] != 0
        assert (entropic.positive, entropic.negative, entropic.coefficient) == (1 + state[1], 1 - state[1], 0)


def read(given, refused={}):  # noqa: B006
    return integration.read("methods", given, [*integration.ADVANTAGES, *integration.WEIGHTS, *integration.CONTROLLERS], refused)


def test_entries():
    assert read(None) == read([]) == []
    assert read(["rloo", {"kind": "top_entropy", "fraction": 0.3}]) == [Entry("rloo", {}), Entry("top_entropy", {"fraction": 0.3})]
    assert read([{"kind": "gdpo", "weights": (1, 2)}])[0].options == {"weights": [1, 2]}
    for kind in (*integration.ADVANTAGES, *integration.WEIGHTS, *integration.CONTROLLERS):
        assert read([kind]) == [Entry(kind)]


@pytest.mark.parametrize("given, message", [
    ("grpo", "methods is 'grpo'; wanted a list of names or of dicts with a key kind"),
    ([3], r"methods\[0\] is 3; wanted a name, or a dict with a key kind, as \{'kind': 'grpo'\}"),
    ([{"fraction": 0.2}], r"methods\[0\] is \{'fraction': 0.2\}; wanted a name"),
    (["grpo", "top_entrpy"], r"methods\[1\]: kind is 'top_entrpy'; wanted one of grpo, .* \(top_entropy\?\)"),
    ([{"kind": "top_entropy", "fractoin": 0.2}], r"methods\[0\]: top_entropy has no key 'fractoin'; wanted one of fraction \(fraction\?\)"),
    ([{"kind": "rloo", "eps": 0.2}], r"methods\[0\]: rloo has no key 'eps'; wanted none"),
    ([{"kind": "top_entropy", "fraction": 0}], r"methods\[0\]: .*fraction is 0; wanted"),
    ([{"kind": "top_entropy", "fraction": "0.2"}], r"methods\[0\]: .*fraction is '0.2', of type str; wanted a number"),
    ([{"kind": "adaptive", "target": 0}], r"methods\[0\]: adaptive: target is 0; wanted above 0"),
    ([{"kind": "adaptive", "coef": 2}], r"methods\[0\]: adaptive: coef is 2; wanted least \(0\) to most \(1\)"),
    ([{"kind": "entropic", "integral": "x"}], r"methods\[0\]: entropic: integral is 'x'; wanted a number"),
    (["remax"], r"methods\[0\]: remax cannot be had here: no greedy completion"),
])  # fmt: skip
def test_wrong_entries_are_named(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        read(given, {"remax": "no greedy completion"})


def test_places():
    entries = read(["grpo", "top_entropy", "steer", "rloo"])
    integration.check_places("methods", entries[:3], {"estimator": integration.ADVANTAGES})
    with pytest.raises(ValueError, match="methods has grpo and rloo; wanted one estimator"):
        integration.check_places("methods", entries, {"estimator": integration.ADVANTAGES})
