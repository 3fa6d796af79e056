"""Builds the engines of a run where the recipe puts them: beside every trainer process, behind servers, or in Ray actors."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from llmrl.errors import ConfigError
from llmrl.hardware import dtype_here
from llmrl.rollout.build import build_engine
from llmrl.rollout.engine import EngineSettings, RolloutEngine, TrainedEngine
from llmrl.rollout.process import EngineFaults, ProcessEngine
from llmrl.rollout.verify import VerifiedEngine
from llmrl.settings.recipe import Recipe
from llmrl.settings.rollout import ServersConfig
from llmrl.types import Completion, Request

if TYPE_CHECKING:
    from torch import Tensor

    from llmrl.policy.forward import ForwardMode
    from llmrl.policy.model import Policy
    from llmrl.rollout.pool import Patience
    from llmrl.rollout.transfer import Transfer

T = TypeVar("T")
TakeFaults = Callable[[], EngineFaults]


class Ranks(Protocol):
    """The part of `train.world.World` that engines need."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def main(self) -> bool: ...

    def gather(self, items: list[T]) -> list[T]: ...

    def on_main(self, work: Callable[[], T]) -> T: ...


class RankZeroEngine:
    """One engine for all ranks: rank 0 asks it for everybody, and only rank 0 has it. Every call is made by all ranks."""

    def __init__(self, ranks: Ranks, engine: RolloutEngine | None) -> None:
        self._ranks = ranks
        self._engine = engine

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        everyone = self._ranks.gather([list(requests)])
        start = sum(map(len, everyone[: self._ranks.rank]))
        found = self._ranks.on_main(lambda: self._own.generate([request for part in everyone for request in part]))
        return found[start : start + len(requests)]

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        if not self._ranks.main:
            for _ in weights:  # sharded weights are gathered by all ranks together
                pass
        self._ranks.on_main(lambda: self._own.load(weights, version=version))

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    @property
    def _own(self) -> RolloutEngine:
        assert self._engine is not None
        return self._engine


def place_engine(recipe: Recipe, source: str, ranks: Ranks) -> tuple[RolloutEngine, TakeFaults]:
    """The engine of this process, and a function that returns how often engines were replaced since its last call."""
    settings = engine_settings(recipe, source)
    placement = recipe.rollout.placement
    if placement == "colocated":
        return _colocated(recipe, settings, ranks)
    open_pool = _servers if placement == "server" else _ray
    if ranks.size == 1:
        return _checked(recipe, *open_pool(recipe, settings))
    if recipe.rollout.dynamic_sampling is not None or recipe.env is not None:
        name = "rollout.dynamic_sampling" if recipe.rollout.dynamic_sampling is not None else "env"
        raise ConfigError(
            f"{name} asks for completions rank by rank, which rollout.placement={placement} with "
            f"{ranks.size} trainer processes cannot serve; use placement colocated, or one process"
        )
    opened = _checked(recipe, *open_pool(recipe, settings)) if ranks.main else None
    ranks.on_main(lambda: True)  # the others wait, and learn if it failed
    return RankZeroEngine(ranks, opened[0] if opened else None), opened[1] if opened else EngineFaults


def _checked(recipe: Recipe, engine: TrainedEngine, take_faults: TakeFaults) -> tuple[RolloutEngine, TakeFaults]:
    return VerifiedEngine(engine, recipe.rollout.verify_weights), take_faults


def engine_settings(recipe: Recipe, source: str) -> EngineSettings:
    """The recipe's words as an engine's."""
    rollout = recipe.rollout
    return EngineSettings(
        kind="vllm" if rollout.engine == "auto" else rollout.engine,  # a run has settled it
        model=source,
        dtype=dtype_here(recipe.model.dtype),
        max_length=recipe.model.max_length,
        max_sequences=rollout.max_sequences,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory=rollout.gpu_memory,
        eager=rollout.eager,
        threads=rollout.threads,
        sleep=rollout.sleep,
    )


def _colocated(recipe: Recipe, settings: EngineSettings, ranks: Ranks) -> tuple[RolloutEngine, TakeFaults]:
    rollout = recipe.rollout
    if not rollout.isolated:
        return _checked(recipe, build_engine(settings), EngineFaults)
    engine = ProcessEngine(
        settings,
        log=recipe.run_dir / ("engine.log" if ranks.size == 1 else f"engine-{ranks.rank}.log"),
        start_timeout_s=rollout.start_timeout_s,
        stall_timeout_s=rollout.stall_timeout_s,
        max_restarts=recipe.limits.max_engine_restarts,
        environment=_own_gpu(ranks),
    )
    return _checked(recipe, engine, engine.take_faults)


