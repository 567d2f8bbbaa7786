"""Writes small data for the measures of `isentrope diagnose` (docs/diagnose.md), of what every Python has and of rules.

    python examples/diagnose_data.py data/diagnose

prose.jsonl       paragraphs of Python's own help texts
copies.jsonl      to be copied: sentences of these, and the same words in another order
sums.jsonl        sums of three numbers, with their steps as chain
class.jsonl       x → a x + b mod 7, three times: a finite class with answers and chains
instructions.jsonl  prompts with constraints
kinds.jsonl, coins.jsonl  prose and code with labels that tell them apart, and with labels that are drawn
"""

import inspect
import json
import random
import sys
import textwrap
from pathlib import Path
from pydoc_data import topics
from typing import Any

TOPICS = ["a cat", "the sea", "bread", "a train", "snow", "a garden", "music", "the moon"]
CONSTRAINTS = [
    [{"kind": "words", "at_most": 30}],
    [{"kind": "sentences", "exactly": 2}, {"kind": "words", "at_least": 10}],
    [{"kind": "bullets", "exactly": 3}, {"kind": "forbidden", "texts": ["very"]}],
    [{"kind": "lower"}, {"kind": "without", "characters": ","}],
    [{"kind": "json", "keys": ["title"]}],
    [{"kind": "title"}, {"kind": "ends_with", "text": "The end."}, {"kind": "words", "at_most": 60}],
    [{"kind": "upper"}],
    [{"kind": "contains", "texts": ["blue", "window"]}, {"kind": "paragraphs", "exactly": 1}],
]
WORDS = ["Use at most 30 words.", "Use exactly two sentences, of at least 10 words in all.", "Answer with exactly three bullets, each a line that begins with -. Never write the word very.",
         "Use lower case letters only, and no comma.", "Answer with JSON alone, an object that has the key title.",
         "Begin with a title in <<double angle brackets>>, end with the words The end., and use at most 60 words.", "Use capital letters only.",
         "Use the words blue and window, in one paragraph."]  # fmt: skip


def steps(a: int, b: int, x: int) -> list[int]:
    values = []
    for _ in range(3):
        x = (a * x + b) % 7
        values.append(x)
    return values


def data() -> dict[str, list[dict[str, Any]]]:
    """{file: lines}"""
    draw = random.Random(0)
    prose = [" ".join(part.split()) for text in topics.topics.values() for part in text.split("\n\n")]
    prose = sorted({part for part in prose if len(part) > 160 and part[0].isupper()})
    sources = [inspect.getsource(function) for module in (inspect, random, textwrap) for function in vars(module).values()
               if inspect.isfunction(function) and function.__module__ == module.__name__]  # fmt: skip
    code = [part for source in sorted(set(sources)) for part in textwrap.wrap(source, 300) if len(part) > 160][:200]
    sentences = [part for text in prose for part in text.split(". ") if 8 <= len(part.split()) <= 14 and part[0].isupper() and part.replace(" ", "").isalpha()]
    copies = []
    for sentence in draw.sample(sentences, min(150, len(sentences))):
        words = sentence.split()
        middle = words[1:-1]
        draw.shuffle(middle)
        for order, text in (("as written", sentence), ("shuffled", " ".join([words[0], *middle, words[-1]]))):
            copies.append({"prompt": f"Copy the text.\nText: The cat sat on the mat today\nCopy: The cat sat on the mat today\nText: {text}\nCopy:",
                           "completion": f" {text}\n", "input": text, "output": text, "order": order})  # fmt: skip
    sums = []
    for _ in range(200):
        a, b, c = (draw.randint(2, 30) for _ in range(3))
        sums.append({"prompt": f"2 + 5 + 4 = 11. 3 + 9 + 8 = 20. {a} + {b} + {c}", "chain": f" = {a + b} + {c}", "answer": f" = {a + b + c}"})
    classes = [(a, b) for a in range(1, 7) for b in range(7)]
    texts = [*draw.sample(prose, 200), *code]
    kinds = ["prose"] * 200 + ["code"] * len(code)
    return {
        "prose": [{"text": text} for text in prose],
        "copies": copies,
        "sums": sums,
        "class": [{"answers": [steps(a, b, x)[2] >= 4 for x in range(7)], "chains": [steps(a, b, x)[:2] for x in range(7)], "target": (a, b) == (3, 1)} for a, b in classes],
        "instructions": [{"prompt": f"Write about {topic}. {words}", "constraints": constraints} for topic, (words, constraints) in zip(TOPICS + TOPICS[3:] + TOPICS[:3], list(zip(WORDS, CONSTRAINTS)) * 2)],
        "kinds": [{"text": text, "label": kind} for text, kind in zip(texts, kinds)],
        "coins": [{"text": text, "label": draw.choice(["heads", "tails"])} for text in texts],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in data().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        print(f"{folder / name}.jsonl: {len(lines)} lines")
