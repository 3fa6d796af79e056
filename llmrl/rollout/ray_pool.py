"""vLLM actors on Ray behind an engine pool: one engine an actor, anywhere in the cluster, replaced when it dies.

Requests and completions cross as JSON and weights as safetensors bytes, put into Ray's object store once for all actors:
no objects of ours are pickled.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmrl.errors import EngineError
from llmrl.rollout.as_json import from_json, to_json
from llmrl.rollout.backend import Lost, Put
from llmrl.rollout.build import build_engine
from llmrl.rollout.engine import ChecksumRequest, EngineSettings, LocalEngine
from llmrl.rollout.process import child_environment
from llmrl.types import Completion, Request

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 32  # requests an actor is given at a time: what is lost with it, and the grain of balancing


class EngineWorker:
    """What runs in an actor: an in-process engine behind JSON and bytes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._engine: LocalEngine = build_engine(EngineSettings(**settings))

    def generate(self, requests: str) -> str:
        return to_json(self._engine.generate(from_json(list[Request], requests)))

    def load(self, weights: bytes, version: int) -> int:
        from safetensors.torch import load

        self._engine.load(load(weights).items(), version=version)
        return version

    def checksums(self, request: str) -> dict[str, int]:
        return self._engine.checksums(from_json(ChecksumRequest, request))

    def pid(self) -> int:
        return os.getpid()


class RayCluster:
    """Room for `actors` with `cpus` and `gpus` each, spread over nodes, and the newest weights in the object store.

    Joins the cluster at `address`, or starts one on this machine (None). EngineError if there is no room in time.
    """

    def __init__(
        self, *, actors: int, cpus: float = 1.0, gpus: float = 0.0, address: str | None = None,
        start_timeout_s: float = 600.0,
    ) -> None:  # fmt: skip
        self.ray = _imported()
        self.weights: Any = None
        self.options = {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": 1}
        self._owner = not self.ray.is_initialized()
        if self._owner:
            where = {"address": address} if address else {"num_cpus": max(1, round(actors * cpus))}
            self.ray.init(
                **where, include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=True
            )
        bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        self.group = self.ray.util.placement_group([bundle] * actors, strategy="SPREAD")
        try:
            self.ray.get(self.group.ready(), timeout=start_timeout_s)
        except self.ray.exceptions.GetTimeoutError as error:
            has = self.ray.cluster_resources()
            raise EngineError(
                f"Ray has no room for {actors} actors with {bundle} each within {start_timeout_s:g} s; the cluster "
                f"has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
            ) from error

    def hold(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        from safetensors.torch import save

        self.weights = self.ray.put(save({name: t.detach().to("cpu").contiguous() for name, t in weights}))

    def settle(self) -> None:
        pass

    def forget(self, name: str) -> None:
        pass

    def close(self) -> None:
        if self.ray.is_initialized():
            self.ray.util.remove_placement_group(self.group)
            if self._owner:
                self.ray.shutdown()


class RayActor:
    """Actor `number` of `cluster`. One that does not answer a call for `stall_timeout_s` counts as dead."""

    at_once: int | None = CHUNK
    watched = False  # it does one thing at a time

    def __init__(
        self, number: int, cluster: RayCluster, settings: EngineSettings, *, start_timeout_s: float = 600.0,
        stall_timeout_s: float = 600.0,
    ) -> None:  # fmt: skip
        self.name = f"Ray actor {number}"
        self._number, self._cluster, self._settings = number, cluster, settings
        self._start_timeout_s, self._stall_timeout_s = start_timeout_s, stall_timeout_s
        self._actor, self._dead = self._started(), False

    def piece(self, waiting: int, members: int) -> int:
        return CHUNK

    async def start(self) -> None:
        await self.pid()

    async def pid(self) -> int:
        """Of the actor's process; waits until its engine is there."""
        found: int = await self._call("pid", timeout_s=self._start_timeout_s)
        return found

    async def run(self, requests: Sequence[Request], put: Put) -> None:
        answers = await self._call("generate", to_json(list(requests)))
        for number, completion in enumerate(from_json(list[Completion], answers)):
            put(number, completion)

    async def healthy(self, timeout_s: float) -> None:
        if self._dead:  # it died while it started
            await self.restart()
        await self._call("pid", timeout_s=timeout_s)

    async def restart(self) -> None:
        await asyncio.to_thread(self._cluster.ray.kill, self._actor)
        self._actor, self._dead = self._started(), False

    async def load(self, version: int) -> None:
        await self._call("load", self._cluster.weights, version)

    async def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        found: dict[str, int] = await self._call("checksums", to_json(request))
        return found

    async def close(self) -> None:
        if self._cluster.ray.is_initialized():
            self._cluster.ray.kill(self._actor)

    async def _call(self, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        exceptions, timeout_s = self._cluster.ray.exceptions, timeout_s or self._stall_timeout_s
        try:
            return await asyncio.wait_for(getattr(self._actor, method).remote(*arguments), timeout_s)
        except exceptions.RayTaskError as error:
            raise EngineError(f"{self.name} failed to {method}: {error.cause or error}") from error
        except exceptions.RayActorError as error:
            self._dead = True
            raise Lost(str(error).strip().partition("\n")[0] or type(error).__name__) from error
        except TimeoutError as error:
            raise Lost(f"no answer in {timeout_s:g} s") from error

    def _started(self) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        kept = ("LD_PRELOAD", "PYTHONPATH", "PYTHONUNBUFFERED")
        environment = {name: value for name, value in child_environment().items() if name in kept}
        environment["OMP_NUM_THREADS"] = str(max(1, round(self._cluster.options["num_cpus"])))
        place = PlacementGroupSchedulingStrategy(self._cluster.group, placement_group_bundle_index=self._number)
        remote = self._cluster.ray.remote(**self._cluster.options)(EngineWorker)
        options = {"scheduling_strategy": place, "runtime_env": {"env_vars": environment}}
        return remote.options(**options).remote(asdict(self._settings))


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise EngineError("rollout.placement=ray needs a package that is missing: pip install 'llmrl[ray]'") from error
    return ray
