"""RL4VLM: PPO on environment steps, one probability ratio for the whole answer, thoughts weighing less than the action.

    ratio_n = exp( lambda * sum over thought tokens of d_t  +  sum over action tokens of d_t ),  d_t = log pi_t - log pi_old_t
    L_pi    = mean over steps of -min(ratio_n A_n, clip(ratio_n, 1 -+ clip) A_n),  A_n, R_n = GAE over the steps of an episode
    L       = L_pi + value_coef * mean over steps of the value loss

Zhai et al. 2024, arXiv:2405.10292. The rows, the value and the credit are those of `vl_dac`; there is no KL term, and the
paper stops no gradient and warms no value up. Thoughts are what an answer says before its "action", as the environment
marks it; an answer without one is all action.

Differs from the released code: the split is found in the text, not by the ids of a few tokens, and no token is skipped; a
cut episode bootstraps from its true final observation; advantages are normalised over all ranks with a floor (theirs adds
1e-5); the value loss carries a half, as theirs does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from llmrl.algos.steps import explained_variance, step_credit, step_value_loss, thought_weights
from llmrl.algos.terms import check_ranges, coefficient_needs, sequence_clipped_loss
from llmrl.batch import Batch, Loss, Needs, Output


@dataclass(frozen=True, slots=True, kw_only=True)
class RL4VLM:
    """RL4VLM's hyper-parameters.

    thought_weight  the paper's lambda: weight of the thoughts' log-probabilities in a step's ratio.
    gamma           discount per environment step.
    lam             GAE lambda per environment step.
    truncation      bootstrap, drop or terminal: what a cut episode's last step means, see llmrl.credit.episode_gae.
    normalize       whiten advantages over all steps.
    std_floor       smallest deviation that advantages are divided by.
    clip_low        a step with a negative advantage has no gradient when its ratio is below 1 - clip_low.
    clip_high       a step with a positive advantage has no gradient when its ratio is above 1 + clip_high.
    value_coef      weight of the value loss.
    value_clip      how far a value may move from its old one before the loss stops rewarding it; off if null.
    entropy_coef    weight of the entropy bonus.

    Raises ValueError for hyper-parameters that make no sense.
    """

    thought_weight: float = 0.5
    gamma: float = 0.9
    lam: float = 0.95
    truncation: Literal["bootstrap", "drop", "terminal"] = "bootstrap"
    normalize: bool = True
    std_floor: float = 0.1
    clip_low: float = 0.1
    clip_high: float = 0.1
    value_coef: float = 0.5
    value_clip: float | None = 0.1
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> Needs:
        """Values, old log-probs, entropy with an entropy bonus, and the whole batch where advantages are normalised."""
        plain = coefficient_needs(kl_coef=0.0, entropy_coef=self.entropy_coef)
        return replace(plain, values=True, whole_batch=self.normalize)

    def credit(self, batch: Batch) -> Batch:
        """One advantage and one return a step, on each of its tokens."""
        return step_credit(self, batch)

    def derived_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The values' explained variance."""
        return explained_variance(metrics)

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch: policy and value loss."""
        weights = thought_weights(batch, self.thought_weight)
        policy = sequence_clipped_loss(self, out, batch, ratio="sum", weights=weights)
        value, metrics = step_value_loss(out, batch, coef=self.value_coef, clip=self.value_clip)
        return Loss(value=policy.value + self.value_coef * value, metrics={**policy.metrics, **metrics})
