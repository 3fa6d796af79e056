"""GSPO: group sequence policy optimisation, GRPO with one ratio per answer instead of one per token.

    L = mean over answers of -min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i),
    s_i = (pi(answer i) / pi_old(answer i)) ^ (1 / length)

with GRPO's group z-score as A_i. Zheng et al. 2025, arXiv:2507.18071, whose clip range is the default here: the
length-normalised ratio moves far less than a token's. The KL term and the truncated weight between trainer and sampler
are this framework's options, per token as in GRPO; the paper uses neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llmrl.algos.terms import check_ranges, coefficient_needs, group_credit, sequence_clipped_loss
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.credit import group_zscore


@dataclass(frozen=True, slots=True, kw_only=True)
class GSPO:
    """GSPO's hyper-parameters.

    clip_low         a bad answer has no gradient when its length-normalised ratio is below 1 - clip_low.
    clip_high        a good answer has no gradient when its length-normalised ratio is above 1 + clip_high.
    kl_coef          weight of the KL to the reference model; 0 loads no reference.
    kl_estimator     k1, k2 or k3, see llmrl.losses.kl_estimate.
    importance_cap   largest weight pi_old / pi_sampler of a token; null trusts the sampler's numbers.
    entropy_coef     weight of the entropy bonus.

    Raises ValueError for hyper-parameters that make no sense.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
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
        return sequence_clipped_loss(self, out, batch, ratio="mean")
