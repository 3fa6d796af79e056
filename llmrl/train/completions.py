"""A few completions of a step in the trackers' own tables, beside the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from llmrl.types import Trajectory, total

COLUMNS = ("step", "prompt", "completion", "reward", "advantage", "end")
LONGEST = 2000  # characters of a text


def log_completions(
    trackers: Sequence[Any], step: int, rows: Sequence[Trajectory], advantages: Sequence[float | None], count: int
) -> None:
    """Send the first `count` of a step's rows (whole groups lie together) to accelerate's `trackers`."""
    chosen = list(zip(rows, advantages, strict=True))[:count]
    table = [_row(step, row, advantage) for row, advantage in chosen]
    for tracker in trackers if table else ():
        if tracker.name == "tensorboard":
            tracker.writer.add_text("completions", as_markdown(table), global_step=step)
        else:
            import pandas

            made = import_module(tracker.name).Table(dataframe=pandas.DataFrame(table, columns=list(COLUMNS)))
            tracker.tracker.log({"completions": made}, step=step)


def _row(step: int, row: Trajectory, advantage: float | None) -> tuple[Any, ...]:
    return step, row.prompt.text[-LONGEST:], row.text[:LONGEST], total([row]), advantage, row.status.kind.value


def as_markdown(table: Sequence[Sequence[Any]]) -> str:
    """Rows of `COLUMNS` as a Markdown table; what a model wrote is shown as code and breaks nothing.

    >>> print(as_markdown([(1, "a|b", "c`d", 1.0, None, "done")]).splitlines()[-1])
    | 1 | <code>a&#124;b</code> | <code>c&#96;d</code> | 1 | – | done |
    """
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for step, prompt, completion, reward, advantage, end in table:
        numbers = ["–" if number is None else f"{number:g}" for number in (reward, advantage)]
        lines.append(f"| {' | '.join([str(step), _code(prompt), _code(completion), *numbers, end])} |")
    return "\n".join(lines)


def _code(text: str) -> str:
    replaced = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;", "*": "&#42;", "_": "&#95;",
                "[": "&#91;", "\n": "<br>"}  # fmt: skip
    return f"<code>{''.join(replaced.get(char, char) for char in text)}</code>"
