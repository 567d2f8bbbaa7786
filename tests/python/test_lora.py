"""Low-rank adapters: peft as the oracle, there and back; runs that train one, resume, and share the frozen weights."""

import json
import math
import re
import shutil

import pytest
import torch
from test_families import BINARY, EOS, PROMPTS, TOKENS, assert_same_model, ids_of, make, run, save, tokenizer, write_config  # noqa: F401
from test_train import final_checkpoint, metrics

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

assert BINARY
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Steps of plain descent: what a tensor moves by is its gradient.
DESCENT = "phases.sft.optimizer={kind: sgd, betas: [0], lr: 1.0, weight_decay: 0, max_grad_norm: 0}"


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def adapted(base, folder, targets=ALL, **options):
    """A folder of peft's with an adapter drawn at random, and the model with it."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, "task_type": "CAUSAL_LM", **options})
    model = peft.get_peft_model(opened(base), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    return model


def tensors(folder):
    return safetensors.load_file(folder / "adapter_model.safetensors")


def header(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["run"]


@pytest.mark.parametrize("name,targets,rslora", [("qwen2", ALL, False), ("llama-all-biases", ["q_proj", "v_proj", "up_proj"], True)])
def test_an_adapter_of_peft_is_the_same_here_and_back(name, targets, rslora, tmp_path, tokenizer):  # noqa: F811
    base = save(make(name), tmp_path / "base", tokenizer)
    model = adapted(base, tmp_path / "adapter", targets, use_rslora=rslora)
    assert_same_model(model, tmp_path / "adapter")  # its tokenizer is that of the base

    # A step of plain descent: the loss, and the gradient of every A and B, against autograd.
    config = write_config(tmp_path, f"{{pretrained: {base}, lora: {{from: {tmp_path}/adapter}}}}")
    run("train", config, DESCENT)
    step = json.loads([line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"loss"' in line][0])
    prompt, rest = ids_of(PROMPTS[0]), ids_of(PROMPTS[1]) + [EOS]
    logits = model(torch.tensor([prompt + rest])).logits[:, :-1, :TOKENS]
    loss = torch.nn.functional.cross_entropy(logits[0], torch.tensor([-100] * (len(prompt) - 1) + rest))
    loss.backward()
    assert step["loss"] == pytest.approx(loss.item(), rel=1e-5)
    checkpoint = final_checkpoint(tmp_path / "run")
    assert not (checkpoint / "model.safetensors").exists()
    before, after = tensors(tmp_path / "adapter"), tensors(checkpoint)
    assert before.keys() == after.keys() and len(after) == 8 * len(targets)
    squares = 0.0
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        key = parameter_name.replace(".default", "")
        squares += parameter.grad.double().square().sum().item()
        # The differences of weights near 0.5 are of their last place, 6e-8.
        torch.testing.assert_close(before[key] - after[key], parameter.grad, rtol=1e-4, atol=1e-6)
    assert step["grad_norm"] == pytest.approx(math.sqrt(squares), rel=1e-4)

    # The checkpoint is an adapter that peft opens on the same base, and that a run starts from.
    told = json.loads((checkpoint / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(base) and set(told["target_modules"]) == set(targets)
    assert (told["r"], told["lora_alpha"], told["use_rslora"]) == (4, 6, rslora)
    back = peft.PeftModel.from_pretrained(opened(base), checkpoint).eval()
    assert_same_model(back, checkpoint)
    assert_same_model(opened(checkpoint), checkpoint)  # transformers alone finds base and adapter

    # Merged, by isentrope export and by peft.
    assert f" → {tmp_path}/merged" in run("export", tmp_path / "run", tmp_path / "merged").stdout
    assert "is there already" in run("export", tmp_path / "run", tmp_path / "merged", code=1).stderr
    ours, theirs = opened(tmp_path / "merged"), back.merge_and_unload()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=0, atol=1e-6)
    assert_same_model(theirs, tmp_path / "merged")


def test_a_new_adapter(tmp_path, tokenizer):  # noqa: F811
    base = save(make("qwen2"), tmp_path / "base", tokenizer)
    keys = f"{{pretrained: {base}, lora: {{rank: 3, alpha: 6, targets: [q, mlp]}}}}"
    config = write_config(tmp_path, keys)
    plain = write_config(tmp_path / "base", f"{{pretrained: {base}}}")
    run("train", plain, f"run.dir={tmp_path}/plain")
    run("train", config, "phases.sft.steps=4", "run.checkpoint_every=2", "run.keep=5")
    lines = metrics(tmp_path / "run")
    assert lines[0]["loss"] == metrics(tmp_path / "plain")[0]["loss"]  # B is 0: the same bits
    assert lines[3]["loss"] < lines[0]["loss"]
    # R · (rows + columns): q 32 + 32, gate, up and down 48 + 32, in 4 blocks.
    numbers = 4 * 3 * (64 + 3 * 80)
    assert header(tmp_path / "run")["trained"] == numbers
    assert header(tmp_path / "run")["parameters"] == header(tmp_path / "plain")["parameters"] + numbers

    # Killed and resumed, and by two threads: the same bits.
    run("train", config, f"run.dir={tmp_path}/again", "phases.sft.steps=4", "run.threads=2")
    first = run("train", config, f"run.dir={tmp_path}/half", "phases.sft.steps=4", "run.checkpoint_every=2", "run.keep=5")
    assert f"{numbers:,} trained" in first.stdout
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "sft-000004")
    run("train", config, f"run.dir={tmp_path}/half", "phases.sft.steps=4", "run.checkpoint_every=2", "run.keep=5", "--resume")
    whole = (final_checkpoint(tmp_path / "run") / "adapter_model.safetensors").read_bytes()
    for other in ("again", "half"):
        assert metrics(tmp_path / other) == lines
        assert (final_checkpoint(tmp_path / other) / "adapter_model.safetensors").read_bytes() == whole
    # Another seed draws another A.
    run("train", config, f"run.dir={tmp_path}/seed", "run.seed=7")
    assert metrics(tmp_path / "seed")[0]["loss"] == lines[0]["loss"]
    a, b = (tensors(tmp_path / name / "checkpoints" / step) for name, step in (("run", "sft-000002"), ("seed", "sft-000001")))
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert (a[key] - b[key]).abs().max() > 0.05

    # All weights of another run start from the model with the adapter merged.
    run("train", plain, f"run.dir={tmp_path}/full", f"model.pretrained={tmp_path}/run")
    after = run("train", config, f"run.dir={tmp_path}/more", f"model.lora={{from: {tmp_path}/run}}")
    assert "the adapter of" in after.stdout and "rank" not in after.stderr
    assert metrics(tmp_path / "full")[0]["loss"] == pytest.approx(metrics(tmp_path / "more")[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sft_and_grpo(tmp_path, optimizer):
    (tmp_path / "base.yaml").write_text(f"""
