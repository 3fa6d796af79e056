"""The training loop. It reads top to bottom: rollouts, batch, credit, update, sync, log."""

from __future__ import annotations

from dataclasses import replace

from llmrl.train.checkpoint import TrainState
from llmrl.train.clock import Clock
from llmrl.train.job import (
    Job,
    described,
    evaluated,
    finished,
    observed,
    out_of_patience,
    out_of_time,
    save,
    steered,
)
from llmrl.train.learn import learn
from llmrl.train.telemetry import check_limits


def train(job: Job, state: TrainState) -> TrainState:
    """Run the steps that `state` has not done yet; if interrupted, end early after a whole step and its checkpoint.

    So too, but evaluated, when `train.max_hours` or `train.patience` says so; `ended` of the returned state tells why.
    """
    recipe, models, world = job.recipe, job.models, job.world
    state = replace(state, ended=out_of_patience(job))
    job.rollouts.load(models.policy.weights(), version=state.step)
    if state.step == 0:
        state = evaluated(job, state)
    while not finished(job, state):
        step, clock = state.step, Clock()
        trajectories = job.rollouts.take(step, clock, state.knobs)
        batch = models.collate(trajectories)
        with clock("update"):
            batch, metrics = learn(*steered(models, job.algo, state.knobs), batch, step)
        with clock("sync"):
            job.rollouts.load(models.policy.weights(), version=step + 1)
        metrics |= described(job, step + 1, trajectories, batch, clock)
        with clock("update"):
            state, metrics = observed(job, state, metrics)
        state = job.log.step(state, metrics, clock)
        check_limits(metrics, recipe.limits, skipped_in_a_row=state.skipped_in_a_row, step=state.step)
        late = out_of_time(job)
        last = bool(late) or finished(job, state)
        if last or (recipe.eval.every and state.step % recipe.eval.every == 0):
            state = evaluated(job, state)
        if state.step < recipe.train.steps:
            state = replace(state, ended=late or out_of_patience(job))
        stopping = world.any(job.interrupts.requested)
        if last or state.ended or stopping or state.step % recipe.train.save_every == 0:
            state = save(job, state)
        if stopping:
            break
    return state
