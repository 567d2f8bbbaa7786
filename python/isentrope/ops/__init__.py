"""Every op of isentrope as a typed function: names and documentation over the dispatcher ops, which differentiate."""

from typing import TYPE_CHECKING

from isentrope.ops.activation import crrelu
from isentrope.ops.attention import (
    EntropyAttentionOutput,
    entropy_attention,
    gathered_attention,
    merge_attention_states,
    scatter_mean,
)
from isentrope.ops.hierarchical import HierarchicalAttentionOutput, hierarchical_attention
from isentrope.ops.policy import GRPO_STATS, GrpoLossOutput, grpo_combine_stats, grpo_loss, grpo_select
from isentrope.ops.recurrence import GatedDeltaRuleOutput, LinearAttentionOutput, gated_delta_rule, linear_attention
from isentrope.ops.sigma import PowerStepOutput, SigmaLinearOutput, power_step, sigma_linear
from isentrope.ops.token import (
    TokenEntropyKeptMomentsOutput,
    TokenEntropyKeptOutput,
    TokenEntropyMomentsOutput,
    TokenEntropyOutput,
    TopP,
    WithoutLowest,
    linear_token_entropy,
    token_entropy,
)
from isentrope.ops.window import WindowEntropyOutput, window_entropy

__all__ = [
    "EntropyAttentionOutput",
    "GRPO_STATS",
    "GatedDeltaRuleOutput",
    "GrpoLossOutput",
    "HierarchicalAttentionOutput",
    "LinearAttentionOutput",
    "PowerStepOutput",
    "SigmaLinearOutput",
    "TokenEntropyKeptMomentsOutput",
    "TokenEntropyKeptOutput",
    "TokenEntropyMomentsOutput",
    "TokenEntropyOutput",
    "TopP",
    "WindowEntropyOutput",
    "WithoutLowest",
    "crrelu",
    "entropy_attention",
    "gated_delta_rule",
    "gathered_attention",
    "grpo_combine_stats",
    "grpo_loss",
    "grpo_select",
    "hierarchical_attention",
    "linear_attention",
    "linear_token_entropy",
    "merge_attention_states",
    "power_step",
    "scatter_mean",
    "sigma_linear",
    "token_entropy",
    "window_entropy",
]

if not TYPE_CHECKING:  # a checker takes a module with __getattr__ for one that has every name

    def __getattr__(name):
        if f"{name}Output" in __all__:  # the names of version 0.1.0
            raise AttributeError(f"isentrope.{name} is now isentrope.{name}Output, what an op returns; modules are in isentrope.nn")
        raise AttributeError(f"module 'isentrope.ops' has no attribute {name!r}")
