"""`cot-information`: what the steps of a trace tell beyond its answer; exact of a finite class of hypotheses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from isentrope.diagnose.chain_information import cot_information, cot_information_proxy, worst_expected_error
from isentrope.diagnose.completions import own_tokens, pair, scores, written
from isentrope.diagnose.intervals import Z95
from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE = (1, 2, 3, 4, 6, 8, 12)


class CotInformation(Measure):
    NAME = "cot-information"
    WHAT = "what the steps of traces tell beyond the answer, also over checkpoints; exact of a finite class of hypotheses"
    SOURCE = "CoT information, arXiv:2505.15927"
    OPTIONS = {
        "epsilons": Option("0.05,0.1,0.2,0.3", "answer errors, of a finite class and of what checkpoints write"),
        "delta": Option(0.05, "1 - confidence, of a finite class and of what checkpoints write", least=1e-12, most=0.5),
        "inputs": Option("all", "of a finite class: whether the inputs are all there are, or a sample of them", choices=("all", "sampled")),
        "separator": Option("", "of traces without `chain` and `answer`: the answer is what stands in `completion` behind the last of these texts"),
        "end": Option(True, "of such traces: whether what follows the answer's first line or the mark . is left out"),
        "write": Option(0, "of traces with `separator`: tokens that the model writes itself behind each prompt, at most, which makes cot_information_proxy over checkpoints; 0: none", least=0),
        "max_length": Option(512, "tokens of a whole trace at most", least=3),
    }

    def finish(self) -> Result:
        if self.data.records and all("answers" in record for record in self.data.records):
            return self._finite()
        return self._traces()

    def _epsilons(self) -> list[float]:
        try:
            return [float(word) for word in self.options["epsilons"].split(",")]
        except ValueError:
            raise DiagnoseError(f"epsilons={self.options['epsilons']}; wanted numbers with commas between, as 0.1,0.2") from None

    # ---- finite classes ------------------------------------------------------------------------------------------------

    def _finite(self) -> Result:
        records = self.data.records
        answers, chains = self.data.column("answers", list), self.data.column("chains", list)
        sizes = {len(one) for one in [*answers, *chains]}
        if len(sizes) != 1 or 0 in sizes:
            raise DiagnoseError(f"{self.data.name}: answers and chains have {sorted(sizes)} inputs; wanted as many in each, one at least")
        targets = [i for i, record in enumerate(records) if record.get("target")]
        if len(targets) != 1:
            raise DiagnoseError(f"{self.data.name}: {len(targets)} lines have target true; wanted one, the hypothesis that is right")
        epsilons = self._epsilons()
        coded: dict[str, int] = {}  # each value as a number, so that texts and lists compare at once

        def codes(rows: list[list[Any]]) -> np.ndarray:
            return np.array([[coded.setdefault(repr(value), len(coded)) for value in row] for row in rows])

        a, c = codes(answers), codes(chains)
        sampled = self.options["inputs"] == "sampled"
        found = cot_information(a, c, targets[0], epsilons, delta=self.options["delta"], sampled=sampled)
        table = Table({"epsilon": "", "bad": "hypotheses", "chain": "nats", "answer": "nats", "chain_low": "nats", "answer_low": "nats", "examples_chain": "",
                       "examples_answer": ""})  # fmt: skip
        notes = []
        for one in found:
            table.add(one.epsilon, one.bad, one.chain, one.answer, one.chain_low, one.answer_low, one.examples_chain if one.examples_chain >= 0 else None,
                      one.examples_answer if one.examples_answer >= 0 else None)  # fmt: skip
        empty = [one.epsilon for one in found if one.bad == 0]
        if empty:
            notes.append(f"no hypothesis errs on more than {', '.join(f'{e:g}' for e in empty)} of the inputs: the information is infinite, left empty")
        if any(one.bad and math.isinf(one.chain) for one in found):
            notes.append("no bad hypothesis ever has the chain and answer of the right one: the information is infinite, left empty"
                         + ("; chain_low is what the sample shows" if sampled else ""))  # fmt: skip
        if any(one.examples_answer < 0 for one in found):
            notes.append("some bad hypothesis answers as the right one at every input drawn: no number of such examples is enough")
        curve = Table({"examples": "", "error_chain": "worst, mean", "error_answer": "worst, mean"})
        for number in CURVE:
            curve.add(number, worst_expected_error(a, c, targets[0], number), worst_expected_error(a, None, targets[0], number))
        first = next((one for one in found if one.bad), found[0])
        numbers = {"hypotheses": len(a), "inputs": a.shape[1], f"chain information at ε {first.epsilon:g}, nats": first.chain,
                   f"answer information at ε {first.epsilon:g}, nats": first.answer,
                   f"examples at ε {first.epsilon:g}, chain": first.examples_chain, f"examples at ε {first.epsilon:g}, answer": first.examples_answer}  # fmt: skip
        variant = ("I(ε) = -ln of the greatest share of inputs on which chain and answer of a hypothesis with answer error above ε (strictly) are those of the right "
                   f"one; answer: the answers alone; examples: (ln |H| + ln 1/δ) / I; inputs {'sampled: _low by Clopper-Pearson with δ/|H|' if sampled else 'all'}. "
                   "errors: the worst hypothesis that fits so many drawn examples, mean of 2000 draws")  # fmt: skip
        return Result(table, variant, {k: v for k, v in numbers.items()}, {"errors": curve}, notes, draw=lambda figure: draw_finite(figure, curve))

    # ---- traces --------------------------------------------------------------------------------------------------------

    def _parts(self) -> list[tuple[str, str, str, str]]:
        """(prompt, chain, what stands between, answer) of each line. What stands between comes before the answer without a chain too."""
        records, separator = self.data.records, self.options["separator"]
        if records and all("chain" in record and "answer" in record for record in records):
            return [(prompt, chain, "", str(r["answer"])) for prompt, chain, r in zip(self.data.column("prompt"), self.data.column("chain"), records)]
        if not separator:
            raise DiagnoseError(f"{self.data.name}: its lines have no chain and answer (nor answers and chains of a class); add them, or say what stands before "
                                "the answer in completion: separator=TEXT")  # fmt: skip
        found = []
        for number, (prompt, completion) in enumerate(zip(self.data.column("prompt"), self.data.column("completion")), 1):
            chain, mark, answer = self._divided(completion)
            if not mark or not answer:
                raise DiagnoseError(f"{self.data.name}: the completion of text {number} has no {separator!r} with an answer behind it; mend separator")
            steps = chain.rstrip()
            found.append((prompt, steps, chain[len(steps) :] + mark, answer))
        return found

    def _divided(self, text: str) -> tuple[str, str, str]:
        """What stands before the last separator, it, and the answer behind it; ("", "", text) without one."""
        chain, mark, answer = text.rpartition(self.options["separator"])
        return chain, mark, answer.split("\n")[0].rstrip(".") if self.options["end"] else answer

    def _written(self, parts: Sequence[tuple[str, str, str, str]]) -> Table:
        """The model's own chains and answers beside those of the lines."""
        if not self.options["separator"]:
            raise DiagnoseError("cot-information: write takes separator=TEXT, which parts chain and answer of what the model writes")
        texts = written(self.model, [self.model.encode(prompt) for prompt, *_ in parts], self.options["write"], partial(self.progress, "written"))
        table = Table({"prompt": "", "chain": "of the line", "answer": "of the line", "written_chain": "", "written_answer": "none without a separator"})
        for (prompt, chain, between, answer), text in zip(parts, texts):
            steps, _, _ = self._divided(chain + between + answer)
            own, mark, told = self._divided(text)
            table.add(prompt, " ".join(steps.split()), answer.strip(), " ".join((own if mark else text).split()), told.strip() if mark else None)
        return table

    def _traces(self) -> Result:
        parts = self._parts()
        n = len(parts)
        epsilons = self._epsilons()
        if n < 2:
            raise DiagnoseError(f"{self.data.name}: has {n} trace; wanted two at least, since the control takes another's chain")
        limit = self.options["max_length"]
        others = [parts[(i + 1 + j) % n][1] for i, j in enumerate(np.random.default_rng(0).integers(n - 1, size=n))]
        kinds = {
            "answer": [pair(self.model, prompt + mark, answer, limit) for prompt, _, mark, answer in parts],
            "answer_after_chain": [pair(self.model, prompt + chain + mark, answer, limit) for prompt, chain, mark, answer in parts],
            "answer_after_other": [pair(self.model, prompt + chain + mark, answer, limit) for (prompt, _, mark, answer), chain in zip(parts, others)],
            "chain": [pair(self.model, prompt, chain, limit) if own_tokens(self.model, chain) else ([0], []) for prompt, chain, _, _ in parts],
        }
        table = Table({"of": "", "nats": "a trace", "low": "95 %", "high": "95 %", "nats_token": "a token", "greedy": "share right", "n": ""})
        losses, greedy = {}, {}
        for kind, pairs in kinds.items():
            found = scores(self.model, pairs, say=partial(self.progress, kind.replace("_", " ")))
            losses[kind] = -found.logprob.numpy()
            greedy[kind] = found.greedy.double().mean().item()
            tokens = max(1, int(found.tokens.sum()))
            table.add(f"loss of {kind.replace('_', ' ')}", *mean(losses[kind]), losses[kind].sum() / tokens, greedy[kind], n)
        gains = {"information of the chain": losses["answer"] - losses["answer_after_chain"],
                 "information of another's chain": losses["answer"] - losses["answer_after_other"]}  # fmt: skip
        for name, values in gains.items():
            table.add(name, *mean(values), None, None, n)
        notes = []
        verbatim = sum(answer.strip() in chain for _, chain, _, answer in parts)
        if verbatim:
            notes.append(f"the answer stands in {verbatim / n:.0%} of the chains as it is: their information is in part that of copying")
        if gains["information of another's chain"].mean() > 0.5 * gains["information of the chain"].mean() > 0:
            notes.append("another trace's chain tells nearly as much: it is the form of a chain that helps, not what it says")
        notes.append("what the measured model makes of the chains, not the information of a class of hypotheses: a better reader finds more")
        numbers: dict[str, Any] = {"information of the chain, nats": float(gains["information of the chain"].mean()),
                   "information of another's chain, nats": float(gains["information of another's chain"].mean()),
                   "right without the chain": greedy["answer"], "right behind the chain": greedy["answer_after_chain"], "traces": n}  # fmt: skip
        variant = ("of traces (not the paper's, which is of a class): ln p(answer | prompt, chain) - ln p(answer | prompt), mean over traces, normal 95 % interval; "
                   "another's chain: that of a line drawn with seed 0; greedy: whether greedy decoding writes exactly this")  # fmt: skip
        tables = {}
        if self.options["write"]:
            own = tables["written"] = self._written(parts)
            answers = own.column("written_answer")
            right = [told == answer for told, answer in zip(answers, own.column("answer"))]
            whole = [one and told == chain for one, told, chain in zip(right, own.column("written_chain"), own.column("chain"))]
            numbers |= {"right by itself": sum(right) / n, "chain and answer right by itself": sum(whole) / n, "epsilons": ",".join(map(str, epsilons)), "delta": self.options["delta"]}
            if None in answers:
                notes.append(f"{answers.count(None) / n:.0%} of what the model writes has no {self.options['separator']!r}, and no answer: wrong, and the same as another without; raise write, now {self.options['write']}")
        return Result(table, variant, numbers, tables, notes, draw=lambda figure: draw_traces(figure, gains))

    # ---- over checkpoints ----------------------------------------------------------------------------------------------

    @classmethod
    def over(cls, results: Sequence[tuple[str, Result]]) -> Result:
        """Of traces a row of each checkpoint, and what their own chains tell of one another (cot_information_proxy). A class stays as it is."""
        whole = super().over(results)
        first = results[0][1]
        if "of" not in first.table.columns:
            return whole
        whole.tables["traces"] = whole.table
        whole.numbers = {}
        everywhere = [note for note in first.notes if all(note in result.notes for _, result in results)]
        whole.notes = everywhere + [f"{name}: {note}" for name, result in results for note in result.notes if note not in everywhere]
        whole.table = table = Table({"model": "", "answer": "nats a trace", "answer_after_chain": "nats a trace", "chain": "nats a trace", "information": "nats", "low": "95 %", "high": "95 %",
                                     "information_other": "nats", "right": "share, without the chain", "right_after_chain": "share", "right_by_itself": "share"})  # fmt: skip
        for name, result in results:
            row = {one[0]: one for one in result.table.rows}
            table.add(name, row["loss of answer"][1], row["loss of answer after chain"][1], row["loss of chain"][1], *row["information of the chain"][1:4],
                      row["information of another's chain"][1], result.numbers["right without the chain"], result.numbers["right behind the chain"], result.numbers.get("right by itself"))  # fmt: skip
        whole.draw = lambda figure: draw_checkpoints(figure, table)
        if "written" in first.tables:
            found = whole.tables["cot_information_proxy"] = proxies(results)
            none = sorted({row[1] for row in found.rows if row[0] == "of checkpoints" and not row[2]})
            if none:
                whole.notes.append(f"no two checkpoints answer differently on more than {', '.join(f'{e:g}' for e in none)} of the prompts: the proxy is infinite there, left empty")
            whole.notes.append("cot_information_proxy: of the hypotheses that the run went through, few and alike; not the paper's information of the class that a learner has, and no bound on examples follows")
            whole.variant += ("; cot_information_proxy: -ln of the greatest share of prompts on which two of a pair write the same chain and the same answer (answer: the same answer), over the pairs of "
                              "checkpoints that answer differently on more than ε (strictly); pairs with the lines: the right chains and answers and each checkpoint; chain_low: by Clopper-Pearson with δ / pairs")  # fmt: skip
        return whole


