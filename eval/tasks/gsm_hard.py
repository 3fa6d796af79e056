"""GSM-Hard: GSM8K's test questions with large numbers; golds are decimals. Gao et al. 2022 (2211.10435)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from llmrl.eval.task import Question, Source, identity, text
from llmrl.eval.tasks.gsm8k import TASK as GSM8K


def read(row: Mapping[str, Any], number: int) -> Question:
    """The gold is written out ("0.0000020107", not "2.0107e-06"); an integer gold loses its ".0"."""
    value = Decimal(text(row, "answer", "target"))
    answer = str(int(value)) if value == int(value) else f"{value:f}"
    return Question(
        id=identity(row, number, "gsm_hard"), answer=answer, columns={"problem": text(row, "problem", "input")}
    )


TASK = replace(
    GSM8K,
    name="gsm_hard",
    source=Source(file="gsm_hard/test.jsonl", hub="reasoning-machines/gsm-hard", split="train"),
    read=read,
    shot_read=GSM8K.read,
)
