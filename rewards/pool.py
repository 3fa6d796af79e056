"""Reward pool: any Reward, in killable worker processes, with a deadline. For rewards that are slow or not trusted to
end.

    with RewardPool("llmrl.rewards.code_tests:CodeTests", {"timeout_s": 4.0}, workers=4, deadline_s=60) as pool:
        scores = pool(trajectories)          # list[Score], in order

Workers are fresh interpreters started by exec (never a fork, so the caller may hold torch and vLLM), when first
needed, and die with the parent. A step takes at most `deadline_s` (plus the start of missing workers): a trajectory
that is over `item_s`, or unfinished at the deadline, gets `Score(value=None, error="timed out ...")`, its worker is
killed and replaced. A worker that died without an answer is replaced and its trajectories are tried once more.
`counters` says how often each happened. Trajectories go to the worker as pickle over a pipe of this process and its
own child; scores come back as JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from llmrl.rewards.scoring import BatchedReward, failed, load_reward, score_all
from llmrl.rewards.workers import Worker, WorkerDied, WorkerPool, WorkerTimeout
from llmrl.types import Reward, Score, Trajectory

_HANDLER = "llmrl.rewards.pool:handle"


class RewardPool:
    """Callable on a batch of trajectories; see the module. Use as a context manager, or call `close`.

    reward: import path "package.module:Name" (built in the worker with `options`) or a Reward that pickles. workers:
    processes. deadline_s: wall clock of one call. item_s: of one trajectory (a third of deadline_s if not given); a
    reward with `score_batch` gets its share of the batch at once and has deadline_s for it. A share is made of whole
    groups (all trajectories of one prompt id), so siblings can be compared; a reward that compares across groups says
    `whole_batch = True` and gets everything in one worker.
    """

    def __init__(
        self,
        reward: Reward | str,
        options: Mapping[str, Any] | None = None,
        *,
        workers: int | None = None,
        deadline_s: float = 60.0,
        item_s: float | None = None,
        memory_mb: int = 0,
    ) -> None:
        if isinstance(reward, str):
            self._spec = pickle.dumps(("path", reward, dict(options or {})))
        else:
            if options:
                raise ValueError("options go with an import path; this reward is an object already")
            if getattr(type(reward), "__module__", "") == "__main__" or getattr(reward, "__module__", "") == "__main__":
                raise ValueError("a reward of the main script cannot be built in a worker; move it to a module")
            try:
                self._spec = pickle.dumps(("object", reward, {}))
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ValueError(f"this reward cannot be sent to a worker ({error}); give its import path") from error
        self.workers = workers or max(1, min(8, os.cpu_count() or 1))
        self.deadline_s, self.item_s = deadline_s, item_s if item_s is not None else deadline_s / 3
        self.counters: Counter[str] = Counter()
        self._pool = WorkerPool(_HANDLER, size=self.workers, memory_bytes=memory_mb << 20, quiet=False)
        self._batched: bool | None = None
        self._whole_batch = False
        self._count_lock = threading.Lock()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers. The pool can be called again; it then starts new ones."""
        self._pool.close()

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """One score a trajectory, in order. Raises ValueError if the reward cannot be built in a worker."""
        if not trajectories:
            return []
        self._prepare()
        scores: list[Score | None] = [None] * len(trajectories)
        jobs: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for rows in self._shares(trajectories):
            jobs.put(rows)
        deadline = time.monotonic() + self.deadline_s
        threads = [
            threading.Thread(target=self._work, args=(jobs, trajectories, scores, deadline), daemon=True)
            for _ in range(min(self.workers, jobs.qsize()))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self.close()
            raise
        done = [score if score is not None else self._late() for score in scores]
        self._count("scored", sum(score.value is not None for score in done))
        self._count("not_applicable", sum(score.value is None and not score.error for score in done))
        self._count("errors", sum(bool(score.error) for score in done))
        return done

    def _shares(self, trajectories: Sequence[Trajectory]) -> list[list[int]]:
        """Which rows go to a worker together: one each, or whole groups if batched, or all if the reward asks for it."""
        if not self._batched:
            return [[row] for row in range(len(trajectories))]
        if self._whole_batch:
            return [list(range(len(trajectories)))]
        groups: dict[str, list[int]] = {}
        for row, trajectory in enumerate(trajectories):
            groups.setdefault(trajectory.prompt.id, []).append(row)
        shares: list[list[int]] = [[] for _ in range(min(self.workers, len(groups)))]
        for rows in sorted(groups.values(), key=len, reverse=True):
            min(shares, key=len).extend(rows)
        return [sorted(share) for share in shares]

    def _count(self, what: str, amount: int = 1) -> None:
        with self._count_lock:
            self.counters[what] += amount

    def _late(self) -> Score:
        self._count("timeouts")
        return failed(f"timed out: not scored within the step's {self.deadline_s:g} s")

    def _prepare(self) -> None:
        """Build the reward in a first worker, so that a wrong name or option is an error and not a batch of errors."""
        if self._batched is not None:
            return
        with self._pool.worker() as worker:
            try:
                answer = json.loads(worker.request(pickle.dumps((self._spec, None)), time.monotonic() + 120.0))
            except (WorkerTimeout, WorkerDied) as error:
                raise ValueError(f"the reward could not be built in a worker: {error!r}") from error
        if "problem" in answer:
            raise ValueError(f"the reward could not be built in a worker: {answer['problem']}")
        self._batched, self._whole_batch = bool(answer["batched"]), bool(answer["whole_batch"])

    def _work(
        self,
        jobs: queue.SimpleQueue[list[int]],
        trajectories: Sequence[Trajectory],
        scores: list[Score | None],
        deadline: float,
    ) -> None:
        """One thread: take jobs until none is left or the deadline has passed."""
        while time.monotonic() < deadline:
            try:
                rows = jobs.get_nowait()
            except queue.Empty:
                return
            for row, score in zip(rows, self._score_rows([trajectories[i] for i in rows], deadline)):
                scores[row] = score

    def _score_rows(self, rows: list[Trajectory], deadline: float) -> list[Score]:
        payload = pickle.dumps((self._spec, rows))
        reason = ""
        for attempt in (1, 2):
            try:
                with self._pool.worker() as worker:
                    limit = deadline if self._batched else min(deadline, time.monotonic() + self.item_s)
                    return self._read(worker, payload, limit)
            except WorkerTimeout:
                self._count("timeouts", len(rows))
                allowed = self.deadline_s if self._batched else self.item_s
                return [failed(f"timed out: the reward took longer than {allowed:g} s")] * len(rows)
            except WorkerDied as error:
                reason = str(error)
                if attempt == 1:
                    self._count("retries", len(rows))
        self._count("died", len(rows))
        return [failed(f"the reward's process died twice: {reason}")] * len(rows)

    @staticmethod
    def _read(worker: Worker, payload: bytes, limit: float) -> list[Score]:
        answer = json.loads(worker.request(payload, limit))
        if "problem" in answer:
            raise WorkerDied(answer["problem"])
        return [Score(**{**row, "flags": tuple(row["flags"])}) for row in answer["scores"]]


class IsolatedReward:
    """A `RewardPool` where a Reward is asked for; `score_all` and `WeightedSum` hand it whole batches."""

    def __init__(self, pool: RewardPool) -> None:
        self.pool = pool

    def __call__(self, trajectory: Trajectory) -> Score:
        return self.pool([trajectory])[0]

    def score_batch(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        return self.pool(trajectories)


_rewards: dict[bytes, Reward] = {}  # in the worker: spec -> reward


def handle(payload: bytes) -> bytes:
    """In the worker: score trajectories, or only build the reward if there are none."""
    spec, rows = pickle.loads(payload)  # noqa: S301 - from the parent process over its own pipe
    try:
        if spec not in _rewards:
            kind, target, options = pickle.loads(spec)  # noqa: S301 - as above
            _rewards[spec] = load_reward(target, options) if kind == "path" else target
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises
        return json.dumps({"problem": f"{type(error).__name__}: {error}"}).encode()
    reward = _rewards[spec]
    if rows is None:
        whole = bool(getattr(reward, "whole_batch", False))
        return json.dumps({"batched": isinstance(reward, BatchedReward), "whole_batch": whole}).encode()
    fields = ("value", "parts", "reason", "error", "flags")
    scores = [{name: getattr(score, name) for name in fields} for score in score_all(reward, rows)]
    return json.dumps({"scores": [{**s, "parts": dict(s["parts"])} for s in scores]}, default=float).encode()
