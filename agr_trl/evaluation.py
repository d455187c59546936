"""Measure how well a retriever classifies pairs and ranks products.

Two metrics (`PairMetrics`, `RankingMetrics`) and what feeds them: `score_candidates` scores all
pairs that an evaluation needs once, everything after it is arithmetic on that one frame.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import datasets
import evaluate
import ir_measures
import numpy as np
import pandas as pd
from ir_measures import AP, RR, R, nDCG
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from agr_trl.data import RelevanceDataset
from agr_trl.data.tables import MAX_GRADE
from agr_trl.errors import UserError
from agr_trl.search import BM25Index, Scorer, blend, score_distinct

logger = logging.getLogger(__name__)

Metrics = dict[str, float | None]

RANKING_METRICS = ("ndcg@10", "mrr@10", "map", "recall@100")

METRIC_DEFINITION = {
    "pairs": "roc_auc, pr_auc (average precision), f1 and accuracy (threshold 0.5) on labels "
    "binarised at 0.5; log_loss in nats and ece (15 equal-width bins) on the labels themselves; "
    "null where only one class is present",
    "gains": "ndcg@10 has gains 2^grade - 1 and log2 discounts; mrr@10, map and recall@100 count a "
    "product as relevant if its grade is at least relevant_grade",
    "judged": "ranks a query's judged products only",
    "rerank": "the retriever ranks BM25's top 100 (top_k) of the whole catalogue, products that "
    "share no word with the query left out; products not judged count 0",
    "blend": "the same candidates by blend_weight * minmax(log-odds) + (1 - blend_weight) * "
    "minmax(BM25), each scaled over a query's candidates",
    "bm25": "the same candidates in BM25's own order; bm25/judged/ ranks the judged products by "
    "BM25; bm25/roc_auc and bm25/pr_auc take its raw scores over all judged pairs",
    "means": "over the judged queries that have a relevant product (queries); the others are left "
    "out and counted (queries_without_relevant); a query that got no scores counts 0; equal scores "
    "are ordered by product id, descending, as trec_eval does",
}


class PairMetrics(evaluate.Metric):
    """Judge probabilities of "relevant" against labels in [0, 1]; works without the Hub.

    `compute(predictions=..., references=...)` returns `roc_auc`, `pr_auc`, `f1`, `accuracy`
    (labels and probabilities binarised at 0.5), `log_loss` (nats, against the labels as they are)
    and `ece`. Where the labels hold one class only, the two areas are not defined: None, which is
    null in JSON, and a warning. Raises `UserError` for no pairs and for values outside [0, 1].
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        )
        return _metric_info(METRIC_DEFINITION["pairs"], features)

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> Metrics:
        probabilities, labels = np.asarray(predictions), np.asarray(references)
        for name, values in (("predictions", probabilities), ("references", labels)):
            if not len(values):
                raise UserError("there are no pairs to evaluate; choose a split with judgements")
            if not ((values >= 0) & (values <= 1)).all():
                raise UserError(f"{name} must lie in [0, 1]; got {values.min()} to {values.max()}")
        relevant, accepted = labels >= 0.5, probabilities >= 0.5
        return {
            **_areas(probabilities, relevant),
            "f1": float(f1_score(relevant, accepted, zero_division=0.0)),
            "accuracy": float(np.mean(relevant == accepted)),
            "log_loss": log_loss_nats(probabilities, labels),
            "ece": expected_calibration_error(probabilities, labels),
        }


