"""What an agent is: whatever learns from transitions which action pays. `SAC`, `SequenceSAC` and `BoostedActorCritic` are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Pace(Protocol):
    """The part of an agent's settings that whoever runs it reads."""

    @property
    def updates_per_step(self) -> int: ...


class Agent(Protocol):
    """Actions are raw: u, whose tanh lies in the unit box, or the index of a choice."""

    @property
    def config(self) -> Pace: ...

    @property
    def ready(self) -> bool:
        """Whether enough transitions are held to update."""
        ...

    def act(self, obs: Tensor, *, explore: bool = True) -> Tensor:
        """obs [n] -> the next action [d], or the next k, to be carried out one after another, [k, d]."""
        ...

    def random_action(self) -> Tensor:
        """[d], while it is not ready."""
        ...

    def remember(self, *, obs: Tensor, raw: Tensor, reward: float, next_obs: Tensor, terminated: bool) -> None:
        """Store the transition of a single action."""
        ...

    def update(self) -> Mapping[str, Tensor]: ...

    def finite(self) -> bool:
        """Whether everything learnt is a number."""
        ...

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...
