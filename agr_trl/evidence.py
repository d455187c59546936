"""What a finished comparison of arms shows: its run folder in, one dictionary of numbers out.

Every number is computed from what `evidence_parts` reads, none is taken from a training log but the
rounds'. Here are the metrics and their tests; `evidence_audits` looks at what was written.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm, rankdata

from agr_trl.config import ARMS, REFERENCES
from agr_trl.errors import UserError
from agr_trl.evaluation import ScoredCandidates
from agr_trl.evidence_audits import alarms, audit_of, disagreement, examples_of, rounds_of
from agr_trl.evidence_parts import TESTED, Part, judged_ids, load_parts
from agr_trl.significance import (
    Fold,
    Interval,
    WeightedMetric,
    bootstrap_intervals,
    defined,
    detectable_difference,
    effect_size,
    holm,
    paired_randomisation,
    value_by_seed,
    weighted_average_precision,
    weighted_calibration_error,
    weighted_log_loss,
    weighted_mean,
    weighted_roc_auc,
)

logger = logging.getLogger(__name__)

PAIR_METRICS: dict[str, WeightedMetric] = {
    "pr_auc": weighted_average_precision,
    "roc_auc": weighted_roc_auc,
    "ece": weighted_calibration_error,
    "log_loss": weighted_log_loss,
}
AREAS = ("pr_auc", "roc_auc")
RANKINGS = ("judged/ndcg@10", "judged/mrr@10", "judged/map", "rerank/ndcg@10", "blend/ndcg@10")
HARD_SHARE = 1 / 3  # of the queries, those that R of round 0 ranks worst

Scores = dict[str, dict[str, list[Fold]]]  # metric -> arm -> folds


def build_evidence(
    folder: Path,
    primary_metric: str,
    seeds: Sequence[int],
    folds: int,
    *,
    dataset: str,
    commit: str,
    hardware: str,
    arms: Sequence[str] = ARMS,
    ablations: Mapping[str, Mapping[str, Any]] | None = None,
    resamples: int = 2_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the evidence of a run folder, ready to be written as JSON.

    `arms` have 95 % intervals over queries and seeds, those of REFERENCES too, and `by_seed` the
    primary metric of each seed; `tests` compare `adversarial` with each other arm on the primary
    metric, `references` with those rows (no part of Holm's correction). `per_query` has, for each
    control, both values of each query, the largest gain first: of the primary metric where that is
    a ranking's, else average precision over the query's judged pairs, if it has both classes;
    effect size, wins and losses are over these. `hard_queries` has means and tests over those that
    R of round 0 ranks worst in other seeds; `beside_s` has the metrics of S and each arm's R
    together, and their tests against S alone. `disagreement` says whom people side with where S and
    the attacked retriever differ. An audit is the mean over seeds and folds; but for the counts it
    is of the accepted queries, from which R's were taken. `ablations` (name -> what it changes) are
    rows like the arms and have a test each, which is no part of Holm's correction. None stands for
    what is not defined. Raises `UserError` for a folder that lacks a part and for a primary metric
    that the data does not have.
    """
    changes = ablations or {}
    parts = load_parts(folder, (*arms, *changes), seeds, folds)
    first = pd.concat([part.pairs for part in parts[TESTED] if part.seed == 0])
    judged = first[first["judged"]]
    has_ids = all(part.result["has_ids"] for part in parts[TESTED])
    rankings = {arm: _rankings(own) for arm, own in parts.items()} if has_ids else {}
    scores = _ranking_scores(rankings) | _pair_scores(parts)
    needed = ("round_0", *arms, *changes)
    if not all(row in scores.get(primary_metric, {}) for row in needed):
        raise UserError(
            f"`{folder}` has no {primary_metric} of every arm; it has {', '.join(scores)}"
        )
    per_seed = {
        arm: _values_by_query(own, primary_metric, rankings.get(arm))
        for arm, own in parts.items()
        if arm in scores[primary_metric]
    }
    values = _means_over_seeds(per_seed)
    values.index = values.index.map(judged.groupby("query_id")["query"].first())
    written = [arm for arm in (*arms, *changes) if parts[arm][0].queries is not None]
    audits = {arm: audit_of(parts[arm]) for arm in written}
    controls = {arm: (TESTED, arm) for arm in arms if arm != TESTED}
    ablated = {name: (TESTED, name) for name in changes}
    references = {name: (TESTED, name) for name in REFERENCES if name in scores[primary_metric]}
    differences = (scores, primary_metric, values)
    return {
        "dataset": dataset,
        "primary_metric": primary_metric,
        "seeds": list(seeds),
        "folds": folds,
        "commit": commit,
        "queries": int(judged["query_id"].nunique()),
        "pairs": len(judged),
        "resamples": resamples,
        "minutes": sum(
            part.result["minutes"] for arm in ("cosine", *arms, *changes) for part in parts[arm]
        ),
        "hardware": hardware,
        "arms": _arm_rows(scores, primary_metric, list(parts), resamples, seed),
        "by_seed": _by_seed(scores, primary_metric),
        "tests": _tests(*differences, controls, resamples, seed),
        "references": {
            name: _without_holm(test)
            for name, test in _tests(*differences, references, resamples, seed).items()
        },
        "ablations": {
            name: {"changes": dict(changes[name])} | _without_holm(test)
            for name, test in _tests(*differences, ablated, resamples, seed).items()
        },
        "hard_queries": _on_hard_queries(per_seed, controls, resamples, seed),
        "beside_s": _beside_s(
            {row: parts[row] for row in ("cosine", "round_0", *arms)},
            primary_metric,
            resamples,
            seed,
        ),
        "rounds": {arm: rounds_of(parts[arm], primary_metric) for arm in (*arms, *changes)},
        "audits": audits,
        "alarms": alarms(audits),
        "disagreement": disagreement(parts[TESTED], parts["cosine"]),
        "per_query": {arm: _pairs_of_values(values, arm) for arm in controls},
        "examples": examples_of(parts[TESTED]),
    }


