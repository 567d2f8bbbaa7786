"""Windows of high entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from isentrope import _library  # noqa: F401  registers torch.ops.isentrope
from isentrope.ops.call import INTEGER, NUMBER, call, wrong_type
from isentrope.ops.numbers import numbers_of


class WindowEntropyOutput(NamedTuple):
    """What window_entropy returns."""

    mean: Tensor
    high: Tensor
    threshold: Tensor


# How many tokens before and behind its own a window of w has: the sides of csrc/ops/window_entropy.cpp.
_SIDES: dict[str, Callable[[int], tuple[int, int]]] = {
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
) -> WindowEntropyOutput:
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
        else []: the value; the quantile or the least mean that is taken, infinite where there is no window). Nothing waits for
        the device.

    Raises:
        ValueError, TypeError: a shape, dtype, device or option that is not as above; the message names the argument.

    Source: ARES (arXiv 2510.08457), whose windows follow a token and whose threshold is the 0.95 quantile of a response, averaged
    over the batch: side="following", quantile=0.95, scope="batch".
    """
    levels = {"value": value, "quantile": quantile, "top_fraction": top_fraction}
    if not isinstance(window, INTEGER):
        raise wrong_type("window_entropy", "window", window, "an integer")
    for name, text in {"side": side, "partial": partial, "scope": scope}.items():
        if not isinstance(text, str):
            raise wrong_type("window_entropy", name, text, "a string")
    for name, level in levels.items():
        if level is not None and not isinstance(level, NUMBER):
            raise wrong_type("window_entropy", name, level, "a number, or None")
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
    mean, count = call(torch.ops.isentrope.window_entropy, entropy, mask, at, before=before, after=after, shrink=partial == "shrink")
    (name, level), *_ = given
    high, threshold = call(torch.ops.isentrope.window_select, mean.detach(), count, threshold=name, scope=scope, **numbers_of(level=level))
    return WindowEntropyOutput(mean, high, threshold)
