"""The program as a process: descriptors, signals, exit codes, lost output, the commands it prints, and what others read of it."""

import importlib.util
import json
import math
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ISENTROPE_BUILD", ROOT / "build" / "release")).resolve()
PROGRAM = BUILD / "bin" / "isentrope"
STARTER = Path(sys.executable).parent / "isentrope"
SFT = ROOT / "configs" / "tiny" / "sft.yaml"
SHORT = ["phases.sft.steps=3", "phases.sft.schedule.warmup_steps=0", "phases.sft.evaluation.every=0", "test={prompts: 2, sampled_prompts: 2, num_generations: 2}"]
ENDLESS = ["phases.sft.steps=1000000", "run.checkpoint_every=0", "phases.sft.evaluation.every=0"]

needs_program = pytest.mark.skipif(not PROGRAM.exists(), reason=f"no trainer in this build: {PROGRAM}")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def load(name):
    """A module outside the package, by its path."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def run(*words, **arguments):
    env = {**os.environ, "ISENTROPE_PYTHON": sys.executable, **arguments.pop("env", {})}
    arguments = {"capture_output": True, "stdin": subprocess.DEVNULL, "timeout": 120, **arguments}
    return subprocess.run([str(word) for word in words], env=env, **arguments)


def lines_of(folder):
    lines = (Path(folder) / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if not line.startswith(b'{"run": ')]


def begun(folder, *overrides, **arguments):
    """A run without end, past its first step."""
    process = subprocess.Popen([PROGRAM, "train", SFT, f"run.dir={folder}", *ENDLESS, *overrides], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, **arguments)  # fmt: skip
    metrics = Path(folder) / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 2:  # the header and a step
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


# ---- descriptors ------------------------------------------------------------------------------------------------------


@needs_program
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("program", [PROGRAM, STARTER], ids=["program", "starter"])
def test_closed_descriptors_are_not_those_of_the_runs_files(closed, program, tmp_path):
    if program is STARTER and (closed != "<&- >&- 2>&-" or not STARTER.exists()):
        pytest.skip("one case of the starter is enough, where it is installed")
    told = run("sh", "-c", f'exec "$0" "$@" {closed}', program, "train", SFT, f"run.dir={tmp_path}/run", *SHORT)
    assert told.returncode == 0, told.stderr
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 3]
    assert (tmp_path / "run" / "lock").read_text().strip().isdigit()


@needs_program
def test_the_python_module_keeps_its_files_off_them_too(tmp_path):
    pytest.importorskip("isentrope._C", reason="the package was built without the trainer")
    script = f"""
import os, isentrope
for fd in (0, 1, 2): os.close(fd)
trainer = isentrope.Trainer({str(SFT)!r}, overrides={[f"run.dir={tmp_path}/run", *SHORT]!r})
for metrics in trainer:
    for fd in (1, 2):
        try: os.write(fd, b"what a library says")
        except OSError: pass
