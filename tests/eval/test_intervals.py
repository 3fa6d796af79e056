"""Intervals and paired differences: published values, defining equations, simulated coverage, statsmodels as judge."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from llmrl.eval.metrics import clustered_interval, mcnemar_exact, paired_difference, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(9, 30, 16.7, 47.9), (250, 500, 45.6, 54.4), (660, 1319, 47.3, 52.7)],
)
def test_wilson_gives_the_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, trials)
    assert [round(100 * x, 1) for x in interval] == pytest.approx([low, high], abs=0.051)


def test_wilson_ends_solve_its_defining_equation() -> None:
    # |p - share| = z sqrt(p (1 - p) / n) at both ends.
    z = 1.959963984540054
    for end in wilson_interval(13, 40):
        assert abs(end - 13 / 40) == pytest.approx(z * math.sqrt(end * (1 - end) / 40), rel=1e-9)


def test_wilson_at_the_ends_and_its_symmetry() -> None:
    low, high = wilson_interval(0, 20)
    assert low == 0.0
    assert high == pytest.approx(0.16112, abs=1e-5)
    assert wilson_interval(20, 20) == (pytest.approx(1 - high), 1.0)
    assert wilson_interval(5, 20, confidence=0.99)[0] < wilson_interval(5, 20)[0]


def test_wilson_refuses_bad_input() -> None:
    for arguments in [(0, 0), (3, 2), (-1, 5)]:
        with pytest.raises(ValueError, match="trials"):
            wilson_interval(*arguments)
    with pytest.raises(ValueError, match=r"confidence=95"):
        wilson_interval(1, 2, confidence=95)


@pytest.mark.parametrize(("trials", "p"), [(30, 0.1), (30, 0.3), (200, 0.02), (200, 0.5)])
def test_wilson_covers_the_truth_about_as_often_as_it_says(trials: int, p: float) -> None:
    probabilities = [math.comb(trials, c) * p**c * (1 - p) ** (trials - c) for c in range(trials + 1)]
    intervals = [wilson_interval(c, trials) for c in range(trials + 1)]
    coverage = sum(q for q, (low, high) in zip(probabilities, intervals) if low <= p <= high)
    assert 0.925 <= coverage <= 0.98


def test_clustered_interval_by_hand() -> None:
    # Means 1, .5, 0, .5: mean .5, sd sqrt(.5/3) = .408248, se .204124.
    low, high = clustered_interval([[1, 1], [1, 0], [0, 0], [0, 1]])
    assert (low, high) == (pytest.approx(0.5 - 1.959964 * 0.2041241), pytest.approx(0.5 + 1.959964 * 0.2041241))
    assert clustered_interval([1.0, 0.5, 0.0, 0.5]) == (low, high)


def test_clustered_interval_weighs_questions_alike_whatever_their_number_of_samples() -> None:
    assert clustered_interval([[1], [0, 0, 0, 0], [1, 0]]) == clustered_interval([1.0, 0.0, 0.5])


def test_clustered_interval_stays_in_bounds_and_never_claims_certainty_at_an_end() -> None:
    assert clustered_interval([[0, 0], [0, 0], [0, 0]]) == wilson_interval(0, 3)
    assert clustered_interval([1.0] * 30) == wilson_interval(30, 30)
    assert clustered_interval([1.0, 1.0, 0.9])[1] == 1.0
    assert clustered_interval([[1, 0], [0, 1]]) == (0.5, 0.5)  # alike, and at neither end
    assert clustered_interval([100.0, 300.0], bounds=(0.0, math.inf))[0] == pytest.approx(200 - 1.959964 * 100)


def test_clustered_interval_refuses_bad_input() -> None:
    for values, reason in [
        ([], "no questions"),
        ([0.5], "at least 2"),
        ([[1], []], "question 1 has no samples"),
        ([0.5, math.nan], "question 1 has a value that is not finite"),
        ([0.5, 3.0], "leave bounds"),
    ]:
        with pytest.raises(ValueError, match=reason):
            clustered_interval(values)


def test_clustered_interval_covers_where_the_one_that_ignores_questions_does_not() -> None:
    rng = np.random.default_rng(3)
    clustered = naive = 0
    runs, questions, samples = 400, 60, 8
    for _ in range(runs):
        difficulty = rng.beta(0.5, 0.5, size=questions)  # mean 0.5, questions mostly easy or hard
        right = rng.random((questions, samples)) < difficulty[:, None]
        low, high = clustered_interval(right.astype(float).tolist())
        clustered += low <= 0.5 <= high
        low, high = wilson_interval(int(right.sum()), right.size)
        naive += low <= 0.5 <= high
    assert clustered / runs >= 0.92
    assert naive / runs <= 0.75


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar_exact(10, 2) == mcnemar_exact(2, 10)


def test_paired_difference_counts_and_tests_binary_outcomes_with_mcnemar() -> None:
    a = [1] * 10 + [0] * 2 + [1] * 40 + [0] * 48
    b = [0] * 10 + [1] * 2 + [1] * 40 + [0] * 48
    result = paired_difference(a, b)
    assert (result.a_better, result.b_better, result.questions) == (10, 2, 100)
    assert result.difference == pytest.approx(0.08)
    assert result.p_value == pytest.approx(2 * 79 / 4096)
    assert result.significant
    assert result.low == pytest.approx(0.08 - 1.96 * 0.0337, abs=0.011)
    assert result.high == pytest.approx(0.08 + 1.96 * 0.0337, abs=0.011)


def test_paired_difference_is_reproducible_and_antisymmetric() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((50, 4)).tolist(), rng.random((50, 4)).tolist()
    result, again = paired_difference(a, b, seed=5), paired_difference(a, b, seed=5)
    assert result == again
    assert result.test == "sign flip"
    swapped = paired_difference(b, a, seed=5)
    assert swapped.difference == pytest.approx(-result.difference)
    assert (swapped.a_better, swapped.b_better) == (result.b_better, result.a_better)
    assert swapped.p_value == pytest.approx(result.p_value, abs=0.03)


def test_equal_models_differ_by_nothing() -> None:
    result = paired_difference([1, 0, 1], [1, 0, 1])
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert not result.significant
    assert paired_difference([0.5, 0.25], [0.5, 0.25]).p_value == 1.0


def test_sign_flip_equals_the_exact_enumeration_of_all_signs() -> None:
    diff = np.array([0.5, 0.25, 0.75, -0.25, 0.5, 0.25, 0.125])
    flips = [abs(np.dot(signs, diff)) >= abs(diff.sum()) - 1e-9 for signs in itertools.product((-1, 1), repeat=7)]
    result = paired_difference(diff.tolist(), [0.0] * 7, resamples=40_000)
    assert result.p_value == pytest.approx(sum(flips) / len(flips), abs=0.006)


@pytest.mark.parametrize("binary", [True, False])
def test_paired_difference_covers_and_rejects_as_often_as_it_says(binary: bool) -> None:
    rng = np.random.default_rng(11)
    covered = rejected = 0
    runs, samples = 300, 1 if binary else 4
    for run in range(runs):
        difficulty = rng.random((80, 1))
        a, b = (rng.random((80, samples)) < difficulty for _ in range(2))
        result = paired_difference(a.astype(float).tolist(), b.astype(float).tolist(), resamples=1000, seed=run)
        covered += result.low <= 0.0 <= result.high
        rejected += result.significant
    assert 0.91 <= covered / runs <= 0.99
    assert rejected / runs <= 0.08


def test_paired_difference_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="3 questions of a but 2 of b"):
        paired_difference([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="no questions"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="resamples=10"):
        paired_difference([1], [0], resamples=10)
    with pytest.raises(ValueError, match="confidence=2"):
        paired_difference([1, 0], [0, 1], confidence=2)


def test_wilson_and_mcnemar_and_clustering_equal_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    linear = pytest.importorskip("statsmodels.regression.linear_model")
    for trials in (1, 2, 7, 30, 164, 1319):
        for right in {0, 1, trials // 3, trials - 1, trials}:
            for confidence in (0.9, 0.95, 0.99):
                theirs = proportion.proportion_confint(right, trials, alpha=1 - confidence, method="wilson")
                assert wilson_interval(right, trials, confidence=confidence) == pytest.approx(theirs, abs=1e-12)
    for a, b in itertools.product(range(9), repeat=2):
        theirs = tables.mcnemar([[3, a], [b, 5]], exact=True).pvalue
        assert mcnemar_exact(a, b) == pytest.approx(theirs, abs=1e-12)
    rng = np.random.default_rng(0)
    samples = (rng.random((40, 6)) < rng.random((40, 1))).astype(float)
    fit = linear.OLS(samples.ravel(), np.ones(240)).fit(
        cov_type="cluster", cov_kwds={"groups": np.repeat(np.arange(40), 6)}
    )
    assert clustered_interval(samples.tolist()) == pytest.approx(tuple(fit.conf_int()[0]), abs=1e-9)


def test_the_interval_of_a_difference_equals_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((60, 4)) * 1.1, rng.random((60, 4))
    ours = paired_difference(a.tolist(), b.tolist(), resamples=20_000)
    diff = a.mean(1) - b.mean(1)
    means = diff[rng.integers(0, 60, size=(20_000, 60))].mean(axis=1)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.003)
