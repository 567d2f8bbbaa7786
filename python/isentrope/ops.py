"""Every op of isentrope as a typed function: names and documentation over the dispatcher ops, which differentiate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope

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


_WANTED = {
    "Tensor": (Tensor, "a tensor"),
    "List[Tensor]": ((list, tuple), "a list of tensors"),
    "str": (str, "a string"),
    "bool": (bool, "True or False"),
    "int": ((int, torch.SymInt), "an integer"),
    "float": ((int, float, torch.SymInt, torch.SymFloat), "a number"),
}


def _call(op, *args, **options):
    """op, and for an argument of a type that torch refuses an error that names it. (Each op's own checks see types that fit.)"""
    try:
        return op(*args, **options)
    except RuntimeError:
        schema = op.default._schema
        given = {**dict(zip((x.name for x in schema.arguments), args)), **options}
        for argument in schema.arguments:
            kind = str(argument.type)
            optional = kind.startswith("Optional[")
            kind = kind[len("Optional[") : -1] if optional else kind
            value, (types, wanted) = given.get(argument.name), _WANTED[kind]
            if argument.name not in given or isinstance(value, (types, Tensor)) or (optional and value is None):
                continue
            came = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
            if kind == "Tensor" and isinstance(value, (int, float, list, tuple)):
                wanted += f", as torch.tensor({came})"
            raise TypeError(
                f"isentrope::{schema.name.removeprefix('isentrope::')}: {argument.name} is {came}, of type {type(value).__name__}; "
                f"wanted {wanted}{', or None' if optional else ''}"
            ) from None
        raise


# ---- entropy_attention -----------------------------------------------------------------------------------------------


class EntropyAttention(NamedTuple):
    """What entropy_attention returns. Statistics are float32, or float64 for float64 q."""

    out: Tensor
    lse: Tensor
    entropy: Tensor | None
    max_logit: Tensor


def entropy_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    temperature: Tensor | None = None,
    key_lengths: Tensor | None = None,
    query_start: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    return_entropy: bool = True,
) -> EntropyAttention:
    """Exact softmax attention and the entropy of each of its rows, from one pass over the keys; no T × S matrix exists.

    For every query, over the keys j that it sees, natural logarithms::

        s_j = softcap · tanh(scale · q·k_j / softcap) / temperature          p = softmax(s)
        out = Σ p_j v_j    lse = log Σ exp(s_j)    entropy = -Σ p_j log p_j  (nats)    max_logit = max s_j

    Args:
        q: [B, H, T, D]; float32, bfloat16, float16, or float64 on the CPU; D a multiple of 8 up to 256.
        k, v: [B, G, S, D], like q; H a multiple of G: query head h reads key head h // (H // G), and nothing is copied. All three
            may have any strides but in D ([B, T, H, D] memory is taken as it is).
        causal: query t sees keys up to ``query_start + t``, by default ``S - T + t``: the last query sees the last key.
        window: causal only; a query sees itself and the ``window - 1`` keys before it. At least 1.
        softcap: above 0.
        scale: above 0; 1/√D by default. torch.compile makes a constant of every float, and compiles a new one anew: for one that
            changes by step give ``q * number`` and scale=1, or a temperature. Integers may change.
        temperature: [H], [H, T] or [B, H, T] (packed: [H] or [H, total]), above 0.
        key_lengths: [B] integers from 0 to S. Keys at and after it are not read.
        query_start: [B] integers from 0 to S, the key that query 0 sees last: for caches of different lengths in one batch, as
            ``query_start = key_lengths - T``.
        cu_seqlens: [sequences + 1] integers, 0 first, then where each sequence ends: q is [total, H, D], k and v are [total, G, D],
            statistics are [total, H], and a row sees keys of its own sequence alone.
        max_seqlen: with cu_seqlens, at least the longest sequence; spares a GPU blocks that have nothing to do.
        return_entropy: without it entropy is None.

    Returns:
        (out like q, lse, entropy, max_logit), statistics [B, H, T]. out, lse and entropy have gradients (to q, k, v and
        temperature); max_logit has none. An entropy that enters no loss costs the backward pass nothing; detach() one that is
        only watched and kept. A row that sees no key gives 0, -inf, 0, -inf and no gradient. NaN in q stays
        in its row, NaN in k or v in the rows that see the key; on a GPU it may reach others of the same tile.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument. Values of
            key_lengths, query_start, cu_seqlens and temperature are looked at on the CPU alone; on a GPU lengths are bounded and a
            temperature of 0 or below gives NaN.
        NotImplementedError: forward-mode, or a call inside torch.func.grad, vjp, jvp and the like; so in every op here.

    Under autocast q, k and v are cast as scaled_dot_product_attention's are.

    Source: derivation in kernels/entropy_attention.h (centred online entropy and its gradient).
    """
    out, lse, entropy, max_logit, _, _ = _call(
        torch.ops.isentrope.entropy_attention,
        q,
        k,
        v,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        temperature=temperature,
        key_lengths=key_lengths,
        query_start=query_start,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        return_entropy=return_entropy,
    )
    return EntropyAttention(out, lse, entropy if return_entropy else None, max_logit)


