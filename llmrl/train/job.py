"""What a run is made of, and the parts of a step that need more than one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

from llmrl.batch import Adaptive, Algorithm, Batch
from llmrl.rollout.process import EngineFaults
from llmrl.rollout.store import rollouts_file, write_rollouts
from llmrl.settings.recipe import Recipe
from llmrl.train.checkpoint import TrainState, Writer
from llmrl.train.clock import Clock
from llmrl.train.interrupts import Interrupts
from llmrl.train.log import Log
from llmrl.train.models import Models
from llmrl.train.rollout_queue import RolloutQueue
from llmrl.train.sample import all_ranks
from llmrl.train.world import World
from llmrl.types import Trajectory

Evaluate = Callable[[int], dict[str, float]]  # policy version -> metrics of the held-out problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything a run is made of, already built."""

    recipe: Recipe
    world: World
    models: Models
    algo: Algorithm  # as the recipe says; see `resumed`
    rollouts: RolloutQueue  # the engine, and the batches it makes
    engine_faults: Callable[[], EngineFaults]  # since the last call
    evaluate: Evaluate
    writer: Writer | None  # on rank 0
    log: Log
    interrupts: Interrupts


def resumed(algo: Algorithm, state: TrainState) -> Algorithm:
    """The algorithm with the hyper-parameters that feedback had given it at `state`."""
    return replace(algo, **state.algo) if "feedback" in algo.needs else algo  # type: ignore[type-var]


def adapted(algo: Algorithm, metrics: Mapping[str, float]) -> Algorithm:
    """The next step's algorithm: another one only if it needs feedback, and if the policy moved (no warm-up step)."""
    return cast(Adaptive, algo).adapted(metrics) if "feedback" in algo.needs and metrics["lr"] > 0 else algo


def store(job: Job, step: int, trajectories: Sequence[Trajectory], batch: Batch, clock: Clock) -> list[Trajectory]:
    """Write the step's rollouts of all ranks with their advantages; returns all ranks' trajectories."""
    with clock("store"):
        everyone = job.world.gather(list(zip(trajectories, mean_advantages(batch), strict=True)))
        if job.world.main:
            rows, advantages = zip(*everyone, strict=True)
            write_rollouts(rollouts_file(job.recipe.run_dir, step), rows, advantages)
    return [trajectory for trajectory, _ in everyone]


def mean_advantages(batch: Batch) -> list[float | None]:
    """Mean advantage over each row's sampled tokens; None for rows that do not train or algorithms without any."""
    if batch.advantages is None:
        return [None] * batch.rows
    sums = batch.advantages.where(batch.mask, 0.0).sum(1)
    counts = batch.mask.sum(1)
    return [s / n if n else None for s, n in zip(sums.tolist(), counts.tolist(), strict=True)]


def engine_health(job: Job) -> dict[str, float]:
    """How often engines were replaced, completions sampled again, and trajectories left out as too old, since the last
    call, over all ranks.
    """
    faults = job.engine_faults()
    return job.world.sum_metrics(
        {
            "engine/restarts": faults.restarts,
            "engine/regenerated": faults.regenerated,
            "rollout/too_stale": job.rollouts.take_too_stale(),
        }
    )


def evaluated(job: Job, state: TrainState) -> TrainState:
    """Measure the policy on the held-out problems and log it."""
    clock = Clock()
    with clock("eval"):
        metrics = job.rollouts.run(lambda: job.evaluate(state.step))
    metrics |= engine_health(job) | {"time/eval": clock.seconds()["time/eval"]}
    return job.log.evaluation(state, metrics)


def save(job: Job, state: TrainState, algo: Algorithm) -> TrainState:
    """Write a checkpoint of `state`, with the metrics file as long as it is now and what feedback changed in `algo`."""
    clock = Clock()
    with clock("checkpoint"):
        if state.accuracy is not None and (state.best is None or state.accuracy > state.best):
            state = replace(state, best=state.accuracy, best_step=state.step)
        names = [item.name for item in fields(algo)] if "feedback" in algo.needs else []  # type: ignore[arg-type]
        changed = {name: getattr(algo, name) for name in names if getattr(algo, name) != getattr(job.algo, name)}
        state = replace(state, metrics_bytes=job.log.bytes, algo=changed)
        pending = all_ranks(job.rollouts.pending(), job.world)
        tensors = job.models.tensors()
        if job.writer is not None:
            job.writer.save(job.models.policy, tensors, state, critic=job.models.critic, pending=pending)
        else:
            job.models.join_gather()
    job.log.saved(clock.seconds()["time/checkpoint"])
    return state
