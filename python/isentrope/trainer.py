"""The C++ trainer in the Python process."""

from __future__ import annotations

import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch  # noqa: F401  (loads the libraries that the trainer links)

from isentrope.screen import Screen

Callback = Callable[[dict[str, Any], int], object]
Reward = Callable[[list[str], list[str], list[dict[str, Any]]], Sequence[float]]


class Trainer:
    """Trains from a YAML configuration; the same trainer as ``isentrope train``.

    Args:
        config: path of the configuration.
        rewards: further kinds of reward by name, for ``reward: [{kind: NAME}]``. A reward is
            ``fn(prompts, completions, meta)`` and returns one finite number for each completion, as a list, tuple, array or
            tensor. Completions are without the end of sequence. ``meta[i]`` holds every key of the JSON object that prompt
            ``i`` came from, with its value; ``answer`` and ``completion`` of the example, texts, where no key has that name;
            ``finished``, False where completion ``i`` was cut at the length limit; and ``split``: ``"train"``, or
            ``"validation"`` or ``"test"`` in evaluations, which ask the first reward as well. Bytes that are no UTF-8 are
            U+FFFD. Where a reward has nothing to say of a completion it returns 0, which adds nothing to the sum of
            rewards. A score of at least 0.5 is a right answer.
        overrides: ``{"run.seed": 2}`` or ``["run.seed=2"]``, as on the command line.
        resume: go on from the newest complete checkpoint of the run folder.

    Raises:
        RuntimeError: what is wrong with the configuration, the run folder, a reward or a step, and how to mend it. What a
            reward raises comes through as it is. After either the trainer stands where the last whole step left it: ``save()``
            gives that, and going on makes the step again.
        TypeError, ValueError: what is wrong with an argument.

    A Trainer is for one thread at a time, and for the process that made it; a reward may not call it.

    Example::

        trainer = isentrope.Trainer("configs/quickstart.yaml", rewards={"short": lambda p, c, m: [-len(x) for x in c]})
        for metrics in trainer:
            print(metrics["phase"], metrics["step"], metrics.get("reward/mean"))
    """

    def __init__(
        self,
        config: str | os.PathLike[str],
        rewards: Mapping[str, Reward] | None = None,
        overrides: Mapping[str, Any] | Sequence[str] = (),
        resume: bool = False,
    ) -> None:
        if not isinstance(config, (str, bytes, os.PathLike)):
            raise TypeError(f"config is {_shown(config)}; wanted the path of a YAML file")
        if not isinstance(resume, bool):
            raise TypeError(f"resume is {_shown(resume)}; wanted True or False")
        arguments = os.fsencode(config), _override_bytes(overrides), resume, _checked_rewards(rewards)
        from isentrope import _C  # in packages that were built with the trainer

        if sys.executable:
            os.environ.setdefault("ISENTROPE_PYTHON", sys.executable)  # what the trainer starts with metrics.tensorboard
        self._trainer = _C.Trainer(*arguments)
        for text in self._trainer.warnings:
            warnings.warn(text, stacklevel=2)
        for note in self._trainer.notes:  # what was taken from a checkpoint, what changed since, what the look at the data found
            print(note, file=sys.stderr)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Trains, and yields what is written to metrics.jsonl: a dict for each step and each evaluation.

        Ctrl-C ends the step that is running (one in a reward breaks it off, and the step has not been), writes a checkpoint and
        raises KeyboardInterrupt; ``resume=True`` goes on from there. An error saves the last whole step too. A loop that is left
        early can be entered again.
        """
        return self._lines(warned=False)

    def _lines(self, warned: bool) -> Iterator[dict[str, Any]]:
        try:
            while not self._trainer.finished:
                for line in self._trainer.advance():
                    for text in () if warned else line.get("warnings", ()):
                        warnings.warn(f"{line['phase']}, step {line['step']}: {text}", stacklevel=2)
                    yield line
        except KeyboardInterrupt:
            self._trainer.save()
            raise
        except Exception as error:
            checkpoint = os.fsdecode(self._trainer.last_checkpoint)
            if checkpoint and checkpoint not in str(error) and hasattr(error, "add_note"):  # Python 3.11 and later
                error.add_note(f"The last good checkpoint is {checkpoint}; resume=True goes on from it.")
            raise

    def train(
        self, on_step: Callback | None = None, on_evaluation: Callback | None = None, quiet: bool = False
    ) -> dict[str, dict[str, float]]:
        """Trains to the end. Returns ``results``. Shows on ``sys.stdout`` what ``isentrope train`` shows.

        Args:
            on_step: called as ``on_step(metrics, step)`` after each step of training, with what is written to metrics.jsonl and
                the steps of the run so far, over all its phases (``metrics["global_step"]``).
            on_evaluation: the same after each evaluation; ``step`` is the step that it follows.
            quiet: show nothing.

        They are called between steps, and may call ``evaluate()`` and ``save()``. What one raises ends the call and comes through
        as it is; the last whole step is saved before that.
        """
        for name, callback in (("on_step", on_step), ("on_evaluation", on_evaluation)):
            if callback is not None and not callable(callback):
                raise TypeError(f"{name} is {_shown(callback)}; wanted a function of (metrics, step)")
        if not isinstance(quiet, bool):
            raise TypeError(f"quiet is {_shown(quiet)}; wanted True or False")
        self._trainer.show(None if quiet else Screen())
        try:
            for metrics in self._lines(warned=not quiet):
                callback = on_evaluation if "eval/split" in metrics else on_step
                if callback is None:
                    continue
                try:
                    callback(metrics, metrics["global_step"])
                except BaseException:
                    self._trainer.save()
                    raise
            self._trainer.show_results()
        finally:
            self._trainer.show(None)
        return self.results

    def evaluate(self, split: str = "test", **overrides: Any) -> dict[str, float]:
        """Measures the weights as they are on held-out data of the last phase, as ``isentrope evaluate`` does.

        Args:
            split: ``"test"`` or ``"validation"``.
            overrides: keys of the section ``test`` of the configuration, for this call: ``evaluate(prompts=64, num_generations=4)``.

        Returns the figures of docs/metrics.md without ``eval/``; rewards in Python judge as they do in training.
        Training is not changed by it.
        """
        if split not in ("test", "validation"):
            raise ValueError(f'split is {_shown(split)}; wanted "test" or "validation"')
        return self._trainer.evaluate(split, _override_bytes(overrides))

    def save(self) -> str:
        """Writes a checkpoint of the last whole step, if there is none yet, and returns its folder."""
        return os.fsdecode(self._trainer.save())

    @property
    def finished(self) -> bool:
        return self._trainer.finished

    @property
    def dir(self) -> str:
        """The run folder."""
        return os.fsdecode(self._trainer.dir)

    @property
    def header(self) -> dict[str, Any]:
        """What the run is made of, as the first line of metrics.jsonl has it: parameters, device, threads, memory, and each phase
        with the sizes of its splits (docs/metrics.md, "The first line")."""
        return json.loads(self._trainer.header)["run"]

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """By phase that has ended, the evaluation on the test data of the last phase: ``greedy``, ``sampled``, ``pass@1``,
        ``pass@2``, …, ``entropy``, ``length``, and ``loss`` where the last phase is supervised; or, where that is a corpus, ``loss`` and ``bits_per_byte``."""
        return self._trainer.results


# ---- arguments, and what rewards return ----------------------------------------------------------------------------


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "of which repr() fails"
    return f"a {type(value).__name__}, {text if len(text) <= 200 else text[:200] + '…'}"


def _is_text(value: str) -> bool:
    """Whether it has a form in bytes; file names that are no UTF-8 have, as Python reads them."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _override_bytes(overrides: Any) -> list[bytes]:
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={value}" for key, value in overrides.items()]
    elif isinstance(overrides, (str, bytes)) or not isinstance(overrides, Sequence):
        raise TypeError(f'overrides is {_shown(overrides)}; wanted {{"run.seed": 2}} or ["run.seed=2"]')
    for override in overrides:
        if not isinstance(override, str):
            raise TypeError(f'overrides holds {_shown(override)}; wanted strings such as "run.seed=2"')
        if not _is_text(override):
            raise ValueError(f"overrides holds {_shown(override)}, in which is half a surrogate pair")
    return [override.encode("utf-8", "surrogateescape") for override in overrides]


