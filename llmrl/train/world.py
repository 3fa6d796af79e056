"""The processes of one run: sums and gathers over ranks, through accelerate. With one process all of it is the identity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Rank and size of this process's group, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over ranks, in place; returns it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, items: list[T]) -> list[T]:
        """Every rank's items, in rank order, on every rank."""
        if self.size == 1:
            return items
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, items)
        return [item for part in found for item in part]

    def sum_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Add up metrics by name over ranks; a rank may lack some."""
        total: Counter[str] = Counter()
        for part in self.gather([dict(metrics)]):
            total.update(part)
        return dict(total)

    def any(self, flag: bool) -> bool:
        """True if `flag` is on any rank."""
        return any(self.gather([flag]))

    def barrier(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()

    def share(self, items: list[T]) -> list[T]:
        """This rank's items: every size-th one."""
        return items[self.rank :: self.size]
