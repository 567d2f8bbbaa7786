"""Rules about every phase: gradients, the loss, attention, spectral norms, evaluations. Thresholds and their reasons stand in table.py."""

from __future__ import annotations

import math

import numpy as np

from isentrope.doctor.columns import LEAST, Column, NotJudged, Phase
from isentrope.doctor.policy import CONFIDENCE, FLAT, binomial, span
from isentrope.doctor.rule import Evidence, percent, times, told

SPIKE, SPIKE_STEPS = 10.0, 20
COLLAPSED, COLLAPSED_HEADS = 0.05, 0.25
SIGMA = 0.05
WORSE, STEEPER, FELL, BURST = 0.1, 10.0, 0.2, 10.0
STILL, STILL_STEPS = 0.01, 40
KEPT = 0.05
MOVED = 1e-5


def not_finite(phase: Phase) -> Evidence | None:
    lost = {name: column for name, column in phase.columns.items() if not np.isfinite(column.values).all()}
    if not lost:
        phase.column("loss", 1)
        return None
    steps = sorted({float(step) for column in lost.values() for step in column.steps[~np.isfinite(column.values)]})
    name = "loss" if "loss" in lost else next(iter(lost))
    names = ", ".join(list(lost)[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
    key = phase.path("optimizer.lr")
    figure = f"not finite in {len(steps)} step{'s' if len(steps) > 1 else ''}: {names}"
    cause = "numbers overflow: updates too large, or a dtype too narrow (model.compute)"
    return Evidence(int(steps[0]), int(steps[-1]), figure, cause, key, times(phase.setting(key), 0.3, "smaller"), name, lost[name])


def gradient_spikes(phase: Phase) -> Evidence | None:
    norm = phase.column("grad_norm", SPIKE_STEPS + LEAST)
    norm = Column(norm.steps[norm.values > 0], norm.values[norm.values > 0])  # steps without gradient (flat groups) are no measure
    if len(norm) < SPIKE_STEPS + LEAST:
        raise NotJudged(f"needs grad_norm above 0 in {SPIKE_STEPS + LEAST} steps, {len(norm)} have it")
    usual = np.median(np.lib.stride_tricks.sliding_window_view(norm.values, SPIKE_STEPS)[:-1], axis=1)
    late = Column(norm.steps[SPIKE_STEPS:], norm.values[SPIKE_STEPS:])
    high = late.values > SPIKE * usual
    if not high.any():
        return None
    worst = int(np.argmax(late.values / usual))
    steps = late.steps[high]
    figure = (f"grad_norm {told(float(late.values[worst]))} at step {late.steps[worst]:.0f}, {told(float(late.values[worst] / usual[worst]))} times "
              f"the median of the {SPIKE_STEPS} steps before; {high.sum()} such step{'s' if high.sum() > 1 else ''}")  # fmt: skip
    key = phase.path("optimizer.max_grad_norm")
    clip = phase.number("optimizer.max_grad_norm", 0.0)
    value = told(float(np.median(usual)))
    cause = "single batches turn the update; nothing bounds their gradient"
    if 0 < clip <= SPIKE * np.median(usual):
        key, value = phase.path("optimizer.lr"), times(phase.setting(phase.path("optimizer.lr")), 0.3, "smaller")
        cause = "single batches turn the update; the gradient is clipped, so that the rate is what is left to lower"
    return Evidence(int(steps[0]), int(steps[-1]), figure, cause, key, value, "grad_norm", norm, SPIKE * float(np.median(usual)))


def attention_collapse(phase: Phase) -> Evidence | None:
    seen = phase.attention
    if seen is None:
        raise NotJudged(f"needs attention_entropy: {phase.path('objective.attention_entropy')}: {{every: 10}}")
    late = seen.quarter()
    known = np.isfinite(late.values)
    count = known.sum(0)
    if not count.any():
        raise NotJudged("needs attention_entropy that is finite")
    means = np.where(known, late.values, 0).sum(0) / np.maximum(count, 1)  # [L, H]
    low = (means < COLLAPSED) & (count > 0)
    layers = np.flatnonzero(low.mean(1) >= COLLAPSED_HEADS)
    if not len(layers):
        return None
    lowest = np.where(np.isfinite(seen.values), seen.values, np.inf).mean(2).min(1)  # of the layers, by measurement
    heads = ", ".join(str(layer) for layer in layers[:6]) + (", …" if len(layers) > 6 else "")
    figure = (f"{low.sum()} of {low.size} heads below {COLLAPSED} of log n in the last quarter; layer{'s' if len(layers) > 1 else ''} "
              f"{heads}, the least mean of a layer {told(float(lowest[-1]))}")  # fmt: skip
    key, value = "model.sigma_reparam.layers", "all"
    cause = "logits of attention have grown without bound: each query sees one key, and its gradient is gone"
    if phase.setting(key) not in ("", "[]", '["none"]'):
        key = phase.path("optimizer.lr")
        value = times(phase.setting(key), 0.3, "smaller")
    picture = Column(seen.steps, np.where(np.isfinite(lowest), lowest, np.nan))
    return Evidence(*span(seen), figure, cause, key, value, "least mean of a layer's heads, entropy / log n", picture, COLLAPSED)


def sigma_error(phase: Phase) -> Evidence | None:
    if not phase.sigma:
        raise NotJudged("needs sigma: model.sigma_reparam")
    errors: dict[str, Column] = {}
    for layer, column in phase.sigma.items():
        true = column.values[:, 2]
        there = np.isfinite(true) & (true > 0) & np.isfinite(column.values[:, 0])
        if there.any():
            errors[layer] = Column(column.steps[there], np.abs(column.values[there, 0] / true[there] - 1))
    if not errors:
        raise NotJudged("needs the true norm in sigma: model.sigma_reparam.svd: true")
    worst = max(errors, key=lambda layer: float(errors[layer].values.max()))
    column = errors[worst]
    off = column.values > SIGMA
    if not off.any():
        return None
    steps = column.steps[off]
    figure = (f"σ of {worst} is off by {percent(float(column.values.max()))} of the true norm, in {off.sum()} of {len(column)} measurements by "
              f"more than {percent(SIGMA)}; {sum((e.values > SIGMA).any() for e in errors.values())} of {len(errors)} layers")  # fmt: skip
    key = "model.sigma_reparam.steps_max"
    value = times(phase.setting(key), 5, "100")
    if phase.setting(key).isdecimal() and int(phase.setting(key)) >= 20:
        key, value = "model.sigma_reparam.tolerance", "1e-05, with steps_max: 100"
    cause = "power steps end before they have found the norm, and layers act larger or smaller than γ says"
    return Evidence(int(steps[0]), int(steps[-1]), figure, cause, key, value, f"error of σ of {worst}", column, SIGMA)


def rate_too_high(phase: Phase) -> Evidence | None:
    key = phase.path("optimizer.lr")
    value = times(phase.setting(key), 0.3, "smaller")
    cause = "updates too large: what was learnt is lost again"
    if phase.kind == "grpo":
        reward = phase.column("reward/mean")
        trail = reward.trailing()
        best = int(trail.values.argmax())
        top, now = float(trail.values[best]), float(trail.values[-1])
        noise = 3 * reward.jitter()
        if top > 0 and top - now > max(FELL * top, noise):
            figure = f"reward/mean fell from {told(top)} to {told(now)} (means of a tenth of the steps)"
            return Evidence(int(trail.steps[best]), int(trail.steps[-1]), figure, cause, key, value, "reward/mean", reward)
    else:
        burst = phase.some("loss", 2)
        if burst is not None and (high := burst.values > BURST * abs(burst.values[0])).any():
            steps = burst.steps[high]
            figure = f"loss {told(float(burst.values.max()))} nats, {told(float(burst.values[0]))} at the first step"
            return Evidence(int(steps[0]), int(steps[-1]), figure, cause, key, value, "loss", burst, BURST * abs(float(burst.values[0])))
        loss = phase.column("loss")
        trail = loss.trailing()
        best = int(trail.values.argmin())
        least, now = float(trail.values[best]), float(trail.values[-1])
        noise = 3 * loss.jitter()
        if now - least > max(WORSE * abs(least), noise):
            figure = f"loss rose from {told(least)} to {told(now)} nats (means of a tenth of the steps)"
            return Evidence(int(trail.steps[best]), int(trail.steps[-1]), figure, cause, key, value, "loss", loss, least + WORSE * abs(least))
    norm = phase.some("grad_norm", LEAST)
    if norm is not None:
        before, after = norm.part(0.1, 0.25).median(), norm.tail().median()
        if before > 0 and after > STEEPER * before:
            figure = f"grad_norm grew from {told(before)} to {told(after)} (medians of an early part and of the last tenth)"
            return Evidence(*span(norm), figure, cause, key, value, "grad_norm", norm, STEEPER * before)
    return None


def idle(phase: Phase) -> Evidence | None:
    key = phase.path("optimizer.lr")
    if phase.kind == "grpo":
        reward, entropy = phase.column("reward/mean", 2 * LEAST), phase.column("entropy/mean", 2 * LEAST)
        flat = phase.some("groups/flat", LEAST)
        if flat is not None and flat.mean() >= FLAT:
            return None  # there is nothing to learn from: dead groups
        gain = reward.part(0.66, 1.0).mean() - reward.part(0.0, 0.34).mean()
        noise = CONFIDENCE * math.hypot(reward.part(0.66, 1.0).error(), reward.part(0.0, 0.34).error())
        before, after = entropy.head().mean(), entropy.tail().mean()
        drift = phase.some("kl/k3", LEAST)
        moved = drift is not None and drift.median() > MOVED
        right = phase.right()
        if abs(gain) > noise or abs(after - before) > KEPT * before or moved or (right is not None and right >= 0.95):
            return None
        figure = (f"reward/mean changed by {told(gain)}, no more than its noise ({told(noise)}), entropy/mean from {told(before)} to {told(after)} nats")
        if drift is not None:
            figure += f", kl/k3 {told(drift.median())}"
        return Evidence(*span(reward), figure, "the policy stays where it was: the rate is too low", key,
                        times(phase.setting(key), 10, "larger"), "reward/mean", reward)  # fmt: skip
    loss = phase.column("loss", STILL_STEPS)
    start, second, last = loss.part(0.0, 0.05).mean(), loss.part(0.25, 0.5).mean(), loss.quarter().mean()
    if second - last > STILL * abs(second) or last < KEPT * start or last - second > WORSE * abs(second):
        return None  # it falls, is near 0, or rises: learning rate too high
    figure = f"loss {told(start)} nats at the start, {second:.3f} in the second quarter of the steps, {last:.3f} in the last"
    if start - last < KEPT * start:
        return Evidence(*span(loss), figure, "nothing moves: the rate is too low", key, times(phase.setting(key), 10, "larger"), "loss", loss)
    if phase.setting("model.norm") in ("post", "none"):
        cause = f"the loss stands: layers that norm {phase.setting('model.norm')} leaves without a path for the gradient, or a rate too high"
        return Evidence(*span(loss), figure, cause, "model.norm", "pre", "loss", loss)
    return Evidence(*span(loss), figure, "the loss stands: the rate is too high to settle, or all is learnt", key,
                    times(phase.setting(key), 0.3, "smaller"), "loss", loss)  # fmt: skip


def evaluation_noise(phase: Phase) -> Evidence | None:
    for name, size in (("eval/sampled", "sampled_prompts"), ("eval/greedy", "prompts")):
        judged = phase.some(f"validation {name}", 2)
        if judged is None:
            continue
        n = phase.number(f"evaluation.{size}", 0)
        if n < 1:
            raise NotJudged(f"needs {phase.path(f'evaluation.{size}')} in config.yaml")
        first, last = float(judged.values[0]), float(judged.values[-1])
        noise = CONFIDENCE * math.hypot(binomial(first, n), binomial(last, n))
        if abs(last - first) > noise:
            return None
        middle = min(max((first + last) / 2, 0.05), 0.95)
        seen = max(abs(last - first), 0.05)  # a difference that one may want to see
        wanted = math.ceil(CONFIDENCE**2 * 2 * middle * (1 - middle) / seen**2)
        figure = (f"{name} {told(first)} at step {judged.steps[0]:.0f} and {told(last)} at step {judged.steps[-1]:.0f}: a difference of {told(last - first)}, "
                  f"and {n:g} prompts tell no less than {told(noise)} (95 %)")  # fmt: skip
        cause = f"too few prompts to say whether the phase changed the accuracy; {told(seen)} takes about {wanted}"
        value = str(max(wanted, 2 * round(n)))
        return Evidence(*span(judged), figure, cause, phase.path(f"evaluation.{size}"), value, f"validation {name}", judged)
    raise NotJudged("needs eval/sampled or eval/greedy of two evaluations: evaluation.every")
