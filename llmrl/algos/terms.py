"""What the policy-gradient methods have in common, as functions: group credit, clean inputs, the sum of terms.

Each algorithm keeps its own equation (which credit, which per-token loss); this module holds what would otherwise be
written in every one of them: leaving out rows that do not count, cleaning masked slots before any arithmetic,
importance weights, the KL and entropy terms, and the metrics that all of them report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmrl.batch import Batch, Loss, Output
from llmrl.losses import (
    KLEstimator,
    Normalize,
    aggregate,
    keep,
    kl_estimate,
    probability_ratio,
    truncated_importance,
)


def group_credit(batch: Batch, credit: Callable[[Tensor, Tensor], Tensor]) -> Batch:
    """Give every sampled token of a row the row's `credit(score, group)`; rows without any mask are not there at all.

    A row dropped as an error has no mask and may carry a NaN score; its siblings are credited as a smaller group.
    """
    alive = batch.mask.any(dim=1)
    row = torch.zeros_like(batch.score)
    row[alive] = credit(batch.score[alive], batch.group[alive]).to(row.dtype)
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
    if batch.ref_logprobs is None:
        raise ValueError(f"kl_coef={coef} needs batch.ref_logprobs, which is None; load a reference model")
    kl = kl_estimate(terms.logprobs, keep(batch.ref_logprobs, batch.mask), estimator=estimator)
    return coef * kl, {"kl_ref": partial_mean(batch)(kl)}


def ratio_metrics(terms: Terms, batch: Batch, *, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    """Token means of the ratio, of the KL from the old policy (k3), and of the tokens whose gradient is clipped."""
    share = partial_mean(batch)
    ratio = probability_ratio(terms.logprobs.detach(), terms.old_logprobs)
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
    constant_tokens: int | None,
    entropy_coef: float,
    metrics: dict[str, Tensor],
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


def partial_mean(batch: Batch) -> Callable[[Tensor], Tensor]:
    """A function [B, T] -> [] that gives this micro-batch's share of a mean over all sampled tokens."""

    def share(x: Tensor) -> Tensor:
        return keep(x.detach().to(batch.tokens_total.dtype), batch.mask).sum() / batch.tokens_total

    return share


def check(*rules: tuple[bool, str]) -> None:
    """Raise ValueError with every message whose condition is False."""
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise ValueError("; ".join(broken))
