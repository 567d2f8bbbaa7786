"""Parts of speech of English words, by textblob's tagger: a lexicon of 94,000 words, rules for others by suffix and context (Brill 1992; of
the package pattern, De Smedt and Daelemans, JMLR 2012). It comes whole with `pip install textblob`; nothing is loaded from elsewhere."""

from __future__ import annotations

import importlib
import re
from bisect import bisect_right

from isentrope.diagnose.measure import DiagnoseError

# Of the Penn Treebank's tags, as Petrov, Das and McDonald (LREC 2012) have them, but for a few words.
UNIVERSAL = {
    "CC": "conjunction", "CD": "number", "DT": "determiner", "EX": "determiner", "IN": "adposition", "JJ": "adjective", "JJR": "adjective", "JJS": "adjective",
    "MD": "auxiliary", "NN": "noun", "NNS": "noun", "NNP": "proper noun", "NNPS": "proper noun", "PDT": "determiner", "POS": "particle", "PRP": "pronoun",
    "PRP$": "pronoun", "RB": "adverb", "RBR": "adverb", "RBS": "adverb", "RP": "particle", "TO": "particle", "UH": "interjection", "VB": "verb", "VBD": "verb",
    "VBG": "verb", "VBN": "verb", "VBP": "verb", "VBZ": "verb", "WDT": "determiner", "WP": "pronoun", "WP$": "pronoun", "WRB": "adverb",
}  # fmt: skip
BY_WORD = {"n't": "adverb", **dict.fromkeys("am is are was were be been being have has had having do does did doing 're 've".split(), "auxiliary")}
KEPT = frozenset(("special", "line break", "space", "number", "punctuation", "continuation"))  # kinds of tokens that are no words


class Tagger:
    """Raises DiagnoseError where textblob is not there, or is another one than is known."""

    def __init__(self) -> None:
        try:
            words, tagger, english = (importlib.import_module(name) for name in ("nltk.tokenize", "textblob._text", "textblob.en"))
        except ImportError as error:
            raise DiagnoseError(f"token-entropy: parts=textblob needs the package textblob, which cannot be imported ({error}): pip install textblob, or take parts=rules") from None
        self._words = words.TreebankWordTokenizer()
        self._find_tags = tagger.find_tags  # what textblob.en.tag calls, which leaves the rules of context out
        self._lexicon = english.lexicon

    def words(self, text: str) -> list[tuple[int, int, str]]:
        """(begin, end, part of speech) of each word; those of other tags (punctuation, symbols, foreign words) are left out. The last letters of
        "can't" and "dog's" are words of their own."""
        found: list[tuple[int, int, str]] = []
        for sentence in re.finditer(r"(?:[^.!?\n]|[.!?](?!\s))+[.!?]*", text):  # no rule goes over its end
            spans = self._spans(sentence[0])
            words = [sentence[0][begin:end] for begin, end in spans]
            tags = self._find_tags(words, lexicon=self._lexicon, morphology=self._lexicon.morphology, context=self._lexicon.context)
            for (begin, end), word, (_, tag) in zip(spans, words, tags):
                part = BY_WORD.get(word.lower()) or UNIVERSAL.get(tag)
                if part and any(c.isalnum() for c in word):
                    found.append((sentence.start() + begin, sentence.start() + end, part))
        return found

    def _spans(self, sentence: str) -> list[tuple[int, int]]:
        """The words of a sentence by the rules of the Penn Treebank; those between spaces where it mixes the quotes that these rules change."""
        try:
            return [(begin, end) for begin, end in self._words.span_tokenize(sentence) if sentence[begin:end].strip()]
        except ValueError:
            return [match.span() for match in re.finditer(r"\S+", sentence)]

    def of_pieces(self, pieces: list[str], kinds: list[str]) -> list[str]:
        """The parts of speech of tokens whose texts make up one: that of the word in which a token's first letter stands, of those that are
        words by `kinds` (token_entropy.kinds_of); the others keep their kind, a word that has no part of speech is called `other`."""
        words = self.words("".join(pieces))
        begins = [begin for begin, _, _ in words]
        found, at = [], 0
        for piece, kind in zip(pieces, kinds):
            first = at + len(piece) - len(piece.lstrip())
            at += len(piece)
            if kind in KEPT:
                found.append(kind)
                continue
            place = bisect_right(begins, first) - 1
            found.append(words[place][2] if place >= 0 and first < words[place][1] else "other")
        return found
