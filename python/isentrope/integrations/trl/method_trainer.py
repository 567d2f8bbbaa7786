"""A trl.GRPOTrainer with methods: advantages of a generation, weights and a controller of an optimiser step, and their checkpoints."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
import trl
from torch import Tensor

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
    _rewards: Tensor | None = None  # [B, R] of the last generation, over all processes
    _factors: list[Tensor] = []  # of the micro-batches of the optimiser step that goes on
    _entropy_sums: Tensor | None = None  # [2]: of the step so far, the entropies and their number

    # ---- a generation ------------------------------------------------------------------------------------------------

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._methods.advantage is not None:
            output["advantages"] = self._advantages(output)
        if self._methods.needs_old_entropy:  # the policy that learns is still the one that drew
            with torch.no_grad():
                _, output["old_entropy"], _ = self._look(self.model, output, self.args.per_device_train_batch_size)
        return output

    def _advantages(self, output: dict[str, Any]) -> Tensor:
        """[B] of this process, from the rewards over all of them; TRL's table of completions gets them too."""
        assert self._rewards is not None
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        length = self.accelerator.gather(mask.sum(1))
        completions = self.num_generations if self.model.training else self.num_generations_eval
        made = self._methods.advantages(self._rewards, self.reward_weights, completions, length).to(output["advantages"].dtype)
        told = self._logs["advantages"]
        for _ in range(min(len(told), len(made))):
            told.pop()
        told.extend(made.tolist())
        begin = self.accelerator.process_index * len(mask)
        return made[begin : begin + len(mask)]

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
        if self._methods.controller is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (folder / _STATE).write_text(json.dumps(self._methods.state()))

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._methods.controller is not None and checkpoint is not None and (Path(checkpoint) / _STATE).exists():
            self._methods.restore(json.loads((Path(checkpoint) / _STATE).read_text()))
