"""What GRPOTrainer's methods=[…] does to a step: advantages of its rewards, weights of its tokens, a controller of its entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from isentrope.integrations import methods
from isentrope.integrations.methods import Controller, Entry
from isentrope.integrations.shaping import Shaping, TokenText

__all__ = ["Methods"]

_REFUSED = {
    "remax": "TRL draws no greedy completion of a prompt; wanted rloo or another estimator",
    "optimal_token_baseline": "TRL's rollouts have no sum of squared probabilities; wanted rloo or another estimator",
    "clip_b": "TRL counts its own tokens, and what it takes out would stay in them; isentrope.methods.clip_b says which",
    "clip_v": "TRL counts its own tokens, and what it takes out would stay in them; isentrope.methods.clip_v says which",
    "entropy_sft": "it chooses targets of supervised learning; isentrope.methods.entropy_sft says which, for a trainer of one's own",
    "tea": "TRL's bonus weighs all tokens alike; isentrope.methods.tea has the weights",
    "divergence_mask": "TRL's rollouts have no sum of squared probabilities",
    "turn_credit": "TRL's rewards are of whole completions; isentrope.methods.turn_credit takes those of turns",
    "ceeh": "it keeps a record of each prompt by its number, which TRL does not hand over; isentrope.methods.ceeh takes one",
    "siren": "TRL's bonus is over the whole vocabulary; wanted adaptive",
    "aent": "TRL's bonus is over the whole vocabulary; wanted adaptive",
    "pear": "it changes rewards; wanted a reward function of its own with isentrope.methods.pear",
    "attention_entropy": "TRL's forward pass hands over no attention",
    "random": "TRL has the control as the losses random_clip_cov and random_kl_cov",
    "random_tokens": "TRL's steps have no number for it to draw by; isentrope.methods.random_tokens takes one",
    "correction": "TRL has it as vllm_importance_sampling_mode and off_policy_mask_threshold",
    "overlong": "it changes rewards; wanted a reward function of its own (trl.rewards.get_soft_overlong_punishment)",
    "filter_groups": "TRL draws a batch of prompts once",
    "kl": "TRL has the divergence in the loss, as beta",
    "ares": "it changes rewards from step to step; wanted the trainer of Isentrope",
    "constant": "TRL has it as entropy_coef",
    "schedule": "wanted adaptive, or entropy_coef",
    "table": "wanted adaptive, or entropy_coef",
    "band": "wanted entropic",
}
_OF_TOKENS = ("top_entropy", "steer", "stare")  # whose factor of a token depends on all others of the update


class Methods:
    """The entries of methods=[…] by place.

    Args:
        given: names or dicts with a key kind.

    Raises:
        ValueError: a method that is not known or cannot be had in TRL, a key or value that is wrong, two estimators or two controllers,
            advantages changed in an order that makes no sense.
        TypeError: an entry of another type.
    """

    def __init__(self, given: Sequence[str | Mapping[str, Any]]) -> None:
        where = "GRPOTrainer: methods"
        known = [kind for kind in (*methods.ADVANTAGES, *methods.SHAPING, *methods.WEIGHTS, *methods.CONTROLLERS) if kind not in _REFUSED]
        entries = methods.read(where, given, known, _REFUSED)
        methods.check_places(where, entries, {"estimator of advantages": methods.ADVANTAGES, "controller of the entropy": methods.CONTROLLERS})
        self.advantage: Entry | None = next((entry for entry in entries if entry.kind in methods.ADVANTAGES), None)
        self.shaping = Shaping(where, [entry for entry in entries if entry.kind in methods.SHAPING])
        self.weights = [entry for entry in entries if entry.kind in methods.WEIGHTS]
        self.controller: Controller | None = next((Controller(entry) for entry in entries if entry.kind in methods.CONTROLLERS), None)

    @property
    def in_the_loss(self) -> list[str]:
        """The methods that change the loss and not the advantages of a step."""
        return [entry.kind for entry in self.weights] + ([self.controller.entry.kind] if self.controller else [])

    @property
    def over_the_update(self) -> bool:
        return any(entry.kind in _OF_TOKENS for entry in self.weights)

    @property
    def needs_old_entropy(self) -> bool:
        return any("old_entropy" in methods.subject(entry.kind) for entry in self.weights)

    @property
    def of_generation(self) -> set[str]:
        """Of logprob, entropy and token what advantages look at, of the policy that drew."""
        return self.shaping.needs | ({"entropy"} if self.advantage is not None and "entropy" in methods.subject(self.advantage.kind) else set())

    # ---- a step ------------------------------------------------------------------------------------------------------

    def advantages(self, rewards: Tensor, reward_weights: Tensor, num_generations: int, length: Tensor, **seen: Tensor) -> Tensor:
        """Advantages [B], or [B, T] of gtpo, of all completions of a step, 0 where no reward applies.

        Args:
            rewards: [B, R] of each reward function, NaN where it does not apply; completions of a prompt stand together.
            reward_weights: [R], TRL's. gdpo has them as its weights, unless the entry has some.
            num_generations: completions a prompt.
            length: [B] tokens.
            seen: mask and entropy [B, T] of the policy that drew, for gtpo; right is an answer to which the first reward gives at least 0.5.
        """
        assert self.advantage is not None
        entry, scores = self.advantage, rewards.double()
        weights = reward_weights.to(scores)
        index = [i // num_generations for i in range(len(scores))]
        if entry.kind == "gdpo":
            entry = entry._replace(options={"weights": weights.tolist(), **entry.options})
        reward = (scores * weights).nansum(1).where(~scores.isnan().all(1), torch.nan)
        return methods.advantage(entry, index, reward=reward, scores=scores.t(), length=length, right=scores[:, 0] >= 0.5, **seen)

    def shaped(self, advantage: Tensor, num_generations: int, text: TokenText | None, learns: bool, **seen: Tensor) -> Tensor:
        """Advantages [B] or [B, T] of all completions of a step → [B, T], as the entries behind the estimator make them.

        Args:
            text, learns: of Shaping.apply.
            seen: mask, and of logprob, entropy and token what of_generation names: [B, T].
        """
        whole = advantage if advantage.dim() == 2 else advantage[:, None].expand_as(seen["mask"])
        index = [i // num_generations for i in range(len(whole))]
        return self.shaping.apply(index, advantage=whole.contiguous(), text=text, learns=learns, **seen)

    # ---- an update ---------------------------------------------------------------------------------------------------

    def factor(self, accelerator: Accelerator, seen: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The product of the weights of tokens that all processes see, of this one's rows [B, T], and its statistics over all of them.

        Args:
            accelerator: of the trainer; each process has as many rows.
            seen: mask, logprob, old_logprob, entropy, advantage and, where needs_old_entropy, old_entropy: [B, T].
        """
        rows, tokens = seen["mask"].shape
        names = sorted({"mask"} | {name for entry in self.weights for name in methods.subject(entry.kind)})
        whole = {name: self.of_all(accelerator, seen[name]) for name in names}
        product = methods.factor(self.weights, **whole)
        stats = methods.factor_stats(product, whole["mask"])
        begin = accelerator.process_index * rows
        return product[begin : begin + rows, :tokens], stats

    @staticmethod
    def of_all(accelerator: Accelerator, x: Tensor) -> Tensor:
        """[B, T] of each process → of all, one behind the other, padded to one T with what the mask leaves out."""
        x = x.contiguous() if x.is_floating_point() else x.long().contiguous()
        gathered: Tensor = accelerator.gather(accelerator.pad_across_processes(x, dim=1))
        return gathered

    def controlled(self, advantage: Tensor) -> Tensor:
        """[B, T], as the controller weighs right and wrong answers."""
        control = self.controller
        if control is None or control.positive == control.negative == 1:
            return advantage
        return advantage * torch.where(advantage > 0, control.positive, control.negative).to(advantage.dtype)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; empty where nothing passes from step to step."""
        made: dict[str, Any] = {} if self.controller is None else {"kind": self.controller.entry.kind, "state": self.controller.state.tolist()}
        return {**made, "shaping": self.shaping.saved()} if self.shaping.state else made

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: the state is another controller's.
        """
        kind = None if self.controller is None else self.controller.entry.kind
        if state.get("kind") != kind:
            raise ValueError(f"GRPOTrainer: the checkpoint has the state of {state.get('kind')}, and methods has {kind}; wanted the same controller")
        self.shaping.restore(state.get("shaping", []))
        if self.controller is not None:
            self.controller.state = torch.tensor(state["state"], dtype=torch.float64)
