"""Every algorithm against the properties that all of them must have, from credit to loss, on awkward batches.

garbage            NaN and infinities outside the mask change neither the loss, nor a metric, nor a gradient
micro-batches      losses, metrics and gradients of micro-batches (whole groups, if it says so) sum to the whole
ranks              credit and loss of two ranks, each with its own groups, sum to those of one
row order          rows in another order, groups under other numbers: same loss and gradients
padding            columns of padding change nothing
finite difference  the gradient is the loss's derivative
direction          on policy, every token of a right answer gets likelier and every token of a wrong one less likely
extreme            log-ratios of 1e5 nats in float32 leave loss, metrics and gradients finite
no row             a micro-batch in which no row counts has loss 0 and gradient 0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from llmrl.algos import ALGORITHMS, PRESETS
from llmrl.batch import Algorithm, Batch, Loss, Output
from llmrl.conformance.cases import PER_TOKEN, garbage_batch, garbage_output, random_batch, random_output
from llmrl.conformance.measure import Finding, difference_quotient, gap
from llmrl.importing import load
from llmrl.train.collate import joined

# Fields without which a method or preset does not run, or does not show what it can do.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dr_grpo": ("dr_grpo", {"constant_tokens": 12}),
    "grpo, every term": (
        "grpo",
        {"kl_coef": 0.1, "entropy_coef": 0.01, "dual_clip": 3.0, "normalize": "sequence"},
    ),
    "rloo, KL": ("rloo", {"kl_coef": 0.05, "entropy_coef": 0.01}),
    "gspo, every term": ("gspo", {"kl_coef": 0.1, "entropy_coef": 0.01, "importance_cap": 2.0}),
    "cispo, every term": ("cispo", {"kl_coef": 0.1, "entropy_coef": 0.01, "importance_cap": 2.0}),
    "reinforce_pp, KL": ("reinforce_pp", {"kl_coef": 0.01, "gamma": 0.99}),
    "reinforce_pp_baseline, KL": ("reinforce_pp_baseline", {"kl_coef": 0.01}),
    "ppo, every term": (
        "ppo",
        {"kl_coef": 0.1, "entropy_coef": 0.01, "lam_critic": 1.0, "lam_alpha": 0.5, "dual_clip": 3.0, "gamma": 0.99},
    ),
    "ppo, KL in the loss": (
        "ppo",
        {
            "kl_coef": 0.1,
            "kl_in": "loss",
            "kl_estimator": "k3",
            "value_clip": None,
            "whiten_advantages": False,
        },
    ),
    "coderl, every term": (
        "coderl",
        {"baseline": "leave_one_out", "weights": "linear", "kl_coef": 0.1, "entropy_coef": 0.01, "normalize": "sum"},
    ),
    "coderl, no baseline": (
        "coderl",
        {"baseline": "none", "weights": "uniform", "negative_coef": 0.5, "normalize": "sequence"},
    ),
    "coderl, clipped": ("coderl", {"baseline": "group_mean", "clip": 0.2}),
    "pacs, reference model": ("pacs", {"reference": "model", "weight": "none"}),
    "pacs, naive score": ("pacs", {"score": "naive", "weight": "only_positive", "reference": "model"}),
    "pacs, mean log-prob": ("pacs", {"proxy": "mean_logprob", "weight": "only_negative"}),
    "pacs, grpo score": ("pacs", {"score": "grpo", "beta": 0.5}),
    "pacs, score function": ("pacs", {"score_function": True, "score": "drgrpo"}),
}
# The weight of CISPO and of PACS's extra term has no gradient by design, so the loss's derivative is another.
STOPPED = {"cispo", "cispo, every term", "pacs, score function"}
# A constant advantage is not what these judge by: a critic, a batch baseline or an all-down term can outweigh it, and
# without any baseline a score of 0 teaches nothing.
OTHER_DIRECTION = {"ppo", "ppo, every term", "ppo, KL in the loss", "reinforce_pp", "reinforce_pp, KL"}
OTHER_DIRECTION |= {"pacs, score function", "pacs, naive score", "pacs, mean log-prob", "coderl, no baseline"}
OTHER_DIRECTION |= {"sft", "critique_rl", "vl_dac", "rl4vlm"}  # all down or all alike is not what they learn from


def build(name: str, **changes: Any) -> Algorithm:
    """The algorithm or preset `name` with fields changed."""
    method, preset = PRESETS.get(name, (name, {}))
    algo: Algorithm = load(ALGORITHMS[method])(**{**preset, **changes})
    return algo


def algorithms() -> dict[str, Algorithm]:
    """Every registered method and preset, some with more of their terms switched on."""
    plain = {name: build(name) for name in [*ALGORITHMS, *PRESETS] if name not in VARIANTS}
    return plain | {name: build(base, **changes) for name, (base, changes) in VARIANTS.items()}


def check_algorithm(name: str, algo: Algorithm, seed: int) -> Iterator[Finding]:
    """All checks of one algorithm on one random batch."""
    checks: dict[str, Callable[[Algorithm, int], float]] = {
        "garbage": garbage,
        "micro-batches": micro_batches,
        "ranks": ranks,
        "row order": row_order,
        "padding": padding,
        "extreme": extreme,
        "no row": no_row,
    }
    if name not in STOPPED:
        checks["finite difference"] = finite_difference
    if name not in OTHER_DIRECTION:
        checks["direction"] = direction
    for check, measure in checks.items():
        yield Finding(name, check, measure(algo, seed))


def garbage(algo: Algorithm, seed: int) -> float:
    batch = random_batch(seed)
    out = random_output(batch, seed)
    loss, gradients = _run(algo, out, algo.credit(batch))
    dirty_out = garbage_output(out, batch.mask)
    dirty, dirty_gradients = _run(algo, dirty_out, garbage_batch(algo.credit(garbage_batch(batch))))
    outside = max(g[~batch.mask].abs().max().item() for g in dirty_gradients)
    return max(outside, _loss_gap(dirty, loss), *_gaps(dirty_gradients, gradients))


def micro_batches(algo: Algorithm, seed: int) -> float:
    batch = algo.credit(random_batch(seed))
    out = random_output(batch, seed)
    loss, gradients = _run(algo, out, batch)
    if algo.needs.whole_groups:
        pieces = [(batch.group == g).nonzero()[:, 0] for g in batch.group.unique()]
    else:
        order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(seed))
        pieces = list(order.split([1, 4, batch.rows - 5]))
    value, metrics = torch.zeros((), dtype=torch.float64), dict.fromkeys(loss.metrics, 0.0)
    summed = [torch.zeros_like(g) for g in gradients]
    for rows in pieces:
        micro = batch.select(rows)
        share, parts = _run(algo, _select(out, rows, micro.mask.shape[1]), micro)
        value = value + share.value.detach()
        metrics = {key: metrics[key] + metric.item() for key, metric in share.metrics.items()}
        for total, part in zip(summed, parts, strict=True):
            total[rows, : part.shape[1]] += part
    whole = Loss(value=value, metrics={key: torch.tensor(x, dtype=torch.float64) for key, x in metrics.items()})
    return max(_loss_gap(whole, loss), *_gaps(summed, gradients))


def ranks(algo: Algorithm, seed: int) -> float:
    batch = random_batch(seed)
    out = random_output(batch, seed)
    loss, gradients = _run(algo, out, algo.credit(batch))
    numbers = batch.group.unique()
    halves = [torch.isin(batch.group, numbers[rank::2]).nonzero()[:, 0] for rank in (0, 1)]
    parts = [batch.select(rows) for rows in halves]
    if algo.needs.whole_batch:
        together = algo.credit(joined(parts))
        places = torch.arange(batch.rows).split([len(rows) for rows in halves])
        credited = [together.select(at) for at in places]
        parts = [
            replace(part, advantages=own.advantages, returns=own.returns)
            for part, own in zip(parts, credited, strict=True)
        ]
    else:
        parts = [algo.credit(part) for part in parts]
    value, summed = 0.0, [torch.zeros_like(g) for g in gradients]
    for rows, part in zip(halves, parts, strict=True):
        share, own_gradients = _run(algo, _select(out, rows, part.mask.shape[1]), part)
        value += share.value.item()
        for total, gradient in zip(summed, own_gradients, strict=True):
            total[rows, : gradient.shape[1]] += gradient
    return max(gap(torch.tensor(value, dtype=torch.float64), loss.value.detach()), *_gaps(summed, gradients))


def row_order(algo: Algorithm, seed: int) -> float:
    batch = random_batch(seed)
    out = random_output(batch, seed)
    loss, gradients = _run(algo, out, algo.credit(batch))
    order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(seed))
    moved = batch.select(order)
    moved = replace(moved, group=1000 - 3 * moved.group)
    moved_loss, moved_gradients = _run(algo, _select(out, order, moved.mask.shape[1]), algo.credit(moved))
    width = moved.mask.shape[1]
    return max(_loss_gap(moved_loss, loss), *_gaps(moved_gradients, [g[order][:, :width] for g in gradients]))


def padding(algo: Algorithm, seed: int) -> float:
    batch = random_batch(seed)
    out = random_output(batch, seed)
    loss, gradients = _run(algo, out, algo.credit(batch))
    grids = [name for name in PER_TOKEN if getattr(batch, name) is not None]
    wider: dict[str, Any] = {name: pad(getattr(batch, name), (0, 3)) for name in grids}
    wide = replace(
        batch,
        tokens=pad(batch.tokens, (0, 3)),
        mask=pad(batch.mask, (0, 3)),
        step=pad(batch.step, (0, 3), value=-1),
        **wider,
    )
    wide_out = Output(**{name: pad(x.detach(), (0, 3)).requires_grad_() for name, x in _leaves(out).items()})
    wide_loss, wide_gradients = _run(algo, wide_out, algo.credit(wide))
    return max(_loss_gap(wide_loss, loss), *_gaps([g[:, :-3] for g in wide_gradients], gradients))


def finite_difference(algo: Algorithm, seed: int) -> float:
    batch = algo.credit(random_batch(seed))
    out = random_output(batch, seed)
    _, gradients = _run(algo, out, batch)
    worst = 0.0
    for (name, leaf), gradient in zip(_leaves(out).items(), gradients, strict=True):
        worst = max(worst, gap(gradient, difference_quotient(_value_at(algo, out, batch, name), leaf.detach())))
    return worst


def _value_at(algo: Algorithm, out: Output, batch: Batch, name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: algo.loss(replace(out, **{name: x}), batch).value.detach()


def direction(algo: Algorithm, seed: int) -> float:
    """The share of tokens that would move the wrong way, in the first group, which holds right and wrong answers."""
    batch = random_batch(seed)
    batch = algo.credit(replace(batch, ref_logprobs=batch.old_logprobs))  # no KL pulls anywhere
    out = random_output(batch, seed, spread=0.0)  # on policy, so that nothing is clipped
    (gradient,) = torch.autograd.grad(algo.loss(out, batch).value, [out.logprobs])
    first = (batch.group == 3)[:, None] & batch.mask
    wrong_way = torch.where((batch.score == 1)[:, None], gradient >= 0, gradient <= 0)
    return wrong_way[first].double().mean().item()


def extreme(algo: Algorithm, seed: int) -> float:
    worst = 0.0
    for spread in (1e2, 1e5):
        batch = algo.credit(random_batch(seed, dtype=torch.float32))
        loss, gradients = _run(algo, random_output(batch, seed, spread=spread), batch)
        finite = all(torch.isfinite(x).all() for x in (loss.value, *loss.metrics.values(), *gradients))
        worst = worst if finite else float("inf")
    return worst


def no_row(algo: Algorithm, seed: int) -> float:
    batch = algo.credit(random_batch(seed))
    dead = batch.select((~batch.mask.any(dim=1)).nonzero()[:, 0])
    loss, gradients = _run(algo, random_output(dead, seed), dead)
    zero = Loss(value=torch.zeros_like(loss.value), metrics={k: torch.zeros_like(x) for k, x in loss.metrics.items()})
    return max(_loss_gap(loss, zero), *(g.abs().max().item() for g in gradients))


def _leaves(out: Output) -> dict[str, Tensor]:
    present = {item.name: getattr(out, item.name) for item in fields(out)}
    return {name: x for name, x in present.items() if x is not None}


def _run(algo: Algorithm, out: Output, batch: Batch) -> tuple[Loss, list[Tensor]]:
    """The loss and its gradients in all of `out`, zeros for what it does not use."""
    loss = algo.loss(out, batch)
    leaves = list(_leaves(out).values())
    gradients = torch.autograd.grad(loss.value, leaves, allow_unused=True)
    return loss, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]


def _select(out: Output, rows: Tensor, width: int) -> Output:
    return Output(**{name: x.detach()[rows][:, :width].requires_grad_() for name, x in _leaves(out).items()})


def _gaps(got: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [gap(a, b) for a, b in zip(got, expected, strict=True)]


def _loss_gap(got: Loss, expected: Loss) -> float:
    if got.metrics.keys() != expected.metrics.keys():
        return float("inf")
    metrics = [gap(got.metrics[name], x) for name, x in expected.metrics.items()]
    return max(gap(got.value.detach(), expected.value.detach()), *metrics)
