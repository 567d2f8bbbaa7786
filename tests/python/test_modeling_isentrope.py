"""Checkpoints of the type isentrope in transformers, by the code that they carry: logits against what the trainer's rollouts recorded,
padding on either side, generation, diagnose."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("modules_of_transformers")

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["run.threads=1", "run.checkpoint_every=0", "phases.sft.steps=3", "phases.grpo.steps=1", "phases.sft.batch.sequences=8", "phases.sft.schedule.warmup_steps=0", "phases.grpo.rollout.prompts=4",
         "phases.grpo.rollout.num_generations=2", "phases.grpo.rollout.save_every=1", "test.prompts=4", "test.sampled_prompts=2",
         *(f"phases.{phase}.evaluation.every=0" for phase in ("sft", "grpo"))]  # fmt: skip
CASES = {
    "linear": ("linear", []),
    "linear, taylor2, decay by head": ("linear", ["linear.feature_map=taylor2", "linear.decay=head"]),
    "linear, exp_normalized, decay by token, no normalizer": ("linear", ["linear.feature_map=exp_normalized", "linear.decay=token", "linear.normalizer=false"]),
    "normalized": ("normalized", []),
    "normalized, rms": ("normalized", ["normalized.denominator=rms"]),
    "gated_delta": ("gated_delta", []),
    "gated_delta, shared keys, negative": ("gated_delta", ["num_key_value_heads=1", "gated_delta.expand_v=2", "gated_delta.allow_negative=true"]),
    "ssd": ("ssd", []),
    "prefix_linear": ("prefix_linear", []),
    "prefix_linear, taylor2, shared keys": ("prefix_linear", ["num_key_value_heads=2", "prefix_linear.feature_map=taylor2", "prefix_linear.conv_size=1", "prefix_linear.mask_weight=0"]),
    "prefix_linear beside softmax": ("prefix_linear", ["mixers=[softmax, prefix_linear]"]),
    "routed": ("routed", []),
    "natsl": ("natsl", []),
    "natsl, plain, negative, beside softmax": ("natsl", ["mixers=[natsl, softmax]", "natsl={chunk: 16, conv_size: 1, allow_negative: true}"]),
    "estimated": ("estimated", []),
    "estimated, shared keys, many cells, beside softmax": ("estimated", ["mixers=[estimated, softmax]", "num_key_value_heads=2", "estimated={columns: 50, keep: 4, feature_map: exp_normalized}"]),
    "hybrid": ("hybrid", []),
    "softmax, every option": ("softmax", ["num_key_value_heads=1", "norm=post", "attention.softcap=5", "attention.temperature=row", "attention.qk_norm=true", "attention.bias=qkv", "mlp_bias=true",
                                          "attention.window=6", "attention.layer_types=[sliding_attention, full_attention]", "tie_word_embeddings=true"]),
    "softmax, no norm": ("softmax", ["norm=none", "attention.temperature=head"]),
    **{f"softmax_rnn, {o}": ("softmax", ["mixers=[softmax_rnn]", *(f"softmax_rnn.{one}" for one in o.split())]) for o in (
        "norm=rms", "norm=layer value_gate=true", "norm=l2 output_gate=true", "norm=none denominator=none", "norm=none denominator=max_one value_gate=true output_gate=true",
        "norm=none denominator=count", "norm=none denominator=detached", "norm=none denominator=sum")},
    "softmax, no activation": ("softmax", ["activation=none", "norm=none"]),
    **{f"softmax, {one}": ("softmax", [f"activation={one}", "mlp_bias=true"]) for one in ("gelu", "relu", "crrelu")},
    "softmax, yarn": ("softmax", ["attention.softcap=5", "rope_scaling.rope_type=yarn", "rope_scaling.factor=2"]),
}  # fmt: skip


def program():
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert path, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    return os.path.abspath(path)


def run_of(folder, config, options):
    words = [f"model.{one}" for one in options]
    made = subprocess.run([program(), "train", str(ROOT / f"configs/mixers/{config}.yaml"), f"run.dir={folder}", *SHORT, "--quiet", *words], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (end,) = (place for place in (folder / "checkpoints").iterdir() if place.name.startswith("sft-"))
    drawn = [json.loads(line) for line in (folder / "rollouts/grpo.jsonl").read_text().splitlines()]
    return end, drawn


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_trainer(name, tmp_path):
    checkpoint, drawn = run_of(tmp_path / "run", *CASES[name])
    model, info = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, output_loading_info=True)
    assert type(model).__module__.startswith("transformers_modules") and model.config.model_type == "isentrope"
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for file in ("modeling_isentrope.py", "mixers_isentrope.py"):
        assert (checkpoint / file).read_text() == (ROOT / "python/isentrope" / file).read_text()
    model = model.double()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)
    sequences = [tokenizer(one["prompt"], add_special_tokens=False)["input_ids"] + one["ids"] for one in drawn]
    longest = max(map(len, sequences))
    ids, mask = torch.zeros(2, len(drawn), longest, dtype=torch.long), torch.zeros(2, len(drawn), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        for side, place in ((0, slice(longest - len(sequence), None)), (1, slice(0, len(sequence)))):  # padding on the left, on the right
            ids[side, row, place], mask[side, row, place] = torch.tensor(sequence), 1
    prompts = torch.tensor([len(sequence) - len(one["ids"]) for sequence, one in zip(sequences, drawn)])
    for side in (0, 1):
        with torch.no_grad():
            logits = model(ids[side], attention_mask=mask[side], prefix_length=prompts).logits
        for row, one in enumerate(drawn):
            n, end = len(one["ids"]), longest if side == 0 else len(sequences[row])
            logprob = logits[row, end - n - 1 : end - 1].log_softmax(-1).gather(1, torch.tensor(one["ids"])[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(one["logprob"], dtype=torch.float64), logprob, rtol=5e-5, atol=5e-5)  # of the trainer's float32; 5e-5 of 3.4 was the most


def test_generates_and_learns(tmp_path):
    checkpoint, _ = run_of(tmp_path / "run", "hybrid", [])
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    prompts = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    told = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    both = model.generate(prompts, attention_mask=mask, **told)
    alone = model.generate(prompts[:1, 2:], attention_mask=mask[:1, 2:], **told)
    assert torch.equal(both[0, 5:], alone[0, 3:])
    with torch.no_grad():
        assert int(model(both[1:, :-1]).logits[0, -1].argmax()) == int(both[1, -1])
    model(prompts, attention_mask=mask, labels=prompts).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_generates_behind_a_prefix(tmp_path):
    checkpoint, _ = run_of(tmp_path / "run", "prefix_linear", [])
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    prompts, mask = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    told = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    both = model.generate(prompts, attention_mask=mask, **told)
    alone = model.generate(prompts[:1, 2:], **told)
    assert torch.equal(both[0, 5:], alone[0, 3:])
    with torch.no_grad():
        logits = model(both[1:, :-1], prefix_length=5).logits
        assert torch.equal(logits[0, 4:].argmax(-1), both[1, 5:])
        assert not torch.allclose(logits, model(both[1:, :-1]).logits)
    with pytest.raises(ValueError, match="prefix_length is 9; wanted at most the tokens of each sequence, of which the shortest has 3"):
        model(prompts, attention_mask=mask, prefix_length=torch.tensor([2, 9]))


def test_diagnose_opens_by_the_package_and_not_by_the_folder(tmp_path):
    checkpoint, _ = run_of(tmp_path / "run", "hybrid", [])
    (checkpoint / "modeling_isentrope.py").write_text("raise SystemExit('code of the folder was run')")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["a3b7c1:ca=", "b2a1c3:ab=", "c9a8b7:bc="]))
    words = [sys.executable, "-m", "isentrope.diagnose", str(checkpoint), "--measure", "representation", "--data", str(tmp_path / "texts.jsonl"), "--output", str(tmp_path / "looked")]
    told = subprocess.run(words, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "representation" in json.loads((tmp_path / "looked/representation.json").read_text())["measure"]
