"""What the trainer asks of whatever moves the policy, of what holds its weights, and of its forward pass.

`Updater` is the plain `Optimizer` and `Shards` in one; a back-end that cuts weights brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from llmrl.batch import Batch, Output
from llmrl.policy.forward import ForwardMode, ValueHead


class Forward(Protocol):
    """`policy.forward.forward`, or the same of a sharded model."""

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        mode: ForwardMode,
        temperature: float = 1.0,
        entropy: bool = False,
        value_head: ValueHead | None = None,
    ) -> Output: ...


class Optimizer(Protocol):
    """Gradients in, weights moved. With several ranks all make the same calls."""

    def backward(self, loss: Tensor, group: Tensor | None = None) -> None:
        """Add the gradients of `loss`, a share of the global loss, to those that `step` will apply.

        `group` [rows] says which rows of the forward pass belong together, for who has to bound what each of them does.
        """
        ...

    def step(self, lr: float) -> tuple[float, bool]:
        """Clip and apply: (gradient norm before clipping, whether it was applied). What is not finite is dropped."""
        ...

    def discard(self) -> None:
        """Forget accumulated gradients."""
        ...

    def frozen(self) -> AbstractContextManager[None]:
        """Backward passes inside leave nothing for `step`."""
        ...

    def reset(self) -> None:
        """Forget Adam's averages, as if no step had been made; weights stay."""
        ...


class Stored(Protocol):
    """What a checkpoint holds tensors of. With several ranks all make the same calls."""

    def state(self) -> dict[str, Tensor]:
        """Whole tensors by name, on rank 0 at least; of weights master/, exp_avg/, exp_avg_sq/ and step/ of each."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave. Raises ValueError if it is of other weights."""
        ...


class Shards(Stored, Protocol):
    """Where the trained weights lie: whole on every rank, or cut. With several ranks all make the same calls."""

    def held(self) -> dict[str, Tensor]:
        """This rank's part of every trained weight by name, sharing the model's memory."""
        ...

    def swap(self, kept: dict[str, Tensor]) -> None:
        """Put other weights, shaped as `held`, in the place of the model's, and the model's into `kept`."""
        ...

    def unshard(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of all ranks' `parts`, shaped as `held`, on rank 0 at least."""
        ...

    def shard(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's part of a whole `tensor`, shaped as in `held`."""
        ...


class ShardedOptimizer(Optimizer, Shards, Protocol):
    """Both in one object, as every back-end has it."""
