"""VL-DAC: a policy loss on tokens, a value on environment steps, decoupled.

    V_n    value of the state before step n's first token      A_n, R_n = GAE over the steps of an episode
    L_pi   = mean over steps of the mean over their tokens of -min(ratio_t A_n, clip(ratio_t, 1 -+ clip) A_n)
    L_V    = mean over steps of max((V_n - R_n)^2, (V_old + clip(V_n - V_old, -+ value_clip) - R_n)^2) / 2
    L      = L_pi + kl_coef * L_KL + value_coef * L_V

Bredis et al. 2025, arXiv:2508.04280, equations 3 to 6. Rows are environment steps (`Batch.episode`, `Batch.turn`); all
tokens of a step share its advantage, and gamma and lam act once a step. The value does not see the answer it judges. Use
it with `critic: {stop_gradient: true, warmup_steps: 2}`, as the paper does, and a fixed reference for the KL (k3).

Differs from the released code: advantages are normalised over the steps of all ranks with a floor on the deviation (theirs
is per process, over 1e-8); a cut episode bootstraps from its true final observation (`truncation: drop` is theirs);
log-probabilities stay float32; the value loss carries the paper's half; every response token trains, the first included.
A row that only passes time (an action drawn by the environment) gives its reward to the step before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from llmrl.algos.terms import check_ranges, coefficient_needs, policy_gradient_loss, ratio_metrics, required
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.credit import episode_gae, whiten
from llmrl.losses import clipped_surrogate, clipped_value, keep


@dataclass(frozen=True, slots=True, kw_only=True)
class VLDAC:
    """VL-DAC's hyper-parameters.

    gamma           discount per environment step.
    lam             GAE lambda per environment step.
    truncation      bootstrap, drop or terminal: what a cut episode's last step means, see llmrl.credit.episode_gae.
    normalize       whiten advantages over all steps.
    std_floor       smallest deviation that advantages are divided by.
    clip_low        the ratio of a token with a negative advantage has no gradient below 1 - clip_low.
    clip_high       the ratio of a token with a positive advantage has no gradient above 1 + clip_high.
    value_coef      weight of the value loss.
    value_clip      how far a value may move from its old one before the loss stops rewarding it; off if null.
    kl_coef         weight of the KL to the reference model, in the loss; 0 loads no reference.
    kl_estimator    k1, k2 or k3, see llmrl.losses.kl_estimate.
    importance_cap  largest weight pi_old / pi_sampler of a token; null trusts the sampler's numbers.

    Raises ValueError for hyper-parameters that make no sense.
    """

    gamma: float = 0.99
    lam: float = 0.95
    truncation: Literal["bootstrap", "drop", "terminal"] = "bootstrap"
    normalize: bool = True
    std_floor: float = 0.1
    clip_low: float = 0.1
    clip_high: float = 0.1
    value_coef: float = 0.15
    value_clip: float | None = None
    kl_coef: float = 0.05
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    importance_cap: float | None = 2.0

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> Needs:
        """Values, old log-probs, reference log-probs with a KL, and the whole batch where advantages are normalised."""
        plain = coefficient_needs(kl_coef=self.kl_coef, entropy_coef=0.0)
        return replace(plain, values=True, whole_batch=self.normalize)

    def credit(self, batch: Batch) -> Batch:
        """One advantage and one return a step, on each of its tokens."""
        order, steps = _steps(batch, self.gamma)
        advantages, returns = torch.zeros_like(steps.rewards), torch.zeros_like(steps.rewards)
        if len(order):
            advantages, returns = episode_gae(
                steps.rewards,
                steps.values,
                terminated=steps.terminated,
                truncated=steps.truncated,
                final_values=steps.final_values,
                gamma=self.gamma,
                lam=self.lam,
                truncation=self.truncation,
            )
            if self.normalize:
                there = torch.ones_like(advantages, dtype=torch.bool)
                advantages = whiten(advantages[:, None], there[:, None], floor=self.std_floor)[:, 0]
        by_row = torch.zeros(2, batch.rows, dtype=advantages.dtype, device=advantages.device)
        by_row[:, order] = torch.stack([advantages, returns])
        wide = by_row[:, :, None].expand(2, *batch.mask.shape)
        return replace(batch, advantages=keep(wide[0], batch.mask), returns=keep(wide[1], batch.mask))

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch: policy, KL and value loss."""
        clip = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        policy = policy_gradient_loss(
            out,
            batch,
            surrogate=lambda t: clipped_surrogate(t.logprobs, t.old_logprobs, t.advantages, **clip),
            ratios=lambda t: ratio_metrics(t, batch, **clip),
            normalize="sequence",
            kl_coef=self.kl_coef,
            kl_estimator=self.kl_estimator,
            importance_cap=self.importance_cap,
            entropy_coef=0.0,
        )
        first = _first(batch.mask)
        values, old, returns = (
            keep(required(x, name, self.value_coef), first).sum(1)
            for x, name in (
                (out.values, "values (of the output)"),
                (batch.values, "values"),
                (batch.returns, "returns"),
            )
        )
        unit = 1.0 if batch.value_unit is None else batch.value_unit
        errors = clipped_value(values / unit, old / unit, returns / unit, clip=self.value_clip)
        value = errors[batch.mask.any(1)].sum() / batch.sequences_total
        return Loss(
            value=policy.value + self.value_coef * value, metrics={**policy.metrics, "value_loss": value.detach()}
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Steps:
    """The rows that count, in time order, episode after episode; all [N]."""

    rewards: Tensor
    values: Tensor
    terminated: Tensor
    truncated: Tensor
    final_values: Tensor


def _first(mask: Tensor) -> Tensor:
    """[B, T] True at each row's first sampled token."""
    return mask & (mask.long().cumsum(1) == 1)


def _steps(batch: Batch, gamma: float) -> tuple[Tensor, _Steps]:
    """(rows that count in time order [N], their steps). A row without a mask hands its reward to the one before it."""
    values = keep(required(batch.values, "values", 1.0), _first(batch.mask)).sum(1)
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
