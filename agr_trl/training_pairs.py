"""What the retriever learns from: judged pairs, accepted generated queries, and mined negatives."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from agr_trl.config import LoopArguments, RetrieverArguments
from agr_trl.data import RelevanceDataset
from agr_trl.negatives import mine_negatives
from agr_trl.search import BM25Index, Scorer

if TYPE_CHECKING:
    from agr_trl.relevance import RelevanceScorer, Teacher

COLUMNS = ["query", "document", "label", "source"]


def gold_pairs(
    dataset: RelevanceDataset,
    index: BM25Index,
    args: RetrieverArguments,
    scorer: Scorer | None,
    seed: int,
) -> pd.DataFrame:
    """Return the train split's judged pairs and negatives mined for its relevant ones.

    Columns query, document, label in [0, 1], source: "gold", "gold_hard" or "gold_random". A
    product that was judged at all relevant to a query (label above 0) is never its negative.
    """
    judged = dataset.pairs("train")
    gold = judged[["query", "document", "label"]].assign(source="gold")
    positives = judged[judged["label"] >= 0.5].reset_index(drop=True)
    if positives.empty or not args.hard_negatives + args.random_negatives:
        return gold[COLUMNS]
    positions = pd.Index(dataset.products["product_id"])
    of_query = (
        judged[judged["label"] > 0]
        .groupby("query_id")["product_id"]
        .agg(lambda ids: set(positions.get_indexer(ids).tolist()))
    )
    mined = mine_negatives(
        positives["query"].tolist(),
        positions.get_indexer(positives["product_id"]),
        index,
        dataset.documents,
        num_hard=args.hard_negatives,
        num_random=args.random_negatives,
        scorer=scorer,
        margin=args.negative_margin,
        excluded=[of_query[query_id] for query_id in positives["query_id"]],
        seed=seed,
    )
    negatives = pd.DataFrame(
        {
            "query": positives["query"].to_numpy()[mined["row"]],
            "document": _texts(dataset.documents, mined["product_index"]),
            "label": 0.0,
            "source": "gold_" + mined["kind"],
        }
    ).drop_duplicates(["query", "document"])
    return pd.concat([gold, negatives], ignore_index=True)[COLUMNS]


def synthetic_pairs(
    queries: pd.DataFrame,
    dataset: RelevanceDataset,
    index: BM25Index,
    args: LoopArguments,
    margin: float | None,
    relevance: "RelevanceScorer",
    teacher: "Teacher",
    seed: int,
) -> pd.DataFrame:
    """Return accepted queries with their products and mined negatives, columns as `gold_pairs`.

    `queries` has query and product_index. With `soft_labels` every pair is labelled with the
    teacher's probability; a hard query that is hardly relevant then teaches little, and a
    "negative" may be any BM25 candidate, since its label says how relevant it is (GPL, arXiv
    2112.07577, labels by a teacher for the same reasons). Without soft labels hard negatives keep
    the `margin` in S, `relevance`. A pair that people have judged in train is not labelled again.
    """
    queries = queries.reset_index(drop=True)
    own = _texts(dataset.documents, queries["product_index"])
    positives = pd.DataFrame(
        {
            "query": queries["query"],
            "document": own,
            "label": synthetic_labels(queries["query"].tolist(), own, args, teacher),
            "source": "synthetic",
        }
    )
    mined = mine_negatives(
        queries["query"].tolist(),
        queries["product_index"].to_numpy(),
        index,
        dataset.documents,
        num_hard=args.synthetic_hard_negatives,
        num_random=args.synthetic_random_negatives,
        scorer=relevance.score,
        margin=margin,
        any_candidate=args.soft_labels,
        pool_size=args.synthetic_negative_pool,
        seed=seed,
    )
    negative_queries = queries["query"].to_numpy()[mined["row"]].tolist()
    documents = _texts(dataset.documents, mined["product_index"])
    labels = np.zeros(len(mined))
    if args.soft_labels:
        labels = teacher.probability(negative_queries, documents)
    negatives = pd.DataFrame(
        {
            "query": negative_queries,
            "document": documents,
            "label": labels,
            "source": "synthetic_" + mined["kind"],
        }
    )
    both = pd.concat([positives, negatives], ignore_index=True)[COLUMNS]
    judged = _keys(both).isin(_keys(dataset.pairs("train")))
    return both[~judged].reset_index(drop=True)


def _keys(pairs: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([pairs["query"].str.lower(), pairs["document"]])


def synthetic_labels(
    queries: Sequence[str], documents: Sequence[str], args: LoopArguments, teacher: "Teacher"
) -> np.ndarray:
    """Return the labels of generated queries with their own products, (N,) in [0, 1]."""
    return teacher.probability(queries, documents) if args.soft_labels else np.ones(len(queries))


def mix(
    gold: pd.DataFrame, synthetic: pd.DataFrame, args: LoopArguments, seed: int
) -> pd.DataFrame:
    """Return gold pairs, repeated, and at most `max_synthetic_share` synthetic ones, shuffled."""
    repeated = pd.concat([gold] * args.gold_repeats_per_round, ignore_index=True)
    share = args.max_synthetic_share
    # s <= share * (s + gold), solved for s; .6 / .4 is a little below 1.5 in floating point.
    limit = int(share * len(repeated) / (1 - share) + 1e-9) if share < 1 else len(synthetic)
    if len(synthetic) > limit:
        synthetic = synthetic.sample(limit, random_state=seed)
    both = pd.concat([repeated, synthetic], ignore_index=True)
    return both.sample(frac=1, random_state=seed, ignore_index=True)


def _texts(documents: Sequence[str], positions: Sequence[int] | pd.Series) -> list[str]:
    return [documents[position] for position in positions]
