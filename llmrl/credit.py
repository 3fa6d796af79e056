"""Credit: scores and values in, advantages and returns out; between rewards and losses in the flow.

Pure functions of tensors, no model and no configuration. They keep the dtype they are given (float64 works), accept
rows in any order and groups of any size, and look at no slot outside `mask`, which may hold garbage, even NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llmrl.later import torch

if TYPE_CHECKING:
    from torch import Tensor

Truncation = Literal["bootstrap", "drop", "terminal"]


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
    A group whose scores are all equal gives exactly 0, a group of one as well.

    >>> group_zscore(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([7, 7, 3]), ddof=0)
    tensor([ 0.9998, -0.9998,  0.0000])
    """
    std = group_deviation(score, group, ddof=ddof)
    return group_center(score, group) / torch.where(std > 0, std + eps, 1.0)


def group_deviation(score: Tensor, group: Tensor, *, ddof: int = 1, floor: float = 0.0) -> Tensor:
    """Standard deviation of each row's group, at least `floor`: score [B] float, group [B] int64 -> [B].

    A group of one has deviation 0. Differentiable: a group at the floor (or at 0) has gradient 0.

    >>> group_deviation(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([7, 7, 3]), ddof=0)
    tensor([0.5000, 0.5000, 0.0000])
    """
    centred, inverse, count = _center(score, group)
    variance = _sum_by(centred.square(), inverse, len(count)) / (count - ddof).clamp(min=1)
    above = variance > floor**2
    # The square root's gradient is infinite at 0, so it must not see what the floor replaces.
    return torch.where(above, torch.where(above, variance, 1.0).sqrt(), floor)[inverse]


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


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float | Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over sampled tokens (Schulman et al. 2015, arXiv:1506.02438).

    rewards, values [B, T] float, mask [B, T] bool -> (advantages, returns) [B, T], 0 outside the mask. `values[t]` is
    the value of the state in which token t was chosen. Tokens outside the mask (prompt, environment, padding) do not
    exist: the token after a gap follows the one before it, with one factor gamma * lam, and their rewards are not read.
    The last token of a row is final (no bootstrap). returns = advantages + values. `lam` may differ by row ([B]).

    >>> gae(torch.tensor([[0.0, 9.0, 1.0]]), torch.tensor([[0.5, 9.0, 0.25]]), torch.tensor([[True, False, True]]),
    ...     gamma=1.0, lam=0.5)
    (tensor([[0.1250, 0.0000, 0.7500]]), tensor([[0.6250, 0.0000, 1.0000]]))
    """
    rewards, values = _inside(rewards, mask), _inside(values, mask)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * next_advantage
        advantages[:, t] = torch.where(here, advantage, 0.0)
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    return advantages, advantages + values


def step_gae(rewards: Tensor, values: Tensor, step: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """GAE over environment steps, shared by the tokens of a step (VL-DAC, Bredis et al. 2025, arXiv:2508.04280).

    rewards, values [B, T] float, step [B, T] int64 (environment step of a sampled token, -1 elsewhere) -> (advantages,
    returns) [B, T], 0 where step is -1. A step's reward is the sum over its tokens, its value the one at its first
    token (the state before anything was answered); gamma and lam act once per step. The last step of a row is final.

    >>> step_gae(torch.tensor([[0.0, 1.0, 9.0, 2.0]]), torch.tensor([[0.5, 9.0, 9.0, 1.0]]),
    ...          torch.tensor([[0, 0, -1, 1]]), gamma=0.5, lam=1.0)
    (tensor([[1.5000, 1.5000, 0.0000, 1.0000]]), tensor([[2., 2., 0., 2.]]))
    """
    mask = step >= 0
    steps, width = max(int(step.max()) + 1, 1), step.shape[1]
    slot = torch.where(mask, step, steps)  # what belongs to no step goes to one more column, cut off below
    at = torch.arange(width, device=step.device).expand_as(step)
    table = torch.zeros(step.shape[0], steps + 1, dtype=rewards.dtype, device=rewards.device)
    step_rewards = table.scatter_add(1, slot, _inside(rewards, mask))[:, :steps]
    never = torch.full_like(table, width, dtype=at.dtype)
    first = never.scatter_reduce(1, slot, torch.where(mask, at, width), "amin")[:, :steps]
    exists = first < width
    step_values = values.gather(1, first.clamp(max=width - 1))
    by_step = gae(step_rewards, step_values, exists, gamma=gamma, lam=lam)
    advantages, returns = (_inside(x.gather(1, step.clamp(min=0)), mask) for x in by_step)
    return advantages, returns


def episode_gae(
    rewards: Tensor,
    values: Tensor,
    *,
    terminated: Tensor,
    truncated: Tensor,
    final_values: Tensor,
    gamma: float,
    lam: float,
    truncation: Truncation = "bootstrap",
) -> tuple[Tensor, Tensor]:
    """GAE over one environment's steps, episode after episode (VL-DAC, Bredis et al. 2025, arXiv:2508.04280).

    Everything is [N], one row a step, in time order -> (advantages, returns) [N], returns = advantages + values.
    `values[n]` is the value of the state in which step n acted; the state after it is that of row n + 1, unless the
    episode ended at n. gamma and lam act once per environment step and never across the end of an episode.

    terminated  the episode is over: nothing comes after step n.
    truncated   the episode was cut (a step limit), though more would have come; `truncation` says what that means:
                bootstrap  final_values[n], the value of the true final observation, follows (before any reset)
                drop       the step has advantage 0 and return values[n]; the step before it still bootstraps from
                           values[n] (the released code's "proper time limits")
                terminal   as if it had terminated
    Both at once is terminated. `final_values` is read at a truncated row under "bootstrap", and on the last row if its
    episode goes on (the rollout ended in the middle of it); elsewhere it may hold anything, even NaN.

    Raises ValueError for an unknown truncation.

    >>> episode_gae(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.5, 0.5, 0.2]), gamma=1.0, lam=0.5,
    ...             terminated=torch.tensor([False, True, False]), truncated=torch.tensor([False, False, True]),
    ...             final_values=torch.tensor([0.0, 0.0, 0.6]))
    (tensor([0.2500, 0.5000, 0.4000]), tensor([0.7500, 1.0000, 0.6000]))
    """
    if truncation not in ("bootstrap", "drop", "terminal"):
        raise ValueError(f"truncation={truncation!r} is not known; use bootstrap, drop or terminal")
    cut = truncated & ~terminated
    ended = terminated | truncated
    goes_on = torch.zeros_like(ended)
    goes_on[-1:] = ~ended[-1:]
    follows = torch.cat([values[1:], values[:1]])  # the last row's is replaced below
    follows = torch.where(goes_on, final_values, torch.where(ended, torch.zeros_like(values), follows))
    if truncation == "bootstrap":
        follows = torch.where(cut, final_values, follows)
    deltas = rewards + gamma * follows - values
    dropped = cut if truncation == "drop" else torch.zeros_like(cut)
    advantages = torch.zeros_like(values)
    after = torch.zeros_like(values[:1]).sum()
    for n in reversed(range(len(values))):
        after = torch.where(ended[n], deltas[n], deltas[n] + gamma * lam * after)
        after = torch.where(dropped[n], 0.0, after)
        advantages[n] = after
    return advantages, advantages + values


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Return-to-go of every sampled token: [B, T], mask [B, T] bool -> [B, T], 0 outside the mask.

    Sum of the rewards at this token and the sampled ones after it, discounted once per sampled token.

    >>> discounted_returns(torch.tensor([[1.0, 9.0, 2.0]]), torch.tensor([[True, False, True]]), gamma=0.5)
    tensor([[2., 0., 2.]])
    """
    returns, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)
    return returns


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, floor: float = 1e-4, ddof: int = 0) -> Tensor:
    """(x - mean) / max(std, floor) over everything inside `mask`: [B, T], bool -> [B, T], 0 outside the mask.

    The floor keeps a batch without a signal from being blown up to unit noise; equal values give exactly 0. Without
    `shift_mean` the mean is put back. `ddof` 0 is the population deviation, 1 the sample one.

    >>> whiten(torch.tensor([[1.0, 3.0, float("nan")]]), torch.tensor([[True, True, False]]))
    tensor([[-1.,  1.,  0.]])
    """
    chosen = x[mask]
    if chosen.numel() == 0:
        return torch.zeros_like(x)
    anchor = chosen[0]  # as in _center: equal values must differ from their mean by exactly 0
    shift = (chosen - anchor).mean()
    centred = (chosen - anchor) - shift
    std = (centred.square().sum() / max(chosen.numel() - ddof, 1)).sqrt().clamp(min=floor)
    whitened = centred / std + (0.0 if shift_mean else anchor + shift)
    return torch.zeros_like(x).masked_scatter(mask, whitened)


def length_adaptive_lambda(mask: Tensor, *, alpha: float = 0.05) -> Tensor:
    """GAE's lambda for a response of l sampled tokens, max(0, 1 - 1 / (alpha l)): mask [B, T] bool -> [B] float64.

    Long responses get a lambda near 1, so that the outcome still reaches their first tokens (VAPO, Yue et al. 2025,
    arXiv:2504.05118).

    >>> length_adaptive_lambda(torch.ones(1, 100, dtype=torch.bool))
    tensor([0.8000], dtype=torch.float64)
    """
    length = mask.sum(dim=1).clamp(min=1).to(torch.float64)
    return (1.0 - 1.0 / (alpha * length)).clamp(min=0.0)


def _inside(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros_like(x))
