"""What a soft actor-critic is made of: one frozen object, each part an option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmrl.control.losses import DistributionalForm
from llmrl.control.pmoe import ExpertUpdate
from llmrl.control.rlpd import Aggregation, offline_rows
from llmrl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Actions:
    """`size` numbers in (-1, 1), or one of `size` choices."""

    size: int
    discrete: bool = False

    @property
    def width(self) -> int:
        """Numbers that say an action: its d parts, or the index of the choice."""
        return 1 if self.discrete else self.size

    def random(self, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Uniform over the box, as u [d], or over the choices, as an index [1]."""
        if self.discrete:
            return torch.randint(self.size, (1,), generator=generator).to(dtype)
        unit = 2 * torch.rand(self.size, generator=generator, dtype=dtype) - 1
        return torch.atanh(unit.clamp(-1 + 1e-6, 1 - 1e-6))


@dataclass(frozen=True, slots=True, kw_only=True)
class SACConfig:
    """Defaults suit a controller that sees about a hundred transitions. `benchmark()` has the published ones.

    target_entropy: nats; None is -d for d numbers and half of log A for A choices. distributional: DSAC-T's critics and
    which form of their loss; `risk` then acts on mean - risk * std. experts, expert_update: PMOE. fading_replay,
    temporal_advantage: Symphony. critics, target_value, actor_value, offline_share: RLPD. Raises ConfigError.
    """

    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 3e-4
    gamma: float = 0.95
    tau: float = 0.03
    batch_size: int = 16
    updates_per_step: int = 4
    warmup: int = 8  # transitions before the first update; actions are the defaults or random until then
    capacity: int = 100_000
    normalize_critic: bool = True
    normalize_reward: bool = True
    max_grad_norm: float | None = 1.0
    initial_alpha: float = 0.2
    alpha_range: tuple[float, float] = (1e-3, 1.0)
    target_entropy: float | None = None
    actor_every: int = 1  # updates of the critics for one of actor, temperature and targets
    distributional: DistributionalForm | None = None
    risk: float = 0.0
    experts: int = 1
    expert_update: ExpertUpdate = "max"
    fading_replay: bool = False
    temporal_advantage: bool = False
    critics: int = 2
    target_value: Aggregation = "min"
    actor_value: Aggregation = "min"
    offline_share: float = 0.0
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        offline_rows(self.batch_size, self.offline_share)
        wrong = {
            "batch_size must be at least 1": self.batch_size < 1,
            "critics must be at least 1": self.critics < 1,
            "experts must be at least 1": self.experts < 1,
            "distributional critics are two: set critics to 2": bool(self.distributional) and self.critics != 2,
            "risk needs distributional critics: set distributional": self.risk != 0 and self.distributional is None,
            "temporal_advantage and experts > 1 both replace the actor's loss: choose one": self.temporal_advantage
            and self.experts > 1,
            "alpha_range must be 0 < low <= high": not 0 < self.alpha_range[0] <= self.alpha_range[1],
        }
        for message, holds in wrong.items():
            if holds:
                raise ConfigError(f"controller: {message}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == "float64" else torch.float32


def benchmark(**changes: object) -> SACConfig:
    """Soft actor-critic as published (Haarnoja et al. 2018) and as stable-baselines3 runs it."""
    published: dict[str, object] = {
        "hidden": (256, 256), "gamma": 0.99, "tau": 0.005, "batch_size": 256, "updates_per_step": 1, "warmup": 100,
        "capacity": 1_000_000, "normalize_critic": False, "normalize_reward": False, "max_grad_norm": None,
        "initial_alpha": 1.0, "alpha_range": (1e-6, 1e3),
    }  # fmt: skip
    return SACConfig(**{**published, **changes})  # type: ignore[arg-type]
