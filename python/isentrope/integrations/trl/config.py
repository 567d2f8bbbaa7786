"""TRL's GRPOConfig with the fields that choose a loss of Isentrope."""

from dataclasses import dataclass, field
from typing import NamedTuple

import trl


class Loss(NamedTuple):
    """How a loss is made."""

    mode: str  # of grpo_loss
    select: str | None = None  # mode of grpo_select


LOSSES: dict[str, Loss] = {
    "clip": Loss("clip"),
    "clip_higher": Loss("clip_higher"),
    "clip_cov": Loss("clip_cov", "clip_cov"),
    "kl_cov": Loss("kl_cov", "kl_cov"),
    "random_clip_cov": Loss("clip_cov", "random_clip_cov"),
    "random_kl_cov": Loss("kl_cov", "random_kl_cov"),
    "gspo": Loss("gspo"),
    "cispo": Loss("cispo"),
    "gpg": Loss("gpg"),
    "luspo": Loss("luspo"),
    "geo_mean": Loss("geo_mean"),
    "reinforce": Loss("reinforce"),
    "dppo_tv": Loss("dppo_tv"),
    "dppo_kl": Loss("dppo_kl"),
    "sapo": Loss("sapo"),
    "vespo": Loss("vespo"),
    "ce_gppo": Loss("ce_gppo"),
    "dro": Loss("dro"),
}

# What TRL's loss_type says of the mean: the aggregate of grpo_loss, with a normalizer of TRL's (trainer.py).
AGGREGATES: dict[str, str] = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "dapo": "token-mean",
    "luspo": "seq-mean-token-sum",
}
# Those whose ratio is a sequence's.
OF_SEQUENCES = ("gspo", "luspo", "geo_mean")


@dataclass
class GRPOConfig(trl.GRPOConfig):
    """trl.GRPOConfig, and how Isentrope makes the loss. loss_type goes on to say how token losses are averaged."""

    loss: str | None = field(
        default=None,
        metadata={
            "help": "Policy term of isentrope.grpo_loss: clip, clip_higher (epsilon_high 0.28 unless given), clip_cov, kl_cov, random_clip_cov, "
            "random_kl_cov (their controls), gspo, cispo (weights in [1 - epsilon, 1 + epsilon_high]), gpg, luspo, geo_mean, reinforce, dppo_tv, "
            "dppo_kl, sapo, vespo, ce_gppo, dro. With loss_type grpo, bnpo, dr_grpo, dapo or luspo. None: that of loss_type, as TRL has it."
        },
    )
    cov_ratio: float = field(default=2e-4, metadata={"help": "Share of tokens that clip_cov and kl_cov choose, in (0, 1]."})
    cov_lower: float = field(default=1.0, metadata={"help": "Lower bound of the covariances from which clip_cov chooses."})
    cov_upper: float = field(default=5.0, metadata={"help": "Upper bound of the covariances from which clip_cov chooses."})
    cov_minimum: int = field(
        default=1, metadata={"help": "Tokens of a micro-batch that are chosen even where cov_ratio makes fewer; 0 lets it choose none."}
    )
    kl_cov_coef: float = field(default=1.0, metadata={"help": "Weight of kl_cov's penalty on the tokens that it chooses (verl: 0.1)."})
    gppo_beta1: float = field(default=0.75, metadata={"help": "Share of the gradient that ce_gppo keeps below the clip."})
    gppo_beta2: float = field(default=1.0, metadata={"help": "Share of the gradient that ce_gppo keeps above the clip."})
    dro_beta: float = field(default=0.05, metadata={"help": "Weight of dro's half squared log-ratio (Tinker's example; verl has no default)."})
    fused_head: bool = field(
        default=True,
        metadata={
            "help": "Log-probabilities and entropies by isentrope.linear_token_entropy where the model's head is a plain linear layer; "
            "False, and other heads: by TRL's fused head."
        },
    )

    def __post_init__(self) -> None:
        self._check_loss()
        super().__post_init__()

    def _check_loss(self) -> None:
        if self.loss is not None:
            if self.loss not in LOSSES:
                raise ValueError(f"GRPOConfig: loss is {self.loss!r}; wanted one of {', '.join(LOSSES)}, or None for TRL's loss_type")
            if self.loss_type not in AGGREGATES:
                raise ValueError(
                    f"GRPOConfig: loss_type is {self.loss_type!r} and loss {self.loss!r}; wanted loss_type to be one of "
                    f"{', '.join(AGGREGATES)}, which say how token losses are averaged, or loss to be None"
                )
            if self.importance_sampling_level == "sequence" and self.loss not in OF_SEQUENCES:
                raise ValueError(
                    f"GRPOConfig: importance_sampling_level is 'sequence' and loss {self.loss!r}; wanted loss {', '.join(map(repr, OF_SEQUENCES))}, "
                    "or level 'token'"
                )
            if self.loss == "luspo" and self.loss_type not in ("luspo", "dr_grpo"):
                raise ValueError(
                    f"GRPOConfig: loss is 'luspo' and loss_type {self.loss_type!r}, under which it is gspo; wanted loss_type 'luspo' or 'dr_grpo', "
                    "which sum over the tokens of a sequence"
                )
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        for name, value, right, wanted in (
            ("cov_ratio", self.cov_ratio, 0 < self.cov_ratio <= 1, "above 0 and at most 1"),
            ("cov_lower", self.cov_lower, self.cov_lower < self.cov_upper, f"less than cov_upper, which is {self.cov_upper:g}"),
            ("cov_minimum", self.cov_minimum, self.cov_minimum >= 0, "0 or more"),
            ("kl_cov_coef", self.kl_cov_coef, 0 <= self.kl_cov_coef < float("inf"), "0 or more"),
            ("gppo_beta1", self.gppo_beta1, 0 <= self.gppo_beta1 < float("inf"), "0 or more"),
            ("gppo_beta2", self.gppo_beta2, 0 <= self.gppo_beta2 < float("inf"), "0 or more"),
            ("dro_beta", self.dro_beta, 0 <= self.dro_beta < float("inf"), "0 or more"),
            ("epsilon", self.epsilon, self.loss is None or self.epsilon >= 0, "0 or more"),
            ("epsilon_high", high, self.loss is None or high >= 0, "0 or more"),
        ):
            if not right:
                raise ValueError(f"GRPOConfig: {name} is {value:g}; wanted {wanted}")
