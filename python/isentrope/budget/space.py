"""The settings of a pipeline that a budget allows, and which lie beside which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from isentrope.pipeline.document import PipelineError
from isentrope.pipeline.stages import Choice, Setting, Stage


def key_of(setting: Setting) -> tuple[Choice, ...]:
    return tuple(setting.values())


@dataclass
class Space:
    """Settings of at most `flops` a question, in the order of Pipeline.settings().

    Args:
        stages: those that answer; of each the choices.
        settings: all.
        cost: FLOPs of a question under a setting, at most.

    Raises:
        PipelineError: the budget allows none.
    """

    stages: Sequence[Stage]
    all: Sequence[Setting]
    cost: Callable[[Setting], float]
    flops: float
    settings: list[Setting] = field(init=False)
    costs: list[float] = field(init=False)
    place: dict[tuple[Choice, ...], int] = field(init=False)

    def __post_init__(self) -> None:
        costs = [self.cost(setting) for setting in self.all]
        kept = [i for i, cost in enumerate(costs) if cost <= self.flops]
        if not kept:
            raise PipelineError(f"budget.flops is {self.flops:g}; the cheapest of {len(costs)} settings costs {min(costs):g} a question at most: raise it, or add smaller models, fewer samples or less max_new_tokens")
        self.settings = [self.all[i] for i in kept]
        self.costs = [costs[i] for i in kept]
        self.place = {key_of(setting): i for i, setting in enumerate(self.settings)}

    def __len__(self) -> int:
        return len(self.settings)

    def find(self, setting: Setting) -> int | None:
        """Its number; None where the budget does not allow it."""
        return self.place.get(key_of(setting))

    @property
    def searched(self) -> list[Stage]:
        return [stage for stage in self.stages if len(stage.choices) > 1]

    def largest(self, stage: Stage, among: Sequence[Choice], setting: Setting) -> int | None:
        """The dearest of these choices of a stage that the budget allows beside the others of the setting."""
        allowed = [i for choice in among if (i := self.find({**setting, stage.path: choice})) is not None]
        return max(allowed, key=lambda i: (self.costs[i], -i), default=None)

    # ---- where a guided search begins ------------------------------------------------------------------------------------

    def seeds(self) -> list[int]:
        """Of each stage each model with as many samples as cost no more than one of its dearest model, the others at one sample of their
        dearest model where that is allowed, else of their cheapest."""
        found: list[int] = []
        for stage in self.searched:
            for model in stage.models:
                for dear in (True, False):
                    setting = {one.path: self._one(one, dear) for one in self.stages}
                    limit = self.cost({**setting, stage.path: self._one(stage, True)})
                    own = [choice for choice in stage.choices if choice.model == model and choice.max_new_tokens == max(stage.lengths)]
                    own = [choice for choice in own if self.cost({**setting, stage.path: choice}) <= limit] or own
                    if (place := self.largest(stage, own, setting)) is not None:
                        found.append(place)
                        break
        if not found:  # nothing but the cheapest of all stages fits
            found.append(min(range(len(self)), key=lambda i: (self.costs[i], i)))
        return list(dict.fromkeys(found))

    def _one(self, stage: Stage, dear: bool) -> Choice:
        """Fewest samples of the dearest model and its longest answers, or the shortest ones of the cheapest."""
        base = {one.path: one.choices[0] for one in self.stages}
        few = [choice for choice in stage.choices if choice.samples == min(stage.samples)]
        return (max if dear else min)(few, key=lambda choice: self.cost({**base, stage.path: choice}))

    # ---- what lies beside a setting ----------------------------------------------------------------------------------------

    def beside(self, place: int) -> list[int]:
        """Settings that differ in a step: samples one down, one or two up; length one down, one up; another model with all the samples that
        the rest of the budget pays; and samples one up in one stage, paid by fewer in another."""
        setting = self.settings[place]
        found: list[int | None] = []
        for stage in self.searched:
            own = setting[stage.path]
            for samples in steps(stage.samples, own.samples, (-1, 1, 2)):
                found.append(self.find({**setting, stage.path: own._replace(samples=samples)}))
            for length in steps(stage.lengths, own.max_new_tokens, (-1, 1)):
                found.append(self.find({**setting, stage.path: own._replace(max_new_tokens=length)}))
            for model in stage.models:
                if model != own.model:
                    among = [choice for choice in stage.choices if choice.model == model and choice.max_new_tokens == own.max_new_tokens]
                    found.append(self.largest(stage, among, setting))
            found += self._exchanged(setting, stage)
        return [one for one in dict.fromkeys(found) if one is not None and one != place]

    def _exchanged(self, setting: Setting, stage: Stage) -> Iterator[int | None]:
        own = setting[stage.path]
        for samples in steps(stage.samples, own.samples, (1, 2)):
            more = {**setting, stage.path: own._replace(samples=samples)}
            for other in self.searched:
                if other is not stage and self.find(more) is None:
                    now = more[other.path]
                    fewer = [choice for choice in other.choices if choice.model == now.model and choice.max_new_tokens == now.max_new_tokens and choice.samples < now.samples]
                    yield self.largest(other, fewer, more)


def steps(values: Sequence[int], now: int, by: Sequence[int]) -> list[int]:
    ordered = sorted(values)
    at = ordered.index(now)
    return [ordered[at + step] for step in by if 0 <= at + step < len(ordered)]
