"""Losses: log-probabilities in, per-token loss out, and the one place that turns per-token loss into a number.

Pure and differentiable, no configuration. Functions without a mask are elementwise, so a bad slot stays in its slot;
functions with a mask read nothing outside it. What a masked slot holds (NaN, infinity) must not enter the arithmetic at
all, because 0 * NaN is NaN in a backward pass: clean the inputs with `keep` first, as the algorithms do.

Every exponential sees a log-ratio clamped to +-20 nats (as verl does), so that neither values nor gradients overflow;
e^20 is five hundred million, far beyond any clip range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llmrl.credit import group_center, group_deviation, leave_one_out
from llmrl.later import torch
from llmrl.losses_outcome import Alignment as Alignment
from llmrl.losses_outcome import NllNormalize as NllNormalize
from llmrl.losses_outcome import Pool as Pool
from llmrl.losses_outcome import ScoreScale as ScoreScale
from llmrl.losses_outcome import pooled_logits as pooled_logits
from llmrl.losses_outcome import token_scores as token_scores
from llmrl.losses_outcome import weighted_nll as weighted_nll

if TYPE_CHECKING:
    from torch import Tensor

LOG_RATIO_LIMIT = 20.0

KLEstimator = Literal["k1", "k2", "k3"]
Normalize = Literal["token", "sequence", "constant"]
SequenceRatio = Literal["mean", "sum"]
PacsProxy = Literal["log_ratio", "mean_logprob"]
PacsScore = Literal["rloo", "grpo", "drgrpo", "naive"]
PacsWeight = Literal["question", "only_positive", "only_negative", "none"]


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


def sequence_clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio: SequenceRatio = "mean",
) -> Tensor:
    """The clipped surrogate with one ratio per row: all [B, T] (advantages may be [B]) -> [B, T].

    Every sampled token carries its row's ratio, exp of the mean log-ratio of the row's tokens (GSPO, Zheng et al. 2025,
    arXiv:2507.18071) or, with ratio="sum", of their sum: the probability ratio of the whole answer (RLOO with several
    updates). 0 outside the mask. Aggregate with normalize="sequence": the row's mean is then the row's loss.

    Raises ValueError for an unknown ratio.

    >>> sequence_clipped_surrogate(torch.tensor([[0.3, 0.1]]), torch.zeros(1, 2), torch.tensor([-1.0]),
    ...                            torch.tensor([[True, True]]), clip_low=0.2, clip_high=0.2)
    tensor([[1.2214, 1.2214]])
    """
    log_ratio = (keep(logprobs, mask) - keep(old_logprobs, mask)).sum(dim=1, keepdim=True)
    if ratio == "mean":
        log_ratio = log_ratio / mask.sum(dim=1, keepdim=True).clamp(min=1)
    elif ratio != "sum":
        raise ValueError(f"ratio={ratio!r} is not a sequence ratio; use mean or sum")
    per_token = advantages if advantages.dim() == 2 else advantages[:, None].expand(mask.shape)
    kept = keep(per_token, mask)
    return keep(
        clipped_surrogate(log_ratio, torch.zeros_like(log_ratio), kept, clip_low=clip_low, clip_high=clip_high), mask
    )


def capped_reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, ratio_cap: float) -> Tensor:
    """CISPO's loss, elementwise: -min(r, ratio_cap) A logprobs, the weight without gradient; all [B, T] -> [B, T].

    No token loses its gradient, only its weight is bounded (MiniMax-M1, arXiv:2506.13585).

    >>> capped_reinforce(torch.tensor([-1.0]), torch.tensor([-3.0]), torch.tensor([0.5]), ratio_cap=2.0)
    tensor([1.])
    """
    weight = probability_ratio(logprobs, old_logprobs).detach().clamp(max=ratio_cap)
    return -weight * advantages * logprobs


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """PPO's value loss, elementwise: max((v - R)^2, (clip(v, v_old +- clip) - R)^2) / 2; all [B, T] -> [B, T].

    `clip` None leaves the plain squared error.

    >>> clipped_value(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), clip=0.5)
    tensor([0.1250])
    """
    error = (values - returns).square()
    if clip is None:
        return 0.5 * error
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(error, (clipped - returns).square())


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


def pacs_proxy(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, beta: float = 1.0, proxy: PacsProxy = "log_ratio"
) -> Tensor:
    """PACS's reward proxy r of each row: logprobs, ref_logprobs, mask [B, T] -> [B], 0 for a row without any mask.

    log_ratio: beta * sum of (logprobs - ref_logprobs), summed as differences in at least float32 (the two sums are
    thousands of nats, what matters is a tenth of one). mean_logprob: beta * mean of logprobs, no reference.
    Raises ValueError for an unknown proxy.
    """
    wide = torch.promote_types(logprobs.dtype, torch.float32)
    own = keep(logprobs, mask).to(wide)
    if proxy == "log_ratio":
        return beta * (own - keep(ref_logprobs, mask).to(wide)).sum(dim=1)
    if proxy == "mean_logprob":
        return beta * own.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    raise ValueError(f"proxy={proxy!r} is not a PACS reward proxy; use log_ratio or mean_logprob")


def pacs_center(proxies: Tensor, group: Tensor, *, score: PacsScore = "rloo", std_floor: float = 1e-3) -> Tensor:
    """The classifier's logit psi from reward proxies: proxies [B], group [B] int64 -> [B]. Nothing is detached.

    rloo: r - mean of the others. drgrpo: r - mean. grpo: (r - mean) / (std + 1e-6), sample deviation; a group whose
    deviation is below `std_floor` (every group, on policy) is only centred, where the quotient would be noise with a
    gradient of 1e5. naive: r. The grpo score does not see the scale of r: with a reference that stays, it stops pulling
    once right and wrong are apart. Raises ValueError for an unknown score.
    """
    if score == "rloo":
        return leave_one_out(proxies, group)
    if score == "drgrpo":
        return group_center(proxies, group)
    if score == "grpo":
        centred, std = group_center(proxies, group), group_deviation(proxies, group, floor=std_floor)
        return centred / torch.where(std > std_floor, std + 1e-6, 1.0)
    if score == "naive":
        return proxies
    raise ValueError(f"score={score!r} is not a PACS score; use rloo, grpo, drgrpo or naive")


def pacs_scores(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    group: Tensor,
    *,
    beta: float = 1.0,
    proxy: PacsProxy = "log_ratio",
    score: PacsScore = "rloo",
) -> Tensor:
    """PACS's logit psi of each row: logprobs, ref_logprobs, mask [B, T], group [B] -> [B] (arXiv:2509.02522, eqs 6-10).

    The gradient flows through the group's baseline too. Rows without any mask are no siblings and score 0.

    >>> pacs_scores(torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-1.5], [-1.5]]), torch.ones(2, 1, dtype=torch.bool),
    ...             torch.tensor([0, 0]))
    tensor([ 1., -1.])
    """
    proxies = pacs_proxy(logprobs, ref_logprobs, mask, beta=beta, proxy=proxy)
    alive = mask.any(dim=1)
    scores = pacs_center(proxies[alive], group[alive], score=score)
    return torch.zeros_like(proxies).index_put((alive,), scores)


def pacs_weights(labels: Tensor, group: Tensor, *, mode: PacsWeight = "question") -> Tensor:
    """Weight of each row's cross-entropy: labels [B] of 0 and 1, group [B] int64 -> [B].

    question: n / (2 n_class) in a group of n that holds both classes, 1 in a one-class group. only_positive and
    only_negative: 1 for that class, else 0. none: 1. Raises ValueError for other labels and for an unknown mode.

    >>> pacs_weights(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([5, 5, 5, 5]))
    tensor([2.0000, 0.6667, 0.6667, 0.6667])
    """
    if mode == "none":
        return torch.ones_like(labels)
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"labels must be 0 or 1 for mode={mode!r}, got {labels.tolist()}; threshold them or use none")
    if mode == "only_positive":
        return labels.clone()
    if mode == "only_negative":
        return 1 - labels
    if mode != "question":
        raise ValueError(f"mode={mode!r} is not a PACS weight mode; use question, only_positive, only_negative or none")
    same_group = group[:, None] == group[None, :]
    size = same_group.sum(dim=1).to(labels.dtype)
    same_class = (same_group & (labels[:, None] == labels[None, :])).sum(dim=1).to(labels.dtype)
    return torch.where(same_class < size, size / (2 * same_class), torch.ones_like(size))


def pacs_loss(scores: Tensor, labels: Tensor, weights: Tensor, *, total: int | Tensor | None = None) -> Tensor:
    """Sum of w (softplus(psi) - R psi) over `total`: scores, labels, weights [B] -> []. arXiv:2509.02522, eq 8.

    `total` is the number of rows of the whole update, so that micro-batches add up; None takes B. Labels may be soft.

    >>> pacs_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), torch.ones(2))
    tensor(0.6931)
    """
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="none")
    return (weights.to(scores.dtype) * entropy).sum() / (len(scores) if total is None else total)
