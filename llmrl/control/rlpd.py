"""Critic ensembles, and offline transitions mixed in (RLPD: Ball et al. 2023, arXiv 2302.02948; REDQ: 2101.05982).

An ensemble of J critics is read as one value,

    min       min_j Q_j            pessimistic: SAC's own rule for J = 2
    mean      mean_j Q_j
    max       max_j Q_j            optimistic
    lcb, ucb  mean_j Q_j -+ std_j  pessimistic or optimistic by one standard deviation over the ensemble

for the target (`target_value`) and for the actor (`actor_value`) apart: pessimistic targets with an optimistic actor
explore where critics disagree. A batch takes `offline_share` of its rows from transitions of earlier runs, symmetric
sampling at 0.5; RLPD adds LayerNorm to the critics, which is the agent's default here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.control.replay import Replay, Transitions

Aggregation = Literal["min", "mean", "max", "lcb", "ucb"]


def aggregate(values: Tensor, how: Aggregation) -> Tensor:
    """One value of an ensemble's: [J, ...] -> [...]."""
    if how == "min":
        return values.amin(0)
    if how == "max":
        return values.amax(0)
    mean = values.mean(0)
    if how == "mean":
        return mean
    return mean + (1.0 if how == "ucb" else -1.0) * values.std(0, correction=0)


def offline_rows(batch_size: int, share: float) -> int:
    """How many rows of a batch come from earlier runs; raises ValueError unless 0 <= share <= 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"offline_share={share} is no share of a batch; set it between 0 and 1")
    return round(batch_size * share)


def mixed_batch(
    online: Replay, offline: Replay | None, batch_size: int, share: float, generator: torch.Generator
) -> Transitions:
    """`batch_size` rows, `share` of them from `offline` where it holds any."""
    old = offline_rows(batch_size, share) if offline is not None and len(offline) else 0
    if not len(online):
        old = batch_size
    parts = [
        source.sample(rows, generator)
        for source, rows in ((online, batch_size - old), (offline, old))
        if rows and source is not None
    ]
    return parts[0] if len(parts) == 1 else parts[0].joined(parts[1])
