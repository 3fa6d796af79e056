"""What a run is made of, and the parts of a step that need more than one line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from llmrl.batch import Algorithm, Batch
from llmrl.config import Recipe
from llmrl.data.stream import PromptStream
from llmrl.policy.model import Policy
from llmrl.rollout.engine import TrainedEngine
from llmrl.rollout.process import EngineFaults
from llmrl.rollout.roll import roll
from llmrl.rollout.store import rollouts_file, write_rollouts
from llmrl.train.backends.seam import Moves
from llmrl.train.checkpoint import TrainState, Writer
from llmrl.train.clock import Clock
from llmrl.train.interrupts import Interrupts
from llmrl.train.log import Log
from llmrl.train.update import Scorer
from llmrl.train.world import World
from llmrl.types import Prompt, Score, Trajectory

ScoreAll = Callable[[Sequence[Trajectory]], list[Score]]
Evaluate = Callable[[int], dict[str, float]]  # policy version -> metrics of the held-out problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything a run is made of, already built."""

    recipe: Recipe
    world: World
    policy: Policy
    scorer: Scorer
    reference: Callable[[Batch], Tensor] | None
    updater: Moves
    algo: Algorithm
    engine: TrainedEngine
    engine_faults: Callable[[], EngineFaults]  # since the last call
    score: ScoreAll
    stream: PromptStream
    spare: PromptStream  # an order of its own, for prompts that replace uniform groups
    evaluate: Evaluate
    writer: Writer | None  # on rank 0
    log: Log
    interrupts: Interrupts


def rollouts(job: Job, step: int, clock: Clock) -> list[Trajectory]:
    """This rank's scored trajectories of `step`.

    With dynamic sampling, groups whose scores are all equal are replaced by groups of spare prompts, for at most
    `max_rounds` rounds; what is still uniform then stays.
    """
    config = job.recipe.rollout
    found = _sampled(job, job.world.share(job.stream.at(step)), step, clock)
    rounds = config.dynamic_sampling.max_rounds if config.dynamic_sampling else 0
    for number in range(rounds):
        groups = by_prompt(found)
        dull = [prompt for prompt, rows in groups.items() if is_uniform(rows)]
        if not dull:
            break
        spare = job.world.share(job.spare.at(step * rounds + number))
        new = [prompt for prompt in spare if prompt.id not in groups][: len(dull)]
        fresh = by_prompt(_sampled(job, new, step, clock))
        useful = [rows for rows in fresh.values() if not is_uniform(rows)]
        for prompt, rows in zip(dull, useful, strict=False):
            del groups[prompt]
            groups[rows[0].prompt.id] = rows
        found = [trajectory for rows in groups.values() for trajectory in rows]
    return found


def _sampled(job: Job, prompts: list[Prompt], step: int, clock: Clock) -> list[Trajectory]:
    with clock("generate"):
        trajectories = roll(job.engine, prompts, job.recipe.rollout, seed=job.recipe.seed, step=step)
    with clock("reward"):
        scores = job.score(trajectories)
    return [replace(t, scores=(score,)) for t, score in zip(trajectories, scores, strict=True)]


def by_prompt(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Trajectories by prompt id, in order of first appearance."""
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        groups[trajectory.prompt.id].append(trajectory)
    return dict(groups)


def is_uniform(rows: Sequence[Trajectory]) -> bool:
    """Whether a group's rewards are all the same, so that it teaches nothing."""
    return len({row.reward for row in rows}) == 1


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
    """How often engines were replaced and completions sampled again since the last call, over all ranks."""
    faults = job.engine_faults()
    return job.world.sum_metrics({"engine/restarts": faults.restarts, "engine/regenerated": faults.regenerated})


def evaluated(job: Job, state: TrainState) -> TrainState:
    """Measure the policy on the held-out problems and log it."""
    clock = Clock()
    with clock("eval"):
        metrics = job.evaluate(state.step)
    metrics |= engine_health(job) | {"time/eval": clock.seconds()["time/eval"]}
    return job.log.evaluation(state, metrics)


def save(job: Job, state: TrainState) -> TrainState:
    """Write a checkpoint of `state`, with the metrics file as long as it is now."""
    clock = Clock()
    with clock("checkpoint"):
        if state.accuracy is not None and (state.best is None or state.accuracy > state.best):
            state = replace(state, best=state.accuracy, best_step=state.step)
        state = replace(state, metrics_bytes=job.log.bytes)
        optimizer = job.updater.state()
        if job.writer is not None:
            job.writer.save(job.policy, optimizer, state)
        else:
            job.policy.lend()
    job.log.saved(clock.seconds()["time/checkpoint"])
    return state
