"""Models of transformers in the trainer: the same probabilities, losses and gradients, there and back."""

import json
import math
import shutil
import subprocess

import pytest
import torch
from test_train import binary, final_checkpoint

transformers = pytest.importorskip("transformers")

BINARY = binary()
VOCABULARY, TOKENS, EOS = 272, 258, 257  # rows of the embeddings, padded; tokens of kind bytes, byte b has id b + 1
PROMPTS = ["entropy", "a + b = c, and so on until it is long"]
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 96}  # fmt: skip
# Logits of float32 differ by the order of sums: with weights of std 0.15 they are of size 5 to 10, and ten roundings of that are 1e-5.
ATOL = 1e-4


def rope(kind, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **parameters}}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
MIXED = {"use_sliding_window": True, "sliding_window": 6, "layer_types": ["full_attention", "sliding_attention"] * 2}
MODELS = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama-head-dim": ("Llama", {"head_dim": 16}),
    "llama-attention-bias": ("Llama", {"attention_bias": True}),
    "llama-all-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama-linear": ("Llama", rope("linear", factor=3.0)),
    "llama-dynamic": ("Llama", rope("dynamic", factor=3.0)),
    "llama-yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=24)),
    "llama-yarn-mscale": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=24, mscale=1.2, mscale_all_dim=0.7,
                                        beta_fast=8.0, beta_slow=2.0)),
    "llama-yarn-factor": ("Llama", rope("yarn", factor=2.0, original_max_position_embeddings=48, attention_factor=0.8, truncate=False)),
    "llama-llama3": ("Llama", rope("llama3", factor=8.0, **LLAMA3)),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-mixed": ("Qwen2", MIXED),
    "qwen2-max-window-layers": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}),
    "qwen2-yarn": ("Qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=24)),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-default-head-dim": ("Qwen3", {"num_hidden_layers": 2}),
    "qwen3-mixed": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True, **MIXED}),
    "qwen3-bias": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral-without-window": ("Mistral", {"sliding_window": None, "head_dim": 16}),
}  # fmt: skip


def make(name, **more):
    """A model whose every weight counts: biases and norms are drawn too."""
    family, options = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **options, **more})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 and parameter.mean() == 1 else 0.0, 0.15)
    return model


def ids_of(text):
    return [byte + 1 for byte in text.encode()]


def write_config(folder, model, **data):
    """A step of supervised learning on one example; `model` as YAML."""
    (folder / "data.jsonl").write_text(json.dumps({"prompt": PROMPTS[0], "completion": PROMPTS[1]}) + "\n")
    (folder / "config.yaml").write_text(f"""
run: {{dir: {folder}/run, threads: 1, device: cpu}}
model: {model}
tokenizer: {{kind: bytes}}
phases:
  - name: sft
    objective: {{kind: sft}}
    data: {{jsonl: {{path: {folder}/data.jsonl, validation_fraction: 0, test_fraction: 0}}}}
    batch: {{sequences: 1}}
    optimizer: {{lr: 1.0e-3, max_grad_norm: 0}}
    schedule: {{warmup_steps: 0}}
    steps: 1
    evaluation: {{every: 0, skip: true}}
test: {{skip: true}}
""")
    return folder / "config.yaml"


