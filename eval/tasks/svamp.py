"""SVAMP: 1,000 one-step word problems with varied wording. Patel et al. 2021 (2103.07191)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmrl.eval.task import Question, Source, identity, text
from llmrl.eval.tasks.gsm8k import TASK as GSM8K


def read(row: Mapping[str, Any], number: int) -> Question:
    """The hub splits the problem into Body and Question and writes integers as floats ("145.0")."""
    problem = text(row, "problem") if row.get("problem") else f"{text(row, 'Body')} {text(row, 'Question')}"
    kind = text(row, "type", "Type").replace("Divison", "Division")  # upstream's misspelling
    columns = {"problem": problem, "type": kind}
    return Question(
        id=identity(row, number, "svamp"), answer=text(row, "answer", "Answer").removesuffix(".0"), columns=columns
    )


TASK = replace(
    GSM8K,
    name="svamp",
    source=Source(file="svamp/test.jsonl", hub="ChilleD/SVAMP", split="train+test"),
    read=read,
    shot_read=GSM8K.read,
    breakdown=("type",),
)
