"""attn_implementation="isentrope" in models of Hugging Face, of random weights, against eager."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.5")

from isentrope.integrations import transformers as integration  # noqa: E402

integration.register()
spec = importlib.util.spec_from_file_location("sweep", Path(__file__).resolve().parents[2] / "scripts" / "transformers_sweep.py")
sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)
V, T = 61, 19
SIZES = dict(
    vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
LAYERS = dict(layer_types=["sliding_attention", "full_attention"], sliding_window=5)
MODELS = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", dict(LAYERS, use_sliding_window=True, max_window_layers=1)),
    "gemma2": ("Gemma2", dict(LAYERS, attn_logit_softcapping=2.0, final_logit_softcapping=None, query_pre_attn_scalar=16)),
}
MASKS = {
    "no padding": None,
    "all ones": torch.ones(3, T, dtype=torch.long),
    "right": torch.tensor([[1] * T, [1] * 8 + [0] * 11, [1] + [0] * 18]),
    "left": torch.tensor([[1] * T, [0] * 11 + [1] * 8, [0] * 18 + [1]]),
    "an empty row": torch.tensor([[1] * T, [0] * T, [0] * 3 + [1] * 16]),
}


def plain_attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    """eager without its softmax in float32, so that a double model is double; keeps its weights as module.weights."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    s = query @ key.transpose(2, 3) * scaling
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    module.weights = torch.softmax(s if attention_mask is None else s + attention_mask, -1)
    return (module.weights @ value).transpose(1, 2), module.weights


transformers.AttentionInterface.register("plain", plain_attention)
transformers.AttentionMaskInterface.register("plain", transformers.masking_utils.eager_mask)


def make(name, attention="isentrope", dtype=torch.float32, seed=3, **options):
    """The same weights for every attention and dtype."""
    kind, own = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **own, **options})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().to(dtype)
    model.set_attn_implementation(attention)
    return model


def tokens(rows=3):
    return torch.randint(3, V, (rows, T), generator=torch.Generator().manual_seed(5))


def attentions(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "q_proj")}


