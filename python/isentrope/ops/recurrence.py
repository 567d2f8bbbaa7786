"""Recurrences with a matrix for a state: linear attention and the gated delta rule, by chunks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call, wrong_type


class LinearAttentionOutput(NamedTuple):
    """What linear_attention returns."""

    out: Tensor  # like q, with the columns of v
    state: Tensor  # after the last step; float32, or float64 for float64 q


class GatedDeltaRuleOutput(NamedTuple):
    """What gated_delta_rule returns."""

    out: Tensor
    state: Tensor


# ---- linear_attention ------------------------------------------------------------------------------------------------


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    normalizer: bool = False,
    key_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk: int = 64,
) -> LinearAttentionOutput:
    """Causal linear attention with a decay a step, O(T), from one pass over the steps by chunks.

    For every key head of a sequence, and the query heads that read it::

        S_t = exp(log_decay_t) S_{t-1} + k_t v_tᵀ          out_t = S_tᵀ q_t = Σ_{s ≤ t} w_ts v_s

    with the weights w_ts = (q_t·k_s) exp(Σ_{s < l ≤ t} log_decay_l). There is no feature map and no scale in it: q and k are what a map of
    isentrope.nn.feature_maps made of them.

    Args:
        q: [B, H, T, D]; float32, bfloat16, float16, or float64 on the CPU.
        k: [B, G, T, D] and v: [B, G, T, E], like q; H a multiple of G: query head h reads the state of key head h // (H // G). All
            three may have any strides ([B, T, H, D] memory is taken as it is; memory in which D is not innermost is copied).
        log_decay: [B, G, T], of either sign: above 0 is a growth, as attention that is normalised by a function of the query's token
            needs; -inf forgets. None: 0.
        state: [N, G, D, E] float32 (float64 for float64 q), N sequences, with which the first step begins; None: 0.
        normalizer: out is divided by the row's weight Σ_s w_ts (0 where that is 0). The state has then a column more, [N, G, D, E + 1]: the
            last is z_t = exp(log_decay_t) z_{t-1} + k_t, with q_t·z_t the weight.
        key_lengths: [B] integers from 0 to T: steps at and after it do not exist. out is 0 there, and the state is that before them.
        cu_seqlens: [N + 1] integers, 0 first, then where each packed sequence ends: q is [total, H, D], k and v are [total, G, ...],
            log_decay is [total, G], and each sequence has a state of its own.
        chunk: steps that are taken together, a multiple of 16 from 16 to 256: a matter of speed and of rounding alone. (On a GPU 64, on a
            CPU at most 32.)

    Returns:
        (out like q with the columns of v, state after the last step). Both have gradients, to q, k, v, log_decay and state. A sequence
        may be cut anywhere and continued from its state. NaN in q stays in its row of out, NaN in k, v or log_decay reaches that step
        and those after it; on a GPU it may reach others of the same chunk.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument. Values of
            key_lengths and cu_seqlens are looked at on the CPU alone; on a GPU they are bounded.

    Under autocast q, k and v are cast as scaled_dot_product_attention's are.

    Source: kernels/linear_attention.h; Katharopoulos et al., arXiv 2006.16236; chunks: Hua et al., arXiv 2202.10447.
    """
    if normalizer is None:  # not of call's flags: grpo_loss has a normalizer that may be None
        raise wrong_type("linear_attention", "normalizer", None, "True or False")
    out, last, _ = call(
        torch.ops.isentrope.linear_attention,
        q,
        k,
        v,
        log_decay=log_decay,
        state=state,
        key_lengths=key_lengths,
        cu_seqlens=cu_seqlens,
        normalizer=normalizer,
        chunk=chunk,
    )
    return LinearAttentionOutput(out, last)


# ---- gated_delta_rule ------------------------------------------------------------------------------------------------


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    *,
    write: Tensor | None = None,
    state: Tensor | None = None,
    key_lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk: int = 64,
) -> GatedDeltaRuleOutput:
    """The gated delta rule by chunks: what a step writes under its key replaces what the decayed state says of that key.

    For every key head of a sequence, and the query heads that read it, with a_t = exp(log_decay_t)::

        S_t = a_t S_{t-1} + β_t k_t (v_t - (a_t S_{t-1})ᵀ k_t)ᵀ          out_t = S_tᵀ q_t

    Keys are usually of length 1 and β in (0, 1); neither is asked for. There is no scale in it.

    Args:
        q: [B, H, T, D], k: [B, G, T, D], v: [B, G, T, E], H a multiple of G; types and strides as in linear_attention.
        beta: [B, G, T]; packed: [total, G].
        log_decay: the same, of either sign; None: 0, the delta rule.
        write: [N, G, ⌈T / chunk⌉] a gate for each chunk, usually 0 or 1, or bool: the chunk after it begins with
            ``write · S_last + (1 - write) · (Π a) · S_before``. At 0 the chunk's own queries still run the recurrence, and what follows finds
            a state that has only decayed. Packed: ⌈total / chunk⌉ columns, of which a sequence reads the first of its own. None: 1.
        state: [N, G, D, E] float32 (float64 for float64 q), with which the first step begins; None: 0.
        key_lengths, cu_seqlens: as in linear_attention.
        chunk: steps that are taken together, a multiple of 16 from 16 to 256; a matter of rounding and speed but for write, and at most 32
            on a CPU and 64 on a GPU without it.

    Returns:
        (out like q with the columns of v, state after the last step). Both have gradients, to q, k, v, beta, log_decay, write and state.

    Raises:
        ValueError, TypeError: as in linear_attention.

    Under autocast q, k and v are cast as scaled_dot_product_attention's are.

    Source: Yang et al., arXiv 2412.06464; kernels/gated_delta_rule.h.
    """
    out, last = call(
        torch.ops.isentrope.gated_delta_rule,
        q,
        k,
        v,
        beta,
        log_decay,
        write=write,
        state=state,
        key_lengths=key_lengths,
        cu_seqlens=cu_seqlens,
        chunk=chunk,
    )
    return GatedDeltaRuleOutput(out, last)
