"""Rows -> what supervised stages learn from: completions, and pairs of a better and a worse one.

A row says it in the conventions of `datasets`: `prompt` and `completion`; `messages`; `prompt`, `chosen` and
`rejected`, each text or messages; `chosen` and `rejected` as whole conversations. A row of a generator or of a task
with an `answer` says it too: the answer is the completion, and a wrong one is made for it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from llmrl.data.files import is_file_source
from llmrl.data.generators import is_generator
from llmrl.data.rows import PROMPT_NAMES, Row, check_disjoint
from llmrl.data.source import held_out_config, load_train_eval
from llmrl.errors import DataError
from llmrl.seeding import generator, key
from llmrl.settings.data import DataConfig
from llmrl.settings.recipe import Recipe
from llmrl.settings.stages import Supervised


def prompt_from_chat(columns: Mapping[str, str]) -> Callable[[Any, str], Any]:
    """A function that gives a record without a prompt column the prompt with which its conversation starts."""

    def shape(record: Any, place: str) -> Any:
        if not isinstance(record, Mapping) or any(name in record for name in (*PROMPT_NAMES, columns.get("prompt"))):
            return record
        for ours in ("messages", "chosen"):
            name = columns.get(ours, ours)
            if isinstance(record.get(name), list):
                return {**record, "prompt": _messages(record[name], f"{place}: column {name!r}")[:-1]}
        return record

    return shape


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    """A conversation whose last message is the assistant's. Raises DataError."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} must be a list of chat messages, got {value!r:.80}")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise DataError(f"{where}: message {number} must have role and content, got {message!r:.80}")
        if not isinstance(message["content"], str):
            raise DataError(f"{where}: message {number} has {type(message['content']).__name__} content, not text")
    if value[-1]["role"] != "assistant":
        raise DataError(f"{where}: the last message is the {value[-1]['role']}'s; it must be the assistant's")
    return [dict(message) for message in value]


@contextmanager
def named(stage: Supervised) -> Iterator[None]:
    """Name the stage in errors about its data."""
    try:
        yield
    except DataError as error:
        raise DataError(f"stage {stage.title}: {error}") from error


def load_stage_rows(stage: Supervised, recipe: Recipe) -> tuple[list[Row], list[Row], DataConfig, DataConfig]:
    """(training rows, held-out rows, and how each are to become prompts) of a stage.

    They are disjoint, and no training row poses a problem that the recipe's own held-out data poses: DataError.
    """
    data, held_out = stage.data or recipe.data, stage.eval.data
    if stage.data is None:
        held_out = recipe.eval.data.model_copy(update=held_out.model_dump(exclude_unset=True))
    seed = key(recipe.seed, "data")
    train_rows, eval_rows = load_train_eval(data, held_out, seed=seed, shape=prompt_from_chat(data.columns))
    if stage.data:
        check_disjoint(train_rows, load_train_eval(recipe.data, recipe.eval.data, seed=seed)[1])
    return train_rows, eval_rows, data, held_out_config(held_out, data)


def stage_data(stage: Supervised, recipe: Recipe) -> str:
    """A stage's data in the words of `llmrl plan`; a data set on the hub is not fetched. Raises DataError for rows from
    which nothing can be learnt.
    """
    sources = {c.source for c in (stage.data or recipe.data, recipe.data)}
    source = (stage.data or recipe.data).source
    if any(not (is_generator(name) or is_file_source(name)) and "/" in name for name in sources):
        return f"{source}, looked at when the stage starts"
    with named(stage):
        train_rows, eval_rows, *_ = load_stage_rows(stage, recipe)
        found = [len(examples_of(stage, rows, recipe.seed)) for rows in (train_rows, eval_rows)]
    return f"{source}: {found[0]:,} to train on, {found[1]:,} held out"


def examples_of(stage: Supervised, rows: Sequence[Row], seed: int) -> list[tuple[Row, tuple[str, ...]]]:
    """(row, its completion, or its better and its worse one) of every example of a stage."""
    if stage.kind == "sft":
        return [(row, (completion,)) for row, completion in with_completions(rows)]
    return [(row, (chosen, rejected)) for row, chosen, rejected in with_pairs(rows, seed=key(seed, "wrong answers"))]


def with_completions(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """(row, the completion to learn) of every row; of a conversation, one for every turn of the assistant.

    Raises DataError for a row without a completion or with an empty one.
    """
    found: list[tuple[Row, str]] = []
    for row in rows:
        messages = row.columns.get("messages")
        if "completion" in row.columns or messages is None:
            found.append((row, _text(row, "completion", "answer")))
            continue
        turns = _messages(messages, f"{row.origin}: column 'messages'")
        for place, turn in enumerate(turns):
            if turn["role"] == "assistant" and place:
                before = tuple({"role": m["role"], "content": m["content"]} for m in turns[:place])
                found.append((replace(row, id=f"{row.id}#{place}", prompt=before), turn["content"]))
    return found


def with_pairs(rows: Sequence[Row], *, seed: int) -> list[tuple[Row, str, str]]:
    """(row, the better completion, the worse one) of every row; `seed` keys the wrong answers that are made.

    Raises DataError: a row without a pair, or whose two are equal.
    """
    found, others = [], [row.answer for row in rows]
    for row in rows:
        if "chosen" in row.columns or "rejected" in row.columns:
            chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
        else:
            chosen = _text(row, "chosen", "answer")
            rejected = wrong_answer(chosen, others, generator(seed, "wrong answer", row.id))
        if chosen == rejected:
            raise DataError(f"{row.origin}: chosen and rejected are the same text, {chosen!r:.80}")
        found.append((row, chosen, rejected))
    return found


def wrong_answer(answer: str, others: Sequence[str], draw: random.Random) -> str:
    """A wrong answer that looks like a right one: a whole number with one digit changed, else another row's answer.

    >>> wrong_answer("100", [], random.Random(0)) not in ("100", "0100")
    True
    """
    if re.fullmatch(r"-?\d+", answer):
        first = answer.startswith("-")
        place = draw.randrange(first, len(answer))
        leading = place == first and len(answer) - first > 1
        digits = [d for d in "0123456789"[leading:] if d != answer[place]]
        changed = answer[:place] + draw.choice(digits) + answer[place + 1 :]
        return "1" if changed == "-0" else changed
    for _ in range(100):
        if others and (other := draw.choice(others)) != answer:
            return other
    raise DataError(
        f"no row has another answer than {answer!r:.80}, so no wrong one can be made; add a column 'rejected'"
    )


def _text(row: Row, *names: str) -> str:
    """The first of the row's columns `names` as text: of messages, the last one's content."""
    name = next((name for name in names if name in row.columns), None)
    if name is None and not (names[-1] == "answer" and row.answer):
        wanted = " or ".join(repr(name) for name in names)
        raise DataError(
            f"{row.origin}: no column {wanted} (the row has {', '.join(row.columns)}); say which one it is with "
            f"data.columns.{names[0]}"
        )
    value = row.answer if name is None or name == "answer" else row.columns[name]
    if isinstance(value, list):
        value = _messages(value, f"{row.origin}: column {name!r}")[-1]["content"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.origin}: column {name or 'answer'!r} must be text, not {value!r:.80}")
    return value
