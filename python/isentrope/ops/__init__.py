"""Every op of isentrope as a typed function: names and documentation over the dispatcher ops, which differentiate."""

from isentrope.ops.attention import EntropyAttention, entropy_attention, merge_attention_states
from isentrope.ops.policy import GRPO_STATS, GrpoLoss, grpo_combine_stats, grpo_loss, grpo_select
from isentrope.ops.sigma import PowerStep, SigmaLinear, power_step, sigma_linear
from isentrope.ops.token import TokenEntropy, TokenEntropyMoments, linear_token_entropy, token_entropy
from isentrope.ops.window import WindowEntropy, window_entropy

__all__ = [
    "EntropyAttention",
    "GRPO_STATS",
    "GrpoLoss",
    "PowerStep",
    "SigmaLinear",
    "TokenEntropy",
    "TokenEntropyMoments",
    "WindowEntropy",
    "entropy_attention",
    "grpo_combine_stats",
    "grpo_loss",
    "grpo_select",
    "linear_token_entropy",
    "merge_attention_states",
    "power_step",
    "sigma_linear",
    "token_entropy",
    "window_entropy",
]
