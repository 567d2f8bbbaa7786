"""Isentrope's policy losses in verl (tested with 0.9.1).

verl finds this module by itself (entry point of the group verl.plugins), in the driver and in every worker. One line of its configuration
chooses a loss, with the fields that verl has for it:

    actor_rollout_ref.actor.policy_loss.loss_mode=isentrope_clip_cov

One more makes verl take its entropies, and the log-probabilities of use_fused_kernels, from Isentrope's ops:

    actor_rollout_ref.model.external_lib=isentrope.integrations.verl.entropy

Where plugins are switched off (VERL_USE_EXTERNAL_PLUGINS=none), external_lib=isentrope.integrations.verl registers the losses.
"""

from isentrope.integrations.verl.losses import LOSSES, TESTED, register

__all__ = ["LOSSES", "TESTED", "register"]

register()
