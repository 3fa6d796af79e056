"""REINFORCE++: token-level REINFORCE with PPO's clip and one baseline for the whole batch; needs no groups, no critic.

baseline: batch (REINFORCE++)
    A_t = whiten( sum over u >= t of gamma^(u - t) (r_u - kl_coef log(pi_old(u) / pi_ref(u))) )
baseline: group (REINFORCE++-baseline)
    A_t = whiten( R_i - mean of the group ), and kl_coef * log(pi / pi_ref)^2 / 2 in the loss

Whitening is over all sampled tokens of the batch, and L = sum over tokens of
-min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t) / number of tokens. Hu et al. 2025, arXiv:2501.03262. The
deviation has a floor, which the paper has not: without one, a batch of equal rewards turns the KL's rounding noise into
advantages of size 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llmrl.algos.terms import check_ranges, clipped_loss, coefficient_needs, group_credit, minus_kl, required
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.credit import discounted_returns, group_center, whiten
from llmrl.losses import keep


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforcePP:
    """REINFORCE++'s hyper-parameters.

    baseline         batch whitens returns-to-go over the batch, group subtracts the group's mean score first.
    gamma            discount per sampled token (baseline: batch only).
    clip_low         the ratio of a token with a negative advantage has no gradient below 1 - clip_low.
    clip_high        the ratio of a token with a positive advantage has no gradient above 1 + clip_high.
    kl_coef          weight of the KL, in the reward (batch) or in the loss as k2 (group); 0 loads no reference.
    std_floor        smallest deviation that advantages are divided by.
    importance_cap   largest weight pi_old / pi_sampler of a token; null trusts the sampler's numbers.
    entropy_coef     weight of the entropy bonus.

    Raises ValueError for hyper-parameters that make no sense.
    """

    baseline: Literal["batch", "group"] = "batch"
    gamma: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    std_floor: float = 1e-2
    importance_cap: float | None = None
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> Needs:
        """The whole batch for whitening, old log-probs, reference log-probs with a KL, entropy with a bonus."""
        return replace(coefficient_needs(kl_coef=self.kl_coef, entropy_coef=self.entropy_coef), whole_batch=True)

    def credit(self, batch: Batch) -> Batch:
        """Returns-to-go or centred scores, whitened over all sampled tokens."""
        if self.baseline == "group":
            raw = required(group_credit(batch, group_center).advantages, "advantages", 1.0)
        else:
            rewards = minus_kl(keep(batch.rewards, batch.mask), batch, coef=self.kl_coef)
            raw = discounted_returns(rewards, batch.mask, gamma=self.gamma)
        return replace(batch, advantages=whiten(raw, batch.mask, floor=self.std_floor))

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch."""
        kl_coef = self.kl_coef if self.baseline == "group" else 0.0
        return clipped_loss(self, out, batch, normalize="token", kl_coef=kl_coef, kl_estimator="k2")
