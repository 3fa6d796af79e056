"""Rollouts ahead of training: while a step is trained, the engine samples the batches of the next ones.

One thread does, in order, what it is asked: sample the batch of step n, load the weights of version v, evaluate. With
`staleness` k the batch of step n is asked for when the engine holds version n - k, so what happens depends on no timing
and a resumed run repeats it exactly. With 0 there is no thread, and every call is what it would be without this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

from llmrl.rollout.engine import RolloutEngine
from llmrl.train.clock import Clock
from llmrl.types import Trajectory

T = TypeVar("T")
# (step, version of the policy that samples, clock, knobs that a controller has set) -> its batch
Make = Callable[[int, int, Clock, Mapping[str, float]], list[Trajectory]]
OVERLAPPED = "overlapped_"  # before the names of phases that ran beside the training


class RolloutQueue:
    """`make` samples and scores the batch of a step below `steps` with `engine`.

    `pending` are batches that a checkpoint brought, by step; those that would be more than `staleness` versions old when
    they are trained are left out, counted, and sampled again.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        make: Make,
        *,
        staleness: int,
        steps: int,
        step: int = 0,
        pending: Mapping[int, list[Trajectory]] | None = None,
    ) -> None:
        self._engine = engine
        self._make = make
        self._staleness = staleness
        self._steps = steps
        self._version = step
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts") if staleness else None
        self._batches: dict[int, Future[tuple[list[Trajectory], Clock]]] = {}
        self._failure: BaseException | None = None
        self.too_stale = 0
        for number, trajectories in (pending or {}).items():
            if min((t.version[0] for t in trajectories), default=number) < number - staleness:
                self.too_stale += len(trajectories)
            elif number >= step:
                self._batches[number] = Future()
                self._batches[number].set_result((trajectories, Clock()))

    def take(self, step: int, clock: Clock, knobs: Mapping[str, float]) -> list[Trajectory]:
        """The batch of `step`; asks for the next ones first."""
        if self._thread is None:
            return self._make(step, self._version, clock, knobs)
        for number in range(step, min(step + self._staleness, self._steps - 1) + 1):
            if number not in self._batches:
                self._batches[number] = self._submit(self._sampled, number, self._version, knobs)
        with clock("generate"):  # what training waited for it
            trajectories, spent = self._batches.pop(step).result()
        clock.beside(OVERLAPPED, spent)
        return trajectories

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Give the engine new weights, after the batches that were asked for before.

        With staleness 1 this waits, as the next batch would; with more the weights are copied and training goes on.
        """
        self._version = version
        if self._thread is None:
            self._engine.load(weights, version=version)
        elif self._staleness == 1:
            self._submit(self._load, weights, version).result()
        else:
            copies = [(name, tensor.to("cpu", copy=True)) for name, tensor in weights]
            self._submit(self._load, copies, version)

    def run(self, work: Callable[[], T]) -> T:
        """`work()`, which uses the engine, after everything that was asked for before."""
        return work() if self._thread is None else self._submit(work).result()

    def pending(self) -> dict[int, list[Trajectory]]:
        """Batches that are sampled and not trained yet, by step; waits until they are all there."""
        return {step: batch.result()[0] for step, batch in sorted(self._batches.items())}

    def take_too_stale(self) -> int:
        """Trajectories that were left out as too old since the last call."""
        count, self.too_stale = self.too_stale, 0
        return count

    def close(self) -> None:
        """Forget what is not begun. What is being sampled ends with the engine."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        """Queue `work(*args)`. After one piece failed, the later ones fail alike: none may use what it left behind."""
        assert self._thread is not None

        def guarded() -> T:
            if self._failure is not None:
                raise self._failure
            try:
                return work(*args)
            except BaseException as error:
                self._failure = error
                raise

        return self._thread.submit(guarded)

    def _load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self._engine.load(weights, version=version)

    def _sampled(self, step: int, version: int, knobs: Mapping[str, float]) -> tuple[list[Trajectory], Clock]:
        clock = Clock()
        return self._make(step, version, clock, knobs), clock
