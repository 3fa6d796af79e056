"""RLOO: REINFORCE on whole answers, each judged against the mean of its siblings.

    A_i = R_i - mean over j != i of R_j,    R_i = score_i - kl_coef * sum over tokens of log(pi_old / pi_ref)
    L = mean over answers of -min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i),    s_i = pi(i) / pi_old(i)

Ahmadian et al. 2024, arXiv:2402.14740. With one update per rollout s_i is 1 and the gradient is the paper's
-mean A_i grad log pi(answer i), the sum over an answer's tokens without any length normalisation. The clipped ratio
matters from the second update on, as in TRL. The KL is part of the reward, as in the paper, not of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmrl.algos.terms import (
    behaviour_logprobs,
    check_ranges,
    coefficient_needs,
    group_credit,
    required,
    sequence_clipped_loss,
)
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.credit import leave_one_out
from llmrl.losses import keep


@dataclass(frozen=True, slots=True, kw_only=True)
class RLOO:
    """RLOO's hyper-parameters.

    clip_low       a bad answer has no gradient when its probability ratio is below 1 - clip_low.
    clip_high      a good answer has no gradient when its probability ratio is above 1 + clip_high.
    kl_coef        weight of the answer's log-ratio to the reference model, taken off its score; 0 loads no reference.
    entropy_coef   weight of the entropy bonus.

    Raises ValueError for hyper-parameters that make no sense.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> Needs:
        """Old log-probs, reference log-probs with a KL penalty, entropy with an entropy bonus."""
        return replace(coefficient_needs(kl_coef=self.kl_coef, entropy_coef=self.entropy_coef), siblings=True)

    def credit(self, batch: Batch) -> Batch:
        """Every sampled token of a row gets the row's leave-one-out score."""
        if self.kl_coef == 0:
            return group_credit(batch, leave_one_out)
        ref_logprobs = keep(required(batch.ref_logprobs, "ref_logprobs", self.kl_coef), batch.mask)
        penalty = self.kl_coef * (behaviour_logprobs(batch) - ref_logprobs).sum(dim=1)
        credited = group_credit(replace(batch, score=batch.score - penalty), leave_one_out)
        return replace(batch, advantages=credited.advantages)

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch."""
        return sequence_clipped_loss(self, out, batch, ratio="sum", kl_coef=0.0)  # the KL is in the reward
