"""Transitions, first in first out, as flat tensors: drawn uniformly, or with older ones fading."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FIELDS = ("obs", "raw", "reward", "next_obs", "terminated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitions:
    """B transitions. `raw` is u (the action before tanh) [B, d], or the index of a discrete action as [B, 1]."""

    obs: Tensor  # [B, n]
    raw: Tensor  # [B, d]
    reward: Tensor  # [B]
    next_obs: Tensor  # [B, n]
    terminated: Tensor  # [B], 1 where nothing follows; a time limit is 0

    def joined(self, other: Transitions) -> Transitions:
        return Transitions(**{name: torch.cat([getattr(self, name), getattr(other, name)]) for name in FIELDS})


class Replay:
    """The newest `capacity` transitions. Storage doubles as it fills, so that a large capacity costs nothing unused."""

    def __init__(self, *, obs_size: int, action_size: int, capacity: int, dtype: torch.dtype) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} holds no transition; set it to 1 or more")
        self.capacity, self.added = capacity, 0
        self._square = 0.0  # the mean of all rewards' squares
        widths = {"obs": (obs_size,), "raw": (action_size,), "reward": (), "next_obs": (obs_size,), "terminated": ()}
        room = min(capacity, 1024)
        self._data = {name: torch.zeros(room, *width, dtype=dtype) for name, width in widths.items()}

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, **transition: Tensor | float) -> None:
        """Add one transition: FIELDS by name, obs [n], raw [d]."""
        room = len(self._data["reward"])
        if self.added == room and room < self.capacity:
            more = min(room, self.capacity - room)
            for name, stored in self._data.items():
                self._data[name] = torch.cat([stored, stored.new_zeros(more, *stored.shape[1:])])
        at = self.added % self.capacity
        for name in FIELDS:
            self._data[name][at] = transition[name]
        self.added += 1
        self._square += (float(transition["reward"]) ** 2 - self._square) / self.added

    @property
    def reward_scale(self) -> float:
        """The root mean square of all rewards so far, which brings them to a scale of 1; 1 before the first."""
        return max(math.sqrt(self._square), 1e-6) if self.added else 1.0

    def sample(
        self, rows: int, generator: torch.Generator, *, weights: Callable[[int], Tensor] | None = None
    ) -> Transitions:
        """`rows` transitions with replacement; `weights(n)` [n], oldest first, replaces uniform chances."""
        held = len(self)
        if weights is None:
            index = torch.randint(held, (rows,), generator=generator)
        else:
            age_order = torch.multinomial(weights(held), rows, replacement=True, generator=generator)
            index = (age_order + (self.added if self.added > self.capacity else 0)) % self.capacity
        return Transitions(**{name: stored[index] for name, stored in self._data.items()})

    def state(self) -> dict[str, Tensor]:
        """What is held, how many were ever added, and their rewards' scale."""
        held = {name: stored[: len(self)].clone() for name, stored in self._data.items()}
        square = torch.tensor(self._square, dtype=torch.float64)
        return {**held, "added": torch.tensor(self.added), "square": square}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.added, self._square = int(state["added"]), float(state["square"])
        room = min(self.capacity, max(1024, 1 << (max(len(self), 1) - 1).bit_length()))
        for name, stored in self._data.items():
            self._data[name] = stored.new_zeros(room, *stored.shape[1:])
            self._data[name][: len(self)] = state[name]
