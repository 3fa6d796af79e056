"""Losses: log-probabilities in, per-token loss out, and the one place that turns per-token loss into a number.

Pure and differentiable, no configuration. Functions without a mask are elementwise, so a bad slot stays in its slot;
functions with a mask read nothing outside it. What a masked slot holds (NaN, infinity) must not enter the arithmetic at
all, because 0 * NaN is NaN in a backward pass: clean the inputs with `keep` first, as the algorithms do.

Every exponential sees a log-ratio clamped to +-20 nats (as verl does), so that neither values nor gradients overflow;
e^20 is five hundred million, far beyond any clip range.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0

KLEstimator = Literal["k1", "k2", "k3"]
Normalize = Literal["token", "sequence", "constant"]


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where `mask`, 0 elsewhere; the gradient outside the mask is exactly 0 whatever `x` holds there. [B, T]."""
    return torch.where(mask, x, torch.zeros_like(x))


def probability_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """exp(logprobs - old_logprobs), elementwise, with the difference clamped to +-20 nats."""
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate as a loss to be minimised, elementwise: all [B, T] -> [B, T].

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(logprobs - old_logprobs). With `dual_clip` c > 1 the
    loss of a token with A < 0 is at most -c A (Ye et al. 2020, arXiv:1912.09729). Schulman et al. 2017,
    arXiv:1707.06347; separate ranges: DAPO, arXiv:2503.14476.

    >>> clipped_surrogate(torch.tensor([0.5, 0.5]), torch.zeros(2), torch.tensor([1.0, -1.0]),
    ...                   clip_low=0.2, clip_high=0.28)
    tensor([-1.2800,  1.6487])
    """
    ratio = probability_ratio(logprobs, old_logprobs)
    loss = torch.maximum(-ratio * advantages, -ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: KLEstimator = "k3") -> Tensor:
    """Estimate of KL(policy || reference) from tokens that the policy sampled, elementwise: [B, T] -> [B, T], nats.

    With d = logprobs - ref_logprobs: k1 = d (unbiased, any sign), k2 = d^2 / 2 (biased, its gradient is the KL's), k3 =
    exp(-d) + d - 1 (unbiased, never negative). Schulman 2020, http://joschu.net/blog/kl-approx.html. As a loss term k1
    has a gradient whose expectation is zero: use k2 or k3 there. k3 is constant for d < -20.

    Raises ValueError for an unknown estimator.

    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-2.0]))
    tensor([0.3679])
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        difference = difference.clamp(min=-LOG_RATIO_LIMIT)
        return torch.expm1(-difference) + difference
    raise ValueError(f"estimator={estimator!r} is not a KL estimator; use k1, k2 or k3")


def truncated_importance(old_logprobs: Tensor, sampler_logprobs: Tensor, *, cap: float) -> Tensor:
    """min(exp(old_logprobs - sampler_logprobs), cap), elementwise and without gradient: [B, T] -> [B, T].

    The weight that corrects for a sampling engine whose numbers differ from the trainer's for the same weights
    (truncated importance sampling, Yao et al. 2025, https://fengyao.notion.site/off-policy-rl).

    >>> truncated_importance(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -3.0]), cap=2.0)
    tensor([1., 2.])
    """
    return probability_ratio(old_logprobs.detach(), sampler_logprobs.detach()).clamp(max=cap)


def aggregate(
    per_token: Tensor,
    mask: Tensor,
    *,
    normalize: Normalize,
    tokens_total: Tensor | float,
    sequences_total: Tensor | float,
    constant: float | None = None,
) -> Tensor:
    """This micro-batch's share of the loss: [B, T], mask [B, T] bool -> []. Shares add up over micro-batches and ranks.

    token     sum / tokens_total                            every token counts alike (DAPO, arXiv:2503.14476)
    sequence  sum of each row's mean / sequences_total      every row counts alike (GRPO, arXiv:2402.03300)
    constant  sum / (sequences_total * constant)            no length enters (Dr.GRPO, arXiv:2503.20783)

    The totals count the whole update, not this micro-batch; rows without any mask are no sequences.
    Raises ValueError for an unknown normalisation and for "constant" without a constant.

    >>> x, mask = torch.tensor([[1.0, 3.0], [4.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    >>> aggregate(x, mask, normalize="token", tokens_total=3, sequences_total=2)
    tensor(2.6667)
    >>> aggregate(x, mask, normalize="sequence", tokens_total=3, sequences_total=2)
    tensor(3.)
    """
    kept = keep(per_token, mask)
    if normalize == "token":
        return kept.sum() / tokens_total
    if normalize == "sequence":
        return (kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum() / sequences_total
    if normalize == "constant":
        if constant is None:
            raise ValueError("normalize='constant' needs the constant, usually the largest completion length")
        return kept.sum() / (sequences_total * constant)
    raise ValueError(f"normalize={normalize!r} is not a normalisation; use token, sequence or constant")
