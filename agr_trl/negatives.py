"""Find products that look relevant to a query and are not: negatives to train on.

Shapes: N rows (a query with one of its positives), P candidates of a row.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from agr_trl.errors import UserError
from agr_trl.search import BM25Index, Scorer, score_distinct

logger = logging.getLogger(__name__)


def mine_negatives(
    queries: Sequence[str],
    positive_indices: Sequence[int] | np.ndarray,
    index: BM25Index,
    documents: Sequence[str],
    *,
    num_hard: int,
    num_random: int,
    num_in_batch: int = 0,
    scorer: Scorer | None = None,
    margin: float | None = None,
    any_candidate: bool = False,
    pool_size: int = 50,
    excluded: Sequence[set[int]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return negatives as rows (row, product_index, kind), `row` being a position in `queries`.

    - "hard": drawn from BM25's best `pool_size` products (pool and draw as in GPL, arXiv
      2112.07577) that pass a margin rule against false negatives (NV-Retriever, arXiv 2407.15831).
      With a `scorer` S, a judge in [0, 1] other than the model in training, a candidate d passes if
      S(q, d) <= S(q, positive) - margin, 0.1 by default; without one if BM25(q, d) <=
      (1 - margin) * BM25(q, positive), 0.5 by default, so a positive that shares no word with its
      query gets none. Short shop queries need these wide margins: with 0.05 most of the judged
      products that came out as "negatives" of real queries were relevant. With `any_candidate` no
      margin is asked, for a caller that lets a teacher label what it gets;
    - "in_batch": positives of other rows, drawn as often as they are positives.
    - "random": uniform over the catalogue. The margin is not asked of these two.

    Never a negative: a positive of the same query in any row, what `excluded` names for the query
    (the products judged relevant), and every product whose document equals one of these. No
    document comes twice in a row. A row may get fewer than asked for; the log counts them. The same
    seed gives the same frame, sorted by row, within it hard, in_batch, random. Raises `UserError`
    for arguments that do not fit together.
    """
    if margin is None:
        margin = 0.5 if scorer is None else 0.1
    positives = np.asarray(positive_indices, dtype=np.int64)
    _check_arguments(queries, positives, index, documents, margin, pool_size, excluded)
    generator = np.random.default_rng(seed)
    text_of = pd.factorize(np.asarray(documents, dtype=object))[0]  # one code per distinct text
    query_of = pd.factorize(np.asarray(queries, dtype=object))[0]
    known = _known_pairs(query_of, positives, text_of, excluded)

    def unknown(pool: pd.DataFrame) -> pd.DataFrame:
        pool = pool.assign(text=text_of[pool["product_index"]])
        pairs = query_of[pool["row"]] * len(documents) + pool["text"]
        return pool[~np.isin(pairs, known)].drop_duplicates(["row", "text"])

    hard = unknown(_bm25_pool(queries, index, pool_size, generator)) if num_hard else _frame([], [])
    if not any_candidate:
        hard = hard[_passes_margin(hard, queries, positives, index, documents, scorer, margin)]
    pools = (
        ("hard", num_hard, hard),
        ("in_batch", num_in_batch, unknown(_in_batch_pool(positives, num_in_batch, generator))),
        (
            "random",
            num_random,
            unknown(_random_pool(len(queries), len(documents), num_random, generator)),
        ),
    )
    picked = _frame([], []).assign(text=np.zeros(0, dtype=np.int64), kind="")
    for kind, count, pool in pools:
        both = pd.concat([picked, pool.assign(kind=kind)]).drop_duplicates(["row", "text"])
        fresh = both[both["kind"] == kind].groupby("row").head(count)
        picked = pd.concat([picked, fresh])
        if count:
            logger.info("%d of %d %s negatives found", len(fresh), count * len(queries), kind)
    picked = picked.sort_values("row", kind="stable", ignore_index=True)
    return picked[["row", "product_index", "kind"]]


