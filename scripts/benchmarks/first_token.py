"""From the start of `isentrope sample models/smollm2 --prompt …` to its first token, of SmolLM2-135M-Instruct in float32, beside a Python process that
opens it with transformers and generates one, files in the page cache; the target is 2 s. The shape names the median of our seconds.

Values first: the likeliest token is the same. Processes begin in turn, in the same rounds."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from smollm2 import folder
from timing import compare

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "release" / "bin" / "isentrope"
PEERS = ["transformers"]
PROMPT, WANTED = "The capital of France is", 2.0
RIVAL = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[2]))
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokens = tokenizer({PROMPT!r}, return_tensors="pt")
found = model.generate(**tokens, do_sample=False, max_new_tokens=1, pad_token_id=0)
print(tokenizer.decode(found[0, tokens["input_ids"].shape[1]:]))
"""


def rows(threads=1, rounds=7):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    commands = {"ours": [PROGRAM, "sample", str(folder()), "--prompt", PROMPT, "--temperature", "0", "--max-new-tokens", "1"],
                "transformers": [sys.executable, "-c", RIVAL, str(folder()), str(threads)]}  # fmt: skip
    seconds = {name: [] for name in commands}
    for round_ in range(rounds + 1):  # the first fills the page cache
        names = list(commands)[:: 1 if round_ % 2 else -1]
        said = {}
        for name in names:
            start = time.perf_counter()
            ended = subprocess.run(commands[name], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT, text=True)
            if round_ > 0:
                seconds[name].append(time.perf_counter() - start)
            said[name] = ended.stdout.removesuffix("\n")
        token = said["transformers"]
        assert token.strip() and said["ours"].startswith(PROMPT + token), f"the likeliest token: ours {said['ours']!r}, transformers {token!r}"
    ours = statistics.median(seconds["ours"])
    return [{"op": "first token", "shape": f"SmolLM2-135M, ours {ours:.2f} s of {WANTED:g} s", "dtype": "float32", "threads": threads,
             **compare(seconds, "ours", "transformers"), "wanted_s": WANTED}]  # fmt: skip
