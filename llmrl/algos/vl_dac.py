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
log-probabilities stay float32; the value loss carries the paper's half (the code's form is value_clip: 0.1 with value_coef
doubled); every response token trains, the first included; `dual_clip` stands for the code's guard against large ratios.
A row that only passes time (an action drawn by the environment) gives its reward to the step before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from llmrl.algos.steps import explained_variance, step_credit, step_value_loss, thought_weights
from llmrl.algos.terms import check_ranges, clipped_loss, coefficient_needs
from llmrl.batch import Batch, Loss, Needs, Output


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
    dual_clip       the loss of a token with a negative advantage A is at most -dual_clip * A; off if null.
    thought_weight  weight of the tokens before the action in their step's mean; 1 tells no difference, 0 trains the action.
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
    dual_clip: float | None = None
    thought_weight: float = 1.0
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
        return step_credit(self, batch)

    def derived_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The values' explained variance."""
        return explained_variance(metrics)

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch: policy, KL and value loss."""
        weights = thought_weights(batch, self.thought_weight)
        weights = weights * batch.mask.sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1e-9)
        policy = clipped_loss(self, out, batch, normalize="sequence", weights=weights)
        value, metrics = step_value_loss(out, batch, coef=self.value_coef, clip=self.value_clip)
        return Loss(value=policy.value + self.value_coef * value, metrics={**policy.metrics, **metrics})
