"""PACS: the verifier's outcome is a class label, and the policy itself, by its log-ratios, is the classifier.

    r_i = beta * sum over tokens of log(pi / pi_ref)         psi_i = r_i - mean over j != i of r_j
    L = mean over answers of w_i (softplus(psi_i) - R_i psi_i),    R_i in {0, 1}

arXiv:2509.02522. Nothing is detached: the gradient flows through the siblings' baseline too, so a
micro-batch must hold whole groups. No advantage, no ratio clipping, no KL term; the sigmoid's saturation and the
gradient clipping of the trainer (which the released code bypasses) are the trust region. As in the released code, the
default reference is the policy at the start of the rollout step; the paper's is a fixed model that is reset now and
then, with fresh Adam averages: `reference: model` here, and the recipe's section `reference: {kind: reset_every, every:
..., reset_optimizer: true}` (or fixed, or ema). The paper's equation 5 has a score-function term
that the released code leaves out: `score_function` adds it. Weights: question balances the classes within a group, and
the paper's own ablation is mixed about it.

With the rollout reference and one update per rollout psi is 0 for ever: the gradient is then RLOO's (unnormalised by
length, times beta) and the loss a constant 0.6931; see `warnings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmrl.algos.terms import check_ranges, partial_mean, required
from llmrl.batch import Batch, Loss, Needs, Output
from llmrl.later import torch
from llmrl.losses import keep, kl_estimate, pacs_center, pacs_loss, pacs_proxy, pacs_weights, probability_ratio

if TYPE_CHECKING:
    from torch import Tensor

SATURATED = 6.0  # |psi| beyond which the sigmoid's residual is below 0.0025


@dataclass(frozen=True, slots=True, kw_only=True)
class PACS:
    """PACS's hyper-parameters.

    beta             nats of log-ratio to logit; the paper's best are between 0.5 and 1.
    proxy            log_ratio sums log(pi / reference) over the answer, mean_logprob averages log pi.
    score            rloo, drgrpo (centred), grpo (centred over the deviation) or naive, see llmrl.losses.pacs_center.
    weight           question balances right and wrong within a group; only_positive, only_negative, or none.
    reference        rollout is the policy that the step's rollouts came from, model the trainer's reference model.
    label_above      an answer whose score is above this is right.
    score_function   add equation 5's first term: every answer's log-prob, weighted by its own cross-entropy.

    Raises ValueError for hyper-parameters that make no sense.
    """

    beta: float = 1.0
    proxy: Literal["log_ratio", "mean_logprob"] = "log_ratio"
    score: Literal["rloo", "grpo", "drgrpo", "naive"] = "rloo"
    weight: Literal["question", "only_positive", "only_negative", "none"] = "question"
    reference: Literal["rollout", "model"] = "rollout"
    label_above: float = 0.5
    score_function: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def needs(self) -> Needs:
        """Whole groups in a micro-batch, old log-probs, and reference log-probs if a model is the log-ratio's reference."""
        return Needs(whole_groups=True, siblings=True, old_logprobs=True, ref_logprobs=self._asks_model)

    @property
    def _asks_model(self) -> bool:
        return self.reference == "model" and self.proxy == "log_ratio"

    def credit(self, batch: Batch) -> Batch:
        """Nothing: the outcome is the label, there is no advantage."""
        return batch

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The share of one micro-batch of whole groups."""
        logprobs = keep(out.logprobs, batch.mask)
        old = logprobs.detach() if batch.old_logprobs is None else keep(batch.old_logprobs, batch.mask)
        reference = old
        if self._asks_model:
            reference = keep(required(batch.ref_logprobs, "ref_logprobs", self.beta), batch.mask)
        alive = batch.mask.any(dim=1)
        group = batch.group[alive]
        proxies = pacs_proxy(logprobs, reference, batch.mask, beta=self.beta, proxy=self.proxy)[alive]
        scores = pacs_center(proxies, group, score=self.score)
        labels = (batch.score[alive] > self.label_above).to(scores.dtype)
        weights = pacs_weights(labels, group, mode=self.weight)
        value = pacs_loss(scores, labels, weights, total=batch.sequences_total)
        metrics = {
            "policy_loss": value.detach(),
            **_diagnostics(scores.detach(), proxies.detach(), labels, group, batch.sequences_total),
            **_movement(logprobs.detach(), old, batch),
        }
        if self.score_function:
            entropy = torch.nn.functional.binary_cross_entropy_with_logits(scores.detach(), labels, reduction="none")
            summed = logprobs.sum(dim=1)[alive]
            # Only its gradient is wanted; the logged loss stays the cross-entropy.
            value = value + (weights * entropy * (summed - summed.detach())).sum() / batch.sequences_total
        return Loss(value=value, metrics=metrics)

    def derived_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The mean logit of right and of wrong answers, each if there are any."""
        if "right" not in metrics:  # no row trained
            return {}
        right = metrics["right"]
        wrong = metrics["answers"] - right
        found = {"psi_right_mean": (metrics["psi_right"], right), "psi_wrong_mean": (metrics["psi_wrong"], wrong)}
        return {name: total / share for name, (total, share) in found.items() if share > 1e-9}

    def warnings(self, *, updates: int) -> list[str]:
        """Settings under which this is not PACS."""
        found = []
        if updates == 1 and self.reference == "rollout" and self.proxy == "log_ratio":
            found.append(
                "one update per rollout with reference: rollout makes every PACS logit 0: the gradient is RLOO's and the "
                "loss a constant 0.6931; raise train.epochs or train.minibatches, or use reference: model"
            )
        if self.reference == "model" and self.proxy == "mean_logprob":
            found.append(
                "algo.reference: model does nothing with proxy: mean_logprob, which compares with no reference"
            )
        return found


def _diagnostics(scores: Tensor, proxies: Tensor, labels: Tensor, group: Tensor, total: Tensor) -> dict[str, Tensor]:
    """Shares of sums over answers, all divided by the number of answers: psi_right / right is the mean of the right."""
    right = labels == 1
    same_group = group[:, None] == group[None, :]
    one_class = ((labels[:, None] == labels[None, :]) | ~same_group).all(dim=1)
    answers = {
        "answers": torch.ones_like(right),
        "right": right,
        "psi_right": torch.where(right, scores, 0.0),
        "psi_wrong": torch.where(right, 0.0, scores),
        "label_accuracy": (scores > 0) == right,
        "saturated": scores.abs() > SATURATED,
        "drift": proxies,
        "one_class": one_class,
    }
    return {name: x.to(scores.dtype).sum() / total for name, x in answers.items()}


def _movement(logprobs: Tensor, old: Tensor, batch: Batch) -> dict[str, Tensor]:
    share = partial_mean(batch)
    return {
        "ratio": share(probability_ratio(logprobs, old)),
        "approx_kl": share(kl_estimate(old, logprobs, estimator="k3")),
    }
