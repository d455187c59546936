"""Product search: BM25 finds the candidates, a scorer (the retriever) ranks them.

Shapes: Q queries, K candidates of a query, N aligned pairs.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import Stemmer
from filelock import FileLock
from scipy.special import expit

from agr_trl.data import RelevanceDataset
from agr_trl.errors import UserError
from agr_trl.files import read_json, write_json
from agr_trl.terminal import progress, shows_progress


def _import_bm25s() -> Any:
    """Import bm25s without JAX, which it would start where that is installed.

    JAX takes three quarters of a GPU's memory at once, in each process, for a top k that is not
    used here (bm25s/selection.py, bm25s 0.3.16).
    """
    is_unused = "jax" not in sys.modules
    if is_unused:
        sys.modules["jax"] = None  # type: ignore[assignment]  # import then says it is not there
    try:
        return import_module("bm25s")
    finally:
        if is_unused:
            del sys.modules["jax"]


bm25s = _import_bm25s()

Scorer = Callable[[list[str], list[str]], np.ndarray]
"""`scorer(queries, documents)` gives one score per aligned pair, shape (N,)."""

# Single characters and stop words are kept: titles are short, and "xbox one s" needs its words.
TOKEN_PATTERN = r"(?u)\b\w+\b"


BM25_SETTINGS = {"method": "lucene", "k1": 1.2, "b": 0.75}
CATALOGUE_FILE = "catalogue.json"


def score_distinct(scorer: Scorer, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """Score aligned pairs in one call, every distinct (query, document) once; shape (N,), float64.

    Raises `UserError` if the scorer returns another number of scores or one that is not finite.
    """
    pairs = pd.DataFrame({"query": list(queries), "document": list(documents)}, dtype=object)
    if pairs.empty:  # a model need not cope with an empty batch
        return np.zeros(0)
    distinct = pairs.drop_duplicates()
    scores = np.asarray(
        scorer(distinct["query"].tolist(), distinct["document"].tolist()), dtype=np.float64
    )
    if scores.shape != (len(distinct),) or not np.isfinite(scores).all():
        raise UserError(
            f"the scorer returned an array of shape {scores.shape} with "
            f"{np.count_nonzero(~np.isfinite(scores))} values that are not finite for "
            f"{len(distinct)} pairs; it must return one finite score for each"
        )
    # ngroup() numbers pairs by first appearance, the order that drop_duplicates() keeps.
    return scores[pairs.groupby(["query", "document"], sort=False).ngroup().to_numpy()]


class BM25Index:
    """Score a catalogue's documents by BM25 with Lucene's idf and its k1 = 1.2, b = 0.75.

    Text is lower-cased and stemmed (Snowball English). Source: bm25s, arXiv 2407.03618.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        """Index `documents`; positions in this list are the indices used everywhere else.

        Raises `UserError` when no document holds a word.
        """
        self._stemmer = Stemmer.Stemmer("english")
        tokens = self._numbered_words(documents)
        if not any(tokens.ids):
            raise UserError(
                f"cannot index a catalogue of {len(documents)} documents that hold no word; "
                "give at least one product a title or a description"
            )
        self._size = len(documents)
        self._model = bm25s.BM25(**BM25_SETTINGS)
        self._model.index(tokens, show_progress=shows_progress())

    def save(self, folder: Path, documents: Sequence[str]) -> None:
        """Write the index of `documents` as a folder, which appears under its name when whole."""
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        self._model.save(partial, show_progress=False)
        write_json(partial / CATALOGUE_FILE, _catalogue_of(documents))
        partial.rename(folder)

    @classmethod
    def open(cls, folder: Path, documents: Sequence[str]) -> "BM25Index":
        """Open a saved index memory-mapped: the vocabulary is read, of the rest what queries touch.

        Raises `UserError` for a folder that holds no index, or one of other documents or settings.
        """
        if not (folder / CATALOGUE_FILE).is_file():
            raise UserError(
                f"`{folder}` holds no BM25 index; remove it or give another --index_dir"
            )
        if read_json(folder / CATALOGUE_FILE) != _catalogue_of(documents):
            raise UserError(
                f"the BM25 index in `{folder}` is of another catalogue or another version; remove "
                "it to have it built again, or give another --index_dir"
            )
        index = cls.__new__(cls)
        index._stemmer = Stemmer.Stemmer("english")
        index._size = len(documents)
        index._model = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        return index

    def __len__(self) -> int:
        """Return the number of documents."""
        return self._size

    def top(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices (Q, K) and float32 scores (Q, K) of each query's best documents.

        K is `k` or the size of the catalogue if that is smaller. Best first; equal scores keep
        catalogue order, also at the cut. Documents that share no word with the query score 0 and
        fill up the row: they are no candidates, callers drop them.
        """
        if k < 1:
            raise UserError(f"`k` is {k}; ask for at least 1 document")
        k = min(k, self._size)
        # A query of unknown words keeps this start: the first products, all with score 0.
        indices = np.tile(np.arange(k, dtype=np.int64), (len(queries), 1))
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for rows, document_scores in self._score_distinct(queries):
            best = _best(document_scores, k)
            indices[rows] = best
            scores[rows] = document_scores[best]
        return indices, scores

    def score(self, queries: Sequence[str], indices: np.ndarray) -> np.ndarray:
        """Return the BM25 scores (N,) of `queries[i]` with document `indices[i]`, float32, >= 0."""
        indices = np.asarray(indices, dtype=np.int64)
        scores = np.zeros(len(queries), dtype=np.float32)
        for rows, document_scores in self._score_distinct(queries):
            scores[rows] = document_scores[indices[rows]]
        return scores

    def _tokenize(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the stemmed words of each text."""
        return bm25s.tokenize(
            list(texts),
            token_pattern=TOKEN_PATTERN,
            stopwords=[],
            stemmer=self._stemmer,
            return_ids=False,
            show_progress=False,
        )

    def _numbered_words(self, texts: Sequence[str]) -> Any:
        """Return the words of `_tokenize` as numbers, with the number of each.

        bm25s can do so too, in three loops over all words; a catalogue's took a quarter of the time
        that loading it takes.
        """
        find = re.compile(TOKEN_PATTERN).findall
        words, stems = _Numbers(), _Numbers()
        rows = [
            list(map(words.__getitem__, find(text.lower())))
            for text in progress(texts, "BM25", len(texts))
        ]
        stem_of = [stems[stem] for stem in self._stemmer.stemWords(list(words))]
        ids = [list(map(stem_of.__getitem__, row)) for row in rows]
        return bm25s.tokenization.Tokenized(ids=ids, vocab=dict(stems))

    def _score_distinct(self, queries: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield a distinct query's rows in `queries` and its scores over the catalogue.

        Queries without a known word are left out.
        """
        rows_of_query = pd.Series(list(queries), dtype=object).groupby(list(queries)).indices
        tokens = self._tokenize(list(rows_of_query))
        rows_and_tokens = zip(rows_of_query.values(), tokens, strict=True)
        for rows, query_tokens in progress(rows_and_tokens, "BM25", len(tokens)):
            token_ids = self._model.get_tokens_ids(query_tokens)
            if token_ids:
                yield rows, self._model.get_scores_from_ids(token_ids)


class _Numbers(dict[str, int]):
    """Number what is looked up, from 0 in the order in which it first comes."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


def load_index(documents: Sequence[str], folder: str | None = None) -> BM25Index:
    """Return the BM25 index of a catalogue; with a folder it is built there once and then opened.

    A job that finds another one building waits for its index. Raises `UserError` where the folder
    holds an index of another catalogue.
    """
    if folder is None:
        return BM25Index(documents)
    from agr_trl.runtime import is_main_process, wait_for_everyone  # torch, which few here need

    is_there = Path(folder).is_dir()
    wait_for_everyone()
    if not is_there and is_main_process():
        _build_once(Path(folder), documents)
    wait_for_everyone()
    return BM25Index.open(Path(folder), documents)


def _build_once(folder: Path, documents: Sequence[str]) -> None:
    """Build an index on disk unless another job does, which is waited for.

    The operating system frees the lock with the process, so a killed job holds nothing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            BM25Index(documents).save(folder, documents)


def _catalogue_of(documents: Sequence[str]) -> dict[str, Any]:
    """Return what an index is made of: the texts, in their order, and the way they are indexed."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document).encode())
    settings = {**BM25_SETTINGS, "token_pattern": TOKEN_PATTERN, "stemmer": "english"}
    return {"documents": len(documents), "sha256": digest.hexdigest(), "settings": settings}


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the `k` largest scores (>= 0), best first, equal in their order."""
    found = np.flatnonzero(scores)  # few documents share a word with the query
    if len(found) < k:
        found = np.arange(len(scores))
    scores = scores[found]
    kth = np.partition(scores, -k)[-k]
    above = np.flatnonzero(scores > kth)
    at_cut = np.flatnonzero(scores == kth)[: k - len(above)]
    above = above[np.argsort(-scores[above], kind="stable")]
    return found[np.concatenate([above, at_cut])]


def blend(retriever_scores: np.ndarray, bm25_scores: np.ndarray, weight: float) -> np.ndarray:
    """Mix the two scores of one query's candidates: w * minmax(retriever) + (1 - w) * minmax(BM25).

    Shape (K,), range [0, 1]; the retriever's scores are its log-odds, which do not saturate as
    probabilities do. Scores that are all equal count 0. Raises `UserError` for a weight outside
    [0, 1]. Source: Fox and Shaw, "Combination of Multiple Searches", TREC-2 (CombSUM on
    normalised scores).
    """
    if not 0 <= weight <= 1:
        raise UserError(f"`blend_weight` is {weight}; it is the retriever's share, from 0 to 1")
    return weight * _min_max(retriever_scores) + (1 - weight) * _min_max(bm25_scores)


def _min_max(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)


def check_query(query: str) -> None:
    """Raise `UserError` for a blank query, and for one that no tokenizer takes for text.

    Python gives bytes of a command line that are not UTF-8 as halves of characters.
    """
    if not query.strip():
        raise UserError("the query is blank; type at least one word")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise UserError(f"the query {query!r} is not UTF-8 text; type it in UTF-8") from None


class ProductSearch:
    """Search a catalogue: BM25's best candidates, ranked by the retriever or by the blend."""

    def __init__(
        self,
        dataset: RelevanceDataset,
        index: BM25Index,
        scorer: Scorer,
        blend_weight: float | None = None,
    ) -> None:
        """Use `scorer`'s log-odds alone, or blended with BM25 if there is a `blend_weight`.

        Raises `UserError` if `index` was not built from this data set's documents.
        """
        if len(index) != len(dataset.products):
            raise UserError(
                f"the index holds {len(index)} documents and the catalogue {len(dataset.products)} "
                "products; build it with BM25Index(dataset.documents)"
            )
        self._products = dataset.products
        self._documents = dataset.documents
        self._index = index
        self._scorer = scorer
        self._blend_weight = blend_weight

    def search(self, query: str, k: int = 10, candidates: int = 100) -> pd.DataFrame:
        """Return the best `k` products: rank, product_id, title, score, bm25_score, probability.

        `rank` starts at 1, `score` (the order) is the blend or the probability, both in [0, 1].
        Only products that share a word with the query are candidates, so there may be fewer than
        `k` rows and, for a query of unknown words, none. Equal scores keep BM25's order. Raises
        `UserError` for what `check_query` refuses.
        """
        check_query(query)
        indices, bm25_scores = (row[0] for row in self._index.top([query], max(k, candidates)))
        indices, bm25_scores = indices[bm25_scores > 0], bm25_scores[bm25_scores > 0]
        documents = [self._documents[i] for i in indices]
        logits = score_distinct(self._scorer, [query] * len(documents), documents)
        probability = expit(logits)
        if self._blend_weight is None:
            score, key = probability, logits  # log-odds still differ where probabilities round to 1
        else:
            score = key = blend(logits, bm25_scores, self._blend_weight)
        order = np.argsort(-key, kind="stable")[:k]
        found = self._products.iloc[indices[order]]
        return pd.DataFrame(
            {
                "rank": np.arange(1, len(order) + 1),
                "product_id": found["product_id"].to_numpy(),
                "title": found["title"].to_numpy(),
                "score": score[order],
                "bm25_score": bm25_scores[order],
                "probability": probability[order],
            }
        )
