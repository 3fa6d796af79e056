"""What an evaluation found: what results.json holds (its schema: `Results.model_json_schema()`), summed from records.

A sample is right if its verifier gave full marks. A question's score is the share of right samples among those that the
verifier could score; the benchmark's score is the mean over questions. Questions without any scored sample are left out
and counted (`unscored_questions`), never counted as wrong in silence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llmrl.errors import EvalError
from llmrl.eval.metrics import clustered_interval, maj_at_k, pass_at_k, pass_hat_k, wilson_interval
from llmrl.eval.records import Record, Sample
from llmrl.eval.strategies import Rewrite, Strategy, as_weights

SCHEMA = "llmrl.eval.results/1"
FULL_MARKS = 1.0


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Frozen):
    """A mean over questions with its 95 % interval (None where one question alone gives none)."""

    value: float
    low: float | None
    high: float | None
    questions: int


class Tokens(_Frozen):
    """Lengths of completions, in tokens."""

    prompt_mean: float
    mean: float
    median: float
    longest: int
    total: int
    mean_right: float | None = Field(description="over right samples; None if there is none")
    mean_wrong: float | None


class Health(_Frozen):
    """What went wrong on the way, in samples unless said otherwise. Rates are shares of all samples."""

    truncated: float = Field(description="share that max_tokens ended")
    answered: float | None = Field(description="share with an answer that could be extracted; None if not voted on")
    failed: int = Field(description="the engine gave no completion")
    verifier_errors: int = Field(description="the verifier raised, timed out or returned nonsense")
    not_applicable: int = Field(description="the verifier gave no verdict (an unreadable gold, say)")
    unscored_questions: int = Field(description="questions without any scored sample; they are in no score")
    flags: dict[str, int] = Field(description="what verifiers noticed, such as many_boxes")


class Budget(_Frozen):
    """What a strategy spends on one question, on average."""

    samples: int = Field(description="completions generated")
    tokens: float = Field(description="tokens generated")
    scored_tokens: float = Field(description="tokens that the scorer read, prompts included; 0 without one")


class StrategyResult(_Frozen):
    """Answering each question once, by choosing among k samples."""

    strategy: str
    scorer: str | None
    score: Metric
    budget: Budget


class TaskResult(_Frozen):
    """One model on one task. `settings` is all that the numbers depend on."""

    task: str
    settings: dict[str, Any]
    questions: int = Field(description="asked")
    samples: int = Field(description="per question")
    score: Metric
    interval: str = Field(description="wilson (one sample a question) or clustered by question")
    metrics: dict[str, Metric] = Field(description="avg@n, pass@k, pass^k, maj@k")
    strategies: list[StrategyResult] = Field(default_factory=list, description="by strategy, scorer and k")
    rewritten: dict[str, dict[str, float | None]] = Field(
        default_factory=dict, description="a strategy that asks again -> numbers of its own"
    )
    mean_reward: float | None = Field(description="mean verifier score where it is not just 0 or 1")
    tokens: Tokens
    health: Health
    breakdown: dict[str, dict[str, Metric]] = Field(description="column -> its value -> score")
    example_prompt: str


class Results(_Frozen):
    """results.json: everything about one model's evaluation. `run` (time, machine) is no part of the result."""

    schema_version: str = SCHEMA
    model: str
    series: str | None = Field(None, description="the run that the model is a checkpoint of")
    step: int | None = Field(None, description="its training step")
    tasks: list[TaskResult]
    run: dict[str, Any] = Field(default_factory=dict)


def right(sample: Sample) -> bool:
    """Whether the verifier gave full marks."""
    return sample.value is not None and sample.value >= FULL_MARKS


