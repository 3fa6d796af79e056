"""CISPO: REINFORCE on group z-scores with a capped importance weight; no token's gradient is ever clipped away.

    L = sum over tokens of -stop_gradient(min(r_t, ratio_cap)) A_i log pi(t) / number of tokens

MiniMax-M1, arXiv:2506.13585. The paper bounds the weight from above only and does not give the bound; 5 is the value
that TRL recommends (after ScaleRL, arXiv:2510.13786), and `ratio_cap` is the bound itself, not its distance from 1.
The KL term and the weight between trainer and sampler are options of this framework.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llmrl.algos.terms import (
    check_ranges,
    coefficient_needs,
    group_credit,
    own_terms,
    policy_gradient_loss,
    ratio_metrics,
)
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.credit import group_zscore
from llmrl.losses import capped_reinforce


@dataclass(frozen=True, slots=True, kw_only=True)
class CISPO:
    """CISPO's hyper-parameters.

    ratio_cap        largest weight pi / pi_old of a token.
    kl_coef          weight of the KL to the reference model; 0 loads no reference.
    kl_estimator     k1, k2 or k3, see llmrl.losses.kl_estimate.
    importance_cap   largest weight pi_old / pi_sampler of a token; null trusts the sampler's numbers.
    entropy_coef     weight of the entropy bonus.

    Raises ValueError for hyper-parameters that make no sense.
    """

    ratio_cap: float = 5.0
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    importance_cap: float | None = None
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> Needs:
        """Old log-probs, reference log-probs with a KL term, entropy with an entropy bonus."""
        return replace(coefficient_needs(kl_coef=self.kl_coef, entropy_coef=self.entropy_coef), siblings=True)

    def credit(self, batch: Batch) -> Batch:
        """Every sampled token of a row gets the row's group z-score."""
        return group_credit(batch, group_zscore)

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch."""
        cap = self.ratio_cap
        return policy_gradient_loss(
            out,
            batch,
            surrogate=lambda t: capped_reinforce(t.logprobs, t.old_logprobs, t.advantages, ratio_cap=cap),
            ratios=lambda t: ratio_metrics(t, batch, clip_low=1.0, clip_high=cap - 1.0),
            normalize="token",
            **own_terms(self),
        )
