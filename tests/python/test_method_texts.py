"""Methods that look for texts in answers, on the command line: what is said of a text that never comes, before a run and in it."""

import json
import subprocess

import pytest

from test_method_configs import GRPO, ROOT, SHORT, program


def train(name, folder, *words):
    made = subprocess.run([program(), "train", f"configs/methods/{name}.yaml", f"run.dir={folder}", *SHORT, "phases.sft.steps=30", *words, "--quiet"],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    return made.returncode, made.stderr


@pytest.mark.parametrize("name, word, told", [
    ("pear", GRPO + "reward.2.tag=hhhhh", "in the last 10 steps no completion had the tag that ends the thinking (pear/tagged 0). phases.grpo.reward, pear: tag: write"),
    ("empg", GRPO + "advantage.1.marker=hhhhh", "in the last 10 steps every completion was a single step (empg/steps 1). phases.grpo.advantage, empg: marker: write"),
    ("hicra", GRPO + "advantage.1.grams={grams}", "in the last 10 steps no completion had one of the strategic grams (hicra/planning 0). phases.grpo.advantage, hicra: grams: mine"),
])  # fmt: skip
def test_a_text_that_never_comes_is_warned_of_once(name, word, told, tmp_path):
    (tmp_path / "grams.json").write_text(json.dumps({"grams": [{"text": "h h h h h"}]}))
    word = word.format(grams=tmp_path / "grams.json")
    code, said = train(name, tmp_path / "run", word, GRPO + "steps=14", GRPO + "rollout.prompts=2")
    assert code == 0 and said.count(told) == 1, said
    code, said = train(name, tmp_path / "few", word, GRPO + "steps=9", GRPO + "rollout.prompts=2")
    assert code == 0 and told not in said


def test_grams_of_another_tokenizer_are_refused(tmp_path):
    file = tmp_path / "grams.json"
    file.write_text(json.dumps({"grams": [{"text": "let us check"}, {"text": "ÄÖ +"}]}))
    code, said = train("hicra", tmp_path / "run", f"{GRPO}advantage.1.grams={file}")
    assert code == 1 and f"phases.grpo.advantage.1.grams: {file}: the tokenizer can write none of its phrases; mine them of answers of this model" in said, said
    assert not (tmp_path / "run").exists()
    # One that it can write is enough, also where it has the letters in capitals alone.
    file.write_text(json.dumps({"grams": [{"text": "let us check"}, {"text": "a 1"}]}))
    assert train("hicra", tmp_path / "run", f"{GRPO}advantage.1.grams={file}", GRPO + "steps=1")[0] == 0
