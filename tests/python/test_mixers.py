"""model.mixers in the program: its checkpoints in isentrope.nn's modules, runs that go on, states in rollouts, what is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear, rms_norm, silu

from isentrope import nn

ROOT = Path(__file__).resolve().parents[2]
GUIDED = ROOT / "configs/mixers/entropy_guided.yaml"  # a model of text, of one phase
ENCODER = ROOT / "configs/mixers/hierarchical.yaml"  # an encoder: test_encoders.py
CONFIGS = sorted({*(ROOT / "configs/mixers").glob("*.yaml")} - {GUIDED, ENCODER})
EVERY = [f"phases.{phase}.evaluation.every=0" for phase in ("sft", "grpo")]
SHORT = ["run.threads=1", "phases.sft.steps=6", "phases.grpo.steps=2", "phases.sft.batch.sequences=8", "phases.sft.schedule.warmup_steps=0", "phases.grpo.rollout.prompts=4",
         "phases.grpo.rollout.num_generations=2", "phases.grpo.rollout.save_every=1", "test.prompts=4", "test.sampled_prompts=2", *EVERY]  # fmt: skip


def program() -> str:
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert path, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    return os.path.abspath(path)


def train(config, folder, *words):
    return subprocess.run([program(), "train", str(config), f"run.dir={folder}", *SHORT, "--quiet", *words], capture_output=True, text=True)


def lines(folder):
    """The lines of metrics.jsonl without what depends on the clock."""
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu")
    return [{k: v for k, v in line.items() if k not in clock} for line in kept if "run" not in line]


def weights(folder, number):
    return load_file(folder / "checkpoints" / number / "model.safetensors")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_each_config_trains_draws_and_goes_on_bit_for_bit(config, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    made = train(config, whole, "run.checkpoint_every=4")
    assert made.returncode == 0, made.stderr
    said = lines(whole)
    losses = [line["loss"] for line in said if line["phase"] == "sft" and "loss" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert sum(line["phase"] == "grpo" and "reward/mean" in line for line in said) == 2
    shares = [line["natsl/softmax_share"] for line in said if "natsl/softmax_share" in line]
    assert len(shares) == (8 if config.stem == "natsl" else 0) and all(0 <= share <= 1 for share in shares)
    shutil.copytree(whole, part)
    for checkpoint in (part / "checkpoints").iterdir():  # as after a kill within the first phase
        if not checkpoint.name == "sft-000004":
            shutil.rmtree(checkpoint)
    assert (part / "checkpoints" / "sft-000004").exists()
    again = train(config, part, "run.checkpoint_every=4", "--resume")
    assert again.returncode == 0, again.stderr
    assert lines(part) == said
    a, b = weights(whole, "grpo-000002"), weights(part, "grpo-000002")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_entropy_guided_attention_trains_goes_on_and_is_read_back(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{i} squared is {i * i}.\n" for i in range(3000)))
    words = ["run.threads=1", "model.num_hidden_layers=2", "model.hidden_size=32", "phases.pretrain.steps=8", "phases.pretrain.objective.attention_entropy.every=2", "test.windows=4",
             "phases.pretrain.objective.attention_entropy.tolerance=0.01", "phases.pretrain.schedule.warmup_steps=0", "run.checkpoint_every=4",
             f"phases.pretrain.data.corpus={{paths: [{tmp_path}/text.txt], cache: {tmp_path}/tokens}}"]  # fmt: skip

    def command(folder, *more):
        return subprocess.run([program(), "train", str(GUIDED), f"run.dir={tmp_path / folder}", *words, "--quiet", *more], capture_output=True, text=True)

    made = command("whole")
    assert made.returncode == 0, made.stderr
    said = lines(tmp_path / "whole")
    losses = [line["loss"] for line in said if "loss" in line and "lr" in line]
    assert losses[-1] < losses[0]
    heads = [line["attention_entropy"]["entropy"] for line in said if "attention_entropy" in line]
    assert heads and all(len(table) == 2 and len(table[0]) == 4 for table in heads)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for checkpoint in (tmp_path / "part/checkpoints").iterdir():
        if checkpoint.name != "pretrain-000004":
            shutil.rmtree(checkpoint)
    again = command("part", "--resume")
    assert again.returncode == 0, again.stderr
    assert lines(tmp_path / "part") == said
    kept = weights(tmp_path / "part", "pretrain-000008")
    assert kept.keys() == weights(tmp_path / "whole", "pretrain-000008").keys() and not [name for name in kept if "norm" in name or "gate_proj" in name]
    alpha, beta = kept["model.layers.1.mlp.alpha"], kept["model.layers.1.mlp.beta"]
    assert alpha.shape == beta.shape == (1,) and alpha != 1 and beta != 1
    told = json.loads((tmp_path / "whole/checkpoints/pretrain-000008/config.json").read_text())
    assert (told["model_type"], told["norm"], told["activation"]) == ("isentrope", "none", "none")
    other = command("other", f"run.start={tmp_path / 'whole'}", "model.activation=swiglu")
    assert other.returncode != 0 and "model.activation: none → swiglu" in other.stderr, other.stderr
    on = command("on", f"run.start={tmp_path / 'whole'}")
    assert on.returncode == 0, on.stderr
    drawn = subprocess.run([program(), "sample", str(tmp_path / "whole"), "--prompt", "12 squared", "--max-new-tokens", "20", "--json"], capture_output=True, text=True)
    assert drawn.returncode == 0 and len(json.loads(drawn.stdout)["ids"]) > 0, drawn.stderr


@pytest.mark.parametrize(
    "words, keys",
    [
        (["model.mixers=[prefix_linear]", "model.prefix_linear.feature_map=elu_plus_one", "model.prefix_linear.prefix=20"], {"prefix/loss"}),
        (["model.mixers=[routed]", "model.routed={assign: balanced, clusters: 6, window: 8, local_window: 8, decay: 0.9}"], set()),
    ],
    ids=["prefix_linear", "balanced"],
)
def test_text_is_learnt_goes_on_bit_for_bit_and_does_not_mind_its_cuts(words, keys, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{i} squared is {i * i}.\n" for i in range(3000)))
    words = ["run.threads=1", "model.num_hidden_layers=2", "model.hidden_size=32", "model.attention.temperature=none", "model.norm=pre", "model.activation=swiglu", "model.max_position_embeddings=48",
             "phases.pretrain.steps=8", "phases.pretrain.schedule.warmup_steps=0", "phases.pretrain.objective.attention_entropy={every: 2, coef: 0}", "test.windows=4",
             f"phases.pretrain.data.corpus={{paths: [{tmp_path}/text.txt], cache: {tmp_path}/tokens}}", "run.checkpoint_every=4", *words]  # fmt: skip

    def command(folder, *more):
        return subprocess.run([program(), "train", str(GUIDED), f"run.dir={tmp_path / folder}", *words, "--quiet", *more], capture_output=True, text=True)

    made = command("whole")
    assert made.returncode == 0, made.stderr
    said = lines(tmp_path / "whole")
    steps = [line for line in said if "loss" in line and "lr" in line]
    assert steps[-1]["loss"] < steps[0]["loss"] and all(keys <= line.keys() for line in steps)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for checkpoint in (tmp_path / "part/checkpoints").iterdir():
        if checkpoint.name != "pretrain-000004":
            shutil.rmtree(checkpoint)
    again = command("part", "--resume")
    assert again.returncode == 0, again.stderr
    assert lines(tmp_path / "part") == said
    a, b = (weights(tmp_path / name, "pretrain-000008") for name in ("whole", "part"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    # Cut into micro-batches it hides the same tokens and moves the same centres, up to rounding.
    cut = command("cut", "phases.pretrain.batch.micro_tokens=96")
    assert cut.returncode == 0, cut.stderr
    for one, other in zip(steps, (line for line in lines(tmp_path / "cut") if "loss" in line and "lr" in line)):
        assert all(other[key] == pytest.approx(one[key], rel=2e-4) for key in {"loss", *keys})
    moved = [name for name in a if name.endswith("centroids")]
    assert len(moved) == (0 if keys else 2)
    for name in moved:
        start = weights(tmp_path / "whole", "pretrain-000004")[name]
        assert not torch.equal(start, a[name])
        torch.testing.assert_close(a[name].norm(dim=-1), torch.ones(2, 6))
    drawn = subprocess.run([program(), "sample", str(tmp_path / "whole"), "--prompt", "12 squared", "--max-new-tokens", "5"], capture_output=True, text=True)
    assert (drawn.returncode == 0) == bool(keys)
    if not keys:
        assert "routed.assign is balanced" in drawn.stderr and "take argmax" in drawn.stderr, drawn.stderr


def test_a_prefix_that_leaves_no_text_is_refused(tmp_path):
    words = ["model.mixers=[prefix_linear]", "model.attention.temperature=none", "model.prefix_linear.prefix=128", "phases.pretrain.objective.attention_entropy.coef=0"]
    made = subprocess.run([program(), "train", str(GUIDED), f"run.dir={tmp_path}/run", *words], capture_output=True, text=True)
    assert made.returncode != 0 and "model.prefix_linear.prefix: 128 tokens leave none of a text of 128; wanted less, or a share below 1" in made.stderr, made.stderr


def model_of(folder):
    """The decoder of a checkpoint, tokens [T] → logits [T, V], its mixers the modules of isentrope.nn."""
    told, w = json.loads((folder / "config.json").read_text()), {k: v.double() for k, v in load_file(folder / "model.safetensors").items()}
    C, H, L, eps = told["hidden_size"], told["num_attention_heads"], told["num_hidden_layers"], told["rms_norm_eps"]
    modules = []
    for i in range(L):
        kind = told["mixers"][i % len(told["mixers"])]
        if kind == "gated_delta":
            o = told["gated_delta"]
            module = nn.GatedDeltaNet(C, H, expand_v=o["expand_v"], conv_size=o["conv_size"], allow_negative=o["allow_negative"], norm_eps=eps)
        elif kind == "linear":
            o = told["linear"]
            decay = None if o["decay"] == "none" else o["decay"]
            module = nn.LinearAttention(C, H, told["num_key_value_heads"], feature_map=getattr(nn.feature_maps, o["feature_map"]), normalizer=o["normalizer"], decay=decay)
        else:
            module = nn.EntropyAttention(C, H, told["num_key_value_heads"], rope_theta=told["rope_theta"])
        own = f"model.layers.{i}.self_attn."
        module.double().load_state_dict({k.removeprefix(own): v for k, v in w.items() if k.startswith(own)})
        modules.append(module)

    def logits(tokens):
        x = w["model.embed_tokens.weight"][tokens][None]
        for i, module in enumerate(modules):
            at = f"model.layers.{i}."
            x = x + module(rms_norm(x, (C,), w[at + "input_layernorm.weight"], eps))
            y = rms_norm(x, (C,), w[at + "post_attention_layernorm.weight"], eps)
            gate, up = (linear(y, w[f"{at}mlp.{name}_proj.weight"]) for name in ("gate", "up"))
            x = x + linear(silu(gate) * up, w[at + "mlp.down_proj.weight"])
        return linear(rms_norm(x, (C,), w["model.norm.weight"], eps), w["lm_head.weight"])[0]

    return logits


LINEAR = ["linear.decay=head", "linear.feature_map=taylor2", "linear.decay=token", "linear.normalizer=false"]


@pytest.mark.parametrize("config, options", [("gated_delta", []), ("hybrid", []), *(("linear", ["linear.decay=none", "linear.feature_map=elu_plus_one", one]) for one in LINEAR)])
def test_checkpoints_are_the_modules_of_isentrope_nn(config, options, tmp_path):
    """Completions drawn with a checkpoint's weights have the log-probabilities of isentrope.nn's modules with them."""
    words = [f"model.{one}" for one in options] + (["model.linear.conv_size=1"] if config == "linear" else [])
    made = train(ROOT / f"configs/mixers/{config}.yaml", tmp_path / "run", "phases.grpo.steps=1", *words)
    assert made.returncode == 0, made.stderr
    (end,) = (folder for folder in (tmp_path / "run/checkpoints").iterdir() if folder.name.startswith("sft-"))
    logits, ids_of = model_of(end), json.loads((end / "tokenizer.json").read_text())["model"]["vocab"]
    drawn = [json.loads(line) for line in (tmp_path / "run/rollouts/grpo.jsonl").read_text().splitlines()]
    assert len(drawn) == 8
    for one in drawn:
        prompt = [ids_of[c] for c in one["prompt"]]
        ids = torch.tensor(one["ids"])
        with torch.no_grad():
            logprob = logits(torch.tensor(prompt + one["ids"]))[len(prompt) - 1 : -1].log_softmax(-1)
        found = torch.tensor(one["logprob"], dtype=torch.float64)
        torch.testing.assert_close(found, logprob.gather(1, ids[:, None])[:, 0], rtol=0, atol=2e-5)
        torch.testing.assert_close(torch.tensor(one["entropy"], dtype=torch.float64), -(logprob.exp() * logprob).sum(-1), rtol=0, atol=2e-5)


def test_states_are_watched_and_change_nothing(tmp_path):
    """mixer_state of linear attention beside the delta rule and softmax attention, and the same run without it."""
    words = ["model.num_hidden_layers=4", "model.mixers=[linear, gated_delta, softmax, natsl]", "model.gated_delta.expand_v=1", "model.natsl.chunk=16"]
    watched = train(ROOT / "configs/mixers/linear.yaml", tmp_path / "watched", *words, "phases.sft.objective.attention_entropy.every=2", "phases.grpo.objective.attention_entropy.every=1")
    assert watched.returncode == 0, watched.stderr
    plain = train(ROOT / "configs/mixers/linear.yaml", tmp_path / "plain", *words, *(f"phases.{name}.objective.attention_entropy.every=0" for name in ("sft", "grpo")))
    assert plain.returncode == 0, plain.stderr
    said = lines(tmp_path / "watched")
    states = [line["mixer_state"] for line in said if "mixer_state" in line]
    assert len(states) == 5 and all(state["layers"] == [0, 1, 3] for state in states)
    for state in states:
        assert [layer is None for layer in state["entropy"]] == [layer is None for layer in state["normalized"]] == [False, True, True]
        assert all(0 < share <= 1 for share in state["normalized"][0]) and all(nats > 0 for nats in state["entropy"][0])
        assert all(len(layer) == 4 and all(0 <= rank <= 16 for rank in layer) for layer in state["rank"])
        assert all(rank > 1 for layer in state["rank"][:2] for rank in layer)  # that of natsl is 0 while softmax attention takes all chunks
    assert all(line["attention_entropy"]["layers"] == [2, 3] for line in said if "mixer_state" in line)
    kept = [{key: value for key, value in line.items() if key not in ("mixer_state", "attention_entropy")} for line in said]
    assert kept == [{key: value for key, value in line.items() if key != "attention_entropy"} for line in lines(tmp_path / "plain")]


def test_lora_and_bfloat16_train_on_states(tmp_path):
    base = tmp_path / "base"
    assert train(ROOT / "configs/mixers/hybrid.yaml", base).returncode == 0
    config = "\n".join(line for line in (ROOT / "configs/mixers/hybrid.yaml").read_text().splitlines() if not line.startswith("tokenizer"))
    head, rest = config.split("model:\n")[0], config[config.index("phases:") :]
    (tmp_path / "lora.yaml").write_text(f"{head}model: {{pretrained: {base}, compute: bfloat16, lora: {{rank: 4}}}}\n{rest}")
    made = train(tmp_path / "lora.yaml", tmp_path / "lora", "phases.grpo.rollout.dtype=bfloat16")
    assert made.returncode == 0, made.stderr
    adapter = load_file(max((tmp_path / "lora/checkpoints").iterdir(), key=lambda f: f.name == "grpo-000002") / "adapter_model.safetensors")
    assert any("layers.0.self_attn.q_proj.lora_B" in name and bool(values.any()) for name, values in adapter.items())
    assert not any("g_proj" in name or "decay" in name for name in adapter)


@pytest.mark.parametrize(
    "config, words, message",
    [
        ("hybrid", ["model.num_hidden_layers=3"], "mixers: a pattern of 2 layers does not fit num_hidden_layers (3)"),
        ("linear", ["model.mixers=[lineal]"], "model.mixers"),
        ("linear", ["model.attention.bias=all"], "layers of kind linear have no biases"),
        ("softmax_rnn", ["model.softmax_rnn.denominator=count"], "softmax_rnn.norm (rms) takes the scale of a row away"),
        ("softmax_rnn", ["model.softmax_rnn.norm=none", "model.attention.softcap=30"], "have softmax_rnn.clamp in its place"),
        ("softmax_rnn", ["model.family=llama"], "llama has no models with model.mixers"),
        ("linear", ["model.family=llama"], "llama has no models with model.mixers"),
        ("ssd", ["phases.grpo.rollout.cache_tokens=4096"], "no layer of model.mixers keeps keys and values in pages"),
        ("ssd", ["phases.sft.objective.attention_entropy.coef=0.1"], "no layer of model.mixers is of kind softmax"),
        ("hybrid", ["phases.grpo.weight=[{kind: attention_entropy, layer: 0}]"], "the layer's mixer is no softmax"),
        ("routed", ["model.routed.assign=balanced"], "phases.sft.objective.kind: sft, and in layer 0 (routed) a token sees later ones"),
        ("routed", ["model.num_key_value_heads=2"], "model: num_key_value_heads: 2; heads of kind routed have keys and values of their own"),
        ("routed", ["model.attention.softcap=5"], "model: attention.softcap: layers of kind routed have none, and layer 0 is one"),
        ("prefix_linear", ["phases.grpo.rollout.cache_tokens=4096"], "no layer of model.mixers keeps keys and values in pages"),
        ("natsl", ["model.natsl.chunk=20"], "model: natsl.chunk: 20 is no multiple of 16"),
        ("natsl", ["model.num_key_value_heads=2"], "model: num_key_value_heads: 2; heads of kind natsl have keys and values of their own"),
        ("natsl", ["model.compute=bfloat16"], "model: natsl.chunk: 16, and with model.compute bfloat16 blocks of keys are of 64"),
        ("natsl", ["model.attention.softcap=5"], "model: attention.softcap: layers of kind natsl have none, and layer 0 is one"),
        ("estimated", ["model.attention.softcap=5"], "model: attention.softcap: layers of kind estimated have none, and layer 0 is one"),
        ("estimated", ["model.estimated.columns=1"], "model.estimated.columns: 1"),
        ("gated_delta", ["phases.sft.data.tint.queries=9"], "a problem of recall may have 8 keys"),
        ("gated_delta", ["phases.sft.data.tint.terms=[17]"], "the keys of recall are of 16 letters"),
    ],
)
def test_refuses(config, words, message, tmp_path):
    made = train(ROOT / f"configs/mixers/{config}.yaml", tmp_path / "run", *words)
    assert made.returncode != 0 and message in made.stderr, made.stderr
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_checkpoint_of_other_mixers_is_refused_by_name(tmp_path):
    base = tmp_path / "base"
    assert train(ROOT / "configs/mixers/gated_delta.yaml", base).returncode == 0
    other = train(ROOT / "configs/mixers/hybrid.yaml", tmp_path / "other", f"run.start={base}")
    assert other.returncode != 0 and "model.mixers: [gated_delta] → [gated_delta, softmax]" in other.stderr, other.stderr
    options = train(ROOT / "configs/mixers/gated_delta.yaml", tmp_path / "other", f"run.start={base}", "model.gated_delta.allow_negative=true")
    assert options.returncode != 0 and "model.gated_delta.allow_negative: false → true" in options.stderr, options.stderr
    idle = train(ROOT / "configs/mixers/gated_delta.yaml", tmp_path / "idle", f"run.start={base}", "model.ssd.expand_v=4")
    assert idle.returncode == 0, idle.stderr
    sampled = subprocess.run([program(), "sample", str(base), "--prompt", "a3b7:a=", "--temperature", "0"], capture_output=True, text=True)
    assert sampled.returncode == 0, sampled.stderr


def test_recall_asks_for_values_that_stand_in_the_prompt(tmp_path):
    made = train(ROOT / "configs/mixers/softmax.yaml", tmp_path / "run", "phases.grpo.data.tint.gap=3",
                 "tokenizer.characters=0123456789:=A-abcdefghijklmnop.", "phases.sft.data.tint.gap=3")  # fmt: skip
    assert made.returncode == 0, made.stderr
    for line in (tmp_path / "run/rollouts/grpo.jsonl").read_text().splitlines():
        pairs, asked = json.loads(line)["prompt"].split("---:")
        values = dict(zip(pairs[::2], pairs[1::2]))
        assert len(values) == 8 and asked[-1] == "=" and len(set(asked[:-1])) == 4 and set(asked[:-1]) <= set(values)
