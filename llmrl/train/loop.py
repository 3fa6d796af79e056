"""The training loop. It reads top to bottom: rollouts, batch, credit, update, sync, log."""

from __future__ import annotations

from llmrl.train.checkpoint import TrainState
from llmrl.train.clock import Clock
from llmrl.train.collate import collate
from llmrl.train.job import Job, adapted, engine_health, evaluated, resumed, save, store
from llmrl.train.telemetry import check_limits, describe_rollouts
from llmrl.train.update import annotate, credit, update


def train(job: Job, state: TrainState) -> TrainState:
    """Run the steps that `state` has not done yet; if interrupted, end early after a whole step and its checkpoint."""
    recipe, models, world = job.recipe, job.models, job.world
    algo = resumed(job.algo, state)
    job.rollouts.load(models.policy.weights(), version=state.step)
    if state.step == 0:
        state = evaluated(job, state)
    while state.step < recipe.train.steps:
        step, clock = state.step, Clock()
        trajectories = job.rollouts.take(step, clock)
        batch = collate(trajectories, mask_truncated=recipe.rollout.mask_truncated, privileged=models.privileged)
        with clock("update"):
            batch = annotate(
                batch, needs=algo.needs, policy=models.logprob_model, critic=models.critic,
                reference=models.reference_logprobs, updates=recipe.updates_per_step,
            )  # fmt: skip
            batch = credit(algo, batch, world)
            metrics = update(
                batch, models.logprob_model, algo, models.updater, recipe.train, step=step, seed=recipe.seed, world=world,
                critic_trainer=models.critic_trainer,
            )  # fmt: skip
            algo = adapted(algo, metrics)
            models.follow(step + 1)
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
            state = save(job, state, algo)
        if stopping:
            break
    return state
