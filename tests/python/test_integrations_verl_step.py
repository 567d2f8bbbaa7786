"""A step of verl's own actor (FSDP2, on the CPU) on the batch of a step of our trainer: advantages by verl's estimator, two updates.

Skipped where there is no verl; scripts/integrations.sh verl runs this.
"""

import pytest
import torch

pytest.importorskip("verl", reason="there is no verl; scripts/integrations.sh verl runs this with one")

import numpy  # noqa: E402
import our_step  # noqa: E402
from test_integrations_verl import update  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo import ray_trainer  # noqa: E402

from isentrope.integrations.verl import shaping  # noqa: E402

CASES = {
    "vanilla": ({"loss": "vanilla", "clip_ratio_c": 10.0}, {"objective": "{kind: grpo, dual_clip: 10}"}),
    "sequence means": ({"loss": "vanilla", "clip_ratio_c": 10.0, "aggregate": "seq-mean-token-mean"},
                       {"objective": "{kind: grpo, dual_clip: 10, aggregate: seq-mean-token-mean}"}),
    "entropy": ({"loss": "vanilla", "clip_ratio_c": 10.0, "entropy_coeff": 0.05},
                {"objective": "{kind: grpo, dual_clip: 10, entropy: {kind: constant, coef: 0.05}}"}),
    "gpg": ({"loss": "gpg"}, {"objective": "{kind: grpo, loss: gpg}"}),
    "cispo": ({"loss": "cispo"}, {"objective": "{kind: grpo, loss: cispo}"}),
    "our weight": ({"loss": "isentrope_clip", "clip_ratio_c": 10.0, "external_lib": "isentrope.integrations.verl.weight",
                    "policy_loss": {"isentrope_weight": [{"kind": "surprisal_band", "low": 0.6, "high": 1.4}]}},
                   {"objective": "{kind: grpo, dual_clip: 10}", "weight": "[{kind: surprisal_band, low: 0.6, high: 1.4}]"}),
    "our ratio band": ({"loss": "isentrope_clip", "clip_ratio_c": 10.0, "external_lib": "isentrope.integrations.verl.weight",
                        "policy_loss": {"isentrope_weight": [{"kind": "entropy_ratio_band", "low": 0.97, "high": 1.02}]}},
                       {"objective": "{kind: grpo, dual_clip: 10}", "weight": "[{kind: entropy_ratio_band, low: 0.97, high: 1.02}]"}),
    "our correction": ({"loss": "isentrope_clip", "clip_ratio_c": 10.0, "external_lib": "isentrope.integrations.verl.weight",
                        "policy_loss": {"isentrope_weight": [{"kind": "correction", "mode": "mask", "low": 0.55, "high": 1.5}]}},
                       {"objective": "{kind: grpo, dual_clip: 10}", "weight": "[{kind: correction, mode: mask, low: 0.55, high: 1.5}]", "sampling": ", top_p: 0.8"}),
    "our shaping": ({"loss": "isentrope_clip", "clip_ratio_c": 10.0},
                    {"objective": "{kind: grpo, dual_clip: 10}",
                     "advantage": "[{kind: grpo, eps: 1.0e-6}, {kind: entropy_advantage, alpha: 0.2}, {kind: perplexity, alpha: 0.3}, {kind: position, gamma: 0.3}, {kind: repo, beta: 0.1}]"}),
    "our gtpo": ({"loss": "isentrope_clip", "clip_ratio_c": 10.0}, {"objective": "{kind: grpo, dual_clip: 10}", "advantage": "[{kind: gtpo, share: 0.5}]"}),
    "our geo_mean": ({"loss": "isentrope_geo_mean", "aggregate": "seq-mean-token-mean"},
                     {"objective": "{kind: grpo, loss: geo_mean, aggregate: seq-mean-token-mean}"}),
}  # fmt: skip
# What verl's driver is told where ours has other advantages than grpo's.
DRIVER = {
    "our shaping": ("grpo", {"isentrope_shaping": [{"kind": "entropy_advantage", "alpha": 0.2}, {"kind": "perplexity", "alpha": 0.3},
                                                   {"kind": "position", "gamma": 0.3}, {"kind": "repo", "beta": 0.1}]}),
    "our gtpo": ("isentrope.gtpo", {"isentrope": {"share": 0.5}}),
}  # fmt: skip


def tensors(completions, estimator="grpo", options={}):  # noqa: B006
    """As verl's rollouts are padded, with the advantages of its driver."""
    P, R = max(len(x.prompt) for x in completions), max(len(x.own) for x in completions)
    left = torch.tensor([[0] * (P - len(x.prompt)) + x.prompt for x in completions])
    seen = torch.tensor([[0] * (P - len(x.prompt)) + [1] * len(x.prompt) + [1] * len(x.own) + [0] * (R - len(x.own)) for x in completions])
    right = torch.tensor([x.own + [0] * (R - len(x.own)) for x in completions])
    mask = seen[:, P:]
    old, entropy, drawn_by = (torch.tensor([getattr(x, name) + [0.0] * (R - len(x.own)) for x in completions]) for name in ("logprob", "entropy", "drawn_by"))
    reward = torch.zeros(mask.shape)
    reward[torch.arange(len(mask)), mask.sum(1) - 1] = torch.tensor([x.reward for x in completions])
    uid = numpy.array([str(x.group) for x in completions], dtype=object)
    held = {"token_level_rewards": reward, "response_mask": mask, "old_log_probs": old, shaping.OLD_ENTROPY: entropy}
    told = ray_trainer.compute_advantage(DataProto.from_dict(tensors=held, non_tensors={"uid": uid}), estimator, config=OmegaConf.create(options))
    return dict(input_ids=torch.cat([left, right], 1), attention_mask=seen, position_ids=(seen.cumsum(1) - 1).clamp(min=0), prompts=left, responses=right,
                response_mask=mask, old_log_probs=old, old_entropys=entropy, rollout_log_probs=drawn_by, advantages=told.batch["advantages"])  # fmt: skip


def test_a_step_of_verls_actor_is_that_of_our_trainer(tmp_path):
    told, ours = {}, {}
    for name, (case, keys) in CASES.items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        ours[name] = our_step.step(folder, **{"advantage": "[{kind: grpo, eps: 1.0e-6}]", **keys})
        torch.save(tensors(ours[name].completions, *DRIVER.get(name, ())), folder / "batch.pt")
        of = {"batch": str(folder / "batch.pt"), "temperature": 1.0, "optimizer": {"lr": our_step.LR, "weight_decay": 0.0, "betas": [0.9, 0.999]}}
        told[name] = update(ours[name].start, {"step": {**case, **of}})["step"]
    for name, result in told.items():
        losses, norms = ([line[key] for line in result["metrics"]] for key in ("loss", "grad_norm"))
        # Of two float32 programs, the second update behind weights that differ by the first one's rounding.
        assert sum(losses) / 2 == pytest.approx(ours[name].metrics["loss"], rel=1e-4, abs=2e-6), name
        assert sum(norms) / 2 == pytest.approx(ours[name].metrics["grad_norm"], rel=1e-4), name
        assert abs(losses[1] - losses[0]) > 1e-3, name
