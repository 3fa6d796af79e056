"""A training run as events: engines decode, trainers update, weights travel, and nobody is further ahead than allowed.

As in `rollout.max_staleness`, the batch of step n is sampled by version n - staleness, whole batch by whole batch: 0 takes
turns (synchronous), 1 samples one step off, more lets batches wait in a queue. Within a batch, engines fill a free slot
with the next request; trainers start when the last one has ended, so the long tail is waited for.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrl.scale.cores import SharedCores
from llmrl.scale.costs import Costs, slowdown
from llmrl.scale.workload import Group
from llmrl.seeding import generator

CHUNK = 32  # decode steps between looks for new requests
WARM_UP = 3  # steps that are not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Who does what. `shared`: every worker trains and has an engine beside it; else trainers and engines apart.

    cores            CPU cores that all share; None if each worker has a GPU of its own.
    engine_cores     threads of each engine on them.
    trainer_cores    threads of each trainer.
    """

    trainers: int
    engines: int
    shared: bool
    staleness: int = 0
    cores: int | None = None
    engine_cores: int = 1
    trainer_cores: int = 1

    @property
    def mode(self) -> str:
        when = {0: "synchronous", 1: "one step off"}.get(self.staleness, f"{self.staleness} steps off")
        return f"{'together' if self.shared else 'apart'}, {when}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a step asks for. `allreduce_s` is the exchange of gradients of one update among all trainers."""

    prompts_per_step: int
    slots: int
    updates: int = 1
    allreduce_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Means over the counted steps; `*_busy` are shares of the time, `behind` is the mean staleness of a token's weights."""

    layout: Layout
    step_s: float
    tokens_per_s: float
    trainers_busy: float
    engines_busy: float
    behind: float


def simulate(
    layout: Layout, costs: Costs, load: Load, groups: Sequence[Group], *, steps: int = 12, seed: int = 0
) -> Predicted:
    """Simulate `steps` counted steps with groups drawn from `groups`."""
    import simpy

    return _Run(simpy.Environment(), layout, costs, load, groups, steps + WARM_UP, seed).predicted()


