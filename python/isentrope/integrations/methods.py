"""Methods of policy learning as the configuration of another trainer names them, applied to that trainer's tensors.

An entry is the name of a method, "grpo", or a dict with the keys of the trainer's own lists, {"kind": "grpo", "std": "batch"}. What it
computes is the function of that name in isentrope.methods; here stand the checks of entries, and the order of completions.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isentrope import methods

__all__ = [
    "ADVANTAGES", "CONTROLLERS", "SHAPING", "WEIGHTS", "Controller", "Entry", "advantage", "check_places", "factor", "factor_stats", "options_of", "read", "subject"
]  # fmt: skip

ADVANTAGES: dict[str, Callable[..., Tensor]] = {
    "grpo": methods.grpo,
    "dr_grpo": methods.dr_grpo,
    "rloo": methods.rloo,
    "opo": methods.opo,
    "reinforce_plus_plus_baseline": methods.reinforce_plus_plus_baseline,
    "reinforce_plus_plus": methods.reinforce_plus_plus,
    "gdpo": methods.gdpo,
    "pass_at_k": methods.pass_at_k,
    "remax": methods.remax,
    "maxrl": methods.maxrl,
    "quantile": methods.quantile,
    "optimal_token_baseline": methods.optimal_token_baseline,
    "gtpo": methods.gtpo,
}
# What changes advantages that an estimator has made, token by token: isentrope.integrations.shaping applies them.
SHAPING: dict[str, Callable[..., Any]] = {
    "empg": methods.empg,
    "entropy_advantage": methods.entropy_advantage,
    "perplexity": methods.perplexity,
    "position": methods.position,
    "hicra": methods.hicra,
    "repo": methods.repo,
    "gepo": methods.gepo,
}


def _correction(
    old_logprob: Tensor,
    sampling_logprob: Tensor,
    mask: Tensor,
    advantage: Tensor,
    logprob: Tensor,
    *,
    level: str = "token",
    mode: str = "truncate",
    low: float = 0.0,
    high: float = 2.0,
    delta: float | None = None,
) -> Tensor:
    """isentrope.methods.correction of the policy before the update, old_logprob, to the log-probabilities that the rollout told."""
    looks: dict[str, Tensor] = {} if delta is None else {"advantage": advantage, "logprob": logprob}
    return methods.correction(old_logprob, sampling_logprob, mask, level=level, mode=mode, low=low, high=high, delta=delta, **looks).factor


WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "top_entropy": methods.top_entropy,
    "surprisal_band": methods.surprisal_band,
    "entropy_ratio_band": methods.entropy_ratio_band,
    "steer": methods.steer,
    "stare": methods.stare,
    "soft_window": methods.soft_window,
    "correction": _correction,
}
CONTROLLERS: dict[str, Callable[..., Tensor]] = {"adaptive": methods.adaptive_entropy, "entropic": methods.entropic}
_FUNCTIONS = ADVANTAGES | SHAPING | WEIGHTS | CONTROLLERS
# Keys of an entry that its function has no argument for: the coefficient of the first update; what steps end with; the file of the grams;
# what a group's entropy is measured by.
_MORE: dict[str, dict[str, Any]] = {
    "adaptive": {"coef": 0.0}, "empg": {"marker": "\n\n"}, "hicra": {"grams": ""}, "gepo": {"of": "logprob"}
}  # fmt: skip


class Entry(NamedTuple):
    """A method and its options."""

    kind: str
    options: dict[str, Any] = {}


def subject(kind: str) -> list[str]:
    """The tensors that a method works on, by the names of its function."""
    return [name for name, one in inspect.signature(_FUNCTIONS[kind]).parameters.items() if one.default is inspect.Parameter.empty]


def _keys(kind: str) -> dict[str, Any]:
    """The options of a method, with their defaults."""
    made = {name: one.default for name, one in inspect.signature(_FUNCTIONS[kind]).parameters.items() if one.default is not inspect.Parameter.empty}
    return {**_MORE.get(kind, {}), **made}


def options_of(entry: Entry) -> dict[str, Any]:
    """All options of an entry."""
    return {**_keys(entry.kind), **entry.options}


# ---- what was given --------------------------------------------------------------------------------------------------


def read(where: str, given: Any, known: Iterable[str], refused: Mapping[str, str]) -> list[Entry]:
    """Entries from a list of names and dicts.

    Args:
        where: what the list is called in errors.
        given: names or dicts with a key kind; None is an empty list.
        known: names that may stand there.
        refused: of a method that cannot be had there: why, and what to use.

    Raises:
        ValueError: a name or key that is not known, a method that is refused, a value that is out of its range.
        TypeError: an entry, or a value, of another type.
    """
    if given is None:
        return []
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(f"{where} is {given!r}; wanted a list of names or of dicts with a key kind")
    return [_read_one(f"{where}[{i}]", one, list(known), refused) for i, one in enumerate(given)]


def _read_one(where: str, given: Any, known: Sequence[str], refused: Mapping[str, str]) -> Entry:
    keys = {"kind": given} if isinstance(given, str) else given
    if not isinstance(keys, Mapping) or not isinstance(keys.get("kind"), str):
        raise TypeError(f"{where} is {given!r}; wanted a name, or a dict with a key kind, as {{'kind': {known[0]!r}}}")
    options = {str(key): list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value for key, value in keys.items() if key != "kind"}
    kind = str(keys["kind"])
    if kind in refused:
        raise ValueError(f"{where}: {kind} cannot be had here: {refused[kind]}")
    if kind not in known:
        raise ValueError(f"{where}: kind is {kind!r}; wanted {_nearest(kind, known)}")
    for key in options:
        if key not in _keys(kind):
            raise ValueError(f"{where}: {kind} has no key {key!r}; wanted {_nearest(key, list(_keys(kind))) if _keys(kind) else 'none'}")
    entry = Entry(kind, options)
    _try_out(where, entry)
    return entry


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"one of {', '.join(known)}" + (f" ({near[0]}?)" if near else "")


def _try_out(where: str, entry: Entry) -> None:
    """A call on one token, so that a value out of its range is told before a run begins, and not by its first step."""
    token, mask, alone = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    one: dict[str, Any] = {
        "reward": torch.zeros(1, dtype=torch.float64), "group": alone, "length": alone + 1, "greedy": torch.zeros(1, dtype=torch.float64),
        "scores": torch.zeros(len(entry.options.get("weights") or [1]), 1, dtype=torch.float64),
    }  # fmt: skip
    one |= {name: token for name in ("logprob", "old_logprob", "sampling_logprob", "entropy", "old_entropy", "advantage", "sum_p2", "h")} | {"mask": mask, "planning": mask}
    one |= {"right": alone, "step": torch.zeros(1, 1, dtype=torch.int64), "state": torch.full((2,), math.nan, dtype=torch.float64)}
    try:
        if entry.kind in CONTROLLERS:
            _check_controller(entry)
            one |= {"state": torch.zeros(2, dtype=torch.float64), "entropy": 0.5}
        _call(entry, {name: one[name] for name in subject(entry.kind)})
    except (ValueError, TypeError, RuntimeError) as error:
        raise type(error)(f"{where}: {error}") from error


def _check_controller(entry: Entry) -> None:
    """The ranges that the trainer's configuration has for them; the functions take any number."""
    options = {**_keys(entry.kind), **entry.options}
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{entry.kind}: {name} is {value!r}; wanted a number")
        above = name in ("target", "delta")
        if not (0 < value < math.inf if above else 0 <= value < math.inf):
            raise ValueError(f"{entry.kind}: {name} is {value:g}; wanted {'above 0' if above else '0 or more'}")
    if entry.kind == "adaptive" and not options["least"] <= options["coef"] <= options["most"]:
        raise ValueError(f"adaptive: coef is {options['coef']:g}; wanted least ({options['least']:g}) to most ({options['most']:g})")


