"""Advantages changed token by token in another host: completions in any order, the texts that steps and grams are found in, what passes from step
to step, and what is refused."""

import json
import math

import pytest
import torch

from isentrope import grams, methods
from isentrope.integrations import methods as integration
from isentrope.integrations.methods import Entry
from isentrope.integrations.shaping import ORDER, Shaping, TokenText, steps_of

B, T = 6, 9
UIDS = ["b", "a", "b", "c", "a", "b"]
ROWS = torch.tensor([0, 2, 5, 1, 4, 3])  # sorted by hand
GROUP = torch.tensor([0, 0, 0, 1, 1, 2])


class Letters:
    """A tokenizer of some pieces, as those of transformers: number 0 is a special token, 5 has a space at its front that is left out at the beginning of a text."""

    pieces = ["<s>", "a", "b", "\n", ".\n\nso", " we", "note", "that"]

    def encode(self, text, add_special_tokens=True):
        return [self.pieces.index(text)]

    def decode(self, ids, skip_special_tokens=True, clean_up_tokenization_spaces=True):
        assert not skip_special_tokens and not clean_up_tokenization_spaces
        return "".join(self.pieces[i] for i in ids).removeprefix(" ")


def completions():
    g = torch.Generator().manual_seed(3)
    mask = torch.arange(T) < torch.tensor([9, 4, 1, 7, 0, 8])[:, None]
    fill = lambda x: x.double().masked_fill(~mask, math.nan)  # noqa: E731
    return {
        "advantage": fill(torch.randn(B, 1, generator=g).expand(B, T)), "logprob": fill(-torch.rand(B, T, generator=g)), "mask": mask,
        "entropy": fill(torch.rand(B, T, generator=g)), "token": torch.randint(1, 8, (B, T), generator=g),
    }  # fmt: skip


@pytest.mark.parametrize("kind, options", [("entropy_advantage", {"alpha": 0.2}), ("perplexity", {"alpha": 0.3}), ("position", {}), ("repo", {"beta": 0.1})])
def test_completions_may_stand_in_any_order(kind, options):
    x, shaping = completions(), Shaping("methods", [Entry(kind, options)])
    made = shaping.apply(UIDS, **x)
    given = {name: value[ROWS] for name, value in x.items()} | {"group": GROUP}
    wanted = getattr(methods, kind)(**{name: given[name] for name in integration.subject(kind)}, **options)
    assert torch.equal(made[ROWS], wanted) and not torch.equal(made, x["advantage"].nan_to_num())
    assert shaping.needs == set(integration.subject(kind)) & {"logprob", "entropy"}


def test_a_list_is_applied_in_order():
    x = completions()
    both = Shaping("methods", [Entry("entropy_advantage"), Entry("position", {"gamma": 0.5})])
    assert both.needs == {"entropy"}
    made = both.apply(UIDS, **x)
    wanted = methods.position(methods.entropy_advantage(x["advantage"], x["entropy"], x["mask"]), x["mask"], gamma=0.5)
    assert torch.equal(made, wanted)


@pytest.mark.parametrize("of", ["logprob", "entropy"])
def test_the_bounds_of_gepo_pass_from_step_to_step_and_through_a_checkpoint(of):
    x, entry = completions(), Entry("gepo", {"of": of, "low": 0.25, "rate": 0.5})
    shaping, state = Shaping("methods", [entry]), torch.full((2,), math.nan, dtype=torch.float64)
    h = x["entropy"] if of == "entropy" else -x["logprob"]
    assert shaping.needs == {of}
    for scale in (1, 2):
        x = {**x, of: x[of] * scale}
        wanted = methods.gepo(x["advantage"][ROWS], (h * scale)[ROWS], x["mask"][ROWS], GROUP, state, low=0.25, rate=0.5)
        looked = Shaping("methods", [entry])
        looked.restore(shaping.saved())
        assert torch.equal(looked.apply(UIDS, learns=False, **x), shaping.apply(UIDS, **x))
        assert torch.equal(shaping.apply(UIDS, learns=False, **{**x, "mask": x["mask"] & False}), torch.zeros(B, T, dtype=torch.float64))
        state, h = wanted.state, h * scale
        assert torch.equal(shaping.state[0], state)
        assert [one for one in looked.saved()] != shaping.saved() or state.isnan().all()  # a look moves nothing
    with pytest.raises(ValueError, match=r"the checkpoint has the states of \[\], and the list those of \['gepo'\]"):
        shaping.restore([])


def test_the_text_of_tokens():
    text = TokenText(Letters())
    assert text.of(5, True) == b"we" and text.of(5, False) == b" we" and text.of(0, False) == b"<s>"
    joined, owner = text.joined([5, 4, 5, 6])
    assert joined == b"we.\n\nso wenote" and owner == [0] * 2 + [1] * 5 + [2] * 3 + [3] * 4


