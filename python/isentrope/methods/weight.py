"""A factor [B, T] of each token's policy term."""

from __future__ import annotations

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call


def top_entropy(entropy: Tensor, mask: Tensor, *, fraction: float = 0.2) -> Tensor:
    """1 on the max(1, round(fraction · tokens)) tokens of highest entropy, 0 elsewhere; exact, equal entropies in order of rows and
    positions, NaN highest. Hand over a whole update.

    Args:
        entropy: [B, T] nats, of the policy that learns; float32 or float64.
        mask: [B, T] bool or number.
        fraction: in (0, 1].

    Returns:
        [B, T] of entropy's dtype, to multiply the advantage with; the tokens at 0 keep their place in denominators.

    Source: arXiv 2506.01939 (the 20 % of tokens of highest entropy); csrc/methods/top_entropy.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_top_entropy, entropy, mask, fraction=fraction)
    return factor


def random(selected: Tensor, mask: Tensor, *, seed: int) -> Tensor:
    """As many tokens as are selected, drawn at random among those that count: the control of a selection. Hand over what was selected in.

    Args:
        selected: [B, T] bool or number, not 0 where isentrope.grpo_select has chosen.
        mask: [B, T] bool or number.
        seed: of the draws, which are a function of it and of the mask alone.

    Returns:
        [B, T] bool, to be given to isentrope.grpo_loss as selected.

    Source: the control of arXiv 2505.22617; csrc/methods/random.h.
    """
    drawn: Tensor = call(torch.ops.isentrope.method_random, selected, mask, seed=seed)
    return drawn


def entropy_sft(logprob: Tensor, entropy: Tensor, mask: Tensor, *, fraction: float = 0.8, lambda_entropy: float = 0.8) -> Tensor:
    """The tokens that are not among the max(1, ⌊fraction · tokens⌋) of highest -logprob - lambda_entropy · entropy; exact, equal scores
    in order of rows and positions, NaN highest. Hand over a whole update: the loss is the mean cross-entropy of the others.

    Args:
        logprob: [B, T] of the targets, of the model that learns; float32 or float64.
        entropy: [B, T] nats, of the same model.
        mask: [B, T] bool or number.
        fraction: in (0, 1]; 1 has no effect.
        lambda_entropy: 0: those of highest cross-entropy.

    Returns:
        [B, T] bool, tokens that leave the mask and so the denominators.

    Source: Entropy-SFT of Light-IF, arXiv 2508.03178; Qihoo360/Light-IF, where the tokens are chosen in a micro-batch;
    csrc/methods/top_entropy.h.
    """
    removed: Tensor = call(torch.ops.isentrope.method_entropy_sft, logprob, entropy, mask, fraction=fraction, lambda_entropy=lambda_entropy)
    return removed


def random_tokens(entropy: Tensor, mask: Tensor, *, fraction: float = 0.2, seed: int = 1, update: int = 0) -> Tensor:
    """1 on max(1, round(fraction · tokens)) tokens drawn at random, all choices of as many equally likely, 0 elsewhere: the control of
    top_entropy and its like. The same for the same shape, mask, fraction, seed and update, whatever the entropy.

    Args:
        entropy: [B, T]; float32 or float64. Its shape and dtype alone are used.
        mask: [B, T] bool or number.
        fraction: in (0, 1].
        seed: fixes the draws.
        update: number of the update, whose draw is one of its own.

    Returns:
        [B, T] of entropy's dtype, to multiply the advantage with; the tokens at 0 keep their place in denominators.

    Source: ours; csrc/methods/random_tokens.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_random_tokens, entropy, mask, fraction=fraction, seed=seed, update=update)
    return factor


def surprisal_band(logprob: Tensor, entropy: Tensor, mask: Tensor, *, low: float = 0.1, high: float = 3.0) -> Tensor:
    """1 where low ≤ -logprob / entropy ≤ high, else 0. Where the entropy is 0 the quotient is 0 for a surprisal of 0 and infinite for any
    other; a token whose log-prob or entropy is NaN has 0.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        entropy: [B, T] nats, of the same policy.
        mask: [B, T] bool or number.
        low: at least 0, which is no bound.
        high: at least low; may be infinite.

    Returns:
        [B, T] of logprob's dtype, to multiply the advantage with; the tokens at 0 keep their place in denominators.

    Source: arXiv 2606.31575 (Relative Surprisal Index); csrc/methods/surprisal_band.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_surprisal_band, logprob, entropy, mask, low=low, high=high)
    return factor


def entropy_ratio_band(entropy: Tensor, old_entropy: Tensor, mask: Tensor, *, low: float = 0.95, high: float = 1.05) -> Tensor:
    """1 where low < (entropy + 1e-8) / (old_entropy + 1e-8) < high, else 0, where either is NaN too.

    Args:
        entropy: [B, T] nats, of the policy that learns; float32 or float64.
        old_entropy: [B, T] nats, of the policy that drew the tokens.
        mask: [B, T] bool or number.
        low: at least 0, itself outside.
        high: above low, itself outside; may be infinite.

    Returns:
        [B, T] of entropy's dtype, to multiply the advantage with; the tokens at 0 keep their place in denominators.

    Source: arXiv 2512.05591 (entropy ratio clipping), Kwai-Klear/ERC, whose configuration has 0.8 and 1.2 and whose runs have 0.95 and
    1.05; csrc/methods/entropy_ratio_band.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_entropy_ratio_band, entropy, old_entropy, mask, low=low, high=high)
    return factor


