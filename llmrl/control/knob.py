"""A hyper-parameter that a controller sets: its range, its scale, its pace."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmrl.errors import ConfigError
from llmrl.later import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One hyper-parameter. `max_change` is in shares of the range, 1 being the whole of it. Raises ConfigError."""

    name: str
    low: float
    high: float
    default: float
    log: bool = False
    max_change: float = 1.0

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.low <= self.default <= self.high and 0 < self.max_change <= 1):
            raise ConfigError(
                f"knob {self.name}: low={self.low}, high={self.high}, default={self.default}, "
                f"max_change={self.max_change}; it needs low < high, low <= default <= high and 0 < max_change <= 1"
            )
        if self.log and self.low <= 0:
            raise ConfigError(f"knob {self.name}: low={self.low} has no logarithm; set it above 0 or log to false")

    def value(self, action: float) -> float:
        """From the unit box [-1, 1] to [low, high]."""
        if self.log:
            from llmrl.control.losses import log_uniform

            found = log_uniform(torch.tensor(action, dtype=torch.float64), low=self.low, high=self.high).item()
        else:
            found = self.low + (action + 1) / 2 * (self.high - self.low)
        return min(max(found, self.low), self.high)

    def action(self, value: float) -> float:
        """The inverse of `value`."""
        if self.log:
            return 2 * math.log(value / self.low) / math.log(self.high / self.low) - 1
        return 2 * (value - self.low) / (self.high - self.low) - 1
