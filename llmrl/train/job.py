"""What a run is made of, and the parts of a step that need more than one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from llmrl.batch import Algorithm, Batch, Controller
from llmrl.errors import ConfigError
from llmrl.rollout.process import EngineFaults
from llmrl.rollout.store import rollouts_file, write_rollouts
from llmrl.settings.controller import PROGRESS
from llmrl.settings.recipe import Recipe
from llmrl.train.checkpoint import TrainState, Writer
from llmrl.train.clock import Clock
from llmrl.train.folder import read_metrics
from llmrl.train.interrupts import Interrupts
from llmrl.train.log import Log
from llmrl.train.models import Models
from llmrl.train.rollout_queue import RolloutQueue
from llmrl.train.sample import all_ranks
from llmrl.train.telemetry import describe_rollouts
from llmrl.train.world import World
from llmrl.types import Trajectory

KNOB = "knob/"  # before the names of hyper-parameters that a controller has set, in the metrics
Evaluate = Callable[[int], dict[str, float]]  # policy version -> metrics of the held-out problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything a run is made of, already built."""

    recipe: Recipe
    world: World
    models: Models
    algo: Algorithm  # as the recipe says, as `models` are; see `steered`
    controller: Controller | None  # what sets its hyper-parameters, if anything does
    rollouts: RolloutQueue  # the engine, and the batches it makes
    engine_faults: Callable[[], EngineFaults]  # since the last call
    evaluate: Evaluate | None  # None: the recipe holds no problems out
    writer: Writer | None  # on rank 0
    log: Log
    interrupts: Interrupts
    started: float = field(default_factory=time.monotonic)
    admits: Callable[[], bool] = lambda: True  # whether one more step may be made
    claim: Callable[[], dict[str, Any]] = dict  # what the summary says beside the metrics


def finished(job: Job, state: TrainState) -> bool:
    """Whether all steps are made, or all that a privacy budget pays for, or it was decided to end."""
    return state.step == job.recipe.train.steps or bool(state.ended) or not job.admits()


def steered(models: Models, algo: Algorithm, knobs: Mapping[str, float]) -> tuple[Models, Algorithm]:
    """Both with what a controller has set: `lr` (the peak rate), `temperature`, the algorithm's own numbers.

    Names of other algorithms' are left out.
    """
    names = {item.name for item in fields(algo)}
    known = {name: value for name, value in knobs.items() if name in names}
    config = models.config.model_copy(update={"lr": knobs.get("lr", models.config.lr)})
    policy = replace(models.logprob_model, temperature=knobs.get("temperature", models.logprob_model.temperature))
    return replace(models, config=config, logprob_model=policy), replace(algo, **known)


def observed(job: Job, state: TrainState, metrics: dict[str, float]) -> tuple[TrainState, dict[str, float]]:
    """The state with the controller's knobs for the next step, and the metrics with those of this one.

    A step that did not move the policy (a value model's warm-up) teaches a controller nothing.
    """
    if job.controller is None:
        return state, metrics
    recorded = metrics | {f"{KNOB}{name}": value for name, value in state.knobs.items()}
    controller, view = job.controller, metrics | {PROGRESS: (state.step + 1) / job.recipe.train.steps}
    if metrics["lr"] > 0:  # rank 0 decides: rounding differs between machines
        state = replace(state, knobs=job.world.on_main(lambda: dict(controller.observe(view))))
    return state, recorded


def knobs_of(row: Mapping[str, float]) -> dict[str, float]:
    """What a controller had set when the step of a metrics `row` was trained."""
    return {name.removeprefix(KNOB): value for name, value in row.items() if name.startswith(KNOB)}


def described(job: Job, step: int, trajectories: Sequence[Trajectory], batch: Batch, clock: Clock) -> dict[str, float]:
    """Store the rollouts of `step` and say what they are like. Of private records nothing is stored, and nothing said."""
    if job.recipe.privacy is not None:
        return {}
    return describe_rollouts(store(job, step, trajectories, batch, clock), step=step - 1) | engine_health(job)