# --- Metrics -------------------------------------------------------------------------------------


def _pair_scores(parts: Mapping[str, list[Part]]) -> Scores:
    """Return what the pair metrics read: ranks inside a fold for the areas, else probabilities.

    Ranks change no area, and a test that swaps the rows of two arms then compares like with like:
    in simulations log-odds of which one arm's are three times as wide cost it half of its power.
    Raw BM25 scores are no probabilities. Areas are left out where no fold has both classes.
    """
    query_ids = pd.Index(sorted({query for part in parts[TESTED] for query in judged_ids(part)}))
    scores: Scores = {}
    for name, metric in PAIR_METRICS.items():
        is_area = name in AREAS
        own = {
            arm: [_pair_fold(part, query_ids, is_area) for part in parts[arm]]
            for arm in parts
            if is_area or arm != "bm25"
        }
        if np.isfinite(value_by_seed(metric, own[TESTED], np.ones((1, len(query_ids))))).all():
            scores[name] = own
    return scores


def _pair_fold(part: Part, query_ids: pd.Index, is_area: bool) -> Fold:
    judged = part.pairs[part.pairs["judged"]]
    log_odds = judged["retriever"].to_numpy(dtype=float)
    return Fold(
        part.seed,
        query_ids.get_indexer(judged["query_id"]),
        rankdata(log_odds) if is_area else expit(log_odds),
        judged["label"].to_numpy(dtype=float),
    )


def _rankings(parts: Sequence[Part]) -> pd.DataFrame:
    """Return an arm's RANKINGS (columns) of each seed and query (index) with a relevant product."""
    frames = []
    for part in parts:
        scored = ScoredCandidates(part.pairs, has_ids=True, is_bm25=False)
        groups = scored.rankings(part.result["blend_weight"], part.result["relevant_grade"])
        columns = {
            metric: groups[group][name]
            for metric in RANKINGS
            for group, _, name in [metric.partition("/")]
            if group in groups
        }
        frames.append(pd.DataFrame(columns).assign(seed=part.seed).set_index("seed", append=True))
    return pd.concat(frames).reorder_levels(["seed", "query_id"]).sort_index()


def _ranking_scores(rankings: Mapping[str, pd.DataFrame]) -> Scores:
    """Return metrics that each query has by itself: one row a query, a seed's in one fold.

    An arm without a blend weight has no blend.
    """
    asked = {query for table in rankings.values() for query in table.index.unique("query_id")}
    query_ids = pd.Index(sorted(asked))
    scores: Scores = {}
    for arm, table in rankings.items():
        for metric in table.columns[table.notna().all()]:
            scores.setdefault(metric, {})[arm] = [
                Fold(
                    int(seed),
                    query_ids.get_indexer(own.index.get_level_values("query_id")),
                    own.to_numpy(),
                    np.ones(len(own)),
                )
                for seed, own in table[metric].groupby(level="seed")
            ]
    return scores