# ---- merge_attention_states ------------------------------------------------------------------------------------------


def merge_attention_states(
    out: Tensor, lse: Tensor, entropy: Tensor | None = None, max_logit: Tensor | None = None
) -> EntropyAttention:
    """The attention over the union of disjoint sets of keys, from those over each of them: ring attention, split keys, pages.

    With w_i = exp(lse_i - lse) over the N states::

        lse = log Σ exp(lse_i)    out = Σ w_i out_i    entropy = Σ w_i (entropy_i - log w_i)    max_logit = max max_logit_i

    Args:
        out: [N, ..., D]; states stacked in the first dimension.
        lse, entropy, max_logit: [N, ...]; a state without keys has lse = -inf. entropy and max_logit may be None. The weights are as
            exact as the differences of lse: where it lies at 1e8, float32 has steps of 8.

    Returns:
        The same without N. All but max_logit have gradients. A row that is empty in every state is an empty row.

    Raises:
        ValueError: shapes that do not fit; the message names the argument.
    """
    none = lse.new_empty(0)
    merged = _call(
        torch.ops.isentrope.merge_attention_states,
        out, lse, none if entropy is None else entropy, none if max_logit is None else max_logit
    )
    return EntropyAttention(
        merged[0], merged[1], None if entropy is None else merged[2], None if max_logit is None else merged[3]
    )


# ---- sigma_linear ----------------------------------------------------------------------------------------------------


class SigmaLinear(NamedTuple):
    """What sigma_linear returns."""

    y: Tensor
    sigma: Tensor


def sigma_linear(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    u: Tensor,
    bias: Tensor | None = None,
    *,
    sigma_grad: str = "through",
) -> SigmaLinear:
    """A linear layer whose spectral norm is the learned γ (sigmaReparam); the scale rides on the matrix product.

    ::

        σ = ‖W u‖ = vᵀW u    v = W u / σ         y = (γ / σ) · x Wᵀ + b

    With u and v constant and G = dyᵀx::

        dx = (γ/σ) · dy W    dγ = ⟨G, W⟩ / σ     dW = (γ/σ) · (G - (⟨G, W⟩ / σ) · v uᵀ)    hence ⟨W, dW⟩ = 0

    Args:
        x: [..., in], in weight's dtype.
        weight: [out, in]; float32, bfloat16, float16 or float64. No copy of it is made.
        gamma: [], in weight's dtype or float32.
        u: [in], a unit vector near the first right singular vector of weight, in weight's dtype or float32. It is not changed:
            power_step does that, once after each optimiser step.
        bias: [out] or None.
        sigma_grad: "through": σ is differentiated by weight. "detached": it is a constant, dW = (γ/σ) · G, and σ has no gradient.

    Returns:
        (y [..., out], sigma [] in float32, or float64 for a float64 weight). Where weight @ u is 0, y is the bias, and nothing
        but the bias gets a gradient: a zero weight stays zero. A weight that is not finite gives a sigma and a y that are not.
        Under autocast x, weight and bias are cast as those of torch's linear are.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument.

    Source: arXiv 2303.06296; derivation of the backward pass in kernels/sigma_linear.h.
    """
    y, sigma, _, _ = _call(torch.ops.isentrope.sigma_linear, x, weight, gamma, u, bias, sigma_grad=sigma_grad)
    return SigmaLinear(y, sigma)


