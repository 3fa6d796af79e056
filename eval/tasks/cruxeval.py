"""CRUXEval-O: 800 short Python functions; predict what `f(input)` returns. Gu et al. 2024 (2401.03065)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrl.eval.task import Question, Source, Task, identity, text


def read(row: Mapping[str, Any], number: int) -> Question:
    """The gold is the repr of the value that `f` returns."""
    columns = {"code": text(row, "code"), "input": str(row.get("input", ""))}
    return Question(id=identity(row, number, "cruxeval"), answer=text(row, "output"), columns=columns)


TASK = Task(
    name="cruxeval",
    source=Source(file="cruxeval/test.jsonl", hub="cruxeval-org/cruxeval", split="test"),
    read=read,
    verifier="llmrl.rewards.text_answer:PredictedOutput",
    vote="llmrl.eval.voting:literal",
    template=(
        "What does `f({input})` return?\n\n```python\n{code}\n```\n\nReason step by step, then give the value as a "
        "Python literal, nothing else, in <answer> </answer> tags."
    ),
    plain_template="{code}\n\nassert f({input}) ==",
    plain_stop=("\n",),
    plain_response="<answer>{response}</answer>",
    max_tokens=1024,
    temperature=0.8,
)
