"""Every public function of `llmrl.credit` and `llmrl.losses` against its slow definition and its invariances.

A subject names a function twice: as it is, on tensors, and by its definition, on lists. The checks follow from that:
definition, finite differences, garbage outside the mask, padding, row order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from llmrl import credit, losses
from llmrl.conformance import definitions as slow
from llmrl.conformance.cases import random_batch, with_garbage
from llmrl.conformance.measure import Finding, gap, gradient_gap


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
    fast: Callable[[Sample], Any]
    slow: Callable[[Any], Any]
    wrt: tuple[str, ...] = ()


def _subject(name: str, *arguments: str, wrt: tuple[str, ...] = (), **options: Any) -> Subject:
    """The function `name` of credit or losses on the sample's fields `arguments`; its definition has the same options."""
    home, definition = credit if hasattr(credit, name) else losses, getattr(slow, name)
    return Subject(
        name=" ".join([name, *(str(value) for value in options.values() if isinstance(value, str))]),
        fast=lambda s: getattr(home, name)(*(getattr(s, one) for one in arguments), **options),
        slow=lambda s: definition(*(getattr(s, one) for one in arguments), **options),
        wrt=wrt,
    )


def _part(subject: Subject, name: str, place: int) -> Subject:
    """One result of a function that gives several."""
    return replace(
        subject,
        name=f"{subject.name} {name}",
        fast=lambda s: subject.fast(s)[place],
        slow=lambda s: subject.slow(s)[place],
    )


def _of_tokens(name: str, *arguments: str, wrt: tuple[str, ...] = (), **options: Any) -> Subject:
    """The same for a function whose definition is about one token."""
    rule = getattr(slow, name)

    def definition(s: Any) -> slow.Grid:
        return slow.over(s.mask, lambda i, t: rule(*(getattr(s, one)[i][t] for one in arguments), **options))

    return replace(_subject(name, *arguments, wrt=wrt, **options), slow=definition)


def subjects() -> list[Subject]:
    """Every public function, the ones with named options once for each option."""
    return [*_credit_subjects(), *_loss_subjects(), *_pacs_subjects(), *_outcome_subjects()]


def _credit_subjects() -> list[Subject]:
    gae = _subject("gae", "rewards", "values", "mask", gamma=0.9, lam=0.8)
    step_gae = _subject("step_gae", "rewards", "values", "step", gamma=0.9, lam=0.8)
    return [
        *(
            _subject(name, "score", "group", wrt=("score",))
            for name in ("group_center", "group_zscore", "leave_one_out")
        ),
        *(_part(one, name, at) for one in (gae, step_gae) for at, name in enumerate(("advantages", "returns"))),
        _subject("discounted_returns", "rewards", "mask", gamma=0.9),
        _subject("whiten", "advantages", "mask", wrt=("advantages",), floor=1e-4),
    ]


def _loss_subjects() -> list[Subject]:
    ratio, clip = ("new", "old", "advantages"), {"clip_low": 0.2, "clip_high": 0.28}
    clipped = _of_tokens("clipped_surrogate", *ratio, wrt=("new", "advantages"), **clip)
    dual = _of_tokens("clipped_surrogate", *ratio, wrt=("new", "advantages"), **clip, dual_clip=2.5)
    totals = {"tokens_total": 70.0, "sequences_total": 11.0, "constant": 9.0}
    return [
        clipped,
        replace(dual, name=f"{dual.name} dual"),
        *(
            _subject("sequence_clipped_surrogate", *ratio, "mask", wrt=("new",), ratio=of, **clip)
            for of in ("mean", "sum")
        ),
        *(_of_tokens("kl_estimate", "new", "ref", wrt=("new",), estimator=k) for k in ("k1", "k2", "k3")),
        # its gradient in the log-probs is not its derivative: the weight has none
        _of_tokens("capped_reinforce", *ratio, wrt=("advantages",), ratio_cap=2.0),
        _of_tokens("clipped_value", "values", "old_values", "rewards", wrt=("values",), clip=0.2),
        _of_tokens("truncated_importance", "old", "new", cap=2.0),
        *(
            _subject("aggregate", "new", "mask", wrt=("new",), normalize=how, **totals)
            for how in ("token", "sequence", "constant")
        ),
    ]


