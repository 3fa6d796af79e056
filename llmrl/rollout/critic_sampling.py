"""Critic sampling: the choices that turn judged programs into seeds for new ones (CodeRL, arXiv:2207.01780, section 3.4).

Refining continues a program that passes the example tests from the point where a critic thinks best of it; repairing
starts from the failing programs that the critic thinks best of. Pure functions of the critic's probabilities; a NaN
stands for a slot without a probability and is never chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def split_point(p_pass: Sequence[float], *, p_fail: Sequence[float] | None = None) -> int:
    """How many tokens of a program to keep as the seed of a refinement: 0 to T.

    `p_pass[t]` is the probability of passing given the tokens up to and including t. The kept part ends with the first
    token of the highest probability. With `p_fail` [T] it also ends before the first token where failing is likelier
    than passing. An empty program keeps 0. ValueError if the lengths differ.

    >>> split_point([0.2, 0.7, 0.7, 0.1])
    2
    >>> split_point([0.2, 0.3, 0.7], p_fail=[0.1, 0.6, 0.2])
    1
    """
    passing = [float(p) for p in p_pass]
    kept = 1 + max(range(len(passing)), key=lambda t: _rank(passing[t])) if _any_number(passing) else 0
    if p_fail is None:
        return kept
    failing = [float(p) for p in p_fail]
    if len(failing) != len(passing):
        raise ValueError(f"{len(passing)} probabilities of passing but {len(failing)} of failing; one each per token")
    worse = (t for t in range(kept) if failing[t] > passing[t])
    return next(worse, kept)


def copies(total: int, seeds: int) -> list[int]:
    """How often each of `seeds` seeds is continued so that `total` programs come out: [seeds], sums to `total`.

    As even as it goes; the first seeds get the remainder. ValueError for seeds < 1 or total < 0.

    >>> copies(10, 3)
    [4, 3, 3]
    """
    if seeds < 1 or total < 0:
        raise ValueError(f"{total} programs from {seeds} seeds; there must be at least one seed and no negative total")
    each, more = divmod(total, seeds)
    return [each + (i < more) for i in range(seeds)]


def best_failing(p_pass: Sequence[float], m: int) -> list[int]:
    """The indices of the `m` programs most likely to pass, best first; equal ones in their order, all if fewer than m.

    `p_pass[i]` is the critic's probability that failing program i passes. ValueError for m < 1.

    >>> best_failing([0.1, 0.4, 0.3, 0.4], 3)
    [1, 3, 2]
    """
    if m < 1:
        raise ValueError(f"m={m}; repair at least one program")
    likely = [float(p) for p in p_pass]
    ranked = sorted((i for i, p in enumerate(likely) if not math.isnan(p)), key=lambda i: -likely[i])
    return ranked[:m]


def _rank(p: float) -> float:
    return -math.inf if math.isnan(p) else p


def _any_number(values: Sequence[float]) -> bool:
    return any(not math.isnan(p) for p in values)
