"""`isentrope pipeline`: questions answered by a list of stages, each a prompt of a model, a function, or a list of its own.

document.py reads the file, stages.py and config.py say what it holds, run.py answers, plan.py says what that costs at most, trials.py
keeps what was measured; `isentrope budget` (isentrope.budget) searches over the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isentrope.jobs import CommandError, sole

if TYPE_CHECKING:
    from isentrope.pipeline.config import Pipeline
    from isentrope.pipeline.stages import Setting
    from isentrope.pipeline.trials import Measured, Trials

DESCRIPTION = """\
Answer the questions of a data set by the stages of a pipeline, and score the last stage's answers. A stage is a prompt with {question} and
the {names} of earlier stages that a model answers, several times where it says so, with a vote or the best by a scorer; a function in
Python; or a list of stages of its own. Models are folders as `isentrope sample` takes them (docs/pipelines.md).

Writes answers.jsonl (what each stage said) and result.json into the folder `dir`, and after each block of questions blocks.jsonl, from
which the same command goes on where it was stopped.
"""


def arguments(name: str, description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"isentrope {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    made.add_argument("config", type=Path, metavar="CONFIG", help="YAML file with pipeline, data and scorer")
    made.add_argument("overrides", nargs="*", metavar="KEY.PATH=VALUE", help="in the place of its values: seed=2, pipeline.solve.samples=8")
    made.add_argument("--dry-run", action="store_true", help="check everything, tell what a question costs at most, and answer none")
    return made


def guarded(name: str, work: Callable[[], int]) -> int:
    """The exit code of a command; what is wrong is told on standard error."""
    try:
        from isentrope.pipeline.document import PipelineError
    except ImportError as error:
        if error.name != "yaml":
            raise
        print(f"isentrope {name}: the Python package yaml is missing: pip install 'isentrope[report]'", file=sys.stderr)
        return 1
    try:
        return work()
    except (PipelineError, CommandError) as error:
        print(f"isentrope {name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"isentrope {name}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"isentrope {name}: stopped; the same command goes on", file=sys.stderr)
        return 130


def plan_table(stages: dict[str, float]) -> str:
    from isentrope.pipeline.flops import shown

    width = max(5, *map(len, stages))
    rows = [f"{name:{width}}  {shown(flops):>12}" for name, flops in stages.items()]
    return "\n".join([f"{'stage':{width}}  at most a question", *rows, f"{'':{width}}  {shown(sum(stages.values())):>12}"])


def answered(trials: Trials, setting: Setting, say: Callable[[int], None]) -> Measured:
    """Measures a block at a time, and writes answers.jsonl, a question a line."""
    from isentrope.pipeline.cache import replace

    count = len(trials.pipeline.questions)
    answers: list[str] = []
    for block in trials.blocks(0, count):
        answers += [json.dumps(one, ensure_ascii=False) + "\n" for one in trials.line(setting, block)["answers"]]
        say(len(answers))
    replace(trials.pipeline.folder / "answers.jsonl", "".join(answers))
    return trials.measure(setting, 0, count)


def told(pipeline: Pipeline, setting: Setting, found: Measured, planned: float, seconds: float) -> str:
    """Writes result.json. Returns what is printed."""
    from isentrope.diagnose.intervals import wilson
    from isentrope.pipeline.cache import replace
    from isentrope.pipeline.config import as_object
    from isentrope.pipeline.flops import shown
    from isentrope.pipeline.trials import as_text, dumped

    low, high = wilson(found.right, found.questions)
    scores = [score for score in found.scores if score is not None]
    result = {"questions": found.questions, "right": found.right, "accuracy": found.accuracy, "interval": {"low": low, "high": high},
              "score": sum(scores) / len(scores) if scores else None, "scored": len(scores), "scorer": pipeline.scorer.name, "setting": as_object(setting),
              "flops": found.flops, "planned_flops": planned, "prompt_tokens": found.prompt_tokens, "tokens": found.tokens,
              "seconds": found.seconds, "seed": pipeline.seed, "config": str(pipeline.file)}  # fmt: skip
    replace(pipeline.folder / "result.json", dumped(result))
    return "\n".join([as_text(setting),
                      f"right      {100 * found.accuracy:.1f} %  [{100 * low:.1f}, {100 * high:.1f}]  {found.right} of {found.questions} by {pipeline.scorer.name}",
                      f"a question {shown(found.flops)}, at most {shown(planned)}; {found.prompt_tokens:.1f} tokens of prompts, {found.tokens:.1f} drawn",
                      f"time       {seconds:.1f} s, draws {found.seconds:.1f} s",
                      f"written    {pipeline.folder}/result.json, answers.jsonl"])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 after an error, 2 after a wrong command line, 130 after Ctrl-C."""
    words = arguments("pipeline", DESCRIPTION).parse_args(argv)

    def work() -> int:
        from isentrope.pipeline.config import read
        from isentrope.pipeline.plan import Planner
        from isentrope.pipeline.run import Runner
        from isentrope.pipeline.trials import Trials

        begun = time.monotonic()
        pipeline = read(words.config, words.overrides)
        setting = pipeline.setting()
        runner = Runner(pipeline)
        stages = Planner(pipeline, runner).of_stages(setting)
        if words.dry_run:
            print(f"{len(pipeline.questions)} questions, scorer {pipeline.scorer.name}\n{plan_table(stages)}")
            return 0
        with sole(pipeline.folder):
            trials = Trials(pipeline, runner, pipeline.folder / "blocks.jsonl", keep=True)
            found = answered(trials, setting, progress(len(pipeline.questions)))
            print(told(pipeline, setting, found, sum(stages.values()), time.monotonic() - begun))
        return 0

    return guarded("pipeline", work)


def progress(of: int) -> Callable[[int], None]:
    """Tells on a terminal how many questions are answered."""
    terminal = sys.stderr.isatty()

    def say(done: int) -> None:
        if terminal:
            print(f"\r{done} of {of} questions", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return say