# ---- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_entropies_and_gradients(within_twice, name, mask):
    x, mask = tokens(), MASKS[mask]
    real = torch.ones(3, T, dtype=torch.bool) if mask is None else mask.bool()
    weight = torch.randn(3, T, V) * real[..., None]
    weights = torch.randn(2, 3, 4, T) * real[:, None]

    def run(attention, dtype):
        """Logits, entropies, and the gradients of Σ weight·both."""
        model = make(name, attention, dtype)
        if attention == "isentrope":
            with integration.collect_entropy(model, detach=False) as record:
                logits = model(x, attention_mask=mask).logits
            assert list(record) == list(attentions(model)) and all(len(calls) == 1 for calls in record.values())
            entropy = torch.stack([calls[0].entropy for calls in record.values()])
        else:
            logits, p = model(x, attention_mask=mask).logits, None
            if attention == "eager":
                p = model(x, attention_mask=mask, output_attentions=True).attentions
            else:
                p = [module.weights for module in attentions(model).values()]
            # The derivative of p log p at 0 is not finite.
            entropy = torch.stack([-(y * y.clamp(min=1e-300 if dtype == torch.float64 else 1e-37).log()).sum(-1) for y in p])
        ((logits * weight).sum() + (entropy * weights).sum()).backward()
        return logits[real], entropy.transpose(2, 3)[:, real], [(n, p.grad) for n, p in model.named_parameters()]

    actual, eager, exact = run("isentrope", torch.float32), run("eager", torch.float32), run("plain", torch.float64)
    within_twice("logits", actual[0], eager[0], exact[0])
    within_twice("entropy", actual[1], eager[1], exact[1])
    for (n, a), (_, p), (_, e) in zip(actual[2], eager[2], exact[2]):
        # By the whole tensor: the worst of its elements is luck, since norms and rotations are in float32 in a double model too.
        error, allowed = ((x.double() - e).norm().item() for x in (a, p))
        assert error <= 2 * allowed, f"gradient of {n}: error {error:.3g}, allowed {2 * allowed:.3g} (twice that of eager)"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["no padding", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_autocast(name, mask, dtype):
    """Rotations leave q and k in float32, v is in autocast's dtype. Logits and gradients as near to float32 as those of eager."""
    x, mask = tokens(), MASKS[mask]
    real = torch.ones(3, T, dtype=torch.bool) if mask is None else mask.bool()
    labels = x.masked_fill(~real, -100)
    labels[:, 1:].masked_fill_(~real[:, :-1], -100)  # which padding would predict

    def run(attention, lowered):
        model = make(name, attention)
        with torch.autocast("cpu", dtype, enabled=lowered):
            out = model(x, attention_mask=mask, labels=labels)
            out.loss.backward()  # inside: the backward ops meet autocast too
        return [out.logits[real].detach(), *(p.grad for p in model.parameters())]

    actual, eager, exact = run("isentrope", True), run("eager", True), run("eager", False)
    assert actual[0].dtype == eager[0].dtype
    distance = [sum((a.double() - e).norm().item() ** 2 / e.double().norm().item() ** 2 for a, e in zip(x, exact)) ** 0.5 for x in (actual, eager)]
    assert distance[0] <= 2 * distance[1], f"{distance[0]:.3g} from float32; eager {distance[1]:.3g}"


def test_entropies_under_autocast():
    """In float32, and as near to those without autocast as eager's weights say."""
    x, seen = tokens(), []
    for attention, lowered in (("isentrope", True), ("isentrope", False), ("eager", True)):
        model = make("qwen3", attention)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            if attention == "isentrope":
                with integration.collect_entropy(model) as record:
                    model(x)
                seen.append(torch.stack([calls[0].entropy for calls in record.values()]))
            else:
                seen.append(torch.stack([torch.special.entr(p.float()).sum(-1) for p in model(x, output_attentions=True).attentions]))
    assert seen[0].dtype == torch.float32
    assert (seen[0] - seen[1]).norm() <= 2 * (seen[2] - seen[1]).norm()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_visible_keys_and_max_logit(name, mask):
    mask, model = MASKS[mask], make(name, "plain")
    x = tokens()
    with torch.no_grad():
        model(x, attention_mask=mask)
        seen = [module.weights > 0 for module in attentions(model).values()]
        model.set_attn_implementation("isentrope")
        with integration.collect_entropy(model) as record:
            model(x, attention_mask=mask)
    real = torch.ones(3, T, dtype=torch.bool) if mask is None else mask.bool()
    for (layer,), p in zip(record.values(), seen):
        assert torch.equal(layer.keys, (p.sum(-1)[:, 0] * real)), "n of padding is 0"
        assert layer.entropy.shape == layer.max_logit.shape == (3, 4, T)
        assert torch.equal(layer.max_logit[real[:, None].expand(-1, 4, -1)].isfinite().all(), torch.tensor(True))
        share = layer.normalized
        assert (share >= 0).all() and (share <= 1 + 1e-6).all()
        rows = (layer.keys > 1)[:, None].expand(-1, 4, -1)
        mean = torch.stack([share[:, h][rows[:, h]].mean() for h in range(4)])
        torch.testing.assert_close(layer.mean_normalized, mean)


def test_an_entropy_that_is_not_collected_is_not_computed(monkeypatch):
    asked = []
    monkeypatch.setattr(integration, "entropy_attention", lambda *a, **o: asked.append(o["return_entropy"]) or original(*a, **o))
    from isentrope import entropy_attention as original

    model = make("llama")
    model(tokens())
    with integration.collect_entropy(model) as record:
        model(tokens())
    model(tokens())
    assert asked == [False] * 2 + [True] * 2 + [False] * 2 and not integration._records
    assert not any(layer.entropy.requires_grad for calls in record.values() for layer in calls)


def test_collect_two_models_apart():
    one, other = make("llama"), make("qwen3")
    with integration.collect_entropy(one) as first, integration.collect_entropy(other.model) as second:
        one(tokens()), other(tokens())
    assert list(first) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert list(second) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert [len(calls) for calls in (*first.values(), *second.values())] == [1] * 4


# ---- caches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("mask", ["no padding", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_generate(name, mask, cache):
    model, x = make(name, "eager"), tokens()
    options = dict(attention_mask=MASKS[mask], max_new_tokens=9, do_sample=False, cache_implementation=cache, eos_token_id=None)
    expected = model.generate(x, **options)
    model.set_attn_implementation("isentrope")
    with integration.collect_entropy(model) as record:
        actual = model.generate(x, **options)
    assert torch.equal(actual, expected), (actual[:, T:], expected[:, T:])
    assert actual.shape == (3, T + 9) and all(len(calls) == 9 for calls in record.values())
    tokens_of = torch.full((3,), T) if MASKS[mask] is None else MASKS[mask].sum(-1)
    for layer, calls in enumerate(record.values()):
        most = 5 if name != "llama" and layer == 0 else 99
        for step, call in enumerate(calls[1:], 1):
            assert call.keys[:, 0].tolist() == (tokens_of + step).clamp(max=most).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_generate_after_a_prompt_in_chunks(name):
    model, options = make(name), dict(attention_mask=MASKS["left"], max_new_tokens=3, do_sample=False, eos_token_id=None)
    with integration.collect_entropy(model) as record:
        chunks = model.generate(tokens(), prefill_chunk_size=7, **options)
    assert torch.equal(chunks, model.generate(tokens(), **options))
    assert [[len(call.keys[0]) for call in calls] for calls in record.values()] == [[7, 7, 5, 1, 1]] * 2


# ---- packed sequences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["position_ids", "cu_seq_lens_q"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_sequences(name, given):
    model, x, lengths = make(name), tokens(1), [7, 1, 11]
    options = {"position_ids": torch.cat([torch.arange(n) for n in lengths])[None]}
    if given == "cu_seq_lens_q":  # of DataCollatorWithFlattening
        ends = torch.tensor([0, *lengths]).cumsum(0).int()
        options |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 11, "max_length_k": 11}
    with integration.collect_entropy(model) as record:
        together = model(x, use_cache=False, **options).logits[0]
    with integration.collect_entropy(model) as alone:
        apart = torch.cat([model(part[None]).logits[0] for part in x[0].split(lengths)])
    torch.testing.assert_close(together, apart)
    for (whole,), parts in zip(record.values(), alone.values()):
        for whole_x, *parts_x in zip(whole, *parts):
            torch.testing.assert_close(whole_x, torch.cat(parts_x, -1))


