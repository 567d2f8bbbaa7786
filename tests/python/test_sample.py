"""isentrope sample and evaluate --completions: prompts from files, completions as JSON, and text that is whole UTF-8."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SFT = ROOT / "configs" / "tiny" / "sft.yaml"
SHORT = ["phases.sft.steps=3", "phases.sft.schedule.warmup_steps=0", "phases.sft.evaluation.every=0",
         "test={prompts: 3, sampled_prompts: 2, num_generations: 4}"]  # fmt: skip
KEYS = ["group", "sample", "prompt", "completion", "tokens", "ids", "logprob", "entropy", "length", "finished"]


def run(*words, code=0, **arguments):
    build = os.environ.get("ISENTROPE_BUILD")
    program = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert program, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    arguments = {"input": b"", "timeout": 300, **arguments}
    told = subprocess.run([os.path.abspath(program), *map(str, words)], capture_output=True, **arguments)
    assert told.returncode == code, told.stderr.decode()
    return told


def objects(told):
    return [json.loads(line) for line in told.stdout.decode().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled")
    run("train", SFT, f"run.dir={folder}/run", "--quiet", *SHORT, cwd=ROOT)
    run("train", SFT, f"run.dir={folder}/bytes", "--quiet", "tokenizer={kind: bytes}", *SHORT, cwd=ROOT)
    return folder


def test_json_says_what_the_text_says(folder):
    words = ["sample", folder / "run", "--prompt", "a+5b+6=", "--prompt", "a=", "--samples", "3", "--max-new-tokens", "12"]
    lines = objects(run(*words, "--json"))
    assert [(line["group"], line["sample"]) for line in lines] == [(g, s) for g in range(2) for s in range(3)]
    for line in lines:
        assert list(line) == KEYS
        assert line["length"] == len(line["tokens"]) == len(line["ids"]) == len(line["logprob"]) == len(line["entropy"])
        assert "".join(line["tokens"]) == line["completion"] + "." * line["finished"]
        assert all(p <= 0 for p in line["logprob"]) and all(0 <= h <= math.log(25) + 1e-6 for h in line["entropy"])
        assert line["finished"] == (line["ids"][-1] == 24)
    text = "".join(line["prompt"] + "".join(line["tokens"]) + ("\n" if line["finished"] else "  [cut at the length limit]\n") for line in lines)
    assert run(*words).stdout.decode() == text


def test_the_prompts_of_a_file_are_those_of_the_command_line(folder, tmp_path):
    prompts = ["a+5b+6=", "a=", "a+5b+6="]
    wanted = run("sample", folder / "run", "--json", *(word for p in prompts for word in ("--prompt", p))).stdout
    objects_of = "".join(json.dumps({"prompt": p, "answer": 7, "more": [1]}) + "\n" for p in prompts)
    (tmp_path / "p.jsonl").write_text(objects_of)
    (tmp_path / "p.txt").write_text("\ufeff" + "\r\n\r\n".join(prompts))  # empty lines, no end of the last
    for words, given in ((["p.jsonl"], ""), (["p.txt"], ""), (["-"], objects_of), (["-"], "\n".join(prompts))):
        assert run("sample", folder / "run", "--json", "--prompts", *words, input=given.encode(), cwd=tmp_path).stdout == wanted
    both = objects(run("sample", folder / "run", "--json", "--prompt", "b=", "--prompts", "p.txt", cwd=tmp_path))
    assert [line["prompt"] for line in both] == ["b=", *prompts]


def test_many_prompts_draw_as_few_do(folder):
    prompts = [f"a+{i}=" for i in range(1100)]  # more than are drawn together
    lines = objects(run("sample", folder / "run", "--json", "--prompts", "-", "--max-new-tokens", "2", input="\n".join(prompts).encode()))
    assert [line["group"] for line in lines] == list(range(1100)) and [line["prompt"] for line in lines] == prompts
    few = objects(run("sample", folder / "run", "--json", "--prompts", "-", "--max-new-tokens", "2", input="\n".join(prompts[:3]).encode()))
    assert [line["ids"] for line in few] == [line["ids"] for line in lines[:3]]
    assert len({tuple(line["ids"]) for line in lines[1024:]}) > 10  # the second part draws numbers of its own


@pytest.mark.parametrize("name, text, words", [
    ("p.jsonl", '{"prompt": "a="}\n{"prompt": \n', ["p.jsonl:2: not JSON"]),
    ("p.jsonl", '{"prompt": "a="}\n{"question": "a="}\n', ['p.jsonl:2: the key "prompt" is missing']),
    ("p.jsonl", '{"prompt": 5}\n', ["p.jsonl:1", "must be a string"]),
    ("p.jsonl", '["a="]\n', ["p.jsonl:1", "one object"]),
    ("p.jsonl", '{"prompt": ""}\n', ['p.jsonl:1: "prompt" is empty']),
    ("p.txt", "a=\n\nxyz\n", ["p.txt:3", "'x'", "is not in the alphabet"]),
    ("p.txt", "a" * 60 + "\n", ["p.txt:1", "60 tokens", "at most 47"]),
    ("p.txt", "", ["p.txt", "no prompt"]),
    ("p.csv", "a=\n", ["p.csv", ".jsonl", ".txt"]),
])  # fmt: skip
def test_what_is_wrong_with_a_file_is_told_before_the_first_completion(folder, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    told = run("sample", folder / "run", "--prompts", name, cwd=tmp_path, code=1)
    assert told.stdout == b"" and all(word in told.stderr.decode() for word in words), told.stderr.decode()


def test_what_is_wrong_with_the_words(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a=\n")
    assert "prompts.txt" in run("sample", folder / "run", "--prompts", "promts.txt", cwd=tmp_path, code=1).stderr.decode()
    assert "standard input:2" in run("sample", folder / "run", "--prompts", "-", input=b"a=\nx\n", code=1).stderr.decode()
    told = run("sample", folder / "run", code=2)
    assert "--prompt TEXT or --prompts FILE" in told.stderr.decode()


def test_bytes_that_are_no_characters(folder):
    words = ["sample", folder / "bytes", "--prompt", "é", "--samples", "40", "--max-new-tokens", "3"]
    assert "\ufffd" in run(*words).stdout.decode()  # strictly
    lines = objects(run(*words, "--json"))
    assert all(line["prompt"] == "é" for line in lines) and any("\ufffd" in line["completion"] for line in lines)
    for line in lines:  # the ids say what the bytes were
        drawn = bytes(i - 1 for i in line["ids"] if 1 <= i <= 256)
        assert line["completion"] == drawn.decode(errors="replace")
    broken = run("sample", folder / "bytes", "--json", "--prompts", "-", "--max-new-tokens", "1", input=b"\xff\xc3\n")
    assert objects(broken)[0]["prompt"] == "\ufffd\ufffd"


def test_evaluate_writes_its_completions(folder, tmp_path):
    words = ["evaluate", "--json", folder / "run", SFT, SHORT[-1]]
    plain, told = run(*words, cwd=ROOT), run(*words, "--completions", tmp_path / "c.jsonl", cwd=ROOT)
    assert plain.stdout == told.stdout
    figures, lines = json.loads(told.stdout), [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert all(list(line) == KEYS + ["decoding", "score", "right"] for line in lines)
    greedy, sampled = ([line for line in lines if line["decoding"] == kind] for kind in ("greedy", "sampled"))
    assert [line["group"] for line in greedy] == [0, 1, 2] and [line["group"] for line in sampled] == [0] * 4 + [1] * 4
    assert figures["greedy"] == sum(line["right"] for line in greedy) / 3
    assert figures["length"] == sum(line["length"] for line in sampled) / 8
    assert [key for key in figures if key.startswith("pass@")] == ["pass@1", "pass@2", "pass@3", "pass@4"]
    assert figures["pass@1"] == pytest.approx(figures["sampled"])
    for wrong in (tmp_path, tmp_path / "nowhere" / "c.jsonl"):
        refused = run(*words, "--completions", wrong, cwd=ROOT, code=1)
        assert str(wrong) in refused.stderr.decode() and refused.stdout == b""


def test_prompts_that_stand_twice(folder, tmp_path):
    """JRT-Prompt: what follows is what follows the prompt, a line break, and the prompt again."""
    words = ["sample", folder / "bytes", "--json", "--samples", "2", "--max-new-tokens", "5"]
    twice = objects(run(*words, "--repeat-prompt", "--prompt", "a+5="))
    alike, once = objects(run(*words, "--prompt", "a+5=\na+5=")), objects(run(*words, "--prompt", "a+5="))
    assert [line | {"prompt": ""} for line in twice] == [line | {"prompt": ""} for line in alike]
    assert {line["prompt"] for line in twice} == {"a+5="} and twice[0]["logprob"] != once[0]["logprob"]
    evaluation = ["evaluate", folder / "bytes", "--repeat-prompt", SHORT[-1], "test.max_new_tokens=9", "--completions", tmp_path / "c.jsonl"]
    run(*evaluation, cwd=ROOT)
    for line in map(json.loads, (tmp_path / "c.jsonl").read_text().splitlines()):
        if line["decoding"] == "greedy":
            prompt = f"{line['prompt']}\n{line['prompt']}"
            (same,) = objects(run("sample", folder / "bytes", "--json", "--prompt", prompt, "--temperature", "0", "--max-new-tokens", "9"))
            assert same["ids"] == line["ids"]
    assert "is not in the alphabet" in run("sample", folder / "run", "--repeat-prompt", "--prompt", "a=", code=1).stderr.decode()
    assert "48" in run("sample", folder / "bytes", "--repeat-prompt", "--prompt", "a" * 24, code=1).stderr.decode()
    assert "--repeat-prompt" in run("sample", folder / "bytes", "--repeat-prompt", "--chat", "--prompt", "a=", code=2).stderr.decode()
    text = run("evaluate", folder / "bytes", ROOT / "configs/tiny/pretrain.yaml", "--repeat-prompt", cwd=ROOT, code=1).stderr.decode()
    assert "test.repeat_prompt: the data of phase pretrain are text, which has no prompts" in text
