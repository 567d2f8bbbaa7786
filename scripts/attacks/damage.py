"""Damaged files of a run that was stopped: checkpoints, what was logged, the token shards of the corpus cache.

A run is stopped in its last phase and copied; one file of the copy is damaged; then it is resumed, or its newest
checkpoint is asked to complete a prompt, or, for a shard, trained anew. Right is a clear refusal, or harmless: all that the undamaged copy gives, bit for bit.
Where what was logged is gone, a run may go on without it, if it tells so.
"""

import shutil

from attacks.trial import contents, difference, run, run_program, train, workplace

TITLE = "damaged files of a stopped run, then resume, sample, or train from the shard"
COUNTS = {"full": 500, "quick": 24}
RIGHT = {"refused", "harmless", "told"}
SECONDS = 60
# Configuration → overrides that make it short, and the calls of advance() after which it is stopped.
RUNS = {
    "grpo": (["phases.sft.steps=6", "phases.grpo.steps=7", "phases.grpo.evaluation.every=3", "run.checkpoint_every=2"], 10),
    "adaptive": (["phases.sft.steps=6", "phases.grpo.steps=7", "phases.grpo.evaluation.every=3", "run.checkpoint_every=2"], 10),
    "sigma": (["phases.pretrain.steps=8", "phases.pretrain.evaluation.every=3", "run.checkpoint_every=2"], 4),
}
SAMPLE = ["sample", "run", "--prompt", "1+2=", "--samples", "2", "--max-new-tokens", "6"]
READ_BY_SAMPLE = ("DONE", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "trainer.json", "generation_config.json",
                  "special_tokens_map.json")  # fmt: skip
WIDE = {"model.safetensors": 4, "trainer.safetensors": 4, "trainer.json": 3}  # hit more often than one time in the list


def train_of(name, **how):
    overrides, _ = RUNS[name]
    return train(f"configs/tiny/{name}.yaml", ["run.dir=run", *overrides], **how)


def newest(folder):
    return max((path for path in (folder / "run" / "checkpoints").iterdir()), key=lambda path: path.stat().st_mtime_ns)


def must(outcome, what):
    if outcome.kind != "done":
        raise RuntimeError(f"{what}: {outcome.kind}: {outcome.message}")
    return outcome.value


def stopped_run(folder, name):
    """A stopped run and what its copies give: {folder, files, resumed, sampled}."""
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    must(run(train_of(name, steps=RUNS[name][1]), workplace(place), SECONDS), f"the run of {name}")
    whole = folder / f"{name}-whole"
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(place, whole, symlinks=True)
    results = must(run(train_of(name, resume=True), whole, SECONDS), f"the resumed run of {name}")
    sampled = must(run_program(SAMPLE, place, SECONDS), f"sample of {name}")
    checkpoint = newest(place).relative_to(place).as_posix()
    files = [f"{checkpoint}/{path.name}" for path in sorted((place / checkpoint).iterdir()) for _ in range(WIDE.get(path.name, 1))]
    files += [f"run/{name}" for name in ("metrics.jsonl", "metrics.jsonl", "samples.jsonl", "config.yaml", "lock") if (place / "run" / name).exists()]
    return {"folder": place, "checkpoint": checkpoint, "files": files, "resumed": contents(whole / "run"), "results": results, "sampled": sampled}


def prepare(folder, quick):
    names = ["grpo"] if quick else list(RUNS)
    context = {"runs": {name: stopped_run(folder, name) for name in names}}
    # The shards of sigma's corpus: made by its run, used by a run anew.
    shards = folder / "shards"
    shutil.rmtree(shards, ignore_errors=True)
    must(run(train(*shard_run(), steps=2), workplace(shards), SECONDS), "the run that makes the shards")
    shutil.rmtree(shards / "run")
    first = folder / "shards-whole"
    shutil.rmtree(first, ignore_errors=True)
    shutil.copytree(shards, first, symlinks=True)
    must(run(train(*shard_run()), first, SECONDS), "the run on whole shards")
    context["shards"] = {"folder": shards, "files": sorted(p.relative_to(shards).as_posix() for p in (shards / "runs").rglob("*.tokens")),
                         "resumed": contents(first / "run")}  # fmt: skip
    return context


