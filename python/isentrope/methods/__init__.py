"""Methods of policy learning as pure functions of tensors [B, T] with a mask: what a published method does to rewards, advantages or
the weights of tokens. The trainer applies the same functions (keys reward, advantage, weight and objective.entropy of a phase); so do
isentrope.integrations. Results are constants to autograd. Natural logarithms, entropies in nats; mask is true, or not 0, where a token
counts, and what stands elsewhere is never used."""

from isentrope.methods.advantage import (
    dr_grpo,
    gdpo,
    grpo,
    maxrl,
    opo,
    optimal_token_baseline,
    pass_at_k,
    quantile,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    remax,
    rloo,
)
from isentrope.methods.control import (
    adaptive_entropy,
    adaptive_kl,
    entropic,
    kl,
    overlong,
)
from isentrope.methods.own import register
from isentrope.methods.preference import differential_information, preference
from isentrope.methods.weight import (
    CorrectionOutput,
    MismatchOutput,
    attention_entropy,
    correction,
    entropy_ratio_band,
    mismatch,
    soft_window,
    stare,
    steer,
    surprisal_band,
    top_entropy,
)

__all__ = [
    "CorrectionOutput",
    "MismatchOutput",
    "adaptive_entropy",
    "adaptive_kl",
    "attention_entropy",
    "correction",
    "differential_information",
    "dr_grpo",
    "entropic",
    "entropy_ratio_band",
    "gdpo",
    "grpo",
    "kl",
    "maxrl",
    "mismatch",
    "opo",
    "optimal_token_baseline",
    "overlong",
    "pass_at_k",
    "preference",
    "quantile",
    "register",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "rloo",
    "soft_window",
    "stare",
    "steer",
    "surprisal_band",
    "top_entropy",
]
