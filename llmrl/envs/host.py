"""Environments in worker processes that are killed when they hang, or in this process.

A worker holds many episodes. If it dies or passes its deadline, the call it was busy with has failed; its other episodes
are played again in a fresh worker from the completions so far, which environments promise to answer alike.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from llmrl.envs.protocol import Ask, Turn
from llmrl.importing import load
from llmrl.types import Completion, Observation, Prompt

START_S = 120.0  # for a worker to import what its environments need


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an environment gave no answer."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What to do with the environment of `episode`: start it (`prompt` and `seed`), or answer a completion or texts."""

    episode: str
    prompt: Prompt | None = None
    seed: int = 0
    given: Completion | tuple[str, ...] | None = None


Answer = Observation | Turn | Ask | Failure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """An environment by import path, with the arguments of the recipe."""

    path: str
    args: Mapping[str, Any] = field(default_factory=dict)


class Inline:
    """Environments in this process: fast, for ones that can be trusted to answer."""

    def __init__(self, maker: Maker) -> None:
        self._make = load(maker.path)
        self._args = dict(maker.args)
        self._live: dict[str, Any] = {}

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """One answer a call, in order. An exception of an environment is a `Failure`."""
        return [self.one(call) for call in calls]

    def one(self, call: Call) -> Answer:
        try:
            if call.prompt is not None:
                environment = self._make(prompt=call.prompt, seed=call.seed, **self._args)
                self._live[call.episode] = environment
                return checked(environment.start(), started=True)
            environment = self._live[call.episode]
            if isinstance(call.given, tuple):
                return checked(environment.told(*call.given))
            return checked(environment.act(call.given))
        except Exception as error:  # noqa: BLE001  # one episode's failure, with its reason
            return Failure(f"{type(error).__name__}: {error}")

    def forget(self, episodes: Sequence[str]) -> None:
        """Drop environments whose episodes are over."""
        for episode in episodes:
            close = getattr(self._live.pop(episode, None), "close", None)
            if close is not None:
                with suppress(Exception):  # the episode is over; what it leaves behind harms nobody
                    close()

    def close(self) -> None:
        self.forget(list(self._live))


def checked(answer: object, *, started: bool = False) -> Answer:
    """`answer`, or why it is none."""
    if isinstance(answer, Ask | Observation) or (started and answer is None):
        return answer
    if started:
        return Failure(f"start() gave {type(answer).__name__} instead of an Observation, an Ask or None")
    if not isinstance(answer, Turn):
        return Failure(f"act() gave {type(answer).__name__} instead of a Turn or an Ask")
    if not isinstance(answer.reward, int | float) or not math.isfinite(answer.reward):
        return Failure(f"the environment's reward is {answer.reward!r}, not a finite number")
    if answer.truncated and answer.next is None:
        return Failure("a truncated Turn needs `next`, what would have been seen")
    return answer


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: Connection
    ready: bool = False
    since: float = 0.0  # when it was last heard of or given work
    queue: list[tuple[int, Call]] = field(default_factory=list)  # what it has been given and not answered
    replays: int = 0  # answers to come that only rebuild episodes


class Hosted:
    """Environments in `workers` processes; a call that takes longer than `timeout_s` fails and its worker is killed."""

    def __init__(self, maker: Maker, *, workers: int, timeout_s: float) -> None:
        self._maker, self._timeout_s = maker, timeout_s
        self._history: dict[str, list[Call]] = {}
        self._home: dict[str, int] = {}
        self._given = 0
        self.restarts = 0
        self._workers = [self._started() for _ in range(workers)]

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """One answer a call, in order; at most one call an episode. What raises, hangs, dies or talks nonsense is a
        `Failure`.
        """
        answers: dict[int, Answer] = {}
        for index, call in enumerate(calls):
            if call.prompt is not None:
                self._home[call.episode] = self._given % len(self._workers)
                self._given += 1
                self._history[call.episode] = []
            if call.episode in self._home:
                self._give(self._home[call.episode], index, call)
            else:
                answers[index] = Failure("its worker was lost, and playing the episode again failed")
        while len(answers) < len(calls):
            busy = {worker.pipe: number for number, worker in enumerate(self._workers) if worker.queue}
            for pipe in wait(list(busy), timeout=0.2):
                self._hear(busy[pipe], answers)  # type: ignore[index]
            for number, worker in enumerate(self._workers):
                limit = self._timeout_s if worker.ready else START_S
                if worker.queue and time.monotonic() - worker.since > limit:
                    self._replace(number, answers, f"no answer in {limit:g} s")
        return [answers[index] for index in range(len(calls))]

    def forget(self, episodes: Sequence[str]) -> None:
        """Drop environments whose episodes are over."""
        for number, worker in enumerate(self._workers):
            gone = [episode for episode in episodes if self._home.get(episode) == number]
            if gone:
                try:
                    worker.pipe.send(gone)
                except OSError:
                    continue  # it died between two rounds; the next call notices
        for episode in episodes:
            self._home.pop(episode, None)
            self._history.pop(episode, None)

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self._workers = []

    def _started(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._maker), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process=process, pipe=ours, since=time.monotonic())

    def _give(self, number: int, index: int, call: Call) -> None:
        worker = self._workers[number]
        if not worker.queue:
            worker.since = time.monotonic()
        worker.queue.append((index, call))
        with suppress(OSError):  # a dead worker is noticed on reading, and its work given to another
            worker.pipe.send(call)

    def _hear(self, number: int, answers: dict[int, Answer]) -> None:
        worker = self._workers[number]
        try:
            heard = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(1.0)
            self._replace(number, answers, f"the process died with exit code {worker.process.exitcode}")
            return
        worker.since = time.monotonic()
        if not worker.ready:
            worker.ready = True
            if isinstance(heard, Failure):
                raise ImportError(f"env.name={self._maker.path}: {heard.reason}")
            return
        index, call = worker.queue.pop(0)
        if index >= 0:
            answers[index] = heard
            if not isinstance(heard, Failure):
                self._history[call.episode].append(call)

    def _replace(self, number: int, answers: dict[int, Answer], reason: str) -> None:
        """Kill a worker; the call it was busy with failed, its other episodes are rebuilt in a new one."""
        old = self._workers[number]
        old.process.kill()
        old.process.join()
        old.pipe.close()
        self.restarts += 1
        guilty = None
        waiting = old.queue
        if waiting:
            index, call = waiting[0]
            guilty, waiting = call.episode, [item for item in waiting[1:] if item[1].episode != call.episode]
            failed = [item for item in old.queue if item[1].episode == guilty and item[0] >= 0]
            for index, _ in failed:
                answers[index] = Failure(reason)
            self._home.pop(guilty, None)
            self._history.pop(guilty, None)
        self._workers[number] = self._started()
        for episode, home in self._home.items():
            if home == number:
                for call in self._history[episode]:
                    self._give(number, -1, call)
        for index, call in waiting:
            if index >= 0:
                self._give(number, index, call)


def _work(pipe: Connection, maker: Maker) -> None:
    """A worker's life: answer calls until the pipe closes. What environments print goes to the run's standard error."""
    os.dup2(2, 1)
    try:
        host = Inline(maker)
    except Exception as error:  # noqa: BLE001  # told to the run, which stops
        pipe.send(Failure(f"{type(error).__name__}: {error}"))
        return
    pipe.send(True)
    while True:
        try:
            call = pipe.recv()
        except EOFError:
            return
        if isinstance(call, Call):
            pipe.send(host.one(call))
        else:
            host.forget(call)
