"""The file a task's evaluation streams to: a header line with the settings, then one line per finished question.

A stopped evaluation goes on where it was: complete lines are kept, a torn last line is cut off, and a header with other
settings is refused. The order of the lines is the order in which questions finished; readers sort by `index`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Self

from llmrl.atomic import replacing
from llmrl.errors import EvalError

SCHEMA = "llmrl.eval.samples/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One judged completion. `value` is the verifier's score, None if it has none; `answer` the voting class.

    `status` is done, truncated or error (then `status_reason`). `logprob` is the sum over `tokens` tokens (nats).
    `scores` holds what scorers said, by name, `info` the texts before a strategy's answer.
    """

    text: str
    tokens: int
    logprob: float | None
    status: str
    value: float | None
    answer: str | None = None
    status_reason: str = ""
    reason: str = ""
    error: str = ""
    flags: tuple[str, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One question with all its samples. `columns` are the task's breakdown columns; `prompt_tokens` its length."""

    index: int
    question: str
    prompt: str
    prompt_tokens: int
    gold: str
    columns: Mapping[str, str]
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From a line of the file. KeyError or TypeError if it is none."""
        samples = tuple(Sample(**{**item, "flags": tuple(item.get("flags", ()))}) for item in row["samples"])
        return cls(**{**row, "samples": samples})


_OPTIONAL = frozenset({"status_reason", "reason", "error", "flags", "parts", "scores", "info"})


def to_line(record: Record) -> bytes:
    """One JSON line; what is empty in a sample is left out."""
    samples = [
        {k: v for k, v in asdict(sample).items() if k not in _OPTIONAL or v not in ("", (), {})}
        for sample in record.samples
    ]
    own = {item.name: getattr(record, item.name) for item in fields(record)}
    return _line({**own, "samples": samples})


def _line(content: Mapping[str, Any]) -> bytes:
    # A lone surrogate has no UTF-8; backslashreplace writes it as the escape that JSON has for it.
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def read_records(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """(settings, records sorted by index) of a file. EvalError if it is none, or a line but the last is broken."""
    lines = path.read_text(encoding="utf-8").split("\n")
    header = _header(path, lines[0])
    records = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        try:
            records.append(Record.of(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break  # torn by a crash: that question runs again
            raise EvalError(f"{path}:{number}: not a record of an evaluation: {error}") from error
    return header, sorted(records, key=lambda record: record.index)


def _header(path: Path, line: str) -> dict[str, Any]:
    try:
        header = json.loads(line)
        settings: dict[str, Any] = header["settings"]
        schema = header["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{path}: not a file of an evaluation; remove it or choose another --out") from error
    if schema != SCHEMA:
        raise EvalError(f"{path}: schema {schema!r}, this version reads {SCHEMA!r}; remove it or choose another --out")
    return settings


def _content(settings: Mapping[str, Any], name: str) -> Any:
    """A setting without where its data lies: the checksum says what it is."""
    value = settings.get(name)
    return {k: v for k, v in value.items() if k != "origin"} if isinstance(value, dict) else value


@contextmanager
def open_records(path: Path, settings: Mapping[str, Any]) -> Iterator[tuple[BinaryIO, list[Record]]]:
    """(file to append lines to, records that are there already), for a new or a resumed evaluation.

    EvalError, naming what differs, if the file was written with other settings.
    """
    wanted = json.loads(json.dumps(settings))
    done: list[Record] = []
    if path.exists() and path.stat().st_size and "\n" in path.read_text(encoding="utf-8"):
        found, done = read_records(path)
        differing = [name for name in sorted({*found, *wanted}) if _content(found, name) != _content(wanted, name)]
        if differing:
            shown = "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in differing[:4])
            raise EvalError(f"{path} was written with other settings ({shown}); choose another --out, or --restart")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, on_disk=True) as temporary, temporary.open("wb") as file:
        file.write(_line({"schema": SCHEMA, "settings": wanted}))
        file.writelines(to_line(record) for record in done)
    with path.open("ab") as file:
        yield file, done
