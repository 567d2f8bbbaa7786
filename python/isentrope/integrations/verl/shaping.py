"""Importing this module in verl's driver lets methods change advantages token by token, and keeps the entropies of the policy that drew, which
verl (0.9.1) makes and drops:

    VERL_USE_EXTERNAL_MODULES=isentrope.integrations.verl.shaping python3 -m verl.trainer.main_ppo trainer.use_v1=False \\
        '+algorithm.isentrope_shaping=[{kind: entropy_advantage, alpha: 0.4}]' …

algorithm.isentrope_shaping is a list of methods behind the estimator, whichever that is, in their order. adv_estimator=isentrope.gtpo and the
weight entropy_ratio_band need the entropies, and so this module too. verl's trainer of version 1 hands no entropies to advantages.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from verl.trainer.ppo.ray_trainer import RayPPOTrainer

from isentrope.integrations import methods
from isentrope.integrations.shaping import Shaping
from isentrope.integrations.verl import advantages, losses

__all__ = ["KEY", "OLD_ENTROPY", "compute_advantage", "install", "uninstall"]

KEY = "isentrope_shaping"  # of verl's algorithm
OLD_ENTROPY = losses.OLD_ENTROPY
_REFUSED = {
    "empg": "verl's driver has no tokenizer where advantages are made; isentrope.methods.empg takes the step of each token",
    "hicra": "verl's driver has no tokenizer where advantages are made; isentrope.methods.hicra takes the tokens that plan",
    "gepo": "its bounds would not be in verl's checkpoints; isentrope.methods.gepo takes and gives them",
    "ceeh": "its record of prompts would not be in verl's checkpoints; isentrope.methods.ceeh takes and gives it",
    "turn_credit": "verl's rewards are of whole completions; isentrope.methods.turn_credit takes those of turns",
}
# Where verl's drivers look it up. The trainer of version 1 is the last.
_PLACES = ("verl.trainer.ppo.ray_trainer", "verl.experimental.separation.ray_trainer", "verl.trainer.ppo.v1.utils")
_own: dict[str, Any] = {}


def compute_advantage(theirs: Any, version_1: bool, data: Any, adv_estimator: Any, *args: Any, **kwargs: Any) -> Any:
    """verl's compute_advantage, and what algorithm.isentrope_shaping makes of its advantages.

    Raises:
        ValueError: the list has a method that is not known or cannot be had, or one that looks at entropies which are not there.
    """
    config = kwargs.get("config")
    given = None if config is None else config.get(KEY, None)
    where = f"algorithm.{KEY}"
    entries = methods.read(where, given, [kind for kind in methods.SHAPING if kind not in _REFUSED], _REFUSED)
    if entries and version_1:
        raise ValueError(f"{where}: has {entries[0].kind}, and verl's trainer of version 1 makes one advantage a completion; wanted trainer.use_v1=False")
    held = advantages.BATCH.set(data.batch)
    try:
        made = theirs(data, adv_estimator, *args, **kwargs)
    finally:
        advantages.BATCH.reset(held)
    if entries:
        shaping, batch = Shaping(where, entries), made.batch
        names = {"logprob": "old_log_probs", "entropy": OLD_ENTROPY}
        for name in sorted(shaping.needs):
            if names[name] not in batch:
                raise ValueError(f"{where}: {entries[0].kind} looks at {name}, and the batch has no {names[name]}; wanted rollout_correction.bypass_mode=False")
        seen = {name: batch[names[name]] for name in shaping.needs}
        batch["advantages"] = shaping.apply(made.non_tensor_batch["uid"], advantage=batch["advantages"], mask=batch["response_mask"], **seen)
    return made


def _compute_old_log_prob(self: Any, *args: Any, **kwargs: Any) -> Any:
    """verl's, whose entropies stay in the batch under a name that its trainer does not drop."""
    made, *others = _own["_compute_old_log_prob"](self, *args, **kwargs)
    made.batch[OLD_ENTROPY] = made.batch["entropys"]
    return (made, *others)


def install() -> None:
    """Puts both in verl's places. A second call changes nothing.

    Raises:
        ImportError: verl has no such name (an untested version of it).
    """
    if _own:
        return
    modules = {}
    for name in _PLACES:
        try:
            modules[name] = importlib.import_module(name)
        except ImportError:  # the others need packages that verl does not ask for, and without them no trainer of theirs runs
            if name == _PLACES[0]:
                raise
    for name, module in [*modules.items(), ("RayPPOTrainer", RayPPOTrainer)]:
        what = "_compute_old_log_prob" if module is RayPPOTrainer else "compute_advantage"
        if not hasattr(module, what):
            raise ImportError(f"isentrope.integrations.verl.shaping: verl is {losses.verl.__version__} and has no {name}.{what}; wanted {losses.TESTED}")
    for name, module in modules.items():
        _own[name] = module.compute_advantage  # type: ignore[attr-defined]
        module.compute_advantage = functools.partial(compute_advantage, _own[name], name == _PLACES[-1])  # type: ignore[attr-defined]
    _own["_compute_old_log_prob"] = RayPPOTrainer._compute_old_log_prob
    RayPPOTrainer._compute_old_log_prob = _compute_old_log_prob


def uninstall() -> None:
    """Gives verl its own back."""
    for name in _PLACES:
        if name in _own:
            importlib.import_module(name).compute_advantage = _own[name]  # type: ignore[attr-defined]
    if _own:
        RayPPOTrainer._compute_old_log_prob = _own["_compute_old_log_prob"]
    _own.clear()


install()
