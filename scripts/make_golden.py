#!/usr/bin/env python3
"""Writes tests/golden/tiny_losses.json: the first losses of the first phase of each configuration in configs/tiny.

    scripts/make_golden.py [TOOL]      default: build/release/bin/isentrope

A change that should not alter numbers leaves the file alone; one that should updates it in the same commit and says why.
"""

import json
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOL = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/release/bin/isentrope").resolve()
READ = runpy.run_path(str(ROOT / "python" / "isentrope" / "json_lines.py"))["read"]
STORED = 10  # losses a run: enough to cover warm-up, few enough for rounding not to have grown

golden = {}
for config in sorted((ROOT / "configs" / "tiny").glob("*.yaml")):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([TOOL, "train", config, f"run.dir={folder}/run", "--quiet"], check=True, cwd=ROOT)
        lines = list(READ(Path(folder, "run", "metrics.jsonl")))
    first = lines[0]["phase"]
    losses = [line["loss"] for line in lines if line["phase"] == first and "loss" in line]
    golden[config.stem] = {"phase": first, "steps": len(losses), "loss": losses[:STORED]}
path = ROOT / "tests" / "golden" / "tiny_losses.json"
path.write_text(json.dumps(golden, indent=1) + "\n")
print(path)
