"""Rollouts from vLLM servers over HTTP: least-loaded routing, re-routing of lost work, versioned weights.

Servers are OpenAI-compatible `vllm` processes with its development endpoints (pause, resume, collective_rpc), started by
`serve.py` on this machine or given as URLs. Siblings of a prompt go to one server, so that they share its prefix cache.
Weights go by `transfer.py`. Requests and answers are JSON; every wait has a deadline.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import httpx

from llmrl.errors import EngineError
from llmrl.rollout.engine import Look, collect, refuse_media
from llmrl.rollout.openai import completion_body, completion_of
from llmrl.rollout.process import EngineFaults
from llmrl.rollout.transfer import Transfer
from llmrl.rollout.weight_check import METHOD, to_json
from llmrl.types import Completion, Request

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
HEALTH_EVERY_S = 2.0
SHOWN = 300  # characters of a server's answer in a message


class Process(Protocol):
    """A server of ours, as `serve.py` starts it."""

    def restart(self) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Server:
    """One server: `url` without /v1; `process` if it is ours to restart."""

    url: str
    process: Process | None = None
    in_flight: int = 0
    up: bool = True
    why: str = ""
    lost: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Deadlines in seconds, and how often a server may be lost between two `take_faults`."""

    request_s: float = 600.0  # one completion
    stall_s: float = 120.0  # a server that does not answer a health check
    update_s: float = 300.0  # new weights
    start_s: float = 600.0  # a server that comes back
    max_restarts: int = 3


