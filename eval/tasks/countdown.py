"""Countdown: reach a target from given numbers, each used exactly once; many answers are right, so nothing is voted on.

Three sizes: 2 numbers (easy), 3, and 4 (hard). The hub's copy mixes 3 and 4 numbers; its rows 327,680 to 328,704 are
the test split that TinyZero uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmrl.eval.task import Question, Source, Task, column, identity, items


def read(row: Mapping[str, Any], number: int) -> Question:
    """The gold is one solution if the row has one, else the target: the verifier evaluates the answer's expression."""
    numbers, target = items(row, "numbers", "nums"), column(row, "target")
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in [*numbers, target]):
        raise ValueError(f"numbers {numbers} and target {target!r} must be integers")
    columns = {"numbers": numbers, "target": target, "size": str(len(numbers))}
    return Question(id=identity(row, number, "countdown"), answer=str(row.get("answer", target)), columns=columns)


TASK = Task(
    name="countdown",
    source=Source(file="countdown/mid3.jsonl", hub="Jiayi-Pan/Countdown-Tasks-3to4", split="train[327680:328704]"),
    read=read,
    verifier="llmrl.rewards.countdown:Countdown",
    template=(
        "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic operations "
        "(+, -, *, /) and each number must be used exactly once. Show your work, and return the final equation in "
        "<answer> </answer> tags, for example <answer>(1 + 2) / 3</answer>."
    ),
    plain_template=(
        "Using the numbers {numbers}, create an equation that equals {target}. Use +, -, *, / and each number exactly "
        "once. Return the equation in <answer> </answer> tags, for example <answer>(1 + 2) / 3</answer>.\nSolution:"
    ),
    plain_stop=("\n\n\n", "Using the numbers"),
    max_tokens=1024,
    breakdown=("size",),
)
EASY = replace(TASK, name="countdown_easy", source=Source(file="countdown/easy2.jsonl"))
HARD = replace(TASK, name="countdown_hard", source=Source(file="countdown/hard4.jsonl"))
