"""Completions on the page: samples of evaluations beside each other, rollouts as a table, both with entropy as a shade."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from isentrope.report.runs import Run

SHADES = 8  # of the colour of a token
TOKENS = 24_000  # of samples on a page
WEIGHTS = {"weight": "weight", "advantage of a token": "advantages"}  # name on the page: key of the line
ROWS, SPANS = 400, 12_000  # of the tables of rollouts on a page; coloured tokens in them


def finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def shaded(tokens: list[Any], entropies: list[Any], top: float, surprises: list[Any] | None = None) -> list[dict[str, Any]]:
    """Tokens with a shade of 0 … SHADES − 1, the last one from `top` nats on. An entropy of None: the token was drawn from nothing."""
    found = []
    for text, h, s in zip(tokens, entropies, surprises or [None] * len(tokens)):
        found.append(
            {
                "text": str(text).replace("\n", "↵\n").replace("\t", "→\t"),
                "shade": min(SHADES - 1, int(SHADES * max(h, 0) / top)) if finite(h) else 0,
                "title": (f"{h:.3f} nats" if finite(h) else "" if h is None else "not finite") + (f", surprise {s:.3f}" if finite(s) else ""),
            }
        )
    return found


def weighed(line: dict[str, Any], tops: dict[str, float]) -> list[tuple[str, list[dict[str, Any]]]]:
    """What methods made the tokens of a saved completion weigh: (name, tokens), the shade by the size, the sign and the number behind it."""
    found = []
    tokens = line.get("tokens") or []
    for name, key in WEIGHTS.items():
        values = line.get(key)
        if not isinstance(values, list) or len(values) != len(tokens) or key not in tops:
            continue
        shown = shaded(tokens, [abs(value) if finite(value) else value for value in values], tops[key])
        for one, value in zip(shown, values):
            one["title"] = f"{name} {value:.3g}" if finite(value) else "not learnt"
        found.append((name, shown))
    return found


def strongest(entropies: list[Any]) -> float:
    known = [h for h in entropies if finite(h)]
    return max(float(np.percentile(known, 98)) if known else 0.0, 0.5)


def spread(items: list[Any], count: int) -> list[Any]:
    """At most count, the first and the last among them; of one the last."""
    if len(items) <= count:
        return items
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, count)] if count > 1 else items[-1:]


def sample_tables(run: Run, tokens: int) -> list[dict[str, Any]]:
    """For each phase, the last one first, and split a table: a row a prompt, a column an evaluation; about `tokens` in all."""
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in run.samples:
        lines.setdefault((line["phase"], line.get("eval/split", "")), []).append(line)
    kinds = [(phase, split) for phase in reversed(run.lengths) for split in ("validation", "test", "") if (phase, split) in lines]
    found = []
    for phase, split in kinds:
        of_kind = lines[phase, split]
        size = max(sum(len(s.get("tokens", [])) for s in line["samples"] if isinstance(s, dict)) for line in of_kind)
        chosen = spread(of_kind, max(1, min(5, tokens // len(kinds) // max(size, 1))))
        samples = [[s for s in line["samples"] if isinstance(s, dict)] for line in chosen]
        top = strongest([h for line in samples for s in line for h in s.get("entropy", [])])
        rows: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
        for column, line in enumerate(samples):
            seen: dict[str, int] = {}
            for s in line:
                prompt = str(s.get("prompt", ""))
                seen[prompt] = seen.get(prompt, 0) + 1
                rows.setdefault((prompt, seen[prompt]), {})[column] = {
                    "tokens": shaded(s.get("tokens", []), s.get("entropy", []), top),
                    "right": s.get("right"),
                }
        found.append(
            {
                "phase": phase,
                "split": split,
                "top": top,
                "steps": [line["step"] for line in chosen],
                "left_out": len(of_kind) - len(chosen),
                "rows": [(prompt, [row.get(i) for i in range(len(chosen))]) for (prompt, _), row in rows.items()],
            }
        )
    return found


def rollout_table(run: Run, rows: int, spans: int) -> dict[str, Any] | None:
    """Completions of steps evenly over the run: at most `rows`, of which the first ones with `spans` tokens coloured."""
    if not run.rollouts:
        return None
    by_step: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in run.rollouts:
        by_step.setdefault((str(line.get("phase", "")), line["step"]), []).append(line)
    largest = max(len(lines) for lines in by_step.values())
    steps = spread(list(by_step), max(2, min(rows // min(largest, 32), 50)))
    a_step = max(1, rows // len(steps))
    shown, top = [], strongest([h for line in run.rollouts[:2000] for h in line.get("entropy") or []])
    sizes = {key: [abs(w) for line in run.rollouts[:2000] for w in line.get(key) or [] if finite(w)] for key in WEIGHTS.values()}
    tops = {key: max(float(np.percentile(size, 98)), 1e-9) for key, size in sizes.items() if size}
    for key in steps:
        for line in by_step[key][:a_step]:
            entropies, logprobs, tokens = (line.get(name) or [] for name in ("entropy", "logprob", "tokens"))
            coloured = None
            if tokens and len(tokens) == len(entropies) and all(isinstance(t, str) for t in tokens) and len(tokens) <= spans:
                coloured, spans = shaded(tokens, entropies, top), spans - len(tokens)
            weights = weighed(line, tops) if coloured else []
            spans -= len(tokens) * len(weights)
            known = [h for h in entropies if finite(h)]
            shown.append(
                {
                    "phase": key[0],
                    "step": key[1],
                    "prompt": line["prompt"],
                    "completion": line["completion"],
                    "tokens": coloured,
                    "weights": weights,
                    "numbers": [
                        f"{value:.3g}" if finite(value) else "–"
                        for value in (
                            line.get("reward"),
                            line.get("advantage"),
                            len(tokens) or None,
                            float(np.mean(known)) if known else None,
                            sum(logprobs) if logprobs and all(finite(p) for p in logprobs) else None,
                        )
                    ],
                }
            )
    phases = len({row["phase"] for row in shown}) > 1
    return {"rows": shown, "all": len(shown) == len(run.rollouts) and run.rollouts_whole, "phases": phases, "top": top}


def completions(run: Run) -> tuple[str, np.ndarray, np.ndarray]:
    """Lengths and rewards for histograms, and where they are from: of the last third of the steps of the rollouts there are,
    else of the samples of evaluations in the last phase."""
    if run.rollouts:
        last = run.rollouts[-1]
        phase = [line for line in run.rollouts if line.get("phase") == last.get("phase")]
        first = last["step"] - (last["step"] - phase[0]["step"]) / 3
        late = [line for line in phase if line["step"] >= first]
        lengths = [len(line["tokens"]) for line in late if line.get("tokens")]
        rewards = [line["reward"] for line in late if finite(line.get("reward"))]
        return "rollouts of the last third of the steps", np.array(lengths, float), np.array(rewards, float)
    phases = [line["phase"] for line in run.samples]
    samples = [s for line in run.samples if line["phase"] == phases[-1] for s in line["samples"] if isinstance(s, dict)]
    judged = [s for s in samples if isinstance(s.get("right"), bool)]
    rewards = [float(s["right"]) for s in judged]
    lengths = [len(s.get("tokens", [])) for s in judged]
    return "samples of all evaluations in the last phase", np.array(lengths, float), np.array(rewards, float)
