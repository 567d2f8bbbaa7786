#!/usr/bin/env python3
"""attn_implementation="isentrope" against "eager" in every language model of transformers that can be built small.

    python scripts/transformers_sweep.py [--jobs N] [--out docs/transformers.md] [TYPE ...]

For each model type of the registries of causal, masked and sequence-to-sequence language models: a random model of some
thousand parameters, run with both attentions on the inputs of CONDITIONS. Prints a line a model and, with --out, writes the table.
Exit code 1 where a model is silently wrong: both ran, and what came out differs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import inspect
import json
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from isentrope.integrations import transformers as integration

HEADS = {
    "causal": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM),
    "masked": (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, transformers.AutoModelForMaskedLM),
    "seq2seq": (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForSeq2SeqLM),
}
# Two float32 paths of one model differ by rounding, 5e-6 of the largest number at most in what is right; a key too many or too few
# in a row of twelve changes it by a hundredth and more.
TOLERANCE = 1e-4
LARGEST, SECONDS = 30_000_000, 240  # parameters of a model, and its time

V, B, T = 97, 3, 12

# ---- small models ------------------------------------------------------------------------------------------------------

_BY_SIZE = {
    2: "num_hidden_layers encoder_layers decoder_layers n_layer n_layers num_layers num_decoder_layers num_encoder_layers "
    "num_experts_per_tok moe_topk moe_top_k moe_k top_k num_experts_per_token num_key_value_heads topk_group n_group "
    "max_window_layers linear_num_key_heads kv_n_heads num_kv_heads swa_num_key_value_heads num_sparse_encoder_layers "
    "num_expert_group mamba_expand num_codebooks num_query_groups conf_num_hidden_layers",
    1: "first_k_dense_replace num_nextn_predict_layers n_shared_experts num_dense_layers moe_layer_start_index hidden_act_layers",
    4: "num_attention_heads encoder_attention_heads decoder_attention_heads n_head n_heads num_heads attention_heads "
    "num_local_experts num_experts n_routed_experts moe_num_experts linear_num_value_heads num_encoder_attention_heads "
    "num_decoder_attention_heads swa_num_attention_heads mamba_n_heads mamba_num_heads index_n_heads linear_num_heads "
    "num_self_attention_heads conf_num_attention_heads attention_window",
    5: "sliding_window local_attention sliding_window_size attention_window_size",
    8: "q_lora_rank index_topk mamba_d_state state_size ssm_state_size conf_reduction_factor chunk_size mamba_chunk_size "
    "hidden_size_per_layer_input o_lora_rank lora_rank router_hidden_size",
    16: "kv_lora_rank qk_nope_head_dim qk_rope_head_dim global_head_dim head_dim d_kv d_head kv_channels mamba_d_head mamba_headdim "
    "mamba_head_dim linear_key_head_dim linear_value_head_dim dim_head swa_head_dim linear_head_dim attention_head_dim "
    "query_pre_attn_scalar time_step_rank rotary_dim laurel_rank",
    32: "qk_head_dim v_head_dim index_head_dim embedding_size moe_intermediate_size embedding_rank input_embedding_size "
    "output_embedding_size emb_size expert_ffn_hidden_size adapter_rank",
    64: "hidden_size d_model n_embd dim hidden_dim_model word_embed_proj_dim embed_dim emb_dim hidden_size_global width lru_width "
    "attention_hidden_size mamba_d_ssm pooler_hidden_size cross_attention_hidden_size backbone_hidden_size encoder_hidden_size "
    "true_hidden_size",
    96: "intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff ffn_dim d_inner n_inner hidden_dim ffn_hidden_size dff dim_ff "
    "shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp dense_intermediate_size mlp_dim "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size feed_forward_size",
    128: "max_position_embeddings n_positions n_ctx max_source_positions max_target_positions max_seq_len context_length "
    "original_max_position_embeddings model_max_length max_encoder_position_embeddings max_decoder_position_embeddings "
    "position_bias_max_distance t2u_max_position_embeddings image_size",
    V: "vocab_size decoder_vocab_size src_vocab_size tgt_vocab_size vocab_size_per_layer_input unpadded_vocab_size "
    "entity_vocab_size ngram_vocab_size_base pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab "
    "audio_vocab_size",
}
SIZES = {name: size for size, names in _BY_SIZE.items() for name in names.split()}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_bos_token_id": None}
SIZES |= {name: 2 for name in ("t2u_encoder_layers", "t2u_decoder_layers", "speech_encoder_layers", "depth", "attn_layer_period")}
SIZES |= {"attn_layer_offset": 1, "num_hidden_groups": 1, "num_kv_shared_layers": 0, "embd_pdrop": 0.0, "segment_means_seq_len": 12}
SIZES |= {"index_block_size": 4, "index_topk_blocks": 2, "scale_parameter": None, "num_attention_heads_per_layer": None}
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
# Other values, tried in turn until a model can be built and run; DEFAULT leaves a name as it is, "lists" are those a layer.
DEFAULT = object()
VARIANTS = [
    {}, {"num_key_value_heads": 4}, {"head_dim": 16},
    {"head_dim": DEFAULT}, {"head_dim": 16, "num_key_value_heads": 2}, {"num_key_value_heads": DEFAULT},
    {"lists": DEFAULT}, {"lists": DEFAULT, "head_dim": DEFAULT}, {"lists": DEFAULT, "head_dim": 16, "num_key_value_heads": 2},
    {"lists": DEFAULT, "head_dim": DEFAULT, "num_key_value_heads": DEFAULT}, {"lists": DEFAULT, "hidden_size": DEFAULT, "d_model": DEFAULT},
]  # fmt: skip
OWN = {  # what single types need besides
    "bailing_hybrid": {"layer_group_size": 2},
    "blt": {"lists": DEFAULT},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1, "lists": DEFAULT},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"], "index_block_size": 2, "index_n_heads": 2,
                           "mlp_layer_types": ["dense", "sparse"]},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32, "embedding_size": 32},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 12},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 4},
    "squeezebert": {"embedding_size": 64},
    "xlstm": {"lists": DEFAULT, "head_dim": DEFAULT, "num_heads": 4, "qk_dim_factor": 1.0},
    "zamba": {"num_hidden_layers": DEFAULT},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "esm": {"vocab_size": V, "mask_token_id": 3},
}


def small(kind: type, changes: dict, decoder: bool):
    """A configuration of class kind with the names of SIZES as there, and one layer of each of its kinds of layer."""
    default = kind()
    plain = {**default.to_dict(), **{name: getattr(default, name, None) for name in getattr(default, "attribute_map", {}).values()}}
    chosen = {name: SIZES[name] for name in plain if name in SIZES and plain[name] is not None}
    chosen |= {name: value for name, value in changes.items() if name in plain}
    chosen = {name: value for name, value in chosen.items() if value is not DEFAULT}
    count = next((name for name in LAYER_COUNTS if name in plain), None)
    if count is not None and "lists" not in changes:
        lists = {name: value for name, value in plain.items() if isinstance(value, list) and value and name not in changes}
        kinds = {name: list(dict.fromkeys(value)) for name, value in lists.items()
                 if len(value) == plain[count] and all(isinstance(x, (str, int)) for x in value)}  # fmt: skip
        if kinds:
            layers = max(2, *(len(value) for value in kinds.values()))
            chosen |= {name: layers for name in LAYER_COUNTS if name in chosen}
            chosen |= {name: [value[i % len(value)] for i in range(layers)] for name, value in kinds.items()}
    if isinstance(plain.get("attention_window"), list):
        chosen["attention_window"] = [4] * 2
    chosen |= {name: True for name in ("is_decoder", "use_cache") if decoder and name in plain}
    chosen |= {name: 0.0 for name, value in plain.items() if isinstance(value, float) and re.search("drop|_prob$", name)}
    for name in getattr(kind, "sub_configs", {}):
        part = getattr(default, name, None)
        if isinstance(part, transformers.PreTrainedConfig):
            chosen[name] = small(type(part), changes, decoder)
    return kind(**chosen)


def randomise(model: nn.Module) -> None:
    """Weights with which attention is far from flat, so that a wrong key shows."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding):
            weight.data.normal_(0, 0.7, generator=generator)
        elif isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            size = weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1]
            weight.data.normal_(0, 1.5 / size**0.5, generator=generator)
    for name, parameter in model.named_parameters():
        if "expert" in name and parameter.dim() == 3:
            parameter.data.normal_(0, 0.1, generator=generator)


