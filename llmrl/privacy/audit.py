"""Attacks on a trained model, as lower bounds on what it leaks: canary exposure, membership inference, an audited epsilon.

They find leaks; that they find none proves nothing. All of them work on losses, one a text, that the caller computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import variance

from llmrl.seeding import generator

Z = 1.959963984540054  # 95 %, two-sided


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


def exposure(loss: float, candidates: Sequence[float]) -> float:
    """log2(candidates) - log2(rank) of a secret among candidates that were never trained on (Carlini et al. 2019,
    arXiv:1802.08232): 0 is the last place, log2(|R|) the first. `candidates` are the others' losses; ties count against
    the attack.

    >>> exposure(1.0, [2.0, 3.0, 4.0])
    2.0
    """
    rank = 1 + sum(other <= loss for other in candidates)
    return math.log2(len(candidates) + 1) - math.log2(rank)


def min_k(token_losses: Sequence[float], *, share: float = 0.2) -> float:
    """The mean of the largest `share` of a text's token losses (Shi et al. 2024, arXiv:2310.16789); small for members."""
    if not token_losses:
        raise ValueError("a text without tokens has no loss")
    count = max(1, round(share * len(token_losses)))
    return math.fsum(sorted(token_losses, reverse=True)[:count]) / count


def auc(members: Sequence[float], others: Sequence[float]) -> Interval:
    """The chance that a member has a smaller loss than another text, ties half, with DeLong's interval (1988)."""
    if len(members) < 2 or len(others) < 2:
        raise ValueError("an attack's AUC needs at least two members and two other texts")
    above = [sum((x < y) + 0.5 * (x == y) for y in others) / len(others) for x in members]
    below = [sum((x < y) + 0.5 * (x == y) for x in members) / len(members) for y in others]
    value = math.fsum(above) / len(above)
    error = math.sqrt(variance(above) / len(above) + variance(below) / len(below))
    return Interval(value=value, low=max(0.0, value - Z * error), high=min(1.0, value + Z * error))


def tpr_at(members: Sequence[float], others: Sequence[float], *, fpr: float) -> Interval:
    """The share of members found by the loss threshold that takes at most `fpr` of the others, with Wilson's interval."""
    allowed = int(fpr * len(others))
    threshold = sorted(others)[allowed]  # losses below it are called members
    return wilson(sum(x < threshold for x in members), len(members))


def wilson(hits: int, of: int) -> Interval:
    """A share with Wilson's 95 % interval."""
    from scipy.stats import binomtest

    found = binomtest(hits, of).proportion_ci(0.95, method="wilson")
    return Interval(value=hits / of, low=float(found.low), high=float(found.high))


def epsilon_lower_bound(
    scores: Sequence[float], included: Sequence[bool], *, delta: float, guesses: int, confidence: float = 0.95
) -> float:
    """A lower bound on epsilon from one run with canaries that a coin put in or left out (Steinke, Nasr & Jagielski 2023,
    arXiv:2305.08846, Theorem 5.2 with its delta term).

    `scores` are small for what looks trained on. The attack calls the `guesses` / 2 smallest in and as many largest out.
    0 if it guesses no better than a coin could at this confidence. Raises ValueError for too few canaries.
    """
    if len(scores) != len(included) or not 2 <= guesses <= len(scores):
        raise ValueError(f"{guesses} guesses of {len(scores)} canaries; guess at least 2 and at most all of them")
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    half = guesses // 2
    right = sum(included[i] for i in order[:half]) + sum(not included[i] for i in order[len(order) - half :])
    low, high = 0.0, 20.0
    if _chance(right, 2 * half, low, delta, len(scores)) > 1 - confidence:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        rejected = _chance(right, 2 * half, middle, delta, len(scores)) <= 1 - confidence
        low, high = (middle, high) if rejected else (low, middle)
    return low


def _chance(right: int, guesses: int, epsilon: float, delta: float, canaries: int) -> float:
    """At most how likely so many right guesses are if the run is (epsilon, delta)-DP."""
    p = 1 / (1 + math.exp(-epsilon))
    chances = [math.comb(guesses, k) * p**k * (1 - p) ** (guesses - k) for k in range(guesses + 1)]
    tail = math.fsum(chances[right:])
    slack, below = 0.0, 0.0
    for width in range(1, right + 1):
        below += chances[right - width]
        slack = max(slack, below / width)
    return min(1.0, tail + 2 * delta * canaries * slack)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A sentence with a secret; a fair coin decided whether it was trained on."""

    text: str
    included: bool


def make_canaries(count: int, *, seed: int, digits: int = 6) -> list[Canary]:
    """Canaries "code of <name>: <digits>" with random names and secrets, each in or out by a coin."""
    draw = generator(seed, "canaries")
    found = []
    for _ in range(count):
        name = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(6))
        secret = "".join(draw.choice("0123456789") for _ in range(digits))
        found.append(Canary(text=f"code of {name}: {secret}", included=draw.random() < 0.5))
    return found


def other_secrets(canary: Canary, *, count: int, seed: int) -> list[str]:
    """The canary's sentence with other secrets of the same length: the candidates of `exposure`."""
    prefix, _, secret = canary.text.rpartition(" ")
    draw = generator(seed, "candidates", canary.text)
    found: list[str] = []
    while len(found) < count:
        other = "".join(draw.choice("0123456789") for _ in secret)
        if other != secret:
            found.append(f"{prefix} {other}")
    return found
