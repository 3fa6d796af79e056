"""CodeRL: REINFORCE on programs with an outcome's return, every token weighted by how much it speaks for that outcome.

    A_t = (r_i - b_i) q_t,    L = mean of -A_t log pi(t) over sampled programs + ce_coef that of -log pi(t) over given ones

r_i is the return of the program's outcome (-1 compile error, -0.6 runtime error, -0.3 failed test, 1 passed; the reward
`CodeOutcome` gives it), b_i a baseline, by default the return of the prompt's greedy program, and q_t a weight: the
outcome critic's probability of the true outcome at token t, the same for all tokens, or one that falls linearly along
the program. Given completions are reference programs; each mean is taken as `normalize` says, over its own programs, so that
one reference beside seven samples weighs as much as they do. Le et al. 2022, arXiv:2207.01780, eqs. 10 and 14.

Differences: the paper trains offline on stored samples, here rollouts are fresh unless the recipe says otherwise. A negative
A_t has no lower bound: `logprob_floor` stops the gradient of a token that is already that unlikely, and `negative_coef`
scales all of them. The KL, the clip and the weight between trainer and sampler are options of this framework.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llmrl.algos.terms import (
    Terms,
    check_ranges,
    coefficient_needs,
    group_credit,
    own_terms,
    partial_mean,
    policy_gradient_loss,
    ratio_metrics,
    required,
)
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.credit import group_center, leave_one_out
from llmrl.later import torch
from llmrl.losses import Normalize, clipped_surrogate, keep

if TYPE_CHECKING:
    from torch import Tensor

BASELINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "group_mean": group_center,
    "leave_one_out": leave_one_out,
    "none": lambda score, group: score,
}
DIVIDED: dict[str, tuple[Normalize, int | None]] = {
    "token": ("token", None),
    "sequence": ("sequence", None),
    "sum": ("constant", 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeRL:
    """CodeRL's hyper-parameters.

    baseline         greedy, the prompt's greedy program; group_mean or leave_one_out of its other programs; or none.
    weights          critic, the outcome critic's token scores; uniform; or linear, from 1 to 1 / length along the program.
    negative_coef    factor of negative advantages; 0 learns from programs above the baseline alone.
    logprob_floor    a token less likely than this (nats) is not made still less likely; off if null.
    ce_coef          weight of the cross-entropy on given completions, one a prompt; 0 asks for none.
    clip             PPO's clip of the ratio to the policy before the update; null is REINFORCE.
    normalize        token (mean over tokens), sequence (over programs of their means) or sum (over programs of sums).
    kl_coef          weight of the KL to the reference model; 0 loads no reference.
    kl_estimator     k1, k2 or k3, see llmrl.losses.kl_estimate.
    importance_cap   largest weight pi_old / pi_sampler of a token; null trusts the sampler's numbers.
    entropy_coef     weight of the entropy bonus.

    Raises ValueError for hyper-parameters that make no sense.
    """

    baseline: Literal["greedy", "group_mean", "leave_one_out", "none"] = "greedy"
    weights: Literal["critic", "uniform", "linear"] = "critic"
    negative_coef: float = 1.0
    logprob_floor: float | None = -10.0
    ce_coef: float = 1.0
    clip: float | None = None
    normalize: Literal["token", "sequence", "sum"] = "token"
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    importance_cap: float | None = 2.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> Needs:
        """What the baseline compares with, token scores with a critic, references (of all ranks: their number decides what
        each weighs), and what a coefficient multiplies.
        """
        return replace(
            coefficient_needs(kl_coef=self.kl_coef, entropy_coef=self.entropy_coef),
            siblings=self.baseline in ("group_mean", "leave_one_out"),
            greedy=self.baseline == "greedy",
            token_scores=self.weights == "critic",
            references=self.ce_coef > 0,
            whole_batch=self.ce_coef > 0,
        )

    def credit(self, batch: Batch) -> Batch:
        """The relative return of a sampled program times its tokens' weights, and ce_coef on given completions; both are
        enlarged by the other's part of the batch, because the loss divides everything by all of it.
        """
        given = torch.zeros_like(batch.mask[:, 0]) if batch.given is None else batch.given
        drawn = replace(batch, mask=batch.mask & ~given[:, None])
        if self.baseline == "greedy":
            above = batch.score - required(batch.baseline, "baseline", 1.0)
            above = torch.where(above.isnan(), 0.0, above)  # a greedy program without a verdict compares with nothing
            relative = keep(above[:, None].expand(batch.mask.shape), drawn.mask)
        else:
            relative = required(group_credit(drawn, BASELINE[self.baseline]).advantages, "advantages", 1.0)
        relative = torch.where(relative < 0, self.negative_coef * relative, relative)
        weighted = relative * self._weights(drawn)
        amount = batch.mask.sum(dim=1) if self.normalize == "token" else batch.mask.any(dim=1)
        whole, taught = amount.sum().to(batch.score.dtype), amount[given].sum()
        advantages = torch.where(
            batch.mask & given[:, None],
            self.ce_coef * whole / taught.clamp(min=1),
            weighted * (whole / (whole - taught).clamp(min=1)),
        )
        return replace(batch, advantages=advantages)

    def _weights(self, batch: Batch) -> Tensor:
        """[B, T], 0 outside the mask."""
        if self.weights == "critic":
            return keep(required(batch.token_scores, "token_scores", 1.0), batch.mask)
        dtype = batch.score.dtype
        if self.weights == "uniform":
            return batch.mask.to(dtype)
        length = batch.mask.sum(dim=1, keepdim=True).clamp(min=1)
        before = batch.mask.long().cumsum(dim=1) - 1
        return keep(1.0 - before.to(dtype) / length, batch.mask)

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch."""
        normalize, constant = DIVIDED[self.normalize]
        return policy_gradient_loss(
            out,
            batch,
            surrogate=self._weighted_nll,
            ratios=lambda t: self._movement(t, batch),
            normalize=normalize,
            constant_tokens=constant,
            **own_terms(self),
        )

    def _weighted_nll(self, terms: Terms) -> Tensor:
        """-A log pi, or with a clip PPO's surrogate, [B, T]; below the floor a negative A has no gradient."""
        logprobs = terms.logprobs
        if self.logprob_floor is not None:
            logprobs = torch.where(terms.advantages < 0, logprobs.clamp(min=self.logprob_floor), logprobs)
        if self.clip is None:
            return -terms.advantages * logprobs
        return clipped_surrogate(
            logprobs, terms.old_logprobs, terms.advantages, clip_low=min(self.clip, 1.0), clip_high=self.clip
        )

    def _movement(self, terms: Terms, batch: Batch) -> dict[str, Tensor]:
        """Ratio and KL from the old policy, and how many tokens stand below the floor with a negative advantage."""
        clip = float("inf") if self.clip is None else self.clip
        moved = ratio_metrics(terms, batch, clip_low=min(clip, 1.0), clip_high=clip)
        floor = -float("inf") if self.logprob_floor is None else self.logprob_floor
        stopped = partial_mean(batch)((terms.logprobs.detach() < floor) & (terms.advantages < 0))
        clipped = {} if self.clip is None else {name: moved[name] for name in ("clip_low", "clip_high")}
        return {"ratio": moved["ratio"], "approx_kl": moved["approx_kl"], "floored": stopped, **clipped}
