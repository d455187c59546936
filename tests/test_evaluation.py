"""Each metric against hand-worked values and a second implementation; the evaluation flow."""

import json
import logging
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import ndcg_score

from agr_trl.data import RelevanceDataset
from agr_trl.errors import UserError
from agr_trl.evaluation import (
    METRIC_DEFINITION,
    RANKING_METRICS,
    PairMetrics,
    RankingMetrics,
    expected_calibration_error,
    format_table,
    log_loss_nats,
    ranking_per_query,
    score_candidates,
)
from agr_trl.search import BM25Index

# ---------------------------------------------------------------------------------- pair metrics


def pair_metrics(predictions: list[float], references: list[float]) -> dict:
    return PairMetrics(keep_in_memory=True).compute(predictions=predictions, references=references)


def test_pair_metrics_worked_by_hand() -> None:
    found = pair_metrics([0.9, 0.7, 0.6, 0.2], [1, 0, 1, 0])
    # Of the 2 x 2 (relevant, irrelevant) comparisons three are in order.
    assert found["roc_auc"] == pytest.approx(3 / 4)
    # Precision at the relevant ones, ranks 1 and 3: (1/1 + 2/3) / 2.
    assert found["pr_auc"] == pytest.approx(5 / 6)
    # Accepted .9, .7, .6: two right, one wrong; none missed.
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 0))
    assert found["accuracy"] == pytest.approx(3 / 4)
    expected = -(math.log(0.9) + math.log(0.3) + math.log(0.6) + math.log(0.8)) / 4
    assert found["log_loss"] == pytest.approx(expected)
    # Each in a bin of its own: the gaps are .1, .7, .4, .2.
    assert found["ece"] == pytest.approx((0.1 + 0.7 + 0.4 + 0.2) / 4)


def test_areas_equal_naive_counting() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=60)
    scores = np.round(generator.random(60), 1)  # with ties
    found = pair_metrics(scores.tolist(), labels.tolist())
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert found["roc_auc"] == pytest.approx(wins)
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        accepted = scores >= threshold
        recall = labels[accepted].sum() / labels.sum()
        area += (recall - recall_before) * labels[accepted].mean()
        recall_before = recall
    assert found["pr_auc"] == pytest.approx(area)


def test_log_loss_of_sure_and_soft_cases() -> None:
    assert log_loss_nats(np.array([1.0]), np.array([0.0])) == pytest.approx(7 * math.log(10))
    assert log_loss_nats(np.array([0.5]), np.array([0.3])) == pytest.approx(math.log(2))
    # A soft label costs at least its own entropy.
    soft = log_loss_nats(np.array([0.3]), np.array([0.3]))
    assert soft == pytest.approx(-(0.3 * math.log(0.3) + 0.7 * math.log(0.7)))


