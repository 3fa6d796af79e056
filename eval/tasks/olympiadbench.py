"""OlympiadBench, English text-only open-ended maths: 675 problems. He et al. 2024 (2402.14008).

A row's `answer` is a list; here all its members must be given. Rows with a unit keep it out of the gold, as upstream
does; `error` becomes the column `tolerance`, an absolute tolerance that the verifier reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmrl.eval.task import Question, Source, identity, items, text
from llmrl.eval.tasks.competition_math import MATH


def _tolerance(error: Any) -> float | None:
    """The smallest of the tolerances written ("1e-1", "0.2,0.1"), None if there is none."""
    values = [float(part) for part in str(error or "").split(",") if part.strip()]
    return min(values, default=None)


def read(row: Mapping[str, Any], number: int) -> Question:
    """Local rows and the hub's name their columns differently (answer / final_answer, problem / question)."""
    columns = {
        "problem": text(row, "problem", "question"),
        "subject": text(row, "subfield"),
        "answer_type": text(row, "answer_type"),
        "unit": row.get("unit"),
        "tolerance": _tolerance(row.get("error")),
    }
    answers = items(row, "answer", "final_answer")
    answer = ", ".join(str(item).strip() for item in answers)
    return Question(id=identity(row, number, "olympiadbench"), answer=answer, columns=columns)


TASK = replace(
    MATH,
    name="olympiadbench",
    source=Source(
        file="olympiadbench/test.jsonl", hub="Hothan/OlympiadBench", config="OE_TO_maths_en_COMP", split="train"
    ),
    read=read,
    options={"tolerance": "tolerance"},
    max_tokens=8192,
    breakdown=("subject", "answer_type"),
)
