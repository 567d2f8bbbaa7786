"""Folders of models with one fault each: the refusal is one line that names what is wrong, and the model is not half opened.

What is wrong with config.json, names of shards and types of weights is in test_families.py.
"""

import json
import re
import shutil
import struct

import pytest
import torch
from test_families import VOCABULARY, make, run, save, spoil, tokenizer, write_config  # noqa: F401  (tokenizer: a fixture)

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):  # noqa: F811
    """A model in one file and the same in shards."""
    folder, model = tmp_path_factory.mktemp("models"), make("llama", num_hidden_layers=2)
    save(model, folder / "whole", tokenizer)
    save(model, folder / "shards", tokenizer, max_shard_size="20KB")
    return folder


def header_of(path):
    """(header, data) of a file of weights."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write_weights(path, header, data, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)


def in_header(name=None, **changes):
    """A fault: keys of one tensor's header, the first's where none is named, are changed."""

    def make_fault(folder):
        header, data = header_of(folder / "model.safetensors")
        header[name or next(key for key in header if key != "__metadata__")] |= changes
        write_weights(folder / "model.safetensors", header, data)

    return make_fault


def weights(**tensors):
    return lambda folder: spoil(folder, **{name.replace("__", "."): value for name, value in tensors.items()})


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def longer(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(7))


def length_of(size):
    def make_fault(folder):
        header, data = header_of(folder / "model.safetensors")
        write_weights(folder / "model.safetensors", header, data, size)

    return make_fault


def shapes_of_terabytes(folder):
    """Every tensor is said to have 2⁴⁰ rows, with offsets to match."""
    header, data = header_of(folder / "model.safetensors")
    at = 0
    for name, entry in header.items():
        if name != "__metadata__":
            entry["shape"] = [2**40, *entry["shape"][1:]]
            size = 4 * 2**40 * (entry["shape"][1] if len(entry["shape"]) > 1 else 1)
            entry["data_offsets"] = [at, at + size]
            at += size
    write_weights(folder / "model.safetensors", header, data)


def offsets(move):
    """The second tensor in the file is moved by some bytes towards the first."""

    def make_fault(folder):
        header, data = header_of(folder / "model.safetensors")
        entries = sorted((entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
        (begin, end), name = entries[1]
        header[name]["data_offsets"] = [begin - move, end - move]
        write_weights(folder / "model.safetensors", header, data)

    return make_fault


def replaced(name, change):
    """A fault: a JSON file is what change makes of it, or that text."""

    def make_fault(folder):
        path = folder / name
        content = change(json.loads(path.read_text())) if callable(change) else change
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    return make_fault


def without(name):
    return lambda folder: (folder / name).unlink()


DEEP = "[" * 100_000 + "]" * 100_000
AGAIN = "copy or download the file again"
# Fault → (of which model, what makes it, what the message has to name: what, what came, what was wanted, how to mend it).
FAULTS = {
    "another architecture": ("whole", replaced("config.json", lambda c: {**c, "model_type": "mamba", "architectures": ["MambaForCausalLM"]}),
                             ["config.json", "'mamba'", "llama, qwen2, qwen3, mistral", "docs/models.md"]),
    "no architecture": ("whole", replaced("config.json", lambda c: {k: v for k, v in c.items() if k != "model_type"}), ["config.json", "'model_type' is missing"]),
    "a missing tensor": ("whole", weights(model__norm__weight=None), ["model.safetensors", "missing: model.norm.weight"]),
    "tensors that are missing and tensors too many": (
        "whole", weights(model__norm__weight=None, model__layers__0__mlp__up_proj__weight=None, model__extra=torch.ones(2, 3), lm_head__bias=torch.ones(2)),
        ["missing: model.layers.0.mlp.up_proj.weight, model.norm.weight;", "without a place in this model: lm_head.bias [2], model.extra [2, 3]"]),
    "another shape": ("whole", weights(lm_head__weight=torch.ones(7, 32)), ["lm_head.weight is [7, 32], wanted [272, 32]"]),
    "more layers than there are weights": ("whole", replaced("config.json", lambda c: {**c, "num_hidden_layers": 3}),
                                           ["missing: model.layers.2.input_layernorm.weight", "and 4 more"]),
    "another width": ("whole", replaced("config.json", lambda c: {**c, "hidden_size": 64}), ["model.embed_tokens.weight is [272, 32], wanted [272, 64]"]),
    "an embedding smaller than the tokenizer": ("whole", replaced("config.json", lambda c: {**c, "vocab_size": 200}), ["its embedding has 200 rows, and the tokenizer 258 tokens", "take the tokenizer of the model"]),
    "no weights": ("whole", without("model.safetensors"), ["model.safetensors", "cannot be read: No such file"]),
    "no config.json": ("whole", without("config.json"), ["config.json"]),
    "no tokenizer": ("whole", without("tokenizer.json"), ["tokenizer.json"]),
    "weights cut short": ("whole", cut, ["model.safetensors: truncated: expected ", "found", AGAIN]),
    "bytes behind the weights": ("whole", longer, ["model.safetensors: expected ", "found", AGAIN]),
    "a header of 2⁶³ bytes": ("whole", length_of(2**63), ["model.safetensors: not a safetensors file (header length 9223372036854775808)", AGAIN]),
    "a header longer than the file": ("whole", length_of(90_000_000), ["model.safetensors: truncated: expected 90000008 bytes", AGAIN]),
    "a header cut short": ("whole", length_of(100), ["model.safetensors: not a safetensors file", AGAIN]),
    "a shape that its bytes do not fill": ("whole", in_header("lm_head.weight", shape=[1000, 32]), ["'lm_head.weight' has 34816 bytes, and its shape wants 128000", AGAIN]),
    "a shape of 2¹²⁴ numbers": ("whole", in_header("lm_head.weight", shape=[2**62, 2**62]), ["'lm_head.weight' has an impossible shape", AGAIN]),
    "a shape with a part": ("whole", in_header("lm_head.weight", shape=[1.5, 32]), ["'lm_head.weight': shape is not a list of sizes", AGAIN]),
    "shapes of terabytes": ("whole", shapes_of_terabytes, ["model.safetensors: truncated: expected ", AGAIN]),
    "offsets that end before they begin": ("whole", in_header("lm_head.weight", data_offsets=[100, 50]), ["'lm_head.weight' has -50 bytes", AGAIN]),
    "negative offsets": ("whole", in_header("lm_head.weight", data_offsets=[-8, 0]), ["'lm_head.weight': data_offsets is not a list of two offsets", AGAIN]),
    "tensors that overlap": ("whole", offsets(8), ["model.safetensors: tensor", "what stands before it ends at", "tensors overlap", AGAIN]),
    "tensors with a gap": ("whole", offsets(-8), ["model.safetensors: tensor", "tensors leave a gap", AGAIN]),
    "a dtype that is not read": ("whole", in_header("lm_head.weight", dtype="F8_E4M3"), ["'lm_head.weight' has dtype F8_E4M3", "F32, BF16", "save_pretrained"]),
    "a missing shard": ("shards", lambda folder: sorted(folder.glob("model-*.safetensors"))[1].unlink(),
                        ["model-00002-of-", "is missing, and model.safetensors.index.json says that it holds"]),
    "an index that names another file": (
        "shards", replaced("model.safetensors.index.json", lambda i: {**i, "weight_map": {**i["weight_map"], "model.norm.weight": "model-7.safetensors"}}),
        ["model-7.safetensors: is missing", "model.safetensors.index.json says that it holds model.norm.weight"]),
    "an index without a tensor that a shard holds": (
        "shards", replaced("model.safetensors.index.json", lambda i: {**i, "weight_map": {"lm_head.weight": i["weight_map"]["lm_head.weight"]}}),
        ["model.safetensors.index.json", "missing: "]),
    "an index that is a list": ("shards", replaced("model.safetensors.index.json", "[]"), ["model.safetensors.index.json: not a JSON object"]),
    "a deep config.json": ("whole", replaced("config.json", '{"model_type": ' + DEEP + "}"), ["config.json", "more than 100 deep"]),
    "a deep index": ("shards", replaced("model.safetensors.index.json", '{"weight_map": {"a": ' + DEEP + "}}"), ["model.safetensors.index.json", "more than 100 deep"]),
    "a deep tokenizer_config.json": ("bpe", replaced("tokenizer_config.json", '{"eos_token": ' + DEEP + "}"), ["tokenizer_config.json", "more than 100 deep"]),
    "a deep header": ("whole", lambda folder: write_weights(folder / "model.safetensors", b'{"a":' + DEEP.encode() + b"}", b""),
                      ["model.safetensors", "more than 100", AGAIN]),
    "a tokenizer of another kind": (
        "whole", replaced("tokenizer.json", {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}), ["tokenizer.json: model.type \"Unigram\" is not supported; it can be BPE"]),
    "a step of a tokenizer that is not there": (
        "bpe", replaced("tokenizer.json", lambda t: {**t, "pre_tokenizer": {"type": "BertPreTokenizer"}}),
        ["tokenizer.json: pre_tokenizer BertPreTokenizer is not supported", "there are ByteLevel, Split, Digits, Metaspace and Sequence"]),
    "a normalizer without end": (
        "bpe", replaced("tokenizer.json", lambda t: {**t, "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 48}}), ["normalizer", "longer than"]),
    "a decoder without end": (
        "bpe", replaced("tokenizer.json", lambda t: {**t, "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 48}}), ["tokenizer.json", "decoder", "longer than"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def bpe(models):
    """The model with a tokenizer of pairs beside it."""
    folder = models / "bpe"
    shutil.copytree(models / "whole", folder)
    names = {chr(b if 0x21 <= b < 0x7F else 0x100 + b): b for b in range(256)}
    (folder / "tokenizer.json").write_text(json.dumps({
        "added_tokens": [{"id": 257, "content": "<end>", "special": True}], "normalizer": None, "post_processor": None,
        "pre_tokenizer": None, "decoder": {"type": "Fuse"}, "model": {"type": "BPE", "vocab": {**names, "ab": 256}, "merges": ["a b"]}}))  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    (folder / "special_tokens_map.json").unlink()
    return folder


def refusal(folder):
    """The message of `isentrope sample`, which is one line."""
    told = run("sample", folder, "--prompt", "ab a", "--max-new-tokens", "1", code=1)
    lines = [line for line in told.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("isentrope: "), told.stderr
    assert len(lines[0]) < 1700 and "Traceback" not in lines[0] and "assumption of the program" not in lines[0], lines[0]
    assert told.stdout == ""
    return lines[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_in_one_line(fault, models, bpe, tmp_path):
    of, make_fault, parts = FAULTS[fault]
    folder = tmp_path / "model"
    shutil.copytree(models / of, folder)
    make_fault(folder)
    said = refusal(folder)
    for part in parts:
        assert part in said, f"{part!r} is not in {said!r}"


def test_the_models_without_a_fault_are_opened(models, bpe):
    for name in ("whole", "shards", "bpe"):
        run("sample", models / name, "--prompt", "ab a", "--max-new-tokens", "1")


# ---- data -------------------------------------------------------------------------------------------------------------------

GOOD = {"prompt": "a", "completion": "b"}
BROKEN = {
    "{\"prompt\": \"a\", ": ["not JSON at column"],
    "[1]": ["a JSON array; each line must hold one object"],
    "{\"completion\": \"b\"}": ["the key \"prompt\" is missing"],
    "{\"prompt\": 7, \"completion\": \"b\"}": ["\"prompt\" is a JSON number; it must be a string"],
    "{\"prompt\": \"a\", \"completion\": [\"b\"]}": ["\"completion\" is a JSON array; it must be a string"],
    "{\"prompt\": \"a\"}": ["the key \"completion\" is missing", "\"answer\""],
    "{\"prompt\": \"a\", \"prompt\": \"b\", \"completion\": \"b\"}": ["the key \"prompt\" is written twice"],
}  # fmt: skip


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_named_or_skipped(line, models, tmp_path):
    config = write_config(tmp_path, f"{{pretrained: {models}/whole}}")
    (tmp_path / "data.jsonl").write_text("\n".join([json.dumps(GOOD), line, json.dumps(GOOD)]) + "\n")
    told = run("train", config, code=1)
    said = [one for one in told.stderr.splitlines() if one.startswith("isentrope: ")]
    assert len(said) == 1 and "data.jsonl:2: " in said[0] and all(part in said[0] for part in BROKEN[line]), told.stderr
    assert not (tmp_path / "run").exists()
    told = run("train", config, "phases.sft.data.on_error=skip")
    notes = [one for one in told.stdout.splitlines() if "on_error: skip" in one]
    assert len(notes) == 1 and re.search(r"\b1 lines? of the training files", notes[0]) and "data.jsonl:2: " in notes[0], told.stdout


def test_samples_longer_than_the_context_are_counted(models, tmp_path):
    config = write_config(tmp_path, f"{{pretrained: {models}/whole, max_position_embeddings: 24}}")
    examples = [GOOD, {"prompt": "a" * 10, "completion": "b" * 40}, {"prompt": "a", "completion": "b" * 24}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    said = run("train", config, code=1).stderr
    for part in ("data.jsonl:2: ", "prompt and completion have 51 tokens (10 of prompt)", "the context holds 24", "data.truncation to drop or truncate"):
        assert part in said, said
    for truncation, parts in (("drop", ["2 of 3 training examples are too long", "left out"]), ("truncate", ["2 of 3 training examples", "the ends of their completions are cut"])):
        told = run("train", config, f"phases.sft.data.truncation={truncation}", f"run.dir={tmp_path}/{truncation}")
        for part in parts:
            assert part in told.stdout + told.stderr, told.stdout + told.stderr


def test_rows_beyond_the_tokenizer_are_no_fault(models):
    """The embedding has 272 rows and the tokenizer 258 tokens: none of the others is drawn."""
    assert VOCABULARY > 258
    told = run("sample", models / "whole", "--prompt", "ab", "--temperature", "5", "--max-new-tokens", "60", "--json").stdout
    assert all(token < 258 for line in told.splitlines() for token in json.loads(line)["ids"])
