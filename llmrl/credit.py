"""Credit: scores and values in, advantages and returns out; between rewards and losses in the flow.

Pure functions of tensors, no model and no configuration. They keep the dtype they are given (float64 works), accept
rows in any order and groups of any size, and look at no slot outside `mask`, which may hold garbage, even NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_center(score: Tensor, group: Tensor) -> Tensor:
    """Score minus the mean score of its group: Dr.GRPO's advantage (Liu et al. 2025, arXiv:2503.20783).

    score [B] float, group [B] int64 (any labels, any order) -> [B]. A group whose scores are all equal gives exactly 0,
    a group of one as well. Differentiable in `score`, through the mean too.

    >>> group_center(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([7, 7, 3]))
    tensor([ 0.5000, -0.5000,  0.0000])
    """
    centred, _, _ = _center(score, group)
    return centred


def group_zscore(score: Tensor, group: Tensor, *, eps: float = 1e-4, ddof: int = 1) -> Tensor:
    """Centred score over (standard deviation of the group + eps): GRPO's advantage (DeepSeekMath, arXiv:2402.03300).

    score [B] float, group [B] int64 -> [B]. `ddof` 1 is the sample deviation that TRL and verl use, 0 the population's.
    A group whose scores are all equal gives exactly 0, a group of one as well. Not meant for gradients: the square root
    has none at an all-equal group.

    >>> group_zscore(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([7, 7, 3]), ddof=0)
    tensor([ 0.9998, -0.9998,  0.0000])
    """
    centred, inverse, count = _center(score, group)
    variance = _sum_by(centred.square(), inverse, len(count)) / (count - ddof).clamp(min=1)
    std = variance.sqrt()[inverse]
    return torch.where(std > 0, centred / (std + eps), torch.zeros_like(centred))


def leave_one_out(score: Tensor, group: Tensor) -> Tensor:
    """Score minus the mean score of the other members of its group: RLOO (Ahmadian et al. 2024, arXiv:2402.14740).

    score [B] float, group [B] int64 -> [B]. A group whose scores are all equal gives exactly 0; a group of one has no
    baseline and gives 0. Differentiable in `score`, through the baseline too.

    >>> leave_one_out(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0, 0, 0]))
    tensor([ 0.7500, -0.7500,  0.0000])
    """
    centred, inverse, count = _center(score, group)
    return centred * (count / (count - 1).clamp(min=1))[inverse]


def _center(score: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(score - group mean [B], group number of each row [B], group sizes [G]).

    One member is subtracted before the mean is taken, which changes nothing but the rounding: equal scores then differ
    from their mean by exactly 0, so that rows without a signal can be skipped exactly.
    """
    _, inverse, count = torch.unique(group, return_inverse=True, return_counts=True)
    count = count.to(score.dtype)
    anchor = torch.zeros(len(count), dtype=score.dtype, device=score.device)
    anchor = anchor.scatter_reduce(0, inverse, score.detach(), "amin", include_self=False)
    shifted = score - anchor[inverse]
    return shifted - (_sum_by(shifted, inverse, len(count)) / count)[inverse], inverse, count


def _sum_by(values: Tensor, inverse: Tensor, groups: int) -> Tensor:
    return torch.zeros(groups, dtype=values.dtype, device=values.device).index_add(0, inverse, values)
