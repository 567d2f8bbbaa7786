"""A YAML file whose every error names file, line, path and what was wanted: configurations that are read in Python."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class PipelineError(Exception):
    """What is wrong with the configuration, the data, a model or a function: the thing, what came, what was wanted."""


def nearest(word: str, names: Sequence[str], what: str) -> str:
    """ "did you mean 'x'?", or what there is."""
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean '{near[0]}'?" if near else f"{what} are {', '.join(names)}"


class Document:
    """The values of a file, each with the line where it stands; overrides KEY.PATH=VALUE stand in the place of the file's values. An
    element of a list has the name of its key `name`, or else its number.

    Raises:
        PipelineError: the file cannot be read, is no mapping, or an override names what is not there.
    """

    def __init__(self, file: Path, overrides: Sequence[str] = ()) -> None:
        self.file = file
        self.lines: dict[str, str] = {}
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise PipelineError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}; name a YAML file") from None
        self.value = self._parsed(text, "", lambda line: f"{file}:{line}")
        if not isinstance(self.value, dict):
            raise PipelineError(f"{file}: is no mapping of keys; wanted pipeline, data and scorer (docs/pipelines.md)")
        for override in overrides:
            self._override(override)

    def _parsed(self, text: str, path: str, place: Any) -> Any:
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = place(mark.line + 1) if mark else str(self.file)
            raise PipelineError(f"{where}: is no YAML: {getattr(error, 'problem', None) or error}") from None
        return None if node is None else self._plain(node, path, place)

    def _plain(self, node: yaml.Node, path: str, place: Any) -> Any:
        self.lines[path] = place(node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key, value in node.value:
                name = str(key.value)
                if name in found:
                    raise PipelineError(f"{place(key.start_mark.line + 1)}: {joined(path, name)} is given twice")
                found[name] = self._plain(value, joined(path, name), place)
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(one, joined(path, self._element(one, i)), place) for i, one in enumerate(node.value)]
        return yaml.safe_load(yaml.serialize(node))

    @staticmethod
    def _element(node: yaml.Node, number: int) -> str:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == "name" and isinstance(value, yaml.ScalarNode):
                    return str(value.value)
        return str(number)

    def _override(self, word: str) -> None:
        path, equals, text = word.partition("=")
        parts = path.split(".")
        said = f"'{word}' on the command line"
        if not equals or not all(parts):
            raise PipelineError(f"{said}: wanted KEY.PATH=VALUE, such as seed=2")
        here: Any = self.value
        for i, part in enumerate(parts):
            last = i + 1 == len(parts)
            if isinstance(here, list):
                names = [str(one["name"]) if isinstance(one, dict) and "name" in one else str(j) for j, one in enumerate(here)]
                place = names.index(part) if part in names else int(part) if part.isdecimal() and int(part) < len(here) else -1
                if place < 0:
                    raise PipelineError(f"{said}: {'.'.join(parts[:i])} has no '{part}'; {nearest(part, names, 'it has')}")
                key: Any = place
            elif isinstance(here, dict):
                key = part
            else:
                raise PipelineError(f"{said}: {'.'.join(parts[:i])} is a single value and has no '{part}'")
            if last:
                here[key] = self._parsed(text, path, lambda line: said)
            elif isinstance(key, str):
                here = here.setdefault(key, {})
            else:
                here = here[key]

    def place(self, path: str) -> str:
        """FILE:LINE: PATH, of the nearest that has a line."""
        upper = path
        while upper and upper not in self.lines:
            upper = upper.rpartition(".")[0]
        return f"{self.lines.get(upper, str(self.file))}: {path}"

    def root(self) -> Section:
        return Section(self, "", self.value)


def joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


class Section:
    """A mapping of the file, whose keys are taken one by one; done() refuses those that nobody took."""

    def __init__(self, document: Document, path: str, value: Mapping[str, Any]) -> None:
        self.document, self.path, self.value = document, path, value
        self.known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) is not None

    def wrong(self, key: str, what: str) -> PipelineError:
        return PipelineError(f"{self.document.place(joined(self.path, key) if key else self.path)} {what}")

    def raw(self, key: str) -> Any:
        """None where the key is not there."""
        self.known.append(key)
        return self.value.get(key)

    def text(self, key: str, default: str | None = None, choices: Sequence[str] = ()) -> str:
        """A number stands for its text. default: None where the key has to be there."""
        value = self.raw(key)
        if value is None:
            if default is None:
                raise self.wrong("", f"has no {key}; wanted {key}: {'a text' if not choices else ' or '.join(choices)}".lstrip())
            return default
        if isinstance(value, (dict, list, bool)):
            raise self.wrong(key, f"is {shown(value)}; wanted a text")
        found = str(value)
        if choices and found not in choices:
            raise self.wrong(key, f"is '{found}'; {nearest(found, list(choices), 'its values')}")
        return found

    def number(self, key: str, default: Any, least: float, most: float = float("inf")) -> Any:
        """Of default's type. None as a default gives a number with a fraction, or None."""
        value = self.raw(key)
        return default if value is None else self.checked(key, value, int if type(default) is int else float, least, most)

    def checked(self, key: str, value: Any, kind: type, least: float, most: float = float("inf")) -> Any:
        wanted = f"wanted {'a whole number' if kind is int else 'a number'} from {least:g}" + (f" to {most:g}" if most < float("inf") else " on")
        if kind is float and isinstance(value, str):  # YAML reads 1e9, without a point, as a text
            try:
                value = float(value)
            except ValueError:
                raise self.wrong(key, f"is '{value}'; {wanted}") from None
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int) or not least <= value <= most:
            raise self.wrong(key, f"is {shown(value)}; {wanted}")
        return kind(value)

    def flag(self, key: str) -> bool:
        value = self.raw(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, f"is {shown(value)}; wanted true or false")
        return bool(value)

    def several(self, key: str, default: Sequence[Any], kind: type, least: float = 0) -> tuple[Any, ...]:
        """One value or a list of them, each once."""
        value = self.raw(key)
        values = list(default) if value is None else value if isinstance(value, list) else [value]
        if not values and default:
            raise self.wrong(key, "is an empty list; wanted a value, or several to choose from")
        if kind is str:
            if wrong := [one for one in values if not isinstance(one, (str, int, float)) or isinstance(one, bool)]:
                raise self.wrong(key, f"holds {shown(wrong[0])}; wanted texts")
            found = tuple(map(str, values))
        else:
            found = tuple(self.checked(key, one, kind, least) for one in values)
        if twice := [one for one in found if found.count(one) > 1]:
            raise self.wrong(key, f"holds {shown(twice[0])} twice")
        return found

    def section(self, key: str) -> Section:
        """An empty one where the key is not there."""
        value = self.raw(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, f"is {shown(value)}; wanted a mapping of keys")
        return Section(self.document, joined(self.path, key), value or {})

    def sections(self, key: str) -> list[Section]:
        """Of a list of mappings, each with a name of its own."""
        value = self.raw(key)
        if not isinstance(value, list) or not value:
            raise self.wrong(key, f"is {shown(value)}; wanted a list of stages, - {{name: …, …}}")
        found: list[Section] = []
        for i, one in enumerate(value):
            if not isinstance(one, dict):
                raise self.wrong(f"{key}.{i}", f"is {shown(one)}; wanted a mapping, {{name: …, …}}")
            found.append(Section(self.document, joined(joined(self.path, key), str(one.get("name", i))), one))
        return found

    def done(self) -> None:
        for key in self.value:
            if key not in self.known:
                raise self.wrong(key, f"is no key of this place; {nearest(key, self.known, 'its keys')}")


def shown(value: Any) -> str:
    if value is None:
        return "not there"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
