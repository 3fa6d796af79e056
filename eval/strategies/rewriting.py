"""Strategies that ask the engine again: from a question's first samples to new ones, as many, in a file of their own.

    records of <task>.jsonl  ->  rewrite(asked, tools)  ->  <task>.<strategy>.jsonl

A new sample's `tokens` are all that its answer cost, the first sample's included, so that budgets are comparable with
plain sampling and voting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmrl.data.conversation import Renderer
from llmrl.eval.records import Record, open_records, to_line
from llmrl.eval.run import Judge
from llmrl.rollout.engine import RolloutEngine
from llmrl.types import Completion, Prompt, Request, Sampling

WINDOW = 4096  # samples rewritten at once


class Engines(Protocol):
    """The engines of an evaluation: None is the evaluated model's, another starts when it is first asked."""

    def __call__(self, model: str | None) -> RolloutEngine: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a rewriting works with. `sampling` is that of the first samples; `seed` keys every draw (`seeding.key`)."""

    engines: Engines
    judge: Judge
    renderer: Renderer
    tokenizer: Any
    sampling: Sampling
    seed: int
    task: str

    def ask(self, requests: Sequence[Request], *, model: str | None = None) -> list[Completion]:
        """One completion a request, in order."""
        return self.engines(model).generate(requests) if requests else []


class Rewrite(Protocol):
    """A frozen dataclass whose fields are its `--strategy-args`."""

    @property
    def name(self) -> str:
        """For files and tables."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on, beside those of the evaluation."""
        ...

    def length(self, prompt: int, completion: int) -> int:
        """Most tokens of a request and its answer, for first ones of so many."""
        ...

    def __call__(self, asked: Sequence[tuple[Prompt, Record]], tools: Tools) -> list[Record]:
        """The questions' records with new samples, one for each of the first."""
        ...

    def metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """Numbers of its own, over all new records."""
        ...


def rewrite_task(
    rewrite: Rewrite, asked: Sequence[tuple[Prompt, Record]], tools: Tools, *, path: Path, settings: Mapping[str, Any]
) -> list[Record]:
    """The new records of a task, in the order of its questions; finished ones are on disk (`path`) and not asked again.

    EvalError if the file was written with other settings.
    """
    with open_records(path, {**settings, "strategy": {"name": rewrite.name, **rewrite.settings()}}) as (file, done):
        known = {record.question for record in done}
        todo = [(prompt, record) for prompt, record in asked if record.question not in known]
        window = max(1, WINDOW // max((len(record.samples) for _, record in todo), default=1))
        for start in range(0, len(todo), window):
            for record in rewrite(todo[start : start + window], tools):
                file.write(to_line(record))
                done.append(record)
            file.flush()
    return sorted(done, key=lambda record: record.index)
