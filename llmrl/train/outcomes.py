"""How the outcome critic learns, and what it says of a step's programs before it does.

A program is scored by the critic that has not been trained on it; what the critic then says of it is therefore also a
test of the critic, and goes into the metrics. Afterwards it learns from the same programs, and from the references.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from llmrl.batch import Batch
from llmrl.errors import ConfigError
from llmrl.losses import pooled_logits, token_scores
from llmrl.policy.outcome_critic import OutcomeCritic, quality
from llmrl.settings.model import OutcomeCriticConfig
from llmrl.settings.recipe import TrainConfig
from llmrl.train.logprob_model import LogprobModel, idle
from llmrl.train.microbatches import microbatches, minibatches
from llmrl.train.protocols import ShardedOptimizer
from llmrl.train.updater import learning_rate
from llmrl.train.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeTrainer:
    """The outcome critic with its own optimizer."""

    critic: OutcomeCritic
    updater: ShardedOptimizer
    config: OutcomeCriticConfig
    train: TrainConfig
    policy: LogprobModel  # whose states a shared critic reads, and how batches are cut
    world: World
    seed: int

    def warming(self, step: int) -> bool:
        """Whether the critic alone learns in `step`."""
        return step < self.config.warmup_steps

    def score(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """The batch with the critic's score of each token, and how well the critic predicts what was sampled.

        A row without a verdict has scores of 0. Raises ConfigError if no row of any rank has one.
        """
        if not self.world.any(batch.outcome is not None):
            raise ConfigError(
                "the outcome critic learns what becomes of programs, and the reward does not say: no score has a part "
                "`outcome`; use llmrl.rewards.code_outcome:CodeOutcome"
            )
        found = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
        seen: list[tuple[list[float], int]] = []
        with torch.no_grad():
            for rows, part in self._portions(batch):
                label = self.critic.labels(_outcome(part)).to(self._device)
                logits, mask = self._logits(part), part.mask.to(self._device)
                if rows is None:
                    continue
                scores = token_scores(logits, label, mask, alignment=self.config.alignment, scale=self.config.scale)
                found[rows, : scores.shape[1]] = scores.to(found)
                said = pooled_logits(logits, mask, pool=self.critic.pool).tolist()
                given = [False] * part.rows if part.given is None else part.given.tolist()
                seen += [pair for pair, other in zip(zip(said, label.tolist()), given, strict=True) if not other]
        everyone = self.world.gather(seen)
        metrics = quality([said for said, _ in everyone], [label for _, label in everyone], self.critic.classes)
        return replace(batch, token_scores=found), {f"outcome_critic/{name}": x for name, x in metrics.items()}

    def learn(self, batch: Batch, step: int) -> dict[str, float]:
        """Learn from the batch's programs, if `step` is one of those in which the critic learns; metrics."""
        if not self.config.every or step % self.config.every:
            return {}
        rate = learning_rate(
            step, peak=self.config.lr, total=self.train.steps, warmup=self.train.warmup_steps,
            schedule=self.train.schedule,
        )  # fmt: skip
        losses, norms = [], []
        order = (self.seed, step, "outcome critic")
        for epoch in range(self.config.epochs):
            for part in minibatches(batch, self.config.minibatches, order=(*order, epoch)):
                count = self.world.sum_(torch.tensor(float(len(_judged(part)))))
                losses.append(self._accumulate(part, float(count.clamp_min(1))))
                norms.append(self.updater.step(rate)[0])
        metrics = {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms), "lr": rate}
        return {f"outcome_critic/{name}": value for name, value in metrics.items()}

    def _accumulate(self, part: Batch, programs: float) -> float:
        """Backward passes of one optimizer step: the mean cross-entropy of pooled predictions over all ranks."""
        total = torch.zeros(())
        for rows, micro in self._portions(part):
            logits, mask = self._logits(micro), micro.mask.to(self._device)
            label = self.critic.labels(_outcome(micro)).to(self._device)
            pooled = pooled_logits(logits, mask, pool=self.critic.pool)
            loss = torch.nn.functional.cross_entropy(pooled, label.clamp_min(0), reduction="sum") / programs
            self.updater.backward(loss if rows is not None else 0.0 * loss)
            total += loss.detach().cpu() if rows is not None else 0.0
        return float(self.world.sum_(total))

    def _portions(self, batch: Batch) -> Iterator[tuple[Tensor | None, Batch]]:
        """(row numbers, those rows) of each micro-batch of judged rows, then idle passes, so that all ranks make as many."""
        judged = _judged(batch)
        chosen = batch.select(judged) if len(judged) else None
        budget = self.train.tokens_per_microbatch
        portions = microbatches(chosen, budget=budget, whole_groups=False) if chosen is not None else []
        missing = self.policy.missing(len(portions))
        for rows in portions:
            assert chosen is not None
            yield judged[rows], chosen.select(rows)
        for _ in range(missing):
            yield None, idle(batch)

    def _logits(self, part: Batch) -> Tensor:
        return self.critic.logits(part, states=partial(_states, self.policy))

    @property
    def _device(self) -> torch.device:
        return self.critic.head.weight.device

    def state(self) -> dict[str, Tensor]:
        return self.updater.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.updater.load(state)


def _states(policy: LogprobModel, batch: Batch) -> Tensor:
    """[B, T, D] of the policy, without gradient."""
    with torch.no_grad():
        values = policy(batch, value_head=lambda hidden: hidden).values
    assert values is not None
    return values


def _outcome(batch: Batch) -> Tensor:
    return torch.full((batch.rows,), -1) if batch.outcome is None else batch.outcome


def _judged(batch: Batch) -> Tensor:
    """Numbers of the rows that the critic can learn from: a program with a verdict."""
    return (batch.mask.any(1) & (_outcome(batch) >= 0)).nonzero().squeeze(1)
