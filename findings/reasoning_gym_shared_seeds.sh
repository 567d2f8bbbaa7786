#!/usr/bin/env bash
# One would expect data sets of two seeds to be two draws, so that one may train on seed 1 and test on seed 999.
# reasoning-gym 0.1.25 makes problem n of seed s from s + n: each is the other one shifted, and 2000 problems of seed 1 hold all
# 200 of seed 999.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages reasoning-gym==0.1.25
expect <<'END'
reasoning-gym 0.1.25
chain_sum: problem 998 of seed 1 is problem 0 of seed 999: True
chain_sum: 200 of the 200 problems of seed 999 are among 2000 of seed 1
gcd: 200 of the 200 problems of seed 999 are among 2000 of seed 1
END
run <<'PY'
import importlib.metadata

import reasoning_gym

print("reasoning-gym", importlib.metadata.version("reasoning-gym"))
for task in ("chain_sum", "gcd"):
    train = [entry["question"] for entry in reasoning_gym.create_dataset(task, size=2000, seed=1)]
    test = [entry["question"] for entry in reasoning_gym.create_dataset(task, size=200, seed=999)]
    if task == "chain_sum":
        print(f"{task}: problem 998 of seed 1 is problem 0 of seed 999:", train[998] == test[0])
    print(f"{task}: {len([q for q in test if q in set(train)])} of the 200 problems of seed 999 are among 2000 of seed 1")
PY