def test_ece_worked_by_hand() -> None:
    # .81 and .85 share the bin (.8, .867]: mean label .5, mean probability .83.
    probabilities, labels = np.array([0.81, 0.85, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.33)
    # (low, high]: .5 of two bins belongs to the lower one, with .1.
    found = expected_calibration_error(np.array([0.1, 0.5]), np.array([0.0, 1.0]), num_bins=2)
    assert found == pytest.approx(abs(0.5 - 0.3))
    # .04 in the first bin (0, .067] and .1 in the second are apart: gaps .96 and -.1.
    found = expected_calibration_error(np.array([0.04, 0.1]), np.array([1.0, 0.0]))
    assert found == pytest.approx((0.96 + 0.1) / 2)
    calibrated = np.full(10, 0.3)
    assert expected_calibration_error(calibrated, np.arange(10) < 3) == pytest.approx(0)


def test_soft_labels_are_binarised_for_the_areas_only() -> None:
    found = pair_metrics([0.8, 0.4], [0.5, 0.4])
    assert found["roc_auc"] == found["pr_auc"] == found["f1"] == found["accuracy"] == 1.0
    assert found["ece"] == pytest.approx((0.3 + 0.0) / 2)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_gives_null_areas(label: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = pair_metrics([0.2, 0.8], [label, label])
    assert found["roc_auc"] is None
    assert found["pr_auc"] is None
    assert found["accuracy"] == 0.5
    assert "roc_auc and pr_auc are not defined" in caplog.text
    assert "NaN" not in json.dumps(found)


@pytest.mark.parametrize("predictions", [[1.2], [-0.1], [float("nan")]])
def test_values_that_are_no_probabilities_are_refused(predictions: list[float]) -> None:
    with pytest.raises(UserError, match=r"predictions must lie in \[0, 1\]"):
        pair_metrics(predictions, [1.0])
    with pytest.raises(UserError, match="no pairs"):
        pair_metrics([], [])


def test_batches_and_a_cache_folder_give_the_same(tmp_path) -> None:
    metric = PairMetrics(cache_dir=str(tmp_path))
    metric.add_batch(predictions=[0.9, 0.7], references=[1, 0])
    metric.add_batch(predictions=[0.6, 0.2], references=[1, 0])
    assert metric.compute() == pair_metrics([0.9, 0.7, 0.6, 0.2], [1, 0, 1, 0])


# ------------------------------------------------------------------------------- ranking metrics

JUDGEMENTS = pd.DataFrame(
    [
        ("q1", "a", 2), ("q1", "b", 0), ("q1", "c", 1),
        ("q2", "a", 0), ("q2", "b", 0),  # nothing relevant: left out
        ("q3", "b", 1),  # never scored: counts 0
    ],
    columns=["query_id", "product_id", "grade"],
)  # fmt: skip
SCORES = pd.DataFrame(
    [("q1", "x", 9.0), ("q1", "c", 5.0), ("q1", "b", 4.0), ("q1", "a", -1.0), ("q2", "a", 1.0)],
    columns=["query_id", "product_id", "score"],
)  # q1 ranks x (not judged), c (grade 1), b (0), a (2)


def test_ranking_worked_by_hand() -> None:
    found = ranking_per_query(SCORES, JUDGEMENTS)
    assert found.index.tolist() == ["q1", "q3"]
    dcg = 1 / math.log2(3) + 3 / math.log2(5)  # gains 2^1 - 1 at rank 2, 2^2 - 1 at rank 4
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    assert found.loc["q1", "ndcg@10"] == pytest.approx(dcg / ideal)
    assert found.loc["q1", "mrr@10"] == pytest.approx(1 / 2)
    assert found.loc["q1", "map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found.loc["q1", "recall@100"] == 1.0
    assert found.loc["q3"].tolist() == [0, 0, 0, 0]


def test_relevant_grade_moves_all_but_the_gains() -> None:
    found = ranking_per_query(SCORES, JUDGEMENTS, relevant_grade=2)
    assert found.index.tolist() == ["q1"]  # q3 has no product of grade 2
    assert found.loc["q1", "mrr@10"] == pytest.approx(1 / 4)
    assert found.loc["q1", "map"] == pytest.approx(1 / 4)
    both = ranking_per_query(SCORES, JUDGEMENTS)
    assert found.loc["q1", "ndcg@10"] == both.loc["q1", "ndcg@10"]
    with pytest.raises(UserError, match="`relevant_grade` is 0"):
        ranking_per_query(SCORES, JUDGEMENTS, relevant_grade=0)
    # Of grades 2 (rank 1) and 3 (rank 2) only the second is relevant from 3 on.
    judgements = pd.DataFrame({"query_id": "q", "product_id": ["a", "b"], "grade": [2, 3]})
    scores = judgements[["query_id", "product_id"]].assign(score=[2.0, 1.0])
    assert ranking_per_query(scores, judgements, relevant_grade=3).loc["q", "mrr@10"] == 0.5


def test_ratings_are_no_grades() -> None:
    with pytest.raises(UserError, match="a grade is 80; map ratings to the grades 0 to 10"):
        ranking_per_query(SCORES, JUDGEMENTS.assign(grade=JUDGEMENTS["grade"] * 40))


def test_without_any_score_every_query_counts_0() -> None:
    found = ranking_per_query(SCORES.head(0), JUDGEMENTS)
    assert found.index.name == "query_id" and found.columns.tolist() == list(RANKING_METRICS)
    assert found.to_numpy().tolist() == [[0.0] * 4] * 2


def test_cutoffs() -> None:
    ids = [f"p{i:03d}" for i in range(120)]
    scores = pd.DataFrame({"query_id": "q", "product_id": ids, "score": np.arange(120, 0, -1.0)})
    relevant = [ids[10], ids[99], ids[100]]  # ranks 11, 100, 101
    judgements = pd.DataFrame({"query_id": "q", "product_id": relevant, "grade": 1})
    found = ranking_per_query(scores, judgements).loc["q"]
    assert found["ndcg@10"] == found["mrr@10"] == 0
    assert found["recall@100"] == pytest.approx(2 / 3)
    assert found["map"] == pytest.approx((1 / 11 + 2 / 100 + 3 / 101) / 3)


def test_ties_go_by_product_id_not_by_file_order() -> None:
    judgements = pd.DataFrame({"query_id": "q", "product_id": ["a", "b"], "grade": [1, 0]})
    for ids in (["a", "b"], ["b", "a"]):
        scores = pd.DataFrame({"query_id": "q", "product_id": ids, "score": 0.0})
        assert ranking_per_query(scores, judgements).loc["q", "mrr@10"] == 0.5
    # Scores that only 64 bits tell apart are no tie.
    scores = pd.DataFrame({"query_id": "q", "product_id": ["a", "b"], "score": [1 + 1e-12, 1.0]})
    assert ranking_per_query(scores, judgements).loc["q", "mrr@10"] == 1.0


def naive_ranking(scores: pd.DataFrame, judgements: pd.DataFrame) -> dict[str, list[float]]:
    values = []
    for query_id, judged in judgements.groupby("query_id"):
        grades = dict(zip(judged["product_id"], judged["grade"], strict=True))
        ranked = scores[scores["query_id"] == query_id].sort_values("score", ascending=False)
        found = [grades.get(product_id, 0) for product_id in ranked["product_id"]]
        relevant = sum(grade > 0 for grade in grades.values())
        hits = [rank for rank, grade in enumerate(found, 1) if grade > 0]
        values.append(
            {
                "mrr@10": 1 / hits[0] if hits and hits[0] <= 10 else 0.0,
                "map": sum(i / rank for i, rank in enumerate(hits, 1)) / relevant,
                "recall@100": sum(rank <= 100 for rank in hits) / relevant,
            }
        )
    return pd.DataFrame(values).to_dict("list")


def test_ranking_equals_a_second_implementation() -> None:
    generator = np.random.default_rng(1)
    ids = [f"p{i:03d}" for i in range(130)]
    judgements = pd.concat(
        pd.DataFrame(
            {"query_id": f"q{i}", "product_id": ids, "grade": generator.integers(0, 4, size=130)}
        )
        for i in range(8)
    )
    scores = judgements.assign(score=generator.normal(size=len(judgements)))
    found = ranking_per_query(scores, judgements)
    for name, expected in naive_ranking(scores, judgements).items():
        np.testing.assert_allclose(found[name], expected, err_msg=name)
    gains = 2.0 ** scores["grade"].to_numpy().reshape(8, 130) - 1
    ours = found["ndcg@10"].to_numpy()
    values = scores["score"].to_numpy().reshape(8, 130)
    theirs = [ndcg_score(g[None], v[None], k=10) for g, v in zip(gains, values, strict=True)]
    np.testing.assert_allclose(ours, theirs)


def test_ranking_metric_takes_a_row_per_query() -> None:
    metric = RankingMetrics(keep_in_memory=True)
    found = metric.compute(
        predictions=[
            {"product_id": ["x", "c", "b", "a"], "score": [9.0, 5.0, 4.0, -1.0]},
            {"product_id": ["a"], "score": [1.0]},
            {"product_id": [], "score": []},
        ],
        references=[
            {"product_id": ["a", "b", "c"], "grade": [2, 0, 1]},
            {"product_id": ["a", "b"], "grade": [0, 0]},
            {"product_id": ["b"], "grade": [1]},
        ],
    )
    per_query = ranking_per_query(SCORES, JUDGEMENTS)
    for name in RANKING_METRICS:
        assert found[name] == pytest.approx(per_query[name].mean())
    assert found["queries"] == 2
    assert found["queries_without_relevant"] == 1


def test_ranking_metric_without_any_relevant_product_is_null() -> None:
    found = RankingMetrics(keep_in_memory=True).compute(
        predictions=[{"product_id": ["a"], "score": [1.0]}],
        references=[{"product_id": ["a"], "grade": [1]}],
        relevant_grade=2,
    )
    assert found["ndcg@10"] is None
    assert (found["queries"], found["queries_without_relevant"]) == (0, 1)


# ------------------------------------------------------------------------------------- the flow


def shop(has_ids: bool = True) -> RelevanceDataset:
    titles = ["oak bed", "oak table", "pine bed", "lamp", "bed lamp"]
    products = pd.DataFrame(
        {"product_id": [f"p{i}" for i in range(5)], "title": titles, "description": ""}
    )
    queries = pd.DataFrame(
        {"query_id": ["q1", "q2", "q3"], "query": ["oak bed", "zzz", "lamp"]},
    )
    judgements = pd.DataFrame(
        [
            ("q1", "p0", 2, "dev"), ("q1", "p1", 0, "dev"), ("q1", "p3", 1, "dev"),
            ("q2", "p2", 1, "dev"),
            ("q3", "p0", 0, "dev"),
            ("q3", "p3", 1, "train"),
        ],
        columns=["query_id", "product_id", "grade", "split"],
    )  # fmt: skip
    judgements["label"] = (judgements["grade"] > 0).astype(float)
    return RelevanceDataset(products, queries, judgements, has_ids=has_ids, max_grade=2)


LOG_ODDS = {"oak bed": 2.0, "oak table": -1.0, "pine bed": 0.5, "lamp": 3.0, "bed lamp": 1.0}


class Retriever:
    """Scores by document alone and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, queries: list[str], documents: list[str]) -> np.ndarray:
        self.asked += zip(queries, documents, strict=True)
        return np.array([LOG_ODDS[document] for document in documents], dtype=np.float32)


def test_every_pair_is_scored_once() -> None:
    dataset, retriever = shop(), Retriever()
    scored = score_candidates(retriever, dataset, "dev", BM25Index(dataset.documents))
    assert len(retriever.asked) == len(set(retriever.asked)) == len(scored.pairs)
    rows = {
        (row.query_id, row.product_id): (row.judged, row.candidate)
        for row in scored.pairs.itertuples()
    }
    assert rows == {
        ("q1", "p0"): (True, True),
        ("q1", "p1"): (True, True),
        ("q1", "p2"): (False, True),
        ("q1", "p3"): (True, False),  # judged, but shares no word with "oak bed"
        ("q1", "p4"): (False, True),
        ("q2", "p2"): (True, False),  # "zzz" has no candidates
        ("q3", "p0"): (True, False),
        ("q3", "p3"): (False, True),  # judged in another split only
        ("q3", "p4"): (False, True),
    }


def test_evaluation_worked_by_hand() -> None:
    dataset, retriever = shop(), Retriever()
    found = score_candidates(retriever, dataset, "dev", BM25Index(dataset.documents)).evaluate(0.5)
    assert found["pairs"] == 5
    assert (found["queries"], found["queries_without_relevant"]) == (2, 1)
    assert found["blend_weight"] == 0.5
    # Pairs: relevant 2, 3, .5; irrelevant -1, 2: of six comparisons 4 won, 1 tied.
    assert found["roc_auc"] == pytest.approx(4.5 / 6)
    assert found["accuracy"] == pytest.approx(4 / 5)
    # q1: lamp (1), oak bed (2), oak table (0); q2: its one product.
    ideal = 3 + 1 / math.log2(3)
    assert found["judged/ndcg@10"] == pytest.approx(((1 + 3 / math.log2(3)) / ideal + 1) / 2)
    assert found["judged/mrr@10"] == 1.0
    # Candidates of q1 by log-odds: oak bed, bed lamp, pine bed, oak table; the lamp is not found.
    assert found["rerank/ndcg@10"] == pytest.approx((3 / ideal + 0) / 2)
    assert found["rerank/recall@100"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["bm25/ndcg@10"] == found["rerank/ndcg@10"] == found["blend/ndcg@10"]
    # BM25 on the judged pool: oak bed (2), oak table (0), lamp (1).
    expected = ((3 + 1 / math.log2(4)) / ideal + 1) / 2
    assert found["bm25/judged/ndcg@10"] == pytest.approx(expected)
    assert json.loads(json.dumps(found)) == found


def test_scored_pairs_keep_their_texts() -> None:
    dataset = shop()
    pairs = score_candidates(Retriever(), dataset, "dev", BM25Index(dataset.documents)).pairs
    query_of = dataset.queries.set_index("query_id")["query"]
    document_of = dict(zip(dataset.products["product_id"], dataset.documents, strict=True))
    assert pairs["query"].tolist() == [query_of[query_id] for query_id in pairs["query_id"]]
    assert pairs["document"].tolist() == [document_of[name] for name in pairs["product_id"]]


def test_groups_without_blend_weight_and_without_ids() -> None:
    dataset = shop()
    index = BM25Index(dataset.documents)
    groups = {
        key.rpartition("/")[0]
        for key in score_candidates(Retriever(), dataset, "dev", index).evaluate()
    }
    assert groups == {"", "judged", "rerank", "bm25", "bm25/judged"}
    pairs_only = score_candidates(Retriever(), shop(has_ids=False), "dev", index).evaluate(0.5)
    names = {"roc_auc", "pr_auc", "f1", "accuracy", "log_loss", "ece", "pairs"}
    assert set(pairs_only) == names | {"bm25/roc_auc", "bm25/pr_auc"}


def test_bm25_as_the_system_equals_bm25_beside_one() -> None:
    dataset = shop()
    index = BM25Index(dataset.documents)
    alone = score_candidates(None, dataset, "dev", index).evaluate()
    beside = score_candidates(Retriever(), dataset, "dev", index).evaluate()
    assert alone["roc_auc"] == alone["bm25/roc_auc"] == beside["bm25/roc_auc"]
    assert "f1" not in alone
    assert "log_loss" not in alone
    for name in RANKING_METRICS:
        assert alone[f"rerank/{name}"] == alone[f"bm25/{name}"] == beside[f"bm25/{name}"]
        assert alone[f"judged/{name}"] == beside[f"bm25/judged/{name}"]


def test_repeated_judgements_of_pairs_each_count() -> None:
    dataset = shop(has_ids=False)
    twice = pd.concat([dataset.judgements, dataset.judgements.head(1).assign(label=0.0)])
    dataset = RelevanceDataset(dataset.products, dataset.queries, twice, False, 2)
    found = score_candidates(Retriever(), dataset, "dev", BM25Index(dataset.documents)).evaluate()
    assert found["pairs"] == 6


def test_top_k_limits_the_candidates() -> None:
    dataset = shop()
    scored = score_candidates(Retriever(), dataset, "dev", BM25Index(dataset.documents), top_k=1)
    chosen = scored.pairs[scored.pairs["candidate"]]
    assert list(zip(chosen["query_id"], chosen["product_id"], strict=True)) == [
        ("q1", "p0"),
        ("q3", "p3"),
    ]


def test_blend_weight_is_the_best_of_the_curve() -> None:
    dataset = shop()
    index = BM25Index(dataset.documents)

    def wrong(queries: list[str], documents: list[str]) -> np.ndarray:
        return -Retriever()(queries, documents)

    weight, curve = score_candidates(wrong, dataset, "dev", index).choose_blend_weight()
    assert len(curve) == 21
    assert list(curve)[:2] == ["0.00", "0.05"]
    assert curve["0.00"] > curve["1.00"]
    for text, value in curve.items():
        metrics = score_candidates(wrong, dataset, "dev", index).evaluate(float(text))
        assert metrics["blend/ndcg@10"] == pytest.approx(value)
    # Of the best ones the nearest to one half.
    best = [float(text) for text, value in curve.items() if value == max(curve.values())]
    assert weight == min(best, key=lambda candidate: abs(candidate - 0.5))
    # A retriever that agrees with BM25 on the top leaves every weight equal.
    assert score_candidates(Retriever(), dataset, "dev", index).choose_blend_weight()[0] == 0.5


def test_blend_is_scaled_within_each_query() -> None:
    dataset = shop()
    scored = score_candidates(Retriever(), dataset, "dev", BM25Index(dataset.documents))
    bm25 = {("q1", "p0"): 1.0, ("q1", "p1"): 0.4, ("q3", "p3"): 100.0}
    log_odds = {("q1", "p0"): 0.0, ("q1", "p1"): 1.0}
    pairs = scored.pairs.set_index(["query_id", "product_id"])
    pairs["bm25"] = pd.Series(bm25).reindex(pairs.index, fill_value=0.0)
    pairs["retriever"] = pd.Series(log_odds).reindex(pairs.index, fill_value=-1.0)
    blended = replace(scored, pairs=pairs.reset_index()).rankings(0.5)["blend"]
    # p0, which is relevant: (.5 + 1) / 2; p1: (1 + .4) / 2. Scaled over all queries, q3's 100 would
    # leave the retriever alone: (.5 + .01) / 2 against (1 + .004) / 2.
    assert blended.loc["q1", "mrr@10"] == 1.0


def test_there_is_no_blend_weight_where_nothing_can_be_ranked() -> None:
    dataset = shop()
    scored = score_candidates(Retriever(), dataset, "dev", BM25Index(dataset.documents))
    assert scored.choose_blend_weight(relevant_grade=3) == (None, {})
    nothing_found = replace(scored, pairs=scored.pairs.assign(candidate=False))
    assert nothing_found.choose_blend_weight() == (None, {})


def test_an_empty_split_is_refused() -> None:
    dataset = shop()
    with pytest.raises(UserError, match="test"):
        score_candidates(Retriever(), dataset, "test", BM25Index(dataset.documents)).evaluate()


def test_table_puts_groups_side_by_side() -> None:
    table = format_table(
        {"roc_auc": 0.75, "pr_auc": None, "judged/ndcg@10": 0.5, "bm25/ndcg@10": 1.0, "queries": 2}
    )
    assert table.splitlines() == [
        "          pairs  judged    bm25",
        "roc_auc  0.7500       -       -",
        "ndcg@10       -  0.5000  1.0000",
        "queries 2",
    ]


def test_the_definition_names_every_group() -> None:
    dataset, retriever = shop(), Retriever()
    found = score_candidates(retriever, dataset, "dev", BM25Index(dataset.documents)).evaluate(0.5)
    groups = {name.partition("/")[0] for name in found if "/" in name}
    assert groups == {"judged", "rerank", "blend", "bm25"} <= set(METRIC_DEFINITION)
