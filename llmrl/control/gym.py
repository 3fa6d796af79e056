"""Any gymnasium environment with Box or Discrete actions, and an agent in it.

Observations are flattened by gymnasium (a Discrete observation becomes one-hot); actions in (-1, 1) are stretched to the
Box's bounds. gymnasium comes with the extra `control`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from llmrl.control.config import Actions
from llmrl.control.protocol import Agent
from llmrl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Interface:
    """What an agent needs to know of an environment, and how its raw actions become the environment's."""

    observations: spaces.Space[Any]
    choices: spaces.Space[Any]

    @property
    def obs_size(self) -> int:
        return int(spaces.flatdim(self.observations))

    @property
    def actions(self) -> Actions:
        """Raises ConfigError for spaces that are neither Discrete nor a bounded Box."""
        space = self.choices
        if isinstance(space, spaces.Discrete):
            return Actions(size=int(space.n), discrete=True)
        if isinstance(space, spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
            return Actions(size=int(np.prod(space.shape)))
        raise ConfigError(f"controllers act in a Discrete or a bounded Box space, not {space}; wrap the environment")

    def tensor(self, observation: Any) -> Tensor:
        return torch.as_tensor(np.asarray(spaces.flatten(self.observations, observation), dtype=np.float64))

    def action(self, raw: Tensor) -> Any:
        """u [d] or an index [1] -> an action of the environment."""
        space = self.choices
        if isinstance(space, spaces.Discrete):
            return int(raw[0]) + int(space.start)
        assert isinstance(space, spaces.Box)
        share = ((raw.double().tanh() + 1) / 2).numpy().reshape(space.shape)
        value = space.low + share * (space.high - space.low)
        return (np.rint(value) if np.issubdtype(space.dtype, np.integer) else value).astype(space.dtype)


@dataclass(slots=True)
class Progress:
    """What training leaves behind: `returns[i]` of the i-th finished episode, which ended after `ends[i]` steps."""

    returns: list[float] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


def train(
    agent: Agent,
    env: gymnasium.Env[Any, Any],
    *,
    steps: int,
    seed: int,
    each_step: Callable[[int], None] | None = None,
) -> Progress:
    """Run `agent` in `env` for `steps` steps: random actions until it is ready, then `updates_per_step` a step.

    Several actions of one answer are carried out one after another, or until the episode ends.
    """
    see, progress, episode = Interface(env.observation_space, env.action_space), Progress(), 0.0
    obs, planned = see.tensor(env.reset(seed=seed)[0]), list[Tensor]()
    for step in range(steps):
        planned = planned or list(torch.atleast_2d(agent.act(obs) if agent.ready else agent.random_action()))
        raw = planned.pop(0)
        following, reward, terminated, truncated, _ = env.step(see.action(raw))
        next_obs = see.tensor(following)
        agent.remember(obs=obs, raw=raw, reward=float(reward), next_obs=next_obs, terminated=bool(terminated))
        episode += float(reward)
        if agent.ready:
            for _ in range(agent.config.updates_per_step):
                agent.update()
        if each_step is not None:
            each_step(step)
        obs = next_obs
        if terminated or truncated:
            progress.returns.append(episode)
            progress.ends.append(step + 1)
            obs, episode, planned = see.tensor(env.reset()[0]), 0.0, []
    return progress


def evaluate(
    agent: Agent, env: gymnasium.Env[Any, Any], *, episodes: int, seed: int, decide_every: int = 1
) -> list[float]:
    """Returns of `episodes` episodes without exploration.

    With `decide_every` k the agent is asked every k-th step; of what it answers the first k actions are carried out, the
    last one again and again if there are fewer.
    """
    see, found = Interface(env.observation_space, env.action_space), []
    for episode in range(episodes):
        obs, total, over, step = see.tensor(env.reset(seed=seed + episode)[0]), 0.0, False, 0
        while not over:
            if step % decide_every == 0:
                answer = torch.atleast_2d(agent.act(obs, explore=False))
            raw = answer[min(step % decide_every, len(answer) - 1)]
            following, reward, terminated, truncated, _ = env.step(see.action(raw))
            obs, total, over = see.tensor(following), total + float(reward), bool(terminated or truncated)
            step += 1
        found.append(total)
    return found
