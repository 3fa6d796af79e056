"""The project's own generators as benchmarks: held-out problems that training on the same generator never draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmrl.eval.task import Generated, Question, Task, text
from llmrl.eval.tasks.countdown import TASK as COUNTDOWN_FILE


def read(row: Mapping[str, Any], number: int) -> Question:
    """The row says how to answer; the id is the problem's own."""
    columns = {name: value for name, value in row.items() if name not in ("id", "answer")}
    return Question(id=text(row, "id"), answer=text(row, "answer"), columns=columns)


ADDITION = Task(
    name="addition",
    source=Generated(generator="addition", count=200),
    read=read,
    verifier="llmrl.rewards.exact_number:ExactNumber",
    vote="llmrl.eval.voting:number",
    template="{problem}",
    plain_template="Question: {problem}\nAnswer:",
    plain_stop=("Question:", "\n\n"),
    max_tokens=64,
)
ARITHMETIC = replace(ADDITION, name="arithmetic", source=Generated(generator="arithmetic", count=200), max_tokens=256)
PROGRAMS = replace(
    ADDITION,
    name="programs",
    source=Generated(generator="programs", count=200, args={"operations": 3}),
    verifier="llmrl.rewards.code_tests:CodeTests",
    vote=None,
    plain_template="{problem}\n\nAnswer:\n",
    plain_stop=(),
    max_tokens=128,
    temperature=1.0,
    top_p=1.0,
)
CHAINS = replace(
    ADDITION, name="chains", source=Generated(generator="chains", count=200), max_tokens=64, temperature=0.7
)
COUNTDOWN = replace(
    ADDITION,
    name="countdown_generated",
    source=Generated(generator="countdown", count=200),
    verifier=COUNTDOWN_FILE.verifier,
    vote=None,
    max_tokens=512,
)
