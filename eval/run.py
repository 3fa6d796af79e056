"""Runs a task: requests to an engine, completions to the verifier, one line to disk per finished question.

Completions are judged in threads while the engine goes on. What a request draws depends on (seed, task, question,
sample) alone, so that a resumed or sub-sampled evaluation gets the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from llmrl.errors import EngineError
from llmrl.eval.prompts import response_of
from llmrl.eval.records import Record, Sample, open_records, to_line
from llmrl.eval.task import Mode, Task
from llmrl.importing import load
from llmrl.rewards.scoring import load_reward, score_all
from llmrl.rollout.engine import RolloutEngine
from llmrl.rollout.roll import single_turn
from llmrl.seeding import key
from llmrl.types import Completion, Prompt, Request, Reward, Sampling, Score, Trajectory

WINDOW = 16_384  # requests handed to the engine at once
BATCH = 64  # the same for an engine that does not stream
JUDGES = 4

Progress = Callable[[int, int, float | None], None]  # questions done, of, mean score so far


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Turns a question's completions into samples: verifier, voting classes, scorers. Safe to call from threads."""

    task: Task
    mode: Mode
    reward: Reward
    scorers: Mapping[str, Reward] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, mode: Mode, scorers: Mapping[str, Reward] | None = None) -> Judge:
        """The judge that `task` names. ValueError if its verifier cannot be imported or built."""
        return cls(task=task, mode=mode, reward=load_reward(task.verifier, task.options), scorers=scorers or {})

    def __call__(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Sample, ...]:
        rows = [self._trajectory(prompt, completion, i) for i, completion in enumerate(completions)]
        verdicts = score_all(self.reward, rows)
        answers, vote_error = self._vote([row.text for row in rows])
        scored = {name: score_all(scorer, rows) for name, scorer in self.scorers.items()}
        return tuple(
            _sample(completion, verdicts[i], answers[i], vote_error, {name: s[i] for name, s in scored.items()})
            for i, completion in enumerate(completions)
        )

    def _trajectory(self, prompt: Prompt, completion: Completion, sample: int) -> Trajectory:
        text = response_of(self.task, prompt, completion.text, mode=self.mode)
        return single_turn(prompt, replace(completion, text=text), sample=sample, version=0)

    def _vote(self, responses: list[str]) -> tuple[list[str | None], str]:
        if self.task.vote is None:
            return [None] * len(responses), ""
        try:
            return load(self.task.vote, key="vote")(responses), ""
        except Exception as error:  # noqa: BLE001 - one of the three borders: an eval item
            return [None] * len(responses), f"{type(error).__name__}: {str(error)[:200]}"


def _sample(
    completion: Completion, verdict: Score, answer: str | None, vote_error: str, scored: Mapping[str, Score]
) -> Sample:
    logprob = math.fsum(completion.logprobs)
    unscored = tuple(f"scorer_failed:{name}" for name, score in scored.items() if score.value is None)
    return Sample(
        text=completion.text,
        tokens=len(completion.tokens),
        logprob=logprob if math.isfinite(logprob) else None,
        status=completion.status.kind.value,
        status_reason=completion.status.reason,
        value=verdict.value,
        answer=answer,
        reason=verdict.reason,
        error=verdict.error,
        flags=(*verdict.flags, *unscored, *(("vote_failed",) if vote_error else ())),
        parts=dict(verdict.parts),
        scores={name: score.value for name, score in scored.items() if score.value is not None},
    )