class Unbuildable(Exception): ...


def build(head: str, kind: str):
    """(model with eager attention, its configuration) of random weights."""
    auto, reasons = HEADS[head][1], []
    for variant in VARIANTS:
        try:
            config = small(CONFIG_MAPPING[kind], {**variant, **OWN.get(kind, {})}, head == "causal")
            with torch.device("meta"):
                size = sum(p.numel() for p in auto.from_config(copy.deepcopy(config), attn_implementation="eager").parameters())
            if size > LARGEST:
                raise Unbuildable(f"{size / 1e6:.0f} million parameters")
            torch.manual_seed(3)
            model = auto.from_config(copy.deepcopy(config), attn_implementation="eager").eval().float()
            randomise(model)
            out = run(model, inputs(model, head)["plain"])
            if not out.isfinite().all():
                raise Unbuildable("eager gives numbers that are not finite")
            return model, config
        except Exception as error:
            reasons.append(brief(error))
    raise Unbuildable(reasons[0])


# ---- inputs, and what comes out ----------------------------------------------------------------------------------------


def inputs(model: nn.Module, head: str) -> dict[str, dict]:
    """name of the condition → arguments of the model. Where padding is, `real` says which positions of the output count."""
    takes = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(3, V - 1, (B, T), generator=generator)
    changed = x.clone()
    changed[:, -1] = V - 1
    right, left, two = (torch.ones(B, n, dtype=torch.long) for n in (T, T, 2))
    right[1, 8:], right[2, 3:], left[1, :4], left[2, :9], two[1, 1:] = 0, 0, 0, 0, 0
    conditions = {
        "plain": {"input_ids": x},
        "last token changed": {"input_ids": changed},
        "right padding": {"input_ids": x, "attention_mask": right, "real": right.bool()},
        "left padding": {"input_ids": x, "attention_mask": left, "real": left.bool()},
        "two tokens": {"input_ids": x[:, :2], "attention_mask": two, "real": two.bool()},
    }
    if head == "seq2seq" and "decoder_input_ids" in takes:
        y = torch.randint(3, V - 1, (B, 9), generator=generator)
        for arguments in conditions.values():
            arguments.pop("real", None)
            arguments["decoder_input_ids"] = y.clone()
        conditions["last token changed"] = {"input_ids": x, "decoder_input_ids": y.clone()}
        conditions["last token changed"]["decoder_input_ids"][:, -1] = V - 1
        if "decoder_attention_mask" in takes:
            for name, mask in (("decoder, right padding", right[:, :9]), ("decoder, left padding", left[:, 3:])):
                conditions[name] = {"input_ids": x, "decoder_input_ids": y, "decoder_attention_mask": mask, "real": mask.bool()}
        return conditions
    if head != "masked":
        conditions["cached"] = {"input_ids": x}
        if "position_ids" in takes:
            position = torch.cat([torch.arange(5), torch.arange(1), torch.arange(6)])[None].expand(B, T)
            conditions["packed"] = {"input_ids": x, "position_ids": position, "use_cache": False}
    return conditions


