"""One rollout's worth of learning: annotate, credit, then epochs x minibatches x micro-batches of gradient."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from llmrl.batch import Algorithm, Batch, DerivesMetrics, Needs, Output, stacked
from llmrl.policy.critic import Critic
from llmrl.policy.packing import packed_tokens
from llmrl.train.logprob_model import LogprobModel, idle
from llmrl.train.microbatches import microbatches, minibatches
from llmrl.train.models import Models
from llmrl.train.protocols import Optimizer
from llmrl.train.updater import learning_rate
from llmrl.train.world import World

MISMATCH = "mismatch/mean_abs_logprob"  # |sampler - trainer|, nats per token
COUNTS = frozenset({"update/skipped", "tokens/trained", "tokens/packed", "rows/skipped"})
STILL = dict.fromkeys(("loss", "grad_norm", "lr", MISMATCH, *sorted(COUNTS)), 0.0)  # the policy did not learn
Optimizers = dict[str, tuple[Optimizer, float]]  # metric of its gradient norm -> optimizer, learning rate


def learn(models: Models, algo: Algorithm, batch: Batch, step: int) -> tuple[Batch, dict[str, float]]:
    """Everything that one step's rollouts teach: (the batch with its credit, metrics). The loop and replay call this."""
    batch = annotate(models, algo.needs, batch)
    judged: dict[str, float] = {}
    if (outcomes := models.outcome_trainer) is not None:
        batch, judged = outcomes.score(batch)
        judged |= outcomes.learn(batch, step)
    batch = credit(algo, batch, models.world)
    alone = outcomes is not None and outcomes.warming(step)
    metrics = dict(STILL) if alone else update(models, algo, batch, step)
    models.follow(step + 1)
    if models.released is not None:
        metrics = only_released(metrics, models.released())
    return batch, metrics | judged


def annotate(models: Models, needs: Needs, batch: Batch) -> Batch:
    """Add the values and log-probabilities the algorithm asked for, without gradient.

    With one update a rollout the old log-probabilities are the ones the update computes anyway, so they stay None; so they
    do where `update` can leave out rows, because credit says which.
    """
    policy, critic = models.logprob_model, models.critic
    old = needs.old_logprobs and models.config.updates_per_step > 1 and needs.beyond_advantages
    if needs.values:
        if critic is None:
            raise ValueError("the algorithm needs values and there is no value model")
        logprobs, values = _values(policy, critic, batch)
        batch = replace(batch, values=values, old_logprobs=logprobs if old else None)
        batch = replace(batch, final_values=_final_values(models, critic, batch))
    if old and batch.old_logprobs is None:
        batch = replace(batch, old_logprobs=policy.logprobs(batch))
    if needs.ref_logprobs:
        if models.reference is None:
            raise ValueError("the algorithm needs ref_logprobs and there is no reference model")
        batch = replace(batch, ref_logprobs=models.reference.logprobs(policy, batch))
    return batch


def _values(policy: LogprobModel, critic: Critic, batch: Batch) -> tuple[Tensor | None, Tensor]:
    """(log-probabilities if the same pass gives them, values): [B, T] without gradient."""
    if critic.model is None:
        return policy.logprobs_and_values(batch, critic.head)
    (values,) = policy.without_gradient(batch, lambda part: [critic.values(part)])
    return None, values


def _final_values(models: Models, critic: Critic, batch: Batch) -> Tensor | None:
    """[B] the value of the state after each truncated row, 0 elsewhere; None if no rank has any."""
    cut = batch.final_tokens is not None and bool((batch.final_tokens >= 0).any())
    if not models.world.any(cut):
        return None
    after = after_truncation(batch) if cut else idle(batch)
    _, values = _values(models.logprob_model, critic, after)
    found = torch.zeros(batch.rows, device=values.device)
    if cut and batch.final_tokens is not None:
        found[(batch.final_tokens[:, :1] >= 0).any(1)] = values.gather(1, after.length[:, None] - 1).squeeze(1)
    return found


def after_truncation(batch: Batch) -> Batch:
    """What the policy would have seen after each truncated row, followed by one token, whose value is the state's."""
    if batch.final_tokens is None:
        raise ValueError("no row of this batch was truncated")
    rows = (batch.final_tokens[:, :1] >= 0).any(1).nonzero().squeeze(1)
    seen = batch.final_tokens[rows]
    length = (seen >= 0).sum(1)
    tokens = torch.nn.functional.pad(seen, (0, 1)).clamp_min(0)
    mask = torch.arange(tokens.shape[1])[None] == length[:, None]
    chosen = batch.select(rows)
    numbers = torch.arange(len(rows))
    return Batch(
        tokens=tokens, length=length + 1, mask=mask, logprobs=torch.zeros(tokens.shape), step=mask.long() - 1,
        rewards=torch.zeros(tokens.shape), group=numbers, score=chosen.score, prompt_length=length,
        tokens_total=batch.tokens_total, sequences_total=batch.sequences_total, privileged=chosen.privileged,
        pictures=chosen.final_pictures,
    )  # fmt: skip


