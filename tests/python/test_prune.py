"""isentrope sample and evaluate --prune: the tokens that are kept and what is drawn behind them, beside a model of transformers in double; what is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from isentrope.diagnose.token_matrix import token_entropies

ROOT = Path(__file__).resolve().parents[2]
SFT = ROOT / "configs" / "tiny" / "sft.yaml"
SHORT = ["model.num_hidden_layers=3", "phases.sft.steps=60", "phases.sft.schedule.warmup_steps=0", "phases.sft.evaluation.every=0",
         "test={prompts: 24, sampled_prompts: 8, num_generations: 2}"]  # fmt: skip
PROMPTS = ["a+5b+6c-9=", "2a+3b-7c+4=", "a-b+c-d+12="]


def run(*words, code=0, **arguments):
    build = os.environ.get("ISENTROPE_BUILD")
    program = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert program, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    told = subprocess.run([os.path.abspath(program), *map(str, words)], capture_output=True, text=True, timeout=300, **arguments)
    assert told.returncode == code, told.stderr
    return told.stderr if code else told.stdout


def sampled(folder, *words):
    given = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    return [json.loads(line) for line in run("sample", folder, "--json", "--temperature", "0", "--max-new-tokens", "6", *given, *words).splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    run("train", SFT, f"run.dir={folder}/run", "--quiet", *SHORT, cwd=ROOT)
    run("export", folder / "run", folder / "model")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64, attn_implementation="eager")


def ids_of(model, folder, prompt):
    tokenizer = json.loads((folder / "model" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    return [vocabulary[character] for character in prompt]


def hidden_and_queries(model, embeddings, layer):
    """What enters a block [T, C], and its queries there [T, H, D]."""
    block = model.model.layers[layer]
    hidden = model(inputs_embeds=embeddings[None], output_hidden_states=True).hidden_states[layer][0]
    return hidden, block.self_attn.q_proj(block.input_layernorm(hidden)).unflatten(1, (model.config.num_attention_heads, -1))


def log_probabilities(model, embeddings, kept, n, layer):
    """Of the tokens behind each position from n − 1 on, where from block `layer` on no row sees the prompt's tokens that were not kept."""
    T = len(embeddings)
    there = torch.ones(T, T, dtype=torch.bool).tril()
    without = there.clone()
    without[:, [t for t in range(n) if t not in kept]] = False
    without |= torch.eye(T, dtype=torch.bool)  # a dropped row sees itself: nobody reads what becomes of it
    x = embeddings[None]
    positions = model.model.rotary_emb(x, torch.arange(T)[None])
    for number, block in enumerate(model.model.layers):
        mask = torch.where(without if number >= layer else there, 0.0, float("-inf")).double()[None, None]
        x = block(x, attention_mask=mask, position_embeddings=positions)
        x = x[0] if isinstance(x, tuple) else x
    return model.lm_head(model.model.norm(x))[0, n - 1 :].log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("matrix", ["query", "hidden"])
@pytest.mark.parametrize("form", ["normalised", "raw"])
@pytest.mark.parametrize("layer", [1, 2])
def test_what_is_kept_and_drawn_is_what_the_reference_says(folder, model, matrix, form, layer):
    for line, prompt in zip(sampled(folder / "run", "--prune", f"layer={layer},keep=0.5,matrix={matrix},form={form}"), PROMPTS):
        ids = ids_of(model, folder, prompt)
        n, stay = len(ids), int(len(ids) / 2 + 0.5)
        hidden, queries = hidden_and_queries(model, model.model.embed_tokens(torch.tensor(ids)), layer)
        H = model.config.num_attention_heads
        h = token_entropies(queries if matrix == "query" else hidden.unflatten(1, (H, -1)))[form == "raw"]
        order = sorted(range(n - 1), key=lambda t: -h[t])
        assert float(h[order[stay - 2]] - h[order[stay - 1]]) > 1e-4, "the reference itself does not tell these two apart"
        assert line["kept"] == sorted(order[: stay - 1] + [n - 1]), (prompt, h)
        both = model.model.embed_tokens(torch.tensor(ids + line["ids"]))
        found = log_probabilities(model, both, line["kept"], n, layer)
        assert line["ids"] == found[:-1].argmax(-1).tolist()
        wanted = found[torch.arange(len(line["ids"])), line["ids"]]
        torch.testing.assert_close(torch.tensor(line["logprob"]).double(), wanted, rtol=0, atol=1e-4)


def test_all_kept_draws_what_is_drawn_without(folder):
    plain = sampled(folder / "run")
    for line, other in zip(sampled(folder / "run", "--prune", "layer=1,keep=1"), plain):
        assert line.pop("kept") == list(range(len(line["prompt"])))
        assert line == other
    half = sampled(folder / "run", "--prune", "layer=1")
    assert [line["logprob"] for line in half] != [line["logprob"] for line in plain]


def test_random_tokens_are_a_control_that_the_prompt_fixes(folder):
    words = ["--prune", "layer=1,keep=0.5,form=random,first=1"]
    one, again = sampled(folder / "run", *words), sampled(folder / "run", *words, "--samples", "3")
    assert [line["kept"] for line in one] == [line["kept"] for line in again[::3]] == [line["kept"] for line in again[2::3]]
    assert all(line["kept"][0] == 0 and line["kept"][-1] == len(line["prompt"]) - 1 for line in one)
    assert len({tuple(line["kept"]) for line in one}) > 1


