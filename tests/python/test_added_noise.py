"""optimizer.noise in whole runs: its figure and its warning, resumption, ranks, and that without it nothing changes."""

import math

import pytest
from test_ranks import has_ranks
from test_ranks import train as train_ranks
from test_train import ROOT, metrics, train, weights

CONFIG = ROOT / "configs" / "tiny" / "sft.yaml"
WORDS = ["phases.sft.steps=8", "phases.sft.evaluation.every=0", "test.skip=true", "run.checkpoint_every=4"]
NOISE = "phases.sft.optimizer.noise={eta: 1.0e-6}"


def run(folder, *overrides, resume=False):
    train(CONFIG, folder, *WORDS, *overrides, resume=resume)
    return metrics(folder)


def test_it_is_told_and_falls(tmp_path):
    plain, noisy = run(tmp_path / "plain"), run(tmp_path / "noisy", NOISE)
    assert plain[0]["grad_norm"] == noisy[0]["grad_norm"] and plain[1]["grad_norm"] != noisy[1]["grad_norm"]
    assert not any("added_noise/ratio" in line for line in plain)
    count = 25 * 32 + 2 * (32 * (32 + 2 * 16 + 32) + 3 * 32 * 64 + 2 * 32) + 32
    for line in noisy:
        deviation = math.sqrt(1e-6 / line["step"] ** 0.55)
        assert line["added_noise/ratio"] == pytest.approx(deviation * math.sqrt(count) / min(line["grad_norm"], 1), rel=1e-4)
        assert "warnings" not in line


def test_what_dwarfs_the_gradient_is_warned_of_once(tmp_path):
    lines = run(tmp_path / "run", "phases.sft.optimizer.noise={}")
    told = [line for line in lines if "warnings" in line]
    assert len(told) == 1 and told[0]["step"] == 1
    assert f"{told[0]['added_noise/ratio']:.3g} times as large as the clipped gradient" in str(told[0]["warnings"])
    assert "phases.sft.optimizer.noise.eta" in str(told[0]["warnings"])


def test_a_resumed_run_draws_the_same(tmp_path):
    words = [NOISE, "phases.sft.schedule.kind=constant", "phases.sft.schedule.min_lr_ratio=0"]
    whole = run(tmp_path / "whole", *words)
    run(tmp_path / "cut", *words, "phases.sft.steps=5")
    assert run(tmp_path / "cut", *words, resume=True) == whole and weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.skipif(not has_ranks(), reason="this build has one rank")
def test_ranks_draw_the_same(tmp_path):
    """A rate of nearly 0 and noise far above the gradient: what ranks' gradients differ by in rounding is small beside it."""
    words = [*WORDS, "phases.sft.optimizer={kind: sgd, betas: [0], lr: 1.0e-3, noise: {eta: 1.0}}", "phases.sft.steps=2"]
    one, two = (train_ranks(n, tmp_path / str(n), CONFIG, *words) for n in (1, 2))
    assert [line["loss"] for line in metrics(two)] == pytest.approx([line["loss"] for line in metrics(one)], rel=1e-5)
    assert metrics(two)[0]["added_noise/ratio"] == pytest.approx(metrics(one)[0]["added_noise/ratio"], rel=1e-5)


def test_bad_values_are_refused(tmp_path):
    done = train(CONFIG, tmp_path, "phases.sft.optimizer.noise={eta: 0}", check=False)
    assert done.returncode != 0 and "phases.0.optimizer.noise.eta" in done.stderr.replace("phases.sft", "phases.0")