# ---- power_step ------------------------------------------------------------------------------------------------------


class PowerStep(NamedTuple):
    """What power_step returns."""

    sigmas: Tensor
    steps: Tensor


def power_step(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    *,
    steps_max: int = 20,
    tolerance: float = 1e-4,
) -> PowerStep:
    """Moves the directions u of all layers towards the first right singular vectors of their weights, in place, in one call.

    One step of a layer, with one read of W::

        σ₋ = ‖W u‖    v = W u / σ₋    σ = ‖Wᵀv‖    u ← Wᵀv / σ         σ₋ ≤ σ ≤ ‖W‖₂

    A layer takes the next step while σ - σ₋ > tolerance · σ, at most steps_max in all. Each layer decides by itself, on the
    device, without host synchronisation.

    Args:
        weights: [out_i, in_i] each; float32, bfloat16, float16 or float64, all of one dtype and on one device.
        us: [in_i] each, in their weight's dtype or float32; overwritten, so that a backward pass that still needs the old ones
            is refused by autograd. Call it once after each optimiser step, not in forward.
        steps_max: at least 1. 20, at which even a first update as large as the weight itself is followed (one step left σ 60 %
            too low there).
        tolerance: 0 or above; with 0 every layer takes steps_max steps. 1e-4: where a second singular value overtakes the first,
            u starts from rest, and a coarser tolerance takes that for the end. In configs/stability/pre.yaml at rate 1e-2, over
            100 updates of 43 layers, 1e-3 left σ more than 3 % low 38 times, one layer for 13 updates on end; 1e-4 five times,
            two on end; 1e-5 four times. Once u has settled one or two steps do at any of them.

    Returns:
        (sigmas [layers] in float32, or float64 for float64 weights, steps [layers] int32 taken). A layer with W u = 0 keeps its
        u and has σ = 0; one that is not finite keeps its u and has σ = NaN. No gradients.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument.

    Source: arXiv 2303.06296, where it is one step; power iteration.
    """
    if not len(weights) and not len(us):
        return PowerStep(torch.empty(0), torch.empty(0, dtype=torch.int32))
    sigmas, steps = _call(torch.ops.isentrope.power_step, list(weights), list(us), steps_max=steps_max, tolerance=tolerance)
    return PowerStep(sigmas, steps)


# ---- token_entropy ---------------------------------------------------------------------------------------------------


