"""A trl.GRPOTrainer with methods: advantages of a generation, weights and a controller of an optimiser step, and their checkpoints."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
import trl
from torch import Tensor

from isentrope.integrations.shaping import TokenText
from isentrope.integrations.trl.methods import Methods

__all__ = ["MethodTrainer"]

# What TRL hands on to its forward pass, of images mostly.
_FORWARD = tuple(inspect.signature(trl.GRPOTrainer._get_per_token_logps_and_entropies).parameters)
if "compute_aux_loss" not in _FORWARD:
    raise ImportError("no compute_aux_loss in GRPOTrainer._get_per_token_logps_and_entropies")
_FORWARD = _FORWARD[_FORWARD.index("compute_aux_loss") + 1 :]
_STATE = "isentrope_methods.json"  # of a checkpoint


class MethodTrainer(trl.GRPOTrainer):
    """What methods do around a loss, for GRPOTrainer."""

    _methods: Methods
    _text: TokenText | None = None
    _rewards: Tensor | None = None  # [B, R] of the last generation, over all processes
    _factors: list[Tensor] = []  # of the micro-batches of the optimiser step that goes on
    _entropy_sums: Tensor | None = None  # [2]: of the step so far, the entropies and their number

    # ---- a generation ------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        given = self._methods
        looks = given.of_generation
        drawn = {"mask": output["completion_mask"] * output.get("tool_mask", 1), "token": output["completion_ids"]}
        if given.needs_old_entropy or looks & {"logprob", "entropy"}:  # the policy that learns is still the one that drew
            with torch.no_grad():
                drawn["logprob"], drawn["entropy"], _ = self._look(self.model, output, self.args.per_device_train_batch_size)
        if given.needs_old_entropy:
            output["old_entropy"] = drawn["entropy"]
        if given.advantage is not None or given.shaping.entries:
            output["advantages"] = self._advantages(output["advantages"], drawn, looks)
        return output

    def _advantages(self, theirs: Tensor, drawn: dict[str, Tensor], looks: set[str]) -> Tensor:
        """[B] or [B, T] of this process, from the rewards over all of them; TRL's table of completions gets their means.

        Args:
            theirs: [B], TRL's.
            drawn: mask and token [B, T], and logprob and entropy where looks has one of them.
        """
        given, mask = self._methods, drawn["mask"]
        completions = self.num_generations if self.model.training else self.num_generations_eval
        seen = {name: given.of_all(self.accelerator, drawn[name]) for name in ("mask", *sorted(looks))}
        whole = {name: x.float() if x.is_floating_point() else x for name, x in seen.items()}
        if given.advantage is None:
            made = self.accelerator.gather(theirs)
        else:
            assert self._rewards is not None
            of_tokens = {name: x for name, x in whole.items() if name in ("mask", "entropy")}
            made = given.advantages(self._rewards, self.reward_weights, completions, whole["mask"].sum(1), **of_tokens).to(theirs.dtype)
        if given.shaping.entries:
            if self._text is None and "token" in looks:
                self._text = TokenText(getattr(self.processing_class, "tokenizer", self.processing_class))
            made = given.shaped(made, completions, self._text, self.model.training, **whole)
        means = made if made.dim() == 1 else (made * whole["mask"]).sum(1) / whole["mask"].sum(1).clamp(min=1)
        told = self._logs["advantages"]
        for _ in range(min(len(told), len(made))):
            told.pop()
        told.extend(means.tolist())
        begin = self.accelerator.process_index * len(mask)
        own = made[begin : begin + len(mask)]
        return own if own.dim() == 1 else own[:, : mask.shape[1]]

    def _look(self, model: Any, inputs: dict[str, Any], batch_size: int | None = None, aux_loss: bool = False) -> tuple[Tensor, Tensor, Any]:
        """Log-probabilities and entropies [B, T] of the completions, and TRL's loss of routers."""
        looked: tuple[Tensor, Tensor, Any] = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            inputs["completion_ids"].shape[1],
            batch_size=batch_size,
            compute_entropy=True,
            compute_aux_loss=aux_loss,
            **{name: inputs.get(name) for name in _FORWARD},
        )
        return looked

    # ---- an optimiser step -----------------------------------------------------------------------------------------------

    def _seen(self, inputs: dict[str, Any], now: Tensor, entropy: Tensor) -> dict[str, Tensor]:
        """What weights look at."""
        advantage, old = inputs["advantages"], inputs.get("old_per_token_logps")
        seen = {
            "logprob": now,
            "old_logprob": now if old is None else old,
            "entropy": entropy,
            "advantage": (advantage[:, None] if advantage.dim() == 1 else advantage).expand_as(now),
        }
        if self._methods.needs_old_entropy:
            seen["old_entropy"] = inputs["old_entropy"]
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        return {"mask": mask, **{name: x.to(torch.promote_types(now.dtype, torch.float32)) for name, x in seen.items()}}

    def _weigh(self, model: Any, inputs: dict[str, Any], now: Tensor, entropy: Tensor, mode: str, steps: int) -> Tensor:
        """The weights of a micro-batch [B, T]; where they depend on all tokens of the optimiser step, from a pass over all of its micro-batches."""
        place = self._step % steps
        if mode != "train" or steps == 1 or not self._methods.over_the_update:
            factor, stats = self._methods.factor(self.accelerator, self._seen(inputs, now, entropy))
        elif place:
            return self._factors[place]
        else:
            assert self._buffered_inputs is not None
            micros = [self._buffered_inputs[(self._step + i) % self.args.steps_per_generation] for i in range(steps)]
            with torch.no_grad():
                seen = [self._seen(micro, *self._look(model, micro)[:2]) for micro in micros]
            factor, stats = self._methods.factor(self.accelerator, {name: torch.cat([one[name] for one in seen]) for name in seen[0]})
            self._factors = list(factor.split([len(micro["advantages"]) for micro in micros]))
            factor = self._factors[0]
        for name, value in stats.items():
            self._metrics[mode][f"isentrope/{name}"].append(value)
        return factor

    def _observe(self, entropy: Tensor, mask: Tensor) -> None:
        """Hands the controller the mean entropy of an optimiser step, over all processes, at its end."""
        control = self._methods.controller
        assert control is not None
        sums = torch.stack([entropy.double()[mask != 0].sum(), mask.sum().double()])
        self._entropy_sums = sums if self._entropy_sums is None else self._entropy_sums + sums
        if self.accelerator.sync_gradients:
            if control.entry.kind == "adaptive":
                self._metrics["train"]["entropy_coef"].append(control.coefficient)
            else:
                self._metrics["train"]["isentrope/advantage/positive"].append(control.positive)
                self._metrics["train"]["isentrope/advantage/negative"].append(control.negative)
            total, count = self.accelerator.reduce(self._entropy_sums, reduction="sum").tolist()
            self._entropy_sums = None
            if count:
                control.observe(total / count)

    # ---- checkpoints -----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._methods.state() and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (folder / _STATE).write_text(json.dumps(self._methods.state()))

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._methods.state() and checkpoint is not None and (Path(checkpoint) / _STATE).exists():
            self._methods.restore(json.loads((Path(checkpoint) / _STATE).read_text()))
