"""What the trainer asks of whatever moves the policy, and of its forward pass. `Updater` is the plain one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from llmrl.batch import Batch, Output
from llmrl.policy.forward import ForwardMode


class Forward(Protocol):
    """`policy.forward.forward`, or the same of a sharded model."""

    def __call__(
        self, model: nn.Module, batch: Batch, *, mode: ForwardMode, temperature: float = 1.0, entropy: bool = False
    ) -> Output: ...


class Moves(Protocol):
    """Gradients in, weights moved, and everything a checkpoint needs. With several ranks every call is collective."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, a share of the global loss, to those that `step` will apply."""
        ...

    def step(self, lr: float) -> tuple[float, bool]:
        """Clip and apply: (gradient norm before clipping, whether it was applied). What is not finite is dropped."""
        ...

    def discard(self) -> None:
        """Forget accumulated gradients."""
        ...

    def state(self) -> dict[str, Tensor]:
        """master/, exp_avg/, exp_avg_sq/ and step/ of each trained parameter, whole, on rank 0 at least."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave. Raises ValueError if it is of other parameters."""
        ...