def _call(entry: Entry, tensors: Mapping[str, Any]) -> Any:
    options = {name: value for name, value in entry.options.items() if name not in _MORE.get(entry.kind, {})}
    if options.get("weights") is not None:
        options["weights"] = torch.as_tensor(options["weights"], dtype=torch.float64)
    return _FUNCTIONS[entry.kind](**tensors, **options)


def check_places(where: str, entries: Sequence[Entry], places: Mapping[str, Iterable[str]]) -> None:
    """At most one of each place; places: what it is called → its methods.

    Raises:
        ValueError: two of one place.
    """
    for what, kinds in places.items():
        found = [entry.kind for entry in entries if entry.kind in kinds]
        if len(found) > 1:
            raise ValueError(f"{where} has {' and '.join(found)}; wanted one {what}")


# ---- advantages ------------------------------------------------------------------------------------------------------


def advantage(entry: Entry, index: Sequence[Any], **tensors: Tensor | None) -> Tensor:
    """Advantages of the completions of a step, which may stand in any order.

    Args:
        entry: of ADVANTAGES.
        index: [B], for each completion what names its prompt: anything hashable.
        tensors: what the method's function takes, without group, by name: reward [B], length [B], scores [R, B], greedy [B] (that of the
            completion's prompt, the same for all of its completions), right [B], logprob, entropy, sum_p2 and mask [B, T]. A completion of
            reward NaN has none, and is in no statistic.

    Returns:
        [B], or [B, T] of optimal_token_baseline and gtpo.

    Raises:
        ValueError: a tensor is None, greedy differs within a prompt; and what the function refuses.
    """
    names = [name for name in subject(entry.kind) if name != "group"]
    for name in names:
        if tensors.get(name) is None:
            raise ValueError(f"{entry.kind}: {name} is None; wanted a tensor")
    given: dict[str, Tensor] = {name: x for name in names if (x := tensors[name]) is not None}
    number: dict[Any, int] = {}
    group = torch.tensor([number.setdefault(one, len(number)) for one in index], dtype=torch.int64)
    order = group.argsort(stable=True)
    if "reward" in given:
        order = order[~given["reward"].isnan().cpu()[order]]
    chosen = {name: x[:, order.to(x.device)] if name == "scores" else x[order.to(x.device)] for name, x in given.items()}
    _, group = torch.unique_consecutive(group[order], return_inverse=True)
    if "greedy" in chosen:
        chosen["greedy"] = _of_prompts(chosen["greedy"], group)
    first = next(iter(given.values()))
    made = _call(entry, {**chosen, "group": group} if "group" in subject(entry.kind) else chosen)
    whole = made.new_zeros(len(index), *made.shape[1:], device=first.device)
    whole[order.to(first.device)] = made.to(first.device)
    return whole


