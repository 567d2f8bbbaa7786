"""What a pipeline is made of: stages with their choices, read from YAML."""

from __future__ import annotations

import hashlib
import re
import string
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from isentrope.pipeline.document import PipelineError, Section, nearest
from isentrope.pipeline.flops import Costs
from isentrope.pipeline.scorers import Scorer, function_of

NAME = re.compile(r"[A-Za-z_]\w*")
SELECT = ("vote", "best", "first")
DRAWING = ("model", "temperature", "stop", "chat", "system", "top_k", "top_p", "min_p")


class Choice(NamedTuple):
    """One value of each of the keys of a stage that may be searched."""

    model: str
    samples: int
    max_new_tokens: int


Setting = dict[str, Choice]  # by the path of the stage


@dataclass(frozen=True)
class Stage:
    """One stage. kind: prompt (a model answers), function, or stages (a list of its own answers).

    Attributes:
        path: its name behind those of the stages and handlers that it is in, with dots between.
        prompt: the template of the model's prompt, or of what a function or list of stages is given as its question.
        models, samples, lengths: the choices; one each where nothing is to be searched.
        costs: of a function.
    """

    path: str
    place: str
    kind: str
    prompt: str
    models: tuple[str, ...] = ("",)
    samples: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = (0,)
    options: Mapping[str, Any] = field(default_factory=dict)  # of `isentrope sample`
    select: str = "vote"
    scorer: Scorer | None = None
    extract: re.Pattern[str] | None = None
    function: Callable[..., Any] | None = None
    costs: Costs | None = None
    stages: tuple[Stage, ...] = ()
    handlers: Mapping[str, Stage] = field(default_factory=dict)
    turns: int = 8
    end: str = "[EOQ]"

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def choices(self) -> list[Choice]:
        return [Choice(model, samples, length) for model in self.models for samples in self.samples for length in self.lengths]

    def inner(self) -> Iterator[Stage]:
        """It, then those within it."""
        yield self
        for stage in (*self.stages, *self.handlers.values()):
            yield from stage.inner()

    def extracted(self, text: str) -> str:
        """What of a text is the answer: the last match of `extract`, its first group where it has one; "" without a match."""
        if self.extract is None:
            return text.strip()
        found = list(self.extract.finditer(text))
        return (found[-1].group(1 if self.extract.groups else 0) or "").strip() if found else ""