run: {{dir: {tmp_path}/base, seed: 1, threads: 1}}
model: {{num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 64, max_position_embeddings: 48}}
tokenizer: {{characters: "0123456789abcdefgh+-=:A."}}
phases:
  - {{name: sft, objective: {{kind: sft}}, data: {{tint: {{task: signed_sum, terms: [2]}}}}, batch: {{sequences: 16}}, optimizer: {{lr: 8.0e-3}},
      steps: 40, evaluation: {{skip: true}}}}
test: {{skip: true}}
""")
    run("train", tmp_path / "base.yaml")
    (tmp_path / "lora.yaml").write_text(f"""
run: {{dir: {tmp_path}/run, seed: 1, threads: 1, checkpoint_every: 3, keep: 9}}
model: {{pretrained: {tmp_path}/base, lora: {{rank: 4, alpha: 16}}}}
phases:
  - {{name: sft, objective: {{kind: sft}}, data: {{tint: {{task: signed_sum, terms: [2]}}}}, batch: {{sequences: 16}}, steps: 6,
      optimizer: {{kind: {optimizer}, lr: 4.0e-3}}, evaluation: {{skip: true}}}}
  - name: grpo
    objective: {{kind: grpo, loss: clip, ref_kl: k3, ref_kl_coef: 0.01}}
    data: {{tint: {{task: signed_sum, terms: [2]}}}}
    rollout: {{prompts: 8, num_generations: 4, max_new_tokens: 20, mini_batches: 2}}
    reward: [{{kind: answer, weight: 0.5}}, {{kind: format, weight: 0.5, pattern: ".*A[0-9][0-9]"}}]
    optimizer: {{kind: {optimizer}, lr: 2.0e-3}}
    steps: 4
    evaluation: {{skip: true}}