def _checked_rewards(rewards: Any) -> dict[bytes, Reward]:
    if rewards is None:
        return {}
    if not isinstance(rewards, Mapping):
        raise TypeError(f'rewards is {_shown(rewards)}; wanted {{"name": function}}')
    for name, function in rewards.items():
        if not isinstance(name, str) or not _is_text(name):
            raise TypeError(f"rewards has the name {_shown(name)}; wanted a string, the kind in reward: [{{kind: NAME}}]")
        if not callable(function):
            raise TypeError(f'rewards["{name}"] is {_shown(function)}; wanted fn(prompts, completions, meta)')
    return {name.encode("utf-8", "surrogateescape"): _checked_reward(name, function) for name, function in rewards.items()}


def _checked_reward(name: str, function: Reward) -> Reward:
    try:
        inspect.signature(function).bind([], [], [])
    except TypeError as error:
        raise TypeError(f'the reward "{name}" is called with (prompts, completions, meta), which its function does not take: '
                        f"{error}") from None  # fmt: skip
    except ValueError:
        pass  # a built-in that tells no signature

    def reward(prompts: list[str], completions: list[str], meta: list[dict[str, Any]]) -> list[float]:
        count = len(completions)  # before the function has the list
        try:
            scores = function(prompts, completions, meta)
        except Exception as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(f'It was raised in the reward "{name}".')
            raise
        return _numbers(name, scores, count)

    return reward


def _numbers(name: str, scores: Any, count: int) -> list[float]:
    tolist = getattr(scores, "tolist", None)  # of arrays, tensors, series
    values = tolist() if callable(tolist) else scores
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes, bytearray, memoryview)):
        raise RuntimeError(f'the reward "{name}" returned {_shown(scores)}; wanted a list, tuple, array or tensor of {count} '
                           "numbers, one for each completion")
    numbers = []
    for i, value in enumerate(values):
        try:
            if isinstance(value, (str, bytes, bytearray)):
                raise TypeError
            numbers.append(0.0 if value is None else float(value))  # None: it does not apply
        except (TypeError, ValueError, OverflowError):
            raise RuntimeError(f'the reward "{name}" returned {_shown(value)} as score {i} of {count}; wanted a number, or None '
                               "where it has nothing to say of a completion") from None
    return numbers
