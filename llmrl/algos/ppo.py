"""PPO: an actor with a learnt critic; every token is judged against the value of the state it was chosen in.

    r'_t = r_t - kl_coef * KL_t (kl_in: reward)    A, _ = GAE(r', V; gamma, lam)    _, R = GAE(r', V; gamma, lam_critic)
    L = mean over tokens of  w_t * -min(ratio_t A_t, clip(ratio_t) A_t)
                             + value_coef * max((v - R)^2, (clip(v, v_old +- value_clip) - R)^2) / 2

Schulman et al. 2017, arXiv:1707.06347; token GAE steps over tokens that the policy did not sample. Advantages are
whitened over all sampled tokens, with a floor on the deviation. Named options from VAPO (Yue et al. 2025,
arXiv:2504.05118): a decoupled lambda for the critic (`lam_critic`, theirs is 1), and a policy lambda that grows with
the length of the answer (`lam_alpha`, theirs is 0.05). The value loss is a mean over tokens however the policy's is
normalised. The KL in the reward is that of the policy that sampled: it stays the same over the updates of a rollout.
Its weight follows the measured KL with `controller: {name: adaptive_kl, args: {target: 0.05}}` in the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llmrl.algos.steps import explained_variance
from llmrl.algos.terms import (
    behaviour_logprobs,
    bootstrapped,
    check_normalize,
    check_ranges,
    clipped_loss,
    coefficient_needs,
    partial_mean,
    required,
)
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.credit import gae, length_adaptive_lambda, whiten
from llmrl.losses import clipped_value, keep, kl_estimate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO:
    """PPO's hyper-parameters.

    gamma              discount per sampled token.
    lam                GAE lambda of the advantages.
    lam_critic         GAE lambda of the value targets; null takes that of the advantages.
    lam_alpha          if set, the advantages' lambda is 1 - 1 / (lam_alpha * length) instead of lam.
    whiten_advantages  whiten advantages over all sampled tokens.
    std_floor          smallest deviation that advantages are divided by.
    clip_low           the ratio of a token with a negative advantage has no gradient below 1 - clip_low.
    clip_high          the ratio of a token with a positive advantage has no gradient above 1 + clip_high.
    dual_clip          the loss of a token with a negative advantage A is at most -dual_clip * A; off if null.
    value_coef         weight of the value loss.
    value_clip         how far a value may move from its old one before the loss stops rewarding it; off if null.
    kl_coef            weight of the KL to the reference model; 0 loads no reference.
    kl_in              reward or loss: where the KL goes.
    kl_estimator       k1, k2 or k3, see llmrl.losses.kl_estimate.
    normalize          token, sequence or constant, see llmrl.losses.aggregate.
    constant_tokens    tokens per sequence that `normalize: constant` divides by, usually the largest completion length.
    importance_cap     largest weight pi_old / pi_sampler of a token; null trusts the sampler's numbers.
    entropy_coef       weight of the entropy bonus.

    Raises ValueError for hyper-parameters that make no sense.
    """

    gamma: float = 1.0
    lam: float = 0.95
    lam_critic: float | None = None
    lam_alpha: float | None = None
    whiten_advantages: bool = True
    std_floor: float = 1e-2
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    value_coef: float = 0.5
    value_clip: float | None = 0.2
    kl_coef: float = 0.0
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    normalize: Literal["token", "sequence", "constant"] = "token"
    constant_tokens: int | None = None
    importance_cap: float | None = 2.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)
        check_normalize(self.normalize, self.constant_tokens)
        if self.kl_coef and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator=k1 with kl_in: loss has a gradient of mean zero and holds nothing back; use k2 or k3"
            )

    @property
    def needs(self) -> Needs:
        """Values, old log-probs; with a KL reference log-probs, with an entropy bonus entropy, for whitening the whole
        batch."""
        return replace(
            coefficient_needs(kl_coef=self.kl_coef, entropy_coef=self.entropy_coef),
            values=True,
            whole_batch=self.whiten_advantages,
        )

    def derived_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The explained variance 1 - Var(return - value) / Var(return), if the returns vary, and the KL's weight."""
        return ({"kl_coef": self.kl_coef} if self.kl_coef else {}) | explained_variance(metrics)

    def credit(self, batch: Batch) -> Batch:
        """Token GAE on rewards minus KL; advantages whitened, returns not."""
        mask = batch.mask
        values = keep(required(batch.values, "values", 1.0), mask)
        rewards = keep(batch.rewards, mask)
        if self.kl_coef and self.kl_in == "reward":
            rewards = rewards - self.kl_coef * self._kl_of_sampling(batch)
        if batch.final_values is not None:
            rewards = bootstrapped(rewards, batch, gamma=self.gamma)
        lam: float | Tensor = self.lam
        if self.lam_alpha is not None:
            lam = length_adaptive_lambda(mask, alpha=self.lam_alpha).to(values.dtype)
        advantages, returns = gae(rewards, values, mask, gamma=self.gamma, lam=lam)
        if self.lam_critic is not None:
            _, returns = gae(rewards, values, mask, gamma=self.gamma, lam=self.lam_critic)
        if self.whiten_advantages:
            advantages = whiten(advantages, mask, floor=self.std_floor)
        return replace(batch, advantages=advantages, returns=returns)

    def _kl_of_sampling(self, batch: Batch) -> Tensor:
        """The KL estimate [B, T] from the reference of the policy that sampled."""
        ref_logprobs = keep(required(batch.ref_logprobs, "ref_logprobs", self.kl_coef), batch.mask)
        return kl_estimate(behaviour_logprobs(batch), ref_logprobs, estimator=self.kl_estimator)

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch: policy and value loss."""
        kl_coef = self.kl_coef if self.kl_in == "loss" else 0.0
        policy = clipped_loss(self, out, batch, normalize=self.normalize, kl_coef=kl_coef)
        value, metrics = self._value_loss(out, batch)
        if self.kl_coef and self.kl_in == "reward":
            metrics["kl_ref"] = partial_mean(batch)(self._kl_of_sampling(batch))
        return Loss(value=policy.value + self.value_coef * value, metrics={**policy.metrics, **metrics})

    def _value_loss(self, out: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The value loss, in the batch's value unit, and the token means that `report` reads, in units of reward."""
        values = keep(required(out.values, "values (of the output)", self.value_coef), batch.mask)
        returns = keep(required(batch.returns, "returns", self.value_coef), batch.mask)
        old_values = keep(required(batch.values, "values", self.value_coef), batch.mask)
        unit = 1.0 if batch.value_unit is None else batch.value_unit
        per_token = clipped_value(values / unit, old_values / unit, returns / unit, clip=self.value_clip)
        loss = keep(per_token, batch.mask).sum()
        share = partial_mean(batch)
        error = (values - returns).detach()
        moved = ((values - old_values) / unit).detach().abs()
        metrics = {
            "value_loss": (loss / batch.tokens_total).detach(),
            "value_error": share(error),
            "value_error_square": share(error.square()),
            "return": share(returns),
            "return_square": share(returns.square()),
        }
        if self.value_clip is not None:
            metrics["value_clipped"] = share(moved > self.value_clip)
        return loss / batch.tokens_total, metrics