def run(model: nn.Module, arguments: dict, cached: bool = False) -> torch.Tensor:
    arguments = dict(arguments)
    real = arguments.pop("real", None)
    torch.manual_seed(11)
    if not cached:
        logits = model(**arguments).logits
        return logits if real is None else logits[:, -real.shape[1] :][real]
    x = arguments["input_ids"]
    first = model(input_ids=x[:, :-2], use_cache=True)
    outputs = [first.logits[:, -1]]
    for step in (-2, -1):
        first = model(input_ids=x[:, step : step + 1 or None], past_key_values=first.past_key_values, use_cache=True)
        outputs.append(first.logits[:, -1])
    return torch.stack(outputs, 1)


def both(model: nn.Module, arguments: dict, cached: bool) -> list[torch.Tensor]:
    """Logits, and the gradients of all parameters for a random dy, together in one vector."""
    model.zero_grad()
    logits = run(model, arguments, cached)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(13))
    if cached or not logits.requires_grad:
        return [logits.detach()]
    (logits * weight).sum().backward()
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    return [logits.detach(), gradient]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    a, b = a[a.isfinite()], b[b.isfinite()]
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() if a.numel() else 0.0


def in_double(eager: nn.Module, ours: nn.Module, arguments: dict, cached: bool, single: float) -> float:
    """The distance of the two in float64, where they run in it."""
    try:
        pair = [both(copy.deepcopy(model).double(), arguments, cached) for model in (ours, eager)]
    except Exception:
        return single
    return max(distance(a, e) for a, e in zip(*pair))


