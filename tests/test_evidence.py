"""Evidence from a run folder that the test writes, each number worked by hand."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from agr_trl.config import ARMS, REFERENCES
from agr_trl.errors import UserError
from agr_trl.evidence import (
    _beside_s,
    _on_hard_queries,
    _pair_fold,
    _pairs_of_values,
    _with_s,
    build_evidence,
)
from agr_trl.evidence_audits import alarms, audit_of, disagreement
from agr_trl.evidence_parts import Part
from agr_trl.evidence_tables import evidence_table, primary_table
from agr_trl.files import write_json

CONTROLS = [arm for arm in ARMS if arm != "adversarial"]
QUERIES = ["red chair", "blue lamp", "oak table", "wool rug"]  # the first two are in fold 0
P = 1 / (1 + math.exp(-2))  # probability at log-odds 2

# Who ranks which query right, as (seed, query): the adversary all, supervised half of seed 1.
RIGHT = {
    "adversarial": {(seed, query) for seed in range(2) for query in range(4)},
    "supervised": {(1, 2), (1, 3)},
    "cosine": set(),
    "random_crops": {(seed, query) for seed in range(2) for query in range(4)},
}


def pairs(arm: str, seed: int, fold: int) -> pd.DataFrame:
    """Two queries of three products: 0 relevant, 1 not, 2 only a candidate that BM25 likes best.

    A right model's log-odds are 2 for the relevant one and -2 for the other; a wrong one's the
    reverse; product 2 has 0. The supervised start, `before`, has only query 0 wrong.
    """
    rows = []
    for query in (2 * fold, 2 * fold + 1):
        for product, label in enumerate((1.0, 0.0, math.nan)):
            log_odds = (2.0, -2.0, 0.0)[product]
            rows.append(
                {
                    "query_id": f"q{query}",
                    "product_id": f"p{product}",
                    "query": QUERIES[query],
                    "document": f"document {product}",
                    "label": label,
                    "grade": label,
                    "judged": product < 2,
                    "candidate": True,
                    "bm25": (2.0, 1.0, 3.0)[product],
                    "retriever": log_odds if (seed, query) in RIGHT.get(arm, ()) else -log_odds,
                    "before": -log_odds / 2 if query == 0 else log_odds,
                }
            )
    return pd.DataFrame(rows)


def written(arm: str, seed: int) -> pd.DataFrame:
    """Four queries, two accepted; S and the second judge depend on arm and seed."""
    relevance = {"warm_up_generator": 0.7, "relevance_only": 0.9}.get(arm, 0.7) + 0.02 * seed
    second_judge = {"warm_up_generator": 0.6, "relevance_only": 0.4}.get(arm, 0.6)
    texts = ["red chair", "red lamp", "chair chair", "car"]
    return pd.DataFrame(
        {
            "product_id": "p0",
            "title": "red chair",
            "document": "a red chair of oak",
            "query": texts,
            "round": 1,
            "probability": [0.2, 0.4, 0.9, 0.9],
            "probability_after": 0.5,
            "relevance": [relevance, relevance, 0.1, 0.1],
            "second_judge": [second_judge, second_judge, 0.0, 0.0],
            "accepted": [True, True, False, False],
            "reason": ["", "", "broken", "low_relevance"],
        }
    )


def result(arm: str, seed: int, has_ids: bool) -> dict[str, Any]:
    rounds = [{"round": 0, "kept": True, "dev": {"pr_auc": 0.5}, "queries": {}}]
    if arm != "supervised":
        audit = {"accepted": 2 + seed, "truly_relevant_share": 0.5 + 0.5 * seed}
        dev = {"pr_auc": 0.6 + 0.1 * seed}
        rounds.append({"round": 1, "kept": seed == 0, "dev": dev, "queries": audit})
    return {
        # Weight 0 is BM25's own order.
        "blend_weight": 0.0 if has_ids and arm != "cosine" else None,
        "has_ids": has_ids,
        "relevant_grade": 1,
        "minutes": 1.5,
        "rounds": [] if arm == "cosine" else rounds,
    }


def write_run(folder: Path, has_ids: bool) -> Path:
    for seed in range(2):
        for fold in range(2):
            for arm in ("cosine", *ARMS):
                place = folder / f"seed_{seed:02d}" / f"fold_{fold}" / arm
                place.mkdir(parents=True)
                rows = pairs(arm, seed, fold)
                if not has_ids:
                    rows = rows[rows["judged"]].assign(candidate=False)
                rows.to_parquet(place / "held_out.parquet")
                write_json(place / "result.json", result(arm, seed, has_ids))
                if arm not in ("cosine", "supervised"):
                    written(arm, seed).to_parquet(place / "queries.parquet")
    return folder


def build(folder: Path, primary: str, **changes: Any) -> dict[str, Any]:
    settings = {"seeds": [0, 1], "folds": 2, "resamples": 300, "dataset": "toy"}
    settings |= {"commit": "abc", "hardware": "one core"}
    return build_evidence(folder, primary, **settings | changes)


@pytest.fixture(scope="module")
def pairs_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("pairs"), has_ids=False)


@pytest.fixture(scope="module")
def on_pairs(pairs_run: Path) -> dict[str, Any]:
    return build(pairs_run, "pr_auc")


@pytest.fixture(scope="module")
def on_rankings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build(write_run(tmp_path_factory.mktemp("ids"), has_ids=True), "judged/ndcg@10")


def means(evidence: dict[str, Any], metric: str) -> dict[str, float]:
    rows = evidence["arms"].items()
    return {arm: row[metric]["mean"] for arm, row in rows if metric in row}


def test_the_head(on_pairs: dict[str, Any]) -> None:
    head = {
        "dataset": "toy",
        "primary_metric": "pr_auc",
        "seeds": [0, 1],
        "folds": 2,
        "commit": "abc",
        "queries": 4,
        "pairs": 8,
        "resamples": 300,
        "minutes": 7 * 4 * 1.5,  # six arms and the cosine, in four folds
        "hardware": "one core",
    }
    assert {key: on_pairs[key] for key in head} == head
    tables = {"arms", "tests", "ablations", "rounds", "audits", "alarms", "per_query", "examples"}
    tables |= {"disagreement", "hard_queries", "beside_s", "references", "by_seed"}
    assert on_pairs.keys() == head.keys() | tables
    assert list(on_pairs["arms"]) == [*REFERENCES, *ARMS]
    assert list(on_pairs["tests"]) == list(on_pairs["per_query"]) == CONTROLS
    json.dumps(on_pairs, allow_nan=False)  # plain numbers only


def test_pair_metrics_by_hand(on_pairs: dict[str, Any]) -> None:
    # A right fold has area 1. A wrong one has both relevant pairs behind: precision 1/2 there.
    # Supervised is right in one of four folds.
    areas = means(on_pairs, "pr_auc")
    assert areas.pop("supervised") == pytest.approx((1 / 2 + 1 / 2 + 1 / 2 + 1) / 4)
    # R of round 0 has query 0 wrong: in that fold the relevant pairs are first and third of four.
    assert areas.pop("round_0") == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    right = {arm: 1.0 for arm in ("bm25", "random_crops", "adversarial")}
    assert areas == pytest.approx({arm: right.get(arm, 0.5) for arm in areas})
    roc = means(on_pairs, "roc_auc")
    assert (roc["supervised"], roc["cosine"], roc["adversarial"]) == (1 / 4, 0, 1)
    # Every pair is off by 1 - P where right, by P where wrong; BM25 has no probabilities.
    errors, losses = means(on_pairs, "ece"), means(on_pairs, "log_loss")
    assert "bm25" not in errors | losses
    assert errors["adversarial"] == pytest.approx(1 - P)
    assert errors["supervised"] == pytest.approx((3 * P + 1 - P) / 4)
    assert losses["cosine"] == pytest.approx(-math.log(1 - P))


def test_intervals_of_arms(on_pairs: dict[str, Any]) -> None:
    assert on_pairs["arms"]["adversarial"]["pr_auc"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    supervised = on_pairs["arms"]["supervised"]
    # Seed 0 twice gives 1/2, seed 1 twice 3/4 (each in 1/4 of the draws); 1 would take queries of
    # fold 1 alone as well, which is 1/4 * 1/16 and so outside.
    assert supervised["pr_auc"] == {"mean": 0.625, "low": 0.5, "high": 0.75}
    # The interval of ECE lies around its mean, and not below 0.
    ece = on_pairs["arms"]["supervised"]["ece"]
    assert 0 <= ece["low"] < ece["mean"] < ece["high"]
    right = on_pairs["arms"]["adversarial"]["ece"]
    assert right["low"] == pytest.approx(1 - P) == right["high"]


def test_paired_tests_by_hand(on_pairs: dict[str, Any]) -> None:
    tests = on_pairs["tests"]
    # Each query's average precision is 1 against 1/2 in both seeds. The difference of means, 1/2,
    # is reached by one of the 2^4 ways to swap queries, and its negative by one.
    warm_up = tests["warm_up_generator"]
    assert warm_up["difference"] == 0.5
    assert (warm_up["low"], warm_up["high"]) == (0.5, 0.5)
    assert warm_up["p"] == pytest.approx(2 / 16)
    assert (warm_up["wins"], warm_up["losses"], warm_up["ties"]) == (4, 0, 0)
    assert warm_up["effect_size"] is None  # every query gains the same
    assert warm_up["detectable"] == pytest.approx(0, abs=1e-9)
    # Nothing to see.
    crops = tests["random_crops"]
    assert (crops["difference"], crops["p"], crops["p_holm"]) == (0, 1, 1)
    assert (crops["wins"], crops["losses"], crops["ties"]) == (0, 0, 4)
    # Queries 2 and 3 gain 1/2 in one of two seeds.
    supervised = tests["supervised"]
    assert supervised["difference"] == pytest.approx(1 - 0.625)
    assert supervised["effect_size"] == pytest.approx(0.375 / np.std([4, 4, 2, 2], ddof=1) * 8)
    assert supervised["detectable"] > 0.1
    assert (supervised["wins"], supervised["losses"], supervised["ties"]) == (4, 0, 0)
    # Of five p-values the smallest counts five times, and the others no less.
    assert warm_up["p_holm"] == pytest.approx(5 * 2 / 16)
    assert all(test["p_holm"] >= test["p"] for test in tests.values())


def test_values_per_query(on_pairs: dict[str, Any]) -> None:
    # Averaged over seeds, the largest gain first.
    assert on_pairs["per_query"]["supervised"] == [
        {"query": "red chair", "adversarial": 1.0, "control": 0.5},
        {"query": "blue lamp", "adversarial": 1.0, "control": 0.5},
        {"query": "oak table", "adversarial": 1.0, "control": 0.75},
        {"query": "wool rug", "adversarial": 1.0, "control": 0.75},
    ]


def test_hard_queries_by_hand(on_pairs: dict[str, Any], on_rankings: dict[str, Any]) -> None:
    # R of round 0 has query 0 wrong alone; of the others the first makes the second of two.
    hard = on_pairs["hard_queries"]
    assert (hard["queries"], hard["of"]) == (2, 4)
    right = {"bm25": 1.0, "round_0": 0.75, "adversarial": 1.0, "random_crops": 1.0}
    assert hard["arms"] == {arm: right.get(arm, 0.5) for arm in on_pairs["arms"]}
    assert list(hard["tests"]) == CONTROLS
    supervised = hard["tests"]["supervised"]
    assert (supervised["difference"], supervised["wins"]) == (0.5, 2)
    assert (supervised["low"], supervised["high"]) == (0.5, 0.5)
    assert supervised["p"] == 2 / 2**2
    assert supervised["p_holm"] == 1
    second = 1 / math.log2(3)
    assert on_rankings["hard_queries"]["arms"]["round_0"] == pytest.approx((second + 1) / 2)
    assert on_rankings["hard_queries"]["arms"]["cosine"] == pytest.approx(second)


def test_no_arm_is_ahead_on_hard_queries_by_moving_away_from_the_start() -> None:
    # Equally good arms: one keeps all of R's chance, the other has its own.
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([range(4), range(300)], names=["seed", "query_id"])
    difficulty = np.tile(rng.normal(size=300), 4)

    def luck() -> pd.Series:
        return pd.Series(difficulty + rng.normal(size=len(index)), index=index)

    start = luck()
    per_seed = {"round_0": start, "adversarial": luck(), "supervised": start + 1e-3 * luck()}
    controls = {"supervised": ("adversarial", "supervised")}
    hard = _on_hard_queries(per_seed, controls, 200, 0)
    assert hard["arms"]["round_0"] < -0.5  # they are hard
    test = hard["tests"]["supervised"]
    assert abs(test["difference"]) < test["detectable"] / 2
    # Chosen by the R that supervised stays near, the adversary seems to be ahead by much more.
    chosen = start[start < start.groupby("seed").transform("quantile", 1 / 3)].index
    ahead = (per_seed["adversarial"] - per_seed["supervised"])[chosen].mean()
    assert ahead > 2 * test["detectable"]
    assert (
        _on_hard_queries({arm: own.loc[[0]] for arm, own in per_seed.items()}, controls, 9, 0) == {}
    )


def test_variety_does_not_fall_with_the_number_of_queries() -> None:
    words = [f"a{number} b{number % 50}" for number in range(400)]

    def audit(count: int) -> dict[str, Any]:
        queries = pd.concat([written("adversarial", 0)[:1]] * count, ignore_index=True)
        result = {"rounds": []}
        return audit_of([Part(0, pd.DataFrame(), result, queries.assign(query=words[:count]))])

    # Of a hundred queries all first words differ, and of the fifty others most come up.
    few, many = audit(100), audit(400)
    assert few["distinct_1"] == 150 / 200
    assert many["distinct_1"] > 0.7  # 450 of 800 words in all of them
    assert (many["accepted"], many["mean_words"]) == (400, 2)


def test_noise_is_no_win() -> None:
    values = pd.DataFrame({"adversarial": [0.1 + 0.2, 0.5], "crops": [0.3, 0.25]})
    rows = _pairs_of_values(values, "crops")
    assert [row["adversarial"] - row["control"] for row in rows] == [0.25, 0]


def test_ranking_metrics_by_hand(on_rankings: dict[str, Any]) -> None:
    assert on_rankings["primary_metric"] == "judged/ndcg@10"
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    # Judged pool: the relevant product is first of two, or second.
    judged = means(on_rankings, "judged/ndcg@10")
    assert judged["supervised"] == pytest.approx((6 * second + 2) / 8)
    assert (judged["adversarial"], judged["bm25"]) == (1, 1)
    assert judged["cosine"] == pytest.approx(second)
    assert means(on_rankings, "judged/mrr@10")["cosine"] == 1 / 2
    assert means(on_rankings, "judged/map")["cosine"] == 1 / 2
    # Candidates: product 2, not judged, is between the others; BM25 has it first.
    reranked = means(on_rankings, "rerank/ndcg@10")
    assert reranked["adversarial"] == 1
    assert reranked["cosine"] == pytest.approx(third)
    assert reranked["bm25"] == pytest.approx(second)
    # Weight 0 is BM25; the cosine has no weight here, BM25 itself never has.
    blended = means(on_rankings, "blend/ndcg@10")
    assert blended == pytest.approx({arm: second for arm in ARMS})
    assert means(on_rankings, "pr_auc")["adversarial"] == 1
    assert next(iter(on_rankings["arms"]["supervised"])) == "judged/ndcg@10"


def test_ranking_tests_by_hand(on_rankings: dict[str, Any]) -> None:
    gain = 1 - 1 / math.log2(3)
    test = on_rankings["tests"]["supervised"]
    # Gains of the four queries: whole, whole, half, half.
    assert test["difference"] == pytest.approx(gain * 3 / 4)
    assert test["p"] == pytest.approx(2 / 16)
    assert test["effect_size"] == pytest.approx(0.75 / math.sqrt(0.25 / 3))
    # From fold 1's queries in seed 1 alone, where nothing is gained, to everything wrong.
    assert (test["low"], test["high"]) == (pytest.approx(0, abs=gain / 4), pytest.approx(gain))
    values = on_rankings["per_query"]["supervised"]
    assert [row["adversarial"] - row["control"] for row in values] == pytest.approx(
        [gain, gain, gain / 2, gain / 2]
    )


def test_rounds_are_means_over_seeds_and_folds(on_pairs: dict[str, Any]) -> None:
    start = {"round": 0, "dev": 0.5, "kept": 1.0}
    assert on_pairs["rounds"]["supervised"] == [start]
    assert on_pairs["rounds"]["adversarial"] == [
        start,
        {"round": 1, "dev": pytest.approx(0.65), "kept": 0.5},
    ]
    assert list(on_pairs["rounds"]) == list(ARMS)


def test_a_dev_metric_that_is_missing_is_none(on_rankings: dict[str, Any]) -> None:
    assert [this["dev"] for this in on_rankings["rounds"]["supervised"]] == [None]


def test_audits_by_hand(on_pairs: dict[str, Any]) -> None:
    assert list(on_pairs["audits"]) == [arm for arm in ARMS if arm != "supervised"]
    audit = dict(on_pairs["audits"]["adversarial"])
    assert audit.pop("reasons") == {"broken": 4, "low_relevance": 4}
    assert audit == pytest.approx(
        {
            "written": 16,
            "accepted": 8,
            "acceptance_rate": 1 / 2,
            # Of the accepted "red chair" and "red lamp", in each fold:
            "copy_rate": 1 / 2,
            "distinct_1": 3 / 4,
            "distinct_2": 1,
            "mean_words": 2,
            "probability": 0.3,
            "relevance": (0.7 + 0.72) / 2,
            "second_judge": 0.6,
            # Half of 2 in seed 0, all of 3 in seed 1.
            "truly_relevant_share": (2 * 0.5 + 3 * 1) / 5,
        }
    )


def test_an_arm_that_cheats_s_raises_an_alarm(on_pairs: dict[str, Any]) -> None:
    (sentence,) = on_pairs["alarms"]
    assert sentence.startswith("relevance_only: S of the accepted queries rises from 0.710 (warm_")
    assert sentence.endswith("to 0.910, but the second judge's score falls from 0.600 to 0.400")


def test_no_alarm_for_small_changes_or_a_judge_that_agrees() -> None:
    start = {"relevance": 0.7, "second_judge": 0.6}
    for relevance, second_judge in ((0.8, 0.6), (0.8, 0.595), (0.705, 0.3), (0.6, 0.3)):
        other = {"relevance": relevance, "second_judge": second_judge}
        assert alarms({"warm_up_generator": start, "adversarial": other}) == []
    none = {"relevance": None, "second_judge": None}
    assert alarms({"warm_up_generator": start, "adversarial": none}) == []
    assert alarms({"adversarial": start}) == []
    pleasing = {"relevance": 0.9, "second_judge": 0.3}  # crops please nobody, and have no start
    assert alarms({"warm_up_generator": start, "random_crops": pleasing}) == []


def test_examples_are_mistakes_that_were_mended(on_pairs: dict[str, Any]) -> None:
    # Only query 0 was wrong before, at log-odds -1 and 1; after, they are 2 and -2.
    before = 1 / (1 + math.exp(1))
    shared = {"query": "red chair", "arm": "adversarial"}
    assert on_pairs["examples"] == [
        {
            **shared,
            "document": "document 0",
            "label": 1.0,
            "before": pytest.approx(before),
            "after": pytest.approx(P),
        },
        {
            **shared,
            "document": "document 1",
            "label": 0.0,
            "before": pytest.approx(1 - before),
            "after": pytest.approx(1 - P),
        },
    ]


def test_disagreement_by_hand(on_pairs: dict[str, Any]) -> None:
    # S is always wrong. In fold 0 the start's order is q1's irrelevant, q0's relevant, q0's
    # irrelevant, q1's relevant: ranks 1 to 4 against S's 3.5, 1.5, 3.5, 1.5, so 2 of 4 are more
    # than a third of 4 apart. In fold 1 all are: 1.5 for the irrelevant ones against 3.5.
    counts = {"pairs": 2 * (2 + 4), "share": 12 / 16}
    shares = {"relevant_by_s": 0, "relevant_by_retriever": 1, "s_right": 0}
    assert on_pairs["disagreement"] == counts | shares


def test_people_side_with_s_or_with_the_retriever() -> None:
    def part(scores: dict[str, list[float]]) -> Part:
        keys = {"query_id": "q", "product_id": [f"p{i}" for i in range(6)], "judged": True}
        return Part(0, pd.DataFrame(keys | scores), {}, None)

    # Ranks differ by 5 of 6 for the first two, by 3 for the last, by 1 for the others.
    by_retriever = part({"before": [6, 1, 2, 3, 4, 5], "label": [1, 1, 0, 0, 1, 0]})
    by_s = part({"retriever": [1, 6, 3, 4, 5, 2]})
    found = disagreement([by_retriever], [by_s])
    # p0: R higher, relevant; p1: S higher, relevant; p5: R higher (5 against 2), not relevant.
    assert found["pairs"] == 3 and found["share"] == 0.5
    assert found["relevant_by_s"] == 1 and found["relevant_by_retriever"] == 0.5
    assert found["s_right"] == pytest.approx(2 / 3)
    same = disagreement([by_retriever], [part({"retriever": [6, 1, 2, 3, 4, 5]})])
    assert same["pairs"] == 0 and same["s_right"] is None


def part_of(scores: list[float]) -> Part:
    """Two queries, each with a relevant product and one that is not, scored as given."""
    ids = [(query, product) for query in ("q0", "q1") for product in ("p0", "p1")]
    pairs = pd.DataFrame(ids, columns=["query_id", "product_id"])
    return Part(0, pairs.assign(label=[1.0, 0.0] * 2, judged=True, retriever=scores), {}, None)


def test_areas_are_of_ranks_inside_a_fold_and_losses_of_probabilities() -> None:
    ids, scores = pd.Index(["q0", "q1"]), [0.1, 0.2, 0.9, 0.5]
    for scale in (1, 100):  # so that an arm of wider scores can be swapped with another
        fold = _pair_fold(part_of([scale * score for score in scores]), ids, is_area=True)
        assert fold.score.tolist() == [1, 2, 4, 3]
    fold = _pair_fold(part_of(scores), ids, is_area=False)
    assert fold.score.tolist() == pytest.approx([1 / (1 + math.exp(-score)) for score in scores])
    assert fold.query.tolist() == [0, 0, 1, 1]


def test_s_beside_an_arm_by_hand() -> None:
    by_s, by_r = part_of([0.1, 0.2, 0.9, 0.5]), part_of([7.0, -7.0, 3.0, 2.0])
    shuffled = by_s._replace(pairs=by_s.pairs.iloc[[3, 1, 0, 2]])
    together = _with_s(by_r, shuffled).pairs["retriever"].tolist()
    assert together == [(1 + 4) / 8, (2 + 1) / 8, (4 + 3) / 8, (3 + 2) / 8]
    found = _beside_s({"cosine": [by_s], "adversarial": [by_r]}, "pr_auc", 300, 0)
    assert all(list(row) == ["pr_auc", "roc_auc"] for row in found["arms"].values())
    areas = {arm: row["pr_auc"]["mean"] for arm, row in found["arms"].items()}
    # S has the relevant pairs first and last of four; together one is first and one is second to
    # third, even with another: precision 1 and 2/3 at the two thresholds that add a relevant one.
    assert areas == pytest.approx({"cosine": (1 + 2 / 4) / 2, "adversarial": (1 + 2 / 3) / 2})
    test = found["tests"]["adversarial"]
    assert test["difference"] == pytest.approx(2 / 3 / 2 - 2 / 4 / 2)
    assert (test["wins"], test["losses"], test["ties"]) == (1, 0, 1)  # only q0 was wrong
    assert test["p_holm"] == test["p"] <= 1


def test_queries_whose_pairs_are_of_one_class_have_no_value_of_their_own(
    pairs_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pairs_run, tmp_path / "run")
    for file in folder.glob("*/*/*/held_out.parquet"):
        pairs = pd.read_parquet(file)
        first = pairs["query_id"] == pairs["query_id"].min()
        pairs[first == (pairs["product_id"] == "p0")].to_parquet(file)
    found = build(folder, "pr_auc")
    assert (found["queries"], found["pairs"]) == (4, 4)
    assert found["hard_queries"] == {}
    test = found["tests"]["supervised"]
    # Of supervised's four folds three have the relevant pair behind, precision 1/2, and one before.
    assert test["difference"] == pytest.approx(1 - 0.625)
    assert (test["wins"], test["losses"], test["ties"], test["effect_size"]) == (0, 0, 0, None)
    assert "hardest" not in evidence_table(found)


def test_an_ablation_without_queries_has_a_row_and_no_audit(
    pairs_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pairs_run, tmp_path / "run")
    for place in folder.glob("*/*"):
        shutil.copytree(place / "supervised", place / "judged_alone")
    changes = {"judged_alone": {"query_source": "none"}}
    found = build(folder, "pr_auc", ablations=changes)
    difference = found["ablations"]["judged_alone"]["difference"]
    assert difference == found["tests"]["supervised"]["difference"] > 0
    assert "judged_alone" not in found["audits"]


def test_an_arm_that_started_elsewhere_is_named(
    pairs_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [one.message for one in caplog.records if one.levelno == logging.WARNING]

    build(pairs_run, "pr_auc")
    assert not warnings()
    folder = shutil.copytree(pairs_run, tmp_path / "run")
    file = folder / "seed_01/fold_0/supervised/held_out.parquet"
    pairs = pd.read_parquet(file)
    pairs.assign(before=pairs["before"] + 0.1).to_parquet(file)
    build(folder, "pr_auc")
    (warning,) = warnings()
    assert "1 arms of a fold started from another" in warning
    assert "such as seed_01/fold_0/supervised" in warning


def test_one_seed_and_some_arms_are_enough(pairs_run: Path) -> None:
    arms = ["supervised", "adversarial"]
    found = build(pairs_run, "pr_auc", seeds=[1], arms=arms)
    assert list(found["arms"]) == [*REFERENCES, *arms]
    assert list(found["tests"]) == ["supervised"]
    assert found["tests"]["supervised"]["difference"] == pytest.approx(1 - 0.75)
    assert found["seeds"] == [1]
    assert found["by_seed"]["supervised"] == [0.75]


def test_the_same_files_give_the_same_evidence(pairs_run: Path, on_pairs: dict[str, Any]) -> None:
    assert build(pairs_run, "pr_auc") == on_pairs


def test_the_tables(on_pairs: dict[str, Any]) -> None:
    head, tests, hard, beside_s, others, alarm = evidence_table(on_pairs).split("\n\n")
    assert head == "toy: 4 queries, 8 judged pairs, 2 seeds, 2 folds, 300 resamples"
    assert tests == primary_table(on_pairs)
    cells = table_cells(tests)
    assert cells["arm"] == ["PR-AUC", "95 % interval", "adversarial −", "p", "p (Holm)"]
    assert list(cells)[2:] == [*REFERENCES, *ARMS]
    assert cells["round_0"][2:] == ["+0.083", "1.000", "–"]  # one query differs, either way round
    assert cells["warm_up_generator"] == ["0.500", "[0.500, 0.500]", "+0.500", "0.125", "0.625"]
    assert cells["adversarial"] == ["1.000", "[1.000, 1.000]", "–", "–", "–"]
    cells = table_cells(hard)
    assert cells["the 2 hardest of 4 queries"] == ["mean", "adversarial −", "p", "p (Holm)"]
    assert cells["round_0"] == ["0.750", "–", "–", "–"]
    assert cells["supervised"] == ["0.500", "+0.500", "0.500", "1.000"]
    cells = table_cells(beside_s)
    head_cells = ["PR-AUC", "95 % interval", "− S alone", "p", "p (Holm)", "ROC-AUC"]
    assert cells["S and R together"] == head_cells
    assert cells["S alone"] == ["0.500", "[0.500, 0.500]", "–", "–", "–", "0.000"]
    cells = table_cells(others)
    assert cells["arm"] == ["ROC-AUC", "ECE", "log loss"]
    assert cells["bm25"] == ["1.000", "–", "–"]
    assert alarm.startswith("alarm: relevance_only")


def table_cells(table: str) -> dict[str, list[str]]:
    """Return the cells of a Markdown table by its first column; columns end at one place."""
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert set("".join(rows[1])) == {"-", ":"}
    return {first: rest for first, *rest in rows}


# ------------------------------------------------------------------------------ what is refused


def test_missing_files_are_named(pairs_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pairs_run, tmp_path / "run")
    (folder / "seed_01/fold_0/random_crops/queries.parquet").unlink()
    shutil.rmtree(folder / "seed_01/fold_1/cosine")
    with pytest.raises(UserError) as caught:
        build(folder, "pr_auc")
    assert "seed_01/fold_0/random_crops/queries.parquet" in str(caught.value)
    assert "seed_01/fold_1/cosine/held_out.parquet" in str(caught.value)
    with pytest.raises(UserError, match=r"seed_02/fold_0/cosine/held_out.parquet, .* more files"):
        build(pairs_run, "pr_auc", seeds=[0, 1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["supervised"]}, "must have adversarial"),
        ({"seeds": []}, "one of each or more"),
        ({"primary_metric": "judged/ndcg@10"}, "no judged/ndcg@10 of every arm; it has pr_auc"),
    ],
)
def test_wrong_questions_are_refused(
    pairs_run: Path, changes: dict[str, Any], message: str
) -> None:
    primary = changes.pop("primary_metric", "pr_auc")
    with pytest.raises(UserError, match=message):
        build(pairs_run, primary, **changes)


def test_other_pairs_or_queries_are_refused(pairs_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pairs_run, tmp_path / "run")
    file = folder / "seed_01/fold_0/supervised/held_out.parquet"
    pd.read_parquet(file).iloc[1:].to_parquet(file)
    with pytest.raises(UserError, match="seed_01/fold_0/supervised has other judged pairs"):
        build(folder, "pr_auc")
    for arm in ("cosine", *ARMS):  # a query in both folds of seed 1
        place = folder / "seed_01/fold_0"
        shutil.copy(place.with_name("fold_1") / arm / "held_out.parquet", place / arm)
    with pytest.raises(UserError, match="a seed lacks a judged query of another"):
        build(folder, "pr_auc")
