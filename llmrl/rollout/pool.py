"""Several engines as one: least-loaded routing, lost work done by others, versioned weights that must agree.

`EnginePool` is the one engine over backends (backend.py): vLLM servers (servers.py), Ray actors (ray_pool.py), and
engines of this machine (llmrl.eval.fleet). Its coroutines run on a thread of their own; every wait has a deadline. A piece
of work is a group of siblings, so that they share a prefix cache, or as many groups as a member asks for.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from llmrl.errors import EngineError
from llmrl.rollout.backend import Backend, Lost, said, together
from llmrl.rollout.engine import ChecksumRequest, collect, refuse_media
from llmrl.rollout.process import EngineFaults
from llmrl.rollout.transfer import WeightStore
from llmrl.types import Completion, Request

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
HEALTH_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Deadlines in seconds, and how often a member may be lost between two `take_faults`."""

    stall_s: float = 120.0  # a member that does not answer a health check
    update_s: float = 300.0  # new weights
    start_s: float = 600.0  # a member that comes back
    max_restarts: int = 3


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """A backend and what the pool knows of it."""

    backend: Backend
    in_flight: int = 0
    up: bool = True
    why: str = ""
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def room(self) -> bool:
        at_once = self.backend.at_once
        return self.up and (at_once is None or self.in_flight + self.backend.piece(0, 1) <= at_once)


