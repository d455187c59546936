"""The words of a text, and how well a document answers each word of a query.

A sentence embedding forgives one wrong word: "kingsley sofa" is close to any product of the series
Kingsley. A generator that is rewarded for what R gets wrong finds just these, so single words have
to be found in the document too, each in itself or in something close to it.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

_WORD = re.compile(r"\w+")
READ_WORDS = 60  # of a document, about what S reads of it
KEPT_WORDS = 200_000  # vectors of 384 numbers: 300 MB


def words(text: str) -> list[str]:
    """Return the lower-cased words of a text."""
    return _WORD.findall(text.lower())


def telling_words(text: str) -> list[str]:
    """Return a text's lower-cased words but stop words."""
    return [word for word in words(text) if word not in ENGLISH_STOP_WORDS]


def read_words(document: str) -> list[str]:
    """Return the distinct ones of a document's first 60 words."""
    return list(dict.fromkeys(words(document)[:READ_WORDS]))


class WordMatches:
    """How well a document answers the worst-answered word of a query, in [0, 1].

    min over the query's words w of max over the document's words v, the `read_words`, of
    (cos(w, v) + 1) / 2, each word embedded by itself; `embed` returns unit rows, (N, D). This is
    the late interaction of ColBERT (Khattab & Zaharia, arXiv 2004.12832) with a minimum for its
    sum: a wrong word is not outvoted. A number counts only if the document has it, for embeddings
    of numbers are all alike. Stop words do not count; a query of nothing else has 1.
    """

    def __init__(self, embed: Callable[[Sequence[str]], np.ndarray]) -> None:
        self._embed = embed
        self._vectors: dict[str, np.ndarray] = {}

    def __call__(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return the match of aligned pairs, (N,) float32 in [0, 1]."""
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, document in enumerate(documents):
            rows_of[document].append(row)
        asked = [telling_words(query) for query in queries]
        read = {document: read_words(document) for document in rows_of}
        self._learn([word for text in (*asked, *read.values()) for word in text])
        scores = np.ones(len(queries), dtype=np.float32)
        for document, rows in rows_of.items():
            told = read[document]
            held = self._rows(told).T if told else None
            for row in rows:
                scores[row] = self._worst(asked[row], told, held)
        return scores

    def _worst(self, asked: list[str], told: list[str], held: np.ndarray | None) -> float:
        """Return the match of the worst-answered word; `held` has the told words as columns."""
        if not asked:
            return 1.0
        if held is None or any(word.isdigit() and word not in told for word in asked):
            return 0.0
        best = (self._rows(asked) @ held).max(axis=1)
        return float(np.clip((best.min() + 1) / 2, 0, 1))

    def _learn(self, texts: Sequence[str]) -> None:
        if len(self._vectors) > KEPT_WORDS:
            self._vectors = {}
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors |= dict(zip(new, self._embed(new), strict=True))

    def _rows(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._vectors[text] for text in texts])