def fields_of(template: str) -> list[str]:
    """The names in braces; {{ and }} are braces. Raises ValueError for what is no template."""
    found = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is not None:
            if spec or conversion or not NAME.fullmatch(name):
                raise ValueError(f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}} is no {{name}}")
            found.append(name)
    return found


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its names replaced; a name without a value is left out."""
    return "".join(text + ("" if name is None else values.get(name, "")) for text, name, _, _ in string.Formatter().parse(template))


def read_stages(sections: Sequence[Section], above: str = "") -> tuple[Stage, ...]:
    """The stages of a list, each of which may name those before it. Raises PipelineError."""
    found: list[Stage] = []
    for section in sections:
        name = section.text("name")
        if not NAME.fullmatch(name) or name == "question":
            raise section.wrong("name", f"is '{name}'; wanted letters, digits and _, and not question, which stands for what is asked")
        if name in [stage.name for stage in found]:
            raise section.wrong("name", f"is '{name}', which another stage of the list has")
        found.append(read_stage(section, f"{above}{name}", [stage.name for stage in found]))
    return tuple(found)


def template_of(section: Section, before: Sequence[str], default: str | None) -> str:
    text = section.text("prompt", default)
    try:
        names = fields_of(text)
    except ValueError as error:
        raise section.wrong("prompt", f"is no template: {error}; wanted {{question}} or the name of an earlier stage, and {{{{ for a brace") from None
    for name in names:
        if name != "question" and name not in before:
            raise section.wrong("prompt", f"names {{{name}}}, which is no earlier stage; {nearest(name, ['question', *before], 'there are')}")
    return text


def read_stage(section: Section, path: str, before: Sequence[str]) -> Stage:
    kinds = [key for key in ("function", "stages") if key in section] or ["prompt"]
    if len(kinds) > 1 or kinds != ["prompt"] and "handlers" in section:
        raise section.wrong("", "has several of function, stages and handlers; wanted one: a function, a list of stages, or a model with handlers")
    kind, place = kinds[0], section.document.place(section.path)
    section.known.append("name")
    prompt = template_of(section, before, None if kind == "prompt" else "{question}")
    if kind == "stages":
        stage = Stage(path, place, kind, prompt, stages=read_stages(section.sections("stages"), f"{path}."))
        section.done()
        return stage
    if kind == "prompt" and (missing := [key for key in ("model", "max_new_tokens") if key not in section]):
        raise section.wrong("", f"has no {missing[0]}; wanted model: the folder of a model, and max_new_tokens: the longest answer (or function, or stages)")
    samples = section.several("samples", [1], int, 1)
    lengths = section.several("max_new_tokens", [0], int, 1 if kind == "prompt" else 0)
    select = section.text("select", "vote", SELECT)
    if select == "first" and samples != (1,):
        raise section.wrong("select", "is first, which takes one sample of several; wanted vote or best, or samples: 1")
    scorer = Scorer.of(section, "scorer") if select == "best" else None
    extract = extract_of(section)
    common: dict[str, Any] = {"samples": samples, "select": select, "scorer": scorer, "extract": extract}
    if kind == "function":
        models = section.several("model", [""], str)
        made = Stage(path, place, kind, prompt, models, lengths=lengths, function=function_of(section, "function", section.text("function")), costs=costs_of(section, models), **common)
    else:
        models = section.several("model", [""], str)
        handlers = read_handlers(section.section("handlers"), path) if "handlers" in section else {}
        made = Stage(path, place, kind, prompt, models, lengths=lengths, options=options_of(section), handlers=handlers,
                     turns=section.number("turns", 8, 1), end=section.text("end", "[EOQ]"), **common)  # fmt: skip
        if not handlers and (wrong := [key for key in ("turns", "end") if key in section]):
            raise section.wrong(wrong[0], "is for a stage with handlers")
    section.done()
    return made


def read_handlers(section: Section, path: str) -> dict[str, Stage]:
    """{name: {function: …}, name: {stages: […]}, name: {model: …, prompt: …}}."""
    found: dict[str, Stage] = {}
    for name in section.value:
        if not NAME.fullmatch(name):
            raise section.wrong(name, "is no name of a handler; wanted letters, digits and _")
        found[name] = read_stage(section.section(name), f"{path}.{name}", [])
    if not found:
        raise section.wrong("", "is empty; wanted NAME: {function: MODULE:FUNCTION}, NAME: {stages: […]} or NAME: {model: …}")
    section.done()
    return found


def extract_of(section: Section) -> re.Pattern[str] | None:
    text = section.text("extract", "")
    try:
        return re.compile(text, re.DOTALL) if text else None
    except re.error as error:
        raise section.wrong("extract", f"is '{text}', no regular expression: {error}") from None


def options_of(section: Section) -> dict[str, Any]:
    """What `isentrope sample` is told beside model, samples and length."""
    options: dict[str, Any] = {"temperature": section.number("temperature", 1.0, 0, 100), "top_k": section.number("top_k", 0, 0),
                               "top_p": section.number("top_p", 1.0, 0, 1), "min_p": section.number("min_p", 0.0, 0, 1),
                               "stop": list(section.several("stop", [], str)), "chat": section.flag("chat"), "system": section.text("system", "")}  # fmt: skip
    if options["system"] and not options["chat"]:
        raise section.wrong("system", "is for a stage with chat: true")
    return options


def costs_of(section: Section, models: Sequence[str]) -> Costs:
    inner = section.section("flops")
    found: dict[str, dict[str, float]] = {}
    for key in ("once", "each", "token"):
        value = inner.raw(key)
        if isinstance(value, dict):
            if missing := [model for model in models if model not in value]:
                raise inner.wrong(key, f"has no number for {missing[0]}")
            found[key] = {model: inner.checked(key, value[model], float, 0) for model in models}
        else:
            found[key] = {"": inner.checked(key, 0.0 if value is None else value, float, 0)}
    inner.done()
    return Costs(**found)


def source_digest(stages: Sequence[Stage], scorer: Scorer) -> str:
    """Of the files that functions stand in, so that a result is not taken for that of other code."""
    functions = [one.function for stage in stages for one in stage.inner() if one.function]
    functions += [one.scorer.function for stage in stages for one in stage.inner() if one.scorer]
    digest = hashlib.sha256()
    for function in [*functions, scorer.function]:
        file = getattr(sys.modules.get(getattr(function, "__module__", "")), "__file__", None)
        if file and Path(file).suffix == ".py":
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


__all__ = ["Choice", "PipelineError", "Setting", "Stage", "fields_of", "filled", "read_stages", "source_digest"]
