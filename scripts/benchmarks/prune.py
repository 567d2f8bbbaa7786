"""EntropyPrune: `isentrope sample models/smollm2 --max-new-tokens 1` of a prompt of 2048 tokens, SmolLM2-135M-Instruct in float32, half of which is
dropped before block 2 (the paper's layer), beside the same without --prune: opening the model, which both do, and the first token are in the times.

Values first: with keep=1 the first token and its log-probability are those without; half the prompt's places are kept, the last among them. Seconds
are of the processor where it has one thread, so that what else a machine does counts less."""

import json
import os
import resource
import subprocess
import time
from pathlib import Path

from smollm2 import folder
from timing import compare

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"
PEERS = ["tokenizers"]
TOKENS, LAYER, TARGET = 2048, 2, 1.5


def prompt():
    """So much of a page of docs/ that it has as many tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    text = (ROOT / "docs" / "methods.md").read_text()
    encoding = tokenizer.encode(text, add_special_tokens=False)
    end = encoding.offsets[TOKENS - 1][1]
    while len(tokenizer.encode(text[:end], add_special_tokens=False).ids) > TOKENS:
        end -= 1
    return text[:end]


def rows(threads=1, rounds=7):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    words = [PROGRAM, "sample", str(folder()), "--json", "--prompt", prompt(), "--temperature", "0", "--max-new-tokens", "1"]

    def sampled(*more):
        """The completion, and seconds of the processor or, of several threads, of the clock."""
        used, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        told = subprocess.run([*words, *more], check=True, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True)
        wall, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        return json.loads(told.stdout), now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime if threads == 1 else wall

    whole = sampled()[0]
    assert {**sampled("--prune", f"layer={LAYER},keep=1")[0], "kept": None} == {**whole, "kept": None}
    contenders = {"ours": ("--prune", f"layer={LAYER},keep=0.5"), "the whole prompt": ()}
    seconds = {name: [] for name in contenders}
    for index in range(rounds):
        for name in list(contenders)[:: 1 if index % 2 else -1]:
            line, took = sampled(*contenders[name])
            seconds[name].append(took)
            if name == "ours":
                assert len(line["kept"]) == TOKENS // 2 and line["kept"][-1] == TOKENS - 1, len(line["kept"])
    return [{"op": "EntropyPrune", "shape": f"SmolLM2-135M, {TOKENS} tokens, half kept from block {LAYER} of 30", "dtype": "float32", "threads": threads,
             "target": TARGET, **compare(seconds, "ours", "the whole prompt")}]  # fmt: skip