def summarise(
    task: str,
    settings: Mapping[str, Any],
    records: Sequence[Record],
    strategies: Sequence[Strategy] = (),
    ks: Sequence[int] = (),
    rewritten: Sequence[tuple[Rewrite, Sequence[Record]]] = (),
) -> TaskResult:
    """The result of one task; `ks` are reported besides `budgets`, `rewritten` holds what strategies that ask again made
    of it. EvalError if no record has a scored sample.
    """
    if not records:
        raise EvalError(f"task {task}: no question was finished")
    scored = [[sample for sample in record.samples if sample.value is not None] for record in records]
    kept = [samples for samples in scored if samples]
    if not kept:
        first = records[0].samples[0]
        raise EvalError(f"task {task}: no sample could be scored; the first: {first.error or first.reason}")
    fewest = min(map(len, kept))
    every_k = sorted({*budgets(fewest), *(k for k in ks if k <= fewest)})
    values = [sample.value for samples in kept for sample in samples if sample.value is not None]
    return TaskResult(
        task=task,
        settings=dict(settings),
        questions=len(records),
        samples=max(len(record.samples) for record in records),
        score=_score(kept),
        interval="wilson" if max(map(len, kept)) == 1 else "clustered",
        metrics=_metrics(kept, every_k),
        strategies=[
            *_strategies(records, kept, every_k, strategies),
            *(result for rewrite, again in rewritten for result in _rewritten(rewrite.name, again, every_k)),
        ],
        rewritten={
            rewrite.name: {name: x if math.isfinite(x) else None for name, x in rewrite.metrics(again).items()}
            for rewrite, again in rewritten
        },
        mean_reward=mean(values) if any(value not in (0.0, FULL_MARKS) for value in values) else None,
        tokens=_tokens(records),
        health=_health(records, unscored=len(records) - len(kept)),
        breakdown=_breakdown(records, scored),
        example_prompt=records[0].prompt,
    )


def question_scores(records: Sequence[Record]) -> dict[str, float]:
    """Question id -> share of right samples, of the questions that have a scored one: what comparisons pair up."""
    return {
        record.question: _share([sample for sample in record.samples if sample.value is not None])
        for record in records
        if any(sample.value is not None for sample in record.samples)
    }


def _share(samples: Sequence[Sample]) -> float:
    return sum(map(right, samples)) / len(samples)


def _score(kept: Sequence[Sequence[Sample]]) -> Metric:
    shares = [_share(samples) for samples in kept]
    if max(map(len, kept)) == 1:
        low, high = wilson_interval(int(sum(shares)), len(shares))
        return Metric(value=mean(shares), low=low, high=high, questions=len(shares))
    return _metric(shares)


def _metric(per_question: Sequence[float]) -> Metric:
    low, high = clustered_interval(per_question) if len(per_question) > 1 else (None, None)
    return Metric(value=mean(per_question), low=low, high=high, questions=len(per_question))


def budgets(samples: int) -> list[int]:
    """The k of pass@k and the like: powers of two up to `samples`, and `samples` itself.

    >>> budgets(6)
    [1, 2, 4, 6]
    """
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def _metrics(kept: Sequence[Sequence[Sample]], every_k: Sequence[int]) -> dict[str, Metric]:
    """Every k counts only if each question has k scored samples."""
    found = {f"avg@{max(map(len, kept))}": _score(kept)}
    counts = [(len(samples), sum(map(right, samples))) for samples in kept]
    named: list[tuple[str, Callable[[int, int, int], float]]] = [("pass@", pass_at_k), ("pass^", pass_hat_k)]
    for k in every_k:
        for name, metric in named:
            found[f"{name}{k}"] = _metric([metric(n, c, k) for n, c in counts]) if k > 1 else _score(kept)
        if k > 1 and any(sample.answer is not None for samples in kept for sample in samples):
            found[f"maj@{k}"] = _metric([_voted(samples, k) for samples in kept])
    return found


def _voted(samples: Sequence[Sample], k: int) -> float:
    return maj_at_k(_classes(samples), [right(sample) for sample in samples], k)


def _classes(samples: Sequence[Sample]) -> list[str | None]:
    """A sample judged right although no answer was found in it votes for a class of its own."""
    return [sample.answer if sample.answer is not None or not right(sample) else "(right)" for sample in samples]