def comparable(batch: Batch) -> Batch:
    """The batch without what credit does not read, and with what only some ranks may have: their rows then are no given
    ones, and have no baseline.
    """
    rows, device = batch.rows, batch.tokens.device
    return replace(
        batch, privileged=None, pictures=None, final_pictures=None, final_tokens=None, outcome=None,
        given=torch.zeros(rows, dtype=torch.bool, device=device) if batch.given is None else batch.given,
        baseline=batch.score.new_full((rows,), torch.nan) if batch.baseline is None else batch.baseline,
    )  # fmt: skip


def credit(algo: Algorithm, batch: Batch, world: World) -> Batch:
    """The algorithm's credit; one that looks across groups sees the rows of all ranks."""
    if world.size == 1 or not algo.needs.whole_batch:
        return algo.credit(batch)
    parts = world.gather([comparable(batch).to("cpu")])
    whole = algo.credit(stacked(parts))
    before = sum(part.rows for part in parts[: world.rank])
    mine = whole.select(torch.arange(before, before + batch.rows)).to(batch.tokens.device)
    return replace(batch, advantages=mine.advantages, returns=mine.returns)


def update(models: Models, algo: Algorithm, batch: Batch, step: int) -> dict[str, float]:
    """All optimizer steps of one rollout. Returns their metrics: means over the steps, and sums for counts.

    `batch` carries credit. A non-finite loss or gradient skips that optimizer step and is counted in `update/skipped`.
    In the value model's warm-up steps the policy is only read. With `stop_kl`, an optimizer step that finds the policy
    too far from the rollout's is not made, nor any after it.
    """
    config, critic = models.config, models.critic_trainer
    rate = partial(learning_rate, step, total=config.steps, warmup=config.warmup_steps, schedule=config.schedule)
    warming = critic is not None and step < critic.config.warmup_steps
    rates = {"lr": 0.0 if warming else rate(peak=config.lr)}
    optimizers: Optimizers = {"grad_norm": (models.optimizer, rates["lr"])}
    if critic is not None:
        batch = critic.with_targets(batch, models.world)
        rates["value/lr"] = rate(peak=critic.config.lr)
        optimizers = ({} if warming else optimizers) | {"value/grad_norm": (critic.updater, rates["value/lr"])}
    if algo.needs.old_logprobs and batch.old_logprobs is None and config.updates_per_step > 1:
        batch = replace(
            batch, old_logprobs=models.logprob_model.logprobs(batch, rows=rows_that_learn(batch, algo.needs))
        )
    found: list[dict[str, float]] = []
    stopped = False
    order = (models.seed, step, "minibatches")
    parts = (minibatches(batch, config.minibatches, order=(*order, epoch)) for epoch in range(config.epochs))
    for part in chain.from_iterable(parts):
        part = models.with_totals(part)
        with models.optimizer.frozen() if warming else nullcontext():
            metrics = _accumulate(models, algo, part)
        stopped = bool(found) and _too_far(metrics, config.stop_kl)
        if stopped:
            _discard(optimizers)
            break
        # A private step is made whatever its loss is: leaving it out would tell of one record.
        finite = models.released is not None or math.isfinite(metrics["loss"])
        found.append({"grad_norm": 0.0} | metrics | _step(optimizers, finite=finite))
    names = {name for metrics in found for name in metrics}
    totals = {name: sum(metrics.get(name, 0.0) for metrics in found) for name in names}
    means = {name: value if name in COUNTS else value / len(found) for name, value in totals.items()}
    if config.stop_kl is not None:
        means |= {"update/stopped": float(stopped), "update/steps": float(len(found))}
    if isinstance(algo, DerivesMetrics):
        means |= algo.derived_metrics(means)
    # Later optimizer steps compare with a policy that has moved, which is not a mismatch.
    return means | rates | {MISMATCH: found[0][MISMATCH]}


def only_released(metrics: Mapping[str, float], released: Mapping[str, float]) -> dict[str, float]:
    """What a private step may tell: what its optimizer did, which is noised, and what it has `released`."""
    return {name: metrics[name] for name in ("lr", "grad_norm", "update/skipped")} | dict(released)


