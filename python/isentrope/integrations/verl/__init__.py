"""Isentrope's policy losses and estimators of advantages in verl (tested with 0.9.1).

verl finds this module by itself (entry point of the group verl.plugins), in the driver and in every worker. One line of its configuration
chooses a loss, with the fields that verl has for it, and one an estimator, with options under a key of its own:

    actor_rollout_ref.actor.policy_loss.loss_mode=isentrope_clip_cov
    algorithm.adv_estimator=isentrope.pass_at_k +algorithm.isentrope.k=4

One more makes verl take its entropies, and the log-probabilities of use_fused_kernels, from Isentrope's ops:

    actor_rollout_ref.model.external_lib=isentrope.integrations.verl.entropy

isentrope.integrations.verl.weight, the same way, lets the losses weigh tokens by the methods of isentrope.methods.

Where plugins are switched off (VERL_USE_EXTERNAL_PLUGINS=none), external_lib=isentrope.integrations.verl registers the losses.
"""

from isentrope.integrations.verl import losses
from isentrope.integrations.verl.losses import LOSSES, TESTED, PolicyLossConfig

from isentrope.integrations.verl import advantages  # isort: skip  after losses, which says what is missing where verl is
from isentrope.integrations.verl.advantages import ESTIMATORS  # isort: skip

__all__ = ["ESTIMATORS", "LOSSES", "TESTED", "PolicyLossConfig", "register"]


def register() -> None:
    """Puts LOSSES and ESTIMATORS into verl's registries. A second call changes nothing."""
    losses.register()
    advantages.register()


register()
