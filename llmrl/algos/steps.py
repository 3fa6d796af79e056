"""What methods for agents share: rows that are environment steps, their credit by GAE, and the loss of their values.

A step's value is the one before its first sampled token, which reads the prompt and nothing of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from llmrl.algos.terms import required
from llmrl.batch import Batch, Output
from llmrl.credit import Truncation, episode_gae, whiten
from llmrl.later import torch
from llmrl.losses import clipped_value, keep

if TYPE_CHECKING:
    from torch import Tensor


class Discounting(Protocol):
    """The hyper-parameters of `step_credit`, as an algorithm has them."""

    @property
    def gamma(self) -> float: ...
    @property
    def lam(self) -> float: ...
    @property
    def truncation(self) -> Truncation: ...
    @property
    def normalize(self) -> bool: ...
    @property
    def std_floor(self) -> float: ...


def step_credit(how: Discounting, batch: Batch) -> Batch:
    """One advantage and one return a step, on each of its tokens; advantages whitened over all steps with `normalize`."""
    order, steps = _steps(batch, how.gamma)
    advantages, returns = torch.zeros_like(steps.rewards), torch.zeros_like(steps.rewards)
    if len(order):
        advantages, returns = episode_gae(
            steps.rewards,
            steps.values,
            terminated=steps.terminated,
            truncated=steps.truncated,
            final_values=steps.final_values,
            gamma=how.gamma,
            lam=how.lam,
            truncation=how.truncation,
        )
        if how.normalize:
            there = torch.ones_like(advantages, dtype=torch.bool)
            advantages = whiten(advantages[:, None], there[:, None], floor=how.std_floor)[:, 0]
    by_row = torch.zeros(2, batch.rows, dtype=advantages.dtype, device=advantages.device)
    by_row[:, order] = torch.stack([advantages, returns])
    wide = by_row[:, :, None].expand(2, *batch.mask.shape)
    return replace(batch, advantages=keep(wide[0], batch.mask), returns=keep(wide[1], batch.mask))


def step_value_loss(out: Output, batch: Batch, *, coef: float, clip: float | None) -> tuple[Tensor, dict[str, Tensor]]:
    """(this micro-batch's share of the mean over steps of the value loss [], shares of its metrics)."""
    first = first_sampled(batch.mask)
    values, old, returns = (
        keep(required(x, name, coef), first).sum(1)
        for x, name in ((out.values, "values (of the output)"), (batch.values, "values"), (batch.returns, "returns"))
    )
    unit = 1.0 if batch.value_unit is None else batch.value_unit
    errors = clipped_value(values / unit, old / unit, returns / unit, clip=clip)
    alive = batch.mask.any(1)

    def share(x: Tensor) -> Tensor:
        return x[alive].sum() / batch.sequences_total

    error, returns = (values - returns).detach(), returns.detach()
    metrics = {"value_loss": share(errors).detach(), "return": share(returns), "return_square": share(returns.square())}
    metrics |= {"value_error": share(error), "value_error_square": share(error.square())}
    return share(errors), metrics


def explained_variance(metrics: Mapping[str, float]) -> dict[str, float]:
    """1 - Var(return - value) / Var(return) from summed up metrics; nothing if the returns do not vary."""
    if "return_square" not in metrics:  # no row trained
        return {}
    spread = metrics["return_square"] - metrics["return"] ** 2
    if spread <= 1e-9 * max(1.0, metrics["return_square"]):
        return {}
    residual = metrics["value_error_square"] - metrics["value_error"] ** 2
    return {"explained_variance": 1.0 - residual / spread}


def thought_weights(batch: Batch, weight: float) -> Tensor:
    """[B, T] `weight` on tokens of thoughts, 1 on those of the action, 0 outside the mask. A row whose action nobody marked
    is all action.
    """
    ones = batch.mask.to(batch.logprobs.dtype)
    return ones if batch.thought is None else torch.where(batch.thought & batch.mask, weight * ones, ones)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Steps:
    """The rows that count, in time order, episode after episode; all [N]."""

    rewards: Tensor
    values: Tensor
    terminated: Tensor
    truncated: Tensor
    final_values: Tensor


def first_sampled(mask: Tensor) -> Tensor:
    """[B, T] True at each row's first sampled token."""
    return mask & (mask.long().cumsum(1) == 1)


def _steps(batch: Batch, gamma: float) -> tuple[Tensor, _Steps]:
    """(rows that count in time order [N], their steps). A row without a mask hands its reward to the one before it."""
    values = keep(required(batch.values, "values", 1.0), first_sampled(batch.mask)).sum(1)
    rewards = keep(batch.rewards, batch.mask).sum(1)
    rows = torch.arange(batch.rows, device=values.device)
    episode = rows if batch.episode is None else batch.episode
    turn = torch.zeros_like(rows) if batch.turn is None else batch.turn
    ended = torch.ones_like(rows, dtype=torch.bool)
    terminated = ended if batch.terminated is None else batch.terminated
    truncated = ~ended if batch.truncated is None else batch.truncated
    after = torch.zeros_like(values) if batch.final_values is None else batch.final_values.to(values)
    order = sorted(range(batch.rows), key=lambda row: (int(episode[row]), int(turn[row])))
    alive = batch.mask.any(1).tolist()
    chosen: list[int] = []
    given, over, cut = rewards.clone(), terminated.clone(), truncated.clone()
    for row in order:
        if alive[row]:
            chosen.append(row)
        elif chosen and int(episode[chosen[-1]]) == int(episode[row]):
            given[chosen[-1]] += gamma * batch.rewards[row].nan_to_num(0.0).sum()
            over[chosen[-1]], cut[chosen[-1]], after[chosen[-1]] = terminated[row], truncated[row], after[row]
    index = torch.tensor(chosen, dtype=torch.int64, device=values.device)
    return index, _Steps(
        rewards=given[index],
        values=values[index],
        terminated=over[index],
        truncated=cut[index],
        final_values=after[index],
    )