def _values_by_query(
    parts: Sequence[Part], primary_metric: str, rankings: pd.DataFrame | None = None
) -> pd.Series:
    """Return what a query is worth by itself, by seed and query; `rankings` if they are known."""
    if primary_metric not in RANKINGS:
        return _average_precision(parts)
    return (_rankings(parts) if rankings is None else rankings)[primary_metric]


def _means_over_seeds(per_seed: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return what each query (index) is worth with each arm (columns)."""
    return pd.DataFrame({arm: own.groupby("query_id").mean() for arm, own in per_seed.items()})


def _average_precision(parts: Sequence[Part]) -> pd.Series:
    """Return the average precision of each seed and query (index) that has both classes."""
    values = {
        (part.seed, query_id): weighted_average_precision(
            rows["retriever"].to_numpy(), rows["label"].to_numpy(), np.ones((1, len(rows)))
        )[0]
        for part in parts
        for query_id, rows in part.pairs[part.pairs["judged"]].groupby("query_id")
    }
    index = pd.MultiIndex.from_tuples(values, names=["seed", "query_id"])
    return pd.Series(list(values.values()), index=index, dtype=float).dropna()


# --- Tables --------------------------------------------------------------------------------------


def _arm_rows(
    scores: Scores, primary_metric: str, arms: Sequence[str], resamples: int, seed: int
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return mean and interval of each arm and metric, the primary metric first."""
    rows: dict[str, dict[str, dict[str, float | None]]] = {arm: {} for arm in arms}
    for name, own in sorted(scores.items(), key=lambda item: item[0] != primary_metric):
        metric = PAIR_METRICS.get(name, weighted_mean)
        logger.info("intervals of %s", name)
        intervals = bootstrap_intervals(
            metric, list(own.values()), np.eye(len(own)), resamples, seed
        )
        for arm, interval in zip(own, intervals, strict=True):
            rows[arm][name] = _mean_and_bounds(name, interval)
    return rows


def _mean_and_bounds(name: str, interval: Interval) -> dict[str, float | None]:
    low, high = interval.low, interval.high
    if name == "ece":
        # Drawing pairs twice leaves fewer different ones in a bin, so a resample's error is larger
        # and a percentile interval can miss its own mean: use the standard error around the mean.
        low, high = norm.interval(0.95, loc=interval.value, scale=interval.standard_error)
        low = max(0.0, low)
    return {"mean": interval.value, "low": defined(low), "high": defined(high)}


def _by_seed(scores: Scores, primary_metric: str) -> dict[str, list[float]]:
    """Return the primary metric of each row and seed."""
    metric = PAIR_METRICS.get(primary_metric, weighted_mean)
    return {
        arm: value_by_seed(metric, folds, np.ones((1, 1 + max(f.query.max() for f in folds))))[0]
        .round(6)
        .tolist()
        for arm, folds in scores[primary_metric].items()
    }


def _tests(
    scores: Scores,
    primary_metric: str,
    values: pd.DataFrame,
    compared: Mapping[str, tuple[str, str]],
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return the paired test of each comparison, name -> (arm, control), on the primary metric."""
    if not compared:
        return {}
    metric = PAIR_METRICS.get(primary_metric, weighted_mean)
    own = scores[primary_metric]
    arms = list(dict.fromkeys(arm for both in compared.values() for arm in both))
    contrasts = np.zeros((len(compared), len(arms)))
    for row, (arm, control) in zip(contrasts, compared.values(), strict=True):
        row[arms.index(arm)], row[arms.index(control)] = 1, -1
    intervals = bootstrap_intervals(metric, [own[arm] for arm in arms], contrasts, resamples, seed)
    p_values = {}
    for name, (arm, control) in compared.items():
        logger.info("%s against %s", arm, control)
        p_values[name] = paired_randomisation(metric, own[arm], own[control], resamples, seed)
    adjusted = holm(p_values)
    tests = {}
    for (name, (arm, control)), interval in zip(compared.items(), intervals, strict=True):
        differences = (values[arm] - values[control]).to_numpy().round(9)
        tests[name] = {
            "difference": interval.value,
            "low": defined(interval.low),
            "high": defined(interval.high),
            "p": p_values[name],
            "p_holm": adjusted[name],
            "effect_size": effect_size(differences),
            "detectable": defined(detectable_difference(interval.query_error)),
            "wins": int((differences > 0).sum()),
            "losses": int((differences < 0).sum()),
            "ties": int((differences == 0).sum()),
        }
    return tests


def _on_hard_queries(
    per_seed: Mapping[str, pd.Series],
    controls: Mapping[str, tuple[str, str]],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return each arm's mean over the third of queries that R of round 0 ranks worst, and tests.

    Of each seed those that it ranks worst in the other seeds, by its mean over these. By the very R
    that a seed's arms go on from, arms that move far from it would be ahead without being better:
    some queries are worst by its chance alone, and what stays near R keeps its chance. Empty where
    fewer than two queries have a value of their own, and for a single seed.
    """
    start = per_seed["round_0"].unstack("seed")
    if len(start) < 2 or start.shape[1] < 2:
        return {}
    count = max(2, round(HARD_SHARE * len(start)))
    elsewhere = {own: start.drop(columns=own).mean(axis=1) for own in start}
    worst = {
        own: means.sort_values(kind="stable").index[:count] for own, means in elsewhere.items()
    }
    hard = [(own, query) for own, queries in worst.items() for query in queries]
    of_hard = {arm: own[hard] for arm, own in per_seed.items()}
    scores = _ranking_scores({arm: own.to_frame("mean") for arm, own in of_hard.items()})
    return {
        "queries": count,
        "of": len(start),
        "arms": {arm: float(own.mean()) for arm, own in of_hard.items()},
        "tests": _tests(scores, "mean", _means_over_seeds(of_hard), controls, resamples, seed),
    }


def _beside_s(
    parts: Mapping[str, list[Part]], primary_metric: str, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the metrics of S and each arm's R together, and the primary one's tests against S.

    S is there already, and cheap to search with; so whoever has it asks what R adds to it. The two
    are as much worth as each other: a pair's score is the mean of both its ranks inside the fold.
    BM25 is blended in with the weight that was chosen for S.
    """
    together = dict(parts) | {
        arm: [_with_s(*both) for both in zip(own, parts["cosine"], strict=True)]
        for arm, own in parts.items()
        if arm != "cosine"
    }
    is_ranking = primary_metric in RANKINGS
    rankings = {arm: _rankings(own) for arm, own in together.items()} if is_ranking else {}
    scores = _ranking_scores(rankings) if is_ranking else _pair_scores(together)
    values = _means_over_seeds(
        {
            arm: _values_by_query(own, primary_metric, rankings.get(arm))
            for arm, own in together.items()
        }
    )
    compared = {arm: (arm, "cosine") for arm in parts if arm != "cosine"}
    differences = (scores, primary_metric, values)
    ranked = {name: own for name, own in scores.items() if name in (*AREAS, *RANKINGS)}
    return {
        "arms": _arm_rows(ranked, primary_metric, list(together), resamples, seed),
        "tests": _tests(*differences, compared, resamples, seed),
    }


def _with_s(part: Part, cosine: Part) -> Part:
    """Return a part whose scores are the means of R's and S's ranks, each in (0, 1].

    No probabilities, so that calibration cannot be asked of them.
    """
    keys = ["query_id", "product_id"]
    of_s = cosine.pairs.drop_duplicates(keys)[[*keys, "retriever"]]
    pairs = part.pairs.merge(of_s, how="left", on=keys, suffixes=("", "_of_s"))
    ranks = [rankdata(pairs[name]) / len(pairs) for name in ("retriever", "retriever_of_s")]
    result = {**part.result, "blend_weight": cosine.result.get("blend_weight")}
    return part._replace(pairs=pairs.assign(retriever=(ranks[0] + ranks[1]) / 2), result=result)


def _without_holm(test: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in test.items() if name != "p_holm"}


def _pairs_of_values(values: pd.DataFrame, control: str) -> list[dict[str, Any]]:
    """Return both values of each query, the largest gain over the control first."""
    # Rounded as the tests round: sums of the same numbers in another order are no win.
    table = values[[TESTED, control]].set_axis(["adversarial", "control"], axis=1).round(9)
    gains = (table["adversarial"] - table["control"]).to_numpy()
    order = np.argsort(-gains, kind="stable")
    records: list[dict[str, Any]] = table.iloc[order].reset_index(names="query").to_dict("records")
    return records
