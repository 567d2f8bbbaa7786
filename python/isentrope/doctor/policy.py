"""Rules about policy phases: rewards, rollouts, and the update. Thresholds and their reasons stand in table.py."""

from __future__ import annotations

import math

from isentrope.doctor.columns import LEAST, Column, NotJudged, Phase
from isentrope.doctor.rule import Evidence, percent, times, told

LOST, FLOOR, RIGHT = 0.1, 0.01, 0.95
GROWN, GROWN_BY = 2.0, 0.5
FLAT, FLAT_STEPS = 0.8, 10
DRIFT = 0.05
SEQUENCE_LOSSES, UNCLIPPED = ("gspo", "luspo", "geo_mean"), ("kl_cov", "sapo", "vespo", "dro", "gpg")
CLIPPED, CLIPPED_SEQUENCES = 0.2, 0.5
LONGER = 1.5
TRUNCATED = 0.1
MISMATCH, EFFECTIVE = 0.01, 0.9
CONFIDENCE = 1.96  # standard errors of a 95 % interval


def span(column: Column) -> tuple[int, int]:
    return int(column.steps[0]), int(column.steps[-1])


def entropy_collapse(phase: Phase) -> Evidence | None:
    entropy = phase.column("entropy/mean")
    before, after = entropy.head().mean(), entropy.tail().mean()
    right = phase.right()
    if after >= max(LOST * before, FLOOR) or (right is not None and right >= RIGHT):
        return None
    figure = f"entropy/mean fell from {told(before)} to {told(after)} nats"
    if right is not None:
        figure += f", with {percent(right)} of the task done"
    r2, ceiling, reward = (phase.some(key) for key in ("law/r2", "law/ceiling", "reward/mean"))
    if r2 is not None and ceiling is not None and reward is not None and r2.values[-1] > 0.5:
        left = max(float(ceiling.values[-1]) - reward.tail().mean(), 0.0)
        figure += f"; by the law R = b - a exp(H) (R² {told(float(r2.values[-1]))}) the rest of it buys {told(left)} of reward"
    key, value = phase.path("objective.entropy"), f"{{kind: adaptive, target: {told(before / 3)}}}"
    if phase.setting(phase.path(phase.key_of("objective.entropy", "kind"))):
        key = phase.path(phase.key_of("objective.entropy", "coef"))
        value = times(phase.setting(key), 3, "larger")
    elif phase.setting(phase.path("objective.loss")) in ("clip", "clip_higher", "gspo", "reinforce"):
        key, value = phase.path("objective.loss"), "clip_cov"
    cause = "the update raises what is likely already, and nothing keeps the entropy up: groups of like answers teach nothing"
    return Evidence(*span(entropy), figure, cause, key, value, "entropy/mean", entropy, max(LOST * before, FLOOR))


def entropy_explosion(phase: Phase) -> Evidence | None:
    entropy = phase.column("entropy/mean")
    before, after = entropy.head().mean(), entropy.tail().mean()
    limit = max(GROWN * before, before + GROWN_BY)
    target = phase.number(phase.key_of("objective.entropy", "target"), 0.0)
    if after <= max(limit, 1.5 * target):
        return None
    key = phase.path(phase.key_of("objective.entropy", "coef"))
    now = phase.setting(key)
    if now and now != "0.0":
        cause, value = "the entropy bonus outweighs the reward", times(now, 0.3, "smaller")
    else:
        key = phase.path("optimizer.lr")
        cause, value = "updates too large for the policy to keep what it had learnt", times(phase.setting(key), 0.3, "smaller")
    figure = f"entropy/mean rose from {told(before)} to {told(after)} nats"
    return Evidence(*span(entropy), figure, cause, key, value, "entropy/mean", entropy, limit)


def lost(phase: Phase) -> bool:
    """Whether reward/mean was once twice what it is at the end."""
    reward = phase.some("reward/mean", LEAST)
    return reward is not None and reward.trailing().values.max() > 2 * max(reward.tail().mean(), 1e-9)


def cut(phase: Phase) -> bool:
    """Whether most completions are cut at the length limit, late."""
    truncated = phase.some("length/truncated", LEAST)
    return truncated is not None and truncated.quarter().mean() > 0.5


