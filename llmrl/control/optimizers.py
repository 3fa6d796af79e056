"""An Adam for each part of an agent (actor, critic, temperature, model): a step moves that part and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from llmrl.control.state import under


class Optimizers:
    """Of `parts`, parameters by name. Gradients are cut to the norm `max_grad_norm`, if there is one."""

    def __init__(
        self, parts: Mapping[str, Iterable[nn.Parameter]], *, lr: float, max_grad_norm: float | None = None
    ) -> None:
        self._parts = {name: [p for p in part if p.requires_grad] for name, part in parts.items()}
        self._adam = {name: torch.optim.Adam(part, lr=lr, fused=True) for name, part in self._parts.items()}
        self._max_grad_norm = max_grad_norm

    def step(self, name: str, loss: Tensor, *, clip: bool = True) -> Tensor:
        """One Adam step on that part's parameters alone; the others get no gradient. Returns the loss, detached."""
        part = self._parts[name]
        for p, gradient in zip(part, torch.autograd.grad(loss, part), strict=True):
            p.grad = gradient
        if clip and self._max_grad_norm is not None:
            nn.utils.clip_grad_norm_(part, self._max_grad_norm)
        self._adam[name].step()
        return loss.detach()

    def finite(self) -> bool:
        """Whether every parameter is a number."""
        return all(bool(p.isfinite().all()) for part in self._parts.values() for p in part)

    def state(self) -> dict[str, Tensor]:
        """Adam's moments and step counts, by part and number of the parameter: {"actor.0.exp_avg": ...}."""
        return {
            f"{name}.{index}.{key}": x
            for name, adam in self._adam.items()
            for index, moments in adam.state_dict()["state"].items()
            for key, x in moments.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; hyper-parameters stay."""
        for name, adam in self._adam.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, x in under(state, name).items():
                index, moment = key.split(".")
                moments.setdefault(int(index), {})[moment] = x.clone()
            adam.load_state_dict({"state": moments, "param_groups": adam.state_dict()["param_groups"]})
