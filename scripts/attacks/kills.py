"""Runs that are killed (SIGKILL) up to four times and resumed to the end.

Right is a run that leaves what the unbroken one left, bit for bit: metrics but times, samples, results, every file of every checkpoint.
Half of the kills fall at a moment drawn over the run, half while a checkpoint is being written. The seed fixes what
is drawn; where a kill falls in the run is the machine's affair.
"""

import os
import select
import shutil
import time

from attacks.trial import ROOT, contents, difference, kill, run, run_program, start, train, workplace

TITLE = "runs killed up to four times, then resumed to the end"
COUNTS = {"full": 40, "quick": 3}
RIGHT = {"equal"}
SECONDS = 300
OVERRIDES = ["run.dir=run", "run.checkpoint_every=3", "run.threads=1", "run.device=cpu"]


def configurations():
    return sorted((ROOT / "configs" / "tiny").glob("*.yaml"))


def command(name, *more):
    return ["train", f"configs/tiny/{name}.yaml", *OVERRIDES, "--quiet", *more]


def unbroken(folder, name):
    """{contents, seconds} of the run without a kill: by the program, timed in a forked process."""
    place = workplace(folder / name)
    if not (place / "run" / "summary.json").exists():
        shutil.rmtree(place / "run", ignore_errors=True)
        outcome = run_program(command(name), place, SECONDS)
        if outcome.kind != "done":
            raise RuntimeError(f"the unbroken run of {name} failed: {outcome.kind}: {outcome.message}")
    timed = workplace(folder / f"{name}-timed")
    shutil.rmtree(timed / "run", ignore_errors=True)
    begun = time.monotonic()
    run(train(f"configs/tiny/{name}.yaml", OVERRIDES), timed, SECONDS)
    return {"contents": contents(place / "run"), "seconds": time.monotonic() - begun}


def prepare(folder, quick):
    names = ["adaptive", "sft"] if quick else [path.stem for path in configurations()]
    return {"runs": {name: unbroken(folder, name) for name in names}}


def half_written(run_folder):
    try:
        return [entry.name for entry in os.scandir(run_folder / "checkpoints") if entry.name.endswith(".tmp")]
    except OSError:
        return []


def kill_once(name, folder, rng, seconds):
    """Trains and kills. Returns whether it was killed before it ended, and whether a half-written checkpoint was left."""
    pid, reading = start(train(f"configs/tiny/{name}.yaml", OVERRIDES, resume=True), folder)
    in_checkpoint, deadline = rng.random() < 0.5, time.monotonic() + rng.random() * seconds
    after = rng.random() * 0.002
    ended = False
    try:
        while True:
            if select.select([reading], [], [], 0.0002)[0]:
                ended = True
                break
            if in_checkpoint and time.monotonic() > deadline - 0.5 * seconds and half_written(folder / "run"):
                time.sleep(after)
                break
            if not in_checkpoint and time.monotonic() > deadline:
                break
        kill(pid)
    finally:
        os.close(reading)
        os.waitpid(pid, 0)
    return not ended, bool(half_written(folder / "run"))


def attack(context, rng, folder, number):
    name = sorted(context["runs"])[number % len(context["runs"])]
    whole = context["runs"][name]
    wanted = number % 4 + 1
    workplace(folder)
    kills = halves = 0
    for _ in range(wanted):
        killed, half = kill_once(name, folder, rng, whole["seconds"] / wanted)
        kills += killed
        halves += killed and half
        if not killed:
            break
    # The program ends the run: it writes summary.json too.
    outcome = run_program(command(name, "--resume"), folder, SECONDS)
    verdict = {"attack": f"{name}: {kills} kills", "kills": kills, "half-written checkpoints": halves, "class": outcome.kind, "message": outcome.message}
    if outcome.kind == "done":
        names = difference(whole["contents"], contents(folder / "run"))
        verdict |= {"class": "differs" if names else "equal", "message": ", ".join(names)[:500]}
    return verdict