def dead_groups(phase: Phase) -> Evidence | None:
    flat = phase.column("groups/flat")
    late = flat.quarter()
    row, longest, end = 0, 0, 0
    for i, value in enumerate(flat.values):
        row = row + 1 if value == 1 else 0
        longest, end = max((longest, end), (row, i))
    if longest >= FLAT_STEPS:
        first, last = int(flat.steps[end - longest + 1]), int(flat.steps[end])
        figure = f"in {longest} steps in a row all completions of every prompt had one reward (groups/flat 1)"
    elif late.mean() >= FLAT:
        first, last = span(late)
        figure = f"{percent(late.mean())} of the prompts had completions of one reward (groups/flat, mean of the last quarter)"
    else:
        return None
    right = phase.right()
    key, value = phase.path("rollout.num_generations"), times(phase.setting(phase.path("rollout.num_generations")), 2, "larger")
    cause = "the rewards tell the completions of a prompt apart too seldom"
    if right is not None and right >= RIGHT:
        key, value = phase.path("steps"), str(first)
        cause = "the prompts are learnt: give harder ones, or end here"
    elif right is not None and right <= 1 - RIGHT and lost(phase):
        key, value = phase.path("optimizer.lr"), times(phase.setting(phase.path("optimizer.lr")), 0.3, "smaller")
        cause = "the policy has lost the answers that it had: see learning rate too high"
    elif right is not None and right <= 1 - RIGHT and cut(phase):
        key, value = phase.path("rollout.max_new_tokens"), times(phase.setting(phase.path("rollout.max_new_tokens")), 2, "more")
        cause = "most answers are cut before they end: see truncation"
    elif right is not None and right <= 1 - RIGHT:
        key, value = phase.path("data"), "easier prompts, or an sft phase before"
        cause = "hardly an answer is right"
    return Evidence(first, last, figure, cause, key, value, "groups/flat", flat, FLAT)


def ratio_drift(phase: Phase) -> Evidence | None:
    drift = phase.column("kl/k3")
    if not (drift.values > 1e-9).any():
        raise NotJudged("needs kl/k3 behind a first update: rollout.mini_batches of 2 or more")
    trail = drift.trailing()
    worst = int(trail.values.argmax())
    if trail.values[worst] <= DRIFT:
        return None
    last = int(trail.steps[worst])
    first = int(drift.steps[max(int((drift.steps <= last).sum()) - drift.width(), 0)])
    figure = f"kl/k3 {told(float(trail.values[worst]))} nats a token (mean of a tenth of the steps)"
    largest = phase.some("ratio/max")
    if largest is not None and (there := (largest.steps >= first) & (largest.steps <= last)).any():
        figure += f", ratio/max up to {told(float(largest.values[there].max()))}"
    key = phase.path("optimizer.lr")
    cause = "the updates of a step leave the policy that drew its completions; objective.max_kl ends them earlier"
    return Evidence(first, last, figure, cause, key, times(phase.setting(key), 0.3, "smaller"), "kl/k3", drift, DRIFT)


def clip_saturation(phase: Phase) -> Evidence | None:
    loss = phase.setting(phase.path("objective.loss"))
    if loss in UNCLIPPED:
        raise NotJudged(f"the loss {loss} has no clip")
    clipped = phase.column("clip/frac")
    limit = CLIPPED_SEQUENCES if loss in SEQUENCE_LOSSES else CLIPPED
    late = clipped.quarter()
    if late.mean() <= limit:
        return None
    low, high = phase.some("clip/low"), phase.some("clip/high")
    figure = f"{percent(late.mean())} of the tokens are clipped (clip/frac, mean of the last quarter)"
    if low is not None and high is not None:
        figure += f": {percent(low.quarter().mean())} below, {percent(high.quarter().mean())} above"
    updates = phase.number("rollout.mini_batches", 1) * phase.number("rollout.epochs", 1)
    key = phase.path("optimizer.lr")
    cause = f"{updates:g} updates a step at this rate carry most tokens past the clip, where they teach nothing"
    return Evidence(*span(late), figure, cause, key, times(phase.setting(key), 0.3, "smaller"), "clip/frac", clipped, limit)


