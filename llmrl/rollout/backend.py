"""What an engine must be for `pool.EnginePool`: the protocol, and what its implementations share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from llmrl.rollout.engine import ChecksumRequest
from llmrl.types import Completion, Request

Put = Callable[[int, Completion], None]  # the place of a request in its piece, and its completion


class Lost(Exception):
    """An engine died, hung, or cannot answer now; the message says how."""


class Backend(Protocol):
    """One engine of a pool. Its methods raise Lost if it is gone, and EngineError for what no other engine would mend."""

    name: str  # in messages
    at_once: int | None  # requests under way, None for any number
    watched: bool  # whether `healthy` answers while it works

    def piece(self, waiting: int, members: int) -> int:
        """How many requests to take when `waiting` wait and `members` share them; 1 is one group of siblings."""
        ...

    async def start(self) -> None: ...

    async def run(self, requests: Sequence[Request], put: Put) -> None: ...

    async def healthy(self, timeout_s: float) -> None: ...

    async def restart(self) -> None:
        """Begin to start again, if that is ours to do; `healthy` says when it is there."""
        ...

    async def load(self, version: int) -> None:
        """Take the weights that the pool's store holds."""
        ...

    async def checksums(self, request: ChecksumRequest) -> dict[str, int]: ...

    async def close(self) -> None: ...


def said(error: BaseException) -> str:
    """An error in words, whether or not it has any of its own."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def together(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """All of `work` at once; the first error ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
