"""The C++ trainer in the Python process."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch  # noqa: F401  (loads the libraries that the trainer links)

Reward = Callable[[list[str], list[str], list[dict[str, str]]], Sequence[float]]


class Trainer:
    """Trains from a YAML configuration; the same trainer as ``isentrope train``.

    Args:
        config: path of the configuration.
        rewards: further kinds of reward by name, for ``reward: [{kind: NAME}]``. A reward is
            ``fn(prompts, completions, meta) -> list of one finite float a completion``; ``meta[i]`` holds ``answer`` and
            ``completion`` of the example that prompt ``i`` came from.
        overrides: ``{"run.seed": 2}`` or ``["run.seed=2"]``, as on the command line.
        resume: go on from the newest complete checkpoint of the run folder.

    Raises:
        RuntimeError: what is wrong with the configuration, the run folder, a reward or a step, and how to mend it.

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
        from isentrope import _C  # in packages that were built with the trainer

        if sys.executable:
            os.environ.setdefault("ISENTROPE_PYTHON", sys.executable)  # what the trainer starts with metrics.tensorboard
        if isinstance(overrides, Mapping):
            overrides = [f"{key}={value}" for key, value in overrides.items()]
        self._trainer = _C.Trainer(os.fspath(config), list(overrides), resume, dict(rewards or {}))
        for text in [*self._trainer.warnings, *self._trainer.notes]:
            warnings.warn(text, stacklevel=2)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Trains, and yields what is written to metrics.jsonl: a dict for each step and each evaluation.

        Ctrl-C ends the step that is running, writes a checkpoint and raises KeyboardInterrupt; ``resume=True`` goes on
        from there. A loop that is left early can be entered again.
        """
        try:
            while not self._trainer.finished:
                yield from self._trainer.advance()
        except KeyboardInterrupt:
            self._trainer.save()
            raise

    def train(self, on_metrics: Callable[[dict[str, Any]], None] | None = None) -> dict[str, dict[str, float]]:
        """Trains to the end. Returns ``results``."""
        for metrics in self:
            if on_metrics is not None:
                on_metrics(metrics)
        return self.results

    def save(self) -> str:
        """Writes a checkpoint of this moment and returns its folder."""
        return self._trainer.save()

    @property
    def finished(self) -> bool:
        return self._trainer.finished

    @property
    def dir(self) -> str:
        """The run folder."""
        return self._trainer.dir

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """By phase that has ended, the evaluation on the test data of the last phase: ``greedy``, ``sampled``, ``pass@k``, ``k``,
        ``entropy``, ``length``; or, where that is a corpus, ``loss`` and ``bits_per_byte``."""
        return self._trainer.results