def store(job: Job, step: int, trajectories: Sequence[Trajectory], batch: Batch, clock: Clock) -> list[Trajectory]:
    """Write the step's rollouts of all ranks with their advantages; returns all ranks' trajectories."""
    with clock("store"):
        everyone = job.world.gather(list(zip(trajectories, mean_advantages(batch), strict=True)))
        if job.world.main:
            rows, advantages = zip(*everyone, strict=True)
            write_rollouts(rollouts_file(job.recipe.run_dir, step), rows, advantages)
            job.log.completions(step, rows, advantages)
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
    """Measure the policy on the held-out problems, if there are any, and log it."""
    if job.evaluate is None:
        return state
    job.log.doing(f"evaluating the policy of step {state.step}")
    if state.step == 0:
        job.log.say("evaluating the untrained policy")
    clock = Clock()
    evaluate = job.evaluate
    with clock("eval"):
        metrics = job.rollouts.run(lambda: evaluate(state.step))
    metrics |= engine_health(job) | {"time/eval": clock.seconds()["time/eval"]}
    job.log.evaluation(state, metrics)
    return replace(state, accuracy=judged_by(metrics, job.recipe.train.best))


def judged_by(metrics: Mapping[str, Any], best: str) -> float | None:
    """What an evaluation is compared with others by: the metric that train.best names, or else the accuracy, if any.

    Raises ConfigError for a metric that the evaluation has not.

    >>> judged_by({"eval/accuracy": 0.5, "eval/loss": 2.0}, "-eval/loss")
    -2.0
    """
    name = best.removeprefix("-")
    if not best:
        return metrics.get("eval/accuracy")
    if name not in metrics:
        known = ", ".join(sorted(metric for metric in metrics if metric.startswith("eval/")))
        raise ConfigError(f"train.best={best} is no held-out metric here; there are {known}")
    return float(metrics[name]) * (1 if name == best else -1)


def out_of_time(job: Job) -> str:
    """Why the run ends now, by the clock of rank 0; empty if it goes on."""
    hours = job.recipe.train.max_hours
    over = hours is not None and job.world.on_main(lambda: time.monotonic() - job.started >= hours * 3600)
    return f"train.max_hours={hours:g} is over" if over else ""


def out_of_patience(job: Job) -> str:
    """Why the run ends now, by its evaluations so far; empty if it goes on."""
    patience = job.recipe.train.patience
    if patience is None:
        return ""
    waited = job.world.on_main(lambda: since_best(read_metrics(job.recipe.run_dir), job.recipe.train.best))
    if waited < patience:
        return ""
    return f"no better evaluation in the last {waited} (train.patience={patience})"


def since_best(rows: Sequence[Mapping[str, Any]], best: str = "") -> int:
    """How many evaluations among the `rows` of metrics.jsonl came after the best: by train.best, else by accuracy, or by
    loss without one.

    >>> since_best([{"kind": "eval", "eval/accuracy": a} for a in (0.1, 0.3, 0.2, 0.3)])
    2
    """
    evals = [row for row in rows if row["kind"] == "eval"]
    scores = [judged_by(row, best if best or "eval/accuracy" in row else "-eval/loss") or 0.0 for row in evals]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def save(job: Job, state: TrainState) -> TrainState:
    """Write a checkpoint of `state`, with the metrics file as long as it is now and what a controller has learnt."""
    clock = Clock()
    with clock("checkpoint"):
        if state.accuracy is not None and (state.best is None or state.accuracy > state.best):
            state = replace(state, best=state.accuracy, best_step=state.step)
        state = replace(state, metrics_bytes=job.log.bytes)
        pending = all_ranks(job.rollouts.pending(), job.world)
        tensors = job.models.tensors()
        if job.controller is not None:
            tensors["controller"] = job.controller.state()
        if job.writer is not None:
            job.writer.save(job.models.exports(), tensors, state, pending=pending)
        else:
            job.models.join_gather()
    job.log.saved(clock.seconds()["time/checkpoint"])
    return state
