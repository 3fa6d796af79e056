"""`Row`: one problem after column mapping, before a tokenizer has seen it. Also problem identity and disjointness."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrl.errors import DataError
from llmrl.nearest import closest
from llmrl.settings.data import template_parts
from llmrl.types import Media, Message

HELD_OUT_FRACTION = 0.1
PROMPT_NAMES = ("prompt", "problem", "question")
IMAGE_NAMES = ("images", "image")
ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One problem. `prompt` is text or chat messages; `identity` is equal for two rows that pose the same problem.

    `columns` holds every column of the data row under its own name (a reward function written for the data set finds
    what it expects); `origin` says where the row came from, for error messages.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    columns: Mapping[str, Any]
    identity: str
    origin: str
    images: tuple[Media, ...] = ()
    source: str = ""  # the name of one of several


def make_row(
    record: Any,
    *,
    columns: Mapping[str, str],
    origin: str,
    default_id: str,
    identity: str | None = None,
    template: str | None = None,
    folder: Path | None = None,
) -> Row:
    """Map a raw record to a Row. Image paths are relative to `folder`, if they are not absolute.

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
    prompt: str | tuple[Message, ...]
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
    image_column = columns.get("images") or next((name for name in IMAGE_NAMES if name in record), None)
    images = read_images(record[image_column], f"{origin}: column {image_column!r}", folder) if image_column else ()
    renamed = {
        ours: record[theirs] for ours, theirs in columns.items() if ours not in ("prompt", "answer", "id", "images")
    }
    return Row(
        id=row_id,
        prompt=prompt,
        answer=answer,
        columns={name: value for name, value in {**record, **renamed}.items() if name != image_column},
        identity=identity or _plain_identity(prompt, images),
        origin=origin,
        images=images,
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


def _prompt(value: Any, where: str) -> str | tuple[Message, ...]:
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
        held = message["content"]
        if not isinstance(held, str) and not (isinstance(held, list) and all(map(_is_part, held))):
            raise DataError(
                f"{where}: message {number} has {type(held).__name__} content; it must be text, or a list of "
                '{"type": "text", "text": ...} and {"type": "image"}'
            )
    if not any(words(message["content"]).strip() or image_parts([message]) for message in value):
        raise DataError(f"{where}: all messages are empty")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _scalar(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"{where} must be text or a number, not {type(value).__name__}")
    return str(value)


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and (
        part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))
    )


def words(content: Any) -> str:
    """The text of a message's content."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def image_parts(messages: Iterable[Message]) -> int:
    """How many places for images the messages have."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return sum(part["type"] == "image" for content in contents for part in content)


def read_images(value: Any, where: str, folder: Path | None) -> tuple[Media, ...]:
    """One image or a list: PIL images, arrays, bytes, paths, or what data sets store ({"bytes": ..., "path": ...}).

    Raises DataError for what is no image.
    """
    if value is None:
        return ()
    found = []
    for item in value if isinstance(value, list | tuple) else [value]:
        raw = (item.get("bytes") or item.get("path")) if isinstance(item, Mapping) else item
        if isinstance(raw, str):
            raw = (folder or Path()) / raw
        try:
            found.append(Media.image(raw))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{where}: {error}") from error
    return tuple(found)


def _plain_identity(prompt: str | tuple[Message, ...], images: Sequence[Media] = ()) -> str:
    """Upper and lower case and white space do not make another problem, neither does a system message; pictures do."""
    if not isinstance(prompt, str):
        prompt = "\n".join(words(message["content"]) for message in prompt if message["role"] != "system")
    return " ".join([*prompt.casefold().split(), *(image.hash for image in images)])


def is_held_out(identity: str) -> bool:
    """Whether a problem belongs to the held-out part (one in ten), whatever the seeds of the run."""
    digest = hashlib.blake2b(f"held-out {identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_FRACTION * 2**64


def check_disjoint(train_rows: Iterable[Row], eval_rows: Sequence[Row]) -> None:
    """Raise DataError, with an example, if a problem is in both: by identity, or with the same prompt text."""
    held_out = {name: row for row in eval_rows for name in (row.identity, _plain_identity(row.prompt, row.images))}
    shared = []
    for row in train_rows:
        other = held_out.get(row.identity) or held_out.get(_plain_identity(row.prompt, row.images))
        if other is not None:
            shared.append((row, other))
    if shared:
        train, held = shared[0]
        raise DataError(
            f"{len(shared)} training rows pose a problem that the held-out data also poses, for example "
            f"{train.id!r} ({train.origin}) and {held.id!r} ({held.origin}): {_plain_identity(held.prompt)[:100]!r}"
        )