def _of_prompts(greedy: Tensor, group: Tensor) -> Tensor:
    """One a completion → one a prompt; group [B] rising from 0."""
    starts = torch.ones_like(group, dtype=torch.bool)
    starts[1:] = group[1:] != group[:-1]
    made = greedy[starts.to(greedy.device)]
    if not torch.equal(made[group.to(greedy.device)], greedy):
        raise ValueError("remax: the completions of a prompt have different greedy rewards; wanted one a prompt")
    return made


# ---- weights ---------------------------------------------------------------------------------------------------------


def factor(entries: Sequence[Entry], **tensors: Tensor) -> Tensor:
    """The product [B, T] of weights of a token's policy term, by which advantages are multiplied; each sees the same tokens.

    Args:
        entries: of WEIGHTS, at least one.
        tensors: mask, logprob, old_logprob, sampling_logprob, entropy, old_entropy and advantage, [B, T], those of them that the methods take.
    """
    made = None
    for entry in entries:
        one = _call(entry, {name: tensors[name] for name in subject(entry.kind)})
        made = one if made is None else made * one
    if made is None:
        raise ValueError("factor: entries is empty; wanted at least one weight")
    return made


def factor_stats(product: Tensor, mask: Tensor) -> dict[str, float]:
    """The mean of a factor [B, T] over the tokens that count, and the share of them at 0, as weight/mean and weight/zero; 0 of no token."""
    counted = product[mask != 0]
    tokens = max(counted.numel(), 1)
    return {"weight/mean": counted.sum().item() / tokens, "weight/zero": (counted == 0).sum().item() / tokens}


# ---- controllers -----------------------------------------------------------------------------------------------------


class Controller:
    """A controller of the entropy with its state: what an update is given, and what it makes of the update's entropy.

    coefficient is the weight of the entropy bonus, positive and negative the factors of advantages above and below 0.
    """

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.options = options_of(entry)
        begun = [self.options["coef"], math.nan] if entry.kind == "adaptive" else [0.0, 0.0]
        self.state = torch.tensor(begun, dtype=torch.float64)

    @property
    def coefficient(self) -> float:
        if self.entry.kind != "adaptive":
            return 0.0
        coef, last = self.state.tolist()
        return 0.0 if last > self.options["target"] else float(coef)  # NaN, before the first update: in force

    @property
    def positive(self) -> float:
        return 1.0 + float(self.state[1]) if self.entry.kind == "entropic" else 1.0

    @property
    def negative(self) -> float:
        return 1.0 - float(self.state[1]) if self.entry.kind == "entropic" else 1.0

    def observe(self, entropy: float) -> None:
        """entropy: mean of the update's tokens, nats."""
        self.state = _call(self.entry, {"state": self.state, "entropy": entropy})
