"""`token-entropy`: entropy and surprise of every token, by its place in the sequence and by the kind of token it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isentrope.diagnose.measure import Measure, Option, Result, Table
from isentrope.diagnose.parts_of_speech import Tagger

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isentrope.diagnose.data import Data
    from isentrope.diagnose.model import Batch, Model

# Words of the closed classes of English, which part-of-speech taggers tell by their form too.
CLOSED = {
    "article": "a an the",
    "pronoun": "i you he she it we they me him her us them my your his its our their mine yours hers ours theirs myself yourself himself herself "
    "itself ourselves themselves this that these those who whom whose which what",
    "preposition": "of in on at by for with about against between into through during before after above below to from up down over under near "
    "since until upon within without among across behind beyond along around toward towards",
    "conjunction": "and or but nor so yet because although though while whereas if unless whether than as when where once",
    "auxiliary": "am is are was were be been being have has had having do does did doing will would shall should can could may might must not",
}
WORDS = {word: kind for kind, words in CLOSED.items() for word in words.split()}
SUFFIXES = (("adverb", r"\w{2,}ly"), ("noun", r"\w{2,}(?:tion|sion|ment|ness|ity|ism|ance|ence|ship|hood)s?"), ("verb", r"\w{2,}(?:ing|ed|ize|ise|ify)"),
            ("adjective", r"\w{2,}(?:ous|ful|less|able|ible|ive|ish|ical|al)"))  # fmt: skip
VARIANT = (
    "Entropy of the distribution that each token was drawn from, and surprise -ln p of the token, nats, by the op linear_token_entropy; the first "
    "token of a sequence has neither. Kind of token by rule, without a tagger: closed classes of English by a list of words (article, pronoun, "
    "preposition, conjunction, auxiliary); of other words, whole in their first token, adverb, noun, verb, adjective by suffix, else `word`; "
    "`continuation`: a token that goes on with a word; number, punctuation, line break, space, special. Forking: entropy at or above the "
    "`fork` quantile of all tokens (arXiv:2506.01939). With parts=textblob the words are told by textblob's tagger instead, whose Penn tags become the "
    "universal ones (Petrov et al., LREC 2012; auxiliary: modals and the forms of be, have and do), and a word's first token has the whole word's."
)


def kinds_of(pieces: list[str]) -> list[str]:
    """The kind of each token of a sequence, from its text and that of its neighbours."""
    found = []
    for place, piece in enumerate(pieces):
        bare = piece.strip()
        joined = place > 0 and piece[:1].isalnum() and pieces[place - 1][-1:].isalpha()
        if not piece or re.fullmatch(r"<\|?[\w ]+\|?>", bare):
            kind = "special"
        elif not bare:
            kind = "line break" if "\n" in piece else "space"
        elif re.fullmatch(r"[\d.,]*\d[\d.,]*", bare):
            kind = "number"
        elif not any(c.isalnum() for c in bare):
            kind = "punctuation"
        elif joined:
            kind = "continuation"
        elif place + 1 < len(pieces) and pieces[place + 1][:1].isalpha():
            kind = "word"  # its first part alone: no suffix to be seen
        else:
            word = bare.lower()
            kind = WORDS.get(word) or next((name for name, pattern in SUFFIXES if re.fullmatch(pattern, word)), "word")
        found.append(kind)
    return found


class TokenEntropy(Measure):
    NAME = "token-entropy"
    WHAT = "entropy and surprise of every token, by position and by kind of token, with coloured texts"
    SOURCE = "arXiv:2506.01939 (forking tokens)"
    NEEDS = frozenset({"tokens"})
    OPTIONS = {
        "fork": Option(0.8, "quantile of the entropy from which on a token is called forking", least=0, most=1),
        "parts": Option("rules", "what tells the parts of speech: rules (lists and suffixes), or textblob, a tagger of English that sees the context (pip install textblob)",
                        choices=("rules", "textblob")),
        "tokens": Option(False, "a table of every token too: token-entropy.tokens.csv"),
        "shown": Option(4, "texts on the page, coloured by entropy", least=0),
    }

    def __init__(self, model: Model, data: Data | None, options: Mapping[str, Any] | None = None, say: Callable[..., None] | None = None) -> None:
        super().__init__(model, data, options, say)
        self.tagger = Tagger() if self.options["parts"] == "textblob" else None
        self.found: dict[int, tuple[list[int], np.ndarray, np.ndarray]] = {}  # index → ids [n], logprob, entropy [n - 1]

    def update(self, batch: Batch) -> None:
        assert batch.logprob is not None and batch.entropy is not None
        logprob, entropy = batch.logprob.cpu().numpy(), batch.entropy.cpu().numpy()
        for row, (index, length) in enumerate(zip(batch.index.tolist(), batch.lengths.tolist())):
            self.found[index] = batch.ids[row, :length].tolist(), logprob[row, : length - 1], entropy[row, : length - 1]

    def kinds(self, pieces: list[str]) -> list[str]:
        """The kind of each token of a text."""
        found = kinds_of(pieces)
        return self.tagger.of_pieces(pieces, found) if self.tagger else found

    def finish(self) -> Result:
        ordered = [self.found[index] for index in sorted(self.found)]
        entropy, surprise = np.concatenate([e for _, _, e in ordered]), -np.concatenate([p for _, p, _ in ordered])
        place = np.concatenate([np.arange(1, len(e) + 1) for _, _, e in ordered])
        table = Table({"kind": "", "tokens": "", "entropy": "nats", "surprise": "nats", "excess": "surprise - entropy, nats", "forking": "share"})
        notes = []
        if not len(entropy):
            notes.append("every text is one token long: no token has a distribution that it was drawn from")
            return Result(table, VARIANT, {"tokens": 0}, notes=notes)
        pieces = [self.model.pieces(ids) for ids, _, _ in ordered]
        fork = float(np.quantile(entropy, self.options["fork"]))
        numbers = {"tokens": len(entropy), "mean entropy, nats": float(entropy.mean()), "mean surprise, nats": float(surprise.mean()),
                   "forking from, nats": fork}  # fmt: skip

        def add(to: Table, name: Any, which: np.ndarray) -> None:
            if which.any():
                h, s = entropy[which], surprise[which]
                to.add(name, int(which.sum()), h.mean(), s.mean(), s.mean() - h.mean(), (h >= fork).mean())

        if self.model.tokenizer is None:
            notes.append("the model has no tokenizer: tokens have no text, and no kinds are told")
            add(table, "token", np.ones(len(entropy), bool))
        else:
            kinds = np.array([kind for texts in pieces for kind in self.kinds(texts)[1:]])
            for kind in sorted(set(kinds), key=lambda kind: -entropy[kinds == kind].mean()):
                add(table, kind, kinds == kind)
            broken = float((kinds == "continuation").mean())
            if broken > 0.3:
                notes.append(f"{broken:.0%} of the tokens go on with a word: the tokenizer splits most words of these texts, and what stands of kinds is of their first tokens")
        numbers["share of the surprise in the forking tokens"] = float(surprise[entropy >= fork].sum() / max(surprise.sum(), 1e-30))
        positions = Table({"position": "tokens before", **{name: unit for name, unit in table.columns.items() if name != "kind"}})
        edges = sorted({*range(1, 8), *(2**i for i in range(3, 20))})
        for low, high in zip(edges, [*edges[1:], 10**9]):
            add(positions, str(low) if high == low + 1 else f"{low} to {min(high - 1, int(place.max()))}", (place >= low) & (place < high))
        tables = {"positions": positions}
        if self.options["tokens"]:
            every = tables["tokens"] = Table({"text": "", "position": "tokens before", "token": "", "id": "", "entropy": "nats", "surprise": "nats"})
            for index, (ids, p, e), own in zip(sorted(self.found), ordered, pieces):
                for t, h in enumerate(e):
                    every.add(index, t + 1, own[t + 1], ids[t + 1], h, -p[t])
        texts: list[dict[str, Any]] = [
            {"title": f"text {i + 1}", "tokens": own, "entropy": [None, *(round(float(h), 4) for h in e)], "surprise": [None, *(round(-float(x), 4) for x in p)]}
            for i, ((_, p, e), own) in enumerate(zip(ordered[: self.options["shown"]], pieces))
        ]
        return Result(table, VARIANT, numbers, tables, notes, lambda figure: draw(figure, table, positions, entropy), texts, (9.0, 3.6))


def draw(figure: Figure, table: Table, positions: Table, entropy: np.ndarray) -> None:
    kinds, places, spread = figure.subplots(1, 3)
    rows = range(len(table.rows))
    kinds.barh([row + 0.2 for row in rows], table.column("entropy"), 0.4, label="entropy")
    kinds.barh([row - 0.2 for row in rows], table.column("surprise"), 0.4, label="surprise")
    kinds.set_yticks(list(rows), table.column("kind"), fontsize=7)
    kinds.set(xlabel="nats", title="by kind of token")
    kinds.legend(fontsize=7)
    for name in ("entropy", "surprise"):
        places.plot(range(len(positions.rows)), positions.column(name), "o-", markersize=3, label=name)
    places.set_xticks(range(len(positions.rows)), positions.column("position"), rotation=60, fontsize=7)
    places.set(ylabel="nats", title="by position", ylim=(0, None))
    places.legend(fontsize=7)
    spread.hist(entropy, bins=40)
    spread.set(xlabel="entropy, nats", title="tokens")


MEASURE = TokenEntropy
measure = TokenEntropy.measure
