"""The training loop. It reads top to bottom: rollouts, batch, credit, update, sync, log."""

from __future__ import annotations

from llmrl.train.checkpoint import TrainState
from llmrl.train.clock import Clock
from llmrl.train.job import Job, engine_health, evaluated, observed, save, steered, store
from llmrl.train.learn import learn
from llmrl.train.telemetry import check_limits, describe_rollouts


def train(job: Job, state: TrainState) -> TrainState:
    """Run the steps that `state` has not done yet; if interrupted, end early after a whole step and its checkpoint."""
    recipe, models, world = job.recipe, job.models, job.world
    job.rollouts.load(models.policy.weights(), version=state.step)
    if state.step == 0:
        state = evaluated(job, state)
    while state.step < recipe.train.steps:
        step, clock = state.step, Clock()
        trajectories = job.rollouts.take(step, clock)
        batch = models.collate(trajectories)
        with clock("update"):
            batch, metrics = learn(models, steered(job.algo, state.knobs), batch, step)
            state, metrics = observed(job, state, metrics)
        with clock("sync"):
            job.rollouts.load(models.policy.weights(), version=step + 1)
        metrics |= describe_rollouts(store(job, step + 1, trajectories, batch, clock), step=step) | engine_health(job)
        state = job.log.step(state, metrics, clock)
        check_limits(metrics, recipe.limits, skipped_in_a_row=state.skipped_in_a_row, step=state.step)
        last = state.step == recipe.train.steps
        if last or (recipe.eval.every and state.step % recipe.eval.every == 0):
            state = evaluated(job, state)
        stopping = world.any(job.interrupts.requested)
        if last or stopping or state.step % recipe.train.save_every == 0:
            state = save(job, state)
        if stopping:
            break
    return state