def length_explosion(phase: Phase) -> Evidence | None:
    length, reward = phase.column("length/mean"), phase.column("reward/mean")
    before, after = length.head().mean(), length.tail().mean()
    gain = reward.tail().mean() - reward.head().mean()
    noise = CONFIDENCE * math.hypot(reward.tail().error(), reward.head().error())
    if after <= LONGER * before or gain > noise:
        return None
    figure = (f"length/mean grew from {told(before)} to {told(after)} tokens, reward/mean by {told(gain)}, "
              f"which is no more than its noise ({told(noise)})")  # fmt: skip
    key = phase.path("reward")
    cause = "the loss pays for length: long wrong answers are punished less a token (objective.aggregate), or a reward likes length"
    most = phase.number("rollout.max_new_tokens", 0)
    value = f"add {{kind: overlong, len: {max(1, round(most / 4)) if most else 'TOKENS'}}}"
    return Evidence(*span(length), figure, cause, key, value, "length/mean", length, LONGER * before)


def truncation(phase: Phase) -> Evidence | None:
    cut = phase.column("length/truncated")
    late = cut.quarter()
    if late.mean() <= TRUNCATED:
        return None
    figure = f"{percent(late.mean())} of the completions are cut at the length limit (length/truncated, mean of the last quarter)"
    ended = phase.some("length/ended")
    if ended is not None:
        figure += f"; those that end have {told(ended.quarter().mean())} tokens"
    key = phase.path("rollout.max_new_tokens")
    most = phase.number("rollout.max_new_tokens", 0)
    value = f"{2 * most:.0f}, or rollout.mask_truncated: true" if most else "more, or rollout.mask_truncated: true"
    cause = "a cut answer is judged as a wrong one, whatever it was about to say"
    return Evidence(*span(late), figure, cause, key, value, "length/truncated", cut, TRUNCATED)


def binomial(share: float, n: float) -> float:
    """Standard error of a share of n independent trials, by Laplace's estimate so that 0 and 1 have one too."""
    share = (share * n + 1) / (n + 2)
    return math.sqrt(share * (1 - share) / n)


def reward_hacking(phase: Phase) -> Evidence | None:
    reward = phase.column("reward/mean")
    accuracy = phase.column("validation eval/sampled", 3)
    prompts = phase.number("evaluation.sampled_prompts", 0)
    if prompts < 1:
        raise NotJudged(f"needs {phase.path('evaluation.sampled_prompts')} in config.yaml")
    best = int(accuracy.values.argmax())
    top, now = float(accuracy.values[best]), float(accuracy.values[-1])
    noise = CONFIDENCE * math.hypot(binomial(top, prompts), binomial(now, prompts))
    trail = reward.trailing()
    then = trail.values[trail.steps <= accuracy.steps[best]]
    start = float(then[-1]) if len(then) else float(trail.values[0])
    gain = float(trail.values[-1]) - start
    if top - now <= noise or gain <= CONFIDENCE * reward.jitter():
        return None
    first, last = int(accuracy.steps[best]), int(accuracy.steps[-1])
    figure = (f"reward/mean rose by {told(gain)} while eval/sampled fell from {told(top)} to {told(now)}, "
              f"by more than the noise of {prompts:g} prompts ({told(noise)})")  # fmt: skip
    parts = [key for key in phase.columns if key.startswith("reward/") and key not in ("reward/mean", "reward/std", "reward/group_std")]
    ends = {key: known for key in parts if (known := phase.some(key, LEAST)) is not None}
    if len(ends) > 1:
        moved = {key: column.tail().mean() - column.head().mean() for key, column in ends.items()}
        figure += "; " + ", ".join(f"{key} {'+' if change >= 0 else ''}{told(change)}" for key, change in moved.items())
    cause = "the policy has found what the reward pays for beside right answers; rollouts of these steps show what"
    return Evidence(first, last, figure, cause, phase.path("reward"), "less weight on parts that rose while accuracy fell",
                    "validation eval/sampled", accuracy, top - noise)  # fmt: skip


def mismatch(phase: Phase) -> Evidence | None:
    apart = phase.column("mismatch/k3")
    late = apart.quarter()
    effective = phase.some("mismatch/ess", LEAST)
    share = effective.quarter().median() if effective is not None else 1.0
    if late.median() <= MISMATCH and share >= EFFECTIVE:
        return None
    figure = f"mismatch/k3 {told(late.median())} nats a token before anything was learnt, mismatch/ess {told(share)} (medians of the last quarter)"
    dtype = phase.setting(phase.path("rollout.dtype"))
    key, value = phase.path("rollout.dtype"), "model"
    if dtype == "model":
        key, value = phase.path("weight"), "add {kind: correction}"
    cause = "completions are drawn with other weights or another precision than are trained"
    return Evidence(*span(late), figure, cause, key, value, "mismatch/k3", apart, MISMATCH)
