"""The chat template of a model: from messages to the text that it was trained on, as transformers renders it.

A template is written in Jinja and stands in the folder of the model's tokenizer: chat_template.jinja (with more, by name, in
additional_chat_templates/), or the key chat_template of tokenizer_config.json, a text or a list of {name, template}. It is run in Jinja's
sandbox, with what transformers gives to it: the names of the special tokens, raise_exception, strftime_now, tojson, loop controls, and
{% generation %} … {% endgeneration %} around what an assistant says.

The trainer, which has no Python, runs this file by its path, so it imports neither torch nor the package; see main().
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

CONFIG, FILE, MORE = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing by three names; the first is the one that templates read


class ChatTemplateError(ValueError):
    """What is wrong with a template, or with messages under it, for a person."""


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ChatTemplateError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ChatTemplateError(f"{path} is not a JSON object; the file is damaged")
    return value


def _token(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None


def special_tokens(folder: Path) -> dict[str, str]:
    """The names of special tokens by which a template calls them: {"bos_token": "<s>"}."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", CONFIG):
        if not (folder / file).is_file():
            continue
        values = _object(folder / file)
        more = values.get("extra_special_tokens")
        named = {**(more if isinstance(more, dict) else {}), **{name: values.get(name) for name in SPECIAL}}
        found.update({name: token for name, value in named.items() if (token := _token(value)) is not None})
    return found


def templates_of(folder: Path) -> dict[str, tuple[str, str]]:
    """{name: (template, the place where it stands)} of a folder; the one of a model that has one is "default"."""
    found: dict[str, tuple[str, str]] = {}
    config = folder / CONFIG
    held = _object(config).get("chat_template") if config.is_file() else None
    if isinstance(held, str):
        found["default"] = held, f"{config}: chat_template"
    elif isinstance(held, list):
        for number, one in enumerate(held):
            if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("name", "template")):
                raise ChatTemplateError(f"{config}: chat_template[{number}] is not {{name, template}}, both of them texts")
            found[one["name"]] = one["template"], f"{config}: chat_template {one['name']}"
    elif held is not None:
        raise ChatTemplateError(f"{config}: chat_template is a {type(held).__name__}; wanted a text, or a list of {{name, template}}")
    files = {"default": folder / FILE} if (folder / FILE).is_file() else {}
    files.update({path.stem: path for path in sorted((folder / MORE).glob("*.jinja"))})
    found.update({name: (path.read_text(encoding="utf-8"), str(path)) for name, path in files.items()})
    return found


