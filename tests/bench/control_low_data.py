"""80 decisions of a made-up training run: which parts of a controller help when there is almost nothing to learn from.

A run has a clipping threshold and a noise level (two knobs). The progress of a step is -(a_1 - x)^2 - 0.5 (a_2 + x / 2)^2
plus noise of 0.15, where the best threshold x falls from 0.8 to -0.6 as training goes on; the view shows how far training
has got and a noisy norm from which x can be read. The score is the mean progress of the last 40 decisions, without the
noise: 0 is perfect, the best constant gets about -0.04.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from llmrl.control.agent import SAC
from llmrl.control.config import Actions, SACConfig
from llmrl.control.controllers import Chooser, Constant, KnobController, Random
from llmrl.control.gbrl import BoostedActorCritic, BoostedConfig
from llmrl.control.knob import Knob
from llmrl.control.learner import Learner
from llmrl.control.srl import SequenceSAC
from llmrl.control.ucb1 import Bandit
from llmrl.control.yann import Piecewise, saturated_law

DECISIONS, SEEDS = 80, range(5)
KNOBS = (
    Knob(name="clip", low=0.1, high=10.0, default=1.0, log=True),
    Knob(name="noise", low=0.0, high=2.0, default=1.0),
)
FIELDS = ("progress", "norm")
PARTS: dict[str, dict[str, Any]] = {
    "SAC": {},
    "SAC, no LayerNorm": {"normalize_critic": False},
    "SAC, no reward scale": {"normalize_reward": False},
    "SAC, 1 update": {"updates_per_step": 1},
    "SAC, 16 updates": {"updates_per_step": 16},
    "SAC, gamma 0, 16 updates, lr 3e-3": {"gamma": 0.0, "updates_per_step": 16, "learning_rate": 3e-3},
    "DSAC-T": {"distributional": "released_2024"},
    "DSAC-T, risk 0.5": {"distributional": "released_2024", "risk": 0.5},
    "PMOE": {"experts": 2},
    "fading replay": {"fading_replay": True},
    "temporal advantage": {"temporal_advantage": True},
    "5 critics, lcb and ucb": {"critics": 5, "target_value": "lcb", "actor_value": "ucb"},
    "offline half": {"offline_share": 0.5},
}


def best(t: float) -> tuple[float, float]:
    x = 0.8 - 1.4 * t
    return x, -x / 2


def run(make: Callable[[], Chooser], seed: int) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    controller = KnobController(knobs=KNOBS, fields=FIELDS, reward="gain", chooser=make())
    gains, gain = [], 0.0
    for step in range(DECISIONS):
        t = step / DECISIONS
        x, y = best(t)
        view = {"progress": t, "norm": math.exp(x + 0.1 * draw.normal()), "gain": gain}
        knobs = controller.observe(view)
        a, b = (knob.action(knobs[knob.name]) for knob in KNOBS)
        true = -((a - x) ** 2) - 0.5 * (b - y) ** 2
        gain = true + 0.15 * draw.normal()
        gains.append(true)
    return {"score": float(np.mean(gains[DECISIONS // 2 :])), "all": float(np.mean(gains))}


def learner(changes: Mapping[str, Any], seed: int) -> Learner:
    found = Learner(fields=len(FIELDS), knobs=len(KNOBS), config=SACConfig(**changes), seed=seed)
    if changes.get("offline_share"):
        _remember_an_earlier_run(found, seed + 1000)
    return found


def _remember_an_earlier_run(into: Learner, seed: int) -> None:
    """80 transitions of random control with another seed, as an earlier run would have left them."""
    earlier = Learner(fields=len(FIELDS), knobs=len(KNOBS), config=SACConfig(warmup=10_000), seed=seed)
    run(lambda: earlier, seed)
    held = earlier.agent.replay.state()
    for i in range(int(held["added"])):
        into.agent.remember(
            obs=held["obs"][i], raw=held["raw"][i], reward=float(held["reward"][i]), next_obs=held["next_obs"][i],
            terminated=False, offline=True,
        )  # fmt: skip


def known_law(seed: int) -> Learner:
    """YANN: begins with a law that is right about the threshold's direction and half of its size."""
    gain = torch.tensor([[-0.15, 0.0], [0.07, 0.0]], dtype=torch.float32)
    law = Piecewise(saturated_law(gain, torch.tensor([0.1, -0.05])))
    agent = SAC(obs_size=2, actions=Actions(size=2), config=SACConfig(), seed=seed, law=law)
    return Learner(fields=2, knobs=2, seed=seed, agent=agent)


def sequences(seed: int) -> Learner:
    agent = SequenceSAC(obs_size=2, actions=Actions(size=2), length=2, config=SACConfig(), seed=seed)
    return Learner(fields=2, knobs=2, seed=seed, agent=agent)


def boosted(seed: int) -> Learner:
    agent = BoostedActorCritic(obs_size=2, actions=Actions(size=2), config=BoostedConfig(), seed=seed)
    return Learner(fields=2, knobs=2, seed=seed, agent=agent)


def jobs() -> list[tuple[str, str, int, Callable[[], dict[str, float]]]]:
    found: list[tuple[str, str, int, Callable[[], dict[str, float]]]] = []
    for seed in SEEDS:
        plain: dict[str, Callable[[], Chooser]] = {
            "constant (defaults)": Constant,
            "random": partial(Random, seed=seed),
            "bandit": partial(Bandit, knobs=2, seed=seed),
            "known law (YANN)": partial(known_law, seed),
            **{name: partial(learner, changes, seed) for name, changes in PARTS.items()},
            "SRL (2 actions)": partial(sequences, seed),
            "GBRL": partial(boosted, seed),
        }
        found += [("low_data", name, seed, partial(run, make, seed)) for name, make in plain.items()]
    return found
