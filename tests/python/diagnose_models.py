"""Small models and texts for the tests of `isentrope diagnose`."""

import json
import subprocess
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers")
from isentrope import diagnose  # noqa: E402

WORDS = [f"w{i}" for i in range(60)]


def llama(layers=4, width=32, heads=4, vocab=64, seed=0, **more):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                                      num_attention_heads=heads, num_key_value_heads=heads // 2, max_position_embeddings=64, **more)  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def model(**options):
    return diagnose.Model(llama(**options))


def sequences(count, length=8, vocab=64, seed=0):
    """Ids [count][length]; length: a number, or (least, most)."""
    generator = torch.Generator().manual_seed(seed)
    least, most = (length, length) if isinstance(length, int) else length
    lengths = torch.randint(least, most + 1, (count,), generator=generator)
    return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in lengths.tolist()]


def folder(path, **options):
    """A folder that transformers opens, with a tokenizer of words w0 to w59."""
    import tokenizers

    llama(**options).save_pretrained(path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, **{word: i + 1 for i, word in enumerate(WORDS)}}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(path)
    return path


def jsonl(path, count=40, labels=None, length=6):
    texts = [" ".join(WORDS[(7 * i + j * j) % 60] for j in range(length)) for i in range(count)]
    lines = [{"text": text} if labels is None else {"text": text, "label": labels(i)} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*words, cwd=None):
    return subprocess.run([sys.executable, "-m", "isentrope.diagnose", *map(str, words)], capture_output=True, text=True, cwd=cwd)