@pytest.mark.parametrize("tokens, marker, wanted", [
    ([1, 3, 3, 2, 2], "\n\n", [0, 0, 0, 1, 1]),  # over two tokens
    ([1, 4, 2, 4], "\n\n", [0, 0, 1, 1]),  # within one, whose rest belongs to the step that ends
    ([1, 3, 3, 3, 3, 2], "\n\n", [0, 0, 0, 1, 1, 2]),
    ([1, 2, 2], "\n\n", [0, 0, 0]),  # it never comes
    ([4, 4], ".", [0, 1]),
    ([1, 1, 2], "a", [0, 1, 2]),
    ([], "a", []),
])  # fmt: skip
def test_steps(tokens, marker, wanted):
    text, owner = TokenText(Letters()).joined(tokens)
    assert steps_of(text, owner, len(tokens), marker.encode()) == wanted


def test_empg_has_the_steps_that_a_text_ends():
    x = completions()
    x["token"][0, :5] = torch.tensor([1, 3, 3, 2, 2])
    made = Shaping("methods", [Entry("empg", {"zeta": 0.3})]).apply(UIDS, text=TokenText(Letters()), **x)
    text = TokenText(Letters())
    step = torch.zeros(B, T, dtype=torch.int64)
    for b, n in enumerate(x["mask"].sum(1).tolist()):
        step[b, :n] = torch.tensor(steps_of(*text.joined(x["token"][b, :n].tolist()), n, b"\n\n"), dtype=torch.int64)
    assert step.max() > 0
    torch.testing.assert_close(made, methods.empg(x["advantage"], x["entropy"], x["mask"], step, zeta=0.3), rtol=1e-12, atol=1e-12)


def test_hicra_has_the_grams_of_a_file(tmp_path):
    x, file = completions(), tmp_path / "grams.json"
    x["token"][0] = torch.tensor([1, 5, 5, 1, 2, 2, 2, 2, 2])  # "a we wea b…": the gram "a we" once, over two tokens
    x["token"][1:] = 2
    file.write_text(json.dumps({"grams": [{"text": "a we", "cluster": 0}]}))
    assert grams.find("a we wea", ["a we"]) == [(0, 4, 0)]
    made = Shaping("methods", [Entry("hicra", {"alpha": 0.5, "grams": str(file)})]).apply(UIDS, text=TokenText(Letters()), **x)
    planning = torch.zeros(B, T, dtype=torch.bool)
    planning[0, :2] = True
    assert torch.equal(made, methods.hicra(x["advantage"], planning, x["mask"], alpha=0.5))
    assert made[0, 0] == x["advantage"][0, 0] + 0.5 * x["advantage"][0, 0].abs()


def test_what_is_refused(tmp_path):
    for kinds in (["position", "empg"], ["entropy_advantage", "entropy_advantage"]):
        with pytest.raises(ValueError, match=f"methods: {kinds[1]} stands behind {kinds[0]}; wanted the order {', '.join(ORDER)}, each once"):
            Shaping("methods", [Entry(kind) for kind in kinds])
    with pytest.raises(ValueError, match="hicra's grams names no file; make one of right answers with isentrope grams"):
        Shaping("methods", [Entry("hicra")])
    (tmp_path / "none.json").write_text("{}")
    for name in ("none.json", "missing.json"):
        with pytest.raises(ValueError, match=f"methods: .*{name} holds no grams .*; wanted a file that isentrope grams wrote"):
            Shaping("methods", [Entry("hicra", {"grams": str(tmp_path / name)})])
    with pytest.raises(ValueError, match=r"methods\[0\]: of is 'both'; wanted 'logprob' or 'entropy'"):
        Shaping("methods", [Entry("gepo", {"of": "both"})])
    with pytest.raises(ValueError, match=r"methods\[0\]: marker is empty; wanted the text that ends a step"):
        Shaping("methods", [Entry("empg", {"marker": ""})])


def test_entries_of_shaping_are_read():
    for kind in integration.SHAPING:
        assert integration.read("methods", [kind], integration.SHAPING, {}) == [Entry(kind)]
    with pytest.raises(ValueError, match=r"methods\[0\]: .*alpha is -1; wanted"):
        integration.read("methods", [{"kind": "entropy_advantage", "alpha": -1}], integration.SHAPING, {})
    with pytest.raises(ValueError, match=r"methods\[0\]: empg has no key 'steps'; wanted one of marker, k, future_k, zeta, centre"):
        integration.read("methods", [{"kind": "empg", "steps": "turns"}], integration.SHAPING, {})
