"""Every public function of `llmrl.credit` and `llmrl.losses` against its slow definition and its invariances.

A subject names a function twice: as it is, on tensors, and by its definition, on lists. The checks follow from that:
definition, finite differences, garbage outside the mask, padding, row order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from llmrl import credit, losses
from llmrl.conformance import definitions as slow
from llmrl.conformance.cases import random_batch, with_garbage
from llmrl.conformance.measure import Finding, difference_quotient, gap


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """Everything that any of the functions takes, float64."""

    new: Tensor  # [B, T] log-probs of the trained policy
    old: Tensor  # [B, T]
    ref: Tensor  # [B, T]
    advantages: Tensor  # [B, T]
    rewards: Tensor  # [B, T]
    values: Tensor  # [B, T]
    old_values: Tensor  # [B, T]
    mask: Tensor  # [B, T] bool
    step: Tensor  # [B, T] int64
    group: Tensor  # [B] int64
    score: Tensor  # [B], any number
    labels: Tensor  # [B], 0 or 1
    psi: Tensor  # [B], logits
    logits: Tensor  # [B, T, CLASSES] of an outcome critic
    outcome: Tensor  # [B] int64, one of CLASSES


CLASSES = 4
FLOAT_GRIDS = ("new", "old", "ref", "advantages", "rewards", "values", "old_values", "logits")


def random_sample(seed: int) -> Sample:
    batch = random_batch(seed)
    draw = torch.Generator().manual_seed(seed + 1000)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    shape = {name: batch.mask.shape for name in FLOAT_GRIDS} | {"logits": (*batch.mask.shape, CLASSES)}
    grids = {name: normal(*shape[name]) for name in FLOAT_GRIDS}
    return Sample(
        **grids,
        mask=batch.mask,
        step=batch.step,
        group=batch.group,
        score=normal(batch.rows),
        labels=(batch.score == 1).to(torch.float64),
        psi=3 * normal(batch.rows),
        outcome=torch.randint(0, CLASSES, (batch.rows,), generator=draw),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """`fast(sample)` is [B, T], [B] or []; `slow` gives the same from lists; `wrt` names what to differentiate."""

    name: str
    fast: Callable[[Sample], Tensor]
    slow: Callable[[Any], Any]
    wrt: tuple[str, ...] = ()


def _tokens(rule: Callable[[Any, int, int], float]) -> Callable[[Any], slow.Grid]:
    return lambda s: slow.over(s.mask, lambda i, t: rule(s, i, t))


def subjects() -> list[Subject]:
    """Every public function, the ones with named options once for each option."""
    return [*_credit_subjects(), *_loss_subjects(), *_pacs_subjects(), *_outcome_subjects()]


def _credit_subjects() -> list[Subject]:
    return [
        Subject(
            name="group_center",
            fast=lambda s: credit.group_center(s.score, s.group),
            slow=lambda s: slow.group_center(s.score, s.group),
            wrt=("score",),
        ),
        Subject(
            name="group_zscore",
            fast=lambda s: credit.group_zscore(s.score, s.group),
            slow=lambda s: slow.group_zscore(s.score, s.group),
            wrt=("score",),
        ),
        Subject(
            name="leave_one_out",
            fast=lambda s: credit.leave_one_out(s.score, s.group),
            slow=lambda s: slow.leave_one_out(s.score, s.group),
            wrt=("score",),
        ),
        Subject(
            name="gae advantages",
            fast=lambda s: credit.gae(s.rewards, s.values, s.mask, gamma=0.9, lam=0.8)[0],
            slow=lambda s: slow.gae(s.rewards, s.values, s.mask, 0.9, 0.8)[0],
        ),
        Subject(
            name="gae returns",
            fast=lambda s: credit.gae(s.rewards, s.values, s.mask, gamma=0.9, lam=0.8)[1],
            slow=lambda s: slow.gae(s.rewards, s.values, s.mask, 0.9, 0.8)[1],
        ),
        Subject(
            name="step_gae advantages",
            fast=lambda s: credit.step_gae(s.rewards, s.values, s.step, gamma=0.9, lam=0.8)[0],
            slow=lambda s: slow.step_gae(s.rewards, s.values, s.step, 0.9, 0.8)[0],
        ),
        Subject(
            name="step_gae returns",
            fast=lambda s: credit.step_gae(s.rewards, s.values, s.step, gamma=0.9, lam=0.8)[1],
            slow=lambda s: slow.step_gae(s.rewards, s.values, s.step, 0.9, 0.8)[1],
        ),
        Subject(
            name="discounted_returns",
            fast=lambda s: credit.discounted_returns(s.rewards, s.mask, gamma=0.9),
            slow=lambda s: slow.discounted_returns(s.rewards, s.mask, 0.9),
        ),
        Subject(
            name="whiten",
            fast=lambda s: credit.whiten(s.advantages, s.mask),
            slow=lambda s: slow.whiten(s.advantages, s.mask, 1e-4),
            wrt=("advantages",),
        ),
    ]


def _loss_subjects() -> list[Subject]:
    return [
        _clipped(None),
        _clipped(2.5),
        _sequence_clipped("mean"),
        _sequence_clipped("sum"),
        _kl("k1"),
        _kl("k2"),
        _kl("k3"),
        Subject(
            name="capped_reinforce",
            fast=lambda s: losses.capped_reinforce(s.new, s.old, s.advantages, ratio_cap=2.0),
            slow=_tokens(lambda s, i, t: slow.capped_reinforce(s.new[i][t], s.old[i][t], s.advantages[i][t], 2.0)),
            wrt=("advantages",),  # its gradient in the log-probs is not its derivative: the weight has none
        ),
        Subject(
            name="clipped_value",
            fast=lambda s: losses.clipped_value(s.values, s.old_values, s.rewards, clip=0.2),
            slow=_tokens(lambda s, i, t: slow.clipped_value(s.values[i][t], s.old_values[i][t], s.rewards[i][t], 0.2)),
            wrt=("values",),
        ),
        Subject(
            name="truncated_importance",
            fast=lambda s: losses.truncated_importance(s.old, s.new, cap=2.0),
            slow=_tokens(lambda s, i, t: slow.truncated_importance(s.old[i][t], s.new[i][t], 2.0)),
        ),
        _aggregate("token"),
        _aggregate("sequence"),
        _aggregate("constant"),
    ]


def _pacs_subjects() -> list[Subject]:
    proxies: tuple[losses.PacsProxy, ...] = ("log_ratio", "mean_logprob")
    scores: tuple[losses.PacsScore, ...] = ("rloo", "grpo", "drgrpo", "naive")
    modes: tuple[losses.PacsWeight, ...] = ("question", "only_positive", "only_negative", "none")
    return [
        *(_pacs_scores(proxy, score) for proxy in proxies for score in scores),
        *(_pacs_weights(mode) for mode in modes),
        Subject(
            name="pacs_loss",
            fast=lambda s: losses.pacs_loss(s.psi, s.labels, losses.pacs_weights(s.labels, s.group)),
            slow=lambda s: slow.pacs_loss(s.psi, s.labels, slow.pacs_weights(s.labels, s.group, "question")),
            wrt=("psi",),
        ),
    ]


def _outcome_subjects() -> list[Subject]:
    pools: tuple[losses.Pool, ...] = ("max", "mean", "last")
    alignments: tuple[losses.Alignment, ...] = ("inclusive", "shifted")
    scales: tuple[losses.ScoreScale, ...] = ("none", "mean_one", "max_one")
    ways: tuple[losses.NllNormalize, ...] = ("token", "sequence", "sum")
    return [
        *(_pooled(pool) for pool in pools),
        *(_token_scores(alignment, scale) for alignment in alignments for scale in scales),
        *(_weighted_nll(normalize) for normalize in ways),
    ]


def _pooled(pool: losses.Pool) -> Subject:
    return Subject(
        name=f"pooled_logits {pool}",
        fast=lambda s: losses.pooled_logits(s.logits, s.mask, pool=pool),
        slow=lambda s: slow.pooled_logits(s.logits, s.mask, pool),
        wrt=("logits",),
    )


def _token_scores(alignment: losses.Alignment, scale: losses.ScoreScale) -> Subject:
    return Subject(
        name=f"token_scores {alignment} {scale}",
        fast=lambda s: losses.token_scores(s.logits, s.outcome, s.mask, alignment=alignment, scale=scale),
        slow=lambda s: slow.token_scores(s.logits, s.outcome, s.mask, alignment, scale),
        wrt=("logits",),
    )


def _weighted_nll(normalize: losses.NllNormalize) -> Subject:
    return Subject(
        name=f"weighted_nll {normalize}",
        fast=lambda s: losses.weighted_nll(s.new, s.advantages, s.mask, normalize=normalize),
        slow=lambda s: slow.weighted_nll(s.new, s.advantages, s.mask, normalize),
        wrt=("new",),
    )


def _clipped(dual: float | None) -> Subject:
    def rule(s: Any, i: int, t: int) -> float:
        return slow.clipped_surrogate(s.new[i][t], s.old[i][t], s.advantages[i][t], 0.2, 0.28, dual)

    return Subject(
        name=f"clipped_surrogate{' dual' if dual else ''}",
        fast=lambda s: losses.clipped_surrogate(
            s.new, s.old, s.advantages, clip_low=0.2, clip_high=0.28, dual_clip=dual
        ),
        slow=_tokens(rule),
        wrt=("new", "advantages"),
    )


def _sequence_clipped(ratio: losses.SequenceRatio) -> Subject:
    def rule(s: Any, i: int, t: int) -> float:
        row = slow.sequence_ratio(s.new[i], s.old[i], s.mask[i], ratio == "mean")
        return slow.surrogate_of_ratio(row, s.advantages[i][t], 0.2, 0.28)

    return Subject(
        name=f"sequence_clipped_surrogate {ratio}",
        fast=lambda s: losses.sequence_clipped_surrogate(
            s.new, s.old, s.advantages, s.mask, ratio=ratio, clip_low=0.2, clip_high=0.28
        ),
        slow=_tokens(rule),
        wrt=("new",),
    )


def _kl(estimator: losses.KLEstimator) -> Subject:
    return Subject(
        name=f"kl_estimate {estimator}",
        fast=lambda s: losses.kl_estimate(s.new, s.ref, estimator=estimator),
        slow=_tokens(lambda s, i, t: slow.kl(s.new[i][t], s.ref[i][t], estimator)),
        wrt=("new",),
    )


def _aggregate(normalize: losses.Normalize) -> Subject:
    return Subject(
        name=f"aggregate {normalize}",
        fast=lambda s: losses.aggregate(
            s.new, s.mask, normalize=normalize, tokens_total=70.0, sequences_total=11.0, constant=9.0
        ),
        slow=lambda s: slow.aggregate(s.new, s.mask, normalize, 70.0, 11.0, 9.0),
        wrt=("new",),
    )


def _pacs_scores(proxy: losses.PacsProxy, score: losses.PacsScore) -> Subject:
    return Subject(
        name=f"pacs_scores {proxy} {score}",
        fast=lambda s: losses.pacs_scores(s.new, s.ref, s.mask, s.group, beta=0.7, proxy=proxy, score=score),
        slow=lambda s: slow.pacs_scores(s.new, s.ref, s.mask, s.group, 0.7, proxy, score),
        wrt=("new",),
    )


def _pacs_weights(mode: losses.PacsWeight) -> Subject:
    return Subject(
        name=f"pacs_weights {mode}",
        fast=lambda s: losses.pacs_weights(s.labels, s.group, mode=mode),
        slow=lambda s: slow.pacs_weights(s.labels, s.group, mode),
    )


def check_function(subject: Subject, seed: int) -> Iterator[Finding]:
    """All checks of one function on one random sample."""
    sample = random_sample(seed)
    result = _seen(subject.fast(sample), sample.mask)
    definition = torch.tensor(subject.slow(_lists(sample)), dtype=torch.float64)
    yield Finding(subject.name, "definition", gap(result, definition))
    for name in subject.wrt:
        yield Finding(subject.name, "finite difference", _gradient_gap(subject, sample, name))
    garbage = replace(sample, **{name: with_garbage(getattr(sample, name), sample.mask) for name in FLOAT_GRIDS})
    yield Finding(subject.name, "garbage", gap(_seen(subject.fast(garbage), sample.mask), result))
    yield Finding(subject.name, "padding", _padding_gap(subject, sample, result))
    order = torch.randperm(len(sample.group), generator=torch.Generator().manual_seed(seed))
    moved = Sample(**{item.name: getattr(sample, item.name)[order] for item in fields(sample)})
    moved = replace(moved, group=1000 - 3 * moved.group)
    expected = result if result.dim() == 0 else result[order]
    yield Finding(subject.name, "row order", gap(_seen(subject.fast(moved), moved.mask), expected))


def _seen(result: Tensor, mask: Tensor) -> Tensor:
    """The result with what lies outside the mask, which nobody reads, set to 0."""
    return losses.keep(result, mask) if result.shape == mask.shape else result


def _lists(sample: Sample) -> SimpleNamespace:
    return SimpleNamespace(**{item.name: getattr(sample, item.name).tolist() for item in fields(sample)})


def _gradient_gap(subject: Subject, sample: Sample, name: str) -> float:
    leaf = getattr(sample, name).clone().requires_grad_()
    cotangent = torch.randn(subject.fast(sample).shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def scalar(x: Tensor) -> Tensor:
        return (_seen(subject.fast(replace(sample, **{name: x})), sample.mask) * cotangent).sum()

    (gradient,) = torch.autograd.grad(scalar(leaf), leaf)
    return gap(gradient, difference_quotient(scalar, leaf.detach()))


def _padding_gap(subject: Subject, sample: Sample, result: Tensor) -> float:
    wide = {name: pad(getattr(sample, name), (0, 3), value=float("nan")) for name in FLOAT_GRIDS if name != "logits"}
    wide["logits"] = pad(sample.logits, (0, 0, 0, 3), value=float("nan"))
    mask = pad(sample.mask, (0, 3), value=False)
    padded = _seen(subject.fast(replace(sample, **wide, mask=mask, step=pad(sample.step, (0, 3), value=-1))), mask)
    return gap(padded[:, : sample.mask.shape[1]] if padded.shape == mask.shape else padded, result)