def _too_far(metrics: Mapping[str, float], limit: float | None) -> bool:
    if limit is None or metrics["tokens/trained"] == 0:
        return False
    if "approx_kl" not in metrics:
        raise ValueError("train.stop_kl needs an algorithm that reports approx_kl; remove it")
    return metrics["approx_kl"] > limit


def _step(optimizers: Optimizers, *, finite: bool) -> dict[str, float]:
    """Gradient norms, and whether any of the optimizers made no step."""
    if not finite:
        _discard(optimizers)
        return dict.fromkeys(optimizers, math.nan) | {"update/skipped": 1.0}
    done = {name: optimizer.step(lr) for name, (optimizer, lr) in optimizers.items()}
    applied = all(applied for _, applied in done.values())
    return {name: norm for name, (norm, _) in done.items()} | {"update/skipped": 0.0 if applied else 1.0}


def _discard(optimizers: Optimizers) -> None:
    for optimizer, _ in optimizers.values():
        optimizer.discard()


def _output(models: Models, micro: Batch, needs: Needs) -> Output:
    """What policy and value model say of a micro-batch, with gradient."""
    critic = models.critic if needs.values else None
    head = critic.head if critic is not None and critic.model is None else None
    out = models.logprob_model(micro, entropy=needs.entropy, value_head=head)
    return replace(out, values=critic.values(micro)) if critic is not None and critic.model is not None else out


def _accumulate(models: Models, algo: Algorithm, part: Batch) -> dict[str, float]:
    """Backward passes of one optimizer step, micro-batch by micro-batch; its loss and metrics over all ranks."""
    running = rows_that_learn(part, algo.needs)
    sums: dict[str, Tensor] = {}
    counts = Counter({"rows/skipped": part.rows - len(running)})
    chosen = part.select(running) if len(running) else None
    budget = models.config.tokens_per_microbatch
    whole = algo.needs.whole_groups or models.released is not None
    portions = microbatches(chosen, budget=budget, whole_groups=whole) if chosen is not None else []
    missing = models.logprob_model.missing(len(portions))
    for rows in portions:
        micro = chosen.select(rows) if chosen is not None else part
        out = _output(models, micro, algo.needs)
        counts["tokens/packed"] += packed_tokens(micro)
        micro = known_logprobs(micro.to(out.logprobs.device), out)
        result = algo.loss(out, micro)
        models.optimizer.backward(result.value, micro.group)
        sampled = micro.mask if micro.sampled is None else micro.mask & micro.sampled[:, None]
        gap = (out.logprobs.detach() - micro.logprobs).abs().where(sampled, 0.0).sum()
        shares = {"loss": result.value, "tokens/trained": micro.mask.sum(), MISMATCH: gap, **result.metrics}
        for name, value in shares.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float()
    for _ in range(missing):
        out = _output(models, idle(part), algo.needs)
        nothing = out.logprobs.sum() if out.values is None else out.logprobs.sum() + out.values.sum()
        models.optimizer.backward(nothing * 0.0)
    names = list(sums)
    values = torch.stack([sums[name] for name in names]).tolist() if names else []
    metrics = models.world.sum_metrics(
        {"loss": 0.0, "tokens/trained": 0.0, MISMATCH: 0.0} | dict(zip(names, values)) | counts
    )
    # Rows with zero advantage are not run: per-token metrics become means over the tokens that were.
    ran = max(1.0, metrics["tokens/trained"])
    metrics[MISMATCH] /= ran
    scale = float(part.tokens_total) / ran
    kept = {"loss", MISMATCH, *COUNTS}
    return {name: value if name in kept else value * scale for name, value in metrics.items()}


def rows_that_learn(batch: Batch, needs: Needs) -> Tensor:
    """Rows that can have a gradient: any mask, and, if advantages are all there is, one that is not exactly zero."""
    alive = batch.mask.any(1)
    if batch.advantages is not None and not needs.beyond_advantages:
        alive = alive & ((batch.advantages != 0) & batch.mask).any(1)
    return alive.nonzero().squeeze(1)


def known_logprobs(batch: Batch, out: Output) -> Batch:
    """Rows whose sampler's log-probabilities nobody knows (gold rows) count as sampled by the policy as it was."""
    if batch.sampled is None or bool(batch.sampled.all()):
        return batch
    own = out.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    return replace(batch, logprobs=torch.where(batch.sampled[:, None], batch.logprobs, own.to(batch.logprobs.dtype)))
