"""Sums of reasoning-gym with a trace to learn: each line's completion becomes its running sums, then the answer.

    isentrope tasks chain_sum max_terms=4 --size 2000 -o sums.jsonl
    python examples/chain_sum_traces.py sums.jsonl

    What is 7 + 5 - 3?  →  7 + 5 = 12; 12 - 3 = 9. Answer: 9
"""

import json
import re
import sys
from pathlib import Path


def trace(question: str, answer: str) -> str:
    """The running sums of the terms in a question, left to right."""
    terms = re.findall(r"[+-]?\s*\d+", question)
    total = int(terms[0].replace(" ", ""))
    steps = []
    for term in terms[1:]:
        sign, number = term[0], term[1:].strip()
        following = total + int(sign + number)
        steps.append(f"{total} {sign} {number} = {following}")
        total = following
    if str(total) != answer:
        raise ValueError(f"the terms of {question!r} add up to {total}, and its answer is {answer}")
    return "; ".join(steps) + f". Answer: {answer}"


def main() -> None:
    for name in sys.argv[1:]:
        lines = [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]
        for line in lines:
            line["completion"] = trace(line["prompt"], line["answer"])
        Path(name).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
