"""`constraints`: the share of instructions that a model follows, by checkers that run here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from isentrope.diagnose.completions import written
from isentrope.diagnose.constraint_kinds import ConstraintError
from isentrope.diagnose.constraints import checked, holds, holds_loosely, rates
from isentrope.diagnose.intervals import wilson
from isentrope.diagnose.measure import DiagnoseError, Measure, Option, Result, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Constraints(Measure):
    NAME = "constraints"
    WHAT = "share of instructions followed (counts, keywords, case, layout, structure, order), by prompt and by constraint"
    SOURCE = "IFEval, IFBench, CCR-Bench"
    OPTIONS = {
        "max_new_tokens": Option(128, "tokens of an answer at most", least=1),
        "chat": Option(True, "prompts go through the chat template where the tokenizer has one"),
    }

    def _asked(self) -> list[list[Mapping[str, Any]]]:
        found = []
        for number, constraints in enumerate(self.data.column("constraints", list), 1):
            try:
                if not constraints:
                    raise ConstraintError("the list is empty; wanted one constraint at least")
                found.append([checked(one) for one in constraints])
            except ConstraintError as error:
                raise DiagnoseError(f"{self.data.name}: constraints of text {number}: {error}") from None
        return found

    def _answers(self, prompts: Sequence[str]) -> list[str]:
        records = self.data.records
        if all("response" in record for record in records):
            return self.data.column("response")
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise DiagnoseError(f"{self.model.name}: has no tokenizer (tokenizer.json), which texts need; or give each line a response")
        rows = []
        for prompt in prompts:
            if self.options["chat"] and getattr(tokenizer, "chat_template", None):
                text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
                rows.append(tokenizer(text, add_special_tokens=False)["input_ids"])
            else:
                rows.append(self.model.encode(prompt))
        return written(self.model, rows, self.options["max_new_tokens"], partial(self.progress, "answers"))

    def finish(self) -> Result:
        asked = self._asked()
        prompts = self.data.column("prompt")
        answers = self._answers(prompts)
        given = "by the key response of the lines" if all("response" in record for record in self.data.records) else f"greedy, {self.options['max_new_tokens']} tokens at most"
        strict = [[holds(one, answer, prompt) for one in row] for row, answer, prompt in zip(asked, answers, prompts)]
        loose = [[holds_loosely(one, answer, prompt) for one in row] for row, answer, prompt in zip(asked, answers, prompts)]
        table = Table({"kind": "", "n": "", "followed": "share", "low": "95 %", "high": "95 %", "loosely": "share"})
        kinds = [one["kind"] for row in asked for one in row]
        flat, flat_loose = [kept for row in strict for kept in row], [kept for row in loose for kept in row]
        for kind in sorted(set(kinds)):
            own = [kept for kept, name in zip(flat, kinds) if name == kind]
            table.add(kind, len(own), sum(own) / len(own), *wilson(sum(own), len(own)), sum(kept for kept, name in zip(flat_loose, kinds) if name == kind) / len(own))
        numbers_table = Table({"constraints": "a prompt", "prompts": "", "hsr": "", "ssr": ""})
        for number in sorted({len(row) for row in asked}):
            rows = [row for row in strict if len(row) == number]
            own_rates = rates(rows)
            numbers_table.add(number, len(rows), own_rates["hsr"], own_rates["ssr"])
        told, told_loosely = rates(strict), rates(loose)
        texts = Table({"prompt": "", "response": "", "kept": "of its constraints"})
        for prompt, answer, row in zip(prompts, answers, strict):
            texts.add(prompt, answer, f"{sum(row)}/{len(row)}")
        notes = ["shares of easy constraints are high whatever the model does: compare a kind with the same kind of another model"]
        empty = sum(not answer.strip() for answer in answers)
        if empty:
            notes.append(f"{empty} of {len(answers)} answers are empty, and keep no constraint")
        numbers = {"HSR": told["hsr"], "SSR": told["ssr"], "instructions followed": told["instruction"], "HSR, loosely": told_loosely["hsr"],
                   "instructions followed, loosely": told_loosely["instruction"], "prompts": len(asked), "constraints": len(flat)}  # fmt: skip
        variant = ("HSR: share of prompts of which all constraints hold; SSR: mean over prompts of the share that holds; an empty answer keeps none; loosely: any of eight "
                   f"texts (without *, first line, last line) keeps it; answers {given}")  # fmt: skip
        return Result(table, variant, numbers, {"by_number": numbers_table, "answers": texts}, notes, draw=lambda figure: draw(figure, table))


def draw(figure: Figure, table: Table) -> None:
    axes = figure.subplots()
    rows = sorted(table.rows, key=lambda row: row[2])
    shares = [row[2] for row in rows]
    axes.barh([row[0] for row in rows], shares, xerr=[[row[2] - row[3] for row in rows], [row[4] - row[2] for row in rows]], color="C0", alpha=0.7, capsize=2)
    axes.plot([row[5] for row in rows], range(len(rows)), "k|", label="loosely")
    axes.set(xlabel="share followed", xlim=(0, 1))
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(fontsize=7)


MEASURE = Constraints
measure = Constraints.measure