class RankingMetrics(evaluate.Metric):
    """Judge rankings against graded judgements; one row is one query; works without the Hub.

    predictions: `{"product_id": [...], "score": [...]}`, the products that were scored, perhaps
    none; references: `{"product_id": [...], "grade": [...]}`, the judged ones. `compute(...,
    relevant_grade=1)` returns the means of `ranking_per_query` and the counts `queries` (in the
    means) and `queries_without_relevant` (left out).
    """

    def _info(self) -> evaluate.MetricInfo:
        product_ids = datasets.List(datasets.Value("string"))
        features = datasets.Features(
            {
                "predictions": {
                    "product_id": product_ids,
                    "score": datasets.List(datasets.Value("float64")),
                },
                "references": {
                    "product_id": product_ids,
                    "grade": datasets.List(datasets.Value("int64")),
                },
            }
        )
        return _metric_info(f"{METRIC_DEFINITION['gains']}; {METRIC_DEFINITION['means']}", features)

    def _compute(
        self,
        predictions: Sequence[Mapping[str, list]],
        references: Sequence[Mapping[str, list]],
        relevant_grade: int = 1,
    ) -> Metrics:
        scores, judgements = (
            pd.DataFrame(list(rows), columns=["product_id", value])
            .rename_axis("query_id")
            .explode(["product_id", value])
            .dropna()
            .reset_index()
            .astype({"query_id": str, value: dtype})
            for rows, value, dtype in (
                (predictions, "score", "float64"),
                (references, "grade", "int64"),
            )
        )
        return ranking_means(ranking_per_query(scores, judgements, relevant_grade), len(references))


def _metric_info(description: str, features: datasets.Features) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description="", features=features
    )


