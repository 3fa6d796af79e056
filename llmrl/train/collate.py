"""Trajectory -> Batch: ragged rows become padded tensors, scores become rewards, unusable rows lose their mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from llmrl.batch import Batch
from llmrl.types import Prompt, StatusKind, Trajectory

Reduce = Callable[[Tensor], Tensor]


def usable(trajectory: Trajectory, *, mask_truncated: bool) -> bool:
    """Whether a trajectory trains: it has a score, something was sampled, and it did not fail (or run out of room)."""
    kind = trajectory.status.kind
    if kind is StatusKind.ERROR or (mask_truncated and kind is StatusKind.TRUNCATED):
        return False
    return trajectory.reward is not None and trajectory.sampled > 0


def collate(
    trajectories: Sequence[Trajectory],
    *,
    mask_truncated: bool = False,
    privileged: Callable[[Prompt], tuple[int, ...]] | None = None,
) -> Batch:
    """Tensors of all trajectories, in their order; rows that are not `usable` have no mask and score NaN.

    `privileged` gives the tokens of a prompt that a separate value model reads before it, and nobody else.

    A truncated row that is masked keeps its score for its siblings' baseline only if it counts: it does not, as in
    DAPO's overlong filtering. Raises ValueError for no trajectories.
    """
    if not trajectories:
        raise ValueError("collate needs at least one trajectory")
    count, width = len(trajectories), max(t.length for t in trajectories)
    tokens = np.zeros((count, width), dtype=np.int64)
    mask = np.zeros((count, width), dtype=bool)
    logprobs = np.zeros((count, width), dtype=np.float32)
    step = np.full((count, width), -1, dtype=np.int64)
    rewards = np.zeros((count, width), dtype=np.float32)
    score = np.full(count, np.nan, dtype=np.float32)
    numbers: dict[str, int] = {}
    for row, trajectory in enumerate(trajectories):
        length = trajectory.length
        tokens[row, :length] = trajectory.tokens
        numbers.setdefault(trajectory.prompt.id, len(numbers))
        if not usable(trajectory, mask_truncated=mask_truncated):
            continue
        mask[row, :length] = trajectory.mask
        logprobs[row, :length] = trajectory.logprobs
        step[row, :length] = trajectory.step
        score[row] = trajectory.reward
        for number, one in enumerate(trajectory.scores):
            rewards[row, np.flatnonzero(trajectory.step == number)[-1]] = one.value
    batch = Batch(
        tokens=torch.from_numpy(tokens),
        length=torch.tensor([t.length for t in trajectories]),
        mask=torch.from_numpy(mask),
        logprobs=torch.from_numpy(logprobs),
        step=torch.from_numpy(step),
        rewards=torch.from_numpy(rewards),
        group=torch.tensor([numbers[t.prompt.id] for t in trajectories]),
        score=torch.from_numpy(score),
        prompt_length=torch.tensor([len(t.prompt.tokens) for t in trajectories]),
        tokens_total=torch.zeros(()),
        sequences_total=torch.zeros(()),
        privileged=None if privileged is None else _padded([privileged(t.prompt) for t in trajectories]),
    )
    return with_totals(batch, reduce=lambda total: total)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, in order; groups of different batches stay different. Totals are of the whole.

    Raises ValueError if an optional field is in some of them only.
    """
    width = max(batch.tokens.shape[1] for batch in batches)
    changes: dict[str, Tensor] = {}
    for item in fields(Batch):
        tensors = [getattr(batch, item.name) for batch in batches]
        there = [tensor for tensor in tensors if tensor is not None]
        if not there or there[0].dim() == 0:
            continue
        if len(there) < len(tensors):
            raise ValueError(f"{item.name} is in {len(there)} of {len(tensors)} batches only")
        fill = -1 if item.name == "step" else 0
        wide = [pad(x, (0, width - x.shape[1]), value=fill) if x.dim() == 2 else x for x in there]
        changes[item.name] = torch.cat(wide)
    sizes = [int(batch.group.max()) + 1 for batch in batches]
    changes["group"] = torch.cat([batch.group + sum(sizes[:n]) for n, batch in enumerate(batches)])
    return with_totals(replace(batches[0], **changes), reduce=lambda total: total)


def _padded(rows: Sequence[tuple[int, ...]]) -> Tensor:
    """[B, longest row] int64, -1 behind each row's end."""
    found = torch.full((len(rows), max(len(row) for row in rows)), -1)
    for number, row in enumerate(rows):
        found[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return found


def with_totals(batch: Batch, *, reduce: Reduce) -> Batch:
    """The batch as one update of its own: `tokens_total` and `sequences_total` summed over ranks by `reduce`."""
    totals = torch.stack([batch.mask.sum(), batch.mask.any(1).sum()]).to(torch.float32)
    tokens, sequences = reduce(totals).clamp_min(1).unbind()
    return replace(batch, tokens_total=tokens, sequences_total=sequences)
