"""One rollout's worth of learning: annotate, credit, then epochs x minibatches x micro-batches of gradient."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from llmrl.batch import Algorithm, Batch, Output, Reporting
from llmrl.policy.critic import Critic
from llmrl.policy.forward import ForwardMode, ValueHead, forward
from llmrl.settings.recipe import TrainConfig
from llmrl.train.collate import joined, with_totals
from llmrl.train.microbatches import microbatches, minibatches, packed_tokens
from llmrl.train.protocols import Forward, Moves
from llmrl.train.updater import learning_rate
from llmrl.train.values import CriticTrainer
from llmrl.train.world import World

MISMATCH = "mismatch/mean_abs_logprob"  # |sampler - trainer|, nats per token
COUNTS = frozenset({"update/skipped", "tokens/trained", "tokens/packed", "rows/skipped"})
Movers = dict[str, tuple[Moves, float]]  # metric of its gradient norm -> optimizer, learning rate
NO_SKIP = frozenset(
    {"values", "ref_logprobs", "entropy", "whole_groups"}
)  # terms that a zero advantage does not switch off


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobModel:
    """How log-probabilities are computed: which model, packed or plain, at which temperature, in which portions.

    With a sharded model every forward pass is a collective: `forward` is then the wrapped model's, and `together` gives
    the number of passes that all ranks make, at least this rank's own.
    """

    model: nn.Module
    mode: ForwardMode
    temperature: float
    tokens_per_microbatch: int
    forward: Forward = forward
    together: Callable[[int], int] = int

    def __call__(self, batch: Batch, *, entropy: bool = False, value_head: ValueHead | None = None) -> Output:
        return self.forward(
            self.model, batch, mode=self.mode, temperature=self.temperature, entropy=entropy, value_head=value_head
        )

    def missing(self, passes: int) -> int:
        """How many idle passes this rank adds to its own `passes`, so that all ranks make as many. Ask before the first."""
        return self.together(passes) - passes

    def logprobs(self, batch: Batch, *, rows: Tensor | None = None) -> Tensor:
        """[B, T] float32 without gradient, 0 outside the mask and outside `rows` ([N] int64; None: all)."""

        def only(part: Batch) -> list[Tensor]:
            return [self(part).logprobs]

        if rows is None:
            return self.without_gradient(batch, only)[0]
        whole = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=batch.tokens.device)
        if len(rows):
            part = batch.select(rows)
            whole[rows, : part.tokens.shape[1]] = self.without_gradient(part, only)[0]
        else:
            with torch.no_grad():
                for _ in range(self.missing(0)):
                    only(idle(batch))
        return whole

    def logprobs_and_values(self, batch: Batch, head: ValueHead) -> tuple[Tensor, Tensor]:
        """Both [B, T] float32 without gradient, 0 outside the mask, from one forward pass."""

        def both(part: Batch) -> list[Tensor]:
            out = self(part, value_head=head)
            assert out.values is not None
            return [out.logprobs, out.values]

        logprobs, values = self.without_gradient(batch, both)
        return logprobs, values

    def without_gradient(self, batch: Batch, compute: Callable[[Batch], list[Tensor]]) -> list[Tensor]:
        """What `compute` gives of every micro-batch, put together: each [B, T] float32."""
        found: list[Tensor] = []
        with torch.no_grad():
            portions = microbatches(batch, budget=self.tokens_per_microbatch, whole_groups=False)
            missing = self.missing(len(portions))
            for rows in portions:
                parts = compute(batch.select(rows))
                blank = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=batch.tokens.device)
                found = found or [blank.clone() for _ in parts]
                for whole, part in zip(found, parts, strict=True):
                    whole[rows, : part.shape[1]] = part.float().to(whole.device)
            for _ in range(missing):
                compute(idle(batch))
        return found


def annotate(
    batch: Batch,
    *,
    needs: frozenset[str],
    policy: LogprobModel,
    reference: Callable[[Batch], Tensor] | None,
    updates: int,
    critic: Critic | None = None,
) -> Batch:
    """Add the values and log-probabilities the algorithm asked for, without gradient.

    With one update a rollout the old log-probabilities are the ones the update computes anyway, so they stay None; so they
    do where `update` can leave out rows, because credit says which.
    """
    old = "old_logprobs" in needs and updates > 1 and bool(needs & NO_SKIP)
    if "values" in needs:
        if critic is None:
            raise ValueError("the algorithm needs values and there is no value model")
        if critic.model is None:
            logprobs, values = policy.logprobs_and_values(batch, critic.head)
            batch = replace(batch, values=values, old_logprobs=logprobs if old else None)
        else:
            (values,) = policy.without_gradient(batch, lambda part: [critic.values(part)])
            batch = replace(batch, values=values)
    if old and batch.old_logprobs is None:
        batch = replace(batch, old_logprobs=policy.logprobs(batch))
    if "ref_logprobs" in needs:
        if reference is None:
            raise ValueError("the algorithm needs ref_logprobs and there is no reference model")
        batch = replace(batch, ref_logprobs=reference(batch))
    return batch


def credit(algo: Algorithm, batch: Batch, world: World) -> Batch:
    """The algorithm's credit; one that looks across groups sees the rows of all ranks."""
    if world.size == 1 or "whole_batch" not in algo.needs:
        return algo.credit(batch)
    parts = world.gather([replace(batch, privileged=None).to("cpu")])
    whole = algo.credit(joined(parts))
    before = sum(part.rows for part in parts[: world.rank])
    mine = whole.select(torch.arange(before, before + batch.rows)).to(batch.tokens.device)
    return replace(batch, advantages=mine.advantages, returns=mine.returns)


