"""AdamW on float32 weights for models in lower precision, as an optimizer that Hugging Face's Trainer drives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019) that moves a float32 copy of each parameter and rounds it back.

    In bfloat16 a step of a usual learning rate is smaller than the distance of neighbouring numbers and would be lost.
    Gradients arrive in the parameters' own precision. The copies are part of `state_dict`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        self._parameters = list(parameters)
        self._masters = [
            p if p.dtype == torch.float32 else p.detach().clone().float().requires_grad_(True) for p in self._parameters
        ]
        super().__init__(self._masters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        copies = [(p, m) for p, m in zip(self._parameters, self._masters, strict=True) if p is not m]
        for parameter, master in copies:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        loss = super().step(closure)
        for parameter, master in copies:
            parameter.copy_(master)
            master.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masters": [master.detach() for master in self._masters]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for the state of another model."""
        masters: list[Tensor] = state_dict["masters"]
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "masters"})
        for parameter, master, stored in zip(self._parameters, self._masters, masters, strict=True):
            master.copy_(stored)
            parameter.copy_(master)
