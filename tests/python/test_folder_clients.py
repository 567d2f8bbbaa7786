"""Other users of the folders that the trainer writes: transformers 4, and the lm-evaluation-harness.

Neither is beside the transformers of the other tests, so that they are skipped there; scripts/folder_clients.sh installs each into
a folder of its own and runs them.
"""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from test_families import run
from test_train import final_checkpoint

transformers = pytest.importorskip("transformers")
MAJOR = int(transformers.__version__.split(".")[0])

WORDS = ["elm", "birch", "willow", "ash", "hornbeam", "oak é", "a, b; c"]
SIZES = "num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, intermediate_size: 48, max_position_embeddings: 96, rope_theta: 500.0"
MODELS = {
    "llama": "",
    "llama-grouped-tied": ", num_key_value_heads: 2, tie_word_embeddings: true",
    "llama-linear": ", rope_scaling: {rope_type: linear, factor: 3}",
    "llama-dynamic": ", rope_scaling: {rope_type: dynamic, factor: 3}",
    "llama-yarn": ", rope_scaling: {rope_type: yarn, factor: 4, original_max_position_embeddings: 24}",
    "llama-llama3": ", rope_scaling: {rope_type: llama3, factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 24}",
    "qwen2": ", attention: {bias: qkv}",
    "qwen3-windows": ", attention: {qk_norm: true, window: 6, layer_types: [full_attention, sliding_attention]}",
    "mistral": ", family: mistral, attention: {window: 7}",
}  # fmt: skip


def trained(folder, model="", steps=1):
    """The checkpoint of a run that learns to write words backwards."""
    for name, words in (("train", WORDS), ("test", WORDS[::2])):
        lines = [json.dumps({"prompt": f"{word}:", "completion": word[::-1], "answer": word[::-1]}) for word in words]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.yaml").write_text(f"""
run: {{dir: {folder}/run, threads: 1, device: cpu}}
model: {{{SIZES}{model}}}
tokenizer: {{kind: bytes}}
phases:
  - name: sft
    objective: {{kind: sft}}
    data: {{jsonl: {{path: {folder}/train.jsonl, validation_fraction: 0, test_path: {folder}/test.jsonl}}}}
    batch: {{sequences: 4}}
    optimizer: {{lr: 1.0e-2}}
    steps: {steps}
    evaluation: {{every: 0, skip: true}}
test: {{prompts: 4, sampled_prompts: 1, num_generations: 1, max_new_tokens: 8}}
""")
    run("train", folder / "config.yaml")
    return final_checkpoint(folder / "run")


@pytest.mark.skipif(MAJOR != 4, reason=f"transformers {transformers.__version__} is installed; scripts/folder_clients.sh runs this with 4")
@pytest.mark.parametrize("name", MODELS)
def test_transformers_4_opens_the_same_model(name, tmp_path):
    from safetensors.torch import load_file, save_file

    # Weights of a size at which positions count: with those of a model that has just begun another base moves logits by their rounding.
    # As a folder of elsewhere, which names no trainer, it has no digests of its files.
    checkpoint = tmp_path / "model"
    shutil.copytree(trained(tmp_path, MODELS[name]), checkpoint, ignore=shutil.ignore_patterns("DONE", "trainer.*"))
    file, draw = checkpoint / "model.safetensors", torch.Generator().manual_seed(1)
    weights = {key: torch.randn(value.shape, generator=draw) * 0.15 + (value.mean() if value.dim() == 1 else 0) for key, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})

    written = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({key: value for key, value in written.items() if key != "isentrope_version"}))
    model, told = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    assert model.config.model_type == name.split("-")[0] and model.config.rope_theta == 500.0
    wanted = {key: value for key, value in written["rope_parameters"].items() if key != "rope_theta"}
    found = {key: value for key, value in (model.config.rope_scaling or {"rope_type": "default"}).items() if key != "type"}
    assert found == wanted
    assert model.dtype == torch.float32 and model.config.eos_token_id == 257

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)
    lines = run("sample", checkpoint, "--prompt", "a + é = ", "--samples", "2", "--max-new-tokens", "60", "--json").stdout.splitlines()
    for line in map(json.loads, lines):
        prompt = tokenizer(line["prompt"])["input_ids"]
        assert tokenizer.decode(prompt) == line["prompt"]
        with torch.no_grad():
            logits = model.eval()(torch.tensor([prompt + line["ids"]])).logits[0, len(prompt) - 1 : -1].double()
        drawn = logits.log_softmax(-1).gather(1, torch.tensor(line["ids"]).unsqueeze(1)).squeeze(1)
        # Logits of float32 of size 5 to 10: ten of their roundings.
        torch.testing.assert_close(torch.tensor(line["logprob"], dtype=torch.double), drawn, rtol=0, atol=1e-4)


def test_lm_eval_gives_the_loss_that_evaluate_gives(tmp_path):
    pytest.importorskip("lm_eval", reason="there is no lm_eval; scripts/folder_clients.sh runs this with one")
    checkpoint = trained(tmp_path, steps=12)
    ours = json.loads(run("evaluate", tmp_path / "run", tmp_path / "config.yaml", "--json").stdout)

    (tmp_path / "tasks").mkdir()
    # What evaluate counts: the tokens of each completion and the end of sequence behind it, which text names as a special token.
    (tmp_path / "tasks" / "backwards.yaml").write_text(f"""
task: backwards
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/test.jsonl}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}<|endoftext|>"
target_delimiter: ""
metric_list: [{{metric: perplexity, aggregation: perplexity, higher_is_better: false}}, {{metric: acc}}]
""")
    done = subprocess.run([sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32", "--device", "cpu",
                           "--tasks", "backwards", "--include_path", tmp_path / "tasks", "--output_path", tmp_path / "out", "--log_samples"],
                          capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    [samples] = (tmp_path / "out").rglob("samples_backwards_*.jsonl")
    nats, tokens, logs = 0.0, 0, []
    for line in map(json.loads, samples.read_text().splitlines()):
        logs.append(float(line["filtered_resps"][0][0]))
        nats, tokens = nats - logs[-1], tokens + len(line["doc"]["completion"].encode()) + 1
    assert len(logs) == 4 and nats / tokens == pytest.approx(ours["loss"], abs=1e-3)
    [results] = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(results.read_text())["results"]["backwards"]
    assert math.log(told["perplexity,none"]) == pytest.approx(-sum(logs) / len(logs), abs=1e-3)
