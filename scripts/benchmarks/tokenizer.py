"""Text to tokens, beside the package tokenizers on one thread (TOKENIZERS_PARALLELISM=false): 2.5 megabytes of the standard library's
sources, file by file, with byte-pair tokenizers of 6000 tokens that are trained on part of them first.

Each kind is that of a published model: GPT-2's pattern; Qwen2's pattern and normal form C; Llama-3's pattern with ignore_merges; SmolLM2's
single digits. Both make a list of Python integers. Values first: the tokens of every file are the same.
The row of one word: a million letters.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "python"))

from timing import compare, interleaved

PEERS = ["tokenizers", "transformers"]
TARGET = 3.0


def kinds(folder):
    """{name: folder with a tokenizer.json}"""
    from test_tokenizer import LLAMA3, QWEN, behind, trained, written
    from tokenizers import normalizers, pre_tokenizers

    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made = {"gpt2": trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), "qwen2": trained(behind(QWEN), normalizers.NFC()),
            "llama3": trained(behind(LLAMA3)), "smollm": trained(digits)}  # fmt: skip
    parts = {name: json.loads(tokenizer.to_str()) for name, tokenizer in made.items()}
    parts["llama3"]["model"]["ignore_merges"] = True
    return {name: written(folder / name, part) for name, part in parts.items()}


def rows(rounds=7, threads=1):
    """One dictionary a kind: shape, seconds (medians), ratio with its range."""
    from test_tokenizer import sources
    from tokenizers import Tokenizer

    import isentrope

    texts = list(sources(2_500_000))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    table = []
    with tempfile.TemporaryDirectory() as root:
        for name, folder in kinds(Path(root)).items():
            theirs, ours = Tokenizer.from_file(str(folder / "tokenizer.json")), isentrope.Tokenizer(folder)
            inputs = {f"{megabytes:.1f} MB of sources": texts}
            if name == "gpt2":
                inputs["a word of 1 MB"] = ["".join(chr(97 + (i * 7919 + i // 26 * 31) % 26) for i in range(1_000_000))]
            for shape, many in inputs.items():
                assert [ours.encode(text) for text in many] == [theirs.encode(text, add_special_tokens=False).ids for text in many]
                seconds = interleaved({"ours": lambda many=many: [ours.encode(text) for text in many],
                                       "tokenizers": lambda many=many: [theirs.encode(text, add_special_tokens=False).ids for text in many]}, rounds)  # fmt: skip
                table.append({"op": "tokenizer", "shape": f"{name}, {shape}", "dtype": "", "threads": threads,
                              **compare(seconds, "ours", "tokenizers"), "target": TARGET})
    return table