def run(*words, code=0):
    told = subprocess.run([BINARY, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert told.returncode == code, told.stdout + told.stderr
    return told


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Files of the tokenizer bytes, of a run that knows no model of transformers."""
    folder = tmp_path_factory.mktemp("bytes")
    config = write_config(folder, "{num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 2, "
                                  "intermediate_size: 16, max_position_embeddings: 64}")  # fmt: skip
    run("train", config)
    return final_checkpoint(folder / "run")


def save(model, folder, tokenizer, **arguments):
    model.save_pretrained(folder, **arguments)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tokenizer / name, folder)
    return folder


def completions(folder, *words):
    told = run("sample", folder, *(word for prompt in PROMPTS for word in ("--prompt", prompt)), "--json", *words).stdout
    return [json.loads(line) for line in told.splitlines()]


def greedy(model, prompt, tokens=32):
    """Ids by transformers; of the tokens that there are, without the rows that pad the embedding."""
    ids = torch.tensor([ids_of(prompt)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=EOS,
                         pad_token_id=0, suppress_tokens=list(range(TOKENS, VOCABULARY)))  # fmt: skip
    return out[0, ids.shape[1] :].tolist()


def logprobs(model, prompt, drawn):
    ids = torch.tensor([ids_of(prompt) + drawn])
    with torch.no_grad():
        logits = model(ids).logits[0, -len(drawn) - 1 : -1, :TOKENS].double()
    return logits.log_softmax(-1)


def assert_same_model(model, folder):
    """`isentrope sample FOLDER`: the log-probabilities and entropies of what is drawn, and greedy completions."""
    for line in completions(folder, "--samples", "2", "--max-new-tokens", "40"):
        theirs = logprobs(model, line["prompt"], line["ids"])
        drawn = theirs.gather(1, torch.tensor(line["ids"]).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(line["logprob"], dtype=torch.double), drawn, rtol=0, atol=ATOL)
        entropy = -(theirs.exp() * theirs).sum(-1)
        torch.testing.assert_close(torch.tensor(line["entropy"], dtype=torch.double), entropy, rtol=0, atol=ATOL)
    for line in completions(folder, "--temperature", "0", "--max-new-tokens", "32"):
        assert line["ids"] == greedy(model, line["prompt"])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_is_the_same_here_and_back(name, tmp_path, tokenizer):
    model = make(name)
    folder = save(model, tmp_path / "model", tokenizer)
    assert_same_model(model, folder)

    # A step of training: its loss and the norm of the gradient of all weights.
    run("train", write_config(tmp_path, f"{{pretrained: {folder}}}"))
    step = json.loads([line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"loss"' in line][0])
    prompt, rest = ids_of(PROMPTS[0]), ids_of(PROMPTS[1]) + [EOS]
    labels = torch.tensor([[-100] * len(prompt) + rest])
    logits = model(torch.tensor([prompt + rest])).logits[:, :-1, :TOKENS]
    loss = torch.nn.functional.cross_entropy(logits[0], labels[0, 1:])
    loss.backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
    assert step["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert step["grad_norm"] == pytest.approx(norm, rel=1e-4)

    # The checkpoint is a model of the same family with the same keys, moved by that step.
    checkpoint = final_checkpoint(tmp_path / "run")
    back = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    assert type(back) is type(model)
    was, now = model.config.to_dict(), back.config.to_dict()
    told = ["rope_parameters", "max_position_embeddings", "vocab_size", "sliding_window", "layer_types", "attention_bias", "mlp_bias",
            "tie_word_embeddings", "rms_norm_eps", "head_dim"]  # fmt: skip
    assert {key: now[key] for key in told if key in was} == {key: was[key] for key in told if key in was}
    moved = {key: (value - back.state_dict()[key]).abs().max().item() for key, value in model.state_dict().items()}
    assert all(change < 2e-3 for change in moved.values()) and max(moved.values()) > 5e-4
    assert_same_model(back, checkpoint)
    # What transformers 4 reads of it.
    written, rope = json.loads((checkpoint / "config.json").read_text()), model.config.rope_parameters
    assert written["rope_theta"] == rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert written["rope_scaling"] == (None if rope["rope_type"] == "default" else scaling)


# ---- files of weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shards_and_half_precision(tmp_path, tokenizer, dtype):
    model = make("qwen3").to(dtype)
    folder = save(model, tmp_path / "model", tokenizer, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    assert_same_model(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), folder)


def spoil(folder, **tensors):
    """The folder's weights with some replaced, added, or, where None is given, left out."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.update(tensors)
    save_file({name: value for name, value in state.items() if value is not None}, folder / "model.safetensors", {"format": "pt"})


def refusal(folder):
    told = run("sample", folder, "--prompt", "a", code=1)
    return told.stderr


def test_tensors_that_carry_nothing_are_passed_over(tmp_path, tokenizer):
    model = make("llama-tied")
    folder = save(model, tmp_path / "model", tokenizer)
    spoil(folder, **{"lm_head.weight": torch.ones(VOCABULARY, 32), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert_same_model(model, folder)


def test_weights_of_another_model_are_named(tmp_path, tokenizer):
    folder = save(make("llama"), tmp_path / "model", tokenizer)
    spoil(folder, **{"model.norm.weight": None, "model.extra.weight": torch.ones(3), "model.layers.1.mlp.up_proj.weight": torch.ones(48, 31),
                     "model.layers.2.mlp.up_proj.weight": torch.ones(48, 32, dtype=torch.int32)})  # fmt: skip
    said = refusal(folder)
    assert "missing: model.norm.weight;" in said
    assert "without a place in this model: model.extra.weight [3];" in said
    assert "model.layers.1.mlp.up_proj.weight is [48, 31], wanted [48, 32]" in said
    assert "model.layers.2.mlp.up_proj.weight holds Int, wanted floating-point numbers" in said


def test_shards_that_are_not_there_are_named(tmp_path, tokenizer):
    folder = save(make("llama"), tmp_path / "model", tokenizer, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    shard = good["weight_map"]["model.norm.weight"]
    for place, said in (("../model.safetensors", "wanted the name of a file in the same folder"), (7, "wanted the name of a file"),
                        ("model-00001-of-00099.safetensors", "model-00001-of-00099.safetensors: is missing")):  # fmt: skip
        index.write_text(json.dumps({**good, "weight_map": {**good["weight_map"], "model.norm.weight": place}}))
        assert said in refusal(folder)
    index.write_text(json.dumps({**good, "weight_map": {**good["weight_map"], "model.other.weight": shard}}))
    assert f"{shard}: does not hold model.other.weight" in refusal(folder)
    index.write_text(json.dumps(good))
    (folder / shard).unlink()
    assert f"{shard}: is missing, and model.safetensors.index.json says that it holds" in refusal(folder)
    index.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "its weights are in pytorch_model.bin, which is not read" in refusal(folder)


WRONG = {
    "wanted one of llama, qwen2, qwen3, mistral": {"model_type": "gpt2"},
    "architectures is": {"architectures": ["LlamaForSequenceClassification"]},
    "quantised weights are not read": {"quantization_config": {"bits": 4}},
    "hidden_act is \"gelu\"": {"hidden_act": "gelu"},
    "wanted default, linear, dynamic, yarn or llama3": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}},
    "rope_parameters.'factor' is missing": {"rope_parameters": {"rope_type": "linear"}},
    "factor is 0.5; wanted 1 to": {"rope_scaling": {"type": "linear", "factor": 0.5}},
    "is_causal is false": {"is_causal": False},
    "partial_rotary_factor is 0.5": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "hidden_size is 32.5; wanted an integer": {"hidden_size": 32.5},
    "num_hidden_layers is -4.0; wanted 1 to": {"num_hidden_layers": -4},
    "num_attention_heads (4)": {"num_key_value_heads": 3},
    "'vocab_size' is missing": {"vocab_size": None},
    "head_dim: 12 is not a multiple of 8": {"head_dim": 12},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_the_decoder_has_no_place_for_is_named(tmp_path, tokenizer, said):
    folder = save(make("llama"), tmp_path / "model", tokenizer)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **WRONG[said]}))
    assert said in refusal(folder)


def test_old_spelling_of_config(tmp_path, tokenizer):
    model = make("llama-llama3")
    folder = save(model, tmp_path / "model", tokenizer)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    path.write_text(json.dumps({**config, "torch_dtype": config.pop("dtype"), "rope_theta": parameters.pop("rope_theta"), "rope_scaling": parameters}))
    assert_same_model(transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), folder)
    assert_same_model(model, folder)


