"""`isentrope budget`: samples, model and length of each stage of a pipeline, under a budget of FLOPs a question.

space.py says which settings the budget allows and which lie beside which, search.py which are measured, isentrope.pipeline.trials measures them, outcome.py writes what came out.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from isentrope.jobs import sole
from isentrope.pipeline import arguments, guarded

if TYPE_CHECKING:
    from isentrope.budget.outcome import Found
    from isentrope.budget.space import Space
    from isentrope.pipeline.config import Budget, Pipeline
    from isentrope.pipeline.trials import Trials

DESCRIPTION = """\
Find what a pipeline answers best with under a budget of FLOPs a question: of each stage whose model, samples or max_new_tokens is a list,
one value of each. Three searches spend as many questions each, budget.trials times budget.questions: guided halving, settings at random,
and a grid. What each finds is measured again on budget.confirm questions that no search has seen.

The cost of a setting is what it is at most (docs/pipelines.md). Guided halving is after AgentTTS, without its language model as searcher:
seeds and steps stand in its place. Writes trials.jsonl, budget.json, budget.md and best.yaml into the folder `dir`; the same command goes
on where it was stopped, and other budgets and searches take what was measured from there.
"""


def space_of(pipeline: Pipeline, cost: Callable[..., float], flops: float) -> Space:
    from isentrope.budget.space import Space
    from isentrope.pipeline.document import PipelineError

    if not pipeline.searched:
        raise PipelineError(f"{pipeline.file}: no stage has anything to choose; wanted a list under model, samples or max_new_tokens, such as samples: [1, 2, 4, 8]")
    return Space(pipeline.all, pipeline.settings(), cost, flops)


def plan_of(budget: Budget, block: int) -> tuple[int, int]:
    """Questions of a first look: a third, rounded up to whole blocks; and of all."""
    third = -(-budget.questions // 3)
    return min(-(-third // block) * block, budget.questions), budget.questions


def searched(pipeline: Pipeline, budget: Budget, space: Space, trials: Trials, name: str, say: Callable[[str, int, int], None]) -> Found:
    """One search, and the setting that it found measured on fresh questions."""
    from isentrope.budget.outcome import Found
    from isentrope.budget.search import SEARCHES, Plan, Purse
    from isentrope.pipeline.config import named_seed

    third, whole = plan_of(budget, pipeline.block)
    purse = Purse(lambda place, count: trials.measure(space.settings[place], 0, count).accuracy, budget.trials * whole)
    accuracy = purse.accuracy

    def told(place: int, count: int) -> float:
        say(name, budget.trials * whole - purse.left, budget.trials * whole)
        return accuracy(place, count)

    purse.accuracy = told
    SEARCHES[name](space, purse, Plan(budget.trials, whole, third, budget.batch), random.Random(named_seed(pipeline.seed, "search", name)))
    say(name, budget.trials * whole, budget.trials * whole)
    best = purse.ranked(whole, space)[0]
    fresh = trials.measure(space.settings[best], budget.questions, budget.confirm) if budget.confirm else None
    measured = [(place, trials.measure(space.settings[place], 0, purse.asked[place])) for place in purse.order]
    return Found(name, best, trials.measure(space.settings[best], 0, whole), fresh, measured, budget.trials * whole - purse.left)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 after an error, 2 after a wrong command line, 130 after Ctrl-C."""
    words = arguments("budget", DESCRIPTION).parse_args(argv)

    def work() -> int:
        from isentrope.budget.outcome import described, write
        from isentrope.pipeline.config import read
        from isentrope.pipeline.document import PipelineError
        from isentrope.pipeline.plan import Planner
        from isentrope.pipeline.run import Runner
        from isentrope.pipeline.trials import Trials

        begun = time.monotonic()
        pipeline = read(words.config, words.overrides)
        if pipeline.budget is None:
            raise PipelineError(f"{words.config}: has no budget; wanted budget: {{flops: the most that a question may cost, trials: 20}}")
        runner = Runner(pipeline)
        space = space_of(pipeline, Planner(pipeline, runner).flops, pipeline.budget.flops)
        print(described(pipeline, space), flush=True)
        if words.dry_run:
            return 0
        with sole(pipeline.folder):
            trials = Trials(pipeline, runner, pipeline.folder / "trials.jsonl")
            found = [searched(pipeline, pipeline.budget, space, trials, name, progress()) for name in pipeline.budget.search]
            print(write(pipeline, space, found, trials, time.monotonic() - begun), flush=True)
        return 0

    return guarded("budget", work)


def progress() -> Callable[[str, int, int], None]:
    """Tells on a terminal how far a search is."""
    terminal = sys.stderr.isatty()

    def say(name: str, done: int, of: int) -> None:
        if terminal:
            print(f"\r{name}: {done} of {of} questions", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return say
