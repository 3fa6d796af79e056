"""How log-probabilities of the trained policy are computed: packed or plain, in portions that memory holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmrl.batch import Batch, Output
from llmrl.policy.forward import ForwardMode, ValueHead, forward
from llmrl.train.microbatches import microbatches
from llmrl.train.protocols import Forward


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobModel:
    """How log-probabilities are computed: which model, packed or plain, at which temperature, in which portions.

    With a sharded model every forward pass is a collective: `forward` is then the wrapped model's, and `together` gives
    the number of passes that all ranks make, at least this rank's own.
    """

    model: nn.Module
    mode: ForwardMode
    temperature: float
    tokens_per_microbatch: int
    forward: Forward = forward
    together: Callable[[int], int] = int

    def __call__(self, batch: Batch, *, entropy: bool = False, value_head: ValueHead | None = None) -> Output:
        return self.forward(
            self.model, batch, mode=self.mode, temperature=self.temperature, entropy=entropy, value_head=value_head
        )

    def missing(self, passes: int) -> int:
        """How many idle passes this rank adds to its own `passes`, so that all ranks make as many. Ask before the first."""
        return self.together(passes) - passes

    def logprobs(self, batch: Batch, *, rows: Tensor | None = None) -> Tensor:
        """[B, T] float32 without gradient, 0 outside the mask and outside `rows` ([N] int64; None: all)."""

        def only(part: Batch) -> list[Tensor]:
            return [self(part).logprobs]

        if rows is None:
            return self.without_gradient(batch, only)[0]
        whole = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=batch.tokens.device)
        if len(rows):
            part = batch.select(rows)
            whole[rows, : part.tokens.shape[1]] = self.without_gradient(part, only)[0]
        else:
            with torch.no_grad():
                for _ in range(self.missing(0)):
                    only(idle(batch))
        return whole

    def logprobs_and_values(self, batch: Batch, head: ValueHead) -> tuple[Tensor, Tensor]:
        """Both [B, T] float32 without gradient, 0 outside the mask, from one forward pass."""

        def both(part: Batch) -> list[Tensor]:
            out = self(part, value_head=head)
            assert out.values is not None
            return [out.logprobs, out.values]

        logprobs, values = self.without_gradient(batch, both)
        return logprobs, values

    def without_gradient(self, batch: Batch, compute: Callable[[Batch], list[Tensor]]) -> list[Tensor]:
        """What `compute` gives of every micro-batch, put together: each [B, T] float32."""
        found: list[Tensor] = []
        with torch.no_grad():
            portions = microbatches(batch, budget=self.tokens_per_microbatch, whole_groups=False)
            missing = self.missing(len(portions))
            for rows in portions:
                parts = compute(batch.select(rows))
                blank = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=batch.tokens.device)
                found = found or [blank.clone() for _ in parts]
                for whole, part in zip(found, parts, strict=True):
                    whole[rows, : part.shape[1]] = part.float().to(whole.device)
            for _ in range(missing):
                compute(idle(batch))
        return found


def idle(batch: Batch) -> Batch:
    """The shortest row alone: a cheap pass of a rank that has nothing to do while others still work."""
    return batch.select(batch.length.argmin()[None])
