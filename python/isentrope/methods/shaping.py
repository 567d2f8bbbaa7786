"""Advantages [B, T] that others have made, changed token by token. Entropies and log-probabilities are of the policy that drew. Hand over a
whole step: what is taken over groups, steps or tokens is taken over what is handed over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import call


def entropy_advantage(advantage: Tensor, entropy: Tensor, mask: Tensor, *, alpha: float = 0.4, kappa: float = 2.0) -> Tensor:
    """A + min(alpha · H, abs A / kappa): tokens at which the policy hesitated gain, and no sign changes.

    Args:
        advantage: [B, T] float32 or float64.
        entropy: [B, T] nats.
        mask: [B, T] bool or number.
        alpha: at least 0, which has no effect.
        kappa: above 1.

    Returns:
        [B, T] of advantage's dtype; 0 where mask is.

    Source: arXiv 2506.14758 (alpha 0.4, kappa 2); csrc/methods/entropy_advantage.h.
    """
    made: Tensor = call(torch.ops.isentrope.method_entropy_advantage, advantage, entropy, mask, alpha=alpha, kappa=kappa)
    return made


def perplexity(
    advantage: Tensor, logprob: Tensor, mask: Tensor, group: Tensor, *, alpha: float = 0.01, low: float = 0.8, high: float = 1.2
) -> Tensor:
    """A · clip(1 - alpha · w, low, high), with w how many standard deviations a row's log-perplexity lies above the mean of its group;
    mean and deviation (population, 1 where it is at most 1e-6) over the rows within 1.5 quartile distances of the quartiles.

    Args:
        advantage: [B, T] float32 or float64.
        logprob: [B, T] of the tokens.
        mask: [B, T] bool or number.
        group: [B] integer, rising: the prompt of each completion.
        alpha: above 0 favours low perplexity, below it high perplexity; 0 has no effect.
        low, high: 0 to 1, and at least 1.

    Returns:
        [B, T] of advantage's dtype; 0 where mask is. A row of a log-perplexity that is not finite keeps its advantages.

    Source: arXiv 2508.02260; in the code of RUCAIBox the branch for low perplexity computes the factor and does not multiply it in.
    csrc/methods/perplexity.h.
    """
    made: Tensor = call(torch.ops.isentrope.method_perplexity, advantage, logprob, mask, group, alpha=alpha, low=low, high=high)
    return made


def position(advantage: Tensor, mask: Tensor, *, gamma: float = 0.1, slope: float = 15.0, centre: float = 0.5, cap: float = 0.5) -> Tensor:
    """A + sign(A) · min(gamma · σ(slope · (ρ - centre)), cap · abs A), ρ = t / n of the position t in a row whose last token that counts
    is number n - 1.

    Args:
        advantage: [B, T] float32 or float64.
        mask: [B, T] bool or number.
        gamma: at least 0, which has no effect.
        slope: of the logistic function.
        centre: where half of gamma is added; 0.5 in the released code, 0 if the paper's r is ρ.
        cap: at least 0.

    Returns:
        [B, T] of advantage's dtype; 0 where mask is.

    Source: arXiv 2508.02260, whose runs use it from step 200 to 300; csrc/methods/position.h.
    """
    made: Tensor = call(torch.ops.isentrope.method_position, advantage, mask, gamma=gamma, slope=slope, centre=centre, cap=cap)
    return made


def repo(
    advantage: Tensor,
    logprob: Tensor,
    entropy: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.01,
    form: str = "decorrelate",
    centre: str = "state",
) -> Tensor:
    """Likely tokens lose and unlikely ones gain:

        decorrelate:  A - beta · L, L = ℓ + H with centre "state", ℓ - mean ℓ with centre "batch"
        rescale:      max(0, A (1 - beta ℓ)) where A > 0, min(0, A (1 + beta ℓ)) where A < 0

    Args:
        advantage: [B, T] float32 or float64.
        logprob: [B, T], ℓ.
        entropy: [B, T] nats, H.
        mask: [B, T] bool or number.
        beta: of any sign; 0 has no effect.
        form: "decorrelate" or "rescale" (REPO-R, whose zeta beta is).
        centre: "state" or "batch", of form "decorrelate".

    Returns:
        [B, T] of advantage's dtype; 0 where mask is. A token whose logprob is not finite keeps its advantage, and is in no mean.

    Source: arXiv 2603.11682, which steers beta to the entropy at the start; csrc/methods/repo.h.
    """
    made: Tensor = call(torch.ops.isentrope.method_repo, advantage, logprob, entropy, mask, beta=beta, form=form, centre=centre)
    return made


class GepoOutput(NamedTuple):
    """What gepo returns."""

    advantage: Tensor  # [B, T] of advantage's dtype
    state: Tensor  # [2] float64: the bounds for the next step


def gepo(
    advantage: Tensor,
    h: Tensor,
    mask: Tensor,
    group: Tensor,
    state: Tensor,
    *,
    low: float = 0.5,
    high: float = 0.2,
    spread_low: float = 0.2,
    spread_high: float = 0.3,
    rate: float = 0.01,
) -> GepoOutput:
    """low · A where A > 0 and the group's mean h is below the lower bound, high · A where A < 0 and it is above the upper one. After the
    step the bounds move by rate towards μ - spread_low σ and μ + spread_high σ of the groups' means; in the first step they are these.

    Args:
        advantage: [B, T] float32 or float64.
        h: [B, T] -logprob of the tokens (the paper's estimate), or their entropies; nats.
        mask: [B, T] bool or number.
        group: [B] integer, rising: the prompt of each completion.
        state: [2] float64, lower and upper bound; torch.full((2,), nan) before the first step.
        low, high: 0 to 1, which has no effect.
        spread_low, spread_high: standard deviations.
        rate: 0 to 1.

    Returns:
        advantage [B, T], 0 where mask is, and state [2]. A group whose mean h is not finite keeps its advantages, and is in no bound.

    Source: arXiv 2607.16850; csrc/methods/gepo.h.
    """
    options = {"low": low, "high": high, "spread_low": spread_low, "spread_high": spread_high, "rate": rate}
    return GepoOutput(*call(torch.ops.isentrope.method_gepo, advantage, h, mask, group, state, **options))


def empg(
    advantage: Tensor,
    entropy: Tensor,
    mask: Tensor,
    step: Tensor,
    *,
    k: float = 1.0,
    future_k: float = 1.0,
    zeta: float = 0.1,
    centre: str = "steps",
) -> Tensor:
    """A · g + zeta · exp(-future_k · h of the row's next step), less the mean over steps: h is a step's mean entropy between the least (0)
    and the greatest (1) of all steps, g = exp(-k h) over its mean. A row's last step has no second term.

    Args:
        advantage: [B, T] float32 or float64.
        entropy: [B, T] nats.
        mask: [B, T] bool or number; tokens of tools and observations are 0 there, and of no step.
        step: [B, T] integer: the step of each token (a turn of an agent, a line), rising in a row.
        k, future_k, zeta: at least 0.
        centre: whose mean is taken away: "steps", "tokens", or "none".

    Returns:
        [B, T] of advantage's dtype; 0 where mask is.

    Source: EMPG, arXiv 2509.09265; csrc/methods/empg.h.
    """
    made: Tensor = call(
        torch.ops.isentrope.method_empg, advantage, entropy, mask, step, k=k, future_k=future_k, zeta=zeta, centre=centre
    )
    return made


def turn_credit(
    advantage: Tensor,
    reward: Tensor,
    mask: Tensor,
    turn: Tensor,
    group: Tensor,
    *,
    coef: float = 1.0,
    discount: float = 1.0,
    normalize: str = "turn",
    eps: float = 1e-6,
) -> Tensor:
    """A + coef (G_k - mean) / (std + eps) on the tokens of turn k, G_k = sum over j ≥ k of discount^(j - k) · reward of turn j.

    Args:
        advantage: [B, T] float32 or float64.
        reward: [B, K] float32 or float64, of each turn of the conversation; NaN behind a row's last turn.
        mask: [B, T] bool or number; tokens of tools and observations are 0 there.
        turn: [B, T] integer: of each token the number of its turn, from 0.
        group: [B] integer, rising: rows of one prompt.
        coef: at least 0, which changes nothing.
        discount: 0, a turn has its own reward alone as in the paper, to 1.
        normalize: what mean and std (n - 1) are of: "turn", the group's turns of the same number; "group", all of its turns; or "none",
            neither is used. Values that are equal up to rounding, or one alone, add nothing.
        eps: added to std.

    Returns:
        [B, T] of advantage's dtype; 0 where mask is.

    Source: turn-level credit assignment, arXiv 2505.11821; csrc/methods/turn_credit.h.
    """
    made: Tensor = call(
        torch.ops.isentrope.method_turn_credit,
        advantage,
        reward,
        mask,
        turn,
        group,
        coef=coef,
        discount=discount,
        normalize=normalize,
        eps=eps,
    )
    return made


def hicra(advantage: Tensor, planning: Tensor, mask: Tensor, *, alpha: float = 0.2) -> Tensor:
    """A + alpha · abs A on planning tokens.

    Args:
        advantage: [B, T] float32 or float64; the paper's is the reward less its group's mean (dr_grpo).
        planning: [B, T] bool or number: the tokens of strategic grams (isentrope.grams.find says where a text has them).
        mask: [B, T] bool or number.
        alpha: 0, which has no effect, to 1.

    Returns:
        [B, T] of advantage's dtype; 0 where mask is.

    Source: HICRA, arXiv 2509.03646; csrc/methods/hicra.h.
    """
    made: Tensor = call(torch.ops.isentrope.method_hicra, advantage, planning, mask, alpha=alpha)
    return made
