"""`probability-sensitivity`: whether a model is right more often where task, input or output are probable."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from isentrope.diagnose.completions import right, scores, whole_text
from isentrope.diagnose.intervals import Z95, logistic, wilson
from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 5  # of right and of wrong answers a predictor
COLLINEAR = 0.9
TWIN = 1 - 1e-9


class ProbabilitySensitivity(Measure):
    NAME = "probability-sensitivity"
    WHAT = "accuracy against the probability of task, input and output: logistic regression with intervals"
    SOURCE = "Embers of autoregression: tommccoy1/embers-of-autoregression"
    OPTIONS = {
        "ridge": Option(0.0, "penalty ridge/2 · b² of each slope; 0: none, or 1 where the classes can be parted", least=0.0),
        "lengths": Option(True, "numbers of tokens of input and output as predictors too"),
        "max_length": Option(512, "tokens of prompt and completion at most", least=2),
    }

    def _texts(self, key: str, fallback: str) -> list[str]:
        return self.data.column(key if all(key in record for record in self.data.records) else fallback)

    def _predictors(self) -> tuple[dict[str, np.ndarray], list[str]]:
        """{name: values}, and how each was found."""
        found: dict[str, np.ndarray] = {}
        how = []
        records = self.data.records
        for side, fallback in (("input", "prompt"), ("output", "completion")):
            key = f"{side}_logprob"
            if all(key in record for record in records):
                found[key] = np.array(self.data.column(key, (int, float)), dtype=float)
                how.append(f"{key} of the lines")
                if self.options["lengths"] and all(side in record or fallback in record for record in records) and self.model.tokenizer is not None:
                    found[f"{side}_tokens"] = np.array([len(whole_text(self.model, text)[1]) for text in self._texts(side, fallback)], dtype=float)
                continue
            pairs = [whole_text(self.model, text) for text in self._texts(side, fallback)]
            own = scores(self.model, pairs, say=lambda done, of: self.progress(f"probability of {side}s", done, of))
            found[key] = own.logprob.numpy()
            how.append(f"{key} by the measured model, of the text by itself")
            if self.options["lengths"]:
                found[f"{side}_tokens"] = own.tokens.numpy().astype(float)
        if records and all("task_probability" in record for record in records):
            shares = np.array(self.data.column("task_probability", (int, float)), dtype=float)
            if not ((shares > 0) & (shares <= 1)).all():
                raise DiagnoseError(f"{self.data.name}: a task_probability is {shares[(shares <= 0) | (shares > 1)][0]:g}; wanted above 0 and at most 1")
            found["task_logprob"] = np.log(shares)
        elif records and all("task" in record for record in records):
            tasks = [str(record["task"]) for record in records]
            names = sorted(set(tasks), key=lambda name: (-tasks.count(name), name))
            found |= {f"task {name}": np.array([task == name for task in tasks], dtype=float) for name in names[1:]}
        return found, how

    def finish(self) -> Result:
        if not self.data.records:
            self.data.column("prompt")  # says what plain text lacks
        limit = self.options["max_length"]
        correct, judged = right(self.model, self.data, limit, lambda done, of: self.progress("completions", done, of))
        y = np.array(correct, dtype=float)
        predictors, how = self._predictors()
        notes = []
        constant = [name for name, values in predictors.items() if np.ptp(values) == 0]
        if constant:
            notes.append(f"{', '.join(constant)}: the same in all lines, left out of the regression")
        kept = {name: values for name, values in predictors.items() if name not in constant}
        for name in list(kept):  # the text is to be copied: its probability as input is that as output
            twin = next((other for other in kept if other != name and name.startswith("input") and abs(np.corrcoef(kept[name], kept[other])[0, 1]) > TWIN), None)
            if twin:
                del kept[name]
                notes.append(f"{name} goes up and down with {twin} in every line, and was left out: what is said of {twin} is said of both")
        if not kept:
            raise DiagnoseError(f"{self.data.name}: every predictor ({', '.join(predictors)}) is the same in all {len(y)} lines; wanted texts of different probability")
        table = Table({"predictor": "", "coefficient": "log-odds a standard deviation", "error": "standard", "low": "95 %", "high": "95 %", "z": "", "p": "two-sided"})
        few = int(min(y.sum(), len(y) - y.sum()))
        numbers: dict[str, Any] = {"lines": len(y), "accuracy": float(y.mean())}
        if few == 0:
            raise DiagnoseError(f"{self.data.name}: all {len(y)} answers are {'right' if y[0] else 'wrong'}, so that nothing can depend on a probability; "
                                "wanted harder or easier lines")  # fmt: skip
        if few < LEAST * len(kept):
            notes.append(f"{few} answers {'right' if y.mean() < 0.5 else 'wrong'} for {len(kept)} predictors: fewer than {LEAST} each, the intervals are optimistic")
        names = list(kept)
        values = np.column_stack([kept[name] for name in names])
        z = (values - values.mean(0)) / values.std(0)
        found = logistic(z, y, self.options["ridge"])
        for i, name in enumerate(["intercept", *names]):
            b, error = float(found.coefficients[i]), float(found.errors[i])
            ratio = b / error if error > 0 else math.nan
            table.add(name, b, error, b - Z95 * error, b + Z95 * error, ratio, math.erfc(abs(ratio) / math.sqrt(2)))
        if found.why:
            what = {"separated": "right and wrong can be parted by the predictors", "collinear": "a predictor is a sum of others"}[found.why]
            notes.append(f"{what}, so that the likelihood has no single maximum: ridge {found.ridge:g} was taken")
        between = np.corrcoef(z, rowvar=False).reshape(len(names), len(names))
        for i, first in enumerate(names):
            for j in range(i):
                if abs(between[i, j]) > COLLINEAR:
                    notes.append(f"{names[j]} and {first} are collinear (r = {between[i, j]:.2f}): their coefficients cannot be told apart; drop one of them")
        tables = {"terciles": terciles(kept, y), **({"tasks": by_task([str(r["task"]) for r in self.data.records], y)} if all("task" in r for r in self.data.records) else {})}
        for name in names:
            numbers[f"coefficient of {name}"] = float(found.coefficients[1 + names.index(name)])
        variant = (f"logit P(right) = b₀ + Σ b z over predictors of mean 0 and deviation 1, maximum likelihood"
                   f"{f' with ridge {found.ridge:g}' if found.ridge else ''}, Wald intervals; {'; '.join(how)}; log-probabilities in nats, summed over tokens; {judged}")  # fmt: skip
        return Result(table, variant, numbers, tables, notes, draw=lambda figure: draw(figure, table, tables["terciles"]), size=(8.0, 3.4))


def terciles(predictors: dict[str, np.ndarray], y: np.ndarray) -> Table:
    """Accuracy in the lowest, middle and highest third of each predictor; of one of two values at each."""
    table = Table({"predictor": "", "third": "", "from": "", "to": "", "n": "", "accuracy": "", "low": "95 %", "high": "95 %"})
    for name, values in predictors.items():
        parts = [np.flatnonzero(values == value) for value in np.unique(values)] if len(np.unique(values)) < 3 else np.array_split(np.argsort(values, kind="stable"), 3)
        for number, part in enumerate(parts, 1):
            if len(part):
                table.add(name, number, values[part].min(), values[part].max(), len(part), y[part].mean(), *wilson(int(y[part].sum()), len(part)))
    return table


def by_task(tasks: list[str], y: np.ndarray) -> Table:
    table = Table({"task": "", "n": "", "accuracy": "", "low": "95 %", "high": "95 %"})
    for task in sorted(set(tasks)):
        own = y[[one == task for one in tasks]]
        table.add(task, len(own), own.mean(), *wilson(int(own.sum()), len(own)))
    return table


def draw(figure: Figure, table: Table, thirds: Table) -> None:
    left, other = figure.subplots(1, 2)
    names = table.column("predictor")[1:]
    places = range(len(names))
    values, low, high = (np.array([np.nan if x is None else x for x in table.column(key)[1:]]) for key in ("coefficient", "low", "high"))
    left.errorbar(values, places, xerr=[values - low, high - values], fmt="o", capsize=3)
    left.axvline(0, color="grey", linewidth=0.8)
    left.set_yticks(list(places), names)
    left.set(xlabel="log-odds a standard deviation", ylim=(len(names) - 0.4, -0.6))  # from the top
    for name in [name for name in dict.fromkeys(thirds.column("predictor")) if name.endswith("logprob")]:
        rows = [row for row in thirds.rows if row[0] == name]
        other.errorbar([row[1] for row in rows], [row[5] for row in rows], yerr=[[row[5] - row[6] for row in rows], [row[7] - row[5] for row in rows]],
                       fmt="o-", capsize=3, label=name)  # fmt: skip
    other.set(xlabel="third, from the least probable", ylabel="accuracy", ylim=(0, 1.02), xticks=(1, 2, 3))
    other.legend(fontsize=7)


MEASURE = ProbabilitySensitivity
measure = ProbabilitySensitivity.measure
