"""Importing this module lets weights of isentrope.methods stand in verl's policy losses of Isentrope: what
actor_rollout_ref.model.external_lib is for.

    actor_rollout_ref.model.external_lib=isentrope.integrations.verl.weight
    actor_rollout_ref.actor.calculate_entropy=True
    actor_rollout_ref.actor.policy_loss._target_=isentrope.integrations.verl.PolicyLossConfig
    '+actor_rollout_ref.actor.policy_loss.isentrope_weight=[{kind: top_entropy, fraction: 0.2}]'

verl (0.9.1) hands entropies to no policy loss, and no log-probabilities of the rollout. install() puts a function around its ppo_loss, which lays those of the micro-batch out
for the policy loss that it calls; the rest of ppo_loss is verl's.
"""

from __future__ import annotations

import importlib
from typing import Any

from isentrope.integrations.verl import losses

from verl.workers.utils import losses as theirs  # isort: skip
from verl.workers.utils.padding import no_padding_2_padding  # isort: skip

__all__ = ["install", "ppo_loss", "uninstall"]

# Where verl's workers look it up: when an engine is made, after external_lib has been imported, and at each call.
_PLACES = ("verl.workers.engine_workers", "verl.trainer.distillation.losses")
_own: dict[str, Any] = {}


def ppo_loss(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> Any:
    """verl's ppo_loss, with the entropies of the micro-batch [B, T] where a policy loss of Isentrope finds them, and what its data tell of the
    policy that drew."""
    entropy = model_output.get("entropy", None)
    names = [name for name in (losses.OLD_ENTROPY, losses.ROLLOUT) if name in data]
    drawn = data.select(*names).to_padded_tensor()
    laid = losses.ENTROPY.set(None if entropy is None else no_padding_2_padding(entropy, data).detach())
    drew = losses.DRAWN.set({name: drawn[name] for name in names})
    try:
        return theirs.ppo_loss(config, model_output, data, dp_group)
    finally:
        losses.ENTROPY.reset(laid)
        losses.DRAWN.reset(drew)


def install() -> None:
    """Puts it in verl's places. A second call changes nothing.

    Raises:
        ImportError: verl has no such name (an untested version of it).
    """
    modules = {name: importlib.import_module(name) for name in _PLACES}
    for name, module in modules.items():
        if not hasattr(module, "ppo_loss"):
            raise ImportError(f"isentrope.integrations.verl.weight: verl is {losses.verl.__version__} and has no {name}.ppo_loss; wanted {losses.TESTED}")
    for name, module in modules.items():
        _own.setdefault(name, module.ppo_loss)  # type: ignore[attr-defined]
        module.ppo_loss = ppo_loss  # type: ignore[attr-defined]


def uninstall() -> None:
    """Gives verl its own back, for engines that are made afterwards."""
    for name, own in _own.items():
        importlib.import_module(name).ppo_loss = own  # type: ignore[attr-defined]
    _own.clear()


install()
