"""The estimators of advantages as verl calls them: one function a name, made from isentrope.methods."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from verl.trainer.ppo import core_algos

from isentrope.integrations import methods
from isentrope.integrations.verl.losses import OLD_ENTROPY

__all__ = ["BATCH", "ESTIMATORS", "estimate", "register"]

ESTIMATORS: dict[str, str] = {f"isentrope.{kind}": kind for kind in methods.ADVANTAGES}
OPTIONS = "isentrope"  # key of verl's algorithm

# What verl hands to an estimator of one name of its own alone, and what that name needs besides.
OF_ITS_NAME = {
    "gdpo": "algorithm.gdpo_reward_keys",
    "remax": "its trainer of before version 1 (trainer.use_v1=False), which draws the greedy completion",
    "optimal_token_baseline": "actor_rollout_ref.actor.calculate_sum_pi_squared=True",
}

# The driver's batch while it computes advantages, laid out by isentrope.integrations.verl.shaping.
BATCH: contextvars.ContextVar[Any] = contextvars.ContextVar("isentrope_batch", default=None)


def register() -> None:
    """Puts ESTIMATORS into verl's registry of advantage estimators. verl's own names stay what they are; a second call changes nothing."""
    for name, kind in ESTIMATORS.items():
        if name not in core_algos.ADV_ESTIMATOR_REGISTRY:
            core_algos.register_adv_est(name)(functools.partial(estimate, kind))


def estimate(
    kind: str,
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Sequence[Any] | None = None,
    config: Any = None,
    reward_baselines: Tensor | None = None,
    non_tensor_batch: Mapping[str, Any] | None = None,
    batch: Mapping[str, Tensor] | None = None,
    old_log_probs: Tensor | None = None,
    sum_pi_squared: Tensor | None = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages of a step as verl's driver calls for them, over all of its completions.

    A completion's reward is the sum of its token_level_rewards (with algorithm.use_kl_in_reward less the divergences in them), its
    length the number of tokens that response_mask counts, its group those of the same index.

    Args:
        kind: in isentrope.integrations.methods.ADVANTAGES.
        token_level_rewards: [B, T].
        response_mask: [B, T], nonzero where the token counts.
        index: [B] uid of the prompts, in any order.
        config: verl's algorithm; its key isentrope has the options of the method, gdpo_reward_keys and gdpo_reward_weights the rewards of gdpo.
        reward_baselines: [B] rewards of the greedy completions, for remax.
        non_tensor_batch, batch: verl's, for gdpo.
        old_log_probs, sum_pi_squared: [B, T], for optimal_token_baseline. gtpo has its entropies from isentrope.integrations.verl.shaping, and
            calls a completion right whose reward is at least 0.5.
        rollout_is_weights: None; the baseline takes none.

    Returns:
        (advantages, returns), [B, T] of token_level_rewards' dtype, 0 where response_mask is: as verl's own, returns are the advantages where
        a completion has one.

    Raises:
        ValueError: verl hands over something that the method needs not, or config asks for what it does not do; the message names it.
    """
    name = f"isentrope.{kind}"
    entry = _entry(name, kind, config)
    mask = response_mask != 0
    reward = token_level_rewards.where(mask, 0).sum(-1, dtype=torch.float64)
    given: dict[str, Tensor | None] = {"reward": reward, "length": mask.sum(-1), "mask": mask}
    if kind == "gdpo":
        given["scores"], entry = _scores(name, entry, config, non_tensor_batch, reward.device)
    if kind == "gtpo":
        given["entropy"], given["right"] = _entropy(name).double(), reward >= 0.5
    if kind == "remax":
        given["greedy"] = _handed("reward_baselines", reward_baselines, kind)
    if kind == "optimal_token_baseline":
        given["logprob"], given["sum_p2"] = (
            _handed(what, x, kind).double() for what, x in (("old_log_probs", old_log_probs), ("sum_pi_squared", sum_pi_squared))
        )
        if rollout_is_weights is not None:
            raise ValueError(f"{name}: rollout_is_weights are given, which its baseline does not take; wanted algorithm.rollout_correction.rollout_is=null")
    if index is None:
        if "group" in methods.subject(kind):
            raise ValueError(f"{name}: verl hands over no index; wanted a uid of the prompt in the batch")
        index = range(len(mask))
    made = methods.advantage(entry, index, **given)
    whole = (made if made.dim() == 2 else made[:, None]).to(token_level_rewards.dtype).where(mask, 0)
    returns = reward[:, None].to(whole.dtype).where(mask, 0) if kind in ("remax", "optimal_token_baseline") else whole
    return whole, returns


