"""Is one way to train better than another, or was it luck? Paired tests, clustered by query.

What two arms of a comparison score is kept as `Fold`s: rows that belong to queries, from a model
that saw none of these queries. A resample of queries is a weight per query, so that one weighted
metric serves the bootstrap (how often a query was drawn) and the randomisation (which arm's rows of
a query count). The resampling itself is scipy's.

Notation: N rows of a fold, Q queries, S seeds, A arms, K contrasts, B resamples of one batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from agr_trl.errors import UserError

# metric(scores (N,), labels (N,), weights (B, N)) -> (B,), NaN where it is not defined
WeightedMetric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

BATCH = 100  # resamples at a time: the weights of one fold then stay small enough for the caches
CALIBRATION_BINS = 15


class Fold(NamedTuple):
    """What one model scored: a row per pair, or a row per query for a metric per query.

    `seed` and `query` are positions (0 to S - 1, 0 to Q - 1) that all arms share; `label` lies in
    [0, 1] and is relevant from 0.5 on.
    """

    seed: int
    query: np.ndarray  # (N,) int
    score: np.ndarray  # (N,)
    label: np.ndarray  # (N,)


class Interval(NamedTuple):
    """A value with its 95 % interval and bootstrap standard error, over queries and seeds.

    `query_error` is the standard error over queries alone, the seeds being what they are, as they
    are in `paired_randomisation`.
    """

    value: float
    low: float
    high: float
    standard_error: float
    query_error: float


# --- Weighted metrics ----------------------------------------------------------------------------


def weighted_mean(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of the scores, for metrics that have one value a query."""
    return _ratio(weights @ scores, weights.sum(axis=1))


