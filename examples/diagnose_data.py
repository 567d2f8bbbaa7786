"""Texts for `isentrope diagnose`, as docs/diagnose.md measures them: python examples/diagnose_data.py FOLDER

    prose.jsonl      paragraphs of Python's own manual, which is in every Python
    sentiment.jsonl  short reviews, "label": positive or negative
    cities.jsonl     "Lyon is a city in France.", "label": true or false
"""

import json
import pydoc_data.topics
import random
import sys
from pathlib import Path

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


def prose():
    for _, topic in sorted(pydoc_data.topics.topics.items()):
        for paragraph in topic.split("\n\n"):
            text = " ".join(paragraph.split())
            if len(text) > 160 and text[0].isupper():
                yield {"text": text}


def sentiment(draw):
    for words, label in ((GOOD, "positive"), (BAD, "negative")):
        for word in words:
            for thing in THINGS:
                for frame in FRAMES:
                    if draw.random() < 0.8:
                        yield {"text": frame.format(thing=thing, word=word), "label": label}


def cities(draw):
    for country, names in CITIES.items():
        for city in names.split():
            others = draw.sample([other for other in CITIES if other != country], 9)
            for i, frame in enumerate(PLACES):
                yield {"text": frame.format(city=city, country=country), "label": "true"}
                yield {"text": frame.format(city=city, country=others[i]), "label": "false"}


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for name, lines in (("prose", list(prose())), ("sentiment", list(sentiment(draw))), ("cities", list(cities(draw)))):
        draw.shuffle(lines)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(lines)} texts")


if __name__ == "__main__":
    main()
