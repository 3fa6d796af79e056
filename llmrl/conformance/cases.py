"""Random batches with every awkward thing in them at once, for the checks here and for the tests.

Rows of a group are scattered, groups have different sizes (one of them a single row), completions differ in length,
some rows have an environment's tokens between two turns, and one row was dropped as an error: its mask is all False and
its score NaN. `garbage` fills every slot outside the mask with NaN and infinities.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from llmrl.batch import Batch, Output

GROUP_SIZES = (4, 4, 3, 1)
PER_TOKEN = (
    "logprobs", "rewards", "values", "ref_logprobs", "old_logprobs", "token_scores", "advantages", "returns",
)  # fmt: skip


def random_batch(
    seed: int, *, sizes: tuple[int, ...] = GROUP_SIZES, dtype: torch.dtype = torch.float64, graded: bool = False
) -> Batch:
    """A batch with all optional fields but credit; the last row of the first group is an error. Scores are 0 or 1, or
    any number if `graded`. The first group always holds a right and a wrong answer."""
    draw = torch.Generator().manual_seed(seed)
    rows, width = sum(sizes), 12
    order = torch.randperm(rows, generator=draw)
    group = torch.repeat_interleave(torch.tensor([7 * i + 3 for i in range(len(sizes))]), torch.tensor(sizes))
    length = torch.randint(6, width + 1, (rows,), generator=draw)
    score = torch.randint(0, 2, (rows,), generator=draw).to(dtype)
    score[0], score[1] = 1.0, 0.0
    if graded:
        score = torch.randn(rows, generator=draw, dtype=dtype)
    prompt = torch.full((rows,), 2)
    at = torch.arange(width).expand(rows, width)
    mask = (at >= prompt[:, None]) & (at < length[:, None])
    step = torch.where(mask, 0, -1)
    two_turns = torch.arange(rows) % 3 == 0
    mask = mask & ~(two_turns[:, None] & (at == 3))
    step = torch.where(two_turns[:, None] & (at > 3) & mask, 1, torch.where(mask, step, -1))
    dead = sizes[0] - 1
    if sizes[0] > 2:
        mask[dead], step[dead], score[dead] = False, -1, float("nan")
    last = mask & (at == length[:, None] - 1)
    floats: dict[str, Any] = {
        name: _logprobs(rows, width, draw, dtype) for name in ("logprobs", "ref_logprobs", "old_logprobs")
    }
    batch = Batch(
        tokens=torch.randint(0, 100, (rows, width), generator=draw),
        length=length,
        mask=mask,
        step=step,
        rewards=torch.where(last, score[:, None], torch.zeros((), dtype=dtype)),
        group=group,
        score=score,
        prompt_length=prompt,
        tokens_total=mask.sum().to(dtype),
        sequences_total=mask.any(dim=1).sum().to(dtype),
        values=torch.randn(rows, width, generator=draw, dtype=dtype),
        baseline=torch.full((rows,), 0.5, dtype=dtype),
        token_scores=torch.rand(rows, width, generator=draw, dtype=dtype) + 0.1,
        **floats,
    )
    return batch.select(order)


def random_output(batch: Batch, seed: int, *, spread: float = 0.4) -> Output:
    """The policy a little away from the batch's old log-probs: leaves with gradient, garbage-free."""
    draw = torch.Generator().manual_seed(seed)
    base = batch.logprobs if batch.old_logprobs is None else batch.old_logprobs
    noise = spread * torch.randn(base.shape, generator=draw, dtype=base.dtype)
    entropy = torch.rand(base.shape, generator=draw, dtype=base.dtype)
    values = torch.randn(base.shape, generator=draw, dtype=base.dtype)
    return Output(
        logprobs=(base + noise).requires_grad_(),
        entropy=entropy.requires_grad_(),
        values=values.requires_grad_(),
    )


def with_garbage(x: Tensor, mask: Tensor) -> Tensor:
    """`x` [B, T] or [B, T, K] with NaN, inf and -inf in turn outside `mask` [B, T]; keeps no gradient."""
    junk = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=x.dtype)
    pattern = junk[torch.arange(x.numel()) % 3].reshape(x.shape)
    return torch.where(mask.reshape(*mask.shape, *(1,) * (x.dim() - mask.dim())), x.detach(), pattern)


def garbage_batch(batch: Batch) -> Batch:
    """The batch with garbage in every per-token float field outside the mask."""
    present = {name: getattr(batch, name) for name in PER_TOKEN if getattr(batch, name) is not None}
    changed: dict[str, Any] = {name: with_garbage(x, batch.mask) for name, x in present.items()}
    return replace(batch, **changed)


def garbage_output(out: Output, mask: Tensor) -> Output:
    """New leaves like `out`'s, with garbage outside the mask."""
    tensors = {item.name: getattr(out, item.name) for item in fields(out)}
    return Output(**{name: with_garbage(x, mask).requires_grad_() for name, x in tensors.items() if x is not None})


def _logprobs(rows: int, width: int, draw: torch.Generator, dtype: torch.dtype) -> Tensor:
    return -torch.rand(rows, width, generator=draw, dtype=dtype) * 2
