"""How a batch is cut: mini-batches of whole groups for optimizer steps, micro-batches for what memory holds at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmrl.batch import Batch
from llmrl.seeding import generator


def minibatches(batch: Batch, count: int, *, order: tuple[str | int, ...]) -> Iterator[Batch]:
    """`count` parts with whole groups, shuffled by the keyed `order`; the batch itself if `count` is 1."""
    if count == 1:
        yield batch
        return
    groups = batch.group.unique().tolist()
    generator(*order).shuffle(groups)
    for start in range(count):
        members = torch.tensor(groups[start::count], device=batch.group.device)
        yield batch.select(torch.isin(batch.group, members).nonzero().squeeze(1))


def microbatches(batch: Batch, *, budget: int, whole_groups: bool) -> list[Tensor]:
    """Row indices of each micro-batch: groups of similar length together, at most `budget` packed tokens each.

    A group larger than the budget is cut into runs of rows, unless `whole_groups`. A single row is never cut.
    """
    shared = batch.group if whole_groups else batch.prefixes
    lengths, prompts, groups = batch.length.tolist(), batch.prompt_length.tolist(), shared.tolist()
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    atoms: list[tuple[int, list[int]]] = []
    for rows in members.values():
        atoms += _atoms(rows, lengths, prompts, budget=budget if not whole_groups else None)
    atoms.sort(key=lambda atom: max(lengths[row] - prompts[row] for row in atom[1]))
    found: list[list[int]] = []
    room = 0
    for cost, rows in atoms:
        if not found or cost > room:
            found.append([])
            room = budget
        found[-1] += rows
        room -= cost
    return [torch.tensor(rows, device=batch.tokens.device) for rows in found]


def _atoms(
    rows: list[int], lengths: list[int], prompts: list[int], *, budget: int | None
) -> list[tuple[int, list[int]]]:
    atoms: list[tuple[int, list[int]]] = []
    for row in rows:
        own = lengths[row] - prompts[row]
        if atoms and (budget is None or atoms[-1][0] + own <= budget):
            cost, together = atoms[-1]
            atoms[-1] = (cost + own, [*together, row])
        else:
            atoms.append((prompts[row] + own, [row]))
    return atoms