def test_auto_is_the_layer_of_the_largest_drop(folder, model):
    with torch.no_grad():
        sums = torch.zeros(model.config.num_hidden_layers, dtype=torch.float64)
        for prompt in PROMPTS:
            embeddings = model.model.embed_tokens(torch.tensor(ids_of(model, folder, prompt)))
            for layer in range(len(sums)):
                sums[layer] += token_entropies(hidden_and_queries(model, embeddings, layer)[1])[0].sum()
    falls = sums.diff()
    found = run("sample", folder / "run", "--json", *(word for p in PROMPTS for word in ("--prompt", p)), "--prune", "keep=0.5", code=int(falls.min() >= 0))
    if falls.min() >= 0:
        assert "prune.layer is auto, and the mean entropy of the tokens falls at no layer" in found
        return
    layer = int(falls.argmin()) + 1
    assert found == run("sample", folder / "run", "--json", *(word for p in PROMPTS for word in ("--prompt", p)), "--prune", f"keep=0.5,layer={layer}")


@torch.no_grad()
def test_embeddings_of_a_file_stand_before_the_prompt_and_are_alone_dropped(folder, model, tmp_path):
    layer, P = 1, 10
    image = torch.randn(P, model.config.hidden_size, generator=torch.Generator().manual_seed(3)) * 0.02
    image[3] = image[7] = image[5]  # redundant ones are not told by their heads: those whose heads are alike are
    image[2] = image[2].view(model.config.num_attention_heads, -1)[:1].expand(model.config.num_attention_heads, -1).reshape(-1)
    save_file({"embeddings": image}, tmp_path / "image.safetensors")
    words = ["--prefix", tmp_path / "image.safetensors"]
    for line, pruned, prompt in zip(sampled(folder / "run", *words), sampled(folder / "run", *words, "--prune", f"layer={layer},keep=0.4"), PROMPTS):
        ids = ids_of(model, folder, prompt)
        n = P + len(ids)
        start = torch.cat([image.double(), model.model.embed_tokens(torch.tensor(ids))])
        h = token_entropies(hidden_and_queries(model, start, layer)[1][:P])[0]
        wanted = sorted(sorted(range(P), key=lambda t: -h[t])[:4]) + list(range(P, n))
        assert pruned["kept"] == wanted and "kept" not in line
        for found, kept in ((line, list(range(n))), (pruned, wanted)):
            both = torch.cat([start, model.model.embed_tokens(torch.tensor(found["ids"]))])
            truth = log_probabilities(model, both, kept, n, layer)
            assert found["ids"] == truth[:-1].argmax(-1).tolist()
            chosen = truth[torch.arange(len(found["ids"])), found["ids"]]
            torch.testing.assert_close(torch.tensor(found["logprob"]).double(), chosen, rtol=0, atol=1e-4)
    save_file({"embeddings": image[:, 1:].contiguous()}, tmp_path / "narrow.safetensors")
    told = run("sample", folder / "run", "--prompt", "a=", "--prefix", tmp_path / "narrow.safetensors", code=1)
    assert "narrow.safetensors has no tensor embeddings of [P, " in told


def test_evaluate_prunes_the_prompts(folder, tmp_path):
    plain = json.loads(run("evaluate", folder / "run", "--json"))
    whole = json.loads(run("evaluate", folder / "run", "--json", "--prune", "layer=1,keep=1"))
    assert plain.pop("loss") > 0 and plain["intervals"].pop("loss") and whole == plain  # the loss is of whole prompts, and is not measured
    pruned = json.loads(run("evaluate", folder / "run", "--json", "--prune", "layer=1,keep=0.3", "--completions", tmp_path / "c.jsonl"))
    assert pruned == json.loads(run("evaluate", folder / "run", "--json", "test.prune={layer: 1, keep: 0.3}"))
    assert pruned["entropy"] != plain["entropy"]
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert all(len(line["kept"]) == max(1, int(0.3 * len(line["prompt"]) + 0.5)) for line in lines)


@pytest.mark.parametrize("words, told", [
    ("keep=0", "prune.keep is 0, wanted above 0, at most 1"),
    ("keep=1.5", "prune.keep is 1.5, wanted above 0, at most 1"),
    ("keep=half", 'prune.keep is "half", wanted a number'),
    ("layer=3", "prune.layer is 3, and the model has 3 layers; wanted 0 to 2, or auto"),
    ("layer=1.5", "prune.layer is 1.5, wanted an integer"),
    ("layer=1,layer=2", "prune.layer is given twice"),
    ("matrix=key", 'prune.matrix is "key"; the values are query, hidden'),
    ("laier=1", "prune has no key \"laier\"; did you mean 'layer'?"),
    ("half", '"half" is no KEY=VALUE; wanted as layer=2,keep=0.5'),
    ("form=random", "prune.layer is auto, and form random, which has no entropy; wanted a layer"),
])  # fmt: skip
def test_what_is_wrong_is_named(folder, words, told):
    for command in (["sample", folder / "run", "--prompt", "a="], ["evaluate", folder / "run"]):
        said = run(*command, "--prune", words, code=1)
        assert told.removeprefix("prune.") in said and "prune" in said


def test_models_whose_later_layers_keep_no_tokens_are_refused(tmp_path):
    run("train", SFT, f"run.dir={tmp_path}/run", "--quiet", "model.mixers=[linear, softmax]", "phases.sft.steps=1", "phases.sft.schedule.warmup_steps=0",
        "phases.sft.evaluation.every=0", "test={skip: true}", cwd=ROOT)  # fmt: skip
    told = run("sample", tmp_path / "run", "--prompt", "a=", "--prune", "layer=0", code=1)
    assert "layer 0 is of kind linear; wanted softmax or softmax_rnn from there on" in told
    assert run("sample", tmp_path / "run", "--prompt", "a+b=", "--prune", "layer=1")
