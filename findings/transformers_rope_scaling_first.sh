#!/usr/bin/env bash
# One would expect that a config.json of transformers 5 says its rotary positions in rope_parameters, and that an older rope_scaling beside it is
# for older readers. transformers 5.24.0 takes rope_scaling where both stand and it is not null, with the default base of 10000 where
# no rope_theta stands beside it, and says nothing. Beside rope_theta alone rope_parameters wins.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages torch==2.15.0 transformers==5.24.0
expect <<'END'
transformers 5.24.0
beside rope_theta 1000: default, base 500000.0
beside rope_scaling linear: linear, base 10000.0
END
run <<'PY'
import json
import pathlib
import tempfile

import transformers

print("transformers", transformers.__version__)
parts = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
for what, beside in {"rope_theta 1000": {"rope_theta": 1000.0}, "rope_scaling linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}}.items():
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps({**parts, **beside}))
    rope = transformers.AutoConfig.from_pretrained(folder).rope_parameters
    print(f"beside {what}: {rope['rope_type']}, base {rope['rope_theta']}")
PY
