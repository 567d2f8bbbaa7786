"""A step of each method of configs/methods beside a step of plain clip_higher, in the same rounds: a decoder of 4 layers of 96 after 40 steps of SFT, 16 prompts x 8 completions of
24 tokens at most in 2 updates. The learning rate is so small that no weight changes, so that all draw the same completions and differ by their method alone. ours is the step
with the method, rival the one without; a method's target is 3 %, a ratio of 0.97, but where more is drawn or computed by nature: `aepo` (a second set of a quarter as many
completions), `remax` (a greedy completion a prompt), and `bupo` (an inner layer's policy, which scores the completions anew before the updates).
`entropy_sft` is a step of SFT beside one without weights, 128 sequences."""

import tempfile
from pathlib import Path

import torch
import yaml

import isentrope

from timing import compare, interleaved

ROOT = Path(__file__).resolve().parents[2]
BY_NATURE = {"aepo", "bupo", "remax"}
TARGET = 0.97
MODEL = {"num_hidden_layers": 4, "hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256, "max_position_embeddings": 64}
DRAWS = {"prompts": 16, "num_generations": 8, "max_new_tokens": 24, "min_new_tokens": 24, "mini_batches": 2}
NO_MORE = {"lr": 1e-12, "betas": [0.9, 0.99], "weight_decay": 0.0}
WITHOUT_END = 10**9


def base():
    return yaml.safe_load((ROOT / "configs/methods/repo.yaml").read_text())


def start_of(folder):
    """A checkpoint behind SFT, which all begin from."""
    config = base()
    config["model"] = MODEL
    config["run"] |= {"dir": str(folder / "start"), "checkpoint_every": 0}
    config["phases"] = config["phases"][:1]
    config["phases"][0] |= {"steps": 40, "batch": {"sequences": 32}}
    config["test"] = {"skip": True}
    trainer = trainer_of(folder, "start", config)
    for _ in trainer:
        pass
    return str(folder / "start")


def trainer_of(folder, name, config):
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return isentrope.Trainer(file)


def step_of(folder, name, start, threads, phase):
    """A step of a run that has this phase alone, without evaluations or checkpoints."""
    config = base()
    config["model"] = MODEL
    config["run"] |= {"dir": str(folder / name), "start": start, "threads": threads, "checkpoint_every": 0}
    config["test"] = {"skip": True}
    phase |= {"optimizer": NO_MORE, "schedule": {"kind": "constant", "warmup_steps": 0}, "steps": WITHOUT_END}
    phase.pop("evaluation", None)
    config["phases"] = [phase]
    steps = iter(trainer_of(folder, name, config))
    return lambda: next(steps)


def policy_phase(source):
    """The policy phase of a configuration, with the draws and the prompts of all."""
    phase = source["phases"][-1]
    phase["rollout"] = {key: value for key, value in phase["rollout"].items() if key != "epochs"} | DRAWS
    phase["data"] = {"tint": {"task": "signed_sum", "terms": [3], "mix": "example", "train": 512}}
    return phase


def contenders(folder, threads):
    start = start_of(folder)
    plain = base()["phases"][-1] | {"advantage": [{"kind": "grpo"}], "rollout": dict(DRAWS)}
    # A step of clip that is not looked at stands between the last contender of a round, of SFT, and the first: what that left in the caches is not clip's loss.
    found = {name: step_of(folder, name, start, threads, policy_phase({"phases": [plain | {"rollout": dict(DRAWS)}]})) for name in ("lead", "clip")}
    for file in sorted((ROOT / "configs/methods").glob("*.yaml")):
        if file.stem != "entropy_sft":
            found[file.stem] = step_of(folder, file.stem, start, threads, policy_phase(yaml.safe_load(file.read_text())))
    found["remax"] = step_of(folder, "remax", start, threads, policy_phase({"phases": [plain | {"advantage": [{"kind": "remax"}], "rollout": dict(DRAWS)}]}))
    sft = {"name": "more", "objective": {"kind": "sft"}, "data": {"tint": {"task": "signed_sum", "terms": [3]}}, "batch": {"sequences": 128}}
    found["sft"] = step_of(folder, "sft", start, threads, dict(sft))
    found["entropy_sft"] = step_of(folder, "entropy_sft", start, threads, sft | {"weight": [{"kind": "entropy_sft"}]})
    return found


def rows(rounds=9, threads=1):
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        steps = contenders(Path(folder), threads)
        seconds = interleaved(steps, rounds)
    shape = f"{DRAWS['prompts']} prompts x {DRAWS['num_generations']} x {DRAWS['max_new_tokens']} tokens"
    table = []
    for name in steps:
        if name in ("lead", "clip", "sft"):
            continue
        row = {"op": name, "shape": "128 sequences" if name == "entropy_sft" else shape, "dtype": "float32", "threads": threads}
        row |= compare(seconds, name, "sft" if name == "entropy_sft" else "clip")
        table.append(row if name in BY_NATURE else row | {"target": TARGET})
    return table
