"""The page that `isentrope report` writes: of made-up runs with everything, with little, not finite, very long."""

import base64
import hashlib
import html
import json
import math
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

np = pytest.importorskip("numpy")
pytest.importorskip("jinja2")
pytest.importorskip("yaml")

from isentrope.report import ReportError, main, runs_of, write_page  # noqa: E402
from isentrope.report.configurations import configurations, heading, sweep  # noqa: E402
from isentrope.report.page import Pages  # noqa: E402
from isentrope.report.plots import Curve, binned, draw_curves  # noqa: E402
from isentrope.report.runs import Run, Series, read_rollouts, read_run, read_runs  # noqa: E402
from isentrope.report.summary import final, written  # noqa: E402
from isentrope.report.terms import SECTIONS, UNSEEN, term  # noqa: E402

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
    optimizer: {{lr: {lr}}}
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


def write_run(folder, phases=None, seed=1, loss="kl_cov", plain=False, layers=3, heads=4, prompt="a+5b+6=", lr=1e-3):
    """The files of a run. plain: the loss and the clock alone, no evaluation, attention, sigma or samples."""
    generator = random.Random(seed)
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder.name, seed=seed, loss=loss, lr=lr))
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
                        "eval/pass@8": 0.75,
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

    EMPTY = {"meta", "input", "line", "circle", "rect", "path", "use", "image", "br"}

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
    "Completion length",
    "Clipped and selected tokens",
    "KL to the behaviour policy",
    "Gradient norm",
    "Throughput",
    "Lower bound of the entropy",
    "strange/figure",
]


def bare(markup):
    return html.unescape(re.sub(r"<[^>]*>", "", markup)).strip()


def figures(text):
    """The figures of a page by title; the first of each."""
    found = {}
    for figure in re.findall(r"<figure>.*?</figure>", text, re.DOTALL):
        found.setdefault(bare(re.search(r"<figcaption><b>(.*?)</b>", figure, re.DOTALL)[1]), figure)
    return found


def titles(text):
    return [bare(title) for title in re.findall(r"<figcaption><b>(.*?)</b>", text, re.DOTALL)]


