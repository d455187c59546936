"""Which generated queries may teach the retriever, and the statistics that show when G cheats."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from agr_trl.config import RewardArguments
from agr_trl.errors import UserError
from agr_trl.relevance import RelevanceScorer
from agr_trl.search import BM25Index
from agr_trl.word_matches import words


def vocabulary_of(texts: Iterable[str]) -> frozenset[str]:
    """Return all words of some texts, lower-cased."""
    return frozenset(word for text in texts for word in words(text))


def is_copy(query: str, document: str) -> bool:
    """Whether the query's words stand in the document as one unbroken run."""
    query_words = words(query)
    return bool(query_words) and f" {' '.join(query_words)} " in f" {' '.join(words(document))} "


def copy_rate(queries: Sequence[str], documents: Sequence[str]) -> float:
    """Return the share of queries, in [0, 1], that are a run of their document's words."""
    pairs = list(zip(queries, documents, strict=True))
    return sum(is_copy(query, document) for query, document in pairs) / max(1, len(pairs))


def duplicate_rate(queries: Sequence[str]) -> float:
    """Return the share of queries, in [0, 1], that repeat an earlier one but for case and signs."""
    keys = [" ".join(words(query)) for query in queries]
    return 1 - len(set(keys)) / len(keys) if keys else 0.0


def distinct_n(queries: Sequence[str], n: int) -> float:
    """Return distinct n-grams over all n-grams of the queries, in [0, 1] (Li et al. 2016)."""
    grams = Counter(
        tuple(query_words[start : start + n])
        for query_words in map(words, queries)
        for start in range(len(query_words) - n + 1)
    )
    return len(grams) / grams.total() if grams else 0.0


def refuse_useless_queries(queries: Sequence[str], products: int) -> None:
    """Raise `UserError` for a generator that writes blanks alone, or one query for all products."""
    distinct = {" ".join(words(query)) for query in queries}
    if distinct <= {""}:
        raise UserError("the generator writes blank queries only; warm it up for longer")
    if products > 10 and len(distinct) == 1:
        raise UserError(
            f"the generator writes `{distinct.pop()}` for all {products} products; raise "
            "`generator.beta`, lower `generator.learning_rate`, or warm it up for longer"
        )


def query_statistics(queries: Sequence[str], documents: Sequence[str]) -> dict[str, float]:
    """Return the audit of a set of queries: copying, repetition, variety and length in words."""
    lengths = [len(words(query)) for query in queries]
    return {
        "copy_rate": copy_rate(queries, documents),
        "duplicate_rate": duplicate_rate(queries),
        "distinct_1": distinct_n(queries, 1),
        "distinct_2": distinct_n(queries, 2),
        "query_words": sum(lengths) / max(1, len(lengths)),
    }


@dataclass
class AcceptanceFilter:
    """The rules that a generated query must pass; the first that fails names the reason.

    `blank`: no word; `broken`: a word comes twice or a piece is unknown; `copy_of_title`: the
    whole title, if that has more than three words; `unknown_word` (with `known_words_only`): a
    word outside `vocabulary`, as a small generator makes up from pieces; `low_relevance`: S below
    `min_relevance`; `low_word_relevance`: S of one of its words below `min_word_relevance` (off at
    0); `round_trip`: the product is not among BM25's top `round_trip_top_k` for the
    query (off at 0); `duplicate`: the same query for the same product was accepted before;
    `overused`: it was accepted for `max_products_per_query` others before (off at 0). Raises
    `UserError` for a round trip without an index, for known words without a vocabulary and for
    relevant words without S.
    """

    settings: RewardArguments
    index: BM25Index | None = None
    vocabulary: Collection[str] | None = None
    scorer: RelevanceScorer | None = None

    def __post_init__(self) -> None:
        if self.settings.round_trip_top_k and self.index is None:
            raise UserError("`round_trip_top_k` needs a BM25 index of the catalogue; pass `index`")
        if self.settings.known_words_only and self.vocabulary is None:
            raise UserError("`known_words_only` needs the words that are known; pass `vocabulary`")
        if self.settings.min_word_relevance and self.scorer is None:
            raise UserError("`min_word_relevance` needs S; pass `scorer`")

    def reasons(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        titles: Sequence[str],
        product_indices: np.ndarray,
        relevance: np.ndarray,
    ) -> list[str]:
        """Return one reason a query ('' when accepted); inputs are aligned, S of shape (N,)."""
        query, document = np.array(queries, dtype=object), np.array(documents, dtype=object)
        rules: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
            ("low_relevance", lambda rows: relevance[rows] >= self.settings.min_relevance),
            (
                "low_word_relevance",
                lambda rows: self._has_relevant_words(query[rows], document[rows]),
            ),
            ("round_trip", lambda rows: self._returns(query[rows], product_indices[rows])),
        )
        texts = zip(queries, titles, strict=True)
        reasons = np.array([self._text_reason(*pair) for pair in texts], dtype=object)
        for reason, passes in rules:
            rows = np.flatnonzero(reasons == "")  # a costly rule is asked about what is left alone
            reasons[rows[~passes(rows)]] = reason  # NaN does not pass
        self._refuse_repeats(reasons, queries, product_indices)
        return reasons.tolist()

    def _text_reason(self, query: str, title: str) -> str:
        query_words = words(query)
        if not query_words:
            return "blank"
        long = [word for word in query_words if len(word) > 1 and not word.isdigit()]  # not "4 x 4"
        if len(set(long)) < len(long) or "<unk>" in query or "\ufffd" in query:
            return "broken"
        if query_words == words(title) and len(query_words) > 3:
            return "copy_of_title"
        return "unknown_word" if self._has_unknown_word(query_words) else ""

    def _has_unknown_word(self, query_words: list[str]) -> bool:
        if not self.settings.known_words_only or self.vocabulary is None:
            return False
        return any(word not in self.vocabulary for word in query_words)

    def _has_relevant_words(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        if self.scorer is None or not self.settings.min_word_relevance:
            return np.ones(len(queries), dtype=bool)
        weakest = self.scorer.weakest_word(queries.tolist(), documents.tolist())
        return weakest >= self.settings.min_word_relevance

    def _returns(self, queries: np.ndarray, product_indices: np.ndarray) -> np.ndarray:
        if self.index is None or not self.settings.round_trip_top_k:
            return np.ones(len(queries), dtype=bool)
        top, scores = self.index.top(queries.tolist(), self.settings.round_trip_top_k)
        return ((top == product_indices[:, None]) & (scores > 0)).any(axis=1)

    def _refuse_repeats(
        self, reasons: np.ndarray, queries: Sequence[str], product_indices: np.ndarray
    ) -> None:
        """Write in place which of the queries left repeat one before them."""
        seen: set[tuple[str, int]] = set()
        uses: Counter[str] = Counter()
        most = self.settings.max_products_per_query or len(queries)
        for row in np.flatnonzero(reasons == "").tolist():
            text = " ".join(words(queries[row]))
            key = (text, int(product_indices[row]))
            if key in seen:
                reasons[row] = "duplicate"
            elif uses[text] >= most:
                reasons[row] = "overused"
            else:
                seen.add(key)
                uses[text] += 1


def independent_scores(
    scorer: RelevanceScorer, queries: Sequence[str], documents: Sequence[str]
) -> np.ndarray:
    """Return S for aligned pairs with blank queries at 0, shape (N,) float32."""
    relevance = scorer.score(queries, documents).astype(np.float32)
    relevance[[not words(query) for query in queries]] = 0.0
    return relevance