def proxies(results: Sequence[tuple[str, Result]]) -> Table:
    """cot_information_proxy over all pairs of checkpoints, and over those of each with the lines' own chains and answers."""
    names = [*(name for name, _ in results), "the lines"]
    tables = [result.tables["written"] for _, result in results]
    coded: dict[Any, int] = {}
    columns = [(table.column("written_chain"), table.column("written_answer")) for table in tables]
    columns.append((tables[0].column("chain"), tables[0].column("answer")))
    chains, answers = (np.array([[coded.setdefault(value, len(coded)) for value in one[part]] for one in columns]) for part in (0, 1))
    numbers = results[0][1].numbers
    epsilons, delta = [float(word) for word in numbers["epsilons"].split(",")], numbers["delta"]
    table = Table({"pairs": "of what", "epsilon": "", "number": "pairs", "cot_information_proxy": "nats", "chain_low": "nats", "answer": "nats", "most_alike": ""})
    kinds = [("with the lines", cot_information_proxy(answers, chains, epsilons, target=len(columns) - 1, delta=delta))]
    if len(results) > 1:
        kinds.insert(0, ("of checkpoints", cot_information_proxy(answers[:-1], chains[:-1], epsilons, delta=delta)))
    for kind, found in kinds:
        for one in found:
            table.add(kind, one.epsilon, one.pairs, one.chain, one.chain_low, one.answer, " and ".join(names[i] for i in one.of) if one.of else None)
    return table


