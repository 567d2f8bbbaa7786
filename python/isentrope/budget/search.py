"""Which settings are measured: guided halving, at random, and on a grid, each for the same number of questions.

Guided halving stands in for the paper's language model as searcher (AgentTTS): it begins with the seeds of Space.seeds(), goes on with what lies beside the two best, and
measures each batch on a third of the questions first, of which the better third is measured on all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from isentrope.budget.space import Space

Accuracy = Callable[[int, int], float]  # of a setting's number and so many first questions: the share that is right


@dataclass
class Purse:
    """What a search may spend, in questions answered, and what it has measured."""

    accuracy: Accuracy
    left: int
    asked: dict[int, int] = field(default_factory=dict)  # by setting, on how many first questions
    found: dict[int, float] = field(default_factory=dict)  # by setting, the share that is right of these
    order: list[int] = field(default_factory=list)  # settings, as they were first measured

    def price(self, setting: int, questions: int) -> int:
        return max(0, questions - self.asked.get(setting, 0))

    def measure(self, setting: int, questions: int) -> float:
        self.left -= self.price(setting, questions)
        if setting not in self.asked:
            self.order.append(setting)
        if questions > self.asked.get(setting, 0):
            self.asked[setting] = questions
            self.found[setting] = self.accuracy(setting, questions)
        return self.found[setting]

    def ranked(self, questions: int, space: Space) -> list[int]:
        """Settings measured on at least so many, the best first, of equals the cheapest."""
        those = [one for one, asked in self.asked.items() if asked >= questions]
        return sorted(those, key=lambda one: (-self.found[one], space.costs[one], one))


@dataclass(frozen=True)
class Plan:
    """questions: of a whole trial; third: of a first look; batch: settings looked at together."""

    trials: int
    questions: int
    third: int
    batch: int


def random_search(space: Space, purse: Purse, plan: Plan, draw: random.Random) -> None:
    """Settings drawn evenly among those that the budget allows, none twice."""
    for setting in draw.sample(range(len(space)), min(plan.trials, len(space))):
        purse.measure(setting, plan.questions)


def grid_search(space: Space, purse: Purse, plan: Plan, draw: random.Random) -> None:
    """Every so many-th of the settings that the budget allows, in their order: all where there are no more than trials."""
    count = min(plan.trials, len(space))
    for i in range(count):
        purse.measure((2 * i + 1) * len(space) // (2 * count), plan.questions)


def guided_search(space: Space, purse: Purse, plan: Plan, draw: random.Random) -> None:
    """Rounds of a batch each until nothing is left to spend, or every setting is measured."""
    waiting = space.seeds()
    while purse.left > 0:
        batch = affordable(next_batch(space, purse, plan, draw, waiting), purse, plan)
        waiting = [one for one in waiting if one not in batch]
        if not batch:
            break
        looked = sorted(batch, key=lambda one: (-purse.measure(one, plan.third), space.costs[one], one))
        for one in looked[: -(-len(looked) // 3)]:
            purse.measure(one, plan.questions)
    for one in purse.ranked(1, space):  # what is left completes the best that were looked at
        if purse.price(one, plan.questions) <= purse.left:
            purse.measure(one, plan.questions)


def next_batch(space: Space, purse: Purse, plan: Plan, draw: random.Random, waiting: list[int]) -> list[int]:
    """Settings not looked at yet: those that wait, what lies beside the two best, then any."""
    found = [one for one in waiting if one not in purse.asked][: plan.batch]
    best = purse.ranked(plan.questions, space)
    if best and len(found) < plan.batch:
        for top in (best[:2], best[2:4]):
            new = [one for place in top for one in space.beside(place) if one not in purse.asked and one not in found]
            draw.shuffle(new)
            found += list(dict.fromkeys(new))[: plan.batch - len(found)]
    if not found:
        rest = [one for one in range(len(space)) if one not in purse.asked]
        found = draw.sample(rest, min(plan.batch, len(rest)))
    return found


def affordable(batch: list[int], purse: Purse, plan: Plan) -> list[int]:
    """As many of the batch as can be looked at, and a third of them measured whole."""
    while batch and len(batch) * plan.third + -(-len(batch) // 3) * (plan.questions - plan.third) > purse.left:
        batch = batch[:-1]
    return batch


SEARCHES: dict[str, Callable[[Space, Purse, Plan, random.Random], None]] = {"guided": guided_search, "random": random_search, "grid": grid_search}
