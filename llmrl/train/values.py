"""How the value model learns: its optimizer, its targets' running statistics, and what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from llmrl.batch import Batch
from llmrl.policy.critic import Critic
from llmrl.settings.model import CriticConfig
from llmrl.train.protocols import ShardedOptimizer
from llmrl.train.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticTrainer:
    """The value model with its own optimizer. `moments` are decayed sums of the targets' 1, value and square."""

    critic: Critic
    updater: ShardedOptimizer
    config: CriticConfig
    moments: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))

    def with_targets(self, batch: Batch, world: World) -> Batch:
        """After credit: move the targets' statistics by this step's returns of all ranks, and give the batch its unit.

        Nothing happens without `whiten_targets`. No value changes: the head follows its statistics.
        """
        if not self.config.whiten_targets or batch.returns is None:
            return batch
        returns = batch.returns[batch.mask].double()
        sums = torch.stack([torch.ones_like(returns).sum(), returns.sum(), returns.square().sum()])
        sums = world.sum_(sums).cpu()
        if sums[0] > 0:
            self.moments.mul_(self.config.target_decay).add_((1 - self.config.target_decay) * sums / sums[0])
        count, total, squares = self.moments.unbind()
        head = self.critic.head
        if count > 0:
            mean = total / count
            deviation = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(self.config.target_std_floor)
            head.move_targets(mean.to(head.mean), deviation.to(head.deviation))
        return replace(batch, value_unit=head.deviation.clone())

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs: master weights and Adam's averages, the targets' statistics."""
        head = self.critic.head
        targets = {"mean": head.mean, "deviation": head.deviation, "moments": self.moments}
        return self.updater.state() | {f"target/{name}": x.detach() for name, x in targets.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.updater.load(state)
        head = self.critic.head
        for name, x in (("mean", head.mean), ("deviation", head.deviation), ("moments", self.moments)):
            x.copy_(state[f"target/{name}"])