def mean(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its normal 95 % interval."""
    middle, half = float(values.mean()), Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return middle, middle - half, middle + half


def draw_finite(figure: Figure, curve: Table) -> None:
    axes = figure.subplots()
    for key, name in (("error_chain", "chain and answer"), ("error_answer", "answer alone")):
        axes.plot(curve.column("examples"), curve.column(key), "o-", label=name)
    axes.set(xlabel="examples", ylabel="worst answer error that fits them")
    axes.legend(fontsize=7)


def draw_traces(figure: Figure, gains: dict[str, np.ndarray]) -> None:
    axes = figure.subplots()
    every = np.concatenate(list(gains.values()))
    edges: Sequence[float] = np.linspace(every.min(), every.max() + 1e-9, 41).tolist()
    for name, values in gains.items():
        axes.hist(values, bins=edges, alpha=0.5, label=name)
    axes.set(xlabel="nats about the answer", ylabel="traces")
    axes.legend(fontsize=7)


def draw_checkpoints(figure: Figure, table: Table) -> None:
    axes = figure.subplots()
    places = range(len(table.rows))
    middle = np.array(table.column("information"), dtype=float)
    axes.errorbar(places, middle, [middle - table.column("low"), np.array(table.column("high")) - middle], fmt="o-", capsize=2, label="of the chain")
    axes.plot(places, table.column("information_other"), "x--", label="of another's chain")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set_xticks(list(places), table.column("model"), rotation=30, ha="right", fontsize=7)
    axes.set(ylabel="nats about the answer")
    axes.legend(fontsize=7)


MEASURE = CotInformation
measure = CotInformation.measure
