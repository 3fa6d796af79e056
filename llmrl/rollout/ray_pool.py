"""Rollouts from a pool of vLLM actors on Ray: one engine an actor, anywhere in the cluster, replaced when it dies.

Requests and completions cross as JSON and weights as safetensors bytes, put into Ray's object store once for all actors:
no objects of ours are pickled. Siblings of a prompt go to one actor, for its prefix cache.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmrl.errors import EngineError
from llmrl.rollout.build import build_engine
from llmrl.rollout.engine import EngineSettings, LocalEngine, Look, collect, refuse_media
from llmrl.rollout.process import EngineFaults, child_environment
from llmrl.rollout.weight_check import from_json, to_json
from llmrl.types import Completion, Request, Sampling, Status, StatusKind

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 32  # requests an actor is given at a time: what is lost with it, and the grain of balancing


class EngineWorker:
    """What runs in an actor: an in-process engine behind JSON and bytes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._engine: LocalEngine = build_engine(EngineSettings(**settings))
        self._version: int | None = None

    def generate(self, requests: str, version: int | None) -> str:
        if version != self._version:
            raise EngineError(f"this actor holds the weights of version {self._version}, not of {version}")
        completions = self._engine.generate([_request(item) for item in json.loads(requests)])
        return json.dumps([asdict(completion) for completion in completions])

    def load(self, weights: bytes, version: int) -> int:
        from safetensors.torch import load

        self._engine.load(load(weights).items(), version=version)
        self._version = version
        return version

    def checksums(self, look: str) -> dict[str, int]:
        return self._engine.checksums(from_json(look))

    def pid(self) -> int:
        return os.getpid()


