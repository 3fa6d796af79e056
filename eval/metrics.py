"""Benchmark metrics and their uncertainty: pure functions of right/wrong samples, last stage of the flow.

One question has n samples, c of them right. `pass_at_k` asks whether any of k samples is right, `pass_hat_k` whether
all are, `maj_at_k` whether the vote of k is; each is the exact expectation over the subsets of k of the n samples, not an
estimate by resampling. A benchmark's score is the mean over questions; its interval is `wilson_interval` with one sample a
question, `clustered_interval` with several (samples of one question are not independent), and two models on the same
questions are compared by `paired_difference`.

Sources: Chen et al. 2021 (2107.03374) for pass@k, Yao et al. 2024 (2406.12045) for pass^k, Wang et al. 2022
(2203.11171) for the vote, Wilson 1927, McNemar 1947, Miller 2024 (2411.00640) for clustering by question.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

Values = Sequence[float | Sequence[float]]  # per question: its mean, or the values of its samples


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples, drawn without replacement from n of which c are right, is right.

    The unbiased estimator 1 - C(n-c, k) / C(n, k), as the product of Chen et al. 2021. ValueError if k < 1, n < k, or
    c outside 0..n.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    _check_counts(n, c, k)
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def pass_hat_k(n: int, c: int, k: int) -> float:
    """pass^k: chance that all of k samples, drawn without replacement from n of which c are right, are right.

    C(c, k) / C(n, k). ValueError as in `pass_at_k`.

    >>> pass_hat_k(4, 2, 2)
    0.16666666666666666
    """
    _check_counts(n, c, k)
    return float(Fraction(math.comb(c, k), math.comb(n, k)))


def _check_counts(n: int, c: int, k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k} makes no sense; k must be >= 1")
    if n < k:
        raise ValueError(f"n={n} samples are too few for k={k}; draw at least k samples per question")
    if not 0 <= c <= n:
        raise ValueError(f"c={c} right samples of n={n}; c must be between 0 and n")


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int | None = None) -> float:
    """Chance that majority voting among k of one question's n samples gives a right answer (maj@k, cons@k).

    `answers[i]` names the equivalence class of sample i (two samples with equal answers vote together), None if it gave
    no answer: it abstains. `correct[i]` is its verdict. The value is the exact expectation over all subsets of k
    samples (k=None: all n), ties broken uniformly at random among the tied classes; a subset in which everybody
    abstains counts 0. If the members of one class got different verdicts, the class counts with its share of right
    ones. ValueError for k outside 1..n, lengths that differ, or an abstention marked right.

    >>> maj_at_k(["7", "7", "8"], [True, True, False])
    1.0
    >>> maj_at_k(["7", "8", None], [True, False, False])
    0.5
    """
    n = len(answers)
    if len(correct) != n:
        raise ValueError(f"{n} answers but {len(correct)} verdicts")
    if n == 0:
        raise ValueError("maj_at_k needs at least one sample")
    k = n if k is None else k
    _check_counts(n, 0, k)
    sizes: dict[Hashable, int] = {}
    right: dict[Hashable, int] = {}
    for i, (answer, verdict) in enumerate(zip(answers, correct)):
        if answer is None:
            if verdict:
                raise ValueError(f"sample {i} gave no answer (None) but is marked right")
            continue
        sizes[answer] = sizes.get(answer, 0) + 1
        right[answer] = right.get(answer, 0) + bool(verdict)
    abstained = n - sum(sizes.values())
    total = Fraction(0)
    for answer, hits in right.items():
        if hits:
            others = [size for other, size in sizes.items() if other != answer]
            total += Fraction(hits, sizes[answer]) * _wins(sizes[answer], others, abstained, k)
    return float(total / math.comb(n, k))


def _wins(size: int, others: Sequence[int], abstained: int, k: int) -> Fraction:
    """Number of k-subsets in which a class of `size` wins the vote; a tie of m classes counts 1/m.

    For each number of votes v the class may get, count the ways the other classes give at most v votes each, by
    (votes given, classes that also gave v); whoever abstains fills the rest.
    """
    wins = Fraction(0)
    for votes in range(1, min(size, k) + 1):
        ways = {(0, 0): 1}
        for other in others:
            grown: dict[tuple[int, int], int] = {}
            for (used, ties), count in ways.items():
                for given in range(min(other, votes, k - votes - used) + 1):
                    key = (used + given, ties + (given == votes))
                    grown[key] = grown.get(key, 0) + count * math.comb(other, given)
            ways = grown
        for (used, ties), count in ways.items():
            rest = k - votes - used
            wins += Fraction(math.comb(size, votes) * count * math.comb(abstained, rest), ties + 1)
    return wins


def n_at_k(hidden: Sequence[bool], example: Sequence[bool], n: int) -> float:
    """Chance that one of n submitted programs is right, of the k sampled ones that pass the example tests (n@k).

    `hidden[i]` says whether sampled program i passes the hidden tests, `example[i]` whether it passes the example
    tests. n programs are drawn from those that pass the examples: pass@n over that pool. A pool of at most n is
    submitted whole; an empty one submits nothing and gives 0. AlphaCode, Li et al. 2022 (2203.07814); CodeRL reports it.
    ValueError for n < 1 and for lengths that differ.

    >>> n_at_k([True, False, True, False], [True, True, False, False], 1)
    0.5
    """
    if len(hidden) != len(example):
        raise ValueError(f"{len(hidden)} hidden verdicts but {len(example)} example verdicts; one each per program")
    if n < 1:
        raise ValueError(f"n={n} makes no sense; submit at least one program")
    pool = [bool(right) for right, shown in zip(hidden, example) if shown]
    return pass_at_k(len(pool), sum(pool), min(n, len(pool))) if pool else 0.0


def critique_metrics(rows: Sequence[tuple[bool, bool, str | None]]) -> dict[str, float]:
    """What critiques did to a benchmark: rows of (draft right, refinement right, verdict) -> shares.

    acc_first, acc_refined         accuracy of the drafts and of the refinements
    delta                          acc_refined - acc_first = wrong_to_correct - correct_to_wrong
    correct_to_wrong, wrong_to_correct   flips, as shares of all rows (not of their class)
    acc_dis                        verdicts ("correct" or "wrong") that are true; a malformed one (None) is not
    acc_dis_on_correct, acc_dis_on_wrong  the same among right and among wrong drafts; NaN where there are none
    malformed                      verdicts that are None

    Critique-RL, arXiv:2510.24320, section 5.1. ValueError without rows and for another verdict.

    >>> metrics = critique_metrics([(True, True, "correct"), (False, True, "wrong"), (False, False, None)])
    >>> round(metrics["delta"], 3), round(metrics["acc_dis"], 3), metrics["acc_dis_on_wrong"]
    (0.333, 0.667, 0.5)
    """
    if len(rows) == 0:
        raise ValueError("critique_metrics needs at least one row")
    unknown = {verdict for _, _, verdict in rows} - {"correct", "wrong", None}
    if unknown:
        raise ValueError(f"verdicts {sorted(map(repr, unknown))} are not known; use 'correct', 'wrong' or None")
    judged = [(bool(draft), verdict == ("correct" if draft else "wrong")) for draft, _, verdict in rows]
    return {
        "acc_first": _share(draft for draft, _, _ in rows),
        "acc_refined": _share(refined for _, refined, _ in rows),
        "delta": (sum(bool(refined) for _, refined, _ in rows) - sum(draft for draft, _ in judged)) / len(rows),
        "correct_to_wrong": _share(draft and not refined for draft, refined, _ in rows),
        "wrong_to_correct": _share(refined and not draft for draft, refined, _ in rows),
        "acc_dis": _share(true for _, true in judged),
        "acc_dis_on_correct": _share(true for draft, true in judged if draft),
        "acc_dis_on_wrong": _share(true for draft, true in judged if not draft),
        "malformed": _share(verdict is None for _, _, verdict in rows),
    }


def _share(marks: Iterable[bool]) -> float:
    seen = [bool(mark) for mark in marks]
    return sum(seen) / len(seen) if seen else math.nan


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion: for one sample per question, good even at 0 or all right.

    ValueError for trials < 1, successes outside 0..trials, or confidence outside (0, 1).

    >>> [round(x, 3) for x in wilson_interval(9, 30)]
    [0.167, 0.479]
    """
    if trials < 1:
        raise ValueError(f"trials={trials}; an interval needs at least one trial")
    if not 0 <= successes <= trials:
        raise ValueError(f"successes={successes} of trials={trials}; must be between 0 and trials")
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(_checked_confidence(confidence), method="wilson")
    return float(interval.low), float(interval.high)