class _Requests:
    """A queue that engines wait at."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.items: deque[tuple[int, int]] = deque()  # (step, tokens)
        self._waiting: list[Any] = []

    def put(self, items: Sequence[tuple[int, int]]) -> None:
        self.items.extend(items)
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.succeed()

    def arrival(self) -> Any:
        event = self._env.event()
        self._waiting.append(event)
        return event


class _Run:
    def __init__(
        self, env: Any, layout: Layout, costs: Costs, load: Load, groups: Sequence[Group], steps: int, seed: int
    ) -> None:
        self._env, self._layout, self._costs, self._load = env, layout, costs, load
        self._cores = SharedCores(env, layout.cores) if layout.cores else None
        draw = generator(seed, "scale")
        count = load.prompts_per_step
        self._steps = [[groups[draw.randrange(len(groups))] for _ in range(count)] for _ in range(steps)]
        self._left = [sum(len(group.lengths) for group in step) for step in self._steps]
        self._ready = [env.event() for _ in self._steps]
        self._queues = [_Requests(env) for _ in range(layout.engines if layout.shared else 1)]
        self._version = 0
        self._released = 0
        self._ended: list[float] = []
        self._behind: list[list[tuple[int, int]]] = [[] for _ in self._steps]  # (weights' age, tokens) of each step
        self._busy = {"trainer": 0.0, "engine": 0.0}

    def predicted(self) -> Predicted:
        self._release()
        for number in range(self._layout.engines):
            self._env.process(self._engine(self._queues[number % len(self._queues)]))
        self._env.run(until=self._env.process(self._train()))
        begin, end = self._ended[WARM_UP - 1], self._ended[-1]
        counted = self._steps[WARM_UP:]
        tokens = sum(sum(group.lengths) for step in counted for group in step)
        ages = np.array([pair for step in self._behind[WARM_UP:] for pair in step], dtype=float).reshape(-1, 2)
        whole = self._env.now
        return Predicted(
            layout=self._layout,
            step_s=(end - begin) / len(counted),
            tokens_per_s=tokens / (end - begin),
            trainers_busy=self._busy["trainer"] / (whole * self._layout.trainers),
            engines_busy=self._busy["engine"] / (whole * self._layout.engines),
            behind=float(ages[:, 0] @ ages[:, 1] / max(1.0, ages[:, 1].sum())),
        )

    def _release(self) -> None:
        """Hand out the next batch, if its weights are out and the one before has been sampled."""
        step = self._released
        sampled = step == 0 or self._left[step - 1] == 0
        if step < len(self._steps) and sampled and step <= self._version + self._layout.staleness:
            for number, queue in enumerate(self._queues):
                share = self._steps[step][number :: len(self._queues)]
                queue.put([(step, length) for group in share for length in group.lengths])
            self._released += 1

    def _engine(self, queue: _Requests) -> Generator[Any, Any, None]:
        active: list[tuple[int, int, int, int]] = []  # (decode step of its end, step, weights' version, tokens)
        clock, loaded, costs = 0, 0, self._costs
        while True:
            while queue.items and len(active) < self._load.slots:
                step, tokens = queue.items.popleft()
                wanted = max(0, step - self._layout.staleness)
                if loaded < wanted and self._layout.staleness:  # without, the trainer waits for it
                    yield from self._work("engine", costs.sync_s, 1.0)
                loaded = wanted
                heapq.heappush(active, (clock + tokens, step, loaded, tokens))
            if not active:
                yield queue.arrival()
                continue
            ahead = min(active[0][0] - clock, CHUNK)
            seconds = ahead * (costs.generate_step_s + len(active) * costs.generate_token_s)
            yield from self._work("engine", seconds, costs.generate_serial)
            clock += ahead
            while active and active[0][0] <= clock:
                _, step, version, tokens = heapq.heappop(active)
                self._behind[step].append((step - version, tokens))
                self._left[step] -= 1
                if self._left[step] == 0:
                    self._ready[step].succeed()
                    self._release()

    def _train(self) -> Generator[Any, Any, None]:
        costs, load, count = self._costs, self._load, self._layout.trainers
        for step, groups in enumerate(self._steps):
            yield self._ready[step]
            shares = [groups[rank::count] for rank in range(count)]
            yield self._env.all_of([self._env.process(self._update(share)) for share in shares])
            if count > 1:
                yield self._env.timeout(load.allreduce_s * load.updates)
            if self._layout.staleness:  # the engines' own affair, and nobody waits for the trainer's bookkeeping
                self._version = step + 1
                self._release()
                yield self._env.timeout(costs.other_s)
            else:
                yield self._env.timeout(costs.sync_s + costs.other_s)
                self._version = step + 1
                self._release()
            self._ended.append(self._env.now)

    def _update(self, groups: Sequence[Group]) -> Generator[Any, Any, None]:
        costs = self._costs
        yield self._env.timeout(costs.reward_s * sum(len(group.lengths) for group in groups))
        seconds = costs.update_s * self._load.updates + costs.update_token_s * sum(group.trained for group in groups)
        yield from self._work("trainer", seconds, costs.update_serial)

    def _work(self, who: str, seconds: float, serial: float) -> Generator[Any, Any, None]:
        """`seconds` as measured, on a GPU of one's own or on the worker's part of the shared cores."""
        begin = self._env.now
        if self._cores is None:
            yield self._env.timeout(seconds)
        else:
            wants = self._layout.engine_cores if who == "engine" else self._layout.trainer_cores
            longer = slowdown(wants, self._costs.cores, serial)
            yield from self._cores.work(seconds * longer, wants=wants, serial=serial)
        self._busy[who] += self._env.now - begin
