"""Mixture policies: PMOE, probabilistic mixture of experts (Ren et al. 2021, arXiv 2104.09122).

The policy is sum_k w_k(s) N(mean_k(s), std_k(s)^2), squashed. Choosing an expert cannot be differentiated; the gate is
trained by the frequency loss instead: draw one u_k per expert, value each, and pull w towards the best one,

    L_gate = mean_s sum_k (w_k - v_k)^2,   v = onehot(argmax_k Q(s, tanh u_k)),

while the experts minimise soft actor-critic's loss with the log-density of the whole mixture, w without gradient:

    max   alpha log pi(a_j|s) - Q(s, a_j)  of the best expert j only
    all   sum_k w_k (alpha log pi(a_k|s) - Q(s, a_k))

The paper's body could not be read; this is a reconstruction from its abstract. Two guards are our own: an entropy bonus on
the gate, and an expert whose weight stays under 1e-3 for 20 updates begins again near the most used one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmrl.control import losses
from llmrl.control.nets import SquashedPolicy

ExpertUpdate = Literal["max", "all"]
GATE_ENTROPY = 1e-2
DEAD_WEIGHT, DEAD_UPDATES = 1e-3, 20


def mixture_actor_loss(
    weights: Tensor,
    logprob: Tensor,
    values: Tensor,
    *,
    alpha: float | Tensor,
    experts: ExpertUpdate,
) -> tuple[Tensor, Tensor]:
    """(loss [], log-density of the actions that it used [B]); weights, logprob, values: [B, K], one action an expert.

    `logprob` is `mixture_logprob` of the detached weights. The temperature follows the second value.
    """
    gate = losses.gate_loss(weights, values)
    entropy = -(weights * weights.clamp_min(torch.finfo(weights.dtype).tiny).log()).sum(-1).mean()
    each = alpha * logprob - values
    if experts == "max":
        best = values.detach().argmax(-1, keepdim=True)
        loss, used = each.gather(1, best).mean(), logprob.gather(1, best)[:, 0]
    else:
        share = weights.detach()
        loss, used = (share * each).sum(-1).mean(), (share * logprob).sum(-1)
    return loss + gate - GATE_ENTROPY * entropy, used


def count_idle(weights: Tensor, idle: Tensor) -> Tensor:
    """How many updates in a row each expert's mean weight was under 1e-3: weights [B, K], idle [K] -> [K]."""
    return torch.where(weights.detach().mean(0) < DEAD_WEIGHT, idle + 1, torch.zeros_like(idle))


@torch.no_grad()
def revive(policy: SquashedPolicy, weights: Tensor, idle: Tensor, generator: torch.Generator) -> Tensor:
    """Start experts that were idle for 20 updates again: the most used expert's output layer plus noise; new `idle`."""
    dead = (idle >= DEAD_UPDATES).nonzero()[:, 0].tolist()
    if not dead:
        return idle
    count, model = policy.experts, int(weights.mean(0).argmax())
    for tensor in (policy.net.weights[-1], policy.net.biases[-1]):
        gate, heads = tensor[..., :count], tensor[..., count:].unflatten(-1, (count, -1))
        for k in dead:
            gate[..., k] = gate[..., model]
            noise = torch.randn(heads[..., model, :].shape, generator=generator, dtype=tensor.dtype)
            heads[..., k, :] = heads[..., model, :] + 0.1 * noise
    return torch.where(idle >= DEAD_UPDATES, torch.zeros_like(idle), idle)