def update(
    batch: Batch, logprob_model: LogprobModel, algo: Algorithm, updater: Moves, config: TrainConfig, *, step: int, seed: int,
    world: World, critic_trainer: CriticTrainer | None = None,
) -> dict[str, float]:  # fmt: skip
    """All optimizer steps of one rollout. Returns their metrics: means over the steps, and sums for counts.

    `batch` carries credit. A non-finite loss or gradient skips that optimizer step and is counted in `update/skipped`.
    In the value model's warm-up steps the policy is only read. With `stop_kl`, an optimizer step that finds the policy
    too far from the rollout's is not made, nor any after it.
    """
    rate = partial(learning_rate, step, total=config.steps, warmup=config.warmup_steps, schedule=config.schedule)
    warming = critic_trainer is not None and step < critic_trainer.config.warmup_steps
    rates = {"lr": 0.0 if warming else rate(peak=config.lr)}
    movers: Movers = {"grad_norm": (updater, rates["lr"])}
    if critic_trainer is not None:
        batch = critic_trainer.with_targets(batch, world)
        rates["value/lr"] = rate(peak=critic_trainer.config.lr)
        movers = ({} if warming else movers) | {"value/grad_norm": (critic_trainer.updater, rates["value/lr"])}
    if "old_logprobs" in algo.needs and batch.old_logprobs is None and config.epochs * config.minibatches > 1:
        batch = replace(batch, old_logprobs=logprob_model.logprobs(batch, rows=rows_that_learn(batch, algo.needs)))
    found: list[dict[str, float]] = []
    stopped = False
    for part in _parts(batch, config, order=(seed, step, "minibatches")):
        part = with_totals(part, reduce=world.sum_)
        with updater.frozen() if warming else nullcontext():
            metrics = _accumulate(part, algo, logprob_model, updater, critic_trainer, config, world)
        stopped = bool(found) and _too_far(metrics, config.stop_kl)
        if stopped:
            _discard(movers)
            break
        found.append({"grad_norm": 0.0} | metrics | _step(movers, finite=math.isfinite(metrics["loss"])))
    names = {name for metrics in found for name in metrics}
    totals = {name: sum(metrics.get(name, 0.0) for metrics in found) for name in names}
    means = {name: value if name in COUNTS else value / len(found) for name, value in totals.items()}
    if config.stop_kl is not None:
        means |= {"update/stopped": float(stopped), "update/steps": float(len(found))}
    if isinstance(algo, Reporting):
        means |= algo.report(means)
    # Later optimizer steps compare with a policy that has moved, which is not a mismatch.
    return means | rates | {MISMATCH: found[0][MISMATCH]}


def _parts(batch: Batch, config: TrainConfig, *, order: tuple[str | int, ...]) -> Iterator[Batch]:
    for epoch in range(config.epochs):
        yield from minibatches(batch, config.minibatches, order=(*order, epoch))


