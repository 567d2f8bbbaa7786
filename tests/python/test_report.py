"""The page that `isentrope report` writes: of made-up runs with everything, with little, not finite, very long."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("yaml")

from isentrope.report import ReportError, main, write_page  # noqa: E402
from isentrope.report.runs import read_run  # noqa: E402

CONFIG = """run:
  dir: {folder}
  seed: {seed}
phases:
  - name: sft
    objective: {{kind: sft}}
    steps: 30
  - name: grpo
    objective:
      kind: grpo
      loss: {loss}
    steps: 20
"""


def attention(generator, layers, heads, level, more=False):
    def table(low, high):
        return [[generator.uniform(low, high) for _ in range(heads)] for _ in range(layers)]

    found = {
        "entropy": table(0, 3),
        "normalized": [[x * level for x in row] for row in table(0.3, 1)],
        "max_logit": table(1, 9),
    }
    if more:
        found |= {"bound": table(0, 0.3), "certified": table(0, 1)}
    return found | {
        "collapsed": 0.25,
        "overloaded": 0.5,
        "alarms": [] if level > 0.05 else ["layer 1: 4 of 4 heads have collapsed"],
    }


def write_run(folder, phases=None, seed=1, loss="kl_cov", plain=False, layers=3, heads=4, prompt="a+5b+6="):
    """The files of a run. plain: the loss and the clock alone, no evaluation, attention, sigma or samples."""
    generator = random.Random(seed)
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder.name, seed=seed, loss=loss))
    kinds = [f"layers.{i}.{kind}" for i in range(layers) for kind in ("q", "down")] + ["head"]
    clock = 0.0
    with open(folder / "metrics.jsonl", "w") as metrics, open(folder / "samples.jsonl", "w") as samples:
        for phase, steps in (phases or {"sft": 30, "grpo": 20}).items():
            for step in range(1, steps + 1):
                clock += 0.5
                line = {"phase": phase, "step": step, "loss": 3 / step + generator.random(), "time_s": clock}
                if not plain:
                    line |= {
                        "entropy/mean": generator.random(),
                        "entropy/std": 0.1,
                        "grad_norm": 1 + generator.random(),
                        "lr": 1e-3,
                        "tokens_per_s": 12000.0,
                        "strange/figure": generator.random(),
                    }
                    if phase == "grpo":
                        line |= {
                            "reward/mean": generator.random(),
                            "reward/std": 0.4,
                            "kl/k1": 0.01,
                            **{f"law/{name}": x for name, x in {"a": 0.1, "b": 0.9, "ceiling": 0.8, "r2": 0.95, "rmse": 0.01}.items()},
                            "clip/frac": 0.1,
                            "rollout_tokens_per_s": 9000.0,
                            "length/mean": 20.0,
                        }
                    if step % 5 == 0:
                        line["attention_entropy"] = attention(
                            generator, layers, heads, 1 - step / steps, more=phase == "grpo"
                        )
                        line["sigma"] = {
                            kind: [1 + generator.random(), 1.2] + [1.4] * (kind == "head") for kind in kinds
                        }
                metrics.write(json.dumps(line) + "\n")
                if not plain and step % 10 == 0:
                    judged = {
                        "eval/greedy": 0.5,
                        "eval/sampled": 0.25,
                        "eval/pass@k": 0.75,
                        "eval/k": 8,
                        "eval/entropy": 0.3,
                        "eval/length": 18.0,
                    }
                    for split in ["validation"] + ["test"] * (step == steps):
                        metrics.write(
                            json.dumps({"phase": phase, "step": step, "eval/split": split, **judged, "time_s": clock})
                            + "\n"
                        )
                        samples.write(
                            json.dumps(
                                {
                                    "phase": phase,
                                    "step": step,
                                    "eval/split": split,
                                    "samples": [
                                        {
                                            "prompt": prompt,
                                            "tokens": ["b", "<i>", "A11", "\n"],
                                            "entropy": [0.6912, 0.0, 2.5, 0.1],
                                            "right": True,
                                        },
                                        {"prompt": "", "tokens": ["x"], "entropy": [None]},
                                    ],
                                }
                            )
                            + "\n"
                        )
    return folder


def page_of(*folders, refresh=0):
    output = folders[0] / "report.html"
    write_page(folders, output, refresh)
    return output.read_text()


class Reader(HTMLParser):
    """Elements that are opened are closed; what is named."""

    EMPTY = {"meta", "line", "circle", "rect", "path", "use", "image", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open and self.open.pop() == tag, tag


TITLES = [
    "Loss",
    "Reward",
    "Accuracy",
    "Policy entropy",
    "Attention entropy of each head",
    "Attention entropy",
    "Gradient norm",
    "Throughput",
    "Lower bound of the entropy",
    "strange/figure",
]


def titles(text):
    return re.findall(r"<figcaption><b>(.*?)</b>", text)


def test_a_whole_run(tmp_path):
    text = page_of(write_run(tmp_path / "whole"))
    reader = Reader(text)
    assert len(reader.ids) == len(set(reader.ids))
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in reader.links), "the page needs the network"
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    assert not {"script", "link", "iframe"} & set(reader.tags) and 'http-equiv="refresh"' not in text
    assert set(TITLES) <= set(titles(text))
    assert {"q", "down", "head"} <= set(titles(text))  # σ and γ by kind of layer
    assert text.count("layer 1: 4 of 4 heads have collapsed") == 2  # once a phase
    assert "kl_cov" in text and "50.0%" in text and "pass@8" in text and 'title="2.500 nats"' in text
    assert "30 sft + 20 grpo" in text and "25 s" in text
    assert "Reward over entropy" in titles(text) and "R = 0.9 - 0.1 exp(H), ceiling 0.8, R² 0.95" in text and "law/a" not in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on the PATH")
def test_a_browser_finds_no_error(tmp_path):
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second", plain=True)
    page_of(first, second)
    browser = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
    ]
    told = subprocess.run(
        [*browser, f"--user-data-dir={tmp_path}/profile", f"file://{first}/report.html"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0 and told.stdout.count("<figure>") > 15, told.stderr
    assert "CONSOLE" not in told.stderr, told.stderr


def test_the_page_is_the_same_twice(tmp_path):
    folder = write_run(tmp_path / "run")
    assert page_of(folder) == page_of(folder)


def test_a_run_with_little(tmp_path):
    text = page_of(write_run(tmp_path / "little", plain=True))
    Reader(text)
    assert titles(text) == ["Loss"]
    assert "Samples" not in text and "Spectral norms" not in text and "Attention" not in text


def test_a_run_before_its_first_step(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert "No step has been written yet" in page_of(tmp_path / "run")


def test_what_is_not_finite_is_told(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "attention_entropy" in line:
            line["attention_entropy"]["normalized"][0][0] = None
            line["sigma"]["layers.0.q"] = [None, 1.0]
        if "grad_norm" in line:
            line["grad_norm"] = None
        if line["step"] in (3, 4) and "loss" in line:
            line["loss"] = None if line["phase"] == "sft" else float("inf")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page_of(folder)
    Reader(text)
    loss = text[text.index("<b>Loss</b>") : text.index("<b>Reward</b>")]
    assert "4 values not finite" in loss
    assert "50 values not finite" in text[text.index("<b>Gradient norm</b>") :]
    assert "10 values not finite (grey)" in text and "10 values not finite, left out" in text


def test_a_long_run(tmp_path):
    folder = write_run(tmp_path / "long", {"sft": 14_000, "grpo": 6_000})
    line = (folder / "metrics.jsonl").read_text().splitlines()[8_234]
    assert '"loss"' in line
    spiked = json.dumps({**json.loads(line), "loss": 20.0})
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text().replace(line, spiked))
    start = time.process_time()  # not of a clock that other programs share
    text = page_of(folder)
    seconds = time.process_time() - start
    Reader(text)
    assert len(text) < 3e6, f"{len(text)} bytes"
    assert seconds < 8, f"{seconds} s"
    loss = text[text.index("<b>Loss</b>") : text.index("<b>Reward</b>")]
    assert "mean of up to" in loss and ">20<" in loss  # the spike is within the axis


def test_two_runs(tmp_path):
    first, second = (
        write_run(tmp_path / "first"),
        write_run(tmp_path / "second", {"sft": 12, "grpo": 20}, seed=2, loss="clip"),
    )
    text = page_of(first, second)
    reader = Reader(text)
    assert len(reader.ids) == len(set(reader.ids))
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", text[text.index("<th>key</th>") :])
    assert rows == [
        ("run.dir", "first", "second"),
        ("run.seed", "1", "2"),
        ("phases.grpo.objective.loss", "kl_cov", "clip"),
    ]
    assert titles(text).count("Loss") == 1 and titles(text).count("Attention entropy of each head") == 2
    assert "12 sft + 20 grpo" in text


def test_runs_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    a, b = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")
    text = page_of(a, b)
    assert str(a) in text and str(b) in text
    with pytest.raises(ReportError, match="named twice"):
        write_page([a, a], tmp_path / "x.html")


def test_text_of_a_run_is_text(tmp_path):
    attack = "</pre><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    folder = write_run(tmp_path / "run", prompt=attack)
    name = attack[:30]
    lines = (
        (folder / "metrics.jsonl")
        .read_text()
        .replace('"strange/figure"', json.dumps(name))
        .replace('"sft"', json.dumps(name))
    )
    (folder / "metrics.jsonl").write_text(lines)
    (folder / "config.yaml").write_text(f"run: {{dir: {json.dumps(attack)}}}\n")
    other = write_run(tmp_path / "<b>bold", plain=True)
    text = page_of(folder, other)
    Reader(text)
    assert "<script" not in text and "<img" not in text and "<b>bold" not in text
    assert "&lt;script&gt;" in text


def test_a_torn_last_line_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", plain=True)
    whole = page_of(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"phase": "grpo", "step": 21, "lo')
    assert page_of(folder) == whole


@pytest.mark.parametrize(
    "line",
    [
        "rubbish",
        "[1]",
        '{"phase": "sft"}',
        '{"phase": 1, "step": 1}',
        '{"phase": "sft", "step": 1, "attention_entropy": {"normalized": [[1], [1, 2]]}}',
        '{"phase": "sft", "step": 1, "attention_entropy": 3}',
        '{"phase": "sft", "step": 1, "sigma": {"head": "x"}}',
    ],
)
def test_a_malformed_line_is_named(tmp_path, capsys, line):
    folder = write_run(tmp_path / "run", {"sft": 3}, plain=True)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    assert main([str(folder)]) == 1
    assert f"{folder}/metrics.jsonl:4: not " in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main([str(folder)]) == 1
        assert f"{folder}: not the folder of a run" in capsys.readouterr().err
    assert main([str(write_run(tmp_path / "run", plain=True)), "-o", str(tmp_path / "no" / "page.html")]) == 1
    assert "page.html: cannot be written" in capsys.readouterr().err


def test_the_clock_of_a_resumed_run(tmp_path):
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / "metrics.jsonl", "w") as file:
        for step, time_s in enumerate([1.0, 2.0, 0.5, 1.5], 1):
            file.write(json.dumps({"phase": "sft", "step": step, "loss": 1.0, "time_s": time_s}) + "\n")
    assert read_run(tmp_path / "run").seconds == 3.5


def environment():
    import isentrope

    paths = [str(Path(isentrope.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_watching(tmp_path):
    folder = write_run(tmp_path / "run", plain=True)
    page = tmp_path / "page.html"
    process = subprocess.Popen(
        [sys.executable, "-m", "isentrope.report", folder, "-o", page, "--watch", "--interval", "0.1"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def wait_for(what):
        for _ in range(600):
            if page.exists() and what in page.read_text():  # whole at every moment
                return page.read_text()
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        raise AssertionError(what)

    try:
        text = wait_for("30 sft + 20 grpo")
        assert 'http-equiv="refresh"' in text and text.endswith("</html>\n")
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"phase": "grpo", "step": 21, "loss": 1}\n')
        wait_for("30 sft + 21 grpo")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and errors == ""
    text = page.read_text()
    assert 'http-equiv="refresh"' not in text and "30 sft + 21 grpo" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "run"]
