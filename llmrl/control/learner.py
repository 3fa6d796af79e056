"""An agent as a controller: it sees standardised views and learns from the actions that were carried out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llmrl.control.agent import SAC
from llmrl.control.config import Actions, SACConfig
from llmrl.control.protocol import Agent
from llmrl.control.state import flat, under


class Learner:
    """An agent (soft actor-critic, if none is given) over standardised views. One that answers with several actions is asked
    again when they are carried out. What it learns from is the action that was.
    """

    def __init__(
        self, *, fields: int, knobs: int, config: SACConfig | None = None, seed: int, agent: Agent | None = None
    ):
        self.agent: Agent = agent or SAC(
            obs_size=fields, actions=Actions(size=knobs), config=config or SACConfig(), seed=seed
        )
        self.count, self.mean, self.square = (torch.zeros(n, dtype=torch.float64) for n in (1, fields, fields))
        self.obs = torch.full((fields,), math.nan, dtype=torch.float64)
        self.planned = torch.zeros(0, knobs, dtype=torch.float64)  # actions that are still to be carried out

    def choose(self, view: Tensor, reward: float, last: Tensor) -> Tensor | None:
        obs, agent = self._standardised(view), self.agent
        if math.isfinite(reward) and bool(self.obs.isfinite().all()):
            inside = 1 - 1e-6
            raw = torch.atanh(last.clamp(-inside, inside))
            agent.remember(obs=self.obs, raw=raw, reward=reward, next_obs=obs, terminated=False)
            if agent.ready:
                for _ in range(agent.config.updates_per_step):
                    agent.update()
        self.obs = obs
        if not agent.finite():
            return None
        if not agent.ready:
            return agent.random_action().double().tanh()
        if not len(self.planned):
            self.planned = torch.atleast_2d(agent.act(obs)).double().tanh()
        action, self.planned = self.planned[0], self.planned[1:]
        return action

    def _standardised(self, view: Tensor) -> Tensor:
        """Running mean and variance (Welford), clipped to [-5, 5]."""
        self.count = self.count + 1
        delta = view - self.mean
        self.mean = self.mean + delta / self.count
        self.square = self.square + delta * (view - self.mean)
        std = (self.square / self.count).sqrt()
        return ((view - self.mean) / torch.where(std > 1e-8, std, 1.0)).clamp(-5, 5)

    def state(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in ("count", "mean", "square", "obs", "planned")}
        return flat({"agent": self.agent.state()}, own)

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name in ("count", "mean", "square", "obs", "planned"):
            setattr(self, name, state[name].clone())
        self.agent.load(under(state, "agent"))