def _too_far(metrics: Mapping[str, float], limit: float | None) -> bool:
    if limit is None or metrics["tokens/trained"] == 0:
        return False
    if "approx_kl" not in metrics:
        raise ValueError("train.stop_kl needs an algorithm that reports approx_kl; remove it")
    return metrics["approx_kl"] > limit


def _step(movers: Movers, *, finite: bool) -> dict[str, float]:
    """Gradient norms, and whether any of the optimizers made no step."""
    if not finite:
        _discard(movers)
        return dict.fromkeys(movers, math.nan) | {"update/skipped": 1.0}
    done = {name: updater.step(lr) for name, (updater, lr) in movers.items()}
    applied = all(applied for _, applied in done.values())
    return {name: norm for name, (norm, _) in done.items()} | {"update/skipped": 0.0 if applied else 1.0}


def _discard(movers: Movers) -> None:
    for updater, _ in movers.values():
        updater.discard()


def _output(
    micro: Batch, needs: frozenset[str], logprob_model: LogprobModel, critic_trainer: CriticTrainer | None
) -> Output:
    """What policy and value model say of a micro-batch, with gradient."""
    critic = critic_trainer.critic if critic_trainer is not None else None
    head = critic.head if critic is not None and critic.model is None else None
    out = logprob_model(micro, entropy="entropy" in needs, value_head=head)
    return replace(out, values=critic.values(micro)) if critic is not None and critic.model is not None else out


def _accumulate(
    part: Batch,
    algo: Algorithm,
    logprob_model: LogprobModel,
    updater: Moves,
    critic_trainer: CriticTrainer | None,
    config: TrainConfig,
    world: World,
) -> dict[str, float]:
    """Backward passes of one optimizer step, micro-batch by micro-batch; its loss and metrics over all ranks."""
    running = rows_that_learn(part, algo.needs)
    sums: dict[str, Tensor] = {}
    counts = Counter({"rows/skipped": part.rows - len(running)})
    chosen = part.select(running) if len(running) else None
    budget, whole = config.tokens_per_microbatch, "whole_groups" in algo.needs
    portions = microbatches(chosen, budget=budget, whole_groups=whole) if chosen is not None else []
    missing = logprob_model.missing(len(portions))
    for rows in portions:
        micro = chosen.select(rows) if chosen is not None else part
        out = _output(micro, algo.needs, logprob_model, critic_trainer)
        counts["tokens/packed"] += packed_tokens(micro)
        micro = micro.to(out.logprobs.device)
        result = algo.loss(out, micro)
        updater.backward(result.value)
        gap = ((out.logprobs.detach() - micro.logprobs).abs() * micro.mask).sum()
        shares = {"loss": result.value, "tokens/trained": micro.mask.sum(), MISMATCH: gap, **result.metrics}
        for name, value in shares.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float()
    for _ in range(missing):
        out = _output(idle(part), algo.needs, logprob_model, critic_trainer)
        nothing = out.logprobs.sum() if out.values is None else out.logprobs.sum() + out.values.sum()
        updater.backward(nothing * 0.0)
    names = list(sums)
    values = torch.stack([sums[name] for name in names]).tolist() if names else []
    metrics = world.sum_metrics({"loss": 0.0, "tokens/trained": 0.0, MISMATCH: 0.0} | dict(zip(names, values)) | counts)
    # Rows with zero advantage are not run: per-token metrics become means over the tokens that were.
    ran = max(1.0, metrics["tokens/trained"])
    metrics[MISMATCH] /= ran
    scale = float(part.tokens_total) / ran
    kept = {"loss", MISMATCH, *COUNTS}
    return {name: value if name in kept else value * scale for name, value in metrics.items()}


def idle(batch: Batch) -> Batch:
    """The shortest row alone: a cheap pass of a rank that has nothing to do while others still work."""
    return batch.select(batch.length.argmin()[None])


def rows_that_learn(batch: Batch, needs: frozenset[str]) -> Tensor:
    """Rows that can have a gradient: any mask, and, if advantages are all there is, one that is not exactly zero."""
    alive = batch.mask.any(1)
    if batch.advantages is not None and not (needs & NO_SKIP):
        alive = alive & ((batch.advantages != 0) & batch.mask).any(1)
    return alive.nonzero().squeeze(1)
