"""A benchmark of one's own, from a YAML task file or straight from a JSONL file.

    name: my_bench
    data: problems.jsonl          # beside the YAML file; or hub: org/name (with config, split)
    columns: {problem: question}  # our names -> the data's
    template: "{problem} Answer in \\boxed{{}}."
    verifier: llmrl.rewards.math_answer:MathAnswer
    max_tokens: 512

The rows of a bare JSONL file have `problem` (or `question`, `prompt`) and `answer`; they are asked as they are and
verified as maths.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmrl.errors import EvalError
from llmrl.eval.task import Question, Source, Task, column, identity, text
from llmrl.eval.tasks.competition_math import MATH
from llmrl.nearest import nearest


class TaskFile(BaseModel):
    """The keys of a task file; they mean what they mean in `Task` and `Source`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    data: str | None = Field(None, description="a JSONL, JSON or parquet file; relative to the task file")
    hub: str | None = None
    config: str | None = None
    split: str = "test"
    where: dict[str, Any] = Field(default_factory=dict)
    columns: dict[str, str] = Field(default_factory=dict, description="our names -> the data's; also id and answer")
    template: str = "{problem}"
    plain_template: str = "Question: {problem}\nAnswer:"
    plain_stop: tuple[str, ...] = ("Question:", "\n\n\n")
    plain_response: str = "{response}"
    verifier: str = MATH.verifier
    options: dict[str, Any] = Field(default_factory=dict)
    vote: str | None = None
    mode: Literal["chat", "plain"] = "chat"
    samples: int = Field(1, ge=1)
    max_tokens: int = Field(1024, ge=1)
    temperature: float = Field(0.6, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    breakdown: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> TaskFile:
        if (self.data is None) == (self.hub is None):
            raise ValueError("say where the rows are: either data (a file) or hub (org/name)")
        return self


def task_from_file(path: Path) -> Task:
    """The task that a .yaml, .yml or .jsonl file describes. EvalError: no such file, bad YAML, a bad key."""
    if not path.is_file():
        raise EvalError(f"no task file {path}")
    if path.suffix == ".jsonl":
        return _task(TaskFile.model_validate({"name": path.stem, "data": path.name, "vote": MATH.vote}), path.parent)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvalError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise EvalError(f"{path}: a task file holds keys and values, this is {type(content).__name__}")
    try:
        return _task(TaskFile.model_validate(content), path.parent)
    except ValidationError as error:
        raise EvalError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from error


def _explain(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"])) or "task"
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg'].removeprefix('Value error, ')}"
    return f"unknown key {key!r}; {nearest(key, TaskFile.model_fields)}"


def _task(file: TaskFile, folder: Path) -> Task:
    source = Source(
        file=str((folder / file.data).resolve()) if file.data else "",
        hub=file.hub or "",
        config=file.config,
        split=file.split,
        where=file.where,
    )
    shared = {name for name in TaskFile.model_fields if name in Task.__dataclass_fields__}
    return Task(source=source, read=_reader(file), **{name: getattr(file, name) for name in shared})


def _reader(file: TaskFile) -> Any:
    wanted = [name for part in (file.template, file.plain_template) for name in fields(part)]

    def read(row: Mapping[str, Any], number: int) -> Question:
        columns = {**row, **{ours: column(row, theirs) for ours, theirs in file.columns.items()}}
        if "problem" in wanted and "problem" not in columns:
            columns["problem"] = text(row, "problem", "question", "prompt")
        for name in (*wanted, *file.breakdown):
            column(columns, name)
        name = identity(columns, number, file.name)
        columns.pop("id", None)
        return Question(id=name, answer=text(columns, "answer"), columns=columns)

    return read


def fields(template: str) -> list[str]:
    """Names that a template wants filled. EvalError if it is no template (a lone brace) or asks for more than a name.

    >>> fields("{problem} Put it in \\\\boxed{{}}.")
    ['problem']
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise EvalError(f"template {template!r}: {error}; literal braces are written twice") from error
    for name in names:
        if not name.isidentifier():
            raise EvalError(f"template {template!r}: {{{name}}} is no column name; literal braces are written twice")
    return names
