"""docs/scaling.md: its formula beside what two ranks count, and its tables beside the script's."""

import importlib.util
import re
from pathlib import Path

import pytest
from test_train import ROOT, binary

spec = importlib.util.spec_from_file_location("scaling", ROOT / "scripts" / "scaling.py")
scaling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scaling)
PAGE = (ROOT / "docs" / "scaling.md").read_text()


def test_the_page_has_the_tables_of_the_script():
    assert "\n".join(scaling.table()) in PAGE
    assert re.search(r"kBucketBytes = 8 << 20", (ROOT / "csrc" / "train" / "gradients.cpp").read_text()) and scaling.BUCKET == 8 << 20


@pytest.mark.parametrize("ranks", [2, 3])
def test_what_is_sent_is_the_formula(ranks):
    sent, weights = scaling.count(ranks, Path(binary()))
    least = scaling.least_bytes(weights, ranks)
    assert least <= sent["sft"] <= 1.001 * scaling.update_bytes(weights, ranks, verbs=12)
    assert least <= sent["grpo"] <= 1.1 * least
    row = re.search(rf"\| {ranks} \| {least / 1e6:.3f} \| ([0-9.]+) \| [0-9.]+ \| ([0-9.]+) \|", PAGE)
    assert row and [float(one) * 1e6 for one in row.groups()] == pytest.approx([sent["sft"], sent["grpo"]], rel=0.01)
