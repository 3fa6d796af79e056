"""One rollout's worth of learning: annotate, credit, then epochs x minibatches x micro-batches of gradient."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llmrl.batch import Algorithm, Batch, Output
from llmrl.config import TrainConfig
from llmrl.policy.forward import ForwardMode, forward
from llmrl.seeding import generator
from llmrl.train.backends.seam import Forward, Moves
from llmrl.train.collate import with_totals
from llmrl.train.updater import learning_rate
from llmrl.train.world import World

MISMATCH = "mismatch/mean_abs_logprob"  # |sampler - trainer|, nats per token
COUNTS = frozenset({"update/skipped", "tokens/trained", "tokens/packed", "rows/skipped"})
NO_SKIP = frozenset(
    {"values", "ref_logprobs", "entropy", "whole_groups"}
)  # terms that a zero advantage does not switch off


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
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

    def __call__(self, batch: Batch, *, entropy: bool = False) -> Output:
        return self.forward(self.model, batch, mode=self.mode, temperature=self.temperature, entropy=entropy)

    def missing(self, passes: int) -> int:
        """How many idle passes this rank adds to its own `passes`, so that all ranks make as many. Ask before the first."""
        return self.together(passes) - passes

    def logprobs(self, batch: Batch) -> Tensor:
        """[B, T] float32 without gradient, 0 outside the mask."""
        out = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=batch.tokens.device)
        with torch.no_grad():
            portions = microbatches(batch, budget=self.tokens_per_microbatch, whole_groups=False)
            missing = self.missing(len(portions))
            for rows in portions:
                values = self(batch.select(rows)).logprobs
                out[rows, : values.shape[1]] = values.float()
            for _ in range(missing):
                self(idle(batch))
        return out


def annotate(
    batch: Batch, *, needs: frozenset[str], policy: Scorer, reference: Callable[[Batch], Tensor] | None, updates: int
) -> Batch:
    """Add the log-probabilities the algorithm asked for, without gradient.

    With one update a rollout the old log-probabilities are the ones the update computes anyway, so they stay None.
    """
    if "old_logprobs" in needs and updates > 1:
        batch = replace(batch, old_logprobs=policy.logprobs(batch))
    if "ref_logprobs" in needs:
        if reference is None:
            raise ValueError("the algorithm needs ref_logprobs and there is no reference model")
        batch = replace(batch, ref_logprobs=reference(batch))
    return batch


def update(
    batch: Batch, scorer: Scorer, algo: Algorithm, updater: Moves, config: TrainConfig, *, step: int, seed: int,
    world: World,
) -> dict[str, float]:  # fmt: skip
    """All optimizer steps of one rollout. Returns their metrics: means over the steps, and sums for counts.

    `batch` carries credit. A non-finite loss or gradient skips that optimizer step and is counted in `update/skipped`.
    """
    lr = learning_rate(step, peak=config.lr, total=config.steps, warmup=config.warmup_steps, schedule=config.schedule)
    found: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        for part in minibatches(batch, config.minibatches, order=(seed, step, "minibatches", epoch)):
            part = with_totals(part, reduce=world.sum_)
            metrics = _accumulate(part, algo, scorer, updater, config, world)
            if math.isfinite(metrics["loss"]):
                metrics["grad_norm"], applied = updater.step(lr)
            else:
                updater.discard()
                metrics["grad_norm"], applied = math.nan, False
            found.append(metrics | {"update/skipped": 0.0 if applied else 1.0})
    names = {name for metrics in found for name in metrics}
    totals = {name: sum(metrics.get(name, 0.0) for metrics in found) for name in names}
    means = {name: value if name in COUNTS else value / len(found) for name, value in totals.items()}
    # Later optimizer steps compare with a policy that has moved, which is not a mismatch.
    return means | {"lr": lr, MISMATCH: found[0][MISMATCH]}


def _accumulate(
    part: Batch, algo: Algorithm, scorer: Scorer, updater: Moves, config: TrainConfig, world: World
) -> dict[str, float]:
    """Backward passes of one optimizer step, micro-batch by micro-batch; its loss and metrics over all ranks."""
    running = rows_that_learn(part, algo.needs)
    sums: dict[str, Tensor] = {}
    counts = Counter({"rows/skipped": part.rows - len(running)})
    chosen = part.select(running) if len(running) else None
    budget, whole = config.tokens_per_microbatch, "whole_groups" in algo.needs
    portions = microbatches(chosen, budget=budget, whole_groups=whole) if chosen is not None else []
    missing = scorer.missing(len(portions))
    for rows in portions:
        micro = chosen.select(rows) if chosen is not None else part
        out = scorer(micro, entropy="entropy" in algo.needs)
        result = algo.loss(out, micro)
        updater.backward(result.value)
        gap = ((out.logprobs.detach() - micro.logprobs).abs() * micro.mask).sum()
        shares = {"loss": result.value, "tokens/trained": micro.mask.sum(), MISMATCH: gap, **result.metrics}
        for name, value in shares.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float()
        counts["tokens/packed"] += packed_tokens(micro)
    for _ in range(missing):
        updater.backward(scorer(idle(part)).logprobs.sum() * 0.0)
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


def minibatches(batch: Batch, count: int, *, order: tuple[str | int, ...]) -> Iterator[Batch]:
    """`count` parts with whole groups, shuffled by the keyed `order`; the batch itself if `count` is 1."""
    if count == 1:
        yield batch
        return
    groups = batch.group.unique().tolist()
    generator(*order).shuffle(groups)
    for start in range(count):
        members = torch.tensor(groups[start::count], device=batch.group.device)
        yield batch.select(torch.isin(batch.group, members).nonzero().squeeze(1))


def microbatches(batch: Batch, *, budget: int, whole_groups: bool) -> list[Tensor]:
    """Row indices of each micro-batch: groups of similar length together, at most `budget` packed tokens each.

    A group larger than the budget is cut into runs of rows, unless `whole_groups`. A single row is never cut.
    """
    lengths, prompts, groups = batch.length.tolist(), batch.prompt_length.tolist(), batch.group.tolist()
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    atoms: list[tuple[int, list[int]]] = []
    for rows in members.values():
        atoms += _atoms(rows, lengths, prompts, budget=budget if not whole_groups else None)
    atoms.sort(key=lambda atom: max(lengths[row] - prompts[row] for row in atom[1]))
    found: list[list[int]] = []
    room = 0
    for cost, rows in atoms:
        if not found or cost > room:
            found.append([])
            room = budget
        found[-1] += rows
        room -= cost
    return [torch.tensor(rows, device=batch.tokens.device) for rows in found]


def _atoms(
    rows: list[int], lengths: list[int], prompts: list[int], *, budget: int | None
) -> list[tuple[int, list[int]]]:
    atoms: list[tuple[int, list[int]]] = []
    for row in rows:
        own = lengths[row] - prompts[row]
        if atoms and (budget is None or atoms[-1][0] + own <= budget):
            cost, together = atoms[-1]
            atoms[-1] = (cost + own, [*together, row])
        else:
            atoms.append((prompts[row] + own, [row]))
    return atoms


def packed_tokens(batch: Batch) -> int:
    """Tokens of the packed forward: each group's prompt once, and every row's own."""
    own = (batch.length - batch.prompt_length).sum()
    prompts = {group: size for group, size in zip(batch.group.tolist(), batch.prompt_length.tolist())}
    return int(own) + sum(prompts.values())