test: {{prompts: 8, sampled_prompts: 8, num_generations: 2}}
""")
    run("train", tmp_path / "lora.yaml")
    lines = metrics(tmp_path / "run")
    grpo = [line for line in lines if line["phase"] == "grpo" and "loss" in line]
    # Log-probabilities of the rollouts, by merged weights, are those of training but for rounding; the first of two updates has moved nothing.
    assert all(line["ratio/mean"] == pytest.approx(1, abs=0.05) for line in grpo)
    assert 0 <= grpo[0]["ref_kl/k3"] < 1e-2 and grpo[-1]["ref_kl/k3"] > 0
    run("train", tmp_path / "lora.yaml", f"run.dir={tmp_path}/one", "phases.grpo.rollout.mini_batches=1")
    first = [line for line in metrics(tmp_path / "one") if line["phase"] == "grpo" and "loss" in line][0]
    assert first["ratio/mean"] == pytest.approx(1, abs=1e-5) and first["ratio/max"] == pytest.approx(1, abs=1e-4)
    # The reference is the adapter of the start of the phase: nothing is between them yet.
    assert first["ref_kl/k3"] == pytest.approx(0, abs=1e-9)

    # In the middle of the second phase.
    shutil.copytree(tmp_path / "run", tmp_path / "half")
    for name in ("grpo-000004",):
        shutil.rmtree(tmp_path / "half" / "checkpoints" / name)
    run("train", tmp_path / "lora.yaml", f"run.dir={tmp_path}/half", "--resume")
    assert metrics(tmp_path / "half") == lines
    for file in ("adapter_model.safetensors", "trainer.safetensors"):
        assert (final_checkpoint(tmp_path / "half") / file).read_bytes() == (final_checkpoint(tmp_path / "run") / file).read_bytes()
    state = safetensors.load_file(final_checkpoint(tmp_path / "run") / "trainer.safetensors")
    kept = [name for name in state if name.startswith("extra/reference/")]
    assert kept and all("lora_" in name for name in kept)
    assert all("lora_" in name for name in state if name.startswith("optimizer/"))

    told = json.loads(run("evaluate", tmp_path / "run", "--json").stdout)
    assert told["sampled"] == pytest.approx(lines[-1]["eval/sampled"], abs=1e-9)
    assert run("sample", tmp_path / "run", "--prompt", "a+b").stdout.startswith("a+b")


def test_memory_is_that_of_the_adapter(tmp_path, tokenizer):  # noqa: F811
    config = write_config(tmp_path, f"{{pretrained: {save(make('llama', hidden_size=256), tmp_path / 'base', tokenizer)}}}")

    def planned(*words):
        text = run("plan", config, *words).stdout
        return [float(size) for size in re.findall(r"(?:weights|gradients|optimiser|copies before the update) ([0-9.]+) MiB", text)]

    full, lora = planned(), planned("model.lora={rank: 4}")
    assert lora[0] >= full[0] and max(lora[1:]) < min(full[1:])
    assert max(lora[1:]) <= 1


# ---- what is refused ---------------------------------------------------------------------------------------------------------


def test_keys_that_do_not_go_together(tmp_path, tokenizer):  # noqa: F811
    base = save(make("llama"), tmp_path / "base", tokenizer)
    config = write_config(tmp_path, f"{{pretrained: {base}}}")
    for words, said in (
        (["model.lora={targets: [q_proj]}"], "model.lora.targets.0: 'q_proj' is not one of all, attention, mlp, q, k, v, o, gate, up, down"),
        (["model.lora={targets: []}"], "model.lora: targets: names no layer"),
        (["model.lora={rank: 0}"], "model.lora.rank: 0 is out of range; wanted 1 to 8192"),
        (["model.lora={alpha: 0}"], "model.lora.alpha: 0 is out of range"),
        (["model.lora={}", "model.sigma_reparam.layers=all"], "model: lora: the layers of sigma_reparam"),
        (["model.lora={}", "model.attention.qk_clip=10"], "model: attention.qk_clip: scales weights of q and k, which lora"),
        (["model.lora={}", "model.pretrained="], "model.lora: trains a term beside weights that stay"),
        ([f"model.lora={{from: {base}}}"], "base: is no adapter"),
        ([f"model.lora={{from: {tmp_path}/nothing}}"], "nothing: there is no such folder"),
    ):
        told = run("config", config, *words, code=1).stderr
        assert said in told, told
    run("config", config, "model.lora={}")


def test_adapters_that_are_refused(tmp_path, tokenizer):  # noqa: F811
    base = save(make("llama"), tmp_path / "base", tokenizer)
    adapted(base, tmp_path / "good", ["q_proj", "v_proj"])
    config = write_config(tmp_path, f"{{pretrained: {base}}}")
    good = json.loads((tmp_path / "good" / "adapter_config.json").read_text())
    state = tensors(tmp_path / "good")

    def refusal(keys=None, changed=None, command="config"):
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({**good, **(keys or {})}))
        safetensors.save_file({k: v for k, v in {**state, **(changed or {})}.items() if v is not None}, folder / "adapter_model.safetensors")
        return run(command, config, f"model.lora={{from: {folder}}}", code=1).stderr

    for keys in ({"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}}, {"modules_to_save": ["lm_head"]},
                 {"layer_replication": [[0, 2]]}, {"lora_bias": True}, {"bias": "lora_only"}, {"init_lora_weights": "pissa"},
                 {"peft_type": "LOHA"}, {"r": 0}, {"trainable_token_indices": [1]}, {"layers_to_transform": 0},
                 {"layers_to_transform": [1]}, {"a_new_field": 1}):  # fmt: skip
        told = refusal(keys)
        assert "config.yaml" not in told.split(": ")[1] and f"adapter_config.json: {next(iter(keys))} is" in told, told
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    assert "holds base_model.model.lm_head.lora_A.weight, and an adapter here" in refusal(changed={"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)})
    assert "block 0 has terms in other layers than block 1" in refusal(changed={key: None, key.replace("_A", "_B"): None})
    assert f"missing: {key}" in refusal(changed={key: None}, command="train")
    assert f"{key} is [4, 31], wanted [4, 32]" in refusal(changed={key: torch.ones(4, 31)}, command="train")
    assert f"{key} holds Int" in refusal(changed={key: torch.ones(4, 32, dtype=torch.int32)}, command="train")
    assert not (tmp_path / "run").exists()
    # Keys that contradict the folder.
    for keys in ("rank: 8", "alpha: 7", "rslora: true", "targets: [q]"):
        told = run("config", config, f"model.lora={{from: {tmp_path}/good, {keys}}}", code=1).stderr
        assert f"model.lora.{keys.split(':')[0]}: is " in told and "leave the key out" in told
    run("config", config, f"model.lora={{from: {tmp_path}/good, rank: 4, targets: [v, q]}}")


def test_another_base_is_seen(tmp_path, tokenizer):  # noqa: F811
    base = save(make("llama"), tmp_path / "base", tokenizer)
    config = write_config(tmp_path, f"{{pretrained: {base}, lora: {{rank: 2}}}}")
    run("train", config)
    save(make("llama"), tmp_path / "other", tokenizer)
    told = run("train", config, f"run.dir={tmp_path}/second", f"model.pretrained={tmp_path}/other", f"model.lora={{from: {tmp_path}/run}}", code=1)
    assert "and the weights in" in told.stderr and "are others" in told.stderr
    assert "is an adapter, and model.lora would put another" in run("config", config, f"model.pretrained={tmp_path}/run", code=1).stderr
    # Not beside its adapter any more, and then another one in its place.
    base.rename(tmp_path / "moved")
    assert "there is no such folder" in run("sample", tmp_path / "run", "--prompt", "a", code=1).stderr
    run("train", config, f"model.pretrained={tmp_path}/moved", "phases.sft.steps=2", "--resume")
    (tmp_path / "moved").rename(tmp_path / "gone")
    shutil.copytree(tmp_path / "other", base)
    assert "are others" in run("train", config, "phases.sft.steps=3", "--resume", code=1).stderr
    # With an adapter or without one, but not the other in the middle of a run; and no adapter beside an adapter.
    shutil.rmtree(base)
    (tmp_path / "gone").rename(base)
    (tmp_path / "plain").mkdir()
    plain = write_config(tmp_path / "plain", f"{{pretrained: {base}}}")
    assert "holds an adapter, and model.lora is not written" in run("train", plain, f"run.dir={tmp_path}/run", "--resume", code=1).stderr
    run("train", plain)
    assert "holds all weights" in run("train", plain, "model.lora={}", "phases.sft.steps=2", "--resume", code=1).stderr
