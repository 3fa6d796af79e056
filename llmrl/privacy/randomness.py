"""Where noise and samples come from.

`SecureSource` reads the operating system's generator: nothing is stored, so that no draw can be repeated, not even by a
run that was resumed, and the recipe's seed, which is public, says nothing of the noise or of who was drawn. `SeededSource`
repeats itself; it is for tests and comparisons, and a run that uses it has no guarantee.

Both add noise in floating point. The attack on the low bits of such noise (Mironov 2012) is out of scope: what is
released is a sum over many coordinates, rounded to float32 and passed through an optimizer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmrl.seeding import key
from llmrl.types import Prompt

CHUNK = 1 << 20


class Source(Protocol):
    """Random numbers, each draw named by its step and by what it is for."""

    @property
    def secure(self) -> bool:
        """Whether an observer who knows the recipe can say nothing of the draws."""
        ...

    def normal(self, size: int, *, step: int, name: str) -> Tensor:
        """[size] float32, standard normal."""
        ...

    def uniform(self, size: int, *, step: int, name: str) -> Tensor:
        """[size] float64 in [0, 1)."""
        ...


class SecureSource:
    """Draws of the operating system's generator; `step` and `name` are not used."""

    secure = True

    def normal(self, size: int, *, step: int, name: str) -> Tensor:
        """[size] float32, standard normal, by Box and Muller's transform of 53-bit numbers."""
        found = torch.empty(size)
        for start in range(0, size, CHUNK):
            part = found[start : start + CHUNK]
            half = (len(part) + 1) // 2
            radius = (-2 * (1 - _uniform(half)).log()).sqrt()  # 1 - u is never 0
            angle = 2 * math.pi * _uniform(half)
            part.copy_(torch.cat([radius * angle.cos(), radius * angle.sin()])[: len(part)])
        return found

    def uniform(self, size: int, *, step: int, name: str) -> Tensor:
        """[size] float64 in [0, 1)."""
        return _uniform(size)


def _uniform(size: int) -> Tensor:
    if size == 0:
        return torch.empty(0, dtype=torch.float64)
    bits = torch.frombuffer(bytearray(os.urandom(8 * size)), dtype=torch.int64)
    return (bits & ((1 << 53) - 1)).double() * 2.0**-53


class SeededSource:
    """Draws keyed by (seed, step, name): the same in every run."""

    secure = False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def normal(self, size: int, *, step: int, name: str) -> Tensor:
        """[size] float32, standard normal."""
        return torch.randn(size, generator=self._generator("normal", step, name))

    def uniform(self, size: int, *, step: int, name: str) -> Tensor:
        """[size] float64 in [0, 1)."""
        return torch.rand(size, generator=self._generator("uniform", step, name), dtype=torch.float64)

    def _generator(self, kind: str, step: int, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(key(self._seed, "privacy", kind, step, name))


class PoissonStream:
    """The prompts of each step, drawn anew at every call; a record is a tuple of prompts, all drawn or none."""

    def __init__(self, records: Sequence[tuple[Prompt, ...]], *, source: Source, q: float) -> None:
        self._records, self._source, self._q = tuple(records), source, q

    def at(self, step: int) -> list[Prompt]:
        """Each record's prompts with probability q; often none at all."""
        drawn = poisson_sample(self._source, records=len(self._records), q=self._q, step=step)
        return [prompt for index in drawn for prompt in self._records[index]]


def poisson_sample(source: Source, *, records: int, q: float, step: int) -> list[int]:
    """The records of a step: each one by itself with probability `q`. Often fewer or more than expected, or none."""
    drawn = source.uniform(records, step=step, name="sample") < q
    return drawn.nonzero().squeeze(1).tolist()
