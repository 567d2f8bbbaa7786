"""Runs of several ranks: what is computed and saved is that of one rank, and a rank that is wrong or gone ends the run by name.

Ranks are started by the variables that torchrun sets, and by torchrun itself where that is what is tested. All is on the loopback."""

import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "tiny"
UNEQUAL = {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu", "sigma/time_share", "representation/time_share", "ranks/bytes", "cache/preempted"}
# Of 32-bit rounding after 50 steps, as shares of the value. What a figure of few tokens (a maximum, a norm) makes of it is more.
ROUNDING, OF_FEW = 1e-4, 1e-2
FEW = re.compile(r".*/max|grad_norm|cov/.*")


def binary() -> str:
    build = os.environ.get("ISENTROPE_BUILD")
    path = os.path.join(build, "bin", "isentrope") if build else shutil.which("isentrope")
    assert path, "no isentrope on the PATH; install the package, or name a build folder: ISENTROPE_BUILD=build/release"
    return os.path.abspath(path)


def has_ranks() -> bool:
    told = subprocess.run([binary(), "version"], capture_output=True, text=True).stdout
    return "\nranks: Gloo" in told


pytestmark = pytest.mark.skipif(not has_ranks(), reason="this build has one rank (libgloo-dev was not there)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(ranks, folder, config, *overrides, resume=False, port=None, only=None, each=None):
    """One process a rank; each: further overrides of a rank."""
    port = port or free_port()
    processes = []
    for rank in range(ranks) if only is None else only:
        words = [binary(), "train", str(config), f"run.dir={folder}", "run.threads=1", "run.timeout_s=60", *overrides]
        words += (each or {}).get(rank, []) + (["--resume"] if resume else [])
        variables = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        variables = {name: str(value) for name, value in variables.items()} if ranks > 1 else {}
        processes.append(subprocess.Popen(words, cwd=ROOT, env={**os.environ, **variables}, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
    return processes


def end(processes, limit=120):
    """(exit code, all text) of each."""
    try:
        told = [process.communicate(timeout=limit) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, out + err) for process, (out, err) in zip(processes, told)]


def train(ranks, folder, config, *overrides, **more):
    results = end(start(ranks, folder, config, *overrides, **more))
    assert all(code == 0 for code, _ in results), results
    return folder


def metrics(folder):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines() if not line.startswith('{"run"')]
    return [{key: value for key, value in line.items() if key not in UNEQUAL} for line in lines]


def numbers(value):
    if isinstance(value, dict):
        return [x for key in sorted(value) for x in numbers(value[key])]
    if isinstance(value, list):
        return [x for one in value for x in numbers(one)]
    return [value]


def assert_within_rounding(actual, expected, factor=1):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert one.keys() == other.keys()
        for key in one:
            allowed = factor * (OF_FEW if FEW.fullmatch(key) else ROUNDING)
            for x, y in zip(numbers(one[key]), numbers(other[key]), strict=True):
                same = x == y if isinstance(x, str) or x is None else math.isclose(x, y, rel_tol=allowed, abs_tol=allowed)
                assert same, f"{one['phase']} step {one['step']}: {key} is {x}, of one rank {y}"


def checkpoint(folder, name):
    return Path(folder) / "checkpoints" / name


# ---- what is computed ----------------------------------------------------------------------------------------------

SFT = ["phases.sft.steps=50", "phases.sft.evaluation.every=25", "run.checkpoint_every=0"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return {"sft": train(1, folder / "sft", TINY / "sft.yaml", *SFT)}


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_fifty_steps_are_those_of_one_rank(alone, tmp_path, ranks):
    folder = train(ranks, tmp_path / "run", TINY / "sft.yaml", *SFT)
    assert_within_rounding(metrics(folder), metrics(alone["sft"]))
    logs = {path.name for path in (folder / "ranks").iterdir()}
    assert logs == {f"{rank}.log" for rank in range(1, ranks)}
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["run"]["ranks"] == ranks
    # Weights and gradients, once each; with little beside them.
    least = 2 * (ranks - 1) * 4 * steps[0]["run"]["trained"]
    assert all(least <= line["ranks/bytes"] < 1.1 * least for line in steps if "ranks/bytes" in line)


VARIANTS = {
    "muon": ["phases.sft.optimizer={kind: muon, lr: 0.008}"],
    "sgd": ["phases.sft.optimizer={kind: sgd, lr: 0.05, betas: [0.9]}"],
    "packing, micro-batches": ["phases.sft.data.packing=true", "phases.sft.batch.micro_tokens=100"],
    "penalty, qk_clip": ["phases.sft.objective.attention_entropy.coef=0.5", "model.attention.qk_clip=0.3"],
    "penalty, sum": ["phases.sft.objective.attention_entropy={coef: 0.01, reduction: sum}", "model.recompute=blocks"],
}  # fmt: skip


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_other_updates_are_those_of_one_rank(tmp_path, overrides):
    words = [*overrides, "phases.sft.steps=12", "phases.sft.evaluation.every=0", "test.skip=true", "run.checkpoint_every=0"]
    one, three = (train(ranks, tmp_path / str(ranks), TINY / "sft.yaml", *words) for ranks in (1, 3))
    # Muon's iterations are in bfloat16: where a sum rounds the other way, 2^-9 of an update are another.
    assert_within_rounding(metrics(three), metrics(one), factor=30 if "muon" in overrides[0] else 1)


@pytest.mark.parametrize("config", ["pretrain", "sigma"])
def test_text_and_spectral_norms_are_those_of_one_rank(tmp_path, config):
    words = [f"phases.{'pretrain'}.steps=20"]
    one, two = (train(ranks, tmp_path / str(ranks), TINY / f"{config}.yaml", *words) for ranks in (1, 2))
    assert_within_rounding(metrics(two), metrics(one))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A model that has learnt a little, for policies to start from."""
    return train(1, tmp_path_factory.mktemp("start") / "sft", TINY / "grpo.yaml", "phases.grpo.steps=1", "test.skip=true")


def grpo(start, config, steps, *more):
    name = "run.start=" + str(checkpoint(start, "sft-000060"))
    return [name, f"phases.grpo.steps={steps}", "phases.grpo.rollout.save_every=1", "phases.grpo.batch.micro_tokens=0",
            'phases.grpo.reward=[{kind: answer, weight: 0.5}, {kind: format, weight: 0.5, pattern: ".*A[0-9][0-9]"}]', "phases.grpo.evaluation={every: 1, prompts: 8, sampled_prompts: 8, num_generations: 4}",
            *more]  # fmt: skip


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("config", ["grpo", "grpo_clip_cov"])
def test_rollouts_selection_and_evaluation_are_those_of_one_rank(tmp_path, policy, ranks, config):
    """The first step draws by the same weights: bit for bit the same completions, scores and selection. The rate is small, so that
    later steps do not part by a token that rounding has flipped."""
    words = grpo(policy, config, 3, "phases.grpo.optimizer.lr=1e-9", "phases.grpo.schedule.warmup_steps=0")
    one, many = (train(n, tmp_path / str(n), TINY / f"{config}.yaml", *words) for n in (1, ranks))
    first = [(f / "rollouts" / "grpo.jsonl").read_text().splitlines() for f in (one, many)]
    assert len(first[0]) == len(first[1]) == 3 * 8 * 4
    assert first[0][:32] == first[1][:32]
    for a, b in zip(metrics(one), metrics(many)):
        if "select/frac" in a and a["step"] == 1:
            assert math.isclose(a["select/frac"], b["select/frac"], rel_tol=1e-6) and a["select/frac"] > 0  # one token: 2e-3
    assert_within_rounding(metrics(many), metrics(one))


def test_the_reward_kl_is_that_of_one_rank(tmp_path, policy):
    """Each rank scores its share of the completions by the reference."""
    words = grpo(policy, "grpo", 2, "phases.grpo.optimizer.lr=1e-9", f"phases.grpo.objective.reference={{from: {checkpoint(policy, 'grpo-000001')}}}",
                 "phases.grpo.reward=[{kind: answer}, {kind: kl, coef: 0.5, estimator: abs}]")  # fmt: skip
    one, three = (train(n, tmp_path / str(n), TINY / "grpo.yaml", *words) for n in (1, 3))
    first = [[json.loads(line)["kl"] for line in (f / "rollouts" / "grpo.jsonl").read_text().splitlines()[:32]] for f in (one, three)]
    assert first[1] == pytest.approx(first[0], rel=1e-4) and max(first[0]) < 0
    assert_within_rounding(metrics(three), metrics(one))


def test_weights_of_an_update_and_what_drew_it_are_those_of_one_rank(tmp_path, policy):
    """Two ranks have half of the update each, and quantiles, means and mismatch are of all of it."""
    words = grpo(policy, "grpo", 2, "phases.grpo.optimizer.lr=1e-9", "phases.grpo.schedule.warmup_steps=0", "phases.grpo.rollout.top_p=0.8",
                 "phases.grpo.weight=[{kind: correction}, {kind: steer, low: 0.5}, {kind: top_entropy, fraction: 0.5}]")  # fmt: skip
    one, two = (train(n, tmp_path / str(n), TINY / "grpo.yaml", *words) for n in (1, 2))
    first = [[json.loads(line) for line in (f / "rollouts" / "grpo.jsonl").read_text().splitlines()[:32]] for f in (one, two)]
    assert [line["sampling_logprob"] for line in first[0]] == [line["sampling_logprob"] for line in first[1]]
    assert any(x > y for line in first[1] for x, y in zip(line["sampling_logprob"], line["logprob"], strict=True))
    assert_within_rounding(metrics(two), metrics(one))
    assert all(line["mismatch/k3"] > 1e-3 and 0 < line["weight/mean"] < 1 for line in metrics(two) if "weight/mean" in line)


def test_gradient_noise_of_ranks(tmp_path):
    """Their first micro-batches are its parts; what is told goes with the norm of the whole."""
    words = ["phases.sft.steps=6", "phases.sft.evaluation.every=0", "test.skip=true", "metrics.gradient_noise_scale=2"]
    for overrides in ([], ["phases.sft.batch.micro_tokens=50"]):
        folder = train(3, tmp_path / str(len(overrides)), TINY / "sft.yaml", *words, *overrides)
        for line in metrics(folder):
            assert ("gradient_noise/trace" in line) == (line["step"] % 2 == 0)
            if line["step"] % 2 == 0:
                assert math.isclose(line["gradient_noise/square"] + line["gradient_noise/trace"] / 8, line["grad_norm"] ** 2, rel_tol=1e-6)


def test_the_representation_of_ranks_is_that_of_one(tmp_path):
    """Rank 0 measures the first tokens of the whole update, more than its own share of them."""
    words = ["phases.sft.steps=2", "phases.sft.evaluation.every=0", "test.skip=true", "metrics.representation={every: 2, tokens: 100, first: 2, last: 8}"]
    one, three = (metrics(train(n, tmp_path / str(n), TINY / "sft.yaml", *words)) for n in (1, 3))
    figures = [{key: value for key, value in lines[1].items() if key.startswith(("representation/", "spectrum/"))} for lines in (one, three)]
    assert figures[0]["representation/tokens"] == 100 and figures[1] == pytest.approx(figures[0], rel=1e-4)


def test_evaluation_is_that_of_one_rank_bit_for_bit(tmp_path, policy):
    """After no step but the first of rate nearly 0: weights of one rank stand in the run that two ranks go on with."""
    for ranks in (1, 3):
        shutil.copytree(policy, tmp_path / str(ranks))
        shutil.rmtree(checkpoint(tmp_path / str(ranks), "grpo-000001"))
    found = []
    for ranks in (1, 3):
        folder = tmp_path / f"of_{ranks}"
        name = "run.start=" + str(checkpoint(policy, "sft-000060"))
        train(ranks, folder, TINY / "grpo.yaml", name, "phases.grpo.steps=1", "phases.grpo.optimizer={lr: 1e-30, weight_decay: 0}",
              "phases.grpo.evaluation={every: 1, prompts: 7, sampled_prompts: 5, num_generations: 3}")  # fmt: skip
        found.append([{k: v for k, v in line.items() if "eval" in k} for line in metrics(folder) if "eval/split" in line])
        found[-1].append((folder / "samples.jsonl").read_text())
    assert found[0] == found[1] and len(found[0]) == 3


def test_two_runs_of_as_many_ranks_are_equal_bit_for_bit(tmp_path, policy):
    a, b = (train(3, tmp_path / n, TINY / "grpo_clip_cov.yaml", *grpo(policy, "grpo_clip_cov", 6)) for n in "ab")
    assert metrics(a) == metrics(b)
    assert (a / "rollouts" / "grpo.jsonl").read_text() == (b / "rollouts" / "grpo.jsonl").read_text()
    for name in ("model.safetensors", "DONE"):
        assert (checkpoint(a, "grpo-000006") / name).read_bytes() == (checkpoint(b, "grpo-000006") / name).read_bytes() or name == "DONE"


def test_a_run_goes_on_with_another_number_of_ranks(alone, tmp_path):
    """Stopped at step 20 of 3 ranks. On 3 it is bit for bit the unbroken run of 3, on 2 and on 1 that of one within rounding."""
    words = [*SFT[1:2], "run.checkpoint_every=20"]
    whole = train(3, tmp_path / "whole", TINY / "sft.yaml", "phases.sft.steps=50", *words)
    for name in ("sft-000040", "sft-000050"):
        assert checkpoint(whole, name).is_dir()
    for ranks in (3, 2, 1):
        folder = tmp_path / str(ranks)
        shutil.copytree(whole, folder)
        shutil.rmtree(checkpoint(folder, "sft-000050"))
        train(ranks, folder, TINY / "sft.yaml", "phases.sft.steps=50", *words, resume=True)
        assert_within_rounding(metrics(folder), metrics(alone["sft"]))
        same = [(checkpoint(f, "sft-000050") / "model.safetensors").read_bytes() for f in (whole, folder)]
        assert ranks != 3 or same[0] == same[1]


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "each, told",
    [
        ({1: ["run.seed=2"]}, "run.seed is 1 on rank 0, and 2 on rank 1"),
        ({2: ["phases.sft.optimizer.lr=1.0"]}, "phases.sft.optimizer.lr is .* on rank 0, and 1.0 on rank 2"),
        ({r: ["phases.sft.batch.sequences=2"] for r in range(3)}, "batch.sequences: an update has 2 sequences, and there are 3 ranks"),
        ({r: ["phases.sft.objective.attention_entropy.coef=1", "phases.sft.batch.micro_tokens=99"] for r in range(3)},
         "attention_entropy.coef: its penalty speaks of a micro-batch"),
    ],
)  # fmt: skip
def test_ranks_that_do_not_fit_are_refused_on_all(tmp_path, each, told):
    results = end(start(3, tmp_path / "run", TINY / "sft.yaml", each=each))
    assert [code for code, _ in results] == [1, 1, 1]
    assert all(re.search(told, text) for _, text in results), results
    assert not (tmp_path / "run").exists()


def test_ranks_that_see_other_files_are_refused(tmp_path):
    """As two machines do whose folders are called alike: here by the working folder of each."""
    lines = [json.dumps({"prompt": f"a+{i}=", "completion": "7"}) for i in range(8)]
    port, processes = free_port(), []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "data.jsonl").write_text("\n".join(lines[rank:]) + "\n")
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        words = [binary(), "train", str(TINY / "sft.yaml"), f"run.dir={tmp_path}/run", "run.timeout_s=30", "test.skip=true",
                 "phases.sft.data={jsonl: {path: data.jsonl}}", "phases.sft.evaluation.every=0"]  # fmt: skip
        processes.append(subprocess.Popen(words, cwd=tmp_path / str(rank), env={**os.environ, **variables}, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
    results = end(processes)
    assert all(code == 1 and "all ranks must see the same files" in text for code, text in results), results
    assert not (tmp_path / "run").exists()


def test_a_rank_that_sees_another_checkpoint_is_refused_and_changes_nothing(tmp_path):
    short = ["phases.sft.evaluation.every=0", "test.skip=true", "run.checkpoint_every=3", f"run.dir={tmp_path}/at/run"]
    for rank in range(2):
        (tmp_path / f"rank{rank}").mkdir()
    (tmp_path / "at").symlink_to("rank0")
    train(1, tmp_path / "at" / "run", TINY / "sft.yaml", *short, "phases.sft.steps=3")
    before = {path: path.read_bytes() for path in (tmp_path / "rank0").rglob("*") if path.is_file() and path.name != "lock"}
    # Folders of one name on two machines: to each rank its own.
    link = ["unshare", "-rm", "sh", "-c", f'mount --bind {tmp_path}/rank1 {tmp_path}/rank0 && exec "$0" "$@"']
    if subprocess.run([*link, "true"], capture_output=True).returncode:
        pytest.skip("no mount of one's own here")
    port, processes = free_port(), []
    for rank, words in enumerate([[], link]):
        variables = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        words = [*words, binary(), "train", str(TINY / "sft.yaml"), *short, "phases.sft.steps=6", "run.timeout_s=60", "--resume"]
        processes.append(subprocess.Popen(words, cwd=ROOT, env={**os.environ, **{k: str(v) for k, v in variables.items()}},
                                          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
    for code, err in end(processes):
        assert code == 1, err
        assert "all ranks must see the same files" in err and "the checkpoint to go on from" in err, err
    assert {path: path.read_bytes() for path in before} == before


LEAVES = """
import warnings, isentrope
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    trainer = isentrope.Trainer({config!r}, overrides={overrides!r})
    steps = sum(1 for _ in trainer)
print(trainer.finished, any("time limit" in str(one.message) for one in caught), steps > 0)
"""


def test_python_leaves_on_all_ranks_where_one_has_no_time_left(tmp_path):
    overrides = [f"run.dir={tmp_path}/run", "run.threads=1", "run.timeout_s=30", "phases.sft.steps=1000000", "phases.sft.evaluation.every=0"]
    script = LEAVES.format(config=str(TINY / "sft.yaml"), overrides=overrides)
    port, processes = free_port(), []
    for rank in range(2):
        variables = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        if rank == 1:
            variables["SLURM_JOB_END_TIME"] = int(time.time()) + 60 + 15
        processes.append(subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                          env={**os.environ, **{k: str(v) for k, v in variables.items()}},
                                          stderr=subprocess.PIPE))  # fmt: skip
    for code, told in end(processes):
        assert code == 0, told
        assert told.startswith("False True True"), told


def test_scope_micro_is_refused(tmp_path, policy):
    results = end(start(2, tmp_path / "run", TINY / "grpo_clip_cov.yaml", "phases.grpo.objective.scope=micro"))
    assert all(code == 1 and "objective.scope: micro" in text for code, text in results), results
    results = end(start(2, tmp_path / "run", TINY / "grpo.yaml", "phases.grpo.weight=[{kind: top_entropy, scope: micro}]"))
    assert all(code == 1 and "phases.grpo.weight.0.scope: micro takes statistics of micro-batches" in text for code, text in results), results


def test_a_folder_with_a_run_is_refused_on_all(alone):
    before = (alone["sft"] / "metrics.jsonl").read_bytes()
    results = end(start(2, alone["sft"], TINY / "sft.yaml"))
    assert all(code == 1 and "already holds a run" in text for code, text in results), results
    assert (alone["sft"] / "metrics.jsonl").read_bytes() == before


def test_a_rank_that_does_not_come_is_named(tmp_path):
    begun = time.monotonic()
    [(code, text)] = end(start(3, tmp_path / "run", TINY / "sft.yaml", "run.timeout_s=2", only=[0]))
    assert code == 1 and "rank 1, 2 of 3 did not come" in text and "run.timeout_s (2)" in text
    [(code, text)] = end(start(3, tmp_path / "run", TINY / "sft.yaml", "run.timeout_s=2", only=[2]))
    assert code == 1 and "rank 0 cannot be reached" in text
    assert time.monotonic() - begun < 30 and not (tmp_path / "run").exists()


def test_a_port_in_use_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        [(code, text)] = end(start(2, tmp_path / "run", TINY / "sft.yaml", "run.timeout_s=2", only=[0], port=taken.getsockname()[1]))
    assert code == 1 and "--master-port" in text and "in use" in text


@pytest.mark.parametrize(
    "variables, told",
    [
        ({"WORLD_SIZE": "2"}, "MASTER_PORT is ''|RANK is ''"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_PORT": "1", "MASTER_ADDR": "127.0.0.1"}, "RANK is 2, and WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
    ],
)
def test_wrong_variables_are_told(tmp_path, variables, told):
    done = subprocess.run([binary(), "train", str(TINY / "sft.yaml"), f"run.dir={tmp_path}/run"], capture_output=True, text=True,
                          env={**os.environ, **variables}, cwd=ROOT, timeout=60)  # fmt: skip
    assert done.returncode == 1 and re.search(told, done.stderr), done.stderr


# ---- what breaks ---------------------------------------------------------------------------------------------------


def wait_for(path, limit=60):
    until = time.monotonic() + limit
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


LONG = ["phases.sft.steps=100000", "phases.sft.schedule.kind=constant", "phases.sft.evaluation.every=0", "run.checkpoint_every=5"]


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_others(tmp_path, victim, how):
    if victim == 0 and how == signal.SIGSTOP:
        pytest.skip("without torchrun rank 0 has the store, and is reached as little as one that is dead")
    folder = tmp_path / "run"
    processes = start(3, folder, TINY / "sft.yaml", *LONG, "run.timeout_s=3")
    wait_for(checkpoint(folder, "sft-000010"))
    begun = time.monotonic()
    processes[victim].send_signal(how)
    others = [process for rank, process in enumerate(processes) if rank != victim]
    for process in others:
        process.wait(timeout=30)
    assert time.monotonic() - begun < 20
    results = end(others) if how == signal.SIGKILL else [(p.returncode, "") for p in others]
    processes[victim].kill()
    assert all(code == 1 for code, _ in results)
    log = (folder / "ranks" / "1.log").read_text()
    assert "could not be completed by all 3 ranks" in log and (f"rank {victim} did not come" in log or victim == 0)
    # What stands there is whole, and the run goes on from it.
    saved = max(path.name for path in (folder / "checkpoints").iterdir() if (path / "DONE").exists())
    step = int(saved.rsplit("-", 1)[1])
    train(2, folder, TINY / "sft.yaml", *LONG, f"phases.sft.steps={step + 3}", "test.skip=true", resume=True)
    assert metrics(folder)[-1]["step"] == step + 3


def test_one_signal_stops_all_ranks_after_the_same_step(tmp_path):
    folder = tmp_path / "run"
    processes = start(3, folder, TINY / "sft.yaml", *LONG)
    wait_for(checkpoint(folder, "sft-000005"))
    processes[1].send_signal(signal.SIGTERM)
    results = end(processes)
    assert [code for code, _ in results] == [128 + signal.SIGTERM] * 3, results
    assert "Stopped. Checkpoint: " in results[0][1]
    step = metrics(folder)[-1]["step"]
    assert checkpoint(folder, f"sft-{step:06}").is_dir()


REWARD = """
import os

def reward(prompts, completions, meta):
    if os.environ.get("RANK") == "1" and calls() > 2:
        raise ValueError("this one cannot count")
    return [float(len(c)) / 20 for c in completions]

def calls(n=[0]):
    n[0] += 1
    return n[0]
"""


def test_a_reward_that_raises_on_one_rank_stops_all_and_the_step_before_is_saved(tmp_path, policy):
    (tmp_path / "mine.py").write_text(REWARD)
    words = ["run.start=" + str(checkpoint(policy, "sft-000060")), f"phases.grpo.reward=[{{kind: python, function: '{tmp_path}/mine.py:reward'}}]",
             "phases.grpo.evaluation.every=0", "test.skip=true", "run.checkpoint_every=0"]  # fmt: skip
    config = tmp_path / "grpo.yaml"
    config.write_text((TINY / "grpo.yaml").read_text())
    folder = tmp_path / "run"
    port = free_port()
    processes = []
    for rank in range(2):
        command = [binary(), "train", str(config), f"run.dir={folder}", "run.threads=1", "run.timeout_s=30", *words]
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ISENTROPE_PYTHON": sys.executable}
        processes.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
    results = end(processes)
    assert all(code != 0 for code, _ in results), results
    assert "rank 1: " in results[0][1] and "cannot count" in results[0][1], results[0][1]
    step = metrics(folder)[-1]["step"]
    assert step >= 1 and (checkpoint(folder, f"grpo-{step:06}") / "DONE").exists()


# ---- torchrun ------------------------------------------------------------------------------------------------------


def as_shown(folder, *overrides):
    """The commands of README.md's section, for this program, a tiny configuration and a port that is free."""
    section = (ROOT / "README.md").read_text().split("## More than one process")[1]
    names = {"torchrun": [sys.executable, "-m", "torch.distributed.run", "--master-port", str(free_port())],
             "isentrope": [binary()], "configs/quickstart.yaml": [str(TINY / "sft.yaml"), f"run.dir={folder}", *overrides]}  # fmt: skip
    shown = [shlex.split(line) for line in section.split("```")[1].splitlines()[1:]]
    assert shown[0][0] == "torchrun" and shown[1][0] == "isentrope" and shown[1][-1] == "--resume"
    return [[part for word in words for part in names.get(word, [word])] for words in shown]


def test_torchrun_starts_ranks_and_one_process_goes_on(tmp_path):
    folder = tmp_path / "run"
    short = ["run.checkpoint_every=0", "phases.sft.evaluation.every=0", "phases.sft.schedule.kind=constant"]
    for number, steps in ((0, 20), (1, 30)):
        command = as_shown(folder, *short, f"phases.sft.steps={steps}")[number]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Checkpoint  ") == 1, "the console is rank 0's alone"
        assert ("2 ranks of " in done.stdout) == (number == 0)
        assert metrics(folder)[-1]["step"] == steps
    headers = [json.loads(line)["run"] for line in (folder / "metrics.jsonl").read_text().splitlines() if line.startswith('{"run"')]
    assert [header.get("ranks") for header in headers] == [2, None]


def test_torchrun_of_one_is_one_rank(alone, tmp_path):
    folder = tmp_path / "run"
    command = as_shown(folder, "run.threads=1", *SFT)[0]
    command[command.index("--nproc-per-node") + 1] = "1"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert metrics(folder) == metrics(alone["sft"]) and not (folder / "ranks").exists()


# ---- hours, by scripts/check.sh --full -----------------------------------------------------------------------------


@pytest.mark.skipif(not os.environ.get("ISENTROPE_RANK_KILLS"), reason="scripts/check.sh --full kills ranks at random moments")
@pytest.mark.parametrize("number", range(int(os.environ.get("ISENTROPE_RANK_KILLS") or 0)))
def test_kills_at_random_moments(tmp_path, policy, number):
    """Any rank, any moment: the others end in time, and the run resumed is the unbroken one."""
    draw = random.Random(number)
    ranks, kind = draw.choice([2, 3]), draw.choice(["sft", "grpo"])
    if kind == "sft":
        words = (TINY / "sft.yaml", *SFT[:2], "run.checkpoint_every=5")
        last = "sft-000050"
    else:
        words = (TINY / "grpo.yaml", *grpo(policy, "grpo", 10), "run.checkpoint_every=2")
        last = "grpo-000010"
    whole = train(ranks, tmp_path / "whole", *words)
    folder = tmp_path / "killed"
    processes = start(ranks, folder, *words, "run.timeout_s=10")
    time.sleep(draw.uniform(0.2, 4))
    processes[draw.randrange(ranks)].kill()
    end(processes, limit=60)
    train(ranks, folder, *words, resume=True)
    assert metrics(folder) == metrics(whole)
    same = [(checkpoint(f, last) / "model.safetensors").read_bytes() for f in (whole, folder)]
    assert same[0] == same[1]
