"""Choosing among a question's samples with a scorer (reward model, value model, likelihood): best-of-k, weighted votes.

Pure functions like those in metrics.py; a strategy spends k samples a question, which is the budget that reports give.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from fractions import Fraction
from itertools import combinations

from llmrl.seeding import generator

SUBSETS = 1024  # of k samples that a weighted vote looks at; of fewer it looks at all


def best_of_k(scores: Sequence[float], correct: Sequence[float], k: int | None = None) -> float:
    """Expected correctness of the best-scored of k samples, exact over all subsets of k of the n samples (None: all n).

    Samples tied for the best are drawn from at random. ValueError for lengths that differ, k outside 1..n, or a score
    that is NaN.

    >>> best_of_k([0.9, 0.5, 0.1], [0, 1, 1], 2)
    0.3333333333333333
    """
    n = len(scores)
    k = n if k is None else k
    _check(scores, correct, k)
    total = Fraction(0)
    below = 0  # samples with a lower score than this level
    for level in sorted(set(scores)):
        members = [i for i in range(n) if scores[i] == level]
        through = math.comb(below + len(members), k) - math.comb(below, k)  # subsets whose best has this level
        total += Fraction(through, len(members)) * sum((Fraction(float(correct[i])) for i in members), Fraction(0))
        below += len(members)
    return float(total / math.comb(n, k))


def weighted_vote(answers: Sequence[Hashable | None], weights: Sequence[float], correct: Sequence[float]) -> float:
    """Correctness of the answer class with the largest summed weight; ties by expectation, None abstains.

    A class counts with its members' mean correctness. ValueError for lengths that differ or a weight that is negative
    or not finite.

    >>> weighted_vote(["7", "8", "8"], [0.9, 0.2, 0.3], [1, 0, 0])
    1.0
    """
    if not len(answers) == len(weights) == len(correct):
        raise ValueError(f"{len(answers)} answers, {len(weights)} weights and {len(correct)} verdicts")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights):
        raise ValueError("weights must be finite and not negative; turn log-probabilities into probabilities first")
    members: dict[Hashable, list[int]] = {}
    for i, answer in enumerate(answers):
        if answer is not None:
            members.setdefault(answer, []).append(i)
    if not members:
        return 0.0
    sums = {answer: math.fsum(weights[i] for i in chosen) for answer, chosen in members.items()}
    winners = [answer for answer, total in sums.items() if total == max(sums.values())]
    shares = [math.fsum(correct[i] for i in members[answer]) / len(members[answer]) for answer in winners]
    return math.fsum(shares) / len(winners)


def weighted_vote_at_k(
    answers: Sequence[Hashable | None], weights: Sequence[float], correct: Sequence[float], k: int
) -> float:
    """Expected `weighted_vote` among k of the n samples: exact, or the mean over SUBSETS keyed random subsets.

    ValueError as there, and for k outside 1..n.

    >>> weighted_vote_at_k(["7", "8"], [0.9, 0.2], [1, 0], 1)
    0.5
    """
    n = len(answers)
    _check(weights, correct, k)
    if math.comb(n, k) <= SUBSETS:
        subsets = list(combinations(range(n), k))
    else:
        draw = generator("weighted vote", n, k)
        subsets = [tuple(draw.sample(range(n), k)) for _ in range(SUBSETS)]
    votes = [
        weighted_vote([answers[i] for i in chosen], [weights[i] for i in chosen], [correct[i] for i in chosen])
        for chosen in subsets
    ]
    return math.fsum(votes) / len(votes)


def as_weights(per_question: Sequence[Sequence[float]]) -> list[list[float]]:
    """Scores as votes: unchanged if all lie in 0..1, else all through the logistic function, as a reward model's logits.

    >>> as_weights([[0.0, 2.0]])
    [[0.5, 0.8807970779778823]]
    """
    if all(0.0 <= score <= 1.0 for scores in per_question for score in scores):
        return [list(scores) for scores in per_question]
    from scipy.special import expit

    return [expit(scores).tolist() for scores in per_question]


def _check(scores: Sequence[float], correct: Sequence[float], k: int) -> None:
    if len(scores) != len(correct):
        raise ValueError(f"{len(scores)} scores but {len(correct)} verdicts")
    if not 1 <= k <= len(scores):
        raise ValueError(f"k={k} of n={len(scores)} samples; k must be between 1 and n")
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN")