def _check_arguments(
    queries: Sequence[str],
    positives: np.ndarray,
    index: BM25Index,
    documents: Sequence[str],
    margin: float,
    pool_size: int,
    excluded: Sequence[set[int]] | None,
) -> None:
    if len(index) != len(documents):
        raise UserError(
            f"the index holds {len(index)} documents, `documents` {len(documents)}; "
            "build the index from these documents"
        )
    if positives.shape != (len(queries),):
        raise UserError(f"{len(queries)} queries need as many positives, not {positives.shape}")
    if excluded is not None and len(excluded) != len(queries):
        raise UserError(f"{len(queries)} queries need as many `excluded` sets, not {len(excluded)}")
    named = np.union1d(positives, list(set().union(*(excluded or [])))).astype(np.int64)
    if len(named) and (named[0] < 0 or named[-1] >= len(documents)):
        raise UserError(
            f"product indices lie in {named[0]}..{named[-1]}; "
            f"the catalogue has 0..{len(documents) - 1}"
        )
    if not 0 <= margin < 1:
        raise UserError(f"`margin` is {margin}; it must be at least 0 and below 1")
    if pool_size < 1:
        raise UserError(f"`pool_size` is {pool_size}; it must be at least 1")


def _known_pairs(
    query_of: np.ndarray,
    positives: np.ndarray,
    text_of: np.ndarray,
    excluded: Sequence[set[int]] | None,
) -> np.ndarray:
    """Return the (query, text) pairs that are never negatives, as query * len(text_of) + text."""
    pairs = [query_of * len(text_of) + text_of[positives]]
    by_query: dict[int, set[int]] = {}
    for query, products in zip(query_of.tolist(), excluded or [], strict=False):
        by_query.setdefault(query, set()).update(products)
    for query, products in by_query.items():
        pairs.append(query * len(text_of) + text_of[np.fromiter(products, dtype=np.int64)])
    return np.unique(np.concatenate(pairs))


def _frame(rows: np.ndarray | list, products: np.ndarray | list) -> pd.DataFrame:
    columns = {"row": np.ravel(rows), "product_index": np.ravel(products)}
    return pd.DataFrame(columns, dtype=np.int64)


def _bm25_pool(
    queries: Sequence[str], index: BM25Index, pool_size: int, generator: np.random.Generator
) -> pd.DataFrame:
    """Return each query's BM25 candidates, those that share a word with it, in random order."""
    products, scores = index.top(queries, pool_size)  # (N, P)
    rows = np.broadcast_to(np.arange(len(queries))[:, None], products.shape)
    pool = _frame(rows, products).assign(bm25=scores.ravel())
    pool = pool[pool["bm25"] > 0]
    return pool.iloc[generator.permutation(len(pool))]


def _passes_margin(
    pool: pd.DataFrame,
    queries: Sequence[str],
    positives: np.ndarray,
    index: BM25Index,
    documents: Sequence[str],
    scorer: Scorer | None,
    margin: float,
) -> np.ndarray:
    """Return which candidates score far enough below their row's positive to be negatives."""
    rows = pool["row"].to_numpy()
    if pool.empty:
        return np.zeros(0, dtype=bool)
    if scorer is None:
        return pool["bm25"].to_numpy() <= (1 - margin) * index.score(queries, positives)[rows]
    asked = np.concatenate([rows, np.arange(len(queries))])
    products = np.concatenate([pool["product_index"], positives])
    scores = score_distinct(scorer, [queries[i] for i in asked], [documents[i] for i in products])
    return scores[: len(rows)] <= scores[len(rows) :][rows] - margin


def _in_batch_pool(
    positives: np.ndarray, count: int, generator: np.random.Generator
) -> pd.DataFrame:
    """Return, for each row, the positives of the rows that follow it in one shuffle of all rows."""
    order = generator.permutation(len(positives))
    shifts = range(1, min(len(order), 4 * count + 1))  # spare ones for those that are left out
    partners = [np.roll(order, -shift) for shift in shifts]
    return _frame(np.tile(order, len(partners)), positives[np.ravel(partners).astype(np.int64)])


def _random_pool(
    num_rows: int, num_products: int, count: int, generator: np.random.Generator
) -> pd.DataFrame:
    """Return random products for each row: a small catalogue whole, else a sample with spares."""
    draws = 4 * count + 16 if count else 0
    if num_products <= draws:
        catalogue = np.broadcast_to(np.arange(num_products), (num_rows, num_products))
        products = generator.permuted(catalogue, axis=1)
    else:
        products = generator.integers(num_products, size=(num_rows, draws))
    return _frame(np.repeat(np.arange(num_rows), products.shape[1]), products)
