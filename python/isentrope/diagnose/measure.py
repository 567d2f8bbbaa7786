"""What a measure is: a class of one file in measures/, which says what it needs of a pass over the data and makes a Result of it."""

from __future__ import annotations

import csv
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isentrope.diagnose.data import Data
    from isentrope.diagnose.model import Batch, Model


class DiagnoseError(Exception):
    """What is wrong with the folder, the data or the options: the thing, what came, what was wanted."""


@dataclass(frozen=True)
class Option:
    """A key=value of a measure. Its type is that of the default; of None a text."""

    default: Any
    meaning: str
    least: float | None = None  # of numbers
    most: float | None = None
    choices: Sequence[str] = ()

    def parse(self, name: str, text: str) -> Any:
        """Raises DiagnoseError for a text that is none of the kind."""
        kind = type(self.default)
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a text")
        try:
            if kind is bool:
                value: Any = {"true": True, "false": False}[text.lower()]
            elif kind in (int, float):
                value = kind(text)
                if not math.isfinite(value):
                    raise ValueError
            else:
                value = text
        except (ValueError, KeyError):
            raise DiagnoseError(f"{name}={text}; wanted {wanted}") from None
        if self.choices and value not in self.choices:
            raise DiagnoseError(f"{name}={text}; wanted one of {', '.join(self.choices)}")
        if kind in (int, float):
            if self.least is not None and value < self.least:
                raise DiagnoseError(f"{name}={text}; wanted at least {self.least:g}")
            if self.most is not None and value > self.most:
                raise DiagnoseError(f"{name}={text}; wanted at most {self.most:g}")
        return value


@dataclass
class Table:
    """Rows of named columns: columns is {name: unit}, with "" where there is no unit. A cell is a number, a text or None."""

    columns: dict[str, str]
    rows: list[list[Any]] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns {list(self.columns)}")
        self.rows.append([plain(cell) for cell in cells])

    def column(self, name: str) -> list[Any]:
        place = list(self.columns).index(name)
        return [row[place] for row in self.rows]

    def heads(self) -> list[str]:
        return [f"{name} ({unit})" if unit else name for name, unit in self.columns.items()]

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.heads())
        writer.writerows(["" if cell is None else cell for cell in row] for row in self.rows)
        return out.getvalue()

    def as_object(self) -> dict[str, Any]:
        return {"columns": [{"name": name, "unit": unit} for name, unit in self.columns.items()], "rows": self.rows}