class RayPool:
    """`actors` engines of `settings`, each with `cpus` and `gpus`, spread over nodes. Joins the cluster at `address`, or
    starts one on this machine (None).

    A call that takes longer than `stall_timeout_s` counts as a dead actor; it is replaced, gets the newest weights, and
    its requests go to others. EngineError after `max_restarts` replacements in one call.
    """

    def __init__(
        self, settings: EngineSettings, *, actors: int, cpus: float = 1.0, gpus: float = 0.0,
        address: str | None = None, start_timeout_s: float = 600.0, stall_timeout_s: float = 600.0,
        max_restarts: int = 3,
    ) -> None:  # fmt: skip
        self._ray = _imported()
        self._settings = settings
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._max_restarts = max_restarts
        self._faults: Counter[str] = Counter()
        self._weights: Any = None
        self._version: int | None = None
        self._owner = not self._ray.is_initialized()
        if self._owner:
            where = {"address": address} if address else {"num_cpus": max(1, round(actors * cpus))}
            self._ray.init(
                **where, include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=True
            )
        self._group = self._reserved(actors, cpus, gpus)
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": 1}
        self._actors = [self._started(number) for number in range(actors)]
        self._wait_for([actor.pid.remote() for actor in self._actors], "start", start_timeout_s)

    def take_faults(self) -> EngineFaults:
        """Actors replaced and completions asked for again since the last call."""
        faults = EngineFaults(restarts=self._faults["restarts"], regenerated=self._faults["regenerated"])
        self._faults.clear()
        return faults

    def pids(self) -> list[int]:
        """Process ids of the actors (those of this machine are useful)."""
        found: list[int] = self._ray.get([actor.pid.remote() for actor in self._actors])
        return found

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        refuse_media(requests, "vllm")
        waiting = _in_chunks(requests)
        running: dict[Any, tuple[int, list[int]]] = {}  # call -> (actor's number, places of its requests)
        idle = list(range(len(self._actors)))
        failures = 0
        while waiting or running:
            while waiting and idle:
                number, places = idle.pop(0), waiting.pop(0)
                text = json.dumps([asdict(requests[place]) for place in places])
                running[self._actors[number].generate.remote(text, self._version)] = (number, places)
            done, _ = self._ray.wait(list(running), timeout=self._stall_timeout_s)
            for call in done or list(running):  # nothing at all in that time: every one of them hangs
                number, places = running.pop(call)
                try:
                    answers = json.loads(self._ray.get(call, timeout=0 if not done else None))
                except self._ray.exceptions.RayTaskError as error:
                    raise EngineError(f"a Ray actor failed: {error.cause or error}") from error
                except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError) as error:
                    failures += 1
                    self._replace(number, error, failures, regenerated=len(places))
                    waiting.append(places)
                else:
                    yield from zip(places, map(_answer, answers), strict=True)
                idle.append(number)
            yield None

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return collect(self, requests)

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        from safetensors.torch import save

        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights}
        self._weights, self._version = self._ray.put(save(tensors)), version
        for failures in range(1, self._max_restarts + 2):
            calls = {a.load.remote(self._weights, version): n for n, a in enumerate(self._actors)}
            done, late = self._ray.wait(list(calls), num_returns=len(calls), timeout=self._stall_timeout_s)
            problems = [(calls[call], self._problem(call)) for call in done]
            lost = [(number, error) for number, error in problems if error is not None]
            lost += [(calls[call], TimeoutError(f"no answer in {self._stall_timeout_s:g} s")) for call in late]
            if not lost:
                return
            for number, error in lost:
                self._replace(number, error, failures)

    def checksums(self, look: Look) -> dict[str, int]:
        """Of all actors, which must agree."""
        calls = [actor.checksums.remote(to_json(look)) for actor in self._actors]
        self._wait_for(calls, "show their weights", self._stall_timeout_s)
        first, *others = self._ray.get(calls)
        if any(other != first for other in others):
            raise EngineError(f"Ray actors hold different weights after version {self._version}")
        found: dict[str, int] = first
        return found

    def close(self) -> None:
        if not self._ray.is_initialized():
            return
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        self._ray.util.remove_placement_group(self._group)
        if self._owner:
            self._ray.shutdown()

    def _reserved(self, actors: int, cpus: float, gpus: float) -> Any:
        bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        group = self._ray.util.placement_group([bundle] * actors, strategy="SPREAD")
        try:
            self._ray.get(group.ready(), timeout=self._start_timeout_s)
        except self._ray.exceptions.GetTimeoutError as error:
            has = self._ray.cluster_resources()
            raise EngineError(
                f"Ray has no room for {actors} actors with {bundle} each within {self._start_timeout_s:g} s; the cluster "
                f"has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
            ) from error
        return group

    def _started(self, number: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        kept = ("LD_PRELOAD", "PYTHONPATH", "PYTHONUNBUFFERED")
        environment = {name: value for name, value in child_environment().items() if name in kept}
        environment["OMP_NUM_THREADS"] = str(max(1, round(self._options["num_cpus"])))
        place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
        remote = self._ray.remote(**self._options)(EngineWorker)
        options = {"scheduling_strategy": place, "runtime_env": {"env_vars": environment}}
        return remote.options(**options).remote(asdict(self._settings))

    def _replace(self, number: int, error: Exception, failures: int, *, regenerated: int = 0) -> None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if failures > self._max_restarts:
            raise EngineError(f"Ray actors were lost {failures} times, at last: {reason}") from error
        self._faults.update(restarts=1, regenerated=regenerated)
        self._ray.kill(self._actors[number])
        self._actors[number] = self._started(number)
        if self._weights is not None:  # an actor works off its calls in order; should this one fail, `generate` notices
            self._actors[number].load.remote(self._weights, self._version)

    def _problem(self, call: Any) -> Exception | None:
        try:
            self._ray.get(call)
        except self._ray.exceptions.RayActorError as error:
            return error
        except self._ray.exceptions.RayTaskError as error:
            raise EngineError(f"a Ray actor could not take the weights: {error.cause or error}") from error
        return None

    def _wait_for(self, calls: list[Any], what: str, timeout_s: float) -> None:
        try:
            self._ray.get(calls, timeout=timeout_s)
        except self._ray.exceptions.GetTimeoutError as error:
            raise EngineError(f"Ray actors did not {what} within {timeout_s:g} s") from error
        except self._ray.exceptions.RayError as error:
            raise EngineError(f"Ray actors could not {what}: {error}") from error


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise EngineError("rollout.placement=ray needs a package that is missing: pip install 'llmrl[ray]'") from error
    return ray


def _in_chunks(requests: Sequence[Request]) -> list[list[int]]:
    """Places of requests, siblings together, at most `CHUNK` in each."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        groups[request.prefix].append(place)
    chunks: list[list[int]] = []
    for places in groups.values():
        if not chunks or len(chunks[-1]) + len(places) > CHUNK:
            chunks.append([])
        chunks[-1] += places
    return chunks


def _request(item: dict[str, Any]) -> Request:
    sampling = item["sampling"]
    sampling["stop"] = tuple(sampling["stop"])
    return Request(tokens=tuple(item["tokens"]), sampling=Sampling(**sampling))


def _answer(item: dict[str, Any]) -> Completion:
    status = Status(StatusKind(item["status"]["kind"]), item["status"]["reason"])
    return Completion(tokens=tuple(item["tokens"]), logprobs=tuple(item["logprobs"]), text=item["text"], status=status)