"""
    assert run(sys.executable, "-c", script).returncode == 0
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 3]


# ---- signals ----------------------------------------------------------------------------------------------------------


@needs_program
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_saves_and_tells_itself_in_the_exit_code(number, tmp_path):
    process = begun(tmp_path / "run")
    for _ in range(2):  # as `timeout` does, and a terminal that closes
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    steps = len(lines_of(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"sft-{steps:06}" / "DONE").exists()
    resume = next(line for line in out.splitlines() if line.startswith("Resume:")).removeprefix("Resume:")
    told = run("sh", "-c", resume + f" phases.sft.steps={steps + 2} test.prompts=1 test.sampled_prompts=1")
    assert told.returncode == 0, told.stderr
    assert [line["step"] for line in lines_of(tmp_path / "run") if "loss" in line] == list(range(1, steps + 3))


@needs_program
def test_a_second_signal_ends_what_takes_long(tmp_path):
    # 16 s of evaluation after the first step: the split has some 130 prompts, and answers without number can be drawn to each.
    process = begun(tmp_path / "run", "phases.sft.evaluation={every: 1, num_generations: 3000}")
    process.send_signal(signal.SIGINT)
    while process.poll() is None:  # repeated, since a busy machine may deliver two as one
        time.sleep(0.15)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
    process.communicate()


@needs_program
@pytest.mark.parametrize("variable", ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"])
def test_a_second_sigterm_of_a_cluster_does_not_cost_the_checkpoint(variable, tmp_path):
    # Some tenths of a second of evaluation after each step: torchrun and Slurm send SIGTERM more than once, and SIGKILL to what takes too long.
    process = begun(tmp_path / "run", "phases.sft.evaluation={every: 1, num_generations: 100}", env={**os.environ, variable: "1"})
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.15)
    assert process.returncode == 128 + signal.SIGTERM, process.communicate()
    assert list((tmp_path / "run" / "checkpoints").glob("sft-*/DONE"))
    process.communicate()


@needs_program
@pytest.mark.parametrize("of", ["the configuration", "Slurm", "Slurm, at the start"])
def test_a_run_leaves_ahead_of_its_time_limit(of, tmp_path):
    limit = ["run.time_limit_s=64", "run.save_before_s=60"] if of == "the configuration" else []  # 60 is the default
    ends = {} if limit else {"SLURM_JOB_END_TIME": str(int(time.time()) + (55 if "start" in of else 65))}
    began = time.monotonic()
    told = run(PROGRAM, "train", SFT, f"run.dir={tmp_path}/run", *ENDLESS, *limit, text=True, env=ends)
    assert told.returncode == 75, told.stderr  # EX_TEMPFAIL
    assert time.monotonic() - began < 30, "it left when half of the time to be kept free was gone"
    if "start" in of:
        assert "Stopped ahead of the time limit (run.save_before_s) before the first step." in told.stdout
        return
    steps = len(lines_of(tmp_path / "run"))
    assert steps > 0 and f"Stopped ahead of the time limit (run.save_before_s). Checkpoint: {tmp_path}/run/checkpoints/sft-{steps:06}" in told.stdout
    resume = next(line for line in told.stdout.splitlines() if line.startswith("Resume:")).removeprefix("Resume:")
    told = run("sh", "-c", resume + f" run.time_limit_s=0 phases.sft.steps={steps + 2} test.prompts=1 test.sampled_prompts=1")
    assert told.returncode == 0, told.stderr


def test_python_leaves_ahead_of_the_time_limit_too(tmp_path):
    pytest.importorskip("isentrope._C", reason="the package was built without the trainer")
    script = f"""
