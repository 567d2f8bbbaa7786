#!/usr/bin/env bash
# One would expect AutoTokenizer to make the class that tokenizer_config.json names, from the tokenizer.json beside it.
# transformers 5.24.0 makes a Qwen2Tokenizer where config.json says model_type qwen2, with a pre-tokenizer of its own in the place of the file's: a
# tokenizer that splits each letter off gives other tokens than beside no config.json.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0 transformers==5.24.0
expect <<'END'
transformers 5.24.0
alone: TokenizersBackend [1, 2]
beside a qwen2 config.json: Qwen2Tokenizer [3]
END
run <<'PY'
import json
import pathlib
import tempfile

import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

print("transformers", transformers.__version__)
letters = Tokenizer(models.BPE({"<eos>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
for what, config in {"alone": None, "beside a qwen2 config.json": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}}.items():
    folder = pathlib.Path(tempfile.mkdtemp())
    letters.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    made = transformers.AutoTokenizer.from_pretrained(folder)
    print(f"{what}: {type(made).__name__} {made('ab')['input_ids']}")
PY