def _strategies(
    records: Sequence[Record], kept: Sequence[Sequence[Sample]], every_k: Sequence[int], strategies: Sequence[Strategy]
) -> list[StrategyResult]:
    """Every strategy with every scorer that scored all samples, at every k."""
    voted = any(sample.answer is not None for samples in kept for sample in samples)
    length = mean(sample.tokens for samples in kept for sample in samples)
    read = length + mean(record.prompt_tokens for record in records)
    found = []
    for strategy in strategies:
        for scorer in _scorers(kept) if strategy.scored else (None,) if voted or not strategy.voted else ():
            if strategy.voted and not voted:
                continue
            scores = [[sample.scores[scorer] if scorer else 0.0 for sample in samples] for samples in kept]
            scores = as_weights(scores) if strategy.voted else scores
            for k in every_k:
                values = [
                    strategy.choose(_classes(samples), chosen, [right(sample) for sample in samples], k)
                    for samples, chosen in zip(kept, scores)
                ]
                budget = Budget(samples=k, tokens=k * length, scored_tokens=k * read if scorer and k > 1 else 0.0)
                found.append(
                    StrategyResult(strategy=strategy.name, scorer=scorer, score=_metric(values), budget=budget)
                )
    return found


def _rewritten(name: str, records: Sequence[Record], every_k: Sequence[int]) -> list[StrategyResult]:
    """The answers of a strategy that asks again: one alone, and the vote of k where answers can be voted on."""
    kept = [[sample for sample in record.samples if sample.value is not None] for record in records]
    kept = [samples for samples in kept if samples]
    if not kept:
        return []
    voted = any(sample.answer is not None for samples in kept for sample in samples)
    length = mean(sample.tokens for samples in kept for sample in samples)
    fewest = min(map(len, kept))
    return [
        StrategyResult(
            strategy=name,
            scorer=None,
            score=_score(kept) if k == 1 else _metric([_voted(samples, k) for samples in kept]),
            budget=Budget(samples=k, tokens=k * length, scored_tokens=0.0),
        )
        for k in every_k
        if k == 1 or (voted and k <= fewest)
    ]


def _scorers(kept: Sequence[Sequence[Sample]]) -> list[str]:
    """Scorers that scored every sample."""
    named = [set(sample.scores) for samples in kept for sample in samples]
    return sorted(set.intersection(*named))


def _tokens(records: Sequence[Record]) -> Tokens:
    samples = [sample for record in records for sample in record.samples]
    lengths = [sample.tokens for sample in samples]
    of_right = [sample.tokens for sample in samples if right(sample)]
    of_wrong = [sample.tokens for sample in samples if sample.value is not None and not right(sample)]
    return Tokens(
        prompt_mean=mean(record.prompt_tokens for record in records),
        mean=mean(lengths),
        median=float(median(lengths)),
        longest=max(lengths),
        total=sum(lengths),
        mean_right=mean(of_right) if of_right else None,
        mean_wrong=mean(of_wrong) if of_wrong else None,
    )


def _health(records: Sequence[Record], *, unscored: int) -> Health:
    samples = [sample for record in records for sample in record.samples]
    failed = sum(sample.status == "error" for sample in samples)
    voted = any(sample.answer is not None for sample in samples)
    return Health(
        truncated=sum(sample.status == "truncated" for sample in samples) / len(samples),
        answered=sum(sample.answer is not None for sample in samples) / len(samples) if voted else None,
        failed=failed,
        verifier_errors=sum(bool(sample.error) and sample.status != "error" for sample in samples),
        not_applicable=sum(sample.value is None and not sample.error for sample in samples),
        unscored_questions=unscored,
        flags=dict(sorted(Counter(flag for sample in samples for flag in sample.flags).items())),
    )


def _breakdown(records: Sequence[Record], scored: Sequence[Sequence[Sample]]) -> dict[str, dict[str, Metric]]:
    found: dict[str, dict[str, Metric]] = {}
    for name in records[0].columns:
        parts: dict[str, list[Sequence[Sample]]] = {}
        for record, samples in zip(records, scored):
            if samples:
                parts.setdefault(record.columns[name], []).append(samples)
        found[name] = {part: _score(parts[part]) for part in sorted(parts, key=_natural)}
    return found


def _natural(value: str) -> tuple[float, str]:
    """Numbers in their order, before words."""
    try:
        return float(value), value
    except ValueError:
        return math.inf, value


def read_results(folder: Path) -> Results:
    """results.json of `folder`. EvalError if there is none or it is not of this version."""
    path = folder / "results.json" if folder.is_dir() else folder
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EvalError(f"no {path}; is {folder} the --out folder of an evaluation?") from error
    except ValueError as error:
        raise EvalError(f"{path} is no results.json of this version: {str(error).splitlines()[0]}") from error
