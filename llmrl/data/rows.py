"""`Row`: one problem after column mapping, before a tokenizer has seen it. Also problem identity and disjointness."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmrl.errors import DataError
from llmrl.nearest import closest
from llmrl.settings.data import template_parts

HELD_OUT_FRACTION = 0.1
PROMPT_NAMES = ("prompt", "problem", "question")
ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One problem. `prompt` is text or chat messages; `identity` is equal for two rows that pose the same problem.

    `columns` holds every column of the data row under its own name (a reward function written for the data set finds
    what it expects); `origin` says where the row came from, for error messages.
    """

    id: str
    prompt: str | tuple[Mapping[str, str], ...]
    answer: str
    columns: Mapping[str, Any]
    identity: str
    origin: str


def make_row(
    record: Any,
    *,
    columns: Mapping[str, str],
    origin: str,
    default_id: str,
    identity: str | None = None,
    template: str | None = None,
) -> Row:
    """Map a raw record to a Row.

    `columns` maps our names to the data's. Without it the prompt is the first of prompt, problem, question that exists;
    `answer` and `id` may be absent (an empty answer; `default_id`) unless the mapping names them. Without an `identity`
    the prompt's own text tells problems apart. Rows without a prompt are fine where `template` makes one of other columns.
    Raises DataError with `origin` and the reason.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{origin}: a row must be an object with named columns, not {type(record).__name__}")
    for name in columns.values():
        if name not in record:
            raise DataError(f"{origin}: no column {name!r}{_near(name, record)}")
    prompt_column = columns.get("prompt") or next((name for name in PROMPT_NAMES if name in record), None)
    prompt: str | tuple[Mapping[str, str], ...]
    if prompt_column is None and (made := _from_template(record, columns, template)):
        prompt = made
    elif prompt_column is None:
        raise DataError(
            f"{origin}: no column {', '.join(PROMPT_NAMES)}{_near('prompt', record)}; "
            "say which one it is with data.columns.prompt"
        )
    else:
        prompt = _prompt(record[prompt_column], f"{origin}: column {prompt_column!r}")
    answer_column, id_column = columns.get("answer", "answer"), columns.get("id", "id")
    answer = _scalar(record[answer_column], f"{origin}: column {answer_column!r}") if answer_column in record else ""
    row_id = _scalar(record[id_column], f"{origin}: column {id_column!r}") if id_column in record else default_id
    if not row_id:
        raise DataError(f"{origin}: column {id_column!r} is empty")
    renamed = {ours: record[theirs] for ours, theirs in columns.items() if ours not in ("prompt", "answer", "id")}
    return Row(
        id=row_id,
        prompt=prompt,
        answer=answer,
        columns={**record, **renamed},
        identity=identity or _plain_identity(prompt),
        origin=origin,
    )


def _from_template(record: Mapping[str, Any], columns: Mapping[str, str], template: str | None) -> str:
    """The user's turn from columns that are no prompt; "" if the template needs what the row does not have."""
    values = {**record, **{ours: record[theirs] for ours, theirs in columns.items()}}
    parts = list(template_parts(template or ""))
    if not parts or any(name is not None and values.get(name) is None for _, name in parts):
        return ""
    return "".join(literal + ("" if name is None else str(values[name])) for literal, name in parts)


def _near(name: str, record: Mapping[str, Any]) -> str:
    close = closest(name, map(str, record))
    guess = f"; did you mean {close!r}?" if close else ""
    return f" (the row has {', '.join(map(str, record)) or 'none'}){guess}"


def _prompt(value: Any, where: str) -> str | tuple[Mapping[str, str], ...]:
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where} is empty")
        return value
    if not isinstance(value, list):
        raise DataError(f"{where} must be text or a list of chat messages, not {type(value).__name__}")
    if not value:
        raise DataError(f"{where} is an empty list of messages")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise DataError(f"{where}: message {number} must have role and content, got {message!r:.80}")
        if message["role"] not in ROLES:
            raise DataError(f"{where}: message {number} has role {message['role']!r}; known are {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise DataError(f"{where}: message {number} has {type(message['content']).__name__} content, not text")
    if not any(message["content"].strip() for message in value):
        raise DataError(f"{where}: all messages are empty")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _scalar(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"{where} must be text or a number, not {type(value).__name__}")
    return str(value)


def _plain_identity(prompt: str | tuple[Mapping[str, str], ...]) -> str:
    """Upper and lower case and white space do not make another problem; neither does a system message."""
    if not isinstance(prompt, str):
        prompt = "\n".join(message["content"] for message in prompt if message["role"] != "system")
    return " ".join(prompt.casefold().split())


def is_held_out(identity: str) -> bool:
    """Whether a problem belongs to the held-out part (one in ten), whatever the seeds of the run."""
    digest = hashlib.blake2b(f"held-out {identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_FRACTION * 2**64


def check_disjoint(train_rows: Iterable[Row], eval_rows: Sequence[Row]) -> None:
    """Raise DataError, with an example, if a problem is in both: by identity, or with the same prompt text."""
    held_out = {name: row for row in eval_rows for name in (row.identity, _plain_identity(row.prompt))}
    shared = []
    for row in train_rows:
        other = held_out.get(row.identity) or held_out.get(_plain_identity(row.prompt))
        if other is not None:
            shared.append((row, other))
    if shared:
        train, held = shared[0]
        raise DataError(
            f"{len(shared)} training rows pose a problem that the held-out data also poses, for example "
            f"{train.id!r} ({train.origin}) and {held.id!r} ({held.origin}): {_plain_identity(held.prompt)[:100]!r}"
        )
