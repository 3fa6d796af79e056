"""What the policy-gradient methods have in common, as functions: group credit, clean inputs, the sum of terms.

Each algorithm keeps its own equation (which credit, which per-token loss); this module holds what would otherwise be
written in every one of them: leaving out rows that do not count, cleaning masked slots before any arithmetic,
importance weights, the KL and entropy terms, and the metrics that all of them report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.later import torch
from llmrl.losses import (
    KLEstimator,
    Normalize,
    SequenceRatio,
    aggregate,
    clipped_surrogate,
    keep,
    kl_estimate,
    probability_ratio,
    sequence_clipped_surrogate,
    truncated_importance,
)

if TYPE_CHECKING:
    from torch import Tensor


def group_credit(batch: Batch, credit: Callable[[Tensor, Tensor], Tensor]) -> Batch:
    """Give every sampled token of a row the row's `credit(score, group)`; rows without any mask are not there at all.

    A row dropped as an error has no mask and may carry a NaN score; its siblings are credited as a smaller group.
    """
    alive = batch.mask.any(dim=1)
    row = torch.zeros_like(batch.score)
    if batch.episode is None:
        row[alive] = credit(batch.score[alive], batch.group[alive]).to(row.dtype)
    else:  # an episode counts once in its group, however many rows it has
        _, episode = torch.unique(batch.episode[alive], return_inverse=True)
        first = torch.full((int(episode.max()) + 1 if len(episode) else 0,), batch.rows, device=episode.device)
        first = first.scatter_reduce(0, episode, torch.arange(len(episode), device=episode.device), "amin")
        row[alive] = credit(batch.score[alive][first], batch.group[alive][first]).to(row.dtype)[episode]
    return replace(batch, advantages=keep(row[:, None].expand(batch.mask.shape), batch.mask))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Terms:
    """The inputs of a policy-gradient loss, all [B, T], with 0 outside the mask."""

    logprobs: Tensor  # of the trained policy, with gradient
    old_logprobs: Tensor  # of the policy that the update started from, no gradient
    advantages: Tensor
    mask: Tensor  # bool


def clean_terms(out: Output, batch: Batch) -> Terms:
    """Read `out` and `batch` inside the mask only. Without old log-probs (one update per rollout) the ratio is 1.

    Raises ValueError if `credit` has not run.
    """
    if batch.advantages is None:
        raise ValueError("batch.advantages is None; run the algorithm's credit(batch) before its loss")
    logprobs = keep(out.logprobs, batch.mask)
    old = logprobs.detach() if batch.old_logprobs is None else keep(batch.old_logprobs, batch.mask)
    return Terms(logprobs=logprobs, old_logprobs=old, advantages=keep(batch.advantages, batch.mask), mask=batch.mask)


def required(x: Tensor | None, name: str, coef: float) -> Tensor:
    """`x`, or ValueError if the trainer did not provide the batch's field `name`, which `coef` multiplies."""
    if x is None:
        raise ValueError(f"batch.{name} is None, but a coefficient of {coef} multiplies it; compute what `needs` names")
    return x


def behaviour_logprobs(batch: Batch) -> Tensor:
    """Log-probs of the policy that sampled, 0 outside the mask: the trainer's own, or else the engine's. [B, T]."""
    own = batch.logprobs if batch.old_logprobs is None else batch.old_logprobs
    return keep(own, batch.mask)


def last_sampled(mask: Tensor) -> Tensor:
    """Where each row's last sampled token is. bool [B, T]."""
    return mask & (mask.long().flip(1).cumsum(1).flip(1) == 1)


def minus_kl(rewards: Tensor, batch: Batch, *, coef: float) -> Tensor:
    """`rewards` [B, T] minus `coef` times each token's log-ratio of the sampling policy to the reference (k1).

    Raises ValueError if `coef` is not 0 and the batch has no reference log-probs.
    """
    if coef == 0:
        return rewards
    ref_logprobs = keep(required(batch.ref_logprobs, "ref_logprobs", coef), batch.mask)
    return rewards - coef * (behaviour_logprobs(batch) - ref_logprobs)