# ---- one model ---------------------------------------------------------------------------------------------------------


def brief(error: BaseException) -> str:
    text = " ".join(str(error).split()).replace(" Run this model or batch with 'sdpa' or 'eager'.", "")
    own = re.match("attn_implementation 'isentrope': |isentrope::", text)
    return text[own.end() if text.startswith("attn") else 0 :][:240] if own else f"{type(error).__name__}: {text}"[:240]


def clear(error: BaseException) -> bool:
    """Whether the message is the product's own."""
    return str(error).startswith(("attn_implementation 'isentrope'", "isentrope::entropy_attention"))


def examine(head: str, kind: str) -> dict:
    """{"outcome", "note", "worst"}: what running this model with "isentrope" does."""
    calls = 0
    original = integration.entropy_attention

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        return original(*arguments, **options)

    integration.register()
    try:
        eager, config = build(head, kind)
    except Unbuildable as error:
        return {"outcome": "not built", "note": str(error)}
    compared = 0
    integration.entropy_attention = counted
    try:
        try:
            ours = HEADS[head][1].from_config(copy.deepcopy(config), attn_implementation="isentrope").eval().float()
            ours.load_state_dict(eager.state_dict())
        except Exception as error:
            return {"outcome": "refused" if clear(error) else "stopped", "note": brief(error)}
        refused, stopped, wrong, worst, agreed = {}, {}, {}, 0.0, 0
        for name, arguments in inputs(eager, head).items():
            try:
                expected = both(eager, arguments, name == "cached")
                if distance(both(eager, arguments, name == "cached")[0], expected[0]) > TOLERANCE:
                    continue  # eager is random
            except Exception:
                continue  # not an input for this model
            compared += 1
            try:
                actual = both(ours, arguments, name == "cached")
            except Exception as error:
                (refused if clear(error) else stopped).setdefault(brief(error), []).append(name)
                continue
            apart = max(distance(a, e) for a, e in zip(actual, expected))
            if apart > TOLERANCE:  # some models let rounding grow
                apart = in_double(eager, ours, arguments, name == "cached", apart)
            worst, agreed = max(worst, apart), agreed + (apart <= TOLERANCE)
            if apart > TOLERANCE:
                wrong.setdefault(f"off by {apart:.1g}", []).append(name)
    finally:
        integration.entropy_attention = original
    if not compared:
        return {"outcome": "not built", "note": "eager is random, or takes none of the inputs"}
    note = "; ".join(
        what if len(names) == compared else f"{', '.join(names)}: {what}" for found in (wrong, stopped, refused) for what, names in found.items()
    )
    outcome = next((o for o, found in (("wrong", wrong), ("stopped", stopped)) if found), None)
    if outcome is None:
        outcome = "refused" if not agreed else "right" if calls else "never called"
    return {"outcome": outcome, "note": note, "worst": worst}


