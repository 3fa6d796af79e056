"""Engines for an evaluation: several of this machine, or servers that are there, behind one engine pool.

One engine per device. One that dies is left out and its unfinished requests go to the others; when none is left, EngineError.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from llmrl.errors import EngineError, EvalError
from llmrl.rollout.backend import Lost, Put
from llmrl.rollout.engine import ChecksumRequest, StreamingEngine
from llmrl.rollout.pool import EnginePool
from llmrl.types import Request


def fleet(engines: Sequence[StreamingEngine], *, batch: int = 128, say: Callable[[str], None] = print) -> EnginePool:
    """`engines` hold the same weights. `batch` is how many requests one engine runs at once; `say` hears of deaths."""
    return EnginePool([LocalEngine(one, name=f"engine-{i}", batch=batch) for i, one in enumerate(engines)], say=say)


class LocalEngine:
    """An engine driven from a thread of its own. Pieces shrink towards the end, so that all finish at about the same time."""

    watched = False

    def __init__(self, engine: StreamingEngine, *, name: str, batch: int) -> None:
        self.name = name
        self.at_once: int | None = batch
        self._engine, self._batch = engine, batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def piece(self, waiting: int, members: int) -> int:
        return max(self._batch, waiting // (2 * members))

    async def start(self) -> None:
        pass

    async def run(self, requests: Sequence[Request], put: Put) -> None:
        loop, ended = asyncio.get_running_loop(), threading.Event()

        def drive() -> None:
            for item in self._engine.stream(requests):
                if ended.is_set():
                    return
                if item is not None:
                    loop.call_soon_threadsafe(put, *item)

        try:
            await loop.run_in_executor(self._thread, drive)
        except EngineError as error:
            raise Lost(str(error)) from error
        finally:
            ended.set()

    async def healthy(self, timeout_s: float) -> None:
        pass

    async def restart(self) -> None:
        pass

    async def load(self, version: int) -> None:
        raise EngineError(f"{self.name} takes no weights")

    async def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        raise EngineError(f"{self.name} shows no weights")

    async def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._engine.close()


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