def weighted_average_precision(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return sklearn's `average_precision_score` for many sets of sample weights at once.

    The sum over distinct scores of (recall gained there) * (precision down to there). Not defined
    where only one class has weight.
    """
    shown, found = _counts_by_threshold(scores, labels, weights)
    gained = np.diff(found, axis=1, prepend=0)
    precision = found / np.where(shown > 0, shown, 1)
    total = found[:, -1]
    return _ratio((gained * precision).sum(axis=1), np.where(total < shown[:, -1], total, 0))


def weighted_roc_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return sklearn's `roc_auc_score` for many sets of sample weights at once.

    The area under the curve by trapezoids, so that equal scores count half. Not defined where only
    one class has weight.
    """
    shown, found = _counts_by_threshold(scores, labels, weights)
    missed = shown - found
    heights = found - np.diff(found, axis=1, prepend=0) / 2
    area = (np.diff(missed, axis=1, prepend=0) * heights).sum(axis=1)
    return _ratio(area, found[:, -1] * missed[:, -1])


def weighted_calibration_error(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return `evaluation.expected_calibration_error` of probabilities, with weights."""
    bins = np.clip(np.ceil(scores * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = weights @ ((labels - scores)[:, None] * np.eye(CALIBRATION_BINS)[bins])
    return _ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


def weighted_log_loss(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return `evaluation.log_loss_nats` of probabilities, with weights."""
    p = np.clip(scores, 1e-7, 1 - 1e-7)
    losses = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return weighted_mean(losses, labels, weights)


def _counts_by_threshold(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of all and of the relevant rows down to each distinct score, best first."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of a run of equal scores
    weights = weights[:, order].astype(np.float64)
    shown = np.cumsum(weights, axis=1)[:, last]
    found = np.cumsum(weights * (labels[order] >= 0.5), axis=1)[:, last]
    return shown, found


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)


def value_by_seed(metric: WeightedMetric, folds: Sequence[Fold], weights: np.ndarray) -> np.ndarray:
    """Return a metric by seed, (B, S), for weights of queries, (B, Q).

    It is computed inside each fold, since the scores of two models need not be on one scale, and
    averaged over the folds of a seed. A fold in which it is not defined is left out.
    """
    num_seeds = 1 + max(fold.seed for fold in folds)
    totals, defined = (np.zeros((len(weights), num_seeds)) for _ in range(2))
    for fold in folds:
        values = metric(fold.score, fold.label, weights[:, fold.query])
        totals[:, fold.seed] += np.nan_to_num(values)
        defined[:, fold.seed] += ~np.isnan(values)
    return _ratio(totals, defined)


# --- Resampling ----------------------------------------------------------------------------------


def bootstrap_intervals(
    metric: WeightedMetric,
    arms: Sequence[Sequence[Fold]],
    contrasts: np.ndarray,
    resamples: int = 2_000,
    seed: int = 0,
) -> list[Interval]:
    """Return `contrasts` (K, A) @ the arms' values, each with its percentile interval.

    A row of the identity asks for one arm; one with 1 and -1 for the difference of two. Queries
    and seeds are drawn with replacement and apart from each other, the same for all arms (Owen
    2007, "The pigeonhole bootstrap"); so a query's pairs stay together, in all seeds. It errs on
    the wide side: what is particular to one query in one seed counts up to three times. A single
    seed gives an interval over queries alone. NaN where a resample had no fold with both classes.
    Raises `UserError` for fewer than two queries.
    """
    num_queries = _num_queries(arms[0])
    num_seeds = 1 + max(fold.seed for fold in arms[0])

    def statistic(queries: np.ndarray, seeds: np.ndarray, axis: int) -> np.ndarray:
        weights = _times_drawn(queries, num_queries)
        by_seed = [value_by_seed(metric, folds, weights) for folds in arms]
        drawn = [np.take_along_axis(values, seeds, axis=1).mean(axis=axis) for values in by_seed]
        held = [values.mean(axis=axis) for values in by_seed]
        return np.concatenate([contrasts @ np.stack(drawn), contrasts @ np.stack(held)])  # (2K, B)

    # scipy wants at least two of everything: a single seed stands twice, which adds no variation.
    seeds = np.arange(num_seeds) if num_seeds > 1 else np.zeros(2, dtype=int)
    answer = stats.bootstrap(
        (np.arange(num_queries), seeds),
        statistic,
        vectorized=True,
        n_resamples=resamples,
        batch=BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    once = np.ones((1, num_queries))
    means = [value_by_seed(metric, folds, once).mean() for folds in arms]
    found = (*answer.confidence_interval, answer.standard_error)
    low, high, error = (column[: len(contrasts)] for column in found)
    query_error = answer.standard_error[len(contrasts) :]
    columns = (contrasts @ np.array(means), low, high, error, query_error)
    return [Interval(*map(float, row)) for row in zip(*columns, strict=True)]


def paired_randomisation(
    metric: WeightedMetric,
    arm: Sequence[Fold],
    control: Sequence[Fold],
    resamples: int = 2_000,
    seed: int = 0,
) -> float:
    """Return the two-sided p of "whose scores are whose does not matter", in (0, 1].

    A permutation swaps the two arms' scores of some queries, in all seeds together, and computes
    the metric anew (Smucker, Allan and Carterette 2007, "A comparison of statistical significance
    tests for information retrieval evaluation"). With few queries scipy goes through all of them.
    The seeds are taken as they are: their chance is in the interval, not in p, so that p may be
    small where the interval holds 0. Swapping mixes the two arms' rows in a fold, so their scores
    must be on one scale; for the areas ranks inside the fold are. Raises `UserError` where the arms
    have other seeds, folds or queries.
    """
    num_queries = _num_queries(arm)
    if [_contents(fold) for fold in arm] != [_contents(fold) for fold in control]:
        raise UserError("a paired test needs the same queries in each seed and fold of both arms")
    both = [
        Fold(
            one.seed,
            np.concatenate([one.query, other.query + num_queries]),
            np.concatenate([one.score, other.score]),
            np.concatenate([one.label, other.label]),
        )
        for one, other in zip(arm, control, strict=True)
    ]

    def value(owners: np.ndarray) -> np.ndarray:
        """Value of taking each query's rows from arm 0 or from control 1: (B, Q) -> (B,)."""
        owners = np.atleast_2d(owners)
        weights = np.concatenate([owners == 0, owners == 1], axis=1).astype(np.float64)
        return value_by_seed(metric, both, weights).mean(axis=1)

    def statistic(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        # Rounded, so that sums of the same numbers in another order count as equal.
        difference = np.round(value(first) - value(second), 12)
        return difference if first.ndim > 1 else difference[0]

    answer = stats.permutation_test(
        (np.zeros(num_queries, dtype=int), np.ones(num_queries, dtype=int)),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=BATCH,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return float(answer.pvalue)


def _num_queries(folds: Sequence[Fold]) -> int:
    num_queries = 1 + max(int(fold.query.max(initial=0)) for fold in folds)
    if num_queries < 2:
        raise UserError("one query cannot be resampled; compare arms on more judged queries")
    return num_queries


def _contents(fold: Fold) -> tuple[int, list[int]]:
    return fold.seed, np.unique(fold.query).tolist()


def _times_drawn(queries: np.ndarray, num_queries: int) -> np.ndarray:
    """Return how often each query was drawn: positions (B, Q) -> counts (B, Q)."""
    offsets = num_queries * np.arange(len(queries))[:, None]
    counts = np.bincount((queries + offsets).ravel(), minlength=len(queries) * num_queries)
    return counts.reshape(len(queries), num_queries)


# --- What to make of the numbers -----------------------------------------------------------------


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for several tests, in the order given.

    The i-th smallest of m (from 0) is multiplied by m - i; none falls below a smaller one's, none
    passes 1. Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted: dict[str, float] = {}
    bound = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        bound = max(bound, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = bound
    return {name: adjusted[name] for name in p_values}


def defined(value: float) -> float | None:
    """Return a number as JSON can hold it: None for what is not defined."""
    return float(value) if np.isfinite(value) else None


def effect_size(differences: np.ndarray) -> float | None:
    """Return the mean of paired differences over their standard deviation, None where that is 0.

    Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences", d for paired samples.
    """
    if len(differences) < 2 or np.ptp(differences) < 1e-12:
        return None
    return float(differences.mean() / differences.std(ddof=1))


def detectable_difference(
    standard_error: float, significance: float = 0.05, power: float = 0.8
) -> float:
    """Return the smallest true difference that a two-sided test finds with that power.

    (z of 1 - significance / 2 + z of power) * standard error of the paired difference, about 2.8
    standard errors; for one test, before Holm. Normal approximation, Cohen 1988, chapter 2.
    """
    return float((stats.norm.ppf(1 - significance / 2) + stats.norm.ppf(power)) * standard_error)
