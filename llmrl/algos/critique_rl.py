"""Critique-RL: a critic of drafts, trained by what its critiques are worth; leave-one-out over the critiques of one draft.

    R'_i  = R_i - mean of the other critiques' R          (the siblings are critiques of one draft; of an episode of
                                                           several rounds each critique gets the episode's)
    r_t   = -kl_coef * (log pi_old - log pi_ref)_t,  plus R'_i on the last token
    A_t   = whiten(sum of r_t' for t' >= t)               over all sampled tokens of the rollout, all ranks
    L     = mean over critiques of the mean over tokens of -min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t)

Xi et al. 2025, arXiv:2510.24320, equations 8 and 9, with the estimator of the released code (RLOO, per-token k1 KL in the
reward, no value model). What a critique is worth, stage I or stage II, is the reward's business
(`llmrl.rewards.critique_reward`). The two stages are two stages of a recipe: the reference is the policy at the stage's
start.

Differs from the released code: whitening divides by max(deviation, std_floor) instead of clamping at 1e-8, so a batch in
which all critiques are worth the same leaves the policy where it is instead of blowing the KL's noise up to unit scale; the
clip of rewards to [-10, 10], which is never active, is left out; log-probabilities are those of the sampling temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmrl.algos.terms import (
    check_ranges,
    clipped_loss,
    coefficient_needs,
    group_credit,
    last_sampled,
    minus_kl,
    required,
)
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.credit import discounted_returns, leave_one_out, whiten
from llmrl.later import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueRL:
    """Critique-RL's hyper-parameters.

    kl_coef         weight of the per-token KL to the policy of the stage's start, in the reward; 0 loads no reference.
    clip_low        the ratio of a token with a negative advantage has no gradient below 1 - clip_low.
    clip_high       the ratio of a token with a positive advantage has no gradient above 1 + clip_high.
    std_floor       smallest deviation that advantages are divided by.
    importance_cap  largest weight pi_old / pi_sampler of a token; null trusts the sampler's numbers.

    Raises ValueError for hyper-parameters that make no sense.
    """

    kl_coef: float = 0.01
    clip_low: float = 0.2
    clip_high: float = 0.2
    std_floor: float = 0.1
    importance_cap: float | None = 2.0

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> Needs:
        """Siblings, the whole batch for whitening, old log-probs, and reference log-probs with a KL."""
        return replace(coefficient_needs(kl_coef=self.kl_coef, entropy_coef=0.0), siblings=True, whole_batch=True)

    def credit(self, batch: Batch) -> Batch:
        """Whitened returns-to-go of the leave-one-out reward and the KL."""
        worth = required(group_credit(batch, leave_one_out).advantages, "advantages", 1.0)
        rewards = minus_kl(torch.where(last_sampled(batch.mask), worth, 0.0), batch, coef=self.kl_coef)
        returns = discounted_returns(rewards, batch.mask, gamma=1.0)
        return replace(batch, advantages=whiten(returns, batch.mask, floor=self.std_floor))

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch."""
        return clipped_loss(self, out, batch, normalize="sequence", kl_coef=0.0)  # the KL is in the reward