def _pacs_subjects() -> list[Subject]:
    grids, options = (
        ("new", "ref", "mask", "group"),
        itertools.product(get_args(losses.PacsProxy), get_args(losses.PacsScore)),
    )
    return [
        *(
            _subject("pacs_scores", *grids, wrt=("new",), beta=0.7, proxy=proxy, score=score)
            for proxy, score in options
        ),
        *(_subject("pacs_weights", "labels", "group", mode=mode) for mode in get_args(losses.PacsWeight)),
        Subject(
            name="pacs_loss",
            fast=lambda s: losses.pacs_loss(s.psi, s.labels, losses.pacs_weights(s.labels, s.group)),
            slow=lambda s: slow.pacs_loss(s.psi, s.labels, slow.pacs_weights(s.labels, s.group, "question")),
            wrt=("psi",),
        ),
    ]


def _outcome_subjects() -> list[Subject]:
    options = itertools.product(get_args(losses.Alignment), get_args(losses.ScoreScale))
    read = ("logits", "outcome", "mask")
    return [
        *(_subject("pooled_logits", "logits", "mask", wrt=("logits",), pool=pool) for pool in get_args(losses.Pool)),
        *(_subject("token_scores", *read, wrt=("logits",), alignment=at, scale=scale) for at, scale in options),
        *(
            _subject("weighted_nll", "new", "advantages", "mask", wrt=("new",), normalize=way)
            for way in get_args(losses.NllNormalize)
        ),
    ]


def check_function(subject: Subject, seed: int) -> Iterator[Finding]:
    """All checks of one function on one random sample."""
    sample = random_sample(seed)
    result = _seen(subject.fast(sample), sample.mask)
    definition = torch.tensor(subject.slow(_lists(sample)), dtype=torch.float64)
    yield Finding(subject.name, "definition", gap(result, definition))
    for name in subject.wrt:
        seen = partial(_changed, subject, sample, name)
        yield Finding(subject.name, "finite difference", gradient_gap(seen, getattr(sample, name)))
    garbage = replace(sample, **{name: with_garbage(getattr(sample, name), sample.mask) for name in FLOAT_GRIDS})
    yield Finding(subject.name, "garbage", gap(_seen(subject.fast(garbage), sample.mask), result))
    yield Finding(subject.name, "padding", _padding_gap(subject, sample, result))
    order = torch.randperm(len(sample.group), generator=torch.Generator().manual_seed(seed))
    moved = Sample(**{item.name: getattr(sample, item.name)[order] for item in fields(sample)})
    moved = replace(moved, group=1000 - 3 * moved.group)
    expected = result if result.dim() == 0 else result[order]
    yield Finding(subject.name, "row order", gap(_seen(subject.fast(moved), moved.mask), expected))


def _changed(subject: Subject, sample: Sample, name: str, x: Tensor) -> Tensor:
    """The result with another field of the sample."""
    return _seen(subject.fast(replace(sample, **{name: x})), sample.mask)


def _seen(result: Tensor, mask: Tensor) -> Tensor:
    """The result with what lies outside the mask, which nobody reads, set to 0."""
    return losses.keep(result, mask) if result.shape == mask.shape else result


def _lists(sample: Sample) -> SimpleNamespace:
    return SimpleNamespace(**{item.name: getattr(sample, item.name).tolist() for item in fields(sample)})


def _padding_gap(subject: Subject, sample: Sample, result: Tensor) -> float:
    wide = {name: pad(getattr(sample, name), (0, 3), value=float("nan")) for name in FLOAT_GRIDS if name != "logits"}
    wide["logits"] = pad(sample.logits, (0, 0, 0, 3), value=float("nan"))
    mask = pad(sample.mask, (0, 3), value=False)
    padded = _seen(subject.fast(replace(sample, **wide, mask=mask, step=pad(sample.step, (0, 3), value=-1))), mask)
    return gap(padded[:, : sample.mask.shape[1]] if padded.shape == mask.shape else padded, result)
