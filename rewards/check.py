"""Does a reward give a data set's own gold answers full marks? `check_rows`, for `llmrl rewards check RECIPE`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmrl.rewards.scoring import score_all
from llmrl.rewards.validation import trajectory_of
from llmrl.types import Reward, Score

_CHEATS = ("", "I do not know.", "<think>hm")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProblem:
    """One row that does not behave. kind: "gold" (its gold failed), "not_applicable", "error" or "cheat"."""

    row: int
    id: str
    kind: str
    detail: str


def gold_completion(row: Mapping[str, Any]) -> str:
    """What a perfect completion of a row says: its program (`code`, `canonical_solution`), or its boxed answer."""
    for column in ("code", "canonical_solution", "reference"):
        if row.get(column):
            return f"```python\n{row[column]}\n```"
    return f"\\boxed{{{row.get('answer', '')}}}"


def check_rows(
    reward: Reward,
    rows: Iterable[Mapping[str, Any]],
    *,
    gold: Callable[[Mapping[str, Any]], str] = gold_completion,
    best: float = 1.0,
) -> list[RowProblem]:
    """The rows whose gold completion does not score `best`, or where an empty completion does.

    rows: mappings with "answer" and whatever columns the reward reads; an "id" where there is one. The reward's own
    `validate`, if it has one, runs first and raises ValueError.
    """
    if hasattr(reward, "validate"):
        reward.validate()
    rows = list(rows)
    problems: list[RowProblem] = []
    golds = _scores(reward, rows, [gold(row) for row in rows])
    for number, (row, score) in enumerate(zip(rows, golds)):
        if score.error:
            problems.append(_problem(number, row, "error", score.error))
        elif score.value is None:
            problems.append(_problem(number, row, "not_applicable", score.reason))
        elif score.value < best:
            problems.append(_problem(number, row, "gold", f"{score.value}: {score.reason}"))
    for cheat in _CHEATS:
        for number, (row, score) in enumerate(zip(rows, _scores(reward, rows, [cheat] * len(rows)))):
            if score.value is not None and score.value >= best:
                problems.append(_problem(number, row, "cheat", f"{cheat!r} scores {score.value}"))
    return problems


def _scores(reward: Reward, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Score]:
    trajectories = [
        trajectory_of(
            text, str(row.get("answer", "")), question=str(row.get("problem", row.get("prompt", ""))), columns=row
        )
        for row, text in zip(rows, texts)
    ]
    return score_all(reward, trajectories)


def _problem(number: int, row: Mapping[str, Any], kind: str, detail: str) -> RowProblem:
    return RowProblem(row=number, id=str(row.get("id", number)), kind=kind, detail=detail[:300])
