"""CoT information of finite classes (arXiv:2505.15927): what an example with its chain of steps tells that its answer does not.

    I(h*, h) = -ln P_x[chain and answer of h* and h agree]     I(ε) = inf { I(h*, h) : P_x[answers differ] > ε }

A learner that fits its examples needs (ln |H| + ln 1/δ) / I(ε) of them for an answer error of at most ε, with confidence 1 - δ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isentrope.diagnose.intervals import clopper_pearson_upper
from isentrope.diagnose.measure import DiagnoseError


@dataclass
class Information:
    """Of one ε. bad: hypotheses whose answers differ from those of h* on more than ε of the inputs.

    chain, answer: I(ε) in nats by chain and answer, and by the answer alone; inf without a bad one. chain_low, answer_low: what they are at least,
    at confidence 1 - δ, where the inputs are a sample; of all inputs the same. examples_chain, examples_answer: of the learner; 0 without a bad one.
    """

    epsilon: float
    bad: int
    chain: float
    answer: float
    chain_low: float
    answer_low: float
    examples_chain: int
    examples_answer: int


def cot_information(answers: np.ndarray, chains: np.ndarray, target: int, epsilons: Sequence[float], *, weights: np.ndarray | None = None, delta: float = 0.05,
                    sampled: bool = False) -> list[Information]:  # fmt: skip
    """answers [H, X] and chains [H, X, …] of H hypotheses at X inputs, of any type that compares; target: the place of h*.

    Args:
        epsilons: answer errors; a hypothesis is bad where its error is strictly above.
        weights: [X] probabilities of the inputs; None for the same of all.
        delta: δ, of the number of examples and of the bound.
        sampled: the inputs are drawn from more: agreement is then bounded from above by Clopper and Pearson with δ/|H| (only without weights).

    Raises DiagnoseError for a class of one, and where no hypothesis ever answers otherwise than h*.
    """
    hypotheses, inputs = answers.shape
    if hypotheses < 2:
        raise DiagnoseError(f"a class of {hypotheses} hypothesis; wanted two at least")
    if sampled and weights is not None:
        raise DiagnoseError("the bound of sampled inputs is of inputs drawn alike; leave out weights, or say that the inputs are all there are")
    share = np.full(inputs, 1 / inputs) if weights is None else np.asarray(weights, dtype=float) / np.sum(weights)
    same_answer = answers == answers[target]
    flat = chains.reshape(hypotheses, inputs, -1)
    same = same_answer & (flat == flat[target]).all(2)
    wrong = (~same_answer) @ share
    agree, agree_answer = same @ share, same_answer @ share
    if not (wrong > 0).any():
        raise DiagnoseError(f"all {hypotheses} hypotheses answer alike at the {inputs} inputs; nothing can be told apart")
    need = math.log(hypotheses) + math.log(1 / delta)
    found = []
    for epsilon in epsilons:
        bad = wrong > epsilon + 1e-12  # a share such as 3 of 10 is not above .3
        if not bad.any():
            found.append(Information(epsilon, 0, math.inf, math.inf, math.inf, math.inf, 0, 0))
            continue
        values, lows, numbers = [], [], []
        for agreement, matches in ((agree, same), (agree_answer, same_answer)):
            top = float(agreement[bad].max())
            most = int(matches[bad].sum(1).max())
            bound = clopper_pearson_upper(most, inputs, delta / hypotheses) if sampled else top
            values.append(-math.log(min(top, 1.0)) if top > 0 else math.inf)
            lows.append(-math.log(min(bound, 1.0)) if bound > 0 else math.inf)
            # Of a sample that has no agreement at all the bound says how many examples are enough.
            value = lows[-1] if math.isinf(values[-1]) and sampled else values[-1]
            numbers.append(max(1, math.ceil(need / value - 1e-9)) if value > 0 else -1)
        found.append(Information(epsilon, int(bad.sum()), values[0], values[1], lows[0], lows[1], numbers[0], numbers[1]))
    return found


@dataclass
class Proxy:
    """Of one ε and the pairs of writers that answer differently on more than ε of the prompts.

    pairs: how many; chain, answer: -ln of the greatest share of prompts on which two of a pair write the same chain and answer, and the same
    answer; inf without a pair or an agreement; chain_low: at least, of prompts that are a sample, at confidence 1 - δ; of: the pair with most agreement.
    """

    epsilon: float
    pairs: int
    chain: float
    answer: float
    chain_low: float
    of: tuple[int, int] | None


def cot_information_proxy(answers: np.ndarray, chains: np.ndarray, epsilons: Sequence[float], *, target: int | None = None, delta: float = 0.05) -> list[Proxy]:
    """answers, chains [H, X] of H writers, as seeds or checkpoints of a model, at X prompts. Not the paper's quantity, which is of the class that a learner has:
    of the few hypotheses that a training run went through. target: pairs with this one alone; None for all pairs, which is the least over the targets.

    Raises DiagnoseError for fewer than two.
    """
    writers, prompts = answers.shape
    if writers < 2:
        raise DiagnoseError(f"{writers} writer of chains; wanted two at least")
    pairs = [(i, j) for i in range(writers) for j in range(i + 1, writers) if target is None or target in (i, j)]
    same_answer = np.array([answers[i] == answers[j] for i, j in pairs])
    same = same_answer & np.array([chains[i] == chains[j] for i, j in pairs])
    wrong = 1 - same_answer.mean(1)
    found = []
    for epsilon in epsilons:
        bad = np.flatnonzero(wrong > epsilon + 1e-12)
        if not len(bad):
            found.append(Proxy(epsilon, 0, math.inf, math.inf, math.inf, None))
            continue
        counts, counts_answer = same[bad].sum(1), same_answer[bad].sum(1)
        most, most_answer = int(counts.max()), int(counts_answer.max())
        bound = clopper_pearson_upper(most, prompts, delta / len(pairs))
        chain, answer = (-math.log(top / prompts) if top else math.inf for top in (most, most_answer))
        found.append(Proxy(epsilon, len(bad), chain, answer, -math.log(bound), pairs[bad[int(counts.argmax())]] if most else None))
    return found


def worst_expected_error(answers: np.ndarray, chains: np.ndarray | None, target: int, examples: int, draws: int = 2000, seed: int = 0) -> float:
    """Mean over samples of `examples` inputs of the worst answer error among the hypotheses that agree with h* on them; chains None: on answers alone."""
    hypotheses, inputs = answers.shape
    same = answers == answers[target]
    wrong = (~same).mean(1)
    if chains is not None:
        flat = chains.reshape(hypotheses, inputs, -1)
        same = same & (flat == flat[target]).all(2)
    generator = np.random.default_rng(seed)
    total = 0.0
    for _ in range(draws):
        fits = same[:, generator.integers(inputs, size=examples)].all(1)
        total += float(wrong[fits].max())
    return total / draws
