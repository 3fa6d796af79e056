"""What a benchmark is: where its rows are, how a row becomes a prompt, who verifies the answer, how papers sample it.

A task is data: a frozen `Task`, one per file in eval/tasks/. Its verifier is the reward that training names, so that
benchmark and reward cannot disagree. `eval/load.py` reads rows into `Question`s, `eval/prompts.py` turns a question
into messages or text, `eval/run.py` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["chat", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows of a benchmark: a JSONL file below a data folder, or a Hugging Face dataset.

    `where` keeps only rows whose column has that value; a column the rows don't have is not tested (the hub's splits
    are already apart). `split` may be a slice as `datasets` reads it ("train[:1000]"). `skip` leaves out that many of
    the rows that are left.
    """

    file: str = ""
    hub: str = ""
    config: str | None = None
    split: str = "test"
    where: Mapping[str, Any] = field(default_factory=dict)
    skip: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """`count` held-out problems of one of the project's own generators ("addition"), which training never draws."""

    generator: str
    count: int
    args: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row, ready to be asked. `columns` fill the templates and reach the verifier, as does `answer` (the gold)."""

    id: str
    answer: str
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark.

    `read(row, number)` makes a `Question` or raises ValueError with the reason. `template` is the user's message in
    chat mode, `plain_template` the text in plain mode (base models), both filled with the question's columns by
    `str.format`. `plain_stop` ends a plain completion, `plain_response` turns it into what the verifier reads.
    `shots` (chat) and `plain_shots` worked examples from `shot_source` precede the question, read
    by `shot_read` (default: `read`); `shot_response` is filled with such an example's columns.

    `verifier` is the reward's import path, built with `options`. `vote`, if voting makes sense, is the import path of
    a function from a response to its answer's class (or None): see eval/voting.py.

    One sample per question is greedy; several are drawn at `temperature` and `top_p`. `breakdown` names columns to
    report scores by.
    """

    name: str
    source: Source | Generated
    read: Callable[[Mapping[str, Any], int], Question]
    verifier: str
    template: str
    plain_template: str
    options: Mapping[str, Any] = field(default_factory=dict)
    vote: str | None = None
    plain_stop: tuple[str, ...] = ()
    plain_response: str = "{response}"
    shot_source: Source | None = None
    shot_read: Callable[[Mapping[str, Any], int], Question] | None = None
    shot_response: str = ""
    shots: int = 0
    plain_shots: int = 0
    mode: Mode = "chat"
    samples: int = 1
    max_tokens: int = 1024
    temperature: float = 0.6
    top_p: float = 0.95
    breakdown: tuple[str, ...] = ()


def column(row: Mapping[str, Any], *names: str) -> Any:
    """The first of the columns `names` that `row` has and that is not None. ValueError if it has none.

    >>> column({"question": "2 + 2?"}, "problem", "question")
    '2 + 2?'
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(f"no column {' or '.join(map(repr, names))}; the row has {', '.join(map(repr, sorted(row)))}")


def text(row: Mapping[str, Any], *names: str) -> str:
    """As `column`, for text; a number is written as text. ValueError if it is empty or something else."""
    value = column(row, *names)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"column {names[0]!r} holds {type(value).__name__}, not text")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"column {names[0]!r} is empty")
    return str(value)


def items(row: Mapping[str, Any], *names: str) -> list[Any]:
    """As `column`, for a list with something in it. ValueError otherwise."""
    value = column(row, *names)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"column {names[0]!r} holds {value!r:.60}, not a list with something in it")
    return list(value)


def identity(row: Mapping[str, Any], number: int, prefix: str) -> str:
    """The row's own id as text, or `prefix`/`number` (rows counted from 0) if it has none."""
    for name in ("id", "unique_id", "task_id", "ID"):
        if row.get(name) is not None:
            return str(row[name])
    return f"{prefix}/{number}"