def importance_weights(terms: Terms, batch: Batch, *, cap: float | None) -> tuple[Tensor | float, dict[str, Tensor]]:
    """Truncated weights between trainer and sampler [B, T] (1.0 if `cap` is None) and their metrics."""
    if cap is None:
        return 1.0, {}
    weights = truncated_importance(terms.old_logprobs, keep(batch.logprobs, batch.mask), cap=cap)
    share = partial_mean(batch)
    return weights, {"importance": share(weights), "importance_capped": share(weights >= cap)}


def kl_term(
    terms: Terms, batch: Batch, *, coef: float, estimator: KLEstimator
) -> tuple[Tensor | float, dict[str, Tensor]]:
    """`coef` times the per-token KL estimate to the reference [B, T] (0.0 if `coef` is 0) and its metric.

    Raises ValueError if the batch has no reference log-probs.
    """
    if coef == 0:
        return 0.0, {}
    ref_logprobs = keep(required(batch.ref_logprobs, "ref_logprobs", coef), batch.mask)
    kl = kl_estimate(terms.logprobs, ref_logprobs, estimator=estimator)
    return coef * kl, {"kl_ref": partial_mean(batch)(kl)}


def ratio_metrics(terms: Terms, batch: Batch, *, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    """Token means of the ratio, of the KL from the old policy (k3), and of the tokens whose gradient is clipped."""
    ratio = probability_ratio(terms.logprobs.detach(), terms.old_logprobs)
    return _ratio_metrics(ratio, terms, batch, clip_low, clip_high)


def sequence_ratio_metrics(
    terms: Terms, batch: Batch, *, clip_low: float, clip_high: float, ratio: SequenceRatio
) -> dict[str, Tensor]:
    """As `ratio_metrics`, with the ratio of the row that each token is in."""
    log_ratio = (terms.logprobs.detach() - terms.old_logprobs).sum(dim=1, keepdim=True)
    if ratio == "mean":
        log_ratio = log_ratio / terms.mask.sum(dim=1, keepdim=True).clamp(min=1)
    by_token = probability_ratio(log_ratio, torch.zeros_like(log_ratio)).expand(terms.mask.shape)
    return _ratio_metrics(by_token, terms, batch, clip_low, clip_high)


def _ratio_metrics(ratio: Tensor, terms: Terms, batch: Batch, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    share = partial_mean(batch)
    return {
        "ratio": share(ratio),
        "approx_kl": share(kl_estimate(terms.old_logprobs, terms.logprobs.detach(), estimator="k3")),
        "clip_low": share((ratio < 1 - clip_low) & (terms.advantages < 0)),
        "clip_high": share((ratio > 1 + clip_high) & (terms.advantages > 0)),
    }


def total_loss(
    per_token: Tensor,
    out: Output,
    batch: Batch,
    *,
    normalize: Normalize,
    entropy_coef: float,
    metrics: dict[str, Tensor],
    constant_tokens: int | None = None,
) -> Loss:
    """Aggregate `per_token` [B, T] and subtract `entropy_coef` times the mean entropy per token, however normalised.

    Raises ValueError if an entropy bonus is asked for and `out` has no entropy.
    """
    value = aggregate(
        per_token,
        batch.mask,
        normalize=normalize,
        tokens_total=batch.tokens_total,
        sequences_total=batch.sequences_total,
        constant=constant_tokens,
    )
    if out.entropy is not None:
        entropy = keep(out.entropy, batch.mask).sum() / batch.tokens_total
        metrics = {**metrics, "entropy": entropy.detach()}
        value = value - entropy_coef * entropy if entropy_coef else value
    elif entropy_coef:
        raise ValueError(f"entropy_coef={entropy_coef} needs out.entropy, which is None")
    return Loss(value=value, metrics={"policy_loss": value.detach(), **metrics})


def policy_gradient_loss(
    out: Output,
    batch: Batch,
    *,
    surrogate: Callable[[Terms], Tensor],
    ratios: Callable[[Terms], dict[str, Tensor]],
    normalize: Normalize,
    entropy_coef: float = 0.0,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    importance_cap: float | None = None,
    constant_tokens: int | None = None,
) -> Loss:
    """The loss that all these methods share: weighted `surrogate` [B, T] plus KL, normalised, minus the entropy bonus.

    `ratios` gives the method's own metrics. See the functions above for what each term needs and raises.
    """
    terms = clean_terms(out, batch)
    weights, weight_metrics = importance_weights(terms, batch, cap=importance_cap)
    kl, kl_metrics = kl_term(terms, batch, coef=kl_coef, estimator=kl_estimator)
    return total_loss(
        weights * surrogate(terms) + kl,
        out,
        batch,
        normalize=normalize,
        constant_tokens=constant_tokens,
        entropy_coef=entropy_coef,
        metrics={**ratios(terms), **weight_metrics, **kl_metrics},
    )


# Terms of `policy_gradient_loss` that are hyper-parameters under the same name.
OWN_TERMS = ("kl_coef", "kl_estimator", "importance_cap", "entropy_coef", "constant_tokens")


def own_terms(algo: Any) -> dict[str, Any]:
    """The terms of `policy_gradient_loss` that `algo` has as hyper-parameters."""
    return {name: getattr(algo, name) for name in OWN_TERMS if hasattr(algo, name)}


def clipped_loss(
    algo: Any, out: Output, batch: Batch, *, normalize: Normalize, weights: Tensor | float = 1.0, **terms: Any
) -> Loss:
    """The loss of PPO's surrogate, clipped token by token as `algo` says and times `weights`; its other terms are those
    that `algo` has, or `terms`.
    """
    clip, dual = {"clip_low": algo.clip_low, "clip_high": algo.clip_high}, getattr(algo, "dual_clip", None)

    def surrogate(t: Terms) -> Tensor:
        return weights * clipped_surrogate(t.logprobs, t.old_logprobs, t.advantages, dual_clip=dual, **clip)

    ratios = partial(ratio_metrics, batch=batch, **clip)
    terms = {**own_terms(algo), **terms}
    return policy_gradient_loss(out, batch, surrogate=surrogate, ratios=ratios, normalize=normalize, **terms)


def sequence_clipped_loss(
    algo: Any, out: Output, batch: Batch, *, ratio: SequenceRatio, weights: Tensor | float = 1.0, **terms: Any
) -> Loss:
    """The same with one ratio a row, of log-probabilities times `weights`; a mean over rows."""
    clip = {"clip_low": algo.clip_low, "clip_high": algo.clip_high, "ratio": ratio}

    def weighed(t: Terms) -> Terms:
        return replace(t, logprobs=weights * t.logprobs, old_logprobs=weights * t.old_logprobs)

    def surrogate(t: Terms) -> Tensor:
        own = weighed(t)
        return sequence_clipped_surrogate(own.logprobs, own.old_logprobs, t.advantages, t.mask, **clip)

    def ratios(t: Terms) -> dict[str, Tensor]:
        return sequence_ratio_metrics(weighed(t), batch, **clip)

    terms = {**own_terms(algo), **terms}
    return policy_gradient_loss(out, batch, surrogate=surrogate, ratios=ratios, normalize="sequence", **terms)


def partial_mean(batch: Batch) -> Callable[[Tensor], Tensor]:
    """A function [B, T] -> [] that gives this micro-batch's share of a mean over all sampled tokens."""

    def share(x: Tensor) -> Tensor:
        return keep(x.detach().to(batch.tokens_total.dtype), batch.mask).sum() / batch.tokens_total

    return share


def bootstrapped(rewards: Tensor, batch: Batch, *, gamma: float) -> Tensor:
    """`rewards` [B, T] with the discounted value of the state after each truncated row on the row's last sampled token."""
    if batch.final_values is None:
        return rewards
    return rewards + torch.where(last_sampled(batch.mask), gamma * batch.final_values.to(rewards)[:, None], 0.0)


# Field name -> (what holds for a sensible value, why another makes no sense and what to do). None means "off".
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "clip_low": (lambda x: 0 <= x <= 1, "leaves no ratio in [1 - clip_low, 1]; set it between 0 and 1"),
    "clip_high": (lambda x: x >= 0, "clips the ratio 1 itself; set it to 0 or more"),
    "dual_clip": (lambda x: x > 1, "would stop the gradient of every bad token; set it above 1, or to null"),
    "thought_weight": (lambda x: 0 <= x <= 1, "is no weight of thoughts; set it between 0 and 1"),
    "ratio_cap": (lambda x: x > 0, "gives every token the weight 0; set it above 0"),
    "kl_coef": (lambda x: x >= 0, "rewards leaving the reference; set it to 0 or more"),
    "entropy_coef": (lambda x: x >= 0, "punishes entropy; set it to 0 or more"),
    "importance_cap": (lambda x: x > 0, "makes every loss 0; set it above 0, or to null"),
    "constant_tokens": (lambda x: x > 0, "cannot divide a loss; set it to the largest completion length"),
    "beta": (lambda x: x > 0, "gives the classifier no logit; set it above 0"),
    "gamma": (lambda x: 0 <= x <= 1, "is no discount; set it between 0 and 1"),
    "lam": (lambda x: 0 <= x <= 1, "is no GAE lambda; set it between 0 and 1"),
    "lam_critic": (lambda x: 0 <= x <= 1, "is no GAE lambda; set it between 0 and 1, or to null"),
    "lam_alpha": (lambda x: x > 0, "gives no length-adaptive lambda; set it above 0, or to null"),
    "value_coef": (lambda x: x >= 0, "drives the values away from the returns; set it to 0 or more"),
    "value_clip": (lambda x: x > 0, "freezes the values; set it above 0, or to null"),
    "negative_coef": (lambda x: x >= 0, "rewards programs below the baseline; set it to 0 or more"),
    "logprob_floor": (lambda x: x < 0, "stops every bad token; set it below 0 (nats), or to null"),
    "clip": (lambda x: x > 0, "clips the ratio 1 itself; set it above 0, or to null"),
    "ce_coef": (lambda x: x >= 0, "unlearns the reference programs; set it to 0 or more"),
    "std_floor": (lambda x: x > 0, "lets a batch without a signal divide by 0; set it above 0"),
}


def check_ranges(algo: Any) -> None:
    """Raise ValueError naming every field of the dataclass `algo` that is outside its range; NaN is outside."""
    values = {item.name: getattr(algo, item.name) for item in fields(algo) if item.name in RANGES}
    broken = [f"{n}={x} {RANGES[n][1]}" for n, x in values.items() if x is not None and not RANGES[n][0](x)]
    if broken:
        raise ValueError("; ".join(broken))


def check_normalize(normalize: Normalize, constant_tokens: int | None) -> None:
    """Raise ValueError unless `constant_tokens` is given with "constant" and only with it."""
    if (constant_tokens is not None) != (normalize == "constant"):
        raise ValueError(
            f"normalize={normalize} with constant_tokens={constant_tokens}: "
            "give constant_tokens with normalize: constant, and only then"
        )


def coefficient_needs(*, kl_coef: float, entropy_coef: float) -> Needs:
    """What every policy-gradient method needs: old log-probs, and what a non-zero coefficient multiplies."""
    return Needs(old_logprobs=True, ref_logprobs=kl_coef != 0, entropy=entropy_coef != 0)
