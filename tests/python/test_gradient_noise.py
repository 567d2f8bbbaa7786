"""metrics.gradient_noise_scale in whole runs: when it is told, that it changes nothing, resumption."""

import pytest

from test_train import ROOT, metrics, train

CONFIG = ROOT / "configs" / "tiny" / "sft.yaml"
KEYS = {"gradient_noise/trace", "gradient_noise/square"}


def steps(folder, *overrides, resume=False):
    train(CONFIG, folder, "phases.sft.steps=12", "phases.sft.evaluation.every=0", "test.skip=true", *overrides, resume=resume)
    return metrics(folder)


def test_it_is_told_every_so_many_steps_and_changes_nothing(tmp_path):
    micro = "phases.sft.batch.micro_tokens=100"
    plain = steps(tmp_path / "plain", micro)
    told = steps(tmp_path / "told", micro, "metrics.gradient_noise_scale=3")
    for line, same in zip(told, plain, strict=True):
        found = {key: line.pop(key) for key in [*KEYS, "gradient_noise_scale"] if key in line}
        assert line == same and (KEYS <= set(found)) == (line["step"] % 3 == 0)
        if found:
            # tr Σ / B is what chance has in the square of the gradient of B sequences.
            assert found["gradient_noise/square"] + found["gradient_noise/trace"] / 8 == pytest.approx(line["grad_norm"] ** 2, rel=1e-6)
    assert not KEYS & set(steps(tmp_path / "whole", "metrics.gradient_noise_scale=1")[0]), "one micro-batch on one rank says nothing of its noise"


def test_a_smaller_batch_has_about_the_same_scale(tmp_path):
    """Of the first step, whose weights are the same: rates of 0 keep them, so that 40 measurements are of one distribution."""
    words = ["phases.sft.optimizer={kind: sgd, lr: 1e-30, weight_decay: 0, betas: [0]}", "phases.sft.steps=40", "metrics.gradient_noise_scale=1"]
    trace = {}
    for batch, micro in ((16, 100), (16, 200), (32, 200)):
        lines = steps(tmp_path / f"{batch} {micro}", *words, f"phases.sft.batch={{sequences: {batch}, micro_tokens: {micro}}}")
        assert len(lines) == 40
        trace[batch, micro] = sum(line["gradient_noise/trace"] for line in lines) / 40
        square = sum(line["gradient_noise/square"] for line in lines) / 40
        assert lines[-1]["gradient_noise_scale"] == pytest.approx(trace[batch, micro] / square, rel=0.5)
    assert max(trace.values()) < 1.5 * min(trace.values()), trace


def test_it_goes_on(tmp_path):
    words = ["phases.sft.batch.micro_tokens=100", "metrics.gradient_noise_scale=2", "run.checkpoint_every=5", "phases.sft.schedule.kind=constant",
             "phases.sft.schedule.min_lr_ratio=0"]  # fmt: skip
    whole = steps(tmp_path / "whole", *words)
    steps(tmp_path / "cut", *words, "phases.sft.steps=6")
    assert steps(tmp_path / "cut", *words, resume=True) == whole