def _own_gpu(ranks: Ranks) -> dict[str, str]:
    """The engine takes the GPU of its trainer process; left alone, all engines of a machine would take the first."""
    import torch

    if ranks.size == 1 or not torch.cuda.is_available():
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": names[int(os.environ.get("LOCAL_RANK", ranks.rank)) % len(names)]}


def _servers(recipe: Recipe, settings: EngineSettings) -> tuple[TrainedEngine, TakeFaults]:
    from llmrl.rollout.pool import EnginePool
    from llmrl.rollout.serve import ServerProcess, share_of_cores
    from llmrl.rollout.servers import Server

    config, rollout = recipe.rollout.servers, recipe.rollout
    key = os.environ.get(config.key_variable) if config.urls else secrets.token_urlsafe(16)
    with ExitStack() as started:
        processes: list[ServerProcess] = []
        for number in range(0 if config.urls else config.start):
            processes.append(
                ServerProcess(
                    settings,
                    key=key or "",
                    log=recipe.run_dir / f"server-{number}.log",
                    cores=share_of_cores(number, config.start),
                    start_timeout_s=rollout.start_timeout_s,
                )
            )
            started.callback(processes[-1].close)
        for process in processes:
            process.wait()
        transfer = _transfer(config)
        started.callback(transfer.close)
        server = partial(
            Server, key=key, transfer=transfer, request_s=config.request_timeout_s, update_s=config.update_timeout_s
        )
        servers = [server(url) for url in config.urls] + [server(one.url, process=one) for one in processes]
        pool = EnginePool(servers, transfer, patience=_patience(recipe))
        started.pop_all()
    return pool, pool.take_faults


def _patience(recipe: Recipe) -> Patience:
    from llmrl.rollout.pool import Patience

    return Patience(
        stall_s=recipe.rollout.stall_timeout_s,
        update_s=recipe.rollout.servers.update_timeout_s,
        start_s=recipe.rollout.start_timeout_s,
        max_restarts=recipe.limits.max_engine_restarts,
    )


def _transfer(config: ServersConfig) -> Transfer:
    import torch

    from llmrl.rollout.transfer import Direct, Files

    if config.transfer == "files":
        folder = Path(config.weights_dir)
        if not folder.is_dir():
            raise ConfigError(
                f"rollout.servers.weights_dir={folder} is not a folder; it must be one that the servers see too"
            )
        return Files(folder)
    if config.transfer == "nccl" and not torch.cuda.is_available():
        raise ConfigError(
            "rollout.servers.transfer=nccl needs a GPU, and there is none; use files, or gloo between CPUs"
        )
    return Direct(config.transfer, timeout_s=config.update_timeout_s)


def _ray(recipe: Recipe, settings: EngineSettings) -> tuple[TrainedEngine, TakeFaults]:
    from llmrl.rollout.pool import EnginePool
    from llmrl.rollout.ray_pool import RayActor, RayCluster

    config, start_s = recipe.rollout.ray, recipe.rollout.start_timeout_s
    stall_s = max(recipe.rollout.stall_timeout_s, recipe.rollout.servers.request_timeout_s)
    cluster = RayCluster(
        actors=config.actors, cpus=config.cpus, gpus=config.gpus, address=config.address, start_timeout_s=start_s
    )
    actors = [
        RayActor(number, cluster, settings, start_timeout_s=start_s, stall_timeout_s=stall_s)
        for number in range(config.actors)
    ]
    pool = EnginePool(actors, cluster, patience=_patience(recipe))
    return pool, pool.take_faults


def native_engine(recipe: Recipe, policy: Policy, mode: ForwardMode) -> tuple[RolloutEngine, TakeFaults]:
    """An engine that samples with the trained `policy` itself. Raises ConfigError where that cannot be."""
    from llmrl.rollout.native import NativeEngine

    if mode == "plain":
        raise ConfigError(
            f"rollout.engine=native needs model.forward=packed, and {recipe.model.path} runs {mode}; "
            "set rollout.engine=vllm"
        )
    return NativeEngine(
        engine_settings(recipe, policy.source),
        model=policy.causal_lm,
        tokenizer=policy.tokenizer,
        reader=policy.pictures,
    ), EngineFaults
