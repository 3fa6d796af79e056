"""The order of prompts in training, as a pure function of the step number: the cursor that makes resume exact."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import Protocol

from llmrl.errors import DataError
from llmrl.seeding import generator, key
from llmrl.settings.data import shares
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

    def __init__(
        self, prompts: Sequence[Prompt], *, seed: int, prompts_per_step: int, shuffle: bool = True,
        taken: Callable[[int], int] | None = None,
    ) -> None:  # fmt: skip
        """`taken` says how many prompts the steps before a step took, where that is not `prompts_per_step` each but at most
        as many. Raises DataError for a repeated prompt id or for fewer prompts than one step needs.
        """
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
        self._taken = taken or (lambda step: step * prompts_per_step)
        self._orders: dict[int, list[int]] = {}

    def at(self, step: int) -> list[Prompt]:
        """The prompts of `step` (0, 1, ...)."""
        if step < 0:
            raise ValueError(f"step={step} is negative")
        places = (divmod(place, len(self._prompts)) for place in range(self._taken(step), self._taken(step + 1)))
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
        if epoch == 0:
            return order
        start = epoch * len(order)
        after = 1  # the step after the straddling one
        while self._taken(after) <= start:
            after *= 2
        after = bisect_right(range(after), start, key=self._taken)
        shared = start - self._taken(after - 1)  # places of the straddling step that lie in the epoch before
        if shared == 0:
            return order
        tail = set(before[-shared:])
        head = [number for number in order if number not in tail][: self._taken(after) - start]
        chosen = set(head)
        return head + [number for number in order if number not in chosen]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._prompts)))
        if self._shuffle and epoch >= 0:
            generator(self._seed, "epoch", epoch).shuffle(order)
        return order


class MixedStream:
    """Several sources in one stream: each has its share of the prompts, over any number of steps to within about one, and
    endless epochs of its own. The prompts of a step are shuffled.

    >>> two = {name: [Prompt(id=f"{name}{i}", tokens=(i,), text="", source=name) for i in range(9)] for name in "ab"}
    >>> stream = MixedStream(two, {"a": 3, "b": 1}, seed=0, prompts_per_step=4)
    >>> sorted(prompt.source for prompt in stream.at(7))
    ['a', 'a', 'a', 'b']
    """

    def __init__(
        self, sources: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float], *, seed: int, prompts_per_step: int,
        shuffle: bool = True,
    ) -> None:  # fmt: skip
        """Raises DataError, with the source's name, as PromptStream does."""
        self._seed = seed
        self._streams = []
        every = list(weights.values())
        for place, (name, most) in enumerate(zip(weights, _most(prompts_per_step, every), strict=True)):

            def taken(step: int, place: int = place) -> int:
                return shares(step * prompts_per_step, every)[place]

            own = key(seed, "source", name)
            try:
                stream = PromptStream(
                    sources.get(name, ()), seed=own, prompts_per_step=most, shuffle=shuffle, taken=taken
                )
            except DataError as error:
                raise DataError(f"data source {name} (weight {weights[name]:g}): {error}") from error
            self._streams.append(stream)

    def at(self, step: int) -> list[Prompt]:
        """The prompts of `step` (0, 1, ...)."""
        found = [prompt for stream in self._streams for prompt in stream.at(step)]
        generator(self._seed, "mixture", step).shuffle(found)
        return found


def _most(count: int, weights: Sequence[float]) -> list[int]:
    """The largest share of each source in any `count` prompts in a row."""
    left, weight, found = count, sum(map(Fraction, weights)), []
    for own in map(Fraction, weights):
        found.append(max(1, ceil(left * own / weight)))
        left, weight = ceil(left * (weight - own) / weight), weight - own
    return found


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
