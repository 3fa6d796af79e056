"""The order of prompts in training, as a pure function of the step number: the cursor that makes resume exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llmrl.errors import DataError
from llmrl.seeding import generator
from llmrl.types import Prompt


class Stream(Protocol):
    """Which prompts each step of training gets."""

    def at(self, step: int) -> list[Prompt]:
        """The prompts of `step` (0, 1, ...)."""
        ...


class PromptStream:
    """Endless epochs over `prompts`, `prompts_per_step` at a time.

    `at(step)` depends on nothing but its argument and what the stream was built with, so a resumed run needs only the
    step number. Every epoch holds each prompt once, in an order keyed by (seed, epoch). A step may straddle two epochs;
    the second's order is arranged so that no step holds a prompt twice.

    >>> stream = PromptStream([Prompt(id=str(i), tokens=(i,), text="") for i in range(3)], seed=0, prompts_per_step=2)
    >>> [len({prompt.id for prompt in stream.at(step)}) for step in range(6)]
    [2, 2, 2, 2, 2, 2]
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, prompts_per_step: int, shuffle: bool = True) -> None:
        """Raises DataError for a repeated prompt id or for fewer prompts than one step needs."""
        if prompts_per_step < 1:
            raise DataError(f"prompts_per_step={prompts_per_step} must be at least 1")
        if len(prompts) < prompts_per_step:
            raise DataError(
                f"a step needs {prompts_per_step} different prompts and there are {len(prompts)}; "
                "lower prompts_per_step or add data"
            )
        _check_ids(prompts)
        self._prompts = tuple(prompts)
        self._seed = seed
        self._per_step = prompts_per_step
        self._shuffle = shuffle
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        """Prompts of one epoch."""
        return len(self._prompts)

    def epoch(self, step: int) -> float:
        """How many epochs are over when `step` begins."""
        return step * self._per_step / len(self._prompts)

    def at(self, step: int) -> list[Prompt]:
        """The prompts of `step` (0, 1, ...)."""
        if step < 0:
            raise ValueError(f"step={step} is negative")
        first = step * self._per_step
        places = (divmod(place, len(self._prompts)) for place in range(first, first + self._per_step))
        return [self._prompts[self._order(epoch)[offset]] for epoch, offset in places]

    def _order(self, epoch: int) -> list[int]:
        """Prompt numbers in the order of `epoch`.

        The head of an epoch avoids the tail of the one before, where a step holds both. That moves only the first
        prompts_per_step places, so with at least twice as many prompts the tail is that of the bare shuffle; with
        fewer, each epoch depends on the one before, back to the first.
        """
        if epoch not in self._orders:
            independent = len(self._prompts) >= 2 * self._per_step
            known = epoch if independent else max((e for e in self._orders if e < epoch), default=-1) + 1
            for number in range(known, epoch + 1):
                before = self._shuffled(number - 1) if independent else self._orders.get(number - 1, [])
                self._orders[number] = self._arranged(number, before)
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
        return self._orders[epoch]

    def _arranged(self, epoch: int, before: list[int]) -> list[int]:
        order = self._shuffled(epoch)
        shared = epoch * len(order) % self._per_step  # places of the straddling step that lie in the epoch before
        if epoch == 0 or shared == 0:
            return order
        tail = set(before[-shared:])
        head = [number for number in order if number not in tail][: self._per_step - shared]
        chosen = set(head)
        return head + [number for number in order if number not in chosen]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._prompts)))
        if self._shuffle and epoch >= 0:
            generator(self._seed, "epoch", epoch).shuffle(order)
        return order


def _check_ids(prompts: Sequence[Prompt]) -> None:
    seen: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        if prompt.id in seen:
            first = seen[prompt.id]
            raise DataError(
                f"prompts {first} and {number} share the id {prompt.id!r} ({prompts[first].text[:60]!r} and "
                f"{prompt.text[:60]!r}); ids group completions and must differ"
            )
        seen[prompt.id] = number
