"""Attempts at problems whose correctness is known: drafts for critics, from files of three shapes.

    question, answer, attempt, correct                          ours; GSM8K's problem and gold_solution are read too
    question, answer, origin_response, correctness-origin       the rows of Critique-RL's released code
    input, target, answer, steps                                BIG-Bench Mistake: `answer` is the attempt's, correct if it
                                                                is the target. Its mistake_index stays a column: null does
                                                                not mean that the answer is right (18 of 62 in its
                                                                multistep_arithmetic are wrong)

A recipe names them as `attempts:` and a path or hub id; `args: {balance: true}` keeps as many right as wrong ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmrl.data.rows import Row
from llmrl.errors import DataError
from llmrl.seeding import generator

PREFIX = "attempts:"
NAMES = {
    "question": ("question", "problem", "prompt", "input"),
    "answer": ("target", "answer", "gold_solution"),
    "attempt": ("attempt", "origin_response", "steps"),
    "correct": ("correct", "correctness-origin"),
}


def attempt_record(record: Any, place: str) -> dict[str, Any]:
    """The record with columns question, answer, attempt (text) and correct (true or false).

    Raises DataError for a column that is missing or holds something else.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{place}: a row must be an object with named columns, not {type(record).__name__}")
    found: dict[str, Any] = {}
    for ours, names in NAMES.items():
        name = next((name for name in names if record.get(name) is not None), None)
        if name is None and ours == "correct" and {"target", "answer"} <= set(record):
            found[ours] = str(record["answer"]).strip() == str(record["target"]).strip()
            continue
        if name is None:
            raise DataError(f"{place}: an attempt needs a column {' or '.join(names)}; the row has {', '.join(record)}")
        found[ours] = _final(str(record[name])) if name == "gold_solution" else record[name]
    attempt = found["attempt"]
    text = "\n".join(map(str, attempt)) if isinstance(attempt, list) else attempt
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: the attempt must be text or a list of steps, and not empty; it is {attempt!r:.60}")
    if not isinstance(found["correct"], bool) and found["correct"] not in (0, 1):
        raise DataError(f"{place}: correct must be true or false, not {found['correct']!r:.60}")
    others = {name: value for name, value in record.items() if name not in ("prompt", "problem")}
    return {**others, **found, "attempt": text, "correct": bool(found["correct"])}


def _final(solution: str) -> str:
    """What a worked solution of GSM8K ends with, after "A:" or "####"."""
    return solution.replace("####", "A:").rpartition("A:")[2].strip() or solution


def balanced(rows: Sequence[Row], *, seed: int) -> list[Row]:
    """As many rows with a right attempt as with a wrong one, drawn by `seed`, in their order.

    Raises DataError if there are none of a kind.
    """
    kinds = [[n for n, row in enumerate(rows) if row.columns["correct"] is right] for right in (True, False)]
    count = min(map(len, kinds))
    if not count:
        raise DataError(f"{len(kinds[0])} attempts are right and {len(kinds[1])} wrong; there is nothing to balance")
    draw = generator(seed, "balance")
    kept = sorted(number for kind in kinds for number in draw.sample(kind, count))
    return [rows[number] for number in kept]
