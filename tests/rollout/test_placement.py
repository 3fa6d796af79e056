"""Engines behind servers and on Ray: the same greedy completions for the same weights everywhere, and lost ones replaced."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmrl.errors import EngineError
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.pool import EnginePool, Patience
from llmrl.rollout.process import ProcessEngine
from llmrl.rollout.ray_pool import RayActor, RayCluster
from llmrl.rollout.serve import ServerProcess, share_of_cores
from llmrl.rollout.servers import Server
from llmrl.rollout.transfer import Direct, Files
from llmrl.train.folder import read_metrics
from llmrl.types import Request, Sampling
from tests.durability.harness import CASES, command, start, tail, write_recipe
from tests.tiny import random_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm"),
]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no ray")
KEY = "a-key"
START_S = 600.0


def settings(model: Path) -> EngineSettings:
    return EngineSettings(model=str(model), dtype="float32", max_length=256, max_sequences=16, kv_cache_gib=1.0)


def greedy(count: int = 16) -> list[Request]:
    """Groups of four with one prompt each."""
    return [
        Request(tokens=tuple(range(5 + i // 4, 20 + i // 4)), sampling=Sampling(max_tokens=12, temperature=0.0, seed=i))
        for i in range(count)
    ]


def long(count: int = 32) -> list[Request]:
    return [
        Request(tokens=tuple(range(5 + i // 4, 20 + i // 4)), sampling=Sampling(max_tokens=200, seed=i))
        for i in range(count)
    ]


def weights(seed: int) -> list[tuple[str, Any]]:
    return [(name, p.detach()) for name, p in random_model(seed=seed).named_parameters()]


@pytest.fixture(scope="module")
def processes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServerProcess]]:
    logs = tmp_path_factory.mktemp("servers")
    made = []
    for n in range(2):
        log, cores = logs / f"{n}.log", share_of_cores(n, 2)
        made.append(ServerProcess(settings(tiny_model), key=KEY, log=log, cores=cores, start_timeout_s=START_S))
    for process in made:
        process.wait()
    yield made
    for process in made:
        process.close()


@pytest.fixture
def pool(request: pytest.FixtureRequest, processes: list[ServerProcess], tmp_path: Path) -> Iterator[EnginePool]:
    """Over both servers; weights go through files unless a test's parameter says otherwise."""
    transfer = Direct("gloo", timeout_s=60.0) if getattr(request, "param", "files") == "gloo" else Files(tmp_path)
    patience = Patience(stall_s=5.0, start_s=START_S)
    servers = [Server(p.url, process=_Kept(p), transfer=transfer, key=KEY) for p in processes]
    made = EnginePool(servers, transfer, patience=patience)
    yield made
    made.close()


class _Kept:
    """A server process that outlives its pool: the module's tests share it."""

    # A server dies with the thread that started it, and those of a pool end with the pool.
    _starter = ThreadPoolExecutor(1)

    def __init__(self, process: ServerProcess) -> None:
        self._process = process

    def restart(self) -> None:
        self._starter.submit(self._process.restart).result()

    def close(self) -> None:
        return


def on_ray(tiny_model: Path) -> EnginePool:
    cluster = RayCluster(actors=2)
    return EnginePool([RayActor(n, cluster, settings(tiny_model)) for n in range(2)], cluster, patience=Patience())


def alone(tiny_model: Path, log: Path) -> dict[int, list[tuple[int, ...]]]:
    """The greedy completions of an engine of one's own, by version of the weights."""
    own = ProcessEngine(settings(tiny_model), log=log)
    try:
        found = {}
        for version in (1, 2):
            own.load(weights(version), version=version)
            found[version] = [c.tokens for c in own.generate(greedy())]
        return found
    finally:
        own.close()


@pytest.mark.parametrize("pool", ["gloo"], indirect=True)
def test_weights_go_straight_to_the_servers_and_to_one_that_comes_back(
    pool: EnginePool, processes: list[ServerProcess], tiny_model: Path, tmp_path: Path
) -> None:
    expected = alone(tiny_model, tmp_path / "engine.log")
    for version in (1, 2, 1):
        pool.load(weights(version), version=version)
        assert [c.tokens for c in pool.generate(greedy())] == expected[version]
    os.killpg(processes[0].pid, signal.SIGKILL)
    pool.load(weights(2), version=2)  # the other one takes them
    assert [c.tokens for c in pool.generate(greedy())] == expected[2]
    deadline = time.monotonic() + START_S
    while not all(member.up for member in pool.members):
        assert time.monotonic() < deadline, [member.why for member in pool.members]
        time.sleep(0.2)
    assert [c.tokens for c in pool.generate(greedy())] == expected[2]
    pool.load(weights(1), version=1)
    assert [c.tokens for c in pool.generate(greedy())] == expected[1]