def _message(value: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates see it: without keys whose value is None, its reasoning under every name of that."""
    given = {key: item for key, item in value.items() if item is not None}
    reasoning = next((given[name] for name in REASONING if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _environment() -> Any:
    try:
        import jinja2
        import jinja2.ext
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError:
        raise ChatTemplateError(f"a chat template needs the package jinja2, which {sys.executable} has not; pip install jinja2") from None

    class Generation(jinja2.ext.Extension):
        """{% generation %}: notes where in the text its body stands, while `blocks` is a list."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own form)

        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            environment.extend(blocks=None, spans=[])

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

        def _note(self, caller: Any) -> str:
            text = caller()
            blocks = self.environment.blocks  # type: ignore[attr-defined]
            if blocks is not None:
                start = sum(map(len, blocks))
                self.environment.spans.append((start, start + len(text)))  # type: ignore[attr-defined]
            return text

    class Namespace(jinja2.utils.Namespace):
        """Takes no names of Python's own, which lead out of the sandbox."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace takes no name with an underscore before it: {name!r}")
            super().__setitem__(name, value)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                               extensions=[Generation, jinja2.ext.loopcontrols])  # fmt: skip
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=lambda form: datetime.now().strftime(form),
                               dict=lambda *given, **named: dict(*given, **named), namespace=Namespace)  # fmt: skip
    return environment


class ChatTemplate:
    """A template with the special tokens that it names.

    Args:
        text: the template, in Jinja.
        place: where it stands, for what is told of it: a file, and in it the key.
        special: names of special tokens, as ``{"bos_token": "<s>"}``.
    """

    def __init__(self, text: str, place: str, special: Mapping[str, str] | None = None) -> None:
        self.place = place
        self._special = dict(special or {})
        self._environment = _environment()
        import jinja2

        try:
            self._template = self._environment.from_string(text)
            self.marks = any(token == "generation" and kind == "name" and before == "block_begin"
                             for (_, before, _), (_, kind, token) in _neighbours(self._environment.lex(text)))  # fmt: skip
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"{place}, line {error.lineno}: {error.message}") from None

    @classmethod
    def of(cls, folder: str | os.PathLike[str] | None, template: str | None = None, tools: bool = False) -> ChatTemplate:
        """The template of a model's folder.

        Args:
            folder: of the tokenizer; None for one without a folder, and then the template is a file.
            template: a file that holds one, or the name of one of the folder's; None for the folder's own: of several, tool_use where
                there are tools, else default.

        Raises:
            ChatTemplateError: there is none, or it is none of Jinja.
        """
        root = None if folder is None else Path(folder)
        special = special_tokens(root) if root else {}
        if template is not None and (template.endswith(".jinja") or os.sep in template or Path(template).is_file()):
            try:
                return cls(Path(template).read_text(encoding="utf-8"), template, special)
            except (OSError, UnicodeDecodeError) as error:
                raise ChatTemplateError(f"the chat template {template} cannot be read: {error}") from None
        if root is None:
            raise ChatTemplateError(f"there is no file {template}, and the tokenizer has no folder with templates")
        there = templates_of(root)
        if not there:
            raise ChatTemplateError(f"{root} has no chat template: neither {FILE} nor chat_template in {CONFIG}")
        name = template if template is not None else "tool_use" if tools and "tool_use" in there else "default"
        if name not in there:
            raise ChatTemplateError(f"{root} has no chat template {name}; there are {', '.join(sorted(there))}, and a file is named "
                                    "by its path, as ./mine.jinja")  # fmt: skip
        return cls(*there[name], special)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None,
               add_generation_prompt: bool = False, **more: Any) -> str:  # fmt: skip
        """The text of the messages. more: what else the template reads.

        Raises:
            ChatTemplateError: the template refuses them, or fails on them; with its line.
        """
        return self.spans(messages, tools, add_generation_prompt, **more)[0]

    def spans(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None,
              add_generation_prompt: bool = False, **more: Any) -> tuple[str, list[tuple[int, int]]]:  # fmt: skip
        """render(), with [start, end) in characters of each part that stands between {% generation %} and its end."""
        blocks: list[str] = []
        spans: list[tuple[int, int]] = []
        self._environment.blocks, self._environment.spans = blocks, spans
        given = {**self._special, **more, "messages": [_message(message) for message in messages], "tools": tools, "documents": None,
                 "add_generation_prompt": add_generation_prompt}  # fmt: skip
        try:
            for block in self._template.generate(given):
                blocks.append(block)
        except Exception as error:  # a template can fail as any program can
            place = error.__traceback__
            line = None
            while place is not None:
                line = place.tb_lineno if place.tb_frame.f_code.co_filename == "<template>" else line
                place = place.tb_next
            what = str(error) if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {error}"
            raise ChatTemplateError(f"{self.place}{'' if line is None else f', line {line}'}: {what or type(error).__name__}") from None
        finally:
            self._environment.blocks = None
        return "".join(blocks), spans


def _neighbours(tokens: Iterable[tuple[int, str, str]]) -> Iterable[tuple[tuple[int, str, str], tuple[int, str, str]]]:
    before = (0, "", "")
    for token in tokens:
        if token[1] == "whitespace":
            continue
        yield before, token
        before = token


# ---- what of a conversation is learnt ---------------------------------------------------------------------------------


def _after(text: str, start: int, limit: int, ends: Sequence[str]) -> int | None:
    """Behind the first end of sequence in text[start:limit]; None where there is none."""
    found = [(at, -len(end)) for end in ends if (at := text.find(end, start, limit)) >= 0]
    return None if not found else min(found)[0] - min(found)[1]


def _by_prefix(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], first: int, ends: Sequence[str], text: str,
               more: Mapping[str, Any]) -> list[tuple[int, int]]:  # fmt: skip
    spans = []
    for number, message in enumerate(messages):
        if number < first or message["role"] != "assistant":
            continue
        if number == 0:
            raise ChatTemplateError("messages[0] is an assistant's, which follows no prompt; put a message before it")
        prompt = template.render(messages[:number], add_generation_prompt=True, **more)
        if not text.startswith(prompt):
            raise ChatTemplateError(
                f"{template.place}: what the template writes before messages[{number}], an assistant's, as a prompt is not what it writes "
                "there in the whole conversation, so that what is learnt cannot be told; mark it in the template with {% generation %} and "
                "{% endgeneration %}, or write data.jsonl.chat_template: none")  # fmt: skip
        whole = text if number + 1 == len(messages) else template.render(messages[: number + 1], **more)
        limit = len(whole) if text.startswith(whole) else None
        end = _after(text, len(prompt), len(text) if limit is None else limit, ends) or limit
        if end is None:
            raise ChatTemplateError(f"{template.place}: the template writes no end of sequence behind messages[{number}], an assistant's, and "
                                    "another text once more messages follow; mark what is learnt with {% generation %}")  # fmt: skip
        spans.append((len(prompt), end))
    return spans


def _by_marks(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], first: int, ends: Sequence[str], text: str,
              marked: Sequence[tuple[int, int]], more: Mapping[str, Any]) -> list[tuple[int, int]]:  # fmt: skip
    def begins(number: int) -> int:  # what is written before messages[number]
        return len(os.path.commonprefix([text, template.render(messages[:number], add_generation_prompt=True, **more)])) if number else 0

    last, after = begins(len(messages) - 1), begins(first)
    spans: list[tuple[int, int]] = []
    for start, end in marked:
        end += next((len(name) for name in ends if text.startswith(name, end)), 0)
        if start >= end or start < after:
            continue
        if spans and (start <= spans[-1][1] or spans[-1][0] >= last):  # of one message
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
    if not spans or spans[-1][0] < last:
        raise ChatTemplateError(f"{template.place}: the template marks nothing of messages[{len(messages) - 1}], the last, with {{% generation %}}")
    return spans


def pieces(template: ChatTemplate, conversation: Mapping[str, Any], ends: Sequence[str]) -> dict[str, Any]:
    """A conversation as what is read and what is learnt.

    Args:
        conversation: messages; tools and chat_template_kwargs, where there are some; learnt_from: how many messages are not learnt,
            whoever says them.
        ends: names of the tokens that end a sequence.

    Returns:
        turns: [text, learnt] of what stands before the completion; completion: what the last message says where it is an assistant's,
        else "", and then the turns end in the generation prompt; end: what ends the completion, "" where the template writes nothing.
    """
    messages, first = conversation["messages"], conversation.get("learnt_from", 0)
    given = conversation.get("chat_template_kwargs") or {}
    if not isinstance(given, Mapping) or given.keys() & {"messages", "tools", "add_generation_prompt"}:
        raise ChatTemplateError("chat_template_kwargs is not an object with what the template reads beside messages, tools and add_generation_prompt")
    more = {"tools": conversation.get("tools"), **given}
    if first >= len(messages) or messages[-1].get("role") != "assistant":
        return {"turns": [[template.render(messages, add_generation_prompt=True, **more), False]], "completion": "", "end": ""}
    for number, message in enumerate(messages[first:], first):
        content = message.get("content")
        end = next((name for name in ends if isinstance(content, str) and name in content), None)
        if message.get("role") == "assistant" and end is not None:
            raise ChatTemplateError(f'messages[{number}].content holds "{end}", which ends a sequence; take it out, the template writes it')
    text, marked = template.spans(messages, **more)
    if template.marks:
        spans = _by_marks(template, messages, first, ends, text, marked, more)
    else:
        spans = _by_prefix(template, messages, first, ends, text, more)
    turns: list[list[Any]] = []
    done = 0
    for start, end in spans[:-1]:
        turns += [[text[done:start], False], [text[start:end], True]]
        done = end
    start, end = spans[-1]
    turns.append([text[done:start], False])
    completion = text[start:end]
    last = next((name for name in ends if completion.endswith(name)), "")
    return {"turns": [turn for turn in turns if turn[0]], "completion": completion.removesuffix(last), "end": last}


def main() -> int:
    """Of the trainer: lines of JSON from standard input to standard output.

    The first names the folder, the template (null for the folder's own) and the ends of sequence, each other one is a conversation. The
    answer to that is pieces(), or {"problem": …}; {"fatal": …} is the only line where there is no template to render with.
    """
    lines = sys.stdin.buffer
    header = json.loads(lines.readline())
    made: dict[bool, ChatTemplate] = {}

    def of(tools: bool) -> ChatTemplate:
        if tools not in made:
            made[tools] = ChatTemplate.of(header["folder"], header["template"], tools)
        return made[tools]

    def answer(value: dict[str, Any]) -> None:
        sys.stdout.buffer.write(json.dumps(value, ensure_ascii=True).encode() + b"\n")

    try:
        of(False)
    except ChatTemplateError as error:
        answer({"fatal": str(error)})
        return 0
    for line in lines:
        conversation = json.loads(line)
        try:
            answer(pieces(of(bool(conversation.get("tools"))), conversation, header["ends"]))
        except ChatTemplateError as error:
            answer({"problem": str(error)})
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
