"""GRPO: group-relative policy optimisation, the score of a completion judged against its siblings.

For a group of completions with scores R_i, every token of completion i gets the advantage

    A_i = (R_i - mean R) / (std R + 1e-4)        or, with advantage: center,        A_i = R_i - mean R

and the loss is the normalised sum over tokens of

    w_t * -min(r_t A_i, clip(r_t, 1 - clip_low, 1 + clip_high) A_i) + kl_coef * KL_t,    r_t = pi(t) / pi_old(t)

DeepSeekMath (arXiv:2402.03300). The defaults follow later practice rather than that paper: the clip range is DAPO's,
the loss is averaged over tokens (DAPO) instead of over sequences, there is no KL term, and w_t =
min(pi_old / pi_sampler, importance_cap) corrects for the engine's numbers. The deviation is the sample one, as in TRL
and verl. The entropy bonus is always a mean over tokens, whatever the normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llmrl.algos.terms import check_normalize, check_ranges, clipped_loss, coefficient_needs, group_credit
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.credit import group_center, group_zscore, leave_one_out

CREDIT = {"zscore": group_zscore, "center": group_center, "leave_one_out": leave_one_out}


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPO:
    """GRPO's hyper-parameters.

    advantage        zscore divides the centred score by the group's deviation, center does not (Dr.GRPO), leave_one_out
                     takes the mean of the others off (LOOP).
    clip_low         the ratio of a token with a negative advantage has no gradient below 1 - clip_low.
    clip_high        the ratio of a token with a positive advantage has no gradient above 1 + clip_high.
    dual_clip        the loss of a token with a negative advantage A is at most -dual_clip * A; off if null.
    kl_coef          weight of the KL to the reference model; 0 loads no reference.
    kl_estimator     k1, k2 or k3, see llmrl.losses.kl_estimate.
    normalize        token (DAPO), sequence (GRPO's paper) or constant (Dr.GRPO), see llmrl.losses.aggregate.
    constant_tokens  tokens per sequence that `normalize: constant` divides by, usually the largest completion length.
    importance_cap   largest weight pi_old / pi_sampler of a token; null trusts the sampler's numbers.
    entropy_coef     weight of the entropy bonus.

    Raises ValueError for hyper-parameters that make no sense.
    """

    advantage: Literal["zscore", "center", "leave_one_out"] = "zscore"
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    normalize: Literal["token", "sequence", "constant"] = "token"
    constant_tokens: int | None = None
    importance_cap: float | None = 2.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)
        check_normalize(self.normalize, self.constant_tokens)

    @property
    def needs(self) -> Needs:
        """Old log-probs, reference log-probs with a KL term, entropy with an entropy bonus."""
        return replace(coefficient_needs(kl_coef=self.kl_coef, entropy_coef=self.entropy_coef), siblings=True)

    def credit(self, batch: Batch) -> Batch:
        """Every sampled token of a row gets the row's group-relative score."""
        return group_credit(batch, CREDIT[self.advantage])

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch."""
        return clipped_loss(self, out, batch, normalize=self.normalize)
