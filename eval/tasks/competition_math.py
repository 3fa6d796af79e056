"""Competition maths with short exact answers: MATH, MATH-500, AIME 2024 and 2025, AMC 2023; they differ in data alone.

MATH: 5,000 test problems, five levels, seven subjects (Hendrycks et al. 2021, 2103.03874); MATH-500 is the part of it
that Lightman et al. 2023 (2305.20050) kept. AIME and AMC have 30 or 40 problems a year: one sample each says little, so
they default to 16 at temperature 0.6 and top-p 0.95, as the R1 report (2501.12948) samples them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmrl.eval.task import Question, Source, Task, identity, text


def read(row: Mapping[str, Any], number: int) -> Question:
    """The answer is its own column, or the last `\\boxed{}` of the worked solution (hub copies of MATH)."""
    columns: dict[str, Any] = {"problem": text(row, "problem", "question")}
    if row.get("level") is not None:
        columns["level"] = str(row["level"]).removeprefix("Level ").strip()
    if row.get("type") or row.get("subject"):
        columns["subject"] = text(row, "type", "subject")
    answer = text(row, "answer") if row.get("answer") is not None else last_boxed(text(row, "solution"))
    return Question(id=identity(row, number, "row"), answer=answer, columns=columns)


def read_amc(row: Mapping[str, Any], number: int) -> Question:
    """The hub's copy writes its integers as "27.0"."""
    question = read(row, number)
    return replace(question, answer=question.answer.removesuffix(".0"))


def last_boxed(solution: str) -> str:
    r"""What the last balanced `\boxed{...}` of a trusted solution holds. ValueError if there is none.

    >>> last_boxed(r"So $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    """
    start = solution.rfind("\\boxed{")
    depth = 0
    for place in range(start + len("\\boxed"), len(solution)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(solution[place], 0)
        if depth == 0:
            return solution[start + len("\\boxed{") : place]
    raise ValueError("no column 'answer', and no balanced \\boxed{...} in column 'solution'")


MATH = Task(
    name="math",
    source=Source(file="math/test.jsonl", hub="DigitalLearningGmbH/MATH-lighteval", split="test"),
    read=read,
    verifier="llmrl.rewards.math_answer:MathAnswer",
    vote="llmrl.eval.voting:maths",
    template="{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    plain_template="Problem:\n{problem}\n\nSolution:\n",
    plain_stop=("Problem:", "\n\n\n"),
    max_tokens=4096,
    breakdown=("level", "subject"),
)
MATH500 = replace(
    MATH, name="math500", source=Source(file="math/math500.jsonl", hub="HuggingFaceH4/MATH-500", split="test")
)
AIME24 = replace(
    MATH,
    name="aime24",
    source=Source(file="aime24/test.jsonl", hub="HuggingFaceH4/aime_2024", split="train"),
    samples=16,
    max_tokens=32768,
    breakdown=(),
)
AIME25 = replace(AIME24, name="aime25", source=Source(file="aime25/test.jsonl", hub="math-ai/aime25", split="test"))
AMC23 = replace(
    AIME24,
    name="amc23",
    read=read_amc,
    source=Source(file="amc23/test.jsonl", hub="math-ai/amc23", split="test"),
    max_tokens=16384,
)
