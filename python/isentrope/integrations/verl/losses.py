"""The policy losses as verl calls them: one function a name, made from grpo_select and grpo_loss."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isentrope.integrations import methods
from isentrope.ops import GRPO_STATS, grpo_loss, grpo_select

try:
    import verl
    from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
    from verl.workers import config as verl_config
except ImportError as error:
    raise ImportError(
        f"isentrope.integrations.verl: verl cannot be imported ({error}); wanted verl 0.9.1 with what it needs: pip install verl==0.9.1"
    ) from error

TESTED = "0.9.1"


class Loss(NamedTuple):
    """How a loss of verl's registry is made."""

    mode: str  # of grpo_loss
    select: str | None = None  # mode of grpo_select
    ratio: str | None = None  # field of policy_loss: the share of tokens that is selected
    dual_clip: bool = False
    aggregate: str | None = None  # of verl, whatever loss_agg_mode says
    twin: str | None = None  # the loss of verl itself that it equals


LOSSES: dict[str, Loss] = {
    "isentrope_clip": Loss("clip", dual_clip=True, twin="vanilla"),
    "isentrope_clip_cov": Loss("clip_cov", "clip_cov", "clip_cov_ratio", twin="clip_cov"),
    "isentrope_kl_cov": Loss("kl_cov", "kl_cov", "kl_cov_ratio", twin="kl_cov"),
    "isentrope_random_clip_cov": Loss("clip_cov", "random_clip_cov", "clip_cov_ratio"),
    "isentrope_random_kl_cov": Loss("kl_cov", "random_kl_cov", "kl_cov_ratio"),
    "isentrope_gspo": Loss("gspo", twin="gspo"),
    "isentrope_cispo": Loss("cispo", twin="cispo"),
    "isentrope_gpg": Loss("gpg", twin="gpg"),
    "isentrope_dppo_tv": Loss("dppo_tv", twin="dppo_tv"),
    "isentrope_dppo_kl": Loss("dppo_kl", twin="dppo_kl"),
    "isentrope_sapo": Loss("sapo", aggregate="seq-mean-token-mean", twin="sapo"),
    "isentrope_geo_mean": Loss("geo_mean", aggregate="seq-mean-token-mean"),
    "isentrope_dro": Loss("dro", twin="dro"),
    "isentrope_luspo": Loss("luspo", aggregate="seq-mean-token-sum"),
    "isentrope_vespo": Loss("vespo"),
    "isentrope_ce_gppo": Loss("ce_gppo", dual_clip=True),
    "isentrope_reinforce": Loss("reinforce"),
}
_WITHOUT_CLIP = ("gpg", "sapo", "dro", "vespo", "reinforce")

# verl's name of a statistic of grpo_loss; the others are isentrope/<name>.
_VERL_NAMES = {"clip/frac": "actor/pg_clipfrac", "clip/dual": "actor/pg_clipfrac_lower", "kl/k1": "actor/ppo_kl"}
_TOLD = ("ratio/max", "kl/k3", "clip/low", "clip/high")
_TOLD_OF_SELECTION = ("cov/mean", "cov/max", "select/frac")

# The entropies [B, T] of the micro-batch whose loss is computed, and, where its data have them, those of the policy that drew and the
# log-probabilities that the rollout told; laid out by isentrope.integrations.verl.weight.
ENTROPY: contextvars.ContextVar[Tensor | None] = contextvars.ContextVar("isentrope_entropy", default=None)
DRAWN: contextvars.ContextVar[dict[str, Tensor]] = contextvars.ContextVar("isentrope_drawn", default={})  # noqa: B039  never written into
OLD_ENTROPY, ROLLOUT = "old_entropys", "rollout_log_probs"  # what they are called in verl's data
_NO_WEIGHT = {
    "attention_entropy": "verl hands over no attention",
}


# What a weight needs of the data besides, and where it comes from.
_OF_DRAWING = {
    "entropy_ratio_band": (OLD_ENTROPY, "VERL_USE_EXTERNAL_MODULES=isentrope.integrations.verl.shaping and trainer.use_v1=False"),
    "correction": (ROLLOUT, "actor_rollout_ref.rollout.calculate_log_probs=True"),
}


@dataclasses.dataclass
class PolicyLossConfig(verl_config.PolicyLossConfig):
    """verl's, with weights of tokens for the losses of Isentrope: actor.policy_loss._target_=isentrope.integrations.verl.PolicyLossConfig."""

    isentrope_weight: list[Any] = dataclasses.field(default_factory=list)  # names, or dicts with a key kind

    def __post_init__(self) -> None:
        _weights(self)
        if self.isentrope_weight and not self.loss_mode.startswith("isentrope"):
            raise ValueError(f"policy_loss.loss_mode is {self.loss_mode!r}, which takes no isentrope_weight; wanted a loss of Isentrope, as isentrope_clip")