def plain(value: Any) -> Any:
    """A number of numpy or torch as Python's; None for one that is not finite, which JSON cannot hold."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass
class Result:
    """What a measure found.

    Attributes:
        table: what the measure tells; its CSV is NAME.csv.
        variant: which form of the formula was taken, in words, with its source.
        numbers: the figures of the whole, by name with the unit in it.
        tables: further tables by name, each a CSV of its own.
        notes: warnings, and what a reader must know to read the table.
        draw: draws on an empty matplotlib figure; None where there is nothing to draw.
        texts: coloured texts for the page: {"title", "tokens", "entropy"}, a number a token.
    """

    table: Table
    variant: str
    numbers: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    draw: Callable[[Figure], None] | None = None
    texts: list[dict[str, Any]] = field(default_factory=list)
    size: tuple[float, float] = (7.0, 4.0)  # of the figure, inches


class Measure(ABC):
    """One measure of one model. Its life: made, update() for each batch of the pass where it needs one, finish().

    Attributes:
        NAME, WHAT, SOURCE: as the command line names it, one line of what it tells, and the paper.
        NEEDS: of a pass over the data, among "hidden" (hidden states of all layers), "attention" (entropies of all heads), "bound"
            (the certificate beside them), "tokens" (log-probability and entropy of each token), "mixers" (rows and states of model.mixers). Empty: the measure takes
            no part in the pass.
        LABELS: whether each text needs a label.
        DATA: whether --data has to be given.
        OPTIONS: {key: Option}.
    """

    NAME: ClassVar[str]
    WHAT: ClassVar[str]
    SOURCE: ClassVar[str] = ""
    NEEDS: ClassVar[frozenset[str]] = frozenset()
    LABELS: ClassVar[bool] = False
    DATA: ClassVar[bool] = True
    OPTIONS: ClassVar[Mapping[str, Option]] = {}

    def __init__(self, model: Model, data: Data | None, options: Mapping[str, Any] | None = None, say: Callable[..., None] | None = None) -> None:
        self.model = model
        self._data = data
        unknown = [key for key in options or {} if key not in self.OPTIONS]
        if unknown:
            raise DiagnoseError(f"{self.NAME} has no option {unknown[0]!r}; it has {', '.join(self.OPTIONS) or 'none'}")
        self.options = {key: option.default for key, option in self.OPTIONS.items()} | dict(options or {})
        self._say = say
        if data is None and (self.DATA or self.NEEDS):
            raise DiagnoseError(f"{self.NAME} needs data: --data FILE, .jsonl with a text a line, or plain text")
        if self.LABELS and data is not None:
            data.labels  # raises where there are none

    @property
    def data(self) -> Data:
        assert self._data is not None
        return self._data

    def progress(self, what: str, done: int, of: int) -> None:
        """For long work in finish()."""
        if self._say:
            self._say(f"{self.NAME}: {what}", done, of)

    def update(self, batch: Batch) -> None:
        """Takes what it wants of a batch, and keeps nothing else."""

    @abstractmethod
    def finish(self) -> Result: ...

    @classmethod
    def measure(cls, model: Model, data: Data | None = None, options: Mapping[str, Any] | None = None, **settings: Any) -> Result:
        """This measure alone: isentrope.diagnose.measured() of one name."""
        from isentrope.diagnose import measured

        return measured(model, [cls.NAME], data, {cls.NAME: dict(options or {})}, **settings)[cls.NAME]

    @classmethod
    def over(cls, results: Sequence[tuple[str, Result]]) -> Result:
        """Of several models or checkpoints in the order given: by default the tables below each other, named in a first column, and so the
        figures, of six at most; coloured texts of the first and the last."""
        from isentrope.report.samples import spread

        first = results[0][1]
        table = Table({"model": "", **first.table.columns})
        tables = {name: Table({"model": "", **one.columns}) for name, one in first.tables.items()}
        numbers: dict[str, Any] = {}
        notes: list[str] = []
        for name, result in results:
            table.rows += [[name, *row] for row in result.table.rows]
            for key, own in result.tables.items():
                if key in tables:
                    tables[key].rows += [[name, *row] for row in own.rows]
            numbers |= {f"{name}: {key}": value for key, value in result.numbers.items()}
            notes += [f"{name}: {note}" for note in result.notes]
        ends = results if len(results) <= 2 else [results[0], results[-1]]
        texts = [{**text, "title": f"{name}: {text['title']}"} for name, result in ends for text in result.texts]
        some = spread(list(results), MOST_DRAWN)
        size = (first.size[0], sum(result.size[1] for _, result in some))
        draw = None if first.draw is None else lambda figure: below(figure, some)
        return Result(table, first.variant, numbers, tables, notes, draw, texts, size)


MOST_DRAWN = 6  # models of one figure, evenly over those that there are


def below(figure: Figure, results: Sequence[tuple[str, Result]]) -> None:
    """The figures of several models below each other."""
    parts: Any = figure.subfigures(len(results), 1, squeeze=False)
    for part, (name, result) in zip(parts[:, 0], results):
        part.suptitle(name)
        if result.draw:
            result.draw(part)


def finished(measure: Measure) -> Result:
    """finish(), with its numbers as JSON can hold them."""
    result = measure.finish()
    result.numbers = {key: plain(value) for key, value in result.numbers.items()}
    return result