def tables(text):
    """Of each table, its rows of cells as text."""
    return [
        [[bare(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in table.split("<tr>")[1:]]
        for table in re.findall(r"<table.*?</table>", text, re.DOTALL)
    ]


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
    rollouts(first, 3)
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
    assert "hidden" not in re.search(r"<input[^>]*>", told.stdout)[0], "the script of the search did not run"


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
    assert "4 values not finite" in figures(text)["Loss"]
    assert "50 values not finite" in figures(text)["Gradient norm"]
    assert "10 values not finite (grey)" in text and "10 values not finite" in figures(text)["q"]


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
    loss = figures(text)["Loss"]
    assert "mean of up to" in loss and ">20<" in loss  # the spike is within the axis


def test_two_runs(tmp_path):
    first, second = (
        write_run(tmp_path / "first"),
        write_run(tmp_path / "second", {"sft": 12, "grpo": 20}, seed=2, loss="clip"),
    )
    text = page_of(first, second)
    reader = Reader(text)
    assert len(reader.ids) == len(set(reader.ids))
    assert tables(text)[-1] == [["key", "first", "second"], ["phases.grpo.objective.loss", "kl_cov", "clip"]]
    assert titles(text).count("Loss") == 1
    heat = text[text.index("Attention entropy of each head") :]
    assert heat.count("<image") == 4 and "first" in titles(heat) and "second" in titles(heat)  # a map a run, of two phases
    assert "12 sft + 20 grpo" in text


def test_seeds_are_one_line_with_a_band():
    first = np.arange(1.0, 5.0), np.array([1.0, 2.0, np.nan, 4.0])
    second = np.arange(1.0, 4.0), np.array([3.0, 2.0, 5.0])  # it stopped earlier
    bins = binned([first, second], 100)
    assert bins.steps.tolist() == [1, 2, 3, 4] and bins.mean.tolist() == [2, 2, 5, 4]
    assert bins.low.tolist() == [1, 2, 5, 4] and bins.high.tolist() == [3, 2, 5, 4]
    assert bins.count == 1 and bins.lost.tolist() == [3]
    halves = binned([first, second], 2)  # the band is of the seeds' means, not of their steps
    assert halves.mean.tolist() == [(1.5 + 2.5) / 2, (4 + 5) / 2] and halves.low.tolist() == [1.5, 4]
    alone = binned([first], 2)
    assert alone.low.tolist() == [1, 4] and alone.high.tolist() == [2, 4] and alone.size == 2
    assert np.isnan(binned([(np.array([1.0]), np.array([np.nan]))], 2).mean).all()


def with_config(**keys):
    given = {key.replace("__", "."): str(value) for key, value in keys.items()}
    return Run(Path(f"runs/{given.get('run.dir', 'x')}"), label=given.get("run.dir", "x"), config=given)


def test_which_runs_are_seeds_of_one_configuration():
    runs = [with_config(run__dir=f"{loss}-{seed}", run__seed=seed, loss=loss) for seed in (1, 2) for loss in ("a", "b")]
    found = configurations(runs)
    assert [[run.label for run in c.runs] for c in found] == [["a-1", "a-2"], ["b-1", "b-2"]]
    assert [c.label for c in found] == ["a", "b"] and [c.values for c in found] == [{"loss": "a"}, {"loss": "b"}]
    assert heading(found) == "loss: a, b · 2 seeds each" and sweep(found) is None
    # A start of its own for each seed is a part of the seed; two starts for one seed are what is compared.
    starts = [with_config(run__dir=f"r{s}", run__seed=s, run__start=f"start/{s}") for s in (1, 2)]
    assert len(configurations(starts)) == 1
    starts.append(with_config(run__dir="r3", run__seed=1, run__start="other"))
    assert len(configurations(starts)) == 3
    assert len(configurations([Run(Path("a"), "a"), Run(Path("b"), "b")])) == 2  # without a configuration nothing is known


def test_what_was_swept():
    runs = [with_config(run__dir=f"r{lr}{norm}", lr=lr, norm=norm) for norm in ("pre", "post") for lr in ("1e-2", "1e-4", "1e-3")]
    found = sweep(configurations(runs))
    assert found.key == "lr" and found.logarithmic
    assert [(name, [x for x, _ in points]) for name, points in found.lines] == [
        ("norm pre", [1e-4, 1e-3, 1e-2]),
        ("norm post", [1e-4, 1e-3, 1e-2]),
    ]
    layers = sweep(configurations([with_config(run__dir=f"r{n}", layers=n) for n in (4, 2, 3)]))
    assert layers.key == "layers" and not layers.logarithmic
    assert sweep(configurations([with_config(run__dir=f"r{n}", layers=n) for n in (4, 2)])) is None
    linked = [with_config(run__dir=f"r{n}", sft__lr=n, grpo__lr=2 * n) for n in (1, 2, 3)]
    assert sweep(configurations(linked)).name == "sft.lr"  # the other goes with it
    assert [c.label for c in configurations(linked)] == [f"sft.lr {n}, grpo.lr {2 * n}" for n in (1, 2, 3)]
    steps = sweep(configurations([with_config(run__dir=f"r{n}", a__steps=n) for n in (1, 2, 3)]))
    assert steps.name == "a.steps"  # "steps" is another column of the table
    assert sweep(configurations([with_config(run__dir=f"r{n}", kind=n) for n in "abc"])) is None


def test_the_page_leads_with_what_is_compared(tmp_path):
    runs = []
    for loss in ("clip", "kl_cov"):
        for seed in (1, 2):
            runs.append(write_run(tmp_path / f"{loss}-{seed}", seed=seed, loss=loss))
            greedy = {("clip", 1): 0.5, ("clip", 2): 0.7}.get((loss, seed), 0.25)
            file = runs[-1] / "metrics.jsonl"
            file.write_text(file.read_text().replace('"eval/greedy": 0.5', f'"eval/greedy": {greedy}'))
    text = page_of(*runs)
    Reader(text)
    assert "<title>loss: clip, kl_cov · 2 seeds each" in text
    (head, clip, kl_cov), (each, *single) = tables(text)[:2]
    assert head[:4] == ["configuration", "loss", "seeds", "test greedy"]
    assert clip[:4] == ["clip", "clip", "2", "60.0 ± 14.1%"] and kl_cov[:4] == ["kl_cov", "kl_cov", "2", "25.0 ± 0.0%"]
    assert [row[0] for row in single] == [f"{loss}, seed {seed}" for loss in ("clip", "kl_cov") for seed in (1, 2)]
    assert [row[each.index("test greedy")] for row in single] == ["50.0%", "70.0%", "25.0%", "25.0%"]
    reward = figures(text)["Reward"]
    for colour in ("#3b7dd8", "#e0782f"):  # a line and a band for a configuration, not for a seed; dashed: the deviation
        assert len(re.findall(f'class="l" stroke="{colour}" d=', reward)) == 1, colour
        assert len(re.findall(f'class="band" fill="{colour}"', reward)) == 1, colour


def test_final_values_are_means():
    noisy = Series({"grpo": (range(100), [5.0] * 90 + [0.0, 1.0] * 5)})
    run = Run(Path("x"), lengths={"sft": 3, "grpo": 100}, series={"reward/mean": noisy})
    assert final(run, "reward/mean") == 0.5  # of the last tenth
    long = Series({"grpo": (range(1000), [5.0] * 950 + [2.0] * 50)})
    assert final(Run(Path("x"), lengths={"grpo": 1000}, series={"loss": long}), "loss") == 2.0  # 50 steps at most
    assert final(run, "loss") is None
    lost = Run(Path("x"), lengths={"sft": 2}, series={"loss": Series({"sft": ([1, 2], [None, None])})})
    assert math.isnan(final(lost, "loss")) and written([math.nan], ".3f", 1) == "not finite"
    assert written([0.5, 0.75, math.nan], "%", 3) == "62.5 ± 17.7% (n = 2)" and written([2.0, 3.0], "count", 2) == "2 to 3"


def test_no_phase_squeezes_another():
    steps = np.arange(1, 401)
    loss = Series({"sft": (steps, 3 / steps), "grpo": (steps[:60], 0.01 * np.sin(steps[:60]))})
    figure, said = draw_curves({"sft": 400, "grpo": 60}, [Curve([loss], "#111111")], apart=True)
    spans = []
    for d in re.findall(r'class="l" stroke="#111111" d="M(\S+) (\S+)l([^"]*)"', "".join(figure.parts)):
        x, y = (np.cumsum([float(d[i]), *map(float, d[2].split()[i::2])]) for i in (0, 1))
        spans.append((np.ptp(x), np.ptp(y)))
    assert len(spans) == 2 and "each phase on its own scale" in said
    room = figure.height - 440  # between the margins
    assert all(height > 0.8 * room for _, height in spans), spans
    assert abs(spans[0][0] / spans[1][0] - 1) < 0.05, spans  # as wide, whatever the steps
    _, said = draw_curves({"a": 9, "b": 9}, [Curve([Series({p: (range(9), range(9)) for p in "ab"})], "#111111")])
    assert said == []  # alike: one scale


def test_a_sweep(tmp_path):
    rates = ["0.03", "0.0001", "0.001"]
    text = page_of(*[write_run(tmp_path / f"r{lr}-{s}", seed=s, lr=lr, plain=True) for lr in rates for s in (1, 2)])
    Reader(text)
    assert "<title>lr from 0.0001 to 0.03 · 2 seeds each" in text and '<h2>Over lr</h2>' in text
    assert [row[0] for row in tables(text)[0][1:]] == ["lr 0.0001", "lr 0.001", "lr 0.03"]
    loss = figures(text)["final loss"]
    places = [int(x) for x in re.findall(r'd="M(\d+) \d+m-28 0a28', loss)]
    assert len(places) == 3  # of three numbers, a logarithmic axis: a third of the way is log(10) of log(300)
    assert abs((places[1] - places[0]) / (places[2] - places[0]) - math.log(10) / math.log(300)) < 0.01


def test_pass_at_k_of_one_k_and_of_several(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "test eval/pass@8" in read_run(folder).series and "pass@k" not in titles(page_of(folder))
    file = folder / "metrics.jsonl"
    every = ", ".join(f'"eval/pass@{k}": {k / 10}' for k in (1, 2, 4, 8))
    file.write_text(file.read_text().replace('"eval/pass@8": 0.75', every))
    text = page_of(folder)
    over_k = figures(text)["pass@k"]
    assert re.findall(r">(\d+)</text>", over_k)[-4:] == ["1", "2", "4", "8"] and "test data" in over_k
    assert "80.0%" in text and "pass@4" not in text  # the largest k in the table, all in the figure


def test_samples_stand_beside_each_other(tmp_path):
    text = page_of(write_run(tmp_path / "run", {"sft": 100}))
    head, *rows = next(table for table in tables(text) if table[0][0] == "prompt")
    assert head == ["prompt", "step 10", "step 30", "step 50", "step 80", "step 100"]  # first and last among five
    assert [row[0] for row in rows] == ["a+5b+6=", ""] and all(cell.endswith("right") for cell in rows[0][1:])


def rollouts(folder, steps, a_step=4):
    (folder / "rollouts").mkdir()
    with open(folder / "rollouts" / "grpo.jsonl", "w") as file:
        for step in range(1, steps + 1):
            for i in range(a_step):
                line = {"step": step, "prompt": f"p{i}", "completion": f"<c{step}>", "reward": i / 4, "advantage": 0.5}
                line |= {"tokens": ["<", f"c{step}", ">"][: 2 + i % 2], "logprob": [-0.5, -0.25], "entropy": [0.5, 1.5]}
                file.write(json.dumps(line) + "\n")


def test_rollouts_are_a_table_to_search(tmp_path):
    folder = write_run(tmp_path / "run")
    rollouts(folder, 20)
    text = page_of(folder)
    reader = Reader(text)
    head, *rows = tables(text)[-1]
    assert head == ["step", "reward", "advantage", "tokens", "entropy", "log-probability", "prompt", "completion"]
    assert len(rows) == 80 and rows[1][:7] == ["1", "0.25", "0.5", "3", "1", "-0.75", "p1"] and rows[1][7] == "<c1>"
    assert "80 completions of training. " in re.sub(r"\s+", " ", text)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert reader.tags.count("script") == 1 and f"script-src 'sha256-{allowed}'\"" in text  # no other script would run
    assert {"Lengths", "Rewards"} <= figures(text).keys() and "rollouts of the last third" in figures(text)["Rewards"]


def test_of_many_rollouts_a_part_is_read(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    rollouts(folder, 2000)
    whole, part = Run(folder), Run(folder)
    read_rollouts(whole, 10**9)
    read_rollouts(part, 200_000)
    assert len(whole.rollouts) == 8000 and whole.rollouts_whole and not part.rollouts_whole
    size = (folder / "rollouts" / "grpo.jsonl").stat().st_size
    assert abs(len(part.rollouts) / 8000 - 200_000 / size) < 0.01
    steps = [line["step"] for line in part.rollouts]
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] == 2000
    even = Run(tmp_path / "even")  # parts that begin where a line does
    (even.folder / "rollouts").mkdir(parents=True)
    lines = [json.dumps({"step": step, "prompt": "", "completion": ""}).ljust(63) + "\n" for step in range(4096)]
    for name, some in (("a", lines[:3500]), ("b", lines[3500:])):
        (even.folder / "rollouts" / f"{name}.jsonl").write_text("".join(some))
    read_rollouts(even, 131072)
    assert [line["step"] for line in even.rollouts] == [*range(1024), *range(3072, 4096)]
    (folder / "metrics.jsonl").write_text("")
    with open(folder / "rollouts" / "grpo.jsonl", "a") as file:
        file.write("rubbish\n{torn")
    with pytest.raises(ReportError, match=f"grpo.jsonl:byte {size}: not an object with step, prompt, completion"):
        read_runs([folder])


def test_every_word_is_explained(tmp_path):
    text = page_of(write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=2), write_run(tmp_path / "three", loss="clip"))
    named = re.findall(r'<a class="term"[^>]*>(.*?)</a>', text)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    for caption in captions:
        words = [bare(word) for word in re.findall(r"<b>(.*?)</b>", caption, re.DOTALL)]
        words += [bare(word) for word in re.findall(r"</svg>(.*?)</span>", caption, re.DOTALL)]
        for word in words:
            own = {"q", "down", "head", "strange/figure", "one", "two", "three"}  # layers, an unknown key, runs
            assert word in named or word in own or ", seed " in word, f"{word}: no term in python/isentrope/report/terms.py"
    columns = set(tables(text)[0][0]) - {"configuration", "loss", "seeds"}
    assert columns <= {html.unescape(word) for word in named}, columns - set(named)
    for word in ("overloaded", "collapsed", "Lower bound of the entropy", "seed", "band", "nats"):
        assert f"<dt>{word}</dt>" in text, word
    for column in ("test bits per byte", "validation loss", "final reward", "test pass@16", "final entropy"):
        assert term(column) is not None, column
    assert "certified" not in page_of(write_run(tmp_path / "plain", plain=True)).lower()  # no more than the page has


def test_every_key_of_the_trainer_is_explained():
    """docs/metrics.md has the keys of metrics.jsonl in its tables: each is in a figure, has a term, or is told in words."""
    page = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
    if not page.exists():
        pytest.skip("no sources beside the tests")
    shown = {key for _, kinds in SECTIONS for _, _, keys in kinds for key in keys.values()}
    cells = [line.split("|")[1] for line in page.read_text().splitlines() if line.startswith("|")]
    keys = {key for cell in cells for key in re.findall(r"`([a-z_]+/[a-z@_0-9]+)`", cell)}
    assert len(keys) > 40
    missing = [key for key in sorted(keys - shown) if not re.fullmatch(UNSEEN + r"|eval/split", key) and not (term(key) or term(key + "/"))]
    assert not missing, f"{missing}: add a term to python/isentrope/report/terms.py"


def test_what_is_0_throughout_is_told_and_not_drawn(tmp_path):
    folder = write_run(tmp_path / "run")
    file = folder / "metrics.jsonl"
    file.write_text(re.sub(r'"strange/figure": [\d.e-]+', '"strange/figure": 0', file.read_text()))
    text = page_of(folder)
    assert "strange/figure" not in titles(text) and "0 throughout, and not drawn: strange/figure" in bare(text)


def test_entropy_is_of_a_policy_where_there_is_one(tmp_path):
    text = page_of(write_run(tmp_path / "pretrained", {"pretrain": 20}))
    assert "Token entropy" in titles(text) and "Policy entropy" not in bare(text) and "Policy update" not in text


def test_all_runs_stand_in_reward_over_entropy(tmp_path):
    free, held = write_run(tmp_path / "free"), write_run(tmp_path / "held", loss="clip")
    file = held / "metrics.jsonl"
    file.write_text(re.sub(r'"law/\w+": [\d.]+, ', "", file.read_text()))
    figure = figures(page_of(free, held))["Reward over entropy"]
    assert all(figure.count(f'fill="{colour}" opacity=') == 1 for colour in ("#3b7dd8", "#e0782f"))
    assert "free: R = 0.9 - 0.1 exp(H)" in figure and "held: no law fitted: the method holds the entropy up" in figure


def test_many_runs_on_one_page(tmp_path):
    runs = [write_run(tmp_path / f"r{i}", {"sft": 200, "grpo": 200}, seed=i % 3, loss=f"l{i // 3}") for i in range(24)]
    text = page_of(*runs)
    Reader(text)
    assert len(text) < 5e6, f"{len(text)} bytes"
    maps = text[text.index('<div class="panels maps') : text.index("<details", text.index('<div class="panels maps'))]
    assert maps.count("<figure>") == 24  # in one grid
    assert len({c.colour for c in Pages(read_runs(runs)).configurations}) == 8


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


def test_a_folder_stands_for_the_runs_in_it(tmp_path):
    """As `isentrope compare` leaves them; the starts that runs share lie one folder deeper."""
    for name in ("b/seed2", "b/seed1", "a", "start/1234/seed1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_run(tmp_path / name, plain=True)
    assert runs_of([tmp_path]) == [tmp_path / name for name in ("a", "b/seed1", "b/seed2")]
    assert runs_of([tmp_path / "a", tmp_path / "none"]) == [tmp_path / "a", tmp_path / "none"]


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
