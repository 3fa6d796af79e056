"""Several objectives with one discrete policy: GMORL (Yang et al. 2025, arXiv 2509.10474).

The policy sees the preference w (a point of the simplex) next to the state and earns

    r_w = w . r(s, a),   pi(a | s, w), Q(s, a, w) by discrete soft actor-critic,

with a new w every episode, so that one network answers for every preference afterwards. A varying number of like things
(servers, layers, queues) enters the state as a histogram, the share of them in each bin, whose size and order-freedom do
not depend on how many there are. What a policy reached is judged by its Pareto front and that front's hypervolume, both
computed by pymoo (extra `control`); a linear preference finds only points on the front's convex hull.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from llmrl.errors import ConfigError

Array = np.ndarray[Any, np.dtype[np.float64]]


def histogram(values: Sequence[float], edges: Sequence[float]) -> Array:
    """Share of `values` in each bin of ascending `edges` [k + 1] -> [k]; what lies outside counts in the end bins."""
    if len(values) == 0:
        raise ValueError("a histogram of nothing has no shares; give at least one value")
    clipped = np.clip(np.asarray(values, dtype=np.float64), edges[0], edges[-1])
    counts, _ = np.histogram(clipped, bins=np.asarray(edges, dtype=np.float64))
    return counts / len(values)


def pareto_front(points: Array) -> Array:
    """The points [m, objectives] that no other beats, larger being better; duplicates once, sorted by the first."""
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    distinct = np.unique(np.asarray(points, dtype=np.float64), axis=0)
    return distinct[NonDominatedSorting().do(-distinct, only_non_dominated_front=True)]


def hypervolume(points: Array, reference: Sequence[float]) -> float:
    """Volume that `points` [m, objectives] dominate above `reference`, larger being better."""
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=-np.asarray(reference, dtype=np.float64))(-np.asarray(points, dtype=np.float64)))


class PreferenceEnv(gymnasium.Env[Array, Any]):
    """An environment whose steps report `info["objectives"]` [m], seen and rewarded through a preference.

    Observations are (flattened observation, w); rewards are w . objectives. w is drawn uniformly from the simplex at each
    reset, or is `reset(options={"preference": w})`.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, objectives: int) -> None:
        if objectives < 2:
            raise ConfigError(f"objectives={objectives} needs no preference; use the environment as it is")
        self.env, self.objectives, self.action_space = env, objectives, env.action_space
        size = int(spaces.flatdim(env.observation_space)) + objectives
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.preference = np.full(objectives, 1 / objectives)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        given = None if options is None else options.get("preference")
        self.preference = self.np_random.dirichlet(np.ones(self.objectives)) if given is None else np.asarray(given)
        observation, info = self.env.reset(seed=seed)
        return self._seen(observation), info

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        reward = float(self.preference @ np.asarray(info["objectives"], dtype=np.float64))
        return self._seen(observation), reward, terminated, truncated, info

    def _seen(self, observation: Any) -> Array:
        flat = np.asarray(spaces.flatten(self.env.observation_space, observation), dtype=np.float64)
        return np.concatenate([flat, self.preference])
