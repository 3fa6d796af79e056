"""The training loop. It reads top to bottom: rollouts, batch, credit, update, sync, log."""

from __future__ import annotations

from llmrl.rollout.verify import sync
from llmrl.train.checkpoint import TrainState
from llmrl.train.clock import Clock
from llmrl.train.collate import collate
from llmrl.train.job import Job, engine_health, evaluated, rollouts, save, store
from llmrl.train.telemetry import check_limits, describe_rollouts
from llmrl.train.update import annotate, update


def train(job: Job, state: TrainState) -> TrainState:
    """Run the steps that `state` has not done yet; if interrupted, end early after a whole step and its checkpoint."""
    recipe, algo, world = job.recipe, job.algo, job.world
    verify = recipe.rollout.verify_weights
    sync(job.engine, job.policy.weights(), version=state.step, verify=verify)
    if state.step == 0:
        state = evaluated(job, state)
    while state.step < recipe.train.steps:
        step, clock = state.step, Clock()
        trajectories = rollouts(job, step, clock)
        batch = collate(trajectories, mask_truncated=recipe.rollout.mask_truncated, device=world.device)
        with clock("update"):
            batch = annotate(
                batch, needs=algo.needs, policy=job.scorer, reference=job.reference, updates=recipe.updates_per_step
            )
            batch = algo.credit(batch)
            metrics = update(
                batch, job.scorer, algo, job.updater, recipe.train, step=step, seed=recipe.seed, world=world
            )
        with clock("sync"):
            share = sync(job.engine, job.policy.weights(), version=step + 1, verify=verify)
        metrics |= (
            {"sync/verified": share}
            | describe_rollouts(store(job, step + 1, trajectories, batch, clock))
            | engine_health(job)
        )
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
