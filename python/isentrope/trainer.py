"""The C++ trainer in the Python process."""

from __future__ import annotations

import json
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch  # noqa: F401  (loads the libraries that the trainer links)

from isentrope.reward_functions import Reward, checked_rewards, is_text, load, shown
from isentrope.screen import Screen

Callback = Callable[[dict[str, Any], int], object]


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
            U+FFFD. Where a reward does not apply to a completion it returns None, which adds nothing to the sum of rewards, nor
            to the reward's mean. A score of at least 0.5 is a right answer. Functions that the configuration names
            (``kind: python``) are not given here; a name that is no reward's kind is an error.
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
            raise TypeError(f"config is {shown(config)}; wanted the path of a YAML file")
        if not isinstance(resume, bool):
            raise TypeError(f"resume is {shown(resume)}; wanted True or False")
        arguments = os.fsencode(config), _override_bytes(overrides), resume, checked_rewards(rewards), load
        from isentrope import _C  # in packages that were built with the trainer

        if sys.executable:
            os.environ.setdefault("ISENTROPE_PYTHON", sys.executable)  # what the trainer starts with metrics.tensorboard and trackers
        self._trainer = _C.Trainer(*arguments)
        for text in self._trainer.warnings:
            warnings.warn(text, stacklevel=2)
        for note in self._trainer.notes:  # what was taken from a checkpoint, what changed since, what the look at the data found
            print(note, file=sys.stderr)
        # A checkpoint that is being written when this object goes, or Python ends, is waited for.
        weakref.finalize(self, _end, self._trainer)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Trains, and yields what is written to metrics.jsonl: a dict for each step and each evaluation.

        Ctrl-C ends the step that is running (one in a reward breaks it off, and the step has not been), writes a checkpoint and
        raises KeyboardInterrupt; ``resume=True`` goes on from there. An error saves the last whole step too. A loop that is left
        early can be entered again. Ahead of a time limit that the run is told of (``run.time_limit_s``, or Slurm's) a checkpoint is
        written, a warning says so, and the loop ends with ``finished`` False.
        """
        return self._lines(warned=False)

    def _lines(self, warned: bool) -> Iterator[dict[str, Any]]:
        try:
            while not self._trainer.finished:
                if self._trainer.out_of_time():
                    self._trainer.save()
                    warnings.warn("stopped ahead of the time limit (run.save_before_s); resume=True goes on", stacklevel=2)
                    break
                for line in self._trainer.advance():
                    for text in () if warned else line.get("warnings", ()):
                        warnings.warn(f"{line['phase']}, step {line['step']}: {text}", stacklevel=2)
                    yield line
            for text in self._trainer.wait():
                warnings.warn(text, stacklevel=2)
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
                raise TypeError(f"{name} is {shown(callback)}; wanted a function of (metrics, step)")
        if not isinstance(quiet, bool):
            raise TypeError(f"quiet is {shown(quiet)}; wanted True or False")
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
            raise ValueError(f'split is {shown(split)}; wanted "test" or "validation"')
        return self._trainer.evaluate(split, _override_bytes(overrides))

    def save(self) -> str:
        """Writes a checkpoint of the last whole step, if there is none yet, waits until it is on disk, and returns its folder."""
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


def _end(trainer: Any) -> None:
    try:
        lost = trainer.wait()
    except RuntimeError:  # another thread is in a step, which Python's end breaks off
        return
    for text in lost:
        warnings.warn(text, stacklevel=2)


# ---- arguments --------------------------------------------------------------------------------------------------


def _override_bytes(overrides: Any) -> list[bytes]:
    if isinstance(overrides, Mapping):
        # Of a list Python's own text would be read otherwise: '\\n' of YAML is two letters.
        overrides = [
            f"{key}={json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, tuple, dict)) else value}"
            for key, value in overrides.items()
        ]
    elif isinstance(overrides, (str, bytes)) or not isinstance(overrides, Sequence):
        raise TypeError(f'overrides is {shown(overrides)}; wanted {{"run.seed": 2}} or ["run.seed=2"]')
    for override in overrides:
        if not isinstance(override, str):
            raise TypeError(f'overrides holds {shown(override)}; wanted strings such as "run.seed=2"')
        if not is_text(override):
            raise ValueError(f"overrides holds {shown(override)}, in which is half a surrogate pair")
    return [override.encode("utf-8", "surrogateescape") for override in overrides]
