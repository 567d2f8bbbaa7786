"""Writes small data for the measures of `isentrope diagnose` (docs/diagnose.md), of what every Python has and of rules.

    python examples/diagnose_data.py data/diagnose

prose.jsonl       paragraphs of Python's own help texts
copies.jsonl      to be copied: sentences of these, and the same words in another order
sums.jsonl        sums of three numbers, with their steps as chain
partial_sums.jsonl, partial_sums_train.jsonl  four digits, their partial sums mod 10 as chain, the last one as answer: what to measure and what to learn
class.jsonl       x → a x + b mod 7, three times: a finite class with answers and chains
instructions.jsonl  prompts with constraints
sentiment.jsonl, cities.jsonl  short reviews with labels positive and negative; "Lyon is a city in France.", true and false
recall.jsonl      problems of associative recall with their answers, as configs/mixers learns them
kinds.jsonl, coins.jsonl  prose and code with labels that tell them apart, and with labels that are drawn
"""

import inspect
import json
import random
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

GOOD = "wonderful delightful superb touching brilliant charming gripping hilarious moving excellent fresh witty graceful splendid".split()
BAD = "dreadful boring tedious clumsy awful dull shallow annoying predictable terrible stale pointless messy disappointing".split()
THINGS = "film book play novel song album show story concert series documentary performance meal hotel game exhibition".split()
FRAMES = ["The {thing} was {word} and I told everyone about it.", "What a {word} {thing}, from the first minute to the last.", "I found this {thing} {word}, as did my friends.",
          "Critics called the {thing} {word}; they were right.", "A {word} {thing} that I will not forget soon.", "My sister thought that the {thing} was rather {word}."]  # fmt: skip
CITIES = {
    "France": "Paris Lyon Marseille Toulouse Bordeaux Nice Nantes Strasbourg Lille Rennes", "Germany": "Berlin Hamburg Munich Cologne Frankfurt Stuttgart Dresden Leipzig Bremen Hanover",
    "Italy": "Rome Milan Naples Turin Palermo Genoa Bologna Florence Venice Verona", "Spain": "Madrid Barcelona Valencia Seville Bilbao Malaga Granada Zaragoza Murcia Cordoba",
    "Japan": "Tokyo Osaka Kyoto Nagoya Sapporo Kobe Fukuoka Hiroshima Sendai Yokohama", "India": "Delhi Mumbai Chennai Kolkata Bangalore Hyderabad Jaipur Pune Lucknow Surat",
    "China": "Beijing Shanghai Guangzhou Shenzhen Wuhan Chengdu Nanjing Tianjin Hangzhou Harbin", "Brazil": "Recife Salvador Fortaleza Curitiba Manaus Brasilia Belem Santos Natal Campinas",
    "Canada": "Toronto Montreal Vancouver Calgary Ottawa Edmonton Winnipeg Quebec Halifax Regina", "Russia": "Moscow Omsk Kazan Samara Perm Sochi Tula Tomsk Irkutsk Vladivostok",
}  # fmt: skip
PLACES = ["{city} is a city in {country}.", "The city of {city} is in {country}.", "If you go to {country}, you can visit {city}.", "We flew to {city}, a city in {country}."]
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


def sentiment(draw: random.Random) -> Iterator[dict[str, Any]]:
    for words, label in ((GOOD, "positive"), (BAD, "negative")):
        for word in words:
            for thing in THINGS:
                for frame in FRAMES:
                    if draw.random() < 0.8:
                        yield {"text": frame.format(thing=thing, word=word), "label": label}


def cities(draw: random.Random) -> Iterator[dict[str, Any]]:
    for country, names in CITIES.items():
        for city in names.split():
            others = draw.sample([other for other in CITIES if other != country], 9)
            for i, frame in enumerate(PLACES):
                yield {"text": frame.format(city=city, country=country), "label": "true"}
                yield {"text": frame.format(city=city, country=others[i]), "label": "false"}


def recall(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Eight keys with values, four of which are asked for: a3b7c1:ca=c1a3A13."""
    for _ in range(128):
        value = {key: draw.randrange(10) for key in draw.sample("abcdefghijklmnop", 8)}
        asked = draw.sample(list(value), 4)
        answer = "".join(f"{key}{value[key]}" for key in asked) + "A" + "".join(str(value[key]) for key in asked)
        yield {"text": "".join(f"{key}{digit}" for key, digit in value.items()) + ":" + "".join(asked) + f"={answer}."}


def partial_sums() -> list[dict[str, Any]]:
    """3742:04A6. for 3 + 7, + 4, + 2 mod 10; of all 10,000, drawn without repeating."""
    found = []
    for number in random.Random(0).sample(range(10000), 3200):
        a, b, c, d = map(int, f"{number:04}")
        found.append({"prompt": f"{number:04}:", "completion": f"{(a + b) % 10}{(a + b + c) % 10}A{(a + b + c + d) % 10}."})
    return found


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
    reviews, places = list(sentiment(draw)), list(cities(draw))
    draw.shuffle(reviews)
    draw.shuffle(places)
    return {
        "prose": [{"text": text} for text in draw.sample(prose, len(prose))],
        "copies": copies,
        "sums": sums,
        "partial_sums": partial_sums()[:200],
        "partial_sums_train": partial_sums()[200:],
        "class": [{"answers": [steps(a, b, x)[2] >= 4 for x in range(7)], "chains": [steps(a, b, x)[:2] for x in range(7)], "target": (a, b) == (3, 1)} for a, b in classes],
        "instructions": [{"prompt": f"Write about {topic}. {words}", "constraints": constraints} for topic, (words, constraints) in zip(TOPICS + TOPICS[3:] + TOPICS[:3], list(zip(WORDS, CONSTRAINTS)) * 2)],
        "recall": list(recall(random.Random(0))),
        "kinds": [{"text": text, "label": kind} for text, kind in zip(texts, kinds)],
        "coins": [{"text": text, "label": draw.choice(["heads", "tails"])} for text in texts],
        "sentiment": reviews,
        "cities": places,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in data().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        print(f"{folder / name}.jsonl: {len(lines)} lines")
