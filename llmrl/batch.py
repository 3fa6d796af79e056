"""What algorithms see: `Batch` (tensors of one update), `Output` (what the policy's forward gave) and `Loss`.

All three are frozen; a stage that adds something returns a new object (`dataclasses.replace`). Two groups of two
completions, prompt "P0 P1", in a batch of B=4 rows and T=5:

    tokens  P0 P1 a  b  -      mask 0 0 1 1 0     group 0   score 1.0
            P0 P1 c  -  -           0 0 1 0 0           0         0.0
            Q0 d  e  f  g           0 1 1 1 1           1         0.0
            Q0 h  -  -  -           0 1 0 0 0           1         0.0

    tokens_total = 2 + 1 + 4 + 1 = 8, the one denominator, over all ranks and micro-batches of the update.

A batch stays in the host's memory, where rows are chosen and laid out; a micro-batch goes to the model's device once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Protocol, runtime_checkable

from torch import Tensor, device


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Logically [B, T]. Index t speaks of token t everywhere; padding is on the right and carries mask False.

    `values`, `ref_logprobs` and `old_logprobs` are there only if the algorithm asked (`needs`); `advantages` and
    `returns` are written by `Algorithm.credit` and by nobody else.
    """

    tokens: Tensor  # [B, T] int64
    length: Tensor  # [B] int64, tokens of the row without padding
    mask: Tensor  # [B, T] bool, True where the policy sampled and the row counts
    logprobs: Tensor  # [B, T] float32, the sampler's
    step: Tensor  # [B, T] int64, environment step, -1 elsewhere
    rewards: Tensor  # [B, T] float32, each step's reward on its last sampled token
    group: Tensor  # [B] int64, rows of one prompt share a number
    score: Tensor  # [B] float32, the row's total reward
    prompt_length: Tensor  # [B] int64, leading tokens that all rows of the group share
    tokens_total: Tensor  # [] float32, sum of mask over all ranks and micro-batches: the one denominator
    sequences_total: Tensor  # [] float32, rows with any mask, over all ranks and micro-batches
    values: Tensor | None = None  # [B, T]
    ref_logprobs: Tensor | None = None  # [B, T]
    old_logprobs: Tensor | None = None  # [B, T]
    advantages: Tensor | None = None  # [B, T]
    returns: Tensor | None = None  # [B, T]
    value_unit: Tensor | None = None  # [] float32, what value errors are measured in; None is 1
    privileged: Tensor | None = None  # [B, P] int64, padded with -1: tokens that only a separate value model reads

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    def to(self, place: device | str) -> Batch:
        """The same batch on another device; to a GPU through pinned memory, so that nothing waits for the copy."""
        target = device(place)
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: moved(tensor, target) for name, tensor in held.items() if tensor is not None})

    def select(self, index: Tensor) -> Batch:
        """The rows `index` ([N] int64), cut to their longest; the totals keep counting the whole update.

        Raises ValueError for an empty index.
        """
        if index.numel() == 0:
            raise ValueError("select needs at least one row")
        width = int(self.length[index].max())
        changes: dict[str, Tensor] = {}
        for item in fields(self):
            tensor = getattr(self, item.name)
            if tensor is None or tensor.dim() == 0:
                continue
            rows = tensor[index]
            changes[item.name] = rows[:, :width] if rows.dim() == 2 and item.name != "privileged" else rows
        return replace(self, **changes)


def moved(tensor: Tensor, target: device) -> Tensor:
    """`tensor` on `target`, without waiting if that is a GPU."""
    if target.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(target, non_blocking=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Output:
    """What the trained policy says of a batch, with gradient. Entries outside the mask are 0 and carry none."""

    logprobs: Tensor  # [B, T] float32
    entropy: Tensor | None = None  # [B, T], if the algorithm asked
    values: Tensor | None = None  # [B, T], if the algorithm asked


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loss:
    """`value` [] is this micro-batch's share of the whole loss: shares add up over micro-batches and ranks.

    `metrics` are also shares (already divided by a global total), so that they too simply add up.
    """

    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Algorithm(Protocol):
    """A method: a frozen dataclass whose fields are its hyper-parameters and its config schema.

    `needs` is a subset of {"values", "ref_logprobs", "old_logprobs", "entropy", "siblings", "whole_groups",
    "whole_batch", "feedback"}; the trainer reads nothing else to decide what to compute. "siblings" means that a group
    of one teaches nothing, "whole_groups" that a group must not be cut into micro-batches, "whole_batch" that credit
    looks across groups (whitening) and gets the rows of all ranks, "feedback" that hyper-parameters follow what was
    measured: the algorithm is then an `Adaptive`.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def credit(self, batch: Batch) -> Batch:
        """Write advantages (and returns) for the whole batch; no gradient."""
        ...

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The loss of one micro-batch, with gradient."""
        ...


class Adaptive(Algorithm, Protocol):
    """An algorithm with "feedback" in `needs`. Its fields that changed are saved with the run and restored."""

    def adapted(self, metrics: Mapping[str, float]) -> Adaptive:
        """The algorithm of the next step, given this step's metrics."""
        ...


@runtime_checkable
class Reporting(Protocol):
    """An algorithm with metrics that are not sums, such as an explained variance."""

    def report(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """More metrics, from the summed up ones of a step."""
        ...


@runtime_checkable
class Remarking(Protocol):
    """An algorithm that is not what its name says under some settings."""

    def remarks(self, *, updates: int) -> list[str]:
        """What a user should know before training with `updates` optimizer steps per rollout."""
        ...
