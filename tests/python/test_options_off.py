"""Options of docs/options.md that are off leave a run's bits: whether nothing is written of them, their default is, or a choice of weights that is all of
them. That each changes something where it is on is asked too, so that a key that nothing reads cannot pass. Of consolidation, which holds nothing in
a first phase, tests/python/test_consolidation.py; of prompts that stay whole, test_prune.py; of what configurations without options
computed before there were any, the golden losses of test_train.py."""

import pytest
from test_train import ROOT, metrics, train, weights

CONFIG = ROOT / "configs" / "tiny" / "sft.yaml"
WORDS = ["phases.sft.steps=6", "phases.sft.evaluation.every=0", "test.skip=true", "run.checkpoint_every=0"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(CONFIG, folder, *WORDS)
    return folder


@pytest.mark.parametrize("key, off, on", [
    ("phases.sft.optimizer.noise", "null", "{eta: 1.0e-6}"),
    ("model.train_only", "null", "{condition_number: 3}"),
    ("model.train_only", '{names: ["*"]}', '{names: ["*.mlp.*"]}'),
    ("model.freeze", "[]", "[qk]"),
    ("model.activation", "swiglu", "crrelu"),
])  # fmt: skip
def test_off_is_the_run_without(plain, tmp_path, key, off, on):
    train(CONFIG, tmp_path / "off", *WORDS, f"{key}={off}")
    assert weights(tmp_path / "off") == weights(plain) and metrics(tmp_path / "off") == metrics(plain)
    train(CONFIG, tmp_path / "on", *WORDS, f"{key}={on}")
    assert metrics(tmp_path / "on")[-1]["loss"] != metrics(plain)[-1]["loss"]
