"""GSM8K: 1,319 grade-school word problems, integer answers. Cobbe et al. 2021 (2110.14168)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrl.eval.task import Question, Source, Task, identity, text


def read(row: Mapping[str, Any], number: int) -> Question:
    """The hub's rows hold "reasoning #### answer" in one column, local ones the answer in its own."""
    worked = text(row, "solution", "answer")
    answer = text(row, "answer").rpartition("####")[2].strip().replace(",", "")
    columns = {"problem": text(row, "problem", "question"), "solution": worked}
    return Question(id=identity(row, number, "gsm8k"), answer=answer, columns=columns)


TASK = Task(
    name="gsm8k",
    source=Source(file="gsm8k/test.jsonl", hub="openai/gsm8k", config="main", split="test"),
    read=read,
    verifier="llmrl.rewards.math_answer:MathAnswer",
    vote="llmrl.eval.voting:maths",
    template="{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    plain_template="Question: {problem}\nAnswer:",
    plain_stop=("Question:", "\n\n\n"),
    shot_source=Source(file="gsm8k/train.jsonl", hub="openai/gsm8k", config="main", split="train"),
    shot_response=" {solution}\n\n",
    plain_shots=5,
    max_tokens=512,
)