def clustered_interval(
    per_question: Values, *, confidence: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """Interval (low, high) of a benchmark's mean when questions have several samples: questions are the clusters.

    An item of `per_question` is a question's mean or the list of its samples' values; every question weighs the same.
    mean +- z * sd / sqrt(questions), sd over per-question means (with questions - 1), cut to `bounds`, the range the
    values can have. Where all questions sit at one bound the sd is 0 and says nothing: Wilson over questions then.
    ValueError for fewer than two questions, a question without samples, or a value that is not finite or out of bounds.

    >>> [round(x, 4) for x in clustered_interval([[1, 0], [1, 1], [0, 0], [1, 0]])]
    [0.0999, 0.9001]
    """
    low, high = bounds
    means = _question_means(per_question)
    if len(means) < 2:
        raise ValueError(f"{len(means)} question(s); an interval clustered by question needs at least 2")
    if means.min() < low or means.max() > high:
        raise ValueError(f"values between {means.min():g} and {means.max():g} leave bounds={bounds}")
    if means.min() == means.max() and means[0] in bounds:
        share = wilson_interval(len(means) if means[0] == high else 0, len(means), confidence=confidence)
        return low + (high - low) * share[0], low + (high - low) * share[1]
    from scipy.stats import norm, sem

    half = float(
        norm.ppf(0.5 + _checked_confidence(confidence) / 2) * sem(means)
    )  # norm.interval has none for a sd of 0
    return max(low, float(means.mean()) - half), min(high, float(means.mean()) + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Two models on the same questions. `difference` is mean(a) - mean(b), [`low`, `high`] its interval.

    `p_value` is two-sided, for "no difference"; `test` says which ("mcnemar exact" if every question is 0 or 1 for
    both, else "sign flip"). `a_better`, `b_better`: questions on which one beats the other.
    """

    difference: float
    low: float
    high: float
    p_value: float
    test: str
    questions: int
    a_better: int
    b_better: int
    confidence: float

    @property
    def significant(self) -> bool:
        """Whether p_value < 1 - confidence."""
        return self.p_value < 1.0 - self.confidence


def paired_difference(
    a: Values, b: Values, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Compare two models on the same questions: item i of `a` and of `b` belong to question i.

    An item is a question's mean or the list of its samples' values. The interval is the percentile bootstrap over
    questions (`resamples` draws keyed by `seed`). The p-value is McNemar's exact test when all per-question means are 0
    or 1, otherwise a sign-flip test with `resamples` flips. ValueError if lengths differ, there is no question, or a
    value is not finite.

    >>> result = paired_difference([1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1])
    >>> result.difference, result.p_value, result.test
    (0.75, 0.03125, 'mcnemar exact')
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} questions of a but {len(b)} of b; compare on the same questions, in the same order")
    if resamples < 100:
        raise ValueError(f"resamples={resamples}; at least 100 are needed for an interval")
    means_a, means_b = _question_means(a), _question_means(b)
    diff = means_a - means_b
    low, high = _bootstrap_interval(diff, _checked_confidence(confidence), resamples, seed)
    a_better, b_better = int((diff > 0).sum()), int((diff < 0).sum())
    binary = bool(np.isin(means_a, (0.0, 1.0)).all() and np.isin(means_b, (0.0, 1.0)).all())
    return PairedDifference(
        difference=float(diff.mean()),
        low=low,
        high=high,
        p_value=mcnemar_exact(a_better, b_better) if binary else _sign_flip(diff, resamples, seed),
        test="mcnemar exact" if binary else "sign flip",
        questions=len(diff),
        a_better=a_better,
        b_better=b_better,
        confidence=confidence,
    )


def mcnemar_exact(a_only: int, b_only: int) -> float:
    """Two-sided exact McNemar p-value: `a_only` questions only a got right against `b_only` only b got right.

    min(1, 2 P(X <= min)) with X binomial(a_only + b_only, 1/2); 1 if there is no discordant question.

    >>> mcnemar_exact(1, 8)
    0.0390625
    """
    if a_only < 0 or b_only < 0:
        raise ValueError(f"counts must be >= 0, got {a_only} and {b_only}")
    if a_only == b_only == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(a_only, a_only + b_only, 0.5).pvalue)


def _bootstrap_interval(values: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """The percentile bootstrap of the mean; a single value has no spread to draw from and is its own interval."""
    if len(values) == 1:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap

    drawn = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=_batch(values),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def _sign_flip(diff: np.ndarray, resamples: int, seed: int) -> float:
    """Two-sided p-value: how often random signs give a mean as far from 0 as the observed one (itself counted)."""
    differing = diff[diff != 0.0]
    if len(differing) == 0:
        return 1.0
    from scipy.stats import permutation_test

    flipped = permutation_test(
        (differing,),
        np.sum,
        permutation_type="samples",
        n_resamples=resamples,
        batch=_batch(differing),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(flipped.pvalue)


def _batch(values: np.ndarray) -> int:
    """Resamples at a time: 4 million numbers in memory."""
    return max(1, 4_000_000 // len(values))


def _question_means(per_question: Values) -> np.ndarray:
    """One float64 mean per question [Q]."""
    if len(per_question) == 0:
        raise ValueError("no questions")
    means = np.empty(len(per_question))
    for i, item in enumerate(per_question):
        values = np.asarray(item, dtype=np.float64)
        if values.size == 0:
            raise ValueError(f"question {i} has no samples")
        means[i] = math.fsum(values.ravel().tolist()) / values.size
    if not np.isfinite(means).all():
        raise ValueError(f"question {int(np.flatnonzero(~np.isfinite(means))[0])} has a value that is not finite")
    return means


def _checked_confidence(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence}; must be between 0 and 1, for example 0.95")
    return confidence