@pytest.mark.parametrize("option", ["--temperature", "--top-p", "--min-p", "--repetition-penalty"])
def test_numbers_that_are_none_are_refused(option):
    for value in ("nan", "inf", "-nan"):
        assert option in run("sample", "nowhere", "--prompt", "a", option, value, code=2).stderr


def test_an_empty_rope_scaling_leaves_rope_parameters(tmp_path, tokenizer):
    folder = save(make("llama-linear"), tmp_path / "model", tokenizer)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_scaling": {}, "rope_theta": 700.0}))
    assert_same_model(transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), folder)


def test_export_leaves_what_lies_beside_its_folder(tmp_path, tokenizer):
    model = make("llama")
    folder = save(model, tmp_path / "model", tokenizer)
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "notes").write_text("mine")
    run("export", folder, f"{tmp_path}/out/")  # as a shell completes it
    assert (tmp_path / "out.tmp" / "notes").read_text() == "mine"
    assert_same_model(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "out.tmp"]
    assert "is there already" in run("export", folder, tmp_path / "out", code=1).stderr


# ---- model.pretrained --------------------------------------------------------------------------------------------------------


def test_keys_beside_pretrained(tmp_path, tokenizer):
    model = make("llama-dynamic")
    folder = save(model, tmp_path / "model", tokenizer)
    for key, told in (("hidden_size: 64", "model.hidden_size: is 64, and"), ("attention: {qk_norm: true}", "model.attention.qk_norm: is true"),
                      ("rope_scaling: {factor: 2}", "model.rope_scaling.factor: is 2.0"),
                      ("max_position_embeddings: 97", "the model was made for 96"), ("family: qwen2", "qwen2 has no models with model.attention.bias")):
        config = write_config(tmp_path, f"{{pretrained: {folder}, {key}}}")
        assert told in run("config", config, code=1).stderr
        assert not (tmp_path / "run").exists()
    config = write_config(tmp_path, f"{{pretrained: {folder}, hidden_size: 32, max_position_embeddings: 64, fused_head: false}}")
    assert "num_hidden_layers: 4" in run("config", config).stdout
    assert "leave one of the two out" in run("config", config, "run.start=elsewhere", code=1).stderr
    run("train", config)
    # The shorter sequences of the run are not the model's.
    checkpoint = final_checkpoint(tmp_path / "run")
    assert json.loads((checkpoint / "config.json").read_text())["max_position_embeddings"] == 96
    # It goes on, and another run starts from the checkpoint.
    run("train", config, "phases.sft.steps=2", "--resume")
    config = write_config(tmp_path, f"{{pretrained: {tmp_path}/run}}")
    run("train", config, f"run.dir={tmp_path}/second")


