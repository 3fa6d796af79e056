"""Per-record clipping in groups, and the noise that belongs to it.

A record's gradient is cut into G groups, group g is clipped to the threshold C_g, and the sum over records gets Gaussian
noise with standard deviation s_g. Group g divided by C_g and multiplied by C_g / s_g is a query with sensitivity
sqrt(sum_g (C_g / s_g)^2) and noise of deviation 1, so the step is exactly one Gaussian mechanism whose noise multiplier
is sigma_eff = (sum_g (C_g / s_g)^2)^(-1/2), whatever the thresholds are (McMahan et al. 2018, arXiv:1812.06210).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

NoiseRule = Literal["isotropic", "equal_budget"]
STABILITY = 0.01


def clipped_sum(groups: Sequence[Tensor], thresholds: Sequence[float]) -> list[Tensor]:
    """The sum over records of each group's gradient, every record's part scaled to at most that group's threshold.

    `groups[g]` is [N, d_g]: row i is record i's gradient in group g. Returns [d_g] for each group. A record contributes
    min(1, C_g / ||row||) * row, so that adding or removing it moves group g's sum by at most C_g. A row that is not
    finite contributes nothing: whatever a record does, its contribution is bounded.
    Raises ValueError if the number of thresholds differs or one of them is not a positive number.
    """
    check_thresholds(thresholds, groups=len(groups))
    return [_clipped(rows, float(limit)) for rows, limit in zip(groups, thresholds, strict=True)]


def clip_factors(norms: Tensor, threshold: float, *, automatic: bool = False) -> Tensor:
    """min(1, C / norm) of each record, and 0 for one whose norm is not finite: norms' shape.

    `automatic` scales every record to nearly C instead, by C / (norm + 0.01 C) (Bu et al. 2023, arXiv:2206.07136): the
    threshold is then only a unit. Either way no record contributes more than C.
    """
    factors = threshold / (norms + STABILITY * threshold) if automatic else (threshold / norms).clamp(max=1.0)
    return factors.where(norms.isfinite(), torch.zeros_like(factors))


def _clipped(rows: Tensor, limit: float) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)  # squares of large float32 numbers fit
    finite = norms.isfinite()
    factors = clip_factors(norms, limit).to(rows.dtype)
    if not bool(finite.all()):
        rows = rows.where(finite[:, None], torch.zeros_like(rows))  # 0 * inf is not 0
    return factors @ rows


def noise_std(
    thresholds: Sequence[float], sigma: float, *, rule: NoiseRule | Sequence[float] = "isotropic"
) -> list[float]:
    """The noise's standard deviation s_g for each group, such that the whole step has the noise multiplier `sigma`.

    isotropic      s_g = sigma * ||C||_2: the same in every coordinate
    equal_budget   s_g = sigma * C_g * sqrt(G): each group has the same share of the budget
    weights w      s_g = sigma * C_g / sqrt(w_g); the weights are positive, public and sum to 1

    Raises ValueError for another rule, or weights that do not fit.
    """
    check_thresholds(thresholds)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma} is no noise multiplier; it is a number of at least 0")
    if rule == "isotropic":
        return [sigma * math.hypot(*thresholds)] * len(thresholds)
    if rule == "equal_budget":
        return [sigma * limit * math.sqrt(len(thresholds)) for limit in thresholds]
    if isinstance(rule, str):
        raise ValueError(f"noise rule {rule!r} is unknown; use isotropic, equal_budget or one weight a group")
    _check_weights(rule, groups=len(thresholds))
    return [sigma * limit / math.sqrt(weight) for limit, weight in zip(thresholds, rule, strict=True)]


def effective_sigma(thresholds: Sequence[float], noise_std: Sequence[float]) -> float:
    """The noise multiplier that a step is accounted with: (sum_g (C_g / s_g)^2)^(-1/2); 0 if a group has no noise."""
    check_thresholds(thresholds, groups=len(noise_std))
    if any(not std >= 0 for std in noise_std):
        raise ValueError(f"noise_std={list(noise_std)}: a standard deviation is a number of at least 0")
    if any(std == 0 for std in noise_std):
        return 0.0
    return 1.0 / math.hypot(*(limit / std for limit, std in zip(thresholds, noise_std, strict=True)))


def check_thresholds(thresholds: Sequence[float], *, groups: int | None = None) -> None:
    """Raise ValueError unless there is one positive, finite threshold for each group."""
    if groups is not None and len(thresholds) != groups:
        raise ValueError(f"{len(thresholds)} thresholds for {groups} groups; give one for each")
    if not thresholds:
        raise ValueError("there is no group; give at least one threshold")
    wrong = [limit for limit in thresholds if not 0 < limit < math.inf]
    if wrong:
        raise ValueError(f"threshold {wrong[0]} does not bound a gradient; it must be a positive, finite number")


def _check_weights(weights: Sequence[float], *, groups: int) -> None:
    if len(weights) != groups:
        raise ValueError(f"{len(weights)} noise weights for {groups} groups; give one for each")
    if any(not weight > 0 for weight in weights) or not math.isclose(math.fsum(weights), 1.0, rel_tol=1e-9):
        raise ValueError(f"noise weights {list(weights)} must be positive and sum to 1")