def steer(
    logprob: Tensor,
    old_logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    form: str = "linear",
    low: float = 0.8,
    high: float = 1.2,
    power: int = 2,
) -> Tensor:
    """By the change of entropy that a token's update predicts, Ω = A / π_old · π (1 - π)^power (log π + H): with m the least and M the
    greatest abs Ω among the tokens that count,

        linear:       high - (high - low) (abs Ω - m) / (M - m), and (low + high) / 2 where M = m
        exponential:  max(low, exp(-k abs Ω)), k = -log(low) / max(M, 0.02)

    Log-probs are held between log 1e-8 and 0, and a change that is not finite counts as 0. Hand over a whole update.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        old_logprob: [B, T] of the policy that drew them.
        entropy: [B, T] nats, of the policy that learns.
        advantage: [B, T].
        mask: [B, T] bool or number.
        form: "linear" or "exponential".
        low: at least 0; exponential: 1e-6 to 1.
        high: at least low; exponential: not used.
        power: 2, or 1 as the newest released code has it.

    Returns:
        [B, T] of logprob's dtype, to multiply the advantage with; 0 where mask is.

    Source: arXiv 2510.10150 (STEER), zz-haooo/STEER, where m and M are those of a micro-batch; csrc/methods/steer.h.
    """
    factor: Tensor = call(
        torch.ops.isentrope.method_steer, logprob, old_logprob, entropy, advantage, mask, form=form, low=low, high=high, power=power
    )
    return factor


def stare(
    logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    target: float = 0.3,
    fraction: float = 0.1,
    up: float = 1.1,
    down: float = 1.0,
) -> Tensor:
    """While the mean entropy is below target: up on the most surprising ⌈fraction · n⌉ of the n tokens with a positive advantage, down on
    those of the tokens with a negative one, 1 on the others; 1 on all while it is not. Exact, equal log-probs in order of rows and
    positions. Hand over a whole update.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        entropy: [B, T] nats, of the same policy.
        advantage: [B, T].
        mask: [B, T] bool or number.
        target: nats.
        fraction: in (0, 1].
        up: at least 0.
        down: at least 0; 1 is the published one-sided form (O1), 0.9 the two-sided one (C2).

    Returns:
        [B, T] of logprob's dtype, to multiply the advantage with; 0 where mask is.

    Source: arXiv 2606.19236 (STARE), hp-luo/STARE, where the tokens are chosen in a micro-batch; csrc/methods/stare.h.
    """
    factor: Tensor = call(
        torch.ops.isentrope.method_stare, logprob, entropy, advantage, mask, target=target, fraction=fraction, up=up, down=down
    )
    return factor