def test_servers_and_ray_give_the_greedy_completions_of_an_engine_of_ones_own(
    pool: EnginePool, tiny_model: Path, tmp_path: Path
) -> None:
    expected = alone(tiny_model, tmp_path / "engine.log")
    assert expected[1] != expected[2]
    for version in (1, 2, 1):
        pool.load(weights(version), version=version)
        assert [c.tokens for c in pool.generate(greedy())] == expected[version]
    if importlib.util.find_spec("ray") is None:
        return
    ray = on_ray(tiny_model)
    try:
        for version in (1, 2, 1):
            ray.load(weights(version), version=version)
            assert [c.tokens for c in ray.generate(greedy())] == expected[version]
    finally:
        ray.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_hangs_is_replaced_and_its_work_done_by_others(
    number: signal.Signals, pool: EnginePool, processes: list[ServerProcess]
) -> None:
    pool.load(weights(1), version=1)
    expected = [c.tokens for c in pool.generate(greedy())]
    threading.Timer(0.3, lambda: os.killpg(processes[0].pid, number)).start()
    found = pool.generate(long(64))
    assert len(found) == 64 and all(c.tokens for c in found)
    faults = pool.take_faults()
    assert faults.restarts == 1 and 1 <= faults.regenerated <= 64, [member.why for member in pool.members]
    deadline = time.monotonic() + START_S
    while not all(member.up for member in pool.members):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [c.tokens for c in pool.generate(greedy())] == expected  # the new one has the weights too


@pytest.mark.parametrize("pool", ["files", "gloo"], indirect=True)
def test_a_server_that_hangs_before_new_weights_is_left_out_and_gets_them_when_it_is_back(
    pool: EnginePool, processes: list[ServerProcess]
) -> None:
    pool.load(weights(1), version=1)
    before = [c.tokens for c in pool.generate(greedy())]
    os.killpg(processes[0].pid, signal.SIGSTOP)
    begin = time.monotonic()
    pool.load(weights(2), version=2)
    assert time.monotonic() - begin < 60  # not the deadline of weights, which is 300 s
    after = [c.tokens for c in pool.generate(greedy())]
    assert after != before
    deadline = time.monotonic() + START_S
    while not all(member.up for member in pool.members):
        assert time.monotonic() < deadline, [member.why for member in pool.members]
        time.sleep(0.2)
    assert [c.tokens for c in pool.generate(greedy())] == after


def test_siblings_go_to_one_server_and_prompts_are_dealt_out(pool: EnginePool) -> None:
    pool.load(weights(1), version=1)
    homes: dict[Any, set[str]] = {}
    for server in [member.backend for member in pool.members]:
        asked = server.run

        async def watched(requests: Any, put: Any, server: Any = server, asked: Any = asked) -> None:
            for request in requests:
                homes.setdefault(request.tokens, set()).add(server.name)
            await asked(requests, put)

        server.run = watched  # type: ignore[method-assign]
    pool.generate(greedy())
    assert all(len(urls) == 1 for urls in homes.values())
    assert len(set().union(*homes.values())) == 2


def test_a_request_that_a_server_refuses_is_an_error_and_not_a_loop(pool: EnginePool) -> None:
    too_long = Request(tokens=tuple(range(5, 250)) * 2, sampling=Sampling(max_tokens=4))
    with pytest.raises(EngineError, match="refused a request: 400"):
        pool.generate([too_long, too_long])


def test_a_server_wants_its_key_and_listens_on_loopback_only(processes: list[ServerProcess]) -> None:
    url = processes[0].url
    assert url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401
    listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True)
    if listening.returncode == 0:
        assert f"0.0.0.0:{url.rpartition(':')[2]} " not in listening.stdout


def test_an_address_without_a_server_is_told(tmp_path: Path) -> None:
    transfer = Files(tmp_path)
    with pytest.raises(EngineError, match=r"http://127.0.0.1:9/v1/models did not answer: ConnectError"):
        EnginePool([Server("http://127.0.0.1:9", transfer=transfer)], transfer, patience=Patience())
    assert not list(tmp_path.iterdir())


@needs_ray
def test_a_ray_actor_that_dies_is_replaced_and_its_work_done_by_others(tiny_model: Path) -> None:
    pool = on_ray(tiny_model)
    try:
        pool.load(weights(1), version=1)
        expected = [c.tokens for c in pool.generate(greedy())]
        actor = pool.members[0].backend
        assert isinstance(actor, RayActor)
        victim = pool._run(actor.pid())
        threading.Timer(0.3, lambda: os.kill(victim, signal.SIGKILL)).start()
        found = pool.generate(long(64))
        assert len(found) == 64 and all(c.tokens for c in found)
        faults = pool.take_faults()
        assert faults.restarts == 1 and 1 <= faults.regenerated <= 64
        assert [c.tokens for c in pool.generate(greedy())] == expected
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("placement", "processes_", "episodes"),
    [("server", 1, False), ("server", 2, False), ("server", 1, True), pytest.param("ray", 1, True, marks=needs_ray)],
)
def test_a_run_trains_with_its_engines_elsewhere(
    placement: str, processes_: int, episodes: bool, tmp_path: Path, tiny_model: Path
) -> None:
    changes = {
        "model.dtype": "bfloat16", "rollout.engine": "vllm", "rollout.kv_cache_gib": 1, "rollout.placement": placement,
        "train.steps": 3, "eval.data": {"n": 4}, **(CASES["episodes"].changes if episodes else {}),
    }  # fmt: skip
    recipe = write_recipe(tmp_path, tiny_model, changes)
    process = start(command(recipe, processes=processes_), tmp_path / "log.txt")
    assert process.wait(START_S) == 0, tail(tmp_path / "log.txt")
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "train"]
    assert len(rows) == 3
    assert all(row["mismatch/mean_abs_logprob"] < 0.1 and row["engine/restarts"] == 0 for row in rows)
    assert not episodes or all(row["episode/turns"] > 1 and row["rollout/errored"] == 0 for row in rows)