def log_loss_nats(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean binary cross-entropy in nats; probabilities are clipped 1e-7 off 0 and 1."""
    p = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return float(-np.mean(labels * np.log(p) + (1 - labels) * np.log1p(-p)))


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15
) -> float:
    """Return the sum over bins B of |B| / n * |mean label(B) - mean probability(B)|, in [0, 1].

    The bins have equal width; (low, high] as in Guo et al. 2017, "On Calibration of Modern Neural
    Networks" (arXiv 1706.04599), with 0 in the first. Of the two binary forms this is the one over
    the probability of "relevant", since that, not the top class, is what the retriever is used for.
    """
    bins = np.clip(np.ceil(probabilities * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=labels - probabilities, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(probabilities))


def _areas(scores: np.ndarray, relevant: np.ndarray) -> Metrics:
    if relevant.all() or not relevant.any():
        logger.warning(
            "all %d pairs have one label: roc_auc and pr_auc are not defined", len(relevant)
        )
        return {"roc_auc": None, "pr_auc": None}
    return {
        "roc_auc": float(roc_auc_score(relevant, scores)),
        "pr_auc": float(average_precision_score(relevant, scores)),
    }


def ranking_per_query(
    scores: pd.DataFrame, judgements: pd.DataFrame, relevant_grade: int = 1
) -> pd.DataFrame:
    """Return `RANKING_METRICS` (columns) of each query with a relevant product (index query_id).

    `scores` has query_id, product_id, score; `judgements` query_id, product_id, grade. A query
    without scores gets 0. Gains are 2^grade - 1; relevant is grade >= `relevant_grade`. Equal
    scores are ordered by product id, descending. Computed by trec_eval through ir_measures. Raises
    `UserError` for a grade above `MAX_GRADE`.
    """
    if relevant_grade < 1:
        raise UserError(f"`relevant_grade` is {relevant_grade}; it must be at least 1")
    if (best := judgements["grade"].max()) > MAX_GRADE:
        raise UserError(f"a grade is {best:g}; map ratings to the grades 0 to {MAX_GRADE}")
    best_grade = judgements.groupby("query_id")["grade"].transform("max")
    judgements = judgements[best_grade >= relevant_grade]
    # ir_measures leaves exponential gains to a perl program, so the grades carry them instead.
    gains = 2 ** judgements["grade"].clip(lower=0).astype(int) - 1
    qrels = {
        query_id: dict(zip(rows["product_id"].tolist(), rows["gain"].tolist(), strict=True))
        for query_id, rows in judgements.assign(gain=gains).groupby("query_id", sort=False)
    }
    # trec_eval compares scores as 32-bit floats and the measures break ties in different ways:
    # hand them ranks.
    ranked = scores[scores["query_id"].isin(list(qrels))]
    ranked = ranked.sort_values(["score", "product_id"], ascending=False)
    run = {
        query_id: {product: -float(rank) for rank, product in enumerate(dict.fromkeys(products))}
        for query_id, products in ranked.groupby("query_id")["product_id"].agg(list).items()
    }
    threshold = 2**relevant_grade - 1
    measures = (nDCG @ 10, RR(rel=threshold) @ 10, AP(rel=threshold), R(rel=threshold) @ 100)
    names = dict(zip(measures, RANKING_METRICS, strict=True))
    values = {query_id: dict.fromkeys(RANKING_METRICS, 0.0) for query_id in qrels}
    for metric in ir_measures.iter_calc(measures, qrels, run) if run else ():
        values[metric.query_id][names[metric.measure]] = metric.value
    return pd.DataFrame(
        list(values.values()),
        index=pd.Index(list(values), name="query_id"),
        columns=list(RANKING_METRICS),
        dtype=float,
    )


def ranking_means(per_query: pd.DataFrame, num_queries: int) -> Metrics:
    """Return the means of `per_query` and the counts; without any query the means are None."""
    if per_query.empty:
        logger.warning("none of %d queries has a relevant product", num_queries)
    means: Metrics = {
        name: float(per_query[name].mean()) if len(per_query) else None for name in RANKING_METRICS
    }
    return means | {
        "queries": len(per_query),
        "queries_without_relevant": num_queries - len(per_query),
    }


@dataclass(frozen=True)
class ScoredCandidates:
    """Every pair that an evaluation of one split needs, scored once; see `score_candidates`.

    `pairs` has a row per judgement and per further candidate: query_id, product_id, query,
    document, label and grade (NaN where not judged), judged and candidate (bool), bm25 (raw score),
    retriever (log-odds; BM25's scores where `is_bm25`).
    """

    pairs: pd.DataFrame
    has_ids: bool
    is_bm25: bool

    def evaluate(self, blend_weight: float | None = None, relevant_grade: int = 1) -> Metrics:
        """Return all metrics as one flat dictionary; METRIC_DEFINITION says what its groups mean.

        Unprefixed: pair metrics, counts. Where judgements have ids also `judged/`, `rerank/`,
        `bm25/`, `bm25/judged/` and, with a `blend_weight`, `blend/`. For BM25 itself the metrics
        that need a probability are left out.
        """
        judged = self.pairs[self.pairs["judged"]]
        relevant = judged["label"].to_numpy() >= 0.5
        metrics: Metrics
        if self.is_bm25:
            metrics = _areas(judged["retriever"].to_numpy(), relevant)
        else:
            metrics = PairMetrics(keep_in_memory=True).compute(
                predictions=expit(judged["retriever"].to_numpy()),
                references=judged["label"].to_numpy(),
            )
        metrics["pairs"] = len(judged)
        rankings = self.rankings(blend_weight, relevant_grade) if self.has_ids else {}
        for group, per_query in rankings.items():
            means = ranking_means(per_query, judged["query_id"].nunique())
            metrics |= {f"{group}/{name}": means[name] for name in RANKING_METRICS}
            metrics |= {name: means[name] for name in ("queries", "queries_without_relevant")}
        if "blend" in rankings:
            metrics["blend_weight"] = blend_weight
        bm25_areas = _areas(judged["bm25"].to_numpy(), relevant)
        return metrics | {f"bm25/{name}": value for name, value in bm25_areas.items()}

    def rankings(
        self, blend_weight: float | None = None, relevant_grade: int = 1
    ) -> dict[str, pd.DataFrame]:
        """Return `ranking_per_query` of each group, for means and for tests paired by query."""
        judged = self.pairs[self.pairs["judged"]]
        candidates = self.pairs[self.pairs["candidate"]]
        runs = {
            "judged": judged.assign(score=judged["retriever"]),
            "rerank": candidates.assign(score=candidates["retriever"]),
        }
        if blend_weight is not None:
            runs["blend"] = candidates.assign(score=_blend_by_query(candidates, blend_weight))
        runs["bm25"] = candidates.assign(score=candidates["bm25"])
        runs["bm25/judged"] = judged.assign(score=judged["bm25"])
        return {
            group: ranking_per_query(run, judged, relevant_grade) for group, run in runs.items()
        }

    def choose_blend_weight(self, relevant_grade: int = 1) -> tuple[float | None, dict[str, float]]:
        """Return the weight of 0, 0.05, ... 1 with the best blend/ndcg@10, and the whole curve.

        Of equally good weights the one nearest to 0.5 is taken, as the least committed. The curve
        has the weight as text ("0.35"), so that it can be written as JSON. None and {} where BM25
        finds nothing, or no query has a relevant product.
        """
        judged = self.pairs[self.pairs["judged"]]
        candidates = self.pairs[self.pairs["candidate"]]
        curve: dict[str, float] = {}
        for weight in np.linspace(0, 1, 21):
            run = candidates.assign(score=_blend_by_query(candidates, weight))
            per_query = ranking_per_query(run, judged, relevant_grade)
            if candidates.empty or per_query.empty:
                return None, {}
            curve[f"{weight:.2f}"] = float(per_query["ndcg@10"].mean())
        best = max(curve.values())
        ties = [float(weight) for weight, value in curve.items() if value >= best - 1e-12]
        return min(ties, key=lambda weight: abs(weight - 0.5)), curve


def _blend_by_query(candidates: pd.DataFrame, weight: float) -> np.ndarray:
    retriever, bm25 = candidates["retriever"].to_numpy(), candidates["bm25"].to_numpy()
    scores = np.zeros(len(candidates))
    for rows in candidates.groupby("query_id").indices.values():
        scores[rows] = blend(retriever[rows], bm25[rows], weight)
    return scores


def score_candidates(
    scorer: Scorer | None,
    dataset: RelevanceDataset,
    split: str,
    index: BM25Index,
    top_k: int = 100,
) -> ScoredCandidates:
    """Score the split's judged pairs and, where judgements have ids, BM25's `top_k` of each query.

    `scorer` gives log-odds; None stands for BM25 itself. One call scores every distinct (query,
    document) once. `index` is over `dataset.documents`. Raises `UserError` for an empty split.
    """
    pairs = dataset.pairs(split)[["query_id", "product_id", "label", "grade"]]
    query_of = dict(zip(dataset.queries["query_id"], dataset.queries["query"], strict=True))
    product_ids = pd.Index(dataset.products["product_id"])
    candidates = pairs[["query_id", "product_id"]].head(0)
    if dataset.has_ids:
        query_ids = pairs["query_id"].unique()
        indices, scores = index.top([query_of[query_id] for query_id in query_ids], top_k)
        candidates = pd.DataFrame(
            {
                "query_id": np.repeat(query_ids, indices.shape[1]),
                "product_id": product_ids[indices.ravel()],
            }
        )[scores.ravel() > 0]
    pairs = pairs.merge(candidates, how="outer", on=["query_id", "product_id"], indicator="origin")
    positions = product_ids.get_indexer(pairs["product_id"])
    queries = [query_of[query_id] for query_id in pairs["query_id"]]
    documents = [dataset.documents[position] for position in positions]
    bm25 = index.score(queries, positions).astype(np.float64)
    pairs = pairs.assign(
        query=queries,
        document=documents,
        judged=pairs["origin"] != "right_only",
        candidate=pairs["origin"] != "left_only",
        bm25=bm25,
        retriever=bm25 if scorer is None else score_distinct(scorer, queries, documents),
    ).drop(columns="origin")
    return ScoredCandidates(pairs, has_ids=dataset.has_ids, is_bm25=scorer is None)


def format_table(metrics: Mapping[str, float | None]) -> str:
    """Return the metrics as plain text: a row per metric, a column per group, counts below.

    Unprefixed metrics stand under "pairs"; "-" is a metric that a group does not have.
    """
    counts = ("pairs", "queries", "queries_without_relevant", "blend_weight")
    table: dict[str, dict[str, str]] = {}
    for key, value in metrics.items():
        group, _, name = key.rpartition("/")
        if key not in counts and value is not None:
            table.setdefault(name, {})[group or "pairs"] = f"{value:.4f}"
    groups = list(dict.fromkeys(group for cells in table.values() for group in cells))
    lines = [["", *groups]]
    lines += [[name, *(cells.get(group, "-") for group in groups)] for name, cells in table.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip()
        for first, *rest in lines
    ]
    tail = ", ".join(f"{key} {metrics[key]:g}" for key in counts if metrics.get(key) is not None)
    return "\n".join([*text, tail] if tail else text)