def _entry(name: str, kind: str, config: Any) -> methods.Entry:
    options = None if config is None else config.get(OPTIONS, None)
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"{name}: algorithm.{OPTIONS} is {options!r}; wanted its options by name, as +algorithm.{OPTIONS}.std=batch")
    (entry,) = methods.read(f"algorithm.{OPTIONS}", [{**(options or {}), "kind": kind}], methods.ADVANTAGES, {})
    if config is not None and kind in ("grpo", "gdpo") and config.get("norm_adv_by_std_in_grpo", True) is False:
        raise ValueError(f"{name}: algorithm.norm_adv_by_std_in_grpo is False, and it divides by the std; wanted True, or isentrope.dr_grpo")
    if config is not None and kind == "reinforce_plus_plus" and config.get("gamma", 1.0) != 1:
        raise ValueError(f"{name}: algorithm.gamma is {config.get('gamma'):g}; wanted 1, since a completion has one return")
    return entry


def _entropy(name: str) -> Tensor:
    batch = BATCH.get()
    if batch is None or OLD_ENTROPY not in batch:
        raise ValueError(
            f"{name}: verl hands over no entropies of the policy that drew; wanted VERL_USE_EXTERNAL_MODULES=isentrope.integrations.verl.shaping in the "
            "environment, trainer.use_v1=False, and log-probabilities that the actor computes (rollout_correction.bypass_mode=False)"
        )
    entropy: Tensor = batch[OLD_ENTROPY]
    return entropy


def _handed(what: str, given: Any, kind: str) -> Any:
    if given is None:
        raise ValueError(
            f"isentrope.{kind}: verl hands over no {what}, which it does to its own name {kind!r} alone; wanted algorithm.adv_estimator={kind} with "
            f"VERL_USE_EXTERNAL_MODULES=isentrope.integrations.verl.own_names in the environment, and {OF_ITS_NAME[kind]}"
        )
    return given


def _scores(name: str, entry: methods.Entry, config: Any, extra: Mapping[str, Any] | None, device: torch.device) -> tuple[Tensor, methods.Entry]:
    """scores [R, B] of the rewards that gdpo_reward_keys names, and the entry with verl's weights of them. A None is a reward that does not apply."""
    rewards: Mapping[str, Any] = _handed("rewards by name (non_tensor_batch)", extra, "gdpo")
    keys = None if config is None else config.get("gdpo_reward_keys", None)
    if not keys:
        raise ValueError(f"{name}: algorithm.gdpo_reward_keys is {keys}; wanted the names of the rewards, which compute_score returns")
    for key in keys:
        if key not in rewards:
            raise ValueError(f"{name}: compute_score returns no {key!r}, which algorithm.gdpo_reward_keys names; wanted one of {', '.join(rewards)}")
    scores = torch.tensor(numpy.stack([numpy.asarray(rewards[key], dtype=numpy.float64) for key in keys]), device=device)
    weights = config.get("gdpo_reward_weights", None)
    # verl's normalises over tokens; what algorithm.isentrope says comes first.
    options = {"over": "tokens", **({} if weights is None else {"weights": [float(x) for x in weights]}), **entry.options}
    return scores, entry._replace(options=options)