def soft_window(entropy: Tensor, advantage: Tensor, mask: Tensor, *, window: int = 101) -> Tensor:
    """n e_t / Σ e on tokens with a positive advantage, 1 on the others: e_t = exp H_t / Σ of exp H_k over the tokens at most window / 2
    positions away, n and Σ over the row's tokens that count. The mean factor of a row whose advantages are positive is 1.

    Args:
        entropy: [B, T] nats, of the policy that learns; float32 or float64.
        advantage: [B, T], positive for right answers.
        mask: [B, T] bool or number.
        window: at least 1, which has no effect.

    Returns:
        [B, T] of entropy's dtype, to multiply the advantage with; 0 where mask is.

    Source: arXiv 2609.39402 (PEPO); csrc/methods/soft_window.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_soft_window, entropy, advantage, mask, window=window)
    return factor


def attention_entropy(attention: Tensor, mask: Tensor, *, coef: float = -0.5) -> Tensor:
    """max(0, 1 + coef (e - mean e)) of the entropy e of a token's attention row, the mean over all tokens that count. Hand over a whole
    update.

    Args:
        attention: [B, T] entropy of the token's attention at one layer over the logarithm of its number of keys, mean over heads
            (isentrope.entropy_attention returns the entropy of each head); float32 or float64.
        mask: [B, T] bool or number.
        coef: below 0 it favours concentrated attention, above 0 wide attention; 0 has no effect.

    Returns:
        [B, T] of attention's dtype, to multiply the advantage with; 0 where mask is.

    Source: arXiv 2605.07660 weights softly by this entropy, by a schedule of its own; the linear form here is ours.
    csrc/methods/attention_entropy.h.
    """
    factor: Tensor = call(torch.ops.isentrope.method_attention_entropy, attention, mask, coef=coef)
    return factor


def clip_b(
    logprob: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    mu_low: float = 2.5,
    mu_high: float | None = None,
    signs: str = "neg",
    max_frac: float = 1.0,
) -> Tensor:
    """The tokens whose p (H + log p) lies more than mu_low standard deviations below the mean of the tokens that count, or more than
    mu_high above it. Hand over a whole update.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        entropy: [B, T] nats, of the same policy.
        advantage: [B, T].
        mask: [B, T] bool or number.
        mu_low: at least 0; infinite: no bound.
        mu_high: at least 0; None: no bound, as in the released code.
        signs: whose advantage is looked at: "neg" (below 0), "pos", "both".
        max_frac: above 0 to 1: where a larger share would go, only the max(1, ⌊max_frac · tokens⌋) farthest do.

    Returns:
        [B, T] bool, tokens that leave the mask and so the denominators.

    Source: Clip_B, arXiv 2602.03392; csrc/methods/entropy_discriminator.h.
    """
    removed: Tensor = call(
        torch.ops.isentrope.method_clip_b,
        logprob,
        entropy,
        advantage,
        mask,
        mu_low=mu_low,
        mu_high=mu_high,
        signs=signs,
        max_frac=max_frac,
    )
    return removed


def clip_v(
    logprob: Tensor,
    entropy: Tensor,
    sum_p2: Tensor,
    sum_p2_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    mu_low: float = 8.5,
    mu_high: float | None = None,
    signs: str = "neg",
    max_frac: float = 1e-4,
) -> Tensor:
    """The same, of the distance of p (H + log p) from its mean under the policy at that position, H Σ p² + Σ p² log p, in standard
    deviations of these distances.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        entropy: [B, T] nats, of the same policy.
        sum_p2, sum_p2_logp: [B, T] Σ p² and Σ p² log p over the vocabulary of that policy (token_entropy with moments=True).
        advantage: [B, T].
        mask: [B, T] bool or number.
        mu_low, mu_high, signs, max_frac: as in clip_b.

    Returns:
        [B, T] bool, tokens that leave the mask and so the denominators.

    Source: Clip_V, arXiv 2602.03392 (the released class has mu 2, its configuration 8.5); csrc/methods/entropy_discriminator.h.
    """
    removed: Tensor = call(
        torch.ops.isentrope.method_clip_v,
        logprob,
        entropy,
        sum_p2,
        sum_p2_logp,
        advantage,
        mask,
        mu_low=mu_low,
        mu_high=mu_high,
        signs=signs,
        max_frac=max_frac,
    )
    return removed


def divergence_mask(
    logprob: Tensor,
    old_logprob: Tensor,
    sum_p2: Tensor,
    old_sum_p2: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    delta: float = 0.15,
    divergence: str = "tv",
) -> Tensor:
    """0 where the divergence of the token's probability π from μ, that of the policy that drew, is above delta and a step of the policy
    gradient would raise that of the whole distribution: A (π - μ - (Σ π² - Σ μ²) / 2) > 0. 1 elsewhere.

    Args:
        logprob: [B, T] of the tokens, of the policy that learns; float32 or float64.
        old_logprob: [B, T] of the policy that drew them.
        sum_p2, old_sum_p2: [B, T] Σ p² over the vocabulary of either policy (token_entropy with moments=True).
        advantage: [B, T].
        mask: [B, T] bool or number.
        delta: at least 0.
        divergence: "tv", abs(π - μ), or "kl", that of the token against all others.

    Returns:
        [B, T] of logprob's dtype, to multiply the advantage with; the tokens at 0 keep their place in denominators.

    Source: after arXiv 2607.10848; what is ours in it stands in csrc/methods/divergence_mask.h.
    """
    factor: Tensor = call(
        torch.ops.isentrope.method_divergence_mask,
        logprob,
        old_logprob,
        sum_p2,
        old_sum_p2,
        advantage,
        mask,
        delta=delta,
        divergence=divergence,
    )
    return factor