def run_task(
    prompts: Sequence[Prompt],
    *,
    engine: RolloutEngine,
    judge: Judge,
    sampling: Sampling,
    samples: int,
    seed: int,
    path: Path,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> list[Record]:
    """Ask `samples` completions of every prompt and judge them; records in the order of `prompts`.

    Every finished question is on disk (`path`) before the next is reported; questions that are there already are not
    asked again. `settings` is all that the numbers depend on: a file written with others is refused (EvalError).
    EngineError passes through; what is finished stays.
    """
    with open_records(path, settings) as (file, records):
        known = {record.question for record in records}
        todo = [(i, prompt) for i, prompt in enumerate(prompts) if prompt.id not in known]
        score = _Running(record for record in records)
        if progress:
            progress(len(records), len(prompts), score.mean)
        for record in _records(todo, engine, judge, sampling, samples, seed):
            file.write(to_line(record))
            file.flush()
            records.append(record)
            score.add(record)
            if progress:
                progress(len(records), len(prompts), score.mean)
    return sorted(records, key=lambda record: record.index)


def windows(questions: int, samples: int) -> int:
    """How many times an engine is called for that many questions."""
    return -(-questions // max(1, WINDOW // samples))


def _records(
    todo: Sequence[tuple[int, Prompt]], engine: RolloutEngine, judge: Judge, sampling: Sampling, samples: int, seed: int
) -> Iterator[Record]:
    """Records as their questions finish."""
    questions, name = iter(todo), judge.task.name
    with ThreadPoolExecutor(JUDGES, thread_name_prefix="judge") as pool:
        while window := list(islice(questions, max(1, WINDOW // samples))):
            requests = [
                Request(
                    tokens=prompt.tokens, sampling=replace(sampling, seed=key(seed, "eval", name, prompt.id, sample))
                )
                for _, prompt in window
                for sample in range(samples)
            ]
            judged: dict[Future[tuple[Sample, ...]], tuple[int, Prompt]] = {}
            failure: EngineError | None = None
            try:
                for place, completions in _finished(engine, requests, samples):
                    if completions:
                        judged[pool.submit(judge, window[place][1], completions)] = window[place]
                    for future in [future for future in judged if future.done()]:
                        yield _record(judged.pop(future), future.result(), judge.task)
            except EngineError as error:
                failure = error  # what it finished is kept first
            while judged:
                done, _ = wait(judged, return_when=FIRST_COMPLETED)
                for future in done:
                    yield _record(judged.pop(future), future.result(), judge.task)
            if failure:
                raise failure


def _finished(
    engine: RolloutEngine, requests: Sequence[Request], samples: int
) -> Iterator[tuple[int, list[Completion]]]:
    """(question's place, its completions) once it has all; (0, []) now and then as a sign of life."""
    parts: dict[int, dict[int, Completion]] = {}
    for item in stream(engine, requests):
        if item is None:
            yield 0, []
            continue
        place, sample = divmod(item[0], samples)
        mine = parts.setdefault(place, {})
        mine[sample] = item[1]
        if len(mine) == samples:
            del parts[place]
            yield place, [mine[i] for i in range(samples)]


def stream(engine: RolloutEngine, requests: Sequence[Request]) -> Iterable[tuple[int, Completion] | None]:
    """The engine's own stream; of one that has none, batch after batch."""
    own = getattr(engine, "stream", None)
    if own is not None:
        return own(requests)
    return _batches(engine, requests)


def _batches(engine: RolloutEngine, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
    for start in range(0, len(requests), BATCH):
        for offset, completion in enumerate(engine.generate(requests[start : start + BATCH])):
            yield start + offset, completion


def _record(asked: tuple[int, Prompt], samples: tuple[Sample, ...], task: Task) -> Record:
    index, prompt = asked
    return Record(
        index=index,
        question=prompt.id,
        prompt=prompt.text,
        prompt_tokens=len(prompt.tokens),
        gold=prompt.answer,
        columns={name: str(prompt.columns.get(name, "")) for name in task.breakdown},
        samples=samples,
    )


class _Running:
    """Mean of the questions' mean scores so far; None before the first."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._sum, self._count = 0.0, 0
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        values = [sample.value for sample in record.samples if sample.value is not None]
        if values:
            self._sum += math.fsum(values) / len(values)
            self._count += 1

    @property
    def mean(self) -> float | None:
        return self._sum / self._count if self._count else None
