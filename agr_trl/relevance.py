"""S(q, d): how much a query is about a product, judged by a model that is never the retriever."""

import logging
from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import numpy as np
from accelerate import PartialState
from scipy.special import expit
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from agr_trl.errors import UserError
from agr_trl.loading import LOADING_ERRORS, brief, resolve_model_name
from agr_trl.search import Scorer, score_distinct
from agr_trl.terminal import shows_progress
from agr_trl.word_matches import WordMatches, telling_words

logger = logging.getLogger(__name__)

LSA = "lsa"


class RelevanceScorer(Protocol):
    """Anything that scores aligned pairs in [0, 1]."""

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return S of each pair, shape (N,), in [0, 1]."""

    def weakest_word(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return how well the document answers the query's worst-answered word, (N,), in [0, 1]."""


class EmbeddingScorer(ABC):
    """S = (cosine + 1) / 2 of two text embeddings, shape (N,), in [0, 1].

    Subclasses embed texts as rows of unit length, (N, D). A document of the catalogue is embedded
    for the first pair that needs it and kept; other texts are kept until the next call that has
    new ones, since several rewards ask for the same queries one after the other.
    """

    def __init__(self, catalogue: Sequence[str]) -> None:
        self._catalogue = frozenset(catalogue)
        self._vectors: dict[str, np.ndarray] = {}
        self._recent: dict[str, np.ndarray] = {}

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit rows, shape (N, D); a text without any known word gives a zero row."""

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return S of aligned pairs, (N,) float32 in [0, 1]."""
        if not queries:
            return np.zeros(0, dtype=np.float32)
        left, right = self._vectors_of(queries), self._vectors_of(documents)
        cosine = np.einsum("nd,nd->n", left, right)
        return np.clip((cosine + 1) / 2, 0, 1).astype(np.float32)

    def weakest_word(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return the lowest S that a single word of each query has with its document, (N,) float32.

        Stop words do not count; a query of nothing else has 1.
        """
        rows, each_word = [], []
        for row, query in enumerate(queries):
            telling = telling_words(query)
            rows += [row] * len(telling)
            each_word += telling
        lowest = np.ones(len(queries), dtype=np.float32)
        scores = score_distinct(self.score, each_word, [documents[row] for row in rows])
        np.minimum.at(lowest, rows, scores)
        return lowest

    def remember(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Take over vectors that `embed` returned before for texts of the catalogue, (N, D)."""
        self._vectors |= dict(zip(texts, vectors, strict=True))

    def _vectors_of(self, texts: Sequence[str]) -> np.ndarray:
        known = ChainMap(self._vectors, self._recent)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            found = dict(zip(missing, self.embed(missing), strict=True))
            kept = {text: found.pop(text) for text in missing if text in self._catalogue}
            self._vectors |= kept
            recent = {text: self._recent[text] for text in texts if text in self._recent}
            self._recent = recent | found
            known = ChainMap(self._vectors, self._recent)
        return np.stack([known[text] for text in texts])


class SentenceTransformerScorer(EmbeddingScorer):
    """S from a sentence-transformers bi-encoder such as all-MiniLM-L6-v2, on this process's device.

    Raises `UserError` for a missing model.
    """

    def __init__(self, name_or_path: str, catalogue: Sequence[str], max_tokens: int = 64) -> None:
        from sentence_transformers import SentenceTransformer

        super().__init__(catalogue)
        path = resolve_model_name(name_or_path)
        try:
            # Left to itself every process of a job would choose the first GPU.
            self.model = SentenceTransformer(
                path,
                device=str(PartialState().device),
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except LOADING_ERRORS as error:
            raise UserError(
                f"cannot load the relevance model `{name_or_path}`: {brief(error)}"
            ) from error
        self.model.max_seq_length = min(max_tokens, self.model.max_seq_length or max_tokens)
        self._word_matches = WordMatches(self.embed)

    def weakest_word(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return `WordMatches`, (N,) float32: a single word says little about a whole document."""
        return self._word_matches(queries, documents)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return normalised sentence embeddings, (N, D) float32."""
        return self.model.encode(
            list(texts),
            batch_size=128,
            normalize_embeddings=True,
            show_progress_bar=shows_progress() and len(texts) > 4_096,  # not in every step's reward
        )


class LsaScorer(EmbeddingScorer):
    """S from latent semantic analysis of the catalogue: TF-IDF of words, reduced by an SVD.

    Needs no pretrained weights; words that share contexts in the catalogue come close to each other
    (Deerwester et al. 1990). Raises `UserError` for a catalogue of fewer than two words.
    """

    def __init__(self, catalogue: Sequence[str], dimensions: int = 200, seed: int = 0) -> None:
        super().__init__(catalogue)
        self._tfidf = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        each_word = chain.from_iterable(map(self._tfidf.build_analyzer(), catalogue))
        first = next(each_word, None)
        if all(word == first for word in each_word):
            raise UserError(
                "LSA needs a catalogue of two words or more; use another relevance_model"
            )
        matrix = self._tfidf.fit_transform(list(dict.fromkeys(catalogue)))
        dimensions = max(1, min(dimensions, min(matrix.shape) - 1))
        self._svd = TruncatedSVD(dimensions, random_state=seed).fit(matrix)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return LSA vectors, (N, D) float32, unit length or zero."""
        vectors = self._svd.transform(self._tfidf.transform(list(texts))).astype(np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-9)


class SpellingScorer:
    """Cosine of the TF-IDF of three letters in a row, in [0, 1]: whether a query is spelled out.

    Knows no meaning, only that "bookcases" and "bookcase" are much alike. For judging again what S
    and the rules of acceptance have judged, since neither asks for it.
    """

    def __init__(self, catalogue: Sequence[str]) -> None:
        self._tfidf = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), sublinear_tf=True)
        self._tfidf.fit(list(dict.fromkeys(catalogue)))

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return the cosine of aligned pairs, (N,) float64."""
        if not queries:
            return np.zeros(0)
        left, right = (self._tfidf.transform(list(texts)) for texts in (queries, documents))
        return np.asarray(left.multiply(right).sum(axis=1)).ravel().clip(0, 1)


def load_relevance_scorer(name_or_path: str, catalogue: Sequence[str]) -> EmbeddingScorer:
    """Return the scorer S: `lsa`, or a sentence-transformers model by name or folder."""
    if name_or_path == LSA:
        return LsaScorer(catalogue)
    return SentenceTransformerScorer(name_or_path, catalogue)


class Teacher:
    """P(relevant) from what judges say of a pair: the soft labels of synthetic pairs.

    p = 1 / (1 + exp(-(a * s + b))), with s the judges' scores, each on any scale, standardised; a
    and b are fitted by logistic regression. With S as the one judge this is Platt scaling (Platt
    1999), with several it is stacking (Wolpert 1992): where they err differently, errors cancel.
    """

    def __init__(self, *judges: Scorer) -> None:
        self._judges = judges
        weighing = LogisticRegression(C=100)  # hardly shrunk
        self._regression = make_pipeline(StandardScaler(), weighing)

    def fit(
        self, queries: Sequence[str], documents: Sequence[str], labels: np.ndarray
    ) -> "Teacher":
        """Fit on judged pairs; labels (N,) in [0, 1] are binarised at .5.

        Raises `UserError` when only one class occurs.
        """
        classes = np.asarray(labels) >= 0.5
        if classes.all() or not classes.any():
            raise UserError(
                f"all {len(classes)} judged pairs have one label, so S cannot be calibrated; "
                "add judged pairs of the other kind, mine some by the retriever's setting "
                "`random_negatives`, or change `--relevant_grade`"
            )
        self._regression.fit(self._scores(queries, documents), classes)
        if (self._regression[-1].coef_ <= 0).all():
            logger.warning("S is no higher for relevant pairs: soft labels mean little")
        return self

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return log-odds of "relevant" of aligned pairs, (N,) float64."""
        if not queries:
            return np.zeros(0)
        return self._regression.decision_function(self._scores(queries, documents))

    def probability(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """Return the probability of "relevant" of aligned pairs, (N,) float32."""
        return expit(self.score(queries, documents)).astype(np.float32)

    def _scores(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        scores = [score_distinct(judge, queries, documents) for judge in self._judges]
        return np.column_stack(scores)