class ServerPool:
    """Engine over several servers; `key` is the API key (None: none is sent).

    EngineError if no server is left within the deadline, if one refuses a request, or if new weights did not arrive.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        transfer: Transfer,
        key: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._servers = list(servers)
        self._patience = patience or Patience()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._transfer = transfer
        self._shown: tuple[Look, dict[str, int]] | None = None  # what the servers showed of the newest weights
        self._version: int | None = None  # of the weights that the servers should have; None before the first
        self._restarts = self._regenerated = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()
        self._client = self._run(self._open())
        self._changed: asyncio.Condition = self._run(_made(asyncio.Condition))
        self._background: set[asyncio.Task[None]] = set()
        self._models = self._run(self._served_models())
        self._watchdog: Future[None] = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def take_faults(self) -> EngineFaults:
        """Servers lost and completions asked for again since the last call."""
        faults = EngineFaults(restarts=self._restarts, regenerated=self._regenerated)
        self._restarts = self._regenerated = 0
        return faults

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        refuse_media(requests, "vllm")
        found: queue.SimpleQueue[tuple[int, Completion]] = queue.SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(self._serve(requests, found.put), self._loop)
        left = len(requests)
        try:
            while left:
                try:
                    item = found.get(timeout=1.0)
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
        self._transfer.hold(weights, version=version)
        self._version, self._shown = version, None
        try:
            self._run(asyncio.wait_for(self._load_all(), self._patience.update_s))
        except TimeoutError as error:
            raise EngineError(
                f"the servers did not take the weights of version {version} within {self._patience.update_s:g} s"
            ) from error
        self._transfer.settle()

    def checksums(self, look: Look) -> dict[str, int]:
        """Of the servers that are up, which must agree."""
        shown = self._run(self._all_checksums(look))
        first = next(iter(shown))
        for url, found in shown.items():
            if found != shown[first]:
                raise EngineError(f"{url} and {first} hold different weights after version {self._version}")
        self._shown = (look, shown[first])
        return shown[first]

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._watchdog.cancel()
        self._run(self._end())
        for server in self._servers:
            if server.process is not None:
                server.process.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._transfer.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> httpx.AsyncClient:
        timeout = httpx.Timeout(self._patience.request_s, connect=10.0)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        return httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=limits, trust_env=False)

    async def _end(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._client.aclose()

    async def _served_models(self) -> dict[str, str]:
        found = {}
        for server in self._servers:
            try:
                names = [item["id"] for item in (await self._get(server, "/v1/models"))["data"]]
                found[server.url] = names[0]
            except (httpx.TransportError, KeyError, IndexError, ValueError) as error:
                raise EngineError(f"{server.url} is no vLLM server that answers: {_said(error)}") from error
        return found

    # --- generation ---

    async def _serve(self, requests: Sequence[Request], put: Callable[[tuple[int, Completion]], None]) -> None:
        home: dict[tuple[Any, ...], Server] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for index, request in enumerate(requests):
                    group.create_task(self._until_answered(index, request, home, put))
        except* EngineError as several:
            first: BaseException = several
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None

    async def _until_answered(
        self, index: int, request: Request, home: dict[tuple[Any, ...], Server], put: Callable[..., None]
    ) -> None:
        while True:
            server = await self._choose(request, home)
            server.in_flight += 1
            try:
                put((index, await self._ask(server, request)))
                return
            except _Lost as lost:
                self._regenerated += 1
                self._lose(server, str(lost))
            finally:
                server.in_flight -= 1

    async def _choose(self, request: Request, home: dict[tuple[Any, ...], Server]) -> Server:
        """The server that has this prompt already, or else the one with the least to do; waits for one to come back."""
        while True:
            server = home.get(request.prefix)  # a sibling may have chosen while this one waited
            if server is not None and server.up:
                return server
            if self._restarts > self._patience.max_restarts:
                reasons = "; ".join(f"{s.url}: {s.why}" for s in self._servers if s.why)
                raise EngineError(f"servers were lost {self._restarts} times within one step ({reasons})")
            up = [s for s in self._servers if s.up]
            if up:
                home[request.prefix] = min(up, key=lambda s: s.in_flight)
                continue
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait_for(self._any_up), self._patience.start_s)
                except TimeoutError as error:
                    reasons = "; ".join(f"{s.url}: {s.why}" for s in self._servers)
                    raise EngineError(f"no server came back within {self._patience.start_s:g} s ({reasons})") from error

    def _any_up(self) -> bool:
        return any(server.up for server in self._servers)

    async def _ask(self, server: Server, request: Request) -> Completion:
        body = completion_body(request, self._models[server.url])
        try:
            reply = await self._unless_lost(server, self._client.post(f"{server.url}/v1/completions", json=body))
        except httpx.TransportError as error:
            raise _Lost(_said(error)) from error
        if reply.status_code >= 500 or reply.status_code == 429:
            raise _Lost(f"{reply.status_code} {reply.text[:SHOWN]}")
        if reply.status_code >= 400:
            raise EngineError(f"{server.url} refused a request: {reply.status_code} {reply.text[:SHOWN]}")
        try:
            return completion_of(reply.json()["choices"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"{server.url} sent no completion with token ids: {reply.text[:SHOWN]}") from error

    async def _unless_lost(self, server: Server, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives; _Lost as soon as the server is taken out, for whatever reason."""
        doing, losing = asyncio.ensure_future(work), asyncio.ensure_future(server.lost.wait())
        try:
            await asyncio.wait({doing, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise _Lost(server.why)
            return doing.result()
        finally:
            doing.cancel()
            losing.cancel()

    # --- health ---

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            up = [server for server in self._servers if server.up]
            await asyncio.gather(*(self._check(server) for server in up))

    async def _check(self, server: Server) -> None:
        try:
            reply = await self._client.get(f"{server.url}/health", timeout=self._patience.stall_s)
        except httpx.TransportError as error:
            self._lose(server, f"no answer to a health check ({_said(error)})")
            return
        if reply.status_code != 200:
            self._lose(server, f"its health check says {reply.status_code}")

    def _lose(self, server: Server, why: str) -> None:
        """Take a server out of the pool and start bringing it back; once, however many requests notice."""
        if not server.up:
            return
        server.up, server.why = False, why
        server.lost.set()
        self._restarts += 1
        self._transfer.forget(server.url)
        task = self._loop.create_task(self._recover(server))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _recover(self, server: Server) -> None:
        """Restart a server of ours, or wait for another's; it takes part again when it has the newest weights."""
        deadline = self._loop.time() + self._patience.start_s
        if server.process is not None:
            await asyncio.to_thread(server.process.restart)
        while self._loop.time() < deadline:
            try:
                reply = await self._client.get(f"{server.url}/health", timeout=10.0)
                if reply.status_code == 200:
                    await self._load_one(server)
                    break
                server.why = f"its health check says {reply.status_code}"
            except (httpx.TransportError, RuntimeError) as error:  # EngineError among them
                server.why = _said(error)
            await asyncio.sleep(0.5)
        else:
            return
        async with self._changed:
            server.lost = asyncio.Event()
            server.up = True
            self._changed.notify_all()

    # --- weights ---

    async def _load_all(self) -> None:
        """Every server that is up takes the weights; one that is gone gets them when it comes back."""
        results = await asyncio.gather(*(self._load_or_lose(s) for s in self._servers if s.up), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        if not self._any_up():
            async with self._changed:
                await self._changed.wait_for(self._any_up)

    async def _load_or_lose(self, server: Server) -> None:
        try:
            await self._unless_lost(server, self._load_one(server))
        except EngineError:
            raise
        except (_Lost, httpx.TransportError, RuntimeError) as error:
            self._lose(server, _said(error))

    async def _load_one(self, server: Server) -> None:
        """Pause, reload, forget cached prefixes, resume; a server that comes back must show what the others showed."""
        if self._version is None:
            return
        await self._post(server, "/pause?mode=keep")
        await self._transfer.give(server.url, partial(self._rpc, server))
        await self._post(server, "/reset_prefix_cache")
        if self._shown is not None and await self._checksums(server, self._shown[0]) != self._shown[1]:
            raise EngineError(f"{server.url} does not hold the weights of version {self._version} after its restart")
        await self._post(server, "/resume")

    async def _all_checksums(self, look: Look) -> dict[str, dict[str, int]]:
        up = [server for server in self._servers if server.up]
        found = await asyncio.gather(*(self._checksums(server, look) for server in up))
        return {server.url: shown for server, shown in zip(up, found, strict=True)}

    async def _checksums(self, server: Server, look: Look) -> dict[str, int]:
        found: dict[str, int] = (await self._rpc(server, METHOD, look=to_json(look)))["results"][0]
        return found

    async def _rpc(self, server: Server, method: str, **kwargs: str) -> dict[str, Any]:
        body = {"method": method, "kwargs": kwargs, "timeout": self._patience.update_s}
        return await self._post(server, "/collective_rpc", body)

    async def _get(self, server: Server, path: str) -> dict[str, Any]:
        return _checked(server, path, await self._client.get(f"{server.url}{path}"))

    async def _post(self, server: Server, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return _checked(server, path, await self._client.post(f"{server.url}{path}", json=body))


class _Lost(Exception):
    """A server died, hung, or cannot answer now."""


async def _made(make: Callable[[], T]) -> T:
    return make()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _checked(server: Server, path: str, reply: httpx.Response) -> dict[str, Any]:
    if reply.status_code >= 400:
        hint = ""
        if reply.status_code == 404:
            hint = " (start it with VLLM_SERVER_DEV_MODE=1)"
        elif path == "/collective_rpc":
            hint = (
                " (start it with --worker-extension-cls llmrl.rollout.weight_check.WeightCheck, or set "
                "rollout.verify_weights=off)"
            )
        raise EngineError(f"{server.url}{path} failed: {reply.status_code} {reply.text[:SHOWN]}{hint}")
    try:
        found = json.loads(reply.text) if reply.text else {}
    except ValueError as error:
        raise EngineError(f"{server.url}{path} sent no JSON: {reply.text[:SHOWN]}") from error
    return found if isinstance(found, dict) else {"results": found}
