"""Several engines as one: each takes the next piece of work as it finishes the last (data parallel evaluation).

One engine per device. Pieces shrink towards the end, so that all finish at about the same time. An engine that dies is
left out and its unfinished requests go to the others; when none is left, EngineError.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from llmrl.errors import EngineError, EvalError
from llmrl.rollout.engine import StreamingEngine, collect
from llmrl.types import Completion, Request

if TYPE_CHECKING:
    from torch import Tensor

Item = tuple[int, Completion] | None | Exception  # a completion, a sign of life, or why one engine is gone


class Fleet:
    """`engines` hold the same weights. `batch` is how many requests one engine runs at once; `say` hears of deaths."""

    def __init__(
        self, engines: Sequence[StreamingEngine], *, batch: int = 128, say: Callable[[str], None] = print
    ) -> None:
        self._engines = list(engines)
        self._batch = batch
        self._say = say

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        """Completions as they arrive. EngineError once every engine is gone."""
        work = _Work(len(requests), engines=len(self._engines), batch=self._batch)
        arrived: queue.SimpleQueue[Item] = queue.SimpleQueue()
        threads = [
            threading.Thread(target=_serve, args=(engine, requests, work, arrived), name="fleet", daemon=True)
            for engine in self._engines
        ]
        for thread in threads:
            thread.start()
        left, gone = len(requests), 0
        try:
            while left:
                item = arrived.get()
                if isinstance(item, Exception):
                    gone += 1
                    if gone == len(threads) or not isinstance(item, EngineError):
                        raise item
                    self._say(f"one of {len(threads)} engines is gone, the others go on: {item}")
                else:
                    left -= item is not None
                    yield item
            for thread in threads:
                thread.join()
        finally:
            work.close()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return collect(self, requests)

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        kept = list(weights)
        for engine in self._engines:
            engine.load(kept, version=version)

    def close(self) -> None:
        for engine in self._engines:
            engine.close()


class _Work:
    """Places of requests that wait for an engine. `take` waits while others might still give theirs back."""

    def __init__(self, count: int, *, engines: int, batch: int) -> None:
        self._waiting = deque(range(count))
        self._open = count  # not finished
        self._engines, self._batch = engines, batch
        self._changed = threading.Condition()

    def take(self) -> list[int]:
        """The next piece; nothing when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._open <= 0)
            size = max(self._batch, len(self._waiting) // (2 * self._engines)) if self._open > 0 else 0
            return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]

    def finished(self) -> None:
        with self._changed:
            self._open -= 1
            if self._open <= 0:
                self._changed.notify_all()

    def give_back(self, places: Iterable[int]) -> None:
        with self._changed:
            self._waiting.extend(places)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._open = 0
            self._waiting.clear()
            self._changed.notify_all()


def _serve(engine: StreamingEngine, requests: Sequence[Request], work: _Work, arrived: queue.SimpleQueue[Item]) -> None:
    while places := work.take():
        mine = dict(enumerate(places))
        try:
            for item in engine.stream([requests[place] for place in places]):
                if item is None:
                    arrived.put(None)
                    continue
                work.finished()
                arrived.put((mine.pop(item[0]), item[1]))
        except Exception as error:  # noqa: BLE001 - a thread's border: counted or raised again where it is read
            work.give_back(mine.values())
            arrived.put(error)
            return


def devices() -> int:
    """How many engines fit this machine: one per GPU that this process may see, else one."""
    import torch

    return max(1, torch.cuda.device_count())


def environments(count: int) -> list[dict[str, str]]:
    """For each of `count` engines the variables that give it its own GPUs, or on a CPU its own cores.

    EvalError if there are fewer of them than engines.
    """
    import torch

    if torch.cuda.device_count():
        own = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in _shares(own.split(","), count, "GPUs")]
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    return [
        {"OMP_NUM_THREADS": str(len(part)), "VLLM_CPU_OMP_THREADS_BIND": ",".join(part)}
        for part in _shares(cores, count, "CPU cores")
    ]


def _shares(items: Sequence[str], count: int, what: str) -> list[Sequence[str]]:
    if count > len(items):
        raise EvalError(f"engines={count}, but this process may use {len(items)} {what}; ask for at most as many")
    return [items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)]
