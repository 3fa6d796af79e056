"""A two-objective toy with a known Pareto front: how much of its hypervolume one preference-conditioned policy covers.

On a line of ten cells an agent goes on or stops. Stopping in cell i pays sqrt(i / 9), each step costs 1 / 9: every cell
is Pareto-optimal, and on the convex hull, so linear preferences can find all ten.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from llmrl.control.agent import SAC
from llmrl.control.config import benchmark
from llmrl.control.gmorl import PreferenceEnv, hypervolume, pareto_front
from llmrl.control.gym import Interface, train

CELLS, STEPS, REFERENCE, SEEDS = 10, 4000, (0.0, -1.1), range(5)


class Line(gymnasium.Env[Any, Any]):
    observation_space = spaces.Discrete(CELLS)
    action_space = spaces.Discrete(2)  # stop, go on
    at = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 0
        return self.at, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        on = int(action) == 1 and self.at < CELLS - 1
        gains = (0.0, -1 / (CELLS - 1)) if on else (float(np.sqrt(self.at / (CELLS - 1))), 0.0)
        self.at += on
        return self.at, 0.0, not on, False, {"objectives": gains}


def true_front() -> np.ndarray:
    return np.array([(np.sqrt(i / (CELLS - 1)), -i / (CELLS - 1)) for i in range(CELLS)])


def reached(agent: SAC, env: PreferenceEnv) -> np.ndarray:
    """The greedy policy's sums of objectives, for 41 preferences."""
    see, points = Interface(env.observation_space, env.action_space), []
    for first in np.linspace(0, 1, 41):
        obs, total, over = env.reset(options={"preference": [first, 1 - first]})[0], np.zeros(2), False
        while not over:
            obs, _, over, _, info = env.step(see.action(agent.act(see.tensor(obs), explore=False)))
            total = total + np.asarray(info["objectives"])
        points.append(total)
    return np.array(points)


def run(seed: int, *, steps: int = STEPS) -> dict[str, float]:
    """Share of the true hypervolume, after `steps` steps (0: before learning)."""
    env = PreferenceEnv(Line(), objectives=2)
    see = Interface(env.observation_space, env.action_space)
    config = benchmark(
        hidden=(64, 64), batch_size=64, learning_rate=1e-3, gamma=1.0, tau=0.02, initial_alpha=0.1, target_entropy=0.1
    )
    agent = SAC(obs_size=see.obs_size, actions=see.actions, config=config, seed=seed)
    train(agent, env, steps=steps, seed=seed)
    front = pareto_front(reached(agent, env))
    return {"score": hypervolume(front, REFERENCE) / hypervolume(true_front(), REFERENCE), "points": float(len(front))}


def jobs() -> list[tuple[str, str, int, Callable[[], dict[str, float]]]]:
    return [
        ("objectives", name, seed, partial(run, seed, steps=steps))
        for seed in SEEDS
        for name, steps in (("share of hypervolume, untrained", 0), ("share of hypervolume", STEPS))
    ]
