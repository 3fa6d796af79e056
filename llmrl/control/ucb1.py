"""A bandit over points of each knob's range: UCB1 (Auer, Cesa-Bianchi and Fischer 2002, Machine Learning 47).

Of K arms, after t plays of which n_k were of arm k and brought m_k on average, the next is

    argmax_k  m_k + c s sqrt(2 ln t / n_k),

untried arms first, ties by lot. s, the standard deviation of all rewards, is our addition: rewards need not lie in [0, 1],
and c has no unit. Each knob is a bandit of its own, paid what all of them together brought; the view is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llmrl.errors import ConfigError


class Bandit:
    """`arms` points a knob, from one end of the unit box to the other. Raises ConfigError for fewer than two."""

    def __init__(self, *, knobs: int, arms: int = 5, c: float = 0.5, seed: int = 0) -> None:
        if arms < 2:
            raise ConfigError(f"arms={arms} leaves a bandit no choice; set it to 2 or more")
        self.points = torch.linspace(-1, 1, arms, dtype=torch.float64)
        self.c, self.generator = c, torch.Generator().manual_seed(seed)
        self.counts, self.sums = (torch.zeros(knobs, arms, dtype=torch.float64) for _ in range(2))
        self.square = torch.zeros((), dtype=torch.float64)
        self.arm = torch.full((knobs,), -1)

    def choose(self, view: Tensor, reward: float, last: Tensor) -> Tensor:
        rows = torch.arange(len(self.arm))
        if math.isfinite(reward) and int(self.arm[0]) >= 0:
            self.counts[rows, self.arm] += 1
            self.sums[rows, self.arm] += reward
            self.square += reward**2
        plays = self.counts[0].sum()
        spread = (self.square / plays.clamp_min(1) - (self.sums[0].sum() / plays.clamp_min(1)) ** 2).clamp_min(0).sqrt()
        tried = self.counts.clamp_min(1)
        bonus = self.c * spread * torch.sqrt(2 * plays.clamp_min(1).log() / tried)
        score = torch.where(self.counts > 0, self.sums / tried + bonus, torch.inf)
        ties = torch.rand(score.shape, generator=self.generator, dtype=torch.float64)
        best = score == score.amax(1, keepdim=True)
        self.arm = torch.where(best, ties, -1.0).argmax(1)
        return self.points[self.arm]

    def state(self) -> dict[str, Tensor]:
        kept = {"counts": self.counts, "sums": self.sums, "square": self.square, "arm": self.arm}
        return {name: x.clone() for name, x in kept.items()} | {"generator": self.generator.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.counts, self.sums, self.square, self.arm = (
            state[name].clone() for name in ("counts", "sums", "square", "arm")
        )
        self.generator.set_state(state["generator"])
