"""CPU cores that several processes share: a fluid, in which everyone who computes gets an equal part of what he wants.

If the threads that want to run are no more than the cores, each runs at full speed. If there are more, every process gets
the same share of its wish, and is slowed down by Amdahl's law. What threads lose by waiting for one another at barriers
when there are more of them than cores is not in here.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from llmrl.scale.costs import slowdown


@dataclass(slots=True, eq=False)
class _Work:
    left_s: float  # with all the cores it wants
    wants: int
    serial: float
    done: Any


class SharedCores:
    """`count` cores in the simpy environment `env`."""

    def __init__(self, env: Any, count: int) -> None:
        self._env = env
        self._count = count
        self._running: list[_Work] = []
        self._since = 0.0
        self._turn = 0

    def work(self, seconds: float, *, wants: int, serial: float) -> Generator[Any, Any, None]:
        """A simpy process: work that takes `seconds` on `wants` cores of its own."""
        mine = _Work(seconds, wants, serial, self._env.event())
        self._advance()
        self._running.append(mine)
        self._plan()
        yield mine.done

    def _rate(self, work: _Work) -> float:
        wanted = sum(other.wants for other in self._running)
        share = work.wants * min(1.0, self._count / wanted)
        return 1 / slowdown(share, work.wants, work.serial)

    def _advance(self) -> None:
        """Take off what was done since the last look."""
        passed, self._since = self._env.now - self._since, self._env.now
        rates = [self._rate(work) for work in self._running]
        for work, rate in zip(self._running, rates, strict=True):
            work.left_s -= passed * rate

    def _plan(self) -> None:
        """Wake up when the first one will be done, unless something changes before."""
        self._turn += 1
        if self._running:
            wait = min(max(0.0, work.left_s) / self._rate(work) for work in self._running)
            self._env.process(self._finish(self._turn, wait))

    def _finish(self, turn: int, wait: float) -> Generator[Any, Any, None]:
        yield self._env.timeout(wait)
        if turn != self._turn:
            return
        self._advance()
        first = min(self._running, key=lambda work: work.left_s / self._rate(work))
        done = [work for work in self._running if work is first or work.left_s <= 1e-12]
        self._running = [work for work in self._running if work not in done]
        for work in done:
            work.done.succeed()
        self._plan()