def shard_run():
    """Reads every token of the corpus."""
    return "configs/tiny/pretrain.yaml", ["run.dir=run", "phases.pretrain.steps=12", "phases.pretrain.batch.sequences=32", "phases.pretrain.evaluation.every=0", "run.checkpoint_every=0"]


def damage(rng, path):
    """Damages a file. Returns what was done."""
    data = bytearray(path.read_bytes())
    what = rng.choice(["flip", "flip", "flip", "flips", "cut", "cut at a line's end", "zeros", "append", "append a line", "delete", "empty", "repeat", "digit"])
    if what == "delete":
        path.unlink()
        return what
    if not data and what != "append":
        data, what = bytearray(b"\0"), "append"
    elif what in ("flip", "flips"):
        for _ in range(1 if what == "flip" else 8):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del data[rng.randrange(len(data)) :]
    elif what == "cut at a line's end":
        ends = [i for i, byte in enumerate(data) if byte == 10]
        del data[(rng.choice(ends) + 1 if ends else len(data) // 2) :]
    elif what == "zeros":
        first = rng.randrange(len(data))
        length = min(rng.choice([1, 8, 64, 512]), len(data) - first)
        data[first : first + length] = bytes(length)
    elif what == "append":
        data += rng.randbytes(rng.choice([1, 8, 100]))
    elif what == "append a line":
        data += rng.choice([b"\n", b"{}\n", b"null\n", b'{"phase": "sft", "step": 1}\n'])
    elif what == "empty":
        data.clear()
    elif what == "repeat":  # a part of the file once more behind itself
        first = rng.randrange(len(data))
        data[first:first] = data[first : first + 64]
    elif what == "digit":
        digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
        i = rng.choice(digits) if digits else rng.randrange(len(data))
        data[i] = 48 + (data[i] - 47) % 10
    path.write_bytes(bytes(data))
    return what


def judged(verdict, outcome, differing):
    """The verdict with its class: harmless only where nothing differs."""
    if outcome.kind != "done":
        return verdict | {"class": outcome.kind, "message": outcome.message}
    return verdict | {"class": "silent change" if differing else "harmless", "message": ", ".join(differing)[:500]}


def attack(context, rng, folder, number):
    shard = number % 12 == 11
    name = "shards" if shard else rng.choice(sorted(context["runs"]))
    base = context["shards"] if shard else context["runs"][name]
    file = rng.choice(base["files"])
    client = "train" if shard else "sample" if number % 4 == 3 and file.endswith(READ_BY_SAMPLE) else "resume"
    shutil.rmtree(folder)
    shutil.copytree(base["folder"], folder, symlinks=True)
    original = (folder / file).read_bytes()
    what = damage(rng, folder / file)
    verdict = {"attack": f"{name}: {what} in {file.removeprefix('run/')}, then {client}", "file": file.rsplit("/", 1)[-1] if not shard else "token shard"}
    if (folder / file).exists() and (folder / file).read_bytes() == original:
        return verdict | {"class": "harmless", "message": "the same bytes"}
    if client == "sample":
        outcome = run_program(SAMPLE, folder, SECONDS)
        return judged(verdict, outcome, ["what was sampled"] if outcome.value != base["sampled"] else [])
    if client == "train":
        outcome = run(train(*shard_run()), folder, SECONDS)
        return judged(verdict, outcome, difference(base["resumed"], contents(folder / "run")))
    outcome = run(train_of(name, resume=True), folder, SECONDS)
    # The damaged file itself may stand as it was left, where it was not read.
    differing = difference(base["resumed"], contents(folder / "run"), [file.removeprefix("run/")] if base["checkpoint"] in file else [])
    # Later checkpoints keep the digest of a log that lacks its beginning.
    lost = {file.removeprefix("run/")} | {name for name in differing if name.endswith(("/DONE", "/trainer.safetensors"))}
    if what == "delete" and lost.issuperset(differing) and f"{file} is not there" in (folder / "output").read_text():
        return verdict | {"class": "told", "message": ""}
    return judged(verdict, outcome, differing + (["results"] if outcome.value != base["results"] else []))