def _weights(config: Any) -> list[methods.Entry]:
    where, known = "policy_loss.isentrope_weight", [kind for kind in methods.WEIGHTS if kind not in _NO_WEIGHT]
    entries = methods.read(where, getattr(config, "isentrope_weight", None), known, _NO_WEIGHT)
    for number, entry in enumerate(entries):
        if entry.kind == "correction" and entry.options.get("mode") == "reject":
            raise ValueError(f"{where}[{number}]: mode is 'reject', and verl counts its own tokens; wanted 'truncate' or 'mask'")
    return entries


def register() -> None:
    """Puts LOSSES into verl's registry of policy losses, each as isentrope.<loss> too, which is how estimators are called. verl's own names
    stay what they are; a second call changes nothing."""
    for name in LOSSES:
        for spelling in (name, name.replace("_", ".", 1)):
            register_policy_loss(spelling)(functools.partial(policy_loss, name))


def policy_loss(
    name: str,
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """A policy loss as verl's actor calls it for each micro-batch, to be minimised, and its metrics.

    Loss = agg(w · L) with L the policy term of grpo_loss, w = rollout_is_weights (1 without) and agg verl's own agg_loss, so that every
    loss_agg_mode and verl's count over ranks and micro-batches (config.global_batch_info) hold. Where clip_cov and kl_cov choose tokens,
    they choose among those of this micro-batch, as verl's do; the random choice has a seed drawn from torch's default CPU generator,
    which verl seeds and saves. config.policy_loss.isentrope_weight: weights of isentrope.methods, whose product multiplies the advantages, and
    whose statistics are of this micro-batch on this rank too.

    Args:
        name: in LOSSES.
        old_log_prob, log_prob, advantages: [B, T].
        response_mask: [B, T], nonzero where the token counts. What stands elsewhere is never used.
        loss_agg_mode: of verl: token-mean, token-sum, seq-mean-token-sum, seq-mean-token-mean, seq-mean-token-sum-norm. sapo and
            geo_mean are seq-mean-token-mean whatever it says, as verl's, and luspo is seq-mean-token-sum.
        config: verl's ActorConfig: clip_ratio, clip_ratio_low, clip_ratio_high (each clip_ratio where None), clip_ratio_c, tau_pos, tau_neg,
            global_batch_info, and of policy_loss clip_cov_ratio, clip_cov_lb, clip_cov_ub, kl_cov_ratio, ppo_kl_coef, dro_beta. What verl has
            no field for (vespo's and ce_gppo's coefficients, delta of reinforce) is grpo_loss's default.
        rollout_is_weights: [B, T] or [B, 1], verl's correction of the rollout, or None.

    Returns:
        (loss [], metrics): actor/pg_clipfrac is the share of tokens that the clip takes out of the gradient for every loss (verl's clip_cov
        tells its own selection under that name, which is isentrope/select/frac here); actor/ppo_kl the mean of old_log_prob - log_prob.

    Raises:
        ValueError: config is missing, a field of it is out of range, or there are weights and no entropies; the message names the field.
    """
    if config is None:
        raise ValueError(f"{name}: config is None; wanted verl's ActorConfig")
    _warn_of_untested_version()
    loss = LOSSES[name]
    bounds = _bounds(name, config, loss)
    dtype = torch.promote_types(log_prob.dtype, old_log_prob.dtype)
    inputs = (log_prob.to(dtype), old_log_prob.to(dtype), advantages.to(dtype), response_mask)
    selected = None
    if loss.select is not None and loss.ratio is not None:
        selected = grpo_select(*inputs, mode=loss.select, seed=_seed(loss.select), **bounds, **_band(name, config, loss))
    factor = _factor(name, config, *inputs)
    output = grpo_loss(
        *(inputs if factor is None else (*inputs[:2], inputs[2] * factor, response_mask)),
        selected=selected,
        mode=loss.mode,
        dual_clip=_dual_clip(name, config) if loss.dual_clip else None,
        aggregate="token-sum",  # nobody reads it: agg_loss has the token losses
        **bounds,
        **_coefficients(name, config, loss),
    )
    token_loss = output.token_loss
    if rollout_is_weights is not None:
        token_loss = (token_loss * rollout_is_weights).where(response_mask != 0, 0)
    total = agg_loss(loss_mat=token_loss, loss_mask=response_mask, loss_agg_mode=loss.aggregate or loss_agg_mode, **config.global_batch_info)

    stats = dict(zip(GRPO_STATS, output.stats.tolist(), strict=True))
    told = _TOLD + (_TOLD_OF_SELECTION if selected is not None else ())
    metrics = {metric: stats[key] for key, metric in _VERL_NAMES.items()} | {f"isentrope/{key}": stats[key] for key in told}
    if factor is not None:
        metrics |= {f"isentrope/{key}": value for key, value in methods.factor_stats(factor, response_mask).items()}
    return total, metrics


def _factor(name: str, config: Any, log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor | None:
    """[B, T], of weights; every policy term is proportional to the advantage where its sign stays."""
    entries = _weights(config.policy_loss)
    if not entries:
        return None
    entropy = ENTROPY.get()
    if entropy is None:
        raise ValueError(
            f"{name}: policy_loss.isentrope_weight has {entries[0].kind}, and verl hands over no entropies; wanted "
            "actor_rollout_ref.model.external_lib=isentrope.integrations.verl.weight and actor_rollout_ref.actor.calculate_entropy=True"
        )
    seen = {"mask": response_mask, "logprob": log_prob.detach(), "old_logprob": old_log_prob, "entropy": entropy.to(log_prob.dtype), "advantage": advantages}
    drawn = DRAWN.get()
    for entry in entries:
        what, advice = _OF_DRAWING.get(entry.kind, ("", ""))
        if what and what not in drawn:
            raise ValueError(f"{name}: policy_loss.isentrope_weight has {entry.kind}, and the data have no {what}; wanted {advice}")
    if OLD_ENTROPY in drawn:
        seen["old_entropy"] = drawn[OLD_ENTROPY].to(log_prob.dtype)
    if ROLLOUT in drawn:
        seen["sampling_logprob"] = drawn[ROLLOUT].to(log_prob.dtype)
    return methods.factor(entries, **seen)


@functools.cache
def _warn_of_untested_version() -> None:
    if verl.__version__ != TESTED:
        warnings.warn(
            f"isentrope.integrations.verl: verl is {verl.__version__}, which its losses are not tested with; wanted {TESTED}",
            stacklevel=3,
        )


def _or_default(value: Any, default: float) -> float:
    return default if value is None else float(value)


def _field(name: str, field: str, value: float, right: bool, wanted: str) -> float:
    if not right:  # NaN is not right either
        raise ValueError(f"{name}: actor.{field} is {value:g}; wanted {wanted}")
    return value


def _bounds(name: str, config: Any, loss: Loss) -> dict[str, float]:
    if loss.mode in _WITHOUT_CLIP:
        return {}
    bounds = {}
    for key in ("clip_ratio_low", "clip_ratio_high"):
        value = _or_default(getattr(config, key), config.clip_ratio)
        bounds[key.replace("_ratio", "")] = _field(name, key, value, value >= 0, "0 or more")
    return bounds


def _band(name: str, config: Any, loss: Loss) -> dict[str, float]:
    fields = config.policy_loss
    ratio = _or_default(getattr(fields, loss.ratio), 2e-4)
    band = {"cov_ratio": _field(name, f"policy_loss.{loss.ratio}", ratio, 0 < ratio <= 1, "above 0 and at most 1")}
    if loss.mode == "clip_cov":
        lower, upper = _or_default(fields.clip_cov_lb, 1.0), _or_default(fields.clip_cov_ub, 5.0)
        _field(name, "policy_loss.clip_cov_lb", lower, lower < upper, f"less than clip_cov_ub, which is {upper:g}")
        band |= {"cov_lower": lower, "cov_upper": upper}
    return band


def _coefficients(name: str, config: Any, loss: Loss) -> dict[str, float]:
    """What a mode has beside its clip."""
    if loss.mode == "kl_cov":
        return {"kl_cov_coef": _or_default(config.policy_loss.ppo_kl_coef, 1.0)}
    if loss.mode in ("dppo_tv", "dppo_kl"):
        return {"delta": _dual_clip(name, config)}
    if loss.mode == "sapo":
        return {key: _field(name, key, float(getattr(config, key)), getattr(config, key) > 0, "above 0") for key in ("tau_pos", "tau_neg")}
    if loss.mode == "dro":
        beta = _or_default(config.policy_loss.dro_beta, math.nan)
        return {"dro_beta": _field(name, "policy_loss.dro_beta", beta, beta > 0, "above 0: verl has no default for it")}
    return {}


def _dual_clip(name: str, config: Any) -> float:
    value = float(config.get("clip_ratio_c", 3.0))
    return _field(name, "clip_ratio_c", value, value > 1, "above 1")


def _seed(select: str) -> int:
    """A new one for each choice that is random; kl_cov is not."""
    return 0 if select == "kl_cov" else int(torch.randint(2**63 - 1, ()).item())
