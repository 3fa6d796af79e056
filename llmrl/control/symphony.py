"""Symphony's fading replay and temporal advantage (Ishuov et al. 2025, arXiv 2512.10477; authors' code, version S3).

Fading replay draws the i-th of n transitions, oldest first, with a chance in proportion to

    w_i = tanh((pi i / n)^e):

the recent two thirds or so are drawn nearly uniformly and older ones fade away.

Temporal advantage replaces the value in the actor's loss by how much it improves on its own running mean q:

    q <- rho q + (1 - rho) Q_b,   x = (Q - q) / |q|,   L = -mean(|x| tanh(x / 2)),   rho = (sqrt(5) - 1) / 2.

The authors' actor is deterministic with bounded noise, trained together with the critic in one pass, with a "swaddling"
penalty on its strength; here only these two parts are taken and put into soft actor-critic, whose entropy term stays.
The running mean of a batch is one number, as there; |q| gets a floor, since a controller's rewards may cross 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RHO = (math.sqrt(5) - 1) / 2


def fading_weights(count: int) -> Tensor:
    """tanh((pi i / n)^e) for i = 1 .. n, oldest first: [count], float64, unnormalised."""
    position = torch.arange(1, count + 1, dtype=torch.float64) / count
    return torch.tanh((math.pi * position) ** math.e)


def temporal_advantage_loss(values: Tensor, ema: Tensor, *, floor: float = 1.0) -> tuple[Tensor, Tensor]:
    """(-mean(|x| tanh(x / 2)) [], new running mean []): values [B] of the actor's actions, ema [] (NaN: not begun).

    Small improvements count quadratically, large ones linearly, and a fall is weighed like a rise.
    """
    value = values.detach()
    before = torch.where(ema.isnan(), value.mean(), ema)
    running = RHO * before + (1 - RHO) * value  # [B]
    relative = (values - running) / running.abs().clamp_min(floor)
    loss = -(relative.abs() * torch.tanh(relative / 2)).mean()
    return loss, running.mean()
