"""A clipping threshold that follows a quantile of the records' gradient norms, by counts that are accounted for.

Andrew et al. 2021 (arXiv:1905.03871), with two changes that make it exact under Poisson sampling: the count is centred,
so that one record moves it by at most 1/2, and it is divided by the expected batch, which is public, never by the batch
that was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def below_fraction(below: Sequence[float], *, noise: float, expected_batch: float) -> float:
    """The released share of records within the threshold: (sum_i (b_i - 1/2) + noise) / expected batch + 1/2.

    `below` has a 1 for each record of the batch whose norm was at most the threshold, a 0 for each other one; `noise` is
    the Gaussian number that was drawn, not its deviation. One record more or less moves the sum by at most 1/2.
    """
    if not 0 < expected_batch < math.inf:
        raise ValueError(f"expected_batch={expected_batch} must be a positive number")
    wrong = [value for value in below if not 0 <= value <= 1]
    if wrong:
        raise ValueError(f"below holds {wrong[0]}; it is 1 for a record within the threshold and 0 for another")
    return (math.fsum(value - 0.5 for value in below) + noise) / expected_batch + 0.5


def next_threshold(
    threshold: float, *, below: Sequence[float], noise: float, expected_batch: float, lr: float, quantile: float
) -> float:
    """C * exp(-lr * (fraction - quantile)), with `below_fraction`: it grows while too few records are within it.

    >>> next_threshold(1.0, below=[1, 0], noise=0.0, expected_batch=2, lr=0.2, quantile=0.5)
    1.0

    Raises ValueError for a threshold that is not positive or a quantile outside 0..1.
    """
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold={threshold} must be a positive, finite number")
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile={quantile} is outside 0..1")
    fraction = below_fraction(below, noise=noise, expected_batch=expected_batch)
    return threshold * math.exp(-lr * (fraction - quantile))


def count_std(sigma: float, joint: float, *, counts: int) -> float:
    """The deviation of the counts' noise with which a gradient noise of `sigma` makes a step of multiplier `joint`.

    One joint Gaussian mechanism: joint^-2 = sigma^-2 + counts * (2 * deviation)^-2.

    Raises ValueError unless sigma > joint > 0.
    """
    if not sigma > joint > 0:
        raise ValueError(f"a step of multiplier {joint} with counts needs more gradient noise than that, not {sigma}")
    return 0.5 * math.sqrt(counts / (joint**-2 - sigma**-2))
