"""Importing this module puts Isentrope's gdpo, remax and optimal_token_baseline in the place of verl's of these names:

    VERL_USE_EXTERNAL_MODULES=isentrope.integrations.verl.own_names python3 -m verl.trainer.main_ppo algorithm.adv_estimator=gdpo …

verl (0.9.1) hands the rewards by name, the greedy completions' rewards and Σ p² to an estimator of its own name alone, so that
isentrope.gdpo and the others are without them.
"""

from __future__ import annotations

import functools
from typing import Any

from verl.trainer.ppo import core_algos

from isentrope.integrations.verl.advantages import OF_ITS_NAME, estimate

__all__ = ["install", "uninstall"]

_theirs: dict[str, Any] = {}


def install() -> None:
    """Puts the three in verl's places. A second call changes nothing.

    Raises:
        ImportError: verl has no such name (an untested version of it).
    """
    for name in OF_ITS_NAME:
        if name not in core_algos.ADV_ESTIMATOR_REGISTRY:
            raise ImportError(f"isentrope.integrations.verl.own_names: verl has no estimator {name!r}; wanted verl 0.9.1")
    for name in OF_ITS_NAME:
        if name not in _theirs:
            _theirs[name] = core_algos.ADV_ESTIMATOR_REGISTRY[name]
            core_algos.ADV_ESTIMATOR_REGISTRY[name] = functools.partial(estimate, name)


def uninstall() -> None:
    """Gives verl its own back."""
    core_algos.ADV_ESTIMATOR_REGISTRY.update(_theirs)
    _theirs.clear()


install()
