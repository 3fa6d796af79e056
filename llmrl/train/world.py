"""The processes of one run: sums and gathers over ranks, through accelerate. With one process all of it is the identity."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from llmrl.errors import RankLost

CPU = torch.device("cpu")
T = TypeVar("T")


@contextmanager
def _together() -> Iterator[None]:
    """Turn the backend's errors into RankLost."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            f"another process of this run died or hung ({str(error).splitlines()[0]}); its own output says why. "
            "Continue with --resume"
        ) from error


@contextmanager
def collective() -> Iterator[None]:
    """Turn the backend's errors into RankLost, in code that may fail for reasons of its own too."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and not re.search("gloo|nccl", str(error), re.IGNORECASE):
            raise
        with _together():
            raise


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
        """Sum `tensor` over ranks, in place, by way of the group's device; returns it."""
        if self.size > 1:
            shared = tensor.to(self.device)
            with _together():
                torch.distributed.all_reduce(shared)
            if shared is not tensor:
                tensor.copy_(shared)
        return tensor

    def max(self, number: int) -> int:
        """The largest `number` of any rank."""
        return max(self.gather([number]))

    def gather_tensor(self, tensor: Tensor) -> Tensor:
        """Every rank's `tensor` [N], one after another: [size * N]. All must have the same length."""
        if self.size == 1:
            return tensor
        everything = tensor.new_empty(self.size * tensor.numel())
        with _together():
            torch.distributed.all_gather_into_tensor(everything, tensor)
        return everything

    def gather(self, items: list[T]) -> list[T]:
        """Every rank's items, in rank order, on every rank."""
        if self.size == 1:
            return items
        found: list[Any] = [None] * self.size
        with _together():
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

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work()` gives on rank 0, on every rank. If it raises there, the other ranks raise RankLost."""
        results: list[T] = []
        try:
            if self.main:
                results = [work()]
        finally:
            shared = self.gather(results)
        if not shared:
            raise RankLost("the first process of this run failed; its own output says why")
        return shared[0]

    def leave(self) -> None:
        """Wait for every rank, then close their connections: a rank that ends early must not break them for the others."""
        if self.size > 1:
            with _together():
                torch.distributed.barrier()
                torch.distributed.destroy_process_group()

    def share(self, items: list[T]) -> list[T]:
        """This rank's items: every size-th one."""
        return items[self.rank :: self.size]
