"""What every reward's `validate()` uses: the gold answer must get full marks, empty and adversarial answers none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmrl.rewards.scoring import describe, score_one
from llmrl.types import Prompt, Reward, Status, Trajectory


def trajectory_of(
    text: str,
    answer: str = "",
    *,
    question: str = "",
    columns: Mapping[str, Any] | None = None,
    status: Status | None = None,
) -> Trajectory:
    """A finished trajectory without tokens that says `text`; enough for rewards that read text."""
    prompt = Prompt(id="validate", tokens=(), text=question, answer=answer, columns=dict(columns or {}))
    return Trajectory.of(prompt, (), (), text=text, status=status)


def expect(
    reward: Reward,
    answer: str,
    *,
    full: Iterable[str],
    none: Iterable[str],
    columns: Mapping[str, Any] | None = None,
    best: float = 1.0,
    worst: float = 0.0,
) -> None:
    """Raises ValueError unless every text of `full` scores `best` and every text of `none` at most `worst`."""
    for texts, good in ((full, True), (none, False)):
        for text in texts:
            score = score_one(reward, trajectory_of(text, answer, columns=columns))
            if score.value is None:
                raise ValueError(f"{describe(reward)} gave no value for {text!r}: {score.error or score.reason}")
            if (score.value < best) if good else (score.value > worst):
                wanted = f"at least {best}" if good else f"at most {worst}"
                raise ValueError(f"{describe(reward)} gave {score.value} for {text!r}, gold {answer!r}; want {wanted}")
