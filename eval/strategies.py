"""Choosing among a question's samples with a scorer (reward model, value model, likelihood): best-of-k, weighted votes.

Pure functions like those in metrics.py; a strategy spends k samples a question, which is the budget that reports give.
`STRATEGIES` names them for `--strategy`; one of your own is a function with the signature of `Choose`, named by its
import path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from llmrl.errors import EvalError
from llmrl.eval.metrics import maj_at_k
from llmrl.importing import load
from llmrl.nearest import nearest
from llmrl.seeding import generator

SUBSETS = 1024  # of k samples that a weighted vote looks at; of fewer it looks at all

# (answer classes, scores, verdicts, k) of one question's n samples -> expected correctness of choosing among k of them
Choose = Callable[[Sequence[str | None], Sequence[float], Sequence[bool], int], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A way to spend k samples on one answer. `scored`: it needs a scorer; `voted`: it needs answer classes."""

    name: str
    choose: Choose
    scored: bool = True
    voted: bool = False


def find_strategies(names: Sequence[str], *, scorers: bool) -> tuple[Strategy, ...]:
    """The strategies called `names`; of no name all that the scorers (if any) permit.

    EvalError for an unknown name, and for one that needs a scorer where there is none.
    """
    if not names:
        return tuple(STRATEGIES.values()) if scorers else ()
    found = tuple(STRATEGIES[name] if name in STRATEGIES else _imported(name) for name in names)
    for strategy in found:
        if strategy.scored and not scorers:
            raise EvalError(
                f"strategy {strategy.name} chooses by a score; give --scorer, for example --scorer likelihood or "
                "--scorer llmrl.rewards.reward_model:RewardModel --scorer-args '{model: folder}'"
            )
    return found


def _imported(name: str) -> Strategy:
    if ":" not in name:
        raise EvalError(f"unknown strategy {name!r}; {nearest(name, [*STRATEGIES, 'package.module:function'])}")
    return Strategy(name=name.rpartition(":")[2], choose=load(name, key="strategy"))


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
    return [[_logistic(score) for score in scores] for scores in per_question]


def _logistic(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def _check(scores: Sequence[float], correct: Sequence[float], k: int) -> None:
    if len(scores) != len(correct):
        raise ValueError(f"{len(scores)} scores but {len(correct)} verdicts")
    if not 1 <= k <= len(scores):
        raise ValueError(f"k={k} of n={len(scores)} samples; k must be between 1 and n")
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN")


STRATEGIES: Mapping[str, Strategy] = {
    "best_of_n": Strategy(name="best_of_n", choose=lambda answers, scores, correct, k: best_of_k(scores, correct, k)),
    "weighted_vote": Strategy(name="weighted_vote", choose=weighted_vote_at_k, voted=True),
    "majority": Strategy(
        name="majority",
        choose=lambda answers, scores, correct, k: maj_at_k(answers, correct, k),
        scored=False,
        voted=True,
    ),
}
