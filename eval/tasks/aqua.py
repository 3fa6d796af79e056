"""AQuA-RAT: 254 algebra word problems with five choices. Ling et al. 2017 (1705.04146)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrl.eval.task import Question, Source, Task, identity, items, text


def read(row: Mapping[str, Any], number: int) -> Question:
    """Options arrive as "A)40"; they are shown as "A) 40". The gold must be one of their letters."""
    options = [str(option) for option in items(row, "options")]
    letters = [option[:1] for option in options]
    answer = text(row, "answer", "correct").strip().upper()
    if answer not in letters:
        raise ValueError(f"the gold {answer!r} is none of the options {letters}")
    columns = {
        "problem": text(row, "problem", "question"),
        "options": "\n".join(f"{option[:1]}) {option[2:].strip()}" for option in options),
        "choices": "".join(letters),
        "rationale": str(row.get("rationale") or ""),
    }
    return Question(id=identity(row, number, "aqua"), answer=answer, columns=columns)


TASK = Task(
    name="aqua",
    source=Source(file="aqua/test.jsonl", hub="deepmind/aqua_rat", config="raw", split="test"),
    read=read,
    verifier="llmrl.rewards.text_answer:ChoiceLetter",
    template=(
        "{problem}\n\n{options}\n\nPlease reason step by step, and finish with \\boxed{{}} holding only the letter of "
        "the right choice."
    ),
    plain_template="Question: {problem}\n{options}\nAnswer:",
    plain_stop=("Question:", "\n\n\n"),
    shot_source=Source(file="aqua/dev.jsonl", hub="deepmind/aqua_rat", config="raw", split="validation"),
    shot_response=" {rationale}\nThe answer is {answer}.\n\n",
    plain_shots=4,
    max_tokens=1024,
)