def test_folder_as_start_and_for_evaluation(tmp_path, tokenizer):
    folder = save(make("qwen2-mixed"), tmp_path / "model", tokenizer)
    keys = ("{num_hidden_layers: 4, hidden_size: 32, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 48, "
            "max_position_embeddings: 96, rms_norm_eps: 1.0e-6, attention: {bias: qkv, window: 6, layer_types: [full_attention, "
            "sliding_attention, full_attention, sliding_attention]}}")  # fmt: skip
    config = write_config(tmp_path, keys)
    run("train", config, f"run.start={folder}")
    assert "model.attention.bias: qkv → none" in run("train", config, f"run.start={folder}", "model.attention.bias=none",
                                                       f"run.dir={tmp_path}/other", code=1).stderr  # fmt: skip
    data = f"phases.sft.data.jsonl={{path: {tmp_path}/data.jsonl, test_path: {tmp_path}/data.jsonl, validation_fraction: 0}}"
    told = json.loads(run("evaluate", folder, config, data, "test.skip=false", "test.prompts=1", "test.sampled_prompts=1", "--json").stdout)
    assert told["greedy"] == 0


def test_a_tokenizer_that_is_larger_than_the_embedding_is_refused(tmp_path):
    make("llama", vocab_size=200).save_pretrained(tmp_path / "model")
    config = write_config(tmp_path, f"{{pretrained: {tmp_path}/model}}")
    assert "tokens: 200 → 258" in run("train", config, code=1).stderr


def test_folders_that_are_no_model_are_named(tmp_path):
    config = write_config(tmp_path, f"{{pretrained: {tmp_path}/nothing}}")
    told = run("config", config, code=1).stderr
    assert "config.yaml:3: model.pretrained: " in told and "nothing: there is no such folder" in told
