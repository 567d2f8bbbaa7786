"""GRPOTrainer: TRL's, with its loss made by grpo_select and grpo_loss."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import trl
from torch import Tensor
from trl.trainer.utils import nanmax, nanmin

from isentrope.integrations.trl.config import AGGREGATES, LOSSES, GRPOConfig, Loss
from isentrope.integrations.trl.head import add_head
from isentrope.integrations.trl.method_trainer import MethodTrainer
from isentrope.integrations.trl.methods import Methods
from isentrope.ops import GRPO_STATS, grpo_combine_stats, grpo_loss, grpo_select

TESTED = "1.16.0"
_OPTIONS = {field.name: field.default for field in dataclasses.fields(GRPOConfig) if field.name not in trl.GRPOConfig.__dataclass_fields__}
_TWO_SIDED = ("clip", "clip_higher", "gspo", "luspo", "ce_gppo")  # whose ratio delta bounds
_TRUNCATED = ("reinforce", "dppo_tv", "dppo_kl")  # whose weight it bounds
_COEFFICIENTS = {"kl_cov": ("kl_cov_coef",), "ce_gppo": ("gppo_beta1", "gppo_beta2"), "dro": ("dro_beta",)}
_CLIPS = ("clip", "clip_higher", "clip_cov", "gspo", "luspo", "ce_gppo", "geo_mean")
_TOLD = ("ratio/mean", "ratio/max", "entropy/std", "kl/k3", "clip/frac")
_TOLD_OF_SELECTION = ("cov/mean", "cov/max", "select/frac")

_SIGNATURE = inspect.signature(trl.GRPOTrainer.__init__)
_SIGNATURE = _SIGNATURE.replace(parameters=[*_SIGNATURE.parameters.values(), inspect.Parameter("methods", inspect.Parameter.KEYWORD_ONLY, default=())])


class Rule(NamedTuple):
    """The arguments of grpo_loss that do not change during training."""

    loss: Loss
    aggregate: str
    clip_low: float
    clip_high: float
    delta: float | None


class GRPOTrainer(MethodTrainer):
    """trl.GRPOTrainer with Isentrope's ops; the same arguments, with isentrope.integrations.trl.GRPOConfig or trl.GRPOConfig as args.

    - Log-probabilities and entropies, of the policy and of the reference, are linear_token_entropy's: no logits of [N, V] exist, also on
      the CPU. Models whose head is no plain linear layer keep TRL's fused head; `trainer.head_refusal` says why.
    - The loss of a micro-batch is grpo_loss's with the policy term `args.loss` and the mean of `args.loss_type`:

          =========== =================================================================================
          loss_type   mean of token losses; K accumulation steps, P processes
          =========== =================================================================================
          grpo        Σ over sequences of their means / (sequences · K)
          bnpo        Σ / (tokens of the micro-batch · K)
          dr_grpo     Σ / (sequences · max_completion_length · K)
          dapo        Σ / (tokens of the generation batch over all processes / P · K / steps_per_generation)
          luspo       Σ / (sequences · K)
          =========== =================================================================================

      Loss and gradient are TRL's own where it has the loss: loss None, or "clip", and "gspo" for importance_sampling_level "sequence";
      "sapo" with loss_type "grpo" and "vespo" with "dapo" (and args' sapo_temperature_… and vespo_…); "geo_mean" with "grpo" (its GMPOTrainer).
      Reference divergence (beta, use_bias_correction_kl), delta, epsilon, off_policy_mask_threshold, top_entropy_quantile, vLLM's
      importance weights, tool masks, entropy_coef and its adaptive control mean what they mean in TRL.
    - clip_cov and kl_cov choose among the tokens of a micro-batch on one process. Completions with one advantage for all of its tokens
      have covariance 0 throughout in a micro-batch of a single sequence: it has to have several. The random choice depends on args.seed,
      the step, the accumulation step and the process alone.
    - methods: names, or dicts with a key kind, of isentrope.methods, for three places (docs/integrations.md has which).
      An estimator of advantages stands in the place of TRL's: scale_rewards and multi_objective_aggregation have no say then. Weights of tokens
      multiply the policy term of a token; their statistics are of the whole optimiser step over all processes, for which top_entropy, steer and
      stare take a forward pass more where it accumulates gradients. A controller, adaptive or entropic, follows the entropy of the
      optimiser steps, as objective.entropy of the trainer does: a bonus is part of the token losses that loss_type averages.
    - What is TRL's alone (loss_type sapo and vespo, and the sequence level together with beta, top_entropy_quantile, delta or vLLM) is computed by TRL.

    It logs beside TRL's metrics isentrope/ratio/mean, ratio/max, entropy/std, kl/k3 (of the sampling policy), clip/frac and, for a loss
    that selects, cov/mean, cov/max and select/frac, each over all processes.
    """

    _tag_names = [*trl.GRPOTrainer._tag_names, "isentrope"]

    def __init__(self, *args: Any, methods: Sequence[str | Mapping[str, Any]] = (), **kwargs: Any) -> None:
        self._methods = Methods(methods)
        if trl.__version__ != TESTED:
            warnings.warn(f"isentrope.integrations.trl: trl is {trl.__version__}, which it is not tested with; wanted {TESTED}", stacklevel=2)
        super().__init__(*args, **kwargs)
        self._options = {name: getattr(self.args, name, default) for name, default in _OPTIONS.items()}
        self._rule = self._choose_rule()
        self._check_methods()
        self.head_refusal: str | None = "fused_head is False"
        if self._options["fused_head"]:
            self._add_heads()

    __init__.__signature__ = _SIGNATURE  # type: ignore[attr-defined]

    def _add_heads(self) -> None:
        for model in (self.model, self.ref_model):
            if model is not None:
                model = self.accelerator.unwrap_model(model)
                base = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
                self.head_refusal = add_head(base, self.temperature, self.args.cast_lm_head_to_fp32)
        if self.head_refusal is not None:
            warnings.warn(f"isentrope.integrations.trl: the model keeps TRL's fused head, since {self.head_refusal}", stacklevel=3)

    def _choose_rule(self) -> Rule | None:
        """None: the loss is computed by TRL."""
        args, name = self.args, self._options["loss"]
        sequence = args.importance_sampling_level == "sequence"
        low, high = self.epsilon_low, self.epsilon_high
        if name is None:
            if sequence and ((self.beta and args.use_bias_correction_kl) or self.top_entropy_quantile < 1 or self.use_vllm):
                return None  # whose products of sequences' ratios with tokens' weights are no function of grpo_loss
            if self.loss_type == "cispo" and not sequence:
                if high < 1:
                    warnings.warn(
                        f"GRPOTrainer: epsilon_high is {high:g}; TRL's loss_type 'cispo' bounds the ratio itself by it, so that nearly every weight is "
                        f"{high:g}; wanted 1 or more (5.0 in its documentation), or loss='cispo', which bounds it by 1 + epsilon_high",
                        stacklevel=4,
                    )
                    return None
                return Rule(LOSSES["cispo"], "token-mean", 1.0, high - 1, None)
            if self.loss_type not in AGGREGATES:
                return None
            name = "gspo" if sequence else "clip"
        if name == "clip_higher" and args.epsilon_high is None:
            high = 0.28
        if args.delta is not None:
            if self._options["loss"] is None and args.delta <= 1 + high:
                return None  # inside the clip
            if name not in _TWO_SIDED + _TRUNCATED:
                having = ", ".join(_TWO_SIDED + _TRUNCATED)
                raise ValueError(f"GRPOTrainer: delta is {args.delta:g} and loss {name!r}; wanted loss to be one of {having}, or delta to be None")
            if name in _TWO_SIDED and args.delta <= 1 + high:
                raise ValueError(f"GRPOTrainer: delta is {args.delta:g}; wanted above 1 + epsilon_high, which is {1 + high:g}")
        self._check_weights(name)
        return Rule(LOSSES[name], AGGREGATES[self.loss_type], low, high, args.delta)

    def _check_weights(self, name: str) -> None:
        """dro is not linear in the advantage, through which weights of tokens go; the weights of vLLM belong into the ratio of vespo."""
        weights = {"top_entropy_quantile": self.top_entropy_quantile < 1, "off_policy_mask_threshold": self.off_policy_mask_threshold is not None}
        correction = {"vllm_importance_sampling_correction": self.use_vllm and self.vllm_importance_sampling_correction}
        for field, given in {"dro": {**weights, **correction}, "vespo": correction}.get(name, {}).items():
            if given:
                raise ValueError(f"GRPOTrainer: {field} is given with loss {name!r}, which is not a token's weight times its loss; leave it out")

    def _check_methods(self) -> None:
        args, inside = self.args, self._methods.in_the_loss
        if self._methods.advantage is not None:  # what the sizes of groups and the number of rewards forbid
            for size in {self.num_generations, self.num_generations if args.eval_strategy == "no" else self.num_generations_eval}:
                rewards, one = torch.zeros(size, len(self.reward_weights)), torch.ones(size, 1)
                self._methods.advantages(rewards, self.reward_weights, size, torch.ones(size, dtype=torch.int64), mask=one, entropy=one)
        if inside and self._rule is None:
            raise ValueError(f"GRPOTrainer: methods has {inside[0]}, and TRL computes the loss of these arguments itself; wanted a loss of Isentrope, as loss='clip'")
        if self._methods.controller and self._entropy_bonus_enabled:
            raise ValueError(
                f"GRPOTrainer: methods has {self._methods.controller.entry.kind}, and entropy_coef or use_adaptive_entropy is given too; wanted one of them"
            )
        if self._methods.over_the_update and args.steps_per_generation % args.gradient_accumulation_steps:
            raise ValueError(
                f"GRPOTrainer: steps_per_generation is {args.steps_per_generation} and gradient_accumulation_steps {args.gradient_accumulation_steps}; "
                f"wanted a multiple of it with {inside[0]}, whose statistics are of a whole optimiser step"
            )

    def _coefficients(self, mode: str) -> dict[str, float]:
        """What a mode has beside its clip; of TRL's own fields where it has them."""
        args, options = self.args, self._options
        if mode == "sapo":
            return {"tau_pos": args.sapo_temperature_pos, "tau_neg": args.sapo_temperature_neg}
        if mode == "vespo":
            return {name: getattr(args, name) for name in ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")}
        return {name: options[name] for name in _COEFFICIENTS.get(mode, ())}

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self._rule is None:
            loss: Tensor = super()._compute_loss(model, inputs)
            return loss
        rule, args = self._rule, self.args
        mode = "train" if self.model.training else "eval"
        steps = self.current_gradient_accumulation_steps if mode == "train" else 1
        mask = inputs["completion_mask"]  # [B, T]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]

        logprob, entropy, aux_loss = self._look(model, inputs, aux_loss=self.aux_loss_enabled)
        now, known = logprob.detach(), entropy.detach()
        old = inputs.get("old_per_token_logps")
        old = now if old is None else old.to(now.dtype)
        advantage = inputs["advantages"].to(now.dtype)
        advantage = (advantage[:, None] if advantage.dim() == 1 else advantage).expand_as(now)

        kept = self.get_high_entropy_mask(known, mask, 1 - self.top_entropy_quantile) if self.top_entropy_quantile < 1 else None
        factor = self._factor(inputs, advantage, now, old, mask, kept)
        ratio = (now - old).exp()
        reference = inputs["ref_per_token_logps"].to(now.dtype) if self.beta != 0.0 else None
        selected = self._select(now, old, advantage, mask, factor)

        # Every policy term is linear in the advantage, for factors of 0 or more: TRL multiplies the token loss by them. The penalties of
        # kl_cov and dro stay as they are under weights of methods, as in the trainer.
        learnt = self._methods.controlled(advantage if factor is None else advantage * factor)
        if self._methods.weights:
            learnt = learnt * self._weigh(model, inputs, now, known, mode, steps).to(learnt.dtype)
        bonus = 0.0 if self._methods.controller is None else self._methods.controller.coefficient
        output = grpo_loss(
            logprob,
            old,
            learnt,
            mask,
            selected=selected,
            ref_logprob=reference,
            entropy=entropy if bonus else known,
            entropy_coef=bonus,
            mode=rule.loss.mode,
            aggregate=rule.aggregate,
            clip_low=rule.clip_low,
            clip_high=rule.clip_high,
            delta=rule.delta,
            **self._coefficients(rule.loss.mode),
            ref_kl="k3_is" if args.use_bias_correction_kl else "k3",
            ref_kl_coef=self.beta,
            normalizer=self._normalizer(inputs, mask, mode, steps),
        )
        loss = output.loss
        policy_loss = loss.detach() if self.loss_type in ("dapo", "cispo") else loss.detach() * steps
        if self._entropy_bonus_enabled:
            loss = loss - self._entropy_bonus(entropy, mask if kept is None else mask * kept, mode, steps)
            self._metrics[mode]["policy_loss"].append(self.accelerator.gather(policy_loss).nanmean().item())
            if mode == "train" and self.accelerator.sync_gradients:
                self._metrics[mode]["entropy_coef"].append(self.entropy_coef)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / steps
            self._metrics[mode]["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
        self._log_loss(mode, output.stats, advantage, ratio, reference, now, known, mask)
        if self._methods.controller is not None and mode == "train":
            self._observe(known, mask)
        return loss

    def _factor(self, inputs: dict[str, Any], advantage: Tensor, now: Tensor, old: Tensor, mask: Tensor, kept: Tensor | None) -> Tensor | None:
        """The product of TRL's weights of a token's policy term, each 0 or more: [B, T] or [B, 1], or None for 1."""
        weights = [] if kept is None else [kept]
        if self.off_policy_mask_threshold is not None:
            weights.append(
                self.get_off_policy_mask(
                    advantages=advantage,
                    per_token_logps=now,
                    sampling_per_token_logps=inputs.get("sampling_per_token_logps", old),
                    mask=mask,
                    off_policy_threshold=self.off_policy_mask_threshold,
                )
            )
        if self.use_vllm and self.vllm_importance_sampling_correction:
            weights.append(inputs["importance_sampling_ratio"])
        return math.prod(weights[1:], start=weights[0].to(now.dtype)) if weights else None

    def _select(self, now: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, factor: Tensor | None) -> Tensor | None:
        rule, options = self._rule, self._options
        if rule is None or rule.loss.select is None:
            return None
        place = (self.args.seed, self.state.global_step, self._step % max(self.args.gradient_accumulation_steps, 1), self.accelerator.process_index)
        selected = grpo_select(
            now,
            old,
            advantage,
            mask,
            mode=rule.loss.select,
            seed=int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "little") >> 1,
            cov_ratio=options["cov_ratio"],
            cov_lower=options["cov_lower"],
            cov_upper=options["cov_upper"],
            clip_low=rule.clip_low,
            clip_high=rule.clip_high,
            minimum=options["cov_minimum"],
        )
        return selected if factor is None else selected & (factor != 0)

    def _normalizer(self, inputs: dict[str, Any], mask: Tensor, mode: str, steps: int) -> Tensor | float:
        """What TRL divides the sums of grpo_loss's aggregate by, in this micro-batch."""
        if self.loss_type in ("grpo", "luspo"):
            return float(len(mask) * steps)  # sequences without a token count
        if self.loss_type == "bnpo":
            return mask.sum().clamp(min=1) * float(steps)
        if self.loss_type == "dr_grpo":
            return float(len(mask) * self.max_completion_length * steps)
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        return tokens * (steps / self.args.steps_per_generation) if mode == "train" else tokens * 1.0

    def _entropy_bonus(self, entropy: Tensor, mask: Tensor, mode: str, steps: int) -> Tensor:
        """TRL's: a coefficient times the mean over the tokens of the micro-batch, whatever loss_type; adaptive from step to step."""
        total, count = (entropy * mask).sum(), mask.sum().clamp(min=1)
        coefficient = self.entropy_coef
        if self.use_adaptive_entropy:
            args = self.args
            if self._last_world_entropy > args.entropy_target:
                coefficient = 0.0
            if mode == "train":
                sums = torch.stack([total.detach(), mask.sum().to(total.dtype)])
                self._entropy_window_stats = sums if self._entropy_window_stats is None else self._entropy_window_stats + sums
                if self.accelerator.sync_gradients:  # the end of an optimiser step
                    sums = self.accelerator.reduce(self._entropy_window_stats, reduction="sum")
                    mean = (sums[0] / sums[1].clamp(min=1)).item()
                    step = args.entropy_coef_delta if mean <= args.entropy_target else -args.entropy_coef_delta
                    self.entropy_coef = min(max(self.entropy_coef + step, args.entropy_coef_min), args.entropy_coef_max)
                    self._last_world_entropy, self._entropy_window_stats = mean, None
        return coefficient * total / count / steps

    # ---- metrics -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _log_loss(
        self, mode: str, stats: Tensor, advantage: Tensor, ratio: Tensor, reference: Tensor | None, now: Tensor, known: Tensor, mask: Tensor
    ) -> None:
        """TRL's metrics of a micro-batch over all processes, by its names and definitions, and ours."""
        metrics, rule = self._metrics[mode], self._rule
        assert rule is not None
        level, tokens = ratio, mask.to(now.dtype)
        by_sequence = rule.loss.mode in ("gspo", "luspo")  # whose ratio, clip and share are a sequence's
        if by_sequence:
            level = ((ratio.log() * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()
            advantage = advantage[:, :1]
        counted = torch.ones_like(level) if by_sequence else tokens
        means = {"entropy": (known, tokens)}
        if reference is not None:
            delta = reference - now
            k3 = delta.exp() - delta - 1
            means["kl"] = (k3 * ratio if self.args.use_bias_correction_kl else k3, tokens)
        if rule.loss.mode == "cispo":
            means["cispo_clip_ratio"] = ((level > 1 + rule.clip_high) & (advantage > 0), tokens)
        elif rule.loss.mode in _CLIPS:
            around, level = (0, level.log()) if rule.loss.mode == "geo_mean" else (1, level)
            low = (level < around - rule.clip_low) & (advantage < 0)
            high = (level > around + rule.clip_high) & (advantage > 0)
            means |= {f"clip_ratio/{name}_mean": (x, counted) for name, x in (("low", low), ("high", high), ("region", low | high))}
            shares = torch.stack([(x * counted).sum(1) / counted.sum(1) for x in (low, high)], 1)  # [B, 2], NaN without a token
            lows, highs = self.accelerator.gather(shares).unbind(1)
            metrics["clip_ratio/low_min"].append(nanmin(lows).item())
            metrics["clip_ratio/high_max"].append(nanmax(highs).item())
        sums = torch.stack([torch.stack([(x * count).sum(), count.sum()]) for x, count in means.values()])
        for name, (total, count) in zip(means, self.accelerator.reduce(sums, reduction="sum").tolist(), strict=True):
            metrics[name].append(total / max(count, 1))

        combined = grpo_combine_stats(self.accelerator.gather(stats[None]))
        told = dict(zip(GRPO_STATS, combined.tolist(), strict=True))
        for name in _TOLD + (_TOLD_OF_SELECTION if rule.loss.select else ()):
            metrics[f"isentrope/{name}"].append(told[name])