# ---- all of them -------------------------------------------------------------------------------------------------------


def work(jobs: list[tuple[str, str]]) -> None:
    """Examines jobs; a line of JSON each on standard output."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    torch.set_num_threads(1)

    def late(*_):
        raise TimeoutError(f"not done after {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    for head, kind in jobs:
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = examine(head, kind)
        except Exception as error:
            found = {"outcome": "not built", "note": brief(error)}
        signal.alarm(0)
        print(json.dumps({"head": head, "type": kind, **found}), flush=True)


def sweep(jobs: list[tuple[str, str]], processes: int):
    """Results of jobs, from worker processes; one that dies is started again behind the model it died of."""
    queues = [jobs[i::processes] for i in range(processes)]

    def start(queue):
        command = [sys.executable, __file__, "--worker", json.dumps(queue)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    running = [start(queue) if queue else None for queue in queues]
    while any(queues):
        for i, queue in enumerate(queues):
            if not queue:
                continue
            line = running[i].stdout.readline()
            head, kind = queue.pop(0)
            if line:
                yield json.loads(line)
                continue
            yield {"head": head, "type": kind, "outcome": "stopped", "note": f"the process ended with {running[i].wait()}"}
            running[i] = start(queue) if queue else None


OUTCOMES = {
    "right": "right: logits and gradients of eager",
    "refused": "refused, with a message that says what and why",
    "never called": "right, and the model never calls the attention: it computes its own",
    "stopped": "stopped by an error of transformers or torch",
    "wrong": "silently wrong",
    "not built": "not built small by the script's rules, so not known",
}


def table(results: list[dict]) -> str:
    counts = collections.Counter(r["outcome"] for r in results)
    worst = max((r["worst"] for r in results if r["outcome"] == "right"), default=0.0)
    lines = [
        "# Models of transformers with `attn_implementation=\"isentrope\"`",
        "",
        f"Written by `scripts/transformers_sweep.py` with transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}.",
        "Each model type of transformers' registries of causal, masked and sequence-to-sequence language models, small and of random",
        f"float32 weights, is run with \"isentrope\" and with \"eager\": {', '.join(CONDITIONS[:4])},",
        f"{', '.join(CONDITIONS[4:])}.",
        f"Right means that logits and the gradients of all parameters differ by less than {TOLERANCE:g} of the largest one (here {worst:.0e} at",
        "most) in every condition that eager runs and that is not refused.",
        "",
        "| outcome | number |",
        "| --- | --- |",
        *(f"| {text} | {counts[name]} |" for name, text in OUTCOMES.items()),
        "",
    ]
    for name, text in OUTCOMES.items():
        chosen = [r for r in results if r["outcome"] == name]
        if not chosen:
            continue
        lines += [f"## {text[0].upper()}{text[1:]}", ""]
        if bare := [f"{r['type']} ({r['head']})" for r in chosen if not r["note"]]:
            lines += [", ".join(bare) + ".", ""]
        if noted := [r for r in chosen if r["note"]]:
            rows = [f"| {r['type']} | {r['head']} | {r['note'].replace('|', chr(92) + '|')} |" for r in noted]
            lines += ["| model | head | what |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


CONDITIONS = ("no padding", "the last token changed (a look into the future shows)", "padding on the right", "on the left",
              "batches of two tokens", "packed position_ids", "steps on a cache")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="write the table there")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return 0
    results = []
    jobs = [(head, kind) for head, (names, _) in HEADS.items() for kind in sorted(names) if not options.types or kind in options.types]
    for result in sweep(jobs, options.jobs):
        results.append(result)
        print(f"{result['head']:8} {result['type']:28} {result['outcome']:12} {result['note'][:160]}", flush=True)
    results.sort(key=lambda r: (r["type"], r["head"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(table(results))
    print(collections.Counter(r["outcome"] for r in results))
    return int(any(r["outcome"] == "wrong" for r in results))


if __name__ == "__main__":
    sys.exit(main())
