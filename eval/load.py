"""Rows into questions: reads a task's JSONL file, hub dataset or generator, and says exactly what was read.

A row that a task cannot read is an error with file, line and reason, never a question less.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmrl.data.files import read_files
from llmrl.data.source import load_rows
from llmrl.errors import EvalError
from llmrl.eval.task import Generated, Question, Source, Task
from llmrl.settings.data import DataConfig

SHOWN_ERRORS = 5

PlacedRow = tuple[str, Mapping[str, Any]]  # where it stands ("file:line"), the row


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """A task's questions. `origin` is a path, hub id or generator; `sha256` of what was read, before any sub-sampling.

    `available` counts the questions before sub-sampling.
    """

    questions: tuple[Question, ...]
    origin: str
    sha256: str
    available: int


def load_questions(
    task: Task, *, data_dir: Path | None = None, limit: int | None = None, first: bool = False
) -> Questions:
    """All questions of `task`, or `limit` of them: the first ones, or a subset that depends on the ids alone.

    The subset is nested (that of 100 holds that of 50) and the same for every model. `data_dir` holds local copies;
    without it rows come from the hub. EvalError or DataError for missing data, malformed rows (file, line, reason), ids
    that repeat, or no question.
    """
    if limit is not None and limit < 1:
        raise EvalError(f"limit={limit}; ask at least one question")
    origin, sha256, rows = _rows(task, task.source, data_dir)
    questions = _read_all(task, rows)
    chosen = questions if limit is None else questions[:limit] if first else _subset(questions, limit)
    return Questions(questions=tuple(chosen), origin=origin, sha256=sha256, available=len(questions))


def load_shots(task: Task, count: int, *, data_dir: Path | None = None) -> tuple[Question, ...]:
    """`count` worked examples for few-shot prompts: the first rows of the task's `shot_source`."""
    if count == 0:
        return ()
    if task.shot_source is None:
        raise EvalError(f"task {task.name} has no worked examples; run it with shots=0")
    _, _, rows = _rows(task, task.shot_source, data_dir)
    shots = _read_all(replace(task, read=task.shot_read or task.read), rows[:count])
    if len(shots) < count:
        raise EvalError(f"task {task.name} has {len(shots)} worked examples, fewer than shots={count}")
    return tuple(shots)


def _rows(task: Task, source: Source | Generated, data_dir: Path | None) -> tuple[str, str, list[PlacedRow]]:
    """Where the rows come from, their checksum, and the rows that `source` selects."""
    if isinstance(source, Generated):
        return _generated(source)
    if source.file and (Path(source.file).is_absolute() or data_dir is not None):
        path = _local_path(task, source, data_dir or Path())
        origin, sha256 = str(path), hashlib.sha256(path.read_bytes()).hexdigest()
        rows: list[PlacedRow] = [(place, record) for place, _, record in read_files(str(path))]
    elif source.hub:
        rows = _hub_rows(source)
        origin = "/".join(filter(None, (source.hub, source.config, source.split)))
        sha256 = _rows_sha256(row for _, row in rows)
    else:
        raise EvalError(f"task {task.name} is on no hub; give --data-dir, the folder that holds {source.file}")
    for place, row in rows:
        if not isinstance(row, dict):
            raise EvalError(f"{place}: a row must be an object with named columns, not {type(row).__name__}")
    kept = [item for item in rows if all(item[1].get(name, value) == value for name, value in source.where.items())]
    return origin, sha256, kept[source.skip :]


def _generated(source: Generated) -> tuple[str, str, list[PlacedRow]]:
    config = DataConfig.model_validate(
        {
            "source": source.generator,
            "split": "held_out",
            "args": dict(source.args),
            "limit": source.count,
            "shuffle": False,
        }
    )
    rows = [(row.origin, row.columns) for row in load_rows(config, seed=source.seed)]
    return f"{source.generator} (held out, seed {source.seed})", _rows_sha256(row for _, row in rows), rows


def _local_path(task: Task, source: Source, data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise EvalError(f"--data-dir {data_dir} is no folder")
    path = data_dir / source.file
    if not path.is_file():
        hub = f", or leave --data-dir out to read {source.hub} from the hub" if source.hub else ""
        raise EvalError(f"task {task.name}: no file {path}; put it there{hub}")
    return path


def _hub_rows(source: Source) -> list[PlacedRow]:
    import datasets

    name = "/".join(filter(None, (source.hub, source.config)))
    try:
        data = datasets.load_dataset(source.hub, source.config, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise EvalError(
            f"cannot read {name} (split {source.split}) from the hub: {str(error).splitlines()[0]:.200}; "
            "with a local copy, give --data-dir"
        ) from error
    return [(f"{name} {source.split} row {i}", row) for i, row in enumerate(data)]


def _rows_sha256(rows: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()


def _read_all(task: Task, rows: Sequence[PlacedRow]) -> list[Question]:
    questions: list[Question] = []
    seen: dict[str, str] = {}
    bad: list[str] = []
    for number, (where, row) in enumerate(rows):
        try:
            question = task.read(row, number)
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            bad.append(f"{where}: {error}")
            continue
        if question.id in seen:
            bad.append(f"{where}: id {question.id!r} is that of {seen[question.id]} too")
        seen[question.id] = where
        questions.append(question)
    if bad:
        more = f"\n... and {len(bad) - SHOWN_ERRORS} more" if len(bad) > SHOWN_ERRORS else ""
        lines = "\n".join(bad[:SHOWN_ERRORS])
        raise EvalError(f"task {task.name}: {len(bad)} malformed row(s) of {len(rows)}; mend or remove\n{lines}{more}")
    if not questions:
        raise EvalError(f"task {task.name}: no question in {task.source}")
    return questions


def _subset(questions: Sequence[Question], limit: int) -> list[Question]:
    """The `limit` questions whose ids hash lowest, in their own order."""
    by_hash = sorted(questions, key=lambda question: hashlib.sha256(question.id.encode()).digest())
    kept = {question.id for question in by_hash[:limit]}
    return [question for question in questions if question.id in kept]