import isentrope, os, time
started = float(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
limit = time.clock_gettime(time.CLOCK_BOOTTIME) - started + 46  # 6 s from now are left to train
trainer = isentrope.Trainer({str(SFT)!r}, overrides={[f"run.dir={tmp_path}/run", *ENDLESS]!r} + [f"run.time_limit_s={{limit}}", "run.save_before_s=40"])
print(trainer.train(quiet=True), trainer.finished)
"""
    told = run(sys.executable, "-c", script, text=True)
    assert (told.returncode, told.stdout) == (0, "{} False\n"), told.stderr
    assert "stopped ahead of the time limit (run.save_before_s); resume=True goes on" in told.stderr
    steps = len(lines_of(tmp_path / "run"))
    assert steps > 0 and (tmp_path / "run" / "checkpoints" / f"sft-{steps:06}" / "DONE").exists()


@needs_program
@pytest.mark.parametrize("words, wanted", [(["run.time_limit_s=30"], "run: save_before_s: 60 s before"), (["run.time_limit_s=-1"], "run.time_limit_s"),
                                           (["run.save_before_s=.inf"], "run.save_before_s")], ids=lambda value: value[0])  # fmt: skip
def test_a_limit_that_leaves_no_time_is_refused(words, wanted, tmp_path):
    told = run(PROGRAM, "train", SFT, f"run.dir={tmp_path}/run", *SHORT, *words, text=True)
    assert told.returncode == 1 and wanted in told.stderr and not (tmp_path / "run").exists()


# ---- checkpoints beside training ----------------------------------------------------------------------------------------

# A write takes several steps: 1.9 million weights with their moments are 23 MB.
WIDE = ["model.hidden_size=256", "model.intermediate_size=1024", "model.num_hidden_layers=2", "phases.sft.batch.sequences=2",
        "phases.sft.schedule={kind: constant, warmup_steps: 0}"]  # fmt: skip


@needs_program
def test_a_kill_within_a_write_costs_no_checkpoint(tmp_path):
    """kill -9 at random moments of a write beside training, four in a row; then the run is made to its end and equals an unbroken one."""
    rng, halves = random.Random(16), 0
    folder = tmp_path / "run"
    command = [PROGRAM, "train", SFT, f"run.dir={folder}", *ENDLESS, *WIDE, "run.checkpoint_every=2", "--resume"]
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        before = {path.name for path in folder.glob("checkpoints/*-??????")}
        # A checkpoint of this process is whole, and the next is being written.
        while {path.name for path in folder.glob("checkpoints/*-??????")} <= before or not list(folder.glob("checkpoints/*.tmp")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.communicate()
        halves += bool(list(folder.glob("checkpoints/*.tmp")))
        assert len([path for path in folder.glob("checkpoints/*-??????") if (path / "DONE").exists()]) >= 1
    assert halves, "no kill fell into a write"
    steps = len(lines_of(folder)) + 2
    end = [f"phases.sft.steps={steps}", "run.checkpoint_every=2", "test={prompts: 1, sampled_prompts: 1, num_generations: 1}"]
    told = [run(PROGRAM, "train", SFT, f"run.dir={place}", *ENDLESS, *WIDE, *end, *more)
            for place, more in ((folder, ["--resume"]), (tmp_path / "whole", []))]  # fmt: skip
    assert [one.returncode for one in told] == [0, 0], told
    for file in ("model.safetensors", "trainer.safetensors"):
        one, other = ((place / "checkpoints" / f"sft-{steps:06}" / file).read_bytes() for place in (folder, tmp_path / "whole"))
        assert one == other, file
    assert not list(folder.glob("checkpoints/*.tmp"))


@needs_program
def test_a_checkpoint_that_was_lost_beside_training_fails_the_run_at_its_end(tmp_path):
    process = subprocess.Popen([PROGRAM, "train", SFT, f"run.dir={tmp_path}/run", *WIDE, *SHORT[1:], "phases.sft.steps=100", "run.checkpoint_every=25"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    limit = lambda bytes: resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))  # noqa: E731
    limit(1 << 20)  # less than the weights, more than the lines
    while not metrics.exists() or b'"warnings"' not in metrics.read_bytes():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    limit(resource.RLIM_INFINITY)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    (line, *_) = (line for line in lines_of(tmp_path / "run") if "warnings" in line)
    (said,) = line["warnings"]
    lost = said.removeprefix("the checkpoint ").split(" ", 1)[0]
    assert "could not be written, and the run goes on: " in said and "File too large" in said and "ulimit -f" in said
    assert f"step {line['step']}: {said}" in err, "told while the run goes on"
    assert "its last checkpoint is whole" in err and err.count(lost) >= 2, "and at the end"
    assert (tmp_path / "run" / "summary.json").exists() and (tmp_path / "run" / "checkpoints" / "sft-000100" / "DONE").exists()
    assert not Path(lost).exists() and not Path(lost + ".tmp").exists()


def test_python_waits_for_the_checkpoint_when_it_ends(tmp_path):
    pytest.importorskip("isentrope._C", reason="the package was built without the trainer")
    script = f"""
import isentrope, os, sys
trainer = isentrope.Trainer({str(SFT)!r}, overrides={[f"run.dir={tmp_path}/run", *ENDLESS, *WIDE, "run.checkpoint_every=2"]!r})
for metrics in trainer:
    if metrics["step"] == 2: break
kept = [trainer]; kept.append(kept)  # no count of references comes to 0
if os.fork() == 0: sys.exit(0)  # a fork ends without a word
os.wait()
"""
    told = run(sys.executable, "-c", script, text=True)
    assert (told.returncode, told.stderr) == (0, ""), told.stderr
    assert (tmp_path / "run" / "checkpoints" / "sft-000002" / "DONE").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp"))


@needs_program
def test_an_ignored_hangup_stays_ignored(tmp_path):
    process = begun(tmp_path / "run", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


@needs_program
@pytest.mark.parametrize("program", [PROGRAM, STARTER], ids=["program", "starter"])
def test_a_reader_that_goes_does_not_end_the_run(program, tmp_path):
    if not program.exists():
        pytest.skip("the package is not installed")
    reader, writer = os.pipe()
    os.close(reader)
    told = run(program, "train", SFT, f"run.dir={tmp_path}/run", *SHORT, capture_output=False, stdout=writer,
               stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL))  # fmt: skip
    os.close(writer)
    assert (told.returncode, told.stderr) == (0, b"")
    assert (tmp_path / "run" / "summary.json").exists()


@needs_program
def test_a_limit_on_the_size_of_files_is_an_error_that_says_so(tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # noqa: E731  smaller than a checkpoint
    told = run(PROGRAM, "train", SFT, f"run.dir={tmp_path}/run", *SHORT, preexec_fn=limit, text=True)
    assert told.returncode == 1
    assert "File too large" in told.stderr and "bytes needed" in told.stderr and "ulimit -f" in told.stderr


# ---- output that is lost ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run in a folder with a space, of an alphabet of bytes; and what it printed."""
    folder = tmp_path_factory.mktemp("a run")
    told = run(PROGRAM, "train", SFT, "run.dir=of bytes", "tokenizer={kind: bytes}", "model.tie_word_embeddings=true", *SHORT,
               cwd=folder, text=True)  # fmt: skip
    assert told.returncode == 0, told.stderr
    return folder, told.stdout


@needs_program
@needs_full
@pytest.mark.parametrize("words", [["config", SFT], ["config", "--explain"], ["version"], ["--help"], ["sample", "of bytes", "--prompt", "1"],
                                   ["evaluate", "of bytes", SFT, "tokenizer={kind: bytes}", *SHORT]],
                         ids=lambda words: " ".join(map(str, words[:1])))
def test_lost_output_is_an_error(words, trained):
    with open("/dev/full", "w") as full:
        told = run(PROGRAM, *words, cwd=trained[0], capture_output=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert told.returncode == 1
    assert "standard output" in told.stderr and "No space left on device" in told.stderr and "Traceback" not in told.stderr


@needs_full
def test_lost_output_of_a_report_is_an_error(monkeypatch, capsys):
    from isentrope import report

    monkeypatch.setattr(report, "write_page", lambda *_, **__: 1000)
    for place, code, said in [("/dev/full", 1, "No space left on device"), (None, 0, "")]:  # None: a pipe without a reader
        reader, writer = os.pipe()
        os.close(reader)
        with open(place or writer, "w") as lost:
            monkeypatch.setattr(sys, "stdout", lost)
            assert report.main(["run"]) == code
        assert said in capsys.readouterr().err
        if place:
            os.close(writer)


@needs_program
@needs_full
def test_a_lost_console_is_told_and_loses_no_run(tmp_path):
    with open("/dev/full", "w") as full:
        told = run(PROGRAM, "train", SFT, f"run.dir={tmp_path}/run", *SHORT, capture_output=False, stdout=full,
                   stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert told.returncode == 1 and "summary.json" in told.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())[0]["phase"] == "sft"


@needs_program
def test_a_reader_of_a_command_may_go(trained):
    told = run("bash", "-c", f"set -o pipefail; {shlex.quote(str(PROGRAM))} config --explain | head -1")
    assert told.returncode == 0 and told.stderr == b"" and told.stdout.count(b"\n") == 1


# ---- the commands that are printed --------------------------------------------------------------------------------------


def printed(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(name + "  ")]
    return line.removeprefix(name).strip()


@needs_program
def test_printed_commands_do_what_they_say(tmp_path):
    data = tmp_path / "it's [data].jsonl"
    data.write_text("".join(json.dumps({"prompt": f"what's {i} + {j}?", "completion": f"{i + j}", "answer": f"{i + j}"}) + "\n"
                            for i in range(9) for j in range(9)))  # fmt: skip
    words = [PROGRAM, "train", SFT, "run.dir=runs/it's one", "tokenizer={kind: bytes}",
             f"phases.0.data={{jsonl: {{path: {json.dumps(str(data))}}}}}", *SHORT]  # fmt: skip
    told = run(*words, cwd=tmp_path, text=True)
    assert told.returncode == 0, told.stderr
    assert "…" not in told.stdout and "..." not in told.stdout and "steps=N" not in told.stdout

    def shell(command):
        done = run("sh", "-c", command, cwd=tmp_path, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout

    assert Path(tmp_path, printed(told.stdout, "Checkpoint"), "DONE").exists()
    assert shell(printed(told.stdout, "Sample")).startswith("what's ")
    if importlib.util.find_spec("transformers"):
        assert "LlamaForCausalLM" in shell(printed(told.stdout, "Python"))
    resumed = shell(printed(told.stdout, "Resume"))
    assert printed(resumed, "Resume").endswith(" --resume phases.sft.steps=12") and resumed.count("phases.sft.steps=") == 1

    refused = run(*words, cwd=tmp_path, text=True)
    assert refused.returncode == 1
    another = refused.stderr[refused.stderr.index("folder: ") + len("folder: "):].strip()
    shell(shlex.join(map(str, words)) + " " + another)
    assert (tmp_path / "runs" / "it's one-2" / "summary.json").exists()


@needs_program
def test_the_printed_resume_command_trains_on(tmp_path):
    told = run(PROGRAM, "train", SFT, "run.dir=a run", *SHORT, cwd=tmp_path, text=True)
    assert run("sh", "-c", printed(told.stdout, "Resume"), cwd=tmp_path).returncode == 0
    assert [line["step"] for line in lines_of(tmp_path / "a run") if "loss" in line] == [1, 2, 3, 4, 5, 6]


@needs_program
def test_a_start_at_the_end_of_the_last_phase(trained, tmp_path):
    start = next((trained[0] / "of bytes" / "checkpoints").iterdir())
    told = run(PROGRAM, "train", SFT, f"run.dir={tmp_path}/run", f"run.start={start}", "tokenizer={kind: bytes}", *SHORT, text=True)
    assert told.returncode in (0, 1) and "Traceback" not in told.stderr
    for line in told.stdout.splitlines():
        if line.startswith("Checkpoint"):
            assert Path(line.split(None, 1)[1], "DONE").exists()


# ---- the command line -----------------------------------------------------------------------------------------------------


@needs_program
def test_prompts_reach_the_model_whole(trained):
    prompts = ["[3+4=,5+2=]", "[]", "-3+4=", "--samples", "[[1]]", "{a}", '"', "a\nb", "é", "train"]
    told = run(PROGRAM, "sample", "of bytes", "--max-new-tokens", "1", *(word for p in prompts for word in ("--prompt", p)), cwd=trained[0])
    assert told.returncode == 0, told.stderr
    text = told.stdout.decode()  # strictly
    at = 0
    for prompt in prompts:
        at = text.index(prompt, at) + len(prompt)
    empty = run(PROGRAM, "sample", "of bytes", "--prompt", "", cwd=trained[0], text=True)
    assert empty.returncode == 1 and "--prompt" in empty.stderr


@needs_program
def test_completions_of_bytes_are_utf8(trained):
    told = run(PROGRAM, "sample", "of bytes", "--prompt", "1", "--samples", "50", "--max-new-tokens", "3", cwd=trained[0])
    assert "\ufffd" in told.stdout.decode()  # strictly: an untrained model draws bytes that are no characters


@needs_program
@pytest.mark.parametrize("words, wanted", [(["trian", "x.yaml"], "'train'"), ([], "train, config"), (["sample", "x", "--promt", "1"], "'--prompt'"),
                                           (["train"], "config"), (["train", "x.yaml", "--resum"], "'--resume'")],
                         ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_words_name_the_right_ones(words, wanted):
    told = run(PROGRAM, *words, text=True)
    assert told.returncode == 2 and wanted in told.stderr and told.stdout == ""
    assert "--help" in told.stderr


@needs_program
@pytest.mark.parametrize("overrides, wanted", [
    (["model.intermediate_size=1000000000000"], "1 to 1048576"), (["model.intermediate_size=1000000", "model.hidden_size=1024"], "GiB"), (["model.max_position_embeddings=4611686018427387904"], ""), (["phases.0.name=" + "x" * 300], ""),
    (["run.dir=" + "y" * 300], "run.dir"), (["tokenizer.characters=" + "z" * 100000], "")], ids=lambda value: value[0][:20] if isinstance(value, list) else "")
def test_messages_are_ours_and_no_longer_than_a_screen(overrides, wanted, tmp_path):
    told = run(PROGRAM, "train", SFT, f"run.dir={tmp_path}/run", *SHORT, *overrides, cwd=tmp_path, text=True)
    assert told.returncode == 1 and told.stderr.startswith("isentrope: ") and wanted in told.stderr
    assert len(told.stderr) < 1700
    for raw in ("frame #", "std::", "map::at", "filesystem error", "SymInt", "c10::", "basic_string", "vector::"):
        assert raw not in told.stderr


@needs_program
def test_a_character_without_shape_is_named_and_the_sentence_goes_on(tmp_path):
    data = tmp_path / "nul.jsonl"
    data.write_text("".join(f'{{"prompt": "{i}\\u00002", "completion": "3."}}\n' for i in range(100)))
    told = run(PROGRAM, "train", SFT, f"run.dir={tmp_path}/run", *SHORT, f"phases.0.data={{jsonl: {{path: {data}}}}}", text=True)
    assert told.returncode == 1 and "U+0000" in told.stderr and "alphabet" in told.stderr


# ---- scripts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(set((ROOT / "scripts").glob("*.sh")) - {ROOT / "scripts" / "finding.sh"}), ids=lambda path: path.name)
def test_a_script_tells_of_itself_and_does_nothing(script, tmp_path):
    # A bare environment, in which setup would have to install everything.
    for word, code in [("--help", 0), ("-h", 0), ("--nonsense", None)]:
        told = run("env", "-i", f"PATH={tmp_path}:/usr/bin:/bin", "bash", script, word, cwd=tmp_path, text=True, timeout=20)
        if code == 0:
            assert told.returncode == 0 and script.name in told.stdout and told.stderr == ""
        else:
            assert told.returncode in (1, 2) and "--nonsense" in told.stderr and told.stdout == ""


# ---- files that others read -----------------------------------------------------------------------------------------------


@pytest.fixture
def strange(tmp_path):
    """A run whose texts hold what str.splitlines() splits at, with numbers that are not finite and a torn last line."""
    lines = [{"phase": "sft\u2028\u0085x", "step": 1, "loss": 1.5, "generated": 3}, {"phase": "grpo", "step": 1, "reward/a\u2028b": 0.5, "loss": None},
             {"phase": "grpo", "step": 1, "eval/split": "test", "eval/greedy": None, "eval/sampled": math.nan, "eval/pass@2": math.inf,
              "eval/entropy": 0.5, "eval/length": 2.0, "eval/loss": 3.0}]  # fmt: skip
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"phase": "grpo", "step": 2, "lo', encoding="utf-8")
    return tmp_path


def test_the_reader_splits_at_the_end_of_a_line_alone(strange):
    reader = load("python/isentrope/json_lines.py")
    first, second, third = reader.read(strange / "metrics.jsonl")
    assert first["phase"] == "sft\u2028\u0085x" and second["reward/a\u2028b"] == 0.5
    assert third["eval/sampled"] is None and third["eval/pass@2"] is None
    assert list(reader.read(strange / "nowhere")) == []
    for damaged in (b"rubbish\n", b"[1]\n", b'{"phase": 1, "step": 2}\n', b'{"phase": "a"}\n', b"\xff\n", b"[" * 100000 + b"\n"):
        (strange / "metrics.jsonl").write_bytes(b'{"phase": "a", "step": 1}\n' + damaged)
        with pytest.raises(reader.LineError, match=r"metrics\.jsonl:2: "):
            list(reader.read(strange / "metrics.jsonl"))


def test_compare_and_stability_read_them(strange):
    table = pytest.importorskip("isentrope.compare.table")
    (point,) = table.evaluations(strange, "grpo")
    assert point["greedy"] is None and point["entropy"] == 0.5 and table.common_level([[point]]) is None
    from isentrope.stability.runs import measure

    measured = measure(strange, "not finite")
    assert measured["steps"] == 2 and measured["test"] == 3.0


def test_tensorboard_reads_them(strange):
    pytest.importorskip("tensorboard")
    isentrope = pytest.importorskip("isentrope")
    paths = os.pathsep.join([str(Path(isentrope.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    told = run(sys.executable, "-m", "isentrope.tensorboard", strange, env={"PYTHONPATH": paths, "LC_ALL": "C"}, text=True)
    assert (told.returncode, told.stdout) == (0, "ready\n"), told.stderr
    with open(strange / "metrics.jsonl", "a") as file:
        file.write("rubbish\n")
    told = run(sys.executable, "-m", "isentrope.tensorboard", strange, env={"PYTHONPATH": paths}, text=True)
    assert told.returncode == 1 and "metrics.jsonl:4: " in told.stdout and "Traceback" not in told.stderr


def test_report_reads_them(strange):
    pytest.importorskip("matplotlib")
    from isentrope.report.runs import read_run

    assert read_run(strange).lengths == {"sft\u2028\u0085x": 1, "grpo": 1}
