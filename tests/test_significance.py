"""Tests of a comparison: by hand, against scipy and sklearn, on data with a known answer."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from agr_trl.errors import UserError
from agr_trl.evaluation import expected_calibration_error, log_loss_nats
from agr_trl.significance import (
    Fold,
    bootstrap_intervals,
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

METRICS = {
    weighted_average_precision: lambda scores, labels: average_precision_score(
        labels >= 0.5, scores
    ),
    weighted_roc_auc: lambda scores, labels: roc_auc_score(labels >= 0.5, scores),
    weighted_calibration_error: expected_calibration_error,
    weighted_log_loss: log_loss_nats,
    weighted_mean: lambda scores, labels: scores.mean(),
}


def per_query(*seeds: list[float]) -> list[Fold]:
    """A metric that has one value a query: one list a seed."""
    return [
        Fold(seed, np.arange(len(values)), np.array(values, dtype=float), np.ones(len(values)))
        for seed, values in enumerate(seeds)
    ]


def noisy_rows(rng: np.random.Generator, num_rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    return np.round(rng.random(num_rows), 1), np.round(rng.random(num_rows), 1)  # with ties


# ------------------------------------------------------------------------------- weighted metrics


def test_weighted_areas_worked_by_hand() -> None:
    scores, labels = np.array([0.9, 0.7, 0.6, 0.2]), np.array([1.0, 0.0, 1.0, 0.0])
    weights = np.array([[1, 1, 1, 1], [1, 2, 1, 0], [0, 1, 1, 1], [1, 0, 3, 0], [0, 1, 0, 1]])
    # Precision at the relevant ones: 1/1 and 2/3; then 1/1 and 2/4; then 1/2. One class alone: NaN.
    expected = [5 / 6, 3 / 4, 1 / 2, np.nan, np.nan]
    found = weighted_average_precision(scores, labels, weights)
    assert found == pytest.approx(expected, nan_ok=True)
    # Comparisons in order: 3 of 4; 2 of 2 * 2 (weight 2 stands between); 1 of 2.
    expected = [3 / 4, 2 / 4, 1 / 2, np.nan, np.nan]
    assert weighted_roc_auc(scores, labels, weights) == pytest.approx(expected, nan_ok=True)


def test_weighted_calibration_error_by_hand() -> None:
    # 15 bins of width .0667, each closed above: .1 and .2 lie in the 2nd and the 3rd, 0 and .05 in
    # the 1st, 1.0 in the last. Gaps label - score of a bin add up before their size is taken.
    scores, labels = np.array([0.1, 0.2, 0.0, 0.05, 1.0]), np.array([1.0, 0.0, 0.0, 1.0, 0.0])
    weights = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 3, 0, 0, 0]])
    expected = [(0.9 + 0.2) / 2, 0.95 / 2, 1, (0.9 + 0.6) / 4]
    assert weighted_calibration_error(scores, labels, weights) == pytest.approx(expected)
    # 2 / 15 is the end of the 2nd bin and meets .1 there: -.1333 and .9 offset each other.
    scores, labels = np.array([0.1, 2 / 15, 0.14]), np.array([1.0, 0.0, 0.0])
    weights = np.array([[1, 1, 0], [1, 0, 1]])
    expected = [(0.9 - 2 / 15) / 2, (0.9 + 0.14) / 2]
    assert weighted_calibration_error(scores, labels, weights) == pytest.approx(expected)


def test_weighted_mean_is_not_defined_without_weight() -> None:
    weights = np.array([[1, 3], [0, 0]])
    found = weighted_mean(np.array([1.0, 2.0]), np.ones(2), weights)
    assert found == pytest.approx([7 / 4, np.nan], nan_ok=True)


@pytest.mark.parametrize("metric", METRICS)
def test_a_weight_equals_so_many_copies_of_the_row(metric) -> None:
    rng = np.random.default_rng(0)
    scores, labels = noisy_rows(rng)
    weights = rng.integers(4, size=(20, len(scores)))
    copies = [METRICS[metric](scores.repeat(row), labels.repeat(row)) for row in weights]
    assert metric(scores, labels, weights) == pytest.approx(copies)
    once = np.ones((1, len(scores)))
    assert metric(scores, labels, once) == pytest.approx([METRICS[metric](scores, labels)])


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (weighted_average_precision, average_precision_score),
        (weighted_roc_auc, roc_auc_score),
    ],
)
def test_weighted_areas_equal_those_of_sklearn(metric, reference) -> None:
    rng = np.random.default_rng(1)
    scores, labels = noisy_rows(rng)
    weights = rng.random((20, len(scores))) * (rng.random((20, len(scores))) < 0.7)
    expected = [reference(labels >= 0.5, scores, sample_weight=row) for row in weights]
    assert metric(scores, labels, weights) == pytest.approx(expected)


def test_folds_are_averaged_within_their_seed() -> None:
    one, two = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    labels = np.array([1.0, 0.0])
    folds = [
        Fold(0, np.array([0, 0]), one, labels),  # right: area 1
        Fold(0, np.array([1, 1]), two, labels),  # wrong: area 0
        Fold(1, np.array([0, 0]), one, labels),
        Fold(1, np.array([1, 1]), one, labels),
    ]
    weights = np.array([[1, 1], [2, 0], [0, 0]])
    # The second lacks query 1, so that its folds are left out; nothing is left of the third.
    expected = [[1 / 2, 1], [1, 1], [np.nan, np.nan]]
    found = value_by_seed(weighted_roc_auc, folds, weights)
    np.testing.assert_allclose(found, expected)


# -------------------------------------------------------------------------------------- bootstrap


def test_a_bootstrap_of_two_values_by_hand() -> None:
    # Two queries of 0 and 1: a resample's mean is 0, 1/2, 1 in 1/4, 1/2, 1/4 of the cases.
    arms = [per_query([0, 1]), per_query([1, 1])]
    contrasts = np.array([[1, 0], [0, 1], [1, -1]])
    first, second, difference = bootstrap_intervals(weighted_mean, arms, contrasts, 4_000)
    assert first[:3] == (0.5, 0.0, 1.0)
    assert first.standard_error == pytest.approx(np.sqrt(1 / 8), rel=0.03)
    assert first.query_error == first.standard_error  # one seed
    assert second == (1.0, 1.0, 1.0, 0.0, 0.0)
    assert difference[:3] == (-0.5, -1.0, 0.0)


def test_seeds_are_drawn_too() -> None:
    # Queries all alike, seeds 0 and 1: the whole variance is that of drawing two seeds of two.
    (seeds,) = bootstrap_intervals(
        weighted_mean, [per_query([0] * 5, [1] * 5)], np.eye(1), resamples=4_000
    )
    assert seeds[:3] == (0.5, 0.0, 1.0)
    assert seeds.standard_error == pytest.approx(np.sqrt(1 / 8), rel=0.03)
    assert seeds.query_error == 0


def test_the_interval_over_queries_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).random(30)
    (found,) = bootstrap_intervals(weighted_mean, [per_query(values.tolist())], np.eye(1), 4_000)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=4_000, method="percentile", rng=np.random.default_rng(1)
    )
    assert found.value == pytest.approx(values.mean())
    assert found[1:3] == pytest.approx(expected.confidence_interval, abs=0.01)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.05)


def test_pairs_of_a_query_are_drawn_together() -> None:
    # Query 0 is ranked right, query 1 wrong: the area of both is by hand 1/2 (2 of 4 comparisons),
    # and only resamples of one query alone give 0 and 1. Loose pairs would give more values.
    fold = Fold(0, np.array([0, 0, 1, 1]), np.array([4.0, 2.0, 1.0, 3.0]), np.array([1.0, 0, 1, 0]))
    (found,) = bootstrap_intervals(weighted_roc_auc, [[fold]], np.eye(1), 200)
    assert found[:3] == (0.5, 0.0, 1.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    arms = [per_query(np.random.default_rng(0).random(9).tolist())]
    first, again, other = (
        bootstrap_intervals(weighted_mean, arms, np.eye(1), 200, seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_one_query_is_refused() -> None:
    with pytest.raises(UserError, match="one query cannot be resampled"):
        bootstrap_intervals(weighted_mean, [per_query([1])], np.eye(1))


# ---------------------------------------------------------------------------------- randomisation


def test_randomisation_by_hand() -> None:
    # Differences 1, 2, 3: of the 8 ways to sign them one reaches their sum, one its negative.
    p = paired_randomisation(weighted_mean, per_query([2, 4, 6]), per_query([1, 2, 3]))
    assert p == pytest.approx(2 / 8)
    # Differences 3, 1, -1: of the 8 sums 5, 3 and 3 reach 3.
    p = paired_randomisation(weighted_mean, per_query([3, 1, 0]), per_query([0, 0, 1]))
    assert p == pytest.approx(2 * 3 / 8)


def test_seeds_of_a_query_are_swapped_together() -> None:
    # Sums over the seeds are 2 and 4, as if there were one seed: 2 of 4 sign patterns, not of 16.
    p = paired_randomisation(weighted_mean, per_query([1, 2], [1, 2]), per_query([0, 0], [0, 0]))
    assert p == pytest.approx(2 / 4)


def test_randomisation_of_a_per_query_metric_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    arm, control = rng.random((2, 40))
    found = paired_randomisation(
        weighted_mean, per_query(arm.tolist()), per_query(control.tolist()), 4_000
    )
    expected = stats.permutation_test(
        (arm - control,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        n_resamples=4_000,
        rng=rng,
    )
    assert found == pytest.approx(expected.pvalue, abs=0.04)


def test_randomisation_of_an_area_by_hand() -> None:
    # The arm ranks both queries right, the control both wrong, with scores 1 and 0. Swapping both
    # turns the difference of areas from 1 to -1; swapping one makes both 1/2.
    labels, queries = np.array([1.0, 0, 1, 0]), np.array([0, 0, 1, 1])
    right = [Fold(0, queries, np.array([1.0, 0, 1, 0]), labels)]
    wrong = [Fold(0, queries, np.array([0.0, 1, 0, 1]), labels)]
    assert paired_randomisation(weighted_roc_auc, right, wrong) == pytest.approx(2 / 4)


@pytest.mark.parametrize("metric", [weighted_mean, weighted_average_precision])
def test_swapping_the_arms_flips_the_sign_and_keeps_p(metric) -> None:
    arm, control = simulate(np.random.default_rng(3), shift=0.5)
    forth, back = np.array([[1, -1]]), np.array([[-1, 1]])
    (one,) = bootstrap_intervals(metric, [arm, control], forth, 200)
    (other,) = bootstrap_intervals(metric, [arm, control], back, 200)
    assert one.value == pytest.approx(-other.value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    p = [paired_randomisation(metric, *arms, 400) for arms in ((arm, control), (control, arm))]
    assert p[0] == pytest.approx(p[1], abs=1e-9)


def test_equal_arms_have_p_one() -> None:
    arm, _ = simulate(np.random.default_rng(0))
    assert paired_randomisation(weighted_average_precision, arm, arm, 200) == 1


def test_arms_with_other_queries_are_refused() -> None:
    for control in (per_query([1, 2]), per_query([1, 2, 3], [1, 2, 3])):
        with pytest.raises(UserError, match="same queries in each seed and fold"):
            paired_randomisation(weighted_mean, per_query([1, 2, 3]), control)


# --------------------------------------------------------------------- data with a known answer


def simulate(
    rng: np.random.Generator, shift: float = 0.0, num_queries: int = 24, num_seeds: int = 2
) -> list[list[Fold]]:
    """Two arms, two folds, six pairs a query; `shift` is what the first knows more about labels.

    Queries differ in how hard they are, which both arms feel; so pairs of a query are not free of
    each other. Scores are ranks inside a fold; the second arm's were three times as wide before.
    """
    query = np.arange(num_queries).repeat(6)
    label = rng.integers(2, size=len(query)).astype(float)
    ease = rng.normal(1, 1, num_queries)[query]
    arms: list[list[Fold]] = [[], []]
    for seed in range(num_seeds):
        is_second = rng.permutation(num_queries) % 2 == 1
        for arm, gain in enumerate((shift, 0.0)):
            own = rng.normal(0, 1, num_queries)[query]  # the model's own luck with a query
            scores = (ease + own + gain) * (label - 0.5) + rng.normal(0, 1, len(query))
            for in_fold in (is_second[query], ~is_second[query]):
                ranks = stats.rankdata(scores[in_fold] * (1, 3)[arm])
                arms[arm].append(Fold(seed, query[in_fold], ranks, label[in_fold]))
    return arms


@pytest.mark.parametrize("metric", [weighted_mean, weighted_average_precision])
def test_no_difference_gives_about_five_percent_false_alarms(metric) -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        if metric is weighted_mean:
            hard = rng.normal(size=24)
            arms = [per_query((hard + rng.normal(size=24)).tolist()) for _ in range(2)]
        else:
            arms = simulate(rng)
        alarms += paired_randomisation(metric, *arms, resamples=199) <= 0.05
    # 15 expected; 6 to 26 is what 99.5 % of such experiments give.
    assert 6 <= alarms <= 26


def test_a_planted_difference_is_found() -> None:
    arms = simulate(np.random.default_rng(0), shift=1.5, num_queries=60)
    assert paired_randomisation(weighted_average_precision, *arms, resamples=999) < 0.01
    (difference,) = bootstrap_intervals(
        weighted_average_precision, arms, np.array([[1, -1]]), resamples=500
    )
    assert difference.low > 0
    assert difference.value > detectable_difference(difference.query_error)


def test_the_error_over_queries_holds_the_seeds_as_the_test_does() -> None:
    # All queries gain 1 in one seed and lose 1 in the other: the seeds' chance, not the queries'.
    arms = [per_query([1] * 5, [-1] * 5), per_query([0] * 5, [0] * 5)]
    (difference,) = bootstrap_intervals(weighted_mean, arms, np.array([[1, -1]]), 500)
    assert (difference.low, difference.high) == (-1, 1)
    assert difference.query_error == pytest.approx(0, abs=1e-12)
    # Means over the two seeds of 40 queries, -1 and 1 half each: standard deviation 1.
    arms = [per_query([2, -2] * 20, [0, 0] * 20), per_query([0] * 40, [0] * 40)]
    (difference,) = bootstrap_intervals(weighted_mean, arms, np.array([[1, -1]]), 2_000)
    assert difference.query_error == pytest.approx(1 / np.sqrt(40), rel=0.06)


def test_detectable_differences_are_found_four_times_in_five() -> None:
    # 40 differences of standard deviation 1: the standard error of their mean is 1 / sqrt(40).
    rng = np.random.default_rng(0)
    size = detectable_difference(1 / np.sqrt(40))
    found = 0
    for _ in range(200):
        arm = per_query((size + rng.normal(size=40)).tolist())
        found += paired_randomisation(weighted_mean, arm, per_query([0] * 40), 199) <= 0.05
    # 160 expected; three standard deviations are 17, and few resamples cost a little power.
    assert 140 <= found <= 177


# ------------------------------------------------------------------- what to make of the numbers


def test_holm_by_hand() -> None:
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.5})
    # b: 4 * .01; c: 3 * .03; a: 2 * .04 = .08, not below c's .09; d: 1 * .5.
    assert found == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.5})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}  # capped
    assert holm({"a": 0.02}) == {"a": 0.02}
    assert holm({}) == {}


def test_effect_size_by_hand() -> None:
    # Mean 2, standard deviation sqrt((1 + 0 + 1) / 2) = 1.
    assert effect_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(2)
    # Mean 4, standard deviation sqrt((4 + 4) / 1) = sqrt(8); two are enough.
    assert effect_size(np.array([2.0, 6.0])) == pytest.approx(4 / math.sqrt(8))
    assert effect_size(np.array([0.1, 0.1, 0.1])) is None
    assert effect_size(np.array([1.0])) is None


def test_detectable_difference_by_hand() -> None:
    # z: 1.959964 + 0.841621.
    assert detectable_difference(0.01) == pytest.approx(0.02801585)
    assert detectable_difference(0.01, power=0.5) == pytest.approx(0.01959964)


def test_a_resample_without_both_classes_gives_no_interval() -> None:
    fold = Fold(0, np.array([0, 1]), np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        (found,) = bootstrap_intervals(weighted_roc_auc, [[fold]], np.eye(1), 50)
    assert found.value == 1
    assert np.isnan(found.low)