class TokenEntropy(NamedTuple):
    """What token_entropy returns, each [N] or [B, T] like target; float32, or float64 for float64 logits."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor


class TokenEntropyMoments(NamedTuple):
    """What token_entropy returns with moments=True."""

    logprob: Tensor
    entropy: Tensor
    lse: Tensor
    sum_p2: Tensor
    sum_p2_logp: Tensor


def token_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    moments: bool = False,
    inplace_backward: bool = False,
) -> TokenEntropy | TokenEntropyMoments:
    """Log-probability of each target, entropy and log-sum-exp of each row, from one read of the logits.

    With s = logits / temperature and p = softmax(s) over the vocabulary, natural logarithms::

        logprob = s[target] - lse        lse = log Σ exp(s)        entropy = -Σ p log p   (nats)
        sum_p2 = Σ p²                    sum_p2_logp = Σ p² log p

    Args:
        logits: [N, V] or [B, T, V]; float32, bfloat16, float16 or float64; V ≥ 1. Leading dimensions may have any
            strides (``logits[:, :-1]`` is not copied); a strided vocabulary is copied once.
        target: [N] or [B, T], int64, on the same device: 0 … V-1, or ignore_index.
        temperature: finite, above 0. To torch.compile a constant, as every float: one that changes by step is compiled anew,
            logits divided by it are not (of linear_token_entropy: hidden, and bias).
        ignore_index: rows with this target are not read; all their outputs are 0 and so is their gradient.
        moments: also return sum_p2 and sum_p2_logp. They carry no gradient.
        inplace_backward: the backward pass writes the gradient over the logits: no memory but O(N) beside them. Whoever
            else needs the logits' values for a gradient, and a second backward pass, get autograd's error about
            in-place modification. The logits must be the result of a computation (not a leaf) whose rows share no
            memory. Under torch.compile it has no effect.

    Returns:
        (logprob, entropy, lse), or (logprob, entropy, lse, sum_p2, sum_p2_logp) with moments, each of target's shape,
        float32 (float64 for float64 logits). logprob, entropy and lse have gradients; second derivatives are refused.

    Logits of -inf have p = 0 and add nothing. A row of nothing else gives logprob = lse = -inf, entropy 0, gradient 0.
    A row with NaN or +inf gives NaN. A row whose incoming gradients are all 0 gets a gradient of 0, whatever it holds.

    Raises:
        ValueError, TypeError: a shape, device, temperature or dtype that is not as above; the message names the argument.
        IndexError: a target out of range, on the CPU. On a GPU its row becomes NaN.

    Source: derivation in kernels/token_entropy.h (centred online entropy).
    """
    logprob, entropy, lse, _, _, sum_p2, sum_p2_logp = _call(
        torch.ops.isentrope.token_entropy,
        logits,
        target,
        temperature=temperature,
        ignore_index=ignore_index,
        moments=moments,
        inplace_backward=inplace_backward,
    )
    if moments:
        return TokenEntropyMoments(logprob, entropy, lse, sum_p2, sum_p2_logp)
    return TokenEntropy(logprob, entropy, lse)


# ---- linear_token_entropy --------------------------------------------------------------------------------------------


def linear_token_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    moments: bool = False,
) -> TokenEntropy | TokenEntropyMoments:
    """token_entropy of the logits of a linear head, which never exist together: they are made block by block of the vocabulary,
    summed up, and made again for the gradient.

    With z = hidden · weightᵀ + bias, where a softcap is given z ← softcap · tanh(z / softcap), s = z / temperature and
    p = softmax(s) over the vocabulary, natural logarithms::

        logprob = s[target] - lse        lse = log Σ exp(s)        entropy = -Σ p log p   (nats)
        sum_p2 = Σ p²                    sum_p2_logp = Σ p² log p

    Args:
        hidden: [N, C] or [B, T, C]; float32, bfloat16, float16 or float64; C ≥ 1.
        weight: [V, C], like hidden; V ≥ 1.
        target: [N] or [B, T], int64, on the same device: 0 … V-1, or ignore_index.
        bias: [V], like hidden.
        softcap: finite, above 0.
        temperature: finite, above 0.
        ignore_index: rows with this target take no part in any product; all their outputs are 0 and so is their gradient.
        moments: also return sum_p2 and sum_p2_logp. They carry no gradient.

    Returns:
        As token_entropy, each of target's shape. logprob, entropy and lse have gradients, to hidden, weight and bias; second
        derivatives are refused. Logits and statistics are float32 for bfloat16 and float16 (float64 for float64).

    Memory beside inputs, outputs and gradients: a block of at most 256 columns of logits, and one of weight; for the gradient of
    hidden in bfloat16 or float16, or where rows are ignored, also its sums, [rows that count, C] in float32. On the CPU the
    bits of results do not depend on the number of threads.

    Rows with logits of -inf, +inf and NaN are as in token_entropy. A row whose incoming gradients are all 0 takes no part in the
    backward pass, whatever it holds.

    Raises:
        ValueError, TypeError: a shape, device, number or dtype that is not as above; the message names the argument.
        IndexError: a target out of range, on the CPU. On a GPU its row becomes NaN.

    Source: derivation in kernels/linear_token_entropy.h.
    """
    logprob, entropy, lse, _, _, sum_p2, sum_p2_logp = _call(
        torch.ops.isentrope.linear_token_entropy,
        hidden,
        weight,
        target,
        bias=bias,
        softcap=softcap,
        temperature=temperature,
        ignore_index=ignore_index,
        moments=moments,
    )
    if moments:
        return TokenEntropyMoments(logprob, entropy, lse, sum_p2, sum_p2_logp)
    return TokenEntropy(logprob, entropy, lse)


# ---- window_entropy --------------------------------------------------------------------------------------------------


class WindowEntropy(NamedTuple):
    """What window_entropy returns."""

    mean: Tensor
    high: Tensor
    threshold: Tensor


_SIDES = {
    "following": lambda w: (0, w - 1),
    "after": lambda w: (-1, w),
    "centred": lambda w: ((w - 1) // 2, w // 2),
    "trailing": lambda w: (w - 1, 0),
}


def window_entropy(
    entropy: Tensor,
    mask: Tensor,
    *,
    window: int = 4,
    side: str = "following",
    partial: str = "drop",
    value: float | None = None,
    quantile: float | None = None,
    top_fraction: float | None = None,
    scope: str = "row",
    at: Tensor | None = None,
) -> WindowEntropy:
    """Mean entropy of the tokens in a window at every token, and the windows where it is high (HWE)::

        mean_t = (1/n_t) Σ_{s in window(t), mask_s} H_s        n_t: how many tokens these are

    A token has a window where its mask is set, `at` is, and n_t is `window` (partial="drop") or above 0 (partial="shrink").
    Work is O(T) a row whatever the window; sums are kept in double, and a value that is not finite stays in its own windows.

    Args:
        entropy: [B, T] nats; float32 or float64 (under autocast any, taken in float32). Not read where mask is 0.
        mask: [B, T], not 0 at the tokens that count.
        window: w, at least 1 token.
        side: "following": the window of t is t … t+w-1. "after": t+1 … t+w, which is ARES' with `at` the places of its trigger
            words. "centred": t-⌊(w-1)/2⌋ … t+⌊w/2⌋. "trailing": t-w+1 … t.
        partial: what becomes of windows with fewer tokens, at ends and beside tokens that do not count: "drop" or "shrink".
        value, quantile, top_fraction: one of them says which windows are high. value: those of at least so many nats.
            quantile (0 to 1; 0.95 where none is given): those at or above it, interpolated linearly between the two nearest
            means, as torch.quantile. top_fraction (above 0, up to 1): the ⌈fraction · number⌉ highest, at least one; of equal
            means those that stand first.
        scope: "row": each row by itself. "global": all rows together. "batch": at or above the mean of the rows' quantiles, over
            rows that have a window; value and quantile.
        at: [B, T], not 0 where windows may be: everywhere if left out. ``torch.isin(tokens, trigger_ids)`` for given tokens.

    Returns:
        (mean [B, T], 0 where there is no window, differentiable by entropy; high [B, T] bool; threshold [B] with scope "row",
        else []: the value, the quantile or the least mean that is taken; infinite where there is no window). Nothing waits for
        the device.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument.

    Source: ARES (arXiv 2510.08457), whose windows follow a token and whose threshold is the 0.95 quantile of a response, averaged
    over the batch: side="following", quantile=0.95, scope="batch".
    """
    levels = {"value": value, "quantile": quantile, "top_fraction": top_fraction}
    given = [(name, level) for name, level in levels.items() if level is not None] or [("quantile", 0.95)]
    if len(given) > 1:
        raise ValueError(f"isentrope::window_entropy: {' and '.join(name for name, _ in given)} are given; wanted one of them")
    if side not in _SIDES:
        raise ValueError(f"isentrope::window_entropy: side is {side!r}; wanted one of {', '.join(_SIDES)}")
    if partial not in ("drop", "shrink"):
        raise ValueError(f"isentrope::window_entropy: partial is {partial!r}; wanted drop or shrink")
    if window < 1:
        raise ValueError(f"isentrope::window_entropy: window is {window}; wanted at least 1")
    before, after = _SIDES[side](window)
    mean, count = _call(torch.ops.isentrope.window_entropy, entropy, mask, at, before=before, after=after, shrink=partial == "shrink")
    (name, level), *_ = given
    high, threshold = _call(torch.ops.isentrope.window_select, mean.detach(), count, threshold=name, level=level, scope=scope)
    return WindowEntropy(mean, high, threshold)


# ---- grpo_select -----------------------------------------------------------------------------------------------------


def grpo_select(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    mode: str,
    seed: int,
    select_fraction: float = 2e-4,
    cov_lower: float = 1.0,
    cov_upper: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float | None = None,
    minimum: int = 1,
) -> Tensor:
    """The tokens that clip_cov and kl_cov treat apart from the rest, chosen by their covariance

    ``c = (advantage - mean(advantage)) * (logprob - mean(logprob))``, means over all tokens that count. Hand over a whole
    update for the global choice, a micro-batch for the local one.

    Args:
        logprob, old_logprob, advantage: [B, T]; float32, bfloat16, float16 (computed in float32) or float64. logprob is of
            the policy that learns, old_logprob of the one that sampled.
        mask: [B, T], bool or number; nonzero where the token counts. What stands elsewhere is never used.
        mode: with n = max(int(select_fraction * tokens), minimum):
            "clip_cov": n at random among cov_lower < c < cov_upper, without those that the clip holds already;
            "kl_cov": the n largest c, compared in float32, ties to the first;
            "random_clip_cov", "random_kl_cov": as many as that mode would choose, at random among all: its control.
        seed: fixes the random choices; with it, the order of the sequences and T, the choice is reproducible on any device
            and any number of threads. A new seed each update gives independent choices.
        select_fraction: in (0, 1].
        cov_lower, cov_upper: the band of clip_cov, both excluded.
        clip_low, clip_high: the clip that clip_cov asks; clip_high defaults to clip_low.
        minimum: tokens chosen even where the fraction makes fewer; 0 lets a small batch choose none.

    Returns:
        [B, T] bool, a constant. As many as there are where fewer than n may be chosen.

    Source: Cui et al., arXiv 2505.22617; kernels/grpo_loss.h.
    """
    return _call(
        torch.ops.isentrope.grpo_select,
        logprob,
        old_logprob,
        advantage,
        mask,
        mode=mode,
        seed=seed,
        select_fraction=select_fraction,
        cov_lower=cov_lower,
        cov_upper=cov_upper,
        clip_low=clip_low,
        clip_high=clip_high,
        minimum=minimum,
    )


# ---- grpo_loss -------------------------------------------------------------------------------------------------------

GRPO_STATS: tuple[str, ...] = tuple(torch.ops.isentrope.grpo_stat_names())


class GrpoLoss(NamedTuple):
    """What grpo_loss returns; float32, or float64 for a float64 logprob, but for stats."""

    loss: Tensor  # []
    token_loss: Tensor  # [B, T], before aggregation; 0 outside the mask
    stats: Tensor  # [len(GRPO_STATS)] float32, in the order of GRPO_STATS; no gradient; [0] without statistics


def grpo_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    selected: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    ref_kl_weight: Tensor | None = None,
    entropy: Tensor | None = None,
    mode: str = "clip",
    aggregate: str = "token-mean",
    clip_low: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    kl_coef: float = 1.0,
    ref_kl: str = "k3",
    ref_kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    normalizer: Tensor | float | None = None,
    statistics: bool = True,
) -> GrpoLoss:
    """A policy loss of the GRPO family, to be minimised, with its statistics; nothing waits for the device.

    With d = logprob - old_logprob (clamped to ±20, no gradient beyond), r = exp(d), A = advantage, the policy term is

    ============ ===========================================================================================
    mode         policy term of a token (clip to [1 - clip_low, 1 + clip_high]; sg: no gradient through it)
    ============ ===========================================================================================
    clip         max(-A r, -A clip(r)); with dual_clip c, at most -A c where A < 0
    clip_higher  the same; clip_high is 0.28 unless given
    clip_cov     max(-A r, -A clip(r)), and 0 on selected tokens
    kl_cov       -A r, plus kl_coef abs(d) on selected tokens; no clip
    gspo         as clip with r = sg[s] exp(logprob - sg[logprob]), s = exp(mean of d over the sequence)
    cispo        -sg[clip(r)] A logprob
    gpg          -A logprob
    ============ ===========================================================================================

    and ``token_loss = policy term + ref_kl_coef * ref_kl_weight * kl - entropy_coef * entropy``.

    Args:
        logprob, old_logprob, advantage: [B, T] as in grpo_select.
        mask: [B, T], bool or number; nonzero where the token counts. What stands elsewhere, NaN too, is never used.
        selected: [B, T] bool, of grpo_select; for clip_cov and kl_cov, which need it. A random selection makes them their
            own control.
        ref_logprob: [B, T] of the reference policy. With a ref_kl_coef of 0, for the statistics alone; so is entropy.
        ref_kl_weight: [B, T], a factor of ref_kl_coef at each token, 1 by default; statistics do not know of it.
        entropy: [B, T] nats.
        aggregate: "token-mean" Σ/tokens; "seq-mean-token-sum" mean over sequences of their sums; "seq-mean-token-mean" mean
            over sequences of their means (what the authors of gspo use); "seq-mean-token-sum-norm" Σ/T. Sequences without a
            token do not count.
        clip_low, clip_high: ≥ 0; clip_high defaults to clip_low.
        dual_clip: above 1; None for none.
        kl_coef: weight of the penalty of kl_cov.
        ref_kl: estimator of the divergence, with Δ = logprob - ref_logprob: "k1" Δ; "k2" Δ²/2; "k3" exp(-Δ) + Δ - 1 (Δ clamped
            to ±20, the value to 10); "k1+", "k3+" those values with the gradient of k2.
        normalizer: one number (a tensor on the device of logprob avoids a copy) that the sum is divided by instead of the
            counts of this call: tokens, sequences (both seq-mean-token-sum and seq-mean-token-mean), or a constant instead
            of T (seq-mean-token-sum-norm). With those of a whole optimiser step the losses and gradients of its
            micro-batches add up to those of the whole.
        statistics: False: stats is empty, and nothing of it is computed; on the CPU a third to a half of the time.

    Returns:
        GrpoLoss(loss, token_loss, stats). loss and token_loss have gradients by logprob and entropy; everything else is a
        constant, second derivatives are refused. No token at all: loss, gradients and stats are 0.

    Raises:
        ValueError, TypeError: a shape, device, dtype, name or range that is not as above; the message names the argument.

    Source: kernels/grpo_loss.h, with the paper of each mode.
    """
    if normalizer is not None and not isinstance(normalizer, Tensor):
        normalizer = torch.full((), float(normalizer), dtype=torch.float64, device=logprob.device)
    loss, token_loss, stats, _, _ = _call(
        torch.ops.isentrope.grpo_loss,
        logprob,
        old_logprob,
        advantage,
        mask,
        selected=selected,
        ref_logprob=ref_logprob,
        ref_kl_weight=ref_kl_weight,
        entropy=entropy,
        normalizer=normalizer,
        mode=mode,
        aggregate=aggregate,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coef=kl_coef,
        ref_kl=ref_kl,
        ref_kl_coef=ref_kl_coef,
        entropy_coef=entropy_coef,
        statistics=statistics,
    )
    return GrpoLoss(loss, token_loss, stats)


def grpo_combine_stats(stats: Tensor) -> Tensor:
    """stats [calls, len(GRPO_STATS)] of the micro-batches of a step → [len(GRPO_STATS)], as of one call over all of them.

    cov/max, and what depends on a selection, stay about each micro-batch's own means and choice.
    """
    return _call(torch.ops.isentrope.grpo_combine_stats, stats)
