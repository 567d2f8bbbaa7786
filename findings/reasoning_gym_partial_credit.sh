#!/usr/bin/env bash
# One would expect the score of an arithmetic task to be 1 for the number and 0, or nearly so, for another.
# reasoning-gym 0.1.25 gives chain_sum a share for texts that are alike: the wrong sign, or a digit too many, gets 0.75, more than half of what
# the right answer gets, and a sentence that has the right number gets 0.18. As a reward it teaches to be near in letters.
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/finding.sh"
packages reasoning-gym==0.1.25
expect <<'END'
reasoning-gym 0.1.25
740 → 1.0
-740 → 0.75
7400 → 0.75
1740 → 0.75
74 → 0.0
The answer is 740 → 0.176
END
run <<'PY'
import importlib.metadata

import reasoning_gym

tasks = reasoning_gym.create_dataset("chain_sum", size=1, seed=1)
entry = {**tasks[0], "answer": "740"}
print("reasoning-gym", importlib.metadata.version("reasoning-gym"))
for answer in ("740", "-740", "7400", "1740", "74", "The answer is 740"):
    print(answer, "→", round(tasks.score_answer(answer, entry), 3))
PY