def test_packed_rows_of_a_batch():
    model, x = make("llama"), tokens(2)
    position = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in ((7, 12), (T,))])
    together = model(x, position_ids=position, use_cache=False).logits
    parts = [x[0, :7], x[0, 7:], x[1]]
    torch.testing.assert_close(together.flatten(0, 1), torch.cat([model(part[None]).logits[0] for part in parts]))


# ---- other kinds of model, training, compile -------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
def test_bidirectional(mask):
    torch.manual_seed(3)
    sizes = {k: v for k, v in SIZES.items() if k not in ("head_dim", "num_key_value_heads")}
    model = transformers.BertModel(transformers.BertConfig(**sizes)).eval().double()
    mask, outputs = MASKS[mask], []
    for attention in ("sdpa", "isentrope"):
        model.set_attn_implementation(attention)
        outputs.append(model(tokens(), attention_mask=mask).last_hidden_state)
    real = torch.ones(3, T, dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(outputs[1][real], outputs[0][real])


def test_gradient_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = make("llama", dtype=torch.float64).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with integration.collect_entropy(model, detach=False) as record:
            logits = model(tokens(), attention_mask=MASKS["left"], use_cache=False).logits
            (logits.sum() + sum(calls[0].mean_normalized.sum() for calls in record.values())).backward()
        assert [len(calls) for calls in record.values()] == [1, 1]
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mask", ["no padding", "left"])
def test_compile(mask):
    model, options = make("qwen3", dtype=torch.float64), dict(attention_mask=MASKS[mask], use_cache=False)
    results = []
    for f in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        with integration.collect_entropy(model, detach=False) as record:
            logits = f(tokens(), **options).logits
        assert [len(calls) for calls in record.values()] == [1, 1]
        (logits.sum() + sum(calls[0].entropy.sum() for calls in record.values())).backward()
        results.append([logits, *(x for calls in record.values() for x in calls[0]), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


# ---- a dozen models of the sweep -------------------------------------------------------------------------------------

OWN_CODE = "the model's own code works on the mask"


@pytest.mark.parametrize(
    "head, kind, outcome, note",
    [
        # Layers that do not say whether they are causal, or say it wrongly.
        ("causal", "bigbird_pegasus", "right", ""),
        ("seq2seq", "nllb-moe", "right", ""),
        ("seq2seq", "pegasus_x", "right", ""),
        # The model adds the mask to the scores by itself.
        ("causal", "xglm", "refused", OWN_CODE),
        ("causal", "mvp", "refused", OWN_CODE),
        ("masked", "megatron-bert", "refused", OWN_CODE),
        ("causal", "mpt", "refused", OWN_CODE),
        # Chosen keys.
        ("causal", "minimax_m3_vl_text", "refused", "gives block_indices"),
        ("causal", "deepseek_v32", "refused", OWN_CODE),
        # What comes back with left padding is viewed.
        ("causal", "afmoe", "right", ""),
        ("causal", "jetmoe", "right", ""),
        # Others.
        ("causal", "gpt2", "right", ""),
        ("seq2seq", "bart", "right", ""),
        ("masked", "bert", "right", ""),
        ("seq2seq", "t5", "refused", "gives position_bias"),
        ("masked", "modernbert", "refused", "masks with sliding_window_bidirectional"),
        ("masked", "xlm", "never called", ""),
    ],
)
def test_model_of_the_sweep(head, kind, outcome, note):
    if kind not in sweep.HEADS[head][0]:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    found = sweep.examine(head, kind)
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24) and outcome == "refused":
        assert found["outcome"] in ("refused", "never called"), found  # other models had the attention interface
    else:
        assert found["outcome"] == outcome and note in found["note"], found


def test_the_sweep_sees_a_look_into_the_future(monkeypatch):
    """The sweep's own test: a mask that lets a model see everything is silently wrong."""
    monkeypatch.setattr(integration, "_masked", lambda *_: ({"causal": False}, None))
    assert sweep.examine("causal", "llama")["outcome"] == "wrong"


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_dropout_is_refused_in_training():
    model = make("llama", attention_dropout=0.1)
    model(tokens())
    with pytest.raises(ValueError, match="attention dropout is 0.1; wanted 0 .attention_dropout"):
        model.train()(tokens())


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_masks_of_the_users_own_are_refused(dtype):
    mask = torch.ones(3, 1, T, T).tril().to(dtype)
    with pytest.raises(ValueError, match=rf"attention_mask is a {dtype} tensor of shape \[3, 1, 19, 19\]; wanted the model to make"):
        make("llama")(tokens(), attention_mask=mask)


def test_padding_between_tokens_is_refused():
    model, mask = make("llama"), torch.ones(3, T, dtype=torch.long)
    mask[1, 4:6] = 0
    with pytest.raises(ValueError, match=r"attention_mask\[1\] has padding between two tokens"):
        model(tokens(), attention_mask=mask)
    with pytest.raises(ValueError, match=r"attention_mask\[1\] has padding between two tokens"):
        model.generate(tokens(), attention_mask=MASKS["right"], max_new_tokens=2)


def test_other_masks_are_refused():
    masks, config = transformers.masking_utils, make("llama").config
    x = torch.zeros(1, T, 32)
    given = {"config": config, "inputs_embeds": x, "attention_mask": None, "cache": None}
    if "cache" not in inspect.signature(masks.create_causal_mask).parameters:  # its older name
        given["past_key_values"] = given.pop("cache")
    with pytest.raises(ValueError, match="masks with or_masks; wanted causal, sliding window"):
        masks.create_causal_mask(**given, or_mask_function=lambda b, h, q, k: q == k)
    with pytest.raises(ValueError, match="masks with <lambda>|masks with test_other_masks_are_refused"):
        masks.create_causal_mask(**given, and_mask_function=lambda b, h, q, k: q == k)
    config.attention_chunk_size = 4
    with pytest.raises(ValueError, match="masks with chunked_overlay"):
        masks.create_chunked_causal_mask(**given)


def test_attention_sinks_are_refused():
    config = transformers.GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1, sliding_window=5)
    model = transformers.GptOssForCausalLM(config).eval()
    model.set_attn_implementation("isentrope")
    with pytest.raises(ValueError, match="the model or its caller gives s_aux"):
        model(tokens())


def call(layer=None, mask=None, rows=T, **options):
    """_attention as a layer calls it."""
    q = torch.randn(1, 4, rows, 16)
    return integration._attention(layer or torch.nn.Identity(), q, q[:, :2], q[:, :2], mask, **options)


@pytest.mark.parametrize("name", ["block_indices", "indices", "s_aux", "position_bias", "head_mask", "block_table", "of_a_later_version"])
def test_unknown_keywords_are_refused(name):
    mask = integration._mask(1, T, T)
    call(mask=mask, **{name: None}, use_cache=True, output_hidden_states=True, num_items_in_batch=torch.tensor(3))
    with pytest.raises(ValueError, match=f"gives {name}, which the op does not know"):
        call(mask=mask, **{name: torch.ones(1)})


def test_a_layer_without_a_mask():
    causal, other = torch.nn.Identity(), torch.nn.Identity()
    causal.is_causal, other.is_causal = True, False
    torch.manual_seed(0)
    seen = call(other)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(seen, call(mask=integration._mask(1, T, T, mask_function=transformers.masking_utils.bidirectional_mask_function))[0])
    call(causal, rows=1), call(causal, is_causal=False)
    for layer in (causal, torch.nn.Identity()):  # eager would let it see the future, sdpa not
        with pytest.raises(ValueError, match="Identity is causal and the model makes it no mask"):
            call(layer)
    with pytest.raises(ValueError, match="has a sliding window and the model makes it no mask"):
        call(other, sliding_window=5)


def test_a_mask_of_another_layer_is_refused():
    for sizes in ((1, T - 1, T), (1, T, T + 1), (2, T, T)):
        with pytest.raises(ValueError, match=r"the mask is of \d sequences with \d+ queries and \d+ keys, and the layer has 1 with 19 and 19"):
            call(mask=integration._mask(*sizes))
    sliding = integration._mask(1, T, T, mask_function=transformers.masking_utils.sliding_window_causal_mask_function(5))
    with pytest.raises(ValueError, match="the layer does not give its sliding_window"):
        call(mask=sliding)


def test_a_mask_moves_but_does_not_compute():
    padding = torch.ones(1, T, dtype=torch.bool)
    padding[:, :3] = False
    mask = integration._mask(1, T, T, attention_mask=padding)
    assert type(mask.to("cpu")) is type(mask.detach().clone()) is type(mask[:, :, :, :T]) is integration._Mask
    assert mask.contiguous().as_subclass(torch.Tensor).untyped_storage().nbytes() == mask.shape[1] * 8, "expanded, whatever is done to it"
    for misuse in (lambda: mask + torch.zeros(1, 4, T, T), lambda: mask[:, :, :, :3], lambda: mask.float(), lambda: 1 - mask, lambda: mask == 0,
                   lambda: torch.zeros(1, 4, T, T).masked_fill(mask, 0), lambda: torch.where(mask, 0, 1), lambda: mask[:, 0]):  # fmt: skip
        with pytest.raises(ValueError, match="the model's own code works on the mask"):
            misuse()


def test_packed_sequences_with_a_cache_are_refused():
    model, x = make("llama"), tokens(1)
    position = torch.cat([torch.arange(n) for n in (7, 1, 11)])[None]
    with pytest.raises(ValueError, match="position_ids start again, and the model's mask lets the sequences see each other"):
        model(x, position_ids=position)
    ones = torch.ones_like(x)
    model.set_attn_implementation("eager")
    expected = model(x, position_ids=position, attention_mask=ones).logits  # said to be one sequence
    model.set_attn_implementation("isentrope")
    torch.testing.assert_close(model(x, position_ids=position, attention_mask=ones).logits, expected, rtol=1e-4, atol=1e-4)
    model(x, position_ids=3 + torch.arange(T)[None])


def test_positions_are_looked_at_once_a_pass(monkeypatch):
    looked, model = [], make("llama")
    original = torch.Tensor.diff
    monkeypatch.setattr(torch.Tensor, "diff", lambda x, **o: looked.append(x) or original(x, **o))
    model.model(inputs_embeds=torch.randn(1, T, 32), position_ids=torch.arange(T)[None])
    assert len(looked) == 1


def test_padding_and_cu_seq_lens_are_refused():
    ends = torch.tensor([0, T]).int()
    with pytest.raises(ValueError, match="attention_mask and cu_seq_lens_q are given"):
        make("llama")(tokens(1), attention_mask=torch.ones(1, T).long(), cu_seq_lens_q=ends, cu_seq_lens_k=ends)


def test_is_causal_of_a_caller_is_refused():
    with pytest.raises(ValueError, match="is_causal=False is given to a causal layer"):
        make("llama")(tokens(), is_causal=False)


def test_other_dtypes_of_values_are_named():
    q = torch.randn(1, 4, T, 16)
    with pytest.raises(TypeError, match="v has dtype BFloat16; wanted Float"):
        integration._attention(torch.nn.Identity(), q, q, q.bfloat16(), integration._mask(1, T, T))


def test_nothing_collected_is_an_error():
    with pytest.raises(ValueError, match="nothing was recorded: either the model was not run inside the block, or LlamaForCausalLM takes"):
        with integration.collect_entropy(make("llama")):
            pass
    config = transformers.XLMConfig(vocab_size=V, emb_dim=32, n_layers=1, n_heads=2, attn_implementation="isentrope")
    model = transformers.XLMModel(config)
    with pytest.raises(ValueError, match="or XLMModel takes attn_implementation 'isentrope' and computes its attention in code of its own"):
        with integration.collect_entropy(model):
            model(tokens())
    assert not integration._records
    with pytest.raises(KeyError, match="own"):  # an error inside the block is not covered
        with integration.collect_entropy(model):
            raise KeyError("own")


def test_output_attentions_are_refused():
    with pytest.raises(ValueError, match="output_attentions"):
        make("llama")(tokens(), output_attentions=True)


def test_collecting_from_another_attention_is_refused():
    with pytest.raises(ValueError, match=r"attn_implementation \['sdpa'\]; wanted 'isentrope': call register"):
        with integration.collect_entropy(make("llama", "sdpa")):
            pass


def test_isentrope_does_not_need_transformers():
    code = """if True:
        import sys
        sys.modules["transformers"] = None
        import isentrope.integrations
        try:
            import isentrope.integrations.transformers
        except ImportError as error:
            assert "transformers" in str(error), error
            print("fine")
    """
    paths = "import sys; sys.path[:0] = " + repr([p for p in sys.path if p]) + "\n"
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True)
    assert done.returncode == 0 and "fine" in done.stdout, done.stderr
