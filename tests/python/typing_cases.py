"""What checkers of types have to say about calls of isentrope: read by test_types.py, never run.

A line that ends in "# wrong" is an error for mypy and for pyright, every other line is none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import assert_type

import isentrope
from isentrope import methods, nn
from isentrope.ops import EntropyAttentionOutput, TokenEntropyKeptMomentsOutput, TokenEntropyMomentsOutput, TokenEntropyOutput


def token_entropies(logits: Tensor, weight: Tensor, target: Tensor, moments: bool) -> None:
    logprob, entropy, lse = isentrope.token_entropy(logits, target)
    assert_type(lse, Tensor)
    logprob, entropy, lse, sum_p2, sum_p2_logp = isentrope.token_entropy(logits, target, temperature=2, moments=True)
    assert_type(sum_p2_logp, Tensor)
    logprob, entropy, lse = isentrope.linear_token_entropy(logits, weight, target, bias=None, moments=False)
    assert_type(isentrope.linear_token_entropy(logits, weight, target, moments=True), TokenEntropyMomentsOutput)
    either = isentrope.token_entropy(logits, target, moments=moments)
    assert_type(either, "TokenEntropyOutput | TokenEntropyMomentsOutput")
    assert_type(either.entropy, Tensor)
    logprob, entropy, lse, kept_entropy = isentrope.token_entropy(logits, target, keep=isentrope.TopP(0.8))
    assert_type(kept_entropy, Tensor)
    kept = isentrope.linear_token_entropy(logits, weight, target, keep=isentrope.WithoutLowest(0.2), moments=True)
    assert_type(kept, TokenEntropyKeptMomentsOutput)
    isentrope.token_entropy(logits, target).kept_entropy  # wrong
    isentrope.token_entropy(logits, target, keep="top_p")  # wrong
    isentrope.token_entropy(logits, target, keep=0.8)  # wrong
    logprob, entropy, lse = isentrope.token_entropy(logits, target, moments=True)  # wrong
    logprob, entropy, lse, sum_p2, sum_p2_logp = isentrope.linear_token_entropy(logits, weight, target)  # wrong
    isentrope.token_entropy(logits, target).sum_p2  # wrong
    either.sum_p2  # wrong
    isentrope.token_entropy(logits, [1, 2])  # wrong
    isentrope.token_entropy(logits, target, temperature="1")  # wrong
    isentrope.token_entropy(logits, target, temprature=1.0)  # wrong
    isentrope.linear_token_entropy(logits, target)  # wrong


def attentions(q: Tensor, k: Tensor, v: Tensor, wanted: bool) -> None:
    out, lse, entropy, max_logit = isentrope.entropy_attention(q, k, v, causal=True, window=4)
    assert_type(entropy, Tensor)
    result: EntropyAttentionOutput = isentrope.entropy_attention(q, k, v, causal=True, return_entropy=True)
    (result.entropy.mean() + result.max_logit.mean()).backward()
    assert_type(isentrope.entropy_attention(q, k, v, causal=True, return_entropy=False).entropy, None)
    assert_type(isentrope.entropy_attention(q, k, v, causal=True, return_entropy=wanted).entropy, "Tensor | None")
    isentrope.entropy_attention(q, k, v, causal=True, return_entropy=False).entropy.mean()  # wrong
    isentrope.entropy_attention(q, k, v, causal=True, return_entropy=wanted).entropy.mean()  # wrong
    isentrope.entropy_attention(q, k, v)  # wrong
    isentrope.entropy_attention(q, k, v, causal=True, window=0.5)  # wrong
    isentrope.entropy_attention(q, k, v, causal=True, key_lengths=[3, 4])  # wrong

    merged = isentrope.merge_attention_states(out, lse, entropy, max_logit)
    assert_type(merged, "EntropyAttentionOutput[Tensor, Tensor]")
    assert_type(isentrope.merge_attention_states(out, lse, entropy).max_logit, None)
    assert_type(isentrope.merge_attention_states(out, lse, max_logit=max_logit).entropy, None)
    isentrope.merge_attention_states(out, lse).entropy.mean()  # wrong

    isentrope.entropy_attention(q, k, v, causal=True, block_mask=q > 0, block_size=16, gates=q, sinks=q, slopes=q)
    isentrope.entropy_attention(q, k, v, causal=True, block_mask=q > 0, block_size=0.5)  # wrong
    gathered = isentrope.gathered_attention(q, k, v, q.long(), causal=True)
    assert_type(gathered, "EntropyAttentionOutput[Tensor, Tensor]")
    assert_type(isentrope.gathered_attention(q, k, v, q.long(), causal=True, return_entropy=False).entropy, None)
    assert_type(isentrope.scatter_mean(gathered.out, q.long(), 7), Tensor)
    isentrope.gathered_attention(q, k, v, [1, 2], causal=True)  # wrong
    isentrope.scatter_mean(q, q.long())  # wrong
    assert_type(isentrope.hierarchical_attention(q, k, v, branching=8), "isentrope.HierarchicalAttentionOutput[Tensor]")
    assert_type(isentrope.hierarchical_attention(q, k, v, tree=nn.tree_of_parents(q.long()), return_entropy=False).entropy, None)
    assert_type(nn.HierarchicalAttention(64, 4, branching=8).forward(q, return_entropy=True), tuple[Tensor, Tensor])
    isentrope.hierarchical_attention(q, k, v, branching="8")  # wrong


def recurrences(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, wanted: bool) -> None:
    out, state = isentrope.linear_attention(q, k, v, log_decay=beta, normalizer=True, chunk=32)
    assert_type(isentrope.linear_attention(q, k, v, state=state), isentrope.LinearAttentionOutput)
    out, state = isentrope.gated_delta_rule(q, k, v, beta, None, write=beta, state=state)
    assert_type(isentrope.gated_delta_rule(q, k, v, beta, beta).state, Tensor)
    layer = nn.LinearAttention(64, 4, 2, feature_map=nn.feature_maps.taylor2, decay="head")
    assert_type(layer.forward(q), Tensor)
    out, state = layer.forward(q, state=state, return_state=True)
    assert_type(layer.forward(q, return_state=wanted), "Tensor | tuple[Tensor, Tensor]")
    out, of_delta = nn.GatedDeltaNet(64, 4).forward(q, return_state=True)
    assert_type(of_delta, nn.DeltaState)
    assert_type(nn.effective_rank(of_delta.matrix), Tensor)
    assert_type(nn.weight_entropy(q, k, beta), Tensor)
    isentrope.linear_attention(q, k)  # wrong
    isentrope.linear_attention(q, k, v, log_decay=0.5)  # wrong
    isentrope.linear_attention(q, k, v, chunk="64")  # wrong
    isentrope.gated_delta_rule(q, k, v, beta)  # wrong
    out, state, z = isentrope.linear_attention(q, k, v)  # wrong
    nn.LinearAttention(64, 4, feature_map="relu")  # wrong


def references(x: Tensor, weight: Tensor, target: Tensor) -> None:
    out, lse, entropy, max_logit = isentrope.reference.entropy_attention(x, x, x, causal=True)
    logprob, entropy, lse, *moments = isentrope.reference.linear_token_entropy(x, weight, target)
    y, sigma = isentrope.reference.sigma_linear(x, weight, x, x)
    assert_type(y, Tensor)
    isentrope.reference.token_entropy(x, 3)  # wrong
    isentrope.reference.power_step(weight, x, steps_max="3")  # wrong


def others(x: Tensor, weight: Tensor, mask: Tensor) -> None:
    y, sigma = isentrope.sigma_linear(x, weight, x, x, sigma_grad="detached")
    sigmas, steps = isentrope.power_step([weight], [x], steps_max=3)
    mean, high, threshold = isentrope.window_entropy(x, mask, quantile=0.9)
    assert_type(isentrope.crrelu(x, weight), Tensor)
    isentrope.crrelu(x, 0.01)  # wrong
    selected = isentrope.grpo_select(x, x, x, mask, mode="kl_cov", seed=1)
    loss, token_loss, stats = isentrope.grpo_loss(x, x, x, mask, selected=selected, mode="kl_cov", normalizer=3)
    for tensor in (y, sigma, sigmas, steps, mean, high, threshold, selected, loss, token_loss, stats):
        assert_type(tensor, Tensor)
    names: tuple[str, ...] = isentrope.GRPO_STATS
    assert_type(isentrope.grpo_combine_stats(stats[None]), Tensor)
    isentrope.sigma_linear(x, weight, 1.0, x)  # wrong
    isentrope.power_step(weight, [x], tolerance="no")  # wrong
    isentrope.window_entropy(x, mask, window=None)  # wrong
    isentrope.grpo_loss(x, x, x, mask, mode=3)  # wrong
    isentrope.grpo_select(x, x, x, mask, mode="kl_cov")  # wrong
    y, sigma, u = isentrope.sigma_linear(x, weight, x, x)  # wrong
    isentrope.SigmaLinear  # wrong
    isentrope.sigma_linaer  # wrong
    print(names)


def modules(x: Tensor, wanted: bool) -> torch.nn.Module:
    attention = nn.EntropyAttention(64, 4, 2, causal=True, temperature="head")
    assert_type(attention.forward(x), Tensor)
    out, entropy = attention.forward(x, return_entropy=True)
    assert_type(nn.normalized_entropy(entropy, nn.visible_keys(4, 4, causal=True)), Tensor)
    assert_type(attention.forward(x, return_entropy=wanted), "Tensor | tuple[Tensor, Tensor]")
    layer = nn.SigmaLinear(8, 8, gamma_init="sigma", dtype=torch.float64)
    assert_type(layer.forward(x), Tensor)
    assert_type(layer.gamma, Tensor)
    assert_type(layer.u, Tensor)
    assert_type(layer.scaled_weight(), Tensor)
    for name, step in nn.power_step(layer).items():
        print(name.upper(), step.sigma.item(), step.steps.item())
    assert_type(attention.window, "int | None")
    nn.EntropyAttention("64", 4)  # wrong
    nn.SigmaLinear(8, 8, gamma="one")  # wrong
    layer.forward(3)  # wrong
    nn.convert_to_sigma(layer, where="q_proj")  # wrong
    return nn.fold(nn.convert_to_sigma(layer, where=lambda name: name.endswith("q_proj")))


def weights(x: Tensor, mask: Tensor) -> Tensor:
    factor = methods.steer(x, x, x, x, mask, form="exponential", low=0.9) * methods.stare(x, x, x, mask, down=0.9)
    corrected = methods.correction(x, x, mask, level="sequence", mode="reject", low=0.5, delta=None)
    assert_type(corrected.factor, Tensor)
    assert_type(corrected.removed, "Tensor | None")
    assert_type(methods.mismatch(x, x, mask, high=2.0).k3, Tensor)
    methods.soft_window(x, x, mask, window="wide")  # wrong
    methods.entropy_ratio_band(x, x, mask, 0.9)  # wrong
    return factor * methods.surprisal_band(x, x, mask) * methods.attention_entropy(x, mask, coef=0)


def short(prompts: list[str], completions: list[str], meta: list[dict[str, str]]) -> list[float]:
    return [1.0 / (1 + len(completion)) for completion in completions]


def no_reward(prompts: list[str]) -> str:
    return prompts[0]


def training() -> None:
    trainer = isentrope.Trainer("config.yaml", rewards={"short": short}, overrides={"run.seed": 2}, resume=True)
    for metrics in trainer:
        print(metrics["step"] + 1)
    assert_type(trainer.train(lambda metrics, step: print(step + 1), quiet=True), "dict[str, dict[str, float]]")
    assert_type(trainer.evaluate("validation", prompts=4), "dict[str, float]")
    assert_type(trainer.save(), str)
    assert_type(trainer.finished, bool)
    isentrope.Trainer(3)  # wrong
    isentrope.Trainer("config.yaml", rewards={"no": no_reward})  # wrong
    isentrope.Trainer("config.yaml", overrides=["run.seed=2", 3])  # wrong
    trainer.finished = True  # wrong
