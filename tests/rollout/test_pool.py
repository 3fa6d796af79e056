"""The pool's rules with engines that die, hang, come back and hold wrong weights when a test says so.

The same over real servers and actors is in test_placement.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from llmrl.errors import EngineError
from llmrl.rollout import pool as pool_module
from llmrl.rollout.backend import Lost, Put
from llmrl.rollout.engine import ChecksumRequest
from llmrl.rollout.pool import EnginePool, Patience
from llmrl.types import Completion, Request, Sampling, Status

LOOK = ChecksumRequest(shapes={}, dtypes={}, version=0, full=True)
QUICK = Patience(stall_s=0.2, update_s=5.0, start_s=2.0, max_restarts=3)


class Store:
    """Weights are one number."""

    def __init__(self) -> None:
        self.held = 0
        self.forgotten: list[str] = []

    def hold(self, weights: Iterable[tuple[str, Any]], *, version: int) -> None:
        self.held = dict(weights)["w"]

    def settle(self) -> None:
        pass

    def forget(self, name: str) -> None:
        self.forgotten.append(name)

    def close(self) -> None:
        self.held = -1


class Engine:
    """Answers with its weights and its name; `state` is "well", "dead", "hanging", or what a test sets after a time."""

    watched = True

    def __init__(self, name: str, store: Store, *, at_once: int | None = None, size: int = 1) -> None:
        self.name, self.at_once, self._store, self._size = name, at_once, store, size
        self.state, self.heals, self.wrong = "well", True, 0
        self.restarts = self.failing_restarts = 0
        self.weights: int | None = None
        self.asked: list[list[Request]] = []
        self.before: Callable[[], None] = lambda: None

    def piece(self, waiting: int, members: int) -> int:
        return self._size

    async def start(self) -> None:
        pass

    async def _answer(self) -> None:
        if self.state == "hanging":
            await asyncio.sleep(1000)
        if self.state == "dead":
            raise Lost(f"{self.name} is dead")

    async def run(self, requests: Sequence[Request], put: Put) -> None:
        self.asked.append(list(requests))
        for number, request in enumerate(requests):
            await asyncio.sleep(0.002)
            self.before()
            await self._answer()
            text = f"{self.weights} {request.tokens[0]} {request.sampling.seed}"
            put(number, Completion(tokens=(1,), logprobs=(0.0,), text=text, status=Status.done()))

    async def healthy(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._answer(), min(timeout_s, QUICK.stall_s))
        except TimeoutError as error:
            raise Lost("no answer") from error

    async def restart(self) -> None:
        self.weights = None
        self.restarts += 1
        if self.restarts <= self.failing_restarts:
            raise Lost("no room yet")
        if self.heals:
            self.state = "well"

    async def load(self, version: int) -> None:
        await self._answer()
        self.weights = self._store.held

    async def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        return {"w": (self.weights or 0) + self.wrong}

    async def close(self) -> None:
        self.state = "closed"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[EnginePool, list[Engine]]]]:
    monkeypatch.setattr(pool_module, "HEALTH_EVERY_S", 0.05)
    pools: list[EnginePool] = []

    def make(count: int = 2, *, patience: Patience | None = QUICK, **more: Any) -> tuple[EnginePool, list[Engine]]:
        store = Store()
        engines = [Engine(f"engine {i}", store, **more) for i in range(count)]
        pools.append(EnginePool(engines, store, patience=patience, say=lambda note: None))
        return pools[-1], engines

    yield make
    for pool in pools:
        pool.close()


def groups(count: int = 8, size: int = 4) -> list[Request]:
    return [Request(tokens=(i % count, 7), sampling=Sampling(max_tokens=3, seed=i)) for i in range(count * size)]


def texts(found: Sequence[Completion]) -> list[str]:
    return [one.text for one in found]


def expected(weights: int | None, requests: Sequence[Request]) -> list[str]:
    return [f"{weights} {one.tokens[0]} {one.sampling.seed}" for one in requests]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_siblings_go_to_one_engine_and_groups_are_dealt_out(made) -> None:
    pool, engines = made()
    assert texts(pool.generate(groups())) == expected(None, groups())
    homes = [{request.tokens for piece in engine.asked for request in piece} for engine in engines]
    assert len(homes[0]) == len(homes[1]) == 4 and not homes[0] & homes[1]


@pytest.mark.parametrize(("at_once", "size"), [(8, 8), (4, 1), (3, 3)])
def test_pieces_are_whole_groups_unless_a_group_is_more_than_runs_at_once(made, at_once: int, size: int) -> None:
    pool, engines = made(at_once=at_once, size=size)
    assert texts(pool.generate(groups())) == expected(None, groups())
    pieces = [piece for engine in engines for piece in engine.asked]
    assert max(map(len, pieces)) <= at_once
    if at_once == 8:
        assert [len(piece) for piece in pieces] == [8, 8, 8, 8][: len(pieces)]
        assert all(len({request.tokens for request in piece}) == 2 for piece in pieces)


@pytest.mark.parametrize("state", ["dead", "hanging"])
def test_lost_work_is_done_by_others_and_the_lost_engine_comes_back_with_the_newest_weights(made, state: str) -> None:
    pool, (first, second) = made()
    pool.load([("w", 5)], version=1)
    assert pool.checksums(LOOK) == {"w": 5}
    count = 0

    def fail() -> None:
        nonlocal count
        count += 1
        if count == 3:
            first.state = state

    first.before = fail
    assert texts(pool.generate(groups())) == expected(5, groups())
    faults = pool.take_faults()
    assert faults.restarts == 1 and 1 <= faults.regenerated <= 16
    until(lambda: all(member.up for member in pool.members))
    assert first.weights == second.weights == 5
    assert pool.take_faults().restarts == 0


def test_an_engine_that_hangs_before_new_weights_is_left_out_and_gets_them_later(made) -> None:
    pool, (first, second) = made()
    first.state = "hanging"
    pool.load([("w", 3)], version=1)
    assert second.weights == 3
    until(lambda: all(member.up for member in pool.members))
    assert first.weights == 3


def test_a_restart_that_fails_is_tried_again(made) -> None:
    pool, (first, _) = made()
    pool.load([("w", 3)], version=1)
    first.failing_restarts, first.state = 2, "dead"
    until(lambda: first.restarts == 3 and all(member.up for member in pool.members))
    assert first.weights == 3


def test_an_engine_that_comes_back_with_other_weights_stays_out(made) -> None:
    pool, (first, _) = made()
    pool.load([("w", 3)], version=1)
    pool.checksums(LOOK)
    first.wrong, first.state = 1, "dead"
    until(lambda: "does not hold the weights of version 1" in pool.members[0].why)
    assert not pool.members[0].up
    assert texts(pool.generate(groups())) == expected(3, groups())
    first.wrong = 0
    until(lambda: pool.members[0].up)


def test_engines_with_different_weights_are_an_error(made) -> None:
    pool, (first, _) = made()
    pool.load([("w", 3)], version=4)
    first.wrong = 1
    with pytest.raises(EngineError, match="hold different weights after version 4"):
        pool.checksums(LOOK)


def test_too_many_losses_or_nobody_who_comes_back_end_the_call_with_the_reasons(made) -> None:
    pool, (first, second) = made(patience=Patience(stall_s=0.2, start_s=20, max_restarts=3))
    for engine in (first, second):
        engine.before = lambda engine=engine: setattr(engine, "state", "dead")
    with pytest.raises(EngineError, match=r"lost 4 times within one step \(engine 0: .*dead"):
        pool.generate(groups())
    pool, engines = made(patience=Patience(stall_s=0.2, start_s=0.3, max_restarts=9))
    for engine in engines:
        engine.state, engine.heals = "dead", False
    with pytest.raises(EngineError, match=r"no engine came back within 0.3 s \(engine 0: .*dead"):
        pool.generate(groups())


def test_without_patience_a_lost_engine_stays_out_until_all_are_lost(made) -> None:
    pool, (first, second) = made(patience=None)
    first.state = "dead"
    assert texts(pool.generate(groups())) == expected(None, groups())
    first.state = "well"
    first.asked.clear()
    pool.generate(groups())
    assert not first.asked
    second.state = "dead"
    with pytest.raises(EngineError, match=r"no engine is left .*engine 1 is dead"):
        pool.generate(groups())
    assert texts(pool.generate(groups(4))) == expected(None, groups(4))  # the first one answers again


def test_images_are_refused_by_the_pool_before_any_engine_is_asked(made) -> None:
    pool, engines = made()
    with pytest.raises(EngineError, match="1 of 2 prompts show images"):
        pool.generate([*groups(1, 1), Request(tokens=(1,), sampling=Sampling(max_tokens=1), media=(object(),))])
    assert not any(engine.asked for engine in engines)


def test_a_defect_is_raised_and_who_stops_listening_ends_the_work(made) -> None:
    pool, (first, second) = made()

    def broken() -> None:
        raise RuntimeError("a defect")

    first.before = broken
    with pytest.raises(RuntimeError, match="a defect"):
        pool.generate(groups())
    first.before = lambda: None
    second.asked.clear()
    stream = pool.stream(groups(100, 1))
    assert next(item for item in stream if item)
    stream.close()
    until(lambda: all(member.in_flight == 0 for member in pool.members))