class EnginePool:
    """Engine over `backends`, whose new weights lie in `store` (None: they take none).

    Without `patience` a lost member is left out and `say` hears of it; with it members come back, restarted or by
    themselves, with the newest weights. EngineError if none is left or comes back in time, if one refuses a request, or
    if new weights did not arrive.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        store: WeightStore | None = None,
        *,
        patience: Patience | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.members = [Member(backend=backend) for backend in backends]
        self._store, self._say = store, say
        self._patience, self._come_back = patience or Patience(), patience is not None
        self._version: int | None = None  # of the weights that the members should have; None before the first
        self._shown: tuple[ChecksumRequest, dict[str, int]] | None = (
            None  # what the members showed of the newest weights
        )
        self._restarts = self._regenerated = 0
        self._changed = asyncio.Event()  # something finished, was lost, or came back
        self._background: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engines", daemon=True)
        self._thread.start()
        self._watchdog: Future[None] | None = None
        try:
            self._run(together([member.backend.start() for member in self.members]))
        except Lost as lost:
            self.close()
            raise EngineError(str(lost)) from lost
        except EngineError:
            self.close()
            raise
        if self._come_back:
            self._watchdog = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def take_faults(self) -> EngineFaults:
        """Members lost and completions asked for again since the last call."""
        faults = EngineFaults(restarts=self._restarts, regenerated=self._regenerated)
        self._restarts = self._regenerated = 0
        return faults

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        refuse_media(requests, reason="they cannot be sent to servers or actors; set rollout.placement=colocated")
        found: queue.SimpleQueue[tuple[int, Completion]] = queue.SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(self._serve(requests, found.put), self._loop)
        left = len(requests)
        try:
            while left:
                try:
                    item = found.get(timeout=0.2)
                except queue.Empty:
                    if work.done() and found.empty():
                        work.result()
                    yield None
                    continue
                left -= 1
                yield item
        finally:
            work.cancel()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return collect(self, requests)

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        if self._store is None:
            raise EngineError("these engines take no weights; they hold those that they were started with")
        self._store.hold(weights, version=version)
        self._version, self._shown = version, None
        try:
            self._run(asyncio.wait_for(self._load_all(), self._patience.update_s))
        except TimeoutError as error:
            raise EngineError(
                f"the engines did not take the weights of version {version} within {self._patience.update_s:g} s"
            ) from error
        self._store.settle()

    def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        """Of the members that are up, which must agree."""
        shown = self._run(self._all_checksums(request))
        first = next(iter(shown))
        for name, found in shown.items():
            if found != shown[first]:
                raise EngineError(f"{name} and {first} hold different weights after version {self._version}")
        self._shown = (request, shown[first])
        return shown[first]

    def close(self) -> None:
        if self._loop.is_closed():
            return
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._store is not None:
            self._store.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _end(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for member in self.members:
            await member.backend.close()
        await self._loop.shutdown_default_executor()

    # --- generation ---

    async def _serve(self, requests: Sequence[Request], put: Callable[[tuple[int, Completion]], None]) -> None:
        waiting = _siblings(requests)
        left, running = len(requests), set[asyncio.Task[None]]()
        if not self._come_back and not self._any_up():
            for member in self.members:  # all were given up; perhaps one answers again
                self._take_back(member)
        try:
            while waiting or running:
                self._check_losses()
                while waiting and (able := [member for member in self.members if member.room]):
                    member = min(able, key=lambda one: one.in_flight)
                    size = member.backend.piece(left, len(self.members))
                    places = _taken(waiting, size, member.backend.at_once)
                    left -= len(places)
                    member.in_flight += len(places)
                    running.add(self._loop.create_task(self._work(member, requests, places, put, waiting)))
                if waiting and not running and not self._any_up():
                    await self._somebody()
                    continue
                self._changed.clear()
                if not any(task.done() for task in running):
                    await self._changed.wait()
                done = {task for task in running if task.done()}
                for task in done:
                    task.result()
                running -= done
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _work(
        self,
        member: Member,
        requests: Sequence[Request],
        places: list[int],
        put: Callable[[tuple[int, Completion]], None],
        waiting: deque[list[int]],
    ) -> None:
        left = dict(enumerate(places))

        def answered(number: int, completion: Completion) -> None:
            put((left.pop(number), completion))
            member.in_flight -= 1
            self._changed.set()

        try:
            await self._unless_lost(member, member.backend.run([requests[place] for place in places], answered))
        except Lost as lost:
            self._regenerated += len(left)
            if left:
                waiting.append(list(left.values()))
            self._lose(member, str(lost))
        finally:
            member.in_flight -= len(left)
            self._loop.call_soon(self._changed.set)  # when this task is done

    def _check_losses(self) -> None:
        if not self._come_back and not self._any_up():
            raise EngineError(f"no engine is left ({self._reasons()})")
        if self._come_back and self._restarts > self._patience.max_restarts:
            raise EngineError(f"engines were lost {self._restarts} times within one step ({self._reasons()})")

    async def _somebody(self) -> None:
        """Wait until a member is up."""
        try:
            async with asyncio.timeout(self._patience.start_s):
                while not self._any_up():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise EngineError(f"no engine came back within {self._patience.start_s:g} s ({self._reasons()})") from error

    def _reasons(self) -> str:
        return "; ".join(f"{member.backend.name}: {member.why}" for member in self.members if member.why)

    def _any_up(self) -> bool:
        return any(member.up for member in self.members)

    async def _unless_lost(self, member: Member, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives; Lost as soon as the member is taken out, for whatever reason."""
        doing, losing = asyncio.ensure_future(work), asyncio.ensure_future(member.lost.wait())
        try:
            await asyncio.wait({doing, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise Lost(member.why)
            return doing.result()
        finally:
            doing.cancel()
            losing.cancel()

    # --- health ---

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            watched = [member for member in self.members if member.up and member.backend.watched]
            await asyncio.gather(*(self._check(member) for member in watched))

    async def _check(self, member: Member) -> None:
        try:
            await member.backend.healthy(self._patience.stall_s)
        except Lost as lost:
            self._lose(member, f"no answer to a health check ({lost})")

    def _lose(self, member: Member, why: str) -> None:
        """Take a member out of the pool and start bringing it back; once, however many requests notice."""
        if not member.up:
            return
        member.up, member.why = False, why
        member.lost.set()
        self._restarts += 1
        if self._store is not None:
            self._store.forget(member.backend.name)
        self._changed.set()
        if self._come_back:
            task = self._loop.create_task(self._recover(member))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
        elif self._any_up():
            self._say(f"one of {len(self.members)} engines is gone, the others go on: {why}")

    async def _recover(self, member: Member) -> None:
        """Restart a member of ours, or wait for another's; it takes part again when it has the newest weights."""
        deadline, restarted = self._loop.time() + self._patience.start_s, False
        while self._loop.time() < deadline:
            try:
                if not restarted:
                    await member.backend.restart()
                    restarted = True
                await member.backend.healthy(10.0)
                await self._load_one(member)
                self._take_back(member)
                return
            except (Lost, RuntimeError) as error:  # EngineError among them
                member.why = said(error)
            await asyncio.sleep(0.5)

    def _take_back(self, member: Member) -> None:
        member.lost, member.up = asyncio.Event(), True
        self._changed.set()

    # --- weights ---

    async def _load_all(self) -> None:
        """Every member that is up takes the weights; one that is gone gets them when it comes back."""
        await together([self._load_or_lose(member) for member in self.members if member.up])
        if not self._any_up():
            await self._somebody()

    async def _load_or_lose(self, member: Member) -> None:
        try:
            await self._unless_lost(member, self._load_one(member))
        except EngineError:
            raise
        except (Lost, RuntimeError) as error:
            self._lose(member, said(error))

    async def _load_one(self, member: Member) -> None:
        """A member that comes back must show what the others showed."""
        if self._version is None:
            return
        await member.backend.load(self._version)
        if self._shown is not None and await member.backend.checksums(self._shown[0]) != self._shown[1]:
            raise EngineError(f"{member.backend.name} does not hold the weights of version {self._version}")

    async def _all_checksums(self, request: ChecksumRequest) -> dict[str, dict[str, int]]:
        up = [member for member in self.members if member.up]
        try:
            found = await asyncio.gather(*(member.backend.checksums(request) for member in up))
        except Lost as lost:
            raise EngineError(f"an engine cannot show its weights: {lost}") from lost
        return {member.backend.name: shown for member, shown in zip(up, found, strict=True)}


def _siblings(requests: Sequence[Request]) -> deque[list[int]]:
    """Places of requests, those with one prompt together."""
    groups: dict[Any, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(request.prefix, []).append(place)
    return deque(groups.values())


def _taken(waiting: deque[list[int]], size: int, at_once: int | None) -> list[int]:
    """The first group, at most as much of it as runs at once, and whole groups after it up to `size` requests."""
    found = waiting.popleft()
    limit = max(size, at_once or len(found))
    if len(found) > limit:
        waiting.appendleft(found[limit:])
        found = found[:limit]
    while waiting and len(found) + len(waiting[0]) <= size:
        found = found + waiting.popleft()
    return found
